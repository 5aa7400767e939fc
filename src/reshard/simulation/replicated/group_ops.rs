//! What is done to a shard, as `node::group_ops`, `node::ask` and `reshard::orders` do it.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::super::tasks::{pause, wait_for};
use super::Shared;
use super::node::leader_in;
use super::tasks::{Lost, call, call_once};
use super::world::{World, address, place_of};
use crate::consensus::{Answer, Change, Refusal};
use crate::model::meta::MetaState;
use crate::model::shard::{Shard, ShardCommand, ShardOutcome};

/// A group that does not agree within so many steps does so later.
pub(super) const GROUP_TURNS: u64 = 150;
/// A shard's leader is looked for again after so many steps.
const LEADER_PAUSE: u64 = 3;

/// Why something was not done, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    /// Another node leads, where it is known. Nothing was done.
    NotLeader(Option<usize>),
    /// Nothing was done, since nobody was there.
    NotSent,
    /// Nothing was done, and it may be in a moment.
    Again,
    /// Nothing was done: why.
    Refused(String),
    /// The start of a node that was meant is over.
    Gone,
    /// It may have been done, or may yet be.
    Unknown,
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::NotSent => Self::NotSent,
            Lost::Silent => Self::Unknown,
        }
    }
}

async fn answer(world: &Shared, place: usize, group: u64, ticket: u64, turns: u64) -> Result<Bytes, Failed> {
    let answer = wait_for(turns, || world.answers.borrow_mut().remove(&ticket)).await;
    match answer {
        Some(Answer::Applied { outcome, .. }) => Ok(outcome),
        Some(Answer::Readable { .. }) => Ok(Bytes::new()),
        Some(Answer::Unknown) | None => Err(Failed::Unknown),
        Some(Answer::NotApplied(refusal)) => Err(match refusal {
            Refusal::NotLeader { leader } => {
                let status = world.nodes[place].status(group);
                let leader = leader.and_then(|id| status?.members.get(&id).map(place_of));
                Failed::NotLeader(leader.filter(|leader| *leader != place))
            }
            Refusal::NoGroup => Failed::NotLeader(None),
            Refusal::Superseded => {
                world.count(|tally| tally.superseded += 1);
                Failed::Again
            }
            other => Failed::Refused(format!("{other:?}")),
        }),
    }
}

/// Has a command applied by a group that this node leads.
pub(super) async fn propose(
    world: &Shared,
    (place, group): (usize, u64),
    command: Bytes,
    turns: u64,
) -> Result<Bytes, Failed> {
    let ticket = world.number();
    world.driving(place).driver.propose(group, command, ticket);
    answer(world, place, group, ticket, turns).await
}

/// Waits until this node is known to lead a group still and has applied everything that was ever acknowledged.
pub(super) async fn read(world: &Shared, place: usize, group: u64, turns: u64) -> Result<(), Failed> {
    let ticket = world.number();
    world.driving(place).driver.read(group, ticket);
    answer(world, place, group, ticket, turns).await.map(drop)
}

/// Changes the members of a group that this node leads.
pub(super) async fn change(world: &Shared, place: usize, group: u64, change: &Change) -> Result<(), Failed> {
    let ticket = world.number();
    let known = world.oracle.borrow().applied(group);
    world.driving(place).driver.change(group, change, ticket);
    answer(world, place, group, ticket, GROUP_TURNS).await?;
    if let Change::Promote { learner, .. } = change {
        world.promoted(group, *learner, known);
    }
    Ok(())
}

impl World {
    /// A new voter holds everything that any replica had applied when its promotion was asked for.
    fn promoted(&self, group: u64, learner: u64, known: u64) {
        self.count(|tally| tally.promotions += 1);
        let statuses = self.nodes.iter().filter_map(|node| node.status(group));
        for status in statuses.filter(|status| status.replica == learner && status.last < known) {
            self.accuse(format!(
                "replica {learner} of group {group} has a vote and holds {} of {known} entries",
                status.last
            ));
        }
    }

