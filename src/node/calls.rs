//! The program's host: waiting blocks the thread, and other nodes are asked by HTTP, or about keys on the connection for many requests.

use std::borrow::Cow;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Response, StatusCode};
use ureq::{Body, SendBody};

use super::ask::OrderError;
use super::batch::{Part, Replies};
use super::batch_calls;
use super::host::{self, Awaited, Host, Pending, Step};
use super::keys::{Action, NotServed, Onward, Operation, Outcome, Reply, Request, Told, Value};
use super::state::Node;
use super::transport;
use crate::budget::Permit;
use crate::clock::{Deadline, now};
use crate::dice;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::condition::TagSpace;
use crate::model::format;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, Written};
use crate::model::ttl::{TTL_HEADER, Ttl};
use crate::peers::client::{Patience, Peer, complete, read_body};
use crate::peers::multiplex::Connection;
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::threads;
use crate::wire::frames::{self, Answer, Form, Frame, Question, Version};
use crate::wire::orders::Order;
use crate::wire::pairs::Parcel;
use crate::wire::{self, Addressed, Hello, KeyResult, Refusal, Sender, Transfer, listing};

/// A node that does not answer a question about itself within this time counts as not reached.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);
/// A node that does not act by news within this time does so later.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);
/// Answers to questions and orders are small; a longer one is refused.
const ANSWER_BYTES: u64 = 16 << 20;
/// A parcel is as long as its batch, or as one pair.
const PARCEL_BYTES: u64 = (256 << 20) + (16 << 20);
/// A longer value of another node, in bytes, takes part of the memory for large ones.
const LARGE_VALUE: u64 = 64 * 1024;
/// An answer to a key operation without a value is no longer than this.
const SHORT_ANSWER: u64 = 1 << 16;

/// So many shards are asked at the same time for one request; others after them.
const MOST_AT_ONCE: usize = 16;

/// Reaches other nodes, and blocks meanwhile.
pub struct Calls;

impl Host for Calls {
    fn wait<'a>(&'a self, awaited: &'a dyn Awaited, deadline: Deadline) -> Pending<'a, ()> {
        awaited.block(deadline);
        Box::pin(ready(()))
    }

    fn hello<'a>(&'a self, node: &'a Node, of: &'a Address) -> Pending<'a, Result<Hello, NoAnswer>> {
        let peer = node.peers.at(of);
        Box::pin(ready(ask_hello(node, &peer, |question, deadline| peer.ask_shortly(question, deadline))))
    }

    fn order<'a>(
        &'a self,
        node: &'a Node,
        (to, addressed): (&'a Address, &'a Addressed),
        order: &'a Order,
        deadline: Deadline,
    ) -> Pending<'a, Result<serde_json::Value, OrderError>> {
        let body = serde_json::to_vec(order).expect("our own types are JSON");
        let answer = send(node, (to, addressed), (order.path(), body), ANSWER_BYTES, deadline);
        Box::pin(ready(answer.and_then(|answer| {
            serde_json::from_slice(&answer)
                .map_err(|error| OrderError::NotReached(format!("{to}: its answer makes no sense: {error}")))
        })))
    }

    fn transfer<'a>(
        &'a self,
        node: &'a Node,
        (from, addressed): (&'a Address, &'a Addressed),
        transfer: &'a Transfer,
        deadline: Deadline,
    ) -> Pending<'a, Result<Parcel, OrderError>> {
        let body = serde_json::to_vec(transfer).expect("our own types are JSON");
        let answer = send(node, (from, addressed), (wire::TRANSFER, body), PARCEL_BYTES, deadline);
        Box::pin(ready(answer.and_then(|answer| {
            Parcel::decode(&answer).map_err(|error| OrderError::NotReached(format!("{from}: {error}")))
        })))
    }

    fn page<'a>(
        &'a self,
        node: &'a Node,
        (to, addressed): (&'a Address, &'a Addressed),
        question: &'a listing::Question,
        deadline: Deadline,
    ) -> Pending<'a, Result<listing::Page, OrderError>> {
        let answer = send(node, (to, addressed), (listing::LIST, question.encode()), PARCEL_BYTES, deadline);
        Box::pin(ready(answer.and_then(|answer| {
            listing::Page::decode(&answer).map_err(|error| OrderError::NotReached(format!("{to}: {error}")))
        })))
    }

    fn tell<'a>(
        &'a self,
        node: &'a Node,
        to: &'a Address,
        state: &'a Arc<MetaState>,
    ) -> Pending<'a, Result<Vec<u64>, String>> {
        Box::pin(ready(tell(&node.peers.at(to), state)))
    }

    fn key<'a>(
        &'a self,
        node: &'a Node,
        to: (&'a Address, &'a Addressed, u64),
        request: &'a Request<'a>,
    ) -> Pending<'a, Result<Reply, NoAnswer>> {
        Box::pin(ready(pass_on(node, to, request)))
    }

    fn parts<'a>(&'a self, node: &'a Node, parts: &'a [Part<'a>]) -> Pending<'a, Vec<Replies>> {
        Box::pin(ready(batch_calls::ask_all(node, parts)))
    }

    fn each<'a>(&'a self, rows: &'a [Vec<usize>], step: &'a Step<'a>) -> Pending<'a, ()> {
        for some in rows.chunks(MOST_AT_ONCE) {
            threads::all_at_once("round", some, |row| row.iter().for_each(|number| host::run(step(*number))));
        }
        Box::pin(ready(()))
    }

    fn connect(&self, node: &Node, to: &Address) {
        let _ = node.peers.at(to).connection();
    }

    fn greet(&self, node: &Arc<Node>, to: &Address) {
        transport::have_greeted(node, to);
    }
}

