//! `/v1/kv/<key>`: the value is the body. Against real processes in every role.
#![allow(clippy::disallowed_methods, reason = "a test has clients with threads of their own")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::change::{allowed, ask, ask_with};
use support::cluster::Cluster;
use support::http::{Http, Response, chunked, percent_encoded};
use support::node::Node;
use support::replicated::{RECOVERY, replicated, restart_ready, wait_agreed, wait_leader};
use support::{START_DEADLINE, wait_until};

/// The longest value in the tests with rows, in bytes.
const LONGEST: usize = 100_000;
/// What does not fit into a frame between nodes, and what does not into one write.
const LONG: usize = 40_000;
const LARGE: usize = 90_000;

/// One request, and what is answered. The rows of a table are asked one after the other on one key.
#[derive(Default)]
struct Row {
    method: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    /// The headers that the answer has, or has not.
    told: Vec<(&'static str, Option<String>)>,
    answer: Vec<u8>,
    /// Part of the type and the detail of a problem.
    wrong: Option<(&'static str, &'static str)>,
}

fn row(method: &'static str, status: u16) -> Row {
    Row { method, status, ..Row::default() }
}

impl Row {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    fn tells(mut self, name: &'static str, value: &str) -> Self {
        self.told.push((name, Some(value.to_owned())));
        self
    }

    fn tells_no(mut self, name: &'static str) -> Self {
        self.told.push((name, None));
        self
    }

    fn answers(self, content_type: &str, answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        let length = answer.len().to_string();
        Self { answer, ..self }.tells("Content-Type", content_type).tells("Content-Length", &length)
    }

