//! View changes as a client asks for them, and all that must be true after one.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Http, Response};
use super::node::Node;
use super::{START_DEADLINE, ports, wait_until};

/// Where view changes are asked for.
pub(crate) const VIEW_CHANGE: &str = "/kv-store/view-change";
/// Longer than any view change of a test takes.
const PATIENCE: Duration = Duration::from_mins(1);
/// The fields of a receipt, in the order of their names.
const RECEIPT: [&str; 12] = [
    "change-id",
    "checksums-match",
    "copied",
    "created-meanwhile",
    "deleted-meanwhile",
    "epoch",
    "hold-ms",
    "keys",
    "message",
    "minimum",
    "moved",
    "shards",
];

/// `duration`, and in proportion longer where other things keep this machine so busy that everything takes longer.
pub(crate) fn allowed(duration: Duration) -> Duration {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split(' ').next().and_then(|load| load.parse::<f64>().ok()).unwrap_or(0.0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let cores = f64::from(u32::try_from(cores).expect("a machine has few cores"));
    duration.mul_f64((load / cores / 2.0).max(1.0))
}

/// A node that knows no cluster and looks for one at these addresses, alive.
pub(crate) fn passive(view: &[String], settings: &[(&str, &str)]) -> Node {
    let view = view.join(",");
    let mut all = vec![("VIEW", view.as_str())];
    all.extend_from_slice(settings);
    let node = Node::start(&ports::free_address(), &all);
    node.wait_live();
    node
}

/// Waits until this node can be asked about the cluster.
pub(crate) fn wait_knows(node: &Node, shards: usize) {
    wait_until(&format!("{} knows the cluster", node.address()), START_DEADLINE, || {
        let answer = node.http().get("/kv-store/shards");
        answer.status == 200 && answer.json()["shards"].as_array().is_some_and(|ids| ids.len() == shards)
    });
}

pub(crate) fn target(key: &str) -> String {
    format!("/kv-store/keys/{key}")
}

/// A PUT of this body to `/kv-store/view-change`, with patience.
pub(crate) fn ask_with(address: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    let mut client = Http::with_patience(address, PATIENCE);
    client.request("PUT", VIEW_CHANGE, headers, body.to_string().as_bytes())
}

/// A view change to these nodes, whatever its answer.
pub(crate) fn ask(address: &str, view: &[String]) -> Response {
    ask_with(address, &[], &json!({ "view": view }))
}

/// The status of the last view change, or of the one that runs.
pub(crate) fn status(address: &str) -> Value {
    let answer = Http::new(address).get(VIEW_CHANGE);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let status = answer.json();
    assert_eq!(status["message"], "View change status retrieved successfully", "{status}");
    status
}

/// The phase, or an empty text where this node cannot say it now.
pub(crate) fn phase(address: &str) -> String {
    let answer = Http::new(address).try_request("GET", VIEW_CHANGE, &[], b"");
    let answer = answer.ok().filter(|answer| answer.status == 200);
    answer.and_then(|answer| Some(answer.json()["phase"].as_str()?.to_owned())).unwrap_or_default()
}

/// Whether the view change with this phase has ended, well or not.
pub(crate) fn has_ended(phase: &str) -> bool {
    ["finished", "failed", "cancelled", "superseded"].contains(&phase)
}

/// The counts and checksums of all shards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Audit {
    pub(crate) ok: bool,
    pub(crate) epoch: u64,
    pub(crate) keys: u64,
    pub(crate) checksum: String,
    /// Pairs by the node that holds them; `None` where it was not reached.
    pub(crate) counts: BTreeMap<String, Option<u64>>,
}

/// The audit as this node gives it; its fields must be those of the contract.
pub(crate) fn audit(address: &str) -> Audit {
    let answer = Http::new(address).get("/kv-store/audit");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["message"], "Audit retrieved successfully", "{body}");
    let shards = body["shards"].as_array().expect("a list of shards");
    let mut counts = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!(shard["shard-id"], (number + 1).to_string(), "{body}");
        let count = shard["key-count"].as_u64();
        for figure in ["log-index", "stray"] {
            assert_eq!(shard[figure].is_u64(), count.is_some(), "{figure} in {body}");
        }
        assert_eq!(shard["checksum"].as_str().is_some_and(is_checksum), count.is_some(), "{body}");
        counts.insert(only_replica(shard), count);
    }
    let ok = body["ok"].as_bool().expect("a verdict");
    if ok {
        assert!(shards.iter().all(|shard| shard["stray"] == 0), "{body}");
        assert_eq!(counts.values().copied().sum::<Option<u64>>(), body["keys"].as_u64(), "{body}");
        assert!(body["checksum"].as_str().is_some_and(is_checksum), "{body}");
    }
    Audit {
        ok,
        epoch: body["epoch"].as_u64().expect("an epoch"),
        keys: body["keys"].as_u64().unwrap_or_default(),
        checksum: body["checksum"].as_str().unwrap_or_default().to_owned(),
        counts,
    }
}

