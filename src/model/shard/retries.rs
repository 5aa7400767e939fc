//! What was done for which request, so that one that is sent again is done once.
//!
//! A request that a client has named, or that comes from a node of which the shard knows nothing, is remembered [for a time](super::timed).
//! The nodes of the view number the writes that they pass on, and say with each which is the lowest that they have no answer to yet. So
//! those are remembered [for as long as they are needed](super::starts), and no longer (RIFL: Lee and others, "Implementing
//! Linearizability at Large Scale and Low Latency", SOSP 2015; its leases are our meta state, which names the start of each node).

use std::fmt;

use crate::model::address::Address;
use crate::model::binary::{
    LONGEST_BYTES, Malformed, Reader, put_bytes, put_list, put_number, put_option, put_wide,
};
use crate::model::format;
use crate::model::range::HashRange;

/// The id of a client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// What the client or the node that was asked has named it; it is remembered for a time.
    Timed {
        /// A hash of the name and the key, or drawn at random.
        id: u128,
        /// A hash of all else that the request says: under the same name it must be the same.
        fingerprint: u64,
    },
    /// The number that the node which was asked has given it.
    Numbered {
        /// The start of that node.
        start: u64,
        /// The number.
        number: u64,
        /// All below are answered, or given up: nobody will ask for them again.
        lowest: u64,
    },
}

const TIMED: u8 = 0;
const NUMBERED: u8 = 1;

impl RequestId {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let id = match parts.next()? {
            "t" => Self::Timed {
                id: u128::from_str_radix(parts.next()?, 16).ok()?,
                fingerprint: u64::from_str_radix(parts.next()?, 16).ok()?,
            },
            "n" => Self::Numbered {
                start: u64::from_str_radix(parts.next()?, 16).ok()?,
                number: parts.next()?.parse().ok()?,
                lowest: parts.next()?.parse().ok()?,
            },
            _ => return None,
        };
        let is_sound = !matches!(id, Self::Numbered { number, lowest, .. } if lowest > number);
        (is_sound && parts.next().is_none()).then_some(id)
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Timed { id, fingerprint } => {
                out.push(TIMED);
                put_wide(out, *id);
                put_random(out, *fingerprint);
            }
            Self::Numbered { start, number, lowest } => {
                out.push(NUMBERED);
                put_random(out, *start);
                put_number(out, *number);
                put_number(out, number.saturating_sub(*lowest));
            }
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.byte()? {
            TIMED => Ok(Self::Timed { id: reader.wide()?, fingerprint: read_random(reader)? }),
            NUMBERED => {
                let (start, number) = (read_random(reader)?, reader.number()?);
                let lowest = number.checked_sub(reader.number()?);
                let lowest = lowest.ok_or(Malformed("a request is above the lowest without an answer"))?;
                Ok(Self::Numbered { start, number, lowest })
            }
            _ => Err(Malformed("unknown kind of request id")),
        }
    }
}

/// One that a simulation has given.
#[cfg(test)]
impl From<u64> for RequestId {
    fn from(id: u64) -> Self {
        Self::Timed { id: id.into(), fingerprint: 0 }
    }
}

/// As headers have it.
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timed { id, fingerprint } => write!(f, "t.{id:032x}.{fingerprint:016x}"),
            Self::Numbered { start, number, lowest } => write!(f, "n.{start:016x}.{number}.{lowest}"),
        }
    }
}

/// A number that was drawn at random: it is not shorter in groups of seven bits.
pub(super) fn put_random(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

pub(super) fn read_random(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    reader.take(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The key was absent.
    Added,
    /// The key was present.
    Updated,
    /// The key was present and is deleted.
    Deleted,
    /// There was nothing to delete.
    Absent,
    /// Nothing: its condition does not hold for what is there.
    Unmet,
}

impl WriteOutcome {
    /// Its binary form.
    pub fn to_byte(self) -> u8 {
        self as u8
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is that of no outcome.
    pub fn from_byte(byte: u8) -> Result<Self, Malformed> {
        let all = [Self::Added, Self::Updated, Self::Deleted, Self::Absent, Self::Unmet];
        all.get(usize::from(byte)).copied().ok_or(Malformed("unknown outcome of a write"))
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The outcome.
    pub outcome: WriteOutcome,
    /// The version that the write has drawn, or of what is there where its condition does not hold; 0 where there is none, or none was told.
    pub version: u64,
}

impl Written {
    /// The version of what the key holds by it: after a PUT, or where its condition does not hold.
    pub fn there(&self) -> Option<u64> {
        let is_there =
            matches!(self.outcome, WriteOutcome::Added | WriteOutcome::Updated | WriteOutcome::Unmet);
        Some(self.version).filter(|version| is_there && *version > 0)
    }
}

/// What was done to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// The hash of the key.
    pub hash: u128,
    /// What was done.
    pub written: Written,
}

impl Recorded {
    /// Whether the key lies in a range, or may: where a cut falls between two keys of one hash, those of both sides do.
    pub(super) fn may_lie_in(&self, range: &HashRange) -> bool {
        self.hash >= range.from.hash && range.to.as_ref().is_none_or(|to| self.hash <= to.hash)
    }

    /// Whether the key lies in a range for sure.
    pub(super) fn lies_in(&self, range: &HashRange) -> bool {
        let is_after =
            self.hash > range.from.hash || (self.hash == range.from.hash && range.from.key.is_empty());
        is_after && range.to.as_ref().is_none_or(|to| self.hash < to.hash)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_wide(out, self.hash);
        out.push(self.written.outcome.to_byte());
        put_number(out, self.written.version);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (hash, outcome) = (reader.wide()?, WriteOutcome::from_byte(reader.byte()?)?);
        Ok(Self { hash, written: Written { outcome, version: reader.number()? } })
    }
}

/// What was done for a request that is remembered for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedRecord {
    /// The request.
    pub id: u128,
    /// What else it said.
    pub fingerprint: u64,
    /// Until when it is remembered, in milliseconds.
    pub until_ms: u64,
    /// What was done.
    pub done: Recorded,
}

/// What was done for a request with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberedRecord {
    /// The start that has passed it on.
    pub start: u64,
    /// Its number.
    pub number: u64,
    /// What was done.
    pub done: Recorded,
}

/// What was done for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryRecord {
    /// It is remembered for a time.
    Timed(TimedRecord),
    /// It is remembered until the node that has passed it on needs that no more.
    Numbered(NumberedRecord),
}

