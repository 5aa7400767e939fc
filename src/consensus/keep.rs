//! What a node keeps of its groups on its disk: see [`Storage`].
//!
//! Whatever a round has to have on the disk before it sends and applies goes there by one transaction, with one sync, for all groups together.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use raft::Storage as _;
use raft::eraftpb::{Entry, EntryType, HardState, Snapshot, SnapshotMetadata};

use super::codec::{put_entry, put_snapshot_head, read_entry, read_snapshot_head};
use super::log_store::LogStore;
use super::machine::{Pieces, StateMachine};
use super::members::{Change, Members, of_entry, put_members, read_members};
use crate::disk::{GroupRow, Op, Storage, StoredGroup};
use crate::model::address::Address;
use crate::model::binary::{Malformed, Reader, put_number};

/// What is to be written for the groups of a node.
pub(super) struct Keeper {
    storage: Arc<Storage>,
    ops: Vec<Op>,
    /// Whether they have to be on the disk before anything is sent or applied.
    is_urgent: bool,
    /// Snapshots to which nothing refers once they are.
    superseded: Vec<(u64, u64)>,
    /// Groups whose state goes on in another one: they are there until that is.
    concluded: Vec<(u64, Kept)>,
    /// The number of the file of a snapshot that was given last.
    last_number: u64,
}

/// What is on the disk of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    kind: u8,
    snapshot: Option<u64>,
    snapshot_bytes: u64,
    /// What the entries since the snapshot take, about.
    log_bytes: u64,
    /// The snapshot that is being written, and what the log took when it was begun.
    writing: Option<(u64, u64)>,
}

/// A replica as it was kept, ready to go on.
pub struct Resumed {
    pub(super) group: u64,
    pub(super) replica: u64,
    pub(super) log: LogStore,
    pub(super) members: Members,
    pub(super) machine: Box<dyn StateMachine>,
    pub(super) kept: Kept,
}

/// A snapshot that is to be written, by whoever has the time; meanwhile the group goes on.
pub struct SnapshotJob {
    storage: Arc<Storage>,
    group: u64,
    number: u64,
    row: GroupRow,
    pieces: Pieces,
}

/// A snapshot that was written.
pub struct Written {
    group: u64,
    number: u64,
    row: GroupRow,
    bytes: Result<u64, String>,
}

impl SnapshotJob {
    /// Writes it.
    pub fn write(self) -> Written {
        let bytes = self.storage.write_snapshot(self.group, self.number, self.pieces);
        Written { group: self.group, number: self.number, row: self.row, bytes }
    }
}

impl Written {
    pub(super) fn group(&self) -> u64 {
        self.group
    }
}

impl Keeper {
    pub(super) fn new(storage: Arc<Storage>) -> Self {
        Self {
            storage,
            ops: Vec::new(),
            is_urgent: false,
            superseded: Vec::new(),
            concluded: Vec::new(),
            last_number: 0,
        }
    }

    /// Why nothing is believed any more, if so.
    pub(super) fn failed(&self) -> Option<&str> {
        self.storage.failure()
    }

    /// Has everything on the disk that has to be there by now; false where that has failed.
    pub(super) fn commit(&mut self) -> bool {
        if self.failed().is_some() {
            return false;
        }
        if !std::mem::take(&mut self.is_urgent) {
            return true;
        }
        match self.storage.commit(&self.ops) {
            Ok(()) => {
                self.ops.clear();
                for (group, number) in self.superseded.drain(..) {
                    self.storage.remove_snapshot(group, number);
                }
                true
            }
            Err(_) => false,
        }
    }

    /// A replica of a group begins, with the state of its machine where it has one from the beginning.
    pub(super) fn begin(
        &mut self,
        (group, replica): (u64, u64),
        log: &LogStore,
        members: &Members,
        machine: &dyn StateMachine,
    ) -> Kept {
        let kind = machine.kind();
        let mut kept = Kept { kind, snapshot: None, snapshot_bytes: 0, log_bytes: 0, writing: None };
        let mut row = GroupRow { kind, replica, base: 0, head: Vec::new(), snapshot: None };
        if log.applied() > 0 {
            let number = self.next_number();
            self.write(group, number, state_of(members, machine), &mut kept);
            let head = log.head();
            row = GroupRow { base: head.index, head: encode_head(&head), snapshot: Some(number), ..row };
        }
        self.ops.push(Op::Begin { group, row });
        let has_state = log.applied() > 0;
        for (group, old) in self.concluded.extract_if(.., |(_, old)| has_state && old.kind == kind) {
            self.superseded.extend(old.snapshot.map(|number| (group, number)));
            self.ops.push(Op::Remove { group });
        }
        let state = log.initial_state().expect("it is in memory").hard_state;
        self.ops.push(Op::Vote { group, state: encode_vote(&state) });
        self.is_urgent = true;
        kept
    }