    fn problem(self, name: &'static str, detail: &'static str) -> Self {
        Self { wrong: Some((name, detail)), ..self }.tells("Content-Type", "application/problem+json")
    }
}

/// Bytes of which no two runs are alike, and that no reader of text takes.
fn bytes(length: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// A PUT whose answer has no body.
fn put(status: u16, body: &[u8]) -> Row {
    row("PUT", status).body(body).tells("Content-Length", "0").tells_no("Content-Type")
}

/// Every line of the table in the contract, and what follows from it, for values of a length.
fn rows(length: usize) -> Vec<Row> {
    let body = bytes(length, 1);
    let mut rows = rows_of_values(&body);
    rows.extend(rows_of_what_is_wrong());
    rows.extend(rows_of_conditions(&body));
    rows.extend(rows_of_ranges(&body));
    rows.extend(vec![
        row("DELETE", 204)
            .body("whatever")
            .tells_no("Content-Length")
            .tells_no("Content-Type")
            .tells_no("ETag"),
        row("DELETE", 404).problem("absent", "Key"),
    ]);
    rows
}

/// The key is absent at first.
fn rows_of_values(body: &[u8]) -> Vec<Row> {
    let (other, longest_type) = (bytes(body.len(), 2), longest_type());
    let json = format!(" {{\"a\": \"{}\"}}\n", "x".repeat(body.len()));
    vec![
        // Absent.
        row("GET", 404).problem("absent", "Key does not exist").tells_no("Evenkv-Outcome"),
        row("DELETE", 404).problem("absent", "Key does not exist").tells("Evenkv-Outcome", "not-applied"),
        row("GET", 404).with("If-None-Match", "*").problem("absent", "Key"),
        row("DELETE", 404).with("If-Match", "*").problem("absent", "Key"),
        row("PUT", 412)
            .body("x")
            .with("If-Match", "*")
            .problem("precondition-failed", "Precondition")
            .tells_no("ETag"),
        // Bytes with a type, without one, and JSON.
        put(201, body).with("Content-Type", "text/plain; charset=\"x y\""),
        row("GET", 200).answers("text/plain; charset=\"x y\"", body).tells("Accept-Ranges", "bytes"),
        put(200, &other),
        row("GET", 200).answers("application/octet-stream", other.clone()),
        put(200, body).with("Content-Type", longest_type.clone()),
        row("GET", 200).answers(&longest_type, body),
        put(200, json.as_bytes()).with("Content-Type", "Application/JSON; charset=utf-8"),
        row("GET", 200).answers("application/json", json.as_bytes()),
        put(200, b"not JSON").with("Content-Type", "application/ld+json"),
        row("GET", 200).answers("application/ld+json", "not JSON"),
        put(200, b"").with("Content-Type", "application/x-empty"),
        row("GET", 200).answers("application/x-empty", "").tells_no("Evenkv-Encoding"),
        put(200, b"\0\x01x").with("Content-Type", "a"),
        row("GET", 200).answers("a", &b"\0\x01x"[..]),
    ]
}

fn longest_type() -> String {
    format!("a/{}", "b".repeat(253))
}

/// Nothing of it changes the last of the values.
fn rows_of_what_is_wrong() -> Vec<Row> {
    let longest_type = longest_type();
    vec![
        row("PUT", 400)
            .body("x")
            .with("Content-Type", format!("{longest_type}b"))
            .problem("bad-request", "255"),
        row("PUT", 400)
            .body("x")
            .with("Content-Type", "a")
            .with("Content-Type", "b")
            .problem("bad-request", "Content-Type"),
        row("PUT", 400).with("Content-Type", "application/json").problem("bad-request", "not JSON"),
        row("PUT", 400)
            .body("{")
            .with("Content-Type", "application/json")
            .problem("bad-request", "line 1 column 1"),
        row("PUT", 400)
            .body(&b"\"\xff\""[..])
            .with("Content-Type", "application/json")
            .problem("bad-request", "not JSON"),
        row("PUT", 400)
            .body("1 2")
            .with("Content-Type", "application/json; a=b")
            .problem("bad-request", "not JSON"),
        row("PUT", 400).body("x").with("If-Match", "x").problem("bad-request", "If-Match cannot be read"),
        row("GET", 400).with("If-None-Match", "x").problem("bad-request", "If-None-Match"),
        row("PUT", 413)
            .body(bytes(LONGEST + 1, 3))
            .problem("too-large", "100000 bytes")
            .tells("Evenkv-Outcome", "not-applied"),
        row("POST", 405)
            .body("x")
            .problem("method-not-allowed", "GET, PUT, DELETE")
            .tells_no("Evenkv-Outcome"),
        row("GET", 200).answers("a", &b"\0\x01x"[..]),
    ]
}

fn rows_of_conditions(body: &[u8]) -> Vec<Row> {
    vec![
        put(412, b"y").with("If-None-Match", "*").unmet(),
        row("DELETE", 412).with("If-None-Match", "*").problem("precondition-failed", "Precondition failed"),
        row("GET", 412).with("If-Match", "\"x\"").problem("precondition-failed", "Precondition failed"),
        row("GET", 304).with("If-None-Match", "*").tells_no("Content-Length").tells_no("Content-Type"),
        row("HEAD", 304).with("If-None-Match", "*").tells_no("Content-Length").tells_no("Content-Type"),
        row("HEAD", 412).with("If-Match", "\"x\"").tells("Content-Type", "application/problem+json"),
        put(200, body).with("If-Match", "*").with("Content-Type", "a/b"),
    ]
}

fn rows_of_ranges(body: &[u8]) -> Vec<Row> {
    let length = body.len();
    let whole = format!("bytes 0-{}/{length}", length - 1);
    let last = format!("bytes {0}-{0}/{length}", length - 1);
    vec![
        row("GET", 206)
            .with("Range", "bytes=0-0")
            .answers("a/b", &body[..1])
            .tells("Content-Range", &format!("bytes 0-0/{length}")),
        row("GET", 206)
            .with("Range", "bytes=-1")
            .answers("a/b", &body[length - 1..])
            .tells("Content-Range", &last),
        row("GET", 206).with("Range", "bytes=0-").answers("a/b", body).tells("Content-Range", &whole),
        row("GET", 206)
            .with("Range", "bytes=0-99999999999999999999")
            .answers("a/b", body)
            .tells("Content-Range", &whole),
        row("GET", 416)
            .with("Range", format!("bytes={length}-"))
            .problem("range-not-satisfiable", "beyond")
            .tells("Content-Range", &format!("bytes */{length}")),
        row("GET", 416).with("Range", "bytes=-0").problem("range-not-satisfiable", "beyond"),
        row("GET", 200).with("Range", "bytes=0-0,-1").answers("a/b", body).tells_no("Content-Range"),
        row("GET", 200).with("Range", "bytes=1-0").answers("a/b", body),
        row("GET", 200).with("Range", "lines=0-0").answers("a/b", body),
        row("GET", 200).with("Range", "nonsense").answers("a/b", body),
        row("GET", 200).with("Range", "bytes=0-0").with("If-Range", "\"x\"").answers("a/b", body),
        row("GET", 200)
            .with("Range", "bytes=0-0")
            .with("If-Range", "Sat, 28 Nov 2026 19:43:31 GMT")
            .answers("a/b", body),
        row("GET", 304).with("Range", "bytes=0-0").with("If-None-Match", "*").tells_no("Content-Range"),
        row("HEAD", 200)
            .with("Range", "bytes=0-0")
            .tells("Content-Type", "a/b")
            .tells("Content-Length", &length.to_string())
            .tells_no("Content-Range"),
        row("GET", 412)
            .with("Range", "bytes=0-0")
            .with("If-Match", "\"x\"")
            .problem("precondition-failed", "P"),
    ]
}

impl Row {
    /// As the problem of a condition, whose answer has a body after all.
    fn unmet(mut self) -> Self {
        self.told.clear();
        self.problem("precondition-failed", "Precondition failed").tells("Evenkv-Outcome", "not-applied")
    }

    fn check(&self, place: &str, client: &mut Http, target: &str) {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = client.request(self.method, target, &headers, &self.body);
        let shown: String = answer.text().chars().take(300).collect();
        let shown_headers: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {value:.60}")).collect();
        let context = format!(
            "{place}: {} {target} {shown_headers:?}\n answered {} {shown}\n {:?}",
            self.method, answer.status, answer.headers
        );
        assert_eq!(answer.status, self.status, "{context}");
        for (name, wanted) in &self.told {
            assert_eq!(answer.header(name), wanted.as_deref(), "{name}: {context}");
        }
        match self.wrong {
            Some(wanted) => check_problem(&answer, self.method, wanted, &context),
            None => assert!(answer.body == self.answer, "the body: {context}"),
        }
        let has_tag = matches!((self.method, self.status), ("GET" | "HEAD" | "PUT", 200 | 201 | 206 | 304));
        assert!(answer.header("ETag").is_some() || !has_tag, "ETag: {context}");
    }
}

/// Problem details have these members and no others.
fn check_problem(answer: &Response, method: &str, (name, detail): (&str, &str), context: &str) {
    let problem = answer.json();
    assert_eq!(problem["type"], format!("tag:evenkv,2026:{name}"), "{context}");
    assert_eq!(problem["status"], answer.status, "{context}");
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{context}");
    assert!(problem["detail"].as_str().is_some_and(|said| said.contains(detail)), "{context}");
    let is_write = method == "PUT" || method == "DELETE";
    assert_eq!(problem.get("outcome").and_then(Value::as_str), answer.header("Evenkv-Outcome"), "{context}");
    assert_eq!(problem.get("outcome").is_some(), is_write, "{context}");
    let members = problem.as_object().expect("an object").len();
    assert_eq!(members, 4 + usize::from(is_write), "{context}");
}

fn check_rows(place: &str, client: &mut Http, target: &str) {
    for length in [1000, LONG, LARGE] {
        for row in rows(length) {
            row.check(&format!("{place}, {length} bytes"), client, target);
        }
    }
}

const LIMIT: (&str, &str) = ("MAX_VALUE_LENGTH", "100000");

#[test]
fn every_row_holds_at_a_single_node_and_through_a_follower() {
    let main = Node::single(&[LIMIT]);
    let follower = Node::follower(main.address(), &[]);
    check_rows("single", &mut main.http(), "/v1/kv/a");
    check_rows("follower", &mut follower.http(), "/v1/kv/b");
    check_crossing("single", &mut [main.http(), follower.http()], "c");
}

#[test]
fn every_row_holds_through_owner_and_others_of_a_cluster() {
    check_everywhere("cluster", &Cluster::with(3, &[LIMIT]));
}

#[test]
fn every_row_holds_through_leaders_replicas_and_others_of_a_replicated_cluster() {
    check_everywhere("replicated", &replicated(4, 2, &[LIMIT]));
}

fn check_everywhere(name: &str, cluster: &Cluster) {
    for (number, node) in cluster.nodes.iter().enumerate() {
        for key in 0..3 {
            let place = format!("{name}, node {number}, key {key}");
            check_rows(&place, &mut node.http(), &format!("/v1/kv/k{key}-{number}"));
        }
    }
    check_crossing(name, &mut cluster.clients(), "crossing");
}

/// It is the same pair in both interfaces, through whatever nodes.
fn check_crossing(place: &str, clients: &mut [Http], key: &str) {
    let (classic, v1) = (format!("/kv-store/keys/{key}"), format!("/v1/kv/{key}"));
    for length in [10, LONG, LARGE] {
        let text = json!(["ä", "x".repeat(length)]).to_string();
        for writer in 0..clients.len() {
            let put = clients[writer].put(&classic, format!("{{\"value\": {text} }}"));
            assert!(put.status < 300, "{place}: {}", put.text());
            for reader in clients.iter_mut() {
                let found = reader.get(&v1);
                assert_eq!(
                    (found.status, found.header("Content-Type")),
                    (200, Some("application/json")),
                    "{place}"
                );
                assert!(found.text() == text && found.header("ETag") == put.header("ETag"), "{place}");
            }
            let body = bytes(length, writer);
            let put = clients[writer].request("PUT", &v1, &[("Content-Type", "image/x")], &body);
            assert_eq!(put.status, 200, "{place}");
            let condition = [("If-Match", put.header("ETag").expect("a tag"))];
            for reader in clients.iter_mut() {
                let found = reader.request("GET", &classic, &condition, b"");
                assert_eq!(found.header("Evenkv-Encoding"), Some("base64"), "{place}: {}", found.status);
                let mut answer = found.json();
                answer.as_object_mut().expect("an object").remove("address");
                let value = answer["value"].as_str().expect("a text").to_owned();
                assert_eq!(decoded(&value), body, "{place}");
                answer["value"] = Value::Null;
                let wanted = json!({"doesExist": true, "message": "Retrieved successfully", "value": null});
                assert_eq!(answer, wanted, "{place}");
            }
            let put =
                clients[writer].request("PUT", &v1, &[("Content-Type", "application/json")], text.as_bytes());
            assert_eq!(put.status, 200, "{place}");
            for reader in clients.iter_mut() {
                let found = reader.get(&classic);
                assert!(found.text().contains(&format!("\"value\":{text}")), "{place}");
                assert_eq!(found.header("Evenkv-Encoding"), None, "{place}");
            }
            assert_eq!(clients[writer].delete(&classic).status, 200, "{place}");
            assert_eq!(clients[writer].get(&v1).status, 404, "{place}");
        }
    }
}

/// What a text in base64 stands for (RFC 4648, section 4).
fn decoded(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert!(text.len().is_multiple_of(4) && text.trim_end_matches('=').len() + 2 >= text.len());
    let digits = text.trim_end_matches('=').bytes();
    let digits = digits.map(|digit| DIGITS.iter().position(|known| *known == digit).expect("a digit"));
    let (mut out, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in digits {
        bits = bits << 6 | u32::try_from(digit).expect("six bits");
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
        }
    }
    out
}

#[test]
fn bytes_read_in_base64_as_rfc_4648_has_it() {
    let node = Node::single(&[]);
    let mut client = node.http();
    let table = [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("fooba", "Zm9vYmE="),
        ("foobar", "Zm9vYmFy"),
    ];
    for (body, wanted) in table {
        assert!(client.put("/v1/kv/a", body).status < 300);
        let found = client.get("/kvs/a");
        assert_eq!(found.json()["value"], wanted, "{body}");
        assert_eq!(found.header("Content-Length"), Some(found.body.len().to_string().as_str()));
    }
}

#[test]
fn any_key_is_the_same_in_both_interfaces() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let keys: [&[u8]; 8] = [b"/", b"..", b"a b+c", b"\0\xff", b"%", b"?#", b"v1/kv/a", "\u{e4}".as_bytes()];
    for node in [&main, &follower] {
        let mut client = node.http();
        for key in keys {
            let encoded = percent_encoded(key);
            let put = client.put(&format!("/v1/kv/{encoded}"), key);
            assert_eq!(put.status, 201, "{encoded}: {}", put.text());
            assert_eq!(client.get(&format!("/kvs/keys/{encoded}")).header("Evenkv-Encoding"), Some("base64"));
            assert_eq!(client.get(&format!("/v1/kv/{encoded}")).body, key);
            assert_eq!(client.delete(&format!("/kv-store/keys/{encoded}")).status, 200);
        }
    }
}

/// Target and headers of a PUT, its body, and what comes of it.
type Wrong<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str);

