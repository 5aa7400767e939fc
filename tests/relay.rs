//! The connection on which a follower passes many requests on to its main at one time, at both of its ends.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use evenkv::wire::frames;
use evenkv::wire::relayed::{Answer, Method, PROTOCOL, Question};
use serde_json::json;
use support::change::target;
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::relay::{connected, read_frame, read_head, relayed};
use support::replicated::replicated;
use support::{START_DEADLINE, at_once, wait_until};

const BODY: &[u8] = br#"{"value":1}"#;
/// A node that answers takes no longer for it; one that does not is found out.
const PATIENCE: Duration = Duration::from_secs(20);

/// What two answers are compared by.
fn shown(answer: &Response) -> (u16, String, Vec<(String, String)>) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        // Each write has its own; that there is one is the same for both.
        .map(|(name, value)| if name == "etag" { (name, String::new()) } else { (name, value) })
        .filter(|(name, _)| name != "date")
        .collect();
    headers.sort();
    (answer.status, answer.text(), headers)
}

/// A request: method, key, headers and body.
type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

#[test]
fn every_answer_is_that_of_the_main_and_each_request_has_its_own_headers() {
    let main = Node::single(&[("MAX_KEY_LENGTH", "100"), ("MAX_VALUE_LENGTH", "40000")]);
    let follower = connected(main.address(), &[]);
    let rows: [Row; 20] = [
        ("PUT", "a", &[], r#"{"value":{"a" : 1.0}}"#),
        ("PUT", "a", &[], r#"{"value":2,"causal-context":{"x":[1]}}"#),
        ("GET", "a", &[], r#"{"causal-context":null}"#),
        ("GET", "a?consistency=stale", &[], ""),
        ("GET", "a?consistency=other", &[], ""),
        ("GET", "none", &[], ""),
        ("PUT", "a", &[], ""),
        ("PUT", "a", &[], "{"),
        ("PUT", "%zz", &[], r#"{"value":1,"causal-context":{}}"#),
        ("PUT", "", &[], r#"{"value":1}"#),
        ("DELETE", "none", &[], r#"{"causal-context":""}"#),
        ("PUT", "n", &[("Idempotency-Key", "one")], r#"{"value":1}"#),
        ("PUT", "n", &[("idempotency-key", "one")], r#"{"value":1}"#),
        ("PUT", "n", &[("Idempotency-Key", "one"), ("Idempotency-Key", "two")], r#"{"value":2}"#),
        ("PUT", "n", &[("Idempotency-Key", "two"), ("Content-Type", "text/odd")], r#"{"value":2}"#),
        ("DELETE", "n", &[("Idempotency-Key", "three")], ""),
        ("DELETE", "n", &[("Idempotency-Key", "three")], ""),
        ("DELETE", "n", &[("Idempotency-Key", "four")], ""),
        ("GET", "a%2Fb/../c", &[], ""),
        ("GET", "a", &[("X-Forwarded-For", "somebody"), ("Via", "1.1 x")], ""),
    ];
    // Both are asked for the same, of keys of their own.
    for (prefix, first) in [("/kvs/keys/", true), ("/kv-store/", false)] {
        let before = relayed(&follower);
        for (method, key, headers, body) in rows.iter().filter(|row| first || !row.1.is_empty()) {
            let [by_main, by_follower] = ["m", "f"].map(|own| {
                let node = if own == "m" { &main } else { &follower };
                // A key that is empty or wrong is so for both.
                let key = if key.is_empty() || key.starts_with('%') {
                    (*key).to_owned()
                } else {
                    format!("{own}{key}")
                };
                node.http().request(method, &format!("{prefix}{key}"), headers, body.as_bytes())
            });
            assert_eq!(shown(&by_main), shown(&by_follower), "{method} {prefix}{key} {headers:?} {body}");
        }
        assert!(relayed(&follower) >= before + rows.len() - 1, "not all went on the connection");
        assert_eq!(main.http().delete("/kvs/keys/ma").status, 200);
        assert_eq!(main.http().delete("/kvs/keys/fa").status, 200);
        let main = main.address();
        // The names of writes are remembered for a while; they stand for other keys from now on.
        if first {
            continue;
        }
        assert_eq!(Http::new(main).get("/kvs/key-count").json()["key-count"], 0);
    }
    // Beyond the limits, and longer than goes together with others.
    for (key, length, wanted) in
        [("x".repeat(101), 1, 400), ("l".to_owned(), 40_001, 413), ("l".to_owned(), 39_000, 201)]
    {
        let body = json!({ "value": "v".repeat(length) }).to_string();
        let answer = follower.http().put(&target(&key), &body);
        assert_eq!(answer.status, wanted, "{}", answer.text());
    }
    for length in [0, 1000, 32_700, 32_765, 32_766, 32_767, 32_768, 39_000] {
        let value = "v".repeat(length);
        let body = json!({ "value": value }).to_string();
        assert!(follower.http().put(&target("long"), &body).status < 300);
        assert_eq!(follower.http().get(&target("long")).json()["value"], value, "{length}");
    }
}

#[test]
fn many_requests_at_one_time_each_get_their_own_answer() {
    let main = Node::single(&[]);
    let follower = connected(main.address(), &[]);
    let before = relayed(&follower);
    at_once(16, |client| {
        let mut http = follower.http();
        for number in 0..100 {
            let (target, name) = (target(&format!("{client}-{number}")), format!("{client}/{number}"));
            let body = json!({ "value": [client, number], "causal-context": { "n": name } }).to_string();
            for _ in 0..2 {
                let headers = [("Idempotency-Key", name.as_str())];
                let answer = http.request("PUT", &target, &headers, body.as_bytes());
                // Sent again under its name it is done once.
                assert_eq!(answer.status, 201, "{}", answer.text());
                assert_eq!(answer.json()["causal-context"]["n"], json!(name));
            }
            assert_eq!(http.get(&target).json()["value"], json!([client, number]));
        }
    });
    assert_eq!(relayed(&follower) - before, 16 * 300);
    assert_eq!(main.http().get("/kvs/key-count").json()["key-count"], 1600);
    assert_eq!(main.threads_named("relayed-by"), 1);
}

/// Their requests wait for logs and for other nodes, and hold up nobody.
#[test]
fn a_node_of_a_cluster_is_a_main_as_well() {
    for cluster in [replicated(3, 3, &[]), Cluster::of(3)] {
        let main = &cluster.nodes[1];
        let follower = connected(main.address(), &[]);
        at_once(8, |client| {
            let (mut http, mut direct) = (follower.http(), main.http());
            for number in 0..50 {
                let target = target(&format!("{client}-{number}"));
                assert_eq!(http.put(&target, BODY).status, 201);
                assert_eq!(shown(&http.get(&target)), shown(&direct.get(&target)));
                let stale = http.get(&format!("{target}?consistency=stale"));
                assert!([200, 404].contains(&stale.status), "{}", stale.text());
                assert!(stale.header("Evenkv-Staleness-Ms").is_some());
                assert_eq!(http.put(&target, "").status, 400);
                assert_eq!(http.delete(&target).status, 200);
            }
        });
        // A large value of another node may have had to be asked for by HTTP, and so may what came before nodes knew each other.
        assert!(relayed(&follower) >= 8 * 50 * 4, "{}", relayed(&follower));
        assert_eq!(main.threads_named("relayed-by"), 1);
    }
}

#[test]
fn a_follower_offers_no_such_connection_so_circles_are_found_as_ever() {
    let main = Node::single(&[("CLUSTER_SECRET", "hush")]);
    let first = connected(main.address(), &[]);
    let second = Node::follower(first.address(), &[]);
    for number in 0..20 {
        assert_eq!(second.http().put(&target(&number.to_string()), BODY).status, 201);
    }
    assert_eq!(relayed(&second), 0);
    assert_eq!(open(first.address(), &upgrade()).1, 404);
    // A main tells whoever asks by HTTP what the path is for.
    let answer = main.http().get("/relay");
    assert_eq!((answer.status, answer.header("Upgrade")), (426, Some(PROTOCOL)));
    assert_eq!(answer.header("Connection"), Some("upgrade"), "{:?}", answer.headers);
    assert_eq!(main.http().put("/relay", BODY).status, 405);
}

/// Asks a node for a connection for many requests: the connection, and the status of the answer.
fn open(address: &str, headers: &str) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET /relay HTTP/1.1\r\nHost: {address}\r\nConnection: upgrade\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let answer = String::from_utf8(read_head(&mut stream).unwrap()).unwrap();
    let status = answer[9..12].parse().unwrap();
    assert!(status != 503 || answer.contains("Retry-After: "), "{answer}");
    (stream, status)
}

fn upgrade() -> String {
    format!("Upgrade: {PROTOCOL}\r\n")
}

fn opened(address: &str) -> TcpStream {
    let (stream, status) = open(address, &upgrade());
    assert_eq!(status, 101);
    stream
}

fn question(number: u64, method: Method, target: &str, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let is_one = Question { left_ms: 5000, method, target, headers: vec![], body }.encode(number, &mut frame);
    assert!(is_one);
    frame
}

/// Reads an answer: its number, status and body; status 0 where it says to ask by HTTP.
fn answered(stream: &mut TcpStream) -> (u64, u16, String) {
    let frame = read_frame(stream).expect("it is answered");
    let number = match frames::coming(&frame) {
        Ok(frames::Coming::Answer(number)) => number,
        other => panic!("{other:?}"),
    };
    match Answer::decode(&frame).unwrap() {
        Answer::Given(given) => (number, given.status, String::from_utf8(given.body.to_vec()).unwrap()),
        Answer::ByHttp => (number, 0, String::new()),
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn nothing_but_keys_of_clients_is_reached_by_it() {
    let main = Node::single(&[]);
    let mut stream = opened(main.address());
    let rows = [
        (Method::Put, "/node/keys/a", 404),
        (Method::Get, "/node/hello", 404),
        (Method::Put, "/node/recover", 404),
        (Method::Get, "/node/requests", 404),
        (Method::Get, "/relay", 404),
        (Method::Get, "/metrics", 404),
        (Method::Get, "/livez", 404),
        (Method::Get, "/no/such/path", 404),
        (Method::Get, "/kvs/keys", 404),
        // These are for HTTP.
        (Method::Get, "/kvs/view", 0),
        (Method::Put, "/kvs/view-change", 0),
        (Method::Get, "/kvs/audit", 0),
        (Method::Get, "/kvs/shards/1", 0),
        (Method::Put, "/kvs/keys/a", 201),
        (Method::Put, "/kv-store/a", 200),
    ];
    for (number, (method, target, wanted)) in rows.into_iter().enumerate() {
        stream.write_all(&question(number as u64, method, target, BODY)).unwrap();
        let (of, status, body) = answered(&mut stream);
        assert_eq!((of, status), (number as u64, wanted), "{target}: {body}");
    }
    stream.write_all(&question(99, Method::Put, "/kvs/keys/a", &vec![b' '; 33_000])).unwrap();
    assert_eq!(answered(&mut stream).1, 0, "a long body goes by HTTP");
    // What a long question makes of an answer is longer than a frame: it goes by HTTP, and harms no others.
    let long = format!("/kvs/keys/a?consistency={}", "\"".repeat(200_000));
    stream.write_all(&question(100, Method::Get, &long, b"")).unwrap();
    assert_eq!(answered(&mut stream).1, 0);
    stream.write_all(&question(101, Method::Get, "/kvs/keys/a", b"")).unwrap();
    assert_eq!(answered(&mut stream).1, 200);
    assert_eq!(main.http().get("/kvs/key-count").json()["key-count"], 1);
}

#[test]
fn garbage_and_half_frames_harm_nobody() {
    let main = Node::single(&[("IDLE_TIMEOUT_MS", "1000")]);
    let follower = connected(main.address(), &[]);
    let whole = question(7, Method::Put, "/kvs/keys/cut", BODY);
    let mut halves = Vec::new();
    for cut in (1..whole.len()).step_by(3) {
        let mut stream = opened(main.address());
        stream.write_all(&whole[..cut]).unwrap();
        halves.push(stream);
    }
    let mut huge = whole.clone();
    huge[..4].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
    let mut answer = Vec::new();
    Answer::ByHttp.encode(1, &mut answer);
    for wrong in [&b"GET /kvs/keys/a HTTP/1.1\r\n\r\n"[..], b"\x02\0\0\0\x01\x01", &huge, &answer] {
        let mut stream = opened(main.address());
        stream.write_all(wrong).unwrap();
        assert!(is_closed(&mut stream), "after {wrong:?}");
    }
    let mut client = follower.http();
    assert_eq!(client.put("/kvs/keys/a", BODY).status, 201);
    assert_eq!(client.get("/kvs/keys/cut").status, 404);
    // One that only holds a place loses it: it hears that no more is to be asked, and then it is closed.
    let mut silent = halves.pop().unwrap();
    let frame = read_frame(&mut silent).unwrap();
    assert_eq!(frames::coming(&frame), Ok(frames::Coming::Last));
    assert!(is_closed(&mut silent));
    wait_until("all have lost it", START_DEADLINE, || main.threads_named("relayed-by") <= 1);
}

#[test]
fn bytes_that_are_no_whole_question_keep_no_place() {
    let main = Node::single(&[("IDLE_TIMEOUT_MS", "1000")]);
    let mut stream = opened(main.address());
    let whole = question(7, Method::Put, "/kvs/keys/slow", &[b' '; 1000]);
    let mut bytes = whole.iter();
    wait_until("it has lost its place", START_DEADLINE, || {
        // Sooner than the connection counts as silent; far fewer than the question has.
        thread::sleep(Duration::from_millis(300));
        let _ = stream.write_all(&[*bytes.next().unwrap()]);
        main.threads_named("relayed-by") == 0
    });
}

/// How many requests of clients about keys a node has answered.
fn answered_keys(node: &Node) -> usize {
    let text = node.http().get("/metrics").text();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("evenkv_requests_total{") && line.contains("route=\"keys\""));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[test]
fn a_long_value_that_has_to_go_by_http_is_counted_once() {
    let cluster = Cluster::of(2);
    let main = &cluster.nodes[0];
    let follower = connected(main.address(), &[]);
    let value = json!({ "value": "v".repeat(40_000) }).to_string();
    for owner in 0..2 {
        let target = target(&cluster.key_of(owner, "long-"));
        assert_eq!(main.http().put(&target, &value).status, 201);
        let mut client = follower.http();
        assert_eq!(client.get(&target).status, 200);
        let before = answered_keys(main);
        for _ in 0..10 {
            assert_eq!(client.get(&target).status, 200);
        }
        assert_eq!(answered_keys(main) - before, 10, "owner {owner}");
    }
}

/// What was told by other nodes is held for whoever does not take it, up to a bound.
#[test]
fn whoever_is_slow_to_read_what_others_answer_costs_little() {
    let cluster = Cluster::of(2);
    let main = &cluster.nodes[0];
    let target = target(&cluster.key_of(1, "long-"));
    let value = json!({ "value": "v".repeat(30_000) }).to_string();
    assert_eq!(main.http().put(&target, &value).status, 201);
    assert_eq!(connected(main.address(), &[]).http().get(&target).status, 200);
    let questions = question(1, Method::Get, &target, b"").repeat(1000);
    let before = main.peak_bytes();
    let mut streams: Vec<TcpStream> = (0..8).map(|_| opened(main.address())).collect();
    for stream in &mut streams {
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = stream.write_all(&questions);
    }
    let mut last = 0;
    wait_until("all is told that will be", START_DEADLINE, || {
        let told = answered_keys(main);
        std::mem::replace(&mut last, told) == told && told >= 1000
    });
    let more = main.peak_bytes() - before;
    eprintln!("{more} bytes, {last} answers");
    // The answers to what one of them has asked are 30 MB.
    assert!(more < 48 << 20, "{more} bytes");
}

/// tiny_http goes on with the connection where `Connection` does not say that it is upgraded: the request behind would wait for its end, and a worker with it.
#[test]
fn a_request_behind_half_an_upgrade_holds_no_worker() {
    let main = Node::single(&[]);
    for lines in ["", "Connection: keep-alive\r\n"] {
        let behind = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
        let sent = format!("GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: {PROTOCOL}\r\n{lines}\r\n{behind}");
        let streams: Vec<TcpStream> = (0..20)
            .map(|_| {
                let mut stream = TcpStream::connect(main.address()).expect("a connection");
                stream.write_all(sent.as_bytes()).expect("it is sent");
                stream
            })
            .collect();
        for mut stream in streams {
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let head = read_head(&mut stream).expect("an answer");
            assert!(head.starts_with(b"HTTP/1.1 426 "), "{lines:?}: {}", String::from_utf8_lossy(&head));
        }
        assert_eq!(main.http().get("/livez").status, 200);
    }
}

#[test]
fn there_are_no_more_than_so_many() {
    let main = Node::single(&[]);
    let mut held = Vec::new();
    let refused = loop {
        let (stream, status) = open(main.address(), &upgrade());
        if status != 101 {
            break status;
        }
        held.push(stream);
    };
    assert_eq!((held.len(), refused), (128, 503));
    // A follower asks by HTTP, and is let in later.
    let follower = Node::follower(main.address(), &[]);
    for number in 0..20 {
        assert_eq!(follower.http().put(&target(&number.to_string()), BODY).status, 201);
    }
    assert_eq!(relayed(&follower), 0);
    drop(held);
    wait_until("requests are passed on together", START_DEADLINE, || {
        follower.http().get("/kvs/keys/none");
        relayed(&follower) > 0
    });
}

#[test]
fn whoever_does_not_read_his_answers_is_cut_off() {
    let main = Node::single(&[]);
    let mut client = main.http();
    let value = json!({ "value": "v".repeat(30_000) }).to_string();
    assert_eq!(client.put(&target("long"), &value).status, 201);
    let questions = question(1, Method::Get, &target("long"), b"").repeat(1000);
    let mut stream = opened(main.address());
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let before = main.resident_bytes();
    // Its answers would be 6 GB.
    assert!((0..200).any(|_| stream.write_all(&questions).is_err()), "it took all questions");
    wait_until("no thread is left of it", START_DEADLINE, || main.threads_named("relayed-by") == 0);
    let more = main.resident_bytes().saturating_sub(before);
    assert!(more < 64 << 20, "{more} bytes");
    assert_eq!(client.get(&target("long")).status, 200);
}

/// Its follower does not lose what it is asked meanwhile: no write ends without it being known what it did.
#[test]
fn a_node_that_stops_leaves_no_write_of_its_follower_unknown() {
    let cluster = replicated(3, 3, &[]);
    let main = &cluster.nodes[2];
    let follower = connected(main.address(), &[]);
    let (writes, stopped) = (AtomicUsize::new(0), AtomicUsize::new(0));
    at_once(5, |number| {
        if number == 0 {
            wait_until("there are writes", START_DEADLINE, || writes.load(Ordering::Relaxed) > 200);
            main.terminate();
            return;
        }
        let mut client = follower.http();
        for write in 0.. {
            let answer = client.put(&target(&format!("{number}-{write}")), BODY);
            writes.fetch_add(1, Ordering::Relaxed);
            if answer.status == 201 {
                continue;
            }
            assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{}", answer.text());
            if answer.json()["error"] == "Main instance is down" {
                stopped.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    });
    assert_eq!(stopped.load(Ordering::Relaxed), 4);
}
