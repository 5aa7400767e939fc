//! Nodes that are killed or stand still: nothing acknowledged is lost, no read is stale, and what cannot be served says why.

use std::time::Duration;

use serde_json::json;

use crate::alone;
use crate::support::audit::audit;
use crate::support::change::{Pairs, allowed, ask_with, target};
use crate::support::history;
use crate::support::http::{Http, Response};
use crate::support::load::{Load, Profile};
use crate::support::node::Node;
use crate::support::replicated::{
    RECOVERY, is_ready, named, others, replicated, restart_ready, wait_agreed, wait_leader, wait_written,
};
use crate::support::{START_DEADLINE, at_once, timed, wait_until};

const SETTINGS: (&str, &str) = ("REQUEST_TIMEOUT_MS", "1500");

#[test]
fn acknowledged_writes_outlive_the_leader() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 100);
    let leader = wait_leader(&all[0], "1", |_| true);
    named(&mut cluster.nodes, &leader).kill();
    let living = others(&all, &[&leader]);
    for address in &living {
        wait_written(address, "after", 1);
    }
    pairs.held.insert("after".to_owned(), 1);
    let next = wait_leader(&living[0], "1", |next| next != leader);
    assert!(living.contains(&next), "{next} leads");
    pairs.check(&living);
    pairs.create(&living, 50);
    restart_ready(named(&mut cluster.nodes, &leader));
    pairs.check(&all);
    wait_agreed(&leader);
    assert_eq!(audit(&all[0]).keys, pairs.held.len() as u64);
}

#[test]
fn nobody_notices_the_loss_of_one_who_does_not_lead() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 20);
    let leader = wait_leader(&all[0], "1", |_| true);
    let dead = others(&all, &[&leader]).remove(0);
    named(&mut cluster.nodes, &dead).kill();
    let living = others(&all, &[&dead]);
    pairs.create(&living, 50);
    pairs.check(&living);
    let seen = audit(&leader);
    assert!(!seen.ok, "one replica is not reached: {seen:?}");
    let info = Http::new(&leader).get("/kv-store/shards/1").json();
    assert_eq!(info["key-count"], pairs.held.len(), "{info}");
    restart_ready(named(&mut cluster.nodes, &dead));
    pairs.check(&[dead]);
}

/// The key cannot be served now: as the contract has it, within the deadline of the node.
fn check_unable(method: &str, answer: &Response, (shard, missing): (&str, &[String])) {
    let context = format!("{method}: {} {} {:?}", answer.status, answer.text(), answer.headers);
    assert_eq!(answer.status, 503, "{context}");
    let expected = json!({"error": "Unable to satisfy request", "message": format!("Error in {method}")});
    assert_eq!(answer.json(), expected, "{context}");
    assert!(answer.header("Retry-After").is_some(), "{context}");
    let outcome = answer.header("Evenkv-Outcome");
    assert!(method == "GET" || ["not-applied", "unknown"].map(Some).contains(&outcome), "{context}");
    let reason = answer.header("Evenkv-Reason").unwrap_or_default();
    assert!(reason.contains(&format!("shard {shard}")), "{context}");
    assert!(missing.iter().all(|node| reason.contains(node.as_str())), "{context} does not name {missing:?}");
}

