//! The writes that this node passes on to others, or to the log of a shard: their numbers, and which of them are without an answer yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::Node;
use crate::clock::ticks_ms;
use crate::dice;
use crate::model::address::Address;
use crate::model::hash::KeyHash;
use crate::model::meta::MetaState;
use crate::model::shard::{Forwarded, RequestId, Shard};

/// As many numbers are given beyond the lowest without an answer. Further writes get ids that shards remember for a time.
const WINDOW: u64 = 1 << 16;

/// Gives numbers to writes.
pub struct Passing {
    /// The number that is given next.
    next: AtomicU64,
    /// All below have ended.
    lowest: AtomicU64,
    /// One more than the last number that has ended, of all that share a place.
    ended: Box<[AtomicU64]>,
}

/// A number, which ends with this value.
pub(super) struct Number {
    passing: Arc<Passing>,
    number: u64,
}

impl Default for Passing {
    fn default() -> Self {
        Self::after(0)
    }
}

impl Passing {
    /// For a node that was started so often with one id: the numbers of each start are above those of all before.
    pub(super) fn after(starts: u64) -> Self {
        /// So many numbers each of up to 16,777,215 starts has.
        const OF_A_START: u64 = 1 << 40;
        let ended = (0..WINDOW).map(|_| AtomicU64::new(0)).collect();
        let first = starts * OF_A_START;
        Self { next: AtomicU64::new(first), lowest: AtomicU64::new(first), ended }
    }

    /// The next number, and the lowest that has not ended. Nothing where that is too far behind.
    pub(super) fn begin(self: &Arc<Self>) -> Option<(Number, u64)> {
        let has_room = |next: u64| next.saturating_sub(self.lowest.load(Ordering::SeqCst)) < WINDOW;
        let take = |next: u64| has_room(next).then_some(next + 1);
        let number = self.next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
        let number = Number { passing: Arc::clone(self), number };
        Some((number, self.lowest.load(Ordering::SeqCst)))
    }

    /// Whoever ends the lowest goes on to the next that has not ended. One that ends meanwhile either sees that the lowest is its own by now,
    /// or is seen here.
    fn end(&self, number: u64) {
        self.place(number).store(number + 1, Ordering::SeqCst);
        loop {
            let lowest = self.lowest.load(Ordering::SeqCst);
            if self.place(lowest).load(Ordering::SeqCst) != lowest + 1 {
                return;
            }
            let _ = self.lowest.compare_exchange(lowest, lowest + 1, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    fn place(&self, number: u64) -> &AtomicU64 {
        &self.ended[usize::try_from(number % WINDOW).expect("fewer than there are places")]
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.passing.end(self.number);
    }
}

/// The id of a write that may be sent again, for as long as somebody may ask for it.
pub struct Passed {
    pub(super) request: RequestId,
    _number: Option<Number>,
}

impl Passed {
    /// Under an id that somebody else has given.
    pub(super) fn named(request: RequestId) -> Self {
        Self { request, _number: None }
    }

    /// Under an id that no node can be asked for.
    pub(super) fn drawn() -> Self {
        Self::named(RequestId::Timed { id: dice::draw(), fingerprint: 0 })
    }
}

impl Node {
    /// An id for a write that this node passes on: a number, where the state names this start of the node, so that shards have learned of it
    /// or will in a moment.
    pub(super) fn pass(&self, state: &MetaState) -> Passed {
        let is_named = state.starts.get(&self.address) == Some(&self.incarnation);
        match is_named.then(|| self.passing.begin()).flatten() {
            Some((number, lowest)) => {
                let request = RequestId::Numbered { start: self.incarnation, number: number.number, lowest };
                Passed { request, _number: Some(number) }
            }
            None => Passed::drawn(),
        }
    }

    /// A write as a shard takes it that this node leads, at this moment.
    pub(super) fn stamp(&self, shard: &Shard, request: RequestId, epoch: u64) -> Forwarded {
        let keep_ms = self.remembered_ms;
        Forwarded { request, epoch, now_ms: shard.time(ticks_ms()), keep_ms }
    }

    /// Whether a shard that this node leads has room to remember a write.
    pub(super) fn has_room_for(&self, shard: &Shard, hash: KeyHash, write: &Forwarded) -> bool {
        shard.has_room_for(&write.request, hash, write.now_ms, self.retry_memory)
    }

    /// Has the state name the start of a node that has answered, where this node leads the meta group. `known` is the state that was known
    /// when the node was asked.
    pub(super) fn note_start(&self, known: &MetaState, node: &Address, start: u64) {
        if let Some(command) = known.started_command(node, start).filter(|_| self.meta.leads()) {
            log::debug!("{node} has the start {start:016x}");
            self.meta.propose_at_leisure(&command);
        }
    }
}

/// What is said where a shard can remember no more.
pub(super) fn full() -> String {
    "The shard remembers as many named writes as RETRY_MEMORY allows: try again later, or without Idempotency-Key"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_lowest_number_is_that_of_the_oldest_write_without_an_answer() {
        let passing = Arc::new(Passing::default());
        let mut numbers: Vec<Option<Number>> = Vec::new();
        for wanted in 0..5 {
            let (number, lowest) = passing.begin().unwrap();
            assert_eq!((number.number, lowest), (wanted, 0));
            numbers.push(Some(number));
        }
        for (ends, lowest) in [(1, 0), (3, 0), (0, 2), (2, 4), (4, 5)] {
            numbers[ends] = None;
            assert_eq!(passing.lowest.load(Ordering::SeqCst), lowest, "after {ends} has ended");
        }
    }

    #[test]
    fn no_number_is_given_too_far_beyond_the_lowest() {
        let passing = Arc::new(Passing::default());
        let oldest = passing.begin().unwrap();
        let others: Vec<_> = (1..WINDOW).map(|_| passing.begin().unwrap()).collect();
        assert!(passing.begin().is_none());
        drop(others);
        assert!(passing.begin().is_none(), "the lowest is without an answer still");
        drop(oldest);
        assert_eq!(passing.begin().map(|(number, lowest)| (number.number, lowest)), Some((WINDOW, WINDOW)));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test of threads")]
    fn threads_that_begin_and_end_at_once_leave_nothing_behind() {
        let passing = Arc::new(Passing::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let passing = Arc::clone(&passing);
                thread::spawn(move || {
                    let mut begun = 0;
                    while begun < 50_000 {
                        // Nothing where another thread was stopped with the lowest for as long as that.
                        let Some((number, lowest)) = passing.begin() else { continue };
                        assert!(lowest <= number.number);
                        begun += 1;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(passing.lowest.load(Ordering::SeqCst), 200_000);
    }
}
