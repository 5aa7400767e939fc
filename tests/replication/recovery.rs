//! Shards that have lost most of their replicas for good: the operator has them go on from what is left, or gives them up.

use serde_json::{Value, json};

use super::alone;
use super::support::audit::audit;
use super::support::change::{Pairs, ask_with, check_receipt_at, target};
use super::support::http::Http;
use super::support::node::Node;
use super::support::replicated::{named, replicated, restart_ready, wait_agreed, wait_leader};
use super::support::{START_DEADLINE, wait_until};

/// Answers are waited for no longer than this by a node.
const SETTINGS: (&str, &str) = ("REQUEST_TIMEOUT_MS", "1500");

fn recover(through: &str, body: &Value) -> (u16, Value) {
    let answer = Http::new(through).put("/node/recover", body.to_string());
    (answer.status, answer.json())
}

#[test]
fn a_shard_and_the_view_go_on_from_the_last_replica() {
    let _alone = alone();
    let mut cluster = replicated(3, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 40);
    wait_agreed(&all[0]);
    let before = audit(&all[2]);
    let (status, body) = recover(&all[2], &json!({}));
    assert_eq!(status, 409, "a majority lives: {body}");
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    assert_eq!(Http::new(&all[2]).get(&target("pair-1")).status, 503);
    let (status, planned) = recover(&all[2], &json!({"dry-run": true}));
    assert_eq!(status, 200, "{planned}");
    assert_eq!(planned["recovered-shards"][0]["goes-on-from"], *all[2], "{planned}");
    assert!(planned["recovered-shards"][0]["may-be-lost"].is_string(), "{planned}");
    assert_eq!(Http::new(&all[2]).get(&target("pair-1")).status, 503, "nothing was done");
    let (status, body) = recover(&all[2], &json!({"given-up": all[..2]}));
    assert_eq!((status, &body["lost-shards"]), (200, &json!([])), "{body}");
    wait_leader(&all[2], "1", |leader| leader == all[2]);
    pairs.check(&all[2..]);
    pairs.create(&all[2..], 5);
    restart_ready(&mut cluster.nodes[0]);
    restart_ready(&mut cluster.nodes[1]);
    wait_agreed(&all[0]);
    pairs.check(&all);
    assert_eq!(audit(&all[1]).keys, before.keys + 5);
}

