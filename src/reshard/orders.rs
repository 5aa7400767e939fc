//! What nodes do for each other on order.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::desk::{Desk, Waiting};
use super::{pieces, prepare, requests};
use crate::clock::{Deadline, now};
use crate::consensus::Change;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::{Shard, ShardCommand, ShardOutcome};
use crate::model::store::BatchLimit;
use crate::node::ask::OrderError;
use crate::node::audits::AUDIT_TIMEOUT;
use crate::node::group_ops::NotDone;
use crate::node::host::Pending;
use crate::node::raft::{Invitation, NotProposed, Seat};
use crate::node::state::Node;
use crate::wire::orders::{self, Answered, Order};
use crate::wire::{Addressed, GroupMembers, Leads, Standing, Tallied};

/// A piece has at most so many pairs and bytes, so that it is not frozen for long.
const PIECE: BatchLimit = BatchLimit { pairs: 8192, bytes: 4 << 20 };

/// A group that does not agree within this time may yet.
const GROUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Who leads a shard is looked for again after this where it may be this node by now.
const LEADER_PAUSE: Duration = Duration::from_millis(5);

/// A node and its desk: all that is needed to carry out an order.
#[derive(Clone)]
pub struct Office {
    /// The node.
    pub node: Arc<Node>,
    /// The coordinator's desk on it.
    pub desk: Arc<Desk>,
    /// Whether it is the coordinator's own: the desk shows what is waited for.
    is_shown: bool,
}

impl Office {
    /// An office of a node.
    pub fn new(node: Arc<Node>, desk: Arc<Desk>) -> Self {
        Self { node, desk, is_shown: false }
    }

    /// The same for the coordinator, whose desk shows what it waits for.
    pub(super) fn shown(&self) -> Self {
        Self { is_shown: true, ..self.clone() }
    }

