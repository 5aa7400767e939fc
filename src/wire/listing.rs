//! Pages of listings, as whoever leads a shard tells them another node, in binary.

use crate::model::binary::{LONGEST_BYTES, Malformed, Reader, put_bytes, put_list, put_number, put_option};
use crate::model::range::HashRange;
use crate::model::store::Span;
use crate::model::ttl::Ttl;

/// Where a node takes a [`Question`].
pub const LIST: &str = "/node/list";

/// What is asked of a shard's leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The group of the shard.
    pub group: u64,
    /// Of which ranges.
    pub ranges: Vec<HashRange>,
    /// Which keys.
    pub span: Span,
    /// What of them.
    pub wanted: Wanted,
}

/// What is wanted of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Their number.
    Count,
    /// So many of them at most, of which one is told in any case.
    Pairs {
        /// The most pairs.
        pairs: usize,
        /// The most bytes of keys and values.
        bytes: usize,
        /// Whether with their values.
        has_values: bool,
    },
    /// The next of them as they were when the first were asked for, with their values and in no order.
    Moment {
        /// Which moment: a number that was drawn for it.
        id: u64,
        /// How often pairs of it were told before.
        told: u64,
    },
}

/// A pair that is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Box<[u8]>,
    /// The version.
    pub version: u64,
    /// How much is left of its time to live, if it has one.
    pub left: Option<Ttl>,
    /// How many bytes the value has.
    pub length: u64,
    /// The value as [`value`](crate::model::value) stores it, where that is wanted.
    pub value: Option<Vec<u8>>,
}

/// What a shard's leader tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The ranges that it speaks of, among those that were asked for.
    pub ranges: Vec<HashRange>,
    /// How many pairs there are, where that was wanted.
    pub count: u64,
    /// The pairs otherwise, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Up to and with this key it speaks of all; of all there is where there is none.
    pub through: Option<Box<[u8]>>,
    /// Whether there are more pairs of the moment.
    pub has_more: bool,
}

#[expect(clippy::borrowed_box, reason = "it is handed on as it is held")]
fn put_key(key: &Box<[u8]>, out: &mut Vec<u8>) {
    put_bytes(out, key);
}

fn key(reader: &mut Reader<'_>) -> Result<Box<[u8]>, Malformed> {
    Ok(reader.bytes(LONGEST_BYTES)?.into())
}

fn size(reader: &mut Reader<'_>) -> Result<usize, Malformed> {
    usize::try_from(reader.number()?).map_err(|_| Malformed("too many"))
}

impl Question {
    /// Its form on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, self.group);
        put_list(&mut out, self.ranges.iter(), HashRange::encode);
        put_bytes(&mut out, &self.span.prefix);
        put_option(&mut out, self.span.after.as_ref(), put_key);
        match self.wanted {
            Wanted::Count => out.push(0),
            Wanted::Pairs { pairs, bytes, has_values } => {
                out.push(1);
                put_number(&mut out, pairs as u64);
                put_number(&mut out, bytes as u64);
                out.push(u8::from(has_values));
            }
            Wanted::Moment { id, told } => {
                out.push(2);
                put_number(&mut out, id);
                put_number(&mut out, told);
            }
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no question.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let (group, ranges) = (reader.number()?, reader.list(HashRange::decode)?);
        let span = Span { prefix: key(&mut reader)?, after: reader.option(key)? };
        let wanted = match reader.byte()? {
            0 => Wanted::Count,
            1 => {
                let (pairs, bytes) = (size(&mut reader)?, size(&mut reader)?);
                Wanted::Pairs { pairs, bytes, has_values: reader.flag()? }
            }
            2 => Wanted::Moment { id: reader.number()?, told: reader.number()? },
            _ => return Err(Malformed("not what is wanted of pairs")),
        };
        reader.end()?;
        Ok(Self { group, ranges, span, wanted })
    }
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        put_key(&self.key, out);
        put_number(out, self.version);
        put_number(out, self.left.map_or(0, Ttl::ms));
        put_number(out, self.length);
        put_option(out, self.value.as_ref(), |value, out| put_bytes(out, value));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (key, version) = (key(reader)?, reader.number()?);
        let left = Ttl::from_ms(reader.number()?);
        let length = reader.number()?;
        let value = reader.option(|reader| Ok(reader.bytes(LONGEST_BYTES)?.to_vec()))?;
        Ok(Self { key, version, left, length, value })
    }
}

impl Page {
    /// Its form on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_list(&mut out, self.ranges.iter(), HashRange::encode);
        put_number(&mut out, self.count);
        put_list(&mut out, self.entries.iter(), Entry::encode);
        put_option(&mut out, self.through.as_ref(), put_key);
        out.push(u8::from(self.has_more));
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no page.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let (ranges, count) = (reader.list(HashRange::decode)?, reader.number()?);
        let (entries, through) = (reader.list(Entry::decode)?, reader.option(key)?);
        let has_more = reader.flag()?;
        reader.end()?;
        Ok(Self { ranges, count, entries, through, has_more })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::range::Point;

    fn range() -> impl Strategy<Value = HashRange> {
        (any::<u128>(), 1_u128..1000).prop_map(|(from, width)| HashRange {
            from: Point::before_hash(from),
            to: from.checked_add(width).map(Point::before_hash),
        })
    }

    fn key() -> impl Strategy<Value = Box<[u8]>> {
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Vec::into)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (key(), any::<u64>(), prop::option::of(1_u64..1_000_000), any::<u64>(), any::<Option<Vec<u8>>>())
            .prop_map(|(key, version, left, length, value)| Entry {
                key,
                version,
                left: left.and_then(Ttl::from_ms),
                length,
                value,
            })
    }

    proptest! {
        #[test]
        fn what_is_told_is_read_as_it_was_meant(
            group: u64,
            ranges in prop::collection::vec(range(), 0..4),
            (prefix, after) in (key(), prop::option::of(key())),
            pairs in prop::option::of((0_usize..9999, any::<u32>(), any::<bool>())),
            entries in prop::collection::vec(entry(), 0..4),
            through in prop::option::of(key()),
        ) {
            let wanted = match pairs {
                None if group.is_multiple_of(2) => Wanted::Count,
                None => Wanted::Moment { id: group, told: group / 3 },
                Some((pairs, bytes, has_values)) => Wanted::Pairs { pairs, bytes: bytes as usize, has_values },
            };
            let question = Question { group, ranges: ranges.clone(), span: Span { prefix, after }, wanted };
            prop_assert_eq!(Question::decode(&question.encode()), Ok(question));
            let page = Page { ranges, count: group, entries, through, has_more: group.is_multiple_of(2) };
            prop_assert_eq!(Page::decode(&page.encode()), Ok(page));
        }

        #[test]
        fn no_bytes_harm_whoever_reads_them(bytes: Vec<u8>) {
            let _ = (Question::decode(&bytes), Page::decode(&bytes));
        }
    }
}
