//! The table that says which part of the space belongs to whom.

use serde::{Deserialize, Serialize};

use super::hash::KeyHash;
use super::range::{HashRange, Point};

/// An ordered table of cuts: each row says where a range begins and who owns it, by number.
///
/// It begins at the start of the space, has no gap and no overlap, and two neighbours never belong to the
/// same owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    starts: Vec<(Point, usize)>,
}

impl Ownership {
    /// Makes the table of cuts and the owner from each on; neighbours with the same owner become one.
    ///
    /// # Panics
    /// When the first cut is not the start of the space, or they do not ascend.
    pub fn new(cuts: impl IntoIterator<Item = (Point, usize)>) -> Self {
        let mut starts: Vec<(Point, usize)> = Vec::new();
        for (from, owner) in cuts {
            match starts.last() {
                None => assert_eq!(from, Point::start(), "the first range begins where the space does"),
                Some((last, _)) => assert!(*last < from, "{from} does not lie after {last}"),
            }
            if starts.last().is_none_or(|(_, last)| *last != owner) {
                starts.push((from, owner));
            }
        }
        assert!(!starts.is_empty(), "somebody owns the space");
        starts.shrink_to_fit();
        Self { starts }
    }

    /// Whether a table that came by the network is one: from the start of the space, ascending, with owners below `owners`.
    pub fn is_sound(&self, owners: usize) -> bool {
        self.starts.first().is_some_and(|(first, _)| *first == Point::start())
            && self.starts.is_sorted_by(|(a, _), (b, _)| a < b)
            && self.starts.iter().all(|(_, owner)| *owner < owners)
    }

    /// The owner of a key.
    pub fn owner(&self, hash: KeyHash, key: &[u8]) -> usize {
        let after = self.starts.partition_point(|(from, _)| from.is_at_or_before(hash, key));
        self.starts[after - 1].1
    }

    /// All ranges with their owners, ascending.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (HashRange, usize)> {
        self.starts.iter().enumerate().map(|(row, (_, owner))| (self.range(row), *owner))
    }

    fn range(&self, row: usize) -> HashRange {
        let to = self.starts.get(row + 1).map(|(next, _)| next.clone());
        HashRange { from: self.starts[row].0.clone(), to }
    }

    /// How many rows the table has.
    #[expect(clippy::len_without_is_empty, reason = "a table of the space is never empty")]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The ranges of one owner, ascending.
    pub fn ranges(&self, owner: usize) -> impl Iterator<Item = HashRange> {
        let rows = self.starts.iter().enumerate().filter(move |(_, (_, of))| *of == owner);
        rows.map(|(row, _)| self.range(row))
    }

    /// Gives a range, whoever owned its parts, to one owner.
    pub fn assign(&mut self, range: &HashRange, owner: usize) {
        let first = self.starts.partition_point(|(from, _)| *from < range.from);
        let end = match &range.to {
            Some(to) => self.starts.partition_point(|(from, _)| from <= to),
            None => self.starts.len(),
        };
        // What follows the range keeps the owner that it had there, also where a row is cut in two.
        let after = range.to.clone().map(|to| (to, self.starts[end - 1].1));
        self.starts.splice(first..end, [(range.from.clone(), owner)].into_iter().chain(after));
        self.starts.dedup_by_key(|(_, owner)| *owner);
    }

    /// The same table with other numbers for the owners.
    #[must_use = "the table itself is not changed"]
    pub fn renumbered(&self, number: impl Fn(usize) -> usize) -> Self {
        Self::new(self.starts.iter().map(|(from, owner)| (from.clone(), number(*owner))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(number: u8) -> Point {
        // Every hash has three places, so that cuts fall between equal hashes too.
        let key: &[u8] = [&b""[..], b"a", b"b"][usize::from(number % 3)];
        Point::of(KeyHash(u128::from(number / 3)), key)
    }

    #[test]
    fn neighbours_of_one_owner_are_one_row() {
        let table = Ownership::new([(place(0), 1), (place(4), 1), (place(5), 0), (place(9), 0)]);
        assert_eq!(table.len(), 2);
        assert_eq!(table.ranges(1).collect::<Vec<_>>(), [HashRange { from: place(0), to: Some(place(5)) }]);
        assert_eq!(table.ranges(2).count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_assigned_is_owned_and_nothing_else_changes(
            steps in prop::collection::vec((0_u8..60, 0_u8..61, 0_usize..4), 1..30)
        ) {
            let mut table = Ownership::new([(Point::start(), 0)]);
            let mut owners = [0; 60];
            for (a, b, owner) in steps {
                let (from, to) = (a.min(b), a.max(b));
                if from == to { continue; }
                // 60 stands for the end of the space.
                let range = HashRange { from: place(from), to: (to < 60).then(|| place(to)) };
                table.assign(&range, owner);
                owners[usize::from(from)..usize::from(to)].fill(owner);
                for (number, owner) in (0_u8..).zip(owners) {
                    let at = place(number);
                    prop_assert_eq!(table.owner(KeyHash(at.hash), &at.key), owner, "{}", at);
                }
                let runs = 1 + owners.windows(2).filter(|pair| pair[0] != pair[1]).count();
                prop_assert_eq!(table.len(), runs);
                prop_assert_eq!(&table.renumbered(|owner| owner), &table);
            }
        }
    }
}
