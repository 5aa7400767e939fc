//! Key operations that another node has passed on. Nothing is passed on from here.

use std::sync::Arc;

use super::group_ops::{NotDone, Told};
use super::keys::{Asked, Operation, Outcome, not_agreed};
use super::passing::Passed;
use super::state::{Node, Standing};
use crate::clock::Deadline;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::shard::{Done, Refused, RequestId};
use crate::model::view;
use crate::wire::Addressed;

/// Why a forwarded request was not done here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotServed {
    /// Nothing was done: the owner is changing.
    Again,
    /// Nothing was done: another replica leads, where one is known, or why there is none.
    NotLeader(Option<Address>, String),
    /// Nothing was done: the shard can remember no more named writes.
    Full,
    /// The error says whether it was done.
    Failed(Error),
}

/// Why a request of another node is not for this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMeant {
    /// It is for an earlier start of this node.
    Gone(String),
    /// This start of the node is meant, but has not learned of the cluster yet: it will in a moment.
    NotYet(String),
    /// It is of another cluster.
    Unclear(String),
}

impl Node {
    /// The standing under which a request of another node is answered: both belong to the same cluster, and this
    /// start of the node is the one that is meant.
    ///
    /// # Errors
    /// The result that says so, and a sentence.
    pub fn check_addressed(&self, addressed: Option<&Addressed>) -> Result<Arc<Standing>, NotMeant> {
        let standing = self.standing();
        let Some(addressed) = addressed else {
            return Err(NotMeant::Unclear(format!("{}: the request names no cluster", self.address)));
        };
        if addressed.instance.is_some_and(|meant| meant != self.instance) {
            return Err(NotMeant::Gone(format!("{} was started again and holds nothing", self.address)));
        }
        match standing.serving() {
            Ok(serving) if serving.state.cluster == addressed.cluster => Ok(Arc::clone(&standing)),
            Ok(serving) => Err(NotMeant::Unclear(format!(
                "clusters differ: {} belongs to {}, the sender to {}",
                self.address, serving.state.cluster, addressed.cluster
            ))),
            Err(error) => Err(NotMeant::NotYet(format!("{} does not serve yet: {error}", self.address))),
        }
    }

    /// Does what another node passed on, if this node's shard owns the key, and this node leads it. Where its log was asked already,
    /// `told` is what came of that.
    ///
    /// # Errors
    /// [`NotServed`].
    pub async fn run_forwarded(
        &self,
        standing: &Standing,
        key: &[u8],
        operation: Operation<'_>,
        (epoch, request): (u64, Option<RequestId>),
        told: Option<Told>,
        deadline: Deadline,
    ) -> Result<Outcome, NotServed> {
        self.count_operation();
        let serving = standing.serving().map_err(|_| NotServed::Again)?;
        let (hash, shard) = serving.shard_of(key);
        if let Some(told) = told {
            return self.told_of_forwarded(shard, self.conclude(told, (hash, key), operation), operation);
        }
        // A shard that this node holds alone knows best what it owns.
        let alone = || serving.own.iter().map(|(_, own)| own).find(|own| !own.is_logged());
        let Some(own) = serving.own_of(shard.group).or_else(alone) else {
            let reason = format!("{} holds no replica of shard {}", self.address, shard.id);
            return Err(NotServed::NotLeader(None, reason));
        };
        if !own.is_logged() {
            let forwarded = request.map(|request| self.stamp(own, request, epoch));
            if forwarded.is_some_and(|forwarded| !self.has_room_for(own, hash, &forwarded)) {
                return Err(NotServed::Full);
            }
            let done = self.run_alone(own, (hash, key), operation, request, forwarded);
            return self.told_of_forwarded(shard, Ok(done), operation);
        }
        let write = (operation != Operation::Get).then(|| {
            let request = request.unwrap_or_else(|| Passed::drawn().request);
            self.stamp(own, request, epoch)
        });
        let done = self.run_in_group(own, (hash, key), operation, write, deadline).await;
        self.told_of_forwarded(shard, done, operation)
    }

    fn told_of_forwarded(
        &self,
        shard: &view::Shard,
        done: Result<Result<Done, Refused>, NotDone>,
        operation: Operation,
    ) -> Result<Outcome, NotServed> {
        match done {
            Ok(Ok(done)) => Ok(done.into()),
            Ok(Err(Refused::OtherRequest)) => Ok(Outcome::other_request()),
            Ok(Err(_)) | Err(NotDone::Again) => Err(NotServed::Again),
            Err(NotDone::Full) => Err(NotServed::Full),
            Err(NotDone::NotLeader(leader)) => {
                let voters = self.groups.seat(shard.group).map(|seat| seat.voters()).unwrap_or_default();
                let reason = if leader.is_none() { self.leaderless(shard, &voters) } else { String::new() };
                Err(NotServed::NotLeader(leader, reason))
            }
            Err(error) => match not_agreed(shard, &error, operation) {
                Ok(Asked::Elsewhere(error)) | Err(error) => Err(NotServed::Failed(error)),
                Ok(_) => Err(NotServed::Again),
            },
        }
    }
}
