//! Nodes that know each other by names, and come back at another address: a name server of the test says where each is, in a mount namespace
//! with a `resolv.conf` of its own. It needs root; where that cannot be had, the tests say so and are left out.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests have a name server of their own, and measure how long it takes to reach a node again"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::node::Node;
use support::{ports, wait_until};

/// How long it may take on a busy machine until all reach each other again.
const RECOVERY: Duration = Duration::from_secs(30);
/// What a node shows that reaches all others, and misses no replica that it leads.
const TROUBLES: [&str; 2] = ["evenkv_unreachable_nodes", "evenkv_shard_missing_replicas"];
/// Puts files of ours in the places where the C library looks for names, and becomes the program.
const IN_OUR_WORLD: &str = r#"
for name in hosts resolv.conf nsswitch.conf; do
  if [ -e "/etc/$name" ]; then mount --bind "$0/$name" "/etc/$name" || exit 1; fi
done
exec "$@"
"#;

/// A name server, which has one address for each name.
struct NameServer {
    address: Ipv4Addr,
    places: Arc<Mutex<BTreeMap<String, Ipv4Addr>>>,
    is_silent: Arc<AtomicBool>,
}

impl NameServer {
    fn start() -> io::Result<Self> {
        let mut bound = Err(io::Error::other("no address was tried"));
        let mut address = Ipv4Addr::new(127, 53, 0, 0);
        while bound.is_err() && address.octets()[3] < 20 {
            address = Ipv4Addr::from(u32::from(address) + 1);
            bound = UdpSocket::bind((address, 53));
        }
        let socket = bound?;
        let server = Self { address, places: Arc::default(), is_silent: Arc::default() };
        let (places, is_silent) = (Arc::clone(&server.places), Arc::clone(&server.is_silent));
        // It ends with the process of the test.
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, asker)) = socket.recv_from(&mut question) {
                if !is_silent.load(Ordering::Relaxed) {
                    let answer = answer(&question[..length], &places.lock().expect("no panic"));
                    let _ = socket.send_to(&answer, asker);
                }
            }
        });
        Ok(server)
    }
}

/// The answer to a question for the addresses of a name, as RFC 1035 has both; it must not be kept.
fn answer(question: &[u8], places: &BTreeMap<String, Ipv4Addr>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] > 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
        at = end;
    }
    let end = at + 5;
    let asks_for_ipv4 = question[at + 1..at + 3] == [0, 1];
    let place = places.get(&labels.join("."));
    let code = if place.is_some() { 0x80 } else { 0x83 };
    let place = place.filter(|_| asks_for_ipv4);
    let mut answer = [&question[..2], &[0x81, code, 0, 1, 0, u8::from(place.is_some()), 0, 0, 0, 0]].concat();
    answer.extend(&question[12..end]);
    if let Some(place) = place {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(place.octets());
    }
    answer
}

/// Where names mean what the name server says.
struct World {
    server: NameServer,
    folder: tempfile::TempDir,
    port: u16,
}

impl World {
    /// Nothing where this process may not make one.
    fn make() -> Option<Self> {
        let allowed = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
        let server = NameServer::start();
        let (true, Ok(server)) = (allowed.is_ok_and(|status| status.success()), server) else {
            eprintln!("left out: mount namespaces and a port 53 need root");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let resolver = format!("nameserver {}\noptions timeout:1 attempts:1\n", server.address);
        fs::write(folder.path().join("resolv.conf"), resolver).expect("written");
        fs::write(folder.path().join("nsswitch.conf"), "hosts: files dns\n").expect("written");
        fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n").expect("written");
        Some(Self { server, folder, port: ports::free_port() })
    }

    /// A command of the program with these arguments.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", IN_OUR_WORLD]);
        command.arg(self.folder.path()).arg(env!("CARGO_BIN_EXE_evenkv")).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUST_LOG", "info");
        command
    }

    fn name(&self, node: &str) -> String {
        format!("{node}.evenkv.test:{}", self.port)
    }

    fn view(&self) -> String {
        ["a", "b", "c"].map(|node| self.name(node)).join(",")
    }

    /// Starts a node at this address, by which the name server knows it from now on.
    fn start(&self, node: &str, place: [u8; 4], settings: &[(&str, &str)]) -> Node {
        let place = Ipv4Addr::from(place);
        self.server.places.lock().expect("no panic").insert(format!("{node}.evenkv.test"), place);
        let listen = format!("{place}:{}", self.port);
        let mut command = self.command(&[]);
        command.env("ADDRESS", self.name(node)).env("LISTEN", &listen);
        command.envs(settings.iter().copied());
        Node::start_command(&listen, command)
    }

    /// Three nodes of a view with so many replicas, which reach each other.
    fn cluster(&self, factor: &str) -> [Node; 3] {
        let view = self.view();
        let settings = [("VIEW", view.as_str()), ("REPL_FACTOR", factor)];
        let mut last = 0;
        let nodes = ["a", "b", "c"].map(|node| {
            last += 1;
            self.start(node, [127, 53, 1, last], &settings)
        });
        nodes.iter().for_each(Node::wait_ready);
        wait_whole(&nodes.each_ref());
        nodes
    }
}

/// The sum of what a node shows under this name.
fn shown(node: &Node, name: &str) -> Option<u64> {
    let text = node.http().try_request("GET", "/metrics", &[], b"").ok()?.text();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    Some(lines.map(|(_, value)| value.parse::<u64>().expect("a number")).sum())
}

