//! What `API_V1.md` says of both interfaces and no table of the other tests shows: line by line, against real processes in every role.

mod support;

use serde_json::{Value, json};
use support::cluster::Cluster;
use support::http::{Http, Response, percent_encoded};
use support::node::Node;
use support::replicated::replicated;
use support::{START_DEADLINE, wait_until};

type Headers<'a> = &'a [(&'a str, &'a str)];

/// A line: what is asked of which target, and what is answered.
struct Line<'a> {
    method: &'a str,
    target: String,
    headers: Headers<'a>,
    body: &'a [u8],
    status: u16,
    /// Headers that the answer has, with their values, or whose values are told nowhere.
    told: &'a [(&'a str, Told<'a>)],
}

enum Told<'a> {
    Is(&'a str),
    Any,
    No,
}

use Told::{Any, Is, No};

fn line(method: &str, target: impl Into<String>, status: u16) -> Line<'_> {
    Line { method, target: target.into(), headers: &[], body: b"", status, told: &[] }
}

impl<'a> Line<'a> {
    fn with(self, headers: Headers<'a>) -> Self {
        Self { headers, ..self }
    }

    fn body(self, body: &'a [u8]) -> Self {
        Self { body, ..self }
    }

    fn tells(self, told: &'a [(&'a str, Told<'a>)]) -> Self {
        Self { told, ..self }
    }

    fn check(&self, place: &str, client: &mut Http) -> Response {
        let Self { method, target, headers, body, status, told } = self;
        let answer = client.request(method, target, headers, body);
        let context = format!(
            "{place}: {method} {target} {headers:?}\n answered {} {:.300} {:?}",
            answer.status,
            answer.text(),
            answer.headers
        );
        assert_eq!(answer.status, *status, "{context}");
        for (name, wanted) in *told {
            match wanted {
                Is(value) => assert_eq!(answer.header(name), Some(*value), "{name}: {context}"),
                Any => assert!(answer.header(name).is_some(), "{name}: {context}"),
                No => assert_eq!(answer.header(name), None, "{name}: {context}"),
            }
        }
        answer
    }
}

fn check_all(place: &str, client: &mut Http, lines: &[Line]) {
    for line in lines {
        line.check(place, client);
    }
}

const NOT_APPLIED: (&str, Told) = ("Evenkv-Outcome", Is("not-applied"));
const BARE: [(&str, Told); 3] = [("ETag", Any), ("Content-Length", No), ("Content-Type", No)];

/// Section 1: HEAD of the first interface under conditions, and how long what is there is.
fn check_head(place: &str, client: &mut Http, key: &str) {
    let (classic, v1) = (format!("/kv-store/keys/{key}"), format!("/v1/kv/{key}"));
    let text: Headers = &[("Content-Type", "text/plain")];
    check_all(
        place,
        client,
        &[
            line("HEAD", &classic, 404).tells(&[("Content-Type", Is("application/json")), ("ETag", No)]),
            line("HEAD", &classic, 404).with(&[("If-Match", "*")]),
            line("HEAD", &v1, 404).tells(&[("Content-Type", Is("application/problem+json"))]),
            line("HEAD", &v1, 404).with(&[("If-None-Match", "*")]),
            line("PUT", &v1, 201).with(text).body(b"12345"),
            line("HEAD", &classic, 200).tells(&[("ETag", Any), ("Evenkv-Encoding", Is("base64"))]),
            line("HEAD", &v1, 200).tells(&[
                ("ETag", Any),
                ("Content-Length", Is("5")),
                ("Content-Type", Is("text/plain")),
                ("Accept-Ranges", Is("bytes")),
            ]),
            line("HEAD", &classic, 304).with(&[("If-None-Match", "*")]).tells(&BARE),
            line("HEAD", &classic, 412).with(&[("If-Match", "\"x\"")]).tells(&[("ETag", Any)]),
            line("HEAD", &classic, 400).with(&[("If-Match", "x")]),
            line("HEAD", &v1, 400).with(&[("If-Match", "x")]),
        ],
    );
}

