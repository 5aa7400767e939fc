//! A node by itself: what it learns, which replicas it holds, and under which id it passes a write on.

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::ask::OrderError;
use super::calls::Calls;
use super::host::{self, Awaited, Host, Pending};
use super::keys::{NotServed, Operation, Outcome, Reply, Request};
use super::raft::{Invitation, Transport};
use super::state::Node;
use crate::clock::{Deadline, now};
use crate::config::Settings;
use crate::consensus::Envelope;
use crate::model::address::Address;
use crate::model::hash::HashKey;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, RequestId, WriteOutcome};
use crate::model::view::View;
use crate::peers::client::{NoAnswer, NoAnswerKind};
use crate::wire::orders::Order;
use crate::wire::pairs::Parcel;
use crate::wire::{Addressed, Hello, Transfer};

/// The group of the only shard.
const GROUP: u64 = 1;

fn address(number: u64) -> Address {
    format!("n{number}").parse().unwrap()
}

struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _: &Address, _: Envelope) {}
}

/// The node n1, whose thread that drives its groups runs, and which reaches nobody.
fn started(host: Arc<dyn Host>) -> Arc<Node> {
    let settings: Settings = [("ADDRESS", "n1"), ("VIEW", "n1,n2")].into_iter().collect();
    let (node, inbox) = Node::new(&settings.check().unwrap(), host);
    inbox.start(Box::new(Nowhere), Box::new(|| ())).unwrap();
    Arc::new(node)
}

/// A state by which these nodes hold the shard, and these starts have founded it.
fn state(version: u64, replicas: &[u64], founders: &[(u64, u64)]) -> Arc<MetaState> {
    let replicas: Vec<Address> = replicas.iter().map(|number| address(*number)).collect();
    let founders: BTreeMap<Address, u64> =
        founders.iter().map(|(number, start)| (address(*number), *start)).collect();
    let view = View::first(&replicas, replicas.len()).unwrap();
    let mut state = MetaState::first("c".to_owned(), 50, HashKey::PUBLISHED, view, &founders);
    (state.version, state.open) = (version, true);
    state.holders.insert(GROUP, founders);
    Arc::new(state)
}

#[test]
fn a_group_is_founded_by_the_starts_that_are_named_and_are_of_its_nodes() {
    let own = |node: &Node| node.incarnation;
    let rows: [(bool, &[u64], fn(u64) -> (u64, u64), &str); 4] = [
        (true, &[1, 2], |own| (1, own), "this start founds it"),
        (false, &[1, 2], |own| (1, own ^ 1), "an earlier start has founded it, and has lost it"),
        (false, &[1, 2], |_| (2, 7), "another node has"),
        (false, &[2], |own| (1, own), "it has founded it long ago and is none of its nodes any more"),
    ];
    for (founds, replicas, founder, what) in rows {
        let node = started(Arc::new(Calls));
        node.learn(&state(1, replicas, &[founder(own(&node))])).unwrap();
        assert_eq!(node.shard_of(GROUP).is_some(), founds, "{what}");
    }
}

#[test]
fn who_has_been_a_member_of_a_group_never_founds_it() {
    let node = started(Arc::new(Calls));
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
    let node = started(Arc::new(Calls));
    node.learn(&state(1, &[1], &[(1, node.incarnation)])).unwrap();
    assert!(node.shard_of(GROUP).is_some_and(|shard| !shard.is_logged()));
    node.learn(&state(2, &[2], &[(2, 7)])).unwrap();
    assert!(node.shard_of(GROUP).is_none());
}

#[test]
fn a_log_that_ends_against_the_news_is_begun_again() {
    let node = started(Arc::new(Calls));
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
    let node = started(Arc::new(Calls));
    for (version, replicas, known) in [(2, [1, 2], 2), (1, [1, 3], 2), (3, [1, 4], 3)] {
        node.learn(&state(version, &replicas, &[(1, node.incarnation)])).unwrap();
        assert_eq!(node.state().map(|state| state.version), Some(known));
    }
}

/// Answers what it is told to, one after the other, and notes under which ids it was asked.
struct Told {
    answers: Mutex<VecDeque<Result<Reply, NoAnswer>>>,
    asked: Mutex<Vec<Option<RequestId>>>,
}

impl Host for Told {
    fn wait<'a>(&'a self, _: &'a dyn Awaited, _: Deadline) -> Pending<'a, ()> {
        Box::pin(ready(()))
    }

    fn hello<'a>(&'a self, _: &'a Node, _: &'a Address) -> Pending<'a, Result<Hello, NoAnswer>> {
        unreachable!("only keys are asked for")
    }

    fn order<'a>(
        &'a self,
        _: &'a Node,
        _: (&'a Address, &'a Addressed),
        _: &'a Order,
        _: Deadline,
    ) -> Pending<'a, Result<Value, OrderError>> {
        unreachable!("only keys are asked for")
    }

    fn transfer<'a>(
        &'a self,
        _: &'a Node,
        _: (&'a Address, &'a Addressed),
        _: &'a Transfer,
        _: Deadline,
    ) -> Pending<'a, Result<Parcel, OrderError>> {
        unreachable!("only keys are asked for")
    }

    fn tell<'a>(
        &'a self,
        _: &'a Node,
        _: &'a Address,
        _: &'a Arc<MetaState>,
    ) -> Pending<'a, Result<Vec<u64>, String>> {
        unreachable!("only keys are asked for")
    }

    fn key<'a>(
        &'a self,
        _: &'a Node,
        _: (&'a Address, &'a Addressed),
        request: &'a Request<'a>,
    ) -> Pending<'a, Result<Reply, NoAnswer>> {
        self.asked.lock().push(request.id());
        Box::pin(ready(self.answers.lock().pop_front().expect("it is not asked again")))
    }

    fn greet(&self, _: &Arc<Node>, _: &Address) {}
}

#[test]
fn a_write_that_may_have_been_done_is_asked_for_under_the_same_id_until_it_is_answered() {
    let unclear = || Err(NoAnswer { kind: NoAnswerKind::Late, reason: "too late".to_owned() });
    let again = || Ok(Err(NotServed::Again));
    for (answers, keeps_its_id, what) in [
        (vec![unclear(), again()], true, "the first one may have done it, whatever the second says"),
        (vec![again()], false, "nobody has done it"),
    ] {
        let told = Arc::new(Told { answers: Mutex::new(answers.into()), asked: Mutex::default() });
        let done = Outcome { done: Done::Wrote(WriteOutcome::Updated), by: None, age: None };
        told.answers.lock().push_back(Ok(Ok(done)));
        let node = started(Arc::clone(&told) as Arc<dyn Host>);
        let mut known = (*state(1, &[2, 3], &[(2, 7), (3, 8)])).clone();
        known.starts.insert(address(1), node.incarnation);
        node.learn(&Arc::new(known)).unwrap();
        let deadline = Deadline::after(now(), Duration::from_mins(1));
        let mut request = Request::new(b"k", Operation::Put(b"1"), None, deadline);
        assert!(host::run(node.run(&mut request, None)).is_ok(), "{what}");
        let asked = told.asked.lock();
        assert!(matches!(asked[0], Some(RequestId::Numbered { .. })), "{what}");
        assert_eq!(asked.iter().all(|id| *id == asked[0]), keeps_its_id, "{what}");
    }
}
