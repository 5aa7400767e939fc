//! The one place that reads the clocks.

use std::time::{Duration, Instant, SystemTime};

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = simulated::NOW.get() {
        return now;
    }
    Instant::now()
}

/// The clock of a simulation, which goes on only when it is told to.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;
    use std::time::{Duration, Instant, SystemTime};

    thread_local! {
        pub(super) static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
        static WALL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// From now on this thread has a clock of its own, which stands still.
    pub(crate) fn stop() {
        NOW.set(None);
        NOW.set(Some(super::now()));
    }

    /// The clock goes on.
    pub(crate) fn advance(time: Duration) {
        NOW.set(NOW.get().map(|now| now + time));
    }

    /// The wall clock shows this from now on: of a machine whose clock jumps, for instance.
    pub(crate) fn set_wall(since_epoch: Duration) {
        WALL.set(since_epoch);
    }

    pub(super) fn wall() -> Option<SystemTime> {
        NOW.get().map(|_| SystemTime::UNIX_EPOCH + WALL.get())
    }

    /// This thread has the system's clock again.
    pub(crate) fn end() {
        NOW.set(None);
    }
}

/// The wall clock, for what people and HTTP headers read, and for the age of what is kept for a while.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn wall() -> SystemTime {
    #[cfg(test)]
    if let Some(now) = simulated::wall() {
        return now;
    }
    SystemTime::now()
}

/// Milliseconds of the wall clock.
pub fn wall_ms() -> u64 {
    let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The moment by which something has to be done.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment `duration` after `start`.
    pub fn after(start: Instant, duration: Duration) -> Self {
        Self(start + duration)
    }

    /// The time that is left, zero when it is over.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// Whether it is over.
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }
}
