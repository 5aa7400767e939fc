//! The end of a view change: the meta group moves, everything is counted once more, and the receipt is written.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Coordinator, Stuck};
use crate::clock::wall_ms;
use crate::failpoints::failpoint;
use crate::model::address::Address;
use crate::model::limits::WantedLimits;
use crate::model::meta::{Command, End, MetaState, Planned, wanted_voters};
use crate::model::receipt::Receipt;
use crate::model::view::Shard;
use crate::node::ask::OrderError;
use crate::node::problems::advice;
use crate::node::raft::LocalReplica;
use crate::reshard::voters::{self, Voters};
use crate::wire::orders;
use crate::wire::{GroupMembers, Tallied};

/// A shard whose leader does not name its members within this time is asked again.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(1);
/// A shard that does not tell its tally within this time will not.
const TALLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Does the next step towards the end.
pub(super) async fn finish(
    coordinator: &mut Coordinator,
    local: &LocalReplica,
    state: &MetaState,
    id: u64,
    planned: &Planned,
) -> Result<(), Stuck> {
    let nodes: Vec<Address> = planned.shards.iter().flat_map(|shard| &shard.replicas).cloned().collect();
    let (mut holders, mut missing) = (BTreeMap::new(), None);
    for shard in &planned.shards {
        // All are looked at, also where one has to wait: what comes forward at any of them is progress.
        match shard_complete(coordinator, state, shard).await {
            Ok(alone) => holders.extend(alone),
            Err(stuck) => missing = missing.or(Some(stuck)),
        }
    }
    if let Some(stuck) = missing {
        return Err(stuck);
    }
    failpoint!("change-finishing");
    match voters::step(&coordinator.controller, local, &state.cluster, wanted_voters(&nodes)).await {
        Voters::Complete => {}
        Voters::Changing => return Ok(()),
        Voters::Waiting(reason) => return Err(Stuck::For(reason)),
    }
    let receipt = receipt(coordinator, state, id, planned).await?;
    let text = receipt.to_string();
    let kept = Receipt::read(id, &text).map(|receipt| Receipt {
        began_ms: state.change.as_ref().and_then(|change| change.began_ms),
        ended_ms: Some(wall_ms()),
        ..receipt
    });
    coordinator.propose(&Command::End { id, end: End::Finished(text), holders, receipt: kept }).await?;
    log::info!("view change {id:016x} is finished: {receipt}");
    failpoint!("change-finished");
    coordinator.tell_all().await;
    Ok(())
}

/// What is seen of the replicas of a group that are still to come: how much they were given, and who the members are.
pub(super) type Fed = (u64, Vec<u64>);

/// Every node of a shard acts by the last hand-over, so that nobody needs those that leave, and just they hold its replicas: who keeps it
/// alone, though its log has not ended yet.
async fn shard_complete(
    coordinator: &mut Coordinator,
    state: &MetaState,
    shard: &Shard,
) -> Result<Option<(u64, BTreeMap<Address, u64>)>, Stuck> {
    let mut told = Ok(());
    for node in &shard.replicas {
        told = told.and(coordinator.tell(node).await.map(drop));
    }
    // Asked for although one was not told: it may be busy with the very snapshot that comes forward.
    let members = members_complete(coordinator, state, shard).await;
    told.map_err(|error| Stuck::For(format!("shard {}: {error}; {}", shard.id, advice(shard))))?;
    let alone = members?.filter(|members| members.is_logged && members.voters.len() == 1);
    Ok(alone.map(|one| (shard.group, BTreeMap::from([(one.by.node, one.by.incarnation)]))))
}

/// Just the planned nodes hold a shard's replicas; its leader sees to that.
async fn members_complete(
    coordinator: &mut Coordinator,
    state: &MetaState,
    shard: &Shard,
) -> Result<Option<GroupMembers>, Stuck> {
    if state.replicas_of(shard.group).len() == 1 {
        return Ok(None);
    }
    let order = orders::Members { group: shard.group };
    let members = coordinator
        .controller
        .order_leader(state, shard.group, &order, MEMBERS_TIMEOUT)
        .await
        .map_err(|error| Stuck::For(format!("shard {}: {error}", shard.id)))?;
    let ids = members.voters.iter().chain(&members.learners).map(|(id, _)| *id).collect();
    coordinator.note_fed(shard.group, (members.fed, ids));
    if is_complete(&members, &shard.replicas, state.version) {
        return Ok(Some(members));
    }
    if let Some(node) = members.too_old.iter().find(|node| shard.replicas.contains(node)) {
        return Err(Stuck::For(format!("shard {}: {}", shard.id, voters::too_old(node))));
    }
    let names = |nodes: &[&Address]| nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
    Err(Stuck::For(format!(
        "shard {} is held by {}, and is to be held by {}: its replicas are being moved",
        shard.id,
        names(&voting(&members)),
        names(&sorted(shard.replicas.iter()))
    )))
}

