//! Moving one piece, as `reshard::pieces` does.

use std::rc::Rc;

use super::Shared;
use super::group_ops::{Failed, apply, order};
use crate::model::range::HashRange;
use crate::model::shard::{Delta, Frozen, MoveError, Shard, ShardCommand, ShardOutcome, Stamp};
use crate::model::store::BatchLimit;

const BATCH: BatchLimit = BatchLimit { pairs: 3, bytes: 1000 };
const DELTA_ROUNDS: usize = 2;
/// A source that has not sent its next parcel after so many steps will not.
const PARCEL_TURNS: u64 = 150;

/// Where a piece comes from: the node that leads the shard that gives it, the start of it, and the group.
pub(super) type Source = (usize, u64, u64);

/// What a target asks a source.
#[derive(Clone)]
enum Transfer {
    Begin(HashRange),
    Batch(HashRange),
    Delta,
    Freeze,
}

#[derive(Default)]
struct Parcel {
    delta: Delta,
    rest: Option<HashRange>,
    frozen: Option<Frozen>,
}

fn refused(error: &MoveError) -> Failed {
    Failed::Refused(error.to_string())
}

/// Has a shard take an order about a piece.
async fn change(world: &Shared, place: usize, shard: &Shard, command: ShardCommand) -> Result<(), Failed> {
    match apply(world, place, shard, &command).await? {
        ShardOutcome::Moved(Ok(())) => Ok(()),
        ShardOutcome::Moved(Err(error)) => Err(refused(&error)),
        other => Err(Failed::Refused(format!("{other:?}"))),
    }
}

/// The part of the source: answers what its target asks.
async fn give(
    world: Shared,
    place: usize,
    (stamp, group): (Stamp, u64),
    transfer: Transfer,
) -> Result<Parcel, Failed> {
    let shard = world.led(place, group)?;
    let mut parcel = Parcel::default();
    match transfer {
        Transfer::Begin(range) => {
            change(&world, place, &shard, ShardCommand::BeginOutgoing { stamp, range }).await?;
        }
        Transfer::Batch(rest) => {
            let batch = shard.outgoing_batch(&stamp, &rest, BATCH).map_err(|error| refused(&error))?;
            (parcel.delta.pairs, parcel.rest) = (batch.pairs, batch.rest);
        }
        Transfer::Delta => {
            change(&world, place, &shard, ShardCommand::TakeDelta { stamp }).await?;
            parcel.delta = shard.taken_delta(&stamp).map_err(|error| refused(&error))?;
        }
        Transfer::Freeze => {
            change(&world, place, &shard, ShardCommand::Freeze { stamp }).await?;
            let (delta, frozen) = shard.frozen_parcel(&stamp).map_err(|error| refused(&error))?;
            (parcel.delta, parcel.frozen) = (delta, Some(frozen));
        }
    }
    Ok(parcel)
}

async fn ask(
    world: &Shared,
    place: usize,
    stamp: Stamp,
    (node, instance, group): Source,
    transfer: Transfer,
) -> Result<Parcel, Failed> {
    let work = move |world, place| give(world, place, (stamp, group), transfer.clone());
    order(world, (place, node), instance, PARCEL_TURNS, work).await.map_err(|error| {
        // To whoever has ordered the move it is the target that failed.
        Failed::Refused(format!("the source: {error:?}"))
    })
}

/// The part of the target, while the source serves: receives what there is.
pub(super) async fn copy(
    world: Shared,
    place: usize,
    (stamp, group): (Stamp, u64),
    range: HashRange,
    source: Source,
) -> Result<(), Failed> {
    let world = Rc::clone(&world);
    let shard = world.led(place, group)?;
    change(&world, place, &shard, ShardCommand::BeginIncoming { stamp, range: range.clone() }).await?;
    ask(&world, place, stamp, source, Transfer::Begin(range.clone())).await?;
    let mut rest = Some(range);
    while let Some(left) = rest {
        let parcel = ask(&world, place, stamp, source, Transfer::Batch(left)).await?;
        change(&world, place, &shard, ShardCommand::Install { stamp, delta: parcel.delta }).await?;
        rest = parcel.rest;
    }
    for _ in 0..DELTA_ROUNDS {
        let parcel = ask(&world, place, stamp, source, Transfer::Delta).await?;
        let changes = parcel.delta.pairs.len() + parcel.delta.deleted.len();
        change(&world, place, &shard, ShardCommand::Install { stamp, delta: parcel.delta }).await?;
        if changes < 2 {
            break;
        }
    }
    Ok(())
}

/// The part of the target in the end: has the range frozen, receives the rest, and compares. So many pairs were received.
pub(super) async fn prepare(
    world: Shared,
    place: usize,
    (stamp, group): (Stamp, u64),
    source: Source,
    limit: u64,
) -> Result<u64, Failed> {
    let shard = world.led(place, group)?;
    let start = world.now.get();
    let parcel = ask(&world, place, stamp, source, Transfer::Freeze).await?;
    change(&world, place, &shard, ShardCommand::Install { stamp, delta: parcel.delta }).await?;
    let frozen = parcel.frozen.ok_or_else(|| Failed::Refused("the last parcel is missing".to_owned()))?;
    let received = match apply(&world, place, &shard, &ShardCommand::Prepare { stamp, frozen }).await? {
        ShardOutcome::Prepared(Ok(received)) => received.pairs,
        ShardOutcome::Prepared(Err(error)) => {
            if matches!(error, MoveError::ChecksumDiffers { .. }) {
                world.count(|tally| tally.differing += 1);
            }
            return Err(refused(&error));
        }
        other => return Err(Failed::Refused(format!("{other:?}"))),
    };
    if world.now.get() - start > limit {
        return Err(Failed::Refused("the range was frozen for too long".to_owned()));
    }
    Ok(received)
}
