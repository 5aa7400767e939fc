//! What is told of the whole: what a node says of itself when another one asks, and the answer to `/v1/status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Progress;
use crate::model::address::Address;

/// What is wrong, in words, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    /// What kind of problem it is, for machines; the worst ones first.
    pub kind: ProblemKind,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub advice: String,
    /// The nodes that it is about.
    pub nodes: Vec<Address>,
    /// The ids of the shards that it is about.
    pub shards: Vec<String>,
}

impl Problem {
    /// The same in one sentence.
    pub fn in_words(&self) -> String {
        format!("{}; {}", self.what, self.advice)
    }
}

/// The kinds of problems, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The pairs of a shard are gone.
    ShardLost,
    /// A shard is neither read nor written, since nobody leads it.
    ShardWithoutLeader,
    /// A follower does not reach its main.
    MainDown,
    /// A node waits for a cluster.
    NoCluster,
    /// The view cannot be changed.
    ViewWithoutLeader,
    /// A node of the view is not reached.
    NodeNotReached,
    /// A view change makes no progress.
    ChangeBlocked,
    /// A view change waits for somebody for long.
    ChangeWaits,
    /// A node answers and does not serve, or not everything.
    NodeNotReady,
    /// A shard could lose fewer nodes than it should.
    ReplicaMissing,
    /// Two nodes do not reach each other, though both are reached.
    NodesApart,
    /// Nodes are of different versions of the program.
    VersionsDiffer,
    /// Nodes have settings that should be the same.
    SettingsDiffer,
    /// What else a node has to say.
    Note,
    /// What this version does not know.
    #[serde(other)]
    Other,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The cluster that it knows.
    pub cluster: Option<String>,
    /// The version of the program.
    pub version: String,
    /// The newest format that it knows.
    pub format: u32,
    /// The random id of this start of it.
    pub incarnation: u64,
    /// Why it is not ready, a sentence each.
    pub unready: Vec<String>,
    /// What else an operator should know of it, a sentence each.
    pub notes: Vec<String>,
    /// What it sees of the groups that it is in.
    pub problems: Vec<Problem>,
    /// The nodes that it does not reach.
    pub unreached: Vec<Address>,
    /// The shards that it knows to be lost, and their nodes.
    pub lost: Vec<(u32, Address)>,
    /// Pairs of all that it holds.
    pub pairs: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Requests of clients that it has answered a second, lately.
    pub requests_per_second: Option<f64>,
    /// Its memory.
    pub memory: Memory,
    /// Settings that should be the same everywhere.
    pub settings: BTreeMap<String, u64>,
    /// Its replicas of shards.
    pub replicas: Vec<ReplicaSeen>,
    /// Whether it leads the group that holds the view.
    pub leads_view: bool,
    /// How far the view change is, if it coordinates it.
    pub progress: Option<Progress>,
}

/// A replica of a shard as its node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaSeen {
    /// The group.
    pub group: u64,
    /// Its id in the group; where the shard has no log, the start of its node.
    pub id: u64,
    /// The term in which it leads, if it does; a shard without a log has one leader, in term 0.
    pub leads: Option<u64>,
    /// Of a leader: its pairs, unless they cannot be counted at the moment.
    pub pairs: Option<u64>,
    /// Of a leader: the members, and how many entries of the log each does not hold yet, as far as the leader knows.
    pub members: Vec<(Address, u64)>,
    /// Bytes of the keys and values that it holds.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Keys that were read from it a second, lately; of a leader with the writes that it has ordered.
    #[serde(default)]
    pub requests_per_second: Option<f64>,
}

/// The memory of a node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Memory {
    /// What is allocated.
    pub used: u64,
    /// What the system has given for it.
    pub resident: u64,
    /// What `resident` may come to; nothing where there is no bound.
    pub bound: Option<u64>,
}

