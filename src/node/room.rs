//! Whether a write that would grow is taken: by what this node holds, and where it leads a group, by what the other replicas have told of theirs.

use super::group_ops::NotDone;
use super::keys::{Action, NotServed, Operation};
use super::state::Node;
use crate::error::Error;
use crate::memory;
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::room;
use crate::model::shard::{Forwarded, RequestId, Shard};

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

    /// Takes a write to a shard that this node keeps alone, or whose group it leads, if there is room for it and to remember it.
    ///
    /// # Errors
    /// [`NotDone::Full`], [`NotDone::NoRoom`]; [`NotDone::UnderWay`] where it may be done all the same.
    pub(super) fn find_room(
        &self,
        shard: &Shard,
        place: (KeyHash, &[u8]),
        operation: Operation,
        write: Option<&Forwarded>,
    ) -> Result<(), NotDone> {
        let look = || match write {
            Some(write) if !self.has_room_for(shard, place.0, write) => Err(NotDone::Full),
            write => self.admit(shard, place, operation, write).map_err(NotDone::NoRoom),
        };
        match (look(), write.map(|write| write.request)) {
            (Err(_), Some(RequestId::Timed { id, .. })) if self.under_way.has(id) => Err(NotDone::UnderWay),
            // It may have ended since: then the shard remembers it.
            (Err(_), Some(RequestId::Timed { .. })) => look(),
            (looked, _) => looked,
        }
    }

    /// Admits a write.
    ///
    /// # Errors
    /// Where it would grow, and a replica has no room for it: the node of that.
    fn admit(
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fake::Fake;
    use super::*;
    use crate::config::Settings;
    use crate::consensus::{Answer, Refusal};
    use crate::model::hash::HashKey;
    use crate::model::range::HashRange;

    #[test]
    fn a_named_write_that_the_log_was_asked_for_is_not_said_to_be_undone() {
        let settings: Settings =
            [("ADDRESS", "n1"), ("VIEW", "n1,n2"), ("MAX_MEMORY", "1000000000")].into_iter().collect();
        let (node, _inbox) = Node::new(&settings.check().unwrap(), Arc::new(Fake::default()));
        let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
        let (hash, put) = (shard.hash_of(b"k"), Operation::put(b"1"));
        let write = |id| Forwarded {
            request: RequestId::Timed { id, fingerprint: 1 },
            epoch: 1,
            now_ms: 10,
            keep_ms: 1000,
        };
        let longer = Operation::put(b"12");
        let find = |id| node.find_room(&shard, (hash, b"k"), longer, Some(&write(id)));
        assert_eq!(find(7), Ok(()));
        node.note_memory(2_000_000_000);
        let refused = Err(NotDone::NoRoom(node.address.clone()));
        assert_eq!(find(7), refused);
        let asked = node.under_way.begin([write(7).request]);
        assert_eq!((find(7), find(8)), (Err(NotDone::UnderWay), refused.clone()));
        asked.end(Answer::NotApplied(Refusal::Busy));
        assert_eq!(find(7), refused);
        shard.run(hash, b"k", put, Some(write(7))).unwrap();
        assert_eq!((find(7), find(8)), (Ok(()), refused));
    }
}