/// Asks who answers at this node's own address, which should be itself.
pub fn ask_own_address(node: &Node) {
    let (own, asked) = (node.peers.at(&node.address), now());
    // A node need not reach itself under the address by which others do.
    let answer =
        ask_hello(node, &own, |question, deadline| own.ask_unnoted(question, Patience::Until(deadline)));
    if let Ok(hello) = answer
        && hello.address == node.address
    {
        node.note_start_at(&hello.address, hello.incarnation, asked);
    }
}

fn ask_hello(
    node: &Node,
    peer: &Peer,
    ask: impl FnOnce(ureq::http::Request<SendBody>, Deadline) -> Result<Response<Body>, NoAnswer>,
) -> Result<Hello, NoAnswer> {
    let challenge = format!("{:032x}", dice::draw::<u128>());
    let mut question = peer.request(Method::GET, wire::HELLO).header(wire::CHALLENGE_HEADER, &challenge);
    if node.has_address {
        let sender = Sender { address: node.address.clone(), incarnation: node.incarnation };
        question = question.header(wire::SENDER_HEADER, sender.signed(peer.secret()));
    }
    let question = complete(question, SendBody::none())?;
    let response = ask(question, Deadline::after(now(), QUESTION_TIMEOUT))?;
    let senseless = |reason: String| NoAnswer { kind: NoAnswerKind::Senseless, reason };
    let body = read_refusal(response).map_err(senseless)?;
    let hello: Hello = serde_json::from_slice(&body).map_err(|error| senseless(error.to_string()))?;
    // Nothing that needs the secret is sent to a node that has not shown that it knows it.
    match hello.check_secret(peer.secret(), &challenge, peer.address()) {
        Ok(()) => Ok(hello),
        Err(reason) => Err(NoAnswer { kind: NoAnswerKind::OtherSecret, reason }),
    }
}

/// Asks a node whether it is there; what is known of it follows from whether it answers.
pub fn ask_livez(peer: &Peer) {
    let deadline = Deadline::after(now(), QUESTION_TIMEOUT);
    let request = complete(peer.request(Method::GET, "/livez"), SendBody::none());
    let answer = request.and_then(|request| peer.ask_shortly(request, deadline));
    // Reading the body to its end gives the connection back.
    let _ = answer.and_then(|response| read_body(response, ANSWER_BYTES));
}

fn tell(peer: &Peer, state: &MetaState) -> Result<Vec<u64>, String> {
    let body = serde_json::to_vec(state).expect("our own types are JSON");
    let patience = Patience::Until(Deadline::after(now(), NEWS_TIMEOUT));
    let request = complete(peer.request(Method::POST, wire::NEWS), body);
    let answer = request.and_then(|request| peer.ask(request, patience)).map_err(|error| error.reason)?;
    serde_json::from_slice(&read_refusal(answer)?)
        .map_err(|error| format!("its answer makes no sense: {error}"))
}

