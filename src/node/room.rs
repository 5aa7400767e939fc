//! Whether a write that would grow is taken: by what this node holds, and where it leads a group, by what the other replicas have told of theirs.

use super::keys::{Action, NotServed, Operation};
use super::state::Node;
use crate::error::Error;
use crate::memory;
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::room;
use crate::model::shard::{Forwarded, Shard};

impl Node {
    /// Takes in what the allocator holds. One thread does.
    pub fn count_memory(&self) {
        self.note_memory(memory::usage_now().resident);
    }

    /// Takes in both.
    pub fn count_room(&self) {
        self.count_disk();
        self.count_memory();
    }

    /// Takes in what there is room for on its disk, if it has one. One thread does.
    pub fn count_disk(&self) {
        if let Some(left) = self.storage.as_ref().and_then(|storage| storage.room()) {
            self.gauge.count_disk(left);
        }
    }

    /// Takes in that the node holds so many bytes.
    pub fn note_memory(&self, used: u64) {
        self.gauge.count(used);
    }

    /// What the node may hold, in bytes, if that is bounded.
    pub fn memory_bound(&self) -> Option<u64> {
        self.gauge.bound()
    }

    /// How many bytes more the node takes, if that is bounded.
    pub fn room_left(&self) -> Option<u64> {
        self.gauge.left()
    }

    /// Admits a write to a shard that this node keeps alone, or whose group it leads.
    ///
    /// # Errors
    /// Where it would grow, and a replica has no room for it: the node of that.
    pub(super) fn admit(
        &self,
        shard: &Shard,
        (hash, key): (KeyHash, &[u8]),
        operation: Operation,
        write: Option<&Forwarded>,
    ) -> Result<(), Address> {
        let Action::Put(value) = operation.action else { return Ok(()) };
        if !self.gauge.is_bounded() {
            return Ok(());
        }
        let is_logged = shard.is_logged();
        let local = if is_logged { self.groups.local(shard.group()) } else { None };
        let least = local.as_ref().and_then(|local| local.least_room);
        let (replica, until) = least.unwrap_or((0, u64::MAX));
        if self.gauge.admits(room::weight(key, value, is_logged), until) {
            return Ok(());
        }
        if !shard.would_grow(hash, key, operation, write) {
            return Ok(());
        }
        let is_of_other =
            self.gauge.left().is_none_or(|left| until.saturating_sub(self.gauge.admitted()) < left);
        let other = local.as_ref().and_then(|local| local.status.members.get(&replica));
        Err(other.filter(|_| is_of_other).unwrap_or(&self.address).clone())
    }
}

/// What is said where a node has no room.
pub(super) fn no_room(node: &Address) -> NotServed {
    NotServed::Failed(Error::NoRoom(format!(
        "{node} holds as much as its MAX_MEMORY, or the disk of its DATA_DIR, allows: delete pairs, add nodes by a view change, start it with a \
         higher MAX_MEMORY, or make room on that disk"
    )))
}
