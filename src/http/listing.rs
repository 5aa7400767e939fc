//! What `/v1/kv` takes and gives: keys in their order, by pages or line by line, their number, and the end of all that begin alike.

use std::borrow::Cow;
use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;
use std::{mem, vec};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tiny_http::Method;

use super::answer::{Answer, LARGE_ANSWER};
use super::answer_body::Body;
use super::body::Limit;
use super::dispatch::Job;
use super::error_form::ErrorForm;
use super::routes::{Route, decode_key};
use crate::budget::Permit;
use crate::clock::{Deadline, now};
use crate::error::Error;
use crate::model::condition::TagSpace;
use crate::model::shard::Done;
use crate::model::store::Span;
use crate::model::ttl::Ttl;
use crate::model::value::{self, Content};
use crate::node::host;
use crate::node::keys::{Operation, Request};
use crate::node::listing::Deleted;
use crate::node::state::Node;
use crate::reshard::controller::Controller;
use crate::wire;
use crate::wire::listing::Entry;

/// A page has so many keys, unless the client says how many, and at most so many.
const USUAL_LIMIT: usize = 1000;
const MOST_LIMIT: usize = 10_000;
/// A page ends before it would have more bytes than this.
const PAGE_BYTES: usize = 4 << 20;
/// So many pairs are asked for at one time where they are told line by line.
const LINES: usize = 4096;
/// Lines are written together until they have so many bytes.
const WRITTEN_BYTES: usize = 32 << 10;
/// The body of such a request says nothing, and is refused where it is longer.
const BODY: Limit = Limit { bytes: 1 << 20, allowed: 1 << 20 };
/// The cursor from before a listing began that is told line by line.
const WATCH_HEADER: &str = "Evenkv-Watch";
/// The type of what is told line by line.
pub const LINES_TYPE: &str = "application/x-ndjson";
/// A deletion ends when so many tenths of the time for a request are over, so that its answer comes in time.
const DELETING_TENTHS: u32 = 8;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which keys.
    pub span: Span,
    limit: usize,
    has_values: bool,
    is_count: bool,
    /// Whether a cursor is wanted from which to watch, where that is said.
    watch: Option<bool>,
}

