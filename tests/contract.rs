//! The HTTP contract, row by row, against real processes, under `/kv-store` and under `/kvs`.

#[path = "contract/rows.rs"]
mod rows;
mod support;

use std::panic::{self, AssertUnwindSafe};

use rows::{Address, MAX_VALUE_LENGTH, Row, Want, Where};
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::{START_DEADLINE, ports, wait_until};

const PREFIXES: [&str; 2] = ["/kv-store", "/kvs"];
const METHODS: [&str; 3] = ["PUT", "GET", "DELETE"];

fn limit() -> String {
    MAX_VALUE_LENGTH.to_string()
}

/// Sends a row's request and compares the whole answer. `owner` is the address that must be named.
fn check(row: &Row, place: &str, target: &str, client: &mut Http, owner: Option<&str>) {
    let answer = client.request(row.method, target, &row.request_headers, &row.body);
    let shown_target: String = target.chars().take(120).collect();
    let shown_answer: String = answer.text().chars().take(300).collect();
    let context = format!(
        "{}, {place}: {} {shown_target}\n answered {} {shown_answer}\n {:?}",
        row.name, row.method, answer.status, answer.headers
    );
    assert_eq!(answer.status, row.status, "status: {context}");
    for (name, part) in &row.headers {
        let value = answer.header(name).unwrap_or_else(|| panic!("no {name}: {context}"));
        assert!(value.contains(part), "{name} without {part}: {context}");
    }
    check_outcome(row.method, &answer, &context);
    let media_type = answer.header("Content-Type").unwrap_or_default();
    assert!(media_type.starts_with("application/json"), "Content-Type: {context}");

    let mut body = body_as_json(&row.want, &answer, &context);
    let fields = body.as_object_mut().unwrap_or_else(|| panic!("no object: {context}"));
    let address = fields.remove("address");
    if row.address == Address::ByOwner {
        assert_eq!(address, owner.map(Value::from), "address: {context}");
    }
    match fields.remove("causal-context") {
        Some(causal) => assert!(row.causal_context && causal.is_object(), "causal-context: {context}"),
        None => assert!(!row.causal_context, "no causal-context: {context}"),
    }
    match &row.want {
        Want::Json(expected) => {
            let expected: Value = serde_json::from_str(expected).expect("a row holds valid JSON");
            assert_eq!(body, expected, "{context}");
        }
        Want::Found(_) => {
            let expected = json!({"doesExist": true, "message": "Retrieved successfully", "value": null});
            assert_eq!(body, expected, "{context}");
        }
        Want::Error(parts) => {
            let error = fields.remove("error").unwrap_or_else(|| panic!("no error: {context}"));
            let error = error.as_str().unwrap_or_else(|| panic!("error is no string: {context}"));
            for part in parts {
                assert!(error.to_lowercase().contains(part), "{part:?} is not in the error: {context}");
            }
            if row.status == 400 && row.name.starts_with("a body") {
                assert!(error.contains(|c: char| c.is_ascii_digit()), "it does not say where: {context}");
            }
            assert_ne!(error, "Value is missing", "{context}");
            assert_eq!(body, json!({"message": format!("Error in {}", row.method)}), "{context}");
        }
    }
}

/// Every error to a PUT or DELETE says whether it was applied; one that was refused says it was not.
fn check_outcome(method: &str, answer: &Response, context: &str) {
    if answer.status >= 400 && (method == "PUT" || method == "DELETE") {
        assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "Evenkv-Outcome: {context}");
    }
}

/// The body; of a found value the bytes are compared and `null` stands in its place, since not every
/// value that a node must keep can be read by the JSON reader of these tests.
fn body_as_json(want: &Want, answer: &Response, context: &str) -> Value {
    let text = answer.text();
    let text = match want {
        Want::Found(value) => {
            let (start, rest) = text.split_once("\"value\"").unwrap_or_else(|| panic!("no value: {context}"));
            let found = rest.trim_start().strip_prefix(':').unwrap_or_default().trim_start();
            let end = found.strip_prefix(value.as_str());
            let end = end.unwrap_or_else(|| panic!("not the bytes of the value: {context}"));
            assert!(end.starts_with([',', '}']), "more than the bytes of the value: {context}");
            format!("{start}\"value\":null{end}")
        }
        Want::Json(_) | Want::Error(_) => text,
    };
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {context}"))
}

