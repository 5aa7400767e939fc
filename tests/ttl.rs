//! Time to live in both interfaces, against real processes in every role.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests compare when pairs are seen with when they were written"
)]

mod support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::audit::audit;
use support::change::{allowed, ask_with, check_receipt_at, target};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::replicated::{RECOVERY, known_shards, named, others, replicated, try_view, wait_leader};
use support::{START_DEADLINE, wait_until};

const TTL: &str = "Evenkv-TTL";
/// A pair goes at most so long after its time.
const LATEST: Duration = Duration::from_secs(1);

/// The seconds that are left, as an answer tells them.
fn left(answer: &Response) -> Option<f64> {
    answer.header(TTL).map(|text| text.parse().expect("seconds"))
}

fn is_about(left: Option<f64>, wanted: f64) -> bool {
    left.is_some_and(|left| left > 0.0 && left <= wanted && left > wanted - 30.0)
}

fn wait_gone(client: &mut Http, target: &str) {
    wait_until(&format!("{target} goes"), START_DEADLINE, || client.get(target).status == 404);
}

/// What the classic paths say of times to live.
fn check_classic(place: &str, client: &mut Http, target: &str) {
    let body = "{\"value\":\"there\"}";
    let put = |client: &mut Http, query: &str, headers: &[(&str, &str)]| {
        client.request("PUT", &format!("{target}{query}"), headers, body.as_bytes())
    };
    let accepted: [(&str, Option<&str>, Option<f64>); 7] = [
        ("?ttl=100", None, Some(100.0)),
        ("", Some("50.5"), Some(50.5)),
        ("?ttl=60.5", Some("60.50"), Some(60.5)),
        ("?a=b&ttl=100&ttl=100.000", None, Some(100.0)),
        ("?ttl=315360000", None, Some(315_360_000.0)),
        ("", None, None),
        ("?a=b", Some(" 70 "), Some(70.0)),
    ];
    for (query, header, wanted) in accepted {
        let headers: Vec<_> = header.map(|value| (TTL, value)).into_iter().collect();
        let answer = put(client, query, &headers);
        let context = format!("{place}: {query} {header:?}: {} {}", answer.status, answer.text());
        assert!(matches!(answer.status, 200 | 201), "{context}");
        assert!(answer.header(TTL).is_none(), "{context}");
        for method in ["GET", "HEAD"] {
            let read = client.request(method, target, &[], b"");
            assert_eq!(read.status, 200, "{context}");
            let told = left(&read);
            assert!(wanted.map_or(told.is_none(), |wanted| is_about(told, wanted)), "{context}: {told:?}");
        }
    }
    let refused = [
        ("?ttl=", None),
        ("?ttl", None),
        ("?ttl=0", None),
        ("?ttl=-1", None),
        ("?ttl=1e3", None),
        ("?ttl=none", None),
        ("?ttl=315360001", None),
        ("?ttl=0.0001", None),
        ("?ttl=5&ttl=6", None),
        ("?ttl=5", Some("6")),
        ("", Some("")),
        ("", Some("x")),
    ];
    let before = client.get(target);
    for (query, header) in refused {
        let headers: Vec<_> = header.map(|value| (TTL, value)).into_iter().collect();
        let answer = put(client, query, &headers);
        let context = format!("{place}: {query} {header:?}: {} {}", answer.status, answer.text());
        assert_eq!((answer.status, answer.header("Evenkv-Outcome")), (400, Some("not-applied")), "{context}");
        assert_eq!(client.get(target).header("ETag"), before.header("ETag"), "{context}");
    }
    // An expired pair is absent in everything.
    assert_eq!(put(client, "?ttl=0.2", &[]).status, 200, "{place}");
    wait_gone(client, target);
    assert_eq!(client.delete(target).status, 404, "{place}");
    let anew = put(client, "", &[("If-None-Match", "*")]);
    assert_eq!(anew.status, 201, "{place}: {}", anew.text());
    // The time to live is part of what a name stands for.
    let name = format!("{place}-{target}");
    let by_name = |client: &mut Http, query: &str| put(client, query, &[("Idempotency-Key", &name)]).status;
    let table = [("?ttl=100", 200), ("?ttl=100.0", 200), ("?ttl=99", 422), ("", 422), ("?ttl=100", 200)];
    for (query, status) in table {
        assert_eq!(by_name(client, query), status, "{place}: {query}");
    }
    assert!(is_about(left(&client.get(target)), 100.0), "{place}");
    assert_eq!(client.delete(target).status, 200, "{place}");
}

