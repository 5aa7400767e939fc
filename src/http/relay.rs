//! A follower passes everything on to its main, unchanged, and checks nothing itself.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use tiny_http::{Method, Request};
use ureq::http::{HeaderName, HeaderValue, Response, request};
use ureq::{Body as PeerBody, SendBody};

use super::answer::{Answer, Body};
use super::body::{self, BodyBytes, Limit, Paced};
use super::dispatch::{Arrival, Job};
use super::framing::Framing;
use super::payload;
use super::routes::{self, Route};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::node::state::Node;
use crate::peers::client::{Patience, Peer, read_body};
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::wire;

/// Bodies up to this length, in bytes, are held: only then can the main be asked again where that is safe.
/// Longer ones stream.
const HELD_BYTES: usize = 64 * 1024;
const HELD: Limit = Limit { bytes: HELD_BYTES, allowed: HELD_BYTES };
/// A longer body is not even begun: nobody could drain what the main refuses.
const LONGEST_STREAM: usize = 1 << 30;
/// View changes and audits are waited for as long as a living main may be silent.
const LONGEST_ANSWER: Duration = Duration::from_mins(1);
/// A request that has come through so many followers goes round in a circle.
const MOST_HOPS: usize = 8;

/// Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1), and those that are
/// made anew for the next one.
const OF_THE_CONNECTION: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "expect",
    "host",
];

/// The main's answer to a request.
pub fn answer(node: &Node, job: &mut Job) -> Answer {
    let main = node.main().expect("only a follower passes on");
    let method = job.arrival.request.method().clone();
    let mut held = BodyBytes::default();
    relayed(node, job, &main, &mut held).unwrap_or_else(|error| {
        // The one thing that the follower reads in a body: an answer of its own has to give the context back, too.
        Answer::error(&error, &method, &payload::causal_field(&held.bytes))
    })
}

fn relayed(node: &Node, job: &mut Job, main: &Peer, held: &mut BodyBytes) -> Result<Answer, Error> {
    let hops = next_hops(&job.arrival, &node.trace)?;
    let onward = Onward { target: target(job.arrival.path(), job.arrival.query()), hops };
    let patience = node.request_timeout;
    let response = match job.arrival.framing.clone() {
        Framing::OnItsWay { length, .. } if length.is_none_or(|length| length > HELD_BYTES) => {
            if length.is_some_and(|length| length > LONGEST_STREAM) {
                return Err(Error::TooLarge(format!(
                    "The body is too large: allowed are {LONGEST_STREAM} bytes"
                )));
            }
            stream(job, main, &onward, length, Patience::Streaming(patience))?
        }
        _ => {
            *held = job.read_body(HELD, &node.budget)?;
            let is_long =
                matches!(routes::find(job.arrival.path(), true), Ok((Route::ViewChange | Route::Audit, _)));
            // The limit is one for requests about keys. Others may take as long as the main lives.
            let patience = if is_long { LONGEST_ANSWER } else { patience };
            hold(&job.arrival.request, main, &onward, &held.bytes, Deadline::after(job.complete, patience))?
        }
    };
    take_over(response)
}

/// What is the same for each try.
struct Onward {
    target: String,
    hops: String,
}

impl Onward {
    fn request(&self, request: &Request, main: &Peer) -> Result<request::Builder, Error> {
        let method = request.method().as_str().parse().map_err(|_| bad("The method is not valid"))?;
        let mut onward = main.request(method, &self.target).header(wire::HOP_HEADER, &self.hops);
        for header in request.headers() {
            let name = header.field.as_str().as_str();
            if is_of_the_connection(name) || header.field.equiv(wire::HOP_HEADER) {
                continue;
            }
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| bad("The name of a header is not valid"))?;
            let value = HeaderValue::from_str(header.value.as_str());
            onward = onward.header(name, value.map_err(|_| bad("The value of a header is not valid"))?);
        }
        Ok(onward)
    }
}

fn bad(text: &str) -> Error {
    Error::BadRequest(text.to_owned())
}

fn is_of_the_connection(name: &str) -> bool {
    OF_THE_CONNECTION.iter().any(|header| header.eq_ignore_ascii_case(name))
}

/// Passes a body on while it comes in.
fn stream(
    job: &mut Job,
    main: &Peer,
    onward: &Onward,
    length: Option<usize>,
    patience: Patience,
) -> Result<Response<PeerBody>, Error> {
    let mut request = onward.request(&job.arrival.request, main)?;
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    let watch = job.ticket.watch();
    let paced = Paced::new(job.arrival.request.as_reader(), Some(watch));
    let mut reader = Counted { reader: paced, left: length, ended: false, failed: None };
    let request =
        request.body(SendBody::from_reader(&mut reader)).map_err(|_| bad("The path is not valid"))?;
    let response = main.exchange(request, patience);
    let (read, failed) = (reader.ended || reader.left == Some(0), reader.failed.take());
    job.body_was_read = read;
    // What goes wrong with the client's body is no fault of the main, which refuses a body that is cut short.
    match failed {
        Some(error) => Err(error),
        None => response.map_err(|error| not_passed_on(&error)),
    }
}

