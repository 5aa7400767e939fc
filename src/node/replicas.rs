//! The replicas of shards that this node holds, and how it comes to hold them and to let them go.
//!
//! A shard with one replica is kept by its node alone. One with several is kept by a group, whose members are the group's own
//! affair: the meta state says who founds it and who should be in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::host::Machine;
use super::raft::{Ended, Invitation};
use super::shard_machine::ShardMachine;
use super::state::{Node, Serving, ServingState};
use crate::clock::{Deadline, now, ticks_ms};
use crate::consensus::Members;
use crate::dice;
use crate::failpoints::failpoint;
use crate::model::address::Address;
use crate::model::meta::{MetaState, wanted_voters};
use crate::model::shard::Shard;
use crate::model::view;

/// A replica that was just made takes its place within this time.
const STARTING: Duration = Duration::from_secs(1);
/// The thread that drives the groups gives one up within this time, however busy the machine is.
const GIVING_UP: Duration = Duration::from_mins(1);

/// What the node holds.
#[derive(Default)]
pub(super) struct Replicas(Mutex<Holdings>);

#[derive(Default)]
struct Holdings {
    shards: BTreeMap<u64, Arc<Shard>>,
    /// The groups that this start of the node has founded: none is founded twice.
    founded: BTreeSet<u64>,
    /// The replica id in each group, and since when.
    locals: BTreeMap<u64, (u64, Instant)>,
    /// Index and term at which the log of a shard has ended that this node keeps alone since: a log that it has later goes on from there, so
    /// that a replica of the former that nobody has told of its end is never taken for one of the latter.
    ended: BTreeMap<u64, Ended>,
}

impl Holdings {
    fn drop_shard(&mut self, node: &Node, group: u64) {
        self.locals.remove(&group);
        self.ended.remove(&group);
        node.forget_age(group);
        if self.shards.remove(&group).is_some_and(|shard| shard.is_logged()) {
            node.groups.give_up(group);
        }
    }

    /// Takes part in a group, as a founder among these voters, or to be added to it.
    fn start_replica(&mut self, node: &Node, shard: &Arc<Shard>, replica: u64, voters: Option<Members>) {
        let group = shard.group();
        match voters {
            Some(_) => node.begin_age(group),
            None => node.forget_age(group),
        }
        shard.set_logged(true);
        self.locals.insert(group, (replica, now()));
        // Who has been a member of a group never founds it: the end of a view change may name it as the holder.
        self.founded.insert(group);
        let machine = Box::new(ShardMachine::new(Arc::clone(shard)));
        let machine = node.host.machine(machine, Machine::Shard(shard));
        match voters {
            Some(voters) => {
                let after = self.ended.get(&group).copied().unwrap_or_default();
                node.groups.found_after(group, replica, voters, machine, after);
            }
            None => node.groups.join(group, replica, machine),
        }
    }
}

impl Node {
    /// The groups that a node was ever a member of, as it starts again with its folder: it founds none of them again.
    pub(super) fn resume_founded(&self, known: Vec<u64>) {
        self.replicas.0.lock().founded.extend(known);
    }

    /// A replica that goes on from the folder.
    pub(super) fn resume_shard(&self, shard: Arc<Shard>, replica: u64) {
        let group = shard.group();
        // How old it is shows once its leader was asked.
        self.forget_age(group);
        let mut held = self.replicas.0.lock();
        held.locals.insert(group, (replica, now()));
        held.shards.insert(group, shard);
    }

