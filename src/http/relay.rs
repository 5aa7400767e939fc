//! A follower passes everything on to its main, unchanged, and checks nothing itself.

use std::borrow::Cow;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use tiny_http::{Header, Method, Request};
use ureq::http::{HeaderName, HeaderValue, Response, StatusCode, request};
use ureq::{Body as PeerBody, SendBody};

use super::answer::Answer;
use super::answer_body::Body;
use super::body::{self, BodyBytes, Limit, Paced};
use super::dispatch::{Arrival, Job};
use super::error_form::ErrorForm;
use super::framing::Framing;
use super::payload;
use super::routes::{self, Interface, Route};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::node::state::Node;
use crate::peers::client::{Patience, Peer, read_body};
use crate::peers::multiplex::{self, Connection};
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::wire::relayed::{self, Given};
use crate::wire::{self, frames};

/// Bodies up to this length, in bytes, are held: only then can the main be asked again where that is safe.
/// Longer ones stream.
const HELD_BYTES: usize = 64 * 1024;
const HELD: Limit = Limit { bytes: HELD_BYTES, allowed: HELD_BYTES };
/// A longer body is not even begun: nobody could drain what the main refuses.
const LONGEST_STREAM: usize = 1 << 30;
/// View changes and audits are waited for as long as a living main may be silent.
const LONGEST_ANSWER: Duration = Duration::from_mins(1);
/// A frame has so many bytes before the body, mostly.
const FRAME_BYTES: usize = 512;
/// What a follower asks is about no group that its main could leave.
const NO_GROUP: u64 = 0;
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

/// A request that is passed on, and what is sent.
pub struct Onward {
    /// The request.
    pub job: Box<Job>,
    /// What is sent.
    pub message: Message,
}

/// What is the same however it is sent, and however often.
pub struct Message {
    route: Option<Route>,
    target: String,
    hops: String,
    /// The body; one that is too long to be held is read while it is sent.
    held: Option<BodyBytes>,
}

/// Reads a request that is to be passed on.
///
/// # Errors
/// The answer to one that is not, and the route that is answered for.
pub fn read(node: &Node, job: &mut Job) -> Result<Message, (Option<Route>, Box<Answer>)> {
    let route = routes::find(job.arrival.path(), true).ok().map(|(route, _)| route);
    let method = job.arrival.method().clone();
    let message = next_hops(&job.arrival, &node.trace).and_then(|hops| {
        let target = target(job.arrival.path(), job.arrival.query());
        Ok(Message { route, target, hops, held: read_short(node, job)? })
    });
    let interface = job.arrival.interface();
    message.map_err(|error| (route, Box::new(Answer::error(&error, &method, interface))))
}

/// The body, unless it is too long to be held.
fn read_short(node: &Node, job: &mut Job) -> Result<Option<BodyBytes>, Error> {
    match job.arrival.framing {
        Framing::OnItsWay { length, .. } if length.is_none_or(|length| length > HELD_BYTES) => {
            if length.is_some_and(|length| length > LONGEST_STREAM) {
                return Err(Error::TooLarge(format!(
                    "The body is too large: allowed are {LONGEST_STREAM} bytes"
                )));
            }
            Ok(None)
        }
        _ => job.read_body(HELD, &node.budget).map(Some),
    }
}

impl Onward {
    /// The route that it came by.
    pub fn route(&self) -> Option<Route> {
        self.message.route
    }

    /// The answer of the follower itself: the one thing that it reads in a body is the context, which that has to give back, too.
    fn failed(&self, error: &Error) -> Answer {
        let method = self.job.arrival.method();
        if self.job.arrival.interface() == Interface::V1 {
            return Answer::error(error, method, ErrorForm::Problem);
        }
        let held = self.message.held.as_ref().map_or(&[][..], |held| &held.bytes);
        Answer::error(error, method, &payload::causal_field(held))
    }

    /// Whether it may be sent twice.
    fn is_safe(&self) -> bool {
        matches!(self.job.arrival.request.method(), Method::Get | Method::Head)
    }

    /// How long the answer may take: one that may be of any length streams.
    fn patience(&self, node: &Node) -> Patience {
        match self.message.route {
            Some(Route::V1List | Route::V1Export) => Patience::Streaming(node.request_timeout),
            _ => Patience::Until(self.deadline(node)),
        }
    }

    /// When it has to be answered. The limit is one for requests about keys. Others may take as long as the main lives.
    fn deadline(&self, node: &Node) -> Deadline {
        let is_long = matches!(self.message.route, Some(Route::ViewChange | Route::Audit));
        Deadline::after(self.job.complete, if is_long { LONGEST_ANSWER } else { node.request_timeout })
    }
}

