//! What other nodes ask.

use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tiny_http::{Method, Request};

use super::access::AUTHORIZATION;
use super::answer::Answer;
use super::answer_body::Body;
use super::body::{BodyBytes, Limit};
use super::dispatch::Job;
use super::key_handlers::{check_key, check_length, with_age};
use super::key_request::{Asker, KeyRequest, Kind, Progress};
use super::payload::is_json;
use super::routes::{EncodedKey, Route};
use crate::access::{Role, is_same};
use crate::clock::{Deadline, now};
use crate::consensus::Envelope;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::binary::{Malformed, Reader};
use crate::model::condition::Condition;
use crate::model::format;
use crate::model::meta::MetaState;
use crate::model::shard::{Action, Done, RequestId};
use crate::model::ttl::{TTL_HEADER, Ttl};
use crate::model::value::{self, Content};
use crate::node::ask::OrderError;
use crate::node::batch;
use crate::node::host;
use crate::node::keys::{NotServed, Outcome, Reply};
use crate::node::state::{Node, ServingState};
use crate::reshard::controller::Controller;
use crate::reshard::{pieces, recover};
use crate::wire::batches;
use crate::wire::frames::{self, Form, Question, Version};
use crate::wire::orders::Order;
use crate::wire::{self, Addressed, KeyResult, Refusal, Sender, Transfer, listing};

/// Orders, news and messages are no longer than this.
const BODY: Limit = Limit { bytes: 128 << 20, allowed: 128 << 20 };
/// The longest address that is believed.
const ADDRESS_BYTES: usize = 300;
/// So the names of the headers begin that most proxies set.
const FORWARDED_FAMILY: &str = "X-Forwarded-";

/// Answers another node. Nothing is passed on from here.
pub fn answer(controller: &Controller, job: &mut Job, route: Route) -> Answer {
    let method = job.arrival.method().clone();
    // An operator asks there, not a node.
    let is_for_operators = route == Route::NodeRecover;
    let refused = |error: &Error| {
        if is_for_operators { Answer::error(error, &method, "") } else { refusal(error) }
    };
    // Refused before the body is read: a stranger's is not.
    if let Err(error) = check_sender(&controller.node, &job.arrival.request, route) {
        return refused(&error);
    }
    let answered = match (route, &method) {
        (Route::NodeHello, Method::Get) => {
            let node = &controller.node;
            let sender = header(&job.arrival.request, wire::SENDER_HEADER);
            if let Some(sender) = sender.and_then(|text| Sender::parse(&text, node.secret.as_deref())) {
                node.note_start_at(&sender.address, sender.incarnation, now());
            }
            let challenge = header(&job.arrival.request, wire::CHALLENGE_HEADER);
            Ok(json(&node.hello(challenge.as_deref())))
        }
        (Route::NodeNews, Method::Post) => news(&controller.node, job),
        (Route::NodeOrders | Route::NodeQuestions, Method::Post) => orders(controller, job),
        (Route::NodeTransfer, Method::Post) => transfer(&controller.node, job),
        (Route::NodeList, Method::Post) => list(&controller.node, job),
        (Route::NodeRaft, Method::Post) => raft(&controller.node, job),
        (Route::NodeRecover, Method::Put) => recovery(controller, job),
        _ => Err(Error::MethodNotAllowed(route.allow())),
    };
    answered.unwrap_or_else(|error| refused(&error))
}

/// Reads and checks a request about a key that another node passes on.
///
/// # Errors
/// The answer to one that is refused.
pub fn read_key(node: &Node, job: &mut Job, encoded: EncodedKey) -> Result<KeyRequest, Box<Answer>> {
    let checked = check_sender(node, &job.arrival.request, Route::NodeKey).map_err(NotServed::Failed);
    let read = checked.and_then(|()| read_addressed(node, job, encoded));
    read.map_err(|not_served| Box::new(answer_key(Err(not_served), format::FIRST)))
}

/// The first request that is refused since it came through a proxy is said in the log.
static PROXY_SAID: Once = Once::new();

