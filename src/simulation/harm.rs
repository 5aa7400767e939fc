//! What befalls the cluster: crashes, stops, pauses, partitions, slow links, clocks that jump, leaders that hand over.
//!
//! What was acknowledged is promised while every group keeps a majority of its voters, and a shard without replicas its only
//! node. In most seeds nothing crashes that would leave less; in harsh ones anything may, and the operator has to say so.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::process::{Process, Start, kill, start, stop};
use super::world::{World, address, place_of};
use crate::consensus::Status;
use crate::model::address::Address;
use crate::model::meta::{MetaState, wanted_voters};
use crate::node::state::Node;

/// What happens to nodes and network in a step.
pub(super) fn step(world: &Shared) {
    for place in 0..world.nodes.len() {
        let node = &world.nodes[place];
        if node.life.get() == 0 && node.back_at.get() <= world.now.get() {
            come_back(world, place);
        }
        world.note_apart(place);
    }
    if !world.harm.get() || world.newest().is_none() {
        return;
    }
    let place = world.draw(0..world.nodes.len());
    // No seed is without a crash and a partition, however seldom it allows them.
    if world.tally.borrow().crashes == 0 && world.now.get() > super::HARMFUL_STEPS / 3 {
        (0..world.nodes.len()).for_each(|place| crash(world, place));
    }
    if world.tally.borrow().partitions == 0 && world.now.get() > super::HARMFUL_STEPS / 2 {
        cut(world, place);
    }
    if world.now.get() > 3 * super::HARMFUL_STEPS && !is_harmed(world) {
        // Nothing could be lost that the cluster promises to survive: so it is more.
        if world.on_disks {
            (0..world.nodes.len()).for_each(|place| cut_power(world, place));
        } else {
            disaster(world);
        }
    }
    if world.now.get() > 2 * super::HARMFUL_STEPS {
        // It is enough; view changes have to come to their ends before something may crash.
        let mut network = world.network.borrow_mut();
        network.cut.clear();
        return network.slow.clear();
    }
    match world.draw(0..1000) {
        0..4 if world.on_disks => cut_power(world, place),
        34..36 if world.on_disks => (0..world.nodes.len()).for_each(|place| cut_power(world, place)),
        36..39 if world.on_disks && world.nodes[place].life.get() != 0 => {
            world.nodes[place].set_fuse(world.draw(0..60));
        }
        39 if world.on_disks => crash(world, place),
        0..4 => crash(world, place),
        4..6 => leave(world, place),
        6..9 => cut(world, place),
        9..20 => {
            world.network.borrow_mut().cut.clear();
            world.network.borrow_mut().slow.clear();
        }
        20..22 => {
            world.count(|tally| tally.pauses += 1);
            world.nodes[place].paused_until.set(world.now.get() + world.draw(1..300));
        }
        22..26 => {
            let begun = world.nodes[place].hand_over();
            world.count(|tally| tally.hand_overs += begun as u64);
        }
        26..29 => report_unreachable(world, place),
        29..31 => slow_down(world, place),
        31..33 => {
            world.count(|tally| tally.jumps += 1);
            world.nodes[place].wall.set(Duration::from_secs(world.draw(0..86_400)));
        }
        33 if world.is_harsh && !world.on_disks => disaster(world),
        _ => {}
    }
}

/// Harm is over: everything must become whole again.
pub(super) fn end(world: &Shared) {
    world.harm.set(false);
    let mut network = world.network.borrow_mut();
    network.cut.clear();
    network.slow.clear();
    (network.lost, network.doubled) = (0, 0);
    for node in &world.nodes {
        node.paused_until.set(0);
        node.back_at.set(node.back_at.get().min(world.now.get()));
    }
}

/// A node is started again: mostly as it was, and sometimes with the view of the moment, or with none.
fn come_back(world: &Shared, place: usize) {
    let newest = world.newest();
    if let Some(state) = newest.filter(|_| world.harm.get()) {
        let next = match world.draw(0..10) {
            0 | 1 => Some(Start::Nothing),
            2 | 3 => view_of(&state),
            _ => None,
        };
        world.count(|tally| tally.rejoined += u64::from(next.is_some()));
        *world.nodes[place].next.borrow_mut() = next;
    }
    start(world, place);
}

fn view_of(state: &MetaState) -> Option<Start> {
    let nodes: Vec<String> = state.view.nodes().map(Address::to_string).collect();
    let factor = state.view.repl_factor;
    let fits =
        nodes.len().is_multiple_of(factor) && nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len();
    fits.then(|| Start::View(nodes.join(","), factor))
}

fn crash(world: &Shared, place: usize) {
    let is_enough = world.tally.borrow().crashes > 0 && !world.harm.get();
    // What a node that is down goes by when it comes back with its disk is not known.
    if world.on_disks && !(world.nodes.iter().all(|node| node.life.get() != 0) && world.is_founded()) {
        return;
    }
    if is_enough || world.nodes[place].life.get() == 0 || !world.may_lose(place) {
        return;
    }
    world.count(|tally| tally.crashes += 1);
    kill(world, place);
    world.nodes[place].lose_disk();
}

