//! Clients that put, get and delete through any node, several at once the same key, and ask again under the same request id where they do
//! not learn what came of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::oracle::{Began, number_in};
use super::tasks::{at, pause, pause_for};
use super::world::{World, place_of};
use crate::clock::{Deadline, now};
use crate::error::{Applied, Error};
use crate::model::shard::{Done, Operation, RequestId, WriteOutcome};
use crate::node::group_ops::LogAnswer;
use crate::node::keys::{Outcome, Request as Asking, Told};
use crate::node::state::Node;

/// A node has so much time to do what a client asks.
const REQUEST: Duration = Duration::from_millis(2_500);
/// A client waits a little longer, in steps.
const PATIENCE: u64 = 300;
/// A client asks again so often.
const ATTEMPTS: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Put(u64),
    Delete,
}

#[derive(Debug, Clone)]
struct Request {
    key: Rc<[u8]>,
    kind: Kind,
    /// Where the client has named it.
    name: Option<RequestId>,
}

/// What came of a request that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Read(Option<u64>),
    Written(WriteOutcome),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done(Answer),
    NotDone,
    Unknown,
}

/// One client.
pub(super) async fn use_keys(world: Shared) {
    while world.harm.get() {
        pause_for(world.draw(1..30)).await;
        world.busy.set(world.busy.get() + 1);
        use_key(&world).await;
        world.busy.set(world.busy.get() - 1);
    }
}

async fn use_key(world: &Shared) {
    let key: Rc<[u8]> = world.keys[world.draw(0..world.keys.len())].as_slice().into();
    let number = world.number();
    let kind = [Kind::Get, Kind::Get, Kind::Put(number), Kind::Put(number), Kind::Delete][world.draw(0..5)];
    let is_named = world.chance(60);
    let name = is_named.then(|| RequestId::from(number));
    let request = Request { key: Rc::clone(&key), kind, name };
    let began = world.oracle.borrow().floor(&key);
    let (mut end, mut id) = (End::NotDone, name);
    for attempt in 1.. {
        let place = world.draw(0..world.nodes.len());
        let Some(node) = world.serving(place) else { break };
        let got = at(world, place, PATIENCE, run(Rc::clone(world), node, request.clone())).await;
        // It has become a cluster of its own meanwhile, cut off from the other.
        let Some(got) = got.map_or(Some(None), |got| got.map(Some)) else {
            end = End::Unknown;
            break;
        };
        match (got, end) {
            (Some((End::Done(answer), of)), _) => (end, id) = (End::Done(answer), of),
            (Some((End::NotDone, of)), before) => {
                // Without a name it has another id the next time.
                if let (None, Some(of)) = (name, of) {
                    world.judge(world.oracle.borrow_mut().refused(of));
                }
                end = before;
            }
            _ => end = End::Unknown,
        }
        let is_over = matches!(end, End::Done(_)) || attempt == ATTEMPTS;
        if is_over || (name.is_none() && end == End::Unknown) || world.chance(10) {
            break;
        }
        world.count(|tally| tally.retried += 1);
    }
    note(world, &request, id, end, began);
}

impl World {
    /// A node, if it serves the cluster, or will: one that is a cluster of its own is another matter to a client.
    fn serving(&self, place: usize) -> Option<Arc<Node>> {
        self.newest()?;
        self.nodes[place].node().filter(|node| self.is_ours(node))
    }
}

/// Compares the end of a request with what the oracle knows.
fn note(world: &Shared, request: &Request, id: Option<RequestId>, end: End, began: Began) {
    world.trace(format!("{request:?} {id:?} {end:?}"));
    let mut oracle = world.oracle.borrow_mut();
    let verdict = match (request.kind, end) {
        (Kind::Get, End::Done(Answer::Read(got))) => oracle.read(&request.key, got, began),
        (Kind::Get, End::NotDone | End::Unknown) | (_, End::Unknown) => Ok(()),
        (_, End::Done(Answer::Written(outcome))) => {
            oracle.acknowledged(id.expect("what was done has an id"), outcome, began)
        }
        (_, End::NotDone) => id.map_or(Ok(()), |id| oracle.refused(id)),
        other => Err(format!("a request came to {other:?}")),
    };
    drop(oracle);
    world.judge(verdict.map_err(|fault| format!("{request:?}: {fault}")));
    world.count(|tally| match (request.kind, end) {
        (_, End::Unknown) => tally.unknown += 1,
        (_, End::NotDone) => tally.refused += 1,
        (Kind::Get, _) => tally.reads += 1,
        _ => tally.writes += 1,
    });
}

/// What a node does with a request, and under which id: it asks the log of its own shard first, as the server does, or leaves all of it to the
/// node. Nothing where the node is none of the cluster.
async fn run(world: Shared, node: Arc<Node>, request: Request) -> Option<(End, Option<RequestId>)> {
    let deadline = Deadline::after(now(), REQUEST);
    let text = match request.kind {
        Kind::Put(value) => value.to_string().into_bytes(),
        Kind::Get | Kind::Delete => Vec::new(),
    };
    let operation = match request.kind {
        Kind::Get => Operation::Get,
        Kind::Put(_) => Operation::Put(&text),
        Kind::Delete => Operation::Delete,
    };
    let mut told = None;
    if world.chance(50)
        && let Some(asking) = node.asking(&request.key, operation, (request.name, None), deadline)
    {
        let slot = Arc::new(parking_lot::Mutex::new(None::<LogAnswer>));
        let answer = Arc::clone(&slot);
        node.ask_and(asking, move |heard| *answer.lock() = Some(heard));
        while slot.lock().is_none() {
            pause().await;
        }
        told = slot.lock().take().filter(|told| !told.is_elsewhere());
    }
    let mut asking = Asking::new(&request.key, operation, request.name, deadline);
    let (place, since) = (place_of(&node.address), world.now.get());
    let end = match node.run(&mut asking, told.map(Told::Log)).await {
        // Where it had none it was done here and now, by the node alone, and nothing else has been since.
        Ok(outcome) => (End::Done(answer_of(&outcome)), asking.id().or_else(|| world.without_id.take())),
        Err(error) => (not_done(&error), asking.id()),
    };
    (world.is_ours(&node) && world.nodes[place].apart.get() < since.saturating_sub(1)).then_some(end)
}

fn not_done(error: &Error) -> End {
    match error.applied() {
        Applied::No => End::NotDone,
        _ => End::Unknown,
    }
}

fn answer_of(outcome: &Outcome) -> Answer {
    match &outcome.done {
        Done::Wrote(outcome) => Answer::Written(*outcome),
        Done::Read(value) => Answer::Read(value.as_ref().map(|value| number_in(value.as_bytes()))),
    }
}
