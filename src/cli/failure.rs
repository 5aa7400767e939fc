//! Why a subcommand could not do what it was asked, and the exit code that says so.

use std::fmt;
use std::time::Duration;

use super::address::Address;
use super::seconds::Seconds;
use crate::error::Applied;

/// Exit code: it is done.
pub(super) const DONE: u8 = 0;
/// Exit code: it was asked, and the answer is no.
pub(super) const NO: u8 = 1;
/// Exit code: the command line is wrong; clap uses the same one.
const USAGE: u8 = 2;
/// Exit code: anything else that went wrong.
const TROUBLE: u8 = 3;

/// What the help of `get` and `delete` says about exit codes.
pub(super) const PAIR_EXIT_CODES: &str = "Exit codes: 0 done, 1 the key does not exist, 2 wrong usage, \
     3 any other error (the node cannot be reached or does not answer in time, it answered with an error, ..).";
/// What the help of `put` says about them.
pub(super) const PUT_EXIT_CODES: &str = "Exit codes: 0 done, 1 the condition does not hold, 2 wrong usage, 3 any other error (the node cannot be \
     reached or does not answer in time, it answered with an error, ..).";
/// What the help of the commands that know no "no" says about exit codes.
pub(super) const PLAIN_EXIT_CODES: &str = "Exit codes: 0 done, 2 wrong usage, 3 any other error (the node cannot be reached or does not answer \
     in time, it answered with an error, ..).";

/// A case per reaction of the caller.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line asks for something that makes no sense: change it.
    Usage(String),
    /// No whole answer came from the node. Whether a write happened is unknown; what is safe to repeat may be
    /// tried again.
    Unreachable { node: Address, reason: String },
    /// No answer came within the time that was given. Wait longer, or ask another node.
    Late {
        node: Address,
        timeout: Duration,
        /// Whether what was asked for is done all the same.
        applied: Applied,
    },
    /// The node answered, but not with what was asked for.
    Refused { status: u16, reason: String },
    /// Something on this side: a file, a terminal, a request that cannot be formed.
    Local(String),
}

impl Failure {
    /// The exit code of the process that ends with this failure.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Unreachable { .. }
            | Failure::Late { .. }
            | Failure::Refused { .. }
            | Failure::Local(_) => TROUBLE,
        }
    }

    /// The same of a request that changes nothing, whatever its method.
    pub(super) fn of_question(self) -> Failure {
        match self {
            Failure::Late { node, timeout, .. } => Failure::Late { node, timeout, applied: Applied::No },
            other => other,
        }
    }

    /// May the same question be answered a moment later?
    pub(super) fn is_passing(&self) -> bool {
        matches!(
            self,
            Failure::Unreachable { .. } | Failure::Late { .. } | Failure::Refused { status: 502..=504, .. }
        )
    }

    /// What to do about it, where the text does not say so itself.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Failure::Unreachable { .. } => " (choose another node with --node or EVENKV_NODE)",
            Failure::Late { .. } => " (--timeout SECONDS waits longer, --node asks another node)",
            Failure::Refused { status: 401 | 403, .. } => {
                " (the token that is shown is the one in EVENKV_TOKEN)"
            }
            Failure::Usage(_) | Failure::Refused { .. } | Failure::Local(_) => "",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable { node, reason } => {
                write!(out, "no answer from the node at {node}: {reason}")
            }
            Failure::Late { node, timeout, applied } => {
                let doubt = match applied {
                    Applied::Unknown => ", so whether it was done is not known",
                    Applied::No | Applied::Yes => "",
                };
                write!(out, "the node at {node} did not answer within {}{doubt}", Seconds(*timeout))
            }
            Failure::Refused { status, reason } => write!(out, "the node answered {status}: {reason}"),
            Failure::Usage(text) | Failure::Local(text) => out.write_str(text),
        }
    }
}
