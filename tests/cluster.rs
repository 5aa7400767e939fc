//! A sharded cluster of real processes: any node answers, the owner is named, one loss harms one shard.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::{START_DEADLINE, at_once, ports, timed, wait_until};

const BODY: &str = r#"{"value":"here"}"#;
/// What the network and a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_millis(700);

/// Held by the tests that measure time or load the machine, so that they do not slow each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn target(key: &str) -> String {
    format!("/kv-store/keys/{key}")
}

fn key_count(client: &mut Http) -> u64 {
    client.get("/kv-store/key-count").json()["key-count"].as_u64().expect("a count")
}

#[test]
fn any_node_answers_any_key_and_names_the_owner() {
    let cluster = Cluster::of(3);
    let addresses = cluster.addresses();
    let mut clients = cluster.clients();
    let mut expected_counts = [0; 3];
    for number in 0..90 {
        let key = target(&format!("any{number}"));
        let asked = number % 3;
        let put = clients[asked].put(&key, format!("{{\"value\":{number}}}"));
        assert_eq!(put.status, 201, "{}", put.text());
        let owner = cluster.owner_by_answer(asked, &put);
        expected_counts[owner] += 1;
        for (node, client) in clients.iter_mut().enumerate() {
            let got = client.get(&key);
            let mut expected =
                json!({"doesExist": true, "message": "Retrieved successfully", "value": number});
            if node != owner {
                expected["address"] = json!(addresses[owner]);
            }
            assert_eq!((got.status, got.json()), (200, expected), "through node {node}");
        }
        if number % 2 == 0 {
            let deleted = clients[(asked + 1) % 3].delete(&key);
            assert_eq!(deleted.status, 200);
            expected_counts[owner] -= 1;
            for client in &mut clients {
                assert_eq!(client.get(&key).status, 404);
            }
        }
    }
    let counts: Vec<u64> = clients.iter_mut().map(key_count).collect();
    assert_eq!(counts, expected_counts, "each node counts the pairs that it was named as owner of");
}

#[test]
fn shares_are_near_even() {
    let cluster = Cluster::of(3);
    let mut client = cluster.nodes[0].http();
    for number in 0..3000 {
        assert_eq!(client.put(&target(&format!("user-{number}")), BODY).status, 201);
    }
    let counts: Vec<u64> = cluster.clients().iter_mut().map(key_count).collect();
    assert_eq!(counts.iter().sum::<u64>(), 3000);
    // Five standard deviations of 3,000 throws into three equal parts.
    assert!(counts.iter().all(|&count| count.abs_diff(1000) <= 130), "{counts:?}");
    for (number, &count) in counts.iter().enumerate() {
        for client in &mut cluster.clients() {
            let shard = client.get(&format!("/kvs/shards/{}", number + 1)).json();
            assert_eq!(shard["key-count"], count, "any node knows the count of any shard");
        }
    }
}

#[test]
fn all_nodes_have_one_view() {
    let cluster = Cluster::of(4);
    let views: Vec<Value> =
        cluster.clients().iter_mut().map(|client| client.get("/kvs/view").json()).collect();
    assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
    for (shard, address) in views[0]["shards"].as_array().expect("a list").iter().zip(cluster.addresses()) {
        assert_eq!(shard["replicas"], json!([address]), "shards are filled in the order of the list");
    }
}

#[test]
fn a_fresh_cluster_does_not_speak_of_lost_pairs() {
    for _ in 0..3 {
        let cluster = Cluster::of(3);
        for node in &cluster.nodes {
            let log = node.log().to_lowercase();
            assert!(!log.contains("lost"), "nothing was there to be lost: {log}");
        }
    }
}

#[test]
fn values_of_any_size_pass_between_nodes() {
    let cluster = Cluster::of(2);
    let mut clients = cluster.clients();
    for size in [0, 1000, 1024, 1100, 65_530, 65_536, 70_000, 1 << 20, (8 << 20) - 2] {
        let value = "v".repeat(size);
        let body = format!("{{\"value\":\"{value}\"}}");
        for (number, client) in clients.iter_mut().enumerate() {
            let put = client.put(&target(&format!("size{size}")), &body);
            assert!(put.status < 300, "{size} bytes by node {number}: {}", put.text());
            let chunks = support::http::chunked(body.as_bytes(), 50_000);
            let headers = [("Transfer-Encoding", "chunked")];
            let put = client.request("PUT", &target(&format!("chunks{size}")), &headers, &chunks);
            assert!(put.status < 300, "{size} bytes in chunks by node {number}: {}", put.text());
        }
        for client in &mut clients {
            for name in ["size", "chunks"] {
                let got = client.get(&target(&format!("{name}{size}"))).json();
                assert_eq!(got["value"].as_str().map(str::len), Some(size));
            }
        }
    }
}