/// Reads and writes through this node are refused in time, and it says whom it misses.
fn check_stuck(through: &str, key: &str, (shard, missing): (&str, &[String])) {
    let limit = allowed(Duration::from_millis(1500)) + Duration::from_millis(500);
    for (method, body) in [("PUT", r#"{"value":7}"#), ("GET", ""), ("DELETE", "")] {
        let (answer, took) = timed(|| Http::new(through).request(method, &target(key), &[], body.as_bytes()));
        check_unable(method, &answer, (shard, missing));
        assert!(took < limit, "{method} through {through} took {took:?}");
    }
    let ready = Http::new(through).get("/readyz");
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(missing.iter().all(|node| ready.text().contains(node.as_str())), "{}", ready.text());
}

/// A key that this node's shard owns.
fn own_key(address: &str, tag: &str) -> String {
    let mut client = Http::new(address);
    let is_own = |key: &String| client.get(&target(key)).owner().is_none();
    (0..1000).map(|number| format!("{tag}{number}")).find(is_own).expect("a share of all keys")
}

#[test]
fn a_shard_without_its_majority_says_so_and_the_others_go_on() {
    let mut cluster = replicated(6, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let (dead, survivor, rest) = (&all[3..5], &all[5], &all[..3]);
    let (lost, kept) = (own_key(survivor, "a"), own_key(&rest[0], "b"));
    for key in [&lost, &kept] {
        assert_eq!(Http::new(&all[3]).put(&target(key), r#"{"value":1}"#).status, 201);
    }
    wait_agreed(survivor);
    for node in &mut cluster.nodes[3..5] {
        node.kill();
    }
    wait_until("the survivor knows that it is alone", allowed(RECOVERY), || !is_ready(survivor));
    check_stuck(survivor, &lost, ("2", dead));
    // Nodes of another shard say so, too, and serve their own.
    for address in rest {
        let answer = Http::new(address).get(&target(&lost));
        check_unable("GET", &answer, ("2", dead));
        assert_eq!(Http::new(address).get(&target(&kept)).json()["value"], 1);
        assert_eq!(Http::new(address).put(&target(&kept), r#"{"value":1}"#).status, 200);
    }
    assert_eq!(Http::new(survivor).get(&target(&kept)).json()["value"], 1, "it still forwards");
    let stale = Http::new(survivor).get(&format!("{}?consistency=stale", target(&lost)));
    assert_eq!((stale.status, &stale.json()["value"]), (200, &json!(1)), "what was acknowledged is there");
    let age = stale.header("Evenkv-Staleness-Ms").and_then(|text| text.parse::<f64>().ok());
    assert!(age.is_some_and(|age| age > 0.0), "{:?}", stale.headers);
    // The dead majority took its memory along: nobody comes back and takes the rest for the whole.
    for node in &mut cluster.nodes[3..5] {
        node.restart();
        node.wait_live();
    }
    check_unable("GET", &Http::new(&rest[2]).get(&target(&lost)), ("2", &[]));
    assert!(!is_ready(&all[3]) && !is_ready(&all[4]), "they are no voters");
    let change = ask_with(&rest[1], &[], &json!({ "view": all }));
    assert!(change.status >= 400, "nobody accepted a loss: {}", change.text());
}

#[test]
fn a_majority_that_stands_still_and_goes_on_needs_no_help() {
    let cluster = replicated(3, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 60);
    let leader = wait_leader(&all[0], "1", |_| true);
    for left in [leader.clone(), others(&all, &[&leader]).remove(0)] {
        let away: Vec<String> = others(&all, &[&left]);
        let paused = || cluster.nodes.iter().filter(|node| away.iter().any(|name| name == node.address()));
        paused().for_each(Node::pause);
        wait_until("the one that is left knows", allowed(RECOVERY), || !is_ready(&left));
        // What is tried meanwhile may be done later, so it is tried on another key.
        check_stuck(&left, "tried", ("1", &away));
        paused().for_each(Node::resume);
        for node in &cluster.nodes {
            node.wait_ready();
        }
        wait_written(&left, "pair-1", 3);
        pairs.check(&all);
        wait_agreed(&left);
    }
}

#[test]
fn a_leader_that_stood_still_does_not_answer_from_the_past() {
    let cluster = replicated(3, 3, &[SETTINGS]);
    let all = cluster.addresses();
    for round in 0..3_u64 {
        wait_written(&all[0], "turn", round * 2);
        let leader = wait_leader(&all[0], "1", |_| true);
        let old = cluster.nodes.iter().find(|node| node.address() == leader).expect("a node");
        let living = others(&all, &[&leader]);
        old.pause();
        wait_written(&living[0], "turn", round * 2 + 1);
        // A read that waits at the old leader, and one that comes as it wakes.
        let mut early = Http::new(&leader);
        early.send(b"GET /kv-store/keys/turn HTTP/1.1\r\nHost: a\r\n\r\n").expect("the system takes it");
        old.resume();
        let late = Http::new(&leader).get(&target("turn"));
        for answer in [early.receive("GET").expect("it is answered"), late] {
            let is_new = answer.status == 200 && answer.json()["value"] == round * 2 + 1;
            assert!(is_new || answer.status == 503, "round {round}: {} {}", answer.status, answer.text());
        }
        wait_until("the old leader serves", allowed(RECOVERY), || {
            let answer = Http::new(&leader).get(&target("turn"));
            assert!(answer.status != 200 || answer.json()["value"] == round * 2 + 1, "{}", answer.text());
            answer.status == 200
        });
    }
}

#[test]
fn what_waits_for_a_majority_is_bounded_and_each_request_is_answered() {
    let (workers, queue) = (("CLIENT_WORKERS", "4"), ("QUEUE_LENGTH", "8"));
    let cluster = replicated(3, 3, &[workers, queue, ("REQUEST_TIMEOUT_MS", "2500")]);
    let all = cluster.addresses();
    let leader = wait_leader(&all[0], "1", |_| true);
    assert_eq!(Http::new(&leader).put(&target("before"), r#"{"value":1}"#).status, 201);
    let others = || cluster.nodes.iter().filter(|node| node.address() != leader);
    others().for_each(Node::pause);
    // More than may wait in the log, with a worker, and in the lane.
    let answers = at_once(60, |number| {
        let mut client = Http::new(&leader);
        timed(|| client.request("PUT", &target(&format!("key{number}")), &[], br#"{"value":1}"#))
    });
    others().for_each(Node::resume);
    let mut soon = 0;
    for (answer, took) in &answers {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("Retry-After").is_some() && answer.header("Evenkv-Outcome").is_some());
        assert!(*took < allowed(Duration::from_millis(2500)) + Duration::from_millis(500), "{took:?}");
        soon += u32::from(*took < Duration::from_secs(1));
    }
    assert!(soon >= 20, "{soon} were refused at once");
    for node in &cluster.nodes {
        node.wait_ready();
    }
    wait_written(&leader, "after", 1);
    let mut client = Http::new(&leader);
    for (number, (answer, _)) in answers.iter().enumerate() {
        let there = client.get(&target(&format!("key{number}"))).status;
        let expected: &[u16] =
            if answer.header("Evenkv-Outcome") == Some("not-applied") { &[404] } else { &[200, 404] };
        assert!(expected.contains(&there), "key{number}: {there}, {:?}", answer.headers);
    }
    let metrics = client.get("/metrics").text();
    assert!(metrics.lines().any(|line| line == "evenkv_requests_in_log 0"), "{metrics}");
}

#[test]
fn clients_of_leaders_that_are_killed_see_one_store() {
    let _alone = alone();
    // Longer than a group may take to agree, so that no worker waits for that.
    let mut cluster = replicated(6, 3, &[("REQUEST_TIMEOUT_MS", "2500")]);
    let all = cluster.addresses();
    let load = Load::start(&all, &Profile { keys: 100, ..Profile::default() });
    wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 500);
    for id in ["1", "2", "1"] {
        load.turn_over();
        let leader = wait_leader(&all[0], id, |_| true);
        let node = named(&mut cluster.nodes, &leader);
        node.kill();
        let before = load.answers();
        wait_until("clients are served without it", allowed(RECOVERY), || load.answers() >= before + 300);
        restart_ready(node);
    }
    let mut noted = load.stop();
    wait_agreed(&all[0]);
    let there = noted.read_back(&all);
    assert_eq!(audit(&all[0]).keys, there, "what is counted is what is read");
    noted.check_fit();
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
}
