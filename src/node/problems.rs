//! What is wrong with a cluster and what to do about it, by what its nodes say of themselves: a pure judgement.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::view::Shard;
use crate::wire::Progress;
use crate::wire::status::{NodeReport, Problem, ProblemKind};

/// An order that is not answered for so many seconds is worth a word.
const LONG_WAIT: f64 = 3.0;

/// What came of asking a node what it says of itself.
#[derive(Debug, Clone)]
pub enum Told {
    /// It has said this.
    Report(Box<NodeReport>),
    /// It answers, and does not say it, since it is of an older version; what it says of the view change that it coordinates.
    Older(Option<Box<Progress>>),
    /// It has told nothing: it was not asked, since others took all the time, or had no time itself.
    Nothing,
    /// It did not answer: why.
    NotReached(String),
}

impl Told {
    /// What the node says of itself, if it does.
    pub fn report(&self) -> Option<&NodeReport> {
        match self {
            Self::Report(report) => Some(report),
            _ => None,
        }
    }

    /// How far the view change is that it coordinates.
    pub fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Report(report) => report.progress.as_ref(),
            Self::Older(progress) => progress.as_deref(),
            Self::Nothing | Self::NotReached(_) => None,
        }
    }
}

/// A cluster, by a state of it and what its nodes have told.
#[derive(Debug, Clone, Copy)]
pub struct Whole<'a> {
    /// The newest state that is known.
    pub state: &'a MetaState,
    /// What each node of it has told.
    pub told: &'a BTreeMap<Address, Told>,
}

impl<'a> Whole<'a> {
    /// What the nodes say that have told something and are of the cluster.
    pub fn reports(self) -> impl Iterator<Item = (&'a Address, &'a NodeReport)> {
        let all = self.told.iter().filter_map(|(node, told)| Some((node, told.report()?)));
        all.filter(move |(_, report)| report.cluster.as_ref() == Some(&self.state.cluster))
    }

