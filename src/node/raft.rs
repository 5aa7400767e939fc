//! The thread that drives this node's replicas of all groups: that of the meta group, and those of replicated shards.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded, unbounded};
use parking_lot::RwLock;

use super::host::Host;
use super::inbox::{Inbox, UnderWay, Urgency};
use crate::clock::{Deadline, now};
use crate::consensus::{
    Answer, Change, Command, Driver, Envelope, Members, Refusal, Resumed, Role, Settings, SnapshotJob,
    StateMachine, Status, Written,
};
use crate::dice;
use crate::disk::Storage;
use crate::logging;
use crate::model::address::Address;
use crate::model::room::{self, Gauge};
use crate::threads;
use crate::wire::Replica;

/// The length of a tick.
const TICK: Duration = Duration::from_millis(40);
/// An election begins between one and two times so many ticks after the leader was last heard.
const ELECTION_TICKS: usize = 8;
/// A node that has sent nothing to any group for this long is not heard: replicas without a leader look for one more often.
const SILENCE: Duration = Duration::from_millis(1500);
/// Who asks something is told within this time what came of it, or that this is unknown.
pub const ANSWER_TIME: Duration = Duration::from_millis(40 * ANSWER_TICKS);
const ANSWER_TICKS: u64 = 50;
/// Envelopes and questions that may wait for the thread; further envelopes are lost, and further questions refused.
const INBOX: usize = 16_384;
/// A longer command, in bytes, is proposed at once, whatever is under way.
const LONG_COMMAND: usize = 16 << 10;

/// What the thread is asked to do.
enum Input {
    Envelopes(Address, Option<u32>, Vec<Envelope>),
    Propose(u64, Command, Waiter),
    Read(u64, Waiter),
    ReadHere(u64, Waiter),
    Change(u64, Change, Waiter),
    Found(u64, u64, Members, Box<dyn StateMachine>, Ended),
    Join(u64, u64, Box<dyn StateMachine>),
    GiveUp(u64, Option<Sender<Ended>>),
    Conclude(u64),
    Unapplied(u64, Sender<Vec<Bytes>>),
    HandOver(u64, Option<u64>),
    Unreachable(u64, u64),
    Resume(Box<Resumed>, bool),
    Speak(u64),
    Written(Box<Written>),
}

/// Where this node's replica of a group stands.
#[derive(Debug, Clone)]
pub struct LocalReplica {
    /// The number of the group.
    pub group: u64,
    /// More than that, as of the last tick or the last change of the roles or members.
    pub status: Status,
    /// Where this node leads: the replica with the least room, and up to where it takes what this node [admits](crate::model::room).
    pub least_room: Option<(u64, u64)>,
}

impl LocalReplica {
    /// Whether this node leads the group.
    pub fn leads(&self) -> bool {
        self.status.role == Role::Leader
    }

    /// Whether it does, and has applied all that the leaders before it have left in the log.
    pub fn has_taken_over(&self) -> bool {
        self.status.has_taken_over
    }

    /// Whether this node's replica has a vote.
    pub fn votes(&self) -> bool {
        self.status.voters.contains(&self.status.replica)
    }

    /// Whether it has, and nobody is needed any more whose place it has taken. Until a joint change of members is over, a majority of those before is needed as
    /// well: were another one of them lost by then, the group would never agree on anything again.
    pub fn is_settled(&self) -> bool {
        let Status { replica, outgoing, .. } = &self.status;
        self.votes() && (outgoing.is_empty() || outgoing.contains(replica))
    }

    /// The addresses of those who vote.
    pub fn voters(&self) -> Vec<Address> {
        self.status.voters.iter().filter_map(|id| self.status.members.get(id)).cloned().collect()
    }

    /// Its replica, as other nodes are told of it.
    pub fn replica(&self) -> Replica {
        let status = &self.status;
        let named = |ids: &[u64]| -> Vec<(u64, Address)> {
            ids.iter().filter_map(|id| Some((*id, status.members.get(id)?.clone()))).collect()
        };
        Replica {
            id: status.replica,
            leads: self.leads(),
            voters: named(&status.voters),
            outgoing: named(&status.outgoing),
            last: (status.last_term, status.last),
            committed: status.committed,
        }
    }

    /// The address of the leader, where it is known.
    pub fn leader(&self) -> Option<&Address> {
        self.status.members.get(&self.status.leader?)
    }
}

