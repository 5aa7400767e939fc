//! A request from the moment that it has come until it is given up: it waits for the one before it on its connection, then for a worker of its lane.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::socket::Shutdown;
use parking_lot::Mutex;
use tiny_http::{Method, Request};

use super::answer::{Answer, Unwritten};
use super::body::{self, BodyBytes, Limit};
use super::connections::{Admission, Connections, Settled};
use super::framing::{BUFFERED_BYTES, Framing};
use super::gate::Gate;
use super::generation::Generation;
use super::key_request::KeyRequest;
use super::lane_id::LaneId;
use super::lanes::Lanes;
use super::metrics::Metrics;
use super::relay::Onward;
use super::relayed::Asked;
use super::routes::{self, Interface};
use super::sockets::{self, Held, Known};
use super::target::Target;
use super::watchdog::{Watch, Watchdog};
use crate::access::Reach;
use crate::budget::Budget;
use crate::clock::now;
use crate::config::ServerLimits;
use crate::error::Error;
use crate::node::state::Node;
use crate::peers::multiplex;
use crate::wire;

/// Requests that may wait to be refused; further ones are thrown away with their connections.
const SHED_QUEUE: usize = 1024;

/// A request as it came from tiny_http.
pub struct Arrival {
    /// The request.
    pub request: Request,
    /// Where path and query are in its target.
    pub target: Target,
    /// Where its body is.
    pub framing: Framing,
    /// When its headers had come.
    pub arrived: Instant,
    /// The accept loop that its connection came through, which lives as long as anybody holds this.
    pub generation: Arc<Generation>,
}

impl Arrival {
    /// The path of the request's target, not decoded.
    pub fn path(&self) -> &str {
        self.target.path(self.request.url())
    }

    /// The interface whose words it is answered in.
    pub fn interface(&self) -> Interface {
        routes::interface(self.path())
    }

    /// The query of the request's target, not decoded, where there is one.
    pub fn query(&self) -> Option<&str> {
        self.target.query(self.request.url())
    }

    /// What is done and answered: HEAD is a GET whose body is not sent.
    pub fn method(&self) -> &Method {
        match self.request.method() {
            Method::Head => &Method::Get,
            method => method,
        }
    }

    /// The trace of followers that it has come through.
    pub fn hops(&self) -> Option<&str> {
        let trace = self.request.headers().iter().find(|header| header.field.equiv(wire::HOP_HEADER));
        trace.map(|header| header.value.as_str())
    }
}

/// A request in a lane.
pub struct Job {
    /// The request as it came.
    pub arrival: Arrival,
    /// Lets the connection's next request go when dropped.
    pub ticket: Ticket,
    /// The keys that it may be about.
    pub reach: Reach,
    /// Whether the body has been read.
    pub body_was_read: bool,
    /// When the request had come wholly, as far as it is known: the time for its answer counts from here.
    pub complete: Instant,
}

/// A request about a key that was read, until it is answered.
pub struct KeyJob {
    /// The request.
    pub request: KeyRequest,
    /// Who is told what came of it.
    pub asked_by: AskedBy,
}

/// Who has asked about a key.
pub enum AskedBy {
    /// A client or another node, by HTTP.
    Http(Box<Job>),
    /// A follower, on a connection for many requests.
    Follower(Asked),
}

impl KeyJob {
    /// When it came.
    fn arrived(&self) -> Instant {
        match &self.asked_by {
            AskedBy::Http(job) => job.arrival.arrived,
            AskedBy::Follower(asked) => asked.arrived,
        }
    }

    /// Since when it has been waiting, where it may be given up for that.
    pub fn may_be_late(&self) -> Option<Instant> {
        (!self.request.is_told()).then(|| self.arrived())
    }

    /// Whether its body was not there when its headers had come.
    pub fn was_on_its_way(&self) -> bool {
        matches!(&self.asked_by, AskedBy::Http(job) if job.arrival.framing.is_on_its_way())
    }
}

impl Job {
    /// The body, where reading it waits for nobody; empty otherwise.
    pub fn small_body(&mut self) -> Vec<u8> {
        let limit = Limit { bytes: BUFFERED_BYTES, allowed: BUFFERED_BYTES };
        let is_small = matches!(self.arrival.framing, Framing::Buffered(_));
        let body = if is_small { self.read_body(limit, &Budget::new(0)).ok() } else { None };
        body.map(|body| body.bytes).unwrap_or_default()
    }

