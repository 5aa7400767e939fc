//! Clients that put, get and delete through any node, several at once the same key, and ask again under the same request id where they do
//! not learn what came of it.

mod batches;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::oracle::{Began, Oracle, number_in, value_of};
use super::tasks::{at, pause, pause_for};
use super::world::{World, place_of};
use crate::clock::{Deadline, now};
use crate::error::{Applied, Error};
use crate::model::condition::{Condition, Judgement, Versions};
use crate::model::shard::{Done, Operation, RequestId, Unread, Written};
use crate::model::ttl::Ttl;
use crate::node::group_ops::LogAnswer;
use crate::node::keys::{Outcome, Request as Asking, Told};
use crate::node::state::Node;

/// A node has so much time to do what a client asks.
const REQUEST: Duration = Duration::from_millis(2_500);
/// A client waits a little longer, in steps.
pub(super) const PATIENCE: u64 = 300;
/// A client asks again so often.
const ATTEMPTS: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Put(u64, Option<Ttl>),
    Delete,
    Touch(Option<Ttl>),
}

#[derive(Debug, Clone)]
struct Request {
    key: Rc<[u8]>,
    kind: Kind,
    /// What has to be there.
    condition: Option<Condition>,
    /// Where the client has named it.
    name: Option<RequestId>,
}

/// What came of a request that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The value and its version.
    Read(Option<(u64, u64)>),
    /// The version of what is there.
    Unread(Unread, u64),
    Written(Written),
}

impl Answer {
    /// The version of what is there, as the client is told it.
    fn version(self) -> Option<u64> {
        match self {
            Self::Read(got) => got.map(|(_, version)| version),
            Self::Unread(_, version) => Some(version),
            Self::Written(written) => written.there(),
        }
    }
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
    // The version that the client was told last of each key.
    let mut seen = HashMap::new();
    while world.harm.get() {
        pause_for(world.draw(1..30)).await;
        world.busy.set(world.busy.get() + 1);
        if world.chance(20) {
            batches::use_batch(&world, &mut seen).await;
        } else {
            use_key(&world, &mut seen).await;
        }
        world.busy.set(world.busy.get() - 1);
    }
}

/// What a client asks to be there: often what it has seen, or nothing at all, sometimes what others may have written over since.
fn condition(world: &Shared, seen: Option<u64>) -> Option<Condition> {
    let these = |version: Option<u64>| Versions::These(version.into_iter().collect());
    let (if_match, if_none_match) = match world.draw(0..10) {
        0..=2 => (Some(these(seen)), None),
        3 => (None, Some(these(seen))),
        4 => (None, Some(Versions::Any)),
        5 => (Some(Versions::Any), None),
        _ => return None,
    };
    Some(Condition { if_match, if_none_match })
}

/// What a client asks next, and what is known of the key before.
fn draw_request(world: &Shared, seen: &HashMap<Rc<[u8]>, u64>, is_named: bool) -> (Request, Began) {
    let key: Rc<[u8]> = world.keys[world.draw(0..world.keys.len())].as_slice().into();
    let number = world.number();
    let ttl = world.chance(40).then(|| Ttl::from_ms(world.draw(200..6_000))).flatten();
    let put = Kind::Put(number, ttl);
    let (get, touch) = (Kind::Get, Kind::Touch(ttl));
    let kind = [get, get, get, get, put, put, put, put, Kind::Delete, Kind::Delete, touch][world.draw(0..11)];
    let name = is_named.then(|| RequestId::from(number));
    let condition = condition(world, seen.get(&key).copied());
    let began = world.oracle.borrow().floor(&key);
    if let Some(name) = name {
        world.oracle.borrow_mut().asks(name);
    }
    (Request { key, kind, condition, name }, began)
}

async fn use_key(world: &Shared, seen: &mut HashMap<Rc<[u8]>, u64>) {
    let (request, began) = draw_request(world, seen, world.chance(60));
    let (name, key) = (request.name, Rc::clone(&request.key));
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
    if let End::Done(answer) = end {
        match answer.version() {
            Some(version) => seen.insert(key, version),
            None => seen.remove(&key),
        };
    }
    note(world, &request, id, end, began);
}

