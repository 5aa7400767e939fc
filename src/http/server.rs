//! The way of a request through the server: from the accept loop to its lane, through its handler, to its answer.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use socket2::SockRef;
use tiny_http::{Method, Request};

use super::accept::{self, Acceptor, Generation};
use super::answer::{self, Answer};
use super::changes::{self, Changes};
use super::connections::{Admission, Connections};
use super::framing::Framing;
use super::gate::{Entry, Gate};
use super::lanes::{self, Arrival, Job, LaneId, Lanes, Ticket, Work};
use super::late;
use super::linger::{self, Linger, Rest};
use super::metrics::{Metrics, Sample};
use super::routes::{self, EncodedKey, Route};
use super::target::Target;
use super::turns::Turns;
use super::watchdog::Watchdog;
use super::{cluster_handlers, key_handlers, node_handlers, own_handlers, payload, relay, sockets, streams};
use crate::clock::{Deadline, now};
use crate::config::Config;
use crate::error::Error;
use crate::model::address::Address;
use crate::node::audits;
use crate::node::calls::Calls;
use crate::node::discovery;
use crate::node::duplicates;
use crate::node::group_ops::Asking;
use crate::node::host;
use crate::node::state::{Node, Serving};
use crate::node::transport::Messages;
use crate::reshard::controller::Controller;
use crate::reshard::{self, leave};
use crate::threads;

/// Requests that may wait to be refused; further ones are thrown away with their connections.
const SHED_QUEUE: usize = 1024;

/// A node that has left its groups answers for so long what comes on connections that are open, and until nothing has come for the
/// second time.
const SERVING_OUT: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_millis(200);

/// The server, shared by all its threads.
pub struct Server {
    /// The node it serves, and the handle of its coordinator.
    pub controller: Controller,
    /// The requests that wait for a view change.
    pub changes: Changes,
    /// Audits are made one at a time.
    pub audits: Turns,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    pub(super) lanes: Lanes,
    pub(super) gates: [Gate<Box<Job>>; 2],
    /// Requests that wait for the log of a shard, and the most of them.
    in_log: (AtomicUsize, usize),
    pub(super) connections: Connections<Arrival>,
    shed: Sender<(LaneId, Box<Job>)>,
    linger: Linger,
    /// Ends reads that wait for a silent client.
    pub watchdog: Arc<Watchdog>,
    pub(super) port: OnceLock<u16>,
    /// A connection on which nothing has come for this time is closed.
    idle_timeout: Duration,
}

/// What a handler has found.
pub enum Found {
    /// The answer, and the route that is answered for.
    Answer(Option<Route>, Answer),
    /// It is about a key: the request that the job has now.
    Key,
    /// It will be known when this view change has ended.
    Later {
        /// The view change.
        change: u64,
        /// The causal context that the answer is to have.
        causal: Option<String>,
    },
}

/// A server that runs, for as long as the process does.
pub struct Running {
    /// The server.
    pub server: Arc<Server>,
    /// Where it listens.
    pub listening: SocketAddr,
    /// The listening socket.
    listener: TcpListener,
    /// The thread that watches the accept loops ends when this is dropped.
    stop_accept: Option<Sender<()>>,
    /// The threads that watch end when these are dropped.
    _stop: [Sender<()>; 7],
}

