//! Time to live in both interfaces, against real processes in every role.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests compare when pairs are seen with when they were written"
)]

mod support;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
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
        let head = client.request("HEAD", &target, &[], b"");
        assert!(wanted.map_or(left(&head).is_none(), |wanted| is_about(left(&head), wanted)), "{context}");
    }
    // A name stands for one time to live, and what was done under it begins no new one.
    let name = format!("{place}-{key}-{length}");
    for (query, status, wanted) in [
        ("?ttl=300", 204, Some(300.0)),
        ("?ttl=299", 422, Some(300.0)),
        ("?ttl=none", 422, Some(300.0)),
        ("?ttl=300.0", 204, Some(300.0)),
    ] {
        let answer = patch(client, query, &[("Idempotency-Key", &name)]);
        assert_eq!(answer.status, status, "{place}: {query}: {}", answer.text());
        let told = left(&client.get(&target));
        assert!(wanted.is_some_and(|wanted| is_about(told, wanted)), "{place}: {query}: {told:?}");
    }
    assert_eq!(patch(client, "?ttl=none", &[]).status, 204, "{place}");
    assert_eq!(patch(client, "?ttl=300", &[("Idempotency-Key", &name)]).status, 204, "{place}");
    assert_eq!(left(&client.get(&target)), None, "{place}: it was done before, and is not done again");
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

/// The keys that are to be read, each at a moment.
#[derive(Default)]
struct Checks(BinaryHeap<Reverse<(Instant, usize)>>);

impl Checks {
    fn add(&mut self, when: Instant, number: usize) {
        self.0.push(Reverse((when, number)));
    }

    fn next_due(&mut self) -> Option<usize> {
        let is_due = self.0.peek().is_some_and(|Reverse((when, _))| *when < Instant::now());
        if is_due { self.0.pop().map(|Reverse((_, number))| number) } else { None }
    }
}

/// Connections to nodes.
#[derive(Default)]
struct Clients(HashMap<String, Http>);

impl Clients {
    /// The status of the answer; 0 where there was none.
    fn ask(&mut self, node: &str, method: &str, target: &str, headers: Headers, body: &[u8]) -> u16 {
        let client = self.0.entry(node.to_owned()).or_insert_with(|| Http::new(node));
        let answer = client.try_request(method, target, headers, body);
        if answer.is_err() {
            self.0.remove(node);
        }
        answer.map_or(0, |answer| answer.status)
    }
}

/// What readers and writers share.
#[derive(Default)]
struct Lives {
    keys: usize,
    /// In seconds.
    longest: u64,
    living: Mutex<Vec<String>>,
    puts: Mutex<HashMap<usize, Put>>,
    /// Those shortly before the end of a pair, and those shortly after it.
    before: Mutex<Checks>,
    after: Mutex<Checks>,
    is_over: AtomicBool,
    written: AtomicUsize,
    seen: AtomicUsize,
    gone: AtomicUsize,
    faults: Mutex<Vec<String>>,
    /// When there was no leader: pairs may go later by as long.
    leaderless: Mutex<Duration>,
}

const WRITERS: usize = 8;
const READERS: usize = 4;
/// Who was not answered asks again after this time, another node.
const PAUSE: Duration = Duration::from_millis(100);

impl Lives {
    fn node(&self, number: usize) -> String {
        let living = self.living.lock().unwrap();
        living[number % living.len()].clone()
    }

    /// Puts its share of the keys.
    fn write(&self, writer: usize) {
        let mut clients = Clients::default();
        for number in (writer..self.keys).step_by(WRITERS) {
            let ttl = Duration::from_millis(1000 + (number as u64 * 7919) % ((self.longest - 1) * 1000));
            let url = format!("{}?ttl={}", lives(number), ttl.as_secs_f64());
            let body = json!({ "value": number }).to_string();
            let name = number.to_string();
            let began = Instant::now();
            // What is not known to be done is asked again under its name, and done once.
            for asked in 0.. {
                if self.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let node = self.node(number / WRITERS + asked);
                let headers = [("Idempotency-Key", name.as_str())];
                if clients.ask(&node, "PUT", &url, &headers, body.as_bytes()) == 201 {
                    break;
                }
                thread::sleep(PAUSE);
            }
            let put = Put { began, ended: Instant::now(), ttl };
            self.puts.lock().unwrap().insert(number, put);
            self.written.fetch_add(1, Ordering::Relaxed);
            self.before.lock().unwrap().add(put.began + ttl * 4 / 5, number);
            self.after.lock().unwrap().add(put.ended + ttl + LATEST, number);
        }
    }

