//! What becomes of a cluster whose operator says that some of its nodes are dead: decided from what the others have said.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::error::Error;
use crate::model::address::Address;
use crate::model::meta::{Command, End, LostRanges, Members, MetaState, NOBODY};
use crate::model::range::HashRange;
use crate::model::shard::{Claims, cover, intersection, subtract_all};
use crate::model::view::Shard;
use crate::wire::{MetaReplica, Replica, ReplicaReport};

/// The versions that the lost nodes may have agreed on without telling any survivor: far more than there can be.
const VERSION_STEP: u64 = 1 << 40;
/// The same for epochs.
const EPOCH_STEP: u64 = 1 << 20;
/// The same for numbers of groups.
const GROUP_STEP: u64 = 1 << 20;
/// Generations are few, so they go on by fewer.
const GENERATION_STEPS: u32 = 1 << 8;

/// What is known of a cluster of which some nodes are dead.
pub(super) struct Found {
    /// The newest state that anybody who lives has learned or applied.
    pub(super) newest: MetaState,
    /// Who lives.
    pub(super) survivors: Vec<Survivor>,
    /// Nodes of the cluster that do not answer.
    pub(super) silent: Vec<Address>,
}

/// A node that lives.
pub(super) struct Survivor {
    pub(super) node: Address,
    pub(super) incarnation: u64,
    /// Whether it knows this cluster and no other.
    pub(super) is_of_cluster: bool,
    /// Its replica of the meta group.
    pub(super) local: Option<MetaReplica>,
    /// What it holds.
    pub(super) held: Vec<ReplicaReport>,
}

/// The numbers that a recovery draws.
pub(super) struct Drawn {
    /// The new meta group.
    pub(super) group: u64,
    /// Two recoveries at the same time differ in this: one of them is the newer for everybody.
    pub(super) version: u32,
    /// The same for the numbers of groups.
    pub(super) groups: u32,
    /// The id of a view change that had none.
    pub(super) change: u64,
}

/// What is done.
pub(super) enum Decision {
    /// The meta group lives, and is told.
    Tell(Box<Command>),
    /// It is founded anew, with this state.
    Found(Box<MetaState>),
}

/// What is done, and what the operator is told.
pub(super) struct Recovery {
    pub(super) decision: Decision,
    pub(super) answer: Value,
    /// The nodes that are given up: each with the start that is, where only that one is.
    pub(super) given_up: Vec<(Address, Option<u64>)>,
}

/// How the group of a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It can agree, or is kept by one node that lives.
    Lives { members: Members, claims: Claims },
    /// Its majority is gone: it goes on from this replica.
    GoesOn { kept: Address, incarnation: u64, replica: Replica, missing: Vec<Address>, claims: Claims },
    /// Nothing is left of it.
    Lost,
}

impl Fate {
    fn claims(&self) -> Option<&Claims> {
        match self {
            Self::Lives { claims, .. } | Self::GoesOn { claims, .. } => Some(claims),
            Self::Lost => None,
        }
    }

    fn members(&self) -> Option<Members> {
        match self {
            Self::Lives { members, .. } => Some(members.clone()),
            Self::GoesOn { replica, .. } => {
                let nodes = replica.voters.iter().map(|(_, node)| node.clone()).collect();
                Some(Members { nodes, start: None })
            }
            Self::Lost => None,
        }
    }
}

