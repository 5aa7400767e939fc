//! Any bytes are a key and survive a round trip, in every spelling that a path allows, on every role.

mod support;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::http::{Http, percent_encoded};
use support::node::Node;

/// Enough to meet every kind of piece in every place; each case is some ten requests.
const CASES: u32 = 100;

/// A key, and one spelling of it in a path.
#[derive(Debug, Clone)]
struct Spelled {
    key: Vec<u8>,
    path: String,
}

/// Bytes that stand for themselves in a path: all of printable ASCII but `%`, which begins an escape, and
/// `?`, which ends the path.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%' && byte != b'?'
}

/// One byte in one of its spellings: itself where that is allowed, or an escape with digits of either case.
fn spelled_byte() -> impl Strategy<Value = Spelled> {
    (any::<u8>(), 0..3_u8).prop_map(|(byte, spelling)| {
        let path = match spelling {
            0 if is_plain(byte) => char::from(byte).to_string(),
            1 => format!("%{byte:02x}"),
            _ => format!("%{byte:02X}"),
        };
        Spelled { key: vec![byte], path }
    })
}

/// Pieces that servers and clients like to tidy, decode twice, or take for something else.
fn troublesome_piece() -> impl Strategy<Value = Spelled> {
    let plain = |text: &str| Spelled { key: text.as_bytes().to_vec(), path: text.to_owned() };
    let escaped =
        |text: &str| Spelled { key: text.as_bytes().to_vec(), path: percent_encoded(text.as_bytes()) };
    let pieces: Vec<Spelled> =
        ["/", "//", "..", ".", "/../", "/./", "+", "&", "=", ";", "#", "keys", "key-count", "~"]
            .map(plain)
            .into_iter()
            .chain(
                [
                    "/",
                    "..",
                    "%2F",
                    "%",
                    "%00",
                    "?",
                    "?a=b",
                    " ",
                    "+",
                    "é",
                    "日本語",
                    "\u{1f600}",
                    "\r\n",
                    "\0",
                    "#",
                ]
                .map(escaped),
            )
            .collect();
    (0..pieces.len()).prop_map(move |number| pieces[number].clone())
}

/// Keys of 1 to some 30 bytes.
fn spelled_key() -> impl Strategy<Value = Spelled> {
    let piece = prop_oneof![3 => spelled_byte(), 2 => troublesome_piece()];
    vec(piece, 1..12).prop_map(|pieces| {
        let mut whole = Spelled { key: Vec::new(), path: String::new() };
        for piece in pieces {
            whole.key.extend(piece.key);
            whole.path.push_str(&piece.path);
        }
        whole
    })
}

