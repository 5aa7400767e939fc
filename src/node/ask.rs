//! Questions and orders to other nodes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::group_ops::NotDone;
use super::state::Node;
use crate::clock::{Deadline, now};
use crate::error::Applied;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::wire::orders::Answered;
use crate::wire::pairs::Parcel;
use crate::wire::{Addressed, Hello, Transfer};

/// A shard's leader that is not known is looked for again after this, and after longer pauses later.
const LEADER_PAUSE: Duration = Duration::from_millis(10);

/// Why an order was not carried out, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
    /// Nothing was sent.
    NotSent(String),
    /// The node was not reached, or its answer was not: it may have carried it out.
    NotReached(String),
    /// The node there is another start of the one that is meant, or another node.
    Gone(String),
    /// It does not lead the shard that the order is about: who does, where that is known, and a sentence.
    NotLeader(Option<Address>, String),
    /// It was to take a piece whose source is gone: another start of the node that is meant, or another node.
    LostSource(String),
    /// It is of a version that does not know what it is asked: a sentence.
    NotKnown(String),
    /// It has not carried it out: why.
    Refused(String),
}

impl OrderError {
    /// There was no answer.
    pub fn unanswered(error: &NoAnswer) -> Self {
        match error.kind.applied() {
            Applied::No => Self::NotSent(error.reason.clone()),
            _ => Self::NotReached(error.reason.clone()),
        }
    }

    /// The same, with the node that it is about in its words.
    #[must_use]
    pub fn of(self, node: &Address) -> Self {
        let named = |reason: String| format!("{node}: {reason}");
        match self {
            Self::NotSent(reason) => Self::NotSent(named(reason)),
            Self::NotReached(reason) => Self::NotReached(named(reason)),
            Self::Gone(reason) => Self::Gone(named(reason)),
            Self::NotLeader(leader, reason) => Self::NotLeader(leader, named(reason)),
            Self::LostSource(reason) => Self::LostSource(named(reason)),
            Self::NotKnown(_) => self,
            Self::Refused(reason) => Self::Refused(named(reason)),
        }
    }
}

impl From<String> for OrderError {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl From<NotDone> for OrderError {
    fn from(error: NotDone) -> Self {
        let reason = error.to_string();
        match error {
            NotDone::NotLeader(leader) => Self::NotLeader(leader, reason),
            NotDone::UnderWay | NotDone::Unknown => Self::NotReached(reason),
            NotDone::Again
            | NotDone::Busy
            | NotDone::TooLarge
            | NotDone::NotKnown(_)
            | NotDone::NotHeard(_)
            | NotDone::Full
            | NotDone::NoRoom(_) => Self::Refused(reason),
        }
    }
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(reason)
            | Self::NotReached(reason)
            | Self::Gone(reason)
            | Self::NotLeader(_, reason)
            | Self::LostSource(reason)
            | Self::NotKnown(reason)
            | Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for OrderError {}

impl Node {
    /// How this node addresses another: a certain start of it, where one is meant.
    pub fn addressed(&self, start: Option<u64>) -> Addressed {
        let state = self.state();
        let cluster = state.as_ref().map(|state| state.cluster.clone()).unwrap_or_default();
        Addressed { cluster, epoch: state.map_or(0, |state| state.view.epoch), incarnation: start }
    }

    /// Asks a node who it is.
    ///
    /// # Errors
    /// See [`NoAnswerKind`](crate::peers::client::NoAnswerKind).
    pub async fn ask_hello(&self, of: &Address) -> Result<Hello, NoAnswer> {
        let asked = now();
        let hello = self.host.hello(self, of).await;
        match &hello {
            Ok(hello) => {
                self.note_who_answers(of, hello);
                if hello.address == *of {
                    self.note_start_at(of, hello.incarnation, asked);
                }
            }
            Err(NoAnswer { kind: NoAnswerKind::OtherSecret, reason }) => self.note_other_secret(of, reason),
            Err(_) => {}
        }
        hello
    }

