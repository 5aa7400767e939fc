//! Key operations: here, or at the node that owns the key.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use super::group_ops::{NotDone, Told};
use super::passing::{Passed, full};
use super::state::{Node, Serving, Standing, advice, lost_shard};
use crate::budget::Permit;
use crate::clock::Deadline;
use crate::dice;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, Forwarded, Refused, RequestId, Shard};
use crate::model::store::Held;
use crate::model::view;
use crate::peers::client::NoAnswer;
use crate::wire::{Addressed, KeyResult};

pub use crate::model::shard::Operation;

/// How long to wait for news of a key that is on its way, before its owner is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The same after a while.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// What came of it.
pub struct Outcome {
    /// What was done.
    pub result: KeyResult,
    /// The value, where one was read.
    pub value: Option<Value>,
    /// The node of the other shard that has done it.
    pub by: Option<Address>,
}

/// A value that was read.
pub enum Value {
    /// From this node's own map.
    Stored(Held),
    /// From another node.
    Received {
        /// The raw JSON text.
        bytes: Vec<u8>,
        /// The part of the memory for large answers that it takes, if it is large.
        permit: Option<Permit>,
    },
}

impl Value {
    /// The raw JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Stored(held) => held.value(),
            Self::Received { bytes, .. } => bytes,
        }
    }
}

impl From<Done> for Outcome {
    fn from(done: Done) -> Self {
        let (result, value) = match done {
            Done::Added => (KeyResult::Added, None),
            Done::Updated => (KeyResult::Updated, None),
            Done::Deleted => (KeyResult::Deleted, None),
            Done::Absent => (KeyResult::Absent, None),
            Done::Found(held) => (KeyResult::Found, Some(Value::Stored(held))),
        };
        Self { result, value, by: None }
    }
}

impl Outcome {
    /// Nothing was done, since another request was under the same name.
    pub(super) fn other_request() -> Self {
        Self { result: KeyResult::OtherRequest, value: None, by: None }
    }

    /// What another node has answered.
    pub(super) fn received(
        result: KeyResult,
        (bytes, permit): (Vec<u8>, Option<Permit>),
        by: Option<Address>,
    ) -> Self {
        let value = (result == KeyResult::Found).then_some(Value::Received { bytes, permit });
        Self { result, value, by }
    }
}

/// Who has to be asked about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This node.
    Here,
    /// The node of another shard.
    At(Address),
    /// Nobody knows, since there is no view yet: why.
    Unknown(String),
}

impl Owner {
    /// The node of the other shard, as answers name it.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::At(address) => Some(address),
            Self::Here | Self::Unknown(_) => None,
        }
    }
}

/// What a request about a key is, whoever is asked next.
pub struct Request<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) operation: Operation<'a>,
    /// The id by which it is passed on, once it has been. Where the client has named it, it has one from the beginning: the client may send
    /// the request again, so what was done is remembered by it wherever it is done.
    passed: OnceCell<Passed>,
    is_named: bool,
    /// Any replica may answer.
    pub(crate) is_stale: bool,
    pub(crate) deadline: Deadline,
}

/// What another node answers to an operation that was passed on to it.
pub enum KeyReply {
    /// It was done.
    Done {
        /// What.
        result: KeyResult,
        /// The value that was read, and the part of the memory for large answers that it takes.
        value: (Vec<u8>, Option<Permit>),
        /// Where any replica may answer: how old the answer may be.
        age: Option<Duration>,
    },
    /// Nothing was done: the key is on its way from one shard to another.
    Again,
    /// Nothing was done: another replica leads the shard, where it is known, and a sentence.
    NotLeader(Option<Address>, String),
    /// Nothing was done: the node was started again since.
    Gone,
    /// Nothing was done: the shard can remember no more named writes.
    Full,
    /// The error says whether it was done.
    Refused(Error),
}