impl Server {
    /// Opens the socket and starts all threads.
    ///
    /// # Errors
    /// When the address is taken, or the system has no threads left to give.
    pub fn start(config: &Config) -> io::Result<Running> {
        let listener = accept::listen(config.listen, config.server.idle_timeout)?;
        let listening = listener.local_addr()?;
        let own_listener = listener.try_clone()?;
        let (node, groups_inbox) = Node::new(config, Arc::new(Calls));
        let node = Arc::new(node);
        let metrics = Arc::new(Metrics::new(node.main().is_some()));
        let watchdog = Arc::new(Watchdog::new(listening.port()));
        let limits = &config.server;
        let (shed, shed_queue) = bounded(SHED_QUEUE);
        let gate = |lane: LaneId| Gate::new(lane.workers(limits), limits.queue_length);
        let server = Arc::new(Self {
            lanes: Lanes::new(limits),
            gates: [gate(LaneId::Client), gate(LaneId::ClientLarge)],
            in_log: (AtomicUsize::new(0), limits.queue_length),
            connections: Connections::new(limits.pipeline_depth),
            shed,
            linger: Linger::start(&metrics, &watchdog)?,
            watchdog,
            port: OnceLock::from(listening.port()),
            idle_timeout: limits.idle_timeout,
            metrics,
            controller: Controller::new(node, Arc::default()),
            changes: Changes::default(),
            audits: Turns::default(),
        });
        let node = Arc::clone(&server.controller.node);
        let learner = Arc::clone(&node);
        let publish = Box::new(move || learner.publish());
        groups_inbox.start(Box::new(Messages(Arc::clone(&node))), publish)?;
        discovery::begin(&node);
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
        let (stop_looking, stopped) = bounded(0);
        let own = Arc::clone(&server);
        threads::spawn("watchdog", move || late::run(&own, &stopped))?;
        let (stop_discovery, stopped) = bounded(0);
        threads::spawn("discovery", move || discovery::run(&node, &stopped))?;
        let (stop_own_address, stopped) = bounded(0);
        if server.controller.node.has_address {
            let node = Arc::clone(&server.controller.node);
            threads::spawn("own-address", move || duplicates::watch_own_address(&node, &stopped))?;
        }
        let (stop_changes, stopped) = bounded(0);
        let own = Arc::clone(&server);
        threads::spawn("changes", move || changes::run(&own, &stopped))?;
        let (stop_reshard, stopped) = bounded(0);
        let controller = server.controller.clone();
        threads::spawn("reshard", move || reshard::run(&controller, &stopped))?;
        let (stop_reconciler, stopped) = bounded(0);
        let controller = server.controller.clone();
        threads::spawn("reconciler", move || reshard::reconcile(&controller, &stopped))?;
        let (stop_audit, stopped) = bounded(0);
        let node = Arc::clone(&server.controller.node);
        threads::spawn("audit", move || audits::run(&node, &stopped))?;
        let stop = [
            stop_looking,
            stop_discovery,
            stop_own_address,
            stop_changes,
            stop_reshard,
            stop_reconciler,
            stop_audit,
        ];
        Ok(Running { server, listening, listener: own_listener, stop_accept: Some(stop_accept), _stop: stop })
    }

