//! `POST /v1/batch`: many operations in one request, a line for each and a line for what came of it.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use tiny_http::Method;

use super::answer::Answer;
use super::answer_body::Body;
use super::body::Limit;
use super::dispatch::Job;
use super::error_form::{detail_of, kind_of};
use super::key_handlers::{FOR_EVER, KeyHeaders, check_key, check_length, named_line, versions};
use super::payload;
use super::routes::{Interface, Route};
use super::v1::Type;
use crate::access::Reach;
use crate::budget::{Budget, Permit};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::condition::Stated;
use crate::model::limits::Limits;
use crate::model::shard::{Done, Operation, Unread, WriteOutcome, Written};
use crate::model::ttl::Ttl;
use crate::model::value::{BYTES, Content, ContentType, JSON, is_json_type, is_typed};
use crate::node::batch::{Batch, Item, ItemAction};
use crate::node::host;
use crate::node::keys::{Outcome, Value};
use crate::node::state::Node;

/// The type of bodies and answers: a JSON object on each line.
const NDJSON: &str = "application/x-ndjson";
/// So much of an answer, in bytes, is held before any of it is sent.
const HELD: usize = 1 << 20;

/// Answers a client.
pub(super) fn answer(node: &Arc<Node>, job: &mut Job) -> Answer {
    let method = job.arrival.method().clone();
    if method != Method::Post {
        let error = Error::MethodNotAllowed(Route::V1Batch.allow());
        return Answer::error(&error, &method, Interface::V1);
    }
    begin(node, job).map_or_else(|error| Answer::error(&error, &method, Interface::V1), answer_of)
}

fn begin(node: &Arc<Node>, job: &mut Job) -> Result<Answering, Error> {
    let most = node.batch_limits;
    let limit = Limit { bytes: most.bytes, allowed: most.bytes };
    let (body, permit) = match job.read_body(limit, &node.budget) {
        Err(Error::TooLarge(_)) => {
            return Err(Error::TooLarge(format!("The batch is too large: allowed are {} bytes", most.bytes)));
        }
        body => body?.into_parts(),
    };
    let body = Bytes::from(body);
    let lines = lines_of(&body);
    if lines.clone().count() > most.items {
        return Err(Error::TooLarge(format!("The batch is too large: allowed are {} lines", most.items)));
    }
    let deadline = Deadline::after(job.complete, node.request_timeout);
    let headers = job.arrival.request.headers().iter();
    let headers = headers.map(|header| (header.field.as_str().as_str(), header.value.as_str()));
    let name = KeyHeaders::among(headers).name;
    let mut reader = Lines {
        node,
        body: &body,
        name,
        limits: limits_for(node, lines.clone()),
        reach: &job.reach,
        decoded: None,
    };
    let items: Vec<_> = lines.enumerate().map(|(at, line)| reader.read(at, line)).collect();
    let permits = (permit, reader.decoded);
    let batch = Batch::new(items.into_iter(), deadline);
    Ok(Answering { node: Arc::clone(node), batch, _permits: permits, out: Vec::new(), sent: 0 })
}

/// The lines of a body; one more end of a line at its end begins no other.
fn lines_of(body: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let is_empty = body.is_empty();
    body.split(|byte| *byte == b'\n').filter(move |_| !is_empty)
}

/// The limits by which lines are judged: a node that is no member looks for news before it refuses what may be over those that it knows.
fn limits_for<'a>(node: &Node, mut lines: impl Iterator<Item = &'a [u8]>) -> Limits {
    let known = node.limits();
    if lines.any(|line| line.len() > known.max_key_length.min(known.max_value_length)) {
        host::run(node.catch_up());
    }
    node.limits()
}

/// The answer to a batch: all of it where it is short, otherwise as it is done.
fn answer_of(mut answering: Answering) -> Answer {
    answering.fill();
    let body = if answering.batch.has_ended() && answering.out.len() < HELD {
        Body::Bytes(std::mem::take(&mut answering.out).into())
    } else {
        Body::Stream { reader: Box::new(answering), length: None }
    };
    Answer { content_type: NDJSON.into(), body, ..Answer::json(200, &b""[..]) }
}

