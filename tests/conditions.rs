//! `ETag`, `If-Match` and `If-None-Match` on the paths of the contract, against real processes in every role.
#![allow(clippy::disallowed_methods, reason = "a test has clients with threads of their own")]

mod support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::change::{allowed, ask, ask_with, target};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::replicated::{
    known_shards, named, replicated, restart_ready, try_view, wait_agreed, wait_leader,
};
use support::{START_DEADLINE, wait_until};

/// What a row's header names.
#[derive(Debug, Clone, Copy)]
enum Tags {
    /// `*`.
    Any,
    /// What the key has now.
    Now,
    /// The same, weak.
    Weak,
    /// What the key had before.
    Before,
    /// No tag that a node has ever given.
    Strange,
    /// A list in which what the key has is the last.
    List,
    /// Text as it stands here.
    Text(&'static str),
}

use Tags::{Any, Before, List, Now, Strange, Text, Weak};

/// One request to a key that is there, or is not, and what comes of it.
struct Row {
    method: &'static str,
    is_there: bool,
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
    status: u16,
}

const fn row(
    method: &'static str,
    is_there: bool,
    (if_match, if_none_match): (Option<Tags>, Option<Tags>),
    status: u16,
) -> Row {
    Row { method, is_there, if_match, if_none_match, status }
}

/// Every combination that section 13 of RFC 9110 tells apart.
const ROWS: [Row; 57] = [
    row("GET", true, (None, None), 200),
    row("GET", true, (Some(Any), None), 200),
    row("GET", true, (Some(Now), None), 200),
    row("GET", true, (Some(List), None), 200),
    row("GET", true, (Some(Weak), None), 412),
    row("GET", true, (Some(Before), None), 412),
    row("GET", true, (Some(Strange), None), 412),
    row("GET", true, (None, Some(Any)), 304),
    row("GET", true, (None, Some(Now)), 304),
    row("GET", true, (None, Some(Weak)), 304),
    row("GET", true, (None, Some(List)), 304),
    row("GET", true, (None, Some(Before)), 200),
    row("GET", true, (None, Some(Strange)), 200),
    row("GET", true, (Some(Now), Some(Now)), 304),
    row("GET", true, (Some(Before), Some(Now)), 412),
    row("GET", true, (Some(Now), Some(Before)), 200),
    row("GET", false, (Some(Any), None), 404),
    row("GET", false, (Some(Before), None), 404),
    row("GET", false, (None, Some(Any)), 404),
    row("PUT", true, (None, None), 200),
    row("PUT", true, (Some(Any), None), 200),
    row("PUT", true, (Some(Now), None), 200),
    row("PUT", true, (Some(List), None), 200),
    row("PUT", true, (Some(Weak), None), 412),
    row("PUT", true, (Some(Before), None), 412),
    row("PUT", true, (Some(Strange), None), 412),
    row("PUT", true, (None, Some(Any)), 412),
    row("PUT", true, (None, Some(Now)), 412),
    row("PUT", true, (None, Some(Weak)), 412),
    row("PUT", true, (None, Some(Before)), 200),
    row("PUT", true, (Some(Now), Some(Now)), 412),
    row("PUT", true, (Some(Now), Some(Strange)), 200),
    row("PUT", false, (None, None), 201),
    row("PUT", false, (Some(Any), None), 412),
    row("PUT", false, (Some(Before), None), 412),
    row("PUT", false, (None, Some(Any)), 201),
    row("PUT", false, (None, Some(Before)), 201),
    row("DELETE", true, (None, None), 200),
    row("DELETE", true, (Some(Now), None), 200),
    row("DELETE", true, (Some(Weak), None), 412),
    row("DELETE", true, (Some(Before), None), 412),
    row("DELETE", true, (None, Some(Any)), 412),
    row("DELETE", true, (None, Some(Before)), 200),
    row("DELETE", false, (Some(Any), None), 404),
    row("DELETE", false, (Some(Before), None), 404),
    row("DELETE", false, (None, Some(Any)), 404),
    // What cannot be read, whatever there is.
    row("GET", true, (Some(Text("x")), None), 400),
    row("GET", false, (None, Some(Text("\"x"))), 400),
    row("PUT", true, (Some(Text("")), None), 400),
    row("PUT", true, (Some(Text("*, \"x\"")), None), 400),
    row("PUT", false, (None, Some(Text("w/\"x\""))), 400),
    row("PUT", true, (Some(Now), Some(Text("x, y"))), 400),
    row("DELETE", true, (Some(Text("\"x\" \"y\"")), None), 400),
    // What may be read all the same.
    row("PUT", true, (Some(Text(" , \"x\",, \"a,b\" ")), None), 412),
    row("PUT", true, (None, Some(Text("\"x\",W/\"y\""))), 200),
    row("GET", true, (None, Some(Text("\"\""))), 200),
    row("DELETE", true, (None, Some(Text("\"x\""))), 200),
];

/// The value of a header.
fn value(tags: Tags, now: &str, before: &str) -> String {
    match tags {
        Any => "*".to_owned(),
        Now => now.to_owned(),
        Weak => format!("W/{now}"),
        Before => before.to_owned(),
        Strange => "\"0123456789abcdef-1\"".to_owned(),
        List => format!("\"x\", W/{now},{before} ,{now}"),
        Text(text) => text.to_owned(),
    }
}

fn tag(answer: &Response) -> String {
    let tag =
        answer.header("ETag").unwrap_or_else(|| panic!("no ETag: {} {:?}", answer.status, answer.headers));
    assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    tag.to_owned()
}

/// The body of an answer must be that of the contract; `owner` is the address that it must name.
fn check_body(row: &Row, answer: &Response, owner: Option<&str>, context: &str) {
    let mut wanted = match (row.method, row.status) {
        (_, 304) => {
            assert_eq!((&answer.body[..], answer.header("Content-Length")), (&b""[..], None), "{context}");
            assert_eq!(answer.header("Content-Type"), None, "{context}");
            assert_eq!(answer.header("Transfer-Encoding"), None, "{context}");
            return;
        }
        ("GET", 200) => json!({"doesExist": true, "message": "Retrieved successfully", "value": "there"}),
        ("PUT", 200) => json!({"message": "Updated successfully", "replaced": true}),
        ("PUT", 201) => json!({"message": "Added successfully", "replaced": false}),
        ("DELETE", 200) => json!({"doesExist": true, "message": "Deleted successfully"}),
        (method, 404) => {
            json!({"doesExist": false, "error": "Key does not exist", "message": format!("Error in {method}")})
        }
        (method, 412) => json!({"error": "Precondition failed", "message": format!("Error in {method}")}),
        (method, 400) => {
            let error = answer.json()["error"].clone();
            let text = error.as_str().unwrap_or_default();
            assert!(text.contains("cannot be read: allowed is *"), "{context}");
            json!({"error": error, "message": format!("Error in {method}")})
        }
        other => panic!("{other:?}"),
    };
    if let Some(owner) = owner {
        wanted["address"] = owner.into();
    }
    assert_eq!(answer.json(), wanted, "{context}");
    if row.status >= 400 && row.method != "GET" {
        assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{context}");
    }
}

/// Runs all rows with one client on one key.
fn check_rows(place: &str, client: &mut Http, target: &str, large: bool, owner: Option<&str>) {
    let filler = " ".repeat(if large { 60_000 } else { 0 });
    let there = if large {
        format!("{{\"value\":[\"{}\"]}}", "x".repeat(60_000))
    } else {
        "{\"value\":\"there\"}".to_owned()
    };
    for (number, row) in ROWS.iter().enumerate() {
        let before = tag(&client.put(target, "{\"value\":\"before\"}"));
        let now = if row.is_there {
            tag(&client.put(target, &there))
        } else {
            assert_eq!(client.delete(target).status, 200);
            before.clone()
        };
        assert!(!row.is_there || now != before, "{place}");
        let (if_match, if_none_match) = (row.if_match, row.if_none_match);
        let if_match = if_match.map(|tags| ("If-Match", value(tags, &now, &before)));
        let if_none_match = if_none_match.map(|tags| ("If-None-Match", value(tags, &now, &before)));
        let headers: Vec<(&str, String)> = if_match.into_iter().chain(if_none_match).collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let put = if large { there.clone() } else { format!("{{\"value\":{number}}}{filler}") };
        let body = if row.method == "PUT" { put.as_bytes() } else { b"" };
        let answer = client.request(row.method, target, &headers, body);
        let context = format!(
            "{place}, row {number}: {} {headers:?}, there: {}\n answered {} {:.300} {:?}",
            row.method,
            row.is_there,
            answer.status,
            answer.text(),
            answer.headers
        );
        assert_eq!(answer.status, row.status, "{context}");
        if !(large && row.method == "GET" && row.status == 200) {
            check_body(row, &answer, owner, &context);
        }
        // What is there is named, and nothing else is.
        let after = client.get(target);
        let (told, there) = (answer.header("ETag"), after.header("ETag"));
        match (row.method, row.status) {
            (_, 404 | 400) | ("DELETE", 200) => assert_eq!(told, None, "{context}"),
            _ => assert_eq!(told, there, "{context}"),
        }
        assert_eq!(there.is_some(), after.status == 200, "{context}");
        let is_written = row.method != "GET" && row.status < 300;
        assert_eq!(there == Some(now.as_str()), row.is_there && !is_written, "{context}");
    }
}

/// The owner that a node names for a key.
fn named_owner(client: &mut Http, target: &str) -> Option<String> {
    client.put(target, "{\"value\":0}").owner()
}

#[test]
fn every_row_holds_at_a_single_node_and_through_a_follower() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for large in [false, true] {
        for prefix in ["/kv-store/keys/k", "/kvs/keys/k", "/kv-store/k", "/kvs/k"] {
            check_rows("single", &mut main.http(), prefix, large, None);
            // By HTTP first, and then on its connection.
            check_rows("follower", &mut follower.http(), prefix, large, None);
        }
    }
}

