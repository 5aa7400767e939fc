//! One round of load by wrk.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::after;
use tempfile::NamedTempFile;

use crate::answered::{self, Spread};
use crate::process::Process;
use crate::system::System;

/// Connections that are kept open during a round; a few less where they do not divide among the servers.
const CONNECTIONS: usize = 64;
/// The same of batches, and how many pairs each has.
const BATCH_CONNECTIONS: usize = 8;
pub(crate) const BATCH_LINES: u32 = 100;
/// As many different batches are sent.
const BATCHES: u64 = 500;
/// Stands for the end of a line in what `keys.lua` reads.
const LINE_END: &str = "\u{1}";
/// Threads of wrk where one server is asked.
const THREADS: usize = 2;
/// Keys that the requests are about.
pub(crate) const KEYS: u64 = 10_000;
/// A round in which a connection went unanswered is repeated this often.
const MOST_REPEATS: u32 = 3;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/keys.lua");

/// What the requests of a round do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read values.
    Get,
    /// Replace values.
    Put,
    /// Replace many values at once.
    Batch,
}

impl Kind {
    /// The HTTP method.
    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Batch => "POST",
        }
    }
}

impl Kind {
    /// How many pairs a request is about.
    pub(crate) fn pairs(self) -> f64 {
        if self == Self::Batch { f64::from(BATCH_LINES) } else { 1.0 }
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

/// What is asked of whom.
pub(crate) struct Load<'a> {
    pub(crate) system: System,
    /// All that do the work.
    pub(crate) processes: &'a [Process],
    /// Those of them that the connections go to, in equal numbers.
    pub(crate) asked: Vec<SocketAddr>,
    pub(crate) kind: Kind,
}

impl<'a> Load<'a> {
    /// Asks the first of some nodes.
    pub(crate) fn on_first(processes: &'a [Process], kind: Kind) -> Self {
        Self { system: System::Evenkv, processes, asked: vec![processes[0].address], kind }
    }

    /// Each thread asks one server only.
    fn threads(&self) -> usize {
        if self.asked.len() == 1 { THREADS } else { self.asked.len() }
    }

    fn connections(&self) -> usize {
        let connections = if self.kind == Kind::Batch { BATCH_CONNECTIONS } else { CONNECTIONS };
        connections / self.threads() * self.threads()
    }

    /// The requests as `keys.lua` reads them.
    fn write_requests(&self) -> io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new()?;
        let line = |key| {
            let request = self.system.request(self.kind, key);
            format!("{}\t{}\t{}\n", request.method, request.path, request.body.replace('\n', LINE_END))
        };
        let count = if self.kind == Kind::Batch { BATCHES } else { KEYS };
        file.write_all((0..count).map(line).collect::<String>().as_bytes())?;
        Ok(file)
    }

    fn start(&self, requests: &NamedTempFile, length: Duration) -> io::Result<Child> {
        let servers = self.asked.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Command::new("wrk")
            .args(["--threads", &self.threads().to_string(), "--timeout", "5s"])
            .args(["--connections", &self.connections().to_string()])
            .args(["--duration", &format!("{}s", length.as_secs()), "--script", SCRIPT])
            .arg(format!("http://{}", self.asked[0]))
            .arg("--")
            .arg(requests.path())
            .env("SERVERS", servers)
            .stdout(Stdio::piped())
            .spawn()
    }

    fn cpu_time(&self) -> io::Result<Duration> {
        self.processes.iter().map(Process::cpu_time).sum()
    }
}

/// Runs a round until every connection was answered.
///
/// # Errors
/// When requests fail, or connections go unanswered again and again.
pub(crate) fn run(load: &Load<'_>, length: Duration) -> io::Result<Round> {
    let mut reason = String::new();
    for _ in 0..=MOST_REPEATS {
        match try_once(load, length)? {
            Ok(round) => return Ok(round),
            Err(starved) => {
                eprintln!("  a {} round is repeated: {starved}", load.kind.method());
                reason = starved;
            }
        }
    }
    Err(io::Error::other(reason))
}

fn try_once(load: &Load<'_>, length: Duration) -> io::Result<Result<Round, String>> {
    let requests = load.write_requests()?;
    let cpu_before = load.cpu_time()?;
    let wrk = load.start(&requests, length)?;
    let client = wrk.id();
    // Early, but not before all connections are there; and late, but not after the first are gone.
    let early = after(length / 4).recv().map_err(io::Error::other).and_then(|_| answered::look(client));
    let late = after(length / 2).recv().map_err(io::Error::other).and_then(|_| answered::look(client));
    let said = wrk.wait_with_output()?;
    let cpu = load.cpu_time()?.saturating_sub(cpu_before);
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
    Ok(Spread::between(&early?, &late?, load.connections() as u64).map(|spread| Round {
        rate: to_float(answered) * 1e6 / to_float(figure("microseconds").unwrap_or(1)),
        cpu_micros: cpu.as_secs_f64() * 1e6 / to_float(answered),
        p50_micros: figure("p50").unwrap_or(0),
        p99_micros: figure("p99").unwrap_or(0),
        spread,
    }))
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
