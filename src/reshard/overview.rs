//! What is known of the whole cluster: asks each node what it says of itself, and puts it together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};

use super::controller::Controller;
use super::requests::shown_progress;
use crate::clock::{Deadline, now, rfc3339};
use crate::config;
use crate::model::address::Address;
use crate::model::meta::{Change, MetaState};
use crate::model::receipt::Receipt;
use crate::model::view::Shard;
use crate::node::ask::OrderError;
use crate::node::host;
use crate::node::problems::{self, Told, Whole};
use crate::node::state::{Node, ServingState};
use crate::threads;
use crate::wire::orders;
use crate::wire::status::{
    ChangeStatus, ClusterStatus, MainStatus, NodeReport, NodeStatus, Problem, ReceiptShown, ReplicaStatus,
    Role, ShardStatus,
};

/// A node that does not answer within this time counts as not reached.
const PATIENCE: Duration = Duration::from_millis(500);
/// With less time left none is asked.
const LEAST: Duration = Duration::from_millis(100);
/// So many nodes are asked at one time.
const ASKED_AT_ONCE: usize = 16;

impl Controller {
    /// What this node says of itself.
    pub fn own_report(&self) -> NodeReport {
        let progress = self.coordinator.progress(&self.node.address);
        NodeReport { progress, ..self.node.report() }
    }

    /// What is known of the whole. Other nodes are asked meanwhile, all for the same short time, whether they answer or not.
    pub fn overview(&self) -> ClusterStatus {
        let node = &self.node;
        let deadline = Deadline::after(now(), PATIENCE);
        let state = node.state();
        let mut others = state.as_ref().map_or_else(|| node.looked_for(), |state| state.nodes());
        others.retain(|other| *other != node.address);
        let mut told = self.ask_all(&others, deadline);
        told.insert(node.address.clone(), Told::Report(Box::new(self.own_report())));
        match state {
            Some(state) => of_cluster(node, &state, &told),
            None => without_cluster(node, &others, &told),
        }
    }

    /// What other nodes say of themselves. One that hangs holds up nobody but a thread, and that until the deadline.
    fn ask_all(&self, others: &[Address], deadline: Deadline) -> BTreeMap<Address, Told> {
        let next = AtomicUsize::new(0);
        let askers: Vec<()> = vec![(); others.len().min(ASKED_AT_ONCE)];
        let asked = threads::all_at_once("status-asks", &askers, |()| {
            let mut told = Vec::new();
            while let Some(other) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
                let is_late = deadline.left() < LEAST;
                let answer = if is_late { Told::Nothing } else { self.ask_report(other, deadline) };
                told.push((other.clone(), answer));
            }
            told
        });
        asked.into_iter().flatten().collect()
    }

    fn ask_report(&self, other: &Address, deadline: Deadline) -> Told {
        match host::run(self.node.order(other, None, orders::Report {}, deadline)) {
            Ok(report) => Told::Report(Box::new(report)),
            Err(OrderError::NotKnown(reason)) => {
                log::debug!("{other} does not say how it is: {reason}");
                let change = self.node.state().is_some_and(|state| state.change.is_some());
                let ask = || host::run(self.node.order(other, None, orders::ChangeProgress {}, deadline));
                Told::Older(if change { ask().ok().flatten().map(Box::new) } else { None })
            }
            // It answers, and has too much to do.
            Err(OrderError::Refused(reason)) => {
                log::debug!("{other} does not say how it is: {reason}");
                Told::Nothing
            }
            Err(error) => Told::NotReached(error.to_string()),
        }
    }
}