/// What the leader of a group says of it when it asks a node to take part.
#[derive(Debug, Clone, Copy)]
pub struct Invitation<'a> {
    /// The term in which it leads.
    pub term: u64,
    /// The replica ids of the members.
    pub members: &'a [u64],
    /// Up to where it had applied the log at least: of what came later it says nothing.
    pub index: u64,
}

impl Invitation<'_> {
    /// Whether a node goes on with the replica that it has: one that was taken out is not taken in again under the same id.
    pub fn goes_on_with(&self, local: &LocalReplica) -> bool {
        let status = &local.status;
        let is_new_enough = self.term >= status.term && self.index >= status.applied;
        let was_taken_out = status.applied > 0 && is_new_enough && !self.members.contains(&status.replica);
        !was_taken_out
    }
}

/// Why something may not have been done by a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotProposed {
    /// It was not, and never will be.
    Refused(Refusal),
    /// It may have been, or may yet be.
    Unknown,
}

/// Sends envelopes to nodes; never waits.
pub trait Transport: Send {
    /// Sends one to a node. Those that cannot be sent are reported by [`Groups::unreachable`].
    fn send(&self, to: &Address, envelope: Envelope);
}

/// What is called after each round in which something may have been applied, with the groups whose leader or term has changed.
pub type Publish = Box<dyn Fn(&[u64]) + Send>;

/// Index and term at which the log of a replica has ended.
pub type Ended = (u64, u64);

type LocalReplicas = Arc<RwLock<BTreeMap<u64, Arc<LocalReplica>>>>;

/// When a node was last heard in any group.
type Heard = Arc<RwLock<HashMap<Address, Instant>>>;

/// This node's replicas, as all other threads use them.
pub struct Groups {
    host: Arc<dyn Host>,
    inbox: Arc<Inbox<Input>>,
    locals: LocalReplicas,
    heard: Heard,
}

/// The thread's end of it, until it is started.
pub struct GroupsInbox {
    inbox: Arc<Inbox<Input>>,
    locals: LocalReplicas,
    heard: Heard,
    gauge: Arc<Gauge>,
    storage: Option<Arc<Storage>>,
}

impl Groups {
    /// Replicas of no group yet.
    pub fn new(host: Arc<dyn Host>, gauge: Arc<Gauge>) -> (Self, GroupsInbox) {
        let inbox = Arc::new(Inbox::new());
        let (locals, heard) = (LocalReplicas::default(), Heard::default());
        let groups =
            Self { host, inbox: Arc::clone(&inbox), locals: Arc::clone(&locals), heard: Arc::clone(&heard) };
        (groups, GroupsInbox { inbox, locals, heard, gauge, storage: None })
    }

    /// Whether a node has sent something to any group lately.
    pub fn hears(&self, node: &Address) -> bool {
        self.heard.read().get(node).is_some_and(|when| now() - *when < SILENCE)
    }

    /// Where the replica of a group stands; nothing where there is none.
    pub fn local(&self, group: u64) -> Option<Arc<LocalReplica>> {
        self.locals.read().get(&group).cloned()
    }

    /// Where all replicas stand.
    pub fn locals(&self) -> Vec<Arc<LocalReplica>> {
        self.locals.read().values().cloned().collect()
    }

    /// Founds a group: each of its first voters does so once, with the same voters and equal states.
    pub fn found(&self, group: u64, replica: u64, voters: Members, machine: Box<dyn StateMachine>) {
        self.found_after(group, replica, voters, machine, (0, 0));
    }

    /// The same for a group that had a log before, which has ended at this index and in this term.
    pub fn found_after(
        &self,
        group: u64,
        replica: u64,
        voters: Members,
        machine: Box<dyn StateMachine>,
        after: Ended,
    ) {
        self.put(Input::Found(group, replica, voters, machine, after));
    }

    /// Waits to be added to a group.
    pub fn join(&self, group: u64, replica: u64, machine: Box<dyn StateMachine>) {
        self.put(Input::Join(group, replica, machine));
    }

    /// Goes on with a replica as it was kept; silently until it is told to [`speak`](Self::speak).
    pub fn resume(&self, resumed: Resumed, silently: bool) {
        self.put(Input::Resume(Box::new(resumed), silently));
    }