/// Decides what is to be done.
///
/// # Errors
/// [`Error::Conflict`] where nothing has lost its majority.
pub(super) fn decide(found: &Found, drawn: &Drawn) -> Result<Recovery, Error> {
    let state = &found.newest;
    let fates: BTreeMap<u64, Fate> =
        state.view.shards.iter().map(|shard| (shard.group, fate(found, shard))).collect();
    let survivors: Vec<(u64, Address, u64)> = fates
        .iter()
        .filter_map(|(group, fate)| match fate {
            Fate::GoesOn { kept, incarnation, .. } => Some((*group, kept.clone(), *incarnation)),
            _ => None,
        })
        .collect();
    let meta_lives = meta_lives(found);
    if survivors.is_empty() {
        meta_lives.clone()?;
    }
    let claims = fates.iter().filter_map(|(group, fate)| Some((*group, fate.claims()?.clone()))).collect();
    let (decision, mut after) = if meta_lives.is_err() {
        let (moved, lost) = reclaim(state, &claims);
        let lost = lost_ranges(found, lost);
        let command = Command::Succeed { epoch: state.view.epoch, survivors: survivors.clone(), moved, lost };
        let mut after = state.clone();
        // What it comes to is what the operator is told.
        let _ = after.apply(command.clone());
        (Decision::Tell(Box::new(command)), after)
    } else {
        let after = rebuilt(found, &fates, &claims, drawn);
        (Decision::Found(Box::new(after.clone())), after)
    };
    let given_up = given_up(found, &fates);
    let mut nodes: Vec<&Address> = given_up.iter().map(|(node, _)| node).collect();
    nodes.dedup();
    after.version = 0;
    let answer = json!({
        "cluster-id": state.cluster,
        "epoch": after.view.epoch,
        "given-up": nodes,
        "lost-shards": lost_shards(state, &fates, &after),
    });
    let answer = describe(answer, state, &fates);
    Ok(Recovery { decision, answer, given_up })
}

/// The ids of the shards of which nothing is left, those too that only say which ranges nobody has.
fn lost_shards(before: &MetaState, fates: &BTreeMap<u64, Fate>, after: &MetaState) -> Vec<String> {
    let is_lost = |index: usize, shard: &Shard| {
        let owns = after.view.ranges(index).next().is_some();
        let is_new = before.index_of(shard.group).is_none() && !after.successors.contains_key(&shard.group);
        owns && (is_new || fates.get(&shard.group) == Some(&Fate::Lost))
    };
    let shards = after.view.shards.iter().enumerate();
    shards.filter(|(index, shard)| is_lost(*index, shard)).map(|(_, shard)| shard.id.to_string()).collect()
}

/// Says which shards go on from one replica, and what of them may be lost.
fn describe(mut answer: Value, state: &MetaState, fates: &BTreeMap<u64, Fate>) -> Value {
    let rows: Vec<Value> = state
        .view
        .shards
        .iter()
        .filter_map(|shard| match fates.get(&shard.group) {
            Some(Fate::GoesOn { kept, replica, missing, .. }) => Some(json!({
                "shard-id": shard.id.to_string(),
                "goes-on-from": kept,
                "missing": missing,
                "log-index": replica.last.1,
                "committed-index": replica.committed,
                "may-be-lost": "what was acknowledged by the missing replicas and never reached this one",
            })),
            _ => None,
        })
        .collect();
    if !rows.is_empty() {
        answer["recovered-shards"] = rows.into();
    }
    answer
}

