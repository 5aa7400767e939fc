//! The thread that looks after the groups of shards: it keeps the right members in those that this node leads, and has them act by the
//! newest state; and it lets go of replicas that are members no more.
//!
//! What it does follows from the newest state that this node has learned and from the groups themselves. So whoever leads a
//! group next goes on where the last one stopped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

use super::controller::Controller;
use super::voters::{self, Voters};
use crate::clock::{Deadline, now};
use crate::model::meta::MetaState;
use crate::model::shard::Shard;
use crate::node::host;
use crate::node::raft::LocalReplica;
use crate::wire::{GroupMembers, orders};

/// How often it looks whether there is something to do, unless there are news.
const ROUND: Duration = Duration::from_millis(100);
/// The same while the members of a group are being changed.
const CHANGING_ROUND: Duration = Duration::from_millis(20);
/// The same while something is waited for: a replica that catches up, or a node that is not there.
const WAITING_ROUND: Duration = Duration::from_millis(50);
/// How often the members of a group are looked at that was found complete.
const MEMBERS_ROUND: Duration = Duration::from_millis(500);
/// A group that does not agree within this time does so later.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A group's leader that does not answer within this time is asked later.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs until the channel closes.
pub fn run(controller: &Controller, stop: &Receiver<()>) {
    let mut reconciler = Reconciler::new(controller);
    while stop.try_recv() == Err(TryRecvError::Empty) {
        let pause = catch_unwind(AssertUnwindSafe(|| host::run(reconciler.round()))).unwrap_or_else(|_| {
            log::error!("a round of looking after the groups broke off: it is tried again");
            ROUND
        });
        host::run(reconciler.rest(pause));
    }
}

/// A group that was complete: its number, the version of the state, the term, and when it was.
type Complete = (u64, u64, u64, std::time::Instant);

/// What a node does for its groups, round by round.
pub(crate) struct Reconciler {
    controller: Controller,
    complete: Vec<Complete>,
}

impl Reconciler {
    pub(crate) fn new(controller: &Controller) -> Self {
        Self { controller: controller.clone(), complete: Vec::new() }
    }

    /// Waits for news, for so long at most.
    pub(crate) async fn rest(&self, pause: Duration) {
        let version = self.controller.node.state().map_or(0, |state| state.version);
        self.controller.node.wait_for_news(version, pause).await;
    }

    /// Looks after all groups once: how long to wait before the next time.
    pub(crate) async fn round(&mut self) -> Duration {
        let node = Arc::clone(&self.controller.node);
        let serving_state = node.serving_state();
        let Ok(serving) = serving_state.serving() else { return ROUND };
        if serving.own.iter().all(|(_, shard)| !shard.is_logged()) {
            return ROUND;
        }
        node.act(Deadline::after(now(), TIMEOUT)).await;
        node.sweep();
        let mut pause = ROUND;
        for (_, shard) in serving.own.iter().filter(|(_, shard)| shard.is_logged()) {
            let Some(local) = node.groups.local(shard.group()) else { continue };
            pause = pause.min(if local.leads() {
                self.look_after_members(&local, &serving.state, shard).await
            } else {
                self.leave_if_taken_out(&local, &serving.state).await
            });
            node.look_at_age(&serving.state, shard.group()).await;
        }
        pause
    }

    /// Keeps the right members in a group that this node leads: when it is to be looked at again.
    async fn look_after_members(
        &mut self,
        local: &LocalReplica,
        state: &MetaState,
        shard: &Shard,
    ) -> Duration {
        let (group, version, term) = (local.group, state.version, local.status.term);
        let is_complete = |(known, at_version, at_term, since): &Complete| {
            (*known, *at_version, *at_term) == (group, version, term) && now() - *since < MEMBERS_ROUND
        };
        if self.complete.iter().any(is_complete) {
            return ROUND;
        }
        self.complete.retain(|(known, ..)| *known != group);
        if self.controller.node.is_leaving() {
            return ROUND;
        }
        let wanted = state.wanted_replicas(group);
        match voters::step(&self.controller, local, &state.cluster, wanted).await {
            Voters::Complete => {
                self.complete.push((group, version, term, now()));
                self.end_log_if_alone(local, shard).await;
                ROUND
            }
            Voters::Changing => CHANGING_ROUND,
            Voters::Waiting(reason) => {
                log::debug!("group {group}: {reason}");
                WAITING_ROUND
            }
        }
    }

    /// A shard with one replica needs no log. What is known by now counts, not what was known when the members were looked at.
    async fn end_log_if_alone(&self, local: &LocalReplica, shard: &Shard) {
        let Some(state) = self.controller.node.state() else { return };
        let Some(local) = self.controller.node.groups.local(local.group).filter(|local| local.leads()) else {
            return;
        };
        let status = &local.status;
        let is_alone = status.voters == [status.replica] && status.learners.is_empty() && !status.changing;
        let holder = state.holder(local.group, &self.controller.node.address);
        // One path to the disk is enough.
        if is_alone
            && !self.controller.node.is_durable()
            && state.replicas_of(local.group).len() == 1
            && holder == Some(self.controller.node.incarnation)
            && shard.version() >= state.version
        {
            log::info!("group {}: this node alone keeps the shard from now on", local.group);
            self.controller.node.end_log(shard).await;
        }
    }

    /// Gives a replica up that is to be none here and was taken out of its group: when it is to be looked at again.
    async fn leave_if_taken_out(&self, local: &LocalReplica, state: &MetaState) -> Duration {
        let node = &self.controller.node;
        if state.replicas_of(local.group).contains(&&node.address) {
            return ROUND;
        }
        let order = orders::Members { group: local.group };
        let deadline = Deadline::after(now(), QUESTION_TIMEOUT);
        let members = node.order_leader(state, local.group, &order, deadline).await;
        let Ok(members) = members else { return WAITING_ROUND };
        if was_taken_out(&members, local.status.replica) {
            log::info!("group {}: this node's replica was taken out", local.group);
            node.leave_shard(local.group);
        }
        CHANGING_ROUND
    }
}

/// Whether a replica is a member of its group no more, by what the group's leader says: also where it is to leave, the group may still need it.
fn was_taken_out(members: &GroupMembers, replica: u64) -> bool {
    let mut ids = members.voters.iter().chain(&members.learners).map(|(id, _)| *id);
    !members.changing && !ids.any(|id| id == replica)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fake::members;

    #[test]
    fn a_replica_leaves_once_its_group_has_taken_it_out() {
        for (leaves, members, what) in [
            (true, members(&[1, 2], &[], false), "taken out"),
            (false, members(&[1, 2, 7], &[], false), "the group still counts on its vote"),
            (false, members(&[1, 2], &[7], false), "it was just added"),
            (false, members(&[1, 2], &[], true), "half out: its old vote still counts"),
        ] {
            assert_eq!(was_taken_out(&members, 7), leaves, "{what}");
        }
    }
}
