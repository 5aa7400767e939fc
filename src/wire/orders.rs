//! What nodes ask of each other, mostly the coordinator of a view change: each order says what it is answered by, whether it may wait for
//! other nodes, and who may give it.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::status::NodeReport;
use super::{
    Audited, Begun, Cancelled, GroupMembers, Leads, NotPlanned, ORDERS, PlannedView, Prepared, Progress,
    QUESTIONS, ReplicaReport, Source, Tallied,
};
use crate::model::address::Address;
use crate::model::meta::{Command, MetaState, Void, Wanted};
use crate::model::range::{HashRange, Point};
use crate::model::shard::{AuditBegun, CensusCount, CensusId, Stamp};

/// An order, with the type of its answer.
pub trait Answered: Clone + Into<Order> {
    /// What a node answers that has carried it out.
    type Answer: Serialize + DeserializeOwned;
    /// What it is about, in words, for those who look on; on the wire, too.
    const NAME: &'static str;
}

/// Declares the orders. In a row: the type, its name, whether it is answered at once or waits for other nodes (and so has workers of its own
/// where it is carried out), whether anyone may give it or members of the cluster only, its answer, its fields.
macro_rules! orders {
    ($(
        $(#[$doc:meta])*
        $order:ident $name:literal ($lane:ident, $sender:ident) -> $answer:ty {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Serialize, Deserialize)]
            pub struct $order {
                $($(#[$field_doc])* pub $field: $type,)*
            }

            impl Answered for $order {
                type Answer = $answer;
                const NAME: &'static str = $name;
            }

            impl From<$order> for Order {
                fn from(order: $order) -> Self {
                    Self::$order(order)
                }
            }
        )*

        /// Any order, as it is sent.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        pub enum Order {
            $($(#[$doc])* #[serde(rename = $name)] $order($order),)*
        }

        impl Order {
            /// What it is about, in words, for those who look on.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$order(_) => $name,)*
                }
            }

            /// Where it is sent: what may wait for other nodes has workers of its own.
            pub fn path(&self) -> &'static str {
                match self {
                    $(Self::$order(_) => orders!(@path $lane),)*
                }
            }

            /// Whether it may come from outside the cluster.
            pub fn is_open(&self) -> bool {
                match self {
                    $(Self::$order(_) => orders!(@open $sender),)*
                }
            }
        }
    };
    (@path at_once) => { QUESTIONS };
    (@path waits) => { ORDERS };
    (@open anyone) => { true };
    (@open members) => { false };
}

