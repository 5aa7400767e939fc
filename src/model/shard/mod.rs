//! One shard's part of the pairs as a node holds it: the ranges it owns, the operations on their keys, and the pieces that
//! come and go in a view change.
//!
//! Ownership lives here and nowhere else: whatever a sender believes about the view, an operation is done only where the
//! key lies in a range that this shard owns at that very moment. Operations on keys share the lock of the table; whatever changes the
//! ranges has it alone. So every operation is wholly before or wholly after a freeze, a hand-over or a census.

mod audit;
mod batch;
mod census;
mod claims;
mod clock;
mod command;
mod ends;
mod exports;
mod form;
mod growth;
mod history;
mod listing;
mod moving;
mod once;
mod ranges;
mod retries;
mod snapshot;
mod starts;
mod timed;

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use self::audit::Audits;
use self::census::Tallying;
use self::clock::GroupClock;
use self::exports::Exports;
use self::moving::{Incoming, Outgoing};
use self::ranges::OwnedRanges;
use self::starts::Starts;
use self::timed::Timed;
use super::changes::Changes;
use super::condition::{Condition, Judgement};
use super::format;
use super::hash::{HashKey, KeyHash};
use super::history::History;
use super::range::{HashRange, Point};
use super::store::{Checksum, Size, Store, StoredValue};
use super::ttl::{Parts, Ttl};
use super::value;

pub use self::audit::{Audit, AuditBegun, AuditState};
pub use self::batch::{HeldUp, Write, encode_batch};
pub use self::census::{CensusCount, CensusId, Tally};
pub use self::claims::Claims;
pub use self::command::{Change, ShardCommand, ShardOutcome, encode_write};
pub use self::ends::TimeWanted;
pub use self::exports::NoExport;
pub use self::listing::Served;
pub use self::moving::{Delta, Directive, Frozen, MoveError, PieceId, Stamp};
pub use self::ranges::{cover, intersection, subtract_all};
pub use self::retries::{
    NumberedRecord, Recorded, Remembered, RequestId, RetryRecord, StartMark, TimedRecord, WriteOutcome,
    Written,
};
pub use self::snapshot::{SNAPSHOT_FORM, Snapshot, form_of, is_known};

/// What is asked of a key, and under which condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What is to be done.
    pub action: Action<'a>,
    /// What has to be there. It counts only where the operation would succeed without it (RFC 9110, section 13.2.1).
    pub condition: Option<&'a Condition>,
    /// For how long what is written lives from then on; for ever, where nothing is said.
    pub ttl: Option<Ttl>,
}

/// What is to be done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Read it.
    Get,
    /// Insert or replace it; the value as [`value`] stores it.
    Put(&'a [u8]),
    /// Delete it.
    Delete,
    /// Let it live for another time, and leave it as it is otherwise.
    Touch,
}

impl<'a> Operation<'a> {
    /// Reads, under no condition.
    pub const GET: Self = Self::of(Action::Get);
    /// Deletes, under no condition.
    pub const DELETE: Self = Self::of(Action::Delete);
    /// Has it live for ever, under no condition.
    pub const TOUCH: Self = Self::of(Action::Touch);

    /// Inserts or replaces, under no condition; the value as [`value`] stores it.
    pub const fn put(value: &'a [u8]) -> Self {
        Self::of(Action::Put(value))
    }

    const fn of(action: Action<'a>) -> Self {
        Self { action, condition: None, ttl: None }
    }

    /// The same under a condition, if there is one.
    #[must_use]
    pub const fn under(self, condition: Option<&'a Condition>) -> Self {
        Self { condition, ..self }
    }

    /// The same for a time to live, if there is one.
    #[must_use]
    pub const fn living(self, ttl: Option<Ttl>) -> Self {
        Self { ttl, ..self }
    }

    /// Whether it changes nothing.
    pub const fn is_read(&self) -> bool {
        matches!(self.action, Action::Get)
    }

    /// The format that a node has to know to do it: one that does not would leave something of it out.
    pub const fn needs(&self) -> u32 {
        match (self.action, self.condition) {
            _ if self.ttl.is_some() => format::TTL,
            (Action::Touch, _) => format::TTL,
            (Action::Put(value), _) if value::is_typed(value) => format::TYPES,
            (_, Some(_)) => format::CONDITIONS,
            (_, None) => format::FIRST,
        }
    }

