//! The process of a node: what it has in its memory, how it is started, and what its threads do.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Shared;
use super::host::Simulated;
use super::tasks::{pause, pause_for};
use super::watch::Events;
use super::world::{Packet, STEP, World, address, place_of};
use crate::config::Settings;
use crate::consensus::{Envelope, Status};
use crate::dice;
use crate::disk::Storage;
use crate::disk::fake::FakeFolder;
use crate::model::address::Address;
use crate::model::binary::Reader;
use crate::model::format;
use crate::model::meta::MetaState;
use crate::model::shard::Shard;
use crate::node::discovery::{self, Discovery};
use crate::node::raft::{Raft, Transport};
use crate::node::state::{Node, ServingState};
use crate::reshard::controller::Controller;
use crate::reshard::leave::leave;
use crate::reshard::{Coordinator, Reconciler};

/// Envelopes that a round of the raft thread has sent.
type Outbox = Arc<Mutex<Vec<(Address, Envelope)>>>;

/// What a node is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    /// The first view, as at the beginning: those outside of it are passive.
    FirstView,
    /// The nodes that the view has at the moment.
    View(String, usize),
    /// No view: a node alone.
    Nothing,
}

#[derive(Default)]
pub(super) struct Process {
    /// The id of this start of the node; 0 while it does not run.
    pub(super) life: Cell<u64>,
    /// The id under which it holds what it has; that of the start, unless it has a disk.
    pub(super) holder: Cell<u64>,
    /// What it keeps its replicas on, if it does.
    disk: RefCell<Option<FakeFolder>>,
    pub(super) paused_until: Cell<u64>,
    /// It is about to stop, and takes leave of all groups before.
    pub(super) is_leaving: Cell<bool>,
    pub(super) back_at: Cell<u64>,
    /// When it was last a part of another cluster than the one that all is about.
    pub(super) apart: Cell<u64>,
    /// How it stood when that was looked at last.
    seen: RefCell<Option<Arc<ServingState>>>,
    /// What it is started with the next time, where it is not the first view.
    pub(super) next: RefCell<Option<Start>>,
    /// How far its wall clock is ahead.
    pub(super) wall: Cell<Duration>,
    pub(super) inbox: RefCell<Vec<Packet>>,
    /// The nodes that are being greeted.
    pub(super) greeting: RefCell<BTreeSet<Address>>,
    /// What its replicas have done and the oracle has not judged yet.
    pub(super) told: Events,
    controller: RefCell<Option<Rc<Controller>>>,
    raft: RefCell<Option<Raft>>,
    outbox: Outbox,
}

impl Process {
    /// A node that does not run, with a disk or without.
    pub(super) fn on(has_disk: bool) -> Self {
        Self { disk: RefCell::new(has_disk.then(FakeFolder::default)), ..Self::default() }
    }

    /// It is found with another disk the next time.
    pub(super) fn lose_disk(&self) {
        let mut disk = self.disk.borrow_mut();
        *disk = disk.is_some().then(FakeFolder::default);
    }

    /// So many more things are written, and then the power is cut.
    pub(super) fn set_fuse(&self, left: u64) {
        self.disk.borrow().iter().for_each(|disk| disk.set_fuse(Some(left)));
    }

    pub(super) fn is_paused(&self, now: u64) -> bool {
        self.paused_until.get() > now
    }

    /// Whether it stands otherwise than at the last call.
    pub(super) fn has_new_standing(&self) -> bool {
        let serving_state =
            self.controller.borrow().as_ref().map(|controller| controller.node.serving_state());
        let mut seen = self.seen.borrow_mut();
        let is_same = match (&*seen, &serving_state) {
            (Some(seen), Some(serving_state)) => Arc::ptr_eq(seen, serving_state),
            (seen, serving_state) => seen.is_none() && serving_state.is_none(),
        };
        *seen = serving_state;
        !is_same
    }

    /// Whether it runs and is not about to stop.
    pub(super) fn stays(&self) -> bool {
        self.life.get() != 0 && !self.is_leaving.get()
    }

