//! What stands in `ops/`: each figure that a dashboard or alert uses exists, and a real Prometheus answers each of their queries.
#![allow(clippy::disallowed_methods, reason = "the rules about the environment are for the library")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use support::cluster::Cluster;
use support::http::Http;
use support::node::Node;
use support::{ports, wait_until};

/// What a name of a figure begins with.
const FAMILY: &str = "evenkv_";

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
    let cluster = Cluster::with(3, &[("REPL_FACTOR", "3")]);
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

/// A Prometheus that scrapes nodes; it ends with this value.
struct Prometheus {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Nothing where it is not installed.
    fn watching(nodes: &[Node]) -> Option<Self> {
        if Command::new("prometheus")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("left out: prometheus is not installed, so the queries of ops/ were not asked of one");
            return None;
        }
        let (folder, address) = (tempfile::tempdir().expect("a folder"), ports::free_address());
        let targets: Vec<String> = nodes.iter().map(|node| format!("\"{}\"", node.address())).collect();
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: evenkv\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        fs::write(folder.path().join("config.yaml"), config).expect("written");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.path().join("config.yaml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let prometheus = Self { child, address, _folder: folder };
        wait_until("Prometheus is ready", Duration::from_mins(1), || {
            let answer = Http::new(&prometheus.address).try_request("GET", "/-/ready", &[], b"");
            answer.is_ok_and(|answer| answer.status == 200)
        });
        Some(prometheus)
    }

    /// How many series a query gives.
    fn count(&self, query: &str) -> usize {
        let encoded = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let answer = Http::new(&self.address).get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        answer.json()["data"]["result"].as_array().expect("a result").len()
    }

    fn wait_for(&self, what: &str, query: &str) {
        wait_until(&format!("{what}: {query}"), Duration::from_mins(1), || self.count(query) > 0);
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An alert without its bound, so that it has a value also where all is well.
fn unbounded(expression: &str) -> &str {
    let at = expression.rfind([' ']).expect("a bound");
    expression[..at].trim_end_matches(['>', '=', ' '])
}

#[test]
fn a_real_prometheus_answers_every_query_and_alerts_fire_when_what_they_watch_breaks() {
    let mut cluster = cluster();
    let Some(prometheus) = Prometheus::watching(&cluster.nodes) else { return };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address().to_owned()).collect();
        let over = &over;
        scope.spawn(move || {
            let mut clients: Vec<Http> = addresses.iter().map(|address| Http::new(address)).collect();
            while !over.load(Ordering::Relaxed) {
                for client in &mut clients {
                    let _ = client.try_request("GET", "/kv-store/keys/a", &[], b"");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (title, query) in queries() {
                prometheus.wait_for(&title, &query);
            }
            for (name, expression) in alerts() {
                // A refusal is counted when there is one.
                if name != "EvenkvOverloaded" {
                    prometheus.wait_for(&name, &unbounded(&expression).replace("[5m]", "[10s]"));
                }
                assert_eq!(prometheus.count(&expression), 0, "{name} fires, and all is well");
            }
        }));
        over.store(true, Ordering::Relaxed);
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });

    let fires = |name: &str| {
        let (_, expression) =
            alerts().into_iter().find(|(known, _)| known == name).expect("an alert of this name");
        prometheus.wait_for(name, &expression.replace("[1m]", "[10s]"));
    };
    cluster.nodes[2].kill();
    for name in ["EvenkvNodeDown", "EvenkvReplicasMissing", "EvenkvNodesUnreached"] {
        fires(name);
    }
    cluster.nodes[1].kill();
    let address = cluster.nodes[0].address().to_owned();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Http::new(&address);
            while !over.load(Ordering::Relaxed) {
                let _ = client.try_request("GET", "/kv-store/keys/a?consistency=linearizable", &[], b"");
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fires("EvenkvShardWithoutLeader");
            fires("EvenkvNoMetaLeader");
        }));
        over.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
