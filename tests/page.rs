//! The page for people as a browser gets it: in every role, by its bytes and headers. What it does in a browser is in `tests/browser`.

mod support;

use std::fs;
use std::time::Duration;

use support::change::{passive, wait_knows};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::{Node, evenkv};
use support::replicated::replicated;
use support::wait_until;

/// All files together, as they are sent.
const MOST_BYTES: usize = 50_000;
/// The CPU time that a load takes of the node.
const MOST_TIME: Duration = Duration::from_millis(5);

fn get(client: &mut Http, target: &str) -> Response {
    let answer = client.get(target);
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    answer
}

/// What a text names between these two, as often as it does.
fn named<'a>(text: &'a str, before: &str, after: char) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
}

/// Loads the page as a browser does: `/`, what that names, and what those name. The targets with their answers.
fn load(client: &mut Http) -> Vec<(String, Response)> {
    let mut loaded: Vec<(String, Response)> = Vec::new();
    let mut wanted = vec!["/".to_owned()];
    while let Some(target) = wanted.pop() {
        let answer = get(client, &target);
        let text = answer.text();
        let of_page = named(&text, "=\"/page/", '"');
        let imported = named(&text, "from './", '\'');
        wanted.extend(of_page.into_iter().chain(imported).map(|name| format!("/page/{name}")));
        loaded.push((target, answer));
        wanted.retain(|target| loaded.iter().all(|(known, _)| known != target));
        wanted.dedup();
    }
    loaded
}

fn check_headers(place: &str, target: &str, answer: &Response) {
    let kind = match target.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/html; charset=utf-8",
    };
    for (name, value) in [
        ("Content-Type", kind),
        ("Cache-Control", "no-cache"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{target} at {place}");
    }
    let policy = answer.header("Content-Security-Policy").expect("a policy");
    let rules: Vec<&str> = policy.split(';').map(str::trim).collect();
    for rule in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ] {
        assert!(rules.contains(&rule), "{rule} at {place}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
}

fn check_page(place: &str, client: &mut Http) -> Vec<(String, Response)> {
    let loaded = load(client);
    assert!(loaded.len() >= 5, "{place}: {}", loaded.len());
    let bytes: usize = loaded.iter().map(|(_, answer)| answer.body.len()).sum();
    assert!(bytes < MOST_BYTES, "{bytes} bytes");
    for (target, answer) in &loaded {
        check_headers(place, target, answer);
        let tag = answer.header("ETag").expect("a tag");
        for (known, status) in [(tag, 304), ("*", 304), ("\"x\"", 200)] {
            let again = client.request("GET", target, &[("If-None-Match", known)], b"");
            assert_eq!((again.status, again.header("ETag")), (status, Some(tag)), "{known} for {target}");
        }
        let head = client.request("HEAD", target, &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0), "{target} at {place}");
        assert_eq!(head.header("Content-Length"), answer.header("Content-Length"), "{target}");
        let options = client.request("OPTIONS", target, &[], b"");
        assert_eq!((options.status, options.header("Allow")), (204, Some("GET, HEAD, OPTIONS")), "{target}");
        for method in ["PUT", "POST", "DELETE", "PATCH"] {
            assert_eq!(client.request(method, target, &[], b"{}").status, 405, "{method} {target}");
        }
    }
    for target in
        ["/page", "/page/", "/page/x.js", "/page/main.js/", "/page/../page/main.js", "/index.html", "//"]
    {
        // Where tokens are asked for, it is told to nobody without one what there is not.
        let status = client.get(target).status;
        assert!(matches!(status, 404 | 401), "{target} at {place}: {status}");
    }
    loaded
}

#[test]
fn every_node_in_every_role_has_the_same_page() {
    let (single, cluster, replicas) = (Node::single(&[]), Cluster::of(2), replicated(3, 3, &[]));
    let lonely = passive(&["127.0.0.1:1".to_owned()], &[]);
    let spare = passive(&cluster.addresses(), &[]);
    wait_knows(&spare, 2);
    let mut main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let orphan = Node::follower(main.address(), &[]);
    main.kill();
    let mut all = vec![("single", &single), ("passive", &lonely), ("passive with a cluster", &spare)];
    all.extend(cluster.nodes.iter().map(|node| ("member", node)));
    all.extend(replicas.nodes.iter().map(|node| ("replica", node)));
    all.extend([("follower", &follower), ("follower without its main", &orphan)]);
    let first = check_page("single", &mut single.http());
    for (place, node) in all {
        let found = check_page(place, &mut node.http());
        for ((target, wanted), (known, answer)) in first.iter().zip(&found) {
            assert_eq!((target, &wanted.body), (known, &answer.body), "{target} at {place}");
        }
    }
}