#[test]
fn a_follower_of_a_node_passes_the_owner_on() {
    let cluster = Cluster::of(2);
    let follower = Node::follower(cluster.nodes[0].address(), &[]);
    for owner in 0..2 {
        let key = cluster.key_of(owner, "followed");
        let put = follower.http().put(&target(&key), BODY);
        assert_eq!(put.status, 201);
        let named = (owner == 1).then(|| cluster.nodes[1].address().to_owned());
        assert_eq!(put.owner(), named);
    }
    assert_eq!(follower.http().get("/kvs/shards").json()["shards"], json!(["1", "2"]));
}

#[test]
fn nobody_serves_before_all_are_up() {
    let addresses: Vec<String> = (0..3).map(|_| ports::free_address()).collect();
    let view = addresses.join(",");
    let settings = [("VIEW", view.as_str()), ("REQUEST_TIMEOUT_MS", "1000")];
    let mut nodes: Vec<Node> = addresses[..2].iter().map(|address| Node::start(address, &settings)).collect();
    for node in &nodes {
        node.wait_live();
        wait_until("/readyz names the node that is missing", START_DEADLINE, || {
            let ready = node.http().get("/readyz");
            ready.status == 503
                && ready.text().contains(&addresses[2])
                && !ready.text().contains(&addresses[0])
                && !ready.text().contains(&addresses[1])
        });
        wait_until("so does the log", START_DEADLINE, || node.log().contains(&addresses[2]));
        for number in 0..6 {
            for method in ["PUT", "GET", "DELETE"] {
                let answer = node.http().request(method, &target(&number.to_string()), &[], BODY.as_bytes());
                check_unable(&answer, method);
            }
        }
    }
    nodes.push(Node::start(&addresses[2], &settings));
    for node in &nodes {
        node.wait_ready();
        let put = node.http().put(&target(node.address()), BODY);
        assert_eq!(put.status, 201, "{}", put.text());
    }
}

fn check_unable(answer: &Response, method: &str) {
    let context = format!("{method}: {} {}", answer.status, answer.text());
    assert_eq!(answer.status, 503, "{context}");
    let expected = json!({"error": "Unable to satisfy request", "message": format!("Error in {method}")});
    assert_eq!(answer.json(), expected, "{context}");
    assert!(answer.header("Retry-After").is_some(), "{context}");
    if method != "GET" {
        assert!(answer.header("Evenkv-Outcome").is_some(), "{context}");
    }
}

#[test]
fn nodes_that_name_different_views_refuse_each_other() {
    let (first, second) = (ports::free_address(), ports::free_address());
    let third = ports::free_address();
    let short = format!("{first},{second}");
    for other in [format!("{second},{first}"), format!("{first},{second},{third}")] {
        let nodes = [
            Node::start(&first, &[("VIEW", &short), ("REQUEST_TIMEOUT_MS", "1000")]),
            Node::start(&second, &[("VIEW", &other), ("REQUEST_TIMEOUT_MS", "1000")]),
        ];
        for (node, differing) in nodes.iter().zip([&second, &first]) {
            node.wait_live();
            wait_until("/readyz names the node that differs", START_DEADLINE, || {
                let ready = node.http().get("/readyz");
                ready.status == 503 && ready.text().contains(differing)
            });
            wait_until("so does the log", START_DEADLINE, || node.log().contains(differing));
            for number in 0..4 {
                let answer = node.http().put(&target(&number.to_string()), BODY);
                check_unable(&answer, "PUT");
                assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"));
            }
        }
    }
}

