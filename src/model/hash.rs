//! Where a key lies in the hash space.

use std::fmt;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::hex;

/// The key of the hash function: it is drawn once for a cluster and never changed, so that all of its nodes
/// see the same space. As text it is 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HashKey(#[serde(with = "hex")] u128);

impl HashKey {
    /// The one that everybody knows: the first 128 bits of the fraction of pi.
    pub const PUBLISHED: Self = Self::new(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);

    /// With this one tests choose the hash: all 16 bytes of it are the first byte of the key, or zero.
    #[cfg(test)]
    pub(crate) const FIRST_BYTE: Self = Self::new(u64::MAX, u64::MAX);

    /// A key from its two halves.
    pub const fn new(first: u64, second: u64) -> Self {
        Self(((first as u128) << u64::BITS) | second as u128)
    }

    /// Both halves, the first one above.
    pub fn number(self) -> u128 {
        self.0
    }

    /// The hash of a key.
    pub fn hash(self, key: &[u8]) -> KeyHash {
        #[cfg(test)]
        if self == Self::FIRST_BYTE {
            return KeyHash(u128::from_be_bytes([key.first().copied().unwrap_or(0); 16]));
        }
        let mut hasher = self.hasher();
        hasher.write(key);
        KeyHash(finish(&hasher))
    }

    /// A hasher of 128 bits with this key, for what is not the place of a key.
    pub(super) fn hasher(self) -> SipHasher13 {
        let [first, second] = halves(self.0);
        SipHasher13::new_with_keys(first, second)
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a hasher comes to, its first half above its second.
pub(super) fn finish(hasher: &SipHasher13) -> u128 {
    let hash = hasher.finish128();
    (u128::from(hash.h1) << u64::BITS) | u128::from(hash.h2)
}

#[expect(clippy::cast_possible_truncation, reason = "each half is what is asked for")]
fn halves(number: u128) -> [u64; 2] {
    [(number >> u64::BITS) as u64, number as u64]
}

/// The place of a key in the space of 2^128 points: SipHash-1-3 with 128 bits of output
/// (Aumasson and Bernstein, "`SipHash`: a fast short-input PRF").
///
/// The first half of the output is the upper half of the number, so that ranges, stripes and the order of
/// the space all go by the upper bits, and the table inside a stripe by the lower ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(pub u128);

impl KeyHash {
    /// The upper half, for the choice of the stripe.
    pub fn high(self) -> u64 {
        halves(self.0)[0]
    }

    /// The lower half, for the table inside a stripe.
    pub fn low(self) -> u64 {
        halves(self.0)[1]
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
            assert_eq!(format!("{:?}", HashKey::PUBLISHED.hash(key)), wanted, "{key:?}");
        }
    }

    #[test]
    fn a_hash_key_travels_as_32_digits_and_gives_other_hashes() {
        let own = HashKey::new(1, 0xabc);
        let text = serde_json::to_string(&own).unwrap();
        assert_eq!(text, format!("\"{:016x}{:016x}\"", 1, 0xabc));
        assert_eq!(serde_json::from_str::<HashKey>(&text).unwrap(), own);
        assert!(serde_json::from_str::<HashKey>("\"1abc\"").is_err());
        assert_eq!(format!("{:?}", HashKey::PUBLISHED), "243f6a8885a308d313198a2e03707344");
        assert_ne!(own.hash(b"a"), HashKey::PUBLISHED.hash(b"a"));
        assert_ne!(own.hash(b"a"), HashKey::new(0xabc, 1).hash(b"a"));
    }
}
