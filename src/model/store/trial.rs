//! What is asked of ranges, tried against an ordered map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::map::stripe_starts;
use super::{Batch, BatchLimit, Checksum, Size, Store, Value};
use crate::model::changes::Changes;
use crate::model::hash::{HashKey, KeyHash};
use crate::model::range::{HashRange, Point};

const NO_LIMIT: BatchLimit = BatchLimit { pairs: usize::MAX, bytes: usize::MAX };

/// The state as it ought to be: (value, version) by place, and the last version.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) pairs: BTreeMap<Point, (Vec<u8>, u64)>,
    index: u64,
}

impl Model {
    pub(super) fn within(&self, range: &HashRange) -> impl Iterator<Item = (&Point, &(Vec<u8>, u64))> {
        self.pairs
            .iter()
            .filter(|(point, _)| range.from <= **point && range.to.as_ref().is_none_or(|to| *point < to))
    }

    fn size_of(&self, range: &HashRange) -> Size {
        self.within(range).map(|(point, (value, _))| Size::of_pair(&point.key, value)).sum()
    }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Put(Point, Vec<u8>),
    Delete(Point),
    Install(Point, Vec<u8>, u64),
    RemoveRange(HashRange),
    RemoveSome(HashRange, usize),
    /// From here on changes are noted.
    Cut,
}

fn place(key: &[u8]) -> Point {
    Point::of(HashKey::FIRST_BYTE.hash(key), key)
}

/// A few hashes, of the first, the last and other stripes, with several keys each.
fn key() -> impl Strategy<Value = Point> {
    (select(&[0_u8, 1, 2, 0x80, 0xff][..]), select(&["", "a", "ab", "b", "\u{1}"][..]))
        .prop_map(|(first, rest)| place(&[&[first], rest.as_bytes()].concat()))
}

/// Cuts at keys, between those of one hash, before a hash, and between stripes.
fn cut() -> impl Strategy<Value = Point> {
    let starts: Vec<Point> =
        stripe_starts().iter().map(|start| Point::before_hash(u128::from(*start) << 64)).collect();
    prop_oneof![
        3 => key(),
        1 => key().prop_map(|key| Point::before_hash(key.hash)),
        1 => key().prop_map(|key| Point { key: [&key.key[..], b"\0"].concat().into(), ..key }),
        1 => select(starts),
    ]
}

pub(super) fn range() -> impl Strategy<Value = HashRange> {
    (cut(), prop::option::of(cut())).prop_filter_map("an empty range", |(a, b)| match b {
        Some(b) if a == b => None,
        Some(b) if b < a => Some(HashRange { from: b, to: Some(a) }),
        to => Some(HashRange { from: a, to }),
    })
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), prop_oneof![4 => 0_usize..6, 1 => 900_usize..1100, 1 => 2000_usize..2600])
        .prop_map(|(byte, length)| vec![byte; length])
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (key(), value()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => key().prop_map(Step::Delete),
        4 => (key(), value(), 0_u64..60).prop_map(|(key, value, version)| Step::Install(key, value, version)),
        1 => range().prop_map(Step::RemoveRange),
        1 => (range(), 0_usize..4).prop_map(|(range, most)| Step::RemoveSome(range, most)),
        1 => Just(Step::Cut),
    ]
}

fn limit() -> impl Strategy<Value = BatchLimit> {
    (prop_oneof![0_usize..6, Just(usize::MAX)], prop_oneof![0_usize..5000, Just(usize::MAX)])
        .prop_map(|(pairs, bytes)| BatchLimit { pairs, bytes })
}

/// The store, the model of it now and at the cut, and the changes since the cut.
pub(super) struct Trial {
    pub(super) store: Store,
    pub(super) now: Model,
    then: Model,
    since: Changes,
}

