//! All groups of a node, driven from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
#[cfg(test)]
use raft::eraftpb::EntryType;
#[cfg(test)]
use raft::{GetEntriesContext, Storage};

use super::codec::{MAX_CHUNK_BYTES, MAX_ENTRY_BYTES};
use super::envelope::{Delivery, Envelope};
use super::group::{Effects, Group};
use super::keep::{Keeper, Resumed, SnapshotJob, Written};
use super::log_store::LogStore;
use super::machine::{Answer, Command, Refusal, StateMachine};
use super::members::{Change, Members};
use super::proposals::Proposal;
use super::settings::Settings;
use super::status::Status;
use crate::disk::Storage as Disk;
use crate::model::address::Address;

/// No replica numbers as much in the time from one start of its node to the next.
const NUMBERS_OF_A_START: u64 = 1 << 40;

/// The replicas of a node, at most one in each group.
///
/// `W` stands for whoever waits for an answer: it is handed in with a question and comes back with the
/// answer, exactly once, out of [`Driver::take_answers`].
///
/// One round of its owner is: hand in everything that has come ([`Driver::step`], [`Driver::propose`],
/// [`Driver::read`], and [`Driver::tick`] when it is time), then [`Driver::work`] once, then take envelopes
/// and answers away. All that was handed in between two calls of `work` goes into the log together.
pub struct Driver<W> {
    settings: Settings,
    groups: BTreeMap<u64, Group<W>>,
    used: BTreeSet<(u64, u64)>,
    effects: Effects<W>,
    now: u64,
    /// What is kept of them on a disk, and the snapshots that are to be written.
    keeper: Option<Keeper>,
    jobs: Vec<SnapshotJob>,
}

impl<W> Driver<W> {
    /// A driver without groups.
    ///
    /// # Panics
    /// When a limit of the settings is beyond what a message can hold, or contradicts another.
    pub fn new(settings: Settings) -> Self {
        assert!(settings.piece_bytes > 0 && settings.piece_bytes <= MAX_CHUNK_BYTES);
        assert!(settings.max_uncommitted_bytes as u64 >= settings.max_message_bytes);
        assert!(settings.heartbeat_ticks > 0 && settings.heartbeat_ticks < settings.election_ticks);
        let effects = Effects { envelopes: Vec::new(), answers: Vec::new(), rooms: Vec::new() };
        let (groups, used) = (BTreeMap::new(), BTreeSet::new());
        Self { settings, groups, used, effects, now: 0, keeper: None, jobs: Vec::new() }
    }

    /// A driver that keeps its groups on a disk: see [`resume`](Self::resume), [`disk_error`](Self::disk_error) and
    /// [`take_snapshot_jobs`](Self::take_snapshot_jobs).
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn kept(mut settings: Settings, disk: Arc<Disk>) -> Self {
        let first_number = disk.starts() * NUMBERS_OF_A_START;
        #[cfg(test)]
        let is_fresh = settings.without != Some(super::simulation::Rule::FreshNumbers);
        #[cfg(not(test))]
        let is_fresh = true;
        settings.first_number = if is_fresh { first_number } else { 0 };
        Self { keeper: Some(Keeper::new(disk)), ..Self::new(settings) }
    }

    /// Goes on with a replica as it was kept, under the same id and with its vote; silently at first, where it has to be known before that nothing
    /// speaks against it: it takes no part then, and only says what it holds.
    ///
    /// # Errors
    /// When this node has a replica of the group already.
    pub fn resume(&mut self, resumed: Resumed, silently: bool) -> Result<(), Refusal> {
        let Resumed { group, replica, log, members, machine, kept } = resumed;
        if let Some(keeper) = &mut self.keeper {
            keeper.resume(&kept);
        }
        let is_alone = log.members().voters == [replica] && log.members().voters_outgoing.is_empty();
        self.insert(group, replica, log, members, machine)?;
        let resumed = self.groups.get_mut(&group).expect("it was just put in");
        resumed.kept = Some(kept);
        resumed.is_silent = silently;
        if is_alone && !silently {
            resumed.campaign();
        }
        Ok(())
    }

