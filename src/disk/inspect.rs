//! What is in a folder, and whether it is whole, without a node and without changing anything.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::folder::{DiskFile, Folder, read_all};
use super::identity;
use super::log_file::LogFile;
use super::snapshot_file;
use super::storage::StoredGroup;

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The address of its node.
    pub address: String,
    /// The random id under which the node holds its replicas, in hexadecimal digits.
    pub id: String,
    /// How often the node was started with it.
    pub starts: u64,
    /// The bytes of all files.
    pub bytes: u64,
    /// The replicas.
    pub groups: Vec<InspectedGroup>,
    /// What the node knew, by names.
    pub notes: Vec<(String, Vec<u8>)>,
    /// What is wrong, a sentence each; empty where nothing is.
    pub problems: Vec<String>,
}

/// A replica of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedGroup {
    /// The group.
    pub group: u64,
    /// What is replicated, in numbers of whoever wrote it.
    pub kind: u8,
    /// The id of the replica.
    pub replica: u64,
    /// Up to where its snapshot goes, and the bytes of the file.
    pub snapshot: Option<(u64, u64)>,
    /// The first and the last entry of the log since.
    pub entries: Option<(u64, u64)>,
    /// The bytes of those.
    pub log_bytes: u64,
}

/// Looks at all of a folder.
///
/// # Errors
/// A sentence, where it is no folder of a node, or a process has it.
pub fn inspect(folder: &dyn Folder) -> Result<Inspection, String> {
    let name = folder.name();
    let names = folder.list().map_err(|error| format!("{name} cannot be read: {error}"))?;
    let is_there = |file: &str| names.iter().any(|name| name == file);
    // It makes the file where it is not there.
    let lock = if is_there("lock") {
        Some(folder.lock().map_err(|error| format!("{name}: {error}"))?)
    } else {
        None
    };
    if matches!(lock, Some(None)) {
        return Err(format!(
            "{name} belongs to a process that runs: stop it first, or ask it for /v1/status"
        ));
    }
    let identity = identity::read_any(folder)?;
    let mut found = Inspection {
        address: identity.address.to_string(),
        id: identity.id,
        starts: identity.starts,
        ..Inspection::default()
    };
    for file in &names {
        found.bytes += folder.open(file).and_then(|file| file.length()).unwrap_or(0);
    }
    if !is_there("log") {
        // A first start was cut off.
        return Ok(found);
    }
    // What the library changes when it opens a file is changed in memory only.
    let log = read_all(folder, "log").map_err(|error| error.to_string());
    let log = log.and_then(|bytes| LogFile::open_file(Arc::new(InMemory(Mutex::new(bytes)))));
    match log.and_then(|log| log.read()) {
        Ok(contents) => {
            found.notes = contents.notes;
            for group in &contents.groups {
                match inspect_group(folder, group) {
                    Ok(group) => found.groups.push(group),
                    Err(problem) => found.problems.push(problem),
                }
            }
        }
        Err(why) => found.problems.push(format!("log: {why}")),
    }
    Ok(found)
}

fn inspect_group(folder: &dyn Folder, stored: &StoredGroup) -> Result<InspectedGroup, String> {
    let (group, row) = (stored.group, &stored.row);
    let snapshot = row.snapshot.map(|number| {
        let bytes = snapshot_file::read(folder, group, number)?;
        Ok::<_, String>((row.base, bytes.len() as u64))
    });
    let ends = stored.entries.first().zip(stored.entries.last());
    Ok(InspectedGroup {
        group,
        kind: row.kind,
        replica: row.replica,
        snapshot: snapshot.transpose()?,
        entries: ends.map(|((first, _), (last, _))| (*first, *last)),
        log_bytes: stored.entries.iter().map(|(_, entry)| entry.len() as u64).sum(),
    })
}

/// A file of which only a copy is changed.
#[derive(Debug)]
struct InMemory(Mutex<Vec<u8>>);

impl DiskFile for InMemory {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let part = at.checked_add(out.len()).and_then(|end| bytes.get(at..end));
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, at: u64, new: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let end = at.checked_add(new.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(new);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
