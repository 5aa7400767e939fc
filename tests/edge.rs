//! The edge of scripts/edge before real nodes: what it lets through, what it ends by itself, and that attacks on it
//! leave the nodes as they were. Needs nginx, openssl and curl; where nginx is not installed it says so.
#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test polls and measures"
)]

#[path = "support/attack.rs"]
mod attack;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use attack::{CLIENT_WORKERS, LARGE_WORKERS, connect_and_send, receive_all, receive_status};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::{openapi, ports, wait_until};

/// nginx before nodes; it ends with this value.
struct Edge {
    folder: tempfile::TempDir,
    address: String,
}

impl Edge {
    /// The edge before these nodes, or nothing where there is no nginx.
    fn before(nodes: &[Node], settings: &[(&str, &str)]) -> Option<Self> {
        let found = Command::new("nginx").arg("-v").stderr(Stdio::null()).status();
        if found.is_err() {
            eprintln!("left out: nginx is not installed, so nothing of the edge was tried");
            return None;
        }
        let edge = Self { folder: tempfile::tempdir().expect("a folder"), address: ports::free_address() };
        let nodes: Vec<&str> = nodes.iter().map(Node::address).collect();
        let mut all = vec![("EDGE_NODES", nodes.join(","))];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let output = edge.script("start", &all);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // It has answers of its own.
        openapi::leave_out(&edge.address);
        Some(edge)
    }

    /// The same without TLS, so that a test can send any bytes.
    fn plain(nodes: &[Node], settings: &[(&str, &str)]) -> Option<Self> {
        Self::before(nodes, &[settings, &[("EDGE_TLS", "off")]].concat())
    }

    fn script(&self, command: &str, settings: &[(&str, String)]) -> std::process::Output {
        script(self.folder.path(), &self.address, command, settings)
    }

    fn http(&self) -> Http {
        Http::with_patience(&self.address, Duration::from_secs(20))
    }

    /// What curl prints for this path, by TLS.
    fn curl(&self, arguments: &[&str], path: &str) -> String {
        let certificate = self.folder.path().join("certificate.pem");
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--include",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "--path-as-is",
            "--cacert",
        ]);
        command.arg(certificate).args(arguments).arg(format!("https://{}{path}", self.address));
        let output = command.output().expect("curl is installed");
        assert!(output.status.success(), "curl {arguments:?} {path}: {:?}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.script("stop", &[]);
    }
}

fn script(folder: &Path, address: &str, command: &str, settings: &[(&str, String)]) -> std::process::Output {
    let mut bash = Command::new("scripts/edge");
    bash.current_dir(env!("CARGO_MANIFEST_DIR")).arg(command);
    bash.env("EDGE_DIR", folder).env("EDGE_LISTEN", address);
    bash.envs(settings.iter().map(|(name, value)| (name, value)));
    bash.stdin(Stdio::null()).output().expect("bash runs it")
}

