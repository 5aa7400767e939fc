//! What clients notice of a replica that comes back empty and is sent all the pairs: how long their writes take
//! meanwhile, compared with before.

use std::io;
use std::time::Duration;

use crossbeam_channel::after;
use evenkv::clock::now;

use crate::group::{Group, REPLICAS};
use crate::report::{median, millis, p99, verdict};
use crate::writers::{WRITERS, Writers};

/// 100 MB in values.
const PAIRS: u64 = 1_000_000;
/// Writes are watched for this long before a replica is killed.
const BEFORE: Duration = Duration::from_secs(10);
/// A replica is broken that does not come back in this time.
const LONGEST_RETURN: Duration = Duration::from_mins(2);
/// Longer than a node takes to answer anything.
const PATIENCE: Duration = Duration::from_secs(6);
/// The p99 of writes may be so much more meanwhile, in milliseconds.
const TARGET_MS: f64 = 50.0;

/// One return of a replica.
struct Return {
    took: Duration,
    p99_before: Duration,
    p99_during: Duration,
    slowest_during: Duration,
    writes_during: usize,
    failures: u64,
}

impl Return {
    fn added_ms(&self) -> f64 {
        millis(self.p99_during) - millis(self.p99_before)
    }
}

/// Measures and prints; whether the target was met.
pub(crate) fn measure(rounds: u64) -> io::Result<bool> {
    println!("Putting {PAIRS} pairs into {REPLICAS} nodes ...");
    let mut group = Group::of_evenkv()?;
    group.fill(PAIRS)?;
    println!("{rounds} times a replica that does not lead is killed under {WRITERS} writers ...");
    let returns = (0..rounds).map(|_| watch_return(&mut group)).collect::<io::Result<Vec<_>>>()?;
    println!();
    println!(
        "{:>12}{:>15}{:>15}{:>10}{:>12}{:>12}{:>18}",
        "ready in s", "p99 before ms", "p99 during ms", "added ms", "slowest ms", "writes", "failed attempts"
    );
    for one in &returns {
        println!(
            "{:>12.1}{:>15.1}{:>15.1}{:>10.1}{:>12.1}{:>12}{:>18}",
            one.took.as_secs_f64(),
            millis(one.p99_before),
            millis(one.p99_during),
            one.added_ms(),
            millis(one.slowest_during),
            one.writes_during,
            one.failures,
        );
    }
    println!("During: from the kill until the replica has a vote again. Slowest and writes: of that time.");
    println!();
    let added = median(returns.iter().map(Return::added_ms));
    let what = format!("{added:.1} ms added to the p99 of writes, median, at most {TARGET_MS:.0}");
    Ok(verdict(added <= TARGET_MS, &what))
}

fn watch_return(group: &mut Group) -> io::Result<Return> {
    let killed = (group.leader()? + 1) % REPLICAS;
    let nodes = group.addresses_without(killed);
    let writers = Writers { system: group.system, nodes, patience: PATIENCE, stagger: Duration::ZERO };
    let ((begun, crashed, ready), written) = writers.write_while(|| {
        let begun = now();
        let _ = after(BEFORE).recv();
        let crashed = now();
        group.crash(killed)?;
        group.wait_until_ready(killed, LONGEST_RETURN)?;
        Ok((begun, crashed, now()))
    })?;
    let during = written.latencies(crashed, ready);
    let none = || {
        let last = written.last_failure.as_ref().map(ToString::to_string).unwrap_or_default();
        io::Error::other(format!("no write was acknowledged while a replica came back: {last}"))
    };
    Ok(Return {
        took: ready - crashed,
        p99_before: p99(written.latencies(begun, crashed)).ok_or_else(none)?,
        slowest_during: during.iter().copied().max().unwrap_or_default(),
        writes_during: during.len(),
        p99_during: p99(during).ok_or_else(none)?,
        failures: written.failures,
    })
}
