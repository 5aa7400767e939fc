//! What was done to the pairs of a shard last: a ring of so many bytes, for those who watch.
//!
//! It has the changes in the order of the log, each with its version. They lie in chunks, and a chunk knows which part of the space the shard served while it was written: in that part it
//! has all changes up to its last version that no chunk before it has. When a piece is handed over, its changes go along, as chunks of their own with the versions of the source. The changes of a
//! part of the space are told by whoever serves it, and by nobody else: so a part that is frozen is silent until its target goes on, which has then all that the source had.

use std::collections::VecDeque;
use std::sync::Arc;

use super::binary::{LONGEST_BYTES, Malformed, Reader, put_bytes, put_list, put_number};
use super::cursor::{Cursor, Span};
use super::hash::HashKey;
use super::range::HashRange;

/// A longer value is not kept, and not told: whoever watches asks for it.
pub const LONGEST_VALUE: usize = 256 << 10;
/// A chunk ends after so many bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// The ring has so many chunks at least, so that it turns in small steps.
const CHUNKS: usize = 16;
/// What a chunk takes beside its changes.
const CHUNK_COST: usize = 128;

/// What was done to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened<'a> {
    /// It was written: the value as [`value`](super::value) stores it.
    Put(&'a [u8]),
    /// The same with a value that is too long to be told: its length.
    PutLong(u64),
    /// A client has deleted it.
    Deleted,
    /// Its time was over.
    Expired,
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The version that it has drawn.
    pub version: u64,
    /// The key.
    pub key: &'a [u8],
    /// What was done.
    pub happened: Happened<'a>,
}

const PUT: u8 = 0;
const PUT_LONG: u8 = 1;
const DELETED: u8 = 2;
const EXPIRED: u8 = 3;

impl<'a> Event<'a> {
    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.happened {
            Happened::Put(_) => PUT,
            Happened::PutLong(_) => PUT_LONG,
            Happened::Deleted => DELETED,
            Happened::Expired => EXPIRED,
        });
        put_number(out, self.version);
        put_bytes(out, self.key);
        match self.happened {
            Happened::Put(value) => put_bytes(out, value),
            Happened::PutLong(length) => put_number(out, length),
            Happened::Deleted | Happened::Expired => {}
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no change.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let kind = reader.byte()?;
        let (version, key) = (reader.number()?, reader.bytes(LONGEST_BYTES)?);
        let happened = match kind {
            PUT => Happened::Put(reader.bytes(LONGEST_BYTES)?),
            PUT_LONG => Happened::PutLong(reader.number()?),
            DELETED => Happened::Deleted,
            EXPIRED => Happened::Expired,
            _ => return Err(Malformed("unknown kind of change")),
        };
        Ok(Self { version, key, happened })
    }

    fn all(bytes: &'a [u8]) -> impl Iterator<Item = Result<Self, Malformed>> {
        let mut reader = Reader::new(bytes);
        std::iter::from_fn(move || (!reader.rest().is_empty()).then(|| Self::decode(&mut reader)))
    }
}

/// Changes that were written while the shard served the same part of the space.
#[derive(Debug, Clone)]
struct Chunk {
    /// That part, without what the shard has given away since.
    spans: Arc<[Span]>,
    /// The last version in it.
    to: u64,
    events: Vec<u8>,
}

impl Chunk {
    fn cost(&self) -> usize {
        CHUNK_COST + self.events.len()
    }
}

/// The ring of a shard.
#[derive(Debug, Clone)]
pub struct History {
    limit: usize,
    /// What the shard serves now.
    serves: Arc<[Span]>,
    /// From which version on the ring has everything; [`Cursor::NOW`] where the shard owns nothing.
    floors: Cursor,
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

/// A part of what a ring has beyond a cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Where the cursor has left the ring: from which versions on there is something. Then nothing else is told.
    pub floors: Vec<(Span, u64)>,
    /// Changes in their order, in runs. When those of a run up to one were seen, all of its spans were seen up to its version.
    pub runs: Vec<Run>,
    /// What the shard serves.
    pub serves: Vec<Span>,
    /// Up to which version all of that was told; nothing where there is more.
    pub up_to: Option<u64>,
}

