//! What is wrong with a cluster shows: in figures, in words, and on the command line.

use serde_json::Value;

use crate::alone;
use crate::support::change::allowed;
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::node::{Node, evenkv};
use crate::support::replicated::{RECOVERY, named, replicated, wait_leader};
use crate::support::{START_DEADLINE, wait_until};

/// A figure of `/metrics`, by its name with its labels.
fn figure(address: &str, name: &str) -> Option<u64> {
    let text = Http::new(address).get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().expect("a whole number"))
}

/// What `/readyz` says under this name.
fn said(address: &str, field: &str) -> Vec<String> {
    let answer = Http::new(address).get("/readyz").json();
    let texts = answer[field].as_array().expect("a list").iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

fn printed(address: &str, subcommand: &str) -> String {
    let output = evenkv().args([subcommand, "--node", address]).output().expect("the built binary runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until each of these nodes has so many that it does not reach.
fn wait_unreached(nodes: &[&str], count: u64) {
    for node in nodes {
        wait_until(&format!("{node} does not reach {count} nodes"), allowed(RECOVERY), || {
            figure(node, "evenkv_unreachable_nodes") == Some(count)
        });
    }
}

#[test]
fn a_replica_that_is_gone_or_hangs_shows_at_the_others() {
    let _alone = alone();
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let leader = wait_leader(&all[0], "1", |_| true);
    let gone = all.iter().find(|address| **address != leader).expect("a Raft follower").clone();
    let rest: Vec<&str> = all.iter().filter(|address| **address != gone).map(String::as_str).collect();
    for is_killed in [true, false] {
        let node = named(&mut cluster.nodes, &gone);
        // Nobody asks anything of the cluster meanwhile: a node that hangs is noticed all the same.
        if is_killed {
            node.kill();
        } else {
            node.pause();
        }
        wait_unreached(&rest, 1);
        let leads =
            |address: &&str| figure(address, "evenkv_shard_leader{shard=\"1\"}").expect("it holds a replica");
        assert_eq!(rest.iter().map(leads).sum::<u64>(), 1, "one of them leads");
        wait_until("the leader misses a replica", allowed(RECOVERY), || {
            figure(&leader, "evenkv_shard_missing_replicas{shard=\"1\"}") == Some(1)
        });
        let notes = said(&leader, "notes");
        let expected = [
            format!("{gone} is not reached"),
            format!("shard 1 has 2 of 3 replicas: {gone} is not heard, or catches up"),
        ];
        assert_eq!(notes, expected, "killed: {is_killed}");
        assert!(said(&leader, "reasons").is_empty(), "it serves all the same");
        let view = printed(rest[0], "view");
        assert!(view.contains(&format!("{gone} (down)")), "killed: {is_killed}: {view}");
        let audit = printed(rest[0], "audit");
        let first = audit.lines().next().unwrap_or_default().to_owned();
        assert!(first.ends_with(&format!("NOT OK: shard 1 ({gone})")), "killed: {is_killed}: {audit}");
        let node = named(&mut cluster.nodes, &gone);
        if is_killed {
            node.restart();
        } else {
            node.resume();
        }
        node.wait_ready();
        wait_unreached(&rest, 0);
        for address in &all {
            wait_until(&format!("{address} misses nothing"), allowed(RECOVERY), || {
                said(address, "notes").is_empty()
            });
        }
        assert!(!printed(rest[0], "view").contains("down"), "it is back");
    }
}

#[test]
fn a_shard_that_is_lost_and_a_view_that_nobody_can_change_show_at_the_others() {
    let _alone = alone();
    let mut cluster = Cluster::of(3);
    let all = cluster.addresses();
    assert!(all.iter().all(|node| figure(node, "evenkv_lost_shards") == Some(0)));
    cluster.nodes[2].kill();
    wait_unreached(&[&all[0], &all[1]], 1);
    let alone = format!("{} is not reached: shard 3, which it holds alone, is not served meanwhile", all[2]);
    assert_eq!(said(&all[0], "notes"), [alone]);
    cluster.nodes[2].restart();
    for (number, node) in all.iter().enumerate() {
        let field = if number == 2 { "reasons" } else { "notes" };
        wait_until(&format!("{node} knows that shard 3 is lost"), START_DEADLINE, || {
            figure(node, "evenkv_lost_shards") == Some(1)
                && said(node, field).iter().any(|text| text.starts_with("shard 3 is lost"))
        });
    }
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    wait_until("the last one says that the view cannot be changed", allowed(RECOVERY), || {
        said(&all[0], "notes").iter().any(|text| {
            text.starts_with("the group that holds the view has no leader")
                && all[1..].iter().all(|node| text.contains(node))
        })
    });
    assert_eq!(figure(&all[0], "evenkv_meta_leader"), Some(0));
}

#[test]
fn a_main_that_is_gone_or_hangs_shows_at_its_follower() {
    let mut main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let shows = |count: u64| {
        wait_unreached(&[follower.address()], count);
        let reasons = said(follower.address(), "reasons");
        assert_eq!(
            reasons.iter().any(|reason| reason.contains("main instance is down")),
            count == 1,
            "{reasons:?}"
        );
    };
    shows(0);
    main.pause();
    shows(1);
    main.resume();
    shows(0);
    main.kill();
    shows(1);
}
