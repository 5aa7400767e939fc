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
const VERSION_STEP: u64 = 1 << 32;
/// The same for epochs.
const EPOCH_STEP: u64 = 1 << 20;
/// A node that does not answer within this time counts as lost.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Founds the cluster's meta group anew, with this node as its only voter, from the newest state that any survivor has learned.
///
/// Every node acts by what it has learned and by nothing else. So the newest state among the survivors says who owns what, and
/// whatever the lost nodes decided after it was acted on by none of them. Nodes that are not reached are given up: they
/// hold nothing any more, also when they come back.
///
/// # Errors
/// [`Error::Conflict`] where the old group can still agree, [`Error::BadRequest`] where a survivor reaches a node that would be
/// given up.
pub fn recover(office: &Office) -> Result<Value, Error> {
    let own = &office.node;
    let known = own.standing().serving().map(|serving| Arc::clone(&serving.state))?;
    let alive = |node: &Address, instance: u64| {
        *node == own.address && instance == own.instance
            || ask_hello(&own.peers.at(node)).is_ok_and(|hello| hello.instance == instance)
    };
    let mut survivors: Vec<(Address, u64)> = Vec::new();
    let mut lost: Vec<(Address, u64, u64)> = Vec::new();
    for (group, holders) in &known.holders {
        for (node, instance) in holders {
            if alive(node, *instance) {
                survivors.push((node.clone(), *instance));
            } else {
                lost.push((node.clone(), *instance, *group));
            }
        }
    }
    let seat = own.meta.seat();
    let voters: Vec<Address> = match &seat {
        Some(seat) => {
            seat.status.voters.iter().filter_map(|id| seat.status.members.get(id)).cloned().collect()
        }
        None => wanted_voters(&known.nodes()).to_vec(),
    };
    let living = voters.iter().filter(|voter| survivors.iter().any(|(node, _)| node == *voter)).count();
    if 2 * living > voters.len() {
        return Err(Error::Conflict(format!(
            "{living} of {} voters of the meta group live and can agree: use a view change with accept-loss",
            voters.len()
        )));
    }
    let mut newest = (*known).clone();
    for (node, instance) in survivors.iter().filter(|(node, _)| *node != own.address) {
        for (gone, start, _) in &lost {
            let order = Order::Reach { node: gone.clone(), instance: *start };
            if office.order::<bool>(node, *instance, &order, TIMEOUT) == Ok(true) {
                return Err(Error::BadRequest(format!(
                    "{node} reaches {gone}, which would be given up: mend the network or end {gone}"
                )));
            }
        }
        let news = office.order::<Option<MetaState>>(node, *instance, &Order::News, TIMEOUT);
        if let Ok(Some(state)) = news
            && state.version > newest.version
        {
            newest = state;
        }
    }
    let state = rebuilt(newest, &lost);
    let lost_shards: Vec<String> = state
        .view
        .shards
        .iter()
        .filter(|shard| lost.iter().any(|(_, _, group)| *group == shard.group))
        .map(|shard| shard.id.to_string())
        .collect();
    let answer = json!({
        "message": "Recovered",
        "cluster-id": state.cluster,
        "epoch": state.view.epoch,
        "given-up": lost.iter().map(|(node, _, _)| node.as_str()).collect::<Vec<_>>(),
        "lost-shards": lost_shards,
    });
    log::warn!("recovered by the operator: {answer}");
    let replica = rand::random::<u64>().max(1);
    own.take_seat(state.group, replica);
    own.meta.found(state.group, replica, &own.address, state.clone());
    own.learn(&Arc::new(state)).map_err(Error::Conflict)?;
    office.desk.wake();
    Ok(answer)
}

fn rebuilt(mut state: MetaState, lost: &[(Address, u64, u64)]) -> MetaState {
    state.group = rand::random();
    state.version += VERSION_STEP;
    state.view.epoch += EPOCH_STEP;
    if let Some(change) = state.change.take() {
        let end = End::Failed("the meta group was lost and recovered by the operator".to_owned());
        state.results.push_back(ChangeResult { id: change.id, end });
    }
    for (node, instance, group) in lost {
        if let Some(holders) = state.holders.get_mut(group)
            && holders.get(node) == Some(instance)
        {
            // Nobody ever has this instance.
            holders.insert(node.clone(), 0);
        }
    }
    state
}
