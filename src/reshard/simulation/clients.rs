//! Clients that put, get and delete through any node, and what they then may and may not read.
//!
//! Of each key there is one request at a time, so it is a register: what was acknowledged last is read next. A write of
//! which the end was never learned may have been done, once, or be done at any later time.

use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;

use super::Shared;
use super::tasks::{call, pause};
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, Forwarded, Operation, Refused, RequestId};

/// A node asks another one for so many turns.
const TURNS: u64 = 30;
/// A client gives up after so many rounds.
const ROUNDS: usize = 40;

/// What is known of a key.
#[derive(Default)]
pub(super) struct Register {
    /// What was acknowledged last.
    pub(super) value: Option<u64>,
    /// The writes of which the end is not known: the value, or nothing for a delete.
    pub(super) unknown: Vec<Option<u64>>,
    is_busy: bool,
}

impl Register {
    /// Whether this may be read now. What was read is then the last that was acknowledged.
    pub(super) fn read(&mut self, got: Option<u64>) -> bool {
        if got == self.value {
            return true;
        }
        let Some(at) = self.unknown.iter().position(|unknown| *unknown == got) else { return false };
        self.unknown.remove(at);
        self.value = got;
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Get,
    Put(u64),
    Delete,
}

/// What came of a request that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Added,
    Updated,
    Deleted,
    Absent,
    Found(u64),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done(Answer),
    NotDone,
    Unknown,
}

/// What came of asking once, as in `node::keys`.
enum Asked {
    Done(Answer),
    Again,
    Unclear,
    Lost,
}

/// One client.
pub(super) async fn use_keys(world: Shared) {
    while world.harm.get() {
        pause().await;
        let key = some_key(&world);
        let node = world.some_node();
        let is_served = world.nodes[&node].known.borrow().is_some();
        if !is_served || set_busy(&world, &key, true) {
            continue;
        }
        let request = some_request(&world);
        let end = run(&world, &node, &key, request).await;
        note(&world, &key, request, end);
        set_busy(&world, &key, false);
    }
}

/// Whether a key was busy before.
fn set_busy(world: &Shared, key: &[u8], is_busy: bool) -> bool {
    let mut registers = world.registers.borrow_mut();
    std::mem::replace(&mut registers.get_mut(key).expect("it is there").is_busy, is_busy)
}

/// Whether a client waits for an answer.
pub(super) fn any_busy(world: &Shared) -> bool {
    world.registers.borrow().values().any(|register| register.is_busy)
}

fn some_key(world: &Shared) -> Vec<u8> {
    let registers = world.registers.borrow();
    let chosen = world.draw(0..registers.len());
    registers.keys().nth(chosen).expect("it is there").clone()
}

fn some_request(world: &Shared) -> Request {
    match world.draw(0..6) {
        0 | 1 => Request::Get,
        2 => Request::Delete,
        _ => Request::Put(world.number()),
    }
}

/// A write between two questions of a census, by whatever shard takes it.
pub(super) fn write_at_once(world: &Shared) {
    if !world.harmed(50) {
        return;
    }
    let (key, request) = (some_key(world), some_request(world));
    if world.registers.borrow()[&key].is_busy {
        return;
    }
    let shards: Vec<_> = world.nodes.values().filter_map(super::nodes::Node::shard).collect();
    for shard in shards {
        if let Ok(answer) = do_at(world, &shard, &key, request, None) {
            return note(world, &key, request, End::Done(answer));
        }
    }
}

fn do_at(
    world: &Shared,
    shard: &crate::model::shard::Shard,
    key: &[u8],
    request: Request,
    forwarded: Option<Forwarded>,
) -> Result<Answer, Refused> {
    let text;
    let operation = match request {
        Request::Get => Operation::Get,
        Request::Put(value) => {
            text = value.to_string();
            Operation::Put(text.as_bytes())
        }
        Request::Delete => Operation::Delete,
    };
    shard.run(world.hash_key.hash(key), key, operation, forwarded).map(|done| match done {
        Done::Added => Answer::Added,
        Done::Updated => Answer::Updated,
        Done::Deleted => Answer::Deleted,
        Done::Absent => Answer::Absent,
        Done::Found(held) => Answer::Found(number_in(held.value())),
    })
}

