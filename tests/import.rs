//! Real amounts of data: made files of the shape of `UnicodeData.txt` and of a word list go through `evenkv
//! import` into a cluster and are read back one by one through nodes that do not own them.
#![allow(clippy::disallowed_methods, reason = "times to live are compared with the clock")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use support::cluster::Cluster;
use support::http::{Http, percent_encoded};
use support::node::{Node, evenkv};
use support::replicated::{known_shards, named, replicated, try_view, wait_leader};
use support::{START_DEADLINE, at_once, wait_until};

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

/// An import that runs, with what it prints in pipes.
fn begun(file: &str, input: Stdio, node: &str) -> Child {
    let mut command = evenkv();
    command.args(["import", file, "--format", "words", "--connections", "4", "--node", node]);
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built binary starts")
}

/// Ctrl-C, and what the import has printed until it has ended.
fn interrupted(mut running: Child) -> Output {
    let sent = Command::new("sh").args(["-c", "kill -s INT \"$0\"", &running.id().to_string()]).status();
    assert!(sent.expect("a shell runs").success(), "the import runs still");
    wait_until("the import has ended", START_DEADLINE, || {
        running.try_wait().expect("a child of ours").is_some()
    });
    running.wait_with_output().expect("what it has printed")
}

/// The line from which an interrupted import says that it can be gone on with.
fn next_line(ended: &Output) -> usize {
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert!(said.contains("stopped before the end: it was interrupted"), "{said}");
    let (_, rest) =
        said.split_once("--from-line ").unwrap_or_else(|| panic!("how to go on is not in: {said}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no line in: {said}"))
}

#[test]
fn an_import_that_is_interrupted_says_how_far_it_came_and_goes_on_there() {
    let cluster = Cluster::of(2);
    let mut clients = cluster.clients();
    let folder = tempfile::tempdir().expect("a folder for the data");
    let file = folder.path().join("words");
    let words: Vec<String> = (1..=400_000).map(|number| format!("word {number}")).collect();
    fs::write(&file, words.join("\n")).expect("the made data is written");
    let path = file.to_str().expect("a path that is text");
    let running = begun(path, Stdio::null(), cluster.nodes[0].address());
    wait_until("some lines are stored", START_DEADLINE, || counts(&mut clients).iter().sum::<usize>() > 500);
    let ended = interrupted(running);
    let next = next_line(&ended);
    let stored = counts(&mut clients).iter().sum::<usize>();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(said.starts_with(&format!("imported {stored}, failed 0")), "{stored} are stored: {said}");
    assert!(
        next > 1 && next <= stored + 1 && stored < words.len(),
        "line {next} of {stored} that are stored"
    );
    for word in words[..next - 1].iter().step_by(7) {
        let target = format!("/kv-store/keys/{}", percent_encoded(word.as_bytes()));
        assert_eq!(clients[1].get(&target).status, 200, "{word} is before line {next}");
    }
    let from = next.to_string();
    let said = import(&file, &["--from-line", &from, "--node", cluster.nodes[1].address()], 0);
    assert!(said.contains(&format!("imported {}, failed 0", words.len() + 1 - next)), "{said}");
    assert_eq!(counts(&mut clients).iter().sum::<usize>(), words.len());
    let last = clients[0].get("/kv-store/keys/word%20400000").json();
    assert_eq!(last["value"], 400_000, "lines keep their numbers");
}

