//! `/v1/kv`: keys in their order, their number, and the end of what begins alike. Against real processes in every role.
#![allow(clippy::disallowed_methods, reason = "a test has clients with threads of their own")]

mod support;

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use support::change::{allowed, ask_with, check_receipt_at};
use support::cluster::Cluster;
use support::http::{Http, Response, percent_encoded};
use support::node::{Node, evenkv};
use support::replicated::{named, others, replicated, wait_leader};
use support::{START_DEADLINE, wait_until};

const LINES: (&str, &str) = ("Accept", "application/x-ndjson");

/// The keys of the rows, in their order: bytes that need an escape, one that is not UTF-8, and one that is the beginning of others.
const KEYS: [&[u8]; 9] =
    [b"r/", b"r/ +&=", b"r/%", b"r/a", b"r/a\0", b"r/aa", b"r/b/\xc3\xa4", b"r/b/\xff", b"r/c"];

fn put(client: &mut Http, key: &[u8], content_type: &str, query: &str, body: &[u8]) {
    let target = format!("/v1/kv/{}{query}", percent_encoded(key));
    let answer = client.request("PUT", &target, &[("Content-Type", content_type)], body);
    assert_eq!(answer.status, 201, "{target}: {}", answer.text());
}

fn tag(client: &mut Http, key: &[u8]) -> String {
    let answer = client.get(&format!("/v1/kv/{}", percent_encoded(key)));
    answer.header("ETag").expect("it is there").to_owned()
}

/// The pairs of a page.
fn rows(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["keys"].as_array().expect("a list").clone()
}

fn key_of(row: &Value) -> String {
    let named = |name: &str| row[name].as_str().map(str::to_owned);
    named("key").or_else(|| named("key-base64")).expect("it has a key")
}

fn keys(answer: &Response) -> Vec<String> {
    rows(answer).iter().map(key_of).collect()
}

/// As answers name them.
fn shown(keys: &[&[u8]]) -> Vec<String> {
    let shown = |key: &&[u8]| match std::str::from_utf8(key) {
        Ok(text) => text.to_owned(),
        Err(_) => "ci9iL/8=".to_owned(),
    };
    keys.iter().map(shown).collect()
}

/// All of a listing by pages of a length, each begun where the one before it says.
fn by_pages(client: &mut Http, query: &str, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let answer = client.get(&format!("/v1/kv?{query}&limit={limit}&after={after}"));
        let page = keys(&answer);
        assert!(page.len() <= limit, "{}", answer.text());
        all.extend(page.iter().cloned());
        match answer.json().get("next") {
            Some(next) => {
                assert_eq!(page.len(), limit, "{}", answer.text());
                next.as_str().expect("a text").clone_into(&mut after);
            }
            None => return all,
        }
    }
}

/// The lines of a whole answer, and the last one, which has to fit.
fn told(answer: &Response) -> (Vec<Value>, Value) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("Content-Type"), Some("application/x-ndjson"));
    let text = answer.text();
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let end = lines.pop().expect("there is a last line");
    assert_eq!((&end["end"], &end["keys"]), (&json!(true), &json!(lines.len())), "{end}");
    (lines, end)
}

/// The lines of a whole listing, without the last one.
fn lines(answer: &Response) -> Vec<Value> {
    let (lines, end) = told(answer);
    assert_eq!(end, json!({ "end": true, "keys": lines.len() }));
    lines
}

fn fill(client: &mut Http) {
    put(client, KEYS[0], "application/json", "", b"[1,\n2]");
    put(client, KEYS[1], "text/plain", "", b"plain");
    put(client, KEYS[2], "application/json", "?ttl=1000", b"\"ttl\"");
    for key in &KEYS[3..8] {
        put(client, key, "application/json", "", b"1");
    }
    // No part of a frame, nor of a page between nodes.
    put(client, KEYS[8], "application/octet-stream", "", &vec![b'x'; 100_000]);
}