impl<'a> Request<'a> {
    /// A request; `named` is the id that the client has given it.
    pub fn new(
        key: &'a [u8],
        operation: Operation<'a>,
        named: Option<RequestId>,
        deadline: Deadline,
    ) -> Self {
        let is_named = named.is_some();
        let passed = named.map_or_else(OnceCell::new, |named| Passed::named(named).into());
        Self { key, operation, passed, is_named, is_stale: false, deadline }
    }

    /// Whether its time is over.
    pub fn is_late(&self) -> bool {
        self.deadline.is_over()
    }

    /// A read that any replica may answer.
    pub(super) fn stale(key: &'a [u8], deadline: Deadline) -> Self {
        Self { is_stale: true, ..Self::new(key, Operation::Get, None, deadline) }
    }

    /// The id by which it is passed on, where it is a write that was or is.
    pub(crate) fn id(&self) -> Option<RequestId> {
        self.passed.get().map(|passed| passed.request)
    }

    /// Nothing was done, maybe since the shard does not know the start of the node by which the request has its number: it goes on by an id
    /// that any shard takes.
    fn give_up_number(&mut self) {
        if matches!(self.id(), Some(RequestId::Numbered { .. })) {
            self.passed = Passed::drawn().into();
        }
    }
}

/// What came of asking once.
pub(super) enum Asked {
    Done(Outcome),
    /// Nothing was done; the owner is changing.
    Again,
    /// Nothing was done: another replica leads the shard, which is to be asked.
    AtLeader,
    /// It may have been done: why that is not known. Asked again under the same id it is done once.
    Unclear(Error),
    /// This replica of the shard has not done it, or may have: another one can be asked, as long as there is time.
    Elsewhere(Error),
    /// Nothing was done: a replica of the shard says why.
    Told(String),
}

impl Node {
    /// Who owns a key, as far as this node knows.
    pub fn owner(&self, key: &[u8]) -> Owner {
        match &*self.standing() {
            Standing::Serving(serving) => {
                let (_, shard) = serving.shard_of(key);
                if self.is_of(serving, shard) {
                    Owner::Here
                } else {
                    Owner::At(self.likely_leader(&serving.state, shard))
                }
            }
            Standing::Waiting(reasons) => Owner::Unknown(reasons.join("; ")),
            Standing::Follower => Owner::Unknown("a follower has no view".to_owned()),
        }
    }

    /// The other node that a request about a key is going to wait for; this one where it will wait for a leader to be elected.
    pub fn waits_for(&self, key: &[u8]) -> Option<Address> {
        let standing = self.standing();
        let serving = standing.serving().ok()?;
        let (_, shard) = serving.shard_of(key);
        match serving.own_of(shard.group) {
            Some(own) => match self.leads(own) {
                Err(NotDone::NotLeader(leader)) => Some(leader.unwrap_or_else(|| self.address.clone())),
                _ => None,
            },
            None => Some(self.likely_leader(&serving.state, shard)),
        }
    }

    /// Whether a shard is one of this node's.
    pub(super) fn is_of(&self, serving: &Serving, shard: &view::Shard) -> bool {
        serving.state.replicas_of(shard.group).contains(&&self.address)
    }

    /// The node to ask about a shard of which this one holds no replica.
    pub(super) fn likely_leader(&self, state: &MetaState, shard: &view::Shard) -> Address {
        let replicas = state.replicas_of(shard.group);
        let is_up = |node: &Address| *node != self.address && !self.peers.at(node).is_down();
        let known = self.leaders.of(shard.group).filter(|leader| replicas.contains(&leader) && is_up(leader));
        known.unwrap_or_else(|| {
            let up: Vec<&Address> = replicas.into_iter().filter(|node| is_up(node)).collect();
            match up.len() {
                0 => shard.replicas[0].clone(),
                // Whoever has no leader that it knows of may be cut off from the others: the next time it is another.
                count => up[dice::index(count)].clone(),
            }
        })
    }

