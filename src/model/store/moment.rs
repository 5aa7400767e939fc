//! The pairs of some ranges as they were at one moment, read in pieces while writers go on.
//!
//! Nothing is copied at the moment. Whoever changes a pair that has not been read yet keeps what was there, or that nothing was; a stripe is read in the order of
//! its keys, so it is known of each key whether it was read.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::map::{Size, Store};
use super::scan::{BatchLimit, Copied, Value, copy};
use super::stripe::Stripe;
use crate::model::hash::{HashKey, KeyHash};
use crate::model::range::HashRange;

/// Bytes of what was changed before it was read, and is kept for that. With more than this the rest cannot be read.
const KEPT_BYTES: usize = 256 << 20;
/// What it takes to keep something, beside the bytes of it.
const KEPT_OVERHEAD: usize = 64;

/// The rest of a moment cannot be read: it was given up, what was there was replaced as a whole, or too much was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// A moment, and how far it was read.
pub struct Moment {
    ranges: Vec<HashRange>,
    kept: Arc<Kept>,
    /// The stripes that are still to be read, the next one last.
    stripes: Mutex<Vec<usize>>,
}

/// What belongs to a moment, whichever stripe.
struct Kept {
    hash_key: HashKey,
    number: u32,
    /// Only keys that begin so are read.
    prefix: Box<[u8]>,
    bytes: AtomicUsize,
}

/// More bytes than are ever kept.
const LOST: usize = usize::MAX / 2;

/// What a moment has still to read of a stripe.
struct Unread {
    kept: Arc<Kept>,
    rest: Mutex<Rest>,
}

#[derive(Default)]
struct Rest {
    /// The key that was read last.
    read: Option<Box<[u8]>>,
    /// What was changed since the moment, with what was there.
    before: BTreeMap<Box<[u8]>, Option<Copied>>,
}

impl Rest {
    fn has_read(&self, key: &[u8]) -> bool {
        self.read.as_ref().is_some_and(|read| *key <= **read)
    }
}

/// The moments of which a stripe has something that was not read. None, mostly; then it costs nothing.
#[derive(Default)]
pub(super) struct Moments(Vec<Arc<Unread>>);

impl Kept {
    fn is_lost(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > KEPT_BYTES
    }

    fn give_up(&self) {
        self.bytes.store(LOST, Ordering::Relaxed);
    }
}

impl Stripe {
    /// A pair is about to be changed, to go or to come.
    pub(super) fn before_change(&mut self, hash: KeyHash, key: &[u8]) {
        if self.moments.0.is_empty() {
            return;
        }
        self.moments.0.retain(|unread| !unread.kept.is_lost());
        for unread in &self.moments.0 {
            let mut rest = unread.rest.lock();
            if !key.starts_with(&unread.kept.prefix) || rest.has_read(key) || rest.before.contains_key(key) {
                continue;
            }
            let held = self.slot(hash, key).map(|slot| copy(self, slot));
            let bytes = key.len() + held.as_ref().map_or(0, |held| held.value.bytes().len()) + KEPT_OVERHEAD;
            unread.kept.bytes.fetch_add(bytes, Ordering::Relaxed);
            rest.before.insert(key.into(), held);
        }
    }

    /// Pairs of a range, or all, are about to go.
    pub(super) fn before_removal(&mut self, within: Option<&HashRange>) {
        if self.moments.0.is_empty() {
            return;
        }
        let keys: Vec<Box<[u8]>> = self.records(within).map(|record| record.key.into()).collect();
        for key in keys {
            let hash = self.hash_key().hash(&key);
            self.before_change(hash, &key);
        }
    }
}

