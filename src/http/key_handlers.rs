//! Key operations of clients.

use std::fmt::{self, Write};
use std::hash::Hasher;
use std::ops::Range;
use std::time::Duration;

use siphasher::sip128::{Hash128, Hasher128, SipHasher24};
use tiny_http::Method;

use super::answer::Answer;
use super::answer_body::{Body, Coding};
use super::body::{BodyBytes, Limit, too_large};
use super::dispatch::Job;
use super::framing::Framing;
use super::key_request::{Asker, Causal, KeyRequest, Kind, Progress};
use super::payload::Payload;
use super::routes::{self, EncodedKey, Interface, Route};
use super::v1::{self, Lines, ValueHeaders};
use crate::access::Reach;
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::condition::{Condition, ETAG, IF_MATCH, IF_NONE_MATCH, Stated};
use crate::model::limits::Limits;
use crate::model::shard::{Done, RequestId, Unread, WriteOutcome, Written};
use crate::model::ttl::{TTL_HEADER, TTL_PARAMETER, Ttl};
use crate::model::value::{self, Content};
use crate::node::host;
use crate::node::keys::{Action, Operation, Outcome, Owner, Value};
use crate::node::state::Node;
use crate::wire::{STALE, STALENESS_HEADER};

/// What a body may have beyond the value, in bytes: the names, other fields, blanks.
const ENVELOPE: usize = 64 * 1024;

/// What a client says in place of a time to live to take it away.
pub const FOR_EVER: &str = "none";

/// By this header a client names a write, so that sent again it is done once.
pub const IDEMPOTENCY_HEADER: &str = "Idempotency-Key";

/// What is before a value that was found.
const FOUND: &str = "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":";
/// The same before one that is not JSON.
const FOUND_BYTES: &str = "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":\"";
/// This header says how a value is written that is not JSON.
const ENCODING_HEADER: &str = "Evenkv-Encoding";

/// Finds the route of a path, and what the path has beyond it.
///
/// # Errors
/// As [`routes::find`].
pub fn find_route<'a>(node: &Node, path: &'a str) -> Result<(Route, &'a str), Error> {
    let serving_state = node.serving_state();
    let short_form = serving_state.serving().is_ok_and(|serving| serving.state.view.nodes().count() == 1);
    routes::find(path, short_form)
}

/// What a client's request about a key says beside its key and its body, however it has come.
pub struct Said<'a> {
    /// In which words it is answered, and whether the body is the value or has it as a field.
    pub interface: Interface,
    /// The method.
    pub method: Method,
    /// The query of its target, not decoded, where there is one.
    pub query: Option<&'a str>,
    /// What its headers say that is about keys.
    pub headers: KeyHeaders<'a>,
    /// The keys that it may be about.
    pub reach: Reach,
    /// It is answered by then.
    pub deadline: Deadline,
}

/// The headers that are about keys, by their values.
#[derive(Default)]
pub struct KeyHeaders<'a> {
    /// The name that the client has given the request by [`IDEMPOTENCY_HEADER`].
    pub name: Option<&'a str>,
    /// The lines of [`IF_MATCH`].
    if_match: Lines<'a>,
    /// The lines of [`IF_NONE_MATCH`].
    if_none_match: Lines<'a>,
    /// The lines of [`TTL_HEADER`].
    ttl: Lines<'a>,
    /// Those that mean something where the value is the body.
    value: ValueHeaders<'a>,
}

impl<'a> KeyHeaders<'a> {
    /// Those among all headers, each a name and a value.
    pub fn among(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            if name.eq_ignore_ascii_case(IDEMPOTENCY_HEADER) {
                found.name.get_or_insert(value);
            } else if name.eq_ignore_ascii_case(IF_MATCH) {
                found.if_match.push(value);
            } else if name.eq_ignore_ascii_case(IF_NONE_MATCH) {
                found.if_none_match.push(value);
            } else if name.eq_ignore_ascii_case(TTL_HEADER) {
                found.ttl.push(value);
            } else {
                found.value.take(name, value);
            }
        }
        found
    }

    fn condition(&self) -> Result<Option<Stated>, Error> {
        Stated::parse(&self.if_match, &self.if_none_match)
            .map_err(|unreadable| Error::BadRequest(unreadable.to_string()))
    }
}

