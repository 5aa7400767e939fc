//! How a group changes its members.

use raft::eraftpb::{ConfChangeV2, Entry, EntryType};

use super::group::{Effects, Group};
use super::machine::{Answer, Refusal};
use super::members::{Change, MAX_MEMBERS, of_entry};
use super::settings::Settings;

impl<W> Group<W> {
    /// Proposes a change, or refuses it.
    ///
    /// `Applied` means that the change is in force. After one with two halves the configuration is joint
    /// for a moment longer; `Status::outgoing` is empty when it is over.
    pub(super) fn change(
        &mut self,
        change: &Change,
        waiter: W,
        now: u64,
        settings: &Settings,
        effects: &mut Effects<W>,
    ) {
        match self.propose_change(change, settings) {
            Ok(at) => self.proposals.wait(at, waiter, now + settings.answer_ticks),
            Err(refusal) => effects.answers.push((waiter, Answer::NotApplied(refusal))),
        }
    }

    fn propose_change(&mut self, change: &Change, settings: &Settings) -> Result<(u64, u64), Refusal> {
        if !self.leads() {
            return Err(self.refusal());
        }
        self.check(change, settings)?;
        self.raft.propose_conf_change(change.encode(), change.to_raft()).map_err(|_| Refusal::Busy)?;
        // A change that the crate does not want now becomes an empty entry of the ordinary kind, and the
        // caller is told that all went well. Only the entry itself says the truth.
        let entry =
            self.raft.raft.raft_log.unstable_entries().last().expect("the proposal is not persisted yet");
        if entry.get_entry_type() == EntryType::EntryNormal {
            return Err(Refusal::ChangeRefused);
        }
        Ok((entry.index, entry.term))
    }

    fn check(&self, change: &Change, settings: &Settings) -> Result<(), Refusal> {
        let members = self.raft.store().members();
        let fits = match change {
            // The crate would demote a voter that is added as a learner.
            Change::AddLearner { replica, .. } => {
                *replica != 0 && !self.members.contains_key(replica) && self.members.len() < MAX_MEMBERS
            }
            Change::Promote { learner, replaces } => {
                members.learners.contains(learner)
                    && replaces.is_none_or(|old| members.voters.contains(&old) && old != self.replica())
            }
            // A leader that is no member any more goes on leading in the crate, for nobody's good.
            Change::Remove { replicas } => {
                let is_other =
                    |replica: &u64| self.members.contains_key(replica) && *replica != self.replica();
                !replicas.is_empty() && replicas.iter().all(is_other) && self.can_spare(replicas)
            }
        };
        if !fits || self.changing() {
            return Err(Refusal::ChangeRefused);
        }
        match change {
            Change::Promote { learner, .. } if self.is_too_old(*learner) => {
                Err(Refusal::NotKnown { replica: *learner })
            }
            Change::Promote { learner, .. } if !self.caught_up(*learner, settings) => {
                Err(Refusal::NotCaughtUp)
            }
            _ => Ok(()),
        }
    }

    /// Whether a learner holds everything that was ever acknowledged, and was heard of lately.
    ///
    /// A leader knows what was acknowledged before its time only once it has committed an entry of its own.
    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests can take a rule out"))]
    fn caught_up(&self, learner: u64, settings: &Settings) -> bool {
        #[cfg(test)]
        if settings.without == Some(super::simulation::Rule::CatchUpBeforePromotion) {
            return true;
        }
        let raft = &self.raft.raft;
        raft.commit_to_current_term()
            && raft.prs().get(learner).is_some_and(|progress| {
                // In whatever state the crate sends to it: after a snapshot it is not `Replicate` before another entry comes, which may
                // be never.
                progress.recent_active && progress.matched >= raft.raft_log.committed
            })
    }

    /// Ends a leadership without voice, before the crate looks for the leader's own progress, which is gone
    /// with its vote, and panics.
    ///
    /// No leader proposes its own removal; but it may have found it in the log when it was elected. What it
    /// still had to send is dropped, since the crate allows nobody but a leader to send at this point; the
    /// others were told already that the removal is committed, or will be by the next leader.
    fn step_down(&mut self) {
        let raft = &mut self.raft.raft;
        raft.msgs.clear();
        let term = raft.term;
        raft.become_follower(term, raft::INVALID_ID);
    }

    /// Whether those voters that were heard of lately are a majority also without these. Where some are
    /// down, taking out one that is not can leave a group that never agrees on anything again.
    fn can_spare(&self, replicas: &[u64]) -> bool {
        let raft = &self.raft.raft;
        let active =
            |id: u64| id == raft.id || raft.prs().get(id).is_some_and(|progress| progress.recent_active);
        let voters = &raft.store().members().voters;
        let rest: Vec<u64> = voters.iter().copied().filter(|id| !replicas.contains(id)).collect();
        rest.len() == voters.len() || 2 * rest.iter().filter(|id| active(**id)).count() > rest.len()
    }

    /// Whether a change is in the log but not applied, or only half done.
    pub(super) fn changing(&self) -> bool {
        self.joint() || (self.leads() && self.raft.raft.has_pending_conf())
    }

    fn joint(&self) -> bool {
        !self.raft.store().members().voters_outgoing.is_empty()
    }

    /// Proposes the second half of a joint change, an entry with empty data.
    ///
    /// Whoever leads does it as soon as the first half is applied, so nothing is lost with the leader that
    /// began the change. (The crate can do it by itself, but only the leader that proposed the first half
    /// would, and only if it still led when that was applied.)
    pub(super) fn leave_joint(&mut self) {
        if self.joint() && !self.raft.raft.has_pending_conf() {
            // Refused only where something else is in the way, which is looked at again in the next step.
            let _ = self.raft.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    /// Applies a change from the log; false where it does not fit, which all replicas find alike.
    pub(super) fn apply_change(&mut self, entry: &Entry) -> bool {
        let applied =
            of_entry(&entry.context).map_err(|malformed| malformed.to_string()).and_then(|(change, raft)| {
                self.raft
                    .apply_conf_change(&raft)
                    .map(|state| (change, state))
                    .map_err(|error| error.to_string())
            });
        let (change, state) = match applied {
            Ok(applied) => applied,
            Err(why) => {
                log::warn!(
                    "group {}: the change of members in entry {} is void: {why}",
                    self.id,
                    entry.index
                );
                return false;
            }
        };
        if let Some(Change::AddLearner { replica, address }) = change {
            self.members.insert(replica, address);
        }
        self.members.retain(|replica, _| {
            [&state.voters, &state.voters_outgoing, &state.learners, &state.learners_next]
                .iter()
                .any(|list| list.contains(replica))
        });
        log::debug!(
            "group {}: entry {} makes the members of {} {state:?}",
            self.id,
            entry.index,
            self.replica()
        );
        let votes =
            [&state.voters, &state.voters_outgoing].iter().any(|voters| voters.contains(&self.replica()));
        self.raft.mut_store().set_members(state);
        if self.leads() && !votes {
            self.step_down();
        }
        true
    }
}