    /// Reads each key shortly before its end, if it comes to that in time, and shortly after it.
    fn read(&self, reader: usize) {
        let mut clients = Clients::default();
        let mut round = reader;
        while !self.is_over.load(Ordering::Relaxed) {
            round += 1;
            let mut ask = |number: usize| {
                let put = self.puts.lock().unwrap()[&number];
                let began = Instant::now();
                (put, began, clients.ask(&self.node(round), "GET", &lives(number), &[], b""))
            };
            let next = self.before.lock().unwrap().next_due();
            if let Some(number) = next {
                let (put, _, status) = ask(number);
                self.judge_before(number, put, status);
                continue;
            }
            let next = self.after.lock().unwrap().next_due();
            match next {
                Some(number) => {
                    let (put, began, status) = ask(number);
                    self.judge_after(number, put, began, status);
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn judge_before(&self, number: usize, put: Put, status: u16) {
        let lived = put.began.elapsed();
        if lived < put.ttl {
            match status {
                200 => drop(self.seen.fetch_add(1, Ordering::Relaxed)),
                404 => self.fault(format!("{number} is gone {lived:?} after {put:?}")),
                _ => self.before.lock().unwrap().add(Instant::now() + PAUSE, number),
            }
        }
    }

    fn judge_after(&self, number: usize, put: Put, began: Instant, status: u16) {
        let latest = put.ttl + LATEST + *self.leaderless.lock().unwrap();
        let lived = began - put.ended;
        match status {
            404 => drop(self.gone.fetch_add(1, Ordering::Relaxed)),
            200 if lived > latest => {
                self.gone.fetch_add(1, Ordering::Relaxed);
                self.fault(format!("{number} is there {lived:?} after {put:?}"));
            }
            _ => self.after.lock().unwrap().add(Instant::now() + PAUSE, number),
        }
    }

    fn fault(&self, text: String) {
        self.faults.lock().unwrap().push(text);
    }
}

/// However the test ends, nobody goes on.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn lives(number: usize) -> String {
    target(&format!("lives-{number}"))
}

#[test]
fn pairs_live_for_their_time_through_a_view_change_and_the_death_of_a_leader() {
    check_lives(2000, 6);
}

#[test]
#[ignore = "10,000 pairs that live for up to 20 s take a minute; make test-full runs it"]
fn ten_thousand_pairs_live_for_their_time_through_a_view_change_and_the_death_of_a_leader() {
    check_lives(10_000, 20);
}

/// Puts so many keys, each to live for 1 s to so many.
fn check_lives(keys: usize, longest: u64) {
    let mut cluster = replicated(6, 3, &[]);
    let all = cluster.addresses();
    let lives = Lives { keys, longest, living: Mutex::new(all.clone()), ..Lives::default() };
    let kept = 50;
    for number in 0..kept {
        assert_eq!(Http::new(&all[0]).put(&target(&format!("kept-{number}")), "{\"value\":0}").status, 201);
    }
    let figure = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let lives = &lives;
        let _over = Over(&lives.is_over);
        for writer in 0..WRITERS {
            scope.spawn(move || lives.write(writer));
        }
        for reader in 0..READERS {
            scope.spawn(move || lives.read(reader));
        }
        let wait_written = |count: usize| {
            let deadline = allowed(Duration::from_mins(1));
            wait_until("keys are written", deadline, || figure(&lives.written) >= count);
        };
        wait_written(keys / 8);
        // All pairs of one shard move to the other.
        let view = &all[..3];
        let changed = ask_with(&all[0], &[], &json!({ "view": view }));
        assert_eq!(changed.status, 200, "{}", changed.text());
        check_receipt_at(&changed.json(), view, 3);
        *lives.living.lock().unwrap() = view.to_vec();
        wait_written(keys / 2);
        let shard = known_shards(&try_view(&all[0]).expect("the view"));
        let shard = &shard[0].id;
        let leader = wait_leader(&all[0], shard, |_| true);
        let living = others(view, &[&leader]);
        lives.living.lock().unwrap().clone_from(&living);
        let killed = Instant::now();
        // Until it is known for how long there was none, nothing is judged by that.
        *lives.leaderless.lock().unwrap() = RECOVERY;
        named(&mut cluster.nodes, &leader).kill();
        wait_leader(&living[0], shard, |next| next != leader);
        wait_until("there is a leader", allowed(RECOVERY), || {
            Http::new(&living[0]).put(&target("kept-0"), "{\"value\":1}").status == 200
        });
        *lives.leaderless.lock().unwrap() = killed.elapsed();
        wait_written(keys);
        wait_until("each was looked for after its time", allowed(Duration::from_mins(1)), || {
            figure(&lives.gone) == keys
        });
        assert_eq!(count(&living[1]), Some(kept));
    });
    let faults = lives.faults.lock().unwrap();
    let seen = figure(&lives.seen);
    println!("{seen} seen before their time was over; leaderless {:?}", lives.leaderless.lock().unwrap());
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(9)]);
    assert!(seen > keys / 20, "only {seen} were looked for in time");
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