/// Section 1: lists, weak tags and precedence where the value is the body.
fn check_conditions(place: &str, client: &mut Http, key: &str) {
    let target = format!("/v1/kv/{key}");
    let put = |client: &mut Http, body: &[u8]| {
        let answer = client.put(&target, body);
        assert!(answer.status < 300, "{place}: {}", answer.text());
        answer.header("ETag").expect("a tag").to_owned()
    };
    let before = put(client, b"before");
    let now = put(client, b"now");
    let (weak, list) = (format!("W/{now}"), format!("\"x\", W/{now} ,{before},{now}"));
    let of = |name: &'static str, value: &str| [(name, value.to_owned())];
    let rows = [
        ("GET", of("If-Match", &now), 200),
        ("GET", of("If-Match", &list), 200),
        ("GET", of("If-Match", &weak), 412),
        ("GET", of("If-Match", &before), 412),
        ("GET", of("If-None-Match", &now), 304),
        ("GET", of("If-None-Match", &weak), 304),
        ("GET", of("If-None-Match", &list), 304),
        ("GET", of("If-None-Match", &before), 200),
        ("HEAD", of("If-None-Match", &weak), 304),
        ("PATCH", of("If-Match", &weak), 412),
        ("PATCH", of("If-Match", &before), 412),
        ("PATCH", of("If-Match", "x"), 400),
        ("PATCH", of("If-None-Match", &list), 412),
        ("PATCH", of("If-None-Match", &before), 204),
        ("PATCH", of("If-Match", &list), 204),
        ("PUT", of("If-None-Match", &weak), 412),
        ("PUT", of("If-Match", &weak), 412),
        ("DELETE", of("If-Match", &weak), 412),
        ("DELETE", of("If-None-Match", &weak), 412),
        ("DELETE", of("If-Match", &list), 204),
        ("PATCH", of("If-Match", "*"), 404),
        ("PATCH", of("If-None-Match", "*"), 404),
    ];
    for (method, headers, status) in &rows {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let query = if *method == "PATCH" { "?ttl=300" } else { "" };
        let answer = line(method, format!("{target}{query}"), *status)
            .with(&headers)
            .body(if *method == "PUT" { &b"now"[..] } else { b"" })
            .check(place, client);
        if *status == 412 {
            assert_eq!(answer.header("ETag"), Some(now.as_str()), "{place}: {method} {headers:?}");
        }
    }
    // If-Match counts first.
    put(client, b"again");
    let both: Headers = &[("If-Match", "\"x\""), ("If-None-Match", "*")];
    line("GET", &target, 412).with(both).check(place, client);
    line("DELETE", &target, 204).check(place, client);
}

/// Section 1: a name belongs to one key, and there to one method, body, condition and time to live. It is looked for before the condition.
fn check_names(place: &str, client: &mut Http, key: &str) {
    let (target, other) = (format!("/v1/kv/{key}"), format!("/v1/kv/other-{key}"));
    let named: Headers = &[("Idempotency-Key", "n")];
    let conditional: Headers = &[("Idempotency-Key", "n"), ("If-None-Match", "*")];
    let unmet: Headers = &[("Idempotency-Key", "unmet"), ("If-Match", "\"x\"")];
    let touch = format!("{target}?ttl=300");
    let lasting = format!("{target}?ttl=300");
    check_all(
        place,
        client,
        &[
            line("PUT", &target, 201).with(named).body(b"1"),
            line("PUT", &target, 201).with(named).body(b"1"),
            // Another body, time to live, method, condition: nothing is done, though the condition would not hold either.
            line("PUT", &target, 422).with(named).body(b"2").tells(&[NOT_APPLIED]),
            line("PUT", &lasting, 422).with(named).body(b"1").tells(&[NOT_APPLIED]),
            line("DELETE", &target, 422).with(named).tells(&[NOT_APPLIED]),
            line("PATCH", &touch, 422).with(named).tells(&[NOT_APPLIED]),
            line("PUT", &target, 422).with(conditional).body(b"1").tells(&[NOT_APPLIED]),
            line("GET", &target, 200).with(named).tells(&[("Evenkv-TTL", No)]),
            // On another key it is another name.
            line("PUT", &other, 201).with(named).body(b"2"),
            // What was not met is not met when it is sent again, whatever is there by then.
            line("PATCH", &touch, 412).with(unmet).tells(&[NOT_APPLIED]),
            line("PATCH", &touch, 412).with(unmet).tells(&[NOT_APPLIED]),
            line("DELETE", &target, 204),
            line("PATCH", &touch, 412).with(unmet).tells(&[NOT_APPLIED]),
            line("DELETE", &other, 204).with(&[("Idempotency-Key", "gone")]),
            line("PUT", &other, 201).body(b"3"),
            line("DELETE", &other, 204).with(&[("Idempotency-Key", "gone")]),
            line("DELETE", &other, 204),
        ],
    );
}