    /// Does what a client asks, here or at the node that owns the key, and follows the key where it is being moved, and its shard where
    /// another replica leads. Where the log of its shard was asked already, `told` is what came of that.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which says whether a write happened.
    pub async fn run(
        &self,
        request: &mut Request<'_>,
        mut told_by_log: Option<Told>,
    ) -> Result<Outcome, Error> {
        self.count_operation();
        self.refuse_if_claimed()?;
        let (operation, deadline) = (request.operation, request.deadline);
        if let Some(passed) = told_by_log.as_mut().and_then(|told| told.passed.take()) {
            request.passed = passed.into();
        }
        let mut pause = FIRST_PAUSE;
        let (mut unclear, mut not_done): (Option<Error>, Option<Error>) = (None, None);
        // What a replica has said of its shard tells more than that another one did not answer.
        let mut told: Option<String> = None;
        let mut was_sent_on = false;
        self.wait_for_first_round(deadline).await;
        loop {
            let standing = self.standing();
            let serving = standing.serving().map_err(|error| Error::Unavailable {
                reason: error.to_string(),
                applied: unclear.as_ref().map_or(Applied::No, Error::applied),
            })?;
            let known = serving.state.version;
            let asked = match told_by_log.take() {
                Some(told) => self.told_by_log(serving, told, request),
                None => self.ask_owner(serving, request, unclear.is_some()).await,
            };
            let sent_on = matches!(asked, Ok(Asked::AtLeader)) && !was_sent_on;
            match asked {
                Ok(Asked::Done(outcome)) => return Ok(outcome),
                Ok(Asked::Again) if unclear.is_none() => request.give_up_number(),
                Ok(Asked::Again | Asked::AtLeader) => {}
                Ok(Asked::Told(reason)) => told = Some(reason),
                Ok(Asked::Elsewhere(error)) if error.applied() == Applied::Unknown => unclear = Some(error),
                Ok(Asked::Elsewhere(error)) => not_done = Some(error),
                // Once more, in case only the connection was bad. What comes of that is the truth about both.
                Ok(Asked::Unclear(error)) if unclear.is_none() => unclear = Some(error),
                Ok(Asked::Unclear(error)) => return Err(error),
                Err(error) => {
                    // Whoever owns the key by now may be another node than the one that does not answer.
                    let newer = self.state().is_some_and(|state| state.version > known);
                    if !newer || deadline.is_over() {
                        return Err(unclear.unwrap_or(error));
                    }
                    if error.applied() == Applied::Unknown {
                        unclear.get_or_insert(error);
                    }
                }
            }
            if deadline.is_over() {
                return Err(in_vain(operation, unclear.or(not_done), told));
            }
            // The first hint to another leader is followed at once.
            was_sent_on = sent_on;
            if !sent_on {
                self.wait_for_news(known, pause.min(deadline.left())).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    async fn ask_owner(
        &self,
        serving: &Serving,
        request: &Request<'_>,
        is_retry: bool,
    ) -> Result<Asked, Error> {
        let (hash, shard) = serving.shard_of(request.key);
        let Some(own) = serving.own_of(shard.group) else {
            let is_replicated = serving.state.replicas_of(shard.group).len() > 1;
            return if is_replicated {
                self.ask_replica(serving, shard, request).await
            } else {
                self.ask_only_replica(serving, shard, request).await
            };
        };
        if own.is_logged() {
            return self.ask_own_group(serving, (shard, own), hash, request).await;
        }
        // Another node may have done it already, before the key came here, and its record came along.
        let may_be_done = is_retry || request.is_named;
        let forwarded = if may_be_done { self.stamp_own(serving, own, request) } else { None };
        if forwarded.is_some_and(|forwarded| !self.has_room_for(own, hash, &forwarded)) {
            return Err(Error::Overloaded(full()));
        }
        match self.run_alone(own, (hash, request.key), request.operation, request.id(), forwarded) {
            Ok(done) => Ok(Asked::Done(done.into())),
            Err(Refused::OtherRequest) => Ok(Asked::Done(Outcome::other_request())),
            Err(Refused::Moving | Refused::NotOwned | Refused::Logged | Refused::Forgotten) => {
                Ok(Asked::Again)
            }
            Err(Refused::Sealed) => Err(Error::Unavailable {
                reason: "the node is about to become part of another cluster".to_owned(),
                applied: Applied::No,
            }),
        }
    }

    /// The id by which a write is passed on; a read needs none.
    fn passed<'a>(&self, serving: &Serving, request: &'a Request) -> Option<&'a Passed> {
        let is_write = request.operation != Operation::Get;
        is_write.then(|| request.passed.get_or_init(|| self.pass(&serving.state)))
    }

    /// A client's write, as a shard takes it that this node leads.
    fn stamp_own(&self, serving: &Serving, own: &Shard, request: &Request) -> Option<Forwarded> {
        let passed = self.passed(serving, request)?;
        Some(self.stamp(own, passed.request, serving.state.view.epoch))
    }

    /// Has it done by the group that this node has a replica of, by itself or by the one that leads it.
    async fn ask_own_group(
        &self,
        serving: &Serving,
        (shard, own): (&view::Shard, &Arc<Shard>),
        hash: KeyHash,
        request: &Request<'_>,
    ) -> Result<Asked, Error> {
        if let Err(NotDone::NotLeader(leader)) = self.leads(own) {
            if let Some(leader) = leader {
                return self.ask_node(serving, shard, (&leader, None), request).await;
            }
            let voters = self.groups.seat(shard.group).map(|seat| seat.voters()).unwrap_or_default();
            return Ok(Asked::Told(self.leaderless(shard, &voters)));
        }
        let place = (hash, request.key);
        let write = self.stamp_own(serving, own, request);
        let done = self.run_in_group(own, place, request.operation, write, request.deadline).await;
        asked_log(shard, done, request.operation)
    }

    /// What came of asking the log of the key's shard before.
    fn told_by_log(&self, serving: &Serving, told: Told, request: &Request) -> Result<Asked, Error> {
        let (hash, shard) = serving.shard_of(request.key);
        asked_log(shard, self.conclude(told, (hash, request.key), request.operation), request.operation)
    }

    /// Has it done by a replica of a shard that this node holds none of.
    async fn ask_replica(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        request: &Request<'_>,
    ) -> Result<Asked, Error> {
        let node = self.likely_leader(&serving.state, shard);
        if node == self.address {
            let reason = format!("shard {}: none of its other replicas is reached", shard.id);
            return Ok(Asked::Elsewhere(Error::Unavailable { reason, applied: Applied::No }));
        }
        self.ask_node(serving, shard, (&node, None), request).await
    }

    /// Has it done by the only node that holds the shard.
    async fn ask_only_replica(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        request: &Request<'_>,
    ) -> Result<Asked, Error> {
        let node = &shard.replicas[0];
        let Some(instance) = serving.state.holder(shard.group, node).filter(|_| *node != self.address) else {
            return Err(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No });
        };
        self.ask_node(serving, shard, (node, Some(instance)), request).await
    }

