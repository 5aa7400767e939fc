//! The bodies of answers: what is in memory, and what streams through.

use std::borrow::Cow;
use std::io::{self, Read};
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::node::keys::Value;

/// The body of an answer.
pub enum Body {
    /// Bytes in memory.
    Bytes(Cow<'static, [u8]>),
    /// A value, or a part of it; never copied together when it is large.
    Value {
        /// What comes before it.
        before: &'static str,
        /// The value as it is stored.
        value: Value,
        /// Which bytes of that.
        part: Range<usize>,
        /// How they are written.
        coding: Coding,
        /// What comes after them.
        after: String,
    },
    /// A stream from another node, of a known length in bytes or chunked.
    Stream {
        /// Where it comes from.
        reader: Box<dyn Read + Send>,
        /// How long it is.
        length: Option<u64>,
    },
}

/// How the bytes of a value are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As they are.
    Plain,
    /// In base64 (RFC 4648, section 4), as a JSON string has them.
    Base64,
}

/// So many bytes are coded at one time: a multiple of three, so that what is written of one piece goes on with the next.
const CODED_PIECE: usize = 48 * 1024;

impl Coding {
    fn length(self, bytes: usize) -> usize {
        match self {
            Self::Plain => bytes,
            Self::Base64 => bytes.div_ceil(3) * 4,
        }
    }

    /// Hands what is to be written on, in pieces where it is long. Nothing is copied that is written as it is.
    fn pieces(self, bytes: &[u8], mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Plain => take(bytes),
            Self::Base64 => {
                bytes.chunks(CODED_PIECE).try_for_each(|piece| take(STANDARD.encode(piece).as_bytes()))
            }
        }
    }
}

impl Body {
    /// A value as it is stored.
    pub fn stored(value: Value) -> Self {
        let part = 0..value.as_bytes().len();
        Self::Value { before: "", value, part, coding: Coding::Plain, after: String::new() }
    }

    /// The length in bytes, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Value { before, part, coding, after, .. } => {
                Some((before.len() + coding.length(part.len()) + after.len()) as u64)
            }
            Self::Stream { length, .. } => *length,
        }
    }

    /// Hands all of it on that is in memory, in pieces.
    ///
    /// # Errors
    /// Those of whoever takes it.
    pub fn pieces(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => take(bytes),
            Self::Value { before, value, part, coding, after } => {
                take(before.as_bytes())?;
                coding.pieces(&value.as_bytes()[part.clone()], &mut take)?;
                take(after.as_bytes())
            }
            Self::Stream { .. } => Ok(()),
        }
    }

    /// Appends all of it that is in memory.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let appended = self.pieces(|piece| {
            out.extend_from_slice(piece);
            Ok(())
        });
        appended.expect("memory takes every write");
    }
}
