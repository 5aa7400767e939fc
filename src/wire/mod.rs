//! What crosses a socket between nodes, defined once for both ends: paths, headers and bodies.

pub mod batches;
pub mod frames;
pub mod listing;
pub mod orders;
pub mod pairs;
pub mod relayed;
pub mod status;

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};
use siphasher::sip128::SipHasher24;

use crate::model::address::Address;
use crate::model::format;
use crate::model::range::HashRange;
use crate::model::shard::{Audit, Claims, Stamp, Tally, Unread, WriteOutcome};

/// Where a node answers other nodes about one key; the percent-encoded key follows.
pub const KEYS: &str = "/node/keys/";
/// The same of requests with a condition: a node that does not know this path does not know conditions, either, and does nothing.
pub const CONDITIONAL_KEYS: &str = "/node/conditional-keys/";
/// The same of requests that store a value with a type of its own, which may have a condition, too: a node that does not know this path would take such a value for JSON.
pub const TYPED_KEYS: &str = "/node/typed-keys/";
/// The same of requests that give a pair a time to live or change that, which may have a condition and a value of any type, too: a node that does not know this path would
/// let the pair live for ever.
pub const TIMED_KEYS: &str = "/node/timed-keys/";
/// Where a node says who it is: [`Hello`].
pub const HELLO: &str = "/node/hello";
/// Where a node takes the news of its cluster: a [`MetaState`](crate::model::meta::MetaState).
pub const NEWS: &str = "/node/news";
/// Where a node takes an [`Order`] of the coordinator, or of another node.
pub const ORDERS: &str = "/node/orders";
/// Where a node takes an [`Order`] that waits for no other node.
pub const QUESTIONS: &str = "/node/questions";
/// Where the source of a piece takes a [`Transfer`] of its target.
pub const TRANSFER: &str = "/node/transfer";
/// Where a node takes messages of groups: a batch by POST, or any number on a connection that was upgraded to [`MESSAGES`] by GET.
pub const RAFT: &str = "/node/raft";
/// The protocol of such a connection: frames of messages, each with its length before it in four bytes, the lowest first. An empty frame
/// says only that the sender is there.
pub const MESSAGES: &str = "evenkv-messages";
/// Where a node takes requests about keys on a connection that was upgraded to [`frames::PROTOCOL`]: many at one time.
pub const REQUESTS: &str = "/node/requests";
/// Where a main takes requests about keys of clients on a connection that was upgraded to [`relayed::PROTOCOL`]: many at one time, from anybody, as they
/// came to a follower.
pub const RELAY: &str = "/relay";
/// In the request that opens a connection for messages: the address of the sender.
pub const FROM_HEADER: &str = "Evenkv-From";
/// The newest format that the sender knows, of messages, of what is asked about keys, or of pieces: see [`format`]. Whoever does not say it knows the first one.
pub const FORMAT_HEADER: &str = "Evenkv-Format";
/// Where an operator makes a survivor the first of a cluster whose meta group is lost.
pub const RECOVER: &str = "/node/recover";

/// In every node-to-node request that depends on who is asked: the cluster, the sender's epoch and the asked node's
/// incarnation, with dots between.
pub const VIEW_HEADER: &str = "Evenkv-View";
/// In every node-to-node request where `CLUSTER_SECRET` is set: the secret.
pub const SECRET_HEADER: &str = "Evenkv-Secret";
/// In a question who a node is, where `CLUSTER_SECRET` is set: a random text that the answer must prove the secret for.
pub const CHALLENGE_HEADER: &str = "Evenkv-Challenge";
/// In a question who a node is, of a node that has an address: who asks, a [`Sender`].
pub const SENDER_HEADER: &str = "Evenkv-Sender";
/// In a forwarded write: the id of the client's request, a [`RequestId`](crate::model::shard::RequestId).
pub const REQUEST_HEADER: &str = "Evenkv-Request";
/// In the answer to a forwarded key operation: what came of it, a [`KeyResult`].
pub const RESULT_HEADER: &str = "Evenkv-Result";
/// In a request under [`CONDITIONAL_KEYS`], [`TYPED_KEYS`] or [`TIMED_KEYS`]: the [`Condition`](crate::model::condition::Condition).
pub const CONDITION_HEADER: &str = "Evenkv-Condition";
/// In the answer to a forwarded key operation: the version of what is there, if anything is.
pub const VERSION_HEADER: &str = "Evenkv-Version";
/// In an answer that a replica does not lead its shard: who does, where that is known.
pub const LEADER_HEADER: &str = "Evenkv-Leader";
/// In a forwarded read that any replica may answer: [`STALE`].
pub const CONSISTENCY_HEADER: &str = "Evenkv-Consistency";
/// The value of the query parameter `consistency`, and of [`CONSISTENCY_HEADER`], for a read that any replica may answer.
pub const STALE: &str = "stale";
/// In the answer to such a read: how old what was read may be, in milliseconds.
pub const STALENESS_HEADER: &str = "Evenkv-Staleness-Ms";
/// In the answer to a write that failed: whether it happened.
pub const OUTCOME_HEADER: &str = "Evenkv-Outcome";
/// In an error: who or what is the cause, for people.
pub const REASON_HEADER: &str = "Evenkv-Reason";
/// In an error about a limit: the limit.
pub const LIMIT_HEADER: &str = "Evenkv-Limit";
/// The followers that a request has come through, each by its random id, with commas between.
pub const HOP_HEADER: &str = "Evenkv-Hop";
/// The header by which whoever watches goes on where he was: what the browsers' `EventSource` sends by itself.
pub const LAST_EVENT_ID: &str = "Last-Event-ID";
/// The name of an event that says to whoever watches: something was missed.
pub const RESYNC: &str = "resync";