/// A request that can be passed on together with others.
pub struct Question {
    connection: Arc<Connection>,
    main: Arc<Peer>,
    deadline: Deadline,
    frame: Vec<u8>,
}

/// What to ask the main on the connection for many requests; nothing where there is none, or where that is for shorter ones and for those about keys.
pub fn question(node: &Node, onward: &Onward) -> Option<Question> {
    let request = &onward.job.arrival.request;
    let method = match request.method() {
        Method::Get => relayed::Method::Get,
        Method::Put => relayed::Method::Put,
        Method::Delete => relayed::Method::Delete,
        _ => return None,
    };
    let is_of_key = onward.message.route.is_some_and(Route::is_of_client_key);
    let body = &onward.message.held.as_ref().filter(|_| is_of_key)?.bytes;
    let deadline = onward.deadline(node);
    if body.len() > relayed::LONGEST_BODY || deadline.is_over() {
        return None;
    }
    let main = node.main()?;
    let connection = main.relay_connection()?;
    let passed_on = |header: &&Header| is_passed_on(header);
    let headers = request.headers().iter().filter(passed_on);
    let headers = headers.map(|header| (header.field.as_str().as_str(), header.value.as_str()));
    let question = relayed::Question {
        left_ms: u64::try_from(deadline.left().as_millis()).unwrap_or(u64::MAX),
        method,
        target: &onward.message.target,
        headers: headers.chain([(wire::HOP_HEADER, onward.message.hops.as_str())]).collect(),
        body,
    };
    let mut frame = Vec::with_capacity(FRAME_BYTES + body.len());
    let is_one = question.encode(0, &mut frame) && frame.len() <= frames::LONGEST;
    is_one.then_some(Question { connection, main, deadline, frame })
}

impl Question {
    /// Sends it, and has somebody told what came of it: by the thread that reads the answers of the main, which is held up for as long as that takes.
    ///
    /// # Errors
    /// Gives back who was to be told where the connection has ended meanwhile: nothing was sent.
    pub fn send<T: Send + 'static>(
        self,
        told: T,
        tell: impl FnOnce(T, multiplex::Answer) + Send + 'static,
    ) -> Result<(), T> {
        let Self { connection, main, deadline, frame } = self;
        let tell = move |told, answer: multiplex::Answer| {
            main.note(answer.as_ref().err());
            tell(told, answer);
        };
        connection.ask_and(NO_GROUP, deadline, frame, (told, tell))
    }
}

/// Whether it was sent, for all that is known.
pub fn was_sent(told: &multiplex::Answer) -> bool {
    told.as_ref().err().is_none_or(|error| error.kind.applied() != Applied::No)
}

/// What came of that; nothing where the main is to be asked by HTTP. That is so for a GET, too, whose connection broke: reading twice does no harm.
pub fn conclude(onward: &Onward, told: multiplex::Answer) -> Option<Answer> {
    let frame = match told {
        Ok(frame) => frame,
        Err(error) if error.kind == NoAnswerKind::Broken && onward.is_safe() => return None,
        Err(error) => return Some(onward.failed(&not_passed_on(&error))),
    };
    match relayed::Answer::decode(&frame) {
        Ok(relayed::Answer::Given(given)) => Some(given_by_main(&given)),
        Ok(relayed::Answer::ByHttp) => None,
        Err(error) => {
            let reason = format!("its answer makes no sense: {error}");
            Some(onward.failed(&not_passed_on(&NoAnswer { kind: NoAnswerKind::Senseless, reason })))
        }
    }
}

/// Makes the main's answer ours.
fn given_by_main(given: &Given) -> Answer {
    let mut answer = Answer::json(given.status, given.body.to_vec());
    answer.content_type = Cow::Owned(given.content_type.to_owned());
    let headers = given.headers.iter().filter(|(name, _)| !is_of_the_connection(name));
    let owned =
        |(name, value): &(&str, &str)| (Cow::Owned((*name).to_owned()), Cow::Owned((*value).to_owned()));
    answer.headers = headers.map(owned).collect();
    answer
}

/// The main's answer to a request, by HTTP.
pub fn answer(node: &Node, onward: &mut Onward) -> Answer {
    let main = node.main().expect("only a follower passes on");
    let response = match onward.message.held {
        Some(_) => hold(onward, &main, (onward.deadline(node), onward.patience(node))),
        None => stream(onward, &main, Patience::Streaming(node.request_timeout)),
    };
    let is_head = *onward.job.arrival.request.method() == Method::Head;
    response.and_then(|response| take_over(response, is_head)).unwrap_or_else(|error| onward.failed(&error))
}

