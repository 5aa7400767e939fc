//! How long a pair lives: what clients say of that, and the stored form of a pair that has an end.
//!
//! A pair without one is stored as it was before there were any, so it costs nothing. The other begins with a byte with which neither JSON text nor a value that has a
//! [type](super::value) begins: 1, the end as the [time of its group](super::shard::Shard::time) in milliseconds, and then the form that it has without.

use std::borrow::Cow;
use std::fmt;

use super::binary::{Reader, put_number};

/// The header by which a client says how long a pair lives, in seconds, and is told how much of that is left. Nodes say it to each other by the same.
pub const TTL_HEADER: &str = "Evenkv-TTL";
/// The parameter of a query that says the same.
pub const TTL_PARAMETER: &str = "ttl";
/// The end takes so many bytes at most.
pub const LONGEST_END: usize = 11;

/// Ten years.
const LONGEST_MS: u64 = 315_360_000 * 1000;
/// The first byte of a pair that has an end.
const ENDING: u8 = 1;

/// For how long a pair lives from when it is written, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl(u64);

/// A text is no time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTtl;

impl fmt::Display for NoTtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("allowed are seconds from 0.001 to 315360000, as 90 or 0.25")
    }
}

impl Ttl {
    /// Reads seconds, with decimals or without. What is finer than a millisecond counts as a whole one: no pair ends too early.
    ///
    /// # Errors
    /// [`NoTtl`].
    pub fn parse(text: &str) -> Result<Self, NoTtl> {
        let (whole, decimals) =
            text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !decimals.is_none_or(is_number) {
            return Err(NoTtl);
        }
        let decimals = decimals.unwrap_or_default();
        let (millis, finer) = decimals.split_at(decimals.len().min(3));
        let millis: u64 = format!("{millis:0<3}").parse().map_err(|_| NoTtl)?;
        let is_finer = finer.bytes().any(|digit| digit != b'0');
        let seconds: u64 = whole.parse().map_err(|_| NoTtl)?;
        let ms = seconds.checked_mul(1000).and_then(|ms| ms.checked_add(millis + u64::from(is_finer)));
        // Less than a millisecond is not rounded to one: it is no time that is allowed.
        let is_too_short = seconds == 0 && millis == 0;
        ms.filter(|_| !is_too_short).and_then(Self::from_ms).ok_or(NoTtl)
    }

    /// So many milliseconds, where that is allowed.
    pub fn from_ms(ms: u64) -> Option<Self> {
        (1..=LONGEST_MS).contains(&ms).then_some(Self(ms))
    }

    /// What is left of one, in milliseconds. What is there still has not ended, so something is left.
    pub fn left(ms: u64) -> Self {
        Self(ms.clamp(1, LONGEST_MS))
    }

    /// In milliseconds.
    pub const fn ms(self) -> u64 {
        self.0
    }
}

/// In seconds.
impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0 / 1000, self.0 % 1000);
        if millis == 0 {
            return write!(f, "{seconds}");
        }
        write!(f, "{seconds}.{}", format!("{millis:03}").trim_end_matches('0'))
    }
}

/// What is stored of a pair, in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Its end by the group's time, in milliseconds, if it has one: it is there until the time is after that.
    pub end_ms: Option<u64>,
    /// The value, as [`value`](super::value) stores it.
    pub value: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Of what is stored.
    pub fn of(stored: &'a [u8]) -> Self {
        let whole = Self { end_ms: None, value: stored };
        let [ENDING, rest @ ..] = stored else { return whole };
        let mut reader = Reader::new(rest);
        reader.number().map_or(whole, |end_ms| Self { end_ms: Some(end_ms), value: reader.rest() })
    }

    /// What is stored.
    pub fn stored(self) -> Cow<'a, [u8]> {
        let Some(end_ms) = self.end_ms else { return Cow::Borrowed(self.value) };
        let mut stored = Vec::with_capacity(LONGEST_END + self.value.len());
        stored.push(ENDING);
        put_number(&mut stored, end_ms);
        stored.extend_from_slice(self.value);
        Cow::Owned(stored)
    }
}

/// The end of a stored pair, if it has one.
pub fn end_of(stored: &[u8]) -> Option<u64> {
    Parts::of(stored).end_ms
}

/// The value of a stored pair.
pub fn value_of(stored: &[u8]) -> &[u8] {
    Parts::of(stored).value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seconds_are_read_with_decimals_within_their_bounds() {
        let table = [
            ("1", Some(1000)),
            ("0.001", Some(1)),
            ("0.0010", Some(1)),
            ("0.0011", Some(2)),
            ("0.25", Some(250)),
            ("007.5", Some(7500)),
            ("1.0", Some(1000)),
            ("315360000", Some(LONGEST_MS)),
            ("315360000.000", Some(LONGEST_MS)),
            ("315360000.0001", None),
            ("315360000.001", None),
            ("315360001", None),
            ("99999999999999999999999", None),
            ("18446744073709551615", None),
            ("0", None),
            ("0.0009", None),
            ("0.0", None),
            ("", None),
            (".5", None),
            ("5.", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("1,5", None),
            (" 1", None),
            ("none", None),
            ("NaN", None),
            ("1.2.3", None),
        ];
        for (text, ms) in table {
            assert_eq!(Ttl::parse(text).ok().map(Ttl::ms), ms, "{text:?}");
        }
    }

    #[test]
    fn what_has_no_end_is_stored_as_it_is() {
        for value in [&b"1"[..], b"", b"{\"a\":1}", b"\0\x01xyz"] {
            assert_eq!(&*Parts { end_ms: None, value }.stored(), value);
            assert_eq!(Parts::of(value), Parts { end_ms: None, value });
        }
    }

    proptest! {
        #[test]
        fn a_time_to_live_is_read_as_it_is_written(ms in 1..=LONGEST_MS) {
            let ttl = Ttl::from_ms(ms).unwrap();
            prop_assert_eq!(Ttl::parse(&ttl.to_string()), Ok(ttl));
        }

        #[test]
        fn an_end_comes_back_with_its_value(end_ms: Option<u64>, rest: Vec<u8>) {
            let value = [&b"\""[..], &rest].concat();
            let parts = Parts { end_ms, value: &value };
            let stored = parts.stored();
            prop_assert!(stored.len() <= value.len() + LONGEST_END);
            prop_assert_eq!(Parts::of(&stored), parts);
        }

        #[test]
        fn no_bytes_harm_whoever_reads_them(bytes: Vec<u8>) {
            prop_assert!(value_of(&bytes).len() <= bytes.len());
            prop_assert!(bytes.ends_with(value_of(&bytes)));
        }
    }
}
