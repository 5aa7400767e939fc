//! Requests that one node passes on to another: on a connection for many at one time, by HTTP where there is none, and to whoever leads by now.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use evenkv::model::shard::{Action, RequestId, WriteOutcome, Written};
use evenkv::wire::Addressed;
use evenkv::wire::frames::{self, Answer, Form, Frame, Question};
use serde_json::json;
use support::change::{allowed, target};
use support::cluster::Cluster;
use support::http::Http;
use support::node::Node;
use support::relay::connected;
use support::replicated::{named, others, replicated, wait_agreed, wait_leader};
use support::{START_DEADLINE, at_once, wait_until};

/// A node that answers takes no longer for it; one that does not is found out.
const PATIENCE: Duration = Duration::from_secs(20);

/// The newest form of frames.
const FORM: Form = Form::Conditions;

/// Asks a node for a connection for many requests: the connection, and the status of the answer.
fn open(address: &str, headers: &str) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head =
        format!("GET /node/requests HTTP/1.1\r\nHost: {address}\r\nConnection: upgrade\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let status = String::from_utf8(answer).unwrap()[9..12].parse().unwrap();
    (stream, status)
}

fn opened(address: &str) -> TcpStream {
    let (stream, status) = open(address, &format!("Upgrade: {}\r\n", FORM.protocol()));
    assert_eq!(status, 101);
    stream
}

fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; frames::HEAD];
    stream.read_exact(&mut head).unwrap();
    let mut frame = vec![0; u32::from_le_bytes(head) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn question(
    addressed: Addressed,
    left_ms: u64,
    id: Option<RequestId>,
    (key, action): (&[u8], Action),
    number: u64,
) -> Vec<u8> {
    let mut frame = Vec::new();
    let question =
        Question { addressed, left_ms, id, is_stale: false, key, action, condition: None, ttl: None };
    question.encode(FORM, number, &mut frame).expect("it has no condition");
    frame
}

/// A write of a key under an id of its own, to this cluster.
fn put(cluster: &str, number: u64, key: &[u8], id: u128) -> Vec<u8> {
    let addressed = Addressed { cluster: cluster.to_owned(), epoch: 1, incarnation: None };
    let id = Some(RequestId::Timed { id, fingerprint: 0 });
    question(addressed, 5000, id, (key, Action::Put(b"1")), number)
}

fn wrote(outcome: WriteOutcome, version: u64) -> Answer<'static> {
    Answer::Wrote(Written { outcome, version })
}

#[test]
fn frames_that_are_doubled_cut_or_of_another_version_harm_nobody() {
    let node = Node::single(&[]);
    node.wait_ready();
    let address = node.address();
    let hello = Http::new(address).get("/node/hello").json();
    let cluster = hello["cluster"].as_str().unwrap();
    let mut stream = opened(address);
    // One under the same id is done once, however often it comes.
    let first = put(cluster, 7, b"a", 1);
    stream.write_all(&[&first[..], &first].concat()).unwrap();
    for _ in 0..2 {
        let frame = read_frame(&mut stream);
        assert_eq!(Frame::decode(&frame), Ok(Frame::Answer(7, wrote(WriteOutcome::Added, 1))));
    }
    // Another cluster's, and one that came too late.
    let addressed = Addressed { cluster: cluster.to_owned(), epoch: 1, incarnation: None };
    let late = question(addressed, 0, None, (b"a", Action::Delete), 9);
    stream.write_all(&[put("other", 8, b"a", 2), late].concat()).unwrap();
    for number in [8, 9] {
        let frame = read_frame(&mut stream);
        let Ok(Frame::Answer(of, Answer::Failed(applied, _))) = Frame::decode(&frame) else {
            panic!("{frame:?}")
        };
        assert_eq!((of, applied.as_str()), (number, "not-applied"));
    }
    // What is cut off in the middle is not done.
    for cut in 1..first.len() {
        let mut stream = opened(address);
        stream.write_all(&put(cluster, 1, b"cut", 5)[..cut]).unwrap();
    }
    for wrong in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0\x09\x01", b"\x0a\0\0\0\x01\x09\0\0\0\0\0\0\0\0"] {
        let mut stream = opened(address);
        stream.write_all(wrong).unwrap();
        assert!(is_closed(&mut stream), "after {wrong:?}");
    }
    // The first connection is as good as ever.
    stream.write_all(&put(cluster, 11, b"a", 6)).unwrap();
    let frame = read_frame(&mut stream);
    assert_eq!(Frame::decode(&frame), Ok(Frame::Answer(11, wrote(WriteOutcome::Updated, 2))));
    assert_eq!(Http::new(address).get("/kvs/keys/cut").status, 404);
    drop(stream);
    wait_until("no thread is left of them", START_DEADLINE, || node.threads_named("asked-by-") == 0);
}

