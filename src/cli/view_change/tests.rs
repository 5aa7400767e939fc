//! The whole subcommand against a node that answers by a script.

use std::time::Duration;

use crossbeam_channel::{bounded, never};

use super::super::address::Address;
use super::super::client::Client;
use super::super::failure::Failure;
use super::super::fake_node::FakeNode;
use super::super::waiting::Waiting;
use super::follow::{End, Status, Watcher, follow};
use super::progress::line;
use super::receipt::{Plan, Receipt};

const GET: &str = "GET /kv-store/view-change";
const MOVING: &str = r#"{"message":"..","phase":"moving","change-id":"c1","moved":20,"total":80,
    "pairs-per-second":10,"remaining-seconds":6}"#;
const FINISHED: &str = r#"{"message":"..","phase":"finished","receipt":{"message":"View change successful",
    "shards":[{"shard-id":"1","key-count":51,"key-count-at-cut":50,"replicas":["a:1"],"address":"a:1"},
    {"shard-id":"2","key-count":50,"key-count-at-cut":50,"replicas":["b:1"],"address":"b:1"}],
    "change-id":"c1","epoch":4,"keys":100,"moved":50,"minimum":50,"copied":50,"created-meanwhile":1,
    "deleted-meanwhile":0,"hold-ms":3.25,"checksums-match":true}}"#;
const OLDER: &str = r#"{"message":"..","phase":"cancelled","change-id":"c0","error":"it was cancelled"}"#;
const BUSY: &str = r#"{"error":"no coordinator yet","message":"Error in GET"}"#;

/// Notes what it is told.
#[derive(Default)]
struct Notes(Vec<String>);

impl Watcher for Notes {
    fn show(&mut self, status: &Status) {
        self.0.push(line(status));
    }

    fn say(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }

    fn wait(&self, _: &Client) -> Option<Waiting> {
        None
    }
}

/// A client that is patient for as long as five questions.
fn client(node: &FakeNode) -> Client {
    Client::new(&Address::parse(&node.address()).unwrap(), 1, Duration::from_secs(1)).unwrap()
}

/// What following the change `c1`, or whichever runs, ends with and was told meanwhile.
fn followed(answers: &[(u16, &str)], change: Option<&str>) -> (Result<End, Failure>, Vec<String>) {
    let node = FakeNode::start();
    node.with(|state| state.script(GET, answers));
    let mut notes = Notes::default();
    let followed = follow(&client(&node), change, &never(), &mut notes);
    (followed.map(|followed| followed.end), notes.0)
}

#[test]
fn a_change_is_followed_over_stale_and_missing_answers_to_its_end() {
    let answers = [(200, OLDER), (200, MOVING), (503, BUSY), (503, BUSY), (200, MOVING), (200, FINISHED)];
    let (end, notes) = followed(&answers, Some("c1"));
    assert!(matches!(end, Ok(End::Finished(_))), "{end:?}");
    let moving = "20/80 pairs moving, 10 pairs/s, 6 s left";
    let silent = "the node answered 503: no coordinator yet; asking again for 1 s";
    assert_eq!(notes, [moving, silent, moving]);
}

#[test]
fn a_phase_of_a_newer_node_is_shown_and_followed() {
    let newer = r#"{"message":"..","phase":"hovering","change-id":"c1","moved":20,"total":80,"altitude":7}"#;
    let (end, notes) = followed(&[(200, newer), (200, FINISHED)], Some("c1"));
    assert!(matches!(end, Ok(End::Finished(_))), "{end:?}");
    assert_eq!(notes, ["20/80 pairs hovering"]);
}