/// A node stops in the middle of what it does, and comes back with its disk. It may be any, and any number of them.
fn cut_power(world: &Shared, place: usize) {
    if world.nodes[place].life.get() != 0 {
        world.count(|tally| tally.cuts += 1);
        kill(world, place);
    }
}

/// Some nodes crash at once, whatever that costs, but one that knows the cluster and is a part of it.
fn disaster(world: &Shared) {
    let known = world.knowing();
    let Some(spared) = known.get(world.draw(0..known.len().max(1))).copied() else { return };
    for place in 0..world.nodes.len() {
        if place != spared && world.nodes[place].life.get() != 0 && world.chance(40) {
            world.count(|tally| tally.disasters += 1);
            kill(world, place);
        }
    }
}

fn leave(world: &Shared, place: usize) {
    if world.nodes[place].life.get() != 0 && (world.on_disks || world.may_lose(place)) {
        stop(world, place);
    }
}

/// A transport may be wrong about who can be reached.
fn report_unreachable(world: &Shared, place: usize) {
    let groups = world.nodes[place].groups();
    let replicas: Vec<_> = groups
        .into_iter()
        .filter_map(|group| Some((group, world.nodes[place].status(group)?.replica)))
        .collect();
    for node in world.nodes.iter().filter_map(Process::node) {
        for (group, replica) in &replicas {
            node.groups.unreachable(*group, *replica);
        }
    }
}

/// Cuts a node off, or the cluster in two, or one direction only.
fn cut(world: &Shared, place: usize) {
    world.count(|tally| tally.partitions += 1);
    world.last_cut.set(world.now.get());
    let count = world.nodes.len();
    let side: Vec<bool> = match world.draw(0..3) {
        0 => (0..count).map(|other| other == place).collect(),
        _ => (0..count).map(|_| world.chance(50)).collect(),
    };
    let both = world.chance(70);
    let mut network = world.network.borrow_mut();
    for from in 0..count {
        for to in 0..count {
            if side[from] != side[to] && (both || side[from]) {
                network.cut.insert((from, to));
            }
        }
    }
}

/// Links of a node become slow.
fn slow_down(world: &Shared, place: usize) {
    world.count(|tally| tally.slowed += 1);
    for other in 0..world.nodes.len() {
        let delay = world.draw(5..60);
        if other != place && world.chance(60) {
            let mut network = world.network.borrow_mut();
            network.slow.insert((place, other), delay);
            network.slow.insert((other, place), delay);
        }
    }
}

impl World {
    /// The newest state that was agreed on.
    pub(super) fn newest(&self) -> Option<Arc<MetaState>> {
        let mut oracle = self.oracle.borrow_mut();
        if oracle.newest().is_none()
            && let Some(first) = self.nodes[0].state()
        {
            oracle.learn(&first);
        }
        oracle.newest()
    }

    /// Notes whether a node is a part of another cluster now.
    pub(super) fn note_apart(&self, place: usize) {
        let node = &self.nodes[place];
        if node.node().is_some_and(|node| !self.is_ours(&node)) {
            node.apart.set(self.now.get());
        }
    }

    /// Whether a node is of the cluster, and not one of its own.
    pub(super) fn is_ours(&self, node: &Node) -> bool {
        let ours = self.newest().map(|state| state.cluster.clone());
        node.state().is_none_or(|state| Some(&state.cluster) == ours.as_ref())
    }

    /// The node that leads a group in the highest term.
    pub(super) fn leader(&self, group: u64) -> Option<usize> {
        let leads = |place: usize| Some((self.nodes[place].leads_in(group)?, place));
        (0..self.nodes.len()).filter_map(leads).max().map(|(_, place)| place)
    }

    /// The nodes that know the cluster and are a part of it: without any it is gone.
    fn knowing(&self) -> Vec<usize> {
        let Some(newest) = self.newest() else { return Vec::new() };
        let knows = |place: &usize| {
            let state = self.nodes[*place].state();
            let is_member = newest.view.nodes().any(|node| *node == address(*place));
            self.nodes[*place].stays()
                && is_member
                && state.is_some_and(|state| state.cluster == newest.cluster)
        };
        (0..self.nodes.len()).filter(knows).collect()
    }

    /// Whether all replicas are where the view says, and no other ones are wanted.
    fn is_founded(&self) -> bool {
        self.newest().is_some_and(|newest| {
            let has = |group: u64, node: &Address| self.nodes[place_of(node)].status(group).is_some();
            let mut shards = newest.view.shards.iter();
            newest.change.is_none()
                && shards.all(|shard| shard.replicas.iter().all(|node| has(shard.group, node)))
        })
    }

    /// Whether the cluster promises to survive that a node loses its memory now.
    fn may_lose(&self, place: usize) -> bool {
        if !self.knowing().iter().any(|other| *other != place) {
            return false;
        }
        let groups: BTreeSet<u64> = self.nodes.iter().flat_map(Process::groups).collect();
        groups.into_iter().all(|group| self.survives(group, place)) && !self.holds_alone(place)
    }

