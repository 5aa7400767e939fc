//! A follower and its main: what is passed on, and when the main counts as down.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use support::fake_main::{FakeMain, answer};
use support::http::{Http, Response, chunked};
use support::node::Node;
use support::{START_DEADLINE, at_once, ports, timed, wait_until};

/// A main that is down is said within this time.
const DOWN_LIMIT: Duration = Duration::from_millis(1500);
const BODY: &[u8] = br#"{"value":1}"#;
const METHODS: [&str; 3] = ["PUT", "GET", "DELETE"];

/// Held by the tests that measure time or move much data, so that they do not slow each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that each method is answered 503 in time; `outcome` is what must be said of the PUT. Once that has shown that
/// the main is down, a DELETE need not be sent to it any more.
fn check_main_is_down(client: &mut Http, outcome: &str) {
    for method in METHODS {
        let (answer, took) = timed(|| client.request(method, "/kv-store/keys/a", &[], BODY));
        assert_eq!(answer.status, 503, "{method}: {}", answer.text());
        let expected = json!({"error": "Main instance is down", "message": format!("Error in {method}")});
        assert_eq!(answer.json(), expected);
        assert!(took < DOWN_LIMIT, "{method} took {took:?}");
        match method {
            "PUT" => assert_eq!(answer.header("Evenkv-Outcome"), Some(outcome)),
            "DELETE" => {
                assert!([Some(outcome), Some("not-applied")].contains(&answer.header("Evenkv-Outcome")));
            }
            _ => assert_eq!(answer.header("Evenkv-Outcome"), None),
        }
    }
}

fn wait_until_it_works(client: &mut Http) {
    wait_until("the follower works again by itself", START_DEADLINE, || {
        client.put("/kvs/keys/back", BODY).status < 300
    });
}

#[test]
fn a_main_that_was_never_there_is_down() {
    let _alone = alone();
    let follower = Node::follower(&ports::free_address(), &[]);
    check_main_is_down(&mut follower.http(), "not-applied");
}

#[test]
fn a_main_at_an_unknown_name_is_down() {
    let _alone = alone();
    let follower = Node::follower("main.invalid:13800", &[]);
    let answer = follower.http().get("/kv-store/keys/a");
    assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("Main instance is down")));
}

#[test]
fn a_main_that_accepts_and_says_nothing_is_down() {
    let _alone = alone();
    let address = ports::free_address();
    // The system completes the connections; nobody ever takes them.
    let _silent = TcpListener::bind(&address).expect("the port was free");
    let follower = Node::follower(&address, &[]);
    check_main_is_down(&mut follower.http(), "unknown");
}

#[test]
fn a_killed_main_is_down_until_it_returns() {
    let _alone = alone();
    let mut main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let mut client = follower.http();
    assert_eq!(client.put("/kvs/keys/a", BODY).status, 201);
    for _ in 0..2 {
        main.kill();
        check_main_is_down(&mut client, "not-applied");
        main.restart();
        wait_until_it_works(&mut client);
        assert_eq!(client.get("/kvs/keys/a").status, 404, "the main came back empty, and is asked again");
        assert_eq!(client.put("/kvs/keys/a", BODY).status, 201);
    }
}

#[test]
fn a_stopped_main_is_down_until_it_goes_on() {
    let _alone = alone();
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let mut client = follower.http();
    assert_eq!(client.put("/kvs/keys/kept", BODY).status, 201);
    main.pause();
    check_main_is_down(&mut client, "unknown");
    // Many at the same time are told as soon as one alone.
    let slowest = at_once(16, |_| timed(|| follower.http().get("/kvs/keys/a")));
    for (answer, took) in slowest {
        assert_eq!(answer.status, 503);
        assert!(took < DOWN_LIMIT, "one of 16 took {took:?}");
    }
    main.resume();
    wait_until_it_works(&mut client);
    assert_eq!(client.get("/kvs/keys/kept").status, 200);
}

#[test]
fn a_stopped_main_is_told_for_large_bodies_too() {
    let _alone = alone();
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    main.pause();
    let body = value_of(30_000);
    let (answer, took) = timed(|| follower.http().put("/kvs/keys/a", &body));
    assert_eq!(answer.json()["error"], "Main instance is down");
    assert!(took < DOWN_LIMIT, "it took {took:?}");
}

#[test]
fn an_upload_that_is_cut_short_is_no_fault_of_the_main_and_leaves_its_worker_free() {
    let _alone = alone();
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[("LARGE_WORKERS", "1")]);
    for _ in 0..3 {
        let mut client = TcpStream::connect(follower.address()).expect("the follower listens");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
        let head = "PUT /kvs/keys/cut HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n{\"value\":";
        client.write_all(head.as_bytes()).expect("it takes the beginning");
        client.shutdown(Shutdown::Write).expect("the client has said all it wants to");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("it is answered");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("Evenkv-Outcome: not-applied\r\n"), "{answer}");
    }
    assert_eq!(follower.http().put("/kvs/keys/whole", value_of(200_000)).status, 201);
    assert_eq!(follower.http().get("/kvs/keys/cut").status, 404);
}

