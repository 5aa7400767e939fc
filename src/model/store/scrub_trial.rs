//! Scrubs among writers, tried against what an ordered map held when they were begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::trial::{Model, Step, Trial, range, step};
use super::{Checksum, PIECE, Progress, Scrub, ScrubLimit, Scrubbed, Store, Territory, Void};
use crate::model::hash::{HashKey, KeyHash};
use crate::model::range::HashRange;
use crate::model::ttl::value_of;

/// One page at a time.
const LEAST: ScrubLimit = ScrubLimit { records: 1, bytes: 1 };
const NO_LIMIT: ScrubLimit = ScrubLimit { records: usize::MAX, bytes: usize::MAX };

#[derive(Debug, Clone)]
enum Move {
    Write(Step),
    Begin(Territory),
    /// Goes on with one of the scrubs.
    Read(usize, ScrubLimit),
    GiveUp(usize),
}

/// Two ranges at most that are summed up, and one that may overlap with them.
fn territory() -> impl Strategy<Value = Territory> {
    (prop::option::of(range()), range(), prop::option::of(range())).prop_map(|(first, second, other)| {
        let mut owned: Vec<HashRange> = first.into_iter().chain([second]).collect();
        owned.sort_by(|a, b| a.from.cmp(&b.from));
        let are_apart = owned.windows(2).all(|two| two[0].to.as_ref().is_some_and(|to| *to <= two[1].from));
        owned.truncate(if are_apart { 2 } else { 1 });
        Territory { owned, others: other.into_iter().collect() }
    })
}

fn one_move() -> impl Strategy<Value = Move> {
    let limit = prop_oneof![3 => Just(LEAST), 1 => Just(NO_LIMIT)];
    prop_oneof![
        20 => step().prop_map(Move::Write),
        2 => territory().prop_map(Move::Begin),
        10 => (0_usize..3, limit).prop_map(|(which, limit)| Move::Read(which, limit)),
        1 => (0_usize..3).prop_map(Move::GiveUp),
    ]
}

/// What there is to be found, of all that the map holds now.
fn expected(now: &Model, territory: &Territory) -> Scrubbed {
    let (own, mut found) = (Store::new(HashKey::FIRST_BYTE), Scrubbed::default());
    let lies_in =
        |ranges: &[HashRange], hash, key: &[u8]| ranges.iter().any(|range| range.contains(hash, key));
    for (point, (value, version)) in &now.pairs {
        let hash = KeyHash(point.hash);
        if lies_in(&territory.owned, hash, &point.key) {
            own.install(hash, &point.key, value, *version);
        } else if lies_in(&territory.others, hash, &point.key) {
            found.others += 1;
        } else {
            found.stray += 1;
        }
    }
    let content =
        now.pairs.iter().filter(|(point, _)| lies_in(&territory.owned, KeyHash(point.hash), &point.key));
    let content = content.map(|(point, (value, _))| Checksum::of_content(&point.key, value_of(value))).sum();
    Scrubbed { owned: own.checksum(&HashRange::all()), content, ..found }
}

fn finish(store: &Store, scrub: &Scrub, limit: ScrubLimit) -> Result<Scrubbed, Void> {
    loop {
        match store.scrub_some(scrub, limit) {
            Progress::More(_) => {}
            Progress::Done(found) => return Ok(found),
            Progress::Void(void) => return Err(void),
        }
    }
}

