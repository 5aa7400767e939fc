//! Parts of batches that a node passes on by HTTP: frames of [questions](Question), one after the other, and frames of answers.
//!
//! Before the questions is how many bytes of values may be read. The numbers of the frames are the places of the questions; what is not answered was not done, and is to be asked again.

use std::borrow::Borrow;

use super::Addressed;
use super::frames::{Answer, Form, Frame, HEAD, Question};
use crate::model::binary::{Malformed, Reader, put_number};

/// Where a node takes them. One that does not know this path does not know parts of batches, either, and does nothing.
pub const BATCH: &str = "/node/batch";
/// The form of the questions.
pub const FORM: Form = Form::Ttl;

/// The form of the answers to a node that knows forms up to a format.
pub const fn answer_form(knows: u32) -> Form {
    if knows >= Form::Room.format() { Form::Room } else { FORM }
}

/// Begins a part.
pub fn begin(room: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, room as u64);
    out
}

/// Appends a question.
///
/// # Errors
/// Where the form has no room for what is asked, which is a fault of ours.
pub fn put_question<A: Borrow<Addressed>>(
    question: &Question<'_, A>,
    place: usize,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    question.encode(FORM, place as u64, out).ok_or(Malformed("the form has no room for a question"))
}

/// Reads a part: the room, and the questions with their places.
///
/// # Errors
/// When the bytes are something else.
pub fn read_questions(bytes: &[u8]) -> Result<(usize, Vec<(usize, Question<'_>)>), Malformed> {
    let mut reader = Reader::new(bytes);
    let room = usize::try_from(reader.number()?).map_err(|_| Malformed("no such room"))?;
    let read = |frame: Result<_, Malformed>| match Frame::decode(frame?)? {
        Frame::Question(place, FORM, question) => Ok((place_of(place)?, question)),
        _ => Err(Malformed("not a question of a part")),
    };
    let questions = Frames(reader.rest()).map(read).collect::<Result<_, _>>()?;
    Ok((room, questions))
}

/// Reads the answers to a part, with the places of their questions.
///
/// # Errors
/// When the bytes are something else.
pub fn read_answers(bytes: &[u8]) -> Result<Vec<(usize, Answer<'_>)>, Malformed> {
    let read = |frame: Result<_, Malformed>| match Frame::decode(frame?)? {
        Frame::Answer(place, answer) => Ok((place_of(place)?, answer)),
        _ => Err(Malformed("not an answer")),
    };
    Frames(bytes).map(read).collect()
}

fn place_of(number: u64) -> Result<usize, Malformed> {
    usize::try_from(number).map_err(|_| Malformed("no such place"))
}

/// What is in frames of any length.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self
            .0
            .split_first_chunk::<HEAD>()
            .and_then(|(head, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*head)).ok()?));
        let Some((frame, rest)) = whole else {
            self.0 = &[];
            return Some(Err(Malformed("cut off")));
        };
        self.0 = rest;
        Some(Ok(frame))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::shard::Action;
    use crate::wire::frames::Version;

    fn question(key: &[u8]) -> Question<'_> {
        Question {
            addressed: Addressed { cluster: "c".to_owned(), epoch: 3, incarnation: None },
            left_ms: 5,
            id: None,
            is_stale: false,
            key,
            action: Action::Put(b"\x00\x01xy"),
            condition: None,
            ttl: None,
        }
    }

    #[test]
    fn a_part_survives_a_round_trip_and_is_refused_where_it_is_cut_off() {
        let mut part = begin(77);
        for (place, key) in [&b"a"[..], b"", b"c"].into_iter().enumerate() {
            put_question(&question(key), place, &mut part).unwrap();
        }
        let (room, questions) = read_questions(&part).unwrap();
        let keys: Vec<_> = questions.iter().map(|(place, question)| (*place, question.key)).collect();
        assert_eq!((room, keys), (77, vec![(0, &b"a"[..]), (1, b""), (2, b"c")]));
        assert!(read_questions(&part[..part.len() - 1]).is_err());
        let long = vec![b'1'; 300_000];
        let mut answers = Vec::new();
        Answer::Again.encode(FORM, 2, &mut answers);
        Answer::Found(None, Version::default(), &long).encode(FORM, 0, &mut answers);
        let read = read_answers(&answers).unwrap();
        assert_eq!(read[0], (2, Answer::Again));
        assert!(matches!(read[1], (0, Answer::Found(None, _, value)) if value == long));
        assert!(read_answers(&answers[..answers.len() - 1]).is_err());
        assert!(read_answers(&part[1..]).is_err() && read_questions(&answers).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_harm_whoever_reads_them(bytes: Vec<u8>) {
            let _ = (read_questions(&bytes), read_answers(&bytes));
        }
    }
}
