//! What it costs a write to go through a group that has one voter.
//!
//! `cargo test --release --lib -- --ignored --nocapture one_voter` prints it.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock and runs threads of its own")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::driver::Driver;
use super::machine::{Answer, Pieces, StateMachine};
use super::settings::Settings;
use crate::model::binary::Malformed;
use crate::model::hash::HashKey;
use crate::model::range::HashRange;
use crate::model::shard::{Done, Operation, Shard};
use crate::model::store::Store;

const WRITERS: u64 = 64;
const COMMAND_BYTES: usize = 100;
const LASTING: Duration = Duration::from_secs(3);

/// The first 16 bytes of a command are its key, the rest its value.
struct Pairs(Arc<Store>);

fn put(store: &Store, command: &[u8]) -> bool {
    let (key, value) = command.split_at(16);
    store.put(HashKey::PUBLISHED.hash(key), key, value).0
}

impl StateMachine for Pairs {
    fn apply(&mut self, _index: u64, _term: u64, command: &[u8]) -> Vec<u8> {
        vec![u8::from(put(&self.0, command))]
    }

    fn snapshot(&self) -> Pieces {
        Box::new(std::iter::empty())
    }

    fn restore(&mut self, _snapshot: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

fn command(number: u64) -> Bytes {
    let mut command = vec![b'x'; COMMAND_BYTES];
    command[..8].copy_from_slice(&(number % 100_000).to_be_bytes());
    command.into()
}

fn leader<W>(store: &Arc<Store>) -> Driver<W> {
    let mut driver = Driver::new(Settings::default());
    let voters = BTreeMap::from([(7, "node:1".parse().unwrap())]);
    driver.found(1, 7, &voters, Box::new(Pairs(store.clone()))).unwrap();
    driver.work();
    driver
}

fn per_second(count: u64, since: Instant) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000 / since.elapsed().as_micros()).unwrap()
}

/// The driver alone: 64 proposals in a step, in one thread.
fn steps_of_64() -> u64 {
    let mut driver = leader(&Arc::new(Store::new(HashKey::PUBLISHED)));
    let since = Instant::now();
    let mut count = 0;
    while since.elapsed() < LASTING {
        for writer in 0..WRITERS {
            driver.propose(1, command(count + writer), writer);
        }
        driver.work();
        let answers = driver.take_answers();
        assert!(answers.iter().all(|(_, answer)| matches!(answer, Answer::Applied { .. })));
        count += answers.len() as u64;
    }
    per_second(count, since)
}

/// 64 threads that each write and wait; `write` does one write.
fn writers(write: impl Fn(&Bytes, &(Sender<bool>, Receiver<bool>)) + Sync) -> u64 {
    let since = Instant::now();
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let writer = |number: u64| {
            let write = &write;
            scope.spawn(move || {
                let answer = bounded(1);
                let mut count = 0;
                while since.elapsed() < LASTING {
                    write(&command(number + WRITERS * count), &answer);
                    count += 1;
                }
                count
            })
        };
        let threads: Vec<_> = (0..WRITERS).map(writer).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    per_second(counts.iter().sum(), since)
}

/// 64 threads in front of one that serves a queue by `serve`, a batch at a time.
fn queued(mut serve: impl FnMut(Vec<(Bytes, Sender<bool>)>) + Send) -> u64 {
    let (queue, waiting) = bounded::<(Bytes, Sender<bool>)>(1024);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while let Ok(first) = waiting.recv() {
                serve(std::iter::once(first).chain(waiting.try_iter()).collect());
            }
        });
        let rate = writers(|command, answer| {
            queue.send((command.clone(), answer.0.clone())).unwrap();
            answer.1.recv().unwrap();
        });
        drop(queue);
        rate
    })
}

#[test]
#[ignore = "a measurement, to be run in a release build"]
fn one_voter() {
    println!("driver alone, 64 proposals a step: {}/s", steps_of_64());

    let mut driver = leader(&Arc::new(Store::new(HashKey::PUBLISHED)));
    let through_driver = queued(|batch| {
        for (command, answer) in batch {
            driver.propose(1, command, answer);
        }
        driver.work();
        for (answer, outcome) in driver.take_answers() {
            let Answer::Applied { outcome, .. } = outcome else { panic!("{outcome:?}") };
            answer.send(outcome[0] == 1).unwrap();
        }
    });
    println!("64 threads -> queue -> thread with driver: {through_driver}/s");

    let driver = parking_lot::Mutex::new(leader(&Arc::new(Store::new(HashKey::PUBLISHED))));
    let under_a_lock = writers(|command, _| {
        let mut driver = driver.lock();
        driver.propose(1, command.clone(), ());
        driver.work();
        assert!(matches!(driver.take_answers()[..], [((), Answer::Applied { .. })]));
    });
    println!("64 threads -> driver behind a lock, one proposal a step: {under_a_lock}/s");

    let store = Store::new(HashKey::PUBLISHED);
    let one_thread = queued(|batch| {
        for (command, answer) in batch {
            answer.send(put(&store, &command)).unwrap();
        }
    });
    println!("64 threads -> queue -> thread with map: {one_thread}/s");

    let store = Store::new(HashKey::PUBLISHED);
    let direct = writers(|command, _| {
        put(&store, command);
    });
    println!("64 threads -> map: {direct}/s");

    let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
    let through_shard = writers(|command, _| {
        let (key, value) = command.split_at(16);
        let done = shard.run(HashKey::PUBLISHED.hash(key), key, Operation::put(value), None);
        assert!(matches!(done, Ok(Done::Wrote(written)) if written.there().is_some()));
    });
    println!("64 threads -> shard: {through_shard}/s");
}
