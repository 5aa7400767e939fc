//! What the steps of a node need from outside: to wait, and to reach other nodes.
//!
//! Everything that a node does over several of these is an `async fn` over [`Host`]: the compiler makes the state machine of it that
//! goes on from each answer to the next question, and it has no socket, thread or clock of its own. The program drives
//! it by a host that blocks (`calls`), so that [`run`] polls once and no executor is needed; the simulation by one that suspends.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crossbeam_channel::{Receiver, Select};
use serde_json::Value;

use super::ask::OrderError;
use super::batch::{Part, Replies, ask_one_by_one};
use super::keys::{Reply, Request};
use super::state::Node;
use crate::clock::Deadline;
use crate::consensus::StateMachine;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, Operation, RequestId, Shard};
use crate::peers::no_answer::NoAnswer;
use crate::wire::listing::{Page, Question};
use crate::wire::orders::Order;
use crate::wire::pairs::Parcel;
use crate::wire::{Addressed, Hello, Transfer};

/// What will be there in the end.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// One of several steps, by its number.
pub type Step<'a> = dyn Fn(usize) -> Pending<'a, ()> + Sync + 'a;

/// Something that is waited for.
pub trait Awaited {
    /// Whether it is there.
    fn is_there(&self) -> bool;

    /// Blocks the thread until it is there, or the deadline is over.
    fn block(&self, deadline: Deadline);
}

/// How a node waits and reaches others. All of it ends by its deadline.
pub trait Host: Send + Sync {
    /// Waits until something is there, or the deadline is over.
    fn wait<'a>(&'a self, awaited: &'a dyn Awaited, deadline: Deadline) -> Pending<'a, ()>;

    /// Asks a node who it is.
    fn hello<'a>(&'a self, node: &'a Node, of: &'a Address) -> Pending<'a, Result<Hello, NoAnswer>>;

    /// Has another node carry out an order; the answer is in the form that the order names.
    fn order<'a>(
        &'a self,
        node: &'a Node,
        to: (&'a Address, &'a Addressed),
        order: &'a Order,
        deadline: Deadline,
    ) -> Pending<'a, Result<Value, OrderError>>;

    /// Has the source of a piece send something.
    fn transfer<'a>(
        &'a self,
        node: &'a Node,
        from: (&'a Address, &'a Addressed),
        transfer: &'a Transfer,
        deadline: Deadline,
    ) -> Pending<'a, Result<Parcel, OrderError>>;

    /// Has the leader of a shard tell a page of a listing.
    fn page<'a>(
        &'a self,
        node: &'a Node,
        to: (&'a Address, &'a Addressed),
        question: &'a Question,
        deadline: Deadline,
    ) -> Pending<'a, Result<Page, OrderError>>;

    /// Tells a node the news, also one that was down, and waits until it acts by them: the groups of the shards that it leads and that do.
    /// The error is a sentence.
    fn tell<'a>(
        &'a self,
        node: &'a Node,
        to: &'a Address,
        state: &'a Arc<MetaState>,
    ) -> Pending<'a, Result<Vec<u64>, String>>;

    /// Passes an operation on a key of a group on.
    fn key<'a>(
        &'a self,
        node: &'a Node,
        to: (&'a Address, &'a Addressed, u64),
        request: &'a Request<'a>,
    ) -> Pending<'a, Result<Reply, NoAnswer>>;

    /// Passes parts of a batch on, each to its node, as far as possible at the same time.
    fn parts<'a>(&'a self, node: &'a Node, parts: &'a [Part<'a>]) -> Pending<'a, Vec<Replies>> {
        Box::pin(async move {
            let mut replies = Vec::new();
            for part in parts {
                replies.push(ask_one_by_one(node, part).await);
            }
            replies
        })
    }

    /// Takes steps, by their numbers: those of a row one after the other, and the rows at the same time, as far as possible.
    fn each<'a>(&'a self, rows: &'a [Vec<usize>], step: &'a Step<'a>) -> Pending<'a, ()> {
        let in_turn = |row: &'a Vec<usize>| -> Pending<'a, ()> {
            Box::pin(async move {
                for number in row {
                    step(*number).await;
                }
            })
        };
        Box::pin(all(rows.iter().map(in_turn).collect()))
    }

    /// Has the connection made on which requests are passed on, without waiting for it.
    fn connect(&self, _: &Node, _to: &Address) {}

    /// Has [`greet`](super::transport::greet) done without waiting for it.
    fn greet(&self, node: &Arc<Node>, to: &Address);

    /// Sees the machine of a replica before it is driven: a simulation looks on.
    fn machine(&self, machine: Box<dyn StateMachine>, _of: Machine<'_>) -> Box<dyn StateMachine> {
        machine
    }

    /// Sees what was done to a shard that has no log.
    fn done(&self, _: &Shard, _key: &[u8], _: Operation, _: Option<RequestId>, _done: &Done) {}

    /// Sees which pairs of a shard that has no log have ended.
    fn ended(&self, _: &Shard, _keys: &[Box<[u8]>]) {}
}

/// Goes on with each whenever it is asked to, until all have ended.
async fn all(mut steps: Vec<Pending<'_, ()>>) {
    poll_fn(|context| {
        steps.retain_mut(|step| step.as_mut().poll(context).is_pending());
        if steps.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whose state a machine keeps.
pub enum Machine<'a> {
    /// The meta group's, by its number.
    Meta(u64),
    /// A shard's.
    Shard(&'a Arc<Shard>),
}

/// Runs a step whose host blocks, and so never suspends.
pub fn run<T>(step: impl Future<Output = T>) -> T {
    match pin!(step).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("the host of the program blocks"),
    }
}

/// A channel on which something is awaited, or that nobody sends on any more.
impl<T> Awaited for Receiver<T> {
    fn is_there(&self) -> bool {
        let mut select = Select::new();
        select.recv(self);
        select.try_ready().is_ok()
    }

    fn block(&self, deadline: Deadline) {
        let mut select = Select::new();
        select.recv(self);
        // That it was in vain is seen by whoever looks.
        let _ = select.ready_timeout(deadline.left());
    }
}