#[test]
fn a_member_that_returns_is_not_believed_whatever_view_it_names() {
    let mut cluster = Cluster::with(3, &[("REQUEST_TIMEOUT_MS", "1000")]);
    let keys: Vec<String> = (0..3).map(|owner| cluster.key_of(owner, "view")).collect();
    for key in &keys {
        assert_eq!(cluster.nodes[0].http().put(&target(key), BODY).status, 201);
    }
    let addresses = cluster.addresses();
    let other = format!("{},{},{}", addresses[1], addresses[0], addresses[2]);
    for view in [cluster.view.clone(), other] {
        cluster.nodes[2].restart_with(&[("VIEW", &view), ("REQUEST_TIMEOUT_MS", "1000")]);
        let returned = &cluster.nodes[2];
        returned.wait_live();
        wait_until("it says that its shard is lost", START_DEADLINE, || {
            let ready = returned.http().get("/readyz");
            ready.status == 503 && ready.text().contains("shard 3 is lost")
        });
        for asked in 0..3 {
            let client = &mut cluster.nodes[asked].http();
            wait_until("the lost shard is named", START_DEADLINE, || {
                let answer = client.get(&target(&keys[2]));
                check_unable(&answer, "GET");
                answer.header("Evenkv-Reason").is_some_and(|reason| reason.contains("shard 3 is lost"))
            });
            for key in &keys[..2] {
                assert_eq!(client.get(&target(key)).status, 200, "the others serve on");
            }
        }
    }
}

#[test]
fn nodes_prove_the_secret_to_each_other() {
    let secret = ("CLUSTER_SECRET", "open-sesame");
    let cluster = Cluster::with(3, &[secret]);
    let key = target(&cluster.key_of(2, "secret"));
    assert_eq!(cluster.nodes[0].http().put(&key, BODY).status, 201, "clients need none");
    let mut client = cluster.nodes[0].http();
    for (path, method) in [("/node/news", "POST"), ("/node/orders", "POST"), ("/node/recover", "PUT")] {
        for headers in [&[][..], &[("Evenkv-Secret", "open-sesam")], &[("Evenkv-Secret", "open-sesame!")]] {
            let refused = client.request(method, path, headers, b"{}");
            assert_eq!(refused.status, 403, "{path}: {}", refused.text());
        }
    }
    let told = client.request("PUT", "/node/recover", &[("Evenkv-Secret", "open-sesame")], b"{}");
    assert_eq!(told.status, 409, "all voters live: {}", told.text());

    let stranger = Node::single(&[("CLUSTER_SECRET", "another")]);
    let careless = Node::single(&[]);
    let friend = Node::single(&[secret]);
    let view = |node: &Node| json!({ "view": format!("{},{}", cluster.view, node.address()) });
    for node in [&stranger, &careless] {
        let refused = client.put("/kv-store/view-change", view(node).to_string());
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(refused.text().contains("CLUSTER_SECRET"), "{}", refused.text());
        assert_eq!(node.http().put("/kv-store/k", BODY).status, 201);
    }
    let taken = client.put("/kv-store/view-change", view(&friend).to_string());
    assert_eq!(taken.status, 200, "{}", taken.text());
    let outside = Node::start(&ports::free_address(), &[("VIEW", &cluster.view)]);
    outside.wait_live();
    wait_until("a node without the secret says why it knows nothing", START_DEADLINE, || {
        outside.http().get("/readyz").text().contains("CLUSTER_SECRET")
    });
}

/// All that nodes ask of each other, and what an operator asks under the same path.
const BETWEEN_NODES: [(&str, &str); 10] = [
    ("GET", "/node/hello"),
    ("POST", "/node/news"),
    ("POST", "/node/orders"),
    ("POST", "/node/questions"),
    ("POST", "/node/transfer"),
    ("POST", "/node/raft"),
    ("PUT", "/node/recover"),
    ("GET", "/node/keys/a"),
    ("PUT", "/node/keys/a"),
    ("DELETE", "/node/keys/a"),
];

/// The status of a request that has only a start of what the path takes, and what it says.
fn asked(client: &mut Http, (method, path): (&str, &str), headers: &[(&str, &str)]) -> (u16, String) {
    let answer = client.request(method, path, headers, if method == "GET" { b"" } else { b"{" });
    (answer.status, answer.text())
}

