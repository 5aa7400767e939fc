//! Audits of all shards: each shard's is begun at one moment of it, its replicas read what they held then, and what they find is judged
//! together.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use super::ask::OrderError;
use super::group_ops::NotDone;
use super::host;
use super::state::{Node, Serving};
use crate::clock::{Deadline, now};
use crate::dice;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::coverage::Coverage;
use crate::model::meta::MetaState;
use crate::model::shard::{AuditBegun, AuditState, Shard, ShardCommand, ShardOutcome};
use crate::model::store::Void;
use crate::model::verdict::{ShardAudits, Verdict, owns};
use crate::model::view;
use crate::wire::Audited;
use crate::wire::orders;

/// A group that does not begin with an audit within this time does not: its replicas are then read each by itself.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);
/// A replica that has not applied the beginning within this time is behind.
const BEHIND_AFTER: Duration = Duration::from_secs(2);
/// A replica that has not read all its pairs within this time counts as not reached.
pub const AUDIT_TIMEOUT: Duration = Duration::from_mins(1);
/// How often it is looked whether a replica has got to the beginning, and to the end.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Shards that tell of different moments of a view change are asked anew after this, and so often at most.
const MOVING_PAUSE: Duration = Duration::from_millis(50);
const MOVING_ROUNDS: usize = 8;
/// An audit that was disturbed is made again, so often at most.
const ATTEMPTS: usize = 5;

/// How often it is looked for audits that were begun, and for shards that do not own what they should.
const ROUND: Duration = Duration::from_millis(50);
/// While clients use the node, reading rests for so many times as long as it works.
const REST: u32 = 2;
/// A shard that does not own for this long what the view gives it does not only learn of it late.
const MOMENT: Duration = Duration::from_secs(2);

/// The shards of this node that do not own what the view gives them: id and group, and since when.
#[derive(Default)]
pub(super) struct Unowned(Mutex<BTreeMap<(u32, u64), Instant>>);

/// The audits of all shards, and what they come to.
pub struct ClusterAudit {
    /// The state by which the shards were asked.
    pub state: Arc<MetaState>,
    /// What was said of each shard of the view.
    pub shards: Vec<ShardAudits>,
    /// What it comes to.
    pub verdict: Verdict,
}

/// The beginning of an audit.
struct Begun {
    state: Arc<MetaState>,
    id: u64,
    /// The moment of each shard of the view, or why it has none.
    shards: Vec<Result<AuditBegun, OrderError>>,
}

impl Begun {
    /// Whether the shards tell of different moments of a view change, by what they own, or one is not known yet where it is to be, or its log
    /// is just beginning or ending: later it is otherwise.
    fn is_torn(&self) -> bool {
        let is_unknown = |one: &Result<_, OrderError>| matches!(one, Err(OrderError::Refused(_)));
        if self.state.change.is_some() && self.shards.iter().any(is_unknown) {
            return true;
        }
        // Whoever holds a shard alone leads it but for that moment.
        let is_between = |(shard, one): (&view::Shard, &Result<_, OrderError>)| {
            shard.replicas.len() == 1 && matches!(one, Err(OrderError::NotLeader(..)))
        };
        if self.state.view.shards.iter().zip(&self.shards).any(is_between) {
            return true;
        }
        let Ok(begun) = self.shards.iter().map(Result::as_ref).collect::<Result<Vec<_>, _>>() else {
            return false;
        };
        let owned =
            (0..).zip(&begun).flat_map(|(number, one)| one.owned.iter().map(move |range| (number, range)));
        !Coverage::of(owned).is_whole() && begun.iter().any(|one| one.version != self.state.version)
    }
}

/// The side of whoever is asked for an audit.
impl Node {
    /// Has all shards audited; one that is disturbed is made again.
    ///
    /// # Errors
    /// [`Error::NotServing`] without a view.
    pub async fn audit(&self) -> Result<ClusterAudit, Error> {
        let mut attempt = 1;
        loop {
            let begun = self.begin_audits().await?;
            let (audit, is_disturbed) = self.end_audits(begun).await;
            let is_old = self.state().is_some_and(|state| state.version > audit.state.version);
            if audit.verdict.is_ok() || !(is_old || is_disturbed) || attempt == ATTEMPTS {
                return Ok(audit);
            }
            attempt += 1;
        }
    }

