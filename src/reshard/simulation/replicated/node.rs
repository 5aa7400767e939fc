//! A node: its replicas and what it has learned, as `node::replicas` and `node::learn` have it.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use super::super::tasks::pause;
use super::Shared;
use super::machine::{AppliedState, MetaMachine, Told, Watched};
use super::world::{META, Packet, World, address, place_of};
use crate::consensus::{Driver, Envelope, Members, Status};
use crate::model::address::Address;
use crate::model::binary::Reader;
use crate::model::meta::MetaState;
use crate::model::shard::Shard;
use crate::model::view;

/// A replica that was just made takes its seat within so many steps.
const SEATING: u64 = 75;

#[derive(Default)]
pub(super) struct Node {
    /// The id of this start of the node; 0 while it does not run.
    pub(super) life: Cell<u64>,
    pub(super) paused_until: Cell<u64>,
    /// It is about to stop, and is to be taken out of all groups before.
    pub(super) is_leaving: Cell<bool>,
    /// If it is not by then, whoever stops it thinks better of it.
    pub(super) leaving_until: Cell<u64>,
    pub(super) back_at: Cell<u64>,
    pub(super) inbox: RefCell<Vec<Packet>>,
    running: RefCell<Option<Running>>,
    /// The replica ids of its last start, for when they are used again.
    pub(super) old_ids: RefCell<BTreeMap<u64, u64>>,
}

/// What a node has in its memory.
pub(super) struct Running {
    pub(super) driver: Driver<u64>,
    told: Told,
    has_input: bool,
    pub(super) known: Option<Arc<MetaState>>,
    pub(super) shards: BTreeMap<u64, Arc<Shard>>,
    /// The groups that this start of the node has founded or held a replica of: it does not found them any more. (The meta state goes
    /// on naming it as a holder after it has left.)
    founded: BTreeSet<u64>,
    /// The replica id in each group, and since when.
    pub(super) seats: BTreeMap<u64, (u64, u64)>,
    /// Where the logs of groups ended whose shards this node keeps alone.
    ended: BTreeMap<u64, (u64, u64)>,
    pub(super) meta: AppliedState,
    /// Who was last seen to lead a group.
    pub(super) leaders: BTreeMap<u64, usize>,
}

impl Node {
    pub(super) fn is_paused(&self, now: u64) -> bool {
        self.paused_until.get() > now
    }

    /// What it has in its memory, if it runs.
    pub(super) fn memory(&self) -> Option<RefMut<'_, Running>> {
        RefMut::filter_map(self.running.borrow_mut(), Option::as_mut).ok()
    }

    pub(super) fn status(&self, group: u64) -> Option<Status> {
        self.running.borrow().as_ref()?.driver.status(group)
    }

    /// Where its replica of a group stands, if it leads.
    pub(super) fn led(&self, group: u64) -> Option<Status> {
        self.leads_in(group).and_then(|_| self.status(group))
    }

    /// The term in which its replica of a group leads.
    pub(super) fn leads_in(&self, group: u64) -> Option<u64> {
        self.running.borrow().as_ref()?.driver.leads_in(group)
    }

    pub(super) fn shard(&self, group: u64) -> Option<Arc<Shard>> {
        self.running.borrow().as_ref()?.shards.get(&group).cloned()
    }

    /// Where the leader of a group is, as far as its replica knows.
    pub(super) fn leader_of(&self, group: u64) -> Option<usize> {
        leader_in(&self.status(group)?)
    }
}

/// Where the leader of a group is.
pub(super) fn leader_in(status: &Status) -> Option<usize> {
    status.members.get(&status.leader?).map(place_of)
}

impl World {
    /// The memory of a node that runs.
    pub(super) fn at(&self, place: usize) -> RefMut<'_, Running> {
        self.nodes[place].memory().expect("a node that does something runs")
    }

    /// The same, to hand something to its driver.
    pub(super) fn driving(&self, place: usize) -> RefMut<'_, Running> {
        let mut running = self.at(place);
        running.has_input = true;
        running
    }
}

