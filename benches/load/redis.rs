//! A Redis Cluster with the same pairs, to compare view changes with: `redis-cli --cluster rebalance` moves its slots.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};

use evenkv::clock::now;
use tempfile::TempDir;

use crate::moving::{Change, FEW, PAIRS};
use crate::process::{Process, START, free_addresses, is_installed};

/// What the keys of a cluster are divided into; every master owns some.
const SLOTS: usize = 16_384;
/// Every master also listens this far above its port.
const BUS_PORT_OFFSET: u16 = 10_000;
/// Pairs that are sent before the answers are read.
const BATCH: usize = 500;

/// Three masters with all the slots, and a fourth without.
pub(crate) struct Redis {
    masters: Vec<Process>,
    /// What the cluster calls the fourth.
    last_id: String,
    /// Where each keeps the list of the others.
    _folders: Vec<TempDir>,
}

impl Redis {
    /// Starts the masters and puts in the pairs; nothing where Redis is not installed.
    pub(crate) fn start_if_installed() -> io::Result<Option<Self>> {
        if is_installed("redis-server") && is_installed("redis-cli") {
            Self::start().map(Some)
        } else {
            Ok(None)
        }
    }

    fn start() -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = free_addresses(16 * (FEW + 1))?
            .into_iter()
            .filter(|address| address.port() < u16::MAX - BUS_PORT_OFFSET)
            .take(FEW + 1)
            .collect();
        let (mut masters, mut folders) = (Vec::new(), Vec::new());
        for address in &addresses {
            let folder = TempDir::new()?;
            masters.push(start_master(*address, &folder)?);
            folders.push(folder);
        }
        for master in &mut masters {
            let address = master.address;
            master.wait_until("Redis is up", START, || ask(address, &["ping"]).is_ok())?;
        }
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let few: Vec<&str> = texts[..FEW].iter().map(String::as_str).collect();
        cluster(&[&["create"], &few[..], &["--cluster-yes"]].concat())?;
        let mut redis = Self { masters, last_id: String::new(), _folders: folders };
        redis.fill()?;
        cluster(&["add-node", &texts[FEW], &texts[0]])?;
        redis.last_id = ask(addresses[FEW], &["cluster", "myid"])?;
        Ok(redis)
    }

    /// Puts in the pairs, each at the master that owns its slot.
    fn fill(&mut self) -> io::Result<()> {
        self.wait_until_agreed(FEW)?;
        let value = "v".repeat(100);
        let mut connections = Vec::new();
        for master in &self.masters[..FEW] {
            let stream = TcpStream::connect(master.address)?;
            connections.push((BufReader::new(stream.try_clone()?), stream, String::new(), 0));
        }
        for key in 0..PAIRS {
            let key = format!("{key:016}");
            let (answers, stream, batch, waiting) = &mut connections[owner_of(slot_of(key.as_bytes()))];
            *batch += &set(&key, &value);
            *waiting += 1;
            if *waiting == BATCH {
                send(stream, answers, batch, waiting)?;
            }
        }
        for (answers, stream, batch, waiting) in &mut connections {
            send(stream, answers, batch, waiting)?;
        }
        Ok(())
    }

    /// Until then slots are neither served nor taken: the masters hear of each other, and of a change, by gossip.
    fn wait_until_agreed(&mut self, count: usize) -> io::Result<()> {
        for master in &mut self.masters[..count] {
            let address = master.address;
            master.wait_until("Redis serves its slots", START, || {
                ask(address, &["cluster", "info"]).is_ok_and(|info| info.contains("cluster_state:ok"))
            })?;
        }
        let first = self.masters[0].address.to_string();
        self.masters[0].wait_until("the masters of Redis agree", START, || {
            cluster_output(&["check", &first]).is_ok_and(|output| output.status.success())
        })
    }

    /// From three masters to four.
    pub(crate) fn spread(&mut self) -> io::Result<Change> {
        self.rebalance(&["--cluster-use-empty-masters"])
    }

    /// From four masters to three.
    pub(crate) fn gather(&mut self) -> io::Result<Change> {
        let weight = format!("{}=0", self.last_id);
        self.rebalance(&["--cluster-weight", &weight])
    }

    fn rebalance(&mut self, arguments: &[&str]) -> io::Result<Change> {
        self.wait_until_agreed(FEW + 1)?;
        let first = self.masters[0].address.to_string();
        let before = self.pairs_on_last()?;
        let begun = now();
        cluster(&[&["rebalance", &first], arguments].concat())?;
        let took = now() - begun;
        Ok(Change { moved: self.pairs_on_last()?.abs_diff(before), took })
    }

    fn pairs_on_last(&self) -> io::Result<u64> {
        ask(self.masters[FEW].address, &["dbsize"])?.parse().map_err(io::Error::other)
    }
}

fn start_master(address: SocketAddr, folder: &TempDir) -> io::Result<Process> {
    let mut command = Command::new("redis-server");
    command
        .current_dir(folder.path())
        .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--save", "", "--appendonly", "no", "--cluster-enabled", "yes"])
        // Otherwise a master that gave its last slot away becomes a replica.
        .args(["--cluster-allow-replica-migration", "no"]);
    Process::spawn(command, address)
}

/// What `redis-cli` answers to a command, without the end of the line.
fn ask(address: SocketAddr, words: &[&str]) -> io::Result<String> {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let output = Command::new("redis-cli").args(["-h", &host, "-p", &port]).args(words).output()?;
    said(&output).map(|text| text.trim_end().to_owned())
}

fn cluster(words: &[&str]) -> io::Result<()> {
    said(&cluster_output(words)?).map(drop)
}

fn cluster_output(words: &[&str]) -> io::Result<Output> {
    Command::new("redis-cli").arg("--cluster").args(words).output()
}

fn said(output: &Output) -> io::Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(io::Error::other(format!("redis-cli failed: {text}")))
    }
}

/// A SET as it is sent.
fn set(key: &str, value: &str) -> String {
    format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len())
}

/// Sends a batch of SETs and reads as many answers.
fn send(
    stream: &mut TcpStream,
    answers: &mut BufReader<TcpStream>,
    batch: &mut String,
    waiting: &mut usize,
) -> io::Result<()> {
    stream.write_all(batch.as_bytes())?;
    let mut line = String::new();
    for _ in 0..*waiting {
        line.clear();
        answers.read_line(&mut line)?;
        if line != "+OK\r\n" {
            return Err(io::Error::other(format!("a SET was answered {line:?}")));
        }
    }
    batch.clear();
    *waiting = 0;
    Ok(())
}

/// The slot of a key without braces: CRC-16/XMODEM, as the specification of Redis Cluster has it.
fn slot_of(key: &[u8]) -> usize {
    let step = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    let crc =
        key.iter().fold(0_u16, |crc, byte| (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| step(crc)));
    usize::from(crc) % SLOTS
}

/// Which of the masters has the slot after `create`, which cuts the slots at the nearest whole ones.
fn owner_of(slot: usize) -> usize {
    let last_of = |master: usize| ((master + 1) * SLOTS * 2 / FEW).div_ceil(2).saturating_sub(1);
    (0..FEW).find(|master| slot <= last_of(*master)).unwrap_or(FEW - 1)
}