/// Every row of the contract, through a node whose cluster holds what [`fill`] has put in, and a pair before and after.
fn check(place: &str, client: &mut Http) {
    check_pages(place, client);
    check_values(place, client);
    check_errors(place, client);
}

fn check_pages(place: &str, client: &mut Http) {
    let all = shown(&KEYS);
    for limit in [1, 2, 8, 9, 10, 10_000] {
        assert_eq!(by_pages(client, "prefix=r%2F", limit), all, "{place}: {limit}");
    }
    let whole = [&["before".to_owned()][..], &all, &["z".to_owned()]].concat();
    assert_eq!(keys(&client.get("/v1/kv")), whole, "{place}");
    assert_eq!(by_pages(client, "", 3), whole, "{place}");
    let table: [(&str, &[&[u8]]); 9] = [
        ("prefix=r/a", &KEYS[3..6]),
        ("prefix=r/a&after=r/a", &KEYS[4..6]),
        ("prefix=r/a&after=r/a%00", &KEYS[5..6]),
        ("prefix=r/a&after=r/0", &KEYS[3..6]),
        ("prefix=r/a&after=r/b", &[]),
        ("prefix=r/%20+", &KEYS[1..2]),
        ("prefix=r/b/%FF", &KEYS[7..8]),
        ("prefix=r/b/&other=1", &KEYS[6..8]),
        ("prefix=nothing", &[]),
    ];
    for (query, wanted) in table {
        let answer = client.get(&format!("/v1/kv?{query}"));
        assert_eq!(keys(&answer), shown(wanted), "{place}: {query}");
        assert_eq!(answer.json().get("next"), None, "{place}: {query}");
        let counted = client.get(&format!("/v1/kv?{query}&count=true"));
        assert_eq!(counted.text(), format!("{{\"count\":{}}}", wanted.len()), "{place}: {query}");
        let listed = client.request("GET", &format!("/v1/kv?{query}"), &[LINES], b"");
        let listed: Vec<String> = lines(&listed).iter().map(key_of).collect();
        assert_eq!(listed, shown(wanted), "{place}: {query}");
    }
    assert_eq!(client.get("/v1/kv?count=true").text(), "{\"count\":11}", "{place}");
    let head = client.request("HEAD", "/v1/kv?prefix=r/a", &[], b"");
    let length = client.get("/v1/kv?prefix=r/a").body.len().to_string();
    assert_eq!((head.status, head.header("Content-Length")), (200, Some(&*length)), "{place}");
    let options = client.request("OPTIONS", "/v1/kv", &[], b"");
    assert_eq!(
        (options.status, options.header("Allow")),
        (204, Some("GET, DELETE, HEAD, OPTIONS")),
        "{place}"
    );
}

