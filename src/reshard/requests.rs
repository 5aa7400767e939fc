//! What clients ask about view changes, at any node.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::controller::Controller;
use super::prepare;
use crate::clock::{Deadline, now, wall_ms};
use crate::dice;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::meta::{Command, End, MetaState, Void, Wanted, wanted_voters};
use crate::node::ask::OrderError;
use crate::node::raft::NotProposed;
use crate::wire::orders::{self, Answered};
use crate::wire::{Begun, Cancelled, ChangePhase, NotPlanned, PlannedView, Progress};

/// A request about a view change is begun, or refused, within this time.
const PATIENCE: Duration = Duration::from_secs(4);
/// The leader of the meta group is looked for again after this.
const PAUSE: Duration = Duration::from_millis(50);
/// A node that does not answer for its part within this time does not lead.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// A plan needs the counts of all shards.
const PLAN_TIMEOUT: Duration = Duration::from_secs(20);

/// The part of the leader: begins a view change if none runs, or the one that does is blocked.
pub(super) async fn begin_here(controller: &Controller, id: u64, wanted: &Wanted) -> Begun {
    let running = controller.node.meta.state().and_then(|state| state.change.clone());
    let blocked = controller.coordinator.blocked();
    let before = running.filter(|running| blocked == Some(running.id));
    let mut members = BTreeMap::new();
    if let Some(before) = &before {
        // One that would be refused, or is the same again, must not end the other half-way.
        if before.wanted == *wanted {
            return Begun::Running(before.id);
        }
        match prepare::holders(controller, wanted).await {
            Ok(holders) => members = holders,
            Err(reason) => return Begun::Refused(reason),
        }
    }
    let supersedes = before.map(|before| before.id);
    let at_ms = Some(wall_ms());
    let command = Command::Begin { id, wanted: wanted.clone(), supersedes, members, at_ms };
    match controller.node.meta.propose(&command, Deadline::after(now(), ORDER_TIMEOUT)).await {
        Ok(Ok(())) => {
            controller.coordinator.wake();
            Begun::Yes(id)
        }
        Ok(Err(Void::Running(running))) if running == id => Begun::Yes(id),
        Ok(Err(Void::Running(running))) => Begun::Running(running),
        Ok(Err(Void::Outdated)) | Err(NotProposed::Refused(_)) => Begun::NotLeader,
        Err(NotProposed::Unknown) => Begun::Unknown,
    }
}

/// The part of the leader: cancels the view change that runs, if nothing was handed over yet.
pub(super) async fn cancel_here(controller: &Controller) -> Cancelled {
    if !controller.node.meta.leads() {
        return Cancelled::NotLeader;
    }
    let change = controller.node.meta.state().and_then(|state| state.change.clone());
    let Some(change) = change else { return Cancelled::None };
    let (end, holders, receipt) = (End::Cancelled, BTreeMap::new(), None);
    let command = Command::End { id: change.id, end, holders, receipt };
    match controller.node.meta.propose(&command, Deadline::after(now(), ORDER_TIMEOUT)).await {
        Ok(Ok(())) => {
            controller.coordinator.wake();
            Cancelled::Yes(change.id)
        }
        Ok(Err(_)) => Cancelled::TooLate(change.id),
        Err(NotProposed::Refused(_)) => Cancelled::NotLeader,
        Err(NotProposed::Unknown) => Cancelled::Unknown,
    }
}

impl Controller {
    /// Begins a view change: its id.
    ///
    /// # Errors
    /// [`Error::ChangeRuns`], or [`Error::NotServing`] where the meta group does not answer.
    pub async fn begin(&self, wanted: &Wanted) -> Result<u64, Error> {
        let order = orders::BeginChange { id: dice::draw(), wanted: wanted.clone() };
        let begun = self.ask_leader(&order, ORDER_TIMEOUT, |begun| match begun {
            Begun::Yes(id) => Led::Answer(Ok(id)),
            Begun::Running(id) => Led::Answer(Err(Error::ChangeRuns(format!("{id:016x}")))),
            Begun::Refused(reason) => Led::Answer(Err(Error::BadRequest(reason))),
            Begun::NotLeader => Led::Elsewhere,
            Begun::Unknown => Led::Unknown,
        });
        begun.await?
    }