    /// Has it done by a node that holds a replica of the key's shard: a certain start of it where that is the only replica.
    async fn ask_node(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        (node, instance): (&Address, Option<u64>),
        request: &Request<'_>,
    ) -> Result<Asked, Error> {
        let (cluster, epoch) = (serving.state.cluster.clone(), serving.state.view.epoch);
        let addressed = Addressed { cluster, epoch, instance };
        let is_only = instance.is_some();
        self.passed(serving, request);
        let reply = self.host.key(self, (node, &addressed), request).await;
        if !is_only {
            self.note_leader(shard.group, node, &reply);
        }
        match reply {
            Ok(KeyReply::Again) => Ok(Asked::Again),
            Ok(KeyReply::NotLeader(Some(_), _)) => Ok(Asked::AtLeader),
            Ok(KeyReply::NotLeader(None, reason)) => Ok(Asked::Told(reason)),
            Ok(KeyReply::Gone) => {
                Err(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No })
            }
            Ok(KeyReply::Full) => Err(Error::Overloaded(full())),
            Ok(KeyReply::Done { result, value, .. }) => {
                let by = (!self.is_of(serving, shard)).then(|| node.clone());
                Ok(Asked::Done(Outcome::received(result, value, by)))
            }
            Ok(KeyReply::Refused(error @ Error::Unavailable { .. })) if !is_only => {
                Ok(Asked::Elsewhere(error))
            }
            Ok(KeyReply::Refused(error)) => Err(error),
            Err(error) => {
                let reason = if is_only { format!("{error}; {}", advice(shard)) } else { error.to_string() };
                let applied = error.kind.applied();
                let error = Error::unavailable(format_args!("shard {} at {node}", shard.id), reason, applied);
                match (is_only, applied) {
                    (true, Applied::Unknown) => Ok(Asked::Unclear(error)),
                    (true, _) => Err(error),
                    (false, _) => Ok(Asked::Elsewhere(error)),
                }
            }
        }
    }

    /// What a reply says of who leads a shard.
    fn note_leader(&self, group: u64, node: &Address, reply: &Result<KeyReply, NoAnswer>) {
        match reply {
            Ok(KeyReply::Done { .. }) => self.leaders.note(group, node),
            Ok(KeyReply::NotLeader(leader, _)) => {
                self.leaders.forget(group, node);
                if let Some(leader) = leader {
                    self.leaders.note(group, leader);
                }
            }
            Err(_) => self.leaders.forget(group, node),
            Ok(KeyReply::Again | KeyReply::Gone | KeyReply::Full | KeyReply::Refused(_)) => {}
        }
    }
}

