//! A node by itself: what it learns, which replicas it holds, and under which id it passes a write on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::fake::{Fake, GROUP, address, started, state};
use super::host;
use super::keys::{NotServed, Operation, Outcome, Reply, Request};
use super::raft::Invitation;
use super::state::Node;
use crate::clock::{Deadline, now};
use crate::model::condition::TagSpace;
use crate::model::shard::{Done, RequestId, WriteOutcome, Written};
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};

/// Whether the node founds the group, its nodes, who the state says has founded it where the node's own start is this, and when that is so.
type Founding = (bool, &'static [u64], fn(u64) -> (u64, u64), &'static str);

#[test]
fn a_group_is_founded_by_the_starts_that_are_named_and_are_of_its_nodes() {
    let own = |node: &Node| node.incarnation;
    let rows: [Founding; 4] = [
        (true, &[1, 2], |own| (1, own), "this start founds it"),
        (false, &[1, 2], |own| (1, own ^ 1), "an earlier start has founded it, and has lost it"),
        (false, &[1, 2], |_| (2, 7), "another node has"),
        (false, &[2], |own| (1, own), "it has founded it long ago and is none of its nodes any more"),
    ];
    for (founds, replicas, founder, what) in rows {
        let node = started(Fake::default());
        node.learn(&state(1, replicas, &[founder(own(&node))])).unwrap();
        assert_eq!(node.shard_of(GROUP).is_some(), founds, "{what}");
    }
}

#[test]
fn who_has_been_a_member_of_a_group_never_founds_it() {
    let node = started(Fake::default());
    node.learn(&state(1, &[2, 1], &[(2, 7)])).unwrap();
    assert!(node.shard_of(GROUP).is_none());
    node.join_shard(GROUP, Invitation { term: 1, members: &[7], index: 1 }).unwrap();
    assert!(node.shard_of(GROUP).is_some());
    // It was the only member for a while, so that the state names it, and was taken out again.
    node.learn(&state(2, &[2], &[(1, node.incarnation)])).unwrap();
    node.leave_shard(GROUP);
    node.learn(&state(3, &[2, 1], &[(1, node.incarnation)])).unwrap();
    assert!(node.shard_of(GROUP).is_none(), "it would begin with nothing");
}

#[test]
fn a_node_that_was_given_up_keeps_its_shard_no_longer() {
    let node = started(Fake::default());
    node.learn(&state(1, &[1], &[(1, node.incarnation)])).unwrap();
    assert!(node.shard_of(GROUP).is_some_and(|shard| !shard.is_logged()));
    node.learn(&state(2, &[2], &[(2, 7)])).unwrap();
    assert!(node.shard_of(GROUP).is_none());
}

#[test]
fn a_log_that_ends_against_the_news_is_begun_again() {
    let node = started(Fake::default());
    node.learn(&state(1, &[1], &[(1, node.incarnation)])).unwrap();
    let shard = node.shard_of(GROUP).unwrap();
    let end = |version: u64, replicas: &[u64]| {
        node.learn(&state(version, replicas, &[(1, node.incarnation)])).unwrap();
        host::run(node.end_log(&shard));
        (shard.is_logged(), shard.version())
    };
    assert_eq!(end(2, &[1, 2]), (true, 2), "several replicas are wanted, as it was told meanwhile");
    assert_eq!(end(3, &[1]), (false, 3), "it keeps the shard alone");
}

#[test]
fn an_older_state_does_not_take_the_place_of_a_newer_one() {
    let node = started(Fake::default());
    for (version, replicas, known) in [(2, [1, 2], 2), (1, [1, 3], 2), (3, [1, 4], 3)] {
        node.learn(&state(version, &replicas, &[(1, node.incarnation)])).unwrap();
        assert_eq!(node.state().map(|state| state.version), Some(known));
    }
}

#[test]
fn a_write_that_may_have_been_done_is_asked_for_under_the_same_id_until_it_is_answered() {
    let unclear = || Err(NoAnswer { kind: NoAnswerKind::Late, reason: "too late".to_owned() });
    let again = || Ok(Err(NotServed::Again));
    for (answers, keeps_its_id, what) in [
        (vec![unclear(), again()], true, "the first one may have done it, whatever the second says"),
        (vec![again()], false, "nobody has done it"),
    ] {
        let written = Written { outcome: WriteOutcome::Updated, version: 1 };
        let done = Outcome::new(Done::Wrote(written), TagSpace::of("c"));
        let answers: VecDeque<Result<Reply, NoAnswer>> = answers.into_iter().chain([Ok(Ok(done))]).collect();
        let (answers, asked) = (Mutex::new(answers), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&asked);
        let key = move |request: &Request| {
            noted.lock().push(request.id());
            answers.lock().pop_front().expect("it is not asked again")
        };
        let node = started(Fake { key: Box::new(key), ..Fake::default() });
        let mut known = (*state(1, &[2, 3], &[(2, 7), (3, 8)])).clone();
        known.starts.insert(address(1), node.incarnation);
        node.learn(&Arc::new(known)).unwrap();
        let deadline = Deadline::after(now(), Duration::from_mins(1));
        let mut request = Request::new(b"k", Operation::put(b"1"), None, deadline);
        assert!(host::run(node.run(&mut request, None)).is_ok(), "{what}");
        let asked = asked.lock();
        assert!(matches!(asked[0], Some(RequestId::Numbered { .. })), "{what}");
        assert_eq!(asked.iter().all(|id| *id == asked[0]), keeps_its_id, "{what}");
    }
}
