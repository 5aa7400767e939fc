//! What is replicated, and what its callers are told.

use bytes::Bytes;

use crate::model::binary::Malformed;
use crate::model::format;

/// The state that the replicas of a group keep equal by applying the same commands in the same order.
///
/// Everything here must depend on nothing but the state and the arguments: no clock, no randomness, no
/// order of a hash map that differs between replicas.
pub trait StateMachine: Send {
    /// Applies a command of this group's log and says what came of it. A command that makes no sense is
    /// answered by an outcome that says so; it never fails, since the other replicas apply it too.
    ///
    /// `index` only grows, with gaps where the log holds entries of its own.
    fn apply(&mut self, index: u64, term: u64, command: &[u8]) -> Vec<u8>;

    /// The whole state as it is now. The pieces, one after the other, are what [`restore`](Self::restore) takes; they may be of any
    /// length, and are asked for as they are sent, while commands go on being applied. So neither the beginning nor a piece
    /// should take long: the group waits for it.
    fn snapshot(&self) -> Pieces;

    /// Replaces the whole state by that of a snapshot.
    ///
    /// # Errors
    /// When the bytes are no snapshot. The replica then takes no further part in its group.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed>;

    /// What it is, in a number under which a node that keeps its replicas finds out what to make of one when it starts again.
    fn kind(&self) -> u8 {
        0
    }

    /// The format that a replica has to know to apply this command of the log as the others do.
    fn needs(&self, command: &[u8]) -> u32 {
        let _ = command;
        format::FIRST
    }

    /// The format that a replica has to know to read a snapshot of the state as it is now.
    fn state_needs(&self) -> u32 {
        format::FIRST
    }
}

/// The bytes of a snapshot, piece by piece.
pub type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

/// What is proposed to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its form; not empty.
    pub bytes: Bytes,
    /// The format that every member has to know, so that all of them apply it alike: see [`format`](crate::model::format).
    pub needs: u32,
    /// Whether commands that are proposed later may come before it in the log, where it is large: it goes ahead to the other replicas then. One that is
    /// proposed again may come twice, and the first copy last.
    pub goes_ahead: bool,
}

impl From<Bytes> for Command {
    /// A command that nodes of every version know, and that keeps its place.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, needs: format::FIRST, goes_ahead: false }
    }
}

impl From<Vec<u8>> for Command {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

/// What became of a proposal, a change of members, or a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The command was applied at `index`; `outcome` is what the state machine returned, and is empty for a
    /// change of members.
    Applied {
        /// Where in the log.
        index: u64,
        /// What the state machine returned.
        outcome: Bytes,
    },
    /// The state of this replica now holds everything that was acknowledged before the read was asked for.
    Readable {
        /// Up to where the state is applied, at least.
        index: u64,
    },
    /// It was not applied and never will be.
    NotApplied(Refusal),
    /// It may have been applied or may yet be: ask again under the same request id.
    Unknown,
}

/// Why something was not done, by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// This replica is not the leader: ask the leader, where it is known.
    NotLeader {
        /// The replica id of the leader.
        leader: Option<u64>,
    },
    /// This node has no replica of the group, or one that failed: ask another node.
    NoGroup,
    /// Too much is waiting already: shed load, or try again later.
    Busy,
    /// The command is longer than any may be: never try again.
    TooLarge,
    /// A member does not know what the command needs: try again when its node is of a newer version.
    NotKnown {
        /// The replica id of the member.
        replica: u64,
    },
    /// A member that was never heard has not said whether it knows what the command needs: try again soon.
    NotHeard {
        /// The replica id of the member.
        replica: u64,
    },
    /// Another leader's entry took the place of this one: try again at once.
    Superseded,
    /// The change of members does not fit the present ones, or one is under way: look, then try again.
    ChangeRefused,
    /// The learner does not hold everything yet that a voter must: try again soon.
    NotCaughtUp,
}
