//! One replica of one group: the crate's state machine of the protocol, and ours behind it.

use std::collections::BTreeMap;

use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use raft::{Config, GetEntriesContext, RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole, Storage};

use super::envelope::{Body, Envelope};
use super::keep::{Keeper, Kept, SnapshotJob};
use super::log_store::LogStore;
use super::machine::{Answer, Refusal, StateMachine};
use super::members::{Members, put_members, read_members};
use super::proposals::{Proposal, Proposals};
use super::reads::Reads;
use super::settings::Settings;
use super::staging::{self, StagedId};
use super::transfer::{Acked, Incoming, Outgoing};
use crate::model::binary::Reader;
use crate::model::format;

/// What a step led to, to be taken away by the owner of the driver.
pub(super) struct Effects<W> {
    pub(super) envelopes: Vec<Envelope>,
    pub(super) answers: Vec<(W, Answer)>,
    /// What replicas have told of their room where this node leads: the group, the replica, and how many bytes more its node takes.
    pub(super) rooms: Vec<(u64, u64, u64)>,
}

pub(super) struct Group<W> {
    pub(super) id: u64,
    pub(super) raft: RawNode<LogStore>,
    pub(super) members: Members,
    pub(super) proposals: Proposals<W>,
    pub(super) machine: Box<dyn StateMachine>,
    pub(super) reads: Reads<W>,
    /// This replica was behind lately, and sends its readers to the leader for so many ticks more.
    pub(super) behind_for: u64,
    outgoing: Outgoing,
    incoming: Incoming,
    /// The commands that go ahead and are not proposed yet, and until when that may take at most.
    pub(super) ahead: Vec<(Proposal<W>, u64)>,
    /// What this leader sends ahead, and what came here ahead of the log.
    pub(super) staging: staging::Outgoing,
    pub(super) staged: staging::Incoming,
    /// By replica the first entry that could not be sent to it, as it does not hold the command.
    pub(super) blocked: BTreeMap<u64, u64>,
    /// The bytes of commands that learners were sent ahead.
    pub(super) fed_ahead: u64,
    /// By replica the format that its node says it knows.
    pub(super) formats: BTreeMap<u64, u32>,
    /// What members would have to know that were not sent something, as they do not.
    pub(super) too_old: BTreeMap<u64, u32>,
    seen: (StateRole, u64),
    /// It takes no part, as it may be one of old that was put back from a copy.
    pub(super) is_silent: bool,
    /// What is on the disk of it, where the node keeps its replicas.
    pub(super) kept: Option<Kept>,
    /// What is being written to it, until that is done.
    taken: Option<Taken>,
    /// Committed entries with a change of members among them, which are applied once it is on the disk that they are committed.
    later: Vec<Entry>,
    /// The state could not be restored from a snapshot: this replica takes no further part.
    failed: bool,
}

/// What the crate has given out, and is in the log.
struct Taken {
    ready: Ready,
    snapshot: Snapshot,
}

