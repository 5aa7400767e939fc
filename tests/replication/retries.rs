//! A write that is sent again under its `Idempotency-Key` is done once and answered as the first time.

use std::thread;

use serde_json::json;

use crate::alone;
use crate::support::change::{ask_with, passive, target, wait_knows};
use crate::support::cluster::Cluster;
use crate::support::http::{Http, Response};
use crate::support::node::Node;
use crate::support::replicated::{
    RECOVERY, named, others, replicated, restart_ready, wait_leader, wait_written,
};
use crate::support::wait_until;

/// A write under this id.
fn write(through: &str, method: &str, key: &str, id: &str, value: u64) -> Response {
    let body = if method == "PUT" { json!({ "value": value }).to_string() } else { String::new() };
    Http::new(through).request(method, &target(key), &[("Idempotency-Key", id)], body.as_bytes())
}

/// What was answered, without who served it.
fn told(answer: &Response) -> (u16, serde_json::Value) {
    let mut body = answer.json();
    body.as_object_mut().expect("an object").shift_remove("address");
    (answer.status, body)
}

fn added() -> (u16, serde_json::Value) {
    (201, json!({"message": "Added successfully", "replaced": false}))
}

fn deleted() -> (u16, serde_json::Value) {
    (200, json!({"doesExist": true, "message": "Deleted successfully"}))
}

fn value(through: &str, key: &str) -> Option<u64> {
    let answer = Http::new(through).get(&target(key));
    assert!([200, 404].contains(&answer.status), "{}", answer.text());
    answer.json()["value"].as_u64()
}

/// A put, a delete and a put on each of some keys; each can be sent again at any time.
fn write_all(through: &str) {
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(told(&write(through, "PUT", key, &format!("first-{key}"), 1)), added());
        assert_eq!(told(&write(through, "DELETE", key, &format!("second-{key}"), 0)), deleted());
        assert_eq!(told(&write(through, "PUT", key, &format!("third-{key}"), 3)), added());
        assert_eq!(told(&write(through, "PUT", key, &format!("fourth-{key}"), 4)).0, 200);
    }
}

/// They are sent again, in any order: nothing is done, and each is answered as the first time.
fn write_all_again(through: &str) {
    for key in ["f", "a", "c", "e", "b", "d"] {
        assert_eq!(told(&write(through, "PUT", key, &format!("third-{key}"), 3)), added(), "{key}");
        assert_eq!(told(&write(through, "DELETE", key, &format!("second-{key}"), 0)), deleted(), "{key}");
        assert_eq!(told(&write(through, "PUT", key, &format!("first-{key}"), 1)), added(), "{key}");
        assert_eq!(value(through, key), Some(4), "nothing was done twice");
    }
}

fn check_everywhere(cluster: &Cluster) {
    write_all(cluster.nodes[0].address());
    for node in &cluster.nodes {
        write_all_again(node.address());
    }
}

#[test]
fn a_write_sent_again_is_answered_as_before_by_any_node() {
    check_everywhere(&Cluster::of(3));
    check_everywhere(&replicated(4, 2, &[]));
    let single = Node::single(&[]);
    write_all(single.address());
    write_all_again(single.address());
}

#[test]
fn another_id_is_another_write_and_what_was_refused_is_not_remembered() {
    let cluster = replicated(3, 3, &[]);
    let asked = cluster.nodes[1].address();
    assert_eq!(told(&write(asked, "PUT", "k", "one", 1)), added());
    let again = write(asked, "PUT", "k", "two", 2);
    assert_eq!(told(&again), (200, json!({"message": "Updated successfully", "replaced": true})));
    assert_eq!(write(asked, "DELETE", "k", "three", 0).status, 200);
    assert_eq!(write(asked, "DELETE", "k", "four", 0).status, 404);
    let header = [("Idempotency-Key", "five")];
    let refused = Http::new(asked).request("PUT", &target("k"), &header, b"{}");
    assert_eq!((refused.status, refused.header("Evenkv-Outcome")), (400, Some("not-applied")));
    assert_eq!(told(&write(asked, "PUT", "k", "five", 5)), added());
    assert_eq!(value(asked, "k"), Some(5));
}