fn check_values(place: &str, client: &mut Http) {
    let tags: Vec<String> = KEYS.iter().map(|key| tag(client, key)).collect();
    let bare = rows(&client.get("/v1/kv?prefix=r/"));
    let with_values = rows(&client.get("/v1/kv?prefix=r/&values=true"));
    let by_lines = lines(&client.request("GET", "/v1/kv?prefix=r/&values=true&limit=1", &[LINES], b""));
    for (query, in_page, before_lines) in [
        ("", true, false),
        ("&watch=true", true, true),
        ("&watch=false", false, false),
        ("&watch=true&after=r%2F", false, false),
    ] {
        let target = format!("/v1/kv?prefix=r/{query}");
        let page = client.get(&target).json();
        assert_eq!(page["watch"].is_string(), in_page, "{place}: {page}");
        let answer = client.request("GET", &target, &[LINES], b"");
        let cursor = answer.header("Evenkv-Watch");
        assert_eq!(cursor.is_some_and(|cursor| cursor.len() > 8), before_lines, "{place}: {cursor:?}");
    }
    let lengths = [6, 5, 5, 1, 1, 1, 1, 1, 100_000];
    for (number, row) in bare.iter().enumerate() {
        let context = format!("{place}: {row}");
        assert_eq!(row["etag"], tags[number], "{context}");
        assert_eq!(row["bytes"], lengths[number], "{context}");
        assert_eq!(row.get("ttl").is_some(), number == 2, "{context}");
        let names: Vec<&String> = row.as_object().expect("an object").keys().collect();
        assert!(names.iter().all(|name| !name.starts_with("value")), "{context}");
    }
    let left = bare[2]["ttl"].as_f64().expect("seconds");
    assert!(left > 900.0 && left <= 1000.0, "{place}: {left}");
    for rows in [&with_values, &by_lines] {
        assert_eq!(rows.iter().map(key_of).collect::<Vec<_>>(), shown(&KEYS), "{place}");
        assert_eq!(rows[0]["value"], json!([1, 2]), "{place}");
        assert_eq!(
            (&rows[1]["value-base64"], &rows[1]["type"]),
            (&json!("cGxhaW4="), &json!("text/plain")),
            "{place}"
        );
        assert_eq!(rows[2]["value"], "ttl", "{place}");
        assert!((3..8).all(|number| rows[number]["value"] == 1), "{place}");
        assert_eq!(rows[8]["value-base64"].as_str().map(str::len), Some(133_336), "{place}");
        assert_eq!(rows[8]["etag"], tags[8], "{place}");
    }
}

fn check_errors(place: &str, client: &mut Http) {
    let table = [
        ("GET", "?limit=0", 400),
        ("GET", "?limit=10001", 400),
        ("GET", "?limit=a", 400),
        ("GET", "?prefix=%", 400),
        ("GET", "?after=%4", 400),
        ("GET", "?values=1", 400),
        ("GET", "?count=yes", 400),
        ("GET", "?prefix=a&prefix=b", 400),
        ("DELETE", "", 400),
        ("DELETE", "?prefix=", 400),
        ("PUT", "?prefix=r/", 405),
        ("POST", "", 405),
        ("PATCH", "?ttl=1", 405),
    ];
    for (method, query, status) in table {
        let answer = client.request(method, &format!("/v1/kv{query}"), &[], b"");
        let context = format!("{place}: {method} {query}: {}", answer.text());
        assert_eq!(answer.status, status, "{context}");
        assert_eq!(answer.header("Content-Type"), Some("application/problem+json"), "{context}");
        assert_eq!(answer.json()["status"], status, "{context}");
    }
}

/// Fills a place, checks every row through each of its nodes, and empties it.
fn check_all(place: &str, clients: &mut [Http]) {
    fill(&mut clients[0]);
    for key in ["before", "z"] {
        put(&mut clients[0], key.as_bytes(), "application/json", "", b"0");
    }
    for (number, client) in clients.iter_mut().enumerate() {
        check(&format!("{place}{number}"), client);
    }
    let client = clients.last_mut().expect("a node");
    let deleted = client.delete("/v1/kv?prefix=r/a");
    assert_eq!((deleted.status, &*deleted.text()), (200, "{\"deleted\":3,\"more\":false}"), "{place}");
    let deleted = client.delete("/v1/kv?prefix=r/&after=r/b");
    assert_eq!(deleted.text(), "{\"deleted\":3,\"more\":false}", "{place}");
    assert_eq!(keys(&client.get("/v1/kv")), ["before", "r/", "r/ +&=", "r/%", "z"], "{place}");
    assert_eq!(client.delete("/v1/kv?prefix=r/").text(), "{\"deleted\":3,\"more\":false}", "{place}");
    assert_eq!(client.delete("/v1/kv?prefix=r/").text(), "{\"deleted\":0,\"more\":false}", "{place}");
    assert_eq!(client.get("/v1/kv?count=true").text(), "{\"count\":2}", "{place}");
}

#[test]
fn every_row_holds_at_a_single_node_and_through_its_follower() {
    let node = Node::single(&[]);
    node.wait_ready();
    let follower = Node::follower(node.address(), &[]);
    follower.wait_ready();
    check_all("single", &mut [node.http(), follower.http()]);
}

