//! Key operations that another node has passed on. Nothing is passed on from here.

use std::sync::Arc;

use super::group_ops::{Asking, LogAnswer};
use super::keys::{NotServed, Operation, Reply};
use super::passing::Passed;
use super::state::{Node, Serving, ServingState};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::shard::{RequestId, Shard};
use crate::model::view;
use crate::wire::Addressed;

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

impl From<NotMeant> for NotServed {
    fn from(not_meant: NotMeant) -> Self {
        match not_meant {
            NotMeant::Gone(_) => Self::Gone,
            NotMeant::NotYet(_) => Self::Again,
            NotMeant::Unclear(reason) => Self::Failed(Error::Unavailable { reason, applied: Applied::No }),
        }
    }
}

impl Node {
    /// The state of serving under which a request of another node is answered: both belong to the same cluster, and this
    /// start of the node is the one that is meant.
    ///
    /// # Errors
    /// The result that says so, and a sentence.
    pub fn check_addressed(&self, addressed: Option<&Addressed>) -> Result<Arc<ServingState>, NotMeant> {
        let serving_state = self.serving_state();
        let Some(addressed) = addressed else {
            return Err(NotMeant::Unclear(format!("{}: the request names no cluster", self.address)));
        };
        if addressed.incarnation.is_some_and(|meant| meant != self.incarnation) {
            return Err(NotMeant::Gone(format!("{} was started again and holds nothing", self.address)));
        }
        match serving_state.serving() {
            Ok(serving) if serving.state.cluster == addressed.cluster => Ok(Arc::clone(&serving_state)),
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
        serving_state: &ServingState,
        key: &[u8],
        operation: Operation<'_>,
        asked: (u64, Option<RequestId>),
        told: Option<LogAnswer>,
        deadline: Deadline,
    ) -> Reply {
        if let Some(told) = told {
            self.count_operation();
            return self.conclude_forwarded(serving_state, key, operation, told);
        }
        match self.begin_forwarded(serving_state, key, operation, asked) {
            Begun::Done(reply) => reply,
            Begun::Asks(asking) => {
                let told = self.wait_for_log(asking, deadline).await;
                self.conclude_forwarded(serving_state, key, operation, told)
            }
        }
    }

    /// Begins to do what another node passed on, and never waits: it is done, or the log of the key's shard is to be asked.
    pub fn begin_forwarded(
        &self,
        serving_state: &ServingState,
        key: &[u8],
        operation: Operation<'_>,
        (epoch, request): (u64, Option<RequestId>),
    ) -> Begun {
        self.count_operation();
        let Ok(serving) = serving_state.serving() else { return Begun::Done(Err(NotServed::Again)) };
        let (hash, shard) = serving.shard_of(key);
        let own = match self.forwarded_to(serving, shard) {
            Ok(own) => own,
            Err(not_served) => return Begun::Done(Err(not_served)),
        };
        if !own.is_logged() || operation.is_read() && self.is_only_voter(own) {
            let forwarded = request.map(|request| self.stamp(own, request, epoch));
            let id = (request, forwarded);
            return Begun::Done(self.ask_alone(serving, (shard, own), (hash, key), operation, id));
        }
        // Whoever asks takes the node that answers for the leader, and will send it writes, too. Only a leader says when a write was made.
        let asking = self.leads(own).and_then(|()| {
            let write = (!operation.is_read()).then(|| {
                let request = request.unwrap_or_else(|| Passed::drawn().request);
                self.stamp(own, request, epoch)
            });
            self.asking_of(own, (hash, key), operation, write)
        });
        match asking {
            Ok(asking) => Begun::Asks(asking),
            Err(error) => Begun::Done(self.reply(serving, (shard, own), Err(error), operation)),
        }
    }

    /// This node's replica that does what another node has passed on about a key of a shard.
    pub(super) fn forwarded_to<'a>(
        &self,
        serving: &'a Serving,
        shard: &view::Shard,
    ) -> Result<&'a Arc<Shard>, NotServed> {
        // A shard that this node holds alone knows best what it owns.
        let alone = || serving.own.iter().map(|(_, own)| own).find(|own| !own.is_logged());
        serving.own_of(shard.group).or_else(alone).ok_or_else(|| {
            let reason = format!("{} holds no replica of shard {}", self.address, shard.id);
            NotServed::NotLeader(None, reason)
        })
    }

    /// What came of asking the log.
    pub fn conclude_forwarded(
        &self,
        serving_state: &ServingState,
        key: &[u8],
        operation: Operation<'_>,
        told: LogAnswer,
    ) -> Reply {
        let serving = serving_state.serving().map_err(|_| NotServed::Again)?;
        let (hash, shard) = serving.shard_of(key);
        let own = Arc::clone(told.shard());
        self.reply(serving, (shard, &own), self.conclude(told, (hash, key), operation), operation)
    }
}

/// What was begun for another node.
pub enum Begun {
    /// It is done.
    Done(Reply),
    /// The log of the key's shard is to be asked.
    Asks(Asking),
}
