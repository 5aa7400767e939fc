//! The pairs behind one lock.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, btree_set};
use std::iter::Peekable;
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashTable;

use super::map::Size;
use super::moment::Moments;
use super::order::Order;
use super::scrub::Scrubs;
use crate::model::hash::{HashKey, KeyHash};
use crate::model::pages::{Pages, Place, Record};
use crate::model::pair::Pair;
use crate::model::range::HashRange;
use crate::model::ttl;

/// Small pairs lie in pages and large ones by themselves; a key is in one of the two tables at most.
pub(super) struct Stripe {
    hash_key: HashKey,
    pub(super) small: HashTable<Place>,
    pub(super) pages: Pages,
    pub(super) large: HashTable<Pair>,
    /// The small pairs in the order of their keys.
    order: Order,
    /// The large ones.
    large_order: BTreeSet<ByKey>,
    /// Bytes of all keys and values.
    pub(super) bytes: u64,
    /// The ends of the pairs that have one, with their keys: of exactly those that are there.
    pub(super) ends: BTreeSet<(u64, Box<[u8]>)>,
    pub(super) scrubs: Scrubs,
    pub(super) moments: Moments,
}

/// A large pair, which stands for its key.
pub(super) struct ByKey(Pair);

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// Where a pair lies.
#[derive(Clone, Copy)]
pub(super) enum Slot<'a> {
    Small(Place),
    Large(&'a Pair),
}

/// A pair and its place in the space.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) hash: KeyHash,
    pub(super) slot: Slot<'a>,
}

impl Stripe {
    pub(super) fn new(hash_key: HashKey) -> Self {
        let (small, large) = (HashTable::new(), HashTable::new());
        let (pages, scrubs) = (Pages::default(), Scrubs::default());
        let (order, large_order, ends) = (Order::default(), BTreeSet::new(), BTreeSet::new());
        let moments = Moments::default();
        Self { hash_key, small, pages, large, order, large_order, bytes: 0, ends, scrubs, moments }
    }

    /// Takes all pairs out.
    pub(super) fn take_all(&mut self) -> Arc<Self> {
        self.before_removal(None);
        let (mut scrubs, moments) = (mem::take(&mut self.scrubs), mem::take(&mut self.moments));
        let gone = Arc::new(mem::replace(self, Self::new(self.hash_key)));
        scrubs.all_went(&gone);
        (self.scrubs, self.moments) = (scrubs, moments);
        gone
    }

    /// How many pairs there are.
    pub(super) fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    /// The pairs from a key on, in the order of the keys.
    pub(super) fn ordered<'a>(&'a self, from: Bound<&'a [u8]>) -> Ordered<'a, impl Iterator<Item = Place>> {
        let small = self.order.from(&self.pages, from).peekable();
        let large = self.large_order.range::<[u8], _>((from, Bound::Unbounded)).peekable();
        Ordered { stripe: self, small, large }
    }

