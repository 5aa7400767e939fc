//! Key operations: here, or at the node that owns the key.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::{Method, Response};
use ureq::{Body, SendBody};

use super::ask::header;
use super::state::{Node, Serving, Standing, advice, lost_shard};
use crate::budget::Permit;
use crate::clock::{Deadline, wall_ms};
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::shard::{Done, Forwarded, Refused, RequestId};
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
struct Request<'a> {
    key: &'a [u8],
    operation: Operation<'a>,
    id: RequestId,
    deadline: Deadline,
}

/// What came of asking once.
enum Asked {
    Done(Outcome),
    /// Nothing was done; the owner is changing.
    Again,
    /// It may have been done: why that is not known. Asked again under the same id it is done once.
    Unclear(Error),
}

impl Node {
    /// Who owns a key, as far as this node knows.
    pub fn owner(&self, key: &[u8]) -> Owner {
        match &*self.standing() {
            Standing::Serving(serving) => {
                let (_, shard) = serving.shard_of(key);
                if serving.holds(shard) { Owner::Here } else { Owner::At(shard.replicas[0].clone()) }
            }
            Standing::Waiting(reasons) => Owner::Unknown(reasons.join("; ")),
            Standing::Follower => Owner::Unknown("a follower has no view".to_owned()),
        }
    }

    /// Does what a client asks, here or at the node that owns the key, and follows the key where it is being moved.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which says whether a write happened.
    pub fn run(&self, key: &[u8], operation: Operation, deadline: Deadline) -> Result<Outcome, Error> {
        self.count_operation();
        let request = Request { key, operation, id: rand::random(), deadline };
        let mut pause = FIRST_PAUSE;
        let mut unclear: Option<Error> = None;
        loop {
            let standing = self.standing();
            let serving = standing.serving().map_err(|error| Error::Unavailable {
                reason: error.to_string(),
                applied: unclear.as_ref().map_or(Applied::No, Error::applied),
            })?;
            let known = serving.state.version;
            match self.ask_owner(serving, &request, unclear.is_some()) {
                Ok(Asked::Done(outcome)) => return Ok(outcome),
                Ok(Asked::Again) => {}
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
                let reason = "the key was on its way from one shard to another all the time".to_owned();
                return Err(unclear.unwrap_or(Error::Unavailable { reason, applied: Applied::No }));
            }
            self.wait_for_news(known, pause.min(deadline.left()));
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    fn ask_owner(&self, serving: &Serving, request: &Request, is_retry: bool) -> Result<Asked, Error> {
        let (hash, shard) = serving.shard_of(request.key);
        if let Some((_, own)) = serving.own.as_ref().filter(|_| serving.holds(shard)) {
            // Another node may have done it already, before the key came here, and its record came along.
            let (epoch, now_ms) = (serving.state.view.epoch, wall_ms());
            let forwarded = is_retry.then_some(Forwarded { request: request.id, epoch, now_ms });
            return match own.run(hash, request.key, request.operation, forwarded) {
                Ok(done) => Ok(Asked::Done(done.into())),
                Err(Refused::Moving | Refused::NotOwned | Refused::Logged) => Ok(Asked::Again),
                Err(Refused::Sealed) => Err(Error::Unavailable {
                    reason: "the node is about to become part of another cluster".to_owned(),
                    applied: Applied::No,
                }),
            };
        }
        let node = &shard.replicas[0];
        let Some(instance) = serving.state.holder(shard.group, node).filter(|_| *node != self.address) else {
            return Err(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No });
        };
        self.ask_node(serving, shard, instance, request)
    }

    /// Has it done by the node that owns the key.
    fn ask_node(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        instance: u64,
        request: &Request,
    ) -> Result<Asked, Error> {
        let node = &shard.replicas[0];
        let (cluster, epoch) = (serving.state.cluster.clone(), serving.state.view.epoch);
        let addressed = Addressed { cluster, epoch, instance };
        let unanswered = |error: &NoAnswer| {
            let reason = format!("{error}; {}", advice(shard.id));
            Error::unavailable(format_args!("shard {} at {node}", shard.id), reason, error.kind.applied())
        };
        let response = match self.send_key(node, &addressed, request) {
            Ok(response) => response,
            Err(error) if error.kind.applied() == Applied::Unknown => {
                return Ok(Asked::Unclear(unanswered(&error)));
            }
            Err(error) => return Err(unanswered(&error)),
        };
        match header(response.headers(), wire::RESULT_HEADER).and_then(KeyResult::parse) {
            Some(KeyResult::Again) => {
                // Reading the body to its end gives the connection back.
                let _ = read_body(response, 1 << 16);
                Ok(Asked::Again)
            }
            Some(KeyResult::Gone) => {
                let _ = read_body(response, 1 << 16);
                Err(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No })
            }
            Some(result) => {
                let (length, permit) = self.make_room(node, &response)?;
                let bytes = match read_body(response, length) {
                    Ok(bytes) => bytes,
                    Err(error) => return Ok(Asked::Unclear(unanswered(&error))),
                };
                let value = (result == KeyResult::Found).then_some(Value::Received { bytes, permit });
                Ok(Asked::Done(Outcome { result, value, by: Some(node.clone()) }))
            }
            None => Err(refused(node, response)),
        }
    }

