//! Who waits for what in the log.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::machine::{Answer, Refusal};
use super::staging::StagedId;

/// Commands that are to be proposed, and those that stand in the log and whose outcome somebody awaits.
pub(super) struct Proposals<W> {
    inbox: VecDeque<Proposal<W>>,
    inbox_bytes: usize,
    /// By index *and* term. An index alone says nothing: when the leader changes, another leader's entry
    /// may take the place of ours, and what it returns is not the answer to our question.
    waiting: BTreeMap<(u64, u64), Waiting<W>>,
}

/// A command that somebody wants to have applied, and is told by a tick what came of it.
pub(super) struct Proposal<W> {
    pub(super) command: Bytes,
    /// The format that every member has to know.
    pub(super) needs: u32,
    pub(super) waiter: W,
    pub(super) until: u64,
    /// Where it has gone ahead to the other replicas, the name under which they hold it.
    pub(super) staged: Option<StagedId>,
}

struct Waiting<W> {
    waiter: W,
    until: u64,
}

impl<W> Default for Proposals<W> {
    fn default() -> Self {
        Self { inbox: VecDeque::new(), inbox_bytes: 0, waiting: BTreeMap::new() }
    }
}

impl<W> Proposals<W> {
    /// Puts a command into the inbox, or gives it back where the inbox is full.
    pub(super) fn push(&mut self, proposal: Proposal<W>, limits: (usize, usize)) -> Result<(), W> {
        let waiting = self.inbox.len() + self.waiting.len();
        let length = proposal.command.len();
        if waiting >= limits.0 || self.inbox_bytes + length > limits.1 {
            return Err(proposal.waiter);
        }
        self.inbox_bytes += length;
        self.inbox.push_back(proposal);
        Ok(())
    }

    /// Puts in a command that most replicas hold already, before all others.
    pub(super) fn push_staged(&mut self, proposal: Proposal<W>) {
        self.inbox_bytes += proposal.command.len();
        self.inbox.push_front(proposal);
    }

    /// How many commands wait in the inbox, and their bytes.
    pub(super) fn inbox(&self) -> (usize, usize) {
        (self.inbox.len(), self.inbox_bytes)
    }

    /// Takes commands from the inbox: as many as fit into `room` bytes, at least one where `at_least_one`.
    pub(super) fn take(&mut self, room: usize, at_least_one: bool) -> Vec<Proposal<W>> {
        let mut taken = Vec::new();
        let mut size = 0;
        while let Some(length) = self.inbox.front().map(|proposal| proposal.command.len()) {
            size += length;
            if size > room && !(at_least_one && taken.is_empty()) {
                break;
            }
            self.inbox_bytes -= length;
            taken.extend(self.inbox.pop_front());
        }
        taken
    }

    /// Empties the inbox; none of it was ever proposed.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = W> + '_ {
        self.inbox_bytes = 0;
        self.inbox.drain(..).map(|proposal| proposal.waiter)
    }

    pub(super) fn wait(&mut self, at: (u64, u64), waiter: W, until: u64) {
        self.waiting.insert(at, Waiting { waiter, until });
    }

    /// An entry was applied: who waits for it, and the answers to those whom it proves wrong.
    ///
    /// Where one waits for this index under another term, its own entry can never be committed any more,
    /// since an index is committed only once: that much is certain.
    pub(super) fn applied(&mut self, at: (u64, u64), answers: &mut Vec<(W, Answer)>) -> Option<W> {
        let mut found = None;
        while let Some(entry) = self.waiting.first_entry().filter(|entry| entry.key().0 <= at.0) {
            let (waits_for, waiting) = entry.remove_entry();
            if waits_for == at {
                found = Some(waiting.waiter);
            } else {
                answers.push((waiting.waiter, Answer::NotApplied(Refusal::Superseded)));
            }
        }
        found
    }

    /// As [`Self::applied`], as it must not be: by the index alone.
    #[cfg(test)]
    pub(super) fn applied_whatever_the_term(&mut self, index: u64) -> Option<W> {
        let entry = self.waiting.first_entry().filter(|entry| entry.key().0 <= index)?;
        Some(entry.remove().waiter)
    }

    /// A snapshot took the place of everything up to `index`, and nobody here saw what was applied.
    pub(super) fn skipped(&mut self, index: u64, answers: &mut Vec<(W, Answer)>) {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| entry.key().0 <= index) {
            answers.push((entry.remove().waiter, Answer::Unknown));
        }
    }

    /// Answers those who have waited until `now`: what was never proposed never will be; an entry may still be committed.
    pub(super) fn expire(&mut self, now: u64, answers: &mut Vec<(W, Answer)>) {
        if self.inbox.iter().any(|proposal| proposal.until <= now) {
            let (late, rest): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.inbox).into_iter().partition(|proposal| proposal.until <= now);
            self.inbox = rest;
            for Proposal { command, waiter, .. } in late {
                self.inbox_bytes -= command.len();
                answers.push((waiter, Answer::NotApplied(Refusal::Busy)));
            }
        }
        let late: Vec<_> =
            self.waiting.iter().filter(|(_, one)| one.until <= now).map(|(at, _)| *at).collect();
        for at in late {
            answers.extend(self.waiting.remove(&at).map(|one| (one.waiter, Answer::Unknown)));
        }
    }

    /// Everybody who waits, when the group is given up.
    pub(super) fn abandon(&mut self, answers: &mut Vec<(W, Answer)>) {
        answers.extend(self.drain().map(|waiter| (waiter, Answer::NotApplied(Refusal::NoGroup))));
        let waiting = std::mem::take(&mut self.waiting).into_values();
        answers.extend(waiting.map(|one| (one.waiter, Answer::Unknown)));
    }
}