#[test]
fn checks_are_made_in_their_order_and_every_error_is_a_problem() {
    let settings = [LIMIT, ("MAX_KEY_LENGTH", "8")];
    let main = Node::single(&settings);
    let follower = Node::follower(main.address(), &[]);
    let (cluster, replicated) = (Cluster::with(3, &settings), replicated(3, 3, &settings));
    let nodes = [&main, &follower].into_iter().chain(&cluster.nodes).chain(&replicated.nodes);
    let too_large = vec![b'{'; LONGEST + 1];
    let json = ("Content-Type", "application/json");
    let (long_type, wrong_match) = ("x".repeat(256), ("If-Match", "x"));
    let table: [Wrong; 10] = [
        ("/v1/kv/123456789", &[json, wrong_match], &too_large, 400, "key-too-long"),
        ("/v1/kv/", &[json, wrong_match], &too_large, 400, "bad-request"),
        ("/v1/kv/%4", &[json, wrong_match], &too_large, 400, "bad-request"),
        ("/v1/kv/a", &[json, wrong_match], &too_large, 413, "too-large"),
        ("/v1/kv/a", &[("Content-Type", &long_type)], &too_large, 413, "too-large"),
        ("/v1/kv/a", &[json, wrong_match], b"{", 400, "bad-request"),
        ("/v1/kv/a?consistency=x", &[json], b"{", 400, "bad-request"),
        ("/v1/kv/a", &[json], b"{", 400, "bad-request"),
        ("/v1/nothing", &[], b"{", 404, "not-found"),
        ("/v1/kv/a", &[("Transfer-Encoding", "gzip")], b"", 400, "framing"),
    ];
    for node in nodes {
        for (target, headers, body, status, name) in table {
            let answer = node.http().request("PUT", target, headers, body);
            let context =
                format!("{} {target} {headers:?}: {} {}", node.address(), answer.status, answer.text());
            assert_eq!(answer.status, status, "{context}");
            assert_eq!(answer.header("Content-Type"), Some("application/problem+json"), "{context}");
            check_problem(&answer, "PUT", (name, ""), &context);
        }
        let mut client = node.http();
        let wrong = client.put("/v1/kv/a?consistency=x", b"{").json();
        assert!(wrong["detail"].as_str().is_some_and(|said| said.contains("consistency")), "{wrong}");
    }
}

