//! What is done to a shard that this node holds a replica of: at once where it is kept by this node alone, through the log of its
//! group where it has one.

use std::sync::Arc;

use super::passing::Passed;
use super::raft::{ANSWER_TIME, NotProposed};
use super::state::Node;
use crate::clock::{Deadline, ticks_ms};
use crate::consensus::{Answer, Command, Refusal};
use crate::model::address::Address;
#[cfg(feature = "failpoints")]
use crate::model::format;
use crate::model::hash::KeyHash;
use crate::model::shard::{
    Action, Done, Forwarded, Operation, Refused, RequestId, Shard, ShardCommand, ShardOutcome, encode_write,
};

/// What is asked of the log of a shard.
pub struct Asking {
    shard: Arc<Shard>,
    /// A write and its id; a read has none.
    command: Option<(Command, Passed)>,
}

/// What came of it.
pub struct LogAnswer {
    shard: Arc<Shard>,
    /// The id of the request, where it is a write.
    pub(super) passed: Option<Passed>,
    answer: Answer,
}

/// The command that has a write done.
pub(super) fn command(key: &[u8], operation: Operation, forwarded: &Forwarded) -> Command {
    let needs = needed_by(operation);
    // It has an id, under which it is done once, and no order with others but that of the answers.
    Command { bytes: encode_write(key, operation, forwarded).into(), needs, goes_ahead: true }
}

/// The format that a node has to know to apply a write.
fn needed_by(operation: Operation) -> u32 {
    #[cfg(feature = "failpoints")]
    fail::fail_point!("write-of-next-format", |_| format::CURRENT + 1);
    operation.needs()
}

impl LogAnswer {
    /// The shard that was asked.
    pub(super) fn shard(&self) -> &Arc<Shard> {
        &self.shard
    }

    /// Whether the log was not asked at all, since another node leads.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.answer, Answer::NotApplied(Refusal::NotLeader { .. } | Refusal::NoGroup))
    }
}

/// Why something was not done to a shard, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDone {
    /// This node does not lead the shard's group: ask the leader, where it is known. Nothing was done.
    NotLeader(Option<Address>),
    /// Nothing was done; in a moment it may be.
    Again,
    /// Nothing was done: too much waits already.
    Busy,
    /// Nothing was done: a command of this length is never taken.
    TooLarge,
    /// Nothing was done: this node, which is a member of the shard's group, does not know what it needs.
    NotKnown(Option<Address>),
    /// Nothing was done: this node, which is a member of the shard's group, has not said yet whether it knows what it needs. In a moment it may have.
    NotHeard(Option<Address>),
    /// Nothing was done: the shard can remember no more named writes.
    Full,
    /// Nothing was done: it would grow, and this node, which holds a replica of the shard, has no room.
    NoRoom(Address),
    /// It is refused for now, and may have been done or may yet be: the log was asked for it before, under the same id, and has not answered.
    UnderWay,
    /// It may have been done, or may yet be. Asked again under the same id it is done once.
    Unknown,
}

impl std::fmt::Display for NotDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotLeader(Some(leader)) => {
                write!(f, "not the leader of the shard's replicas, which is {leader}")
            }
            Self::NotLeader(None) => f.write_str("the shard's replicas have no leader that is known"),
            Self::Again => f.write_str("the shard is changing"),
            Self::Busy => f.write_str("too much waits for the shard's replicas"),
            Self::TooLarge => f.write_str("too large for the log of the shard's replicas"),
            Self::NotKnown(Some(node)) => {
                write!(
                    f,
                    "{node} is of a version that does not know this: once it runs a newer one, send it again"
                )
            }
            Self::NotHeard(Some(node)) => {
                write!(f, "{node}, a replica of the shard, has not said yet whether it knows this")
            }
            Self::NotHeard(None) => {
                f.write_str("a replica of the shard has not said yet whether it knows this")
            }
            Self::NotKnown(None) => {
                f.write_str("a replica of the shard is of a version that does not know this")
            }
            Self::Full => f.write_str("the shard can remember no more named writes"),
            Self::NoRoom(node) => write!(f, "{node} holds as much as its MAX_MEMORY or its disk allows"),
            Self::UnderWay => {
                f.write_str("an earlier request under the same Idempotency-Key has not ended yet")
            }
            Self::Unknown => f.write_str("the shard's replicas did not agree in time"),
        }
    }
}

impl Node {
    /// Changes a shard.
    ///
    /// # Errors
    /// [`NotDone`]; a shard without a log always does it.
    pub async fn apply(
        &self,
        shard: &Shard,
        command: &ShardCommand,
        deadline: Deadline,
    ) -> Result<ShardOutcome, NotDone> {
        if !shard.is_logged() {
            return Ok(shard.apply(command));
        }
        let command = Command { bytes: command.encode().into(), needs: command.needs(), goes_ahead: false };
        self.propose_to(shard, command, deadline).await
    }

