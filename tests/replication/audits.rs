//! Audits of shards whose clients go on writing, and of shards of which something is wrong.

use serde_json::json;

use crate::alone;
use crate::support::audit::audit;
use crate::support::change::{Pairs, allowed, ask_with, passive, target, wait_knows};
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::load::{Load, Profile};
use crate::support::node::{Node, evenkv};
use crate::support::replicated::{RECOVERY, is_ready, replicated, wait_agreed};
use crate::support::{START_DEADLINE, at_once, ports, wait_until};

/// Audits that are made while clients write.
const AUDITS: usize = 12;

#[test]
fn audits_under_constant_writers_are_of_one_moment_of_all_replicas() {
    let _alone = alone();
    let cluster = replicated(6, 3, &[]);
    let all = cluster.addresses();
    let load = Load::start(&all, &Profile { keys: 2000, clients: 8, ..Profile::default() });
    wait_until("the clients are at work", allowed(START_DEADLINE), || load.answers() >= 500);
    for number in 0..AUDITS {
        let before = load.answers();
        let found = audit(&all[number % all.len()]);
        assert!(found.ok, "{found:?}");
        wait_until("clients go on", allowed(RECOVERY), || load.answers() > before);
    }
    // Those that come at once wait for each other, and no answer is older than its question.
    let found = at_once(8, |number| audit(&all[number % 2]));
    assert!(found.iter().all(|found| found.ok), "{found:?}");
    let mut noted = load.stop();
    noted.check_fit();
    let there = noted.read_back(&all);
    assert_eq!(audit(&all[0]).keys, there, "what is counted is what is read");
}

#[test]
fn audits_in_the_course_of_a_view_change_see_every_point_owned_once() {
    let _alone = alone();
    let cluster = Cluster::of(2);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 3000);
    let third = passive(&all, &[]);
    wait_knows(&third, 2);
    let wanted = [&all[..], &[third.address().to_owned()]].concat();
    let load = Load::start(&all, &Profile { keys: 1000, clients: 4, ..Profile::default() });
    wait_until("the clients are at work", allowed(START_DEADLINE), || load.answers() >= 100);
    let mut audits = 0;
    for view in [&wanted, &all, &wanted] {
        let answers = at_once(2, |number| {
            if number == 0 {
                let answer = ask_with(&all[1], &[], &json!({ "view": view }));
                assert_eq!(answer.status, 200, "{}", answer.text());
                return 0;
            }
            let mut audits = 0;
            loop {
                let found = audit(&all[0]);
                assert!(found.missing.is_empty() && found.doubled.is_empty(), "{found:?}");
                assert!(found.ok, "{found:?}");
                audits += 1;
                let ended = Http::new(&all[0]).get("/kv-store/view-change").json()["phase"] == "finished";
                if ended && found.shards.len() == view.len() {
                    return audits;
                }
            }
        });
        audits += answers[1];
    }
    assert!(audits >= 3);
    load.stop().check_fit();
    assert!(audit(third.address()).ok);
}

/// Nodes of which some have a fail point.
fn armed(
    count: usize,
    factor: &str,
    is_armed: impl Fn(usize) -> bool,
    points: &str,
) -> (Vec<Node>, Vec<String>) {
    let all: Vec<String> = (0..count).map(|_| ports::free_address()).collect();
    let view = all.join(",");
    let start = |(number, address): (usize, &String)| {
        let mut settings = vec![("VIEW", view.as_str()), ("REPL_FACTOR", factor)];
        if is_armed(number) {
            settings.push(("FAILPOINTS", points));
        }
        Node::start(address, &settings)
    };
    let nodes: Vec<Node> = all.iter().enumerate().map(start).collect();
    (nodes, all)
}

