//! Key operations of clients.

use std::fmt::Write;
use std::hash::Hasher;
use std::ops::Range;
use std::time::Duration;

use siphasher::sip128::{Hash128, Hasher128, SipHasher24};
use tiny_http::Method;

use super::answer::{Answer, Body};
use super::body::{BodyBytes, Limit};
use super::dispatch::Job;
use super::framing::Framing;
use super::key_request::{Asker, Causal, KeyRequest, Kind, Progress};
use super::payload::Payload;
use super::routes::{self, EncodedKey, Route};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::condition::{Condition, ETAG, IF_MATCH, IF_NONE_MATCH, Stated};
use crate::model::limits::Limits;
use crate::model::shard::{Done, RequestId, Unread, WriteOutcome, Written};
use crate::node::host;
use crate::node::keys::{Action, Operation, Outcome, Owner};
use crate::node::state::Node;
use crate::wire::{STALE, STALENESS_HEADER};

/// What a body may have beyond the value, in bytes: the names, other fields, blanks.
const ENVELOPE: usize = 64 * 1024;

/// By this header a client names a write, so that sent again it is done once.
pub const IDEMPOTENCY_HEADER: &str = "Idempotency-Key";

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
    /// The method.
    pub method: Method,
    /// The query of its target, not decoded, where there is one.
    pub query: Option<&'a str>,
    /// What its headers say that is about keys.
    pub headers: KeyHeaders<'a>,
    /// It is answered by then.
    pub deadline: Deadline,
}

/// The headers that are about keys, by their values.
#[derive(Default)]
pub struct KeyHeaders<'a> {
    /// The name that the client has given the request by [`IDEMPOTENCY_HEADER`].
    name: Option<&'a str>,
    /// The lines of [`IF_MATCH`].
    if_match: Vec<&'a str>,
    /// The lines of [`IF_NONE_MATCH`].
    if_none_match: Vec<&'a str>,
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
    let body = read_body(node, job, limits);
    let headers = job.arrival.request.headers().iter();
    let headers = headers.map(|header| (header.field.as_str().as_str(), header.value.as_str()));
    let said = Said {
        method: job.arrival.method().clone(),
        query: job.arrival.query(),
        headers: KeyHeaders::among(headers),
        deadline: Deadline::after(job.complete, node.request_timeout),
    };
    check(node, said, encoded, limits, body)
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
    may_fit.then(|| check(node, said, encoded, limits, Ok(BodyBytes::small(body.to_vec()))))
}

/// Checks a request. The order of the checks is part of the contract: framing (checked before), key length, size, headers and query, JSON, value.
fn check(
    node: &Node,
    said: Said,
    encoded: EncodedKey,
    limits: Limits,
    body: Result<BodyBytes, Error>,
) -> Result<KeyRequest, Box<Answer>> {
    let method = said.method;
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
        let operation = operation(limits, &method, &payload)?;
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
    };
    // One that was not given is not in the body.
    let causal = context.map(|context| place(context).map_or(Causal::Empty, Causal::Given));
    Ok(KeyRequest {
        key,
        kind,
        condition: condition.map(Box::new),
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

fn read_body(node: &Node, job: &mut Job, limits: Limits) -> Result<BodyBytes, Error> {
    let allowed = limits.max_value_length;
    let limit = Limit { bytes: allowed + ENVELOPE, allowed };
    job.read_body(limit, &node.budget)
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
            check_value(limits, value)?;
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

/// Checks the length of a value.
///
/// # Errors
/// [`Error::TooLarge`].
fn check_value(limits: Limits, value: &[u8]) -> Result<(), Error> {
    let limit = limits.max_value_length;
    if value.len() > limit {
        return Err(Error::TooLarge(format!("The value is too large: allowed are {limit} bytes")));
    }
    Ok(())
}

/// The id of a write that the client has named by `Idempotency-Key`: sent again with the same name, it is done once. The id is a hash of
/// name and key, so that the name stands for another request on another key. What the request says is the fingerprint.
fn named(name: &str, key: &[u8], operation: Operation, stated: Option<&Stated>) -> Option<RequestId> {
    let (method, value) = match operation.action {
        Action::Get => return None,
        Action::Put(value) => (&b"PUT"[..], value),
        Action::Delete => (&b"DELETE"[..], &b""[..]),
    };
    let id = hash_of(&[name.as_bytes(), key]);
    let fingerprint = match stated {
        None => hash_of(&[method, value]),
        Some(stated) => hash_of(&[method, value, &stated.fingerprint()]),
    };
    let fingerprint = fingerprint.h1;
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
fn versions(node: &Node, stated: &Stated) -> Result<Condition, Error> {
    let serving_state = node.serving_state();
    let serving = serving_state
        .serving()
        .map_err(|error| Error::Unavailable { reason: error.to_string(), applied: Applied::No })?;
    Ok(stated.within(serving.tags()))
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
    let (tag, age) = (outcome.tag(), outcome.age);
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
            let before = "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":";
            let body = Body::Value { before, value, after: more + "}" };
            Answer { body, ..Answer::json(200, &b""[..]) }
        }
        Done::Read(None) => absent(method, &more),
        Done::Unread(Unread::Unchanged, _) => Answer::json(304, &b""[..]),
        Done::Unread(Unread::Unmet, _) => Answer::error(&Error::Unmet, method, &more),
    };
    let answer = with_age(answer, age);
    match tag {
        Some(tag) => answer.with(ETAG, tag),
        None => answer,
    }
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

fn absent(method: &Method, more: &str) -> Answer {
    let body = format!(
        "{{\"doesExist\":false,\"error\":\"Key does not exist\",\"message\":\"Error in {method}\"{more}}}"
    );
    let answer = Answer::json(404, body.into_bytes());
    if *method == Method::Delete {
        return answer.with(crate::wire::OUTCOME_HEADER, Applied::No.as_str());
    }
    answer
}