fn is_forgotten(store: &Store) -> bool {
    store.stripes.iter().all(|stripe| stripe.read().scrubs.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_was_there_is_summed_up_whatever_writers_do_meanwhile(
        moves in prop::collection::vec(one_move(), 0..200)
    ) {
        let mut trial = Trial::new();
        let mut running: Vec<(Arc<Scrub>, Scrubbed)> = Vec::new();
        for one in moves {
            match one {
                Move::Write(step) => trial.take(step),
                Move::Begin(territory) => {
                    let wanted = expected(&trial.now, &territory);
                    running.push((trial.store.begin_scrub(territory), wanted));
                }
                Move::Read(which, limit) if which < running.len() => {
                    let (scrub, wanted) = &running[which];
                    match trial.store.scrub_some(scrub, limit) {
                        Progress::More(_) => {}
                        Progress::Done(found) => {
                            prop_assert_eq!(found, *wanted);
                            running.remove(which);
                        }
                        Progress::Void(void) => prop_assert!(false, "{:?}", void),
                    }
                }
                Move::GiveUp(which) if which < running.len() => {
                    let (scrub, _) = running.remove(which);
                    scrub.give_up();
                    prop_assert_eq!(finish(&trial.store, &scrub, LEAST), Err(Void::GivenUp));
                }
                Move::Read(..) | Move::GiveUp(_) => {}
            }
        }
        for (scrub, wanted) in running {
            prop_assert_eq!(finish(&trial.store, &scrub, LEAST), Ok(wanted));
        }
        prop_assert!(is_forgotten(&trial.store));
    }
}

/// With so many that each stripe has some pages, of keys that do not tell where they lie.
fn filled(pairs: u32) -> Store {
    let store = Store::new(HashKey::PUBLISHED);
    for number in 0..pairs {
        put(&store, number, &[b'1'; 400]);
    }
    store
}

fn put(store: &Store, number: u32, value: &[u8]) {
    let key = number.to_be_bytes();
    store.put(HashKey::PUBLISHED.hash(&key), &key, value);
}

fn all() -> Territory {
    Territory { owned: vec![HashRange::all()], others: Vec::new() }
}

fn scrubbed(store: &Store) -> Scrubbed {
    finish(store, &store.begin_scrub(all()), NO_LIMIT).expect("nobody disturbs it")
}

#[test]
fn no_more_is_read_under_one_lock_than_the_limit_and_a_page() {
    let store = Store::new(HashKey::PUBLISHED);
    (0..200_000).for_each(|number| put(&store, number, b"1"));
    let limit = ScrubLimit { records: 300, bytes: usize::MAX };
    let (scrub, mut seen) = (store.begin_scrub(all()), 0);
    loop {
        match store.scrub_some(&scrub, limit) {
            // A page has 14 KiB, and the smallest record here 21 bytes.
            Progress::More(records) => {
                assert!(records < 300 + (14 << 10) / 21, "{records} at once");
                seen += records;
            }
            Progress::Done(found) => break assert_eq!(found.owned.pairs, 200_000),
            Progress::Void(void) => panic!("{void:?}"),
        }
    }
    assert!(seen >= 200_000);
}

#[test]
fn a_bit_that_no_writer_has_flipped_is_seen() {
    let (store, key) = (filled(20_000), 77_u32.to_be_bytes());
    let before = scrubbed(&store);
    assert_eq!((before.owned.pairs, before.unaccounted), (20_000, 0));
    let hash = HashKey::PUBLISHED.hash(&key);
    let damage = |in_key: bool| {
        let mut stripe = store.stripes[store.stripe_number(hash)].write();
        let place = *stripe
            .small
            .find(hash.low(), |place| stripe.pages.record(*place).key[3] == key[3] || in_key)
            .unwrap();
        stripe.pages.damage(place, in_key);
    };
    damage(false);
    let after = scrubbed(&store);
    assert_ne!(after.owned.sum, before.owned.sum);
    assert_eq!((after.owned.pairs, after.unaccounted), (20_000, 0));
    damage(false);
    assert_eq!(scrubbed(&store), before);
    damage(true);
    let after = scrubbed(&store);
    assert_eq!(
        (after.owned.pairs, after.stray, after.unaccounted),
        (19_999, 0, 1),
        "it is not found any more"
    );
}

#[test]
fn what_is_removed_at_once_is_kept_up_to_a_limit_and_then_the_scrub_is_void() {
    let store = Store::new(HashKey::PUBLISHED);
    let value = vec![b'1'; 3 << 20];
    (0..100).for_each(|number| put(&store, number, &value));
    let (first, second) = (store.begin_scrub(all()), store.begin_scrub(all()));
    // Some 90 MB.
    (0..30).for_each(|number| put(&store, number, b"2"));
    assert_eq!(finish(&store, &first, NO_LIMIT).map(|found| found.owned.pairs), Ok(100));
    // In all 300 MB.
    store.remove_range(&HashRange::all());
    assert_eq!(finish(&store, &second, NO_LIMIT), Err(Void::TooMuchRemoved));
    assert!(is_forgotten(&store));
}

#[test]
fn a_scrub_of_a_store_that_is_replaced_is_void() {
    let store = filled(1000);
    let scrub = store.begin_scrub(all());
    store.replace(filled(10));
    assert_eq!(finish(&store, &scrub, NO_LIMIT), Err(Void::Replaced));
    assert_eq!(scrubbed(&store).owned.pairs, 10);
}

#[test]
fn an_empty_store_has_nothing_to_be_read() {
    let store = Store::new(HashKey::PUBLISHED);
    let scrub = store.begin_scrub(all());
    put(&store, 1, b"1");
    assert_eq!(store.scrub_some(&scrub, LEAST), Progress::Done(Scrubbed::default()));
    assert_eq!(scrubbed(&store).owned, store.checksum(&HashRange::all()));
    assert_ne!(store.checksum(&HashRange::all()), Checksum::default());
}

/// How long something took, again and again: by the clock, and what the thread worked, which the kernel counts by its ticks. The time
/// that a thread waits for a processor is not the fault of what it does.
#[derive(Default)]
struct Took {
    times: Vec<Duration>,
    worked: Duration,
}

impl Took {
    #[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
    fn note<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), worked());
        let done = work();
        self.worked = self.worked.max(worked().checked_sub(before).unwrap());
        self.times.push(start.elapsed());
        done
    }

    fn check(mut self, what: &str) {
        self.times.sort_unstable();
        let (count, of) = (self.times.len(), |part: usize| self.times[(self.times.len() - 1) * part / 1000]);
        let (half, most, all) = (of(500), of(999), of(1000));
        println!("{count} times {what}: {half:?}, 99.9% {most:?}, at most {all:?}; worked {:?}", self.worked);
        assert!(self.worked < Duration::from_millis(10));
    }
}

fn worked() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells it");
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
}

/// `cargo test --release --lib -- --ignored --nocapture no_writer_waits` prints it.
#[test]
#[ignore = "a measurement with 1,200,000 pairs, to be run in a release build"]
fn no_writer_waits_for_10_ms_while_1_200_000_pairs_are_summed_up() {
    const PAIRS: u32 = 1_200_000;
    let (store, is_over) = (filled(PAIRS), AtomicBool::new(false));
    let (mut begun, mut read) = (Took::default(), Took::default());
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut written, mut number) = (Took::default(), 0_u32);
            while !is_over.load(Ordering::Relaxed) {
                number = (number + 7919) % PAIRS;
                written.note(|| put(&store, number, &[b'2'; 401]));
            }
            written
        });
        for _ in 0..10 {
            // All of this is under the lock of a shard's table, and each piece under that of a stripe.
            let scrub = begun.note(|| store.begin_scrub(all()));
            while matches!(read.note(|| store.scrub_some(&scrub, PIECE)), Progress::More(_)) {}
            assert!(matches!(store.scrub_some(&scrub, PIECE), Progress::Done(_)));
        }
        is_over.store(true, Ordering::Relaxed);
        writer.join().expect("it writes")
    });
    begun.check("begun");
    read.check("read a piece");
    written.check("written");
}
