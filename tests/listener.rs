//! What the listener makes of requests that are unusual or ambiguous, one connection at a time.
#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test polls and measures"
)]

#[path = "support/attack.rs"]
mod attack;
mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use attack::{connect_and_send, metric, prompt, receive_all, receive_status, send_while_taken};
use support::http::{Http, Response, chunked};
use support::node::Node;
use support::{at_once, ports, timed};

/// How long nothing may come before a test takes an answer for complete.
const SILENCE: Duration = Duration::from_millis(300);

/// A request that nobody sent as such: it is the body of another one.
fn smuggled(number: usize) -> String {
    let body = "{\"value\":\"smuggled\"}";
    format!(
        "PUT /kv-store/keys/smuggled-{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Several headers of one name are one list.
fn says_close(answer: &Response) -> bool {
    let of_connection = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    of_connection.into_iter().any(|(_, value)| value.eq_ignore_ascii_case("close"))
}

#[test]
fn ambiguous_framing_is_refused_and_nothing_behind_it_is_executed() {
    let node = Node::single(&[]);
    let table = [
        "HTTP/1.1|Content-Length: 5|Content-Length: 5",
        "HTTP/1.1|Content-Length: 0|Content-Length: 5",
        "HTTP/1.1|Content-Length: 2000|Content-Length: 5",
        "HTTP/1.1|Content-Length: 60000000000|Content-Length: 5",
        "HTTP/1.1|Content-Length: 18446744073709551615|Content-Length: 5",
        "HTTP/1.1|Content-Length: 5|Transfer-Encoding: chunked",
        "HTTP/1.1|Transfer-Encoding: chunked|Content-Length: 60000000000",
        "HTTP/1.1|Content-Length: +5",
        "HTTP/1.1|Content-Length: +60000000000",
        "HTTP/1.1|Content-Length: +18446744073709551615",
        "HTTP/1.1|Content-Length: -5",
        "HTTP/1.1|Content-Length: 5, 5",
        "HTTP/1.1|Content-Length: 0x5",
        "HTTP/1.1|Content-Length:",
        "HTTP/1.1|Content-Length: 18446744073709551616",
        "HTTP/1.1|Content-Length: 99999999999999999999999999",
        "HTTP/1.1|Transfer-Encoding: gzip",
        "HTTP/1.1|Transfer-Encoding: identity",
        "HTTP/1.1|Transfer-Encoding: gzip, chunked",
        "HTTP/1.1|Transfer-Encoding: chunked|Transfer-Encoding: identity",
        "HTTP/1.1|Transfer-Encoding: chunked|Connection: Upgrade|Upgrade: h2c",
        "HTTP/1.1|Content-Length: 5|Content-Length: 6|Connection: Upgrade|Upgrade: h2c",
        "HTTP/1.1|Content-Length: 5|Content-Length: 6|Expect: 100-continue",
        "HTTP/1.1|X: a\nContent-Length: 5",
        "HTTP/1.1|X: a\rContent-Length: 5",
        "HTTP/1.0|Transfer-Encoding: chunked",
        "HTTP/1.0|Transfer-Encoding: chunked|Connection: keep-alive",
        "HTTP/0.9|Transfer-Encoding: chunked",
    ];
    for (number, row) in table.iter().enumerate() {
        let (version, headers) = row.split_once('|').expect("a version");
        let headers = headers.replace('|', "\r\n");
        let mut client = Http::with_patience(node.address(), Duration::from_secs(5));
        let head = format!("PUT /kv-store/keys/framing HTTP-VERSION\r\nHost: x\r\n{headers}\r\n\r\n");
        let bytes = head.replace("HTTP-VERSION", version) + &smuggled(number) + &smuggled(number);
        client.send(bytes.as_bytes()).expect("a small request is taken");
        let answer = client.receive("PUT").unwrap_or_else(|error| panic!("{row:?}: no answer: {error}"));
        assert_eq!(answer.status, 400, "{row:?}: {}", answer.text());
        assert!(says_close(&answer), "{row:?}: {answer:?}");
        assert_eq!(answer.header("evenkv-outcome"), Some("not-applied"), "{row:?}");
        assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains(": ")), "{row:?}");
        assert_eq!(answer.json()["message"], "Error in PUT", "{row:?}");
    }
    // What tiny_http itself does not understand it answers with a bare 400, or not at all.
    let unreadable: [&[u8]; 5] = [
        b"PUT /kv-store/keys/\xc3\xa9 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
        b"PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n",
        b"PUT /kv-store/keys/a b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
        b"PUT /kv-store/keys/a HTTP/1.1\nHost: x\nContent-Length: 5\n\n",
        b"PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n",
    ];
    for (number, head) in unreadable.iter().enumerate() {
        let bytes = [head, smuggled(table.len() + number).as_bytes(), b"\r\n\r\n"].concat();
        let mut stream = connect_and_send(node.address(), &bytes).expect("a small request is taken");
        let answer = receive_all(&mut stream, Duration::from_secs(2));
        let shown = String::from_utf8_lossy(head);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{shown}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), usize::from(!answer.is_empty()), "{shown}: {answer}");
    }
    let mut client = node.http();
    for number in 0..table.len() + unreadable.len() {
        let answer = client.get(&format!("/kv-store/keys/smuggled-{number}"));
        assert_eq!(answer.status, 404, "row {number} was executed: {}", answer.text());
    }
    assert_eq!(client.get("/kv-store/keys/framing").status, 404);
}

