//! The frames of a connection on which a node passes many requests about keys on at one time. Each question has a number; its answer has the same, and
//! answers come in any order.
//!
//! A frame is its length in four bytes, the lowest first, and so many bytes: the version of the format, the kind, the number of the question, and what
//! the kind has. The number has eight bytes, the lowest first. All other numbers are LEB128, texts and keys have their length before them, and a value is what is left of the frame.

use std::borrow::{Borrow, Cow};
use std::time::Duration;

use super::Addressed;
use crate::error::Applied;
use crate::model::address::Address;
use crate::model::binary::{Malformed, Reader, put_bytes, put_number, put_option};
use crate::model::condition::Condition;
use crate::model::format;
use crate::model::shard::{Action, Operation, RequestId, Unread, WriteOutcome, Written};
use crate::model::ttl::Ttl;

/// The form of the frames of questions and answers: the first byte of each. A connection is upgraded to the newest that both nodes know; a node that knows none is
/// asked by HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Without conditions and versions.
    First = 1,
    /// Questions may have conditions, and answers tell the version of what is there.
    Conditions = 2,
    /// The same, and values may have types of their own.
    Types = 3,
    /// The same, and questions may have a time to live, and answers tell how much of it is left.
    Ttl = 4,
    /// The same, and a frame may have a part of a batch.
    Batches = 5,
    /// The same, and an answer may be that there is no room.
    Room = 6,
}

impl Form {
    /// The forms, the newest first.
    pub const ALL: [Self; 6] =
        [Self::Room, Self::Batches, Self::Ttl, Self::Types, Self::Conditions, Self::First];
    /// The newest.
    pub const NEWEST: Self = Self::Room;

    /// The protocol that a connection is upgraded to.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::First => "evenkv-requests/1",
            Self::Conditions => "evenkv-requests/2",
            Self::Types => "evenkv-requests/3",
            Self::Ttl => "evenkv-requests/4",
            Self::Batches => "evenkv-requests/5",
            Self::Room => "evenkv-requests/6",
        }
    }

    /// The format that a node knows which takes it: see [`format`].
    pub const fn format(self) -> u32 {
        match self {
            Self::First => format::FIRST,
            Self::Conditions => format::CONDITIONS,
            Self::Types => format::TYPES,
            Self::Ttl => format::TTL,
            Self::Batches => format::BATCHES,
            Self::Room => format::ROOM,
        }
    }
}

/// The first byte of each frame that has one form only, also of those of a follower.
pub const VERSION: u8 = Form::First as u8;
/// What has a longer value, in bytes, goes by HTTP: it would hold up the small ones.
pub const LONGEST_VALUE: usize = 32 << 10;
/// A frame that announces more bytes is none: the longest value, the longest key, and what is around them.
pub const LONGEST: usize = 256 << 10;
/// The bytes of a frame's length.
pub const HEAD: usize = 4;
/// What a frame has at most before what its kind has, in bytes.
pub const LONGEST_HEAD: usize = HEAD + 10;

/// The longest name of a cluster, address or reason that is believed, in bytes.
const LONGEST_TEXT: usize = 4096;

const GET: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const STALE: u8 = 3;
const TOUCH: u8 = 4;

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
    pub action: Action<'a>,
    /// What has to be there.
    pub condition: Option<Cow<'a, Condition>>,
    /// For how long what is written lives.
    pub ttl: Option<Ttl>,
}

