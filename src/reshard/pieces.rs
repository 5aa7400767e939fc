//! Moving one piece: what its source and its target do.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Deadline, now};
use crate::model::range::HashRange;
use crate::model::shard::{Frozen, MoveError, Shard, Stamp};
use crate::model::store::BatchLimit;
use crate::node::ask::OrderError;
use crate::node::state::Node;
use crate::points::point;
use crate::wire::pairs::Parcel;
use crate::wire::{Prepared, Source, Transfer};

/// What is sent at one time.
const BATCH: BatchLimit = BatchLimit { pairs: 2048, bytes: 1 << 20 };
/// A source that does not send its next parcel within this time will not.
const PARCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Rounds in which the target catches up with the writers while the source serves.
const DELTA_ROUNDS: usize = 6;
/// With fewer changes than this left the range can be frozen: the rest goes quickly.
const FEW_CHANGES: usize = 64;
/// While clients use the source or the target, copying rests for so many times as long as it works.
const REST: u32 = 2;
/// So many key operations in a second are use.
const USE_PER_SECOND: u128 = 200;

/// The part of the source: answers what its target asks.
///
/// # Errors
/// Why it does not.
pub fn give(node: &Node, transfer: &Transfer) -> Result<Parcel, String> {
    let (Transfer::Begin { group, .. }
    | Transfer::Batch { group, .. }
    | Transfer::Delta { group, .. }
    | Transfer::Freeze { group, .. }) = transfer;
    let shard = shard_of(node, *group)?;
    let mut parcel = Parcel::default();
    let done: Result<(), MoveError> = match transfer {
        Transfer::Begin { stamp, range, .. } => shard.begin_outgoing(stamp, range),
        Transfer::Batch { stamp, rest, .. } => {
            let (start, before) = (now(), node.operations());
            let batch = shard.outgoing_batch(stamp, rest, BATCH);
            point!("source-batch");
            parcel.busy = is_used(node, before, start);
            batch.map(|batch| (parcel.delta.pairs, parcel.rest) = (batch.pairs, batch.rest))
        }
        Transfer::Delta { stamp, .. } => {
            let delta = shard.take_delta(stamp).and_then(|()| shard.taken_delta(stamp));
            delta.map(|delta| parcel.delta = delta)
        }
        Transfer::Freeze { stamp, .. } => {
            let frozen = shard.freeze(stamp).and_then(|()| shard.frozen_parcel(stamp));
            point!("source-frozen");
            frozen.map(|(delta, frozen)| (parcel.delta, parcel.frozen) = (delta, Some(frozen)))
        }
    };
    done.map(|()| parcel).map_err(|error| format!("{}: {error}", node.address))
}

/// Whether clients use a node, by what they have done since a moment.
fn is_used(node: &Node, before: u64, start: std::time::Instant) -> bool {
    let micros = (now() - start).as_micros().max(1);
    u128::from(node.operations() - before) * 1_000_000 > USE_PER_SECOND * micros
}

fn shard_of(node: &Node, group: u64) -> Result<Arc<Shard>, String> {
    let shard = node.shard().filter(|shard| shard.group() == group);
    shard.ok_or_else(|| format!("{} holds no replica of group {group}", node.address))
}

/// The part of the target, while the source serves: receives what there is.
///
/// # Errors
/// Why it has not.
pub fn copy(
    node: &Node,
    stamp: Stamp,
    group: u64,
    range: &HashRange,
    source: Option<&Source>,
) -> Result<(), String> {
    let shard = shard_of(node, group)?;
    let own = |error: MoveError| format!("{}: {error}", node.address);
    shard.begin_incoming(&stamp, range).map_err(own)?;
    let Some(source) = source else { return Ok(()) };
    let ask = |transfer: &Transfer| ask(node, source, transfer, PARCEL_TIMEOUT);
    let given = source.group;
    ask(&Transfer::Begin { stamp, group: given, range: range.clone() })?;
    let mut rest = Some(range.clone());
    while let Some(left) = rest {
        let (start, before) = (now(), node.operations());
        let parcel = ask(&Transfer::Batch { stamp, group: given, rest: left })?;
        shard.install(&stamp, &parcel.delta).map_err(own)?;
        point!("target-copying");
        rest = parcel.rest;
        if parcel.busy || is_used(node, before, start) {
            rest_for((now() - start) * REST);
        }
    }
    for _ in 0..DELTA_ROUNDS {
        let parcel = ask(&Transfer::Delta { stamp, group: given })?;
        let changes = parcel.delta.pairs.len() + parcel.delta.deleted.len();
        shard.install(&stamp, &parcel.delta).map_err(own)?;
        if changes < FEW_CHANGES {
            break;
        }
    }
    Ok(())
}

/// Leaves the machine to clients for a while.
#[expect(clippy::disallowed_methods, reason = "it is the time itself that is waited for")]
fn rest_for(time: Duration) {
    std::thread::sleep(time);
}

/// The part of the target in the end: has the range frozen, receives the rest, and compares.
///
/// # Errors
/// Why the piece cannot be handed over.
pub fn prepare(
    node: &Node,
    stamp: Stamp,
    group: u64,
    source: Option<&Source>,
    limit: Duration,
) -> Result<Prepared, String> {
    let shard = shard_of(node, group)?;
    let own = |error: MoveError| format!("{}: {error}", node.address);
    let start = now();
    let frozen = match source {
        None => Frozen::default(),
        Some(source) => {
            let parcel = ask(node, source, &Transfer::Freeze { stamp, group: source.group }, limit)?;
            shard.install(&stamp, &parcel.delta).map_err(own)?;
            parcel.frozen.ok_or_else(|| format!("{}: the last parcel is missing", source.node))?
        }
    };
    let received = shard.prepare(&stamp, &frozen).map_err(|error| {
        if matches!(error, MoveError::ChecksumDiffers { .. }) {
            log::error!("piece {}: {error}", stamp.piece);
        }
        own(error)
    })?;
    point!("target-prepared");
    let held = now() - start;
    if held > limit {
        return Err(format!("{}: the range was frozen for {} ms", node.address, held.as_millis()));
    }
    let held_us = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
    Ok(Prepared { pairs: received.pairs, held_us })
}

fn ask(node: &Node, source: &Source, transfer: &Transfer, timeout: Duration) -> Result<Parcel, String> {
    let deadline = Deadline::after(now(), timeout);
    node.transfer(&source.node, source.instance, transfer, deadline).map_err(|error| match error {
        OrderError::Gone(reason) => format!("{LOST_SOURCE}{reason}"),
        other => other.to_string(),
    })
}

/// How a target says that the source of a piece is gone for good.
pub const LOST_SOURCE: &str = "the source is lost: ";
