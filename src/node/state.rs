//! The node: its identity, what it has learned of its cluster, and its shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::audits::Unowned;
use super::duplicates::Duplicates;
use super::host::{Awaited, Host};
use super::leaders::Leaders;
use super::meta_group::MetaGroup;
use super::passing::Passing;
use super::problems::lost_shard;
use super::raft::{Groups, GroupsInbox};
use super::rate::Rates;
use super::replicas::Replicas;
use super::reservation::Reservations;
use super::returning::Returns;
use super::stale::Freshness;
use super::strangers::Strangers;
use super::timekeeping::Timekeeping;
use super::transport::Posts;
use super::under_way::UnderWay;
use crate::access::Access;
use crate::budget::Budget;
use crate::clock::{Deadline, now};
use crate::config::{Config, Role};
use crate::dice;
use crate::disk::Storage;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::condition::TagSpace;
use crate::model::limits::{BatchLimits, Limits};
use crate::model::meta::MetaState;
use crate::model::room::Gauge;
use crate::model::shard::Shard as ShardReplica;
use crate::peers::client::{Peer, Peers};

/// Bytes of orders, news and messages of other nodes that are held at one time.
const INTERNAL_MEMORY: usize = 256 << 20;

/// So many key operations in a second are use.
const USE_PER_SECOND: u128 = 200;

/// How often a request looks whether the node that was just started knows a cluster.
const FIRST_ROUND_PAUSE: Duration = Duration::from_millis(20);

/// A node, shared by all threads.
pub struct Node {
    /// The node's identity.
    pub address: Address,
    /// Whether it was given that address, so that other nodes can be told it.
    pub has_address: bool,
    /// What it is by its settings.
    pub role: Role,
    /// What keys and values may be by its settings: see [`Node::limits`].
    pub(super) own_limits: Limits,
    /// What one request with many operations may have.
    pub batch_limits: BatchLimits,
    /// Every key request is answered within this time after it has come in wholly.
    pub request_timeout: Duration,
    /// For so many milliseconds a named write is remembered.
    pub(super) remembered_ms: u64,
    /// Bytes that a shard may take to remember named writes.
    pub(super) retry_memory: usize,
    /// Bytes that a replica of a shard keeps of what was done last.
    pub(super) watch_history: usize,
    /// What it holds, and may.
    pub(super) gauge: Arc<Gauge>,
    /// The memory for large bodies and answers, in bytes.
    pub large_memory: usize,
    /// How it waits, and reaches others.
    pub host: Arc<dyn Host>,
    /// The other nodes.
    pub peers: Peers,
    /// The memory for large bodies and answers.
    pub budget: Budget,
    /// The same for what nodes send each other: clients do not use it up.
    pub internal_budget: Budget,
    /// The random id under which the node holds what it has: of this start of it, as what an earlier one was given is not this one's; of
    /// its folder where it has one.
    pub incarnation: u64,
    /// Its folder, where it keeps what it holds.
    pub(super) storage: Option<Arc<Storage>>,
    /// The random id of this process.
    pub(super) life: u64,
    /// Who was started how often with a folder.
    pub(super) returns: Returns,
    /// The random id by which a follower finds its own trace in a request; nobody else is told.
    pub trace: String,
    /// Who may ask for what.
    pub access: Access,
    /// The secret of the cluster.
    pub secret: Option<String>,
    /// This node's replicas of all groups.
    pub groups: Arc<Groups>,
    /// Its replica of the meta group.
    pub meta: MetaGroup,
    /// Its replicas of shards.
    pub(super) replicas: Replicas,
    /// Who was last seen to lead the other shards.
    pub(super) leaders: Leaders,
    /// How old what the replicas hold may be.
    pub(super) freshness: Freshness,
    /// The writes that it passes on.
    pub(super) passing: Arc<Passing>,
    /// The named ones that it has asked logs for.
    pub(super) under_way: Arc<UnderWay>,
    /// Which logs are asked to take the time.
    pub(super) timekeeping: Arc<Timekeeping>,
    /// What other nodes are sent without waiting for it.
    pub posts: Posts,
    /// What the node is reserved for.
    pub(super) reservations: Reservations,
    /// Its shards that do not own what they should.
    pub(super) unowned: Unowned,
    /// Who answers at addresses of the view and is of another cluster.
    pub(super) strangers: Strangers,
    /// Which addresses more than one process has.
    pub(super) duplicates: Duplicates,
    serving_state: RwLock<Arc<ServingState>>,
    /// Held while something is learned, so that it is learned in one order.
    pub(super) learning: Mutex<()>,
    /// Counts what was learned.
    news: (Mutex<u64>, Condvar),
    /// The other nodes that were named have been asked once what they know.
    first_round: AtomicBool,
    /// The node is about to stop: it takes leave of its groups and serves on.
    leaving: AtomicBool,
    /// It takes no more requests.
    stopping: AtomicBool,
    /// Key operations so far, of clients and passed on.
    operations: AtomicU64,
    /// Requests of clients a second, as whoever answers them counts.
    pub rates: Rates,
}