#[test]
fn every_row_holds_through_owner_and_others_of_a_cluster() {
    check_everywhere("cluster", &Cluster::of(3));
}

#[test]
fn every_row_holds_through_leaders_replicas_and_others_of_a_replicated_cluster() {
    check_everywhere("replicated", &replicated(4, 2, &[]));
}

fn check_everywhere(name: &str, cluster: &Cluster) {
    for (number, node) in cluster.nodes.iter().enumerate() {
        let mut client = node.http();
        for key in 0..2 {
            for large in [false, true] {
                let target = format!("/kv-store/keys/k{key}-{number}");
                let owner = named_owner(&mut client, &target);
                let place = format!("{name}, node {number}, key {key}, large: {large}");
                check_rows(&place, &mut client, &target, large, owner.as_deref());
            }
        }
    }
}

#[test]
fn what_stands_in_several_lines_is_one_list() {
    let node = Node::single(&[]);
    let mut client = node.http();
    let now = tag(&client.put("/kvs/a", "{\"value\":1}"));
    let lines = [("If-Match", "\"x\""), ("if-match", now.as_str())];
    assert_eq!(client.request("GET", "/kvs/a", &lines, b"").status, 200);
    let lines = [("If-None-Match", "*"), ("If-None-Match", now.as_str())];
    assert_eq!(client.request("GET", "/kvs/a", &lines, b"").status, 400);
}

