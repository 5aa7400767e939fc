//! The way of a request through the server: from the accept loop to its lane, through its handler, to its answer.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tiny_http::Request;

use super::accept::{self, Acceptor, Generation};
use super::answer::{self, Answer};
use super::budget::Budget;
use super::connections::{Admission, Connections};
use super::framing::Framing;
use super::gate::{Entry, Gate};
use super::lanes::{Arrival, Job, LaneId, Lanes, Ticket, Work};
use super::linger::{self, Linger, Rest};
use super::routes::{self, Route};
use super::{cluster_handlers, key_handlers, node_handlers, own_handlers, relay};
use crate::clock::now;
use crate::config::Config;
use crate::error::Error;
use crate::metrics::{Metrics, Sample};
use crate::model::address::Address;
use crate::node::greeter;
use crate::node::state::Node;
use crate::threads;

/// Requests that may wait to be refused; further ones are thrown away with their connections.
const SHED_QUEUE: usize = 1024;

/// The server, shared by all its threads.
pub struct Server {
    /// The node it serves.
    pub node: Arc<Node>,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    /// The memory for large bodies and answers.
    pub budget: Budget,
    lanes: Lanes,
    gates: [Gate<Box<Job>>; 2],
    connections: Connections<Arrival>,
    shed: Sender<(LaneId, Box<Job>)>,
    linger: Linger,
    port: OnceLock<u16>,
}

/// A server that runs; it stops listening when this is dropped.
pub struct Running {
    /// The server.
    pub server: Arc<Server>,
    /// Where it listens.
    pub listening: SocketAddr,
    stop: Vec<Sender<()>>,
}

impl Server {
    /// Opens the socket and starts all threads.
    ///
    /// # Errors
    /// When the address is taken, or the system has no threads left to give.
    pub fn start(config: &Config) -> io::Result<Running> {
        let listener = accept::listen(config.listen, config.server.idle_timeout)?;
        let listening = listener.local_addr()?;
        let node = Arc::new(Node::new(config));
        let metrics = Arc::new(Metrics::new(node.main().is_some()));
        let limits = &config.server;
        let (shed, shed_queue) = bounded(SHED_QUEUE);
        let gate = |lane: LaneId| Gate::new(lane.workers(limits), limits.queue_length);
        let server = Arc::new(Self {
            budget: Budget::new(limits.large_memory),
            lanes: Lanes::new(limits),
            gates: [gate(LaneId::Client), gate(LaneId::ClientLarge)],
            connections: Connections::new(limits.pipeline_depth),
            shed,
            linger: Linger::start(&metrics)?,
            port: OnceLock::from(listening.port()),
            metrics,
            node,
        });
        server.lanes.start(&server, limits)?;
        let own = Arc::clone(&server);
        threads::spawn("shed", move || own.refuse_all(&shed_queue))?;
        let acceptor = Acceptor::start(&server, listener, limits.idle_timeout)?;
        let (stop_accept, stopped) = bounded(0);
        threads::spawn("http-accept", move || {
            if let Err(error) = acceptor.run(&stopped) {
                log::error!("the accept loop is not watched any more: {error}");
            }
        })?;
        let (stop_greeter, stopped) = bounded(0);
        let node = Arc::clone(&server.node);
        threads::spawn("greeter", move || greeter::run(&node, &stopped))?;
        Ok(Running { server, listening, stop: vec![stop_accept, stop_greeter] })
    }

    /// Whether the node passes everything on.
    pub fn is_follower(&self) -> bool {
        self.node.main().is_some()
    }

    /// Sorts a request that has come. Called by the thread that listens, so it never waits and never answers.
    pub fn take(self: &Arc<Self>, request: Request, generation: &Arc<Generation>) {
        let Some(client) = request.remote_addr().copied() else { return };
        let framing = Framing::of(&request);
        let arrival = Arrival { request, framing, arrived: now(), generation: Arc::clone(generation) };
        match self.connections.admit(client, arrival) {
            Admission::Run(arrival) => self.dispatch(client, arrival),
            Admission::Waits => {}
            Admission::CutOff(arrival) => self.throw_away(arrival),
        }
    }