#[test]
fn a_node_that_does_not_read_its_answers_is_cut_off() {
    let node = Node::single(&[]);
    node.wait_ready();
    let mut client = node.http();
    let value = json!({ "value": "v".repeat(30_000) }).to_string();
    assert_eq!(client.put(&target("long"), &value).status, 201);
    let hello = client.get("/node/hello").json();
    let addressed =
        Addressed { cluster: hello["cluster"].as_str().unwrap().to_owned(), epoch: 1, incarnation: None };
    let frame = question(addressed, 5000, None, (b"long", Action::Get), 1);
    let questions = frame.repeat(1000);
    let mut stream = opened(node.address());
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let before = node.resident_bytes();
    // Its answers would be 6 GB.
    let cut_off = (0..200).any(|_| stream.write_all(&questions).is_err());
    assert!(cut_off, "it took all questions");
    wait_until("no thread is left of it", START_DEADLINE, || node.threads_named("asked-by-") == 0);
    let more = node.resident_bytes().saturating_sub(before);
    assert!(more < 64 << 20, "{more} bytes");
    assert_eq!(client.get(&target("long")).status, 200);
}

#[test]
fn a_stranger_or_another_protocol_gets_no_such_connection() {
    let node = Node::single(&[("CLUSTER_SECRET", "hush")]);
    node.wait_ready();
    let protocol = format!("Upgrade: {}\r\n", FORM.protocol());
    for (headers, wanted) in [
        (protocol.clone(), 403),
        (format!("{protocol}Evenkv-Secret: other\r\n"), 403),
        ("Upgrade: evenkv-requests/99\r\nEvenkv-Secret: hush\r\n".to_owned(), 405),
        // Nodes before conditions are served on.
        ("Upgrade: evenkv-requests/1\r\nEvenkv-Secret: hush\r\n".to_owned(), 101),
        (format!("{protocol}Evenkv-Secret: hush\r\n"), 101),
    ] {
        assert_eq!(open(node.address(), &headers).1, wanted, "{headers}");
    }
}

