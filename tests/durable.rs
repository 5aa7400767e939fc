//! Nodes that keep what they hold in a folder each, and are killed all at once.
//!
//! `DURABLE_ROUNDS=50 cargo test --release --features failpoints --test durable -- --nocapture` kills so often for each kind of cluster.

#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test measures and kills at random moments"
)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use support::audit::audit;
use support::change::{Pairs, VIEW_CHANGE, allowed, ask_with, check_receipt_at, has_ended, phase, target};
use support::cluster::Cluster;
use support::history;
use support::http::Http;
use support::load::{Load, Profile};
use support::node::{Node, evenkv};
use support::ports;
use support::replicated::wait_agreed;
use support::{START_DEADLINE, wait_until};

/// After all of a cluster was killed it answers everything within this time.
const RECOVERY: Duration = Duration::from_secs(20);
/// Right answers of the clients between two rounds.
const BETWEEN: u64 = 400;

/// Nodes with a folder each.
struct Durable {
    cluster: Cluster,
    folders: Vec<tempfile::TempDir>,
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn text(folder: &tempfile::TempDir) -> String {
    folder.path().to_str().expect("a path in UTF-8").to_owned()
}

impl Durable {
    fn start(count: usize, factor: usize, settings: &[(&str, &str)]) -> Self {
        let folders: Vec<tempfile::TempDir> = (0..count).map(|_| folder()).collect();
        let (texts, factor) = (folders.iter().map(text).collect::<Vec<_>>(), factor.to_string());
        let own = |folder: &'_ String| {
            let mut own = vec![("DATA_DIR", folder.clone()), ("REPL_FACTOR", factor.clone())];
            own.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
            own
        };
        let all: Vec<Vec<(&str, String)>> = texts.iter().map(own).collect();
        let lent: Vec<Vec<(&str, &str)>> =
            all.iter().map(|own| own.iter().map(|(name, value)| (*name, value.as_str())).collect()).collect();
        let each: Vec<&[(&str, &str)]> = lent.iter().map(Vec::as_slice).collect();
        Self { cluster: Cluster::each(&each), folders }
    }

    fn addresses(&self) -> Vec<String> {
        self.cluster.addresses()
    }

    /// Kills all nodes at once and starts them again: how long it took until all were ready.
    fn blackout(&mut self) -> Duration {
        Node::kill_all(&mut self.cluster.nodes);
        let started = Instant::now();
        self.cluster.nodes.iter_mut().for_each(Node::restart);
        self.cluster.nodes.iter().for_each(Node::wait_ready);
        started.elapsed()
    }
}

