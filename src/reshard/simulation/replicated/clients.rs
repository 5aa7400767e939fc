//! Clients that put, get and delete through any node, several at once the same key, and ask again under the same request id where they do
//! not learn what came of it. Nodes do what they ask as `node::keys` does.

use std::rc::Rc;
use std::sync::Arc;

use super::super::tasks::pause;
use super::group_ops::{Failed, confirm, is_wanted, order_once, propose};
use super::oracle::number_in;
use super::tasks::call_once;
use super::world::{address, place_of};
use super::{Missing, Shared};
use crate::model::meta::MetaState;
use crate::model::shard::{
    Done, Forwarded, Operation, Refused, RequestId, Shard, ShardOutcome, WriteOutcome, encode_write,
};

/// A node tries for so many steps to do what a client asks.
const DEADLINE: u64 = 120;
/// A client waits a little longer.
const CLIENT_TURNS: u64 = 150;
/// As long as a step is said to take: records of requests are forgotten after 2,500 of them, and a request takes fewer.
const STEP_MS: u64 = 20;
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
    id: RequestId,
    /// What was done is remembered by the id wherever it is done.
    is_named: bool,
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

/// What came of asking once.
enum Asked {
    Done(Answer),
    Again,
    /// It may have been done, by the only replica.
    Unclear,
    /// Another replica can be asked; whether this one may have done it.
    Elsewhere(bool),
    /// Nobody can be asked.
    Lost,
}