/// Reads and checks a client's request about a key.
///
/// # Errors
/// The answer to one that is refused.
pub fn read(node: &Node, job: &mut Job, encoded: EncodedKey) -> Result<KeyRequest, Box<Answer>> {
    let limits = limits_for(node, job, encoded.length);
    let head = match job.arrival.interface() {
        Interface::Classic => Vec::new(),
        // The body is read behind it, so what the headers say is looked for once more afterwards.
        Interface::V1 => said_in(node, job).head(),
    };
    let body = read_body(node, job, limits, head);
    check(node, said_in(node, job), encoded, limits, body)
}

fn said_in<'a>(node: &Node, job: &'a Job) -> Said<'a> {
    // A range is a part of what GET answers, and of nothing else (RFC 9110, section 14.2).
    let is_head = *job.arrival.request.method() == Method::Head;
    let headers = job.arrival.request.headers().iter();
    let headers = headers.filter(|header| !is_head || !header.field.equiv("Range"));
    let headers = headers.map(|header| (header.field.as_str().as_str(), header.value.as_str()));
    Said {
        interface: job.arrival.interface(),
        method: job.arrival.method().clone(),
        query: job.arrival.query(),
        headers: KeyHeaders::among(headers),
        reach: job.reach.clone(),
        deadline: Deadline::after(job.complete, node.request_timeout),
    }
}

/// For how long something is to live, as a client says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    For(Ttl),
    ForEver,
}

impl Life {
    fn ttl(self) -> Option<Ttl> {
        match self {
            Self::For(ttl) => Some(ttl),
            Self::ForEver => None,
        }
    }
}

impl Said<'_> {
    /// For how long what is written is to live; nothing where nothing is said of that.
    ///
    /// # Errors
    /// [`Error::BadRequest`] where it is no time, or two that differ are said.
    fn life(&self) -> Result<Option<Life>, Error> {
        let wrong = |why: &dyn fmt::Display| {
            Error::BadRequest(format!("The time to live, ?{TTL_PARAMETER}= or {TTL_HEADER}, is wrong: {why}"))
        };
        let parameters = self.query.unwrap_or_default().split('&');
        let by_query = parameters.filter_map(|parameter| match parameter.split_once('=') {
            Some((TTL_PARAMETER, value)) => Some(value),
            None if parameter == TTL_PARAMETER => Some(""),
            _ => None,
        });
        let by_header = self.headers.ttl.iter().map(|line| line.trim_matches([' ', '\t']));
        let mut life = None;
        for text in by_query.chain(by_header) {
            let said = match text {
                FOR_EVER if self.method == Method::Patch => Life::ForEver,
                text => Life::For(Ttl::parse(text).map_err(|error| wrong(&error))?),
            };
            if life.is_some_and(|before| before != said) {
                return Err(wrong(&"two are said that differ"));
            }
            life = Some(said);
        }
        match (life, &self.method) {
            (None, Method::Patch) => Err(wrong(&format!("none is said; allowed is {FOR_EVER}, too"))),
            _ => Ok(life),
        }
    }

    /// What is stored before the body, where the value is the body and has a type of its own. One that is no type is refused later.
    fn head(&self) -> Vec<u8> {
        if self.interface == Interface::Classic || self.method != Method::Put {
            return Vec::new();
        }
        self.headers.value.content_type().map(|content_type| content_type.head()).unwrap_or_default()
    }
}

/// The same for one whose body is there. Nothing where that would have to wait, since what is asked may be beyond limits that the node has not heard of yet.
///
/// # Errors
/// As [`read`].
pub fn read_held(
    node: &Node,
    said: Said,
    encoded: EncodedKey,
    body: &[u8],
) -> Option<Result<KeyRequest, Box<Answer>>> {
    let limits = node.limits();
    let may_fit = fits(limits, encoded.length, body.len());
    may_fit.then(|| {
        let body = BodyBytes::small([&said.head(), body].concat());
        check(node, said, encoded, limits, Ok(body))
    })
}