/// Starts a node, with an empty memory.
pub(super) fn start(world: &Shared, place: usize) {
    let node = &world.nodes[place];
    node.life.set(world.draw(1..u64::MAX));
    node.is_leaving.set(false);
    let mut running = Running {
        driver: Driver::new(world.settings()),
        told: Told::default(),
        has_input: false,
        known: None,
        shards: BTreeMap::new(),
        founded: BTreeSet::new(),
        seats: BTreeMap::new(),
        ended: BTreeMap::new(),
        meta: AppliedState::default(),
        leaders: BTreeMap::new(),
    };
    for (group, replica) in node.old_ids.take() {
        // It takes part in its groups as if nothing had happened.
        if group == META {
            running.join_meta(world, replica);
        } else {
            let shard = Arc::new(Shard::new(group, world.hash_key, [], 0));
            running.take_seat(world, &shard, replica, None);
            running.shards.insert(group, shard);
        }
    }
    *node.running.borrow_mut() = Some(running);
    world.begin_threads(place);
}

/// The node forgets everything. Who waited there never learns what became of it.
pub(super) fn kill(world: &World, place: usize) {
    let node = &world.nodes[place];
    log::debug!("step {}: node {place} loses its memory", world.now.get());
    node.life.set(0);
    node.inbox.borrow_mut().clear();
    *node.running.borrow_mut() = None;
    node.back_at.set(world.now.get() + world.draw(10..250));
}

/// The node takes part in the meta group as one of its founders.
pub(super) fn found_meta(world: &World, place: usize, voters: &Members, state: &MetaState) {
    let life = world.nodes[place].life.get();
    let mut running = world.driving(place);
    let machine = running.meta_machine(Some(Arc::new(state.clone())));
    running.driver.found(META, life, voters, Box::new(machine)).expect("it is a new node");
    running.seats.insert(META, (life, 0));
}

/// Learns a state, if it is newer than what is known.
pub(super) fn learn(world: &World, place: usize, state: &Arc<MetaState>) {
    let mut running = world.driving(place);
    let known = running.known.clone();
    if known.as_ref().is_some_and(|known| known.version >= state.version) {
        return;
    }
    world.touched.set(true);
    running.place_in(world, place, state, known.is_some());
    for (index, shard) in state.view.shards.iter().enumerate() {
        if let Some(own) = running.shards.get(&shard.group).filter(|own| !own.is_logged()) {
            own.learn(&state.directive(index));
        }
    }
    running.known = Some(Arc::clone(state));
}

impl Running {
    fn meta_machine(&mut self, state: Option<Arc<MetaState>>) -> MetaMachine {
        self.meta = AppliedState::default();
        *self.meta.lock() = state;
        MetaMachine { applied: Arc::clone(&self.meta), told: Arc::clone(&self.told) }
    }

    fn drop_shard(&mut self, group: u64) {
        self.seats.remove(&group);
        if self.shards.remove(&group).is_some_and(|shard| shard.is_logged()) {
            self.driver.give_up(group);
        }
    }

    /// Takes part in a group, as a founder among these voters, or to be added to it.
    fn take_seat(&mut self, world: &World, shard: &Arc<Shard>, replica: u64, voters: Option<&Members>) {
        let group = shard.group();
        shard.set_logged(true);
        self.founded.insert(group);
        self.seats.insert(group, (replica, world.now.get()));
        let checks = world.without != Some(super::Missing::OwnershipAtApply);
        let machine = Box::new(Watched::new(shard, world.hash_key, &self.told, checks));
        let began = if let Some(voters) = voters {
            let after = self.ended.remove(&group).unwrap_or_default();
            self.driver.found_after(group, replica, voters, machine, after)
        } else {
            // As the product does: what there was before is given up.
            self.driver.give_up(group);
            self.driver.join(group, replica, machine)
        };
        if let Err(refusal) = began {
            world.accuse(format!("replica {replica} cannot take part in group {group}: {refusal:?}"));
        }
    }

    fn join_meta(&mut self, world: &World, replica: u64) {
        let machine = self.meta_machine(None);
        self.driver.give_up(META);
        self.driver.join(META, replica, Box::new(machine)).expect("the replica id is new");
        self.seats.insert(META, (replica, world.now.get()));
    }

