//! The one place that reads the clocks.

use std::sync::OnceLock;
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
        static START: Cell<Option<Instant>> = const { Cell::new(None) };
        static UPTIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static PER_MILLE: Cell<u32> = const { Cell::new(1000) };
        static WALL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// From now on this thread has a clock of its own, which stands still.
    pub(crate) fn stop() {
        NOW.set(None);
        NOW.set(Some(super::now()));
        START.set(NOW.get());
    }

    /// The processes that run from now on were started so long before the simulation, and the clock that counts for them shows so many seconds after 1,000.
    pub(crate) fn set_ticks(uptime: Duration, per_mille: u32) {
        UPTIME.set(uptime);
        PER_MILLE.set(per_mille);
    }

    pub(super) fn ticks() -> Option<Duration> {
        Some((NOW.get()? - START.get()?) * PER_MILLE.get() / 1000 + UPTIME.get())
    }

    /// The clock goes on.
    pub(crate) fn advance(time: Duration) {
        NOW.set(NOW.get().map(|now| now + time));
    }

    /// The wall clock shows this from now on: of a machine whose clock jumps, for incarnation.
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

/// Milliseconds of a monotonic clock since this process has first asked for them. On Linux it goes on while a process is stopped or the machine sleeps. Elsewhere it may stand
/// still while the machine sleeps: what is kept for a while is then kept for longer.
pub fn ticks_ms() -> u64 {
    static START: OnceLock<Duration> = OnceLock::new();
    #[cfg(test)]
    if let Some(ticks) = simulated::ticks() {
        return u64::try_from(ticks.as_millis()).expect("a simulation is short");
    }
    let now = uptime();
    let since = now.saturating_sub(*START.get_or_init(|| now));
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time since the machine was started, with what it has slept.
#[cfg(target_os = "linux")]
fn uptime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or_else(|_| monotonic(), Duration::from)
}

#[cfg(not(target_os = "linux"))]
fn uptime() -> Duration {
    monotonic()
}

/// The time since this process has first asked for it.
fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    now() - *START.get_or_init(now)
}

/// The wall clock, for what people and HTTP headers read, and for nothing else.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn wall() -> SystemTime {
    #[cfg(test)]
    if let Some(now) = simulated::wall() {
        return now;
    }
    SystemTime::now()
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