    /// The value of a PUT.
    pub const fn value(&self) -> Option<&'a [u8]> {
        match self.action {
            Action::Put(value) => Some(value),
            Action::Get | Action::Delete | Action::Touch => None,
        }
    }
}

/// What an operation did.
#[derive(Debug)]
pub enum Done<V = StoredValue> {
    /// PUT or DELETE: what the write did.
    Wrote(Written),
    /// GET: the value, where the key is present.
    Read(Option<V>),
    /// GET: nothing, since its condition does not hold for the pair of this version that is there.
    Unread(Unread, u64),
}

/// Why a pair that is there was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It is one of those that the client has already.
    Unchanged,
    /// It is none of those that the client asked for.
    Unmet,
}

/// Why an operation was not done. Nothing of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The key is on its way here or from here: ask again in a moment.
    Moving,
    /// The key is not this shard's.
    NotOwned,
    /// The node is reserved for a cluster and takes no writes of its own.
    Sealed,
    /// Writes of this shard go through the log of its group: propose it there.
    Logged,
    /// Another request on this key was done under the same name.
    OtherRequest,
    /// The number of the write says nothing here: the shard has not learned of the start that has given it, or that is over; or the node
    /// has said that it does not wait for it any more. Ask again under another id if nothing is unclear.
    Forgotten,
}

/// A write that may be sent again, as another node has passed it on or as it stands in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// The id of the client's request: sent again under the same id, it is done once.
    pub request: RequestId,
    /// The epoch that the sender routed by.
    pub epoch: u64,
    /// The group's time in milliseconds, as [`Shard::time`] says it to whoever leads the shard.
    pub now_ms: u64,
    /// For so long a named write is remembered at least.
    pub keep_ms: u64,
}

/// The counter of versions where a generation of the cluster begins: see [`MetaState::generation`](super::meta::MetaState::generation). A shard that does
/// 100,000 writes a second draws as many versions as one generation has in 5 years.
pub fn first_of(generation: u64) -> u64 {
    generation << 44
}

/// The pairs of a shard.
pub struct Shard {
    group: AtomicU64,
    store: Store,
    table: RwLock<Table>,
    timed: Timed,
    clock: GroupClock,
    audits: Audits,
    exports: Exports,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// How often something was done to the keys of a shard, by this replica, since it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// Keys that were read.
    pub reads: u64,
    /// Writes, in whatever they ended; each replica does all of them.
    pub writes: u64,
}

#[derive(Default)]
struct Table {
    owned: OwnedRanges,
    outgoing: Vec<Outgoing>,
    incoming: Vec<Incoming>,
    /// Ranges that are not this shard's any more, and how many of their pairs are still to be removed.
    dropped: Vec<(HashRange, u64)>,
    /// The meta group whose orders are obeyed, and the highest term of a leader of it that was heard.
    meta_group: u64,
    term: u64,
    /// The version of the state that was learned last.
    version: u64,
    /// The attempts that were open in it.
    open: Vec<PieceId>,
    /// The writes that nodes of the view pass on.
    starts: Starts,
    tallying: Option<Tallying>,
    /// A view change is planned by what was counted: nobody may count anew.
    planned: bool,
    sealed: bool,
    /// Changes come through the log of the group, by [`Shard::apply`]. It says where this replica stands, and is no part of the state.
    logged: bool,
}

impl Shard {
    /// A shard that holds nothing yet and owns these ranges, gained with this epoch.
    pub fn new(
        group: u64,
        hash_key: HashKey,
        owned: impl IntoIterator<Item = HashRange>,
        epoch: u64,
    ) -> Self {
        let mut table = Table::default();
        owned.into_iter().for_each(|range| table.owned.add(range, epoch));
        let group = AtomicU64::new(group);
        let (store, table) = (Store::new(hash_key), RwLock::new(table));
        let (timed, clock, audits) = (Timed::default(), GroupClock::default(), Audits::default());
        let (reads, writes) = Default::default();
        Self { group, store, table, timed, clock, audits, exports: Exports::default(), reads, writes }
    }