    /// A replica that was silent takes part from now on.
    pub fn speak(&mut self, group: u64) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.is_silent = false;
        }
    }

    /// Why the disk is not believed any more, if so: nothing is sent, applied or answered from then on, and the process has to end.
    pub fn disk_error(&self) -> Option<&str> {
        self.keeper.as_ref()?.failed()
    }

    /// Takes the snapshots that are to be written; each is given back by [`note_written`](Self::note_written).
    pub fn take_snapshot_jobs(&mut self) -> Vec<SnapshotJob> {
        std::mem::take(&mut self.jobs)
    }

    /// A snapshot was written.
    pub fn note_written(&mut self, written: Written) {
        let Some(keeper) = &mut self.keeper else { return };
        let group = self.groups.get_mut(&written.group());
        let kept = group.and_then(|group| Some((group.replica(), group.kept.as_mut()?)));
        keeper.note_written(written, kept);
    }

    /// Founds a group: every voter does this once, with the same voters and equal states.
    ///
    /// # Errors
    /// When this node has a replica of the group already, or the replica id was used before.
    pub fn found(
        &mut self,
        group: u64,
        replica: u64,
        voters: &Members,
        machine: Box<dyn StateMachine>,
    ) -> Result<(), Refusal> {
        self.found_after(group, replica, voters, machine, (0, 0))
    }

    /// Founds a group that has had a log before, which ended at `after`, an index and a term, and whose state has gone on without one
    /// since. The new log goes on from there: a replica of the old one that nobody has told of its end is behind it, as any other
    /// that was away, and never taken for one that holds the beginning of the new one.
    ///
    /// # Errors
    /// As [`found`](Self::found).
    pub fn found_after(
        &mut self,
        group: u64,
        replica: u64,
        voters: &Members,
        machine: Box<dyn StateMachine>,
        after: (u64, u64),
    ) -> Result<(), Refusal> {
        let log = LogStore::founded(voters.keys().copied().collect(), after);
        self.add(group, replica, log, voters.clone(), machine)?;
        // One of them need not wait for the election timeout.
        if voters.keys().next() == Some(&replica)
            && let Some(first) = self.groups.get_mut(&group)
        {
            first.campaign();
        }
        Ok(())
    }

    /// Waits to be added to a group as a learner by its leader.
    ///
    /// # Errors
    /// When this node has a replica of the group already, or the replica id was used before.
    pub fn join(&mut self, group: u64, replica: u64, machine: Box<dyn StateMachine>) -> Result<(), Refusal> {
        self.add(group, replica, LogStore::empty(), Members::new(), machine)
    }

    fn add(
        &mut self,
        group: u64,
        replica: u64,
        log: LogStore,
        members: Members,
        machine: Box<dyn StateMachine>,
    ) -> Result<(), Refusal> {
        let begun = |keeper: &mut Keeper| keeper.begin((group, replica), &log, &members, &*machine);
        let is_free = self.is_free(group, replica);
        let kept = self.keeper.as_mut().filter(|_| is_free).map(begun);
        self.insert(group, replica, log, members, machine)?;
        self.groups.get_mut(&group).expect("it was just put in").kept = kept;
        Ok(())
    }

    fn is_free(&self, group: u64, replica: u64) -> bool {
        replica != 0 && !self.groups.contains_key(&group) && !self.used.contains(&(group, replica))
    }

    fn insert(
        &mut self,
        group: u64,
        replica: u64,
        log: LogStore,
        members: Members,
        machine: Box<dyn StateMachine>,
    ) -> Result<(), Refusal> {
        // A replica that was given up has forgotten its log and its vote. Under the same id the others would
        // believe that it still has both, and could together forget what was acknowledged.
        if !self.is_free(group, replica) {
            return Err(Refusal::ChangeRefused);
        }
        self.used.insert((group, replica));
        let added = Group::new(group, replica, log, members, machine, &self.settings);
        self.groups.insert(group, added);
        Ok(())
    }

    /// Gives up the replica of a group, and with it its state machine; whoever waits is told.
    pub fn give_up(&mut self, group: u64) {
        if let Some(mut gone) = self.groups.remove(&group) {
            gone.abandon(&mut self.effects);
            if let Some(keeper) = &mut self.keeper {
                keeper.give_up(group, gone.kept.as_ref());
            }
        }
    }

    /// Gives up the replica of a group whose majority is gone for good, and has its state machine apply all that the log holds before. An entry
    /// that was never committed may be among it.
    pub fn conclude(&mut self, group: u64) {
        if let Some(last) = self.groups.get_mut(&group).filter(|group| !group.failed()) {
            last.conclude();
        }
        if let Some(mut gone) = self.groups.remove(&group) {
            gone.abandon(&mut self.effects);
            if let Some(keeper) = &mut self.keeper {
                keeper.conclude(group, gone.kept.as_ref());
            }
        }
    }

    /// The commands in the log of a replica that are not applied, committed or not.
    pub fn unapplied(&self, group: u64) -> Vec<Bytes> {
        let group = self.groups.get(&group).filter(|group| !group.failed());
        let entries = group.map(Group::unapplied).unwrap_or_default();
        entries.into_iter().map(|entry| entry.data).collect()
    }

    /// The groups that this node has a replica of, by id.
    pub fn groups(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.keys().copied()
    }

    /// Where the replica of a group stands.
    pub fn status(&self, group: u64) -> Option<Status> {
        self.groups.get(&group).filter(|group| !group.failed()).map(Group::status)
    }

    /// Where a member of a group is reached, as this node's replica knows it.
    pub fn address(&self, group: u64, replica: u64) -> Option<&Address> {
        self.groups.get(&group)?.members.get(&replica)
    }

    /// Whether a status of a group still says the truth about roles and members; it may be old in what it says of the log.
    pub fn stands_as(&self, group: u64, status: &Status) -> bool {
        self.groups.get(&group).filter(|group| !group.failed()).is_some_and(|group| group.stands_as(status))
    }

    /// The groups that wait for an answer of other replicas: before they ask on behalf of further reads, and before they propose what is
    /// little.
    pub fn under_way(&self) -> (Vec<u64>, Vec<u64>) {
        let of = |is_so: fn(&Group<W>) -> bool| {
            self.groups.values().filter(|group| is_so(group)).map(|group| group.id).collect()
        };
        (of(|group| group.under_way().0), of(|group| group.under_way().1))
    }

    /// The groups that this node leads, each with the term in which it does.
    pub fn led(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let led = self.groups.values().filter(|group| group.leads() && !group.failed());
        led.map(|group| (group.id, group.raft.raft.term))
    }

    /// Tells the leaders of the groups how many bytes more this node takes, if that is bounded; as often as leaders say that they are there.
    pub fn tell_room(&mut self, left: Option<u64>) {
        let Some(left) = left.filter(|_| self.now.is_multiple_of(self.settings.heartbeat_ticks as u64))
        else {
            return;
        };
        for group in self.groups.values() {
            group.tell_room(left, &mut self.effects);
        }
    }

    /// Takes what other replicas have told where this node leads: the group, the replica, and how many bytes more its node takes.
    pub fn take_rooms(&mut self) -> Vec<(u64, u64, u64)> {
        std::mem::take(&mut self.effects.rooms)
    }

    /// Lets a tick pass.
    pub fn tick(&mut self) {
        self.now += 1;
        // A tick may begin an election, and one that has the only vote wins it at once: the crate demands
        // that everything in its log has been persisted by then.
        self.work();
        for group in self.groups.values_mut() {
            group.tick(self.now, &self.settings, &mut self.effects);
        }
    }

    /// The node of a replica says which format it knows: see [`format`](crate::model::format).
    pub fn note_format(&mut self, group: u64, replica: u64, format: u32) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.note_format(replica, format);
        }
    }

    /// A group that is there.
    #[cfg(test)]
    pub(super) fn group(&mut self, group: u64) -> &mut Group<W> {
        self.groups.get_mut(&group).expect("it is there")
    }

    /// Takes an envelope that came in.
    pub fn step(&mut self, envelope: Envelope) -> Delivery {
        let Some(group) = self.groups.get_mut(&envelope.group).filter(|group| group.takes_part()) else {
            return Delivery::NoGroup;
        };
        if envelope.to != group.replica() {
            return Delivery::NotForMe;
        }
        if envelope.begins_election() {
            // See `tick`.
            self.work();
        }
        let Some(group) = self.groups.get_mut(&envelope.group).filter(|group| group.takes_part()) else {
            return Delivery::NoGroup;
        };
        group.step(envelope, self.now, &self.settings, &mut self.effects);
        Delivery::Taken
    }

    /// Proposes a command to a group that this node leads.
    pub fn propose(&mut self, group: u64, command: impl Into<Command>, waiter: W) {
        let Command { bytes: command, needs, goes_ahead } = command.into();
        let limits = (self.settings.max_waiting, self.settings.max_inbox_bytes);
        let refused = match self.groups.get_mut(&group).filter(|group| group.takes_part()) {
            _ if command.len() > MAX_ENTRY_BYTES => Some((waiter, Refusal::TooLarge)),
            None => Some((waiter, Refusal::NoGroup)),
            Some(group) => {
                let until = self.now + self.settings.answer_ticks;
                let proposal = Proposal { command, needs, waiter, until, staged: None };
                let pushed = group.push(proposal, goes_ahead, limits, &self.settings);
                pushed.err().map(|waiter| (waiter, Refusal::Busy))
            }
        };
        self.refuse(refused);
    }

    /// Asks to read the state of a group that this node leads, as it is now or newer. `Readable` says that
    /// the state machine may be looked at.
    pub fn read(&mut self, group: u64, reader: W) {
        let refused = match self.groups.get_mut(&group).filter(|group| group.takes_part()) {
            None => Some((reader, Refusal::NoGroup)),
            Some(group) => {
                group.read(reader, self.now, &self.settings).err().map(|reader| (reader, Refusal::Busy))
            }
        };
        self.refuse(refused);
    }

    /// Asks to read the state of a group that this node has a replica of, as it is now or newer, whoever leads. Where this replica cannot find out
    /// whether its state is new enough, the leader is to be asked, which the refusal names.
    pub fn read_here(&mut self, group: u64, reader: W) {
        let refused = match self.groups.get_mut(&group).filter(|group| group.takes_part()) {
            None => Some((reader, Refusal::NoGroup)),
            Some(group) => {
                let pushed = group.read_here(reader, self.now, &self.settings);
                pushed.err().map(|reader| (reader, Refusal::Busy))
            }
        };
        self.refuse(refused);
    }

    /// Changes the members of a group that this node leads.
    pub fn change(&mut self, group: u64, change: &Change, waiter: W) {
        match self.groups.get_mut(&group).filter(|group| group.takes_part()) {
            None => self.refuse(Some((waiter, Refusal::NoGroup))),
            Some(group) => group.change(change, waiter, self.now, &self.settings, &mut self.effects),
        }
    }

    fn refuse(&mut self, refused: Option<(W, Refusal)>) {
        self.effects.answers.extend(refused.map(|(waiter, refusal)| (waiter, Answer::NotApplied(refusal))));
    }

    /// Hands leadership of a group to a replica, or to the one whose log is longest, if this node leads it
    /// and there is one; true where that was begun. It is over when the status names another leader, or
    /// has failed after an election timeout.
    pub fn hand_over(&mut self, group: u64, to: Option<u64>) -> bool {
        self.groups.get_mut(&group).is_some_and(|group| group.leads() && group.hand_over(to))
    }

    /// An envelope to this replica could not be sent. Entries are then sent again from where the replica is
    /// known to be, not from where it would be had they arrived.
    pub fn report_unreachable(&mut self, group: u64, replica: u64) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.report_unreachable(replica);
        }
    }

    /// Does everything that can be done without waiting for other replicas. Where they are kept on a disk it waits for that.
    pub fn work(&mut self) {
        if self.keeper.is_some() {
            return self.work_on_disk();
        }
        for group in self.groups.values_mut() {
            group.work(self.now, &self.settings, &mut self.effects);
        }
    }

    /// The same step by step: what all groups have to have on the disk goes there at once before any of them sends or applies.
    fn work_on_disk(&mut self) {
        let Self { settings, groups, effects, now, keeper: Some(keeper), jobs, .. } = self else { return };
        if keeper.failed().is_some() {
            return;
        }
        #[cfg(test)]
        let sends_first = settings.without == Some(super::simulation::Rule::PersistBeforeSend);
        #[cfg(not(test))]
        let sends_first = false;
        loop {
            let mut busy = Vec::new();
            for group in groups.values_mut() {
                if group.begin_step(Some(keeper), *now, settings, effects) {
                    busy.push(group.id);
                }
            }
            if !(sends_first || keeper.commit()) {
                // What is not on the disk was never said. Whoever waits is not told, since nobody knows.
                effects.envelopes.clear();
                effects.answers.clear();
                return;
            }
            if busy.is_empty() {
                break;
            }
            for group in busy {
                let group = groups.get_mut(&group).expect("it has begun a step");
                group.end_step(*now, settings, effects);
            }
        }
        for group in groups.values_mut() {
            group.end_work(settings, effects);
            jobs.extend(group.snapshot_on_disk(keeper, settings.snapshot_log_bytes));
        }
        #[cfg(test)]
        if sends_first && self.now.is_multiple_of(2) {
            keeper.commit();
        }
    }

    /// The log of a replica, to be compared with those of the others.
    #[cfg(test)]
    pub(super) fn log(&self, group: u64) -> &LogStore {
        self.groups[&group].raft.store()
    }

    /// The term in which a replica leads its group.
    #[cfg(test)]
    pub(crate) fn leads_in(&self, group: u64) -> Option<u64> {
        let group = self.groups.get(&group).filter(|group| group.leads() && !group.failed())?;
        Some(group.raft.raft.term)
    }

    /// Whether the log of a replica holds a change of members that it has not applied.
    #[cfg(test)]
    pub(crate) fn has_pending_change(&self, group: u64) -> bool {
        let log = self.log(group);
        let rest = log.entries(log.applied() + 1, log.last() + 1, None, GetEntriesContext::empty(false));
        rest.is_ok_and(|entries| entries.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal))
    }

    /// Takes the envelopes that are to be sent. Each may be lost, late, or arrive twice.
    pub fn take_outbox(&mut self) -> Vec<Envelope> {
        std::mem::take(&mut self.effects.envelopes)
    }

    /// Takes the answers that are to be given.
    pub fn take_answers(&mut self) -> Vec<(W, Answer)> {
        std::mem::take(&mut self.effects.answers)
    }
}