#[test]
fn reads_that_may_be_old_have_conditions_too() {
    let cluster = replicated(3, 3, &[]);
    for node in &cluster.nodes {
        let mut client = node.http();
        let now = tag(&client.put("/kvs/keys/a", "{\"value\":1}"));
        wait_until("the replica has it", START_DEADLINE, || {
            let answer =
                client.request("GET", "/kvs/keys/a?consistency=stale", &[("If-None-Match", &now)], b"");
            answer.status == 304 && answer.header("Evenkv-Staleness-Ms").is_some() && tag(&answer) == now
        });
        let missed = client.request("GET", "/kvs/keys/a?consistency=stale", &[("If-Match", "\"x\"")], b"");
        assert_eq!((missed.status, tag(&missed)), (412, now));
    }
}

#[test]
fn a_conditional_write_sent_again_is_answered_as_the_first_time() {
    let single = Node::single(&[]);
    let (cluster, replicated) = (Cluster::of(3), replicated(3, 3, &[]));
    let nodes = [&single].into_iter().chain(&cluster.nodes).chain(&replicated.nodes);
    for (number, node) in nodes.enumerate() {
        let (mut client, target) = (node.http(), target(&format!("again-{number}")));
        let first = tag(&client.put(&target, "{\"value\":1}"));
        let mut write = |method: &str, id: &str, if_match: &str, body: &str| {
            let headers = [("Idempotency-Key", id), ("If-Match", if_match)];
            let answer = client.request(method, &target, &headers, body.as_bytes());
            (answer.status, answer.header("ETag").map(str::to_owned))
        };
        let done = write("PUT", "a", &first, "{\"value\":2}");
        assert_eq!(done.0, 200);
        let unmet = write("PUT", "b", &first, "{\"value\":3}");
        assert_eq!(unmet, (412, done.1.clone()));
        // Now their conditions would come to something else.
        let second = done.1.clone().expect("it was written");
        let later = write("PUT", "c", &second, "{\"value\":4}");
        assert_eq!(later.0, 200);
        for _ in 0..2 {
            assert_eq!(write("PUT", "a", &first, "{\"value\":2}"), done);
            assert_eq!(write("PUT", "b", &first, "{\"value\":3}"), unmet);
        }
        // Another request under the same name.
        for (id, if_match, body) in [
            ("a", second.as_str(), "{\"value\":2}"),
            ("b", "\"x\"", "{\"value\":3}"),
            ("b", "\"y\"", "{\"value\":3}"),
            ("b", first.as_str(), "{\"value\":4}"),
        ] {
            assert_eq!(
                write("PUT", id, if_match, body),
                (422, None),
                "node {number}: {id} {if_match} {body}"
            );
        }
        let plain = client.request("PUT", &target, &[("Idempotency-Key", "a")], b"{\"value\":2}");
        assert_eq!((plain.status, plain.header("Evenkv-Outcome")), (422, Some("not-applied")));
        assert_eq!(client.get(&target).json()["value"], 4);
    }
}

