//! View changes that take long, or do not come to their end: what is said of them, and that nothing is lost.
#![cfg(feature = "failpoints")]

use std::time::{Duration, Instant};

use serde_json::json;

use crate::alone;
use crate::support::audit::audit;
use crate::support::change::{
    Pairs, allowed, ask_with, check_receipt_at, has_ended, passive, phase, status, target, wait_knows,
};
use crate::support::cluster::Cluster;
use crate::support::http::Http;
use crate::support::node::{Node, evenkv};
use crate::support::replicated::{others, wait_agreed};
use crate::support::{START_DEADLINE, wait_until};

/// A view change is blocked when nothing has moved for this long.
const BLOCKED_AFTER: Duration = Duration::from_secs(5);
/// What is left of a snapshot that is sent slowly, when the first part has come, takes longer than this.
const SNAPSHOT: Duration = Duration::from_secs(6);

#[test]
fn a_snapshot_that_takes_long_is_progress() {
    let _alone = alone();
    // Ten parts of 1 MiB for each of two replicas.
    let slow = Node::single(&[("FAILPOINTS", "snapshot-sent=sleep(900)")]);
    let nodes = [slow, Node::single(&[]), Node::single(&[])];
    let all: Vec<String> = nodes.iter().map(|node| node.address().to_owned()).collect();
    let body = json!({ "value": "x".repeat(100_000) }).to_string();
    for number in 0..100 {
        assert_eq!(Http::new(&all[0]).put(&target(&format!("large-{number}")), body.as_str()).status, 201);
    }
    let wanted = json!({"view": all, "repl-factor": 3});
    let accepted = ask_with(&all[0], &[("Prefer", "respond-async")], &wanted);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let id = accepted.json()["change-id"].clone();
    wait_until("replicas are on their way", START_DEADLINE, || phase(&all[0]) == "finishing");
    nodes[1..].iter().for_each(Node::pause);
    wait_until("nothing moves", allowed(2 * BLOCKED_AFTER), || phase(&all[0]) == "blocked");
    nodes[1..].iter().for_each(Node::resume);
    wait_until("something moves again", allowed(2 * BLOCKED_AFTER), || phase(&all[0]) == "finishing");
    let moves = Instant::now();
    wait_until("the view change has ended", allowed(4 * BLOCKED_AFTER), || {
        let said = status(&all[0]);
        assert_ne!(said["phase"], "blocked", "{said}");
        // A second one must not come too late: it would be begun.
        if moves.elapsed() < SNAPSHOT {
            let second = ask_with(&all[0], &[], &json!({"view": &all[..2], "repl-factor": 2}));
            assert_eq!((second.status, &second.json()["change-id"]), (409, &id), "{}", second.text());
        }
        has_ended(said["phase"].as_str().expect("a phase"))
    });
    assert!(moves.elapsed() > SNAPSHOT, "it took too short a time to show anything");
    let mut ended = json!(null);
    wait_until("another node knows that, too", START_DEADLINE, || {
        ended = status(&all[2]);
        has_ended(ended["phase"].as_str().expect("a phase"))
    });
    assert_eq!((&ended["phase"], &ended["receipt"]["change-id"]), (&json!("finished"), &id), "{ended}");
    check_receipt_at(&ended["receipt"], &all, 3);
    wait_agreed(&all[0]);
    assert_eq!(audit(&all[2]).keys, 100);
}