fn rounds() -> u32 {
    std::env::var("DURABLE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

/// Kills all nodes of a cluster round after round while clients work: nothing acknowledged is lost, and the history is that of one register.
fn killed_under_load(count: usize, factor: usize) {
    let mut durable = Durable::start(count, factor, &[("REQUEST_TIMEOUT_MS", "3000")]);
    let all = durable.addresses();
    let load = Load::start(&all, &Profile { keys: 200, seed: count as u64, ..Profile::default() });
    let mut times = Vec::new();
    for _ in 0..rounds() {
        let before = load.answers();
        wait_until("the clients are at work", allowed(RECOVERY), || load.answers() >= before + BETWEEN);
        times.push(durable.blackout());
        // What is unknown makes the history of a key dear to check.
        load.turn_over();
    }
    let before = load.answers();
    wait_until("the clients are at work again", allowed(RECOVERY), || load.answers() >= before + BETWEEN);
    let mut noted = load.stop();
    let pairs = noted.read_back(&all);
    noted.check_fit();
    history::check(&noted.records).unwrap_or_else(|why| panic!("{why}"));
    wait_agreed(&all[0]);
    println!(
        "{count} nodes, factor {factor}: {} requests, {pairs} pairs, ready again after {times:?}",
        noted.records.len()
    );
    for node in &durable.cluster.nodes {
        node.wait_logged(&format!("this is start {} with DATA_DIR", rounds() + 1));
    }
}

#[test]
fn a_node_alone_may_be_killed_under_load() {
    killed_under_load(1, 1);
}

#[test]
fn all_nodes_of_single_replicas_may_be_killed_under_load() {
    killed_under_load(3, 1);
}

#[test]
fn both_replicas_may_be_killed_under_load() {
    killed_under_load(2, 2);
}

#[test]
fn all_three_replicas_may_be_killed_under_load() {
    killed_under_load(3, 3);
}

#[test]
fn all_nodes_that_are_stopped_come_back_with_everything() {
    for (count, factor) in [(2, 1), (2, 2), (3, 3)] {
        let mut durable = Durable::start(count, factor, &[]);
        let all = durable.addresses();
        let mut pairs = Pairs::default();
        pairs.create(&all, 100);
        let before = audit(&all[0]);
        for _ in 0..2 {
            durable.cluster.nodes.iter().for_each(Node::terminate);
            for node in &mut durable.cluster.nodes {
                assert!(node.wait_exit(allowed(Duration::from_secs(10))).success());
                node.restart();
            }
            durable.cluster.nodes.iter().for_each(Node::wait_ready);
            // Whoever was started first may have found the others down.
            for node in &all {
                wait_agreed(node);
            }
            pairs.check(&all);
        }
        let after = audit(&all[count - 1]);
        assert_eq!((after.keys, after.checksum), (before.keys, before.checksum));
    }
}

#[test]
fn a_crash_of_either_of_two_replicas_is_over_when_it_returns() {
    let mut durable = Durable::start(2, 2, &[]);
    let all = durable.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 50);
    for dead in 0..2 {
        durable.cluster.nodes[dead].kill();
        durable.cluster.nodes[dead].restart();
        durable.cluster.nodes.iter().for_each(Node::wait_ready);
        pairs.check(&all);
        // It is the same replica: nobody was asked for a snapshot.
        assert!(!durable.cluster.nodes[dead].log().contains("begins anew"));
    }
    wait_agreed(&all[0]);
}

#[test]
fn a_node_whose_folder_was_emptied_is_filled_by_the_others() {
    let mut durable = Durable::start(3, 3, &[]);
    let all = durable.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 50);
    for lost in 0..3 {
        durable.cluster.nodes[lost].kill();
        for entry in std::fs::read_dir(durable.folders[lost].path()).expect("the folder is there") {
            std::fs::remove_file(entry.expect("a file").path()).expect("it can be removed");
        }
        durable.cluster.nodes[lost].restart();
        durable.cluster.nodes.iter().for_each(Node::wait_ready);
    }
    pairs.check(&all);
    durable.blackout();
    pairs.check(&all);
    wait_agreed(&all[0]);
}

#[test]
fn the_view_may_be_changed_before_and_after_all_were_killed() {
    for factor in [1, 2] {
        let mut durable = Durable::start(2 * factor, factor, &[]);
        let all = durable.addresses();
        let mut pairs = Pairs::default();
        pairs.create(&all, 300);
        let extra: Vec<tempfile::TempDir> = (0..factor).map(|_| folder()).collect();
        let new: Vec<Node> = extra
            .iter()
            .map(|folder| {
                let (view, folder) = (durable.cluster.view.clone(), text(folder));
                let node = Node::start(&ports::free_address(), &[("VIEW", &view), ("DATA_DIR", &folder)]);
                node.wait_live();
                node
            })
            .collect();
        let mut larger = all.clone();
        larger.extend(new.iter().map(|node| node.address().to_owned()));
        durable.cluster.nodes.extend(new);
        for view in [&larger, &all, &larger] {
            let answer = ask_with(&all[0], &[], &json!({ "view": view }));
            assert_eq!(answer.status, 200, "{}", answer.text());
            check_receipt_at(&answer.json(), view, factor);
            durable.blackout_of(view.len());
            // Whoever was started first may have found the others down.
            for node in view {
                wait_agreed(node);
            }
            pairs.check(view);
        }
    }
}

impl Durable {
    /// The same where only the first nodes are members, and ready.
    fn blackout_of(&mut self, members: usize) -> Duration {
        Node::kill_all(&mut self.cluster.nodes);
        let started = Instant::now();
        self.cluster.nodes.iter_mut().for_each(Node::restart);
        self.cluster.nodes[..members].iter().for_each(Node::wait_ready);
        self.cluster.nodes.iter().for_each(Node::wait_live);
        started.elapsed()
    }
}