/// The headers of a request.
type Headers<'a> = &'a [(&'a str, &'a str)];

/// What `/v1` says of them, and `PATCH`.
fn check_v1(place: &str, client: &mut Http, key: &str, length: usize) {
    let target = format!("/v1/kv/{key}");
    let value = vec![b'x'; length];
    let patch = |client: &mut Http, query: &str, headers: &[(&str, &str)]| {
        client.request("PATCH", &format!("{target}{query}"), headers, b"")
    };
    let absent = patch(client, "?ttl=5", &[]);
    assert_eq!((absent.status, absent.header("Evenkv-Outcome")), (404, Some("not-applied")), "{place}");
    let text = [("Content-Type", "text/plain"), (TTL, "90")];
    let put = client.request("PUT", &target, &text, &value);
    assert_eq!(put.status, 201, "{place}: {}", put.text());
    let tag = put.header("ETag").expect("a tag").to_owned();
    let rows: [(&str, Headers, u16, Option<f64>); 9] = [
        ("?ttl=50", &[], 204, Some(50.0)),
        ("?ttl=none", &[], 204, None),
        ("?ttl=100", &[("If-Match", &tag)], 204, Some(100.0)),
        ("?ttl=50", &[("If-Match", "\"x\"")], 412, Some(100.0)),
        ("?ttl=50", &[("If-None-Match", "*")], 412, Some(100.0)),
        ("", &[], 400, Some(100.0)),
        ("?ttl=0", &[], 400, Some(100.0)),
        ("?ttl=5&ttl=none", &[], 400, Some(100.0)),
        ("?ttl=200.5", &[], 204, Some(200.5)),
    ];
    for (query, headers, status, wanted) in rows {
        let answer = patch(client, query, headers);
        let context = format!("{place}: {query} {headers:?}: {} {}", answer.status, answer.text());
        assert_eq!(answer.status, status, "{context}");
        if status == 204 {
            assert_eq!(
                (answer.header("ETag"), &answer.body[..]),
                (Some(tag.as_str()), &b""[..]),
                "{context}"
            );
        }
        let read = client.get(&target);
        let told = left(&read);
        assert!(wanted.map_or(told.is_none(), |wanted| is_about(told, wanted)), "{context}: {told:?}");
        assert_eq!((read.header("ETag"), read.body == value), (Some(tag.as_str()), true), "{context}");
        assert_eq!(read.header("Content-Type"), Some("text/plain"), "{context}");
    }
    assert_eq!(patch(client, "?ttl=0.2", &[]).status, 204, "{place}");
    wait_gone(client, &target);
    assert_eq!(patch(client, "?ttl=5", &[]).status, 404, "{place}");
}

fn check(place: &str, node: &Node, count: usize) {
    let mut client = node.http();
    for number in 0..count {
        check_classic(place, &mut client, &format!("/kv-store/keys/{place}-{number}"));
        for length in [1, 40_000] {
            check_v1(place, &mut client, &format!("{place}-{number}"), length);
        }
    }
}

#[test]
fn every_row_holds_at_a_single_node_and_through_a_follower() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    check("single", &main, 1);
    check("follower", &follower, 1);
}

#[test]
fn every_row_holds_through_owner_and_others_of_a_cluster() {
    for (number, node) in Cluster::of(3).nodes.iter().enumerate() {
        check(&format!("cluster{number}"), node, 2);
    }
}

