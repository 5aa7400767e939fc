//! Real processes that are killed, stopped, cut off from each other, restarted and exchanged while clients work.
//!
//! `make torture SEED=.. SECONDS=..` runs a seed for as long as wanted and prints what is done; the same seed does
//! the same. `TORTURE_SEED` and `TORTURE_SECONDS` say it to the tests, and `TORTURE_LOGS` names a folder in which the whole
//! logs of a failed run are kept. Partitions need root, iproute2 and iptables; where they cannot be had, they alone
//! are left out.
//!
//! Killed memory is lost, so at no time is more than a minority of a shard dead, and a killed node is a voter again
//! before another one is killed. Only in a disaster more is: then an operator recovers, and gives up what nothing is left of. What the answers
//! name may be lost, and nothing else.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests read their settings and measure how long things take"
)]

#[path = "../support/mod.rs"]
mod support;

mod disaster;
mod fleet;
mod nemesis;
mod schedule;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fleet::Fleet;
use schedule::{Partition, Schedule, Victim, Way};
use support::audit::audit;
use support::history;
use support::http::Http;
use support::load::{Load, Profile};
use support::replicated::wait_agreed;
use support::{START_DEADLINE, at_once, wait_until};

/// How long the replicated cluster is tortured where nobody says so: with the other tests of this file about 3 minutes.
const SECONDS: u64 = 135;
/// How long the cluster without replicas is.
const SECONDS_AT_ONE: u64 = 20;
/// Runs longer than this note less each second, so that the history fits into memory.
const LONG: Duration = Duration::from_mins(10);
const SIZE: usize = 7;
const MEMBERS: usize = 6;

/// The tests load the whole machine, so they take turns.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn a_replicated_cluster_outlives_everything() {
    let seconds = setting("TORTURE_SECONDS").unwrap_or(SECONDS);
    torture(&[3, 3, 3, 2], Duration::from_secs(seconds));
}

/// Nobody is killed here but in a disaster, as nobody else has the pairs.
#[test]
fn a_cluster_without_replicas_outlives_pauses_and_partitions() {
    torture(&[1], Duration::from_secs(SECONDS_AT_ONE));
}

/// Tortures a cluster with the first of these factors, to which view changes add the others.
fn torture(factors: &[usize], time: Duration) {
    let _alone = alone();
    let seed = setting("TORTURE_SEED").unwrap_or_else(rand::random);
    println!("seed {seed}, factors {factors:?}, {time:?}");
    let mut fleet = Fleet::start(SIZE, MEMBERS, factors[0]);
    let rest = Duration::from_millis(if time > LONG { 20 } else { 4 });
    let load = Load::start(&fleet.addresses(), &Profile { seed, rest, keys: 100, ..Profile::default() });
    wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 500);
    let (started, mut steps) = (Instant::now(), 0);
    for step in Schedule::new(seed, SIZE, MEMBERS, factors) {
        if started.elapsed() >= time {
            break;
        }
        load.turn_over();
        println!("{:8.1?} step {steps}: {step:?}", started.elapsed());
        let done = nemesis::run(&mut fleet, &load, &step);
        println!("{:8.1?}         {done}", started.elapsed());
        steps += 1;
    }
    let verdict = judge(&fleet, load);
    println!("PASSED: seed {seed}, {steps} steps, {verdict}");
}

/// Nothing is lost, nothing was ever answered that one store could not have answered, and all replicas are equal.
fn judge(fleet: &Fleet, load: Load) -> String {
    let members = fleet.members();
    let mut noted = load.stop();
    let losses = noted.records.iter().filter(|record| record.call == history::Call::Lose).count();
    let requests = noted.records.len() - losses;
    wait_agreed(&members[0]);
    let there = noted.read_back(&members);
    let audited = audit(&members[0]);
    assert!(audited.ok, "{audited:?}");
    assert_eq!(audited.keys, there, "what is counted is what is read: {audited:?}");
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
    noted.check_fit();
    let unknown = noted.records.iter().filter(|record| record.outcome == history::Outcome::Unknown).count();
    format!(
        "{requests} requests, {} not served, {unknown} with an unknown outcome, the slowest {:.1?}; {there} pairs, \
         none lost but where an operator was told so, linearizable, checksums equal",
        noted.wrong.len(),
        noted.slowest
    )
}

/// The nemesis itself: what is cut is cut, in this direction and no other, and whole again when it is undone.
#[test]
fn a_partition_cuts_what_it_says() {
    let _alone = alone();
    let fleet = Fleet::start(3, 3, 1);
    if !fleet.can_cut() {
        return;
    }
    let all = fleet.addresses();
    let key_of = |owner: &str| {
        let mut client = Http::new(owner);
        let own = |key: &String| client.get(&format!("/kv-store/keys/{key}")).owner().is_none();
        (0..1000).map(|number| format!("k{number}")).find(own).expect("a third of all keys")
    };
    let keys: Vec<String> = all.iter().map(|owner| key_of(owner)).collect();
    let asks = |from: usize, to: usize| {
        let answer = Http::new(&all[from]).get(&format!("/kv-store/keys/{}", keys[to]));
        assert!([404, 503].contains(&answer.status), "{}", answer.text());
        answer.status == 404
    };
    let alone = |way| Partition::Alone(Victim::Node(0), way).cuts(3, |_| 0);
    for (way, asks_others, is_asked) in [
        (Way::Both, false, false),
        (Way::To, false, false),
        (Way::From, false, false),
        (Way::Asks, false, true),
        (Way::Asked, true, false),
    ] {
        fleet.cut(&alone(way));
        let pairs = [(0, 1), (0, 2), (1, 0), (2, 0), (1, 2), (2, 1)];
        let answered = at_once(pairs.len(), |pair| asks(pairs[pair].0, pairs[pair].1));
        assert_eq!(answered, [asks_others, asks_others, is_asked, is_asked, true, true], "{way:?}");
        fleet.cut(&BTreeSet::new());
        wait_until("all is whole again", START_DEADLINE, || {
            [(0, 1), (1, 0), (0, 2), (2, 0)].into_iter().all(|(from, to)| asks(from, to))
        });
    }
}
