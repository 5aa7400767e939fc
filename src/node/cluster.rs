//! Questions about the cluster: who this node is, counts, shards.

use std::time::Duration;

use serde::Serialize;

use super::membership::hello_view;
use super::state::{Node, Standing};
use crate::clock::{Deadline, now};
use crate::config::Role;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::shard::Audit;
use crate::wire::{self, Hello, Order};

/// A shard whose node does not count within this time counts as not reached.
const COUNT_TIMEOUT: Duration = Duration::from_millis(500);
/// The same for the sum of all its pairs.
const AUDIT_TIMEOUT: Duration = Duration::from_mins(1);

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
    pub fn hello(&self, challenge: Option<&str>) -> Hello {
        let proof = self.secret.as_ref().zip(challenge);
        let mut hello = Hello {
            address: self.address.clone(),
            instance: self.instance,
            view: None,
            cluster: None,
            version: 0,
            pairs: None,
            seat: self.meta.seat().map(|seat| (seat.group, seat.voters())),
            bound: self.bound(),
            proof: proof.map(|(secret, challenge)| wire::proof(secret, challenge, &self.address)),
        };
        match (&*self.standing(), &self.role) {
            (Standing::Serving(serving), _) => {
                hello.cluster = Some(serving.state.cluster.clone());
                hello.version = serving.state.version;
                hello.pairs = serving.own.as_ref().map(|(_, shard)| shard.rough_size().pairs);
            }
            (_, Role::Member { view }) if self.is_fresh() => hello.view = Some(hello_view(view)),
            _ => {}
        }
        hello
    }

    /// The pairs of the ranges that this node's shard owns.
    pub fn count(&self) -> u64 {
        self.shard().map_or(0, |shard| shard.size().pairs)
    }

    /// Describes a shard, counted by its own node.
    ///
    /// # Errors
    /// [`Error::NotServing`] without a view, [`Error::NotFound`] where there is no such shard.
    pub fn shard_info(&self, id: &str) -> Result<ShardInfo, Error> {
        let standing = self.standing();
        let serving = standing.serving()?;
        let shards = &serving.state.view.shards;
        let shard = shards.iter().find(|shard| shard.id.to_string() == id).ok_or_else(|| {
            Error::NotFound(format!("There is no shard {id}: allowed is 1 to {}", shards.len()))
        })?;
        let key_count = if serving.holds(shard) {
            Some(self.count())
        } else {
            self.ask_holder(shard.group, &shard.replicas, &Order::Count, COUNT_TIMEOUT)
        };
        Ok(ShardInfo { shard_id: id.to_owned(), key_count, replicas: shard.replicas.clone() })
    }

    /// The audit of one group, by its own node.
    pub fn audit_of(&self, group: u64, replicas: &[Address]) -> Option<Audit> {
        match self.shard().filter(|shard| shard.group() == group) {
            Some(shard) => Some(shard.audit()),
            None => self.ask_holder(group, replicas, &Order::Audit, AUDIT_TIMEOUT),
        }
    }

    /// Asks the node that holds a group, if it is the start of it that is meant.
    fn ask_holder<T: serde::de::DeserializeOwned>(
        &self,
        group: u64,
        replicas: &[Address],
        order: &Order,
        timeout: Duration,
    ) -> Option<T> {
        let state = self.state()?;
        replicas.iter().filter(|node| **node != self.address).find_map(|node| {
            let instance = state.holder(group, node)?;
            let answer = self.order(node, instance, order, Deadline::after(now(), timeout));
            answer.inspect_err(|error| log::debug!("{node} was asked about its shard: {error}")).ok()
        })
    }
}
