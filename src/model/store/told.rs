//! The ring of changes beside the pairs: see [`history`](crate::model::history).
//!
//! It has a lock of its own, under which a version is drawn and its change is added. So whoever reads the ring up to the last version that was drawn misses nothing. Where nobody has ever
//! watched there is no ring, and nothing is locked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::map::Store;
use crate::model::binary::{Malformed, Reader};
use crate::model::cursor::Cursor;
use crate::model::history::{Happened, History, Page};
use crate::model::range::HashRange;

/// A ring that was not told otherwise has so many bytes.
pub const HISTORY_BYTES: usize = 8 << 20;

/// The ring, once there is one.
pub(super) struct Told {
    is_kept: AtomicBool,
    ring: Mutex<Option<History>>,
    limit: AtomicUsize,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            is_kept: AtomicBool::new(false),
            ring: Mutex::new(None),
            limit: AtomicUsize::new(HISTORY_BYTES),
        }
    }
}

impl Told {
    fn set(&self, ring: Option<History>) {
        let mut held = self.ring.lock();
        self.is_kept.store(ring.is_some(), Ordering::Relaxed);
        *held = ring;
    }

    /// Takes over the ring of another.
    pub(super) fn replace(&self, other: Self) {
        self.set(other.ring.into_inner());
    }
}

impl Store {
    /// Draws a version for a change, and adds it to the ring if there is one. Whoever begins a ring sees to it that no change is under way.
    pub(super) fn draw(&self, key: &[u8], happened: Happened<'_>) -> u64 {
        if !self.keeps_history() {
            return self.next_version();
        }
        let mut ring = self.told.ring.lock();
        let version = self.next_version();
        if let Some(ring) = ring.as_mut() {
            ring.note(version, key, happened);
        }
        version
    }

    /// Whether changes are kept for those who watch.
    pub fn keeps_history(&self) -> bool {
        self.told.is_kept.load(Ordering::Relaxed)
    }

    /// The bytes that a ring may take.
    pub fn set_history_limit(&self, bytes: usize) {
        self.told.limit.store(bytes, Ordering::Relaxed);
    }

    /// A store without pairs that hashes by the same key, and whose ring is to be as long.
    #[must_use]
    pub fn empty(&self) -> Self {
        let store = Self::new(self.hash_key());
        store.set_history_limit(self.told.limit.load(Ordering::Relaxed));
        store
    }

    /// How many it takes.
    pub fn history_bytes(&self) -> usize {
        self.told.ring.lock().as_ref().map_or(0, History::bytes)
    }

    /// Begins a ring, of a store that owns these ranges, unless there is one.
    pub fn keep_history(&self, owned: &[HashRange]) {
        if self.keeps_history() {
            return;
        }
        let mut ring = History::new(self.told.limit.load(Ordering::Relaxed));
        for range in owned {
            ring.own(range, self.index());
        }
        self.told.set(Some(ring));
    }

    /// Changes the ring, if there is one, by the version that was drawn last.
    pub fn change_history(&self, change: impl FnOnce(&mut History, u64)) {
        if let Some(ring) = self.told.ring.lock().as_mut() {
            change(ring, self.index());
        }
    }

    /// What is beyond a cursor, so many bytes about; nothing where no ring is kept.
    pub fn changes_since(&self, cursor: &Cursor, bytes: usize) -> Option<Page> {
        let ring = self.told.ring.lock();
        Some(ring.as_ref()?.since(cursor, self.hash_key(), (self.index(), bytes)))
    }

    /// What goes along with a range; empty where no ring is kept, and then only.
    pub fn history_of(&self, range: &HashRange) -> Vec<u8> {
        let ring = self.told.ring.lock();
        ring.as_ref().map_or_else(Vec::new, |ring| ring.of_range(range, self.hash_key()))
    }

    /// Appends the ring, if there is one, to a snapshot.
    pub fn encode_history(&self, out: &mut Vec<u8>) {
        if let Some(ring) = self.told.ring.lock().as_ref() {
            ring.encode(out);
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no ring.
    pub fn decode_history(&self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        let limit = self.told.limit.load(Ordering::Relaxed);
        self.told.set(Some(History::decode(reader, limit)?));
        Ok(())
    }
}