/// Whether a sender belongs to the cluster: by the secret where there is one, otherwise by its address, which a proxy hides.
///
/// # Errors
/// [`Error::Forbidden`].
pub fn check_sender(node: &Node, request: &Request, route: Route) -> Result<(), Error> {
    // What is for an operator may be asked by a token, too.
    if route == Route::NodeRecover && node.access.is_guarded() {
        let shown = header(request, AUTHORIZATION);
        if shown.is_some_and(|shown| node.access.judge(Role::Admin, Some(&shown)).is_ok()) {
            return Ok(());
        }
    }
    match &node.secret {
        // The answer proves the secret to those who know it, and does not tell it.
        Some(_) if route == Route::NodeHello => Ok(()),
        Some(secret) => {
            let shown = header(request, wire::SECRET_HEADER).unwrap_or_default();
            if is_same(secret.as_bytes(), shown.as_bytes()) {
                return Ok(());
            }
            Err(Error::Forbidden("The sender does not know this cluster's CLUSTER_SECRET".to_owned()))
        }
        // Whoever is near could pass for another node, and needed no token.
        None if node.access.is_guarded() && route != Route::NodeHello => Err(Error::Forbidden(
            "With AUTH_TOKENS_FILE other nodes are answered by CLUSTER_SECRET only: set the same on all nodes".to_owned(),
        )),
        None if !request.remote_addr().is_some_and(|address| is_near(address.ip())) => Err(Error::Forbidden(
            "Without CLUSTER_SECRET other nodes are answered on loopback and private addresses only: \
             set the same CLUSTER_SECRET on all nodes"
                .to_owned(),
        )),
        None => match sign_of_proxy(request) {
            None => Ok(()),
            Some(name) => Err(refuse_proxy(name)),
        },
    }
}

/// The header by which a proxy says that it passes the request on for somebody else, who may be anywhere.
fn sign_of_proxy(request: &Request) -> Option<&str> {
    let names = request.headers().iter().map(|header| header.field.as_str().as_str());
    names.into_iter().find(|name| {
        let begins = name.get(..FORWARDED_FAMILY.len());
        ["Forwarded", "Via"].iter().any(|sign| name.eq_ignore_ascii_case(sign))
            || begins.is_some_and(|begins| begins.eq_ignore_ascii_case(FORWARDED_FAMILY))
    })
}

fn refuse_proxy(name: &str) -> Error {
    PROXY_SAID.call_once(|| {
        log::warn!(
            "a request under /node/ came through a proxy ({name}) and was refused, as all others will be: whoever sends it may be \
             anywhere. If nodes reach each other through a proxy, set the same CLUSTER_SECRET on all of them; if not, have the proxy \
             refuse /node/"
        );
    });
    Error::Forbidden(format!(
        "Without CLUSTER_SECRET other nodes are not answered through a proxy, and this request has the header {name}: \
         set the same CLUSTER_SECRET on all nodes"
    ))
}

fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

fn read_addressed(node: &Node, job: &mut Job, encoded: EncodedKey) -> Result<KeyRequest, NotServed> {
    let method = job.arrival.method().clone();
    let addressed = addressed(&job.arrival.request);
    // Refused before the body is read: a large one would be read for nothing.
    let serving_state = node.check_addressed(addressed.as_ref())?;
    let epoch = addressed.map_or(0, |addressed| addressed.epoch);
    let id = header(&job.arrival.request, wire::REQUEST_HEADER).and_then(|id| RequestId::parse(&id));
    let condition = condition(&job.arrival.request, job.arrival.path()).map_err(NotServed::Failed)?;
    let ttl = ttl(&job.arrival.request, job.arrival.path()).map_err(NotServed::Failed)?;
    let format = format_of(&job.arrival.request);
    let key = encoded.key.map_err(NotServed::Failed)?;
    let body =
        read_within_limits(node, job, &key).map_err(|error| beyond_limits(error, &serving_state, epoch))?;
    let kind = match method {
        Method::Get => Kind::Get,
        Method::Delete => Kind::Delete,
        Method::Patch if job.arrival.path().starts_with(wire::TIMED_KEYS) => Kind::Touch,
        Method::Put => {
            let takes_types = has_types(job.arrival.path());
            check_value(&body.bytes, takes_types)?;
            Kind::Put(0..body.bytes.len())
        }
        _ => return Err(NotServed::Failed(Error::MethodNotAllowed(Route::NodeKey.allow()))),
    };
    let is_stale = matches!(kind, Kind::Get)
        && header(&job.arrival.request, wire::CONSISTENCY_HEADER).as_deref() == Some(wire::STALE);
    Ok(KeyRequest {
        key,
        kind,
        body,
        condition,
        ttl,
        id,
        is_stale,
        deadline: Deadline::after(job.complete, node.request_timeout),
        asker: Asker::Node { serving_state, epoch, format },
        progress: Progress::None,
    })
}