    /// Takes part in a group again.
    pub fn speak(&self, group: u64) {
        self.put(Input::Speak(group));
    }

    /// Takes no part in a group any more.
    pub fn give_up(&self, group: u64) {
        self.put(Input::GiveUp(group, None));
    }

    /// Takes no part in a group any more, and waits until nothing is applied to its state any more: index and term at which the log of this
    /// replica has ended; nothing where that is not known by the deadline.
    pub async fn give_up_and_wait(&self, group: u64, deadline: Deadline) -> Option<Ended> {
        let (done, given_up) = bounded(1);
        self.put(Input::GiveUp(group, Some(done)));
        self.host.wait(&given_up, deadline).await;
        given_up.try_recv().ok()
    }

    /// Takes no part in a group any more whose majority is gone for good; its state is first given all that the log holds.
    pub fn conclude(&self, group: u64) {
        self.put(Input::Conclude(group));
    }

    /// The commands in the log of this node's replica that are not applied, committed or not; nothing where that is not known by the
    /// deadline.
    pub async fn unapplied(&self, group: u64, deadline: Deadline) -> Option<Vec<Bytes>> {
        let (asker, answer) = bounded(1);
        self.put(Input::Unapplied(group, asker));
        self.host.wait(&answer, deadline).await;
        answer.try_recv().ok()
    }

    /// Hands leadership of a group to a replica, or to the one that is best prepared.
    pub fn hand_over(&self, group: u64, to: Option<u64>) {
        self.put(Input::HandOver(group, to));
    }

    /// Envelopes to a replica could not be sent.
    pub fn unreachable(&self, group: u64, replica: u64) {
        self.put(Input::Unreachable(group, replica));
    }

    /// Takes in what another node sent, with the format that it said it knows, if it did. What does not fit is lost, as any message may be.
    pub fn receive(&self, from: Address, format: Option<u32>, envelopes: Vec<Envelope>) {
        let _ = self.inbox.put(Input::Envelopes(from, format, envelopes), Urgency::Now, INBOX);
    }

    /// Whether something has come that the thread has not taken in.
    #[cfg(test)]
    pub(crate) fn has_input(&self) -> bool {
        self.inbox.has_input()
    }

    /// The thread never waits for anybody, and what is put in without a question is little.
    fn put(&self, input: Input) {
        let _ = self.inbox.put(input, Urgency::Now, usize::MAX);
    }

    /// Has a command applied, and says what the state made of it.
    ///
    /// # Errors
    /// [`NotProposed`].
    pub async fn propose(
        &self,
        group: u64,
        command: impl Into<Command>,
        deadline: Deadline,
    ) -> Result<Bytes, NotProposed> {
        match self.wait(deadline, |told| self.propose_and(group, command, told)).await? {
            Answer::Applied { outcome, .. } => Ok(outcome),
            Answer::NotApplied(refusal) => Err(NotProposed::Refused(refusal)),
            Answer::Readable { .. } | Answer::Unknown => Err(NotProposed::Unknown),
        }
    }

    /// The same without waiting: the thread calls who is to be told, after [`ANSWER_TIME`] at most, and is held up for as long as that takes.
    pub fn propose_and(
        &self,
        group: u64,
        command: impl Into<Command>,
        told: impl FnOnce(Answer) + Send + 'static,
    ) {
        let command = command.into();
        let urgency = if command.bytes.len() > LONG_COMMAND { Urgency::Now } else { Urgency::Write(group) };
        self.ask(Input::Propose(group, command, Waiter::new(told)), urgency);
    }

    /// Waits until this node is known to lead a group still and has applied everything that was ever acknowledged: the index up to
    /// which it has.
    ///
    /// # Errors
    /// [`NotProposed`]; a read changes nothing, whatever it says.
    pub async fn read(&self, group: u64, deadline: Deadline) -> Result<u64, NotProposed> {
        match self.wait(deadline, |told| self.read_and(group, told)).await? {
            Answer::Readable { index } => Ok(index),
            Answer::NotApplied(refusal) => Err(NotProposed::Refused(refusal)),
            Answer::Applied { .. } | Answer::Unknown => Err(NotProposed::Unknown),
        }
    }

    /// The same without waiting, as [`propose_and`](Self::propose_and).
    pub fn read_and(&self, group: u64, told: impl FnOnce(Answer) + Send + 'static) {
        self.ask(Input::Read(group, Waiter::new(told)), Urgency::Read(group));
    }