/// One client.
pub(super) async fn use_keys(world: Shared) {
    while world.harm.get() {
        for _ in 0..world.draw(1..14) {
            pause().await;
        }
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
    let request = Request { key: Rc::clone(&key), kind, id: RequestId::from(number), is_named };
    let began = world.oracle.borrow().floor(&key);
    let mut end = End::NotDone;
    for attempt in 1.. {
        let (there, asked) = (Rc::clone(world), request.clone());
        let node = world.draw(0..world.nodes.len());
        let work = move || run(Rc::clone(&there), node, asked.clone());
        let got = call_once(world, (world.nodes.len(), node), CLIENT_TURNS, work).await;
        match (got, end) {
            (Ok(End::Done(answer)), _) => end = End::Done(answer),
            (Ok(End::NotDone) | Err(super::tasks::Lost::NotSent), end_before) => end = end_before,
            _ => end = End::Unknown,
        }
        let is_over = matches!(end, End::Done(_)) || attempt == ATTEMPTS;
        if is_over || (!is_named && end == End::Unknown) || world.chance(10) {
            break;
        }
        world.count(|tally| tally.retried += 1);
    }
    note(world, &request, end, began);
}

/// Compares the end of a request with what the oracle knows.
fn note(world: &Shared, request: &Request, end: End, began: usize) {
    world.trace(format!("{request:?} {end:?}"));
    let mut oracle = world.oracle.borrow_mut();
    let verdict = match (request.kind, end) {
        (Kind::Get, End::Done(Answer::Read(got))) => oracle.read(&request.key, got, began),
        (Kind::Get, End::NotDone | End::Unknown) | (_, End::Unknown) => Ok(()),
        (_, End::Done(Answer::Written(outcome))) => oracle.acknowledged(request.id, outcome, began),
        (_, End::NotDone) => oracle.refused(request.id),
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

/// Does what a client asks of a node, as `Node::run` does.
async fn run(world: Shared, place: usize, request: Request) -> End {
    let until = world.now.get() + DEADLINE;
    let mut is_unclear = false;
    let given_up = |is_unclear| if is_unclear { End::Unknown } else { End::NotDone };
    loop {
        let Some(state) = world.at(place).known.clone() else { return given_up(is_unclear) };
        match ask_owner(&world, place, &state, &request, is_unclear, until).await {
            Asked::Done(answer) => return End::Done(answer),
            Asked::Again => {}
            Asked::Elsewhere(may_be_done) => is_unclear |= may_be_done,
            Asked::Unclear if !is_unclear => is_unclear = true,
            Asked::Unclear => return End::Unknown,
            Asked::Lost => {
                let known = world.at(place).known.clone();
                if known.is_none_or(|known| known.version == state.version) {
                    return given_up(is_unclear);
                }
            }
        }
        if world.now.get() >= until {
            return given_up(is_unclear);
        }
        for _ in 0..world.draw(1..6) {
            pause().await;
        }
    }
}

async fn ask_owner(
    world: &Shared,
    place: usize,
    state: &Arc<MetaState>,
    request: &Request,
    is_retry: bool,
    until: u64,
) -> Asked {
    let hash = world.hash_key.hash(&request.key);
    let owner = &state.view.shards[state.view.owner(hash, &request.key)];
    let group = owner.group;
    let forwarded =
        Forwarded { request: request.id, epoch: state.view.epoch, now_ms: world.now.get() * STEP_MS };
    let left = until.saturating_sub(world.now.get()).max(1);
    if let Some(own) = world.nodes[place].shard(group) {
        if own.is_logged() {
            return match world.leads(place, &own) {
                Err(Failed::NotLeader(Some(leader))) => {
                    ask_node(world, place, (group, leader, 0), request, forwarded, left).await
                }
                Err(_) => Asked::Elsewhere(false),
                Ok(()) => asked(&run_in_group(world, place, &own, request, forwarded, left).await, request),
            };
        }
        let forwarded = (is_retry || request.is_named).then_some(forwarded);
        return run_alone(world, &own, request, forwarded).map_or(Asked::Again, Asked::Done);
    }
    let replicas = state.replicas_of(group);
    if let [only] = replicas[..] {
        let to = place_of(only);
        let Some(instance) = state.holder(group, only).filter(|_| to != place) else { return Asked::Lost };
        return ask_node(world, place, (group, to, instance), request, forwarded, left).await;
    }
    let known = world.at(place).leaders.get(&group).copied();
    let known = known.filter(|leader| *leader != place && is_wanted(state, group, *leader));
    let others: Vec<usize> = replicas.into_iter().map(place_of).filter(|other| *other != place).collect();
    let Some(node) = known.or_else(|| others.get(world.draw(0..others.len().max(1))).copied()) else {
        return Asked::Elsewhere(false);
    };
    ask_node(world, place, (group, node, 0), request, forwarded, left).await
}

/// Has it done by a node that holds a replica of the key's shard.
async fn ask_node(
    world: &Shared,
    place: usize,
    (group, to, instance): (u64, usize, u64),
    request: &Request,
    forwarded: Forwarded,
    turns: u64,
) -> Asked {
    let asked = request.clone();
    let work =
        move |world: Shared, place: usize| run_forwarded(world, place, asked.clone(), forwarded, turns);
    let may_be_done = request.kind != Kind::Get;
    let answer = order_once(world, (place, to), instance, turns.min(60), work).await;
    if instance == 0 {
        match &answer {
            Ok(_) => drop(world.at(place).leaders.insert(group, to)),
            Err(Failed::NotLeader(Some(leader))) => drop(world.at(place).leaders.insert(group, *leader)),
            Err(Failed::Again) => {}
            Err(_) => drop(world.at(place).leaders.remove(&group)),
        }
    }
    match (answer, instance) {
        (Ok(answer), _) => Asked::Done(answer),
        (Err(Failed::Again | Failed::NotLeader(Some(_))), _) => Asked::Again,
        (Err(Failed::Unknown), 0) => Asked::Elsewhere(may_be_done),
        (Err(Failed::Unknown), _) if may_be_done => Asked::Unclear,
        (Err(Failed::NotSent | Failed::Gone | Failed::Unknown), 1..) => Asked::Lost,
        (Err(_), _) => Asked::Elsewhere(false),
    }
}

/// Does what another node passed on, if this node's shard owns the key, and this node leads it.
async fn run_forwarded(
    world: Shared,
    place: usize,
    request: Request,
    forwarded: Forwarded,
    turns: u64,
) -> Result<Answer, Failed> {
    let state = world.at(place).known.clone().ok_or(Failed::Again)?;
    let hash = world.hash_key.hash(&request.key);
    let group = state.view.shards[state.view.owner(hash, &request.key)].group;
    let alone = || world.at(place).shards.values().find(|own| !own.is_logged()).cloned();
    let Some(own) = world.nodes[place].shard(group).or_else(alone) else {
        return Err(Failed::NotLeader(None));
    };
    if own.is_logged() {
        let forwarded = Forwarded { now_ms: world.now.get() * STEP_MS, ..forwarded };
        return run_in_group(&world, place, &own, &request, forwarded, turns).await;
    }
    run_alone(&world, &own, &request, Some(forwarded)).ok_or(Failed::Again)
}

fn asked(done: &Result<Answer, Failed>, request: &Request) -> Asked {
    match done {
        Ok(answer) => Asked::Done(*answer),
        Err(Failed::Again | Failed::NotLeader(_)) => Asked::Again,
        Err(Failed::Unknown) => Asked::Elsewhere(request.kind != Kind::Get),
        Err(_) => Asked::Elsewhere(false),
    }
}

/// Does it by a shard that this node keeps alone.
fn run_alone(
    world: &Shared,
    shard: &Shard,
    request: &Request,
    forwarded: Option<Forwarded>,
) -> Option<Answer> {
    let (hash, text) = (world.hash_key.hash(&request.key), text(request.kind));
    let operation = match (&request.kind, &text) {
        (Kind::Get, _) => Operation::Get,
        (_, Some(text)) => Operation::Put(text),
        _ => Operation::Delete,
    };
    let done = shard.run(hash, &request.key, operation, forwarded).ok()?;
    let answer = answer_of(request.kind, &done);
    if let Answer::Written(outcome) = answer {
        let post = shard.run(hash, &request.key, Operation::Get, None).ok().map(|done| match done {
            Done::Found(held) => Some((held.value().to_vec(), held.version())),
            _ => None,
        });
        let write = (request.key.to_vec(), text, request.id, outcome);
        let verdict = world.oracle.borrow_mut().written(&write, &post);
        world.judge(verdict);
    }
    Some(answer)
}

/// Does it by the group that this node leads.
async fn run_in_group(
    world: &Shared,
    place: usize,
    shard: &Shard,
    request: &Request,
    forwarded: Forwarded,
    turns: u64,
) -> Result<Answer, Failed> {
    let hash = world.hash_key.hash(&request.key);
    if request.kind == Kind::Get {
        confirm(world, place, shard).await?;
        let done = shard.run(hash, &request.key, Operation::Get, None).map_err(|_| Failed::Again)?;
        return Ok(answer_of(request.kind, &done));
    }
    let is_owned = || shard.run(hash, &request.key, Operation::Get, None).is_ok();
    if world.without == Some(Missing::OwnershipAtApply) && !is_owned() {
        return Err(Failed::Again);
    }
    let command = encode_write(&request.key, text(request.kind).as_deref(), &forwarded);
    let outcome = propose(world, (place, shard.group()), command.into(), turns).await?;
    match ShardOutcome::decode(&outcome) {
        Ok(ShardOutcome::Write(Ok(outcome))) => Ok(Answer::Written(outcome)),
        Ok(ShardOutcome::Write(Err(Refused::Sealed))) => Err(Failed::Refused("sealed".to_owned())),
        Ok(ShardOutcome::Write(Err(_))) => Err(Failed::Again),
        // Another command stood where this one was to be.
        other => {
            world.accuse(format!("a write came to {other:?} at node {}", address(place)));
            Err(Failed::Unknown)
        }
    }
}

fn text(kind: Kind) -> Option<Vec<u8>> {
    match kind {
        Kind::Put(value) => Some(value.to_string().into_bytes()),
        Kind::Get | Kind::Delete => None,
    }
}

fn answer_of(kind: Kind, done: &Done) -> Answer {
    match done {
        Done::Found(held) => Answer::Read(Some(number_in(held.value()))),
        Done::Absent if kind == Kind::Get => Answer::Read(None),
        Done::Absent => Answer::Written(WriteOutcome::Absent),
        Done::Added => Answer::Written(WriteOutcome::Added),
        Done::Updated => Answer::Written(WriteOutcome::Updated),
        Done::Deleted => Answer::Written(WriteOutcome::Deleted),
    }
}
