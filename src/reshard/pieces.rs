//! Moving one piece: what its source and its target do.

use std::time::Duration;

use super::controller::led;
use crate::clock::{Deadline, now, ticks_ms};
use crate::failpoints::failpoint;
use crate::model::range::HashRange;
use crate::model::shard::{Delta, Frozen, MoveError, Shard, ShardCommand, ShardOutcome, Stamp, first_of};
use crate::model::store::BatchLimit;
use crate::node::ask::OrderError;
use crate::node::forwarded::NotMeant;
use crate::node::state::Node;
use crate::wire::pairs::Parcel;
use crate::wire::{Addressed, Prepared, Source, Transfer};

/// What is sent at one time.
const BATCH: BatchLimit = BatchLimit { pairs: 2048, bytes: 1 << 20 };
/// What is installed by one command of a log, in bytes, or one larger pair: such an entry is shorter than the longest that a log takes.
const INSTALLED_BYTES: usize = 8 << 20;
/// A source that does not send its next parcel within this time will not.
const PARCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// A group that does not take an order about a piece within this time may yet: the attempt is given up.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds in which the target catches up with the writers while the source serves.
const DELTA_ROUNDS: usize = 6;
/// With fewer changes than this left the range can be frozen: the rest goes quickly.
const FEW_CHANGES: usize = 64;
/// While clients use the source or the target, copying rests for so many times as long as it works.
const REST: u32 = 9;

/// The part of the source: answers what the target asks, another node, which knows forms up to a format.
///
/// # Errors
/// Why it does not.
pub async fn give_sender(
    node: &Node,
    addressed: Option<&Addressed>,
    transfer: &Transfer,
    knows: u32,
) -> Result<Parcel, OrderError> {
    node.check_addressed(addressed).map_err(|error| match error {
        NotMeant::Gone(reason) => OrderError::Gone(reason),
        NotMeant::NotYet(reason) | NotMeant::Unclear(reason) => OrderError::Refused(reason),
    })?;
    let parcel = give(node, transfer).await?;
    if parcel.delta.needs() > knows {
        return Err(OrderError::Refused(format!(
            "{}: the range has values that are not JSON or pairs that end, and the node that is to take it is of a version that does not know them: run a newer one there",
            node.address
        )));
    }
    Ok(parcel)
}

async fn give(node: &Node, transfer: &Transfer) -> Result<Parcel, OrderError> {
    let (Transfer::Begin { group, .. }
    | Transfer::Batch { group, .. }
    | Transfer::Delta { group, .. }
    | Transfer::Freeze { group, .. }) = transfer;
    let shard = led(node, *group)?;
    let own = |error: MoveError| OrderError::Refused(format!("{}: {error}", node.address));
    let mut parcel = Parcel::default();
    match transfer {
        Transfer::Begin { stamp, range, .. } => {
            let begin = ShardCommand::BeginOutgoing { stamp: *stamp, range: range.clone() };
            change(node, &shard, &begin).await?;
        }
        Transfer::Batch { stamp, rest, .. } => {
            let (start, before) = (now(), node.operations());
            let batch = shard.outgoing_batch(stamp, rest, BATCH);
            failpoint!("source-batch");
            parcel.busy = node.is_used_since(start, before);
            let batch = batch.map_err(own)?;
            (parcel.delta.pairs, parcel.rest) = (batch.pairs, batch.rest);
        }
        Transfer::Delta { stamp, .. } => {
            change(node, &shard, &ShardCommand::TakeDelta { stamp: *stamp }).await?;
            parcel.delta = shard.taken_delta(stamp).map_err(own)?;
        }
        Transfer::Freeze { stamp, .. } => {
            let frozen = change(node, &shard, &ShardCommand::Freeze { stamp: *stamp }).await;
            failpoint!("source-frozen");
            frozen?;
            let (delta, mut frozen) = shard.frozen_parcel(stamp, shard.time(ticks_ms())).map_err(own)?;
            // It has taken a while, and is not to count as being on the way.
            frozen.time_ms = frozen.time_ms.map(|_| shard.time(ticks_ms()));
            (parcel.delta, parcel.frozen) = (delta, Some(frozen));
        }
    }
    Ok(parcel)
}

/// Has a shard take an order about a piece.
async fn change(node: &Node, shard: &Shard, command: &ShardCommand) -> Result<(), OrderError> {
    match node.apply(shard, command, Deadline::after(now(), CHANGE_TIMEOUT)).await? {
        ShardOutcome::Moved(Ok(())) | ShardOutcome::Done => Ok(()),
        ShardOutcome::Moved(Err(error)) => Err(OrderError::Refused(format!("{}: {error}", node.address))),
        _ => Err(OrderError::Refused(format!("{}: the shard did not take the order", node.address))),
    }
}

