//! All of a shard that its further behaviour depends on, for a replica that has none of it.
//!
//! What was dropped and only has to be swept yet is not part of it: replicas sweep when they have the time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{mem, vec};

use bytes::Bytes;
use parking_lot::Mutex;

use super::census::{CensusId, Tallying};
use super::moving::{Incoming, Outgoing, Prepared};
use super::ranges::OwnedRanges;
use super::starts::Starts;
use super::timed::Timed;
use super::{Changes, HashRange, PieceId, Point, Remembered, RetryRecord, Shard, StartMark, Store, Table};
use crate::model::binary::{
    LONGEST_BYTES, Malformed, Reader, put_bytes, put_list, put_number, put_option, put_wide,
};
use crate::model::changes::Change;
use crate::model::format;
use crate::model::pages::Record;
use crate::model::store::StoreCopy;

/// The number of the newest form: a replica of another version of the program does not guess.
pub const SNAPSHOT_FORM: u64 = 6;
/// That of a snapshot without what was done last, for those who watch: replicas before there were any read it, too.
pub(super) const WITHOUT_HISTORY: u64 = 5;
/// That of a snapshot in which, besides, there are no pairs that end: likewise.
const WITHOUT_ENDS: u64 = 4;
/// That of a snapshot in which, besides, there are no values that have types of their own: likewise.
const WITHOUT_TYPES: u64 = 3;
/// That of a snapshot in which, besides, nothing is remembered of writes whose condition did not hold: likewise.
const WITHOUT_CONDITIONS: u64 = 2;
/// A piece ends after so many bytes of pairs; with a large pair it is longer.
const PIECE_BYTES: usize = 256 << 10;
/// A piece has so many retry records at most, some 300 KB.
const PIECE_RECORDS: usize = 8192;

/// A snapshot of a shard as it was when it was begun. Its pieces, one after the other, are what [`Shard::restore`] takes: what is not
/// pairs, then batches of pairs with their number before them, and a number 0. Each is encoded when it is asked for.
pub struct Snapshot {
    head: Option<Bytes>,
    records: vec::IntoIter<RetryRecord>,
    pairs: StoreCopy,
    is_over: bool,
}

impl Iterator for Snapshot {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        let mut out = Vec::new();
        if self.records.len() > 0 {
            self.records.by_ref().take(PIECE_RECORDS).for_each(|record| record.encode(&mut out));
            return Some(out.into());
        }
        if self.is_over {
            return None;
        }
        let mut pairs = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 16);
        let count = self.pairs.encode_some(&mut pairs, PIECE_BYTES);
        self.is_over = count == 0;
        put_number(&mut out, count);
        out.append(&mut pairs);
        Some(out.into())
    }
}

/// The number of the form of a snapshot.
///
/// # Errors
/// Where it has none.
pub fn form_of(snapshot: &[u8]) -> Result<u64, Malformed> {
    Reader::new(snapshot).number()
}

/// Whether a snapshot of this form can be read.
pub fn is_known(form: u64) -> bool {
    (WITHOUT_CONDITIONS..=SNAPSHOT_FORM).contains(&form)
}

impl Shard {
    /// Begins a snapshot: copies the pages of small pairs, and of large pairs the handles.
    ///
    /// Where writes go through a log, it is called by whoever applies it, between two commands, and readers go on meanwhile. Otherwise
    /// everybody waits.
    pub fn snapshot(&self) -> Snapshot {
        {
            let table = self.table.read();
            if table.logged {
                return self.begin_snapshot(&table);
            }
        }
        self.begin_snapshot(&self.table.write())
    }

    fn begin_snapshot(&self, table: &Table) -> Snapshot {
        let mut head = Vec::new();
        let records = self.remembered(table, &HashRange::all()).records;
        let form = self.form(table, &records);
        put_number(&mut head, form);
        put_wide(&mut head, self.store.hash_key().number());
        put_number(&mut head, self.store.index());
        put_number(&mut head, self.clock.time());
        table.encode(form, &mut head);
        put_list(&mut head, table.starts.marks(self.clock.time()).iter(), |(mark, is_current), out| {
            mark.encode(out);
            out.push(u8::from(*is_current));
        });
        if form > WITHOUT_HISTORY {
            head.push(u8::from(self.store.keeps_history()));
            self.store.encode_history(&mut head);
        }
        put_number(&mut head, records.len() as u64);
        let dropped: Vec<HashRange> = table.dropped.iter().map(|(range, _)| range.clone()).collect();
        let (head, records) = (Some(head.into()), records.into_iter());
        Snapshot { head, records, pairs: self.store.copy(&dropped), is_over: false }
    }