#[test]
fn a_change_says_which_piece_moves_and_who_is_waited_for() {
    let source = Node::single(&[("FAILPOINTS", "source-batch=1*sleep(3000)")]);
    let target = Node::single(&[]);
    let all = [&source, &target].map(|node| node.address().to_owned());
    let mut pairs = Pairs::default();
    pairs.create(&all[..1], 100);
    let accepted = ask_with(&all[0], &[("Prefer", "respond-async")], &json!({ "view": all }));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let mut said = json!(null);
    wait_until("a copy is waited for", START_DEADLINE, || {
        said = status(&all[0]);
        said["waits-for"]["order"] == "copy" && said["waits-for"]["seconds"].as_f64() > Some(0.2)
    });
    assert_eq!((&said["phase"], &said["waits-for"]["node"]), (&json!("moving"), &json!(all[1])), "{said}");
    let piece = &said["piece"];
    assert_eq!((&piece["number"], &piece["attempt"]), (&json!(1), &json!(1)), "{said}");
    assert_eq!((&piece["from"], &piece["to"]), (&json!("1"), &json!("2")), "{said}");
    assert!(piece["pairs"].as_u64() <= said["total"].as_u64() && piece["of"].as_u64() > Some(0), "{said}");
    // The subcommand follows to the end, and what it says first is this.
    let followed = evenkv().args(["view-change", "--status", "--node", &all[1]]).output().expect("it runs");
    let lines = String::from_utf8_lossy(&followed.stderr).into_owned();
    assert_eq!(followed.status.code(), Some(0), "{lines}");
    let first = lines.lines().next().unwrap_or_default();
    let wanted = format!("moving, piece 1 of {} from shard 1 to shard 2", piece["of"]);
    assert!(first.contains(&wanted), "{lines}");
    assert!(
        first.contains("waiting for ") && first.contains(&format!(" s for {} (copy)", all[1])),
        "{lines}"
    );
    pairs.check(&all);
}

#[test]
fn a_shard_whose_replicas_have_moved_is_not_lost_with_its_first_node() {
    let _alone = alone();
    // The replicas are where they are to be, and the change has not come to its end.
    let mut cluster = Cluster::with(3, &[("FAILPOINTS", "change-finishing=1*sleep(5000)")]);
    let members = cluster.addresses();
    let spare = passive(&members, &[]);
    wait_knows(&spare, 3);
    let mut pairs = Pairs::default();
    pairs.create(&members, 2000);
    let wanted = json!({"view": members, "repl-factor": 3});
    let accepted = ask_with(&members[1], &[("Prefer", "respond-async")], &wanted);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    // The shard that stays is the one with the most pairs.
    let mut moved = None;
    wait_until("a shard has three voters", START_DEADLINE, || {
        let promoted = |number: &usize| {
            let line = format!("group {}: Promote", number + 1);
            cluster.nodes[*number].log().matches(&line).count() == 2
        };
        moved = (0..3).find(promoted);
        moved.is_some()
    });
    let moved = moved.expect("waited for");
    let (dead, shard) = (&members[moved], (moved + 1).to_string());
    cluster.nodes[moved].kill();
    let living = others(&members, &[dead]);
    let asked = &living[0];
    wait_until("the change is blocked", allowed(4 * BLOCKED_AFTER), || phase(asked) == "blocked");
    let said = status(asked);
    assert!(said["blocked-by"].as_str().is_some_and(|by| by.contains(dead.as_str())), "{said}");
    let rest = [&living[..], &[spare.address().to_owned()]].concat();
    let body = json!({"view": rest, "repl-factor": 3, "accept-loss": [shard]});
    let refused = ask_with(asked, &[], &body);
    assert_eq!(refused.status, 400, "{}", refused.text());
    let error = refused.json()["error"].as_str().expect("a reason").to_owned();
    assert!(error.contains(&format!("shard {shard} is not lost")), "{error}");
    assert!(
        living.iter().any(|node| error.contains(node)) && !error.contains(dead),
        "{error} names who has it"
    );
    pairs.check(&living);
    let body = json!({"view": rest, "repl-factor": 3});
    let mut answer = None;
    wait_until("the view goes on without the dead node", allowed(2 * BLOCKED_AFTER), || {
        let got = ask_with(asked, &[], &body);
        assert!([200, 409].contains(&got.status), "{}", got.text());
        let done = got.status == 200;
        answer = Some(got);
        done
    });
    check_receipt_at(&answer.expect("asked").json(), &rest, 3);
    pairs.check(&rest);
    wait_agreed(&rest[2]);
    assert_eq!(audit(&rest[0]).keys, pairs.held.len() as u64);
}