fn wait_whole(nodes: &[&Node]) {
    for node in nodes {
        for trouble in TROUBLES {
            let what = format!("{} shows no {trouble}", node.address());
            wait_until(&what, RECOVERY, || shown(node, trouble) == Some(0));
        }
    }
}

/// Writes through each node keys of all shards, and reads each through all others.
fn serves(nodes: &[&Node], tag: &str) {
    let keys = |number: usize| (0..20).map(move |key| format!("/v1/kv/{tag}-{number}-{key}"));
    for (number, node) in nodes.iter().enumerate() {
        for key in keys(number) {
            let answer = node.http().put(&key, b"1");
            assert!([200, 201, 204].contains(&answer.status), "{key}: {} {}", answer.status, answer.text());
        }
    }
    for node in nodes {
        for key in (0..nodes.len()).flat_map(keys) {
            assert_eq!(node.http().get(&key).status, 200, "{key}");
        }
    }
}

#[test]
fn a_replica_that_comes_back_at_another_address_is_reached_by_its_name() {
    let Some(world) = World::make() else { return };
    let view = world.view();
    let settings = [("VIEW", view.as_str()), ("REPL_FACTOR", "3")];
    let [a, mut b, c] = world.cluster("3");
    let main = world.name("b");
    let follower = world.start("follower", [127, 53, 1, 9], &[("FORWARDING_ADDRESS", &main)]);
    wait_until("the follower serves", RECOVERY, || shown(&follower, "evenkv_unreachable_nodes") == Some(0));
    serves(&[&a, &b, &c, &follower], "before");

    let mut import = world.command(&["import", "-", "--format", "ndjson", "--node", &main]);
    let import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut import = import.spawn().expect("it starts");
    let mut lines = import.stdin.take().expect("a pipe");
    let mut write = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            writeln!(lines, "{{\"key\":\"line-{number}\",\"value\":\"{}\"}}", "x".repeat(100)).expect("read");
        }
    };
    write(0..20_000);
    wait_until("lines have come in", RECOVERY, || a.http().get("/v1/kv/line-0").status == 200);

    // The process ends, as that of a pod that is rescheduled, and then one that only falls silent, as with its machine.
    for (last, is_silent) in [(2, false), (3, true)] {
        if is_silent {
            b.pause();
        } else {
            b.kill();
        }
        let started = Instant::now();
        let moved = world.start("b", [127, 53, last, 2], &settings);
        moved.wait_ready();
        wait_whole(&[&a, &moved, &c, &follower]);
        eprintln!(
            "reached at another address {:?} after it was started there, silent: {is_silent}",
            started.elapsed()
        );
        serves(&[&a, &moved, &c, &follower], &format!("moved-{last}"));
        // What was paused must not come back as another process of the same address.
        b = moved;
    }

    write(20_000..21_000);
    drop(lines);
    let output = import.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for number in [0, 19_999, 20_999] {
        assert_eq!(a.http().get(&format!("/v1/kv/line-{number}")).status, 200, "{number}");
    }
}

#[test]
fn a_shard_that_was_lost_at_one_address_is_given_up_and_made_anew_at_another() {
    let Some(world) = World::make() else { return };
    let [a, mut b, c] = world.cluster("1");
    serves(&[&a, &b, &c], "before");
    b.kill();
    let view = world.view();
    let b = world.start("b", [127, 53, 2, 2], &[("VIEW", view.as_str())]);
    b.wait_live();
    wait_whole(&[&a, &c]);
    wait_until("it is known that b has forgotten its pairs", RECOVERY, || {
        [&a, &c].iter().all(|node| shown(node, "evenkv_lost_shards") == Some(1))
    });

    let node = world.name("c");
    let change = ["view-change", &view, "--accept-loss", "2", "--node", &node, "--timeout", "30"];
    let output = world.command(&change).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    b.wait_ready();
    wait_whole(&[&a, &b, &c]);
    serves(&[&a, &b, &c], "after");
}

#[test]
fn nodes_that_stay_where_they_are_need_no_name_server() {
    let Some(world) = World::make() else { return };
    let view = world.view();
    let settings = [("VIEW", view.as_str()), ("REPL_FACTOR", "3")];
    let [a, mut b, c] = world.cluster("3");
    world.server.is_silent.store(true, Ordering::Relaxed);
    // Its own host knows the others.
    let lines =
        (1..).zip(["a", "b", "c"]).map(|(last, node)| format!("127.53.1.{last} {node}.evenkv.test\n"));
    let hosts = lines.collect::<Vec<_>>().concat();
    let other =
        World { server: world.server, folder: tempfile::tempdir().expect("a folder"), port: world.port };
    for name in ["resolv.conf", "nsswitch.conf"] {
        fs::copy(world.folder.path().join(name), other.folder.path().join(name)).expect("copied");
    }
    fs::write(other.folder.path().join("hosts"), hosts).expect("written");

    b.kill();
    wait_until("it is seen that b is down", RECOVERY, || shown(&a, TROUBLES[0]) == Some(1));
    let b = other.start("b", [127, 53, 1, 2], &settings);
    b.wait_ready();
    wait_whole(&[&a, &b, &c]);
    serves(&[&a, &b, &c], "after");
}