/// Changes that were written while the shard served the same part of the space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    spans: Vec<Span>,
    events: Vec<u8>,
}

impl History {
    /// A ring of so many bytes of a shard that owns nothing yet.
    pub fn new(limit: usize) -> Self {
        let floors = Cursor::everywhere(Cursor::NOW);
        Self { limit, serves: Arc::new([]), floors, chunks: VecDeque::new(), bytes: 0 }
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The shard owns a range from now on, and all later versions are above this one.
    pub fn own(&mut self, range: &HashRange, version: u64) {
        if let Some(span) = Span::of(range) {
            self.floors.set(span, version);
        }
    }

    /// It does not any more.
    pub fn lose(&mut self, range: &HashRange) {
        let Some(span) = Span::of(range) else { return };
        self.floors.set(span, Cursor::NOW);
        // Neighbours mostly share theirs.
        let (mut old, mut new): (Arc<[Span]>, Arc<[Span]>) = (Arc::new([]), Arc::new([]));
        for chunk in &mut self.chunks {
            if !Arc::ptr_eq(&old, &chunk.spans) {
                old = Arc::clone(&chunk.spans);
                new = old.iter().flat_map(|one| one.without(&span)).collect();
            }
            chunk.spans = Arc::clone(&new);
        }
    }

    /// It serves these ranges from now on.
    pub fn serve(&mut self, ranges: &[HashRange]) {
        let serves: Vec<Span> = ranges.iter().filter_map(Span::of).collect();
        if *self.serves != *serves {
            self.serves = serves.into();
        }
    }

    /// Whatever it has is void: from now on.
    pub fn forget(&mut self, version: u64) {
        self.chunks.clear();
        self.bytes = 0;
        self.floors.change_owned(version);
    }

    /// Adds a change, in the order of versions.
    pub fn note(&mut self, version: u64, key: &[u8], happened: Happened<'_>) {
        let happened = match happened {
            Happened::Put(value) if value.len() > LONGEST_VALUE.min(self.limit / CHUNKS) => {
                Happened::PutLong(super::value::length(value) as u64)
            }
            happened => happened,
        };
        let size = CHUNK_BYTES.min(self.limit / CHUNKS);
        // By what they say: one that was read from a snapshot goes on, too, so that equal shards have equal rings.
        let is_open = |chunk: &Chunk| *chunk.spans == *self.serves && chunk.events.len() < size;
        if !self.chunks.back().is_some_and(is_open) {
            if let Some(last) = self.chunks.back_mut() {
                last.events.shrink_to_fit();
            }
            let spans = Arc::clone(&self.serves);
            self.chunks.push_back(Chunk { spans, to: version, events: Vec::new() });
            self.bytes += CHUNK_COST;
        }
        let chunk = self.chunks.back_mut().expect("there is one");
        let before = chunk.events.len();
        Event { version, key, happened }.encode(&mut chunk.events);
        chunk.to = version;
        self.bytes += chunk.events.len() - before;
        self.turn();
    }

    /// Gives up the oldest chunks where there are too many.
    fn turn(&mut self) {
        while self.bytes > self.limit
            && self.chunks.len() > 1
            && let Some(oldest) = self.chunks.pop_front()
        {
            self.bytes -= oldest.cost();
            self.floors.raise(&oldest.spans, oldest.to);
        }
    }

    /// What is beyond a cursor, so many bytes about; `index` is the version that was drawn last.
    pub fn since(&self, cursor: &Cursor, hash_key: HashKey, (index, most): (u64, usize)) -> Page {
        let mut page = Page { serves: self.serves.to_vec(), ..Page::default() };
        let floors = self.serves.iter().flat_map(|span| self.floors.within(*span));
        page.floors =
            floors.filter(|(part, floor)| *floor != Cursor::NOW && cursor.least(*part) < *floor).collect();
        if page.is_lost() {
            return page;
        }
        let (mut cursor, mut told) = (cursor.clone(), 0);
        for chunk in &self.chunks {
            let spans: Vec<Span> = chunk
                .spans
                .iter()
                .flat_map(|span| self.serves.iter().filter_map(|serves| serves.intersection(span)))
                .collect();
            if spans.iter().all(|span| cursor.least(*span) >= chunk.to) {
                continue;
            }
            let mut run = Run { spans, events: Vec::new() };
            // What the ring has written it can read.
            for event in Event::all(&chunk.events).map_while(Result::ok) {
                let hash = hash_key.hash(event.key).0;
                if run.spans.iter().any(|span| span.contains(hash)) && event.version > cursor.at(hash) {
                    event.encode(&mut run.events);
                }
                if told + run.events.len() > most {
                    page.runs.push(run);
                    return page;
                }
            }
            cursor.raise(&run.spans, chunk.to);
            told += run.events.len();
            if !run.events.is_empty() {
                page.runs.push(run);
            }
        }
        page.up_to = Some(index);
        page
    }

    /// What goes along with a range.
    pub fn of_range(&self, range: &HashRange, hash_key: HashKey) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(span) = Span::of(range) else { return out };
        let floors: Vec<(Span, u64)> =
            self.floors.within(span).filter(|(_, floor)| *floor != Cursor::NOW).collect();
        let mut chunks: Vec<Chunk> = Vec::new();
        for chunk in &self.chunks {
            let spans: Arc<[Span]> = chunk.spans.iter().filter_map(|one| one.intersection(&span)).collect();
            let mut events = Vec::new();
            for event in Event::all(&chunk.events).map_while(Result::ok) {
                let hash = hash_key.hash(event.key).0;
                if spans.iter().any(|span| span.contains(hash)) {
                    event.encode(&mut events);
                }
            }
            match chunks.last_mut() {
                _ if events.is_empty() => {}
                Some(last)
                    if last.spans == spans && last.events.len() < CHUNK_BYTES && last.to < chunk.to =>
                {
                    last.events.append(&mut events);
                    last.to = chunk.to;
                }
                _ => chunks.push(Chunk { spans, to: chunk.to, events }),
            }
        }
        put_parts(&mut out, &floors, chunks.iter());
        out
    }