impl Store {
    /// Begins to read what some ranges, which do not overlap, have at this moment of keys that begin alike. As long as this takes, whoever calls it holds all writers back; that is a look at every
    /// stripe.
    pub fn begin_moment(&self, ranges: Vec<HashRange>, prefix: &[u8]) -> Moment {
        let (number, hash_key) = (self.next_scrub(), self.hash_key());
        let kept = Arc::new(Kept { hash_key, number, prefix: prefix.into(), bytes: AtomicUsize::new(0) });
        let mut stripes: Vec<usize> = ranges.iter().flat_map(|range| self.stripes_of(range)).collect();
        stripes.sort_unstable_by(|a, b| b.cmp(a));
        stripes.dedup();
        stripes.retain(|number| {
            let mut stripe = self.stripes[*number].write();
            let has_pairs = stripe.len() > 0;
            if has_pairs {
                let unread = Unread { kept: Arc::clone(&kept), rest: Mutex::default() };
                stripe.moments.0.push(Arc::new(unread));
            }
            has_pairs
        });
        Moment { ranges, kept, stripes: Mutex::new(stripes) }
    }

    /// The next pairs of a moment, in no order: at least one, but at the end, and mostly so many. The writers of a stripe wait for no more than that and as many looks.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn read_moment(&self, moment: &Moment, limit: BatchLimit) -> Result<Vec<Copied>, Lost> {
        let mut stripes = moment.stripes.lock();
        let mut pairs = Vec::new();
        while pairs.is_empty()
            && let Some(number) = stripes.last().copied()
        {
            let stripe = self.stripes[number].read();
            let unread = stripe.moments.of(&moment.kept).cloned();
            let unread = unread.filter(|_| !moment.kept.is_lost()).ok_or(Lost)?;
            let is_over = moment.read_stripe(&stripe, &unread, limit, &mut pairs);
            drop(stripe);
            if is_over {
                stripes.pop();
                self.stripes[number].write().moments.forget(&moment.kept);
            }
        }
        Ok(pairs)
    }
}

impl Moment {
    /// The ranges whose pairs are read.
    pub fn ranges(&self) -> &[HashRange] {
        &self.ranges
    }

    /// Nothing is kept for it any more, and the rest of it cannot be read.
    pub fn give_up(&self) {
        self.kept.give_up();
    }

    /// Reads on in a stripe; whether that was all of it.
    fn read_stripe(
        &self,
        stripe: &Stripe,
        unread: &Unread,
        limit: BatchLimit,
        pairs: &mut Vec<Copied>,
    ) -> bool {
        let mut rest = unread.rest.lock();
        let from = rest.read.clone();
        let from = from.as_deref().map_or(Bound::Included(&*self.kept.prefix), Bound::Excluded);
        let (mut now, mut size, mut looks) = (stripe.ordered(from).peekable(), Size::default(), 0);
        loop {
            let there = now.peek().map(|slot| stripe.record(*slot).key);
            let kept = rest.before.first_key_value().map(|(key, _)| &**key);
            let Some(key) = there.into_iter().chain(kept).min() else { return true };
            if !key.starts_with(&self.kept.prefix) {
                return true;
            }
            let (is_there, is_kept) = (there == Some(key), kept == Some(key));
            let key: Box<[u8]> = key.into();
            let pair = match (is_there, is_kept) {
                (_, true) => rest.before.first_key_value().and_then(|(_, kept)| kept.as_ref().map(copied)),
                (_, false) => now.peek().map(|slot| copy(stripe, *slot)),
            };
            let hash = self.kept.hash_key.hash(&key);
            let pair = pair.filter(|_| self.ranges.iter().any(|range| range.contains(hash, &key)));
            if let Some(pair) = pair {
                let with_it = size + Size::of_pair(&pair.key, pair.value.bytes());
                if !pairs.is_empty() && !limit.allows(with_it) {
                    return false;
                }
                size = with_it;
                pairs.push(pair);
            }
            if is_there {
                now.next();
            }
            if is_kept {
                rest.before.pop_first();
            }
            rest.read = Some(key);
            looks += 1;
            if looks >= limit.pairs {
                return false;
            }
        }
    }
}

/// The same pair once more; a large one is not copied.
fn copied(pair: &Copied) -> Copied {
    let value = match &pair.value {
        Value::Small(bytes) => Value::Small(bytes.clone()),
        Value::Large(large) => Value::Large(large.clone()),
    };
    Copied { key: pair.key.clone(), version: pair.version, value }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // Whoever changes a pair forgets it then.
        self.give_up();
    }
}

impl Moments {
    fn of(&self, kept: &Kept) -> Option<&Arc<Unread>> {
        self.0.iter().find(|unread| unread.kept.number == kept.number)
    }

