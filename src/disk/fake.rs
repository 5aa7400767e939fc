//! A disk for tests that keeps what was not synced apart, and loses or tears it when the power is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use super::folder::{DiskFile, Folder};

/// A disk writes so many bytes at one time, or none of them.
const SECTOR: usize = 512;

/// A disk with one folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeFolder(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    files: Vec<Inode>,
    /// The names as a process sees them, and as they are on the disk.
    names: BTreeMap<String, usize>,
    kept_names: BTreeMap<String, usize>,
    /// What was done to the names since they were synced.
    renamed: Vec<Naming>,
    locked: bool,
    /// Each time that the power was cut: what an earlier process still has open is of no use.
    life: u64,
    /// What does not happen although it is said.
    fault: Option<Fault>,
    /// What there is room for, in bytes.
    room: Option<u64>,
    /// So many things are still done, and then none before the power is cut.
    fuse: Option<u64>,
}

/// What a disk does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It says that what was written is synced, and it is not.
    FilesNotSynced,
    /// The same for names.
    NamesNotSynced,
    /// Syncs fail from now on.
    SyncFails,
}

#[derive(Debug, Default)]
struct Inode {
    now: Vec<u8>,
    kept: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone)]
enum Naming {
    Is(String, usize),
    IsGone(String),
    Moves(String, String),
}

#[derive(Debug)]
struct FakeFile {
    disk: FakeFolder,
    file: usize,
    life: u64,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Is(name, file) => drop(names.insert(name.clone(), *file)),
            Self::IsGone(name) => drop(names.remove(name)),
            Self::Moves(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(len) => bytes.resize(*len, 0),
            Self::Write(at, new) => {
                if bytes.len() < at + new.len() {
                    bytes.resize(at + new.len(), 0);
                }
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
        }
    }

    /// The sectors of it that have come to the disk.
    fn torn(&self, random: &mut StdRng) -> Vec<Self> {
        let Self::Write(at, bytes) = self else { return vec![self.clone()] };
        let mut parts = Vec::new();
        let mut from = 0;
        while from < bytes.len() {
            let to = bytes.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
            if random.random_bool(0.5) {
                parts.push(Self::Write(at + from, bytes[from..to].to_vec()));
            }
            from = to;
        }
        parts
    }
}

impl FakeFolder {
    /// The power is cut: of what was not synced some is there, in any order, and some is torn; of what was done to names the first
    /// of it.
    pub(crate) fn cut_power(&self, random: &mut StdRng) {
        let mut disk = self.0.lock();
        let kept = random.random_range(0..=disk.renamed.len());
        let (mut names, renamed) = (disk.kept_names.clone(), std::mem::take(&mut disk.renamed));
        renamed[..kept].iter().for_each(|naming| naming.apply(&mut names));
        for inode in &mut disk.files {
            let mut kept = inode.kept.clone();
            for change in std::mem::take(&mut inode.unsynced) {
                match random.random_range(0..3) {
                    0 => {}
                    1 => change.apply(&mut kept),
                    _ => change.torn(random).iter().for_each(|part| part.apply(&mut kept)),
                }
            }
            inode.now.clone_from(&kept);
            inode.kept = kept;
        }
        disk.names.clone_from(&names);
        disk.kept_names = names;
        disk.locked = false;
        disk.fuse = None;
        disk.life += 1;
    }

    /// The process ends, and the system goes on.
    pub(crate) fn kill(&self) {
        let mut disk = self.0.lock();
        disk.locked = false;
        disk.life += 1;
    }

