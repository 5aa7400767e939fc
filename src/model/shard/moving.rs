//! Pieces on their way: noted, copied, frozen and handed over at the source; received, prepared and served at the target.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ranges::{cover, overlap};
use super::{HashRange, Remembered, Shard, Table};
use crate::model::address::Address;
use crate::model::store::{Batch, BatchLimit, Checksum, Copied};

/// One attempt to move one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PieceId {
    /// The view change.
    pub change: u64,
    /// The number of the piece in it.
    pub index: u32,
    /// The attempt: a later one makes all earlier ones void.
    pub attempt: u32,
}

impl fmt::Display for PieceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}/{}", self.change, self.index, self.attempt)
    }
}

/// Who orders something, and for which attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The attempt.
    pub piece: PieceId,
    /// The term of the meta leader that orders it: a lower one than was heard before is refused.
    pub term: u64,
    /// The version of a state in which the attempt is open.
    pub version: u64,
}

/// Why an order about a piece was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveError {
    /// A meta leader with a higher term has given orders since.
    OldTerm,
    /// No such attempt is under way here, or a later one is.
    NotUnderWay,
    /// The range is not wholly this shard's, or overlaps with what is.
    WrongRange,
    /// What was received is not what was sent.
    ChecksumDiffers {
        /// At the source.
        sent: Checksum,
        /// At the target.
        received: Checksum,
    },
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldTerm => f.write_str("another meta leader has given orders since"),
            Self::NotUnderWay => f.write_str("this attempt is not under way here"),
            Self::WrongRange => f.write_str("the range does not fit what the shard owns"),
            Self::ChecksumDiffers { sent, received } => {
                write!(
                    f,
                    "received {} pairs, sent were {}, or their checksums differ",
                    received.pairs, sent.pairs
                )
            }
        }
    }
}

impl std::error::Error for MoveError {}

/// A frozen piece, as the source knows it: what the target has to hold in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The pairs of the range and their checksum.
    pub checksum: Checksum,
    /// The counter of versions, which the target's must not be behind.
    pub index: u64,
    /// The time of the source's group when it was sent, where pairs of the range end by it: see [`Frozen::shift_at`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// What was done for which request; it travels in a form of its own.
    #[serde(skip)]
    pub remembered: Remembered,
    /// What was done to its pairs last, for those who watch: likewise. Empty where the source keeps none of that.
    #[serde(skip)]
    pub history: Vec<u8>,
}

impl Frozen {
    /// By how much the times of its pairs are to be moved where the target's group has this time when it comes. What is left of each is kept then: they end later by as
    /// long as it was on its way, and by the millisecond by which both clocks may have cut off, and never earlier.
    pub fn shift_at(&self, now_ms: u64) -> Option<i64> {
        let time_ms = self.time_ms?;
        Some(now_ms.cast_signed().saturating_sub(time_ms.cast_signed()).saturating_add(1))
    }
}

/// What a newly learned state means for a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The version of the state.
    pub version: u64,
    /// The number of the meta group: terms count anew in another one.
    pub meta_group: u64,
    /// The view change that is being counted for and has no plan yet.
    pub counting: Option<u64>,
    /// Whether one is planned: nothing is counted for another.
    pub planned: bool,
    /// The epoch of its view.
    pub epoch: u64,
    /// The ranges of this shard in it, ascending.
    pub mine: Vec<HashRange>,
    /// The attempts that are not decided: neither handed over nor aborted.
    pub open: Vec<PieceId>,
    /// The nodes, and which start of each passes on writes.
    pub starts: Vec<(Address, u64)>,
}

/// A piece that leaves.
pub(super) struct Outgoing {
    pub(super) piece: PieceId,
    /// No older state says anything about the attempt.
    pub(super) since: u64,
    pub(super) range: HashRange,
    pub(super) frozen: bool,
    /// The keys written since a delta was taken last.
    pub(super) notes: Mutex<HashSet<Box<[u8]>>>,
    /// The keys of the delta that was taken last, to be read.
    pub(super) taken: HashSet<Box<[u8]>>,
}

