//! Reads that may be a little old: of whatever replica of the shard is at hand, without asking its leader.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::keys::{NotServed, Outcome, Request};
use super::state::Node;
use crate::clock::{Deadline, now};
use crate::error::{Applied, Error};
use crate::model::meta::MetaState;
use crate::model::shard::Operation;
use crate::wire::orders;

/// A leader that does not say up to where its log goes within this time is asked again later.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);
/// How often it is asked.
const ROUND: Duration = Duration::from_millis(200);

/// How old what this node's replicas hold may be, by group.
#[derive(Default)]
pub(super) struct Freshness(Mutex<HashMap<u64, Known>>);

#[derive(Default, Clone, Copy)]
struct Known {
    /// Everything that was acknowledged before this moment is applied here.
    holds_until: Option<Instant>,
    /// Everything that was acknowledged before this moment is in the log up to this index.
    asked: Option<(Instant, u64)>,
}

impl Node {
    /// Looks how old a replica of this node's may be: asks its leader, not too often, up to where the log goes.
    pub async fn look_at_age(&self, state: &MetaState, group: u64) {
        let Some(local) = self.groups.local(group) else { return };
        let mut known = self.freshness.0.lock().get(&group).copied().unwrap_or_default();
        let start = now();
        if known.asked.is_none_or(|(when, _)| start - when >= ROUND) {
            let deadline = Deadline::after(start, QUESTION_TIMEOUT);
            let index = if local.leads() {
                self.groups.read(group, deadline).await.ok()
            } else {
                let order = orders::Members { group };
                let members = self.order_leader(state, group, &order, deadline).await;
                members.ok().map(|members| members.index)
            };
            known.asked = index.map(|index| (start, index)).or(known.asked);
        }
        let applied = self.groups.local(group).map_or(0, |local| local.status.applied);
        if let Some((when, _)) = known.asked.filter(|(_, index)| applied >= *index) {
            known.holds_until = Some(when);
        }
        self.freshness.0.lock().insert(group, known);
    }

    /// A replica was given up, or begins anew and has to catch up first.
    pub(super) fn forget_age(&self, group: u64) {
        self.freshness.0.lock().remove(&group);
    }

    /// A group is founded: its replica here holds everything that was acknowledged before.
    pub(super) fn begin_age(&self, group: u64) {
        let known = Known { holds_until: Some(now()), asked: None };
        self.freshness.0.lock().insert(group, known);
    }

    /// Reads a key from this node's own replica of its shard, however old that is. Nothing where this node has no replica of the shard
    /// that is any good.
    pub fn read_own(&self, key: &[u8], read: Operation) -> Option<Outcome> {
        let serving_state = self.serving_state();
        let serving = serving_state.serving().ok()?;
        let (hash, shard) = serving.shard_of(key);
        let own = serving.own_of(shard.group)?;
        let age = if own.is_logged() {
            now() - self.freshness.0.lock().get(&shard.group)?.holds_until?
        } else {
            Duration::ZERO
        };
        let done = own.run(hash, key, read, None).ok()?;
        Some(Outcome { age: Some(age), ..Outcome::of_own(done, own, serving.tags) })
    }

    /// Reads a key from any replica of its shard that answers, however old that is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where none does by the deadline.
    pub async fn run_stale(
        &self,
        key: &[u8],
        read: Operation<'_>,
        deadline: Deadline,
    ) -> Result<Outcome, Error> {
        self.count_operation();
        self.refuse_if_claimed()?;
        if let Some(outcome) = self.read_own(key, read) {
            return Ok(outcome);
        }
        let serving_state = self.serving_state();
        let serving = serving_state
            .serving()
            .map_err(|error| Error::Unavailable { reason: error.to_string(), applied: Applied::No })?;
        let (_, shard) = serving.shard_of(key);
        if serving.state.replicas_of(shard.group).len() > 1 {
            let addressed = serving.addressed(None);
            let request = Request::stale(key, read, deadline);
            for node in shard.replicas.iter().filter(|node| **node != self.address) {
                if deadline.is_over() || self.peers.at(node).is_down() {
                    continue;
                }
                match self.host.key(self, (node, &addressed, shard.group), &request).await {
                    Ok(Ok(outcome)) if outcome.age.is_some() => {
                        let by = (!self.is_of(serving, shard)).then(|| node.clone());
                        return Ok(Outcome { by, ..outcome });
                    }
                    Ok(Err(NotServed::Failed(error @ Error::Overloaded(_)))) => return Err(error),
                    _ => {}
                }
            }
        }
        // What is asked of the leader is of now.
        let outcome = self.run(&mut Request::new(key, read, None, deadline), None).await;
        outcome.map(|outcome| Outcome { age: Some(Duration::ZERO), ..outcome })
    }
}
