//! Key operations: here, or at the node that owns the key.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::{Method, Response};
use ureq::{Body, SendBody};

use super::ask::header;
use super::group_ops::{NotDone, Told};
use super::state::{Node, Serving, Standing, advice, lost_shard};
use crate::budget::Permit;
use crate::clock::{Deadline, wall_ms};
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, Forwarded, Refused, RequestId, Shard};
use crate::model::store::Held;
use crate::model::view;
use crate::peers::client::{NoAnswer, Patience, read_body};
use crate::wire::{self, Addressed, KeyResult};

pub use crate::model::shard::Operation;

/// A longer value of another node, in bytes, takes part of the memory for large ones.
const LARGE_VALUE: u64 = 64 * 1024;
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
    key: &'a [u8],
    operation: Operation<'a>,
    id: RequestId,
    /// The client has named the id itself and may send the request again: what was done is remembered by it wherever it is done.
    is_named: bool,
    /// Any replica may answer.
    is_stale: bool,
    deadline: Deadline,
}

impl<'a> Request<'a> {
    /// A request; `named` is the id that the client has given it.
    pub fn new(
        key: &'a [u8],
        operation: Operation<'a>,
        named: Option<RequestId>,
        deadline: Deadline,
    ) -> Self {
        let id = named.unwrap_or_else(rand::random);
        Self { key, operation, id, is_named: named.is_some(), is_stale: false, deadline }
    }

    /// Whether its time is over.
    pub fn is_late(&self) -> bool {
        self.deadline.is_over()
    }

