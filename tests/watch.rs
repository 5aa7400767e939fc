//! Watching, against real processes in every role.
#![allow(clippy::disallowed_methods, reason = "these tests measure, and wait for what takes time")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::change::{allowed, ask_with, check_receipt_at, passive};
use support::cluster::Cluster;
use support::http::Http;
use support::node::Node;
use support::replicated::{RECOVERY, known_shards, named, replicated, restart_ready, try_view, wait_leader};
use support::watch::{Follower, Listener, Told, Versions, Watch, by_key, put};
use support::{START_DEADLINE, at_once, wait_until};

/// Keys of all shards: so many hardly ever lie in one.
const KEYS: usize = 24;

/// What section 7 says, at one node; writes go through another.
fn check_rows(place: &str, at: &Node, through: &Node) {
    let (address, mut client) = (at.address(), through.http());
    let refused = [
        ("GET", "?since=x", 400),
        ("GET", "?values=1", 400),
        ("GET", "?prefix=%2", 400),
        ("HEAD", "", 405),
        ("PUT", "", 405),
    ];
    for (method, query, status) in refused {
        let answer = at.http().request(method, &format!("/v1/watch{query}"), &[], b"");
        assert_eq!(answer.status, status, "{place}: {method} {query}: {}", answer.text());
    }
    let options = at.http().request("OPTIONS", "/v1/watch", &[], b"");
    assert_eq!((options.status, options.header("Allow")), (204, Some("GET, OPTIONS")), "{place}");

    let prefix = format!("{place}%2F");
    let mut watch = Watch::at(address, &format!("?prefix={prefix}&values=true"), None);
    assert!(watch.head.contains("Content-Type: text/event-stream\r\n"), "{}", watch.head);
    let mut bare = Watch::at(address, &format!("?prefix={prefix}"), None);
    let first = watch.next().expect("a comment with the cursor");
    assert!(first.has_comment && !first.id.is_empty() && first.name.is_empty(), "{first:?}");

    let target = |key: &str| format!("/v1/kv/{prefix}{key}");
    let json = [("Content-Type", "application/json")];
    let mut events = Vec::new();
    let mut next = |watch: &mut Watch, name: &str, key: &str| -> Told {
        let told = watch.event();
        assert_eq!((told.name.as_str(), told.key()), (name, format!("{place}/{key}")), "{place}: {told:?}");
        events.push(told.clone());
        told
    };
    // What was written is told with its tag, and its value where that is wanted.
    let written = client.request("PUT", &target("a"), &json, b"[1,\n2]");
    assert_eq!(written.status, 201, "{place}");
    let told = next(&mut watch, "put", "a").json();
    assert_eq!((told["etag"].as_str(), &told["value"]), (written.header("ETag"), &json!([1, 2])), "{place}");
    let told = bare.event().json();
    assert_eq!((told["etag"].as_str(), told.get("value")), (written.header("ETag"), None), "{place}");
    let written = client.request("PUT", &target("a"), &[("Content-Type", "text/plain")], b"x\ny");
    let told = next(&mut watch, "put", "a").json();
    assert_eq!(told["etag"].as_str(), written.header("ETag"), "{place}");
    assert_eq!((&told["value-base64"], &told["type"]), (&json!("eAp5"), &json!("text/plain")), "{place}");
    // What was not done is not told, nor what does not begin so, nor a touch.
    assert_eq!(client.request("PUT", &target("a"), &[("If-None-Match", "*")], b"1").status, 412, "{place}");
    assert_eq!(client.request("DELETE", &target("b"), &[], b"").status, 404, "{place}");
    assert!(client.request("PUT", &format!("/v1/kv/other{place}"), &json, b"1").status < 300, "{place}");
    assert_eq!(client.request("PATCH", &format!("{}?ttl=100", target("a")), &[], b"").status, 204, "{place}");
    assert_eq!(client.request("DELETE", &target("a"), &[], b"").status, 204, "{place}");
    next(&mut watch, "delete", "a");
    // An end by time is one event.
    assert_eq!(
        client.request("PUT", &format!("{}?ttl=0.3", target("c")), &json, b"1").status,
        201,
        "{place}"
    );
    next(&mut watch, "put", "c");
    next(&mut watch, "expire", "c");
    // A value that is long is not told.
    let long = format!("\"{}\"", "x".repeat(300 << 10));
    assert_eq!(client.request("PUT", &target("d"), &json, long.as_bytes()).status, 201, "{place}");
    assert_eq!(next(&mut watch, "put", "d").json()["bytes"], long.len(), "{place}");
    // A request that is sent again under its name is one event.
    for _ in 0..2 {
        let named = [json[0], ("Idempotency-Key", place)];
        assert_eq!(client.request("PUT", &target("e"), &named, b"1").status, 201, "{place}");
    }
    next(&mut watch, "put", "e");

    // From each of these events on the rest is told again, by the header and by the query.
    let wanted: Vec<_> =
        events.iter().map(|told| (told.key(), told.name.clone(), told.data.clone())).collect();
    for (index, event) in events.iter().enumerate() {
        let query = format!("?values=true&prefix={prefix}");
        let since = format!("{query}&since={}", event.id);
        for mut again in [Watch::at(address, &query, Some(&event.id)), Watch::at(address, &since, None)] {
            let told: Vec<_> = wanted[index + 1..].iter().map(|_| again.event()).collect();
            // Those of one key in their order; others have none.
            let mut told: Vec<_> = told.into_iter().map(|told| (told.key(), told.name, told.data)).collect();
            told.sort_by(|one, other| one.0.cmp(&other.0));
            let mut rest = wanted[index + 1..].to_vec();
            rest.sort_by(|one, other| one.0.cmp(&other.0));
            assert_eq!(told, rest, "{place}: from {index} on");
        }
    }
    // The first page of a listing says from where on nothing is missed; a later one does not.
    let listed = client.get(&format!("/v1/kv?prefix={prefix}"));
    let cursor = listed.json()["watch"].as_str().expect("a cursor").to_owned();
    let later = client.get(&format!("/v1/kv?prefix={prefix}&after={prefix}a"));
    assert_eq!(later.json().get("watch"), None, "{place}");
    assert_eq!(client.request("PUT", &target("g"), &json, b"1").status, 201, "{place}");
    let mut from_there = Watch::at(address, &format!("?prefix={prefix}&since={cursor}"), None);
    let told = from_there.event();
    assert_eq!((told.name.as_str(), told.key()), ("put", format!("{place}/g")), "{place}: {told:?}");
    assert_eq!(client.request("DELETE", &target("g"), &[], b"").status, 204, "{place}");

    // The cursor of another cluster says nothing here.
    let foreign = "AQcAAAAAAAAAAQAF";
    let mut watch = Watch::at(address, &format!("?prefix={prefix}"), Some(foreign));
    let resync = watch.event();
    assert_eq!((resync.name.as_str(), resync.data.as_str()), ("resync", "{}"), "{place}");
    assert_eq!(client.request("PUT", &target("f"), &json, b"1").status, 201, "{place}");
    assert_eq!(watch.event().key(), format!("{place}/f"), "{place}: from now on");
}

