//! Attacks on a node, and what another client notices of them: it is answered within a second during and after each,
//! and the memory of the node stays within its limit.
#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test polls and measures"
)]

#[path = "support/attack.rs"]
mod attack;
mod support;

use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use attack::{
    CLIENT_WORKERS, LARGE_WORKERS, STALLING, STALLING_REFUSED, connect_and_send, metric, prompt, put_head,
    receive_all, receive_status, send_while_taken, stalled, watched_during,
};
use support::cluster::Cluster;
use support::http::Http;
use support::node::Node;
use support::{ports, timed, wait_until};

/// Of an upload nothing may come for so long.
const STALL: Duration = Duration::from_secs(2);
/// In such a time a node of default settings answers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The tests measure times, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As many connections, each with these bytes sent.
fn many(node: &Node, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    attack::many(node.address(), count, bytes)
}

fn put_value(node: &Node, key: &str, bytes: usize) {
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(bytes - 2));
    let answer = node.http().put(&format!("/kv-store/keys/{key}"), body);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn slow_bodies_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let ((), watched) = watched_during(&node, || attack::slow_bodies(node.address()));
    watched.assert_unharmed("slow bodies");
}

#[test]
fn an_upload_that_stalls_is_answered_408_and_closed() {
    let _turn = turn();
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    for node in [&main, &follower] {
        let started = Instant::now();
        let streams: Vec<_> = STALLING.iter().map(|upload| stalled(node.address(), upload)).collect();
        for (mut stream, upload) in streams.into_iter().zip(STALLING) {
            let answer = receive_all(&mut stream, Duration::from_secs(10));
            let took = started.elapsed();
            let context = format!("{upload:?} after {took:?}: {answer:?}");
            assert!(answer.contains("HTTP/1.1 408 Request Timeout\r\n"), "{context}");
            assert!(answer.contains("Connection: close\r\n"), "{context}");
            assert!(answer.contains("Evenkv-Outcome: not-applied\r\n"), "{context}");
            assert!(answer.ends_with("\"message\":\"Error in PUT\"}"), "{context}");
            assert!(took >= STALL && took < STALL + prompt() * 2, "{context}");
        }
        assert_eq!(node.http().get("/kv-store/keys/stalled").status, 404);
    }
}

#[test]
fn an_upload_that_keeps_its_pace_is_taken_however_long_it_is() {
    let _turn = turn();
    let node = Node::single(&[]);
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(600_000));
    let mut client = Http::with_patience(node.address(), Duration::from_secs(10));
    let head =
        format!("PUT /kv-store/keys/steady HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send(head.as_bytes()).expect("taken");
    for piece in body.as_bytes().chunks(100_000) {
        thread::sleep(Duration::from_secs(1));
        client.send(piece).expect("taken");
    }
    assert_eq!(client.receive("PUT").expect("an answer").status, 201);
}

#[test]
fn stalled_uploads_hold_up_no_other_upload_for_longer_than_a_request_takes() {
    let _turn = turn();
    let node = Node::single(&[]);
    let stalled: Vec<_> =
        (0..LARGE_WORKERS).map(|_| stalled(node.address(), "Content-Length: 2000|{\"value\": 1")).collect();
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(2000));
    let (answer, took) = timed(|| node.http().put("/kv-store/keys/other", &body));
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!(took < STALL + prompt() * 2, "{took:?}");
    drop(stalled);

    let timeout = Duration::from_millis(1500);
    let node = Node::single(&[("LARGE_WORKERS", "1"), ("REQUEST_TIMEOUT_MS", "1500")]);
    let _stalled = attack::stalled(node.address(), "Content-Length: 2000|");
    let mut client = node.http();
    let (answer, took) = timed(|| client.put("/kv-store/keys/other", &body));
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(took < timeout.max(prompt()), "{took:?}");
    assert_eq!(answer.header("Retry-After"), Some("1"), "{answer:?}");
    assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{answer:?}");
    let mut statuses = Vec::new();
    wait_until("the worker is free again", Duration::from_secs(10), || {
        statuses.push(client.put("/kv-store/keys/other", &body).status);
        statuses.last() == Some(&201)
    });
    assert!(statuses.iter().all(|status| [201, 503].contains(status)), "{statuses:?}");
}

#[test]
fn a_refused_upload_that_stalls_is_closed() {
    let _turn = turn();
    let node = Node::single(&[]);
    let started = Instant::now();
    for upload in STALLING_REFUSED {
        let mut stream = stalled(node.address(), upload);
        let answer = receive_all(&mut stream, Duration::from_secs(10));
        assert_eq!(answer.matches("HTTP/1.1 4").count(), 1, "{answer}");
    }
    assert!(started.elapsed() < STALL * 2 + prompt() * 3, "{:?}", started.elapsed());
}

