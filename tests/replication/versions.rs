//! Nodes of this version of the program and of an older one, which is stored beside the tests, in one cluster.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::alone;
use crate::support::audit::audit;
use crate::support::change::{ask, ask_with, phase, status, target};
use crate::support::cluster::Cluster;
use crate::support::history;
use crate::support::http::Http;
use crate::support::load::{Load, Profile};
use crate::support::node::Node;
use crate::support::ports;
use crate::support::replicated::{replicated, wait_agreed, wait_leader};
use crate::support::{START_DEADLINE, wait_until};

/// A node has ended within this time after it was told to.
const STOPPING: Duration = Duration::from_secs(20);
/// Longer than what goes to the replicas ahead of the log.
const LARGE: usize = 400 << 10;

/// The older version, as a program in a folder of its own; tests/data/README.md says which it is.
fn older(folder: &tempfile::TempDir) -> PathBuf {
    let packed = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/evenkv-x86_64.gz"));
    let mut unpack = Command::new("gzip");
    unpack.arg("-dc").stdin(packed.expect("the stored program")).stdout(Stdio::piped());
    let unpacked = unpack.output().expect("gzip runs");
    assert!(unpacked.status.success(), "gzip: {}", unpacked.status);
    let path = folder.path().join("evenkv");
    File::create(&path).and_then(|mut file| file.write_all(&unpacked.stdout)).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
    path
}

fn put_large(through: &[String], round: usize) {
    let body = format!("{{\"value\":\"{}\"}}", format!("{round:04}").repeat(LARGE / 4));
    for (number, address) in through.iter().enumerate() {
        let target = format!("/kv-store/keys/large-{round}-{number}");
        let answer = Http::new(address).request("PUT", &target, &[], body.as_bytes());
        assert_eq!(answer.status, 201, "{target} through {address}: {}", answer.text());
        for other in through {
            let found = Http::new(other).get(&target);
            assert!(found.status == 200 && found.body.len() > LARGE, "{target} at {other}: {}", found.status);
        }
    }
}

/// Replaces a node by one of another version, or of the same, without hurry.
fn replace(cluster: &mut Cluster, number: usize, program: Option<&PathBuf>) {
    let node = &mut cluster.nodes[number];
    node.terminate();
    assert_eq!(node.wait_exit(STOPPING).code(), Some(0), "{} was told to stop", node.address());
    node.run_program(program.cloned());
    node.restart();
    node.wait_ready();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn a_cluster_of_an_older_version_is_updated_node_by_node_under_load_and_back() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    let mut cluster = Cluster::of_program(3, &older, &[("REPL_FACTOR", "3")]);
    let all = cluster.addresses();
    let load = Load::start(&all, &Profile { keys: 200, elsewhere: true, ..Profile::default() });
    wait_until("the clients are at work", START_DEADLINE, || load.answers() >= 500);
    let steps = [(0, None), (1, None), (2, None), (1, Some(&older)), (1, None)];
    for (round, (number, program)) in steps.into_iter().enumerate() {
        replace(&mut cluster, number, program);
        let before = load.answers();
        wait_until("clients are served after it", START_DEADLINE, || load.answers() >= before + 200);
        put_large(&all, round);
        // Also one of the older version holds what the others do.
        wait_agreed(&all[0]);
    }
    let mut noted = load.stop();
    noted.check_all_right();
    wait_agreed(&all[0]);
    let there = noted.read_back(&all);
    let large = u64::try_from(steps.len() * all.len()).expect("a few");
    assert_eq!(audit(&all[0]).keys, there + large);
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
}