/// The values that each tag of each key has stood for, over everything that clients were answered.
#[derive(Default)]
struct Seen(Mutex<HashMap<(String, String), Value>>);

impl Seen {
    fn note(&self, key: &str, tag: &str, value: &Value) {
        let mut seen = self.0.lock().unwrap();
        let known = seen.entry((key.to_owned(), tag.to_owned())).or_insert_with(|| value.clone());
        assert_eq!(known, value, "{tag} of {key} stands for two values");
    }

    /// Reads a key, and notes what is there.
    fn read(&self, client: &mut Http, key: &str) -> Option<String> {
        let answer = client.get(&target(key));
        (answer.status == 200).then(|| {
            let tag = tag(&answer);
            self.note(key, &tag, &answer.json()["value"]);
            tag
        })
    }

    /// Writes keys, each with values that no other has, deletes and writes them again.
    fn write(&self, through: &[String], keys: &[String], round: u64) {
        for (number, key) in keys.iter().enumerate() {
            let mut client = Http::new(&through[number % through.len()]);
            for step in 0..3 {
                let value = json!(format!("{round}-{step}"));
                let answer = client.put(&target(key), json!({ "value": value }).to_string());
                assert!(answer.status < 300, "{}", answer.text());
                self.note(key, &tag(&answer), &value);
                self.read(&mut client, key);
                if step < 2 {
                    assert_eq!(client.delete(&target(key)).status, 200);
                }
            }
        }
    }
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

#[test]
fn no_tag_stands_for_two_values_across_moves_restarts_and_losses() {
    let (seen, keys) = (Seen::default(), keys(24));
    let mut cluster = Cluster::of(3);
    let all = cluster.addresses();
    seen.write(&all, &keys, 0);
    // Everything moves away, and back.
    for (round, view) in [&all[..2], &all[1..], &all[..]].into_iter().enumerate() {
        let changed = ask(&all[1], view);
        assert_eq!(changed.status, 200, "{}", changed.text());
        seen.write(view, &keys, 1 + round as u64);
    }
    // One shard is lost, and given up.
    let living = &all[..2];
    let lost = shard_at(&living[0], &all[2]);
    cluster.nodes[2].kill();
    let changed = ask_with(&living[0], &[], &json!({"view": living, "accept-loss": [lost]}));
    assert_eq!(changed.status, 200, "{}", changed.text());
    seen.write(living, &keys, 10);
    // All are started again, with nothing.
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.restart();
    }
    for node in &cluster.nodes {
        node.wait_ready();
    }
    seen.write(&all, &keys, 20);
}

