//! Who may do what, in every role of a node: `API_V1`'s section on tokens, row by row, by tokens that `evenkv token new` has drawn.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::{Node, evenkv};
use support::wait_until;
use support::watch::Watch;

const SECRET: (&str, &str) = ("CLUSTER_SECRET", "shared-by-the-nodes");
const ROLES: [&str; 4] = ["monitor", "read", "write", "admin"];

/// Tokens, and the file that makes them known.
struct Keyring {
    folder: tempfile::TempDir,
    tokens: Vec<(String, String)>,
}

impl Keyring {
    /// One token of each role, and two that reach only keys that begin with `app/`.
    fn new() -> Self {
        let mut ring = Self { folder: tempfile::tempdir().expect("a folder"), tokens: Vec::new() };
        let mut lines = vec!["# who may do what".to_owned()];
        let prefix = ["--prefix", "app/"];
        let mut draw = |name: &str, role: &str, more: &[&str]| {
            let (token, line) = drawn(&[&["token", "new", role], more].concat());
            ring.tokens.push((name.to_owned(), token));
            lines.push(line);
        };
        for role in ROLES {
            draw(role, role, &[]);
        }
        draw("app-read", "read", &prefix);
        draw("app-write", "write", &prefix);
        fs::write(ring.path(), lines.join("\n")).expect("the file can be written");
        ring
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    fn setting(&self) -> (String, String) {
        ("AUTH_TOKENS_FILE".to_owned(), self.path().display().to_string())
    }

    fn of(&self, name: &str) -> &str {
        &self.tokens.iter().find(|(known, _)| known == name).expect("a token of this name").1
    }

    /// Asks with a token, or without one where its name is empty.
    fn ask(&self, client: &mut Http, name: &str, (method, target, body): (&str, &str, &str)) -> Response {
        let header = if name.is_empty() { String::new() } else { format!("Bearer {}", self.of(name)) };
        let headers = [("Authorization", header.as_str())];
        client.request(method, target, if name.is_empty() { &[] } else { &headers }, body.as_bytes())
    }
}

/// A token and its line.
fn drawn(arguments: &[&str]) -> (String, String) {
    let output = evenkv().args(arguments).output().expect("the built binary starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let (token, line) = text.trim_end().split_once('\n').expect("two lines");
    (token.to_owned(), line.to_owned())
}

/// Nodes in every role, each of which asks for tokens.
struct Everywhere {
    single: Node,
    cluster: Cluster,
    replicated: Cluster,
    followers: Vec<Node>,
}

impl Everywhere {
    fn start(ring: &Keyring) -> Self {
        let (name, path) = ring.setting();
        let own = [(name.as_str(), path.as_str())];
        let (single, cluster) = (Node::single(&own), Cluster::with(2, &[own[0], SECRET]));
        let replicated = Cluster::with(3, &[own[0], SECRET, ("REPL_FACTOR", "3")]);
        // One of them judges what it answers by itself, the other one has no file.
        let followers =
            vec![Node::follower(single.address(), &own), Node::follower(cluster.nodes[1].address(), &[])];
        Self { single, cluster, replicated, followers }
    }

    fn nodes(&self) -> Vec<(&str, &Node)> {
        let mut nodes = vec![("single", &self.single)];
        nodes.extend(self.cluster.nodes.iter().map(|node| ("cluster", node)));
        nodes.extend(self.replicated.nodes.iter().map(|node| ("replicated", node)));
        nodes.extend(self.followers.iter().map(|node| ("follower", node)));
        nodes
    }
}

const PUT: &str = r#"{"value":1}"#;
const LINES: &str = "{\"op\":\"get\",\"key\":\"app/a\"}\n";

/// A request, and the first role that may ask it; none needs no token.
const ROWS: &[(&str, &str, &str, Option<&str>)] = &[
    ("GET", "/livez", "", None),
    ("GET", "/readyz", "", None),
    ("GET", "/openapi.json", "", None),
    ("GET", "/", "", None),
    ("GET", "/page/main.js", "", None),
    ("GET", "/metrics", "", Some("monitor")),
    ("GET", "/kv-store/key-count", "", Some("monitor")),
    ("GET", "/kv-store/shards", "", Some("monitor")),
    ("GET", "/kv-store/shards/1", "", Some("monitor")),
    ("GET", "/kv-store/view", "", Some("monitor")),
    ("GET", "/kv-store/audit", "", Some("monitor")),
    ("GET", "/kv-store/view-change", "", Some("monitor")),
    ("HEAD", "/kv-store/view", "", Some("monitor")),
    ("OPTIONS", "/kv-store/view-change", "", Some("monitor")),
    ("GET", "/nowhere", "", Some("monitor")),
    ("GET", "/kv-store/keys/app/a", "", Some("read")),
    ("GET", "/kvs/keys/app/a", "", Some("read")),
    ("HEAD", "/kv-store/keys/app/a", "", Some("read")),
    ("GET", "/v1/kv/app/a", "", Some("read")),
    ("GET", "/v1/kv?prefix=app/", "", Some("read")),
    ("GET", "/v1/kv?count=true", "", Some("read")),
    ("GET", "/v1/export", "", Some("read")),
    ("PUT", "/kv-store/keys/app/a", PUT, Some("write")),
    ("PUT", "/v1/kv/app/a", "x", Some("write")),
    ("PATCH", "/v1/kv/app/a?ttl=none", "", Some("write")),
    ("POST", "/v1/batch", LINES, Some("write")),
    ("DELETE", "/v1/kv?prefix=app/", "", Some("write")),
    ("DELETE", "/kv-store/keys/app/a", "", Some("write")),
    ("DELETE", "/v1/kv/app/a", "", Some("write")),
    ("PUT", "/kv-store/view-change", r#"{"view":"n1"}"#, Some("admin")),
    ("DELETE", "/kv-store/view-change", "", Some("admin")),
];

#[test]
fn each_role_may_do_what_is_its_own_at_every_node() {
    let ring = Keyring::new();
    let everywhere = Everywhere::start(&ring);
    for (place, node) in everywhere.nodes() {
        let (mut client, is_open) =
            (node.http(), place == "follower" && node.address() == everywhere.followers[1].address());
        for (method, target, body, needed) in ROWS {
            // A follower without a file answers what is its own to anybody.
            let needed = needed.filter(|_| !(is_open && ["/metrics", "/nowhere"].contains(target)));
            let row = format!("{method} {target} at {} ({place})", node.address());
            for shown in [&[""][..], &ROLES].concat() {
                let answer = ring.ask(&mut client, shown, (method, target, body));
                let rank = |role: &str| ROLES.iter().position(|known| *known == role).map_or(0, |at| at + 1);
                let context = format!("{row} by {shown:?}: {answer:?}");
                let needed = needed.map_or(0, rank);
                if rank(shown) >= needed {
                    assert!(![401, 403].contains(&answer.status), "{context}");
                    continue;
                }
                assert_eq!(answer.status, if shown.is_empty() { 401 } else { 403 }, "{context}");
                if shown.is_empty() {
                    assert_eq!(
                        answer.header("WWW-Authenticate"),
                        Some("Bearer realm=\"evenkv\""),
                        "{context}"
                    );
                }
                let is_write = ["PUT", "DELETE", "PATCH"].contains(method) || target.starts_with("/v1/batch");
                let outcome = answer.header("Evenkv-Outcome");
                assert_eq!(outcome, is_write.then_some("not-applied"), "{context}");
                if *method != "HEAD" && *target != "/nowhere" {
                    let kind = if target.starts_with("/v1/") {
                        "application/problem+json"
                    } else {
                        "application/json"
                    };
                    assert_eq!(answer.header("Content-Type"), Some(kind), "{context}");
                }
            }
        }
        let wrong = client.request("GET", "/kv-store/keys/a", &[("Authorization", "Bearer evk_wrong")], b"");
        let says = "Bearer realm=\"evenkv\", error=\"invalid_token\"";
        assert_eq!((wrong.status, wrong.header("WWW-Authenticate")), (401, Some(says)), "{place}");
    }
}

#[test]
fn a_token_with_a_prefix_sees_its_own_keys_only() {
    let ring = Keyring::new();
    let everywhere = Everywhere::start(&ring);
    for (place, node) in everywhere.nodes() {
        let mut client = node.http();
        let mut ask = |name: &str, method: &str, target: &str, body: &str| {
            let answer = ring.ask(&mut client, name, (method, target, body));
            (answer.status, answer.text())
        };
        for key in ["app/a", "app/b", "other", "app"] {
            let (status, text) = ask("admin", "PUT", &format!("/kv-store/keys/{key}"), PUT);
            assert!([200, 201].contains(&status), "{place}: {text}");
        }
        let rows = [
            ("app-read", "GET", "/kv-store/keys/app/a", "", 200),
            ("app-read", "GET", "/kv-store/keys/app%2Fa", "", 200),
            ("app-read", "GET", "/kv-store/keys/other", "", 403),
            ("app-read", "GET", "/kv-store/keys/app", "", 403),
            ("app-read", "GET", "/kv-store/keys/absent", "", 403),
            ("app-read", "GET", "/v1/kv/other", "", 403),
            ("app-read", "GET", "/v1/kv/app/../other", "", 404),
            ("app-read", "PUT", "/kv-store/keys/app/a", PUT, 403),
            ("app-write", "PUT", "/kv-store/keys/app/a", PUT, 200),
            ("app-write", "PUT", "/kv-store/keys/other", PUT, 403),
            ("app-write", "PUT", "/v1/kv/other", "x", 403),
            ("app-write", "PATCH", "/v1/kv/other?ttl=1", "", 403),
            ("app-write", "DELETE", "/v1/kv/other", "", 403),
            ("app-write", "DELETE", "/v1/kv?prefix=ap", "", 403),
            ("app-read", "GET", "/v1/kv", "", 403),
            ("app-read", "GET", "/v1/kv?count=true", "", 403),
            ("app-read", "GET", "/v1/kv?prefix=app", "", 403),
            ("app-read", "GET", "/v1/kv?prefix=app/&prefix=other", "", 400),
            ("app-read", "GET", "/v1/export", "", 403),
            ("app-read", "GET", "/v1/watch", "", 403),
            ("app-read", "GET", "/v1/watch?prefix=app", "", 403),
            ("app-read", "GET", "/kv-store/shards", "", 200),
        ];
        for (name, method, target, body, expected) in rows {
            let (status, text) = ask(name, method, target, body);
            assert_eq!(status, expected, "{place}: {name}: {method} {target}: {text}");
        }
        let (status, text) = ask("app-read", "GET", "/v1/kv?prefix=app/", "");
        assert!(
            status == 200 && text.contains("app/a") && text.contains("app/b") && !text.contains("other"),
            "{text}"
        );
        assert_eq!(ask("app-read", "GET", "/v1/kv?prefix=app/b&count=true", "").1, r#"{"count":1}"#);
        let (status, text) = ask("app-read", "GET", "/v1/export?prefix=app/", "");
        assert!(status == 200 && text.contains("app/a") && !text.contains("other"), "{text}");
        let lines = "{\"op\":\"get\",\"key\":\"app/a\"}\n{\"op\":\"get\",\"key\":\"other\"}\n{\"op\":\"put\",\"key\":\"other\",\"value\":2}\n{\"op\":\"put\",\"key\":\"app/c\",\"value\":2}\n";
        let (status, text) = ask("app-write", "POST", "/v1/batch", lines);
        let statuses: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"))
            .map(|line| line["status"].as_u64().expect("a status"))
            .collect();
        assert_eq!((status, statuses), (200, vec![200, 403, 403, 201]), "{place}: {text}");
        assert!(ask("admin", "GET", "/kv-store/keys/other", "").1.contains("\"value\":1"), "{place}");
        assert_eq!(ask("admin", "DELETE", "/v1/kv?prefix=", "").0, 400);
        for key in ["app/a", "app/b", "app/c", "app", "other"] {
            assert_eq!(ask("admin", "DELETE", &format!("/v1/kv/{key}"), "").0, 204, "{place}: {key}");
        }
    }
}

#[test]
fn a_token_with_a_prefix_is_told_what_is_done_there_and_nothing_else() {
    let ring = Keyring::new();
    let everywhere = Everywhere::start(&ring);
    for (place, node) in everywhere.nodes() {
        let mut client = node.http();
        let mut write = |method: &str, key: &str| {
            let status = ring.ask(&mut client, "admin", (method, &format!("/v1/kv/{key}"), "x")).status;
            assert!(status < 300, "{place}: {method} {key}: {status}");
        };
        let watch = |name: &str, prefix: &str| {
            Watch::by(ring.of(name), node.address(), &format!("?prefix={prefix}&values=true"))
        };
        let mut watches =
            [watch("app-read", "app/"), watch("app-write", "app%2F"), watch("app-read", "app/b")];
        // All others see it all.
        let mut all = Watch::by(ring.of("read"), node.address(), "");
        let done = [
            ("PUT", "app/a"),
            ("PUT", "other"),
            ("PUT", "app"),
            ("PUT", "app/b"),
            ("PUT", "apq"),
            ("PUT", "ap"),
        ];
        let done = done
            .into_iter()
            .chain(["app/a", "other", "app", "app/b", "apq", "ap"].map(|key| ("DELETE", key)));
        let done: Vec<_> = done.chain([("PUT", "app/b")]).collect();
        for (method, key) in &done {
            write(method, key);
        }
        let told = |watch: &mut Watch, prefix: &str| {
            let mut wanted: Vec<_> = done
                .iter()
                .filter(|(_, key)| key.starts_with(prefix))
                .map(|(method, key)| ((*key).to_owned(), method.to_ascii_lowercase()))
                .collect();
            let mut told: Vec<_> =
                wanted.iter().map(|_| watch.event()).map(|one| (one.key(), one.name)).collect();
            // Those of one key in their order; others have none.
            told.sort_by(|one, other| one.0.cmp(&other.0));
            wanted.sort_by(|one, other| one.0.cmp(&other.0));
            assert_eq!(told, wanted, "{place}: {prefix}");
        };
        for (watch, prefix) in watches.iter_mut().zip(["app/", "app/", "app/b"]) {
            told(watch, prefix);
        }
        told(&mut all, "");
        write("DELETE", "app/b");
        for watch in &mut watches {
            assert_eq!(watch.event().key(), "app/b", "{place}: nothing else had come");
        }
    }
}

#[test]
fn nodes_need_the_secret_for_each_other_and_operators_a_token() {
    let ring = Keyring::new();
    let everywhere = Everywhere::start(&ring);
    for (place, node) in everywhere.nodes() {
        let mut client = node.http();
        let paths = [
            "/node/keys/app/a",
            "/node/timed-keys/app/a",
            "/node/news",
            "/node/orders",
            "/node/questions",
            "/node/raft",
            "/node/batch",
            "/node/list",
            "/node/transfer",
            "/node/requests",
        ];
        let is_open = node.address() == everywhere.followers[1].address();
        for path in paths.into_iter().filter(|_| !is_open) {
            for name in ["", "admin"] {
                let status = ring.ask(&mut client, name, ("GET", path, "")).status;
                assert!([403, 404, 405].contains(&status), "{place}: {path} by {name:?}: {status}");
                assert!(status == 403 || path.contains("timed"), "{place}: {path} by {name:?}: {status}");
            }
        }
        assert_eq!(ring.ask(&mut client, "", ("GET", "/node/hello", "")).status, 200, "{place}");
        for (name, may) in [("", false), ("write", false), ("admin", true)] {
            // What is asked for makes no sense: there is nothing to recover.
            let status = ring.ask(&mut client, name, ("PUT", "/node/recover", "{}")).status;
            assert!(is_open || (status != 403) == may, "{place}: recover by {name:?}: {status}");
            assert!(status >= 400, "{place}: {status}");
        }
    }
}

#[test]
fn a_hang_up_has_the_file_read_again_and_a_wrong_one_changes_nothing() {
    let ring = Keyring::new();
    let (name, path) = ring.setting();
    let node = Node::single(&[(&name, &path)]);
    let mut client = node.http();
    let mut status = |token: &str| {
        let header = format!("Bearer {token}");
        client.request("GET", "/v1/kv", &[("Authorization", &header)], b"").status
    };
    let (token, line) = drawn(&["token", "new", "read"]);
    assert_eq!((status(&token), status(ring.of("read"))), (401, 200));
    fs::write(ring.path(), format!("{line}\nhalf a line")).expect("written");
    node.hang_up();
    node.wait_logged("the tokens stay as they were");
    node.wait_logged("line 2");
    assert_eq!((status(&token), status(ring.of("read"))), (401, 200));
    fs::write(ring.path(), line).expect("written");
    node.hang_up();
    node.wait_logged("1 tokens were read");
    assert_eq!((status(&token), status(ring.of("read"))), (200, 401));
    assert!(!node.log().contains(&token) && !node.log().contains(ring.of("read")), "no token is in the log");
}

#[test]
fn the_command_line_shows_the_token_of_its_environment() {
    let ring = Keyring::new();
    let everywhere = Everywhere::start(&ring);
    let node = &everywhere.cluster.nodes[0];
    let run = |token: &str, arguments: &[&str]| {
        let mut command = evenkv();
        command.args(arguments).env("EVENKV_NODE", node.address());
        if !token.is_empty() {
            command.env("EVENKV_TOKEN", ring.of(token));
        }
        let output = command.output().expect("the built binary starts");
        (
            output.status.code(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (code, text) = run("", &["get", "a"]);
    assert!(code == Some(3) && text.contains("EVENKV_TOKEN"), "{text}");
    let (code, text) = run("read", &["put", "app/a", "1"]);
    assert!(code == Some(3) && text.contains("the role read") && text.contains("EVENKV_TOKEN"), "{text}");
    assert_eq!(run("write", &["put", "app/a", "1"]).0, Some(0));
    assert_eq!(run("app-read", &["get", "app/a"]), (Some(0), "1\n".to_owned()));
    assert_eq!(run("app-read", &["list", "--prefix", "app/"]), (Some(0), "app/a\n".to_owned()));
    assert_eq!(run("monitor", &["count"]).0, Some(0));
    assert_eq!(run("", &["health"]).0, Some(0));
    let nodes = everywhere.cluster.view.as_str();
    assert_eq!(run("write", &["view-change", nodes]).0, Some(3));
    let (code, text) = run("admin", &["view-change", nodes]);
    assert_eq!(code, Some(0), "{text}");
}

/// Settings, the file, and what the message must contain.
type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

#[test]
fn settings_that_would_leave_a_door_open_are_refused() {
    let ring = Keyring::new();
    let path = ring.path().display().to_string();
    let wrong = ring.folder.path().join("wrong");
    fs::write(&wrong, "read abc").expect("written");
    let wrong = wrong.display().to_string();
    let member = [("ADDRESS", "127.0.0.1:31990"), ("VIEW", "127.0.0.1:31990,127.0.0.1:31991")];
    let passive = [("ADDRESS", "127.0.0.1:31990"), ("VIEW", "127.0.0.1:31991")];
    let rows: [Row; 4] = [
        (&member, &path, "CLUSTER_SECRET"),
        (&passive, &path, "CLUSTER_SECRET"),
        (&[], "/absent/tokens", "AUTH_TOKENS_FILE: /absent/tokens cannot be read"),
        (&[], &wrong, "line 1: it does not begin with the SHA-256"),
    ];
    for (settings, path, says) in rows {
        let mut command = evenkv();
        command.envs(settings.iter().copied()).env("AUTH_TOKENS_FILE", path);
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
        let mut status = None;
        wait_until("it ends", Duration::from_secs(10), || {
            status = child.try_wait().expect("a child of ours can be asked");
            status.is_some()
        });
        let output = child.wait_with_output().expect("its end");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(says), "{settings:?} {path}: {error}");
    }
    let output = evenkv().args(["token", "new", "admin", "--prefix", "a"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
