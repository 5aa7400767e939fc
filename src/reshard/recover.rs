//! A new meta group, where most nodes of the old one are lost for good.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::orders::Office;
use crate::clock::{Deadline, now};
use crate::error::Error;
use crate::model::address::Address;
use crate::model::meta::{ChangeResult, End, MetaState};
use crate::model::view::Shard;
use crate::node::ask::ask_hello;
use crate::peers::client::NoAnswerKind;
use crate::wire::{Hello, Order, Standing};

/// The versions that the lost nodes may have agreed on without telling any survivor: far more than there can be.
const VERSION_STEP: u64 = 1 << 40;
/// The same for epochs.
const EPOCH_STEP: u64 = 1 << 20;
/// A node that does not answer for this long counts as lost; one at whose address nobody listens, at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// A survivor that does not tell what it knows within this time will not.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What was found out about the nodes of a cluster whose meta group is lost.
struct Found {
    newest: MetaState,
    /// Nodes that answer, under the start that holds their shard.
    survivors: Vec<(Address, u64)>,
    /// Nodes that do not, with the group that they held.
    lost: Vec<(Address, u64, u64)>,
    /// Nodes that answer, and the meta group that each sits in, with its voters.
    seats: Vec<(Address, u64, Vec<Address>)>,
}

/// What an operator asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recovery {
    /// Only say who would be given up.
    #[serde(default)]
    dry_run: bool,
    /// The nodes that may be given up, and no others; whoever is lost where it is absent.
    given_up: Option<Vec<Address>>,
}

/// Brings back what has lost a majority for good: the cluster's meta group, with this node as its only voter, from the newest state that
/// any survivor has learned; and each shard's group of several replicas, from the survivor whose log goes furthest.
///
/// Every node acts by what it has learned and by nothing else. So the newest state among the survivors says who owns what, and
/// whatever the lost nodes decided after it was acted on by none of them. Nodes that are not reached are given up: they
/// hold nothing any more, also when they come back.
///
/// # Errors
/// [`Error::Conflict`] where nothing has lost its majority, or more would be given up than is named, [`Error::BadRequest`] where a
/// survivor reaches a node that would be given up, [`Error::NotServing`] where a survivor does not tell what it knows.
pub fn recover(office: &Office, asked: &Recovery) -> Result<Value, Error> {
    let own = &office.node;
    let _alone = office.desk.recovering.try_lock().ok_or_else(|| {
        Error::Conflict("A recovery is under way on this node: wait for its answer".to_owned())
    })?;
    let known = own.standing().serving().map(|serving| Arc::clone(&serving.state))?;
    let found = look(office, &known)?;
    let groups = lost_groups(office, &found)?;
    let meta_lives = refuse_if_alive(office, &found);
    if groups.is_empty() {
        meta_lives.clone()?;
    }
    refuse_if_reached(office, &found)?;
    let mut lost: Vec<&Address> = found.lost.iter().map(|(node, _, _)| node).collect();
    lost.dedup();
    if let Some(named) = &asked.given_up
        && let Some(more) = lost.iter().find(|node| !named.contains(node))
    {
        return Err(Error::Conflict(format!(
            "{more} would be given up, too, which is not among those that may be: look again who is there"
        )));
    }
    let survives = |group: u64| groups.iter().any(|one| one.group == group);
    let is_lost = |group: u64| {
        let replicas = found.newest.replicas_of(group).len();
        let lost = found.lost.iter().filter(|(_, _, lost)| *lost == group).count();
        !survives(group) && 2 * (replicas - lost) <= replicas
    };
    let shards = found.newest.view.shards.iter();
    let lost_shards: Vec<String> =
        shards.filter(|shard| is_lost(shard.group)).map(|shard| shard.id.to_string()).collect();
    let mut epoch = found.newest.view.epoch + groups.len() as u64;
    if meta_lives.is_ok() {
        epoch += EPOCH_STEP;
    }
    let mut answer = json!({
        "message": if asked.dry_run { "Recovery planned" } else { "Recovered" },
        "cluster-id": found.newest.cluster,
        "epoch": epoch,
        "given-up": lost,
        "lost-shards": lost_shards,
    });
    if !groups.is_empty() {
        answer["recovered-shards"] = groups.iter().map(LostGroup::describe).collect();
    }
    if asked.dry_run {
        return Ok(answer);
    }
    log::warn!("recovered by the operator: {answer}");
    let survivors: Vec<_> = groups.iter().map(|one| (one.group, one.kept.clone(), one.instance)).collect();
    if meta_lives.is_err() {
        office.succeed(&Order::Succeed { survivors })?;
        return Ok(answer);
    }
    let mut state = rebuilt(found.newest, &found.lost);
    for (group, node, instance) in survivors {
        state.succeed(group, node, instance);
    }
    let replica = rand::random::<u64>().max(1);
    own.take_seat(state.group, replica);
    own.meta.found(state.group, replica, &own.address, state.clone());
    own.learn(&Arc::new(state)).map_err(Error::Conflict)?;
    office.desk.wake();
    Ok(answer)
}

