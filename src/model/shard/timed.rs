//! Requests that are remembered for a time, whatever else is asked for meanwhile.
//!
//! When one is forgotten follows from the group's time alone, and not from when its memory is given back: so replicas agree on it,
//! although each gives memory back when it has the time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use parking_lot::Mutex;

use super::Refused;
use super::retries::{Recorded, RetryRecord, TimedRecord, Written};
use crate::model::binary::Malformed;
use crate::model::hash::KeyHash;
use crate::model::range::HashRange;

/// Locks among which the records are spread, by the upper bits of the hash: a range has few of them, and a shard still many.
const STRIPES: usize = 1 << STRIPE_BITS;
const STRIPE_BITS: u32 = 10;
/// What a record takes, in bytes, with its place in a table and the room that both keep free.
const RECORD_BYTES: usize = 128;
/// A write gives back so many old records of its stripe at most: the lock is not held for long.
const MOST_SWEPT: usize = 64;

const _: () = assert!(size_of::<TimedRecord>() == RECORD_BYTES / 2);

/// The records, each until its time has come.
pub(super) struct Timed {
    stripes: Box<[Mutex<Stripe>]>,
    count: AtomicUsize,
}

#[derive(Default)]
struct Stripe {
    /// In the order in which they came.
    records: VecDeque<TimedRecord>,
    /// How many have been before the first of them.
    before: u64,
    /// The place of each id in that order.
    places: HashTable<u64>,
}

/// What is looked for, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) id: u128,
    pub(super) fingerprint: u64,
    pub(super) hash: KeyHash,
    pub(super) time_ms: u64,
}

impl Default for Timed {
    fn default() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect(), count: AtomicUsize::new(0) }
    }
}

impl Timed {
    /// Does a write and remembers it for so long, or says what it did when it was done before.
    pub(super) fn once(
        &self,
        asked: &Asked,
        keep_ms: u64,
        write: impl FnOnce() -> Written,
    ) -> Result<Written, Refused> {
        let mut stripe = self.stripes[stripe_of(asked.hash.0)].lock();
        self.count.fetch_sub(stripe.sweep(asked.time_ms, MOST_SWEPT), Ordering::Relaxed);
        if let Some(record) = stripe.find(asked.id, asked.time_ms) {
            let is_same = record.fingerprint == asked.fingerprint;
            return if is_same { Ok(record.done.written) } else { Err(Refused::OtherRequest) };
        }
        let written = write();
        let done = Recorded { hash: asked.hash.0, written };
        let until_ms = asked.time_ms.saturating_add(keep_ms);
        stripe.put(TimedRecord { id: asked.id, fingerprint: asked.fingerprint, until_ms, done });
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(written)
    }

    /// Whether a request is remembered, whatever it says.
    pub(super) fn remembers(&self, asked: &Asked) -> bool {
        self.stripes[stripe_of(asked.hash.0)].lock().find(asked.id, asked.time_ms).is_some()
    }