impl Outgoing {
    pub(super) fn range(&self) -> &HashRange {
        &self.range
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    pub(super) fn note(&self, key: &[u8]) {
        self.notes.lock().insert(key.into());
    }

    fn take_notes(&mut self) {
        self.taken = std::mem::take(self.notes.get_mut());
    }
}

/// A piece that comes.
pub(super) struct Incoming {
    pub(super) piece: PieceId,
    /// No older state says anything about the attempt.
    pub(super) since: u64,
    pub(super) range: HashRange,
    pub(super) pairs: AtomicU64,
    /// Nothing is added any more, since it is being compared with the source.
    pub(super) complete: bool,
    /// The ends of its pairs are moved to the time of this group, or are just being.
    pub(super) is_shifted: bool,
    /// Everything is here and agrees with the source: the piece may be handed over, and this goes along.
    pub(super) prepared: Option<Prepared>,
}

/// What goes along with a piece once it is handed over.
pub(super) struct Prepared {
    pub(super) remembered: Remembered,
    /// What was done last, for those who watch.
    pub(super) history: Vec<u8>,
    /// By so much the times of the pairs that end are moved then, where that was not done already: a leader of an older version has sent this in a snapshot. Its pairs have
    /// the times of the source until then.
    pub(super) shift_ms: Option<i64>,
}

impl Incoming {
    pub(super) fn range(&self) -> &HashRange {
        &self.range
    }

    pub(super) fn pairs(&self) -> u64 {
        self.pairs.load(Ordering::Relaxed)
    }
}

impl Table {
    /// Whether an order is to be carried out: not one of a former leader, nor one for an attempt that was decided.
    fn obey(&mut self, stamp: &Stamp) -> Result<(), MoveError> {
        if stamp.term < self.term {
            return Err(MoveError::OldTerm);
        }
        if stamp.version <= self.version && !self.open.contains(&stamp.piece) {
            return Err(MoveError::NotUnderWay);
        }
        self.term = stamp.term;
        Ok(())
    }
}

/// At the source.
impl Shard {
    /// From now on the keys of the range that are written are noted. Begun again, it begins anew.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn begin_outgoing(&self, stamp: &Stamp, range: &HashRange) -> Result<(), MoveError> {
        let mut table = self.table.write();
        table.obey(stamp)?;
        let piece = stamp.piece;
        let owned: Vec<HashRange> = table.owned.rows().iter().map(|(range, _)| range.clone()).collect();
        let clashes = |one: &Outgoing| {
            overlap(&one.range, range)
                && (one.piece.change, one.piece.index) == (piece.change, piece.index)
                && one.piece.attempt > piece.attempt
        };
        if table.outgoing.iter().any(clashes) {
            return Err(MoveError::NotUnderWay);
        }
        if !cover(&owned, range) {
            return Err(MoveError::WrongRange);
        }
        // A frozen piece may be handed over as long as its attempt is not known to be void: see `learn`.
        if table.outgoing.iter().any(|one| one.frozen && overlap(&one.range, range)) {
            return Err(MoveError::WrongRange);
        }
        table.outgoing.retain(|one| !overlap(&one.range, range));
        let notes = Mutex::default();
        table.outgoing.push(Outgoing {
            piece,
            since: stamp.version,
            range: range.clone(),
            frozen: false,
            notes,
            taken: HashSet::new(),
        });
        Ok(())
    }