#[test]
fn a_node_that_offers_no_such_connection_is_asked_by_http() {
    // Longer than anybody waits for it.
    let cluster = Cluster::each(&[&[], &[("FAILPOINTS", "requests-taken=sleep(1500)")]]);
    let mut asked = Http::new(cluster.nodes[0].address());
    for number in 0..200 {
        let target = target(&format!("key-{number}"));
        assert_eq!(asked.put(&target, r#"{"value":1}"#).status, 201);
        assert_eq!(asked.get(&target).json()["value"], json!(1));
    }
    assert_eq!(cluster.nodes[1].threads_named("asked-by-"), 0);
    // The other way there is one.
    let mut other = Http::new(cluster.nodes[1].address());
    wait_until("there is a connection", START_DEADLINE, || cluster.nodes[0].threads_named("asked-by-") == 1);
    for number in 0..200 {
        assert_eq!(other.get(&target(&format!("key-{number}"))).json()["value"], json!(1));
    }
}

#[test]
fn values_of_all_lengths_come_and_go_through_every_node() {
    let cluster = Cluster::of(2);
    for length in [0, 1, 1000, 32_765, 32_766, 32_767, 70_000, 1 << 20] {
        let value = json!({ "value": "v".repeat(length) });
        for owner in 0..2 {
            let target = target(&cluster.key_of(owner, &format!("l{length}-")));
            let mut clients = cluster.clients();
            for (asked, client) in clients.iter_mut().enumerate() {
                let wanted = if asked == 0 { 201 } else { 200 };
                assert_eq!(client.put(&target, value.to_string()).status, wanted, "{length} at {asked}");
            }
            for client in &mut clients {
                assert_eq!(client.get(&target).json()["value"], value["value"], "{length}");
            }
            for (client, wanted) in clients.iter_mut().zip([200, 404]) {
                assert_eq!(client.delete(&target).status, wanted, "{length}");
            }
        }
    }
}

/// Whoever waits for a leader that hangs goes on to the next one as soon as he hears of it, and not when he finds out that nothing comes any more: by then he would
/// say that the node is down.
fn a_hanging_leader_is_left(count: usize, asks_member: bool, length: usize) {
    let mut cluster = replicated(count, 3, &[]);
    let all = cluster.addresses();
    let view = support::replicated::try_view(&all[0]).unwrap();
    let members: Vec<String> = support::replicated::known_shards(&view)[0].replicas.clone();
    let key = (0..1000).map(|number| format!("key-{number}")).find(|key| {
        assert_eq!(Http::new(&all[0]).put(&target(key), r#"{"value":0}"#).status, 201);
        is_of(&all[0], key, &members)
    });
    let key = key.expect("there are keys of each shard");
    let (mut was_left, next) = (false, json!({ "value": "v".repeat(length) }).to_string());
    // On a machine that is busy with other things an election may take longer than finding out.
    for round in 1..=5 {
        let leader = wait_leader(&all[0], "1", |_| true);
        let asked = others(&all, &[&leader]).into_iter().find(|node| members.contains(node) == asks_member);
        let asked = asked.unwrap();
        wait_until("all is well", START_DEADLINE, || {
            Http::new(&asked).put(&target(&key), format!(r#"{{"value":{round}}}"#)).status == 200
        });
        let said = || named_log(&cluster, &asked).matches(&format!("{leader} is down")).count();
        let before = said();
        let node = cluster.nodes.iter().find(|node| node.address() == leader).unwrap();
        node.pause();
        let answer = Http::new(&asked).put(&target(&key), &next);
        was_left = answer.status == 200 && said() == before;
        node.resume();
        assert_eq!(answer.status, 200, "{}", answer.text());
        if was_left {
            break;
        }
    }
    assert!(was_left, "it was always found out to be down");
    let leader = wait_leader(&all[0], "1", |_| true);
    named(&mut cluster.nodes, &leader).wait_ready();
    wait_agreed(&all[0]);
}

/// What a node answers to one request: a success, a refusal after which the client may try again, or nothing.
fn is_answered(client: &mut Http, key: &str, round: usize) -> Result<bool, String> {
    let target = target(key);
    // What goes together with others, what goes by HTTP, and what is large on every way.
    let length = [10, 2_000, 40_000, 100_000][round % 4];
    let body = json!({ "value": "v".repeat(length) }).to_string();
    let answer = match round % 3 {
        0 => client.try_request("GET", &target, &[], b""),
        _ => client.try_request("PUT", &target, &[], body.as_bytes()),
    };
    match answer {
        Ok(answer) if [200, 201, 404].contains(&answer.status) => Ok(true),
        Ok(answer) if answer.status == 503 && answer.header("Retry-After").is_some() => Ok(false),
        Ok(answer) => Err(format!("{key}: {} {}", answer.status, answer.text())),
        Err(error) => Err(format!("{key} is not answered: {error}")),
    }
}

/// Nodes with one worker for each class and short queues, that pass on to each other, and followers of theirs: while a view change runs, each of more clients than there are places for is answered,
/// and afterwards nothing is left. A worker, or a thread that reads answers, that waits for a worker of another node would wait for itself before long.
fn check_nobody_waits_in_a_circle(count: usize, factor: usize) {
    // What waits in a circle waits until its time is over, so that is long; whoever waits for nobody is answered far sooner.
    let timeout = Duration::from_secs(30);
    let one = "1";
    let settings = [
        ("CLIENT_WORKERS", one),
        ("FORWARDED_WORKERS", one),
        ("LARGE_WORKERS", one),
        ("CONTROL_WORKERS", "2"),
        ("HEALTH_WORKERS", one),
        ("QUEUE_LENGTH", "4"),
        ("REQUEST_TIMEOUT_MS", "30000"),
    ];
    let cluster = replicated(count, factor, &settings);
    let all = cluster.addresses();
    let followers: Vec<Node> = all.iter().take(2).map(|main| connected(main, &settings)).collect();
    let asked: Vec<String> =
        all.iter().cloned().chain(followers.iter().map(|follower| follower.address().to_owned())).collect();
    let (over, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = 8 * asked.len();
    let answers = at_once(clients + 1, |number| {
        if number == clients {
            let went_on = |what: &str| {
                let before = good.load(Ordering::Relaxed);
                wait_until(what, START_DEADLINE, || good.load(Ordering::Relaxed) >= before + 200);
            };
            let changed = panic::catch_unwind(AssertUnwindSafe(|| {
                went_on("clients are answered");
                for (view, what) in [(&all[..count - factor], "fewer nodes"), (&all[..], "all nodes")] {
                    change_under_load(&all[0], view, factor);
                    went_on(what);
                }
            }));
            over.store(true, Ordering::Release);
            return changed
                .err()
                .map(|_| "the view could not be changed, or clients were not answered".to_owned());
        }
        let patience = allowed(Duration::from_secs(8)).min(timeout / 10 * 9);
        let mut client = Http::with_patience(&asked[number % asked.len()], patience);
        for round in number.. {
            if over.load(Ordering::Acquire) {
                break;
            }
            match is_answered(&mut client, &format!("{}", (number * 7 + round) % 97), round) {
                Ok(is_good) => good.fetch_add(usize::from(is_good), Ordering::Relaxed),
                Err(wrong) => return Some(wrong),
            };
        }
        None
    });
    let wrong: Vec<String> = answers.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for node in cluster.nodes.iter().chain(&followers) {
        wait_until("nothing is left", START_DEADLINE, || {
            let text = node.http().get("/metrics").text();
            let left = text.lines().filter(|line| {
                let waits = [
                    "evenkv_queue_length{",
                    "evenkv_parked_requests ",
                    "evenkv_requests_in_log ",
                    "evenkv_requests_passed_on ",
                ];
                waits.iter().any(|name| line.starts_with(name)) && !line.ends_with(" 0")
            });
            left.count() == 0
        });
        assert!(
            is_answered(&mut node.http(), "afterwards", 0).is_ok_and(|is_good| is_good),
            "{}",
            node.address()
        );
    }
}

/// Changes the view while more is asked than there are places for: what is refused is asked again.
fn change_under_load(asked: &str, view: &[String], factor: usize) {
    let body = json!({ "view": view, "repl-factor": factor }).to_string();
    wait_until("the view is changed", START_DEADLINE * 2, || {
        let mut client = Http::with_patience(asked, Duration::from_mins(1));
        client
            .try_request("PUT", "/kvs/view-change", &[], body.as_bytes())
            .is_ok_and(|answer| answer.status == 200)
    });
}

#[test]
fn nodes_that_pass_on_to_each_other_never_wait_in_a_circle() {
    check_nobody_waits_in_a_circle(3, 1);
}

#[test]
fn replicas_that_pass_on_to_each_other_never_wait_in_a_circle() {
    check_nobody_waits_in_a_circle(6, 3);
}

fn named_log(cluster: &Cluster, address: &str) -> String {
    cluster.nodes.iter().find(|node| node.address() == address).unwrap().log()
}

/// Whether a key is one of the shard of these nodes.
fn is_of(asked: &str, key: &str, members: &[String]) -> bool {
    let answer = Http::new(asked).get(&target(key));
    match answer.owner() {
        Some(owner) => members.contains(&owner),
        None => members.contains(&asked.to_owned()),
    }
}

#[test]
fn a_member_does_not_wait_for_a_leader_that_hangs() {
    a_hanging_leader_is_left(3, true, 1);
}

#[test]
fn a_node_of_another_shard_does_not_wait_for_a_leader_that_hangs() {
    a_hanging_leader_is_left(6, false, 1);
}

/// What is long goes by HTTP.
#[test]
fn a_long_value_does_not_wait_for_a_leader_that_hangs() {
    a_hanging_leader_is_left(3, true, 100_000);
}