/// A batch that is done, and answered, as its answer is read.
struct Answering {
    node: Arc<Node>,
    batch: Batch,
    /// The memory of the body, and of what was decoded.
    _permits: (Option<Permit>, Option<Permit>),
    /// Lines of the answer, and how much of them was sent.
    out: Vec<u8>,
    sent: usize,
}

impl Answering {
    /// Goes on until enough of the answer is there.
    fn fill(&mut self) {
        loop {
            while let Some((item, end)) = self.batch.take() {
                put_line(&mut self.out, item.as_ref(), end);
                if self.out.len() >= HELD {
                    return;
                }
            }
            if self.batch.has_ended() {
                return;
            }
            host::run(self.node.advance(&mut self.batch));
        }
    }
}

impl Read for Answering {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            self.fill();
        }
        let count = (&self.out[self.sent..]).read(buffer)?;
        self.sent += count;
        Ok(count)
    }
}

/// Reads the lines of a batch.
struct Lines<'a> {
    node: &'a Node,
    body: &'a Bytes,
    /// The name that the client has given the batch.
    name: Option<&'a str>,
    limits: Limits,
    /// The keys that it may be about.
    reach: &'a Reach,
    /// The memory of what was decoded.
    decoded: Option<Permit>,
}

/// The fields of a line, as their JSON text.
#[derive(Default)]
struct Fields<'a> {
    op: Option<&'a RawValue>,
    key: Option<&'a RawValue>,
    key_base64: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
    value_base64: Option<&'a RawValue>,
    content_type: Option<&'a RawValue>,
    ttl: Option<&'a RawValue>,
    if_match: Option<&'a RawValue>,
    if_none_match: Option<&'a RawValue>,
    /// One that means nothing here.
    unknown: Option<String>,
}

impl<'a> Visitor<'a> for Fields<'a> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(payload::Name(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            let field = match &*name {
                "op" => &mut self.op,
                "key" => &mut self.key,
                "key-base64" => &mut self.key_base64,
                "value" => &mut self.value,
                "value-base64" => &mut self.value_base64,
                "type" => &mut self.content_type,
                "ttl" => &mut self.ttl,
                "if-match" => &mut self.if_match,
                "if-none-match" => &mut self.if_none_match,
                _ => {
                    self.unknown.get_or_insert_with(|| name.into_owned());
                    continue;
                }
            };
            // Of a name that stands there twice, the last counts, as with most readers of JSON.
            *field = Some(value);
        }
        Ok(self)
    }
}

fn bad(text: impl Into<String>) -> Error {
    Error::BadRequest(text.into())
}

fn text_of(raw: &RawValue, name: &str) -> Result<String, Error> {
    serde_json::from_str(raw.get()).map_err(|_| bad(format!("{name} is wrong: allowed is text")))
}