    /// How far the view change is that runs.
    pub fn progress(self) -> Option<&'a Progress> {
        self.told.values().find_map(Told::progress)
    }

    /// The shards that are known to be lost, by their ids, and the node of each.
    pub fn lost(self) -> BTreeMap<u32, &'a Address> {
        let known = self.state.lost_shards().into_iter();
        let told = self.reports().flat_map(|(_, report)| report.lost.iter().map(|(id, node)| (*id, node)));
        let is_there = |id: u32| self.state.view.shards.iter().any(|shard| shard.id == id);
        known.chain(told.filter(|(id, _)| is_there(*id))).collect()
    }

    /// The leader of a group: of several that say they are, the one of the latest term.
    pub fn leader(self, group: u64) -> Option<(&'a Address, &'a crate::wire::status::ReplicaSeen)> {
        let replicas =
            self.reports().flat_map(|(node, report)| report.replicas.iter().map(move |one| (node, one)));
        let leaders = replicas.filter(|(_, one)| one.group == group && one.leads.is_some());
        leaders.max_by_key(|(_, one)| one.leads)
    }

    /// What is done to the keys of a group a second; not known where nobody tells it.
    pub fn requests_per_second(self, group: u64) -> Option<f64> {
        let replicas = self.reports().flat_map(|(_, report)| &report.replicas);
        let rates = replicas.filter(|one| one.group == group).filter_map(|one| one.requests_per_second);
        // One digit after the point, as each of them has.
        rates.reduce(|all, one| all + one).map(|all| (all * 10.0).round() / 10.0)
    }

    /// What is wrong, the worst first.
    pub fn problems(self) -> Vec<Problem> {
        let mut all: BTreeSet<Problem> = BTreeSet::new();
        all.extend(self.lost().into_iter().map(|(id, node)| lost(id, node)));
        all.extend(self.state.view.shards.iter().filter_map(|shard| self.leaderless(shard)));
        for (node, told) in self.told {
            match told {
                Told::NotReached(_) => {
                    all.insert(not_reached(self.state, node));
                }
                Told::Report(report) => all.extend(self.said(node, report)),
                Told::Older(_) | Told::Nothing => {}
            }
        }
        all.extend(self.view_without_leader());
        all.extend(self.stuck_change());
        all.extend(self.apart());
        all.extend(self.versions());
        all.extend(self.settings());
        all.into_iter().collect()
    }

    /// A shard that has no leader, where all of its replicas have been asked.
    fn leaderless(self, shard: &Shard) -> Option<Problem> {
        let replicas = self.state.replicas_of(shard.group);
        if replicas.len() < 2 || self.leader(shard.group).is_some() {
            return None;
        }
        let told: Vec<_> = replicas.iter().map(|node| (*node, self.told.get(*node))).collect();
        let is_silent = |told: Option<&Told>| matches!(told, Some(Told::NotReached(_)));
        // One of those that tell nothing may lead it.
        if told.iter().any(|(_, told)| !is_silent(*told) && told.and_then(Told::report).is_none()) {
            return None;
        }
        let silent: Vec<&str> =
            told.iter().filter(|(_, told)| is_silent(*told)).map(|(node, _)| node.as_str()).collect();
        let silent =
            if silent.is_empty() { String::new() } else { format!("; not reached: {}", silent.join(", ")) };
        Some(Problem {
            kind: ProblemKind::ShardWithoutLeader,
            what: format!(
                "shard {} has no leader: its pairs are neither read nor written meanwhile; it needs {} of {} replicas{silent}",
                shard.id,
                replicas.len() / 2 + 1,
                replicas.len()
            ),
            advice: format!(
                "it elects one by itself once enough of them run and reach each other; {}",
                advice(shard)
            ),
            nodes: replicas.into_iter().cloned().collect(),
            shards: vec![shard.id.to_string()],
        })
    }

    /// What a node says of itself that others should know.
    fn said(self, node: &Address, report: &NodeReport) -> Vec<Problem> {
        if report.cluster.as_ref() != Some(&self.state.cluster) {
            let reasons = match &report.cluster {
                Some(cluster) => format!("belongs to cluster {cluster}"),
                None => report.unready.join("; "),
            };
            let what = format!("{node} answers, and is not in the cluster: {reasons}");
            let advice = "it learns of the cluster within seconds if it was just started; otherwise give it the VIEW of the cluster, or an ADDRESS of its own";
            return vec![about(ProblemKind::NodeNotReady, node, what, advice)];
        }
        let is_lost =
            |reason: &&String| self.lost().iter().any(|(id, node)| **reason == lost(*id, node).in_words());
        let unready: Vec<&str> =
            report.unready.iter().filter(|reason| !is_lost(reason)).map(String::as_str).collect();
        let mut all = Vec::new();
        if !unready.is_empty() {
            let what = format!("{node} is not ready: {}", unready.join("; "));
            let advice = "what it waits for comes by itself where nothing else is said; if it does not, its log says more";
            all.push(about(ProblemKind::NodeNotReady, node, what, advice));
        }
        all.extend(report.notes.iter().map(|note| {
            let advice = "what is there beside the cluster has to be stopped, or started again with an ADDRESS or a VIEW of its own";
            about(ProblemKind::Note, node, format!("{node}: {note}"), advice)
        }));
        // Whether the view has a leader is judged by what all say.
        let seen = report.problems.iter().filter(|seen| seen.kind != ProblemKind::ViewWithoutLeader);
        all.extend(seen.cloned());
        all
    }

    /// That nobody leads the group that holds the view, unless somebody does.
    fn view_without_leader(self) -> Option<Problem> {
        if self.reports().any(|(_, report)| report.leads_view) || self.progress().is_some() {
            return None;
        }
        let seen = self.reports().flat_map(|(_, report)| &report.problems);
        seen.into_iter().find(|seen| seen.kind == ProblemKind::ViewWithoutLeader).cloned()
    }

    fn stuck_change(self) -> Option<Problem> {
        let change = self.state.change.as_ref()?;
        let progress = self.progress()?;
        if let Some(reason) = &progress.blocked_by {
            return Some(Problem {
                kind: ProblemKind::ChangeBlocked,
                what: format!("view change {:016x} makes no progress: {reason}", change.id),
                advice: "it goes on by itself when the reason is gone; another view change takes its place where that will not be".to_owned(),
                nodes: Vec::new(),
                shards: Vec::new(),
            });
        }
        let waits = progress.waits_for.as_ref().filter(|waits| waits.seconds >= LONG_WAIT)?;
        Some(Problem {
            kind: ProblemKind::ChangeWaits,
            what: format!(
                "view change {:016x} waits for {} to answer the order {}, for {:.0} s by now",
                change.id, waits.node, waits.order, waits.seconds
            ),
            advice: format!(
                "see whether {} runs and is reached; the view change goes on when it answers",
                waits.node
            ),
            nodes: waits.node.parse().into_iter().collect(),
            shards: Vec::new(),
        })
    }

    /// Nodes that do not reach others which have answered.
    fn apart(self) -> Vec<Problem> {
        let has_answered =
            |node: &&Address| matches!(self.told.get(*node), Some(Told::Report(_) | Told::Older(_)));
        let mut all = Vec::new();
        for (from, report) in self.reports() {
            for to in report.unreached.iter().filter(has_answered) {
                all.push(Problem {
                    kind: ProblemKind::NodesApart,
                    what: format!("{from} does not reach {to}, though both answer"),
                    advice: format!("see whether {from} can resolve that name and connect to it: a firewall or a cut network may be between them"),
                    nodes: vec![from.clone(), to.clone()],
                    shards: Vec::new(),
                });
            }
        }
        all
    }

    fn versions(self) -> Option<Problem> {
        let mut versions: BTreeMap<String, Vec<&Address>> = BTreeMap::new();
        for (node, told) in self.told {
            let version = match told {
                Told::Report(report) => format!("{} (format {})", report.version, report.format),
                Told::Older(_) => "an older one that does not tell itself".to_owned(),
                Told::Nothing | Told::NotReached(_) => continue,
            };
            versions.entry(version).or_default().push(node);
        }
        let what = format!("the nodes are of different versions: {}", listed(&versions));
        let advice = "update the other nodes, one after the other: until then what an older one does not know is refused, or not known here";
        differing(ProblemKind::VersionsDiffer, &versions, what, advice.to_owned())
    }

    fn settings(self) -> Vec<Problem> {
        let names: BTreeSet<&String> =
            self.reports().flat_map(|(_, report)| report.settings.keys()).collect();
        let differing = names.into_iter().filter_map(|name| {
            let mut values: BTreeMap<String, Vec<&Address>> = BTreeMap::new();
            for (node, report) in self.reports() {
                if let Some(value) = report.settings.get(name) {
                    values.entry(value.to_string()).or_default().push(node);
                }
            }
            let what = format!("{name} differs: {}", listed(&values));
            let advice = format!("set {name} to the same on all nodes, and start again those that had another, one after the other");
            differing(ProblemKind::SettingsDiffer, &values, what, advice)
        });
        differing.collect()
    }
}

