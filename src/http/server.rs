//! The way of a request through the server: from its lane through its handler to its answer. It starts and stops all threads.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use socket2::SockRef;
use tiny_http::Method;

use super::accept::{self, Acceptor};
use super::answer::{self, Answer};
use super::changes::{self, Awaited, Changes};
use super::conversation::{Open, Shared, Unattended, Waits};
use super::dispatch::{Arrival, AskedBy, Dispatcher, Job, KeyJob, Unfinished, Work, is_change};
use super::error_form::ErrorForm;
use super::framing::Framing;
use super::gate::{Entry, Gate};
use super::key_request::{KeyReply, KeyRequest, Kind};
use super::lane_id::LaneId;
use super::late;
use super::linger::{self, Linger, Rest};
use super::metrics::Sample;
use super::multiplex::Multiplex;
use super::relay::{Message, Onward};
use super::relayed::Relays;
use super::routes::{self, EncodedKey, Route};
use super::status::{self, Statuses, Taken};
use super::streams::Protocol;
use super::turns::Turns;
use super::watch::{self, Watches};
use super::watch_main::{self, Asked};
use super::watch_request::Wanted;
use super::{
    access, batch, cluster_handlers, export, key_handlers, listing, node_handlers, own_handlers, payload,
    relay, relayed, streams,
};
use crate::clock::{Deadline, now};
use crate::config::Config;
use crate::disk::{Storage, Stored};
use crate::error::Error;
use crate::model::address::Address;
use crate::node::audits;
use crate::node::calls::{Calls, PassedOn};
use crate::node::discovery;
use crate::node::duplicates;
use crate::node::group_ops::Asking;
use crate::node::host;
use crate::node::state::{Node, Serving};
use crate::node::timekeeping;
use crate::node::transport::Messages;
use crate::peers::multiplex;
use crate::reshard::controller::Controller;
use crate::reshard::{self, leave};
use crate::threads;

/// A node that has left its groups answers for so long what comes on connections that are open, and until nothing has come for the
/// second time.
const SERVING_OUT: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_millis(200);

/// The path of a question for what there is at all (RFC 9110, section 9.3.7): of what is here, keys have all methods.
const ALL_PATHS: &str = "*";

/// The server, shared by all its threads.
pub struct Server {
    /// The node it serves, and the handle of its coordinator.
    pub controller: Controller,
    /// Hands it the requests that have come.
    dispatcher: Arc<Dispatcher>,
    /// The requests that wait for a view change.
    changes: Changes,
    /// Those who watch.
    watches: Watches<Wanted>,
    /// The same at a follower.
    watches_of_main: Watches<Asked>,
    /// Audits are made one at a time.
    audits: Turns,
    /// What is known of the whole, and who waits to be told it.
    statuses: Statuses,
    /// Takes connections on which other nodes pass requests on, and those of followers.
    multiplex: Multiplex,
    relays: Relays,
    /// The requests that wait for the log of a shard.
    in_log: Arc<Unattended>,
    /// Those that wait for another node.
    passed_on: Arc<Unattended>,
    /// The connections for many requests on which something was read that is not answered yet.
    answering: Arc<Unattended>,
    /// Those connections themselves.
    open: Arc<Open>,
    linger: Linger,
    /// A connection on which nothing has come for this time is closed.
    idle_timeout: Duration,
}

/// What was found.
enum Found {
    /// The answer, and the route that is answered for.
    Answer(Option<Route>, Answer),
    /// It is about a key.
    Key(KeyRequest),
    /// The main of this follower is asked.
    Onward(Message),
    /// It will be known when a view change has ended.
    Later(Awaited),
    /// It is answered as things happen.
    Watch(Wanted),
    /// The same, as the main says.
    WatchMain(Asked),
    /// How everything is.
    Status,
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
    _stop: [Sender<()>; 10],
}