#[test]
fn every_row_holds_through_leaders_replicas_and_others_of_a_replicated_cluster() {
    for (number, node) in replicated(4, 2, &[]).nodes.iter().enumerate() {
        check(&format!("replicated{number}"), node, 2);
    }
}

/// The pairs of all shards, as a node is told.
fn count(asked: &str) -> Option<u64> {
    let view = try_view(asked)?;
    view["shards"].as_array()?.iter().map(|shard| shard["key-count"].as_u64()).sum()
}

/// What is known of a key that was put once, for a time.
#[derive(Debug, Clone, Copy)]
struct Put {
    began: Instant,
    ended: Instant,
    ttl: Duration,
}

/// What readers and writers share.
struct Lives {
    living: Mutex<Vec<String>>,
    puts: Mutex<HashMap<String, Put>>,
    is_over: AtomicBool,
    written: AtomicUsize,
    seen: AtomicUsize,
    missed: AtomicUsize,
    faults: Mutex<Vec<String>>,
    /// When there was no leader: pairs may go later by as long.
    leaderless: Mutex<Duration>,
}

const KEYS: usize = 2000;
const WRITERS: usize = 8;

impl Lives {
    fn node(&self, number: usize) -> String {
        let living = self.living.lock().unwrap();
        living[number % living.len()].clone()
    }