/// Which nodes have what.
fn listed(values: &BTreeMap<String, Vec<&Address>>) -> String {
    let names = |nodes: &[&Address]| nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
    values.iter().map(|(value, nodes)| format!("{value} at {}", names(nodes))).collect::<Vec<_>>().join("; ")
}

fn differing(
    kind: ProblemKind,
    values: &BTreeMap<String, Vec<&Address>>,
    what: String,
    advice: String,
) -> Option<Problem> {
    let nodes = values.values().flatten().map(|node| (*node).clone()).collect();
    (values.len() > 1).then_some(Problem { kind, what, advice, nodes, shards: Vec::new() })
}

fn about(kind: ProblemKind, node: &Address, what: String, advice: &str) -> Problem {
    Problem { kind, what, advice: advice.to_owned(), nodes: vec![node.clone()], shards: Vec::new() }
}

/// What is said of a shard whose node was started again.
pub fn lost_shard(id: u32, node: &Address) -> String {
    lost(id, node).in_words()
}

/// What can be done about a shard that is not reached.
pub fn advice(shard: &Shard) -> String {
    let id = shard.id;
    if shard.replicas.len() > 1 {
        return "if most of its nodes are gone for good, evenkv recover has it go on from what is left"
            .to_owned();
    }
    format!(
        "if its node is gone for good, a view change with \"accept-loss\":[\"{id}\"] goes on without its pairs"
    )
}