    /// The replicas of its groups, if it runs.
    fn raft(&self) -> Option<RefMut<'_, Raft>> {
        RefMut::filter_map(self.raft.borrow_mut(), Option::as_mut).ok()
    }

    pub(super) fn controller(&self) -> Option<Rc<Controller>> {
        self.controller.borrow().clone()
    }

    pub(super) fn node(&self) -> Option<Arc<Node>> {
        self.controller().map(|controller| Arc::clone(&controller.node))
    }

    /// Where its replica of a group stands at this moment.
    pub(super) fn status(&self, group: u64) -> Option<Status> {
        self.raft()?.driver().status(group)
    }

    /// The groups of which it has replicas.
    pub(super) fn groups(&self) -> Vec<u64> {
        self.raft().map_or_else(Vec::new, |mut raft| raft.driver().groups().collect())
    }

    /// The term in which its replica of a group leads.
    pub(super) fn leads_in(&self, group: u64) -> Option<u64> {
        self.raft()?.driver().leads_in(group)
    }

    /// Whether the log of its replica holds a change of members that it has not applied.
    pub(super) fn has_pending_change(&self, group: u64) -> bool {
        self.raft().is_some_and(|mut raft| raft.driver().has_pending_change(group))
    }

    /// Its replicas hand over what they lead, or are told that a replica is not reached.
    pub(super) fn hand_over(&self) -> usize {
        let groups = self.groups();
        let Some(mut raft) = self.raft() else { return 0 };
        groups.into_iter().filter(|group| raft.driver().hand_over(*group, None)).count()
    }

    /// The shards that it holds.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        let Some(node) = self.node() else { return Vec::new() };
        let serving_state = node.serving_state();
        serving_state.serving().map_or_else(
            |_| Vec::new(),
            |serving| serving.own.iter().map(|(_, shard)| Arc::clone(shard)).collect(),
        )
    }

    pub(super) fn shard(&self, group: u64) -> Option<Arc<Shard>> {
        self.shards().into_iter().find(|shard| shard.group() == group)
    }

    /// The newest state that it has learned.
    pub(super) fn state(&self) -> Option<Arc<MetaState>> {
        self.node()?.state()
    }

    pub(super) fn end(&self) {
        self.life.set(0);
        self.inbox.borrow_mut().clear();
        self.greeting.borrow_mut().clear();
        let (controller, raft) = (self.controller.take(), self.raft.take());
        drop((controller, raft));
        self.told.lock().clear();
        self.outbox.lock().clear();
    }
}

struct Sent(Outbox);

impl Transport for Sent {
    fn send(&self, to: &Address, envelope: Envelope) {
        self.0.lock().push((to.clone(), envelope));
    }
}

/// What the view was at the beginning.
fn first_view(world: &World) -> String {
    let nodes: Vec<String> = (0..world.first.0).map(|place| address(place).to_string()).collect();
    nodes.join(",")
}

/// What a node may hold where that is bounded, in bytes: pairs of a simulation never take as much.
const BOUND: u64 = 100_000_000;
/// A full node has room for a few writes at most.
const LITTLE_ROOM: u64 = 400;

/// Starts a node, with an empty memory; with what is on its disk, if it has one.
pub(super) fn start(world: &Shared, place: usize) {
    let process = &world.nodes[place];
    let start = process.next.take().unwrap_or(Start::FirstView);
    let (view, factor) = match start {
        Start::FirstView => (Some(first_view(world)), world.first.1),
        Start::View(list, factor) => (Some(list), factor),
        Start::Nothing => (None, 1),
    };
    let own = [("ADDRESS", address(place).to_string()), ("REPL_FACTOR", factor.to_string())];
    let bound = world.is_tight.then(|| ("MAX_MEMORY", BOUND.to_string()));
    let settings: Settings = own.into_iter().chain(bound).chain(view.map(|list| ("VIEW", list))).collect();
    let config = settings.check().expect("settings that a node may be started with");
    let folder = process.disk.borrow().clone();
    if world.on_disks {
        // What it goes on from counts by its own clock.
        process.life.set(dice::id());
        world.show_clock(place);
    }
    let opened = folder.map(|folder| Storage::open(Arc::new(folder), &config.address, dice::id));
    let resumed = opened.transpose().and_then(|opened| {
        let kept = opened.map(|(storage, stored)| (Arc::new(storage), stored));
        Node::resumed(&config, Arc::new(Simulated { place }), kept)
    });
    let (node, inbox) = match resumed {
        Ok(resumed) => resumed,
        Err(why) => return world.judge(Err(format!("node {place} cannot start: {why}"))),
    };
    let node = Arc::new(node);
    if !world.on_disks {
        process.life.set(node.incarnation);
    }
    process.holder.set(node.incarnation);
    process.is_leaving.set(false);
    let learner = Arc::clone(&node);
    let publish = Box::new(move |groups: &[u64]| learner.publish(groups));
    let raft = inbox.into_raft(World::settings(), Box::new(Sent(Arc::clone(&process.outbox))), publish);
    let controller = Rc::new(Controller::new(Arc::clone(&node), Arc::default()));
    *process.controller.borrow_mut() = Some(Rc::clone(&controller));
    *process.raft.borrow_mut() = Some(raft);
    discovery::begin(&node);
    world.spawn_at(place, greet(Rc::clone(world), Discovery::new(&node)));
    world.spawn_at(place, keep_time(Rc::clone(&controller)));
    if world.is_tight {
        world.spawn_at(place, count_memory(Rc::clone(world), Arc::clone(&node)));
    }
    world.spawn_at(place, keep(Reconciler::new(&controller)));
    world.spawn_at(place, coordinate(Coordinator::new(&controller)));
}

