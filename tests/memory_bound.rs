//! `MAX_MEMORY`: at the bound what would grow is 507 and was not done, and everything else goes on.
#![allow(clippy::disallowed_methods, reason = "a test measures, and waits for what nobody tells")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cgroup::Cgroup;
use support::change::{ask_with, passive, wait_knows};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::{Node, evenkv};
use support::replicated::wait_leader;
use support::{at_once, wait_until};

/// A node without pairs takes a third of it.
const BOUND: &str = "48000000";
/// What makes such a bound possible, and all of it pairs.
const SMALL: [(&str, &str); 2] = [("MAX_VALUE_LENGTH", "1048576"), ("MAX_BATCH_LENGTH", "1048576")];
/// Memory that was freed is there again.
const GIVEN_BACK: Duration = Duration::from_secs(10);
/// Each value, in bytes.
const VALUE_BYTES: usize = 100_000;
/// What grows, in bytes; the room that is given back now and then is not enough for so many of them.
const LARGE_BYTES: usize = 500_000;
const MOST_GROWING: usize = 90;
/// A node that takes more values than this has no bound.
const MOST_VALUES: usize = 1000;
/// As a part of the bound, in percent, a node may take so much RAM, beside what the program takes.
const RAM_PERCENT: u64 = 120;

fn bounded() -> Vec<(&'static str, &'static str)> {
    [&[("MAX_MEMORY", BOUND)][..], &SMALL].concat()
}

/// The node has stayed near the bound.
fn assert_little_ram(node: &Node) {
    let most = BOUND.parse::<u64>().unwrap() * RAM_PERCENT / 100 + PROGRAM_BYTES;
    assert!(node.peak_bytes() < most, "{} bytes of RAM, {most} allowed", node.peak_bytes());
}