#[test]
fn a_slow_main_is_not_down() {
    let _alone = alone();
    let main = FakeMain::start(|_| {
        // Nobody sends on this channel: the wait is the slowness that the test is about.
        let (_sender, receiver) = mpsc::channel::<()>();
        assert!(receiver.recv_timeout(Duration::from_millis(2500)).is_err());
        answer("200 OK", &[("Content-Type", "application/json")], br#"{"slow":true}"#)
    });
    let follower = Node::follower(main.address(), &[]);
    let started = Instant::now();
    for answer in at_once(3, |number| follower.http().request(METHODS[number], "/kvs/keys/a", &[], BODY)) {
        assert_eq!((answer.status, answer.json()), (200, json!({"slow": true})));
    }
    assert!(started.elapsed() >= Duration::from_millis(2500));
    assert_eq!(main.arrived().len(), 3, "nothing was sent twice");
}

#[test]
fn an_error_of_the_main_is_passed_on_and_not_taken_for_its_absence() {
    for (status, code) in
        [("500 Internal Server Error", 500), ("503 Service Unavailable", 503), ("404 No", 404)]
    {
        let main = FakeMain::start(move |_| {
            answer(
                status,
                &[("Evenkv-Outcome", "unknown"), ("Retry-After", "7")],
                b"{\"error\": \"of the main\"}",
            )
        });
        let follower = Node::follower(main.address(), &[]);
        for method in METHODS {
            let answer = follower.http().request(method, "/kv-store/keys/a", &[], BODY);
            assert_eq!(answer.status, code);
            assert_eq!(answer.text(), "{\"error\": \"of the main\"}");
            assert_eq!(answer.header("Evenkv-Outcome"), Some("unknown"));
            assert_eq!(answer.header("Retry-After"), Some("7"));
        }
        assert_eq!(main.arrived().len(), 3, "nothing was sent twice");
    }
}

#[test]
fn a_main_that_breaks_off_leaves_the_outcome_unknown() {
    // One hangs up instead of answering; the other sends half a head and then nothing.
    for half in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let main = FakeMain::start(move |_| half.into());
        let follower = Node::follower(main.address(), &[("REQUEST_TIMEOUT_MS", "2000")]);
        let (answer, took) = timed(|| follower.http().put("/kv-store/keys/a", BODY));
        assert!(answer.status >= 500, "{} {}", answer.status, answer.text());
        assert_eq!(answer.header("Evenkv-Outcome"), Some("unknown"), "{half:?}");
        assert!(took < Duration::from_secs(4), "it took {took:?}");
        assert_eq!(main.arrived().len(), 1, "a PUT that may have been applied is not sent again");
    }
}

#[test]
fn paths_queries_headers_and_bodies_reach_the_main_unchanged() {
    let main = FakeMain::start(|_| answer("200 OK", &[], b"ok"));
    let follower = Node::follower(main.address(), &[]);
    let targets = [
        "/kv-store/keys/a",
        "/kvs/keys/a/../b/./c//d/",
        "/kv-store/keys/..",
        "/kvs//keys//",
        "/kv-store/%2F%2f%2E%2e%41%zz%",
        "/kvs/keys/a?b=c&d=%20+%2F?/../",
        "/kv-store/keys/a?",
        "/kvs/keys/;,:@&=+$-_.!~*'()",
        "/kv-store/keys/\"[]{}|\\^",
        "/kvs",
        "/kv-store/",
        "/kvs/no/such/path",
    ];
    let mut client = follower.http();
    for target in targets {
        for method in METHODS {
            let sent = [
                ("X-Thing", "a  b; c=\"d\""),
                ("Content-Type", "text/odd; charset=x"),
                ("Accept", "*/*;q=0.1"),
            ];
            let body = b"\0\xff not JSON \r\n";
            assert_eq!(client.request(method, target, &sent, body).text(), "ok", "{method} {target}");
            let arrived = main.arrived().pop().expect("it arrived");
            assert_eq!((arrived.method.as_str(), arrived.target.as_str()), (method, target));
            assert_eq!(arrived.body, body, "{method} {target}");
            for (name, value) in sent {
                assert_eq!(arrived.header(name), Some(value), "{method} {target}");
            }
        }
    }
    assert_eq!(client.request("PATCH", "/kvs/keys/a", &[], b"x").text(), "ok", "the main judges the method");
    assert_eq!(main.arrived().pop().expect("it arrived").method, "PATCH");
}

