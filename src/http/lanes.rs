//! The classes of requests, each with a bounded queue and a fixed pool of workers.
//!
//! A request may wait only for a class further right: client -> forwarded. So waiting has no cycle, whatever two nodes
//! send each other. Bodies and answers that a slow client can hold up have a pool of their own in each class.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use tiny_http::Request;

use super::accept::Generation;
use super::answer::Answer;
use super::framing::Framing;
use super::server::Server;
use crate::config::ServerLimits;
use crate::threads;

/// A request as it came from tiny_http.
pub struct Arrival {
    /// The request.
    pub request: Request,
    /// Where its body is.
    pub framing: Framing,
    /// When its headers had come.
    pub arrived: Instant,
    /// The accept loop that its connection came through, which lives as long as anybody holds this.
    pub generation: Arc<Generation>,
}

/// A request in a lane.
pub struct Job {
    /// The request as it came.
    pub arrival: Arrival,
    /// Lets the connection's next request go when dropped.
    pub ticket: Ticket,
    /// Whether the body has been read.
    pub body_was_read: bool,
}

/// What a worker gets to do.
pub enum Work {
    /// A request to handle.
    Handle(Box<Job>),
    /// A large answer to write.
    Write(Box<Job>, Box<Answer>),
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
    /// Questions about the process itself, which wait for nothing.
    Health,
}

impl LaneId {
    /// All lanes.
    pub const ALL: [Self; 5] =
        [Self::Client, Self::ClientLarge, Self::Forwarded, Self::ForwardedLarge, Self::Health];

    /// The name in metrics and, with a number, of threads. A follower's clients' lane is called after what it does.
    pub fn name(self, follower: bool) -> &'static str {
        match (self, follower) {
            (Self::Client, false) => "client",
            (Self::ClientLarge, false) => "client-large",
            (Self::Client, true) => "proxy",
            (Self::ClientLarge, true) => "proxy-large",
            (Self::Forwarded, _) => "forwarded",
            (Self::ForwardedLarge, _) => "forwarded-large",
            (Self::Health, _) => "health",
        }
    }

    /// The lane of the same class in which slow clients hold up nobody but their like.
    #[must_use]
    pub fn large(self) -> Self {
        match self {
            // Answers about health are small; a body that somebody sends along is read elsewhere.
            Self::Client | Self::ClientLarge | Self::Health => Self::ClientLarge,
            Self::Forwarded | Self::ForwardedLarge => Self::ForwardedLarge,
        }
    }

    /// How many workers it has.
    pub fn workers(self, limits: &ServerLimits) -> usize {
        match self {
            Self::Client => limits.client_workers,
            Self::Forwarded => limits.forwarded_workers,
            Self::ClientLarge | Self::ForwardedLarge => limits.large_workers,
            Self::Health => limits.health_workers,
        }
    }
}

/// The queues of all lanes.
pub struct Lanes {
    queues: Vec<(Sender<Work>, Receiver<Work>)>,
}

impl Lanes {
    /// Empty queues.
    pub fn new(limits: &ServerLimits) -> Self {
        Self { queues: LaneId::ALL.iter().map(|_| bounded(limits.queue_length)).collect() }
    }

    /// Puts work into a lane's queue, or gives it back when that is full; never waits.
    pub fn offer(&self, lane: LaneId, work: Work) -> Result<(), Work> {
        self.queues[lane as usize].0.try_send(work).map_err(crossbeam_channel::TrySendError::into_inner)
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
                        server.work(lane, work);
                    }
                })?;
            }
        }
        Ok(())
    }
}