    /// So many more writes, syncs and changes of names are done, and then none.
    pub(crate) fn set_fuse(&self, left: Option<u64>) {
        self.0.lock().fuse = left;
    }

    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.0.lock().fault = fault;
    }

    /// From now on there is room for so many bytes in all.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }

    /// The bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        let disk = self.0.lock();
        let files: BTreeSet<usize> = disk.names.values().copied().collect();
        files.iter().map(|file| disk.files[*file].now.len() as u64).sum()
    }

    /// Another disk that holds the same.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::default();
        for name in self.list().expect("a fake disk is read") {
            let bytes = super::folder::read_all(self, &name).expect("a fake disk is read");
            super::folder::replace(&copy, &name, &bytes).expect("a fake disk is written");
        }
        copy
    }

    /// What a file holds, as somebody changes it who is no process of ours.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.0.lock();
        let file = disk.names[name];
        let inode = &mut disk.files[file];
        change(&mut inode.now);
        inode.kept.clone_from(&inode.now);
        inode.unsynced.clear();
    }

    fn file(&self, file: usize) -> Arc<dyn DiskFile> {
        Arc::new(FakeFile { disk: self.clone(), file, life: self.0.lock().life })
    }
}

impl Disk {
    fn named(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn note(&mut self, naming: Naming) -> io::Result<()> {
        self.burn()?;
        naming.apply(&mut self.names);
        self.renamed.push(naming);
        Ok(())
    }

    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => return Err(io::Error::other("the power is cut")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn sync(&mut self, left_out: Fault) -> io::Result<bool> {
        self.burn()?;
        if self.fault == Some(Fault::SyncFails) {
            return Err(io::Error::other("the disk has failed"));
        }
        Ok(self.fault != Some(left_out))
    }
}

impl Folder for FakeFolder {
    fn name(&self) -> String {
        "fake".to_owned()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.lock().named(name)?;
        Ok(self.file(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut disk = self.0.lock();
        let file = disk.files.len();
        disk.files.push(Inode::default());
        disk.note(Naming::Is(name.to_owned(), file))?;
        drop(disk);
        Ok(self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.named(from)?;
        disk.note(Naming::Moves(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.named(name)?;
        disk.note(Naming::IsGone(name.to_owned()))
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        if disk.sync(Fault::NamesNotSynced)? {
            disk.kept_names = disk.names.clone();
            disk.renamed.clear();
        }
        Ok(())
    }

    fn free(&self) -> Option<u64> {
        let room = self.0.lock().room?;
        Some(room.saturating_sub(self.size()))
    }

    fn lock(&self) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let is_free = !std::mem::replace(&mut self.0.lock().locked, true);
        Ok(is_free.then(|| Box::new(()) as Box<dyn Send + Sync>))
    }
}

impl FakeFile {
    /// Has something done to the file, unless whoever has it open was killed.
    fn with<T>(&self, run: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.0.lock();
        if disk.life == self.life { run(&mut disk) } else { Err(io::Error::other("killed")) }
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.with(|disk| {
            let named: BTreeSet<usize> = disk.names.values().copied().collect();
            let used: usize = named.iter().map(|file| disk.files[*file].now.len()).sum();
            let inode = &disk.files[self.file];
            let end = match &change {
                Change::Write(at, bytes) => at + bytes.len(),
                Change::Length(len) => *len,
            };
            let grown = end.saturating_sub(inode.now.len());
            if disk.room.is_some_and(|room| grown > 0 && (used + grown) as u64 > room) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.burn()?;
            let inode = &mut disk.files[self.file];
            change.apply(&mut inode.now);
            inode.unsynced.push(change);
            Ok(())
        })
    }
}

impl DiskFile for FakeFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|disk| Ok(disk.files[self.file].now.len() as u64))
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|disk| {
            let at = usize::try_from(at).expect("a small file");
            let bytes = disk.files[self.file].now.get(at..at + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(usize::try_from(at).expect("a small file"), bytes.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(len).expect("a small file")))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|disk| {
            if disk.sync(Fault::FilesNotSynced)? {
                let inode = &mut disk.files[self.file];
                inode.unsynced.clear();
                inode.kept.clone_from(&inode.now);
            }
            Ok(())
        })
    }
}
