//! How far somebody who watches has seen the changes of pairs.
//!
//! A cursor names for each part of the hash space the version up to which all changes there were seen. That is sound across moves: the target of a piece draws its versions above
//! the counter that the source had at the freeze, so in any part of the space versions grow, whichever shard serves it. It names no shard, so any node can go on from it.
//! Neighbouring parts with one version are one part; so there are as many as there are ranges in the view, and during a view change a few more.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::binary::{Malformed, Reader, put_number};
use super::range::HashRange;

/// A cursor with more parts is none of ours: a view has fewer ranges.
const MOST_PARTS: usize = 1 << 14;
/// The form of the text.
const FORM: u8 = 1;
/// The highest bytes of a hash, as a cut has them: mostly the others are zero.
const HASH_BYTES: usize = size_of::<u128>();

/// A part of the hash space from one hash to before another, or to the end. A cut between two keys of one hash counts as lying before both: no two keys have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub from: u128,
    /// Where the next one begins.
    pub to: Option<u128>,
}

impl Span {
    /// All hashes.
    pub const ALL: Self = Self { from: 0, to: None };

    /// Those of a range; nothing where the range is within one hash.
    pub fn of(range: &HashRange) -> Option<Self> {
        let span = Self { from: range.from.hash, to: range.to.as_ref().map(|to| to.hash) };
        span.to.is_none_or(|to| span.from < to).then_some(span)
    }

    /// Whether a hash is one of them.
    pub fn contains(&self, hash: u128) -> bool {
        self.from <= hash && self.to.is_none_or(|to| hash < to)
    }

    /// What two have in common.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let to = match (self.to, other.to) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        let both = Self { from: self.from.max(other.from), to };
        both.to.is_none_or(|to| both.from < to).then_some(both)
    }

    /// What is left without another.
    pub fn without(&self, other: &Self) -> Vec<Self> {
        if self.intersection(other).is_none() {
            return vec![*self];
        }
        let before = (self.from < other.from).then_some(Self { from: self.from, to: Some(other.from) });
        let after = other.to.filter(|to| self.to.is_none_or(|end| *to < end));
        before.into_iter().chain(after.map(|from| Self { from, to: self.to })).collect()
    }
}

/// For each part of the hash space a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Where each part begins, ascending from 0; neighbours differ.
    parts: Vec<(u128, u64)>,
}

impl Cursor {
    /// The version of a part of which nothing is known yet: from now on. No text has it.
    pub const NOW: u64 = u64::MAX;

    /// The same version everywhere.
    pub fn everywhere(version: u64) -> Self {
        Self { parts: vec![(0, version)] }
    }

    /// The version at a hash.
    pub fn at(&self, hash: u128) -> u64 {
        let after = self.parts.partition_point(|(from, _)| *from <= hash);
        self.parts[after - 1].1
    }

    /// The parts within a span, each with its version.
    pub fn within(&self, span: Span) -> impl Iterator<Item = (Span, u64)> {
        let first = self.parts.partition_point(|(from, _)| *from <= span.from) - 1;
        let part = move |at: usize| {
            let (from, version) = self.parts[at];
            let to = self.parts.get(at + 1).map(|(from, _)| *from);
            Some((Span { from, to }.intersection(&span)?, version))
        };
        (first..self.parts.len()).map_while(part)
    }

    /// The lowest version within a span.
    pub fn least(&self, span: Span) -> u64 {
        self.within(span).map(|(_, version)| version).min().unwrap_or(Self::NOW)
    }

    /// Whether every part is known.
    pub fn is_settled(&self) -> bool {
        self.parts.iter().all(|(_, version)| *version != Self::NOW)
    }

    /// Everything within some spans was seen up to this version. What is not known yet stays so.
    pub fn raise(&mut self, spans: &[Span], version: u64) {
        self.change(spans, |old| old.max(version));
    }

    /// The same, and what was not known is known from this version on.
    pub fn settle(&mut self, spans: &[Span], version: u64) {
        self.change(spans, |old| if old == Self::NOW { version } else { old.max(version) });
    }

    /// Sets the version of a span.
    pub fn set(&mut self, span: Span, version: u64) {
        self.change(&[span], |_| version);
    }

    fn change(&mut self, spans: &[Span], new: impl Fn(u64) -> u64) {
        for span in spans {
            if self.within(*span).all(|(_, version)| new(version) == version) {
                continue;
            }
            let mut parts = Vec::with_capacity(self.parts.len() + 2);
            for (part, version) in self.within(Span::ALL) {
                let pieces = part.without(span).into_iter().map(|rest| (rest.from, version));
                let inside = part.intersection(span).map(|inside| (inside.from, new(version)));
                let mut pieces: Vec<_> = pieces.chain(inside).collect();
                pieces.sort_unstable();
                parts.append(&mut pieces);
            }
            parts.dedup_by_key(|(_, version)| *version);
            self.parts = parts;
        }
    }

    /// Whether it is nowhere behind another.
    pub fn is_at_or_after(&self, other: &Self) -> bool {
        other.within(Span::ALL).all(|(span, version)| self.least(span) >= version)
    }

    /// Wherever one of both is further.
    #[must_use]
    pub fn furthest(&self, other: &Self) -> Self {
        let mut furthest = self.clone();
        for (span, version) in other.within(Span::ALL) {
            furthest.raise(&[span], version);
        }
        furthest
    }

