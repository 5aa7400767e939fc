//! Real amounts of data: made files of the shape of `UnicodeData.txt` and of a word list go through `evenkv
//! import` into a cluster and are read back one by one through nodes that do not own them.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::at_once;
use support::cluster::Cluster;
use support::http::{Http, percent_encoded};
use support::node::evenkv;

const CODE_POINTS: u32 = 34_924;
const WORDS: usize = 100_000;
const READERS: usize = 8;

/// What a line must have become.
struct Pair {
    key: String,
    value: Value,
}

/// Lines of 15 fields between semicolons; the first is a code point in hexadecimal.
fn made_code_points() -> (String, Vec<Pair>) {
    let mut text = String::new();
    let mut pairs = Vec::new();
    for number in 0..CODE_POINTS {
        // Like the real ones they begin at 0 and leave gaps.
        let key = format!("{:04X}", number * 3);
        let name = match number % 4 {
            0 => "<control>".to_owned(),
            1 => format!("LATIN \"CAPITAL\" LETTER-{number}, WITH 'STROKE'"),
            2 => format!("SIGN É {number}"),
            _ => format!("CJK COMPATIBILITY IDEOGRAPH-{key}"),
        };
        let line =
            format!("{key};{name};Lu;0;L;<compat> 0020 {key};;;;N;OLD NAME;;;{:04X};", number * 3 + 32);
        let fields: Vec<&str> = line.split(';').collect();
        pairs.push(Pair { key, value: json!(fields) });
        text.push_str(&line);
        text.push('\n');
    }
    (text, pairs)
}

/// Words, some with an apostrophe, capitals or letters beyond ASCII, each once.
fn made_words() -> (String, Vec<Pair>) {
    const SYLLABLES: [&str; 20] = [
        "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "qui", "ro", "su", "ta",
        "vé", "wi", "xo", "zu",
    ];
    let mut text = String::new();
    let mut pairs = Vec::new();
    for number in 0..WORDS {
        let mut word = String::new();
        let mut rest = number / 2;
        for _ in 0..4 {
            word.push_str(SYLLABLES[rest % SYLLABLES.len()]);
            rest /= SYLLABLES.len();
        }
        if number % 2 == 1 {
            word.push_str("'s");
        }
        text.push_str(&word);
        text.push('\n');
        pairs.push(Pair { key: word, value: json!(number + 1) });
    }
    (text, pairs)
}

/// Runs `evenkv import` to its end and returns what it printed.
fn import(file: &Path, arguments: &[&str], expected: i32) -> String {
    let output = evenkv().arg("import").arg(file).args(arguments).output().expect("the built binary runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(expected), "import {arguments:?} said: {said}");
    said
}

/// Reads every pair through nodes that do not own it; each reader has a connection to every node.
fn check_read_back(cluster: &Cluster, pairs: &[Pair]) {
    let passed_on = at_once(READERS, |reader| {
        let mut clients = cluster.clients();
        let mut passed_on = 0;
        for (number, pair) in pairs.iter().enumerate().filter(|(number, _)| number % READERS == reader) {
            let first = number % clients.len();
            let target = format!("/kv-store/keys/{}", percent_encoded(pair.key.as_bytes()));
            let mut got = clients[first].get(&target);
            if got.status == 200 && got.owner().is_none() {
                let other = (first + 1) % clients.len();
                got = clients[other].get(&target);
                assert_eq!(got.owner().as_deref(), Some(cluster.nodes[first].address()), "{}", pair.key);
            }
            assert_eq!(got.status, 200, "{}: {}", pair.key, got.text());
            assert_eq!(got.json()["value"], pair.value, "{}", pair.key);
            passed_on += usize::from(got.owner().is_some());
        }
        passed_on
    });
    assert_eq!(
        passed_on.iter().sum::<usize>(),
        pairs.len(),
        "all were read through a node that owns them not"
    );
}

fn counts(clients: &mut [Http]) -> Vec<usize> {
    let count = |client: &mut Http| client.get("/kv-store/key-count").json()["key-count"].as_u64();
    clients
        .iter_mut()
        .map(|client| usize::try_from(count(client).expect("a count")).expect("a size"))
        .collect()
}

#[test]
fn files_are_imported_and_read_back_through_nodes_that_do_not_own_the_keys() {
    let cluster = Cluster::of(3);
    let folder = tempfile::tempdir().expect("a folder for the data");
    let mut total = 0;
    let sources = [
        ("UnicodeData.txt", made_code_points(), vec!["--delimiter", ";", "--key", "1", "--no-quoting"]),
        ("american-english", made_words(), vec!["--format", "words"]),
    ];
    for (asked, (name, (text, pairs), mut arguments)) in sources.into_iter().enumerate() {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("the made data is written");
        arguments.extend(["--node", cluster.nodes[asked].address()]);
        let said = import(&file, &arguments, 0);
        assert!(said.contains(&pairs.len().to_string()), "the report does not count the lines: {said}");
        total += pairs.len();
        let counts = counts(&mut cluster.clients());
        assert_eq!(counts.iter().sum::<usize>(), total, "the counts of the shards add up: {counts:?}");
        // Six standard deviations of so many throws into three equal parts are under 1,100.
        assert!(counts.iter().all(|count| count.abs_diff(total / 3) < 1100), "not near even: {counts:?}");
        check_read_back(&cluster, &pairs);
    }
}

#[test]
fn a_line_that_fails_is_reported_and_the_others_are_stored() {
    let cluster = Cluster::of(2);
    let folder = tempfile::tempdir().expect("a folder for the data");
    let file = folder.path().join("pairs.tsv");
    let long = "k".repeat(1025);
    fs::write(&file, format!("one\t1\nno tab here\n{long}\t3\nfour/../4 %\t\"4\"\n")).expect("written");
    let said = import(&file, &["--node", cluster.nodes[1].address()], 1);
    for part in ["line 2", "line 3", "Key is too long"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(counts(&mut cluster.clients()).iter().sum::<usize>(), 2);
    let mut client = cluster.nodes[0].http();
    assert_eq!(client.get("/kvs/keys/one").json()["value"], "1");
    assert_eq!(client.get("/kvs/keys/four%2F..%2F4%20%25").json()["value"], "\"4\"");
}
