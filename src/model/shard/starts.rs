//! The writes that nodes of the view pass on, remembered until the node that was asked has its answer.
//!
//! A node numbers the writes that it passes on, anew with each start, and says with each which is the lowest that it has no answer to.
//! All below are answered or given up, and forgotten. One of them that arrives all the same, since it was held up on its way, is
//! refused: whether it was done before is not known any more. The learned state names the start of each node. So a shard knows
//! that a start is over when the state names another one for its node, and refuses whatever arrives under it then. A node that the
//! state does not name has left the view, and may still pass on what it has begun: its start is remembered for a time after its last write.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Refused;
use super::retries::{NumberedRecord, Recorded, RetryRecord, StartMark, Written};
use crate::model::address::Address;
use crate::model::binary::Malformed;
use crate::model::hash::KeyHash;
use crate::model::range::HashRange;

/// Locks among which the writes of a start are spread, by their number.
const PARTS: usize = 16;
/// What a record takes, in bytes, with the room that is kept free.
const RECORD_BYTES: usize = 96;

/// The starts of nodes that the shard knows of.
#[derive(Default)]
pub(super) struct Starts {
    by_start: BTreeMap<u64, Start>,
    count: AtomicUsize,
}

#[derive(Default)]
struct Start {
    node: Option<Address>,
    /// The state that was learned last names it.
    is_current: bool,
    lowest: AtomicU64,
    until_ms: AtomicU64,
    parts: [Mutex<VecDeque<Known>>; PARTS],
}

/// A write and its number, by which they are in order.
#[derive(Clone, Copy)]
struct Known {
    number: u64,
    done: Recorded,
}

/// What is looked for, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) start: u64,
    pub(super) number: u64,
    pub(super) lowest: u64,
    pub(super) hash: KeyHash,
    pub(super) time_ms: u64,
}

impl Starts {
    /// Does a write, or says what it did when it was done before. The start is known for so long at least.
    pub(super) fn once(
        &self,
        asked: &Asked,
        keep_ms: u64,
        write: impl FnOnce() -> Written,
    ) -> Result<Written, Refused> {
        let start = self.by_start.get(&asked.start).filter(|start| start.is_known(asked.time_ms));
        let start = start.ok_or(Refused::Forgotten)?;
        start.until_ms.fetch_max(asked.time_ms.saturating_add(keep_ms), Ordering::Relaxed);
        start.lowest.fetch_max(asked.lowest, Ordering::Relaxed);
        let mut part = start.parts[part_of(asked.number)].lock();
        // Looked at under the lock, under which whatever is below is given back.
        let lowest = start.lowest.load(Ordering::Relaxed);
        while part.front().is_some_and(|known| known.number < lowest) {
            part.pop_front();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        if asked.number < lowest {
            return Err(Refused::Forgotten);
        }
        match part.binary_search_by_key(&asked.number, |known| known.number) {
            Ok(at) => Ok(part[at].done.written),
            Err(at) => {
                let written = write();
                let done = Recorded { hash: asked.hash.0, written };
                part.insert(at, Known { number: asked.number, done });
                self.count.fetch_add(1, Ordering::Relaxed);
                Ok(written)
            }
        }
    }

    /// Whether a write is remembered, or so old that it is refused.
    pub(super) fn remembers(&self, asked: &Asked) -> bool {
        let start = self.by_start.get(&asked.start).filter(|start| start.is_known(asked.time_ms));
        // Under a start that is not known nothing is done.
        start.is_none_or(|start| {
            asked.number < start.lowest.load(Ordering::Relaxed)
                || start.parts[part_of(asked.number)]
                    .lock()
                    .binary_search_by_key(&asked.number, |known| known.number)
                    .is_ok()
        })
    }

    /// Learns which starts the nodes have. Those that are over are forgotten.
    pub(super) fn learn(&mut self, named: &[(Address, u64)], time_ms: u64) {
        let current: BTreeMap<&Address, u64> = named.iter().map(|(node, start)| (node, *start)).collect();
        self.by_start.retain(|number, start| {
            let is_known = start.is_known(time_ms);
            start.is_current = false;
            let of_node = start.node.as_ref().and_then(|node| current.get(node));
            is_known && of_node.is_none_or(|current| current == number)
        });
        for (node, number) in named {
            let start = self.by_start.entry(*number).or_default();
            (start.node, start.is_current) = (Some(node.clone()), true);
        }
        self.recount();
    }

    /// Adds what came with a range, after the state was learned that has handed it over: it is newer than what the source knew.
    pub(super) fn install(&mut self, marks: &[StartMark], records: impl IntoIterator<Item = NumberedRecord>) {
        let named = self.by_start.iter().filter(|(_, start)| start.is_current);
        let current: BTreeMap<Address, u64> =
            named.filter_map(|(number, start)| Some((start.node.clone()?, *number))).collect();
        for mark in marks {
            let of_node = mark.node.as_ref().and_then(|node| current.get(node));
            if of_node.is_none_or(|current| *current == mark.start) {
                let start = self.by_start.entry(mark.start).or_default();
                start.node = start.node.take().or_else(|| mark.node.clone());
                start.raise(mark);
            }
        }
        for record in records {
            let Some(start) = self.by_start.get_mut(&record.start) else { continue };
            if record.number >= *start.lowest.get_mut() {
                start.put(record);
            }
        }
        self.recount();
    }

    /// The memory that the records take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.count.load(Ordering::Relaxed) * RECORD_BYTES
    }