#[test]
fn readers_that_stop_delay_no_large_answer_beyond_its_time() {
    let _turn = turn();
    let node = Node::single(&[]);
    put_value(&node, "large", 8 << 20);
    let request = b"GET /kv-store/keys/large HTTP/1.1\r\nHost: x\r\n\r\n";
    let streams = many(&node, 2 * LARGE_WORKERS, request);
    wait_until("every worker writes to one of the readers", Duration::from_secs(5), || {
        streams.iter().filter(|stream| peeks(stream)).count() >= LARGE_WORKERS
    });
    let (answer, took) = timed(|| node.http().get("/kv-store/keys/large"));
    assert!([200, 503].contains(&answer.status), "{}", answer.status);
    assert!(took < REQUEST_TIMEOUT.max(prompt()), "{} after {took:?}", answer.status);
}

fn peeks(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("an option");
    stream.peek(&mut [0]).is_ok()
}

#[test]
fn readers_that_stop_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    put_value(&node, "large", 8 << 20);
    let ((), watched) = watched_during(&node, || {
        let request = b"GET /kv-store/keys/large HTTP/1.1\r\nHost: x\r\n\r\n";
        let streams = many(&node, 4 * (LARGE_WORKERS + CLIENT_WORKERS), request);
        wait_until("every worker writes to one of the readers", Duration::from_secs(5), || {
            streams.iter().filter(|stream| peeks(stream)).count() >= LARGE_WORKERS
        });
        thread::sleep(Duration::from_secs(4));
    });
    watched.assert_unharmed("readers that stop");
}

#[test]
fn readers_that_stop_in_a_value_of_another_node_hold_up_nobody_else() {
    let _turn = turn();
    let cluster = Cluster::of(2);
    let key = cluster.key_of(1, "large");
    put_value(&cluster.nodes[1], &key, 8 << 20);
    let node = &cluster.nodes[0];
    let ((), watched) = watched_during(node, || {
        let request = format!("GET /kv-store/keys/{key} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut streams = many(node, 4 * (LARGE_WORKERS + CLIENT_WORKERS), request.as_bytes());
        let statuses: Vec<u16> =
            streams.iter_mut().filter_map(|stream| receive_status(stream).ok()).collect();
        // Some get the beginning of the value; for the others there is no memory, and they are told so.
        assert!(statuses.contains(&200), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
        thread::sleep(Duration::from_secs(4));
    });
    watched.assert_unharmed("readers that stop in a value of another node");
}

#[test]
fn readers_that_stop_between_small_answers_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    put_value(&node, "medium", 60_000);
    let requests = b"GET /kv-store/keys/medium HTTP/1.1\r\nHost: x\r\n\r\n".repeat(120);
    let ((), watched) = watched_during(&node, || {
        let streams = many(&node, 4 * CLIENT_WORKERS, &requests);
        thread::sleep(Duration::from_secs(6));
        drop(streams);
    });
    watched.assert_unharmed("readers that stop between small answers");
}

#[test]
fn lengths_that_nobody_can_send_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let before = metric(&node, "evenkv_abandoned_connections_total");
    let (statuses, watched) = watched_during(&node, || attack::impossible_lengths(node.address(), 1000));
    watched.assert_unharmed("lengths that nobody can send");
    let answered = statuses.iter().filter(|status| **status == 413).count();
    assert_eq!(answered, 1000, "each of them is told that it is too large");
    let abandoned = metric(&node, "evenkv_abandoned_connections_total") - before;
    assert!((600..=1000).contains(&abandoned), "{abandoned} connections were counted as abandoned");
}

#[test]
fn silent_clients_that_were_refused_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let before = metric(&node, "evenkv_abandoned_connections_total");
    let ((), watched) = watched_during(&node, || {
        let streams = many(&node, 400, &put_head(20_000_000));
        // Somebody who sends all of a body that is too large, and only then reads.
        let ((), took) = timed(|| {
            let mut stream = connect_and_send(node.address(), &put_head(20_000_000)).expect("taken");
            let sent = send_while_taken(&mut stream, &vec![b' '; 20_000_000], Duration::from_secs(5));
            assert_eq!(sent, 20_000_000, "the rest of a refused body is read");
            assert_eq!(receive_status(&mut stream).expect("an answer"), 413);
        });
        assert!(took < prompt() * 4, "{took:?}");
        drop(streams);
    });
    watched.assert_unharmed("silent clients");
    assert_eq!(metric(&node, "evenkv_abandoned_connections_total"), before);
}

#[test]
fn other_versions_of_http_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let ((), watched) = watched_during(&node, || attack::other_versions(node.address()));
    watched.assert_unharmed("HTTP/2.0");
}

