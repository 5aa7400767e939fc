//! The file of all logs, by the library that keeps it: transactions, each one sync.

use std::io;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::folder::{DiskFile, Folder};
use super::storage::{GroupRow, Op, StoredGroup};
use crate::model::binary::{Malformed, Reader, put_bytes, put_number, put_option};

const NAME: &str = "log";
/// What the library keeps of the file in memory. It is read only when a node starts.
const CACHE: usize = 16 << 20;
/// The longest row: an entry.
const LONGEST: usize = 80 << 20;

/// By group: which snapshot its log goes on from, and whose it is.
const GROUPS: TableDefinition<u64, &[u8]> = TableDefinition::new("groups");
/// By group: term, vote and commit, in the form of whoever wrote them.
const VOTES: TableDefinition<u64, &[u8]> = TableDefinition::new("votes");
/// By group and index: an entry.
const ENTRIES: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("entries");
/// The groups that the node ever had a replica of.
const KNOWN: TableDefinition<u64, ()> = TableDefinition::new("known");
/// By name: what the node knows beside.
const NOTES: TableDefinition<&str, &[u8]> = TableDefinition::new("notes");

pub(super) struct LogFile(Database);

/// All that is in the file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) groups: Vec<StoredGroup>,
    pub(super) known: Vec<u64>,
    pub(super) notes: Vec<(String, Vec<u8>)>,
}

/// A file as the library uses one.
#[derive(Debug)]
struct Backend(Arc<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

impl LogFile {
    /// Opens the file, or makes it where there is none; all checksums in it are verified.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn open(folder: &dyn Folder) -> Result<Self, String> {
        let is_there = folder.list().map_err(|error| error.to_string())?.iter().any(|name| name == NAME);
        if !is_there {
            // A file without a first commit is no file of the library: it gets its name when it has one.
            let new = format!("{NAME}.new");
            let file = folder.create(&new).map_err(|error| error.to_string())?;
            let first = Self(Self::database(file)?);
            first.commit(&[]).map_err(|error| error.to_string())?;
            drop(first);
            folder.rename(&new, NAME).and_then(|()| folder.sync()).map_err(|error| error.to_string())?;
        }
        let file = folder.open(NAME).map_err(|error| error.to_string())?;
        Self::open_file(file)
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn open_file(file: Arc<dyn DiskFile>) -> Result<Self, String> {
        // The library gives an empty file its form: one that has lost all is not one that is new.
        if file.length().map_err(|error| error.to_string())? == 0 {
            return Err("it is empty".to_owned());
        }
        // The few bytes that no checksum is over may lead it astray, which it ends by a panic.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Self::database(file)));
        opened.unwrap_or_else(|_| Err("it is no log, or its head is damaged".to_owned())).map(Self)
    }

    fn database(file: Arc<dyn DiskFile>) -> Result<Database, String> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        builder.create_with_backend(Backend(file)).map_err(|error| error.to_string())
    }

    /// Has all of it on the disk, or nothing.
    pub(super) fn commit(&self, ops: &[Op]) -> Result<(), redb::Error> {
        let writing = self.0.begin_write()?;
        {
            let mut groups = writing.open_table(GROUPS)?;
            let mut votes = writing.open_table(VOTES)?;
            let mut entries = writing.open_table(ENTRIES)?;
            let mut known = writing.open_table(KNOWN)?;
            let mut notes = writing.open_table(NOTES)?;
            for op in ops {
                match op {
                    Op::Begin { group, row } => {
                        entries.retain_in((*group, 0)..=(*group, u64::MAX), |_, _| false)?;
                        votes.remove(group)?;
                        groups.insert(group, &row.encode()[..])?;
                        known.insert(group, ())?;
                    }
                    Op::Vote { group, state } => drop(votes.insert(group, &state[..])?),
                    Op::Append { group, first, entries: new } => {
                        let replaced = (*group, *first)..=(*group, u64::MAX);
                        // Mostly they follow what is there.
                        let is_new = entries.range(replaced.clone())?.next().is_none();
                        if !is_new {
                            entries.retain_in(replaced, |_, _| false)?;
                        }
                        for (index, entry) in (*first..).zip(new) {
                            entries.insert((*group, index), &entry[..])?;
                        }
                    }
                    Op::Cut { group, row } => {
                        entries.retain_in((*group, 0)..=(*group, row.base), |_, _| false)?;
                        groups.insert(group, &row.encode()[..])?;
                    }
                    Op::Restore { group, row } => {
                        entries.retain_in((*group, 0)..=(*group, u64::MAX), |_, _| false)?;
                        groups.insert(group, &row.encode()[..])?;
                    }
                    Op::Remove { group } => {
                        entries.retain_in((*group, 0)..=(*group, u64::MAX), |_, _| false)?;
                        votes.remove(group)?;
                        groups.remove(group)?;
                    }
                    Op::Forget => known.retain(|_, ()| false)?,
                    Op::Note { name, bytes } => drop(notes.insert(&name[..], &bytes[..])?),
                }
            }
        }
        writing.commit()?;
        Ok(())
    }

    /// All that is in it.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(super) fn read(&self) -> Result<Contents, String> {
        self.read_all().map_err(|error| error.to_string())?.map_err(|malformed| malformed.to_string())
    }

    fn read_all(&self) -> Result<Result<Contents, Malformed>, redb::Error> {
        let reading = self.0.begin_read()?;
        let (groups, votes) = (reading.open_table(GROUPS)?, reading.open_table(VOTES)?);
        let entries = reading.open_table(ENTRIES)?;
        let mut contents = Contents::default();
        for row in groups.iter()? {
            let (group, row) = row?;
            let group = group.value();
            let row = match GroupRow::decode(row.value()) {
                Ok(row) => row,
                Err(malformed) => return Ok(Err(malformed)),
            };
            let vote = votes.get(group)?.map(|vote| vote.value().to_vec());
            let mut own = Vec::new();
            for entry in entries.range((group, 0)..=(group, u64::MAX))? {
                let (place, entry) = entry?;
                own.push((place.value().1, entry.value().to_vec()));
            }
            contents.groups.push(StoredGroup { group, row, vote, entries: own });
        }
        for known in reading.open_table(KNOWN)?.iter()? {
            contents.known.push(known?.0.value());
        }
        for note in reading.open_table(NOTES)?.iter()? {
            let (name, bytes) = note?;
            contents.notes.push((name.value().to_owned(), bytes.value().to_vec()));
        }
        Ok(Ok(contents))
    }
}

impl GroupRow {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.kind];
        put_number(&mut out, self.replica);
        put_number(&mut out, self.base);
        put_bytes(&mut out, &self.head);
        put_option(&mut out, self.snapshot.as_ref(), |number, out| put_number(out, *number));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let row = Self {
            kind: reader.byte()?,
            replica: reader.number()?,
            base: reader.number()?,
            head: reader.bytes(LONGEST)?.to_vec(),
            snapshot: reader.option(Reader::number)?,
        };
        reader.end()?;
        Ok(row)
    }
}
