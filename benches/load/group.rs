//! Processes that hold the same pairs, of any of the systems: started, asked for their leader, killed and started again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;

use crate::client::Connection;
use crate::etcd;
use crate::fill;
use crate::process::{
    ONE_ANSWER, Process, START, free_addresses, is_in_path, is_installed, node_command, wait_for,
};
use crate::system::{Belief, System};
use crate::webdis;

/// Replicas of the shard.
pub(crate) const REPLICAS: usize = 3;

/// Processes that hold the same pairs; they are ended when this is dropped.
pub(crate) struct Group {
    pub(crate) system: System,
    pub(crate) processes: Vec<Process>,
    /// Where they keep what they store, one each; nodes of ours have none.
    _folders: Vec<TempDir>,
}

impl Group {
    /// One node, which serves alone.
    ///
    /// # Errors
    /// When it does not get ready in time.
    pub(crate) fn single_node() -> io::Result<Self> {
        let process = Process::node(free_addresses(1)?[0], &[])?;
        Self::ready(Self { system: System::Evenkv, processes: vec![process], _folders: Vec::new() })
    }

    /// Three nodes of one shard.
    ///
    /// # Errors
    /// When they do not get ready in time.
    pub(crate) fn of_evenkv() -> io::Result<Self> {
        let addresses = free_addresses(REPLICAS)?;
        let view = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let flags = ["--view".to_owned(), view, "--repl-factor".to_owned(), REPLICAS.to_string()];
        let start = |address: &SocketAddr| {
            let mut command = node_command(*address, &flags);
            // That a node which is killed here is gone is no news.
            command.env("RUST_LOG", "error");
            Process::spawn(command, *address)
        };
        let processes = addresses.iter().map(start).collect::<io::Result<_>>()?;
        Self::ready(Self { system: System::Evenkv, processes, _folders: Vec::new() })
    }

    /// Three members of etcd; nothing where it is not installed.
    ///
    /// # Errors
    /// When they do not get ready in time.
    pub(crate) fn of_etcd() -> io::Result<Option<Self>> {
        if !is_installed("etcd") {
            return Ok(None);
        }
        let folders = (0..REPLICAS).map(|_| TempDir::new()).collect::<io::Result<Vec<_>>>()?;
        let processes = etcd::start(&folders)?;
        Self::ready(Self { system: System::Etcd, processes, _folders: folders }).map(Some)
    }

    /// A Redis server behind webdis, which is the first; nothing where one of the two is not installed.
    ///
    /// # Errors
    /// When they do not get ready in time.
    pub(crate) fn of_redis() -> io::Result<Option<Self>> {
        // Whatever webdis is told, it serves.
        if !is_installed("redis-server") || !is_in_path("webdis") {
            return Ok(None);
        }
        let folder = TempDir::new()?;
        let processes = webdis::start(&folder)?;
        let mut group = Self { system: System::Redis, processes, _folders: vec![folder] };
        // It answers for the other one.
        group.wait_until_ready(0, START)?;
        Ok(Some(group))
    }

    /// Processes that keep nothing in folders.
    pub(crate) fn of_processes(system: System, processes: Vec<Process>) -> Self {
        Self { system, processes, _folders: Vec::new() }
    }

    fn ready(mut group: Self) -> io::Result<Self> {
        for index in 0..group.processes.len() {
            group.wait_until_ready(index, START)?;
        }
        Ok(group)
    }

    /// Waits until the process does its part: one that was started again holds all the pairs and has a vote.
    ///
    /// # Errors
    /// When that does not happen in time, or it has ended.
    pub(crate) fn wait_until_ready(&mut self, index: usize, within: Duration) -> io::Result<()> {
        self.processes[index].wait_until_ready(self.system.ready_path(), within)
    }

    /// Puts in the keys `0..count` through the leader.
    ///
    /// # Errors
    /// When one of them fails.
    pub(crate) fn fill(&self, count: u64) -> io::Result<()> {
        fill::put_all(self.system, self.processes[self.leader()?].address, count)
    }

    /// Kills a process and starts it again at once, as whatever watches over it would.
    ///
    /// # Errors
    /// Only those of the system.
    pub(crate) fn crash(&mut self, index: usize) -> io::Result<()> {
        self.processes[index].kill()?;
        self.processes[index].start_again()
    }

    /// The index of the process that leads, when all of them say so.
    ///
    /// # Errors
    /// When they do not agree in time.
    pub(crate) fn leader(&self) -> io::Result<usize> {
        if self.processes.len() == 1 || self.system == System::Redis {
            return Ok(0);
        }
        let what = format!("all replicas of {} name the same leader", self.system.name());
        wait_for(&what, START, || {
            let beliefs: Option<Vec<Belief>> =
                self.processes.iter().map(|one| self.ask_leader(one)).collect();
            Ok(beliefs.as_deref().and_then(agreed))
        })
    }

    fn ask_leader(&self, process: &Process) -> Option<Belief> {
        let mut connection = Connection::open(process.address, ONE_ANSWER).ok()?;
        let answer = connection.ask(&self.system.leader_request()).ok()?;
        self.system.belief(&process.address.to_string(), &answer)
    }

    /// The addresses of all.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.processes.iter().map(|process| process.address).collect()
    }

    /// The addresses of all but one.
    pub(crate) fn addresses_without(&self, index: usize) -> Vec<SocketAddr> {
        let mut addresses = self.addresses();
        addresses.remove(index);
        addresses
    }
}

/// The index of the one that all take for the leader.
fn agreed(beliefs: &[Belief]) -> Option<usize> {
    let leader = &beliefs[0].leader;
    let all_agree = beliefs.iter().all(|belief| belief.leader == *leader);
    if all_agree { beliefs.iter().position(|belief| belief.own == *leader) } else { None }
}