/// How the group of a shard stands, by all that is left of it, wherever that is.
fn fate(found: &Found, shard: &Shard) -> Fate {
    let of_group = |survivor: &Survivor| -> Vec<(Address, ReplicaReport)> {
        let held = survivor.held.iter().filter(|one| one.group == shard.group && one.holds_something());
        held.map(|one| (survivor.node.clone(), one.clone())).collect()
    };
    let reports: Vec<(Address, ReplicaReport)> = found.survivors.iter().flat_map(of_group).collect();
    let version = |one: &&(Address, ReplicaReport)| one.1.claims.version;
    let alone = reports.iter().filter(|(_, one)| one.replica.is_none()).max_by_key(version);
    let logged = reports.iter().filter_map(|(node, one)| Some((node, one, one.replica.as_ref()?)));
    let newest = logged.clone().max_by_key(|(_, _, replica)| replica.last);
    // A node that keeps the shard alone does so since its log has ended; replicas that were not told of it may be left.
    if let Some(alone) =
        alone.filter(|alone| newest.is_none_or(|(_, one, _)| one.claims.version <= version(alone)))
    {
        let members = Members { nodes: vec![alone.0.clone()], start: Some(alone.1.incarnation) };
        return Fate::Lives { members, claims: alone.1.claims.clone() };
    }
    let Some((kept, serving_state, replica)) = newest else { return Fate::Lost };
    let is_there = |id: u64| logged.clone().any(|(_, _, one)| one.id == id);
    let claims = serving_state.claims.clone();
    if replica.has_majority(is_there) {
        let nodes = replica.voters.iter().map(|(_, node)| node.clone()).collect();
        return Fate::Lives { members: Members { nodes, start: None }, claims };
    }
    let voters = replica.voters.iter().chain(&replica.outgoing);
    let missing: BTreeSet<Address> =
        voters.filter(|(id, _)| !is_there(*id)).map(|(_, node)| node.clone()).collect();
    Fate::GoesOn {
        kept: kept.clone(),
        incarnation: serving_state.incarnation,
        replica: replica.clone(),
        missing: missing.into_iter().collect(),
        claims,
    }
}

/// The voters of the meta group that live must be too few to agree on anything.
fn meta_lives(found: &Found) -> Result<(), Error> {
    let locals = found.survivors.iter().filter_map(|one| one.local.as_ref());
    let locals: Vec<&Replica> =
        locals.filter(|local| local.group == found.newest.group).map(|local| &local.replica).collect();
    // Whoever is_there in it knows who votes, and whoever is furthest knows best. Where nobody does, nobody is left who could agree.
    let is_there = |id: u64| locals.iter().any(|replica| replica.id == id);
    match locals.iter().max_by_key(|replica| replica.last) {
        Some(newest) if newest.has_majority(is_there) => Err(Error::Conflict(format!(
            "{} of {} voters of the meta group live and can agree: use a view change with accept-loss",
            newest.voters.iter().filter(|(id, _)| is_there(*id)).count(),
            newest.voters.len()
        ))),
        _ => Ok(()),
    }
}

/// The nodes of the cluster that do not answer, and those that were started again and held a shard alone.
fn given_up(found: &Found, fates: &BTreeMap<u64, Fate>) -> Vec<(Address, Option<u64>)> {
    let state = &found.newest;
    let mut given_up: Vec<(Address, Option<u64>)> = Vec::new();
    let silent = found.silent.iter().filter(|node| state.nodes().contains(node));
    given_up.extend(silent.map(|node| (node.clone(), None)));
    for shard in state.view.shards.iter().filter(|shard| fates.get(&shard.group) == Some(&Fate::Lost)) {
        if let [only] = &state.replicas_of(shard.group)[..]
            && let Some(start) = state.holder(shard.group, only)
            && !given_up.iter().any(|(node, _)| node == *only)
        {
            given_up.push(((*only).clone(), Some(start)));
        }
    }
    given_up
}

/// The state with which the meta group is founded anew.
fn rebuilt(
    found: &Found,
    fates: &BTreeMap<u64, Fate>,
    claims: &BTreeMap<u64, Claims>,
    drawn: &Drawn,
) -> MetaState {
    let mut state = found.newest.clone();
    let (moved, lost) = reclaim(&state, claims);
    let known = found.survivors.iter().flat_map(|one| &one.held).map(|one| one.group).max().unwrap_or(0);
    state.view.next_group = state.view.next_group.max(known + 1) + GROUP_STEP * (1 + u64::from(drawn.groups));
    let end = End::Failed("the meta group was lost, and recovered by the operator".to_owned());
    state.take_over(&moved);
    if let Some(id) = state.change.as_ref().map(|change| change.id) {
        let members = fates.iter().filter_map(|(group, fate)| Some((*group, fate.members()?))).collect();
        state.end_unfinished(id, end, &members).expect("it runs");
    } else {
        state.note_end(drawn.change, &state.nodes(), end);
    }
    for (group, fate) in fates {
        match fate {
            Fate::GoesOn { kept, incarnation, .. } => state.succeed(*group, kept.clone(), *incarnation),
            Fate::Lost => {
                if let Some(holders) = state.holders.get_mut(group) {
                    for start in holders.values_mut() {
                        *start = NOBODY;
                    }
                }
            }
            Fate::Lives { .. } => {}
        }
    }
    if let Some(lost) = lost_ranges(found, lost) {
        state.give_up_ranges(&lost);
    }
    // Another one may have been begun that no survivor knows of: two are the same only by chance.
    state.generation += 1 + u64::from(drawn.version % GENERATION_STEPS);
    state.group = drawn.group;
    state.version += VERSION_STEP + u64::from(drawn.version);
    state.view.epoch += EPOCH_STEP;
    state
}