impl RetryRecord {
    /// The format that a node has to know to read it.
    pub(super) fn needs(&self) -> u32 {
        let (Self::Timed(TimedRecord { done, .. }) | Self::Numbered(NumberedRecord { done, .. })) = self;
        if done.written.outcome == WriteOutcome::Unmet { format::CONDITIONS } else { format::FIRST }
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Timed(TimedRecord { id, fingerprint, until_ms, done }) => {
                out.push(TIMED);
                put_wide(out, *id);
                put_random(out, *fingerprint);
                put_number(out, *until_ms);
                done.encode(out);
            }
            Self::Numbered(NumberedRecord { start, number, done }) => {
                out.push(NUMBERED);
                put_random(out, *start);
                put_number(out, *number);
                done.encode(out);
            }
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.byte()? {
            TIMED => {
                let (id, fingerprint) = (reader.wide()?, read_random(reader)?);
                let (until_ms, done) = (reader.number()?, Recorded::decode(reader)?);
                Ok(Self::Timed(TimedRecord { id, fingerprint, until_ms, done }))
            }
            NUMBERED => {
                let (start, number) = (read_random(reader)?, reader.number()?);
                Ok(Self::Numbered(NumberedRecord { start, number, done: Recorded::decode(reader)? }))
            }
            _ => Err(Malformed("unknown kind of retry record")),
        }
    }
}

/// How far a start of a node has come with the writes that it has passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartMark {
    /// The start.
    pub start: u64,
    /// The node, where a state that was learned has named the start.
    pub node: Option<Address>,
    /// All its writes below are answered, or given up.
    pub lowest: u64,
    /// Until when it is remembered, in milliseconds, if no state names it any more.
    pub until_ms: u64,
}

impl StartMark {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_random(out, self.start);
        put_option(out, self.node.as_ref(), |node, out| put_bytes(out, node.as_str().as_bytes()));
        put_number(out, self.lowest);
        put_number(out, self.until_ms);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let start = read_random(reader)?;
        let node = reader.option(read_address)?;
        Ok(Self { start, node, lowest: reader.number()?, until_ms: reader.number()? })
    }
}

pub(super) fn read_address(reader: &mut Reader<'_>) -> Result<Address, Malformed> {
    let text = std::str::from_utf8(reader.bytes(LONGEST_BYTES)?).ok();
    text.and_then(|text| text.parse().ok()).ok_or(Malformed("not an address"))
}

/// What goes along with a range that is handed over. Times count from a moment that source and target agree on: when it is sent, it
/// arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Of all starts that the source knows.
    pub starts: Vec<StartMark>,
    /// Of the range.
    pub records: Vec<RetryRecord>,
}

impl Remembered {
    /// The format that a node has to know to read it.
    pub(super) fn needs(&self) -> u32 {
        self.records.iter().map(RetryRecord::needs).max().unwrap_or(format::FIRST)
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_list(out, self.starts.iter(), StartMark::encode);
        put_list(out, self.records.iter(), RetryRecord::encode);
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { starts: reader.list(StartMark::decode)?, records: reader.list(RetryRecord::decode)? })
    }

    /// With the times that are left at a moment.
    pub(super) fn left_at(self, now_ms: u64) -> Self {
        self.with_times(|until_ms| until_ms.saturating_sub(now_ms))
    }

    /// The opposite.
    pub(super) fn counted_from(self, now_ms: u64) -> Self {
        self.with_times(|left_ms| left_ms.saturating_add(now_ms))
    }

    fn with_times(mut self, change: impl Fn(u64) -> u64) -> Self {
        for mark in &mut self.starts {
            mark.until_ms = change(mark.until_ms);
        }
        for record in &mut self.records {
            if let RetryRecord::Timed(timed) = record {
                timed.until_ms = change(timed.until_ms);
            }
        }
        self
    }
}
