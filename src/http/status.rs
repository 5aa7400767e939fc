//! What `/v1/status` answers: made at most once a second for all who ask, by a thread of its own, so that no worker waits for other nodes. Who knows the last answer may have it held until
//! there is another one.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher24;
use tiny_http::{Header, Method};
use ureq::SendBody;

use super::access::AUTHORIZATION;
use super::answer::Answer;
use super::answer_body::Body;
use super::body::Limit;
use super::dispatch::Job;
use super::error_form::ErrorForm;
use super::node_handlers::header;
use super::page;
use super::relay::{next_hops, take_over};
use super::routes::{Route, STATUS};
use crate::clock::{Deadline, now};
use crate::error::Error;
use crate::model::address::Address;
use crate::model::condition::ETAG;
use crate::node::problems;
use crate::node::state::Node;
use crate::peers::client::{Patience, complete};
use crate::reshard::controller::Controller;
use crate::reshard::overview::follower_status;
use crate::wire;
use crate::wire::status::MainStatus;

/// An answer is told to all who ask for so long.
const FRESH: Duration = Duration::from_secs(1);
/// What its main has told is told by a follower to all who ask for so long: a main that is silent is to be named in time.
const FRESH_OF_MAIN: Duration = Duration::from_millis(250);
/// So many may wait for the next one.
const MOST: usize = 1024;
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// A body of such a request is not looked at; a longer one is refused.
const BODY: Limit = Limit { bytes: 1 << 20, allowed: 1 << 20 };
/// The answer of a main is no longer than this, in bytes.
const LONGEST: u64 = 64 << 20;

/// Nobody is held for longer, whatever he says.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What goes up and down while nothing happens; nobody who waits for news is told of it alone.
const OF_LOAD: [&str; 2] = ["requests-per-second", "memory"];

/// An answer.
struct Made {
    body: Vec<u8>,
    /// Two that begin with the same differ in [`OF_LOAD`] at most.
    news: String,
    /// What names it: that, and what names all of the body.
    tag: String,
}

impl Made {
    fn of(status: &Value) -> Self {
        let (mut news, mut all) = (SipHasher24::new(), SipHasher24::new());
        digest(status, &mut news);
        let body = status.to_string().into_bytes();
        all.write(&body);
        let (news, all) = (format!("{:016x}", news.finish()), all.finish());
        Self { tag: format!("\"{news}-{all:016x}\""), body, news }
    }

    /// Whether a client has one that says the same but for figures of load.
    fn is_no_news(&self, headers: &[Header]) -> bool {
        page::known_tags(headers)
            .any(|tag| tag == "*" || tag.trim_matches('"').split('-').next() == Some(&self.news))
    }

    fn answer(&self, headers: &[Header]) -> Answer {
        let is_known = page::is_known(headers, &self.tag);
        let answer = if is_known { Answer::empty(304) } else { Answer::json(200, self.body.clone()) };
        answer.with(ETAG, self.tag.clone())
    }
}

/// What is in an answer without the figures of load.
fn digest(value: &Value, hasher: &mut SipHasher24) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter().filter(|(name, _)| !OF_LOAD.contains(&name.as_str())) {
                hasher.write(name.as_bytes());
                digest(field, hasher);
            }
        }
        Value::Array(items) => {
            hasher.write_usize(items.len());
            for item in items {
                digest(item, hasher);
            }
        }
        other => hasher.write(other.to_string().as_bytes()),
    }
    hasher.write_u8(0xff);
}

/// For how long a client wants to be held where nothing has changed (RFC 7240, section 4.3).
fn wanted_wait(headers: &[Header]) -> Duration {
    let preferences = headers.iter().filter(|header| header.field.equiv("Prefer"));
    let mut named = preferences.flat_map(|header| header.value.as_str().split(','));
    let seconds = named.find_map(|one| {
        let (name, value) = one.split(';').next()?.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().trim_matches('"').parse().ok()).flatten()
    });
    Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_WAIT)
}

/// The last answer, and those who wait for the next one.
#[derive(Default)]
pub struct Statuses {
    state: Mutex<State>,
    asked: Condvar,
    of_main: Mutex<Option<OfMain>>,
}

/// A hash of an `Authorization`: how long it takes to compare two of them says nothing of either.
type Shown = [u8; 32];

/// What the main of a follower has said last, with the follower beside that.
struct OfMain {
    /// When it was asked.
    begun: Instant,
    /// A hash of what it was shown: whom it has admitted.
    shown: Option<Shown>,
    made: Arc<Made>,
}

