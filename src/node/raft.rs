//! The thread that drives the meta group's replica on this node.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, RwLock};

use crate::clock::{Deadline, now};
use crate::consensus::{
    Answer, Change, Driver, Envelope, Members, Pieces, Refusal, Role, Settings, StateMachine, Status,
};
use crate::model::address::Address;
use crate::model::binary::Malformed;
use crate::model::meta::{Command, MetaState, Void};
use crate::threads;

/// The length of a tick. An election begins 10 to 20 of them after the leader was last heard.
const TICK: Duration = Duration::from_millis(40);
/// Who proposes something is told after so many ticks that its outcome is unknown.
const ANSWER_TICKS: u64 = 50;
/// Inputs that may wait for the thread; further ones are refused.
const INBOX: usize = 4096;
/// Inputs that are taken in before the groups work.
const ROUND: usize = 256;

/// What the thread is asked to do.
enum Input {
    Envelopes(Address, Vec<Envelope>),
    Propose(Bytes, Sender<Answer>),
    Read(Sender<Answer>),
    Change(Change, Sender<Answer>),
    Found(u64, u64, Address, Box<MetaState>),
    Join(u64, u64),
    GiveUp(u64),
    HandOver(Option<u64>),
    Unreachable(u64, u64),
}

/// Where this node's replica of the meta group stands.
#[derive(Debug, Clone)]
pub struct Seat {
    /// The number of the group.
    pub group: u64,
    /// More than that.
    pub status: Status,
}

impl Seat {
    /// Whether this node leads the group.
    pub fn leads(&self) -> bool {
        self.status.role == Role::Leader
    }

    /// The addresses of those who vote.
    pub fn voters(&self) -> Vec<Address> {
        self.status.voters.iter().filter_map(|id| self.status.members.get(id)).cloned().collect()
    }

    /// The address of the leader, where it is known.
    pub fn leader(&self) -> Option<&Address> {
        self.status.members.get(&self.status.leader?)
    }
}

/// Why a command may not have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotProposed {
    /// It was not, and never will be.
    Refused(Refusal),
    /// It may have been, or may yet be.
    Unknown,
}

/// Sends envelopes to nodes; never waits.
pub trait Post: Send {
    /// Sends one to a node. Those that cannot be sent are reported by [`MetaGroup::unreachable`].
    fn send(&self, to: &Address, envelope: Envelope);
}

/// The newest state that the replica has applied.
type Applied = Arc<Mutex<Option<Arc<MetaState>>>>;

/// What is called with each new state.
pub type Publish = Box<dyn Fn(Arc<MetaState>) + Send>;

/// The meta group's replica on this node.
pub struct MetaGroup {
    inbox: Sender<Input>,
    seat: Arc<RwLock<Option<Arc<Seat>>>>,
    applied: Applied,
}

/// The thread's end of it, until it is started.
pub struct MetaInbox {
    inbox: Receiver<Input>,
    seat: Arc<RwLock<Option<Arc<Seat>>>>,
    applied: Applied,
}

impl MetaGroup {
    /// A replica that takes part in no group yet.
    pub fn new() -> (Self, MetaInbox) {
        let (sender, receiver) = bounded(INBOX);
        let (seat, applied) = (Arc::default(), Applied::default());
        let group = Self { inbox: sender, seat: Arc::clone(&seat), applied: Arc::clone(&applied) };
        (group, MetaInbox { inbox: receiver, seat, applied })
    }

    /// The newest state that the replica has applied.
    pub fn state(&self) -> Option<Arc<MetaState>> {
        self.applied.lock().clone()
    }

    /// Where the replica stands; nothing where there is none.
    pub fn seat(&self) -> Option<Arc<Seat>> {
        self.seat.read().clone()
    }

    /// Founds a group with this node as its only voter.
    pub fn found(&self, group: u64, replica: u64, own: &Address, state: MetaState) {
        self.put(Input::Found(group, replica, own.clone(), Box::new(state)));
    }

    /// Waits to be added to a group.
    pub fn join(&self, group: u64, replica: u64) {
        self.put(Input::Join(group, replica));
    }

    /// Takes no part in a group any more.
    pub fn give_up(&self, group: u64) {
        self.put(Input::GiveUp(group));
    }

