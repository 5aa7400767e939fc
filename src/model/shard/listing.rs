//! Listings: the pairs of the ranges that a shard serves at one moment, in the order of their keys.

use super::{HashRange, Shard, Table, intersection, subtract_all};
use crate::model::store::{ListLimit, Listed, Span};

/// The part of a listing that a shard tells.
pub struct Served<T> {
    /// The ranges that it speaks of: of those that were asked for, what it owned when it looked, and nobody else.
    pub ranges: Vec<HashRange>,
    /// What it has found there.
    pub found: T,
}

impl Shard {
    /// Lists the pairs of some ranges, as far as they are served here, from the first key of a span on. Nothing comes or goes meanwhile.
    pub fn list(&self, wanted: &[HashRange], span: &Span, limit: ListLimit) -> Served<Listed> {
        let table = self.table.read();
        let ranges = table.served(wanted);
        let found = self.store.list(&ranges, span, limit);
        Served { ranges, found }
    }

    /// Counts them, up to so many looks; up to and with which key, where that is not all.
    pub fn count_in(
        &self,
        wanted: &[HashRange],
        span: &Span,
        looks: usize,
    ) -> Served<(u64, Option<Box<[u8]>>)> {
        let table = self.table.read();
        let ranges = table.served(wanted);
        let found = self.store.count(&ranges, span, looks);
        Served { ranges, found }
    }
}

impl Table {
    /// What of some ranges is owned, and cannot have been handed over to anybody yet.
    pub(super) fn served(&self, wanted: &[HashRange]) -> Vec<HashRange> {
        let owned = self.owned.rows().iter().map(|(range, _)| range);
        let owned = owned.flat_map(|owned| wanted.iter().filter_map(|range| intersection(owned, range)));
        let frozen: Vec<HashRange> =
            self.outgoing.iter().filter(|one| one.is_frozen()).map(|one| one.range().clone()).collect();
        subtract_all(owned.collect(), &frozen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hash::{HashKey, KeyHash};
    use crate::model::range::Point;
    use crate::model::shard::{Operation, PieceId, ShardCommand, Stamp};

    fn range(from: u8, to: u8) -> HashRange {
        let cut = |byte: u8| Point::before_hash(u128::from_be_bytes([byte; 16]));
        HashRange { from: cut(from), to: Some(cut(to)) }
    }

    #[test]
    fn only_what_is_owned_and_not_frozen_is_listed() {
        let shard = Shard::new(1, HashKey::FIRST_BYTE, [range(0, 100), range(150, 200)], 1);
        for byte in [10, 40, 60, 90, 160_u8] {
            let key = [byte];
            let hash: KeyHash = HashKey::FIRST_BYTE.hash(&key);
            shard.run(hash, &key, Operation::put(b"1"), None).unwrap();
        }
        let limit = ListLimit { pairs: 100, bytes: usize::MAX, looks: 100, longest: 0 };
        let span = Span::default();
        let listed = |wanted: &[HashRange]| {
            let Served { ranges, found } = shard.list(wanted, &span, limit);
            let counted = shard.count_in(wanted, &span, 100).found.0;
            let keys: Vec<u8> = found.pairs.iter().map(|pair| pair.key[0]).collect();
            assert_eq!(counted, keys.len() as u64);
            (ranges, keys)
        };
        assert_eq!(
            listed(&[HashRange::all()]),
            (vec![range(0, 100), range(150, 200)], vec![10, 40, 60, 90, 160])
        );
        assert_eq!(listed(&[range(50, 170)]), (vec![range(50, 100), range(150, 170)], vec![60, 90, 160]));
        let stamp = Stamp { piece: PieceId { change: 1, index: 0, attempt: 1 }, term: 1, version: 1 };
        shard.apply(&ShardCommand::BeginOutgoing { stamp, range: range(30, 70) });
        assert_eq!(listed(&[range(0, 100)]).1, [10, 40, 60, 90]);
        shard.apply(&ShardCommand::Freeze { stamp });
        assert_eq!(listed(&[range(0, 100)]), (vec![range(0, 30), range(70, 100)], vec![10, 90]));
    }
}
