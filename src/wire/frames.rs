//! The frames of a connection on which a node passes many requests about keys on at one time. Each question has a number; its answer has the same, and
//! answers come in any order.
//!
//! A frame is its length in four bytes, the lowest first, and so many bytes: the version of the format, the kind, the number of the question, and what
//! the kind has. The number has eight bytes, the lowest first. All other numbers are LEB128, texts and keys have their length before them, and a value is what is left of the frame.

use std::borrow::Borrow;
use std::time::Duration;

use super::Addressed;
use crate::error::Applied;
use crate::model::address::Address;
use crate::model::binary::{Malformed, Reader, put_bytes, put_number, put_option};
use crate::model::shard::{Operation, RequestId, WriteOutcome};

/// The protocol that a connection is upgraded to. Its number is that of [`VERSION`]: a node that does not know it refuses, and is asked by HTTP.
pub const PROTOCOL: &str = "evenkv-requests/1";
/// The first byte of each frame.
pub const VERSION: u8 = 1;
/// What has a longer value, in bytes, goes by HTTP: it would hold up the small ones.
pub const LONGEST_VALUE: usize = 32 << 10;
/// A frame that announces more bytes is none: the longest value, the longest key, and what is around them.
pub const LONGEST: usize = 256 << 10;
/// The bytes of a frame's length.
pub const HEAD: usize = 4;

/// The longest name of a cluster, address or reason that is believed, in bytes.
const LONGEST_TEXT: usize = 4096;

const GET: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const STALE: u8 = 3;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question<'a, A = Addressed> {
    /// Who is asked, and from where.
    pub addressed: A,
    /// Whoever asks waits for so many milliseconds.
    pub left_ms: u64,
    /// The id under which it is done once, where it has one.
    pub id: Option<RequestId>,
    /// Any replica may answer a read.
    pub is_stale: bool,
    /// The key.
    pub key: &'a [u8],
    /// What is to be done.
    pub operation: Operation<'a>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// What a write did.
    Wrote(WriteOutcome),
    /// The key is absent; how old that may be, where any replica might answer.
    Missing(Option<Duration>),
    /// The value, and how old it may be.
    Found(Option<Duration>, &'a [u8]),
    /// Nothing was done: look at the newest view and ask again.
    Again,
    /// Nothing was done: the asked start of the node is over.
    Gone,
    /// Nothing was done: another replica leads, where it is known; or why there is none.
    NotLeader(Option<Address>, String),
    /// Nothing was done: another request was done under the same name.
    OtherRequest,
    /// Nothing was done: the shard can remember no more named writes.
    Full,
    /// It failed: whether it was done, and why.
    Failed(Applied, String),
    /// Nothing was done: the key is longer than so many bytes.
    KeyTooLong(usize),
    /// Nothing was done: the value is too long.
    TooLarge(String),
    /// Nothing was done: ask by HTTP.
    ByHttp,
    /// Nothing was done: the node has more to do than it can.
    Busy(String),
}

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A question.
    Question(u64, Question<'a>),
    /// The answer to the question of that number.
    Answer(u64, Answer<'a>),
    /// Who leads a group. It has no number, and no answer.
    Leader(Leader),
}

/// Who leads a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The group.
    pub group: u64,
    /// The term in which it leads.
    pub term: u64,
    /// The node.
    pub node: Address,
}

pub(super) const QUESTION: u8 = 1;
pub(super) const ANSWER: u8 = 2;
const LEADER: u8 = 3;
const LAST: u8 = 4;

impl Leader {
    /// Appends a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_frame(out, LEADER, 0, |out| {
            put_number(out, self.group);
            put_number(out, self.term);
            put_text(out, self.node.as_str());
        });
    }

    fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let leader = Self { group: reader.number()?, term: reader.number()?, node: address(&mut reader)? };
        reader.end()?;
        Ok(leader)
    }
}

/// Appends a frame, whose inside is written by `put`.
pub(super) fn put_frame(out: &mut Vec<u8>, kind: u8, number: u64, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&number.to_le_bytes());
    put(out);
    let length = u32::try_from(out.len() - start - HEAD).expect("no value is so long here");
    out[start..start + HEAD].copy_from_slice(&length.to_le_bytes());
}

/// What is in the first frame of some bytes; nothing while that has not come wholly.
///
/// # Errors
/// Where it is longer than any.
pub fn first(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > LONGEST { Err(Malformed("a frame is too long")) } else { Ok(rest.get(..length)) }
}

