//! Key operations: here, or at the node that owns the key.

use std::sync::Arc;

use ureq::http::{HeaderMap, Method, Response};
use ureq::{Body, SendBody};

use super::state::{Node, Standing};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::pair::Pair;
use crate::peers::client::{NoAnswer, Patience, Peer, read_body};
use crate::wire::{self, KeyResult};

/// What is asked of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Read it.
    Get,
    /// Insert or replace it; the raw JSON text of the value.
    Put(&'a [u8]),
    /// Delete it.
    Delete,
}

/// What came of it.
pub enum Outcome {
    /// PUT, GET (then with the value) or DELETE was done, or the key is absent.
    Done(KeyResult, Option<Value>),
}

/// A value that was read.
pub enum Value {
    /// From this node's own map.
    Stored(Pair),
    /// From another node.
    Received(Vec<u8>),
}

impl Value {
    /// The raw JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Stored(pair) => pair.value(),
            Self::Received(bytes) => bytes,
        }
    }
}

/// Who has to be asked about a key.
#[derive(Clone, Debug)]
pub enum Owner {
    /// This node.
    Here,
    /// The node of another shard.
    At(Arc<Peer>),
    /// Nobody knows, since there is no view yet: why.
    Unknown(String),
}

impl Owner {
    /// The node of the other shard, as answers name it.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::At(peer) => Some(peer.address()),
            Self::Here | Self::Unknown(_) => None,
        }
    }
}

impl Node {
    /// Who owns a hash.
    pub fn owner(&self, hash: KeyHash) -> Owner {
        match &*self.standing() {
            Standing::Serving(serving) => {
                let shard = serving.view.owner(hash);
                if serving.own_shard == Some(shard) {
                    Owner::Here
                } else {
                    Owner::At(self.peers.at(&serving.view.shards[shard].replicas[0]))
                }
            }
            Standing::Waiting(reasons) => Owner::Unknown(reasons.join("; ")),
            Standing::Follower => Owner::Unknown("a follower has no view".to_owned()),
        }
    }

    /// Does it in this node's own map.
    pub fn run_here(&self, hash: KeyHash, key: &[u8], operation: Operation) -> Outcome {
        let (result, value) = match operation {
            Operation::Get => match self.store.get(hash, key) {
                Some(pair) => (KeyResult::Found, Some(Value::Stored(pair))),
                None => (KeyResult::Absent, None),
            },
            Operation::Put(value) if self.store.put(hash, key, value) => (KeyResult::Updated, None),
            Operation::Put(_) => (KeyResult::Added, None),
            Operation::Delete if self.store.delete(hash, key) => (KeyResult::Deleted, None),
            Operation::Delete => (KeyResult::Absent, None),
        };
        Outcome::Done(result, value)
    }

    /// Has it done by the node that owns the key. It is asked once: a write is never sent again.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which says whether a write happened.
    pub fn run_at(
        &self,
        owner: &Peer,
        key: &[u8],
        operation: Operation,
        deadline: Deadline,
    ) -> Result<Outcome, Error> {
        let standing = self.standing();
        let fingerprint = &standing.serving()?.fingerprint;
        let response = send(owner, key, operation, fingerprint, deadline);
        let unanswered = |error: &NoAnswer| Error::unavailable(owner.address(), error, error.kind.applied());
        let response = response.map_err(|error| unanswered(&error))?;
        let Some(result) = header(response.headers(), wire::RESULT_HEADER).and_then(KeyResult::parse) else {
            return Err(refused(owner.address(), response));
        };
        // A value can be escaped by the sender's limit only; ours may differ, so there is room for more.
        let limit = self.limits.max_value_length.max(1 << 30) as u64;
        let body = read_body(response, limit).map_err(|error| unanswered(&error))?;
        Ok(Outcome::Done(result, (result == KeyResult::Found).then_some(Value::Received(body))))
    }

    /// Does what another node passed on, if both see the same owner.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where this node does not serve, its view differs, or the key is not its own.
    pub fn run_forwarded(
        &self,
        fingerprint: Option<&str>,
        hash: KeyHash,
        key: &[u8],
        operation: Operation,
    ) -> Result<Outcome, Error> {
        self.check_view(fingerprint)?;
        match self.owner(hash) {
            Owner::Here => Ok(self.run_here(hash, key, operation)),
            _ => Err(Error::Unavailable {
                reason: format!("{} does not own this key", self.address),
                applied: Applied::No,
            }),
        }
    }

    /// Whether a request of another node comes from the same view.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason: a node that differs is not served.
    pub fn check_view(&self, fingerprint: Option<&str>) -> Result<(), Error> {
        let standing = self.standing();
        let reason = match standing.serving() {
            Ok(serving) if fingerprint == Some(serving.fingerprint.as_str()) => return Ok(()),
            Ok(serving) => format!(
                "views differ: {} serves the view {}, the sender's is {}",
                self.address,
                serving.fingerprint,
                fingerprint.unwrap_or("not named")
            ),
            Err(error) => format!("{} does not serve: {error}", self.address),
        };
        Err(Error::Unavailable { reason, applied: Applied::No })
    }
}

fn send(
    owner: &Peer,
    key: &[u8],
    operation: Operation,
    fingerprint: &str,
    deadline: Deadline,
) -> Result<Response<Body>, NoAnswer> {
    let path = format!("{}{}", wire::KEYS, wire::encode_key(key));
    let (method, body) = match operation {
        Operation::Get => (Method::GET, None),
        Operation::Put(value) => (Method::PUT, Some(value)),
        Operation::Delete => (Method::DELETE, None),
    };
    let request = owner.request(method, &path).header(wire::VIEW_HEADER, fingerprint);
    let patience = Patience::Until(deadline);
    match body {
        Some(value) => owner.exchange(request.body(value).expect("a key makes a path"), patience),
        None => owner.exchange(request.body(SendBody::none()).expect("a key makes a path"), patience),
    }
}

/// The text of a header.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An answer without a result: the owner refused, or whoever answers there is no node.
fn refused(owner: &Address, response: Response<Body>) -> Error {
    let status = response.status();
    let applied = header(response.headers(), wire::OUTCOME_HEADER).map_or(Applied::Unknown, Applied::parse);
    let reason = header(response.headers(), wire::REASON_HEADER).map(str::to_owned);
    // The body is read even where it is not needed: only then can the connection be used again.
    let body = read_body(response, 1 << 16).ok();
    let said =
        body.and_then(|body| serde_json::from_slice::<wire::Refusal>(&body).ok()).map(|body| body.error);
    let reason = reason.or(said).unwrap_or_else(|| format!("answered {status} without a result"));
    Error::unavailable(owner, reason, applied)
}
