//! What nodes do for each other on order.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::controller::{Controller, led};
use super::pieces::Origin;
use super::{pieces, prepare, requests, watched};
use crate::clock::{Deadline, now};
use crate::consensus::Change;
use crate::model::address::Address;
use crate::model::shard::{Shard, ShardCommand, ShardOutcome};
use crate::model::store::BatchLimit;
use crate::node::ask::OrderError;
use crate::node::audits::AUDIT_TIMEOUT;
use crate::node::group_ops::NotDone;
use crate::node::host::Pending;
use crate::node::raft::{Invitation, LocalReplica, NotProposed};
use crate::wire::orders::{self, Answered, Order};
use crate::wire::{Addressed, GroupMembers, Leads, ReplicaReport, Tallied};

/// A piece has at most so many pairs and bytes, so that it is not frozen for long.
const PIECE: BatchLimit = BatchLimit { pairs: 8192, bytes: 4 << 20 };

/// A group that does not agree within this time may yet.
const GROUP_TIMEOUT: Duration = Duration::from_secs(2);

impl Controller {
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
        if addressed.incarnation.is_some_and(|meant| meant != node.incarnation) {
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
            Order::Reserve(asked) => answer(asked, node.reserve(&asked.cluster, asked.founding)?),
            Order::Returned(asked) => answer(asked, node.note_returned(asked)?),
            Order::Release(asked) => {
                node.release(&asked.cluster);
                answer(asked, ())
            }
            Order::Join(asked) => answer(asked, self.join(asked)?),
            Order::Reach(asked) => {
                let hello = node.ask_hello(&asked.node).await;
                let is_meant = |there: u64| asked.incarnation.is_none_or(|incarnation| incarnation == there);
                answer(asked, hello.is_ok_and(|hello| is_meant(hello.incarnation)))
            }
            Order::News(asked) => answer(asked, self.newest()),
            Order::Audit(asked) => {
                let deadline = Deadline::after(now(), AUDIT_TIMEOUT);
                answer(asked, node.audit_own(asked.group, asked.id, deadline).await?)
            }
            Order::Replicas(asked) => answer(asked, self.reports().await),
            Order::Succeed(asked) => {
                let done = node.meta.propose(&asked.command, deadline).await;
                self.coordinator.wake();
                answer(asked, done.ok())
            }
            Order::Count(asked) => answer(asked, self.confirmed(asked.group, deadline).await?.size().pairs),
            Order::BeginAudit(asked) => {
                answer(asked, node.begin_audit_here(&*self.led(asked.group)?, asked.id, deadline).await?)
            }
            Order::Changes(asked) => {
                let shard = self.led(asked.group)?;
                answer(asked, watched::changes(node, &shard, &asked.cursor, deadline).await?)
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
                self.led_local(asked.group)?;
                self.take_out(asked.group, asked.replica, deadline).await?;
                answer(asked, ())
            }
            Order::CopyPiece(asked) => {
                let source = asked.source.as_ref();
                pieces::copy(node, asked.stamp, asked.group, &asked.range, source).await?;
                answer(asked, ())
            }
            Order::PreparePiece(asked) => {
                let limit = Duration::from_millis(asked.limit_ms);
                let from = match &asked.source {
                    Some(source) => Origin::Shard(source),
                    None => Origin::GivenUp { generation: asked.generation },
                };
                answer(asked, pieces::prepare(node, asked.stamp, asked.group, from, limit).await?)
            }
            Order::BeginChange(asked) => {
                answer(asked, requests::begin_here(self, asked.id, &asked.wanted).await)
            }
            Order::CancelChange(asked) => answer(asked, requests::cancel_here(self).await),
            Order::Report(asked) => answer(asked, self.own_report()),
            Order::ChangeProgress(asked) => answer(asked, self.coordinator.progress(&node.address)),
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
        Leads { node: self.node.address.clone(), incarnation: self.node.incarnation }
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
                node.join_shard(group, invitation)
            }
            Some(state) if state.cluster == *cluster => Ok(node.join_meta(group, invitation)),
            _ if node.is_reserved_for(cluster) => Ok(node.join_meta(group, invitation)),
            _ => Err(format!("{} is not of cluster {cluster}", node.address)),
        }
    }

    /// What this node holds.
    pub(super) async fn reports(&self) -> Vec<ReplicaReport> {
        let serving_state = self.node.serving_state();
        let Ok(serving) = serving_state.serving() else { return Vec::new() };
        let mut reports = Vec::new();
        for (_, shard) in &serving.own {
            reports.extend(self.report(shard).await);
        }
        reports
    }

    async fn report(&self, shard: &Shard) -> Option<ReplicaReport> {
        let (group, incarnation) = (shard.group(), self.node.incarnation);
        if !shard.is_logged() {
            return Some(ReplicaReport { group, incarnation, replica: None, claims: shard.claims() });
        }
        // In this order what is applied meanwhile is seen twice, and not missed.
        let rest = self.node.groups.unapplied(group, Deadline::after(now(), GROUP_TIMEOUT)).await?;
        let claims = shard.claims();
        let local = self.node.groups.local(group)?;
        let claims = claims.after(rest.iter().map(|command| &command[..]));
        Some(ReplicaReport { group, incarnation, replica: Some(local.replica()), claims })
    }

    /// The members of a shard's group that this node leads.
    async fn members(&self, group: u64, deadline: Deadline) -> Result<GroupMembers, OrderError> {
        let shard = self.led(group)?;
        let own = (self.node.incarnation, self.node.address.clone());
        let alone = GroupMembers {
            by: self.leads(),
            is_logged: shard.is_logged(),
            voters: vec![own],
            learners: Vec::new(),
            changing: false,
            index: 0,
            version: shard.version(),
            fed: 0,
            too_old: Vec::new(),
            bytes: Some(shard.rough_size().bytes),
        };
        if !alone.is_logged {
            return Ok(alone);
        }
        let index = self.node.groups.read(group, deadline).await.map_err(|_| NotDone::Unknown)?;
        let local = self.led_local(group)?;
        let status = &local.status;
        let named = |ids: &[u64]| -> Vec<(u64, Address)> {
            ids.iter().filter_map(|id| Some((*id, status.members.get(id)?.clone()))).collect()
        };
        let changing = status.changing || !status.outgoing.is_empty();
        let (voters, learners) = (named(&status.voters), named(&status.learners));
        let too_old = status.too_old.iter().filter_map(|(id, _)| status.members.get(id).cloned()).collect();
        Ok(GroupMembers { voters, learners, changing, index, fed: status.fed, too_old, ..alone })
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
    fn led_local(&self, group: u64) -> Result<Arc<LocalReplica>, OrderError> {
        let local = self.node.groups.local(group);
        let leader = local.as_ref().and_then(|local| local.leader().cloned());
        let local = local.filter(|local| local.leads());
        let leader = leader.filter(|leader| *leader != self.node.address);
        local.ok_or_else(|| NotDone::NotLeader(leader).into())
    }

    /// A shard that this node leads.
    fn led(&self, group: u64) -> Result<Arc<Shard>, OrderError> {
        led(&self.node, group)
    }
}

/// An answer of the type that the order has.
fn answer<O: Answered>(_: &O, answer: O::Answer) -> Value {
    serde_json::to_value(answer).expect("our own types are JSON")
}
