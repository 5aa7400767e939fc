//! How a group has large commands go ahead of its log: see [`staging`](super::staging).

use std::collections::HashSet;

use raft::ProgressState;
use raft::Storage;
use raft::eraftpb::{Entry, Message, MessageType};

use super::envelope::{Body, Part};
use super::group::{Effects, Group};
use super::machine::{Answer, Refusal};
use super::proposals::Proposal;
use super::settings::Settings;
use super::staging::{Acked, StagedId, is_reference};
use crate::model::format;

/// A command goes ahead for so many times the time for an answer at most, however it gets on.
const LONGEST: u64 = 10;
/// So often it is looked which commands nobody will ask for any more.
const TIDY_TICKS: u64 = 25;

impl<W> Group<W> {
    pub(super) fn note_format(&mut self, replica: u64, format: u32) {
        // Strangers are noted, too, since they may be members soon; but not without end.
        if self.formats.len() > 2 * self.members.len() + 64 {
            self.formats.retain(|replica, _| self.members.contains_key(replica));
        }
        self.formats.insert(replica, format);
    }

    pub(super) fn format_of(&self, replica: u64) -> u32 {
        self.formats.get(&replica).copied().unwrap_or(format::FIRST)
    }

    /// Why no command that needs this format can be proposed: a member does not know it, or has not said what it knows, or one may just be added.
    pub(super) fn refuses(&self, needs: u32) -> Option<Refusal> {
        if needs == format::FIRST {
            return None;
        }
        // One that is sent nothing that it cannot read need not know it.
        let mut others = self
            .members
            .keys()
            .copied()
            .filter(|replica| *replica != self.replica() && !self.is_too_old(*replica));
        match others.find(|replica| self.format_of(*replica) < needs) {
            Some(replica) if self.formats.contains_key(&replica) => Some(Refusal::NotKnown { replica }),
            // Whoever has just been added, or was never heard by who leads now, says it with its first message.
            Some(replica) => Some(Refusal::NotHeard { replica }),
            None if self.changing() => Some(Refusal::ChangeRefused),
            None => None,
        }
    }

    /// Takes a command that is to be proposed, or gives back who waits for it where too much waits already.
    pub(super) fn push(
        &mut self,
        proposal: Proposal<W>,
        goes_ahead: bool,
        limits: (usize, usize),
        settings: &Settings,
    ) -> Result<(), W> {
        if !goes_ahead || proposal.command.len() < settings.staged_bytes || !self.is_ahead_known() {
            return self.proposals.push(proposal, limits);
        }
        let bytes: usize = self.ahead.iter().map(|(one, _)| one.command.len()).sum();
        if self.ahead.len() >= limits.0 || bytes + proposal.command.len() > limits.1 {
            return Err(proposal.waiter);
        }
        let staged = Some(self.staging.next_id(self.replica()));
        let latest = proposal.until + LONGEST * settings.answer_ticks;
        self.ahead.push((Proposal { staged, ..proposal }, latest));
        Ok(())
    }

    /// Whether there are other voters, and all of them know what it means.
    fn is_ahead_known(&self) -> bool {
        let voters = self.other_voters();
        self.leads() && !voters.is_empty() && voters.iter().all(|id| self.format_of(*id) >= format::STAGING)
    }

    fn other_voters(&self) -> Vec<u64> {
        let members = self.raft.store().members();
        let voters = members.voters.iter().chain(&members.voters_outgoing);
        voters.copied().filter(|id| *id != self.replica()).collect()
    }

    /// Has the commands that go ahead sent to all voters that are there, and hands over those that most of them hold.
    pub(super) fn advance_ahead(&mut self) {
        if self.ahead.is_empty() {
            return;
        }
        let tracker = self.raft.raft.prs();
        let is_there = |id: &u64| {
            // One of an older version may have become a voter meanwhile.
            self.format_of(*id) >= format::STAGING
                && tracker.get(*id).is_some_and(|progress| progress.recent_active)
        };
        let there: Vec<u64> = self.other_voters().into_iter().filter(is_there).collect();
        let mut rest = Vec::new();
        for (proposal, latest) in std::mem::take(&mut self.ahead) {
            let id = proposal.staged.expect("what goes ahead has an id");
            for voter in &there {
                self.staging.start(*voter, id, &proposal.command);
            }
            let holders = there.iter().copied().filter(|voter| self.staging.holds(*voter, id));
            let holders = holders.chain([self.replica()]).collect();
            if self.raft.raft.prs().has_quorum(&holders) {
                self.proposals.push_staged(proposal);
            } else {
                rest.push((proposal, latest));
            }
        }
        self.ahead = rest;
    }

    /// Nothing goes ahead any more, since this replica does not lead; what did was never proposed.
    pub(super) fn refuse_ahead(&mut self, refusal: Refusal, effects: &mut Effects<W>) {
        self.staging.clear();
        self.blocked.clear();
        let refused = self.ahead.drain(..).map(|(one, _)| (one.waiter, Answer::NotApplied(refusal)));
        effects.answers.extend(refused);
    }

    /// Sends the parts that are to be sent now.
    pub(super) fn send_parts(&mut self, settings: &Settings, effects: &mut Effects<W>) {
        for (to, body) in self.staging.parts(settings.part_bytes, settings.staging_window_bytes) {
            effects.envelopes.push(self.envelope(to, body));
        }
    }

    pub(super) fn take_part(
        &mut self,
        from: u64,
        part: &Part,
        settings: &Settings,
        effects: &mut Effects<W>,
    ) {
        let received = self.staged.take(part, settings.max_uncommitted_bytes);
        effects.envelopes.push(self.envelope(from, Body::PartAck { id: part.id, received }));
    }

