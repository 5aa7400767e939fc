//! How long a shard is without an acknowledged write when its leader is killed, hangs, or is cut off, under clients that use the other nodes.
//!
//! `make test-full` runs it; `cargo test --release --features failpoints --test failover -- --ignored --nocapture` alone
//! measures the program as it is shipped.
#![allow(clippy::disallowed_methods, reason = "the time without an answer is what is measured")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::cluster::Cluster;
use support::history::{self, Call, Outcome, Record};
use support::load::{Load, Mix, Profile};
use support::network::{Cut, Lost, Network};
use support::node::Node;
use support::replicated::{others, replicated, restart_ready, wait_agreed, wait_leader};
use support::{START_DEADLINE, wait_until};

/// A pause is no longer than this: an election, and some more.
const MOST: Duration = Duration::from_millis(700);
/// As many may be longer.
const MOST_LONGER: usize = 1;
/// Writes that are acknowledged before harm is done to a leader, and again after.
const SERVED: u64 = 200;

/// The longest time between two acknowledged writes of those that were acknowledged from `from` to `to`, in nanoseconds
/// since the start of the load; the time before the first of them and after the last counts, too.
fn longest_pause(acknowledged: &[u64], from: u64, to: u64) -> Duration {
    let mut last = from;
    let mut longest = 0;
    let within = acknowledged.iter().copied().filter(|at| (from..=to).contains(at));
    for at in within.chain([to]) {
        longest = longest.max(at - last);
        last = at;
    }
    Duration::from_nanos(longest)
}

/// When the writes of a history were acknowledged, in order.
fn acknowledged(records: &[Record]) -> Vec<u64> {
    let is_acknowledged = |record: &&Record| matches!(record.outcome, Outcome::Put { .. });
    let mut at: Vec<u64> = records.iter().filter(is_acknowledged).map(|record| record.returned).collect();
    at.sort_unstable();
    at
}

#[test]
fn pauses_are_measured_to_the_end() {
    let seconds = |times: &[u64], from, to| longest_pause(times, from, to).as_nanos();
    assert_eq!(seconds(&[1, 5, 6, 20], 5, 10), 4, "nothing came after 6");
    assert_eq!(seconds(&[1, 5, 6, 20], 2, 20), 14);
    assert_eq!(seconds(&[1], 3, 9), 6);
    assert_eq!(seconds(&[4, 6, 8], 3, 9), 2);
    let record = |returned, outcome| Record {
        client: 0,
        key: String::new(),
        call: Call::Put(1),
        called: 0,
        returned,
        outcome,
    };
    let put = Outcome::Put { replaced: true };
    let records =
        [record(9, put), record(7, Outcome::Unknown), record(5, put), record(6, Outcome::NotApplied)];
    assert_eq!(acknowledged(&records), [5, 9]);
}

/// What is done to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// It is killed: connections to it are reset.
    Kill,
    /// It stands still: connections to it stay, and are taken.
    Stop,
    /// All packets from and to the other nodes are lost.
    Cut,
}

/// Three nodes at factor 3, in a network of their own where packets are to be lost.
struct Ground {
    cluster: Cluster,
    network: Option<Network>,
}

impl Ground {
    /// `Err` says why this machine does not let packets be lost.
    fn of(harm: Harm) -> Result<Self, String> {
        if harm != Harm::Cut {
            return Ok(Self { cluster: replicated(3, 3, &[]), network: None });
        }
        let network = Network::of(3)?;
        let view = (0..3).map(|number| network.address(number)).collect::<Vec<_>>().join(",");
        let settings = [("VIEW", view.as_str()), ("REPL_FACTOR", "3")];
        let start = |number| Node::start_in(&network.namespace(number), &network.address(number), &settings);
        let nodes: Vec<Node> = (0..3).map(start).collect();
        nodes.iter().for_each(Node::wait_ready);
        Ok(Self { cluster: Cluster { nodes, view: view.clone() }, network: Some(network) })
    }

    fn harm(&mut self, harm: Harm, number: usize) {
        match harm {
            Harm::Kill => self.cluster.nodes[number].kill(),
            Harm::Stop => self.cluster.nodes[number].pause(),
            Harm::Cut => {
                let others = (0..3).filter(|other| *other != number);
                let both = others.flat_map(|other| [(number, other), (other, number)]);
                let cuts = both.map(|(from, to)| Cut { from, to, lost: Lost::Everything });
                self.network().cut(&cuts.collect()).expect("packets can be lost");
            }
        }
    }

    fn mend(&mut self, harm: Harm, number: usize) {
        match harm {
            Harm::Kill => restart_ready(&mut self.cluster.nodes[number]),
            Harm::Stop => self.cluster.nodes[number].resume(),
            Harm::Cut => self.network().cut(&BTreeSet::new()).expect("packets can pass"),
        }
        self.cluster.nodes[number].wait_ready();
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("there is one where packets are to be lost")
    }
}

/// Does the same harm to one leader after the other, while all clients use the other nodes. One pause at most is longer than `MOST`.
fn harm_leaders(harm: Harm, times: usize) {
    let mut ground = match Ground::of(harm) {
        Ok(ground) => ground,
        Err(reason) => return eprintln!("left out, as there is no network for it: {reason}"),
    };
    let all = ground.cluster.addresses();
    let profile = Profile { keys: 200, mix: Mix::Puts, ..Profile::default() };
    let load = Load::start(&all, &profile);
    let served = |count: u64| {
        let before = load.answers();
        wait_until("writes are acknowledged", START_DEADLINE, || load.answers() >= before + count);
    };
    let mut harmed = Vec::new();
    for round in 0..times {
        load.turn_over();
        let leader = wait_leader(&all[round % 3], "1", |_| true);
        let number = all.iter().position(|address| *address == leader).expect("it is one of them");
        load.ask(&others(&all, &[&leader]));
        // What was asked of it before is answered.
        served(SERVED);
        let from = load.now();
        ground.harm(harm, number);
        served(SERVED);
        // What the return of the node costs is another figure; the clients see it as part of the next round.
        harmed.push((leader, from, load.now()));
        ground.mend(harm, number);
    }
    let mut noted = load.stop();
    let acknowledged = acknowledged(&noted.records);
    let mut pauses = Vec::new();
    for (number, (leader, from, to)) in harmed.iter().enumerate() {
        let pause = longest_pause(&acknowledged, *from, *to);
        println!("{harm:?} {:2}, {leader}: {:4.0} ms", number + 1, pause.as_secs_f64() * 1e3);
        pauses.push(pause);
    }
    pauses.sort_unstable();
    let longer = pauses.iter().filter(|pause| **pause > MOST).count();
    println!(
        "{harm:?}: {longer} of {times} pauses over {MOST:?}; median {:.0?}, longest {:.0?}",
        pauses[times / 2],
        pauses[times - 1]
    );
    wait_agreed(&all[0]);
    noted.read_back(&all);
    noted.check_fit();
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
    assert!(longer <= MOST_LONGER, "{longer} of {times} pauses are longer than {MOST:?}: {pauses:.0?}");
}

#[test]
#[ignore = "50 kills take minutes; make test-full runs it"]
fn fifty_leaders_that_are_killed() {
    harm_leaders(Harm::Kill, 50);
}

#[test]
#[ignore = "50 pauses take minutes; make test-full runs it"]
fn fifty_leaders_that_hang() {
    harm_leaders(Harm::Stop, 50);
}

#[test]
#[ignore = "20 partitions take minutes; make test-full runs it"]
fn twenty_leaders_that_are_cut_off() {
    harm_leaders(Harm::Cut, 20);
}
