//! The plan of a view change: who gives which pairs to whom, so that the shards are even.

use std::collections::BTreeSet;
use std::fmt;

use super::address::Address;
use super::balance::{Needs, Piece, even_out};
use super::membership::Membership;
use super::ownership::Ownership;
use super::range::{HashRange, Point};
use super::runs::{Places, Run, Sides, runs, share_empty_space};
use super::view::{View, ViewError};

/// With fewer pairs than this for each shard the plan evens out the space, too, as the pairs
/// say little about it: the width that goes with so many of them is off by a quarter, typically.
pub const SPARSE_PAIRS_PER_SHARD: u64 = 16;

/// What the shards of a view hold, as of one moment for each of them.
///
/// Shards are named by their index in the view. Answers must fit together: between the questions of one
/// plan nothing that they are about may change.
pub trait Census {
    /// Why a question was not answered.
    type Error;

    /// How many pairs of a shard lie in each of some of its ranges.
    ///
    /// # Errors
    /// When the shard does not tell.
    fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, Self::Error>;

    /// The places of keys: for each question (range, rank) the key that has `rank` keys of that range
    /// before it, so 0 asks for the first one. Ranks are below the count; the questions ascend.
    ///
    /// # Errors
    /// When the shard does not tell.
    fn places(&mut self, shard: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, Self::Error>;
}

/// A range that goes from one shard to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// What is moved: part of one range of the giving shard.
    pub range: HashRange,
    /// The group that gives.
    pub from: u64,
    /// The group that takes.
    pub to: u64,
    /// How many pairs the range held when it was counted.
    pub pairs: u64,
}

/// A view change, before anything of it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The view that it leads to; its epoch is the old one's and one.
    pub view: View,
    /// What has to be moved, in the order of the space; each range once, neighbours with the same way as one.
    pub moves: Vec<Move>,
    /// How many pairs each shard of the old view held.
    pub counts: Vec<u64>,
    /// How many pairs each shard of the new view shall hold.
    pub targets: Vec<u64>,
    /// All pairs.
    pub keys: u64,
    /// Pairs that change shard.
    pub moved: u64,
    /// The least number of pairs that must change shard: the sum of what each shard has above its target.
    pub minimum: u64,
    /// Pairs written to nodes that held no replica of their shard; a pair counts for each such node.
    pub copied: u64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError<E> {
    /// The wanted nodes make no view.
    View(ViewError),
    /// A shard did not answer.
    Census(E),
    /// A shard's answers do not fit together, because it changed meanwhile; ask again.
    Inconsistent {
        /// The shard's index in the old view.
        shard: usize,
    },
}

impl<E: fmt::Display> fmt::Display for PlanError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::View(error) => error.fmt(f),
            Self::Census(error) => error.fmt(f),
            Self::Inconsistent { shard } => {
                write!(f, "the shard at {shard} changed while it was counted: try the view change again")
            }
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for PlanError<E> {}

/// Plans the change from a view to the one that `wanted` nodes make.
///
/// The targets are floor(K/N) pairs for each of N shards or one more, the extra ones on the staying shards
/// that hold most. Exactly the surplus over the targets moves. Where the pairs leave a choice, the table
/// stays short, and where there are so few pairs that they say nothing about the space, the space is shared
/// out evenly, without moving a pair.
///
/// # Errors
/// When the nodes make no view, or a shard does not answer consistently.
pub fn plan<C: Census>(
    old: &View,
    wanted: &[Address],
    repl_factor: usize,
    census: &mut C,
) -> Result<Plan, PlanError<C::Error>> {
    View::check(wanted, repl_factor).map_err(PlanError::View)?;
    let rows: Vec<(HashRange, usize)> = old.ownership.rows().collect();
    let row_pairs = count(old, &rows, census)?;
    let mut counts = vec![0; old.shards.len()];
    rows.iter().zip(&row_pairs).for_each(|((_, shard), pairs)| counts[*shard] += pairs);
    let keys = counts.iter().sum();

    let membership = Membership::new(old, wanted, repl_factor, &counts);
    let sides = Sides::new(&membership.stays_as, membership.shards.len());
    let mut held = vec![0; sides.count()];
    counts.iter().enumerate().for_each(|(shard, pairs)| held[sides.of(shard)] = *pairs);
    let targets = targets(keys, &held[..sides.new]);
    let target = |side: usize| targets.get(side).copied().unwrap_or(0);
    let needs = Needs {
        surplus: (0..).zip(&held).map(|(side, held)| held.saturating_sub(target(side))).collect(),
        deficit: (0..).zip(&held).map(|(side, held)| target(side).saturating_sub(*held)).collect(),
    };
    let minimum = needs.surplus.iter().sum();

    let piece = |(source, ((_, shard), pairs)): (usize, (&(HashRange, usize), &u64))| Piece {
        source,
        from: 0,
        to: *pairs,
        owner: sides.of(*shard),
        movable: true,
    };
    let pieces = even_out(rows.iter().zip(&row_pairs).enumerate().map(piece).collect(), needs);
    let sparse = keys < SPARSE_PAIRS_PER_SHARD * sides.new as u64;
    let places = places(&rows, &pieces, sparse, census)?;
    let runs = runs(&rows, &pieces, &places, sparse);
    let runs = share_empty_space(runs, &sides);

    let view = View {
        epoch: old.epoch + 1,
        repl_factor,
        ownership: Ownership::new(runs.iter().map(|run| (run.from.clone(), run.owner))),
        shards: membership.shards,
        next_group: membership.next_group,
    };
    let moves = moves(old, &view, &runs, &sides);
    let copied = runs.iter().map(|run| run.pairs * new_replicas(old, &view, run)).sum();
    Ok(Plan {
        moved: moves.iter().map(|step| step.pairs).sum(),
        view,
        moves,
        counts,
        targets,
        keys,
        minimum,
        copied,
    })
}