#[test]
fn every_row_holds_in_every_role() {
    let single = Node::single(&[]);
    check_rows("single", &single, &single);
    let cluster = Cluster::of(3);
    check_rows("cluster", &cluster.nodes[0], &cluster.nodes[1]);
    let follower = Node::follower(cluster.nodes[2].address(), &[]);
    check_rows("follower", &follower, &cluster.nodes[1]);
    check_rows("behind", &follower, &follower);
    let replicas = replicated(3, 3, &[]);
    for (number, node) in replicas.nodes.iter().enumerate() {
        check_rows(&format!("replicas{number}"), node, &replicas.nodes[(number + 1) % 3]);
    }
}

#[test]
fn a_comment_with_the_cursor_comes_every_ten_seconds() {
    let node = Node::single(&[]);
    let mut watch = Watch::at(node.address(), "?prefix=quiet", None);
    let first = watch.next().expect("the first");
    assert!(put(&mut node.http(), "other", "1").is_some());
    let second = watch.next().expect("the second");
    assert!(second.has_comment && second.name.is_empty() && second.id != first.id, "{first:?} {second:?}");
    // Also to somebody who is told much meanwhile.
    let mut busy = Watch::at(node.address(), "?prefix=busy", None);
    busy.next().expect("the first");
    let begun = Instant::now();
    for number in 0.. {
        assert!(put(&mut node.http(), "busy", &number.to_string()).is_some());
        let told = busy.next().expect("an event, or a comment");
        if told.has_comment && told.name.is_empty() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "no comment comes");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn where_the_ring_has_turned_there_is_one_resync() {
    let node = Node::single(&[("WATCH_HISTORY", "65536")]);
    let (address, mut client) = (node.address(), node.http());
    let mut watch = Watch::at(address, "", None);
    let start = watch.next().expect("a cursor").id;
    let value = format!("\"{}\"", "x".repeat(1000));
    let mut ids = Vec::new();
    for number in 0..200 {
        assert!(put(&mut client, &format!("k{number}"), &value).is_some());
        ids.push(watch.event().id);
    }
    // What still lies in the ring is told.
    let mut near = Watch::at(address, "", Some(&ids[180]));
    for number in 181..200 {
        assert_eq!(near.event().key(), format!("k{number}"));
    }
    let mut far = Watch::at(address, "", Some(&start));
    assert_eq!(far.event().name, "resync");
    for key in ["a", "b"] {
        assert!(put(&mut client, key, "1").is_some());
        assert_eq!(far.event().key(), key);
        assert_eq!(near.event().key(), key);
    }
}

#[test]
fn whoever_does_not_read_is_cut_off_and_goes_on_later() {
    let node = Node::single(&[("WATCH_HISTORY", "67108864")]);
    let mut client = node.http();
    let mut silent = Watch::at(node.address(), "?values=true", None);
    let mut other = Watch::at(node.address(), "", None);
    let last = silent.next().expect("a cursor").id;
    // Both ends of the system take some megabytes.
    let value = format!("\"{}\"", "x".repeat(200_000));
    let mut writes = 0;
    wait_until("both watch", START_DEADLINE, || watchers(&node) == 2);
    while watchers(&node) == 2 {
        assert!(writes < 300, "it is cut off");
        assert!(put(&mut client, &format!("k{writes}"), &value).is_some());
        assert_eq!(other.event().key(), format!("k{writes}"), "the others are told at once");
        writes += 1;
    }
    let mut told = Vec::new();
    while let Ok(one) = silent.next() {
        told.push(one);
    }
    assert!(told.len() < writes, "it was cut off");
    let last = told.last().map_or(last, |told| told.id.clone());
    let mut again = Watch::at(node.address(), "?values=true", Some(&last));
    for number in told.len()..writes {
        assert_eq!(again.event().key(), format!("k{number}"));
    }
}

#[test]
fn a_watcher_holds_no_worker() {
    let node = Node::single(&[("CLIENT_WORKERS", "2")]);
    let watches: Vec<Watch> = (0..300).map(|_| Watch::at(node.address(), "?prefix=w", None)).collect();
    assert!(put(&mut node.http(), "w1", "1").is_some());
    for mut watch in watches {
        assert_eq!(watch.event().key(), "w1");
    }
}

/// How many watch at a node, as it says.
fn watchers(node: &Node) -> usize {
    let text = node.http().get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix("evenkv_watchers "));
    line.and_then(|count| count.parse().ok()).expect("a figure")
}