/// Section 2: the bounds, the header where a time is changed, and that a PUT without one clears it.
fn check_times(place: &str, client: &mut Http, key: &str) {
    let target = format!("/v1/kv/{key}");
    let query = |query: &str| format!("{target}?ttl={query}");
    let by_header: Headers = &[("Evenkv-TTL", "200")];
    check_all(
        place,
        client,
        &[
            line("PATCH", &target, 404).with(by_header),
            line("PUT", query("315360000.000"), 201).body(b"1"),
            line("GET", &target, 200).tells(&[("Evenkv-TTL", Any)]),
            line("GET", &target, 206).with(&[("Range", "bytes=0-0")]).tells(&[("Evenkv-TTL", Any)]),
            line("PUT", &target, 200).body(b"1"),
            line("GET", &target, 200).tells(&[("Evenkv-TTL", No)]),
            line("PUT", query("315360000.001"), 400).body(b"1").tells(&[NOT_APPLIED]),
            line("PUT", query("0.0009"), 400).body(b"1"),
            line("PUT", query("5s"), 400).body(b"1"),
            line("PUT", query("none"), 400).body(b"1"),
            line("PUT", query("5"), 400).with(&[("Evenkv-TTL", "6")]).body(b"1"),
            line("PATCH", &target, 204).with(by_header).tells(&[("ETag", Any)]),
            line("HEAD", &target, 200).tells(&[("Evenkv-TTL", Any)]),
            line("PATCH", query("200"), 204).with(by_header),
            line("PATCH", query("none"), 400).with(by_header).tells(&[NOT_APPLIED]),
            line("PATCH", &target, 204).with(&[("Evenkv-TTL", "none")]),
            line("GET", &target, 200).tells(&[("Evenkv-TTL", No)]),
            line("PUT", query("0.001"), 200).body(b"1"),
        ],
    );
    wait_until("it goes", START_DEADLINE, || client.get(&target).status == 404);
}

/// The pairs of all shards, as the view counts them.
fn counted(client: &mut Http) -> u64 {
    let view = client.get("/kv-store/view").json();
    let shards = view["shards"].as_array().expect("shards").iter();
    shards.map(|shard| shard["key-count"].as_u64().unwrap_or_default()).sum()
}

/// Section 2: what has expired is in no count, listing, export, checksum or batch, and may be created.
fn check_expired(place: &str, client: &mut Http, key: &str) {
    let before = (counted(client), content(client));
    let prefix = format!("ends-{key}%2F");
    let ends = format!("ends-{key}/a");
    let target = format!("/v1/kv/{}", percent_encoded(ends.as_bytes()));
    line("PUT", format!("{target}?ttl=0.1"), 201).body(b"1").check(place, client);
    wait_until("it goes", START_DEADLINE, || client.get(&target).status == 404);
    assert_eq!(
        client.get(&format!("/v1/kv?prefix={prefix}&count=true")).json(),
        json!({"count": 0}),
        "{place}"
    );
    assert_eq!(client.get(&format!("/v1/kv?prefix={prefix}")).json()["keys"], json!([]), "{place}");
    let exported = client.get(&format!("/v1/export?prefix={prefix}")).text();
    assert!(exported.starts_with("{\"end\":true,\"keys\":0,"), "{place}: {exported}");
    let got =
        client.request("POST", "/v1/batch", &[], json!({"op": "get", "key": ends}).to_string().as_bytes());
    assert!(got.text().contains("\"status\":404"), "{place}: {}", got.text());
    assert_eq!(
        client.delete(&format!("/v1/kv?prefix={prefix}")).json(),
        json!({"deleted": 0, "more": false})
    );
    // A leader may change, and what it counts may be heard a little later.
    wait_until("it is in no count and no checksum", START_DEADLINE, || {
        before == (counted(client), content(client))
    });
    line("PUT", &target, 201).with(&[("If-None-Match", "*")]).check(place, client);
    line("DELETE", &target, 204).check(place, client);
}