impl Trial {
    pub(super) fn new() -> Self {
        let (now, then) = (Model::default(), Model::default());
        Self { store: Store::new(HashKey::FIRST_BYTE), now, then, since: Changes::new() }
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Put(key, value) => {
                self.now.index += 1;
                let (replaced, _) = self.store.put(KeyHash(key.hash), &key.key, &value);
                assert_eq!(replaced, self.set(key, value, self.now.index));
            }
            Step::Install(key, value, version) => {
                self.now.index = self.now.index.max(version);
                let replaced = self.store.install(KeyHash(key.hash), &key.key, &value, version);
                assert_eq!(replaced, self.set(key, value, version));
            }
            Step::Delete(key) => {
                let deleted = self.now.pairs.remove(&key).is_some();
                assert_eq!(self.store.delete(KeyHash(key.hash), &key.key).is_some(), deleted);
                self.now.index += u64::from(deleted);
                if deleted {
                    self.since.note_deleted(key);
                }
            }
            Step::RemoveRange(range) => self.remove(&range, usize::MAX),
            Step::RemoveSome(range, most) => self.remove(&range, most),
            Step::Cut => (self.then, self.since) = (self.now.clone(), Changes::new()),
        }
        assert_eq!(self.store.index(), self.now.index);
        assert_eq!(self.store.size(), self.now.size_of(&HashRange::all()));
    }

    fn set(&mut self, key: Point, value: Vec<u8>, version: u64) -> bool {
        let replaced = self.now.pairs.insert(key.clone(), (value, version)).is_some();
        if !replaced {
            self.since.note_created(key);
        }
        replaced
    }

    fn remove(&mut self, range: &HashRange, most: usize) {
        let held: Vec<Point> = self.now.within(range).map(|(key, _)| key.clone()).collect();
        let removed = if most == usize::MAX {
            self.store.remove_range(range)
        } else {
            self.store.remove_some(range, most)
        };
        let removed = usize::try_from(removed).unwrap();
        assert!(removed <= held.len() && removed >= held.len().min(most.max(1)), "{removed} of {held:?}");
        // The first ones are gone, up to the end of a stripe: the stripe of the last one has no more of the range.
        let stripe = |key: &Point| self.store.stripe_number(KeyHash(key.hash));
        let last_needed = held.get(most.clamp(1, held.len().max(1)) - 1).map(stripe);
        assert_eq!(removed, held.iter().filter(|key| Some(stripe(key)) <= last_needed).count());
        for key in held.into_iter().take(removed) {
            self.now.pairs.remove(&key);
            self.since.note_deleted(key);
        }
    }

    fn check(&self, range: &HashRange, limit: BatchLimit) {
        assert_eq!(self.store.size_of(range), self.now.size_of(range));
        self.check_scan(range, limit);
        self.check_pieces(range, limit);
        self.check_checksum(range);
    }

    fn check_scan(&self, range: &HashRange, limit: BatchLimit) {
        let (mut seen, mut left) = (Vec::new(), Some(range.clone()));
        while let Some(range) = left {
            let Batch { pairs, rest } = self.store.scan(&range, limit);
            let bytes: usize = pairs.iter().map(|pair| pair.key.len() + pair.value.bytes().len()).sum();
            assert!(pairs.len() <= limit.pairs.max(1), "{} pairs", pairs.len());
            assert!(bytes <= limit.bytes || pairs.len() == 1, "{bytes} bytes");
            assert_eq!(pairs.is_empty(), self.now.size_of(&range).pairs == 0);
            if let Some(rest) = &rest {
                assert!(rest.from > range.from && rest.to == range.to && !pairs.is_empty());
                let taken = HashRange { from: range.from, to: Some(rest.from.clone()) };
                assert_eq!(self.now.size_of(&taken), Size { pairs: pairs.len() as u64, bytes: bytes as u64 });
            }
            for pair in pairs {
                let large = matches!(pair.value, Value::Large(_));
                assert_eq!(large, pair.key.len() + pair.value.bytes().len() > 2048);
                seen.push((place(&pair.key), (pair.value.bytes().to_vec(), pair.version)));
            }
            left = rest;
        }
        let wanted: Vec<_> = self.now.within(range).map(|(key, pair)| (key.clone(), pair.clone())).collect();
        assert_eq!(seen, wanted);
    }

    fn check_pieces(&self, range: &HashRange, limit: BatchLimit) {
        let pieces = self.store.pieces(range, limit);
        let mut from = Some(range.from.clone());
        for (piece, size) in &pieces {
            assert_eq!(from.as_ref(), Some(&piece.from));
            assert!(piece.to.as_ref().is_none_or(|to| piece.from < *to));
            assert!(limit.allows(*size) || size.pairs == 1, "{size:?}");
            assert_eq!(*size, self.now.size_of(piece));
            from.clone_from(&piece.to);
        }
        assert_eq!(from, range.to);
        // No two neighbours would have fitted one piece.
        for pair in pieces.windows(2) {
            assert!(!limit.allows(pair[0].1 + pair[1].1), "{pair:?}");
        }
    }

    fn check_checksum(&self, range: &HashRange) {
        let other = Store::new(HashKey::FIRST_BYTE);
        for (key, (value, version)) in self.now.within(range).collect::<Vec<_>>().into_iter().rev() {
            other.install(KeyHash(key.hash), &key.key, value, *version);
        }
        assert_eq!(self.store.checksum(range), other.checksum(&HashRange::all()));
    }

    fn check_places(&self, range: &HashRange) {
        let keys: Vec<Point> = self.then.within(range).map(|(key, _)| key.clone()).collect();
        let questions: Vec<_> = (0..).zip(&keys).map(|(rank, _)| (range.clone(), rank)).collect();
        assert_eq!(self.store.places(&questions, &self.since), Some(keys.clone()));
        // Not all of them, and the last one twice.
        let some: Vec<_> = questions.iter().skip(1).step_by(2).chain(questions.last()).cloned().collect();
        let wanted = keys.iter().skip(1).step_by(2).chain(keys.last()).cloned().collect();
        assert_eq!(self.store.places(&some, &self.since), Some(wanted));
        let beyond = [(range.clone(), keys.len() as u64)];
        assert_eq!(self.store.places(&beyond, &self.since), None);
    }
}