    /// What was done to its keys so far.
    pub fn operations(&self) -> Operations {
        let [reads, writes] = [&self.reads, &self.writes].map(|count| count.load(Ordering::Relaxed));
        Operations { reads, writes }
    }

    /// The number of the group, which is never reused.
    pub fn group(&self) -> u64 {
        self.group.load(Ordering::Relaxed)
    }

    /// The shard is that of another group from now on, which takes the place of one whose majority is gone for good.
    pub fn succeed(&self, group: u64) {
        self.group.store(group, Ordering::Relaxed);
        self.clock.lead_no_more();
    }

    /// All versions that are drawn from now on are above all that were drawn in an earlier generation of the cluster, here or anywhere.
    pub fn begin_generation(&self, generation: u64) {
        self.store.raise_index(first_of(generation));
        // Some of what was told may be lost.
        self.store.change_history(History::forget);
    }

    /// The hash of a key.
    #[cfg(test)]
    pub(crate) fn hash_of(&self, key: &[u8]) -> KeyHash {
        self.store.hash_key().hash(key)
    }

    /// The version of the state that was learned last; 0 before the first.
    pub fn version(&self) -> u64 {
        self.table.read().version
    }

    /// From now on writes are done only by [`apply`](Self::apply), or by [`run`](Self::run) again. When this returns, no write of the former
    /// kind is under way any more.
    pub fn set_logged(&self, logged: bool) {
        self.table.write().logged = logged;
        self.clock.lead_no_more();
    }

    /// Whether writes are done only by [`apply`](Self::apply).
    pub fn is_logged(&self) -> bool {
        self.table.read().logged
    }

    /// Does an operation on a key.
    ///
    /// # Errors
    /// [`Refused`], and then nothing was done; [`Refused::Logged`] for every write to a shard whose writes go through a log.
    pub fn run(
        &self,
        hash: KeyHash,
        key: &[u8],
        operation: Operation,
        forwarded: Option<Forwarded>,
    ) -> Result<Done, Refused> {
        let table = self.table.read();
        if operation.is_read() {
            table.owner_since(hash, key)?;
            return Ok(self.read(hash, key, operation.condition));
        }
        if table.logged {
            return Err(Refused::Logged);
        }
        if let Some(forwarded) = &forwarded {
            self.clock.pass(forwarded.now_ms);
        }
        self.write_once(&table, hash, key, operation, forwarded).map(Done::Wrote)
    }

    fn read(&self, hash: KeyHash, key: &[u8], condition: Option<&Condition>) -> Done {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let held = self.store.get(hash, key);
        let (Some(condition), Some(version)) = (condition, held.as_ref().map(StoredValue::version)) else {
            return Done::Read(held);
        };
        match condition.judge(Some(version)) {
            Judgement::Holds => Done::Read(held),
            Judgement::NotThere => Done::Unread(Unread::Unmet, version),
            Judgement::There => Done::Unread(Unread::Unchanged, version),
        }
    }

    /// Does a write, be the shard's writes logged or not.
    fn write_once(
        &self,
        table: &Table,
        hash: KeyHash,
        key: &[u8],
        operation: Operation,
        forwarded: Option<Forwarded>,
    ) -> Result<Written, Refused> {
        let gained = table.owner_since(hash, key)?;
        if table.sealed {
            return Err(Refused::Sealed);
        }
        match forwarded {
            None => Ok(self.write(table, hash, key, operation, self.clock.time())),
            // It may have been done before the range came here, and its record may have been forgotten since.
            Some(forwarded) if forwarded.epoch < gained => Err(Refused::NotOwned),
            Some(forwarded) => {
                let write = || self.write(table, hash, key, operation, forwarded.now_ms);
                self.once(table, &forwarded, hash, write)
            }
        }
    }