impl<W> Group<W> {
    pub(super) fn new(
        id: u64,
        replica: u64,
        log: LogStore,
        members: Members,
        machine: Box<dyn StateMachine>,
        settings: &Settings,
    ) -> Self {
        let config = Config {
            id: replica,
            applied: log.applied(),
            election_tick: settings.election_ticks,
            min_election_tick: settings.election_ticks,
            max_election_tick: 2 * settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            // 0, the default, would send one entry per message.
            max_size_per_msg: settings.max_message_bytes,
            max_inflight_msgs: settings.max_inflight_messages,
            max_uncommitted_size: settings.max_uncommitted_bytes as u64,
            max_committed_size_per_ready: settings.max_message_bytes,
            pre_vote: true,
            check_quorum: true,
            batch_append: true,
            // Reads by lease would trust that clocks run equally fast on all nodes, paused ones too.
            read_only_option: ReadOnlyOption::Safe,
            ..Config::default()
        };
        let quiet = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&config, log, &quiet).expect("the settings are valid and the log is sound");
        Self {
            id,
            raft,
            members,
            proposals: Proposals::default(),
            machine,
            reads: Reads::after(settings.first_number),
            behind_for: 0,
            outgoing: Outgoing::after(settings.first_number),
            incoming: Incoming::default(),
            ahead: Vec::new(),
            staging: staging::Outgoing::after(settings.first_number),
            staged: staging::Incoming::default(),
            blocked: BTreeMap::new(),
            fed_ahead: 0,
            formats: BTreeMap::new(),
            too_old: BTreeMap::new(),
            seen: (StateRole::Follower, 0),
            is_silent: false,
            kept: None,
            taken: None,
            later: Vec::new(),
            failed: false,
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    pub(super) fn takes_part(&self) -> bool {
        !self.failed && !self.is_silent
    }

    pub(super) fn replica(&self) -> u64 {
        self.raft.raft.id
    }

    pub(super) fn refusal(&self) -> Refusal {
        Refusal::NotLeader {
            leader: Some(self.raft.raft.leader_id).filter(|leader| *leader != raft::INVALID_ID),
        }
    }

    pub(super) fn campaign(&mut self) {
        // An error says that nothing came of it; the election timeout is still there.
        let _ = self.raft.campaign();
    }

    /// Leadership goes to `to`, or to the voter whose log is longest; true where that was begun.
    pub(super) fn hand_over(&mut self, to: Option<u64>) -> bool {
        let own = self.replica();
        let raft = &self.raft.raft;
        let voters = &raft.store().members().voters;
        let best = voters
            .iter()
            .filter(|id| **id != own)
            .filter_map(|id| Some((*id, raft.prs().get(*id)?)))
            .filter(|(_, progress)| progress.recent_active)
            .max_by_key(|(id, progress)| (progress.matched, std::cmp::Reverse(*id)));
        let Some(to) = to.or(best.map(|(id, _)| id)) else { return false };
        self.raft.transfer_leader(to);
        self.raft.raft.lead_transferee == Some(to)
    }

    pub(super) fn report_unreachable(&mut self, replica: u64) {
        self.raft.report_unreachable(replica);
    }

    pub(super) fn abandon(&mut self, effects: &mut Effects<W>) {
        self.refuse_ahead(Refusal::NoGroup, effects);
        self.proposals.abandon(&mut effects.answers);
        self.reads.abandon(&mut effects.answers);
    }

    /// Applies everything that is in the log, whether it was committed or not: somebody may have been told that it was.
    pub(super) fn conclude(&mut self) {
        for entry in self.unapplied() {
            self.machine.apply(entry.index, entry.term, &entry.data);
        }
    }

    /// The commands that the log holds and that are not applied, committed or not.
    pub(super) fn unapplied(&self) -> Vec<Entry> {
        let log = self.raft.store();
        let (next, end) = (log.applied() + 1, log.last() + 1);
        let rest = log.entries(next, end, None, GetEntriesContext::empty(false)).unwrap_or_default();
        let is_command =
            |entry: &Entry| entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
        rest.into_iter().filter(is_command).collect()
    }

    /// Grows whenever a learner of this leader gets entries, or a replica a piece of a snapshot.
    pub(super) fn fed(&self) -> u64 {
        let learners = self.raft.store().members().learners.iter();
        let matched =
            learners.filter_map(|id| self.raft.raft.prs().get(*id)).map(|progress| progress.matched);
        matched.sum::<u64>() + self.outgoing.acknowledged() + self.fed_ahead
    }

    pub(super) fn tick(&mut self, now: u64, settings: &Settings, effects: &mut Effects<W>) {
        if !self.takes_part() {
            return;
        }
        // The crate draws election timeouts from the thread's randomness at every change of role or term.
        // Ours is a pure function, set anew before each look at it, so that a seed repeats a whole run.
        let timeout = election_timeout(settings, self.raft.raft.id, self.raft.raft.term);
        self.raft.raft.set_randomized_election_timeout(timeout);
        self.raft.tick();
        self.incoming.tick();
        self.tick_ahead(now, effects);
        let (again, failed) = self.outgoing.tick();
        for (to, body) in again {
            effects.envelopes.push(self.envelope(to, body));
        }
        for to in failed {
            // Unless it is told, the crate waits for ever for a snapshot that was lost, and that replica
            // never receives anything again.
            self.raft.report_snapshot(to, SnapshotStatus::Failure);
        }
        self.proposals.expire(now, &mut effects.answers);
        self.tick_reads(now, effects);
    }

    pub(super) fn step(
        &mut self,
        envelope: Envelope,
        now: u64,
        settings: &Settings,
        effects: &mut Effects<W>,
    ) {
        let from = envelope.from;
        match envelope.body {
            Body::Raft(mut message) => {
                if self.fill(&mut message, effects) {
                    self.step_raft(message);
                }
            }
            Body::Part(part) => self.take_part(from, &part, settings, effects),
            Body::PartAck { id, received } => self.take_part_ack(from, id, received, (now, settings)),
            Body::ReadQuestion { question, term } => {
                self.take_read_question((from, question, term), (now, settings), effects);
            }
            Body::ReadIndex(answer) => self.take_read_index(answer, now),
            Body::Room { left } if self.leads() && self.members.contains_key(&from) => {
                effects.rooms.push((self.id, from, left));
            }
            Body::Room { .. } => {}
            Body::Chunk(chunk) => {
                let transfer = chunk.transfer;
                let Some((received, whole)) = self.incoming.take(from, chunk) else { return };
                effects.envelopes.push(self.envelope(from, Body::ChunkAck { transfer, received }));
                if let Some((mut message, data)) = whole {
                    message.mut_snapshot().data = data;
                    self.step_raft(message);
                }
            }
            Body::ChunkAck { transfer, received } => {
                match self.outgoing.acked(from, transfer, received, settings.piece_bytes) {
                    Acked::Old => {}
                    Acked::Next(body) => effects.envelopes.push(self.envelope(from, *body)),
                    Acked::Done => self.raft.report_snapshot(from, SnapshotStatus::Finish),
                }
            }
        }
    }

    /// Tells the leader how many bytes more this node takes.
    pub(super) fn tell_room(&self, left: u64, effects: &mut Effects<W>) {
        let leader = self.leader().filter(|_| !self.leads() && !self.failed);
        if let Some(leader) = leader.filter(|leader| self.format_of(*leader) >= format::ROOM) {
            effects.envelopes.push(self.envelope(leader, Body::Room { left }));
        }
    }

    fn step_raft(&mut self, message: Message) {
        if let Err(why) = self.plausible(&message) {
            log::error!("group {}: refused a message of replica {}: {why}", self.id, message.from);
            return;
        }
        // An error says that the message came from a stranger or at a wrong moment, and was ignored.
        let _ = self.raft.step(message);
    }

    /// The crate ends the process on messages that no sound replica sends: on a commit index beyond the log,
    /// say, as a leader sends it to a replica that lost its memory and came back under its old id. Those
    /// are refused here; the rest of a message's form is checked where it is decoded.
    fn plausible(&self, message: &Message) -> Result<(), &'static str> {
        let log = &self.raft.raft.raft_log;
        let current = message.term >= self.raft.raft.term;
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if current && message.commit > log.last_index() => {
                Err("it has committed what is not in the log here")
            }
            MessageType::MsgAppendResponse
                if message.index > log.last_index() && !message.reject && self.leads() =>
            {
                Err("it has accepted what is not in the log here")
            }
            MessageType::MsgSnapshot => {
                let snapshot = message.get_snapshot();
                read_members(&mut Reader::new(&snapshot.data)).map(|_| ()).map_err(|malformed| malformed.0)
            }
            _ => Ok(()),
        }
    }

    /// Does everything that can be done now, where nothing is kept on a disk.
    pub(super) fn work(&mut self, now: u64, settings: &Settings, effects: &mut Effects<W>) {
        while self.begin_step(None, now, settings, effects) {
            self.end_step(now, settings, effects);
        }
        self.end_work(settings, effects);
    }

    /// Has the crate do what waits, and takes into the log what it says; false where there was nothing to do. The step is ended once that is
    /// on the disk, where it is kept there.
    pub(super) fn begin_step(
        &mut self,
        keeper: Option<&mut Keeper>,
        now: u64,
        settings: &Settings,
        effects: &mut Effects<W>,
    ) -> bool {
        if !self.takes_part() {
            return false;
        }
        if !self.later.is_empty() {
            if let Some(keeper) = keeper {
                let state = self.raft.store().initial_state().expect("it is in memory").hard_state;
                keeper.vote(self.id, &state, true);
            }
            return true;
        }
        self.feed(now, settings, effects);
        if !self.raft.has_ready() {
            return false;
        }
        self.take_ready(keeper, settings);
        true
    }

    /// Whether a change of members is among these entries, and has to be known to be committed after a power cut, too. A replica that has forgotten it
    /// would go by the members before it, and could agree with them on something else; one that was alone would need nobody.
    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests can take a rule out"))]
    fn has_kept_change(&self, entries: &[Entry], settings: &Settings) -> bool {
        #[cfg(test)]
        if settings.without == Some(super::simulation::Rule::CommitBeforeChange) {
            return false;
        }
        self.kept.is_some() && entries.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
    }

    /// After the last step of a round.
    pub(super) fn end_work(&mut self, settings: &Settings, effects: &mut Effects<W>) {
        self.send_parts(settings, effects);
        self.reads.applied(self.raft.store().applied(), &mut effects.answers);
        self.raft.mut_store().compact(settings.max_log_entries, settings.max_log_bytes);
        self.note_role();
    }

    /// A snapshot of the state as it is now, where the log on the disk has become long.
    pub(super) fn snapshot_on_disk(&mut self, keeper: &mut Keeper, least: u64) -> Option<SnapshotJob> {
        let place = (self.id, self.raft.raft.id);
        let kept = self.kept.as_mut().filter(|_| !self.failed)?;
        keeper.snapshot(place, self.raft.store(), (&self.members, &*self.machine), (kept, least))
    }

    /// Whether this replica waits for an answer to a question, and this leader for entries to be committed.
    pub(super) fn under_way(&self) -> (bool, bool) {
        let log = &self.raft.raft.raft_log;
        (self.reads.is_asking(), self.leads() && log.last_index() > log.committed)
    }

    /// Hands the waiting proposals and reads to the crate, all in one step each.
    fn feed(&mut self, now: u64, settings: &Settings, effects: &mut Effects<W>) {
        if !self.leads() {
            // The crate would forward proposals to the leader by itself. Who waits for them could
            // not be told of their index then, and one could be applied after it was given up.
            let refused = Answer::NotApplied(self.refusal());
            let waiters = self.proposals.drain();
            effects.answers.extend(waiters.map(|waiter| (waiter, refused.clone())));
            self.outgoing.clear();
            self.refuse_ahead(self.refusal(), effects);
            self.ask_for_reads(now, effects);
            return;
        }
        self.advance_ahead();
        // While leadership is handed over the crate drops proposals: they wait, an election timeout at most.
        if self.raft.raft.lead_transferee.is_none() {
            self.propose(settings, effects);
            self.leave_joint();
        }
        self.ask_for_reads(now, effects);
    }

    fn propose(&mut self, settings: &Settings, effects: &mut Effects<W>) {
        let (commands, bytes) = self.proposals.inbox();
        let (_, under_way) = self.under_way();
        // What comes while entries are under way goes together when they are committed: under load a message costs as much as many entries.
        if commands == 0 || (under_way && commands < settings.batch_commands && bytes < settings.batch_bytes)
        {
            return;
        }
        // The crate refuses a batch as a whole where it exceeds the bound of what is not committed yet. So
        // only as much is handed over as fits; the rest stays in the inbox, whose own bound sheds load.
        let uncommitted = self.raft.raft.uncommitted_size();
        let room = settings.max_uncommitted_bytes.saturating_sub(uncommitted);
        let mut taken = Vec::new();
        for one in self.proposals.take(room, uncommitted == 0) {
            // Looked at where the entry is made: a member may have come since.
            match self.refuses(one.needs) {
                Some(refusal) => effects.answers.push((one.waiter, Answer::NotApplied(refusal))),
                None => taken.push(one),
            }
        }
        if taken.is_empty() {
            return;
        }
        let first = self.raft.raft.raft_log.last_index() + 1;
        let term = self.raft.raft.term;
        let mut message = Message { from: self.replica(), ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        let entry = |one: &Proposal<W>| {
            let context = one.staged.map(StagedId::bytes).unwrap_or_default();
            Entry { data: one.command.clone(), context, ..Entry::default() }
        };
        let entries = taken.iter().map(entry);
        message.set_entries(entries.collect());
        let accepted = self.raft.raft.step(message).is_ok();
        for (index, Proposal { waiter, until, .. }) in (first..).zip(taken) {
            if accepted {
                self.proposals.wait((index, term), waiter, until);
            } else {
                effects.answers.push((waiter, Answer::NotApplied(Refusal::Busy)));
            }
        }
    }

    /// The first half of a step: what is to be persisted goes into the log, and to whoever writes it to the disk.
    fn take_ready(&mut self, keeper: Option<&mut Keeper>, settings: &Settings) {
        let mut ready = self.raft.ready();
        let has_change = self.has_kept_change(ready.committed_entries(), settings);
        let snapshot = ready.snapshot().clone();
        let entries = ready.take_entries();
        self.note_logged(&entries);
        if let (Some(keeper), Some(kept)) = (keeper, &mut self.kept) {
            if !snapshot.is_empty() {
                keeper.restore((self.id, self.raft.raft.id), &snapshot, kept);
            }
            keeper.append(self.id, &entries, kept);
            if let Some(state) = ready.hs() {
                keeper.vote(self.id, state, ready.must_sync() || has_change);
            } else if has_change {
                let state = self.raft.store().initial_state().expect("it is in memory").hard_state;
                keeper.vote(self.id, &state, true);
            }
        }
        let log = self.raft.raft.mut_store();
        if !snapshot.is_empty() {
            log.restore(snapshot.get_metadata());
        }
        log.append(entries);
        if let Some(state) = ready.hs() {
            log.set_hard_state(state.clone());
        }
        self.taken = Some(Taken { ready, snapshot });
    }

    /// Persist, then send, then apply: in this order, and nowhere else. The second half of a step, once everything is persisted.
    ///
    /// What is sent tells others what this replica holds, so it must be held by then; what is applied is
    /// answered for. In memory, persisting cannot fail and is done at once.
    pub(super) fn end_step(&mut self, now: u64, settings: &Settings, effects: &mut Effects<W>) {
        let Some(Taken { mut ready, snapshot }) = self.taken.take() else {
            let entries = std::mem::take(&mut self.later);
            self.apply(entries, settings, effects);
            self.raft.advance_apply();
            return;
        };

        self.send(ready.take_messages(), settings, effects);
        self.send(ready.take_persisted_messages(), settings, effects);

        if !snapshot.is_empty() {
            self.restore(&snapshot, effects);
        }
        self.apply(ready.take_committed_entries(), settings, effects);
        for state in ready.take_read_states() {
            let question = state.request_ctx.try_into().map(u64::from_be_bytes);
            let question = question.expect("contexts are numbers of questions");
            for asked in self.reads.confirm(question, state.index, now) {
                self.answer_read_question(asked, state.index, effects);
            }
        }

        let mut light = self.raft.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raft.mut_store().set_commit(commit);
        }
        self.send(light.take_messages(), settings, effects);
        let entries = light.take_committed_entries();
        if self.has_kept_change(&entries, settings) {
            self.later = entries;
            return;
        }
        self.apply(entries, settings, effects);
        self.raft.advance_apply();
    }

    fn send(&mut self, messages: Vec<Message>, settings: &Settings, effects: &mut Effects<W>) {
        for mut message in messages {
            let to = message.to;
            let body = if message.get_msg_type() == MessageType::MsgSnapshot {
                self.blocked.remove(&to);
                if !self.is_state_read_by(to) {
                    // The crate is to try again: who has said nothing says it by then.
                    self.raft.report_snapshot(to, SnapshotStatus::Failure);
                    continue;
                }
                // Head and data are taken at the same moment. The head that the crate has put in may be
                // older, which is allowed to be replaced by a newer one, but not to be mixed with it.
                let mut members = Vec::new();
                put_members(&mut members, &self.members);
                let pieces = std::iter::once(members.into()).chain(self.machine.snapshot());
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(self.raft.store().head());
                message.set_snapshot(snapshot);
                self.outgoing.start(message, Box::new(pieces), settings.piece_bytes)
            } else if self.mend_batch(&mut message)
                && self.cut_unreadable(&mut message)
                && self.refer(&mut message)
            {
                Body::Raft(message)
            } else {
                continue;
            };
            effects.envelopes.push(self.envelope(to, body));
        }
    }

    /// Makes a batched append say what it means; false where that cannot be done and it must not be sent.
    ///
    /// With `batch_append` the crate adds entries to an append for the same replica that is still to be
    /// sent. Where that one is empty, it does not look whether they follow it: if an acknowledgement came
    /// in between, they begin further on, and the receiver would put them in the wrong place.
    fn mend_batch(&self, message: &mut Message) -> bool {
        let Some(first) = message.entries.first().map(|entry| entry.index) else { return true };
        if first == message.index + 1 {
            return true;
        }
        message.index = first - 1;
        // Otherwise compacted meanwhile: as if it were lost, which it may be at any time.
        self.raft.store().term(message.index).map(|term| message.log_term = term).is_ok()
    }

    fn restore(&mut self, snapshot: &Snapshot, effects: &mut Effects<W>) {
        let mut reader = Reader::new(&snapshot.data);
        let restored = read_members(&mut reader).and_then(|members| {
            self.members = members;
            self.machine.restore(reader.rest())
        });
        if let Err(malformed) = restored {
            log::error!("group {}: a snapshot could not be restored: {malformed}", self.id);
            self.failed = true;
            self.abandon(effects);
        }
        self.proposals.skipped(snapshot.get_metadata().index, &mut effects.answers);
    }

    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests can take a rule out"))]
    fn apply(&mut self, entries: Vec<Entry>, settings: &Settings, effects: &mut Effects<W>) {
        for entry in entries {
            let at = (entry.index, entry.term);
            let outcome = match entry.get_entry_type() {
                // The first entry of every leader is empty.
                EntryType::EntryNormal if entry.data.is_empty() => Some(Vec::new()),
                EntryType::EntryNormal => Some(self.machine.apply(entry.index, entry.term, &entry.data)),
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_change(&entry).then(Vec::new)
                }
            };
            self.raft.mut_store().set_applied(entry.index);
            #[cfg(not(test))]
            let waiter = self.proposals.applied(at, &mut effects.answers);
            #[cfg(test)]
            let waiter = if settings.without == Some(super::simulation::Rule::TermAtAnswer) {
                self.proposals.applied_whatever_the_term(entry.index)
            } else {
                self.proposals.applied(at, &mut effects.answers)
            };
            if let Some(waiter) = waiter {
                let answer = match outcome {
                    Some(outcome) => Answer::Applied { index: entry.index, outcome: outcome.into() },
                    None => Answer::NotApplied(Refusal::ChangeRefused),
                };
                effects.answers.push((waiter, answer));
            }
        }
    }

    pub(super) fn envelope(&self, to: u64, body: Body) -> Envelope {
        Envelope { group: self.id, from: self.replica(), to, body }
    }

    fn note_role(&mut self) {
        let now = (self.raft.raft.state, self.raft.raft.term);
        if std::mem::replace(&mut self.seen, now) != now {
            log::debug!("group {}: replica {} is {:?} in term {}", self.id, self.replica(), now.0, now.1);
        }
    }
}

/// Between one and two times the election timeout, different for every replica and term.
fn election_timeout(settings: &Settings, replica: u64, term: u64) -> usize {
    // SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
    let mut mixed = settings.seed ^ replica.rotate_left(32) ^ term.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let spread = settings.election_ticks as u64;
    settings.election_ticks + usize::try_from(mixed % spread).expect("less than the timeout")
}
