//! The network of the simulation.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::rngs::StdRng;

/// Messages on their way: envelopes in the form they have on the wire, say.
pub(crate) struct Network<T> {
    flying: Vec<Flying<T>>,
    /// Pairs of nodes (from, to) between which nothing passes.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Of a thousand messages, how many are lost, and how many arrive twice.
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    /// The longest time that a message takes.
    pub(crate) delay: u64,
    /// Pairs of nodes (from, to) between which it takes so much longer.
    pub(crate) slow: BTreeMap<(usize, usize), u64>,
}

struct Flying<T> {
    due: u64,
    from: usize,
    to: usize,
    message: T,
}

impl<T> Default for Network<T> {
    fn default() -> Self {
        let (cut, slow) = (BTreeSet::new(), BTreeMap::new());
        Self { flying: Vec::new(), cut, lost: 0, doubled: 0, delay: 0, slow }
    }
}

impl<T: Clone> Network<T> {
    pub(crate) fn send(&mut self, now: u64, from: usize, to: usize, message: T, random: &mut StdRng) {
        if random.random_range(0..1000) < self.doubled {
            let due = self.due(now, (from, to), random);
            self.flying.push(Flying { due, from, to, message: message.clone() });
        }
        self.send_once(now, from, to, message, random);
    }

    /// Sends what arrives once at most.
    pub(crate) fn send_once(&mut self, now: u64, from: usize, to: usize, message: T, random: &mut StdRng) {
        if random.random_range(0..1000) < self.lost {
            return;
        }
        self.send_surely(now, from, to, message, random);
    }

    /// Sends what arrives once, unless it would cross a cut.
    pub(crate) fn send_surely(&mut self, now: u64, from: usize, to: usize, message: T, random: &mut StdRng) {
        self.flying.push(Flying { due: self.due(now, (from, to), random), from, to, message });
    }

    /// Most messages are quick; some are overtaken by all others.
    fn due(&self, now: u64, link: (usize, usize), random: &mut StdRng) -> u64 {
        let longest = if random.random_bool(0.05) { 10 * self.delay } else { self.delay };
        now + random.random_range(1..=longest) + self.slow.get(&link).copied().unwrap_or(0)
    }

    /// What arrives now, in random order; what would cross a cut is lost on arrival too.
    pub(crate) fn arriving(&mut self, now: u64, random: &mut StdRng) -> Vec<(usize, T)> {
        let mut arriving = Vec::new();
        let mut at = 0;
        while at < self.flying.len() {
            if self.flying[at].due > now {
                at += 1;
                continue;
            }
            let one = self.flying.swap_remove(at);
            if !self.cut.contains(&(one.from, one.to)) {
                let place = random.random_range(0..=arriving.len());
                arriving.insert(place, (one.to, one.message));
            }
        }
        arriving
    }
}