impl Server {
    /// Opens the socket and starts all threads.
    ///
    /// # Errors
    /// When the address is taken, or the system has no threads left to give.
    pub fn start(config: &Config, kept: Option<(Arc<Storage>, Stored)>) -> io::Result<Running> {
        let listener = accept::listen(config.listen, config.server.idle_timeout)?;
        let listening = listener.local_addr()?;
        let own_listener = listener.try_clone()?;
        let (node, groups_inbox) = Node::resumed(config, Arc::new(Calls), kept).map_err(io::Error::other)?;
        let node = Arc::new(node);
        let limits = &config.server;
        let (dispatcher, shed_queue) = Dispatcher::new(Arc::clone(&node), limits, listening.port());
        let dispatcher = Arc::new(dispatcher);
        let in_log = Unattended::new(limits.queue_length);
        let answering = Unattended::new(usize::MAX);
        let shared = Shared {
            metrics: Arc::clone(&dispatcher.metrics),
            answering: Arc::clone(&answering),
            idle_timeout: limits.idle_timeout,
            port: listening.port(),
            open: Open::new(),
        };
        let open = Arc::clone(&shared.open);
        let server = Arc::new(Self {
            multiplex: Multiplex {
                node: Arc::clone(&node),
                in_log: Arc::clone(&in_log),
                shared: shared.clone(),
            },
            in_log,
            passed_on: Unattended::new(limits.queue_length),
            relays: Relays {
                dispatcher: Arc::clone(&dispatcher),
                waiting: Unattended::new(usize::MAX),
                shared,
            },
            answering,
            open,
            linger: Linger::start(&dispatcher.metrics, &dispatcher.watchdog)?,
            idle_timeout: limits.idle_timeout,
            dispatcher: Arc::clone(&dispatcher),
            controller: Controller::new(node, Arc::default()),
            changes: Changes::default(),
            watches: Watches::default(),
            watches_of_main: Watches::default(),
            audits: Turns::default(),
            statuses: Statuses::default(),
        });
        let node = Arc::clone(&server.controller.node);
        let learner = Arc::clone(&node);
        let publish = Box::new(move |groups: &[u64]| learner.publish(groups));
        groups_inbox.start(Box::new(Messages(Arc::clone(&node))), publish)?;
        discovery::begin(&node);
        let own = Arc::clone(&server);
        dispatcher.lanes.start(limits, dispatcher.is_follower(), move |lane, work| {
            own.dispatcher.contain(|| own.work(lane, work));
        })?;
        let own = Arc::clone(&server);
        threads::spawn("shed", move || own.refuse_all(&shed_queue))?;
        let acceptor = Acceptor::start(&dispatcher, listener, limits.idle_timeout)?;
        let (stop_accept, stopped) = bounded(0);
        threads::spawn("http-accept", move || {
            if let Err(error) = acceptor.run(&stopped) {
                log::error!("the accept loop is not watched any more: {error}");
            }
        })?;
        let (stop_looking, stopped) = bounded(0);
        threads::spawn("watchdog", move || late::run(&dispatcher, &stopped))?;
        let (stop_discovery, stopped) = bounded(0);
        threads::spawn("discovery", move || discovery::run(&node, &stopped))?;
        let (stop_own_address, stopped) = bounded(0);
        if server.controller.node.has_address {
            let node = Arc::clone(&server.controller.node);
            threads::spawn("own-address", move || duplicates::watch_own_address(&node, &stopped))?;
        }
        let (stop_changes, stopped) = bounded(0);
        let own = Arc::clone(&server);
        threads::spawn("changes", move || own.answer_changes(&stopped))?;
        let (stop_reshard, stopped) = bounded(0);
        let controller = server.controller.clone();
        threads::spawn("reshard", move || reshard::run(&controller, &stopped))?;
        let (stop_reconciler, stopped) = bounded(0);
        let controller = server.controller.clone();
        threads::spawn("reconciler", move || reshard::reconcile(&controller, &stopped))?;
        let (stop_audit, stopped) = bounded(0);
        let node = Arc::clone(&server.controller.node);
        threads::spawn("audit", move || audits::run(&node, &stopped))?;
        let (stop_time, stopped) = bounded(0);
        let node = Arc::clone(&server.controller.node);
        // Whoever asks for its room is told of what it holds from the beginning.
        node.count_room();
        threads::spawn("time", move || timekeeping::run(&node, &stopped))?;
        let [stop_watch, stop_status] = server.start_telling()?;
        let stop = [
            stop_looking,
            stop_discovery,
            stop_own_address,
            stop_changes,
            stop_reshard,
            stop_reconciler,
            stop_audit,
            stop_time,
            stop_watch,
            stop_status,
        ];
        Ok(Running { server, listening, listener: own_listener, stop_accept: Some(stop_accept), _stop: stop })
    }