/// What came of a forwarded key operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyResult {
    /// PUT or DELETE: what the write did.
    Wrote(WriteOutcome),
    /// GET: the body is the value, as [`value`](crate::model::value) stores it.
    Found,
    /// GET: the key is absent.
    Missing,
    /// GET: what is there is not read, since the condition does not hold.
    Unread(Unread),
    /// Nothing was done: the key is on its way from one shard to another. Look at the newest view and ask again.
    Again,
    /// Nothing was done: the asked node is not the one that is meant, since it was started again.
    Gone,
    /// Nothing was done: another replica leads the shard, named by [`LEADER_HEADER`] where it is known.
    NotLeader,
    /// Of an order to take a piece: its source is not the one that is meant, since it was started again.
    LostSource,
    /// Nothing was done: another request on the key was done under the same name.
    OtherRequest,
    /// Nothing was done: the shard can remember no more named writes.
    Full,
}

impl KeyResult {
    const ALL: [(Self, &'static str); 15] = [
        (Self::Wrote(WriteOutcome::Added), "added"),
        (Self::Wrote(WriteOutcome::Updated), "updated"),
        (Self::Wrote(WriteOutcome::Deleted), "deleted"),
        (Self::Wrote(WriteOutcome::Absent), "absent"),
        (Self::Wrote(WriteOutcome::Unmet), "unmet"),
        (Self::Found, "found"),
        (Self::Missing, "absent"),
        (Self::Unread(Unread::Unmet), "unmet"),
        (Self::Unread(Unread::Unchanged), "unchanged"),
        (Self::Again, "again"),
        (Self::Gone, "gone"),
        (Self::NotLeader, "not-leader"),
        (Self::LostSource, "lost-source"),
        (Self::OtherRequest, "other-request"),
        (Self::Full, "full"),
    ];

    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(result, _)| *result == self).expect("each result has a name").1
    }

    /// Reads the value of the header, in the answer to a read or to something else.
    pub fn parse(text: &str, is_read: bool) -> Option<Self> {
        let fits = |result: Self| match result {
            Self::Found | Self::Missing | Self::Unread(_) => is_read,
            Self::Wrote(_) => !is_read,
            _ => true,
        };
        Self::ALL.iter().find(|(result, name)| *name == text && fits(*result)).map(|(result, _)| *result)
    }
}

/// The path of requests about keys that need a format.
pub const fn keys_of(needs: u32) -> &'static str {
    match needs {
        format::TTL.. => TIMED_KEYS,
        format::TYPES.. => TYPED_KEYS,
        format::CONDITIONS.. => CONDITIONAL_KEYS,
        _ => KEYS,
    }
}

/// Who is asked, and from where: the value of [`VIEW_HEADER`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressed {
    /// The id of the sender's cluster.
    pub cluster: String,
    /// The epoch that the sender knows.
    pub epoch: u64,
    /// The start of the node that is meant; whichever there is where none is. In the header that is 0, which no start has.
    pub incarnation: Option<u64>,
}

impl Addressed {
    /// Reads the header's value.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let cluster = parts.next()?.to_owned();
        let epoch = parts.next()?.parse().ok()?;
        let incarnation = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { cluster, epoch, incarnation: Some(incarnation).filter(|incarnation| *incarnation != 0) })
    }
}