/// Puts together what is known of a cluster.
fn of_cluster(node: &Node, state: &MetaState, told: &BTreeMap<Address, Told>) -> ClusterStatus {
    let whole = Whole { state, told };
    let view = &state.view;
    let mut nodes = state.nodes();
    if !nodes.contains(&node.address) {
        nodes.push(node.address.clone());
    }
    let role = |address: &Address| match view.nodes().collect::<Vec<_>>()[..] {
        [only] if only == address => Role::Single,
        ref members if members.contains(&address) => Role::Member,
        _ if state.nodes().contains(address) => Role::Joining,
        _ => Role::Passive,
    };
    let led_by = |address: &Address| -> Vec<String> {
        let leads = |shard: &&Shard| whole.leader(shard.group).is_some_and(|(leader, _)| leader == address);
        view.shards.iter().filter(leads).map(|shard| shard.id.to_string()).collect()
    };
    let replica_id = |address: &Address, report: &NodeReport| {
        let named = view.shards.iter().find(|shard| shard.replicas.contains(address));
        let own = report.replicas.iter().find(|one| named.is_none_or(|shard| shard.group == one.group));
        own.or(report.replicas.first()).map(|one| format!("{:016x}", one.id))
    };
    let nodes = nodes.iter().map(|address| {
        let told = told.get(address);
        let report = told.and_then(Told::report);
        let shown = node_status(address, role(address), told, node.peers.at(address).is_down());
        NodeStatus {
            leads: led_by(address),
            replica_id: report.and_then(|report| replica_id(address, report)),
            ..shown
        }
    });
    let lost = whole.lost();
    let shards = view.shards.iter().map(|shard| {
        let is_lost = lost.contains_key(&shard.id);
        let hint = || node.leader_of(shard).filter(|leader| matches!(told.get(leader), Some(Told::Older(_))));
        shard_status(whole, shard, is_lost, hint)
    });
    ClusterStatus {
        address: node.address.clone(),
        role: role(&node.address),
        main: None,
        problems: whole.problems(),
        cluster_id: Some(state.cluster.clone()),
        epoch: Some(view.epoch),
        repl_factor: Some(view.repl_factor),
        nodes: nodes.collect(),
        shards: shards.collect(),
        change: state.change.as_ref().map(|change| change_status(change, whole)),
        receipts: state.last_receipts().iter().map(shown).collect(),
    }
}

fn shard_status(
    whole: Whole<'_>,
    shard: &Shard,
    lost: bool,
    hint: impl FnOnce() -> Option<Address>,
) -> ShardStatus {
    let leader = whole.leader(shard.group).filter(|_| !lost);
    let members = leader.map_or(&[][..], |(_, seen)| &seen.members);
    let behind =
        |address: &Address| members.iter().find(|(node, _)| node == address).map(|(_, behind)| *behind);
    // In the course of a view change the members are not just those of the view.
    let mut replicas: Vec<&Address> = whole.state.replicas_of(shard.group);
    for (member, _) in members {
        if !replicas.contains(&member) {
            replicas.push(member);
        }
    }
    let replicas =
        replicas.into_iter().map(|node| ReplicaStatus { address: node.clone(), behind: behind(node) });
    ShardStatus {
        shard_id: shard.id.to_string(),
        leader: leader.map(|(node, _)| node.clone()).or_else(hint),
        key_count: leader.and_then(|(_, seen)| seen.pairs),
        bytes: leader.and_then(|(_, seen)| seen.bytes),
        requests_per_second: whole.requests_per_second(shard.group),
        lost,
        replicas: replicas.collect(),
    }
}

fn change_status(change: &Change, whole: Whole<'_>) -> ChangeStatus {
    let may_be_untold = whole.told.values().any(|told| matches!(told, Told::NotReached(_) | Told::Nothing));
    let progress = match whole.progress() {
        // Whoever coordinates it may be one of those that have not answered.
        None if may_be_untold => Map::from_iter([("phase".to_owned(), Value::Null)]),
        progress => shown_progress(progress.cloned()),
    };
    ChangeStatus {
        change_id: format!("{:016x}", change.id),
        began: change.began_ms.map(rfc3339),
        nodes: change.wanted.nodes.clone(),
        repl_factor: change.wanted.repl_factor,
        progress,
    }
}

