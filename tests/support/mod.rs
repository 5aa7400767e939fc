//! What the tests against real processes share: nodes, clusters, ports, waiting, and a client that
//! controls every byte it sends.
//!
//! Nothing here uses the library of the crate: the tests see a node as any outside client does.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test polls and measures"
)]

pub(crate) mod audit;
pub(crate) mod cgroup;
pub(crate) mod change;
pub(crate) mod cluster;
pub(crate) mod fake_main;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod openapi;
pub(crate) mod ports;
pub(crate) mod relay;
pub(crate) mod replicated;
pub(crate) mod watch;

use std::thread;
use std::time::{Duration, Instant};

/// How long a node may take to come up on a machine that is busy with other things.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(20);

/// How often a condition is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Polls `condition` until it holds; panics with `what` when it does not within `deadline`.
pub(crate) fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Runs `work` and says how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

/// Runs one closure per number below `count` at the same time and returns what they returned, in order.
/// A panic in one of them is a panic of the caller.
pub(crate) fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        running.into_iter().map(|thread| thread.join().expect("a client thread failed, see above")).collect()
    })
}