#[test]
fn what_a_member_does_not_know_is_refused_by_its_name() {
    let newer = ("FAILPOINTS", "write-of-next-format=return");
    let cluster = replicated(3, 3, &[newer]);
    let all = cluster.addresses();
    let leader = wait_leader(&all[0], "1", |_| true);
    for address in &all {
        let answer = Http::new(address).put("/kv-store/keys/a", r#"{"value":1}"#);
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"));
        assert!(answer.header("Retry-After").is_some());
        let error = answer.json()["error"].as_str().expect("an error").to_owned();
        let named = all.iter().filter(|node| **node != leader).any(|node| error.contains(node.as_str()));
        assert!(named && error.contains("version"), "through {address}: {error}");
        assert_eq!(Http::new(address).get("/kv-store/keys/a").status, 404);
    }
}

/// What a node answers to a conditional write: its status, its outcome, and whether it names a node.
fn put_if(through: &str, key: &str, bytes: usize) -> (u16, Option<String>, String) {
    let body = format!("{{\"value\":\"{}\"}}", "x".repeat(bytes));
    let headers = [("If-None-Match", "*")];
    let answer =
        Http::new(through).request("PUT", &format!("/kv-store/keys/{key}"), &headers, body.as_bytes());
    (answer.status, answer.header("Evenkv-Outcome").map(str::to_owned), answer.text())
}

/// Whatever is asked of a node that knows conditions is done under its condition, or refused by the name of the one that does not know them.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn a_condition_is_never_dropped_on_the_way_to_a_node_of_an_older_version() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    for factor in ["1", "3"] {
        let mut cluster = Cluster::of_program(3, &older, &[("REPL_FACTOR", factor)]);
        let all = cluster.addresses();
        if factor == "3" {
            replace(&mut cluster, 0, None);
        } else {
            // Nobody holds what a node had alone: it is the pairs' owner that is of the older version.
            cluster.nodes[0].kill();
            cluster.nodes[0].run_program(None);
            cluster.nodes[0].restart();
            cluster.nodes[0].wait_live();
            let lost = json!({"view": all, "accept-loss": ["1"]});
            assert_eq!(ask_with(&all[1], &[], &lost).status, 200);
        }
        let newer = &all[0];
        let (mut done, mut refused) = (0, 0);
        for number in 0..30 {
            // Small ones go on a connection, large ones by HTTP.
            for bytes in [10, 60_000] {
                let key = format!("{number}-{bytes}");
                let plain = Http::new(newer).put(&format!("/kv-store/keys/{key}"), r#"{"value":1}"#);
                assert_eq!(plain.status, 201, "without a condition it is done as before: {}", plain.text());
                let own = plain.header("ETag").is_some();
                let (status, outcome, text) = put_if(newer, &key, bytes);
                assert_eq!(outcome.as_deref(), Some("not-applied"), "{status} {text}");
                match status {
                    412 => done += 1,
                    503 => {
                        let named = all[1..].iter().any(|node| text.contains(node.as_str()));
                        assert!(named && text.contains("version"), "{text}");
                        refused += 1;
                    }
                    other => panic!("{other}: {text}"),
                }
                assert!(factor == "3" || own == (status == 412), "who tells the version knows conditions");
                let kept = Http::new(newer).get(&format!("/kv-store/keys/{key}"));
                assert_eq!(kept.json()["value"], 1, "nothing was done");
            }
        }
        assert!(
            refused > 0 && (factor == "3" || done > 0),
            "factor {factor}: {done} done, {refused} refused"
        );
    }
}

/// A pair that is to end is stored where it will, or not at all.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn a_time_to_live_is_never_dropped_on_the_way_to_a_node_of_an_older_version() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    let mut cluster = Cluster::of_program(3, &older, &[("REPL_FACTOR", "3")]);
    let all = cluster.addresses();
    replace(&mut cluster, 0, None);
    let put = |number: usize, bytes: usize| {
        let target = format!("/kv-store/keys/{number}-{bytes}");
        let body = format!("{{\"value\":\"{}\"}}", "x".repeat(bytes));
        (Http::new(&all[0]).request("PUT", &format!("{target}?ttl=1000"), &[], body.as_bytes()), target)
    };
    for number in 0..9 {
        // Small ones go on a connection, large ones by HTTP.
        for bytes in [10, 60_000] {
            let (answer, target) = put(number, bytes);
            let text = answer.text();
            assert_eq!(
                (answer.status, answer.header("Evenkv-Outcome")),
                (503, Some("not-applied")),
                "{text}"
            );
            assert!(all[1..].iter().any(|node| text.contains(node)) && text.contains("version"), "{text}");
            assert_eq!(Http::new(&all[0]).get(&target).status, 404);
        }
    }
    for number in 1..3 {
        replace(&mut cluster, number, None);
    }
    wait_agreed(&all[0]);
    for bytes in [10, 60_000] {
        wait_until("times to live are known everywhere", START_DEADLINE, || put(99, bytes).0.status < 300);
        for address in &all {
            let kept = Http::new(address).get(&put(99, bytes).1);
            assert!(kept.status == 200 && kept.header("Evenkv-TTL").is_some(), "{:?}", kept.headers);
        }
    }
}

