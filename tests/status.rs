//! `GET /v1/status`: one question to one node says how everything is, and what is wrong in words, whatever has become of the others.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::change::{allowed, ask, ask_with, has_ended, passive, phase, target, wait_knows};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::replicated::{RECOVERY, named, replicated, wait_leader};
use support::{START_DEADLINE, ports, timed, wait_until};

/// What happens to a node is said within this time.
const TOLD: Duration = Duration::from_secs(2);
/// No answer takes longer, whoever hangs.
const BOUND: Duration = Duration::from_millis(1500);

/// The rows measure times, so they take turns.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn asked(address: &str) -> Response {
    Http::new(address).get("/v1/status")
}

fn status(address: &str) -> Value {
    let answer = asked(address);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    answer.json()
}

fn rows<'a>(status: &'a Value, list: &str) -> &'a [Value] {
    status[list].as_array().unwrap_or_else(|| panic!("no {list} in {status}"))
}

fn names(row: &Value) -> Vec<&str> {
    row.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// The row of a list with this value in this field.
fn row<'a>(status: &'a Value, list: &str, field: &str, value: &str) -> &'a Value {
    let found = rows(status, list).iter().find(|row| row[field] == value);
    found.unwrap_or_else(|| panic!("no {value} among {list} of {status}"))
}

fn node<'a>(status: &'a Value, address: &str) -> &'a Value {
    row(status, "nodes", "address", address)
}

fn kinds(status: &Value) -> Vec<&str> {
    rows(status, "problems").iter().map(|problem| problem["kind"].as_str().expect("a text")).collect()
}

/// Waits until a problem of this kind is told, and returns it; each says what to do.
fn wait_problem(address: &str, kind: &str, limit: Duration) -> Value {
    let mut found = Value::Null;
    wait_until(&format!("{address} tells of a problem {kind}"), limit, || {
        let status = status(address);
        found = rows(&status, "problems").iter().find(|one| one["kind"] == kind).cloned().unwrap_or_default();
        !found.is_null()
    });
    assert_eq!(names(&found), ["kind", "what", "do", "nodes", "shards"], "{found}");
    for text in ["what", "do"] {
        assert!(found[text].as_str().is_some_and(|text| text.len() > 10), "{found}");
    }
    found
}

/// Waits until nothing is wrong.
fn wait_well(address: &str) -> Value {
    let mut last = Value::Null;
    wait_until(&format!("{address} tells of no problem"), allowed(RECOVERY), || {
        last = status(address);
        kinds(&last).is_empty()
    });
    last
}

