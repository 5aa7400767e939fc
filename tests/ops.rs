//! What stands in `ops/`: each figure that a dashboard or alert uses exists, and a real Prometheus answers each of their queries.
#![allow(clippy::disallowed_methods, reason = "the rules about the environment are for the library")]

#[path = "support/attack.rs"]
mod attack;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use support::change::{ask_with, change_idle};
use support::cluster::Cluster;
use support::http::Http;
use support::network::{Cut, Lost, Network};
use support::node::Node;
use support::{ports, wait_until};

/// What a name of a figure begins with.
const FAMILY: &str = "evenkv_";
/// A node that a test can fill.
const BOUNDED: [(&str, &str); 3] =
    [("MAX_MEMORY", "48000000"), ("MAX_VALUE_LENGTH", "1048576"), ("MAX_BATCH_LENGTH", "1048576")];
/// More values of 100,000 bytes than such a node can hold.
const MOST_VALUES: usize = 1000;
/// How long Prometheus may take to see something, on a busy machine.
const SEEN: Duration = Duration::from_mins(1);

/// What a node that ends brings about.
const OF_A_NODE_DOWN: [&str; 3] = ["EvenkvNodeDown", "EvenkvReplicasMissing", "EvenkvNodesUnreached"];
/// The same of most nodes, while clients ask the last one.
const OF_MOST_NODES_DOWN: [&str; 4] =
    ["EvenkvShardWithoutLeader", "EvenkvNoMetaLeader", "EvenkvOverloaded", "EvenkvSlow"];
/// What a fault in a view change, a node that is filled, clients that declare what they cannot send, and a node that comes back empty bring about, one after the other.
const OF_SINGLE_REPLICAS: [&str; 5] =
    ["EvenkvFault", "EvenkvMemoryNearBound", "EvenkvMemoryFull", "EvenkvConnectionsStuck", "EvenkvShardLost"];
/// What a node that hears no news brings about.
const OF_A_NODE_CUT_OFF: [&str; 1] = ["EvenkvViewsDiffer"];

fn file(name: &str) -> String {
    let path = format!("{}/ops/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The alerts, each with its expression.
fn alerts() -> Vec<(String, String)> {
    let text = file("prometheus/alerts.yaml");
    let values = |name: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
        lines.filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
    };
    let (names, expressions) = (values("alert: "), values("expr: "));
    assert!(names.len() == expressions.len() && names.len() >= 10, "{names:?} {expressions:?}");
    names.into_iter().zip(expressions).collect()
}

/// The queries of the dashboard, each with the title of its panel, as Grafana asks them of a job.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&file("grafana/evenkv.json")).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("queries") {
            let query = target["expr"].as_str().expect("a query");
            let query = query.replace("$job", "evenkv").replace("$__rate_interval", "10s");
            queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    queries
}

/// The names of figures in a text.
fn named(text: &str) -> BTreeSet<String> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_of_name(letter));
    words.filter(|word| word.starts_with(FAMILY)).map(str::to_owned).collect()
}

/// Three replicas of one shard, and a request of a client at each.
fn cluster() -> Cluster {
    let cluster =
        Cluster::with(3, &[&[("REPL_FACTOR", "3"), ("REQUEST_TIMEOUT_MS", "1000")][..], &BOUNDED].concat());
    for node in &cluster.nodes {
        let answer = node.http().put("/kv-store/keys/a", r#"{"value":1}"#);
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
    }
    cluster
}

#[test]
fn every_figure_that_is_looked_at_exists() {
    let cluster = cluster();
    let shown: String = cluster.nodes.iter().map(|node| node.http().get("/metrics").text()).collect();
    let shown = named(&shown);
    let expressions =
        alerts().into_iter().chain(queries()).map(|(_, text)| text).collect::<Vec<_>>().join("\n");
    let wanted = named(&expressions);
    assert!(wanted.len() > 15, "{wanted:?}");
    let missing: Vec<_> = wanted.difference(&shown).collect();
    assert!(missing.is_empty(), "no node shows {missing:?}");
}

#[test]
fn every_alert_is_fired_by_a_test() {
    let fired = [&OF_A_NODE_DOWN[..], &OF_MOST_NODES_DOWN, &OF_SINGLE_REPLICAS, &OF_A_NODE_CUT_OFF].concat();
    let fired: BTreeSet<String> = fired.into_iter().map(str::to_owned).collect();
    let alerts: BTreeSet<String> = alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(alerts, fired);
}

/// Whether a program is installed; where it is not, that is said.
fn is_installed(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("left out: {program} is not installed");
    }
    found
}