#[test]
fn every_row_holds_through_every_node_of_a_cluster() {
    check_all("cluster", &mut Cluster::of(3).clients());
}

#[test]
fn every_row_holds_through_leaders_replicas_and_others_of_a_replicated_cluster() {
    check_all("replicated", &mut replicated(4, 2, &[]).clients());
}

#[test]
fn a_page_ends_before_it_is_too_long() {
    let cluster = Cluster::of(2);
    let mut client = Http::new(&cluster.addresses()[1]);
    for number in 0..12 {
        let target = format!("/v1/kv/long-{number:02}");
        assert_eq!(client.put(&target, vec![b'x'; 600_000]).status, 201);
    }
    let (mut all, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let answer = client.get(&format!("/v1/kv?values=true&after={after}"));
        assert!(answer.body.len() <= 4 << 20 && !keys(&answer).is_empty(), "{} bytes", answer.body.len());
        all.extend(keys(&answer));
        pages += 1;
        let Some(next) = answer.json().get("next").cloned() else { break };
        next.as_str().expect("a text").clone_into(&mut after);
    }
    assert_eq!(all, (0..12).map(|number| format!("long-{number:02}")).collect::<Vec<_>>());
    assert!((3..=4).contains(&pages), "{pages} pages");
}

#[test]
fn a_listing_is_refused_that_a_shard_has_no_part_in() {
    let mut cluster = Cluster::of(3);
    let all = cluster.addresses();
    put(&mut Http::new(&all[0]), b"a", "application/json", "", b"1");
    cluster.nodes[2].kill();
    for (query, headers) in [("", &[][..]), ("", &[LINES][..]), ("?count=true", &[])] {
        let answer = Http::new(&all[0]).request("GET", &format!("/v1/kv{query}"), headers, b"");
        assert_eq!(answer.status, 503, "{query}: {}", answer.text());
        assert!(
            answer.header("Retry-After").is_some() && answer.text().contains(&all[2]),
            "{}",
            answer.text()
        );
    }
    let answer = Http::new(&all[0]).delete("/v1/kv?prefix=a");
    assert_eq!(
        (answer.status, answer.header("Evenkv-Outcome")),
        (503, Some("not-applied")),
        "{}",
        answer.text()
    );
}

/// What listings and writers share.
struct Moving {
    living: std::sync::Mutex<Vec<String>>,
    is_over: AtomicBool,
    listings: AtomicUsize,
    failed: AtomicUsize,
    /// What began with `+` and was written while a listing may have seen it or not.
    faults: std::sync::Mutex<Vec<String>>,
}

/// So many keys are there all along; others come and go.
const STAYING: usize = 6000;

impl Moving {
    fn node(&self, number: usize) -> String {
        let living = self.living.lock().unwrap();
        living[number % living.len()].clone()
    }

