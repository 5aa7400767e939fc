//! Where a key lies in the hash space.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

/// The key of the hash function while the view is fixed: the first 128 bits of the fraction of pi.
const HASH_KEY: (u64, u64) = (0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);

/// The place of a key in the space of 2^128 points: SipHash-1-3 with 128 bits of output
/// (Aumasson and Bernstein, "`SipHash`: a fast short-input PRF").
///
/// The first half of the output is the upper half of the number, so that ranges, stripes and the order of
/// the space all go by the upper bits, and the table inside a stripe by the lower ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(pub u128);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &[u8]) -> Self {
        let mut hasher = SipHasher13::new_with_keys(HASH_KEY.0, HASH_KEY.1);
        hasher.write(key);
        let hash = hasher.finish128();
        Self((u128::from(hash.h1) << 64) | u128::from(hash.h2))
    }

    /// The upper half, for the choice of the stripe.
    pub fn high(self) -> u64 {
        (self.0 >> u64::BITS) as u64
    }

    /// The lower half, for the table inside a stripe.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is asked for")]
    pub fn low(self) -> u64 {
        self.0 as u64
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_do_not_change_between_versions() {
        let table: [(&[u8], &str); 4] = [
            (b"", "0f7c01cff2163174bcb3bd23835f2271"),
            (b"a", "b2dcb872262035edb71cd3d2e4614767"),
            (b"subject1", "23104fe4d3f5f68c09c73d8597813dfb"),
            (&[0, 255, b'/', b'%'], "444a449c6249a0b95de1663a1d8cec39"),
        ];
        for (key, wanted) in table {
            assert_eq!(format!("{:?}", KeyHash::of(key)), wanted, "{key:?}");
        }
    }
}
