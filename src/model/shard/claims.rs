//! What a shard owns as a replica of it knows, for whoever puts a view together from the shards that are left.

use serde::{Deserialize, Serialize};

use super::PieceId;
use super::moving::Incoming;
use super::ranges::{cover, intersection};
use super::{HashRange, Shard, ShardCommand};

/// What a shard owns, and by which state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The version of the state that it acts by.
    pub version: u64,
    /// What it owns, ascending.
    pub owned: Vec<HashRange>,
    /// What it has received wholly, and will own once that is handed over.
    pub prepared: Vec<HashRange>,
    /// What of it is under way, not wholly received.
    #[serde(skip)]
    pub(crate) coming: Vec<(PieceId, HashRange)>,
}

impl Claims {
    /// What becomes of it by commands that are in the log and were not applied: whoever goes on from this replica applies them first.
    #[must_use]
    pub fn after<'a>(mut self, rest: impl Iterator<Item = &'a [u8]>) -> Self {
        for command in rest.filter_map(|bytes| ShardCommand::decode(bytes).ok()) {
            match command {
                ShardCommand::BeginIncoming { stamp, range } => self.coming.push((stamp.piece, range)),
                // That it was not what the source sent is seen when it is applied, and then nothing is served.
                ShardCommand::Prepare { stamp, .. } => {
                    let coming = self.coming.iter().filter(|(piece, _)| *piece == stamp.piece);
                    self.prepared.extend(coming.map(|(_, range)| range.clone()));
                }
                ShardCommand::Learn(directive) if directive.version > self.version => {
                    self.version = directive.version;
                    let mine = |range: &HashRange| cover(&directive.mine, range);
                    self.owned.extend(self.prepared.iter().filter(|range| mine(range)).cloned());
                    self.prepared.retain(|range| !mine(range));
                    let stays = |row: &HashRange| -> Vec<HashRange> {
                        directive.mine.iter().filter_map(|range| intersection(row, range)).collect()
                    };
                    self.owned = self.owned.iter().flat_map(stays).collect();
                    self.owned.sort_by(|one, other| one.from.cmp(&other.from));
                }
                _ => {}
            }
        }
        self
    }
}

impl Shard {
    /// What the shard owns, as far as this replica has applied its log.
    pub fn claims(&self) -> Claims {
        let table = self.table.read();
        let is_prepared = |one: &&Incoming| one.prepared.is_some();
        Claims {
            version: table.version,
            owned: table.owned.rows().iter().map(|(range, _)| range.clone()).collect(),
            prepared: table.incoming.iter().filter(is_prepared).map(|one| one.range.clone()).collect(),
            coming: table.incoming.iter().map(|one| (one.piece, one.range.clone())).collect(),
        }
    }
}
