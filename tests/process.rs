//! The edges of the process: a log that nobody reads, signals, descriptors, and an address that two processes have.
#![allow(clippy::disallowed_methods, reason = "these tests measure how long a process takes to end")]

mod support;

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::cluster::Cluster;
use support::http::Http;
use support::node::Node;
use support::{START_DEADLINE, ports, wait_until};

/// `O_NONBLOCK` of Linux.
const NON_BLOCKING: i32 = 0o4000;

/// A pipe that takes no byte more until somebody reads.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    // Opened once more, it is only this end that does not block.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = OpenOptions::new().write(true).custom_flags(NON_BLOCKING).open(path).expect("the pipe");
    for length in [4096, 1] {
        let full = loop {
            if let Err(error) = filler.write(&vec![b'.'; length]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock, "{full}");
    }
    (reader, writer)
}

/// A node whose log nobody reads, and what would read it.
fn unread(address: &str, settings: &[(&str, &str)]) -> (Node, PipeReader) {
    let (reader, writer) = full_pipe();
    (Node::start_with_errors(address, settings, Stdio::from(writer)), reader)
}

/// The notes of `/readyz`, whether the node is ready or not.
fn notes(node: &Node) -> Vec<String> {
    let Ok(answer) = node.http().try_request("GET", "/readyz", &[], b"") else { return Vec::new() };
    serde_json::from_value(answer.json()["notes"].clone()).unwrap_or_default()
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_a_node_from_ending() {
    let (mut node, _log) = unread(&ports::free_address(), &[("RUST_LOG", "info")]);
    node.wait_ready();
    assert_eq!(node.http().put("/kv-store/keys/a", r#"{"value":1}"#).status, 201);
    node.terminate();
    let (status, took) = support::timed(|| node.wait_exit(Duration::from_secs(10)));
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(1), "it took {took:?}");

    // One that cannot even start ends, too.
    let (mut second, _log) = unread(&ports::free_address(), &[("MAX_KEY_LENGTH", "0")]);
    assert_eq!(second.wait_exit(START_DEADLINE).code(), Some(2));
}

#[test]
fn a_cluster_is_founded_although_nobody_reads_its_logs() {
    let addresses: Vec<String> = (0..3).map(|_| ports::free_address()).collect();
    let view = addresses.join(",");
    let settings = [("VIEW", view.as_str()), ("REPL_FACTOR", "3"), ("RUST_LOG", "trace")];
    let mut nodes: Vec<(Node, PipeReader)> =
        addresses.iter().map(|address| unread(address, &settings)).collect();
    for (node, _) in &nodes {
        node.wait_ready();
    }
    // What is dropped is counted.
    let mut client = nodes[1].0.http();
    let dropped = |client: &mut Http| {
        let text = client.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix("evenkv_log_dropped_lines "));
        line.expect("a figure").parse::<u64>().expect("a number")
    };
    wait_until("lines are dropped", Duration::from_mins(1), || {
        for number in 0..100 {
            assert!(client.put(&format!("/kv-store/keys/{number}"), r#"{"value":1}"#).status < 300);
        }
        dropped(&mut client) > 0
    });
    // And said, once somebody reads again.
    let (node, mut reader) = nodes.remove(1);
    let (mut said, mut piece) = (String::new(), vec![0; 1 << 16]);
    wait_until("the log says that lines were dropped", Duration::from_mins(1), || {
        let count = reader.read(&mut piece).expect("the log is read");
        said.push_str(&String::from_utf8_lossy(&piece[..count]));
        said.contains(" lines of the log were dropped: nobody read them in time\n")
    });
    drop((node, reader));
    for (node, _) in &mut nodes {
        node.terminate();
        assert_eq!(node.wait_exit(Duration::from_secs(8)).code(), Some(0));
    }
}

#[test]
fn sighup_is_ignored_and_said() {
    let mut node = Node::single(&[]);
    assert_eq!(node.http().put("/kv-store/keys/a", r#"{"value":1}"#).status, 201);
    node.hang_up();
    wait_until("the log says so", START_DEADLINE, || node.log().contains("SIGHUP is ignored"));
    assert_eq!(node.http().get("/kv-store/keys/a").status, 200);
    node.terminate();
    assert_eq!(node.wait_exit(Duration::from_secs(8)).code(), Some(0));
}

/// What stands for a service manager.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(START_DEADLINE)).expect("a time-out");
        Self { socket, folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("notify").display().to_string()
    }

    /// The next thing that it is told.
    fn told(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("it is told something");
        String::from_utf8(bytes[..length].to_vec()).expect("text")
    }

    /// The rest of the next thing that it is told which begins so; what the node does may change meanwhile.
    fn wait_told(&self, beginning: &str) -> String {
        loop {
            if let Some(rest) = self.told().strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }
}

#[test]
fn a_service_manager_is_told_that_a_node_has_started_waits_serves_reads_again_and_ends() {
    let manager = Manager::new();
    let path = manager.path();
    let others = [ports::free_address(), ports::free_address()];
    let address = ports::free_address();
    let view = format!("{address},{}", others.join(","));
    let mut node = Node::start(&address, &[("VIEW", &view), ("NOTIFY_SOCKET", &path)]);
    let first = manager.told();
    // It has started, although it will wait for as long as the others are not there.
    let status = first.strip_prefix("READY=1\nSTATUS=not ready: ");
    assert!(status.is_some(), "{first}");
    assert!(node.http().get("/livez").status == 200, "it listens when it says that it has started");
    let _others = others.map(|other| Node::start(&other, &[("VIEW", &view)]));
    manager.wait_told("STATUS=serves");

    node.hang_up();
    let since = manager.wait_told("RELOADING=1\nMONOTONIC_USEC=");
    assert!(since.parse::<u64>().is_ok_and(|since| since > 0), "{since}");
    assert!(manager.told().starts_with("READY=1\nSTATUS="), "it has read them again");

    node.terminate();
    assert_eq!(manager.wait_told("STOPPING=1\nSTATUS="), "finishes what was asked");
    assert_eq!(node.wait_exit(Duration::from_secs(30)).code(), Some(0));
}

#[test]
fn a_node_without_its_service_manager_serves_and_says_so() {
    let node = Node::single(&[("NOTIFY_SOCKET", "/nowhere/notify")]);
    node.wait_logged("the service manager at NOTIFY_SOCKET=/nowhere/notify is not told anything");
}

#[test]
fn a_node_says_how_many_connections_it_can_have_and_when_no_more_can_come() {
    let address = ports::free_address();
    let mut command = Command::new("sh");
    // What is logged is what is logged by default.
    command.args(["-c", "ulimit -n 256 && unset RUST_LOG && exec \"$0\" --address \"$1\""]);
    command.args([env!("CARGO_BIN_EXE_evenkv"), &address]);
    let node = Node::start_command(&address, command);
    node.wait_ready();
    node.wait_logged("256 are allowed, enough for 96 connections");
    let connections: Vec<TcpStream> = (0..256).map_while(|_| TcpStream::connect(&address).ok()).collect();
    wait_until("the log says that no descriptor is left", START_DEADLINE, || {
        node.log().contains("no descriptor is left")
    });
    drop(connections);
    wait_until("it answers again", START_DEADLINE, || {
        let answer = node.http().try_request("GET", "/livez", &[], b"");
        answer.is_ok_and(|answer| answer.status == 200)
    });
    // It goes on for as long as no descriptor is left, and is said once in a while.
    let said = node.log().matches("no descriptor is left").count();
    assert!(said <= 3, "it was said {said} times: {}", node.log());
}

#[test]
fn two_processes_with_one_address_are_named_by_all_who_greet_it() {
    let mut cluster = Cluster::of(3);
    // A node that is started again is no second process.
    cluster.nodes[2].restart();
    let body = json!({"view": cluster.addresses(), "accept-loss": ["3"]}).to_string();
    wait_until("the cluster goes on without the lost shard", START_DEADLINE, || {
        let answer =
            cluster.nodes[0].http().try_request("PUT", "/kv-store/view-change", &[], body.as_bytes());
        answer.is_ok_and(|answer| answer.status == 200)
    });
    for node in &cluster.nodes {
        assert!(!node.log().contains("two processes"), "{}", node.log());
        assert_eq!(notes(node), Vec::<String>::new());
    }
    let (twin, elsewhere) = (cluster.nodes[1].address().to_owned(), ports::free_address());
    let settings = [("ADDRESS", twin.as_str()), ("LISTEN", &elsewhere), ("VIEW", &cluster.view)];
    let second = Node::start_reached_at(&elsewhere, &settings);
    let named = format!("two processes have the ADDRESS {twin}");
    for node in cluster.nodes.iter().chain([&second]) {
        wait_until(&format!("{} names the address", node.address()), START_DEADLINE, || {
            notes(node).iter().any(|note| note.contains(&named)) && node.log().contains(&named)
        });
    }
    // Each names its start in its log, so that the two are found.
    let note = notes(&cluster.nodes[0]).concat();
    for node in [&cluster.nodes[1], &second] {
        node.wait_logged(", start ");
        let log = node.log();
        let start = log.split_once(", start ").and_then(|(_, rest)| rest.split_ascii_whitespace().next());
        let start = start.unwrap_or_else(|| panic!("no start in {log}"));
        assert!(note.contains(start), "{start} is not in {note}");
    }
    // The rightful one serves on.
    assert_eq!(cluster.nodes[1].http().get("/readyz").status, 200);
}
