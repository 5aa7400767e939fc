//! A node around its shard: what it has learned, and how.

use std::cell::RefCell;
use std::sync::Arc;

use super::Shared;
use super::tasks::pause;
use super::world::INSTANCE;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::Shard;

#[derive(Default)]
pub(super) struct Node {
    pub(super) known: RefCell<Option<Arc<MetaState>>>,
    own: RefCell<Option<Arc<Shard>>>,
}

impl Node {
    pub(super) fn shard(&self) -> Option<Arc<Shard>> {
        self.own.borrow().clone()
    }

    /// The shard, if it is that of a group.
    pub(super) fn shard_of(&self, group: u64) -> Option<Arc<Shard>> {
        self.shard().filter(|shard| shard.group() == group)
    }

    /// Learns a state, as `Node::learn` does.
    pub(super) fn learn(&self, address: &Address, state: &Arc<MetaState>) {
        let is_news = self.known.borrow().as_ref().is_none_or(|known| known.version < state.version);
        if !is_news {
            return;
        }
        let holds = |group: u64| state.holder(group, address) == Some(INSTANCE);
        let place = state.view.shards.iter().position(|shard| holds(shard.group));
        let own = place.map(|index| {
            let group = state.view.shards[index].group;
            let ranges = state.view.ranges(index);
            let fresh = || Arc::new(Shard::new(group, state.hash_key, ranges, state.view.epoch));
            let own = self.shard_of(group).unwrap_or_else(fresh);
            own.learn(&state.directive(index));
            own
        });
        *self.own.borrow_mut() = own;
        *self.known.borrow_mut() = Some(Arc::clone(state));
    }
}

/// Any node learns any state, old or new, now and then; shards sweep meanwhile.
pub(super) async fn tell_late_news(world: Shared) {
    loop {
        pause().await;
        let address = world.some_node();
        let node = &world.nodes[&address];
        if let Some(shard) = node.shard().filter(|_| world.chance(30)) {
            shard.sweep();
        }
        if world.chance(90) {
            continue;
        }
        let state = {
            let meta = world.meta.borrow();
            let length = meta.history.len();
            let first = if world.chance(50) { length.saturating_sub(8) } else { 0 };
            Arc::clone(&meta.history[world.draw(first..length)])
        };
        // Nodes that are of no view are told only when they are to be in one, or have been.
        let is_meant = node.known.borrow().is_some() || state.nodes().contains(&address);
        if world.chance(50) && is_meant {
            node.learn(&address, &state);
        } else if let Some(shard) = node.shard() {
            // The shard by itself, too: it relies on nobody else to keep old news away.
            let place = state.view.shards.iter().position(|one| one.group == shard.group());
            if let Some(index) = place {
                shard.learn(&state.directive(index));
            }
        }
        world.touched.set(true);
    }
}