/// A shard's group that has lost its majority, and the survivor from which it goes on.
struct LostGroup {
    shard: u32,
    group: u64,
    kept: Address,
    instance: u64,
    standing: Standing,
    missing: Vec<Address>,
}

impl LostGroup {
    /// What is said of it, and of what may be lost.
    fn describe(&self) -> Value {
        json!({
            "shard-id": self.shard.to_string(),
            "goes-on-from": self.kept,
            "missing": self.missing,
            "log-index": self.standing.last.1,
            "committed-index": self.standing.committed,
            "may-be-lost": "what was acknowledged by the missing replicas and never reached this one",
        })
    }
}

/// The groups of shards that cannot agree on anything any more, and have a survivor.
fn lost_groups(office: &Office, found: &Found) -> Result<Vec<LostGroup>, Error> {
    let mut lost = Vec::new();
    for shard in
        found.newest.view.shards.iter().filter(|shard| found.newest.replicas_of(shard.group).len() > 1)
    {
        let group = shard.group;
        let mut standings = Vec::new();
        for (node, _) in
            found.survivors.iter().filter(|(node, _)| found.newest.replicas_of(group).contains(&node))
        {
            let standing = office.order::<Option<Standing>>(node, 0, &Order::Replica { group }, TIMEOUT);
            let standing = standing.map_err(|error| {
                Error::NotServing(format!(
                    "{node} lives and does not say where its replica stands ({error}): try again"
                ))
            })?;
            standings.extend(standing.map(|standing| (node.clone(), standing)));
        }
        standings.dedup_by(|a, b| a.0 == b.0);
        let newest = standings.iter().max_by_key(|(_, standing)| standing.last);
        let Some((kept, standing)) = newest.cloned() else { continue };
        let is_there = |id: u64| standings.iter().any(|(_, one)| one.replica == id);
        let living = standing.voters.iter().filter(|(id, _)| is_there(*id)).count();
        if 2 * living > standing.voters.len() || standing.voters.is_empty() {
            continue;
        }
        let missing = standing.voters.iter().filter(|(id, _)| !is_there(*id)).map(|(_, node)| node.clone());
        let (missing, instance) = (missing.collect(), standing.instance);
        lost.push(LostGroup { shard: shard.id, group, kept, instance, standing, missing });
    }
    Ok(lost)
}

/// Asks all nodes, also those that only a newer state names, until nobody knows more.
fn look(office: &Office, known: &MetaState) -> Result<Found, Error> {
    let own = &office.node;
    let deadline = Deadline::after(now(), PATIENCE);
    let mut newest = known.clone();
    loop {
        let before = newest.version;
        let mut found =
            Found { newest: newest.clone(), survivors: Vec::new(), lost: Vec::new(), seats: Vec::new() };
        for (group, holders) in &holders_of(&newest) {
            for (node, instance) in holders {
                if *node == own.address && (*instance == 0 || *instance == own.instance) {
                    found.survivors.push((node.clone(), *instance));
                    continue;
                }
                let hello = ask_patiently(office, node, deadline);
                if let Some((seat, voters)) = hello.as_ref().and_then(|hello| hello.seat.clone()) {
                    found.seats.push((node.clone(), seat, voters));
                }
                // Of a shard with several replicas any start of a node may hold one.
                if hello.is_none_or(|hello| *instance != 0 && hello.instance != *instance) {
                    found.lost.push((node.clone(), *instance, *group));
                    continue;
                }
                found.survivors.push((node.clone(), *instance));
                let news = office.order::<Option<MetaState>>(node, *instance, &Order::News, TIMEOUT);
                let news = news.map_err(|error| {
                    Error::NotServing(format!(
                        "{node} lives and does not tell what it knows ({error}): try again"
                    ))
                })?;
                if let Some(state) = news.filter(|state| state.version > newest.version) {
                    newest = state;
                }
            }
        }
        if newest.version == before {
            return Ok(found);
        }
    }
}

