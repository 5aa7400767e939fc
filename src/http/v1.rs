//! What `/v1/kv/<key>` takes and gives: the value is the body. Checks and words only; what is done to a key is the same in both interfaces.

use std::borrow::Cow;

use smallvec::SmallVec;
use tiny_http::Method;

use super::answer::Answer;
use super::answer_body::{Body, Coding};
use super::byte_range::{ByteRange, Satisfied};
use super::error_form::ErrorForm;
use super::payload;
use crate::error::Error;
use crate::model::condition::ETAG;
use crate::model::shard::{Done, Unread, WriteOutcome, Written};
use crate::model::value::{BYTES, Content, ContentType, LONGEST_TYPE, is_json_type};
use crate::node::keys::{Outcome, Value};

/// Values and the page for people are of one origin, and whoever may write a value may write a page with scripts in it. A browser lets it have nothing of the others: no token that
/// the page keeps, and no request in its name.
const POLICY: (&str, &str) = ("Content-Security-Policy", "sandbox");

/// The values of the lines that a header has: mostly one.
pub type Lines<'a> = SmallVec<[&'a str; 1]>;

/// The headers that say what the bytes are that are stored, and which of them are wanted.
#[derive(Default)]
pub struct ValueHeaders<'a> {
    /// The lines of `Content-Type`.
    content_type: Lines<'a>,
    /// The lines of `Range`.
    range: Lines<'a>,
    /// The lines of `If-Range`.
    if_range: Lines<'a>,
}

/// The part of a value that a client wants.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    range: ByteRange,
    /// If this is the tag of the value; otherwise all of it.
    if_range: Option<String>,
}

/// What a body is.
pub enum Type<'a> {
    /// JSON text.
    Json,
    /// Bytes of another type.
    Of(ContentType<'a>),
}

impl<'a> ValueHeaders<'a> {
    /// Takes a header if it is one of these.
    pub fn take(&mut self, name: &str, value: &'a str) {
        for (known, lines) in [
            ("Content-Type", &mut self.content_type),
            ("Range", &mut self.range),
            ("If-Range", &mut self.if_range),
        ] {
            if name.eq_ignore_ascii_case(known) {
                lines.push(value);
            }
        }
    }

    /// The type of the body.
    ///
    /// # Errors
    /// [`Error::BadRequest`].
    pub fn content_type(&self) -> Result<Type<'a>, Error> {
        let wrong = || {
            Error::BadRequest(format!(
                "Content-Type is wrong: allowed is one, of up to {LONGEST_TYPE} printable characters of ASCII; without one it is {BYTES}"
            ))
        };
        let text = match self.content_type.as_slice() {
            [] => "",
            [line] => line.trim_matches([' ', '\t']),
            _ => return Err(wrong()),
        };
        let content_type =
            ContentType::new(if text.is_empty() { BYTES } else { text }).map_err(|_| wrong())?;
        Ok(if is_json_type(text) { Type::Json } else { Type::Of(content_type) })
    }

    /// The part of the value that is wanted; nothing where that is all of it.
    pub fn wanted(&self) -> Option<Wanted> {
        let range = ByteRange::parse(&self.range)?;
        // Of several, none can be that of the value.
        let if_range = (!self.if_range.is_empty()).then(|| self.if_range.join(", "));
        Some(Wanted { range, if_range })
    }
}

impl Type<'_> {
    /// What is stored before the body.
    pub fn head(&self) -> Vec<u8> {
        match self {
            Self::Json => Vec::new(),
            Self::Of(content_type) => content_type.head(),
        }
    }

    /// Checks a body that was stored behind its head.
    ///
    /// # Errors
    /// [`Error::BadRequest`] that says where it is not JSON.
    pub fn check(&self, stored: &[u8]) -> Result<(), Error> {
        match self {
            Self::Json => payload::check_json(stored),
            Self::Of(_) => Ok(()),
        }
    }
}