fn shown(receipt: &Receipt) -> ReceiptShown {
    ReceiptShown {
        change_id: format!("{:016x}", receipt.change),
        epoch: receipt.epoch,
        began: receipt.began_ms.map(rfc3339),
        ended: receipt.ended_ms.map(rfc3339),
        seconds: receipt.took_ms().map(|ms| Duration::from_millis(ms).as_secs_f64()),
        keys: receipt.keys,
        moved: receipt.moved,
        minimum: receipt.minimum,
        copied: receipt.copied,
        created_meanwhile: receipt.created,
        deleted_meanwhile: receipt.deleted,
        hold_ms: Duration::from_micros(receipt.hold_us).as_secs_f64() * 1000.0,
        checksums_match: receipt.checksums_match,
        shards: receipt.shards,
        nodes: receipt.nodes,
        given_up: receipt.given_up.clone(),
    }
}

/// What is known of a node by what it has told. One that was not asked is reached, for all that is known, unless it was last seen down.
fn node_status(address: &Address, role: Role, told: Option<&Told>, is_down: bool) -> NodeStatus {
    let report = told.and_then(Told::report);
    let coordinates = told.and_then(Told::progress).is_some();
    NodeStatus {
        address: address.clone(),
        role,
        replica_id: None,
        leads: Vec::new(),
        leads_view: report.map(|report| report.leads_view).or(coordinates.then_some(true)),
        version: report.map(|report| report.version.clone()),
        reachable: match told {
            Some(Told::Report(_) | Told::Older(_)) => true,
            Some(Told::NotReached(_)) => false,
            Some(Told::Nothing) | None => !is_down,
        },
        ready: report.map(|report| report.unready.is_empty()),
        pairs: report.map(|report| report.pairs),
        bytes: report.map(|report| report.bytes),
        requests_per_second: report.and_then(|report| report.requests_per_second),
        memory: report.map(|report| report.memory),
    }
}

/// What a node shows that knows no cluster.
fn without_cluster(node: &Node, others: &[Address], told: &BTreeMap<Address, Told>) -> ClusterStatus {
    let (role, problem) = match &*node.serving_state() {
        ServingState::Waiting(reasons) => {
            let problem = problems::no_cluster(&node.address, reasons);
            (own_role(node), Some(problem))
        }
        ServingState::Follower => (Role::Follower, None),
        ServingState::Serving(_) => (own_role(node), None),
    };
    let of_view = matches!(node.role, config::Role::Member { .. });
    let nodes = std::iter::once(&node.address).chain(others).map(|address| {
        let told = told.get(address);
        let is_member = told.and_then(Told::report).is_some_and(|report| report.cluster.is_some());
        let role = match address {
            address if *address == node.address => role,
            _ if is_member || of_view => Role::Member,
            _ => Role::Passive,
        };
        node_status(address, role, told, node.peers.at(address).is_down())
    });
    ClusterStatus {
        address: node.address.clone(),
        role,
        main: None,
        problems: problem.into_iter().collect(),
        cluster_id: None,
        epoch: None,
        repl_factor: None,
        nodes: nodes.collect(),
        shards: Vec::new(),
        change: None,
        receipts: Vec::new(),
    }
}

/// What a follower knows by itself.
pub fn follower_status(controller: &Controller, main: MainStatus, problems: Vec<Problem>) -> ClusterStatus {
    let own = Told::Report(Box::new(controller.own_report()));
    let told = BTreeMap::from([(controller.node.address.clone(), own)]);
    ClusterStatus { main: Some(main), problems, ..without_cluster(&controller.node, &[], &told) }
}

/// What a node without a cluster is, by its settings.
fn own_role(node: &Node) -> Role {
    match node.role {
        config::Role::Single => Role::Single,
        config::Role::Member { .. } => Role::Member,
        config::Role::Passive { .. } => Role::Passive,
        config::Role::Follower { .. } => Role::Follower,
    }
}
