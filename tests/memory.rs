//! The memory of a node: that of pairs which were deleted, or have ended, goes back to the system, and the node says what it holds.

mod support;

use std::time::Duration;

use support::http::Http;
use support::node::Node;
use support::{at_once, wait_until};

/// Clients that put and delete at the same time.
const CLIENTS: usize = 8;
/// In this time memory is given back.
const GIVEN_BACK: Duration = Duration::from_secs(10);
/// A pair goes so much later than its time at most.
const LATEST: Duration = Duration::from_secs(1);
/// Of what the pairs took, this part may be left: one in so many bytes.
const LEFT: u64 = 4;

/// Sends a request for each of `count` keys and expects this status.
fn for_each_key(node: &Node, count: usize, status: u16, request: impl Fn(&mut Http, &str) -> u16 + Sync) {
    at_once(CLIENTS, |client| {
        let mut http = node.http();
        for number in (client..count).step_by(CLIENTS) {
            let target = format!("/kv-store/keys/key-{number}");
            assert_eq!(request(&mut http, &target), status, "{target}");
        }
    });
}

/// A figure of `/metrics`, in bytes.
fn metric(node: &Node, name: &str) -> u64 {
    let text = node.http().get("/metrics").text();
    let figure = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

fn allocated(node: &Node) -> u64 {
    metric(node, "evenkv_allocator_allocated_bytes")
}

/// How pairs go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Going {
    Deleted,
    /// They live for so many seconds from when all are there.
    Ended(u32),
}

/// Puts pairs of this size, has all of them go, and waits until their memory is the system's again.
fn check_that_it_is_given_back(pairs: usize, value_bytes: usize, going: Going) {
    let node = Node::single(&[]);
    let (empty, none_allocated) = (node.resident_bytes(), allocated(&node));
    let body = format!(r#"{{"value":"{}"}}"#, "x".repeat(value_bytes));
    for_each_key(&node, pairs, 201, |http, target| http.put(target, &body).status);

    let stored = (pairs * value_bytes) as u64;
    let took = node.resident_bytes() - empty;
    assert!(took >= stored, "{took} bytes in RAM for {stored}");
    let all_allocated = allocated(&node);
    assert!(all_allocated >= none_allocated + stored, "{none_allocated}, with the pairs {all_allocated}");
    assert!(metric(&node, "evenkv_allocator_resident_bytes") >= all_allocated);

    match going {
        Going::Deleted => for_each_key(&node, pairs, 200, |http, target| http.delete(target).status),
        Going::Ended(seconds) => {
            for_each_key(&node, pairs, 204, |http, target| {
                let target = target.replace("/kv-store/keys/", "/v1/kv/");
                http.request("PATCH", &format!("{target}?ttl={seconds}"), &[], b"").status
            });
            let latest = Duration::from_secs(u64::from(seconds)) + LATEST;
            wait_until("all pairs have ended", latest, || metric(&node, "evenkv_pairs") == 0);
        }
    }
    wait_until("the memory of the pairs is given back", GIVEN_BACK, || {
        node.resident_bytes() <= empty + took / LEFT
    });
    let left = allocated(&node).saturating_sub(none_allocated);
    assert!(left <= stored / LEFT, "{left} bytes are allocated for no pairs");
    let left = node.resident_bytes().saturating_sub(empty);
    eprintln!("{pairs} pairs of {value_bytes} bytes: {} MB, then {} MB", took >> 20, left >> 20);
}

#[test]
fn memory_of_deleted_small_pairs_is_given_back() {
    check_that_it_is_given_back(100_000, 700, Going::Deleted);
}

#[test]
fn memory_of_deleted_large_pairs_is_given_back() {
    check_that_it_is_given_back(1_000, 100_000, Going::Deleted);
}

#[test]
fn memory_of_pairs_that_have_ended_is_given_back() {
    check_that_it_is_given_back(100_000, 700, Going::Ended(5));
}
