//! Load on a node and on a cluster, beside a bare `tiny_http` server in the same run, and the memory that pairs take;
//! and how fast a view change moves pairs, beside a Redis Cluster where that is installed.
//!
//! The servers take turns, so that whatever else the machine does meanwhile touches all of them; what counts are
//! ratios of medians, and CPU time per request. wrk, on the same machine, takes its part of the processors, too.

mod answered;
mod bare;
mod fill;
mod moving;
mod process;
mod redis;
mod report;
mod wrk;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use bare::Bare;
use process::{Process, free_addresses};
use report::Series;
use wrk::{KEYS, Kind, PATH};

/// Pairs that are put in to see how much memory they take.
const MANY_PAIRS: u64 = 1_000_000;
/// Nodes of the cluster.
const NODES: usize = 3;
/// As many as a node has for clients unless told otherwise.
const BARE_WORKERS: usize = 16;

/// Compares a node and a cluster with a bare tiny_http server under load, and measures the memory per pair.
#[derive(Parser)]
struct Cli {
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Length of a round in seconds
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Rounds per server and method
    #[arg(long, env = "BENCH_ROUNDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only this part
    #[arg(long, env = "BENCH_PART")]
    part: Option<Part>,
    #[command(subcommand)]
    mode: Option<Mode>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Requests beside a bare `tiny_http` server, and memory.
    Serving,
    /// View changes.
    Moving,
}

#[derive(Subcommand)]
enum Mode {
    /// Be the server to compare with.
    Bare(Bare),
}

/// A server, made of one process or several, of which the first is asked.
struct Target {
    name: &'static str,
    processes: Vec<Process>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.mode {
        Some(Mode::Bare(bare)) => bare.serve().map(|()| true),
        None => measure(cli.part, Duration::from_secs(cli.seconds), cli.rounds),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all targets of the wanted parts were met.
fn measure(part: Option<Part>, length: Duration, rounds: u64) -> io::Result<bool> {
    let mut are_met = true;
    if part != Some(Part::Moving) {
        are_met &= compare(length, rounds)?;
    }
    if part != Some(Part::Serving) {
        moving::measure(length, rounds)?;
    }
    Ok(are_met)
}

/// Whether all targets were met.
fn compare(length: Duration, rounds: u64) -> io::Result<bool> {
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
                series.rounds.push(wrk::run(&target.processes, kind, length)?);
            }
        }
        all.append(&mut series);
    }
    println!();
    report::print_table(&all);
    println!();
    Ok(report::print_verdicts(&all, bytes_per_pair))
}

/// What a pair adds to the resident memory of a node, in bytes.
#[expect(clippy::cast_precision_loss, reason = "a memory is far below 2^53 bytes")]
fn bytes_per_pair() -> io::Result<f64> {
    let mut node = Process::node(free_addresses(1)?[0], &[])?;
    node.wait_until_ready("/readyz")?;
    let before = node.resident_bytes()?;
    fill::put_all(node.address, MANY_PAIRS)?;
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
            process.wait_until_ready("/readyz")?;
        }
        fill::put_all(target.processes[0].address, KEYS)?;
    }
    let lengths = [Kind::Get, Kind::Put].map(|kind| answer_length(&targets[0].processes[0], kind));
    let [get_length, put_length] = lengths;
    let arguments = [addresses[0].to_string(), get_length?, put_length?, BARE_WORKERS.to_string()];
    let own = std::env::current_exe()?;
    let arguments = [&["bare".to_owned()], &arguments[..]].concat();
    let mut bare = Process::start(&own.to_string_lossy(), addresses[0], &arguments)?;
    bare.wait_until_ready("/")?;
    targets.insert(0, Target { name: "bare", processes: vec![bare] });
    Ok(targets)
}

/// How long a node's answer is, in bytes: the bare server's is made as long.
fn answer_length(node: &Process, kind: Kind) -> io::Result<String> {
    let url = format!("http://{}{PATH}{:016}", node.address, 0);
    let response = match kind {
        Kind::Get => ureq::get(&url).call(),
        Kind::Put => ureq::put(&url).send(wrk::value_body()),
    };
    let body =
        response.and_then(|mut response| response.body_mut().read_to_vec()).map_err(io::Error::other)?;
    Ok(body.len().to_string())
}