    /// Starts the threads that tell clients what they learn of other nodes.
    fn start_telling(self: &Arc<Self>) -> io::Result<[Sender<()>; 2]> {
        let metrics = Arc::clone(&self.dispatcher.metrics);
        self.controller.node.observe_disk(move |took| metrics.disk_sync.observe(took.as_secs_f64()));
        let (stop_watch, stopped) = bounded(0);
        let own = Arc::clone(self);
        threads::spawn("watch", move || own.tell_watchers(&stopped))?;
        let (stop_status, stopped) = bounded(0);
        let own = Arc::clone(self);
        threads::spawn("status", move || own.answer_statuses(&stopped))?;
        Ok([stop_watch, stop_status])
    }

    fn refuse_all(self: &Arc<Self>, queue: &Receiver<(LaneId, Box<Job>)>) {
        for (lane, job) in queue {
            let interface = job.arrival.interface();
            let mut answer = Answer::error(&self.dispatcher.refusal(), job.arrival.method(), interface);
            answer.close = self.controller.node.is_stopping();
            self.count(lane, job.arrival.arrived, None, &answer);
            // As if it came from the small lane: what the client does not take at once, the large one has to finish.
            self.dispatcher.contain(|| self.write(lane.small(), job, answer));
        }
    }

    /// How many requests are in progress.
    pub fn busy(&self) -> usize {
        let unattended = [&self.in_log, &self.relays.waiting, &self.answering];
        self.dispatcher.connections.busy() + unattended.map(|waits| waits.waiting()).iter().sum::<usize>()
    }

    /// The figures that are looked up when they are asked for.
    fn sample(&self) -> Sample {
        let serving_state = self.controller.node.serving_state();
        let own = serving_state.serving().map_or(&[][..], |serving| &serving.own);
        let size = own.first().map(|(_, shard)| shard.rough_size()).unwrap_or_default();
        let history: usize = own.iter().map(|(_, shard)| shard.history_bytes()).sum();
        let retries: usize = own.iter().map(|(_, shard)| shard.remembered_bytes()).sum();
        Sample {
            queued: LaneId::ALL.map(|lane| (lane, self.dispatcher.lanes.waiting(lane))).to_vec(),
            in_log: self.in_log.waiting(),
            passed_on: self.passed_on.waiting(),
            watchers: self.watches.count() + self.watches_of_main.count(),
            history: history as u64,
            parked: self.dispatcher.gates.iter().map(Gate::parked).sum(),
            busy: self.busy(),
            troubles: self.controller.node.troubles(),
            epoch: self.controller.node.state().map_or(0, |state| state.view.epoch),
            leads: self.controller.node.meta.leads(),
            pairs: size.pairs,
            bytes: size.bytes,
            retries: retries as u64,
            memory_bound: self.controller.node.memory_bound().unwrap_or(0),
            disk: self.controller.node.disk_use(),
            port: self.dispatcher.port,
        }
    }

    /// Answers the requests that wait for view changes, until the channel closes.
    fn answer_changes(self: &Arc<Self>, stop: &Receiver<()>) {
        changes::run(&self.changes, &self.controller, stop, |job, answer| {
            let route = Some(Route::ViewChange);
            self.dispatcher.contain(|| self.finish(LaneId::Client, route, job, answer));
        });
    }

    /// Answers those who wait to be told how everything is, until the channel closes.
    fn answer_statuses(self: &Arc<Self>, stop: &Receiver<()>) {
        status::run(&self.statuses, &self.controller, stop, |job, answer| {
            let route = Some(Route::V1Status);
            self.dispatcher.contain(|| self.finish(LaneId::Client, route, job, answer));
        });
    }

