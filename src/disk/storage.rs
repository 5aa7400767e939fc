//! All that a node keeps, as its other parts use it.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use std::time::Duration;

use super::folder::Folder;
use super::identity;
use super::log_file::LogFile;
use super::snapshot_file;
use crate::clock::now;
use crate::model::address::Address;

/// What is kept of a group beside its entries and its vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// What is replicated, in numbers of whoever knows.
    pub kind: u8,
    /// The id of this node's replica.
    pub replica: u64,
    /// The log begins after this index.
    pub base: u64,
    /// What stands there, in the form of whoever wrote it.
    pub head: Vec<u8>,
    /// The number of the file with the state there; nothing where there is no state yet.
    pub snapshot: Option<u64>,
}

/// What is changed; several of them together are done wholly or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The node has a replica of this group from now on; what there was of another one is gone.
    Begin {
        /// The group.
        group: u64,
        /// What it begins with.
        row: GroupRow,
    },
    /// The vote of a replica, and what goes with it.
    Vote {
        /// The group.
        group: u64,
        /// The form of whoever wrote it.
        state: Vec<u8>,
    },
    /// Entries in place of all from this index on.
    Append {
        /// The group.
        group: u64,
        /// The index of the first.
        first: u64,
        /// One after the other, in the form of whoever wrote them.
        entries: Vec<Vec<u8>>,
    },
    /// The log goes on from another snapshot: what is before goes.
    Cut {
        /// The group.
        group: u64,
        /// What it goes on from.
        row: GroupRow,
    },
    /// The log begins anew after a snapshot of somebody else: all that was in it goes.
    Restore {
        /// The group.
        group: u64,
        /// What it goes on from.
        row: GroupRow,
    },
    /// The node has no replica of this group any more.
    Remove {
        /// The group.
        group: u64,
    },
    /// Which groups the node has had replicas of does not matter any more: they are of another cluster.
    Forget,
    /// Something that the node knows, in place of what it knew by this name.
    Note {
        /// The name.
        name: String,
        /// The form of whoever wrote it.
        bytes: Vec<u8>,
    },
}

/// A replica as it was found on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGroup {
    /// The group.
    pub group: u64,
    /// What is kept of it.
    pub row: GroupRow,
    /// The vote, if there ever was one.
    pub vote: Option<Vec<u8>>,
    /// The entries, by their indexes.
    pub entries: Vec<(u64, Vec<u8>)>,
}

/// What a node finds in its folder when it starts.
#[derive(Debug, Default)]
pub struct Stored {
    /// The replicas.
    pub groups: Vec<StoredGroup>,
    /// The groups that the node has ever had a replica of.
    pub known: Vec<u64>,
    /// What it knew by names.
    pub notes: Vec<(String, Vec<u8>)>,
}

/// Is told how long a transaction took, its sync included.
type Observer = Box<dyn Fn(Duration) + Send + Sync>;

/// So much of the disk is kept for what is written when nothing may grow any more, besides two of the snapshots: entries that delete and replace, and the snapshot
/// by which a log is cut.
const RESERVE: u64 = 64 << 20;

/// What a folder takes, in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// The file of all logs.
    pub log: u64,
    /// All snapshots.
    pub snapshots: u64,
}