/// The answer to `/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterStatus {
    /// The node that was asked.
    pub address: Address,
    /// What it is.
    pub role: Role,
    /// Of a follower: its main.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main: Option<MainStatus>,
    /// What is wrong, the worst first; empty where nothing is.
    pub problems: Vec<Problem>,
    /// The cluster, if it knows one.
    pub cluster_id: Option<String>,
    /// The epoch of the view.
    pub epoch: Option<u64>,
    /// Replicas per shard.
    pub repl_factor: Option<usize>,
    /// The nodes, in the order of the view.
    pub nodes: Vec<NodeStatus>,
    /// The shards, by their ids.
    pub shards: Vec<ShardStatus>,
    /// The view change that runs.
    pub change: Option<ChangeStatus>,
    /// What the last view changes came to, the newest first.
    pub receipts: Vec<ReceiptShown>,
}

/// The main of a follower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MainStatus {
    /// Its address.
    pub address: Address,
    /// Whether it has answered.
    pub reachable: bool,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// All of its view.
    Single,
    /// One of the nodes of the view.
    Member,
    /// It becomes one in the course of the view change that runs.
    Joining,
    /// It is none.
    Passive,
    /// It passes everything on to its main.
    Follower,
}

/// A node, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeStatus {
    /// Its address.
    pub address: Address,
    /// What it is.
    pub role: Role,
    /// The id of its replica of its shard, in hexadecimal digits.
    pub replica_id: Option<String>,
    /// The ids of the shards that it leads.
    pub leads: Vec<String>,
    /// Whether it leads the group that holds the view.
    pub leads_view: Option<bool>,
    /// The version of the program.
    pub version: Option<String>,
    /// Whether it has answered.
    pub reachable: bool,
    /// Whether it is ready.
    pub ready: Option<bool>,
    /// Pairs of all that it holds.
    pub pairs: Option<u64>,
    /// Bytes of their keys and values.
    pub bytes: Option<u64>,
    /// Requests of clients that it has answered a second, lately.
    pub requests_per_second: Option<f64>,
    /// Its memory.
    pub memory: Option<Memory>,
}

/// A shard, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShardStatus {
    /// Its id.
    pub shard_id: String,
    /// Its leader.
    pub leader: Option<Address>,
    /// Its pairs, as the leader counts them.
    pub key_count: Option<u64>,
    /// Bytes of all keys and values that its leader holds for it.
    pub bytes: Option<u64>,
    /// What is done to its keys a second, lately, at all of its nodes together.
    pub requests_per_second: Option<f64>,
    /// Whether its pairs are known to be gone.
    pub lost: bool,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
}

/// A replica of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReplicaStatus {
    /// Its node.
    pub address: Address,
    /// How many entries of the log it does not hold yet.
    pub behind: Option<u64>,
}

/// The view change that runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChangeStatus {
    /// Its id.
    pub change_id: String,
    /// When it was begun.
    pub began: Option<String>,
    /// The nodes of the view that it leads to.
    pub nodes: Vec<Address>,
    /// Replicas per shard then.
    pub repl_factor: usize,
    /// How far it is: the fields of [`Progress`] that are known.
    #[serde(flatten)]
    pub progress: Map<String, Value>,
}

/// What a view change came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReceiptShown {
    /// Its id.
    pub change_id: String,
    /// The epoch of the view that it led to.
    pub epoch: u64,
    /// When it was begun.
    pub began: Option<String>,
    /// When it had ended.
    pub ended: Option<String>,
    /// How long it took.
    pub seconds: Option<f64>,
    /// The pairs at the cut.
    pub keys: u64,
    /// Those of them that changed shard.
    pub moved: u64,
    /// The least number that had to.
    pub minimum: u64,
    /// Pairs written to nodes that did not hold them.
    pub copied: u64,
    /// What clients have created since the cut.
    pub created_meanwhile: u64,
    /// What clients have deleted since the cut.
    pub deleted_meanwhile: u64,
    /// The longest time that any key could be neither read nor written.
    pub hold_ms: f64,
    /// Whether all that moved was the same where it came to.
    pub checksums_match: bool,
    /// How many shards there were then.
    pub shards: usize,
    /// How many nodes.
    pub nodes: usize,
    /// The ids of the shards whose pairs were given up.
    pub given_up: Vec<String>,
}
