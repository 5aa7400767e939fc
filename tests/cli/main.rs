//! The subcommands as a person and a script see them: what they print, and that none of them is silent for long.

#[path = "../support/mod.rs"]
mod support;

mod manual;
mod watching;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use support::change::allowed;
use support::cluster::Cluster;
use support::node::evenkv;
use support::{START_DEADLINE, at_once, timed, wait_until};

/// What an import into a node of this address is told, and every other subcommand, without `--node`.
fn lines(import: &Path) -> Vec<Vec<String>> {
    let import = import.to_str().expect("a path that is text");
    let lines = [
        "get k",
        "put k 1",
        "delete k",
        "list",
        "export -",
        "watch",
        "count",
        "view",
        "status",
        "audit",
        "view-change a:1",
        "view-change a:1 --dry-run",
        "view-change --status",
        "view-change --cancel",
        "recover --yes",
        "health",
    ];
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let import = ["import", import, "--format", "words"].map(str::to_owned).to_vec();
    lines.into_iter().map(words).chain([import]).collect()
}

fn run(node: &str, words: &[String]) -> Output {
    evenkv().args(words).args(["--node", node]).output().expect("the built binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of these lines in a folder that is there as long as this value.
fn file(lines: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the data");
    let file = folder.path().join("data.words");
    fs::write(&file, lines).expect("the data is written");
    (folder, file)
}

#[test]
fn every_subcommand_gives_up_on_a_node_that_hangs_and_says_so() {
    // Connections are taken by the system, and nobody answers.
    let hung = TcpListener::bind("127.0.0.1:0").expect("a port");
    let node = hung.local_addr().expect("an address").to_string();
    let (_folder, file) = file("a\nb\n");
    let lines = lines(&file);
    at_once(lines.len(), |number| {
        let words = [&lines[number][..], &["--timeout".to_owned(), "2".to_owned()]].concat();
        let (output, took) = timed(|| run(&node, &words));
        let said = text(&output.stderr);
        let context = format!("{words:?} took {took:?} and said: {said}");
        let code = if words[0] == "health" { 1 } else { 3 };
        assert_eq!(output.status.code(), Some(code), "{context}");
        assert!(output.stdout.is_empty(), "{context}");
        assert!(said.contains(&format!("waiting for the node at {node}, 2 s at most")), "{context}");
        assert!(said.contains(&format!("the node at {node} did not answer within 2 s")), "{context}");
        assert!(said.contains("--timeout SECONDS waits longer"), "{context}");
        let is_in_doubt = matches!(words[0].as_str(), "put" | "delete")
            || words.concat() == "view-changea:1--timeout2"
            || words.concat().contains("--cancel");
        assert_eq!(said.contains("whether it was done is not known"), is_in_doubt, "{context}");
        assert!(took < allowed(Duration::from_secs(5)), "{context}");
    });
}

/// Runs a subcommand with `--json` and gives its exit code and the one document that it has printed.
fn answered(node: &str, line: &str) -> (Option<i32>, Value) {
    let words: Vec<String> = line.split(' ').chain(["--json"]).map(str::to_owned).collect();
    let output = run(node, &words);
    let (printed, said) = (text(&output.stdout), text(&output.stderr));
    let document = serde_json::from_str(&printed)
        .unwrap_or_else(|error| panic!("{line}: no JSON ({error}) in {printed:?}, said {said}"));
    (output.status.code(), document)
}

/// What a subcommand has printed, where it ended with this code.
fn printed(node: &str, words: &[&str], code: i32) -> Vec<u8> {
    let owned: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let output = run(node, &owned);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
    output.stdout
}

#[test]
fn values_of_any_bytes_and_conditions_and_times_to_live() {
    let cluster = Cluster::of(2);
    let (put_to, get_from) = (cluster.nodes[0].address(), cluster.nodes[1].address());
    let folder = tempfile::tempdir().expect("a folder for the data");
    let path = folder.path().join("bytes");
    let bytes: Vec<u8> = (0..=255).collect();
    fs::write(&path, &bytes).expect("the data is written");
    let path = path.to_str().expect("a path that is text");
    for number in 0..2 {
        let key = &cluster.key_of(number, "cli");
        let words = ["put", key, "--file", path, "--type", "image/x", "--if-none-match", "*"];
        assert_eq!(printed(put_to, &words, 0), b"added\n");
        assert_eq!(printed(put_to, &words, 1), b"");
        assert_eq!(printed(get_from, &["get", key, "--raw"], 0), bytes);
        let tag = text(&printed(get_from, &["get", key, "--etag"], 0));
        let tag = tag.trim_end().trim_matches('"');
        let words = ["put", key, "say \"hi\"", "--if-match", tag, "--ttl", "100.5"];
        assert_eq!(printed(put_to, &words, 0), b"updated\n");
        assert_eq!(printed(put_to, &words, 1), b"");
        assert_eq!(printed(get_from, &["get", key, "--raw"], 0), b"say \"hi\"\n");
        assert_eq!(printed(put_to, &["put", key, "5", "--ttl", "0.2"], 0), b"updated\n");
        wait_until("it has gone", START_DEADLINE, || {
            run(get_from, &["get", key].map(str::to_owned)).status.code() == Some(1)
        });
        assert_eq!(printed(get_from, &["get", key, "--raw"], 1), b"");
        assert_eq!(printed(get_from, &["put", key, "{", "--ttl", "1e3"], 2), b"");
        let wrong = ["put", key, "--file", path, "--type", "application/json"];
        assert_eq!(printed(put_to, &wrong, 3), b"", "it is no JSON");
    }
}

#[test]
fn every_subcommand_answers_in_json() {
    let cluster = Cluster::of(2);
    let (node, view) = (cluster.nodes[0].address(), &cluster.view);
    let (_folder, file) = file(&format!("a\n{}\nb\n", "k".repeat(1025)));
    let absent = json!({"doesExist": false, "error": "Key does not exist", "message": "Error in GET"});
    let key = cluster.key_of(0, "json");
    let change = format!("view-change {view}");
    let rows: Vec<(String, i32, &str, Value)> = vec![
        (format!("get {key}"), 1, "", absent),
        (format!("put {key} 7"), 0, "/message", json!("Added successfully")),
        (format!("put {key} 7"), 0, "/replaced", json!(true)),
        (format!("get {key}"), 0, "/value", json!(7)),
        (format!("put {} 7", "k".repeat(1025)), 3, "/error", json!("Key is too long")),
        (format!("delete {key}"), 0, "/doesExist", json!(true)),
        (format!("delete {key}"), 1, "/doesExist", json!(false)),
        ("count".to_owned(), 0, "/key-count", json!(0)),
        ("count".to_owned(), 0, "/shards/1/shard-id", json!("2")),
        ("view".to_owned(), 0, "/shards/1/replicas/0", json!(cluster.nodes[1].address())),
        ("audit".to_owned(), 0, "/ok", json!(true)),
        ("status".to_owned(), 0, "/nodes/1/address", json!(cluster.nodes[1].address())),
        (format!("{change} --dry-run"), 0, "/message", json!("View change planned")),
        (format!("{change},127.0.0.1:1"), 1, "/phase", json!("failed")),
        (change, 0, "/receipt/message", json!("View change successful")),
        ("view-change --status".to_owned(), 0, "/phase", json!("finished")),
        ("view-change --cancel".to_owned(), 3, "/error", json!("No view change is running")),
        ("recover --yes".to_owned(), 3, "/message", json!("Error in PUT")),
        ("health".to_owned(), 0, "/ready", json!(true)),
        ("health --live".to_owned(), 0, "/alive", json!(true)),
        (format!("import {} --format words --verify", file.display()), 1, "/imported", json!(2)),
        (format!("import {} --format words --verify", file.display()), 1, "/first-failed/0/line", json!(2)),
        (format!("import {} --format words --verify", file.display()), 1, "/read-back/0/equal", json!(2)),
    ];
    for (line, code, pointer, expected) in rows {
        let (got, document) = answered(node, &line);
        assert_eq!(got, Some(code), "{line}: {document}");
        assert_eq!(document.pointer(pointer), Some(&expected), "{line}: {pointer} of {document}");
    }
}
