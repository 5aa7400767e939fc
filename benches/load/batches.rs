//! Pairs by batches beside pairs one by one, at the same nodes in the same run: one node, one of three shards, and the leader of three replicas; beside `MSET` of Redis
//! through webdis and `txn` of etcd. And an import into three nodes.

use std::io;
use std::time::Duration;

use crate::fill;
use crate::group::{Group, REPLICAS};
use crate::process::{Process, START, free_addresses};
use crate::report::{median, verdict};
use crate::system::System;
use crate::wrk::{self, BATCH_LINES, Kind, Load};

/// What the rate of pairs by batches is to be of that one by one.
const ALONE_TARGET: f64 = 12.0;
const SHARDS_TARGET: f64 = 8.0;
const REPLICAS_TARGET: f64 = 8.0;
/// Pairs that are imported, and how many a second there are to be.
const IMPORTED: u32 = 1_000_000;
const IMPORT_TARGET: f64 = 100_000.0;

/// Who is asked, and how many times the rate of PUT batches are to have there, if anything is said of that.
struct Target<'a> {
    name: &'static str,
    group: &'a Group,
    /// The index of the process.
    asked: usize,
    wanted: Option<f64>,
}

/// Measures and prints; whether all targets were met. A round has this length.
pub(crate) fn measure(length: Duration, rounds: u64) -> io::Result<bool> {
    println!(
        "Batches of {BATCH_LINES} over 8 connections beside PUTs over 64: {rounds} rounds of {length:?} ..."
    );
    let alone = Group::single_node()?;
    let shards = Group::of_shards()?;
    let replicas = Group::of_evenkv()?;
    let (redis, etcd) = (Group::of_redis()?, Group::of_etcd()?);
    for (name, group) in [("Redis with webdis", &redis), ("etcd", &etcd)] {
        if group.is_none() {
            println!("{name}: not on this machine, so it was not measured");
        }
    }
    let mut targets = vec![
        Target { name: "one node", group: &alone, asked: 0, wanted: Some(ALONE_TARGET) },
        Target { name: "one of three shards", group: &shards, asked: 0, wanted: Some(SHARDS_TARGET) },
        Target {
            name: "leader of three replicas",
            group: &replicas,
            asked: replicas.leader()?,
            wanted: Some(REPLICAS_TARGET),
        },
    ];
    if let Some(group) = &redis {
        targets.push(Target { name: "Redis, MSET by webdis", group, asked: 0, wanted: None });
    }
    if let Some(group) = &etcd {
        let asked = group.leader()?;
        targets.push(Target { name: "leader of three of etcd, txn", group, asked, wanted: None });
    }
    println!("| asked | PUT, pairs/s | batches, pairs/s | of PUT | CPU of a pair, us: PUT, batches |");
    println!("| --- | --- | --- | --- | --- |");
    let mut ratios = Vec::new();
    for Target { name, group, asked, wanted } in targets {
        let (mut single, mut many) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (kind, series) in [(Kind::Put, &mut single), (Kind::Batch, &mut many)] {
                let asked = vec![group.processes[asked].address];
                let load = Load { system: group.system, processes: &group.processes, asked, kind };
                let round = wrk::run(&load, length)?;
                let pairs = kind.pairs();
                series.push((round.rate * pairs, round.cpu_micros / pairs));
            }
        }
        let of = |series: &[(f64, f64)]| {
            (median(series.iter().map(|(rate, _)| *rate)), median(series.iter().map(|(_, cpu)| *cpu)))
        };
        let ((single, single_cpu), (many, many_cpu)) = (of(&single), of(&many));
        let ratio = many / single;
        println!("| {name} | {single:.0} | {many:.0} | {ratio:.1} | {single_cpu:.1}, {many_cpu:.1} |");
        ratios.extend(wanted.map(|wanted| (name, ratio, wanted)));
    }
    println!();
    let mut are_met = true;
    for (name, ratio, wanted) in ratios {
        are_met &= verdict(
            ratio >= wanted,
            &format!("batches, {name}: {ratio:.1} times the pairs/s of PUT, at least {wanted:.0}"),
        );
    }
    let rate = import()?;
    are_met &= verdict(
        rate >= IMPORT_TARGET,
        &format!(
            "import of {IMPORTED} pairs into three nodes: {rate:.0} pairs/s, at least {IMPORT_TARGET:.0}"
        ),
    );
    Ok(are_met)
}

/// Imports pairs into three nodes that hold nothing: how many a second.
fn import() -> io::Result<f64> {
    let shards = Group::of_shards()?;
    let took = fill::import(&shards.processes, (0..IMPORTED).map(|key| format!("{key:016}")))?;
    Ok(f64::from(IMPORTED) / took.as_secs_f64())
}

impl Group {
    /// Three nodes with a shard each.
    ///
    /// # Errors
    /// When they do not get ready in time.
    pub(crate) fn of_shards() -> io::Result<Self> {
        let addresses = free_addresses(REPLICAS)?;
        let view = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let flags = ["--view".to_owned(), view];
        let processes = addresses.iter().map(|address| Process::node(*address, &flags));
        let mut group = Self::of_processes(System::Evenkv, processes.collect::<io::Result<_>>()?);
        for index in 0..group.processes.len() {
            group.wait_until_ready(index, START)?;
        }
        Ok(group)
    }
}