/// Ranges that nobody has are named for a node that may have had them.
fn lost_ranges(found: &Found, ranges: Vec<HashRange>) -> Option<LostRanges> {
    let node = found.silent.first().or(found.newest.view.nodes().next())?.clone();
    (!ranges.is_empty()).then_some(LostRanges { ranges, node })
}

/// Which ranges have gone over to other groups than the newest state says, and which nobody has any more.
///
/// A shard acts by what it has learned from its log, which may be newer than what any survivor knows by itself. So where a shard
/// knows more than the state, it is believed; and what a shard neither owns nor has received is looked for at all others.
fn reclaim(state: &MetaState, claims: &BTreeMap<u64, Claims>) -> (Vec<(HashRange, u64)>, Vec<HashRange>) {
    let mut view = state.view.clone();
    let mut newer: Vec<_> = claims.iter().filter(|(_, claim)| claim.version > state.version).collect();
    newer.sort_by_key(|(_, claim)| claim.version);
    let mut moved = Vec::new();
    for (group, claim) in newer {
        let Some(index) = state.index_of(*group) else { continue };
        for range in &claim.owned {
            if !cover(&view.ranges(index).collect::<Vec<_>>(), range) {
                view.ownership.assign(range, index);
                moved.push((range.clone(), *group));
            }
        }
    }
    let mut lost = Vec::new();
    for (index, shard) in view.shards.clone().iter().enumerate() {
        // One of which nothing is left is lost as it is.
        let Some(own) = claims.get(&shard.group) else { continue };
        let has: Vec<HashRange> = own.owned.iter().chain(&own.prepared).cloned().collect();
        let mut missing = subtract_all(view.ranges(index).collect(), &has);
        let others = || claims.iter().filter(|(group, _)| **group != shard.group);
        let owned = others().flat_map(|(group, claim)| claim.owned.iter().map(move |range| (range, *group)));
        let ready =
            others().flat_map(|(group, claim)| claim.prepared.iter().map(move |range| (range, *group)));
        for (range, group) in owned.chain(ready).filter(|(_, group)| state.index_of(*group).is_some()) {
            let found: Vec<_> = missing.iter().filter_map(|part| intersection(part, range)).collect();
            missing = subtract_all(missing, &found);
            moved.extend(found.into_iter().map(|part| (part, group)));
        }
        lost.extend(missing);
    }
    (moved, lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hash::HashKey;
    use crate::model::limits::WantedLimits;
    use crate::model::meta::Wanted;
    use crate::model::view::View;

    const DRAWN: Drawn = Drawn { group: 99, version: 5, groups: 0, change: 77 };

    fn node(number: u64) -> Address {
        format!("n{number}").parse().unwrap()
    }

    /// Nodes n1 and so on, whose starts are their numbers.
    fn cluster(nodes: u64, factor: usize) -> MetaState {
        let nodes: Vec<Address> = (1..=nodes).map(node).collect();
        let starts = (1..).zip(&nodes).map(|(start, node)| (node.clone(), start)).collect();
        let view = View::first(&nodes, factor).unwrap();
        let mut state = MetaState::first("c".to_owned(), 50, HashKey::PUBLISHED, view, &starts);
        state.open = true;
        state
    }

    fn owned(state: &MetaState, group: u64) -> Vec<HashRange> {
        state.view.ranges(state.index_of(group).unwrap()).collect()
    }

    fn claims(state: &MetaState, group: u64) -> Claims {
        Claims { version: state.version, owned: owned(state, group), ..Claims::default() }
    }

    /// A replica, whose id is its node's number, of a group that these nodes vote in.
    fn replica(state: &MetaState, group: u64, id: u64, voters: &[u64], last: u64) -> ReplicaReport {
        let named = |ids: &[u64]| ids.iter().map(|id| (*id, node(*id))).collect();
        let replica = Replica {
            id,
            leads: false,
            voters: named(voters),
            outgoing: Vec::new(),
            last: (2, last),
            committed: last,
        };
        ReplicaReport { group, incarnation: id, replica: Some(replica), claims: claims(state, group) }
    }

    fn survivor(number: u64, held: Vec<ReplicaReport>) -> Survivor {
        Survivor { node: node(number), incarnation: number, is_of_cluster: true, local: None, held }
    }

    fn decided(newest: MetaState, survivors: Vec<Survivor>, silent: &[u64]) -> (MetaState, Value) {
        let found = Found { newest, survivors, silent: silent.iter().map(|number| node(*number)).collect() };
        let Ok(recovery) = decide(&found, &DRAWN) else { panic!("it is refused") };
        let Decision::Found(state) = recovery.decision else { panic!("the meta group lives") };
        (*state, recovery.answer)
    }

    #[test]
    fn a_shard_of_which_only_restarted_nodes_are_left_is_lost_and_said_to_be() {
        // n4 to n6 are there, and were started again: they hold replicas that wait for a first entry.
        let state = cluster(6, 3);
        let empty = |number: u64| survivor(number, vec![replica(&state, 2, 40 + number, &[], 0)]);
        let living = |number: u64| survivor(number, vec![replica(&state, 1, number, &[1, 2, 3], 9)]);
        let survivors = [living(2), living(3), empty(4), empty(5), empty(6)];
        let (after, answer) = decided(state.clone(), survivors.into(), &[1]);
        assert_eq!(answer["lost-shards"], json!(["2"]), "{answer}");
        assert_eq!(answer["given-up"], json!(["n1:13800"]), "{answer}");
        assert_eq!(after.view.shards[0].group, 1, "two of three live");
    }

    #[test]
    fn a_group_goes_on_from_the_furthest_replica_under_a_number_that_never_was() {
        let state = cluster(3, 3);
        let held = |number: u64, last: u64| vec![replica(&state, 1, number, &[1, 2, 3, 4, 5], last)];
        let survivors = vec![survivor(2, held(2, 7)), survivor(3, held(3, 8))];
        let (after, answer) = decided(state.clone(), survivors, &[1]);
        assert_eq!(answer["recovered-shards"][0]["goes-on-from"], "n3:13800", "{answer}");
        assert!(after.view.shards[0].group > GROUP_STEP, "{after:?}");
        assert_eq!(after.successors.values().collect::<Vec<_>>(), [&1]);
        assert!(after.view.epoch > EPOCH_STEP && after.version > VERSION_STEP);
    }

    #[test]
    fn both_halves_of_a_joint_majority_are_needed() {
        let state = cluster(3, 3);
        let mut joint = replica(&state, 1, 2, &[2, 3], 8);
        joint.replica.as_mut().unwrap().outgoing = vec![(1, node(1)), (2, node(2)), (4, node(4))];
        let survivors = vec![survivor(2, vec![joint]), survivor(3, vec![replica(&state, 1, 3, &[2, 3], 7)])];
        let (_, answer) = decided(state, survivors, &[1]);
        assert_eq!(answer["recovered-shards"][0]["missing"], json!(["n1:13800", "n4:13800"]), "{answer}");
    }

    #[test]
    fn a_meta_group_that_can_agree_is_told_and_never_founded_anew() {
        // n1 is dead: two of three voters of the meta group live, and of the shard's five two.
        let state = cluster(3, 3);
        let survivor = |number: u64, voters: &[u64]| {
            let meta = replica(&state, 1, number, &[1, 2, 3], 9).replica.unwrap();
            let local = Some(MetaReplica { group: state.group, replica: meta });
            Survivor { local, ..survivor(number, vec![replica(&state, 1, number, voters, 9)]) }
        };
        let decided = |voters: &[u64]| {
            let survivors = vec![survivor(2, voters), survivor(3, voters)];
            decide(&Found { newest: state.clone(), survivors, silent: vec![node(1)] }, &DRAWN)
        };
        let Ok(recovery) = decided(&[1, 2, 3, 4, 5]) else { panic!("the shard has lost its majority") };
        assert!(matches!(recovery.decision, Decision::Tell(_)), "by a command");
        assert!(matches!(decided(&[1, 2, 3]), Err(Error::Conflict(_))), "nothing is lost");
    }

    #[test]
    fn what_a_shard_has_learned_from_its_log_counts_although_no_node_knows_it() {
        let state = cluster(2, 1);
        let range = owned(&state, 1)[0].clone();
        // It was handed over to group 2, which group 1 knows; group 2 has received it and was not told.
        let giver = Claims { version: state.version + 3, ..Claims::default() };
        let taker = Claims { prepared: vec![range.clone()], ..claims(&state, 2) };
        let all = BTreeMap::from([(1, giver.clone()), (2, taker)]);
        assert_eq!(reclaim(&state, &all), (vec![(range.clone(), 2)], Vec::new()));
        // The other way round: the taker knows, and the giver does not.
        let taker = Claims { version: state.version + 3, owned: vec![range.clone()], ..claims(&state, 2) };
        let all = BTreeMap::from([(1, claims(&state, 1)), (2, taker)]);
        assert_eq!(reclaim(&state, &all).0, [(range.clone(), 2)]);
        // Nobody has it any more: it is named, as a shard that is lost.
        let all = BTreeMap::from([(1, giver), (2, claims(&state, 2))]);
        assert_eq!(reclaim(&state, &all), (Vec::new(), vec![range.clone()]));
        let alone = |number: u64, claims: Claims| {
            survivor(
                number,
                vec![ReplicaReport { group: number, incarnation: number, replica: None, claims }],
            )
        };
        let giver = Claims { version: state.version + 3, ..Claims::default() };
        let survivors = vec![alone(1, giver), alone(2, claims(&state, 2))];
        let (after, answer) = decided(state, survivors, &[]);
        assert_eq!(answer["lost-shards"], json!(["3"]), "{answer}");
        let lost = after.view.shards.last().unwrap();
        assert_eq!(after.holder(lost.group, &lost.replicas[0]), Some(NOBODY));
    }

    #[test]
    fn a_view_change_that_is_ended_leaves_the_members_that_the_groups_have() {
        let mut state = cluster(3, 1);
        let nodes: Vec<Address> = (1..=3).map(node).collect();
        let wanted =
            Wanted { nodes, repl_factor: 3, accept_loss: Vec::new(), limits: WantedLimits::default() };
        state
            .apply(Command::Begin { id: 7, wanted, supersedes: None, members: BTreeMap::new(), at_ms: None })
            .unwrap();
        let held = |number: u64| vec![replica(&state, 1, number, &[1, 2, 3], 9)];
        let survivors = vec![survivor(2, held(2)), survivor(3, held(3))];
        let (after, _) = decided(state, survivors, &[1]);
        assert_eq!(after.change, None);
        assert_eq!(after.view.shards[0].replicas, [node(1), node(2), node(3)]);
    }
}
