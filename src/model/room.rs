//! How much a node may hold, and whether what would grow is taken.
//!
//! What a node holds is counted a few times a second. Between two counts what was admitted is added to it. As a write takes a while from when it is admitted until
//! its memory is counted, what was admitted before the last count is added once more: rather too much for a moment than more than there may be.
//!
//! Whoever leads a group goes by the least room among its replicas, which tell it theirs. A replica that tells none, as it has no bound, is of an older version or is
//! away, bounds nothing: what the log holds is never refused, so the others must not stand still for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a pair takes beside key and value, with its place in the index, in bytes.
pub const PAIR_OVERHEAD: u64 = 96;
/// A node without pairs holds no more than this, in bytes, whatever it is asked.
const EMPTY_NODE: u64 = 32 << 20;
/// Of its bound, buffers and logs each may have one part in so many.
const PARTS: u64 = 8;

/// What a leader still counts as under way to a replica is what it has admitted since the one before so many of its reports.
const REPORTS: usize = 4;

/// A replica that has told nothing for so many ticks is away.
const SILENT_TICKS: u32 = 50;

/// What a node holds, and may.
#[derive(Debug)]
pub struct Gauge {
    bound: Option<u64>,
    /// As it was counted last.
    used: AtomicU64,
    /// The bytes of all writes that were admitted. It only grows, but for what was refused.
    admitted: AtomicU64,
    /// What that was at the last count.
    counted_at: AtomicU64,
    /// Up to here writes are admitted.
    until: AtomicU64,
    /// What there is room for on its disk, in bytes; the highest number where it has none or that is not known.
    disk_left: AtomicU64,
    /// Whether another replica of a group that this node leads has a bound.
    are_others_bounded: AtomicBool,
}

impl Gauge {
    /// Of a node that holds nothing yet.
    pub fn new(bound: Option<u64>) -> Self {
        let [used, admitted, counted_at] = [const { AtomicU64::new(0) }; 3];
        let (until, are_others_bounded) = (AtomicU64::new(bound.unwrap_or(u64::MAX)), AtomicBool::new(false));
        let disk_left = AtomicU64::new(u64::MAX);
        Self { bound, used, admitted, counted_at, until, disk_left, are_others_bounded }
    }

    /// What the node may hold, in bytes, if that is bounded.
    pub fn bound(&self) -> Option<u64> {
        self.bound
    }

    /// Takes a count in: so many bytes are held. One thread counts.
    pub fn count(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        let before = self.counted_at.swap(self.admitted(), Ordering::Relaxed);
        let in_memory = self.bound.map_or(u64::MAX, |bound| bound.saturating_sub(used));
        let left = in_memory.min(self.disk_left.load(Ordering::Relaxed));
        self.until.store(before.saturating_add(left), Ordering::Relaxed);
    }

    /// Takes in for how many bytes there is room on the disk of the node; the next count goes by it.
    pub fn count_disk(&self, left: u64) {
        self.disk_left.store(left, Ordering::Relaxed);
    }

    /// Whether the node has a bound of its own.
    fn has_own_bound(&self) -> bool {
        self.bound.is_some() || self.disk_left.load(Ordering::Relaxed) != u64::MAX
    }

    /// What was held at the last count, in bytes.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How many bytes more the node takes, if that is bounded.
    pub fn left(&self) -> Option<u64> {
        self.has_own_bound().then(|| self.until.load(Ordering::Relaxed).saturating_sub(self.admitted()))
    }

    /// The bytes of all writes that were admitted.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Admits a write of so many bytes, if this node has the room, and the other replicas have, which take writes up to `others`.
    #[must_use]
    pub fn admits(&self, bytes: u64, others: u64) -> bool {
        let until = self.until.load(Ordering::Relaxed).min(others);
        if until == u64::MAX {
            return true;
        }
        let before = self.admitted.fetch_add(bytes, Ordering::Relaxed);
        let is_admitted = before.saturating_add(bytes) <= until;
        if !is_admitted {
            self.admitted.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_admitted
    }

    /// Notes whether another replica of a group that this node leads has a bound.
    pub fn note_others(&self, are_bounded: bool) {
        self.are_others_bounded.store(are_bounded, Ordering::Relaxed);
    }

    /// Whether any bound is known by which a write may be refused.
    pub fn is_bounded(&self) -> bool {
        self.has_own_bound() || self.are_others_bounded.load(Ordering::Relaxed)
    }
}

/// What the other replicas of a group have told whoever leads it.
#[derive(Debug, Default)]
pub struct Replicas {
    term: u64,
    /// What this node had admitted when it began to lead.
    began_at: u64,
    told: BTreeMap<u64, Told>,
}

#[derive(Debug)]
struct Told {
    /// Up to here it takes writes.
    until: u64,
    /// What this node had admitted at the last reports, the oldest first.
    admitted_at: [u64; REPORTS],
    /// Since the last one.
    silent_ticks: u32,
}

impl Replicas {
    /// A tick has passed in which this node leads in a term, and has admitted so much by now. What was told to it in an earlier term is forgotten.
    pub fn tick(&mut self, term: u64, admitted: u64) {
        if self.term != term {
            *self = Self { term, began_at: admitted, told: BTreeMap::new() };
        }
        self.told.values_mut().for_each(|told| told.silent_ticks += 1);
        self.told.retain(|_, told| told.silent_ticks <= SILENT_TICKS);
    }