    /// Writes and deletes keys that are not there all along, and writes those that are again, by values of other lengths.
    fn write(&self, writer: usize) {
        for round in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let mut client = Http::new(&self.node(round + writer));
            for number in 0..50 {
                let number = (round * 50 + number) * 4 + writer;
                let passing = format!("/v1/kv/k-{:06}-passing", number % STAYING);
                let _ = client.try_request("PUT", &passing, &[], b"1");
                let staying = format!("/v1/kv/k-{:06}", number * 7 % STAYING);
                let _ = client.try_request("PUT", &staying, &[], &vec![b'x'; number % 90]);
                let _ = client.try_request("DELETE", &passing, &[], b"");
            }
        }
    }

    /// Lists again and again: what was there all along is there once, in order, and nothing that never was.
    fn list(&self, reader: usize) {
        let wanted: Vec<String> = (0..STAYING).map(|number| format!("k-{number:06}")).collect();
        for round in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let mut client = Http::new(&self.node(round + reader));
            let listed = if (round + reader).is_multiple_of(2) {
                let answer = client.try_request("GET", "/v1/kv?prefix=k-", &[LINES], b"");
                answer.ok().filter(|answer| answer.status == 200).map(|answer| lines(&answer))
            } else {
                pages_if_all_come(&mut client)
            };
            let Some(listed) = listed else {
                self.failed.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let listed: Vec<String> = listed.iter().map(key_of).collect();
            self.listings.fetch_add(1, Ordering::Relaxed);
            let mut faults = self.faults.lock().unwrap();
            if let Some(pair) = listed.windows(2).find(|pair| pair[0] >= pair[1]) {
                faults.push(format!("{pair:?} are not in order"));
            }
            let (passing, staying): (Vec<_>, Vec<_>) =
                listed.iter().cloned().partition(|key| key.ends_with("-passing"));
            if staying != wanted {
                let (seen, all): (BTreeSet<_>, BTreeSet<_>) =
                    (staying.iter().collect(), wanted.iter().collect());
                let missing: Vec<_> = all.difference(&seen).take(5).collect();
                faults.push(format!("{} are there, and {missing:?} are missing", staying.len()));
            }
            let never = passing.iter().find(|key| !wanted.contains(&key.replace("-passing", "")));
            faults.extend(never.map(|key| format!("{key} never was")));
        }
    }
}

/// All pages, unless one is refused.
fn pages_if_all_come(client: &mut Http) -> Option<Vec<Value>> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let target = format!("/v1/kv?prefix=k-&limit=700&after={after}");
        let answer =
            client.try_request("GET", &target, &[], b"").ok().filter(|answer| answer.status == 200)?;
        all.extend(rows(&answer));
        match answer.json().get("next") {
            Some(next) => next.as_str()?.clone_into(&mut after),
            None => return Some(all),
        }
    }
}

#[test]
fn what_is_there_all_along_is_listed_once_while_pairs_move_and_a_leader_dies() {
    let mut cluster = replicated(6, 3, &[]);
    let all = cluster.addresses();
    fill_staying(&all);
    let moving = Moving {
        living: std::sync::Mutex::new(all.clone()),
        is_over: AtomicBool::new(false),
        listings: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        faults: std::sync::Mutex::default(),
    };
    thread::scope(|scope| {
        for number in 0..2 {
            let moving = &moving;
            scope.spawn(move || moving.write(number));
            scope.spawn(move || moving.list(number));
        }
        let wait_listed = |count: usize| {
            let before = moving.listings.load(Ordering::Relaxed);
            wait_until("keys are listed", allowed(START_DEADLINE), || {
                moving.listings.load(Ordering::Relaxed) >= before + count
            });
        };
        wait_listed(2);
        // From two shards to one and back, while everything is listed.
        for view in [&all[..3], &all[..]] {
            let changed = ask_with(&all[0], &[], &json!({ "view": view }));
            assert_eq!(changed.status, 200, "{}", changed.text());
            check_receipt_at(&changed.json(), view, 3);
            wait_listed(2);
        }
        let leader = wait_leader(&all[0], "1", |_| true);
        let living = others(&all, &[&leader]);
        *moving.living.lock().unwrap() = living.clone();
        named(&mut cluster.nodes, &leader).kill();
        wait_leader(&living[0], "1", |next| next != leader);
        wait_listed(4);
        moving.is_over.store(true, Ordering::Relaxed);
    });
    let faults = moving.faults.lock().unwrap();
    let figure = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!("{} listings, {} refused or broken off", figure(&moving.listings), figure(&moving.failed));
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(5)]);
}

fn fill_staying(nodes: &[String]) {
    support::at_once(4, |writer| {
        let mut client = Http::new(&nodes[writer % nodes.len()]);
        for number in (writer..STAYING).step_by(4) {
            assert_eq!(client.put(&format!("/v1/kv/k-{number:06}"), b"1").status, 201);
        }
    });
}