#[test]
fn a_body_may_come_in_chunks_and_be_as_long_as_the_limit() {
    let main = Node::single(&[LIMIT]);
    let follower = Node::follower(main.address(), &[]);
    let (cluster, replicated) = (Cluster::with(3, &[LIMIT]), replicated(3, 3, &[LIMIT]));
    let nodes = [&main, &follower].into_iter().chain(&cluster.nodes).chain(&replicated.nodes);
    for (number, node) in nodes.enumerate() {
        let (mut client, target) = (node.http(), format!("/v1/kv/chunks-{number}"));
        let long_type = "t".repeat(255);
        let body = bytes(LONGEST, number);
        let headers = [("Content-Type", long_type.as_str()), ("Transfer-Encoding", "chunked")];
        let put = client.request("PUT", &target, &headers, &chunked(&body, 7000));
        assert_eq!(put.status, 201, "{}", put.text());
        let found = client.get(&target);
        assert!(found.body == body && found.header("Content-Type") == Some(&long_type), "{}", found.status);
        let longer = client.request("PUT", &target, &headers, &chunked(&bytes(LONGEST + 1, 0), 7000));
        assert_eq!(longer.status, 413);
    }
}

#[test]
fn a_write_that_is_named_is_done_once_whatever_its_type() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let (cluster, replicated) = (Cluster::of(3), replicated(3, 3, &[]));
    let nodes = [&main, &follower].into_iter().chain(&cluster.nodes).chain(&replicated.nodes);
    for (number, node) in nodes.enumerate() {
        let (mut client, target) = (node.http(), format!("/v1/kv/named-{number}"));
        let mut put = |name: &str, content_type: &str, body: &str| {
            let headers = [("Idempotency-Key", name), ("Content-Type", content_type)];
            let answer = client.request("PUT", &target, &headers, body.as_bytes());
            (answer.status, answer.header("ETag").map(str::to_owned))
        };
        let first = put("a", "text/plain", "1");
        assert_eq!(first.0, 201);
        assert_eq!(put("b", "text/plain", "2").0, 200);
        assert_eq!(put("a", "text/plain", "1"), first);
        assert_eq!(put("a", "text/html", "1").0, 422);
        assert_eq!(put("a", "application/json", "1").0, 422);
        assert_eq!(put("a", "text/plain", "3").0, 422);
        assert_eq!(client.get(&target).text(), "2");
    }
}

