//! A new meta group, where most nodes of the old one are lost for good.

use serde_json::{Value, json};

use super::orders::Office;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::meta::{ChangeResult, End, MetaState, wanted_voters};
use crate::node::ask::ask_hello;
use crate::wire::Order;
use std::sync::Arc;
use std::time::Duration;

/// The versions that the lost nodes may have agreed on without telling any survivor: far more than there can be.
const VERSION_STEP: u64 = 1 << 40;
/// The same for epochs.
const EPOCH_STEP: u64 = 1 << 20;
/// A node that does not answer within this time counts as lost.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What was found out about the nodes of a cluster whose meta group is lost.
struct Found {
    newest: MetaState,
    /// Nodes that answer, under the start that holds their shard.
    survivors: Vec<(Address, u64)>,
    /// Nodes that do not, with the group that they held.
    lost: Vec<(Address, u64, u64)>,
    /// Nodes that answer and sit in the old meta group.
    seated: Vec<Address>,
}

/// Founds the cluster's meta group anew, with this node as its only voter, from the newest state that any survivor has learned.
///
/// Every node acts by what it has learned and by nothing else. So the newest state among the survivors says who owns what, and
/// whatever the lost nodes decided after it was acted on by none of them. Nodes that are not reached are given up: they
/// hold nothing any more, also when they come back.
///
/// # Errors
/// [`Error::Conflict`] where the old group can still agree, [`Error::BadRequest`] where a survivor reaches a node that would be
/// given up, [`Error::NotServing`] where a survivor does not tell what it knows.
pub fn recover(office: &Office) -> Result<Value, Error> {
    let own = &office.node;
    let known = own.standing().serving().map(|serving| Arc::clone(&serving.state))?;
    let found = look(office, &known)?;
    refuse_if_alive(office, &known, &found)?;
    for (node, instance) in found.survivors.iter().filter(|(node, _)| *node != own.address) {
        for (gone, start, _) in &found.lost {
            let order = Order::Reach { node: gone.clone(), instance: *start };
            if office.order::<bool>(node, *instance, &order, TIMEOUT) == Ok(true) {
                return Err(Error::BadRequest(format!(
                    "{node} reaches {gone}, which would be given up: mend the network or end {gone}"
                )));
            }
        }
    }
    let state = rebuilt(found.newest, &found.lost);
    let is_lost = |group: u64| found.lost.iter().any(|(_, _, lost)| *lost == group);
    let lost_shards = state.view.shards.iter().filter(|shard| is_lost(shard.group));
    let answer = json!({
        "message": "Recovered",
        "cluster-id": state.cluster,
        "epoch": state.view.epoch,
        "given-up": found.lost.iter().map(|(node, _, _)| node.as_str()).collect::<Vec<_>>(),
        "lost-shards": lost_shards.map(|shard| shard.id.to_string()).collect::<Vec<_>>(),
    });
    log::warn!("recovered by the operator: {answer}");
    let replica = rand::random::<u64>().max(1);
    own.take_seat(state.group, replica);
    own.meta.found(state.group, replica, &own.address, state.clone());
    own.learn(&Arc::new(state)).map_err(Error::Conflict)?;
    office.desk.wake();
    Ok(answer)
}

/// Asks all nodes, also those that only a newer state names, until nobody knows more.
fn look(office: &Office, known: &MetaState) -> Result<Found, Error> {
    let own = &office.node;
    let mut newest = known.clone();
    loop {
        let before = newest.version;
        let mut found =
            Found { newest: newest.clone(), survivors: Vec::new(), lost: Vec::new(), seated: Vec::new() };
        for (group, holders) in &newest.holders.clone() {
            for (node, instance) in holders {
                if *node == own.address && *instance == own.instance {
                    found.survivors.push((node.clone(), *instance));
                    continue;
                }
                let hello = ask_hello(&own.peers.at(node)).ok();
                if hello.as_ref().is_some_and(|hello| hello.seat == Some(known.group)) {
                    found.seated.push(node.clone());
                }
                if hello.is_none_or(|hello| hello.instance != *instance) {
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

/// The voters of the old group that live, this node among them, must be too few to agree on anything.
fn refuse_if_alive(office: &Office, known: &MetaState, found: &Found) -> Result<(), Error> {
    let seat = office.node.meta.seat().filter(|seat| seat.group == known.group);
    let voters: Vec<Address> = match &seat {
        Some(seat) => {
            seat.status.voters.iter().filter_map(|id| seat.status.members.get(id)).cloned().collect()
        }
        None => wanted_voters(&known.nodes()).to_vec(),
    };
    let lives =
        |voter: &&Address| found.seated.contains(voter) || (seat.is_some() && **voter == office.node.address);
    let living = voters.iter().filter(lives).count();
    if 2 * living > voters.len() {
        return Err(Error::Conflict(format!(
            "{living} of {} voters of the meta group live and can agree: use a view change with accept-loss",
            voters.len()
        )));
    }
    Ok(())
}

fn rebuilt(mut state: MetaState, lost: &[(Address, u64, u64)]) -> MetaState {
    state.group = rand::random();
    // Two recoveries at the same time differ in the lower digits: one of them is the newer for everybody.
    state.version += VERSION_STEP + u64::from(rand::random::<u32>());
    state.view.epoch += EPOCH_STEP;
    if let Some(change) = state.change.take() {
        let end = End::Failed("the meta group was lost and recovered by the operator".to_owned());
        state.results.push_back(ChangeResult { id: change.id, end });
    }
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