/// How a connection stands after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The next request on it is answered.
    GoesOn,
    /// The node has said that it ends here, and answers nothing more.
    Ended,
    /// The node has closed it.
    Closed,
    /// The node waits for more.
    Waits,
}

/// What comes of these bytes: the statuses of the answers, and how the connection stands then.
fn outcome(node: &Node, bytes: &[u8]) -> (Vec<u16>, Then) {
    let mut stream = connect_and_send(node.address(), bytes).expect("a small request is taken");
    let answers = receive_all(&mut stream, Duration::from_secs(1));
    let status = |rest: &str| rest.get(1..)?.strip_prefix(' ')?.get(..3)?.parse().ok();
    let statuses: Vec<u16> = answers.split("HTTP/1.").skip(1).filter_map(status).collect();
    let is_closed = !matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    if is_closed || statuses.is_empty() {
        return (statuses, if is_closed { Then::Closed } else { Then::Waits });
    }
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").expect("a small request is taken");
    let next = receive_all(&mut stream, Duration::from_secs(1));
    if next.is_empty() && answers.contains("\r\nConnection: close\r\n") {
        return (statuses, Then::Ended);
    }
    assert!(next.ends_with("{\"alive\":true}"), "after {answers:?}: {next:?}");
    (statuses, Then::GoesOn)
}

