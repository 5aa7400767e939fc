//! The map from keys to pairs.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::RwLock;

use super::hash::KeyHash;
use super::pair::Pair;

/// Enough stripes that threads seldom meet at one lock.
const STRIPES: u32 = 256;
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
    /// Where each stripe starts, in the upper half of the hash.
    starts: Box<[u64]>,
    stripes: Box<[RwLock<Stripe>]>,
    versions: AtomicU64,
}

#[derive(Default)]
struct Stripe {
    pairs: HashTable<Pair>,
    bytes: u64,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// The number of pairs.
    pub pairs: u64,
    /// Bytes of all keys and values, without the map's own.
    pub bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        let stripes = (0..STRIPES).map(|_| RwLock::default()).collect();
        Self { starts: stripe_starts(), stripes, versions: AtomicU64::new(0) }
    }

    /// The pair of a key.
    pub fn get(&self, hash: KeyHash, key: &[u8]) -> Option<Pair> {
        let stripe = self.stripe(hash).read();
        stripe.pairs.find(hash.low(), |pair| pair.key() == key).cloned()
    }

    /// Inserts or replaces a pair; true where one was replaced.
    pub fn put(&self, hash: KeyHash, key: &[u8], value: &[u8]) -> bool {
        let mut pair = Pair::new(key, value);
        let mut guard = self.stripe(hash).write();
        let stripe = &mut *guard;
        // The value was copied before the lock was taken, the version is drawn under it: so the order of
        // versions is the order in which writers of one key passed the lock.
        pair.set_version(self.next_version());
        let old = match stripe.pairs.entry(hash.low(), |held| held.key() == key, rehash) {
            Entry::Occupied(mut held) => {
                stripe.bytes += pair.size() as u64;
                stripe.bytes -= held.get().size() as u64;
                Some(std::mem::replace(held.get_mut(), pair))
            }
            Entry::Vacant(place) => {
                stripe.bytes += pair.size() as u64;
                place.insert(pair);
                None
            }
        };
        // The old pair is freed after the lock is let go.
        drop(guard);
        old.is_some()
    }

    /// Deletes a key; true where it was there.
    pub fn delete(&self, hash: KeyHash, key: &[u8]) -> bool {
        let mut stripe = self.stripe(hash).write();
        let Ok(held) = stripe.pairs.find_entry(hash.low(), |pair| pair.key() == key) else { return false };
        let (old, _) = held.remove();
        stripe.bytes -= old.size() as u64;
        drop(stripe);
        drop(old);
        true
    }

    /// How much is held now: exact for each stripe at the moment it is looked at.
    pub fn size(&self) -> Size {
        self.stripes.iter().fold(Size::default(), |sum, stripe| {
            let stripe = stripe.read();
            Size { pairs: sum.pairs + stripe.pairs.len() as u64, bytes: sum.bytes + stripe.bytes }
        })
    }

    fn stripe(&self, hash: KeyHash) -> &RwLock<Stripe> {
        let after = self.starts.partition_point(|start| *start <= hash.high());
        &self.stripes[after - 1]
    }

    fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The widths are one part plus a fraction of a part; neighbours differ, so that a node which owns only some
/// stripes has all widths among them, too.
fn stripe_starts() -> Box<[u64]> {
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

fn rehash(pair: &Pair) -> u64 {
    KeyHash::of(pair.key()).low()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn put(store: &Store, key: &[u8], value: &[u8]) -> bool {
        store.put(KeyHash::of(key), key, value)
    }

    #[test]
    fn versions_of_a_key_only_grow() {
        let store = Store::new();
        let version = || store.get(KeyHash::of(b"k"), b"k").unwrap().version();
        assert!(!put(&store, b"k", b"1"));
        let first = version();
        assert!(put(&store, b"k", b"2"));
        let second = version();
        assert!(first < second);
        assert!(store.delete(KeyHash::of(b"k"), b"k"));
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
        let store = Store::new();
        store.put(KeyHash(0), b"first", b"1");
        store.put(KeyHash(u128::MAX), b"last", b"2");
        let pairs = |stripe: usize| store.stripes[stripe].read().pairs.len();
        assert_eq!((pairs(0), pairs(STRIPES as usize - 1)), (1, 1));
    }

    #[test]
    fn equal_hashes_are_told_apart_by_their_keys() {
        let store = Store::new();
        let hash = KeyHash(7);
        assert!(!store.put(hash, b"a", b"1"));
        assert!(!store.put(hash, b"b", b"2"));
        assert_eq!(store.get(hash, b"a").unwrap().value(), b"1");
        assert_eq!(store.get(hash, b"b").unwrap().value(), b"2");
        assert!(store.get(hash, b"c").is_none());
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(steps in prop::collection::vec((0_u8..3, 0_u8..20, prop::collection::vec(any::<u8>(), 0..9)), 0..200)) {
            let store = Store::new();
            let mut map: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
            for (step, key, value) in steps {
                let key = [key].repeat(usize::from(key % 3));
                let hash = KeyHash::of(&key);
                match step {
                    0 => prop_assert_eq!(store.put(hash, &key, &value), map.insert(key, value).is_some()),
                    1 => prop_assert_eq!(store.delete(hash, &key), map.remove(&key).is_some()),
                    _ => prop_assert_eq!(store.get(hash, &key).map(|pair| pair.value().to_vec()), map.get(&key).cloned()),
                }
                let bytes = map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
                prop_assert_eq!(store.size(), Size { pairs: map.len() as u64, bytes });
            }
        }
    }
}