/// The format that a node knows which asks by HTTP.
fn format_of(request: &Request) -> u32 {
    let format = header(request, wire::FORMAT_HEADER).and_then(|format| format.parse().ok());
    format.unwrap_or(format::FIRST)
}

/// What a request of a node says has to be there. One that comes by a path for conditions has one, and one by that for values with types may.
fn condition(request: &Request, path: &str) -> Result<Option<Box<Condition>>, Error> {
    let text = header(request, wire::CONDITION_HEADER);
    let may_have = has_types(path) && text.is_some();
    if !may_have && !path.starts_with(wire::CONDITIONAL_KEYS) {
        return Ok(None);
    }
    let condition = text.and_then(|text| Condition::parse(&text));
    let condition = condition.ok_or_else(|| {
        Error::BadRequest(format!(
            "A request of a node under {path} has its condition in {}",
            wire::CONDITION_HEADER
        ))
    })?;
    Ok(Some(condition.into()))
}

/// Whether what comes by a path may have a value with a type of its own.
fn has_types(path: &str) -> bool {
    path.starts_with(wire::TYPED_KEYS) || path.starts_with(wire::TIMED_KEYS)
}

/// For how long what is written lives, as a request of a node says it: only one that comes by the path for that.
fn ttl(request: &Request, path: &str) -> Result<Option<Ttl>, Error> {
    let text = header(request, TTL_HEADER).filter(|_| path.starts_with(wire::TIMED_KEYS));
    let ttl = text.map(|text| Ttl::parse(&text)).transpose();
    ttl.map_err(|error| Error::BadRequest(format!("{TTL_HEADER} is wrong: {error}")))
}

/// Does the part of a batch that another node passes on.
pub fn answer_part(node: &Node, job: &mut Job) -> Answer {
    part(node, job).unwrap_or_else(|error| refusal(&error))
}

fn part(node: &Node, job: &mut Job) -> Result<Answer, Error> {
    check_sender(node, &job.arrival.request, Route::NodeBatch)?;
    if *job.arrival.method() != Method::Post {
        return Err(Error::MethodNotAllowed(Route::NodeBatch.allow()));
    }
    let body = job.read_body(BODY, &node.budget)?;
    let knows = format_of(&job.arrival.request);
    let out = do_part(node, &body.bytes, knows, true)
        .map_err(|error| Error::BadRequest(format!("The body is no part of a batch: {error}")))?;
    // The result of each is in the body.
    Ok(Answer::json(200, out).with(wire::RESULT_HEADER, KeyResult::Found.as_str()))
}

/// Does a part of a batch of a node that knows forms up to a format: the frames of the answers. Where it may not wait, they fit into one frame, and what does not is to be asked again; as all that is done has
/// an id, it is done once.
///
/// # Errors
/// When the bytes are something else.
pub fn do_part(node: &Node, part: &[u8], knows: u32, waits: bool) -> Result<Vec<u8>, Malformed> {
    let (room, questions) = batches::read_questions(part)?;
    let epoch = questions.first().map_or(0, |(_, question)| question.addressed.epoch);
    let left_ms = questions.iter().map(|(_, question)| question.left_ms).min().unwrap_or(0);
    let deadline = Deadline::after(now(), node.request_timeout.min(Duration::from_millis(left_ms)));
    let (mut replies, mut asked, mut serving_state) = (Vec::new(), Vec::new(), None);
    let mut again: Vec<&[u8]> = Vec::new();
    for (place, question) in &questions {
        // What is to be asked again holds up what comes after it on the same key.
        if again.contains(&question.key) {
            continue;
        }
        match check_question(node, question, batches::FORM) {
            Ok(checked) => {
                serving_state = Some(checked);
                let (key, operation, id) = (question.key, question.operation(), question.id);
                asked.push((*place, batch::Question { group: 0, key, operation, id }));
            }
            Err(not_served) => {
                if not_served == NotServed::Again {
                    again.push(question.key);
                }
                replies.push((*place, Some(Err(not_served))));
            }
        }
    }
    if let Some(state) = serving_state {
        replies.extend(host::run(node.run_forwarded_part(&state, epoch, asked, (room, waits), deadline)));
    }
    let longest = if waits { usize::MAX } else { frames::LONGEST_VALUE };
    let mut out = Vec::new();
    for (place, reply) in replies {
        let Some(reply) = reply else { continue };
        let before = out.len();
        put_reply(reply, (place as u64, batches::answer_form(knows)), longest, &mut out);
        if !waits && out.len() > frames::LONGEST - frames::LONGEST_HEAD {
            out.truncate(before);
            break;
        }
    }
    Ok(out)
}