    /// All pairs, in no order.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.small.iter().copied().map(Slot::Small).chain(self.large.iter().map(Slot::Large))
    }

    pub(super) fn record<'a>(&'a self, slot: Slot<'a>) -> Record<'a> {
        match slot {
            Slot::Small(place) => self.pages.record(place),
            Slot::Large(pair) => Record { version: pair.version(), key: pair.key(), value: pair.value() },
        }
    }

    /// The pairs of a range, or all, in no order. Only a range costs the hashes.
    pub(super) fn records<'a>(&'a self, within: Option<&'a HashRange>) -> impl Iterator<Item = Record<'a>> {
        self.slots().map(|slot| self.record(slot)).filter(move |record| {
            within.is_none_or(|range| range.contains(self.hash_key.hash(record.key), record.key))
        })
    }

    /// The pairs of a range, or all, with their hashes, in no order.
    pub(super) fn entries(&self, within: Option<&HashRange>) -> Vec<Entry<'_>> {
        let mut entries = Vec::with_capacity(if within.is_none() { self.len() } else { 0 });
        entries.extend(self.slots().filter_map(|slot| {
            let key = self.record(slot).key;
            let hash = self.hash_key.hash(key);
            within.is_none_or(|range| range.contains(hash, key)).then_some(Entry { hash, slot })
        }));
        entries
    }

    /// Brings the first so many entries into the order of the space and cuts off the others.
    pub(super) fn keep_first(&self, entries: &mut Vec<Entry<'_>>, wanted: usize) {
        let order = |a: &Entry, b: &Entry| {
            let keys = || self.record(a.slot).key.cmp(self.record(b.slot).key);
            a.hash.cmp(&b.hash).then_with(keys)
        };
        if wanted < entries.len() {
            entries.select_nth_unstable_by(wanted, order);
            entries.truncate(wanted);
        }
        entries.sort_unstable_by(order);
    }

    /// How much of a range, or in all, there is.
    pub(super) fn size(&self, within: Option<&HashRange>) -> Size {
        if within.is_none() {
            return Size { pairs: self.len() as u64, bytes: self.bytes };
        }
        self.records(within).map(|record| Size::of_pair(record.key, record.value)).sum()
    }

    /// Removes the pairs of a range: how many, and the large ones, to be freed when the lock is let go.
    pub(super) fn remove_within(&mut self, range: &HashRange) -> (u64, Vec<Pair>) {
        self.before_removal(Some(range));
        let (before, small_before) = (self.len(), self.small.len());
        let Self { hash_key, small, pages, large, order, large_order, bytes, ends, scrubs, .. } = self;
        small.retain(|place| {
            let Record { key, value, .. } = pages.record(*place);
            let stays = !range.contains(hash_key.hash(key), key);
            if !stays {
                *bytes -= (key.len() + value.len()) as u64;
                forget_end(ends, key, value);
                scrubs.small_goes(pages, *place);
                pages.release(*place);
            }
            stays
        });
        let gone: Vec<Pair> =
            large.extract_if(|pair| range.contains(hash_key.hash(pair.key()), pair.key())).collect();
        *bytes -= gone.iter().map(|pair| pair.size() as u64).sum::<u64>();
        for pair in &gone {
            forget_end(ends, pair.key(), pair.value());
            large_order.remove(pair.key());
            scrubs.large_went(pair);
        }
        if small.len() < small_before {
            order.retain(pages, |place| {
                let key = pages.key(place);
                !range.contains(hash_key.hash(key), key)
            });
        }
        self.tidy();
        self.shrink();
        ((before - self.len()) as u64, gone)
    }

    /// Gives back the tables' room after pairs went, once three quarters of it are empty. A table is left half full, or it
    /// would double again at the next few pairs.
    fn shrink(&mut self) {
        if self.len() == 0 {
            let (scrubs, moments) = (mem::take(&mut self.scrubs), mem::take(&mut self.moments));
            *self = Self { scrubs, moments, ..Self::new(self.hash_key) };
            return;
        }
        let Self { hash_key, small, pages, large, .. } = self;
        if small.len() * 4 < small.capacity() {
            small.shrink_to(small.len() * 2, |place| hash_key.hash(pages.record(*place).key).low());
        }
        if large.len() * 4 < large.capacity() {
            large.shrink_to(large.len() * 2, |pair| hash_key.hash(pair.key()).low());
        }
    }

    /// The version of the pair of a key.
    pub(super) fn version(&self, hash: KeyHash, key: &[u8]) -> Option<u64> {
        let of_small = |place: &Place| self.pages.record(*place);
        if let Some(place) = self.small.find(hash.low(), |place| of_small(place).key == key) {
            return Some(of_small(place).version);
        }
        self.large.find(hash.low(), |pair| pair.key() == key).map(Pair::version)
    }

    /// Whether a pair was replaced, and the old one where it was large.
    pub(super) fn put_small(&mut self, hash: KeyHash, record: &Record) -> (bool, Option<Pair>) {
        self.before_change(hash, record.key);
        let Self { small, pages, hash_key, order, ends, scrubs, .. } = self;
        if let Some(place) = small.find_mut(hash.low(), |place| pages.record(*place).key == record.key) {
            let old = pages.record(*place).value;
            self.bytes -= (record.key.len() + old.len()) as u64;
            forget_end(ends, record.key, old);
            scrubs.small_goes(pages, *place);
            let fits = pages.overwrite(*place, record.version, record.value);
            if !fits {
                let old = *place;
                pages.release(old);
                *place = pages.append(record);
                order.replace(pages, old, *place);
            }
            scrubs.small_came(pages, *place);
            if !fits {
                self.tidy();
            }
            self.note_end(record.key, record.value);
            return (true, None);
        }
        let place = pages.append(record);
        scrubs.small_came(pages, place);
        small.insert_unique(hash.low(), place, |place| hash_key.hash(pages.record(*place).key).low());
        order.insert(pages, place);
        self.tidy();
        let old = self.remove_large(hash, record.key);
        if old.is_some() {
            self.shrink();
        }
        self.note_end(record.key, record.value);
        (old.is_some(), old)
    }

    /// Whether a pair was replaced, and the old one where it was large.
    pub(super) fn put_large(&mut self, hash: KeyHash, pair: Pair) -> (bool, Option<Pair>) {
        self.before_change(hash, pair.key());
        let was_small = self.remove_small(hash, pair.key());
        let old = self.remove_large(hash, pair.key());
        self.note_end(pair.key(), pair.value());
        let Self { large, large_order, hash_key, .. } = self;
        large_order.insert(ByKey(pair.clone()));
        large.insert_unique(hash.low(), pair, |pair| hash_key.hash(pair.key()).low());
        if was_small {
            self.shrink();
        }
        (was_small || old.is_some(), old)
    }

    /// Removes a pair: whether it was there, and the pair where it was large.
    pub(super) fn remove(&mut self, hash: KeyHash, key: &[u8]) -> (bool, Option<Pair>) {
        self.before_change(hash, key);
        let was_small = self.remove_small(hash, key);
        let old = if was_small { None } else { self.remove_large(hash, key) };
        if was_small || old.is_some() {
            self.shrink();
        }
        (was_small || old.is_some(), old)
    }

    fn remove_small(&mut self, hash: KeyHash, key: &[u8]) -> bool {
        let Self { small, pages, order, ends, scrubs, .. } = self;
        let Ok(held) = small.find_entry(hash.low(), |place| pages.record(*place).key == key) else {
            return false;
        };
        let (place, _) = held.remove();
        let value = pages.record(place).value;
        self.bytes -= (key.len() + value.len()) as u64;
        forget_end(ends, key, value);
        scrubs.small_goes(pages, place);
        order.remove(pages, place);
        pages.release(place);
        self.tidy();
        true
    }

    fn remove_large(&mut self, hash: KeyHash, key: &[u8]) -> Option<Pair> {
        let held = self.large.find_entry(hash.low(), |pair| pair.key() == key).ok()?;
        let (old, _) = held.remove();
        self.bytes -= old.size() as u64;
        self.large_order.remove(old.key());
        forget_end(&mut self.ends, key, old.value());
        self.scrubs.large_went(&old);
        Some(old)
    }

    fn note_end(&mut self, key: &[u8], stored: &[u8]) {
        if let Some(end_ms) = ttl::end_of(stored) {
            self.ends.insert((end_ms, key.into()));
        }
    }

    /// The ends of pairs of a range, or of all, the first before the others. Only a range costs the hashes.
    pub(super) fn ends_within<'a>(
        &'a self,
        within: Option<&'a HashRange>,
    ) -> impl Iterator<Item = &'a (u64, Box<[u8]>)> {
        let is_within =
            move |key: &[u8]| within.is_none_or(|range| range.contains(self.hash_key.hash(key), key));
        self.ends.iter().filter(move |(_, key)| is_within(key))
    }

    /// What is stored for a key, and its version.
    pub(super) fn held(&self, hash: KeyHash, key: &[u8]) -> Option<Record<'_>> {
        self.slot(hash, key).map(|slot| self.record(slot))
    }

    /// Where the pair of a key lies.
    pub(super) fn slot(&self, hash: KeyHash, key: &[u8]) -> Option<Slot<'_>> {
        if let Some(place) = self.small.find(hash.low(), |place| self.pages.record(*place).key == key) {
            return Some(Slot::Small(*place));
        }
        self.large.find(hash.low(), |pair| pair.key() == key).map(Slot::Large)
    }

    pub(super) fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// Empties pages of which less than half lives. A record lives while the table refers to it.
    fn tidy(&mut self) {
        while let Some(page) = self.pages.next_sparse() {
            for place in self.pages.places(page) {
                let Record { version, key, value } = self.pages.record(place);
                let low = self.hash_key.hash(key).low();
                let Some(slot) = self.small.find_mut(low, |slot| *slot == place) else { continue };
                let (key, value) = (key.to_vec(), value.to_vec());
                self.scrubs.small_goes(&self.pages, place);
                *slot = self.pages.append(&Record { version, key: &key, value: &value });
                self.order.replace(&self.pages, place, *slot);
                self.scrubs.small_came(&self.pages, *slot);
            }
            self.pages.free(page);
        }
    }
}

/// The small and the large pairs of a stripe, as their keys come.
pub(super) struct Ordered<'a, S: Iterator<Item = Place>> {
    stripe: &'a Stripe,
    small: Peekable<S>,
    large: Peekable<btree_set::Range<'a, ByKey>>,
}

impl<'a, S: Iterator<Item = Place>> Iterator for Ordered<'a, S> {
    type Item = Slot<'a>;

    fn next(&mut self) -> Option<Slot<'a>> {
        let small = self.small.peek().map(|place| self.stripe.pages.key(*place));
        let large = self.large.peek().map(|pair| pair.0.key());
        let is_large = large.is_some_and(|large| small.is_none_or(|small| large < small));
        if is_large {
            self.large.next().map(|pair| Slot::Large(&pair.0))
        } else {
            self.small.next().map(Slot::Small)
        }
    }
}

fn forget_end(ends: &mut BTreeSet<(u64, Box<[u8]>)>, key: &[u8], stored: &[u8]) {
    if let Some(end_ms) = ttl::end_of(stored) {
        ends.remove(&(end_ms, key.into()));
    }
}
