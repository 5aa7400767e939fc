//! Who does the cluster harm: crashes, stops, pauses, partitions, leaders that hand over.
//!
//! What was acknowledged is promised only while every group keeps a majority of its voters, and a shard without replicas its only
//! node. So nothing crashes that would leave less.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::keeper::is_out;
use super::node::{kill, start};
use super::world::{META, World, address, place_of};
use super::{Missing, Shared};
use crate::consensus::Status;
use crate::model::address::Address;
use crate::model::meta::{MetaState, Wanted, wanted_voters};
use crate::model::view::View;

/// The only node that loses its memory where nodes come back under their old ids: so no majority ever does.
const FORGETFUL: usize = 0;

/// A node has so many steps to take leave of its groups.
const LEAVING_STEPS: u64 = 400;

/// What happens to nodes and network in a step.
pub(super) fn step(world: &Shared) {
    for place in 0..world.nodes.len() {
        let node = &world.nodes[place];
        if node.life.get() == 0 {
            if node.back_at.get() <= world.now.get() {
                start(world, place);
            }
        } else if node.is_leaving.get() && is_out(world, place) && world.may_lose(place) {
            world.count(|tally| tally.stops += 1);
            kill(world, place);
        } else if node.leaving_until.get() < world.now.get() {
            node.is_leaving.set(false);
        }
    }
    if !world.harm.get() {
        return;
    }
    let mut place = world.draw(0..world.nodes.len());
    if world.without == Missing::OLD_ID && world.chance(50) {
        place = FORGETFUL;
    }
    // No seed is without a crash and a partition, however seldom it allows them.
    if world.tally.borrow().crashes == 0 && world.now.get() > super::HARMFUL_STEPS / 3 {
        (0..world.nodes.len()).for_each(|place| crash(world, place));
    }
    if world.tally.borrow().partitions == 0 && world.now.get() > super::HARMFUL_STEPS / 2 {
        cut(world, place);
    }
    if world.now.get() > 2 * super::HARMFUL_STEPS {
        // It is enough; view changes have to come to their ends before something may crash.
        return world.network.borrow_mut().cut.clear();
    }
    match world.draw(0..1000) {
        0..4 => crash(world, place),
        4..6 => leave(world, place),
        6..11 => cut(world, place),
        11..20 => world.network.borrow_mut().cut.clear(),
        20..23 => {
            world.count(|tally| tally.pauses += 1);
            world.nodes[place].paused_until.set(world.now.get() + world.draw(1..200));
        }
        23..27 => hand_over(world, place),
        27..30 => {
            // A transport may be wrong about who can be reached.
            let seats: Vec<_> = world.nodes[place].memory().map_or_else(Vec::new, |node| {
                node.seats.iter().map(|(group, seat)| (*group, seat.0)).collect()
            });
            for node in &world.nodes {
                if let Some(mut node) = node.memory() {
                    for (group, replica) in &seats {
                        node.driver.report_unreachable(*group, *replica);
                    }
                }
            }
        }
        _ => {}
    }
}

/// Harm is over: everything must become whole again.
pub(super) fn end(world: &Shared) {
    world.harm.set(false);
    let mut network = world.network.borrow_mut();
    network.cut.clear();
    (network.lost, network.doubled) = (0, 0);
    for node in &world.nodes {
        node.paused_until.set(0);
        node.back_at.set(node.back_at.get().min(world.now.get()));
    }
}

fn crash(world: &Shared, place: usize) {
    let is_enough = world.tally.borrow().crashes > 0 && !world.harm.get();
    if is_enough || world.nodes[place].life.get() == 0 || !world.may_lose(place) {
        return;
    }
    world.count(|tally| tally.crashes += 1);
    if world.without == Missing::OLD_ID {
        let seats = world.at(place).seats.iter().map(|(group, seat)| (*group, seat.0)).collect();
        world.nodes[place].old_ids.replace(seats);
    }
    kill(world, place);
}

fn leave(world: &Shared, place: usize) {
    let node = &world.nodes[place];
    let is_asked = node.life.get() != 0 && world.may_lose(place) && world.without != Missing::OLD_ID;
    if is_asked && !node.is_leaving.replace(true) {
        node.leaving_until.set(world.now.get() + LEAVING_STEPS);
    }
}

fn hand_over(world: &Shared, place: usize) {
    let Some(mut node) = world.nodes[place].memory() else { return };
    let groups: Vec<u64> = node.seats.keys().copied().collect();
    let begun = groups.into_iter().filter(|group| node.driver.hand_over(*group, None)).count();
    drop(node);
    world.count(|tally| tally.hand_overs += begun as u64);
}