    /// Whether a node leads a shard that it has; who does where it does not.
    pub(super) fn leads(&self, place: usize, shard: &Shard) -> Result<(), Failed> {
        let node = &self.nodes[place];
        if !shard.is_logged() || node.leads_in(shard.group()).is_some() {
            return Ok(());
        }
        Err(Failed::NotLeader(node.leader_of(shard.group()).filter(|leader| *leader != place)))
    }

    /// A shard of which a node has a replica, and that it leads.
    pub(super) fn led(&self, place: usize, group: u64) -> Result<Arc<Shard>, Failed> {
        if let Some(shard) = self.nodes[place].shard(group) {
            self.leads(place, &shard)?;
            return Ok(shard);
        }
        let known = self.at(place).known.clone();
        match known {
            Some(state) if state.replicas_of(group).len() > 1 => Err(Failed::NotLeader(None)),
            _ => Err(Failed::Refused(format!("node {place} holds no replica of group {group}"))),
        }
    }
}

/// Changes a shard.
pub(super) async fn apply(
    world: &Shared,
    place: usize,
    shard: &Shard,
    command: &ShardCommand,
) -> Result<ShardOutcome, Failed> {
    if !shard.is_logged() {
        world.touched.set(true);
        return Ok(shard.apply(command));
    }
    let outcome = propose(world, (place, shard.group()), command.encode().into(), GROUP_TURNS).await?;
    ShardOutcome::decode(&outcome).map_err(|_| {
        world.accuse(format!("an order was answered by what something else came to: {outcome:?}"));
        Failed::Unknown
    })
}

/// Waits until a shard that this node leads holds everything that was ever acknowledged.
pub(super) async fn confirm(world: &Shared, place: usize, shard: &Shard) -> Result<(), Failed> {
    if shard.is_logged() { read(world, place, shard.group(), GROUP_TURNS).await } else { Ok(()) }
}

/// Has a node do something: a certain start of it, where that is not 0.
pub(super) async fn order<T: 'static, F: Future<Output = Result<T, Failed>> + 'static>(
    world: &Shared,
    (from, to): (usize, usize),
    instance: u64,
    turns: u64,
    work: impl Fn(Shared, usize) -> F + 'static,
) -> Result<T, Failed> {
    call(world, (from, to), turns, if_there(world, to, instance, work)).await?
}

/// As [`order`], by a connection that ends sooner than it doubles a message.
pub(super) async fn order_once<T: 'static, F: Future<Output = Result<T, Failed>> + 'static>(
    world: &Shared,
    (from, to): (usize, usize),
    instance: u64,
    turns: u64,
    work: impl Fn(Shared, usize) -> F + 'static,
) -> Result<T, Failed> {
    call_once(world, (from, to), turns, if_there(world, to, instance, work)).await?
}

fn if_there<T: 'static, F: Future<Output = Result<T, Failed>> + 'static>(
    world: &Shared,
    to: usize,
    instance: u64,
    work: impl Fn(Shared, usize) -> F + 'static,
) -> impl Fn() -> Pin<Box<dyn Future<Output = Result<T, Failed>>>> + 'static {
    let there = Rc::clone(world);
    move || {
        let is_there = instance == 0 || there.nodes[to].life.get() == instance;
        let work = is_there.then(|| work(Rc::clone(&there), to));
        Box::pin(async move {
            match work {
                Some(work) => work.await,
                None => Err(Failed::Gone),
            }
        })
    }
}

