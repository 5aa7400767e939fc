//! The ranges that a shard owns.

use crate::model::binary::Malformed;
use crate::model::hash::KeyHash;
use crate::model::range::{HashRange, Point};

/// Disjoint ranges, ascending, each with the epoch in which it was gained.
#[derive(Debug, Default, Clone)]
pub(super) struct OwnedRanges {
    rows: Vec<(HashRange, u64)>,
}

impl OwnedRanges {
    /// The ranges of a snapshot.
    ///
    /// # Errors
    /// When they do not ascend, or overlap.
    pub(super) fn from_rows(rows: Vec<(HashRange, u64)>) -> Result<Self, Malformed> {
        let ascend = rows.windows(2).all(|two| two[0].0.to.as_ref().is_some_and(|to| *to <= two[1].0.from));
        if ascend { Ok(Self { rows }) } else { Err(Malformed("owned ranges ascend")) }
    }

    pub(super) fn rows(&self) -> &[(HashRange, u64)] {
        &self.rows
    }

    /// The epoch in which the range of a key was gained, if it is owned.
    pub(super) fn gained(&self, hash: KeyHash, key: &[u8]) -> Option<u64> {
        let after = self.rows.partition_point(|(range, _)| range.from.is_at_or_before(hash, key));
        let (range, gained) = self.rows.get(after.checked_sub(1)?)?;
        range.contains(hash, key).then_some(*gained)
    }

    /// Adds a range of which nothing is owned yet. Ranges of different epochs stay apart.
    pub(super) fn add(&mut self, range: HashRange, gained: u64) {
        let at = self.rows.partition_point(|(row, _)| row.from < range.from);
        self.rows.insert(at, (range, gained));
        self.join(|since, gained| (since == gained).then_some(since));
    }

    /// Makes one of neighbours, gained with the later one. Whoever still routes by an epoch in between asks again.
    pub(super) fn merge(&mut self) {
        self.join(|since, gained| Some(gained.max(since)));
    }

    fn join(&mut self, epoch_of_both: impl Fn(u64, u64) -> Option<u64>) {
        let mut joined: Vec<(HashRange, u64)> = Vec::with_capacity(self.rows.len());
        for (range, gained) in self.rows.drain(..) {
            let last = joined.last_mut().filter(|(last, _)| last.to.as_ref() == Some(&range.from));
            match last.and_then(|last| epoch_of_both(last.1, gained).map(|both| (last, both))) {
                Some((last, both)) => (last.0.to, last.1) = (range.to, both),
                None => joined.push((range, gained)),
            }
        }
        self.rows = joined;
    }

    /// Takes a range away, as far as it is owned.
    pub(super) fn remove(&mut self, range: &HashRange) {
        let rows = std::mem::take(&mut self.rows);
        for (row, gained) in rows {
            self.rows.extend(subtract(&row, range).into_iter().map(|rest| (rest, gained)));
        }
    }

    /// What is owned beyond these ranges, which ascend.
    pub(super) fn beyond(&self, ranges: &[HashRange]) -> Vec<HashRange> {
        let mut beyond = Vec::new();
        for (row, _) in &self.rows {
            let first = ranges.partition_point(|range| !ends_after(range.to.as_ref(), &row.from));
            let mut rest = vec![row.clone()];
            for range in ranges[first..].iter().take_while(|range| overlap(row, range)) {
                rest = rest.iter().flat_map(|row| subtract(row, range)).collect();
            }
            beyond.append(&mut rest);
        }
        beyond
    }
}

/// Whether ranges, together, have all of one.
pub fn cover(ranges: &[HashRange], range: &HashRange) -> bool {
    subtract_all(vec![range.clone()], ranges).is_empty()
}

/// What is left of ranges without others.
pub fn subtract_all(mut ranges: Vec<HashRange>, others: &[HashRange]) -> Vec<HashRange> {
    for other in others {
        ranges = ranges.iter().flat_map(|range| subtract(range, other)).collect();
    }
    ranges
}

/// Whether two ranges have a point in common.
pub(super) fn overlap(one: &HashRange, other: &HashRange) -> bool {
    ends_after(one.to.as_ref(), &other.from) && ends_after(other.to.as_ref(), &one.from)
}

/// What two ranges have in common.
pub fn intersection(one: &HashRange, other: &HashRange) -> Option<HashRange> {
    let from = one.from.clone().max(other.from.clone());
    let to = match (&one.to, &other.to) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.as_ref().or(b.as_ref()),
    };
    overlap(one, other).then(|| HashRange { from, to: to.cloned() })
}

fn ends_after(end: Option<&Point>, point: &Point) -> bool {
    end.is_none_or(|end| end > point)
}

/// The parts of `row` that lie outside `range`: none, one or two.
fn subtract(row: &HashRange, range: &HashRange) -> Vec<HashRange> {
    if !overlap(row, range) {
        return vec![row.clone()];
    }
    let before =
        (row.from < range.from).then(|| HashRange { from: row.from.clone(), to: Some(range.from.clone()) });
    let after = range.to.as_ref().filter(|to| ends_after(row.to.as_ref(), to));
    let after = after.map(|to| HashRange { from: to.clone(), to: row.to.clone() });
    before.into_iter().chain(after).collect()
}