    /// A replica that was kept goes on.
    pub(super) fn resume(&mut self, kept: &Kept) {
        self.last_number = self.last_number.max(kept.snapshot.unwrap_or(0));
    }

    /// A group is given up for another one that goes on from its state and begins next: whichever of both is found after a power cut.
    pub(super) fn conclude(&mut self, group: u64, kept: Option<&Kept>) {
        self.concluded.extend(kept.map(|kept| (group, kept.clone())));
    }

    pub(super) fn give_up(&mut self, group: u64, kept: Option<&Kept>) {
        let snapshot = kept.and_then(|kept| kept.snapshot);
        self.superseded.extend(snapshot.map(|number| (group, number)));
        self.ops.push(Op::Remove { group });
        self.is_urgent = true;
    }

    /// A replica begins anew after a snapshot of its leader.
    pub(super) fn restore(&mut self, (group, replica): (u64, u64), snapshot: &Snapshot, kept: &mut Kept) {
        let number = self.next_number();
        self.superseded.extend(kept.snapshot.map(|old| (group, old)));
        self.write(group, number, std::iter::once(snapshot.data.clone()), kept);
        (kept.log_bytes, kept.writing) = (0, None);
        let head = snapshot.get_metadata();
        let row = GroupRow {
            kind: kept.kind,
            replica,
            base: head.index,
            head: encode_head(head),
            snapshot: Some(number),
        };
        self.ops.push(Op::Restore { group, row });
        self.is_urgent = true;
    }

    pub(super) fn append(&mut self, group: u64, entries: &[Entry], kept: &mut Kept) {
        let Some(first) = entries.first() else { return };
        let form = |entry: &Entry| {
            let mut out = Vec::with_capacity(entry.data.len() + entry.context.len() + 24);
            put_entry(&mut out, entry);
            out
        };
        let forms: Vec<Vec<u8>> = entries.iter().map(form).collect();
        kept.log_bytes += forms.iter().map(|form| form.len() as u64).sum::<u64>();
        self.ops.push(Op::Append { group, first: first.index, entries: forms });
        self.is_urgent = true;
    }

    /// What a replica has promised; only how far it knows the log to be committed need not be on the disk at once.
    pub(super) fn vote(&mut self, group: u64, state: &HardState, is_promise: bool) {
        self.ops.push(Op::Vote { group, state: encode_vote(state) });
        self.is_urgent |= is_promise;
    }

    /// A snapshot of a replica's state as it is now, where its log has become so long that it takes more than `least` bytes and half of what the last
    /// one does.
    pub(super) fn snapshot(
        &mut self,
        (group, replica): (u64, u64),
        log: &LogStore,
        (members, machine): (&Members, &dyn StateMachine),
        (kept, least): (&mut Kept, u64),
    ) -> Option<SnapshotJob> {
        let is_long = kept.log_bytes > least.max(kept.snapshot_bytes / 2);
        if !is_long || kept.writing.is_some() || log.applied() == 0 || self.failed().is_some() {
            return None;
        }
        let number = self.next_number();
        kept.writing = Some((number, kept.log_bytes));
        let head = log.head();
        let row = GroupRow {
            kind: kept.kind,
            replica,
            base: head.index,
            head: encode_head(&head),
            snapshot: Some(number),
        };
        let pieces: Pieces = Box::new(state_of(members, machine));
        Some(SnapshotJob { storage: Arc::clone(&self.storage), group, number, row, pieces })
    }