/// The target of a row for one run.
fn target_of(row: &Row, prefix: &str, run: &str) -> String {
    format!("{prefix}{}", row.path.replace("{k}", run))
}

/// Runs one check after the other, so that one broken row does not hide the others; each says what is wrong
/// when it fails.
struct Tally {
    failed: Vec<String>,
}

impl Tally {
    fn run(&mut self, name: &str, check: impl FnOnce()) {
        if panic::catch_unwind(AssertUnwindSafe(check)).is_err() {
            self.failed.push(name.to_owned());
        }
    }

    fn finish(self) {
        assert!(self.failed.is_empty(), "{} rows failed, see above: {:#?}", self.failed.len(), self.failed);
    }
}

fn run_rows_on_one_node(place: &str, node: &Node) {
    let mut tally = Tally { failed: Vec::new() };
    for prefix in PREFIXES {
        let mut client = node.http();
        for row in rows::rows().iter().filter(|row| row.place != Where::SeveralNodes) {
            let target = target_of(row, prefix, &prefix[1..]);
            tally.run(row.name, || check(row, place, &target, &mut client, None));
        }
    }
    tally.finish();
}

#[test]
fn a_single_node_answers_every_row() {
    let node = Node::single(&[("MAX_VALUE_LENGTH", &limit())]);
    run_rows_on_one_node("single node", &node);
}

#[test]
fn a_view_of_only_itself_is_a_single_node() {
    let address = ports::free_address();
    let node = Node::start(&address, &[("VIEW", &address), ("MAX_VALUE_LENGTH", &limit())]);
    node.wait_ready();
    run_rows_on_one_node("view of one", &node);
}

#[test]
fn a_follower_passes_every_row_on() {
    let main = Node::single(&[("MAX_VALUE_LENGTH", &limit())]);
    let follower = Node::follower(main.address(), &[]);
    run_rows_on_one_node("follower", &follower);
}

#[test]
fn every_node_of_a_cluster_answers_every_row() {
    run_rows_on(&Cluster::with(3, &[("MAX_VALUE_LENGTH", &limit())]));
}

#[test]
fn nodes_that_are_set_otherwise_answer_every_row_by_the_limits_of_the_founder() {
    let limit = limit();
    run_rows_on(&Cluster::each(&[
        &[("MAX_VALUE_LENGTH", &limit)],
        &[("MAX_KEY_LENGTH", "8"), ("MAX_VALUE_LENGTH", "10")],
        &[("MAX_KEY_LENGTH", "65536"), ("MAX_VALUE_LENGTH", "50000000")],
    ]));
}

fn run_rows_on(cluster: &Cluster) {
    let mut clients = cluster.clients();
    let mut tally = Tally { failed: Vec::new() };
    for prefix in PREFIXES {
        for distance in 0..clients.len() {
            let place = format!("cluster, {distance} nodes after the owner");
            let run = format!("{}{distance}", &prefix[1..]);
            for row in rows::rows().iter().filter(|row| row.place != Where::OneNodeView) {
                let target = target_of(row, prefix, &run);
                let owner = match row.address {
                    Address::ByOwner => agreed_owner(cluster, &mut clients, &target),
                    Address::NotSaid => 0,
                };
                let named = (distance > 0).then(|| cluster.nodes[owner].address());
                let asked = (owner + distance) % clients.len();
                tally.run(row.name, || check(row, &place, &target, &mut clients[asked], named));
            }
        }
    }
    tally.finish();
}

