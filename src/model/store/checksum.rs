//! What tells two sets of pairs apart without comparing them.

use std::hash::Hasher;
use std::iter::Sum;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

use super::map::Store;
use crate::model::hash::{HashKey, finish};
use crate::model::hex;
use crate::model::pages::Record;
use crate::model::range::HashRange;
use crate::model::ttl;

/// A checksum of a set of pairs: their number, and the sum modulo 2^128 of a hash of each. It does not depend on
/// the order, and that of two disjoint sets together is the sum of theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// The number of pairs.
    pub pairs: u64,
    /// The sum over all pairs of SipHash-1-3-128 of version, length of the key (8 bytes each, the lowest
    /// first), key and value, under the hash key of the store. The end of a pair is left out: it is by the time of
    /// the group, and the same pair has another one in another group. In JSON it is 32 hexadecimal digits.
    #[serde(with = "hex")]
    pub sum: u128,
}

impl Checksum {
    /// That of what a client has stored under a key, whatever its version: the same in every cluster, since it is under [`HashKey::PUBLISHED`]. It is over the length of the key
    /// (8 bytes, the lowest first), the key, and the value as [`value`](crate::model::value) stores it, with its type.
    pub fn of_content(key: &[u8], value: &[u8]) -> Self {
        let mut hasher = HashKey::PUBLISHED.hasher();
        hasher.write(&(key.len() as u64).to_le_bytes());
        hasher.write(key);
        hasher.write(value);
        Self { pairs: 1, sum: finish(&hasher) }
    }

    pub(super) fn of_pair(hash_key: HashKey, record: &Record) -> Self {
        let mut hasher = hash_key.hasher();
        hasher.write(&record.version.to_le_bytes());
        hasher.write(&(record.key.len() as u64).to_le_bytes());
        hasher.write(record.key);
        hasher.write(ttl::value_of(record.value));
        Self { pairs: 1, sum: finish(&hasher) }
    }
}

impl Add for Checksum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { pairs: self.pairs.wrapping_add(other.pairs), sum: self.sum.wrapping_add(other.sum) }
    }
}

impl Sub for Checksum {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { pairs: self.pairs.wrapping_sub(other.pairs), sum: self.sum.wrapping_sub(other.sum) }
    }
}

impl Sum for Checksum {
    fn sum<I: Iterator<Item = Self>>(checksums: I) -> Self {
        checksums.fold(Self::default(), Add::add)
    }
}

impl Store {
    /// The checksum of a range: exact for each stripe at the moment it is looked at.
    pub fn checksum(&self, range: &HashRange) -> Checksum {
        let of_pair = |record: Record| Checksum::of_pair(self.hash_key(), &record);
        self.parts(range)
            .map(|part| part.stripe.read().records(part.within).map(of_pair).sum::<Checksum>())
            .sum()
    }
}