fn put_pairs(address: &str, count: usize) {
    let mut client = Http::new(address);
    for number in 0..count {
        assert_eq!(client.put(&target(&format!("k{number}")), r#"{"value":1}"#).status, 201);
    }
}

const FIELDS: [&str; 10] = [
    "address",
    "role",
    "problems",
    "cluster-id",
    "epoch",
    "repl-factor",
    "nodes",
    "shards",
    "change",
    "receipts",
];
const OF_NODE: [&str; 12] = [
    "address",
    "role",
    "replica-id",
    "leads",
    "leads-view",
    "version",
    "reachable",
    "ready",
    "pairs",
    "bytes",
    "requests-per-second",
    "memory",
];
const OF_SHARD: [&str; 7] =
    ["shard-id", "leader", "key-count", "bytes", "requests-per-second", "lost", "replicas"];
const OF_RECEIPT: [&str; 16] = [
    "change-id",
    "epoch",
    "began",
    "ended",
    "seconds",
    "keys",
    "moved",
    "minimum",
    "copied",
    "created-meanwhile",
    "deleted-meanwhile",
    "hold-ms",
    "checksums-match",
    "shards",
    "nodes",
    "given-up",
];

/// What every status of a node in a view has.
fn check_form(status: &Value, roles: &[&str]) {
    assert_eq!(names(status), FIELDS, "{status}");
    for one in rows(status, "nodes") {
        assert_eq!(names(one), OF_NODE, "{one}");
        assert!(roles.contains(&one["role"].as_str().expect("a role")), "{one}");
        assert_eq!((&one["reachable"], &one["ready"]), (&json!(true), &json!(true)), "{one}");
        assert_eq!(one["version"], env!("CARGO_PKG_VERSION"), "{one}");
        assert!(one["replica-id"].as_str().is_some_and(|id| id.len() == 16), "{one}");
        let memory = &one["memory"];
        assert_eq!(names(memory), ["used", "resident", "bound"], "{one}");
        assert!(
            memory["used"].as_u64() > Some(100_000) && memory["resident"].as_u64() > Some(100_000),
            "{one}"
        );
        assert_eq!(memory["bound"], Value::Null, "{one}");
    }
    for one in rows(status, "shards") {
        assert_eq!(names(one), OF_SHARD, "{one}");
        assert_eq!(one["lost"], false, "{one}");
        for replica in rows(one, "replicas") {
            assert_eq!(names(replica), ["address", "behind"], "{one}");
        }
    }
    assert_eq!((&status["change"], &status["receipts"]), (&Value::Null, &json!([])), "{status}");
}

fn counted(status: &Value) -> u64 {
    rows(status, "shards").iter().map(|shard| shard["key-count"].as_u64().expect("a count")).sum()
}

#[test]
fn a_single_node_says_how_it_is() {
    let single = Node::single(&[]);
    put_pairs(single.address(), 10);
    wait_until("all is counted", START_DEADLINE, || counted(&status(single.address())) == 10);
    let told = wait_well(single.address());
    check_form(&told, &["single"]);
    assert_eq!(
        (&told["role"], &told["epoch"], &told["repl-factor"]),
        (&json!("single"), &json!(1), &json!(1))
    );
    let own = node(&told, single.address());
    assert_eq!((&own["pairs"], &own["leads"], &own["leads-view"]), (&json!(10), &json!(["1"]), &json!(true)));
    assert!(own["bytes"].as_u64().is_some_and(|bytes| bytes >= 10 * 3), "{own}");
    let shard = row(&told, "shards", "shard-id", "1");
    assert_eq!(shard["leader"], single.address());
    assert_eq!(shard["replicas"], json!([{"address": single.address(), "behind": 0}]));
    // Requests are counted in their seconds.
    let mut client = single.http();
    wait_until("requests show", START_DEADLINE, || {
        for _ in 0..20 {
            assert_eq!(client.get(&target("k1")).status, 200);
        }
        let told = status(single.address());
        node(&told, single.address())["requests-per-second"].as_f64().is_some_and(|rate| rate > 1.0)
    });
}

#[test]
fn the_status_is_for_reading_only() {
    let single = Node::single(&[]);
    let mut client = single.http();
    let got = client.get("/v1/status");
    let head = client.request("HEAD", "/v1/status", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Length"), got.header("Content-Length"));
    let options = client.request("OPTIONS", "/v1/status", &[], b"");
    assert_eq!((options.status, options.header("Allow")), (204, Some("GET, HEAD, OPTIONS")));
    for method in ["PUT", "POST", "DELETE", "PATCH"] {
        let refused = client.request(method, "/v1/status", &[], b"{}");
        assert_eq!((refused.status, refused.header("Allow")), (405, Some("GET, HEAD, OPTIONS")), "{method}");
        assert_eq!(refused.header("Content-Type"), Some("application/problem+json"), "{method}");
    }
    assert_eq!(client.get("/v1/status/").status, 404);
}

#[test]
fn every_node_of_a_cluster_says_the_same_of_all() {
    let _alone = alone();
    for factor in [1, 3] {
        let cluster = replicated(3, factor, &[]);
        let all = cluster.addresses();
        put_pairs(&all[0], 30);
        for address in &all {
            wait_until("all is counted", allowed(RECOVERY), || {
                let told = status(address);
                rows(&told, "shards").iter().all(|shard| shard["key-count"].is_u64()) && counted(&told) == 30
            });
            let told = wait_well(address);
            check_form(&told, &["member"]);
            assert_eq!((&told["address"], &told["role"]), (&json!(address), &json!("member")));
            assert_eq!(told["repl-factor"], factor);
            let listed: Vec<&str> =
                rows(&told, "nodes").iter().map(|one| one["address"].as_str().expect("one")).collect();
            assert_eq!(listed, all, "in the order of the view");
            assert_eq!(rows(&told, "shards").len(), 3 / factor);
            let leading = rows(&told, "nodes").iter().filter(|one| one["leads-view"] == true);
            assert_eq!(leading.count(), 1, "{told}");
            for shard in rows(&told, "shards") {
                let leader = shard["leader"].as_str().expect("a leader");
                let led = &node(&told, leader)["leads"];
                assert!(led.as_array().is_some_and(|led| led.contains(&shard["shard-id"])), "{told}");
                assert_eq!(rows(shard, "replicas").len(), factor, "{shard}");
            }
            wait_until("no replica is behind", allowed(RECOVERY), || {
                let told = status(address);
                let is_near = |replica: &Value| replica["behind"] == 0;
                rows(&told, "shards").iter().all(|shard| rows(shard, "replicas").iter().all(is_near))
            });
        }
    }
}

#[test]
fn a_node_without_a_view_says_what_it_waits_for() {
    let missing = ports::free_address();
    let lonely = passive(std::slice::from_ref(&missing), &[]);
    let problem = wait_problem(lonely.address(), "no-cluster", START_DEADLINE);
    assert!(problem["what"].as_str().is_some_and(|what| what.contains(&missing)), "{problem}");
    let told = status(lonely.address());
    assert_eq!(names(&told), FIELDS);
    assert_eq!(
        (&told["role"], &told["epoch"], &told["shards"]),
        (&json!("passive"), &Value::Null, &json!([]))
    );
    assert_eq!(node(&told, lonely.address())["reachable"], true);
    let other = node(&told, &missing);
    assert_eq!((&other["reachable"], &other["pairs"]), (&json!(false), &Value::Null));
    // A node of a first view that misses others.
    let own = ports::free_address();
    let view = format!("{own},{missing}");
    let waiting = Node::start(&own, &[("VIEW", view.as_str())]);
    waiting.wait_live();
    let problem = wait_problem(&own, "no-cluster", START_DEADLINE);
    assert!(problem["what"].as_str().is_some_and(|what| what.contains(&missing)), "{problem}");
    assert_eq!(status(&own)["role"], "member");
}

#[test]
fn a_passive_node_that_knows_a_cluster_shows_it() {
    let _alone = alone();
    let cluster = Cluster::of(2);
    let all = cluster.addresses();
    let spare = passive(&all, &[]);
    wait_knows(&spare, 2);
    wait_until("it shows the cluster", allowed(RECOVERY), || {
        let told = status(spare.address());
        told["role"] == "passive" && rows(&told, "nodes").len() == 3 && rows(&told, "shards").len() == 2
    });
    let told = status(spare.address());
    let own = node(&told, spare.address());
    assert_eq!((&own["role"], &own["pairs"], &own["leads"]), (&json!("passive"), &json!(0), &json!([])));
    assert!(all.iter().all(|address| node(&told, address)["role"] == "member"), "{told}");
    // The members do not count it.
    assert_eq!(rows(&status(&all[0]), "nodes").len(), 2);
}

#[test]
fn a_follower_adds_itself_to_what_its_main_says() {
    let _alone = alone();
    let mut main = Node::single(&[]);
    put_pairs(main.address(), 3);
    let follower = Node::follower(main.address(), &[]);
    let second = Node::follower(follower.address(), &[]);
    for (asked, its_main, count) in [(&follower, main.address(), 2), (&second, follower.address(), 3)] {
        let told = status(asked.address());
        assert_eq!(names(&told)[..3], ["address", "role", "main"]);
        assert_eq!((&told["address"], &told["role"]), (&json!(asked.address()), &json!("follower")));
        assert_eq!(told["main"], json!({"address": its_main, "reachable": true}));
        assert_eq!(rows(&told, "nodes").len(), count, "{told}");
        assert_eq!(node(&told, main.address())["role"], "single");
        let own = node(&told, asked.address());
        assert_eq!((&own["role"], &own["reachable"]), (&json!("follower"), &json!(true)));
        assert_eq!(names(own), OF_NODE);
        assert_eq!((rows(&told, "shards").len(), kinds(&told).len()), (1, 0), "{told}");
        let head = asked.http().request("HEAD", "/v1/status", &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(asked.http().request("OPTIONS", "/v1/status", &[], b"").status, 204);
        assert_eq!(asked.http().request("PUT", "/v1/status", &[], b"{}").status, 405);
    }
    for is_killed in [false, true] {
        if is_killed {
            main.kill();
        } else {
            main.pause();
        }
        let problem = wait_problem(follower.address(), "main-down", allowed(TOLD));
        assert!(problem["what"].as_str().is_some_and(|what| what.contains(main.address())), "{problem}");
        let told = status(follower.address());
        assert_eq!(told["main"], json!({"address": main.address(), "reachable": false}));
        assert_eq!((&told["role"], &told["epoch"]), (&json!("follower"), &Value::Null));
        assert_eq!(node(&told, follower.address())["reachable"], true);
        if !is_killed {
            main.resume();
            wait_until("the main is back", allowed(RECOVERY), || {
                status(follower.address())["main"]["reachable"] == true
            });
        }
    }
}

#[test]
fn a_follower_that_passes_on_to_itself_ends() {
    let (one, two) = (ports::free_address(), ports::free_address());
    let first = Node::start(&one, &[("FORWARDING_ADDRESS", two.as_str())]);
    let second = Node::start(&two, &[("FORWARDING_ADDRESS", one.as_str())]);
    first.wait_live();
    second.wait_live();
    wait_until("the circle is found", START_DEADLINE, || asked(&one).status == 508);
}

#[test]
fn a_node_that_is_killed_or_hangs_is_named_in_words_and_holds_up_nothing() {
    let _alone = alone();
    for factor in [1, 3] {
        let mut cluster = replicated(3, factor, &[]);
        let all = cluster.addresses();
        wait_well(&all[0]);
        let gone = all[2].clone();
        for is_killed in [false, true] {
            if is_killed {
                cluster.nodes[2].kill();
            } else {
                cluster.nodes[2].pause();
            }
            let since = Instant::now();
            let mut named = false;
            while !named {
                let (told, took) = timed(|| status(&all[0]));
                assert!(took < allowed(BOUND), "an answer took {took:?} while {gone} hangs");
                let problems = rows(&told, "problems");
                named = problems.iter().any(|one| {
                    one["kind"] == "node-not-reached"
                        && one["what"].as_str().is_some_and(|what| what.contains(&gone))
                        && one["nodes"] == json!([gone])
                });
                assert!(named || since.elapsed() < allowed(TOLD), "{gone} is not named: {told}");
                thread::sleep(Duration::from_millis(20));
            }
            let told = status(&all[0]);
            let row = node(&told, &gone);
            assert_eq!(
                (&row["reachable"], &row["pairs"]),
                (&json!(false), &Value::Null),
                "what is not told is not known"
            );
            assert_eq!(node(&told, &all[1])["reachable"], true);
            if factor == 1 {
                let problem = wait_problem(&all[0], "node-not-reached", allowed(TOLD));
                assert_eq!(problem["shards"], json!(["3"]), "{problem}");
                assert!(
                    problem["do"].as_str().is_some_and(|advice| advice.contains("accept-loss")),
                    "{problem}"
                );
                assert_eq!(row_of_shard(&told, "3")["key-count"], Value::Null, "{told}");
            } else {
                let problem = wait_problem(&all[0], "replica-missing", allowed(RECOVERY));
                assert_eq!(
                    (&problem["nodes"], &problem["shards"]),
                    (&json!([gone]), &json!(["1"])),
                    "{problem}"
                );
            }
            if !is_killed {
                cluster.nodes[2].resume();
                wait_well(&all[0]);
            }
        }
        if factor == 3 {
            // Two of three are gone: nobody leads.
            cluster.nodes[1].kill();
            let problem = wait_problem(&all[0], "shard-without-leader", allowed(RECOVERY));
            assert!(
                all[1..].iter().all(|node| problem["what"].as_str().is_some_and(|what| what.contains(node))),
                "{problem}"
            );
            assert!(
                problem["do"].as_str().is_some_and(|advice| advice.contains("evenkv recover")),
                "{problem}"
            );
            wait_problem(&all[0], "view-without-leader", allowed(RECOVERY));
            let told = status(&all[0]);
            assert_eq!(kinds(&told).first(), Some(&"shard-without-leader"), "the worst comes first: {told}");
            assert_eq!(row_of_shard(&told, "1")["leader"], Value::Null);
        }
    }
}

fn row_of_shard<'a>(status: &'a Value, id: &str) -> &'a Value {
    row(status, "shards", "shard-id", id)
}

#[test]
fn a_shard_that_is_lost_comes_first_with_what_to_do() {
    let _alone = alone();
    let mut cluster = Cluster::of(3);
    let all = cluster.addresses();
    put_pairs(&all[0], 30);
    cluster.nodes[2].restart();
    cluster.nodes[2].wait_live();
    for address in &all {
        let problem = wait_problem(address, "shard-lost", START_DEADLINE);
        assert_eq!((&problem["nodes"], &problem["shards"]), (&json!([all[2]]), &json!(["3"])));
        assert!(
            problem["do"].as_str().is_some_and(|advice| advice.contains(r#""accept-loss":["3"]"#)),
            "{problem}"
        );
        let told = status(address);
        assert_eq!(kinds(&told).first(), Some(&"shard-lost"), "{told}");
        let shard = row_of_shard(&told, "3");
        assert_eq!(
            (&shard["lost"], &shard["key-count"], &shard["leader"]),
            (&json!(true), &Value::Null, &Value::Null)
        );
    }
    // What it says to do helps.
    let answer = ask_with(&all[0], &[], &json!({"view": all, "accept-loss": ["3"]}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = wait_well(&all[0]);
    assert_eq!(told["receipts"][0]["given-up"], json!(["3"]), "{told}");
}

#[test]
fn settings_that_differ_are_named() {
    let _alone = alone();
    let slow: &[(&str, &str)] = &[("REQUEST_TIMEOUT_MS", "4000")];
    let cluster = Cluster::each(&[&[], slow, &[]]);
    let all = cluster.addresses();
    let problem = wait_problem(&all[2], "settings-differ", START_DEADLINE);
    let what = problem["what"].as_str().expect("a text");
    assert!(what.starts_with("REQUEST_TIMEOUT_MS differs: 4000 at "), "{problem}");
    assert!(what.contains(&format!("4000 at {}", all[1])) && what.contains("5000 at "), "{problem}");
}

/// The last receipts, by their epochs.
fn epochs(status: &Value) -> Vec<u64> {
    rows(status, "receipts").iter().map(|receipt| receipt["epoch"].as_u64().expect("an epoch")).collect()
}

#[test]
fn the_last_twenty_receipts_outlive_the_leaders_of_the_view() {
    let _alone = alone();
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let spare = passive(&all, &[]);
    wait_knows(&spare, 1);
    put_pairs(&all[0], 5);
    let mut last = Value::Null;
    for round in 0..22 {
        let limits =
            if round % 2 == 0 { json!({"max-value-length": 8_388_609 + round}) } else { json!(null) };
        let body = json!({"view": all, "limits": limits});
        let answer = ask_with(&all[round % 3], &[], &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        last = answer.json();
    }
    wait_until("the last one is shown", allowed(TOLD), || {
        status(&all[0])["receipts"][0]["change-id"] == last["change-id"]
    });
    let told = status(&all[0]);
    let receipts = rows(&told, "receipts");
    assert_eq!(receipts.len(), 20, "{told}");
    assert_eq!(names(&receipts[0]), OF_RECEIPT);
    for field in ["change-id", "epoch", "keys", "moved", "minimum", "copied", "hold-ms", "checksums-match"] {
        assert_eq!(receipts[0][field], last[field], "{field}");
    }
    assert!(epochs(&told).is_sorted_by(|newer, older| newer >= older), "{told}");
    for receipt in receipts {
        let (began, ended) = (receipt["began"].as_str(), receipt["ended"].as_str());
        assert!(
            began.is_some() && began <= ended && ended.is_some_and(|text| text.ends_with('Z')),
            "{receipt}"
        );
        assert!(
            receipt["seconds"].as_f64().is_some_and(|seconds| (0.0..60.0).contains(&seconds)),
            "{receipt}"
        );
        assert_eq!((&receipt["shards"], &receipt["nodes"]), (&json!(1), &json!(3)), "{receipt}");
    }
    let kept = told["receipts"].clone();
    let leader = rows(&told, "nodes").iter().find(|one| one["leads-view"] == true).expect("a leader");
    let leader = leader["address"].as_str().expect("an address").to_owned();
    named(&mut cluster.nodes, &leader).kill();
    let rest: Vec<&String> = all.iter().filter(|address| **address != leader).collect();
    for address in rest.iter().map(|address| address.as_str()).chain([spare.address()]) {
        wait_until(&format!("another one leads, and {address} has the receipts"), allowed(RECOVERY), || {
            let told = status(address);
            let leads = |one: &Value| one["leads-view"] == true && one["address"] != leader.as_str();
            rows(&told, "nodes").iter().any(leads) && told["receipts"] == kept
        });
    }
    // The dead one is replaced.
    let next: Vec<String> =
        rest.iter().map(|address| (*address).clone()).chain([spare.address().to_owned()]).collect();
    let answer = ask(rest[0], &next);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.json()["change-id"].clone();
    wait_until("the new voter has them, too", allowed(RECOVERY), || {
        status(spare.address())["receipts"][0]["change-id"] == id
    });
    let told = status(spare.address());
    assert_eq!(rows(&told, "receipts")[1..], kept.as_array().expect("a list")[..19], "{told}");
    assert!(told["receipts"][0]["seconds"].is_f64(), "{told}");
    assert_eq!(kinds(&told), [] as [&str; 0], "raised limits are no problem: {told}");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_view_change_that_runs_is_shown_at_every_node_with_its_phase() {
    let _alone = alone();
    let cluster = Cluster::with(2, &[("FAILPOINTS", "piece-started=sleep(700)")]);
    let all = cluster.addresses();
    let spare = passive(&all, &[]);
    wait_knows(&spare, 2);
    put_pairs(&all[0], 60);
    let wanted = vec![all[0].clone(), all[1].clone(), spare.address().to_owned()];
    let begun = ask_with(&all[1], &[("Prefer", "respond-async")], &json!({ "view": wanted }));
    assert_eq!(begun.status, 202, "{}", begun.text());
    let id = begun.json()["change-id"].clone();
    for address in &wanted {
        wait_until(&format!("{address} shows that pairs move"), START_DEADLINE, || {
            let change = status(address)["change"].clone();
            assert!(!has_ended(&phase(address)), "it has ended too early");
            change["phase"] == "moving" && change["piece"].is_object()
        });
        let told = status(address);
        let change = &told["change"];
        assert_eq!((&change["change-id"], &change["nodes"]), (&id, &json!(wanted)), "{change}");
        assert!(
            change["began"].is_string() && change["total"].is_u64() && change["repl-factor"] == 1,
            "{change}"
        );
        assert_eq!(node(&told, spare.address())["role"], "member", "it holds a new shard already: {told}");
    }
    wait_until("it has ended", allowed(START_DEADLINE * 2), || phase(&all[0]) == "finished");
    wait_until("the receipt shows", allowed(TOLD), || {
        let told = status(&all[1]);
        told["change"].is_null() && told["receipts"][0]["change-id"] == id
    });
}

#[cfg(feature = "failpoints")]
#[test]
fn a_view_change_that_waits_says_for_whom_and_what_unblocks_it() {
    let _alone = alone();
    // The one that leaves is a source, and does not hold the view.
    let cluster = Cluster::each(&[&[], &[("FAILPOINTS", "source-batch=1*return(stop)")]]);
    let all = cluster.addresses();
    let spare = passive(&all, &[]);
    wait_knows(&spare, 2);
    put_pairs(&all[0], 60);
    let wanted = vec![all[0].clone(), spare.address().to_owned()];
    let begun = ask_with(spare.address(), &[("Prefer", "respond-async")], &json!({ "view": wanted }));
    assert_eq!(begun.status, 202, "{}", begun.text());
    wait_until("the source stops", START_DEADLINE, || cluster.nodes[1].has_halted());
    let problem = wait_problem(spare.address(), "change-blocked", allowed(Duration::from_secs(15)));
    let id = begun.json()["change-id"].as_str().expect("an id").to_owned();
    assert!(problem["what"].as_str().is_some_and(|what| what.contains(&id)), "{problem}");
    wait_until("it goes on when the source does", allowed(Duration::from_secs(20)), || {
        cluster.nodes.iter().filter(|node| node.has_halted()).for_each(Node::resume);
        phase(spare.address()) == "finished"
    });
    wait_well(spare.address());
}

const TAG: &str = "If-None-Match";
const WAIT: &str = "Prefer";

/// Asks as the page does: whoever knows the answer is held until there is another one.
fn held(client: &mut Http, tag: &str, wait: &str) -> Response {
    client.request("GET", "/v1/status", &[(TAG, tag), (WAIT, wait)], b"")
}

fn tag_of(answer: &Response) -> String {
    answer.header("ETag").expect("a tag").to_owned()
}

/// What of a tag is the same where only figures of load differ.
fn news(tag: &str) -> &str {
    tag.split('-').next().expect("a part")
}

#[test]
fn who_knows_the_answer_is_not_sent_it_again() {
    let single = Node::single(&[]);
    let mut client = single.http();
    put_pairs(single.address(), 3);
    wait_until("all is counted", START_DEADLINE, || counted(&status(single.address())) == 3);
    wait_well(single.address());
    wait_until("what is known is answered 304", START_DEADLINE, || {
        let tag = tag_of(&client.get("/v1/status"));
        let weak = format!("\"x\", W/{tag}");
        let answers = [&tag, &weak].map(|known| client.request("GET", "/v1/status", &[(TAG, known)], b""));
        // A second may have passed in between.
        answers.iter().all(|answer| {
            assert!((answer.status == 304) == (tag_of(answer) == tag), "{answer:?} and {tag}");
            answer.status == 304 && answer.body.is_empty()
        })
    });
    assert_eq!(client.request("GET", "/v1/status", &[(TAG, "*")], b"").status, 304);
    assert_eq!(client.request("GET", "/v1/status", &[(TAG, "\"x\"")], b"").status, 200);
    // What was asked here has raised figures of load, which is no news; a pair is.
    let tag = tag_of(&client.get("/v1/status"));
    wait_until("another answer is made", START_DEADLINE, || tag_of(&client.get("/v1/status")) != tag);
    assert_eq!(news(&tag_of(&client.get("/v1/status"))), news(&tag));
    assert_eq!(single.http().put(&target("another"), r#"{"value":1}"#).status, 201);
    wait_until("it is news", START_DEADLINE, || news(&tag_of(&client.get("/v1/status"))) != news(&tag));
}

#[test]
fn an_answer_that_is_known_is_held_until_there_is_another_one() {
    let _alone = alone();
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    wait_leader(&all[0], "1", |_| true);
    wait_well(&all[0]);
    let settled = |client: &mut Http| {
        let mut tag = String::new();
        wait_until("nothing changes any more", allowed(RECOVERY), || {
            let (before, since) = (tag.clone(), Instant::now());
            tag = tag_of(&held(client, &tag, "respond-async, wait=2"));
            news(&tag) == news(&before) && since.elapsed() >= Duration::from_secs(2)
        });
        tag
    };
    let mut client = Http::new(&all[0]);
    let tag = settled(&mut client);
    let (answer, took) = timed(|| held(&mut client, &tag, "wait=3"));
    assert_eq!(news(&tag_of(&answer)), news(&tag));
    assert!(took >= Duration::from_secs(3), "held for {took:?}");
    // The figures of load are those of now all the same.
    assert_eq!(answer.status == 304, tag_of(&answer) == tag, "{answer:?}");
    // A node that is killed is told at once to whoever waits.
    let gone = all[1].clone();
    let told = thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let answer = held(&mut client, &tag, "wait=30");
            (answer, Instant::now())
        });
        // The connection is held by then, or the kill is seen by the next answer all the same.
        wait_until("it is held", START_DEADLINE, || (0..5).all(|_| busy(&all[0]) >= 1));
        cluster.nodes[1].kill();
        let killed = Instant::now();
        let (mut answer, mut at) = waits.join().expect("an answer");
        while answer.status == 304 || !kinds(&answer.json()).contains(&"node-not-reached") {
            answer = held(&mut Http::new(&all[0]), &tag_of(&answer), "wait=30");
            at = Instant::now();
        }
        assert!(at - killed < allowed(TOLD), "told after {:?}", at - killed);
        answer.json()
    });
    assert!(told.to_string().contains(&gone), "{told}");
    // Whoever is held does not hold up the end of the node.
    let tag = settled(&mut client);
    thread::scope(|scope| {
        let waits = scope.spawn(|| held(&mut client, &tag, "wait=30"));
        wait_until("it is held", START_DEADLINE, || (0..5).all(|_| busy(&all[0]) >= 1));
        let (_, took) = timed(|| {
            cluster.nodes[0].terminate();
            cluster.nodes[0].wait_exit(allowed(Duration::from_secs(15)))
        });
        let answer = waits.join().expect("an answer");
        assert!(matches!(answer.status, 200 | 304), "{answer:?}");
        assert!(took < allowed(Duration::from_secs(8)), "it took {took:?} to stop");
    });
}

/// The requests that a node is about to answer, that for this figure apart.
fn busy(address: &str) -> u64 {
    let metrics = Http::new(address).get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("evenkv_connections_busy "));
    line.and_then(|figure| figure.parse::<u64>().ok()).expect("a figure").saturating_sub(1)
}

#[test]
fn a_follower_says_what_names_its_answer_and_holds_nobody() {
    let main = Node::single(&[]);
    wait_well(main.address());
    let follower = Node::follower(main.address(), &[]);
    let mut client = follower.http();
    let mut tag = String::new();
    wait_until("nothing changes any more", START_DEADLINE, || {
        let (before, (answer, took)) = (tag.clone(), timed(|| held(&mut client, &tag, "wait=30")));
        tag = tag_of(&answer);
        news(&tag) == news(&before) && took < allowed(Duration::from_secs(5))
    });
}

#[test]
fn shards_tell_their_bytes_and_what_is_done_to_their_keys() {
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    wait_leader(&all[0], "1", |_| true);
    put_pairs(&all[0], 10);
    let mut clients = cluster.clients();
    wait_until("reads through all nodes show", START_DEADLINE, || {
        for client in &mut clients {
            for _ in 0..10 {
                assert_eq!(client.get(&target("k1")).status, 200);
            }
        }
        let told = status(&all[0]);
        let shard = row(&told, "shards", "shard-id", "1");
        shard["bytes"].as_u64() >= Some(30) && shard["requests-per-second"].as_f64() > Some(1.0)
    });
}

#[test]
fn a_hundred_open_pages_cost_little() {
    const PAGES: usize = 100;
    const SPAN: Duration = Duration::from_secs(8);
    let _alone = alone();
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    wait_leader(&all[0], "1", |_| true);
    wait_well(&all[0]);
    let share = |span: Duration| {
        let (before, since) = (cluster.nodes[0].cpu_time(), Instant::now());
        thread::sleep(span);
        cluster.nodes[0].cpu_time().saturating_sub(before).as_secs_f64() / since.elapsed().as_secs_f64()
    };
    let idle_before = share(SPAN / 2);
    let is_over = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    let used = thread::scope(|scope| {
        let page = || {
            let (mut client, mut tag) = (Http::new(&all[0]), "\"none\"".to_owned());
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                tag = tag_of(&held(&mut client, &tag, "wait=5"));
                asked.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
            }
        };
        for _ in 0..PAGES {
            scope.spawn(page);
        }
        wait_until("all have asked", START_DEADLINE, || asked.load(Ordering::Relaxed) >= 2 * PAGES);
        let used = share(SPAN);
        is_over.store(true, Ordering::Relaxed);
        used
    });
    let idle = f64::midpoint(idle_before, share(SPAN / 2));
    let percent = |share: f64| share * 100.0;
    println!("{PAGES} pages: {:.2} % of a core beside {:.2} %", percent(used - idle), percent(idle));
    assert!(used - idle < 0.02, "{:.2} % of a core", percent(used - idle));
}
