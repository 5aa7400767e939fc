//! Taking leave of all groups before the node stops, so that its end costs none of them a vote.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::orders::Office;
use super::voters::{self, Voters};
use crate::clock::{Deadline, now};
use crate::model::address::Address;
use crate::node::raft::Seat;
use crate::wire::orders;

/// Groups from which the node was not taken out after this time lose its vote.
const PATIENCE: Duration = Duration::from_secs(5);
/// A group that has had no leader for this long is not waited for: its other nodes may be stopping, too.
const LEADERLESS: Duration = Duration::from_secs(1);
/// A leader that has not taken a replica out after this time is asked again.
const ORDER_TIMEOUT: Duration = Duration::from_secs(1);
/// The lead of a group that was handed over and is still here, or here again, is handed over again after this.
const HANDING_OVER: Duration = Duration::from_millis(500);
/// How often it is looked how things stand.
const PAUSE: Duration = Duration::from_millis(20);

/// Hands over the lead of all groups and has this node's replicas taken out of them.
pub async fn leave(office: &Office) {
    let node = &office.node;
    node.begin_to_leave();
    let deadline = Deadline::after(now(), PATIENCE);
    let mut seen_leader = now();
    let mut left = BTreeSet::new();
    let mut handed_over = BTreeMap::new();
    let moving = Deadline::after(now(), LEADERLESS);
    loop {
        if !moving.is_over() && move_meta_group(office).await {
            node.pause(PAUSE).await;
            continue;
        }
        let seats = node.groups.seats();
        let with_others = |seat: &Seat| seat.votes() && seat.status.voters.len() > 1;
        let rest: Vec<_> =
            seats.iter().filter(|seat| with_others(seat) && !left.contains(&seat.group)).collect();
        if rest.is_empty() {
            return;
        }
        for seat in rest {
            if seat.leader().is_some() {
                seen_leader = now();
            }
            if seat.leads() {
                // It takes a moment until another one leads; two nodes that stop at once do not do it to each other all the time.
                let again = |when: &Instant| now() - *when >= HANDING_OVER;
                if handed_over.get(&seat.group).is_none_or(again) {
                    handed_over.insert(seat.group, now());
                    node.groups.hand_over(seat.group, None);
                }
            } else if take_leave(office, seat).await {
                left.insert(seat.group);
                log::info!("group {}: this node's replica has left", seat.group);
            }
        }
        if deadline.is_over() || now() - seen_leader >= LEADERLESS {
            return log::warn!("this node stops while some of its groups count on its vote");
        }
        node.pause(PAUSE).await;
    }
}

/// Where this node alone holds the view, another one is to hold it: takes a step towards that, and says whether there is one to take.
async fn move_meta_group(office: &Office) -> bool {
    let node = &office.node;
    let Some(seat) = node.meta.seat().filter(|seat| seat.leads() && seat.status.voters.len() == 1) else {
        return false;
    };
    let Some(state) = node.state() else { return false };
    let nodes = state.nodes();
    let is_up = |other: &&Address| **other != node.address && !node.peers.at(other).is_down();
    let Some(other) = nodes.iter().find(is_up) else { return false };
    let step = voters::step(office, &seat, &state.cluster, std::slice::from_ref(other)).await;
    !matches!(step, Voters::Complete)
}

/// Asks the leader of a group to take this node's replica out; whether it has.
async fn take_leave(office: &Office, seat: &Seat) -> bool {
    let node = &office.node;
    let Some(leader) = seat.leader() else { return false };
    let order = orders::Leave { group: seat.group, replica: seat.status.replica };
    match office.order(leader, None, order, ORDER_TIMEOUT).await {
        Ok(()) => {
            // From now on requests go to the others.
            if node.meta.seat().is_some_and(|meta| meta.group == seat.group) {
                node.meta.give_up(seat.group);
            } else {
                node.leave_shard(seat.group);
            }
            true
        }
        Err(error) => {
            log::debug!("group {}: not left yet: {error}", seat.group);
            false
        }
    }
}
