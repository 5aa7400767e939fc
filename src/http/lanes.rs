//! The classes of requests, each with a bounded queue and a fixed pool of workers. What comes back from the log of a shard has its place in
//! the queue in any case, and a bound of its own.
//!
//! A request may wait only for a class further right: client -> forwarded -> control -> question -> transfer -> raft. So waiting has no
//! cycle, whatever two nodes send each other. Bodies and answers that a slow client can hold up have a pool of their own in each class.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tiny_http::{Method, Request};

use super::accept::Generation;
use super::answer::{Answer, Unwritten};
use super::body::{self, BodyBytes, Limit};
use super::framing::{BUFFERED_BYTES, Framing};
use super::key_request::KeyRequest;
use super::server::Server;
use super::target::Target;
use super::watchdog::Watch;
use crate::budget::Budget;
use crate::clock::now;
use crate::config::ServerLimits;
use crate::error::Error;
use crate::threads;

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

    /// The query of the request's target, not decoded, where there is one.
    pub fn query(&self) -> Option<&str> {
        self.target.query(self.request.url())
    }
}

/// A request in a lane.
pub struct Job {
    /// The request as it came.
    pub arrival: Arrival,
    /// Lets the connection's next request go when dropped.
    pub ticket: Ticket,
    /// Whether the body has been read.
    pub body_was_read: bool,
    /// When the request had come wholly, as far as it is known: the time for its answer counts from here.
    pub complete: Instant,
    /// The request about a key that was read from it, until that is answered.
    pub key: Option<KeyRequest>,
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
        Self { arrival, ticket, body_was_read: false, complete, key: None }
    }

    /// Whether it is a request that may have been done already, and whose log has told what came of it.
    pub fn is_told(&self) -> bool {
        self.key.as_ref().is_some_and(KeyRequest::is_told)
    }

    /// Reads the whole body, up to a limit.
    ///
    /// # Errors
    /// See [`body::read`].
    pub fn read_body(&mut self, limit: Limit, budget: &Budget) -> Result<BodyBytes, Error> {
        let watch = self.arrival.framing.is_on_its_way().then(|| self.ticket.watch());
        let body = body::read(&mut self.arrival.request, &self.arrival.framing, limit, budget, watch)?;
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
    /// A large answer to write.
    Write(Box<Job>, Box<Answer>),
    /// The rest of a small answer that the client did not take at once.
    Finish(Box<Unfinished>),
}

impl Work {
    /// Since when it has been waiting, where it may be given up for that. What a write has done, or may have done, is told, even if that takes a while.
    fn may_be_late(&self) -> Option<Instant> {
        match self {
            Self::Handle(job) => (!job.is_told()).then_some(job.arrival.arrived),
            Self::Write(job, _) => {
                let is_write = matches!(job.arrival.request.method(), Method::Put | Method::Delete);
                (!is_write).then_some(job.arrival.arrived)
            }
            Self::Finish(rest) => Some(rest.since),
        }
    }
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
    server: Arc<Server>,
    client: SocketAddr,
}

impl Ticket {
    /// A ticket for a request that was admitted.
    pub fn new(server: Arc<Server>, client: SocketAddr) -> Self {
        Self { server, client }
    }

    /// The client, by which the connection is known.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// Reads what comes on the connection, as long as somebody holds the request.
    pub fn watch(&self) -> Watch {
        self.server.watchdog.watch(self.client)
    }

    /// Nothing that comes on this connection after this request will be answered.
    pub fn end_connection(&self) {
        self.server.end_connection(self.client);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.server.answered(self.client);
    }
}

/// Workers for messages of the meta group: they hand them on and wait for nothing.
const RAFT_WORKERS: usize = 2;

/// A class of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneId {
    /// Clients' requests.
    Client,
    /// Clients' requests with large bodies or answers.
    ClientLarge,
    /// What other nodes passed on or ask.
    Forwarded,
    /// The same with large bodies or answers.
    ForwardedLarge,
    /// Orders among nodes that may wait for another one.
    Control,
    /// News, and questions and orders among nodes that wait for nobody.
    Question,
    /// What the source of a piece is asked for.
    Transfer,
    /// Messages of the meta group.
    Raft,
    /// Questions about the process itself, which wait for nothing.
    Health,
}

impl LaneId {
    /// All lanes.
    pub const ALL: [Self; 9] = [
        Self::Client,
        Self::ClientLarge,
        Self::Forwarded,
        Self::ForwardedLarge,
        Self::Control,
        Self::Question,
        Self::Transfer,
        Self::Raft,
        Self::Health,
    ];

