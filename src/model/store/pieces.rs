//! A range cut into pieces of a limited size.

use std::mem;

use super::map::{Size, Store};
use super::parts::Part;
use super::scan::BatchLimit;
use crate::model::range::{HashRange, Point};

/// The pieces that are cut, and the one that still grows.
struct Cutter {
    limit: BatchLimit,
    pieces: Vec<(HashRange, Size)>,
    from: Point,
    size: Size,
}

impl Store {
    /// Cuts a range into consecutive ones of at most the limit each, with what each held when it was looked
    /// at; a single pair of more bytes has one to itself. Together they are the range, and there is at least one.
    ///
    /// A cut falls between two stripes where a whole one still fits a piece, so a piece may be half empty, but only the
    /// pairs of larger stripes are looked at.
    pub fn pieces(&self, range: &HashRange, limit: BatchLimit) -> Vec<(HashRange, Size)> {
        let (pieces, from, size) = (Vec::new(), range.from.clone(), Size::default());
        let mut cutter = Cutter { limit, pieces, from, size };
        for part in self.parts(range) {
            cutter.take(&part);
        }
        cutter.pieces.push((HashRange { from: cutter.from, to: range.to.clone() }, cutter.size));
        cutter.pieces
    }
}

impl Cutter {
    fn take(&mut self, part: &Part) {
        let stripe = part.stripe.read();
        let size = stripe.size(part.within);
        if self.limit.allows(self.size + size) {
            self.size = self.size + size;
        } else if self.limit.allows(size) {
            self.cut(part.start.clone());
            self.size = size;
        } else {
            let mut entries = stripe.entries(part.within);
            stripe.keep_first(&mut entries, usize::MAX);
            let mut before = None;
            for entry in entries {
                let record = stripe.record(entry.slot);
                let size = Size::of_pair(record.key, record.value);
                if self.size.pairs > 0 && !self.limit.allows(self.size + size) {
                    self.cut(before.map_or_else(
                        || part.start.clone(),
                        |(hash, key)| {
                            Point::between(&Point::of(hash, key), &Point::of(entry.hash, record.key))
                        },
                    ));
                }
                self.size = self.size + size;
                before = Some((entry.hash, record.key));
            }
        }
    }

    /// Ends the piece before a point.
    fn cut(&mut self, at: Point) {
        let from = mem::replace(&mut self.from, at.clone());
        self.pieces.push((HashRange { from, to: Some(at) }, mem::take(&mut self.size)));
    }
}
