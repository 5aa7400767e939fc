//! What can go wrong with a request, one case for each reaction of the client.

use std::fmt;

/// Whether a write happened although, or before, it failed: the header `Evenkv-Outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It did not happen and will not.
    No,
    /// It happened.
    Yes,
    /// It may have happened, or may yet: read the key to find out.
    Unknown,
}

impl Applied {
    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "not-applied",
            Self::Yes => "applied",
            Self::Unknown => "unknown",
        }
    }

    /// Reads the value of the header; anything else than we write ourselves is unknown.
    pub fn parse(text: &str) -> Self {
        match text {
            "not-applied" => Self::No,
            "applied" => Self::Yes,
            _ => Self::Unknown,
        }
    }
}

/// A request that was not done as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The headers contradict each other or mean different things to different readers; the connection is
    /// closed, since nobody can tell where the next request begins. Mend the client.
    Framing(String),
    /// The target is over the limit, given in bytes; the connection is closed. Ask for something with a shorter name.
    TargetTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The request is wrong and would be so again. Mend it.
    BadRequest(String),
    /// The key is over the limit, given in bytes.
    KeyTooLong {
        /// The configured limit in bytes.
        limit: usize,
    },
    /// The body or the value is over the limit, given in bytes.
    TooLarge(String),
    /// A PUT has no `value`.
    ValueMissing,
    /// The write would grow, and a replica of the shard holds as much as it may. Nothing was done: free something, or have more nodes.
    NoRoom(String),
    /// The name of the request stands for another request on the same key. Name it anew.
    OtherRequest,
    /// What the request says has to be there is not. Look what is, and ask again by that.
    Unmet,
    /// The key is not there.
    Absent,
    /// The part of the value that is asked for begins beyond its end. Ask for another.
    Unsatisfiable {
        /// The length of the value in bytes.
        length: usize,
    },
    /// There is nothing under this path, or no such thing.
    NotFound(String),
    /// The path is for connections that are upgraded to the protocol given.
    WrongProtocol(&'static str),
    /// The path takes other methods: those given.
    MethodNotAllowed(&'static str),
    /// The body did not come in time. Send it again, faster.
    TooSlow(String),
    /// The node has more to do than it can, or waits for another one to be of a newer version. Come back later.
    Overloaded(String),
    /// No replica of the shard can serve the key in time. Come back later.
    Unavailable {
        /// Who does not answer, and why.
        reason: String,
        /// Whether a write happened.
        applied: Applied,
    },
    /// The main of this follower is down. Come back later.
    MainDown {
        /// How that was seen.
        reason: String,
        /// Whether a write happened.
        applied: Applied,
    },
    /// This node has no view yet, or cannot take part in it; a question about the cluster has no answer.
    NotServing(String),
    /// A view change runs already: its id.
    ChangeRuns(String),
    /// It is not known whether what was asked for is done, or will be. Look.
    Unclear(String),
    /// What is asked for does not fit how things stand. Look, and ask for something else.
    Conflict(String),
    /// Nobody may ask without a token here. Show one that is known.
    Unauthorized {
        /// Whether one was shown.
        was_shown: bool,
    },
    /// Whoever asks may not ask for this: a stranger to the cluster, or one whose token is not good for it.
    Forbidden(String),
    /// Followers pass this request around in a circle.
    Loop,
    /// A bug of ours.
    Internal,
}

impl Error {
    /// An owner that cannot be asked.
    pub fn unavailable(node: impl fmt::Display, reason: impl fmt::Display, applied: Applied) -> Self {
        Self::Unavailable { reason: format!("{node}: {reason}"), applied }
    }

    /// Whether another replica can be asked after this, if there are others; or the only one once more, in case only the connection was
    /// bad: what comes of that is the truth about both.
    pub fn may_go_on(&self, has_others: impl FnOnce() -> bool, was_unclear: bool) -> bool {
        match self {
            Self::Unavailable { applied, .. } => *applied == Applied::Unknown && !was_unclear || has_others(),
            _ => false,
        }
    }

    /// Whether a write that ended in this error happened.
    pub fn applied(&self) -> Applied {
        match self {
            Self::Unavailable { applied, .. } | Self::MainDown { applied, .. } => *applied,
            Self::Internal | Self::Unclear(_) => Applied::Unknown,
            _ => Applied::No,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Framing(text)
            | Self::BadRequest(text)
            | Self::TooLarge(text)
            | Self::NotFound(text)
            | Self::TooSlow(text)
            | Self::Overloaded(text)
            | Self::NotServing(text)
            | Self::Unclear(text)
            | Self::Conflict(text)
            | Self::NoRoom(text)
            | Self::Forbidden(text) => f.write_str(text),
            Self::Unauthorized { was_shown: false } => f.write_str(
                "A token is needed: send Authorization: Bearer <token>, with one of those that the operator of this node has given out",
            ),
            Self::Unauthorized { was_shown: true } => {
                f.write_str("This token is not known here: ask the operator of this node for another")
            }
            Self::ChangeRuns(id) => write!(f, "View change {id} is running"),
            Self::TargetTooLong { limit } => {
                write!(f, "The target is too long: allowed are {limit} bytes")
            }
            Self::KeyTooLong { .. } => f.write_str("Key is too long"),
            Self::ValueMissing => f.write_str("Value is missing"),
            Self::OtherRequest => f.write_str(
                "This Idempotency-Key was used for another request on this key: \
                 send that request unchanged, or this one with another Idempotency-Key",
            ),
            Self::Unmet => f.write_str("Precondition failed"),
            Self::Absent => f.write_str("Key does not exist"),
            Self::Unsatisfiable { length } => {
                write!(f, "The range begins beyond the value, which has {length} bytes")
            }
            Self::MethodNotAllowed(allow) => {
                write!(f, "This path does not take this method: allowed is {allow}")
            }
            Self::WrongProtocol(protocol) => {
                write!(f, "Nothing is said here by HTTP: upgrade the connection to {protocol}")
            }
            Self::Unavailable { .. } => f.write_str("Unable to satisfy request"),
            Self::MainDown { .. } => f.write_str("Main instance is down"),
            Self::Loop => f.write_str(
                "Followers pass this request around in a circle: set FORWARDING_ADDRESS of one to a main",
            ),
            Self::Internal => f.write_str("Internal error: see the node's log"),
        }
    }
}

impl std::error::Error for Error {}