/// A shard whose node was started again.
pub fn lost(id: u32, node: &Address) -> Problem {
    Problem {
        kind: ProblemKind::ShardLost,
        what: format!("shard {id} is lost: {node} was started again, or given up, and holds nothing of it"),
        advice: format!("a view change with \"accept-loss\":[\"{id}\"] goes on without its pairs"),
        nodes: vec![node.clone()],
        shards: vec![id.to_string()],
    }
}

/// A node of the view that does not answer.
pub fn not_reached(state: &MetaState, node: &Address) -> Problem {
    let shards = state.view.shards.iter();
    let alone: Vec<&Shard> =
        shards.filter(|shard| matches!(&shard.replicas[..], [only] if only == node)).collect();
    let ids: Vec<String> = alone.iter().map(|shard| shard.id.to_string()).collect();
    let (what, then) = match alone.first() {
        None => (
            format!("{node} is not reached"),
            "if it is gone for good, start another node at its address, or change the view to one without it"
                .to_owned(),
        ),
        Some(shard) => (
            format!(
                "{node} is not reached: shard {}, which it holds alone, is not served meanwhile",
                ids.join(", ")
            ),
            advice(shard),
        ),
    };
    let advice = format!("see whether it runs and is reached; {then}");
    Problem { shards: ids, ..about(ProblemKind::NodeNotReached, node, what, &advice) }
}

/// A shard whose leader misses replicas.
pub fn lacking(id: u32, wanted: usize, missing: &[Address]) -> Problem {
    let names: Vec<&str> = missing.iter().map(Address::as_str).collect();
    Problem {
        kind: ProblemKind::ReplicaMissing,
        what: format!(
            "shard {id} has {} of {wanted} replicas: {} is not heard, or catches up",
            wanted.saturating_sub(missing.len()),
            names.join(", ")
        ),
        advice: "a replica catches up by itself once its node runs and is reached".to_owned(),
        nodes: missing.to_vec(),
        shards: vec![id.to_string()],
    }
}

