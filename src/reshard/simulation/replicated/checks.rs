//! What must hold at every step, and at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use super::Shared;
use super::node::learn;
use super::oracle::number_in;
use super::world::{META, World, address, place_of};
use crate::model::meta::{MetaState, wanted_voters};
use crate::model::shard::{Done, Operation, Shard};

/// A shard as its group has agreed on it so far: nothing where whoever had applied most is gone.
fn agreed(world: &World, group: u64) -> Option<Arc<Shard>> {
    let mut best: Option<(u64, Arc<Shard>)> = None;
    for node in &world.nodes {
        let Some(node) = node.memory() else { continue };
        let Some(shard) = node.shards.get(&group) else { continue };
        if !shard.is_logged() {
            return Some(Arc::clone(shard));
        }
        let Some(status) = node.driver.status(group) else { continue };
        if best.as_ref().is_none_or(|(applied, _)| *applied < status.applied) {
            best = Some((status.applied, Arc::clone(shard)));
        }
    }
    let (applied, shard) = best?;
    (applied >= world.oracle.borrow().applied(group)).then_some(shard)
}

/// For each key at most one shard takes operations.
pub(super) fn at_most_one_accepts(world: &World) {
    let mut groups: Vec<u64> = Vec::new();
    for node in &world.nodes {
        groups.extend(node.memory().iter().flat_map(|node| node.shards.keys().copied().collect::<Vec<_>>()));
    }
    groups.sort_unstable();
    groups.dedup();
    let shards: Vec<_> = groups.into_iter().filter_map(|group| agreed(world, group)).collect();
    for key in &world.keys {
        let hash = world.hash_key.hash(key);
        let accept = shards.iter().filter(|shard| shard.run(hash, key, Operation::Get, None).is_ok());
        let accept: Vec<_> = accept.map(|shard| shard.group()).collect();
        if accept.len() > 1 {
            world.accuse(format!("{key:?} is served by {accept:?}: {}", describe(world)));
        }
    }
}

/// Nothing is left to be done: every node knows the newest state, the right nodes have a vote, and all replicas are equal.
pub(super) fn is_whole(world: &Shared) -> bool {
    let state = world.newest();
    let all_know = (0..world.nodes.len()).all(|place| {
        world.nodes[place]
            .memory()
            .is_some_and(|node| node.known.as_ref().is_some_and(|known| known.version == state.version))
    });
    let nodes: Vec<_> = state.view.nodes().cloned().collect();
    let mut wanted: Vec<usize> = wanted_voters(&nodes).iter().map(place_of).collect();
    wanted.sort_unstable();
    all_know
        && has_voters(world, META, &wanted)
        && state.view.shards.iter().all(|shard| {
            let mut wanted: Vec<usize> = shard.replicas.iter().map(place_of).collect();
            wanted.sort_unstable();
            let kept = |place: usize| {
                world.nodes[place].shard(shard.group).is_some_and(|one| one.version() >= state.version)
            };
            let is_alone = wanted.len() == 1
                && world.nodes[wanted[0]].shard(shard.group).is_some_and(|one| !one.is_logged());
            wanted.iter().all(|place| kept(*place)) && (is_alone || has_voters(world, shard.group, &wanted))
        })
}

fn has_voters(world: &Shared, group: u64, wanted: &[usize]) -> bool {
    let Some(leader) = world.leader(group) else { return false };
    let Some(status) = world.nodes[leader].status(group) else { return false };
    let mut voters: Vec<usize> =
        status.voters.iter().filter_map(|id| status.members.get(id).map(place_of)).collect();
    voters.sort_unstable();
    let all_applied = wanted
        .iter()
        .all(|place| world.nodes[*place].status(group).is_some_and(|one| one.applied == status.last));
    voters == wanted && status.learners.is_empty() && status.outgoing.is_empty() && all_applied
}

/// All keys are served once, as they were written, by shards of even size whose replicas are equal.
pub(super) fn at_the_end(world: &Shared) -> Result<(), String> {
    let state = world.newest();
    for place in 0..world.nodes.len() {
        learn(world, place, &state);
    }
    at_most_one_accepts(world);
    let mut sizes = Vec::new();
    let mut found = 0;
    for (index, shard) in state.view.shards.iter().enumerate() {
        let replicas: Vec<_> = shard.replicas.iter().map(|node| (node, place_of(node))).collect();
        let mut known = None;
        for (node, place) in replicas {
            let held = world.nodes[place].shard(shard.group).ok_or("a shard is missing")?;
            while held.sweep() {}
            let (audit, size, owned) = (held.audit(), held.size(), held.owned());
            if audit.stray > 0 || audit.pairs != size.pairs || size != held.rough_size() {
                return Err(format!("{node}: {audit:?}, {size:?}, {:?}", held.rough_size()));
            }
            let this = (audit, owned, held.snapshot().next());
            if known.get_or_insert_with(|| this.clone()) != &this {
                return Err(format!("replicas of shard {} differ: {known:?}, {this:?}", shard.id));
            }
            if known.as_ref().is_some_and(|(_, owned, _)| {
                let mine: Vec<_> = state.view.ranges(index).collect();
                owned.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>() != mine
            }) {
                return Err(format!("shard {} does not own what the view says", shard.id));
            }
            found += if *node == shard.replicas[0] { size.pairs } else { 0 };
            if *node == shard.replicas[0] {
                sizes.push(size.pairs);
            }
            look_at_keys(world, &state, index, &held)?;
        }
    }
    let (most, least) = (sizes.iter().max(), sizes.iter().min());
    let there = world.keys.iter().filter(|key| world.oracle.borrow().last(key).is_some()).count() as u64;
    if most.zip(least).is_none_or(|(most, least)| most - least > 1) || found != there {
        return Err(format!("shards of {sizes:?} pairs hold {there} keys"));
    }
    Ok(())
}

fn look_at_keys(world: &Shared, state: &MetaState, index: usize, held: &Shard) -> Result<(), String> {
    for key in &world.keys {
        let hash = world.hash_key.hash(key);
        let is_mine = state.view.owner(hash, key) == index;
        let last = world.oracle.borrow().last(key);
        match held.run(hash, key, Operation::Get, None) {
            Ok(Done::Found(pair)) if is_mine && Some(number_in(pair.value())) == last => {}
            Ok(Done::Absent) if is_mine && last.is_none() => {}
            Err(_) if !is_mine => {}
            Ok(Done::Found(pair)) => {
                return Err(format!("{key:?} is {:?} in the end and not {last:?}", pair.value()));
            }
            _ => return Err(format!("{key:?} is not where it belongs, or lost: {last:?}")),
        }
    }
    Ok(())
}

/// Why a cluster does not become whole again.
pub(super) fn describe(world: &World) -> String {
    let state = world.newest();
    let mut text = format!("busy {}, {state:?}", world.busy.get());
    for place in 0..world.nodes.len() {
        let Some(node) = world.nodes[place].memory() else { continue };
        let version = node.known.as_ref().map(|known| known.version);
        let statuses: BTreeMap<_, _> =
            node.driver.groups().map(|group| (group, node.driver.status(group))).collect();
        let shards: Vec<_> =
            node.shards.iter().map(|(group, one)| (*group, one.version(), one.is_logged())).collect();
        let address = address(place);
        let _ = write!(text, "\n{address}: version {version:?}, shards {shards:?}, {statuses:?}");
    }
    text
}
