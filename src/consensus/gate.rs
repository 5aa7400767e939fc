//! What a leader sends to members of older versions of the program, and which of them it never gives a vote.
//!
//! A command is proposed only where all members know its format. But one that joins later, of an older version, would be sent the state, and the log behind it; and what a
//! replica cannot read it applies as nothing. So it is sent what it can read, and no more: neither a snapshot of a state that it cannot read, nor any entry from the first on
//! that it cannot. It stays a learner, which nobody waits for; once its node is of a newer version it comes with another id.

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

#[cfg(test)]
mod tests {
    use super::super::driver::Driver;
    use super::super::machine::{Pieces, StateMachine};
    use super::super::settings::Settings;
    use super::*;
    use crate::model::binary::Malformed;

    /// Of its commands those that begin with 'n' are new.
    struct Commands;

    impl StateMachine for Commands {
        fn apply(&mut self, _index: u64, _term: u64, _command: &[u8]) -> Vec<u8> {
            Vec::new()
        }

        fn snapshot(&self) -> Pieces {
            Box::new(std::iter::empty())
        }

        fn needs(&self, command: &[u8]) -> u32 {
            if command.starts_with(b"n") { format::CURRENT } else { format::FIRST }
        }

        fn restore(&mut self, _snapshot: &[u8]) -> Result<(), Malformed> {
            Ok(())
        }
    }

    #[test]
    fn an_append_ends_before_the_first_entry_that_its_receiver_cannot_read() {
        let (old, current) = (Some(format::FIRST), Some(format::CURRENT));
        for (said, commands, sent, is_sent, what) in [
            (current, &["a", "new", "b"][..], 3, true, "it knows all"),
            (old, &["a", "b"], 2, true, "nothing of it is new"),
            (old, &["a", "b", "new", "c", "new"], 2, true, "up to the first that is"),
            (old, &["new", "a"], 0, false, "nothing is left"),
            (None, &["a", "new"], 1, true, "it has said nothing"),
            (None, &["new"], 0, true, "it says it with its answer"),
        ] {
            let mut driver: Driver<()> = Driver::new(Settings::default());
            let voters = (1..=2).map(|id| (id, format!("node{id}:1").parse().unwrap())).collect();
            driver.found(7, 1, &voters, Box::new(Commands)).unwrap();
            if let Some(said) = said {
                driver.note_format(7, 2, said);
            }
            let entries =
                commands.iter().map(|command| Entry { data: (*command).into(), ..Entry::default() });
            let mut message = Message { to: 2, entries: entries.collect(), ..Message::default() };
            message.set_msg_type(MessageType::MsgAppend);
            let group = driver.group(7);
            assert_eq!(group.cut_unreadable(&mut message), is_sent, "{what}");
            let left: Vec<_> = message.entries.iter().map(|entry| &entry.data[..]).collect();
            let wanted: Vec<_> = commands[..sent].iter().map(|command| command.as_bytes()).collect();
            assert_eq!(left, wanted, "{what}");
            // Only of one that has said so it is known that it is too old.
            assert_eq!(group.too_old.contains_key(&2), said == old && sent < commands.len(), "{what}");
        }
    }
}