    /// Whether the node passes everything on.
    pub fn is_follower(&self) -> bool {
        self.controller.node.main().is_some()
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
            Admission::CutOff(arrival) => self.throw_away(arrival),
        }
    }

    fn dispatch(self: &Arc<Self>, client: SocketAddr, arrival: Arrival) {
        let ticket = Ticket::new(Arc::clone(self), client);
        let lane = self.lane_of(&arrival);
        let job = Box::new(Job::new(arrival, ticket));
        if self.controller.node.is_stopping() {
            self.refuse(lane, job);
        } else if let Err(Work::Handle(job)) = self.lanes.offer(lane, Work::Handle(job)) {
            self.metrics.shed(lane);
            self.refuse(lane, job);
        }
    }

    fn lane_of(&self, arrival: &Arrival) -> LaneId {
        let path = arrival.path();
        let hops = if self.is_follower() { relay::hops(&arrival.request) } else { None };
        if hops.is_some_and(|hops| hops.contains(&self.controller.node.trace)) {
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
    pub(super) fn refuse(&self, lane: LaneId, job: Box<Job>) {
        if let Err(error) = self.shed.try_send((lane, job)) {
            let (_, job) = error.into_inner();
            job.ticket.end_connection();
            let Job { arrival, ticket, .. } = *job;
            self.throw_away(arrival);
            drop(ticket);
        }
    }

    fn refuse_all(self: &Arc<Self>, queue: &Receiver<(LaneId, Box<Job>)>) {
        for (lane, job) in queue {
            let reason = if self.controller.node.is_stopping() {
                "The node is stopping"
            } else {
                "The node is overloaded"
            };
            let error = Error::Overloaded(format!("{reason}: try again after the time in Retry-After"));
            let mut answer = Answer::error(&error, job.arrival.request.method(), "");
            answer.close = self.controller.node.is_stopping();
            self.count(lane, &job, None, &answer);
            // As if it came from the small lane: what the client does not take at once, the large one has to finish.
            self.contain(|| self.write(lane.small(), job, answer));
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
        if self.connections.has_cut_off() {
            let open = self.port.get().and_then(|port| sockets::open(*port).ok());
            self.connections.sweep(open.as_ref(), closed_after);
        }
    }

    /// How many requests are in progress.
    pub fn busy(&self) -> usize {
        self.connections.busy()
    }

    /// The figures that are looked up when they are asked for.
    pub fn sample(&self) -> Sample {
        let serving_state = self.controller.node.serving_state();
        let own = serving_state.serving().map_or(&[][..], |serving| &serving.own);
        let size = own.first().map(|(_, shard)| shard.rough_size()).unwrap_or_default();
        let retries: usize = own.iter().map(|(_, shard)| shard.remembered_bytes()).sum();
        Sample {
            queued: LaneId::ALL.map(|lane| (lane, self.lanes.waiting(lane))).to_vec(),
            in_log: self.in_log.0.load(Ordering::Relaxed),
            parked: self.gates.iter().map(Gate::parked).sum(),
            busy: self.busy(),
            troubles: self.controller.node.troubles(),
            epoch: self.controller.node.state().map_or(0, |state| state.view.epoch),
            leads: self.controller.node.meta.leads(),
            pairs: size.pairs,
            bytes: size.bytes,
            retries: retries as u64,
            port: self.port.get().copied().unwrap_or(0),
        }
    }

    /// What a worker does.
    pub fn work(self: &Arc<Self>, lane: LaneId, work: Work) {
        match work {
            Work::Write(job, answer) => self.write(lane, job, *answer),
            Work::Finish(rest) => write_rest(*rest),
            Work::Handle(job) => self.handle(lane, job),
        }
    }

    /// Handles one request, and after one for another node those that were parked for it meanwhile.
    fn handle(self: &Arc<Self>, lane: LaneId, job: Box<Job>) {
        // What may have been done already is to be told, whoever else is overloaded.
        let destination = if job.is_told() { None } else { self.destination(&job) };
        let Some(node) = destination else { return self.answer(lane, job) };
        let gate = &self.gates[usize::from(lane == LaneId::ClientLarge)];
        match gate.enter(&node, job) {
            Entry::Parked => {}
            Entry::Full(job) => {
                self.metrics.shed(lane);
                self.refuse(lane, job);
            }
            Entry::Enter(job) => {
                let mut next = Some(job);
                while let Some(job) = next {
                    // Whatever happens in there, the next one has to be taken along.
                    self.contain(|| self.answer(lane, job));
                    next = gate.leave(&node);
                }
            }
        }
    }

    /// The other node that a client's request will have to be passed on to.
    fn destination(&self, job: &Job) -> Option<Address> {
        if self.is_follower() || matches!(job.arrival.framing, Framing::Refused { .. }) {
            return None;
        }
        if self.controller.node.serving_state().serving().is_ok_and(Serving::owns_all) {
            return None;
        }
        if let Some(request) = &job.key {
            return self.controller.node.waits_for(&request.key);
        }
        let Ok((Route::Key, encoded)) = routes::find(job.arrival.path(), true) else { return None };
        let key = routes::decode_key(encoded).ok()?;
        self.controller.node.waits_for(&key)
    }

    fn answer(self: &Arc<Self>, lane: LaneId, mut job: Box<Job>) {
        if streams::is_asked_for(&job) {
            if let Err((job, answer)) = streams::take(self, job) {
                self.finish(lane, Some(Route::NodeRaft), job, *answer);
            }
            return;
        }
        // What was read once is not read again.
        let found = if job.key.is_some() {
            Ok(Found::Key)
        } else {
            catch_unwind(AssertUnwindSafe(|| self.find_answer(&mut job)))
        };
        match found {
            Ok(Found::Answer(route, answer)) => self.finish(lane, route, job, answer),
            Ok(Found::Key) => self.answer_key(lane, job),
            Ok(Found::Later { change, causal }) => {
                if let Err(job) = self.changes.park(change, job, causal) {
                    self.refuse(lane, job);
                }
            }
            Err(_) => {
                let answer = self.panicked(&job);
                self.finish(lane, None, job, answer);
            }
        }
    }

    fn panicked(&self, job: &Job) -> Answer {
        self.metrics.panics.inc();
        Answer::error(&Error::Internal, job.arrival.request.method(), "")
    }

    /// Answers a request about a key; where that has to wait for the log of a shard, without a worker waiting for it.
    fn answer_key(self: &Arc<Self>, lane: LaneId, mut job: Box<Job>) {
        let Some(request) = &mut job.key else { return };
        let route = Some(request.route());
        let node = &self.controller.node;
        if !job.arrival.framing.is_on_its_way()
            && self.has_room_in_log()
            && let Some(asking) = request.asking(node)
        {
            return self.ask_log(lane, job, asking);
        }
        let answer = catch_unwind(AssertUnwindSafe(|| request.answer(node)));
        let answer = answer.unwrap_or_else(|_| self.panicked(&job));
        // A large value that waits to be written would be held meanwhile, and any number of them could wait. So it is
        // the request that waits: reading it once more does no harm.
        if answer.is_stored() && answer.is_large() && lane != lane.large() {
            if let Err(Work::Handle(job)) = self.lanes.offer(lane.large(), Work::Handle(job)) {
                self.metrics.shed(lane.large());
                self.refuse(lane, job);
            }
            return;
        }
        self.finish(lane, route, job, answer);
    }

    /// Whether another request may wait for the log of a shard without a worker.
    fn has_room_in_log(&self) -> bool {
        self.in_log.0.load(Ordering::Relaxed) < self.in_log.1
    }

    /// Asks the log of a shard on behalf of a request, which is answered when that has.
    fn ask_log(self: &Arc<Self>, lane: LaneId, mut job: Box<Job>, asking: Asking) {
        let server = Arc::clone(self);
        self.in_log.0.fetch_add(1, Ordering::Relaxed);
        self.controller.node.ask_and(asking, move |told| {
            server.in_log.0.fetch_sub(1, Ordering::Relaxed);
            if let Some(request) = &mut job.key {
                request.note(told);
            }
            server.lanes.take_back(lane, Work::Handle(job));
        });
    }

    /// Counts and writes an answer.
    pub fn finish(self: &Arc<Self>, lane: LaneId, route: Option<Route>, job: Box<Job>, answer: Answer) {
        self.count(lane, &job, route, &answer);
        self.write(lane, job, answer);
    }

    /// Runs something that must not end its thread, whatever goes wrong.
    pub fn contain(&self, run: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.metrics.panics.inc();
        }
    }

    fn find_answer(self: &Arc<Self>, job: &mut Job) -> Found {
        if let Framing::Refused { error, .. } = &job.arrival.framing {
            return Found::Answer(None, Answer::error(error, job.arrival.request.method(), ""));
        }
        let path = job.arrival.path();
        if self.is_follower() && routes::is_store(path) {
            let route = routes::find(path, true).ok().map(|(route, _)| route);
            return Found::Answer(route, relay::answer(self, job));
        }
        let serving_state = self.controller.node.serving_state();
        let short_form = serving_state.serving().is_ok_and(|serving| serving.state.view.nodes().count() == 1);
        let (route, rest) = match routes::find(path, short_form) {
            Ok(found) => found,
            Err(error) => {
                let more = payload::causal_field(&job.small_body());
                return Found::Answer(None, Answer::error(&error, job.arrival.request.method(), &more));
            }
        };
        let answer = match route {
            Route::Key | Route::NodeKey => {
                let encoded = EncodedKey::of(rest);
                let request = if route == Route::Key {
                    key_handlers::read(self, job, encoded)
                } else {
                    node_handlers::read_key(self, job, encoded)
                };
                match request {
                    Ok(request) => {
                        job.key = Some(request);
                        return Found::Key;
                    }
                    Err(answer) => *answer,
                }
            }
            Route::NodeHello
            | Route::NodeNews
            | Route::NodeOrders
            | Route::NodeQuestions
            | Route::NodeTransfer
            | Route::NodeRaft
            | Route::NodeRecover => node_handlers::answer(self, job, route),
            Route::Livez | Route::Readyz | Route::Metrics => own_handlers::answer(self, job, route),
            Route::KeyCount
            | Route::Shards
            | Route::Shard
            | Route::View
            | Route::ViewChange
            | Route::Audit => {
                let id = rest.to_owned();
                return cluster_handlers::answer(self, job, route, &id);
            }
        };
        Found::Answer(Some(route), answer)
    }

    fn count(&self, lane: LaneId, job: &Job, route: Option<Route>, answer: &Answer) {
        self.metrics.answered(lane, route, answer.status, now() - job.arrival.arrived);
    }

    /// Writes an answer, or has it written by the lane for large ones.
    fn write(self: &Arc<Self>, lane: LaneId, job: Box<Job>, answer: Answer) {
        if answer.is_large() && lane != lane.large() {
            let large = lane.large();
            if let Err(Work::Write(job, answer)) = self.lanes.offer(large, Work::Write(job, Box::new(answer)))
            {
                self.metrics.shed(large);
                self.write_late(job, *answer);
            }
            return;
        }
        self.write_now(lane, job, answer);
    }

    /// What becomes of a large answer for which there is no place: a GET is refused, but what a write has done is told,
    /// even if that takes a while.
    fn write_late(self: &Arc<Self>, job: Box<Job>, answer: Answer) {
        let method = job.arrival.request.method().clone();
        let answer = if matches!(method, Method::Put | Method::Delete) {
            answer
        } else {
            let error =
                Error::Overloaded("Too many large answers are being sent: try again later".to_owned());
            Answer::error(&error, &method, "")
        };
        self.write_now(LaneId::ClientLarge, job, answer);
    }

    fn write_now(self: &Arc<Self>, lane: LaneId, job: Box<Job>, answer: Answer) {
        let Job { arrival: Arrival { request, framing, generation, .. }, ticket, body_was_read, .. } = *job;
        // A client of a node that is about to stop is to go to another one.
        let close = answer.close || self.controller.node.is_leaving();
        let answer = Answer { close, ..answer };
        if answer::is_early(&framing, body_was_read) {
            // The client may go on with the connection if the rest of the body will be read, and is sure to come.
            let declared = framing.undrained();
            let is_sure = matches!(framing, Framing::OnItsWay { expect: false, upgrade: false, .. })
                && declared.is_some_and(|length| length as u64 <= linger::MOST_BYTES);
            let close = close || !is_sure;
            let (stream, written) = answer::write_early(Answer { close, ..answer }, request);
            // After half an answer no other can be told apart from its rest.
            let close = close || written.is_err();
            self.linger.take(Rest { stream, declared, close, ticket });
        } else {
            let written = catch_unwind(AssertUnwindSafe(|| answer.write(request, self.idle_timeout)));
            if let Ok(Ok(Some(unwritten))) = written {
                let since = now();
                let rest = Box::new(lanes::Unfinished { since, unwritten, close, ticket, generation });
                return self.write_later(lane, rest);
            }
            if close || !matches!(written, Ok(Ok(None))) {
                ticket.end_connection();
            }
        }
        drop(generation);
    }

    /// Has the rest of an answer written where slow readers hold up nobody but their like; where too many do already,
    /// the answer ends in the middle.
    fn write_later(&self, lane: LaneId, rest: Box<lanes::Unfinished>) {
        let large = lane.large();
        if lane == large {
            write_rest(*rest);
        } else if let Err(Work::Finish(rest)) = self.lanes.offer(large, Work::Finish(rest)) {
            self.metrics.shed(large);
            rest.ticket.end_connection();
        }
    }
}

fn write_rest(rest: lanes::Unfinished) {
    let lanes::Unfinished { unwritten, close, ticket, generation, .. } = rest;
    let written = catch_unwind(AssertUnwindSafe(|| unwritten.finish()));
    if close || !matches!(written, Ok(Ok(()))) {
        ticket.end_connection();
    }
    drop(generation);
}

impl Running {
    /// Takes leave of the node's groups and serves on meanwhile, by answers after which their connections are closed; then closes the
    /// port, so that whoever comes goes to another node, and takes no more requests on connections that are still open.
    pub fn begin_to_stop(&mut self) {
        let had_groups =
            self.server.controller.node.groups.locals().iter().any(|local| local.status.voters.len() > 1);
        host::run(leave::leave(&self.server.controller));
        // The accept loop must not be replaced when it ends now.
        self.stop_accept = None;
        if let Err(error) = SockRef::from(&self.listener).shutdown(Shutdown::Both) {
            log::debug!("the port is still open: {error}");
        }
        if had_groups {
            self.serve_out();
        }
        self.server.controller.node.stop();
    }

    /// Answers what comes on connections that are open, for a moment: each answer closes its connection.
    fn serve_out(&self) {
        let deadline = Deadline::after(now(), SERVING_OUT);
        let mut quiet_since = now();
        while !deadline.is_over() && now() - quiet_since < QUIET {
            if self.server.busy() > 0 {
                quiet_since = now();
            }
            host::run(self.server.controller.node.pause(QUIET / 10));
        }
    }
}