    /// A request that was admitted.
    pub fn new(arrival: Arrival, ticket: Ticket) -> Self {
        let complete = arrival.arrived;
        Self { arrival, ticket, reach: Reach::default(), body_was_read: false, complete }
    }

    /// Reads the whole body, up to a limit.
    ///
    /// # Errors
    /// See [`body::read`].
    pub fn read_body(&mut self, limit: Limit, budget: &Budget) -> Result<BodyBytes, Error> {
        self.read_body_behind(Vec::new(), limit, budget)
    }

    /// The same behind a head that does not count.
    ///
    /// # Errors
    /// See [`body::read`].
    pub fn read_body_behind(
        &mut self,
        head: Vec<u8>,
        limit: Limit,
        budget: &Budget,
    ) -> Result<BodyBytes, Error> {
        let watch = self.arrival.framing.is_on_its_way().then(|| self.ticket.watch());
        let Arrival { request, framing, .. } = &mut self.arrival;
        let body = body::read(request, framing, limit, budget, watch, head)?;
        self.body_was_read = true;
        if self.arrival.framing.is_on_its_way() {
            self.complete = now();
        }
        Ok(body)
    }
}

/// What a worker gets to do.
pub enum Work {
    /// A request to handle.
    Handle(Box<Job>),
    /// One about a key that was read.
    Key(Box<KeyJob>),
    /// One of a follower's clients, and what came of passing it on.
    Relayed(Box<Onward>, multiplex::Answer),
    /// A large answer to write.
    Write(Box<Job>, Box<Answer>),
    /// The rest of a small answer that the client did not take at once.
    Finish(Box<Unfinished>),
}

impl Work {
    /// Since when it has been waiting, where it may be given up for that. What a write has done, or may have done, is told, even if that takes a while.
    pub fn may_be_late(&self) -> Option<Instant> {
        match self {
            Self::Handle(job) => Some(job.arrival.arrived),
            Self::Key(job) => job.may_be_late(),
            Self::Relayed(..) => None,
            Self::Write(job, _) => (!is_change(job.arrival.request.method())).then_some(job.arrival.arrived),
            Self::Finish(rest) => Some(rest.since),
        }
    }
}

/// Whether a request of this method may have changed something that only its answer tells of.
pub const fn is_change(method: &Method) -> bool {
    matches!(method, Method::Put | Method::Delete | Method::Patch | Method::Post)
}

/// The rest of an answer, and what is held until it is written.
pub struct Unfinished {
    /// Since when the client has not taken it.
    pub since: Instant,
    /// What is to be written.
    pub unwritten: Unwritten,
    /// Whether nothing that follows on the connection will be answered.
    pub close: bool,
    /// Lets the connection's next request go when dropped.
    pub ticket: Ticket,
    /// The accept loop that its connection came through.
    pub generation: Arc<Generation>,
}

/// The right of one request of a connection to be answered; the next one gets it when this is dropped.
pub struct Ticket {
    dispatcher: Arc<Dispatcher>,
    client: SocketAddr,
}

impl Ticket {
    /// The client, by which the connection is known.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The connection; with the number of its socket, where that was noted when it was said that the connection ends.
    pub fn connection(&self) -> Known {
        (self.client, self.dispatcher.connections.socket(self.client))
    }

    /// Reads what comes on the connection, as long as somebody holds the request.
    pub fn watch(&self) -> Watch {
        self.dispatcher.watchdog.watch(self.client)
    }

    /// Nothing that comes on this connection after this request will be answered. It is called before the answer is written wherever that is possible: whoever has read it may come again
    /// from the same address.
    pub fn end_connection(&self) {
        if self.end()
            && let Some(held) = self.dispatcher.held_sockets()
            && let Some(socket) = held.clients.get(&self.client)
        {
            self.dispatcher.connections.note(self.client, *socket);
        }
    }

    /// The same for one whose socket has just been seen.
    pub fn end_connection_of(&self, socket: u64) {
        if self.end() {
            self.dispatcher.connections.note(self.client, socket);
        }
    }

    /// Whether its socket was not seen yet.
    fn end(&self) -> bool {
        let (arrivals, is_unseen) = self.dispatcher.connections.end(self.client);
        for arrival in arrivals {
            self.dispatcher.throw_away(self.client, arrival);
        }
        is_unseen
    }