#[test]
fn clients_of_http_2_are_let_go() {
    let _turn = turn();
    let node = Node::single(&[("IDLE_TIMEOUT_MS", "1000")]);
    if node.log().contains("clients of HTTP/2 cannot be kept away") {
        eprintln!("left out: this machine does not let the node keep them away");
        return;
    }
    let before = node.descriptor_count();
    let mut clients = many(&node, 100, attack::PREFACE_OF_HTTP_2);
    // Some leave by themselves, the others wait for the node to end the connection.
    for mut client in clients.drain(50..) {
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let ended = client.read(&mut [0; 1]);
        let is_reset = matches!(&ended, Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(is_reset || matches!(ended, Ok(0)), "{ended:?}");
    }
    drop(clients);
    wait_until("nothing is left of them", Duration::from_secs(10), || node.descriptor_count() < before + 20);
}

#[test]
fn connections_that_cannot_be_let_go_are_counted_and_warned_of() {
    let _turn = turn();
    let address = ports::free_address();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 512 && exec \"$0\" --address \"$1\""]);
    command.args([env!("CARGO_BIN_EXE_evenkv"), &address]);
    let node = Node::start_command(&address, command);
    node.wait_ready();
    assert_eq!(metric(&node, "evenkv_stuck_connections"), 0);
    let mut clients = many(&node, 20, b"GET /kv-store/keys/a HTTP/2.0\r\nHost: x\r\n\r\n");
    clients.extend(many(&node, 10, b"GET /kv-store/keys/a HTTP/3.0\r\nHost: x\r\n\r\n"));
    // Neither those that only wait for their client, nor those that a client leaves in order, count.
    let idle = many(&node, 10, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
    drop(clients);
    wait_until("they are counted", Duration::from_secs(30), || {
        metric(&node, "evenkv_stuck_connections") == 30
    });
    wait_until("they are warned of", Duration::from_secs(10), || {
        node.log().contains("30 connections cannot be let go")
            && node.log().contains("two of 512 descriptors")
    });
    drop(idle);
    assert_eq!(node.log().matches("cannot be let go").count(), 1, "{}", node.log());
}

#[test]
fn a_header_without_end_holds_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let ((sent, status), watched) = watched_during(&node, || attack::header_without_end(node.address()));
    assert_eq!(status, Some(400));
    watched.assert_unharmed(&format!("a header line of {} MB", sent >> 20));
}

#[test]
fn a_target_without_end_holds_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let (status, watched) = watched_during(&node, || attack::target_without_end(node.address()));
    watched.assert_unharmed("a target of 50 MB");
    assert_eq!(status, Some(414));
}

#[test]
fn slow_heads_and_idle_connections_hold_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let (cut_off, watched) = watched_during(&node, || attack::slow_heads(node.address(), 500));
    assert_eq!(cut_off, 0, "a slow head is waited for");
    watched.assert_unharmed("slow heads");
}

#[test]
fn a_client_that_pipelines_without_end_holds_up_nobody_else() {
    let _turn = turn();
    let node = Node::single(&[]);
    let (sent, watched) = watched_during(&node, || attack::endless_pipeline(node.address()));
    watched.assert_unharmed(&format!("{sent} bytes of pipelined requests"));
}

#[test]
fn a_node_that_was_stopped_answers_at_once_when_it_goes_on() {
    let _turn = turn();
    // The second node's sockets time out while it is stopped, also the one on which it accepts.
    let nodes = [Node::single(&[]), Node::single(&[("IDLE_TIMEOUT_MS", "2000")])];
    let mut kept: Vec<Http> = nodes.iter().map(Node::http).collect();
    for client in &mut kept {
        assert_eq!(client.get("/livez").status, 200);
    }
    for node in &nodes {
        node.pause();
    }
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut waiting: Vec<TcpStream> = nodes.iter().flat_map(|node| many(node, 64, request)).collect();
    thread::sleep(Duration::from_secs(10));
    for node in &nodes {
        node.resume();
    }
    let started = Instant::now();
    for (number, node) in nodes.iter().enumerate() {
        let status = node.http().get("/livez").status;
        assert!(
            status == 200 && started.elapsed() < prompt(),
            "node {number}: {status} {:?}",
            started.elapsed()
        );
    }
    for (number, stream) in waiting.iter_mut().enumerate() {
        let status = receive_status(stream);
        let took = started.elapsed();
        assert!(
            matches!(status, Ok(200)) && took < prompt(),
            "connection {number}: {status:?} after {took:?}"
        );
    }
    assert_eq!(kept[0].get("/livez").status, 200, "a connection from before goes on");
    for node in &nodes {
        let ((), watched) = watched_during(node, || {});
        watched.assert_unharmed("after SIGCONT");
    }
}

#[test]
fn more_connections_than_descriptors_are_survived() {
    let _turn = turn();
    let address = ports::free_address();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 256 && exec \"$0\" --address \"$1\""]);
    command.args([env!("CARGO_BIN_EXE_evenkv"), &address]);
    let node = Node::start_command(&address, command);
    node.wait_ready();
    for round in 0..3 {
        let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
        let streams = many(&node, 768, request);
        wait_until("descriptors are scarce", Duration::from_secs(5), || node.descriptor_count() > 230);
        thread::sleep(Duration::from_secs(1));
        drop(streams);
        let (status, took) = timed(|| {
            let mut client = Http::with_patience(node.address(), Duration::from_secs(5));
            client.try_request("GET", "/livez", &[], b"").map(|answer| answer.status)
        });
        assert!(matches!(status, Ok(200)) && took < prompt(), "round {round}: {status:?} after {took:?}");
    }
    let ((), watched) = watched_during(&node, || {});
    watched.assert_unharmed("after more connections than descriptors");
}