/// A group that holds the view and has no leader.
pub fn view_without_leader(needed: usize, voters: usize, silent: &[Address]) -> Problem {
    let names: Vec<&str> = silent.iter().map(Address::as_str).collect();
    Problem {
        kind: ProblemKind::ViewWithoutLeader,
        what: format!(
            "the group that holds the view has no leader, so the view cannot be changed: it needs {needed} of {voters} nodes; not reached: {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        ),
        advice: "it elects one by itself once enough of them run and reach each other; where most of them are gone for good, see evenkv recover".to_owned(),
        nodes: silent.to_vec(),
        shards: Vec::new(),
    }
}

/// A follower whose main does not answer.
pub fn main_down(main: &Address) -> Problem {
    let what = format!("the main {main} is down, so nothing is served here");
    about(
        ProblemKind::MainDown,
        main,
        what,
        "see whether it runs and is reached; the follower goes on by itself when it answers",
    )
}

/// A main that is there and does not say how it is.
pub fn of_main(main: &Address, reason: &str) -> Problem {
    let what = format!("the main {main} does not say how it is: {reason}");
    about(ProblemKind::Note, main, what, "ask the main itself, and update it where it is of an older version")
}

/// A node that knows no cluster.
pub fn no_cluster(node: &Address, reasons: &[String]) -> Problem {
    let what = format!("{node} serves no cluster yet: {}", reasons.join("; "));
    about(
        ProblemKind::NoCluster,
        node,
        what,
        "start the nodes that it waits for with the same VIEW, or, where it is to join a cluster, change the view to one with it",
    )
}

#[cfg(test)]
mod tests {
    use super::super::fake::address;
    use super::*;
    use crate::model::hash::HashKey;
    use crate::model::limits::WantedLimits;
    use crate::model::meta::{Change, Wanted};
    use crate::model::view::View;
    use crate::wire::status::{Memory, ReplicaSeen};
    use crate::wire::{ChangePhase, WaitsFor};

    /// A cluster of these nodes.
    fn cluster(nodes: u64, factor: usize) -> MetaState {
        let nodes: Vec<Address> = (1..=nodes).map(address).collect();
        let starts = nodes.iter().cloned().map(|node| (node, 7)).collect();
        let view = View::first(&nodes, factor).unwrap();
        MetaState { open: true, ..MetaState::first("c".to_owned(), 50, HashKey::PUBLISHED, view, &starts) }
    }

    fn report(leads: &[u64]) -> NodeReport {
        let replica = |group: &u64| ReplicaSeen {
            group: *group,
            id: 7,
            leads: Some(1),
            pairs: None,
            members: Vec::new(),
            bytes: None,
            requests_per_second: None,
        };
        NodeReport {
            cluster: Some("c".to_owned()),
            version: "1.0.0".to_owned(),
            format: 9,
            incarnation: 7,
            unready: Vec::new(),
            notes: Vec::new(),
            problems: Vec::new(),
            unreached: Vec::new(),
            lost: Vec::new(),
            pairs: 0,
            bytes: 0,
            requests_per_second: None,
            memory: Memory { used: 1, resident: 2, bound: None },
            settings: BTreeMap::from([("A".to_owned(), 1)]),
            replicas: leads.iter().map(replica).collect(),
            leads_view: !leads.is_empty(),
            progress: None,
        }
    }

    fn told(report: NodeReport) -> Told {
        Told::Report(Box::new(report))
    }

    fn silent() -> Told {
        Told::NotReached("is down".to_owned())
    }

    fn progress(blocked_by: Option<&str>, waits: f64) -> Progress {
        let waits_for = WaitsFor { order: "copy".to_owned(), node: "n2:13800".to_owned(), seconds: waits };
        Progress {
            coordinator: address(1),
            phase: ChangePhase::Moving,
            moved: 0,
            total: 0,
            pairs_per_second: 0,
            remaining_seconds: None,
            blocked_by: blocked_by.map(str::to_owned),
            piece: None,
            waits_for: Some(waits_for),
        }
    }

    fn problems(state: &MetaState, told: impl IntoIterator<Item = Told>) -> Vec<(ProblemKind, String)> {
        let told: BTreeMap<Address, Told> = (1..).map(address).zip(told).collect();
        let all = Whole { state, told: &told }.problems();
        assert!(all.is_sorted(), "the worst first");
        assert!(all.iter().all(|one| !one.advice.is_empty() && one.what.len() > 10), "{all:?}");
        all.into_iter().map(|one| (one.kind, one.what)).collect()
    }

    /// The kinds alone.
    fn kinds(state: &MetaState, told: impl IntoIterator<Item = Told>) -> Vec<ProblemKind> {
        problems(state, told).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn what_nodes_tell_comes_to_problems() {
        use ProblemKind::{
            NodeNotReached, NodeNotReady, NodesApart, Note, ReplicaMissing, SettingsDiffer, ShardLost,
            ShardWithoutLeader, VersionsDiffer, ViewWithoutLeader,
        };
        let (alone, logged) = (cluster(2, 1), cluster(3, 3));
        let led = || told(report(&[1]));
        let other = || told(report(&[]));
        let with = |change: fn(&mut NodeReport)| {
            let mut one = report(&[]);
            change(&mut one);
            told(one)
        };
        let missing = |report: &mut NodeReport| report.problems = vec![lacking(1, 3, &[address(3)])];
        let no_view = |report: &mut NodeReport| report.problems = vec![view_without_leader(2, 3, &[])];
        let table = [
            ("all is well", &logged, vec![led(), other(), other()], vec![]),
            ("one is gone", &logged, vec![led(), other(), silent()], vec![NodeNotReached]),
            (
                "a majority is gone",
                &logged,
                vec![other(), silent(), silent()],
                vec![ShardWithoutLeader, NodeNotReached, NodeNotReached],
            ),
            ("none leads", &logged, vec![other(), other(), other()], vec![ShardWithoutLeader]),
            (
                "an older one may lead",
                &logged,
                vec![other(), other(), Told::Older(None)],
                vec![VersionsDiffer],
            ),
            ("one that was not asked may lead", &logged, vec![other(), other(), Told::Nothing], vec![]),
            ("a replica is missing", &logged, vec![led(), with(missing), other()], vec![ReplicaMissing]),
            ("nobody leads the view", &alone, vec![with(no_view), with(no_view)], vec![ViewWithoutLeader]),
            ("somebody leads the view", &alone, vec![with(no_view), told(report(&[2]))], vec![]),
            (
                "not ready",
                &alone,
                vec![led(), with(|one| one.unready = vec!["it lacks something".to_owned()])],
                vec![NodeNotReady],
            ),
            (
                "of another cluster",
                &alone,
                vec![led(), with(|one| one.cluster = Some("d".to_owned()))],
                vec![NodeNotReady],
            ),
            ("of none", &alone, vec![led(), with(|one| one.cluster = None)], vec![NodeNotReady]),
            ("a note", &alone, vec![led(), with(|one| one.notes = vec!["it is odd".to_owned()])], vec![Note]),
            (
                "a lost shard, said twice",
                &alone,
                vec![
                    with(|one| one.lost = vec![(2, address(2))]),
                    with(|one| {
                        one.lost = vec![(2, address(2))];
                        one.unready = vec![lost_shard(2, &address(2))];
                    }),
                ],
                vec![ShardLost],
            ),
            (
                "a shard that is no more",
                &alone,
                vec![led(), with(|one| one.lost = vec![(3, address(2))])],
                vec![],
            ),
            (
                "apart",
                &logged,
                vec![led(), with(|one| one.unreached = vec![address(3)]), other()],
                vec![NodesApart],
            ),
            (
                "both know that one is gone",
                &logged,
                vec![led(), with(|one| one.unreached = vec![address(3)]), silent()],
                vec![NodeNotReached],
            ),
            (
                "another version",
                &alone,
                vec![led(), with(|one| one.version = "2.0.0".to_owned())],
                vec![VersionsDiffer],
            ),
            ("another format", &alone, vec![led(), with(|one| one.format = 10)], vec![VersionsDiffer]),
            (
                "another setting",
                &alone,
                vec![led(), with(|one| one.settings = BTreeMap::from([("A".to_owned(), 2)]))],
                vec![SettingsDiffer],
            ),
            ("a setting that only one knows", &alone, vec![led(), with(|one| one.settings.clear())], vec![]),
        ];
        for (what, state, told, wanted) in table {
            assert_eq!(kinds(state, told), wanted, "{what}");
        }
    }

    #[test]
    fn a_view_change_that_waits_or_is_blocked_is_a_problem() {
        use ProblemKind::{ChangeBlocked, ChangeWaits, VersionsDiffer};
        let other = || told(report(&[]));
        let wanted = Wanted {
            nodes: vec![address(1)],
            repl_factor: 1,
            accept_loss: Vec::new(),
            limits: WantedLimits::default(),
        };
        let changing = MetaState {
            change: Some(Change { id: 5, wanted, planned: None, began_ms: None }),
            ..cluster(2, 1)
        };
        for (blocked, waits, wanted) in [
            (None, 0.1, vec![]),
            (None, 5.0, vec![ChangeWaits]),
            (Some("n2 is down"), 5.0, vec![ChangeBlocked]),
        ] {
            let coordinator = NodeReport { progress: Some(progress(blocked, waits)), ..report(&[1]) };
            assert_eq!(kinds(&changing, [told(coordinator), other()]), wanted, "{blocked:?} {waits}");
            let older = Told::Older(Some(Box::new(progress(blocked, waits))));
            let mut wanted = wanted;
            wanted.push(VersionsDiffer);
            assert_eq!(kinds(&changing, [older, other()]), wanted, "{blocked:?} {waits}, at an older node");
        }
    }

    #[test]
    fn the_leader_of_the_latest_term_counts() {
        let state = cluster(3, 3);
        let in_term = |term| {
            let mut one = report(&[1]);
            one.replicas[0].leads = Some(term);
            told(one)
        };
        let told: BTreeMap<Address, Told> =
            (1..).map(address).zip([in_term(3), in_term(5), in_term(4)]).collect();
        let leader = Whole { state: &state, told: &told }.leader(1).map(|(node, _)| node.clone());
        assert_eq!(leader, Some(address(2)));
    }

    #[test]
    fn who_holds_a_shard_alone_is_named_with_it() {
        let state = cluster(2, 1);
        let all = problems(&state, [told(report(&[1])), silent()]);
        let what =
            format!("{} is not reached: shard 2, which it holds alone, is not served meanwhile", address(2));
        assert_eq!(all, [(ProblemKind::NodeNotReached, what)]);
    }
}
