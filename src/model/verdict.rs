//! What the audits of all replicas of all shards come to, and whose is wrong where they do.

use super::address::Address;
use super::coverage::Coverage;
use super::meta::MetaState;
use super::range::HashRange;
use super::shard::Audit;
use super::view::Shard;

/// So many parts of the space that are not owned once are written out as sentences; the others are counted.
const PARTS_SAID: usize = 8;

/// What the nodes of a shard have said.
#[derive(Debug, Clone)]
pub struct ShardAudits {
    /// Why its replicas were not summed up at one moment, where they were not.
    pub apart: Option<String>,
    /// The audit of each replica, in the order of the view, or why there is none.
    pub replicas: Vec<(Address, Result<Audit, String>)>,
}

/// What that comes to.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// The audit of each shard that most of its replicas agree on, or that of the first one; nothing where none was reached.
    pub shown: Vec<Option<Audit>>,
    /// Which parts of the space the shards own not at all, or several times, by what they say themselves.
    pub coverage: Coverage,
    /// All that is wrong. Nothing is where there is none.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The shards that it is about; none where it is about a part of the space that nobody owns.
    pub shards: Vec<u32>,
    /// The nodes whose replicas of them it is about; none where it is about the whole shard.
    pub nodes: Vec<Address>,
    /// What it is: a sentence that names them.
    pub text: String,
}

impl Problem {
    /// Whether it is about a shard, and about the replica of it on this node where one is named.
    pub fn is_about(&self, shard: u32, node: Option<&Address>) -> bool {
        self.shards.contains(&shard) && node.is_none_or(|node| self.nodes.contains(node))
    }
}

impl Verdict {
    /// Judges the audits of all shards of a state, in its order.
    pub fn of(state: &MetaState, audits: &[ShardAudits]) -> Self {
        let mut verdict = Self::default();
        for (shard, audits) in state.view.shards.iter().zip(audits) {
            verdict.judge(shard, audits);
        }
        let shown = || {
            verdict
                .shown
                .iter()
                .zip(&state.view.shards)
                .filter_map(|(audit, shard)| Some((audit.as_ref()?, shard)))
        };
        verdict.coverage = Coverage::of(
            shown().flat_map(|(audit, shard)| audit.owned.iter().map(|range| (shard.id, range))),
        );
        // Who knows an older or a newer state owns what that says.
        let is_wrong = |(index, audit): &(usize, &Option<Audit>)| {
            let audit = audit.as_ref().filter(|audit| audit.version == state.version);
            audit.is_some_and(|audit| !owns(&audit.owned, state.view.ranges(*index)))
        };
        let wrong: Vec<u32> = verdict
            .shown
            .iter()
            .enumerate()
            .filter(is_wrong)
            .map(|(index, _)| state.view.shards[index].id)
            .collect();
        for id in wrong {
            let text = format!("shard {id} does not own what the view gives it");
            verdict.problems.push(Problem { shards: vec![id], nodes: Vec::new(), text });
        }
        verdict.say_coverage();
        verdict
    }

