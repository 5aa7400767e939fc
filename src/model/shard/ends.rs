//! Pairs that end by the time of their group.
//!
//! A pair ends where [`ShardCommand::PassTime`](super::ShardCommand::PassTime) is applied, and nowhere else. So it ends at one place of the log, and by then everything that
//! was read before it has been answered with it. A shard without a log has its node say the time to it by [`Shard::pass_time`].

use super::{HashRange, KeyHash, Shard, Table, WriteOutcome, Written, subtract_all};

/// So many pairs end at one time at most: an entry of the log does not take long. The others end by the next one.
const MOST_ENDED: usize = 2048;
/// While there is a pair with an end, the log has a time that is at most so old.
const OLDEST_TIME_MS: u64 = 500;

/// Whether the time is to be said to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeWanted {
    /// No pair is over, and the time was said just now, or no pair has an end.
    No,
    /// A pair is over, or one has an end and the time was not said for long.
    Yes,
    /// Pairs are there still that were over at the last time that was said: more than end at one time.
    Again,
}

impl Shard {
    /// Whether the time is to be said to the shard.
    pub fn wants_time(&self, now_ms: u64) -> TimeWanted {
        if !self.store.has_ends() {
            return TimeWanted::No;
        }
        let serving = self.table.read().serving();
        let time_ms = self.clock.time();
        match self.store.first_end(&serving) {
            Some(end_ms) if end_ms < time_ms => TimeWanted::Again,
            Some(end_ms) if end_ms < now_ms || now_ms >= time_ms.saturating_add(OLDEST_TIME_MS) => {
                TimeWanted::Yes
            }
            Some(_) | None => TimeWanted::No,
        }
    }

    /// What is written to a shard that is kept without a log lives from now on.
    pub fn note_time(&self, now_ms: u64) {
        if !self.table.read().logged {
            self.clock.pass(now_ms);
        }
    }

    /// Ends a pair of a shard that is kept without a log, if it is over: nobody who asks for it waits for its turn among the others.
    pub fn end_in_time(&self, hash: KeyHash, key: &[u8], now_ms: impl FnOnce() -> u64) -> bool {
        let Some(end_ms) = self.store.end_of(hash, key) else { return false };
        let now_ms = now_ms();
        let table = self.table.read();
        if end_ms >= now_ms || table.logged || table.owner_since(hash, key).is_err() {
            return false;
        }
        self.clock.pass(now_ms);
        self.end(&table, hash, key, now_ms)
    }

    /// Says the time to a shard that is kept without a log: what is over ends, and what is too old may leave although nobody writes. The keys of what has ended.
    pub fn pass_time(&self, now_ms: u64) -> Vec<Box<[u8]>> {
        let table = self.table.read();
        if table.logged {
            return Vec::new();
        }
        self.clock.pass(now_ms);
        self.end_some(&table)
    }

    /// Ends pairs that are over by the time of the last entry, and says which.
    pub(super) fn end_some(&self, table: &Table) -> Vec<Box<[u8]>> {
        if !self.store.has_ends() {
            return Vec::new();
        }
        let time_ms = self.clock.time();
        let mut over = self.store.over(&table.serving(), time_ms, MOST_ENDED);
        over.retain(|key| self.end(table, self.store.hash_key().hash(key), key, time_ms));
        over
    }

    /// Which pairs would end by an entry of this time.
    #[cfg(test)]
    pub(crate) fn over_at(&self, now_ms: u64) -> Vec<Box<[u8]>> {
        let serving = self.table.read().serving();
        self.store.over(&serving, now_ms.max(self.clock.time()), MOST_ENDED)
    }

    /// Ends a pair, unless it was written anew meanwhile: to all others it is as if a client had deleted it. Whether it has ended.
    fn end(&self, table: &Table, hash: KeyHash, key: &[u8], time_ms: u64) -> bool {
        let end = || {
            let has_ended = self.store.end(hash, key, time_ms);
            Written {
                outcome: if has_ended { WriteOutcome::Deleted } else { WriteOutcome::Absent },
                version: 0,
            }
        };
        table.noted(hash, key, end).outcome == WriteOutcome::Deleted
    }
}

impl Table {
    /// The ranges whose pairs are served. Those of a frozen one go to another shard as they are, and what comes is by another group's time yet.
    pub(super) fn serving(&self) -> Vec<HashRange> {
        let owned = self.owned.rows().iter().map(|(range, _)| range.clone()).collect();
        let frozen: Vec<HashRange> =
            self.outgoing.iter().filter(|one| one.is_frozen()).map(|one| one.range().clone()).collect();
        subtract_all(owned, &frozen)
    }
}