#[test]
fn without_a_secret_nothing_between_nodes_is_taken_through_a_proxy() {
    let node = Node::single(&[]);
    let mut client = node.http();
    for request in BETWEEN_NODES {
        let (status, said) = asked(&mut client, request, &[("X-Real-Name", "a"), ("Forward", "b")]);
        assert_ne!(status, 403, "{request:?}: {said}");
    }
    assert!(!node.log().contains("came through a proxy"), "{}", node.log());
    let signs = [
        ("Forwarded", "for=203.0.113.7"),
        ("forwarded", "for=127.0.0.1"),
        ("X-Forwarded-For", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("X-FORWARDED-HOST", "kv.example"),
        ("Via", "1.1 edge"),
    ];
    for sign in signs {
        for request in BETWEEN_NODES {
            let (status, said) = asked(&mut client, request, &[sign]);
            assert_eq!(status, 403, "{sign:?} {request:?}: {said}");
            assert!(said.contains("CLUSTER_SECRET") && said.contains(sign.0), "{sign:?} {request:?}: {said}");
        }
        let upgrade =
            [("Connection", "upgrade"), ("Upgrade", "evenkv-messages"), ("Evenkv-From", "a:1"), sign];
        assert_eq!(node.http().request("GET", "/node/raft", &upgrade, b"").status, 403, "{sign:?}");
        assert_eq!(
            client.request("PUT", &target("k"), &[sign], BODY.as_bytes()).status / 100,
            2,
            "clients may"
        );
    }
    node.wait_logged("came through a proxy");
    assert_eq!(node.log().matches("came through a proxy").count(), 1, "{}", node.log());
}

#[test]
fn with_a_secret_it_is_shown_by_all_but_who_asks_who_is_there() {
    let node = Node::single(&[("CLUSTER_SECRET", "open-sesame")]);
    let mut client = node.http();
    let (right, wrong) = (("Evenkv-Secret", "open-sesame"), ("Evenkv-Secret", "open-sesam"));
    let proxy = ("X-Forwarded-For", "203.0.113.7");
    for request in BETWEEN_NODES {
        for headers in [&[][..], &[wrong], &[proxy], &[proxy, wrong]] {
            let (status, said) = asked(&mut client, request, headers);
            assert_eq!(status == 403, request.1 != "/node/hello", "{request:?} {headers:?}: {said}");
            assert!(!said.contains("open-sesame"), "it is told to nobody: {said}");
        }
        for headers in [&[right][..], &[proxy, right]] {
            let (status, said) = asked(&mut client, request, headers);
            assert_ne!(status, 403, "{request:?} {headers:?}: {said}");
        }
    }
    let hello = |client: &mut Http, headers: &[(&str, &str)]| {
        client.request("GET", "/node/hello", headers, b"").json()
    };
    assert!(hello(&mut client, &[])["proof"].is_null(), "nothing is proved unasked");
    let mut proof = |challenge| hello(&mut client, &[("Evenkv-Challenge", challenge)])["proof"].clone();
    assert!(proof("a").is_string() && proof("a") != proof("b"), "a proof is for one challenge");
}

#[test]
fn a_secret_that_not_all_nodes_have_is_named() {
    type Row<'a> = ([&'a [(&'a str, &'a str)]; 3], &'a [(usize, usize, &'a str)]);
    let (one, other) = ([("CLUSTER_SECRET", "one")], [("CLUSTER_SECRET", "other")]);
    let (theirs, ours, differ) = (
        "it has a CLUSTER_SECRET, and this node has none",
        "it has no CLUSTER_SECRET, and this node has one",
        "it has another CLUSTER_SECRET than this node",
    );
    let table: [Row; 3] = [
        ([&[], &one, &[]], &[(0, 1, theirs), (2, 1, theirs), (1, 0, ours), (1, 2, ours)]),
        ([&one, &[], &one], &[(1, 0, theirs), (0, 1, ours), (2, 1, ours)]),
        ([&one, &one, &other], &[(0, 2, differ), (1, 2, differ), (2, 0, differ), (2, 1, differ)]),
    ];
    for (settings, expected) in table {
        let cluster = Cluster::starting_each(&settings);
        let all = cluster.addresses();
        for (asked, named, what) in expected {
            let expected = format!("{} ({what}: set the same CLUSTER_SECRET on all nodes", all[*named]);
            let node = &cluster.nodes[*asked];
            wait_until(&format!("node {asked} says {expected}"), START_DEADLINE, || {
                let answer = node.http().try_request("GET", "/readyz", &[], b"");
                answer.is_ok_and(|answer| answer.status == 503 && answer.text().contains(&expected))
            });
            node.wait_logged(&expected);
        }
    }
}

