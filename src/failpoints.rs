//! Failpoints: points in the course of a view change at which tests stop the process.

/// Stops the process here where a test wants it: for good, or until it is continued.
#[cfg(feature = "failpoints")]
pub(crate) fn stop(how: Option<&str>) {
    let signal = match how {
        Some("stop") => signal_hook::consts::SIGSTOP,
        _ => signal_hook::consts::SIGKILL,
    };
    let _ = signal_hook::low_level::raise(signal);
}

/// A point at which a test can stop the process; nothing in a build for use.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        (|| fail::fail_point!($name, |how| $crate::failpoints::stop(how.as_deref())))();
    };
}

pub(crate) use failpoint;
