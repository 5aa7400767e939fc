//! Addresses of this cluster's view at which a node of another cluster answers.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::state::Node;
use crate::model::address::Address;
use crate::wire::Hello;

/// By address: the other cluster, as it was last heard. No longer than the view.
#[derive(Default)]
pub(super) struct Strangers(Mutex<BTreeMap<Address, String>>);

impl Node {
    /// Notes who answers at an address that the view names.
    pub(super) fn note_who_answers(&self, at: &Address, hello: &Hello) {
        let Some(state) = self.state() else { return };
        // One that can still become part of this cluster does so when it is told of it.
        let other = hello.cluster.as_ref().filter(|other| **other != state.cluster && hello.bound.is_some());
        let mut strangers = self.strangers.0.lock();
        if other.is_none() && strangers.is_empty() {
            return;
        }
        let nodes = state.nodes();
        let other = other.filter(|_| nodes.contains(at));
        strangers.retain(|node, _| nodes.contains(node));
        match other {
            Some(other) if strangers.get(at) == Some(other) => {}
            Some(other) => {
                log::warn!("{}", stranger(at, other));
                strangers.insert(at.clone(), other.clone());
            }
            None => drop(strangers.remove(at)),
        }
    }

    /// Which addresses of the view answer as another cluster, a sentence each.
    pub(super) fn strangers(&self) -> Vec<String> {
        self.strangers.0.lock().iter().map(|(node, other)| stranger(node, other)).collect()
    }
}

fn stranger(node: &Address, other: &str) -> String {
    format!(
        "{node} is named by the view, and answers as a node of another cluster, {other}: start it again with VIEW of this one to have \
         it join, which loses what it holds, or take it out of the view"
    )
}
