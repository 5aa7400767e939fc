//! View changes of real processes: exact shards, nothing lost, the least moved, and clients that notice nothing.
#![cfg(feature = "failpoints")]
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::collections::BTreeSet;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::audit::{audit, shards};
use support::change::{
    Pairs, VIEW_CHANGE, allowed, ask, ask_with, change_idle, check_receipt, has_ended, passive, phase,
    status, target, wait_knows,
};
use support::cluster::Cluster;
use support::history;
use support::http::{Http, Response};
use support::load::{Load, Profile};
use support::node::Node;
use support::{START_DEADLINE, at_once, ports, timed, wait_until};

/// Held by the tests that measure time or load the machine, so that they do not slow each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster of the first `members` nodes, and passive nodes up to `count`; all of them know the view.
fn nodes_of(members: usize, count: usize, settings: &[(&str, &str)]) -> Vec<Node> {
    let cluster = Cluster::with(members, settings);
    let view = cluster.addresses();
    let mut nodes = cluster.nodes;
    nodes.extend((members..count).map(|_| passive(&view, settings)));
    for node in &nodes {
        wait_knows(node, members);
    }
    nodes
}

fn addresses(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(|node| node.address().to_owned()).collect()
}

#[test]
fn a_single_node_grows_to_five_and_shrinks_and_every_node_goes_on_answering() {
    let nodes: Vec<Node> = (0..5).map(|_| Node::single(&[])).collect();
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all[..1], 301);
    let mut epoch = 0;
    for (count, asked) in [(2, 0), (3, 1), (5, 2), (3, 4), (3, 0)] {
        let receipt = change_idle(&all[asked], &all[..count]);
        pairs.check(&all[..count.max(asked + 1)]);
        assert!(receipt["epoch"].as_u64() >= Some(epoch), "the epoch never goes back: {receipt}");
        epoch = receipt["epoch"].as_u64().expect("an epoch");
    }
    // Those that left forward, and name the owner, which is never they.
    let mut left = Http::new(&all[4]);
    for (key, value) in &pairs.held {
        let got = left.get(&target(key));
        assert!(got.owner().is_some_and(|owner| all[..3].contains(&owner)), "{}", got.text());
        assert_eq!(got.json()["value"], *value);
    }
    let mut turned = all[..3].to_vec();
    turned.reverse();
    let receipt = change_idle(&all[1], &turned);
    assert_eq!(receipt["moved"], 0, "the order of the list moves no pair");
    pairs.check(&all);
    pairs.create(&all, 20);
    change_idle(&all[3], &turned);
    let receipt = change_idle(&all[3], &turned);
    assert_eq!(receipt["moved"], 0, "exact shards stay as they are");
    pairs.check(&all);
}

/// What the next random change is to be.
fn next_view(random: &mut StdRng, step: usize, all: &[String], view: &[String]) -> Vec<String> {
    let mut nodes = all.to_vec();
    nodes.shuffle(random);
    let count = match step {
        // The step before a replacement of all leaves enough others.
        14 | 34 => random.random_range(1..=4),
        15 | 35 => {
            nodes.retain(|node| !view.contains(node));
            random.random_range(1..=nodes.len())
        }
        _ => random.random_range(1..=nodes.len()),
    };
    nodes.truncate(count);
    nodes
}

#[test]
fn fifty_random_changes_are_exact_and_lose_nothing() {
    let _alone = alone();
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let nodes = nodes_of(3, 8, &[]);
    let all = addresses(&nodes);
    let mut view = all[..3].to_vec();
    let mut pairs = Pairs::default();
    pairs.create(&all, 200);
    for step in 0..50 {
        let next = next_view(&mut random, step, &all, &view);
        let leaving: Vec<&String> = view.iter().filter(|node| !next.contains(*node)).collect();
        let asked = match leaving.choose(&mut random) {
            Some(node) if step % 3 == 0 => (*node).clone(),
            _ => all.choose(&mut random).expect("eight").clone(),
        };
        println!("step {step}: {asked} is asked for {next:?}");
        change_idle(&asked, &next);
        view = next;
        pairs.create(&all, random.random_range(0..20));
        for key in pairs.held.keys().cloned().collect::<Vec<_>>().choose_multiple(&mut random, 10) {
            pairs.delete(all.choose(&mut random).expect("eight"), key);
        }
        let through = all.choose(&mut random).expect("eight");
        pairs.check_some(through, |_| random.random_ratio(1, 4));
        assert_eq!(audit(through).keys, pairs.held.len() as u64);
    }
    pairs.check(&all);
}