    /// The shards of a state that this node holds replicas of.
    fn place_in(&mut self, world: &World, place: usize, state: &MetaState, is_of_cluster: bool) {
        let (own, life) = (address(place), world.nodes[place].life.get());
        let stays = |group: u64, shard: &Shard| {
            let is_there = is_of_cluster && state.index_of(group).is_some();
            is_there && (shard.is_logged() || state.holder(group, &own) == Some(life))
        };
        let may_stay = |group: u64, shard: &Shard| {
            // Without a rule, what an earlier start of it took part in is there from the start.
            stays(group, shard) || world.without == super::Missing::OLD_ID && shard.is_logged()
        };
        let gone: Vec<u64> = self
            .shards
            .iter()
            .filter(|(group, shard)| !may_stay(**group, shard))
            .map(|(group, _)| *group)
            .collect();
        for group in gone {
            self.drop_shard(group);
        }
        for shard in &state.view.shards {
            self.hold(world, (&own, life), state, shard);
        }
    }

    fn hold(&mut self, world: &World, (own, life): (&Address, u64), state: &MetaState, shard: &view::Shard) {
        let group = shard.group;
        if !self.shards.contains_key(&group) {
            if state.holder(group, own) != Some(life) || !self.founded.insert(group) {
                return;
            }
            let (ranges, epoch) = state.origins.get(&group).cloned().unwrap_or_default();
            let replica = Arc::new(Shard::new(group, state.hash_key, ranges, epoch));
            self.shards.insert(group, Arc::clone(&replica));
            if shard.replicas.len() > 1 {
                let voters = state.holders[&group].iter();
                let voters = voters.map(|(node, instance)| (*instance, node.clone())).collect();
                self.take_seat(world, &replica, life, Some(&voters));
            }
        }
        let replica = Arc::clone(&self.shards[&group]);
        if !replica.is_logged() && state.replicas_of(group).len() > 1 {
            let id = world.draw(1..u64::MAX);
            self.take_seat(world, &replica, id, Some(&Members::from([(id, own.clone())])));
            world.count(|tally| tally.logs_begun += 1);
        }
    }
}

/// The replica id of a node in a group of which it is to become a member.
pub(super) fn seat_in(
    world: &World,
    place: usize,
    group: u64,
    (index, members): (u64, &[u64]),
) -> Option<u64> {
    let mut running = world.driving(place);
    let known = running.known.clone()?;
    let is_wanted = group == META || known.replicas_of(group).contains(&&address(place));
    if world.nodes[place].is_leaving.get() || !is_wanted {
        return None;
    }
    // One that was taken out is not taken in again under the same id. Who asks names the members as of an index: an order that comes late,
    // from before the replica was added, says nothing about it.
    let sits = running.driver.status(group).is_some_and(|status| {
        status.applied == 0 || index < status.applied || members.contains(&status.replica)
    });
    match running.seats.get(&group) {
        Some((replica, since)) if sits || world.now.get() - since < SEATING => return Some(*replica),
        _ => {}
    }
    let replica = world.draw(1..u64::MAX);
    if group == META {
        running.join_meta(world, replica);
        return Some(replica);
    }
    let shard = Arc::new(Shard::new(group, known.hash_key, [], 0));
    running.take_seat(world, &shard, replica, None);
    running.shards.insert(group, shard);
    running.place_in(world, place, &known, true);
    Some(replica)
}

/// Lets go of a replica that is a member of its group no more.
pub(super) fn leave_group(world: &World, place: usize, group: u64) {
    let mut running = world.driving(place);
    if group == META {
        running.driver.give_up(META);
        running.seats.remove(&META);
        return;
    }
    running.drop_shard(group);
    if let Some(known) = running.known.clone() {
        running.place_in(world, place, &known, true);
    }
}

