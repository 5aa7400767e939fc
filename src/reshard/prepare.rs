//! From what is asked of a view change to its plan.

use std::collections::BTreeMap;
use std::time::Duration;

use super::census::Shards;
use super::orders::Office;
use crate::model::address::Address;
use crate::model::meta::{Command, GivenUp, MetaState, Piece, Wanted};
use crate::model::plan::{Plan, PlanError, plan};
use crate::model::view::{Shard, View};
use crate::node::ask::{OrderError, ask_hello};
use crate::node::state::{advice, lost_shard};
use crate::points::point;
use crate::wire::{NotPlanned, Order, PlannedMove, PlannedShard, PlannedView, Standing};

/// A node that does not answer a question within this time is not reached.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// A census that writers made void is taken again so often.
const CENSUS_ATTEMPTS: usize = 3;

/// Everything that was found out about the nodes of a view change.
struct Found {
    given_up: Vec<GivenUp>,
    /// By shard of the present view: its group, or nothing where it is given up.
    groups: Vec<Option<u64>>,
    /// The wanted nodes that hold nothing yet.
    fresh: BTreeMap<Address, u64>,
    /// The starts of all wanted nodes.
    starts: BTreeMap<Address, u64>,
}

/// Plans a view change and makes the command that sets the plan.
pub(super) fn prepare(
    office: &Office,
    state: &MetaState,
    id: u64,
    wanted: &Wanted,
) -> Result<Command, NotPlanned> {
    let _alone = office.desk.planning.lock();
    let found = look_at(office, state, wanted)?;
    promise_all(office, state, &found, wanted)?;
    point!("change-promised");
    let planned = count_and_plan(office, state, id, wanted, &found);
    if planned.is_err() {
        release_all(office, state, &found);
    }
    let (plan, shards) = planned?;
    point!("change-counted");
    let command = command(state, id, &found, &plan, &shards);
    shards.close();
    // A promise does not hold for ever, and counting may take a while.
    promise_all(office, state, &found, wanted)?;
    command.inspect_err(|_| release_all(office, state, &found))
}

/// Plans a view change and does nothing of it.
pub(super) fn plan_only(office: &Office, wanted: &Wanted) -> Result<PlannedView, NotPlanned> {
    // The census of another plan would take the place of this one's.
    let alone = office.desk.planning.try_lock();
    let _alone =
        alone.ok_or_else(|| NotPlanned::Failed("another plan is being made: try again".to_owned()))?;
    let state = office.node.meta.state();
    let state = state.ok_or_else(|| NotPlanned::Failed("this node does not serve".to_owned()))?;
    if let Some(change) = &state.change {
        return Err(NotPlanned::Running(change.id));
    }
    let found = look_at(office, &state, wanted)?;
    let (plan, shards) = count_and_plan(office, &state, rand::random(), wanted, &found)?;
    shards.close();
    Ok(describe(&state, &plan))
}

/// Why a view change would be refused as things stand, before anything is counted.
pub(super) fn refusal(office: &Office, wanted: &Wanted) -> Option<String> {
    let state = office.node.meta.state()?;
    match look_at(office, &state, wanted) {
        Err(NotPlanned::Refused(reason) | NotPlanned::Failed(reason)) => Some(reason),
        Ok(_) | Err(NotPlanned::Running(_)) => None,
    }
}

/// What is wrong with a view change by itself, whoever is there.
pub fn wrong(state: &MetaState, wanted: &Wanted) -> Option<String> {
    if let Err(error) = View::check(&wanted.nodes, wanted.repl_factor) {
        return Some(error.to_string());
    }
    let is_shard = |id: &&u32| state.view.shards.iter().any(|shard| shard.id == **id);
    let unknown = wanted.accept_loss.iter().find(|id| !is_shard(id))?;
    Some(format!("accept-loss names shard {unknown}, which there is not: allowed are ids of lost shards"))
}

