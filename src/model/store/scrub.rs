//! Sums over all pairs as they were at one moment, taken from the stored bytes while writers go on.
//!
//! The sums do not depend on the order. So nothing is copied: whoever changes what has not been read yet adds what was there, and
//! takes away again what will be read in its place. A page is read under the lock of its stripe, a few at a time; of large pairs
//! the handles are taken, and of those that go before that, too.

use std::mem;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

use super::checksum::Checksum;
use super::map::Store;
use super::stripe::Stripe;
use crate::model::hash::{HashKey, KeyHash};
use crate::model::pages::{Pages, Place, Record};
use crate::model::pair::Pair;
use crate::model::range::HashRange;
use crate::model::ttl::value_of;

/// Bytes of what was removed before it was read, and is kept for that. With more than this the scrub is void. They are read before
/// anything else, so only what is removed at once comes to this: the ranges of a shard that was given up, say.
const KEPT_BYTES: u64 = 256 << 20;

/// A piece that takes well below a millisecond.
pub const PIECE: ScrubLimit = ScrubLimit { records: 2048, bytes: 256 << 10 };

/// How much is read at once: for so long the writers of a stripe wait.
#[derive(Debug, Clone, Copy)]
pub struct ScrubLimit {
    /// After so many records the lock is let go, at the end of a page.
    pub records: usize,
    /// The same for bytes.
    pub bytes: usize,
}

/// Whose pairs are whose at the moment of a scrub.
#[derive(Debug, Clone, Default)]
pub struct Territory {
    /// The ranges that are summed up, ascending.
    pub owned: Vec<HashRange>,
    /// Others, of which pairs may be there as well.
    pub others: Vec<HashRange>,
}

/// What a scrub has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// The pairs of the owned ranges.
    pub owned: Checksum,
    /// The same without versions, as [`Checksum::of_content`] has it.
    pub content: Checksum,
    /// The number of those in the others.
    pub others: u64,
    /// The number of those that lie in none of them.
    pub stray: u64,
    /// By how many pairs, modulo 2^64, the tables say more than was found where it belongs: 0.
    pub unaccounted: u64,
}

/// How far a scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to be read. So many records were, under one lock.
    More(usize),
    /// It is over.
    Done(Scrubbed),
    /// It cannot be ended.
    Void(Void),
}

/// Why a scrub cannot be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Void {
    /// It was given up.
    GivenUp,
    /// The store was replaced, and with it what was to be read.
    Replaced,
    /// More was removed at once than is kept for it.
    TooMuchRemoved,
}

/// A scrub under way.
pub struct Scrub {
    /// Large pairs that were put in later are not read.
    number: u32,
    hash_key: HashKey,
    territory: Territory,
    kept: Mutex<Kept>,
    /// Whether it cannot be ended: a look at what `kept` says, without the lock.
    is_void: AtomicBool,
    work: Mutex<Work>,
}

/// What was removed before it was read.
#[derive(Default)]
struct Kept {
    pairs: Vec<Pair>,
    stripes: Vec<KeptStripe>,
    bytes: u64,
    /// Once it is said why the scrub cannot be ended, nothing is kept any more.
    void: Option<Void>,
}

struct KeptStripe {
    stripe: Arc<Stripe>,
    /// The pages that had not been read.
    pages: std::ops::Range<u32>,
    /// Whether its large pairs had not been taken.
    has_large: bool,
}

#[derive(Default)]
struct Work {
    /// The stripes that are still to be read.
    stripes: Vec<usize>,
    /// Large pairs of the last one.
    large: Vec<Pair>,
    found: Scrubbed,
}

/// What a scrub has still to read of a stripe.
struct Unread {
    scrub: Arc<Scrub>,
    /// The first page.
    next: AtomicU32,
    /// The page after the last one: later ones were begun after the moment.
    end: u32,
    has_large: AtomicBool,
    correction: Scrubbed,
}

/// What all scrubs that are under way have still to read of a stripe. Nothing, mostly; then it costs nothing.
#[derive(Default)]
pub(super) struct Scrubs(Vec<Unread>);

impl Scrubs {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Add for Scrubbed {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            owned: self.owned + other.owned,
            content: self.content + other.content,
            others: self.others.wrapping_add(other.others),
            stray: self.stray.wrapping_add(other.stray),
            unaccounted: self.unaccounted.wrapping_add(other.unaccounted),
        }
    }
}

/// Numbers and sums wrap around: less than nothing is made good by what is read later.
impl Sub for Scrubbed {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            owned: self.owned - other.owned,
            content: self.content - other.content,
            others: self.others.wrapping_sub(other.others),
            stray: self.stray.wrapping_sub(other.stray),
            unaccounted: self.unaccounted.wrapping_sub(other.unaccounted),
        }
    }
}