/// Has a shard kept by this node alone again, where it is the only member of the group.
pub(super) fn end_log(world: &World, place: usize, shard: &Shard) {
    let mut running = world.driving(place);
    let Some(status) = running.driver.status(shard.group()) else { return };
    running.ended.insert(shard.group(), (status.last, status.term));
    running.driver.give_up(shard.group());
    shard.set_logged(false);
    running.seats.remove(&shard.group());
    world.count(|tally| tally.logs_ended += 1);
}

/// One round of a node's thread that drives its groups.
pub(super) fn turn(world: &World, place: usize, ticks: bool) {
    let packets = world.nodes[place].inbox.take();
    for packet in packets {
        match packet {
            Packet::Call(call) => call(),
            Packet::Envelope(bytes) => {
                let envelope = Envelope::decode(&mut Reader::new(&bytes)).expect("what was sent can be read");
                world.driving(place).driver.step(envelope);
            }
        }
    }
    let mut running = world.at(place);
    if ticks {
        running.driver.tick();
    }
    if !std::mem::take(&mut running.has_input) && !ticks {
        return;
    }
    running.driver.work();
    let answers = running.driver.take_answers();
    let envelopes = running.driver.take_outbox();
    let events = std::mem::take(&mut *running.told.lock());
    let leads: Vec<_> = running
        .seats
        .iter()
        .filter_map(|(group, (replica, _))| Some((*group, running.driver.leads_in(*group)?, *replica)))
        .collect();
    // Who it is for is told by the members of the group, or by who asked last.
    let routes: Vec<_> = envelopes
        .into_iter()
        .map(|envelope| (running.driver.address(envelope.group, envelope.to).map(place_of), envelope))
        .collect();
    drop(running);
    if !events.is_empty() {
        world.touched.set(true);
    }
    for event in events {
        let verdict = world.oracle.borrow_mut().judge(event);
        world.judge(verdict);
    }
    for (group, term, replica) in leads {
        let verdict = world.oracle.borrow_mut().leader(group, term, replica);
        world.judge(verdict);
    }
    for (to, envelope) in routes {
        world.post(place, to, &envelope);
    }
    for (ticket, answer) in answers {
        world.trace(format!("{ticket} {answer:?}"));
        world.answers.borrow_mut().insert(ticket, answer);
    }
}

impl World {
    fn post(&self, from: usize, to: Option<usize>, envelope: &Envelope) {
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        // One that knows no members yet answers whoever has written to it.
        let to = to.or_else(|| self.seated(envelope.group, envelope.to));
        if let Some(to) = to {
            self.trace(&bytes);
            self.send(from, to, Packet::Envelope(bytes.into()));
        }
    }

    /// Where a replica is.
    fn seated(&self, group: u64, replica: u64) -> Option<usize> {
        (0..self.nodes.len()).find(|place| {
            self.nodes[*place]
                .memory()
                .is_some_and(|node| node.seats.get(&group).is_some_and(|seat| seat.0 == replica))
        })
    }
}

/// Any node tells any other what it knows, and learns what that one knows, now and then. Shards sweep meanwhile.
pub(super) async fn tell_news(world: Shared, place: usize) {
    loop {
        for _ in 0..world.draw(5..30) {
            pause().await;
        }
        let news = {
            let running = world.at(place);
            let shards: Vec<_> = running.shards.values().cloned().collect();
            for shard in shards.iter().filter(|_| world.chance(30)) {
                shard.sweep();
            }
            let applied = running.meta.lock().clone();
            running.known.clone().into_iter().chain(applied).max_by_key(|state| state.version)
        };
        let Some(state) = news else { continue };
        learn(&world, place, &state);
        let other = world.draw(0..world.nodes.len());
        let there = Rc::clone(&world);
        if other != place {
            world.send(place, other, Packet::Call(Rc::new(move || there.exchange((place, other), &state))));
        }
    }
}

impl World {
    fn exchange(self: &Rc<Self>, (from, to): (usize, usize), state: &Arc<MetaState>) {
        learn(self, to, state);
        let newer = self.at(to).known.clone().filter(|known| known.version > state.version);
        let there = Rc::clone(self);
        if let Some(newer) = newer {
            self.send(to, from, Packet::Call(Rc::new(move || learn(&there, from, &newer))));
        }
    }
}
