//! How fast a view change moves pairs between a cluster of three nodes and one of four, without clients and with them.
//!
//! The changes go forth and back, so that every one has pairs to move, and Redis takes its turns in between.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder};
use std::time::Duration;

use evenkv::clock::now;
use serde::Deserialize;

use crate::fill;
use crate::process::{Process, START, free_addresses};
use crate::redis::Redis;
use crate::report::median;
use crate::system::System;
use crate::wrk::{self, Kind, Load};

/// Pairs that the cluster holds: 16-byte keys and 100-byte values.
pub(crate) const PAIRS: u64 = 200_000;
/// Nodes of the smaller view; the larger one has one more.
pub(crate) const FEW: usize = 3;

/// A change of a cluster: how many pairs it moved, and how long it took as its client saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) moved: u64,
    pub(crate) took: Duration,
}

impl Change {
    /// Pairs moved in a second.
    #[expect(clippy::cast_precision_loss, reason = "numbers of pairs are far below 2^53")]
    fn rate(self) -> f64 {
        self.moved as f64 / self.took.as_secs_f64()
    }
}

/// The part of a receipt that is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Receipt {
    moved: u64,
    minimum: u64,
    hold_ms: f64,
}

/// Three nodes with a view and a fourth without.
struct Cluster {
    processes: Vec<Process>,
}

/// What the clients got in rounds without a change and in rounds full of changes, and what the latter moved.
struct Loaded {
    kind: Kind,
    before: Vec<f64>,
    during: Vec<f64>,
    p99_micros: Vec<u64>,
    changes: Vec<Change>,
}

/// Measures and prints. A round of load has this length.
pub(crate) fn measure(length: Duration, rounds: u64) -> io::Result<()> {
    println!(
        "Moving pairs of {PAIRS} between {FEW} and {} nodes: {rounds} times forth and back ...",
        FEW + 1
    );
    let cluster = Cluster::start()?;
    let mut redis = Redis::start_if_installed()?;
    let (mut forth, mut back, mut holds) = (Vec::new(), Vec::new(), Vec::new());
    let (mut redis_forth, mut redis_back) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (nodes, changes) in [(FEW + 1, &mut forth), (FEW, &mut back)] {
            let (change, hold_ms) = cluster.change_to(nodes)?;
            changes.push(change);
            holds.push(hold_ms);
        }
        if let Some(redis) = &mut redis {
            redis_forth.push(redis.spread()?);
            redis_back.push(redis.gather()?);
        }
    }
    // It is idle from here on, but it would still take its part of the processors.
    drop(redis);
    let mut loaded = Vec::new();
    for kind in [Kind::Get, Kind::Put] {
        println!("{}: {rounds} rounds of {length:?}, without and with changes in turn ...", kind.method());
        loaded.push(cluster.under_load(kind, length, rounds)?);
    }
    println!();
    println!("{:<30}{:>9}{:>11}{:>9}", "idle", "moved", "pairs/s", "noise");
    print_changes("evenkv 3 -> 4", &forth);
    print_changes("evenkv 4 -> 3", &back);
    if redis_forth.is_empty() {
        println!("Redis Cluster: redis-server and redis-cli are not installed, so it was not measured");
    } else {
        print_changes("Redis Cluster 3 -> 4", &redis_forth);
        print_changes("Redis Cluster 4 -> 3", &redis_back);
    }
    println!("Longest hold of a key: {:.1} ms", holds.iter().copied().fold(0.0, f64::max));
    println!();
    println!(
        "{:<6}{:>16}{:>16}{:>8}{:>14}{:>16}",
        "load", "before, ans./s", "during, ans./s", "ratio", "p99 during ms", "moved, pairs/s"
    );
    loaded.iter().for_each(Loaded::print);
    println!("Medians. Noise: from the slowest change to the fastest. No request of the load failed.");
    Ok(())
}

