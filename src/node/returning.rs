//! A node that comes back with its folder asks the others whether it is the newest one.
//!
//! A folder that was put back from a copy holds a log and a vote of old: with it the node could make a group forget what was acknowledged, as one
//! that has lost its memory. So every start with a folder has a number, and the others keep the highest that they have heard. Before a node takes
//! part in a group with others again, as many of these have kept its number as make a majority with it; one that knows a start as new has it stop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::state::Node;
use crate::clock::{Deadline, now};
use crate::consensus::Resumed;
use crate::disk::Op;
use crate::model::address::Address;
use crate::wire::orders::Returned;

/// A node that does not answer within this time is asked again in the next round.
const TIMEOUT: Duration = Duration::from_millis(500);
/// The name of what is kept.
pub(super) const NAME: &str = "starts";

/// What is known of starts with folders.
#[derive(Default)]
pub(super) struct Returns {
    /// Of other nodes.
    known: Mutex<BTreeMap<Address, Known>>,
    /// The groups in which this node waits to take part again, and the nodes with votes in each.
    held: Mutex<Vec<(u64, Vec<Address>)>>,
    /// The other nodes that have kept the number of this start.
    told: Mutex<BTreeSet<Address>>,
    /// Why this node must not take part.
    outdated: Mutex<Option<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    folder: u64,
    starts: u64,
    life: u64,
}

impl Known {
    /// How often the folder was started with, where another start is as new as this one.
    fn is_as_new_as(self, other: Self) -> bool {
        self.folder == other.folder
            && (self.starts > other.starts || (self.starts == other.starts && self.life != other.life))
    }
}

impl Node {
    pub(super) fn resume_returns(&self, bytes: &[u8]) -> Result<(), String> {
        let known: Vec<(Address, Known)> =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        *self.returns.known.lock() = known.into_iter().collect();
        Ok(())
    }

    /// Keeps how often a node was started with its folder: how often another start says, where that is as new.
    ///
    /// # Errors
    /// A sentence, where this node keeps nothing, or cannot.
    pub fn note_returned(&self, returned: &Returned) -> Result<Option<u64>, String> {
        let storage = self.storage.as_ref().ok_or_else(|| format!("{} keeps nothing", self.address))?;
        let Returned { node, folder, starts, life } = returned;
        let new = Known { folder: *folder, starts: *starts, life: *life };
        let mut known = self.returns.known.lock();
        if let Some(old) = known.get(node).filter(|old| old.is_as_new_as(new)) {
            return Ok(Some(old.starts));
        }
        if known.insert(node.clone(), new) != Some(new) {
            let nodes = self.state().map(|state| state.nodes()).unwrap_or_default();
            known.retain(|known, _| known == node || nodes.contains(known));
            let bytes =
                serde_json::to_vec(&known.iter().collect::<Vec<_>>()).expect("our own types are JSON");
            storage.commit(&[Op::Note { name: NAME.to_owned(), bytes }])?;
        }
        Ok(None)
    }

    /// Takes part in a group again: at once where nobody else does, otherwise when the others have said that nothing speaks against it.
    pub(super) fn take_part_again(&self, resumed: Resumed) {
        let (group, voters) = (resumed.group(), resumed.voters());
        let is_alone = voters.iter().all(|voter| *voter == self.address);
        self.groups.resume(resumed, !is_alone);
        if !is_alone {
            self.returns.held.lock().push((group, voters));
        }
    }

    /// Why this node must not take part, if so: the process has to end.
    pub(super) fn outdated(&self) -> Option<String> {
        self.returns.outdated.lock().clone()
    }

    /// Tells the other nodes of this start, each until it has answered, and takes part again in the groups of which enough have.
    pub(super) async fn return_to_groups(&self) {
        let Some(storage) = &self.storage else { return };
        let held = self.returns.held.lock().clone();
        let nodes = self.state().map(|state| state.nodes()).unwrap_or_default();
        let up = nodes.into_iter().filter(|node| !self.peers.at(node).is_down());
        // All others, too: the more know it the better.
        let wanted: BTreeSet<Address> = held.into_iter().flat_map(|(_, voters)| voters).chain(up).collect();
        let told = self.returns.told.lock().clone();
        for other in wanted.iter().filter(|node| **node != self.address && !told.contains(*node)) {
            let (folder, starts) = (storage.id(), storage.starts());
            let order = Returned { node: self.address.clone(), folder, starts, life: self.life };
            match self.order(other, None, order, Deadline::after(now(), TIMEOUT)).await {
                Ok(None) => drop(self.returns.told.lock().insert(other.clone())),
                Ok(Some(newer)) => {
                    let folder = storage.name();
                    *self.returns.outdated.lock() = Some(format!(
                        "DATA_DIR {folder} is of old: this is start {starts} with it, and {other} knows start {newer} of this node. It was put back \
                         from a copy, or another process runs with one: name an empty folder, with which the node begins anew and is filled by the others"
                    ));
                    return;
                }
                Err(error) => log::debug!("{other} was not told of this start: {error}"),
            }
        }
        self.release_returned();
    }

    fn release_returned(&self) {
        let told = self.returns.told.lock();
        let is_free = |(_, voters): &mut (u64, Vec<Address>)| {
            let others =
                voters.iter().filter(|voter| **voter != self.address && told.contains(*voter)).count();
            others >= voters.len() / 2
        };
        for (group, _) in self.returns.held.lock().extract_if(.., is_free) {
            self.groups.speak(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_as_new_only_with_the_same_folder() {
        let known = |folder, starts, life| Known { folder, starts, life };
        for (old, new, is_as_new) in [
            (known(1, 3, 9), known(1, 3, 9), false),
            (known(1, 3, 9), known(1, 4, 8), false),
            (known(1, 3, 9), known(1, 3, 8), true),
            (known(1, 4, 9), known(1, 3, 8), true),
            (known(2, 4, 9), known(1, 3, 8), false),
        ] {
            assert_eq!(old.is_as_new_as(new), is_as_new, "{old:?} {new:?}");
        }
    }
}
