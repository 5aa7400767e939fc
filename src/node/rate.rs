//! How many requests of clients a node has answered a second, lately.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What is counted is looked at so often.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// The rate is that of the time since the look before so many.
const LOOKS: usize = 5;

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
