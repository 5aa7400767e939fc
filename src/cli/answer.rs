//! How an answer is waited for and shown: the options that every subcommand has.

use std::time::Duration;

use serde_json::value::RawValue;

use super::address::Address;
use super::client::{Answer, Client};
use super::failure::Failure;
use super::output::print;
use super::seconds::seconds;
use super::waiting::Waiting;

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
