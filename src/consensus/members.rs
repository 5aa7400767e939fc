//! Changes of the members of a group, and what an entry of the log says about one.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::model::address::Address;
use crate::model::binary::{Malformed, Reader, put_bytes, put_number};
use crate::model::view::MOST_REPLICAS;

/// The most members that a group may have, voters and learners together: all replicas may be on their way to other nodes at once.
pub(super) const MAX_MEMBERS: usize = 2 * MOST_REPLICAS;

/// The longest address that is believed.
const MAX_ADDRESS_BYTES: usize = 300;

/// The members of a group, voters and learners, by replica id, and where they are reached.
pub type Members = BTreeMap<u64, Address>;

/// One change of the members of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a replica that receives the log but has no vote.
    AddLearner {
        /// Its id, never used before.
        replica: u64,
        /// Where it is reached.
        address: Address,
    },
    /// Gives a learner that has caught up a vote; where it takes the place of another replica, both happen
    /// in one step.
    Promote {
        /// The learner.
        learner: u64,
        /// The replica that leaves.
        replaces: Option<u64>,
    },
    /// Takes replicas out, voters or learners, all in one step: with half of them out, none of the rest might be spared. A leader is handed
    /// over first.
    Remove {
        /// Their ids, one at least.
        replicas: Vec<u64>,
    },
}

impl Change {
    /// The change as the protocol knows it.
    ///
    /// A single change takes effect at once. Several, as when a new voter is put in for an old one, go through a
    /// joint configuration, in which both majorities are needed; it is left explicitly, by whoever leads
    /// then (see `Group::leave_joint`), and not by the crate, which forgets to when the leader changes
    /// before the first half has been applied.
    pub(super) fn to_raft(&self) -> ConfChangeV2 {
        let single = |kind, replica| {
            let mut single = ConfChangeSingle { node_id: replica, ..ConfChangeSingle::default() };
            single.set_change_type(kind);
            single
        };
        let mut raft = ConfChangeV2::default();
        let changes = match self {
            Self::AddLearner { replica, .. } => vec![single(ConfChangeType::AddLearnerNode, *replica)],
            Self::Promote { learner, replaces: None } => vec![single(ConfChangeType::AddNode, *learner)],
            Self::Promote { learner, replaces: Some(old) } => {
                vec![single(ConfChangeType::AddNode, *learner), single(ConfChangeType::RemoveNode, *old)]
            }
            Self::Remove { replicas } => {
                replicas.iter().map(|replica| single(ConfChangeType::RemoveNode, *replica)).collect()
            }
        };
        if changes.len() > 1 {
            raft.set_transition(ConfChangeTransition::Explicit);
        }
        raft.set_changes(changes.into());
        raft
    }

    /// The change as it stands in the context of its entry.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::AddLearner { replica, address } => {
                out.push(1);
                put_number(&mut out, *replica);
                put_bytes(&mut out, address.as_str().as_bytes());
            }
            Self::Promote { learner, replaces } => {
                out.push(2);
                put_number(&mut out, *learner);
                put_number(&mut out, replaces.unwrap_or(0));
            }
            Self::Remove { replicas } => {
                out.push(3);
                put_number(&mut out, replicas.len() as u64);
                for replica in replicas {
                    put_number(&mut out, *replica);
                }
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let change = match reader.byte()? {
            1 => Self::AddLearner { replica: replica(&mut reader)?, address: address(&mut reader)? },
            2 => {
                let learner = replica(&mut reader)?;
                Self::Promote { learner, replaces: Some(reader.number()?).filter(|old| *old != 0) }
            }
            3 => {
                let count = reader.count(MAX_MEMBERS)?;
                if count == 0 {
                    return Err(Malformed("a change without replicas"));
                }
                Self::Remove { replicas: (0..count).map(|_| replica(&mut reader)).collect::<Result<_, _>>()? }
            }
            _ => return Err(Malformed("unknown change of members")),
        };
        reader.end()?;
        Ok(change)
    }
}

/// What a committed change entry says: the change, and its form for the protocol.
///
/// Only our own form, in the context of the entry, is read. Its data hold the same in the form of protobuf,
/// which the crate reads on the leader that proposes it, from its own memory; that parser can be made to
/// recurse without bound and must never see bytes that came by the network.
///
/// An entry without context and data leaves the joint configuration.
pub(super) fn of_entry(context: &[u8]) -> Result<(Option<Change>, ConfChangeV2), Malformed> {
    if context.is_empty() {
        return Ok((None, ConfChangeV2::default()));
    }
    let change = Change::decode(context)?;
    let raft = change.to_raft();
    Ok((Some(change), raft))
}

/// Appends the members, for a snapshot.
pub(super) fn put_members(out: &mut Vec<u8>, members: &Members) {
    put_number(out, members.len() as u64);
    for (replica, address) in members {
        put_number(out, *replica);
        put_bytes(out, address.as_str().as_bytes());
    }
}

/// Reads the members of a snapshot.
pub(super) fn read_members(reader: &mut Reader<'_>) -> Result<Members, Malformed> {
    let count = reader.count(MAX_MEMBERS)?;
    (0..count).map(|_| Ok((replica(reader)?, address(reader)?))).collect()
}

fn replica(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    Some(reader.number()?).filter(|id| *id != 0).ok_or(Malformed("a replica id is never 0"))
}

fn address(reader: &mut Reader<'_>) -> Result<Address, Malformed> {
    let text =
        std::str::from_utf8(reader.bytes(MAX_ADDRESS_BYTES)?).map_err(|_| Malformed("not an address"))?;
    text.parse().map_err(|_| Malformed("not an address"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_survive_a_round_trip() {
        let changes = [
            Change::AddLearner { replica: 9, address: "node:1".parse().unwrap() },
            Change::Promote { learner: u64::MAX, replaces: Some(1) },
            Change::Promote { learner: 3, replaces: None },
            Change::Remove { replicas: vec![4] },
            Change::Remove { replicas: vec![4, 7] },
        ];
        for change in changes {
            assert_eq!(of_entry(&change.encode()).unwrap().0, Some(change));
        }
        assert!(of_entry(&[]).unwrap().1.leave_joint());
        assert!(of_entry(&[2, 0, 0]).is_err());
        assert!(of_entry(&Change::Remove { replicas: vec![] }.encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = of_entry(&bytes);
            let _ = read_members(&mut Reader::new(&bytes));
        }
    }
}
