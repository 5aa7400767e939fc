//! What all tasks share: the nodes, the network between them, what the oracle knows, and the dice.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::oracle::Oracle;
use super::process::{self, Process};
use super::tasks::Task;
use super::{Shared, Tally, clients, harm, lister, operator, watchers};
use crate::clock::simulated;
use crate::consensus::Settings;
use crate::consensus::simulation::network::Network;
use crate::disk::fake::FakeFolder;
use crate::model::address::Address;
use crate::model::shard::RequestId;
use crate::node::raft;

/// The time of a step.
pub(super) const STEP: Duration = Duration::from_millis(10);
/// A node's clock ticks about this often.
const STEPS_PER_TICK: u32 = 4;
/// Clients, as many as there are.
const CLIENTS: usize = 12;
/// And those who watch.
const WATCHERS: usize = 2;
/// The wall clocks begin here.
const EPOCH: Duration = Duration::from_hours(500_000);

thread_local! {
    static WORLD: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

/// The hosts of the nodes find the world here.
pub(super) fn enter(world: Option<&Shared>) {
    WORLD.set(world.cloned());
}

/// The world of this thread.
pub(super) fn here() -> Shared {
    WORLD.with_borrow(Clone::clone).expect("a simulation runs")
}

/// What is on its way.
#[derive(Clone)]
pub(super) enum Packet {
    /// Between replicas, in the form that it has on the wire; from the node at this place.
    Envelope(usize, Rc<[u8]>),
    /// Anything else: what happens where it arrives.
    Call(Rc<dyn Fn()>),
}

pub(super) struct World {
    random: RefCell<StdRng>,
    pub(super) now: Cell<u64>,
    pub(super) network: RefCell<Network<Packet>>,
    /// When the network was last cut anywhere.
    pub(super) last_cut: Cell<u64>,
    pub(super) nodes: Vec<Process>,
    /// The first view: nodes and factor.
    pub(super) first: (usize, usize),
    /// Whether more may be lost at a time than the cluster promises to survive.
    pub(super) is_harsh: bool,
    /// Whether nodes have a bound of what they may hold, and are at it now and then.
    pub(super) is_tight: bool,
    /// Whether nodes keep what they hold on disks.
    pub(super) on_disks: bool,
    /// Whether harm is done and clients are at work.
    pub(super) harm: Cell<bool>,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) oracle: RefCell<Oracle>,
    pub(super) spawned: RefCell<Vec<Task>>,
    /// Clients that wait for an answer.
    pub(super) busy: Cell<u64>,
    /// Whether who serves what may have changed.
    pub(super) touched: Cell<bool>,
    /// What the last write is called that a node has done alone and without an id.
    pub(super) without_id: Cell<Option<RequestId>>,
    pub(super) over: Cell<bool>,
    fault: RefCell<Option<String>>,
    pub(super) tally: RefCell<Tally>,
    drawn: Cell<u64>,
}

/// The address of a node.
pub(super) fn address(place: usize) -> Address {
    format!("node{place}").parse().expect("a well-formed address")
}

/// The node at an address.
pub(super) fn place_of(address: &Address) -> usize {
    address.host()["node".len()..].parse().expect("an address of ours")
}

impl World {
    pub(super) fn new(seed: u64, on_disks: bool) -> Shared {
        let mut random = StdRng::seed_from_u64(seed);
        let mut network = Network::default();
        network.lost = [0, 10, 30, 60][random.random_range(0..4)];
        network.doubled = [0, 30, 100][random.random_range(0..3)];
        network.delay = [1, 1, 2, 3][random.random_range(0..4)];
        let keys: Vec<_> = (0..random.random_range(6_u8..28)).map(|number| vec![b'k', number]).collect();
        let count = random.random_range(5..=6);
        // By nodes and factor.
        let firsts = [(1, 1), (3, 1), (2, 2), (4, 2), (4, 2), (3, 3), (3, 3), (3, 3)];
        Rc::new(Self {
            first: firsts[random.random_range(0..firsts.len())],
            is_harsh: random.random_ratio(1, 3),
            is_tight: seed.is_multiple_of(3),
            on_disks,
            random: RefCell::new(random),
            now: Cell::new(0),
            network: RefCell::new(network),
            last_cut: Cell::new(0),
            nodes: (0..count).map(|_| Process::on(on_disks)).collect(),
            harm: Cell::new(true),
            oracle: RefCell::new(Oracle::new(keys.clone())),
            keys,
            spawned: RefCell::default(),
            busy: Cell::new(0),
            touched: Cell::new(false),
            without_id: Cell::new(None),
            over: Cell::new(false),
            fault: RefCell::default(),
            tally: RefCell::default(),
            drawn: Cell::new(0),
        })
    }

