//! Load on a node and on a cluster, beside a bare `tiny_http` server in the same run, and the memory that pairs take.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::client::Connection;
use crate::fill;
use crate::process::{ONE_ANSWER, Process, START, free_addresses};
use crate::report::{self, Series};
use crate::system::System;
use crate::wrk::{self, KEYS, Kind, Load};

/// Pairs that are put in to see how much memory they take.
const MANY_PAIRS: u64 = 1_000_000;
/// Nodes of the cluster.
const NODES: usize = 3;
/// As many as a node has for clients unless told otherwise.
const BARE_WORKERS: usize = 16;

/// A server, made of one process or several, of which the first is asked.
struct Target {
    name: &'static str,
    processes: Vec<Process>,
}

/// Measures and prints; whether all targets were met. A round has this length.
pub(crate) fn measure(length: Duration, rounds: u64) -> io::Result<bool> {
    println!("Memory of {MANY_PAIRS} pairs ...");
    let bytes_per_pair = bytes_per_pair()?;
    let targets = start_targets()?;
    let mut all = Vec::new();
    for kind in [Kind::Get, Kind::Put] {
        println!("{}: {rounds} rounds of {length:?} against each server in turn ...", kind.method());
        let mut series: Vec<Series> =
            targets.iter().map(|target| Series { server: target.name, kind, rounds: Vec::new() }).collect();
        for _ in 0..rounds {
            for (target, series) in targets.iter().zip(&mut series) {
                series.rounds.push(wrk::run(&Load::on_first(&target.processes, kind), length)?);
            }
        }
        all.append(&mut series);
    }
    println!();
    report::print_table(&all, report::BARE);
    println!();
    Ok(report::print_verdicts(&all, bytes_per_pair))
}

/// What a pair adds to the resident memory of a node, in bytes.
#[expect(clippy::cast_precision_loss, reason = "a memory is far below 2^53 bytes")]
fn bytes_per_pair() -> io::Result<f64> {
    let mut node = Process::node(free_addresses(1)?[0], &[])?;
    node.wait_until_ready("/readyz", START)?;
    let before = node.resident_bytes()?;
    fill::put_all(System::Evenkv, node.address, MANY_PAIRS)?;
    let after = node.resident_bytes()?;
    Ok(after.saturating_sub(before) as f64 / MANY_PAIRS as f64)
}

/// Starts the bare server, a node and a cluster, with the keys in the latter two; the bare one comes first.
fn start_targets() -> io::Result<Vec<Target>> {
    let addresses = free_addresses(2 + NODES)?;
    let (members, view) = (&addresses[2..], addresses[2..].iter().map(ToString::to_string));
    let view = ["--view".to_owned(), view.collect::<Vec<_>>().join(",")];
    let node = Target { name: report::NODE, processes: vec![Process::node(addresses[1], &[])?] };
    let cluster = members.iter().map(|member| Process::node(*member, &view)).collect::<io::Result<_>>()?;
    let mut targets = vec![node, Target { name: "cluster", processes: cluster }];
    for target in &mut targets {
        for process in &mut target.processes {
            process.wait_until_ready("/readyz", START)?;
        }
        fill::put_all(System::Evenkv, target.processes[0].address, KEYS)?;
    }
    let lengths = [Kind::Get, Kind::Put].map(|kind| answer_length(&targets[0].processes[0], kind));
    let [get_length, put_length] = lengths;
    let arguments = [addresses[0].to_string(), get_length?, put_length?, BARE_WORKERS.to_string()];
    let own = std::env::current_exe()?;
    let mut bare = Command::new(own);
    bare.arg("bare").args(arguments).env_clear();
    let mut bare = Process::spawn(bare, addresses[0])?;
    bare.wait_until_ready("/", START)?;
    targets.insert(0, Target { name: report::BARE, processes: vec![bare] });
    Ok(targets)
}

/// How long a node's answer is, in bytes: the bare server's is made as long.
fn answer_length(node: &Process, kind: Kind) -> io::Result<String> {
    let mut connection = Connection::open(node.address, ONE_ANSWER)?;
    Ok(connection.ask(&System::Evenkv.request(kind, 0))?.len().to_string())
}