/// Checks a request about a key that another node passes on by a frame: the state of serving under which it is answered.
///
/// # Errors
/// What the other node is answered.
pub fn check_question(node: &Node, question: &Question, form: Form) -> Result<Arc<ServingState>, NotServed> {
    let serving_state = node.check_addressed(Some(&question.addressed))?;
    let limits = node.limits();
    let within = check_key(limits, question.key).and_then(|()| match question.action {
        Action::Put(value) => check_length(limits, value),
        _ => Ok(()),
    });
    within.map_err(|error| beyond_limits(error, &serving_state, question.addressed.epoch))?;
    if let Action::Put(value) = question.action {
        check_value(value, form.format() >= format::TYPES)?;
    }
    if node.is_stopping() || question.left_ms == 0 {
        let reason = if node.is_stopping() { "the node is stopping" } else { "it came too late" };
        let error = Error::Unavailable { reason: reason.to_owned(), applied: Applied::No };
        return Err(NotServed::Failed(error));
    }
    Ok(serving_state)
}

/// What a node is answered whose key or value is too long here: it may know of higher limits.
fn beyond_limits(error: Error, serving_state: &ServingState, epoch: u64) -> NotServed {
    let is_behind = serving_state.serving().is_ok_and(|serving| serving.state.view.epoch < epoch);
    match error {
        Error::KeyTooLong { .. } | Error::TooLarge(_) if is_behind => NotServed::Again,
        error => NotServed::Failed(error),
    }
}

/// Checks that a value can be read again as what it is: JSON, or what has a type of its own, where such may come.
fn check_value(stored: &[u8], takes_types: bool) -> Result<(), NotServed> {
    let is_sound =
        if value::is_typed(stored) { takes_types && Content::of(stored).is_ok() } else { is_json(stored) };
    if is_sound {
        return Ok(());
    }
    Err(NotServed::Failed(Error::BadRequest("The body is not one value".to_owned())))
}

/// A reply as a node may get it that knows forms up to a format: it would take a value with a type of its own for JSON.
pub fn as_known(reply: Reply, knows: u32) -> Reply {
    match &reply {
        Ok(Outcome { done: Done::Read(Some(read)), .. })
            if knows < format::TYPES && value::is_typed(read.as_bytes()) =>
        {
            Err(NotServed::Failed(Error::Overloaded(
                "The value is not JSON, and the node that was asked is of a version that does not know such: ask a node of a newer version"
                    .to_owned(),
            )))
        }
        _ => reply,
    }
}

/// Appends the answer that a reply is. A value that is longer than so many bytes is to be asked for by HTTP.
pub fn put_reply(reply: Reply, (number, form): (u64, Form), longest: usize, out: &mut Vec<u8>) {
    let answer = match as_known(reply, form.format()) {
        Ok(outcome) => match outcome.done {
            Done::Wrote(wrote) => frames::Answer::Wrote(wrote),
            Done::Read(None) => frames::Answer::Missing(outcome.age),
            Done::Read(Some(value)) if value.as_bytes().len() > longest => frames::Answer::ByHttp,
            Done::Read(Some(value)) => {
                let version = Version { number: value.version(), left: value.left() };
                let found = frames::Answer::Found(outcome.age, version, value.as_bytes());
                return found.encode(form, number, out);
            }
            Done::Unread(unread, version) => frames::Answer::Unread(outcome.age, unread, version),
        },
        Err(NotServed::Again) => frames::Answer::Again,
        Err(NotServed::Gone) => frames::Answer::Gone,
        Err(NotServed::NotLeader(leader, reason)) => frames::Answer::NotLeader(leader, reason),
        Err(NotServed::OtherRequest) => frames::Answer::OtherRequest,
        Err(NotServed::Full) => frames::Answer::Full,
        Err(NotServed::Failed(Error::NoRoom(reason))) => frames::Answer::NoRoom(reason),
        Err(NotServed::Failed(Error::KeyTooLong { limit })) => frames::Answer::KeyTooLong(limit),
        Err(NotServed::Failed(Error::TooLarge(reason))) => frames::Answer::TooLarge(reason),
        Err(NotServed::Failed(Error::Unavailable { reason, applied })) => {
            frames::Answer::Failed(applied, reason)
        }
        Err(NotServed::Failed(Error::Overloaded(reason))) => frames::Answer::Busy(reason),
        Err(NotServed::Failed(error)) => frames::Answer::Failed(error.applied(), error.to_string()),
    };
    answer.encode(form, number, out);
}

