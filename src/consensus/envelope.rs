//! What travels between the replicas of a group.

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

use super::staging::StagedId;

/// A message from one replica to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The group, by its internal id.
    pub group: u64,
    /// The replica that sent it.
    pub from: u64,
    /// The replica that it is for; another one at the same address must never read it.
    pub to: u64,
    pub(super) body: Body,
}

/// Which queue an envelope takes: heartbeats and votes wait neither for entries nor for snapshots. Those of one lane arrive in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Small: heartbeats, votes, acknowledgements, questions of those who read.
    Message,
    /// Entries, and what follows them in the log; commands that go ahead of them.
    Entries,
    /// A piece of a snapshot.
    Snapshot,
}

/// What became of an envelope that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It was handed to its group.
    Taken,
    /// This node has no replica of that group.
    NoGroup,
    /// It is meant for another replica id: one that this node had before it was restarted, say. The sender
    /// is to learn that the replica it has in mind is gone.
    NotForMe,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    /// A message of the protocol, other than a snapshot.
    Raft(Message),
    /// A piece of a snapshot.
    Chunk(Chunk),
    /// How much of a snapshot has arrived.
    ChunkAck { transfer: u64, received: u64 },
    /// A part of a command that goes ahead of its entry.
    Part(Part),
    /// How much of such a command is there.
    PartAck { id: StagedId, received: u64 },
    /// A replica asks the leader up to where it has to have applied the log to be read, and says in which term it is.
    ReadQuestion { question: u64, term: u64 },
    /// What the leader answers.
    ReadIndex(ReadIndex),
    /// A replica tells the leader how many bytes more its node takes.
    Room { left: u64 },
}

/// Up to where a replica has to have applied the log to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadIndex {
    /// The replica's number of its question.
    pub(super) question: u64,
    /// That far.
    pub(super) index: u64,
    /// The term in which the leader leads.
    pub(super) term: u64,
}

/// A part of a command that goes ahead of its entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    /// The command.
    pub(super) id: StagedId,
    /// How long it is, in bytes.
    pub(super) total: u64,
    /// Where this part begins.
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

/// A piece of a snapshot. Each carries the protocol's message without the data, so that the receiver needs
/// no memory of the pieces it refused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    /// Tells this transfer from earlier ones of the same sender.
    pub(super) transfer: u64,
    /// Whether the snapshot ends with this piece.
    pub(super) last: bool,
    /// Where this piece begins.
    pub(super) offset: u64,
    /// The `MsgSnapshot`, its snapshot's data empty.
    pub(super) head: Message,
    pub(super) data: Bytes,
}

impl Envelope {
    /// About how many bytes it takes on the wire.
    pub fn size(&self) -> usize {
        /// What there is beside the data, and what each entry has beside its own.
        const HEAD: usize = 64;
        match &self.body {
            Body::Raft(message) => {
                let entries = message.get_entries().iter();
                HEAD + entries.map(|entry| HEAD + entry.data.len() + entry.context.len()).sum::<usize>()
            }
            Body::Chunk(chunk) => HEAD + chunk.data.len(),
            Body::Part(part) => HEAD + part.data.len(),
            Body::ChunkAck { .. }
            | Body::PartAck { .. }
            | Body::ReadQuestion { .. }
            | Body::ReadIndex(_)
            | Body::Room { .. } => HEAD,
        }
    }

    /// Whether it has its receiver begin an election at once.
    pub(super) fn begins_election(&self) -> bool {
        matches!(&self.body, Body::Raft(message) if message.get_msg_type() == MessageType::MsgTimeoutNow)
    }

    /// The queue that this envelope takes.
    pub fn lane(&self) -> Lane {
        match &self.body {
            Body::Chunk(_) => Lane::Snapshot,
            Body::Part(_) => Lane::Entries,
            // Those without entries, too: one that overtakes an entry before it would be refused.
            Body::Raft(message) if message.get_msg_type() == MessageType::MsgAppend => Lane::Entries,
            Body::Raft(_)
            | Body::ChunkAck { .. }
            | Body::PartAck { .. }
            | Body::ReadQuestion { .. }
            | Body::ReadIndex(_)
            | Body::Room { .. } => Lane::Message,
        }
    }
}