/// Has the node that leads a shard do something, also this one.
pub(super) async fn order_leader<T: 'static, F: Future<Output = Result<T, Failed>> + 'static>(
    world: &Shared,
    place: usize,
    (state, group): (&MetaState, u64),
    turns: u64,
    work: impl Fn(Shared, usize) -> F + Clone + 'static,
) -> Result<T, Failed> {
    if let Some(shard) = world.nodes[place].shard(group)
        && world.leads(place, &shard).is_ok()
    {
        return work(Rc::clone(world), place).await;
    }
    let replicas = state.replicas_of(group);
    if let [only] = replicas[..] {
        if place_of(only) == place {
            return Err(Failed::Gone);
        }
        let instance = state.holder(group, only).unwrap_or(0);
        return order(world, (place, place_of(only)), instance, turns, work).await;
    }
    let others: Vec<usize> = replicas.into_iter().map(place_of).filter(|other| *other != place).collect();
    let led = world.nodes[place].status(group).and_then(|status| leader_in(&status));
    let mut hint = led.or_else(|| world.at(place).leaders.get(&group).copied()).filter(|led| *led != place);
    let until = world.now.get() + turns;
    let mut named = BTreeSet::new();
    loop {
        // Who is named is asked besides the others, not in place of one: a replica that was taken out may name a leader of old for ever.
        let mut rest = others.iter().copied();
        while let Some(node) = hint.take().filter(|hint| named.insert(*hint)).or_else(|| rest.next()) {
            let left = until.saturating_sub(world.now.get()).max(1);
            match order(world, (place, node), 0, left, work.clone()).await {
                Ok(answer) => {
                    world.at(place).leaders.insert(group, node);
                    return Ok(answer);
                }
                Err(Failed::NotLeader(leader)) => hint = leader.filter(|led| *led != place && *led != node),
                Err(Failed::NotSent) => {}
                Err(error) => return Err(error),
            }
            world.at(place).leaders.remove(&group);
        }
        if world.now.get() >= until || others.is_empty() {
            return Err(Failed::NotSent);
        }
        named.clear();
        for _ in 0..LEADER_PAUSE {
            pause().await;
        }
    }
}

/// Has the shards that a node leads act by the newest state that it has learned: the groups of those that do.
pub(super) async fn act(world: &Shared, place: usize) -> Vec<u64> {
    let Some(state) = world.at(place).known.clone() else { return Vec::new() };
    let shards: Vec<_> = world.at(place).shards.values().cloned().collect();
    let mut acting = Vec::new();
    for shard in shards {
        let Some(index) = state.index_of(shard.group()) else { continue };
        if world.leads(place, &shard).is_err() {
            continue;
        }
        let learn = ShardCommand::Learn(state.directive(index));
        if shard.version() >= state.version || apply(world, place, &shard, &learn).await.is_ok() {
            acting.push(shard.group());
        }
    }
    acting
}

/// The members of a shard's group as its leader knows them: voters and learners, whether they are changing, and the version of the
/// state that the shard acts by.
#[derive(Debug, Clone)]
pub(super) struct GroupMembers {
    pub(super) voters: Vec<(u64, usize)>,
    pub(super) learners: Vec<u64>,
    pub(super) changing: bool,
    pub(super) version: u64,
}

pub(super) async fn members(world: Shared, place: usize, group: u64) -> Result<GroupMembers, Failed> {
    let shard = world.led(place, group)?;
    let version = shard.version();
    if !shard.is_logged() {
        let voters = vec![(world.nodes[place].life.get(), place)];
        return Ok(GroupMembers { voters, learners: Vec::new(), changing: false, version });
    }
    read(&world, place, group, GROUP_TURNS).await.map_err(|_| Failed::Unknown)?;
    let status = world.nodes[place].led(group).ok_or(Failed::NotLeader(None))?;
    let named = |id: &u64| Some((*id, place_of(status.members.get(id)?)));
    let voters = status.voters.iter().filter_map(named).collect();
    let changing = status.changing || !status.outgoing.is_empty();
    Ok(GroupMembers { voters, learners: status.learners.clone(), changing, version })
}

/// Whether a node is to hold a replica of a group.
pub(super) fn is_wanted(state: &MetaState, group: u64, place: usize) -> bool {
    state.replicas_of(group).contains(&&address(place))
}
