//! Key operations: here, or at the node that owns the key.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use super::group_ops::{LogAnswer, NotDone};
use super::passing::{Passed, full};
use super::problems::{advice, lost_shard};
use super::room::no_room;
use super::state::{Node, Serving, ServingState};
use crate::budget::Permit;
use crate::clock::{Deadline, ticks_ms};
use crate::dice;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::condition::TagSpace;
use crate::model::hash::KeyHash;
use crate::model::meta::MetaState;
use crate::model::shard::{Done, Forwarded, Refused, RequestId, Shard};
use crate::model::store::StoredValue;
use crate::model::ttl::Ttl;
use crate::model::view;
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::wire::Addressed;

pub use crate::model::shard::{Action, Operation};

/// How long to wait for news of a key that is on its way, before its owner is asked again.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The same after a while.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// What was done for a request.
pub struct Outcome {
    /// What was done.
    pub done: Done<Value>,
    /// The node of the other shard that has done it.
    pub by: Option<Address>,
    /// How old what was read may be, where any replica might answer.
    pub age: Option<Duration>,
    /// What the tags of the cluster begin with in which it was done.
    pub tags: TagSpace,
}

impl Outcome {
    /// What was done, in this cluster.
    pub fn new(done: Done<Value>, tags: TagSpace) -> Self {
        Self { done, by: None, age: None, tags }
    }

    /// The same of this node's own shard.
    pub(super) fn of_own(done: Done, shard: &Shard, tags: TagSpace) -> Self {
        let stored = |held: StoredValue| {
            let left_ms = held.end_ms().map(|end_ms| end_ms.saturating_sub(shard.time(ticks_ms())));
            Value::Stored { left: left_ms.map(Ttl::left), held }
        };
        let done = match done {
            Done::Wrote(written) => Done::Wrote(written),
            Done::Read(held) => Done::Read(held.map(stored)),
            Done::Unread(unread, version) => Done::Unread(unread, version),
        };
        Self::new(done, tags)
    }

    /// The entity tag of what is there: of what was read or written, or of what the condition does not hold for. Nothing where nothing is there, or where the owner is of
    /// a version that does not tell it.
    pub fn tag(&self) -> Option<String> {
        let version = match &self.done {
            Done::Wrote(written) => written.there(),
            Done::Read(value) => value.as_ref().and_then(Value::version),
            Done::Unread(_, version) => Some(*version),
        };
        version.map(|version| self.tags.tag(version))
    }

    /// How much is left of the time to live of what was read, if it has one.
    pub fn left(&self) -> Option<Ttl> {
        match &self.done {
            Done::Read(Some(value)) => value.left(),
            _ => None,
        }
    }
}

/// A value that was read.
pub enum Value {
    /// From this node's own map.
    Stored {
        /// The pair.
        held: StoredValue,
        /// How much is left of its time to live, if it has one.
        left: Option<Ttl>,
    },
    /// From another node.
    Received {
        /// As [`value`](crate::model::value) stores it.
        bytes: Vec<u8>,
        /// The version, where the owner tells it.
        version: Option<u64>,
        /// How much is left of its time to live, if it has one.
        left: Option<Ttl>,
        /// The part of the memory for large answers that it takes, if it is large.
        permit: Option<Permit>,
    },
}

impl Value {
    /// As [`value`](crate::model::value) stores it.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Stored { held, .. } => held.value(),
            Self::Received { bytes, .. } => bytes,
        }
    }

    /// Its version, where that is known.
    pub fn version(&self) -> Option<u64> {
        match self {
            Self::Stored { held, .. } => Some(held.version()),
            Self::Received { version, .. } => *version,
        }
    }

    /// How much is left of its time to live, if it has one.
    pub fn left(&self) -> Option<Ttl> {
        let (Self::Stored { left, .. } | Self::Received { left, .. }) = self;
        *left
    }
}

/// Why a request was not done by the node that was asked, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotServed {
    /// Nothing was done: the key is on its way from one shard to another, or its shard is changing. Look at the newest view and ask again.
    Again,
    /// Nothing was done: another replica leads the shard, where it is known; or why there is none, in a sentence.
    NotLeader(Option<Address>, String),
    /// Nothing was done: the node was started again since.
    Gone,
    /// Nothing was done: another request on the key was done under the same name.
    OtherRequest,
    /// Nothing was done: the shard can remember no more named writes.
    Full,
    /// The error says whether it was done.
    Failed(Error),
}