    /// Tells those who watch what is done, until the channel closes.
    fn tell_watchers(self: &Arc<Self>, stop: &Receiver<()>) {
        let (lane, route) = (LaneId::Client, Some(Route::Watch));
        let refuse = |job, answer| self.dispatcher.contain(|| self.finish(lane, route, job, answer));
        let begin = |job: &Job| {
            self.dispatcher.metrics.answered(lane, route, 200, now() - job.arrival.arrived);
        };
        let client = watch::Client { refuse: &refuse, begin: &begin };
        let own = (self.dispatcher.port, stop);
        if self.dispatcher.is_follower() {
            watch_main::run(&self.watches_of_main, &self.controller.node, own, client);
        } else {
            watch::run(&self.watches, &self.controller, own, client);
        }
    }

    /// What a worker does.
    fn work(self: &Arc<Self>, lane: LaneId, work: Work) {
        match work {
            Work::Write(job, answer) => self.write(lane, job, *answer),
            Work::Finish(rest) => write_rest(*rest),
            Work::Handle(job) => self.handle(lane, job),
            Work::Key(job) => self.answer_key(lane, job),
            Work::Relayed(onward, told) => self.conclude_onward(lane, *onward, told),
        }
    }

    /// Handles one request.
    fn handle(self: &Arc<Self>, lane: LaneId, job: Box<Job>) {
        // What is short is read first: it may be passed on without a worker that waits for it.
        let reads_first = !job.arrival.framing.is_on_its_way();
        match if reads_first { None } else { self.destination(&job) } {
            Some(node) => self.go_through_gate(lane, &node, Work::Handle(job)),
            None => self.answer(lane, job),
        }
    }

    /// Handles a request for another node, and after it those that were parked for that node meanwhile.
    fn go_through_gate(self: &Arc<Self>, lane: LaneId, node: &Address, work: Work) {
        let gate = &self.dispatcher.gates[usize::from(lane == LaneId::ClientLarge)];
        match gate.enter(node, work) {
            Entry::Parked => {}
            // What may have been done is not refused.
            Entry::Full(Work::Key(job)) if job.request.is_told() => self.run_key(lane, *job),
            Entry::Full(work) => self.dispatcher.give_up(lane, work),
            Entry::Enter(work) => {
                let mut next = Some(work);
                while let Some(work) = next {
                    // Whatever happens in there, the next one has to be taken along.
                    self.dispatcher.contain(|| match work {
                        Work::Key(job) => self.run_key(lane, *job),
                        Work::Handle(job) => self.answer(lane, job),
                        other => self.work(lane, other),
                    });
                    next = gate.leave(node);
                }
            }
        }
    }

    /// The other node that a client's request will have to be passed on to.
    fn destination(&self, job: &Job) -> Option<Address> {
        if self.dispatcher.is_follower() || matches!(job.arrival.framing, Framing::Refused { .. }) {
            return None;
        }
        if self.controller.node.serving_state().serving().is_ok_and(Serving::owns_all) {
            return None;
        }
        let (route, encoded) = routes::find(job.arrival.path(), true).ok()?;
        if !route.is_of_client_key() {
            return None;
        }
        let key = routes::decode_key(encoded).ok()?;
        let is_read = *job.arrival.request.method() == Method::Get;
        self.controller.node.waits_for(&key, is_read)
    }

    /// The same for a request that was read.
    fn key_destination(&self, request: &KeyRequest) -> Option<Address> {
        let node = &self.controller.node;
        let is_alone = node.serving_state().serving().is_ok_and(Serving::owns_all);
        if is_alone || !request.route().is_of_client_key() {
            None
        } else {
            node.waits_for(&request.key, matches!(request.kind, Kind::Get))
        }
    }

