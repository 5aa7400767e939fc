//! Small pairs, packed one after the other into pages.
//!
//! An allocation of its own costs a pair some 20 bytes of the allocator's, and pairs that lie between short-lived
//! allocations of requests pin the gaps between them: with one client request at a time that came to 40 bytes more per
//! pair. A page is filled from its start and never refilled. What is replaced or deleted stays in it as a dead record until
//! less than half of the page lives; then the rest is moved to another page, and the page is freed.

use super::binary::{LONGEST_BYTES, Malformed, Reader, put_bytes, put_number};

/// The bytes of a page: large enough that its unused end does not matter, small enough that moving a page
/// under a lock does not take long. From 16 KiB on jemalloc adds 4 KiB to each allocation, to spread their beginnings over the CPU's caches;
/// this is the largest size to which it adds nothing.
const PAGE_BYTES: usize = 14 * 1024;
/// The first page of few pairs is smaller.
const FIRST_PAGE_BYTES: usize = 1024;
/// Each record begins with its version (8 bytes) and the lengths of key and value (4 bytes each).
const HEAD_BYTES: usize = 16;
/// Pairs of more bytes, key and value together, are none for a page: too much of its end would stay unused.
pub const SMALL_BYTES: usize = 2048;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    page: u32,
    offset: u16,
}

impl Place {
    /// That of a record in a page.
    pub fn new(page: u32, offset: u16) -> Self {
        Self { page, offset }
    }

    /// Where the record begins in its page.
    pub fn offset(self) -> u16 {
        self.offset
    }

    /// The number of the page.
    pub fn page(self) -> u32 {
        self.page
    }
}

/// A record as it lies in its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The version of the pair.
    pub version: u64,
    /// The key.
    pub key: &'a [u8],
    /// The value, as [`value`](crate::model::value) stores it.
    pub value: &'a [u8],
}

impl<'a> Record<'a> {
    /// Appends its form outside of a page.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.version);
        put_bytes(out, self.key);
        put_bytes(out, self.value);
    }

    /// Reads it; here it may also be large.
    ///
    /// # Errors
    /// When the bytes are no record.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let version = reader.number()?;
        Ok(Self { version, key: reader.bytes(LONGEST_BYTES)?, value: reader.bytes(LONGEST_BYTES)? })
    }

    fn bytes(&self) -> usize {
        HEAD_BYTES + self.key.len() + self.value.len()
    }
}

/// Pages of records. Of all pages only the open one is appended to.
#[derive(Debug, Default, Clone)]
pub struct Pages {
    all: Vec<Page>,
    open: Option<u32>,
    /// Pages that were freed; their numbers are used again.
    free: Vec<u32>,
    /// Pages of which less than half lives.
    sparse: Vec<u32>,
}

#[derive(Debug, Default, Clone)]
struct Page {
    bytes: Vec<u8>,
    live: usize,
}

impl Pages {
    /// Appends a record.
    ///
    /// # Panics
    /// When key and value together have more than [`SMALL_BYTES`].
    pub fn append(&mut self, record: &Record) -> Place {
        assert!(record.key.len() + record.value.len() <= SMALL_BYTES, "a large pair is not for a page");
        let page = self.page_with_room(record.bytes());
        let Page { bytes, live } = &mut self.all[page as usize];
        let offset = u16::try_from(bytes.len()).expect("a page is small");
        bytes.extend_from_slice(&record.version.to_le_bytes());
        for part in [record.key, record.value] {
            bytes.extend_from_slice(&u32::try_from(part.len()).expect("a small pair").to_le_bytes());
        }
        bytes.extend_from_slice(record.key);
        bytes.extend_from_slice(record.value);
        *live += record.bytes();
        Place { page, offset }
    }