/// Cuts a node off, or the cluster in two, or one direction only.
fn cut(world: &Shared, place: usize) {
    world.count(|tally| tally.partitions += 1);
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

impl World {
    /// The node that leads a group in the highest term.
    pub(super) fn leader(&self, group: u64) -> Option<usize> {
        let leads = |place: usize| Some((self.nodes[place].leads_in(group)?, place));
        (0..self.nodes.len()).filter_map(leads).max().map(|(_, place)| place)
    }

    fn statuses(&self, group: u64) -> impl Iterator<Item = (usize, Status)> {
        (0..self.nodes.len()).filter_map(move |place| Some((place, self.nodes[place].status(group)?)))
    }

    /// Some nodes that run, for a view.
    pub(super) fn some_view(&self) -> Wanted {
        let runs = |place: &usize| self.nodes[*place].life.get() != 0 && !self.nodes[*place].is_leaving.get();
        let mut nodes: Vec<Address> = (0..self.nodes.len()).filter(runs).map(address).collect();
        let repl_factor = [1, 2, 2, 3, 3, 3][self.draw(0..6)].min(nodes.len().max(1));
        // No seed is without a node that may be lost.
        let is_late = self.tally.borrow().crashes == 0 && self.now.get() > super::HARMFUL_STEPS / 2;
        if is_late && nodes.len() > 3 {
            nodes.truncate(3);
        }
        let repl_factor = if is_late { nodes.len().clamp(1, 3) } else { repl_factor };
        let most = (nodes.len() / repl_factor).max(1);
        let shards = self.draw(1..=most.min(3));
        while nodes.len() > shards * repl_factor {
            nodes.swap_remove(self.draw(0..nodes.len()));
        }
        if View::check(&nodes, repl_factor).is_err() {
            nodes = vec![address(0)];
        }
        Wanted { nodes, repl_factor, accept_loss: Vec::new() }
    }

    /// Whether the cluster promises to survive that a node loses its memory now.
    fn may_lose(&self, place: usize) -> bool {
        if self.without == Missing::OLD_ID && place != FORGETFUL {
            return false;
        }
        self.groups().into_iter().all(|group| self.survives(group, place)) && !self.holds_alone(place)
    }

    fn groups(&self) -> BTreeSet<u64> {
        let of_nodes = self
            .nodes
            .iter()
            .filter_map(|node| node.memory().map(|node| node.driver.groups().collect::<Vec<_>>()));
        of_nodes.flatten().collect()
    }

    /// Whether a group keeps a majority without a node, by the members that whoever is furthest knows of.
    fn survives(&self, group: u64, place: usize) -> bool {
        let newest = self.newest();
        let furthest = self.statuses(group).max_by_key(|(_, status)| (status.term, status.last));
        let Some((_, status)) = furthest else { return true };
        if group != META && newest.index_of(group).is_none() {
            return true;
        }
        // A change that a log holds may yet make other members of these.
        let changing = self.nodes.iter().any(|node| {
            node.status(group).is_some_and(|one| status.members.contains_key(&one.replica))
                && node.memory().is_some_and(|node| node.driver.has_pending_change(group))
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
                let runs = |node: &&Address| place_of(node) != place && self.stays(place_of(node));
                nodes.is_empty() || 2 * nodes.iter().filter(runs).count() > nodes.len()
            })
    }

    /// Whether a node runs and is not about to stop: who is about to be taken out will not be missing from a majority, nor be part of
    /// one.
    fn stays(&self, place: usize) -> bool {
        self.nodes[place].life.get() != 0 && !self.nodes[place].is_leaving.get()
    }

    /// Whether a replica is at a node, or will be when it hears that it founds the group.
    fn holds_replica(&self, place: usize, group: u64, replica: u64) -> bool {
        let node = &self.nodes[place];
        let founds = self.newest().holder(group, &address(place)) == Some(replica);
        let is_there = node.status(group).is_some_and(|status| status.replica == replica);
        self.stays(place) && (is_there || founds && node.life.get() == replica)
    }

    /// Whether a node holds a shard without replicas that is its own, or will be, or keeps a new one whose founders have not
    /// all heard of it.
    fn holds_alone(&self, place: usize) -> bool {
        let (newest, life) = (self.newest(), self.nodes[place].life.get());
        newest.view.shards.iter().any(|shard| {
            let is_holder = newest.holder(shard.group, &address(place)) == Some(life);
            let held = self.nodes[place].shard(shard.group);
            let is_kept = held.as_ref().is_some_and(|held| !held.is_logged());
            let is_open =
                newest.index_of(shard.group).is_some_and(|index| newest.view.ranges(index).next().is_some());
            let is_founding = is_holder && held.is_none() && self.statuses(shard.group).next().is_some();
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
        if group == META {
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
    tally.crashes > 0 && tally.partitions > 0 && asked >= 200
}