    fn write(&self, table: &Table, hash: KeyHash, key: &[u8], operation: Operation, now_ms: u64) -> Written {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let write = || {
            let condition = operation.condition;
            let end_ms = operation.ttl.map(|ttl| now_ms.saturating_add(ttl.ms()));
            let done = match operation.action {
                Action::Put(value) => {
                    let stored = Parts { end_ms, value }.stored();
                    self.store.put_if(hash, key, &stored, condition).map(|(replaced, version)| {
                        (if replaced { WriteOutcome::Updated } else { WriteOutcome::Added }, version)
                    })
                }
                Action::Touch => {
                    let touched = self.store.touch_if(hash, key, end_ms, condition);
                    touched.map(|version| match version {
                        Some(version) => (WriteOutcome::Updated, version),
                        None => (WriteOutcome::Absent, 0),
                    })
                }
                Action::Get | Action::Delete => {
                    let deleted = self.store.delete_if(hash, key, condition);
                    deleted.map(|version| match version {
                        Some(version) => (WriteOutcome::Deleted, version),
                        None => (WriteOutcome::Absent, 0),
                    })
                }
            };
            let (outcome, version) =
                done.unwrap_or_else(|unmet| (WriteOutcome::Unmet, unmet.there.unwrap_or(0)));
            Written { outcome, version }
        };
        table.noted(hash, key, write)
    }

    /// How many pairs the owned ranges hold, and the bytes of everything that lies here.
    pub fn size(&self) -> Size {
        let table = self.table.write();
        Size { pairs: self.count(&table), bytes: self.store.size().bytes }
    }

    fn count(&self, table: &Table) -> u64 {
        let others: u64 = table.incoming.iter().map(Incoming::pairs).sum::<u64>()
            + table.dropped.iter().map(|(_, left)| left).sum::<u64>();
        self.store.size().pairs.saturating_sub(others)
    }

    /// As [`size`](Self::size), for figures: without waiting for anybody, and beside writes. Nothing where the ranges are just being changed.
    pub fn shown_size(&self) -> Option<Size> {
        let table = self.table.try_read()?;
        Some(Size { pairs: self.count(&table), bytes: self.store.size().bytes })
    }

    /// As [`size`](Self::size), for figures: without keeping anybody waiting, and counting also what comes and goes.
    pub fn rough_size(&self) -> Size {
        self.store.size()
    }

    /// The owned ranges, ascending, with the epoch in which each was gained.
    pub fn owned(&self) -> Vec<(HashRange, u64)> {
        self.table.read().owned.rows().to_vec()
    }

    /// Takes no writes any more if there is no pair; whether that is so.
    pub fn seal(&self) -> bool {
        let mut table = self.table.write();
        table.sealed |= self.count(&table) == 0;
        table.sealed
    }

    /// Takes writes again.
    pub fn unseal(&self) {
        self.table.write().sealed = false;
    }

    /// Removes some of the pairs that are not this shard's any more; false where nothing was left to be removed.
    pub fn sweep(&self) -> bool {
        let mut table = self.table.write();
        let Some((range, left)) = table.dropped.last_mut() else { return false };
        let removed = self.store.remove_some(range, SWEEP_PAIRS);
        *left = left.saturating_sub(removed);
        if removed == 0 {
            table.dropped.pop();
        }
        true
    }
}

/// So many pairs at least are removed under one lock of the table.
const SWEEP_PAIRS: usize = 256;

impl Table {
    /// The epoch in which the range of a key was gained.
    fn owner_since(&self, hash: KeyHash, key: &[u8]) -> Result<u64, Refused> {
        let Some(gained) = self.owned.gained(hash, key) else {
            let coming = self.incoming.iter().any(|one| one.range().contains(hash, key));
            return Err(if coming { Refused::Moving } else { Refused::NotOwned });
        };
        let frozen = self.outgoing_piece(hash, key).is_some_and(Outgoing::is_frozen);
        if frozen { Err(Refused::Moving) } else { Ok(gained) }
    }

    /// Does something to a pair, and has noted what that came to whoever counts or moves it.
    fn noted(&self, hash: KeyHash, key: &[u8], write: impl FnOnce() -> Written) -> Written {
        let written = match &self.tallying {
            Some(tallying) => tallying.note(hash, key, write),
            None => write(),
        };
        let has_changed = !matches!(written.outcome, WriteOutcome::Absent | WriteOutcome::Unmet);
        if let Some(piece) = self.outgoing_piece(hash, key).filter(|_| has_changed) {
            piece.note(key);
        }
        written
    }

    fn outgoing_piece(&self, hash: KeyHash, key: &[u8]) -> Option<&Outgoing> {
        self.outgoing.iter().find(|one| one.range().contains(hash, key))
    }
}

#[cfg(test)]
mod replicas;
#[cfg(test)]
mod retry_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_trial;