#[test]
fn an_old_read_is_marked_and_a_range_goes_by_the_tag_it_names() {
    let cluster = replicated(3, 3, &[]);
    for node in &cluster.nodes {
        let mut client = node.http();
        let put = client.put("/v1/kv/a", "0123456789");
        let tag = put.header("ETag").expect("a tag").to_owned();
        let if_range = |tag: &str| [("Range", "bytes=2-3".to_owned()), ("If-Range", tag.to_owned())];
        for (asked, status, body) in [
            (tag.clone(), 206, "23"),
            (format!("W/{tag}"), 200, "0123456789"),
            ("\"x\"".to_owned(), 200, "0123456789"),
        ] {
            let headers = if_range(&asked);
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = client.request("GET", "/v1/kv/a", &headers, b"");
            assert_eq!((answer.status, answer.text().as_str()), (status, body), "{asked}");
            assert_eq!(answer.header("ETag"), Some(tag.as_str()));
        }
        wait_until("the replica has it", START_DEADLINE, || {
            let answer = client.get("/v1/kv/a?consistency=stale");
            answer.header("Evenkv-Staleness-Ms").is_some() && answer.header("ETag") == Some(&tag)
        });
    }
}

#[test]
fn a_follower_without_its_main_and_a_node_without_a_leader_say_so_as_problems() {
    let mut main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    main.kill();
    let mut cluster = replicated(3, 3, &[("REQUEST_TIMEOUT_MS", "1000")]);
    for number in [1, 2] {
        cluster.nodes[number].kill();
    }
    for (node, name) in [(&follower, "main-down"), (&cluster.nodes[0], "unavailable")] {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = node.http().request(method, "/v1/kv/a", &[], b"");
            let context = format!("{method}: {} {}", answer.status, answer.text());
            assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")), "{context}");
            check_problem(&answer, method, (name, ""), &context);
        }
    }
}

