//! What was done to the pairs of a shard last, as part of its state: see [`history`](crate::model::history).

use super::{HashRange, Shard, Table};
use crate::model::cursor::Cursor;
use crate::model::history::Page;

impl Shard {
    /// The bytes that this replica keeps of what was done last.
    pub fn set_history_limit(&self, bytes: usize) {
        self.store.set_history_limit(bytes);
    }

    /// The bytes that it takes.
    pub fn history_bytes(&self) -> usize {
        self.store.history_bytes()
    }

    /// From now on what is done is kept for those who watch. It stays so.
    pub fn keep_history(&self) {
        // Alone: nobody writes meanwhile.
        let table = self.table.write();
        self.store.keep_history(&table.all_owned());
        self.serve_history(&table);
    }

    /// What was done beyond a cursor, so many bytes about; nothing where it is not kept.
    pub fn changes_since(&self, cursor: &Cursor, bytes: usize) -> Option<Page> {
        self.store.changes_since(cursor, bytes)
    }

    /// Notes what is served by now. The table is held alone.
    pub(super) fn serve_history(&self, table: &Table) {
        if self.store.keeps_history() {
            self.store.change_history(|history, _| history.serve(&table.serving()));
        }
    }

    /// Notes ranges that have become the shard's own, each with what came along.
    pub(super) fn gain_history(&self, table: &Table, gained: &[(HashRange, Vec<u8>)]) {
        if gained.iter().any(|(_, came)| !came.is_empty()) {
            self.store.keep_history(&table.all_owned());
        }
        self.store.change_history(|history, version| {
            for (range, came) in gained {
                history.take_range(range, came, version);
            }
        });
    }
}

impl Table {
    fn all_owned(&self) -> Vec<HashRange> {
        self.owned.rows().iter().map(|(range, _)| range.clone()).collect()
    }
}