    /// Some pairs from the start of what is left of the range.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn outgoing_batch(
        &self,
        stamp: &Stamp,
        rest: &HashRange,
        limit: BatchLimit,
    ) -> Result<Batch, MoveError> {
        let table = self.table.read();
        table.outgoing_of(stamp)?;
        Ok(self.store.scan(rest, limit))
    }

    /// The keys that were written since the last time become those of the next delta, which [`taken_delta`](Self::taken_delta) reads.
    ///
    /// They take the place of those that were taken before, read or not. So each delta may be taken once only: where it is not known
    /// whether one was taken, or it did not arrive, the attempt must end, and the next one begins with all pairs. If it went on all the
    /// same, [`prepare`](Self::prepare) would find that pairs are missing.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn take_delta(&self, stamp: &Stamp) -> Result<(), MoveError> {
        let mut table = self.table.write();
        table.outgoing_of(stamp)?;
        table.outgoing_of_mut(stamp)?.take_notes();
        Ok(())
    }

    /// The pairs of the keys that were taken, as they are now, and which of the keys are not there any more.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn taken_delta(&self, stamp: &Stamp) -> Result<Delta, MoveError> {
        let table = self.table.read();
        Ok(self.delta(&table.outgoing_of(stamp)?.taken))
    }

    /// The range is neither read nor written here any more, until the attempt is decided. The keys that were written since the last
    /// delta become those of the last one. Frozen again, it stays as it is.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn freeze(&self, stamp: &Stamp) -> Result<(), MoveError> {
        let mut table = self.table.write();
        table.obey(stamp)?;
        let one = table.outgoing_of_mut(stamp)?;
        if !one.frozen {
            one.frozen = true;
            one.take_notes();
            self.serve_history(&table);
        }
        Ok(())
    }

    /// What a frozen range has in the end: its last delta, and what the target has to hold. What is remembered of its writes is so for
    /// as long as is left by the group's time, [`Shard::time`].
    ///
    /// # Errors
    /// [`MoveError`]; [`MoveError::NotUnderWay`] also where the range is not frozen.
    pub fn frozen_parcel(&self, stamp: &Stamp, now_ms: u64) -> Result<(Delta, Frozen), MoveError> {
        let (range, taken, remembered) = {
            let table = self.table.read();
            let one = table.outgoing_of(stamp)?;
            if !one.frozen {
                return Err(MoveError::NotUnderWay);
            }
            (one.range.clone(), one.taken.clone(), self.remembered(&table, &one.range))
        };
        // Nobody writes to the range any more; the rest of the shard goes on.
        let delta = self.delta(&taken);
        let checksum = self.store.checksum(&range);
        let (index, remembered) = (self.store.index(), remembered.left_at(now_ms));
        let time_ms = self.store.first_end(std::slice::from_ref(&range)).map(|_| now_ms);
        let history = self.store.history_of(&range);
        Ok((delta, Frozen { checksum, index, time_ms, remembered, history }))
    }

    fn delta(&self, keys: &HashSet<Box<[u8]>>) -> Delta {
        let mut delta = Delta::default();
        // In an order of its own, so that equal shards send equal deltas.
        let mut keys: Vec<_> = keys.iter().collect();
        keys.sort_unstable();
        for key in keys {
            let hash = self.store.hash_key().hash(key);
            match self.store.get(hash, key) {
                Some(held) => delta.pairs.push(Copied::of(key.clone(), held)),
                None => delta.deleted.push(key.clone()),
            }
        }
        delta
    }
}

impl Table {
    fn outgoing_of(&self, stamp: &Stamp) -> Result<&Outgoing, MoveError> {
        if stamp.term < self.term {
            return Err(MoveError::OldTerm);
        }
        self.outgoing.iter().find(|one| one.piece == stamp.piece).ok_or(MoveError::NotUnderWay)
    }

    fn outgoing_of_mut(&mut self, stamp: &Stamp) -> Result<&mut Outgoing, MoveError> {
        let outgoing = self.outgoing.iter_mut().find(|one| one.piece == stamp.piece);
        outgoing.ok_or(MoveError::NotUnderWay)
    }

    fn incoming_of(&self, stamp: &Stamp) -> Result<&Incoming, MoveError> {
        if stamp.term < self.term {
            return Err(MoveError::OldTerm);
        }
        self.incoming.iter().find(|one| one.piece == stamp.piece).ok_or(MoveError::NotUnderWay)
    }

    fn incoming_of_mut(&mut self, stamp: &Stamp) -> Result<&mut Incoming, MoveError> {
        let incoming = self.incoming.iter_mut().find(|one| one.piece == stamp.piece);
        incoming.ok_or(MoveError::NotUnderWay)
    }
}

/// What has changed in a range.
#[derive(Default)]
pub struct Delta {
    /// The pairs that were written, as they are now.
    pub pairs: Vec<Copied>,
    /// The keys that are not there any more.
    pub deleted: Vec<Box<[u8]>>,
}

