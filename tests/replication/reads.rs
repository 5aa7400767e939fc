//! Reads at replicas that do not lead: of their own copies, and never older than what was acknowledged anywhere.

use serde_json::json;

use crate::support::change::target;
use crate::support::http::Http;
use crate::support::replicated::{others, replicated, wait_agreed, wait_leader};
use crate::support::{START_DEADLINE, wait_until};

/// How many requests about keys other nodes have passed on to this one.
fn passed_on(address: &str) -> u64 {
    let metrics = Http::new(address).get("/metrics").text();
    let lines = metrics.lines().filter(|line| line.starts_with("evenkv_requests_total{lane=\"forwarded"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Waits until a read at each of these nodes is not passed on any more: the first ones may come before a replica knows what its leader knows.
fn wait_reads_own(readers: &[String], leader: &str, key: &str) {
    for reader in readers {
        wait_until(&format!("{reader} reads its own copy"), START_DEADLINE, || {
            let before = passed_on(leader);
            assert_eq!(Http::new(reader).get(&target(key)).status, 200);
            passed_on(leader) == before
        });
    }
}

#[test]
fn values_do_not_travel_from_the_leader_to_another_replica() {
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let leader = wait_leader(&all[0], "1", |_| true);
    let readers = others(&all, &[&leader]);
    let long = "x".repeat(300_000);
    let values = [("short", json!(7)), ("long", json!(long))];
    for (key, value) in &values {
        let body = json!({"value": value}).to_string();
        assert_eq!(Http::new(&leader).put(&target(key), body).status, 201);
    }
    wait_agreed(&leader);
    wait_reads_own(&readers, &leader, "short");
    let before = passed_on(&leader);
    for reader in &readers {
        let mut client = Http::new(reader);
        for (key, value) in &values {
            for _ in 0..10 {
                let answer = client.get(&target(key));
                assert_eq!((answer.status, &answer.json()["value"]), (200, value));
                assert_eq!(answer.owner(), None, "the node holds the shard itself");
            }
        }
        assert_eq!(client.get(&target("missing")).status, 404);
    }
    assert_eq!(passed_on(&leader), before, "none was passed on");
    assert_eq!(Http::new(&readers[0]).delete(&target("short")).status, 200);
    assert_eq!(passed_on(&leader), before + 1, "a write is");
}

#[test]
fn a_read_at_any_replica_sees_what_was_acknowledged_at_another() {
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let mut clients = cluster.clients();
    let leader = wait_leader(&all[0], "1", |_| true);
    assert_eq!(clients[0].put(&target("key"), r#"{"value":0}"#).status, 201);
    wait_reads_own(&others(&all, &[&leader]), &leader, "key");
    for round in 1..=300 {
        let writer = round % 3;
        assert_eq!(clients[writer].put(&target("key"), format!("{{\"value\":{round}}}")).status, 200);
        for (reader, client) in clients.iter_mut().enumerate() {
            let answer = client.get(&target("key"));
            assert_eq!(
                (answer.status, answer.json()["value"].as_u64()),
                (200, Some(round as u64)),
                "written at node {writer}, read at {reader}"
            );
        }
    }
}