fn list(node: &str, args: &[&str]) -> Output {
    evenkv().arg("list").args(["--node", node]).args(args).output().expect("it runs")
}

#[test]
fn the_command_prints_keys_in_their_order() {
    let cluster = Cluster::of(2);
    let all = cluster.addresses();
    let mut client = Http::new(&all[0]);
    fill(&mut client);
    let many: BTreeSet<String> = (0..1500).map(|number| format!("m-{number}")).collect();
    for key in &many {
        assert_eq!(client.put(&format!("/v1/kv/{key}"), b"1").status, 201);
    }
    let table: [(&[&str], Vec<u8>); 3] = [
        (&["--prefix", "r/b"], b"r/b/\xc3\xa4\nr/b/\xff\n".to_vec()),
        (&["--prefix=m-"], many.iter().flat_map(|key| [key.as_bytes(), b"\n"].concat()).collect()),
        (&["--prefix", "nothing"], Vec::new()),
    ];
    for (args, wanted) in table {
        let listed = list(&all[1], args);
        assert_eq!((listed.status.code(), &listed.stdout), (Some(0), &wanted), "{args:?}");
    }
    let told = list(&all[1], &["--json", "--prefix", "r/a"]);
    let told: Vec<Value> = String::from_utf8(told.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect();
    assert_eq!(told.iter().map(key_of).collect::<Vec<_>>(), shown(&KEYS[3..6]));
    assert!(told.iter().all(|row| row["bytes"] == 1));
    let refused = list("127.0.0.1:1", &[]);
    assert_eq!(refused.status.code(), Some(3));
}

const MILLION: usize = 1_000_000;

/// Lists a million keys line by line, until something is over, and once at least.
fn list_a_million(node: &str, is_over: &AtomicBool) -> usize {
    for round in 1.. {
        let mut client = Http::new(node);
        let answer = client.request("GET", "/v1/kv", &[LINES], b"");
        assert_eq!(answer.status, 200);
        let (mut before, mut count) = (String::new(), 0);
        for line in answer.body.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{\"key\"")) {
            let row: Value = serde_json::from_slice(line).expect("a line is JSON");
            let key = key_of(&row);
            assert!(before < key, "{key} after {before}");
            (before, count) = (key, count + 1);
        }
        assert_eq!(count, MILLION, "in round {round}");
        assert!(answer.body.ends_with(format!("{{\"end\":true,\"keys\":{MILLION}}}\n").as_bytes()));
        if is_over.load(Ordering::Relaxed) {
            return round;
        }
    }
    unreachable!("it ends some time");
}

#[test]
#[ignore = "takes minutes"]
fn a_million_keys_are_listed_while_half_of_them_move_and_it_takes_little_memory() {
    let cluster = Cluster::of(2);
    let all = cluster.addresses();
    support::at_once(8, |writer| {
        let mut client = Http::new(&all[writer % 2]);
        for number in (writer..MILLION).step_by(8) {
            assert_eq!(client.put(&format!("/v1/kv/m-{number:07}"), b"1").status, 201);
        }
    });
    let change = |view: &[String]| {
        let changed = ask_with(&all[0], &[], &json!({ "view": view }));
        assert_eq!(changed.status, 200, "{}", changed.text());
        check_receipt_at(&changed.json(), view, 1);
        let moved = changed.json()["moved"].as_u64().expect("a figure");
        assert!(moved.abs_diff(MILLION as u64 / 2) < MILLION as u64 / 100, "{moved} pairs moved");
    };
    // What each node takes at most while something is done.
    let peaks_of = |work: &dyn Fn()| -> Vec<u64> {
        cluster.nodes.iter().for_each(Node::reset_peak);
        work();
        cluster.nodes.iter().map(Node::peak_bytes).collect()
    };
    let views = [&all[..1], &all[..]];
    // First without a listing, and before that once so that every node has had all of its pairs.
    for view in views {
        change(view);
    }
    let without = views.map(|view| peaks_of(&|| change(view)));
    for (view, without) in views.into_iter().zip(without) {
        let with = peaks_of(&|| {
            let (is_over, begun) = (AtomicBool::new(false), Instant::now());
            let (rounds, took) = thread::scope(|scope| {
                let listing = scope.spawn(|| list_a_million(&all[1], &is_over));
                change(view);
                let took = begun.elapsed();
                is_over.store(true, Ordering::Relaxed);
                (listing.join().expect("it lists"), took)
            });
            let all_took = begun.elapsed();
            println!("a change to {} nodes in {took:?}, {rounds} listings in {all_took:?}", view.len());
        });
        for (with, without) in with.into_iter().zip(without) {
            let more = with.saturating_sub(without);
            println!("  {} MB at most, {} MB without a listing", with >> 20, without >> 20);
            assert!(more <= 50 << 20, "{more} bytes more");
        }
    }
}

