//! Whole imports into a node that stores, refuses and is busy.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::thread::Builder;

use clap::Parser;

use super::super::Command;
use super::super::failure::Failure;
use super::super::fake_node::{BUSY, CORRUPTED, FakeNode, REFUSED, UNSERVED};
use super::super::tests::Program;
use super::import;

fn import_file(node: &str, file: &Path, options: &[&str]) -> Result<bool, Failure> {
    let words = ["evenkv", "import", file.to_str().unwrap(), "--node", node, "--connections", "3"];
    let program = Program::try_parse_from(words.iter().chain(options)).unwrap();
    let Command::Import(args) = program.command else { panic!("not an import") };
    import(&args)
}

/// Lines of the failures file by line number.
fn failures(file: &Path) -> Vec<(u64, String)> {
    let text = fs::read_to_string(file).unwrap();
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(number, reason)| (number.parse().unwrap(), reason.to_owned()))
        .collect();
    lines.sort();
    lines
}

#[test]
fn every_good_line_is_stored_and_every_bad_one_named() {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("pairs.ndjson"), folder.path().join("failed"));
    let mut text = String::new();
    for number in 1..=300 {
        let prefix = match number {
            50 => REFUSED,
            n if n % 10 == 0 => BUSY,
            _ => "a/..",
        };
        writeln!(text, "{{\"key\":\"{prefix} {number}\",\"value\":[{number}, \"é\"]}}").unwrap();
    }
    text += "not json\n{\"key\":\"last\",\"value\":null}";
    fs::write(&file, text).unwrap();
    let node = FakeNode::start();
    let options = ["--verify", "--failures", log.to_str().unwrap()];
    assert!(!import_file(&node.address(), &file, &options).unwrap());
    node.with(|state| {
        assert_eq!(state.pairs.len(), 300);
        assert_eq!(state.pairs[&b"a/.. 7"[..]], "[7, \"é\"]");
        assert_eq!(state.pairs[&b"busy 300"[..]], "[300, \"é\"]");
        assert_eq!(state.pairs[&b"last"[..]], "null");
        // 301 writes and 29 repeated ones, then one read for each of the 300 pairs.
        assert_eq!(state.key_requests, 301 + 29 + 300);
    });
    let failed = failures(&log);
    assert_eq!(failed.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [50, 301]);
    assert_eq!(failed[0].1, "the node answered 400: Key is too long (the write is not-applied)");
    assert!(failed[1].1.starts_with("not {\"key\""), "{failed:?}");
}

#[test]
fn fields_and_words_are_imported_and_later_lines_win() {
    let folder = tempfile::tempdir().unwrap();
    let node = FakeNode::start();
    let file = folder.path().join("Data.txt");
    fs::write(&file, "0041;LATIN \"A\";Lu\n0042;B;Lu\n0041;AGAIN;Lu\n").unwrap();
    let options = ["--delimiter", ";", "--key", "1", "--no-quoting", "--verify"];
    assert!(import_file(&node.address(), &file, &options).unwrap());
    node.with(|state| {
        assert_eq!(state.pairs[&b"0041"[..]], r#"["0041","AGAIN","Lu"]"#);
        assert_eq!(state.pairs[&b"0042"[..]], r#"["0042","B","Lu"]"#);
        state.pairs.clear();
    });
    // The first line has to be sent twice, and must still not come after the second.
    let file = folder.path().join("busy.tsv");
    fs::write(&file, format!("{BUSY}\tfirst\n{BUSY}\tsecond\n")).unwrap();
    assert!(import_file(&node.address(), &file, &[]).unwrap());
    assert_eq!(node.with(|state| state.pairs.remove(BUSY.as_bytes())).unwrap(), "\"second\"");
    let file = folder.path().join("words");
    fs::write(&file, "A's\nétude\n").unwrap();
    assert!(import_file(&node.address(), &file, &[]).unwrap());
    node.with(|state| {
        assert_eq!(state.pairs[&b"A's"[..]], "1");
        assert_eq!(state.pairs["étude".as_bytes()], "2");
    });
}

#[test]
fn reading_back_finds_what_is_absent_or_differs() {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("a.tsv"), folder.path().join("failed"));
    fs::write(&file, format!("good\t1\n{CORRUPTED}\t2\nalso good\t3\n")).unwrap();
    let (node, empty) = (FakeNode::start(), FakeNode::start());
    let through = format!("{},{}", node.address(), empty.address());
    let options = ["--verify-through", &through, "--failures", log.to_str().unwrap()];
    assert!(!import_file(&node.address(), &file, &options).unwrap());
    let expected =
        |address: String, line: u64, reason: &str| (line, format!("read back through {address}: {reason}"));
    let mut all = vec![
        expected(node.address(), 2, "the node holds another value"),
        expected(empty.address(), 1, "the key is absent"),
        expected(empty.address(), 2, "the key is absent"),
        expected(empty.address(), 3, "the key is absent"),
    ];
    all.sort();
    assert_eq!(failures(&log), all);
}

#[test]
fn a_node_that_serves_nothing_ends_the_import_early() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("words");
    let lines: Vec<String> = (0..5000).map(|number| format!("{UNSERVED} {number}")).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let node = FakeNode::start();
    let Err(Failure::Local(reason)) = import_file(&node.address(), &file, &["--retry-seconds", "0"]) else {
        panic!("the import was not stopped")
    };
    assert!(reason.contains("20 lines in a row"), "{reason}");
    assert!(reason.contains("503: Unable to satisfy request"), "{reason}");
    assert!(node.with(|state| state.key_requests) < 100);
}

#[test]
fn a_node_that_dies_ends_the_import_early() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("words");
    fs::write(&file, "word\n".repeat(5000)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // It answers the first question, whether it is alive, and is gone.
    let answer_once = move || {
        use std::io::Write;
        let (mut socket, _) = listener.accept().unwrap();
        drop(listener);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    };
    let dying = Builder::new().name("dying-node".to_owned()).spawn(answer_once).unwrap();
    let Err(Failure::Local(reason)) = import_file(&address, &file, &["--retry-seconds", "0"]) else {
        panic!("the import was not stopped")
    };
    dying.join().unwrap();
    assert!(reason.contains("no answer from the node"), "{reason}");
}