/// The id of the shard that a node alone holds.
fn shard_at(asked: &str, node: &str) -> String {
    let shards = known_shards(&try_view(asked).expect("the view"));
    let shard = shards.into_iter().find(|shard| shard.replicas == [node]);
    shard.expect("the node has a shard").id
}

#[test]
fn no_tag_stands_for_two_values_where_a_minority_goes_on() {
    let (seen, keys) = (Seen::default(), keys(12));
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    for round in 0..2 {
        seen.write(&all, &keys, round);
    }
    let (kept, dead) = (all[0].clone(), [1, 2]);
    for number in dead {
        cluster.nodes[number].kill();
    }
    let recovered =
        Http::with_patience(&kept, Duration::from_mins(1)).request("PUT", "/node/recover", &[], b"{}");
    assert_eq!(recovered.status, 200, "{}", recovered.text());
    wait_until("it serves", allowed(START_DEADLINE), || {
        Http::new(&kept).put("/kvs/keys/there", "{\"value\":1}").status < 300
    });
    seen.write(std::slice::from_ref(&kept), &keys, 7);
    for number in dead {
        restart_ready(&mut cluster.nodes[number]);
    }
    seen.write(&all, &keys, 8);
}

/// Clients that each add 1 to a counter by what they have read, and what was told each.
struct Counter<'a> {
    nodes: &'a [String],
    seen: Seen,
    /// Additions that were acknowledged.
    done: AtomicU64,
    is_over: AtomicBool,
}

impl Counter<'_> {
    /// Adds until it is over, each time through another node.
    fn add(&self, client: usize) {
        let mut asked = client;
        for turn in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let got = self.ask(&mut asked, "GET", &[], "");
            let count = got.json()["value"].as_u64().expect("a number");
            let at = tag(&got);
            self.seen.note("counter", &at, &json!(count));
            let id = format!("{client}-{turn}");
            let headers = [("If-Match", at.as_str()), ("Idempotency-Key", id.as_str())];
            let answer = self.ask(&mut asked, "PUT", &headers, &json!({"value": count + 1}).to_string());
            match answer.status {
                200 => {
                    self.seen.note("counter", &tag(&answer), &json!(count + 1));
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                412 => assert!(tag(&answer) != at, "it is there"),
                other => panic!("{other}: {}", answer.text()),
            }
        }
    }

    /// Asks one node after the other until one knows; under its name it is done once.
    fn ask(&self, asked: &mut usize, method: &str, headers: &[(&str, &str)], body: &str) -> Response {
        for _ in 0..600 {
            *asked += 1;
            let mut client = Http::new(&self.nodes[*asked % self.nodes.len()]);
            match client.try_request(method, &target("counter"), headers, body.as_bytes()) {
                Ok(answer) if answer.status != 503 => return answer,
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        panic!("{method} is answered by nobody");
    }
}

impl Counter<'_> {
    /// Waits until so many more additions are acknowledged.
    fn wait_added(&self, count: u64) {
        let before = self.done.load(Ordering::Relaxed);
        wait_until("the counter goes on", allowed(START_DEADLINE), || {
            self.done.load(Ordering::Relaxed) >= before + count
        });
    }
}

