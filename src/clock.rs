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

/// Microseconds of the clock by which service managers compare moments of other processes with their own.
pub fn monotonic_us() -> u64 {
    let shown = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let shown = shown.map_or_else(|_| monotonic(), Duration::from);
    u64::try_from(shown.as_micros()).unwrap_or(u64::MAX)
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

/// The wall clock in milliseconds since 1970, for people.
pub fn wall_ms() -> u64 {
    let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Such a time as RFC 3339 has it, in UTC.
pub fn rfc3339(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Days are counted from the first of March of the year 0, so that a leap day is the last one of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hours, minutes) = (rest / 3_600_000, rest / 60_000 % 60);
    let (seconds, millis) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
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

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_709_251_200_001, "2024-03-01T00:00:00.001Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