    fn answer(self: &Arc<Self>, lane: LaneId, mut job: Box<Job>) {
        if let Some(protocol) = self.protocol(&job) {
            let taken = match protocol {
                Protocol::Messages => streams::take_messages(&self.controller.node, job),
                Protocol::Requests => self.multiplex.take(job),
                Protocol::Relay => {
                    let server = Arc::clone(self);
                    self.relays.take(job, move |job| server.begin_or_queue(job))
                }
            };
            if let Err((job, answer)) = taken {
                self.finish(lane, Some(protocol.route()), job, *answer);
            }
            return;
        }
        match catch_unwind(AssertUnwindSafe(|| self.find_answer(&mut job))) {
            Ok(Found::Answer(route, answer)) => self.finish(lane, route, job, answer),
            Ok(Found::Key(request)) => {
                self.answer_key(lane, Box::new(KeyJob { request, asked_by: AskedBy::Http(job) }));
            }
            Ok(Found::Onward(message)) => self.go_onward(lane, Box::new(Onward { job, message })),
            Ok(Found::Later(awaited)) => {
                if let Err(job) = self.changes.park(awaited, job) {
                    self.dispatcher.refuse(lane, job);
                }
            }
            Ok(Found::Watch(wanted)) => {
                if let Err(job) = self.watches.join(job, wanted) {
                    self.dispatcher.refuse(lane, job);
                }
            }
            Ok(Found::Status) => match self.statuses.take(job) {
                Taken::Answer(job, answer) => self.finish(lane, Some(Route::V1Status), job, answer),
                Taken::Parked => {}
                Taken::Full(job) => self.dispatcher.refuse(lane, job),
            },
            Ok(Found::WatchMain(asked)) => {
                if let Err(job) = self.watches_of_main.join(job, asked) {
                    self.dispatcher.refuse(lane, job);
                }
            }
            Err(_) => {
                let answer = self.dispatcher.panicked(job.arrival.method(), job.arrival.interface());
                self.finish(lane, None, job, answer);
            }
        }
    }

    /// The protocol to which a request wants its connection to be upgraded. A follower takes nothing of other followers but by HTTP, by which a circle of them is found.
    fn protocol(&self, job: &Job) -> Option<Protocol> {
        let protocol = Protocol::asked_for(job)?;
        (protocol != Protocol::Relay || !self.dispatcher.is_follower()).then_some(protocol)
    }

    /// Asks the main without a worker waiting for it, where that can be done.
    fn go_onward(self: &Arc<Self>, lane: LaneId, mut onward: Box<Onward>) {
        if let Some(question) = relay::question(&self.controller.node, &onward)
            && let Some(waits) = self.passed_on.enter()
        {
            let server = Arc::clone(self);
            let sent = question.send(onward, move |onward, told| {
                drop(waits);
                server.dispatcher.lanes.take_back(lane, Work::Relayed(onward, told));
            });
            match sent {
                Ok(()) => return,
                Err(back) => onward = back,
            }
        }
        self.go_by_http(lane, *onward);
    }

    /// Answers a request that the main was asked.
    fn conclude_onward(self: &Arc<Self>, lane: LaneId, onward: Onward, told: multiplex::Answer) {
        let was_sent = relay::was_sent(&told);
        let concluded = catch_unwind(AssertUnwindSafe(|| relay::conclude(&onward, told)));
        match concluded.unwrap_or_else(|_| Some(self.panicked_onward(&onward))) {
            Some(answer) => {
                if was_sent {
                    self.dispatcher.metrics.relayed.inc();
                }
                self.finish(lane, onward.route(), onward.job, answer);
            }
            None => self.go_by_http(lane, onward),
        }
    }

    /// Asks the main by HTTP, and waits for that.
    fn go_by_http(self: &Arc<Self>, lane: LaneId, mut onward: Onward) {
        let answer = catch_unwind(AssertUnwindSafe(|| relay::answer(&self.controller.node, &mut onward)));
        let answer = answer.unwrap_or_else(|_| self.panicked_onward(&onward));
        self.finish(lane, onward.route(), onward.job, answer);
    }

    fn panicked_onward(&self, onward: &Onward) -> Answer {
        let arrival = &onward.job.arrival;
        self.dispatcher.panicked(arrival.request.method(), arrival.interface())
    }

    /// Answers a request about a key; where that has to wait for the log of a shard, or for another node, without a worker waiting for it.
    fn answer_key(self: &Arc<Self>, lane: LaneId, job: Box<KeyJob>) {
        let Err(job) = self.begin_key(lane, job) else { return };
        let waits = !job.request.is_told() || job.request.is_unclear();
        match self.key_destination(&job.request).filter(|_| waits) {
            Some(node) => self.go_through_gate(lane, &node, Work::Key(job)),
            None => self.run_key(lane, *job),
        }
    }

