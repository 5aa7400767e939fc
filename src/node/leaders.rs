//! Who was last seen to lead the shards that this node holds no replica of.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::model::address::Address;

/// So many leaders are remembered; then it begins anew.
const MOST: usize = 4096;

/// The leaders by group. They are hints: whoever is asked by one says if it does not lead.
#[derive(Default)]
pub(super) struct Leaders(RwLock<HashMap<u64, Address>>);

impl Leaders {
    pub(super) fn of(&self, group: u64) -> Option<Address> {
        self.0.read().get(&group).cloned()
    }

    pub(super) fn note(&self, group: u64, leader: &Address) {
        if self.0.read().get(&group) == Some(leader) {
            return;
        }
        let mut leaders = self.0.write();
        if leaders.len() >= MOST {
            leaders.clear();
        }
        leaders.insert(group, leader.clone());
    }

    /// It does not lead, or does not answer.
    pub(super) fn forget(&self, group: u64, leader: &Address) {
        if self.0.read().get(&group) == Some(leader) {
            self.0.write().remove(&group);
        }
    }
}