impl<A> Question<'_, A> {
    /// What is asked of the key.
    pub fn operation(&self) -> Operation<'_> {
        Operation { action: self.action, condition: self.condition.as_deref(), ttl: self.ttl }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// What a write did; the version is 0 where it is not told.
    Wrote(Written),
    /// The key is absent; how old that may be, where any replica might answer.
    Missing(Option<Duration>),
    /// The value, how old it may be, and its version, where that is told.
    Found(Option<Duration>, Version, &'a [u8]),
    /// The value of this version was not read, since the condition does not hold; how old that may be.
    Unread(Option<Duration>, Unread, u64),
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
    /// Nothing was done: it would grow, and a replica of the shard has no room: whose, and what to do. In forms that do not know it, this is [`Answer::Busy`].
    NoRoom(String),
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

/// What is told of a value beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Its version, where that is told.
    pub number: Option<u64>,
    /// How much is left of its time to live, if it has one.
    pub left: Option<Ttl>,
}

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A question, and the form in which it is to be answered.
    Question(u64, Form, Question<'a>),
    /// The answer to the question of that number.
    Answer(u64, Answer<'a>),
    /// A part of a batch, as [`batches`](super::batches) has it, and the form of the frame. Its answer has frames of answers in place of one answer.
    Part(u64, Form, &'a [u8]),
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
const PART: u8 = 5;

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
    put_formed(out, (Form::First, kind), number, put);
}

fn put_formed(out: &mut Vec<u8>, (form, kind): (Form, u8), number: u64, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    out.extend_from_slice(&[form as u8, kind]);
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
    let (_, kind, number) = formed_head(&mut Reader::new(frame))?;
    match (kind, number) {
        (ANSWER, number) => Ok(Coming::Answer(number)),
        (LAST, _) => Ok(Coming::Last),
        _ => Err(Malformed("not an answer")),
    }
}

/// Appends the frame that no more is to be asked. It has no number.
pub fn put_last(out: &mut Vec<u8>) {
    put_frame(out, LAST, 0, |_| ());
}

/// Appends a frame with a part of a batch.
pub fn put_part((number, form): (u64, Form), part: &[u8], out: &mut Vec<u8>) {
    put_formed(out, (form, PART), number, |out| out.extend_from_slice(part));
}

/// Appends the answer to one.
pub fn put_part_answer((number, form): (u64, Form), answers: &[u8], out: &mut Vec<u8>) {
    put_formed(out, (form, ANSWER), number, |out| out.extend_from_slice(answers));
}

/// The answers that the answer to a part has.
///
/// # Errors
/// When it is something else.
pub fn part_answer(frame: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader::new(frame);
    match formed_head(&mut reader)? {
        (form, ANSWER, _) if form >= Form::Batches => Ok(reader.rest()),
        _ => Err(Malformed("not the answer to a part")),
    }
}

/// Kind and number of a frame that has one form only.
pub(super) fn head(reader: &mut Reader<'_>) -> Result<(u8, u64), Malformed> {
    match formed_head(reader)? {
        (Form::First, kind, number) => Ok((kind, number)),
        (Form::Conditions | Form::Types | Form::Ttl | Form::Batches | Form::Room, ..) => {
            Err(Malformed("a frame of another version"))
        }
    }
}

/// Form, kind and number.
fn formed_head(reader: &mut Reader<'_>) -> Result<(Form, u8, u64), Malformed> {
    let form = reader.byte()?;
    let form = Form::ALL.into_iter().find(|known| *known as u8 == form);
    let form = form.ok_or(Malformed("a frame of another version"))?;
    let kind = reader.byte()?;
    Ok((form, kind, u64::from_le_bytes(reader.take(8)?.try_into().expect("8 bytes"))))
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
        let (form, kind, number) = formed_head(&mut reader)?;
        match kind {
            QUESTION => Question::decode(reader, form).map(|question| Self::Question(number, form, question)),
            ANSWER => Answer::decode(reader, form).map(|answer| Self::Answer(number, answer)),
            LEADER => Leader::decode(reader).map(Self::Leader),
            PART if form >= Form::Batches => Ok(Self::Part(number, form, reader.rest())),
            _ => Err(Malformed("a frame of an unknown kind")),
        }
    }
}

impl<A: Borrow<Addressed>> Question<'_, A> {
    /// Appends a frame of a form; nothing where that has no room for what is asked.
    #[must_use]
    pub fn encode(&self, form: Form, number: u64, out: &mut Vec<u8>) -> Option<()> {
        if self.operation().needs() > form.format() {
            return None;
        }
        let addressed = self.addressed.borrow();
        put_formed(out, (form, QUESTION), number, |out| {
            put_bytes(out, addressed.cluster.as_bytes());
            put_number(out, addressed.epoch);
            put_option(out, addressed.incarnation.as_ref(), |start, out| {
                out.extend_from_slice(&start.to_le_bytes());
            });
            put_number(out, self.left_ms);
            put_option(out, self.id.as_ref(), RequestId::encode);
            put_bytes(out, self.key);
            if form >= Form::Conditions {
                put_option(out, self.condition.as_deref(), Condition::encode);
            }
            if form >= Form::Ttl {
                put_ttl(out, self.ttl);
            }
            match self.action {
                Action::Get => out.push(if self.is_stale { STALE } else { GET }),
                Action::Delete => out.push(DELETE),
                Action::Touch => out.push(TOUCH),
                Action::Put(value) => {
                    out.push(PUT);
                    out.extend_from_slice(value);
                }
            }
        });
        Some(())
    }
}