impl<'a> Fields<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Error> {
        let form = r#"{"op":"put","key":"a","value":1}"#;
        let not_json = |error: serde_json::Error| {
            bad(format!("The line cannot be read: {error}; allowed is, for instance, {form}"))
        };
        let mut reader = serde_json::Deserializer::from_slice(line);
        let fields = reader.deserialize_map(Self::default()).map_err(not_json)?;
        reader.end().map_err(not_json)?;
        match fields.unknown {
            // It may be a condition that was misspelt.
            Some(name) => Err(bad(format!(
                "There is no field {name:?}: allowed are op, key, key-base64, value, value-base64, type, ttl, if-match, if-none-match"
            ))),
            None => Ok(fields),
        }
    }

    fn key(&self) -> Result<Vec<u8>, Error> {
        match (self.key, self.key_base64) {
            (Some(key), None) => text_of(key, "key").map(String::into_bytes),
            (None, Some(key)) => {
                let text = text_of(key, "key-base64")?;
                STANDARD.decode(text).map_err(|error| bad(format!("key-base64 is wrong: {error}")))
            }
            _ => Err(bad("The key is missing, or there are two: allowed is one of key and key-base64")),
        }
    }

    fn stated(&self) -> Result<Option<Stated>, Error> {
        let text = |raw: Option<&RawValue>, name| raw.map(|raw| text_of(raw, name)).transpose();
        let (if_match, if_none_match) =
            (text(self.if_match, "if-match")?, text(self.if_none_match, "if-none-match")?);
        let if_match: Vec<&str> = if_match.iter().map(String::as_str).collect();
        let if_none_match: Vec<&str> = if_none_match.iter().map(String::as_str).collect();
        Stated::parse(&if_match, &if_none_match).map_err(|unreadable| bad(unreadable.to_string()))
    }

    /// The time to live: a number of seconds, or a text with one. Nothing is said where it is absent, and for ever is only for touching.
    fn ttl(&self, is_touch: bool) -> Result<Option<Ttl>, Error> {
        let Some(raw) = self.ttl else {
            return if is_touch {
                Err(bad("ttl is missing: allowed are seconds, and \"none\""))
            } else {
                Ok(None)
            };
        };
        let text = if raw.get().starts_with('"') { text_of(raw, "ttl")? } else { raw.get().to_owned() };
        if is_touch && text == FOR_EVER {
            return Ok(None);
        }
        Ttl::parse(&text).map(Some).map_err(|error| bad(format!("ttl is wrong: {error}")))
    }

    /// Refuses what means something for other operations only.
    fn refuse(&self, op: &str, takes_ttl: bool) -> Result<(), Error> {
        let fields = [
            ("value", self.value.is_some()),
            ("value-base64", self.value_base64.is_some()),
            ("type", self.content_type.is_some()),
            ("ttl", self.ttl.is_some() && !takes_ttl),
        ];
        match fields.into_iter().find(|(_, is_there)| *is_there) {
            Some((name, _)) => Err(bad(format!("{op} has no {name}"))),
            None => Ok(()),
        }
    }
}

impl Lines<'_> {
    /// Reads a line, in the order of the contract: key, size, conditions and time, JSON, value.
    fn read(&mut self, at: usize, line: &[u8]) -> Result<Item, Error> {
        let fields = Fields::parse(line)?;
        let op = fields.op.ok_or_else(|| bad("op is missing: allowed are put, get, delete, touch"))?;
        let op = text_of(op, "op")?;
        let key = fields.key()?;
        self.reach.check(&key)?;
        check_key(self.limits, &key)?;
        let (action, ttl) = match op.as_str() {
            "put" => {
                let value = self.value(&fields)?;
                (ItemAction::Put(value), fields.ttl(false)?)
            }
            "get" | "delete" => {
                fields.refuse(&op, false)?;
                (if op == "get" { ItemAction::Get } else { ItemAction::Delete }, None)
            }
            "touch" => {
                fields.refuse(&op, true)?;
                (ItemAction::Touch, fields.ttl(true)?)
            }
            _ => return Err(bad(format!("There is no op {op:?}: allowed are put, get, delete, touch"))),
        };
        let stated = fields.stated()?;
        let condition = stated.as_ref().map(|stated| versions(self.node, stated)).transpose()?;
        let mut item = Item { key: key.into(), action, condition: None, ttl, named: None };
        item.named =
            self.name.and_then(|name| named_line(name, at, &item.key, item.operation(), stated.as_ref()));
        item.condition = condition.map(Box::new);
        Ok(item)
    }

    /// The value as it is stored.
    fn value(&mut self, fields: &Fields) -> Result<Bytes, Error> {
        let said = fields.content_type.map(|raw| text_of(raw, "type")).transpose()?;
        match (fields.value, fields.value_base64) {
            (Some(value), None) => {
                if let Some(said) = said.filter(|said| !is_json_type(said)) {
                    return Err(bad(format!(
                        "type is {said:?}: value is {JSON}, and anything else is value-base64"
                    )));
                }
                check_length(self.limits, value.get().as_bytes())?;
                Ok(self.body.slice_ref(value.get().as_bytes()))
            }
            (None, Some(value)) => {
                let said = said.as_deref().unwrap_or(BYTES);
                let content_type = ContentType::new(said)
                    .map_err(|_| bad("type is wrong: allowed are up to 255 printable characters of ASCII"))?;
                let content_type = if is_json_type(said) { Type::Json } else { Type::Of(content_type) };
                let text = text_of(value, "value-base64")?;
                self.take_room(text.len())?;
                let mut stored = content_type.head();
                STANDARD
                    .decode_vec(text, &mut stored)
                    .map_err(|error| bad(format!("value-base64 is wrong: {error}")))?;
                check_length(self.limits, &stored)?;
                content_type.check(&stored)?;
                Ok(stored.into())
            }
            (None, None) => Err(Error::ValueMissing),
            (Some(_), Some(_)) => Err(bad("There are two values: allowed is one of value and value-base64")),
        }
    }

    /// Takes memory for what is decoded, of that for large bodies.
    fn take_room(&mut self, bytes: usize) -> Result<(), Error> {
        let budget: &Budget = &self.node.budget;
        let has_room = match &mut self.decoded {
            Some(permit) => permit.grow(bytes),
            none => {
                *none = budget.take(bytes);
                none.is_some()
            }
        };
        let full = "The memory for large bodies is in use: try again later";
        if has_room { Ok(()) } else { Err(Error::Overloaded(full.to_owned())) }
    }
}