    /// Hands leadership to a replica, or to the one that is best prepared.
    pub fn hand_over(&self, to: Option<u64>) {
        self.put(Input::HandOver(to));
    }

    /// Envelopes to a replica could not be sent.
    pub fn unreachable(&self, group: u64, replica: u64) {
        self.put(Input::Unreachable(group, replica));
    }

    /// Takes in what another node sent.
    pub fn receive(&self, from: Address, envelopes: Vec<Envelope>) {
        self.put(Input::Envelopes(from, envelopes));
    }

    /// What does not fit is lost, as any message may be.
    fn put(&self, input: Input) {
        let _ = self.inbox.try_send(input);
    }

    /// Has a command applied, and says what the state made of it.
    ///
    /// # Errors
    /// [`NotProposed`].
    pub fn propose(&self, command: &Command, deadline: Deadline) -> Result<Result<(), Void>, NotProposed> {
        let bytes = serde_json::to_vec(command).expect("our own types are JSON");
        let (waiter, answer) = bounded(1);
        self.put(Input::Propose(bytes.into(), waiter));
        match answer.recv_timeout(deadline.left()) {
            Ok(Answer::Applied { outcome, .. }) => {
                Ok(serde_json::from_slice(&outcome).expect("our own types are JSON"))
            }
            Ok(Answer::NotApplied(refusal)) => Err(NotProposed::Refused(refusal)),
            _ => Err(NotProposed::Unknown),
        }
    }

    /// Waits until this node is known to lead still and has applied everything that was ever acknowledged.
    pub fn confirm(&self, deadline: Deadline) -> bool {
        let (waiter, answer) = bounded(1);
        self.put(Input::Read(waiter));
        matches!(answer.recv_timeout(deadline.left()), Ok(Answer::Readable { .. }))
    }

    /// Changes the members of the group, if this node leads it.
    ///
    /// # Errors
    /// [`NotProposed`].
    pub fn change(&self, change: &Change, deadline: Deadline) -> Result<(), NotProposed> {
        let (waiter, answer) = bounded(1);
        self.put(Input::Change(change.clone(), waiter));
        match answer.recv_timeout(deadline.left()) {
            Ok(Answer::Applied { .. }) => Ok(()),
            Ok(Answer::NotApplied(refusal)) => Err(NotProposed::Refused(refusal)),
            _ => Err(NotProposed::Unknown),
        }
    }
}

impl MetaInbox {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(self, post: Box<dyn Post>, publish: Publish) -> io::Result<()> {
        let raft = Raft {
            inbox: self.inbox,
            seat: self.seat,
            driver: new_driver(),
            senders: HashMap::new(),
            group: None,
            post,
            applied: self.applied,
            publish,
            published: 0,
        };
        threads::spawn("raft", move || raft.run()).map(|_| ())
    }
}

fn new_driver() -> Driver<Sender<Answer>> {
    let mut settings = Settings::default();
    (settings.seed, settings.answer_ticks) = (rand::random(), ANSWER_TICKS);
    Driver::new(settings)
}

struct Raft {
    inbox: Receiver<Input>,
    seat: Arc<RwLock<Option<Arc<Seat>>>>,
    driver: Driver<Sender<Answer>>,
    /// Where replicas that are not known as members have written from.
    senders: HashMap<u64, Address>,
    group: Option<u64>,
    post: Box<dyn Post>,
    applied: Applied,
    publish: Publish,
    published: u64,
}

impl Raft {
    fn run(mut self) {
        let mut next_tick = now() + TICK;
        loop {
            let first = match self.inbox.recv_timeout(next_tick.saturating_duration_since(now())) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let worked = catch_unwind(AssertUnwindSafe(|| self.round(first, &mut next_tick)));
            if worked.is_err() {
                // What it knew cannot be trusted any more. The others replace this replica by a new one.
                log::error!("this node's replica of the meta group failed and is given up");
                (self.driver, self.group) = (new_driver(), None);
                *self.seat.write() = None;
            }
        }
    }