/// Runs a program that checks files, and wants it to be content.
fn is_content(command: &mut Command) {
    let output = command.output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&said));
}

#[test]
fn promtool_finds_nothing_wrong() {
    if !is_installed("promtool") {
        return;
    }
    let folder = format!("{}/ops/prometheus", env!("CARGO_MANIFEST_DIR"));
    is_content(Command::new("promtool").args(["check", "rules", &format!("{folder}/alerts.yaml")]));
    is_content(Command::new("promtool").args(["check", "config", &format!("{folder}/prometheus.yaml")]));
}

#[test]
fn systemd_finds_nothing_wrong_and_little_exposed() {
    if !is_installed("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("evenkv.service");
    let unit = file("systemd/evenkv.service");
    let program = "/usr/local/bin/evenkv";
    assert!(unit.contains(program), "{unit}");
    fs::write(&path, unit.replace(program, env!("CARGO_BIN_EXE_evenkv"))).expect("written");
    is_content(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path));
    // Of 100 points of exposure.
    is_content(
        Command::new("systemd-analyze").args(["security", "--offline=yes", "--threshold=20"]).arg(&path),
    );
}

/// A Prometheus that scrapes nodes, and evaluates the alerts as they stand in `ops/`, but for times that are short enough to wait for; it ends with this value.
struct Prometheus {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Nothing where it is not installed.
    fn watching(nodes: &[Node]) -> Option<Self> {
        if !is_installed("prometheus") {
            return None;
        }
        let (folder, address) = (tempfile::tempdir().expect("a folder"), ports::free_address());
        let targets: Vec<String> = nodes.iter().map(|node| format!("\"{}\"", node.address())).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yaml]\nscrape_configs:\n  \
             - job_name: evenkv\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        fs::write(folder.path().join("config.yaml"), config).expect("written");
        fs::write(folder.path().join("alerts.yaml"), soon(&file("prometheus/alerts.yaml"))).expect("written");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.path().join("config.yaml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let prometheus = Self { child, address, _folder: folder };
        wait_until("Prometheus is ready", SEEN, || {
            let answer = Http::unchecked(&prometheus.address).try_request("GET", "/-/ready", &[], b"");
            answer.is_ok_and(|answer| answer.status == 200)
        });
        prometheus.wait_for("all nodes are seen", &format!("count(up == 1) == {}", nodes.len()));
        Some(prometheus)
    }

    /// What a query gives.
    fn ask(&self, query: &str) -> Vec<Value> {
        let encoded = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let answer = Http::unchecked(&self.address).get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        answer.json()["data"]["result"].as_array().expect("a result").clone()
    }

    fn wait_for(&self, what: &str, query: &str) {
        wait_until(&format!("{what}: {query}"), SEEN, || !self.ask(query).is_empty());
    }