fn printed(address: &str) -> (Option<i32>, String) {
    let output = evenkv().args(["audit", "--node", address]).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_replica_that_holds_something_else_is_named() {
    let (nodes, all) = armed(3, "3", |number| number == 1, "write-damaged=1*return");
    nodes.iter().for_each(Node::wait_ready);
    // Under a name, since a write without one may be tried twice, and only the first would be damaged.
    let named = [("Idempotency-Key", "a")];
    let put = Http::new(&all[0]).request("PUT", &target("a"), &named, r#"{"value":7}"#.as_bytes());
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(Http::new(&all[0]).put(&target("b"), r#"{"value":7}"#).status, 201);
    for asked in &all {
        let found = audit(asked);
        let named = format!("shard 1: {} differs from {} and {}: checksum ", all[1], all[0], all[2]);
        assert!(!found.ok && found.problems.len() == 1, "{found:?}");
        assert!(found.problems[0].starts_with(&named), "{named} in {found:?}");
        assert_eq!(found.keys, 2, "{found:?}");
    }
    let (code, text) = printed(&all[0]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("NOT OK") && text.contains(&format!("- shard 1: {} differs", all[1])), "{text}");
    // The pair is written anew, and then all is well.
    assert_eq!(Http::new(&all[0]).put(&target("a"), r#"{"value":8}"#).status, 200);
    assert!(audit(&all[0]).ok);
    assert_eq!(printed(&all[2]).0, Some(0));
}

#[test]
fn a_range_that_nobody_owns_is_said_by_the_audit_and_by_the_nodes_that_should() {
    let (nodes, all) = armed(6, "3", |number| number >= 3, "ranges-forgotten=1*return");
    nodes[..3].iter().for_each(Node::wait_ready);
    let says_so = |address: &String| {
        let answer = Http::new(address).get("/readyz");
        answer.status == 503 && answer.text().contains("shard 2 does not own what the view gives it")
    };
    for address in &all[3..] {
        wait_until(&format!("{address} says that it is not ready"), START_DEADLINE, || says_so(address));
    }
    assert!(all[..3].iter().all(|address| is_ready(address)), "the others are");
    let found = audit(&all[0]);
    let (middle, end) = (format!("8{}", "0".repeat(31)), format!("1{}", "0".repeat(32)));
    assert_eq!(found.missing, [(middle.clone(), end.clone(), vec![])], "{found:?}");
    let problems =
        ["shard 2 does not own what the view gives it", &format!("no shard owns {middle} to {end}")];
    assert_eq!(found.problems, problems);
    let (code, text) = printed(&all[4]);
    assert!(code == Some(1) && text.contains(problems[1]), "{text}");
}

#[test]
fn a_shard_without_a_leader_is_summed_up_replica_by_replica_and_it_says_so() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    assert_eq!(Http::new(&all[0]).put(&target("a"), r#"{"value":7}"#).status, 201);
    wait_agreed(&all[0]);
    cluster.nodes[1..].iter_mut().for_each(Node::kill);
    wait_until("the survivor knows that it is alone", allowed(RECOVERY), || !is_ready(&all[0]));
    let found = audit(&all[0]);
    assert!(!found.ok && found.shards[0].count == Some(1), "{found:?}");
    let said = |text: &str| found.problems.iter().any(|problem| problem.contains(text));
    assert!(said("shard 1: its replicas were not summed up at one moment: no leader"), "{found:?}");
    assert!(said(&all[1]) && said(&all[2]), "{found:?}");
}

#[test]
fn a_log_that_is_just_ending_is_waited_for() {
    let _alone = alone();
    let (nodes, all) = armed(4, "2", |_| true, "log-ending=sleep(250)");
    nodes.iter().for_each(Node::wait_ready);
    let mut pairs = Pairs::default();
    pairs.create(&all, 20);
    let answer = ask_with(&all[0], &[], &json!({"view": all[..2], "repl-factor": 1}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    for asked in &all[..2] {
        let found = audit(asked);
        assert!(found.ok && found.keys == 20, "{found:?}");
    }
}