fn value(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// Puts pairs until there is no more room; the keys. What requests have taken is given back in a while, so there may be some again.
fn fill(http: &mut Http, key: impl Fn(usize) -> String) -> Vec<String> {
    let (mut keys, body) = (Vec::new(), value(VALUE_BYTES));
    loop {
        assert!(keys.len() < MOST_VALUES, "there is no bound");
        let key = key(keys.len());
        let answer = http.put(&format!("/v1/kv/{key}"), &body);
        if answer.status == 507 {
            return keys;
        }
        assert_eq!(answer.status, 201, "{}", answer.text());
        keys.push(key);
    }
}

/// Sends what grows, each time something else, until it is refused, which it has to be soon.
fn refused(node: &str, mut send: impl FnMut(usize) -> Response) {
    let answer = (0..MOST_GROWING).map(&mut send).find(|answer| answer.status >= 300);
    let answer = answer.expect("there is a bound");
    assert_eq!(
        (answer.status, answer.header("Evenkv-Outcome")),
        (507, Some("not-applied")),
        "{}",
        answer.text()
    );
    let text = answer.text();
    assert!(text.contains(node) && text.contains("MAX_MEMORY"), "{text}");
}

fn delete(http: &mut Http, keys: &[String]) {
    for key in keys {
        assert_eq!(http.delete(&format!("/v1/kv/{key}")).status, 204);
    }
}

fn wait_until_taken(http: &mut Http, key: &str) {
    wait_until("there is room again", GIVEN_BACK, || {
        http.put(&format!("/v1/kv/{key}"), value(VALUE_BYTES)).status == 201
    });
}

fn metric(node: &Node, name: &str) -> u64 {
    figure(&node.http().get("/metrics").text(), name)
}

fn figure(text: &str, name: &str) -> u64 {
    let figure = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[test]
fn at_the_bound_only_what_grows_is_refused() {
    let node = Node::single(&bounded());
    let mut http = node.http();
    let named = [("Idempotency-Key", "once")];
    let body = value(VALUE_BYTES);
    assert_eq!(http.request("PUT", "/v1/kv/named", &named, body.as_bytes()).status, 201);
    let keys = fill(&mut http, |number| format!("key-{number}"));
    let first = format!("/v1/kv/{}", keys[0]);

    let large = value(LARGE_BYTES);
    refused(node.address(), |number| http.put(&format!("/v1/kv/new-{number}"), &large));
    // A longer value than there is.
    refused(node.address(), |number| http.put(&format!("/v1/kv/{}", keys[keys.len() - 1 - number]), &large));
    refused(node.address(), |number| {
        let answer =
            http.put(&format!("/kv-store/keys/classic-{number}"), format!(r#"{{"value":"{large}"}}"#));
        assert!(answer.status != 507 || answer.json()["message"] == "Error in PUT", "{}", answer.text());
        answer
    });
    refused(node.address(), |number| {
        let answer = http.put(&format!("/v1/kv/problem-{number}"), &large);
        if answer.status == 507 {
            let problem = answer.json();
            assert_eq!(problem["type"], "tag:evenkv,2026:no-room");
            assert_eq!((&problem["status"], &problem["outcome"]), (&507.into(), &"not-applied".into()));
        }
        answer
    });

    let (absent, ttl) = ([("If-None-Match", "*")], format!("{first}?ttl=1000"));
    for (status, method, target, headers, body) in [
        (200, "PUT", first.as_str(), &[][..], body.as_str()),
        (200, "PUT", &first, &[], "shorter"),
        (412, "PUT", &first, &absent, &large),
        (201, "PUT", "/v1/kv/named", &named, &body),
        (200, "GET", &first, &[], ""),
        (204, "PATCH", &ttl, &[], ""),
        (404, "GET", "/v1/kv/nothing", &[], ""),
        (204, "DELETE", &first, &[], ""),
    ] {
        let answer = http.request(method, target, headers, body.as_bytes());
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
    }

    let line =
        |key: &str, value: &str| format!("{{\"op\":\"put\",\"key\":\"{key}\",\"value\":\"{value}\"}}\n");
    let statuses = |number: usize, http: &mut Http| -> Vec<Value> {
        let batch = [
            line(&format!("batch-{number}"), &large),
            line(&keys[1], "shorter"),
            format!("{{\"op\":\"get\",\"key\":\"{}\"}}\n", keys[2]),
        ];
        let answer = http.request("POST", "/v1/batch", &[], batch.concat().as_bytes());
        answer.text().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    };
    let lines =
        (0..MOST_GROWING).map(|number| statuses(number, &mut http)).find(|lines| lines[0]["status"] != 201);
    let lines = lines.expect("there is a bound");
    let told: Vec<_> = lines.iter().map(|line| line["status"].as_u64().unwrap_or(0)).collect();
    assert_eq!(told, [507, 200, 200], "{lines:?}");
    assert_eq!(lines[0]["outcome"], "not-applied");

    let (used, bound) =
        (metric(&node, "evenkv_memory_used_bytes"), metric(&node, "evenkv_memory_bound_bytes"));
    assert_eq!(bound.to_string(), BOUND);
    assert_little_ram(&node);
    let resident = node.resident_bytes();
    // Each is of another moment, and memory is given back all the time.
    assert!(used.abs_diff(resident) < 15_000_000, "{used} used, {resident} in RAM");
    delete(&mut http, &keys[keys.len() / 2..]);
    wait_until_taken(&mut http, "again");
    assert_eq!(http.get(&format!("/v1/kv/{}", keys[4])).body, body.as_bytes());
    eprintln!("{} pairs, {used} bytes used of {bound}, {} in RAM at most", keys.len(), node.peak_bytes());
}

#[test]
fn a_burst_does_not_run_past_the_bound() {
    let node = Node::single(&bounded());
    let taken: usize = at_once(16, |client| {
        let (mut http, body) = (node.http(), value(VALUE_BYTES));
        let put = |number: &usize| http.put(&format!("/v1/kv/{client}-{number}"), &body).status == 201;
        (0..60).filter(put).count()
    })
    .into_iter()
    .sum();
    assert!(taken > 50 && taken < 480, "{taken} of 960 values were taken");
    assert_little_ram(&node);
    eprintln!("{taken} of 960 values, {} bytes of RAM at most", node.peak_bytes());
}

#[test]
fn another_node_passes_on_that_the_owner_has_no_room() {
    let bounded = bounded();
    let cluster = Cluster::each(&[&SMALL, &bounded]);
    let (owner, follower) = (&cluster.nodes[1], Node::follower(cluster.nodes[0].address(), &[]));
    let (mut http, mut at_follower) = (cluster.nodes[0].http(), follower.http());
    let of_owner: Vec<String> = (0..2 * MOST_VALUES)
        .map(|number| format!("key-{number}"))
        .filter(|key| cluster.owner_of(&format!("/kv-store/keys/{key}")) == 1)
        .collect();
    let keys = fill(&mut http, |number| of_owner[number].clone());
    let (body, large) = (value(VALUE_BYTES), value(LARGE_BYTES));
    let mut at_owner = owner.http();
    let mut unused = of_owner[keys.len()..].iter().map(|key| format!("/v1/kv/{key}"));
    for client in [&mut http, &mut at_follower, &mut at_owner] {
        refused(owner.address(), |_| client.put(&unused.next().expect("many keys"), &large));
    }
    let answer = (0..MOST_GROWING).find_map(|_| {
        let key = unused.next().expect("many keys").replace("/v1/kv/", "");
        let line = format!("{{\"op\":\"put\",\"key\":\"{key}\",\"value\":\"{large}\"}}\n");
        let answer = http.request("POST", "/v1/batch", &[], line.as_bytes()).json();
        (answer["status"] != 201).then_some(answer)
    });
    assert_eq!(answer.expect("there is a bound")["status"], 507);
    // Short ones go in frames.
    let small = value(20_000);
    refused(owner.address(), |_| {
        (0..20)
            .map(|_| http.put(&unused.next().expect("many keys"), &small))
            .max_by_key(|one| one.status)
            .expect("some")
    });
    let other = cluster.key_of(0, "other");
    assert_eq!(http.put(&format!("/v1/kv/{other}"), &body).status, 201);
    delete(&mut http, &keys[keys.len() / 2..]);
    wait_until_taken(&mut http, &of_owner[of_owner.len() - 1]);
}

#[test]
fn the_least_room_among_the_replicas_decides() {
    let factor = [("REPL_FACTOR", "3")];
    let (free, bounded) = ([&factor[..], &SMALL].concat(), [&factor[..], &bounded()].concat());
    let mut cluster = Cluster::each(&[&free, &free, &bounded]);
    let mut http = cluster.nodes[0].http();
    let keys = fill(&mut http, |number| format!("key-{number}"));
    let body = value(VALUE_BYTES);
    for node in &cluster.nodes {
        let mut through = node.http();
        refused(cluster.nodes[2].address(), |number| {
            through.put(&format!("/v1/kv/{}-{number}", node.address()), value(LARGE_BYTES))
        });
    }
    assert_eq!(http.put(&format!("/v1/kv/{}", keys[0]), &body).status, 200);
    assert_little_ram(&cluster.nodes[2]);
    delete(&mut http, &keys[keys.len() / 2..]);
    wait_until_taken(&mut http, "again");
    // Whoever is away bounds nothing.
    fill(&mut http, |number| format!("more-{number}"));
    cluster.nodes[2].kill();
    wait_until_taken(&mut http, "without-it");
}

#[test]
fn a_named_write_that_is_sent_again_while_the_first_is_in_the_log_is_answered_as_that() {
    let settings = [&[("REPL_FACTOR", "3")][..], &bounded()].concat();
    let cluster = Cluster::with(3, &settings);
    let room =
        |node: &Node| BOUND.parse::<u64>().unwrap().saturating_sub(metric(node, "evenkv_memory_used_bytes"));
    let least_room = || cluster.nodes.iter().map(room).min().expect("there are nodes");
    let mut http = cluster.nodes[0].http();
    for number in 0.. {
        assert!(number < MOST_VALUES, "there is no bound");
        if least_room() < 2_000_000 {
            break;
        }
        http.put(&format!("/v1/kv/key-{number}"), value(VALUE_BYTES));
    }
    for attempt in 0.. {
        assert!(attempt < MOST_GROWING, "it is never taken");
        let leader = wait_leader(cluster.nodes[0].address(), "1", |_| true);
        let (leader, others): (Vec<&Node>, Vec<&Node>) =
            cluster.nodes.iter().partition(|node| node.address() == leader);
        // It takes most of what is left, so that there is no room for it twice.
        let body = value(usize::try_from(least_room() * 3 / 4 / 3).unwrap());
        let (target, name) = (format!("/v1/kv/twice-{attempt}"), format!("twice-{attempt}"));
        // What is sent meanwhile is in the log of the leader, and nowhere else.
        for other in &others {
            other.pause();
        }
        let (is_logged, answers) = std::thread::scope(|scope| {
            let put =
                || leader[0].http().request("PUT", &target, &[("Idempotency-Key", &name)], body.as_bytes());
            let first = scope.spawn(put);
            // Whoever is refused is told so at once: what was not answered by then is in the log, and only then it is sent again.
            let sent = Instant::now();
            while !first.is_finished() && sent.elapsed() < Duration::from_millis(500) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let is_logged = !first.is_finished();
            let both = [first, scope.spawn(put)];
            std::thread::sleep(Duration::from_millis(300));
            for other in &others {
                other.resume();
            }
            (is_logged, both.map(|one| one.join().expect("an answer")))
        });
        let told = answers.each_ref().map(|one| (one.status, one.header("Evenkv-Outcome"), one.text()));
        let kept = http.get(&target);
        if is_logged && kept.status == 200 {
            let tags = answers.each_ref().map(|answer| answer.header("ETag"));
            assert_eq!(tags, [kept.header("ETag"); 2], "{} bytes: {told:?}", body.len());
            return;
        }
        // There was less room than it said, if only for the first.
        assert_eq!(told[0].1, Some("not-applied"), "{told:?}");
    }
}

#[test]
fn a_view_change_that_would_not_fit_is_refused_before_anything_moves() {
    let first = Node::single(&SMALL);
    let mut http = first.http();
    let body = value(500_000);
    for number in 0..80 {
        assert_eq!(http.put(&format!("/v1/kv/key-{number}"), &body).status, 201);
    }
    let second = passive(&[first.address().to_owned()], &bounded());
    wait_knows(&second, 1);
    let before = http.get("/kv-store/view").json();
    let only = [second.address().to_owned()];
    for dry in [true, false] {
        let answer = ask_with(first.address(), &[], &json!({ "view": only, "dry-run": dry }));
        let text = answer.text();
        assert_eq!(answer.status, 400, "{text}");
        assert!(
            text.contains(second.address()) && text.contains("MAX_MEMORY") && text.contains("missing"),
            "{text}"
        );
    }
    // A new replica needs the whole shard.
    let both = [first.address().to_owned(), second.address().to_owned()];
    let answer = ask_with(first.address(), &[], &json!({ "view": both, "repl-factor": 2 }));
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(http.get("/kv-store/view").json(), before);
    assert_eq!(metric(&second, "evenkv_pairs"), 0);
    // What it took to start is given back in a while.
    wait_until("half of it fits", GIVEN_BACK, || {
        ask_with(first.address(), &[], &json!({ "view": both, "dry-run": true })).status == 200
    });
    let answer = ask_with(first.address(), &[], &json!({ "view": both }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    for number in 0..80 {
        assert_eq!(http.get(&format!("/v1/kv/key-{number}")).body.len(), body.len());
    }
}

#[test]
fn an_import_that_finds_no_room_stops_and_says_where_it_goes_on() {
    let node = Node::single(&bounded());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pairs.tsv");
    let body = value(VALUE_BYTES);
    let lines: Vec<String> = (0..600).map(|number| format!("key-{number}\t\"{body}\"")).collect();
    std::fs::write(&file, lines.join("\n")).expect("a file can be written");
    let mut import = evenkv();
    import.args(["import", "--node", node.address(), "--retry-seconds", "1"]).arg(&file);
    let output = import.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in ["507", "MAX_MEMORY", "delete pairs", "not-applied", "--from-line"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let kept = metric(&node, "evenkv_pairs");
    assert!(kept > 50 && kept < 480, "{kept} pairs");
}

/// What is shown of nodes that are written to for long.
struct Proof {
    factor: usize,
    bound: u64,
    /// The memory of the control group of each node, in bytes.
    group: u64,
    length: Duration,
    settings: &'static [(&'static str, &'static str)],
}

/// Writers at one time.
const WRITERS: usize = 8;
/// What is used and what the system says may differ by so many percent,
const APART_PERCENT: u64 = 10;
/// and by what the program takes beside the allocator, in bytes: the pages of its file (`RssFile`), which have grown with it.
const PROGRAM_BYTES: u64 = 13_000_000;

/// A writer's own pairs, and what came of its requests.
#[derive(Default)]
struct Written {
    /// The values that were acknowledged last, by a byte of which they are made and their length; nothing where it is not known.
    pairs: BTreeMap<String, Option<(u8, usize)>>,
    puts: u64,
    deletes: u64,
    refused: u64,
    unknown: u64,
}

/// A number that looks drawn (xorshift).
fn drawn(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn write_for(node: &Node, writer: usize, length: Duration) -> Written {
    let (mut http, mut written, began) = (node.http(), Written::default(), Instant::now());
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (writer as u64 + 1) << 32;
    while began.elapsed() < length {
        let draw = drawn(&mut state);
        let key = format!("{writer}-{}", draw % 2000);
        let target = format!("/v1/kv/{key}");
        // As many sizes from 1 to 2 bytes as from 512 KiB to 1 MiB.
        let doublings = (draw >> 16) % 20;
        let size = (1 << doublings) + (draw >> 24) % (1 << doublings);
        let size = usize::try_from(size).expect("a megabyte at most");
        let byte = draw.to_le_bytes()[5];
        let deletes = (draw >> 50).is_multiple_of(4);
        let answer = if deletes {
            http.try_request("DELETE", &target, &[], b"")
        } else {
            http.try_request("PUT", &target, &[], &vec![byte; size])
        };
        match answer.map(|answer| (answer.status, answer.header("Evenkv-Outcome").map(str::to_owned))) {
            Ok((200 | 201, _)) => {
                written.puts += 1;
                written.pairs.insert(key, Some((byte, size)));
            }
            Ok((204 | 404, _)) => {
                written.deletes += 1;
                written.pairs.remove(&key);
            }
            Ok((507, outcome)) => {
                assert_eq!(outcome.as_deref(), Some("not-applied"));
                assert!(!deletes, "a delete was refused");
                written.refused += 1;
            }
            Ok((503, Some(outcome))) if outcome == "not-applied" => {}
            Ok((503, _)) | Err(_) => {
                written.unknown += 1;
                written.pairs.insert(key, None);
            }
            Ok((status, _)) => panic!("{target} was answered {status}"),
        }
    }
    written
}

/// Compares what each node says that it uses with what the system says, until told to stop; how often, and by how many percent they were apart at most.
///
/// The two are read one after the other, and values of a megabyte come and go between, so a difference counts that is there twice in a row.
fn compare(nodes: &[Node], stop: &AtomicBool) -> (u64, u64) {
    let (mut compared, mut apart) = (0, 0);
    let mut before = vec![0; nodes.len()];
    while !stop.load(Ordering::Relaxed) {
        for (node, before) in nodes.iter().zip(&mut before) {
            let text = node.http().get("/metrics").text();
            let [used, resident] =
                ["evenkv_memory_used_bytes", "evenkv_process_resident_bytes"].map(|name| figure(&text, name));
            let differ = used.abs_diff(resident).saturating_sub(PROGRAM_BYTES);
            let percent = differ * 100 / resident;
            apart = apart.max(percent.min(*before));
            *before = percent;
            compared += 1;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    (compared, apart)
}

fn prove(proof: &Proof) {
    let bound = proof.bound.to_string();
    let factor = proof.factor.to_string();
    let mut settings = vec![("MAX_MEMORY", bound.as_str()), ("REPL_FACTOR", factor.as_str())];
    settings.extend_from_slice(proof.settings);
    let cluster = if proof.factor == 1 {
        settings.remove(1);
        Cluster { nodes: vec![Node::single(&settings)], view: String::new() }
    } else {
        Cluster::with(proof.factor, &settings)
    };
    let nodes = &cluster.nodes;
    let groups: Vec<Option<Cgroup>> = nodes.iter().map(|node| group_for(node, proof.group)).collect();
    let (stop, comparisons) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut apart = 0;
    let mut all: Vec<Written> = Vec::new();
    std::thread::scope(|scope| {
        let comparing = scope.spawn(|| compare(nodes, &stop));
        all = at_once(WRITERS, |writer| write_for(&nodes[writer % nodes.len()], writer, proof.length));
        stop.store(true, Ordering::Relaxed);
        let (compared, most) = comparing.join().expect("the comparison has failed, see above");
        comparisons.store(compared, Ordering::Relaxed);
        apart = most;
    });
    let sum = |count: fn(&Written) -> u64| all.iter().map(count).sum::<u64>();
    let (puts, deletes, refused, unknown) =
        (sum(|one| one.puts), sum(|one| one.deletes), sum(|one| one.refused), sum(|one| one.unknown));
    let peaks: Vec<u64> = nodes.iter().map(|node| node.peak_bytes() >> 20).collect();
    let used: Vec<u64> = nodes.iter().map(|node| metric(node, "evenkv_memory_used_bytes") >> 20).collect();
    let killed: u64 = groups.iter().flatten().map(Cgroup::killed).sum();
    let in_groups: Vec<u64> = groups.iter().flatten().map(|group| group.peak_bytes() >> 20).collect();
    eprintln!(
        "factor {}, MAX_MEMORY {} MiB: {puts} puts, {deletes} deletes, {refused} answered 507, {unknown} unknown; {used:?} MiB used at the end, \
         {peaks:?} MiB of RAM at most, groups {in_groups:?} MiB of {} at most; used and RSS {apart} % apart at most in {} comparisons",
        proof.factor,
        proof.bound >> 20,
        proof.group >> 20,
        comparisons.load(Ordering::Relaxed)
    );
    assert_eq!(killed, 0, "a node was killed");
    assert!(refused > 0, "the bound was never met");
    assert!(apart <= APART_PERCENT, "used and RSS are {apart} % apart");
    assert!(peaks.iter().all(|peak| peak << 20 < proof.group), "{peaks:?} MiB of RAM");
    let mut http = nodes[0].http();
    let pairs: Vec<_> = all.iter().flat_map(|one| &one.pairs).collect();
    for (key, value) in &pairs {
        let Some((byte, size)) = value else { continue };
        let answer = http.get(&format!("/v1/kv/{key}"));
        let is_whole = answer.body.len() == *size && answer.body.iter().all(|one| one == byte);
        assert!(answer.status == 200 && is_whole, "{key} is {} and not {size} bytes", answer.status);
    }
    for (key, _) in &pairs[pairs.len() / 2..] {
        http.delete(&format!("/v1/kv/{key}"));
    }
    wait_until_taken(&mut http, "again");
    // A group goes only when nobody is in it.
    drop(cluster);
    drop(groups);
}

/// A control group with the node in it. Where none can be made that is said, and only what the system says of the node is looked at.
fn group_for(node: &Node, bytes: u64) -> Option<Cgroup> {
    match Cgroup::of(bytes) {
        Ok(group) => {
            group.take(node.pid());
            Some(group)
        }
        Err(why) => {
            eprintln!(
                "no control group bounds {}, so only its resident memory is looked at: {why}",
                node.address()
            );
            None
        }
    }
}

#[test]
fn a_node_that_is_written_to_stays_within_its_control_group() {
    prove(&Proof {
        factor: 1,
        bound: 64_000_000,
        group: 110_000_000,
        length: Duration::from_secs(4),
        settings: &SMALL,
    });
}

#[test]
#[ignore = "it takes two minutes"]
fn nobody_dies_and_nothing_is_lost_at_the_bound() {
    for factor in [1, 3] {
        let length = Duration::from_mins(1);
        prove(&Proof { factor, bound: 200_000_000, group: 300_000_000, length, settings: &[] });
    }
}