    /// The alerts that fire.
    fn firing(&self) -> BTreeSet<String> {
        let firing = self.ask("ALERTS{alertstate=\"firing\"}");
        firing.iter().map(|alert| alert["metric"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }

    fn fires(&self, names: &[&str]) {
        for name in names {
            wait_until(&format!("{name} fires"), SEEN, || self.firing().contains(*name));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rules with times that a test can wait for: what is counted in minutes is counted in 10 s, and what has to last lasts for 1 s.
fn soon(rules: &str) -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        _ => format!("{}\n", line.replace("[1m]", "[10s]").replace("[5m]", "[10s]")),
    };
    rules.lines().map(line).collect()
}

/// An alert without its bound, so that it has a value also where all is well.
fn unbounded(expression: &str) -> &str {
    let at = expression.rfind([' ']).expect("a bound");
    expression[..at].trim_end_matches(['>', '=', ' '])
}

/// Does something while so many clients ask at each of these addresses.
fn while_asked(addresses: &[String], clients: usize, target: &str, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for address in addresses.iter().flat_map(|address| std::iter::repeat_n(address, clients)) {
            let over = &over;
            scope.spawn(move || {
                let mut client = Http::new(address);
                while !over.load(Ordering::Relaxed) {
                    let _ = client.try_request("GET", target, &[], b"");
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_real_prometheus_answers_every_query_and_alerts_fire_when_nodes_end() {
    let mut cluster = cluster();
    let Some(prometheus) = Prometheus::watching(&cluster.nodes) else { return };
    while_asked(&cluster.addresses(), 1, "/kv-store/keys/a", || {
        for (title, query) in queries() {
            prometheus.wait_for(&title, &query);
        }
        for (name, expression) in alerts() {
            // A refusal is counted when there is one.
            if !expression.contains("status=") {
                prometheus.wait_for(&name, unbounded(&soon(&expression)));
            }
        }
        assert_eq!(prometheus.firing(), BTreeSet::new(), "all is well");
    });

    cluster.nodes[2].kill();
    prometheus.fires(&OF_A_NODE_DOWN);
    cluster.nodes[1].kill();
    let last = [cluster.nodes[0].address().to_owned()];
    while_asked(&last, 8, "/kv-store/keys/a", || prometheus.fires(&OF_MOST_NODES_DOWN));
}

#[test]
fn alerts_fire_when_a_handler_panics_a_node_is_full_clients_misbehave_and_a_shard_is_lost() {
    let faulty = [&BOUNDED[..], &[("FAILPOINTS", "source-batch=1*panic")]].concat();
    let mut cluster = Cluster::each(&[&faulty, &BOUNDED]);
    let Some(prometheus) = Prometheus::watching(&cluster.nodes) else { return };
    let [fault, memory @ .., stuck, lost] = OF_SINGLE_REPLICAS;
    let addresses = cluster.addresses();
    for number in 0..20 {
        assert_eq!(cluster.nodes[0].http().put(&format!("/v1/kv/{number}"), b"1").status, 201);
    }
    // The first batch that the first node sends breaks off, and is sent again.
    change_idle(&addresses[1], &addresses[1..]);
    prometheus.fires(&[fault]);
    change_idle(&addresses[1], &addresses);

    let mut client = cluster.nodes[1].http();
    let value = "x".repeat(100_000);
    let mut number = 0;
    let mut put = || {
        number += 1;
        client.put(&format!("/v1/kv/large-{number}"), &value).status
    };
    let is_full = (0..MOST_VALUES).any(|_| put() == 507);
    assert!(is_full, "there is no bound");
    // What a rate is of has to be there before it grows.
    wait_until("there is no room", SEEN, || {
        put();
        memory.iter().all(|name| prometheus.firing().contains(*name))
    });

    attack::impossible_lengths(&addresses[1], 300);
    prometheus.fires(&[stuck]);
    cluster.nodes[1].restart();
    prometheus.fires(&[lost]);
}

#[test]
fn an_alert_fires_when_a_node_hears_no_news() {
    let network = match Network::of(3) {
        Ok(network) => network,
        Err(reason) => return eprintln!("left out, as there is no network for it: {reason}"),
    };
    let addresses: Vec<String> = (0..3).map(|number| network.address(number)).collect();
    let view = addresses.join(",");
    let settings = [("VIEW", view.as_str()), ("REPL_FACTOR", "3")];
    let start = |number| Node::start_in(&network.namespace(number), &network.address(number), &settings);
    let nodes: Vec<Node> = (0..3).map(start).collect();
    nodes.iter().for_each(Node::wait_ready);
    let Some(prometheus) = Prometheus::watching(&nodes) else { return };

    let both = (0..2).flat_map(|other| [(2, other), (other, 2)]);
    let cuts = both.map(|(from, to)| Cut { from, to, lost: Lost::Everything });
    network.cut(&cuts.collect()).expect("packets can be lost");
    prometheus.wait_for("it is cut off", "evenkv_unreachable_nodes == 2");
    let fewer = json!({"view": addresses[..2], "repl-factor": 2});
    wait_until("the others go on without it", SEEN, || ask_with(&addresses[0], &[], &fewer).status == 200);
    prometheus.fires(&OF_A_NODE_CUT_OFF);
}