/// Kills all nodes round after round in the middle of view changes, while clients work.
fn killed_while_the_view_changes(factor: usize) {
    let mut durable = Durable::start(2 * factor, factor, &[("REQUEST_TIMEOUT_MS", "3000")]);
    let small = durable.addresses();
    let extra: Vec<tempfile::TempDir> = (0..factor).map(|_| folder()).collect();
    for folder in &extra {
        let (view, folder) = (durable.cluster.view.clone(), text(folder));
        let settings = [("VIEW", view.as_str()), ("DATA_DIR", &folder), ("REQUEST_TIMEOUT_MS", "3000")];
        let node = Node::start(&ports::free_address(), &settings);
        node.wait_live();
        durable.cluster.nodes.push(node);
    }
    let large = durable.addresses();
    let load = Load::start(&small, &Profile { keys: 200, seed: 9, ..Profile::default() });
    let mut random = StdRng::seed_from_u64(factor as u64);
    let (mut times, mut cut) = (Vec::new(), 0);
    for round in 0..2 * rounds() {
        let before = load.answers();
        wait_until("the clients are at work", allowed(RECOVERY), || load.answers() >= before + BETWEEN);
        let view = if round.is_multiple_of(2) { &large } else { &small };
        let (asked, body) = (small[0].clone(), json!({ "view": view }).to_string());
        let changing = std::thread::spawn(move || {
            let mut client = Http::with_patience(&asked, allowed(RECOVERY));
            client.try_request("PUT", VIEW_CHANGE, &[], body.as_bytes()).map(|answer| answer.status)
        });
        std::thread::sleep(Duration::from_millis(random.random_range(0..250)));
        cut += u32::from(!changing.is_finished());
        times.push(durable.blackout_of(small.len()));
        drop(changing.join());
        wait_until("the view change has come to its end", allowed(RECOVERY), || has_ended(&phase(&small[0])));
        load.turn_over();
    }
    let mut noted = load.stop();
    let pairs = noted.read_back(&small);
    noted.check_fit();
    history::check(&noted.records).unwrap_or_else(|why| panic!("{why}"));
    wait_agreed(&small[0]);
    println!(
        "factor {factor}: {} requests, {pairs} pairs, {cut} of {} in the middle, ready again after {times:?}",
        noted.records.len(),
        2 * rounds()
    );
}

#[test]
fn all_nodes_of_single_replicas_may_be_killed_while_the_view_changes() {
    killed_while_the_view_changes(1);
}

#[test]
fn all_replicas_may_be_killed_while_the_view_changes() {
    killed_while_the_view_changes(2);
}

#[test]
fn an_older_folder_is_found_by_the_others() {
    let mut durable = Durable::start(3, 3, &[]);
    let all = durable.addresses();
    let mut pairs = Pairs::default();
    pairs.create(&all, 20);
    let own = durable.folders[2].path().to_owned();
    let copy = |from: &Path, to: &Path| {
        for entry in std::fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("a file");
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
        }
    };
    let empty = || {
        for entry in std::fs::read_dir(&own).expect("a folder") {
            std::fs::remove_file(entry.expect("a file").path()).expect("it can be removed");
        }
    };
    durable.cluster.nodes[2].kill();
    let old = folder();
    copy(&own, old.path());
    durable.cluster.nodes[2].restart();
    durable.cluster.nodes[2].wait_ready();
    pairs.create(&all, 20);
    durable.cluster.nodes[2].kill();
    empty();
    copy(old.path(), &own);
    durable.cluster.nodes[2].restart();
    assert_eq!(durable.cluster.nodes[2].wait_exit(START_DEADLINE).code(), Some(1));
    assert!(durable.cluster.nodes[2].log().contains("is of old"), "{}", durable.cluster.nodes[2].log());
    // The others go on, and fill an empty one.
    empty();
    durable.cluster.nodes[2].restart();
    durable.cluster.nodes.iter().for_each(Node::wait_ready);
    pairs.check(&all);
}