fn check_property<S: Strategy>(cases: u32, strategy: &S, check: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(strategy, |value| {
        check(value);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// Puts by one spelling and reads, updates and deletes by others, each time at the next node.
fn check_round_trip(nodes: &[&Node], spelled: &Spelled) {
    let mut clients: Vec<Http> = nodes.iter().map(|node| node.http()).collect();
    let count = clients.len();
    for first in 0..count {
        let spellings = [spelled.path.clone(), percent_encoded(&spelled.key)];
        let value = json!(format!("{:?} by {first}", spelled.key));
        let put = clients[first]
            .put(&format!("/kv-store/keys/{}", spellings[0]), json!({"value": value}).to_string());
        assert_eq!(put.status, 201, "{spelled:?}: {}", put.text());
        for (offset, client) in clients.iter_mut().enumerate() {
            let target = format!("/kvs/keys/{}", spellings[offset % 2]);
            for target in
                [format!("{target}?query"), format!("/kv-store/keys/{}", spellings[(offset + 1) % 2])]
            {
                let got = client.get(&target);
                assert_eq!(got.status, 200, "{spelled:?} as {target}: {}", got.text());
                assert_eq!(got.json()["value"], value, "{spelled:?} as {target}");
            }
        }
        let other = (first + 1) % count;
        let put = clients[other].put(&format!("/kvs/keys/{}", spellings[1]), r#"{"value":2}"#);
        assert_eq!(put.status, 200, "{spelled:?}: {}", put.text());
        let deleted = clients[(first + 2) % count].delete(&format!("/kv-store/keys/{}", spellings[0]));
        assert_eq!(deleted.status, 200, "{spelled:?}: {}", deleted.text());
        for client in &mut clients {
            let got = client.get(&format!("/kv-store/keys/{}", spellings[1]));
            assert_eq!(got.status, 404, "{spelled:?} was deleted: {}", got.text());
        }
    }
}

#[test]
fn any_key_round_trips_on_a_single_node_and_through_a_follower() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    check_property(CASES, &spelled_key(), |spelled| check_round_trip(&[&main, &follower], &spelled));
}

#[test]
fn any_key_round_trips_through_every_node_of_a_cluster() {
    let cluster = Cluster::of(3);
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    check_property(CASES / 2, &spelled_key(), |spelled| check_round_trip(&nodes, &spelled));
}

#[test]
fn each_of_the_256_bytes_is_a_key_of_its_own() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let cluster = Cluster::of(3);
    for client in [&mut main.http(), &mut follower.http(), &mut cluster.nodes[1].http()] {
        let targets: Vec<String> = (0..=255_u8).map(|byte| format!("/kvs/keys/%{byte:02X}")).collect();
        for (byte, target) in targets.iter().enumerate() {
            let put = client.put(target, format!("{{\"value\":{byte}}}"));
            assert_eq!(put.status, 201, "{target}: {}", put.text());
        }
        for (byte, target) in targets.iter().enumerate() {
            assert_eq!(client.get(target).json()["value"], byte, "{target}");
        }
        for byte in (0..=255).filter(|&byte| is_plain(byte)) {
            let target = format!("/kvs/keys/{}", char::from(byte));
            let got = client.get(&target);
            assert_eq!((got.status, &got.json()["value"]), (200, &json!(byte)), "{target}");
        }
        for target in &targets {
            assert_eq!(client.delete(target).status, 200, "{target}");
        }
    }
}

#[test]
fn a_key_is_decoded_once_and_never_tidied() {
    let node = Node::single(&[]);
    let follower = Node::follower(node.address(), &[]);
    let spellings =
        ["a", "a/", "a//", "/a", "a/.", "./a", "a/b/..", "a+", "a%20", "a%2B0", "a%252F", "a%2F%2F.", "A"];
    for (client, prefix) in [(&mut node.http(), "/kv-store"), (&mut follower.http(), "/kvs")] {
        for (number, spelling) in spellings.iter().enumerate() {
            let put = client.put(&format!("{prefix}/keys/{spelling}"), format!("{{\"value\":{number}}}"));
            let expected = if prefix == "/kvs" { 200 } else { 201 };
            assert_eq!(put.status, expected, "{spelling} is a key of its own: {}", put.text());
        }
        for (number, spelling) in spellings.iter().enumerate() {
            assert_eq!(
                client.get(&format!("{prefix}/keys/{spelling}")).json()["value"],
                number,
                "{spelling}"
            );
        }
        let count = client.get(&format!("{prefix}/key-count")).json();
        assert_eq!(count["key-count"], spellings.len());
    }
    let same = [("a%2F%2F%2E", 11), ("%61", 0), ("a%2f", 1), ("a%2B", 7), ("a%252f", usize::MAX)];
    for (spelling, number) in same {
        let got = node.http().get(&format!("/kvs/keys/{spelling}"));
        let found = got.json().get("value").cloned().unwrap_or(Value::Null);
        let expected = if number == usize::MAX { Value::Null } else { json!(number) };
        assert_eq!(found, expected, "{spelling}");
    }
}

/// Of a key that is passed on each slash takes three bytes: what it becomes is longer than what an `http::Uri` takes.
#[test]
fn a_key_whose_path_is_longer_than_a_uri_is_taken_at_every_node() {
    let settings = [("MAX_KEY_LENGTH", "65536")];
    let main = Node::single(&settings);
    let follower = Node::follower(main.address(), &[]);
    let cluster = Cluster::with(2, &settings);
    // One of them is another node's, whichever node is asked.
    for first in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let target = format!("/kv-store/keys/{first}{}", "/".repeat(22_000));
        for node in [&follower, &cluster.nodes[0], &cluster.nodes[1]] {
            let mut client = node.http();
            let statuses = ["PUT", "GET", "DELETE"]
                .map(|method| client.request(method, &target, &[], br#"{"value":1}"#).status);
            assert_eq!(statuses, [201, 200, 200], "{first} at {}", node.address());
        }
    }
}

/// A key of exactly `length` bytes in three spellings.
fn keys_of(length: usize) -> [String; 3] {
    ["k".repeat(length), "%6B".repeat(length), "%FF".repeat(length)]
}

#[test]
fn keys_up_to_the_limit_are_taken_and_none_above_it() {
    let limits = [
        (1024, None),
        (50, Some(("MAX_KEY_LENGTH", "50"))),
        // Encoded, such keys are longer than what some libraries take for a path.
        (65_536, Some(("MAX_KEY_LENGTH", "65536"))),
    ];
    for (limit, settings) in limits {
        let settings: Vec<_> = settings.into_iter().collect();
        let main = Node::single(&settings);
        let follower = Node::follower(main.address(), &[]);
        let cluster = Cluster::with(2, &settings);
        for node in [&main, &follower, &cluster.nodes[0], &cluster.nodes[1]] {
            let mut client = node.http();
            for key in keys_of(limit) {
                let target = format!("/kv-store/keys/{key}");
                assert!(
                    client.put(&target, r#"{"value":1}"#).status < 300,
                    "{limit} bytes at {}",
                    node.address()
                );
                assert_eq!(client.get(&target).status, 200);
                assert_eq!(client.delete(&target).status, 200);
            }
            for key in keys_of(limit + 1) {
                for method in ["PUT", "GET", "DELETE"] {
                    let answer =
                        client.request(method, &format!("/kv-store/keys/{key}"), &[], br#"{"value":1}"#);
                    assert_eq!(answer.status, 400, "{}", answer.text());
                    assert_eq!(answer.json()["error"], "Key is too long");
                    assert_eq!(answer.header("Evenkv-Limit"), Some(limit.to_string().as_str()));
                }
            }
        }
    }
}

#[test]
fn values_up_to_the_limit_are_taken_and_none_above_it() {
    let text = |length: usize| format!("{{\"value\":\"{}\"}}", "v".repeat(length - 2));
    for (limit, settings) in [(8 << 20, None), (2000, Some(("MAX_VALUE_LENGTH", "2000")))] {
        let settings: Vec<_> = settings.into_iter().collect();
        let main = Node::single(&settings);
        let follower = Node::follower(main.address(), &[]);
        let cluster = Cluster::with(2, &settings);
        for node in [&main, &follower, &cluster.nodes[0], &cluster.nodes[1]] {
            let mut client = node.http();
            let fits = client.put("/kvs/keys/value", text(limit));
            assert!(fits.status < 300, "{limit} bytes at {}: {}", node.address(), fits.text());
            let refused = client.put("/kvs/keys/value", text(limit + 1));
            assert_eq!(refused.status, 413, "{}", refused.text());
            assert_eq!(refused.header("Evenkv-Outcome"), Some("not-applied"));
            let error = refused.json()["error"].as_str().expect("an error").to_owned();
            assert!(error.contains(&limit.to_string()), "the limit is not in {error:?}");
            let kept = node.http().get("/kvs/keys/value").json();
            assert_eq!(kept["value"].as_str().map(str::len), Some(limit - 2), "the value before is kept");
        }
    }
}

/// Case 0 of each property with a fixed key, so that a broken server is told by a readable test.
#[test]
fn a_key_of_dots_and_slashes_round_trips_everywhere() {
    let main = Node::single(&[]);
    let follower = Node::follower(main.address(), &[]);
    let cluster = Cluster::of(3);
    let path = "../a//./%2F%2e%2E/..%00/é";
    let path = path.replace('é', "%C3%A9");
    let key = "../a//.//../..\0/é".as_bytes().to_vec();
    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    check_property(1, &Just(Spelled { key, path }), |spelled| {
        check_round_trip(&[&main, &follower], &spelled);
        check_round_trip(&nodes, &spelled);
    });
}

/// What a read is to see is asked for in words that there are: `(query, allowed)`.
const CONSISTENCY: [(&str, bool); 9] = [
    ("", true),
    ("other=bogus", true),
    ("consistency=stale", true),
    ("other&consistency=stale", true),
    ("consistency=bogus", false),
    ("consistency=", false),
    ("consistency", false),
    ("consistency=STALE", false),
    ("consistency=stale&consistency=bogus", false),
];

#[test]
fn another_consistency_than_there_is_is_refused() {
    let node = Node::single(&[]);
    let follower = Node::follower(node.address(), &[]);
    assert_eq!(node.http().put("/kv-store/keys/read", r#"{"value":1}"#).status, 201);
    for (number, (query, allowed)) in CONSISTENCY.into_iter().enumerate() {
        for (asked, from) in [&node, &follower].into_iter().enumerate() {
            let mut client = from.http();
            let read = client.get(&format!("/kv-store/keys/read?{query}"));
            let target = format!("/kv-store/keys/written-{number}-{asked}");
            let written = client.put(&format!("{target}?{query}"), r#"{"value":1}"#);
            let deleted = client.delete(&format!("{target}?{query}"));
            let statuses = [read.status, written.status, deleted.status];
            assert_eq!(
                statuses,
                if allowed { [200, 201, 200] } else { [400; 3] },
                "{query}: {}",
                read.text()
            );
            if allowed {
                continue;
            }
            for answer in [&read, &written, &deleted] {
                let error = answer.json()["error"].as_str().expect("an error").to_owned();
                assert!(error.contains("consistency") && error.contains("stale"), "{query}: {error}");
            }
            for answer in [&written, &deleted] {
                assert_eq!(answer.header("Evenkv-Outcome"), Some("not-applied"), "{query}");
            }
            assert_eq!(client.get(&target).status, 404, "{query}: nothing was done");
        }
    }
}
