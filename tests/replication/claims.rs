//! Members of a cluster that are started again without being told of it, by `ADDRESS` alone.

use serde_json::{Value, json};

use crate::support::START_DEADLINE;
use crate::support::change::{Pairs, allowed, target};
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::node::Node;
use crate::support::replicated::{RECOVERY, is_ready, replicated, restart_ready, try_view, wait_agreed};
use crate::support::wait_until;

const SETTINGS: (&str, &str) = ("REQUEST_TIMEOUT_MS", "1500");

#[test]
fn a_member_that_is_started_without_its_view_joins_again() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 60);
    for away in 0..3 {
        let node = &mut cluster.nodes[away];
        node.restart_with(&[SETTINGS]);
        wait_until("it is a member again", START_DEADLINE, || {
            let ready = is_ready(&all[away]);
            check_not_split(&all[away], ready);
            ready
        });
        wait_agreed(&all[away]);
        pairs.check(&all[away..=away]);
    }
}

/// A node is asked for a pair that there is: it has it, or says that it serves nobody.
fn check_not_split(address: &str, ready: bool) {
    let unserved: &[u16] = if ready { &[] } else { &[503] };
    for (method, body) in [("GET", ""), ("PUT", r#"{"value":3}"#)] {
        let answer = Http::new(address).try_request(method, &target("pair-1"), &[], body.as_bytes());
        match answer {
            Ok(answer) => {
                let right = answer.status == 200 || unserved.contains(&answer.status);
                assert!(right, "{method} through {address}: {} {}", answer.status, answer.text());
            }
            Err(error) => assert!(!ready, "{method} through {address}: {error}"),
        }
    }
}

/// What `/readyz` says, and whether it is 200.
fn readiness(address: &str) -> (bool, Value) {
    let answer = Http::new(address).get("/readyz");
    (answer.status == 200, answer.json())
}

/// The last node is started by its address alone while no other answers, so that it is a cluster of its own, and is used by somebody; then the
/// others go on.
fn start_apart(cluster: &mut Cluster, used: impl Fn(&Node)) {
    let (stray, others) = cluster.nodes.split_last_mut().expect("nodes");
    stray.kill();
    others.iter().for_each(Node::pause);
    stray.restart_with(&[SETTINGS]);
    stray.wait_ready();
    used(stray);
    others.iter().for_each(Node::resume);
}

#[test]
fn a_member_that_was_apart_and_holds_nothing_joins_when_it_is_greeted() {
    let mut cluster = replicated(3, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 30);
    start_apart(&mut cluster, |stray| assert_eq!(stray.http().get(&target("pair-1")).status, 404));
    wait_until("it is a member again", allowed(RECOVERY), || {
        let view = try_view(&all[2]).unwrap_or_default();
        view["shards"][0]["replicas"] == json!(all) && is_ready(&all[2])
    });
    pairs.check(&all);
    wait_agreed(&all[0]);
}

#[test]
fn a_member_with_pairs_of_its_own_serves_nobody_and_is_named() {
    let mut cluster = replicated(3, 3, &[SETTINGS]);
    let all = cluster.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 30);
    let id =
        Http::new(&all[0]).get("/kv-store/view").json()["cluster-id"].as_str().expect("an id").to_owned();
    start_apart(&mut cluster, |stray| {
        assert_eq!(stray.http().put(&target("own"), r#"{"value":1}"#).status, 201);
    });
    let names = |body: &Value, field: &str, what: &str| body[field].to_string().contains(what);
    wait_until("it says which cluster claims it", allowed(RECOVERY), || {
        let (ready, body) = readiness(&all[2]);
        !ready && names(&body, "reasons", &id)
    });
    for (method, body) in [("GET", ""), ("PUT", r#"{"value":2}"#), ("DELETE", "")] {
        let answer = Http::new(&all[2]).request(method, &target("own"), &[], body.as_bytes());
        assert_eq!(answer.status, 503, "{method}: {}", answer.text());
        let expected = json!({"error": "Unable to satisfy request", "message": format!("Error in {method}")});
        assert_eq!(answer.json(), expected, "{method}");
        assert!(
            answer.header("Evenkv-Reason").is_some_and(|reason| reason.contains(&id)),
            "{:?}",
            answer.headers
        );
        let outcome = (method != "GET").then_some("not-applied");
        assert_eq!(answer.header("Evenkv-Outcome"), outcome, "{method}");
    }
    for (node, address) in cluster.nodes.iter().zip(&all).take(2) {
        wait_until(&format!("{address} says who answers as another cluster"), allowed(RECOVERY), || {
            let (ready, body) = readiness(address);
            ready && names(&body, "notes", &all[2])
        });
        let said = format!("WARN  evenkv::node::strangers] {} is named by the view", all[2]);
        node.wait_logged(&said);
        assert_eq!(node.log().matches(&said).count(), 1, "{}", node.log());
    }
    pairs.check(&all[..2]);
    // Started again it has nothing of its own, and joins.
    restart_ready(&mut cluster.nodes[2]);
    pairs.check(&all);
    assert_eq!(Http::new(&all[2]).get(&target("own")).status, 404);
    for address in &all[..2] {
        wait_until("nobody answers as another cluster any more", allowed(RECOVERY), || {
            readiness(address) == (true, json!({"ready": true, "reasons": [], "notes": []}))
        });
    }
}
