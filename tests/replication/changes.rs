//! View changes with replicas: of the factor, of nodes, of both; exact, minimal, and with equal replicas afterwards.

use std::time::Duration;

use serde_json::{Value, json};

use crate::alone;
use crate::support::audit::{audit, holders};
use crate::support::change::{
    Pairs, VIEW_CHANGE, allowed, ask_with, change_idle_to, check_receipt_at, passive, target, wait_knows,
};
use crate::support::history;
use crate::support::http::Http;
use crate::support::load::{Load, Profile};
use crate::support::node::Node;
use crate::support::replicated::{RECOVERY, named, others, replicated, wait_agreed, wait_leader};
use crate::support::{START_DEADLINE, ports, timed, wait_until};

/// The changes with 100 pairs are answered within this time.
const QUICK: Duration = Duration::from_secs(3);

/// Passive nodes that know this cluster, and the addresses of all.
fn with_spares(members: &[String], shards: usize, count: usize) -> (Vec<Node>, Vec<String>) {
    let spares: Vec<Node> = (0..count).map(|_| passive(members, &[])).collect();
    for node in &spares {
        wait_knows(node, shards);
    }
    let all = members.iter().cloned().chain(spares.iter().map(|node| node.address().to_owned())).collect();
    (spares, all)
}

#[test]
fn a_single_node_with_100_pairs_becomes_two_shards_of_two() {
    let _alone = alone();
    let nodes: Vec<Node> = (0..4).map(|_| Node::single(&[])).collect();
    let all: Vec<String> = nodes.iter().map(|node| node.address().to_owned()).collect();
    let mut pairs = Pairs::default();
    pairs.create(&all[..1], 100);
    let body = json!({"view": all.join(","), "repl-factor": 2});
    let (answer, took) = timed(|| ask_with(&all[0], &[], &body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    pairs.check(&all);
    println!("1 node at factor 1 to 4 nodes at factor 2 with 100 pairs: {took:.0?}");
    assert!(took < allowed(QUICK), "it took {took:?}");
    let receipt = answer.json();
    check_receipt_at(&receipt, &all, 2);
    assert_eq!((&receipt["keys"], &receipt["moved"]), (&json!(100), &json!(50)), "{receipt}");
    for shard in receipt["shards"].as_array().expect("a list") {
        assert_eq!(shard["key-count"], 50, "{receipt}");
    }
    wait_agreed(&all[3]);
}

#[test]
fn both_nodes_of_a_shard_are_replaced() {
    let _alone = alone();
    let cluster = replicated(2, 2, &[]);
    let members = cluster.addresses();
    let (_spares, all) = with_spares(&members, 1, 2);
    let mut pairs = Pairs::default();
    pairs.create(&members, 100);
    let before = audit(&all[0]);
    let (answer, took) = timed(|| ask_with(&all[0], &[], &json!({ "view": &all[2..] })));
    assert_eq!(answer.status, 200, "{}", answer.text());
    pairs.check(&all);
    println!("both nodes of a shard with 100 pairs replaced: {took:.0?}");
    assert!(took < allowed(QUICK), "it took {took:?}");
    let receipt = answer.json();
    check_receipt_at(&receipt, &all[2..], 2);
    assert_eq!((&receipt["moved"], &receipt["copied"]), (&json!(0), &json!(200)), "{receipt}");
    wait_agreed(&all[2]);
    let after = audit(&all[3]);
    assert_eq!((after.keys, after.checksum), (100, before.checksum));
    for left in &all[..2] {
        let own = Http::new(left).get("/kv-store/key-count").json();
        assert_eq!(own, json!({"message": "Key count retrieved successfully", "key-count": 0}));
    }
}

#[test]
fn a_cluster_walks_through_factors_and_sizes() {
    let _alone = alone();
    let cluster = replicated(4, 1, &[]);
    let members = cluster.addresses();
    let (_spares, all) = with_spares(&members, 4, 2);
    let mut pairs = Pairs::default();
    pairs.create(&members, 83);
    let turned = |nodes: &[String]| nodes.iter().rev().cloned().collect::<Vec<_>>();
    let first_of_each = |asked: &str| {
        let mut nodes: Vec<String> =
            holders(asked).into_values().map(|replicas| replicas[0].clone()).collect();
        nodes.extend(others(&all, &nodes.iter().map(String::as_str).collect::<Vec<_>>()));
        nodes.truncate(3);
        nodes
    };
    for (asked, view, factor) in [
        (0, Some(all[..4].to_vec()), 2),
        (1, Some(all.clone()), 3),
        (5, Some(turned(&all)), 3),
        (4, Some(all.clone()), 2),
        (2, Some(all.clone()), 3),
        // At factor 1 a shard is its node: one that has each shard already.
        (3, None, 1),
        (2, Some(all[..3].to_vec()), 3),
        (0, Some(all.clone()), 3),
        (0, Some(all[..2].to_vec()), 2),
        (1, Some(all[1..2].to_vec()), 1),
    ] {
        let view = view.unwrap_or_else(|| first_of_each(&all[asked]));
        println!("{} nodes at factor {factor}, asked node {asked}", view.len());
        change_idle_to(&all[asked], &view, factor);
        pairs.check(&all);
        pairs.create(&all, 7);
        let key = pairs.held.keys().next().expect("a pair").clone();
        pairs.delete(&all[asked], &key);
    }
}

#[test]
fn the_order_of_the_list_moves_nothing_and_a_second_change_neither() {
    let cluster = replicated(4, 2, &[]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 101);
    change_idle_to(&all[0], &all, 2);
    let turned = [&all[2], &all[0], &all[3], &all[1]].map(Clone::clone);
    for view in [turned.as_slice(), &all] {
        let receipt = change_idle_to(&all[3], view, 2);
        assert_eq!((&receipt["moved"], &receipt["copied"]), (&json!(0), &json!(0)), "{receipt}");
    }
    pairs.check(&all);
}

#[test]
fn a_dead_node_is_replaced_while_it_is_dead() {
    let mut cluster = replicated(3, 3, &[]);
    let members = cluster.addresses();
    let (_spares, all) = with_spares(&members, 1, 1);
    let mut pairs = Pairs::default();
    pairs.create(&all, 60);
    let before = audit(&all[0]);
    let dead = wait_leader(&all[0], "1", |_| true);
    named(&mut cluster.nodes, &dead).kill();
    let view = others(&all, &[&dead]);
    // It is reached by nobody, so a view that names it is refused.
    let refused = ask_with(&view[2], &[], &json!({ "view": members }));
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains(&dead), "{}", refused.text());
    let answer = ask_with(&view[2], &[], &json!({ "view": view }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    check_receipt_at(&answer.json(), &view, 3);
    assert_eq!(answer.json()["moved"], 0, "{}", answer.text());
    pairs.check(&view);
    wait_agreed(&view[0]);
    let after = audit(&view[2]);
    assert_eq!((after.keys, after.checksum), (before.keys, before.checksum));
    // What comes back with the old view is no member, and forwards.
    let node = named(&mut cluster.nodes, &dead);
    node.restart();
    node.wait_live();
    wait_knows(node, 1);
    pairs.check(std::slice::from_ref(&dead));
    let own = Http::new(&dead).get("/kv-store/key-count").json();
    assert_eq!(own, json!({"message": "Key count retrieved successfully", "key-count": 0}));
    // And it can be taken back.
    change_idle_to(&dead, &members, 3);
    pairs.check(&all);
}

#[test]
fn what_cannot_be_with_replicas_is_refused_and_nothing_changes() {
    let cluster = replicated(4, 2, &[]);
    let members = cluster.addresses();
    let (_spares, all) = with_spares(&members, 2, 1);
    let mut pairs = Pairs::default();
    pairs.create(&all, 30);
    let nobody = ports::free_address();
    let full = Node::single(&[]);
    full.http().put(&target("own"), r#"{"value":1}"#);
    let rows: [(&str, Value, &str); 8] = [
        ("three nodes at factor 2", json!({"view": &all[..3]}), ""),
        ("five nodes at factor 2", json!({ "view": all }), ""),
        ("four nodes at factor 3", json!({"view": members, "repl-factor": 3}), ""),
        ("two nodes at factor 4", json!({"view": &all[..2], "repl-factor": 4}), ""),
        ("factor 0", json!({"view": members, "repl-factor": 0}), ""),
        ("a repeated node", json!({"view": [all[0], all[1], all[2], all[0]]}), &all[0]),
        ("a node that nobody is", json!({"view": [all[0], all[1], all[2], nobody]}), &nobody),
        (
            "a node with pairs of its own",
            json!({"view": [all[0], all[1], all[2], full.address()]}),
            full.address(),
        ),
    ];
    let (before, known) = (audit(&all[0]), holders(&all[0]));
    for (number, (name, body, reason)) in rows.iter().enumerate() {
        let answer = ask_with(&all[number % all.len()], &[], body);
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{name}");
        assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains(reason)), "{name}");
        assert_eq!(answer.json()["message"], "Error in PUT", "{name}");
        let after = audit(&all[3]);
        assert_eq!((&after.checksum, after.epoch), (&before.checksum, before.epoch), "{name}");
        assert_eq!(holders(&all[number % all.len()]), known, "{name}");
    }
    pairs.check(&all);
}

#[test]
fn clients_notice_nothing_of_view_changes_with_replicas() {
    let _alone = alone();
    let cluster = replicated(3, 3, &[]);
    let members = cluster.addresses();
    let (_spares, all) = with_spares(&members, 1, 3);
    let load = Load::start(&all, &Profile { keys: 200, ..Profile::default() });
    wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 500);
    for (view, factor) in [(&all[..], 3), (&all[..], 2), (&all[3..], 3), (&all[..2], 1), (&all[..4], 2)] {
        load.turn_over();
        let before = load.answers();
        let answer = ask_with(&all[5], &[], &json!({"view": view, "repl-factor": factor}));
        assert_eq!(answer.status, 200, "to {view:?} at factor {factor}: {}", answer.text());
        check_receipt_at(&answer.json(), view, factor);
        println!("{} nodes at factor {factor}: held {} ms", view.len(), answer.json()["hold-ms"]);
        wait_until("clients are served after it", START_DEADLINE, || load.answers() >= before + 100);
    }
    let mut noted = load.stop();
    noted.check_all_right();
    wait_agreed(&all[0]);
    let there = noted.read_back(&all);
    assert_eq!(audit(&all[4]).keys, there, "what is counted is what is read");
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
}

#[test]
fn a_leader_that_is_killed_during_a_view_change_costs_nothing() {
    let _alone = alone();
    let mut cluster = replicated(3, 3, &[("REQUEST_TIMEOUT_MS", "3000")]);
    let members = cluster.addresses();
    let (_spares, all) = with_spares(&members, 1, 3);
    let load = Load::start(&all, &Profile { keys: 100, ..Profile::default() });
    wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 500);
    for view in [all.clone(), members.clone()] {
        load.turn_over();
        let leader = wait_leader(&all[5], "1", |_| true);
        let body = json!({ "view": view });
        let accepted = ask_with(&all[5], &[("Prefer", "respond-async")], &body);
        assert_eq!(accepted.status, 202, "{}", accepted.text());
        let victim = if members.contains(&leader) { leader } else { members[0].clone() };
        let node = named(&mut cluster.nodes, &victim);
        node.restart();
        node.wait_live();
        wait_until("the view is the wanted one", allowed(RECOVERY * 2), || {
            let answer = ask_with(&all[5], &[], &body);
            answer.status == 200
                && answer.json()["shards"].as_array().is_some_and(|ids| ids.len() == view.len() / 3)
        });
        for node in cluster.nodes.iter().filter(|node| view.iter().any(|named| named == node.address())) {
            node.wait_ready();
        }
    }
    let mut noted = load.stop();
    wait_agreed(&all[0]);
    let there = noted.read_back(&all);
    assert_eq!(audit(&all[0]).keys, there, "what is counted is what is read");
    assert_eq!(Http::new(&all[0]).get(VIEW_CHANGE).json()["phase"], "finished");
    noted.check_fit();
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
}

/// The leader of the group that holds the view greets all nodes; whoever led it before has no use for the threads that did.
#[test]
fn only_one_node_keeps_threads_for_greetings() {
    let cluster = replicated(3, 3, &[]);
    let members = cluster.addresses();
    let (spares, all) = with_spares(&members, 1, 3);
    for view in [&all[3..], &all[..3], &all[3..], &all[..3]] {
        change_idle_to(&all[0], view, 3);
    }
    let nodes = || cluster.nodes.iter().chain(&spares);
    wait_until("no more threads greet than there are nodes to greet", allowed(RECOVERY), || {
        let greeting: usize = nodes().map(|node| node.threads_named("greet-")).sum();
        (1..all.len()).contains(&greeting)
    });
}
