//! Questions about the cluster: who this node is, counts, shards.

use std::time::Duration;

use serde::Serialize;

use super::membership::hello_view;
use super::state::{Node, Serving, ServingState};
use crate::clock::{Deadline, now};
use crate::config::Role;
use crate::model::address::Address;
use crate::model::view;
use crate::wire::orders;
use crate::wire::{self, Hello, MetaReplica};

/// A shard whose node does not count within this time counts as not reached.
const COUNT_TIMEOUT: Duration = Duration::from_millis(500);

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
            incarnation: self.incarnation,
            view: None,
            cluster: None,
            version: 0,
            pairs: None,
            local: self
                .meta
                .local()
                .map(|local| MetaReplica { group: local.group, replica: local.replica() }),
            bound: self.bound(),
            large_memory: Some(self.large_memory),
            room: self.room_left(),
            has_secret: self.secret.is_some(),
            durable: self.is_durable(),
            proof: proof.map(|(secret, challenge)| wire::proof(secret, challenge, &self.address)),
        };
        match (&*self.serving_state(), &self.role) {
            (ServingState::Serving(serving), _) => {
                hello.cluster = Some(serving.state.cluster.clone());
                hello.version = serving.state.version;
                hello.pairs = serving.own.first().map(|(_, shard)| shard.rough_size().pairs);
            }
            (_, Role::Member { view }) if self.is_fresh() => hello.view = Some(hello_view(view)),
            _ => {}
        }
        hello
    }

    /// The shard that this node is named for in the view.
    pub fn named_shard<'a>(&self, serving: &'a Serving) -> Option<&'a view::Shard> {
        let shards = &serving.state.view.shards;
        // One that is still here, although the node has left its group, does not count.
        let is_named = |group: u64| serving.state.replicas_of(group).contains(&&self.address);
        if let Some((index, _)) = serving.own.iter().find(|(_, own)| is_named(own.group())) {
            return shards.get(*index);
        }
        // A shard with one replica is lost with it; one with several waits for this node's to come back.
        let mut own = shards.iter().filter(|shard| shard.replicas.contains(&self.address));
        own.find(|shard| shard.replicas.len() > 1)
    }

    /// The pairs of the ranges that a shard owns, as its leader counts them; what this node's replica has where there is no leader.
    pub async fn count_of(&self, serving: &Serving, shard: &view::Shard) -> Option<u64> {
        let deadline = Deadline::after(now(), COUNT_TIMEOUT);
        let own = serving.own_of(shard.group);
        if let Some(own) = own
            && self.leads(own).is_ok()
            && self.confirm(own, deadline).await.is_ok()
        {
            return Some(own.size().pairs);
        }
        let order = orders::Count { group: shard.group };
        let counted = self.order_leader(&serving.state, shard.group, &order, deadline).await;
        let counted = counted
            .inspect_err(|error| log::debug!("the pairs of shard {} are not known: {error}", shard.id));
        counted.ok().or_else(|| own.map(|own| own.size().pairs))
    }

    /// The node that leads a shard, as far as this one knows or can learn.
    pub fn leader_of(&self, shard: &view::Shard) -> Option<Address> {
        if let [only] = &shard.replicas[..] {
            return Some(only.clone());
        }
        match self.groups.local(shard.group) {
            Some(local) => local.leader().cloned(),
            None => self.leaders.of(shard.group),
        }
    }

    /// Describes a shard of a view, counted by its leader.
    pub async fn shard_info(&self, serving: &Serving, shard: &view::Shard) -> ShardInfo {
        let key_count = self.count_of(serving, shard).await;
        ShardInfo { shard_id: shard.id.to_string(), key_count, replicas: shard.replicas.clone() }
    }
}