/// Whether there is a view to serve.
pub enum ServingState {
    /// The node knows a cluster.
    Serving(Serving),
    /// A follower has none and needs none.
    Follower,
    /// Not yet: a sentence for each reason.
    Waiting(Vec<String>),
}

/// What the node knows of its cluster, and its place in it.
pub struct Serving {
    /// The newest state that was learned.
    pub state: Arc<MetaState>,
    /// The shards that this node holds replicas of, each with its index in the view: the one that the view names the node for comes first.
    /// There are more of them only in the course of a view change.
    pub own: Vec<(usize, Arc<ShardReplica>)>,
    /// The id of the shard that an earlier start of this node held, and that is lost with it.
    pub lost: Option<u32>,
    /// What the entity tags of the cluster begin with: every answer has one.
    pub tags: TagSpace,
}

impl Node {
    /// A node that has not talked to anybody yet, and what its raft thread is started with.
    pub fn new(config: &Config, host: Arc<dyn Host>) -> (Self, GroupsInbox) {
        Self::with(config, host, None)
    }

    /// The same with a folder in which it keeps what it holds. What was in it is taken in by [`resume`](Self::resume).
    pub fn with(config: &Config, host: Arc<dyn Host>, storage: Option<Arc<Storage>>) -> (Self, GroupsInbox) {
        let serving_state = match &config.role {
            Role::Follower { .. } => ServingState::Follower,
            Role::Single => ServingState::Waiting(vec!["the node is starting".to_owned()]),
            Role::Member { .. } | Role::Passive { .. } => {
                ServingState::Waiting(vec!["the nodes of VIEW were not asked yet".to_owned()])
            }
        };
        let gauge = Arc::new(Gauge::new(config.max_memory));
        let (groups, mut inbox) = Groups::new(Arc::clone(&host), Arc::clone(&gauge));
        inbox.keep_on(storage.clone());
        let groups = Arc::new(groups);
        let node = Self {
            address: config.address.clone(),
            has_address: config.has_address,
            role: config.role.clone(),
            own_limits: config.limits,
            batch_limits: config.batch_limits,
            request_timeout: config.request_timeout,
            remembered_ms: config.remembered_ms(),
            retry_memory: config.retry_memory,
            watch_history: config.watch_history,
            gauge,
            large_memory: config.server.large_memory,
            peers: Peers::new(config.secret.as_deref()),
            budget: Budget::new(config.server.large_memory),
            internal_budget: Budget::new(INTERNAL_MEMORY),
            incarnation: storage.as_ref().map_or_else(dice::id, |storage| storage.id()),
            trace: format!("{:016x}", dice::draw::<u64>()),
            access: config
                .tokens
                .as_ref()
                .map_or_else(Access::open, |(path, tokens)| Access::guarded(path, Arc::clone(tokens))),
            secret: config.secret.clone(),
            meta: MetaGroup::new(Arc::clone(&groups), Arc::clone(&host)),
            groups,
            host,
            replicas: Replicas::default(),
            leaders: Leaders::default(),
            freshness: Freshness::default(),
            under_way: Arc::default(),
            passing: Arc::new(Passing::after(storage.as_ref().map_or(0, |storage| storage.starts()))),
            storage,
            life: dice::id(),
            returns: Returns::default(),
            timekeeping: Arc::default(),
            posts: Posts::default(),
            reservations: Reservations::default(),
            unowned: Unowned::default(),
            strangers: Strangers::default(),
            duplicates: Duplicates::default(),
            serving_state: RwLock::new(Arc::new(serving_state)),
            learning: Mutex::new(()),
            news: (Mutex::new(0), Condvar::new()),
            first_round: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            rates: Rates::default(),
        };
        (node, inbox)
    }

