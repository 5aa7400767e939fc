//! View changes as a client asks for them, and all that must be true after one.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::audit::{Holders, audit, holders, least_moves, replicas_of, shard_id};
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

/// A receipt at factor 1 is exact by itself: fields, ids, nodes, counts that differ by one at most, their sum.
pub(crate) fn check_receipt(receipt: &Value, view: &[String]) {
    check_receipt_at(receipt, view, 1);
}

/// The same at any factor: every node of the view is in exactly one shard, and only at factor 1 a shard has an address.
pub(crate) fn check_receipt_at(receipt: &Value, view: &[String], factor: usize) {
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
    let ids: Vec<String> = (1..=view.len() / factor).map(|number| number.to_string()).collect();
    assert_eq!(listed.iter().map(|shard| shard["shard-id"].clone()).collect::<Vec<_>>(), ids, "{receipt}");
    let order = |node: &String| view.iter().position(|named| named == node);
    for shard in listed {
        let replicas = replicas_of(shard);
        assert_eq!(replicas.len(), factor, "{receipt}");
        assert!(replicas.is_sorted_by_key(order), "replicas are in the order of {view:?}: {receipt}");
        let address = (factor == 1).then_some(&shard["replicas"][0]);
        assert_eq!(shard.get("address"), address, "{receipt}");
    }
    let nodes: Vec<String> = listed.iter().flat_map(replicas_of).collect();
    assert_eq!(nodes.len(), view.len(), "{receipt}");
    assert_eq!(sorted(&nodes), sorted(view), "{receipt}");
    let counts = |name: &str| -> Vec<u64> {
        let count = |shard: &Value| shard[name].as_u64().unwrap_or_else(|| panic!("{name} in {receipt}"));
        listed.iter().map(count).collect()
    };
    let at_cut = counts("key-count-at-cut");
    let (least, most) = (at_cut.iter().min().expect("shards"), at_cut.iter().max().expect("shards"));
    assert!(most - least <= 1, "{receipt}");
    assert_eq!(at_cut.iter().sum::<u64>(), figure("keys"), "{receipt}");
    if figure("created-meanwhile") == 0 && figure("deleted-meanwhile") == 0 {
        assert_eq!(counts("key-count"), at_cut, "{receipt}");
    }
}

fn sorted(nodes: &[String]) -> BTreeSet<&String> {
    nodes.iter().collect()
}

/// Changes the view at factor 1 while nobody writes, and checks all that must be true then, see [`change_idle_to`].
pub(crate) fn change_idle(asked: &str, view: &[String]) -> Value {
    change_idle_to(asked, view, 1)
}

/// Changes the view while nobody writes, and checks all that must be true then: the receipt, by audits before and after
/// that nothing is lost, doubled or moved without need, that the ids of shards stay, and the counts of all nodes, also
/// of those that left. Returns the receipt. The factor is only named where it is a new one.
pub(crate) fn change_idle_to(asked: &str, view: &[String], factor: usize) -> Value {
    let (before, old) = (audit(asked), holders(asked));
    assert!(before.ok, "{before:?}");
    let is_new = old.values().any(|replicas| replicas.len() != factor);
    let body = if is_new { json!({"view": view, "repl-factor": factor}) } else { json!({ "view": view }) };
    let answer = ask_with(asked, &[], &body);
    assert_eq!(answer.status, 200, "from {old:?} to {body} at {asked}: {}", answer.text());
    let receipt = answer.json();
    check_receipt_at(&receipt, view, factor);
    assert_eq!(receipt["moved"], least_moves(&before.held(), view, factor), "{before:?} to {receipt}");
    assert_eq!(receipt["keys"], before.keys, "{before:?} to {receipt}");
    if factor == 1 && !is_new {
        assert_eq!(receipt["moved"], receipt["copied"], "{receipt}");
    }
    let most = before.keys * factor as u64;
    assert!(receipt["copied"].as_u64().is_some_and(|copied| copied <= most), "at most {most}: {receipt}");
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
        for (shard, audited) in receipt["shards"].as_array().expect("a list").iter().zip(&after.shards) {
            assert_eq!(shard["key-count"].as_u64(), audited.count, "{receipt} and {after:?}");
        }
        assert_eq!(holders(address), new, "as {address} knows it");
    }
    check_key_counts(&receipt, &old);
    receipt
}

/// A shard that stays on its nodes keeps its id where that is one of the new ids; where neither the number of shards
/// nor the factor changes, a shard whose nodes all stay keeps them.
fn check_ids(old: &Holders, receipt: &Value) -> Holders {
    let listed = receipt["shards"].as_array().expect("a list");
    let new: Holders = listed.iter().map(|shard| (shard_id(shard), replicas_of(shard))).collect();
    let all: Vec<&String> = new.values().flatten().collect();
    let is_same_shape = new.len() == old.len() && new.values().map(Vec::len).eq(old.values().map(Vec::len));
    for (id, nodes) in old.iter().filter(|(id, _)| new.contains_key(*id)) {
        let is_there = new.values().any(|kept| sorted(kept) == sorted(nodes));
        let could_be = is_same_shape && nodes.iter().all(|node| all.contains(&node));
        let keeps = sorted(&new[id]) == sorted(nodes);
        assert!(keeps || !(is_there || could_be), "shard {id} from {old:?} to {new:?}");
    }
    new
}

/// What every node says of itself.
fn check_key_counts(receipt: &Value, old: &Holders) {
    let listed = receipt["shards"].as_array().expect("a list");
    let mut staying = BTreeSet::new();
    for shard in listed {
        let expected = json!({
            "message": "Key count retrieved successfully",
            "key-count": shard["key-count"],
            "shard-id": shard["shard-id"],
        });
        for node in replicas_of(shard) {
            let own = Http::new(&node).get("/kv-store/key-count").json();
            assert_eq!(own, expected, "{node} after {receipt}");
            staying.insert(node);
        }
    }
    for left in old.values().flatten().filter(|node| !staying.contains(*node)) {
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
