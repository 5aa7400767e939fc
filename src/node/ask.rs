//! Questions and orders to other nodes, and how their answers are read.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Method, Response};
use ureq::{Body, SendBody};

use super::group_ops::NotDone;
use super::state::Node;
use crate::clock::{Deadline, now};
use crate::error::Applied;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::peers::client::{NoAnswer, Patience, Peer, read_body};
use crate::wire::pairs::Parcel;
use crate::wire::{self, Addressed, Hello, KeyResult, Order, Refusal, Transfer};

/// A node that does not answer a question about itself within this time counts as not reached.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);
/// A shard's leader that is not known is looked for again after this, and after longer pauses later.
const LEADER_PAUSE: Duration = Duration::from_millis(10);
/// Answers to questions and orders are small; a longer one is refused.
const ANSWER_BYTES: u64 = 16 << 20;
/// A parcel is as long as its batch, or as one pair.
const PARCEL_BYTES: u64 = (256 << 20) + (16 << 20);

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
    /// It has not carried it out: why.
    Refused(String),
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
            NotDone::Unknown => Self::NotReached(reason),
            NotDone::Again | NotDone::Busy | NotDone::TooLarge => Self::Refused(reason),
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
            | Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for OrderError {}

/// Asks a node who it is.
///
/// # Errors
/// See [`NoAnswerKind`](crate::peers::client::NoAnswerKind).
pub fn ask_hello(peer: &Peer) -> Result<Hello, NoAnswer> {
    let challenge = format!("{:032x}", rand::random::<u128>());
    let request = peer.request(Method::GET, wire::HELLO).header(wire::CHALLENGE_HEADER, &challenge);
    let request = request.body(SendBody::none()).expect("a constant path");
    let response = peer.ask(request, Patience::Until(Deadline::after(now(), QUESTION_TIMEOUT)))?;
    let senseless = |reason: String| NoAnswer { kind: crate::peers::client::NoAnswerKind::Senseless, reason };
    let body = read_refusal(response).map_err(senseless)?;
    let hello: Hello = serde_json::from_slice(&body).map_err(|error| senseless(error.to_string()))?;
    match peer.secret() {
        // Nothing that needs the secret is sent to a node that has not shown that it knows it.
        Some(secret) if hello.proof != Some(wire::proof(secret, &challenge, peer.address())) => Err(
            senseless("it does not know this cluster's CLUSTER_SECRET, or has another address".to_owned()),
        ),
        _ => Ok(hello),
    }
}

/// Asks a node whether it is there; what is known of it follows from whether it answers.
pub fn ask_livez(peer: &Peer) {
    let request = peer.request(Method::GET, "/livez").body(SendBody::none()).expect("a constant path");
    let answer = peer.ask(request, Patience::Until(Deadline::after(now(), QUESTION_TIMEOUT)));
    // Reading the body to its end gives the connection back.
    let _ = answer.and_then(|response| read_body(response, ANSWER_BYTES));
}

/// The body of an answer, or what the node says against the question.
///
/// # Errors
/// A sentence.
pub fn read_refusal(response: Response<Body>) -> Result<Vec<u8>, String> {
    read_answer(response, ANSWER_BYTES).map_err(|error| error.to_string())
}

fn read_answer(response: Response<Body>, limit: u64) -> Result<Vec<u8>, OrderError> {
    let status = response.status();
    let result = header(response.headers(), wire::RESULT_HEADER).and_then(KeyResult::parse);
    let leader = header(response.headers(), wire::LEADER_HEADER).and_then(|text| text.parse().ok());
    let body = read_body(response, limit).map_err(|error| OrderError::NotReached(error.reason))?;
    if status.is_success() {
        return Ok(body);
    }
    let said = serde_json::from_slice::<Refusal>(&body).map(|body| body.error);
    let reason = said.unwrap_or_else(|_| format!("it answered {status}"));
    Err(match result {
        Some(KeyResult::Gone) => OrderError::Gone(reason),
        Some(KeyResult::NotLeader) => OrderError::NotLeader(leader, reason),
        _ => OrderError::Refused(reason),
    })
}

/// The text of a header.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