    /// Starts all nodes, and lets clients and the operator in. The nodes found the cluster by themselves.
    pub(super) fn begin(self: &Rc<Self>) {
        for place in 0..self.nodes.len() {
            process::start(self, place);
        }
        for _ in 0..CLIENTS {
            self.spawn(clients::use_keys(Rc::clone(self)));
        }
        for _ in 0..WATCHERS {
            self.spawn(watchers::watch(Rc::clone(self)));
        }
        self.spawn(lister::list_keys(Rc::clone(self)));
        self.spawn(operator::operate(Rc::clone(self)));
    }

    /// Everything ends: tasks hold on to the world, and the world to them.
    pub(super) fn end(&self) {
        self.spawned.borrow_mut().clear();
        *self.network.borrow_mut() = Network::default();
        for node in &self.nodes {
            node.end();
        }
    }

    pub(super) fn settings() -> Settings {
        Settings {
            heartbeat_ticks: 2,
            max_waiting: 60,
            max_uncommitted_bytes: 4_000,
            max_message_bytes: 800,
            max_inflight_messages: 4,
            max_log_entries: 20,
            max_log_bytes: 6_000,
            piece_bytes: 1_000,
            staged_bytes: 40,
            part_bytes: 64,
            staging_window_bytes: 256,
            snapshot_log_bytes: 4_000,
            ..raft::settings()
        }
    }

    /// Lets everything go on by a step.
    pub(super) fn step(self: &Rc<Self>, tasks: &mut Vec<Task>) -> Result<(), String> {
        self.now.set(self.now.get() + 1);
        simulated::advance(STEP);
        self.oracle.borrow_mut().now_ms += u64::try_from(STEP.as_millis()).expect("a short step");
        self.count(|tally| tally.steps += 1);
        harm::step(self);
        let arriving = self.network.borrow_mut().arriving(self.now.get(), &mut self.random.borrow_mut());
        for (to, packet) in arriving {
            // What comes to a node that is down is lost; what comes to a paused one waits.
            if self.nodes[to].life.get() != 0 {
                self.nodes[to].inbox.borrow_mut().push(packet);
            }
        }
        self.poll(tasks);
        for place in 0..self.nodes.len() {
            if self.nodes[place].life.get() != 0 && !self.nodes[place].is_paused(self.now.get()) {
                let ticks = self.random.borrow_mut().random_ratio(1, STEPS_PER_TICK);
                self.show_clock(place);
                process::turn(self, place, ticks);
            }
        }
        self.fault.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// The clocks are those of a node from now on.
    pub(super) fn show_clock(&self, place: usize) {
        let steps = u32::try_from(self.now.get()).expect("a short run");
        simulated::set_wall(EPOCH + STEP * steps + self.nodes[place].wall.get());
        // The monotonic clock of each start of a node begins anywhere within a week, and no two run alike.
        let life = self.nodes[place].life.get();
        let per_mille = [995, 1000, 1005][usize::try_from(life % 3).expect("small")];
        simulated::set_ticks(Duration::from_secs(life % (7 * 24 * 3600)), per_mille);
    }

    pub(super) fn send(&self, from: usize, to: usize, packet: Packet) {
        self.network.borrow_mut().send(self.now.get(), from, to, packet, &mut self.random.borrow_mut());
    }

    /// As [`send`](Self::send), on a connection: it arrives once at most, and connections break seldom.
    pub(super) fn send_once(&self, from: usize, to: usize, packet: Packet) {
        let (mut network, mut random) = (self.network.borrow_mut(), self.random.borrow_mut());
        if random.random_ratio(1, 5) {
            network.send_once(self.now.get(), from, to, packet, &mut random);
        } else {
            network.send_surely(self.now.get(), from, to, packet, &mut random);
        }
    }

    /// Counts what is known when all is over.
    pub(super) fn tell_tally(&self) {
        let oracle = self.oracle.borrow();
        self.count(|tally| oracle.count(tally));
    }

    /// Cuts the power of a disk.
    pub(super) fn cut_power(&self, disk: &FakeFolder) {
        disk.cut_power(&mut self.random.borrow_mut());
    }

    pub(super) fn draw<T: SampleUniform, R: SampleRange<T>>(&self, range: R) -> T {
        self.random.borrow_mut().random_range(range)
    }

    pub(super) fn chance(&self, percent: u32) -> bool {
        self.random.borrow_mut().random_ratio(percent, 100)
    }

    /// A new number at each call.
    pub(super) fn number(&self) -> u64 {
        self.drawn.set(self.drawn.get() + 1);
        self.drawn.get()
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.borrow_mut());
    }

    /// Something that must not be.
    pub(super) fn accuse(&self, fault: String) {
        self.fault.borrow_mut().get_or_insert(fault);
    }

    /// Notes what the oracle says.
    pub(super) fn judge(&self, verdict: Result<(), String>) {
        if let Err(fault) = verdict {
            self.accuse(fault);
        }
    }

    /// What the trace is made of: equal traces are equal runs.
    pub(super) fn trace(&self, text: impl std::hash::Hash) {
        let mut hasher = std::hash::DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = std::hash::Hasher::finish(&hasher);
        let mut tally = self.tally.borrow_mut();
        tally.trace = (tally.trace.rotate_left(5) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