impl Territory {
    fn owns(&self, hash: KeyHash, key: &[u8]) -> bool {
        let after = self.owned.partition_point(|range| range.from.is_at_or_before(hash, key));
        after.checked_sub(1).is_some_and(|before| self.owned[before].contains(hash, key))
    }
}

impl Store {
    /// Begins a scrub: what is there now is what it will sum up. As long as this takes, whoever calls it holds all writers back; that is
    /// a look at every stripe.
    pub fn begin_scrub(&self, territory: Territory) -> Arc<Scrub> {
        let (number, hash_key) = (self.next_scrub(), self.hash_key());
        let (kept, is_void, work) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        let scrub = Arc::new(Scrub { number, hash_key, territory, kept, is_void, work });
        let mut work = scrub.work.lock();
        for (place, stripe) in self.stripes.iter().enumerate() {
            let mut stripe = stripe.write();
            stripe.scrubs.0.retain(|unread| !unread.scrub.is_void());
            if stripe.len() > 0 {
                work.found.unaccounted += stripe.len() as u64;
                work.stripes.push(place);
                stripe.begin_scrub(&scrub);
            }
        }
        drop(work);
        scrub
    }

    /// Reads a bit more. No writer waits for more of it than the limit says.
    pub fn scrub_some(&self, scrub: &Scrub, limit: ScrubLimit) -> Progress {
        let mut work = scrub.work.lock();
        let kept = scrub.take_kept();
        if let Some(void) = kept.void {
            self.forget(scrub, &mut work);
            return Progress::Void(void);
        }
        for pair in &kept.pairs {
            work.found = work.found + scrub.of_pair(pair);
        }
        for kept in kept.stripes {
            let large = if kept.has_large { scrub.large_of(&kept.stripe) } else { Vec::default() };
            let large = large.iter().map(|pair| scrub.of_pair(pair));
            let small = kept.pages.map(|page| scrub.of_page(&kept.stripe, page).0);
            work.found = large.chain(small).fold(work.found, Add::add);
        }
        let mut bytes = 0;
        while bytes < limit.bytes
            && let Some(pair) = work.large.pop()
        {
            bytes += pair.size();
            work.found = work.found + scrub.of_pair(&pair);
        }
        if bytes > 0 {
            return Progress::More(0);
        }
        match work.stripes.last() {
            // Nothing is unread any more, so nothing is kept either.
            None => Progress::Done(work.found),
            Some(place) => self.scrub_stripe(*place, scrub, &mut work, limit),
        }
    }

    fn scrub_stripe(&self, place: usize, scrub: &Scrub, work: &mut Work, limit: ScrubLimit) -> Progress {
        let stripe = self.stripes[place].read();
        let Some(unread) = stripe.scrubs.of(scrub) else {
            scrub.end(Void::Replaced);
            return Progress::More(0);
        };
        let (mut page, mut records, mut bytes) = (unread.next.load(Ordering::Relaxed), 0, 0);
        while page < unread.end && records < limit.records && bytes < limit.bytes {
            let (found, (more_records, more_bytes)) = scrub.of_page(&stripe, page);
            work.found = work.found + found;
            (page, records, bytes) = (page + 1, records + more_records, bytes + more_bytes);
        }
        // Writers have the lock alone, so they see either all of this or nothing.
        unread.next.store(page, Ordering::Relaxed);
        if page < unread.end {
            return Progress::More(records);
        }
        work.large = scrub.large_of(&stripe);
        unread.has_large.store(false, Ordering::Relaxed);
        drop(stripe);
        work.stripes.pop();
        let unread = self.stripes[place].write().scrubs.take(scrub);
        work.found = unread.map_or(work.found, |unread| work.found + unread.correction);
        Progress::More(records)
    }

    /// Nobody does anything for a scrub any more.
    fn forget(&self, scrub: &Scrub, work: &mut Work) {
        for place in mem::take(work).stripes {
            self.stripes[place].write().scrubs.take(scrub);
        }
    }
}

impl Scrub {
    /// Ends it before its time, without waiting for whoever reads a piece.
    pub fn give_up(&self) {
        self.end(Void::GivenUp);
    }

    fn end(&self, why: Void) {
        let mut kept = self.kept.lock();
        let why = kept.void.unwrap_or(why);
        *kept = Kept { void: Some(why), ..Kept::default() };
        self.is_void.store(true, Ordering::Relaxed);
    }

    fn is_void(&self) -> bool {
        self.is_void.load(Ordering::Relaxed)
    }

    fn of_record(&self, hash: KeyHash, record: &Record) -> Scrubbed {
        // What is found is accounted for.
        let mut found = Scrubbed { unaccounted: 1_u64.wrapping_neg(), ..Scrubbed::default() };
        if self.territory.owns(hash, record.key) {
            found.owned = Checksum::of_pair(self.hash_key, record);
            found.content = Checksum::of_content(record.key, value_of(record.value));
        } else if self.territory.others.iter().any(|range| range.contains(hash, record.key)) {
            found.others = 1;
        } else {
            found.stray = 1;
        }
        found
    }