#[test]
fn a_follower_watches_its_main_once_for_all_who_want_the_same() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let at = |query: &str| Watch::at(follower.address(), query, None);
    let mut same: Vec<Watch> = (0..20).map(|_| at("?prefix=a")).collect();
    let mut other = at("?prefix=b");
    for watch in same.iter_mut().chain([&mut other]) {
        assert!(watch.next().expect("a comment with the cursor").has_comment);
    }
    wait_until("the main is asked once for each", START_DEADLINE, || watchers(&main) == 2);
    assert_eq!(watchers(&follower), 21);
    let mut last = String::new();
    for number in 0..10 {
        let key = format!("a{number}");
        assert!(put(&mut main.http(), &key, "1").is_some());
        for watch in &mut same {
            let told = watch.event();
            assert_eq!(told.key(), key);
            if number == 4 {
                last = told.id;
            }
        }
    }
    // Whoever goes on from a cursor is told the rest, and is with the others from the next event on.
    let mut again = Watch::at(follower.address(), "?prefix=a", Some(&last));
    for number in 5..10 {
        assert_eq!(again.event().key(), format!("a{number}"));
    }
    same.push(again);
    assert!(put(&mut main.http(), "a", "1").is_some());
    assert!(put(&mut main.http(), "b", "1").is_some());
    for watch in &mut same {
        assert_eq!(watch.event().key(), "a");
    }
    assert_eq!(other.event().key(), "b");
    wait_until("they are together", START_DEADLINE, || watchers(&main) == 2);
    drop(same);
    // Whoever is gone is seen when something is written to him.
    wait_until("the main is asked no more for those who are gone", START_DEADLINE, || {
        assert!(put(&mut main.http(), "a", "1").is_some());
        watchers(&follower) == 1 && watchers(&main) == 1
    });
}