    /// The memory that the records take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.count.load(Ordering::Relaxed) * RECORD_BYTES
    }

    /// Gives the memory of old records back; of those that came after a younger one, later.
    pub(super) fn sweep(&self, time_ms: u64) {
        for stripe in &self.stripes {
            let swept = stripe.lock().sweep(time_ms, usize::MAX);
            self.count.fetch_sub(swept, Ordering::Relaxed);
        }
    }

    /// Whether a sweep would give memory back at a later time.
    pub(super) fn will_be_swept(&self, time_ms: u64) -> bool {
        let first = |stripe: &Mutex<Stripe>| stripe.lock().records.front().map(|record| record.until_ms);
        self.stripes.iter().filter_map(first).any(|until_ms| until_ms <= time_ms)
    }

    /// The records of a range that are not old. Where a cut falls between two keys of one hash, those of both sides.
    pub(super) fn of_range(&self, range: &HashRange, time_ms: u64) -> Vec<RetryRecord> {
        let mut found = Vec::new();
        for stripe in self.stripes_of(range) {
            let stripe = stripe.lock();
            let records = stripe.records.iter();
            let records = records.filter(|one| one.until_ms > time_ms && one.done.may_lie_in(range));
            found.extend(records.copied().map(RetryRecord::Timed));
        }
        found
    }

    /// Forgets the records of a range that another shard serves now: they have gone along with it.
    pub(super) fn forget_range(&self, range: &HashRange) {
        for stripe in self.stripes_of(range) {
            let mut stripe = stripe.lock();
            if stripe.records.iter().any(|record| record.done.lies_in(range)) {
                let gone = stripe.change(|records| records.retain(|record| !record.done.lies_in(range)));
                self.count.fetch_sub(gone, Ordering::Relaxed);
            }
        }
    }

    /// Adds records that came with a range.
    pub(super) fn install(&self, records: impl IntoIterator<Item = TimedRecord>) {
        let mut touched = BTreeSet::new();
        for record in records {
            let number = stripe_of(record.done.hash);
            touched.insert(number);
            self.stripes[number].lock().put(record);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        for number in touched {
            let mut stripe = self.stripes[number].lock();
            let gone =
                stripe.change(|records| records.make_contiguous().sort_by_key(|record| record.until_ms));
            self.count.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    /// Adds a record of a snapshot, which holds them in their order.
    ///
    /// # Errors
    /// When it stands there twice.
    pub(super) fn restore(&mut self, record: TimedRecord) -> Result<(), Malformed> {
        let stripe = self.stripes[stripe_of(record.done.hash)].get_mut();
        if stripe.find(record.id, 0).is_some() {
            return Err(Malformed("a retry record stands twice in a snapshot"));
        }
        stripe.put(record);
        *self.count.get_mut() += 1;
        Ok(())
    }

    /// Takes over all records of another.
    pub(super) fn replace(&self, other: Self) {
        for (stripe, fresh) in self.stripes.iter().zip(other.stripes) {
            *stripe.lock() = fresh.into_inner();
        }
        self.count.store(other.count.into_inner(), Ordering::Relaxed);
    }

    fn stripes_of(&self, range: &HashRange) -> &[Mutex<Stripe>] {
        let last = range.to.as_ref().map_or(STRIPES - 1, |to| stripe_of(to.hash));
        &self.stripes[stripe_of(range.from.hash)..=last]
    }
}

fn stripe_of(hash: u128) -> usize {
    usize::try_from(hash >> (u128::BITS - STRIPE_BITS)).expect("fewer than there are stripes")
}

/// An id is a hash already, or drawn at random.
#[expect(clippy::cast_possible_truncation, reason = "any half of it will do")]
fn table_hash(id: u128) -> u64 {
    id as u64
}

impl Stripe {
    fn at(&self, place: u64) -> &TimedRecord {
        &self.records[usize::try_from(place - self.before).expect("it is in memory")]
    }

    /// The record of an id, if it is not old.
    fn find(&self, id: u128, time_ms: u64) -> Option<&TimedRecord> {
        let place = self.places.find(table_hash(id), |place| self.at(*place).id == id)?;
        Some(self.at(*place)).filter(|record| record.until_ms > time_ms)
    }

    /// Adds a record as the last. One with the same id is old from now on, so that the order of those that are not says when they came.
    fn put(&mut self, record: TimedRecord) {
        let place = self.before + self.records.len() as u64;
        self.records.push_back(record);
        let Self { records, before, places } = self;
        let id_at = |place: &u64| records[usize::try_from(place - *before).expect("it is in memory")].id;
        let hash = table_hash(record.id);
        match places.find_mut(hash, |known| id_at(known) == record.id) {
            Some(known) => {
                let old = std::mem::replace(known, place);
                records[usize::try_from(old - *before).expect("it is in memory")].until_ms = 0;
            }
            None => {
                places.insert_unique(hash, place, |place| table_hash(id_at(place)));
            }
        }
    }

    /// Gives the first records back, as long as they are old: how many.
    fn sweep(&mut self, time_ms: u64, limit: usize) -> usize {
        let mut swept = 0;
        while swept < limit && self.records.front().is_some_and(|record| record.until_ms <= time_ms) {
            let id = self.records[0].id;
            let place = self.before;
            if let Ok(entry) = self.places.find_entry(table_hash(id), |known| *known == place) {
                entry.remove();
            }
            self.records.pop_front();
            self.before += 1;
            swept += 1;
        }
        if self.records.is_empty() && self.records.capacity() > MOST_SWEPT {
            (self.records, self.places) = (VecDeque::new(), HashTable::new());
        }
        swept
    }

    /// Takes records out or changes their order: how many there are less.
    fn change(&mut self, change: impl FnOnce(&mut VecDeque<TimedRecord>)) -> usize {
        let mut records = std::mem::take(&mut self.records);
        let count = records.len();
        change(&mut records);
        *self = Self { before: self.before, ..Self::default() };
        // Those whose place was taken are left out: the last of an id is the one that counts.
        records.into_iter().filter(|record| record.until_ms > 0).for_each(|record| self.put(record));
        count - self.records.len()
    }
}