impl<'a> Question<'a> {
    fn decode(mut reader: Reader<'a>, form: Form) -> Result<Self, Malformed> {
        let addressed = Addressed {
            cluster: text(&mut reader)?,
            epoch: reader.number()?,
            incarnation: reader
                .option(|reader| Ok(u64::from_le_bytes(reader.take(8)?.try_into().expect("8 bytes"))))?,
        };
        let (left_ms, id) = (reader.number()?, reader.option(RequestId::decode)?);
        let key = reader.bytes(LONGEST)?;
        let condition = match form {
            Form::First => None,
            Form::Conditions | Form::Types | Form::Ttl | Form::Batches | Form::Room => {
                reader.option(Condition::decode)?.map(Cow::Owned)
            }
        };
        let ttl = if form >= Form::Ttl { reader.option(ttl)? } else { None };
        let (action, is_stale) = match reader.byte()? {
            GET => (Action::Get, false),
            STALE => (Action::Get, true),
            DELETE => (Action::Delete, false),
            TOUCH if form >= Form::Ttl => (Action::Touch, false),
            PUT => (Action::Put(reader.rest()), false),
            _ => return Err(Malformed("an unknown operation")),
        };
        if !matches!(action, Action::Put(_)) {
            reader.end()?;
        }
        Ok(Self { addressed, left_ms, id, is_stale, key, action, condition, ttl })
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
const UNCHANGED: u8 = 13;
const UNMET: u8 = 14;
const NO_ROOM: u8 = 15;

impl<'a> Answer<'a> {
    /// Appends a frame of the form that the question had.
    pub fn encode(&self, form: Form, number: u64, out: &mut Vec<u8>) {
        let tells_version = form >= Form::Conditions;
        put_formed(out, (form, ANSWER), number, |out| match self {
            Self::Wrote(written) => {
                out.extend_from_slice(&[WROTE, written.outcome.to_byte()]);
                if tells_version {
                    put_number(out, written.version);
                }
            }
            Self::Unread(age, unread, version) => {
                out.push(if *unread == Unread::Unchanged { UNCHANGED } else { UNMET });
                put_age(out, *age);
                put_number(out, *version);
            }
            Self::Missing(age) => {
                out.push(MISSING);
                put_age(out, *age);
            }
            Self::Found(age, version, value) => {
                out.push(FOUND);
                put_age(out, *age);
                if tells_version {
                    put_number(out, version.number.unwrap_or(0));
                }
                if form >= Form::Ttl {
                    put_ttl(out, version.left);
                }
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
            Self::NoRoom(reason) => {
                out.push(if form >= Form::Room { NO_ROOM } else { BUSY });
                put_text(out, reason);
            }
        });
    }

    fn decode(mut reader: Reader<'a>, form: Form) -> Result<Self, Malformed> {
        let version = |reader: &mut Reader| if form == Form::First { Ok(0) } else { reader.number() };
        let answer = match reader.byte()? {
            WROTE => {
                let outcome = WriteOutcome::from_byte(reader.byte()?)?;
                Self::Wrote(Written { outcome, version: version(&mut reader)? })
            }
            UNCHANGED => Self::Unread(age(&mut reader)?, Unread::Unchanged, reader.number()?),
            UNMET => Self::Unread(age(&mut reader)?, Unread::Unmet, reader.number()?),
            MISSING => Self::Missing(age(&mut reader)?),
            FOUND => {
                let (age, version) = (age(&mut reader)?, version(&mut reader)?);
                let left = if form >= Form::Ttl { reader.option(ttl)? } else { None };
                let version = Version { number: Some(version).filter(|version| *version > 0), left };
                return Ok(Self::Found(age, version, reader.rest()));
            }
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
            NO_ROOM if form >= Form::Room => Self::NoRoom(text(&mut reader)?),
            _ => return Err(Malformed("an unknown answer")),
        };
        reader.end()?;
        Ok(answer)
    }
}

fn put_ttl(out: &mut Vec<u8>, ttl: Option<Ttl>) {
    put_option(out, ttl.as_ref(), |ttl, out| put_number(out, ttl.ms()));
}

fn ttl(reader: &mut Reader<'_>) -> Result<Ttl, Malformed> {
    Ttl::from_ms(reader.number()?).ok_or(Malformed("not a time to live"))
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
    use crate::model::condition::Versions;

    fn questions() -> Vec<Question<'static>> {
        let addressed = Addressed { cluster: "c".repeat(16), epoch: 300, incarnation: Some(u64::MAX) };
        let ids = [
            None,
            Some(RequestId::Timed { id: u128::MAX, fingerprint: 7 }),
            Some(RequestId::Numbered { start: 9, number: 300, lowest: 2 }),
        ];
        let mut questions = Vec::new();
        let condition = || Condition {
            if_match: Some(Versions::Any),
            if_none_match: Some(Versions::These([300].into())),
        };
        let ttl = Ttl::from_ms(300);
        for ((action, is_stale, ttl), is_conditional) in [
            (Action::Get, false, None),
            (Action::Get, true, None),
            (Action::Delete, false, None),
            (Action::Put(b""), false, None),
            (Action::Put(b"{\"a\":1}"), false, None),
            (Action::Put(b"{\"a\":1}"), false, ttl),
            (Action::Put(b"\0\x01xyz"), false, None),
            (Action::Put(b"\0\x01xyz"), false, ttl),
            (Action::Touch, false, None),
            (Action::Touch, false, ttl),
        ]
        .into_iter()
        .flat_map(|asked| [(asked, false), (asked, true)])
        {
            for id in ids {
                for incarnation in [None, addressed.incarnation] {
                    let addressed = Addressed { incarnation, ..addressed.clone() };
                    questions.push(Question {
                        addressed,
                        left_ms: 4_999,
                        id,
                        is_stale,
                        key: b"\0key",
                        action,
                        condition: is_conditional.then(|| Cow::Owned(condition())),
                        ttl,
                    });
                }
            }
        }
        questions
    }

    fn answers() -> Vec<Answer<'static>> {
        let age = Some(Duration::from_millis(300));
        vec![
            Answer::Wrote(Written { outcome: WriteOutcome::Added, version: 300 }),
            Answer::Wrote(Written { outcome: WriteOutcome::Absent, version: 0 }),
            Answer::Wrote(Written { outcome: WriteOutcome::Unmet, version: 7 }),
            Answer::Unread(None, Unread::Unchanged, 7),
            Answer::Unread(age, Unread::Unmet, u64::MAX),
            Answer::Missing(None),
            Answer::Missing(age),
            Answer::Found(None, Version::default(), b""),
            Answer::Found(age, Version { number: Some(300), left: None }, b"[1]"),
            Answer::Found(None, Version { number: Some(300), left: Ttl::from_ms(70_000) }, b"[1]"),
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
            question.encode(Form::NEWEST, number as u64 * 1000, &mut bytes).unwrap();
        }
        for (number, (frame, question)) in split(&bytes).into_iter().zip(questions()).enumerate() {
            let read = Frame::Question(number as u64 * 1000, Form::NEWEST, question);
            assert_eq!(Frame::decode(frame), Ok(read));
        }
        bytes.clear();
        for answer in answers() {
            answer.encode(Form::NEWEST, 7, &mut bytes);
        }
        for (frame, answer) in split(&bytes).into_iter().zip(answers()) {
            assert_eq!(Frame::decode(frame), Ok(Frame::Answer(7, answer)));
        }
        let leader = Leader { group: 300, term: 7, node: "n1:80".parse().unwrap() };
        bytes.clear();
        leader.encode(&mut bytes);
        assert_eq!(Frame::decode(&bytes[HEAD..]), Ok(Frame::Leader(leader)));
    }

    /// The bytes are those that nodes before conditions write and read.
    #[test]
    fn frames_of_the_first_form_have_neither_conditions_nor_versions_nor_types_nor_times() {
        let mut bytes = Vec::new();
        for question in questions() {
            let written = question.encode(Form::First, 7, &mut bytes);
            let is_plain = question.operation().needs() == format::FIRST;
            assert_eq!(written.is_some(), is_plain, "{question:?}");
            let without_types = question.encode(Form::Conditions, 7, &mut Vec::new());
            let needs = question.operation().needs();
            assert_eq!(without_types.is_none(), needs >= format::TYPES, "{question:?}");
            let without_times = question.encode(Form::Types, 7, &mut Vec::new());
            assert_eq!(without_times.is_none(), needs >= format::TTL, "{question:?}");
        }
        let unconditional = questions().into_iter();
        let unconditional = unconditional.filter(|question| question.operation().needs() == format::FIRST);
        for (frame, question) in split(&bytes).into_iter().zip(unconditional) {
            assert_eq!(Frame::decode(frame), Ok(Frame::Question(7, Form::First, question)));
        }
        let table = [
            (Answer::Wrote(Written { outcome: WriteOutcome::Updated, version: 300 }), &[WROTE, 1][..]),
            (
                Answer::Found(None, Version { number: Some(300), left: Ttl::from_ms(9) }, b"1"),
                &[FOUND, 0, b'1'],
            ),
        ];
        for (answer, wanted) in table {
            bytes.clear();
            answer.encode(Form::First, 0, &mut bytes);
            assert_eq!(&bytes[HEAD..], [&[1, ANSWER], &[0; 8][..], wanted].concat(), "{answer:?}");
        }
        let untold = Answer::Found(None, Version::default(), b"1");
        assert_eq!(Frame::decode(&bytes[HEAD..]), Ok(Frame::Answer(0, untold)));
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_refused_or_has_a_shorter_value() {
        let mut bytes = Vec::new();
        for question in questions() {
            question.encode(Form::NEWEST, 300, &mut bytes).unwrap();
        }
        for answer in answers() {
            answer.encode(Form::NEWEST, 300, &mut bytes);
        }
        Leader { group: 300, term: 7, node: "n1:80".parse().unwrap() }.encode(&mut bytes);
        for frame in split(&bytes) {
            for cut in 0..frame.len() {
                match Frame::decode(&frame[..cut]) {
                    Err(_)
                    | Ok(
                        Frame::Question(300, _, Question { action: Action::Put(_), .. })
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
        Answer::Again.encode(Form::First, 300, &mut bytes);
        put_last(&mut bytes);
        questions()[0].encode(Form::First, 1, &mut bytes).unwrap();
        let came: Vec<_> = split(&bytes).into_iter().map(|frame| coming(frame).ok()).collect();
        assert_eq!(came, [Some(Coming::Answer(300)), Some(Coming::Last), None]);
    }

    #[test]
    fn a_frame_of_another_version_or_kind_or_length_is_refused() {
        let mut bytes = Vec::new();
        Answer::Again.encode(Form::First, 1, &mut bytes);
        let inside = &bytes[HEAD..];
        for (at, byte) in [(0, Form::NEWEST as u8 + 1), (0, 0), (1, 0), (1, 9), (10, 99)] {
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
        Answer::TooLarge(reason).encode(Form::First, 1, &mut bytes);
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