/// The lines of a whole export, without the last one, and the checksum of that.
fn exported(answer: &Response) -> (Vec<Value>, String) {
    let (mut lines, end) = told(answer);
    lines.sort_by_key(key_of);
    (lines, end["checksum"].as_str().expect("a checksum").to_owned())
}

fn content_checksum(client: &mut Http) -> String {
    let audit = client.get("/kv-store/audit").json();
    assert_eq!(audit["ok"], true, "{audit}");
    audit["content-checksum"].as_str().expect("a checksum").to_owned()
}

/// What is exported through every node, and the checksum, which is that of an audit.
fn check_export(place: &str, clients: &mut [Http]) -> (Vec<Value>, String) {
    fill(&mut clients[0]);
    for number in 0..300 {
        put(&mut clients[0], format!("other-{number}").as_bytes(), "text/plain", "", b"x");
    }
    let checksum = content_checksum(&mut clients[0]);
    let mut all = Vec::new();
    for client in clients.iter_mut() {
        let (lines, sum) = exported(&client.get("/v1/export"));
        assert_eq!((lines.len(), &sum), (309, &checksum), "{place}");
        let (some, _) = exported(&client.get("/v1/export?prefix=r%2F"));
        let mut wanted = shown(&KEYS);
        wanted.sort();
        assert_eq!(some.iter().map(key_of).collect::<Vec<_>>(), wanted, "{place}");
        for row in &some {
            let key = row["key"].as_str().map_or(&b"r/b/\xff"[..], str::as_bytes);
            assert_eq!(row["etag"], tag(client, key), "{place}: {row}");
            assert_eq!(row.get("ttl").is_some(), key == b"r/%", "{place}: {row}");
            // Such as would need more than a line comes in base64, with its type.
            let coded = row["value-base64"].as_str().map(str::len);
            let (value, length) = match key {
                b"r/" | b"r/ +&=" => (&Value::Null, Some(8)),
                b"r/c" => (&Value::Null, Some(133_336)),
                b"r/%" => (&json!("ttl"), None),
                _ => (&json!(1), None),
            };
            assert_eq!((&row["value"], coded), (value, length), "{place}: {row}");
        }
        assert!(some.iter().any(|row| row["type"] == "application/json"), "{place}");
        let wrong = client.get("/v1/export?prefix=%4");
        assert_eq!(wrong.status, 400, "{place}: {}", wrong.text());
        assert_eq!(client.delete("/v1/export").status, 405, "{place}");
        all = lines;
    }
    (all, checksum)
}