    /// The shards of a state that this node holds replicas of, and the one that an earlier start of it held alone.
    pub(super) fn place_in(
        &self,
        state: &MetaState,
        is_of_cluster: bool,
    ) -> (Vec<(usize, Arc<Shard>)>, Option<u32>) {
        let mut held = self.replicas.0.lock();
        if is_of_cluster {
            self.succeed_lost_groups(&mut held, state);
        }
        let start = |group: u64| state.holder(group, &self.address);
        let stays = |group: u64, shard: &Shard| {
            let is_there = is_of_cluster && state.index_of(group).is_some();
            is_there && (shard.is_logged() || start(group) == Some(self.incarnation))
        };
        let gone: Vec<u64> = held
            .shards
            .iter()
            .filter(|(group, shard)| !stays(**group, shard))
            .map(|(group, _)| *group)
            .collect();
        for group in gone {
            held.drop_shard(self, group);
        }
        if !is_of_cluster {
            held.founded.clear();
        }
        let (mut own, mut lost) = (Vec::new(), None);
        for (index, shard) in state.view.shards.iter().enumerate() {
            if let Some(replica) = self.hold(&mut held, state, shard) {
                own.push((index, replica));
            } else if shard.replicas.len() == 1
                && start(shard.group).is_some()
                && state.view.ranges(index).next().is_some()
            {
                lost = Some(shard.id);
            }
        }
        // The shard that the view names the node for comes first.
        own.sort_by_key(|(index, _)| !state.view.shards[*index].replicas.contains(&self.address));
        (own, lost)
    }

    /// Founds the groups that take the place of those that have lost their majority, where this node's replica is the one to go on from.
    fn succeed_lost_groups(&self, held: &mut Holdings, state: &MetaState) {
        for (new, old) in &state.successors {
            if state.holder(*new, &self.address) != Some(self.incarnation) || held.shards.contains_key(new) {
                continue;
            }
            let Some(shard) = held.shards.remove(old) else { continue };
            if !held.founded.insert(*new) {
                continue;
            }
            log::warn!("group {new} takes the place of group {old}, from what this node holds");
            held.locals.remove(old);
            // In this order the thread that drives the groups does them, and nothing is applied in between.
            self.groups.conclude(*old);
            shard.succeed(*new);
            shard.begin_generation(state.generation);
            let replica = dice::id();
            let voters = Members::from([(replica, self.address.clone())]);
            held.start_replica(self, &shard, replica, Some(voters));
            held.shards.insert(*new, shard);
        }
    }

    /// This node's replica of a shard: the one that it has, or a new one where this start of the node is to found it.
    fn hold(&self, held: &mut Holdings, state: &MetaState, shard: &view::Shard) -> Option<Arc<Shard>> {
        let group = shard.group;
        // Who founded a group long ago and is none of its nodes any more does not found it again.
        let is_founder = state.holder(group, &self.address) == Some(self.incarnation)
            && state.replicas_of(group).contains(&&self.address);
        let replica = match held.shards.get(&group) {
            Some(replica) => Arc::clone(replica),
            // It has never been written to: only this start of the node may hold it, and it has not before.
            // A successor goes on from what is held, and is not begun with nothing.
            None if is_founder && !state.successors.contains_key(&group) && held.founded.insert(group) => {
                let (ranges, epoch) = state.origins.get(&group).cloned().unwrap_or_default();
                let replica = Arc::new(Shard::new(group, state.hash_key, ranges, epoch));
                replica.set_history_limit(self.watch_history);
                // All that begin with the group count from the same time, whatever their clocks show.
                replica.set_clock(0, ticks_ms());
                held.shards.insert(group, Arc::clone(&replica));
                if shard.replicas.len() > 1 || self.is_durable() {
                    let voters = state.holders[&group].iter();
                    let voters = voters.map(|(node, incarnation)| (*incarnation, node.clone())).collect();
                    held.start_replica(self, &replica, self.incarnation, Some(voters));
                }
                replica
            }
            None => return None,
        };
        if !replica.is_logged() && state.replicas_of(group).len() > 1 {
            let own = dice::id();
            log::info!(
                "shard {} is to have several replicas: its writes go through a log from now on",
                shard.id
            );
            held.start_replica(self, &replica, own, Some(Members::from([(own, self.address.clone())])));
        }
        Some(replica)
    }