    /// Takes over what came along with a range that the shard owns from now on, where all later versions are above this one. What cannot be read is as if
    /// nothing had come.
    pub fn take_range(&mut self, range: &HashRange, bytes: &[u8], version: u64) {
        self.own(range, version);
        let Some(span) = Span::of(range) else { return };
        let Ok((floors, chunks)) = read_parts(&mut Reader::new(bytes)) else { return };
        for (part, floor) in
            floors.iter().filter_map(|(part, floor)| Some((part.intersection(&span)?, *floor)))
        {
            self.floors.set(part, floor);
        }
        for mut chunk in chunks {
            chunk.spans = chunk.spans.iter().filter_map(|one| one.intersection(&span)).collect();
            self.bytes += chunk.cost();
            self.chunks.push_back(chunk);
        }
        self.turn();
    }

    /// Appends all of it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let floors: Vec<(Span, u64)> = self.floors.within(Span::ALL).collect();
        put_parts(out, &floors, self.chunks.iter());
        put_list(out, self.serves.iter(), put_span);
    }

    /// Reads it, for a ring of so many bytes.
    ///
    /// # Errors
    /// When the bytes are no ring.
    pub fn decode(reader: &mut Reader<'_>, limit: usize) -> Result<Self, Malformed> {
        let (floors, chunks) = read_parts(reader)?;
        let mut history = Self::new(limit);
        for (span, floor) in floors {
            history.floors.set(span, floor);
        }
        history.serves = reader.list(read_span)?.into();
        for chunk in chunks {
            history.bytes += chunk.cost();
            history.chunks.push_back(chunk);
        }
        history.turn();
        Ok(history)
    }
}