#[test]
fn writes_are_remembered_by_the_next_leader() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    write_all(&all[0]);
    let leader = wait_leader(&all[0], "1", |_| true);
    named(&mut cluster.nodes, &leader).kill();
    let living = others(&all, &[&leader]);
    wait_written(&living[0], "there-is-a-leader", 1);
    for address in &living {
        write_all_again(address);
    }
    // One that was filled anew knows them, too.
    restart_ready(named(&mut cluster.nodes, &leader));
    let next = wait_leader(&leader, "1", |_| true);
    let second = if next == leader { living[0].clone() } else { next };
    named(&mut cluster.nodes, &second).kill();
    wait_written(&leader, "there-is-a-leader", 2);
    write_all_again(&leader);
}

#[test]
fn writes_are_remembered_by_shards_and_nodes_to_which_their_keys_move() {
    let cluster = replicated(2, 2, &[]);
    let members = cluster.addresses();
    let spares: Vec<Node> = (0..4).map(|_| passive(&members, &[])).collect();
    for node in &spares {
        wait_knows(node, 1);
    }
    let all: Vec<String> =
        cluster.nodes.iter().chain(&spares).map(|node| node.address().to_owned()).collect();
    write_all(&all[1]);
    for (view, factor) in [(&all[2..], 2), (&all[..3], 1), (&all[3..], 3)] {
        let answer = ask_with(&all[5], &[], &json!({"view": view, "repl-factor": factor}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        for address in &view[..2] {
            write_all_again(address);
        }
    }
}

/// Eight clients that write a key, so many times in all: under different names that begin so, or without any.
fn write_much(through: &str, key: &str, writes: u64, names: Option<&str>) {
    let clients = 8;
    thread::scope(|scope| {
        for client in 0..clients {
            scope.spawn(move || {
                let mut http = Http::new(through);
                for number in 0..writes / clients {
                    let body = format!("{{\"value\":{number}}}");
                    let id = names.map(|names| format!("{names}-{client}-{number}"));
                    let headers: Vec<_> = id.iter().map(|id| ("Idempotency-Key", id.as_str())).collect();
                    let answer = http.request("PUT", &target(key), &headers, body.as_bytes());
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            });
        }
    });
}

#[test]
fn a_named_write_is_remembered_whatever_is_written_after_it() {
    let _alone = alone();
    let (single, cluster, group) = (Node::single(&[]), Cluster::of(3), replicated(3, 3, &[]));
    let mut through = vec![single.address().to_owned()];
    through.extend(cluster.addresses().into_iter().chain(group.addresses()));
    for asked in &through {
        for names in [Some(asked.as_str()), None] {
            assert!(Http::new(asked).put(&target("hot"), "{\"value\":0}").status < 300);
            let id = format!("a-{asked}-{names:?}");
            let first = write(asked, "PUT", "hot", &id, 1_000_000);
            assert_eq!(first.status, 200, "{}", first.text());
            write_much(asked, "hot", 6000, names);
            let newest = value(asked, "hot");
            assert_ne!(newest, Some(1_000_000));
            assert_eq!(told(&write(asked, "PUT", "hot", &id, 1_000_000)), told(&first), "{asked}");
            assert_eq!(value(asked, "hot"), newest, "{asked}: nothing was done twice");
        }
    }
}

/// The name was used for another request on this key: nothing is done, and the answer says so.
fn check_refused(through: &str, method: &str, key: &str, id: &str, other: u64) {
    let before = value(through, key);
    let answer = write(through, method, key, id, other);
    let (status, body) = told(&answer);
    assert_eq!(status, 422, "{method} {key} through {through}: {}", answer.text());
    assert_eq!(body["message"], format!("Error in {method}"));
    assert!(body["error"].as_str().is_some_and(|error| error.contains("Idempotency-Key")), "{body}");
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(2), "{body}");
    assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"));
    assert_eq!(answer.owner(), Http::new(through).get(&target(key)).owner(), "it was judged by the owner");
    assert_eq!(value(through, key), before);
}

/// Names that stand for another request on the same key, and for one on another key.
fn check_names(through: &[String], tag: &str) {
    for (number, asked) in through.iter().enumerate() {
        let key = format!("{tag}{number}");
        let names = |what: &str| format!("{what}-{key}");
        assert_eq!(told(&write(asked, "PUT", &key, &names("put"), 1)), added());
        assert_eq!(write(asked, "PUT", &key, &names("second"), 2).status, 200);
        for other in through {
            check_refused(other, "PUT", &key, &names("put"), 3);
            check_refused(other, "DELETE", &key, &names("put"), 0);
            assert_eq!(
                told(&write(other, "PUT", &key, &names("put"), 1)),
                added(),
                "the same one is answered"
            );
        }
        assert_eq!(told(&write(asked, "DELETE", &key, &names("delete"), 0)), deleted());
        assert_eq!(told(&write(asked, "PUT", &key, &names("third"), 3)), added());
        for other in through {
            check_refused(other, "PUT", &key, &names("delete"), 4);
        }
        assert_eq!(value(asked, &key), Some(3));
        let elsewhere = format!("{tag}else{number}");
        assert_eq!(
            told(&write(asked, "PUT", &elsewhere, &names("put"), 5)),
            added(),
            "another key, another name"
        );
    }
}

#[test]
fn the_name_of_another_request_is_refused_by_any_node() {
    let single = Node::single(&[]);
    let follower = Node::follower(single.address(), &[]);
    check_names(&[single.address().to_owned(), follower.address().to_owned()], "s");
    check_names(&Cluster::of(3).addresses(), "c");
    check_names(&replicated(4, 2, &[]).addresses(), "r");
}

#[test]
fn the_name_of_another_request_is_refused_after_its_key_has_moved() {
    let cluster = Cluster::of(2);
    let members = cluster.addresses();
    let spares: Vec<Node> = (0..2).map(|_| passive(&members, &[])).collect();
    for node in &spares {
        wait_knows(node, 2);
    }
    let all: Vec<String> =
        cluster.nodes.iter().chain(&spares).map(|node| node.address().to_owned()).collect();
    write_all(&all[0]);
    for (view, factor) in [(&all[2..], 1), (&all[1..3], 2), (&all[..3], 1)] {
        let answer = ask_with(&all[3], &[], &json!({"view": view, "repl-factor": factor}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        for key in ["a", "b", "c", "d", "e", "f"] {
            check_refused(&view[0], "PUT", key, &format!("third-{key}"), 5);
            check_refused(&view[0], "DELETE", key, &format!("fourth-{key}"), 0);
            check_refused(&view[0], "PUT", key, &format!("second-{key}"), 5);
        }
        write_all_again(&view[1]);
    }
}

/// What the named writes that a node remembers take, by its metrics.
fn remembered_bytes(address: &str) -> u64 {
    let text = Http::new(address).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix("evenkv_retry_bytes "));
    line.unwrap_or_else(|| panic!("no evenkv_retry_bytes in {text}")).parse().expect("a number")
}

#[test]
fn at_the_bound_new_names_are_refused_and_all_else_goes_on() {
    let limit = [("RETRY_MEMORY", "65536")];
    let (single, cluster, group) = (Node::single(&limit), Cluster::with(2, &limit), replicated(3, 3, &limit));
    let leader = wait_leader(group.nodes[0].address(), "1", |_| true);
    let forwarded = cluster.key_of(1, "full");
    for (nodes, key, owner) in [
        (vec![single.address().to_owned()], "full", single.address()),
        (cluster.addresses(), forwarded.as_str(), cluster.nodes[1].address()),
        (group.addresses(), "full", &leader),
    ] {
        let named = |number: usize, through: &str| write(through, "PUT", key, &format!("n-{number}"), 1);
        let first = told(&named(0, &nodes[0]));
        assert_eq!(first, added());
        let through = |number: usize| &nodes[number % nodes.len()];
        let bound = (1..3000).find(|number| named(*number, through(*number)).status != 200);
        // Each takes 128 bytes.
        assert!(bound.is_some_and(|bound| (500..530).contains(&bound)), "{bound:?}");
        for asked in &nodes {
            let refused = named(4000, asked);
            assert_eq!(refused.status, 503, "{}", refused.text());
            assert_eq!(refused.header("Evenkv-Outcome"), Some("not-applied"));
            assert!(refused.header("Retry-After").is_some());
            assert!(refused.text().contains("RETRY_MEMORY"), "{}", refused.text());
            assert_eq!(told(&named(0, asked)), first, "what is remembered is answered");
            assert_eq!(named(300, asked).status, 200);
            write_much(asked, key, 400, None);
            assert_eq!(named(4001, asked).status, 503);
        }
        let bytes = remembered_bytes(owner);
        assert!((65_536..100_000).contains(&bytes), "{bytes}");
    }
}

#[test]
fn writes_that_nodes_pass_on_are_forgotten_when_they_are_answered() {
    for cluster in [Cluster::of(3), replicated(3, 3, &[])] {
        let all = cluster.addresses();
        for (key, asked) in ["a", "b", "c", "d"].iter().zip(all.iter().cycle()) {
            assert!(Http::new(asked).put(&target(key), "{\"value\":0}").status < 300);
            write_much(asked, key, 4000, None);
        }
        // Without a name and without an answer are at most the eight of each node, and few have come after the last.
        for address in &all {
            let bytes = remembered_bytes(address);
            assert!(bytes < 10_000, "{address} remembers {bytes} bytes");
        }
    }
}

/// A write as a node of this cluster passes it on to another.
fn pass_on(to: &str, of_cluster: &str, key: &str, request: &str, value: u64) -> (String, u16) {
    let view = format!("{of_cluster}.{}.{:016x}", u64::MAX, 0);
    let headers = [("Evenkv-View", view.as_str()), ("Evenkv-Request", request)];
    let path = format!("/node/keys/{key}");
    let answer = Http::new(to).request("PUT", &path, &headers, value.to_string().as_bytes());
    (answer.header("Evenkv-Result").unwrap_or_default().to_owned(), answer.status)
}

/// The random id of this start of a node.
fn start_of(address: &str) -> u64 {
    Http::new(address).get("/node/hello").json()["incarnation"].as_u64().expect("a number")
}

#[test]
fn what_arrives_under_a_start_that_is_over_is_not_done() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let id =
        Http::new(&all[0]).get("/kv-store/view").json()["cluster-id"].as_str().expect("an id").to_owned();
    let leader = wait_leader(&all[0], "1", |_| true);
    let passing = others(&all, &[&leader]).remove(0);
    let old = start_of(&passing);
    // Sent again it is answered as the first time.
    for _ in 0..2 {
        wait_until("the shard knows the start", RECOVERY, || {
            pass_on(&leader, &id, "k", &format!("n.{old:016x}.70000.70000"), 1) == ("added".to_owned(), 200)
        });
    }
    assert_eq!(
        pass_on(&leader, &id, "k", &format!("n.{old:016x}.69999.69999"), 2),
        ("again".to_owned(), 503)
    );
    assert_eq!(value(&leader, "k"), Some(1));
    let node = named(&mut cluster.nodes, &passing);
    node.kill();
    restart_ready(node);
    let new = start_of(&passing);
    assert_ne!(old, new);
    wait_until("the shard knows the new start", RECOVERY, || {
        pass_on(&leader, &id, "k", &format!("n.{new:016x}.70000.70000"), 3).0 == "updated"
    });
    for number in [70_000, 80_000] {
        let late = pass_on(&leader, &id, "k", &format!("n.{old:016x}.{number}.70000"), 4);
        assert_eq!(late, ("again".to_owned(), 503));
    }
    assert_eq!(value(&leader, "k"), Some(3));
}