/// The body of a request about a key, which is the value itself.
fn read_within_limits(node: &Node, job: &mut Job, key: &[u8]) -> Result<BodyBytes, Error> {
    let limits = node.limits();
    check_key(limits, key)?;
    let allowed = limits.max_value_length;
    // A value with a type of its own has that before it.
    let limit = Limit { bytes: allowed + value::LONGEST_HEAD, allowed };
    let body = job.read_body(limit, &node.budget)?;
    check_length(limits, &body.bytes).map(|()| body)
}

/// Tells the node that has passed a request on what came of it, by forms up to a format that it knows.
pub fn answer_key(reply: Reply, knows: u32) -> Answer {
    let outcome = match as_known(reply, knows) {
        Ok(outcome) => outcome,
        Err(NotServed::NotLeader(leader, reason)) => return not_leader(leader, &reason),
        Err(NotServed::Failed(error)) => return refusal(&error),
        Err(not_served) => {
            let result = match not_served {
                NotServed::Gone => KeyResult::Gone,
                NotServed::OtherRequest => KeyResult::OtherRequest,
                NotServed::Full => KeyResult::Full,
                _ => KeyResult::Again,
            };
            return refusal(&not_served.into()).with(wire::RESULT_HEADER, result.as_str());
        }
    };
    let left = outcome.left();
    let (result, version, value) = match outcome.done {
        Done::Wrote(written) => (KeyResult::Wrote(written.outcome), written.version, None),
        Done::Read(None) => (KeyResult::Missing, 0, None),
        Done::Read(Some(value)) => (KeyResult::Found, value.version().unwrap_or(0), Some(value)),
        Done::Unread(unread, version) => (KeyResult::Unread(unread), version, None),
    };
    let mut answer = Answer::json(200, &b""[..]).with(wire::RESULT_HEADER, result.as_str());
    if version > 0 {
        answer = answer.with(wire::VERSION_HEADER, version.to_string());
    }
    if let Some(left) = left {
        answer = answer.with(TTL_HEADER, left.to_string());
    }
    if let Some(value) = value {
        answer.body = Body::stored(value);
    }
    with_age(answer, outcome.age)
}

/// Nothing was done, and what the sender is to do about it.
fn no_result(result: KeyResult, reason: &str) -> Answer {
    let error = Error::Unavailable { reason: reason.to_owned(), applied: Applied::No };
    refusal(&error).with(wire::RESULT_HEADER, result.as_str())
}

/// The same where another replica leads the shard.
fn not_leader(leader: Option<Address>, reason: &str) -> Answer {
    let answer = no_result(KeyResult::NotLeader, reason);
    match leader {
        Some(leader) => answer.with(wire::LEADER_HEADER, leader.to_string()),
        None => answer,
    }
}

fn recovery(controller: &Controller, job: &mut Job) -> Result<Answer, Error> {
    let body = job.read_body(BODY, &controller.node.internal_budget)?;
    let asked = if body.bytes.iter().all(u8::is_ascii_whitespace) {
        recover::Recovery::default()
    } else {
        let wrong = |error| {
            let form = r#"{"dry-run":true,"given-up":["host:port"]}, both optional"#;
            Error::BadRequest(format!("The body is wrong: {error}; allowed is {form}"))
        };
        serde_json::from_slice(&body.bytes).map_err(wrong)?
    };
    host::run(recover::recover(controller, &asked))
        .map(|body| Answer::json(200, body.to_string().into_bytes()))
}