    /// A replica tells that its node takes so many bytes more, when this node has admitted so much.
    pub fn hear(&mut self, replica: u64, left: u64, admitted: u64) {
        let first = [self.began_at; REPORTS];
        let told = self.told.entry(replica);
        let told = told.or_insert(Told { until: 0, admitted_at: first, silent_ticks: 0 });
        told.until = told.admitted_at[0].saturating_add(left);
        told.admitted_at.rotate_left(1);
        told.admitted_at[REPORTS - 1] = admitted;
        told.silent_ticks = 0;
    }

    /// The replica with the least room, and up to where it takes writes; nothing where none has told of a bound.
    pub fn least(&self) -> Option<(u64, u64)> {
        let all = self.told.iter().map(|(replica, told)| (*replica, told.until));
        all.min_by_key(|(_, until)| *until)
    }
}

/// What a write takes of the room, in bytes, while it is under way and then: a log holds it as well.
pub fn weight(key: &[u8], value: &[u8], is_logged: bool) -> u64 {
    let bytes = (key.len() + value.len()) as u64;
    // Beside the pair its request is there, and of a logged one the entry.
    let copies = if is_logged { 3 } else { 2 };
    bytes * copies + PAIR_OVERHEAD
}

/// The memory for buffers of a kind, or for a log, where a node has a bound: what was set, but no more than a part of the bound, and `least` at least.
pub fn share(bound: Option<u64>, set: usize, least: usize) -> usize {
    let part = bound.map_or(u64::MAX, |bound| bound / PARTS);
    set.min(usize::try_from(part).unwrap_or(usize::MAX).max(least))
}

/// The least bound that a node can have whose buffers for large values take so many bytes at least.
pub fn least_bound(buffers: usize) -> u64 {
    EMPTY_NODE + buffers as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_admitted_counts_until_it_was_surely_counted() {
        let gauge = Gauge::new(Some(1000));
        gauge.count(400);
        assert_eq!((gauge.used(), gauge.left()), (400, Some(600)));
        assert!(gauge.admits(500, u64::MAX) && !gauge.admits(101, u64::MAX) && gauge.admits(100, u64::MAX));
        assert_eq!(gauge.left(), Some(0));
        // It may not be in this count, and has to be in the next one.
        gauge.count(400);
        assert_eq!(gauge.left(), Some(0));
        gauge.count(900);
        assert_eq!(gauge.left(), Some(100));
        // Beyond the bound nothing more is admitted; what is freed is there to be used.
        gauge.count(1100);
        assert!(!gauge.admits(1, u64::MAX));
        gauge.count(300);
        assert_eq!(gauge.left(), Some(700));
    }

    #[test]
    fn a_node_without_a_bound_admits_all_that_the_others_take() {
        let gauge = Gauge::new(None);
        gauge.count(1 << 40);
        assert!(gauge.admits(1 << 50, u64::MAX));
        assert_eq!((gauge.left(), gauge.admitted()), (None, 0));
        assert!(gauge.admits(10, 10) && !gauge.admits(1, 10));
        assert_eq!(gauge.admitted(), 10);
    }

    #[test]
    fn a_leader_goes_by_the_least_room_and_what_is_under_way() {
        let mut replicas = Replicas::default();
        replicas.tick(3, 1000);
        assert_eq!(replicas.least(), None, "nobody has told of a bound");
        replicas.hear(7, 500, 1000);
        replicas.hear(8, 300, 1000);
        assert_eq!(replicas.least(), Some((8, 1300)));
        // 200 bytes more were admitted: of some reports it is not known whether these are in them.
        for _ in 1..REPORTS {
            replicas.hear(8, 300, 1200);
            assert_eq!(replicas.least(), Some((8, 1300)));
        }
        replicas.hear(8, 300, 1200);
        replicas.hear(8, 300, 1200);
        assert_eq!(replicas.least(), Some((7, 1500)));
        assert_eq!(replicas.told[&8].until, 1500);
    }

    #[test]
    fn who_says_nothing_for_long_bounds_nothing_and_another_term_begins_anew() {
        let mut replicas = Replicas::default();
        replicas.tick(3, 0);
        replicas.hear(7, 0, 0);
        for _ in 0..SILENT_TICKS {
            replicas.tick(3, 0);
        }
        assert_eq!(replicas.least(), Some((7, 0)));
        replicas.tick(3, 0);
        assert_eq!(replicas.least(), None);
        replicas.hear(7, 0, 0);
        replicas.tick(4, 70);
        assert_eq!(replicas.least(), None);
        replicas.hear(7, 5, 90);
        assert_eq!(replicas.least(), Some((7, 75)), "what it has admitted in this term may be under way");
    }

    #[test]
    fn buffers_have_a_part_of_the_bound() {
        assert_eq!(share(None, 100, 20), 100);
        assert_eq!(share(Some(1 << 40), 100, 20), 100);
        assert_eq!(share(Some(400), 100, 20), 50);
        assert_eq!(share(Some(80), 100, 20), 20);
        assert_eq!(share(Some(80), 10, 20), 10);
    }
}
