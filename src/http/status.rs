//! What `/v1/status` answers: made at most once a second for all who ask, by a thread of its own, so that no worker waits for other nodes.

use std::collections::VecDeque;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value, json};
use tiny_http::Method;
use ureq::SendBody;

use super::answer::Answer;
use super::answer_body::Body;
use super::body::Limit;
use super::dispatch::Job;
use super::error_form::ErrorForm;
use super::node_handlers::header;
use super::relay::{next_hops, take_over};
use super::routes::{Route, STATUS};
use crate::clock::{Deadline, now};
use crate::error::Error;
use crate::model::address::Address;
use crate::node::problems;
use crate::node::state::Node;
use crate::peers::client::{Patience, complete};
use crate::reshard::controller::Controller;
use crate::reshard::overview::follower_status;
use crate::wire;
use crate::wire::status::{MainStatus, Problem};

/// An answer is told to all who ask for so long.
const FRESH: Duration = Duration::from_secs(1);
/// So many may wait for the next one.
const MOST: usize = 1024;
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// A body of such a request is not looked at; a longer one is refused.
const BODY: Limit = Limit { bytes: 1 << 20, allowed: 1 << 20 };
/// The answer of a main is no longer than this, in bytes.
const LONGEST: u64 = 64 << 20;

/// The last answer, and those who wait for the next one.
#[derive(Default)]
pub struct Statuses {
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    /// When it was begun.
    last: Option<(Instant, Arc<[u8]>)>,
    waiting: VecDeque<Box<Job>>,
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
        if let Some((begun, body)) = &state.last
            && now() - *begun < FRESH
        {
            let answer = Answer::json(200, body.to_vec());
            return Taken::Answer(job, answer);
        }
        if state.waiting.len() >= MOST {
            return Taken::Full(job);
        }
        state.waiting.push_back(job);
        drop(state);
        self.asked.notify_one();
        Taken::Parked
    }

    /// Waits until somebody waits, for a while at most; whether somebody does.
    fn is_asked(&self) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            self.asked.wait_for(&mut state, LOOK);
        }
        !state.waiting.is_empty()
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
        if !statuses.is_asked() {
            continue;
        }
        let begun = now();
        let made = catch_unwind(AssertUnwindSafe(|| {
            serde_json::to_vec(&controller.overview()).expect("our own types are JSON")
        }));
        let made: Option<Arc<[u8]>> = made.ok().map(Arc::from);
        let mut state = statuses.state.lock();
        state.last = made.clone().map(|body| (begun, body));
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for job in waiting {
            let told = match &made {
                Some(body) => Answer::json(200, body.to_vec()),
                None => Answer::error(&Error::Internal, job.arrival.method(), ErrorForm::Problem),
            };
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
pub fn of_follower(controller: &Controller, job: &mut Job) -> Answer {
    let node = &controller.node;
    if let Some(refused) = check(node, job) {
        return refused;
    }
    let main = node.main().expect("only a follower is asked so").address().clone();
    let told = match next_hops(&job.arrival, &node.trace) {
        Ok(hops) => ask_main(node, job, &hops),
        Err(error) => return Answer::error(&error, job.arrival.method(), ErrorForm::Problem),
    };
    let problem = match told {
        Ok(answer) if answer.status == 200 => match read(answer) {
            Some(told) => return show(controller, &main, told),
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
    alone(controller, MainStatus { address: main, reachable }, problem)
}

fn ask_main(node: &Node, job: &Job, hops: &str) -> Result<Answer, String> {
    let main = node.main().expect("only a follower is asked so");
    let mut request = main.request(ureq::http::Method::GET, STATUS).header(wire::HOP_HEADER, hops);
    if let Some(authorization) = header(&job.arrival.request, "Authorization") {
        request = request.header("Authorization", authorization);
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
fn show(controller: &Controller, main: &Address, mut told: Map<String, Value>) -> Answer {
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
    Answer::json(200, Value::Object(body).to_string().into_bytes())
}

/// What a follower knows by itself.
fn alone(controller: &Controller, main: MainStatus, problem: Problem) -> Answer {
    let status = follower_status(controller, main, vec![problem]);
    Answer::json(200, json!(status).to_string().into_bytes())
}

fn json(status: &wire::status::ClusterStatus) -> Value {
    serde_json::to_value(status).expect("our own types are JSON")
}
