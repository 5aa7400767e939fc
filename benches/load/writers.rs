//! Clients that write all the time and note when each write was acknowledged. They do not give up: a write that fails
//! is tried again through the next node, as a client would that wants it done.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use crossbeam_channel::after;
use evenkv::clock::now;

use crate::client::Connection;
use crate::system::System;
use crate::wrk::{KEYS, Kind};

/// How many write at the same time, each one write after the other.
pub(crate) const WRITERS: u64 = 16;
/// A pause after a failure, so that a server which refuses at once is not flooded.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// A write that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    at: Instant,
    /// Since it was tried first.
    took: Duration,
}

/// What came of the writes.
#[derive(Default)]
pub(crate) struct Written {
    /// In the order of time.
    acknowledged: Vec<Acknowledged>,
    /// Attempts that failed and were made again.
    pub(crate) failures: u64,
    /// What the last of them failed with.
    pub(crate) last_failure: Option<io::Error>,
}

impl Written {
    /// The longest time without an acknowledged write that was not over before `from` and had begun before `to`.
    pub(crate) fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let (mut last, mut longest) = (from, Duration::ZERO);
        for one in self.acknowledged.iter().take_while(|one| one.at < to) {
            if one.at > from {
                longest = longest.max(one.at - last);
            }
            last = one.at;
        }
        longest.max(to - last)
    }

    /// How long the writes took that were acknowledged from one moment to another.
    pub(crate) fn latencies(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let within = self.acknowledged.iter().filter(|one| (from..to).contains(&one.at));
        within.map(|one| one.took).collect()
    }
}

/// How the writers go about it.
pub(crate) struct Writers {
    pub(crate) system: System,
    /// Whom they ask; each begins with one of them and goes on to the next when an attempt fails.
    pub(crate) nodes: Vec<SocketAddr>,
    /// After this time without an answer an attempt has failed.
    pub(crate) patience: Duration,
    /// How much longer each waits than the one before, so that they do not all give up in the same moment.
    pub(crate) stagger: Duration,
}

impl Writers {
    /// Lets them write while something is done, and gives what came of both.
    ///
    /// # Errors
    /// Those of what is done, and of the system.
    pub(crate) fn write_while<T>(&self, is_done: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Written)> {
        let is_over = AtomicBool::new(false);
        let (result, mut written) = thread::scope(|scope| {
            let start = |number| {
                let name = format!("writer-{number}");
                let is_over = &is_over;
                Builder::new().name(name).spawn_scoped(scope, move || self.write_until(is_over, number))
            };
            let writers: io::Result<Vec<_>> = (0..WRITERS).map(start).collect();
            let result = writers.and_then(|writers| Ok((is_done()?, writers)));
            is_over.store(true, Ordering::Relaxed);
            let (result, writers) = result?;
            let mut all = Written::default();
            for writer in writers {
                let mut one = writer.join().expect("a writer does not panic");
                all.acknowledged.append(&mut one.acknowledged);
                all.failures += one.failures;
                all.last_failure = one.last_failure.or(all.last_failure);
            }
            Ok::<_, io::Error>((result, all))
        })?;
        written.acknowledged.sort_by_key(|one| one.at);
        Ok((result, written))
    }

    fn write_until(&self, is_over: &AtomicBool, number: u64) -> Written {
        let patience = self.patience + self.stagger * u32::try_from(number).unwrap_or(0);
        // Each has keys of its own.
        let share = KEYS / WRITERS;
        let keys = (number * share..(number + 1) * share).cycle();
        let mut nodes = self.nodes.iter().cycle().skip(usize::try_from(number).unwrap_or(0));
        let mut written = Written::default();
        let mut connection = None;
        for key in keys {
            let request = self.system.request(Kind::Put, key);
            let begun = now();
            loop {
                if is_over.load(Ordering::Relaxed) {
                    return written;
                }
                let opened = match connection.take() {
                    Some(opened) => Ok(opened),
                    None => Connection::open(*nodes.next().expect("there is a node"), patience),
                };
                let answered = opened.and_then(|mut opened| opened.ask(&request).map(|_| opened));
                match answered {
                    Ok(usable) => {
                        connection = Some(usable);
                        break;
                    }
                    Err(failure) => {
                        written.failures += 1;
                        written.last_failure = Some(failure);
                        let _ = after(AFTER_FAILURE).recv();
                    }
                }
            }
            let at = now();
            written.acknowledged.push(Acknowledged { at, took: at - begun });
        }
        written
    }
}