/// The owner of a key: the one node that names nobody, while all others name it.
fn agreed_owner(cluster: &Cluster, clients: &mut [Http], target: &str) -> usize {
    let named: Vec<Option<String>> = clients
        .iter_mut()
        .map(|client| {
            let answer = client.get(target);
            // Only the field counts here, and the value may be one that no JSON reader takes.
            let text = answer.text();
            let (_, rest) = text.split_once("\"address\"")?;
            rest.split('"').nth(1).map(str::to_owned)
        })
        .collect();
    let owner = named.iter().position(Option::is_none).expect("the owner does not name itself");
    let address = cluster.nodes[owner].address();
    for (asked, name) in named.iter().enumerate() {
        let expected = (asked != owner).then_some(address);
        assert_eq!(name.as_deref(), expected, "node {asked} on the owner of {target}");
    }
    owner
}

/// What `key-count`, `shards`, `shards/<id>` and `view` say on a node of the shard `own`, in a view of these
/// addresses with these counts.
fn check_view(client: &mut Http, addresses: &[String], own: usize, counts: &[u64]) {
    let ids: Vec<String> = (1..=addresses.len()).map(|id| id.to_string()).collect();
    for prefix in PREFIXES {
        let mut ask = |path: &str| {
            let answer = client.get(&format!("{prefix}/{path}"));
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            answer
        };
        let count = json!({
            "message": "Key count retrieved successfully", "key-count": counts[own], "shard-id": ids[own]
        });
        assert_eq!(ask("key-count").json(), count);
        assert_eq!(
            ask("shards").json(),
            json!({
                "message": "Shard membership retrieved successfully", "shards": ids
            })
        );
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(
                ask(&format!("shards/{id}")).json(),
                json!({
                    "message": "Shard information retrieved successfully",
                    "shard-id": id, "key-count": counts[number], "replicas": [addresses[number]]
                })
            );
        }
        check_view_answer(&ask("view"), addresses, counts);
    }
}

fn check_view_answer(answer: &Response, addresses: &[String], counts: &[u64]) {
    let view = answer.json();
    let epoch = view["epoch"].as_u64().expect("the epoch is a number");
    let tag = answer.header("ETag").expect("a view has an ETag");
    assert_eq!(tag.trim_matches('"'), epoch.to_string());
    assert!(view["cluster-id"].is_string(), "{view}");
    assert_eq!(view["repl-factor"], 1);
    let mut names: Vec<&String> = view.as_object().expect("an object").keys().collect();
    names.sort();
    assert_eq!(names, ["cluster-id", "epoch", "repl-factor", "shards"]);

    let shards = view["shards"].as_array().expect("the shards are a list");
    assert_eq!(shards.len(), addresses.len());
    let mut ranges = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!(shard["shard-id"], (number + 1).to_string());
        assert_eq!(shard["key-count"], counts[number]);
        assert_eq!(shard["replicas"], json!([addresses[number]]));
        assert_eq!(shard["leader"], addresses[number].as_str());
        for range in shard["ranges"].as_array().expect("the ranges are a list") {
            let bound = |name: &str| range[name].as_str().expect("a bound is a string").to_owned();
            ranges.push((bound("from"), bound("to")));
        }
    }
    check_ranges(&mut ranges, addresses.len());
}

/// The ranges cover the hash space without gap or overlap, cut evenly.
fn check_ranges(ranges: &mut [(String, String)], shards: usize) {
    ranges.sort();
    assert_eq!(ranges[0].0, "0".repeat(32));
    for pair in ranges.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "a gap or an overlap in {ranges:?}");
    }
    let starts: Vec<u128> = ranges
        .iter()
        .map(|(from, _)| {
            assert_eq!(from.len(), 32, "{from} has 32 digits");
            u128::from_str_radix(from, 16).expect("hexadecimal digits")
        })
        .collect();
    assert_eq!(starts.len(), shards, "one range per shard in a fresh view");
    let share = u128::MAX / u128::try_from(shards).expect("a small number");
    for pair in starts.windows(2) {
        assert!((pair[1] - pair[0]).abs_diff(share) <= share / 1_000_000, "not cut evenly: {ranges:?}");
    }
}