impl Message {
    fn request(&self, request: &Request, main: &Peer) -> Result<request::Builder, Error> {
        let method = request.method().as_str().parse().map_err(|_| bad("The method is not valid"))?;
        let mut onward = main.request(method, &self.target).header(wire::HOP_HEADER, &self.hops);
        for header in request.headers().iter().filter(|header| is_passed_on(header)) {
            let name = HeaderName::from_bytes(header.field.as_str().as_str().as_bytes())
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

/// Whether a header of a client goes to the main.
fn is_passed_on(header: &Header) -> bool {
    !is_of_the_connection(header.field.as_str().as_str()) && !header.field.equiv(wire::HOP_HEADER)
}

fn is_of_the_connection(name: &str) -> bool {
    OF_THE_CONNECTION.iter().any(|header| header.eq_ignore_ascii_case(name))
}

/// Passes a body on while it comes in.
fn stream(onward: &mut Onward, main: &Peer, patience: Patience) -> Result<Response<PeerBody>, Error> {
    let Onward { job, message } = onward;
    let length = match job.arrival.framing {
        Framing::OnItsWay { length, .. } => length,
        _ => None,
    };
    let mut request = message.request(&job.arrival.request, main)?;
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
    onward: &Onward,
    main: &Peer,
    (deadline, patience): (Deadline, Patience),
) -> Result<Response<PeerBody>, Error> {
    let (request, message) = (&onward.job.arrival.request, &onward.message);
    let held = message.held.as_ref().map_or(&[][..], |held| &held.bytes);
    if deadline.is_over() {
        let reason = "the request waited too long for a worker".to_owned();
        return Err(Error::Unavailable { reason, applied: Applied::No });
    }
    let ask = || -> Result<_, Error> {
        let builder = message.request(request, main)?;
        let invalid = |_| bad("The path is not valid");
        // Without a length, ureq would send an empty PUT in chunks, and the main would have to wait for their end.
        let takes_body = !matches!(request.method(), Method::Get | Method::Head | Method::Delete);
        Ok(if held.is_empty() && !takes_body {
            main.exchange(builder.body(SendBody::none()).map_err(invalid)?, patience)
        } else {
            main.exchange(builder.header("content-length", held.len()).body(held).map_err(invalid)?, patience)
        })
    };
    let response = match ask()? {
        Err(error) if onward.is_safe() && error.kind == NoAnswerKind::Broken => ask()?,
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

/// Makes the main's answer ours; that to HEAD has the length of what GET would have answered.
pub fn take_over(response: Response<PeerBody>, is_head: bool) -> Result<Answer, Error> {
    let (parts, body) = response.into_parts();
    let mut answer = Answer::empty(parts.status.as_u16());
    for (name, value) in &parts.headers {
        let Ok(value) = value.to_str() else { continue };
        match name.as_str() {
            "content-type" => answer.content_type = Cow::Owned(value.to_owned()),
            "date" => {}
            name if is_of_the_connection(name) => {}
            name => answer.headers.push((Cow::Owned(name.to_owned()), Cow::Owned(value.to_owned()))),
        }
    }
    // Not asked of the body alone: one of length 0 says that it has none.
    let length = parts.headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    if is_head {
        answer.body = Body::Stream { reader: Box::new(std::io::empty()), length };
        return Ok(answer);
    }
    if matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(answer);
    }
    let length = length.or_else(|| body.content_length());
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
///
/// # Errors
/// [`Error::Loop`].
pub fn next_hops(arrival: &Arrival, own: &str) -> Result<String, Error> {
    let Some(trace) = arrival.hops() else { return Ok(own.to_owned()) };
    let hops: Vec<&str> = trace.split(',').collect();
    if hops.len() >= MOST_HOPS || hops.contains(&own) {
        return Err(Error::Loop);
    }
    Ok(format!("{trace},{own}"))
}

/// The request target in origin form, with the characters encoded that a client may send raw but a URI does not have. It means the
/// same key.
pub fn target(path: &str, query: Option<&str>) -> String {
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
    fn what_was_refused_since_too_much_waits_was_not_sent() {
        let answer = |kind| Err(NoAnswer { kind, reason: String::new() });
        for (told, sent) in [
            (Ok(Vec::new()), true),
            (answer(NoAnswerKind::Full), false),
            (answer(NoAnswerKind::NotSent), false),
            (answer(NoAnswerKind::Broken), true),
            (answer(NoAnswerKind::Late), true),
        ] {
            assert_eq!(was_sent(&told), sent, "{told:?}");
        }
    }

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