/// Asks how many pairs lie in each row, one question to each shard.
fn count<C: Census>(
    old: &View,
    rows: &[(HashRange, usize)],
    census: &mut C,
) -> Result<Vec<u64>, PlanError<C::Error>> {
    let mut pairs = vec![0; rows.len()];
    let mut by_shard = vec![Vec::new(); old.shards.len()];
    rows.iter().enumerate().for_each(|(row, (_, shard))| by_shard[*shard].push(row));
    for (shard, of_shard) in by_shard.into_iter().enumerate() {
        let ranges: Vec<HashRange> = of_shard.iter().map(|row| rows[*row].0.clone()).collect();
        let counts = census.counts(shard, &ranges).map_err(PlanError::Census)?;
        if counts.len() != ranges.len() {
            return Err(PlanError::Inconsistent { shard });
        }
        of_shard.into_iter().zip(counts).for_each(|(row, count)| pairs[row] = count);
    }
    Ok(pairs)
}

/// How many pairs each shard of the new view shall hold, from what those shards hold now.
fn targets(keys: u64, held: &[u64]) -> Vec<u64> {
    let shards = held.len() as u64;
    let mut targets = vec![keys / shards; held.len()];
    let mut fullest: Vec<usize> = (0..held.len()).collect();
    fullest.sort_by_key(|shard| std::cmp::Reverse(held[*shard]));
    let extra = usize::try_from(keys % shards).expect("fewer than there are shards");
    fullest[..extra].iter().for_each(|shard| targets[*shard] += 1);
    targets
}

/// Asks for the places on both sides of every cut, or of all keys, one question to each shard that is cut.
fn places<C: Census>(
    rows: &[(HashRange, usize)],
    pieces: &[Piece],
    all: bool,
    census: &mut C,
) -> Result<Places, PlanError<C::Error>> {
    let mut wanted = BTreeSet::new();
    for piece in pieces {
        if all {
            wanted.extend((piece.from..piece.to).map(|rank| (rows[piece.source].1, piece.source, rank)));
        } else if piece.from > 0 {
            wanted
                .extend([piece.from - 1, piece.from].map(|rank| (rows[piece.source].1, piece.source, rank)));
        }
    }
    let wanted: Vec<(usize, usize, u64)> = wanted.into_iter().collect();
    let mut places = Places::new();
    for of_shard in wanted.chunk_by(|a, b| a.0 == b.0) {
        let shard = of_shard[0].0;
        let questions: Vec<(HashRange, u64)> =
            of_shard.iter().map(|(_, row, rank)| (rows[*row].0.clone(), *rank)).collect();
        let answers = census.places(shard, &questions).map_err(PlanError::Census)?;
        let in_range = |((range, _), place): (&(HashRange, u64), &Point)| {
            range.from <= *place && range.to.as_ref().is_none_or(|to| place < to)
        };
        if answers.len() != questions.len()
            || !questions.iter().zip(&answers).all(in_range)
            || !answers.is_sorted_by(|a, b| a < b)
        {
            return Err(PlanError::Inconsistent { shard });
        }
        places.extend(of_shard.iter().map(|(_, row, rank)| (*row, *rank)).zip(answers));
    }
    Ok(places)
}

/// What is moved: every run of which the owner changes, neighbours with the same way together.
fn moves(old: &View, view: &View, runs: &[Run], sides: &Sides) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    let mut goes_on = false;
    for (index, run) in runs.iter().enumerate() {
        let to = runs.get(index + 1).map(|next| next.from.clone());
        if sides.of(run.origin) == run.owner {
            goes_on = false;
            continue;
        }
        let (giver, taker) = (old.shards[run.origin].group, view.shards[run.owner].group);
        match moves.last_mut() {
            Some(last) if goes_on && (last.from, last.to) == (giver, taker) => {
                last.range.to = to;
                last.pairs += run.pairs;
            }
            _ => {
                let range = HashRange { from: run.from.clone(), to };
                moves.push(Move { range, from: giver, to: taker, pairs: run.pairs });
            }
        }
        goes_on = true;
    }
    moves
}

