//! How a group answers linearizable reads: at its leader, and at any other replica, which asks the leader only up to where it has to have applied the log, and
//! then answers from its own state.
//!
//! A question carries the term of the replica that asks. Where that is the leader's, the replica has voted for nobody else by then. If it makes a majority with
//! the leader, no other leader can have been elected before the question was sent, so all that was acknowledged by then is committed here: the answer needs no further
//! message. Otherwise the leader asks the other replicas first, as for its own reads.

use std::collections::HashSet;

use super::envelope::{Body, ReadIndex};
use super::group::{Effects, Group};
use super::reads::{Asker, ReplicaQuestion};
use super::settings::Settings;
use crate::model::format;

/// A replica that was behind sends its readers to the leader for so many ticks.
const BEHIND_PAUSE_TICKS: u64 = 25;

impl<W> Group<W> {
    /// Takes a read of whoever wants this replica to lead, or gives it back where too many wait.
    pub(super) fn read(&mut self, reader: W, now: u64, settings: &Settings) -> Result<(), W> {
        self.push_read(Asker::AtLeader(reader), now, settings)
    }

    /// The same for whoever leads.
    pub(super) fn read_here(&mut self, reader: W, now: u64, settings: &Settings) -> Result<(), W> {
        self.push_read(Asker::AtReplica(reader), now, settings)
    }

    fn push_read(&mut self, asker: Asker<W>, now: u64, settings: &Settings) -> Result<(), W> {
        let pushed = self.reads.push(asker, now + settings.answer_ticks, settings.max_waiting);
        pushed.map_err(|back| back.waiter().expect("it was of this node"))
    }

    /// Whether this replica answers reads: it leads, or can ask who does and was not behind lately.
    pub(super) fn answers_reads(&self) -> bool {
        self.leads() || self.whom_to_ask().is_some_and(|_| self.behind_for == 0)
    }

    /// The leader, where it answers the questions of other replicas.
    fn whom_to_ask(&self) -> Option<u64> {
        self.leader().filter(|leader| self.format_of(*leader) >= format::REPLICA_READS)
    }

    /// Asks what the new reads, and those that have waited for too long, need to know.
    pub(super) fn ask_for_reads(&mut self, now: u64, effects: &mut Effects<W>) {
        if self.leads() {
            if let Some(question) = self.reads.question(now, self.replica()) {
                self.raft.read_index(question.to_be_bytes().to_vec());
            }
            return;
        }
        let refusal = self.refusal();
        self.reads.refuse_at_leader(refusal, &mut effects.answers);
        match self.whom_to_ask().filter(|_| self.behind_for == 0) {
            None => self.reads.refuse(refusal, &mut effects.answers),
            Some(leader) => {
                if let Some(question) = self.reads.question(now, leader) {
                    let term = self.raft.raft.term;
                    effects.envelopes.push(self.envelope(leader, Body::ReadQuestion { question, term }));
                }
            }
        }
    }

    /// A replica asks up to where it has to have applied the log. Where nothing can be said to that, it asks again.
    pub(super) fn take_read_question(
        &mut self,
        (from, question, term): (u64, u64, u64),
        (now, settings): (u64, &Settings),
        effects: &mut Effects<W>,
    ) {
        if !self.leads() {
            return;
        }
        let question = ReplicaQuestion { from, question };
        if self.is_confirmed_by(from, term, settings) {
            self.answer_read_question(question, self.raft.raft.raft_log.committed, effects);
        } else {
            let _ =
                self.reads.push(Asker::Replica(question), now + settings.answer_ticks, settings.max_waiting);
        }
    }

    /// Whether this leader, and a replica that was in this term when it asked, are enough to know that nobody else led by then.
    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests can take a rule out"))]
    fn is_confirmed_by(&self, from: u64, term: u64, settings: &Settings) -> bool {
        let raft = &self.raft.raft;
        let both = HashSet::from_iter([self.replica(), from]);
        #[cfg(not(test))]
        let is_majority = raft.prs().has_quorum(&both);
        #[cfg(test)]
        let is_majority = raft.prs().has_quorum(&both)
            || settings.without == Some(super::simulation::Rule::MajorityAtReadQuestion);
        term == raft.term && raft.commit_to_current_term() && is_majority
    }

    pub(super) fn answer_read_question(
        &self,
        ReplicaQuestion { from, question }: ReplicaQuestion,
        index: u64,
        effects: &mut Effects<W>,
    ) {
        let answer = ReadIndex { question, index, term: self.raft.raft.term };
        effects.envelopes.push(self.envelope(from, Body::ReadIndex(answer)));
    }

    /// The leader says up to where this replica has to have applied the log.
    pub(super) fn take_read_index(&mut self, answer: ReadIndex, now: u64) {
        let ReadIndex { question, index, term } = answer;
        // The index is committed in the leader's term. Where the log here has an entry of that term there, it is the same, and so is all before it.
        if !self.leads() && term == self.raft.raft.term {
            self.raft.raft.raft_log.maybe_commit(index, term);
        }
        let others = self.reads.confirm(question, index, now);
        debug_assert!(others.is_empty() || self.leads(), "only a leader is asked by others");
    }

    /// Counts a tick.
    pub(super) fn tick_reads(&mut self, now: u64, effects: &mut Effects<W>) {
        self.reads.expire(now, &mut effects.answers);
        self.behind_for = self.behind_for.saturating_sub(1);
        if !self.leads() && self.reads.refuse_behind(now, self.refusal(), &mut effects.answers) {
            self.behind_for = BEHIND_PAUSE_TICKS;
        }
    }
}