fn check(
    node: &Node,
    said: Said,
    encoded: EncodedKey,
    limits: Limits,
    body: Result<BodyBytes, Error>,
) -> Result<KeyRequest, Box<Answer>> {
    match said.interface {
        Interface::Classic => check_classic(node, &said, encoded, limits, body),
        Interface::V1 => {
            let method = said.method.clone();
            let checked = check_v1(node, said, encoded, limits, body);
            checked.map_err(|error| Answer::error(&error, &method, Interface::V1).into())
        }
    }
}

/// Checks a request whose body is the value, in the order of the contract: framing (checked before), key, size, headers and query, JSON.
fn check_v1(
    node: &Node,
    said: Said,
    encoded: EncodedKey,
    limits: Limits,
    body: Result<BodyBytes, Error>,
) -> Result<KeyRequest, Error> {
    let life = if matches!(said.method, Method::Put | Method::Patch) { said.life() } else { Ok(None) };
    let Said { method, headers, .. } = said;
    let key = encoded.key?;
    said.reach.check(&key)?;
    check_key(limits, &key)?;
    if !matches!(method, Method::Get | Method::Put | Method::Delete | Method::Patch) {
        return Err(Error::MethodNotAllowed(Route::V1Key.allow()));
    }
    let body = match body {
        // Any but a PUT may have any body.
        Err(Error::BadRequest(_)) if method != Method::Put => BodyBytes::default(),
        body => body?,
    };
    check_length(limits, &body.bytes)?;
    let stated = headers.condition()?;
    let content_type = if method == Method::Put { Some(headers.value.content_type()?) } else { None };
    let is_stale = wants_stale(said.query.unwrap_or_default())? && method == Method::Get;
    let ttl = life?.and_then(Life::ttl);
    let (kind, operation) = match method {
        Method::Get => (Kind::Get, Operation::GET),
        Method::Delete => (Kind::Delete, Operation::DELETE),
        Method::Patch => (Kind::Touch, Operation::TOUCH),
        _ => (Kind::Put(0..body.bytes.len()), Operation::put(&body.bytes)),
    };
    if let Some(content_type) = content_type {
        content_type.check(&body.bytes)?;
    }
    let condition = stated.as_ref().map(|stated| versions(node, stated)).transpose()?;
    let id = headers.name.and_then(|name| named(name, &key, operation.living(ttl), stated.as_ref()));
    let wanted = headers.value.wanted().filter(|_| method == Method::Get);
    Ok(KeyRequest {
        key,
        kind,
        condition: condition.map(Box::new),
        ttl,
        id,
        is_stale,
        deadline: said.deadline,
        asker: Asker::V1(wanted.map(Box::new)),
        progress: Progress::None,
        body,
    })
}