#[test]
fn an_export_has_all_pairs_and_a_checksum_that_is_the_same_in_every_cluster() {
    let node = Node::single(&[]);
    node.wait_ready();
    let follower = Node::follower(node.address(), &[]);
    follower.wait_ready();
    let values = |lines: Vec<Value>| -> Vec<Value> {
        let bare = |mut line: Value| {
            line.as_object_mut().expect("an object").retain(|name, _| name != "etag" && name != "ttl");
            line
        };
        lines.into_iter().map(bare).collect()
    };
    let (lines, checksum) = check_export("single", &mut [node.http(), follower.http()]);
    let lines = values(lines);
    for (place, cluster) in [("cluster", Cluster::of(3)), ("replicated", replicated(4, 2, &[]))] {
        let (others, other) = check_export(place, &mut cluster.clients());
        assert_eq!((values(others), other), (lines.clone(), checksum.clone()), "{place}");
        let mut client = Http::new(&cluster.addresses()[0]);
        assert_eq!(client.put("/v1/kv/other-7", b"y").status, 200);
        assert_ne!(content_checksum(&mut client), checksum, "{place}");
    }
}

/// So many pairs are written round by round, each with the number of the round.
const PAIRS: usize = 4000;

/// Says that it is over when this is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The rounds that an export of a shard may show, where writers write pair after pair: two that follow each other, the later one up to a pair and the earlier one from there.
fn check_moment(lines: &[Value]) {
    assert_eq!(lines.len(), PAIRS);
    let rounds: Vec<u64> = lines.iter().map(|line| line["value"][0].as_u64().expect("a number")).collect();
    let torn = rounds.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let (first, last) = (rounds[0], rounds[PAIRS - 1]);
    assert!(torn <= 1 && (first == last || first == last + 1), "{torn} times torn: {first} to {last}");
}

#[test]
fn what_a_shard_exports_is_of_one_moment_whatever_writers_do() {
    let cluster = replicated(3, 3, &[]);
    let all = cluster.addresses();
    let (is_over, round) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let leader = wait_leader(&all[0], "1", |_| true);
            let mut client = Http::new(&leader);
            for number in 1.. {
                for pair in 0..PAIRS {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    // Some are long, so that they do not lie in pages.
                    let value =
                        format!("[{}{number}]", " ".repeat(if pair % 50 == 0 { 3000 } else { number % 9 }));
                    let target = format!("/v1/kv/pair-{pair:05}");
                    let answer = client.request(
                        "PUT",
                        &target,
                        &[("Content-Type", "application/json")],
                        value.as_bytes(),
                    );
                    assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
                }
                round.store(number, Ordering::Relaxed);
            }
        });
        // The writer ends also where something here fails.
        let _over = Over(&is_over);
        wait_until("all pairs are there", allowed(START_DEADLINE), || round.load(Ordering::Relaxed) > 0);
        for number in 0..6 {
            let before = round.load(Ordering::Relaxed) as u64;
            let (lines, _) = exported(&Http::new(&all[number % 3]).get("/v1/export?prefix=pair-"));
            check_moment(&lines);
            assert!(lines[PAIRS - 1]["value"][0].as_u64() >= Some(before));
        }
    });
}

#[test]
fn the_command_writes_a_whole_export_or_none() {
    let cluster = Cluster::of(2);
    let all = cluster.addresses();
    let mut client = Http::new(&all[0]);
    fill(&mut client);
    let checksum = content_checksum(&mut client);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pairs");
    let export = |node: &str, file: &std::path::Path, args: &[&str]| {
        evenkv().arg("export").arg(file).args(["--node", node]).args(args).output().expect("it runs")
    };
    let done = export(&all[1], &file, &[]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("exported 9 pairs, checksum {checksum}\n"));
    let written = std::fs::read_to_string(&file).expect("it is there");
    assert_eq!(written.lines().count(), 10);
    let told = export(&all[1], std::path::Path::new("-"), &["--prefix", "r/a"]);
    assert_eq!((told.status.code(), String::from_utf8_lossy(&told.stdout).lines().count()), (Some(0), 4));
    let refused = export("127.0.0.1:1", &folder.path().join("nothing"), &[]);
    assert_eq!(refused.status.code(), Some(3));
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .expect("a folder")
        .map(|file| file.expect("a file").file_name())
        .collect();
    assert_eq!(names, ["pairs"]);
}