#[test]
fn a_follower_goes_on_when_its_main_is_there_again() {
    let mut cluster = replicated(3, 3, &[]);
    let addresses = cluster.addresses();
    let follower = Node::follower(&addresses[0], &[]);
    let mut watch = Watch::at(follower.address(), "?prefix=a", None);
    assert!(put(&mut cluster.nodes[1].http(), "a1", "1").is_some());
    assert_eq!(watch.event().key(), "a1");
    cluster.nodes[0].kill();
    wait_until("others write", START_DEADLINE, || put(&mut cluster.nodes[1].http(), "a2", "1").is_some());
    restart_ready(&mut cluster.nodes[0]);
    assert!(put(&mut cluster.nodes[2].http(), "a3", "1").is_some());
    assert_eq!([watch.event().key(), watch.event().key()], ["a2", "a3"]);
}

/// Writers through all nodes: what each key was written with, as far as that was acknowledged.
fn write_all(addresses: &[String], stop: &AtomicBool) -> Versions {
    let written = thread::scope(|scope| {
        let write = |writer: usize| {
            let mut written = Versions::new();
            let mut clients: Vec<Http> = addresses.iter().map(|address| Http::new(address)).collect();
            for turn in 0_usize.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                // Each key has one writer, so its versions are acknowledged in their order.
                let key = format!("k{}", writer + 4 * (turn % (KEYS / 4)));
                let client = turn % clients.len();
                let version = put(&mut clients[client], &key, &turn.to_string());
                written.entry(key).or_default().extend(version);
                thread::sleep(Duration::from_millis(2));
            }
            written
        };
        let running: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
        running.into_iter().map(|one| one.join().expect("a writer")).collect::<Vec<_>>()
    });
    written.into_iter().flatten().collect()
}

/// Everything that was acknowledged is told once, and what is told besides may have been done without an answer.
fn check_told(told: &[Told], written: &Versions) {
    check_versions(&by_key(told), written);
}

fn check_versions(told: &Versions, written: &Versions) {
    for (key, versions) in written {
        let found = told.get(key).cloned().unwrap_or_default();
        let missing: Vec<_> = versions.iter().filter(|version| !found.contains(version)).collect();
        assert!(missing.is_empty(), "{key}: {missing:?} of {} are missing", versions.len());
    }
}

fn followers(addresses: &[String]) -> Vec<Follower> {
    let follower =
        |number: usize| Follower::begin(addresses, number % addresses.len(), "?prefix=k", number % 2 == 1);
    (0..4).map(follower).collect()
}

#[test]
fn every_change_is_told_once_across_a_view_change() {
    let cluster = Cluster::of(2);
    let mut addresses = cluster.addresses();
    let other = passive(&addresses, &[]);
    let watching = followers(&addresses);
    addresses.push(other.address().to_owned());
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writers = scope.spawn(|| write_all(&cluster.addresses(), &stop));
        for view in [&addresses[..], &addresses[..2], &addresses[..]] {
            thread::sleep(Duration::from_millis(500));
            let answer = ask_with(&addresses[0], &[], &json!({ "view": view }));
            assert_eq!(answer.status, 200, "{}", answer.text());
            check_receipt_at(&answer.json(), view, 1);
        }
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::SeqCst);
        writers.join().expect("the writers")
    });
    for one in watching {
        check_told(&one.end(), &written);
    }
}

#[test]
fn every_change_is_told_once_across_kills_of_leaders() {
    let mut cluster = replicated(3, 3, &[]);
    let addresses = cluster.addresses();
    let watching = followers(&addresses);
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writers = scope.spawn(|| write_all(&addresses, &stop));
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(800));
            let asked = addresses[0].clone();
            let id = known_shards(&try_view(&asked).expect("a view"))[0].id.clone();
            let leader = wait_leader(&asked, &id, |_| true);
            let node = named(&mut cluster.nodes, &leader);
            node.kill();
            thread::sleep(Duration::from_millis(1500));
            restart_ready(node);
        }
        thread::sleep(allowed(RECOVERY) / 10);
        stop.store(true, Ordering::SeqCst);
        writers.join().expect("the writers")
    });
    for one in watching {
        check_told(&one.end(), &written);
    }
}