/// Finds out who is there and who is lost.
fn look_at(office: &Office, state: &MetaState, wanted: &Wanted) -> Result<Found, NotPlanned> {
    let refuse = |reason: String| Err(NotPlanned::Refused(reason));
    if let Some(reason) = wrong(state, wanted) {
        return refuse(reason);
    }
    let view = &state.view;
    let mut found =
        Found { given_up: Vec::new(), groups: Vec::new(), fresh: BTreeMap::new(), starts: BTreeMap::new() };
    for (index, shard) in view.shards.iter().enumerate() {
        let accepted = wanted.accept_loss.contains(&shard.id);
        let owns = view.ranges(index).next().is_some();
        let order = Order::Count { group: shard.group };
        match office.order_leader::<u64>(state, shard.group, &order, QUESTION_TIMEOUT) {
            Ok(_) if accepted => {
                return refuse(format!(
                    "shard {} is not lost, {} answers: leave it out of accept-loss",
                    shard.id,
                    names(&shard.replicas)
                ));
            }
            Ok(_) => {
                found.groups.push(Some(shard.group));
                continue;
            }
            Err(OrderError::Gone(_)) if owns && !accepted => {
                return refuse(lost_shard(shard.id, &shard.replicas[0]));
            }
            Err(OrderError::Gone(_)) => {}
            Err(error) if owns && !accepted => {
                return refuse(format!("shard {} is not reached: {error}; {}", shard.id, advice(shard)));
            }
            Err(_) if owns => {
                nobody_holds(office, shard)?;
                not_reached_by_anyone(office, state, index)?;
            }
            Err(_) => {}
        }
        found.groups.push(None);
        if owns {
            found.given_up.push(GivenUp {
                id: shard.id,
                group: shard.group,
                replicas: shard.replicas.clone(),
                pairs: last_count(office, state, shard),
            });
        }
    }
    for node in &wanted.nodes {
        let start = meet(office, state, node)?;
        let held = view.shards.iter().zip(&found.groups).filter(|(_, group)| group.is_some());
        let holds = held.into_iter().any(|(shard, _)| shard.replicas.contains(node));
        if !holds {
            found.fresh.insert(node.clone(), start);
        }
        found.starts.insert(node.clone(), start);
    }
    Ok(found)
}

fn names(nodes: &[Address]) -> String {
    nodes.iter().map(Address::as_str).collect::<Vec<_>>().join(", ")
}

/// How many pairs a shard was last heard to hold.
fn last_count(office: &Office, state: &MetaState, shard: &Shard) -> Option<u64> {
    let counts = shard
        .replicas
        .iter()
        .filter_map(|node| office.node.posts.counted(node, state.holder(shard.group, node)?));
    counts.max()
}

/// A shard of which a replica is left is not given up: it can be recovered.
fn nobody_holds(office: &Office, shard: &Shard) -> Result<(), NotPlanned> {
    let order = Order::Replica { group: shard.group };
    for node in shard.replicas.iter().filter(|_| shard.replicas.len() > 1) {
        let standing = office.order::<Option<Standing>>(node, 0, &order, QUESTION_TIMEOUT);
        if standing.is_ok_and(|standing| standing.is_some_and(|standing| standing.last.1 > 0)) {
            return Err(NotPlanned::Refused(format!(
                "shard {} is not lost: {node} holds a replica; evenkv recover goes on from it",
                shard.id
            )));
        }
    }
    Ok(())
}

