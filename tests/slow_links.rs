//! Nodes whose links are slow: 12.5 MB/s out of each, and 20 ms from one to the other.
//!
//! The links are slowed down by `tc` in network namespaces. Few kernels can hold packets back, so a relay before each node does that. It needs root,
//! iproute2 and iptables; where they cannot be had, the test says so and is left out.
#![allow(clippy::disallowed_methods, reason = "how long requests take is what is looked at")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use support::http::Http;
use support::network::Network;
use support::node::Node;
use support::replicated::{wait_agreed, wait_leader};

/// From one node to another.
const ONE_WAY: Duration = Duration::from_millis(20);
/// Out of each node.
const RATE: &str = "100mbit";
/// Where the nodes listen themselves; others reach them by their relay.
const OWN_PORT: u16 = 13_801;
/// A little less than the longest value that is taken by default.
const LARGE: usize = 7_900 << 10;
/// What a relay holds of one connection at most, in pieces.
const HELD: usize = 64;

/// Passes what comes to the address of a node on to it, later.
fn relay(namespace: &str, address: &str, own: &str) {
    let space = File::open(format!("/var/run/netns/{namespace}")).expect("the namespace");
    let (address, own) = (address.to_owned(), own.to_owned());
    let (ready, listening) = sync_channel(0);
    // It ends with the process of the test.
    thread::spawn(move || {
        setns(&space, CloneFlags::CLONE_NEWNET).expect("into the namespace");
        let listener = TcpListener::bind(&address).expect("the address of the node");
        ready.send(()).expect("somebody waits");
        for client in listener.incoming().map_while(Result::ok) {
            // The node may be down.
            let Ok(node) = TcpStream::connect(&own) else { continue };
            let ends = [(&client, &node), (&node, &client)];
            for (from, to) in ends.map(|(from, to)| (from.try_clone(), to.try_clone())) {
                let (from, to) = (from.expect("a socket"), to.expect("a socket"));
                to.set_nodelay(true).expect("a socket");
                let (sender, held) = sync_channel(HELD);
                thread::spawn(move || take(from, &sender));
                thread::spawn(move || give(to, &held));
            }
        }
    });
    listening.recv().expect("it listens");
}

fn take(mut from: TcpStream, held: &SyncSender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if held.send((Instant::now() + ONE_WAY, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}

fn give(mut to: TcpStream, held: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in held {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The nodes, and where each is reached by the test, past its relay.
fn cluster(network: &Network) -> Result<(Vec<Node>, Vec<String>), String> {
    let addresses: Vec<String> = (0..3).map(|number| network.address(number)).collect();
    let view = addresses.join(",");
    let mut nodes = Vec::new();
    let mut reached = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        let host = address.split(':').next().expect("a host");
        let own = format!("{host}:{OWN_PORT}");
        relay(&network.namespace(number), address, &own);
        network.limit(number, RATE)?;
        let log = "info,evenkv::consensus=debug";
        let settings = [("LISTEN", own.as_str()), ("VIEW", &view), ("REPL_FACTOR", "3"), ("RUST_LOG", log)];
        nodes.push(Node::start_in(&network.namespace(number), address, &settings));
        reached.push(own);
    }
    nodes.iter().for_each(Node::wait_ready);
    Ok((nodes, reached))
}

/// Who stood for election since these lines of the logs.
fn elections(nodes: &[Node], since: &[usize]) -> Vec<String> {
    let stands =
        |line: &&str| ["is PreCandidate", "is Candidate", "is Leader"].iter().any(|role| line.contains(role));
    let logs = nodes.iter().zip(since);
    logs.flat_map(|(node, since)| {
        node.log().lines().skip(*since).filter(stands).map(str::to_owned).collect::<Vec<_>>()
    })
    .collect()
}

/// Says that something is over when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn large_values_over_slow_links_cause_no_election_and_hold_up_nobody() {
    let made = Network::of(3).and_then(|network| cluster(&network).map(|nodes| (network, nodes)));
    let (_network, (nodes, reached)) = match made {
        Ok(made) => made,
        Err(reason) => return eprintln!("left out, as there is no network for it: {reason}"),
    };
    wait_leader(&reached[0], "1", |_| true);
    let large = format!("{{\"value\":\"{}\"}}", "x".repeat(LARGE));
    let is_over = AtomicBool::new(false);
    let since: Vec<usize> = nodes.iter().map(|node| node.log().lines().count()).collect();
    let mut took = Vec::new();
    thread::scope(|scope| {
        let small: Vec<_> = reached
            .iter()
            .map(|address| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let (mut client, mut took) = (Http::new(address), Vec::new());
                    while !is_over.load(Ordering::Relaxed) {
                        for key in 0..12 {
                            let begun = Instant::now();
                            let answer = client.put(&format!("/kv-store/keys/small{key}"), r#"{"value":1}"#);
                            assert!(
                                answer.status < 300,
                                "a small write: {} {}",
                                answer.status,
                                answer.text()
                            );
                            took.push(begun.elapsed());
                        }
                    }
                    took
                })
            })
            .collect();
        // Also where something fails: the small writes end.
        let end = Over(&is_over);
        let mut client = Http::with_patience(&reached[0], Duration::from_secs(20));
        for number in 0..4 {
            let begun = Instant::now();
            let answer =
                client.request("PUT", &format!("/kv-store/keys/large{number}"), &[], large.as_bytes());
            println!("large{number}: {} after {:.0?}", answer.status, begun.elapsed());
            assert!(
                [200, 201].contains(&answer.status),
                "large{number}: {} {}",
                answer.status,
                answer.text()
            );
        }
        drop(end);
        took.extend(small.into_iter().flat_map(|small| small.join().expect("small writes")));
    });
    took.sort_unstable();
    println!(
        "{} small writes: median {:.0?}, 99 of 100 within {:.0?}, longest {:.0?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1]
    );
    let elections = elections(&nodes, &since);
    assert!(elections.is_empty(), "{} steps of elections: {elections:#?}", elections.len());
    assert!(took[took.len() - 1] < Duration::from_secs(1), "a small write took {:.0?}", took[took.len() - 1]);
    wait_agreed(&reached[0]);
}
