//! How long the keys and values of a cluster may be.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest key that a cluster can be told to take, in bytes: encoded it is within what a node reads of a request's target.
pub const LONGEST_KEY: usize = 65_536;
/// The longest value that a cluster can be told to take, in bytes.
pub const LONGEST_VALUE: usize = 256 << 20;
/// The same where shards have several replicas: a value goes through the log of its group whole.
pub const LONGEST_LOGGED_VALUE: usize = 48 << 20;
/// So many of the longest values must fit into a node's memory for large ones: one that comes in while another goes out.
const VALUES_IN_MEMORY: usize = 2;

/// The longest key and the longest value that a cluster takes. All its nodes go by them, whatever they are set to themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Longest key, in bytes.
    pub max_key_length: usize,
    /// Longest value, in bytes: those of a JSON text, or of what has another type.
    pub max_value_length: usize,
}

impl Limits {
    /// What a node has where nothing is set.
    pub const UNSET: Self = Self { max_key_length: 1024, max_value_length: 8 << 20 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::UNSET
    }
}

/// What one request with many operations may have. Each node goes by its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most operations.
    pub items: usize,
    /// The longest body, in bytes.
    pub bytes: usize,
}

impl BatchLimits {
    /// What a node has where nothing is set.
    pub const UNSET: Self = Self { items: 10_000, bytes: 16 << 20 };
}

/// The limits that a view change asks for; those that it does not name stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WantedLimits {
    /// Longest key, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_key_length: Option<usize>,
    /// Longest value, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_value_length: Option<usize>,
}

impl WantedLimits {
    /// Whether any limit is named.
    pub fn are_named(&self) -> bool {
        *self != Self::default()
    }
}

/// Why limits cannot be those of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitsError {
    /// A limit would be lower than it is.
    Lowered {
        /// Its name.
        name: &'static str,
        /// What it is, in bytes.
        from: usize,
        /// What was asked for.
        to: usize,
        /// What it may be at most.
        most: usize,
    },
    /// A limit would be higher than it can be.
    TooHigh {
        /// Its name.
        name: &'static str,
        /// What was asked for, in bytes.
        to: usize,
        /// What it may be at most.
        most: usize,
    },
    /// The longest value is too long for a log.
    TooLongForLog {
        /// The longest value, in bytes.
        max_value_length: usize,
        /// Replicas per shard.
        repl_factor: usize,
    },
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lowered { name, from, to, most } => write!(
                f,
                "{name} is {from} and cannot be lowered to {to}, since something longer may be stored: \
                 allowed is {from} to {most}"
            ),
            Self::TooHigh { name, to, most } => write!(f, "{name} is {to}: allowed is up to {most}"),
            Self::TooLongForLog { max_value_length, repl_factor: 1 } => write!(
                f,
                "max-value-length is {max_value_length}, and the nodes have DATA_DIR: allowed with that is a max-value-length of up to \
                 {LONGEST_LOGGED_VALUE}"
            ),
            Self::TooLongForLog { max_value_length, repl_factor } => write!(
                f,
                "max-value-length is {max_value_length} and repl-factor {repl_factor}: allowed with several replicas \
                 is a max-value-length of up to {LONGEST_LOGGED_VALUE}. Go on with one replica, or copy the pairs to another \
                 cluster whose nodes are started with such a MAX_VALUE_LENGTH"
            ),
        }
    }
}

impl std::error::Error for LimitsError {}

impl Limits {
    /// These limits with those that are asked for in their place, as far as they are higher: a limit is never lowered.
    #[must_use = "the limits themselves are not changed"]
    pub fn raised(self, wanted: &WantedLimits) -> Self {
        Self {
            max_key_length: self.max_key_length.max(wanted.max_key_length.unwrap_or(0)),
            max_value_length: self.max_value_length.max(wanted.max_value_length.unwrap_or(0)),
        }
    }