/// That a shard's nodes are dead is taken from the operator only where no member reaches one of them.
fn not_reached_by_anyone(office: &Office, state: &MetaState, index: usize) -> Result<(), NotPlanned> {
    let lost = &state.view.shards[index];
    for (other, shard) in state.view.shards.iter().enumerate().filter(|(other, _)| *other != index) {
        for member in &shard.replicas {
            for node in &lost.replicas {
                let one = lost.replicas.len() == 1;
                let instance = if one { state.holder(lost.group, node).unwrap_or(0) } else { 0 };
                // Of a shard with several replicas any start of a node may hold one. Who answers here has said that it holds none.
                if !one && ask_hello(&office.node.peers.at(node)).is_ok() {
                    continue;
                }
                let order = Order::Reach { node: node.clone(), instance };
                if office.order::<bool>(member, 0, &order, QUESTION_TIMEOUT) == Ok(true) {
                    let (id, by) = (lost.id, state.view.shards[other].id);
                    return Err(NotPlanned::Refused(format!(
                        "shard {id} is not lost: {member} of shard {by} reaches {node}; mend the network or end {node}"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The start of a wanted node.
fn meet(office: &Office, state: &MetaState, node: &Address) -> Result<u64, NotPlanned> {
    let refuse = |reason: String| Err(NotPlanned::Refused(reason));
    if *node == office.node.address {
        return Ok(office.node.instance);
    }
    match ask_hello(&office.node.peers.at(node)) {
        Ok(hello) if hello.address != *node => {
            refuse(format!("the node at {node} calls itself {}: name it so", hello.address))
        }
        Ok(hello) if hello.cluster.as_ref() != Some(&state.cluster) && hello.bound.is_some() => {
            refuse(hello.bound.unwrap_or_default())
        }
        Ok(hello) => Ok(hello.instance),
        Err(error) => {
            refuse(format!("{node} is not reached ({error}): start it, or leave it out of the view"))
        }
    }
}

fn promise_all(office: &Office, state: &MetaState, found: &Found, wanted: &Wanted) -> Result<(), NotPlanned> {
    for node in &wanted.nodes {
        let Some(instance) = found.fresh.get(node).copied() else { continue };
        let order = Order::Promise { cluster: state.cluster.clone(), founding: false };
        let promised = office.order::<u64>(node, instance, &order, QUESTION_TIMEOUT);
        if let Err(error) = promised {
            release_all(office, state, found);
            return Err(NotPlanned::Refused(error.to_string()));
        }
    }
    Ok(())
}

fn release_all(office: &Office, state: &MetaState, found: &Found) {
    for (node, instance) in &found.fresh {
        let order = Order::Release { cluster: state.cluster.clone() };
        if let Err(error) = office.order::<()>(node, *instance, &order, QUESTION_TIMEOUT) {
            log::debug!("a promise lasts until it is void by itself: {error}");
        }
    }
}

fn count_and_plan<'a>(
    office: &'a Office,
    state: &'a MetaState,
    id: u64,
    wanted: &Wanted,
    found: &Found,
) -> Result<(Plan, Shards<'a>), NotPlanned> {
    // A shard whose pairs are given up has no node that could stay.
    let mut old = state.view.clone();
    for (shard, group) in old.shards.iter_mut().zip(&found.groups) {
        if group.is_none() {
            shard.replicas.clear();
        }
    }
    let mut attempt = 1;
    loop {
        let mut shards = Shards { office, state, change: id, groups: found.groups.clone() };
        match plan(&old, &wanted.nodes, wanted.repl_factor, &mut shards) {
            Ok(plan) => return Ok((plan, shards)),
            Err(PlanError::View(error)) => return Err(NotPlanned::Refused(error.to_string())),
            Err(error) if attempt == CENSUS_ATTEMPTS => {
                shards.close();
                return Err(NotPlanned::Failed(format!("the pairs could not be counted: {error}")));
            }
            Err(error) => log::info!("the census is taken again: {error}"),
        }
        attempt += 1;
    }
}

fn command(
    state: &MetaState,
    id: u64,
    found: &Found,
    plan: &Plan,
    shards: &Shards,
) -> Result<Command, NotPlanned> {
    let old = &state.view;
    let index_of = |group: u64| old.shards.iter().position(|shard| shard.group == group);
    let mut pieces = Vec::new();
    for moves in plan.moves.chunk_by(|a, b| a.from == b.from) {
        let giver = index_of(moves[0].from).expect("a shard of the present view gives");
        let ranges = moves.iter().map(|step| step.range.clone()).collect();
        let cut = shards.pieces(giver, ranges).map_err(NotPlanned::Failed)?;
        for (step, cut) in moves.iter().zip(cut) {
            pieces
                .extend(cut.into_iter().map(|(range, pairs)| Piece::new(range, (step.from, step.to), pairs)));
        }
    }
    Ok(state.plan_command(id, plan, pieces, found.given_up.clone(), &found.starts))
}

fn describe(state: &MetaState, plan: &Plan) -> PlannedView {
    let old = &state.view;
    let id_of = |shards: &[Shard], group: u64| {
        let shard = shards.iter().find(|shard| shard.group == group);
        shard.map_or_else(String::new, |shard| shard.id.to_string())
    };
    let mut moves: BTreeMap<(u64, u64), PlannedMove> = BTreeMap::new();
    for step in &plan.moves {
        let sum = moves.entry((step.from, step.to)).or_insert_with(|| PlannedMove {
            from: id_of(&old.shards, step.from),
            to: id_of(&plan.view.shards, step.to),
            pairs: 0,
            ranges: 0,
        });
        sum.pairs += step.pairs;
        sum.ranges += 1;
    }
    let shards = plan.view.shards.iter().zip(&plan.targets).map(|(shard, target)| PlannedShard {
        shard_id: shard.id.to_string(),
        key_count: old.shards.iter().position(|old| old.group == shard.group).map(|old| plan.counts[old]),
        key_count_planned: *target,
        replicas: shard.replicas.clone(),
    });
    PlannedView {
        keys: plan.keys,
        moved: plan.moved,
        minimum: plan.minimum,
        copied: plan.copied,
        shards: shards.collect(),
        moves: moves.into_values().collect(),
    }
}
