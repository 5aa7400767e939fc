//! One round of load by wrk.

use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::after;

use crate::answered::{self, Spread};
use crate::process::Process;

/// Connections that are kept open during a round.
pub(crate) const CONNECTIONS: u64 = 64;
/// Keys that the requests are about.
pub(crate) const KEYS: u64 = 10_000;
/// A round in which a connection went unanswered is repeated this often.
const MOST_REPEATS: u32 = 3;
/// The pairs of keys, shared by all that sends requests.
pub(crate) const PATH: &str = "/kv-store/keys/";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/keys.lua");

/// What the requests of a round do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read values.
    Get,
    /// Replace values.
    Put,
}

impl Kind {
    /// The HTTP method.
    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// What came of a round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// Answers a second.
    pub(crate) rate: f64,
    /// CPU time of the servers per answer, in microseconds.
    pub(crate) cpu_micros: f64,
    /// Time that half of the answers took at most, in microseconds.
    pub(crate) p50_micros: u64,
    /// Time that 99 of 100 answers took at most, in microseconds.
    pub(crate) p99_micros: u64,
    /// How evenly the connections were served.
    pub(crate) spread: Spread,
}

/// Runs a round against the first of some processes, which all do the work, until every connection was answered.
///
/// # Errors
/// When requests fail, or connections go unanswered again and again.
pub(crate) fn run(processes: &[Process], kind: Kind, length: Duration) -> io::Result<Round> {
    let mut reason = String::new();
    for _ in 0..=MOST_REPEATS {
        match try_once(processes, kind, length)? {
            Ok(round) => return Ok(round),
            Err(starved) => {
                eprintln!("  a {} round is repeated: {starved}", kind.method());
                reason = starved;
            }
        }
    }
    Err(io::Error::other(reason))
}

fn try_once(processes: &[Process], kind: Kind, length: Duration) -> io::Result<Result<Round, String>> {
    let address = processes[0].address;
    let cpu_before = cpu_time(processes)?;
    // Nodes of a cluster keep connections among each other, which are idle.
    let others = answered::look(address)?;
    let wrk = start(address, kind, length)?;
    // Early, but not before all connections are there; and late, but not after the first are gone.
    let early = after(length / 4).recv().map_err(io::Error::other).and_then(|_| answered::look(address));
    let late = after(length / 2).recv().map_err(io::Error::other).and_then(|_| answered::look(address));
    let said = wrk.wait_with_output()?;
    let cpu = cpu_time(processes)?.saturating_sub(cpu_before);
    let said = String::from_utf8_lossy(&said.stdout);
    let figure = |name: &str| figure(&said, name);
    let (status_errors, socket_errors) = (figure("status_errors")?, figure("socket_errors")?);
    if status_errors + socket_errors > 0 {
        return Ok(Err(format!("{status_errors} answers and {socket_errors} connections failed")));
    }
    let answered = figure("answered")?;
    if answered == 0 {
        return Ok(Err("nothing was answered".to_owned()));
    }
    let mut early = early?;
    early.retain(|own, _| !others.contains_key(own));
    Ok(Spread::between(&early, &late?, CONNECTIONS).map(|spread| Round {
        rate: to_float(answered) * 1e6 / to_float(figure("microseconds").unwrap_or(1)),
        cpu_micros: cpu.as_secs_f64() * 1e6 / to_float(answered),
        p50_micros: figure("p50").unwrap_or(0),
        p99_micros: figure("p99").unwrap_or(0),
        spread,
    }))
}

fn start(address: SocketAddr, kind: Kind, length: Duration) -> io::Result<Child> {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "2", "--timeout", "5s", "--connections", &CONNECTIONS.to_string()])
        .args(["--duration", &format!("{}s", length.as_secs()), "--script", SCRIPT])
        .arg(format!("http://{address}"))
        .args(["--", kind.method(), &KEYS.to_string(), PATH]);
    if kind == Kind::Put {
        wrk.arg(value_body());
    }
    wrk.stdout(Stdio::piped()).spawn()
}

/// The body of every PUT: a value of 100 bytes.
pub(crate) fn value_body() -> String {
    format!("{{\"value\":\"{}\"}}", "v".repeat(100))
}

fn cpu_time(processes: &[Process]) -> io::Result<Duration> {
    processes.iter().map(Process::cpu_time).sum()
}

fn figure(said: &str, name: &str) -> io::Result<u64> {
    let fields = said.split_whitespace();
    let mut values = fields.filter_map(|field| field.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    values.next().ok_or_else(|| io::Error::other(format!("wrk did not say {name}:\n{said}")))
}

#[expect(clippy::cast_precision_loss, reason = "figures of a few seconds are far below 2^53")]
fn to_float(count: u64) -> f64 {
    count as f64
}
