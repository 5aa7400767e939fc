//! Many connections at once to processes that have just started: each of them is served.
//!
//! tiny_http's pool starts no thread for a connection while one thread waits, even if several connections were just
//! given to that one, so a burst is where connections are forgotten.
#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test polls and measures"
)]

#[path = "support/attack.rs"]
mod attack;
mod support;

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use attack::{connect, prompt, receive_status};
use support::cluster::Cluster;
use support::node::Node;

/// Connections of one burst.
const BURST: usize = 64;
/// Fresh processes, or clusters, that a burst is tried on.
const FRESH: usize = 20;

/// The tests measure times, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens all connections, then sends on all of them, then reads from all of them; panics when one has no answer in time.
fn burst(round: usize, addresses: &[&str]) {
    let started = Instant::now();
    let mut streams: Vec<_> = (0..BURST)
        .map(|number| connect(addresses[number % addresses.len()]).expect("the node listens"))
        .collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        let body = format!("{{\"value\":{number}}}");
        let head = format!(
            "PUT /kv-store/keys/burst-{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {}",
            body.len()
        );
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).expect("a small request is taken");
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let status = receive_status(stream);
        let took = started.elapsed();
        assert!(
            matches!(status, Ok(200 | 201)) && took < prompt(),
            "round {round}, connection {number}: {status:?} after {took:?}"
        );
    }
}

#[test]
fn a_fresh_process_serves_every_connection_of_a_burst() {
    let _turn = turn();
    for round in 0..FRESH {
        let node = Node::single(&[]);
        burst(round, &[node.address()]);
    }
}

#[test]
fn a_fresh_follower_serves_every_connection_of_a_burst() {
    let _turn = turn();
    for round in 0..FRESH {
        let main = Node::single(&[]);
        let follower = Node::follower(main.address(), &[]);
        burst(round, &[follower.address()]);
    }
}

#[test]
fn a_fresh_cluster_serves_every_connection_of_a_burst() {
    let _turn = turn();
    for round in 0..FRESH {
        let cluster = Cluster::of(3);
        let addresses: Vec<&str> = cluster.nodes.iter().map(Node::address).collect();
        burst(round, &addresses[..1]);
        burst(round, &addresses);
    }
}