/// A main that is asked through a proxy is asked for the same, whatever the host is called.
#[test]
fn a_target_in_absolute_form_is_passed_on_without_its_host() {
    let main = FakeMain::start(|_| answer("200 OK", &[], b"ok"));
    let follower = Node::follower(main.address(), &[]);
    let mut client = follower.http();
    for host in ["kv1:80", "kv-store", "kvs.kv", "127.0.0.1", "[::1]:80"] {
        for target in ["/kv-store/keys/a", "/kvs/keys/kvs//b?c=/kv", "/kvs?"] {
            let absolute = format!("http://{host}{target}");
            assert_eq!(client.get(&absolute).text(), "ok", "{absolute}");
            assert_eq!(main.arrived().pop().expect("it arrived").target, target, "{absolute}");
        }
    }
    // Nothing of the host or the query is a path.
    for target in ["http://kv1:80", "http://kv1:80?/kvs/keys/a", "http://h?/kvs/keys/a", "kvs/keys/a"] {
        assert_eq!(client.get(target).status, 404, "{target}");
    }
}

#[test]
fn a_body_keeps_its_declared_length_on_the_way() {
    let main = FakeMain::start(|_| answer("200 OK", &[], b"ok"));
    let follower = Node::follower(main.address(), &[]);
    for length in [0, 1, 1025, 70_000] {
        assert_eq!(follower.http().put("/kvs/keys/a", vec![b'x'; length]).text(), "ok");
        let arrived = main.arrived().pop().expect("it arrived");
        assert_eq!(arrived.header("transfer-encoding"), None, "{length} bytes were declared");
        // No body at all needs no length.
        let declared = arrived.header("content-length").unwrap_or("0");
        assert_eq!((arrived.body.len(), declared), (length, length.to_string().as_str()));
    }
}

#[test]
fn a_body_that_the_main_refuses_before_it_was_read_is_passed_on_as_refused() {
    let main = Node::single(&[("MAX_VALUE_LENGTH", "1000")]);
    let follower = Node::follower(main.address(), &[]);
    for length in [70_000, 200_000, 2 << 20] {
        let answer = follower.http().put("/kvs/keys/a", value_of(length));
        assert_eq!(answer.status, 413, "{length}: {}", answer.text());
        let answer = follower.http().put("/kvs/view/no-such", value_of(length));
        assert_eq!(answer.status, 404, "{length}: {}", answer.text());
    }
}

#[test]
fn statuses_headers_and_bodies_come_back_unchanged() {
    let body = b"\0\xff any bytes \r\n\r\n";
    let main = FakeMain::start(move |_| {
        let headers = [
            ("Content-Type", "text/odd; a=b"),
            ("ETag", "\"17\""),
            ("Evenkv-Limit", "1024"),
            ("Location", "/kv-store/view-change"),
            ("X-Thing", "one"),
            ("X-Thing", "two"),
        ];
        answer("418 I'm a teapot", &headers, body)
    });
    let follower = Node::follower(main.address(), &[]);
    let got = follower.http().get("/kvs/keys/a");
    assert_eq!(got.status, 418);
    assert_eq!(got.body, body);
    assert_eq!(got.header("Content-Type"), Some("text/odd; a=b"));
    assert_eq!(got.header("ETag"), Some("\"17\""));
    assert_eq!(got.header("Evenkv-Limit"), Some("1024"));
    assert_eq!(got.header("Location"), Some("/kv-store/view-change"), "a redirect is the client's to follow");
    let things = got.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-thing"));
    let things: Vec<&str> = things.map(|(_, value)| value.as_str()).collect();
    assert_eq!(things, ["one", "two"]);
}

#[test]
fn a_redirect_of_the_main_is_not_followed() {
    let main =
        FakeMain::start(|_| answer("307 Temporary Redirect", &[("Location", "/kvs/keys/b")], b"there"));
    let follower = Node::follower(main.address(), &[]);
    let got = follower.http().get("/kvs/keys/a");
    assert_eq!((got.status, got.header("Location")), (307, Some("/kvs/keys/b")));
    assert_eq!(main.arrived().len(), 1);
}

/// A PUT body whose value is a string of `length` different letters.
fn value_of(length: usize) -> Vec<u8> {
    let mut body = b"{\"value\":\"".to_vec();
    body.extend((b'a'..=b'z').cycle().take(length));
    body.extend_from_slice(b"\"}");
    body
}

fn check_value(got: &Response, put: &[u8]) {
    assert_eq!(got.status, 200);
    let value = &put[b"{\"value\":".len()..put.len() - 1];
    let start = got.body.windows(8).position(|bytes| bytes == b"\"value\":").expect("a value") + 8;
    assert!(got.body[start..].starts_with(value), "the value of {} bytes came back changed", value.len());
}