#[test]
fn nodes_with_folders_and_without_do_not_mix() {
    let durable = Durable::start(2, 1, &[]);
    let all = durable.addresses();
    let other = Node::start(&ports::free_address(), &[("VIEW", durable.cluster.view.as_str())]);
    other.wait_live();
    let view: Vec<&str> = all.iter().map(String::as_str).chain([other.address()]).collect();
    let answer = ask_with(&all[0], &[], &json!({ "view": view }));
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains(&format!("{} has no DATA_DIR", other.address())), "{}", answer.text());
    let [first, second] = [ports::free_address(), ports::free_address()];
    let (kept, view) = (folder(), format!("{first},{second}"));
    let nodes = [
        Node::start(&first, &[("VIEW", view.as_str()), ("DATA_DIR", &text(&kept))]),
        Node::start(&second, &[("VIEW", view.as_str())]),
    ];
    nodes[0].wait_logged(&format!("{second} has no DATA_DIR"));
    nodes[1].wait_logged(&format!("{first} has DATA_DIR"));
}

#[test]
fn what_goes_with_a_pair_survives() {
    let mut durable = Durable::start(3, 3, &[]);
    let all = durable.addresses();
    let v1 = |key: &str| format!("/v1/kv/{key}");
    let mut client = Http::new(&all[0]);
    let put = |client: &mut Http, key: &str, headers: &[(&str, &str)]| {
        let answer = client.request("PUT", &v1(key), headers, b"\"first\"");
        (answer.status, answer.header("ETag").map(str::to_owned))
    };
    let (status, tag) = put(&mut client, "plain", &[("Content-Type", "text/plain")]);
    assert_eq!(status, 201);
    let (status, _) = put(&mut client, "ends?ttl=600", &[]);
    assert_eq!(status, 201);
    let (_, named) = put(&mut client, "named", &[("Idempotency-Key", "once")]);
    durable.blackout();
    let mut client = Http::new(&all[1]);
    let read = client.get(&v1("plain"));
    assert_eq!((read.header("ETag"), read.header("Content-Type")), (tag.as_deref(), Some("text/plain")));
    assert_eq!(client.get(&v1("ends")).status, 200);
    let (_, again) = put(&mut client, "named", &[("Idempotency-Key", "once")]);
    assert_eq!(again, named, "it was done once");
    let changed = client.request("PUT", &v1("plain"), &[("If-Match", &tag.expect("an entity tag"))], b"2");
    assert_eq!(changed.status, 200, "{}", changed.text());
}

/// How a start with these settings ends, and what it says.
fn refused(address: &str, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut node = Node::start(address, settings);
    let status = node.wait_exit(START_DEADLINE);
    (status.code(), node.log())
}

