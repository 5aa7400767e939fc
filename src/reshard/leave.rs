//! Taking leave of all groups before the node stops, so that its end costs none of them a vote.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::controller::Controller;
use super::voters::{self, Voters};
use crate::clock::{Deadline, now};
use crate::model::address::Address;
use crate::node::raft::LocalReplica;
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
pub async fn leave(controller: &Controller) {
    let node = &controller.node;
    node.begin_to_leave();
    let deadline = Deadline::after(now(), PATIENCE);
    let mut seen_leader = now();
    let mut left = BTreeSet::new();
    let mut handed_over = BTreeMap::new();
    let moving = Deadline::after(now(), LEADERLESS);
    loop {
        if !node.is_durable() && !moving.is_over() && move_meta_group(controller).await {
            node.pause(PAUSE).await;
            continue;
        }
        let locals = node.groups.locals();
        // What is on a disk is there when the node comes back: it stays a member, and only leads nothing any more.
        let is_to_go = |local: &LocalReplica| !node.is_durable() || local.leads();
        let with_others =
            |local: &LocalReplica| local.votes() && local.status.voters.len() > 1 && is_to_go(local);
        let rest: Vec<_> =
            locals.iter().filter(|local| with_others(local) && !left.contains(&local.group)).collect();
        if rest.is_empty() {
            return;
        }
        for local in rest {
            if local.leader().is_some() {
                seen_leader = now();
            }
            if local.leads() {
                // It takes a moment until another one leads; two nodes that stop at once do not do it to each other all the time.
                let again = |when: &Instant| now() - *when >= HANDING_OVER;
                if handed_over.get(&local.group).is_none_or(again) {
                    handed_over.insert(local.group, now());
                    node.groups.hand_over(local.group, None);
                }
            } else if take_leave(controller, local).await {
                left.insert(local.group);
                log::info!("group {}: this node's replica has left", local.group);
            }
        }
        if deadline.is_over() || now() - seen_leader >= LEADERLESS {
            return log::warn!("this node stops while some of its groups count on its vote");
        }
        node.pause(PAUSE).await;
    }
}

/// Where this node alone holds the view, another one is to hold it: takes a step towards that, and says whether there is one to take.
async fn move_meta_group(controller: &Controller) -> bool {
    let node = &controller.node;
    let Some(local) = node.meta.local().filter(|local| local.leads() && local.status.voters.len() == 1)
    else {
        return false;
    };
    let Some(state) = node.state() else { return false };
    let nodes = state.nodes();
    let is_up = |other: &&Address| **other != node.address && !node.peers.at(other).is_down();
    let Some(other) = nodes.iter().find(is_up) else { return false };
    let step = voters::step(controller, &local, &state.cluster, std::slice::from_ref(other)).await;
    !matches!(step, Voters::Complete)
}

/// Asks the leader of a group to take this node's replica out; whether it has.
async fn take_leave(controller: &Controller, local: &LocalReplica) -> bool {
    let node = &controller.node;
    let Some(leader) = local.leader() else { return false };
    let order = orders::Leave { group: local.group, replica: local.status.replica };
    match controller.order(leader, None, order, ORDER_TIMEOUT).await {
        Ok(()) => {
            // From now on requests go to the others.
            if node.meta.local().is_some_and(|meta| meta.group == local.group) {
                node.meta.give_up(local.group);
            } else {
                node.leave_shard(local.group);
            }
            true
        }
        Err(error) => {
            log::debug!("group {}: not left yet: {error}", local.group);
            false
        }
    }
}