    fn send_key(
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
        let patience = Patience::Until(request.deadline);
        match body {
            Some(value) => peer.exchange(head.body(value).expect("a key makes a path"), patience),
            None => peer.exchange(head.body(SendBody::none()).expect("a key makes a path"), patience),
        }
    }

    /// Takes memory for the value that another node is about to send.
    fn make_room(&self, owner: &Address, response: &Response<Body>) -> Result<(u64, Option<Permit>), Error> {
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

    /// The standing under which a request of another node is answered: both belong to the same cluster, and this
    /// start of the node is the one that is meant.
    ///
    /// # Errors
    /// The result that says so, and a sentence.
    pub fn check_addressed(&self, addressed: Option<&Addressed>) -> Result<Arc<Standing>, NotMeant> {
        let standing = self.standing();
        let Some(addressed) = addressed else {
            return Err(NotMeant::Unclear(format!("{}: the request names no cluster", self.address)));
        };
        if addressed.instance != self.instance {
            return Err(NotMeant::Gone(format!("{} was started again and holds nothing", self.address)));
        }
        match standing.serving() {
            Ok(serving) if serving.state.cluster == addressed.cluster => Ok(Arc::clone(&standing)),
            Ok(serving) => Err(NotMeant::Unclear(format!(
                "clusters differ: {} belongs to {}, the sender to {}",
                self.address, serving.state.cluster, addressed.cluster
            ))),
            Err(error) => Err(NotMeant::NotYet(format!("{} does not serve yet: {error}", self.address))),
        }
    }

    /// Does what another node passed on, if this node's shard owns the key.
    ///
    /// # Errors
    /// [`Refused`], and then nothing was done.
    pub fn run_forwarded(
        &self,
        standing: &Standing,
        key: &[u8],
        operation: Operation,
        (epoch, request): (u64, Option<RequestId>),
    ) -> Result<Outcome, Refused> {
        self.count_operation();
        let serving = standing.serving().map_err(|_| Refused::NotOwned)?;
        let (_, shard) = serving.own.as_ref().ok_or(Refused::NotOwned)?;
        let hash = serving.state.hash_key.hash(key);
        let forwarded = request.map(|request| Forwarded { request, epoch, now_ms: wall_ms() });
        shard.run(hash, key, operation, forwarded).map(Outcome::from)
    }
}

/// Why a request of another node is not for this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMeant {
    /// It is for an earlier start of this node.
    Gone(String),
    /// This start of the node is meant, but has not learned of the cluster yet: it will in a moment.
    NotYet(String),
    /// It is of another cluster.
    Unclear(String),
}

impl Serving {
    /// The hash of a key, and the shard that owns it.
    pub fn shard_of(&self, key: &[u8]) -> (KeyHash, &view::Shard) {
        let hash = self.state.hash_key.hash(key);
        (hash, &self.state.view.shards[self.state.view.owner(hash, key)])
    }

    /// Whether a shard is this node's own.
    pub fn holds(&self, shard: &view::Shard) -> bool {
        self.own.as_ref().is_some_and(|(_, own)| own.group() == shard.group)
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