/// The body of an answer, or what the node says against the question.
///
/// # Errors
/// A sentence.
pub fn read_refusal(response: Response<Body>) -> Result<Vec<u8>, String> {
    read_answer(response, ANSWER_BYTES).map_err(|error| error.to_string())
}

fn read_answer(response: Response<Body>, limit: u64) -> Result<Vec<u8>, OrderError> {
    let status = response.status();
    let result =
        header(response.headers(), wire::RESULT_HEADER).and_then(|text| KeyResult::parse(text, false));
    let leader = header(response.headers(), wire::LEADER_HEADER).and_then(|text| text.parse().ok());
    let body = read_body(response, limit).map_err(|error| OrderError::NotReached(error.reason))?;
    if status.is_success() {
        return Ok(body);
    }
    let said = serde_json::from_slice::<Refusal>(&body).map(|body| body.error);
    let reason = said.unwrap_or_else(|_| format!("it answered {status}"));
    Err(match result {
        Some(KeyResult::Gone) => OrderError::Gone(reason),
        Some(KeyResult::NotLeader) => OrderError::NotLeader(leader, reason),
        Some(KeyResult::LostSource) => OrderError::LostSource(reason),
        _ => OrderError::Refused(reason),
    })
}

/// The text of a header.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn send(
    node: &Node,
    (to, addressed): (&Address, &Addressed),
    (path, body): (&str, Vec<u8>),
    limit: u64,
    deadline: Deadline,
) -> Result<Vec<u8>, OrderError> {
    let peer = node.peers.at(to);
    let request = peer.request(Method::POST, path).header(wire::VIEW_HEADER, addressed.to_string());
    // Whoever gives a piece has to know what this node takes.
    let request = request.header(wire::FORMAT_HEADER, format::CURRENT);
    let answer =
        complete(request, body).and_then(|request| peer.exchange(request, Patience::Until(deadline)));
    let answer = answer.map_err(|error| OrderError::unanswered(&error));
    let answer = answer.map_err(|error| error.of(to))?;
    // What a node sends is sound: who says otherwise does not know such an order.
    let is_unknown_order =
        answer.status() == StatusCode::BAD_REQUEST && [wire::ORDERS, wire::QUESTIONS].contains(&path);
    if is_unknown_order || is_unknown_path(&answer) {
        let _ = read_body(answer, SHORT_ANSWER);
        return Err(OrderError::NotKnown(format!(
            "{to} is of a version that does not know what it was asked at {path}: once it runs a newer one, ask again"
        )));
    }
    read_answer(answer, limit).map_err(|error| error.of(to))
}

fn pass_on(
    node: &Node,
    (to, addressed, group): (&Address, &Addressed, u64),
    request: &Request,
) -> Result<Reply, NoAnswer> {
    let needs = request.operation.needs();
    let is_old = |connection: Arc<Connection>| connection.form().format() < needs;
    if needs > format::FIRST && node.peers.at(to).connection().is_some_and(is_old) {
        return Ok(Err(not_known(to, needs)));
    }
    match ask_connection(node, (to, addressed, group), request) {
        Some(answer) => answer,
        None => node.peers.at(to).ask_about(group, || ask_by_http(node, (to, addressed), request)),
    }
}

/// Asks on the connection for many requests; nothing where there is none, or the node wants to be asked by HTTP.
fn ask_connection(
    node: &Node,
    (to, addressed, group): (&Address, &Addressed, u64),
    request: &Request,
) -> Option<Result<Reply, NoAnswer>> {
    if request.by_http || !is_short(request.operation) {
        return None;
    }
    let peer = node.peers.at(to);
    let connection = peer.connection()?;
    let Operation { action, condition, ttl } = request.operation;
    let question = Question {
        addressed,
        left_ms: left_ms(request.deadline),
        id: request.id(),
        is_stale: request.is_stale,
        key: request.key,
        action,
        condition: condition.map(Cow::Borrowed),
        ttl,
    };
    let Some(frame) = frame(&question, connection.form()) else {
        return Some(Ok(Err(not_known(to, request.operation.needs()))));
    };
    let answer = connection.ask(group, request.deadline, frame)?;
    read_frame(&peer, answer, TagSpace::of(&addressed.cluster))
}