    fn of_pair(&self, pair: &Pair) -> Scrubbed {
        let record = Record { version: pair.version(), key: pair.key(), value: pair.value() };
        self.of_record(self.hash_key.hash(record.key), &record)
    }

    fn of_small(&self, pages: &Pages, place: Place) -> Scrubbed {
        let record = pages.record(place);
        self.of_record(self.hash_key.hash(record.key), &record)
    }

    /// The records of a page to which the table of the stripe refers, and how many records and bytes were looked at.
    fn of_page(&self, stripe: &Stripe, page: u32) -> (Scrubbed, (usize, usize)) {
        let (mut found, places) = (Scrubbed::default(), stripe.pages.places(page));
        let mut bytes = 0;
        for place in &places {
            let record = stripe.pages.record(*place);
            bytes += record.key.len() + record.value.len();
            let hash = self.hash_key.hash(record.key);
            // Not only dead records are not referred to: nor is one under the hash of a key that is not its own any more.
            if stripe.small.find(hash.low(), |slot| slot == place).is_some() {
                found = found + self.of_record(hash, &record);
            }
        }
        (found, (places.len(), bytes))
    }

    /// The large pairs of a stripe that were there at the moment.
    fn large_of(&self, stripe: &Stripe) -> Vec<Pair> {
        stripe.large.iter().filter(|pair| self.was_there(pair)).cloned().collect()
    }

    fn was_there(&self, pair: &Pair) -> bool {
        pair.born() < self.number
    }

    fn take_kept(&self) -> Kept {
        let mut kept = self.kept.lock();
        let void = kept.void;
        mem::replace(&mut kept, Kept { void, ..Kept::default() })
    }

    fn keep(&self, bytes: u64, keep: impl FnOnce(&mut Kept)) {
        let mut kept = self.kept.lock();
        if kept.bytes + bytes <= KEPT_BYTES {
            kept.bytes += bytes;
            keep(&mut kept);
        } else {
            drop(kept);
            self.end(Void::TooMuchRemoved);
        }
    }
}

impl Unread {
    fn has(&self, page: u32) -> bool {
        page < self.end && page >= self.next.load(Ordering::Relaxed) && !self.scrub.is_void()
    }

    fn has_large(&self) -> bool {
        self.has_large.load(Ordering::Relaxed) && !self.scrub.is_void()
    }
}

impl Scrubs {
    fn of(&self, scrub: &Scrub) -> Option<&Unread> {
        self.0.iter().find(|unread| unread.scrub.number == scrub.number)
    }

    fn take(&mut self, scrub: &Scrub) -> Option<Unread> {
        let at = self.0.iter().position(|unread| unread.scrub.number == scrub.number)?;
        let unread = self.0.swap_remove(at);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Some(unread)
    }

    /// A small pair goes from its place, or another value comes there. It still lies there.
    pub(super) fn small_goes(&mut self, pages: &Pages, place: Place) {
        for unread in self.0.iter_mut().filter(|unread| unread.has(place.page())) {
            unread.correction = unread.correction + unread.scrub.of_small(pages, place);
        }
    }

    /// A small pair has come to a place.
    pub(super) fn small_came(&mut self, pages: &Pages, place: Place) {
        for unread in self.0.iter_mut().filter(|unread| unread.has(place.page())) {
            unread.correction = unread.correction - unread.scrub.of_small(pages, place);
        }
    }

    /// A large pair is gone. One that has come needs no word: it says by itself since when it is there.
    pub(super) fn large_went(&mut self, pair: &Pair) {
        for unread in self.0.iter().filter(|unread| unread.has_large() && unread.scrub.was_there(pair)) {
            unread.scrub.keep(pair.size() as u64, |kept| kept.pairs.push(pair.clone()));
        }
    }

    /// All pairs of a stripe go with it, and nothing is left of it to be read.
    pub(super) fn all_went(&mut self, gone: &Arc<Stripe>) {
        for unread in &mut self.0 {
            let pages = unread.next.swap(unread.end, Ordering::Relaxed)..unread.end;
            let has_large = unread.has_large.swap(false, Ordering::Relaxed);
            let stripe = KeptStripe { stripe: Arc::clone(gone), pages, has_large };
            if !unread.scrub.is_void() {
                unread.scrub.keep(gone.bytes, |kept| kept.stripes.push(stripe));
            }
        }
    }
}

impl Stripe {
    fn begin_scrub(&mut self, scrub: &Arc<Scrub>) {
        let (next, has_large) = (AtomicU32::new(0), AtomicBool::new(!self.large.is_empty()));
        let (end, correction) = (self.pages.count(), Scrubbed::default());
        self.scrubs.0.push(Unread { scrub: Arc::clone(scrub), next, end, has_large, correction });
    }
}