    /// Has a request done that was just read, and does not wait for anything.
    fn begin_or_queue(self: &Arc<Self>, job: Box<KeyJob>) {
        let lane = LaneId::Client;
        if let Err(job) = self.begin_key(lane, job)
            && let Err(work) = self.dispatcher.lanes.offer(lane, Work::Key(job))
        {
            self.dispatcher.give_up(lane, work);
        }
    }

    /// Asks the log of a shard, or another node, without anybody waiting for it; gives the request back where that is not possible.
    fn begin_key(self: &Arc<Self>, lane: LaneId, mut job: Box<KeyJob>) -> Result<(), Box<KeyJob>> {
        let node = &self.controller.node;
        let is_alone = node.serving_state().serving().is_ok_and(Serving::owns_all);
        if is_alone || job.was_on_its_way() || job.request.is_told() {
            return Err(job);
        }
        if let Some(asking) = job.request.asking(node)
            && let Some(waits) = self.in_log.enter()
        {
            self.ask_log(lane, job, (asking, waits));
            return Ok(());
        }
        if let Some(passed_on) = job.request.passed_on(node)
            && let Some(waits) = self.passed_on.enter()
        {
            match self.pass_on(lane, job, (passed_on, waits)) {
                Ok(()) => return Ok(()),
                Err(back) => job = back,
            }
        }
        Err(job)
    }

    /// Does what is asked of a key, and waits for it.
    fn run_key(self: &Arc<Self>, lane: LaneId, mut job: KeyJob) {
        let (route, node) = (Some(job.request.route()), &self.controller.node);
        if job.request.is_long()
            && let AskedBy::Follower(asked) = job.asked_by
        {
            // The value would be read here only to be read once more by HTTP.
            return asked.answer(job.request.method(), None);
        }
        let answer = catch_unwind(AssertUnwindSafe(|| match job.request.run(node) {
            KeyReply::Client(result) => key_handlers::answer(&job.request, node, result),
            KeyReply::Node(reply, knows) => node_handlers::answer_key(reply, knows),
        }));
        let answer = answer
            .unwrap_or_else(|_| self.dispatcher.panicked(&job.request.method(), job.request.interface()));
        match job.asked_by {
            // A large value that waits to be written would be held meanwhile, and any number of them could wait. So it is
            // the request that waits: reading it once more does no harm.
            AskedBy::Http(_) if answer.is_stored() && answer.is_large() && lane != lane.large() => {
                if let Err(work) = self.dispatcher.lanes.offer(lane.large(), Work::Key(Box::new(job))) {
                    self.dispatcher.give_up(lane.large(), work);
                }
            }
            AskedBy::Http(http) => self.finish(lane, route, http, answer),
            // It is answered by HTTP, and counted there.
            AskedBy::Follower(asked) if relayed::is_too_long(&answer, &job.request.method()) => {
                asked.answer(job.request.method(), None);
            }
            AskedBy::Follower(asked) => {
                self.count(lane, asked.arrived, route, &answer);
                asked.answer(job.request.method(), Some(answer));
            }
        }
    }

    /// Has another node do a request, which is answered when that has. Gives it back where the connection for that has just ended.
    fn pass_on(
        self: &Arc<Self>,
        lane: LaneId,
        job: Box<KeyJob>,
        (request, waits): (PassedOn, Waits),
    ) -> Result<(), Box<KeyJob>> {
        let server = Arc::clone(self);
        request.send(job, move |mut job, told| {
            drop(waits);
            job.request.note_passed_on(&server.controller.node, told);
            server.dispatcher.lanes.take_back(lane, Work::Key(job));
        })
    }

    /// Asks the log of a shard on behalf of a request, which is answered when that has.
    fn ask_log(self: &Arc<Self>, lane: LaneId, mut job: Box<KeyJob>, (asking, waits): (Asking, Waits)) {
        let server = Arc::clone(self);
        self.controller.node.ask_and(asking, move |told| {
            drop(waits);
            job.request.note(told);
            server.dispatcher.lanes.take_back(lane, Work::Key(job));
        });
    }

    /// Counts and writes an answer.
    fn finish(self: &Arc<Self>, lane: LaneId, route: Option<Route>, job: Box<Job>, answer: Answer) {
        self.count(lane, job.arrival.arrived, route, &answer);
        self.write(lane, job, answer);
    }