    /// How the node stands now.
    pub fn serving_state(&self) -> Arc<ServingState> {
        Arc::clone(&self.serving_state.read())
    }

    /// Notes a new state of serving; only who holds `learning` does.
    pub(super) fn set_serving_state(&self, serving_state: ServingState) {
        *self.serving_state.write() = Arc::new(serving_state);
        *self.news.0.lock() += 1;
        self.news.1.notify_all();
    }

    /// The newest state that was learned.
    pub fn state(&self) -> Option<Arc<MetaState>> {
        self.serving_state().serving().ok().map(|serving| Arc::clone(&serving.state))
    }

    /// The shard that this node stands for in the view.
    pub fn shard(&self) -> Option<Arc<ShardReplica>> {
        self.serving_state().serving().ok().and_then(|serving| Some(Arc::clone(&serving.own.first()?.1)))
    }

    /// The shard of a group that this node holds a replica of.
    pub fn shard_of(&self, group: u64) -> Option<Arc<ShardReplica>> {
        self.serving_state().serving().ok().and_then(|serving| serving.own_of(group).cloned())
    }

    /// Waits until something was learned that is newer than this version, or anything about where this node stands has changed, for a while
    /// at most.
    pub async fn wait_for_news(&self, version: u64, timeout: Duration) {
        let awaited = News { node: self, version: Some(version), count: *self.news.0.lock() };
        self.host.wait(&awaited, Deadline::after(now(), timeout)).await;
    }

    /// Waits until anything about where this node stands has changed, for a while at most.
    pub async fn wait_for_any_news(&self, timeout: Duration) {
        let awaited = News { node: self, version: None, count: *self.news.0.lock() };
        self.host.wait(&awaited, Deadline::after(now(), timeout)).await;
    }

    /// Waits for a time, whatever happens.
    pub async fn pause(&self, time: Duration) {
        self.host.wait(&Nothing, Deadline::after(now(), time)).await;
    }

    /// The nodes that were named have been asked what they know.
    pub(crate) fn end_first_round(&self) {
        if !self.first_round.swap(true, Ordering::SeqCst) {
            *self.news.0.lock() += 1;
            self.news.1.notify_all();
        }
    }

    /// A node that has only just been started finds its cluster in a moment, if there is one: whoever asks it before waits for that.
    pub(super) async fn wait_for_first_round(&self, deadline: Deadline) {
        let waits = || {
            !self.first_round.load(Ordering::SeqCst)
                && matches!(&*self.serving_state(), ServingState::Waiting(_))
        };
        while waits() && !deadline.is_over() {
            self.wait_for_any_news(FIRST_ROUND_PAUSE.min(deadline.left())).await;
        }
    }

    /// Counts a key operation.
    pub(super) fn count_operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// How many key operations there have been.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Whether clients use this node, by what they have done since a moment before which there had been so many operations.
    pub fn is_used_since(&self, start: Instant, before: u64) -> bool {
        let micros = (now() - start).as_micros().max(1);
        u128::from(self.operations() - before) * 1_000_000 > USE_PER_SECOND * micros
    }