    fn dispatch(self: &Arc<Self>, client: SocketAddr, arrival: Arrival) {
        let ticket = Ticket::new(Arc::clone(self), client);
        let lane = self.lane_of(&arrival);
        let job = Box::new(Job { arrival, ticket, body_was_read: false });
        if self.node.is_stopping() {
            self.refuse(lane, job);
        } else if let Err(Work::Handle(job)) = self.lanes.offer(lane, Work::Handle(job)) {
            self.metrics.shed(lane);
            self.refuse(lane, job);
        }
    }

    fn lane_of(&self, arrival: &Arrival) -> LaneId {
        let target = arrival.request.url();
        let hops = relay::hops(&arrival.request);
        if hops.is_some_and(|hops| hops.contains(&self.node.instance)) {
            // It has come round in a circle: answered where nothing waits, so the circle cannot be one of waiting.
            return LaneId::Health;
        }
        let lane = if target.starts_with("/node/") || hops.is_some() {
            LaneId::Forwarded
        } else if ["/livez", "/readyz", "/metrics"].contains(&target) {
            LaneId::Health
        } else {
            LaneId::Client
        };
        if arrival.framing.is_on_its_way() { lane.large() } else { lane }
    }

    /// Has a request refused by the thread for that; where even that has too much to do, it is thrown away.
    fn refuse(&self, lane: LaneId, job: Box<Job>) {
        if let Err(error) = self.shed.try_send((lane, job)) {
            let (_, job) = error.into_inner();
            job.ticket.end_connection();
            let Job { arrival, ticket, .. } = *job;
            self.throw_away(arrival);
            drop(ticket);
        }
    }

    fn refuse_all(self: &Arc<Self>, queue: &Receiver<(LaneId, Box<Job>)>) {
        for (lane, mut job) in queue {
            let reason =
                if self.node.is_stopping() { "The node is stopping" } else { "The node is overloaded" };
            let error = Error::Overloaded(format!("{reason}: try again after the time in Retry-After"));
            let mut answer = Answer::error(&error, job.arrival.request.method(), "");
            answer.close = self.node.is_stopping();
            self.finish(lane, &mut job, Route::label(None), &answer);
            self.write(lane, job, answer);
        }
    }

    /// Throws a request away without an answer. A body that is still on its way cannot be left without waiting for it.
    fn throw_away(&self, arrival: Arrival) {
        self.metrics.cut_off.inc();
        if arrival.framing.is_on_its_way() {
            self.metrics.abandoned.inc();
            std::mem::forget(arrival.request);
        } else {
            drop(arrival.request.into_writer());
        }
    }

    /// A request was answered: the next one of its connection may go.
    pub fn answered(self: &Arc<Self>, client: SocketAddr) {
        if let Some(arrival) = self.connections.answered(client) {
            self.dispatch(client, arrival);
        }
    }

    /// Nothing more will be answered on this connection.
    pub fn end_connection(&self, client: SocketAddr) {
        for arrival in self.connections.end(client) {
            self.throw_away(arrival);
        }
    }

    /// Forgets connections that are closed by now.
    pub fn sweep(&self, closed_after: Duration) {
        self.connections.sweep(closed_after);
    }

    /// How many requests are in progress.
    pub fn busy(&self) -> usize {
        self.connections.busy()
    }

    /// The figures that are looked up when they are asked for.
    pub fn sample(&self) -> Sample {
        let size = self.node.store.size();
        Sample {
            queued: LaneId::ALL.map(|lane| (lane, self.lanes.waiting(lane))).to_vec(),
            busy: self.busy(),
            pairs: size.pairs,
            bytes: size.bytes,
            port: self.port.get().copied().unwrap_or(0),
        }
    }

    /// What a worker does.
    pub fn work(self: &Arc<Self>, lane: LaneId, work: Work) {
        match work {
            Work::Write(job, answer) => self.write(lane, job, *answer),
            Work::Handle(job) => {
                let mut next = Some(job);
                while let Some(job) = next {
                    next = self.handle(lane, job);
                }
            }
        }
    }

    /// Handles one request; the result is one that was parked and has to be handled next.
    fn handle(self: &Arc<Self>, lane: LaneId, job: Box<Job>) -> Option<Box<Job>> {
        let Some(node) = self.destination(&job) else {
            self.answer(lane, job);
            return None;
        };
        let gate = &self.gates[usize::from(lane == LaneId::ClientLarge)];
        match gate.enter(&node, job) {
            Entry::Parked => None,
            Entry::Full(job) => {
                self.metrics.shed(lane);
                self.refuse(lane, job);
                None
            }
            Entry::Enter(job) => {
                let mut next = Some(job);
                while let Some(job) = next {
                    self.answer(lane, job);
                    next = gate.leave(&node);
                }
                None
            }
        }
    }

