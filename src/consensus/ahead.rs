//! How a group has large commands go ahead of its log: see [`staging`](super::staging).

use std::collections::HashSet;

use raft::Storage;
use raft::eraftpb::{Entry, Message, MessageType};

use super::envelope::{Body, Part};
use super::group::{Effects, Group};
use super::machine::{Answer, Refusal};
use super::proposals::Proposal;
use super::settings::Settings;
use super::staging::{Acked, StagedId, is_reference};
use crate::model::format;

impl<W> Group<W> {
    pub(super) fn note_format(&mut self, replica: u64, format: u32) {
        // Strangers are noted, too, since they may be members soon; but not without end.
        if self.formats.len() > 2 * self.members.len() + 64 {
            self.formats.retain(|replica, _| self.members.contains_key(replica));
        }
        self.formats.insert(replica, format);
    }

    fn format_of(&self, replica: u64) -> u32 {
        self.formats.get(&replica).copied().unwrap_or(format::FIRST)
    }

    /// A member, if there is one, whose node has not said that it knows this format.
    pub(super) fn first_without(&self, needs: u32) -> Option<u64> {
        let mut others = self.members.keys().copied().filter(|replica| *replica != self.replica());
        others.find(|replica| self.format_of(*replica) < needs)
    }

    /// Takes a command that is to be proposed, or gives back who waits for it where too much waits already.
    pub(super) fn push(
        &mut self,
        proposal: Proposal<W>,
        limits: (usize, usize),
        settings: &Settings,
    ) -> Result<(), W> {
        if proposal.command.len() < settings.staged_bytes || !self.goes_ahead() {
            return self.proposals.push(proposal, limits);
        }
        let bytes: usize = self.ahead.iter().map(|one| one.command.len()).sum();
        if self.ahead.len() >= limits.0 || bytes + proposal.command.len() > limits.1 {
            return Err(proposal.waiter);
        }
        let staged = Some(self.staging.next_id(self.replica()));
        self.ahead.push(Proposal { staged, ..proposal });
        Ok(())
    }

    /// Whether there are other voters, and all of them know what it means.
    fn goes_ahead(&self) -> bool {
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
        let is_there = |id: &u64| tracker.get(*id).is_some_and(|progress| progress.recent_active);
        let there: Vec<u64> = self.other_voters().into_iter().filter(is_there).collect();
        let mut rest = Vec::new();
        for proposal in std::mem::take(&mut self.ahead) {
            let id = proposal.staged.expect("what goes ahead has an id");
            for voter in &there {
                self.staging.start(*voter, id, &proposal.command);
            }
            let holders = there.iter().copied().filter(|voter| self.staging.holds(*voter, id));
            let holders = holders.chain([self.replica()]).collect();
            if self.raft.raft.prs().has_quorum(&holders) {
                self.proposals.push_staged(proposal);
            } else {
                rest.push(proposal);
            }
        }
        self.ahead = rest;
    }

    /// Nothing goes ahead any more, since this replica does not lead; what did was never proposed.
    pub(super) fn refuse_ahead(&mut self, refusal: Refusal, effects: &mut Effects<W>) {
        self.staging.clear();
        self.blocked.clear();
        let refused = self.ahead.drain(..).map(|one| (one.waiter, Answer::NotApplied(refusal)));
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
        match self.staging.acked(from, id, received) {
            Acked::Part => {}
            Acked::Whole => self.send_again(from),
            Acked::Lost => {
                if let Some(progress) = self.raft.raft.mut_prs().get_mut(from) {
                    progress.become_probe();
                }
                self.send_again(from);
            }
        }
        // Who waits for a command that is on its way is told what came of it when that is over.
        if let Some(proposal) = self.ahead.iter_mut().find(|proposal| proposal.staged == Some(id)) {
            proposal.until = now + settings.answer_ticks;
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
            self.staging.start_first(to, id, &message.entries[at].data);
            self.blocked.insert(to, message.entries[at].index);
            message.entries.truncate(at);
            // The crate takes for sent what it hands out.
            if let Some(progress) = self.raft.raft.mut_prs().get_mut(to) {
                progress.become_probe();
            }
            return at > 0;
        }
        true
    }

    /// Puts the commands into an append that only names them. It ends before one that is not here, of which the sender is told; false where nothing
    /// is left to be taken.
    pub(super) fn fill(&mut self, message: &mut Message, effects: &mut Effects<W>) -> bool {
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
    pub(super) fn note_logged(&mut self, entries: &[Entry]) {
        for id in entries.iter().filter_map(StagedId::of) {
            self.staged.remove(id);
        }
    }

    /// Counts a tick.
    pub(super) fn tick_ahead(&mut self, now: u64, effects: &mut Effects<W>) {
        self.staged.tick();
        self.staging.tick();
        let is_over = |one: &mut Proposal<W>| one.until <= now;
        let late = self.ahead.extract_if(.., is_over);
        effects.answers.extend(late.map(|one| (one.waiter, Answer::NotApplied(Refusal::Busy))));
        if self.staging.is_empty() {
            return;
        }
        let log = self.raft.store();
        let (first, last) = (log.first_index().unwrap_or(1), log.last());
        let ahead = self.ahead.iter().filter_map(|one| one.staged);
        let logged = (first..=last).filter_map(|index| StagedId::of(log.at(index)?));
        let wanted: HashSet<StagedId> = ahead.chain(logged).collect();
        self.staging.keep(|id| wanted.contains(&id), |id| self.members.contains_key(&id));
    }
}