#[test]
fn what_the_page_asks_is_answered_by_a_follower_too() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let mut client = follower.http();
    let line = br#"{"op":"put","key-base64":"Lg==","value-base64":"MQ==","type":"application/json","if-none-match":"*"}"#;
    assert_eq!(client.request("POST", "/v1/batch", &[], line).status, 200);
    for target in ["/v1/status", "/v1/kv?prefix=&limit=50", "/v1/kv?prefix=.&limit=1&values=true&watch=false"]
    {
        get(&mut client, target);
    }
    get(&mut client, "/kv-store/view-change");
}

#[test]
fn keys_that_are_called_as_the_page_are_keys() {
    let single = Node::single(&[]);
    let mut client = single.http();
    for key in ["page", "page/main.js", "", "/"] {
        for prefix in ["/kv-store/keys/", "/kv-store/", "/v1/kv/"] {
            if key.is_empty() && prefix != "/v1/kv/" || key == "/" {
                continue;
            }
            let target = format!("{prefix}{key}");
            let answer = client.put(&target, r#"{"value":1}"#);
            assert_eq!(answer.status < 300, !key.is_empty(), "{target}: {}", answer.text());
        }
    }
}

#[test]
fn the_page_takes_no_token_and_has_none_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = evenkv().args(["token", "new", "admin"]).output().expect("the built binary starts");
    let text = String::from_utf8(output.stdout).expect("text");
    let (token, line) = text.trim_end().split_once('\n').expect("two lines");
    let path = folder.path().join("tokens");
    fs::write(&path, line).expect("the file can be written");
    let path = path.display().to_string();
    let secret = "shared-by-the-nodes";
    let settings = [("AUTH_TOKENS_FILE", path.as_str()), ("CLUSTER_SECRET", secret)];
    let cluster = Cluster::with(2, &settings);
    let follower = Node::follower(cluster.nodes[0].address(), &settings[..1]);
    for node in cluster.nodes.iter().chain([&follower]) {
        let mut client = node.http();
        let loaded = check_page("a node with tokens", &mut client);
        let hash = line.split(' ').next().expect("a hash");
        for (target, answer) in &loaded {
            let text = answer.text();
            for (what, of) in
                [(token, "token"), (hash, "hash"), (secret, "secret"), (node.address(), "address")]
            {
                assert!(!text.contains(what), "{target} has the {of}");
            }
        }
        for target in ["/v1/status", "/v1/kv", "/v1/watch", "/kv-store/view-change", "/v1/kv/page"] {
            assert_eq!(client.get(target).status, 401, "{target}");
        }
    }
}

#[test]
fn values_have_no_part_in_the_origin_of_the_page() {
    let main = Node::single(&[]);
    let cluster = Cluster::of(2);
    let follower = Node::follower(main.address(), &[]);
    let html = ("Content-Type", "text/html");
    for node in [&main, &follower, &cluster.nodes[0], &cluster.nodes[1]] {
        let mut client = node.http();
        let put = client.request("PUT", "/v1/kv/x.html", &[html], b"<script>1</script>");
        assert!(put.status < 300, "{}", put.text());
        for (range, status) in [(&[][..], 200), (&[("Range", "bytes=0-3")][..], 206)] {
            let answer = client.request("GET", "/v1/kv/x.html", range, b"");
            assert_eq!(answer.status, status, "{}", answer.text());
            assert_eq!(answer.header("Content-Security-Policy"), Some("sandbox"), "{}", node.address());
        }
    }
}

#[test]
fn a_load_costs_a_node_little() {
    const LOADS: u32 = 50;
    let single = Node::single(&[]);
    let mut client = single.http();
    load(&mut client);
    let before = single.cpu_time();
    for _ in 0..LOADS {
        load(&mut client);
    }
    let each = single.cpu_time().saturating_sub(before) / LOADS;
    println!("a load of the page takes {each:?} of CPU time");
    assert!(each < MOST_TIME, "{each:?}");
    // With what a page asks first.
    let mut bytes = 0;
    wait_until("the node answers", Duration::from_secs(20), || {
        bytes = client.get("/v1/status").body.len() + client.get("/v1/kv?prefix=&limit=50").body.len();
        bytes > 0
    });
}