/// What comes to whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// The answer to the question of that number.
    Answer(u64),
    /// The word that no more is to be asked on this connection. What was asked is answered.
    Last,
}

/// What a frame is that comes to whoever asks. What is in an answer is not looked at.
///
/// # Errors
/// Where it is something else.
pub fn coming(frame: &[u8]) -> Result<Coming, Malformed> {
    match head(&mut Reader::new(frame))? {
        (ANSWER, number) => Ok(Coming::Answer(number)),
        (LAST, _) => Ok(Coming::Last),
        _ => Err(Malformed("not an answer")),
    }
}

/// Appends the frame that no more is to be asked. It has no number.
pub fn put_last(out: &mut Vec<u8>) {
    put_frame(out, LAST, 0, |_| ());
}

/// Kind and number.
pub(super) fn head(reader: &mut Reader<'_>) -> Result<(u8, u64), Malformed> {
    if reader.byte()? != VERSION {
        return Err(Malformed("a frame of another version"));
    }
    let kind = reader.byte()?;
    Ok((kind, u64::from_le_bytes(reader.take(8)?.try_into().expect("8 bytes"))))
}

/// Gives a frame that was encoded another number.
pub fn renumber(frame: &mut [u8], number: u64) {
    frame[HEAD + 2..HEAD + 10].copy_from_slice(&number.to_le_bytes());
}

impl<'a> Frame<'a> {
    /// Reads what is in a frame.
    ///
    /// # Errors
    /// When it is of another version or kind, or not what it should be.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let (kind, number) = head(&mut reader)?;
        match kind {
            QUESTION => Question::decode(reader).map(|question| Self::Question(number, question)),
            ANSWER => Answer::decode(reader).map(|answer| Self::Answer(number, answer)),
            LEADER => Leader::decode(reader).map(Self::Leader),
            _ => Err(Malformed("a frame of an unknown kind")),
        }
    }
}

impl<A: Borrow<Addressed>> Question<'_, A> {
    /// Appends a frame.
    pub fn encode(&self, number: u64, out: &mut Vec<u8>) {
        let addressed = self.addressed.borrow();
        put_frame(out, QUESTION, number, |out| {
            put_bytes(out, addressed.cluster.as_bytes());
            put_number(out, addressed.epoch);
            put_option(out, addressed.incarnation.as_ref(), |start, out| {
                out.extend_from_slice(&start.to_le_bytes());
            });
            put_number(out, self.left_ms);
            put_option(out, self.id.as_ref(), RequestId::encode);
            put_bytes(out, self.key);
            match self.operation {
                Operation::Get => out.push(if self.is_stale { STALE } else { GET }),
                Operation::Delete => out.push(DELETE),
                Operation::Put(value) => {
                    out.push(PUT);
                    out.extend_from_slice(value);
                }
            }
        });
    }
}

impl<'a> Question<'a> {
    fn decode(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let addressed = Addressed {
            cluster: text(&mut reader)?,
            epoch: reader.number()?,
            incarnation: reader
                .option(|reader| Ok(u64::from_le_bytes(reader.take(8)?.try_into().expect("8 bytes"))))?,
        };
        let (left_ms, id) = (reader.number()?, reader.option(RequestId::decode)?);
        let key = reader.bytes(LONGEST)?;
        let (operation, is_stale) = match reader.byte()? {
            GET => (Operation::Get, false),
            STALE => (Operation::Get, true),
            DELETE => (Operation::Delete, false),
            PUT => (Operation::Put(reader.rest()), false),
            _ => return Err(Malformed("an unknown operation")),
        };
        if !matches!(operation, Operation::Put(_)) {
            reader.end()?;
        }
        Ok(Self { addressed, left_ms, id, is_stale, key, operation })
    }
}

const WROTE: u8 = 0;
const MISSING: u8 = 1;
const FOUND: u8 = 2;
const AGAIN: u8 = 3;
const GONE: u8 = 4;
const NOT_LEADER: u8 = 5;
const OTHER_REQUEST: u8 = 6;
const FULL: u8 = 7;
const FAILED: u8 = 8;
const KEY_TOO_LONG: u8 = 9;
const TOO_LARGE: u8 = 10;
const BY_HTTP: u8 = 11;
const BUSY: u8 = 12;