    /// Has all shards begin with an audit, one soon after the other.
    async fn begin_audits(&self) -> Result<Begun, Error> {
        let mut round = 1;
        loop {
            let state = Arc::clone(&self.serving_state().serving()?.state);
            let (id, mut shards) = (dice::draw(), Vec::new());
            for shard in &state.view.shards {
                shards.push(self.begin_audit(&state, shard, id).await);
            }
            let begun = Begun { state, id, shards };
            if round == MOVING_ROUNDS || !begun.is_torn() {
                return Ok(begun);
            }
            round += 1;
            self.wait_for_news(begun.state.version, MOVING_PAUSE).await;
        }
    }

    /// Has a shard begin with an audit: through its log where it has one.
    async fn begin_audit(
        &self,
        state: &MetaState,
        shard: &view::Shard,
        id: u64,
    ) -> Result<AuditBegun, OrderError> {
        let deadline = Deadline::after(now(), BEGIN_TIMEOUT);
        if let Some(own) = self.shard_of(shard.group)
            && self.leads(&own).is_ok()
        {
            match self.begin_audit_here(&own, id, deadline).await {
                Err(OrderError::NotLeader(..)) => {}
                begun => return begun,
            }
        }
        let order = orders::BeginAudit { group: shard.group, id };
        self.order_leader(state, shard.group, &order, deadline).await
    }

    /// The same where this node leads the shard.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn begin_audit_here(
        &self,
        shard: &Shard,
        id: u64,
        deadline: Deadline,
    ) -> Result<AuditBegun, OrderError> {
        match self.apply(shard, &ShardCommand::BeginAudit { id }, deadline).await? {
            ShardOutcome::AuditBegun(begun) => Ok(begun),
            _ => Err(NotDone::Unknown.into()),
        }
    }

    /// What the replicas find, and whether something has disturbed them.
    async fn end_audits(&self, begun: Begun) -> (ClusterAudit, bool) {
        let Begun { state, id, shards: moments } = begun;
        let (mut shards, mut is_disturbed) = (Vec::new(), false);
        for (shard, moment) in state.view.shards.iter().zip(moments) {
            let is_alone = shard.replicas.len() == 1;
            // A leader that goes leaves it open whether its group has begun; the next one begins anew.
            is_disturbed |= !is_alone && matches!(moment, Err(OrderError::NotReached(_)));
            let apart = moment.err().map(|error| error.to_string());
            let mut replicas = Vec::new();
            for node in &shard.replicas {
                let audit = match &apart {
                    Some(reason) if is_alone => Err(bare(reason.clone(), node)),
                    Some(_) => self.audit_at(&state, shard, node, None).await,
                    None => self.audit_at(&state, shard, node, Some(id)).await,
                };
                let audit = match audit {
                    Ok(Audited::Found(audit)) => Ok(*audit),
                    Ok(Audited::Disturbed(reason)) => {
                        is_disturbed = true;
                        Err(reason)
                    }
                    Err(reason) => Err(reason),
                };
                replicas.push((node.clone(), audit));
            }
            shards.push(ShardAudits { apart: apart.filter(|_| !is_alone), replicas });
        }
        let verdict = Verdict::of(&state, &shards);
        (ClusterAudit { state, shards, verdict }, is_disturbed)
    }

    /// What a replica finds, as of the beginning of an audit, or as of now where there is none.
    async fn audit_at(
        &self,
        state: &MetaState,
        shard: &view::Shard,
        node: &Address,
        id: Option<u64>,
    ) -> Result<Audited, String> {
        let (group, deadline) = (shard.group, Deadline::after(now(), AUDIT_TIMEOUT));
        if *node == self.address {
            return self.audit_own(group, id, deadline).await;
        }
        let start = state.holder(group, node).filter(|_| shard.replicas.len() == 1);
        let answer = self.order(node, start, orders::Audit { group, id }, deadline).await;
        answer.map_err(|error| bare(error.to_string(), node))
    }
}

/// What a node says, where its name is said anyway.
fn bare(reason: String, node: &Address) -> String {
    reason.strip_prefix(&format!("{node}: ")).map(str::to_owned).unwrap_or(reason)
}

