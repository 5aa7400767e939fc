//! A node as the steps of view changes see it: it has orders carried out, by other nodes and by this one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::handle::{CoordinatorHandle, Waiting};
use crate::clock::{Deadline, now};
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::Shard;
use crate::node::ask::OrderError;
use crate::node::state::Node;
use crate::wire::orders::Answered;

/// Who leads a shard is looked for again after this where it may be this node by now.
const LEADER_PAUSE: Duration = Duration::from_millis(5);

/// A node and its handle: all that is needed to carry out an order.
#[derive(Clone)]
pub struct Controller {
    /// The node.
    pub node: Arc<Node>,
    /// The coordinator's handle on it.
    pub coordinator: Arc<CoordinatorHandle>,
    /// Whether it is the coordinator's own: the handle shows what is waited for.
    is_shown: bool,
}

impl Controller {
    /// A controller of a node.
    pub fn new(node: Arc<Node>, coordinator: Arc<CoordinatorHandle>) -> Self {
        Self { node, coordinator, is_shown: false }
    }

    /// The same for the coordinator, whose handle shows what it waits for.
    pub(super) fn shown(&self) -> Self {
        Self { is_shown: true, ..self.clone() }
    }

    /// The newest state that this node knows: what it acts by, or what its replica of the meta group has applied since.
    pub(super) fn newest(&self) -> Option<Arc<MetaState>> {
        let known = self.node.state()?;
        let applied = self.node.meta.state().filter(|state| state.cluster == known.cluster && state.open);
        Some(applied.filter(|state| state.version > known.version).unwrap_or(known))
    }

    /// Has the node that leads a shard carry out an order, also this one.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order_leader<O: Answered>(
        &self,
        state: &MetaState,
        group: u64,
        order: &O,
        timeout: Duration,
    ) -> Result<O::Answer, OrderError> {
        let _shown =
            self.show(O::NAME, || match state.index_of(group).map(|index| &state.view.shards[index]) {
                Some(shard) => match self.node.leader_of(shard) {
                    Some(leader) => leader.to_string(),
                    None => format!("the leader of shard {}", shard.id),
                },
                None => format!("the leader of group {group}"),
            });
        let deadline = Deadline::after(now(), timeout);
        loop {
            let leads = self.node.shard_of(group).is_some_and(|shard| self.node.leads(&shard).is_ok());
            let answer = if leads {
                read::<O>(self.obey(&order.clone().into()).await)
            } else {
                self.node.order_leader(state, group, order, deadline).await
            };
            match answer {
                // It may be this node now, or was until now.
                Err(OrderError::NotLeader(..)) if !deadline.is_over() => {
                    self.node.wait_for_any_news(LEADER_PAUSE.min(deadline.left())).await;
                }
                answer => return answer,
            }
        }
    }

    /// Has a node carry out an order, also this one: a certain start of it, where one is meant.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order<O: Answered>(
        &self,
        to: &Address,
        start: Option<u64>,
        order: O,
        timeout: Duration,
    ) -> Result<O::Answer, OrderError> {
        let _shown = self.show(O::NAME, || to.to_string());
        if *to != self.node.address {
            return self.node.order(to, start, order, Deadline::after(now(), timeout)).await;
        }
        if start.is_some_and(|start| start != self.node.incarnation) {
            return Err(OrderError::Gone(format!("{to} was started again")));
        }
        read::<O>(self.obey(&order.into()).await)
    }

    /// Shows that somebody is waited for, until what this returns is dropped.
    pub(super) fn show(&self, order: &'static str, to: impl FnOnce() -> String) -> Option<Waiting<'_>> {
        self.is_shown.then(|| self.coordinator.waits_for(order, to()))
    }
}

/// A shard of which this node holds a replica, and that it leads.
pub(super) fn led(node: &Node, group: u64) -> Result<Arc<Shard>, OrderError> {
    if let Some(shard) = node.shard_of(group) {
        node.leads(&shard)?;
        return Ok(shard);
    }
    let reason = format!("{} holds no replica of group {group}", node.address);
    Err(match node.state() {
        // Another node may lead it, where it has several replicas.
        Some(state) if state.replicas_of(group).len() > 1 => OrderError::NotLeader(None, reason),
        _ => OrderError::Refused(reason),
    })
}

fn read<O: Answered>(answer: Result<Value, OrderError>) -> Result<O::Answer, OrderError> {
    answer.and_then(|answer| {
        serde_json::from_value(answer).map_err(|error| OrderError::Refused(error.to_string()))
    })
}