impl Cluster {
    /// Starts the nodes and puts in the pairs.
    fn start() -> io::Result<Self> {
        let addresses = free_addresses(FEW + 1)?;
        let view = ["--view".to_owned(), view_of(&addresses[..FEW])];
        let start = |address: &SocketAddr| Process::node(*address, &view);
        let mut processes: Vec<Process> = addresses.iter().map(start).collect::<io::Result<_>>()?;
        for (number, process) in processes.iter_mut().enumerate() {
            // The last one is passive: it serves no keys before a change names it.
            process.wait_until_ready(if number < FEW { "/readyz" } else { "/livez" }, START)?;
        }
        fill::put_all(System::Evenkv, processes[0].address, PAIRS)?;
        Ok(Self { processes })
    }

    /// Changes the view to the first `nodes` nodes; also gives the longest hold of a key in milliseconds.
    fn change_to(&self, nodes: usize) -> io::Result<(Change, f64)> {
        let addresses: Vec<SocketAddr> = self.processes.iter().map(|process| process.address).collect();
        let url = format!("http://{}/kv-store/view-change", addresses[0]);
        let body = format!("{{\"view\":\"{}\"}}", view_of(&addresses[..nodes]));
        let begun = now();
        let answer = ureq::put(&url).send(&body).map_err(io::Error::other)?;
        let said = answer.into_body().read_to_vec().map_err(io::Error::other)?;
        let took = now() - begun;
        let receipt: Receipt = serde_json::from_slice(&said)?;
        if receipt.moved != receipt.minimum {
            let text = format!("{} pairs were moved, and {} are enough", receipt.moved, receipt.minimum);
            return Err(io::Error::other(text));
        }
        Ok((Change { moved: receipt.moved, took }, receipt.hold_ms))
    }

    /// Rounds of load without a change and with one after the other all the time, in turn.
    fn under_load(&self, kind: Kind, length: Duration, rounds: u64) -> io::Result<Loaded> {
        let mut loaded = Loaded {
            kind,
            before: Vec::new(),
            during: Vec::new(),
            p99_micros: Vec::new(),
            changes: Vec::new(),
        };
        for _ in 0..rounds {
            loaded.before.push(wrk::run(&Load::on_first(&self.processes, kind), length)?.rate);
            let is_over = AtomicBool::new(false);
            let (round, changes) = thread::scope(|scope| {
                let changing = Builder::new()
                    .name("changes".to_owned())
                    .spawn_scoped(scope, || self.change_until(&is_over))?;
                let round = wrk::run(&Load::on_first(&self.processes, kind), length);
                is_over.store(true, Ordering::Relaxed);
                let changes = changing.join().expect("the changing thread does not panic")?;
                Ok::<_, io::Error>((round?, changes))
            })?;
            loaded.during.push(round.rate);
            loaded.p99_micros.push(round.p99_micros);
            loaded.changes.extend(changes);
        }
        Ok(loaded)
    }

    /// Changes forth and back until it is over, and ends with the smaller view. The last change may last longer than
    /// the load does, so it is not among those that are given.
    fn change_until(&self, is_over: &AtomicBool) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        loop {
            for nodes in [FEW + 1, FEW] {
                let (change, _) = self.change_to(nodes)?;
                if !is_over.load(Ordering::Relaxed) {
                    changes.push(change);
                }
            }
            if is_over.load(Ordering::Relaxed) {
                return Ok(changes);
            }
        }
    }
}

impl Loaded {
    #[expect(clippy::cast_precision_loss, reason = "latencies in microseconds are far below 2^53")]
    fn print(&self) {
        let (before, during) = (median(self.before.iter().copied()), median(self.during.iter().copied()));
        let p99 = median(self.p99_micros.iter().map(|micros| *micros as f64)) / 1e3;
        let moved = if self.changes.is_empty() {
            "no whole change".to_owned()
        } else {
            format!("{:.0}", median(self.changes.iter().map(|change| change.rate())))
        };
        println!(
            "{:<6}{before:>16.0}{during:>16.0}{:>8.2}{p99:>14.2}{moved:>16}",
            self.kind.method(),
            during / before
        );
    }
}

fn print_changes(name: &str, changes: &[Change]) {
    let rates = || changes.iter().map(|change| change.rate());
    let noise = rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min);
    let middle = median(rates());
    let moved = changes.last().map_or(0, |change| change.moved);
    println!("{name:<30}{moved:>9}{middle:>11.0}{:>7.0} %", noise * 100.0 / middle);
}

fn view_of(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