#[test]
fn a_single_node_and_its_follower_tell_counts_shards_and_view() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for number in 0..7 {
        assert_eq!(main.http().put(&format!("/kvs/keys/{number}"), r#"{"value":1}"#).status, 201);
    }
    assert_eq!(main.http().delete("/kvs/keys/3").status, 200);
    let addresses = [main.address().to_owned()];
    check_view(&mut main.http(), &addresses, 0, &[6]);
    check_view(&mut follower.http(), &addresses, 0, &[6]);
}

#[test]
fn every_node_of_a_cluster_tells_counts_shards_and_view() {
    let cluster = Cluster::of(3);
    let mut counts = [0; 3];
    for number in 0..40 {
        let answer = cluster.nodes[number % 3].http().put(&format!("/kvs/keys/{number}"), r#"{"value":1}"#);
        assert_eq!(answer.status, 201);
        counts[cluster.owner_by_answer(number % 3, &answer)] += 1;
    }
    let addresses = cluster.addresses();
    for (own, node) in cluster.nodes.iter().enumerate() {
        check_view(&mut node.http(), &addresses, own, &counts);
    }
}

/// The whole answer to each method on a key that nobody can serve, with and without a causal context.
fn check_nobody_serves(client: &mut Http, key: &str, error: &str, retry_after: bool) {
    for prefix in PREFIXES {
        for method in METHODS {
            for causal in [false, true] {
                let target = format!("{prefix}/keys/{key}");
                let body: &[u8] =
                    if causal { br#"{"value":1,"causal-context":""}"# } else { br#"{"value":1}"# };
                let answer = client.request(method, &target, &[], body);
                let context = format!("{method} {target}: {} {}", answer.status, answer.text());
                assert_eq!(answer.status, 503, "{context}");
                let mut expected = json!({"error": error, "message": format!("Error in {method}")});
                if causal {
                    let echoed = &answer.json()["causal-context"];
                    assert!(echoed.is_object(), "no causal-context: {context}");
                    expected["causal-context"] = echoed.clone();
                }
                assert_eq!(answer.json(), expected, "{context}");
                if retry_after {
                    let seconds = answer.header("Retry-After").map(str::parse::<u32>);
                    assert!(matches!(seconds, Some(Ok(_))), "Retry-After: {context}");
                }
                check_outcome(method, &answer, &context);
            }
        }
    }
}

#[test]
fn a_follower_without_a_main_says_so() {
    let follower = Node::follower(&ports::free_address(), &[]);
    check_nobody_serves(&mut follower.http(), "a", "Main instance is down", false);
}

#[test]
fn a_key_whose_shard_is_down_cannot_be_served() {
    let mut cluster = Cluster::with(3, &[("REQUEST_TIMEOUT_MS", "1000")]);
    let key = cluster.key_of(2, "down");
    cluster.nodes[2].kill();
    for asked in 0..2 {
        check_nobody_serves(&mut cluster.nodes[asked].http(), &key, "Unable to satisfy request", true);
    }
    let shard = cluster.nodes[0].http().get("/kv-store/shards/3");
    assert_eq!(shard.status, 200, "any node answers for any shard");
    assert_eq!(shard.json()["key-count"], Value::Null, "nobody of it is reached");
}

#[test]
fn a_passive_node_that_knows_no_cluster_says_so() {
    let view = format!("{},{}", ports::free_address(), ports::free_address());
    let node = Node::start(&ports::free_address(), &[("VIEW", &view), ("REQUEST_TIMEOUT_MS", "1000")]);
    node.wait_live();
    let mut client = node.http();
    check_nobody_serves(&mut client, "a", "Unable to satisfy request", true);
    for prefix in PREFIXES {
        let count = client.get(&format!("{prefix}/key-count"));
        assert_eq!(count.status, 200);
        assert_eq!(count.json(), json!({"message": "Key count retrieved successfully", "key-count": 0}));
        let shards = client.get(&format!("{prefix}/shards"));
        assert_eq!(shards.status, 200);
        let empty = json!({"message": "Shard membership retrieved successfully", "shards": []});
        assert_eq!(shards.json(), empty);
        for path in ["shards/1", "view"] {
            let answer = client.get(&format!("{prefix}/{path}"));
            assert_eq!(answer.status, 503, "{path}: {}", answer.text());
            assert_eq!(answer.json()["message"], "Error in GET");
            assert!(!answer.json()["error"].as_str().expect("a reason").is_empty());
        }
    }
}

/// What an answer to HEAD has to have in common with that to GET.
fn shown(answer: &Response) -> (u16, Vec<(String, String)>) {
    let headers = answer.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    // These change from one moment to the next.
    let mut headers: Vec<_> = headers.filter(|(name, _)| name != "date").collect();
    headers.sort();
    (answer.status, headers)
}

/// HEAD wherever GET is, and OPTIONS everywhere, of a node and under a prefix; the key is owned by that node or by another one.
fn check_head_and_options(client: &mut Http, context: &str, keys: &[String]) {
    for key in keys {
        assert_eq!(client.put(&format!("/kvs/keys/{key}"), r#"{"value":"here"}"#).status, 201, "{context}");
        let long = format!("{key}-long");
        let body = json!({ "value": "v".repeat(100_000) }).to_string();
        assert_eq!(client.put(&format!("/kvs/keys/{long}"), &body).status, 201, "{context}");
    }
    let of_keys = keys.iter().flat_map(|key| {
        let paths = ["", "-long", "-none"].map(|end| format!("/kvs/keys/{key}{end}"));
        paths.into_iter().chain([format!("/kv-store/keys/{key}?consistency=other")])
    });
    let cluster =
        ["key-count", "shards", "shards/1", "shards/4711", "view", "view-change", "audit", "view/x"];
    let cluster = cluster.iter().map(|path| format!("/kvs/{path}"));
    let own = ["/livez", "/readyz", "/metrics", "/nothing", "/kvs/keys/", "/kvs/keys/%zz"].map(str::to_owned);
    let key = keys[0].clone();
    for path in of_keys.chain(cluster).chain(own) {
        let (get, head) = (client.get(&path), client.request("HEAD", &path, &[], b""));
        assert_eq!(head.body, b"", "{context}: {path}");
        let (mut wanted, mut got) = (shown(&get), shown(&head));
        assert!(head.header("content-length").is_some(), "{context}: {path}");
        if path == "/metrics" || path == "/kvs/audit" {
            // The figures are others each time.
            for shown in [&mut wanted, &mut got] {
                shown.1.retain(|(name, _)| name != "content-length");
            }
        }
        assert_eq!(got, wanted, "{context}: {path}");
        let next = client.get(&format!("/kvs/keys/{key}"));
        assert_eq!(
            (next.status, &next.json()["value"]),
            (200, &json!("here")),
            "{context}: after HEAD {path}"
        );
    }
    let all = "GET, PUT, DELETE, HEAD, OPTIONS";
    let table = [
        ("*", 204, all),
        (&*format!("/kvs/keys/{key}"), 204, all),
        ("/kv-store/keys/none", 204, all),
        ("/kvs/view-change", 204, all),
        ("/kvs/key-count", 204, "GET, HEAD, OPTIONS"),
        ("/kv-store/shards/1", 204, "GET, HEAD, OPTIONS"),
        ("/livez", 204, "GET, HEAD, OPTIONS"),
        ("/metrics", 204, "GET, HEAD, OPTIONS"),
        ("/node/news", 204, "POST, OPTIONS"),
        ("/relay", 204, "GET, OPTIONS"),
        ("/nothing", 404, ""),
        ("/kvs/view/x", 404, ""),
    ];
    for (path, status, allow) in table {
        let answer = client.request("OPTIONS", path, &[], b"");
        assert_eq!(
            (answer.status, answer.header("allow").unwrap_or_default()),
            (status, allow),
            "{context}: {path}"
        );
        if status == 204 {
            assert_eq!(
                (&answer.body[..], answer.header("content-length")),
                (&b""[..], None),
                "{context}: {path}"
            );
        }
    }
}

#[test]
fn head_is_wherever_get_is_and_options_everywhere() {
    let main = Node::single(&[]);
    check_head_and_options(&mut main.http(), "single", &["s".to_owned()]);
    let follower = Node::follower(main.address(), &[]);
    check_head_and_options(&mut follower.http(), "follower", &["f".to_owned()]);
    let cluster = Cluster::of(2);
    for (asked, node) in cluster.nodes.iter().enumerate() {
        let keys = [0, 1].map(|owner| cluster.key_of(owner, &format!("c{asked}-")));
        check_head_and_options(&mut node.http(), "cluster", &keys);
    }
}

#[test]
fn paths_outside_are_unknown() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for node in [&main, &follower] {
        for target in ["/nothing", "/kv-storex/keys/a", "/kvsx", "/keys/a", "/kv/keys/a"] {
            let answer = node.http().get(target);
            assert_eq!(answer.status, 404, "{target}: {}", answer.text());
            assert_eq!(answer.json()["message"], "Error in GET", "{target}");
        }
    }
}

#[test]
fn a_body_with_unclear_framing_is_refused_before_all_else() {
    let framings = [
        "Content-Length: 11\r\nTransfer-Encoding: chunked",
        "Content-Length: 11\r\nContent-Length: 12",
        "Content-Length: eleven",
        "Content-Length: -11",
        "Content-Length: 11, 12",
    ];
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for node in [&main, &follower] {
        for framing in framings {
            for key in ["framing".to_owned(), "x".repeat(1025)] {
                let mut client = node.http();
                let head = format!("PUT /kvs/keys/{key} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
                client.send(format!("{head}{{\"value\":1}}").as_bytes()).expect("the request is sent");
                let answer = client.receive("PUT").expect("an answer");
                let context = format!("{framing}: {} {}", answer.status, answer.text());
                assert_eq!(answer.status, 400, "{context}");
                assert_eq!(answer.json()["message"], "Error in PUT", "{context}");
                assert_ne!(answer.json()["error"], "Key is too long", "{context}");
                check_outcome("PUT", &answer, &context);
                assert!(client.is_closed(), "what follows on the connection cannot be trusted: {context}");
            }
        }
    }
    assert_eq!(main.http().get("/kvs/keys/framing").status, 404, "none of them was applied");
}

#[test]
fn a_node_tells_about_itself_alone() {
    let main = Node::single(&[]);
    let follower = Node::follower(&ports::free_address(), &[]);
    for node in [&main, &follower] {
        assert_eq!(node.http().get("/livez").status, 200);
        let metrics = node.http().get("/metrics");
        assert_eq!(metrics.status, 200);
        let named = metrics.text().lines().filter(|line| line.starts_with("evenkv_")).count();
        assert!(named > 0, "no metric is named evenkv_: {}", metrics.text());
    }
    wait_until("the node is ready", START_DEADLINE, || main.http().get("/readyz").status == 200);
}

#[test]
fn a_large_value_comes_with_the_causal_context_too() {
    let cluster = Cluster::of(2);
    let key = cluster.key_of(0, "large");
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(200_000));
    assert_eq!(cluster.nodes[0].http().put(&format!("/kvs/keys/{key}"), body).status, 201);
    for node in &cluster.nodes {
        let context = br#"{"causal-context":{"seen":1}}"#;
        let answer = node.http().request("GET", &format!("/kvs/keys/{key}"), &[], context);
        assert_eq!((answer.status, &answer.json()["causal-context"]), (200, &json!({"seen": 1})));
    }
}