/// What is not JSON is stored only where everybody knows such values who keeps it, and is read only through nodes that do.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn a_value_that_is_not_json_never_comes_to_a_node_of_an_older_version() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    for factor in ["1", "3"] {
        let mut cluster = Cluster::of_program(3, &older, &[("REPL_FACTOR", factor)]);
        let all = cluster.addresses();
        if factor == "3" {
            replace(&mut cluster, 0, None);
        } else {
            cluster.nodes[0].kill();
            cluster.nodes[0].run_program(None);
            cluster.nodes[0].restart();
            cluster.nodes[0].wait_live();
            let lost = json!({"view": all, "accept-loss": ["1"]});
            assert_eq!(ask_with(&all[1], &[], &lost).status, 200);
        }
        let (mut done, mut refused) = (0, 0);
        for number in 0..20 {
            // Small ones go on a connection, large ones by HTTP.
            for bytes in [10, 60_000] {
                let (v1, classic) =
                    (format!("/v1/kv/{number}-{bytes}"), target(&format!("{number}-{bytes}")));
                let mut newer = Http::new(&all[0]);
                let body = vec![0xff; bytes];
                let put =
                    newer.request("PUT", &v1, &[("Content-Type", "image/x"), ("If-None-Match", "*")], &body);
                if put.status == 201 {
                    done += 1;
                    assert_eq!((newer.get(&v1).body, factor), (body, "1"));
                    for node in &all[1..] {
                        let through = Http::new(node).get(&classic);
                        assert_eq!(through.status, 503, "an older node cannot read it: {}", through.text());
                    }
                } else {
                    refused += 1;
                    let text = put.text();
                    let named = all[1..].iter().any(|node| text.contains(node.as_str()));
                    assert!(put.status == 503 && named && text.contains("version"), "{}: {text}", put.status);
                    assert_eq!(put.header("Evenkv-Outcome"), Some("not-applied"));
                    assert!(put.header("Retry-After").is_some());
                    assert_eq!(newer.get(&v1).status, 404, "nothing was done");
                }
                // JSON is what it was.
                let put = newer.request("PUT", &v1, &[("Content-Type", "application/json")], b"[1]");
                assert!(put.status < 300, "{}", put.text());
                for node in &all {
                    assert_eq!(Http::new(node).get(&classic).json()["value"], json!([1]));
                }
                let back = newer.request("PUT", &v1, &[], b"x");
                let is_refused = back.header("Evenkv-Outcome") == Some("not-applied");
                assert!(back.status == 200 || is_refused, "{}: {}", back.status, back.text());
            }
        }
        assert!(refused > 0 && (factor == "3" || done > 0), "factor {factor}: {done}, {refused}");
        if factor == "1" {
            // Its values that are not JSON stay where they are known.
            let moved = ask(&all[0], &all[1..]);
            assert_eq!(moved.status, 503, "{}", moved.text());
            assert!(moved.text().contains("version"), "{}", moved.text());
            let kept =
                (0..20).find(|number| Http::new(&all[0]).get(&format!("/v1/kv/{number}-10")).text() == "x");
            assert!(kept.is_some());
        } else {
            for number in 1..3 {
                replace(&mut cluster, number, None);
            }
            wait_agreed(&all[0]);
            for node in &all {
                wait_until("it is known everywhere", START_DEADLINE, || {
                    Http::new(node).request("PUT", "/v1/kv/a", &[], b"x").status < 300
                });
            }
            for node in &all {
                let found = Http::new(node).get("/v1/kv/a");
                assert_eq!((found.status, found.text().as_str()), (200, "x"));
            }
        }
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn conditions_are_known_once_all_nodes_are_of_this_version() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    let mut cluster = Cluster::of_program(3, &older, &[("REPL_FACTOR", "3")]);
    let all = cluster.addresses();
    assert_eq!(Http::new(&all[0]).put("/kv-store/keys/a", r#"{"value":1}"#).status, 201);
    for number in 0..3 {
        replace(&mut cluster, number, None);
    }
    wait_agreed(&all[0]);
    for address in &all {
        wait_until("conditions are known everywhere", START_DEADLINE, || put_if(address, "a", 5).0 == 412);
        assert_eq!(put_if(address, "a", 60_000).0, 412);
        let kept = Http::new(address).get("/kv-store/keys/a");
        assert!(kept.json()["value"] == 1 && kept.header("ETag").is_some(), "what was put before has a tag");
    }
}

/// A node that cannot read what a shard has in its log gets no vote there. The view change names it, and goes on when it is updated.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn a_node_of_an_older_version_becomes_no_replica_of_what_it_cannot_read() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let put = |key: &str| {
        let answer = Http::new(&all[1]).request("PUT", &format!("/v1/kv/{key}?ttl=1000"), &[], b"bytes");
        assert!(answer.status < 300, "{}", answer.text());
    };
    // The log still begins with its first entry.
    put("a");
    let mut joining = Node::start_program(&older, &ports::free_address(), &[("VIEW", &cluster.view)]);
    joining.wait_live();
    let wanted = [all[0].clone(), all[1].clone(), joining.address().to_owned()];
    let begun = ask_with(&all[0], &[("Prefer", "respond-async")], &json!({ "view": wanted }));
    assert_eq!(begun.status, 202, "{}", begun.text());
    let named = format!("{} runs a version of the program that cannot read", joining.address());
    wait_until("the view change says what it waits for", START_DEADLINE, || {
        status(&all[0])["blocked-by"].as_str().is_some_and(|by| by.contains(&named))
    });
    // Those that know it go on.
    put("b");
    joining.run_program(None);
    joining.kill();
    joining.restart();
    joining.wait_live();
    wait_until("the view change is finished", START_DEADLINE, || phase(&all[0]) == "finished");
    wait_agreed(&all[0]);
    let found = joining.http().get("/v1/kv/a");
    assert_eq!((found.status, found.text().as_str()), (200, "bytes"));
    assert_eq!(audit(&all[0]).keys, 2);
}