impl fmt::Display for Addressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{:016x}", self.cluster, self.epoch, self.incarnation.unwrap_or(0))
    }
}

/// Who a node is and how it sees the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's identity.
    pub address: Address,
    /// The random id of this start of the node.
    pub incarnation: u64,
    /// The first view that it was started with, while it has not learned of a cluster.
    pub view: Option<HelloView>,
    /// The cluster that it knows.
    pub cluster: Option<String>,
    /// The version of the newest state that it has learned; 0 for none.
    pub version: u64,
    /// The pairs of its shard, if it has one.
    pub pairs: Option<u64>,
    /// Its replica of the meta group.
    pub local: Option<MetaReplica>,
    /// Why it cannot become part of another cluster, if so.
    pub bound: Option<String>,
    /// The memory that it has for large values, in bytes.
    #[serde(default)]
    pub large_memory: Option<usize>,
    /// How many bytes more it takes, where that is bounded.
    #[serde(default)]
    pub room: Option<u64>,
    /// Whether it was given a secret of a cluster.
    #[serde(default)]
    pub has_secret: bool,
    /// Whether it keeps what it holds on a disk: all nodes of a cluster do, or none.
    #[serde(default)]
    pub durable: bool,
    /// That it knows the secret of the cluster: see [`proof`].
    pub proof: Option<String>,
}

impl Hello {
    /// Whether the node at this address shares the secret of this one, or has none as this one; `challenge` is what it was asked to prove it
    /// for.
    ///
    /// # Errors
    /// A sentence that says how the secrets differ.
    pub fn check_secret(&self, own: Option<&str>, challenge: &str, at: &Address) -> Result<(), String> {
        let advice = "set the same CLUSTER_SECRET on all nodes of the cluster";
        match (own, self.has_secret) {
            (None, false) => Ok(()),
            (None, true) => Err(format!("it has a CLUSTER_SECRET, and this node has none: {advice}")),
            (Some(_), false) => Err(format!("it has no CLUSTER_SECRET, and this node has one: {advice}")),
            (Some(secret), true) if self.proof == Some(proof(secret, challenge, at)) => Ok(()),
            (Some(_), true) if self.address != *at => Err(format!(
                "it calls itself {}, so it cannot prove its CLUSTER_SECRET for {at}",
                self.address
            )),
            (Some(_), true) => Err(format!("it has another CLUSTER_SECRET than this node: {advice}")),
        }
    }
}

/// What a node answers to a challenge in [`CHALLENGE_HEADER`]: who does not know the secret cannot, and who passes the challenge on to
/// somebody else gets an answer that names that one.
pub fn proof(secret: &str, challenge: &str, address: &Address) -> String {
    keyed(secret, &format!("{challenge} {address}"))
}

fn keyed(secret: &str, text: &str) -> String {
    let key = SipHasher24::new().hash(secret.as_bytes());
    let hash = SipHasher24::new_with_keys(key.h1, key.h2).hash(text.as_bytes());
    format!("{:016x}{:016x}", hash.h1, hash.h2)
}

/// Which start of which node asks: the value of [`SENDER_HEADER`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The node's identity.
    pub address: Address,
    /// The random id of this start of it.
    pub incarnation: u64,
}

impl Sender {
    /// The header's value; where `CLUSTER_SECRET` is set, only who knows it can make one.
    pub fn signed(&self, secret: Option<&str>) -> String {
        let Self { address, incarnation } = self;
        let said = format!("{address} {incarnation:016x}");
        match secret {
            // It ends otherwise than what a node proves to whoever asks it to, so that is of no use here.
            Some(secret) => format!("{said} {}", keyed(secret, &format!("{said} asks"))),
            None => said,
        }
    }

    /// Reads the header's value; nothing where it was not made with the same secret.
    pub fn parse(text: &str, secret: Option<&str>) -> Option<Self> {
        let mut parts = text.split(' ');
        let sender = Self {
            address: parts.next()?.parse().ok()?,
            incarnation: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        (sender.signed(secret) == text).then_some(sender)
    }
}

/// The parts of a first view that all its nodes have to agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloView {
    /// The nodes in their order.
    pub nodes: Vec<Address>,
    /// Replicas per shard.
    pub repl_factor: usize,
}

/// What a replica finds in an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Audited {
    /// What it held.
    Found(Box<Audit>),
    /// Nothing, and another audit may find something: a sentence that says why.
    Disturbed(String),
}

/// The node that gives a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its address.
    pub node: Address,
    /// Its incarnation; whichever leads the group there where there is none.
    pub incarnation: Option<u64>,
    /// The group.
    pub group: u64,
}

