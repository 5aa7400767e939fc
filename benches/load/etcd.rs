//! The three members of an etcd cluster on the loopback interface, to compare with. Ours keeps its pairs in memory, so
//! etcd does not wait for its disk either.

use std::io;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Process, free_addresses};

/// Starts a member in each of these folders.
///
/// # Errors
/// When one cannot be started.
pub(crate) fn start(folders: &[TempDir]) -> io::Result<Vec<Process>> {
    let addresses = free_addresses(2 * folders.len())?;
    let (clients, peers) = addresses.split_at(folders.len());
    let named = |(number, peer): (usize, &SocketAddr)| format!("{}=http://{peer}", name(number));
    let all = peers.iter().enumerate().map(named).collect::<Vec<_>>().join(",");
    let start = |number: usize| {
        let (client, peer) = (format!("http://{}", clients[number]), format!("http://{}", peers[number]));
        let mut command = Command::new("etcd");
        command
            .args(["--name", &name(number), "--unsafe-no-fsync", "--initial-cluster", &all])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            // Members that are killed are news to the others.
            .args(["--logger", "zap", "--log-level", "panic"])
            .arg("--data-dir")
            // One of its own making: it finds fault with the rights of others.
            .arg(folders[number].path().join("data"));
        Process::spawn(command, clients[number])
    };
    (0..folders.len()).map(start).collect()
}

fn name(number: usize) -> String {
    format!("member-{number}")
}