async fn greet(world: Shared, mut discovery: Discovery) {
    let steps = u64::try_from(discovery::ROUND.as_millis() / STEP.as_millis()).expect("a short round");
    loop {
        discovery.round().await;
        if let Some(why) = discovery.outdated() {
            // Nobody has put an older disk in.
            world.judge(Err(why));
        }
        pause_for(steps + world.draw(0..3)).await;
    }
}

async fn keep_time(controller: Rc<Controller>) {
    loop {
        let rest = controller.node.keep_time();
        let steps = rest.as_millis().div_ceil(STEP.as_millis());
        pause_for(u64::try_from(steps).expect("a short round")).await;
    }
}

/// What the node holds goes up and down as it likes; in the end there is room for all.
async fn count_memory(world: Shared, node: Arc<Node>) {
    loop {
        let is_full = world.harm.get() && world.chance(50);
        let left = if is_full { world.draw(0..LITTLE_ROOM) } else { BOUND };
        node.note_memory(BOUND - left);
        pause_for(world.draw(1..60)).await;
    }
}

async fn keep(mut reconciler: Reconciler) {
    loop {
        let rest = reconciler.round().await;
        reconciler.rest(rest).await;
        pause().await;
    }
}

async fn coordinate(mut coordinator: Coordinator) {
    loop {
        coordinator.round().await;
        pause().await;
    }
}

/// The node is told to stop: it takes leave of its groups and ends.
pub(super) fn stop(world: &Shared, place: usize) {
    let process = &world.nodes[place];
    let Some(controller) = process.controller() else { return };
    if process.is_leaving.replace(true) {
        return;
    }
    world.count(|tally| tally.stops += 1);
    let there = Rc::clone(world);
    world.spawn_at(place, async move {
        leave(&controller).await;
        kill(&there, place);
        pause().await;
    });
}

/// The node forgets everything. Who waited there never learns what became of it.
pub(super) fn kill(world: &World, place: usize) {
    let process = &world.nodes[place];
    log::debug!("step {}: node {place} loses its memory", world.now.get());
    process.end();
    process.disk.borrow().iter().for_each(|disk| world.cut_power(disk));
    process.back_at.set(world.now.get() + world.draw(10..300));
    world.touched.set(true);
}

/// One round of a node's thread that drives its groups, with what has arrived.
pub(super) fn turn(world: &Shared, place: usize, ticks: bool) {
    let process = &world.nodes[place];
    let Some(node) = process.node() else { return };
    for packet in process.inbox.take() {
        match packet {
            Packet::Call(call) => call(),
            Packet::Envelope(from, bytes) => {
                let envelope = Envelope::decode(&mut Reader::new(&bytes)).expect("what was sent can be read");
                node.groups.receive(address(from), Some(format::CURRENT), vec![envelope]);
            }
        }
    }
    if !ticks && !node.groups.has_input() {
        return;
    }
    let leads: Vec<_> = {
        let Some(mut raft) = process.raft() else { return };
        raft.turn(ticks);
        let driver = raft.driver();
        if driver.disk_error().is_some() {
            drop(raft);
            return kill(world, place);
        }
        let leads = |group: u64| Some((group, driver.leads_in(group)?, driver.status(group)?.replica));
        driver.groups().filter_map(leads).collect()
    };
    let events = std::mem::take(&mut *process.told.lock());
    let envelopes = std::mem::take(&mut *process.outbox.lock());
    if !events.is_empty() {
        world.touched.set(true);
    }
    // Nodes that have founded another cluster count its groups from 1, too.
    if world.is_ours(&node) {
        for event in events {
            let verdict = world.oracle.borrow_mut().judge(event);
            world.judge(verdict);
        }
        for (group, term, replica) in leads {
            let verdict = world.oracle.borrow_mut().leader(group, term, replica);
            world.judge(verdict);
        }
    }
    for (to, envelope) in envelopes {
        let to = place_of(&to);
        if world.nodes[to].life.get() == 0 {
            node.groups.unreachable(envelope.group, envelope.to);
            continue;
        }
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        world.trace(&bytes);
        world.send(place, to, Packet::Envelope(place, bytes.into()));
    }
}
