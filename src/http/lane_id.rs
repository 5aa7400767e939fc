//! The classes of requests: the name of each, and how many workers it has.
//!
//! A request may wait only for a class further right: client -> forwarded -> control -> question -> transfer -> raft. So waiting has no
//! cycle, whatever two nodes send each other. Bodies and answers that a slow client can hold up have a pool of their own in each class.

use crate::config::ServerLimits;

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