/// Appends the line that says what came of an operation.
fn put_line(out: &mut Vec<u8>, item: Option<&Item>, end: Result<Outcome, Error>) {
    match end {
        Ok(outcome) => put_outcome(out, item.map_or(Operation::GET, Item::operation), &outcome),
        Err(error) => put_error(out, &error, None),
    }
    out.push(b'\n');
}

fn put_outcome(out: &mut Vec<u8>, operation: Operation, outcome: &Outcome) {
    let tag = outcome.tag();
    let status = match &outcome.done {
        Done::Wrote(Written { outcome, .. }) => match outcome {
            WriteOutcome::Added => 201,
            WriteOutcome::Updated => {
                if operation.value().is_some() {
                    200
                } else {
                    204
                }
            }
            WriteOutcome::Deleted => 204,
            WriteOutcome::Absent => return put_error(out, &Error::Absent, None),
            WriteOutcome::Unmet => return put_error(out, &Error::Unmet, tag.as_deref()),
        },
        Done::Read(Some(value)) => match Content::of(value.as_bytes()) {
            Ok(content) => return put_value(out, outcome, value, &content, tag.as_deref()),
            Err(malformed) => {
                log::error!("what is stored cannot be read: {malformed}");
                return put_error(out, &Error::Internal, None);
            }
        },
        Done::Read(None) => return put_error(out, &Error::Absent, None),
        Done::Unread(Unread::Unchanged, _) => 304,
        Done::Unread(Unread::Unmet, _) => return put_error(out, &Error::Unmet, tag.as_deref()),
    };
    put(out, format_args!("{{\"status\":{status}"));
    put_tag(out, tag.as_deref());
    out.push(b'}');
}

fn put_value(out: &mut Vec<u8>, outcome: &Outcome, value: &Value, content: &Content, tag: Option<&str>) {
    let bytes = &value.as_bytes()[content.place.clone()];
    put(out, format_args!("{{\"status\":200"));
    put_tag(out, tag);
    if is_typed(value.as_bytes()) {
        put(out, format_args!(",\"value-base64\":\"{}\",\"type\":", STANDARD.encode(bytes)));
        put(out, format_args!("{}", payload::json_text(content.content_type)));
    } else {
        out.extend_from_slice(b",\"value\":");
        // Within its strings JSON has no ends of lines, and between its parts they are blanks.
        out.extend(bytes.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
    }
    if let Some(left) = outcome.left() {
        put(out, format_args!(",\"ttl\":{left}"));
    }
    out.push(b'}');
}

fn put_error(out: &mut Vec<u8>, error: &Error, tag: Option<&str>) {
    let ((status, ..), detail) = (kind_of(error), payload::json_text(&detail_of(error)));
    let outcome: Applied = error.applied();
    put(out, format_args!("{{\"status\":{status},\"error\":{detail},\"outcome\":\"{}\"", outcome.as_str()));
    put_tag(out, tag);
    out.push(b'}');
}

fn put_tag(out: &mut Vec<u8>, tag: Option<&str>) {
    if let Some(tag) = tag {
        put(out, format_args!(",\"etag\":{}", payload::json_text(tag)));
    }
}

fn put(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes every write");
}
