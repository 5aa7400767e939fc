//! Exports: what a shard serves at one moment, read while writers go on.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{HashRange, Shard};
use crate::model::store::{BatchLimit, Copied, Moment};

/// So many exports are known. With one more the oldest is forgotten.
const KEPT_EXPORTS: usize = 4;
/// One that nobody has read on for so long is forgotten.
const IDLE_MS: u64 = 30_000;
/// What is told at one time: the writers of a stripe wait for so long.
const TOLD: BatchLimit = BatchLimit { pairs: 2048, bytes: 256 << 10 };

/// The exports under way, the oldest first.
#[derive(Default)]
pub(super) struct Exports(Mutex<Vec<Export>>);

struct Export {
    id: u64,
    moment: Arc<Moment>,
    /// How often pairs of it were told.
    told: u64,
    /// When that was, by the clock of whoever reads.
    used_ms: u64,
}

/// There is no such export here, it was read further by somebody else, or what is left of it cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoExport;

impl Shard {
    /// Begins with an export of some ranges, as far as they are served here, of keys that begin alike: those ranges.
    pub fn begin_export(
        &self,
        id: u64,
        wanted: &[HashRange],
        prefix: &[u8],
        ticks_ms: u64,
    ) -> Vec<HashRange> {
        let table = self.table.write();
        let ranges = table.served(wanted);
        let moment = Arc::new(self.store.begin_moment(ranges.clone(), prefix));
        drop(table);
        let mut exports = self.exports.0.lock();
        if exports.len() >= KEPT_EXPORTS {
            exports.remove(0);
        }
        exports.push(Export { id, moment, told: 0, used_ms: ticks_ms });
        ranges
    }

    /// The next pairs of an export of which pairs were told so often before; none at its end.
    ///
    /// # Errors
    /// [`NoExport`].
    pub fn read_export(&self, id: u64, told: u64, ticks_ms: u64) -> Result<Vec<Copied>, NoExport> {
        let moment = {
            let mut exports = self.exports.0.lock();
            let export = exports.iter_mut().find(|export| export.id == id && export.told == told);
            let export = export.ok_or(NoExport)?;
            (export.told, export.used_ms) = (told + 1, ticks_ms);
            Arc::clone(&export.moment)
        };
        let pairs = self.store.read_moment(&moment, TOLD).map_err(|_| NoExport)?;
        if pairs.is_empty() {
            self.exports.0.lock().retain(|export| export.id != id);
        }
        Ok(pairs)
    }

    /// Forgets the exports that nobody has read on for a while.
    pub fn forget_idle_exports(&self, ticks_ms: u64) {
        let mut exports = self.exports.0.lock();
        exports.retain(|export| ticks_ms.saturating_sub(export.used_ms) < IDLE_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hash::HashKey;
    use crate::model::shard::Operation;

    fn filled() -> Shard {
        let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
        (0..5000_u32).for_each(|number| put(&shard, number, b"1"));
        shard
    }

    fn put(shard: &Shard, number: u32, value: &[u8]) {
        let key = number.to_be_bytes();
        shard.run(HashKey::PUBLISHED.hash(&key), &key, Operation::put(value), None).unwrap();
    }

    #[test]
    fn an_export_is_of_one_moment_and_read_once() {
        let shard = filled();
        assert_eq!(shard.begin_export(7, &[HashRange::all()], b"", 0), [HashRange::all()]);
        let (mut seen, mut told) = (0, 0);
        loop {
            let pairs = shard.read_export(7, told, 0).unwrap();
            assert!(pairs.iter().all(|pair| pair.value.bytes() == b"1"));
            seen += pairs.len();
            told += 1;
            if pairs.is_empty() {
                break;
            }
            assert_eq!(shard.read_export(7, told - 1, 0).map(|_| ()), Err(NoExport), "it was told");
            (0..6000_u32).for_each(|number| put(&shard, number, b"2"));
        }
        assert_eq!((seen, shard.read_export(7, told, 0).map(|_| ())), (5000, Err(NoExport)));
    }

    #[test]
    fn exports_are_forgotten_when_they_are_idle_or_too_many() {
        let shard = filled();
        let is_there = |id| shard.exports.0.lock().iter().any(|export| export.id == id);
        for id in 1..=5 {
            shard.begin_export(id, &[HashRange::all()], b"", id);
        }
        assert_eq!([1, 2, 3, 4, 5].map(is_there), [false, true, true, true, true]);
        shard.read_export(3, 0, 20_000).unwrap();
        shard.forget_idle_exports(IDLE_MS + 4);
        assert_eq!([2, 3, 4, 5].map(is_there), [false, true, false, true]);
    }
}