#[derive(Default)]
struct State {
    /// When it was begun.
    last: Option<(Instant, Arc<Made>)>,
    waiting: VecDeque<Waiting>,
}

impl State {
    /// The last answer, if it may be told still.
    fn fresh(&self) -> Option<&Arc<Made>> {
        self.last.as_ref().filter(|(begun, _)| now() - *begun < FRESH).map(|(_, made)| made)
    }
}

/// Somebody who waits.
struct Waiting {
    job: Box<Job>,
    /// Until then, where he knows the answer.
    held: Deadline,
}

/// What becomes of a request at once.
pub enum Taken {
    /// It is answered.
    Answer(Box<Job>, Answer),
    /// It waits for the thread.
    Parked,
    /// Too many do.
    Full(Box<Job>),
}

impl Statuses {
    /// Answers a request, or lets it wait without a worker.
    pub fn take(&self, job: Box<Job>) -> Taken {
        let mut state = self.state.lock();
        let headers = job.arrival.request.headers();
        let wait = wanted_wait(headers);
        if let Some(made) = state.fresh()
            && (wait.is_zero() || !made.is_no_news(headers))
        {
            let answer = made.answer(headers);
            return Taken::Answer(job, answer);
        }
        if state.waiting.len() >= MOST {
            return Taken::Full(job);
        }
        let held = Deadline::after(now(), wait);
        state.waiting.push_back(Waiting { job, held });
        drop(state);
        self.asked.notify_one();
        Taken::Parked
    }

    /// What the main has told just now to one who has shown the same.
    fn of_main(&self, shown: Option<Shown>) -> Option<Arc<Made>> {
        let of_main = self.of_main.lock();
        let last = of_main.as_ref().filter(|last| now() - last.begun < FRESH_OF_MAIN)?;
        (last.shown == shown).then(|| Arc::clone(&last.made))
    }

    /// Waits until an answer is to be made, for a while at most; whether one is.
    fn is_due(&self, is_leaving: bool) -> bool {
        let is_due = |state: &State| !state.waiting.is_empty() && (is_leaving || state.fresh().is_none());
        let mut state = self.state.lock();
        if !is_due(&state) {
            // One that is fresh is so for a while yet, and those who wait have it.
            let left = state.last.as_ref().map_or(LOOK, |(begun, _)| FRESH.saturating_sub(now() - *begun));
            let left = if state.waiting.is_empty() || left.is_zero() { LOOK } else { left.min(LOOK) };
            self.asked.wait_for(&mut state, left);
        }
        is_due(&state)
    }

    /// Notes an answer, and takes out those who are to be told it.
    fn release(&self, begun: Instant, made: Option<&Arc<Made>>, is_leaving: bool) -> VecDeque<Waiting> {
        let mut state = self.state.lock();
        state.last = made.map(|made| (begun, Arc::clone(made)));
        let (held, released) = std::mem::take(&mut state.waiting).into_iter().partition(|one: &Waiting| {
            let is_no_news = made.is_some_and(|made| made.is_no_news(one.job.arrival.request.headers()));
            is_no_news && !is_leaving && !one.held.is_over()
        });
        state.waiting = held;
        released
    }
}

/// Makes an answer whenever one is waited for, until the channel closes.
pub fn run(
    statuses: &Statuses,
    controller: &Controller,
    stop: &Receiver<()>,
    answer: impl Fn(Box<Job>, Answer),
) {
    while stop.try_recv() == Err(TryRecvError::Empty) {
        // Whoever is held would hold up the end of the node.
        let is_leaving = controller.node.is_leaving();
        if !statuses.is_due(is_leaving) {
            continue;
        }
        let begun = now();
        let made = catch_unwind(AssertUnwindSafe(|| Made::of(&json(&controller.overview()))));
        let made = made.ok().map(Arc::new);
        for Waiting { mut job, .. } in statuses.release(begun, made.as_ref(), is_leaving) {
            let told = match &made {
                Some(made) => made.answer(job.arrival.request.headers()),
                None => Answer::error(&Error::Internal, job.arrival.method(), ErrorForm::Problem),
            };
            // What was held on purpose was not slow.
            job.arrival.arrived = job.arrival.arrived.max(begun);
            answer(job, told);
        }
    }
}

/// Checks a request for the status; an answer where it is not to be had so.
pub fn check(node: &Node, job: &mut Job) -> Option<Answer> {
    let method = job.arrival.method().clone();
    let checked = match job.read_body(BODY, &node.budget) {
        Err(error) => Err(error),
        Ok(_) if method != Method::Get => Err(Error::MethodNotAllowed(Route::V1Status.allow())),
        Ok(_) => Ok(()),
    };
    checked.err().map(|error| Answer::error(&error, &method, ErrorForm::Problem))
}

