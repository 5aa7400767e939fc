//! `POST /v1/batch`: many operations in one request, each for itself. Against real processes in every role.
#![allow(clippy::disallowed_methods, reason = "a test has clients with threads of their own")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::change::{allowed, ask, passive};
use support::cluster::Cluster;
use support::history::{self, Call, Outcome, Record};
use support::http::{Http, Response, percent_encoded};
use support::node::Node;
use support::replicated::{RECOVERY, replicated, restart_ready, wait_agreed, wait_leader};
use support::wait_until;

const BATCH: &str = "/v1/batch";

/// Lines as one body.
fn body(lines: &[Value]) -> String {
    lines.iter().flat_map(|line| [line.to_string(), "\n".to_owned()]).collect()
}

fn post(client: &mut Http, headers: &[(&str, &str)], lines: &[Value]) -> Response {
    client.request("POST", BATCH, headers, body(lines).as_bytes())
}

/// What came of each line.
fn results(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("Content-Type"), Some("application/x-ndjson"));
    let text = answer.text();
    assert!(text.is_empty() || text.ends_with('\n'));
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"));
    text.lines().map(parse).collect()
}

fn done(client: &mut Http, lines: &[Value]) -> Vec<Value> {
    let answer = post(client, &[], lines);
    let results = results(&answer);
    assert_eq!(results.len(), lines.len(), "a line for a line");
    results
}

fn statuses(results: &[Value]) -> Vec<u64> {
    results.iter().map(|result| result["status"].as_u64().expect("a status")).collect()
}

/// A node in every role: the address, and what it is.
struct Roles {
    single: Node,
    follower: Node,
    cluster: Cluster,
    replicated: Cluster,
}

impl Roles {
    fn start(settings: &[(&str, &str)]) -> Self {
        let single = Node::single(settings);
        let follower = Node::follower(single.address(), &[]);
        Self { single, follower, cluster: Cluster::with(3, settings), replicated: replicated(3, 3, settings) }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        [&self.single, &self.follower].into_iter().chain(&self.cluster.nodes).chain(&self.replicated.nodes)
    }
}

#[test]
fn every_operation_has_its_own_answer_in_every_role() {
    let roles = Roles::start(&[]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let key = |name: &str| format!("{number} {name}");
        let (a, b, c) = (key("a"), key("b/\u{e4}"), key("c"));
        let found = done(
            &mut client,
            &[
                json!({"op": "put", "key": a, "value": {"x": [1, "\u{e4}"]}}),
                json!({"op": "put", "key": b, "value-base64": "AAH/", "type": "image/x"}),
                json!({"op": "put", "key": c, "value": 1, "ttl": 300}),
                json!({"op": "get", "key": a}),
                json!({"op": "get", "key": b}),
                json!({"op": "get", "key": c}),
                json!({"op": "get", "key": key("absent")}),
                json!({"op": "put", "key": a, "value": null}),
                json!({"op": "get", "key": a}),
                json!({"op": "delete", "key": a}),
                json!({"op": "get", "key": a}),
                json!({"op": "delete", "key": a}),
                json!({"op": "touch", "key": c, "ttl": "none"}),
                json!({"op": "touch", "key": a, "ttl": 5}),
                json!({"op": "get", "key": c}),
            ],
        );
        let context = format!("{} {found:#?}", node.address());
        assert_eq!(
            statuses(&found),
            [201, 201, 201, 200, 200, 200, 404, 200, 200, 204, 404, 404, 204, 404, 200],
            "{context}"
        );
        let tag = |at: usize| found[at]["etag"].as_str().map(str::to_owned);
        assert_eq!((found[3]["value"].clone(), tag(3)), (json!({"x": [1, "\u{e4}"]}), tag(0)), "{context}");
        assert_eq!(found[4]["value-base64"], "AAH/", "{context}");
        assert_eq!((found[4]["type"].clone(), tag(4)), (json!("image/x"), tag(1)), "{context}");
        let left = found[5]["ttl"].as_f64().expect("a time that is left");
        assert!((200.0..=300.0).contains(&left), "{context}");
        assert_eq!(found[6]["error"], "Key does not exist", "{context}");
        assert_eq!(found[8]["value"], Value::Null, "{context}");
        assert!(found[8]["etag"] != found[3]["etag"] && tag(9).is_none(), "{context}");
        assert_eq!(found[11]["outcome"], "not-applied", "{context}");
        assert_eq!(tag(12), tag(2), "touching leaves the tag as it is: {context}");
        assert!(found[14].get("ttl").is_none(), "{context}");
        // It is the same pair as elsewhere.
        let read = client.get(&format!("/v1/kv/{}", percent_encoded(b.as_bytes())));
        assert_eq!((read.body.as_slice(), read.header("ETag")), (&[0, 1, 255][..], tag(1).as_deref()));
    }
}