#[test]
fn a_member_that_comes_back_without_the_secret_is_named_by_all() {
    let secret = ("CLUSTER_SECRET", "open-sesame");
    let mut cluster = Cluster::with(3, &[secret]);
    let (all, view) = (cluster.addresses(), cluster.view.clone());
    let says = |node: &Node, field: &str, what: &str| {
        node.http().get("/readyz").json()[field].to_string().contains(what)
    };
    let note =
        format!("{} is named by the view, and no part of the cluster: it has no CLUSTER_SECRET", all[2]);
    cluster.nodes[2].restart_with(&[("VIEW", &view)]);
    cluster.nodes[2].wait_live();
    wait_until("it says why it knows nothing", START_DEADLINE, || {
        says(&cluster.nodes[2], "reasons", "it has a CLUSTER_SECRET, and this node has none")
    });
    for node in &cluster.nodes[..2] {
        wait_until("a member names it", START_DEADLINE, || says(node, "notes", &note));
        let said = format!("WARN  evenkv::node::strangers] {note}");
        node.wait_logged(&said);
        assert_eq!(node.log().matches(&said).count(), 1, "{}", node.log());
    }
    cluster.nodes[2].restart_with(&[("VIEW", &view), secret]);
    for node in &cluster.nodes[..2] {
        wait_until("it is no stranger any more", START_DEADLINE, || !says(node, "notes", "CLUSTER_SECRET"));
    }
}

#[test]
fn an_order_that_waits_is_not_taken_among_those_that_never_do() {
    let cluster = Cluster::of(2);
    let mut client = cluster.nodes[0].http();
    let id = client.get("/kv-store/view").json()["cluster-id"].as_str().expect("an id").to_owned();
    let addressed = format!("{id}.1.0000000000000000");
    let reach = json!({"reach": {"node": cluster.nodes[1].address(), "incarnation": null}});
    for (order, right, wrong) in
        [(reach, "/node/orders", "/node/questions"), (json!({"news": {}}), "/node/questions", "/node/orders")]
    {
        let mut ask = |path: &str| {
            client.request("POST", path, &[("Evenkv-View", &addressed)], order.to_string().as_bytes())
        };
        let refused = ask(wrong);
        assert_eq!(refused.status, 400, "{order}: {}", refused.text());
        assert!(refused.text().contains(right), "{order}: {}", refused.text());
        let taken = ask(right);
        assert_eq!(taken.status, 200, "{order}: {}", taken.text());
    }
}

#[test]
fn a_passive_node_forwards() {
    let cluster = Cluster::of(3);
    let passive = Node::start(&ports::free_address(), &[("VIEW", &cluster.view)]);
    passive.wait_live();
    let mut client = passive.http();
    wait_until("the passive node has found the cluster", START_DEADLINE, || {
        client.get("/kv-store/shards").json()["shards"] == json!(["1", "2", "3"])
    });
    for owner in 0..3 {
        let key = target(&cluster.key_of(owner, "passive"));
        let expected = Some(cluster.nodes[owner].address().to_owned());
        for (method, status) in [("PUT", 201), ("PUT", 200), ("GET", 200), ("DELETE", 200), ("GET", 404)] {
            let answer = client.request(method, &key, &[], BODY.as_bytes());
            assert_eq!(answer.status, status, "{method} {key}: {}", answer.text());
            assert_eq!(answer.owner(), expected, "{method} {key}: {}", answer.text());
        }
        let long = client.put(&target(&"x".repeat(1025)), BODY);
        assert_eq!(long.status, 400);
        assert!(long.owner().is_some_and(|address| cluster.addresses().contains(&address)));
    }
    assert_eq!(client.get("/kv-store/short").status, 404, "the short form is for a view of one node");
    let count = json!({"message": "Key count retrieved successfully", "key-count": 0});
    assert_eq!(client.get("/kv-store/key-count").json(), count);
    let view = cluster.nodes[0].http().get("/kv-store/view").json();
    assert_eq!(client.get("/kv-store/view").json(), view);
}