impl Cursor {
    /// Sets the version wherever something is owned.
    fn change_owned(&mut self, version: u64) {
        let owned: Vec<Span> =
            self.within(Span::ALL).filter(|(_, floor)| *floor != Self::NOW).map(|(span, _)| span).collect();
        for span in owned {
            self.set(span, version);
        }
    }
}

fn put_parts<'a>(
    out: &mut Vec<u8>,
    floors: &[(Span, u64)],
    chunks: impl ExactSizeIterator<Item = &'a Chunk>,
) {
    put_list(out, floors.iter(), put_floor);
    put_list(out, chunks, |chunk, out| {
        put_list(out, chunk.spans.iter(), put_span);
        put_number(out, chunk.to);
        put_bytes(out, &chunk.events);
    });
}

type Parts = (Vec<(Span, u64)>, Vec<Chunk>);

fn read_parts(reader: &mut Reader<'_>) -> Result<Parts, Malformed> {
    let floors = reader.list(read_floor)?;
    let chunks = reader.list(|reader| {
        let (spans, to) = (reader.list(read_span)?.into(), reader.number()?);
        let events = reader.bytes(LONGEST_BYTES)?.to_vec();
        Event::all(&events).try_for_each(|event| event.map(|_| ()))?;
        Ok(Chunk { spans, to, events })
    })?;
    Ok((floors, chunks))
}

fn put_floor((span, floor): &(Span, u64), out: &mut Vec<u8>) {
    put_span(span, out);
    put_number(out, *floor);
}

fn read_floor(reader: &mut Reader<'_>) -> Result<(Span, u64), Malformed> {
    Ok((read_span(reader)?, reader.number()?))
}

fn put_span(span: &Span, out: &mut Vec<u8>) {
    out.extend_from_slice(&span.from.to_le_bytes());
    // Nothing ends at the beginning.
    out.extend_from_slice(&span.to.unwrap_or(0).to_le_bytes());
}

fn read_span(reader: &mut Reader<'_>) -> Result<Span, Malformed> {
    let (from, to) = (reader.wide()?, reader.wide()?);
    let span = Span { from, to: (to != 0).then_some(to) };
    if span.to.is_none_or(|to| from < to) { Ok(span) } else { Err(Malformed("an empty span")) }
}

impl Page {
    /// Whether the cursor has left the ring.
    pub fn is_lost(&self) -> bool {
        !self.floors.is_empty()
    }

    /// Whether another cursor has left it, too, if the one that was asked by has.
    pub fn has_lost(&self, cursor: &Cursor) -> bool {
        self.floors.iter().any(|(span, floor)| cursor.least(*span) < *floor)
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_list(out, self.floors.iter(), put_floor);
        put_list(out, self.runs.iter(), |run, out| {
            put_list(out, run.spans.iter(), put_span);
            put_bytes(out, &run.events);
        });
        put_list(out, self.serves.iter(), put_span);
        super::binary::put_option(out, self.up_to.as_ref(), |up_to, out| put_number(out, *up_to));
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no page.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let floors = reader.list(read_floor)?;
        let runs = reader.list(|reader| {
            let (spans, events) = (reader.list(read_span)?, reader.bytes(LONGEST_BYTES)?.to_vec());
            Event::all(&events).try_for_each(|event| event.map(|_| ()))?;
            Ok(Run { spans, events })
        })?;
        let (serves, up_to) = (reader.list(read_span)?, reader.option(Reader::number)?);
        let page = Self { floors, runs, serves, up_to };
        reader.end()?;
        Ok(page)
    }