/// The number that a value is.
pub(super) fn number_in(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("only numbers are put")
}

/// Does what a client asks of a node, as `Node::run` does.
async fn run(world: &Shared, node: &Address, key: &[u8], request: Request) -> End {
    let id = RequestId::from(world.number());
    let mut is_unclear = false;
    let given_up = |is_unclear| if is_unclear { End::Unknown } else { End::NotDone };
    for round in 0..ROUNDS {
        if round > 0 {
            world.count(|tally| tally.retried += 1);
        }
        let state = world.nodes[node].known.borrow().clone().expect("it serves");
        match ask_owner(world, node, &state, (key, request, id), is_unclear).await {
            Asked::Done(answer) => return End::Done(answer),
            Asked::Again => {}
            Asked::Unclear if !is_unclear => is_unclear = true,
            Asked::Unclear => return End::Unknown,
            Asked::Lost => {
                let known = world.nodes[node].known.borrow();
                if known.as_ref().is_none_or(|known| known.version == state.version) {
                    return given_up(is_unclear);
                }
            }
        }
        for _ in 0..world.draw(1..10) {
            pause().await;
        }
    }
    given_up(is_unclear)
}

async fn ask_owner(
    world: &Shared,
    node: &Address,
    state: &Arc<MetaState>,
    (key, request, id): (&[u8], Request, RequestId),
    is_unclear: bool,
) -> Asked {
    let owner = state.view.owner(world.hash_key.hash(key), key);
    let owner = &state.view.shards[owner];
    let forwarded = Forwarded { request: id, epoch: state.view.epoch, now_ms: 1 };
    if let Some(own) = world.nodes[node].shard_of(owner.group) {
        let again = is_unclear.then_some(forwarded);
        return do_at(world, &own, key, request, again).map_or(Asked::Again, Asked::Done);
    }
    if owner.replicas[0] == *node {
        return Asked::Lost;
    }
    let (there, owner, key) = (Rc::clone(world), owner.replicas[0].clone(), key.to_vec());
    let answer = call(world, TURNS, move || {
        let shard = there.nodes[&owner].shard().ok_or(Refused::NotOwned);
        ready(shard.and_then(|shard| do_at(&there, &shard, &key, request, Some(forwarded))))
    });
    match answer.await {
        Some(Ok(answer)) => Asked::Done(answer),
        Some(Err(_)) => Asked::Again,
        None => Asked::Unclear,
    }
}

/// Compares the end of a request with what is known of the key.
fn note(world: &Shared, key: &[u8], request: Request, end: End) {
    let mut registers = world.registers.borrow_mut();
    let register = registers.get_mut(key).expect("it is there");
    let (known, unknown) = (register.value, register.unknown.clone());
    let is_sure = unknown.is_empty();
    let fits = match (request, end) {
        (_, End::NotDone) | (Request::Get, End::Unknown) => true,
        (Request::Get, End::Done(Answer::Found(value))) => register.read(Some(value)),
        (Request::Get, End::Done(answer)) => answer == Answer::Absent && register.read(None),
        (Request::Put(value), End::Done(answer)) => {
            let was_there = known.is_some();
            register.value = Some(value);
            !is_sure || answer == if was_there { Answer::Updated } else { Answer::Added }
        }
        (Request::Delete, End::Done(answer)) => {
            let was_there = known.is_some();
            register.value = None;
            !is_sure || answer == if was_there { Answer::Deleted } else { Answer::Absent }
        }
        (Request::Put(value), End::Unknown) => {
            register.unknown.push(Some(value));
            true
        }
        (Request::Delete, End::Unknown) => {
            register.unknown.push(None);
            true
        }
    };
    drop(registers);
    if !fits {
        world.accuse(format!(
            "{request:?} of {key:?} came to {end:?}; acknowledged was {known:?}, unknown are {unknown:?}"
        ));
    }
    world.count(|tally| match (request, end) {
        (_, End::Unknown) => tally.unknown += 1,
        (Request::Get, End::Done(_)) => tally.reads += 1,
        (_, End::Done(_)) => tally.writes += 1,
        (_, End::NotDone) => {}
    });
}