/// The checksum over what is there; nothing while an audit is disturbed.
fn content(client: &mut Http) -> Option<Value> {
    let audit = client.get("/kv-store/audit").json();
    (audit["ok"] == true).then(|| audit["content-checksum"].clone())
}

/// Section 3: parts by the tag that they go by; types.
fn check_values(place: &str, client: &mut Http, key: &str) {
    let target = format!("/v1/kv/{key}");
    let put = line("PUT", &target, 201).with(&[("Content-Type", "")]).body(b"12345").check(place, client);
    let tag = put.header("ETag").expect("a tag").to_owned();
    let weak = format!("W/{tag}");
    let by = |if_range: &'static str| [("Range", "bytes=1-2"), ("If-Range", if_range)];
    check_all(
        place,
        client,
        &[
            line("GET", &target, 200).tells(&[("Content-Type", Is("application/octet-stream"))]),
            line("GET", &target, 206).with(&[("Range", "bytes=1-2"), ("If-Range", &tag)]).tells(&[
                ("Content-Range", Is("bytes 1-2/5")),
                ("Content-Length", Is("2")),
                ("ETag", Is(&tag)),
            ]),
            line("GET", &target, 200).with(&[("Range", "bytes=1-2"), ("If-Range", &weak)]),
            line("GET", &target, 200).with(&by("\"x\"")).tells(&[("Content-Length", Is("5"))]),
            line("GET", &target, 416)
                .with(&[("Range", "bytes=5-")])
                .tells(&[("Content-Range", Is("bytes */5")), ("ETag", Is(&tag))]),
            // A range is a part of what GET answers, and of nothing else.
            line("PUT", &target, 200).with(&[("Range", "bytes=0-0")]).body(b"12"),
            line("GET", &target, 200).tells(&[("Content-Length", Is("2"))]),
            line("DELETE", &target, 204).with(&[("Range", "bytes=0-0")]),
        ],
    );
}

/// The order of checks where a time is changed, and what the limit is.
fn check_order(place: &str, client: &mut Http) {
    let long = format!("/v1/kv/{}", "k".repeat(1025));
    for (method, query) in [("GET", "?consistency=x"), ("PUT", "?ttl=x"), ("DELETE", ""), ("PATCH", "?ttl=x")]
    {
        let answer = line(method, format!("{long}{query}"), 400)
            .with(&[("If-Match", "x")])
            .tells(&[("Evenkv-Limit", Is("1024"))])
            .check(place, client);
        assert_eq!(answer.json()["type"], "tag:evenkv,2026:key-too-long", "{place}: {method}");
    }
    let wrong = [("PATCH", "?ttl=x", "ttl"), ("GET", "?consistency=x", "consistency")];
    for (method, query, said) in wrong {
        let answer = line(method, format!("/v1/kv/absent{query}"), 400).check(place, client);
        assert!(
            answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(said)),
            "{}",
            answer.text()
        );
    }
}