#[test]
fn it_speaks_tls_and_both_versions_of_http_and_passes_keys_on_as_they_came() {
    let cluster = Cluster::of(2);
    let Some(edge) = Edge::before(&cluster.nodes, &[]) else { return };
    let keys = [
        "a",
        "a//b",
        "a%2Fb",
        "..%2Fx",
        "a/../b",
        "%C3%A9",
        "a%20b",
        "a?b=1",
        "a%3Fb",
        "%2E%2E",
        "a.",
        "node/hello",
    ];
    for (version, first) in [("--http1.1", "HTTP/1.1 201"), ("--http2", "HTTP/2 201")] {
        for key in keys {
            let path = format!("/kv-store/keys/{key}");
            let direct = path.split('?').next().expect("a path");
            let answer =
                edge.curl(&[version, "--request", "PUT", "--data", r#"{"value":"through"}"#], direct);
            assert!(answer.starts_with(first), "{key}: {answer}");
            let seen = cluster.nodes[0].http().get(direct);
            assert_eq!(seen.text().matches("\"through\"").count(), 1, "{key}: {}", seen.text());
            assert_eq!(cluster.nodes[1].http().delete(direct).status, 200, "{key}");
        }
    }
}

#[test]
fn only_the_paths_of_clients_are_open_however_they_are_written() {
    let cluster = Cluster::of(1);
    let (Some(edge), Some(open)) =
        (Edge::plain(&cluster.nodes, &[]), Edge::plain(&cluster.nodes, &[("EDGE_OPERATORS", "open")]))
    else {
        return;
    };
    // The target, the status with operators closed, and with them open.
    let rows = [
        ("/livez", 200, 200),
        ("/readyz", 200, 200),
        ("/", 200, 200),
        ("/page/main.js", 200, 200),
        ("/page/nothing.js", 404, 404),
        ("/page/", 403, 403),
        ("/page/../node/hello", 403, 403),
        ("/kv-store/key-count", 200, 200),
        ("/kvs/keys/absent", 404, 404),
        ("/v1/kv", 200, 200),
        ("/v1/kv/a/../../../node/hello", 404, 404),
        ("http://x/kv-store/key-count", 200, 200),
        ("/metrics", 403, 200),
        ("/metrics?x=1", 403, 200),
        ("/kv-store/view-change", 403, 200),
        ("/kvs/view-change", 403, 200),
        ("/kv-store/audit", 403, 200),
        ("/kv-store/audit?x", 403, 200),
        ("/relay", 403, 403),
        ("/node/hello", 403, 403),
        ("/node/keys/a", 403, 403),
        ("/node/keys/../../kv-store/keys/a", 403, 403),
        ("/node/keys/%2e%2e/%2e%2e/kv-store/keys/a", 403, 403),
        ("/node", 403, 403),
        ("//node/hello", 403, 403),
        ("/./node/hello", 403, 403),
        ("/%6eode/hello", 403, 403),
        ("/NODE/hello", 403, 403),
        ("http://x/node/hello", 403, 403),
        ("http://x/node/keys/../../kv-store/keys/a", 403, 403),
        ("HTTPS://x:1/node/hello", 403, 403),
        ("/other", 403, 403),
        ("/kv-store/keys/\u{e9}", 403, 403),
        ("/kv-store/keys/%00", 400, 400),
        ("/../node/hello", 400, 400),
    ];
    for (target, closed, opened) in rows {
        for (edge, expected) in [(&edge, closed), (&open, opened)] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let mut stream = connect_and_send(&edge.address, request.as_bytes()).expect("a connection");
            let answer = receive_all(&mut stream, Duration::from_secs(10));
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{target}: {answer}");
            let says_outcome = answer.contains("Evenkv-Outcome: not-applied\r\n");
            assert_eq!(
                says_outcome,
                !answer.contains("Found") && !answer.contains("200 OK"),
                "{target}: {answer}"
            );
        }
    }
}

/// A large value at each node, and the bytes that ask for it.
fn with_large_value(cluster: &Cluster) -> Vec<u8> {
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(8 << 20));
    let answer = cluster.nodes[0].http().put("/kv-store/keys/large", body.replacen("vv", "", 1));
    assert_eq!(answer.status, 201, "{}", answer.text());
    b"GET /kv-store/keys/large HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()
}

/// What an attack must not change of a node.
#[derive(Debug, Clone, Copy)]
struct Held {
    bytes: u64,
    threads: usize,
    descriptors: usize,
}

impl Held {
    fn by(node: &Node) -> Self {
        Self {
            bytes: node.resident_bytes(),
            threads: node.thread_count(),
            descriptors: node.descriptor_count(),
        }
    }

    /// Is this where it was before, but for the connections that nginx keeps (one a request under way of each of its workers)?
    fn is_as(&self, before: &Self) -> bool {
        const KEPT: usize = 2 * 64 + 16;
        self.bytes < before.bytes + (48 << 20)
            && self.threads < before.threads + KEPT
            && self.descriptors < before.descriptors + 2 * KEPT
    }
}