/// Tells a client what was done.
pub fn done(method: &Method, outcome: Outcome, wanted: Option<&Wanted>) -> Answer {
    let tag = outcome.tag();
    let refused = |error: &Error| Answer::error(error, method, ErrorForm::Problem);
    let answer = match outcome.done {
        Done::Wrote(Written { outcome, .. }) => match outcome {
            WriteOutcome::Added => Answer::empty(201),
            WriteOutcome::Updated => Answer::empty(if *method == Method::Patch { 204 } else { 200 }),
            WriteOutcome::Deleted => Answer::empty(204),
            WriteOutcome::Absent => refused(&Error::Absent),
            WriteOutcome::Unmet => refused(&Error::Unmet),
        },
        Done::Read(Some(value)) => {
            found(value, wanted, tag.as_deref()).unwrap_or_else(|error| refused(&error))
        }
        Done::Read(None) => refused(&Error::Absent),
        Done::Unread(Unread::Unchanged, _) => Answer::empty(304),
        Done::Unread(Unread::Unmet, _) => refused(&Error::Unmet),
    };
    match tag {
        Some(tag) => answer.with(ETAG, tag),
        None => answer,
    }
}

fn found(value: Value, wanted: Option<&Wanted>, tag: Option<&str>) -> Result<Answer, Error> {
    let content = Content::of(value.as_bytes()).map_err(|malformed| {
        log::error!("what is stored cannot be read: {malformed}");
        Error::Internal
    })?;
    let (content_type, place) = (content.content_type.to_owned(), content.place);
    let length = place.len();
    // A tag of ours is strong, so the same text is the same bytes, and nothing else is.
    let wanted = wanted.filter(|wanted| wanted.if_range.as_deref().is_none_or(|asked| Some(asked) == tag));
    let (status, part) = match wanted.map(|wanted| wanted.range.within(length)) {
        None | Some(Satisfied::Whole) => (200, 0..length),
        Some(Satisfied::Part(part)) => (206, part),
        Some(Satisfied::Not) => return Err(Error::Unsatisfiable { length }),
    };
    let range = format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1));
    let part = place.start + part.start..place.start + part.end;
    let body = Body::Value { before: "", value, part, coding: Coding::Plain, after: String::new() };
    let answer = Answer { content_type: Cow::Owned(content_type), body, ..Answer::empty(status) };
    let answer = answer.with("Accept-Ranges", "bytes").with(POLICY.0, POLICY.1);
    Ok(if status == 206 { answer.with("Content-Range", range) } else { answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers<'a> = &'a [(&'a str, &'a str)];

    fn headers<'a>(lines: &[(&str, &'a str)]) -> ValueHeaders<'a> {
        let mut found = ValueHeaders::default();
        for (name, value) in lines {
            found.take(name, value);
        }
        found
    }

    #[test]
    fn a_body_has_the_type_that_one_header_says() {
        let long = "a".repeat(LONGEST_TYPE + 1);
        let head = |lines: &[(&str, &str)]| headers(lines).content_type().map(|found| found.head()).ok();
        let typed = |text: &str| Some(ContentType::new(text).unwrap().head());
        let table: [(Headers, Option<Vec<u8>>); 9] = [
            (&[], typed(BYTES)),
            (&[("Content-Type", " ")], typed(BYTES)),
            (&[("content-type", "text/plain; a=b")], typed("text/plain; a=b")),
            (&[("Content-Type", "application/JSON ; charset=utf-8")], Some(Vec::new())),
            (&[("Content-Type", "text/json")], typed("text/json")),
            (&[("Content-Type", &long[1..])], typed(&long[1..])),
            (&[("Content-Type", &long)], None),
            (&[("Content-Type", "a\u{7f}")], None),
            (&[("Content-Type", "text/plain"), ("Content-Type", "text/plain")], None),
        ];
        for (lines, wanted) in table {
            assert_eq!(head(lines), wanted, "{lines:?}");
        }
    }

    #[test]
    fn a_range_is_wanted_under_the_condition_that_goes_with_it() {
        let range = ByteRange::From { first: 1, last: Some(2) };
        let wanted = |lines: &[(&str, &str)]| headers(lines).wanted();
        let of = |if_range: Option<&str>| Some(Wanted { range, if_range: if_range.map(str::to_owned) });
        assert_eq!(wanted(&[("range", "bytes=1-2")]), of(None));
        assert_eq!(wanted(&[("Range", "bytes=1-2"), ("If-Range", "\"a\"")]), of(Some("\"a\"")));
        let twice = [("Range", "bytes=1-2"), ("If-Range", "\"a\""), ("If-Range", "\"a\"")];
        assert_eq!(wanted(&twice), of(Some("\"a\", \"a\"")));
        assert_eq!(wanted(&[("If-Range", "\"a\"")]), None);
    }
}
