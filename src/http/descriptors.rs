//! The descriptors of the process: how many connections they are enough for, and what is said when there is none left.

use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::now;

/// tiny_http duplicates the socket of each connection, for its reader and its writer.
const PER_CONNECTION: u64 = 2;
/// What a node needs beside: standard streams, listening sockets, questions to other nodes, and what files it reads for its figures.
const OWN: u64 = 64;
/// That there is none left is said again after this time at the earliest.
const SAID_AGAIN: Duration = Duration::from_secs(10);

/// The errors of Linux that say that the process, or the whole system, has no descriptor left.
const NONE_LEFT: [i32; 2] = [24, 23];

/// A sentence about how many connections a limit of open files is enough for.
pub fn allowance(limit: u64) -> String {
    let connections = limit.saturating_sub(OWN) / PER_CONNECTION;
    format!(
        "open files: {limit} are allowed, enough for {connections} connections of clients and other nodes at one time: \
         each takes {PER_CONNECTION}, and the node itself some {OWN}"
    )
}

/// Says that connections are waiting since there is no descriptor left; now and then, where that lasts.
pub struct Shortage(Mutex<Option<Instant>>);

impl Shortage {
    /// Nothing was said yet.
    pub const fn unsaid() -> Self {
        Self(Mutex::new(None))
    }

    /// Notes an error of the accept loop.
    pub fn note(&self, error: &io::Error) {
        if error.raw_os_error().is_some_and(|number| NONE_LEFT.contains(&number)) {
            self.say();
        }
    }

    /// Notes a panic of the accept loop, by what was said of it.
    pub fn note_panic(&self, text: &str) {
        if NONE_LEFT.iter().any(|number| text.contains(&format!("code: {number},"))) {
            self.say();
        }
    }

    /// Says it, if that was not done just now.
    pub fn say(&self) {
        let mut said = self.0.lock();
        if said.is_none_or(|said| now() - said >= SAID_AGAIN) {
            *said = Some(now());
            log::warn!(
                "no descriptor is left: further connections wait in the kernel until others close. Raise the limit of open files \
                 (ulimit -n, LimitNOFILE=, --ulimit nofile=), or look who holds connections"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_takes_two_descriptors() {
        for (limit, connections) in [(1024, 480), (1_048_576, 524_256), (66, 1), (64, 0), (10, 0)] {
            let said = allowance(limit);
            assert!(said.contains(&format!("enough for {connections} connections")), "{said}");
        }
    }
}
