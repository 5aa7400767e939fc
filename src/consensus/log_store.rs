//! The log of one replica, in memory.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::model::binary::Malformed;

/// What an entry costs beside its data: the struct itself and its place in the queue.
const ENTRY_OVERHEAD: usize = size_of::<Entry>() + 16;

/// The entries that are still held, what came before them, and how far they are applied.
///
/// Always: `before` <= `applied` <= `hard_state.commit` <= last index; the entries are those after `before`,
/// without a gap; `members` is the configuration as of `applied`.
pub(super) struct LogStore {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Index and term of the last entry that was compacted away.
    before: (u64, u64),
    hard_state: HardState,
    members: ConfState,
    applied: u64,
}

impl LogStore {
    /// The log of a replica that waits to be added to its group by a leader.
    pub(super) fn empty() -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            before: (0, 0),
            hard_state: HardState::default(),
            members: ConfState::default(),
            applied: 0,
        }
    }

    /// The log of a founding voter.
    ///
    /// It begins after an entry 1 that nobody holds. So a replica that is added later and has an empty log
    /// can never be fed the entries from the first one on: it needs a snapshot, and with it learns the
    /// founding members, which stand in no entry.
    ///
    /// Where the group has had a log before, that ended at an index and in a term, this one goes on from there. Whoever still holds
    /// some of that one is behind this one, and needs a snapshot, too.
    pub(super) fn founded(voters: Vec<u64>, (index, term): (u64, u64)) -> Self {
        let before = (index + 1, term + 1);
        let hard_state = HardState { term: before.1, commit: before.0, ..HardState::default() };
        let members = ConfState { voters, ..ConfState::default() };
        Self { before, hard_state, members, applied: before.0, ..Self::empty() }
    }

    /// The log of a replica as it was kept: what it begins after, and the entries since. What is known to be committed may be older than that.
    ///
    /// # Errors
    /// When one contradicts another.
    pub(super) fn kept(
        head: Option<&SnapshotMetadata>,
        mut hard_state: HardState,
        entries: Vec<Entry>,
    ) -> Result<Self, Malformed> {
        let before = head.map_or((0, 0), |head| (head.index, head.term));
        let members = head.map(|head| head.get_conf_state().clone()).unwrap_or_default();
        hard_state.commit = hard_state.commit.max(before.0);
        let mut log = Self { before, hard_state, members, applied: before.0, ..Self::empty() };
        let mut place = before;
        for entry in &entries {
            if entry.index != place.0 + 1 || entry.term < place.1 {
                return Err(Malformed("entries of the log are missing"));
            }
            place = (entry.index, entry.term);
        }
        if log.hard_state.commit > place.0 || log.hard_state.term < place.1 {
            return Err(Malformed("the log is shorter than its vote says"));
        }
        log.append(entries);
        Ok(log)
    }

    pub(super) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) fn members(&self) -> &ConfState {
        &self.members
    }

    /// How many entries are held, and the bytes they take.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// Appends entries, in place of those with the same or a higher index.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.applied && first.index <= self.last() + 1, "entries leave no gap");
        while self.last() >= first.index {
            let dropped = self.entries.pop_back().expect("an index after `before` is held");
            self.bytes -= cost(&dropped);
        }
        self.bytes += entries.iter().map(cost).sum::<usize>();
        self.entries.extend(entries);
    }

    pub(super) fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = state;
    }

    pub(super) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    pub(super) fn set_members(&mut self, members: ConfState) {
        self.members = members;
    }

    pub(super) fn set_applied(&mut self, index: u64) {
        debug_assert!(index > self.applied);
        self.applied = index;
    }

    /// Starts again after a snapshot that came from the leader.
    pub(super) fn restore(&mut self, head: &SnapshotMetadata) {
        assert!(head.index > self.applied, "a snapshot only leads forward");
        self.entries.clear();
        self.bytes = 0;
        self.before = (head.index, head.term);
        self.applied = head.index;
        self.members = head.get_conf_state().clone();
        self.hard_state.commit = head.index;
    }

    /// Drops the oldest applied entries until no more than `max_entries` of at most `max_bytes` are left.
    ///
    /// Entries that are not applied stay whatever they take: their number is bounded where they come in.
    /// What is kept beyond the applied index is for replicas that are a little behind; one that is
    /// further behind gets a snapshot.
    pub(super) fn compact(&mut self, max_entries: usize, max_bytes: usize) {
        while (self.entries.len() > max_entries || self.bytes > max_bytes) && self.before.0 < self.applied {
            let dropped = self.entries.pop_front().expect("an applied entry after `before` is held");
            self.bytes -= cost(&dropped);
            self.before = (dropped.index, dropped.term);
        }
        // A burst of large entries must not leave its queue behind for good.
        if self.entries.capacity() > 4 * max_entries.max(self.entries.len()) {
            self.entries.shrink_to_fit();
        }
    }

    /// Where the state of this replica stands: the head of a snapshot taken now.
    pub(super) fn head(&self) -> SnapshotMetadata {
        let mut head = SnapshotMetadata { index: self.applied, ..SnapshotMetadata::default() };
        head.term = self.term(self.applied).expect("the term of the applied index is known");
        head.set_conf_state(self.members.clone());
        head
    }

    /// An entry that is held.
    pub(super) fn at(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.before.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }
}

fn cost(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0_u64;
        let first = usize::try_from(low - self.before.0 - 1).expect("an index held fits");
        let count = usize::try_from(high - low).expect("an index held fits");
        let fitting = self.entries.range(first..first + count).take_while(|entry| {
            // The first entry is always among them, whatever its size.
            let fits = size == 0 || size + cost(entry) as u64 <= limit;
            size += cost(entry) as u64;
            fits
        });
        Ok(fitting.cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.at(index).map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only the head: whoever sends it takes head and data at one moment, then, and not here. Between this
    /// call and the sending more entries may have been applied, and a state newer than its head would
    /// have them applied twice.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(self.head());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| Entry { index, term, data: vec![0; 10].into(), ..Entry::default() }).collect()
    }

    fn log(last: u64, applied: u64) -> LogStore {
        let mut log = LogStore::founded(vec![7], (0, 0));
        log.append(entries(2..=last, 1));
        for index in 2..=applied {
            log.set_applied(index);
        }
        log
    }

    #[test]
    fn entries_with_the_same_index_are_replaced() {
        let mut log = log(6, 3);
        let before = log.size().1;
        log.append(entries(5..=5, 2));
        assert_eq!(log.last(), 5);
        assert_eq!((log.term(4).unwrap(), log.term(5).unwrap()), (1, 2));
        assert!(log.term(6).is_err());
        assert_eq!(log.size().1, before - before / 5);
    }

    #[test]
    fn compaction_never_drops_what_is_not_applied() {
        let mut log = log(10, 6);
        log.compact(0, 0);
        assert_eq!(log.first_index().unwrap(), 7);
        assert_eq!(log.size().0, 4);
        assert_eq!(log.term(6).unwrap(), 1);
        let context = || GetEntriesContext::empty(false);
        assert_eq!(log.entries(6, 8, None, context()), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(log.entries(7, 11, None, context()).unwrap().len(), 4);
        assert_eq!(log.entries(7, 11, Some(1), context()).unwrap().len(), 1);
    }

    #[test]
    fn compaction_obeys_both_limits() {
        let mut log = log(100, 100);
        log.compact(50, usize::MAX);
        assert_eq!(log.size().0, 50);
        let each = log.size().1 / 50;
        log.compact(50, 10 * each);
        assert_eq!(log.size(), (10, 10 * each));
        assert_eq!(log.head().index, 100);
    }
}