/// Whether a follower answers a request itself: it adds what it is to what its main says.
pub fn is_of_follower(job: &Job) -> bool {
    job.arrival.path() == STATUS && *job.arrival.method() == Method::Get
}

/// What a follower answers: what its main says of the whole, and itself beside that; without its main, that.
pub fn of_follower(statuses: &Statuses, controller: &Controller, job: &mut Job) -> Answer {
    let node = &controller.node;
    if let Some(refused) = check(node, job) {
        return refused;
    }
    let shown = header(&job.arrival.request, AUTHORIZATION).map(|shown| Sha256::digest(shown).into());
    let begun = now();
    if let Some(made) = statuses.of_main(shown) {
        return made.answer(job.arrival.request.headers());
    }
    let main = node.main().expect("only a follower is asked so").address().clone();
    let told = match next_hops(&job.arrival, &node.trace) {
        Ok(hops) => ask_main(node, job, &hops),
        Err(error) => return Answer::error(&error, job.arrival.method(), ErrorForm::Problem),
    };
    let problem = match told {
        Ok(answer) if answer.status == 200 => match read(answer) {
            Some(told) => {
                let made = Arc::new(show(controller, &main, told));
                let answer = made.answer(job.arrival.request.headers());
                *statuses.of_main.lock() = Some(OfMain { begun, shown, made });
                return answer;
            }
            None => problems::of_main(&main, "its answer makes no sense"),
        },
        // What it is itself it says all the same.
        Ok(answer) if answer.status == 404 => {
            problems::of_main(&main, "it is of a version that does not know /v1/status")
        }
        Ok(answer) if answer.status != 503 => return answer,
        Ok(_) => problems::of_main(&main, "it answers that it cannot now"),
        Err(_) if node.main().is_some_and(|main| main.is_down()) => problems::main_down(&main),
        Err(reason) => problems::of_main(&main, &reason),
    };
    let reachable = problem.kind != wire::status::ProblemKind::MainDown;
    let status = follower_status(controller, MainStatus { address: main, reachable }, vec![problem]);
    Made::of(&json(&status)).answer(job.arrival.request.headers())
}

fn ask_main(node: &Node, job: &Job, hops: &str) -> Result<Answer, String> {
    let main = node.main().expect("only a follower is asked so");
    let mut request = main.request(ureq::http::Method::GET, STATUS).header(wire::HOP_HEADER, hops);
    if let Some(authorization) = header(&job.arrival.request, AUTHORIZATION) {
        request = request.header(AUTHORIZATION, authorization);
    }
    let deadline = Deadline::after(job.complete, node.request_timeout);
    let request = complete(request, SendBody::none()).map_err(|error| error.reason)?;
    let response = main.exchange(request, Patience::Until(deadline)).map_err(|error| error.reason)?;
    take_over(response, false).map_err(|error| error.to_string())
}

fn read(answer: Answer) -> Option<Map<String, Value>> {
    match answer.body {
        Body::Bytes(bytes) => serde_json::from_slice(&bytes).ok(),
        Body::Stream { reader, .. } => {
            let mut bytes = Vec::new();
            reader.take(LONGEST).read_to_end(&mut bytes).ok()?;
            serde_json::from_slice(&bytes).ok()
        }
        Body::Value { .. } => None,
    }
}

/// What the main has said, with this node as the one that was asked.
fn show(controller: &Controller, main: &Address, mut told: Map<String, Value>) -> Made {
    let main = MainStatus { address: main.clone(), reachable: true };
    let own = json(&follower_status(controller, main, Vec::new()));
    let Value::Object(own) = own else { unreachable!("it is an object") };
    if let (Some(Value::Array(nodes)), Some(Value::Array(added))) = (told.get_mut("nodes"), own.get("nodes"))
    {
        nodes.extend(added.iter().cloned());
    }
    let said = own.into_iter().filter(|(name, _)| ["address", "role", "main"].contains(&name.as_str()));
    // In the order of the fields: who was asked comes first.
    let mut body: Map<String, Value> = said.collect();
    for (name, value) in told {
        body.entry(name).or_insert(value);
    }
    Made::of(&Value::Object(body))
}

fn json(status: &wire::status::ClusterStatus) -> Value {
    serde_json::to_value(status).expect("our own types are JSON")
}