    pub(super) fn take_part_ack(
        &mut self,
        from: u64,
        id: StagedId,
        received: u64,
        (now, settings): (u64, &Settings),
    ) {
        let (acked, grown) = self.staging.acked(from, id, received);
        match acked {
            Acked::Part => {}
            Acked::Whole => self.send_again(from),
            Acked::Lost => {
                self.pause(from);
                self.send_again(from);
            }
        }
        if grown == 0 {
            return;
        }
        if self.raft.store().members().learners.contains(&from) {
            self.fed_ahead += grown;
        }
        // They go one after the other, so while one gets on none has waited in vain; but nobody waits without end.
        for (proposal, latest) in &mut self.ahead {
            proposal.until = (now + settings.answer_ticks).min(*latest);
        }
    }

    /// Sends a replica no entries until it answers, or what it lacks is there; a snapshot that is under way goes on.
    pub(super) fn pause(&mut self, to: u64) {
        let progress = self.raft.raft.mut_prs().get_mut(to);
        if let Some(progress) = progress.filter(|progress| progress.state != ProgressState::Snapshot) {
            progress.become_probe();
            progress.pause();
        }
    }

    /// Sends a replica the entries that could not be sent before.
    fn send_again(&mut self, to: u64) {
        if !self.leads() || self.blocked.remove(&to).is_none() {
            return;
        }
        let Some(progress) = self.raft.raft.mut_prs().get_mut(to) else { return };
        progress.resume();
        self.raft.raft.send_append(to);
    }

    /// Makes an append name the commands that its receiver holds already. It ends before the first one that it does not hold, which is sent there first;
    /// false where nothing is left to be sent.
    pub(super) fn refer(&mut self, message: &mut Message) -> bool {
        let to = message.to;
        if message.get_msg_type() != MessageType::MsgAppend || self.format_of(to) < format::STAGING {
            return true;
        }
        if let Some(blocked) = self.blocked.get(&to).copied() {
            let matched = self.raft.raft.prs().get(to).map_or(0, |progress| progress.matched);
            if matched >= blocked {
                self.blocked.remove(&to);
            } else if message.index >= blocked {
                // It follows an entry that was not sent.
                return false;
            }
        }
        for at in 0..message.entries.len() {
            let Some(id) = StagedId::of(&message.entries[at]) else { continue };
            if self.staging.holds(to, id) {
                message.entries[at].data.clear();
                continue;
            }
            let is_there = self.raft.raft.prs().get(to).is_some_and(|progress| progress.recent_active);
            if is_there {
                self.staging.start_first(to, id, &message.entries[at].data);
                for entry in message.entries.iter().skip(at + 1) {
                    if let Some(id) = StagedId::of(entry) {
                        self.staging.start(to, id, &entry.data);
                    }
                }
            }
            self.blocked.insert(to, message.entries[at].index);
            message.entries.truncate(at);
            // The crate takes for sent what it hands out.
            self.pause(to);
            return at > 0;
        }
        true
    }

    /// Puts the commands into an append that only names them. It ends before one that is not here, of which the sender is told; false where nothing
    /// is left to be taken.
    pub(super) fn fill(&mut self, message: &mut Message, effects: &mut Effects<W>) -> bool {
        if message.index < self.raft.raft.raft_log.committed {
            // The crate only answers how far the log here is committed.
            return true;
        }
        for at in 0..message.entries.len() {
            if !is_reference(&message.entries[at]) {
                continue;
            }
            let id = StagedId::of(&message.entries[at]).expect("a reference has an id");
            let Some(command) = self.staged.get(id).or_else(|| self.logged(&message.entries[at])) else {
                effects.envelopes.push(self.envelope(message.from, Body::PartAck { id, received: 0 }));
                message.entries.truncate(at);
                return at > 0;
            };
            message.entries[at].data = command;
        }
        true
    }

    /// The command of an entry that the log here holds already.
    fn logged(&self, named: &Entry) -> Option<bytes::Bytes> {
        let log = self.raft.store();
        let entry = log.at(named.index).filter(|entry| entry.context == named.context)?;
        Some(entry.data.clone())
    }

    /// The commands of these entries are in the log: they are not kept beside it.
    ///
    /// # Panics
    /// Where one of them only names its command: it would be applied as if there were none.
    pub(super) fn note_logged(&mut self, entries: &[Entry]) {
        assert!(!entries.iter().any(is_reference), "a log holds whole commands");
        for id in entries.iter().filter_map(StagedId::of) {
            self.staged.remove(id);
        }
    }

    /// Counts a tick.
    pub(super) fn tick_ahead(&mut self, now: u64, effects: &mut Effects<W>) {
        self.staged.tick();
        self.staging.tick();
        let late = self.ahead.extract_if(.., |(one, _)| one.until <= now);
        effects.answers.extend(late.map(|(one, _)| (one.waiter, Answer::NotApplied(Refusal::Busy))));
        if self.staging.is_empty() || !now.is_multiple_of(TIDY_TICKS) {
            return;
        }
        let log = self.raft.store();
        let (first, last) = (log.first_index().unwrap_or(1), log.last());
        let ahead = self.ahead.iter().filter_map(|(one, _)| one.staged);
        let logged = (first..=last).filter_map(|index| StagedId::of(log.at(index)?));
        let wanted: HashSet<StagedId> = ahead.chain(logged).collect();
        self.staging.keep(|id| wanted.contains(&id), |id| self.members.contains_key(&id));
    }
}