    /// How far each start has come that is known, and whether the state that was learned last names it.
    pub(super) fn marks(&self, time_ms: u64) -> Vec<(StartMark, bool)> {
        let known = self.known(time_ms);
        known.map(|(number, start)| (start.mark(number), start.is_current)).collect()
    }

    /// The records of a range. Where a cut falls between two keys of one hash, those of both sides.
    pub(super) fn of_range(&self, range: &HashRange, time_ms: u64) -> Vec<RetryRecord> {
        let mut found = Vec::new();
        for (number, start) in self.known(time_ms) {
            let lowest = start.lowest.load(Ordering::Relaxed);
            let before = found.len();
            for part in &start.parts {
                let part = part.lock();
                let needed = part.iter().filter(|one| one.number >= lowest && one.done.may_lie_in(range));
                let record =
                    |one: &Known| NumberedRecord { start: number, number: one.number, done: one.done };
                found.extend(needed.map(record));
            }
            found[before..].sort_unstable_by_key(|record| record.number);
        }
        found.into_iter().map(RetryRecord::Numbered).collect()
    }

    /// The starts of a snapshot, without their records.
    ///
    /// # Errors
    /// When one stands there twice.
    pub(super) fn restored(marks: Vec<(StartMark, bool)>) -> Result<Self, Malformed> {
        let mut starts = Self::default();
        for (mark, is_current) in marks {
            let start = Start { node: mark.node.clone(), is_current, ..Start::default() };
            start.raise(&mark);
            if starts.by_start.insert(mark.start, start).is_some() {
                return Err(Malformed("a start stands twice in a snapshot"));
            }
        }
        Ok(starts)
    }

    /// Adds a record of a snapshot.
    ///
    /// # Errors
    /// When it stands there twice, or its start nowhere.
    pub(super) fn restore(&mut self, record: NumberedRecord) -> Result<(), Malformed> {
        let start = self.by_start.get_mut(&record.start).ok_or(Malformed("a record of no start"))?;
        if !start.put(record) {
            return Err(Malformed("a retry record stands twice in a snapshot"));
        }
        *self.count.get_mut() += 1;
        Ok(())
    }

    fn known(&self, time_ms: u64) -> impl Iterator<Item = (u64, &Start)> {
        let starts = self.by_start.iter().filter(move |(_, start)| start.is_known(time_ms));
        starts.map(|(number, start)| (*number, start))
    }

    fn recount(&mut self) {
        let parts = self.by_start.values_mut().flat_map(|start| &mut start.parts);
        *self.count.get_mut() = parts.map(|part| part.get_mut().len()).sum();
    }
}

impl Start {
    fn is_known(&self, time_ms: u64) -> bool {
        self.is_current || self.until_ms.load(Ordering::Relaxed) > time_ms
    }

    fn mark(&self, start: u64) -> StartMark {
        let (lowest, until_ms) = (self.lowest.load(Ordering::Relaxed), self.until_ms.load(Ordering::Relaxed));
        StartMark { start, node: self.node.clone(), lowest, until_ms }
    }

    fn raise(&self, mark: &StartMark) {
        self.lowest.fetch_max(mark.lowest, Ordering::Relaxed);
        self.until_ms.fetch_max(mark.until_ms, Ordering::Relaxed);
    }

    /// Whether the record is a new one.
    fn put(&mut self, record: NumberedRecord) -> bool {
        let part = self.parts[part_of(record.number)].get_mut();
        let at = part.binary_search_by_key(&record.number, |known| known.number);
        if let Err(at) = at {
            part.insert(at, Known { number: record.number, done: record.done });
        }
        at.is_err()
    }
}

fn part_of(number: u64) -> usize {
    usize::try_from(number % PARTS as u64).expect("fewer than there are parts")
}
