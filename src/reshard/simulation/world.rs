//! What all tasks share: the meta group, the nodes, what clients know, and the dice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Shared;
use super::clients::Register;
use super::meta_group::MetaGroup;
use super::nodes::Node;
use super::tasks::{Task, pause};
use crate::model::address::Address;
use crate::model::hash::HashKey;
use crate::model::meta::MetaState;
use crate::model::view::View;

/// Nodes that there are; views are made of some of them.
const NODES: usize = 6;
/// The start of every node.
pub(super) const INSTANCE: u64 = 1;

/// What happened in a run, to see that it was no idle one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) unknown: u64,
    pub(super) retried: u64,
    pub(super) elections: u64,
    pub(super) handed_over: u64,
    pub(super) aborted: u64,
    pub(super) finished: u64,
    pub(super) superseded: u64,
    pub(super) cancelled: u64,
    pub(super) trace: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.reads += other.reads;
        self.writes += other.writes;
        self.unknown += other.unknown;
        self.retried += other.retried;
        self.elections += other.elections;
        self.handed_over += other.handed_over;
        self.aborted += other.aborted;
        self.finished += other.finished;
        self.superseded += other.superseded;
        self.cancelled += other.cancelled;
        self.trace = self.trace.wrapping_add(other.trace);
    }
}

pub(super) struct World {
    random: RefCell<StdRng>,
    /// How many of a hundred messages are lost, as many are doubled and late.
    severity: u32,
    /// Whether messages are lost, late and doubled, leaders change and clients are at work.
    pub(super) harm: Cell<bool>,
    pub(super) meta: RefCell<MetaGroup>,
    pub(super) nodes: BTreeMap<Address, Node>,
    pub(super) hash_key: HashKey,
    pub(super) registers: RefCell<BTreeMap<Vec<u8>, Register>>,
    /// The view changes of which a census was taken, in order. A census replaces the tally of the one before, also where a
    /// coordinator that leads no more takes it: then the receipt's figures are of two cuts, and are not checked.
    pub(super) plans: RefCell<Vec<u64>>,
    /// Messages that are under way.
    pub(super) under_way: Cell<u64>,
    pub(super) spawned: RefCell<Vec<Task>>,
    /// Whether the last step may have changed who serves what.
    pub(super) touched: Cell<bool>,
    pub(super) fault: RefCell<Option<String>>,
    pub(super) over: Cell<bool>,
    pub(super) tally: RefCell<Tally>,
    drawn: Cell<u64>,
}

impl World {
    pub(super) fn new(seed: u64) -> Shared {
        let mut random = StdRng::seed_from_u64(seed);
        let addresses: Vec<Address> =
            (1..=NODES).map(|number| format!("node{number}").parse().expect("an address")).collect();
        let first = random.random_range(1..4);
        let view = View::first(&addresses[..first], 1).expect("a view");
        // With few hashes many keys have the same one, and cuts fall between them.
        let few_hashes = random.random_ratio(1, 6);
        let hash_key = if few_hashes { HashKey::FIRST_BYTE } else { HashKey::PUBLISHED };
        let keys = random.random_range(4_u8..48);
        let key = |number: u8| {
            if few_hashes { vec![number % 5 * 50, number] } else { vec![b'k', number] }
        };
        let registers = (0..keys).map(|number| (key(number), Register::default())).collect();
        let instances = addresses.iter().map(|node| (node.clone(), INSTANCE)).collect();
        let mut state = MetaState::first("simulated".to_owned(), 1, hash_key, view, &instances);
        state.open = true;
        let severity = random.random_range(1..20);
        Rc::new(Self {
            severity,
            random: RefCell::new(random),
            harm: Cell::new(true),
            meta: RefCell::new(MetaGroup::new(state)),
            nodes: addresses.into_iter().map(|node| (node, Node::default())).collect(),
            hash_key,
            registers: RefCell::new(registers),
            plans: RefCell::default(),
            under_way: Cell::new(0),
            spawned: RefCell::default(),
            touched: Cell::new(false),
            fault: RefCell::default(),
            over: Cell::new(false),
            tally: RefCell::default(),
            drawn: Cell::new(0),
        })
    }

    /// The first nodes learn the first state.
    pub(super) fn found(&self) {
        let state = self.meta.borrow().newest();
        for node in state.nodes() {
            self.nodes[&node].learn(&node, &state);
        }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push(Box::pin(task));
    }

    pub(super) fn draw<T: SampleUniform, R: SampleRange<T>>(&self, range: R) -> T {
        self.random.borrow_mut().random_range(range)
    }

    /// A new number at each call.
    pub(super) fn number(&self) -> u64 {
        self.drawn.set(self.drawn.get() + 1);
        self.drawn.get()
    }

    pub(super) fn chance(&self, percent: u32) -> bool {
        self.random.borrow_mut().random_ratio(percent, 100)
    }

    /// As a chance, while harm is done.
    pub(super) fn harmed(&self, percent: u32) -> bool {
        self.harm.get() && self.chance(percent)
    }

    /// Whether something befalls a message.
    pub(super) fn befalls(&self) -> bool {
        self.harmed(self.severity)
    }

    /// The time that a message takes: seldom long, and a doubled one comes late.
    pub(super) async fn delay(&self, late: bool) {
        let longest = if late || self.befalls() { 150 } else { 3 };
        for _ in 0..self.draw(0..longest) {
            pause().await;
        }
    }

    pub(super) fn some_node(&self) -> Address {
        let chosen = self.draw(0..self.nodes.len());
        self.nodes.keys().nth(chosen).expect("it is there").clone()
    }

    /// Some nodes, at least one, for a view.
    pub(super) fn some_view(&self) -> Vec<Address> {
        let mut nodes: Vec<Address> = self.nodes.keys().cloned().collect();
        let wanted = self.draw(Range { start: 1, end: nodes.len() });
        while nodes.len() > wanted {
            nodes.swap_remove(self.draw(0..nodes.len()));
        }
        nodes
    }

    pub(super) fn step(&self) -> u64 {
        let mut tally = self.tally.borrow_mut();
        tally.steps += 1;
        tally.steps
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.borrow_mut());
    }

    /// Something that must not be.
    pub(super) fn accuse(&self, fault: String) {
        self.fault.borrow_mut().get_or_insert(fault);
    }
}
