//! A copy of all pairs at one moment, to be read while writers go on.

use std::{mem, vec};

use super::map::Store;
use crate::model::hash::HashKey;
use crate::model::pages::{Pages, Place, Record};
use crate::model::pair::Pair;
use crate::model::range::HashRange;

/// The pairs that were there when it was made. Pages are copied as they are, which is quick, and of large pairs only the handles;
/// what has been read is freed stripe by stripe.
pub struct StoreCopy {
    hash_key: HashKey,
    stripes: vec::IntoIter<StripeCopy>,
    current: Option<StripeCopy>,
}

struct StripeCopy {
    pages: Pages,
    small: vec::IntoIter<Place>,
    large: vec::IntoIter<Pair>,
    /// Ranges that are left out.
    without: Vec<HashRange>,
}

impl Store {
    /// Copies all pairs but those of some ranges: each stripe as it is at one moment.
    pub fn copy(&self, without: &[HashRange]) -> StoreCopy {
        let mut left_out = vec![Vec::new(); self.stripes.len()];
        for range in without {
            for number in self.stripes_of(range) {
                left_out[number].push(range.clone());
            }
        }
        let mut stripes = Vec::with_capacity(self.stripes.len());
        for (stripe, without) in self.stripes.iter().zip(left_out) {
            let stripe = stripe.read();
            if stripe.len() > 0 {
                let small = stripe.small.iter().copied().collect::<Vec<_>>().into_iter();
                let large = stripe.large.iter().cloned().collect::<Vec<_>>().into_iter();
                stripes.push(StripeCopy { pages: stripe.pages.clone(), small, large, without });
            }
        }
        StoreCopy { hash_key: self.hash_key(), stripes: stripes.into_iter(), current: None }
    }

    /// Takes over all that another store holds, and its counter of versions, in place of what is here. Both hash by the same key.
    pub fn replace(&self, other: Self) {
        debug_assert!(self.hash_key() == other.hash_key(), "a pair lies where its hash says");
        self.set_index(other.index());
        self.set_has_types(other.has_types());
        self.set_has_ends(other.has_ends());
        self.told.replace(other.told);
        for (stripe, fresh) in self.stripes.iter().zip(other.stripes) {
            let old = mem::replace(&mut *stripe.write(), fresh.into_inner());
            drop(old);
        }
    }
}

impl StoreCopy {
    /// Appends pairs until they have so many bytes, at least one where there is one; says how many. 0 at the end.
    pub fn encode_some(&mut self, out: &mut Vec<u8>, bytes: usize) -> u64 {
        let (start, mut pairs) = (out.len(), 0);
        while pairs == 0 || out.len() - start < bytes {
            if self.current.is_none() {
                self.current = self.stripes.next();
            }
            let Some(stripe) = &mut self.current else { break };
            match stripe.encode_next(self.hash_key, out) {
                Some(encoded) => pairs += u64::from(encoded),
                None => self.current = None,
            }
        }
        pairs
    }
}

impl StripeCopy {
    /// Appends the next pair, unless it is one of those that are left out; whether it did.
    fn encode_next(&mut self, hash_key: HashKey, out: &mut Vec<u8>) -> Option<bool> {
        let pair;
        let record = if let Some(place) = self.small.next() {
            self.pages.record(place)
        } else {
            pair = self.large.next()?;
            Record { version: pair.version(), key: pair.key(), value: pair.value() }
        };
        let is_left_out =
            self.without.iter().any(|range| range.contains(hash_key.hash(record.key), record.key));
        if !is_left_out {
            record.encode(out);
        }
        Some(!is_left_out)
    }
}
