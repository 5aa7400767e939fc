//! What nodes do for each other on order.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::desk::Desk;
use super::{pieces, prepare, requests};
use crate::clock::{Deadline, now};
use crate::consensus::Change;
use crate::model::address::Address;
use crate::model::meta::{Command, MetaState};
use crate::model::shard::{Shard, ShardCommand, ShardOutcome};
use crate::model::store::BatchLimit;
use crate::node::ask::{OrderError, ask_hello};
use crate::node::group_ops::NotDone;
use crate::node::raft::{Invitation, NotProposed, Seat};
use crate::node::state::Node;
use crate::wire::{Addressed, GroupMembers, Order, Standing, Tallied};

/// A piece has at most so many pairs and bytes, so that it is not frozen for long.
const PIECE: BatchLimit = BatchLimit { pairs: 8192, bytes: 4 << 20 };

/// A group that does not agree within this time may yet.
const GROUP_TIMEOUT: Duration = Duration::from_secs(2);

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
        self.obey(order)
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn obey(&self, order: &Order) -> Result<Value, OrderError> {
        let node = &self.node;
        match order {
            Order::Promise { cluster, founding } => Ok(json(&node.promise(cluster, *founding)?)),
            Order::Release { cluster } => {
                node.release(cluster);
                Ok(Value::Null)
            }
            Order::Join { cluster, group, term, members, index } => {
                let invitation = Invitation { term: *term, members, index: *index };
                Ok(json(&self.join(cluster, *group, invitation)?))
            }
            Order::Reach { node: other, instance } => {
                let hello = ask_hello(&node.peers.at(other));
                Ok(json(&hello.is_ok_and(|hello| *instance == 0 || hello.instance == *instance)))
            }
            Order::News => Ok(json(&node.state().as_deref())),
            Order::Audit { group, index } => {
                Ok(json(&node.audit_own(*group, *index, Deadline::after(now(), GROUP_TIMEOUT))?))
            }
            Order::Replica { group } => Ok(json(&self.standing(*group))),
            Order::Succeed { survivors } => {
                let command = Command::Succeed { survivors: survivors.clone() };
                let done = node.meta.propose(&command, Deadline::after(now(), GROUP_TIMEOUT));
                Ok(json(&matches!(done, Ok(Ok(())))))
            }
            Order::Count { .. }
            | Order::Census { .. }
            | Order::Places { .. }
            | Order::Pieces { .. }
            | Order::CloseCensus { .. }
            | Order::Tally { .. }
            | Order::Members { .. }
            | Order::Leave { .. } => self.obey_as_leader(order),
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
                let leads = node.meta.leads();
                Ok(json(&leads.then(|| prepare::plan_only(self, wanted))))
            }
        }
    }

    /// Carries out an order about a shard that this node leads.
    fn obey_as_leader(&self, order: &Order) -> Result<Value, OrderError> {
        let node = &self.node;
        let deadline = Deadline::after(now(), GROUP_TIMEOUT);
        match order {
            Order::Count { group } => {
                let shard = self.led(*group)?;
                node.confirm(&shard, deadline)?;
                Ok(json(&shard.size().pairs))
            }
            Order::Census { group, change, ranges } => {
                let census = ShardCommand::Census { change: *change, ranges: ranges.clone() };
                match node.apply(&*self.led(*group)?, &census, deadline)? {
                    ShardOutcome::Census(Some(count)) => Ok(json(&count)),
                    _ => Err(format!("{}: a view change is planned already", node.address).into()),
                }
            }
            Order::Places { group, change, questions } => {
                let shard = self.led(*group)?;
                node.confirm(&shard, deadline)?;
                Ok(json(&shard.places(*change, questions)))
            }
            Order::Pieces { group, ranges } => {
                let shard = self.led(*group)?;
                node.confirm(&shard, deadline)?;
                let cut = shard.pieces(ranges, PIECE).into_iter();
                let bare = cut.map(|pieces| pieces.into_iter().map(|(range, size)| (range, size.pairs)));
                Ok(json(&bare.map(Iterator::collect).collect::<Vec<Vec<_>>>()))
            }
            Order::CloseCensus { group, change } => {
                node.apply(&*self.led(*group)?, &ShardCommand::CloseCensus { change: *change }, deadline)?;
                Ok(Value::Null)
            }
            Order::Tally { group, change } => {
                let shard = self.led(*group)?;
                node.confirm(&shard, deadline)?;
                let (tally, pairs) = shard.tally(*change);
                let by = (node.address.clone(), node.instance);
                Ok(json(&Tallied { by, is_logged: shard.is_logged(), tally, pairs }))
            }
            Order::Members { group } => Ok(json(&self.members(*group, deadline)?)),
            Order::Leave { group, replica } => {
                self.led_seat(*group)?;
                self.take_out(*group, *replica, deadline)
            }
            _ => Err("this order is not for the leader of a shard".to_owned().into()),
        }
    }

    /// This node's replica id in a group of which it is to become a member.
    fn join(&self, cluster: &str, group: u64, invitation: Invitation) -> Result<u64, String> {
        let node = &self.node;
        if node.is_leaving() {
            return Err(format!("{} is stopping", node.address));
        }
        match node.state() {
            Some(state) if state.cluster == cluster && state.group != group => {
                node.seat_in_shard(group, invitation)
            }
            Some(state) if state.cluster == cluster => Ok(node.seat_in(group, invitation)),
            _ if node.has_promised(cluster) => Ok(node.seat_in(group, invitation)),
            _ => Err(format!("{} is not of cluster {cluster}", node.address)),
        }
    }

    /// Where this node's replica of a group stands.
    pub(super) fn standing(&self, group: u64) -> Option<Standing> {
        self.node.shard_of(group)?;
        let seat = self.node.groups.seat(group)?;
        let status = &seat.status;
        let voters = status.voters.iter().filter_map(|id| Some((*id, status.members.get(id)?.clone())));
        Some(Standing {
            instance: self.node.instance,
            replica: status.replica,
            voters: voters.collect(),
            last: (status.last_term, status.last),
            committed: status.committed,
        })
    }

    /// The members of a shard's group that this node leads.
    fn members(&self, group: u64, deadline: Deadline) -> Result<GroupMembers, OrderError> {
        let shard = self.led(group)?;
        let own = (self.node.instance, self.node.address.clone());
        let alone = GroupMembers {
            voters: vec![own],
            learners: Vec::new(),
            changing: false,
            index: 0,
            version: shard.version(),
        };
        if !shard.is_logged() {
            return Ok(alone);
        }
        let index = self.node.groups.read(group, deadline).map_err(|_| NotDone::Unknown)?;
        let status = &self.led_seat(group)?.status;
        let named = |ids: &[u64]| -> Vec<(u64, Address)> {
            ids.iter().filter_map(|id| Some((*id, status.members.get(id)?.clone()))).collect()
        };
        let changing = status.changing || !status.outgoing.is_empty();
        let (voters, learners) = (named(&status.voters), named(&status.learners));
        Ok(GroupMembers { voters, learners, changing, index, ..alone })
    }

    /// Takes a replica out of a group that this node leads, as its node is about to stop.
    fn take_out(&self, group: u64, replica: u64, deadline: Deadline) -> Result<Value, OrderError> {
        match self.node.groups.change(group, &Change::Remove { replicas: vec![replica] }, deadline) {
            Ok(()) => {
                log::info!("group {group}: replica {replica} leaves");
                Ok(Value::Null)
            }
            Err(NotProposed::Unknown) => Err(NotDone::Unknown.into()),
            Err(NotProposed::Refused(refusal)) => {
                Err(format!("{}: the replica is not taken out: {refusal:?}", self.node.address).into())
            }
        }
    }

    /// Where this node's replica stands in a group that it leads.
    fn led_seat(&self, group: u64) -> Result<Arc<Seat>, OrderError> {
        let seat = self.node.groups.seat(group);
        let leader = seat.as_ref().and_then(|seat| seat.leader().cloned());
        let seat = seat.filter(|seat| seat.leads());
        let leader = leader.filter(|leader| *leader != self.node.address);
        seat.ok_or_else(|| NotDone::NotLeader(leader).into())
    }

    /// Has the node that leads a shard carry out an order, also this one.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn order_leader<T: serde::de::DeserializeOwned>(
        &self,
        state: &MetaState,
        group: u64,
        order: &Order,
        timeout: Duration,
    ) -> Result<T, OrderError> {
        let deadline = Deadline::after(now(), timeout);
        loop {
            let leads = self.node.shard_of(group).is_some_and(|shard| self.node.leads(&shard).is_ok());
            let answer = if leads {
                let answer = self.obey(order);
                answer.and_then(|answer| {
                    serde_json::from_value(answer).map_err(|error| OrderError::Refused(error.to_string()))
                })
            } else {
                self.node.order_leader(state, group, order, deadline)
            };
            match answer {
                // It may be this node now, or was until now.
                Err(OrderError::NotLeader(..)) if !deadline.is_over() => {}
                answer => return answer,
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
        let answer = self.obey(order)?;
        serde_json::from_value(answer).map_err(|error| OrderError::Refused(error.to_string()))
    }

    /// A shard that this node leads.
    fn led(&self, group: u64) -> Result<Arc<Shard>, OrderError> {
        led(&self.node, group)
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

fn json(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("our own types are JSON")
}