impl Asked {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Error::BadRequest`], also where something is said twice.
    pub fn parse(query: &str) -> Result<Self, Error> {
        let mut said: [(&str, Option<&str>); 6] =
            ["prefix", "after", "limit", "values", "count", "watch"].map(|name| (name, None));
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let Some((_, slot)) = said.iter_mut().find(|(known, _)| *known == name) else { continue };
            if slot.replace(value).is_some_and(|before| before != value) {
                return Err(Error::BadRequest(format!("{name} is said twice, and not the same")));
            }
        }
        let [prefix, after, limit, values, count, watch] = said.map(|(_, value)| value);
        let key = |name: &str, text: Option<&str>| {
            let text = text.filter(|text| !text.is_empty());
            let key = text.map(|text| decode_key(text).map(|key| Box::<[u8]>::from(&*key))).transpose();
            key.map_err(|error| Error::BadRequest(format!("{name}: {error}")))
        };
        let flag = |name: &str, text| match text {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                Err(Error::BadRequest(format!("{name} is '{other}': allowed is {name}=true or {name}=false")))
            }
        };
        let limit = match limit {
            None => Some(USUAL_LIMIT),
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Some(_) => None,
        };
        let limit = limit.filter(|limit| (1..=MOST_LIMIT).contains(limit)).ok_or_else(|| {
            Error::BadRequest(format!("limit is wrong: allowed is a whole number from 1 to {MOST_LIMIT}"))
        })?;
        Ok(Self {
            span: Span { prefix: key("prefix", prefix)?.unwrap_or_default(), after: key("after", after)? },
            limit,
            has_values: flag("values", values)?,
            is_count: flag("count", count)?,
            watch: watch.map(|watch| flag("watch", Some(watch))).transpose()?,
        })
    }
}

/// Answers a request for a listing, or for the end of what is listed.
pub fn answer(controller: &Controller, job: &mut Job) -> Answer {
    let method = job.arrival.method().clone();
    find_answer(controller, job, &method)
        .unwrap_or_else(|error| Answer::error(&error, &method, ErrorForm::Problem))
}

fn find_answer(controller: &Controller, job: &mut Job, method: &Method) -> Result<Answer, Error> {
    let node = &controller.node;
    let body = job.read_body(BODY, &node.budget);
    if !matches!(method, Method::Get | Method::Delete) {
        return Err(Error::MethodNotAllowed(Route::V1List.allow()));
    }
    body?;
    let asked = Asked::parse(job.arrival.query().unwrap_or_default())?;
    job.reach.check(&asked.span.prefix)?;
    let deadline = Deadline::after(job.complete, node.request_timeout);
    if *method == Method::Delete {
        if asked.span.prefix.is_empty() {
            return Err(Error::BadRequest(
                "prefix is missing: allowed is what the keys begin with that are to be deleted".to_owned(),
            ));
        }
        let until = Deadline::after(job.complete, node.request_timeout * DELETING_TENTHS / 10);
        let Deleted { count, has_more } = host::run(node.delete_listed(&asked.span, until, deadline))?;
        return Ok(Answer::json(200, json!({ "deleted": count, "more": has_more }).to_string().into_bytes()));
    }
    if asked.is_count {
        let count = host::run(node.count_listed(&asked.span, deadline))?;
        return Ok(Answer::json(200, json!({ "count": count }).to_string().into_bytes()));
    }
    let wants_lines = wants_lines(job);
    // A later page would name a moment at which the listing had begun already. From then on shards keep what is done, so somebody may want none.
    let has_cursor = asked.span.after.is_none() && asked.watch.unwrap_or(!wants_lines);
    let watch = has_cursor.then(|| host::run(controller.cursor_of_now(deadline))).transpose()?;
    if wants_lines {
        let mut answer = lines(node, asked, deadline)?;
        // The lines have no place for it.
        answer.headers.extend(watch.map(|watch| (WATCH_HEADER.into(), watch.into())));
        return Ok(answer);
    }
    page(node, &asked, watch.as_deref(), deadline)
}

/// Whether the client takes what is told line by line.
fn wants_lines(job: &Job) -> bool {
    let headers = job.arrival.request.headers().iter().filter(|header| header.field.equiv("Accept"));
    let mut ranges = headers.flat_map(|header| header.value.as_str().split(','));
    ranges.any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_lines = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(LINES_TYPE));
        // With a weight of zero it is what the client does not take (RFC 9110, section 12.4.2).
        let is_refused = |part: &str| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.and_then(|weight| weight.parse::<f32>().ok()).is_some_and(|weight| weight <= 0.0)
        };
        is_lines && !parts.any(is_refused)
    })
}

/// What is written, and the part of the memory for large answers that it takes.
#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    permits: Vec<Permit>,
}

/// Whose values are told, and how.
struct Teller<'a> {
    node: &'a Node,
    tags: TagSpace,
    has_values: bool,
    form: Form,
}

/// How values are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON as it is.
    Page,
    /// A pair is one line: line ends between the parts of JSON are blanks.
    Line,
    /// The same, and every byte can be had back.
    Exact,
}

impl Teller<'_> {
    /// Appends a pair, unless it is gone by now; whether it did.
    fn put(&self, rows: &mut Rows, entry: &Entry, before: &[u8], deadline: Deadline) -> Result<bool, Error> {
        if !self.has_values || entry.value.is_some() {
            rows.bytes.extend_from_slice(before);
            let row = Row {
                key: &entry.key,
                tag: self.tags.tag(entry.version),
                length: Some(entry.length),
                left: entry.left,
                stored: entry.value.as_deref(),
            };
            row.put(&mut rows.bytes, self.form);
            return Ok(true);
        }
        // A long one is read by itself, into memory that is set aside for such.
        let outcome =
            host::run(self.node.run(&mut Request::new(&entry.key, Operation::GET, None, deadline), None))?;
        let (tag, left) = (outcome.tag(), outcome.left());
        let Done::Read(Some(value)) = outcome.done else { return Ok(false) };
        let stored = value.as_bytes();
        let needed = stored.len() + stored.len() / 2;
        let permit = self.node.budget.take(needed).ok_or_else(|| {
            Error::Overloaded("The memory for large answers is in use: try again later".to_owned())
        })?;
        rows.bytes.extend_from_slice(before);
        let tag = tag.unwrap_or_default();
        let length = Some(value::length(stored) as u64);
        let row = Row { key: &entry.key, tag, length, left, stored: Some(stored) };
        row.put(&mut rows.bytes, self.form);
        rows.permits.push(permit);
        Ok(true)
    }
}

/// A pair as it is told.
pub struct Row<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The entity tag.
    pub tag: String,
    /// How many bytes the value has, where that is told.
    pub length: Option<u64>,
    /// How much is left of its time to live, if it has one.
    pub left: Option<Ttl>,
    /// The value as [`value`] stores it, where it is told.
    pub stored: Option<&'a [u8]>,
}

impl Row<'_> {
    /// Appends it as a JSON object.
    pub fn put(&self, out: &mut Vec<u8>, form: Form) {
        // Nothing can go wrong when text is written into memory.
        match std::str::from_utf8(self.key) {
            Ok(text) => drop(write!(out, "{{\"key\":{}", json_text(text))),
            Err(_) => drop(write!(out, "{{\"key-base64\":\"{}\"", STANDARD.encode(self.key))),
        }
        drop(write!(out, ",\"etag\":{}", json_text(&self.tag)));
        if let Some(length) = self.length {
            drop(write!(out, ",\"bytes\":{length}"));
        }
        if let Some(left) = self.left {
            drop(write!(out, ",\"ttl\":{left}"));
        }
        if let Some(stored) = self.stored {
            put_value(out, stored, form);
        }
        out.push(b'}');
    }
}

fn put_value(out: &mut Vec<u8>, stored: &[u8], form: Form) {
    let is_end = |byte: u8| byte == b'\n' || byte == b'\r';
    // Blanks around JSON belong to the line, whoever reads it.
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_changed =
        || stored.iter().any(|byte| is_end(*byte)) || is_blank(stored.first()) || is_blank(stored.last());
    let is_coded = value::is_typed(stored) || form == Form::Exact && is_changed();
    if !is_coded {
        out.extend_from_slice(b",\"value\":");
        // In JSON text they are nothing but blanks.
        let blank = |byte: &u8| if form == Form::Line && is_end(*byte) { b' ' } else { *byte };
        out.extend(stored.iter().map(blank));
        return;
    }
    // What cannot be read was never written: it is shown as it lies there.
    let content =
        Content::of(stored).unwrap_or(Content { content_type: value::BYTES, place: 0..stored.len() });
    let (coded, content_type) = (STANDARD.encode(&stored[content.place]), json_text(content.content_type));
    drop(write!(out, ",\"value-base64\":\"{coded}\",\"type\":{content_type}"));
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

/// One page, as JSON.
fn page(node: &Node, asked: &Asked, watch: Option<&str>, deadline: Deadline) -> Result<Answer, Error> {
    let mut rows = Rows { bytes: b"{\"keys\":[".to_vec(), permits: Vec::new() };
    let (mut keys, mut last, mut next) = (0, None, None);
    let mut rest = Some(asked.span.clone());
    'page: while let Some(span) = rest {
        // One more than there is room for says whether there are more.
        let chunk = host::run(node.list(&span, asked.limit + 1 - keys, asked.has_values, deadline))?;
        let teller = Teller { node, tags: chunk.tags, has_values: asked.has_values, form: Form::Page };
        for entry in chunk.entries {
            let length = if asked.has_values { entry.length } else { 0 };
            let is_long = rows.bytes.len() as u64 + entry.key.len() as u64 + length > PAGE_BYTES as u64;
            if keys == asked.limit || keys > 0 && is_long {
                next = last;
                break 'page;
            }
            if teller.put(&mut rows, &entry, if keys > 0 { b"," } else { b"" }, deadline)? {
                keys += 1;
            }
            last = Some(entry.key);
        }
        rest = chunk.through.map(|through| span.after(&through));
    }
    rows.bytes.push(b']');
    if let Some(next) = next {
        drop(write!(rows.bytes, ",\"next\":{}", json_text(&wire::encode_key(&next))));
    }
    if let Some(watch) = watch {
        drop(write!(rows.bytes, ",\"watch\":{}", json_text(watch)));
    }
    rows.bytes.push(b'}');
    if rows.bytes.len() <= LARGE_ANSWER && rows.permits.is_empty() {
        return Ok(Answer::json(200, rows.bytes));
    }
    let length = Some(rows.bytes.len() as u64);
    let reader = Box::new(Held { bytes: Cursor::new(rows.bytes), _permits: rows.permits });
    Ok(Answer { body: Body::Stream { reader, length }, ..Answer::json(200, &b""[..]) })
}

/// Bytes with the memory that is set aside for them.
struct Held {
    bytes: Cursor<Vec<u8>>,
    _permits: Vec<Permit>,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

/// All pairs, line by line. The first ones are there before the answer begins, so that a listing that cannot be made is still refused.
fn lines(node: &Arc<Node>, asked: Asked, deadline: Deadline) -> Result<Answer, Error> {
    let Asked { span, has_values, .. } = asked;
    let mut lines = Lines {
        node: Arc::clone(node),
        has_values,
        rest: Some(span),
        tags: TagSpace::of(""),
        entries: Vec::new().into_iter(),
        rows: Rows::default(),
        read: 0,
        keys: 0,
        is_over: false,
    };
    lines.ask(deadline)?;
    let body = Body::Stream { reader: Box::new(lines), length: None };
    Ok(Answer { body, content_type: Cow::Borrowed(LINES_TYPE), ..Answer::json(200, &b""[..]) })
}

/// The lines of a listing, which asks for the next pairs when those before them have been read.
struct Lines {
    node: Arc<Node>,
    has_values: bool,
    /// What is still to be asked for.
    rest: Option<Span>,
    tags: TagSpace,
    /// What was told and is not written yet.
    entries: vec::IntoIter<Entry>,
    /// What is written, and how much of that was read.
    rows: Rows,
    read: usize,
    keys: u64,
    /// The last line was written.
    is_over: bool,
}

impl Lines {
    /// Asks for the next pairs.
    fn ask(&mut self, deadline: Deadline) -> Result<(), Error> {
        while let Some(span) = self.rest.take() {
            let chunk = host::run(self.node.list(&span, LINES, self.has_values, deadline))?;
            self.rest = chunk.through.map(|through| span.after(&through));
            (self.tags, self.entries) = (chunk.tags, chunk.entries.into_iter());
            if self.entries.len() > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Writes the next lines.
    fn write(&mut self) -> Result<(), Error> {
        (self.rows, self.read) = (Rows { bytes: mem::take(&mut self.rows.bytes), permits: Vec::new() }, 0);
        self.rows.bytes.clear();
        let deadline = Deadline::after(now(), self.node.request_timeout);
        while self.rows.bytes.len() < WRITTEN_BYTES && !self.is_over {
            if self.node.is_stopping() {
                return Err(Error::NotServing("the node is stopping".to_owned()));
            }
            if self.entries.len() == 0 {
                self.ask(deadline)?;
            }
            let teller =
                Teller { node: &self.node, tags: self.tags, has_values: self.has_values, form: Form::Line };
            if let Some(entry) = self.entries.next() {
                if teller.put(&mut self.rows, &entry, b"", deadline)? {
                    self.rows.bytes.push(b'\n');
                    self.keys += 1;
                }
            } else {
                drop(writeln!(self.rows.bytes, "{{\"end\":true,\"keys\":{}}}", self.keys));
                self.is_over = true;
            }
        }
        Ok(())
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.rows.bytes.len() {
            // The answer has begun: that it ends in the middle is all that can be said.
            self.write().map_err(|error| {
                log::warn!("a listing breaks off: {error}");
                io::Error::other(error)
            })?;
        }
        let count = self.rows.bytes.len().min(self.read + buffer.len()) - self.read;
        buffer[..count].copy_from_slice(&self.rows.bytes[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Asked {
        let span = Span { prefix: prefix.into(), after: after.map(Into::into) };
        Asked { span, limit, has_values: false, is_count: false, watch: None }
    }

    #[test]
    fn what_is_asked_for_is_in_the_query() {
        let table = [
            ("", Some(asked(b"", None, 1000))),
            ("prefix=&after=", Some(asked(b"", None, 1000))),
            ("prefix=a%2F+&after=a%00&limit=7&b=c", Some(asked(b"a/+", Some(b"a\0"), 7))),
            ("limit=10000&limit=10000", Some(asked(b"", None, 10_000))),
            ("watch=false", Some(Asked { watch: Some(false), ..asked(b"", None, 1000) })),
            ("watch=1", None),
            ("values=true", Some(Asked { has_values: true, ..asked(b"", None, 1000) })),
            ("count=true&values=false", Some(Asked { is_count: true, ..asked(b"", None, 1000) })),
            ("limit=0", None),
            ("limit=10001", None),
            ("limit=", None),
            ("limit=+1", None),
            ("limit=1&limit=2", None),
            ("limit=99999999999999999999", None),
            ("values=yes", None),
            ("values", None),
            ("count=1", None),
            ("prefix=%4", None),
            ("after=%zz", None),
        ];
        for (query, wanted) in table {
            assert_eq!(Asked::parse(query).ok(), wanted, "{query}");
        }
    }

    #[test]
    fn a_pair_is_one_line_whatever_is_in_it() {
        let tag = || TagSpace::of("1f").tag(7);
        let row = |key: &'static [u8], stored, left| Row { key, tag: tag(), length: Some(5), left, stored };
        let told = "\"etag\":\"\\\"000000000000001f-7\\\"\",\"bytes\":5";
        let table: [(Row, Form, String); 9] = [
            (row(b"a", None, None), Form::Line, format!("{{\"key\":\"a\",{told}}}")),
            (
                row(b"a\"\n", None, Ttl::from_ms(2500)),
                Form::Line,
                format!("{{\"key\":\"a\\\"\\n\",{told},\"ttl\":2.5}}"),
            ),
            (
                row(b"\xff\0", Some(b"[1,\r\n2]"), None),
                Form::Line,
                format!("{{\"key-base64\":\"/wA=\",{told},\"value\":[1,  2]}}"),
            ),
            (
                row(b"a", Some(b"[1,\n2]"), None),
                Form::Page,
                format!("{{\"key\":\"a\",{told},\"value\":[1,\n2]}}"),
            ),
            (
                row(b"a", Some(b"\0\x03a/bxyz"), None),
                Form::Line,
                format!("{{\"key\":\"a\",{told},\"value-base64\":\"eHl6\",\"type\":\"a/b\"}}"),
            ),
            (
                row(b"a", Some(b"[1,\n2]"), None),
                Form::Exact,
                format!(
                    "{{\"key\":\"a\",{told},\"value-base64\":\"WzEsCjJd\",\"type\":\"application/json\"}}"
                ),
            ),
            (row(b"a", Some(b"[ 1]"), None), Form::Exact, format!("{{\"key\":\"a\",{told},\"value\":[ 1]}}")),
            (
                row(b"a", Some(b" 1"), None),
                Form::Exact,
                format!("{{\"key\":\"a\",{told},\"value-base64\":\"IDE=\",\"type\":\"application/json\"}}"),
            ),
            (
                row(b"a", Some(b"1\t"), None),
                Form::Exact,
                format!("{{\"key\":\"a\",{told},\"value-base64\":\"MQk=\",\"type\":\"application/json\"}}"),
            ),
        ];
        for (row, form, wanted) in table {
            let mut out = Vec::new();
            row.put(&mut out, form);
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
    }
}