    /// The name in metrics and, with a number, of threads. A follower's clients' lane is called after what it does.
    pub fn name(self, follower: bool) -> &'static str {
        match (self, follower) {
            (Self::Client, false) => "client",
            (Self::ClientLarge, false) => "client-large",
            (Self::Client, true) => "proxy",
            (Self::ClientLarge, true) => "proxy-large",
            (Self::Forwarded, _) => "forwarded",
            (Self::ForwardedLarge, _) => "forwarded-large",
            (Self::Control, _) => "control",
            (Self::Question, _) => "question",
            (Self::Transfer, _) => "transfer",
            (Self::Raft, _) => "raft-in",
            (Self::Health, _) => "health",
        }
    }

    /// Whether clients wait for its workers, themselves or through another node.
    pub fn serves_clients(self) -> bool {
        match self {
            Self::Client | Self::ClientLarge | Self::Forwarded | Self::ForwardedLarge => true,
            // What nodes ask each other has deadlines of its own, and whoever asks for health waits for nobody.
            Self::Control | Self::Question | Self::Transfer | Self::Raft | Self::Health => false,
        }
    }

    /// The lane of the same class in which slow clients hold up nobody but their like.
    #[must_use]
    pub fn large(self) -> Self {
        match self {
            // Answers about health are small; a body that somebody sends along is read elsewhere.
            Self::Client | Self::ClientLarge | Self::Health => Self::ClientLarge,
            Self::Forwarded | Self::ForwardedLarge => Self::ForwardedLarge,
            // Nodes do not hold each other up for long: they send what they have, and give up after a while.
            Self::Control | Self::Question | Self::Transfer | Self::Raft => self,
        }
    }

    /// The lane of the same class for what nobody outside can hold up.
    #[must_use]
    pub fn small(self) -> Self {
        match self {
            Self::Client | Self::ClientLarge => Self::Client,
            Self::Forwarded | Self::ForwardedLarge => Self::Forwarded,
            Self::Control | Self::Question | Self::Transfer | Self::Raft | Self::Health => self,
        }
    }

    /// How many workers it has.
    pub fn workers(self, limits: &ServerLimits) -> usize {
        match self {
            Self::Client => limits.client_workers,
            Self::Forwarded => limits.forwarded_workers,
            Self::ClientLarge | Self::ForwardedLarge => limits.large_workers,
            Self::Control | Self::Question | Self::Transfer => limits.control_workers,
            Self::Raft => RAFT_WORKERS,
            Self::Health => limits.health_workers,
        }
    }
}

/// The queues of all lanes.
pub struct Lanes {
    queues: Vec<(Sender<Work>, Receiver<Work>)>,
    length: usize,
}

impl Lanes {
    /// Empty queues.
    pub fn new(limits: &ServerLimits) -> Self {
        Self { queues: LaneId::ALL.iter().map(|_| unbounded()).collect(), length: limits.queue_length }
    }

    /// Puts work into a lane's queue, or gives it back when that is full; never waits. Threads that do so at the same moment may exceed the
    /// length, each by one.
    pub fn offer(&self, lane: LaneId, work: Work) -> Result<(), Work> {
        if self.waiting(lane) >= self.length {
            return Err(work);
        }
        self.take_back(lane, work);
        Ok(())
    }

    /// Puts work that was begun into a lane's queue, be it full: it may have changed something, and only its handler can say that.
    pub fn take_back(&self, lane: LaneId, work: Work) {
        // The receiver is here, too.
        let _ = self.queues[lane as usize].0.send(work);
    }

    /// Takes out of a lane's queue what has waited since then or longer, and may be given up for that. The rest keeps its order, but for what comes in
    /// meanwhile.
    pub fn take_late(&self, lane: LaneId, since: Instant) -> Vec<Work> {
        let (sender, receiver) = &self.queues[lane as usize];
        let mut taken = Vec::new();
        for _ in 0..receiver.len() {
            let Ok(work) = receiver.try_recv() else { break };
            if work.may_be_late().is_some_and(|waiting| waiting <= since) {
                taken.push(work);
            } else {
                // The receiver is here, too.
                let _ = sender.send(work);
            }
        }
        taken
    }

    /// How much waits in a lane.
    pub fn waiting(&self, lane: LaneId) -> usize {
        self.queues[lane as usize].0.len()
    }

    /// Starts the workers of all lanes.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(&self, server: &Arc<Server>, limits: &ServerLimits) -> io::Result<()> {
        for lane in LaneId::ALL {
            for number in 1..=lane.workers(limits) {
                let (server, queue) = (Arc::clone(server), self.queues[lane as usize].1.clone());
                let name = lane.name(server.is_follower());
                threads::spawn(format!("{name}-{number}"), move || {
                    for work in queue {
                        server.contain(|| server.work(lane, work));
                    }
                })?;
            }
        }
        Ok(())
    }
}
