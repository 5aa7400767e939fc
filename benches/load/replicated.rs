//! Requests to three nodes that replicate one shard, beside a cluster of three members of etcd and beside a single node:
//! all of them to the leader, and spread over the three.

use std::io;
use std::time::Duration;

use crate::group::Group;
use crate::report::{self, NODE, Series, compare};
use crate::wrk::{self, KEYS, Kind, Load};

/// What our rate is to be of etcd's, reading and writing.
const ETCD_TARGET: f64 = 2.0;
/// What the rate of reads through the leader is to be of a single node's.
const NODE_TARGET: f64 = 0.6;

const OURS_LEADER: &str = "evenkv leader";
const OURS_SPREAD: &str = "evenkv spread";
const ETCD_LEADER: &str = "etcd leader";
const ETCD_SPREAD: &str = "etcd spread";

/// Whom the connections of a series go to.
#[derive(Clone, Copy)]
enum Asked {
    Leader,
    All,
}

struct Target<'a> {
    name: &'static str,
    group: &'a Group,
    asked: Asked,
}

/// Measures and prints; whether all targets were met. A round has this length.
pub(crate) fn measure(length: Duration, rounds: u64) -> io::Result<bool> {
    let node = Group::single_node()?;
    // Without ours the others still tell what there is to reach.
    let ours = Group::of_evenkv().map_err(|error| eprintln!("load: evenkv: {error}")).ok();
    let etcd = Group::of_etcd()?;
    if etcd.is_none() {
        println!("etcd: not on this machine, so it was not measured");
    }
    let mut targets = vec![Target { name: NODE, group: &node, asked: Asked::Leader }];
    for (group, to_leader, spread) in [(&ours, OURS_LEADER, OURS_SPREAD), (&etcd, ETCD_LEADER, ETCD_SPREAD)] {
        if let Some(group) = group {
            targets.push(Target { name: to_leader, group, asked: Asked::Leader });
            targets.push(Target { name: spread, group, asked: Asked::All });
        }
    }
    for group in [Some(&node), ours.as_ref(), etcd.as_ref()].into_iter().flatten() {
        group.fill(KEYS)?;
    }
    let mut all = Vec::new();
    for kind in [Kind::Put, Kind::Get] {
        println!("{}: {rounds} rounds of {length:?} against each in turn ...", kind.method());
        all.extend(take_turns(&targets, kind, length, rounds)?);
    }
    println!();
    report::print_table(&all, NODE);
    println!(
        "Spread: the connections go to all three in equal numbers, 63 in all; otherwise 64, to the leader."
    );
    println!();
    Ok(print_verdicts(&all))
}

fn take_turns(targets: &[Target<'_>], kind: Kind, length: Duration, rounds: u64) -> io::Result<Vec<Series>> {
    let mut series: Vec<Series> =
        targets.iter().map(|target| Series { server: target.name, kind, rounds: Vec::new() }).collect();
    for _ in 0..rounds {
        for (Target { group, asked, .. }, series) in targets.iter().zip(&mut series) {
            // Another may lead since the last round.
            let asked = match asked {
                Asked::Leader => vec![group.processes[group.leader()?].address],
                Asked::All => group.addresses(),
            };
            let load = Load { system: group.system, processes: &group.processes, asked, kind };
            series.rounds.push(wrk::run(&load, length)?);
        }
    }
    Ok(series)
}

fn print_verdicts(all: &[Series]) -> bool {
    let verdicts = [
        compare(all, Kind::Put, [OURS_LEADER, ETCD_LEADER], ETCD_TARGET),
        compare(all, Kind::Put, [OURS_SPREAD, ETCD_SPREAD], ETCD_TARGET),
        compare(all, Kind::Get, [OURS_LEADER, ETCD_LEADER], ETCD_TARGET),
        compare(all, Kind::Get, [OURS_SPREAD, ETCD_SPREAD], ETCD_TARGET),
        compare(all, Kind::Get, [OURS_LEADER, NODE], NODE_TARGET),
    ];
    verdicts.iter().all(|is_met| *is_met)
}
