//! What sources and targets do for a piece, message by message, as `reshard::pieces` does.

use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;

use super::Shared;
use super::tasks::call;
use crate::model::address::Address;
use crate::model::range::HashRange;
use crate::model::shard::{Delta, Frozen, Shard, Stamp};
use crate::model::store::{Batch, BatchLimit};

const BATCH: BatchLimit = BatchLimit { pairs: 2, bytes: 1000 };
const DELTA_ROUNDS: usize = 3;
/// A source that has not answered after so many turns will not.
const PARCEL_TURNS: u64 = 40;

/// Where a piece comes from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) node: Address,
    pub(super) group: u64,
}

fn shard_of(world: &Shared, node: &Address, group: u64) -> Result<Arc<Shard>, String> {
    world.nodes[node].shard_of(group).ok_or_else(|| format!("{node} holds no replica of group {group}"))
}

/// Asks the source's shard something.
async fn ask<T: 'static>(
    world: &Shared,
    source: &Source,
    question: impl Fn(&Shard) -> Result<T, String> + 'static,
) -> Result<T, String> {
    let (there, source) = (Rc::clone(world), source.clone());
    let answer = call(world, PARCEL_TURNS, move || {
        there.touched.set(true);
        ready(shard_of(&there, &source.node, source.group).and_then(|shard| question(&shard)))
    });
    answer.await.unwrap_or_else(|| Err("no answer".to_owned()))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The target receives what there is while the source serves.
pub(super) async fn copy(
    world: Shared,
    (target, group): (Address, u64),
    stamp: Stamp,
    range: HashRange,
    source: Source,
) -> Result<(), String> {
    let shard = shard_of(&world, &target, group)?;
    world.touched.set(true);
    shard.begin_incoming(&stamp, &range).map_err(text)?;
    let all = range.clone();
    ask(&world, &source, move |shard| shard.begin_outgoing(&stamp, &all).map_err(text)).await?;
    let mut rest = Some(range);
    while let Some(left) = rest {
        let batch: Batch =
            ask(&world, &source, move |shard| shard.outgoing_batch(&stamp, &left, BATCH).map_err(text))
                .await?;
        shard.install(&stamp, &Delta { pairs: batch.pairs, deleted: Vec::new() }).map_err(text)?;
        rest = batch.rest;
    }
    for _ in 0..DELTA_ROUNDS {
        let delta = ask(&world, &source, move |shard| {
            shard.take_delta(&stamp).and_then(|()| shard.taken_delta(&stamp)).map_err(text)
        });
        let delta = delta.await?;
        shard.install(&stamp, &delta).map_err(text)?;
        if delta.pairs.len() + delta.deleted.len() < 2 {
            break;
        }
    }
    Ok(())
}

/// The target has the range frozen, receives the rest, and compares.
pub(super) async fn prepare(
    world: Shared,
    (target, group): (Address, u64),
    stamp: Stamp,
    source: Source,
) -> Result<u64, String> {
    let shard = shard_of(&world, &target, group)?;
    let parcel = ask(&world, &source, move |shard| {
        shard.freeze(&stamp).and_then(|()| shard.frozen_parcel(&stamp)).map_err(text)
    });
    let (delta, frozen): (Delta, Frozen) = parcel.await?;
    shard.install(&stamp, &delta).map_err(text)?;
    world.touched.set(true);
    shard.prepare(&stamp, &frozen).map(|received| received.pairs).map_err(text)
}