#[test]
fn a_former_member_that_is_a_cluster_of_its_own_does_not_hold_a_recovery_up() {
    let _alone = alone();
    let mut cluster = replicated(4, 2, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 40);
    let answer = ask_with(&all[0], &[], &json!({"view": all[..3], "repl-factor": 3}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (former, members) = cluster.nodes.split_last_mut().expect("nodes");
    former.kill();
    members.iter().for_each(Node::pause);
    former.restart_with(&[SETTINGS]);
    former.wait_ready();
    members.iter().for_each(Node::resume);
    wait_agreed(&all[0]);
    members[0].kill();
    members[1].kill();
    let (status, body) = recover(&all[2], &json!({"given-up": all[..2]}));
    assert_eq!((status, &body["lost-shards"]), (200, &json!([])), "{body}");
    wait_leader(&all[2], "1", |leader| leader == all[2]);
    pairs.check(&all[2..3]);
}

#[test]
fn a_shard_goes_on_from_the_last_replica_while_the_view_is_held() {
    let _alone = alone();
    // The first three hold the view, and are shard 1.
    let mut cluster = replicated(6, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 60);
    wait_agreed(&all[0]);
    cluster.nodes[3].kill();
    cluster.nodes[4].kill();
    let view = ask_with(&all[0], &[], &json!({"view": all[..3]}));
    assert_eq!(view.status, 400, "{}", view.text());
    let (status, body) = recover(&all[0], &json!({}));
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["recovered-shards"][0]["shard-id"], "2", "{body}");
    wait_leader(&all[5], "2", |leader| leader == all[5]);
    pairs.check(&[all[0].clone(), all[5].clone()]);
    restart_ready(&mut cluster.nodes[3]);
    restart_ready(&mut cluster.nodes[4]);
    wait_agreed(&all[0]);
    pairs.check(&all);
    let answer = ask_with(&all[0], &[], &json!({"view": all[3..]}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    check_receipt_at(&answer.json(), &all[3..], 3);
    pairs.check(&all);
}

#[test]
fn a_shard_of_which_nothing_is_left_is_given_up() {
    let _alone = alone();
    let mut cluster = replicated(6, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 60);
    wait_agreed(&all[0]);
    let held = audit(&all[0]).keys;
    for node in &all[3..] {
        named(&mut cluster.nodes, node).kill();
    }
    for node in &all[3..] {
        let node = named(&mut cluster.nodes, node);
        node.restart();
        node.wait_live();
    }
    let refused = ask_with(&all[0], &[], &json!({"view": all}));
    assert_eq!(refused.status, 400, "{}", refused.text());
    let early = ask_with(&all[0], &[], &json!({"view": all, "accept-loss": ["1", "2"]}));
    assert_eq!(early.status, 400, "shard 1 is not lost: {}", early.text());
    let mut answer = None;
    wait_until("the view is changed without the pairs of shard 2", START_DEADLINE, || {
        let got = ask_with(&all[0], &[], &json!({"view": all, "accept-loss": ["2"]}));
        let done = got.status == 200;
        answer = Some(got);
        done
    });
    let receipt = answer.expect("asked").json();
    assert_eq!(receipt["given-up"][0]["shard-id"], "2", "{receipt}");
    wait_agreed(&all[0]);
    let left = audit(&all[0]).keys;
    assert!(left < held && left > 0, "{left} of {held}");
    assert_eq!(receipt["keys"], left, "{receipt}");
    pairs.check_some(&all[4], |key| Http::new(&all[0]).get(&target(key)).status == 200);
}

#[test]
fn a_shard_whose_replicas_were_all_started_again_is_named_as_lost() {
    let _alone = alone();
    // The first three hold the view, too, so that there is something to recover.
    let mut cluster = replicated(6, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 60);
    wait_agreed(&all[0]);
    let kept: Vec<String> = pairs.held.keys().filter(|key| is_own(&all[5], key)).cloned().collect();
    assert!(!kept.is_empty() && kept.len() < 60);
    cluster.nodes[..3].iter_mut().for_each(Node::kill);
    for node in &mut cluster.nodes[..3] {
        node.restart();
        node.wait_live();
    }
    let mut body = Value::Null;
    wait_until("a node that is left recovers", START_DEADLINE, || {
        let (status, answer) = recover(&all[5], &json!({}));
        body = answer;
        status == 200
    });
    assert_eq!(body["lost-shards"], json!(["1"]), "{body}");
    assert!(body.get("recovered-shards").is_none(), "{body}");
    wait_leader(&all[5], "2", |_| true);
    pairs.check_some(&all[4], |key| kept.iter().any(|own| own == key));
    let lost = pairs.held.keys().find(|key| !kept.contains(key)).expect("a key of shard 1");
    let answer = Http::new(&all[5]).get(&target(lost));
    assert_eq!(answer.status, 503, "it is lost, not absent: {}", answer.text());
    assert!(
        answer.header("Evenkv-Reason").is_some_and(|reason| reason.contains("shard 1")),
        "{:?}",
        answer.headers
    );
    let accept = json!({"view": all, "accept-loss": ["1"]});
    wait_until("the view goes on without the pairs of shard 1", START_DEADLINE, || {
        ask_with(&all[5], &[], &accept).status == 200
    });
    wait_agreed(&all[0]);
    assert_eq!(audit(&all[1]).keys, kept.len() as u64);
}

/// Whether this node's shard owns the key.
fn is_own(address: &str, key: &str) -> bool {
    Http::new(address).get(&target(key)).owner().is_none()
}
