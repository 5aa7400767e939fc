//! What answers look like while all nodes are there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::audit::audit;
use crate::support::change::{Pairs, target};
use crate::support::cluster::Cluster;
use crate::support::http::{Http, Response};
use crate::support::node::Node;
use crate::support::replicated::{replicated, wait_leader};
use crate::support::{ports, wait_until};

/// The nodes of each shard of a fresh view: the first ones are shard 1, and so on.
fn fresh_shards(cluster: &Cluster, factor: usize) -> Vec<Vec<String>> {
    cluster.addresses().chunks(factor).map(<[String]>::to_vec).collect()
}

#[test]
fn any_node_answers_and_names_a_node_of_the_owning_shard_where_it_is_not_its_own() {
    for (count, factor) in [(4, 2), (6, 3)] {
        let cluster = replicated(count, factor, &[]);
        let shards = fresh_shards(&cluster, factor);
        let mut clients = cluster.clients();
        let mut keys_of = vec![0; shards.len()];
        for number in 0..40 {
            let (key, asked) = (format!("key-{number}"), number % count);
            let put = clients[asked].put(&target(&key), json!({ "value": number }).to_string());
            assert_eq!(put.status, 201, "{key} by node {asked}");
            let put = without_address(&put, json!({"message": "Added successfully", "replaced": false}));
            let mut named = Vec::new();
            for client in &mut clients {
                let got = client.get(&target(&key));
                assert_eq!(got.status, 200, "{key}");
                let expected =
                    json!({"doesExist": true, "message": "Retrieved successfully", "value": number});
                named.push(without_address(&got, expected));
            }
            let own = named.iter().position(Option::is_none);
            let owner = own.unwrap_or_else(|| panic!("{key} is nobody's own: {named:?}")) / factor;
            keys_of[owner] += 1;
            named.push(put);
            for (node, named) in (0..count).chain([asked]).zip(named) {
                assert_eq!(
                    named.is_none(),
                    node / factor == owner,
                    "{key} by node {node}, which names {named:?}"
                );
                assert!(named.is_none_or(|named| shards[owner].contains(&named)), "{key} by node {node}");
            }
        }
        assert!(keys_of.iter().all(|count| *count > 0), "{keys_of:?}");
    }
}

/// The answer is what is expected, and nothing else but an address, which is returned.
fn without_address(answer: &Response, mut expected: Value) -> Option<String> {
    let named = answer.owner();
    if let Some(node) = &named {
        expected["address"] = json!(node);
    }
    assert_eq!(answer.json(), expected);
    named
}

#[test]
fn what_is_wrong_names_a_node_of_the_owning_shard_too() {
    let cluster = replicated(4, 2, &[]);
    let shards = fresh_shards(&cluster, 2);
    let mut seen = BTreeMap::new();
    for number in 0..24 {
        let key = format!("absent-{number}");
        for (asked, client) in cluster.clients().iter_mut().enumerate() {
            let absent = client.get(&target(&key));
            let no_value = client.put(&target(&key), "{}");
            assert_eq!((absent.status, no_value.status), (404, 400));
            assert_eq!(absent.owner().is_some(), no_value.owner().is_some(), "{key} by node {asked}");
            assert_eq!(no_value.header("Evenkv-Outcome"), Some("not-applied"));
            let Some(named) = no_value.owner() else { continue };
            assert!(!shards[asked / 2].contains(&named), "{key} by node {asked} names {named}");
            let owner = shards.iter().position(|shard| shard.contains(&named)).expect("a node of the view");
            assert_eq!(*seen.entry(key.clone()).or_insert(owner), owner);
        }
    }
    assert_eq!(seen.len(), 24, "half of the nodes hold a key, the others name who does");
}

#[test]
fn every_node_knows_every_shard() {
    for (count, factor) in [(4, 2), (3, 3)] {
        let cluster = replicated(count, factor, &[]);
        let all = cluster.addresses();
        let shards = fresh_shards(&cluster, factor);
        let mut pairs = Pairs::default();
        pairs.create(&all, 60);
        let counts: Vec<u64> = shards.iter().map(|shard| key_count(&shard[0])).collect();
        assert_eq!(counts.iter().sum::<u64>(), 60);
        let ids: Vec<String> = (1..=shards.len()).map(|id| id.to_string()).collect();
        for (asked, address) in all.iter().enumerate() {
            let mut client = Http::new(address);
            assert_eq!(key_count(address), counts[asked / factor], "as every replica counts");
            let listed = json!({"message": "Shard membership retrieved successfully", "shards": ids});
            assert_eq!(client.get("/kv-store/shards").json(), listed);
            for (shard, id) in ids.iter().enumerate() {
                let expected = json!({
                    "message": "Shard information retrieved successfully",
                    "shard-id": id,
                    "key-count": counts[shard],
                    "replicas": shards[shard],
                });
                assert_eq!(client.get(&format!("/kv-store/shards/{id}")).json(), expected);
            }
            assert_eq!(client.get("/kv-store/shards/9").status, 404);
            let seen = audit(address);
            assert!(seen.ok && seen.keys == 60, "{seen:?}");
            check_view(address, &shards, factor);
        }
    }
}

