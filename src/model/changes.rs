//! Which keys came and went since a moment.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::range::{HashRange, Point};

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there at the moment, and now is.
    Created,
    /// It was there at the moment, and now is not.
    Deleted,
}

/// The net creates and deletes since a moment, in the order of the space: with them the set of keys of that moment is
/// known as long as they are kept, while writers go on.
///
/// A key that was created and deleted again leaves nothing, and so does the reverse; a new value is no change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(BTreeMap<Point, Change>);

impl Changes {
    /// No change yet: the moment is now.
    pub fn new() -> Self {
        Self::default()
    }

    /// A key that was absent is there.
    pub fn note_created(&mut self, key: Point) {
        self.note(key, Change::Created);
    }

    /// A key that was there is absent.
    pub fn note_deleted(&mut self, key: Point) {
        self.note(key, Change::Deleted);
    }

    /// How many keys differ from the moment.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set of keys is that of the moment.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes of a range, in the order of the space.
    pub fn within(&self, range: &HashRange) -> impl Iterator<Item = (&Point, Change)> {
        let to = range.to.as_ref();
        // The map panics at bounds in the wrong order; such a range holds nothing.
        let bounds = to
            .is_none_or(|to| range.from < *to)
            .then(|| (Bound::Included(&range.from), to.map_or(Bound::Unbounded, Bound::Excluded)));
        let changes = bounds.map(|bounds| self.0.range::<Point, _>(bounds));
        changes.into_iter().flatten().map(|(key, change)| (key, *change))
    }

    fn note(&mut self, key: Point, change: Change) {
        if self.0.get(&key).is_some_and(|earlier| *earlier != change) {
            self.0.remove(&key);
        } else {
            self.0.insert(key, change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hash::KeyHash;

    fn point(hash: u128, key: &[u8]) -> Point {
        Point::of(KeyHash(hash), key)
    }

    #[test]
    fn what_is_undone_leaves_nothing() {
        let mut changes = Changes::new();
        changes.note_created(point(1, b"a"));
        changes.note_deleted(point(1, b"b"));
        assert_eq!(changes.len(), 2);
        changes.note_deleted(point(1, b"a"));
        changes.note_created(point(1, b"b"));
        assert!(changes.is_empty());
        changes.note_created(point(1, b"a"));
        assert_eq!(changes.len(), 1);
    }

    #[test]
    fn a_range_has_its_own_changes_in_order() {
        let mut changes = Changes::new();
        changes.note_deleted(point(7, b"b"));
        changes.note_created(point(9, b""));
        changes.note_created(point(7, b"a"));
        changes.note_created(point(2, b"z"));
        let within = |from: Point, to: Option<Point>| -> Vec<(u128, Change)> {
            changes.within(&HashRange { from, to }).map(|(key, change)| (key.hash, change)).collect()
        };
        let (a, b) = (point(7, b"a"), point(7, b"b"));
        assert_eq!(within(a.clone(), Some(b.clone())), [(7, Change::Created)]);
        assert_eq!(within(b.clone(), Some(point(9, b""))), [(7, Change::Deleted)]);
        assert_eq!(within(b.clone(), None), [(7, Change::Deleted), (9, Change::Created)]);
        assert_eq!(within(Point::start(), None).len(), 4);
        assert_eq!(within(b.clone(), Some(a)), []);
        assert_eq!(within(b.clone(), Some(b)), []);
    }
}
