//! What tests of replicated shards ask of a cluster: who leads, who is there, and whether all replicas agree.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::time::Duration;

use serde_json::Value;

use super::audit::{audit, replicas_of, shard_id};
use super::change::{allowed, target};
use super::cluster::Cluster;
use super::http::Http;
use super::node::Node;
use super::wait_until;

/// How long a shard may take to have another leader, and a node to be a voter again.
pub(crate) const RECOVERY: Duration = Duration::from_secs(10);

/// A shard as a node knows it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) replicas: Vec<String>,
    pub(crate) leader: Option<String>,
}

/// The view as this node tells it, or nothing where it cannot now.
pub(crate) fn try_view(address: &str) -> Option<Value> {
    let mut client = Http::with_patience(address, Duration::from_secs(3));
    let answer = client.try_request("GET", "/kv-store/view", &[], b"").ok()?;
    (answer.status == 200).then(|| answer.json())
}

/// The shards of a view.
pub(crate) fn known_shards(view: &Value) -> Vec<Known> {
    let shards = view["shards"].as_array().unwrap_or_else(|| panic!("no shards in {view}"));
    let known = |shard: &Value| Known {
        id: shard_id(shard),
        replicas: replicas_of(shard),
        leader: shard["leader"].as_str().map(str::to_owned),
    };
    shards.iter().map(known).collect()
}

/// Waits until this node, or a replica of the shard, names a leader that satisfies `wanted`: a node that is no
/// replica may not know.
pub(crate) fn wait_leader(asked: &str, id: &str, wanted: impl Fn(&str) -> bool) -> String {
    let shard_of = |address: &str| try_known(address).into_iter().find(|shard| shard.id == id);
    let mut found = None;
    wait_until(&format!("{asked} or a replica names a leader of shard {id}"), allowed(RECOVERY), || {
        let Some(shard) = shard_of(asked) else { return false };
        let replicas = shard.replicas.clone();
        let told = replicas.iter().filter_map(|replica| shard_of(replica));
        let mut leaders = std::iter::once(shard).chain(told).filter_map(|shard| shard.leader);
        found = leaders.find(|leader| wanted(leader));
        found.is_some()
    });
    found.expect("waited for")
}

/// The shards as this node knows them, or none where it does not answer.
fn try_known(address: &str) -> Vec<Known> {
    try_view(address).map(|view| known_shards(&view)).unwrap_or_default()
}

/// Waits until all replicas of every shard are reached and agree.
pub(crate) fn wait_agreed(asked: &str) {
    wait_until("all replicas agree", allowed(RECOVERY), || audit(asked).ok);
}

/// Whether `/readyz` of this node says yes.
pub(crate) fn is_ready(address: &str) -> bool {
    let mut client = Http::with_patience(address, Duration::from_secs(3));
    client.try_request("GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200)
}

/// A cluster of this many nodes with this factor, and further settings.
pub(crate) fn replicated(count: usize, factor: usize, settings: &[(&str, &str)]) -> Cluster {
    let factor = factor.to_string();
    let mut all = vec![("REPL_FACTOR", factor.as_str())];
    all.extend_from_slice(settings);
    Cluster::with(count, &all)
}

/// The node with this address.
pub(crate) fn named<'a>(nodes: &'a mut [Node], address: &str) -> &'a mut Node {
    let found = nodes.iter_mut().find(|node| node.address() == address);
    found.unwrap_or_else(|| panic!("{address} is none of the nodes"))
}

/// All but these.
pub(crate) fn others(all: &[String], without: &[&str]) -> Vec<String> {
    all.iter().filter(|address| !without.contains(&address.as_str())).cloned().collect()
}

/// Waits until a write through this node is acknowledged, and returns how it was answered.
pub(crate) fn wait_written(through: &str, key: &str, value: u64) {
    let body = format!("{{\"value\":{value}}}");
    wait_until(&format!("a write through {through} is acknowledged"), allowed(RECOVERY), || {
        let answer = Http::new(through).try_request("PUT", &target(key), &[], body.as_bytes());
        answer.is_ok_and(|answer| answer.status < 300)
    });
}

/// Starts a node anew that was killed or has ended, and waits until it is a voter again.
pub(crate) fn restart_ready(node: &mut Node) {
    node.restart();
    node.wait_ready();
}