/// What a target asks of the source of a piece.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// Note what is written to the range from now on.
    Begin {
        /// Who orders it.
        stamp: Stamp,
        /// The group that gives.
        group: u64,
        /// The range.
        range: HashRange,
    },
    /// Send pairs from the start of this range.
    Batch {
        /// Who orders it.
        stamp: Stamp,
        /// The group that gives.
        group: u64,
        /// What is left of the range.
        rest: HashRange,
    },
    /// Send what was written since.
    Delta {
        /// Who orders it.
        stamp: Stamp,
        /// The group that gives.
        group: u64,
    },
    /// Freeze the range and send the rest.
    Freeze {
        /// Who orders it.
        stamp: Stamp,
        /// The group that gives.
        group: u64,
    },
}

/// A piece that waits to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its pairs, at the target as at the source.
    pub pairs: u64,
    /// For how long it has been frozen, in microseconds.
    pub held_us: u64,
}

/// A shard as a node holds it, and where its replica of the group stands, as it knows by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The group.
    pub group: u64,
    /// The start of the node.
    pub incarnation: u64,
    /// What it is in the group; nothing where the node keeps the shard alone, without a log.
    pub replica: Option<Replica>,
    /// What it owns, also by what its log holds and it has not applied.
    pub claims: Claims,
}

/// A replica of the meta group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaReplica {
    /// The group.
    pub group: u64,
    /// The replica.
    pub replica: Replica,
}

/// A replica in its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its id.
    pub id: u64,
    /// Whether it leads, as far as it knows.
    pub leads: bool,
    /// Those who vote: replica ids and addresses.
    pub voters: Vec<(u64, Address)>,
    /// Those who voted before a change of members that is under way: both have to agree meanwhile.
    pub outgoing: Vec<(u64, Address)>,
    /// Term and index of the last entry of its log.
    pub last: (u64, u64),
    /// Up to where it knows that entries are committed.
    pub committed: u64,
}

impl Replica {
    /// Whether those that are there are enough to agree on something.
    pub fn has_majority(&self, is_there: impl Fn(u64) -> bool) -> bool {
        let most = |voters: &[(u64, Address)]| {
            let living = voters.iter().filter(|(id, _)| is_there(*id)).count();
            2 * living > voters.len()
        };
        most(&self.voters) && (self.outgoing.is_empty() || most(&self.outgoing))
    }
}

impl ReplicaReport {
    /// Whether there is anything to go on from: a replica that waits for its first entry or snapshot holds nothing.
    pub fn holds_something(&self) -> bool {
        self.replica.as_ref().is_none_or(|replica| replica.last.1 > 0)
    }
}

/// The members of a group, as its leader knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMembers {
    /// The leader.
    pub by: Leads,
    /// Whether the shard has a log; without one the leader is all there is.
    pub is_logged: bool,
    /// Those who vote: replica ids and addresses.
    pub voters: Vec<(u64, Address)>,
    /// All others.
    pub learners: Vec<(u64, Address)>,
    /// Whether they are just being changed.
    pub changing: bool,
    /// Up to where the leader has applied the log.
    pub index: u64,
    /// The version of the newest state by which the shard acts.
    pub version: u64,
    /// Grows whenever a learner gets entries, or another replica a piece of a snapshot.
    pub fed: u64,
    /// Nodes whose replica gets no vote, since their version of the program cannot read what the shard holds. Of older versions none say so.
    #[serde(default)]
    pub too_old: Vec<Address>,
    /// The bytes of the shard's keys and values, where the leader tells them.
    #[serde(default)]
    pub bytes: Option<u64>,
}

/// A node that leads a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leads {
    /// Its address.
    pub node: Address,
    /// This start of it.
    pub incarnation: u64,
}

/// A shard in the course of a view change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallied {
    /// What clients have created and deleted.
    pub tally: Tally,
    /// The pairs that it has now.
    pub pairs: u64,
}

/// What became of the wish to begin a view change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Begun {
    /// It runs, by this id.
    Yes(u64),
    /// Another one runs.
    Running(u64),
    /// Another node leads the meta group, or none.
    NotLeader,
    /// It would not be done, so another one that is blocked goes on: why.
    Refused(String),
    /// It may have been begun, or may yet be.
    Unknown,
}

/// What became of the wish to cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cancelled {
    /// It will end without having changed anything.
    Yes(u64),
    /// Something was handed over already.
    TooLate(u64),
    /// None runs.
    None,
    /// Another node leads the meta group, or none.
    NotLeader,
    /// It may be cancelled, or may yet be.
    Unknown,
}

