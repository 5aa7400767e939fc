//! A range as whole stripes and two edges.

use std::cmp::max;
use std::ops::Range;

use parking_lot::RwLock;

use super::map::{Size, Store};
use super::stripe::Stripe;
use crate::model::hash::KeyHash;
use crate::model::range::{HashRange, Point};

/// What a range has of one stripe.
pub(super) struct Part<'a> {
    pub(super) stripe: &'a RwLock<Stripe>,
    /// The range, where it does not hold the whole stripe.
    pub(super) within: Option<&'a HashRange>,
    /// Where the stripe starts; for the first part that may be before the range.
    pub(super) start: Point,
    /// Where the next stripe starts.
    end: Option<Point>,
}

impl Part<'_> {
    /// The space of a range that this part of it has.
    pub(super) fn space(&self, range: &HashRange) -> HashRange {
        let from = max(&range.from, &self.start).clone();
        let to = match (&range.to, &self.end) {
            (Some(to), Some(end)) => Some(to.min(end)),
            (to, end) => to.as_ref().or(end.as_ref()),
        };
        HashRange { from, to: to.cloned() }
    }
}

impl Store {
    /// The parts of a range, in the order of the space. One that ends before it begins has none or an empty one.
    pub(super) fn parts<'a>(&'a self, range: &'a HashRange) -> impl Iterator<Item = Part<'a>> {
        let to = range.to.as_ref();
        self.stripes_of(range).map(move |number| {
            let start = stripe_start(self.starts[number]);
            let end = self.starts.get(number + 1).map(|start| stripe_start(*start));
            let whole = range.from <= start && to.is_none_or(|to| end.as_ref().is_some_and(|end| end <= to));
            let within = (!whole).then_some(range);
            Part { stripe: &self.stripes[number], within, start, end }
        })
    }

    /// The numbers of the stripes that have a part of a range.
    pub(super) fn stripes_of(&self, range: &HashRange) -> Range<usize> {
        let first = self.stripe_number(KeyHash(range.from.hash));
        let end = |to: &Point| self.starts.partition_point(|start| stripe_start(*start) < *to);
        first..range.to.as_ref().map_or(self.starts.len(), end)
    }

    /// How much a range holds: exact for each stripe at the moment it is looked at. Only at the two edges
    /// it looks at pairs.
    pub fn size_of(&self, range: &HashRange) -> Size {
        self.parts(range).map(|part| part.stripe.read().size(part.within)).sum()
    }

    /// Removes all pairs of a range, one stripe after the other, and says how many there were. It draws no version.
    pub fn remove_range(&self, range: &HashRange) -> u64 {
        self.parts(range).map(|part| part.remove()).sum()
    }

    /// Removes pairs of a range until so many are gone, up to the end of a stripe, so it may be more; at least one
    /// stripe's where there are any. Says how many; 0 where nothing is left.
    pub fn remove_some(&self, range: &HashRange, at_most: usize) -> u64 {
        let mut removed = 0;
        for part in self.parts(range) {
            removed += part.remove();
            if removed > 0 && removed >= at_most as u64 {
                break;
            }
        }
        removed
    }
}

impl Part<'_> {
    fn remove(&self) -> u64 {
        // Memory is freed after the lock is let go, as it takes long.
        let mut stripe = self.stripe.write();
        if let Some(range) = self.within {
            let (removed, gone) = stripe.remove_within(range);
            drop(stripe);
            drop(gone);
            return removed;
        }
        let gone = stripe.take_all();
        drop(stripe);
        gone.len() as u64
    }
}

fn stripe_start(start: u64) -> Point {
    Point::before_hash(u128::from(start) << u64::BITS)
}