/// Whether a request may go together with others.
fn is_short(operation: Operation) -> bool {
    operation.value().is_none_or(|value| value.len() <= frames::LONGEST_VALUE)
}

pub(super) fn left_ms(deadline: Deadline) -> u64 {
    u64::try_from(deadline.left().as_millis()).unwrap_or(u64::MAX)
}

/// What came of a question on a connection for many; nothing where it was not done, and has to be asked by HTTP.
fn read_frame(
    peer: &Peer,
    answer: Result<Vec<u8>, NoAnswer>,
    tags: TagSpace,
) -> Option<Result<Reply, NoAnswer>> {
    peer.note(answer.as_ref().err());
    let frame = match answer {
        Ok(frame) => frame,
        Err(error) => return Some(Err(error)),
    };
    match Frame::decode(&frame) {
        Ok(Frame::Answer(_, Answer::ByHttp)) => None,
        Ok(Frame::Answer(_, answer)) => Some(Ok(reply(peer.address(), answer, tags))),
        Ok(Frame::Question(..) | Frame::Part(..) | Frame::Leader(_)) | Err(_) => Some(Err(NoAnswer {
            kind: NoAnswerKind::Senseless,
            reason: "its answer makes no sense".to_owned(),
        })),
    }
}

/// The frame of a question in a form, without its number; nothing where that has no room for it.
fn frame(question: &Question<&Addressed>, form: Form) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    question.encode(form, 0, &mut frame).map(|()| frame)
}

/// A node does not know what a request needs, so nothing was sent to it: it would have left something of it out.
fn not_known(node: &Address, needs: u32) -> NotServed {
    let what = match needs {
        format::TTL.. => "times to live",
        format::TYPES.. => "values that are not JSON",
        _ => "conditions",
    };
    NotServed::Failed(Error::Overloaded(format!(
        "{node} is of a version that does not know {what}: once it runs a newer one, send it again"
    )))
}

/// A client's request that can be passed on without waiting for the answer.
pub struct PassedOn {
    connection: Arc<Connection>,
    peer: Arc<Peer>,
    onward: Onward,
    frame: Vec<u8>,
    deadline: Deadline,
}

impl PassedOn {
    /// Nothing where there is no connection for it.
    pub fn new(
        node: &Node,
        onward: Onward,
        (key, operation, deadline): (&[u8], Operation, Deadline),
    ) -> Option<Self> {
        if !is_short(operation) {
            return None;
        }
        let peer = node.peers.at(&onward.to);
        let connection = peer.connection()?;
        let question = Question {
            addressed: &onward.addressed,
            left_ms: left_ms(deadline),
            id: onward.id(),
            is_stale: false,
            key,
            action: operation.action,
            condition: operation.condition.map(Cow::Borrowed),
            ttl: operation.ttl,
        };
        let frame = frame(&question, connection.form())?;
        Some(Self { connection, peer, onward, frame, deadline })
    }

    /// Sends it, and has somebody told what came of it: by the thread that reads the answers of that node, which is held up for as long as that takes. Nothing is
    /// told where it was not done and has to go by HTTP.
    ///
    /// # Errors
    /// Gives back who was to be told where the connection has ended meanwhile: nothing was sent.
    pub fn send<T: Send + 'static>(
        self,
        told: T,
        tell: impl FnOnce(T, Option<Told>) + Send + 'static,
    ) -> Result<(), T> {
        let Self { connection, peer, onward, frame, deadline } = self;
        let group = onward.group;
        let tell = move |told, answer| {
            let tags = TagSpace::of(&onward.addressed.cluster);
            let reply = read_frame(&peer, answer, tags);
            tell(told, reply.map(|reply| Told::Node(Box::new((onward, reply)))));
        };
        connection.ask_and(group, deadline, frame, (told, tell))
    }
}