fn news(node: &Node, job: &mut Job) -> Result<Answer, Error> {
    let state: MetaState = read_json(node, job)?;
    let acting = host::run(node.take_news(&Arc::new(state)));
    acting.map(|acting| json(&acting)).map_err(Error::Conflict)
}

fn orders(controller: &Controller, job: &mut Job) -> Result<Answer, Error> {
    let addressed = addressed(&job.arrival.request);
    let order: Order = read_json(&controller.node, job)?;
    if job.arrival.path() != order.path() {
        // One that waits would take a worker from those that never wait.
        return Err(Error::BadRequest(format!("An order {} is taken at {}", order.name(), order.path())));
    }
    match host::run(controller.obey_sender(addressed.as_ref(), &order)) {
        Ok(answer) => Ok(json(&answer)),
        Err(error) => Ok(not_obeyed(error)),
    }
}

fn transfer(node: &Node, job: &mut Job) -> Result<Answer, Error> {
    let addressed = addressed(&job.arrival.request);
    let transfer: Transfer = read_json(node, job)?;
    let knows = format_of(&job.arrival.request);
    match host::run(pieces::give_sender(node, addressed.as_ref(), &transfer, knows)) {
        Ok(parcel) => Ok(Answer::json(200, parcel.encode())),
        Err(error) => Ok(not_obeyed(error)),
    }
}

fn list(node: &Node, job: &mut Job) -> Result<Answer, Error> {
    let addressed = addressed(&job.arrival.request);
    let body = job.read_body(BODY, &node.internal_budget)?;
    let question =
        listing::Question::decode(&body.bytes).map_err(|error| Error::BadRequest(error.to_string()))?;
    let deadline = Deadline::after(job.complete, node.request_timeout);
    match host::run(node.page_for(addressed.as_ref(), &question, deadline)) {
        Ok(page) => Ok(Answer::json(200, page.encode())),
        Err(error) => Ok(not_obeyed(error)),
    }
}

fn not_obeyed(error: OrderError) -> Answer {
    match error {
        OrderError::Gone(reason) => no_result(KeyResult::Gone, &reason),
        OrderError::NotLeader(leader, reason) => not_leader(leader, &reason),
        OrderError::LostSource(reason) => no_result(KeyResult::LostSource, &reason),
        OrderError::NotSent(reason)
        | OrderError::NotReached(reason)
        | OrderError::NotKnown(reason)
        | OrderError::Refused(reason) => refusal(&Error::Conflict(reason)),
    }
}

fn raft(node: &Node, job: &mut Job) -> Result<Answer, Error> {
    let body = job.read_body(BODY, &node.internal_budget)?;
    let (from, envelopes) =
        read_envelopes(&body.bytes).map_err(|error| Error::BadRequest(error.to_string()))?;
    // Pieces of snapshots, which say nothing of it.
    node.groups.receive(from, None, envelopes);
    Ok(Answer::json(200, &b"{}"[..]))
}

fn read_envelopes(bytes: &[u8]) -> Result<(Address, Vec<Envelope>), Malformed> {
    let mut reader = Reader::new(bytes);
    let from = std::str::from_utf8(reader.bytes(ADDRESS_BYTES)?).ok().and_then(|text| text.parse().ok());
    let from = from.ok_or(Malformed("not an address"))?;
    Ok((from, read_messages(reader.rest())?))
}

/// Reads messages, one after the other.
///
/// # Errors
/// When the bytes are something else.
pub fn read_messages(bytes: &[u8]) -> Result<Vec<Envelope>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut envelopes = Vec::new();
    while !reader.rest().is_empty() {
        envelopes.push(Envelope::decode(&mut reader)?);
    }
    Ok(envelopes)
}

fn read_json<T: DeserializeOwned>(node: &Node, job: &mut Job) -> Result<T, Error> {
    let body = job.read_body(BODY, &node.internal_budget)?;
    serde_json::from_slice(&body.bytes)
        .map_err(|error| Error::BadRequest(format!("The body is not what a node sends here: {error}")))
}

fn addressed(request: &Request) -> Option<Addressed> {
    Addressed::parse(&header(request, wire::VIEW_HEADER)?)
}

/// The value of a request's header.
pub fn header(request: &Request, name: &'static str) -> Option<String> {
    let header = request.headers().iter().find(|header| header.field.equiv(name));
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