fn asked_log(
    shard: &view::Shard,
    done: Result<Result<Done, Refused>, NotDone>,
    operation: Operation,
) -> Result<Asked, Error> {
    match done {
        Ok(Ok(done)) => Ok(Asked::Done(done.into())),
        Ok(Err(Refused::OtherRequest)) => Ok(Asked::Done(Outcome::other_request())),
        Ok(Err(_)) | Err(NotDone::Again) => Ok(Asked::Again),
        Err(NotDone::NotLeader(_)) => Ok(Asked::AtLeader),
        Err(NotDone::Full) => Err(Error::Overloaded(full())),
        Err(error) => not_agreed(shard, &error, operation),
    }
}

/// What is said where nobody has done it by the deadline.
fn in_vain(operation: Operation, error: Option<Error>, told: Option<String>) -> Error {
    // A read changes nothing, whoever may have done it.
    let applied = error.as_ref().map_or(Applied::No, Error::applied);
    let applied = if operation == Operation::Get { Applied::No } else { applied };
    let reason = match (told, error) {
        (Some(told), _) => told,
        (None, Some(Error::Unavailable { reason, .. })) => reason,
        (None, Some(error)) => return error,
        (None, None) => "the key was on its way from one shard to another all the time".to_owned(),
    };
    Error::Unavailable { reason, applied }
}

/// A group has not done what its leader was asked to, or may have.
pub(super) fn not_agreed(shard: &view::Shard, error: &NotDone, operation: Operation) -> Result<Asked, Error> {
    let applied = if operation == Operation::Get { Applied::No } else { Applied::Unknown };
    match error {
        NotDone::Busy => {
            Err(Error::Overloaded("Too much waits for the shard's replicas: try again later".to_owned()))
        }
        NotDone::TooLarge => Err(Error::TooLarge("The value is too large for the shard's log".to_owned())),
        _ => Ok(Asked::Elsewhere(Error::Unavailable {
            reason: format!("shard {}: {error}", shard.id),
            applied,
        })),
    }
}

impl Serving {
    /// The hash of a key, and the shard that owns it.
    pub fn shard_of(&self, key: &[u8]) -> (KeyHash, &view::Shard) {
        let hash = self.state.hash_key.hash(key);
        (hash, &self.state.view.shards[self.state.view.owner(hash, key)])
    }
}
