//! Counting a shard at one moment, and what is created and deleted after it.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::ranges::intersection;
use super::{Changes, HashRange, KeyHash, Mutex, Point, Shard, Table, WriteOutcome, Written};
use crate::model::store::{BatchLimit, Size};

/// With more creates and deletes than this between the count and the cut, the census is void and is taken again.
const MAX_CHANGES: usize = 1 << 20;

/// Which census, and who takes it. Orders arrive late and twice: a census takes the place of those before it only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusId {
    /// The version of the state that is planned from.
    pub version: u64,
    /// The term of the meta leader that plans; 0 for a plan that is only shown.
    pub term: u64,
    /// Which of those that one node takes.
    pub number: u64,
    /// The view change.
    pub change: u64,
}

impl CensusId {
    /// Whether it takes the place of another one. Of plans that are only shown any does, as they are of several nodes.
    fn replaces(self, other: Self) -> bool {
        let by = |census: Self| (census.version, census.term);
        by(self) > by(other) || by(self) == by(other) && (self.term == 0 || self.number > other.number)
    }

    /// Of a shard that was not counted.
    fn none(change: u64) -> Self {
        Self { version: 0, term: 0, number: 0, change }
    }
}

/// What was counted at the cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusCount {
    /// The pairs of each range that was asked for.
    pub pairs: Vec<u64>,
}

/// What clients have created and deleted since the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Keys that were absent before.
    pub created: u64,
    /// Keys that were there before.
    pub deleted: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.created += other.created;
        self.deleted += other.deleted;
    }
}

/// Counts what clients do since the cut of a view change.
pub(super) struct Tallying {
    pub(super) census: CensusId,
    pub(super) created: AtomicU64,
    pub(super) deleted: AtomicU64,
    /// The same key by key, for as long as the cut may be asked for places.
    pub(super) changes: Option<Mutex<Changes>>,
}

impl Tallying {
    pub(super) fn change(&self) -> u64 {
        self.census.change
    }

    /// No more places are asked for.
    pub(super) fn close(&mut self) {
        self.changes = None;
    }

    /// Does a write and notes what it did, in the order in which writes are done.
    pub(super) fn note(&self, hash: KeyHash, key: &[u8], write: impl FnOnce() -> Written) -> Written {
        let mut changes = self.changes.as_ref().map(Mutex::lock);
        let written = write();
        match written.outcome {
            WriteOutcome::Added => {
                self.created.fetch_add(1, Ordering::Relaxed);
                if let Some(changes) = changes.as_mut().filter(|changes| changes.len() < MAX_CHANGES) {
                    changes.note_created(Point::of(hash, key));
                }
            }
            WriteOutcome::Deleted => {
                self.deleted.fetch_add(1, Ordering::Relaxed);
                if let Some(changes) = changes.as_mut().filter(|changes| changes.len() < MAX_CHANGES) {
                    changes.note_deleted(Point::of(hash, key));
                }
            }
            WriteOutcome::Updated | WriteOutcome::Absent | WriteOutcome::Unmet => {}
        }
        written
    }
}

impl Shard {
    /// Counts ranges at one moment, the cut, for a view change, and tallies from then on what clients do. Nothing where one is planned
    /// already or a later census was taken: a former coordinator asks late.
    pub fn take_census(&self, census: CensusId, ranges: &[HashRange]) -> Option<CensusCount> {
        let mut table = self.table.write();
        let stands = table.tallying.as_ref().is_some_and(|tallying| !census.replaces(tallying.census));
        if table.planned || stands {
            return None;
        }
        let pairs = ranges.iter().map(|range| self.pairs_of(&table, range)).collect();
        table.tallying = Some(Tallying {
            census,
            created: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
            changes: Some(Mutex::default()),
        });
        Some(CensusCount { pairs })
    }

    /// The pairs of a range without those that are only still to be removed: replicas need not have removed the same ones.
    fn pairs_of(&self, table: &Table, range: &HashRange) -> u64 {
        let dropped = table.dropped.iter().filter_map(|(dropped, _)| intersection(dropped, range));
        let gone: u64 = dropped.map(|range| self.store.size_of(&range).pairs).sum();
        self.store.size_of(range).pairs.saturating_sub(gone)
    }

    /// The places of keys at the cut: for each (range, rank) the key that has so many of the range before it. Nothing
    /// where the census was replaced by another, or too much has changed since.
    pub fn places(&self, census: CensusId, questions: &[(HashRange, u64)]) -> Option<Vec<Point>> {
        let table = self.table.write();
        let tallying = table.tallying.as_ref().filter(|tallying| tallying.census == census)?;
        let changes = tallying.changes.as_ref()?.lock();
        if changes.len() >= MAX_CHANGES {
            return None;
        }
        self.store.places(questions, &changes)
    }

    /// Cuts ranges into pieces that are moved one at a time.
    pub fn pieces(&self, ranges: &[HashRange], limit: BatchLimit) -> Vec<Vec<(HashRange, Size)>> {
        ranges.iter().map(|range| self.store.pieces(range, limit)).collect()
    }

    /// No more places are asked for; the tally goes on.
    pub fn close_census(&self, census: CensusId) {
        let mut table = self.table.write();
        if let Some(tallying) = table.tallying.as_mut().filter(|tallying| tallying.census == census) {
            tallying.close();
        }
    }

    /// What clients have created and deleted since the cut of a change, and how many pairs there are now. A shard that
    /// neither was counted for that change nor has received anything in it has nothing to tell; who asks late changes nothing.
    pub fn tally(&self, change: u64) -> (Tally, u64) {
        let table = self.table.write();
        let tallying = table.tallying.as_ref().filter(|tallying| tallying.change() == change);
        let tally = tallying.map_or_else(Tally::default, |tallying| Tally {
            created: tallying.created.load(Ordering::Relaxed),
            deleted: tallying.deleted.load(Ordering::Relaxed),
        });
        (tally, self.count(&table))
    }
}

impl Table {
    /// The tally begins now where the shard was not counted: it is new in the change, and has nothing yet.
    pub(super) fn tally_for(&mut self, change: u64) {
        if self.tallying.as_ref().is_none_or(|tallying| tallying.change() != change) {
            let (created, deleted) = (AtomicU64::new(0), AtomicU64::new(0));
            self.tallying =
                Some(Tallying { census: CensusId::none(change), created, deleted, changes: None });
        }
    }
}