impl Delta {
    /// The same in parts, each of so many bytes of keys and values at most or of one larger pair, to be installed one after the other. A log
    /// takes no entry of any length, and writers may have changed a piece more than it was long.
    pub fn parts(self, bytes: usize) -> Vec<Self> {
        let (mut parts, mut taken) = (vec![Self::default()], 0);
        for pair in self.pairs {
            let size = pair.key.len() + pair.value.bytes().len();
            Self::part_for(size, bytes, &mut parts, &mut taken).pairs.push(pair);
        }
        for key in self.deleted {
            Self::part_for(key.len(), bytes, &mut parts, &mut taken).deleted.push(key);
        }
        parts
    }

    /// The last part, or a new one where the last, of which so much is taken, has no room.
    fn part_for<'a>(size: usize, bytes: usize, parts: &'a mut Vec<Self>, taken: &mut usize) -> &'a mut Self {
        if *taken > 0 && *taken + size > bytes {
            parts.push(Self::default());
            *taken = 0;
        }
        *taken += size;
        parts.last_mut().expect("there is one")
    }
}

/// At the target.
impl Shard {
    /// Makes room for a piece: whatever an earlier attempt has left of it is removed.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn begin_incoming(&self, stamp: &Stamp, range: &HashRange) -> Result<(), MoveError> {
        let mut table = self.table.write();
        table.obey(stamp)?;
        let piece = stamp.piece;
        if table.owned.rows().iter().any(|(owned, _)| overlap(owned, range)) {
            return Err(MoveError::WrongRange);
        }
        let later = |one: &Incoming| one.piece.change == piece.change && one.piece.attempt > piece.attempt;
        if table.incoming.iter().any(|one| overlap(&one.range, range) && later(one)) {
            return Err(MoveError::NotUnderWay);
        }
        // What is prepared may be handed over as long as its attempt is not known to be void: see `learn`.
        if table.incoming.iter().any(|one| overlap(&one.range, range) && one.prepared.is_some()) {
            return Err(MoveError::WrongRange);
        }
        let (void, kept) = std::mem::take(&mut table.incoming)
            .into_iter()
            .partition::<Vec<_>, _>(|one| overlap(&one.range, range));
        table.incoming = kept;
        table.dropped.extend(void.into_iter().map(|one| (one.range.clone(), one.pairs())));
        // What is still to be removed of the range is removed now.
        for (dropped, left) in &mut table.dropped {
            if overlap(dropped, range) {
                self.store.remove_range(dropped);
                *left = 0;
            }
        }
        table.dropped.retain(|(dropped, _)| !overlap(dropped, range));
        // Before anything is written here: whoever leads now need not be the one who tells new shards of the plan.
        table.tally_for(piece.change);
        let (since, pairs) = (stamp.version, AtomicU64::new(0));
        let range = range.clone();
        table.incoming.push(Incoming {
            piece,
            since,
            range,
            pairs,
            complete: false,
            is_shifted: false,
            prepared: None,
        });
        Ok(())
    }

    /// Adds what the source sent.
    ///
    /// # Errors
    /// [`MoveError`]; a key outside the range is [`MoveError::WrongRange`].
    pub fn install(&self, stamp: &Stamp, delta: &Delta) -> Result<(), MoveError> {
        let table = self.table.read();
        let incoming = table.incoming_of(stamp)?;
        if incoming.complete {
            return Err(MoveError::NotUnderWay);
        }
        for pair in &delta.pairs {
            let hash = self.store.hash_key().hash(&pair.key);
            if !incoming.range.contains(hash, &pair.key) {
                return Err(MoveError::WrongRange);
            }
            if !self.store.install(hash, &pair.key, pair.value.bytes(), pair.version) {
                incoming.pairs.fetch_add(1, Ordering::Relaxed);
            }
        }
        for key in &delta.deleted {
            let hash = self.store.hash_key().hash(key);
            if incoming.range.contains(hash, key) && self.store.delete(hash, key).is_some() {
                incoming.pairs.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Everything has been sent: compares it with the source. From then on the piece waits to be handed over.
    ///
    /// # Errors
    /// [`MoveError`].
    pub fn prepare(
        &self,
        stamp: &Stamp,
        frozen: &Frozen,
        shift_ms: Option<i64>,
    ) -> Result<Checksum, MoveError> {
        let (range, shift_now) = {
            let mut table = self.table.write();
            table.obey(stamp)?;
            // A parcel of the same attempt that comes late must not change what is compared now.
            let incoming = table.incoming_of_mut(stamp)?;
            incoming.complete = true;
            let shift_now = shift_ms.filter(|_| !incoming.is_shifted);
            incoming.is_shifted |= shift_ms.is_some();
            (incoming.range.clone(), shift_now)
        };
        let received = self.store.checksum(&range);
        if received != frozen.checksum {
            return Err(MoveError::ChecksumDiffers { sent: frozen.checksum, received });
        }
        if let Some(shift_ms) = shift_now {
            // Nobody is served the range yet. All others are, so the table is held for a stripe only.
            self.store.shift_ends(&range, shift_ms, || {
                let table = self.table.read();
                table.incoming_of(stamp)?;
                Ok(table)
            })?;
        }
        let mut table = self.table.write();
        table.obey(stamp)?;
        self.store.raise_index(frozen.index);
        let incoming = table.incoming_of_mut(stamp)?;
        if !incoming.complete {
            return Err(MoveError::NotUnderWay);
        }
        let remembered = frozen.remembered.clone().counted_from(self.clock.time());
        if shift_ms.is_some() {
            // The snapshot has to have room for it.
            self.store.note_ends();
        }
        let history = frozen.history.clone();
        let shift_ms = incoming.prepared.as_ref().and_then(|prepared| prepared.shift_ms);
        incoming.prepared = Some(Prepared { remembered, history, shift_ms });
        Ok(received)
    }
}

/// At both.
impl Shard {
    /// Acts by a newer state: serves what was handed over to this shard, drops what was handed over by it, and ends attempts that
    /// are void. An older state means nothing.
    pub fn learn(&self, directive: &Directive) {
        let mut table = self.table.write();
        if directive.version <= table.version {
            return;
        }
        table.version = directive.version;
        table.open.clone_from(&directive.open);
        table.planned = directive.planned;
        if table.meta_group != directive.meta_group {
            (table.meta_group, table.term) = (directive.meta_group, 0);
        }
        if let Some(tallying) = table.tallying.as_mut().filter(|one| directive.counting != Some(one.change()))
        {
            tallying.close();
        }
        table.starts.learn(&directive.starts, self.clock.time());
        let mine = |range: &HashRange| cover(&directive.mine, range);
        // An attempt that began after this state is not judged by it: it may be handed over in a later one.
        let open = |piece: &PieceId, since: u64| since > directive.version || directive.open.contains(piece);

        table.outgoing.retain(|one| open(&one.piece, one.since));
        let mut gained = Vec::new();
        for one in std::mem::take(&mut table.incoming) {
            if let Some(prepared) = one.prepared.as_ref().filter(|_| mine(&one.range)) {
                self.remember(&mut table, &prepared.remembered);
                if let Some(shift_ms) = prepared.shift_ms {
                    let Ok(()) = self.store.shift_ends(&one.range, shift_ms, || Ok::<_, Infallible>(()));
                }
                gained.push((one.range.clone(), prepared.history.clone()));
                table.owned.add(one.range, directive.epoch);
            } else if open(&one.piece, one.since) {
                table.incoming.push(one);
            } else {
                let pairs = one.pairs();
                table.dropped.push((one.range, pairs));
            }
        }
        self.gain_history(&table, &gained);
        for range in table.owned.beyond(&directive.mine) {
            let pairs = self.store.size_of(&range).pairs;
            table.owned.remove(&range);
            self.timed.forget_range(&range);
            self.store.change_history(|history, _| history.lose(&range));
            table.outgoing.retain(|one| !overlap(&one.range, &range));
            table.dropped.push((range, pairs));
        }
        if directive.open.is_empty() {
            table.owned.merge();
        }
        self.serve_history(&table);
    }
}