impl<'a> Answer<'a> {
    /// Appends a frame.
    pub fn encode(&self, number: u64, out: &mut Vec<u8>) {
        put_frame(out, ANSWER, number, |out| match self {
            Self::Wrote(outcome) => out.extend_from_slice(&[WROTE, outcome.to_byte()]),
            Self::Missing(age) => {
                out.push(MISSING);
                put_age(out, *age);
            }
            Self::Found(age, value) => {
                out.push(FOUND);
                put_age(out, *age);
                out.extend_from_slice(value);
            }
            Self::Again => out.push(AGAIN),
            Self::Gone => out.push(GONE),
            Self::NotLeader(leader, reason) => {
                out.push(NOT_LEADER);
                put_option(out, leader.as_ref(), |leader, out| put_text(out, leader.as_str()));
                put_text(out, reason);
            }
            Self::OtherRequest => out.push(OTHER_REQUEST),
            Self::Full => out.push(FULL),
            Self::Failed(applied, reason) => {
                out.push(FAILED);
                put_text(out, applied.as_str());
                put_text(out, reason);
            }
            Self::KeyTooLong(limit) => {
                out.push(KEY_TOO_LONG);
                put_number(out, *limit as u64);
            }
            Self::TooLarge(reason) => {
                out.push(TOO_LARGE);
                put_text(out, reason);
            }
            Self::ByHttp => out.push(BY_HTTP),
            Self::Busy(reason) => {
                out.push(BUSY);
                put_text(out, reason);
            }
        });
    }

    fn decode(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let answer = match reader.byte()? {
            WROTE => Self::Wrote(WriteOutcome::from_byte(reader.byte()?)?),
            MISSING => Self::Missing(age(&mut reader)?),
            FOUND => return Ok(Self::Found(age(&mut reader)?, reader.rest())),
            AGAIN => Self::Again,
            GONE => Self::Gone,
            NOT_LEADER => Self::NotLeader(reader.option(address)?, text(&mut reader)?),
            OTHER_REQUEST => Self::OtherRequest,
            FULL => Self::Full,
            FAILED => Self::Failed(Applied::parse(&text(&mut reader)?), text(&mut reader)?),
            KEY_TOO_LONG => {
                Self::KeyTooLong(usize::try_from(reader.number()?).map_err(|_| Malformed("too long"))?)
            }
            TOO_LARGE => Self::TooLarge(text(&mut reader)?),
            BY_HTTP => Self::ByHttp,
            BUSY => Self::Busy(text(&mut reader)?),
            _ => return Err(Malformed("an unknown answer")),
        };
        reader.end()?;
        Ok(answer)
    }
}

/// A text that is for people, cut where it is longer than any should be.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut length = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    put_bytes(out, &text.as_bytes()[..length]);
}

fn text(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let bytes = reader.bytes(LONGEST_TEXT)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("not a text"))
}

fn address(reader: &mut Reader<'_>) -> Result<Address, Malformed> {
    text(reader)?.parse().map_err(|_| Malformed("not an address"))
}