impl World {
    /// A node, if it serves the cluster, or will: one that is a cluster of its own is another matter to a client.
    pub(super) fn serving(&self, place: usize) -> Option<Arc<Node>> {
        self.newest()?;
        self.nodes[place].node().filter(|node| self.is_ours(node))
    }
}

/// Compares what a listing told of a key, which began then, with what the oracle knows.
pub(super) fn note_listed(world: &Shared, key: &[u8], there: Option<(u64, u64)>, began: Began) {
    let request = Request { key: key.into(), kind: Kind::Get, condition: None, name: None };
    note(world, &request, None, End::Done(Answer::Read(there)), began);
}

/// Compares the end of a request with what the oracle knows.
fn note(world: &Shared, request: &Request, id: Option<RequestId>, end: End, began: Began) {
    world.trace(format!("{request:?} {id:?} {end:?}"));
    let mut oracle = world.oracle.borrow_mut();
    let verdict = match (request.kind, end) {
        (Kind::Get, End::Done(answer @ (Answer::Read(_) | Answer::Unread(..)))) => {
            note_read(&mut oracle, request, answer, began)
        }
        (Kind::Get, End::NotDone | End::Unknown) | (_, End::Unknown) => Ok(()),
        (_, End::Done(Answer::Written(written))) => {
            oracle.acknowledged(id.expect("what was done has an id"), written, began)
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

/// What a client was told of a key is what its condition allows, and the version what it stands for everywhere.
fn note_read(oracle: &mut Oracle, request: &Request, answer: Answer, began: Began) -> Result<(), String> {
    let there = answer.version();
    let judged = match (&request.condition, there) {
        (Some(condition), Some(_)) => condition.judge(there),
        _ => Judgement::Holds,
    };
    let got = match (answer, judged) {
        (Answer::Read(None), _) => None,
        (Answer::Read(Some((value, version))), Judgement::Holds) => {
            oracle.names(&request.key, version, value)?;
            Some(value)
        }
        (Answer::Unread(Unread::Unmet, version), Judgement::NotThere)
        | (Answer::Unread(Unread::Unchanged, version), Judgement::There) => {
            let value = oracle.value_of(&request.key, version);
            Some(value.ok_or_else(|| format!("nobody has ever seen version {version}"))?)
        }
        _ => return Err(format!("{answer:?} where that is {judged:?}")),
    };
    oracle.read(&request.key, got, began)
}

/// What a node does with a request, and under which id: it asks the log of its own shard first, as the server does, or leaves all of it to the
/// node. Nothing where the node is none of the cluster.
async fn run(world: Shared, node: Arc<Node>, request: Request) -> Option<(End, Option<RequestId>)> {
    let deadline = Deadline::after(now(), REQUEST);
    let text = match request.kind {
        Kind::Put(number, _) => value_of(number),
        Kind::Get | Kind::Delete | Kind::Touch(_) => Vec::new(),
    };
    let operation = match request.kind {
        Kind::Get => Operation::GET,
        Kind::Put(_, ttl) => Operation::put(&text).living(ttl),
        Kind::Delete => Operation::DELETE,
        Kind::Touch(ttl) => Operation::TOUCH.living(ttl),
    };
    let operation = operation.under(request.condition.as_ref());
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
        Err(error) => {
            if let Error::NoRoom(_) = error {
                world.count(|tally| tally.no_room += 1);
            }
            (not_done(&error), asking.id())
        }
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
        Done::Wrote(written) => Answer::Written(*written),
        Done::Read(value) => {
            Answer::Read(value.as_ref().map(|value| {
                (number_in(value.as_bytes()), value.version().expect("all nodes tell versions"))
            }))
        }
        Done::Unread(unread, version) => Answer::Unread(*unread, *version),
    }
}