/// Whether just these nodes hold the replicas of a shard, by what its leader says, and it acts by this version of the state: whoever leaves
/// may be ended then.
fn is_complete(members: &GroupMembers, nodes: &[Address], version: u64) -> bool {
    let have_moved =
        voting(members) == sorted(nodes.iter()) && members.learners.is_empty() && !members.changing;
    have_moved && members.version >= version
}

fn voting(members: &GroupMembers) -> Vec<&Address> {
    sorted(members.voters.iter().map(|(_, node)| node))
}

fn sorted<'a>(nodes: impl Iterator<Item = &'a Address>) -> Vec<&'a Address> {
    let mut nodes: Vec<&Address> = nodes.collect();
    nodes.sort();
    nodes
}

async fn receipt(
    coordinator: &Coordinator,
    state: &MetaState,
    id: u64,
    planned: &Planned,
) -> Result<Value, Stuck> {
    let mut sum = planned.left;
    let mut copied = planned.copied;
    let mut shards = Vec::new();
    for shard in &state.view.shards {
        let stays = planned.shards.iter().position(|planned| planned.group == shard.group);
        let Some(index) = stays else { continue };
        let tallied = tally(coordinator, state, id, shard.group).await?;
        sum += tallied.tally;
        let new_replicas = planned.shards[index].replicas.iter();
        let new_replicas = new_replicas.filter(|node| !shard.replicas.contains(node)).count();
        copied += tallied.pairs * new_replicas as u64;
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
    shards.sort_by_key(|(shard, _)| *shard);
    let hold = coordinator.longest_hold(id).as_micros();
    let hold_us = planned.hold_us.max(u64::try_from(hold).unwrap_or(u64::MAX));
    let wanted = state.change.iter().map(|change| change.wanted.limits).find(WantedLimits::are_named);
    let limits = wanted.map_or(state.limits, |wanted| state.limits.raised(&wanted));
    let changed = [planned.shards != state.view.shards, limits != state.limits];
    let epoch = state.view.epoch + changed.into_iter().map(u64::from).sum::<u64>();
    let mut receipt = json!({
        "message": "View change successful",
        "shards": shards.into_iter().map(|(_, row)| row).collect::<Vec<_>>(),
        "change-id": format!("{id:016x}"),
        "epoch": epoch,
        "keys": planned.keys,
        "moved": planned.moved,
        "minimum": planned.minimum,
        "copied": copied,
        "created-meanwhile": sum.created,
        "deleted-meanwhile": sum.deleted,
        "hold-ms": f64::from(u32::try_from(hold_us / 10).unwrap_or(u32::MAX)) / 100.0,
        // A piece is handed over only where both sums are equal.
        "checksums-match": planned.pieces.iter().all(|piece| piece.handed_over),
    });
    if wanted.is_some() {
        receipt["limits"] = json!(limits);
    }
    if !planned.given_up.is_empty() {
        let rows = planned.given_up.iter().map(|lost| {
            json!({ "shard-id": lost.id.to_string(), "replicas": lost.replicas, "key-count": lost.pairs })
        });
        receipt["given-up"] = rows.collect();
    }
    Ok(receipt)
}

/// What a shard has counted since the cut.
async fn tally(coordinator: &Coordinator, state: &MetaState, id: u64, group: u64) -> Result<Tallied, Stuck> {
    let order = orders::Tally { group, change: id };
    coordinator.controller.order_leader(state, group, &order, TALLY_TIMEOUT).await.map_err(
        |error| match error {
            OrderError::Gone(reason) => Stuck::Lost(format!("{reason}: its shard is lost")),
            error => Stuck::For(error.to_string()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fake::{address, members};

    #[test]
    fn a_shard_is_complete_when_just_its_nodes_hold_it() {
        let nodes = [address(3), address(1), address(2)];
        for (complete, members, version, what) in [
            (true, members(&[1, 2, 3], &[], false), 5, "just they"),
            (false, members(&[1, 2, 3], &[], false), 6, "it does not act by the state yet"),
            (false, members(&[1, 2], &[3], false), 5, "one has no vote yet"),
            (false, members(&[1, 2, 4], &[], false), 5, "one that leaves is still needed"),
            (false, members(&[1, 2, 3, 4], &[], false), 5, "one is still to be taken out"),
            (false, members(&[1, 2, 3], &[4], false), 5, "one is not wanted"),
            (false, members(&[1, 2, 3], &[], true), 5, "old votes still count"),
        ] {
            assert_eq!(is_complete(&members, &nodes, version), complete, "{what}");
        }
    }
}