/// A refusal of a PUT says why, in the fields of the contract, and that nothing happened.
fn check_refused(answer: &Response, name: &str, reason: &str) {
    let context = format!("{name}: {} {}", answer.status, answer.text());
    assert_eq!(answer.status, 400, "{context}");
    let body = answer.json();
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(2), "{context}");
    assert_eq!(body["message"], "Error in PUT", "{context}");
    assert!(
        body["error"].as_str().is_some_and(|error| !error.is_empty() && error.contains(reason)),
        "{context}"
    );
    assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{context}");
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let nodes = nodes_of(2, 3, &[]);
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all, 30);
    let nobody = ports::free_address();
    let full = Node::single(&[]);
    full.http().put(&target("own"), r#"{"value":1}"#);
    let others = Cluster::of(2);
    others.nodes[0].http().put(&target("own"), r#"{"value":1}"#);
    others.nodes[0].http().put(&target("owned"), r#"{"value":1}"#);
    let holder = others.nodes[others.owner_of(&target("own"))].address().to_owned();
    let (own, second, third) = (&all[0], &all[1], &all[2]);
    let rows = [
        ("no view", json!({}), ""),
        ("an empty text", json!({"view": ""}), ""),
        ("an empty list", json!({"view": []}), ""),
        ("a list, not an object", json!([own]), ""),
        ("a text, not an object", json!("x"), ""),
        ("a number as view", json!({"view": 5}), ""),
        ("null as view", json!({"view": null}), ""),
        ("a number in the list", json!({"view": [own, 5]}), ""),
        ("a space in an address", json!({"view": [own, "a b:1"]}), "a b:1"),
        ("a port that is none", json!({"view": [own, "127.0.0.1:99999"]}), "127.0.0.1:99999"),
        ("a word as port", json!({"view": format!("{own},127.0.0.1:port")}), "127.0.0.1:port"),
        ("a repeated node", json!({"view": [own, second, own]}), own.as_str()),
        ("a repeated node in a text", json!({"view": format!("{second},{own},{second}")}), second.as_str()),
        ("a node that nobody is", json!({"view": [own, second, nobody]}), nobody.as_str()),
        ("a single node with a pair", json!({"view": [own, second, full.address()]}), full.address()),
        ("a node of another cluster", json!({"view": [own, second, holder]}), holder.as_str()),
        ("a factor of 0", json!({"view": [own, second], "repl-factor": 0}), ""),
        ("a negative factor", json!({"view": [own, second], "repl-factor": -1}), ""),
        ("a broken factor", json!({"view": [own, second], "repl-factor": 1.5}), ""),
        ("a factor as text", json!({"view": [own, second], "repl-factor": "1"}), ""),
        ("a factor that does not divide", json!({"view": [own, second, third], "repl-factor": 2}), ""),
        ("a factor over all", json!({"view": [own, second, third], "repl-factor": 4}), ""),
        ("dry-run as text", json!({"view": [own, third], "dry-run": "yes"}), ""),
        ("accept-loss as number", json!({"view": [own, third], "accept-loss": 2}), ""),
        ("accept-loss of numbers", json!({"view": [own, third], "accept-loss": [2]}), ""),
        ("accept-loss of no shard", json!({"view": [own, third], "accept-loss": ["9"]}), "9"),
    ];
    let (before, known) = (audit(own), shards(own));
    for (number, (name, body, reason)) in rows.iter().enumerate() {
        check_refused(&ask_with(&all[number % 3], &[], body), name, reason);
        assert_eq!((audit(own), shards(third)), (before.clone(), known.clone()), "{name}");
    }
    for (name, body) in [("nothing", ""), ("no JSON", "{\"view\":"), ("bytes", "\0")] {
        check_refused(&Http::new(own).put(VIEW_CHANGE, body), name, "");
    }
    assert_eq!((audit(own), shards(own)), (before, known));
    pairs.check(&all);
    assert_eq!(full.http().put(&target("own"), r#"{"value":2}"#).status, 200, "nobody stays promised");
    assert_eq!(Http::new(&holder).put(&target("own"), r#"{"value":2}"#).status, 200);
    change_idle(third, &[third.clone(), own.clone(), second.clone()]);
    pairs.check(&all);
}

#[test]
fn a_node_without_an_address_cannot_be_joined_by_others() {
    let reached_at = ports::free_address();
    let node = Node::start_reached_at(&reached_at, &[("LISTEN", &reached_at)]);
    node.wait_ready();
    let other = Node::single(&[]);
    let refused = ask(&reached_at, &[reached_at.clone(), other.address().to_owned()]);
    check_refused(&refused, "no address", "ADDRESS");
    // Nor can it be taken in, and it goes on as if nobody had asked.
    let refused = ask(other.address(), &[other.address().to_owned(), reached_at.clone()]);
    check_refused(&refused, "no address at the other end", "");
    assert_eq!(node.http().put("/kv-store/k", r#"{"value":1}"#).status, 201);
    assert_eq!(other.http().put("/kv-store/k", r#"{"value":1}"#).status, 201);
}

#[test]
fn other_methods_are_refused() {
    let cluster = Cluster::of(2);
    let mut client = cluster.nodes[1].http();
    for (method, path) in [
        ("POST", VIEW_CHANGE),
        ("PATCH", VIEW_CHANGE),
        ("PUT", "/kv-store/audit"),
        ("DELETE", "/kvs/audit"),
        ("POST", "/kvs/view-change"),
    ] {
        let answer = client.request(method, path, &[], b"{}");
        let allow = answer.header("Allow").unwrap_or_default();
        assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text());
        assert!(allow.contains("GET") && !allow.contains(method), "{method} {path}: {allow}");
        assert_eq!(answer.json()["message"], format!("Error in {method}"));
    }
    assert_eq!(status(cluster.nodes[0].address())["phase"], "none", "there never was a view change");
    let none = client.delete(VIEW_CHANGE);
    assert_eq!((none.status, &none.json()["message"]), (404, &json!("Error in DELETE")), "{}", none.text());
}

/// Whatever node coordinates lingers where it starts its first piece.
const LINGER: (&str, &str) = ("FAILPOINTS", "piece-started=1*sleep(1200)");

#[test]
fn of_two_changes_at_once_one_wins() {
    let nodes = nodes_of(3, 5, &[LINGER]);
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all, 100);
    let views = [all[..4].to_vec(), all[1..].to_vec()];
    let start = Barrier::new(2);
    let answers = at_once(2, |number| {
        start.wait();
        ask(&all[number * 2], &views[number])
    });
    let won = answers.iter().position(|answer| answer.status == 200).expect("one wins");
    let (winner, loser) = (answers[won].json(), &answers[1 - won]);
    check_receipt(&winner, &views[won]);
    assert_eq!(loser.status, 409, "{}", loser.text());
    let id = winner["change-id"].as_str().expect("an id");
    let expected =
        json!({"error": format!("View change {id} is running"), "message": "Error in PUT", "change-id": id});
    assert_eq!(loser.json(), expected);
    assert_eq!(loser.header("Location"), Some(VIEW_CHANGE));
    assert_eq!(loser.header("Evenkv-Outcome"), Some("not-applied"));
    assert_eq!(audit(&all[3]).counts.len(), 4);
    pairs.check(&all);
}

#[test]
fn a_dry_run_says_what_will_be_and_changes_nothing() {
    let nodes = nodes_of(3, 5, &[]);
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all, 211);
    let view = [all[4].clone(), all[2].clone(), all[0].clone(), all[3].clone()];
    let (before, known) = (audit(&all[0]), shards(&all[0]));
    let planned = ask_with(&all[1], &[], &json!({"view": view, "dry-run": true}));
    assert_eq!(planned.status, 200, "{}", planned.text());
    let planned = planned.json();
    assert_eq!(planned["message"], "View change planned");
    assert_eq!((audit(&all[0]), shards(&all[0])), (before.clone(), known), "{planned}");
    assert_eq!(status(&all[0])["phase"], "none", "a plan is no view change");
    let receipt = change_idle(&all[1], &view);
    for name in ["keys", "moved", "minimum", "copied"] {
        assert_eq!(planned[name], receipt[name], "{name}: {planned} and {receipt}");
    }
    let listed = planned["shards"].as_array().expect("a list");
    for (plan, shard) in listed.iter().zip(receipt["shards"].as_array().expect("a list")) {
        assert_eq!(plan["shard-id"], shard["shard-id"], "{planned}");
        assert_eq!(plan["replicas"], shard["replicas"], "{planned}");
        assert_eq!(plan["key-count-planned"], shard["key-count"], "{planned} and {receipt}");
        let now = before.counts.get(plan["replicas"][0].as_str().expect("an address")).copied().flatten();
        assert_eq!(plan["key-count"].as_u64(), now, "{planned}");
    }
    assert_eq!(listed.len(), view.len());
    let moves = planned["moves"].as_array().expect("a list");
    let pairs_moved: u64 = moves.iter().map(|step| step["pairs"].as_u64().expect("a number")).sum();
    assert_eq!(planned["moved"], pairs_moved, "{planned}");
    for step in moves {
        assert!(step["ranges"].as_u64() > Some(0), "{planned}");
        assert!(step["from"].is_string() && step["to"].is_string(), "{planned}");
    }
    // A plan of what cannot be is refused as the change itself is.
    let refused = ask_with(&all[0], &[], &json!({"view": [all[0], all[0]], "dry-run": true}));
    check_refused(&refused, "a repeated node", &all[0]);
}

#[test]
fn a_change_can_be_watched_from_any_node() {
    let nodes = nodes_of(3, 5, &[LINGER]);
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all, 120);
    let view = all[1..].to_vec();
    let accepted = ask_with(&all[0], &[("Prefer", "respond-async")], &json!({ "view": view }));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(accepted.header("Location"), Some(VIEW_CHANGE));
    let accepted = accepted.json();
    let id = accepted["change-id"].as_str().expect("an id");
    assert_eq!(accepted, json!({"message": "View change accepted", "change-id": id}));
    wait_until("the change moves pairs", START_DEADLINE, || phase(&all[0]) == "moving");
    let moving = status(&all[0]);
    assert_eq!(moving["change-id"], id, "{moving}");
    assert!(moving["total"].as_u64() > Some(0) && moving["moved"].is_u64(), "{moving}");
    assert!(moving["pairs-per-second"].is_number(), "{moving}");
    assert!(moving["remaining-seconds"].is_number() || moving["remaining-seconds"].is_null(), "{moving}");
    wait_until("it has ended", START_DEADLINE, || has_ended(&phase(&all[4])));
    for address in &all {
        wait_until("every node tells the receipt", START_DEADLINE, || phase(address) == "finished");
        let receipt = status(address)["receipt"].clone();
        check_receipt(&receipt, &view);
        assert_eq!(receipt["change-id"], id);
    }
    pairs.check(&all);
}

/// A view change that runs in the background while `work` is done.
fn while_changing<T>(asked: &str, view: &[String], work: impl FnOnce() -> T) -> (Response, T) {
    thread::scope(|scope| {
        let change = scope.spawn(|| ask(asked, view));
        let result = work();
        (change.join().expect("the client does not panic"), result)
    })
}

#[test]
fn a_change_that_has_handed_nothing_over_is_cancelled() {
    let nodes = nodes_of(3, 5, &[LINGER]);
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all, 120);
    let (before, known) = (audit(&all[0]), shards(&all[0]));
    let (answer, cancelled) = while_changing(&all[1], &all, || {
        wait_until("the change moves pairs", START_DEADLINE, || phase(&all[2]) == "moving");
        let id = status(&all[2])["change-id"].clone();
        let cancelled = Http::new(&all[2]).delete(VIEW_CHANGE);
        assert_eq!(cancelled.status, 200, "{}", cancelled.text());
        assert_eq!(cancelled.json(), json!({"message": "View change cancelled", "change-id": id}));
        id
    });
    assert!(answer.status >= 400, "who asked for it is told: {} {}", answer.status, answer.text());
    let ended = status(&all[0]);
    assert_eq!((&ended["phase"], &ended["change-id"]), (&json!("cancelled"), &cancelled), "{ended}");
    let after = audit(&all[0]);
    assert_eq!((after.checksum, after.counts, shards(&all[0])), (before.checksum, before.counts, known));
    pairs.check(&all);
    pairs.create(&all, 10);
    change_idle(&all[0], &all);
    pairs.check(&all);
}

#[test]
fn a_change_that_has_handed_something_over_is_not_cancelled() {
    let nodes = nodes_of(3, 5, &[("FAILPOINTS", "piece-told=1*sleep(1200)")]);
    let all = addresses(&nodes);
    let mut pairs = Pairs::default();
    pairs.create(&all, 120);
    let (answer, ()) = while_changing(&all[1], &all, || {
        let moved = || status(&all[2])["moved"].as_u64().is_some_and(|moved| moved > 0);
        wait_until("something is handed over", START_DEADLINE, moved);
        let refused = Http::new(&all[2]).delete(VIEW_CHANGE);
        assert_eq!(refused.status, 409, "{}", refused.text());
        assert_eq!(refused.json()["message"], "Error in DELETE");
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    check_receipt(&answer.json(), &all);
    pairs.check(&all);
}

#[test]
fn passive_fresh_and_departed_nodes_join() {
    let cluster = Cluster::of(2);
    let members = cluster.addresses();
    let lost = passive(&[ports::free_address()], &[]);
    let unable = lost.http().get(&target("k"));
    assert_eq!((unable.status, unable.json()["error"].clone()), (503, json!("Unable to satisfy request")));
    let count = lost.http().get("/kv-store/key-count").json();
    assert_eq!(count, json!({"message": "Key count retrieved successfully", "key-count": 0}));
    assert_eq!(lost.http().get("/kv-store/shards").json()["shards"], json!([]));

    let knowing = passive(&members, &[]);
    wait_knows(&knowing, 2);
    let single = Node::single(&[]);
    let used = Node::single(&[]);
    let mut pairs = Pairs::default();
    pairs.create(&members, 150);
    // What looks for a cluster elsewhere is named all the same, and a single node that holds no pair.
    for newcomer in [&lost, &knowing, &single] {
        let view = [members.clone(), vec![newcomer.address().to_owned()]].concat();
        change_idle(newcomer_knows(newcomer, &members[1]), &view);
        pairs.check(&view);
        pairs.create(&view, 11);
        change_idle(&members[0], &members);
        pairs.check(&view);
    }
    // One that left is taken back, and knows nothing old.
    let key = pairs.held.keys().next().expect("a pair").clone();
    pairs.delete(&members[0], &key);
    let view = [members.clone(), vec![single.address().to_owned()]].concat();
    change_idle(single.address(), &view);
    assert_eq!(single.http().get(&target(&key)).status, 404);
    pairs.check(&view);
    // A node with pairs of its own is taken in when they are gone, and until then its clients go on.
    let view = [members.clone(), vec![used.address().to_owned()]].concat();
    assert_eq!(used.http().put(&target("once"), r#"{"value":1}"#).status, 201);
    check_refused(&ask(&members[0], &view), "a single node with a pair", used.address());
    assert_eq!(used.http().delete(&target("once")).status, 200);
    change_idle(&members[0], &view);
    assert_eq!(used.http().get(&target("once")).status, 404);
    pairs.check(&view);
}

/// The newcomer itself is asked if it knows the cluster, else a member.
fn newcomer_knows<'a>(newcomer: &'a Node, member: &'a str) -> &'a str {
    let shards = newcomer.http().get("/kv-store/shards").json();
    if shards["shards"].as_array().is_some_and(|ids| ids.len() == 2) { newcomer.address() } else { member }
}

/// The middle, the 99th of a hundred, and the longest.
fn distribution(holds: &mut [f64]) -> String {
    holds.sort_by(f64::total_cmp);
    let last = holds.len() - 1;
    let (middle, most) = (holds[last / 2], holds[last]);
    let high = holds[(last * 99).div_ceil(100)];
    format!("median {middle:.1} ms, 99 % {high:.1} ms, max {most:.1} ms")
}

#[test]
fn clients_notice_nothing_of_twenty_view_changes() {
    let _alone = alone();
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let nodes = nodes_of(3, 8, &[]);
    let all = addresses(&nodes);
    let load = Load::start(&all, &Profile { seed, ..Profile::default() });
    wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 2000);
    let mut view = all[..3].to_vec();
    let mut holds = Vec::new();
    for step in 14..34 {
        let next = next_view(&mut random, step, &all, &view);
        let asked = all.choose(&mut random).expect("eight");
        let before = load.answers();
        let answer = ask(asked, &next);
        assert_eq!(answer.status, 200, "to {next:?} at {asked}: {}", answer.text());
        let receipt = answer.json();
        check_receipt(&receipt, &next);
        holds.push(receipt["hold-ms"].as_f64().expect("checked"));
        wait_until("clients are served after it", START_DEADLINE, || load.answers() >= before + 50);
        view = next;
    }
    let noted = load.stop();
    println!(
        "{} requests, the slowest {:.0?}; keys held: {}",
        noted.records.len(),
        noted.slowest,
        distribution(&mut holds)
    );
    assert!(
        noted.wrong.is_empty(),
        "{} wrong: {:#?}",
        noted.wrong.len(),
        &noted.wrong[..noted.wrong.len().min(40)]
    );
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
    let present: BTreeSet<String> = (0..Profile::default().keys)
        .map(|number| format!("load-{number}"))
        .filter(|key| Http::new(&all[7]).get(&target(key)).status == 200)
        .collect();
    let after = audit(&all[0]);
    assert!(after.ok, "{after:?}");
    assert_eq!(after.keys, present.len() as u64, "what is counted is what is read");
}

#[test]
fn founding_and_a_change_are_quick() {
    let _alone = alone();
    let limit = Duration::from_secs(2);
    let all: Vec<String> = (0..8).map(|_| ports::free_address()).collect();
    let view = all.join(",");
    let start = |address: &String| Node::start(address, &[("VIEW", &view)]);
    let mut nodes: Vec<Node> = all[..7].iter().map(start).collect();
    nodes.iter().for_each(Node::wait_live);
    let started = Instant::now();
    nodes.push(start(&all[7]));
    nodes.iter().for_each(Node::wait_ready);
    let (took, limit_now) = (started.elapsed(), allowed(limit));
    println!("founded {took:.0?} after the last of 8 nodes was started");
    assert!(took < limit_now, "founding took {took:?}, allowed {limit_now:?}");

    assert_eq!(ask(&all[0], &all[..1]).status, 200);
    let rows: String = (0..10_000).map(create_row).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), rows).expect("the file is written");
    let mut import = support::node::evenkv();
    import.arg("import").arg(file.path()).args(["--format", "ndjson", "--node", &all[0]]);
    let output = import.output().expect("the import runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for view in [&all[..8], &all[..1], &all[..3], &all[3..8]] {
        let (answer, took) = timed(|| ask(&all[2], view));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let receipt: Value = answer.json();
        check_receipt(&receipt, view);
        let limit_now = allowed(limit);
        println!("a change to {} nodes, {} of 10000 pairs moved: {took:.0?}", view.len(), receipt["moved"]);
        assert!(took < limit_now, "it took {took:?}, allowed {limit_now:?}: {receipt}");
    }
    assert_eq!(audit(&all[5]).keys, 10_000);
}

fn create_row(number: usize) -> String {
    format!("{{\"key\":\"quick-{number}\",\"value\":{number}}}\n")
}