    /// Whether a cluster with these limits can have those that are asked for, with so many replicas per shard, by nodes that keep their shards on disks or not.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        self,
        wanted: &WantedLimits,
        repl_factor: usize,
        is_durable: bool,
    ) -> Result<(), LimitsError> {
        let limits = [
            ("max-key-length", self.max_key_length, wanted.max_key_length, LONGEST_KEY),
            ("max-value-length", self.max_value_length, wanted.max_value_length, LONGEST_VALUE),
        ];
        for (name, from, to, most) in limits {
            match to {
                Some(to) if to < from => return Err(LimitsError::Lowered { name, from, to, most }),
                Some(to) if to > most => return Err(LimitsError::TooHigh { name, to, most }),
                _ => {}
            }
        }
        let max_value_length = self.raised(wanted).max_value_length;
        if (repl_factor > 1 || is_durable) && max_value_length > LONGEST_LOGGED_VALUE {
            return Err(LimitsError::TooLongForLog { max_value_length, repl_factor });
        }
        Ok(())
    }

    /// The memory for large values that every node must have, in bytes.
    pub fn memory(self) -> usize {
        self.max_value_length * VALUES_IN_MEMORY
    }

    /// Why a node with so much memory for large values cannot take all that a cluster with these limits may hold, if so. Of a node that does
    /// not say how much it has nothing is known.
    pub fn lack(self, large_memory: Option<usize>) -> Option<String> {
        let (values, needed) = (self.max_value_length, self.memory());
        let little = large_memory.filter(|memory| *memory < needed)?;
        Some(format!(
            "LARGE_MEMORY is {little}, and values of up to {values} bytes need {needed} on every node of the cluster"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_as_far_as_they_can_be_and_never_lowered() {
        const MIB: usize = 1 << 20;
        // Present limits, wanted ones, replicas, and those that come of it, or what the refusal says.
        type Row =
            ((usize, usize), (Option<usize>, Option<usize>), usize, Result<(usize, usize), &'static str>);
        let table: [Row; 11] = [
            ((1024, 8 * MIB), (None, None), 3, Ok((1024, 8 * MIB))),
            ((1024, 8 * MIB), (Some(1024), Some(8 * MIB)), 3, Ok((1024, 8 * MIB))),
            ((1024, 8 * MIB), (Some(65_536), None), 3, Ok((65_536, 8 * MIB))),
            ((1024, 8 * MIB), (None, Some(48 * MIB)), 2, Ok((1024, 48 * MIB))),
            ((1024, 8 * MIB), (None, Some(256 * MIB)), 1, Ok((1024, 256 * MIB))),
            ((1024, 8 * MIB), (Some(1023), Some(9 * MIB)), 1, Err("lowered")),
            ((1024, 8 * MIB), (None, Some(8 * MIB - 1)), 1, Err("lowered")),
            ((1024, 8 * MIB), (Some(65_537), None), 1, Err("65536")),
            ((1024, 8 * MIB), (None, Some(256 * MIB + 1)), 1, Err("268435456")),
            ((1024, 8 * MIB), (None, Some(48 * MIB + 1)), 2, Err("50331648")),
            ((1024, 48 * MIB + 1), (None, None), 2, Err("50331648")),
        ];
        for ((key, value), (wanted_key, wanted_value), repl_factor, expected) in table {
            let present = Limits { max_key_length: key, max_value_length: value };
            let wanted = WantedLimits { max_key_length: wanted_key, max_value_length: wanted_value };
            let raised = present.raised(&wanted);
            assert!(
                raised.max_key_length >= key && raised.max_value_length >= value,
                "{present:?} {wanted:?}"
            );
            match (present.check(&wanted, repl_factor, false), expected) {
                (Ok(()), Ok(expected)) => {
                    assert_eq!((raised.max_key_length, raised.max_value_length), expected, "{wanted:?}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (got, _) => panic!("{present:?}, {wanted:?}, {repl_factor} replicas: {got:?}"),
            }
        }
    }
}
