//! Copies of the pairs of a range, batch by batch.

use super::map::{Size, Store, StoredValue};
use super::stripe::{Slot, Stripe};
use crate::model::pages::Record;
use crate::model::pair::Pair;
use crate::model::range::{HashRange, Point};

/// How much is taken at once. A single pair of more bytes comes alone, and one pair always comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimit {
    /// The most pairs.
    pub pairs: usize,
    /// The most bytes of keys and values.
    pub bytes: usize,
}

impl BatchLimit {
    pub(super) fn allows(self, size: Size) -> bool {
        size.pairs <= self.pairs as u64 && size.bytes <= self.bytes as u64
    }
}

/// The first pairs of a range.
pub struct Batch {
    /// The pairs in the order of the space.
    pub pairs: Vec<Copied>,
    /// What is left to scan, which may turn out to hold nothing; none at the end of the range.
    pub rest: Option<HashRange>,
}

/// A pair that was read with its key.
pub struct Copied {
    /// The key.
    pub key: Box<[u8]>,
    /// The value, as [`value`](crate::model::value) stores it.
    pub value: Value,
    /// The version: greater than that of every earlier pair with this key.
    pub version: u64,
}

impl Copied {
    /// A pair that was read, and its key.
    pub fn of(key: Box<[u8]>, held: StoredValue) -> Self {
        match held {
            StoredValue::Small { version, value } => Self { key, version, value: Value::Small(value) },
            StoredValue::Large(pair) => Self { key, version: pair.version(), value: Value::Large(pair) },
        }
    }
}

/// A value, as [`value`](crate::model::value) stores it.
pub enum Value {
    /// A copy of a small one.
    Small(Box<[u8]>),
    /// A handle on the large pair that has it.
    Large(Pair),
}

impl Value {
    /// The text.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(pair) => pair.value(),
        }
    }
}

impl Store {
    /// Reads the pairs of a range from its start, at most the limit and at least one where there is one.
    ///
    /// Each stripe is read as it is at one moment: what is before `rest` was read completely, apart from what
    /// was written there after its stripe was read.
    pub fn scan(&self, range: &HashRange, limit: BatchLimit) -> Batch {
        let mut pairs = Vec::new();
        let mut size = Size::default();
        let rest = |from| Some(HashRange { from, to: range.to.clone() });
        for part in self.parts(range) {
            let stripe = part.stripe.read();
            if stripe.len() == 0 {
                continue;
            }
            if !pairs.is_empty() && pairs.len() >= limit.pairs {
                return Batch { pairs, rest: rest(part.start) };
            }
            let mut entries = stripe.entries(part.within);
            // One more than is taken, at which the rest begins.
            stripe.keep_first(&mut entries, (limit.pairs.max(1) - pairs.len()).saturating_add(1));
            for entry in entries {
                let record = stripe.record(entry.slot);
                let with_it = size + Size::of_pair(record.key, record.value);
                if !pairs.is_empty() && !limit.allows(with_it) {
                    return Batch { pairs, rest: rest(Point::of(entry.hash, record.key)) };
                }
                pairs.push(copy(&stripe, entry.slot));
                size = with_it;
            }
        }
        Batch { pairs, rest: None }
    }
}

pub(super) fn copy(stripe: &Stripe, slot: Slot<'_>) -> Copied {
    let Record { version, key, value } = stripe.record(slot);
    let value = match slot {
        Slot::Small(_) => Value::Small(value.into()),
        Slot::Large(pair) => Value::Large(pair.clone()),
    };
    Copied { key: key.into(), value, version }
}