#[test]
fn an_import_through_all_nodes_goes_on_while_a_leader_is_killed() {
    let mut cluster = replicated(3, 3, &[]);
    let addresses = cluster.addresses();
    let folder = tempfile::tempdir().expect("a folder for the data");
    let file = folder.path().join("words");
    let words: Vec<String> = (1..=200_000).map(|number| format!("word {number}")).collect();
    fs::write(&file, words.join("\n")).expect("the made data is written");
    let mut command = evenkv();
    command.arg("import").arg(&file).args(["--through", &addresses.join(","), "--retry-seconds", "60"]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let view = try_view(&addresses[0]).expect("a view");
    let id = known_shards(&view)[0].id.clone();
    let leader = wait_leader(&addresses[0], &id, |_| true);
    let rest: Vec<String> = addresses.iter().filter(|address| **address != leader).cloned().collect();
    let stored = |address: &str| {
        Http::new(address).get("/kv-store/key-count").json()["key-count"].as_u64().unwrap_or(0)
    };
    wait_until("some lines are stored", START_DEADLINE, || stored(&rest[0]) > 2000);
    named(&mut cluster.nodes, &leader).kill();
    wait_until("the import has ended", START_DEADLINE, || {
        running.try_wait().expect("a child of ours").is_some()
    });
    let ended = running.wait_with_output().expect("what it has printed");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(said.starts_with("imported 200000, failed 0"), "{said}");
    assert_eq!(stored(&rest[1]), 200_000);
    let mut client = Http::new(&rest[0]);
    for number in (1..=200_000_u64).step_by(997) {
        let found = client.get(&format!("/kv-store/keys/word%20{number}"));
        assert_eq!(found.json()["value"], number, "{}", found.text());
    }
}

#[test]
fn an_export_is_taken_back_and_a_torn_one_is_said_to_be_torn() {
    let cluster = Cluster::of(2);
    let folder = tempfile::tempdir().expect("a folder for the data");
    let file = folder.path().join("export.ndjson");
    let lines = [
        r#"{"key":"a","value":{"x":[1]},"type":"application/json","etag":"\"7\""}"#,
        r#"{"key-base64":"/w==","value-base64":"AAH/","type":"image/x","etag":"\"8\"","ttl":300.5}"#,
        r#"{"end":true,"keys":2,"checksum":"0"}"#,
    ];
    fs::write(&file, lines.join("\n")).expect("written");
    let through = cluster.addresses().join(",");
    let node = cluster.nodes[1].address();
    import(&file, &["--through", &through, "--verify-through", node], 0);
    let mut client = cluster.nodes[0].http();
    assert_eq!(client.get("/kvs/keys/a").json()["value"], json!({"x": [1]}));
    let typed = client.get("/v1/kv/%FF");
    assert_eq!((typed.body.as_slice(), typed.header("Content-Type")), (&[0, 1, 255][..], Some("image/x")));
    assert!(typed.header("Evenkv-TTL").is_some_and(|left| left.starts_with("300") || left.starts_with("29")));
    for (torn, said) in
        [(lines[..2].join("\n"), "is not there"), ([lines[0], lines[2]].join("\n"), "has 2 pairs")]
    {
        fs::write(&file, torn).expect("written");
        let printed = import(&file, &["--through", &through], 3);
        assert!(printed.contains("the file is torn") && printed.contains(said), "{printed}");
    }
}

#[test]
fn an_import_that_waits_for_its_input_is_interrupted_all_the_same() {
    let cluster = Cluster::of(1);
    let mut clients = cluster.clients();
    let mut running = begun("-", Stdio::piped(), cluster.nodes[0].address());
    let mut input = running.stdin.take().expect("a pipe");
    for number in 1..=100 {
        writeln!(input, "word {number}").expect("the import reads");
    }
    wait_until("all lines are stored", START_DEADLINE, || counts(&mut clients) == [100]);
    let ended = interrupted(running);
    assert_eq!(next_line(&ended), 101);
    assert!(String::from_utf8_lossy(&ended.stdout).starts_with("imported 100, failed 0"), "{ended:?}");
}

#[test]
fn the_file_that_is_imported_is_not_emptied_for_its_failures() {
    let cluster = Cluster::of(1);
    let folder = tempfile::tempdir().expect("a folder for the data");
    let name = |name: &str| folder.path().join(name);
    let text = "one\ntwo\n";
    fs::write(name("data.words"), text).expect("written");
    fs::hard_link(name("data.words"), name("hard")).expect("a second name");
    std::os::unix::fs::symlink("data.words", name("soft")).expect("a third name");
    for (input, failures) in
        [("data.words", "data.words"), ("./data.words", "hard"), ("soft", "data.words"), ("-", "soft")]
    {
        let mut command = evenkv();
        command.current_dir(folder.path()).stdin(File::open(name("data.words")).expect("it is there"));
        command.args(["import", input, "--failures", failures, "--format", "words"]);
        let output =
            command.args(["--node", cluster.nodes[0].address()]).output().expect("the built binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{input} and {failures}: {said}");
        assert!(said.contains("is the file that is imported"), "{input} and {failures}: {said}");
        assert_eq!(
            fs::read_to_string(name("data.words")).expect("it is there"),
            text,
            "{input} and {failures}"
        );
    }
    // What failed before an import was stopped is kept when it goes on.
    fs::write(name("bad.tsv"), "no tab\nnor here\nkey\tvalue\n").expect("written");
    let failed = name("failed").to_str().expect("a path that is text").to_owned();
    let options = ["--failures", &failed, "--node", cluster.nodes[0].address()];
    import(&name("bad.tsv"), &options, 1);
    import(&name("bad.tsv"), &[&options[..], &["--from-line", "2"]].concat(), 1);
    let listed = fs::read_to_string(&failed).expect("it is there");
    let lines: Vec<&str> = listed.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(lines, ["1", "2", "2"], "{listed}");
}

/// A pair as a client put it, and how long it had to live, if not for ever.
struct Kept {
    key: Vec<u8>,
    body: Vec<u8>,
    content_type: &'static str,
    ttl: Option<f64>,
}

/// So many pairs go from cluster to cluster beside those that are odd.
const PLAIN: usize = 500;

/// Keys and values of every kind that there is.
fn kept_pairs() -> Vec<Kept> {
    const KEYS: [&[u8]; 14] = [
        b" ",
        b"/",
        b"..",
        b"a/../b",
        b"%",
        b"%41",
        b"+ &=?#",
        b"\0",
        b"\n",
        b"\r\n\t\"\\",
        b"\xff\xfe",
        b"end",
        "\u{e4}\u{1f600}".as_bytes(),
        b"\x7f\x80",
    ];
    const JSON: [&str; 20] = [
        "null",
        "true",
        "0",
        "-0",
        "1.0",
        "1e400",
        "12345678901234567890123",
        " 1",
        "1 ",
        "\t[1,\r\n 2]\n",
        "\"\"",
        "\"\\u0000\\ud83d\\ude00\\/\"",
        "\"\u{e4}\u{2028}\"",
        "[ ]",
        "{\"a\" : 1,\"a\":2}",
        "{\"end\":true,\"keys\":0,\"checksum\":\"0\"}",
        "{\"value\":1}",
        "[[[[[[[[]]]]]]]]",
        "\"\\n\"",
        "\"\\ud800\"",
    ];
    let (json, bytes) = ("application/json", "application/octet-stream");
    let all_bytes: Vec<u8> = (0..=255).collect();
    let kept = |key: Vec<u8>, body: Vec<u8>, content_type| Kept { key, body, content_type, ttl: None };
    let mut pairs: Vec<Kept> = KEYS.iter().map(|key| kept(key.to_vec(), key.to_vec(), bytes)).collect();
    for (number, value) in JSON.iter().enumerate() {
        pairs.push(kept(format!("json-{number}").into_bytes(), value.as_bytes().to_vec(), json));
        // The same bytes are another value as text.
        pairs.push(kept(format!("text-{number}").into_bytes(), value.as_bytes().to_vec(), "text/plain"));
    }
    for (number, content_type) in
        [bytes, "", "image/png", "text/plain; charset=\"utf-8\"", "application/ld+json"]
            .into_iter()
            .enumerate()
    {
        pairs.push(kept(format!("type-{number}").into_bytes(), all_bytes.clone(), content_type));
        pairs.push(kept(format!("empty-{number}").into_bytes(), Vec::new(), content_type));
    }
    pairs.push(kept(b"deep".to_vec(), ["[".repeat(100), "]".repeat(100)].concat().into_bytes(), json));
    pairs.push(kept(vec![b'k'; 1024], all_bytes.repeat(4000), bytes));
    pairs.push(kept(vec![0xf0; 1024], format!("\"{}\"", "x".repeat(900_000)).into_bytes(), json));
    for number in 0..PLAIN {
        let body = all_bytes.iter().cycle().skip(number % 256).take(number % 700).copied().collect();
        pairs.push(kept(format!("plain-{number}").into_bytes(), body, bytes));
    }
    for (number, pair) in pairs.iter_mut().enumerate().filter(|(number, _)| number % 5 == 0) {
        pair.ttl = [1000.5, 86_400.0, 315_360_000.0].get(number % 3).copied();
    }
    pairs
}

fn kept_target(pair: &Kept) -> String {
    format!("/v1/kv/{}", percent_encoded(&pair.key))
}

/// What all nodes of a place say that the pairs come to.
fn content_checksum(place: &str, clients: &mut [Http]) -> String {
    let mut sums = clients.iter_mut().map(|client| {
        let audit = client.get("/kv-store/audit").json();
        assert_eq!(audit["ok"], true, "{place}: {audit}");
        audit["content-checksum"].as_str().expect("a checksum").to_owned()
    });
    let first = sums.next().expect("a node");
    assert!(sums.all(|sum| sum == first), "{place}: the nodes agree");
    first
}

/// Every pair is there as it was put, with what is left of its time to live, and no other.
fn check_kept(place: &str, clients: &mut [Http], pairs: &[Kept], begun: Instant) {
    let count = clients.len();
    for (number, pair) in pairs.iter().enumerate() {
        let answer = clients[number % count].get(&kept_target(pair));
        let context = format!("{place}: {}", String::from_utf8_lossy(&pair.key));
        assert_eq!(answer.status, 200, "{context}: {}", answer.text());
        assert!(answer.body == pair.body, "{context}: {:.200}", answer.text());
        let content_type =
            if pair.content_type.is_empty() { "application/octet-stream" } else { pair.content_type };
        assert_eq!(answer.header("Content-Type"), Some(content_type), "{context}");
        let left = answer.header("Evenkv-TTL").map(|left| left.parse::<f64>().expect("seconds"));
        // What lies in a file does not get older meanwhile.
        let is_right = match (left, pair.ttl) {
            (None, None) => true,
            (Some(left), Some(ttl)) => left <= ttl && left >= ttl - begun.elapsed().as_secs_f64() - 1.0,
            _ => false,
        };
        assert!(is_right, "{context}: {left:?} are left of {:?} after {:?}", pair.ttl, begun.elapsed());
    }
    let counted = clients[0].get("/v1/kv?count=true");
    assert_eq!(counted.text(), format!("{{\"count\":{}}}", pairs.len()), "{place}");
}

#[test]
fn all_pairs_go_by_a_file_to_other_clusters_with_other_factors_and_are_the_same() {
    let (pairs, begun) = (kept_pairs(), Instant::now());
    let folder = tempfile::tempdir().expect("a folder for the data");
    let file = |stage: usize| folder.path().join(format!("{stage}.ndjson"));
    let mut checksum = None;
    let stages: [(&str, usize, usize); 4] = [
        ("three shards", 3, 1),
        ("five replicas", 5, 5),
        ("two shards of three", 6, 3),
        ("a single node", 1, 1),
    ];
    for (stage, (place, nodes, factor)) in stages.into_iter().enumerate() {
        // Those before have ended, and nothing is left of them but the file.
        let cluster = if nodes == 1 {
            let node = Node::single(&[]);
            Cluster { view: node.address().to_owned(), nodes: vec![node] }
        } else {
            replicated(nodes, factor, &[])
        };
        let mut clients = cluster.clients();
        if stage == 0 {
            for (number, pair) in pairs.iter().enumerate() {
                let target = pair.ttl.map_or_else(String::new, |ttl| format!("?ttl={ttl}"));
                let target = kept_target(pair) + &target;
                let headers = [("Content-Type", pair.content_type)];
                let headers = if pair.content_type.is_empty() { &[][..] } else { &headers[..] };
                let answer = clients[number % nodes].request("PUT", &target, headers, &pair.body);
                assert_eq!(answer.status, 201, "{target}: {}", answer.text());
            }
        } else {
            let through = cluster.addresses().join(",");
            import(&file(stage - 1), &["--through", &through], 0);
        }
        check_kept(place, &mut clients, &pairs, begun);
        let own = content_checksum(place, &mut clients);
        assert_eq!(*checksum.get_or_insert_with(|| own.clone()), own, "{place}");
        let node = cluster.nodes.last().expect("a node").address();
        let exported =
            evenkv().arg("export").arg(file(stage)).args(["--node", node]).output().expect("it runs");
        let said = String::from_utf8_lossy(&exported.stdout);
        assert_eq!(said, format!("exported {} pairs, checksum {own}\n", pairs.len()), "{exported:?}");
        println!("{place}: {said}");
    }
}