/// Sends requests for a key that nobody can serve through each of `through` from 16 connections, until told
/// to stop; each must be refused in time.
fn hammer(through: &[&Node], key: &str, limit: Duration, stop: &AtomicBool, answered: &AtomicUsize) {
    at_once(through.len() * 16, |number| {
        let mut client = through[number % through.len()].http();
        let methods = ["GET", "PUT", "DELETE"];
        let mut sent = number;
        while !stop.load(Ordering::Relaxed) {
            let method = methods[sent % 3];
            let (answer, took) = timed(|| client.request(method, &target(key), &[], BODY.as_bytes()));
            assert_eq!(answer.status, 503, "{method}: {}", answer.text());
            assert!(took <= limit, "{method} for the dead node took {took:?}");
            answered.fetch_add(1, Ordering::Relaxed);
            sent += 1;
        }
    });
}

/// While 32 clients ask for the lost node's key, every request for the other shards is served within 1 s.
fn check_others_are_unharmed(cluster: &Cluster, keys: &[String], deadline: Duration) {
    let others = [&cluster.nodes[0], &cluster.nodes[1]];
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let large = json!({"value": "x".repeat(100_000)}).to_string();
    thread::scope(|scope| {
        let (stop, answered) = (&stop, &answered);
        let attack = scope.spawn(move || hammer(&others, &keys[2], deadline + SLACK, stop, answered));
        let until = Instant::now() + deadline + Duration::from_secs(2);
        let mut slowest = Duration::ZERO;
        let mut served = 0;
        let mut clients = others.map(Node::http);
        let mut failure = None;
        while failure.is_none() && (Instant::now() < until || answered.load(Ordering::Relaxed) < 32) {
            let (client, key) = (&mut clients[served % 2], &keys[served / 2 % 2]);
            let body: &str = if served % 10 > 7 { &large } else { BODY };
            let method = if served % 3 == 0 { "GET" } else { "PUT" };
            let sent = timed(|| client.try_request(method, &target(key), &[], body.as_bytes()));
            let (answer, took) = sent;
            slowest = slowest.max(took);
            match answer {
                Ok(answer) if answer.status == 200 && took < Duration::from_secs(1) => served += 1,
                Ok(answer) => failure = Some(format!("{method} {} in {took:?}", answer.status)),
                Err(error) => failure = Some(format!("{method} {error} in {took:?}")),
            }
        }
        stop.store(true, Ordering::Relaxed);
        attack.join().expect("the attack saw nothing but refusals in time");
        assert_eq!(failure, None, "after {served} served requests, the slowest {slowest:?}");
        assert!(served >= 20, "only {served} requests were served");
    });
}

#[test]
fn a_killed_node_harms_its_own_shard_alone_until_it_is_given_up() {
    let _alone = alone();
    let deadline = Duration::from_secs(2);
    let mut cluster = Cluster::with(3, &[("REQUEST_TIMEOUT_MS", "2000")]);
    let keys: Vec<String> = (0..3).map(|owner| cluster.key_of(owner, "lost")).collect();
    for key in &keys {
        assert_eq!(cluster.nodes[0].http().put(&target(key), BODY).status, 201);
    }
    cluster.nodes[2].kill();
    for asked in 0..2 {
        let (answer, took) = timed(|| cluster.nodes[asked].http().get(&target(&keys[2])));
        check_unable(&answer, "GET");
        assert!(took < deadline + SLACK, "it took {took:?}");
    }
    check_others_are_unharmed(&cluster, &keys, deadline);

    cluster.nodes[2].restart();
    cluster.nodes[2].wait_live();
    let mut returned = cluster.nodes[2].http();
    wait_until("the node that returned says that its shard is lost", START_DEADLINE, || {
        returned.get("/readyz").text().contains("shard 3 is lost")
    });
    let change = json!({"view": cluster.view, "accept-loss": ["3"]}).to_string();
    let changed = returned.put("/kv-store/view-change", &change);
    assert_eq!(changed.status, 200, "{}", changed.text());
    // How many pairs it had is told as it was last heard, which may be before the last write, or never.
    let mut reported = changed.json()["given-up"].clone();
    assert!(reported[0]["key-count"].is_null() || reported[0]["key-count"].as_u64() <= Some(1), "{reported}");
    reported[0]["key-count"] = Value::Null;
    let given_up = json!([{"shard-id": "3", "replicas": [cluster.nodes[2].address()], "key-count": null}]);
    assert_eq!(reported, given_up);
    cluster.nodes[2].wait_ready();
    for asked in 0..3 {
        assert_eq!(cluster.nodes[asked].http().get(&target(&keys[2])).status, 404, "it was given up");
        for key in &keys[..2] {
            assert_eq!(cluster.nodes[asked].http().get(&target(key)).status, 200);
        }
    }
    let put = cluster.nodes[1].http().put(&target(&keys[2]), BODY);
    assert_eq!(put.status, 201);
    let counts: u64 = cluster.clients().iter_mut().map(key_count).sum();
    assert_eq!(counts, 3);
}

