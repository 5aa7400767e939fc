//! What other nodes ask.

use std::sync::Arc;

use serde::Serialize;
use tiny_http::{Method, Request};

use super::answer::{Answer, Body};
use super::body::{self, Limit};
use super::key_handlers::{check_key, check_value};
use super::lanes::Job;
use super::payload::is_json;
use super::routes::{Route, decode_key};
use super::server::Server;
use crate::error::Error;
use crate::model::hash::KeyHash;
use crate::node::keys::{Operation, Outcome};
use crate::wire::{self, Count, Refusal};

/// Answers another node. Nothing is passed on from here.
pub fn answer(server: &Arc<Server>, job: &mut Job, route: &Route) -> Answer {
    let method = job.arrival.request.method().clone();
    let answered = match (route, &method) {
        (Route::NodeKey(encoded), Method::Get | Method::Put | Method::Delete) => {
            key(server, job, encoded, &method)
        }
        (Route::NodeHello, Method::Get) => Ok(json(&server.node.hello())),
        (Route::NodeCount, Method::Get) => count(server, &job.arrival.request),
        _ => Err(Error::MethodNotAllowed(route.allow())),
    };
    answered.unwrap_or_else(|error| refusal(&error))
}

fn key(server: &Arc<Server>, job: &mut Job, encoded: &str, method: &Method) -> Result<Answer, Error> {
    let view = view_of(&job.arrival.request);
    // Refused before the body is read: a large one would be read for nothing.
    server.node.check_view(view.as_deref())?;
    let key = decode_key(encoded)?;
    check_key(server, &key)?;
    let allowed = server.node.limits.max_value_length;
    let limit = Limit { bytes: allowed, allowed };
    let body = body::read(&mut job.arrival.request, &job.arrival.framing, limit, &server.budget);
    job.body_was_read = body.is_ok();
    let body = body?;
    let operation = match method {
        Method::Put => {
            check_value(server, &body.bytes)?;
            if !is_json(&body.bytes) {
                return Err(Error::BadRequest("The body is not one JSON value".to_owned()));
            }
            Operation::Put(&body.bytes)
        }
        Method::Delete => Operation::Delete,
        _ => Operation::Get,
    };
    let Outcome::Done(result, value) =
        server.node.run_forwarded(view.as_deref(), KeyHash::of(&key), &key, operation)?;
    let mut answer = Answer::json(200, &b""[..]).with(wire::RESULT_HEADER, result.as_str());
    if let Some(value) = value {
        answer.body = Body::Value { before: "", value, after: String::new(), permit: None };
    }
    Ok(answer)
}

fn count(server: &Server, request: &Request) -> Result<Answer, Error> {
    server.node.check_view(view_of(request).as_deref())?;
    Ok(json(&Count { pairs: server.node.count() }))
}

fn view_of(request: &Request) -> Option<String> {
    let header = request.headers().iter().find(|header| header.field.equiv(wire::VIEW_HEADER));
    header.map(|header| header.value.to_string())
}

fn json(body: &impl Serialize) -> Answer {
    Answer::json(200, serde_json::to_vec(body).expect("our own types are JSON"))
}

/// An error in the form that nodes use among themselves: the sender decides what its client is told.
fn refusal(error: &Error) -> Answer {
    let reason = match error {
        Error::Unavailable { reason, .. } => reason.clone(),
        other => other.to_string(),
    };
    let answer = Answer::error(error, &Method::Put, "");
    let body = serde_json::to_vec(&Refusal { error: reason }).expect("our own types are JSON");
    Answer { body: Body::Bytes(body.into()), ..answer }
}
