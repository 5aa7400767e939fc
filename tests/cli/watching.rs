//! `evenkv watch`: at one node after the other, until it is enough.

#![allow(
    clippy::disallowed_methods,
    reason = "what a process prints is read beside it, and a node of its own tells it something again and again"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use super::support::START_DEADLINE;
use super::support::http::Http;
use super::support::replicated::replicated;
use super::{Cluster, evenkv, text};

/// A process that watches.
struct Watching {
    child: Child,
    lines: Receiver<String>,
    said: Receiver<String>,
}

/// The lines of an output, as they come.
fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    lines
}

impl Watching {
    fn begin(words: &[&str]) -> Self {
        let mut command = evenkv();
        command.arg("watch").args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the built binary runs");
        let printed = lines(child.stdout.take().expect("a pipe"));
        let said = lines(child.stderr.take().expect("a pipe"));
        Self { child, lines: printed, said }
    }

    #[track_caller]
    fn next(&self) -> String {
        let line = self.lines.recv_timeout(START_DEADLINE);
        line.unwrap_or_else(|_| {
            panic!("nothing is printed; said was {:?}", self.said.try_iter().collect::<Vec<_>>())
        })
    }

    /// Waits until this is said.
    #[track_caller]
    fn says(&self, wanted: &str) -> String {
        let mut all = Vec::new();
        while let Ok(line) = self.said.recv_timeout(START_DEADLINE) {
            if line.contains(wanted) {
                return line;
            }
            all.push(line);
        }
        panic!("{wanted} is not said, but {all:?}");
    }

    /// The exit code, and what was said last.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = self.child.wait().expect("it is our child");
        (status.code(), self.said.iter().collect())
    }

    /// Ends it by Ctrl-C: the cursor from which to go on.
    fn interrupt(self) -> String {
        let sent =
            Command::new("sh").args(["-c", "kill -s INT \"$0\"", &self.child.id().to_string()]).status();
        assert!(sent.expect("a shell runs").success(), "it watches still");
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{said:?}");
        let cursor = said.last().and_then(|line| line.strip_prefix("evenkv: go on with --since "));
        cursor.unwrap_or_else(|| panic!("no cursor in {said:?}")).to_owned()
    }
}

fn put(client: &mut Http, key: &str, value: &str) {
    let headers = [("Content-Type", if value.starts_with('b') { "text/plain" } else { "application/json" })];
    let answer = client.request("PUT", &format!("/v1/kv/{key}"), &headers, value.as_bytes());
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
}

#[test]
fn a_watch_goes_on_at_the_next_node_and_from_its_cursor() {
    let mut cluster = replicated(3, 3, &[]);
    let through = cluster.addresses().join(",");
    let mut client = cluster.nodes[1].http();
    let page = client.get("/v1/kv?prefix=w");
    let since = page.json()["watch"].as_str().expect("a cursor").to_owned();
    put(&mut client, "w1", "[1]");
    put(&mut client, "other", "1");
    put(&mut client, "w2", "bytes");
    assert_eq!(client.request("DELETE", "/v1/kv/w1", &[], b"").status, 204);
    let watching = Watching::begin(&["w", "--values", "--since", &since, "--through", &through]);
    let mut first: Vec<String> = (0..3).map(|_| watching.next()).collect();
    first.sort_unstable();
    assert_eq!(first, ["delete\tw1", "put\tw1\t[1]", "put\tw2\tdata:text/plain;base64,Ynl0ZXM="]);
    cluster.nodes[0].kill();
    watching.says("going on");
    watching.says("watching again, at");
    put(&mut client, "w3", "3");
    assert_eq!(watching.next(), "put\tw3\t3", "nothing that was printed comes again");
    let cursor = watching.interrupt();
    put(&mut client, "w4", "4");
    let again = Watching::begin(&["w", "--json", "--since", &cursor, "--node", &cluster.addresses()[2]]);
    let line: serde_json::Value = serde_json::from_str(&again.next()).expect("an object");
    assert_eq!((&line["event"], &line["key"]), (&"put".into(), &"w4".into()), "{line}");
    assert!(line["id"].is_string() && line["etag"].is_string() && line["value"].is_null(), "{line}");
    again.interrupt();
}

/// Takes connections one after the other, and answers each with this; the last one stays open.
fn scripted(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let serve = move || {
        let mut heads = Vec::new();
        let mut open: Option<TcpStream> = None;
        for answer in answers {
            drop(open.take());
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(reader.read_line(&mut head).expect("a head"), 0, "{head}");
            }
            heads.push(head);
            stream.write_all(answer.as_bytes()).expect("it reads");
            open = Some(stream);
        }
        // Until the other side has gone, there is always more.
        let mut stream = open.expect("a connection");
        while stream.write_all(b"event: put\nid: more\ndata: {\"key\":\"more\"}\n\n").is_ok() {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        heads
    };
    (address, thread::spawn(serve))
}

#[test]
fn a_cut_a_503_and_a_resync_are_said_and_gone_beyond() {
    let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let busy =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}";
    let (node, heads) = scripted(vec![
        busy.to_owned(),
        format!("{events}:\nid: c1\n\nevent: put\nid: c2\ndata: {{\"key\":\"a\"}}\n\nevent: put\nid: c3\nda"),
        busy.to_owned(),
        format!("{events}event: resync\nid: c9\ndata: {{}}\n\n"),
    ]);
    let mut watching = Watching::begin(&["--node", &node, "--since", "c0"]);
    assert_eq!(watching.next(), "put\ta");
    watching.says("the connection has ended");
    assert_eq!(watching.next(), "resync", "half an event is none");
    watching.says("watching again");
    watching.says("changes were missed: list or read anew");
    assert_eq!(watching.next(), "put\tmore");
    // Nobody reads any more.
    let lines = std::mem::replace(&mut watching.lines, channel().1);
    drop(lines);
    let (code, said) = watching.end();
    assert_eq!((code, said.len()), (Some(0), 0), "{said:?}");
    let heads = heads.join().expect("the node does not panic");
    let from =
        |head: &String| head.lines().find_map(|line| Some(line.strip_prefix("Last-Event-ID: ")?.to_owned()));
    let from: Vec<_> = heads.iter().filter_map(from).collect();
    assert_eq!(from, ["c0", "c0", "c2", "c2"], "{heads:?}");
}

#[test]
fn what_cannot_begin_is_given_up() {
    let cluster = Cluster::of(1);
    let node = cluster.nodes[0].address();
    let gone =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let both = format!("{gone},{gone}");
    for (words, wanted) in [
        (vec!["--node", node, "--since", "x"], "the node answered 400: Last-Event-ID is no cursor"),
        (vec!["--node", node, "--since", "x", "--json"], "the node answered 400: Last-Event-ID is no cursor"),
        (vec!["--through", &both], "no answer from the node"),
    ] {
        let output = evenkv().arg("watch").args(&words).output().expect("the built binary runs");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{words:?}: {said}");
        assert!(said.contains(wanted), "{words:?}: {said}");
        assert_eq!(text(&output.stdout).contains("\"status\":400"), words.contains(&"--json"), "{words:?}");
    }
}
