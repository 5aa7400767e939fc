//! Who holds which shard, the counts and checksums of all of them, and the least that a view change must move.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::http::Http;

/// The replicas of every shard by its id, in the order of the view.
pub(crate) type Holders = BTreeMap<String, Vec<String>>;

/// One shard of an audit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Audited {
    pub(crate) id: String,
    pub(crate) replicas: Vec<String>,
    /// `None` where it was not reached.
    pub(crate) count: Option<u64>,
}

/// The counts and checksums of all shards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Audit {
    pub(crate) ok: bool,
    pub(crate) epoch: u64,
    pub(crate) keys: u64,
    pub(crate) checksum: String,
    pub(crate) shards: Vec<Audited>,
    /// A sentence for whatever is wrong.
    pub(crate) problems: Vec<String>,
    /// The ranges that no shard owns, and those that several own: from, to, and who.
    pub(crate) missing: Vec<Part>,
    pub(crate) doubled: Vec<Part>,
    /// Pairs of its shard by node; `None` where the shard was not reached.
    pub(crate) counts: BTreeMap<String, Option<u64>>,
}

/// A range that not exactly one shard owns: its first point, the point after its last one, and who owns it.
pub(crate) type Part = (String, String, Vec<String>);

impl Audit {
    /// The count of every shard, where all were reached.
    pub(crate) fn held(&self) -> Vec<Held> {
        let held = |shard: &Audited| Held {
            replicas: shard.replicas.clone(),
            pairs: shard.count.unwrap_or_else(|| panic!("a shard is not reached: {self:?}")),
        };
        self.shards.iter().map(held).collect()
    }
}

/// The audit as this node gives it; its fields must be those of the contract.
pub(crate) fn audit(address: &str) -> Audit {
    let answer = Http::new(address).get("/kv-store/audit");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["message"], "Audit retrieved successfully", "{body}");
    let ok = body["ok"].as_bool().expect("a verdict");
    let rows = body["shards"].as_array().expect("a list of shards");
    let mut shards = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["shard-id"], (number + 1).to_string(), "{body}");
        let count = row["key-count"].as_u64();
        for figure in ["log-index", "stray"] {
            assert_eq!(row[figure].is_u64(), count.is_some(), "{figure} in {body}");
        }
        assert_eq!(row["checksum"].as_str().is_some_and(is_checksum), count.is_some(), "{body}");
        let replicas = replicas_of(row);
        check_replicas(row, &replicas, ok);
        shards.push(Audited { id: (number + 1).to_string(), replicas, count });
    }
    if ok {
        assert!(rows.iter().all(|row| row["stray"] == 0), "{body}");
        let sum = shards.iter().map(|shard| shard.count).sum::<Option<u64>>();
        assert_eq!(sum, body["keys"].as_u64(), "{body}");
        assert!(body["checksum"].as_str().is_some_and(is_checksum), "{body}");
    }
    let problems: Vec<String> = texts(&body["problems"]);
    let (missing, doubled) = (parts(&body["missing-ranges"]), parts(&body["doubled-ranges"]));
    assert_eq!(ok, problems.is_empty(), "{body}");
    assert!(!ok || (missing.is_empty() && doubled.is_empty()), "{body}");
    let of_nodes = |shard: &Audited| {
        let count = shard.count;
        shard.replicas.iter().map(|node| (node.clone(), count)).collect::<Vec<_>>()
    };
    Audit {
        ok,
        epoch: body["epoch"].as_u64().expect("an epoch"),
        keys: body["keys"].as_u64().unwrap_or_default(),
        checksum: body["checksum"].as_str().unwrap_or_default().to_owned(),
        counts: shards.iter().flat_map(of_nodes).collect(),
        shards,
        problems,
        missing,
        doubled,
    }
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|text| text.as_str().unwrap_or_else(|| panic!("no text: {text}")).to_owned()).collect()
}