/// Ten watch each of so many prefixes: `WATCH_PREFIXES`.
const PREFIXES: usize = 100;
/// So many write, each so often: 2,000 writes a second in all. `WATCH_WRITERS`.
const WRITERS: usize = 200;
const PERIOD: Duration = Duration::from_millis(100);
/// tiny_http keeps so many threads that wait for a connection: each ends after 5 s in which it had none, and the node connects to itself 20 times a second, to one after the other.
const WAITING_THREADS: usize = 100;

/// A number that the environment may say.
fn number_of(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn figure(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("not so many"))
}

/// What a writer has done.
#[derive(Default)]
struct Paced {
    /// The version of each write that was acknowledged, by key.
    written: Versions,
    /// The keys of the others.
    failed: Vec<String>,
    /// By how much a write began too late at most.
    late: Duration,
}

/// Writes in its time through one node after the other, until told to stop. What was not acknowledged may have been done: such keys are written once more in the end, so that the
/// last change of every key is known.
fn write_paced(addresses: &[String], (writer, prefixes): (usize, usize), stop: &AtomicBool) -> Paced {
    let mut done = Paced::default();
    let mut at = writer;
    let mut client = Http::unchecked(&addresses[at % addresses.len()]);
    let begun = Instant::now() + PERIOD * u32::try_from(writer).expect("a few") / 200;
    for turn in 0_u32.. {
        let due = begun + PERIOD * turn;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::SeqCst) {
            break;
        }
        done.late = done.late.max(due.elapsed());
        // Each key has one writer, so its versions are acknowledged in their order.
        let key = format!("p{}.{writer}", (writer + turn as usize) % prefixes);
        if let Some(version) = put(&mut client, &key, &turn.to_string()) {
            done.written.entry(key).or_default().push(version);
        } else {
            done.failed.push(key);
            at += 1;
            client = Http::unchecked(&addresses[at % addresses.len()]);
        }
    }
    for key in &done.failed {
        wait_until("a write is acknowledged", allowed(RECOVERY), || {
            let version = put(&mut Http::unchecked(&addresses[at % addresses.len()]), key, "\"last\"");
            at += 1;
            done.written.entry(key.clone()).or_default().extend(version);
            version.is_some()
        });
    }
    done
}

/// Kills the leader of a shard, and starts it again after a while.
fn kill_leader(cluster: &mut Cluster, asked: &str, shard: usize) {
    let id = known_shards(&try_view(asked).expect("a view"))[shard].id.clone();
    let leader = wait_leader(asked, &id, |_| true);
    let node = named(&mut cluster.nodes, &leader);
    node.kill();
    thread::sleep(Duration::from_secs(2));
    restart_ready(node);
}

/// From two shards to one and back, twice, and a leader dies before each time.
fn kill_and_change(cluster: &mut Cluster, addresses: &[String]) {
    for view in [&addresses[..3], addresses, &addresses[3..], addresses] {
        thread::sleep(Duration::from_secs(2));
        kill_leader(cluster, &addresses[3], 0);
        thread::sleep(Duration::from_secs(2));
        let changed = ask_with(&addresses[3], &[], &json!({ "view": view }));
        assert_eq!(changed.status, 200, "{}", changed.text());
        check_receipt_at(&changed.json(), view, 3);
    }
    thread::sleep(Duration::from_secs(2));
}

/// What each node takes, and how many threads it has, while one watches at each.
struct Idle {
    before: Vec<(u64, usize)>,
    _first: Vec<Watch>,
}

impl Idle {
    fn of(nodes: &[Node]) -> Self {
        let first = nodes.iter().map(|node| Watch::at(node.address(), "?prefix=none", None)).collect();
        // By then connections between nodes are there, and the memory that starting took is given back.
        thread::sleep(Duration::from_secs(3));
        let before = nodes.iter().map(|node| (node.resident_bytes(), node.thread_count())).collect();
        Self { before, _first: first }
    }

    fn has_more_threads(&self, nodes: &[Node], most: usize) -> bool {
        nodes.iter().zip(&self.before).any(|(node, (_, before))| node.thread_count() > before + most)
    }

    fn print(&self, nodes: &[Node], when: &str) {
        for (node, (bytes, threads)) in nodes.iter().zip(&self.before) {
            let (count, more) = (watchers(node) - 1, node.resident_bytes().saturating_sub(*bytes));
            let (each, threads) = (more / count as u64, node.thread_count().saturating_sub(*threads));
            println!(
                "{when}, {count} idle watchers take {each} bytes each, with {threads} more threads in all"
            );
        }
    }
}