/// The lengths of the values that are written while nodes come and go.
const LENGTHS: [usize; 8] = [1, 2, 100, 2_000, 3_000, 40_000, 300_000, 1 << 20];

/// A value that was acknowledged.
struct Put {
    target: String,
    content_type: String,
    body: Vec<u8>,
    tag: String,
}

/// Whether a write may be refused for a moment: its leader was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Never,
    ForAMoment,
}

/// So many keys each writer writes, over and over: what is read back at the end is bounded, however long it takes.
const KEYS: usize = 64;

/// Writes values of all lengths and types until it is told to stop, each once, and says what was acknowledged last of each key.
fn write_values(
    through: &[String],
    (writer, refused): (usize, Refused),
    stop: &AtomicBool,
    count: &AtomicUsize,
) -> Vec<Put> {
    let mut done = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) && number > 0 {
            break;
        }
        let content_type =
            if number % 5 == 0 { "application/json".to_owned() } else { format!("x/{writer}-{number}") };
        let length = LENGTHS[number % LENGTHS.len()];
        let body = if number % 5 == 0 { vec![b'7'; length] } else { bytes(length, writer * 1000 + number) };
        let target = format!("/v1/kv/value-{writer}-{}", number % KEYS);
        let name = format!("{writer}-{number}");
        let mut client = Http::new(&through[(writer + number) % through.len()]);
        let headers = [("Content-Type", content_type.as_str()), ("Idempotency-Key", name.as_str())];
        // What could not be done is done again, under its name.
        let mut tag = None;
        wait_until("it is written", allowed(RECOVERY) * 2, || {
            let Ok(answer) = client.try_request("PUT", &target, &headers, &body) else {
                client = Http::new(&through[(writer + number + 1) % through.len()]);
                return false;
            };
            let is_done = answer.status == if number < KEYS { 201 } else { 200 };
            let is_taken = is_done || refused == Refused::ForAMoment && answer.status == 503;
            assert!(is_taken, "{target}: {} {}", answer.status, answer.text());
            tag = answer.header("ETag").map(str::to_owned);
            is_done
        });
        let tag = tag.expect("a tag");
        done.insert(number % KEYS, Put { target, content_type, body, tag });
        count.fetch_add(1, Ordering::Relaxed);
    }
    done.into_values().collect()
}

