//! View changes that take long, or do not come to their end: what is said of them, and that nothing is lost.
#![cfg(feature = "failpoints")]

use std::time::{Duration, Instant};

use serde_json::json;

use crate::alone;
use crate::support::audit::audit;
use crate::support::change::{
    Pairs, allowed, ask_with, check_receipt_at, has_ended, passive, phase, status, target, wait_knows,
};
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::node::Node;
use crate::support::replicated::{others, wait_agreed};
use crate::support::{START_DEADLINE, wait_until};

/// A view change is blocked when nothing has moved for this long.
const BLOCKED_AFTER: Duration = Duration::from_secs(5);

#[test]
fn a_snapshot_that_takes_long_is_progress() {
    let _alone = alone();
    // Seven pieces of 1 MiB for each of two replicas.
    let slow = Node::single(&[("FAILPOINTS", "snapshot-sent=sleep(900)")]);
    let nodes = [slow, Node::single(&[]), Node::single(&[])];
    let all: Vec<String> = nodes.iter().map(|node| node.address().to_owned()).collect();
    let body = json!({ "value": "x".repeat(100_000) }).to_string();
    for number in 0..70 {
        assert_eq!(Http::new(&all[0]).put(&target(&format!("large-{number}")), body.as_str()).status, 201);
    }
    let wanted = json!({"view": all, "repl-factor": 3});
    let started = Instant::now();
    let accepted = ask_with(&all[0], &[("Prefer", "respond-async")], &wanted);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let id = accepted.json()["change-id"].clone();
    wait_until("the view change has ended", allowed(4 * BLOCKED_AFTER), || {
        let second = ask_with(&all[0], &[], &json!({"view": &all[..2], "repl-factor": 2}));
        let said = status(&all[0]);
        assert_ne!(said["phase"], "blocked", "{said}");
        if has_ended(said["phase"].as_str().expect("a phase")) {
            return true;
        }
        assert_eq!((second.status, &second.json()["change-id"]), (409, &id), "{}", second.text());
        false
    });
    let ended = status(&all[2]);
    assert_eq!((&ended["phase"], &ended["receipt"]["change-id"]), (&json!("finished"), &id), "{ended}");
    assert!(started.elapsed() > BLOCKED_AFTER, "it took too short a time to show anything: {ended}");
    check_receipt_at(&ended["receipt"], &all, 3);
    wait_agreed(&all[0]);
    assert_eq!(audit(&all[2]).keys, 70);
}

#[test]
fn a_shard_whose_replicas_have_moved_is_not_lost_with_its_first_node() {
    let _alone = alone();
    // The replicas are where they are to be, and the change has not come to its end.
    let mut cluster = Cluster::with(3, &[("FAILPOINTS", "change-finishing=1*sleep(5000)")]);
    let members = cluster.addresses();
    let spare = passive(&members, &[]);
    wait_knows(&spare, 3);
    let mut pairs = Pairs::default();
    pairs.create(&members, 2000);
    let wanted = json!({"view": members, "repl-factor": 3});
    let accepted = ask_with(&members[1], &[("Prefer", "respond-async")], &wanted);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    wait_until("shard 1 has three voters", START_DEADLINE, || {
        cluster.nodes[0].log().matches("group 1: Promote").count() == 2
    });
    cluster.nodes[0].kill();
    let asked = &members[1];
    wait_until("the change is blocked without node 1", allowed(4 * BLOCKED_AFTER), || {
        phase(asked) == "blocked"
    });
    let rest = [&members[1..], &[spare.address().to_owned()]].concat();
    let body = json!({"view": rest, "repl-factor": 3, "accept-loss": ["1"]});
    let refused = ask_with(asked, &[], &body);
    assert_eq!(refused.status, 400, "{}", refused.text());
    let error = refused.json()["error"].as_str().expect("a reason").to_owned();
    assert!(error.contains("shard 1 is not lost"), "{error}");
    assert!(members[1..].iter().any(|node| error.contains(node)), "{error} names who has it");
    assert!(!error.contains(&members[0]), "{error}");
    pairs.check(&members[1..]);
    let body = json!({"view": rest, "repl-factor": 3});
    wait_until("the view goes on without node 1", allowed(2 * BLOCKED_AFTER), || {
        let answer = ask_with(asked, &[], &body);
        assert!([200, 409].contains(&answer.status), "{}", answer.text());
        answer.status == 200
    });
    pairs.check(&rest);
    wait_agreed(&rest[2]);
    assert_eq!(audit(&rest[0]).keys, pairs.held.len() as u64);
    assert_eq!(others(&members, &[&members[0]]), rest[..2], "the two that were left are in it");
}
