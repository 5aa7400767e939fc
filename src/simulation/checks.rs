//! What must hold at every step, and at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use super::Shared;
use super::oracle::number_in;
use super::process::Process;
use super::world::{World, address, place_of};
use crate::model::meta::{MetaState, wanted_voters};
use crate::model::shard::{Done, Operation, Shard, TimeWanted};

/// A shard as its group has agreed on it so far: nothing where whoever had applied most is gone.
fn agreed(world: &World, nodes: &[&Process], group: u64) -> Option<Arc<Shard>> {
    let mut best: Option<(u64, Arc<Shard>)> = None;
    for node in nodes {
        let Some(shard) = node.shard(group) else { continue };
        if !shard.is_logged() {
            return Some(shard);
        }
        let Some(status) = node.status(group) else { continue };
        if best.as_ref().is_none_or(|(applied, _)| *applied < status.applied) {
            best = Some((status.applied, shard));
        }
    }
    let (applied, shard) = best?;
    (applied >= world.oracle.borrow().applied(group)).then_some(shard)
}

/// For each key at most one shard takes operations.
pub(super) fn at_most_one_accepts(world: &World) {
    let Some(state) = world.newest() else { return };
    let of_cluster =
        world.nodes.iter().filter(|node| node.state().is_some_and(|one| one.cluster == state.cluster));
    // A node that was given up drops what it has when it learns of it.
    let knows: Vec<&Process> =
        of_cluster.filter(|node| node.state().is_some_and(|one| one.group == state.group)).collect();
    let mut groups: Vec<u64> =
        knows.iter().flat_map(|node| node.shards()).map(|shard| shard.group()).collect();
    groups.sort_unstable();
    groups.dedup();
    // Who holds a replica of a group that has lost its majority, and has a successor, does not lead it, and drops it with the news.
    groups.retain(|group| state.index_of(*group).is_some());
    let shards: Vec<_> = groups.into_iter().filter_map(|group| agreed(world, &knows, group)).collect();
    for key in &world.keys {
        let hash = state.hash_key.hash(key);
        let accept = shards.iter().filter(|shard| shard.run(hash, key, Operation::GET, None).is_ok());
        let accept: Vec<_> = accept.map(|shard| shard.group()).collect();
        if accept.len() > 1 {
            world.accuse(format!("{key:?} is served by {accept:?}: {}", describe(world)));
        }
    }
}

/// Nothing is left to be done: every node knows the newest state, the right nodes have a vote, and all replicas are equal.
pub(super) fn is_whole(world: &Shared) -> bool {
    let Some(state) = world.newest_known() else { return false };
    let knows = |node: &Process| node.state().is_some_and(|known| known.version == state.version);
    let is_apart = |node: &Process| node.node().is_some_and(|node| !world.is_ours(&node));
    // A node takes part in the meta group of its own cluster only.
    let sits_elsewhere = |node: &Process| {
        node.node().and_then(|node| node.meta.local()).is_some_and(|local| local.group != state.group)
    };
    let all_know = world.nodes.iter().all(|node| (knows(node) && !sits_elsewhere(node)) || is_apart(node));
    let nodes: Vec<_> = state.view.nodes().cloned().collect();
    let mut wanted: Vec<usize> = wanted_voters(&nodes).iter().map(place_of).collect();
    wanted.sort_unstable();
    // What lives for a time is gone by then: a log stands still without.
    let ends =
        |node: &Process| node.shards().iter().any(|shard| shard.wants_time(u64::MAX) != TimeWanted::No);
    let none_ends = !world.nodes.iter().any(ends);
    none_ends
        && all_know
        && has_voters(world, state.group, &wanted)
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
    let state = world.newest_known().ok_or("there is no cluster")?;
    at_most_one_accepts(world);
    // Nodes were started again, and answers of before came late: no address had two processes for that.
    let mut doubled = world.nodes.iter().filter_map(|process| process.node()?.duplicates().pop());
    if let Some(doubled) = doubled.next() {
        return Err(doubled);
    }
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
    let is_there = |key: &&Vec<u8>| world.oracle.borrow().last(key).is_some();
    let there = world.keys.iter().filter(is_there).count() as u64;
    // What ends leaves the shards as uneven as what is deleted.
    let is_uneven =
        !world.oracle.borrow().have_ended() && most.zip(least).is_none_or(|(most, least)| most - least > 1);
    if is_uneven || found != there {
        return Err(format!("shards of {sizes:?} pairs hold {there} keys"));
    }
    Ok(())
}

fn look_at_keys(world: &Shared, state: &MetaState, index: usize, held: &Shard) -> Result<(), String> {
    for key in &world.keys {
        let hash = state.hash_key.hash(key);
        let is_mine = state.view.owner(hash, key) == index;
        let got = match held.run(hash, key, Operation::GET, None) {
            Ok(Done::Read(pair)) => Ok(pair.map(|pair| number_in(pair.value()))),
            Ok(Done::Wrote(_) | Done::Unread(..)) => unreachable!("it was only read, under no condition"),
            Err(refused) => Err(refused),
        };
        if let (true, Ok(got)) = (is_mine, got) {
            world.oracle.borrow_mut().settle(key, got)?;
        }
        let last = world.oracle.borrow().last(key);
        match got {
            Ok(got) if is_mine && got == last => {}
            Err(_) if !is_mine => {}
            _ => return Err(format!("{key:?} is {got:?} in the end, in shard {index}, and not {last:?}")),
        }
    }
    Ok(())
}

/// Why a cluster does not become whole again.
pub(super) fn describe(world: &World) -> String {
    let mut text = format!("busy {}, {:?}", world.busy.get(), world.newest_known());
    for (place, process) in world.nodes.iter().enumerate() {
        let Some(node) = process.node() else { continue };
        let known = process.state().map(|known| (known.cluster.clone(), known.version));
        let statuses: BTreeMap<_, _> =
            process.groups().into_iter().map(|group| (group, process.status(group))).collect();
        let shards: Vec<_> = process
            .shards()
            .iter()
            .map(|one| (one.group(), one.version(), one.is_logged(), one.owned().len()))
            .collect();
        let (address, role) = (address(place), &node.role);
        let unready = node.unready();
        let _ = write!(
            text,
            "\n{address}: {role:?} knows {known:?}, shards {shards:?}, {unready:?}, {statuses:?}"
        );
    }
    text
}