    fn forget(&mut self, kept: &Kept) {
        self.0.retain(|unread| unread.kept.number != kept.number);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::trial::{Step, Trial, range, step};
    use super::*;

    type Pairs = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

    #[derive(Debug, Clone)]
    enum Move {
        Write(Step),
        Begin(HashRange, Option<u8>),
        Read(usize, BatchLimit),
    }

    fn one_move() -> impl Strategy<Value = Move> {
        let few = || prop_oneof![3 => 1_usize..4, 1 => Just(usize::MAX)];
        let limit = (few(), prop_oneof![1 => 0_usize..4000, 1 => Just(usize::MAX)]);
        prop_oneof![
            20 => step().prop_map(Move::Write),
            2 => (range(), prop::option::of(prop_oneof![Just(1_u8), Just(0x80)]))
                .prop_map(|(range, prefix)| Move::Begin(range, prefix)),
            10 => (0_usize..3, limit).prop_map(|(which, (pairs, bytes))| Move::Read(which, BatchLimit { pairs, bytes })),
        ]
    }

    fn take(seen: &mut Pairs, pairs: Vec<Copied>) {
        for pair in pairs {
            let before = seen.insert(pair.key.to_vec(), (pair.value.bytes().to_vec(), pair.version));
            assert!(before.is_none(), "{:?} is read twice", pair.key);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn what_was_there_is_read_whatever_writers_do_meanwhile(moves in prop::collection::vec(one_move(), 0..200)) {
            let mut trial = Trial::new();
            let mut running: Vec<(Moment, Pairs, Pairs)> = Vec::new();
            for one in moves {
                match one {
                    Move::Write(step) => trial.take(step),
                    Move::Begin(range, prefix) => {
                        let prefix: Vec<u8> = prefix.into_iter().collect();
                        let held = trial.now.within(&range).filter(|(point, _)| point.key.starts_with(&prefix));
                        let wanted = held.map(|(point, pair)| (point.key.to_vec(), pair.clone())).collect();
                        running.push((trial.store.begin_moment(vec![range], &prefix), wanted, Pairs::new()));
                    }
                    Move::Read(which, limit) if which < running.len() => {
                        let (moment, _, seen) = &mut running[which];
                        take(seen, trial.store.read_moment(moment, limit).expect("it can be read"));
                    }
                    Move::Read(..) => {}
                }
            }
            for (moment, wanted, mut seen) in running {
                loop {
                    let limit = BatchLimit { pairs: 3, bytes: usize::MAX };
                    let pairs = trial.store.read_moment(&moment, limit).expect("it can be read");
                    if pairs.is_empty() {
                        break;
                    }
                    take(&mut seen, pairs);
                }
                prop_assert_eq!(seen, wanted);
                prop_assert!(trial.store.stripes.iter().all(|stripe| stripe.read().moments.of(&moment.kept).is_none()));
            }
        }
    }

    #[test]
    fn what_is_given_up_or_replaced_is_lost_and_nothing_is_kept_for_it() {
        let filled = || {
            let store = Store::new(HashKey::PUBLISHED);
            for number in 0..2000_u32 {
                let key = number.to_be_bytes();
                store.put(HashKey::PUBLISHED.hash(&key), &key, b"1");
            }
            store
        };
        let (store, limit) = (filled(), BatchLimit { pairs: 10, bytes: usize::MAX });
        let moment = store.begin_moment(vec![HashRange::all()], b"");
        assert!(store.read_moment(&moment, limit).is_ok());
        moment.give_up();
        assert_eq!(store.read_moment(&moment, limit).map(|_| ()), Err(Lost));
        let replaced = store.begin_moment(vec![HashRange::all()], b"");
        store.replace(filled());
        assert_eq!(store.read_moment(&replaced, limit).map(|_| ()), Err(Lost));
        let dropped = store.begin_moment(vec![HashRange::all()], b"");
        drop(dropped);
        for number in 0..2000_u32 {
            let key = number.to_be_bytes();
            store.put(HashKey::PUBLISHED.hash(&key), &key, b"2");
        }
        assert!(store.stripes.iter().all(|stripe| stripe.read().moments.is_empty()));
    }
}