proptest! {
    #[test]
    fn ranges_are_those_of_an_ordered_map(
        steps in prop::collection::vec(step(), 0..60),
        questions in prop::collection::vec((range(), limit()), 1..8),
    ) {
        let mut trial = Trial::new();
        for step in steps {
            trial.take(step);
        }
        for (range, limit) in questions {
            trial.check(&range, limit);
            trial.check_places(&range);
        }
        trial.check(&HashRange::all(), NO_LIMIT);
        trial.check_places(&HashRange::all());
    }
}

fn filled(pairs: u64) -> Store {
    filled_with(pairs, b"\"value\"")
}

fn filled_with(pairs: u64, value: &[u8]) -> Store {
    let store = Store::new(HashKey::PUBLISHED);
    for number in 0..pairs {
        let key = format!("key{number}");
        store.put(HashKey::PUBLISHED.hash(key.as_bytes()), key.as_bytes(), value);
    }
    store
}

fn from_hash_to_hash(from: u128, to: u128) -> HashRange {
    HashRange { from: Point::before_hash(from), to: Some(Point::before_hash(to)) }
}

#[test]
fn a_range_without_a_point_holds_nothing() {
    let store = filled(1000);
    for (from, to) in [(0, 0), (7 << 120, 7 << 120), (9 << 120, 2 << 120), (1 << 127, (1 << 127) - 1)] {
        let range = from_hash_to_hash(from, to);
        assert_eq!(store.size_of(&range), Size::default());
        assert_eq!(store.checksum(&range), Checksum::default());
        assert!(store.scan(&range, NO_LIMIT).pairs.is_empty());
        assert_eq!(store.pieces(&range, NO_LIMIT).len(), 1);
        assert_eq!(store.places(&[(range.clone(), 0)], &Changes::new()), None);
        assert_eq!(store.remove_range(&range), 0);
    }
    assert_eq!(store.size().pairs, 1000);
}

#[test]
fn versions_are_drawn_by_what_changes_a_pair_and_raised_by_what_is_installed() {
    let store = Store::new(HashKey::PUBLISHED);
    let (a, hash) = (&b"a"[..], HashKey::PUBLISHED.hash(b"a"));
    assert_eq!(store.index(), 0);
    assert!(store.delete(hash, a).is_none());
    assert_eq!(store.index(), 0);
    store.put(hash, a, b"1");
    assert!(store.delete(hash, a).is_some());
    assert_eq!(store.index(), 2);
    assert!(!store.install(hash, a, b"2", 10));
    assert_eq!((store.index(), store.get(hash, a).unwrap().version()), (10, 10));
    assert!(store.install(hash, a, b"3", 4));
    assert_eq!((store.index(), store.get(hash, a).unwrap().version()), (10, 4));
    store.raise_index(20);
    store.raise_index(5);
    store.put(hash, a, b"4");
    assert_eq!(store.get(hash, a).unwrap().version(), 21);
    assert_eq!(store.remove_range(&HashRange::all()), 1);
    assert_eq!(store.index(), 21);
}

#[test]
fn ranges_next_to_each_other_add_up() {
    let store = filled(5000);
    let cuts = [0, 3 << 118, 5 << 124, 1 << 127, u128::MAX];
    let mut ranges: Vec<_> = cuts.windows(2).map(|cuts| from_hash_to_hash(cuts[0], cuts[1])).collect();
    ranges.push(HashRange { from: Point::before_hash(u128::MAX), to: None });
    assert_eq!(ranges.iter().map(|range| store.size_of(range)).sum::<Size>(), store.size());
    let whole = store.checksum(&HashRange::all());
    assert_eq!(ranges.iter().map(|range| store.checksum(range)).sum::<Checksum>(), whole);
    assert_eq!(ranges.iter().map(|range| store.remove_range(range)).sum::<u64>(), 5000);
    assert_eq!((store.size(), store.checksum(&HashRange::all())), (Size::default(), Checksum::default()));
}

