//! From pieces counted in pairs to runs of the space, and who gets the space that holds no pair.

use std::collections::BTreeMap;

use super::balance::{Needs, Piece, even_out};
use super::range::{HashRange, Point};

/// Shards share out their empty space where one is off its even part by more than one in so many.
const WIDTH_TOLERANCE: u64 = 4;

/// Widths are counted in units of two to this power, so that the whole space is 2^63 of them.
const UNIT_BITS: u32 = 65;

/// The places of keys by row of the old table and rank in it.
pub(super) type Places = BTreeMap<(usize, u64), Point>;

/// The shards of both views by one number: those of the new view by their index, then those that go.
pub(super) struct Sides {
    by_old_shard: Vec<usize>,
    /// How many shards the new view has.
    pub(super) new: usize,
}

/// A run of the space, from a point to where the next one begins: who owned it, who shall, what it holds.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) from: Point,
    /// The shard before, by its index in the old view.
    pub(super) origin: usize,
    /// The shard after, by its index in the new view (a side, until the empty space is shared).
    pub(super) owner: usize,
    pub(super) pairs: u64,
}

impl Sides {
    /// Numbers the shards, from where each shard of the old view stands in the new one.
    pub(super) fn new(stays_as: &[Option<usize>], new: usize) -> Self {
        let mut going = new..;
        let by_old_shard =
            stays_as.iter().map(|side| side.or_else(|| going.next()).expect("numbers do not end")).collect();
        Self { by_old_shard, new }
    }

    /// The number of a shard of the old view.
    pub(super) fn of(&self, old_shard: usize) -> usize {
        self.by_old_shard[old_shard]
    }

    /// How many numbers there are.
    pub(super) fn count(&self) -> usize {
        self.by_old_shard.iter().map(|side| side + 1).max().unwrap_or(0).max(self.new)
    }
}

/// Turns pieces of rows, counted in pairs, into runs of the space; with `each_key` the gaps between the keys
/// become runs of their own, and then all places must be known.
pub(super) fn runs(
    rows: &[(HashRange, usize)],
    pieces: &[Piece],
    places: &Places,
    each_key: bool,
) -> Vec<Run> {
    let mut runs = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let cut = |piece: &Piece| match piece.from.checked_sub(1) {
            None => rows[piece.source].0.from.clone(),
            Some(before) => {
                Point::between(&places[&(piece.source, before)], &places[&(piece.source, piece.from)])
            }
        };
        let run = |from, pairs| Run { from, origin: rows[piece.source].1, owner: piece.owner, pairs };
        let from = cut(piece);
        if !each_key {
            runs.push(run(from, piece.to - piece.from));
            continue;
        }
        let to = pieces.get(index + 1).map(cut);
        let keys = (piece.from..piece.to).map(|rank| &places[&(piece.source, rank)]);
        split_at_keys(from, to.as_ref(), keys, |from, pairs| runs.push(run(from, pairs)));
    }
    runs
}

/// Splits a run into the gaps between its keys and the hashes that have keys.
fn split_at_keys<'a>(
    from: Point,
    to: Option<&Point>,
    keys: impl Iterator<Item = &'a Point>,
    mut emit: impl FnMut(Point, u64),
) {
    let is_inside = |point: &Point| to.is_none_or(|to| point < to);
    let mut keys = keys.peekable();
    let mut next = Some(from);
    while let Some(at) = next.take() {
        let Some(key) = keys.peek() else {
            emit(at, 0);
            break;
        };
        let hash = key.hash;
        let begin = Point::before_hash(hash);
        if at < begin {
            emit(at, 0);
            next = Some(begin);
            continue;
        }
        let mut pairs = 0;
        while keys.next_if(|key| key.hash == hash).is_some() {
            pairs += 1;
        }
        emit(at, pairs);
        next = hash.checked_add(1).map(Point::before_hash).filter(is_inside);
    }
}

/// Shares out what holds no pair: the space of shards that go must be somebody's, and where
/// shards have far from equal parts of the space, those with more give of their empty parts. Owners are shards of the new view afterwards.
pub(super) fn share_empty_space(runs: Vec<Run>, sides: &Sides) -> Vec<Run> {
    if runs.iter().all(|run| run.pairs > 0) {
        return runs;
    }
    let end = |index: usize| runs.get(index + 1).map_or(1 << 63, |next| units(&next.from));
    let piece = |(source, run): (usize, &Run)| Piece {
        source,
        from: units(&run.from),
        to: end(source),
        owner: run.owner,
        movable: run.pairs == 0,
    };
    let pieces: Vec<Piece> = runs.iter().enumerate().map(piece).collect();
    let mut width = vec![0; sides.count()];
    for piece in &pieces {
        width[piece.owner] += piece.to - piece.from;
    }
    let part = (1 << 63) / sides.new as u64;
    let target = |side: usize| if side < sides.new { part } else { 0 };
    let is_uneven = width[..sides.new].iter().any(|width| width.abs_diff(part) > part / WIDTH_TOLERANCE);
    let gives = |side: usize| is_uneven || side >= sides.new;
    let needs = Needs {
        surplus: (0..)
            .zip(&width)
            .map(|(side, width)| if gives(side) { width.saturating_sub(target(side)) } else { 0 })
            .collect(),
        deficit: (0..).zip(&width).map(|(side, width)| target(side).saturating_sub(*width)).collect(),
    };
    let mut shared: Vec<Run> = Vec::with_capacity(pieces.len());
    for piece in even_out(pieces, needs) {
        let run = &runs[piece.source];
        let from = if piece.from == units(&run.from) {
            run.from.clone()
        } else {
            Point::before_hash(u128::from(piece.from) << UNIT_BITS)
        };
        shared.push(Run { from, owner: piece.owner, ..*run });
    }
    // What nobody lacked goes to a neighbour.
    let mut last = shared.iter().map(|run| run.owner).find(|owner| *owner < sides.new).unwrap_or(0);
    for run in &mut shared {
        if run.owner >= sides.new {
            run.owner = last;
        }
        last = run.owner;
    }
    shared
}

fn units(point: &Point) -> u64 {
    u64::try_from(point.hash >> UNIT_BITS).expect("63 bits are left")
}