#[test]
fn what_one_line_says_counts_for_that_line() {
    let roles = Roles::start(&[("MAX_KEY_LENGTH", "20"), ("MAX_VALUE_LENGTH", "100")]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let a = format!("{number}a");
        let long = "x".repeat(99);
        let lines = [
            (format!(r#"{{"op":"put","key":"{a}","value": {{"b" : 1.50}} }}"#), 201, ""),
            ("nonsense".to_owned(), 400, "cannot be read"),
            (String::new(), 400, "cannot be read"),
            ("[]".to_owned(), 400, "cannot be read"),
            (format!(r#"{{"op":"put","key":"{a}"}}"#), 400, "Value is missing"),
            (format!(r#"{{"op":"put","key":"{a}","value":01}}"#), 400, "cannot be read"),
            (format!(r#"{{"op":"put","key":"{a}","value":1,"value-base64":""}}"#), 400, "two values"),
            (format!(r#"{{"op":"put","key":"{a}","value":"{long}"}}"#), 413, "100 bytes"),
            (format!(r#"{{"op":"put","key":"{a}","value-base64":"?"}}"#), 400, "value-base64"),
            (
                format!(r#"{{"op":"put","key":"{a}","value-base64":"e30","type":"text/plain"}}"#),
                400,
                "value-base64",
            ),
            (
                format!(r#"{{"op":"put","key":"{a}","value-base64":"ew==","type":"application/json"}}"#),
                400,
                "JSON",
            ),
            (format!(r#"{{"op":"put","key":"{a}","value":1,"type":"text/plain"}}"#), 400, "type"),
            (format!(r#"{{"op":"put","key":"{a}","value":1,"ttl":0}}"#), 400, "ttl"),
            (format!(r#"{{"op":"put","key":"{a}","value":1,"ttl":"none"}}"#), 400, "ttl"),
            (format!(r#"{{"op":"put","key":"{a}","value":1,"if-match":"a"}}"#), 400, "If-Match"),
            (format!(r#"{{"op":"put","key":"{a}","value":1,"if-mach":"*"}}"#), 400, "if-mach"),
            (format!(r#"{{"op":"get","key":"{a}","value":1}}"#), 400, "get has no value"),
            (format!(r#"{{"op":"touch","key":"{a}"}}"#), 400, "ttl is missing"),
            (format!(r#"{{"op":"take","key":"{a}"}}"#), 400, "no op"),
            (r#"{"op":"get"}"#.to_owned(), 400, "key is missing"),
            (r#"{"op":"get","key":1}"#.to_owned(), 400, "key is wrong"),
            (format!(r#"{{"op":"get","key":"{}"}}"#, "k".repeat(21)), 400, "Key is too long"),
            (format!(r#"{{"op":"get","key":"{a}","key-base64":"YQ=="}}"#), 400, "two"),
            (r#"{"op":"get","key-base64":"//8="}"#.to_owned(), 404, "Key does not exist"),
            (format!(r#"{{"op":"get","key":"{a}"}}"#), 200, ""),
        ];
        let text: Vec<&str> = lines.iter().map(|(line, ..)| line.as_str()).collect();
        // The last line has no end.
        let answer = client.request("POST", BATCH, &[], text.join("\n").as_bytes());
        let found = results(&answer);
        assert_eq!(found.len(), lines.len());
        for ((line, status, error), found) in lines.iter().zip(&found) {
            assert_eq!(found["status"], *status, "{line}: {found}");
            let said = found["error"].as_str().unwrap_or_default();
            assert!(said.contains(error), "{line}: {found}");
            assert_eq!(said.is_empty(), found.get("outcome").is_none(), "{line}: {found}");
        }
        assert!(answer.text().contains(r#""value":{"b" : 1.50}"#), "byte for byte: {}", answer.text());
    }
}

#[test]
fn values_of_several_lines_are_answered_in_one() {
    let node = Node::single(&[]);
    let mut client = node.http();
    assert_eq!(client.put("/kvs/a", "{\"value\": [1,\r\n \"\\n\",\n2]}").status, 201);
    let answer = post(&mut client, &[], &[json!({"op": "get", "key": "a"})]);
    assert_eq!(results(&answer)[0]["value"], json!([1, "\n", 2]));
}

#[test]
fn items_of_one_key_keep_their_order_in_every_role() {
    let roles = Roles::start(&[]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let keys: Vec<String> = (0..20).map(|key| format!("order {number} {key}")).collect();
        let mut lines = Vec::new();
        for value in 0..30 {
            for key in &keys {
                lines.push(match value % 3 {
                    0 | 1 => json!({"op": "put", "key": key, "value": value}),
                    _ => json!({"op": "get", "key": key}),
                });
            }
        }
        let found = done(&mut client, &lines);
        for (at, result) in found.iter().enumerate() {
            let value = at / keys.len();
            match value % 3 {
                2 => assert_eq!(result["value"], value - 1, "{} {result}", lines[at]),
                _ => assert_eq!(result["status"], if value == 0 { 201 } else { 200 }, "{result}"),
            }
        }
    }
}

#[test]
fn conditions_hold_within_a_batch_and_by_the_tags_of_others() {
    let roles = Roles::start(&[]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let key = format!("condition {number}");
        let found = done(
            &mut client,
            &[
                json!({"op": "put", "key": key, "value": 1, "if-none-match": "*"}),
                json!({"op": "put", "key": key, "value": 2, "if-none-match": "*"}),
                json!({"op": "get", "key": key}),
                json!({"op": "get", "key": key, "if-match": "\"x\""}),
            ],
        );
        assert_eq!(statuses(&found), [201, 412, 200, 412], "{found:?}");
        assert_eq!((&found[1]["etag"], &found[2]["value"]), (&found[0]["etag"], &json!(1)), "{found:?}");
        assert_eq!(found[1]["error"], "Precondition failed");
        let tag = found[0]["etag"].as_str().expect("a tag");
        let found = done(
            &mut client,
            &[
                json!({"op": "get", "key": key, "if-none-match": tag}),
                json!({"op": "put", "key": key, "value": 3, "if-match": tag}),
                json!({"op": "put", "key": key, "value": 4, "if-match": tag}),
                json!({"op": "delete", "key": key, "if-match": tag}),
                json!({"op": "get", "key": key}),
            ],
        );
        assert_eq!(statuses(&found), [304, 200, 412, 412, 200], "{found:?}");
        assert_eq!(found[4]["value"], 3);
    }
}

#[test]
fn a_batch_that_is_named_is_done_once() {
    let roles = Roles::start(&[]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let key = |name: &str| format!("named {number} {name}");
        let lines = [
            json!({"op": "put", "key": key("a"), "value": 1}),
            json!({"op": "put", "key": key("b"), "value": 2, "if-none-match": "*"}),
            json!({"op": "put", "key": key("a"), "value": 3}),
            json!({"op": "delete", "key": key("b")}),
        ];
        let name = [("Idempotency-Key", "n")];
        let first = results(&post(&mut client, &name, &lines));
        assert_eq!(statuses(&first), [201, 201, 200, 204], "{first:?}");
        let others = [json!({"op": "put", "key": key("a"), "value": 9})];
        assert_eq!(results(&post(&mut client, &[], &others))[0]["status"], 200);
        // The name stands for each line by its place.
        let again = results(&post(&mut client, &name, &lines));
        assert_eq!(again, first, "as the first time");
        assert_eq!(done(&mut client, &[json!({"op": "get", "key": key("a")})])[0]["value"], 9);
        let mut changed = lines.clone();
        changed[1]["value"] = json!(5);
        let found = results(&post(&mut client, &name, &changed));
        assert_eq!(statuses(&found), [201, 422, 200, 204], "{found:?}");
        // It is no name of single requests, nor of other lines.
        let target = format!("/v1/kv/{}", percent_encoded(key("b").as_bytes()));
        assert_eq!(client.request("PUT", &target, &name, b"x").status, 201);
        let later = [json!({"op": "get", "key": "x"}), lines[0].clone()];
        assert_eq!(statuses(&results(&post(&mut client, &name, &later))), [404, 200]);
    }
}

#[test]
fn too_much_is_refused_whole() {
    let roles = Roles::start(&[("MAX_BATCH_LINES", "50"), ("MAX_BATCH_LENGTH", "5000")]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let put = |key: String, value: &str| json!({"op": "put", "key": key, "value": value});
        let lines: Vec<Value> = (0..51).map(|line| put(format!("many {number} {line}"), "")).collect();
        let refused = post(&mut client, &[], &lines);
        assert_eq!((refused.status, refused.header("Evenkv-Outcome")), (413, Some("not-applied")));
        assert!(refused.text().contains("50 lines"), "{}", refused.text());
        let large = [put(format!("many {number} 0"), &"x".repeat(5000))];
        let refused = post(&mut client, &[], &large);
        assert_eq!(refused.status, 413, "{}", refused.text());
        assert!(refused.text().contains("5000 bytes"), "{}", refused.text());
        let chunked = support::http::chunked(body(&large).as_bytes(), 1000);
        let refused = client.request("POST", BATCH, &[("Transfer-Encoding", "chunked")], &chunked);
        assert_eq!(refused.status, 413, "{}", refused.text());
        // The rest of a body of unknown length is not waited for, so that connection has ended.
        let mut client = node.http();
        let get = |line: usize| json!({"op": "get", "key": format!("many {number} {line}")});
        let found = done(&mut client, &(0..50).map(get).collect::<Vec<_>>());
        assert!(statuses(&found).iter().all(|status| *status == 404), "nothing was done");
        assert_eq!(statuses(&done(&mut client, &lines[1..])), [201; 50]);
        let get = client.get(BATCH);
        assert_eq!((get.status, get.header("Allow")), (405, Some("POST, OPTIONS")));
        assert_eq!(client.request("OPTIONS", BATCH, &[], b"").header("Allow"), Some("POST, OPTIONS"));
        assert!(done(&mut client, &[]).is_empty());
    }
}

/// More than what is sent of an answer before it is read, more than one entry of a log has, and values that are longer than a frame.
#[test]
fn a_long_batch_is_answered_as_a_stream() {
    let roles = Roles::start(&[]);
    for (number, node) in roles.nodes().enumerate() {
        let mut client = node.http();
        let value = |line: usize| {
            let length = if line.is_multiple_of(50) { 300_000 } else { 1000 };
            format!("{line} {}", "v".repeat(length))
        };
        let key = |line: usize| format!("long {number} {line}");
        let puts: Vec<Value> =
            (0..500).map(|line| json!({"op": "put", "key": key(line), "value": value(line)})).collect();
        assert_eq!(statuses(&done(&mut client, &puts)), vec![201; puts.len()]);
        let gets: Vec<Value> = (0..500).map(|line| json!({"op": "get", "key": key(line)})).collect();
        let answer = post(&mut client, &[], &gets);
        assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"));
        for (line, found) in results(&answer).iter().enumerate() {
            assert!(found["value"] == value(line), "{}: {line} {}", node.address(), found["status"]);
        }
        let deletes: Vec<Value> = (0..500).map(|line| json!({"op": "delete", "key": key(line)})).collect();
        assert_eq!(statuses(&done(&mut client, &deletes)), vec![204; deletes.len()]);
    }
}

#[test]
fn what_the_time_does_not_reach_is_503_with_its_outcome() {
    let cluster = Cluster::with(3, &[("REQUEST_TIMEOUT_MS", "700")]);
    let lines: Vec<Value> =
        (0..60).map(|line| json!({"op": "put", "key": format!("late {line}"), "value": line})).collect();
    assert_eq!(statuses(&done(&mut cluster.nodes[0].http(), &lines)), [201; 60]);
    let gone = cluster.nodes[2].address().to_owned();
    cluster.nodes[2].pause();
    let began = Instant::now();
    let found = done(&mut cluster.nodes[0].http(), &lines);
    assert!(began.elapsed() < allowed(Duration::from_secs(3)), "{:?}", began.elapsed());
    cluster.nodes[2].resume();
    let late: Vec<&Value> = found.iter().filter(|result| result["status"] == 503).collect();
    assert!(late.len() > 5 && late.len() < 40, "{} of 60 are of {gone}", late.len());
    assert!(found.iter().all(|result| result["status"] == 503 || result["status"] == 200), "{found:?}");
    for result in late {
        let outcome = result["outcome"].as_str().expect("an outcome");
        assert!(["unknown", "not-applied"].contains(&outcome), "{result}");
        assert!(result["error"].as_str().is_some_and(|error| !error.is_empty()), "{result}");
    }
}

/// Writers that put, read and delete by batches through all nodes, and note it as if each had been a request of its own.
struct Writers<'a> {
    addresses: &'a [String],
    ends: &'a AtomicBool,
    began: Instant,
    values: &'a AtomicU64,
    batches: &'a AtomicU64,
}

const CONTESTED: usize = 12;

impl Writers<'_> {
    fn run(&self, client: u32) -> Vec<Record> {
        let mut records = Vec::new();
        let mut round = 0_usize;
        while !self.ends.load(Ordering::Relaxed) {
            round += 1;
            let address = &self.addresses[(client as usize + round) % self.addresses.len()];
            let calls: Vec<(String, Call)> = (0..8)
                .map(|line| {
                    let key =
                        format!("contested {}", (client as usize * 5 + round * 3 + line * 7) % CONTESTED);
                    let value = self.values.fetch_add(1, Ordering::Relaxed);
                    let call = match (line + round) % 4 {
                        0 | 1 => Call::Put(value),
                        2 => Call::Get,
                        _ => Call::Delete,
                    };
                    (key, call)
                })
                .collect();
            let line = |(key, call): &(String, Call)| match call {
                Call::Put(value) => json!({"op": "put", "key": key, "value": value}),
                Call::Get => json!({"op": "get", "key": key}),
                _ => json!({"op": "delete", "key": key}),
            };
            let lines: Vec<Value> = calls.iter().map(line).collect();
            let called = self.nanos();
            let answer = Http::new(address).try_request("POST", BATCH, &[], body(&lines).as_bytes());
            let returned = self.nanos();
            let found = answer.ok().filter(|answer| answer.status == 200).map(|answer| results(&answer));
            for (at, (key, call)) in calls.into_iter().enumerate() {
                let outcome = found.as_ref().map_or(Outcome::Unknown, |found| outcome_of(call, &found[at]));
                records.push(Record { client, key, call, called, returned, outcome });
            }
            self.batches.fetch_add(1, Ordering::Relaxed);
        }
        records
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a short test")
    }
}

fn outcome_of(call: Call, result: &Value) -> Outcome {
    match (call, result["status"].as_u64()) {
        (Call::Put(_), Some(201)) => Outcome::Put { replaced: false },
        (Call::Put(_), Some(200)) => Outcome::Put { replaced: true },
        (Call::Get, Some(200)) => Outcome::Got(result["value"].as_u64()),
        (Call::Get, Some(404)) => Outcome::Got(None),
        (Call::Delete, Some(204)) => Outcome::Deleted(true),
        (Call::Delete, Some(404)) => Outcome::Deleted(false),
        (_, Some(503)) if result["outcome"] == "not-applied" => Outcome::NotApplied,
        (_, Some(503)) => Outcome::Unknown,
        other => panic!("{other:?}: {result}"),
    }
}

/// Has writers work while something is done to the cluster, and checks what they were told.
fn check_while(addresses: &[String], work: impl FnOnce(&dyn Fn())) {
    let (ends, values, batches) = (AtomicBool::new(false), AtomicU64::new(1), AtomicU64::new(0));
    let writers =
        Writers { addresses, ends: &ends, began: Instant::now(), values: &values, batches: &batches };
    let records = std::thread::scope(|scope| {
        let writers = &writers;
        let threads: Vec<_> = (0..4).map(|client| scope.spawn(move || writers.run(client))).collect();
        let wait = || {
            let before = batches.load(Ordering::Relaxed);
            wait_until("batches are answered", allowed(RECOVERY), || {
                batches.load(Ordering::Relaxed) > before + 40
            });
        };
        wait();
        work(&wait);
        wait();
        ends.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().expect("a writer")).collect::<Vec<Record>>()
    });
    history::check(&records).unwrap_or_else(|refused| panic!("{refused}"));
    let known = records.iter().filter(|record| !matches!(record.outcome, Outcome::Unknown)).count();
    assert!(known * 2 > records.len(), "{known} of {} are known", records.len());
    // What one batch did to a key was done in its order: values are drawn in ascending order.
    let mut read: BTreeMap<&str, u64> = BTreeMap::new();
    for record in records.iter().filter(|record| matches!(record.call, Call::Get)) {
        *read.entry(&record.key).or_default() += 1;
    }
    assert_eq!(read.len(), CONTESTED);
}

#[test]
fn batches_are_exact_while_a_view_changes() {
    let cluster = Cluster::of(2);
    let joining = passive(&cluster.addresses(), &[]);
    let all: Vec<String> = cluster.addresses().into_iter().chain([joining.address().to_owned()]).collect();
    check_while(&all, |wait| {
        let changed = ask(&all[0], &all);
        assert_eq!(changed.status, 200, "{}", changed.text());
        wait();
        let changed = ask(&all[1], &all[1..]);
        assert_eq!(changed.status, 200, "{}", changed.text());
    });
}

#[test]
fn batches_are_exact_while_leaders_are_killed() {
    let mut cluster = replicated(3, 3, &[]);
    let addresses = cluster.addresses();
    check_while(&addresses, |wait| {
        for _ in 0..2 {
            let id = support::replicated::known_shards(
                &support::replicated::try_view(&addresses[0]).expect("a view"),
            )[0]
            .id
            .clone();
            let leader = wait_leader(&addresses[0], &id, |_| true);
            let node = support::replicated::named(&mut cluster.nodes, &leader);
            node.kill();
            wait();
            restart_ready(node);
            wait();
        }
    });
    wait_agreed(&addresses[0]);
}
