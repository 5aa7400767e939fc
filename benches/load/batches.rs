//! Pairs by batches beside pairs one by one, at the same nodes in the same run: one node, one of three shards, and the leader of three replicas; and an import into three
//! nodes.

use std::fmt::Write as _;
use std::io;
use std::process::Command;
use std::time::Duration;

use evenkv::clock::now;
use tempfile::NamedTempFile;

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
/// The length of a value in bytes.
const VALUE_LENGTH: usize = 100;

/// Measures and prints; whether all targets were met. A round has this length.
pub(crate) fn measure(length: Duration, rounds: u64) -> io::Result<bool> {
    println!(
        "Batches of {BATCH_LINES} over 8 connections beside PUTs over 64: {rounds} rounds of {length:?} ..."
    );
    let alone = Group::single_node()?;
    let shards = Group::of_shards()?;
    let replicas = Group::of_evenkv()?;
    let targets = [
        ("one node", &alone, 0, ALONE_TARGET),
        ("one of three shards", &shards, 0, SHARDS_TARGET),
        ("leader of three replicas", &replicas, replicas.leader()?, REPLICAS_TARGET),
    ];
    let mut are_met = true;
    println!("| asked | PUT, pairs/s | batches, pairs/s | CPU of a pair, us: PUT, batches |");
    println!("| --- | --- | --- | --- |");
    let mut ratios = Vec::new();
    for (name, group, asked, target) in targets {
        let (mut single, mut many) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (kind, series) in [(Kind::Put, &mut single), (Kind::Batch, &mut many)] {
                let asked = vec![group.processes[asked].address];
                let load = Load { system: System::Evenkv, processes: &group.processes, asked, kind };
                let round = wrk::run(&load, length)?;
                let pairs = kind.pairs();
                series.push((round.rate * pairs, round.cpu_micros / pairs));
            }
        }
        let of = |series: &[(f64, f64)]| {
            (median(series.iter().map(|(rate, _)| *rate)), median(series.iter().map(|(_, cpu)| *cpu)))
        };
        let ((single, single_cpu), (many, many_cpu)) = (of(&single), of(&many));
        println!("| {name} | {single:.0} | {many:.0} | {single_cpu:.1}, {many_cpu:.1} |");
        ratios.push((name, many / single, target));
    }
    println!();
    for (name, ratio, target) in ratios {
        are_met &= verdict(
            ratio >= target,
            &format!("batches, {name}: {ratio:.1} times the pairs/s of PUT, at least {target:.0}"),
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
    let file = NamedTempFile::with_suffix(".tsv")?;
    let value = "v".repeat(VALUE_LENGTH);
    let mut text = String::new();
    for key in 0..IMPORTED {
        let _ = writeln!(text, "{key:016}\t{value}");
    }
    std::fs::write(file.path(), text)?;
    let through: Vec<String> = shards.processes.iter().map(|process| process.address.to_string()).collect();
    let start = now();
    let said = Command::new(env!("CARGO_BIN_EXE_evenkv"))
        .arg("import")
        .arg(file.path())
        .args(["--through", &through.join(",")])
        .output()?;
    let took = now() - start;
    if !said.status.success() {
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        return Err(io::Error::other(format!("the import has failed: {said}")));
    }
    Ok(f64::from(IMPORTED) / took.as_secs_f64())
}

impl Group {
    /// Three nodes with a shard each.
    ///
    /// # Errors
    /// When they do not get ready in time.
    fn of_shards() -> io::Result<Self> {
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
