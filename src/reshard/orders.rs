//! What nodes do for each other on order.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::desk::Desk;
use super::{pieces, prepare, requests};
use crate::clock::{Deadline, now};
use crate::model::shard::Shard;
use crate::model::store::BatchLimit;
use crate::node::ask::{OrderError, ask_hello};
use crate::node::state::Node;
use crate::wire::{Addressed, Order, Tallied};

/// A piece has at most so many pairs and bytes, so that it is not frozen for long.
const PIECE: BatchLimit = BatchLimit { pairs: 8192, bytes: 4 << 20 };

/// A node and its desk: all that is needed to carry out an order.
#[derive(Clone)]
pub struct Office {
    /// The node.
    pub node: Arc<Node>,
    /// The coordinator's desk on it.
    pub desk: Arc<Desk>,
}

/// Whether an order may come from outside the cluster.
fn is_open(order: &Order) -> bool {
    matches!(order, Order::Promise { .. } | Order::Release { .. } | Order::Join { .. } | Order::News)
}

impl Office {
    /// Carries out an order of another node.
    ///
    /// # Errors
    /// [`OrderError::Gone`] where it is meant for an earlier start of this node, [`OrderError::Refused`] otherwise.
    pub fn obey_sender(&self, addressed: Option<&Addressed>, order: &Order) -> Result<Value, OrderError> {
        let node = &self.node;
        let addressed = addressed
            .ok_or_else(|| OrderError::Refused(format!("{}: the order names no cluster", node.address)))?;
        if addressed.instance != 0 && addressed.instance != node.instance {
            return Err(OrderError::Gone(format!("{} was started again", node.address)));
        }
        let own = node.state().map(|state| state.cluster.clone());
        if !is_open(order) && own.as_ref() != Some(&addressed.cluster) {
            return Err(OrderError::Refused(format!(
                "{} is not of cluster {}",
                node.address, addressed.cluster
            )));
        }
        self.obey(order).map_err(OrderError::Refused)
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// A sentence that says why it was not carried out.
    pub fn obey(&self, order: &Order) -> Result<Value, String> {
        let node = &self.node;
        match order {
            Order::Promise { cluster, founding } => node.promise(cluster, *founding).map(|made| json(&made)),
            Order::Release { cluster } => {
                node.release(cluster);
                Ok(Value::Null)
            }
            Order::Join { cluster, group } => {
                // The group that an older state names may have been replaced by a recovery.
                let knows = match node.state() {
                    Some(state) if state.cluster == *cluster => state.group == *group,
                    _ => node.has_promised(cluster),
                };
                if knows {
                    Ok(json(&node.seat_in(*group)))
                } else {
                    Err(format!("{} is not of cluster {cluster}", node.address))
                }
            }
            Order::Reach { node: other, instance } => {
                let hello = ask_hello(&node.peers.at(other));
                Ok(json(&hello.is_ok_and(|hello| hello.instance == *instance)))
            }
            Order::News => Ok(json(&node.state().as_deref())),
            Order::Count => self.shard().map(|shard| json(&shard.size().pairs)),
            Order::Audit => self.shard().map(|shard| json(&shard.audit())),
            Order::Owned => self.shard().map(|shard| json(&shard.owned())),
            Order::Census { change, ranges } => {
                let count = self.shard()?.take_census(*change, ranges);
                let count =
                    count.ok_or_else(|| format!("{}: a view change is planned already", node.address));
                count.map(|count| json(&count))
            }
            Order::Places { change, questions } => {
                self.shard().map(|shard| json(&shard.places(*change, questions)))
            }
            Order::Pieces { ranges } => self.shard().map(|shard| {
                let cut = shard.pieces(ranges, PIECE).into_iter();
                let bare = cut.map(|pieces| pieces.into_iter().map(|(range, size)| (range, size.pairs)));
                json(&bare.map(Iterator::collect).collect::<Vec<Vec<_>>>())
            }),
            Order::CloseCensus { change } => self.shard().map(|shard| {
                shard.close_census(*change);
                Value::Null
            }),
            Order::Tally { change } => self.shard().map(|shard| {
                let (tally, pairs) = shard.tally(*change);
                json(&Tallied { tally, pairs })
            }),
            Order::Copy { stamp, group, range, source } => {
                pieces::copy(node, *stamp, *group, range, source.as_ref()).map(|()| Value::Null)
            }
            Order::Prepare { stamp, group, source, limit_ms } => {
                let limit = Duration::from_millis(*limit_ms);
                pieces::prepare(node, *stamp, *group, source.as_ref(), limit).map(|prepared| json(&prepared))
            }
            Order::BeginChange { id, wanted } => Ok(json(&requests::begin_here(self, *id, wanted))),
            Order::CancelChange => Ok(json(&requests::cancel_here(self))),
            Order::ChangeProgress => Ok(json(&self.desk.progress(&node.address))),
            Order::PlanChange { wanted } => {
                let leads = node.meta.seat().is_some_and(|seat| seat.leads());
                Ok(json(&leads.then(|| prepare::plan_only(self, wanted))))
            }
        }
    }

    /// Has a node carry out an order, also this one.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn order<T: serde::de::DeserializeOwned>(
        &self,
        to: &crate::model::address::Address,
        instance: u64,
        order: &Order,
        timeout: Duration,
    ) -> Result<T, OrderError> {
        if *to != self.node.address {
            return self.node.order(to, instance, order, Deadline::after(now(), timeout));
        }
        if instance != 0 && instance != self.node.instance {
            return Err(OrderError::Gone(format!("{to} was started again")));
        }
        let answer = self.obey(order).map_err(OrderError::Refused)?;
        serde_json::from_value(answer).map_err(|error| OrderError::Refused(error.to_string()))
    }

    fn shard(&self) -> Result<Arc<Shard>, String> {
        self.node.shard().ok_or_else(|| format!("{} holds no shard", self.node.address))
    }
}

fn json(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("our own types are JSON")
}