    /// Waits until this node's replica of a shard holds everything that was ever acknowledged.
    ///
    /// # Errors
    /// [`NotDone`], as long as this node does not lead the shard's group.
    pub async fn confirm(&self, shard: &Shard, deadline: Deadline) -> Result<(), NotDone> {
        if !shard.is_logged() {
            return Ok(());
        }
        let group = shard.group();
        self.groups.read(group, deadline).await.map(|_| ()).map_err(|error| self.not_done(group, error))
    }

    /// Does an operation on a key of a shard that has a log, where this node's replica can do it; a write with all that the log has to say.
    ///
    /// # Errors
    /// [`NotDone`], or [`Refused`], with which nothing was done either.
    pub(super) async fn run_in_group(
        &self,
        shard: &Arc<Shard>,
        place: (KeyHash, &[u8]),
        operation: Operation<'_>,
        write: Option<Forwarded>,
        deadline: Deadline,
    ) -> Result<Result<Done, Refused>, NotDone> {
        let asking = self.asking_of(shard, place, operation, write)?;
        let told = self.wait_for_log(asking, deadline).await;
        self.conclude(told, place, operation)
    }

    /// Asks the log of a shard, and waits for what comes of it; that this is not known where it takes longer.
    pub(super) async fn wait_for_log(&self, asking: Asking, deadline: Deadline) -> LogAnswer {
        let Asking { shard, command } = asking;
        let (command, passed) = command.unzip();
        let ids = passed.as_ref().map(|passed| passed.request);
        let told = self.groups.wait(deadline, |told| self.ask_log(shard.group(), command, ids, told));
        let answer = told.await.unwrap_or(Answer::Unknown);
        LogAnswer { shard, passed, answer }
    }

    /// What to ask the log of a shard, where this node's replica can do the operation.
    ///
    /// # Errors
    /// [`NotDone`].
    pub(super) fn asking_of(
        &self,
        shard: &Arc<Shard>,
        (hash, key): (KeyHash, &[u8]),
        operation: Operation,
        write: Option<Forwarded>,
    ) -> Result<Asking, NotDone> {
        self.does(shard, operation)?;
        self.find_room(shard, (hash, key), operation, write.as_ref())?;
        let command = write.map(|write| (command(key, operation, &write), Passed::named(write.request)));
        Ok(Asking { shard: Arc::clone(shard), command })
    }

    /// What to ask the log of a key's shard, if that can be done without waiting for it: this node's replica can do it, has room to
    /// remember the request, which may have an id already, and the time allows for the longest that an answer may take.
    pub fn asking(
        &self,
        key: &[u8],
        operation: Operation,
        (request, epoch): (Option<RequestId>, Option<u64>),
        deadline: Deadline,
    ) -> Option<Asking> {
        let serving_state = self.serving_state();
        let serving = serving_state.serving().ok()?;
        let (hash, shard) = serving.shard_of(key);
        let own = serving.own_of(shard.group).filter(|own| own.is_logged())?;
        if self.does(own, operation).is_err() || deadline.left() <= ANSWER_TIME {
            return None;
        }
        let shard = Arc::clone(own);
        if operation.is_read() {
            return Some(Asking { shard, command: None });
        }
        let passed = request.map_or_else(|| self.pass(&serving.state), Passed::named);
        let epoch = epoch.unwrap_or(serving.state.view.epoch);
        let write = self.stamp(own, passed.request, epoch);
        let is_taken = self.find_room(own, (hash, key), operation, Some(&write)).is_ok();
        is_taken.then(|| Asking { shard, command: Some((command(key, operation, &write), passed)) })
    }

    /// Asks the log of a shard, and has somebody told what came of it: by the raft thread, which is held up for as long as that takes.
    pub fn ask_and(&self, asking: Asking, told: impl FnOnce(LogAnswer) + Send + 'static) {
        let Asking { shard, command } = asking;
        let (command, passed) = command.unzip();
        let (group, ids) = (shard.group(), passed.as_ref().map(|passed| passed.request));
        self.ask_log(group, command, ids, move |answer| told(LogAnswer { shard, passed, answer }));
    }

    /// Asks the log of a shard for writes under these ids, or whether it may be read.
    pub(super) fn ask_log(
        &self,
        group: u64,
        command: Option<Command>,
        ids: impl IntoIterator<Item = RequestId>,
        told: impl FnOnce(Answer) + Send + 'static,
    ) {
        match command {
            Some(command) => {
                let asked = self.under_way.begin(ids);
                self.groups.propose_and(group, command, move |answer| told(asked.end(answer)));
            }
            None => self.groups.read_here_and(group, told),
        }
    }

    /// Does an operation on a key of a shard that this node keeps alone.
    ///
    /// # Errors
    /// [`Refused`], and then nothing was done.
    pub(super) fn run_alone(
        &self,
        shard: &Shard,
        (hash, key): (KeyHash, &[u8]),
        operation: Operation,
        request: Option<RequestId>,
        forwarded: Option<Forwarded>,
    ) -> Result<Done, Refused> {
        if operation.ttl.is_some() {
            shard.note_time(shard.time(ticks_ms()));
        }
        if shard.end_in_time(hash, key, || shard.time(ticks_ms())) {
            self.host.ended(shard, &[key.into()]);
        }
        let done = shard.run(hash, key, operation, forwarded)?;
        self.host.done(shard, key, operation, request, &done);
        Ok(done)
    }