/// Section 4: a page has 1,000 keys unless something else is said; what is not said to be taken is not sent line by line.
fn check_listing(place: &str, client: &mut Http, key: &str) {
    let lines: Vec<String> = (0..1001)
        .map(|number| {
            json!({"op": "put", "key": format!("many-{key}/{number:04}"), "value": number}).to_string()
        })
        .collect();
    let put = client.request("POST", "/v1/batch", &[], lines.join("\n").as_bytes());
    assert_eq!(put.text().matches("\"status\":201").count(), 1001, "{place}");
    let page = client.get(&format!("/v1/kv?prefix=many-{key}/")).json();
    assert_eq!(page["keys"].as_array().map(Vec::len), Some(1000), "{place}");
    assert_eq!(page["next"], format!("many-{key}%2F0999"), "{place}");
    let accept = "application/x-ndjson;q=0, application/json";
    let refused =
        client.request("GET", &format!("/v1/kv?prefix=many-{key}/&limit=1"), &[("Accept", accept)], b"");
    assert_eq!(refused.header("Content-Type"), Some("application/json"), "{place}");
    // It may take longer than a request may.
    let mut deleted = 0;
    wait_until("all are deleted", START_DEADLINE, || {
        let answer = client.delete(&format!("/v1/kv?prefix=many-{key}/")).json();
        deleted += answer["deleted"].as_u64().expect("a number");
        answer["more"] == false
    });
    assert_eq!(deleted, 1001, "{place}");
}

/// All lines, at a node.
fn check(place: &str, client: &mut Http, key: &str) {
    for number in 0..2 {
        let key = format!("{key}-{number}");
        check_head(place, client, &format!("head-{key}"));
        check_conditions(place, client, &format!("condition-{key}"));
        check_names(place, client, &format!("name-{key}"));
        check_times(place, client, &format!("time-{key}"));
        check_values(place, client, &format!("value-{key}"));
    }
    check_expired(place, client, key);
    check_listing(place, client, key);
    check_order(place, client);
}

#[test]
fn every_line_holds_at_a_single_node_and_through_a_follower() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    check("single", &mut main.http(), "single");
    check("follower", &mut follower.http(), "follower");
}

#[test]
fn every_line_holds_through_owner_and_others_of_a_cluster() {
    check_everywhere("cluster", &Cluster::of(3));
}

#[test]
fn every_line_holds_through_leaders_replicas_and_others_of_a_replicated_cluster() {
    check_everywhere("replicated", &replicated(4, 2, &[]));
}

fn check_everywhere(name: &str, cluster: &Cluster) {
    for (number, node) in cluster.nodes.iter().enumerate() {
        check(&format!("{name}, node {number}"), &mut node.http(), &format!("{name}{number}"));
    }
}

#[test]
fn a_batch_has_10000_lines_unless_more_are_allowed() {
    let node = Node::single(&[]);
    let mut client = node.http();
    let lines = |count: usize| vec![r#"{"op":"get","key":"a"}"#; count].join("\n");
    assert_eq!(client.request("POST", "/v1/batch", &[], lines(10_000).as_bytes()).status, 200);
    let refused = client.request("POST", "/v1/batch", &[], lines(10_001).as_bytes());
    assert_eq!((refused.status, refused.header("Evenkv-Outcome")), (413, Some("not-applied")));
}

/// Section 4: where the time for a request ends a deletion before its end, the answer says so, and asked again it goes on.
#[test]
fn a_deletion_that_takes_longer_than_a_request_may_says_that_there_is_more() {
    let cluster = Cluster::with(2, &[("REQUEST_TIMEOUT_MS", "200")]);
    let mut client = cluster.nodes[0].http();
    let (mut keys, mut deleted, mut rounds) = (0, 0, 0);
    for part in 0..40 {
        let put =
            |number: usize| json!({"op": "put", "key": format!("k{part}-{number}"), "value": 1}).to_string();
        let lines: Vec<String> = (0..1000).map(put).collect();
        let answer = client.request("POST", "/v1/batch", &[], lines.join("\n").as_bytes());
        keys += answer.text().matches("\"status\":201").count();
    }
    loop {
        let answer = client.delete("/v1/kv?prefix=k");
        if answer.status == 503 {
            continue;
        }
        assert_eq!(answer.status, 200, "{}", answer.text());
        deleted += answer.json()["deleted"].as_u64().expect("a number");
        rounds += 1;
        if answer.json()["more"] == false {
            break;
        }
    }
    assert!(rounds > 1, "{keys} keys were deleted in one request");
    // What was deleted when a shard could not be asked in time was not told.
    assert!(deleted <= keys as u64, "{deleted} of {keys}");
    assert_eq!(client.get("/v1/kv?prefix=k&count=true").json(), json!({"count": 0}));
}