/// What a node answers that is asked about a key, be it this one.
pub type Reply = Result<Outcome, NotServed>;

/// A request that another node is to do.
pub struct Onward {
    /// That node.
    pub to: Address,
    /// Who is asked, and from where.
    pub addressed: Addressed,
    /// The group of the key's shard.
    pub group: u64,
    /// The version of the state by which the node is asked.
    version: u64,
    /// The id of a write.
    passed: Option<Passed>,
}

impl Onward {
    /// The id under which a write is done once.
    pub fn id(&self) -> Option<RequestId> {
        self.passed.as_ref().map(|passed| passed.request)
    }
}

/// What came of a request before anybody waited for it.
pub enum Told {
    /// Of asking the log of the key's shard.
    Log(LogAnswer),
    /// Of asking another node.
    Node(Box<(Onward, Result<Reply, NoAnswer>)>),
}

impl Told {
    /// The version of the state by which it was asked, where that may be an older one.
    fn version(&self) -> Option<u64> {
        match self {
            Self::Log(_) => None,
            Self::Node(answer) => Some(answer.0.version),
        }
    }

    /// Whether nothing was done, and another node, or this one, is to be asked.
    pub fn is_elsewhere(&self) -> bool {
        match self {
            Self::Log(told) => told.is_elsewhere(),
            Self::Node(answer) => {
                matches!(answer.1, Ok(Err(NotServed::Again | NotServed::NotLeader(..))))
            }
        }
    }

    fn take_passed(&mut self) -> Option<Passed> {
        match self {
            Self::Log(told) => told.passed.take(),
            Self::Node(answer) => answer.0.passed.take(),
        }
    }
}

/// Who has to be asked about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This node.
    Here,
    /// The node of another shard.
    At(Address),
    /// Nobody knows, since there is no view yet: why.
    Unknown(String),
}

impl Owner {
    /// The node of the other shard, as answers name it.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::At(address) => Some(address),
            Self::Here | Self::Unknown(_) => None,
        }
    }
}

/// What a request about a key is, whoever is asked next.
pub struct Request<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) operation: Operation<'a>,
    /// The id by which it is passed on, once it has been. Where the client has named it, it has one from the beginning: the client may send
    /// the request again, so what was done is remembered by it wherever it is done.
    passed: OnceCell<Passed>,
    is_named: bool,
    /// Any replica may answer.
    pub(crate) is_stale: bool,
    /// The node that was asked wants to be asked by HTTP.
    pub(crate) by_http: bool,
    pub(crate) deadline: Deadline,
}

impl<'a> Request<'a> {
    /// A request; `named` is the id that the client has given it.
    pub fn new(
        key: &'a [u8],
        operation: Operation<'a>,
        named: Option<RequestId>,
        deadline: Deadline,
    ) -> Self {
        let is_named = named.is_some();
        let passed = named.map_or_else(OnceCell::new, |named| Passed::named(named).into());
        Self { key, operation, passed, is_named, is_stale: false, by_http: false, deadline }
    }

    /// The same, which goes by HTTP where another node is asked.
    #[must_use]
    pub fn by_http(self, by_http: bool) -> Self {
        Self { by_http, ..self }
    }

    /// Whether its time is over.
    pub fn is_late(&self) -> bool {
        self.deadline.is_over()
    }

    /// A read that any replica may answer.
    pub(super) fn stale(key: &'a [u8], read: Operation<'a>, deadline: Deadline) -> Self {
        Self { is_stale: true, ..Self::new(key, read, None, deadline) }
    }

    /// The id by which it is passed on, where it is a write that was or is.
    pub(crate) fn id(&self) -> Option<RequestId> {
        self.passed.get().map(|passed| passed.request)
    }

    /// Nothing was done, maybe since the shard does not know the start of the node by which the request has its number: it goes on by an id
    /// that any shard takes.
    fn give_up_number(&mut self) {
        if matches!(self.id(), Some(RequestId::Numbered { .. })) {
            self.passed = Passed::drawn().into();
        }
    }
}