    /// What came of an operation.
    ///
    /// # Errors
    /// As [`run_in_group`](Self::run_in_group).
    pub(super) fn conclude(
        &self,
        told: LogAnswer,
        (hash, key): (KeyHash, &[u8]),
        operation: Operation,
    ) -> Result<Result<Done, Refused>, NotDone> {
        match (told.answer, operation.action) {
            (Answer::Readable { .. }, Action::Get) => Ok(told.shard.run(hash, key, operation, None)),
            (Answer::Applied { outcome, .. }, _) => match ShardOutcome::decode(&outcome) {
                Ok(ShardOutcome::Write(done)) => Ok(done.map(Done::Wrote)),
                // It was applied; that it cannot be read is a fault of ours.
                _ => Err(NotDone::Unknown),
            },
            (Answer::NotApplied(refusal), _) => {
                Err(self.not_done(told.shard.group(), NotProposed::Refused(refusal)))
            }
            (Answer::Readable { .. } | Answer::Unknown, _) => Err(NotDone::Unknown),
        }
    }

    async fn propose_to(
        &self,
        shard: &Shard,
        command: Command,
        deadline: Deadline,
    ) -> Result<ShardOutcome, NotDone> {
        let group = shard.group();
        let outcome = self.groups.propose(group, command, deadline).await;
        let outcome = outcome.map_err(|error| self.not_done(group, error))?;
        // Whatever it says, it was applied; that it cannot be read is a fault of ours.
        ShardOutcome::decode(&outcome).map_err(|_| NotDone::Unknown)
    }

    pub(super) fn not_done(&self, group: u64, error: NotProposed) -> NotDone {
        match error {
            NotProposed::Unknown => NotDone::Unknown,
            NotProposed::Refused(Refusal::NotLeader { leader }) => {
                let local = self.groups.local(group);
                let address = leader.and_then(|id| local?.status.members.get(&id).cloned());
                NotDone::NotLeader(address.filter(|leader| *leader != self.address))
            }
            NotProposed::Refused(Refusal::NoGroup) => NotDone::NotLeader(None),
            NotProposed::Refused(Refusal::Busy) => NotDone::Busy,
            NotProposed::Refused(Refusal::TooLarge) => NotDone::TooLarge,
            NotProposed::Refused(Refusal::NotKnown { replica }) => {
                NotDone::NotKnown(self.member(group, replica))
            }
            NotProposed::Refused(Refusal::NotHeard { replica }) => {
                NotDone::NotHeard(self.member(group, replica))
            }
            NotProposed::Refused(Refusal::Superseded | Refusal::ChangeRefused | Refusal::NotCaughtUp) => {
                NotDone::Again
            }
        }
    }

    /// Whether this node's replica of a shard does such an operation: it leads, or it is a read and the leader tells the replica up to where it has to have
    /// applied the log for that. The leader where it does not and one is known.
    pub(super) fn does(&self, shard: &Shard, operation: Operation) -> Result<(), NotDone> {
        self.leads(shard).or_else(|not_done| {
            let local = self.groups.local(shard.group()).filter(|_| operation.is_read());
            if local.is_some_and(|local| local.status.answers_reads) { Ok(()) } else { Err(not_done) }
        })
    }

    /// Whether this node leads a shard's group and has the only vote in it. Nobody else can have been elected then, or be without its vote, so what is applied
    /// here is all that was ever acknowledged.
    pub(super) fn is_only_voter(&self, shard: &Shard) -> bool {
        self.is_durable()
            && self.groups.local(shard.group()).is_some_and(|local| {
                let status = &local.status;
                local.has_taken_over() && status.voters == [status.replica] && status.outgoing.is_empty()
            })
    }

    /// The node of a replica of a group, as this node's replica knows it.
    fn member(&self, group: u64, replica: u64) -> Option<Address> {
        self.groups.local(group)?.status.members.get(&replica).cloned()
    }

    /// Whether this node leads a shard, by whose clock the group's time goes on then; the leader where it does not and one is known.
    ///
    /// Whoever has been elected leads it once it has applied what the leaders before have left in the log, a moment later. Until then its clock may show
    /// another time than those entries come to: the time would jump, and what was written for a time would end too early.
    pub fn leads(&self, shard: &Shard) -> Result<(), NotDone> {
        if !shard.is_logged() {
            return Ok(());
        }
        match self.groups.local(shard.group()) {
            Some(local) if local.has_taken_over() => {
                shard.lead(local.status.term);
                Ok(())
            }
            Some(local) => {
                Err(NotDone::NotLeader(local.leader().filter(|leader| **leader != self.address).cloned()))
            }
            None => Err(NotDone::NotLeader(None)),
        }
    }
}