#[test]
fn a_folder_that_is_not_this_nodes_is_refused() {
    let folder = folder();
    let path = text(&folder);
    let address = ports::free_address();
    let mut node = Node::start(&address, &[("DATA_DIR", &path)]);
    node.wait_ready();
    Http::new(&address).request("PUT", &target("k"), &[], b"{\"value\":1}");
    let other = ports::free_address();
    let running = evenkv().args(["inspect", &path]).output().expect("it runs");
    assert_eq!(running.status.code(), Some(3));
    let (code, log) = refused(&other, &[("DATA_DIR", &path)]);
    assert!(code == Some(1) && log.contains("belongs to another process that runs"), "{code:?} {log}");
    node.kill();
    let (code, log) = refused(&other, &[("DATA_DIR", &path)]);
    assert!(
        code == Some(1) && log.contains(&format!("belongs to the node {address}, and ADDRESS is {other}")),
        "{log}"
    );
    let (code, log) = refused(&other, &[("DATA_DIR", &path), ("FORWARDING_ADDRESS", "127.0.0.1:1")]);
    assert!(code == Some(2) && log.contains("a follower holds nothing"), "{code:?} {log}");
    let inspect = || {
        let output = evenkv().args(["inspect", &path]).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = inspect();
    assert!(code == Some(0) && said.contains(&format!("node {address}, folder ")), "{said}");
    assert!(said.contains("group 1: replica ") && said.ends_with("all checksums match\n"), "{said}");
    damage(folder.path());
    let (code, said) = inspect();
    assert!(code == Some(1) && said.contains("damaged: log: "), "{said}");
    let (code, log) = refused(&address, &[("DATA_DIR", &path)]);
    assert!(code == Some(1) && log.contains("is damaged"), "{code:?} {log}");
}

/// A bit in the middle of the log that is not the last thing that was written.
fn damage(folder: &Path) {
    let path = folder.join("log");
    let mut bytes = std::fs::read(&path).expect("a log");
    for at in (4096..bytes.len()).step_by(512) {
        bytes[at] ^= 1;
    }
    std::fs::write(&path, bytes).expect("it can be written");
}

/// A small disk of its own, if this machine lets a test have one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn of_megabytes(size: u32) -> Option<Self> {
        let folder = folder();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs", &text(&folder)])
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_what_would_grow_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::of_megabytes(240) else {
        println!("LEFT OUT: a disk of its own needs root");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 140 << 20]).expect("there is room for it");
    let address = ports::free_address();
    let data = disk.0.path().join("data");
    let mut node = Node::start(&address, &[("DATA_DIR", data.to_str().expect("UTF-8"))]);
    node.wait_ready();
    let mut client = Http::new(&address);
    let value = format!("{{\"value\":\"{}\"}}", "x".repeat(100_000));
    let mut stored = 0;
    let refused = loop {
        let answer = client.request("PUT", &target(&format!("k{stored}")), &[], value.as_bytes());
        if answer.status != 201 {
            break answer;
        }
        stored += 1;
        assert!(stored < 1500, "the disk is full by now");
    };
    assert_eq!(
        (refused.status, refused.header("Evenkv-Outcome")),
        (507, Some("not-applied")),
        "{}",
        refused.text()
    );
    assert!(stored > 20, "{stored}");
    // Everything else goes on.
    for key in 0..stored {
        assert_eq!(client.get(&target(&format!("k{key}"))).status, 200);
    }
    assert_eq!(client.request("PUT", &target("k0"), &[], value.as_bytes()).status, 200);
    assert_eq!(client.request("DELETE", &target("k1"), &[], b"").status, 200);
    std::fs::remove_file(&ballast).expect("it is there");
    wait_until("there is room again", START_DEADLINE, || {
        client.request("PUT", &target("new"), &[], value.as_bytes()).status < 300
    });
    node.restart();
    node.wait_ready();
    let mut client = Http::new(&address);
    for key in (0..stored).filter(|key| *key != 1) {
        assert_eq!(client.get(&target(&format!("k{key}"))).status, 200);
    }
    assert_eq!(client.get(&target("k1")).status, 404);
}

#[test]
fn without_a_folder_nothing_is_written() {
    let folder = folder();
    let address = ports::free_address();
    let mut command = evenkv();
    command.env("ADDRESS", &address).current_dir(folder.path());
    let node = Node::start_command(&address, command);
    node.wait_ready();
    Http::new(&address).request("PUT", &target("k"), &[], b"{\"value\":1}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is there").count(), 0);
}

#[test]
fn the_log_is_cut_and_the_folder_stays_bounded() {
    let mut durable = Durable::start(1, 1, &[]);
    let all = durable.addresses();
    let mut client = Http::new(&all[0]);
    let value = format!("{{\"value\":\"{}\"}}", "x".repeat(100_000));
    let size = |durable: &Durable| -> u64 {
        let entries = std::fs::read_dir(durable.folders[0].path()).expect("the folder is there");
        entries.map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |data| data.len())).sum()
    };
    let mut most = 0;
    for number in 0..1500 {
        let answer = client.request("PUT", &target(&format!("k{}", number % 20)), &[], value.as_bytes());
        assert!(answer.status < 300, "{}", answer.text());
        most = most.max(size(&durable));
    }
    // 150 MB were written, of which 2 MB live.
    assert!(most < 100 << 20, "{most}");
    let took = durable.blackout();
    for number in 0..20 {
        assert_eq!(Http::new(&all[0]).get(&target(&format!("k{number}"))).status, 200);
    }
    println!("150 MB written, 2 MB live: {most} bytes at most, ready again after {took:?}");
}