#[test]
fn those_who_watch_hold_no_thread() {
    let node = Node::single(&[]);
    let nodes = std::slice::from_ref(&node);
    let idle = Idle::of(nodes);
    let begin = |_| -> Vec<Watch> { (0..50).map(|_| Watch::at(node.address(), "?prefix=w", None)).collect() };
    let mut watches: Vec<Watch> = at_once(20, begin).into_iter().flatten().collect();
    wait_until("all watch", START_DEADLINE, || watchers(&node) > watches.len());
    idle.print(nodes, "at once");
    wait_until("their threads have ended", allowed(START_DEADLINE), || {
        !idle.has_more_threads(nodes, WAITING_THREADS + 20)
    });
    idle.print(nodes, "later");
    assert!(put(&mut node.http(), "w1", "1").is_some());
    for watch in &mut watches {
        assert_eq!(watch.event().key(), "w1");
    }
}

#[test]
#[ignore = "a thousand threads that watch, for a minute"]
fn a_thousand_are_told_everything_once() {
    let (prefixes, writers) = (number_of("WATCH_PREFIXES", PREFIXES), number_of("WATCH_WRITERS", WRITERS));
    let mut cluster = replicated(6, 3, &[]);
    let addresses = cluster.addresses();
    let idle = Idle::of(&cluster.nodes);
    // Of ten who watch a prefix each is at another node than the next.
    let listen = |first: usize| -> Vec<(usize, Listener)> {
        let begin = |prefix| Listener::begin(&addresses, first + prefix, &format!("?prefix=p{prefix}."));
        (0..prefixes).map(|prefix| (prefix, begin(prefix))).collect()
    };
    let listening: Vec<(usize, Listener)> = at_once(10, listen).into_iter().flatten().collect();
    idle.print(&cluster.nodes, "at once");
    wait_until("their threads have ended", allowed(START_DEADLINE), || {
        !idle.has_more_threads(&cluster.nodes, WAITING_THREADS + 20)
    });
    idle.print(&cluster.nodes, "later");
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let (done, seconds) = thread::scope(|scope| {
        let write = |writer| write_paced(&addresses, (writer, prefixes), &stop);
        let running: Vec<_> = (0..writers).map(|writer| scope.spawn(move || write(writer))).collect();
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            kill_and_change(&mut cluster, &addresses);
        }));
        stop.store(true, Ordering::SeqCst);
        let seconds = begun.elapsed().as_secs_f64();
        changed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (running.into_iter().map(|one| one.join().expect("a writer")).collect::<Vec<Paced>>(), seconds)
    });
    let late = done.iter().map(|one| one.late).max().unwrap_or_default();
    let failed: usize = done.iter().map(|one| one.failed.len()).sum();
    let written: Versions = done.into_iter().flat_map(|one| one.written).collect();
    let count: usize = written.values().map(Vec::len).sum();
    let (pace, wanted) = (figure(count) / seconds, figure(writers * 10));
    println!(
        "{count} writes in {seconds:.0} s, and {failed} that were not acknowledged; {late:.1?} late at most"
    );
    if pace < wanted * 0.98 {
        println!(
            "{pace:.0} writes/s: that is LESS than the {wanted} that were wanted, the machine is too slow"
        );
    }
    let of_prefix: Vec<Versions> = (0..prefixes)
        .map(|prefix| {
            let is_of = |(key, _): &(&String, &Vec<u64>)| key.starts_with(&format!("p{prefix}."));
            written.iter().filter(is_of).map(|(key, versions)| (key.clone(), versions.clone())).collect()
        })
        .collect();
    for (prefix, one) in &listening {
        wait_until("everybody was told everything", allowed(START_DEADLINE), || {
            let last = of_prefix[*prefix].iter().filter_map(|(key, versions)| Some((key, *versions.last()?)));
            one.has_been_told(last)
        });
    }
    for (_, one) in &listening {
        one.stop();
    }
    let (mut events, mut first): (usize, Vec<Option<Versions>>) = (0, vec![None; prefixes]);
    for (prefix, one) in listening {
        let told = one.end();
        check_versions(&told, &of_prefix[prefix]);
        events += told.values().map(Vec::len).sum::<usize>();
        // What was done without an answer is told to all, too.
        assert!(
            *first[prefix].get_or_insert_with(|| told.clone()) == told,
            "all are told the same of {prefix}"
        );
    }
    println!("{events} events, {:.0} a second, each once", figure(events) / seconds);
}
