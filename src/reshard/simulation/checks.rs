//! What must hold at every step, and at the end.

use std::collections::BTreeMap;

use super::Shared;
use super::clients::number_in;
use super::nodes::Node;
use crate::model::meta::{Command, End, MetaState, Void};
use crate::model::range::Point;
use crate::model::shard::{Done, Operation, Tally};

/// For each key at most one shard takes operations, and no shard has pairs of which it knows nothing.
pub(super) fn at_most_one_accepts(world: &Shared) {
    let shards: Vec<_> = world.nodes.iter().filter_map(|(node, one)| Some((node, one.shard()?))).collect();
    for key in world.registers.borrow().keys() {
        let hash = world.hash_key.hash(key);
        let accept = shards.iter().filter(|(_, shard)| shard.run(hash, key, Operation::Get, None).is_ok());
        let accept: Vec<_> = accept.map(|(node, _)| *node).collect();
        if accept.len() > 1 {
            world.accuse(format!("{key:?} is served by {accept:?}"));
        }
    }
    if !world.chance(10) {
        return;
    }
    for (node, shard) in shards {
        let (audit, size) = (shard.audit(), shard.size());
        if audit.stray > 0 || audit.pairs != size.pairs {
            world.accuse(format!("{node}: {audit:?}, {size:?}"));
        }
    }
}

/// What one command may do to the meta state.
pub(super) fn transition(
    world: &Shared,
    before: &MetaState,
    after: &MetaState,
    command: &Command,
    outcome: &Result<(), Void>,
) {
    if let Err(fault) = sound_transition(before, after, command, outcome) {
        world.accuse(fault);
    }
    world.count(|tally| {
        tally.trace = tally.trace.wrapping_mul(31).wrapping_add(after.view.epoch + after.version);
        match (outcome, command) {
            (Ok(()), Command::HandOver { .. }) => tally.handed_over += 1,
            (Ok(()), Command::Abort { .. }) => tally.aborted += 1,
            (Ok(()), Command::Begin { .. }) if before.change.is_some() => tally.superseded += 1,
            (Ok(()), Command::End { end: End::Finished(_), .. }) => tally.finished += 1,
            (Ok(()), Command::End { end: End::Cancelled, .. }) => tally.cancelled += 1,
            _ => {}
        }
    });
}

/// What one command may make of a meta state.
///
/// # Errors
/// What it must not.
pub(super) fn sound_transition(
    before: &MetaState,
    after: &MetaState,
    command: &Command,
    outcome: &Result<(), Void>,
) -> Result<(), String> {
    let owners = after.view.ownership.rows().all(|(_, owner)| owner < after.view.shards.len());
    let held = after.view.shards.iter().all(|shard| after.holders.contains_key(&shard.group));
    let grows = after.version > before.version && after.view.epoch >= before.view.epoch;
    let void = outcome.is_ok() || (&after.view, &after.change) == (&before.view, &before.change);
    if !(owners && held && grows && void) {
        return Err(format!("{command:?} came to {outcome:?} and made of {before:?} {after:?}"));
    }
    if let (Ok(()), Command::Plan { planned, .. }) = (outcome, command) {
        let (most, least) = (planned.targets.iter().max(), planned.targets.iter().min());
        let even = most.zip(least).is_some_and(|(most, least)| most - least <= 1);
        if planned.moved != planned.minimum || !even {
            return Err(format!("a bad plan: {planned:?}"));
        }
    }
    Ok(())
}

/// What a receipt says of a change: nothing came and went but what clients created and deleted.
pub(super) fn receipt(world: &Shared, keys: u64, sum: Tally, pairs: u64) {
    if keys + sum.created != pairs + sum.deleted {
        world.accuse(format!("{keys} pairs at the cut, then {sum:?}, and now {pairs}"));
    }
}

/// Everybody has heard everything: all keys are served once, as they were written, by shards of even size.
pub(super) fn at_the_end(world: &Shared) -> Result<(), String> {
    let state = world.meta.borrow().newest();
    for (address, node) in world.nodes.iter().filter(|(_, node)| node.known.borrow().is_some()) {
        node.learn(address, &state);
        while node.shard().is_some_and(|shard| shard.sweep()) {}
    }
    at_most_one_accepts(world);
    if let Some(fault) = world.fault.borrow_mut().take() {
        return Err(fault);
    }
    let mut found = BTreeMap::new();
    let mut sizes = Vec::new();
    for (index, shard) in state.view.shards.iter().enumerate() {
        let node: &Node = &world.nodes[&shard.replicas[0]];
        let held = node.shard_of(shard.group).ok_or("a shard is missing")?;
        let audit = held.audit();
        let (size, rough) = (held.size(), held.rough_size());
        if audit.stray > 0 || (audit.pairs, size) != (rough.pairs, rough) {
            return Err(format!("{}: {audit:?}, {size:?}, {rough:?}", shard.replicas[0]));
        }
        sizes.push(size.pairs);
        for key in world.registers.borrow().keys() {
            let hash = world.hash_key.hash(key);
            let is_mine = state.view.owner(hash, key) == index;
            match held.run(hash, key, Operation::Get, None) {
                Ok(Done::Found(pair)) if is_mine => {
                    found.insert(Point::of(hash, key), number_in(pair.value()));
                }
                Ok(Done::Absent) if is_mine => {}
                Err(_) if !is_mine => {}
                _ => return Err(format!("{key:?} is not where it belongs")),
            }
        }
    }
    let (most, least) = (sizes.iter().max(), sizes.iter().min());
    if most.zip(least).is_none_or(|(most, least)| most - least > 1)
        || sizes.iter().sum::<u64>() != found.len() as u64
    {
        return Err(format!("shards of {sizes:?} pairs hold {} keys", found.len()));
    }
    for (key, register) in world.registers.borrow_mut().iter_mut() {
        let got = found.get(&Point::of(world.hash_key.hash(key), key)).copied();
        let (known, unknown) = (register.value, register.unknown.clone());
        if !register.read(got) {
            return Err(format!("{key:?} has {got:?}; acknowledged was {known:?}, unknown are {unknown:?}"));
        }
    }
    Ok(())
}
