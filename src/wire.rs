//! What crosses a socket between nodes, defined once for both ends: paths, headers and bodies.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

use crate::model::address::Address;

/// Where a node answers other nodes about one key; the percent-encoded key follows.
pub const KEYS: &str = "/node/keys/";
/// Where a node says who it is: [`Hello`].
pub const HELLO: &str = "/node/hello";
/// Where a node counts its pairs: [`Count`].
pub const COUNT: &str = "/node/count";

/// In every node-to-node request about keys: the fingerprint of the sender's view.
pub const VIEW_HEADER: &str = "Evenkv-View";
/// In the answer to a forwarded key operation: what came of it, a [`KeyResult`].
pub const RESULT_HEADER: &str = "Evenkv-Result";
/// In the answer to a write that failed: whether it happened.
pub const OUTCOME_HEADER: &str = "Evenkv-Outcome";
/// In an error: who or what is the cause, for people.
pub const REASON_HEADER: &str = "Evenkv-Reason";
/// In an error about a limit: the limit.
pub const LIMIT_HEADER: &str = "Evenkv-Limit";
/// The followers that a request has come through, each by its random id, with commas between.
pub const HOP_HEADER: &str = "Evenkv-Hop";

/// What came of a forwarded key operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyResult {
    /// PUT: the key was absent.
    Added,
    /// PUT: the key was present.
    Updated,
    /// GET: the body is the raw JSON text of the value.
    Found,
    /// DELETE: the key was present.
    Deleted,
    /// GET or DELETE: the key is absent.
    Absent,
}

impl KeyResult {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Added, "added"),
        (Self::Updated, "updated"),
        (Self::Found, "found"),
        (Self::Deleted, "deleted"),
        (Self::Absent, "absent"),
    ];

    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(result, _)| *result == self).expect("each result has a name").1
    }

    /// Reads the value of the header.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(result, _)| *result)
    }
}

/// Who a node is and how it sees the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's identity.
    pub address: Address,
    /// The view it serves or wants to serve; a passive node that knows no cluster has none.
    pub view: Option<HelloView>,
    /// The random id of this start of the node.
    pub instance: String,
    /// With which starts of the other nodes it began to serve that view; nothing while it does not serve.
    pub serving_with: Option<BTreeMap<Address, String>>,
}

/// The parts that a fixed view is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloView {
    /// The nodes in their order.
    pub nodes: Vec<Address>,
    /// Replicas per shard.
    pub repl_factor: usize,
}

/// How many pairs a node holds for its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Pairs of the ranges that the shard owns.
    pub pairs: u64,
}

/// The error of a node-to-node request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub error: String,
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// A key as the last part of a path. The dot is encoded too: no reader may take `..` for a step up.
pub fn encode_key(key: &[u8]) -> String {
    percent_encode(key, UNRESERVED).to_string()
}
