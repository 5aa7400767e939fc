//! Numbers and byte strings in a bounded binary form.
//!
//! A length is compared with what is left of the input, and with the limit the caller names, before
//! anything is allocated for it: no input can make the reader take more memory than the input itself.

use std::fmt;

/// The longest key or value that is believed: what `MAX_VALUE_LENGTH` may be at most, and some more.
pub const LONGEST_BYTES: usize = (256 << 20) + (1 << 20);

/// The bytes are not what they should be: cut off, too long, or a value that is not allowed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed bytes: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Appends a number in groups of seven bits, the lowest first (LEB128), so that small numbers are short.
#[expect(clippy::cast_possible_truncation, reason = "the lowest bits are what is asked for")]
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a byte string with its length before it.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a number of 128 bits, the lowest byte first: it is a hash or drawn at random, so it is not short.
pub fn put_wide(out: &mut Vec<u8>, number: u128) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Appends a list with its length before it; `put` appends an item, of at least one byte.
pub fn put_list<'a, T: 'a>(
    out: &mut Vec<u8>,
    items: impl ExactSizeIterator<Item = &'a T>,
    put: impl Fn(&T, &mut Vec<u8>),
) {
    put_number(out, items.len() as u64);
    items.for_each(|item| put(item, out));
}

/// Appends what may be absent: a flag, and then the item.
pub fn put_option<T>(out: &mut Vec<u8>, item: Option<&T>, put: impl FnOnce(&T, &mut Vec<u8>)) {
    out.push(u8::from(item.is_some()));
    if let Some(item) = item {
        put(item, out);
    }
}

/// Reads what the functions above wrote.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Exactly the next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed("cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag is 0 or 1")),
        }
    }

    /// A number of any size.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed("a number has more than 64 bits"))
    }

    /// How many items follow, each of at least one byte: at most `limit`, and no more than there are bytes.
    pub fn count(&mut self, limit: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed("too many"))?;
        if count > limit.min(self.rest.len()) { Err(Malformed("too many")) } else { Ok(count) }
    }

    /// A byte string of at most `limit` bytes.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8], Malformed> {
        let count = self.count(limit)?;
        self.take(count)
    }

    /// A number of 128 bits.
    pub fn wide(&mut self) -> Result<u128, Malformed> {
        self.take(16).map(|bytes| u128::from_le_bytes(bytes.try_into().expect("16 bytes")))
    }

    /// A list, which takes memory only as its items are really read.
    pub fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        (0..self.count(usize::MAX)?).map(|_| read(self)).collect()
    }

    /// What may be absent.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left over.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("bytes left over")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_survives_a_round_trip(
            number: u64, wide: u128, bytes: Vec<u8>, numbers: Vec<u64>, some: Option<u64>, last: u8,
        ) {
            let put = |number: &u64, out: &mut Vec<u8>| put_number(out, *number);
            let mut out = Vec::new();
            put_number(&mut out, number);
            put_wide(&mut out, wide);
            put_bytes(&mut out, &bytes);
            put_list(&mut out, numbers.iter(), put);
            put_option(&mut out, some.as_ref(), put);
            out.push(last);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.number(), Ok(number));
            prop_assert_eq!(reader.wide(), Ok(wide));
            prop_assert_eq!(reader.bytes(bytes.len()), Ok(&bytes[..]));
            prop_assert_eq!(reader.list(Reader::number), Ok(numbers));
            prop_assert_eq!(reader.option(Reader::number), Ok(some));
            prop_assert!(reader.end().is_err());
            prop_assert_eq!(reader.byte(), Ok(last));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn a_number_of_more_than_64_bits_is_refused(last in 2_u8..) {
            let mut bytes = vec![0xff; 9];
            bytes.push(last);
            prop_assert!(Reader::new(&bytes).number().is_err());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_or_the_input_is_refused() {
        let mut out = Vec::new();
        put_bytes(&mut out, b"abc");
        assert!(Reader::new(&out).bytes(2).is_err());
        assert!(Reader::new(&out[..3]).bytes(3).is_err());
        assert_eq!(Reader::new(&out).bytes(3), Ok(&b"abc"[..]));
    }
}