/// Has clients add to a counter through all nodes while something is done to the cluster. The value is then the number of additions that were acknowledged, which is returned.
fn check_counter(
    cluster: &mut Cluster,
    clients: usize,
    meanwhile: impl FnOnce(&mut Cluster, &Counter<'_>),
) -> u64 {
    let all = cluster.addresses();
    assert_eq!(Http::new(&all[0]).put(&target("counter"), "{\"value\":0}").status, 201);
    let (seen, done, is_over) = (Seen::default(), AtomicU64::new(0), AtomicBool::new(false));
    let counter = Counter { nodes: &all, seen, done, is_over };
    std::thread::scope(|scope| {
        for client in 0..clients {
            let counter = &counter;
            scope.spawn(move || counter.add(client));
        }
        let harmed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            counter.wait_added(20);
            meanwhile(cluster, &counter);
        }));
        counter.is_over.store(true, Ordering::Relaxed);
        harmed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let asked = all.last().expect("there are nodes");
    wait_agreed(asked);
    let (done, tags) = (counter.done.load(Ordering::Relaxed), counter.seen.0.lock().unwrap().len());
    let last = Http::new(asked).get(&target("counter"));
    assert_eq!(last.json()["value"], done, "{done} additions were acknowledged");
    println!("{clients} clients: {done} additions, {tags} ETags with a value each");
    done
}

/// Changes the view, whatever the factor was before.
fn change(asked: &str, view: &[String], factor: usize) {
    let changed = ask_with(asked, &[], &json!({"view": view, "repl-factor": factor}));
    assert_eq!(changed.status, 200, "{}", changed.text());
}

/// Kills the leader of each shard in turn, and starts it again when the others have gone on without it.
fn kill_leaders(cluster: &mut Cluster, asked: &str, counter: &Counter<'_>) {
    for shard in known_shards(&try_view(asked).expect("the view")) {
        let leader = wait_leader(asked, &shard.id, |_| true);
        named(&mut cluster.nodes, &leader).kill();
        counter.wait_added(20);
        restart_ready(named(&mut cluster.nodes, &leader));
    }
}

#[test]
fn a_counter_under_conditions_loses_and_doubles_nothing_through_failovers_and_view_changes() {
    let done = check_counter(&mut replicated(6, 3, &[]), 16, |cluster, counter| {
        let all = cluster.addresses();
        for view in [&all[3..], &all[..], &all[..3], &all[..]] {
            kill_leaders(cluster, &all[3], counter);
            change(&all[3], view, 3);
            counter.wait_added(20);
        }
    });
    assert!(done >= 80);
}

/// Clients of the long runs, and how often they go through everything that is done to their cluster.
const MANY_CLIENTS: usize = 64;
const ROUNDS: usize = 3;

#[test]
#[ignore = "takes minutes"]
fn a_counter_of_many_clients_is_right_through_failovers_view_changes_and_restarts_of_all_nodes() {
    check_counter(&mut replicated(6, 3, &[]), MANY_CLIENTS, |cluster, counter| {
        let all = cluster.addresses();
        for _ in 0..ROUNDS {
            for view in [&all[3..], &all[..], &all[..3], &all[..]] {
                kill_leaders(cluster, &all[3], counter);
                change(&all[3], view, 3);
                counter.wait_added(20);
            }
            // Node by node, each back before the next one goes.
            for node in &mut cluster.nodes {
                restart_ready(node);
                counter.wait_added(20);
            }
            // The shard of the counter grows, shrinks, and is at one node between.
            for (view, factor) in [(&all[..5], 5), (&all[2..4], 1), (&all[..], 3)] {
                change(&all[3], view, factor);
                counter.wait_added(20);
            }
        }
    });
}

#[test]
#[ignore = "takes a minute"]
fn a_counter_of_many_clients_is_right_through_view_changes_where_each_node_has_a_shard() {
    check_counter(&mut Cluster::of(4), MANY_CLIENTS, |cluster, counter| {
        let all = cluster.addresses();
        for _ in 0..ROUNDS {
            // The counter lies at each of them at some time.
            for view in [&all[..1], &all[1..3], &all[3..], &all[2..3], &all[..]] {
                change(&all[3], view, 1);
                counter.wait_added(20);
            }
        }
    });
}