    /// Whether all is well.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    fn judge(&mut self, shard: &Shard, audits: &ShardAudits) {
        let problems = &mut self.problems;
        let mut say = |nodes: &[&Address], what: String| {
            let nodes = nodes.iter().map(|node| (*node).clone()).collect();
            problems.push(Problem {
                shards: vec![shard.id],
                nodes,
                text: format!("shard {}: {what}", shard.id),
            });
        };
        if let Some(reason) = &audits.apart {
            say(&[], format!("its replicas were not summed up at one moment: {reason}"));
        }
        for (node, audit) in &audits.replicas {
            match audit {
                Err(reason) => say(&[node], format!("{node} is not summed up: {reason}")),
                Ok(audit) => own_faults(audit).for_each(|fault| say(&[node], format!("{node} {fault}"))),
            }
        }
        let found = || audits.replicas.iter().filter_map(|(node, audit)| Some((node, audit.as_ref().ok()?)));
        let alike = |audit: &Audit| found().filter(|(_, other)| is_alike(other, audit)).count();
        // Of several the first one.
        let shown = found().map(|(_, audit)| audit).rev().max_by_key(|audit| alike(audit)).cloned();
        let shown = shown.map(|shown| {
            let mut same = found().map(|(_, audit)| audit).filter(|audit| is_alike(audit, &shown));
            Audit { content: same.find_map(|audit| audit.content), ..shown }
        });
        self.shown.push(shown.clone());
        let Some(shown) = shown.filter(|_| audits.apart.is_none()) else { return };
        let (same, others): (Vec<_>, Vec<_>) = found().partition(|(_, audit)| is_alike(audit, &shown));
        // Where those that agree are not most of them, nobody knows whose is right.
        let is_most = 2 * same.len() > same.len() + others.len();
        let same: Vec<&Address> = same.into_iter().map(|(node, _)| node).collect();
        let names: Vec<&str> = same.iter().map(|node| node.as_str()).collect();
        for (node, audit) in others {
            let what = differences(audit, &shown).join(", ");
            let in_doubt = if is_most { &[][..] } else { &same };
            say(
                &[&[node], in_doubt].concat(),
                format!("{node} differs from {}: {what}", names.join(" and ")),
            );
        }
    }

    fn say_coverage(&mut self) {
        let Coverage { missing, doubled } = &self.coverage;
        let span = |range: &HashRange| format!("{} to {}", range.from_hex(), range.to_hex());
        let about = |shards: &[u32], text| Problem { shards: shards.to_vec(), nodes: Vec::new(), text };
        let missing = missing.iter().map(|range| about(&[], format!("no shard owns {}", span(range))));
        let doubled = doubled.iter().map(|(range, owners)| {
            let names: Vec<_> = owners.iter().map(u32::to_string).collect();
            about(owners, format!("{} is owned by shards {}", span(range), names.join(" and ")))
        });
        let mut parts: Vec<Problem> = missing.chain(doubled).collect();
        let more = parts.len().saturating_sub(PARTS_SAID);
        parts.truncate(PARTS_SAID);
        self.problems.append(&mut parts);
        if more > 0 {
            self.problems
                .push(about(&[], format!("{more} more parts of the space are not owned exactly once")));
        }
    }
}

/// Whether ranges, ascending, are the same points as others, of which no two are neighbours.
pub fn owns(ranges: &[HashRange], others: impl Iterator<Item = HashRange>) -> bool {
    let mut joined: Vec<HashRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut().filter(|last| last.to.as_ref() == Some(&range.from)) {
            Some(last) => last.to.clone_from(&range.to),
            None => joined.push(range.clone()),
        }
    }
    joined.into_iter().eq(others)
}

/// What is wrong with an audit by itself.
fn own_faults(audit: &Audit) -> impl Iterator<Item = String> {
    let Audit { pairs, stray, unaccounted, counted, .. } = *audit;
    let stray = (stray > 0).then(|| format!("holds {stray} pairs that it does not own"));
    let unaccounted =
        (unaccounted > 0).then(|| format!("does not find {unaccounted} of its pairs by their keys"));
    let counted = (counted != pairs).then(|| format!("counts {counted} pairs and holds {pairs}"));
    [stray, unaccounted, counted].into_iter().flatten()
}

/// Whether two replicas have the same. One of a version that does not tell what another tells agrees in that.
fn is_alike(audit: &Audit, other: &Audit) -> bool {
    differences(audit, other).is_empty()
}