impl Node {
    /// Who owns a key, as far as this node knows.
    pub fn owner(&self, key: &[u8]) -> Owner {
        match &*self.serving_state() {
            ServingState::Serving(serving) => {
                let (_, shard) = serving.shard_of(key);
                if self.is_of(serving, shard) {
                    Owner::Here
                } else {
                    Owner::At(self.likely_leader(&serving.state, shard))
                }
            }
            ServingState::Waiting(reasons) => Owner::Unknown(reasons.join("; ")),
            ServingState::Follower => Owner::Unknown("a follower has no view".to_owned()),
        }
    }

    /// The other node that a request about a key is going to wait for; this one where it will wait for a leader to be elected.
    pub fn waits_for(&self, key: &[u8], is_read: bool) -> Option<Address> {
        let serving_state = self.serving_state();
        let serving = serving_state.serving().ok()?;
        let (_, shard) = serving.shard_of(key);
        let operation = if is_read { Operation::GET } else { Operation::DELETE };
        match self.whom_to_ask(serving, shard, operation) {
            Whom::Other(node, _) => Some(node),
            Whom::Nobody(_) => Some(self.address.clone()),
            Whom::Alone(_) | Whom::Replica(_) => None,
        }
    }

    /// Where a client's request goes that another node has to do; nothing where this one does it, or nobody is there who could.
    pub fn onward(&self, key: &[u8], operation: Operation, named: Option<RequestId>) -> Option<Onward> {
        if self.refuse_if_claimed().is_err() {
            return None;
        }
        let serving_state = self.serving_state();
        let serving = serving_state.serving().ok()?;
        let (_, shard) = serving.shard_of(key);
        let Whom::Other(to, incarnation) = self.whom_to_ask(serving, shard, operation) else { return None };
        let passed = match named {
            Some(named) => Some(Passed::named(named)),
            None => (!operation.is_read()).then(|| self.pass(&serving.state)),
        };
        let (addressed, version) = (serving.addressed(incarnation), serving.state.version);
        Some(Onward { to, addressed, group: shard.group, version, passed })
    }

    /// Whether a shard is one of this node's.
    pub(super) fn is_of(&self, serving: &Serving, shard: &view::Shard) -> bool {
        serving.state.replicas_of(shard.group).contains(&&self.address)
    }

    /// The node to ask about a shard of which this one holds no replica.
    pub(super) fn likely_leader(&self, state: &MetaState, shard: &view::Shard) -> Address {
        let replicas = state.replicas_of(shard.group);
        let is_up = |node: &Address| *node != self.address && !self.peers.at(node).is_down();
        let known = self.leaders.of(shard.group).filter(|leader| replicas.contains(&leader) && is_up(leader));
        known.unwrap_or_else(|| {
            let up: Vec<&Address> = replicas.into_iter().filter(|node| is_up(node)).collect();
            match up.len() {
                0 => shard.replicas[0].clone(),
                // Whoever has no leader that it knows of may be cut off from the others: the next time it is another.
                count => up[dice::index(count)].clone(),
            }
        })
    }