    /// Wherever one of both is less far.
    #[must_use]
    pub fn earliest(&self, other: &Self) -> Self {
        let mut earliest = self.clone();
        for (span, version) in other.within(Span::ALL) {
            earliest.change(&[span], |own| own.min(version));
        }
        earliest
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.parts.len() as u64);
        for (from, version) in &self.parts {
            let bytes = from.to_be_bytes();
            let length = HASH_BYTES - from.trailing_zeros().min(u128::BITS) as usize / 8;
            out.push(u8::try_from(length).expect("16 at most"));
            out.extend_from_slice(&bytes[..length]);
            put_number(out, *version);
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no cursor.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut parts: Vec<(u128, u64)> = Vec::new();
        for _ in 0..reader.count(MOST_PARTS)? {
            let length = usize::from(reader.byte()?);
            if length > HASH_BYTES {
                return Err(Malformed("a hash has more than 16 bytes"));
            }
            let mut bytes = [0; HASH_BYTES];
            bytes[..length].copy_from_slice(reader.take(length)?);
            let (from, version) = (u128::from_be_bytes(bytes), reader.number()?);
            if parts.last().is_some_and(|last| last.0 >= from || last.1 == version) {
                return Err(Malformed("the parts of a cursor ascend, and neighbours differ"));
            }
            parts.push((from, version));
        }
        if parts.first().is_none_or(|first| first.0 != 0) {
            return Err(Malformed("a cursor begins at the beginning"));
        }
        Ok(Self { parts })
    }

    /// The text that clients of this cluster are told.
    pub fn text(&self, cluster: u64) -> String {
        let mut bytes = vec![FORM];
        bytes.extend_from_slice(&cluster.to_le_bytes());
        self.encode(&mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads such a text: the number of the cluster that has given it, and the cursor.
    pub fn parse(text: &str) -> Option<(u64, Self)> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (cluster, rest) = bytes.strip_prefix(&[FORM])?.split_first_chunk()?;
        let mut reader = Reader::new(rest);
        let cursor = Self::decode(&mut reader).ok()?;
        reader.end().ok()?;
        cursor.is_settled().then_some((u64::from_le_bytes(*cluster), cursor))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A space of 16 hashes, spread over the whole.
    fn hash(place: u8) -> u128 {
        u128::from(place) << 124
    }

    fn span() -> impl Strategy<Value = Span> {
        (0_u8..16, 1_u8..=16).prop_map(|(from, length)| {
            let to = from + length;
            Span { from: hash(from), to: (to < 16).then(|| hash(to)) }
        })
    }

    fn all(cursor: &Cursor) -> Vec<u64> {
        (0..16).map(|place| cursor.at(hash(place))).collect()
    }

    fn steps() -> impl Strategy<Value = Vec<(u8, Span, u64)>> {
        prop::collection::vec((0_u8..3, span(), prop_oneof![0_u64..6, Just(Cursor::NOW)]), 0..12)
    }

    fn built(steps: &[(u8, Span, u64)]) -> (Cursor, Vec<u64>) {
        let (mut cursor, mut model) = (Cursor::everywhere(0), vec![0; 16]);
        for (step, span, version) in steps {
            match step {
                0 => cursor.raise(&[*span], *version),
                1 => cursor.settle(&[*span], *version),
                _ => cursor.set(*span, *version),
            }
            for (place, old) in (0_u8..).zip(&mut model) {
                if span.contains(hash(place)) {
                    *old = match step {
                        1 if *old == Cursor::NOW => *version,
                        0 | 1 => (*old).max(*version),
                        _ => *version,
                    };
                }
            }
        }
        (cursor, model)
    }

    proptest! {
        #[test]
        fn it_is_a_version_for_each_hash(one in steps(), other in steps()) {
            let ((one, model), (other, others)) = (built(&one), built(&other));
            prop_assert_eq!(all(&one), model.clone());
            prop_assert!(one.parts.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 != two[1].1));
            let both = model.iter().zip(&others);
            prop_assert_eq!(one.is_at_or_after(&other), both.clone().all(|(one, other)| one >= other));
            let furthest: Vec<u64> = both.map(|(one, other)| *one.max(other)).collect();
            prop_assert_eq!(all(&one.furthest(&other)), furthest);
            let earliest: Vec<u64> = model.iter().zip(&others).map(|(one, other)| *one.min(other)).collect();
            prop_assert_eq!(all(&one.earliest(&other)), earliest);
            prop_assert_eq!(one.is_settled(), model.iter().all(|version| *version != Cursor::NOW));
        }

        #[test]
        fn its_text_is_read_again_if_everything_is_known(steps in steps(), cluster: u64) {
            let (cursor, _) = built(&steps);
            let read = Cursor::parse(&cursor.text(cluster));
            prop_assert_eq!(read, cursor.is_settled().then_some((cluster, cursor)));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A-Za-z0-9_-]{0,40}", bytes: Vec<u8>) {
            let _ = Cursor::parse(&text);
            let _ = Cursor::parse(&URL_SAFE_NO_PAD.encode([&[FORM, 0, 0, 0, 0, 0, 0, 0, 0], &bytes[..]].concat()));
        }
    }

    #[test]
    fn the_text_is_short() {
        let mut cursor = Cursor::everywhere(1 << 45);
        for place in 0..16 {
            cursor.set(Span { from: hash(place), to: None }, (1 << 44) + u64::from(place));
        }
        assert!(cursor.text(7).len() < 16 * 14, "{}", cursor.text(7).len());
    }
}