    /// Has a cursor go on by what is in the page, and says what is new to it: each change, and the cursor by then.
    pub fn advance(
        &self,
        cursor: &mut Cursor,
        hash_key: HashKey,
        mut told: impl FnMut(&Event<'_>, u128, &Cursor),
    ) {
        for run in &self.runs {
            for event in Event::all(&run.events).map_while(Result::ok) {
                let hash = hash_key.hash(event.key).0;
                if event.version > cursor.at(hash) {
                    cursor.raise(&run.spans, event.version);
                    told(&event, hash, cursor);
                }
            }
        }
        if let Some(up_to) = self.up_to.filter(|_| !self.is_lost()) {
            cursor.settle(&self.serves, up_to);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::range::Point;

    const HASH_KEY: HashKey = HashKey::FIRST_BYTE;
    /// Keys are the multiples of 16, and cuts lie between them.
    const KEYS: u8 = 16;
    const SHARDS: usize = 3;

    fn range(from: u8, to: u8) -> HashRange {
        let point = |place: u8| Point::before_hash(HASH_KEY.hash(&[place * 16]).0);
        HashRange { from: point(from), to: (to < KEYS).then(|| point(to)) }
    }

    fn runs(places: &[u8]) -> Vec<HashRange> {
        places.iter().map(|place| range(*place, place + 1)).collect()
    }

    struct Shard {
        history: History,
        index: u64,
        owned: Vec<u8>,
        frozen: Vec<u8>,
    }

    impl Shard {
        fn serve(&mut self) {
            let serves: Vec<u8> =
                self.owned.iter().filter(|place| !self.frozen.contains(place)).copied().collect();
            self.history.serve(&runs(&serves));
        }

        fn write(&mut self, place: u8, happened: Happened<'_>) -> Option<u64> {
            if !self.owned.contains(&place) || self.frozen.contains(&place) {
                return None;
            }
            self.index += 1;
            self.history.note(self.index, &[place * 16], happened);
            Some(self.index)
        }
    }

    /// Somebody who watches, and what was told to him.
    struct Reader {
        cursor: Cursor,
        told: Vec<(u8, u64)>,
        /// What had been done when the part was known first.
        from: Vec<u64>,
        was_lost: bool,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u8, usize),
        Delete(u8),
        /// The places from one on, so many, go to a shard; frozen before so many other steps.
        Freeze(u8, u8),
        Move(usize),
        Thaw,
        Read(usize, usize, usize),
        Reconnect(usize),
        Snapshot(usize),
        Recover(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => (0..KEYS, 0_usize..40).prop_map(|(place, length)| Step::Write(place, length)),
            3 => (0..KEYS).prop_map(Step::Delete),
            3 => (0..KEYS, 1..KEYS).prop_map(|(from, length)| Step::Freeze(from, length)),
            3 => (0..SHARDS).prop_map(Step::Move),
            1 => Just(Step::Thaw),
            8 => (0_usize..3, 0..SHARDS, prop_oneof![Just(0_usize), 1_usize..200, Just(1 << 20)])
                .prop_map(|(reader, shard, most)| Step::Read(reader, shard, most)),
            1 => (0_usize..3).prop_map(Step::Reconnect),
            1 => (0..SHARDS).prop_map(Step::Snapshot),
        ]
    }

    struct World {
        shards: Vec<Shard>,
        readers: Vec<Reader>,
        /// Every change of a place.
        done: Vec<(u8, u64)>,
        /// What is frozen, and where it comes from.
        moving: Option<(usize, Vec<u8>)>,
    }

    impl World {
        fn new(limit: usize) -> Self {
            let shard = |number: usize| {
                let owned: Vec<u8> =
                    (0..KEYS).filter(|place| usize::from(*place) % SHARDS == number).collect();
                let mut shard = Shard {
                    history: History::new(limit),
                    index: 1000 * number as u64,
                    owned,
                    frozen: Vec::new(),
                };
                for range in runs(&shard.owned) {
                    shard.history.own(&range, shard.index);
                }
                shard.serve();
                shard
            };
            let reader = || Reader {
                cursor: Cursor::everywhere(Cursor::NOW),
                told: Vec::new(),
                from: vec![Cursor::NOW; KEYS.into()],
                was_lost: false,
            };
            Self {
                shards: (0..SHARDS).map(shard).collect(),
                readers: (0..3).map(|_| reader()).collect(),
                done: Vec::new(),
                moving: None,
            }
        }

        fn write(&mut self, place: u8, happened: Happened<'_>) {
            for shard in &mut self.shards {
                self.done.extend(shard.write(place, happened).map(|version| (place, version)));
            }
        }

        fn read(&mut self, reader: usize, shard: usize, most: usize) -> bool {
            let (reader, shard) = (&mut self.readers[reader], &self.shards[shard]);
            let page = shard.history.since(&reader.cursor, HASH_KEY, (shard.index, most));
            let mut bytes = Vec::new();
            page.encode(&mut bytes);
            assert_eq!(Page::decode(&bytes), Ok(page.clone()));
            reader.was_lost |= page.is_lost();
            assert_eq!(page.is_lost(), page.has_lost(&reader.cursor));
            let told = &mut reader.told;
            page.advance(&mut reader.cursor, HASH_KEY, |event, hash, cursor| {
                assert_eq!(cursor.at(hash), event.version);
                told.push((event.key[0] / 16, event.version));
            });
            for (place, from) in (0..KEYS).zip(&mut reader.from) {
                if *from == Cursor::NOW {
                    *from = reader.cursor.at(HASH_KEY.hash(&[place * 16]).0);
                }
            }
            page.up_to.is_some()
        }

        fn step(&mut self, step: &Step) {
            match step {
                Step::Write(place, length) => self.write(*place, Happened::Put(&vec![b'1'; *length])),
                Step::Delete(place) => self.write(*place, Happened::Deleted),
                Step::Freeze(from, length) if self.moving.is_none() => {
                    let wanted = *from..from.saturating_add(*length).min(KEYS);
                    let source = self.shards.iter().position(|shard| shard.owned.contains(from));
                    let shard = &mut self.shards[source.expect("every place is owned")];
                    shard.frozen = wanted.take_while(|place| shard.owned.contains(place)).collect();
                    shard.serve();
                    self.moving = Some((source.unwrap(), shard.frozen.clone()));
                }
                Step::Move(target) => {
                    if let Some((source, places)) = self.moving.take_if(|(source, _)| source != target) {
                        let range = range(places[0], places[places.len() - 1] + 1);
                        let along = self.shards[source].history.of_range(&range, HASH_KEY);
                        let index = self.shards[source].index;
                        let shard = &mut self.shards[*target];
                        shard.index = shard.index.max(index);
                        shard.owned.extend(&places);
                        shard.owned.sort_unstable();
                        shard.history.take_range(&range, &along, shard.index);
                        shard.serve();
                        let shard = &mut self.shards[source];
                        shard.owned.retain(|place| !places.contains(place));
                        shard.frozen.clear();
                        shard.history.lose(&range);
                        shard.serve();
                    }
                }
                Step::Thaw => {
                    if let Some((source, _)) = self.moving.take() {
                        self.shards[source].frozen.clear();
                        self.shards[source].serve();
                    }
                }
                Step::Read(reader, shard, most) => {
                    self.read(*reader, *shard, *most);
                }
                Step::Reconnect(reader) => {
                    let reader = &mut self.readers[*reader];
                    if let Some((_, cursor)) = Cursor::parse(&reader.cursor.text(7)) {
                        reader.cursor = cursor;
                    }
                }
                Step::Snapshot(shard) => {
                    let history = &mut self.shards[*shard].history;
                    let mut bytes = Vec::new();
                    history.encode(&mut bytes);
                    let mut reader = super::Reader::new(&bytes);
                    *history = History::decode(&mut reader, history.limit).unwrap();
                    assert_eq!(reader.end(), Ok(()));
                    let mut again = Vec::new();
                    history.encode(&mut again);
                    assert_eq!(again, bytes);
                }
                Step::Recover(shard) => {
                    let shard = &mut self.shards[*shard];
                    shard.index += 1 << 44;
                    shard.history.forget(shard.index);
                }
                Step::Freeze(..) => {}
            }
            for shard in &self.shards {
                let cost: usize = shard.history.chunks.iter().map(Chunk::cost).sum();
                assert_eq!(cost, shard.history.bytes);
                assert!(shard.history.bytes <= shard.history.limit || shard.history.chunks.len() == 1);
            }
        }

        /// Everybody reads everything.
        fn finish(&mut self) {
            self.step(&Step::Thaw);
            for reader in 0..self.readers.len() {
                for _ in 0..SHARDS {
                    for shard in 0..SHARDS {
                        while !self.readers[reader].was_lost && !self.read(reader, shard, 100) {}
                    }
                }
            }
        }

        /// Whoever was not lost was told everything once, from when he knew the place on, in its order.
        fn check(&self) {
            for reader in &self.readers {
                for place in 0..KEYS {
                    let told: Vec<u64> =
                        reader.told.iter().filter(|told| told.0 == place).map(|told| told.1).collect();
                    assert!(told.is_sorted_by(|one, next| one < next), "twice, or out of order: {told:?}");
                    let from = reader.from[usize::from(place)];
                    let wanted: Vec<u64> = self
                        .done
                        .iter()
                        .filter(|done| done.0 == place && done.1 > from)
                        .map(|done| done.1)
                        .collect();
                    if reader.was_lost {
                        assert!(wanted.starts_with(&told));
                    } else {
                        assert_eq!(told, wanted, "place {place} from {from}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_change_is_told_once_and_in_order_across_moves(steps in prop::collection::vec(step(), 0..150)) {
            let mut world = World::new(1 << 20);
            for step in &steps {
                world.step(step);
            }
            world.finish();
            world.check();
            prop_assert!(world.readers.iter().all(|reader| !reader.was_lost), "nothing has left the ring");
        }

        #[test]
        fn where_the_ring_has_turned_a_cursor_has_left_it_or_misses_nothing(steps in prop::collection::vec(step(), 0..250)) {
            let mut world = World::new(1024);
            for step in &steps {
                world.step(step);
            }
            world.finish();
            world.check();
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Page::decode(&bytes);
            let _ = History::decode(&mut super::Reader::new(&bytes), 1024);
            History::new(1024).take_range(&HashRange::all(), &bytes, 1);
        }
    }

    #[test]
    fn after_a_recovery_every_cursor_has_left_the_ring() {
        let mut world = World::new(1 << 20);
        world.read(0, 0, 0);
        world.step(&Step::Write(0, 1));
        world.step(&Step::Recover(0));
        world.read(0, 0, 1 << 20);
        assert!(world.readers[0].was_lost);
        world.readers[1].cursor = Cursor::everywhere(Cursor::NOW);
        world.step(&Step::Write(0, 1));
        world.read(1, 0, 1 << 20);
        assert!(!world.readers[1].was_lost);
    }

    #[test]
    fn a_long_value_is_not_kept() {
        let mut history = History::new(1 << 20);
        history.own(&HashRange::all(), 0);
        history.serve(&[HashRange::all()]);
        let value = vec![b'1'; LONGEST_VALUE + 1];
        for (version, length) in [(1, (LONGEST_VALUE >> 2) + 1), (2, LONGEST_VALUE + 1)] {
            history.note(version, b"a", Happened::Put(&value[..length]));
        }
        let (mut cursor, mut told) = (Cursor::everywhere(0), Vec::new());
        let page = history.since(&cursor, HASH_KEY, (2, 1 << 20));
        page.advance(&mut cursor, HASH_KEY, |event, _, _| {
            told.push(matches!(event.happened, Happened::Put(_)));
        });
        assert_eq!(told, [false, false], "a sixteenth of the ring is the most");
        assert!(history.bytes() < 1000);
    }
}