impl Node {
    /// How this node addresses a certain start of another; of nobody in particular where it is 0.
    pub fn addressed(&self, instance: u64) -> Addressed {
        let state = self.state();
        let cluster = state.as_ref().map(|state| state.cluster.clone()).unwrap_or_default();
        Addressed { cluster, epoch: state.map_or(0, |state| state.view.epoch), instance }
    }

    /// Has another node carry out an order.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn order<T: DeserializeOwned>(
        &self,
        to: &Address,
        instance: u64,
        order: &Order,
        deadline: Deadline,
    ) -> Result<T, OrderError> {
        let body = serde_json::to_vec(order).expect("our own types are JSON");
        let answer = self.send(to, instance, (order.path(), body), ANSWER_BYTES, deadline)?;
        serde_json::from_slice(&answer)
            .map_err(|error| OrderError::NotReached(format!("{to}: its answer makes no sense: {error}")))
    }

    /// Has the node that leads a shard carry out an order: another one than this. A shard with one replica is led by the start of the
    /// node that holds it. Where the leader is not known it is looked for until the deadline.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn order_leader<T: DeserializeOwned>(
        &self,
        state: &MetaState,
        group: u64,
        order: &Order,
        deadline: Deadline,
    ) -> Result<T, OrderError> {
        let replicas = state.replicas_of(group);
        if let [only] = replicas[..] {
            if *only == self.address {
                return Err(OrderError::Gone(format!("{only} was started again and holds nothing")));
            }
            let instance = state.holder(group, only).unwrap_or(0);
            return self.order(only, instance, order, deadline);
        }
        let led = self.groups.seat(group).and_then(|seat| seat.leader().cloned());
        let mut hint = led.or_else(|| self.leaders.of(group)).filter(|leader| *leader != self.address);
        let others: Vec<&Address> = replicas.into_iter().filter(|node| **node != self.address).collect();
        let mut reason = "no other node holds a replica of it".to_owned();
        for round in 0.. {
            if self.groups.seat(group).is_some_and(|seat| seat.leads()) {
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
                match self.order(&node, 0, order, deadline) {
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
            let pause = LEADER_PAUSE * 2_u32.pow(round.min(3));
            self.wait_for_news(u64::MAX, pause.min(deadline.left()));
        }
        Err(OrderError::NotSent(format!("no leader of group {group} is found: {reason}")))
    }

    /// Has the source of a piece send something.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn transfer(
        &self,
        from: &Address,
        instance: u64,
        transfer: &Transfer,
        deadline: Deadline,
    ) -> Result<Parcel, OrderError> {
        let body = serde_json::to_vec(transfer).expect("our own types are JSON");
        let answer = self.send(from, instance, (wire::TRANSFER, body), PARCEL_BYTES, deadline)?;
        Parcel::decode(&answer).map_err(|error| OrderError::NotReached(format!("{from}: {error}")))
    }

    fn send(
        &self,
        to: &Address,
        instance: u64,
        (path, body): (&str, Vec<u8>),
        limit: u64,
        deadline: Deadline,
    ) -> Result<Vec<u8>, OrderError> {
        let peer = self.peers.at(to);
        let addressed = self.addressed(instance).to_string();
        let request = peer.request(Method::POST, path).header(wire::VIEW_HEADER, addressed);
        let request = request.body(body).expect("a constant path");
        let named = |reason: String| format!("{to}: {reason}");
        let response = peer.exchange(request, Patience::Until(deadline)).map_err(|error| {
            match error.kind.applied() {
                Applied::No => OrderError::NotSent(named(error.reason)),
                _ => OrderError::NotReached(named(error.reason)),
            }
        })?;
        read_answer(response, limit).map_err(|error| match error {
            OrderError::NotSent(reason) => OrderError::NotSent(named(reason)),
            OrderError::NotReached(reason) => OrderError::NotReached(named(reason)),
            OrderError::Gone(reason) => OrderError::Gone(named(reason)),
            OrderError::NotLeader(leader, reason) => OrderError::NotLeader(leader, named(reason)),
            OrderError::Refused(reason) => OrderError::Refused(named(reason)),
        })
    }
}