fn is_checksum(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The node that is this shard, at factor 1.
fn only_replica(shard: &Value) -> String {
    let replicas = shard["replicas"].as_array().expect("replicas");
    assert_eq!(replicas.len(), 1, "{shard}");
    replicas[0].as_str().expect("an address").to_owned()
}

/// Node by shard id, as the asked node knows the view.
pub(crate) fn shards(address: &str) -> BTreeMap<String, String> {
    let view = Http::new(address).get("/kv-store/view").json();
    let shards = view["shards"].as_array().expect("shards");
    let id = |shard: &Value| shard["shard-id"].as_str().expect("an id").to_owned();
    shards.iter().map(|shard| (id(shard), only_replica(shard))).collect()
}

/// The least number of pairs that must change their node: all of those that leave, and what the others have above
/// their part, where one more than the rounded part may stay on as many as there are.
pub(crate) fn least_moves(before: &BTreeMap<String, u64>, view: &[String]) -> u64 {
    let (count, keys) = (view.len() as u64, before.values().sum::<u64>());
    let (part, extra) = (keys / count, keys % count);
    let going: u64 = before.iter().filter(|(node, _)| !view.contains(*node)).map(|(_, held)| held).sum();
    let over = view.iter().filter_map(|node| before.get(node)?.checked_sub(part)).filter(|over| *over > 0);
    let over: Vec<u64> = over.collect();
    going + over.iter().sum::<u64>() - extra.min(over.len() as u64)
}

/// A receipt is exact by itself: fields, ids, nodes, counts that differ by one at most, their sum.
pub(crate) fn check_receipt(receipt: &Value, view: &[String]) {
    let mut fields: Vec<&str> = receipt.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.retain(|name| *name != "given-up");
    fields.sort_unstable();
    assert_eq!(fields, RECEIPT, "{receipt}");
    assert_eq!(receipt["message"], "View change successful", "{receipt}");
    assert_eq!(receipt["checksums-match"], true, "{receipt}");
    assert!(receipt["change-id"].as_str().is_some_and(|id| !id.is_empty()), "{receipt}");
    assert!(receipt["hold-ms"].as_f64().is_some_and(|hold| hold >= 0.0), "{receipt}");
    let figure = |name: &str| receipt[name].as_u64().unwrap_or_else(|| panic!("{name} in {receipt}"));
    assert_eq!(figure("moved"), figure("minimum"), "{receipt}");
    let listed = receipt["shards"].as_array().expect("a list");
    let ids: Vec<String> = (1..=view.len()).map(|number| number.to_string()).collect();
    assert_eq!(listed.iter().map(|shard| shard["shard-id"].clone()).collect::<Vec<_>>(), ids, "{receipt}");
    let nodes: BTreeSet<String> = listed.iter().map(only_replica).collect();
    assert_eq!(nodes, view.iter().cloned().collect::<BTreeSet<_>>(), "{receipt}");
    assert!(listed.iter().all(|shard| shard["address"] == shard["replicas"][0]), "{receipt}");
    let counts = |name: &str| -> Vec<u64> {
        listed
            .iter()
            .map(|shard| shard[name].as_u64().unwrap_or_else(|| panic!("{name} in {receipt}")))
            .collect()
    };
    let at_cut = counts("key-count-at-cut");
    let (least, most) = (at_cut.iter().min().expect("shards"), at_cut.iter().max().expect("shards"));
    assert!(most - least <= 1, "{receipt}");
    assert_eq!(at_cut.iter().sum::<u64>(), figure("keys"), "{receipt}");
    if figure("created-meanwhile") == 0 && figure("deleted-meanwhile") == 0 {
        assert_eq!(counts("key-count"), at_cut, "{receipt}");
    }
}

/// Changes the view while nobody writes, and checks all that must be true then: the receipt, by audits before and after
/// that nothing is lost, doubled or moved without need, that the ids of shards stay, and the counts of all nodes, also
/// of those that left. Returns the receipt.
pub(crate) fn change_idle(asked: &str, view: &[String]) -> Value {
    let (before, old) = (audit(asked), shards(asked));
    assert!(before.ok, "{before:?}");
    let answer = ask(asked, view);
    assert_eq!(answer.status, 200, "from {old:?} to {view:?} at {asked}: {}", answer.text());
    let receipt = answer.json();
    check_receipt(&receipt, view);
    let counts = before.counts.iter().map(|(node, count)| (node.clone(), count.expect("it is ok"))).collect();
    assert_eq!(receipt["moved"], least_moves(&counts, view), "{before:?} to {receipt}");
    assert_eq!(receipt["keys"], before.keys, "{before:?} to {receipt}");
    assert_eq!(receipt["moved"], receipt["copied"], "{receipt}");
    assert_eq!(
        (&receipt["created-meanwhile"], &receipt["deleted-meanwhile"]),
        (&json!(0), &json!(0)),
        "{receipt}"
    );
    let new = check_ids(&old, &receipt);
    for address in view.iter().map(String::as_str).chain([asked]) {
        let after = audit(address);
        assert!(after.ok, "{after:?}");
        assert_eq!((after.keys, &after.checksum), (before.keys, &before.checksum), "{before:?} to {after:?}");
        assert_eq!(receipt["epoch"], after.epoch, "{after:?}");
        for shard in receipt["shards"].as_array().expect("a list") {
            let count = after.counts[shard["address"].as_str().expect("an address")];
            assert_eq!(shard["key-count"].as_u64(), count, "{receipt} and {after:?}");
        }
        assert_eq!(shards(address), new, "as {address} knows it");
    }
    check_key_counts(&receipt, &old);
    receipt
}

/// A shard that stays keeps its id where that is one of the new ids.
fn check_ids(old: &BTreeMap<String, String>, receipt: &Value) -> BTreeMap<String, String> {
    let listed = receipt["shards"].as_array().expect("a list");
    let id = |shard: &Value| shard["shard-id"].as_str().expect("an id").to_owned();
    let new: BTreeMap<String, String> = listed.iter().map(|shard| (id(shard), only_replica(shard))).collect();
    for (id, node) in old {
        let stays = new.values().any(|kept| kept == node);
        assert!(!stays || !new.contains_key(id) || new[id] == *node, "{old:?} to {new:?}");
    }
    new
}

/// What every node says of itself.
fn check_key_counts(receipt: &Value, old: &BTreeMap<String, String>) {
    let listed = receipt["shards"].as_array().expect("a list");
    for shard in listed {
        let own = Http::new(shard["address"].as_str().expect("an address")).get("/kv-store/key-count").json();
        let expected = json!({
            "message": "Key count retrieved successfully",
            "key-count": shard["key-count"],
            "shard-id": shard["shard-id"],
        });
        assert_eq!(own, expected, "{receipt}");
    }
    for left in old.values().filter(|node| !listed.iter().any(|shard| shard["address"] == **node)) {
        let own = Http::new(left).get("/kv-store/key-count").json();
        assert_eq!(own, json!({"message": "Key count retrieved successfully", "key-count": 0}), "{left}");
    }
}

/// Pairs as they must be.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pairs {
    pub(crate) held: BTreeMap<String, u64>,
    next: u64,
}

