//! The end of a view change: the meta group moves, everything is counted once more, and the receipt is written.

use std::time::Duration;

use serde_json::{Value, json};

use super::coordinator::{Coordinator, Stuck, holder};
use super::voters::{self, Voters};
use crate::model::address::Address;
use crate::model::meta::{Command, End, MetaState, Planned, wanted_voters};
use crate::model::shard::Tally;
use crate::node::ask::OrderError;
use crate::node::raft::Seat;
use crate::node::state::advice;
use crate::points::point;
use crate::wire::{Order, Tallied};

/// A shard that does not tell its tally within this time will not.
const TALLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Does the next step towards the end.
pub(super) fn finish(
    coordinator: &mut Coordinator,
    seat: &Seat,
    state: &MetaState,
    id: u64,
    planned: &Planned,
) -> Result<(), Stuck> {
    let nodes: Vec<Address> = planned.shards.iter().flat_map(|shard| &shard.replicas).cloned().collect();
    // Every node of the new view acts by the last hand-over, so that nobody needs those that leave.
    for shard in &planned.shards {
        for node in &shard.replicas {
            let told = coordinator.tell(node);
            told.map_err(|error| Stuck::For(format!("shard {}: {error}; {}", shard.id, advice(shard.id))))?;
        }
    }
    point!("change-finishing");
    match voters::step(&coordinator.office, seat, &state.cluster, wanted_voters(&nodes)) {
        Voters::Complete => {}
        Voters::Changing => return Ok(()),
        Voters::Waiting(reason) => return Err(Stuck::For(reason)),
    }
    let receipt = receipt(coordinator, state, id, planned)?;
    coordinator.propose(&Command::End { id, end: End::Finished(receipt.to_string()) })?;
    log::info!("view change {id:016x} is finished: {receipt}");
    point!("change-finished");
    coordinator.tell_all();
    Ok(())
}

fn receipt(coordinator: &Coordinator, state: &MetaState, id: u64, planned: &Planned) -> Result<Value, Stuck> {
    let mut sum = Tally::default();
    let mut shards = Vec::new();
    for shard in &state.view.shards {
        let stays = planned.shards.iter().position(|planned| planned.group == shard.group);
        let Some(tallied) = tally(coordinator, state, id, shard.group, stays.is_some())? else { continue };
        sum.created += tallied.tally.created;
        sum.deleted += tallied.tally.deleted;
        if let Some(index) = stays {
            let mut row = json!({
                "shard-id": planned.shards[index].id.to_string(),
                "key-count": tallied.pairs,
                "key-count-at-cut": planned.targets[index],
                "replicas": planned.shards[index].replicas,
            });
            if planned.shards[index].replicas.len() == 1 {
                row["address"] = planned.shards[index].replicas[0].as_str().into();
            }
            shards.push((planned.shards[index].id, row));
        }
    }
    shards.sort_by_key(|(shard, _)| *shard);
    let (_, hold) = Some(coordinator.hold).filter(|(change, _)| *change == id).unwrap_or_default();
    let hold_us = planned.hold_us.max(u64::try_from(hold.as_micros()).unwrap_or(u64::MAX));
    let epoch = state.view.epoch + u64::from(planned.shards != state.view.shards);
    let mut receipt = json!({
        "message": "View change successful",
        "shards": shards.into_iter().map(|(_, row)| row).collect::<Vec<_>>(),
        "change-id": format!("{id:016x}"),
        "epoch": epoch,
        "keys": planned.keys,
        "moved": planned.moved,
        "minimum": planned.minimum,
        "copied": planned.copied,
        "created-meanwhile": sum.created,
        "deleted-meanwhile": sum.deleted,
        "hold-ms": f64::from(u32::try_from(hold_us / 10).unwrap_or(u32::MAX)) / 100.0,
        // A piece is handed over only where both sums are equal.
        "checksums-match": planned.pieces.iter().all(|piece| piece.handed_over),
    });
    if !planned.given_up.is_empty() {
        let rows = planned.given_up.iter().map(|lost| {
            json!({ "shard-id": lost.id.to_string(), "replicas": lost.replicas, "key-count": lost.pairs })
        });
        receipt["given-up"] = rows.collect();
    }
    Ok(receipt)
}

/// What a shard has counted since the cut; nothing where it leaves and its node is gone already.
fn tally(
    coordinator: &Coordinator,
    state: &MetaState,
    id: u64,
    group: u64,
    stays: bool,
) -> Result<Option<Tallied>, Stuck> {
    let Some((node, instance)) = holder(state, group) else { return Ok(None) };
    let order = Order::Tally { change: id };
    match coordinator.office.order::<Tallied>(&node, instance, &order, TALLY_TIMEOUT) {
        Ok(tallied) => Ok(Some(tallied)),
        Err(_) if !stays => Ok(None),
        Err(OrderError::Gone(_)) => Err(Stuck::Lost(format!("{node} is lost: it was started again"))),
        Err(error) => Err(Stuck::For(error.to_string())),
    }
}