fn check_values(through: &[String], values: &[Put]) {
    for (number, value) in values.iter().enumerate() {
        let mut client = Http::new(&through[number % through.len()]);
        let mut found = None;
        wait_until("it can be read", allowed(RECOVERY), || {
            let answer = client.get(&value.target);
            let is_served = answer.status != 503;
            found = Some(answer);
            is_served
        });
        let found = found.expect("waited for");
        let context = format!("{} of {} bytes: {}", value.target, value.body.len(), found.status);
        assert!(found.status == 200 && found.body == value.body, "{context}");
        assert_eq!(found.header("Content-Type"), Some(value.content_type.as_str()), "{context}");
        assert_eq!(found.header("ETag"), Some(value.tag.as_str()), "{context}");
    }
}

/// Writes while something is done, and checks everything afterwards.
fn write_while(through: &[String], refused: Refused, work: impl FnOnce(&dyn Fn(usize))) -> Vec<Put> {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (stop, count) = (&stop, &count);
                scope.spawn(move || write_values(through, (writer, refused), stop, count))
            })
            .collect();
        let wait_more = |more: usize| {
            let before = count.load(Ordering::Relaxed);
            wait_until("more is written", allowed(RECOVERY) * 3, || {
                count.load(Ordering::Relaxed) >= before + more
            });
        };
        work(&wait_more);
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer failed")).collect()
    })
}

#[test]
fn values_of_any_type_go_along_with_a_view_change() {
    let cluster = Cluster::of(4);
    let all = cluster.addresses();
    let values = write_while(&all, Refused::Never, |wait_more| {
        wait_more(24);
        for view in [&all[..2], &all[1..], &all[..]] {
            let changed = ask(&all[1], view);
            assert_eq!(changed.status, 200, "{}", changed.text());
            assert_eq!(changed.json()["checksums-match"], true);
            wait_more(8);
        }
    });
    check_values(&all, &values);
}

/// Nobody takes a replica that was just added for one of an older version.
#[test]
fn values_of_any_type_are_taken_while_replicas_come_and_go() {
    let cluster = replicated(4, 2, &[]);
    let all = cluster.addresses();
    let values = write_while(&all, Refused::Never, |wait_more| {
        wait_more(8);
        for (view, factor) in [(&all[..3], 3), (&all[1..], 3), (&all[..], 2), (&all[..], 4)] {
            let changed = ask_with(&all[1], &[], &json!({"view": view, "repl-factor": factor}));
            assert_eq!(changed.status, 200, "{}", changed.text());
            wait_more(8);
        }
    });
    wait_agreed(&all[0]);
    check_values(&all, &values);
}

#[test]
fn values_of_any_type_outlive_their_leaders() {
    let mut cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let values = write_while(&all, Refused::ForAMoment, |wait_more| {
        for _ in 0..3 {
            wait_more(16);
            let leader = wait_leader(&all[0], "1", |_| true);
            let number = all.iter().position(|node| *node == leader).expect("a node");
            cluster.nodes[number].kill();
            wait_more(8);
            restart_ready(&mut cluster.nodes[number]);
        }
    });
    wait_agreed(&all[0]);
    check_values(&all, &values);
}
