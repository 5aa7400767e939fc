//! Times as people write them: numbers of seconds.

use std::fmt;
use std::time::Duration;

/// The longest time-out, in seconds: a day.
const LONGEST: f64 = 86_400.0;

/// Reads a time-out: a number of seconds, with decimals where these are wanted.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && *number <= LONGEST);
    let wrong =
        || format!("{text:?} is no time-out: allowed is a number of seconds up to {LONGEST}, as 10 or 0.5");
    number.and_then(|number| Duration::try_from_secs_f64(number).ok()).ok_or_else(wrong)
}

/// A time as people write it: `10 s`.
pub(super) struct Seconds(pub(super) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::{Seconds, seconds};

    #[test]
    fn a_time_out_is_a_number_of_seconds() {
        for (text, expected) in [("10", "10 s"), ("0.5", "0.5 s"), ("86400", "86400 s")] {
            assert_eq!(Seconds(seconds(text).unwrap()).to_string(), expected);
        }
        for text in ["", "0", "-1", "ten", "10s", "NaN", "inf", "86401"] {
            let error = seconds(text).unwrap_err();
            assert!(error.contains("allowed is a number of seconds"), "{text}: {error}");
        }
    }
}
