//! How long keys and values may be: the limits are the cluster's, whatever its nodes are set to, and what no start allows no view change
//! leads to.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::audit::{audit, shards};
use support::change::{VIEW_CHANGE, allowed, ask, ask_with, passive, target, wait_knows};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::replicated::is_ready;
use support::{START_DEADLINE, ports, timed, wait_until};

const MIB: usize = 1 << 20;

/// The answer to a request that is judged: on a machine that is busy with other things it may be refused for a while.
fn judged(mut ask: impl FnMut() -> Response) -> Response {
    let mut answer = ask();
    wait_until("the request is judged", START_DEADLINE, || {
        if answer.status == 503 {
            answer = ask();
        }
        answer.status != 503
    });
    answer
}

/// A PUT with a value whose text has `length` bytes.
fn put_value(client: &mut Http, key: &str, length: usize) -> Response {
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(length - 2));
    judged(|| client.put(&target(key), &body))
}

/// Every method takes a key of `limit` bytes at this node, and none takes a longer one; with values it is the same.
fn check_limits(address: &str, key_limit: usize, value_limit: usize) {
    let mut client = Http::new(address);
    // As long as it is sent, and three times as long.
    for byte in ["k", "%FE"] {
        let fits = target(&byte.repeat(key_limit));
        let context = format!("a key of {key_limit} times {byte} at {address}");
        let statuses = ["PUT", "GET", "DELETE"]
            .map(|method| judged(|| client.request(method, &fits, &[], br#"{"value":1}"#)).status);
        // One that was sent twice has found nothing left to delete.
        let is_deleted = [200, 404].contains(&statuses[2]);
        assert!(statuses[0] < 300 && statuses[1] == 200 && is_deleted, "{statuses:?}: {context}");
        let longer = target(&byte.repeat(key_limit + 1));
        for answer in [client.put(&longer, r#"{"value":1}"#), client.get(&longer), client.delete(&longer)] {
            assert_eq!(answer.status, 400, "{context}: {}", answer.text());
            assert_eq!(answer.json()["error"], "Key is too long", "{context}");
            assert_eq!(answer.header("Evenkv-Limit"), Some(key_limit.to_string().as_str()), "{context}");
        }
    }
    for key in ["one", "two", "three"] {
        let fits = put_value(&mut client, key, value_limit);
        assert!(fits.status < 300, "a value of {value_limit} bytes at {address}: {}", fits.text());
        let refused = put_value(&mut client, key, value_limit + 1);
        assert_eq!(refused.status, 413, "a longer value at {address}: {}", refused.text());
        assert!(refused.text().contains(&value_limit.to_string()), "{}", refused.text());
        let kept = judged(|| Http::new(address).get(&target(key))).json();
        assert_eq!(kept["value"].as_str().map(str::len), Some(value_limit - 2), "at {address}");
    }
}

/// What `/readyz` of a node that is ready has noticed.
fn notes(node: &Node) -> Vec<String> {
    let answer = node.http().get("/readyz");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_value(answer.json()["notes"].clone()).expect("a list of texts")
}

/// A refusal says all of this, and that nothing was done.
fn check_refused(answer: &Response, name: &str, says: &[&str]) {
    let context = format!("{name}: {} {}", answer.status, answer.text());
    assert_eq!(answer.status, 400, "{context}");
    let error = answer.json()["error"].as_str().expect("an error").to_owned();
    assert!(says.iter().all(|part| error.contains(part)), "{says:?} in {context}");
    assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{context}");
}

/// Nodes of one view, and an address that stays free.
fn addresses(nodes: &[&Node]) -> Vec<String> {
    nodes.iter().map(|node| node.address().to_owned()).collect()
}

#[test]
fn what_a_start_refuses_no_view_change_leads_to() {
    let (long, memory) = ((100 * MIB).to_string(), (256 * MIB).to_string());
    let large = Node::single(&[("MAX_VALUE_LENGTH", &long), ("LARGE_MEMORY", &memory)]);
    let other = Node::single(&[("LARGE_MEMORY", &memory)]);
    let narrow = Node::single(&[]);
    // Longer than what the other nodes are set to take.
    assert_eq!(put_value(&mut large.http(), "k", 20 * MIB).status, 201);
    let two = addresses(&[&large, &other]);
    let with_narrow = addresses(&[&large, &narrow]);
    let many: Vec<String> = (0..1025).map(|port| format!("127.0.0.9:{}", 20_000 + port)).collect();
    let limits = |limits: Value| json!({"view": two, "limits": limits});
    let rows: Vec<(&str, Value, Vec<&str>)> = vec![
        (
            "values too long for a log",
            json!({"view": two, "repl-factor": 2}),
            vec!["max-value-length", "104857600", "repl-factor", "50331648"],
        ),
        (
            "values too long for a log, and for every node",
            json!({"view": two, "repl-factor": 2, "limits": {"max-value-length": 120 * MIB}}),
            vec!["max-value-length", "repl-factor", "50331648"],
        ),
        (
            "a node with too little memory",
            json!({ "view": with_narrow }),
            vec![narrow.address(), "LARGE_MEMORY", "134217728", "209715200"],
        ),
        (
            "a limit that needs more memory than there is",
            limits(json!({"max-value-length": 129 * MIB})),
            vec![large.address(), "LARGE_MEMORY", "268435456", "270532608"],
        ),
        ("values of any length", limits(json!({"max-value-length": 257 * MIB})), vec!["268435456"]),
        ("keys of any length", limits(json!({"max-key-length": 65537})), vec!["max-key-length", "65536"]),
        ("shorter keys", limits(json!({"max-key-length": 1023})), vec!["max-key-length", "1024", "lowered"]),
        ("shorter values", limits(json!({"max-value-length": 5})), vec!["max-value-length", "lowered"]),
        ("no keys", limits(json!({"max-key-length": 0})), vec!["max-key-length"]),
        ("a negative limit", limits(json!({"max-key-length": -1})), vec!["max-key-length"]),
        ("a limit in words", limits(json!({"max-value-length": "9 MiB"})), vec!["max-value-length"]),
        ("another limit", limits(json!({"max-key-size": 2000})), vec!["max-key-size"]),
        ("limits in a list", limits(json!([2000])), vec!["limits"]),
        ("a factor over 64", json!({"view": many[..65], "repl-factor": 65}), vec!["repl-factor", "64"]),
        ("too many nodes", json!({ "view": many }), vec!["1025", "1024"]),
        ("too many nodes in a text", json!({ "view": many.join(",") }), vec!["1025", "1024"]),
        ("nobody there", json!({ "view": many[..1024] }), vec![many[0].as_str()]),
    ];
    let (before, known) = (audit(large.address()), shards(large.address()));
    for (name, body, says) in rows {
        let mut dry = body.clone();
        dry["dry-run"] = true.into();
        for body in [body, dry] {
            check_refused(&ask_with(large.address(), &[], &body), name, &says);
            assert_eq!((audit(large.address()), shards(large.address())), (before.clone(), known.clone()));
        }
    }
    // The same nodes as far as they go, and a large value that moves.
    let grown = ask_with(large.address(), &[], &json!({ "view": two }));
    assert_eq!(grown.status, 200, "{}", grown.text());
    for node in [&large, &other] {
        let kept = judged(|| node.http().get(&target("k")));
        assert_eq!((kept.status, kept.body.len() > 20 * MIB), (200, true), "at {}", node.address());
    }
}

#[test]
fn sixty_thousand_addresses_are_refused_at_once() {
    let node = Node::single(&[]);
    let many: Vec<String> =
        (0..60_000).map(|number| format!("10.{}.{}.1", number / 250, number % 250)).collect();
    for view in [json!(many), json!(many.join(","))] {
        let body = json!({ "view": view }).to_string();
        let (answer, took) = timed(|| node.http().put(VIEW_CHANGE, &body));
        check_refused(&answer, "60,000 addresses", &["60000", "1024"]);
        let limit = allowed(Duration::from_millis(500));
        assert!(took < limit, "it took {took:?}, allowed {limit:?}");
    }
}

#[test]
fn the_limits_are_the_founders_at_every_node() {
    let cluster = Cluster::each(&[
        &[("MAX_KEY_LENGTH", "200"), ("MAX_VALUE_LENGTH", "5000")],
        &[("MAX_KEY_LENGTH", "50"), ("MAX_VALUE_LENGTH", "100")],
        &[("MAX_KEY_LENGTH", "200")],
    ]);
    let passive = passive(&cluster.addresses(), &[("MAX_KEY_LENGTH", "10")]);
    let follower = Node::follower(cluster.nodes[1].address(), &[("MAX_KEY_LENGTH", "5")]);
    wait_knows(&passive, 3);
    for node in cluster.nodes.iter().chain([&passive, &follower]) {
        check_limits(node.address(), 200, 5000);
    }
    let expected: [&[&[&str]]; 3] = [
        &[],
        &[&["MAX_KEY_LENGTH", "50", "200"], &["MAX_VALUE_LENGTH", "100", "5000"]],
        &[&["MAX_VALUE_LENGTH", "8388608", "5000"]],
    ];
    for (node, expected) in cluster.nodes.iter().zip(expected) {
        let noted = notes(node);
        assert_eq!(noted.len(), expected.len(), "{noted:?}");
        for (note, parts) in noted.iter().zip(expected) {
            assert!(parts.iter().all(|part| note.contains(part)), "{parts:?} in {note}");
            node.wait_logged(note);
        }
    }
    // A node that knows no cluster yet has its own limits only.
    let lost = support::change::passive(&[ports::free_address()], &[("MAX_KEY_LENGTH", "10")]);
    assert_eq!(lost.http().get(&target(&"k".repeat(10))).status, 503);
    assert_eq!(lost.http().get(&target(&"k".repeat(11))).header("Evenkv-Limit"), Some("10"));
}

#[test]
fn a_view_change_raises_the_limits_at_every_node() {
    let cluster = Cluster::with(2, &[("MAX_KEY_LENGTH", "100"), ("MAX_VALUE_LENGTH", "2000")]);
    let third = passive(&cluster.addresses(), &[]);
    let follower = Node::follower(cluster.nodes[0].address(), &[]);
    wait_knows(&third, 2);
    let two = cluster.addresses();
    let three = [two.clone(), vec![third.address().to_owned()]].concat();
    let nodes: Vec<&Node> = cluster.nodes.iter().chain([&third, &follower]).collect();
    // With the same nodes; with another node; with another factor; without a word about them; and once more what is.
    let steps = [
        (json!({"view": two, "limits": {"max-key-length": 300}}), (300, 2000)),
        (json!({"view": three, "limits": {"max-value-length": 3 * MIB}}), (300, 3 * MIB)),
        (json!({"view": three, "repl-factor": 3, "limits": {"max-key-length": 65536}}), (65536, 3 * MIB)),
        (json!({"view": three}), (65536, 3 * MIB)),
        (
            json!({"view": two, "repl-factor": 1, "limits": {"max-key-length": 65536, "max-value-length": 3 * MIB}}),
            (65536, 3 * MIB),
        ),
    ];
    for (asked, (body, (key, value))) in steps.into_iter().enumerate() {
        let answer = ask_with(nodes[asked % 3].address(), &[], &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        let named = body.get("limits").map(|_| json!({"max-key-length": key, "max-value-length": value}));
        assert_eq!(answer.json().get("limits"), named.as_ref(), "{body}: {}", answer.text());
        assert_eq!(answer.json()["epoch"], audit(&two[0]).epoch, "{body}: {}", answer.text());
        for node in &nodes {
            check_limits(node.address(), key, value);
        }
    }
    let noted = notes(&cluster.nodes[1]);
    assert!(noted[0].contains("65536") && noted[1].contains("3145728"), "{noted:?}");
    assert!(notes(&follower).is_empty(), "a follower has no limits");
}

/// Where there are fewer pairs than 16 for each shard, the planner asks for the places of all keys.
#[test]
fn the_longest_keys_are_counted_and_moved_as_others_are() {
    let nodes: Vec<Node> = (0..9).map(|_| Node::single(&[("MAX_KEY_LENGTH", "65536")])).collect();
    let all = addresses(&nodes.iter().collect::<Vec<_>>());
    let key = |number: usize| target(&format!("{number:03}{}", "%FE".repeat(65_533)));
    let mut client = nodes[0].http();
    for number in 0..140 {
        assert!(judged(|| client.put(&key(number), r#"{"value":1}"#)).status < 300);
    }
    for view in [&all[..2], &all[..], &all[8..]] {
        let answer = judged(|| ask(&all[0], view));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["keys"], 140);
    }
    for number in 0..140 {
        assert_eq!(judged(|| client.get(&key(number))).status, 200, "key {number}");
    }
}

#[test]
fn a_node_that_cannot_hold_what_the_cluster_allows_is_named() {
    let narrow = [("MAX_VALUE_LENGTH", "1000"), ("LARGE_MEMORY", "1048576")];
    let mut cluster = Cluster::starting_each(&[
        &[("REPL_FACTOR", "3")],
        &[("REPL_FACTOR", "3")],
        &[("REPL_FACTOR", "3"), narrow[0], narrow[1]],
    ]);
    let named = cluster.nodes[2].address().to_owned();
    wait_until("the founder names the node", START_DEADLINE, || {
        let answer = Http::new(cluster.nodes[0].address()).try_request("GET", "/readyz", &[], b"");
        answer.is_ok_and(|answer| {
            let text = answer.text();
            answer.status == 503
                && [&named, "LARGE_MEMORY", "1048576", "16777216"].iter().all(|part| text.contains(*part))
        })
    });
    let view = cluster.view.clone();
    cluster.nodes[2].restart_with(&[("VIEW", &view), ("REPL_FACTOR", "3")]);
    cluster.nodes.iter().for_each(Node::wait_ready);
    // As a replica it comes back, and says that it cannot serve everything.
    cluster.nodes[2].restart_with(&[("VIEW", &view), ("REPL_FACTOR", "3"), narrow[0], narrow[1]]);
    wait_until("the node names the memory that it needs", START_DEADLINE, || {
        let answer = Http::new(&named).try_request("GET", "/readyz", &[], b"");
        answer.is_ok_and(|answer| {
            let text = answer.text();
            answer.status == 503
                && ["LARGE_MEMORY", "1048576", "16777216"].iter().all(|part| text.contains(part))
        })
    });
    cluster.nodes[2].wait_logged("LARGE_MEMORY");
    let body = json!({ "view": cluster.addresses() });
    check_refused(
        &ask_with(&cluster.addresses()[0], &[], &body),
        "narrow",
        &[&named, "LARGE_MEMORY", "16777216"],
    );
    cluster.nodes[2].restart_with(&[("VIEW", &view), ("REPL_FACTOR", "3")]);
    wait_until("it is ready", START_DEADLINE, || is_ready(&named));
    assert_eq!(ask_with(&cluster.addresses()[0], &[], &body).status, 200);
}
