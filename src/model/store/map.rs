//! The map from keys to pairs.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use std::convert::Infallible;
use std::iter::Sum;
use std::ops::Add;

use parking_lot::RwLock;

use super::stripe::Stripe;
use super::told::Told;
use crate::model::condition::{Condition, Judgement};
use crate::model::hash::{HashKey, KeyHash};
use crate::model::history::Happened;
use crate::model::pages::{Record, SMALL_BYTES};
use crate::model::pair::Pair;
use crate::model::ttl::{Parts, value_of};
use crate::model::value;

/// Enough stripes that threads seldom meet at one lock.
pub(super) const STRIPES: u32 = 256;
/// Two to the power of 32 over the golden ratio: its multiples, modulo two to the power of 32, are spread evenly,
/// however many of them one looks at.
const GOLDEN: u32 = 0x9e37_79b9;

/// All pairs that a node holds, in stripes by the upper half of the hash.
///
/// A range of the hash space is therefore whole stripes and two edges. Each call takes exactly one stripe
/// lock, or one after the other, and never does I/O under it.
///
/// A stripe's table doubles when it is full. If all stripes were equally wide, all would double at nearly the same number
/// of pairs, and just after that every table would be half empty. So their widths differ, by a factor of up to two, and
/// there is always a part of them that is nearly full.
pub struct Store {
    hash_key: HashKey,
    /// Where each stripe starts, in the upper half of the hash.
    pub(super) starts: Box<[u64]>,
    pub(super) stripes: Box<[RwLock<Stripe>]>,
    /// The last version that was drawn.
    versions: AtomicU64,
    /// How many scrubs were begun.
    scrubs: AtomicU32,
    /// Whether there has been a value with a type of its own.
    has_types: AtomicBool,
    /// Whether there has been a pair with an end.
    has_ends: AtomicBool,
    /// What was done last, for those who watch.
    pub(super) told: Told,
}

/// A pair that was read.
pub enum StoredValue {
    /// A copy of a small one.
    Small {
        /// The version: greater than that of every earlier pair with this key.
        version: u64,
        /// What is stored of the pair, as [`ttl`](crate::model::ttl) has it.
        value: Box<[u8]>,
    },
    /// A handle on a large one.
    Large(Pair),
}

impl StoredValue {
    /// The value, as [`value`](crate::model::value) stores it.
    pub fn value(&self) -> &[u8] {
        self.parts().value
    }

    /// Its end by the group's time, if it has one.
    pub fn end_ms(&self) -> Option<u64> {
        self.parts().end_ms
    }

    fn parts(&self) -> Parts<'_> {
        Parts::of(match self {
            Self::Small { value, .. } => value,
            Self::Large(pair) => pair.value(),
        })
    }

    /// The version: greater than that of every earlier pair with this key.
    pub fn version(&self) -> u64 {
        match self {
            Self::Small { version, .. } => *version,
            Self::Large(pair) => pair.version(),
        }
    }
}

/// A condition does not hold for what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmet {
    /// Its version; nothing where the key is absent.
    pub there: Option<u64>,
}

/// Whether there is no condition, or it holds.
pub(super) fn unless_unmet(
    condition: Option<&Condition>,
    there: impl FnOnce() -> Option<u64>,
) -> Result<(), Unmet> {
    let Some(condition) = condition else { return Ok(()) };
    let there = there();
    if condition.judge(there) == Judgement::Holds { Ok(()) } else { Err(Unmet { there }) }
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// The number of pairs.
    pub pairs: u64,
    /// Bytes of all keys and values, without the map's own.
    pub bytes: u64,
}

impl Size {
    pub(super) fn of_pair(key: &[u8], value: &[u8]) -> Self {
        Self { pairs: 1, bytes: (key.len() + value.len()) as u64 }
    }
}

impl Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { pairs: self.pairs + other.pairs, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), Add::add)
    }
}

impl Store {
    /// An empty store, for keys hashed with this hash key: every hash given to it must come from that.
    pub fn new(hash_key: HashKey) -> Self {
        let stripes = (0..STRIPES).map(|_| RwLock::new(Stripe::new(hash_key))).collect();
        let (versions, scrubs) = (AtomicU64::new(0), AtomicU32::new(0));
        let [has_types, has_ends] = [(); 2].map(|()| AtomicBool::new(false));
        let told = Told::default();
        Self { hash_key, starts: stripe_starts(), stripes, versions, scrubs, has_types, has_ends, told }
    }

