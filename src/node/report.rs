//! What a node says of itself, for those who look at the whole cluster. It costs nothing that grows with the pairs, and waits for nobody.

use std::collections::BTreeMap;

use super::state::{Node, Serving, ServingState};
use crate::memory;
use crate::model::address::Address;
use crate::model::format;
use crate::model::shard::Shard;
use crate::version::VERSION;
use crate::wire::status::{Memory, NodeReport, ReplicaSeen};

/// The memory of the node, with its bound.
fn memory(bound: Option<u64>) -> Memory {
    let usage = memory::usage();
    Memory { used: usage.allocated, resident: usage.resident, bound }
}

impl Node {
    /// What this node says of itself.
    pub fn report(&self) -> NodeReport {
        let serving_state = self.serving_state();
        let serving = serving_state.serving().ok();
        let own = serving.map_or(&[][..], |serving| &serving.own);
        let sizes = own.iter().map(|(_, shard)| shard.rough_size());
        let (pairs, bytes) =
            sizes.fold((0, 0), |(pairs, bytes), size| (pairs + size.pairs, bytes + size.bytes));
        let troubles = self.troubles();
        NodeReport {
            cluster: serving.map(|serving| serving.state.cluster.clone()),
            version: VERSION.to_owned(),
            format: format::CURRENT,
            incarnation: self.incarnation,
            unready: self.unready(),
            notes: self.notes_of_others(),
            problems: serving.map(|serving| self.seen_problems(serving)).unwrap_or_default(),
            unreached: troubles.unreached,
            lost: troubles.lost,
            pairs,
            bytes,
            requests_per_second: self.rates.clients.per_second(),
            memory: memory(self.memory_bound()),
            settings: self.settings(),
            replicas: serving.map(|serving| self.replicas_seen(serving)).unwrap_or_default(),
            leads_view: self.meta.leads(),
            progress: None,
        }
    }

    /// The settings that clients and other nodes see the effect of, so that they should be the same everywhere.
    fn settings(&self) -> BTreeMap<String, u64> {
        let timeout = u64::try_from(self.request_timeout.as_millis()).unwrap_or(u64::MAX);
        let settings = [
            ("REQUEST_TIMEOUT_MS", timeout),
            ("MAX_BATCH_LINES", self.batch_limits.items as u64),
            ("MAX_BATCH_LENGTH", self.batch_limits.bytes as u64),
            ("RETRY_MEMORY", self.retry_memory as u64),
            ("WATCH_HISTORY", self.watch_history as u64),
            ("LARGE_MEMORY", self.large_memory as u64),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn replicas_seen(&self, serving: &Serving) -> Vec<ReplicaSeen> {
        serving.own.iter().filter_map(|(_, shard)| self.replica_seen(shard)).collect()
    }

    fn replica_seen(&self, shard: &Shard) -> Option<ReplicaSeen> {
        let (group, counted) = (shard.group(), || shard.shown_size().map(|size| size.pairs));
        let bytes = Some(shard.rough_size().bytes);
        let rate = |leads| self.rates.of_shard(group, leads);
        if !shard.is_logged() {
            let members = vec![(self.address.clone(), 0)];
            return Some(ReplicaSeen {
                group,
                id: self.incarnation,
                leads: Some(0),
                pairs: counted(),
                members,
                bytes,
                requests_per_second: rate(true),
            });
        }
        let local = self.groups.local(group)?;
        let status = &local.status;
        let behind = |(id, matched): &(u64, u64)| -> Option<(Address, u64)> {
            Some((status.members.get(id)?.clone(), status.last.saturating_sub(*matched)))
        };
        let leads = local.has_taken_over().then_some(status.term);
        let pairs = leads.and_then(|_| counted());
        let members = status.matched.iter().filter_map(behind).collect();
        let requests_per_second = rate(leads.is_some());
        let id = status.replica;
        Some(ReplicaSeen { group, id, leads, pairs, members, bytes, requests_per_second })
    }

    /// The nodes that this one looks at beside those of its view: those of `VIEW` while it knows none.
    pub fn looked_for(&self) -> Vec<Address> {
        match &*self.serving_state() {
            ServingState::Waiting(_) => self.seeds(),
            _ => Vec::new(),
        }
    }
}
