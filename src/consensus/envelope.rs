//! What travels between the replicas of a group.

use bytes::Bytes;
use raft::eraftpb::Message;

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

/// Which queue an envelope takes, so that a large snapshot does not hold up the heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Small or urgent.
    Message,
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
            Body::ChunkAck { .. } => HEAD,
        }
    }

    /// The queue that this envelope takes.
    pub fn lane(&self) -> Lane {
        match self.body {
            Body::Chunk(_) => Lane::Snapshot,
            Body::Raft(_) | Body::ChunkAck { .. } => Lane::Message,
        }
    }
}