/// The folder of a node, for as long as it runs.
pub struct Storage {
    folder: Arc<dyn Folder>,
    log: LogFile,
    id: u64,
    starts: u64,
    /// Something could not be written: nothing is believed any more.
    failed: OnceLock<String>,
    /// Is told how long each transaction took.
    observer: OnceLock<Observer>,
    _lock: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Storage {
    /// Opens a folder for a start of the node at an address; where it is new, the node is to have the id that is drawn.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do. Nothing that was in the folder was changed then but, where it is this node's, the number of starts.
    pub fn open(
        folder: Arc<dyn Folder>,
        own: &Address,
        draw: impl FnOnce() -> u64,
    ) -> Result<(Self, Stored), String> {
        let name = folder.name();
        let lock = folder
            .lock()
            .map_err(|error| {
                format!("DATA_DIR {name} cannot be locked ({error}): see to its rights and its disk")
            })?
            .ok_or_else(|| {
                format!(
                    "DATA_DIR {name} belongs to another process that runs: give each node a folder of its own"
                )
            })?;
        let identity = identity::begin(&*folder, own, draw)?;
        let damaged = |why: String| {
            format!(
                "DATA_DIR {name} is damaged: {why}. This replica is not believed any more: name an empty folder, with which the node begins \
                 anew and is filled by the others, or restore the folder from a backup of when the node was stopped last"
            )
        };
        let log = LogFile::open(&*folder).map_err(|why| damaged(format!("log: {why}")))?;
        let contents = log.read().map_err(|why| damaged(format!("log: {why}")))?;
        let id = identity.number().expect("it was checked when it was read");
        let storage = Self {
            folder,
            log,
            id,
            starts: identity.starts,
            failed: OnceLock::new(),
            observer: OnceLock::new(),
            _lock: lock,
        };
        let kept: Vec<String> = contents.groups.iter().filter_map(StoredGroup::snapshot_name).collect();
        storage.remove_snapshots_but(&kept);
        Ok((storage, Stored { groups: contents.groups, known: contents.known, notes: contents.notes }))
    }

    /// The id under which the node holds its replicas, for as long as it has this folder.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How often a node was started with the folder.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// What people call the folder.
    pub fn name(&self) -> String {
        self.folder.name()
    }

    /// Has all of it survive a power cut from now on, or nothing of it.
    ///
    /// # Errors
    /// A sentence. From then on every call fails: after a sync that has failed nobody knows what is on the disk.
    pub fn commit(&self, ops: &[Op]) -> Result<(), String> {
        let began = now();
        let done = self.once(|storage| storage.log.commit(ops).map_err(|error| error.to_string()));
        if let Some(observer) = self.observer.get() {
            observer(now() - began);
        }
        done
    }

    /// Has somebody told how long each transaction takes; the first who asks for it.
    pub fn observe(&self, observer: impl Fn(Duration) + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    /// How many bytes more what is kept may grow by, where that is known.
    pub fn room(&self) -> Option<u64> {
        let reserve = RESERVE.saturating_add(self.usage().snapshots.saturating_mul(2));
        self.folder.free().map(|free| free.saturating_sub(reserve))
    }

    /// What the folder takes.
    pub fn usage(&self) -> DiskUse {
        let mut usage = DiskUse::default();
        for name in self.folder.list().unwrap_or_default() {
            let length = self.folder.open(&name).and_then(|file| file.length()).unwrap_or(0);
            if snapshot_file::is_one(&name) {
                usage.snapshots += length;
            } else {
                usage.log += length;
            }
        }
        usage
    }

    /// Writes a snapshot, which survives a power cut from now on: how long the file is, in bytes. Nothing refers to it yet.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn write_snapshot(
        &self,
        group: u64,
        number: u64,
        pieces: impl Iterator<Item = Bytes>,
    ) -> Result<u64, String> {
        self.once(|storage| {
            let written: io::Result<u64> = snapshot_file::write(&*storage.folder, (group, number), pieces);
            written.map_err(|error| error.to_string())
        })
    }

    /// The bytes of a snapshot.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn read_snapshot(&self, group: u64, number: u64) -> Result<Vec<u8>, String> {
        snapshot_file::read(&*self.folder, group, number)
    }

    /// Removes a snapshot to which nothing refers any more. Where that fails it stays until the next start.
    pub fn remove_snapshot(&self, group: u64, number: u64) {
        let name = snapshot_file::name_of(group, number);
        if let Err(error) = self.folder.remove(&name) {
            log::warn!("{name} could not be removed from DATA_DIR: {error}");
        }
    }

    fn remove_snapshots_but(&self, kept: &[String]) {
        let names = self.folder.list().unwrap_or_default();
        for name in names.iter().filter(|name| snapshot_file::is_one(name) && !kept.contains(name)) {
            log::info!("{name} in DATA_DIR was not finished, or is replaced by a newer one: it is removed");
            let _ = self.folder.remove(name);
        }
    }

