//! What is done to a shard that this node holds a replica of: at once where it is kept by this node alone, through the log of its
//! group where it has one.

use super::raft::NotProposed;
use super::state::Node;
use crate::clock::Deadline;
use crate::consensus::Refusal;
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::shard::{
    Done, Forwarded, Operation, Refused, Shard, ShardCommand, ShardOutcome, encode_write,
};

/// Why something was not done to a shard, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDone {
    /// This node does not lead the shard's group: ask the leader, where it is known. Nothing was done.
    NotLeader(Option<Address>),
    /// Nothing was done; in a moment it may be.
    Again,
    /// Nothing was done: too much waits already.
    Busy,
    /// Nothing was done: a command of this length is never taken.
    TooLarge,
    /// It may have been done, or may yet be. Asked again under the same id it is done once.
    Unknown,
}

impl std::fmt::Display for NotDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotLeader(Some(leader)) => {
                write!(f, "not the leader of the shard's replicas, which is {leader}")
            }
            Self::NotLeader(None) => f.write_str("the shard's replicas have no leader that is known"),
            Self::Again => f.write_str("the shard is changing"),
            Self::Busy => f.write_str("too much waits for the shard's replicas"),
            Self::TooLarge => f.write_str("too large for the log of the shard's replicas"),
            Self::Unknown => f.write_str("the shard's replicas did not agree in time"),
        }
    }
}

impl Node {
    /// Changes a shard.
    ///
    /// # Errors
    /// [`NotDone`]; a shard without a log always does it.
    pub fn apply(
        &self,
        shard: &Shard,
        command: &ShardCommand,
        deadline: Deadline,
    ) -> Result<ShardOutcome, NotDone> {
        if !shard.is_logged() {
            return Ok(shard.apply(command));
        }
        self.propose_to(shard, command.encode(), deadline)
    }

    /// Waits until this node's replica of a shard holds everything that was ever acknowledged.
    ///
    /// # Errors
    /// [`NotDone`], as long as this node does not lead the shard's group.
    pub fn confirm(&self, shard: &Shard, deadline: Deadline) -> Result<(), NotDone> {
        if !shard.is_logged() {
            return Ok(());
        }
        let group = shard.group();
        self.groups.read(group, deadline).map(|_| ()).map_err(|error| self.not_done(group, error))
    }

    /// Does an operation on a key of a shard that has a log, where this node leads its group.
    ///
    /// # Errors
    /// [`NotDone`], or [`Refused`], with which nothing was done either.
    pub(super) fn run_in_group(
        &self,
        shard: &Shard,
        (hash, key): (KeyHash, &[u8]),
        operation: Operation,
        forwarded: &Forwarded,
        deadline: Deadline,
    ) -> Result<Result<Done, Refused>, NotDone> {
        let value = match operation {
            Operation::Get => {
                self.confirm(shard, deadline)?;
                return Ok(shard.run(hash, key, operation, None));
            }
            Operation::Put(value) => Some(value),
            Operation::Delete => None,
        };
        match self.propose_to(shard, encode_write(key, value, forwarded), deadline)? {
            ShardOutcome::Write(done) => Ok(done.map(Done::from)),
            _ => Err(NotDone::Unknown),
        }
    }

    fn propose_to(
        &self,
        shard: &Shard,
        command: Vec<u8>,
        deadline: Deadline,
    ) -> Result<ShardOutcome, NotDone> {
        let group = shard.group();
        let outcome = self.groups.propose(group, command.into(), deadline);
        let outcome = outcome.map_err(|error| self.not_done(group, error))?;
        // Whatever it says, it was applied; that it cannot be read is a fault of ours.
        ShardOutcome::decode(&outcome).map_err(|_| NotDone::Unknown)
    }

    fn not_done(&self, group: u64, error: NotProposed) -> NotDone {
        match error {
            NotProposed::Unknown => NotDone::Unknown,
            NotProposed::Refused(Refusal::NotLeader { leader }) => {
                let seat = self.groups.seat(group);
                let address = leader.and_then(|id| seat?.status.members.get(&id).cloned());
                NotDone::NotLeader(address.filter(|leader| *leader != self.address))
            }
            NotProposed::Refused(Refusal::NoGroup) => NotDone::NotLeader(None),
            NotProposed::Refused(Refusal::Busy) => NotDone::Busy,
            NotProposed::Refused(Refusal::TooLarge) => NotDone::TooLarge,
            NotProposed::Refused(Refusal::Superseded | Refusal::ChangeRefused | Refusal::NotCaughtUp) => {
                NotDone::Again
            }
        }
    }

    /// Whether this node leads a shard; the leader where it does not and one is known.
    pub fn leads(&self, shard: &Shard) -> Result<(), NotDone> {
        if !shard.is_logged() {
            return Ok(());
        }
        match self.groups.seat(shard.group()) {
            Some(seat) if seat.leads() => Ok(()),
            Some(seat) => {
                Err(NotDone::NotLeader(seat.leader().filter(|leader| **leader != self.address).cloned()))
            }
            None => Err(NotDone::NotLeader(None)),
        }
    }
}
