//! Questions about the cluster: counts, shards, the view.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::SendBody;
use ureq::http::Method;

use super::membership::hello_view;
use super::state::{Node, Standing};
use crate::clock::{Deadline, now};
use crate::config::Role;
use crate::error::Error;
use crate::model::address::Address;
use crate::peers::client::{NoAnswer, NoAnswerKind, Patience, Peer, read_body};
use crate::wire::{self, Count, Hello};

/// A node that does not answer a question about itself within this time counts as not reached.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);
/// Answers to such questions are small; a longer one is refused.
const QUESTION_BYTES: u64 = 1 << 20;

/// One shard, as answers describe it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShardInfo {
    /// The shard's id.
    pub shard_id: String,
    /// Its pairs; unknown where none of its nodes was reached.
    pub key_count: Option<u64>,
    /// Its nodes, in the order of the view.
    pub replicas: Vec<Address>,
}

impl Node {
    /// Who this node is and how it sees the cluster.
    pub fn hello(&self) -> Hello {
        let (view, serving_with) = match (&*self.standing(), &self.role) {
            (Standing::Serving(serving), _) if serving.own_shard.is_some() => {
                (Some(hello_view(&serving.view)), Some(serving.began_with.clone()))
            }
            (Standing::Serving(serving), _) => (Some(hello_view(&serving.view)), None),
            (_, Role::Member { view }) => (Some(hello_view(view)), None),
            _ => (None, None),
        };
        Hello { address: self.address.clone(), view, instance: self.instance.clone(), serving_with }
    }

    /// The pairs of the ranges that this node's shard owns. With a fixed view nothing else is ever stored.
    pub fn count(&self) -> u64 {
        self.store.size().pairs
    }

    /// Describes a shard, counted by its own node.
    ///
    /// # Errors
    /// [`Error::NotServing`] without a view, [`Error::NotFound`] where there is no such shard.
    pub fn shard_info(&self, id: &str) -> Result<ShardInfo, Error> {
        let standing = self.standing();
        let serving = standing.serving()?;
        let shards = &serving.view.shards;
        let index = shards.iter().position(|shard| shard.id.to_string() == id).ok_or_else(|| {
            Error::NotFound(format!("There is no shard {id}: allowed is 1 to {}", shards.len()))
        })?;
        let key_count = if serving.own_shard == Some(index) {
            Some(self.count())
        } else {
            let nodes = shards[index].replicas.iter();
            nodes.map(|node| self.peers.at(node)).find_map(|peer| self.count_of(&peer, &serving.fingerprint))
        };
        Ok(ShardInfo { shard_id: id.to_owned(), key_count, replicas: shards[index].replicas.clone() })
    }

    fn count_of(&self, peer: &Peer, fingerprint: &str) -> Option<u64> {
        match question::<Count>(peer, wire::COUNT, Some(fingerprint)) {
            Ok(count) => Some(count.pairs),
            Err(error) => {
                log::debug!("{} asks {} for its count: {error}", self.address, peer.address());
                None
            }
        }
    }
}

/// Asks a node who it is.
///
/// # Errors
/// See [`NoAnswerKind`].
pub fn ask_hello(peer: &Peer) -> Result<Hello, NoAnswer> {
    question(peer, wire::HELLO, None)
}

fn question<T: DeserializeOwned>(peer: &Peer, path: &str, fingerprint: Option<&str>) -> Result<T, NoAnswer> {
    let mut request = peer.request(Method::GET, path);
    if let Some(fingerprint) = fingerprint {
        request = request.header(wire::VIEW_HEADER, fingerprint);
    }
    let request = request.body(SendBody::none()).expect("a constant path");
    let response = peer.ask(request, Patience::Until(Deadline::after(now(), QUESTION_TIMEOUT)))?;
    let status = response.status();
    let body = read_body(response, QUESTION_BYTES)?;
    let answer = if status.is_success() {
        serde_json::from_slice(&body).map_err(io::Error::other)
    } else {
        let said = serde_json::from_slice::<wire::Refusal>(&body).map(|body| body.error);
        Err(io::Error::other(said.unwrap_or_else(|_| format!("it answered {status}"))))
    };
    answer.map_err(|error| NoAnswer { kind: NoAnswerKind::Senseless, reason: error.to_string() })
}