    /// The other node that a client's request will have to be passed on to.
    fn destination(&self, job: &Job) -> Option<Address> {
        if self.is_follower() || matches!(job.arrival.framing, Framing::Refused(_)) {
            return None;
        }
        let path = routes::path(job.arrival.request.url());
        let Ok(Route::Key(encoded)) = routes::find(path, true) else { return None };
        let key = routes::decode_key(encoded).ok()?;
        key_handlers::owner(self, &key).address().cloned()
    }

    fn answer(self: &Arc<Self>, lane: LaneId, mut job: Box<Job>) {
        let handled = catch_unwind(AssertUnwindSafe(|| self.find_answer(&mut job)));
        let (label, answer) = handled.unwrap_or_else(|_| {
            self.metrics.panics.inc();
            (Route::label(None), Answer::error(&Error::Internal, job.arrival.request.method(), ""))
        });
        self.finish(lane, &mut job, label, &answer);
        self.write(lane, job, answer);
    }

    fn find_answer(self: &Arc<Self>, job: &mut Job) -> (usize, Answer) {
        let method = job.arrival.request.method().clone();
        let target = job.arrival.request.url().to_owned();
        let path = routes::path(&target);
        if let Framing::Refused(reason) = &job.arrival.framing {
            return (Route::label(None), Answer::error(&Error::Framing(reason.clone()), &method, ""));
        }
        if self.is_follower() && routes::is_store(path) {
            return (0, relay::answer(self, job));
        }
        let short_form =
            self.node.standing().serving().is_ok_and(|serving| serving.view.nodes().count() == 1);
        let route = match routes::find(path, short_form) {
            Ok(route) => route,
            Err(error) => return (Route::label(None), Answer::error(&error, &method, "")),
        };
        let label = Route::label(Some(&route));
        let answer = match &route {
            Route::Key(encoded) => key_handlers::answer(self, job, &route, encoded),
            Route::NodeKey(_) | Route::NodeHello | Route::NodeCount => {
                node_handlers::answer(self, job, &route)
            }
            Route::Livez | Route::Readyz | Route::Metrics => own_handlers::answer(self, job, &route),
            _ => cluster_handlers::answer(self, job, &route),
        };
        (label, answer)
    }

    fn finish(&self, lane: LaneId, job: &mut Job, label: usize, answer: &Answer) {
        self.metrics.answered(lane, label, answer.status, now() - job.arrival.arrived);
    }

    /// Writes an answer, or has it written by the lane for large ones.
    fn write(self: &Arc<Self>, lane: LaneId, job: Box<Job>, answer: Answer) {
        if answer.is_large() && lane != lane.large() {
            let (method, large) = (job.arrival.request.method().clone(), lane.large());
            if let Err(Work::Write(job, _)) = self.lanes.offer(large, Work::Write(job, Box::new(answer))) {
                self.metrics.shed(large);
                let error =
                    Error::Overloaded("Too many large answers are being sent: try again later".to_owned());
                self.write(lane, job, Answer::error(&error, &method, ""));
            }
            return;
        }
        let Job { arrival: Arrival { request, framing, generation, .. }, ticket, body_was_read } = *job;
        let close = answer.close;
        if answer::is_early(&framing, body_was_read) {
            let Framing::OnItsWay { length, expect, .. } = framing else {
                unreachable!("only such are early")
            };
            // The client may go on with the connection if the rest of the body will be read, and is sure to come.
            let close = close || expect || length.is_none_or(|length| length as u64 > linger::MOST_BYTES);
            let (stream, _) = answer::write_early(Answer { close, ..answer }, request);
            self.linger.take(Rest { stream, declared: length, close, ticket });
        } else {
            let written = catch_unwind(AssertUnwindSafe(|| answer.write(request)));
            if close || !matches!(written, Ok(Ok(()))) {
                ticket.end_connection();
            }
        }
        drop(generation);
    }
}

impl Running {
    /// Stops listening, and refuses whatever still comes on connections that are open.
    pub fn stop_listening(&mut self) {
        self.server.node.stop();
        self.stop.clear();
    }
}
