//! Writes that may be sent again and are done once, and the time by which what was done is remembered.

use super::retries::{Remembered, RequestId, RetryRecord, Written};
use super::{Forwarded, HashRange, KeyHash, Refused, Shard, Table, starts, timed};

impl Shard {
    /// Does a write, or says what it did when it was done before.
    pub(super) fn once(
        &self,
        table: &Table,
        forwarded: &Forwarded,
        hash: KeyHash,
        write: impl FnOnce() -> Written,
    ) -> Result<Written, Refused> {
        let (time_ms, keep_ms) = (self.clock.time(), forwarded.keep_ms);
        match forwarded.request {
            RequestId::Timed { id, fingerprint } => {
                self.timed.once(&timed::Asked { id, fingerprint, hash, time_ms }, keep_ms, write)
            }
            RequestId::Numbered { start, number, lowest } => {
                let asked = starts::Asked { start, number, lowest, hash, time_ms };
                table.starts.once(&asked, keep_ms, write)
            }
        }
    }

    /// Whether a write may be taken at a time, where what is remembered may have so many bytes: whoever leads the shard asks this before, and
    /// no replica while it applies. Only a request that is remembered for a time, and is not yet, finds no room.
    pub fn has_room_for(&self, request: &RequestId, hash: KeyHash, now_ms: u64, bytes: usize) -> bool {
        let RequestId::Timed { id, fingerprint } = *request else { return true };
        if self.remembered_bytes() < bytes {
            return true;
        }
        let time_ms = self.clock.time();
        if self.timed.remembers(&timed::Asked { id, fingerprint, hash, time_ms }) {
            return true;
        }
        self.timed.sweep(time_ms);
        // By the time of this very write some others will be old.
        self.remembered_bytes() < bytes || self.timed.will_be_swept(now_ms)
    }

    /// The memory that is taken by what is remembered of writes, in bytes.
    pub fn remembered_bytes(&self) -> usize {
        self.timed.bytes() + self.table.read().starts.bytes()
    }

    /// Gives back the memory of what is too old by now.
    pub fn forget_old(&self) {
        if self.timed.bytes() > 0 {
            self.timed.sweep(self.clock.time());
        }
    }

    /// What is remembered of a range, and of the starts of nodes.
    pub(super) fn remembered(&self, table: &Table, range: &HashRange) -> Remembered {
        let time_ms = self.clock.time();
        let starts = table.starts.marks(time_ms).into_iter().map(|(mark, _)| mark).collect();
        let mut records = self.timed.of_range(range, time_ms);
        records.append(&mut table.starts.of_range(range, time_ms));
        Remembered { starts, records }
    }

    /// Takes over what was remembered of a range, which is this shard's from now on.
    pub(super) fn remember(&self, table: &mut Table, remembered: &Remembered) {
        let timed = remembered.records.iter().filter_map(|record| match record {
            RetryRecord::Timed(record) => Some(*record),
            RetryRecord::Numbered(_) => None,
        });
        self.timed.install(timed);
        let numbered = remembered.records.iter().filter_map(|record| match record {
            RetryRecord::Numbered(record) => Some(*record),
            RetryRecord::Timed(_) => None,
        });
        table.starts.install(&remembered.starts, numbered);
    }

    /// The time of the group, in milliseconds, where the monotonic clock of this node shows so many. By it whoever leads the shard says
    /// when a write was made.
    pub fn time(&self, ticks_ms: u64) -> u64 {
        self.clock.reading(ticks_ms)
    }

    /// This replica leads its group in a term: what the group applies of that term has the time of this node's clock.
    pub fn lead(&self, term: u64) {
        self.clock.lead(term);
    }

    /// A command that has a time, of this term of the group, was just applied: whoever leads next counts on from it.
    pub fn set_clock_by(&self, term: u64, ticks_ms: u64) {
        self.clock.set_by(term, ticks_ms);
    }

    /// Sets the clock by another replica, which has sent a snapshot at this time of the group.
    pub fn set_clock(&self, time_ms: u64, ticks_ms: u64) {
        self.clock.set(time_ms, ticks_ms);
    }
}