/// Checks a request. The order of the checks is part of the contract: framing (checked before), key length, size, headers and query, JSON, value.
fn check_classic(
    node: &Node,
    said: &Said,
    encoded: EncodedKey,
    limits: Limits,
    body: Result<BodyBytes, Error>,
) -> Result<KeyRequest, Box<Answer>> {
    let method = said.method.clone();
    let payload = match &body {
        Ok(body) => Payload::parse(&body.bytes),
        Err(error) => Err(error.clone()),
    };
    let context = payload.as_ref().ok().and_then(|payload| payload.causal_context().ok().flatten());
    let refused = |error: &Error, owner: Option<&Address>| {
        Answer::error(error, &method, &more_fields(owner, context.map(str::as_bytes)))
    };
    let owner = match &encoded.key {
        Ok(key) => node.owner(key),
        Err(_) => Owner::Here,
    };
    let checked = encoded.key.and_then(|key| {
        said.reach.check(&key)?;
        check_key(limits, &key)?;
        let takes_key = matches!(method, Method::Get | Method::Put | Method::Delete);
        if let Err(error) = &body
            && takes_key
            && !matches!(error, Error::BadRequest(_))
        {
            return Err(error.clone());
        }
        let stated = if takes_key { said.headers.condition()? } else { None };
        let condition = stated.as_ref().map(|stated| versions(node, stated)).transpose()?;
        let life = if method == Method::Put { said.life()? } else { None };
        let operation = operation(limits, &method, &payload)?.living(life.and_then(Life::ttl));
        let is_stale = wants_stale(said.query.unwrap_or_default())? && method == Method::Get;
        let id = said.headers.name.and_then(|name| named(name, &key, operation, stated.as_ref()));
        Ok((key, operation, condition, id, is_stale))
    });
    let (key, operation, condition, id, is_stale) = match checked {
        Ok(checked) => checked,
        // Overload is this node's own affair; anything else the owner would have said, too.
        Err(error @ (Error::Overloaded(_) | Error::Unavailable { .. })) => {
            return Err(refused(&error, None).into());
        }
        Err(error) => return Err(refused(&error, owner.address()).into()),
    };
    let place = |part: &str| body.as_ref().ok().and_then(|body| place_in(&body.bytes, part));
    let kind = match operation.action {
        Action::Get => Kind::Get,
        Action::Put(_) => {
            let value = payload.as_ref().ok().and_then(|payload| payload.value).and_then(place);
            Kind::Put(value.unwrap_or_default())
        }
        Action::Delete => Kind::Delete,
        Action::Touch => Kind::Touch,
    };
    let ttl = operation.ttl;
    // One that was not given is not in the body.
    let causal = context.map(|context| place(context).map_or(Causal::Empty, Causal::Given));
    Ok(KeyRequest {
        key,
        kind,
        condition: condition.map(Box::new),
        ttl,
        id,
        is_stale,
        deadline: said.deadline,
        asker: Asker::Client(causal),
        progress: Progress::None,
        body: body.unwrap_or_default(),
    })
}

/// Where a part of a body is in it.
fn place_in(body: &[u8], part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
    let end = start.checked_add(part.len())?;
    (end <= body.len()).then_some(start..end)
}

/// Tells a client what came of its request.
pub fn answer(request: &KeyRequest, node: &Node, result: Result<Outcome, Error>) -> Answer {
    let (method, causal) = (&request.method(), request.causal());
    if let Asker::V1(wanted) = &request.asker {
        return match result {
            Ok(outcome) => {
                let (age, left) = (outcome.age, outcome.left());
                with_left(with_age(v1::done(method, outcome, wanted.as_deref()), age), left)
            }
            Err(error) => Answer::error(&error, method, Interface::V1),
        };
    }
    match result {
        Ok(outcome) => done(method, outcome, causal),
        // The owner has judged the request, and is named: it may not have heard yet that the limits were raised.
        Err(error @ (Error::KeyTooLong { .. } | Error::TooLarge(_) | Error::OtherRequest)) => {
            Answer::error(&error, method, &more_fields(node.owner(&request.key).address(), causal))
        }
        // Nobody of the shard served it, so nobody is named.
        Err(error) => Answer::error(&error, method, &more_fields(None, causal)),
    }
}

/// Whether a request's query says that what is read may be a little old.
///
/// # Errors
/// [`Error::BadRequest`] where it asks for something else: whoever does shall not take what it gets for that.
fn wants_stale(query: &str) -> Result<bool, Error> {
    let mut wanted = query.split('&').filter_map(|parameter| match parameter.split_once('=') {
        Some(("consistency", value)) => Some(value),
        None if parameter == "consistency" => Some(""),
        _ => None,
    });
    wanted.try_fold(false, |_, value| match value {
        STALE => Ok(true),
        other => Err(Error::BadRequest(format!(
            "consistency is '{other}': allowed is {STALE}; without it a read sees every write that was acknowledged before"
        ))),
    })
}

/// The limits by which a request is judged. A node that is no member is the last to be told that they were raised: it looks for news
/// before it refuses what may be over those that it knows.
fn limits_for(node: &Node, job: &Job, encoded: usize) -> Limits {
    let known = node.limits();
    let body = match job.arrival.framing {
        Framing::Buffered(length) | Framing::OnItsWay { length: Some(length), .. } => length,
        Framing::OnItsWay { length: None, .. } => usize::MAX,
        Framing::Empty | Framing::Refused { .. } => 0,
    };
    if fits(known, encoded, body) {
        return known;
    }
    host::run(node.catch_up());
    node.limits()
}