fn put_age(out: &mut Vec<u8>, age: Option<Duration>) {
    put_option(out, age.as_ref(), |age, out| {
        put_number(out, u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    });
}

fn age(reader: &mut Reader<'_>) -> Result<Option<Duration>, Malformed> {
    reader.option(|reader| reader.number().map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn questions() -> Vec<Question<'static>> {
        let addressed = Addressed { cluster: "c".repeat(16), epoch: 300, incarnation: Some(u64::MAX) };
        let ids = [
            None,
            Some(RequestId::Timed { id: u128::MAX, fingerprint: 7 }),
            Some(RequestId::Numbered { start: 9, number: 300, lowest: 2 }),
        ];
        let mut questions = Vec::new();
        for (operation, is_stale) in [
            (Operation::Get, false),
            (Operation::Get, true),
            (Operation::Delete, false),
            (Operation::Put(b""), false),
            (Operation::Put(b"{\"a\":1}"), false),
        ] {
            for id in ids {
                for incarnation in [None, addressed.incarnation] {
                    let addressed = Addressed { incarnation, ..addressed.clone() };
                    questions.push(Question {
                        addressed,
                        left_ms: 4_999,
                        id,
                        is_stale,
                        key: b"\0key",
                        operation,
                    });
                }
            }
        }
        questions
    }

    fn answers() -> Vec<Answer<'static>> {
        let age = Some(Duration::from_millis(300));
        vec![
            Answer::Wrote(WriteOutcome::Added),
            Answer::Wrote(WriteOutcome::Absent),
            Answer::Missing(None),
            Answer::Missing(age),
            Answer::Found(None, b""),
            Answer::Found(age, b"[1]"),
            Answer::Again,
            Answer::Gone,
            Answer::NotLeader(None, "no leader".to_owned()),
            Answer::NotLeader(Some("n1:80".parse().unwrap()), String::new()),
            Answer::OtherRequest,
            Answer::Full,
            Answer::Failed(Applied::Unknown, "späte Antwort".to_owned()),
            Answer::KeyTooLong(1024),
            Answer::TooLarge("too large".to_owned()),
            Answer::ByHttp,
            Answer::Busy("later".to_owned()),
        ]
    }

    /// The inside of each frame of some bytes.
    fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut frames = Vec::new();
        while let Some(frame) = first(bytes).unwrap() {
            frames.push(frame);
            bytes = &bytes[HEAD + frame.len()..];
        }
        assert!(bytes.is_empty());
        frames
    }

    #[test]
    fn frames_survive_a_round_trip() {
        let mut bytes = Vec::new();
        for (number, question) in questions().iter().enumerate() {
            question.encode(number as u64 * 1000, &mut bytes);
        }
        for (number, (frame, question)) in split(&bytes).into_iter().zip(questions()).enumerate() {
            assert_eq!(Frame::decode(frame), Ok(Frame::Question(number as u64 * 1000, question)));
        }
        bytes.clear();
        for answer in answers() {
            answer.encode(7, &mut bytes);
        }
        for (frame, answer) in split(&bytes).into_iter().zip(answers()) {
            assert_eq!(Frame::decode(frame), Ok(Frame::Answer(7, answer)));
        }
        let leader = Leader { group: 300, term: 7, node: "n1:80".parse().unwrap() };
        bytes.clear();
        leader.encode(&mut bytes);
        assert_eq!(Frame::decode(&bytes[HEAD..]), Ok(Frame::Leader(leader)));
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_refused_or_has_a_shorter_value() {
        let mut bytes = Vec::new();
        for question in questions() {
            question.encode(300, &mut bytes);
        }
        for answer in answers() {
            answer.encode(300, &mut bytes);
        }
        Leader { group: 300, term: 7, node: "n1:80".parse().unwrap() }.encode(&mut bytes);
        for frame in split(&bytes) {
            for cut in 0..frame.len() {
                match Frame::decode(&frame[..cut]) {
                    Err(_)
                    | Ok(
                        Frame::Question(300, Question { operation: Operation::Put(_), .. })
                        | Frame::Answer(300, Answer::Found(..)),
                    ) => {}
                    other => panic!("{frame:?} cut at {cut} is {other:?}"),
                }
            }
        }
    }

    #[test]
    fn whoever_asks_gets_answers_and_the_word_to_ask_no_more() {
        let mut bytes = Vec::new();
        Answer::Again.encode(300, &mut bytes);
        put_last(&mut bytes);
        questions()[0].encode(1, &mut bytes);
        let came: Vec<_> = split(&bytes).into_iter().map(|frame| coming(frame).ok()).collect();
        assert_eq!(came, [Some(Coming::Answer(300)), Some(Coming::Last), None]);
    }

    #[test]
    fn a_frame_of_another_version_or_kind_or_length_is_refused() {
        let mut bytes = Vec::new();
        Answer::Again.encode(1, &mut bytes);
        let inside = &bytes[HEAD..];
        for (at, byte) in [(0, VERSION + 1), (0, 0), (1, 0), (1, 9), (10, 99)] {
            let mut other = inside.to_vec();
            other[at] = byte;
            assert!(Frame::decode(&other).is_err(), "{other:?}");
        }
        renumber(&mut bytes, u64::MAX);
        assert_eq!(Frame::decode(&bytes[HEAD..]), Ok(Frame::Answer(u64::MAX, Answer::Again)));
        assert_eq!(first(&[0, 0, 0]), Ok(None));
        assert_eq!(first(&[1, 0, 0, 0]), Ok(None));
        assert!(first(&u32::try_from(LONGEST + 1).unwrap().to_le_bytes()).is_err());
        let reason = "ä".repeat(LONGEST_TEXT);
        bytes.clear();
        Answer::TooLarge(reason).encode(1, &mut bytes);
        assert!(matches!(Frame::decode(&bytes[HEAD..]), Ok(Frame::Answer(1, Answer::TooLarge(_)))));
    }

    proptest! {
        #[test]
        fn no_bytes_harm_whoever_reads_them(bytes: Vec<u8>, kind in 0_u8..4) {
            let _ = Frame::decode(&bytes);
            let _ = (first(&bytes), coming(&bytes));
            let _ = Frame::decode(&[&[VERSION, kind][..], &bytes].concat());
        }
    }
}
