//! Why another node has not answered.

use std::fmt;

use crate::error::Applied;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// What was seen.
    pub kind: NoAnswerKind,
    /// The same in words.
    pub reason: String,
}

/// What was seen of a node that did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswerKind {
    /// Nothing was sent: refused, not reached, or known to be down.
    NotSent,
    /// Nothing was sent, as there was hardly any time left; the node may well be up.
    NoTime,
    /// Neither the request, which was sent, nor `/livez` is answered.
    Silent,
    /// The connection broke after something was sent.
    Broken,
    /// The time is over, and the node is alive.
    Late,
    /// What came is no answer of a node.
    Senseless,
    /// A node has answered that does not share the secret of this one.
    OtherSecret,
    /// Nothing was sent, since too much waits for the node already.
    Full,
    /// It was sent, and is not waited for any more: another node leads by now.
    Elsewhere,
}

impl NoAnswerKind {
    /// Whether a write that ended so may have happened.
    pub fn applied(self) -> Applied {
        if matches!(self, Self::NotSent | Self::NoTime | Self::Full) { Applied::No } else { Applied::Unknown }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