#[test]
fn what_harms_the_listener_ends_at_the_edge() {
    let cluster = Cluster::of(2);
    // All attacks come from one address, so what one address may take is raised: the attacks reach as far as they can.
    let settings = [("EDGE_CONNECTIONS", "4000"), ("EDGE_RATE", "20000")];
    let Some(edge) = Edge::plain(&cluster.nodes, &settings) else { return };
    let large = with_large_value(&cluster);
    let address = edge.address.as_str();
    let mut client = edge.http();
    let put = |client: &mut Http| client.put("/kv-store/keys/probe", r#"{"value":1}"#);
    assert_eq!(put(&mut client).status, 201);

    let small = b"GET /kv-store/keys/probe HTTP/1.1\r\nHost: x\r\n\r\n".repeat(120);
    let attacks: [(&str, &dyn Fn()); 14] = [
        ("slow bodies", &|| attack::slow_bodies(address)),
        ("stalled uploads", &|| {
            let uploads = attack::STALLING.iter().chain(&attack::STALLING_REFUSED).cycle().take(100);
            let streams: Vec<_> = uploads.map(|upload| attack::stalled(address, upload)).collect();
            std::thread::sleep(Duration::from_secs(2));
            drop(streams);
        }),
        ("readers that stop", &|| {
            let count = 4 * (LARGE_WORKERS + CLIENT_WORKERS);
            attack::readers_that_stop(address, count, &large, Duration::from_secs(4));
        }),
        ("readers that stop between small answers", &|| {
            attack::readers_that_stop(address, 4 * CLIENT_WORKERS, &small, Duration::from_secs(3));
        }),
        ("lengths that nobody can send", &|| {
            let statuses = attack::impossible_lengths(address, 300);
            assert!(statuses.iter().all(|status| [400, 413].contains(status)), "{statuses:?}");
        }),
        ("silent clients that were refused", &|| {
            drop(attack::many(address, 400, &attack::put_head(20_000_000)));
        }),
        ("other versions of HTTP", &|| attack::other_versions(address)),
        ("a header without end", &|| {
            let (sent, status) = attack::header_without_end(address);
            eprintln!("{sent} bytes were taken");
            assert!([None, Some(400), Some(431)].contains(&status), "{status:?}");
        }),
        ("headers without end", &|| {
            let (sent, status) = attack::headers_without_end(address);
            eprintln!("{sent} bytes were taken");
            assert!([None, Some(400), Some(431)].contains(&status), "{status:?}");
        }),
        ("a target without end", &|| {
            let status = attack::target_without_end(address);
            assert!([None, Some(414)].contains(&status), "{status:?}");
        }),
        ("slow heads", &|| {
            attack::slow_heads(address, 500);
        }),
        ("a pipeline without end", &|| {
            attack::endless_pipeline(address);
        }),
        ("more connections than descriptors", &|| {
            drop(attack::many(address, 1500, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"));
        }),
        ("upgrades", &|| {
            for protocol in ["h2c", "evenkv-relay/1", "websocket"] {
                let request = format!(
                    "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
                );
                let mut stream = connect_and_send(address, request.as_bytes()).expect("a connection");
                assert_eq!(receive_status(&mut stream).expect("an answer"), 200, "{protocol}");
            }
        }),
    ];
    for (name, attack) in attacks {
        let before: Vec<Held> = cluster.nodes.iter().map(Held::by).collect();
        attack();
        let mut after = before.clone();
        wait_until(
            &format!("{name}: the nodes are as they were: {before:?}"),
            Duration::from_secs(20),
            || {
                after = cluster.nodes.iter().map(Held::by).collect();
                after.iter().zip(&before).all(|(after, before)| after.is_as(before))
            },
        );
        eprintln!("{name}: before {before:?}, after {after:?}");
        assert_eq!(put(&mut edge.http()).status, 200, "{name}");
        for node in &cluster.nodes {
            for figure in ["evenkv_abandoned_connections_total", "evenkv_stuck_connections"] {
                assert_eq!(attack::metric(node, figure), 0, "{name}: {figure}");
            }
        }
    }
}

/// Rows of docs/LISTENER.md: what the listener takes, and the edge refuses.
#[test]
fn what_the_listener_takes_otherwise_than_it_should_is_refused() {
    let cluster = Cluster::of(1);
    let Some(edge) = Edge::plain(&cluster.nodes, &[]) else { return };
    let put = "PUT /kv-store/keys/a HTTP/1.1\r\nHost: x\r\n";
    let rows = [
        (format!("{put}Content-Length: 11\r\nContent-Length: 5\r\n\r\n{{\"value\":1}}"), vec!["400"]),
        (format!("{put}Content-Length: 11\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), vec!["400"]),
        (format!("{put}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"), vec!["400", "501"]),
        (format!("{put}Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n"), vec!["400", "501"]),
        (format!("{put}X: a\r\n Content-Length: 11\r\n\r\n{{\"value\":1}}"), vec!["400"]),
        ("GET /livez HTTP/2.0\r\nHost: x\r\n\r\n".to_owned(), vec!["505", "400"]),
        ("GET /livez HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(), vec!["505", "400"]),
        ("GET /livez HTTP/1.1 more\r\nHost: x\r\n\r\n".to_owned(), vec!["400"]),
        ("GET /livez HTTP/1.1\r\n\r\n".to_owned(), vec!["400"]),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nPrefer: \u{e9}\r\n\r\n".to_owned(), vec!["400"]),
        ("GET /livez HTTP/1.0\r\n\r\n".to_owned(), vec!["200"]),
        ("GET /livez HTTP/1.0\r\nExpect: 100-continue\r\n\r\n".to_owned(), vec!["200"]),
        ("GET /livez HTTP/1.2\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), vec!["200"]),
        ("GET /livez HTTP/1.1\nHost: x\nConnection: close\n\n".to_owned(), vec!["200"]),
        ("\r\nGET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), vec!["200"]),
        // One that is not passed on does no harm.
        (
            "GET /livez HTTP/1.1\r\nHost: x\r\nCookie: \u{e9}\r\nConnection: close\r\n\r\n".to_owned(),
            vec!["200"],
        ),
    ];
    for (request, allowed) in rows {
        let mut stream = connect_and_send(&edge.address, request.as_bytes()).expect("a connection");
        let answer = receive_all(&mut stream, Duration::from_secs(3));
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(allowed.contains(&status), "{request:?}: {answer:?}");
    }
    assert_eq!(cluster.nodes[0].http().get("/kv-store/keys/a").status, 404, "nothing of it was done");
}

#[test]
fn what_a_client_says_about_a_key_reaches_the_node() {
    let cluster = Cluster::of(2);
    let Some(edge) = Edge::plain(&cluster.nodes, &[]) else { return };
    let mut client = edge.http();
    let path = "/v1/kv/page";
    let put =
        |client: &mut Http, headers: &[(&str, &str)]| client.request("PUT", path, headers, b"0123456789");
    let made = put(&mut client, &[("Content-Type", "text/x"), ("If-None-Match", "*"), ("Evenkv-TTL", "100")]);
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(put(&mut client, &[("If-None-Match", "*")]).status, 412);
    let etag = made.header("ETag").expect("a tag").to_owned();
    let part = client.request("GET", path, &[("Range", "bytes=2-4")], b"");
    assert_eq!(
        (part.status, part.text().as_str(), part.header("Content-Type")),
        (206, "234", Some("text/x"))
    );
    assert!(part.header("Evenkv-TTL").is_some(), "{part:?}");
    for (name, status) in [("one", 200), ("one", 200), ("two", 412)] {
        let answer = put(&mut client, &[("If-Match", &etag), ("Idempotency-Key", name)]);
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
    }
    let lines = client.request("GET", "/v1/kv?prefix=pa", &[("Accept", "application/x-ndjson")], b"");
    assert_eq!((lines.status, lines.header("Content-Type")), (200, Some("application/x-ndjson")));
    // What nodes say among themselves is not passed on: this would be refused by a node.
    let answer =
        client.request("GET", path, &[("Evenkv-View", "9"), ("Evenkv-From", "x"), ("Upgrade", "h2c")], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn one_address_may_take_so_much_and_a_node_that_is_away_is_made_up_for() {
    let mut cluster = Cluster::with(2, &[]);
    let Some(edge) = Edge::plain(&cluster.nodes, &[("EDGE_RATE", "5")]) else { return };
    let key = cluster.key_of(0, "kept");
    let path = format!("/kv-store/keys/{key}");
    let mut client = edge.http();
    let answers: Vec<Response> = (0..40).map(|_| client.get("/livez")).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(refused.len() >= 20, "{}", refused.len());
    for answer in refused {
        assert_eq!(
            (answer.header("Retry-After"), answer.header("Evenkv-Outcome")),
            (Some("1"), Some("not-applied"))
        );
    }
    drop(edge);

    let Some(edge) = Edge::plain(&cluster.nodes, &[]) else { return };
    cluster.nodes[1].kill();
    for _ in 0..20 {
        let answer = edge.http().put(&path, r#"{"value":1}"#);
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
    }
    cluster.nodes[0].kill();
    let answer = edge.http().put(&path, r#"{"value":1}"#);
    assert_eq!((answer.status, answer.header("Evenkv-Outcome")), (502, Some("unknown")), "{}", answer.text());
}

#[test]
fn what_cannot_be_meant_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = [
        ("EDGE_NODES", "", "EDGE_NODES names no node"),
        ("EDGE_NODES", "localhost", "EDGE_NODES=localhost: must be a list of host:port"),
        ("EDGE_NODES", "a:1;b", "EDGE_NODES=a:1;b"),
        ("EDGE_RATE", "0", "EDGE_RATE=0: must be a whole number"),
        ("EDGE_MAX_BODY", "17 MB", "EDGE_MAX_BODY=17 MB: must be a size"),
        ("EDGE_OPERATORS", "yes", "EDGE_OPERATORS=yes: must be open or closed"),
        ("EDGE_CERTIFICATE", "/absent", "EDGE_CERTIFICATE=/absent cannot be read"),
    ];
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        eprintln!("left out: nginx is not installed");
        return;
    }
    for (name, value, says) in rows {
        let mut settings = vec![("EDGE_NODES", "127.0.0.1:1".to_owned())];
        settings.push((name, value.to_owned()));
        let output = script(folder.path(), &ports::free_address(), "run", &settings);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{name}={value}: {error}");
    }
}