    /// A read that any replica may answer.
    pub(super) fn stale(key: &'a [u8], deadline: Deadline) -> Self {
        Self { key, operation: Operation::Get, id: 0, is_named: false, is_stale: true, deadline }
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
                count => up[rand::random_range(0..count)].clone(),
            }
        })
    }

    /// Does what a client asks, here or at the node that owns the key, and follows the key where it is being moved, and its shard where
    /// another replica leads. Where the log of its shard was asked already, `told` is what came of that.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which says whether a write happened.
    pub fn run(&self, mut request: Request, mut told_by_log: Option<Told>) -> Result<Outcome, Error> {
        self.count_operation();
        let (operation, deadline) = (request.operation, request.deadline);
        if let Some(told) = &told_by_log {
            request.id = told.request;
        }
        let mut pause = FIRST_PAUSE;
        let (mut unclear, mut not_done): (Option<Error>, Option<Error>) = (None, None);
        // What a replica has said of its shard tells more than that another one did not answer.
        let mut told: Option<String> = None;
        let mut was_sent_on = false;
        self.wait_for_first_round(deadline);
        loop {
            let standing = self.standing();
            let serving = standing.serving().map_err(|error| Error::Unavailable {
                reason: error.to_string(),
                applied: unclear.as_ref().map_or(Applied::No, Error::applied),
            })?;
            let known = serving.state.version;
            let asked = match told_by_log.take() {
                Some(told) => self.told_by_log(serving, told, &request),
                None => self.ask_owner(serving, &request, unclear.is_some()),
            };
            let sent_on = matches!(asked, Ok(Asked::AtLeader)) && !was_sent_on;
            match asked {
                Ok(Asked::Done(outcome)) => return Ok(outcome),
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
                self.wait_for_news(known, pause.min(deadline.left()));
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    fn ask_owner(&self, serving: &Serving, request: &Request, is_retry: bool) -> Result<Asked, Error> {
        let (hash, shard) = serving.shard_of(request.key);
        let Some(own) = serving.own_of(shard.group) else {
            let is_replicated = serving.state.replicas_of(shard.group).len() > 1;
            return if is_replicated {
                self.ask_replica(serving, shard, request)
            } else {
                self.ask_only_replica(serving, shard, request)
            };
        };
        let (request_id, epoch, now_ms) = (request.id, serving.state.view.epoch, wall_ms());
        let forwarded = Forwarded { request: request_id, epoch, now_ms };
        if own.is_logged() {
            return self.ask_own_group(serving, (shard, own), hash, request, &forwarded);
        }
        // Another node may have done it already, before the key came here, and its record came along.
        let forwarded = (is_retry || request.is_named).then_some(forwarded);
        match own.run(hash, request.key, request.operation, forwarded) {
            Ok(done) => Ok(Asked::Done(done.into())),
            Err(Refused::Moving | Refused::NotOwned | Refused::Logged) => Ok(Asked::Again),
            Err(Refused::Sealed) => Err(Error::Unavailable {
                reason: "the node is about to become part of another cluster".to_owned(),
                applied: Applied::No,
            }),
        }
    }

    /// Has it done by the group that this node has a replica of, by itself or by the one that leads it.
    fn ask_own_group(
        &self,
        serving: &Serving,
        (shard, own): (&view::Shard, &Arc<Shard>),
        hash: KeyHash,
        request: &Request,
        forwarded: &Forwarded,
    ) -> Result<Asked, Error> {
        if let Err(NotDone::NotLeader(leader)) = self.leads(own) {
            if let Some(leader) = leader {
                return self.ask_node(serving, shard, (&leader, 0), request);
            }
            let voters = self.groups.seat(shard.group).map(|seat| seat.voters()).unwrap_or_default();
            return Ok(Asked::Told(self.leaderless(shard, &voters)));
        }
        let place = (hash, request.key);
        let done = self.run_in_group(own, place, request.operation, forwarded, request.deadline);
        asked_log(shard, done, request.operation)
    }

    /// What came of asking the log of the key's shard before.
    fn told_by_log(&self, serving: &Serving, told: Told, request: &Request) -> Result<Asked, Error> {
        let (hash, shard) = serving.shard_of(request.key);
        asked_log(shard, self.conclude(told, (hash, request.key), request.operation), request.operation)
    }

    /// Has it done by a replica of a shard that this node holds none of.
    fn ask_replica(&self, serving: &Serving, shard: &view::Shard, request: &Request) -> Result<Asked, Error> {
        let node = self.likely_leader(&serving.state, shard);
        if node == self.address {
            let reason = format!("shard {}: none of its other replicas is reached", shard.id);
            return Ok(Asked::Elsewhere(Error::Unavailable { reason, applied: Applied::No }));
        }
        self.ask_node(serving, shard, (&node, 0), request)
    }

    /// Has it done by the only node that holds the shard.
    fn ask_only_replica(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        request: &Request,
    ) -> Result<Asked, Error> {
        let node = &shard.replicas[0];
        let Some(instance) = serving.state.holder(shard.group, node).filter(|_| *node != self.address) else {
            return Err(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No });
        };
        self.ask_node(serving, shard, (node, instance), request)
    }

    /// Has it done by a node that holds a replica of the key's shard; an instance of 0 stands for any start of it.
    fn ask_node(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        (node, instance): (&Address, u64),
        request: &Request,
    ) -> Result<Asked, Error> {
        let (cluster, epoch) = (serving.state.cluster.clone(), serving.state.view.epoch);
        let addressed = Addressed { cluster, epoch, instance };
        let is_only = instance != 0;
        let unanswered = |error: &NoAnswer| {
            let reason = if is_only { format!("{error}; {}", advice(shard)) } else { error.to_string() };
            Error::unavailable(format_args!("shard {} at {node}", shard.id), reason, error.kind.applied())
        };
        let not_answered = |error: &NoAnswer| match (is_only, error.kind.applied()) {
            (true, Applied::Unknown) => Ok(Asked::Unclear(unanswered(error))),
            (true, _) => Err(unanswered(error)),
            (false, _) => {
                self.leaders.forget(shard.group, node);
                Ok(Asked::Elsewhere(unanswered(error)))
            }
        };
        let response = match self.send_key(node, &addressed, request) {
            Ok(response) => response,
            Err(error) => return not_answered(&error),
        };
        match header(response.headers(), wire::RESULT_HEADER).and_then(KeyResult::parse) {
            Some(KeyResult::Again) => {
                // Reading the body to its end gives the connection back.
                let _ = read_body(response, 1 << 16);
                Ok(Asked::Again)
            }
            Some(KeyResult::NotLeader) => {
                let leader =
                    header(response.headers(), wire::LEADER_HEADER).and_then(|text| text.parse().ok());
                let reason = header(response.headers(), wire::REASON_HEADER).unwrap_or_default().to_owned();
                let _ = read_body(response, 1 << 16);
                self.leaders.forget(shard.group, node);
                match leader {
                    Some(leader) => {
                        self.leaders.note(shard.group, &leader);
                        Ok(Asked::AtLeader)
                    }
                    None => Ok(Asked::Told(reason)),
                }
            }
            Some(KeyResult::Gone) => {
                let _ = read_body(response, 1 << 16);
                Err(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No })
            }
            Some(result) => {
                let (length, permit) = self.make_room(node, &response)?;
                let bytes = match read_body(response, length) {
                    Ok(bytes) => bytes,
                    Err(error) => return not_answered(&error),
                };
                if !is_only {
                    self.leaders.note(shard.group, node);
                }
                let by = (!self.is_of(serving, shard)).then(|| node.clone());
                Ok(Asked::Done(Outcome::received(result, (bytes, permit), by)))
            }
            None if is_only => Err(refused(node, response)),
            None => match refused(node, response) {
                error @ Error::Unavailable { .. } => Ok(Asked::Elsewhere(error)),
                error => Err(error),
            },
        }
    }

    pub(super) fn send_key(
        &self,
        node: &Address,
        addressed: &Addressed,
        request: &Request,
    ) -> Result<Response<Body>, NoAnswer> {
        let path = format!("{}{}", wire::KEYS, wire::encode_key(request.key));
        let (method, body) = match request.operation {
            Operation::Get => (Method::GET, None),
            Operation::Put(value) => (Method::PUT, Some(value)),
            Operation::Delete => (Method::DELETE, None),
        };
        let peer = self.peers.at(node);
        let mut head = peer.request(method, &path).header(wire::VIEW_HEADER, addressed.to_string());
        if request.operation != Operation::Get {
            head = head.header(wire::REQUEST_HEADER, format!("{:032x}", request.id));
        }
        if request.is_stale {
            head = head.header(wire::CONSISTENCY_HEADER, wire::STALE);
        }
        let patience = Patience::Until(request.deadline);
        match body {
            Some(value) => peer.exchange(head.body(value).expect("a key makes a path"), patience),
            None => peer.exchange(head.body(SendBody::none()).expect("a key makes a path"), patience),
        }
    }

    /// Takes memory for the value that another node is about to send.
    pub(super) fn make_room(
        &self,
        owner: &Address,
        response: &Response<Body>,
    ) -> Result<(u64, Option<Permit>), Error> {
        // Not asked of the body: one of length 0 says that it has none.
        let length = header(response.headers(), "content-length").and_then(|length| length.parse().ok());
        let Some(length) = length else {
            return Err(Error::unavailable(owner, "its answer has no length", Applied::Unknown));
        };
        if length <= LARGE_VALUE {
            return Ok((length, None));
        }
        let permit = usize::try_from(length).ok().and_then(|length| self.budget.take(length));
        match permit {
            Some(permit) => Ok((length, Some(permit))),
            None => {
                Err(Error::Overloaded("The memory for large answers is in use: try again later".to_owned()))
            }
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
        Ok(Err(_)) | Err(NotDone::Again) => Ok(Asked::Again),
        Err(NotDone::NotLeader(_)) => Ok(Asked::AtLeader),
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

/// An answer without a result: the owner refused, or whoever answers there is no node.
fn refused(owner: &Address, response: Response<Body>) -> Error {
    let status = response.status();
    let applied = header(response.headers(), wire::OUTCOME_HEADER).map_or(Applied::Unknown, Applied::parse);
    let reason = header(response.headers(), wire::REASON_HEADER).map(str::to_owned);
    let limit = header(response.headers(), wire::LIMIT_HEADER).and_then(|limit| limit.parse().ok());
    // The body is read even where it is not needed: only then can the connection be used again.
    let body = read_body(response, 1 << 16).ok();
    let said =
        body.and_then(|body| serde_json::from_slice::<wire::Refusal>(&body).ok()).map(|body| body.error);
    let reason = reason.or(said).unwrap_or_else(|| format!("answered {status} without a result"));
    // The owner's limits may be narrower than ours. That is no reason to try again.
    match (status.as_u16(), limit) {
        (400, Some(limit)) => return Error::KeyTooLong { limit },
        (413, _) => return Error::TooLarge(reason),
        _ => {}
    }
    Error::unavailable(owner, reason, applied)
}
