//! The subcommands as they are typed: what is accepted, and what they do to a node.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use super::fake_node::{BUSY, FakeNode, REFUSED};
use super::{Command, run};

#[derive(Debug, Parser)]
pub(super) struct Program {
    #[command(subcommand)]
    pub(super) command: Command,
}

fn parse(words: &[&str]) -> Result<Command, clap::Error> {
    Program::try_parse_from([&["evenkv"], words].concat()).map(|program| program.command)
}

/// The exit code of a command line at `node`.
pub(super) fn at(node: &str, words: &[&str]) -> u8 {
    let command = parse(&[&words[..1], &["--node", node], &words[1..]].concat()).unwrap();
    let code = run(command, Program::command);
    (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap()
}

#[test]
fn command_lines_that_are_right() {
    for words in [
        &["get", "k"][..],
        &["get", "--raw", "k"],
        &["get", "-r", "-5"],
        &["get", "--", "--key"],
        &["get", ""],
        &["get", "k", "--node", "node1"],
        &["get", "k", "--node", ""],
        &["put", "k", "-"],
        &["put", "k", "-1.5"],
        &["put", "k", "v", "--ttl", "2.5", "--if-match", "a7", "--if-none-match", "*"],
        &["put", "k", "--file", "photo.jpg", "--type", "image/jpeg", "--ttl", "60"],
        &["put", "k", "--file", "-"],
        &["get", "k", "--etag"],
        &["put", "--string", "k", "v", "--node", "[::1]:13801"],
        &["delete", "k"],
        &["count"],
        &["watch"],
        &["watch", "user/", "--values", "--since", "AasT-_", "--through", "a:1,b", "--json"],
        &["completions", "bash"],
        &["man"],
        &["man", "folder"],
        &["view", "--json"],
        &["status", "--json", "--node", "a:1"],
        &["get", "k", "--json", "--timeout", "0.5"],
        &["recover", "--node", "a:1", "--json", "--timeout", "60"],
        &["health", "--json", "--timeout", "1"],
        &["view-change", "--status", "--json", "--timeout", "3"],
        &["import", "-", "--format", "words", "--json", "--timeout", "3"],
        &["health", "--live"],
        &["view-change", "a:1,b,c", "--repl-factor", "3", "--dry-run", "--accept-loss", "1,2"],
        &["view-change", "--status", "--node", "a:1"],
        &["view-change", "--cancel"],
        &["audit", "--node", "a:1"],
        &["recover", "--node", "a:1", "--yes", "--cluster-secret", "s"],
        &["import", "-", "--format", "words"],
        &["import", "U.txt", "--delimiter", ";", "--key", "1", "--no-quoting", "--connections", "2"],
        &[
            "import",
            "w",
            "--format",
            "words",
            "--verify",
            "--verify-through",
            "a:1,b:2",
            "--verify-through",
            "c",
        ],
    ] {
        assert!(parse(words).is_ok(), "{words:?}: {}", parse(words).unwrap_err());
    }
}

#[test]
fn command_lines_that_are_wrong() {
    for (words, reason) in [
        (&["get"][..], "<KEY>"),
        (&["put", "k"], "<VALUE>"),
        (&["get", "k", "--node", "https://node1"], "plain HTTP"),
        (&["get", "k", "--node", "node1:port"], "65535"),
        (&["count", "extra"], "unexpected argument"),
        (&["watch", "--since", "a b"], "a cursor as it was told"),
        (&["watch", "--through", ""], "no host"),
        (&["completions", "dos"], "possible values: bash"),
        (&["count", "--timeout", "0"], "number of seconds"),
        (&["get", "k", "--raw", "--json"], "cannot be used with"),
        (&["get", "k", "--raw", "--etag"], "cannot be used with"),
        (&["put", "k", "v", "--file", "f"], "cannot be used with"),
        (&["put", "k", "v", "--type", "text/plain"], "cannot be used with"),
        (&["put", "k", "v", "--ttl", "0"], "0.001 to 315360000"),
        (&["import"], "<FILE>"),
        (&["import", "w", "--connections", "0"], "1..=256"),
        (&["import", "w", "--verify-through", ""], "no host"),
        (&["view-change", "--dry-run"], "<NODE,NODE,..>"),
        (&["view-change", "a:1,"], "no host"),
        (&["view-change", "a:1", "--status"], "cannot be used with"),
        (&["view-change", "--status", "--cancel"], "cannot be used with"),
        (&["view-change", "--cancel", "--dry-run"], "cannot be used with"),
        (&["view-change", "a:1", "--repl-factor", "0"], "1.."),
        (&["recover", "--yes"], "--node"),
        (&["increment", "k"], "unrecognized subcommand"),
    ] {
        let error = parse(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}");
        assert!(error.to_string().contains(reason), "{words:?}: {error}");
    }
}

#[test]
fn every_subcommand_waits_for_a_time_and_can_answer_in_json() {
    let program = Program::command();
    // These ask no node.
    let asks = |name: &str| !matches!(name, "completions" | "man" | "token" | "inspect");
    for subcommand in program.get_subcommands().filter(|one| asks(one.get_name())) {
        let find = |name: &str| subcommand.get_arguments().find(|argument| argument.get_id() == name);
        let name = subcommand.get_name();
        let seconds = match name {
            // A health check is quick, and a node that recovers waits for others itself.
            "health" => "2",
            "recover" => "30",
            _ => "10",
        };
        let timeout = find("timeout").unwrap_or_else(|| panic!("{name} has no --timeout"));
        assert_eq!(timeout.get_default_values(), [seconds], "{name}");
        assert!(find("json").is_some(), "{name} has no --json");
    }
}

#[test]
fn commands_end_with_their_exit_codes() {
    let node = FakeNode::start();
    let address = node.address();
    let audit = |ok: bool| format!(r#"{{"ok":{ok},"epoch":1,"keys":0,"checksum":"0","shards":[]}}"#);
    let refused = r#"{"error":"a majority lives","message":"Error in PUT"}"#;
    node.with(|state| {
        let said = [(200, &*audit(true)), (200, &*audit(false)), (503, refused)];
        state.script("GET /kv-store/audit", &said);
        let unmet = r#"{"error":"Precondition failed","message":"Error in PUT"}"#;
        let updated = r#"{"message":"Updated successfully","replaced":true}"#;
        state.script("PUT /kv-store/keys/held", &[(412, unmet), (200, updated)]);
        let recovered = r#"{"epoch":1,"given-up":["a:1"],"lost-shards":["1"]}"#;
        state.script("PUT /node/recover", &[(200, recovered), (200, recovered), (409, refused)]);
    });
    for (words, expected) in [
        (&["get", "k"][..], 1),
        (&["delete", "k"], 1),
        (&["put", "k", "{\"a\": 1.0}"], 0),
        (&["put", "k", "{\"a\": 2.0}"], 0),
        (&["put", "--string", "text", "5"], 0),
        (&["get", "k"], 0),
        (&["get", "--raw", "text"], 0),
        (&["get", "--raw", "nothing"], 1),
        (&["put", "k", "--file", "/no/such/file"], 3),
        (&["put", "held", "1", "--if-none-match", "*"], 1),
        (&["put", "held", "1", "--if-match", "a7", "--ttl", "0.50"], 0),
        (&["put", REFUSED, "1"], 3),
        (&["get", BUSY], 3),
        (&["get", BUSY], 1),
        (&["view"], 0),
        (&["view", "--json"], 0),
        // Nobody of shard 2 is reached.
        (&["count"], 3),
        (&["audit"], 0),
        (&["audit"], 1),
        (&["audit"], 3),
        (&["recover", "--yes"], 0),
        (&["recover", "--yes"], 3),
        (&["health"], 1),
        (&["health", "--live"], 0),
        (&["import", "/no/such/file.ndjson"], 3),
        (&["import", "file.txt"], 2),
        (&["import", "-", "--format", "words", "--verify"], 2),
    ] {
        assert_eq!(at(&address, words), expected, "{words:?}");
    }
    node.with(|state| {
        assert_eq!(state.pairs[&b"k"[..]], "{\"a\": 2.0}");
        assert_eq!(state.pairs[&b"text"[..]], "\"5\"");
        let headers: Vec<(String, String)> = state
            .scripted
            .iter()
            .filter(|one| one.line.ends_with("/held"))
            .flat_map(|one| &one.headers)
            .map(|header| (header.field.to_string().to_ascii_lowercase(), header.value.to_string()))
            .filter(|(name, _)| name.starts_with("if-") || name == "evenkv-ttl")
            .collect();
        let wanted = [("if-none-match", "*"), ("evenkv-ttl", "0.5"), ("if-match", "\"a7\"")];
        assert_eq!(headers, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    });
    assert_eq!(at(&address, &["delete", "k"]), 0);
    assert_eq!(node.with(|state| state.pairs.len()), 1);
}

#[test]
fn any_key_reaches_the_node_unchanged() {
    let node = FakeNode::start();
    let bytes: Vec<u8> = (1..=255).collect();
    let keys = ["..", ".", "../..", "a/../b", "//", "/", "a//b/", "a b+c%2F%", "?q=1#f", "ключ", ""]
        .map(str::as_bytes);
    for key in keys.into_iter().chain([&bytes[..]]) {
        let words = ["evenkv", "put", "--node", &node.address(), "--"].map(OsString::from);
        let rest = [OsString::from_vec(key.to_vec()), OsString::from("1")];
        let program = Program::try_parse_from(words.into_iter().chain(rest)).unwrap();
        assert_eq!(run(program.command, Program::command), ExitCode::SUCCESS);
        assert!(node.with(|state| state.pairs.remove(key).is_some()), "{key:?}");
    }
}

#[test]
fn a_node_that_is_not_there_is_told_at_once() {
    // The port was free a moment ago, and nobody listens on it now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_eq!(at(&address, &["get", "k"]), 3);
    assert_eq!(at(&address, &["health"]), 1);
    assert_eq!(at(&address, &["import", "src/main.rs", "--format", "words"]), 3);
}