#[test]
fn bodies_of_any_size_pass_both_ways() {
    let _alone = alone();
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let kib = 1 << 10;
    let sizes = [
        1,
        1000,
        1024,
        1025,
        65_500,
        64 * kib - 1,
        64 * kib,
        64 * kib + 1,
        100_000,
        kib * kib,
        8 * kib * kib - 2,
    ];
    let mut client = follower.http();
    for size in sizes {
        let body = value_of(size);
        let put = client.put("/kvs/keys/by-length", &body);
        assert!(put.status < 300, "{size}: {}", put.text());
        check_value(&client.get("/kvs/keys/by-length"), &body);
        check_value(&main.http().get("/kvs/keys/by-length"), &body);
        for piece in [7_000, 100_000] {
            let headers = [("Transfer-Encoding", "chunked")];
            let put = client.request("PUT", "/kvs/keys/by-chunks", &headers, &chunked(&body, piece));
            assert!(put.status < 300, "{size} in chunks of {piece}: {}", put.text());
            check_value(&client.get("/kvs/keys/by-chunks"), &body);
        }
    }
    let refused = client.put("/kvs/keys/too-large", value_of(8 * kib * kib - 1));
    assert_eq!(refused.status, 413, "the main's limit is passed on: {}", refused.text());
    assert_eq!(follower.http().get("/kvs/keys/too-large").status, 404);
}

#[test]
fn a_chunked_upload_of_small_chunks_passes() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let headers = [("Transfer-Encoding", "chunked")];
    for size in [0, 1, 500, 3_000] {
        let body = value_of(size);
        let put = follower.http().request("PUT", "/kvs/keys/a", &headers, &chunked(&body, 1));
        assert!(put.status < 300, "{}", put.text());
        check_value(&follower.http().get("/kvs/keys/a"), &body);
    }
}

#[test]
fn idle_connections_to_a_main_that_was_restarted_are_replaced() {
    let mut main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for round in 0..3 {
        // Several connections to the main are left idle.
        at_once(12, |number| {
            for _ in 0..5 {
                let answer = follower.http().put(&format!("/kvs/keys/{number}"), BODY);
                assert!(answer.status < 300, "{}", answer.text());
            }
        });
        main.restart();
        main.wait_ready();
        let mut client = follower.http();
        for number in 0..20 {
            let answer = client.put(&format!("/kvs/keys/{number}"), BODY);
            assert_eq!(answer.status, 201, "request {number}, round {round}: {}", answer.text());
        }
    }
}

#[test]
fn two_followers_of_each_other_are_told_at_once() {
    for workers in [None, Some("1")] {
        let settings: Vec<_> = workers.map(|count| ("CLIENT_WORKERS", count)).into_iter().collect();
        let there = ports::free_address();
        let here = Node::follower(&there, &settings);
        let mut all = vec![("FORWARDING_ADDRESS", here.address())];
        all.extend_from_slice(&settings);
        let there = Node::start(&there, &all);
        // Each takes the other for its main. The first one was there before the second, and may hear only now that it was down.
        wait_until("each knows that the other is there", START_DEADLINE, || {
            [&here, &there].iter().all(|node| node.http().get("/kvs/keys/a").status == 508)
        });
        for node in [&here, &there] {
            check_loop(node, 1);
            check_loop(node, 8);
        }
        at_once(2, |number| check_loop([&here, &there][number], 8));
    }
}

fn check_loop(node: &Node, clients: usize) {
    at_once(clients, |number| {
        let method = METHODS[number % 3];
        let (answer, took) = timed(|| node.http().request(method, "/kvs/keys/a", &[], BODY));
        assert_eq!(answer.status, 508, "{method}: {}", answer.text());
        assert_eq!(answer.json()["message"], format!("Error in {method}"));
        assert!(took < Duration::from_secs(1), "{method} took {took:?}");
        if method != "GET" {
            assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"));
        }
    });
}

#[test]
fn a_follower_tells_its_own_health() {
    let main = FakeMain::start(|_| answer("200 OK", &[], b"of the main"));
    let follower = Node::follower(main.address(), &[]);
    for path in ["/livez", "/metrics"] {
        let answer = follower.http().get(path);
        assert_eq!(answer.status, 200);
        assert_ne!(answer.text(), "of the main");
    }
    assert!(main.arrived().iter().all(|request| request.target != "/metrics"));
}

#[test]
fn a_follower_holds_no_pairs() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for number in 0..50 {
        assert_eq!(follower.http().put(&format!("/kv-store/{number}"), BODY).status, 201);
    }
    assert_eq!(main.http().get("/kv-store/key-count").json()["key-count"], 50);
    assert_eq!(follower.http().get("/kv-store/key-count").json()["key-count"], 50, "it is the main's count");
    drop(main);
    check_main_is_down(&mut follower.http(), "not-applied");
}
