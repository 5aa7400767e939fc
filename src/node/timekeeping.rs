//! Has the shards that this node leads, or keeps alone, learn the time while pairs of theirs end by it.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use super::state::Node;
use crate::clock::{now, ticks_ms};
use crate::consensus::Command;
use crate::model::shard::{Shard, ShardCommand, TimeWanted};

/// How often it is looked whether pairs are over: so much later at most the first of them goes.
pub const ROUND: Duration = Duration::from_millis(50);
/// The same while more are over than end at one time: those that were written together, as by an import, do not wait for one another.
pub const SHORT_ROUND: Duration = Duration::from_millis(2);

/// The groups whose logs were asked to take the time and have not answered yet: a log that does not get on is not asked again and again.
#[derive(Default)]
pub(super) struct Timekeeping(Mutex<HashSet<u64>>);

impl Timekeeping {
    fn begin(&self, group: u64) -> bool {
        self.0.lock().insert(group)
    }

    fn end(&self, group: u64) {
        self.0.lock().remove(&group);
    }
}

impl Node {
    /// Says the time to the shards that want to know it, and waits for nothing. When that is to be done again.
    pub fn keep_time(&self) -> Duration {
        let serving_state = self.serving_state();
        let Ok(serving) = serving_state.serving() else { return ROUND };
        let mut rest = ROUND;
        for (_, shard) in &serving.own {
            if self.leads(shard).is_ok() && self.say_time(shard) == TimeWanted::Again {
                rest = SHORT_ROUND;
            }
        }
        rest
    }

    /// Says the time to a shard that is kept without a log.
    pub(super) fn pass_time(&self, shard: &Shard) {
        let ended = shard.pass_time(shard.time(ticks_ms()));
        if !ended.is_empty() {
            self.host.ended(shard, &ended);
        }
    }

    /// Says it to one of them, where it wants to know it.
    fn say_time(&self, shard: &Shard) -> TimeWanted {
        let now_ms = shard.time(ticks_ms());
        let wanted = shard.wants_time(now_ms);
        if wanted == TimeWanted::No {
            return wanted;
        }
        if !shard.is_logged() {
            self.pass_time(shard);
            return wanted;
        }
        let group = shard.group();
        if !self.timekeeping.begin(group) {
            return wanted;
        }
        let command = ShardCommand::PassTime { now_ms };
        let command = Command { bytes: command.encode().into(), needs: command.needs(), goes_ahead: false };
        let timekeeping = Arc::clone(&self.timekeeping);
        self.groups.propose_and(group, command, move |_| timekeeping.end(group));
        wanted
    }
}

/// How often it is looked what there is room for on the disk.
const DISK_ROUND: Duration = Duration::from_secs(1);

/// Keeps the time until the channel closes.
pub fn run(node: &Node, stop: &Receiver<()>) {
    let (mut rest, mut next_count, mut next_disk) = (ROUND, now(), now());
    while stop.recv_timeout(rest) == Err(RecvTimeoutError::Timeout) {
        let work = || {
            if now() >= next_count {
                node.count_memory();
                next_count = now() + ROUND;
            }
            if now() >= next_disk {
                node.count_disk();
                next_disk = now() + DISK_ROUND;
            }
            node.keep_time()
        };
        rest = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            log::error!("what pairs end by broke off: it is tried again");
            ROUND
        });
    }
}