/// How many nodes hold a run afterwards that did not before.
fn new_replicas(old: &View, view: &View, run: &Run) -> u64 {
    let before = &old.shards[run.origin].replicas;
    view.shards[run.owner].replicas.iter().filter(|node| !before.contains(node)).count() as u64
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Keys in the order of the space.
    struct Keys(Vec<Point>);

    impl Keys {
        fn within(&self, range: &HashRange) -> Vec<Point> {
            let inside = |key: &&Point| range.from <= **key && range.to.as_ref().is_none_or(|to| *key < to);
            self.0.iter().filter(inside).cloned().collect()
        }
    }

    impl Census for Keys {
        type Error = Infallible;

        fn counts(&mut self, _: usize, ranges: &[HashRange]) -> Result<Vec<u64>, Infallible> {
            Ok(ranges.iter().map(|range| self.within(range).len() as u64).collect())
        }

        fn places(&mut self, _: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, Infallible> {
            let place = |(range, rank): &(HashRange, u64)| {
                self.within(range)[usize::try_from(*rank).unwrap()].clone()
            };
            Ok(questions.iter().map(place).collect())
        }
    }

    fn nodes(count: usize) -> Vec<Address> {
        (1..=count).map(|n| format!("node{n}").parse().unwrap()).collect()
    }

    fn keys(count: u128) -> Keys {
        Keys(
            (0..count)
                .map(|n| Point { hash: n * (u128::MAX / count) + 1000, key: b"k".as_slice().into() })
                .collect(),
        )
    }

    #[test]
    fn the_extra_pairs_stay_with_those_who_hold_most() {
        let table: [(&[u64], &[u64]); 6] = [
            (&[0], &[0]),
            (&[7, 0], &[4, 3]),
            (&[0, 7], &[3, 4]),
            (&[3, 5, 3], &[4, 4, 3]),
            (&[0, 1, 0], &[0, 1, 0]),
            (&[4, 4, 0], &[3, 3, 2]),
        ];
        for (held, wanted) in table {
            assert_eq!(targets(held.iter().sum(), held), wanted, "{held:?}");
        }
    }

    #[test]
    fn a_cut_between_two_shards_is_shifted_and_nothing_else() {
        let old = View::first(&nodes(2), 1).unwrap();
        let few = 2 * u128::from(SPARSE_PAIRS_PER_SHARD);
        let mut census = keys(2 * few);
        census.0.drain(..20);
        let plan = plan(&old, &nodes(2), 1, &mut census).unwrap();
        assert_eq!((plan.moves.len(), plan.moved, plan.minimum, plan.copied), (1, 10, 10, 10));
        assert_eq!((plan.moves[0].from, plan.moves[0].to), (2, 1));
        assert_eq!(plan.view.ownership.len(), 2);
        let same = super::plan(&plan.view, &nodes(2), 1, &mut census).unwrap();
        assert_eq!((same.moves.len(), same.view.ownership), (0, plan.view.ownership));
    }

    #[test]
    fn where_there_are_hardly_any_pairs_the_space_is_even() {
        for count in [0, 1, 3, 20] {
            let mut census = keys(count);
            let mut view = View::first(&nodes(1), 1).unwrap();
            for shards in [4, 3, 7, 2, 5] {
                let plan = plan(&view, &nodes(shards), 1, &mut census).unwrap();
                assert_eq!(plan.moved, plan.minimum);
                view = plan.view;
                for shard in 0..shards {
                    // Half-ranges, so that the end of the space is a number too.
                    let width = |range: HashRange| {
                        range.to.map_or(1 << 127, |to| to.hash >> 1) - (range.from.hash >> 1)
                    };
                    let width: u128 = view.ranges(shard).map(width).sum();
                    let even = (1 << 127) / shards as u128;
                    assert!(
                        width.abs_diff(even) <= even / 4,
                        "{count} pairs, shard {shard} of {shards}: {width} of {even}"
                    );
                }
            }
        }
    }

    #[test]
    fn answers_that_do_not_fit_together_make_no_plan() {
        struct Shifting(Keys);
        impl Census for Shifting {
            type Error = Infallible;

            fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, Infallible> {
                self.0.counts(shard, ranges)
            }

            fn places(&mut self, _: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, Infallible> {
                Ok(questions.iter().map(|_| Point::start()).collect())
            }
        }
        let old = View::first(&nodes(2), 1).unwrap();
        let got = plan(&old, &nodes(3), 1, &mut Shifting(keys(1000)));
        assert_eq!(got, Err(PlanError::Inconsistent { shard: 0 }));
        assert_eq!(plan(&old, &[], 1, &mut keys(1)), Err(PlanError::View(ViewError::Empty)));
    }
}