    /// A snapshot is on the disk: from now on the log goes on from it, unless the replica has begun anew meanwhile.
    pub(super) fn note_written(&mut self, written: Written, kept: Option<(u64, &mut Kept)>) {
        let Written { group, number, row, bytes } = written;
        // That it could not be written is said by `failed`.
        let Ok(bytes) = bytes else { return };
        let is_wanted = |kept: &Kept| kept.writing.is_some_and(|(wanted, _)| wanted == number);
        let Some((_, kept)) = kept.filter(|(replica, kept)| *replica == row.replica && is_wanted(kept))
        else {
            return self.storage.remove_snapshot(group, number);
        };
        self.superseded.extend(kept.snapshot.map(|old| (group, old)));
        let (_, log_bytes) = kept.writing.take().expect("it is wanted");
        (kept.snapshot, kept.snapshot_bytes) = (Some(number), bytes);
        kept.log_bytes -= log_bytes;
        self.ops.push(Op::Cut { group, row });
        self.is_urgent = true;
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn write(&mut self, group: u64, number: u64, pieces: impl Iterator<Item = Bytes>, kept: &mut Kept) {
        // That it could not be written is said by `failed`.
        if let Ok(bytes) = self.storage.write_snapshot(group, number, pieces) {
            (kept.snapshot, kept.snapshot_bytes) = (Some(number), bytes);
        }
    }
}

impl Resumed {
    /// The group.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// The nodes with votes, by the last snapshot and what is known to be committed of the log since.
    pub fn voters(&self) -> Vec<Address> {
        let state = self.log.initial_state().expect("it is in memory");
        let mut members = self.members.clone();
        let conf = &state.conf_state;
        let mut voters: BTreeSet<u64> = conf.voters.iter().chain(&conf.voters_outgoing).copied().collect();
        for index in self.log.applied() + 1..=state.hard_state.commit {
            let entry = self.log.at(index).filter(|entry| entry.get_entry_type() != EntryType::EntryNormal);
            match entry.and_then(|entry| of_entry(&entry.context).ok()?.0) {
                Some(Change::AddLearner { replica, address }) => drop(members.insert(replica, address)),
                Some(Change::Promote { learner, replaces }) => {
                    replaces.map(|old| voters.remove(&old));
                    voters.insert(learner);
                }
                Some(Change::Remove { replicas }) => voters.retain(|voter| !replicas.contains(voter)),
                None => {}
            }
        }
        let nodes: BTreeSet<&Address> = voters.iter().filter_map(|id| members.get(id)).collect();
        nodes.into_iter().cloned().collect()
    }

    /// What was kept of a replica, with a machine that has no state yet.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(
        storage: &Storage,
        stored: StoredGroup,
        mut machine: Box<dyn StateMachine>,
    ) -> Result<Self, String> {
        let StoredGroup { group, row, vote, entries } = stored;
        let said = |malformed: Malformed| format!("group {group}: {malformed}");
        let mut kept =
            Kept { kind: row.kind, snapshot: row.snapshot, snapshot_bytes: 0, log_bytes: 0, writing: None };
        let mut members = Members::new();
        let mut head = None;
        if let Some(number) = row.snapshot {
            let data = storage.read_snapshot(group, number)?;
            kept.snapshot_bytes = data.len() as u64;
            let mut reader = Reader::new(&data);
            members = read_members(&mut reader).map_err(said)?;
            machine.restore(reader.rest()).map_err(said)?;
            head = Some(read_snapshot_head(&mut Reader::new(&row.head)).map_err(said)?);
        }
        let read = |(index, form): (u64, Vec<u8>)| {
            kept.log_bytes += form.len() as u64;
            let mut reader = Reader::new(&form);
            let entry = Entry { index, ..read_entry(&mut reader)? };
            reader.end().map(|()| entry)
        };
        let entries = entries.into_iter().map(read).collect::<Result<Vec<_>, _>>().map_err(said)?;
        let state = vote.map_or(Ok(HardState::default()), |vote| decode_vote(&vote)).map_err(said)?;
        let log = LogStore::kept(head.as_ref(), state, entries).map_err(said)?;
        Ok(Self { group, replica: row.replica, log, members, machine, kept })
    }
}

/// The state of a replica in the form in which it travels.
fn state_of(members: &Members, machine: &dyn StateMachine) -> impl Iterator<Item = Bytes> + Send + use<> {
    let mut head = Vec::new();
    put_members(&mut head, members);
    std::iter::once(head.into()).chain(machine.snapshot())
}