    /// The main, where this node is a follower.
    pub fn main(&self) -> Option<Arc<Peer>> {
        match &self.role {
            Role::Follower { main } => Some(self.peers.at(main)),
            _ => None,
        }
    }

    /// Whether the node looks for a cluster that it is no part of.
    pub fn is_passive(&self) -> bool {
        matches!(self.role, Role::Passive { .. })
    }

    /// Says that the node is going to stop: it is not ready any more, becomes part of no group, and serves on.
    pub fn begin_to_leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Whether the node is going to stop.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Says that the node takes no more requests.
    pub fn stop(&self) {
        self.begin_to_leave();
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether the node takes no more requests.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Why the node is not ready, a sentence each; empty when it is.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = match &*self.serving_state() {
            ServingState::Waiting(reasons) => reasons.clone(),
            ServingState::Follower if self.main().is_some_and(|main| main.is_down()) => {
                vec!["the main instance is down".to_owned()]
            }
            ServingState::Serving(Serving { lost: Some(id), .. }) => vec![lost_shard(*id, &self.address)],
            ServingState::Serving(serving) => [self.missing_votes(serving), self.unowned()].concat(),
            ServingState::Follower => Vec::new(),
        };
        reasons.extend(self.claim());
        reasons.extend(self.lack_of_memory());
        if self.is_leaving() {
            reasons.push("the node is stopping".to_owned());
        }
        reasons
    }
}

/// Something new about where a node stands.
struct News<'a> {
    node: &'a Node,
    /// Whether a newer state than this is waited for, which may be there already.
    version: Option<u64>,
    /// So much was new when it began to wait.
    count: u64,
}

impl News<'_> {
    fn is_newer(&self) -> bool {
        let newer = |version| self.node.state().is_some_and(|state| state.version > version);
        self.version.is_some_and(newer)
    }
}

impl Awaited for News<'_> {
    fn is_there(&self) -> bool {
        *self.node.news.0.lock() != self.count || self.is_newer()
    }

    fn block(&self, deadline: Deadline) {
        let mut news = self.node.news.0.lock();
        if *news == self.count && !self.is_newer() {
            self.node.news.1.wait_for(&mut news, deadline.left());
        }
    }
}

/// Nothing is waited for but the end of the time.
struct Nothing;

impl Awaited for Nothing {
    fn is_there(&self) -> bool {
        false
    }

    #[expect(clippy::disallowed_methods, reason = "it is the time itself that is waited for")]
    fn block(&self, deadline: Deadline) {
        std::thread::sleep(deadline.left());
    }
}

impl Serving {
    /// What a node knows and holds, in terms of its newest state.
    pub(super) fn new(
        state: &Arc<MetaState>,
        own: Vec<(usize, Arc<ShardReplica>)>,
        lost: Option<u32>,
    ) -> Self {
        Self { state: Arc::clone(state), own, lost, tags: TagSpace::of(&state.cluster) }
    }

    /// Whether this node does everything with keys by itself.
    pub fn owns_all(&self) -> bool {
        self.state.view.shards.len() == 1 && self.own.first().is_some_and(|(_, own)| !own.is_logged())
    }

    /// The shard of a group, if this node holds a replica of it.
    pub fn own_of(&self, group: u64) -> Option<&Arc<ShardReplica>> {
        self.own.iter().map(|(_, own)| own).find(|own| own.group() == group)
    }
}

impl ServingState {
    /// What is known of the cluster.
    ///
    /// # Errors
    /// [`Error::NotServing`] with the reasons.
    pub fn serving(&self) -> Result<&Serving, Error> {
        match self {
            Self::Serving(serving) => Ok(serving),
            Self::Follower => Err(Error::NotServing("a follower has no view: ask its main".to_owned())),
            Self::Waiting(reasons) => Err(Error::NotServing(reasons.join("; "))),
        }
    }
}
