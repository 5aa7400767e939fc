//! Looking after the members of groups, as `reshard::keeper`, `reshard::voters` and `reshard::leave` do.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::super::voters::{self, Next};
use super::super::tasks::pause;
use super::Shared;
use super::group_ops::{act, change, is_wanted, members, order, order_leader, read};
use super::node::{end_log, leave_group, seat_in};
use super::world::{META, address};
use crate::consensus::Change;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::Shard;

/// A node that does not tell its replica id within so many steps will not.
const JOIN_TURNS: u64 = 40;
/// The members of a group that was found complete are looked at again after so many steps.
const MEMBERS_ROUND: u64 = 40;
/// A leader that does not answer within so many steps is asked later.
const QUESTION_TURNS: u64 = 60;

/// Whether a group is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voters {
    Complete,
    Changing,
    Waiting,
}

/// Looks after all groups of a node again and again.
pub(super) async fn keep(world: Shared, place: usize) {
    // Groups that were complete: at which version, in which term, and when.
    let mut complete = BTreeMap::new();
    loop {
        for _ in 0..world.draw(2..8) {
            pause().await;
        }
        if world.nodes[place].is_leaving.get() {
            leave(&world, place).await;
            continue;
        }
        let Some(state) = world.at(place).known.clone() else { continue };
        act(&world, place).await;
        let shards: Vec<_> = world.at(place).shards.values().filter(|one| one.is_logged()).cloned().collect();
        for shard in shards {
            let group = shard.group();
            let Some(term) = world.nodes[place].leads_in(group) else {
                leave_if_taken_out(&world, place, group, &state).await;
                continue;
            };
            let known = (state.version, term);
            let is_complete =
                |(at, since): &((u64, u64), u64)| *at == known && world.now.get() - since < MEMBERS_ROUND;
            if complete.get(&group).is_some_and(is_complete) {
                continue;
            }
            if step(&world, place, group, state.wanted_replicas(group)).await == Voters::Complete {
                complete.insert(group, (known, world.now.get()));
                end_log_if_alone(&world, place, &shard);
            }
        }
    }
}

/// Makes one step towards a group of just the wanted nodes. Only its leader can.
pub(super) async fn step(world: &Shared, place: usize, group: u64, wanted: &[Address]) -> Voters {
    // What this node has applied is all that was ever agreed on: the members that it names are the present ones.
    if read(world, place, group, JOIN_TURNS).await.is_err() {
        return Voters::Waiting;
    }
    let Some(status) = world.nodes[place].led(group) else { return Voters::Waiting };
    if status.changing || !status.outgoing.is_empty() {
        return Voters::Waiting;
    }
    let own = address(place);
    let mut is_missing = false;
    let mut present = vec![(status.replica, own.clone())];
    for node in wanted.iter().filter(|node| **node != own) {
        let to = super::world::place_of(node);
        let (index, members) = (status.applied, status.members.keys().copied().collect::<Vec<_>>());
        let join = move |world: Shared, place| {
            let seat = seat_in(&world, place, group, (index, &members));
            async move { Ok(seat) }
        };
        match order(world, (place, to), 0, JOIN_TURNS, join).await {
            Ok(Some(replica)) => present.push((replica, node.clone())),
            _ => is_missing = true,
        }
    }
    match voters::next(&status, wanted, &present) {
        Next::Change(next) => match change(world, place, group, &next).await {
            Ok(()) => Voters::Changing,
            Err(_) => Voters::Waiting,
        },
        Next::HandOver(next) => {
            world.driving(place).driver.hand_over(group, Some(next));
            Voters::Waiting
        }
        Next::Nothing if is_missing => Voters::Waiting,
        Next::Nothing => Voters::Complete,
    }
}

/// A shard with one replica needs no log. What is known by now counts, not what was known when the members were looked at: a log that ends
/// against the news is not begun again before the next ones.
fn end_log_if_alone(world: &Shared, place: usize, shard: &Shard) {
    let Some(state) = world.at(place).known.clone() else { return };
    let Some(status) = world.nodes[place].led(shard.group()) else { return };
    let is_alone = status.voters == [status.replica] && status.learners.is_empty() && !status.changing;
    let is_holder = state.holder(shard.group(), &address(place)) == Some(world.nodes[place].life.get());
    let is_only = state.replicas_of(shard.group()).len() == 1;
    if is_alone && is_only && is_holder && shard.version() >= state.version {
        end_log(world, place, shard);
    }
}

/// Gives a replica up that is to be none here and was taken out of its group.
async fn leave_if_taken_out(world: &Shared, place: usize, group: u64, state: &Arc<MetaState>) {
    if is_wanted(state, group, place) {
        return;
    }
    let Some(replica) = world.nodes[place].status(group).map(|status| status.replica) else { return };
    let ask = move |world, place| members(world, place, group);
    let Ok(members) = order_leader(world, place, (state, group), QUESTION_TURNS, ask).await else { return };
    let mut ids = members.voters.iter().map(|(id, _)| id).chain(&members.learners);
    if !members.changing && !ids.any(|id| *id == replica) {
        leave_group(world, place, group);
    }
}

/// Hands over the lead of all groups and has this node's replicas taken out of them.
async fn leave(world: &Shared, place: usize) {
    let seats: Vec<u64> = world.at(place).seats.keys().copied().collect();
    for group in seats {
        let Some(status) = world.nodes[place].status(group) else { continue };
        let counts = status.voters.contains(&status.replica) && status.voters.len() > 1;
        if !counts {
            continue;
        }
        if world.nodes[place].led(group).is_some() {
            world.driving(place).driver.hand_over(group, None);
            continue;
        }
        let Some(leader) = world.nodes[place].leader_of(group) else { continue };
        let replica = status.replica;
        let take_out = move |world: Shared, leader: usize| async move {
            change(&world, leader, group, &Change::Remove { replicas: vec![replica] }).await
        };
        if order(world, (place, leader), 0, QUESTION_TURNS, take_out).await.is_ok() {
            leave_group(world, place, group);
        }
    }
}

/// Whether no group counts on this node any more.
pub(super) fn is_out(world: &Shared, place: usize) -> bool {
    let groups: Vec<u64> =
        world.nodes[place].memory().map_or_else(Vec::new, |node| node.seats.keys().copied().collect());
    groups.into_iter().all(|group| {
        let status = world.nodes[place].status(group);
        status.is_none_or(|status| !status.voters.contains(&status.replica) || status.voters.len() == 1)
    })
}

/// The group that agrees on the meta state has just the right voters, as far as its leader can see to that.
pub(super) async fn keep_meta(world: &Shared, place: usize, wanted: &[Address]) -> Voters {
    step(world, place, META, wanted).await
}
