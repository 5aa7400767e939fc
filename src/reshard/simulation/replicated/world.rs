//! What all tasks share: the nodes, the network between them, what the oracle knows, and the dice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::node::Node;
use super::oracle::Oracle;
use super::tasks::Task;
use super::{Missing, Shared, Tally, clients, coordinator, harm, keeper, node};
use crate::consensus::simulation::network::Network;
use crate::consensus::{Answer, Members, Settings};
use crate::model::address::Address;
use crate::model::hash::HashKey;
use crate::model::meta::{MetaState, wanted_voters};
use crate::model::view::View;

/// The group that agrees on the meta state.
pub(super) const META: u64 = 1 << 40;
/// A node's clock ticks about this often.
const STEPS_PER_TICK: u32 = 3;
/// Clients, as many as there are.
const CLIENTS: usize = 14;

/// What is on its way.
#[derive(Clone)]
pub(super) enum Packet {
    /// Between replicas, in the form that it has on the wire.
    Envelope(Rc<[u8]>),
    /// Anything else: what happens where it arrives.
    Call(Rc<dyn Fn()>),
}

pub(super) struct World {
    random: RefCell<StdRng>,
    pub(super) now: Cell<u64>,
    pub(super) network: RefCell<Network<Packet>>,
    pub(super) nodes: Vec<Node>,
    /// Whether harm is done and clients are at work.
    pub(super) harm: Cell<bool>,
    pub(super) without: Option<Missing>,
    pub(super) hash_key: HashKey,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) oracle: RefCell<Oracle>,
    /// What the drivers have answered, by ticket.
    pub(super) answers: RefCell<BTreeMap<u64, Answer>>,
    pub(super) spawned: RefCell<Vec<Task>>,
    /// How often each view change was counted. A census replaces the tally of the one before: then the receipt's figures are of two
    /// cuts, and are not checked.
    pub(super) censuses: RefCell<BTreeMap<u64, u64>>,
    /// Clients that wait for an answer.
    pub(super) busy: Cell<u64>,
    /// Whether nobody writes any more.
    pub(super) quiet: Cell<bool>,
    /// Whether who serves what may have changed.
    pub(super) touched: Cell<bool>,
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
    pub(super) fn new(seed: u64, without: Option<Missing>) -> Shared {
        let mut random = StdRng::seed_from_u64(seed);
        let mut network = Network::default();
        network.lost = [0, 10, 30, 80][random.random_range(0..4)];
        network.doubled = [0, 30, 100][random.random_range(0..3)];
        network.delay = [1, 2, 4][random.random_range(0..3)];
        // With few hashes many keys have the same one, and cuts fall between them.
        let few_hashes = random.random_ratio(1, 6);
        let hash_key = if few_hashes { HashKey::FIRST_BYTE } else { HashKey::PUBLISHED };
        let key = |number: u8| if few_hashes { vec![number % 5 * 50, number] } else { vec![b'k', number] };
        let keys: Vec<_> = (0..random.random_range(6_u8..28)).map(key).collect();
        let count = random.random_range(5..=6);
        Rc::new(Self {
            random: RefCell::new(random),
            now: Cell::new(0),
            network: RefCell::new(network),
            nodes: (0..count).map(|_| Node::default()).collect(),
            harm: Cell::new(true),
            without,
            hash_key,
            oracle: RefCell::new(Oracle::new(keys.clone())),
            keys,
            answers: RefCell::default(),
            spawned: RefCell::default(),
            censuses: RefCell::default(),
            busy: Cell::new(0),
            quiet: Cell::new(false),
            touched: Cell::new(false),
            over: Cell::new(false),
            fault: RefCell::default(),
            tally: RefCell::default(),
            drawn: Cell::new(0),
        })
    }

    /// Starts all nodes, founds the cluster, and lets clients in.
    pub(super) fn begin(self: &Rc<Self>) {
        let (factor, nodes) =
            [(1, 1), (1, 3), (2, 2), (2, 4), (2, 4), (3, 3), (3, 3), (3, 3)][self.draw(0..8)];
        let view: Vec<Address> = (0..nodes).map(address).collect();
        for place in 0..self.nodes.len() {
            node::start(self, place);
        }
        let instances = (0..self.nodes.len()).map(|place| (address(place), self.nodes[place].life.get()));
        let instances: BTreeMap<Address, u64> = instances.collect();
        let first = View::first(&view, factor).expect("a view");
        let mut state = MetaState::first("simulated".to_owned(), META, self.hash_key, first, &instances);
        state.open = true;
        self.oracle.borrow_mut().begin(Arc::new(state.clone()));
        let voters = wanted_voters(&view).iter().map(|node| (instances[node], node.clone()));
        let voters: Members = voters.collect();
        for place in voters.values().map(place_of) {
            node::found_meta(self, place, &voters, &state);
        }
        for place in 0..nodes {
            node::learn(self, place, &Arc::new(state.clone()));
        }
        for _ in 0..CLIENTS {
            self.spawn(clients::use_keys(Rc::clone(self)));
        }
        self.spawn(coordinator::operate(Rc::clone(self)));
    }

    /// What a node does by itself, from its start to its end.
    pub(super) fn begin_threads(self: &Rc<Self>, place: usize) {
        self.spawn_at(place, keeper::keep(Rc::clone(self), place));
        self.spawn_at(place, coordinator::coordinate(Rc::clone(self), place));
        self.spawn_at(place, node::tell_news(Rc::clone(self), place));
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            election_ticks: 8,
            heartbeat_ticks: 2,
            seed: self.draw(0..u64::MAX),
            answer_ticks: 50,
            max_waiting: 60,
            max_uncommitted_bytes: 4_000,
            max_message_bytes: 800,
            max_inflight_messages: 4,
            max_log_entries: 20,
            max_log_bytes: 6_000,
            piece_bytes: 1_000,
            without: self.without.and_then(Missing::in_consensus),
            ..Settings::default()
        }
    }

    /// Lets everything go on by a step.
    pub(super) fn step(self: &Rc<Self>, tasks: &mut Vec<Task>) -> Result<(), String> {
        self.now.set(self.now.get() + 1);
        self.count(|tally| tally.steps += 1);
        harm::step(self);
        let arriving = self.network.borrow_mut().arriving(self.now.get(), &mut self.random.borrow_mut());
        for (to, packet) in arriving {
            match packet {
                Packet::Call(call) if to == self.nodes.len() => call(),
                // What comes to a node that is down is lost; what comes to a paused one waits.
                packet if self.nodes[to].life.get() != 0 => self.nodes[to].inbox.borrow_mut().push(packet),
                _ => {}
            }
        }
        self.poll(tasks);
        for place in 0..self.nodes.len() {
            if self.nodes[place].life.get() != 0 && !self.nodes[place].is_paused(self.now.get()) {
                let ticks = self.random.borrow_mut().random_ratio(1, STEPS_PER_TICK);
                node::turn(self, place, ticks);
            }
        }
        self.fault.borrow_mut().take().map_or(Ok(()), Err)
    }

    pub(super) fn send(&self, from: usize, to: usize, packet: Packet) {
        self.network.borrow_mut().send(self.now.get(), from, to, packet, &mut self.random.borrow_mut());
    }

    /// As [`send`](Self::send), what arrives once at most.
    pub(super) fn send_once(&self, from: usize, to: usize, packet: Packet) {
        self.network.borrow_mut().send_once(self.now.get(), from, to, packet, &mut self.random.borrow_mut());
    }

    /// Counts what is known when all is over.
    pub(super) fn tell_tally(&self) {
        let oracle = self.oracle.borrow();
        self.count(|tally| oracle.count(tally));
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

    /// The newest state that any node has applied.
    pub(super) fn newest(&self) -> Arc<MetaState> {
        self.oracle.borrow().newest()
    }
}