    fn find_answer(self: &Arc<Self>, job: &mut Job) -> Found {
        if let Framing::Refused { error, .. } = &job.arrival.framing {
            let interface = job.arrival.interface();
            return Found::Answer(None, Answer::error(error, job.arrival.method(), interface));
        }
        if self.dispatcher.is_follower()
            && let Some(found) = self.find_at_main(job)
        {
            return found;
        }
        if let Err(error) = self.judge(job) {
            let answer = Answer::error(&error, job.arrival.method(), job.arrival.interface());
            return Found::Answer(None, answer);
        }
        let (node, path) = (&self.controller.node, job.arrival.path());
        let is_options = *job.arrival.request.method() == Method::Options;
        if is_options && path == ALL_PATHS {
            return Found::Answer(None, Answer::options(Route::Key.allow()));
        }
        let (route, rest) = match key_handlers::find_route(node, path) {
            Ok(found) => found,
            Err(error) => {
                let interface = job.arrival.interface();
                let more = payload::causal_field(&job.small_body());
                let form = ErrorForm::of(interface, &more);
                return Found::Answer(None, Answer::error(&error, job.arrival.method(), form));
            }
        };
        if is_options {
            return Found::Answer(Some(route), Answer::options(route.allow()));
        }
        let answer = match route {
            Route::Key
            | Route::V1Key
            | Route::NodeKey
            | Route::NodeConditionalKey
            | Route::NodeTypedKey
            | Route::NodeTimedKey => {
                let encoded = EncodedKey::of(rest);
                let request = if route.is_of_client_key() {
                    key_handlers::read(node, job, encoded)
                } else {
                    node_handlers::read_key(node, job, encoded)
                };
                match request {
                    Ok(request) => return Found::Key(request),
                    Err(answer) => *answer,
                }
            }
            Route::V1Batch => batch::answer(node, job),
            Route::V1Status => match status::check(node, job) {
                Some(answer) => answer,
                None => return Found::Status,
            },
            Route::NodeBatch => node_handlers::answer_part(node, job),
            Route::NodeHello
            | Route::NodeNews
            | Route::NodeOrders
            | Route::NodeQuestions
            | Route::NodeTransfer
            | Route::NodeList
            | Route::NodeRaft
            | Route::NodeRequests
            | Route::NodeRecover => node_handlers::answer(&self.controller, job, route),
            Route::Watch => match Wanted::of(job, node.limits().max_key_length) {
                Ok(wanted) => return Found::Watch(wanted),
                Err(error) => Answer::error(&error, job.arrival.method(), job.arrival.interface()),
            },
            Route::V1List => listing::answer(&self.controller, job),
            Route::V1Export => export::answer(node, job),
            Route::Relay => self.refuse_relay(job),
            Route::Livez | Route::Readyz | Route::Metrics => {
                own_handlers::answer(node, job, route, || self.dispatcher.metrics.render(&self.sample()))
            }
            Route::OpenApi => own_handlers::document(job),
            Route::Page | Route::PageFile => own_handlers::page(job, route, rest),
            Route::KeyCount
            | Route::Shards
            | Route::Shard
            | Route::View
            | Route::ViewChange
            | Route::Audit => {
                let id = rest.to_owned();
                match cluster_handlers::answer(&self.controller, &self.audits, job, route, &id) {
                    Ok(answer) => answer,
                    Err(awaited) => return Found::Later(awaited),
                }
            }
        };
        Found::Answer(Some(route), answer)
    }

    /// What a follower does not answer by itself alone; nothing of its own paths.
    fn find_at_main(&self, job: &mut Job) -> Option<Found> {
        let path = job.arrival.path();
        let refused = |job: &Job, route, error: &Error| {
            Found::Answer(Some(route), Answer::error(error, job.arrival.method(), job.arrival.interface()))
        };
        let is_watched = path == routes::WATCH && *job.arrival.request.method() == Method::Get;
        if is_watched && job.arrival.framing == Framing::Empty {
            return Some(match Asked::of(&self.controller.node, job) {
                Ok(asked) => Found::WatchMain(asked),
                Err(error) => refused(job, Route::Watch, &error),
            });
        }
        if status::is_of_follower(job) {
            // A part of it is this node's own.
            return Some(match self.judge(job) {
                Ok(()) => Found::Answer(
                    Some(Route::V1Status),
                    status::of_follower(&self.statuses, &self.controller, job),
                ),
                Err(error) => refused(job, Route::V1Status, &error),
            });
        }
        routes::is_store(path).then(|| match relay::read(&self.controller.node, job) {
            Ok(message) => Found::Onward(message),
            Err((route, answer)) => Found::Answer(route, *answer),
        })
    }