/// Passes a body on that is held. A GET that met a connection which broke is asked once more: the connection may
/// have been idle, and reading twice does no harm. A write is never sent twice.
fn hold(
    request: &Request,
    main: &Peer,
    onward: &Onward,
    held: &[u8],
    deadline: Deadline,
) -> Result<Response<PeerBody>, Error> {
    if deadline.is_over() {
        let reason = "the request waited too long for a worker".to_owned();
        return Err(Error::Unavailable { reason, applied: Applied::No });
    }
    let patience = Patience::Until(deadline);
    let ask = || -> Result<_, Error> {
        let builder = onward.request(request, main)?;
        let invalid = |_| bad("The path is not valid");
        // Without a length, ureq would send an empty PUT in chunks, and the main would have to wait for their end.
        let takes_body = !matches!(request.method(), Method::Get | Method::Head | Method::Delete);
        Ok(if held.is_empty() && !takes_body {
            main.exchange(builder.body(SendBody::none()).map_err(invalid)?, patience)
        } else {
            main.exchange(builder.header("content-length", held.len()).body(held).map_err(invalid)?, patience)
        })
    };
    let is_safe = matches!(request.method(), Method::Get | Method::Head);
    let response = match ask()? {
        Err(error) if is_safe && error.kind == NoAnswerKind::Broken => ask()?,
        response => response,
    };
    response.map_err(|error| not_passed_on(&error))
}

fn not_passed_on(error: &NoAnswer) -> Error {
    let (reason, applied) = (error.reason.clone(), error.kind.applied());
    match error.kind {
        NoAnswerKind::NotSent | NoAnswerKind::Silent | NoAnswerKind::Broken => {
            Error::MainDown { reason, applied }
        }
        NoAnswerKind::NoTime
        | NoAnswerKind::Late
        | NoAnswerKind::Senseless
        | NoAnswerKind::OtherSecret
        | NoAnswerKind::Full
        | NoAnswerKind::Elsewhere => Error::Unavailable { reason, applied },
    }
}

/// Makes the main's answer ours.
fn take_over(response: Response<PeerBody>) -> Result<Answer, Error> {
    let (parts, body) = response.into_parts();
    let mut answer = Answer::json(parts.status.as_u16(), &b""[..]);
    for (name, value) in &parts.headers {
        let Ok(value) = value.to_str() else { continue };
        match name.as_str() {
            "content-type" => answer.content_type = Cow::Owned(value.to_owned()),
            "date" => {}
            name if is_of_the_connection(name) => {}
            name => answer.headers.push((Cow::Owned(name.to_owned()), Cow::Owned(value.to_owned()))),
        }
    }
    let length = body.content_length();
    answer.body = if length.is_some_and(|length| length <= HELD_BYTES as u64) {
        // Read before the answer begins, so that a main which breaks off in the middle is still told to the client.
        let held =
            read_body(Response::new(body), HELD_BYTES as u64).map_err(|error| not_passed_on(&error))?;
        Body::Bytes(Cow::Owned(held))
    } else {
        let reader = body.into_with_config().limit(u64::MAX).reader();
        Body::Stream { reader: Box::new(reader), length }
    };
    Ok(answer)
}

/// The trace of followers to send on.
fn next_hops(arrival: &Arrival, own: &str) -> Result<String, Error> {
    let Some(trace) = arrival.hops() else { return Ok(own.to_owned()) };
    let hops: Vec<&str> = trace.split(',').collect();
    if hops.len() >= MOST_HOPS || hops.contains(&own) {
        return Err(Error::Loop);
    }
    Ok(format!("{trace},{own}"))
}

/// The request target in origin form, with the characters encoded that a client may send raw but a URI does not have. It means the
/// same key.
fn target(path: &str, query: Option<&str>) -> String {
    let mut target = String::with_capacity(path.len() + query.map_or(0, |query| 1 + query.len()));
    encode(path, b"#<>`", &mut target);
    if let Some(query) = query {
        target.push('?');
        encode(query, b"#<>\"", &mut target);
    }
    target
}

fn encode(part: &str, refused: &[u8], target: &mut String) {
    use std::fmt::Write;
    for byte in part.bytes() {
        if byte.is_ascii_graphic() && !refused.contains(&byte) {
            target.push(byte.into());
        } else {
            let _ = write!(target, "%{byte:02X}");
        }
    }
}

/// Knows when a body has come to its end, and stops there even where tiny_http does not.
struct Counted<'a> {
    reader: Paced<'a>,
    left: Option<usize>,
    ended: bool,
    failed: Option<Error>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = self.left.unwrap_or(buffer.len()).min(buffer.len());
        let read = match self.reader.read(&mut buffer[..most]) {
            // ureq would take it for the end, and ask for the missing bytes for ever.
            Ok(0) if self.left.is_some_and(|left| left > 0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        match &read {
            Ok(count) => {
                self.left = self.left.map(|left| left - count);
                self.ended |= *count == 0;
            }
            Err(error) => self.failed = Some(body::broken(error)),
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_stays_the_same_key() {
        let table = [
            ("/kv-store/keys/a/../b//%2F", Some("x=%20"), "/kv-store/keys/a/../b//%2F?x=%20"),
            ("/kvs/keys/a#b", None, "/kvs/keys/a%23b"),
            ("/kvs/keys/<\"{|}`^\\>[]", Some("<\"#>"), "/kvs/keys/%3C\"{|}%60^\\%3E[]?%3C%22%23%3E"),
            ("/kvs/keys/kvs/kv1", None, "/kvs/keys/kvs/kv1"),
        ];
        for (path, query, wanted) in table {
            assert_eq!(target(path, query), wanted);
        }
    }
}