#[test]
fn a_change_that_ends_otherwise_is_told_with_its_reason() {
    let lost = r#"{"phase":"failed","change-id":"c1","error":"node b:1 is gone"}"#;
    let none = r#"{"phase":"none"}"#;
    let (newer, unknown) = (
        "the node tells no more of the view change c1, only of c0, which is cancelled",
        "the node does not know the view change c1",
    );
    for (answer, change, expected) in [
        (lost, Some("c1"), "the view change c1 is failed: node b:1 is gone"),
        (lost, None, "the view change c1 is failed: node b:1 is gone"),
        (OLDER, None, "the view change c0 is cancelled: it was cancelled"),
        (none, None, "there has been no view change"),
        (OLDER, Some("c1"), newer),
        (none, Some("c1"), unknown),
    ] {
        let (end, _) = followed(&[(200, answer)], change);
        assert!(matches!(&end, Ok(End::Otherwise(text)) if text == expected), "{end:?}");
    }
}

#[test]
fn a_node_that_goes_away_is_told_once_and_then_given_up() {
    let gone = FakeNode::start();
    let client = client(&gone);
    drop(gone);
    let mut notes = Notes::default();
    let end = follow(&client, Some("c1"), &never(), &mut notes);
    assert!(matches!(end, Err(Failure::Unreachable { .. })), "{end:?}");
    assert_eq!(notes.0.len(), 1, "{:?}", notes.0);
    assert!(notes.0[0].starts_with("no answer from the node at 127.0.0.1:"), "{:?}", notes.0);
    // What is no passing trouble ends it at once.
    let (end, notes) = followed(&[(404, BUSY)], None);
    assert!(
        matches!(end, Err(Failure::Refused { status: 404, .. })) && notes.is_empty(),
        "{end:?} {notes:?}"
    );
}

#[test]
fn an_interrupt_leaves_the_change_alone() {
    let node = FakeNode::start();
    node.with(|state| state.script(GET, &[(200, MOVING)]));
    let (send, interrupts) = bounded(1);
    send.send(()).unwrap();
    let end = follow(&client(&node), Some("c1"), &interrupts, &mut Notes::default()).map(|end| end.end);
    assert!(matches!(end, Ok(End::Interrupted)), "{end:?}");
    assert!(node.with(|state| state.scripted.iter().all(|asked| asked.line == GET)));
}

#[test]
fn lines_say_what_is_known() {
    for (status, expected) in [
        (r#"{"phase":"preparing","change-id":"c1"}"#, "preparing"),
        (
            r#"{"phase":"counting","moved":0,"total":0,"pairs-per-second":0,"remaining-seconds":null}"#,
            "0/0 pairs counting",
        ),
        (
            r#"{"phase":"blocked","blocked-by":"no answer of b:1","moved":3,"total":9}"#,
            "3/9 pairs blocked by no answer of b:1",
        ),
        (
            r#"{"phase":"moving","moved":3,"total":9,"piece":{"number":2,"of":12,"attempt":1,"pairs":4,"from":"1",
                "to":"3"},"waits-for":{"order":"copy","node":"b:1","seconds":4.25}}"#,
            "3/9 pairs moving, piece 2 of 12 from shard 1 to shard 3 (4 pairs), waiting for 4.2 s for b:1 (copy)",
        ),
        (
            r#"{"phase":"blocked","blocked-by":"b:1 is down","piece":{"number":1,"of":1,"attempt":7,"pairs":4,
                "from":"1","to":"2","of-a-newer-node":true}}"#,
            "blocked by b:1 is down, piece 1 of 1 from shard 1 to shard 2 (4 pairs), attempt 7",
        ),
        (r#"{"phase":"hovering","moved":3,"total":9}"#, "3/9 pairs hovering"),
    ] {
        assert_eq!(line(&serde_json::from_str(status).unwrap()), expected);
    }
}