    /// Waits until this node's replica has applied everything that was acknowledged until now, whoever leads; without waiting, as
    /// [`propose_and`](Self::propose_and).
    pub fn read_here_and(&self, group: u64, told: impl FnOnce(Answer) + Send + 'static) {
        self.ask(Input::ReadHere(group, Waiter::new(told)), Urgency::Read(group));
    }

    /// Changes the members of a group, if this node leads it.
    ///
    /// # Errors
    /// [`NotProposed`].
    pub async fn change(&self, group: u64, change: &Change, deadline: Deadline) -> Result<(), NotProposed> {
        let ask = |told| {
            self.ask(Input::Change(group, change.clone(), Waiter::new(told)), Urgency::Now);
        };
        match self.wait(deadline, ask).await? {
            Answer::Applied { .. } => Ok(()),
            Answer::NotApplied(refusal) => Err(NotProposed::Refused(refusal)),
            Answer::Readable { .. } | Answer::Unknown => Err(NotProposed::Unknown),
        }
    }

    /// Waits for what somebody is told.
    ///
    /// # Errors
    /// Where that takes longer.
    pub(super) async fn wait(
        &self,
        deadline: Deadline,
        ask: impl FnOnce(Told),
    ) -> Result<Answer, NotProposed> {
        let (sender, answer) = bounded(1);
        ask(Box::new(move |told| drop(sender.try_send(told))));
        self.host.wait(&answer, deadline).await;
        answer.try_recv().map_err(|_| NotProposed::Unknown)
    }