    /// Judges who asks. What a follower passes on is judged by its main, which is shown the same headers.
    fn judge(&self, job: &mut Job) -> Result<(), Error> {
        let node = &self.controller.node;
        if node.access.is_guarded() {
            let route = routes::find(job.arrival.path(), true).ok().map(|(route, _)| route);
            let headers = job.arrival.request.headers().iter();
            let headers = headers.map(|header| (header.field.as_str().as_str(), header.value.as_str()));
            job.reach = access::judge(node, route, job.arrival.request.method(), headers)?;
        }
        Ok(())
    }

    /// Answers a request for a connection of a follower that cannot be had so.
    fn refuse_relay(&self, job: &Job) -> Answer {
        let method = job.arrival.method();
        if self.dispatcher.is_follower() {
            let error = Error::NotFound("A follower is asked by HTTP only".to_owned());
            return Answer::error(&error, method, "");
        }
        if *method != Method::Get {
            return Answer::error(&Error::MethodNotAllowed(Route::Relay.allow()), method, "");
        }
        Answer::error(&Error::WrongProtocol(relayed::PROTOCOL), method, "")
    }

    fn count(&self, lane: LaneId, arrived: Instant, route: Option<Route>, answer: &Answer) {
        self.dispatcher.metrics.answered(lane, route, answer.status, now() - arrived);
    }

    /// Writes an answer, or has it written by the lane for large ones.
    fn write(self: &Arc<Self>, lane: LaneId, job: Box<Job>, answer: Answer) {
        if answer.is_large() && lane != lane.large() {
            let large = lane.large();
            if let Err(Work::Write(job, answer)) =
                self.dispatcher.lanes.offer(large, Work::Write(job, Box::new(answer)))
            {
                self.dispatcher.metrics.shed(large);
                self.write_late(job, *answer);
            }
            return;
        }
        self.write_now(lane, job, answer);
    }

    /// What becomes of a large answer for which there is no place: a GET is refused, but what a write has done is told,
    /// even if that takes a while.
    fn write_late(self: &Arc<Self>, job: Box<Job>, answer: Answer) {
        let method = job.arrival.method().clone();
        let answer = if is_change(&method) {
            answer
        } else {
            let error =
                Error::Overloaded("Too many large answers are being sent: try again later".to_owned());
            Answer::error(&error, &method, job.arrival.interface())
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
            if close {
                ticket.end_connection();
            }
            let (stream, written) = answer::write_early(Answer { close, ..answer }, request);
            // After half an answer no other can be told apart from its rest.
            let close = close || written.is_err();
            self.linger.take(Rest { stream, declared, close, ticket });
        } else {
            if close {
                ticket.end_connection();
            }
            let written = catch_unwind(AssertUnwindSafe(|| answer.write(request, self.idle_timeout)));
            if let Ok(Ok(Some(unwritten))) = written {
                let since = now();
                let rest = Box::new(Unfinished { since, unwritten, close, ticket, generation });
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
    fn write_later(&self, lane: LaneId, rest: Box<Unfinished>) {
        let large = lane.large();
        if lane == large {
            write_rest(*rest);
        } else if let Err(Work::Finish(rest)) = self.dispatcher.lanes.offer(large, Work::Finish(rest)) {
            self.dispatcher.metrics.shed(large);
            rest.ticket.end_connection();
        }
    }
}

fn write_rest(rest: Unfinished) {
    let Unfinished { unwritten, close, ticket, generation, .. } = rest;
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
        self.server.open.end();
        // What a follower has sent meanwhile is answered, too.
        if had_groups || streams::has_followers() {
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
