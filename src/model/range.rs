//! Cuts of the space of keys, and the pieces between them.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::binary::{LONGEST_BYTES, Malformed, Reader, put_bytes, put_option, put_wide};
use super::hash::KeyHash;
use super::hex;

/// A place in the space of keys, which is ordered by hash and then by the bytes of the key.
///
/// As a cut it lies just before the key that it names, so a cut can fall between any two keys, also
/// between two of the same hash. With an empty key it lies before every key of its hash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// The hash.
    #[serde(with = "hex")]
    pub hash: u128,
    /// The key, or empty; an empty one allocates nothing.
    pub key: Box<[u8]>,
}

impl Point {
    /// The beginning of the space.
    pub fn start() -> Self {
        Self::before_hash(0)
    }

    /// The place before every key of a hash.
    pub fn before_hash(hash: u128) -> Self {
        Self { hash, key: Box::default() }
    }

    /// The place of a key.
    pub fn of(hash: KeyHash, key: &[u8]) -> Self {
        Self { hash: hash.0, key: key.into() }
    }

    /// The shortest cut after one place and not after a later one, so that it separates the two keys there.
    ///
    /// # Panics
    /// When the first place is not before the second.
    pub fn between(before: &Self, after: &Self) -> Self {
        assert!(before < after, "{before} is not before {after}");
        if before.hash != after.hash {
            // The upper bits up to the first one in which the two differ, the rest zero: few digits, and
            // somewhere inside the gap rather than close to a key.
            let differing = before.hash ^ after.hash;
            let shift = u128::BITS - 1 - differing.leading_zeros();
            return Self::before_hash(after.hash >> shift << shift);
        }
        let common = before.key.iter().zip(&after.key).take_while(|(a, b)| a == b).count();
        Self { hash: after.hash, key: after.key[..=common].into() }
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_wide(out, self.hash);
        put_bytes(out, &self.key);
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no point.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { hash: reader.wide()?, key: reader.bytes(LONGEST_BYTES)?.into() })
    }

    /// Whether the place is before a key, or at it.
    pub fn is_at_or_before(&self, hash: KeyHash, key: &[u8]) -> bool {
        self.hash < hash.0 || (self.hash == hash.0 && *self.key <= *key)
    }
}

/// 32 hexadecimal digits of the hash; where a key is named, `+` and the digits of its bytes.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.hash)?;
        if !self.key.is_empty() {
            f.write_char('+')?;
        }
        self.key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A half-open piece of the space: `from` belongs to it, `to` does not. It is never empty.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct HashRange {
    /// Where the range begins.
    pub from: Point,
    /// Where the next range begins; nothing where this one goes on to the end of the space.
    pub to: Option<Point>,
}

impl HashRange {
    /// The whole space.
    pub fn all() -> Self {
        Self { from: Point::start(), to: None }
    }

    /// Whether a key lies in the range.
    pub fn contains(&self, hash: KeyHash, key: &[u8]) -> bool {
        self.from.is_at_or_before(hash, key)
            && !self.to.as_ref().is_some_and(|to| to.is_at_or_before(hash, key))
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.from.encode(out);
        put_option(out, self.to.as_ref(), Point::encode);
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no range, or an empty one.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let range = Self { from: Point::decode(reader)?, to: reader.option(Point::decode)? };
        let is_empty = range.to.as_ref().is_some_and(|to| *to <= range.from);
        if is_empty { Err(Malformed("a range is not empty")) } else { Ok(range) }
    }

    /// The first point as hexadecimal digits: 32, unless the cut falls between two keys of one hash.
    pub fn from_hex(&self) -> String {
        self.from.to_string()
    }

    /// The point after the last one in hexadecimal: as above, or 33 digits for 2^128, the end of the space.
    pub fn to_hex(&self) -> String {
        self.to.as_ref().map_or_else(|| format!("1{:032x}", 0), Point::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(hash: u128, key: &[u8]) -> Point {
        Point::of(KeyHash(hash), key)
    }

    #[test]
    fn the_end_of_the_space_has_33_digits() {
        assert_eq!(HashRange::all().from_hex(), "0".repeat(32));
        assert_eq!(HashRange::all().to_hex(), format!("1{}", "0".repeat(32)));
        let range = HashRange { from: point(0x1f, b"a/"), to: Some(point(0x100, b"")) };
        assert_eq!(range.from_hex(), format!("{:0>32}+612f", "1f"));
        assert_eq!(range.to_hex(), format!("{:0>32}", "100"));
    }

    #[test]
    fn a_range_survives_a_round_trip_and_an_empty_one_is_refused() {
        let (a, b) = (point(7, b"a"), point(7, b"b"));
        let table = [
            (a.clone(), Some(b.clone()), true),
            (a.clone(), None, true),
            (Point::start(), Some(a.clone()), true),
            (a.clone(), Some(a.clone()), false),
            (b, Some(a), false),
        ];
        for (from, to, is_one) in table {
            let (range, mut bytes) = (HashRange { from, to }, Vec::new());
            range.encode(&mut bytes);
            assert_eq!(HashRange::decode(&mut Reader::new(&bytes)).ok(), is_one.then_some(range));
        }
    }

    #[test]
    fn a_cut_lies_after_one_key_and_not_after_the_other_and_is_short() {
        let table = [
            (point(1, b"z"), point(2, b"a"), point(2, b"")),
            (point(0x1234, b"z"), point(0x1278, b"a"), point(0x1240, b"")),
            (point(0, b""), point(u128::MAX, b"a"), point(1 << 127, b"")),
            (point(7, b""), point(7, b"a"), point(7, b"a")),
            (point(7, b"abc"), point(7, b"abdef"), point(7, b"abd")),
            (point(7, b"ab"), point(7, b"abcd"), point(7, b"abc")),
            (point(7, b"a\xff"), point(7, b"b"), point(7, b"b")),
        ];
        for (before, after, wanted) in table {
            let cut = Point::between(&before, &after);
            assert!(before < cut && cut <= after, "{before} {cut} {after}");
            assert_eq!(cut, wanted);
        }
    }

    #[test]
    fn a_range_holds_its_first_point_and_not_the_next_ones() {
        let range = HashRange { from: point(5, b"b"), to: Some(point(9, b"")) };
        let table: [(u128, &[u8], bool); 7] = [
            (4, b"z", false),
            (5, b"a", false),
            (5, b"b", true),
            (5, b"ba", true),
            (8, b"", true),
            (8, b"\xff", true),
            (9, b"", false),
        ];
        for (hash, key, wanted) in table {
            assert_eq!(range.contains(KeyHash(hash), key), wanted, "{hash} {key:?}");
        }
    }
}