fn parts(list: &Value) -> Vec<Part> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let text =
        |row: &Value, name: &str| row[name].as_str().unwrap_or_else(|| panic!("{name}: {row}")).to_owned();
    let owners = |row: &Value| row.get("shards").map(texts).unwrap_or_default();
    list.iter().map(|row| (text(row, "from"), text(row, "to"), owners(row))).collect()
}

/// What every replica of a shard says of itself; where all is well there is a row for each, and they agree.
fn check_replicas(row: &Value, replicas: &[String], ok: bool) {
    let Some(checked) = row.get("replicas-checked") else {
        assert_eq!(replicas.len(), 1, "all replicas are checked: {row}");
        return;
    };
    let checked = checked.as_array().unwrap_or_else(|| panic!("a list of replicas in {row}"));
    let mut seen = BTreeSet::new();
    for replica in checked {
        let node = replica["replica"].as_str().unwrap_or_else(|| panic!("a replica in {row}"));
        assert!(replicas.iter().any(|known| known == node), "{node} is none of them: {row}");
        assert!(seen.insert(node), "{node} is there twice: {row}");
        if ok {
            assert!(replica["log-index"].is_u64(), "{row}");
            for name in ["key-count", "checksum"] {
                assert_eq!(replica[name], row[name], "{node} disagrees: {row}");
            }
        }
    }
    assert!(!ok || seen.len() == replicas.len(), "not all replicas were reached: {row}");
}

fn is_checksum(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The nodes of this shard as any answer of a node lists them.
pub(crate) fn replicas_of(shard: &Value) -> Vec<String> {
    let replicas = shard["replicas"].as_array().unwrap_or_else(|| panic!("no replicas in {shard}"));
    let address = |node: &Value| node.as_str().unwrap_or_else(|| panic!("no address in {shard}")).to_owned();
    replicas.iter().map(address).collect()
}

/// Who holds each shard, as the asked node knows the view.
pub(crate) fn holders(address: &str) -> Holders {
    let view = Http::new(address).get("/kv-store/view").json();
    let shards = view["shards"].as_array().unwrap_or_else(|| panic!("no shards in {view}"));
    shards.iter().map(|shard| (shard_id(shard), replicas_of(shard))).collect()
}

pub(crate) fn shard_id(shard: &Value) -> String {
    shard["shard-id"].as_str().unwrap_or_else(|| panic!("no id in {shard}")).to_owned()
}

/// Node by shard id at factor 1, as the asked node knows the view.
pub(crate) fn shards(address: &str) -> BTreeMap<String, String> {
    let only = |mut replicas: Vec<String>| {
        assert_eq!(replicas.len(), 1, "a shard is one node at factor 1: {replicas:?}");
        replicas.remove(0)
    };
    holders(address).into_iter().map(|(id, replicas)| (id, only(replicas))).collect()
}

/// What a shard holds before a view change.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) replicas: Vec<String>,
    pub(crate) pairs: u64,
}

/// The least number of pairs that must change their shard: all of the shards that go, and what the others have above
/// their part, where one more than the rounded part may stay on as many as there are.
///
/// At factor 1 before and after, a shard is its node and goes with it. Otherwise as many stay as there are to be, first
/// those that keep most nodes, then those with most pairs.
pub(crate) fn least_moves(before: &[Held], view: &[String], factor: usize) -> u64 {
    let (count, keys) = (view.len() / factor, before.iter().map(|shard| shard.pairs).sum::<u64>());
    let kept = |shard: &Held| shard.replicas.iter().filter(|node| view.contains(node)).count().min(factor);
    let mut staying: Vec<&Held> = before.iter().collect();
    if factor == 1 && before.iter().all(|shard| shard.replicas.len() == 1) {
        staying.retain(|shard| kept(shard) > 0);
    }
    staying.sort_by_key(|shard| Reverse((kept(shard), shard.pairs)));
    staying.truncate(count);
    staying.sort_by_key(|shard| Reverse(shard.pairs));
    let (part, extra) = (keys / count as u64, keys % count as u64);
    let stay =
        staying.iter().zip(0..).map(|(shard, number)| shard.pairs.min(part + u64::from(number < extra)));
    keys - stay.sum::<u64>()
}