/// Whether no key of so many bytes, escaped, and no body of so many can be beyond the limits.
fn fits(limits: Limits, encoded: usize, body: usize) -> bool {
    encoded <= limits.max_key_length && body <= limits.max_value_length
}

fn read_body(node: &Node, job: &mut Job, limits: Limits, head: Vec<u8>) -> Result<BodyBytes, Error> {
    let allowed = limits.max_value_length;
    let around = match job.arrival.interface() {
        Interface::Classic => ENVELOPE,
        Interface::V1 => 0,
    };
    job.read_body_behind(head, Limit { bytes: allowed + around, allowed }, &node.budget)
}

/// Checks the length of a key.
///
/// # Errors
/// [`Error::KeyTooLong`].
pub fn check_key(limits: Limits, key: &[u8]) -> Result<(), Error> {
    let limit = limits.max_key_length;
    if key.len() > limit { Err(Error::KeyTooLong { limit }) } else { Ok(()) }
}

fn operation<'a>(
    limits: Limits,
    method: &Method,
    payload: &Result<Payload<'a>, Error>,
) -> Result<Operation<'a>, Error> {
    let operation = match method {
        Method::Get => Operation::GET,
        Method::Delete => Operation::DELETE,
        Method::Put => {
            let payload = payload.as_ref().map_err(Clone::clone)?;
            payload.causal_context()?;
            let value = payload.value.ok_or(Error::ValueMissing)?.as_bytes();
            check_length(limits, value)?;
            return Ok(Operation::put(value));
        }
        _ => return Err(Error::MethodNotAllowed(Route::Key.allow())),
    };
    // A GET or DELETE may have any body. Only one that cannot be read, or claims a context that is none, is refused.
    match payload {
        Ok(payload) => payload.causal_context().map(|_| operation),
        Err(Error::BadRequest(_)) => Ok(operation),
        Err(error) => Err(error.clone()),
    }
}

/// Checks the length of a value, without what is stored beside it.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn check_length(limits: Limits, stored: &[u8]) -> Result<(), Error> {
    let allowed = limits.max_value_length;
    if value::length(stored) > allowed { Err(too_large(allowed)) } else { Ok(()) }
}

/// The id of a write that the client has named by `Idempotency-Key`: sent again with the same name, it is done once. The id is a hash of
/// name and key, so that the name stands for another request on another key. What the request says is the fingerprint.
fn named(name: &str, key: &[u8], operation: Operation, stated: Option<&Stated>) -> Option<RequestId> {
    named_by(&[name.as_bytes(), key], operation, stated)
}

/// The same of a line of a batch, whose name stands for another request on each of its lines.
pub fn named_line(
    name: &str,
    line: usize,
    key: &[u8],
    operation: Operation,
    stated: Option<&Stated>,
) -> Option<RequestId> {
    named_by(&[name.as_bytes(), key, &(line as u64).to_le_bytes()], operation, stated)
}

fn named_by(name: &[&[u8]], operation: Operation, stated: Option<&Stated>) -> Option<RequestId> {
    let (method, value) = match operation.action {
        Action::Get => return None,
        Action::Put(value) => (&b"PUT"[..], value),
        Action::Delete => (&b"DELETE"[..], &b""[..]),
        Action::Touch => (&b"PATCH"[..], &b""[..]),
    };
    let id = hash_of(name);
    let (stated, ttl) = (stated.map(Stated::fingerprint), operation.ttl.map(|ttl| ttl.to_string()));
    let parts = [Some(method), Some(value), stated.as_deref(), ttl.as_ref().map(String::as_bytes)];
    // A condition begins with a byte that is no digit.
    let fingerprint = hash_of(&parts.into_iter().flatten().collect::<Vec<_>>()).h1;
    Some(RequestId::Timed { id: id.as_u128(), fingerprint })
}