    /// Puts its share of the keys, each to live for 1 to 6 s.
    fn write(&self, writer: usize) {
        for number in (writer..KEYS).step_by(WRITERS) {
            let key = format!("lives-{number}");
            let ttl = Duration::from_millis(1000 + (number as u64 * 7919) % 5000);
            let began = Instant::now();
            let url = format!("{}?ttl={}", target(&key), ttl.as_secs_f64());
            let body = json!({ "value": number }).to_string();
            let answer =
                Http::new(&self.node(number / WRITERS)).try_request("PUT", &url, &[], body.as_bytes());
            // What is not known to be done is not judged.
            if answer.is_ok_and(|answer| answer.status == 201) {
                self.puts.lock().unwrap().insert(key, Put { began, ended: Instant::now(), ttl });
                self.written.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads the keys again and again.
    fn read(&self, reader: usize) {
        let mut round = reader;
        while !self.is_over.load(Ordering::Relaxed) {
            let puts: Vec<(String, Put)> =
                self.puts.lock().unwrap().iter().map(|(key, put)| (key.clone(), *put)).collect();
            round += 1;
            let mut client = Http::new(&self.node(round));
            for (key, put) in puts.into_iter().skip(round % 7).step_by(7) {
                let began = Instant::now();
                let Ok(answer) = client.try_request("GET", &target(&key), &[], b"") else { break };
                let since = |moment: Instant| began.saturating_duration_since(moment);
                if answer.status == 200 {
                    self.seen.fetch_add(1, Ordering::Relaxed);
                    let latest = put.ttl + LATEST + *self.leaderless.lock().unwrap();
                    if since(put.ended) > latest {
                        self.fault(format!("{key} is there {:?} after {put:?}", since(put.ended)));
                    }
                } else if answer.status == 404 {
                    self.missed.fetch_add(1, Ordering::Relaxed);
                    if put.began.elapsed() < put.ttl {
                        self.fault(format!("{key} is gone {:?} after {put:?}", put.began.elapsed()));
                    }
                }
            }
        }
    }

    fn fault(&self, text: String) {
        self.faults.lock().unwrap().push(text);
    }
}

#[test]
fn pairs_live_for_their_time_through_a_view_change_and_the_death_of_a_leader() {
    let mut cluster = replicated(6, 3, &[]);
    let all = cluster.addresses();
    let lives = Lives {
        living: Mutex::new(all.clone()),
        puts: Mutex::default(),
        is_over: AtomicBool::new(false),
        written: AtomicUsize::new(0),
        seen: AtomicUsize::new(0),
        missed: AtomicUsize::new(0),
        faults: Mutex::default(),
        leaderless: Mutex::default(),
    };
    let kept = 50;
    for number in 0..kept {
        assert_eq!(Http::new(&all[0]).put(&target(&format!("kept-{number}")), "{\"value\":0}").status, 201);
    }
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let lives = &lives;
                    move || lives.write(writer)
                })
            })
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                scope.spawn({
                    let lives = &lives;
                    move || lives.read(reader)
                })
            })
            .collect();
        let wait_written = |count: usize| {
            wait_until("keys are written", allowed(START_DEADLINE), || {
                lives.written.load(Ordering::Relaxed) >= count
            });
        };
        wait_written(KEYS / 8);
        // All pairs of one shard move to the other.
        let view = &all[..3];
        let changed = ask_with(&all[0], &[], &json!({ "view": view }));
        assert_eq!(changed.status, 200, "{}", changed.text());
        check_receipt_at(&changed.json(), view, 3);
        *lives.living.lock().unwrap() = view.to_vec();
        let shard = known_shards(&try_view(&all[0]).expect("the view"));
        let shard = &shard[0].id;
        let leader = wait_leader(&all[0], shard, |_| true);
        let living = others(view, &[&leader]);
        *lives.living.lock().unwrap() = living.clone();
        let killed = Instant::now();
        // Until it is known for how long there was none, nothing is judged by that.
        *lives.leaderless.lock().unwrap() = RECOVERY;
        named(&mut cluster.nodes, &leader).kill();
        wait_leader(&living[0], shard, |next| next != leader);
        wait_until("there is a leader", allowed(RECOVERY), || {
            Http::new(&living[0]).put(&target("kept-0"), "{\"value\":1}").status == 200
        });
        *lives.leaderless.lock().unwrap() = killed.elapsed();
        for writer in writers {
            writer.join().expect("it writes");
        }
        wait_until("all have gone", allowed(START_DEADLINE), || count(&living[1]) == Some(kept));
        lives.is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().expect("it reads");
        }
    });
    let faults = lives.faults.lock().unwrap();
    let figure = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let (written, seen, missed) = (figure(&lives.written), figure(&lives.seen), figure(&lives.missed));
    println!(
        "{written} written, {seen} times seen, {missed} times not; leaderless {:?}",
        lives.leaderless.lock().unwrap()
    );
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(9)]);
    assert!(written > KEYS / 2 && seen > 500 && missed > 500, "{written} written, {seen} seen, {missed} not");
    let leader = wait_leader(&lives.node(0), "1", |_| true);
    assert_eq!(audit(&leader).keys, kept);
}

#[test]
fn what_is_left_is_kept_where_a_shard_gets_replicas_and_loses_them() {
    let cluster = Cluster::of(3);
    let all = cluster.addresses();
    let began = Instant::now();
    for number in 0..30 {
        let url = format!("{}?ttl={}", target(&format!("k{number}")), if number < 20 { 12 } else { 1000 });
        assert_eq!(Http::new(&all[number % 3]).put(&url, "{\"value\":1}").status, 201);
    }
    let written = Instant::now();
    for factor in [3, 1] {
        let changed = ask_with(&all[0], &[], &json!({ "view": all, "repl-factor": factor }));
        assert_eq!(changed.status, 200, "{}", changed.text());
        let told = left(&Http::new(&all[1]).get(&target("k25"))).expect("it has a time to live");
        let (least, most) =
            (1000.0 - began.elapsed().as_secs_f64() - 1.0, 1000.0 - written.elapsed().as_secs_f64() + 1.0);
        assert!(told > least && told < most, "factor {factor}: {told}, and it should be {least} to {most}");
    }
    wait_until("those of 12 s have gone", allowed(START_DEADLINE), || count(&all[2]) == Some(10));
    assert!(began.elapsed() > Duration::from_secs(12), "{:?}", began.elapsed());
}
