//! The network of the simulation.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;

/// Envelopes on their way, in the form they have on the wire.
#[derive(Default)]
pub(super) struct Network {
    flying: Vec<Flying>,
    /// Pairs of nodes (from, to) between which nothing passes.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Of a thousand envelopes, how many are lost, and how many arrive twice.
    pub(super) lost: u32,
    pub(super) doubled: u32,
    /// The longest time that an envelope takes.
    pub(super) delay: u64,
}

struct Flying {
    due: u64,
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

impl Network {
    pub(super) fn send(&mut self, now: u64, from: usize, to: usize, bytes: Vec<u8>, random: &mut StdRng) {
        if random.random_range(0..1000) < self.lost {
            return;
        }
        if random.random_range(0..1000) < self.doubled {
            self.flying.push(Flying { due: self.due(now, random), from, to, bytes: bytes.clone() });
        }
        self.flying.push(Flying { due: self.due(now, random), from, to, bytes });
    }

    /// Most envelopes are quick; some are overtaken by all others.
    fn due(&self, now: u64, random: &mut StdRng) -> u64 {
        let longest = if random.random_bool(0.05) { 10 * self.delay } else { self.delay };
        now + random.random_range(1..=longest)
    }

    /// What arrives now, in random order; what would cross a cut is lost on arrival too.
    pub(super) fn arriving(&mut self, now: u64, random: &mut StdRng) -> Vec<(usize, Vec<u8>)> {
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
                arriving.insert(place, (one.to, one.bytes));
            }
        }
        arriving
    }
}
