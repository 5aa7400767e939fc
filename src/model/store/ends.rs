//! The pairs that have an end: their times, which of them are over, and how they go.
//!
//! Each stripe has an index of its own ones, which is changed with the pairs under one lock. So it needs no memory for pairs without an end, and says nothing of a pair
//! that was written anew since.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use parking_lot::RwLock;

use super::map::{Store, Unmet, large, unless_unmet};
use super::stripe::Stripe;
use crate::model::condition::Condition;
use crate::model::hash::KeyHash;
use crate::model::history::Happened;
use crate::model::pages::Record;
use crate::model::range::HashRange;
use crate::model::ttl::{Parts, end_of};

impl Store {
    /// The first end of all pairs of some ranges.
    pub fn first_end(&self, ranges: &[HashRange]) -> Option<u64> {
        let of_part = |range| {
            let ends = self.parts(range);
            ends.filter_map(|part| part.stripe.read().ends_within(part.within).next().map(|(end, _)| *end))
                .min()
        };
        ranges.iter().filter_map(of_part).min()
    }

    /// The keys of pairs of some ranges whose end is before a time, so many at most: those that end first, and of those that end at once the first in the order of keys.
    /// So equal stores say the same, in whatever stripes their pairs lie.
    pub fn over(&self, ranges: &[HashRange], time_ms: u64, most: usize) -> Vec<Box<[u8]>> {
        // Two ranges may meet in one stripe, which is locked once only: a writer may wait for it.
        let mut parts: BTreeMap<usize, (&RwLock<Stripe>, Vec<Option<&HashRange>>)> = BTreeMap::new();
        for part in ranges.iter().flat_map(|range| self.parts(range)) {
            let place = std::ptr::from_ref(part.stripe).addr();
            parts.entry(place).or_insert((part.stripe, Vec::new())).1.push(part.within);
        }
        let stripes: Vec<_> = parts.into_values().map(|(stripe, withins)| (stripe.read(), withins)).collect();
        let mut ends: Vec<_> = stripes
            .iter()
            .flat_map(|(stripe, withins)| withins.iter().map(|within| stripe.ends_within(*within)))
            .collect();
        let first = |(part, ends): (usize, &mut _)| Some(Reverse((Iterator::next(ends)?, part)));
        let mut next: BinaryHeap<_> = ends.iter_mut().enumerate().filter_map(first).collect();
        let mut over = Vec::new();
        while over.len() < most
            && let Some(Reverse(((end_ms, key), part))) = next.pop()
            && *end_ms < time_ms
        {
            over.push(key.clone());
            next.extend(ends[part].next().map(|end| Reverse((end, part))));
        }
        over
    }

    /// The end of a pair, if it is there and has one.
    pub fn end_of(&self, hash: KeyHash, key: &[u8]) -> Option<u64> {
        if !self.has_ends() {
            return None;
        }
        self.stripe(hash).read().held(hash, key).and_then(|held| end_of(held.value))
    }

    /// Removes a pair if its end is before a time; whether it was there and is gone. It draws a version only where that is told to those who watch.
    pub fn end(&self, hash: KeyHash, key: &[u8], time_ms: u64) -> bool {
        let mut stripe = self.stripe(hash).write();
        let end_ms = stripe.held(hash, key).and_then(|held| end_of(held.value));
        if end_ms.is_none_or(|end_ms| end_ms >= time_ms) {
            return false;
        }
        let (removed, old) = stripe.remove(hash, key);
        if removed && self.keeps_history() {
            self.draw(key, Happened::Expired);
        }
        drop(stripe);
        drop(old);
        removed
    }

    /// Gives a pair another end, or none, if a condition holds: its version, which stays, where it is there. What is not there is under no condition.
    ///
    /// # Errors
    /// [`Unmet`], and then nothing was done.
    pub fn touch_if(
        &self,
        hash: KeyHash,
        key: &[u8],
        end_ms: Option<u64>,
        condition: Option<&Condition>,
    ) -> Result<Option<u64>, Unmet> {
        let mut stripe = self.stripe(hash).write();
        let Some(Record { version, value, .. }) = stripe.held(hash, key) else { return Ok(None) };
        unless_unmet(condition, || Some(version))?;
        let stored = Parts { end_ms, ..Parts::of(value) }.stored().into_owned();
        let record = Record { version, key, value: &stored };
        let (_, old) = self.place(&mut stripe, hash, &record, large(key, &stored));
        drop(stripe);
        drop(old);
        Ok(Some(version))
    }