    /// Carries out an order of another node.
    ///
    /// # Errors
    /// [`OrderError::Gone`] where it is meant for an earlier start of this node, [`OrderError::Refused`] otherwise.
    pub async fn obey_sender(
        &self,
        addressed: Option<&Addressed>,
        order: &Order,
    ) -> Result<Value, OrderError> {
        let node = &self.node;
        let addressed = addressed
            .ok_or_else(|| OrderError::Refused(format!("{}: the order names no cluster", node.address)))?;
        if addressed.instance.is_some_and(|meant| meant != node.instance) {
            return Err(OrderError::Gone(format!("{} was started again", node.address)));
        }
        let own = node.state().map(|state| state.cluster.clone());
        if !order.is_open() && own.as_ref() != Some(&addressed.cluster) {
            return Err(OrderError::Refused(format!(
                "{} is not of cluster {}",
                node.address, addressed.cluster
            )));
        }
        self.obey(order).await
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn obey<'a>(&'a self, order: &'a Order) -> Pending<'a, Result<Value, OrderError>> {
        // Some orders are carried out by giving others, to this node too.
        Box::pin(self.carry_out(order))
    }

    async fn carry_out(&self, order: &Order) -> Result<Value, OrderError> {
        let (node, deadline) = (&self.node, Deadline::after(now(), GROUP_TIMEOUT));
        Ok(match order {
            Order::Promise(asked) => answer(asked, node.promise(&asked.cluster, asked.founding)?),
            Order::Release(asked) => {
                node.release(&asked.cluster);
                answer(asked, ())
            }
            Order::Join(asked) => answer(asked, self.join(asked)?),
            Order::Reach(asked) => {
                let hello = node.ask_hello(&asked.node).await;
                let is_meant = |there: u64| asked.instance.is_none_or(|instance| instance == there);
                answer(asked, hello.is_ok_and(|hello| is_meant(hello.instance)))
            }
            Order::News(asked) => answer(asked, self.newest()),
            Order::Audit(asked) => {
                let deadline = Deadline::after(now(), AUDIT_TIMEOUT);
                answer(asked, node.audit_own(asked.group, asked.id, deadline).await?)
            }
            Order::Replicas(asked) => answer(asked, self.standings().await),
            Order::Succeed(asked) => {
                let done = node.meta.propose(&asked.command, deadline).await;
                self.desk.wake();
                answer(asked, done.ok())
            }
            Order::Count(asked) => answer(asked, self.confirmed(asked.group, deadline).await?.size().pairs),
            Order::BeginAudit(asked) => {
                answer(asked, node.begin_audit_here(&*self.led(asked.group)?, asked.id, deadline).await?)
            }
            Order::Census(asked) => {
                let census = ShardCommand::Census { id: asked.id, ranges: asked.ranges.clone() };
                match node.apply(&*self.led(asked.group)?, &census, deadline).await? {
                    ShardOutcome::Census(Some(count)) => answer(asked, count),
                    _ => {
                        return Err(
                            format!("{}: another view change counts or is planned", node.address).into()
                        );
                    }
                }
            }
            Order::Places(asked) => {
                let shard = self.confirmed(asked.group, deadline).await?;
                answer(asked, shard.places(asked.id, &asked.questions))
            }
            Order::Pieces(asked) => {
                let cut =
                    self.confirmed(asked.group, deadline).await?.pieces(&asked.ranges, PIECE).into_iter();
                let bare = cut.map(|pieces| pieces.into_iter().map(|(range, size)| (range, size.pairs)));
                answer(asked, bare.map(Iterator::collect).collect())
            }
            Order::CloseCensus(asked) => {
                let close = ShardCommand::CloseCensus { id: asked.id };
                node.apply(&*self.led(asked.group)?, &close, deadline).await?;
                answer(asked, ())
            }
            Order::Tally(asked) => {
                let (tally, pairs) = self.confirmed(asked.group, deadline).await?.tally(asked.change);
                answer(asked, Tallied { tally, pairs })
            }
            Order::Lead(asked) => {
                self.confirmed(asked.group, deadline).await?;
                answer(asked, self.leads())
            }
            Order::Members(asked) => answer(asked, self.members(asked.group, deadline).await?),
            Order::Leave(asked) => {
                self.led_seat(asked.group)?;
                self.take_out(asked.group, asked.replica, deadline).await?;
                answer(asked, ())
            }
            Order::CopyPiece(asked) => {
                let source = asked.source.as_ref();
                pieces::copy(node, asked.stamp, asked.group, &asked.range, source).await?;
                answer(asked, ())
            }
            Order::PreparePiece(asked) => {
                let (source, limit) = (asked.source.as_ref(), Duration::from_millis(asked.limit_ms));
                answer(asked, pieces::prepare(node, asked.stamp, asked.group, source, limit).await?)
            }
            Order::BeginChange(asked) => {
                answer(asked, requests::begin_here(self, asked.id, &asked.wanted).await)
            }
            Order::CancelChange(asked) => answer(asked, requests::cancel_here(self).await),
            Order::ChangeProgress(asked) => answer(asked, self.desk.progress(&node.address)),
            Order::PlanChange(asked) if node.meta.leads() => {
                answer(asked, Some(prepare::plan_only(self, &asked.wanted).await))
            }
            Order::PlanChange(asked) => answer(asked, None),
        })
    }

    /// A shard that this node leads, once it holds everything that was ever acknowledged.
    async fn confirmed(&self, group: u64, deadline: Deadline) -> Result<Arc<Shard>, OrderError> {
        let shard = self.led(group)?;
        self.node.confirm(&shard, deadline).await?;
        Ok(shard)
    }

    /// This node, as the leader of something.
    fn leads(&self) -> Leads {
        Leads { node: self.node.address.clone(), instance: self.node.instance }
    }

    /// The newest state that this node knows: what it acts by, or what its replica of the meta group has applied since.
    pub(super) fn newest(&self) -> Option<Arc<MetaState>> {
        let known = self.node.state()?;
        let applied = self.node.meta.state().filter(|state| state.cluster == known.cluster && state.open);
        Some(applied.filter(|state| state.version > known.version).unwrap_or(known))
    }

    /// This node's replica id in a group of which it is to become a member.
    fn join(&self, asked: &orders::Join) -> Result<u64, String> {
        let (node, cluster, group) = (&self.node, &asked.cluster, asked.group);
        let invitation = Invitation { term: asked.term, members: &asked.members, index: asked.index };
        if node.is_leaving() {
            return Err(format!("{} is stopping", node.address));
        }
        match node.state() {
            Some(state) if state.cluster == *cluster && state.group != group => {
                node.seat_in_shard(group, invitation)
            }
            Some(state) if state.cluster == *cluster => Ok(node.seat_in(group, invitation)),
            _ if node.has_promised(cluster) => Ok(node.seat_in(group, invitation)),
            _ => Err(format!("{} is not of cluster {cluster}", node.address)),
        }
    }

    /// What this node holds.
    pub(super) async fn standings(&self) -> Vec<Standing> {
        let standing = self.node.standing();
        let Ok(serving) = standing.serving() else { return Vec::new() };
        let mut standings = Vec::new();
        for (_, shard) in &serving.own {
            standings.extend(self.standing(shard).await);
        }
        standings
    }

    async fn standing(&self, shard: &Shard) -> Option<Standing> {
        let (group, instance) = (shard.group(), self.node.instance);
        if !shard.is_logged() {
            return Some(Standing { group, instance, replica: None, claims: shard.claims() });
        }
        // In this order what is applied meanwhile is seen twice, and not missed.
        let rest = self.node.groups.unapplied(group, Deadline::after(now(), GROUP_TIMEOUT)).await?;
        let claims = shard.claims();
        let seat = self.node.groups.seat(group)?;
        let claims = claims.after(rest.iter().map(|command| &command[..]));
        Some(Standing { group, instance, replica: Some(seat.replica()), claims })
    }

    /// The members of a shard's group that this node leads.
    async fn members(&self, group: u64, deadline: Deadline) -> Result<GroupMembers, OrderError> {
        let shard = self.led(group)?;
        let own = (self.node.instance, self.node.address.clone());
        let alone = GroupMembers {
            by: self.leads(),
            is_logged: shard.is_logged(),
            voters: vec![own],
            learners: Vec::new(),
            changing: false,
            index: 0,
            version: shard.version(),
            fed: 0,
        };
        if !alone.is_logged {
            return Ok(alone);
        }
        let index = self.node.groups.read(group, deadline).await.map_err(|_| NotDone::Unknown)?;
        let seat = self.led_seat(group)?;
        let status = &seat.status;
        let named = |ids: &[u64]| -> Vec<(u64, Address)> {
            ids.iter().filter_map(|id| Some((*id, status.members.get(id)?.clone()))).collect()
        };
        let changing = status.changing || !status.outgoing.is_empty();
        let (voters, learners) = (named(&status.voters), named(&status.learners));
        Ok(GroupMembers { voters, learners, changing, index, fed: status.fed, ..alone })
    }

    /// Takes a replica out of a group that this node leads, as its node is about to stop.
    async fn take_out(&self, group: u64, replica: u64, deadline: Deadline) -> Result<(), OrderError> {
        let removal = Change::Remove { replicas: vec![replica] };
        match self.node.groups.change(group, &removal, deadline).await {
            Ok(()) => {
                log::info!("group {group}: replica {replica} leaves");
                Ok(())
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
        if start.is_some_and(|start| start != self.node.instance) {
            return Err(OrderError::Gone(format!("{to} was started again")));
        }
        read::<O>(self.obey(&order.into()).await)
    }

    /// Shows that somebody is waited for, until what this returns is dropped.
    pub(super) fn show(&self, order: &'static str, to: impl FnOnce() -> String) -> Option<Waiting<'_>> {
        self.is_shown.then(|| self.desk.waits_for(order, to()))
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

fn read<O: Answered>(answer: Result<Value, OrderError>) -> Result<O::Answer, OrderError> {
    answer.and_then(|answer| {
        serde_json::from_value(answer).map_err(|error| OrderError::Refused(error.to_string()))
    })
}

/// An answer of the type that the order has.
fn answer<O: Answered>(_: &O, answer: O::Answer) -> Value {
    serde_json::to_value(answer).expect("our own types are JSON")
}