    /// The same where nobody will read the body of this request: then nothing can come, either.
    pub fn park_connection(&self) {
        self.end_connection();
        self.dispatcher.park(self.client);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(arrival) = self.dispatcher.connections.answered(self.client) {
            self.dispatcher.dispatch(self.client, arrival);
        }
    }
}

/// Gives requests that have come to their lanes, or has them refused.
pub struct Dispatcher {
    /// The node, which may be stopping, or a follower.
    pub node: Arc<Node>,
    /// What waits for a worker.
    pub lanes: Lanes<Work>,
    /// What waits for its turn at another node: small requests, and large ones.
    pub gates: [Gate<Work>; 2],
    /// One request of a connection is in progress.
    pub connections: Connections<Arrival>,
    shed: Sender<(LaneId, Box<Job>)>,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// Ends reads that wait for a silent client.
    pub watchdog: Arc<Watchdog>,
    /// The port that is listened on.
    pub port: u16,
    looks: Mutex<Looks>,
}

/// Looking at the sockets of the process takes a part of a core at most, also where a client has many connections cut off: each look is paid for by a time without one, so many times as
/// long as it takes.
const LOOKS_APART: u32 = 20;
/// So long it takes for each descriptor that is open, about. What it really took would say how busy the machine is.
const LOOK_PER_DESCRIPTOR: Duration = Duration::from_micros(6);
/// A time without a look counts only if it is no longer ago than this.
const LOOKS_SAVED: Duration = Duration::from_secs(1);

/// Up to when the looks at the sockets of the process are paid for.
struct Looks(Instant);

impl Looks {
    fn may_look(&self) -> bool {
        self.0 <= now()
    }

    fn pay(&mut self, took: Duration) {
        let oldest = now().checked_sub(LOOKS_SAVED).unwrap_or(self.0);
        self.0 = self.0.max(oldest) + took * LOOKS_APART;
    }
}

impl Dispatcher {
    /// Nothing has come yet. The queue is of requests that are to be refused.
    pub fn new(node: Arc<Node>, limits: &ServerLimits, port: u16) -> (Self, Receiver<(LaneId, Box<Job>)>) {
        let gate = |lane: LaneId| Gate::new(lane.workers(limits), limits.queue_length);
        let (shed, shed_queue) = bounded(SHED_QUEUE);
        let dispatcher = Self {
            lanes: Lanes::new(limits),
            gates: [gate(LaneId::Client), gate(LaneId::ClientLarge)],
            connections: Connections::new(limits.pipeline_depth),
            shed,
            metrics: Arc::new(Metrics::new(node.main().is_some())),
            watchdog: Arc::new(Watchdog::new(port)),
            port,
            node,
            looks: Mutex::new(Looks(now())),
        };
        (dispatcher, shed_queue)
    }

    /// Whether the node passes everything on.
    pub fn is_follower(&self) -> bool {
        self.node.main().is_some()
    }

    /// Sorts a request that has come. Called by the thread that listens, so it never waits and never answers.
    pub fn take(self: &Arc<Self>, request: Request, generation: &Arc<Generation>) {
        let Some(client) = request.remote_addr().copied() else { return };
        let (target, framing) = (Target::of(request.url()), Framing::of(&request));
        let arrival =
            Arrival { request, target, framing, arrived: now(), generation: Arc::clone(generation) };
        match self.connections.admit(client, arrival) {
            Admission::Run(arrival) => self.dispatch(client, arrival),
            Admission::Waits => {}
            Admission::CutOff(arrival) => self.throw_away(client, arrival),
        }
    }

    fn dispatch(self: &Arc<Self>, client: SocketAddr, arrival: Arrival) {
        let ticket = Ticket { dispatcher: Arc::clone(self), client };
        let lane = self.lane_of(&arrival);
        let job = Box::new(Job::new(arrival, ticket));
        if self.node.is_stopping() {
            self.refuse(lane, job);
        } else if let Err(work) = self.lanes.offer(lane, Work::Handle(job)) {
            self.give_up(lane, work);
        }
    }