#[test]
fn a_checksum_tells_apart_what_differs_and_stays_the_same_between_versions() {
    let one = |hash_key: HashKey, key: &[u8], value: &[u8], version: u64| {
        let store = Store::new(hash_key);
        store.install(hash_key.hash(key), key, value, version);
        store.checksum(&HashRange::all())
    };
    let published = one(HashKey::PUBLISHED, b"ab", b"1", 7);
    let others = [
        one(HashKey::PUBLISHED, b"a", b"b1", 7),
        one(HashKey::PUBLISHED, b"ab", b"2", 7),
        one(HashKey::PUBLISHED, b"ab", b"1", 8),
        one(HashKey::new(1, 2), b"ab", b"1", 7),
    ];
    for other in others {
        assert!(other.pairs == 1 && other.sum != published.sum, "{other:?}");
    }
    let text = serde_json::to_string(&published).unwrap();
    assert_eq!(text, r#"{"pairs":1,"sum":"d45bd4627ed54441da0fb04a973cdfce"}"#);
    assert_eq!(serde_json::from_str::<Checksum>(&text).unwrap(), published);
}

#[test]
fn the_memory_of_what_was_removed_is_given_back() {
    // Some four pages for each stripe.
    let store = filled_with(60_000, &[b'1'; 200]);
    let all = HashRange::all();
    for (piece, size) in store.pieces(&all, BatchLimit { pairs: 50, bytes: usize::MAX }) {
        // One of ten stays.
        let keys = store.scan(&piece, NO_LIMIT).pairs;
        let first =
            keys.first().map(|pair| Point::of(HashKey::PUBLISHED.hash(&pair.key), &pair.key)).unwrap();
        let after = keys.get(5).map(|pair| Point::of(HashKey::PUBLISHED.hash(&pair.key), &pair.key));
        let rest = HashRange { from: after.clone().unwrap_or(first), to: piece.to.clone() };
        let stay = after.map_or(0, |_| 5);
        assert_eq!(store.remove_range(&rest), size.pairs - stay);
    }
    for stripe in &store.stripes {
        let stripe = stripe.read();
        assert!(
            stripe.small.capacity() <= stripe.len() * 4,
            "{} of {}",
            stripe.len(),
            stripe.small.capacity()
        );
        assert!(stripe.pages.capacity() <= 2 * 14 * 1024, "{}", stripe.pages.capacity());
    }
    assert!(store.size().pairs > 4000, "{:?}", store.size());
    store.remove_range(&all);
    assert!(store.stripes.iter().all(|stripe| stripe.read().pages.capacity() == 0));
}

#[test]
fn pieces_of_many_pairs_are_cut_between_stripes() {
    let store = filled(60_000);
    let limit = BatchLimit { pairs: 2000, bytes: usize::MAX };
    let pieces = store.pieces(&HashRange::all(), limit);
    assert!((30..60).contains(&pieces.len()), "{}", pieces.len());
    let starts = stripe_starts();
    for (piece, _) in pieces {
        assert!(
            piece.from.key.is_empty()
                && starts.iter().any(|start| u128::from(*start) << 64 == piece.from.hash)
        );
    }
}

/// `cargo test --release --lib -- --ignored --nocapture million` prints it.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn what_ranges_of_a_million_pairs_cost() {
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        work();
        println!("{what}: {:?}", start.elapsed());
    };
    let store = filled(1_000_000);
    let all = HashRange::all();
    let batch = BatchLimit { pairs: 8192, bytes: 1 << 20 };
    let halves = from_hash_to_hash(5 << 120, 200 << 120);
    let mut pieces = Vec::new();
    timed("size of a range", &mut || assert!(store.size_of(&halves).pairs > 700_000));
    timed("pieces of 8,192", &mut || pieces = store.pieces(&all, batch));
    println!("{} pieces", pieces.len());
    timed("scan of 8,192", &mut || assert_eq!(store.scan(&halves, batch).pairs.len(), 8192));
    timed("scan of 100", &mut || {
        assert_eq!(store.scan(&halves, BatchLimit { pairs: 100, ..batch }).pairs.len(), 100);
    });
    timed("checksum of all", &mut || assert_eq!(store.checksum(&all).pairs, 1_000_000));
    let questions: Vec<_> = (0..32).map(|rank| (halves.clone(), rank * 20_000)).collect();
    timed("32 places", &mut || assert!(store.places(&questions, &Changes::new()).is_some()));
    timed("removal of one piece", &mut || assert!(store.remove_range(&pieces[3].0) > 0));
    timed("removal of all", &mut || assert!(store.remove_range(&all) > 0));
}