/// How far a view change is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// The node that coordinates it.
    pub coordinator: Address,
    /// What is being done.
    pub phase: ChangePhase,
    /// Pairs that were handed over.
    pub moved: u64,
    /// Pairs to be handed over in all.
    pub total: u64,
    /// How quickly.
    pub pairs_per_second: u64,
    /// How long it will take, if that can be said.
    pub remaining_seconds: Option<f64>,
    /// Why it makes no progress.
    pub blocked_by: Option<String>,
    /// The piece that is being moved.
    pub piece: Option<PieceShown>,
    /// The order that is waited for.
    pub waits_for: Option<WaitsFor>,
}

/// Where a view change stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangePhase {
    /// There has been none.
    None,
    /// It was begun, and nobody coordinates it yet.
    Preparing,
    /// The shards are counted and the plan is made.
    Counting,
    /// Pairs are on their way.
    Moving,
    /// The replicas move to their nodes, and all is counted once more.
    Finishing,
    /// It makes no progress.
    Blocked,
    /// It has ended as it was asked for.
    Finished,
    /// It has ended, and nothing was done.
    Failed,
    /// It was cancelled, and nothing was done.
    Cancelled,
    /// Another one has taken its place.
    Superseded,
}

impl ChangePhase {
    /// Its name, as answers have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Preparing => "preparing",
            Self::Counting => "counting",
            Self::Moving => "moving",
            Self::Finishing => "finishing",
            Self::Blocked => "blocked",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }

    /// Whether it goes on.
    pub fn runs(self) -> bool {
        matches!(self, Self::Preparing | Self::Counting | Self::Moving | Self::Finishing | Self::Blocked)
    }
}

/// A piece on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PieceShown {
    /// Its number, from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Its pairs.
    pub pairs: u64,
    /// The id of the shard that gives it.
    pub from: String,
    /// The id of the shard that takes it.
    pub to: String,
}

/// An order that is not answered yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WaitsFor {
    /// What it is.
    pub order: String,
    /// Who carries it out.
    pub node: String,
    /// For how long.
    pub seconds: f64,
}

/// Why a view change was not planned. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotPlanned {
    /// The request is wrong as things stand.
    Refused(String),
    /// It could not be done now.
    Failed(String),
    /// A view change runs: its id.
    Running(u64),
}

/// What a view change would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedView {
    /// The pairs now.
    pub keys: u64,
    /// Those of them that would change shard.
    pub moved: u64,
    /// The least number that has to.
    pub minimum: u64,
    /// Pairs that would be written to nodes that do not hold them.
    pub copied: u64,
    /// The shards that there would be.
    pub shards: Vec<PlannedShard>,
    /// Who would give how much to whom.
    pub moves: Vec<PlannedMove>,
}

/// A shard as it would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedShard {
    /// Its id.
    pub shard_id: String,
    /// Its pairs now; nothing for a new one.
    pub key_count: Option<u64>,
    /// The pairs that it would have.
    pub key_count_planned: u64,
    /// Its nodes.
    pub replicas: Vec<Address>,
}

/// What one shard would give to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedMove {
    /// The id, now, of the shard that gives.
    pub from: String,
    /// The id, then, of the shard that takes.
    pub to: String,
    /// How many pairs.
    pub pairs: u64,
    /// In how many ranges.
    pub ranges: usize,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_believed_where_the_secret_is_the_same() {
        let sender = Sender { address: "n1:7".parse().unwrap(), incarnation: 0xab };
        for (signed, asked, is_believed) in [
            (None, None, true),
            (Some("hush"), Some("hush"), true),
            (Some("other"), Some("hush"), false),
            (None, Some("hush"), false),
            (Some("hush"), None, false),
        ] {
            let parsed = Sender::parse(&sender.signed(signed), asked);
            assert_eq!(parsed, is_believed.then(|| sender.clone()), "{signed:?} {asked:?}");
        }
        // What a node proves to whoever asks it is no signature.
        let said = sender.signed(None);
        for challenge in [said.as_str(), "n1:7", &format!("{said} asks")] {
            let forged = format!("{said} {}", proof("hush", challenge, &sender.address));
            assert_eq!(Sender::parse(&forged, Some("hush")), None, "{challenge}");
        }
        for text in ["", "n1:7", "n1:7 x", "n1:7 ab", "n1 00000000000000ab", "n1:7 00000000000000ab  "] {
            assert_eq!(Sender::parse(text, None), None, "{text:?}");
        }
    }
}