    /// Does what a client asks, here or at the node that owns the key, and follows the key where it is being moved, and its shard where
    /// another replica leads. Where it was asked for already, `told` is what came of that.
    ///
    /// # Errors
    /// [`Error`], which says whether a write happened.
    pub async fn run(
        &self,
        request: &mut Request<'_>,
        mut told_before: Option<Told>,
    ) -> Result<Outcome, Error> {
        self.count_operation();
        self.refuse_if_claimed()?;
        let (operation, deadline) = (request.operation, request.deadline);
        if let Some(passed) = told_before.as_mut().and_then(Told::take_passed) {
            request.passed = passed.into();
        }
        let (mut pause, mut so_far) = (FIRST_PAUSE, SoFar::default());
        let mut was_sent_on = false;
        self.wait_for_first_round(deadline).await;
        loop {
            let serving_state = self.serving_state();
            let serving = serving_state.serving().map_err(|error| Error::Unavailable {
                reason: error.to_string(),
                applied: so_far.applied(),
            })?;
            // What was learned since it was asked is news.
            let known = told_before.as_ref().and_then(Told::version).unwrap_or(serving.state.version);
            let was_led = matches!(told_before, Some(Told::Log(_)));
            let has_others = |key: &[u8]| was_led || serving.is_led(key);
            let reply = match told_before.take() {
                Some(told) => self.told(serving, told, request),
                None => self.ask_owner(serving, request, so_far.is_unclear()).await,
            };
            let sent_on = matches!(reply, Err(NotServed::NotLeader(Some(_), _))) && !was_sent_on;
            if so_far.is_refused_as_unknown(&reply) {
                request.give_up_number();
            }
            // Whoever owns the key by now may be another node than the one that does not answer.
            let has_news = || self.state().is_some_and(|state| state.version > known) && !deadline.is_over();
            if let Some(end) = so_far.take(reply, || has_others(request.key), has_news) {
                return end;
            }
            if deadline.is_over() {
                return Err(so_far.in_vain(operation));
            }
            // The first hint to another leader is followed at once.
            was_sent_on = sent_on;
            if !sent_on {
                self.wait_for_news(known, pause.min(deadline.left())).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    /// Does what a client asks where that can be done at once: this node keeps the key's shard alone, or whatever it holds is recent enough. Nothing where
    /// somebody would have to wait, and then nothing was done.
    pub fn run_at_once(
        &self,
        key: &[u8],
        operation: Operation,
        named: Option<RequestId>,
        is_stale: bool,
    ) -> Option<Result<Outcome, Error>> {
        self.refuse_if_claimed().ok()?;
        let done = if is_stale {
            Ok(self.read_own(key, operation)?)
        } else {
            let serving_state = self.serving_state();
            let serving = serving_state.serving().ok()?;
            let (hash, shard) = serving.shard_of(key);
            let Whom::Alone(own) = self.whom_to_ask(serving, shard, operation) else { return None };
            let forwarded = named.map(|named| self.stamp(own, named, serving.state.view.epoch));
            match self.ask_alone(serving, (shard, own), (hash, key), operation, (named, forwarded)) {
                Ok(outcome) => Ok(outcome),
                Err(NotServed::OtherRequest) => Err(Error::OtherRequest),
                Err(NotServed::Failed(error @ Error::NoRoom(_))) => Err(error),
                Err(_) => return None,
            }
        };
        self.count_operation();
        Some(done)
    }

    /// Who has to be asked to do an operation on a key of a shard.
    pub(super) fn whom_to_ask<'a>(
        &self,
        serving: &'a Serving,
        shard: &view::Shard,
        operation: Operation,
    ) -> Whom<'a> {
        let Some(own) = serving.own_of(shard.group) else {
            return if serving.state.replicas_of(shard.group).len() > 1 {
                let node = self.likely_leader(&serving.state, shard);
                if node == self.address { Whom::Nobody(unreached(shard)) } else { Whom::Other(node, None) }
            } else {
                let node = &shard.replicas[0];
                let holder = serving.state.holder(shard.group, node).filter(|_| *node != self.address);
                match holder {
                    Some(incarnation) => Whom::Other(node.clone(), Some(incarnation)),
                    None => Whom::Nobody(lost(shard, node)),
                }
            };
        };
        if !own.is_logged() || operation.is_read() && self.is_only_voter(own) {
            return Whom::Alone(own);
        }
        match self.does(own, operation) {
            Ok(()) => Whom::Replica(own),
            Err(NotDone::NotLeader(Some(leader))) => Whom::Other(leader, None),
            Err(_) => Whom::Nobody(self.no_leader(shard)),
        }
    }

    async fn ask_owner(&self, serving: &Serving, request: &Request<'_>, is_retry: bool) -> Reply {
        let (hash, shard) = serving.shard_of(request.key);
        let place = (hash, request.key);
        match self.whom_to_ask(serving, shard, request.operation) {
            Whom::Nobody(not_served) => Err(not_served),
            Whom::Other(node, incarnation) => {
                self.ask_node(serving, shard, (&node, incarnation), request).await
            }
            Whom::Alone(own) => {
                // Another node may have done it already, before the key came here, and its record came along.
                let may_be_done = is_retry || request.is_named;
                let forwarded = if may_be_done { self.stamp_own(serving, own, request) } else { None };
                let id = (request.id(), forwarded);
                self.ask_alone(serving, (shard, own), place, request.operation, id)
            }
            Whom::Replica(own) => {
                let write = self.stamp_own(serving, own, request);
                let done = self.run_in_group(own, place, request.operation, write, request.deadline).await;
                self.reply(serving, (shard, own), done, request.operation)
            }
        }
    }

    /// Has it done by a shard that this node keeps alone.
    pub(super) fn ask_alone(
        &self,
        serving: &Serving,
        (shard, own): (&view::Shard, &Shard),
        (hash, key): (KeyHash, &[u8]),
        operation: Operation,
        (request, forwarded): (Option<RequestId>, Option<Forwarded>),
    ) -> Reply {
        let taken = self.find_room(own, (hash, key), operation, forwarded.as_ref());
        let done = taken.map(|()| self.run_alone(own, (hash, key), operation, request, forwarded));
        self.reply(serving, (shard, own), done, operation)
    }

    /// What came of an operation on a key of a shard that this node holds a replica of, for client and forwarding node alike.
    pub(super) fn reply(
        &self,
        serving: &Serving,
        (shard, own): (&view::Shard, &Shard),
        done: Result<Result<Done, Refused>, NotDone>,
        operation: Operation,
    ) -> Reply {
        let error = match done {
            Ok(Ok(done)) => return Ok(Outcome::of_own(done, own, serving.tags)),
            Ok(Err(Refused::OtherRequest)) => return Err(NotServed::OtherRequest),
            Ok(Err(Refused::Sealed)) => {
                let reason = "the node is about to become part of another cluster".to_owned();
                return Err(NotServed::Failed(Error::Unavailable { reason, applied: Applied::No }));
            }
            Ok(Err(Refused::Moving | Refused::NotOwned | Refused::Logged | Refused::Forgotten)) => {
                return Err(NotServed::Again);
            }
            Err(error) => error,
        };
        // A read changes nothing.
        let unknown = if operation.is_read() { Applied::No } else { Applied::Unknown };
        Err(match error {
            NotDone::Again => NotServed::Again,
            NotDone::Full => NotServed::Full,
            NotDone::NoRoom(node) => no_room(&node),
            NotDone::NotLeader(Some(leader)) => NotServed::NotLeader(Some(leader), String::new()),
            NotDone::NotLeader(None) => self.no_leader(shard),
            NotDone::Busy => NotServed::Failed(Error::Overloaded(
                "Too much waits for the shard's replicas: try again later".to_owned(),
            )),
            // In a moment it may be done: it is asked again.
            error @ NotDone::NotHeard(_) => NotServed::Failed(Error::Unavailable {
                reason: format!("shard {}: {error}", shard.id),
                applied: Applied::No,
            }),
            error @ NotDone::NotKnown(_) => NotServed::Failed(Error::Overloaded(error.to_string())),
            NotDone::TooLarge => {
                NotServed::Failed(Error::TooLarge("The value is too large for the shard's log".to_owned()))
            }
            error @ (NotDone::UnderWay | NotDone::Unknown) => NotServed::Failed(Error::Unavailable {
                reason: format!("shard {}: {error}", shard.id),
                applied: unknown,
            }),
        })
    }

    /// The shard's replicas have no leader that is known here.
    fn no_leader(&self, shard: &view::Shard) -> NotServed {
        let voters = self.groups.local(shard.group).map(|local| local.voters()).unwrap_or_default();
        NotServed::NotLeader(None, self.leaderless(shard, &voters))
    }

    /// The id by which a write is passed on; a read needs none.
    fn passed<'a>(&self, serving: &Serving, request: &'a Request) -> Option<&'a Passed> {
        (!request.operation.is_read()).then(|| request.passed.get_or_init(|| self.pass(&serving.state)))
    }

    /// A client's write, as a shard takes it that this node leads.
    fn stamp_own(&self, serving: &Serving, own: &Shard, request: &Request) -> Option<Forwarded> {
        let passed = self.passed(serving, request)?;
        Some(self.stamp(own, passed.request, serving.state.view.epoch))
    }

    /// What came of asking before.
    fn told(&self, serving: &Serving, told: Told, request: &Request) -> Reply {
        let (hash, shard) = serving.shard_of(request.key);
        match told {
            Told::Log(told) => {
                let own = Arc::clone(told.shard());
                let done = self.conclude(told, (hash, request.key), request.operation);
                self.reply(serving, (shard, &own), done, request.operation)
            }
            Told::Node(answer) => {
                let (Onward { to, addressed, group, .. }, reply) = *answer;
                // Its group may have another range by now, or be gone: what was said is of the group that was asked.
                match serving.state.view.shards.iter().find(|shard| shard.group == group) {
                    Some(asked) => self.conclude_asked(serving, asked, (&to, addressed.incarnation), reply),
                    None => conclude_gone(&to, reply),
                }
            }
        }
    }

    /// Has it done by a node that holds a replica of the key's shard: a certain start of it where that is the only replica.
    async fn ask_node(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        (node, incarnation): (&Address, Option<u64>),
        request: &Request<'_>,
    ) -> Reply {
        let addressed = serving.addressed(incarnation);
        self.passed(serving, request);
        let reply = self.host.key(self, (node, &addressed, shard.group), request).await;
        self.conclude_asked(serving, shard, (node, incarnation), reply)
    }

    /// What came of asking a node.
    pub(super) fn conclude_asked(
        &self,
        serving: &Serving,
        shard: &view::Shard,
        (node, incarnation): (&Address, Option<u64>),
        reply: Result<Reply, NoAnswer>,
    ) -> Reply {
        let is_only = incarnation.is_some();
        if !is_only {
            self.note_leader(shard.group, node, &reply);
        }
        let error = match reply {
            Ok(Ok(outcome)) => {
                let by = (!self.is_of(serving, shard)).then(|| node.clone());
                return Ok(Outcome { by, ..outcome });
            }
            Ok(Err(NotServed::Gone)) => return Err(lost(shard, node)),
            Ok(Err(not_served)) => return Err(not_served),
            Err(error) if error.kind == NoAnswerKind::Full => {
                return Err(NotServed::Failed(Error::Overloaded(format!("{node}: {error}"))));
            }
            Err(error) => error,
        };
        let reason = if is_only { format!("{error}; {}", advice(shard)) } else { error.to_string() };
        let name = format_args!("shard {} at {node}", shard.id);
        Err(NotServed::Failed(Error::unavailable(name, reason, error.kind.applied())))
    }

    /// What was said by whoever was asked, and did nothing.
    pub fn note_elsewhere(&self, told: &Told) {
        if let Told::Node(answer) = told
            && answer.0.addressed.incarnation.is_none()
        {
            self.note_leader(answer.0.group, &answer.0.to, &answer.1);
        }
    }

    /// What a reply says of who leads a shard.
    fn note_leader(&self, group: u64, node: &Address, reply: &Result<Reply, NoAnswer>) {
        match reply {
            Ok(Ok(_) | Err(NotServed::OtherRequest)) => self.leaders.note(group, node),
            Ok(Err(NotServed::NotLeader(leader, _))) => {
                self.leaders.forget(group, node);
                if let Some(leader) = leader {
                    self.leaders.note(group, leader);
                }
            }
            Err(error) if error.kind == NoAnswerKind::Full => {}
            Err(_) => self.leaders.forget(group, node),
            Ok(Err(NotServed::Again | NotServed::Gone | NotServed::Full | NotServed::Failed(_))) => {}
        }
    }
}