    /// Has another node carry out an order: a certain start of it, where one is meant.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order<O: Answered>(
        &self,
        to: &Address,
        start: Option<u64>,
        order: O,
        deadline: Deadline,
    ) -> Result<O::Answer, OrderError> {
        let answer = self.host.order(self, (to, &self.addressed(start)), &order.into(), deadline).await?;
        serde_json::from_value(answer)
            .map_err(|error| OrderError::NotReached(format!("{to}: its answer makes no sense: {error}")))
    }

    /// Tells another node the news, also one that was down, and waits until it acts by them: the groups of the shards that it leads and
    /// that do.
    ///
    /// # Errors
    /// A sentence that says why it did not take them.
    pub async fn tell(&self, to: &Address, state: &Arc<MetaState>) -> Result<Vec<u64>, String> {
        self.host.tell(self, to, state).await
    }

    /// Has the node that leads a shard carry out an order: another one than this. A shard with one replica is led by the start of the
    /// node that holds it. Where the leader is not known it is looked for until the deadline.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn order_leader<O: Answered>(
        &self,
        state: &MetaState,
        group: u64,
        order: &O,
        deadline: Deadline,
    ) -> Result<O::Answer, OrderError> {
        let ask = async |node: &Address, start| self.order(node, start, order.clone(), deadline).await;
        self.ask_leader(state, group, deadline, ask).await
    }

    /// Asks the node that leads a shard, another one than this: in the same way.
    ///
    /// # Errors
    /// [`OrderError`].
    pub(super) async fn ask_leader<T>(
        &self,
        state: &MetaState,
        group: u64,
        deadline: Deadline,
        ask: impl AsyncFn(&Address, Option<u64>) -> Result<T, OrderError>,
    ) -> Result<T, OrderError> {
        let replicas = state.replicas_of(group);
        if let [only] = replicas[..] {
            if *only == self.address {
                return Err(match self.shard_of(group) {
                    // Its log has only just begun, or ended, and nobody leads it yet.
                    Some(_) => OrderError::NotLeader(None, format!("{only} does not lead its shard yet")),
                    None => OrderError::Gone(format!("{only} was started again and holds nothing")),
                });
            }
            return ask(only, state.holder(group, only)).await;
        }
        let led = self.groups.local(group).and_then(|local| local.leader().cloned());
        let mut hint = led.or_else(|| self.leaders.of(group)).filter(|leader| *leader != self.address);
        let others: Vec<&Address> = replicas.into_iter().filter(|node| **node != self.address).collect();
        let mut reason = "no other node holds a replica of it".to_owned();
        for round in 0.. {
            if self.groups.local(group).is_some_and(|local| local.leads()) {
                let reason = format!("{} leads group {group} itself by now", self.address);
                return Err(OrderError::NotLeader(Some(self.address.clone()), reason));
            }
            // Who is named is asked besides the others, once a round, and not in place of one: a replica that was taken out may go on naming a
            // leader of old.
            let (mut rest, mut named) = (others.iter(), Vec::new());
            loop {
                let hinted = hint.take().filter(|hint| !named.contains(hint));
                named.extend(hinted.clone());
                let Some(node) = hinted.or_else(|| rest.next().map(|other| (*other).clone())) else { break };
                match ask(&node, None).await {
                    Ok(answer) => {
                        self.leaders.note(group, &node);
                        return Ok(answer);
                    }
                    Err(OrderError::NotLeader(leader, why)) => {
                        hint = leader.filter(|leader| *leader != self.address && *leader != node);
                        reason = why;
                    }
                    Err(OrderError::NotSent(why)) => reason = why,
                    Err(error) => return Err(error),
                }
                self.leaders.forget(group, &node);
            }
            if deadline.is_over() || others.is_empty() {
                break;
            }
            self.wait_for_any_news((LEADER_PAUSE * 2_u32.pow(round.min(3))).min(deadline.left())).await;
        }
        Err(OrderError::NotSent(format!("no leader of group {group} is found: {reason}")))
    }

    /// Has the source of a piece send something.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn transfer(
        &self,
        from: &Address,
        start: Option<u64>,
        transfer: &Transfer,
        deadline: Deadline,
    ) -> Result<Parcel, OrderError> {
        self.host.transfer(self, (from, &self.addressed(start)), transfer, deadline).await
    }
}
