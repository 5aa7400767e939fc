//! A write that is sent again under its `Idempotency-Key` is done once and answered as the first time.

use serde_json::json;

use crate::support::change::{ask_with, passive, target, wait_knows};
use crate::support::cluster::Cluster;
use crate::support::http::{Http, Response};
use crate::support::node::Node;
use crate::support::replicated::{named, others, replicated, restart_ready, wait_leader, wait_written};

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
