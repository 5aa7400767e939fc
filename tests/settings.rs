//! How a node is started and ended: settings, what it refuses, where it listens, SIGTERM.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long a process takes to end")]

mod support;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::time::Duration;

use support::http::Http;
use support::node::{Node, evenkv};
use support::{START_DEADLINE, ports, wait_until};

/// Runs the binary to its end; one that serves instead of ending fails the test.
fn run(settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = evenkv();
    command.envs(settings.iter().copied()).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the built binary starts");
    let mut status = None;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("the process has ended", START_DEADLINE, || {
            status = child.try_wait().expect("a child of ours can be asked");
            status.is_some()
        });
    }));
    if ended.is_err() {
        child.kill().expect("a child of ours can be killed");
    }
    let mut output =
        Output { status: child.wait().expect("its end"), stdout: Vec::new(), stderr: Vec::new() };
    child.stdout.take().expect("piped").read_to_end(&mut output.stdout).expect("its output");
    child.stderr.take().expect("piped").read_to_end(&mut output.stderr).expect("its errors");
    assert!(ended.is_ok(), "{settings:?} {arguments:?} was taken: it ran on");
    output
}

/// Wrong settings, and what the message must contain, in any case.
struct Wrong {
    settings: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
    says: &'static [&'static str],
}

const fn env(settings: &'static [(&'static str, &'static str)], says: &'static [&'static str]) -> Wrong {
    Wrong { settings, arguments: &[], says }
}

const fn flags(arguments: &'static [&'static str], says: &'static [&'static str]) -> Wrong {
    Wrong { settings: &[], arguments, says }
}

const A: &str = "127.0.0.1:31990";
const THREE: &str = "127.0.0.1:31990,127.0.0.1:31991,127.0.0.1:31992";
const TWO: &str = "127.0.0.1:31990,127.0.0.1:31991";