fn key_count(address: &str) -> u64 {
    let body = Http::new(address).get("/kv-store/key-count").json();
    assert_eq!(body["message"], "Key count retrieved successfully", "{body}");
    assert!(body["shard-id"].is_string(), "{body}");
    body["key-count"].as_u64().unwrap_or_else(|| panic!("no count in {body}"))
}

/// The view is that of the start, each shard has a leader among its replicas, which is null where it is not known, and
/// the ranges cover the whole space.
fn check_view(address: &str, shards: &[Vec<String>], factor: usize) {
    for (number, replicas) in shards.iter().enumerate() {
        wait_leader(address, &(number + 1).to_string(), |leader| replicas.iter().any(|node| node == leader));
    }
    let answer = Http::new(address).get("/kv-store/view");
    let view = answer.json();
    let tag = answer.header("ETag").unwrap_or_default().trim_matches('"').to_owned();
    assert_eq!(tag, view["epoch"].to_string(), "{view}");
    assert_eq!(view["repl-factor"], factor, "{view}");
    let mut ranges = Vec::new();
    for (shard, replicas) in view["shards"].as_array().expect("shards").iter().zip(shards) {
        assert_eq!(shard["replicas"], json!(replicas), "{view}");
        let is_led =
            shard["leader"].as_str().is_some_and(|leader| replicas.iter().any(|node| node == leader));
        assert!(is_led || shard["leader"].is_null(), "{view}");
        for range in shard["ranges"].as_array().expect("ranges") {
            ranges.push((range["from"].as_str().expect("from").to_owned(), range["to"].clone()));
        }
    }
    ranges.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(ranges[0].0, "0".repeat(32), "{view}");
    assert!(ranges.windows(2).all(|pair| pair[0].1 == json!(pair[1].0)), "{view}");
}

#[test]
fn a_causal_context_is_taken_and_given() {
    let cluster = replicated(4, 2, &[]);
    let mut clients = cluster.clients();
    let context = json!({"causal-context": {}});
    for (number, client) in clients.iter_mut().enumerate() {
        let key = target(&format!("causal-{number}"));
        let put = client.put(&key, json!({"value": 1, "causal-context": {}}).to_string());
        let given = check_context(&put.json(), &json!({"message": "Added successfully", "replaced": false}));
        for sent in [json!(null), json!(""), json!("{}"), given.clone()] {
            let body = json!({ "causal-context": sent }).to_string();
            let got = client.request("GET", &key, &[], body.as_bytes());
            assert_eq!(got.status, 200, "{sent}: {}", got.text());
            let expected = json!({"doesExist": true, "message": "Retrieved successfully", "value": 1});
            check_context(&got.json(), &expected);
        }
        let absent = client.request("DELETE", &target("nobody"), &[], context.to_string().as_bytes());
        assert_eq!(absent.status, 404);
        let expected =
            json!({"doesExist": false, "error": "Key does not exist", "message": "Error in DELETE"});
        check_context(&absent.json(), &expected);
        assert!(client.get(&key).json().get("causal-context").is_none(), "who sends none gets none");
    }
}

/// The body is what is expected, an address and a context; returns the context.
fn check_context(body: &Value, expected: &Value) -> Value {
    let mut rest = body.as_object().expect("an object").clone();
    rest.remove("address");
    let given = rest.remove("causal-context").unwrap_or_else(|| panic!("no context in {body}"));
    assert!(given.is_object(), "{body}");
    assert_eq!(Value::Object(rest), *expected);
    given
}

#[test]
fn a_stale_read_is_answered_by_the_asked_replica_and_says_how_old_it_may_be() {
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 10);
    for address in &all {
        for (key, value) in &pairs.held {
            let stale = format!("{}?consistency=stale", target(key));
            // It may be old, but not for long: the others tell this replica.
            let mut told = String::new();
            wait_until("the replica has it", Duration::from_secs(5), || {
                let got = Http::new(address).get(&stale);
                assert!([200, 404].contains(&got.status), "{}", got.text());
                assert_eq!(got.owner(), None, "{}", got.text());
                told = got.header("Evenkv-Staleness-Ms").expect("the header").to_owned();
                got.status == 200 && got.json()["value"] == *value
            });
            let staleness: f64 = told.parse().unwrap_or_else(|_| panic!("{told} is no number"));
            assert!((0.0..5000.0).contains(&staleness), "{told} ms in a quiet cluster");
        }
        let fresh = Http::new(address).get(&target("pair-1"));
        assert_eq!(fresh.header("Evenkv-Staleness-Ms"), None, "a read that is not stale does not say so");
    }
}

#[test]
fn a_number_of_nodes_that_is_no_multiple_of_the_factor_is_refused_at_the_start() {
    let all: Vec<String> = (0..5).map(|_| ports::free_address()).collect();
    for (count, factor) in [(3, "2"), (5, "3"), (2, "3"), (4, "0"), (4, "-2"), (4, "two"), (4, "1.5")] {
        let view = all[..count].join(",");
        let mut node = Node::start(&all[0], &[("VIEW", &view), ("REPL_FACTOR", factor)]);
        let status = node.wait_exit(Duration::from_secs(10));
        assert_eq!(status.code(), Some(2), "{count} nodes at factor {factor}: {}", node.log());
        assert!(node.log().contains("REPL_FACTOR"), "{count} nodes at factor {factor}: {}", node.log());
    }
}
