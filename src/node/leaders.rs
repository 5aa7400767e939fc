//! Who leads the groups of shards: what this node has heard of those that it holds no replica of, and that whoever waits for a former leader does not go on waiting.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::state::Node;
use crate::model::address::Address;
use crate::wire::frames::Leader;

/// So many leaders are remembered; then it begins anew.
const MOST: usize = 4096;

/// The leaders by group. They are hints: whoever is asked by one says if it does not lead.
#[derive(Default)]
pub(super) struct Leaders(RwLock<HashMap<u64, Known>>);

#[derive(Default, Clone, PartialEq, Eq)]
struct Known {
    node: Option<Address>,
    /// The latest term that a leader has told.
    term: u64,
}

impl Leaders {
    pub(super) fn of(&self, group: u64) -> Option<Address> {
        self.0.read().get(&group)?.node.clone()
    }

    /// An answer was that of a leader, or has named one.
    pub(super) fn note(&self, group: u64, leader: &Address) {
        if self.0.read().get(&group).is_some_and(|known| known.node.as_ref() == Some(leader)) {
            return;
        }
        self.change(group, |known| known.node = Some(leader.clone()));
    }

    /// It does not lead, or does not answer.
    pub(super) fn forget(&self, group: u64, leader: &Address) {
        if self.0.read().get(&group).is_some_and(|known| known.node.as_ref() == Some(leader)) {
            self.change(group, |known| known.node = None);
        }
    }

    /// A leader says that it leads; whether that is news.
    fn hear(&self, leader: &Leader) -> bool {
        let Leader { group, term, node } = leader;
        let said = Known { node: Some(node.clone()), term: *term };
        let known = self.0.read().get(group).cloned().unwrap_or_default();
        let is_news = *term >= known.term && known != said;
        if is_news {
            self.change(*group, |known| *known = said);
        }
        is_news
    }

    fn change(&self, group: u64, change: impl FnOnce(&mut Known)) {
        let mut leaders = self.0.write();
        if leaders.len() >= MOST {
            leaders.clear();
        }
        change(leaders.entry(group).or_default());
    }
}

impl Node {
    /// Who leads a group that this node has a replica of has changed, or its term: whoever waits for the former leader asks again. Called by the raft thread, so it waits for
    /// nobody.
    pub(super) fn follow_leader(&self, group: u64) {
        let Some(local) = self.groups.local(group) else { return };
        // Without a leader there is nobody else to ask.
        if let Some(leader) = local.leader() {
            self.peers.abandon(group, leader);
        }
        if local.has_taken_over() {
            self.tell_led(&[(group, local.status.term)]);
        }
    }

    /// Another node says that it leads a group.
    pub fn hear_leader(&self, leader: &Leader) {
        let is_replica =
            self.state().is_some_and(|state| state.replicas_of(leader.group).contains(&&leader.node));
        // Who has a replica himself knows it by that.
        if is_replica && self.groups.local(leader.group).is_none() && self.leaders.hear(leader) {
            self.peers.abandon(leader.group, &leader.node);
        }
    }

    /// Tells the other nodes of the view which groups this one leads. Those that miss it are told the next time.
    pub fn tell_leaders(&self) {
        let locals = self.groups.locals();
        let is_shard = |group: u64| self.meta.local().is_none_or(|local| local.group != group);
        let led = locals.iter().filter(|local| local.has_taken_over() && is_shard(local.group));
        let led: Vec<(u64, u64)> = led.map(|local| (local.group, local.status.term)).collect();
        self.tell_led(&led);
    }

    fn tell_led(&self, led: &[(u64, u64)]) {
        let Some(state) = self.state().filter(|_| !led.is_empty()) else { return };
        let mut frames = Vec::new();
        for (group, term) in led {
            Leader { group: *group, term: *term, node: self.address.clone() }.encode(&mut frames);
        }
        for node in state.nodes().iter().filter(|node| **node != self.address) {
            self.peers.at(node).tell(&frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_of_an_earlier_term_is_not_believed() {
        let leaders = Leaders::default();
        let [a, b]: [Address; 2] = ["a:1", "b:1"].map(|text| text.parse().unwrap());
        let led = |term, node: &Address| Leader { group: 7, term, node: node.clone() };
        assert!(leaders.hear(&led(2, &a)));
        assert!(!leaders.hear(&led(2, &a)), "that is known");
        assert!(leaders.hear(&led(3, &b)));
        assert!(!leaders.hear(&led(2, &a)), "it does not know yet that it leads no more");
        assert_eq!(leaders.of(7), Some(b.clone()));
        leaders.forget(7, &a);
        assert_eq!(leaders.of(7), Some(b.clone()));
        leaders.forget(7, &b);
        assert_eq!(leaders.of(7), None);
        assert!(!leaders.hear(&led(2, &a)));
        assert!(leaders.hear(&led(3, &b)), "it answers again");
        leaders.note(7, &a);
        assert_eq!(leaders.of(7), Some(a.clone()), "an answer counts more");
        assert_eq!(leaders.of(8), None);
    }
}
