//! Connections on which a follower passes many requests of its clients on at one time. Each is read, checked, done and answered as if it had come by HTTP; what has to
//! wait goes into the lane of clients. Anybody may open one: nothing but requests about keys is done here.

use std::borrow::Cow;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::Method;

use super::access;
use super::answer::Answer;
use super::answer_body::Body;
use super::conversation::{Answers, Conversation, Shared, Unattended, Waits};
use super::dispatch::{AskedBy, Dispatcher, Job, KeyJob};
use super::error_form::ErrorForm;
use super::key_handlers::{self, KeyHeaders, Said};
use super::lane_id::LaneId;
use super::payload;
use super::routes::{self, EncodedKey, Interface, Route};
use super::streams::{self, Protocol, Refused};
use super::target::Target;
use crate::clock::{Deadline, now};
use crate::error::Error;
use crate::wire::relayed::{self as frame, Given, LONGEST_BODY, Question};

/// Questions of one connection that wait for something; further ones are refused.
const MOST_QUESTIONS: usize = 1024;
/// What an answer may have around a value of [`LONGEST_BODY`], in bytes; all of it is shorter than a frame.
const ENVELOPE: usize = 64 << 10;

/// What such connections need of the main.
#[derive(Clone)]
pub struct Relays {
    /// Knows the node, and what waits for a worker.
    pub dispatcher: Arc<Dispatcher>,
    /// The questions that wait for anything.
    pub waiting: Arc<Unattended>,
    /// What all connections for many questions have in common.
    pub shared: Shared,
}

/// Has a request done that cannot be done at once. It never waits.
type Begin = dyn Fn(Box<KeyJob>) + Send + Sync;

/// The questions that come on one connection.
pub struct Relayed {
    relays: Relays,
    begin: Box<Begin>,
    /// Those that wait.
    waiting: Arc<Unattended>,
}

/// A question that waits, and whom to tell what came of it.
pub struct Asked {
    conversation: Arc<Conversation<Relayed>>,
    number: u64,
    /// When it came.
    pub arrived: Instant,
    waits: [Waits; 2],
}

/// The answer to a question that has waited.
pub struct Told {
    number: u64,
    method: Method,
    /// Nothing where it has to be asked by HTTP.
    answer: Option<Answer>,
    _waits: [Waits; 2],
}

impl Asked {
    /// Has it answered. Nobody waits for the follower to take that.
    pub fn answer(self, method: Method, answer: Option<Answer>) {
        let Self { conversation, number, waits, .. } = self;
        conversation.tell(Told { number, method, answer, _waits: waits });
    }
}

impl Relays {
    /// Takes a connection; gives the request back with an error where that is not to be.
    pub fn take(
        &self,
        job: Box<Job>,
        begin: impl Fn(Box<KeyJob>) + Send + Sync + 'static,
    ) -> Result<(), Refused> {
        let relayed = Relayed {
            relays: self.clone(),
            begin: Box::new(begin),
            waiting: Unattended::new(MOST_QUESTIONS),
        };
        let prepared = streams::prepare(&self.dispatcher.node, job, Protocol::Relay, self.shared.port)?;
        prepared.answer("relayed-by", |socket| Conversation::new(relayed, socket, &self.shared));
        Ok(())
    }
}

/// The protocol of such connections.
pub use frame::PROTOCOL;

/// What can be said of a question at once.
enum Begun {
    /// What came of it, and the route that is answered for.
    Answered(Option<Route>, Answer),
    /// It has to be asked by HTTP.
    ByHttp,
    /// It is known later.
    Waits,
}

impl Relayed {
    /// Does what needs no waiting, and sees to it that the rest is done.
    fn begin(
        &self,
        conversation: &Arc<Conversation<Self>>,
        (number, question): (u64, &Question),
        arrived: Instant,
    ) -> Begun {
        let (node, method) = (&self.relays.dispatcher.node, method(question.method));
        let target = Target::of(question.target);
        let interface = routes::interface(target.path(question.target));
        if node.is_stopping() {
            return Begun::Answered(None, self.refusal(&method, interface));
        }
        if question.body.len() > LONGEST_BODY {
            return Begun::ByHttp;
        }
        let found = key_handlers::find_route(node, target.path(question.target));
        let route = found.as_ref().ok().map(|(route, _)| *route);
        let reach = match access::judge(node, route, &method, question.headers.iter().copied()) {
            Ok(reach) => reach,
            Err(error) => return Begun::Answered(None, Answer::error(&error, &method, interface)),
        };
        let (route, encoded) = match found {
            Ok((route, rest)) if route.is_of_client_key() => (route, EncodedKey::of(rest)),
            // The others may take long, and are few.
            Ok(_) if routes::is_store(target.path(question.target)) => return Begun::ByHttp,
            Ok(_) => {
                let error = Error::NotFound("Only keys are under a path here".to_owned());
                return Begun::Answered(None, Answer::error(&error, &method, ""));
            }
            Err(error) => {
                let more = payload::causal_field(question.body);
                let form = ErrorForm::of(interface, &more);
                return Begun::Answered(None, Answer::error(&error, &method, form));
            }
        };
        let patience = node.request_timeout.min(Duration::from_millis(question.left_ms));
        let said = Said {
            interface,
            method: method.clone(),
            query: target.query(question.target),
            headers: KeyHeaders::among(question.headers.iter().copied()),
            reach,
            deadline: Deadline::after(arrived, patience),
        };
        let request = match key_handlers::read_held(node, said, encoded, question.body) {
            None => return Begun::ByHttp,
            Some(Err(answer)) => return Begun::Answered(Some(route), *answer),
            Some(Ok(request)) => request,
        };
        if let Some(result) = request.run_at_once(node) {
            let answer = key_handlers::answer(&request, node, result);
            if is_too_long(&answer, &method) {
                return Begun::ByHttp;
            }
            return Begun::Answered(Some(route), answer);
        }
        let waits = self.waiting.enter().zip(self.relays.waiting.enter());
        let Some((own, all)) = waits else {
            return Begun::Answered(None, self.refusal(&method, interface));
        };
        let asked = Asked { conversation: Arc::clone(conversation), number, arrived, waits: [own, all] };
        (self.begin)(Box::new(KeyJob { request, asked_by: AskedBy::Follower(asked) }));
        Begun::Waits
    }