/// The side of a replica.
impl Node {
    /// What this node's replica of a shard finds, as of the beginning of an audit, or as of now where there is none.
    ///
    /// # Errors
    /// A sentence that says why it finds nothing.
    pub async fn audit_own(
        &self,
        group: u64,
        id: Option<u64>,
        deadline: Deadline,
    ) -> Result<Audited, String> {
        let shard = self.shard_of(group);
        let shard = shard.ok_or_else(|| format!("it holds no replica of group {group}"))?;
        let id = id.unwrap_or_else(|| {
            let id = dice::draw();
            shard.begin_audit(id);
            id
        });
        let (begins_by, mut was_begun) = (Deadline::after(now(), BEHIND_AFTER), false);
        loop {
            match shard.audit_state(id) {
                AuditState::Found(audit) => return Ok(Audited::Found(Box::new(audit))),
                AuditState::Void(why) => return Ok(Audited::Disturbed(why.to_string())),
                AuditState::Unknown if was_begun => return Ok(Audited::Disturbed(Void::GivenUp.to_string())),
                AuditState::Unknown if begins_by.is_over() => {
                    let why = "its replica is behind, or began anew from a snapshot meanwhile";
                    return Ok(Audited::Disturbed(why.to_owned()));
                }
                AuditState::UnderWay if deadline.is_over() => {
                    return Err("its replica did not read all its pairs in time".to_owned());
                }
                state => {
                    was_begun |= state == AuditState::UnderWay;
                    self.pause(LOOK_PAUSE).await;
                }
            }
        }
    }

    /// Shards that this node is named for and that have not owned for a while what the view gives them, a sentence each.
    pub(super) fn unowned(&self) -> Vec<String> {
        let unowned = self.unowned.0.lock();
        let lasting = unowned.iter().filter(|(_, since)| now() - **since >= MOMENT);
        lasting
            .map(|((id, _), _)| {
                format!("shard {id} does not own what the view gives it: GET /kv-store/audit says what nobody owns")
            })
            .collect()
    }

    /// Looks whether the shards that this node is named for own what the view gives them, once they act by the state that has it. In the
    /// course of a view change they need not.
    fn look_at_ownership(&self, serving: &Serving) {
        let state = &serving.state;
        let is_wrong = |(index, shard): &&(usize, Arc<Shard>)| {
            let named = state.view.shards[*index].replicas.contains(&self.address);
            let owned: Vec<_> = shard.owned().into_iter().map(|(range, _)| range).collect();
            named && shard.version() == state.version && !owns(&owned, state.view.ranges(*index))
        };
        let wrong = serving.own.iter().filter(|_| state.change.is_none()).filter(is_wrong);
        let wrong = wrong.map(|(index, shard)| (state.view.shards[*index].id, shard.group()));
        let mut unowned = self.unowned.0.lock();
        *unowned = wrong.map(|one| (one, unowned.get(&one).copied().unwrap_or_else(now))).collect();
    }

    /// Reads for the audits that were begun. Nobody need have asked yet what is found: what writers keep for them does not pile up.
    async fn read_for_audits(&self, serving: &Serving) {
        let (start, before) = (now(), self.operations());
        let some = |more: bool, (_, shard): &(usize, Arc<Shard>)| shard.audit_some() || more;
        while !self.is_stopping() {
            let piece = now();
            if !serving.own.iter().fold(false, some) {
                break;
            }
            if self.is_used_since(start, before) {
                self.pause((now() - piece) * REST).await;
            }
        }
    }

    /// Reads for audits, and looks whether this node's shards own what they should: what is done again and again.
    pub async fn look_after_audits(&self) {
        let serving_state = self.serving_state();
        let Ok(serving) = serving_state.serving() else { return };
        self.read_for_audits(serving).await;
        self.forget_idle_exports();
        self.look_at_ownership(serving);
    }
}

/// Looks after audits until the channel closes.
pub fn run(node: &Node, stop: &Receiver<()>) {
    while stop.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
        let worked = catch_unwind(AssertUnwindSafe(|| host::run(node.look_after_audits())));
        if worked.is_err() {
            log::error!("what was read for an audit broke off: it is tried again");
        }
    }
}