    fn ask(&self, input: Input, urgency: Urgency) {
        if let Err(
            Input::Propose(.., waiter)
            | Input::Read(.., waiter)
            | Input::ReadHere(.., waiter)
            | Input::Change(.., waiter),
        ) = self.inbox.put(input, urgency, INBOX)
        {
            waiter.tell(Answer::NotApplied(Refusal::Busy));
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Is told once what came of a question.
pub(super) type Told = Box<dyn FnOnce(Answer) + Send>;

/// Who waits for an answer, and gets one whatever happens.
pub(crate) struct Waiter(Option<Told>);

impl Waiter {
    fn new(told: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self(Some(Box::new(told)))
    }

    fn tell(mut self, answer: Answer) {
        if let Some(told) = self.0.take() {
            told(answer);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(told) = self.0.take() {
            told(Answer::Unknown);
        }
    }
}

impl GroupsInbox {
    /// The replicas are kept there from the beginning.
    pub(super) fn keep_on(&mut self, storage: Option<Arc<Storage>>) {
        self.storage = storage;
    }

    /// Starts the thread, and the one that writes snapshots where replicas are kept on a disk.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(self, post: Box<dyn Transport>, publish: Publish) -> io::Result<()> {
        let settings = settings_within(self.gauge.bound());
        let (inbox, is_kept) = (Arc::clone(&self.inbox), self.storage.is_some());
        let mut raft = self.into_raft(settings, post, publish);
        if is_kept {
            // One of a group at a time.
            let (writer, jobs) = unbounded::<SnapshotJob>();
            raft.writer = Some(writer);
            threads::spawn("snapshots", move || {
                for job in jobs {
                    let _ = inbox.put(Input::Written(Box::new(job.write())), Urgency::Now, usize::MAX);
                }
            })?;
        }
        threads::spawn("raft", move || raft.run()).map(|_| ())
    }

    /// What the thread does, for whoever has it done without one.
    pub(crate) fn into_raft(self, settings: Settings, post: Box<dyn Transport>, publish: Publish) -> Raft {
        let driver = match self.storage {
            Some(storage) => Driver::kept(settings.clone(), storage),
            None => Driver::new(settings.clone()),
        };
        Raft {
            inbox: self.inbox,
            locals: self.locals,
            heard: self.heard,
            driver,
            writer: None,
            settings,
            senders: HashMap::new(),
            gauge: self.gauge,
            told: BTreeMap::new(),
            post,
            publish,
        }
    }
}

/// How the groups of a node behave.
pub(crate) fn settings() -> Settings {
    let (election_ticks, answer_ticks) = (ELECTION_TICKS, ANSWER_TICKS);
    Settings { seed: dice::draw(), election_ticks, answer_ticks, ..Settings::default() }
}

/// The same where the node may hold so many bytes: what it keeps of logs is a part of that.
fn settings_within(bound: Option<u64>) -> Settings {
    let settings = settings();
    let max_log_bytes = room::share(bound, settings.max_log_bytes, 0);
    Settings { max_log_bytes, ..settings }
}

/// The replicas of this node as they are driven: round by round.
pub(crate) struct Raft {
    inbox: Arc<Inbox<Input>>,
    locals: LocalReplicas,
    heard: Heard,
    settings: Settings,
    driver: Driver<Waiter>,
    /// Who writes snapshots to the disk; where there is nobody they are written at once.
    writer: Option<Sender<SnapshotJob>>,
    /// Where replicas that are not known as members have written from.
    senders: HashMap<u64, Address>,
    /// What the node holds, and may.
    gauge: Arc<Gauge>,
    /// By group what the other replicas have told of their room, where this node leads.
    told: BTreeMap<u64, room::Replicas>,
    post: Box<dyn Transport>,
    publish: Publish,
}

/// So many senders that are no members are remembered; then it begins anew.
const MOST_SENDERS: usize = 1024;

impl Raft {
    fn run(mut self) {
        let mut next_tick = now() + TICK;
        let mut under_way = UnderWay::default();
        loop {
            let Some(inputs) = self.inbox.take(under_way, next_tick) else { return };
            let ticks = now() >= next_tick;
            if ticks {
                // A process that was stopped does not make up for the time: others have counted it.
                next_tick = now() + TICK;
            }
            let worked = catch_unwind(AssertUnwindSafe(|| self.round(inputs, ticks)));
            if let Some(why) = self.driver.disk_error() {
                end_process(why);
            }
            under_way = worked.unwrap_or_else(|_| {
                if self.writer.is_some() {
                    // What is on the disk can: whoever starts the process again goes on from there.
                    end_process("this node's replicas failed");
                }
                // What it knew cannot be trusted any more. The others replace these replicas by new ones.
                log::error!("this node's replicas failed and are given up");
                self.driver = Driver::new(Settings { seed: dice::draw(), ..self.settings.clone() });
                self.locals.write().clear();
                UnderWay::default()
            });
        }
    }

    /// A round with what has come by now.
    #[cfg(test)]
    pub(crate) fn turn(&mut self, ticks: bool) {
        let inputs = self.inbox.drain();
        self.round(inputs, ticks);
    }

    #[cfg(test)]
    pub(crate) fn driver(&mut self) -> &mut Driver<Waiter> {
        &mut self.driver
    }

    /// Takes everything in, works, and hands out what came of it: what is waited for now.
    fn round(&mut self, inputs: Vec<Input>, ticks: bool) -> UnderWay {
        let mut given_up = Vec::new();
        for input in inputs {
            given_up.extend(self.take(input));
        }
        if ticks {
            self.driver.tell_room(self.gauge.left());
            self.driver.tick();
        }
        self.driver.work();
        self.write_snapshots();
        self.hear_rooms(ticks);
        let changed = self.show(ticks);
        (self.publish)(&changed);
        for envelope in self.driver.take_outbox() {
            let member = self.driver.address(envelope.group, envelope.to);
            if let Some(to) = member.or_else(|| self.senders.get(&envelope.to)) {
                self.post.send(to, envelope);
            }
        }
        for (waiter, answer) in self.driver.take_answers() {
            waiter.tell(answer);
        }
        for (waiter, ended) in given_up {
            let _ = waiter.try_send(ended);
        }
        let (reads, writes) = self.driver.under_way();
        UnderWay { reads, writes }
    }

    fn write_snapshots(&mut self) {
        for job in self.driver.take_snapshot_jobs() {
            match &self.writer {
                Some(writer) => drop(writer.send(job)),
                None => self.driver.note_written(job.write()),
            }
        }
    }

    /// Takes in what other replicas have told of their room.
    fn hear_rooms(&mut self, ticks: bool) {
        let admitted = self.gauge.admitted();
        if ticks {
            let led: BTreeMap<u64, u64> = self.driver.led().collect();
            self.told.retain(|group, _| led.contains_key(group));
            for (group, term) in led {
                self.told.entry(group).or_default().tick(term, admitted);
            }
        }
        for (group, replica, left) in self.driver.take_rooms() {
            if let Some(told) = self.told.get_mut(&group) {
                told.hear(replica, left, admitted);
            }
        }
        if ticks {
            self.gauge.note_others(self.told.values().any(|told| told.least().is_some()));
        }
    }

    /// Shows where the replicas stand: all of them with each tick, and in between those whose roles or members have changed. The groups whose leader
    /// or term has changed.
    fn show(&self, all: bool) -> Vec<u64> {
        let groups: Vec<u64> = self.driver.groups().collect();
        let is_old = |group: &u64| {
            all || self
                .locals
                .read()
                .get(group)
                .is_none_or(|local| !self.driver.stands_as(*group, &local.status))
        };
        let changed: Vec<u64> = groups.iter().copied().filter(is_old).collect();
        let gone = self.locals.read().keys().any(|group| !groups.contains(group));
        let mut led_otherwise = Vec::new();
        if changed.is_empty() && !gone {
            return led_otherwise;
        }
        let mut locals = self.locals.write();
        locals.retain(|group, _| groups.contains(group));
        for group in changed {
            let before = match self.driver.status(group) {
                Some(status) => {
                    let least_room = self.told.get(&group).and_then(room::Replicas::least);
                    locals.insert(group, Arc::new(LocalReplica { group, status, least_room }))
                }
                None => locals.remove(&group),
            };
            let led = |local: &LocalReplica| (local.status.leader, local.status.term, local.has_taken_over());
            if locals.get(&group).map(|local| led(local)) != before.map(|local| led(&local)) {
                led_otherwise.push(group);
            }
        }
        led_otherwise
    }

    fn hear(&self, from: &Address) {
        let mut heard = self.heard.write();
        if let Some(when) = heard.get_mut(from) {
            *when = now();
            return;
        }
        if heard.len() >= MOST_SENDERS {
            heard.clear();
        }
        heard.insert(from.clone(), now());
    }

    /// Takes an input; the answer is to whom it is told that the group was given up, once that is done, and where its log has ended.
    fn take(&mut self, input: Input) -> Option<(Sender<Ended>, Ended)> {
        match input {
            Input::Envelopes(from, format, envelopes) => {
                self.hear(&from);
                for envelope in envelopes {
                    if self.driver.address(envelope.group, envelope.from).is_none() {
                        if self.senders.len() >= MOST_SENDERS {
                            self.senders.clear();
                        }
                        self.senders.insert(envelope.from, from.clone());
                    }
                    if let Some(format) = format {
                        self.driver.note_format(envelope.group, envelope.from, format);
                    }
                    self.driver.step(envelope);
                }
            }
            Input::Propose(group, command, waiter) => self.driver.propose(group, command, waiter),
            Input::Read(group, waiter) => self.driver.read(group, waiter),
            Input::ReadHere(group, waiter) => self.driver.read_here(group, waiter),
            Input::Change(group, change, waiter) => self.driver.change(group, &change, waiter),
            Input::Found(group, replica, voters, machine, after) => {
                note(group, self.driver.found_after(group, replica, &voters, machine, after));
            }
            Input::Join(group, replica, machine) => {
                self.driver.give_up(group);
                note(group, self.driver.join(group, replica, machine));
            }
            Input::GiveUp(group, waiter) => {
                let status = self.driver.status(group);
                self.driver.give_up(group);
                let ended = status.map_or((0, 0), |status| (status.last, status.term));
                return waiter.map(|waiter| (waiter, ended));
            }
            Input::Conclude(group) => self.driver.conclude(group),
            Input::Unapplied(group, asker) => {
                let _ = asker.try_send(self.driver.unapplied(group));
            }
            Input::HandOver(group, to) => {
                self.driver.hand_over(group, to);
            }
            Input::Unreachable(group, replica) => self.driver.report_unreachable(group, replica),
            Input::Resume(resumed, silently) => {
                let group = resumed.group();
                note(group, self.driver.resume(*resumed, silently));
            }
            Input::Speak(group) => self.driver.speak(group),
            Input::Written(written) => self.driver.note_written(*written),
        }
        None
    }
}

/// After a disk has failed nobody knows what is on it: nothing is said any more, and whoever starts the process again looks.
fn end_process(why: &str) -> ! {
    logging::say_last(&format!(
        "{why}: the node stops, and goes on from what is on the disk when it is started again"
    ));
    std::process::exit(1)
}

fn note(group: u64, began: Result<(), Refusal>) {
    if let Err(refusal) = began {
        log::error!("this node cannot take part in group {group}: {refusal:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::calls::Calls;
    use super::super::fake::Fake;
    use super::super::host;
    use super::super::state::Node;
    use super::*;
    use crate::model::hash::HashKey;
    use crate::model::shard::Shard;

    struct Nowhere;

    impl Transport for Nowhere {
        fn send(&self, _: &Address, _: Envelope) {}
    }

    /// A replica, the term it is in, and up to where it has applied the log.
    fn local(replica: u64, term: u64, applied: u64) -> LocalReplica {
        let status = Status {
            replica,
            role: Role::Follower,
            leader: None,
            term,
            applied,
            committed: applied,
            first: 1,
            last: applied,
            last_term: term,
            log_bytes: 0,
            voters: vec![replica],
            outgoing: Vec::new(),
            learners: Vec::new(),
            silent: Vec::new(),
            members: Members::new(),
            changing: false,
            answers_reads: false,
            has_taken_over: false,
            too_old: Vec::new(),
            fed: 0,
            matched: Vec::new(),
        };
        LocalReplica { group: 1, status, least_room: None }
    }

    #[test]
    fn only_who_was_taken_out_begins_anew_when_it_is_invited() {
        let invited = |term, members, index| Invitation { term, members, index };
        for (goes_on, invitation, local, why) in [
            (true, invited(3, &[1, 7], 20), local(7, 3, 20), "a member"),
            (false, invited(3, &[1, 2], 20), local(7, 3, 20), "taken out"),
            (false, invited(4, &[1, 2], 30), local(7, 3, 20), "taken out meanwhile"),
            (true, invited(2, &[1, 2], 30), local(7, 3, 20), "a leader of old says nothing"),
            (true, invited(3, &[1, 2], 19), local(7, 3, 20), "it was added after that"),
            (true, invited(3, &[1, 2], 30), local(7, 0, 0), "it waits to be added"),
        ] {
            assert_eq!(invitation.goes_on_with(&local), goes_on, "{why}");
        }
    }

    #[test]
    fn who_is_elected_leads_its_shard_once_it_has_taken_over() {
        let settings: crate::config::Settings = [("ADDRESS", "n1"), ("VIEW", "n1,n2")].into_iter().collect();
        let (node, _inbox) = Node::new(&settings.check().unwrap(), Arc::new(Fake::default()));
        let shard = Shard::new(1, HashKey::PUBLISHED, [], 1);
        shard.set_logged(true);
        for (role, has_taken_over, leads) in
            [(Role::Follower, false, false), (Role::Leader, false, false), (Role::Leader, true, true)]
        {
            let LocalReplica { group, status, .. } = local(7, 3, 20);
            let status = Status { role, has_taken_over, leader: Some(7), ..status };
            node.groups
                .locals
                .write()
                .insert(group, Arc::new(LocalReplica { group, status, least_room: None }));
            assert_eq!(node.leads(&shard).is_ok(), leads, "{role:?} {has_taken_over}");
        }
    }

    #[test]
    fn who_waits_is_told_once_whatever_happens() {
        let told = |run: fn(Waiter)| {
            let (sender, receiver) = crossbeam_channel::unbounded();
            run(Waiter::new(move |answer| sender.send(answer).unwrap()));
            receiver.try_iter().collect::<Vec<_>>()
        };
        assert_eq!(
            told(|waiter| waiter.tell(Answer::Readable { index: 3 })),
            [Answer::Readable { index: 3 }]
        );
        assert_eq!(told(drop), [Answer::Unknown]);
    }

    #[test]
    fn a_group_that_is_not_there_is_said_at_once() {
        let (groups, inbox) = Groups::new(Arc::new(Calls), Arc::new(Gauge::new(None)));
        inbox.start(Box::new(Nowhere), Box::new(|_| ())).unwrap();
        let deadline = Deadline::after(now(), Duration::from_mins(1));
        let refused = Err(NotProposed::Refused(Refusal::NoGroup));
        assert_eq!(host::run(groups.read(5, deadline)), refused.clone());
        assert_eq!(host::run(groups.propose(5, Bytes::from_static(b"x"), deadline)).map(|_| 0), refused);
    }
}