    /// Reads a record.
    pub fn record(&self, place: Place) -> Record<'_> {
        let bytes = &self.all[place.page as usize].bytes[usize::from(place.offset)..];
        let (head, rest) = bytes.split_at(HEAD_BYTES);
        let number =
            |from: usize| u32::from_le_bytes(head[from..from + 4].try_into().expect("four bytes")) as usize;
        let version = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
        let (key, rest) = rest.split_at(number(8));
        Record { version, key, value: &rest[..number(12)] }
    }

    /// The key of a record.
    pub fn key(&self, place: Place) -> &[u8] {
        let bytes = &self.all[place.page as usize].bytes[usize::from(place.offset)..];
        let length = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
        &bytes[HEAD_BYTES..HEAD_BYTES + length]
    }

    /// Puts a new value and version into a record in its place; false, and nothing done, where the length differs.
    pub fn overwrite(&mut self, place: Place, version: u64, value: &[u8]) -> bool {
        let old = self.record(place);
        if old.value.len() != value.len() {
            return false;
        }
        let (start, end) = (usize::from(place.offset), usize::from(place.offset) + old.bytes());
        let bytes = &mut self.all[place.page as usize].bytes[start..end];
        bytes[..8].copy_from_slice(&version.to_le_bytes());
        let value_at = bytes.len() - value.len();
        bytes[value_at..].copy_from_slice(value);
        true
    }

    /// A record is dead: nothing refers to it any more.
    pub fn release(&mut self, place: Place) {
        let bytes = self.record(place).bytes();
        self.all[place.page as usize].live -= bytes;
        self.note_if_sparse(place.page);
    }

    /// A page that should be emptied: move its records that are still referred to, then call [`free`](Self::free).
    pub fn next_sparse(&mut self) -> Option<u32> {
        self.sparse.pop()
    }

    /// How many pages there are, the free ones, too: their numbers are below this.
    pub fn count(&self) -> u32 {
        u32::try_from(self.all.len()).expect("fewer than 2^32 pages")
    }

    /// All records of a page, the dead ones, too; none where there is no such page.
    pub fn places(&self, page: u32) -> Vec<Place> {
        let (mut places, mut offset) = (Vec::new(), 0);
        while self.all.get(page as usize).is_some_and(|page| offset < page.bytes.len()) {
            let place = Place { page, offset: u16::try_from(offset).expect("a page is small") };
            offset += self.record(place).bytes();
            places.push(place);
        }
        places
    }

    /// Frees a page to which nothing refers any more.
    pub fn free(&mut self, page: u32) {
        self.all[page as usize] = Page::default();
        self.free.push(page);
    }

    fn page_with_room(&mut self, bytes: usize) -> u32 {
        if let Some(open) = self.open {
            let page = &self.all[open as usize];
            if page.bytes.capacity() - page.bytes.len() >= bytes {
                return open;
            }
            self.open = None;
            self.note_if_sparse(open);
        }
        let wanted = if self.all.is_empty() { FIRST_PAGE_BYTES.max(bytes) } else { PAGE_BYTES };
        let page = Page { bytes: Vec::with_capacity(wanted), live: 0 };
        let number = if let Some(number) = self.free.pop() {
            self.all[number as usize] = page;
            number
        } else {
            self.all.push(page);
            u32::try_from(self.all.len() - 1).expect("fewer than 2^32 pages")
        };
        self.open = Some(number);
        number
    }

    /// A page is noted once: when it first falls under one half, or when it is closed and is under it already.
    fn note_if_sparse(&mut self, number: u32) {
        let page = &self.all[number as usize];
        if self.open != Some(number) && page.live * 2 < page.bytes.len() && !self.sparse.contains(&number) {
            self.sparse.push(number);
        }
    }

    /// Flips a bit of the key or of the value of a record, as no writer does.
    #[cfg(test)]
    pub fn damage(&mut self, place: Place, in_key: bool) {
        let key_length = self.record(place).key.len();
        let at = usize::from(place.offset) + HEAD_BYTES + if in_key { 0 } else { key_length };
        self.all[place.page as usize].bytes[at] ^= 1;
    }

    /// Bytes of all pages, used or not.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.all.iter().map(|page| page.bytes.capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut pages = Pages::default();
        let small = Record { version: 7, key: b"k", value: b"\"v\"" };
        let empty = Record { version: u64::MAX, key: b"", value: b"" };
        let value = [b'x'; SMALL_BYTES];
        let largest = Record { version: 9, key: b"", value: &value };
        let places = [small, empty, largest].map(|record| pages.append(&record));
        assert_eq!(places.map(|place| pages.record(place)), [small, empty, largest]);
        assert!(pages.overwrite(places[0], 8, b"123"));
        assert!(!pages.overwrite(places[0], 9, b"12"));
        assert_eq!(pages.record(places[0]), Record { version: 8, key: b"k", value: b"123" });
    }

    #[test]
    fn a_page_is_given_up_when_less_than_half_of_it_lives() {
        let mut pages = Pages::default();
        let value = [b'x'; 1000];
        let places: Vec<Place> =
            (0..40).map(|version| pages.append(&Record { version, key: b"key", value: &value })).collect();
        assert_eq!(pages.next_sparse(), None);
        let page = places[1].page;
        let on_page: Vec<Place> = places.iter().filter(|place| place.page == page).copied().collect();
        assert_eq!(pages.places(page), on_page);
        let half = on_page.len() / 2;
        on_page[..half].iter().for_each(|place| pages.release(*place));
        assert_eq!(pages.next_sparse(), None);
        pages.release(on_page[half]);
        assert_eq!(pages.next_sparse(), Some(page));
        let before = pages.capacity();
        pages.free(page);
        assert_eq!(pages.capacity(), before - PAGE_BYTES);
    }
}