fn hash_of(parts: &[&[u8]]) -> Hash128 {
    let mut hasher = SipHasher24::new();
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish128()
}

/// The versions of this cluster that a client's condition names.
pub fn versions(node: &Node, stated: &Stated) -> Result<Condition, Error> {
    let serving_state = node.serving_state();
    let serving = serving_state
        .serving()
        .map_err(|error| Error::Unavailable { reason: error.to_string(), applied: Applied::No })?;
    Ok(stated.within(serving.tags))
}

/// The fields that an answer has beyond its own, each with a comma before it.
fn more_fields(address: Option<&Address>, causal: Option<&[u8]>) -> String {
    let mut more = String::new();
    if let Some(address) = address {
        let _ = write!(more, ",\"address\":\"{address}\"");
    }
    if let Some(causal) = causal {
        // It was read as JSON, which is UTF-8.
        let _ = write!(more, ",\"causal-context\":{}", String::from_utf8_lossy(causal));
    }
    more
}

fn done(method: &Method, outcome: Outcome, causal: Option<&[u8]>) -> Answer {
    let more = more_fields(outcome.by.as_ref(), causal);
    let (tag, age, left) = (outcome.tag(), outcome.age, outcome.left());
    let answer = match outcome.done {
        Done::Wrote(Written { outcome, .. }) => match outcome {
            WriteOutcome::Added => said(201, "{\"message\":\"Added successfully\",\"replaced\":false", &more),
            WriteOutcome::Updated => {
                said(200, "{\"message\":\"Updated successfully\",\"replaced\":true", &more)
            }
            WriteOutcome::Deleted => {
                said(200, "{\"doesExist\":true,\"message\":\"Deleted successfully\"", &more)
            }
            WriteOutcome::Absent => absent(method, &more),
            WriteOutcome::Unmet => Answer::error(&Error::Unmet, method, &more),
        },
        Done::Read(Some(value)) => {
            found(value, &more).unwrap_or_else(|error| Answer::error(&error, method, &more))
        }
        Done::Read(None) => absent(method, &more),
        Done::Unread(Unread::Unchanged, _) => Answer::json(304, &b""[..]),
        Done::Unread(Unread::Unmet, _) => Answer::error(&Error::Unmet, method, &more),
    };
    let answer = with_left(with_age(answer, age), left);
    match tag {
        Some(tag) => answer.with(ETAG, tag),
        None => answer,
    }
}

/// A value in its envelope: JSON as it is, and anything else in base64.
fn found(value: Value, more: &str) -> Result<Answer, Error> {
    let is_typed = value::is_typed(value.as_bytes());
    let content = Content::of(value.as_bytes()).map_err(|malformed| {
        log::error!("what is stored cannot be read: {malformed}");
        Error::Internal
    })?;
    let part = content.place;
    let (before, coding, end) =
        if is_typed { (FOUND_BYTES, Coding::Base64, "\"") } else { (FOUND, Coding::Plain, "") };
    let after = [end, more, "}"].concat();
    let body = Body::Value { before, value, part, coding, after };
    let answer = Answer { body, ..Answer::json(200, &b""[..]) };
    Ok(if is_typed { answer.with(ENCODING_HEADER, "base64") } else { answer })
}

/// An answer whose object goes on with more fields.
fn said(status: u16, body: &str, more: &str) -> Answer {
    Answer::json(status, [body, more, "}"].concat().into_bytes())
}

/// Says how old what was read may be, where any replica might answer.
pub fn with_age(answer: Answer, age: Option<Duration>) -> Answer {
    match age {
        Some(age) => answer.with(STALENESS_HEADER, age.as_millis().to_string()),
        None => answer,
    }
}

/// Says how much is left of the time to live of what was read, if it has one.
pub fn with_left(answer: Answer, left: Option<Ttl>) -> Answer {
    match left {
        Some(left) => answer.with(TTL_HEADER, left.to_string()),
        None => answer,
    }
}

fn absent(method: &Method, more: &str) -> Answer {
    Answer::error(&Error::Absent, method, more)
}