    /// The form of a snapshot, with these records: as old a one as there is that has all.
    fn form(&self, table: &Table, records: &[RetryRecord]) -> u64 {
        let prepared = || table.incoming.iter().filter_map(|one| one.prepared.as_ref());
        let needs =
            records.iter().map(RetryRecord::needs).chain(prepared().map(|one| one.remembered.needs()));
        let has_conditions = || needs.max().is_some_and(|needs| needs >= format::CONDITIONS);
        let has_history = self.store.keeps_history() || prepared().any(|one| !one.history.is_empty());
        match (self.store.has_ends(), self.store.has_types()) {
            _ if has_history => SNAPSHOT_FORM,
            (true, _) => WITHOUT_HISTORY,
            (false, true) => WITHOUT_ENDS,
            (false, false) if has_conditions() => WITHOUT_TYPES,
            (false, false) => WITHOUT_CONDITIONS,
        }
    }

    /// The format that a node has to know to read a snapshot of the shard as it is now.
    pub fn snapshot_needs(&self) -> u32 {
        let table = self.table.read();
        let records = self.remembered(&table, &HashRange::all()).records;
        match self.form(&table, &records) {
            ..=WITHOUT_CONDITIONS => format::FIRST,
            WITHOUT_TYPES => format::CONDITIONS,
            WITHOUT_ENDS => format::TYPES,
            WITHOUT_HISTORY => format::TTL,
            _ => format::WATCH,
        }
    }

    /// Takes over the state of a snapshot, in place of all that is here. The number of the group stays, and whether writes go through a
    /// log. Until all of it has been read, the shard is what it was.
    ///
    /// # Errors
    /// When the bytes are no snapshot, or one of a shard with another hash key; then nothing has changed.
    pub fn restore(&self, snapshot: &[u8]) -> Result<(), Malformed> {
        let reader = &mut Reader::new(snapshot);
        let form = reader.number()?;
        if !is_known(form) {
            return Err(Malformed("a snapshot of another version of the program"));
        }
        let hash_key = self.store.hash_key();
        if reader.wide()? != hash_key.number() {
            return Err(Malformed("a snapshot of a shard with another hash key"));
        }
        let (index, time_ms) = (reader.number()?, reader.number()?);
        let mut fresh = Table::decode(form, reader)?;
        fresh.starts =
            Starts::restored(reader.list(|reader| Ok((StartMark::decode(reader)?, reader.flag()?)))?)?;
        let store = self.store.empty();
        if form > WITHOUT_HISTORY && reader.flag()? {
            store.decode_history(reader)?;
        }
        let timed = read_records(reader, &mut fresh.starts)?;
        read_pairs(reader, &store)?;
        store.raise_index(index);
        // Of one with ends nobody knows whether there were types: that is the same for all who read it.
        if form > WITHOUT_TYPES {
            store.note_types();
        }
        // Nor whether there were ends of one that has what was done last.
        if form > WITHOUT_ENDS {
            store.note_ends();
        }
        reader.end()?;
        for one in &fresh.incoming {
            one.pairs.store(store.size_of(&one.range).pairs, Ordering::Relaxed);
        }

        let mut table = self.table.write();
        fresh.logged = table.logged;
        self.store.replace(store);
        self.timed.replace(timed);
        self.clock.replace(time_ms);
        let old = mem::replace(&mut *table, fresh);
        drop(table);
        drop(old);
        Ok(())
    }
}

fn read_records(reader: &mut Reader<'_>, starts: &mut Starts) -> Result<Timed, Malformed> {
    let mut timed = Timed::default();
    for _ in 0..reader.count(usize::MAX)? {
        match RetryRecord::decode(reader)? {
            RetryRecord::Timed(record) => timed.restore(record)?,
            RetryRecord::Numbered(record) => starts.restore(record)?,
        }
    }
    Ok(timed)
}

fn read_pairs(reader: &mut Reader<'_>, store: &Store) -> Result<(), Malformed> {
    loop {
        let count = reader.count(usize::MAX)?;
        if count == 0 {
            return Ok(());
        }
        for _ in 0..count {
            let Record { version, key, value } = Record::decode(reader)?;
            if store.install(store.hash_key().hash(key), key, value, version) {
                return Err(Malformed("a key stands twice in a snapshot"));
            }
        }
    }
}

impl Table {
    fn encode(&self, form: u64, out: &mut Vec<u8>) {
        // Whoever adds a field decides here whether it is part of the state.
        let Self {
            owned,
            outgoing,
            incoming,
            dropped: _,
            meta_group,
            term,
            version,
            open,
            // They follow, and their records with the others.
            starts: _,
            tallying,
            planned,
            sealed,
            logged: _,
        } = self;
        put_list(out, owned.rows().iter(), |(range, gained), out| {
            range.encode(out);
            put_number(out, *gained);
        });
        put_list(out, outgoing.iter(), Outgoing::encode);
        put_list(out, incoming.iter(), |one, out| one.encode(form, out));
        for number in [*meta_group, *term, *version] {
            put_number(out, number);
        }
        put_list(out, open.iter(), PieceId::encode);
        put_option(out, tallying.as_ref(), Tallying::encode);
        out.extend([u8::from(*planned), u8::from(*sealed)]);
    }

