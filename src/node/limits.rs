//! How long keys and values may be: as the cluster says that the node knows, and as its own settings say until it knows one.

use super::state::Node;
use crate::model::limits::Limits;
use crate::model::meta::MetaState;

impl Node {
    /// The limits by which this node judges every request about a key.
    pub fn limits(&self) -> Limits {
        self.cluster_limits().unwrap_or(self.own_limits)
    }

    fn cluster_limits(&self) -> Option<Limits> {
        self.serving_state().serving().ok().map(|serving| serving.state.limits)
    }

    /// What an operator should know of a node that serves all the same, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes =
            self.cluster_limits().map_or_else(Vec::new, |limits| differences(self.own_limits, limits));
        notes.extend(self.notes_of_others());
        notes.extend(self.told_troubles());
        notes
    }

    /// What this node has to say of others that are where they should not be.
    pub(super) fn notes_of_others(&self) -> Vec<String> {
        self.strangers().into_iter().chain(self.duplicates()).collect()
    }

    /// Why the node cannot take all that its cluster may hold, if so.
    pub(super) fn lack_of_memory(&self) -> Option<String> {
        self.cluster_limits()?.lack(Some(self.large_memory))
    }

    /// Says in the log what a newly learned state means for a node that is set otherwise, where it did not know that before.
    pub(super) fn note_limits(&self, known: Option<&MetaState>, state: &MetaState) {
        if known.is_some_and(|known| known.limits == state.limits) {
            return;
        }
        for note in differences(self.own_limits, state.limits) {
            log::warn!("{note}");
        }
        if let Some(lack) = state.limits.lack(Some(self.large_memory)) {
            log::warn!("{lack}");
        }
    }
}

fn differences(own: Limits, cluster: Limits) -> Vec<String> {
    let limits = [
        ("MAX_KEY_LENGTH", own.max_key_length, cluster.max_key_length),
        ("MAX_VALUE_LENGTH", own.max_value_length, cluster.max_value_length),
    ];
    let different = limits.iter().filter(|(_, own, cluster)| own != cluster);
    let note = |(name, own, cluster): &(&str, usize, usize)| {
        format!("{name} is {own} here and {cluster} in the cluster, which counts")
    };
    different.map(note).collect()
}
