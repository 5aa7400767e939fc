//! Requests that wait for a view change to end, without holding a worker.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use parking_lot::Mutex;
use serde_json::Value;
use tiny_http::Method;

use super::answer::Answer;
use super::dispatch::Job;
use crate::clock::now;
use crate::error::{Applied, Error};
use crate::model::meta::{End, MetaState};
use crate::node::host;
use crate::reshard::controller::Controller;

/// How often it is looked whether the view change has ended, at least.
const ROUND: Duration = Duration::from_millis(50);
/// A view change of which nothing was heard for this long, neither that it runs nor how it ended, is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15);
/// So many requests may wait; each is for another view change but for those that were superseded.
const MOST: usize = 64;

/// The requests that wait.
#[derive(Default)]
pub struct Changes {
    waiting: Mutex<Vec<Waiting>>,
}

/// What a request waits for.
pub struct Awaited {
    /// The view change.
    pub change: u64,
    /// The causal context that the answer is to have.
    pub causal: Option<String>,
}

struct Waiting {
    awaited: Awaited,
    /// When the view change was last seen to be under way, or the request came.
    seen: Instant,
    /// Since when it is known to be blocked.
    blocked: Option<Instant>,
    job: Box<Job>,
}

impl Changes {
    /// Lets a request wait for the end of a view change; gives it back where too many do.
    pub fn park(&self, awaited: Awaited, job: Box<Job>) -> Result<(), Box<Job>> {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MOST {
            return Err(job);
        }
        waiting.push(Waiting { awaited, seen: now(), blocked: None, job });
        Ok(())
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Those that have waited for too long since their view change was first seen to be the blocked one.
    fn blocked(&self, change: Option<u64>) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock();
        for one in waiting.iter_mut() {
            one.blocked = one.blocked.filter(|_| change == Some(one.awaited.change));
            if change == Some(one.awaited.change) {
                one.blocked.get_or_insert(now());
            }
        }
        let late = |one: &Waiting| one.blocked.is_some_and(|since| now() - since > BLOCKED_PATIENCE);
        let (late, rest) = std::mem::take(&mut *waiting).into_iter().partition(late);
        *waiting = rest;
        late
    }

    /// Those whose view change has ended, or all where the node stops.
    fn ended(&self, state: Option<&MetaState>, stopping: bool) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock();
        let running = state.and_then(|state| state.change.as_ref()).map(|change| change.id);
        for one in waiting.iter_mut().filter(|one| running == Some(one.awaited.change)) {
            one.seen = now();
        }
        let over = |one: &Waiting| {
            stopping
                || now() - one.seen > FORGOTTEN_AFTER
                || state.is_some_and(|state| state.result(one.awaited.change).is_some())
        };
        let (over, rest) = std::mem::take(&mut *waiting).into_iter().partition(over);
        *waiting = rest;
        over
    }
}

/// So often it is asked whether the view change that requests wait for is blocked.
const BLOCKED_ROUND: Duration = Duration::from_secs(2);
/// A request waits for a blocked view change for this long.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(10);

/// Answers requests whose view change has ended, until the channel closes.
pub fn run(
    changes: &Changes,
    controller: &Controller,
    stop: &Receiver<()>,
    answer: impl Fn(Box<Job>, Answer),
) {
    let mut asked = now();
    while stop.try_recv() == Err(TryRecvError::Empty) {
        if changes.count() > 0 && now() - asked > BLOCKED_ROUND {
            answer_blocked(changes, controller, &answer);
            asked = now();
        }
        let node = &controller.node;
        let state = node.state();
        host::run(node.wait_for_news(state.as_ref().map_or(0, |state| state.version), ROUND));
        let state = node.state();
        let ended = changes.ended(state.as_deref(), node.is_stopping());
        if let Some(state) = state.as_ref().filter(|_| !ended.is_empty() && !node.is_stopping()) {
            // Whoever is answered may ask any other node next.
            host::run(controller.spread(state));
        }
        for one in ended {
            let end = state.as_ref().and_then(|state| state.result(one.awaited.change));
            answer(one.job, answer_to(&one.awaited, end));
        }
    }
}

/// Nobody has to wait for what may never come: who waits for a view change that is blocked is told so after a while.
fn answer_blocked(changes: &Changes, controller: &Controller, answer: impl Fn(Box<Job>, Answer)) {
    let blocked = host::run(controller.blocked_by());
    let running = controller.node.state().and_then(|state| state.change.as_ref().map(|change| change.id));
    for one in changes.blocked(running.filter(|_| blocked.is_some())) {
        let error = Error::Unclear(format!(
            "View change {:016x} is blocked by this: {}. It goes on by itself when the reason is gone, \
             and another view change takes its place",
            one.awaited.change,
            blocked.as_deref().unwrap_or_default()
        ));
        let told = Answer::error(&error, &Method::Put, &one.awaited.more_fields());
        answer(one.job, told.with("Location", "/kv-store/view-change"));
    }
}

/// The answer to who waited for a view change.
fn answer_to(awaited: &Awaited, end: Option<&End>) -> Answer {
    let error = match end {
        Some(End::Finished(receipt)) => {
            let mut body = serde_json::from_str(receipt).expect("receipts are JSON");
            add_causal(&mut body, awaited.causal.as_deref());
            return Answer::json(200, body.to_string().into_bytes());
        }
        Some(End::Refused(reason)) => Error::BadRequest(reason.clone()),
        Some(End::Failed(reason)) => {
            Error::NotServing(format!("The view change could not be done: {reason}"))
        }
        Some(End::Cancelled) => {
            Error::Conflict("The view change was cancelled: nothing has changed".to_owned())
        }
        Some(End::Superseded(by)) => Error::Conflict(format!(
            "The view change made no progress, and view change {by:016x} has taken its place"
        )),
        None => Error::NotServing(format!(
            "It is not known here how view change {:016x} ends: ask another node for its state, at /kv-store/view-change",
            awaited.change
        )),
    };
    // Where it was not planned, or cancelled in time, it has done nothing. Otherwise some pairs may have moved.
    let applied = match end {
        Some(End::Refused(_) | End::Cancelled) => Applied::No,
        _ => Applied::Unknown,
    };
    Answer::error(&error, &Method::Put, &awaited.more_fields()).with_outcome(applied)
}

impl Awaited {
    /// The fields that an answer has beyond its own.
    fn more_fields(&self) -> String {
        let causal = self.causal.as_ref();
        causal.map(|causal| format!(",\"causal-context\":{causal}")).unwrap_or_default()
    }
}

/// Adds the causal context that a request had.
pub fn add_causal(body: &mut Value, causal: Option<&str>) {
    if let Some(context) = causal.and_then(|causal| serde_json::from_str(causal).ok()) {
        body["causal-context"] = context;
    }
}