    pub(super) fn decode(form: u64, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let rows = reader.list(|reader| Ok((HashRange::decode(reader)?, reader.number()?)))?;
        Ok(Self {
            owned: OwnedRanges::from_rows(rows)?,
            outgoing: reader.list(Outgoing::decode)?,
            incoming: reader.list(|reader| Incoming::decode(form, reader))?,
            dropped: Vec::new(),
            meta_group: reader.number()?,
            term: reader.number()?,
            version: reader.number()?,
            open: reader.list(PieceId::decode)?,
            starts: Starts::default(),
            tallying: reader.option(Tallying::decode)?,
            planned: reader.flag()?,
            sealed: reader.flag()?,
            logged: false,
        })
    }
}

impl Outgoing {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { piece, since, range, frozen, notes, taken } = self;
        piece.encode(out);
        put_number(out, *since);
        range.encode(out);
        out.push(u8::from(*frozen));
        put_keys(out, &notes.lock());
        put_keys(out, taken);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            piece: PieceId::decode(reader)?,
            since: reader.number()?,
            range: HashRange::decode(reader)?,
            frozen: reader.flag()?,
            notes: Mutex::new(read_keys(reader)?),
            taken: read_keys(reader)?,
        })
    }
}

/// In order, so that equal states have equal heads.
fn put_keys(out: &mut Vec<u8>, keys: &HashSet<Box<[u8]>>) {
    let mut keys: Vec<_> = keys.iter().collect();
    keys.sort_unstable();
    put_list(out, keys.iter(), |key, out| put_bytes(out, key));
}

fn read_keys(reader: &mut Reader<'_>) -> Result<HashSet<Box<[u8]>>, Malformed> {
    reader.list(|reader| reader.bytes(LONGEST_BYTES).map(Box::from)).map(HashSet::from_iter)
}

impl Incoming {
    /// Without the number of its pairs: they are there to be counted.
    fn encode(&self, form: u64, out: &mut Vec<u8>) {
        let Self { piece, since, range, pairs: _, complete, is_shifted: _, prepared } = self;
        piece.encode(out);
        put_number(out, *since);
        range.encode(out);
        out.push(u8::from(*complete));
        put_option(out, prepared.as_ref(), |Prepared { remembered, history, shift_ms }, out| {
            remembered.encode(out);
            if form > WITHOUT_HISTORY {
                put_bytes(out, history);
            }
            if form > WITHOUT_ENDS {
                put_option(out, shift_ms.as_ref(), |shift_ms, out| put_number(out, shift_ms.cast_unsigned()));
            }
        });
    }

    fn decode(form: u64, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let one = Self {
            piece: PieceId::decode(reader)?,
            since: reader.number()?,
            range: HashRange::decode(reader)?,
            pairs: AtomicU64::new(0),
            complete: reader.flag()?,
            is_shifted: false,
            prepared: reader.option(|reader| {
                let remembered = Remembered::decode(reader)?;
                let has_history = form > WITHOUT_HISTORY;
                let history = if has_history { reader.bytes(LONGEST_BYTES)?.to_vec() } else { Vec::new() };
                let shift_ms = if form > WITHOUT_ENDS { reader.option(Reader::number)? } else { None };
                Ok(Prepared { remembered, history, shift_ms: shift_ms.map(u64::cast_signed) })
            })?,
        };
        // Or they are once it is handed over.
        Ok(Self { is_shifted: one.prepared.is_some(), ..one })
    }
}

impl CensusId {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.version, self.term, self.number, self.change] {
            put_number(out, number);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (version, term) = (reader.number()?, reader.number()?);
        Ok(Self { version, term, number: reader.number()?, change: reader.number()? })
    }
}

impl Tallying {
    fn encode(&self, out: &mut Vec<u8>) {
        self.census.encode(out);
        put_number(out, self.created.load(Ordering::Relaxed));
        put_number(out, self.deleted.load(Ordering::Relaxed));
        put_option(out, self.changes.as_ref(), |changes, out| {
            let changes = changes.lock();
            put_number(out, changes.len() as u64);
            for (key, change) in changes.within(&HashRange::all()) {
                out.push(u8::from(change == Change::Deleted));
                key.encode(out);
            }
        });
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let census = CensusId::decode(reader)?;
        let (created, deleted) = (AtomicU64::new(reader.number()?), AtomicU64::new(reader.number()?));
        let changes = reader.option(|reader| {
            let mut changes = Changes::new();
            for _ in 0..reader.count(usize::MAX)? {
                let is_deleted = reader.flag()?;
                let key = Point::decode(reader)?;
                if is_deleted { changes.note_deleted(key) } else { changes.note_created(key) }
            }
            Ok(Mutex::new(changes))
        })?;
        Ok(Self { census, created, deleted, changes })
    }
}