    /// The replica id of this node in a shard's group, of which it is to become a member: drawn when it is first asked for, and
    /// never used again.
    ///
    /// # Errors
    /// A sentence, where the node is not to be a member as far as it knows.
    pub fn join_shard(&self, group: u64, invitation: Invitation) -> Result<u64, String> {
        let _guard = self.learning.lock();
        let serving_state = self.serving_state();
        let serving = serving_state.serving().map_err(|error| error.to_string())?;
        if self.is_leaving() {
            return Err(format!("{} is stopping", self.address));
        }
        if !serving.state.replicas_of(group).contains(&&self.address) {
            return Err(format!(
                "{} is to hold no replica of group {group}, as far as it knows",
                self.address
            ));
        }
        let mut held = self.replicas.0.lock();
        let is_there = self.groups.local(group).is_some_and(|local| invitation.goes_on_with(&local));
        match held.locals.get(&group) {
            Some((replica, since)) if is_there || now() - *since < STARTING => return Ok(*replica),
            _ => {}
        }
        let replica = dice::id();
        let shard = Arc::new(Shard::new(group, serving.state.hash_key, [], 0));
        shard.set_history_limit(self.watch_history);
        shard.set_clock(0, ticks_ms());
        held.start_replica(self, &shard, replica, None);
        held.shards.insert(group, shard);
        drop(held);
        self.place_again(serving);
        Ok(replica)
    }

    /// Lets go of a replica that is a member of its group no more.
    pub fn leave_shard(&self, group: u64) {
        let _guard = self.learning.lock();
        self.replicas.0.lock().drop_shard(self, group);
        if let ServingState::Serving(serving) = &*self.serving_state() {
            self.place_again(serving);
        }
    }

    /// Has a shard kept by this node alone again, where it is the only member of the group. Where news that came meanwhile want several
    /// replicas, it has a log again at once.
    pub async fn end_log(&self, shard: &Shard) {
        let group = shard.group();
        // Nothing is held meanwhile that the thread that drives the groups may wait for.
        let ended = self.groups.give_up_and_wait(group, Deadline::after(now(), GIVING_UP)).await;
        let Some(ended) = ended else { return };
        failpoint!("log-ending");
        let _guard = self.learning.lock();
        {
            let mut held = self.replicas.0.lock();
            held.locals.remove(&group);
            if held.shards.contains_key(&group) {
                held.ended.insert(group, ended);
            }
        }
        shard.set_logged(false);
        if let ServingState::Serving(serving) = &*self.serving_state() {
            if let Some(index) = serving.state.index_of(group) {
                shard.learn(&serving.state.directive(index));
            }
            self.place_again(serving);
        }
    }

    /// What is held has changed, and the state has not.
    fn place_again(&self, serving: &Serving) {
        let (own, lost) = self.place_in(&serving.state, true);
        self.set_serving_state(ServingState::Serving(Serving::new(&serving.state, own, lost)));
    }

    /// The groups in which this node should have a vote and has none, a sentence each.
    pub(super) fn missing_votes(&self, serving: &Serving) -> Vec<String> {
        let state = &serving.state;
        // While the view is being changed, the voters of the meta group are, too.
        let should_vote = state.change.is_none() && wanted_voters(&state.nodes()).contains(&self.address);
        let votes = self.meta.local().is_some_and(|local| local.group == state.group && local.is_settled());
        let meta = (should_vote && !votes)
            .then(|| "the group that holds the view: this node is to be taken in as a voter".to_owned());
        meta.into_iter().chain(self.missing_shard_votes(serving)).collect()
    }

    fn missing_shard_votes(&self, serving: &Serving) -> Vec<String> {
        let shards = serving.state.view.shards.iter().filter(|shard| shard.replicas.len() > 1);
        let own = shards.filter(|shard| shard.replicas.contains(&self.address));
        own.filter_map(|shard| match self.groups.local(shard.group) {
            Some(local) if !local.is_settled() => {
                Some(format!("shard {}: this node's replica is catching up", shard.id))
            }
            Some(local) if local.leader().is_none() => Some(self.leaderless(shard, &local.voters())),
            Some(_) => None,
            None => Some(format!("shard {}: this node is to be taken in as a replica", shard.id)),
        })
        .collect()
    }

    /// What is said of a shard whose replicas have no leader.
    pub(super) fn leaderless(&self, shard: &view::Shard, voters: &[Address]) -> String {
        let needed = voters.len() / 2 + 1;
        let missing: Vec<&str> = voters
            .iter()
            .filter(|node| **node != self.address && !self.groups.hears(node))
            .map(Address::as_str)
            .collect();
        let missing =
            if missing.is_empty() { String::new() } else { format!("; not reached: {}", missing.join(", ")) };
        format!("shard {} has no leader: it needs {needed} of {} replicas{missing}", shard.id, voters.len())
    }
}