/// In what an audit differs from another.
fn differences(audit: &Audit, other: &Audit) -> Vec<String> {
    let figure = |name: &str, a: u64, b: u64| (a != b).then(|| format!("{name} {a} instead of {b}"));
    let (sum, other_sum) = (audit.checksum.sum, other.checksum.sum);
    let contents = audit.content.zip(other.content).map(|(one, two)| (one.sum, two.sum));
    [
        figure("key-count", audit.pairs, other.pairs),
        (sum != other_sum).then(|| format!("checksum {sum:032x} instead of {other_sum:032x}")),
        contents
            .filter(|(one, two)| one != two)
            .map(|(one, two)| format!("content-checksum {one:032x} instead of {two:032x}")),
        figure("log-index", audit.index, other.index),
        figure("stray", audit.stray, other.stray),
        (audit.owned != other.owned).then(|| "other ranges".to_owned()),
        figure("version", audit.version, other.version),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::hash::HashKey;
    use crate::model::range::Point;
    use crate::model::store::Checksum;
    use crate::model::view::View;

    fn address(name: &str) -> Address {
        format!("{name}:1").parse().unwrap()
    }

    /// Two shards of three nodes.
    fn state() -> MetaState {
        let nodes: Vec<Address> = ["a", "b", "c", "d", "e", "f"].map(address).into();
        let view = View::first(&nodes, 3).unwrap();
        MetaState::first("id".to_owned(), 1, HashKey::PUBLISHED, view, &BTreeMap::new())
    }

    fn half(upper: bool) -> HashRange {
        let middle = Point::before_hash(1 << 127);
        if upper {
            HashRange { from: middle, to: None }
        } else {
            HashRange { from: Point::start(), to: Some(middle) }
        }
    }

    fn found(upper: bool) -> Audit {
        let checksum = Checksum { pairs: 5, sum: 7 };
        let version = state().version;
        Audit {
            pairs: 5,
            index: 9,
            checksum,
            content: None,
            stray: 0,
            unaccounted: 0,
            counted: 5,
            version,
            owned: vec![half(upper)],
        }
    }

    fn audits(upper: bool) -> ShardAudits {
        let nodes = if upper { ["d", "e", "f"] } else { ["a", "b", "c"] };
        ShardAudits { apart: None, replicas: nodes.map(|node| (address(node), Ok(found(upper)))).into() }
    }

    fn check(change: impl FnOnce(&mut [ShardAudits; 2]), wanted: &[&str]) -> Verdict {
        let mut both = [audits(false), audits(true)];
        change(&mut both);
        let verdict = Verdict::of(&state(), &both);
        assert_eq!(texts(&verdict), wanted);
        assert_eq!(verdict.is_ok(), wanted.is_empty());
        verdict
    }

    fn texts(verdict: &Verdict) -> Vec<&str> {
        verdict.problems.iter().map(|problem| problem.text.as_str()).collect()
    }

    fn one(audits: &mut ShardAudits, replica: usize) -> &mut Audit {
        audits.replicas[replica].1.as_mut().unwrap()
    }

    #[test]
    fn all_is_well_where_all_replicas_agree_and_own_the_whole_space() {
        let verdict = check(|_| {}, &[]);
        assert_eq!((verdict.shown.len(), verdict.coverage.is_whole()), (2, true));
    }

    #[test]
    fn the_replica_that_differs_is_named_and_in_what() {
        let verdict = check(
            |both| {
                one(&mut both[1], 0).checksum.sum = 8;
                (one(&mut both[1], 0).pairs, one(&mut both[1], 0).counted) = (4, 4);
            },
            &[&format!(
                "shard 2: d:1 differs from e:1 and f:1: key-count 4 instead of 5, checksum {:032x} instead of {:032x}",
                8, 7
            )],
        );
        assert_eq!(verdict.shown[1].as_ref().map(|audit| audit.pairs), Some(5), "that of most is shown");
        // Of two that differ nobody knows which is right: the first is shown, and both are named.
        check(
            |both| {
                one(&mut both[0], 1).checksum.sum = 8;
                both[0].replicas.pop();
            },
            &[&format!("shard 1: b:1 differs from a:1: checksum {:032x} instead of {:032x}", 8, 7)],
        );
    }

    #[test]
    fn a_replica_that_does_not_tell_its_content_differs_in_nothing() {
        let content = |sum| Some(Checksum { pairs: 5, sum });
        let verdict = check(|both| one(&mut both[0], 1).content = content(3), &[]);
        let shown = |shard: usize| verdict.shown[shard].as_ref().and_then(|audit| audit.content);
        assert_eq!((shown(0), shown(1)), (content(3), None), "whoever tells it is shown");
        check(
            |both| {
                one(&mut both[0], 0).content = content(3);
                one(&mut both[0], 1).content = content(4);
            },
            &[&format!(
                "shard 1: b:1 differs from a:1 and c:1: content-checksum {:032x} instead of {:032x}",
                4, 3
            )],
        );
    }

    #[test]
    fn what_is_wrong_with_a_replica_by_itself_is_said() {
        check(
            |both| {
                one(&mut both[0], 0).stray = 3;
                one(&mut both[0], 1).unaccounted = 1;
                one(&mut both[0], 2).counted = 6;
                both[1].replicas[2].1 = Err("connection refused".to_owned());
                both[0].apart = Some("it has no leader".to_owned());
            },
            &[
                "shard 1: its replicas were not summed up at one moment: it has no leader",
                "shard 1: a:1 holds 3 pairs that it does not own",
                "shard 1: b:1 does not find 1 of its pairs by their keys",
                "shard 1: c:1 counts 6 pairs and holds 5",
                "shard 2: f:1 is not summed up: connection refused",
            ],
        );
    }

    #[test]
    fn parts_of_the_space_that_nobody_owns_or_several_own_are_said() {
        let (start, middle, end) =
            ("0".repeat(32), format!("8{}", "0".repeat(31)), format!("1{}", "0".repeat(32)));
        let own = |audits: &mut ShardAudits, owned: &[HashRange]| {
            (0..3).for_each(|replica| one(audits, replica).owned = owned.to_vec());
        };
        check(
            |both| own(&mut both[0], &[]),
            &["shard 1 does not own what the view gives it", &format!("no shard owns {start} to {middle}")],
        );
        // By an older state it may be right.
        check(
            |both| {
                own(&mut both[0], &[half(false), half(true)]);
                (0..3).for_each(|replica| one(&mut both[0], replica).version -= 1);
            },
            &[&format!("{middle} to {end} is owned by shards 1 and 2")],
        );
        let nobody = |audits: &mut ShardAudits| {
            audits.replicas.iter_mut().for_each(|(_, audit)| *audit = Err("away".to_owned()));
        };
        let verdict = check(
            |both| nobody(&mut both[1]),
            &[
                "shard 2: d:1 is not summed up: away",
                "shard 2: e:1 is not summed up: away",
                "shard 2: f:1 is not summed up: away",
                &format!("no shard owns {middle} to {end}"),
            ],
        );
        assert_eq!(verdict.shown[1], None);
    }

    #[test]
    fn many_parts_are_counted() {
        let cut = |number: u128| Point::before_hash(number << 120);
        let every_second: Vec<HashRange> = (0..128)
            .step_by(2)
            .map(|number| HashRange { from: cut(number), to: Some(cut(number + 1)) })
            .collect();
        let mut both = [audits(false), audits(true)];
        (0..3).for_each(|replica| one(&mut both[0], replica).owned.clone_from(&every_second));
        let verdict = Verdict::of(&state(), &both);
        assert_eq!(verdict.problems.len(), 1 + PARTS_SAID + 1);
        assert_eq!(texts(&verdict).last(), Some(&"56 more parts of the space are not owned exactly once"));
    }

    /// Whose part is wrong: pairs of a shard and a node of it, without one where all of the shard is meant.
    fn whose(verdict: &Verdict) -> Vec<(u32, Option<String>)> {
        let mut whose = Vec::new();
        for (id, nodes) in [(1, ["a", "b", "c"]), (2, ["d", "e", "f"])] {
            let is_about = |node: Option<&Address>| verdict.problems.iter().any(|one| one.is_about(id, node));
            if is_about(None) {
                whose.push((id, None));
            }
            let nodes = nodes.map(address).into_iter().filter(|node| is_about(Some(node)));
            whose.extend(nodes.map(|node| (id, Some(node.to_string()))));
        }
        whose
    }

    #[test]
    fn it_is_known_whose_part_is_wrong() {
        type Row<'a> = (&'a str, fn(&mut [ShardAudits; 2]), &'a [(u32, Option<&'a str>)]);
        let table: &[Row] = &[
            ("nobody's", |_| {}, &[]),
            ("one differs", |both| one(&mut both[1], 2).checksum.sum = 8, &[(2, None), (2, Some("f:1"))]),
            (
                "one is away",
                |both| both[0].replicas[1].1 = Err("away".to_owned()),
                &[(1, None), (1, Some("b:1"))],
            ),
            (
                "one of two differs, and nobody knows which",
                |both| {
                    both[0].replicas.pop();
                    one(&mut both[0], 1).checksum.sum = 8;
                },
                &[(1, None), (1, Some("a:1")), (1, Some("b:1"))],
            ),
            ("no leader", |both| both[0].apart = Some("it has no leader".to_owned()), &[(1, None)]),
            (
                "a part is owned twice",
                |both| {
                    (0..3).for_each(|replica| {
                        one(&mut both[0], replica).owned = vec![half(false), half(true)];
                        one(&mut both[0], replica).version -= 1;
                    });
                },
                &[(1, None), (2, None)],
            ),
        ];
        for (what, change, expected) in table {
            let mut both = [audits(false), audits(true)];
            change(&mut both);
            let found = whose(&Verdict::of(&state(), &both));
            let found: Vec<_> = found.iter().map(|(id, node)| (*id, node.as_deref())).collect();
            assert_eq!(found, *expected, "{what}");
        }
    }
}