#[test]
fn a_receipt_is_two_tables_and_a_third_where_something_was_given_up() {
    let receipt = r#"{"shards":[{"shard-id":"1","key-count":51,"key-count-at-cut":50,"replicas":["a:1","b:1"]}],
        "change-id":"c1","epoch":4,"keys":50,"moved":0,"minimum":0,"copied":50,"created-meanwhile":1,
        "deleted-meanwhile":0,"hold-ms":3.25,"checksums-match":true,
        "given-up":[{"shard-id":"2","replicas":["c:1"],"key-count":null}],
        "limits":{"max-key-length":1024,"max-value-length":9000000}}"#;
    let expected = "shard  keys  at the cut  nodes\n1      51    50          a:1 b:1\n\n\
        given up  keys     nodes\n2         unknown  c:1\n\n\
        change             c1\nepoch              4\nkeys               50\nmoved              0\n\
        minimum            0\ncopied             50\ncreated meanwhile  1\ndeleted meanwhile  0\n\
        longest hold       3.2 ms\nchecksums          match\n\
        longest key        1024\nlongest value      9000000";
    assert_eq!(serde_json::from_str::<Receipt>(receipt).unwrap().rendered(), expected);
}

#[test]
fn a_plan_shows_its_moves() {
    let plan = r#"{"message":"View change planned","epoch":3,"keys":90,"moved":30,"minimum":30,"copied":30,
        "shards":[{"shard-id":"1","key-count":90,"key-count-planned":60,"replicas":["a:1"]},
        {"shard-id":"2","key-count":null,"key-count-planned":30,"replicas":["b:1"]}],
        "moves":[{"from":"1","to":"2","pairs":30,"ranges":1}]}"#;
    let expected = "shard  keys  planned  nodes\n1      90    60       a:1\n2      new   30       b:1\n\n\
        from  to  pairs  ranges\n1     2   30     1\n\n\
        epoch    3\nkeys     90\nto move  30\nminimum  30\nto copy  30";
    assert_eq!(serde_json::from_str::<Plan>(plan).unwrap().rendered(), expected);
}

#[test]
fn the_request_says_what_was_asked_for() {
    use super::super::tests::at;
    const PUT: &str = "PUT /kv-store/view-change";
    const DELETE: &str = "DELETE /kv-store/view-change";
    let plan = r#"{"epoch":3,"keys":0,"moved":0,"minimum":0,"copied":0,"shards":[],"moves":[]}"#;
    let accepted = r#"{"message":"View change accepted","change-id":"c1"}"#;
    let running = r#"{"error":"View change c1 is running","message":"Error in PUT","change-id":"c1"}"#;
    let cancelled = r#"{"message":"View change cancelled","change-id":"c1"}"#;
    let refused = r#"{"error":"No view change is running","message":"Error in DELETE"}"#;
    let node = FakeNode::start();
    let address = node.address();
    node.with(|state| {
        state.script(PUT, &[(200, plan), (202, accepted), (202, accepted), (409, running)]);
        state.script(GET, &[(200, MOVING), (200, FINISHED), (200, r#"{"phase":"failed","change-id":"c1"}"#)]);
        state.script(DELETE, &[(200, cancelled), (404, refused)]);
    });
    let full =
        ["view-change", "a:1,B", "--repl-factor", "2", "--accept-loss", "2,3", "--max-value-length", "9"];
    for (words, expected) in [
        (&["view-change", "a:1,B", "--dry-run"][..], 0),
        (&full, 0),
        (&["view-change", "a:1"], 1),
        (&["view-change", "a:1"], 3),
        (&["view-change", "--status"], 1),
        (&["view-change", "--cancel"], 0),
        (&["view-change", "--cancel"], 3),
    ] {
        assert_eq!(at(&address, words), expected, "{words:?}");
    }
    node.with(|state| {
        let sent = |number: usize| {
            let asked = state.scripted.iter().filter(|asked| asked.line == PUT).nth(number).unwrap();
            let prefer = asked.headers.iter().find(|header| header.field.equiv("Prefer"));
            (asked.body.as_str(), prefer.map(|header| header.value.as_str()))
        };
        assert_eq!(sent(0), (r#"{"view":["a:1","b:13800"],"dry-run":true}"#, None));
        let whole = r#"{"view":["a:1","b:13800"],"repl-factor":2,"limits":{"max-value-length":9},"accept-loss":["2","3"]}"#;
        assert_eq!(sent(1), (whole, Some("respond-async")));
        assert_eq!(sent(2), (r#"{"view":["a:1"]}"#, Some("respond-async")));
    });
}