/// What the node judges by itself.
#[test]
fn a_host_is_named_once_and_trailers_are_refused() {
    let node = Node::single(&[]);
    let chunks = "Transfer-Encoding: chunked\r\n\r\nb\r\n{\"value\":1}\r\n";
    let table = [
        ("no host", "GET /livez HTTP/1.1\r\n\r\n".to_owned(), 400, Then::Ended),
        ("two hosts", "GET /livez HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n".to_owned(), 400, Then::Ended),
        ("no host in 1.0", "GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(), 200, Then::GoesOn),
        ("two hosts in 1.0", "GET /livez HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(), 400, Then::Closed),
        ("an empty host", "GET /livez HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), 200, Then::GoesOn),
        ("no trailers", format!("PUT /kvs/keys/a HTTP/1.1\r\nHost: x\r\n{chunks}0\r\n\r\n"), 201, Then::GoesOn),
        ("a trailer", format!("PUT /kvs/keys/b HTTP/1.1\r\nHost: x\r\n{chunks}0\r\nX: y\r\n\r\n"), 400, Then::Closed),
        ("a request as a trailer", format!("PUT /kvs/keys/b HTTP/1.1\r\nHost: x\r\n{chunks}0\r\n{}", smuggled(1)), 400, Then::Closed),
        (
            "an extension of a chunk",
            "PUT /kvs/keys/c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb;a=b\r\n{\"value\":1}\r\n0;c\r\n\r\n".to_owned(),
            201,
            Then::GoesOn,
        ),
    ];
    let outcomes = at_once(table.len(), |row| outcome(&node, table[row].1.as_bytes()));
    for ((name, _, status, then), outcome) in table.into_iter().zip(outcomes) {
        // A second answer is one that could be taken for another request's.
        assert_eq!(outcome, (vec![status], then), "{name}");
    }
    for key in ["b", "smuggled-1"] {
        assert_eq!(node.http().get(&format!("/kvs/keys/{key}")).status, 404, "{key}");
    }
}

/// What the listener decides without showing it to anybody, right or not: see `docs/LISTENER.md`, which changes with this table.
#[test]
fn what_the_listener_decides_by_itself_is_as_it_was() {
    let node = Node::single(&[]);
    let value = "{\"value\":1}";
    let put = |headers: &str| format!("PUT /kvs/keys/a HTTP/1.1\r\nHost: x\r\n{headers}");
    assert_eq!(node.http().put("/kvs/keys/a", value).status, 201);
    let table: [(&str, String, &[u16], Then); 14] = [
        (
            "a header that begins with a blank",
            put(&format!(" Content-Length: 11\r\n\r\n{value}")),
            &[200],
            Then::GoesOn,
        ),
        (
            "a folded header",
            put(&format!("X: y\r\n Z: y\r\nContent-Length: 11\r\n\r\n{value}")),
            &[200],
            Then::GoesOn,
        ),
        (
            "a vertical tab before chunked",
            put(&format!("Transfer-Encoding: \x0bchunked\r\n\r\nb\r\n{value}\r\n0\r\n\r\n")),
            &[200],
            Then::GoesOn,
        ),
        ("bare line feeds", "GET /livez HTTP/1.1\nHost: x\n\n".to_owned(), &[], Then::Waits),
        (
            "an empty line first",
            "\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            &[400],
            Then::Closed,
        ),
        ("HTTP/1.2", "GET /livez HTTP/1.2\r\nHost: x\r\n\r\n".to_owned(), &[400], Then::Closed),
        (
            "words after the version",
            "GET /livez HTTP/1.1 x\r\nHost: x\r\n\r\n".to_owned(),
            &[200],
            Then::GoesOn,
        ),
        ("no ASCII in a value", put("X: \u{e9}\r\n\r\n"), &[], Then::Closed),
        (
            "no ASCII in a target",
            "GET /kvs/keys/\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            &[],
            Then::Closed,
        ),
        (
            "Expect",
            put(&format!("Expect: 100-continue\r\nContent-Length: 11\r\n\r\n{value}")),
            &[100, 200],
            Then::GoesOn,
        ),
        (
            "Expect from HTTP/1.0",
            format!("PUT /kvs/keys/a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n{value}"),
            &[100, 200],
            Then::Closed,
        ),
        ("a short body that stalls", put("Content-Length: 1024\r\n\r\n{"), &[], Then::Waits),
        ("HTTP/2.0", "GET /livez HTTP/2.0\r\nHost: x\r\n\r\n".to_owned(), &[], Then::Waits),
        ("HTTP/3.0", "GET /livez HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(), &[], Then::Waits),
    ];
    let outcomes = at_once(table.len(), |row| outcome(&node, table[row].1.as_bytes()));
    for ((name, _, statuses, then), outcome) in table.into_iter().zip(outcomes) {
        assert_eq!(outcome, (statuses.to_vec(), then), "{name}");
    }
}

#[test]
fn a_body_that_is_not_read_is_never_taken_for_a_request() {
    let node = Node::single(&[("MAX_VALUE_LENGTH", "1000")]);
    let bodies = smuggled(1).repeat(2000);
    let heads = [
        format!("PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", bodies.len()),
        "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        format!(
            "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nContent-Length: {}\r\n\r\n",
            bodies.len()
        ),
        "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000000\r\n\r\n".to_owned(),
    ];
    for head in heads {
        // Where the rest is sure to come, the connection goes on behind it.
        let goes_on = head.contains("Content-Length: 182") && !head.contains("upgrade");
        let mut body = bodies.clone();
        if head.contains("chunked") {
            body = String::from_utf8(chunked(bodies.as_bytes(), 1 << 20)).expect("text");
        }
        body.push_str(&smuggled(if goes_on { 2 } else { 1 }));
        let mut client = Http::with_patience(node.address(), Duration::from_secs(5));
        // The node may stop to read at any time.
        let _ = client.send((head.clone() + &body).as_bytes());
        let answer = client.receive("PUT").unwrap_or_else(|error| panic!("{head}: no answer: {error}"));
        assert_eq!(answer.status, 413, "{head}: {}", answer.text());
        assert_eq!(says_close(&answer), !goes_on, "{head}: {answer:?}");
        // See `docs/LISTENER.md`: nothing else than an upgrade hands out the connection of a body that nobody reads.
        assert_eq!(answer.header("Upgrade"), Some("HTTP/1.1"), "{head}: {answer:?}");
        if goes_on {
            assert_eq!(client.receive("PUT").expect("the next request is answered").status, 201);
        }
    }
    assert_eq!(node.http().get("/kv-store/keys/smuggled-1").status, 404);
}

/// Of a body without end the rest is not read, and what had come of it is no request either.
#[test]
fn a_body_that_is_cut_off_is_never_taken_for_a_request() {
    let node = Node::single(&[("MAX_VALUE_LENGTH", "1000")]);
    let bodies = smuggled(1).repeat(1_000_000);
    let length = bodies.len();
    let heads = [
        "Transfer-Encoding: chunked".to_owned(),
        format!("Connection: upgrade\r\nContent-Length: {length}"),
        format!("Content-Length: {length}"),
    ];
    for head in heads {
        let body = if head.contains("chunked") {
            chunked(bodies.as_bytes(), 1 << 20)
        } else {
            bodies.clone().into_bytes()
        };
        let head = format!("PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
        // Of a body that does not say its length too much has to come first.
        let (first, rest) = body.split_at(if head.contains("chunked") { 200_000 } else { 0 });
        let sent = [head.as_bytes(), first].concat();
        let mut stream = connect_and_send(node.address(), &sent).expect("what comes first is taken");
        assert_eq!(receive_status(&mut stream).expect("it is answered at once"), 413, "{head}");
        let sent = send_while_taken(&mut stream, rest, Duration::from_secs(10));
        assert!(sent < rest.len(), "{head}: all of it was taken");
        let thrown_away = || metric(&node, "evenkv_cut_off_requests_total");
        let mut before = thrown_away();
        // Those that look for what is over do so twice a second.
        support::wait_until("all that had come was read", prompt() * 20, || {
            std::thread::sleep(Duration::from_millis(700));
            std::mem::replace(&mut before, thrown_away()) == before
        });
        assert_eq!(node.http().get("/kv-store/keys/smuggled-1").status, 404, "{head}");
    }
}

#[test]
fn unusual_requests_are_answered_as_usual_ones() {
    let node = Node::single(&[]);
    let mut client = node.http();
    let body = br#"{"value":"chunked"}"#;
    for size in [1, 7, 4096] {
        let sent = chunked(body, size);
        let answer =
            client.request("PUT", "/kv-store/keys/chunked", &[("Transfer-Encoding", "chunked")], &sent);
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
        assert_eq!(client.get("/kv-store/keys/chunked").json()["value"], "chunked");
    }
    let upgrade = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAEAAEAAAAIAAAAB"),
    ];
    for value in ["short".to_owned(), "long".repeat(5000)] {
        let body = format!("{{\"value\":\"{value}\"}}");
        let answer = client.request("PUT", "/kv-store/keys/upgrade", &upgrade, body.as_bytes());
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
        assert_eq!(node.http().get("/kv-store/keys/upgrade").json()["value"], value.as_str());
    }
    let answer = node.http().request("GET", "/kv-store/keys/upgrade", &upgrade, b"");
    assert_eq!(answer.status, 200);
    let absolute = format!("http://{}/kv-store/keys/chunked", node.address());
    assert_eq!(client.get(&absolute).json()["value"], "chunked");
    let head = client.request("HEAD", "/kv-store/keys/chunked", &[], b"");
    assert!(head.body.is_empty() && head.header("content-length").is_some(), "{head:?}");
    assert_eq!(client.get("/kv-store/keys/chunked").status, 200, "after HEAD the connection is in order");
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let node = Node::single(&[]);
    let body = br#"{"value":"expected"}"#;
    let mut client = Http::with_patience(node.address(), Duration::from_secs(5));
    let head = format!(
        "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes()).expect("a head is taken");
    assert_eq!(client.receive_any("PUT").expect("an interim answer").status, 100);
    client.send(body).expect("a body is taken");
    assert_eq!(client.receive("PUT").expect("an answer").status, 201);
    assert_eq!(client.get("/kv-store/keys/a").json()["value"], "expected");

    for length in ["20000000", "60000000000"] {
        let mut client = Http::with_patience(node.address(), Duration::from_secs(5));
        let head = format!(
            "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        );
        client.send(head.as_bytes()).expect("a head is taken");
        let (answer, took) = timed(|| client.receive("PUT").expect("an answer"));
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert!(took < prompt(), "{took:?}");
    }
    let unknown = node.http().request("PUT", "/kv-store/keys/a", &[("Expect", "a miracle")], body);
    assert_eq!(unknown.status, 417);
    // Nobody waits before a body that is not there.
    for length in ["", "Content-Length: 0\r\n"] {
        let mut client = node.http();
        let head =
            format!("PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{length}\r\n");
        client.send(head.as_bytes()).expect("a head is taken");
        assert_eq!(client.receive_any("PUT").expect("an answer").status, 400, "{length:?}");
    }
}

#[test]
fn what_is_too_long_to_be_looked_at_is_refused() {
    let node = Node::single(&[]);
    let (fits, long) = ("x".repeat(262_000), "x".repeat(262_145));
    let rows = [
        (format!("GET /{fits}"), 404, "There is nothing under this path"),
        (format!("GET /{long}"), 414, "The target is too long: allowed are 262144 bytes"),
        (format!("GET /kv-store/keys/a?{long}"), 414, "The target is too long: allowed are 262144 bytes"),
        (format!("{long} /livez"), 400, "The method is too long: allowed are 262144 bytes"),
        (format!("{fits} /livez"), 405, "This path does not take this method"),
    ];
    for (line, status, error) in rows {
        let mut client = node.http();
        client.send(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("taken");
        let answer = client.receive("GET").expect("an answer");
        let context = format!("{line:.20}: {} {:.200}", answer.status, answer.text());
        assert_eq!(answer.status, status, "{context}");
        assert!(answer.json()["error"].as_str().is_some_and(|said| said.starts_with(error)), "{context}");
        assert_eq!(says_close(&answer), [400, 414].contains(&status), "{context}");
        assert!(answer.body.len() < 1000, "{context}");
    }
}

/// Who has sent less than it has declared may still read why it was refused. Up to 1,024 bytes it is the listener that reads the body, and it closes.
#[test]
fn a_body_that_ends_short_is_answered_where_the_client_still_reads() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for node in [&main, &follower] {
        for (length, answered) in [(1024, false), (1025, true), (100_000, true)] {
            let head =
                format!("PUT /kv-store/keys/short HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
            let mut stream =
                connect_and_send(node.address(), (head + "{\"value\":1}").as_bytes()).expect("taken");
            stream.shutdown(Shutdown::Write).expect("the client has said all it wants to");
            let answer = receive_all(&mut stream, Duration::from_secs(5));
            let statuses = answer.matches("HTTP/1.1 400 ").count();
            assert_eq!(statuses, usize::from(answered), "{length}: {answer}");
            assert!(answered || answer.is_empty(), "{length}: {answer}");
        }
    }
}

#[test]
fn connections_are_kept_or_closed_as_the_version_and_the_client_say() {
    let node = Node::single(&[]);
    let rows = [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: close\r\n", false),
        ("HTTP/1.1", "Connection: Keep-Alive\r\n", true),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: keep-alive\r\n", true),
    ];
    for (version, header, kept) in rows {
        let request = format!("GET /livez {version}\r\nHost: x\r\n{header}\r\n");
        let mut client = Http::with_patience(node.address(), prompt());
        client.send(request.as_bytes()).expect("a small request is taken");
        let answer = client.receive("GET").expect("an answer");
        assert_eq!(answer.status, 200);
        let said = answer.header("connection").map(str::to_ascii_lowercase);
        let wanted = match (header, kept) {
            (_, false) => Some("close"),
            ("", true) => None,
            (_, true) => Some("keep-alive"),
        };
        assert_eq!(said.as_deref(), wanted, "{version} {header}");
        // Longer than common balancers keep an idle connection, so that it is they who give it up.
        let kept_for = answer.header("keep-alive");
        assert_eq!(
            kept_for,
            wanted.filter(|said| *said == "keep-alive").map(|_| "timeout=75"),
            "{version} {header}"
        );
        let mut stream =
            connect_and_send(node.address(), (request.clone() + &request).as_bytes()).expect("taken");
        let answers = receive_all(&mut stream, SILENCE).matches("HTTP/1.1 200 ").count();
        assert_eq!(answers, if kept { 2 } else { 1 }, "{version} {header}");
    }
}

#[test]
fn an_idle_connection_is_kept_for_as_long_as_is_said() {
    let node = Node::single(&[("IDLE_TIMEOUT_MS", "2000")]);
    let idle = Duration::from_secs(2);
    let mut client = Http::with_patience(node.address(), idle + prompt());
    for _ in 0..2 {
        let answer = client.request("GET", "/livez", &[("Connection", "keep-alive")], b"");
        assert_eq!(answer.header("keep-alive"), Some("timeout=2"), "{answer:?}");
        std::thread::sleep(idle / 2);
    }
    let (closed, took) = timed(|| client.is_closed());
    assert!(closed && took >= idle / 4, "{closed} after {took:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let node = Node::single(&[]);
    let mut client = node.http();
    for number in 0..100 {
        client.put(&format!("/kv-store/keys/p{number}"), format!("{{\"value\":{number}}}"));
    }
    let request = |number| format!("GET /kv-store/keys/p{number} HTTP/1.1\r\nHost: x\r\n\r\n");
    let requests = (0..100).map(request).collect::<Vec<_>>().concat();
    client.send(requests.as_bytes()).expect("the requests are taken");
    for number in 0..100 {
        let answer = client.receive("GET").expect("an answer to each");
        assert_eq!(answer.json()["value"], number, "{}", answer.text());
    }
    assert_eq!(client.get("/livez").status, 200, "the connection is in order afterwards");
}

#[test]
fn a_full_lane_answers_at_once() {
    let node = Node::single(&[("CLIENT_WORKERS", "1"), ("QUEUE_LENGTH", "1")]);
    let results = at_once(64, |number| {
        let mut client = Http::with_patience(node.address(), Duration::from_secs(5));
        let target = format!("/kv-store/keys/k{number}");
        timed(|| client.try_request("PUT", &target, &[], br#"{"value":1}"#))
    });
    let mut client = node.http();
    for (number, (answer, took)) in results.into_iter().enumerate() {
        let answer = answer.unwrap_or_else(|error| panic!("request {number} went unanswered: {error}"));
        assert!(took < prompt(), "request {number} took {took:?}");
        let stored = client.get(&format!("/kv-store/keys/k{number}")).status == 200;
        if answer.status == 503 {
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            assert_eq!(answer.header("evenkv-outcome"), Some("not-applied"), "{answer:?}");
            assert!(!stored, "request {number} was refused and executed");
        } else {
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert!(stored, "request {number} was acknowledged and is lost");
        }
    }
}

#[test]
fn a_node_that_is_told_to_end_does_so_in_time() {
    let mut idle = Node::single(&[]);
    let mut client = idle.http();
    client.get("/livez");
    idle.terminate();
    assert_eq!(idle.wait_exit(prompt()).code(), Some(0), "with an idle connection open");

    let mut busy = Node::single(&[]);
    let head = "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
    let mut stream = connect_and_send(busy.address(), head.as_bytes()).expect("a head is taken");
    stream.write_all(b"{").expect("a byte is taken");
    let target = "/metrics";
    support::wait_until("the request is in progress", prompt() * 5, || {
        busy.http().get(target).text().contains("evenkv_connections_busy 2")
    });
    busy.terminate();
    assert_eq!(busy.wait_exit(prompt() * 8).code(), Some(0), "with a slow request in progress");
    for node in [idle, busy] {
        assert!(!node.log().contains(" ERROR "), "a stop that was asked for is no error: {}", node.log());
    }
}

/// A client's port may be used again at once, and what came from it before must not count against the new connection.
#[test]
fn a_connection_is_not_taken_for_one_that_was_cut_off_before() {
    let node = Node::single(&[]);
    let address: SocketAddr = node.address().parse().expect("an address");
    let open = |local: SocketAddr| -> io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        // Closes by a reset, which leaves the port free at once.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&address.into())?;
        Ok(socket.into())
    };
    // A port that the system gives may have been another connection's a moment ago, and cannot be bound again for a while.
    let bindable = || {
        let local: SocketAddr = ports::free_address().parse().expect("an address");
        open(local).ok().map(|stream| (stream, local))
    };
    let pipelined = "GET /kv-store/keys/a HTTP/1.1\r\nHost: x\r\n\r\n".repeat(300);
    let table = [
        (
            "headers that contradict each other",
            "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
            400,
        ),
        (
            "a body that is too large",
            "PUT /kvs/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n{",
            413,
        ),
        (
            "one that nobody can send",
            "PUT /kvs/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{",
            413,
        ),
        ("too many requests ahead", &pipelined, 404),
        (
            "a request behind one that is refused",
            "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\nPUT /kvs/keys/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{\"value\":1}",
            400,
        ),
    ];
    for (case, request, status) in table {
        let in_progress = request == pipelined;
        for round in 0..5 {
            let (mut first, local) = (0..20).find_map(|_| bindable()).expect("the node listens");
            first.write_all(request.as_bytes()).expect("taken");
            first.set_read_timeout(Some(SILENCE)).expect("an option");
            assert_eq!(receive_status(&mut first).expect("an answer"), status, "{case}");
            drop(first);
            let mut tries = 0;
            let answer = loop {
                // Another process of this machine may have the port for a moment.
                let mut second = None;
                support::wait_until("the port is free", prompt() * 2, || {
                    second = open(local).ok();
                    second.is_some()
                });
                let mut second = second.expect("waited for");
                second.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").expect("taken");
                second.set_read_timeout(Some(prompt() * 5)).expect("an option");
                let answer = receive_status(&mut second).and_then(|_| {
                    second.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")?;
                    receive_status(&mut second)
                });
                // What was reset while it was in progress may be taken for it still: then the client sees the end of the connection, and can come again.
                let is_ended = answer.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock);
                tries += 1;
                if !(in_progress && is_ended && tries < 10) {
                    break answer;
                }
            };
            assert!(answer.as_ref().is_ok_and(|status| *status == 200), "{case}, {round}: {answer:?}");
        }
    }
    assert_eq!(node.http().get("/kvs/keys/smuggled").status, 404);
}

#[test]
fn a_client_that_sends_too_far_ahead_is_answered_up_to_there_and_closed() {
    let node = Node::single(&[("PIPELINE_DEPTH", "3")]);
    let mut stream = TcpStream::connect(node.address()).expect("the node listens");
    stream.set_read_timeout(Some(prompt() * 5)).expect("an option");
    stream.write_all(&b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100)).expect("taken");
    let (mut answers, mut ended) = (Vec::new(), [0; 4096]);
    while let Ok(count) = stream.read(&mut ended) {
        if count == 0 {
            break;
        }
        answers.extend_from_slice(&ended[..count]);
    }
    let answered = String::from_utf8_lossy(&answers).matches("HTTP/1.1 200 OK").count();
    assert!((1..=100).contains(&answered), "{answered}");
    assert!(matches!(stream.read(&mut ended), Ok(0)), "it is at its end");
}
