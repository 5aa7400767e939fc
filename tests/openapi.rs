//! `/openapi.json`, and what it says of methods: every path of it is asked in every role. That answers have the form which it says is checked in all tests, by `support/openapi.rs`.

mod support;

use serde_json::{Map, Value};
use support::cluster::Cluster;
use support::http::{Http, Response};
use support::node::Node;
use support::replicated::replicated;

const METHODS: [&str; 8] = ["get", "head", "put", "post", "delete", "patch", "options", "trace"];

/// Headers that differ from one answer to the next, or by how much is sent at once.
const VARYING: [&str; 4] = ["date", "content-length", "transfer-encoding", "evenkv-ttl"];

fn names(answer: &Response) -> Vec<String> {
    let names = answer.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
    let mut names: Vec<String> = names.filter(|name| !VARYING.contains(&name.as_str())).collect();
    names.sort();
    names
}

/// A path with names in place of what varies in it.
fn target(template: &str) -> String {
    let query = if template == "/v1/kv/{key}" { "?consistency=stale" } else { "" };
    template.replace("{key}", "a%2Fb").replace("{id}", "1") + query
}

fn check_methods(place: &str, client: &mut Http, template: &str, item: &Map<String, Value>) {
    let target = target(template);
    let allowed: Vec<String> = METHODS
        .iter()
        .filter(|method| item.contains_key(**method))
        .map(|method| method.to_uppercase())
        .collect();
    for method in METHODS.map(str::to_uppercase) {
        let is_allowed = allowed.contains(&method);
        if is_allowed && method != "OPTIONS" && method != "HEAD" {
            continue;
        }
        let answer = client.request(&method, &target, &[], b"");
        let context = format!("{place}: {method} {target} answered {} {:?}", answer.status, answer.headers);
        if method == "HEAD" && is_allowed {
            let get = client.get(&target);
            assert_eq!(
                (answer.status, names(&answer)),
                (get.status, names(&get)),
                "{context} and GET {:?}",
                get.headers
            );
            assert!(answer.body.is_empty(), "{context}");
            continue;
        }
        assert_eq!(answer.status, if method == "OPTIONS" { 204 } else { 405 }, "{context}");
        let said = answer.header("Allow").unwrap_or_else(|| panic!("no Allow: {context}"));
        let mut said: Vec<&str> = said.split(", ").collect();
        let mut wanted: Vec<&str> = allowed.iter().map(String::as_str).collect();
        said.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(said, wanted, "{context}");
    }
}

fn check_paths(place: &str, client: &mut Http, has_short_form: bool) {
    assert!(client.put("/v1/kv/a%2Fb", b"x").status < 300);
    let document = client.get("/openapi.json").json();
    let paths = document["paths"].as_object().expect("paths");
    for (template, item) in paths {
        let is_short = template == "/kv-store/{key}" || template == "/kvs/{key}";
        if has_short_form || !is_short {
            check_methods(place, client, template, item.as_object().expect("methods"));
        }
    }
}

#[test]
fn every_path_takes_the_methods_that_are_said_at_a_single_node_and_through_a_follower() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    check_paths("single", &mut main.http(), true);
    check_paths("follower", &mut follower.http(), true);
}

#[test]
fn every_path_takes_the_methods_that_are_said_through_every_node_of_clusters() {
    for (name, cluster) in [("cluster", Cluster::of(3)), ("replicated", replicated(4, 2, &[]))] {
        for (number, node) in cluster.nodes.iter().enumerate() {
            check_paths(&format!("{name}, node {number}"), &mut node.http(), false);
        }
    }
}

#[test]
fn the_document_is_the_same_everywhere_and_asked_for_again_it_is_not_sent() {
    let cluster = Cluster::of(2);
    let follower = Node::follower(cluster.nodes[0].address(), &[]);
    let first = cluster.nodes[0].http().get("/openapi.json");
    let tag = first.header("ETag").expect("a tag").to_owned();
    for node in cluster.nodes.iter().chain([&follower]) {
        let mut client = node.http();
        let found = client.get("/openapi.json");
        assert!(found.status == 200 && found.body == first.body, "{}", node.address());
        assert_eq!(found.header("Content-Type"), Some("application/json"));
        assert_eq!(found.header("Cache-Control"), Some("no-cache"));
        let weak = format!("\"x\", W/{tag}");
        for (known, status) in [(tag.as_str(), 304), ("*", 304), (&weak, 304), ("\"x\"", 200)] {
            let answer = client.request("GET", "/openapi.json", &[("If-None-Match", known)], b"");
            assert_eq!((answer.status, answer.header("ETag")), (status, Some(tag.as_str())), "{known}");
        }
    }
}
