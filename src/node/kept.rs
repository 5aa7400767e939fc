//! What a node keeps in its folder, and how it goes on from that when it is started again.
//!
//! The id under which it holds its replicas stays with the folder. So to the others it is the same node that was away for a while: its replicas
//! have their ids, their logs and their votes. All its shards have logs, those with one replica too: there is one way in which
//! something becomes durable.

use std::sync::Arc;
use std::time::Duration;

use super::host::{Host, Machine};
use super::raft::GroupsInbox;
use super::returning;
use super::shard_machine::ShardMachine;
use super::state::{Node, ServingState};
use crate::clock::ticks_ms;
use crate::config::Config;
use crate::consensus::Resumed;
use crate::disk::{DiskUse, Op, Storage, Stored, StoredGroup};
use crate::model::meta::MetaState;
use crate::model::shard::Shard;

/// What the machines of groups are, by number.
pub(super) const META: u8 = 1;
pub(super) const SHARD: u8 = 2;

/// The name of the newest state that was learned.
const STATE: &str = "state";

impl Node {
    /// A node that goes on from its folder, if it has one, as [`with`](Self::with) and [`resume`](Self::resume).
    ///
    /// # Errors
    /// A sentence that says what is wrong with the folder, and what to do.
    pub fn resumed(
        config: &Config,
        host: Arc<dyn Host>,
        kept: Option<(Arc<Storage>, Stored)>,
    ) -> Result<(Self, GroupsInbox), String> {
        let (storage, stored) = kept.unzip();
        let (node, inbox) = Self::with(config, host, storage);
        node.resume(stored.unwrap_or_default())?;
        Ok((node, inbox))
    }

    /// Has somebody told how long each transaction on the disk takes.
    pub fn observe_disk(&self, observer: impl Fn(Duration) + Send + Sync + 'static) {
        if let Some(storage) = &self.storage {
            storage.observe(observer);
        }
    }

    /// Whether what the node holds survives its process.
    pub fn is_durable(&self) -> bool {
        self.storage.is_some()
    }

    /// What its folder takes, if it has one.
    pub fn disk_use(&self) -> DiskUse {
        self.storage.as_ref().map(|storage| storage.usage()).unwrap_or_default()
    }

    /// Has a state on the disk before the node acts by it.
    pub(super) fn keep_state(&self, state: &MetaState, is_of_cluster: bool) -> Result<(), String> {
        let Some(storage) = &self.storage else { return Ok(()) };
        let bytes = serde_json::to_vec(state).expect("our own types are JSON");
        let note = Op::Note { name: STATE.to_owned(), bytes };
        let forget = (!is_of_cluster).then_some(Op::Forget);
        let ops: Vec<Op> = forget.into_iter().chain([note]).collect();
        storage.commit(&ops)
    }

    /// Goes on from what was found in the folder, before anything else is done.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it, and what to do.
    pub fn resume(&self, stored: Stored) -> Result<(), String> {
        let Some(storage) = &self.storage else { return Ok(()) };
        let damaged = |why: String| {
            format!(
                "DATA_DIR {} is damaged: {why}. This node's replicas are not believed any more: name an empty folder, with which the node begins \
                 anew and is filled by the others, or restore the folder from a backup of when the node was stopped last",
                storage.name()
            )
        };
        let state = stored.notes.iter().find(|(name, _)| name == STATE);
        let state = state.map(|(_, bytes)| serde_json::from_slice::<MetaState>(bytes)).transpose();
        let state = state
            .map_err(|error| damaged(format!("what it says of the cluster cannot be read ({error})")))?;
        if state.as_ref().is_some_and(|state| !state.is_sound()) {
            return Err(damaged("what it says of the cluster makes no sense".to_owned()));
        }
        if let Some((_, starts)) = stored.notes.iter().find(|(name, _)| name == returning::NAME) {
            let why = |error| damaged(format!("what it says of starts cannot be read ({error})"));
            self.resume_returns(starts).map_err(why)?;
        }
        let _guard = self.learning.lock();
        self.resume_founded(stored.known);
        for group in stored.groups {
            match (group.row.kind, &state) {
                (META, _) => self.resume_meta(group).map_err(damaged)?,
                (SHARD, Some(state)) => self.resume_own_shard(group, state).map_err(damaged)?,
                (SHARD, None) => {
                    return Err(damaged(format!("it holds group {} of no cluster", group.group)));
                }
                (kind, _) => return Err(damaged(format!("group {} is of kind {kind}", group.group))),
            }
        }
        let Some(state) = state.map(Arc::new) else { return Ok(()) };
        log::info!(
            "this is start {} with DATA_DIR {}: the node goes on as a part of cluster {}, from version {} of its state",
            storage.starts(),
            storage.name(),
            state.cluster,
            state.version
        );
        self.say_other_view(&state);
        self.place_resumed(&state);
        Ok(())
    }

    fn resume_meta(&self, stored: StoredGroup) -> Result<(), String> {
        let storage = self.storage.as_ref().expect("it was found there");
        let (group, replica) = (stored.group, stored.row.replica);
        let machine = self.meta.resume(group);
        self.note_replica(group, replica);
        self.take_part_again(Resumed::new(storage, stored, machine)?);
        Ok(())
    }

    fn resume_own_shard(&self, stored: StoredGroup, state: &MetaState) -> Result<(), String> {
        let storage = self.storage.as_ref().expect("it was found there");
        let (group, replica) = (stored.group, stored.row.replica);
        let shard = Arc::new(Shard::new(group, state.hash_key, [], 0));
        shard.set_history_limit(self.watch_history);
        shard.set_clock(0, ticks_ms());
        let machine =
            self.host.machine(Box::new(ShardMachine::new(Arc::clone(&shard))), Machine::Shard(&shard));
        self.take_part_again(Resumed::new(storage, stored, machine)?);
        self.resume_shard(shard, replica);
        Ok(())
    }

    /// Once it has been a part of a cluster, `VIEW` only says where to look for others.
    fn say_other_view(&self, state: &MetaState) {
        let nodes = state.nodes();
        let seeds = self.seeds();
        if !seeds.is_empty() && seeds.iter().any(|seed| !nodes.contains(seed)) {
            let nodes: Vec<&str> = nodes.iter().map(crate::model::address::Address::as_str).collect();
            log::info!(
                "VIEW is not the view of the cluster, which is {}: the latter counts",
                nodes.join(",")
            );
        }
    }

    fn place_resumed(&self, state: &Arc<MetaState>) {
        let (own, lost) = self.place_in(state, true);
        self.note_limits(None, state);
        self.set_serving_state(ServingState::Serving(super::state::Serving::new(state, own, lost)));
    }
}