fn encode_head(head: &SnapshotMetadata) -> Vec<u8> {
    let mut out = Vec::new();
    put_snapshot_head(&mut out, head);
    out
}

fn encode_vote(state: &HardState) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [state.term, state.vote, state.commit] {
        put_number(&mut out, number);
    }
    out
}

fn decode_vote(bytes: &[u8]) -> Result<HardState, Malformed> {
    let mut reader = Reader::new(bytes);
    let (term, vote) = (reader.number()?, reader.number()?);
    let state = HardState { term, vote, commit: reader.number()?, ..HardState::default() };
    reader.end().map(|()| state)
}

#[cfg(test)]
mod tests {
    use super::super::driver::Driver;
    use super::super::machine::Answer;
    use super::super::settings::Settings;
    use super::super::simulation::Rule;
    use super::super::status::Role;
    use super::*;
    use crate::disk::fake::FakeFolder;

    const GROUP: u64 = 5;

    struct Count(u64);

    impl StateMachine for Count {
        fn apply(&mut self, _index: u64, _term: u64, _command: &[u8]) -> Vec<u8> {
            self.0 += 1;
            Vec::new()
        }

        fn snapshot(&self) -> Pieces {
            Box::new(std::iter::once(self.0.to_be_bytes().to_vec().into()))
        }

        fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
            self.0 = u64::from_be_bytes(snapshot.try_into().map_err(|_| Malformed("no number"))?);
            Ok(())
        }
    }

    fn open(folder: &FakeFolder, node: u64) -> (Arc<Storage>, crate::disk::Stored) {
        let own: Address = format!("n{node}:1").parse().unwrap();
        let (storage, stored) = Storage::open(Arc::new(folder.clone()), &own, || node).unwrap();
        (Arc::new(storage), stored)
    }

    /// A replica that was alone takes in another one, and its process is killed: the nodes with votes, as it knows them when it goes on.
    fn voters_after_a_kill(without: Option<Rule>) -> Vec<Address> {
        let settings = Settings { without, ..Settings::default() };
        let folders = [FakeFolder::default(), FakeFolder::default()];
        let mut drivers: Vec<Driver<u64>> =
            (0..2).map(|at| Driver::kept(settings.clone(), open(&folders[at], at as u64 + 1).0)).collect();
        let alone = Members::from([(1, "n1:1".parse().unwrap())]);
        drivers[0].found(GROUP, 1, &alone, Box::new(Count(0))).unwrap();
        drivers[1].join(GROUP, 2, Box::new(Count(0))).unwrap();
        let address = "n2:1".parse().unwrap();
        let add = Change::AddLearner { replica: 2, address };
        let promote = Change::Promote { learner: 2, replaces: None };
        let mut changes = vec![promote, add];
        for _ in 0..400 {
            let status = drivers[0].status(GROUP).unwrap();
            if status.voters.len() == 2 {
                break;
            }
            let is_ready = status.role == Role::Leader && !status.changing;
            if is_ready && let Some(change) = changes.last() {
                drivers[0].change(GROUP, change, 0);
            }
            drivers.iter_mut().for_each(Driver::tick);
            drivers.iter_mut().for_each(Driver::work);
            for at in 0..2 {
                for envelope in drivers[at].take_outbox() {
                    drivers[1 - at].step(envelope);
                }
            }
            let done = |(_, answer): &(u64, Answer)| matches!(answer, Answer::Applied { .. });
            if drivers[0].take_answers().iter().any(done) {
                changes.pop();
            }
        }
        assert_eq!(drivers[0].status(GROUP).unwrap().voters.len(), 2, "it has a vote");
        drop(drivers);
        folders[0].kill();
        let (storage, mut stored) = open(&folders[0], 1);
        Resumed::new(&storage, stored.groups.remove(0), Box::new(Count(0))).unwrap().voters()
    }

    #[test]
    fn a_change_of_members_in_force_is_known_after_a_kill() {
        let both: Vec<Address> = vec!["n1:1".parse().unwrap(), "n2:1".parse().unwrap()];
        assert_eq!(voters_after_a_kill(None), both);
        // Otherwise the replica would believe that it is alone, and agree with itself on anything.
        assert_eq!(voters_after_a_kill(Some(Rule::CommitBeforeChange)), both[..1]);
    }
}