/// What came of asking a node about a group that is no more.
fn conclude_gone(node: &Address, reply: Result<Reply, NoAnswer>) -> Reply {
    match reply {
        Ok(Ok(outcome)) => Ok(Outcome { by: Some(node.clone()), ..outcome }),
        Ok(Err(NotServed::Gone | NotServed::NotLeader(..))) => Err(NotServed::Again),
        Ok(Err(not_served)) => Err(not_served),
        Err(error) => Err(NotServed::Failed(Error::unavailable(node, &error, error.kind.applied()))),
    }
}

/// Who has to be asked about a key of a shard.
pub(super) enum Whom<'a> {
    /// This node, which keeps the shard alone.
    Alone(&'a Arc<Shard>),
    /// This node, whose replica does it: it leads the shard's group, or answers the read of its own.
    Replica(&'a Arc<Shard>),
    /// Another node: a certain start of it where it has the only replica.
    Other(Address, Option<u64>),
    /// Nobody at this moment.
    Nobody(NotServed),
}

fn unreached(shard: &view::Shard) -> NotServed {
    let reason = format!("shard {}: none of its other replicas is reached", shard.id);
    NotServed::Failed(Error::Unavailable { reason, applied: Applied::No })
}

/// The only node that holds a shard does not hold it any more.
fn lost(shard: &view::Shard, node: &Address) -> NotServed {
    NotServed::Failed(Error::Unavailable { reason: lost_shard(shard.id, node), applied: Applied::No })
}

impl From<NotServed> for Error {
    fn from(not_served: NotServed) -> Self {
        let reason = match not_served {
            NotServed::Failed(error) => return error,
            NotServed::OtherRequest => return Self::OtherRequest,
            NotServed::Full => return Self::Overloaded(full()),
            NotServed::Again => "the key is on its way from one shard to another".to_owned(),
            NotServed::Gone => "the node was started again".to_owned(),
            NotServed::NotLeader(Some(leader), _) => format!("{leader} leads the shard"),
            NotServed::NotLeader(None, reason) => reason,
        };
        Self::Unavailable { reason, applied: Applied::No }
    }
}

/// What was heard so far of a request that has not ended.
#[derive(Default)]
pub(super) struct SoFar {
    /// It may have been done.
    unclear: Option<Error>,
    not_done: Option<Error>,
    /// What a replica has said of its shard tells more than that another one did not answer.
    told: Option<String>,
}

impl SoFar {
    /// Whether it may have been done.
    pub(super) fn is_unclear(&self) -> bool {
        self.unclear.is_some()
    }

    /// Whether it was done, as far as that is known.
    pub(super) fn applied(&self) -> Applied {
        self.unclear.as_ref().map_or(Applied::No, Error::applied)
    }

    /// Whether nothing was done, maybe since the shard does not know the number of the request.
    pub(super) fn is_refused_as_unknown(&self, reply: &Reply) -> bool {
        matches!(reply, Err(NotServed::Again)) && !self.is_unclear()
    }

    /// Takes a reply in: how the request has ended, if it has. `has_others` says whether there are other replicas to be asked, or the same one once more; `has_news`
    /// whether another node may own the key by now.
    pub(super) fn take(
        &mut self,
        reply: Reply,
        has_others: impl FnOnce() -> bool,
        has_news: impl FnOnce() -> bool,
    ) -> Option<Result<Outcome, Error>> {
        match reply {
            Ok(outcome) => return Some(Ok(outcome)),
            Err(NotServed::Again | NotServed::NotLeader(Some(_), _)) => {}
            Err(NotServed::NotLeader(None, reason)) => self.told = Some(reason),
            Err(NotServed::OtherRequest) => return Some(Err(Error::OtherRequest)),
            Err(NotServed::Failed(error)) if error.may_go_on(has_others, self.is_unclear()) => {
                let is_unknown = error.applied() == Applied::Unknown;
                let kept = if is_unknown { &mut self.unclear } else { &mut self.not_done };
                *kept = Some(error);
            }
            Err(not_served) => {
                let error = Error::from(not_served);
                if !has_news() {
                    return Some(Err(self.unclear.take().unwrap_or(error)));
                }
                if error.applied() == Applied::Unknown {
                    self.unclear.get_or_insert(error);
                }
            }
        }
        None
    }

    /// What is said where nobody has done it by the deadline.
    pub(super) fn in_vain(&mut self, operation: Operation) -> Error {
        let (told, error) = (self.told.take(), self.unclear.take().or(self.not_done.take()));
        // A read changes nothing, whoever may have done it.
        let applied = error.as_ref().map_or(Applied::No, Error::applied);
        let applied = if operation.is_read() { Applied::No } else { applied };
        let reason = match (told, error) {
            (Some(told), _) => told,
            (None, Some(Error::Unavailable { reason, .. })) => reason,
            (None, Some(error)) => return error,
            (None, None) => "the key was on its way from one shard to another all the time".to_owned(),
        };
        Error::Unavailable { reason, applied }
    }
}

impl Serving {
    /// Whether the shard of a key has a leader, which may be another node by the next time that it is asked.
    pub(super) fn is_led(&self, key: &[u8]) -> bool {
        let (_, shard) = self.shard_of(key);
        match self.own_of(shard.group) {
            Some(own) => own.is_logged(),
            None => self.state.replicas_of(shard.group).len() > 1,
        }
    }

    /// What a request says of who is asked, and from where.
    pub(super) fn addressed(&self, incarnation: Option<u64>) -> Addressed {
        Addressed { cluster: self.state.cluster.clone(), epoch: self.state.view.epoch, incarnation }
    }

    /// The hash of a key, and the shard that owns it.
    pub fn shard_of(&self, key: &[u8]) -> (KeyHash, &view::Shard) {
        let hash = self.state.hash_key.hash(key);
        (hash, &self.state.view.shards[self.state.view.owner(hash, key)])
    }
}