/// Who holds what: the starts of the nodes that each hold a shard alone, and the nodes of those with several replicas, of which any start
/// may hold one, as instance 0.
fn holders_of(state: &MetaState) -> BTreeMap<u64, BTreeMap<Address, u64>> {
    let holders = |shard: &Shard| match &state.replicas_of(shard.group)[..] {
        [_] => state.holders.get(&shard.group).cloned().unwrap_or_default(),
        several => several.iter().map(|node| ((*node).clone(), 0)).collect(),
    };
    state.view.shards.iter().map(|shard| (shard.group, holders(shard))).collect()
}

/// A node that is slow, or was stopped for a while, is not lost.
fn ask_patiently(office: &Office, node: &Address, deadline: Deadline) -> Option<Hello> {
    loop {
        match ask_hello(&office.node.peers.at(node)) {
            Ok(hello) => return Some(hello),
            Err(error) if error.kind == NoAnswerKind::NotSent || deadline.is_over() => return None,
            Err(_) => {}
        }
    }
}

/// The voters of the group that live must be too few to agree on anything.
fn refuse_if_alive(office: &Office, found: &Found) -> Result<(), Error> {
    let own = office.node.meta.seat().map(|seat| (office.node.address.clone(), seat.group, seat.voters()));
    let seats: Vec<_> =
        found.seats.iter().cloned().chain(own).filter(|(_, group, _)| *group == found.newest.group).collect();
    // Whoever sits in it knows who votes. Where nobody does, nobody is left who could agree.
    for (_, _, voters) in &seats {
        let living = voters.iter().filter(|voter| seats.iter().any(|(node, _, _)| node == *voter)).count();
        if 2 * living > voters.len() {
            return Err(Error::Conflict(format!(
                "{living} of {} voters of the meta group live and can agree: use a view change with accept-loss",
                voters.len()
            )));
        }
    }
    Ok(())
}

/// No survivor may reach a node that would be given up.
fn refuse_if_reached(office: &Office, found: &Found) -> Result<(), Error> {
    for (node, instance) in found.survivors.iter().filter(|(node, _)| *node != office.node.address) {
        for (gone, start, _) in &found.lost {
            let order = Order::Reach { node: gone.clone(), instance: *start };
            match office.order::<bool>(node, *instance, &order, TIMEOUT) {
                Ok(false) => {}
                Ok(true) => {
                    return Err(Error::BadRequest(format!(
                        "{node} reaches {gone}, which would be given up: mend the network or end {gone}"
                    )));
                }
                Err(error) => {
                    return Err(Error::NotServing(format!(
                        "{node} lives and does not say whether it reaches {gone} ({error}): try again"
                    )));
                }
            }
        }
    }
    Ok(())
}

fn rebuilt(mut state: MetaState, lost: &[(Address, u64, u64)]) -> MetaState {
    state.group = rand::random();
    // Two recoveries at the same time differ in the lower digits: one of them is the newer for everybody.
    state.version += VERSION_STEP + u64::from(rand::random::<u32>());
    state.view.epoch += EPOCH_STEP;
    let id = state.change.take().map_or_else(rand::random, |change| change.id);
    let end = End::Failed("the meta group was lost, and recovered by the operator".to_owned());
    state.results.push_back(ChangeResult { id, left: Vec::new(), end });
    for (node, instance, group) in lost {
        if let Some(holders) = state.holders.get_mut(group)
            && holders.get(node) == Some(instance)
        {
            // No node ever has this instance.
            holders.insert(node.clone(), rand::random());
        }
    }
    state
}