    /// What the keys are hashed with.
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// The last version that was drawn or installed; every later one is greater. 0 before the first.
    pub fn index(&self) -> u64 {
        self.versions.load(Ordering::Relaxed)
    }

    /// Makes all later versions greater than this one.
    pub fn raise_index(&self, at_least: u64) {
        self.versions.fetch_max(at_least, Ordering::Relaxed);
    }

    /// Whether there has been a value with a type of its own, here or where all of this came from. It stays so: replicas that have applied the same agree on it, whenever
    /// they were filled.
    pub fn has_types(&self) -> bool {
        self.has_types.load(Ordering::Relaxed)
    }

    /// Notes that there has been one.
    pub fn note_types(&self) {
        self.has_types.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_has_types(&self, has_types: bool) {
        self.has_types.store(has_types, Ordering::Relaxed);
    }

    /// Whether there has been a pair with an end, likewise.
    pub fn has_ends(&self) -> bool {
        self.has_ends.load(Ordering::Relaxed)
    }

    /// Notes that there has been one.
    pub fn note_ends(&self) {
        self.has_ends.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_has_ends(&self, has_ends: bool) {
        self.has_ends.store(has_ends, Ordering::Relaxed);
    }

    pub(super) fn set_index(&self, index: u64) {
        self.versions.store(index, Ordering::Relaxed);
    }

    /// The number of a scrub that begins.
    pub(super) fn next_scrub(&self) -> u32 {
        self.scrubs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The pair of a key.
    pub fn get(&self, hash: KeyHash, key: &[u8]) -> Option<StoredValue> {
        let stripe = self.stripe(hash).read();
        if let Some(place) = stripe.small.find(hash.low(), |place| stripe.pages.record(*place).key == key) {
            let record = stripe.pages.record(*place);
            return Some(StoredValue::Small { version: record.version, value: record.value.into() });
        }
        stripe.large.find(hash.low(), |pair| pair.key() == key).cloned().map(StoredValue::Large)
    }

    /// Inserts or replaces a pair: whether one was replaced, and the version that was drawn.
    pub fn put(&self, hash: KeyHash, key: &[u8], value: &[u8]) -> (bool, u64) {
        self.set(hash, key, value, || self.draw(key, Happened::Put(value_of(value))))
    }

    /// The same if a condition holds.
    ///
    /// # Errors
    /// [`Unmet`], and then nothing was done.
    pub fn put_if(
        &self,
        hash: KeyHash,
        key: &[u8],
        value: &[u8],
        condition: Option<&Condition>,
    ) -> Result<(bool, u64), Unmet> {
        self.set_if(hash, key, value, |stripe| {
            unless_unmet(condition, || stripe.version(hash, key))?;
            Ok(self.draw(key, Happened::Put(value_of(value))))
        })
    }

    /// Inserts or replaces a pair that has its version already, whatever the version of the old one; true where one
    /// was replaced. All versions drawn later are greater.
    pub fn install(&self, hash: KeyHash, key: &[u8], value: &[u8], version: u64) -> bool {
        self.set(hash, key, value, || {
            self.raise_index(version);
            version
        })
        .0
    }

    fn set(&self, hash: KeyHash, key: &[u8], value: &[u8], version: impl FnOnce() -> u64) -> (bool, u64) {
        let Ok(set) = self.set_if(hash, key, value, |_| Ok::<_, Infallible>(version()));
        set
    }

    /// Sets a pair, unless whoever draws its version finds that it is not to be.
    fn set_if<E>(
        &self,
        hash: KeyHash,
        key: &[u8],
        value: &[u8],
        version: impl FnOnce(&Stripe) -> Result<u64, E>,
    ) -> Result<(bool, u64), E> {
        // A large value is copied before the lock is taken, and an old one is freed after it is let go.
        let large = large(key, value);
        let mut stripe = self.stripe(hash).write();
        // The version is drawn under the lock: so the order of versions is the order in which writers of one key
        // passed the lock.
        let version = version(&stripe)?;
        let (replaced, old) = self.place(&mut stripe, hash, &Record { version, key, value }, large);
        drop(stripe);
        drop(old);
        Ok((replaced, version))
    }

    /// Puts a pair into its stripe; one for no page is there already. Whether one was replaced, and the old one where it was large.
    pub(super) fn place(
        &self,
        stripe: &mut Stripe,
        hash: KeyHash,
        record: &Record,
        large: Option<Pair>,
    ) -> (bool, Option<Pair>) {
        let Parts { end_ms, value } = Parts::of(record.value);
        if value::is_typed(value) && !self.has_types() {
            self.note_types();
        }
        if end_ms.is_some() && !self.has_ends() {
            self.note_ends();
        }
        let replaced = match large {
            Some(mut pair) => {
                pair.place(record.version, self.scrubs.load(Ordering::Relaxed));
                stripe.put_large(hash, pair)
            }
            None => stripe.put_small(hash, record),
        };
        stripe.bytes += (record.key.len() + record.value.len()) as u64;
        replaced
    }

    pub(super) fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Deletes a key: the version that was drawn, where it was there.
    pub fn delete(&self, hash: KeyHash, key: &[u8]) -> Option<u64> {
        self.delete_if(hash, key, None).unwrap_or_default()
    }

    /// The same if a condition holds. What is not there is under no condition.
    ///
    /// # Errors
    /// [`Unmet`], and then nothing was done.
    pub fn delete_if(
        &self,
        hash: KeyHash,
        key: &[u8],
        condition: Option<&Condition>,
    ) -> Result<Option<u64>, Unmet> {
        let mut stripe = self.stripe(hash).write();
        if condition.is_some() {
            let Some(there) = stripe.version(hash, key) else { return Ok(None) };
            unless_unmet(condition, || Some(there))?;
        }
        let (removed, old) = stripe.remove(hash, key);
        let version = removed.then(|| self.draw(key, Happened::Deleted));
        drop(stripe);
        drop(old);
        Ok(version)
    }

    /// How much is held now: exact for each stripe at the moment it is looked at.
    pub fn size(&self) -> Size {
        self.stripes.iter().map(|stripe| stripe.read().size(None)).sum()
    }

    pub(super) fn stripe(&self, hash: KeyHash) -> &RwLock<Stripe> {
        &self.stripes[self.stripe_number(hash)]
    }

    pub(super) fn stripe_number(&self, hash: KeyHash) -> usize {
        // The first stripe starts at zero.
        self.starts.partition_point(|start| *start <= hash.high()) - 1
    }
}

/// The pair, where it is none for a page.
pub(super) fn large(key: &[u8], stored: &[u8]) -> Option<Pair> {
    (key.len() + stored.len() > SMALL_BYTES).then(|| Pair::new(key, stored))
}

/// The widths are one part plus a fraction of a part; neighbours differ, so that a node which owns only some
/// stripes has all widths among them, too.
pub(super) fn stripe_starts() -> Box<[u64]> {
    let width = |stripe: u32| (1_u128 << 32) + u128::from(stripe.wrapping_mul(GOLDEN));
    let whole: u128 = (0..STRIPES).map(width).sum();
    let mut before = 0;
    let mut start = |stripe: u32| {
        let start = (before << u64::BITS) / whole;
        before += width(stripe);
        u64::try_from(start).expect("less than the whole is before a stripe")
    };
    (0..STRIPES).map(&mut start).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn put(store: &Store, key: &[u8], value: &[u8]) -> bool {
        store.put(HashKey::PUBLISHED.hash(key), key, value).0
    }

    #[test]
    fn versions_of_a_key_only_grow() {
        let store = Store::new(HashKey::PUBLISHED);
        let version = || store.get(HashKey::PUBLISHED.hash(b"k"), b"k").unwrap().version();
        assert!(!put(&store, b"k", b"1"));
        let first = version();
        assert!(put(&store, b"k", b"2"));
        let second = version();
        assert!(first < second);
        assert!(store.delete(HashKey::PUBLISHED.hash(b"k"), b"k").is_some());
        assert!(!put(&store, b"k", b"3"));
        assert!(second < version());
    }

    #[test]
    fn stripes_differ_in_width_by_a_factor_of_two_at_most() {
        let starts = stripe_starts();
        let ends = starts[1..].iter().map(|start| u128::from(*start)).chain([1 << 64]);
        let widths: Vec<u128> =
            starts.iter().zip(ends).map(|(start, end)| end - u128::from(*start)).collect();
        assert_eq!((starts[0], widths.iter().sum::<u128>()), (0, 1 << 64));
        let (narrowest, widest) = (widths.iter().min().unwrap(), widths.iter().max().unwrap());
        assert!(*widest <= 2 * narrowest && *widest > narrowest * 19 / 10, "{narrowest} to {widest}");
        // A third of them in a row are as different as all of them.
        let average = |widths: &[u128]| widths.iter().sum::<u128>() / widths.len() as u128;
        let (third, all) = (average(&widths[85..170]), average(&widths));
        assert!(third.abs_diff(all) < all / 50, "{third}, {all}");
    }

    #[test]
    fn the_ends_of_the_space_belong_to_the_outermost_stripes() {
        let store = Store::new(HashKey::PUBLISHED);
        store.put(KeyHash(0), b"first", b"1");
        store.put(KeyHash(u128::MAX), b"last", b"2");
        let pairs = |stripe: usize| store.stripes[stripe].read().small.len();
        assert_eq!((pairs(0), pairs(STRIPES as usize - 1)), (1, 1));
    }

    #[test]
    fn equal_hashes_are_told_apart_by_their_keys() {
        let store = Store::new(HashKey::PUBLISHED);
        let hash = KeyHash(7);
        assert!(!store.put(hash, b"a", b"1").0);
        assert!(!store.put(hash, b"b", b"2").0);
        assert_eq!(store.get(hash, b"a").unwrap().value(), b"1");
        assert_eq!(store.get(hash, b"b").unwrap().value(), b"2");
        assert!(store.get(hash, b"c").is_none());
    }

    #[test]
    fn what_is_deleted_leaves_no_room_behind() {
        let (store, keys) = (Store::new(HashKey::PUBLISHED), neighbours());
        for length in [100, 2100] {
            for key in &keys {
                put(&store, key, &vec![b'1'; length]);
            }
            for key in &keys {
                store.delete(HashKey::PUBLISHED.hash(key), key);
            }
            let stripe = store.stripes[0].read();
            let room = (stripe.small.capacity(), stripe.large.capacity(), stripe.pages.capacity());
            assert_eq!(room, (0, 0, 0), "{length} bytes");
        }
    }

    /// Keys that meet in the first stripe, so that its pages fill and are emptied.
    fn neighbours() -> Vec<Vec<u8>> {
        let end = stripe_starts()[1];
        let keys = (0_u32..).map(|number| number.to_string().into_bytes());
        keys.filter(|key| HashKey::PUBLISHED.hash(key).high() < end).take(24).collect()
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(
            steps in prop::collection::vec(
                (0_u8..4, 0_usize..24, prop_oneof![0_usize..9, 900_usize..1100, 1900_usize..2200]),
                0..400,
            )
        ) {
            let (store, keys) = (Store::new(HashKey::PUBLISHED), neighbours());
            let mut map: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
            for (number, (step, key, length)) in steps.into_iter().enumerate() {
                let key = keys[key].clone();
                let hash = HashKey::PUBLISHED.hash(&key);
                let value = [number.to_le_bytes()[0] | b' '].repeat(length);
                match step {
                    0 | 1 => prop_assert_eq!(store.put(hash, &key, &value).0, map.insert(key, value).is_some()),
                    2 => prop_assert_eq!(store.delete(hash, &key).is_some(), map.remove(&key).is_some()),
                    _ => prop_assert_eq!(
                        store.get(hash, &key).map(|held| held.value().to_vec()),
                        map.get(&key).cloned()
                    ),
                }
                let bytes = map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
                prop_assert_eq!(store.size(), Size { pairs: map.len() as u64, bytes });
            }
            for (key, value) in &map {
                let held = store.get(HashKey::PUBLISHED.hash(key), key);
                prop_assert_eq!(held.as_ref().map(StoredValue::value), Some(value.as_slice()));
            }
            // What is dead does not pile up: at most half of each page, and the open page.
            let stripe = store.stripes[0].read();
            let live: usize = map.iter().map(|(key, value)| key.len() + value.len() + 16).sum();
            prop_assert!(stripe.pages.capacity() <= live * 3 + 2 * 14 * 1024, "{}", stripe.pages.capacity());
            // Nor does room in the tables.
            for (count, room) in [
                (stripe.small.len(), stripe.small.capacity()),
                (stripe.large.len(), stripe.large.capacity()),
            ] {
                prop_assert!(room <= count * 4, "room for {room}, and {count} there");
            }
        }
    }
}
