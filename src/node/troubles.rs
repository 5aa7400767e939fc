//! What is not as it should be in the cluster, as far as this node sees it: in figures for machines, in sentences for people.

use super::problems::{self, lost_shard};
use super::state::{Node, Serving, ServingState};
use crate::model::address::Address;
use crate::wire::status::Problem;

/// What a node sees of its cluster.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Troubles {
    /// The nodes that it does not reach: of the view, or of `VIEW` until it knows one; of a follower the main.
    pub unreached: Vec<Address>,
    /// The shards that it holds replicas of.
    pub held: Vec<HeldShard>,
    /// The shards of the view that are known to be lost, by their ids, and the node of each.
    pub lost: Vec<(u32, Address)>,
}

/// A shard that a node holds a replica of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldShard {
    /// The id of the shard.
    pub id: u32,
    /// What its leader knows of the other replicas; nothing where this node does not lead it.
    pub led: Option<Led>,
}

/// A shard as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// How many replicas it should have.
    pub wanted: usize,
    /// Their nodes of which nothing is heard, or that have no vote yet, since they catch up.
    pub missing: Vec<Address>,
}

impl Node {
    /// What this node sees of its cluster.
    pub fn troubles(&self) -> Troubles {
        match &*self.serving_state() {
            ServingState::Follower => {
                Troubles { unreached: self.unreached(&self.main_address()), ..Troubles::default() }
            }
            ServingState::Waiting(_) => {
                Troubles { unreached: self.unreached(&self.seeds()), ..Troubles::default() }
            }
            ServingState::Serving(serving) => {
                let lost = serving.state.lost_shards().into_iter().map(|(id, node)| (id, node.clone()));
                let mut lost: Vec<_> = lost.filter(|(_, node)| *node != self.address).collect();
                lost.extend(serving.lost.map(|id| (id, self.address.clone())));
                Troubles { unreached: self.unreached(&serving.state.nodes()), held: self.held(serving), lost }
            }
        }
    }

    fn main_address(&self) -> Vec<Address> {
        self.main().map(|main| main.address().clone()).into_iter().collect()
    }

    fn unreached(&self, nodes: &[Address]) -> Vec<Address> {
        let down = self.peers.down();
        let is_down = |node: &&Address| down.iter().any(|peer| peer.address() == *node);
        nodes.iter().filter(is_down).cloned().collect()
    }

    fn held(&self, serving: &Serving) -> Vec<HeldShard> {
        let shards = serving.own.iter().map(|(index, shard)| {
            let id = serving.state.view.shards[*index].id;
            if !shard.is_logged() {
                return HeldShard { id, led: Some(Led { wanted: 1, missing: Vec::new() }) };
            }
            HeldShard { id, led: self.led(serving, shard.group()) }
        });
        shards.collect()
    }

    /// What this node knows of a group, where it leads it. While the view is being changed, replicas come and go as they should.
    fn led(&self, serving: &Serving, group: u64) -> Option<Led> {
        let local = self.groups.local(group).filter(|local| local.leads())?;
        let voters = local.voters();
        let wanted = match &serving.state.change {
            None => serving.state.wanted_replicas(group),
            Some(_) => &voters,
        };
        let is_there =
            |node: &Address| *node == self.address || voters.contains(node) && self.groups.hears(node);
        let missing = wanted.iter().filter(|node| !is_there(node)).cloned().collect();
        Some(Led { wanted: wanted.len(), missing })
    }

    /// What an operator should know of the cluster of a node that serves all the same, a sentence each.
    pub(super) fn told_troubles(&self) -> Vec<String> {
        let serving_state = self.serving_state();
        let Ok(serving) = serving_state.serving() else { return Vec::new() };
        let Troubles { unreached, held, lost } = self.troubles();
        let unreached = unreached.iter().map(|node| problems::not_reached(&serving.state, node).what);
        let missing = held.iter().filter_map(lacking).map(|problem| problem.what);
        // Its own is why the node is not ready.
        let lost = lost.iter().filter(|(_, node)| *node != self.address);
        let lost = lost.map(|(id, node)| lost_shard(*id, node));
        let view = self.leaderless_view(serving).map(|problem| problem.what);
        unreached.chain(missing).chain(lost).chain(view).collect()
    }

    /// What this node sees of the groups that it is in, which others may not.
    pub(super) fn seen_problems(&self, serving: &Serving) -> Vec<Problem> {
        self.held(serving).iter().filter_map(lacking).chain(self.leaderless_view(serving)).collect()
    }

    /// That nobody leads the group that holds the view, where this node has a vote in it.
    fn leaderless_view(&self, serving: &Serving) -> Option<Problem> {
        let local = self.meta.local().filter(|local| local.group == serving.state.group && local.votes())?;
        if local.leader().is_some() {
            return None;
        }
        let voters = local.voters();
        let silent = voters.iter().filter(|node| **node != self.address && !self.groups.hears(node));
        let silent: Vec<Address> = silent.cloned().collect();
        Some(problems::view_without_leader(voters.len() / 2 + 1, voters.len(), &silent))
    }
}

fn lacking(shard: &HeldShard) -> Option<Problem> {
    let Led { wanted, missing } = shard.led.as_ref()?;
    (!missing.is_empty()).then(|| problems::lacking(shard.id, *wanted, missing))
}
