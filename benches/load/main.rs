//! Benchmarks, each beside something to compare with in the same run; scripts/bench says which parts there are.
//!
//! The servers take turns, so that whatever else the machine does meanwhile touches all of them; what counts are
//! ratios of medians, and CPU time per request. wrk, on the same machine, takes its part of the processors, too.

mod answered;
mod bare;
mod batches;
mod client;
mod etcd;
mod failover;
mod fill;
mod following;
mod group;
mod listing;
mod moving;
mod process;
mod redis;
mod rejoin;
mod replicated;
mod report;
mod serving;
mod system;
mod webdis;
mod writers;
mod wrk;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum, value_parser};

use bare::Bare;

/// Measures nodes and clusters under load, beside others.
#[derive(Parser)]
struct Cli {
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Length of a round in seconds
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 5, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Rounds per server and method
    #[arg(long, env = "BENCH_ROUNDS", default_value_t = 5, value_parser = value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// How often the leader of evenkv is killed
    #[arg(long, env = "BENCH_KILLS", default_value_t = 50, value_parser = value_parser!(u64).range(1..=1000))]
    kills: u64,
    /// How often the leader of etcd is killed
    #[arg(long, env = "BENCH_ETCD_KILLS", default_value_t = 10, value_parser = value_parser!(u64).range(0..=1000))]
    etcd_kills: u64,
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
    #[value(alias = "single")]
    Serving,
    /// View changes.
    Moving,
    /// Requests to three replicas, beside etcd.
    Replicated,
    /// Leaders that are killed, beside etcd.
    Failover,
    /// A replica that comes back empty.
    Rejoin,
    /// Requests through a follower, beside its main and nginx.
    Following,
    /// Many pairs in one request, beside one by one and beside Redis and etcd, and an import.
    Batches,
    /// Pages of a listing.
    Listing,
}

#[derive(Subcommand)]
enum Mode {
    /// Be the server to compare with.
    Bare(Bare),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_done = match &cli.mode {
        Some(Mode::Bare(bare)) => bare.serve().map_err(|error| eprintln!("load: {error}")).is_ok(),
        None => cli.measure_wanted(),
    };
    if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Cli {
    /// Whether all targets of the wanted parts were met. A part that fails does not keep the others from being measured.
    fn measure_wanted(&self) -> bool {
        let mut are_met = true;
        for part in Part::value_variants() {
            if self.part.is_some_and(|wanted| wanted != *part) {
                continue;
            }
            match self.measure(*part) {
                Ok(is_met) => are_met &= is_met,
                Err(error) => {
                    are_met = false;
                    eprintln!("load: {error}");
                }
            }
            println!("Again: {}", self.command(*part));
            println!();
        }
        are_met
    }

    fn measure(&self, part: Part) -> io::Result<bool> {
        let length = Duration::from_secs(self.seconds);
        match part {
            Part::Serving => serving::measure(length, self.rounds),
            Part::Moving => moving::measure(length, self.rounds).map(|()| true),
            Part::Replicated => replicated::measure(length, self.rounds),
            Part::Failover => failover::measure(self.kills, self.etcd_kills),
            Part::Rejoin => rejoin::measure(self.rounds),
            Part::Following => following::measure(length, self.rounds),
            Part::Batches => batches::measure(length, self.rounds),
            Part::Listing => listing::measure(),
        }
    }

    /// What repeats a part.
    fn command(&self, part: Part) -> String {
        let (seconds, rounds) = (self.seconds, self.rounds);
        let load = format!("BENCH_SECONDS={seconds} BENCH_ROUNDS={rounds}");
        let settings = match part {
            Part::Serving => format!("BENCH_PART=serving {load}"),
            Part::Moving => format!("BENCH_PART=moving {load}"),
            Part::Replicated => format!("BENCH_PART=replicated {load}"),
            Part::Failover => {
                let (kills, etcd_kills) = (self.kills, self.etcd_kills);
                format!("BENCH_PART=failover BENCH_KILLS={kills} BENCH_ETCD_KILLS={etcd_kills}")
            }
            Part::Rejoin => format!("BENCH_PART=rejoin BENCH_ROUNDS={rounds}"),
            Part::Following => format!("BENCH_PART=following {load}"),
            Part::Batches => format!("BENCH_PART=batches {load}"),
            Part::Listing => "BENCH_PART=listing".to_owned(),
        };
        format!("{settings} make bench")
    }
}