/// The part of the target, while the source serves: receives what there is.
///
/// # Errors
/// Why it has not.
pub async fn copy(
    node: &Node,
    stamp: Stamp,
    group: u64,
    range: &HashRange,
    source: Option<&Source>,
) -> Result<(), OrderError> {
    let shard = led(node, group)?;
    change(node, &shard, &ShardCommand::BeginIncoming { stamp, range: range.clone() }).await?;
    let install = async |delta| install(node, &shard, stamp, delta).await;
    let Some(source) = source else { return Ok(()) };
    let ask = async |transfer: &Transfer| ask(node, source, transfer, PARCEL_TIMEOUT).await;
    let given = source.group;
    ask(&Transfer::Begin { stamp, group: given, range: range.clone() }).await?;
    let mut rest = Some(range.clone());
    while let Some(left) = rest {
        let (start, before) = (now(), node.operations());
        let parcel = ask(&Transfer::Batch { stamp, group: given, rest: left }).await?;
        install(parcel.delta).await?;
        failpoint!("target-copying");
        rest = parcel.rest;
        if parcel.busy || node.is_used_since(start, before) {
            // The machine is left to them.
            node.pause((now() - start) * REST).await;
        }
    }
    for _ in 0..DELTA_ROUNDS {
        let parcel = ask(&Transfer::Delta { stamp, group: given }).await?;
        let changes = parcel.delta.pairs.len() + parcel.delta.deleted.len();
        install(parcel.delta).await?;
        if changes < FEW_CHANGES {
            break;
        }
    }
    Ok(())
}

/// Has a shard install what the source sent, in parts that its log takes.
async fn install(node: &Node, shard: &Shard, stamp: Stamp, delta: Delta) -> Result<(), OrderError> {
    for delta in delta.parts(INSTALLED_BYTES) {
        change(node, shard, &ShardCommand::Install { stamp, delta }).await?;
    }
    Ok(())
}

/// Where the pairs of a piece come from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// From the shard that has them.
    Shard(&'a Source),
    /// From nowhere: they were given up in this generation of the cluster.
    GivenUp {
        /// The generation.
        generation: u64,
    },
}

/// The part of the target in the end: has the range frozen, receives the rest, and compares.
///
/// # Errors
/// Why the piece cannot be handed over.
pub async fn prepare(
    node: &Node,
    stamp: Stamp,
    group: u64,
    from: Origin<'_>,
    limit: Duration,
) -> Result<Prepared, OrderError> {
    let shard = led(node, group)?;
    let start = now();
    let (frozen, shift_ms) = match from {
        // What versions the range has had nobody knows any more, but none of a later generation.
        Origin::GivenUp { generation } => (Frozen { index: first_of(generation), ..Frozen::default() }, None),
        Origin::Shard(source) => {
            let freeze = Transfer::Freeze { stamp, group: source.group };
            let parcel = ask(node, source, &freeze, limit).await?;
            // Another may lead by now, by whose clock the time goes on.
            node.leads(&shard)?;
            let came_ms = shard.time(ticks_ms());
            install(node, &shard, stamp, parcel.delta).await?;
            let frozen = parcel.frozen;
            let frozen = frozen.ok_or_else(|| format!("{}: the last parcel is missing", source.node))?;
            let shift_ms = frozen.shift_at(came_ms);
            (frozen, shift_ms)
        }
    };
    node.leads(&shard)?;
    let prepared = ShardCommand::Prepare { stamp, frozen, now_ms: shard.time(ticks_ms()), shift_ms };
    let received = match node.apply(&shard, &prepared, Deadline::after(now(), CHANGE_TIMEOUT)).await? {
        ShardOutcome::Prepared(Ok(received)) => received,
        ShardOutcome::Prepared(Err(error)) => {
            if matches!(error, MoveError::ChecksumDiffers { .. }) {
                log::error!("piece {}: {error}", stamp.piece);
            }
            return Err(OrderError::Refused(format!("{}: {error}", node.address)));
        }
        _ => return Err(OrderError::Refused(format!("{}: the shard did not take the order", node.address))),
    };
    failpoint!("target-prepared");
    let held = now() - start;
    if held > limit {
        let held = held.as_millis();
        return Err(OrderError::Refused(format!("{}: the range was frozen for {held} ms", node.address)));
    }
    let held_us = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
    Ok(Prepared { pairs: received.pairs, held_us })
}

async fn ask(
    node: &Node,
    source: &Source,
    transfer: &Transfer,
    timeout: Duration,
) -> Result<Parcel, OrderError> {
    let deadline = Deadline::after(now(), timeout);
    node.transfer(&source.node, source.incarnation, transfer, deadline).await.map_err(|error| match error {
        // To whoever has ordered the move it is the target that failed.
        OrderError::Gone(reason) => OrderError::LostSource(reason),
        other => OrderError::Refused(other.to_string()),
    })
}
