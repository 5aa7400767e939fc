//! The time of a group, by which what is remembered of writes grows old.
//!
//! It is the time of the last entry that was applied, plus what the clock of the node has counted since: a monotonic one, which is handed in
//! as milliseconds from any beginning. No two clocks are compared, and none is set: a leader goes on from what the group has come to.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Where the time stands, in the state of the group and on this node.
#[derive(Default)]
pub(super) struct GroupClock {
    /// Of the last entry, and so equal in all replicas; it only grows.
    time_ms: AtomicU64,
    /// How far the time was ahead of the node's clock when it was set last. It is no part of the state.
    ahead_ms: AtomicI64,
    /// The last term in which this replica has led its group: the times of its entries are by this very clock.
    led: AtomicU64,
}

impl GroupClock {
    /// The time of the last entry.
    pub(super) fn time(&self) -> u64 {
        self.time_ms.load(Ordering::Relaxed)
    }

    /// The time as this node counts it.
    pub(super) fn reading(&self, ticks_ms: u64) -> u64 {
        ticks_ms.saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed)).max(self.time())
    }

    /// An entry has this time. Entries whose proposers read the clock at once may come in another order: the time does not go back.
    pub(super) fn pass(&self, now_ms: u64) {
        self.time_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    /// This replica leads in a term.
    pub(super) fn lead(&self, term: u64) {
        self.led.store(term, Ordering::Relaxed);
    }

    /// The terms of this replica's log count anew.
    pub(super) fn lead_no_more(&self) {
        self.lead(0);
    }

    /// An entry of this term, which has a time, has just been applied. By one of another leader the clock is set: the two may run at
    /// different rates, and what this one has counted while its node was stopped counts for nothing where the others went on. By an own
    /// one it is not: it would lose the time for which that has waited in the log.
    pub(super) fn set_by(&self, term: u64, ticks_ms: u64) {
        if term != self.led.load(Ordering::Relaxed) {
            self.set(self.time(), ticks_ms);
        }
    }

    /// Sets the clock of this node.
    pub(super) fn set(&self, time_ms: u64, ticks_ms: u64) {
        let ahead_ms = time_ms.cast_signed().saturating_sub(ticks_ms.cast_signed());
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }

    /// Takes over the time of a snapshot.
    pub(super) fn replace(&self, time_ms: u64) {
        self.time_ms.store(time_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_counts_on_from_the_last_entry_and_not_from_its_own_clock() {
        let clock = GroupClock::default();
        clock.pass(10_000);
        clock.set_by(1, 77_000_000);
        assert_eq!(clock.reading(77_000_000), 10_000, "its own clock may show anything");
        assert_eq!(clock.reading(77_000_500), 10_500);
    }

    #[test]
    fn what_waits_in_the_log_does_not_stop_the_time() {
        let clock = GroupClock::default();
        clock.lead(3);
        for ticks in (0..1000).step_by(10) {
            // Each is applied 20 ms after it was proposed, and the next is proposed at that moment.
            let proposed = clock.reading(ticks);
            clock.pass(proposed);
            clock.set_by(3, ticks + 20);
        }
        assert_eq!((clock.time(), clock.reading(1000)), (990, 1000));
    }

    #[test]
    fn a_node_that_was_stopped_does_not_bring_along_what_it_has_counted() {
        let (leader, stopped) = (GroupClock::default(), GroupClock::default());
        leader.lead(2);
        // It has led before, and proposed something at the end that was never committed.
        stopped.lead(1);
        assert_eq!(stopped.reading(3_600_000), 3_600_000);
        for ticks in [100, 200] {
            let time = leader.reading(ticks);
            for clock in [&leader, &stopped] {
                clock.pass(time);
            }
            stopped.set_by(2, 3_600_000 + ticks);
        }
        stopped.lead(3);
        assert_eq!(stopped.reading(3_600_250), 250);
    }

    #[test]
    fn the_time_never_goes_back() {
        let clock = GroupClock::default();
        clock.pass(500);
        clock.pass(400);
        clock.set(300, 0);
        assert_eq!((clock.time(), clock.reading(0), clock.reading(400)), (500, 500, 700));
    }
}