    /// Moves the ends of the pairs of a range by so many milliseconds: they came from a group whose time shows so much less. What `hold` returns is held for one stripe after
    /// the other.
    ///
    /// # Errors
    /// That of `hold`; then the rest is as it was.
    pub fn shift_ends<T, E>(
        &self,
        range: &HashRange,
        shift_ms: i64,
        mut hold: impl FnMut() -> Result<T, E>,
    ) -> Result<(), E> {
        for part in self.parts(range) {
            let _held = hold()?;
            let mut stripe = part.stripe.write();
            let keys: Vec<_> = stripe.ends_within(part.within).map(|(_, key)| key.clone()).collect();
            for key in keys {
                let hash = self.hash_key().hash(&key);
                let Some(Record { version, value, .. }) = stripe.held(hash, &key) else { continue };
                let parts = Parts::of(value);
                let end_ms = parts.end_ms.map(|end_ms| end_ms.saturating_add_signed(shift_ms));
                let stored = Parts { end_ms, ..parts }.stored().into_owned();
                let record = Record { version, key: &key, value: &stored };
                drop(self.place(&mut stripe, hash, &record, large(&key, &stored)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::hash::HashKey;

    const HASH_KEY: HashKey = HashKey::FIRST_BYTE;

    fn put(store: &Store, key: &[u8], end_ms: Option<u64>, length: usize) {
        let value = vec![b'1'; length];
        store.put(HASH_KEY.hash(key), key, &Parts { end_ms, value: &value }.stored());
    }

    fn all(store: &Store) -> Vec<(u64, Box<[u8]>)> {
        let mut ends = Vec::new();
        for stripe in &store.stripes {
            ends.extend(stripe.read().ends.iter().cloned());
        }
        ends.sort();
        ends
    }

    #[test]
    fn a_pair_is_there_until_the_time_is_after_its_end() {
        let store = Store::new(HASH_KEY);
        put(&store, b"a", Some(100), 1);
        let over = |time_ms| store.over(&[HashRange::all()], time_ms, 9).len();
        assert_eq!((over(100), over(101)), (0, 1));
        let hash = HASH_KEY.hash(b"a");
        assert!(!store.end(hash, b"a", 100));
        assert!(store.end(hash, b"a", 101) && store.get(hash, b"a").is_none());
        assert!(!store.end(hash, b"a", 101), "it is gone");
        assert_eq!((store.index(), all(&store)), (1, Vec::new()));
    }

    #[test]
    fn a_touched_pair_keeps_value_and_version() {
        let store = Store::new(HASH_KEY);
        for length in [1, 3000] {
            put(&store, b"a", None, length);
            let hash = HASH_KEY.hash(b"a");
            let (version, sum) = (store.index(), store.checksum(&HashRange::all()));
            for end_ms in [Some(100), Some(1 << 40), None] {
                assert_eq!(store.touch_if(hash, b"a", end_ms, None), Ok(Some(version)));
                let held = store.get(hash, b"a").unwrap();
                assert_eq!((held.version(), held.end_ms(), held.value().len()), (version, end_ms, length));
                assert_eq!(store.checksum(&HashRange::all()), sum);
                assert_eq!(store.size(), store.size_of(&HashRange { to: None, ..HashRange::all() }));
            }
            assert_eq!(store.touch_if(HASH_KEY.hash(b"b"), b"b", None, None), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn the_index_is_that_of_the_pairs_and_over_are_the_first(
            steps in prop::collection::vec(
                (0_u8..8, 0_u8..12, prop::option::of(0_u64..300), prop_oneof![0_usize..9, 2000_usize..2100]),
                0..200,
            )
        ) {
            let store = Store::new(HASH_KEY);
            let mut model: BTreeMap<Vec<u8>, Option<u64>> = BTreeMap::new();
            for (step, key, end_ms, length) in steps {
                let key = vec![key * 20, 7];
                let hash = HASH_KEY.hash(&key);
                let half = HashRange { to: Some(crate::model::range::Point::before_hash(HASH_KEY.hash(&[100]).0)), ..HashRange::all() };
                match step {
                    0..3 => {
                        put(&store, &key, end_ms, length);
                        model.insert(key, end_ms);
                    }
                    3 => {
                        store.delete(hash, &key);
                        model.remove(&key);
                    }
                    4 => {
                        store.touch_if(hash, &key, end_ms, None).unwrap();
                        model.entry(key).and_modify(|held| *held = end_ms);
                    }
                    5 => {
                        store.remove_range(&half);
                        model.retain(|key, _| !half.contains(HASH_KEY.hash(key), key));
                    }
                    6 => {
                        store.shift_ends(&half, -5, || Ok::<_, ()>(())).unwrap();
                        for (key, end_ms) in &mut model {
                            if half.contains(HASH_KEY.hash(key), key) {
                                *end_ms = end_ms.map(|end_ms| end_ms.saturating_sub(5));
                            }
                        }
                    }
                    _ => {
                        let time_ms = end_ms.unwrap_or(0);
                        let mut over: Vec<(u64, Box<[u8]>)> = model.iter()
                            .filter_map(|(key, end)| Some((*end.as_ref()?, key.clone().into())))
                            .filter(|(end, _)| *end < time_ms).collect();
                        over.sort();
                        let over: Vec<Box<[u8]>> = over.into_iter().map(|(_, key)| key).take(3).collect();
                        let rest = HashRange { from: half.to.clone().unwrap(), to: None };
                        prop_assert_eq!(&store.over(&[half, rest], time_ms, 3), &over);
                        for key in over {
                            prop_assert!(store.end(HASH_KEY.hash(&key), &key, time_ms));
                            model.remove(&*key);
                        }
                    }
                }
                let mut ends: Vec<(u64, Box<[u8]>)> = model.iter()
                    .filter_map(|(key, end)| Some((*end.as_ref()?, key.clone().into()))).collect();
                ends.sort();
                prop_assert_eq!(store.first_end(&[HashRange::all()]), ends.first().map(|(end, _)| *end));
                prop_assert_eq!(all(&store), ends);
            }
        }
    }
}