/// What another node has answered, as if it were asked here.
pub(super) fn reply(owner: &Address, answer: Answer, tags: TagSpace) -> Reply {
    let done = |done, age| Ok(Outcome { age, ..Outcome::new(done, tags) });
    Err(match answer {
        Answer::Wrote(written) => return done(Done::Wrote(written), None),
        Answer::Missing(age) => return done(Done::Read(None), age),
        Answer::Found(age, version, value) => {
            let Version { number: version, left } = version;
            let value = Value::Received { bytes: value.to_vec(), version, left, permit: None };
            return done(Done::Read(Some(value)), age);
        }
        Answer::Unread(age, unread, version) => return done(Done::Unread(unread, version), age),
        Answer::Again => NotServed::Again,
        Answer::Gone => NotServed::Gone,
        Answer::NotLeader(leader, reason) => NotServed::NotLeader(leader, reason),
        Answer::OtherRequest => NotServed::OtherRequest,
        Answer::Full => NotServed::Full,
        Answer::NoRoom(reason) => NotServed::Failed(Error::NoRoom(reason)),
        Answer::Failed(applied, reason) => NotServed::Failed(Error::unavailable(owner, reason, applied)),
        Answer::KeyTooLong(limit) => NotServed::Failed(Error::KeyTooLong { limit }),
        Answer::TooLarge(reason) => NotServed::Failed(Error::TooLarge(reason)),
        Answer::Busy(reason) => NotServed::Failed(Error::Overloaded(reason)),
        Answer::ByHttp => unreachable!("who asks has seen to that"),
    })
}

fn ask_by_http(
    node: &Node,
    (to, addressed): (&Address, &Addressed),
    request: &Request,
) -> Result<Reply, NoAnswer> {
    let (condition, needs) = (request.operation.condition, request.operation.needs());
    let path = format!("{}{}", wire::keys_of(needs), wire::encode_key(request.key));
    let (method, body) = match request.operation.action {
        Action::Get => (Method::GET, None),
        Action::Put(value) => (Method::PUT, Some(value)),
        Action::Delete => (Method::DELETE, None),
        Action::Touch => (Method::PATCH, None),
    };
    let peer = node.peers.at(to);
    let mut head = peer.request(method, &path).header(wire::VIEW_HEADER, addressed.to_string());
    head = head.header(wire::FORMAT_HEADER, format::CURRENT);
    if let Some(id) = request.id() {
        head = head.header(wire::REQUEST_HEADER, id.to_string());
    }
    if let Some(condition) = condition {
        head = head.header(wire::CONDITION_HEADER, condition.to_string());
    }
    if let Some(ttl) = request.operation.ttl {
        head = head.header(TTL_HEADER, ttl.to_string());
    }
    if request.is_stale {
        head = head.header(wire::CONSISTENCY_HEADER, wire::STALE);
    }
    let patience = Patience::Until(request.deadline);
    let response = match body {
        Some(value) => peer.exchange(complete(head, value)?, patience),
        None => peer.exchange(complete(head, SendBody::none())?, patience),
    }?;
    if needs > format::FIRST && is_unknown_path(&response) {
        let _ = read_body(response, SHORT_ANSWER);
        return Ok(Err(not_known(to, needs)));
    }
    let tags = TagSpace::of(&addressed.cluster);
    read_reply(node, (to, tags), request.operation.is_read(), response)
}

/// Whether a node does not know the path that it was asked by. To a question about a key it answers by a result otherwise, or by another status.
pub(super) fn is_unknown_path(response: &Response<Body>) -> bool {
    response.status() == StatusCode::NOT_FOUND && !response.headers().contains_key(wire::RESULT_HEADER)
}

