//! How many requests of clients a node has answered a second, lately, and what was done to the keys of its shards.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::state::Node;
use crate::model::shard::Operations;

/// What is counted is looked at so often.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// The rate is that of the time since the look before so many.
const LOOKS: usize = 5;

/// The rates of a node.
#[derive(Default)]
pub struct Rates {
    /// Answers to clients.
    pub clients: Rate,
    /// By the group: reads, and writes.
    shards: Mutex<BTreeMap<u64, [Rate; 2]>>,
}

impl Rates {
    /// Reads of the keys of a group here a second; with the writes, where these are wanted, too.
    pub fn of_shard(&self, group: u64, with_writes: bool) -> Option<f64> {
        let shards = self.shards.lock();
        let [reads, writes] = shards.get(&group)?;
        Some(reads.per_second()? + if with_writes { writes.per_second()? } else { 0.0 })
    }

    fn note_shards(&self, at: Instant, all: &[(u64, Operations)]) {
        let mut shards = self.shards.lock();
        shards.retain(|group, _| all.iter().any(|(known, _)| known == group));
        for (group, Operations { reads, writes }) in all {
            let [noted_reads, noted_writes] = shards.entry(*group).or_default();
            noted_reads.note(at, *reads);
            noted_writes.note(at, *writes);
        }
    }
}

impl Node {
    /// Notes how much was done by now: so many clients were answered.
    pub fn note_rates(&self, at: Instant, answered: u64) {
        self.rates.clients.note(at, answered);
        let serving_state = self.serving_state();
        let own = serving_state.serving().map_or(&[][..], |serving| &serving.own);
        let all: Vec<_> = own.iter().map(|(_, shard)| (shard.group(), shard.operations())).collect();
        self.rates.note_shards(at, &all);
    }
}

/// The last looks at a counter.
#[derive(Default)]
pub struct Rate(Mutex<VecDeque<(Instant, u64)>>);

impl Rate {
    /// Notes how far a counter has come by now.
    pub fn note(&self, at: Instant, count: u64) {
        let mut looks = self.0.lock();
        looks.push_back((at, count));
        while looks.len() > LOOKS + 1 {
            looks.pop_front();
        }
    }

    /// How much it went up a second; not known before it was looked at twice.
    pub fn per_second(&self) -> Option<f64> {
        let looks = self.0.lock();
        let ((from, before), (to, after)) = (looks.front()?, looks.back()?);
        let seconds = to.saturating_duration_since(*from).as_secs_f64();
        let count = u32::try_from(after.saturating_sub(*before)).unwrap_or(u32::MAX);
        // One digit after the point is as much as is known.
        (seconds > 0.0).then(|| (f64::from(count) / seconds * 10.0).round() / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn the_rates_of_a_shard_go_with_it() {
        let (rates, start) = (Rates::default(), now());
        let done = |reads, writes| Operations { reads, writes };
        rates.note_shards(start, &[(1, done(10, 10)), (2, done(0, 0))]);
        assert_eq!((rates.of_shard(1, true), rates.of_shard(3, true)), (None, None));
        rates.note_shards(start + Duration::from_secs(1), &[(1, done(30, 15))]);
        assert_eq!((rates.of_shard(1, false), rates.of_shard(1, true)), (Some(20.0), Some(25.0)));
        assert!(!rates.shards.lock().contains_key(&2));
    }

    #[test]
    fn the_rate_is_that_of_the_last_looks() {
        let (rate, start) = (Rate::default(), now());
        assert_eq!(rate.per_second(), None);
        for (second, count, wanted) in [
            (0, 1000, None),
            (1, 1010, Some(10.0)),
            (2, 1030, Some(15.0)),
            (7, 1030, Some(4.3)),
            (8, 1030, Some(3.8)),
            (9, 1030, Some(3.3)),
            (10, 1030, Some(2.2)),
            (11, 1030, Some(0.0)),
        ] {
            rate.note(start + Duration::from_secs(second), count);
            assert_eq!(rate.per_second(), wanted, "after {second} s");
        }
    }
}