    fn refusal(&self, method: &Method, interface: Interface) -> Answer {
        Answer::error(&self.relays.dispatcher.refusal(), method, interface)
    }
}

impl Answers for Relayed {
    type Told = Told;

    fn take(&self, conversation: &Arc<Conversation<Self>>, frame: &[u8]) -> io::Result<()> {
        let (number, question) = Question::decode(frame).map_err(io::Error::other)?;
        let arrived = now();
        let dispatcher = &self.relays.dispatcher;
        let begun = catch_unwind(AssertUnwindSafe(|| self.begin(conversation, (number, &question), arrived)));
        let begun = begun.unwrap_or_else(|_| {
            let interface = routes::interface(Target::of(question.target).path(question.target));
            let answer = dispatcher.panicked(&method(question.method), interface);
            Begun::Answered(None, answer)
        });
        match begun {
            Begun::Waits => {}
            Begun::ByHttp => conversation.put(|out| frame::Answer::ByHttp.encode(number, out)),
            Begun::Answered(route, answer) => {
                dispatcher.metrics.answered(LaneId::Client, route, answer.status, now() - arrived);
                conversation.put(|out| encode(&answer, &method(question.method), number, out));
            }
        }
        Ok(())
    }

    fn own_bytes(told: &Told) -> usize {
        told.answer.as_ref().map_or(0, |answer| {
            if answer.is_stored() {
                0
            } else {
                answer.body.length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0)
            }
        })
    }

    fn let_go(told: &mut Told) {
        // What a write has done is told in any case, and is short.
        if told.method == Method::Get {
            told.answer = None;
        }
    }

    fn answer(&self, conversation: &Conversation<Self>, told: Told) {
        conversation.put(|out| match &told.answer {
            Some(answer) => encode(answer, &told.method, told.number, out),
            None => frame::Answer::ByHttp.encode(told.number, out),
        });
    }

    /// Anybody may have opened it, so it is not kept for nothing. A follower hears of that first: what it has sent just now is answered.
    fn idle(&self, conversation: &Conversation<Self>) -> io::Result<()> {
        if self.waiting.waiting() > 0 {
            return Ok(());
        }
        if conversation.end() { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

fn method(method: frame::Method) -> Method {
    match method {
        frame::Method::Get => Method::Get,
        frame::Method::Put => Method::Put,
        frame::Method::Delete => Method::Delete,
    }
}

/// Whether an answer goes by HTTP, as it is too long: it is a value that was read, or says that nothing was done. What a write has done, and a context as long as a body may be here, is
/// short enough.
pub fn is_too_long(answer: &Answer, method: &Method) -> bool {
    match &answer.body {
        Body::Value { part, .. } if *method == Method::Get && part.len() > LONGEST_BODY => true,
        body => body.length().is_none_or(|length| length > (LONGEST_BODY + ENVELOPE) as u64),
    }
}

/// Appends an answer.
fn encode(answer: &Answer, method: &Method, number: u64, out: &mut Vec<u8>) {
    if is_too_long(answer, method) {
        return frame::Answer::ByHttp.encode(number, out);
    }
    let body = match &answer.body {
        Body::Bytes(bytes) => Cow::Borrowed(&bytes[..]),
        body @ Body::Value { .. } => {
            let mut bytes = Vec::new();
            body.append_to(&mut bytes);
            Cow::Owned(bytes)
        }
        Body::Stream { .. } => unreachable!("only a follower has such answers"),
    };
    let headers = answer.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    let given = Given { status: answer.status, content_type: &answer.content_type, headers, body: &body };
    frame::Answer::Given(given).encode(number, out);
}