    /// What a view change would do.
    ///
    /// # Errors
    /// [`Error::BadRequest`] with the reason where it could not be done.
    pub async fn plan(&self, wanted: &Wanted) -> Result<PlannedView, Error> {
        let order = orders::PlanChange { wanted: wanted.clone() };
        let read = |planned: Option<Result<PlannedView, NotPlanned>>| match planned {
            None => Led::Elsewhere,
            Some(planned) => Led::Answer(planned.map_err(|error| match error {
                NotPlanned::Refused(reason) => Error::BadRequest(reason),
                NotPlanned::Failed(reason) => Error::NotServing(reason),
                NotPlanned::Running(id) => Error::ChangeRuns(format!("{id:016x}")),
            })),
        };
        self.ask_leader(&order, PLAN_TIMEOUT, read).await?
    }

    /// Cancels the view change that runs: its id.
    ///
    /// # Errors
    /// [`Error::NotFound`] where none runs, [`Error::Conflict`] where it is too late.
    pub async fn cancel(&self) -> Result<u64, Error> {
        let cancelled =
            self.ask_leader(&orders::CancelChange {}, ORDER_TIMEOUT, |cancelled| match cancelled {
                Cancelled::Yes(id) => Led::Answer(Ok(id)),
                Cancelled::TooLate(id) => Led::Answer(Err(Error::Conflict(format!(
                    "View change {id:016x} has handed over pairs already and goes on to its end: \
                 allowed is another view change after it"
                )))),
                Cancelled::None => Led::Answer(Err(Error::NotFound("No view change is running".to_owned()))),
                Cancelled::NotLeader => Led::Elsewhere,
                Cancelled::Unknown => Led::Unknown,
            });
        cancelled.await?
    }

    /// Has the meta group put others in the place of groups that have lost their majority.
    ///
    /// # Errors
    /// [`Error::NotServing`] where the meta group does not answer, or the view has changed meanwhile.
    pub(super) async fn succeed(&self, order: &orders::Succeed) -> Result<(), Error> {
        let read = |done: Option<Result<(), Void>>| done.map_or(Led::Elsewhere, Led::Answer);
        let done = self.ask_leader(order, ORDER_TIMEOUT, read).await?;
        done.map_err(|_| {
            Error::NotServing("The view has changed meanwhile: look again, and try again".to_owned())
        })
    }

    /// How far the view change is, or how the last one ended.
    ///
    /// # Errors
    /// [`Error::NotServing`] without a cluster.
    pub async fn status(&self) -> Result<Value, Error> {
        let state = self.state()?;
        let mut body = json!({ "message": "View change status retrieved successfully" });
        let Some(change) = &state.change else {
            let Some(last) = state.results.back() else {
                body["phase"] = ChangePhase::None.as_str().into();
                return Ok(body);
            };
            body["change-id"] = format!("{:016x}", last.id).into();
            let (phase, field, value) = describe_end(&last.end);
            body["phase"] = phase.as_str().into();
            body[field] = value;
            return Ok(body);
        };
        body["change-id"] = format!("{:016x}", change.id).into();
        body.as_object_mut().expect("an object").extend(shown_progress(self.progress().await));
        Ok(body)
    }

    /// Why the view change that runs makes no progress, if so.
    pub async fn blocked_by(&self) -> Option<String> {
        self.progress().await?.blocked_by
    }

    /// How far the view change is, from whoever coordinates it.
    async fn progress(&self) -> Option<Progress> {
        let state = self.state().ok()?;
        let deadline = Deadline::after(now(), ORDER_TIMEOUT);
        for node in self.candidates(&state) {
            if deadline.is_over() {
                break;
            }
            match self.order(&node, None, orders::ChangeProgress {}, deadline.left()).await {
                Ok(Some(progress)) => return Some(progress),
                Ok(None) => {}
                Err(error) => log::debug!("{node} was asked about a view change: {error}"),
            }
        }
        None
    }

    /// Tells all nodes of the view, and those that have just left it, what this one knows, and waits until they act by it; those that do not
    /// answer are told later.
    pub async fn spread(&self, state: &Arc<MetaState>) {
        let left = state.results.back().map(|last| last.left.clone()).unwrap_or_default();
        for node in state.nodes().iter().chain(&left).filter(|node| **node != self.node.address) {
            if !self.node.peers.at(node).is_down()
                && let Err(error) = self.node.tell(node, state).await
            {
                log::debug!("{node} was not told the news: {error}");
            }
        }
    }