const WRONG: &[Wrong] = &[
    env(
        &[("ADDRESS", A), ("FORWARDING_ADDRESS", "127.0.0.1:31991"), ("VIEW", TWO)],
        &["FORWARDING_ADDRESS", "VIEW"],
    ),
    env(&[("FORWARDING_ADDRESS", A), ("VIEW", TWO)], &["FORWARDING_ADDRESS", "VIEW"]),
    env(
        &[("ADDRESS", A), ("FORWARDING_ADDRESS", "127.0.0.1:31991"), ("REPL_FACTOR", "1")],
        &["FORWARDING_ADDRESS", "REPL_FACTOR"],
    ),
    env(&[("ADDRESS", A), ("FORWARDING_ADDRESS", A)], &["FORWARDING_ADDRESS", "ADDRESS"]),
    env(&[("ADDRESS", "LocalHost"), ("FORWARDING_ADDRESS", "localhost:13800")], &["FORWARDING_ADDRESS"]),
    env(&[("VIEW", TWO)], &["ADDRESS", "VIEW"]),
    env(&[("VIEW", A)], &["ADDRESS", "VIEW"]),
    env(
        &[("ADDRESS", A), ("VIEW", "127.0.0.1:31990,127.0.0.1:31991,127.0.0.1:31990")],
        &["VIEW", "127.0.0.1:31990"],
    ),
    env(&[("ADDRESS", A), ("VIEW", "127.0.0.1:31990,NODE2,node2:13800")], &["VIEW", "node2:13800"]),
    env(&[("ADDRESS", A), ("VIEW", "127.0.0.1:31990,,127.0.0.1:31991")], &["VIEW"]),
    env(&[("ADDRESS", A), ("VIEW", "127.0.0.1:31990,127.0.0.1:x")], &["VIEW", "127.0.0.1:x", "port"]),
    env(&[("ADDRESS", "127.0.0.1:65536")], &["ADDRESS", "127.0.0.1:65536", "port"]),
    env(&[("ADDRESS", ":31990")], &["ADDRESS", "host"]),
    env(&[("ADDRESS", "127.0.0.1:")], &["ADDRESS", "port"]),
    env(&[("ADDRESS", "http://127.0.0.1:31990")], &["ADDRESS", "host"]),
    env(&[("ADDRESS", "two words:31990")], &["ADDRESS", "host"]),
    env(&[("ADDRESS", A), ("FORWARDING_ADDRESS", "127.0.0.1:port")], &["FORWARDING_ADDRESS", "port"]),
    env(&[("LISTEN", "127.0.0.1:99999")], &["LISTEN"]),
    env(&[("LISTEN", "21001")], &["LISTEN", "21001", "host:21001", "0.0.0.0"]),
    env(&[("LISTEN", "0x7f000001:31990")], &["LISTEN", "host"]),
    env(&[("ADDRESS", "999.1.1.1:80")], &["ADDRESS", "999.1.1.1:80", "IPv4"]),
    env(&[("ADDRESS", "127.1:31990")], &["ADDRESS", "127.1:31990", "IPv4"]),
    env(&[("ADDRESS", A), ("VIEW", "127.0.0.1:31990,10.0.0.256")], &["VIEW", "10.0.0.256", "IPv4"]),
    env(&[("ADDRESS", A), ("FORWARDING_ADDRESS", "13800")], &["FORWARDING_ADDRESS", "13800", "host:13800"]),
    env(&[("ADDRESS", A), ("FORWARDING_ADDRESS", "localhost:31990")], &["FORWARDING_ADDRESS", "itself", A]),
    env(&[("ADDRESS", A), ("FORWARDING_ADDRESS", "[::1]:31990")], &["FORWARDING_ADDRESS", "itself", A]),
    env(
        &[("ADDRESS", "node1.example:31990"), ("FORWARDING_ADDRESS", A)],
        &["FORWARDING_ADDRESS", "0.0.0.0:31990"],
    ),
    env(&[("FORWARDING_ADDRESS", "localhost")], &["FORWARDING_ADDRESS", "itself", "0.0.0.0:13800"]),
    env(&[("ADDRESS", A), ("RUST_LOG", "inof")], &["RUST_LOG", "inof", "error, warn, info, debug"]),
    env(
        &[("ADDRESS", A), ("RUST_LOG", "info,evenkv=loud")],
        &["RUST_LOG", "loud", "error, warn, info, debug"],
    ),
    env(&[("ADDRESS", A), ("CLUSTER_SECRET", "two words")], &["CLUSTER_SECRET", "ASCII"]),
    env(&[("ADDRESS", A), ("VIEW", THREE), ("REPL_FACTOR", "2")], &["REPL_FACTOR"]),
    env(&[("ADDRESS", A), ("REPL_FACTOR", "0")], &["REPL_FACTOR", "1"]),
    env(&[("ADDRESS", A), ("REPL_FACTOR", "one")], &["REPL_FACTOR", "one", "1"]),
    env(&[("ADDRESS", A), ("MAX_KEY_LENGTH", "long")], &["MAX_KEY_LENGTH", "long"]),
    env(&[("ADDRESS", A), ("MAX_KEY_LENGTH", "-1")], &["MAX_KEY_LENGTH", "-1"]),
    env(&[("ADDRESS", A), ("MAX_KEY_LENGTH", "0")], &["MAX_KEY_LENGTH", "1"]),
    env(&[("ADDRESS", A), ("MAX_VALUE_LENGTH", "8MiB")], &["MAX_VALUE_LENGTH", "8MiB"]),
    env(&[("ADDRESS", A), ("MAX_VALUE_LENGTH", "268435457")], &["MAX_VALUE_LENGTH", "268435456"]),
    env(&[("ADDRESS", A), ("MAX_KEY_LENGTH", "65537")], &["MAX_KEY_LENGTH", "65536"]),
    env(
        &[("ADDRESS", A), ("VIEW", TWO), ("REPL_FACTOR", "2"), ("MAX_VALUE_LENGTH", "50331649")],
        &["MAX_VALUE_LENGTH", "REPL_FACTOR", "50331648"],
    ),
    env(&[("ADDRESS", A), ("LARGE_MEMORY", "16777215")], &["LARGE_MEMORY", "MAX_VALUE_LENGTH", "16777216"]),
    env(&[("ADDRESS", A), ("MAX_MEMORY", "200MB")], &["MAX_MEMORY", "200MB"]),
    env(&[("ADDRESS", A), ("MAX_MEMORY", "0")], &["MAX_MEMORY", "0"]),
    env(&[("ADDRESS", A), ("MAX_MEMORY", "50331647")], &["MAX_MEMORY", "50331648", "MAX_VALUE_LENGTH"]),
    env(&[("ADDRESS", A), ("REPL_FACTOR", "65")], &["REPL_FACTOR", "64"]),
    env(&[("ADDRESS", A), ("REQUEST_TIMEOUT_MS", "0")], &["REQUEST_TIMEOUT_MS"]),
    env(&[("ADDRESS", A), ("REQUEST_TIMEOUT_MS", "5s")], &["REQUEST_TIMEOUT_MS", "5s"]),
    env(&[("ADDRESS", A), ("CLIENT_WORKERS", "0")], &["CLIENT_WORKERS", "1"]),
    env(&[("ADDRESS", A), ("FORWARDED_WORKERS", "0")], &["FORWARDED_WORKERS", "1"]),
    env(&[("ADDRESS", A), ("LARGE_WORKERS", "many")], &["LARGE_WORKERS", "many"]),
    env(&[("ADDRESS", A), ("HEALTH_WORKERS", "0")], &["HEALTH_WORKERS", "1"]),
    env(&[("ADDRESS", A), ("QUEUE_LENGTH", "0")], &["QUEUE_LENGTH", "1"]),
    env(&[("ADDRESS", A), ("IDLE_TIMEOUT_MS", "1e3")], &["IDLE_TIMEOUT_MS", "1e3"]),
    flags(&["--view", TWO], &["ADDRESS", "VIEW"]),
    flags(&["--address", A, "--max-key-length", "x"], &["MAX", "KEY", "LENGTH", "x"]),
    flags(&["--address", A, "--rust-log", "verbose"], &["RUST_LOG", "verbose"]),
    flags(&["--no-such-flag"], &["--no-such-flag"]),
    flags(&["--max-key-length"], &["--max-key-length"]),
    flags(&["no-such-word"], &["no-such-word"]),
];

