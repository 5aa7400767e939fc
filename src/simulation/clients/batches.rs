//! Clients that send several requests at once. What comes of each is judged as if it had been sent alone, and those on one key have to come in their order.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::super::Shared;
use super::super::oracle::{Began, value_of};
use super::super::tasks::at;
use super::super::world::place_of;
use super::{
    ATTEMPTS, Answer, End, Kind, PATIENCE, REQUEST, Request, answer_of, draw_request, not_done, note,
};
use crate::clock::{Deadline, now};
use crate::model::shard::RequestId;
use crate::model::ttl::Ttl;
use crate::node::batch::{Batch, Item, ItemAction};
use crate::node::state::Node;

/// One request of a batch, and how it has ended so far.
struct Tried {
    request: Request,
    began: Began,
    id: Option<RequestId>,
    end: End,
    is_open: bool,
}

/// Sends a batch, and again what was not done of it, or may not have been.
pub(super) async fn use_batch(world: &Shared, seen: &mut HashMap<Rc<[u8]>, u64>) {
    let is_named = world.chance(60);
    let draw = |_| {
        let (request, began) = draw_request(world, seen, is_named);
        Tried { id: request.name, request, began, end: End::NotDone, is_open: true }
    };
    let mut all: Vec<Tried> = (0..world.draw(2..8)).map(draw).collect();
    for attempt in 1.. {
        let place = world.draw(0..world.nodes.len());
        let Some(node) = world.serving(place) else { break };
        let open = all.iter().filter(|one| one.is_open).map(|one| one.request.clone()).collect();
        let got = at(world, place, PATIENCE, run(Rc::clone(world), node, open)).await.flatten();
        take_in(world, &mut all, got.as_deref());
        if attempt == ATTEMPTS || all.iter().all(|one| !one.is_open) || world.chance(10) {
            break;
        }
        world.count(|tally| tally.retried += 1);
    }
    for Tried { request, began, id, end, .. } in all {
        if let End::Done(answer) = end {
            match answer.version() {
                Some(version) => seen.insert(Rc::clone(&request.key), version),
                None => seen.remove(&request.key),
            };
        }
        // What a node has done alone and nobody had named has no id that the client could know.
        if id.is_some() || !matches!(end, End::Done(Answer::Written(_))) {
            note(world, &request, id, end, began);
        }
    }
}

/// Takes in what came of those that were open.
fn take_in(world: &Shared, all: &mut [Tried], got: Option<&[(End, Option<RequestId>)]>) {
    // What was done in this attempt comes before what follows it on the same key.
    let mut done: HashMap<Rc<[u8]>, RequestId> = HashMap::new();
    let open = all.iter_mut().filter(|one| one.is_open);
    for (at, one) in open.enumerate() {
        let Some(got) = got else {
            one.end = End::Unknown;
            one.is_open = one.request.name.is_some();
            continue;
        };
        match got[at] {
            (End::Done(answer), id) => {
                // It may have been done before already, when there was no room for what comes before it.
                let may_be_older = world.is_tight && one.end == End::Unknown;
                (one.end, one.id, one.is_open) = (End::Done(answer), id, false);
                if let Some(before) = done.get(&one.request.key).filter(|_| !may_be_older) {
                    one.began = world.oracle.borrow().after(one.began, *before);
                }
                if let (Answer::Written(_), Some(id)) = (answer, id) {
                    done.insert(Rc::clone(&one.request.key), id);
                }
            }
            (End::NotDone, id) => {
                // Without a name it has another id the next time.
                if let (None, Some(id)) = (one.request.name, id) {
                    world.judge(world.oracle.borrow_mut().refused(id));
                }
            }
            (End::Unknown, _) => {
                one.end = End::Unknown;
                one.is_open = one.request.name.is_some();
            }
        }
    }
}

fn item_of(request: &Request) -> Item {
    let (action, ttl): (_, Option<Ttl>) = match request.kind {
        Kind::Get => (ItemAction::Get, None),
        Kind::Put(number, ttl) => (ItemAction::Put(Bytes::from(value_of(number))), ttl),
        Kind::Delete => (ItemAction::Delete, None),
        Kind::Touch(ttl) => (ItemAction::Touch, ttl),
    };
    let named = request.name.filter(|_| action != ItemAction::Get);
    Item {
        key: (*request.key).into(),
        action,
        condition: request.condition.clone().map(Box::new),
        ttl,
        named,
    }
}

/// What a node does with a batch, and under which ids. Nothing where the node is none of the cluster.
async fn run(
    world: Shared,
    node: Arc<Node>,
    requests: Vec<Request>,
) -> Option<Vec<(End, Option<RequestId>)>> {
    let (place, since) = (place_of(&node.address), world.now.get());
    let items = requests.iter().map(|request| Ok(item_of(request)));
    let mut batch = Batch::new(items, Deadline::after(now(), REQUEST));
    while !batch.has_ended() {
        node.advance(&mut batch).await;
    }
    let ids: Vec<_> = (0..requests.len()).map(|at| batch.id(at)).collect();
    let mut ends = Vec::new();
    while let Some((_, end)) = batch.take() {
        ends.push(end.map_or_else(|error| not_done(&error), |outcome| End::Done(answer_of(&outcome))));
    }
    let is_ours = world.is_ours(&node) && world.nodes[place].apart.get() < since.saturating_sub(1);
    is_ours.then(|| ends.into_iter().zip(ids).collect())
}