    fn state(&self) -> Result<Arc<MetaState>, Error> {
        self.node.serving_state().serving().map(|serving| Arc::clone(&serving.state))
    }

    /// The members that may lead the meta group, this node first if it is one of them.
    fn candidates(&self, state: &MetaState) -> Vec<Address> {
        let nodes = state.nodes();
        let local = self.node.meta.local();
        let leader = local.as_ref().and_then(|local| local.leader()).cloned();
        let members =
            local.iter().flat_map(|local| local.status.members.values().cloned()).collect::<Vec<_>>();
        let mut all: Vec<Address> = leader.into_iter().chain(members).collect();
        all.extend(wanted_voters(&nodes).iter().cloned());
        all.extend(nodes);
        let mut seen = HashSet::new();
        all.retain(|node| seen.insert(node.clone()));
        all
    }

    async fn ask_leader<O: Answered, U>(
        &self,
        order: &O,
        timeout: Duration,
        read: impl Fn(O::Answer) -> Led<U>,
    ) -> Result<U, Error> {
        // Whether somebody may have done it, although nobody said so.
        let mut unclear = false;
        let deadline = Deadline::after(now(), PATIENCE);
        loop {
            let state = self.state()?;
            let mut reasons = Vec::new();
            for node in self.candidates(&state) {
                match self.order(&node, None, order.clone(), timeout).await.map(&read) {
                    Ok(Led::Answer(answer)) => return Ok(answer),
                    Ok(led) => {
                        unclear |= matches!(led, Led::Unknown);
                        reasons.push(format!("{node} does not lead"));
                    }
                    Err(error) => {
                        unclear |= matches!(error, OrderError::NotReached(_));
                        reasons.push(error.to_string());
                    }
                }
                if deadline.is_over() {
                    break;
                }
            }
            if deadline.is_over() {
                let reason = format!(
                    "The meta group has no leader ({}); where most of its nodes are lost for good, see evenkv recover",
                    reasons.join("; ")
                );
                return Err(if unclear { Error::Unclear(reason) } else { Error::NotServing(reason) });
            }
            self.node.wait_for_news(state.version, PAUSE.min(deadline.left())).await;
        }
    }
}

/// What a node says that was asked for its part as the leader of the meta group.
enum Led<T> {
    /// It leads, and this is the answer.
    Answer(T),
    /// It does not lead: nothing was done.
    Elsewhere,
    /// It may have done it, or may yet.
    Unknown,
}

/// How far a view change is, as answers have it; where nobody says it, nobody coordinates it yet.
pub(super) fn shown_progress(progress: Option<Progress>) -> Map<String, Value> {
    let progress = progress.map(|progress| serde_json::to_value(progress).expect("our own types are JSON"));
    if let Some(Value::Object(progress)) = progress {
        let always = ["remaining-seconds"];
        return progress
            .into_iter()
            .filter(|(name, value)| always.contains(&&**name) || !value.is_null())
            .collect();
    }
    let nothing = ["moved", "total", "pairs-per-second"].map(|field| (field.to_owned(), 0.into()));
    let phase = ("phase".to_owned(), ChangePhase::Preparing.as_str().into());
    std::iter::once(phase).chain(nothing).chain([("remaining-seconds".to_owned(), Value::Null)]).collect()
}

/// How a view change ended: the phase that is shown, and the field that says more.
fn describe_end(end: &End) -> (ChangePhase, &'static str, Value) {
    match end {
        End::Finished(receipt) => {
            let receipt = serde_json::from_str(receipt).expect("receipts are JSON");
            (ChangePhase::Finished, "receipt", receipt)
        }
        End::Refused(reason) | End::Failed(reason) => (ChangePhase::Failed, "error", reason.as_str().into()),
        End::Cancelled => {
            (ChangePhase::Cancelled, "error", "The view change was cancelled: nothing has changed".into())
        }
        End::Superseded(id) => {
            let reason = format!("View change {id:016x} has taken its place");
            (ChangePhase::Superseded, "error", reason.into())
        }
    }
}
