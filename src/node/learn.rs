//! Learning a newer state of the cluster, and acting by it.

use std::sync::Arc;
use std::time::Duration;

use super::membership::unlike;
use super::state::{Node, Serving, ServingState};
use crate::clock::{Deadline, now};
use crate::dice;
use crate::failpoints::failpoint;
use crate::model::address::Address;
use crate::model::meta::MetaState;
use crate::model::shard::ShardCommand;
use crate::wire::{Hello, orders};

/// A node that does not tell what it knows within this time will not.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);
/// So many nodes are asked for news in a round.
const ASKED_AT_ONCE: usize = 3;
/// A group that does not agree within this time that it acts by the news does so later.
const ACT_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// Learns what the meta group has agreed on since the last time, where this node has a replica of it, and who leads these groups by now.
    pub fn publish(&self, groups: &[u64]) {
        for group in groups {
            self.follow_leader(*group);
        }
        if let Some(state) = self.meta.news()
            && let Err(error) = self.learn(&state)
        {
            log::error!("what the meta group agreed on is refused: {error}");
        }
    }

    /// Learns a state, if it is newer than what is known: serves what has become this node's own, and drops what is no longer.
    ///
    /// # Errors
    /// A sentence that says why this node does not learn from that cluster.
    pub fn learn(&self, state: &Arc<MetaState>) -> Result<(), String> {
        if !state.open {
            return Ok(());
        }
        if !state.is_sound() {
            return Err(format!(
                "version {} of the state of cluster {} makes no sense",
                state.version, state.cluster
            ));
        }
        if state.durable != self.is_durable() {
            return Err(unlike(&self.address, self.is_durable()));
        }
        let _guard = self.learning.lock();
        let serving_state = self.serving_state();
        let known = match &*serving_state {
            ServingState::Follower => return Err(format!("{} is a follower", self.address)),
            ServingState::Waiting(_) => None,
            ServingState::Serving(serving) if serving.state.cluster == state.cluster => {
                if state.version <= serving.state.version {
                    return Ok(());
                }
                Some(serving)
            }
            ServingState::Serving(serving) if self.joins(serving, state) => None,
            ServingState::Serving(serving) => {
                self.note_claim(serving, state);
                return Err(format!("{} belongs to cluster {}", self.address, serving.state.cluster));
            }
        };
        let old = serving_state.serving().ok();
        if known.is_none() {
            log::info!("learned of cluster {}: {} nodes", state.cluster, state.view.nodes().count());
            self.forget_reservations_but(&state.cluster);
        }
        self.keep_state(state, known.is_some() || old.is_none())?;
        self.meta.give_up_others(state.group);
        self.expect_new_holders(state, known);
        let (own, lost) = self.place_in(state, known.is_some());
        for (index, shard) in own.iter().filter(|(_, shard)| !shard.is_logged()) {
            shard.learn(&state.directive(*index));
        }
        let was_lost = old.is_some_and(|serving| serving.lost.is_some());
        if let Some(id) = lost.filter(|_| !was_lost) {
            log::warn!("{}", super::problems::lost_shard(id, &self.address));
        }
        self.note_limits(known.map(|serving| &*serving.state), state);
        self.set_serving_state(ServingState::Serving(Serving::new(state, own, lost)));
        self.peers.abandon_others(&state.nodes());
        Ok(())
    }

    /// The coordinator has reached whoever holds something new: that it was down before says nothing any more.
    fn expect_new_holders(&self, state: &MetaState, known: Option<&Serving>) {
        let held = |group: &u64, node: &Address| known.and_then(|serving| serving.state.holder(*group, node));
        for (group, holders) in &state.holders {
            for (node, _) in holders.iter().filter(|(node, start)| held(group, node) != Some(**start)) {
                self.peers.at(node).expect_up();
            }
        }
    }

    /// Has the shards that this node leads act by the newest state that it has learned: the groups of those that do by the deadline.
    pub async fn act(&self, deadline: Deadline) -> Vec<u64> {
        let serving_state = self.serving_state();
        let Ok(serving) = serving_state.serving() else { return Vec::new() };
        let state = &serving.state;
        let mut acting = Vec::new();
        for (index, shard) in &serving.own {
            if self.leads(shard).is_err() {
                continue;
            }
            let learn = ShardCommand::Learn(state.directive(*index));
            if shard.version() >= state.version || self.apply(shard, &learn, deadline).await.is_ok() {
                acting.push(shard.group());
            }
        }
        acting
    }

    /// Takes the news of another node, and acts by them: the groups of the shards that this node leads and that do.
    ///
    /// # Errors
    /// A sentence that says why this node does not learn from that cluster.
    pub async fn take_news(&self, state: &Arc<MetaState>) -> Result<Vec<u64>, String> {
        self.learn(state)?;
        let acting = self.act(Deadline::after(now(), ACT_TIMEOUT)).await;
        self.sweep();
        Ok(acting)
    }

    /// Removes what is not this node's any more.
    pub fn sweep(&self) {
        let serving_state = self.serving_state();
        let Ok(serving) = serving_state.serving() else { return };
        let mut dropped = false;
        for (_, shard) in &serving.own {
            self.pass_time(shard);
            shard.forget_old();
            while shard.sweep() {
                dropped = true;
            }
        }
        if dropped {
            failpoint!("source-dropped");
        }
    }

    /// Looks for news at some of the nodes of the view: a node is told of them only where the leader of the meta group knows it and
    /// reaches it. Who knows less is told: the leader may be gone just now, and that node a member that was started again.
    pub async fn exchange_news(&self) {
        let Some(state) = self.state() else { return };
        let mut others: Vec<Address> =
            state.nodes().into_iter().filter(|node| *node != self.address).collect();
        for _ in 0..ASKED_AT_ONCE.min(others.len()) {
            let other = others.swap_remove(dice::index(others.len()));
            let Ok(hello) = self.ask_hello(&other).await else { continue };
            self.learn_from(&other, &hello).await;
            if hello.cluster.as_ref() != Some(&state.cluster)
                && let Err(error) = self.tell(&other, &state).await
            {
                log::debug!("{other} was not told the news: {error}");
            }
        }
    }

    /// Looks for news at the nodes that this one was given when it was started, as far as they are not in its view: its meta group may have been succeeded, by a recovery to which it was gone, and
    /// then nobody else would tell.
    pub(super) async fn look_for_successors(&self) {
        let Some(state) = self.state().filter(|state| state.generation > 0) else { return };
        let nodes = state.nodes();
        for seed in self.seeds().into_iter().filter(|seed| !nodes.contains(seed)) {
            if let Ok(hello) = self.ask_hello(&seed).await {
                self.learn_from(&seed, &hello).await;
            }
        }
    }

    /// Learns what another node of the cluster knows, where that is more.
    pub(super) async fn learn_from(&self, other: &Address, hello: &Hello) {
        let is_newer = |state: &MetaState| {
            hello.cluster.as_ref() == Some(&state.cluster) && hello.version > state.version
        };
        if self.state().is_some_and(|state| is_newer(&state))
            && let Err(error) = self.fetch_news(other, hello.incarnation).await
        {
            log::debug!("{other} did not tell its news: {error}");
        }
    }

    /// A node that is no member is the last to be told: it looks for news before it answers questions about the cluster.
    pub async fn catch_up(&self) {
        let serving_state = self.serving_state();
        if serving_state.serving().is_ok_and(|serving| serving.own.is_empty()) {
            self.exchange_news().await;
        }
    }

    /// Learns what another node knows.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(super) async fn fetch_news(&self, from: &Address, incarnation: u64) -> Result<(), String> {
        let deadline = Deadline::after(now(), NEWS_TIMEOUT);
        match self.order(from, Some(incarnation), orders::News {}, deadline).await {
            Ok(Some(state)) => self.learn(&state),
            Ok(None) => Err(format!("{from} does not serve yet")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits for a cluster, and says why.
    pub fn wait_for_cluster(&self, problems: Vec<String>) {
        let _guard = self.learning.lock();
        match &*self.serving_state() {
            ServingState::Waiting(known) if *known != problems => {}
            _ => return,
        }
        log::info!("not serving: {}", problems.join("; "));
        self.set_serving_state(ServingState::Waiting(problems));
    }
}