impl Pairs {
    /// Creates this many pairs through these nodes in turn.
    pub(crate) fn create(&mut self, through: &[String], count: usize) {
        let mut clients: Vec<Http> = through.iter().map(|address| Http::new(address)).collect();
        let mut asked = 0;
        for _ in 0..count {
            self.next += 1;
            let (key, value) = (format!("pair-{}", self.next), self.next * 3);
            let answer = clients[asked].put(&target(&key), json!({ "value": value }).to_string());
            assert_eq!(answer.status, 201, "{key} through {}: {}", through[asked], answer.text());
            self.held.insert(key, value);
            asked = (asked + 1) % through.len();
        }
    }

    /// Deletes this key.
    pub(crate) fn delete(&mut self, through: &str, key: &str) {
        let answer = Http::new(through).delete(&target(key));
        assert_eq!(answer.status, 200, "{key} through {through}: {}", answer.text());
        self.held.remove(key);
    }

    /// Every pair is read through every one of these nodes.
    pub(crate) fn check(&self, through: &[String]) {
        for address in through {
            self.check_some(address, |_| true);
        }
    }

    /// The pairs with these keys are read through this node.
    pub(crate) fn check_some(&self, through: &str, mut wanted: impl FnMut(&str) -> bool) {
        let mut client = Http::new(through);
        for (key, value) in self.held.iter().filter(|(key, _)| wanted(key)) {
            let answer = client.get(&target(key));
            assert_eq!(answer.status, 200, "{key} through {through}: {}", answer.text());
            assert_eq!(answer.json()["value"], *value, "{key} through {through}");
        }
    }
}