    /// What could not be written, if anything: nothing is believed any more from then on, and the process has to end.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    fn once<T>(&self, write: impl FnOnce(&Self) -> Result<T, String>) -> Result<T, String> {
        if let Some(why) = self.failure() {
            return Err(why.to_owned());
        }
        write(self).map_err(|error| {
            let why = format!("DATA_DIR {} could not be written: {error}", self.folder.name());
            self.failed.get_or_init(|| why).clone()
        })
    }
}

impl StoredGroup {
    fn snapshot_name(&self) -> Option<String> {
        Some(snapshot_file::name_of(self.group, self.row.snapshot?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::fake::{FakeFolder, Fault};
    use super::*;

    fn open(folder: &FakeFolder) -> Result<(Storage, Stored), String> {
        Storage::open(Arc::new(folder.clone()), &"n1:7".parse().unwrap(), || 5)
    }

    fn row(replica: u64, base: u64) -> GroupRow {
        GroupRow { kind: 1, replica, base, head: vec![9; 3], snapshot: None }
    }

    fn append(group: u64, first: u64, count: usize) -> Op {
        let entries = (0..count).map(|place| vec![u8::try_from(place).unwrap(); 40]).collect();
        Op::Append { group, first, entries }
    }

    #[test]
    fn what_was_committed_is_found_at_the_next_start() {
        let folder = FakeFolder::default();
        {
            let (storage, stored) = open(&folder).unwrap();
            assert!(stored.groups.is_empty() && storage.starts() == 1);
            let note = |bytes: &[u8]| Op::Note { name: "state".to_owned(), bytes: bytes.to_vec() };
            let vote = Op::Vote { group: 1, state: vec![1, 2] };
            storage
                .commit(&[Op::Begin { group: 1, row: row(7, 2) }, append(1, 3, 5), vote, note(b"old")])
                .unwrap();
            storage.commit(&[append(1, 6, 1), Op::Begin { group: 2, row: row(8, 0) }, note(b"new")]).unwrap();
            storage.commit(&[append(2, 1, 3), Op::Cut { group: 1, row: row(7, 4) }]).unwrap();
            storage.commit(&[Op::Remove { group: 2 }]).unwrap();
        }
        folder.kill();
        let (storage, stored) = open(&folder).unwrap();
        assert_eq!((storage.id(), storage.starts()), (5, 2));
        let [group] = &stored.groups[..] else { panic!("{stored:?}") };
        assert_eq!((group.group, group.row.base, group.vote.as_deref()), (1, 4, Some(&[1, 2][..])));
        // Entry 6 was replaced, and 7 went with it.
        assert_eq!(group.entries, [(5, vec![2; 40]), (6, vec![0; 40])]);
        assert_eq!(stored.known, [1, 2], "also a group that was given up");
        assert_eq!(stored.notes, [("state".to_owned(), b"new".to_vec())]);
    }

    #[test]
    fn a_folder_is_one_processs() {
        let folder = FakeFolder::default();
        let first = open(&folder).unwrap();
        assert!(open(&folder).unwrap_err().contains("belongs to another process that runs"));
        drop(first);
    }

    /// What a disk holds that was cut off: all that was committed, and the last that was not yet, or not.
    fn cut(seed: u64, fault: Option<Fault>) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = FakeFolder::default();
        let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut next = model.clone();
        let mut begun = false;
        for _ in 0..random.random_range(1..8) {
            folder.set_fault(fault);
            let (storage, stored) = open(&folder)?;
            let found: BTreeMap<u64, Vec<u8>> =
                stored.groups.iter().flat_map(|group| group.entries.clone()).collect();
            // What was being committed when the power was cut is there wholly or not at all.
            if found != model && found != next {
                return Err(format!("{} entries of {} or {}", found.len(), model.len(), next.len()));
            }
            model = found;
            next.clone_from(&model);
            begun &= !stored.groups.is_empty();
            folder.set_fuse(random.random_bool(0.5).then(|| random.random_range(0..200)));
            for _ in 0..random.random_range(0..12) {
                let mut ops = Vec::new();
                if !std::mem::replace(&mut begun, true) {
                    ops.push(Op::Begin { group: 1, row: row(7, 0) });
                }
                let last = model.keys().next_back().copied().unwrap_or(0);
                let first = last + 1 - random.random_range(0..=last.min(2));
                let entries: Vec<Vec<u8>> = (0..random.random_range(1..4))
                    .map(|_| vec![random.random(); random.random_range(1..3_000)])
                    .collect();
                next = model.clone();
                next.split_off(&first);
                next.extend((first..).zip(entries.clone()));
                ops.push(Op::Append { group: 1, first, entries });
                if storage.commit(&ops).is_err() {
                    break;
                }
                model.clone_from(&next);
            }
            folder.cut_power(&mut random);
            folder.set_fault(None);
        }
        Ok(())
    }

    #[test]
    fn what_was_committed_survives_a_power_cut_at_any_moment() {
        for seed in 0..300 {
            cut(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
    }

    #[test]
    fn a_sync_that_is_left_out_is_found() {
        for fault in [Fault::FilesNotSynced, Fault::NamesNotSynced] {
            let found = (0..300).find_map(|seed| Some((seed, cut(seed, Some(fault)).err()?)));
            assert!(found.is_some(), "{fault:?}");
        }
    }

    #[test]
    fn after_a_sync_that_has_failed_nothing_is_believed() {
        let folder = FakeFolder::default();
        let (storage, _) = open(&folder).unwrap();
        storage.commit(&[Op::Begin { group: 1, row: row(7, 0) }]).unwrap();
        folder.set_fault(Some(Fault::SyncFails));
        assert!(storage.commit(&[append(1, 1, 1)]).unwrap_err().contains("could not be written"));
        folder.set_fault(None);
        assert!(storage.commit(&[append(1, 1, 1)]).is_err());
        assert!(storage.write_snapshot(1, 1, std::iter::empty()).is_err());
    }

    #[test]
    fn a_full_disk_is_said_and_what_was_committed_stays() {
        let folder = FakeFolder::default();
        {
            let (storage, _) = open(&folder).unwrap();
            storage.commit(&[Op::Begin { group: 1, row: row(7, 0) }, append(1, 1, 2)]).unwrap();
            folder.set_room(Some(folder.size() + 4_000));
            let big = Op::Append { group: 1, first: 3, entries: vec![vec![1; 4 << 20]] };
            let error = storage.commit(&[big]).unwrap_err();
            assert!(error.contains("could not be written"), "{error}");
        }
        folder.kill();
        folder.set_room(None);
        assert_eq!(open(&folder).unwrap().1.groups[0].entries.len(), 2);
    }

    /// Flips and cuts a small log everywhere: an error, or a correct start with what was there before or after the last commit.
    #[test]
    fn a_log_that_was_changed_is_an_error_or_a_correct_start() {
        let folder = FakeFolder::default();
        let mut states = Vec::new();
        {
            let (storage, _) = open(&folder).unwrap();
            storage.commit(&[Op::Begin { group: 1, row: row(7, 0) }, append(1, 1, 3)]).unwrap();
            for first in [4, 5] {
                storage.commit(&[append(1, first, 1)]).unwrap();
            }
            // Not even closed.
            folder.kill();
        }
        states.extend([4, 5]);
        let whole = super::super::folder::read_all(&folder, "log").unwrap();
        // All bytes would take minutes.
        let step = 53;
        let mut ends = [0, 0];
        let mut check = |edit: &dyn Fn(&mut Vec<u8>), what: String| {
            let damaged = folder.copy();
            damaged.edit("log", edit);
            match open(&damaged) {
                Err(error) => {
                    assert!(error.contains("is damaged"), "{what}: {error}");
                    ends[0] += 1;
                }
                Ok((_, stored)) => {
                    let count = stored.groups.first().map_or(0, |group| group.entries.len());
                    assert!(states.contains(&count), "{what}: {stored:?}");
                    assert_eq!(stored.groups[0].row, row(7, 0), "{what}");
                    ends[1] += 1;
                }
            }
        };
        for at in (0..whole.len()).step_by(step) {
            check(&|bytes| bytes[at] ^= 0x40, format!("byte {at}"));
        }
        for at in 0..320 {
            check(&|bytes| bytes[at] ^= 1, format!("byte {at} of the head"));
        }
        for len in (0..whole.len()).step_by(step * 7) {
            check(&|bytes| bytes.truncate(len), format!("cut at {len}"));
        }
        assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
    }
}
