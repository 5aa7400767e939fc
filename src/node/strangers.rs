//! Addresses of this cluster's view at which somebody answers who is no part of it: a node of another cluster, or one with another secret.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;

use super::state::Node;
use crate::model::address::Address;
use crate::wire::Hello;

/// By address: who was last heard there. No longer than the view.
#[derive(Default)]
pub(super) struct Strangers(Mutex<BTreeMap<Address, Stranger>>);

/// Somebody who answers at an address of the view, and is no part of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stranger {
    /// A node of this other cluster.
    OfCluster(String),
    /// A node with which this one shares no secret: why, in words.
    OfSecret(String),
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfCluster(other) => write!(
                f,
                "is named by the view, and answers as a node of another cluster, {other}: start it again with VIEW of this one to have \
                 it join, which loses what it holds, or take it out of the view"
            ),
            Self::OfSecret(reason) => write!(f, "is named by the view, and no part of the cluster: {reason}"),
        }
    }
}

impl Node {
    /// Notes who answers at an address.
    pub(super) fn note_who_answers(&self, at: &Address, hello: &Hello) {
        let own = self.state().map(|state| state.cluster.clone());
        // One that can still become part of this cluster does so when it is told of it.
        let is_other = |other: &&String| own.as_ref() != Some(*other) && hello.bound.is_some();
        self.note_stranger(at, hello.cluster.as_ref().filter(is_other).cloned().map(Stranger::OfCluster));
    }

    /// Notes that somebody answers at an address who shares no secret with this node.
    pub(super) fn note_other_secret(&self, at: &Address, reason: &str) {
        self.note_stranger(at, Some(Stranger::OfSecret(reason.to_owned())));
    }

    fn note_stranger(&self, at: &Address, stranger: Option<Stranger>) {
        let Some(state) = self.state() else { return };
        let mut strangers = self.strangers.0.lock();
        if stranger.is_none() && strangers.is_empty() {
            return;
        }
        let nodes = state.nodes();
        let stranger = stranger.filter(|_| nodes.contains(at));
        strangers.retain(|node, _| nodes.contains(node));
        match stranger {
            Some(stranger) if strangers.get(at) == Some(&stranger) => {}
            Some(stranger) => {
                log::warn!("{at} {stranger}");
                strangers.insert(at.clone(), stranger);
            }
            None => drop(strangers.remove(at)),
        }
    }

    /// Who answers at addresses of the view and is no part of the cluster, a sentence each.
    pub(super) fn strangers(&self) -> Vec<String> {
        self.strangers.0.lock().iter().map(|(node, stranger)| format!("{node} {stranger}")).collect()
    }
}