/// What an older node does not tell is shown as not known, and what it would not apply alike is left out.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn the_status_names_nodes_of_an_older_version_and_keeps_receipts_once_all_are_newer() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    let mut cluster = Cluster::of_program(3, &older, &[("REPL_FACTOR", "3")]);
    let all = cluster.addresses();
    replace(&mut cluster, 0, None);
    let status = |address: &str| Http::new(address).get("/v1/status").json();
    let problem = |status: &Value, kind: &str| -> Option<String> {
        let found = status["problems"].as_array()?.iter().find(|one| one["kind"] == kind)?;
        Some(found["what"].as_str().expect("a text").to_owned())
    };
    wait_until("the older ones are named", START_DEADLINE, || {
        let told = status(&all[0]);
        problem(&told, "versions-differ")
            .is_some_and(|what| all.iter().all(|node| what.contains(node.as_str())))
    });
    let told = status(&all[0]);
    for (node, address) in told["nodes"].as_array().expect("a list").iter().zip(&all) {
        assert_eq!((&node["address"], &node["reachable"]), (&json!(address), &json!(true)), "{told}");
        let is_newer = *address == all[0];
        for field in ["version", "pairs", "bytes", "memory", "ready", "replica-id"] {
            assert_eq!(node[field].is_null(), !is_newer, "{field}: {node}");
        }
    }
    assert_eq!(told["problems"].as_array().map(Vec::len), Some(1), "nothing else is wrong: {told}");
    // Through one of either version.
    for through in [&all[0], &all[1]] {
        assert_eq!(ask(through, &all).status, 200);
    }
    wait_until("both view changes are shown", START_DEADLINE, || {
        status(&all[0])["receipts"].as_array().is_some_and(|receipts| receipts.len() == 2)
    });
    let receipts = status(&all[0])["receipts"].clone();
    for receipt in receipts.as_array().expect("a list") {
        assert!(receipt["epoch"].is_u64() && receipt["moved"] == receipt["minimum"], "{receipt}");
        assert_eq!(
            (&receipt["began"], &receipt["seconds"]),
            (&Value::Null, &Value::Null),
            "not known: {receipt}"
        );
    }
    for number in 1..3 {
        replace(&mut cluster, number, None);
    }
    wait_agreed(&all[0]);
    wait_until("nothing is wrong any more", START_DEADLINE, || {
        all.iter().all(|address| status(address)["problems"] == json!([]))
    });
    assert_eq!(ask(&all[1], &all).status, 200);
    for address in &all {
        wait_until("a receipt with its times is there, and those before", START_DEADLINE, || {
            let told = status(address);
            let receipts = told["receipts"].as_array().expect("a list").clone();
            receipts.len() == 3 && receipts[0]["seconds"].is_f64() && receipts[1]["began"].is_null()
        });
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the older version is stored as a program for x86_64")]
fn an_older_node_says_503_where_the_owner_has_no_room() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let older = older(&folder);
    let limits = [("MAX_VALUE_LENGTH", "1048576")];
    let mut cluster = Cluster::of_program(2, &older, &limits);
    let all = cluster.addresses();
    let bounded =
        [("VIEW", all[0].as_str()), ("MAX_MEMORY", "48000000"), ("MAX_BATCH_LENGTH", "1048576"), limits[0]];
    cluster.nodes[1].run_program(None);
    cluster.nodes[1].restart_with(&bounded);
    cluster.nodes[1].wait_live();
    let lost = json!({"view": all, "accept-loss": ["2"]});
    assert_eq!(ask_with(&all[0], &[], &lost).status, 200);
    let mut through = Http::new(&all[0]);
    // Large values go by HTTP, small ones on a connection.
    for bytes in [100_000, 1000] {
        let body = format!("{{\"value\":\"{}\"}}", "x".repeat(bytes));
        let refused = (0..100_000).find_map(|number| {
            let key = target(&format!("{number}-{bytes}"));
            let answer = through.put(&key, &body);
            assert!(answer.status != 507, "{}", answer.text());
            (answer.status >= 300).then_some((key, answer))
        });
        let (key, answer) = refused.expect("there is a bound");
        assert_eq!((answer.status, answer.header("Evenkv-Outcome")), (503, Some("not-applied")));
        let said = format!("{} {}", answer.text(), answer.header("Evenkv-Reason").unwrap_or_default());
        assert!(said.contains("MAX_MEMORY") && said.contains(&all[1]), "{said}");
        assert_eq!(through.get(&key).status, 404, "nothing was done");
    }
}
