//! Key operations of clients.

use std::fmt::Write;
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip128::{Hash128, Hasher128, SipHasher24};
use tiny_http::Method;

use super::answer::{Answer, Body};
use super::body::{BodyBytes, Limit};
use super::framing::Framing;
use super::lanes::Job;
use super::payload::Payload;
use super::routes::{Route, decode_key};
use super::server::{Handled, Server};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::limits::Limits;
use crate::model::shard::RequestId;
use crate::node::group_ops::Told;
use crate::node::host;
use crate::node::keys::{Operation, Outcome, Owner, Request};
use crate::node::state::Node;
use crate::wire::{KeyResult, STALE, STALENESS_HEADER};

/// What a body may have beyond the value, in bytes: the names, other fields, blanks.
const ENVELOPE: usize = 64 * 1024;

/// By this header a client names a write, so that sent again it is done once.
const IDEMPOTENCY_HEADER: &str = "Idempotency-Key";

/// Answers a request about a key. The order of the checks is part of the contract: framing (checked before),
/// key length, size, JSON, value.
pub fn answer(server: &Arc<Server>, job: &mut Job, route: &Route, encoded: &str) -> Handled {
    let method = job.arrival.request.method().clone();
    let limits = limits_for(&server.office.node, job, encoded);
    let body = read_body(server, job, limits);
    let payload = match &body {
        Ok(body) => Payload::parse(&body.bytes),
        Err(error) => Err(error.clone()),
    };
    let causal = payload.as_ref().ok().and_then(|payload| payload.causal_context().ok().flatten());
    let key = decode_key(encoded);
    let owner = match &key {
        Ok(key) => server.office.node.owner(key),
        Err(_) => Owner::Here,
    };
    let more = |address: Option<&Address>| more_fields(address, causal);
    let checked = key.and_then(|key| {
        check_key(limits, &key)?;
        let operation = operation(limits, &method, route, &payload)?;
        let is_stale = wants_stale(job.arrival.query().unwrap_or_default())? && method == Method::Get;
        Ok((key, operation, is_stale))
    });
    let (key, operation, is_stale) = match checked {
        Ok(checked) => checked,
        // Overload is this node's own affair; anything else the owner would have said, too.
        Err(error @ Error::Overloaded(_)) => {
            return Handled::Answer(Answer::error(&error, &method, &more(None)));
        }
        Err(error) => return Handled::Answer(Answer::error(&error, &method, &more(owner.address()))),
    };
    let deadline = Deadline::after(job.complete, server.office.node.request_timeout);
    if is_stale {
        return Handled::Answer(match host::run(server.office.node.run_stale(&key, deadline)) {
            Ok((outcome, age)) => {
                let more = more(outcome.by.as_ref());
                done(&method, outcome, more).with(STALENESS_HEADER, age.as_millis().to_string())
            }
            Err(error) => Answer::error(&error, &method, &more(None)),
        });
    }
    let named = named(job, &key, operation);
    if job.may_ask()
        && server.has_room_in_log()
        && let Some(asking) = server.office.node.asking(&key, operation, (named, None), deadline)
    {
        if let Ok(body) = body {
            job.keep(body);
        }
        return Handled::InLog(asking);
    }
    Handled::Answer(match run(server, Request::new(&key, operation, named, deadline), job.take_told()) {
        Ok(outcome) => {
            let more = more(outcome.by.as_ref());
            done(&method, outcome, more)
        }
        // The owner has not heard yet that the limits were raised: it has judged the request, and is named.
        Err(error @ (Error::KeyTooLong { .. } | Error::TooLarge(_))) => {
            Answer::error(&error, &method, &more(owner.address()))
        }
        // Nobody of the shard served it, so nobody is named.
        Err(error) => Answer::error(&error, &method, &more(None)),
    })
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
fn limits_for(node: &Node, job: &Job, encoded: &str) -> Limits {
    let known = node.limits();
    let body = match job.arrival.framing {
        Framing::Buffered(length) | Framing::OnItsWay { length: Some(length), .. } => length,
        Framing::OnItsWay { length: None, .. } => usize::MAX,
        Framing::Empty | Framing::Refused { .. } => 0,
    };
    if encoded.len() <= known.max_key_length && body <= known.max_value_length {
        return known;
    }
    host::run(node.catch_up());
    node.limits()
}

fn read_body(server: &Server, job: &mut Job, limits: Limits) -> Result<BodyBytes, Error> {
    let allowed = limits.max_value_length;
    let limit = Limit { bytes: allowed + ENVELOPE, allowed };
    job.read_body(limit, &server.office.node.budget)
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
    route: &Route,
    payload: &Result<Payload<'a>, Error>,
) -> Result<Operation<'a>, Error> {
    let operation = match method {
        Method::Get => Operation::Get,
        Method::Delete => Operation::Delete,
        Method::Put => {
            let payload = payload.as_ref().map_err(Clone::clone)?;
            payload.causal_context()?;
            let value = payload.value.ok_or(Error::ValueMissing)?.as_bytes();
            check_value(limits, value)?;
            return Ok(Operation::Put(value));
        }
        _ => return Err(Error::MethodNotAllowed(route.allow())),
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
fn named(job: &Job, key: &[u8], operation: Operation) -> Option<RequestId> {
    let (method, value) = match operation {
        Operation::Get => return None,
        Operation::Put(value) => (&b"PUT"[..], value),
        Operation::Delete => (&b"DELETE"[..], &b""[..]),
    };
    let headers = job.arrival.request.headers();
    let named = headers.iter().find(|header| header.field.equiv(IDEMPOTENCY_HEADER))?;
    let id = hash_of([named.value.as_str().as_bytes(), key]);
    let fingerprint = hash_of([method, value]).h1;
    Some(RequestId::Timed { id: id.as_u128(), fingerprint })
}

fn hash_of(parts: [&[u8]; 2]) -> Hash128 {
    let mut hasher = SipHasher24::new();
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish128()
}

fn run(server: &Server, mut request: Request, told: Option<Told>) -> Result<Outcome, Error> {
    // What came of it already is told, however late.
    if told.is_none() && request.is_late() {
        let reason = "the request waited too long for a worker".to_owned();
        return Err(Error::Unavailable { reason, applied: Applied::No });
    }
    host::run(server.office.node.run(&mut request, told))
}

/// The fields that an answer has beyond its own, each with a comma before it.
fn more_fields(address: Option<&Address>, causal: Option<&str>) -> String {
    let mut more = String::new();
    if let Some(address) = address {
        let _ = write!(more, ",\"address\":\"{address}\"");
    }
    if let Some(causal) = causal {
        let _ = write!(more, ",\"causal-context\":{causal}");
    }
    more
}

fn done(method: &Method, Outcome { result, value, .. }: Outcome, more: String) -> Answer {
    let (status, body) = match result {
        KeyResult::Added => (201, "{\"message\":\"Added successfully\",\"replaced\":false"),
        KeyResult::Updated => (200, "{\"message\":\"Updated successfully\",\"replaced\":true"),
        KeyResult::Deleted => (200, "{\"doesExist\":true,\"message\":\"Deleted successfully\""),
        KeyResult::Found => (200, "{\"doesExist\":true,\"message\":\"Retrieved successfully\",\"value\":"),
        KeyResult::OtherRequest => return Answer::error(&Error::OtherRequest, method, &more),
        _ => {
            return absent(method, &more);
        }
    };
    let after = more + "}";
    match value {
        Some(value) => {
            let body = Body::Value { before: body, value, after };
            Answer { body, ..Answer::json(status, &b""[..]) }
        }
        None => Answer::json(status, [body.as_bytes(), after.as_bytes()].concat()),
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