    /// Whether a group keeps a majority without a node, by the members that whoever is furthest knows of.
    fn survives(&self, group: u64, place: usize) -> bool {
        let Some(newest) = self.newest() else { return false };
        let statuses = self.nodes.iter().filter_map(|node| node.status(group));
        let Some(status) = statuses.max_by_key(|status| (status.term, status.last)) else { return true };
        if group != newest.group && newest.index_of(group).is_none() {
            return true;
        }
        // A change that a log holds may yet make other members of these.
        let changing = self.nodes.iter().any(|node| {
            node.status(group).is_some_and(|one| status.members.contains_key(&one.replica))
                && node.has_pending_change(group)
        });
        let lives = |replica: &u64| {
            let there = status.members.get(replica).map(place_of).filter(|there| *there != place);
            there.is_some_and(|there| self.holds_replica(there, group, *replica))
        };
        let is_majority = |voters: &Vec<u64>| {
            voters.is_empty() || 2 * voters.iter().filter(|voter| lives(voter)).count() > voters.len()
        };
        let living = status.voters.iter().filter(|voter| lives(voter)).count();
        !changing
            && is_majority(&status.voters)
            && is_majority(&status.outgoing)
            && survives_a_change(&status, &wanted(&newest, group), living, place)
            && wanted(&newest, group).iter().all(|nodes| {
                let runs = |node: &&Address| place_of(node) != place && self.nodes[place_of(node)].stays();
                nodes.is_empty() || 2 * nodes.iter().filter(runs).count() > nodes.len()
            })
    }

    /// Whether a replica is at a node, or will be when it hears that it founds the group.
    fn holds_replica(&self, place: usize, group: u64, replica: u64) -> bool {
        let node = &self.nodes[place];
        let founds = self.newest().and_then(|newest| newest.holder(group, &address(place))) == Some(replica);
        let is_there = node.status(group).is_some_and(|status| status.replica == replica);
        node.stays() && (is_there || founds && node.holder.get() == replica)
    }

    /// Whether a node holds a shard without replicas that is its own, or will be, or keeps a new one whose founders have not
    /// all heard of it.
    fn holds_alone(&self, place: usize) -> bool {
        let Some(newest) = self.newest() else { return true };
        let life = self.nodes[place].holder.get();
        newest.view.shards.iter().any(|shard| {
            let is_holder = newest.holder(shard.group, &address(place)) == Some(life);
            let held = self.nodes[place].shard(shard.group);
            let is_kept = held.as_ref().is_some_and(|held| !held.is_logged());
            let is_open =
                newest.index_of(shard.group).is_some_and(|index| newest.view.ranges(index).next().is_some());
            let has_replicas = self.nodes.iter().any(|node| node.status(shard.group).is_some());
            let is_founding = is_holder && held.is_none() && has_replicas;
            is_kept || is_founding || is_holder && is_open && shard.replicas.len() == 1
        })
    }
}

/// Whether a group also keeps a majority without a node if its leader makes a change that it has considered just before: there may be one
/// on its way at any time, as nobody knows yet that the node is gone. `living` are the voters that are left.
fn survives_a_change(status: &Status, wanted: &[Vec<Address>], living: usize, place: usize) -> bool {
    let is_here = |id: &u64| status.members.get(id).map(place_of) == Some(place);
    let is_wanted = |id: &u64| {
        let node = status.members.get(id);
        node.is_some_and(|node| wanted.iter().all(|nodes| nodes.is_empty() || nodes.contains(node)))
    };
    let voters = status.voters.len();
    // Puts a learner that is lost in for a voter that lives.
    let replaced = !status.learners.iter().any(is_here) || 2 * living >= voters + 3;
    // Takes a voter that lives out.
    let is_complete = status.voters.iter().all(is_wanted);
    let removed = is_complete || !status.voters.iter().any(is_here) || 2 * living >= voters + 2;
    replaced && removed
}

/// The nodes that a group is to consist of, before and after the view change that is under way.
fn wanted(state: &MetaState, group: u64) -> [Vec<Address>; 2] {
    let planned = state.change.iter().filter_map(|change| change.planned.as_ref());
    let planned: Vec<_> = planned.flat_map(|planned| &planned.shards).collect();
    let view: Vec<_> = state.view.shards.iter().collect();
    [view, planned].map(|shards| {
        if group == state.group {
            let nodes: Vec<_> = shards.iter().flat_map(|shard| &shard.replicas).cloned().collect();
            return wanted_voters(&nodes).to_vec();
        }
        let shard = shards.iter().find(|shard| shard.group == group);
        shard.map_or_else(Vec::new, |shard| shard.replicas.clone())
    })
}

/// The least that a seed needs.
pub(super) fn is_harmed(world: &Rc<World>) -> bool {
    let tally = world.tally.borrow();
    let asked = tally.reads + tally.writes + tally.unknown + tally.refused;
    tally.crashes + tally.disasters + tally.cuts > 0 && tally.partitions > 0 && asked >= 200
}
