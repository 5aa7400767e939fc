//! What a leader sends to members of older versions of the program, and which of them it never gives a vote.
//!
//! A command is proposed only where all members know its format. But one that joins later, of an older version, would be sent the log, where that still begins with the
//! first entry; and what a replica cannot read it applies as nothing. So it is sent what it can read, and no more. It stays a learner, which nobody waits for; once its
//! node is of a newer version it comes with another id.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::group::Group;
use crate::model::format;

impl<W> Group<W> {
    /// Cuts off an append what its receiver cannot read; false where nothing is left to be sent.
    pub(super) fn cut_unreadable(&mut self, message: &mut Message) -> bool {
        let (to, said) = (message.to, self.formats.get(&message.to).copied());
        if message.get_msg_type() != MessageType::MsgAppend || format::reads_all(said) {
            return true;
        }
        let needs = message.entries.iter().map(|entry| self.entry_needs(entry));
        let Some((at, needs)) = format::first_unread(said, needs) else { return true };
        self.note_unread(to, said, needs);
        message.entries.truncate(at);
        // The crate takes for sent what it hands out.
        self.pause(to);
        // Whoever has said nothing yet says it with his answer.
        at > 0 || said.is_none()
    }

    /// Whether a replica can read a snapshot of the state as it is now.
    pub(super) fn is_state_read_by(&mut self, to: u64) -> bool {
        let said = self.formats.get(&to).copied();
        if format::reads_all(said) {
            return true;
        }
        let unread = format::first_unread(said, [self.machine.state_needs()]);
        if let Some((_, needs)) = unread {
            self.note_unread(to, said, needs);
        }
        unread.is_none()
    }

    /// The learners that cannot read what the group holds, and the format that they would have to know.
    pub(super) fn too_old(&self) -> Vec<(u64, u32)> {
        if !self.leads() {
            return Vec::new();
        }
        let learners = &self.raft.store().members().learners;
        self.too_old.iter().filter(|(id, _)| learners.contains(id)).map(|(id, needs)| (*id, *needs)).collect()
    }

    pub(super) fn is_too_old(&self, replica: u64) -> bool {
        self.too_old.contains_key(&replica) && self.raft.store().members().learners.contains(&replica)
    }

    fn note_unread(&mut self, to: u64, said: Option<u32>, needs: u32) {
        let Some(said) = said else { return };
        self.too_old.retain(|replica, _| self.members.contains_key(replica));
        let known = self.too_old.entry(to).or_insert(format::FIRST);
        if *known == format::FIRST {
            let at = self.members.get(&to).map(ToString::to_string).unwrap_or_default();
            log::warn!(
                "group {}: {at} is of a version that knows format {said}, and the group has needed {needs}: its replica gets no vote \
                 before the program there is updated",
                self.id
            );
        }
        *known = (*known).max(needs);
    }

    fn entry_needs(&self, entry: &Entry) -> u32 {
        if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
            return format::FIRST;
        }
        self.machine.needs(&entry.data)
    }
}
