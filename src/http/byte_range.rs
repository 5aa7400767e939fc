//! The part of a value that a client asks for (RFC 9110, section 14).

use std::ops::Range;

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first position to the last one, or to the end.
    From {
        /// The first position.
        first: usize,
        /// The last position.
        last: Option<usize>,
    },
    /// So many at the end.
    Last(usize),
}

/// What a range comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Satisfied {
    /// This part.
    Part(Range<usize>),
    /// There is no part that could be named: all of it.
    Whole,
    /// It begins beyond the end, or is empty.
    Not,
}

impl ByteRange {
    /// Reads the lines of a header. Nothing where there is none, and where it is to be ignored: since it is in another unit, names several ranges, or makes no sense
    /// (section 14.2 leaves that to the server; all of the value is never wrong).
    pub fn parse(lines: &[&str]) -> Option<Self> {
        let [line] = lines else { return None };
        let (unit, ranges) = line.split_once('=')?;
        if !unit.trim_matches(BLANKS).eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut ranges = ranges.split(',').map(|range| range.trim_matches(BLANKS));
        let mut ranges = ranges.by_ref().filter(|range| !range.is_empty());
        let (Some(range), None) = (ranges.next(), ranges.next()) else { return None };
        let (first, last) = range.split_once('-')?;
        match (first, last) {
            ("", last) => position(last).map(Self::Last),
            (first, "") => Some(Self::From { first: position(first)?, last: None }),
            (first, last) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::From { first, last: Some(last) })
            }
        }
    }

    /// What it comes to in a value of so many bytes.
    pub fn within(self, length: usize) -> Satisfied {
        match self {
            Self::From { first, .. } if first >= length => Satisfied::Not,
            Self::From { first, last } => {
                let end = last.map_or(length, |last| last.saturating_add(1).min(length));
                Satisfied::Part(first..end)
            }
            Self::Last(0) => Satisfied::Not,
            Self::Last(_) if length == 0 => Satisfied::Whole,
            Self::Last(count) => Satisfied::Part(length.saturating_sub(count)..length),
        }
    }
}

const BLANKS: [char; 2] = [' ', '\t'];

/// A number; one that is too large for any value is as good as the largest.
fn position(digits: &str) -> Option<usize> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::Satisfied::{Not, Part, Whole};
    use super::*;

    /// What a header comes to in a value of 10,000 bytes, as the examples of RFC 9110 have it.
    fn of(line: &str) -> Option<Satisfied> {
        ByteRange::parse(&[line]).map(|range| range.within(10_000))
    }

    #[test]
    fn a_range_is_a_part_of_the_value() {
        let table = [
            ("bytes=0-499", Part(0..500)),
            ("bytes=500-999", Part(500..1000)),
            ("bytes=-500", Part(9500..10_000)),
            ("bytes=9500-", Part(9500..10_000)),
            ("bytes=0-0", Part(0..1)),
            ("bytes=-1", Part(9999..10_000)),
            ("bytes=0-", Part(0..10_000)),
            ("bytes=9999-9999", Part(9999..10_000)),
            ("bytes=9999-99999", Part(9999..10_000)),
            ("bytes=-99999", Part(0..10_000)),
            ("bytes=1-18446744073709551616", Part(1..10_000)),
            ("bytes=-18446744073709551616", Part(0..10_000)),
            ("Bytes = 0-1", Part(0..2)),
            ("bytes=,\t0-1 ,", Part(0..2)),
            ("bytes=10000-", Not),
            ("bytes=10000-10001", Not),
            ("bytes=99999999999999999999-", Not),
            ("bytes=-0", Not),
        ];
        for (line, wanted) in table {
            assert_eq!(of(line), Some(wanted), "{line}");
        }
    }

    #[test]
    fn what_is_no_single_range_of_bytes_is_ignored() {
        for line in [
            "bytes=0-0,-1",
            "bytes=500-600,601-999",
            "bytes=500-700,601-999",
            "bytes=1-0",
            "bytes=a-b",
            "bytes=0-1x",
            "bytes=--1",
            "bytes=-",
            "bytes=1",
            "bytes=",
            "bytes= ,",
            "bytes=+1-2",
            "bytes=0 - 1",
            "bytes",
            "seconds=0-1",
            "",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
        assert_eq!(ByteRange::parse(&[]), None);
        assert_eq!(ByteRange::parse(&["bytes=0-1", "bytes=2-3"]), None);
    }

    #[test]
    fn of_an_empty_value_there_is_no_part() {
        let table = [("bytes=0-", Not), ("bytes=0-0", Not), ("bytes=-0", Not), ("bytes=-1", Whole)];
        for (line, wanted) in table {
            assert_eq!(ByteRange::parse(&[line]).unwrap().within(0), wanted, "{line}");
        }
    }
}