#[test]
fn wrong_settings_end_with_2_and_say_what_is_allowed() {
    for wrong in WRONG {
        let output = run(wrong.settings, wrong.arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let context = format!("{:?} {:?} said: {said}", wrong.settings, wrong.arguments);
        assert_eq!(output.status.code(), Some(2), "{context}");
        // A flag and its variable differ in case and in the stroke between the words.
        let lower = said.to_lowercase().replace('-', "_");
        for part in wrong.says {
            let part = part.to_lowercase().replace('-', "_");
            assert!(lower.contains(&part), "{part:?} is missing. {context}");
        }
        assert!(!lower.contains("panicked"), "{context}");
    }
}

#[test]
fn a_view_has_1024_addresses_at_most() {
    // Nobody is at the other ones.
    let others = (0..1024).map(|port| format!("127.0.0.9:{}", 20_000 + port));
    let addresses: Vec<String> = std::iter::once(ports::free_address()).chain(others).collect();
    // As a node of that view, and as one that only looks for a cluster there.
    for own in [addresses[0].as_str(), A] {
        let output = run(&[("ADDRESS", own), ("VIEW", &addresses.join(","))], &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("VIEW") && said.contains("1024"), "{said}");
    }
    let node = Node::start(&addresses[0], &[("VIEW", &addresses[..1024].join(","))]);
    node.wait_live();
}

#[test]
fn help_lists_every_setting() {
    let output = run(&[], &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let settings = "ADDRESS LISTEN FORWARDING_ADDRESS VIEW REPL_FACTOR MAX_KEY_LENGTH MAX_VALUE_LENGTH \
        REQUEST_TIMEOUT_MS CLIENT_WORKERS FORWARDED_WORKERS LARGE_WORKERS CONTROL_WORKERS HEALTH_WORKERS QUEUE_LENGTH \
        PIPELINE_DEPTH IDLE_TIMEOUT_MS CLUSTER_SECRET RETRY_MEMORY WATCH_HISTORY LARGE_MEMORY MAX_MEMORY RUST_LOG";
    for name in settings.split(' ') {
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(text.contains(name), "{name} is not in {text}");
        assert!(text.contains(&flag), "{flag} is not in {text}");
    }
    for default in ["1024", "8388608", "5000"] {
        assert!(text.contains(default), "the default {default} is not in {text}");
    }
}

/// The status of a PUT with a key of `length` bytes.
fn put_status(node: &Node, length: usize) -> u16 {
    node.http().put(&format!("/kvs/keys/{}", "k".repeat(length)), r#"{"value":1}"#).status
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let empty = [
        ("LISTEN", ""),
        ("FORWARDING_ADDRESS", ""),
        ("VIEW", ""),
        ("REPL_FACTOR", ""),
        ("MAX_KEY_LENGTH", ""),
        ("MAX_VALUE_LENGTH", ""),
        ("REQUEST_TIMEOUT_MS", ""),
        ("CLIENT_WORKERS", ""),
        ("FORWARDED_WORKERS", ""),
        ("LARGE_WORKERS", ""),
        ("HEALTH_WORKERS", ""),
        ("QUEUE_LENGTH", ""),
        ("IDLE_TIMEOUT_MS", ""),
        ("RUST_LOG", ""),
    ];
    let node = Node::single(&empty);
    node.wait_logged(&format!("listening on {}", node.address()));
    assert_eq!(put_status(&node, 1024), 201);
    assert_eq!(put_status(&node, 1025), 400);
}

#[test]
fn a_flag_wins_over_its_variable() {
    let port = ports::free_port();
    let address = format!("127.0.0.1:{port}");
    let mut command = evenkv();
    command.env("ADDRESS", format!("127.0.0.1:{}", ports::free_port()));
    command.env("MAX_KEY_LENGTH", "5").env("REPL_FACTOR", "nonsense");
    command.args(["--address", &address, "--max-key-length=7", "--repl-factor", "1"]);
    let node = Node::start_command(&address, command);
    node.wait_ready();
    assert_eq!(put_status(&node, 7), 201);
    assert_eq!(put_status(&node, 8), 400);
}

#[test]
fn a_loopback_address_is_the_only_place_it_listens_at() {
    let node = Node::single(&[]);
    let elsewhere = node.address().replace("127.0.0.1", "127.0.0.2");
    assert!(TcpStream::connect(elsewhere).is_err(), "only ADDRESS itself is listened at");
}

#[test]
fn any_other_address_is_listened_at_on_every_interface() {
    let port = ports::free_port();
    let reached = format!("127.0.0.1:{port}");
    let name = format!("node1.example:{port}");
    let node = Node::start_reached_at(&reached, &[("ADDRESS", &name)]);
    node.wait_ready();
    let elsewhere = Http::new(&format!("127.0.0.2:{port}")).get("/livez");
    assert_eq!(elsewhere.status, 200);
}

#[test]
fn listen_decides_where_it_listens_and_address_who_it_is() {
    let listen = ports::free_address();
    let node = Node::start_reached_at(&listen, &[("ADDRESS", "Node1.EXAMPLE"), ("LISTEN", &listen)]);
    node.wait_ready();
    let shard = node.http().get("/kv-store/shards/1").json();
    let expected = serde_json::json!(["node1.example:13800"]);
    assert_eq!(shard["replicas"], expected, "the host in lower case, a missing port is 13800");
}

#[test]
fn without_any_setting_it_listens_at_13800() {
    if TcpListener::bind("0.0.0.0:13800").is_err() {
        eprintln!("somebody listens at 13800 on this machine: not tested");
        return;
    }
    let node = Node::start_reached_at("127.0.0.1:13800", &[]);
    node.wait_ready();
    assert_eq!(node.http().put("/kv-store/a", r#"{"value":1}"#).status, 201);
    assert_eq!(Http::new("127.0.0.2:13800").get("/kv-store/keys/a").status, 200, "on every interface");
}

#[test]
fn a_port_in_use_is_said_and_ends_the_process() {
    let address = ports::free_address();
    let _taken = TcpListener::bind(&address).expect("the port was free");
    let output = run(&[("ADDRESS", &address)], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&address), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn sigterm_ends_an_idle_node_within_a_second() {
    let main = ports::free_address();
    let mut nodes = [Node::single(&[]), Node::follower(&main, &[])];
    for node in &mut nodes {
        // An idle keep-alive connection is no reason to stay.
        let mut client = node.http();
        assert_eq!(client.get("/livez").status, 200);
        node.terminate();
        let (status, took) = support::timed(|| node.wait_exit(Duration::from_secs(10)));
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(1), "it took {took:?}");
    }
}

#[test]
fn sigterm_lets_a_running_request_finish() {
    let mut node = Node::single(&[]);
    let mut client = node.http();
    let body = format!("{{\"value\":\"{}\"}}", "x".repeat(5000));
    let head = format!(
        "PUT /kvs/keys/late HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes()).expect("the head is sent");
    // This is the sign that a worker has begun to read the body.
    assert_eq!(client.receive_any("PUT").expect("an interim answer").status, 100);
    node.terminate();
    wait_until("the node takes no more requests", START_DEADLINE, || {
        let mut probe = Http::with_patience(node.address(), Duration::from_millis(500));
        let answer = probe.try_request("GET", "/readyz", &[], b"");
        !answer.is_ok_and(|answer| answer.status == 200)
    });
    client.send(body.as_bytes()).expect("the body is sent");
    let answer = client.receive("PUT").expect("the request that was running is answered");
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(node.wait_exit(Duration::from_secs(8)).code(), Some(0));
}

#[test]
fn sigterm_waits_8_seconds_at_most_for_a_request_that_does_not_end() {
    let mut node = Node::single(&[]);
    let mut client = node.http();
    let head =
        "PUT /kvs/keys/never HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\nExpect: 100-continue\r\n\r\n";
    client.send(head.as_bytes()).expect("the head is sent");
    assert_eq!(client.receive_any("PUT").expect("an interim answer").status, 100);
    // As fast as a body has to come, so that it is not given up before.
    let sends = std::thread::spawn(move || {
        let piece = vec![b' '; 100_000];
        while client.send(&piece).is_ok() {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    node.terminate();
    let (status, took) = support::timed(|| node.wait_exit(Duration::from_secs(20)));
    sends.join().expect("it ends when nobody is there any more");
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_millis(8500), "it took {took:?}");
}
