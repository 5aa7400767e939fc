//! Nodes that come back without their memory, and nodes that are stopped as an operator does.

use std::time::Duration;

use crate::alone;
use crate::support::audit::audit;
use crate::support::change::{Pairs, allowed};
use crate::support::history;
use crate::support::load::{Load, Profile};
use crate::support::replicated::{
    RECOVERY, is_ready, named, others, replicated, restart_ready, wait_agreed, wait_leader, wait_written,
};
use crate::support::{START_DEADLINE, timed, wait_until};

/// A node that is told to stop has ended within this time.
const STOPPING: Duration = Duration::from_secs(8);

#[test]
fn every_node_in_turn_may_lose_its_memory() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 100);
    let before = audit(&all[0]);
    for (round, dead) in all.iter().enumerate() {
        let node = named(&mut cluster.nodes, dead);
        restart_ready(node);
        assert!(node.log().len() > 1, "it is another process");
        // Ready means that it is a voter, so the next one may be killed at once.
        let living = others(&all, &[&all[(round + 1) % 3]]);
        pairs.check_some(&living[0], |key| key.ends_with('7'));
    }
    pairs.check(&all);
    wait_agreed(&all[0]);
    let after = audit(&all[1]);
    assert_eq!((after.keys, after.checksum), (before.keys, before.checksum));
}

#[test]
fn a_node_is_ready_only_as_a_voter() {
    let mut cluster = replicated(3, 3, &[("REQUEST_TIMEOUT_MS", "3000")]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 30);
    let leader = wait_leader(&all[0], "1", |_| true);
    let [second, third] = others(&all, &[&leader]).try_into().expect("two others");
    // Nobody can make it a voter while there is no majority: it comes back, and is not ready.
    named(&mut cluster.nodes, &third).kill();
    named(&mut cluster.nodes, &second).pause();
    let back = named(&mut cluster.nodes, &third);
    back.restart();
    back.wait_live();
    wait_until("the leader knows that it is alone", allowed(RECOVERY), || !is_ready(&leader));
    assert!(!is_ready(&third), "it is no voter");
    named(&mut cluster.nodes, &second).resume();
    for node in &cluster.nodes {
        node.wait_ready();
    }
    // And now it counts: the other two take turns in being away.
    for away in [&leader, &second] {
        named(&mut cluster.nodes, away).pause();
        wait_written(&third, "counts", 1);
        named(&mut cluster.nodes, away).resume();
        for node in &cluster.nodes {
            node.wait_ready();
        }
    }
    pairs.check(&all);
    wait_agreed(&third);
}

#[test]
fn a_rolling_restart_is_not_noticed() {
    let _alone = alone();
    for (count, factor) in [(2, 2), (3, 3)] {
        let mut cluster = replicated(count, factor, &[]);
        let all = cluster.addresses();
        let profile = Profile { keys: 200, elsewhere: true, ..Profile::default() };
        let load = Load::start(&all, &profile);
        wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 500);
        let mut slowest = Duration::ZERO;
        for node in &mut cluster.nodes {
            node.terminate();
            let (status, took) = timed(|| node.wait_exit(allowed(STOPPING) + STOPPING));
            slowest = slowest.max(took);
            assert_eq!(status.code(), Some(0), "{} was told to stop", node.address());
            assert!(took < allowed(STOPPING), "{} took {took:?} to stop", node.address());
            restart_ready(node);
            let before = load.answers();
            wait_until("clients are served after it", START_DEADLINE, || load.answers() >= before + 200);
        }
        let mut noted = load.stop();
        println!(
            "{count} nodes at factor {factor}: {} requests, the slowest {:.0?}; {} went elsewhere as nobody listened, {} \
             as the node hung up; nodes stopped within {slowest:.1?}",
            noted.records.len(),
            noted.slowest,
            noted.refused,
            noted.broken
        );
        noted.check_all_right();
        wait_agreed(&all[0]);
        let there = noted.read_back(&all);
        assert_eq!(audit(&all[0]).keys, there);
        history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
    }
}
