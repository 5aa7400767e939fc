//! How an answer is waited for and shown: the options that every subcommand has.

use std::fmt;
use std::time::Duration;

use serde_json::value::RawValue;

use super::address::Address;
use super::client::{Answer, Client};
use super::failure::Failure;
use super::output::print;
use super::waiting::Waiting;

/// The longest time-out, in seconds: a day.
const LONGEST: f64 = 86_400.0;

/// The options that every subcommand has, but for `health` and `recover`, which wait for another time.
#[derive(Debug, clap::Args)]
pub(super) struct AnswerArgs {
    #[command(flatten)]
    form: FormArgs,
    /// Give up when the answer has not come within this time
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(super) timeout: Duration,
}

impl AnswerArgs {
    pub(super) fn form(&self) -> Form {
        self.form.form()
    }
}

/// The option that decides about the form.
#[derive(Debug, clap::Args)]
pub(super) struct FormArgs {
    /// Print the answer of the node as it came, which is JSON, also where it refuses
    #[arg(long)]
    json: bool,
}

impl FormArgs {
    pub(super) fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::Words }
    }
}

/// What is printed on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Words and tables, for people.
    Words,
    /// One JSON document, for programs. What is wrong is said in words besides, on standard error.
    Json,
}

impl Form {
    /// Prints the answer of a node as it came, in the form for programs. What is no JSON is not shown: no node has sent it.
    pub(super) fn show(self, answer: &Answer) -> Result<(), Failure> {
        match self {
            Form::Json if serde_json::from_slice::<&RawValue>(&answer.body).is_ok() => {
                print(answer.body.trim_ascii_end())
            }
            Form::Json | Form::Words => Ok(()),
        }
    }

    /// Prints this text, in the form for people.
    pub(super) fn say(self, text: &str) -> Result<(), Failure> {
        match self {
            Form::Words => print(text.as_bytes()),
            Form::Json => Ok(()),
        }
    }
}

/// Asks a node, once or several times, with so much time for all of it, and says so from a second on.
pub(super) fn ask<T>(
    node: &Address,
    timeout: Duration,
    asking: impl FnOnce(&Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let _waiting = Waiting::begin(node, timeout);
    asking(&Client::within(node, timeout)?)
}

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