fn read_reply(
    node: &Node,
    (of, tags): (&Address, TagSpace),
    is_read: bool,
    response: Response<Body>,
) -> Result<Reply, NoAnswer> {
    let result = header(response.headers(), wire::RESULT_HEADER);
    let result = result.and_then(|text| KeyResult::parse(text, is_read));
    let version = header(response.headers(), wire::VERSION_HEADER).and_then(|text| text.parse().ok());
    let left = header(response.headers(), TTL_HEADER).and_then(|text| Ttl::parse(text).ok());
    let short = |response| {
        // Reading the body to its end gives the connection back.
        let _ = read_body(response, SHORT_ANSWER);
    };
    let not_served = match result {
        None => return Ok(Err(NotServed::Failed(refused(of, response)))),
        Some(KeyResult::Again) => NotServed::Again,
        Some(KeyResult::NotLeader) => {
            let leader = header(response.headers(), wire::LEADER_HEADER).and_then(|text| text.parse().ok());
            let reason = header(response.headers(), wire::REASON_HEADER).unwrap_or_default().to_owned();
            NotServed::NotLeader(leader, reason)
        }
        Some(KeyResult::Gone | KeyResult::LostSource) => NotServed::Gone,
        Some(KeyResult::OtherRequest) => NotServed::OtherRequest,
        Some(KeyResult::Full) => NotServed::Full,
        Some(KeyResult::Wrote(outcome)) => {
            short(response);
            let written = Written { outcome, version: version.unwrap_or(0) };
            return Ok(Ok(Outcome::new(Done::Wrote(written), tags)));
        }
        Some(KeyResult::Missing) => {
            let age = age(&response);
            short(response);
            return Ok(Ok(Outcome { age, ..Outcome::new(Done::Read(None), tags) }));
        }
        Some(KeyResult::Unread(unread)) => {
            let age = age(&response);
            short(response);
            let done = Done::Unread(unread, version.unwrap_or(0));
            return Ok(Ok(Outcome { age, ..Outcome::new(done, tags) }));
        }
        Some(KeyResult::Found) => {
            let (age, room) = (age(&response), make_room(node, of, &response));
            return Ok(match room {
                Ok((length, permit)) => {
                    let value =
                        Value::Received { bytes: read_body(response, length)?, version, left, permit };
                    Ok(Outcome { age, ..Outcome::new(Done::Read(Some(value)), tags) })
                }
                Err(error) => Err(NotServed::Failed(error)),
            });
        }
    };
    short(response);
    Ok(Err(not_served))
}

/// How old what was read may be.
fn age(response: &Response<Body>) -> Option<Duration> {
    let age = header(response.headers(), wire::STALENESS_HEADER)?.parse().ok()?;
    Some(Duration::from_millis(age))
}

/// Takes memory for the value that another node is about to send.
pub(super) fn make_room(
    node: &Node,
    owner: &Address,
    response: &Response<Body>,
) -> Result<(u64, Option<Permit>), Error> {
    // Not asked of the body: one of length 0 says that it has none.
    let length = header(response.headers(), "content-length").and_then(|length| length.parse().ok());
    let Some(length) = length else {
        return Err(Error::unavailable(owner, "its answer has no length", Applied::Unknown));
    };
    if length <= LARGE_VALUE {
        return Ok((length, None));
    }
    let permit = usize::try_from(length).ok().and_then(|length| node.budget.take(length));
    match permit {
        Some(permit) => Ok((length, Some(permit))),
        None => Err(Error::Overloaded("The memory for large answers is in use: try again later".to_owned())),
    }
}

/// An answer without a result: the owner refused, or whoever answers there is no node.
pub(super) fn refused(owner: &Address, response: Response<Body>) -> Error {
    let status = response.status();
    let applied = header(response.headers(), wire::OUTCOME_HEADER).map_or(Applied::Unknown, Applied::parse);
    let reason = header(response.headers(), wire::REASON_HEADER).map(str::to_owned);
    let limit = header(response.headers(), wire::LIMIT_HEADER).and_then(|limit| limit.parse().ok());
    // The body is read even where it is not needed: only then can the connection be used again.
    let body = read_body(response, SHORT_ANSWER).ok();
    let said = body.and_then(|body| serde_json::from_slice::<Refusal>(&body).ok()).map(|body| body.error);
    let reason = reason.or(said).unwrap_or_else(|| format!("answered {status} without a result"));
    // The owner's limits may be narrower than ours. That is no reason to try again.
    match (status.as_u16(), limit) {
        (400, Some(limit)) => return Error::KeyTooLong { limit },
        (413, _) => return Error::TooLarge(reason),
        (507, _) => return Error::NoRoom(reason),
        _ => {}
    }
    Error::unavailable(owner, reason, applied)
}