    /// Refuses work for which there is no place, or that has waited for too long.
    pub fn give_up(&self, lane: LaneId, work: Work) {
        self.metrics.shed(lane);
        match work {
            Work::Handle(job) | Work::Write(job, _) => self.refuse(lane, job),
            Work::Key(job) => match job.asked_by {
                AskedBy::Http(job) => self.refuse(lane, job),
                AskedBy::Follower(asked) => {
                    let method = job.request.method();
                    let answer = Answer::error(&self.refusal(), &method, job.request.interface());
                    self.metrics.answered(lane, None, answer.status, now() - asked.arrived);
                    asked.answer(method, Some(answer));
                }
            },
            Work::Relayed(onward, _) => self.refuse(lane, onward.job),
            // A part of the answer is written: no other could be told apart from its rest.
            Work::Finish(rest) => rest.ticket.end_connection(),
        }
    }

    /// The answer to a request whose handler has panicked.
    pub fn panicked(&self, method: &Method, interface: Interface) -> Answer {
        self.metrics.panics.inc();
        Answer::error(&Error::Internal, method, interface)
    }

    /// What whoever is refused is told.
    pub fn refusal(&self) -> Error {
        let reason = if self.node.is_stopping() { "The node is stopping" } else { "The node is overloaded" };
        Error::Overloaded(format!("{reason}: try again after the time in Retry-After"))
    }

    fn lane_of(&self, arrival: &Arrival) -> LaneId {
        let path = arrival.path();
        let hops = if self.is_follower() { arrival.hops() } else { None };
        if hops.is_some_and(|hops| hops.contains(&self.node.trace)) {
            // It has come round in a circle: answered where nothing waits, so the circle cannot be one of waiting.
            return LaneId::Health;
        }
        let lane = match routes::lane(path) {
            // What another follower passes on waits for nobody further left.
            LaneId::Client | LaneId::Health if hops.is_some() => LaneId::Forwarded,
            lane => lane,
        };
        if arrival.framing.is_on_its_way() { lane.large() } else { lane }
    }

    /// Has a request refused by the thread for that; where even that has too much to do, it is thrown away.
    pub fn refuse(&self, lane: LaneId, job: Box<Job>) {
        if let Err(error) = self.shed.try_send((lane, job)) {
            let (_, job) = error.into_inner();
            job.ticket.end_connection();
            let Job { arrival, ticket, .. } = *job;
            ticket.dispatcher.throw_away(ticket.client, arrival);
            drop(ticket);
        }
    }

    /// Throws a request away without an answer. A body that is still on its way cannot be left without waiting for it.
    fn throw_away(self: &Arc<Self>, client: SocketAddr, arrival: Arrival) {
        self.metrics.cut_off.inc();
        if arrival.framing.is_on_its_way() {
            self.metrics.abandoned.inc();
            std::mem::forget(arrival.request);
            self.park(client);
        } else {
            drop(arrival.request.into_writer());
        }
    }

    /// Nothing more can come of a connection. What has come under its address is of a new one.
    fn park(self: &Arc<Self>, client: SocketAddr) {
        if let Some(arrival) = self.connections.park(client) {
            self.dispatch(client, arrival);
        }
    }

    /// The sockets of the process, if they may be looked at again already.
    fn held_sockets(&self) -> Option<Held> {
        let mut looks = self.looks.lock();
        if !looks.may_look() {
            return None;
        }
        let held = sockets::held(self.port).ok();
        let descriptors = held.as_ref().map_or(0, |held| held.descriptors);
        looks.pay(LOOK_PER_DESCRIPTOR * u32::try_from(descriptors).unwrap_or(u32::MAX));
        held
    }

    /// Decides of what has come under the addresses of connections that were cut off; forgets those that are closed by now, if they are to be looked for.
    pub fn settle(self: &Arc<Self>, looks_for_closed: bool, closed_after: Duration) {
        let (any, is_unclear) = self.connections.cut_off();
        if !(is_unclear || (any && looks_for_closed)) {
            return;
        }
        let held = self.held_sockets();
        if held.is_none() && !looks_for_closed {
            return;
        }
        let Settled { run, thrown, shut } = self.connections.settle(held.as_ref(), closed_after);
        // What was thrown away is held until then, so no other connection has come in the place of one that is open.
        self.watchdog.shut(&shut, Shutdown::Both);
        for (client, arrival) in thrown {
            self.throw_away(client, arrival);
        }
        for (client, arrival) in run {
            self.dispatch(client, arrival);
        }
    }

    /// Runs something that must not end its thread, whatever goes wrong.
    pub fn contain(&self, run: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.metrics.panics.inc();
        }
    }
}