    fn round(&mut self, first: Option<Input>, next_tick: &mut Instant) {
        let more = self.inbox.try_iter().take(ROUND).collect::<Vec<_>>();
        for input in first.into_iter().chain(more) {
            self.take(input);
        }
        if now() >= *next_tick {
            self.driver.tick();
            // A process that was stopped does not make up for the time: others have counted it.
            *next_tick = now() + TICK;
        }
        self.driver.work();
        self.publish();
        let seat = self.group.and_then(|group| Some(Seat { group, status: self.driver.status(group)? }));
        let members = seat.as_ref().map(|seat| seat.status.members.clone()).unwrap_or_default();
        *self.seat.write() = seat.map(Arc::new);
        for envelope in self.driver.take_outbox() {
            if let Some(to) = members.get(&envelope.to).or_else(|| self.senders.get(&envelope.to)) {
                self.post.send(to, envelope);
            }
        }
        for (waiter, answer) in self.driver.take_answers() {
            let _ = waiter.try_send(answer);
        }
    }

    fn publish(&mut self) {
        let state = self.applied.lock().clone();
        if let Some(state) = state.filter(|state| state.version > self.published) {
            self.published = state.version;
            (self.publish)(state);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Envelopes(from, envelopes) => {
                for envelope in envelopes {
                    self.senders.insert(envelope.from, from.clone());
                    self.driver.step(envelope);
                }
            }
            Input::Propose(command, waiter) => match self.group {
                Some(group) => self.driver.propose(group, command, waiter),
                None => refuse(&waiter),
            },
            Input::Read(waiter) => match self.group {
                Some(group) => self.driver.read(group, waiter),
                None => refuse(&waiter),
            },
            Input::Change(change, waiter) => match self.group {
                Some(group) => self.driver.change(group, &change, waiter),
                None => refuse(&waiter),
            },
            Input::Found(group, replica, own, state) => {
                let voters = Members::from([(replica, own)]);
                self.enter(group);
                *self.applied.lock() = Some(Arc::new((*state).clone()));
                let machine = self.machine(Some(*state));
                let founded = self.driver.found(group, replica, &voters, machine);
                note(founded);
            }
            Input::Join(group, replica) => {
                self.enter(group);
                let machine = self.machine(None);
                let joined = self.driver.join(group, replica, machine);
                note(joined);
            }
            Input::GiveUp(group) => {
                self.driver.give_up(group);
                self.group = self.group.filter(|own| *own != group);
            }
            Input::HandOver(to) => {
                if let Some(group) = self.group {
                    self.driver.hand_over(group, to);
                }
            }
            Input::Unreachable(group, replica) => self.driver.report_unreachable(group, replica),
        }
    }

    /// A node takes part in one meta group at a time.
    fn enter(&mut self, group: u64) {
        if let Some(old) = self.group.replace(group) {
            self.driver.give_up(old);
        }
        self.senders.clear();
        *self.applied.lock() = None;
        self.published = 0;
    }

    fn machine(&self, state: Option<MetaState>) -> Box<dyn StateMachine> {
        Box::new(MetaMachine { state, applied: Arc::clone(&self.applied) })
    }
}

fn note(began: Result<(), Refusal>) {
    if let Err(refusal) = began {
        log::error!("this node cannot take part in the meta group: {refusal:?}");
    }
}

fn refuse(waiter: &Sender<Answer>) {
    let _ = waiter.try_send(Answer::NotApplied(Refusal::NoGroup));
}

/// The meta state as the group replicates it.
struct MetaMachine {
    state: Option<MetaState>,
    applied: Applied,
}

impl StateMachine for MetaMachine {
    fn apply(&mut self, _index: u64, _term: u64, command: &[u8]) -> Vec<u8> {
        let outcome = match (self.state.as_mut(), serde_json::from_slice(command)) {
            (Some(state), Ok(command)) => state.apply(command),
            // Nobody proposes anything else, and a replica without a state gets a snapshot first.
            _ => Err(Void::Outdated),
        };
        *self.applied.lock() = self.state.clone().map(Arc::new);
        serde_json::to_vec(&outcome).expect("our own types are JSON")
    }

    fn snapshot(&self) -> Pieces {
        let state = serde_json::to_vec(&self.state).expect("our own types are JSON");
        Box::new(std::iter::once(state.into()))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        self.state = serde_json::from_slice(snapshot).map_err(|_| Malformed("not a meta state"))?;
        *self.applied.lock() = self.state.clone().map(Arc::new);
        Ok(())
    }
}