orders! {
    /// Become reserved as a part of this cluster, and take no writes of your own.
    Reserve "reserve" (at_once, anyone) -> u64 {
        /// The cluster's id.
        cluster: String,
        /// Whether it is about to be founded.
        founding: bool,
    }
    /// A node has come back with the folder in which it keeps what it holds: how often one was started with that folder, where that is known to be as often.
    Returned "returned" (at_once, members) -> Option<u64> {
        /// The node.
        node: Address,
        /// The random id of its folder.
        folder: u64,
        /// How often it was started with that, this time included.
        starts: u64,
        /// The random id of this time.
        life: u64,
    }
    /// The reservation is not needed any more.
    Release "release" (at_once, anyone) -> () {
        /// The cluster's id.
        cluster: String,
    }
    /// Take part in a group that the sender leads, under the replica id that is answered.
    Join "join" (at_once, anyone) -> u64 {
        /// The id of the cluster.
        cluster: String,
        /// The group.
        group: u64,
        /// The term in which the sender leads it.
        term: u64,
        /// The replica ids of its members: whoever was one and is not among them was taken out, and takes part under another id.
        members: Vec<u64>,
        /// Up to where the sender has applied the log at least, with these members.
        index: u64,
    }
    /// Can you reach this start of this node?
    Reach "reach" (waits, members) -> bool {
        /// The node.
        node: Address,
        /// Its incarnation; any where there is none.
        incarnation: Option<u64>,
    }
    /// Count ranges of a shard that you lead.
    Census "census" (at_once, members) -> CensusCount {
        /// Its group.
        group: u64,
        /// Which census.
        id: CensusId,
        /// What to count.
        ranges: Vec<HashRange>,
    }
    /// Where, at the census, were the keys of these ranks? Nothing where it is void.
    Places "places" (at_once, members) -> Option<Vec<Point>> {
        /// The group of a shard that you lead.
        group: u64,
        /// Which census.
        id: CensusId,
        /// Range and rank.
        questions: Vec<(HashRange, u64)>,
    }
    /// Cut ranges into pieces, each with its pairs.
    Pieces "pieces" (at_once, members) -> Vec<Vec<(HashRange, u64)>> {
        /// The group of a shard that you lead.
        group: u64,
        /// What to cut.
        ranges: Vec<HashRange>,
    }
    /// No more places are asked for.
    CloseCensus "close-census" (at_once, members) -> () {
        /// The group of a shard that you lead.
        group: u64,
        /// Which census.
        id: CensusId,
    }
    /// Tally what clients do from now on, if you do not yet, and say what it is.
    Tally "tally" (at_once, members) -> Tallied {
        /// The group of a shard that you lead.
        group: u64,
        /// The view change.
        change: u64,
    }
    /// Receive a piece: answered when all of it was copied that was there.
    CopyPiece "copy" (waits, members) -> () {
        /// Who orders it.
        stamp: Stamp,
        /// The group that takes it.
        group: u64,
        /// The piece.
        range: HashRange,
        /// Where it comes from; nothing where its pairs were given up.
        source: Option<Source>,
    }
    /// Have the piece frozen and receive the rest.
    PreparePiece "prepare" (waits, members) -> Prepared {
        /// Who orders it.
        stamp: Stamp,
        /// The group that takes it.
        group: u64,
        /// Where it comes from; nothing where its pairs were given up.
        source: Option<Source>,
        /// The range may be frozen for so many milliseconds.
        limit_ms: u64,
        /// The generation of the cluster: where the pairs were given up, versions of the range are drawn in it from now on.
        #[serde(default)]
        generation: u64,
    }
    /// What is the newest state that you know?
    News "news" (at_once, anyone) -> Option<Arc<MetaState>> {}
    /// How many pairs does a shard have that you lead?
    Count "count" (at_once, members) -> u64 {
        /// Its group.
        group: u64,
    }
    /// Begin an audit of a shard that you lead.
    BeginAudit "begin-audit" (at_once, members) -> AuditBegun {
        /// Its group.
        group: u64,
        /// The audit.
        id: u64,
    }
    /// What was done last to the pairs of a shard that you lead, beyond a cursor? From the first such question on that is kept. The answer is a page of
    /// [`history`](crate::model::history), in base64.
    Changes "changes" (at_once, members) -> String {
        /// Its group.
        group: u64,
        /// The binary form of the cursor, in base64.
        cursor: String,
    }
    /// What does your replica of a shard find?
    Audit "audit" (waits, members) -> Audited {
        /// Its group.
        group: u64,
        /// The audit that its group has begun; where there is none, it begins one by itself.
        id: Option<u64>,
    }
    /// Do you lead this shard?
    Lead "lead" (at_once, members) -> Leads {
        /// Its group.
        group: u64,
    }
    /// Who are the members of the group that you lead, and up to where is its log applied?
    Members "members" (at_once, members) -> GroupMembers {
        /// The group.
        group: u64,
    }
    /// Which shards do you hold, and where do your replicas of them stand?
    Replicas "replicas" (waits, members) -> Vec<ReplicaReport> {}
    /// Have groups that have lost their majority succeeded by others, if you lead the meta group: what that came to, or nothing where you do not.
    Succeed "succeed" (waits, members) -> Option<Result<(), Void>> {
        /// The command of the meta group.
        command: Box<Command>,
    }
    /// Take my replica, which this is, out of the group that you lead: it is about to stop. Answered when it is out.
    Leave "leave" (waits, members) -> () {
        /// The group.
        group: u64,
        /// The replica.
        replica: u64,
    }
    /// Begin a view change, if you lead the meta group.
    BeginChange "begin-change" (waits, members) -> Begun {
        /// The id that it is to have: asked again under the same id, it is begun once.
        id: u64,
        /// What is asked for.
        wanted: Wanted,
    }
    /// Only plan it, if you lead the meta group; nothing where you do not.
    PlanChange "plan-change" (waits, members) -> Option<Result<PlannedView, NotPlanned>> {
        /// What is asked for.
        wanted: Wanted,
    }
    /// Cancel the view change, if you lead the meta group.
    CancelChange "cancel-change" (waits, members) -> Cancelled {}
    /// What do you say of yourself, for those who look at the whole?
    Report "report" (at_once, anyone) -> NodeReport {}
    /// How far is the view change, if you lead the meta group?
    ChangeProgress "change-progress" (at_once, members) -> Option<Progress> {}
}
