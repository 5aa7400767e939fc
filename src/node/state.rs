//! The node: its identity, its pairs, and the view that it routes by.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::budget::Budget;
use crate::config::{Config, Limits, Role};
use crate::error::Error;
use crate::model::address::Address;
use crate::model::hash::HashKey;
use crate::model::store::Store;
use crate::model::view::View;
use crate::peers::client::{Peer, Peers};

/// A node, shared by all threads.
pub struct Node {
    /// The node's identity.
    pub address: Address,
    /// What it is by its settings.
    pub role: Role,
    /// What keys and values may be.
    pub limits: Limits,
    /// The pairs it holds.
    pub store: Store,
    /// The other nodes.
    pub peers: Peers,
    /// The memory for large bodies and answers.
    pub budget: Budget,
    /// The random id of this start of the node: others know by it whether it was started again.
    pub instance: String,
    /// The random id by which a follower finds its own trace in a request; nobody else is told.
    pub trace: String,
    standing: RwLock<Arc<Standing>>,
    stopping: AtomicBool,
}

/// Whether there is a view to serve.
#[derive(Debug)]
pub enum Standing {
    /// The view is served.
    Serving(Serving),
    /// A follower has none and needs none.
    Follower,
    /// Not yet: a sentence for each reason.
    Waiting(Vec<String>),
}

/// The view and this node's place in it.
#[derive(Debug)]
pub struct Serving {
    /// The view.
    pub view: View,
    /// Its fingerprint.
    pub fingerprint: String,
    /// The index of this node's shard, if it has one.
    pub own_shard: Option<usize>,
    /// The starts of the nodes with which this node began to serve.
    pub began_with: BTreeMap<Address, String>,
}

impl Node {
    /// A node that has not talked to anybody yet.
    pub fn new(config: &Config) -> Self {
        let own = config.address.clone();
        let standing = match &config.role {
            Role::Single => {
                let view = View::first(std::slice::from_ref(&own), 1).expect("one node makes a view");
                Standing::Serving(Serving::new(view, &own, BTreeMap::new()))
            }
            Role::Follower { .. } => Standing::Follower,
            Role::Member { .. } => {
                Standing::Waiting(vec!["the other nodes of VIEW were not asked yet".to_owned()])
            }
            Role::Passive { .. } => {
                Standing::Waiting(vec!["the nodes of VIEW were not asked yet".to_owned()])
            }
        };
        Self {
            address: own,
            role: config.role.clone(),
            limits: config.limits.clone(),
            store: Store::new(HashKey::PUBLISHED),
            peers: Peers::new(),
            budget: Budget::new(config.server.large_memory),
            instance: format!("{:016x}", rand::random::<u64>()),
            trace: format!("{:016x}", rand::random::<u64>()),
            standing: RwLock::new(Arc::new(standing)),
            stopping: AtomicBool::new(false),
        }
    }

    /// How the node stands now.
    pub fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.read())
    }

    /// Notes a new standing; only the greeter calls it.
    pub(super) fn set_standing(&self, standing: Standing) {
        *self.standing.write() = Arc::new(standing);
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

    /// Says that the node is going to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether the node is going to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Why the node is not ready, a sentence each; empty when it is.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = match &*self.standing() {
            Standing::Waiting(reasons) => reasons.clone(),
            Standing::Follower if self.main().is_some_and(|main| main.is_down()) => {
                vec!["the main instance is down".to_owned()]
            }
            Standing::Serving(_) | Standing::Follower => Vec::new(),
        };
        if self.is_stopping() {
            reasons.push("the node is stopping".to_owned());
        }
        reasons
    }
}

impl Serving {
    pub(super) fn new(view: View, own: &Address, began_with: BTreeMap<Address, String>) -> Self {
        let (fingerprint, own_shard) = (view.fingerprint(), view.shard_of(own));
        Self { view, fingerprint, own_shard, began_with }
    }

    /// Whether every key is this node's own.
    pub fn owns_all(&self) -> bool {
        self.own_shard.is_some() && self.view.shards.len() == 1
    }
}

impl Standing {
    /// The view that is served.
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