#[test]
fn a_stopped_node_harms_its_own_shard_alone_and_goes_on() {
    let _alone = alone();
    let deadline = Duration::from_secs(2);
    let cluster = Cluster::with(3, &[("REQUEST_TIMEOUT_MS", "2000")]);
    let keys: Vec<String> = (0..3).map(|owner| cluster.key_of(owner, "stopped")).collect();
    for key in &keys {
        assert_eq!(cluster.nodes[0].http().put(&target(key), BODY).status, 201);
    }
    cluster.nodes[2].pause();
    let (answer, took) = timed(|| cluster.nodes[0].http().put(&target(&keys[2]), BODY));
    check_unable(&answer, "PUT");
    assert_eq!(answer.header("Evenkv-Outcome"), Some("unknown"), "it was sent and may be applied later");
    assert!(took < deadline + SLACK, "it took {took:?}");
    check_others_are_unharmed(&cluster, &keys, deadline);
    cluster.nodes[2].resume();
    for asked in 0..2 {
        wait_until("the node that goes on is asked again", START_DEADLINE, || {
            cluster.nodes[asked].http().get(&target(&keys[2])).status != 503
        });
    }
}

#[test]
fn counts_and_shards_are_told_while_a_node_is_lost() {
    let mut cluster = Cluster::with(3, &[("REQUEST_TIMEOUT_MS", "1500")]);
    let lost = cluster.nodes[1].address().to_owned();
    cluster.nodes[1].kill();
    for asked in [0, 2] {
        let mut client = cluster.nodes[asked].http();
        assert_eq!(client.get("/livez").status, 200);
        assert_eq!(client.get("/kvs/key-count").json()["key-count"], 0);
        assert_eq!(client.get("/kvs/shards").json()["shards"], json!(["1", "2", "3"]));
        let (shard, took) = timed(|| client.get("/kvs/shards/2"));
        let expected = json!({
            "message": "Shard information retrieved successfully",
            "shard-id": "2", "key-count": null, "replicas": [lost]
        });
        assert_eq!((shard.status, shard.json()), (200, expected));
        assert!(took < Duration::from_secs(3), "it took {took:?}");
        let view = client.get("/kvs/view");
        assert_eq!(view.status, 200);
        assert_eq!(view.json()["shards"][1]["key-count"], Value::Null);
    }
}

/// 64 connections on each of two nodes, opened at once, all asking for keys of the other node.
fn check_no_deadlock(workers: &str) {
    let settings = [("CLIENT_WORKERS", workers), ("FORWARDED_WORKERS", workers), ("LARGE_WORKERS", workers)];
    let cluster = Cluster::with(2, &settings);
    let keys: Vec<String> =
        (0..128).map(|number| cluster.key_of((number + 1) % 2, &format!("{number}-"))).collect();
    for (size, rounds) in [(100, 20), (100_000, 4)] {
        let answers = at_once(128, |number| {
            let asked = number % 2;
            let mut client = cluster.nodes[asked].http();
            let value = format!("{number}-{}", "x".repeat(size));
            let body = json!({"value": value}).to_string();
            let owner = Some(cluster.nodes[1 - asked].address().to_owned());
            for round in 0..rounds {
                let context = format!("{size} bytes, {workers} workers, connection {number}, round {round}");
                let put = client.put(&target(&keys[number]), &body);
                assert!(put.status < 300, "{context}: {} {}", put.status, put.text());
                assert_eq!(put.owner(), owner, "{context}");
                let got = client.get(&target(&keys[number]));
                assert_eq!(got.status, 200, "{context}: {}", got.text());
                assert_eq!(got.json()["value"], value, "{context}");
            }
            rounds * 2
        });
        assert_eq!(answers.iter().sum::<usize>(), 128 * rounds * 2, "every request was answered");
    }
}

#[test]
fn two_nodes_that_forward_to_each_other_do_not_deadlock() {
    let _alone = alone();
    for workers in ["1", "2", "4"] {
        check_no_deadlock(workers);
    }
}
