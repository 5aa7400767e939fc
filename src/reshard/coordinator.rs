//! The thread that looks after the cluster on the leader of the meta group: it completes a founding, keeps the right voters, and
//! carries view changes through.
//!
//! What it does follows from the meta state alone. So whoever leads next goes on where the last one stopped, and whatever
//! the last one still does is void: its proposals are not committed, and nodes refuse orders of a lower term.

mod finish;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::controller::Controller;
use super::prepare::prepare;
use super::voters::{self, Voters};
use crate::clock::{Deadline, now};
use crate::failpoints::failpoint;
use crate::model::address::Address;
use crate::model::meta::{Change, Command, End, MetaState, Piece, Planned, wanted_voters};
use crate::model::shard::{PieceId, Stamp, Tally};
use crate::model::view::Shard;
use crate::node::ask::OrderError;
use crate::node::host;
use crate::node::raft::LocalReplica;
use crate::wire::orders::{self, Answered};
use crate::wire::{ChangePhase, NotPlanned, PieceShown, Prepared, Source};

/// How often it looks whether there is something to do.
const ROUND: Duration = Duration::from_millis(50);
/// How often it looks whether the right nodes vote, while nothing changes.
const VOTERS_ROUND: Duration = Duration::from_millis(200);
/// A failed step is tried again after this, and each further time after twice as long, up to the second limit.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(200);
/// A view change without progress for this long is blocked.
const BLOCKED_AFTER: Duration = Duration::from_secs(5);
/// A proposal that is not committed after this time may yet be: the state is looked at again.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// A piece is copied in much less.
const COPY_TIMEOUT: Duration = Duration::from_secs(30);
/// A range may be frozen for so long at the first attempt; twice as long at each further one, up to the second limit.
const FREEZE_LIMIT: Duration = Duration::from_millis(40);
const LONGEST_FREEZE: Duration = Duration::from_millis(640);
/// A shard's leader is looked for again after this.
const LEADER_PAUSE: Duration = Duration::from_millis(20);
/// What the way there and back may take beyond it.
const FREEZE_MARGIN: Duration = Duration::from_millis(60);

/// Runs until the channel closes.
pub fn run(controller: &Controller, stop: &Receiver<()>) {
    let mut coordinator = Coordinator::new(controller);
    while stop.try_recv() == Err(TryRecvError::Empty) {
        if catch_unwind(AssertUnwindSafe(|| host::run(coordinator.round()))).is_err() {
            log::error!("a step of the coordinator broke off: it is tried again");
            host::run(coordinator.rest(ROUND));
        }
    }
}

/// What a node does as the leader of the meta group, round by round.
pub(crate) struct Coordinator {
    pub(super) controller: Controller,
    leading: Option<Leading>,
    /// The version that all nodes were greeted with.
    greeted: u64,
    /// When the voters were looked at last.
    looked: Instant,
}

/// What the leader of one term knows beyond the state.
struct Leading {
    term: u64,
    /// When there was progress last.
    progress: Instant,
    /// Why the last step failed.
    failed: Option<String>,
    /// How long to wait before a failed step is tried again.
    retry: Duration,
    /// The view change of which nothing that the last leader began is still open.
    fenced: Option<u64>,
    /// The view change of which all its nodes know, and are tallying.
    told: Option<u64>,
    /// The longest hold that was seen in a view change, with what it took to tell of the hand-over.
    hold: (u64, Duration),
    /// By group: what was last seen of the replicas that are still to come.
    fed: BTreeMap<u64, finish::Fed>,
}

impl Leading {
    fn new(term: u64) -> Self {
        Self {
            term,
            progress: now(),
            failed: None,
            retry: FIRST_RETRY,
            fenced: None,
            told: None,
            hold: (0, Duration::ZERO),
            fed: BTreeMap::new(),
        }
    }
}

/// What is to be done next about the cluster. It follows from the state, and from what this leader has made sure of.
#[derive(Debug, PartialEq)]
enum Phase<'a> {
    /// The cluster is being founded.
    Founding,
    /// No view change runs.
    Idle,
    /// The shards are to be counted, and the plan to be made.
    Counting(&'a Change),
    /// What the last leader may have left open is to be made void.
    Fencing(&'a Change, &'a Planned),
    /// All nodes of the plan are to learn of it, and to tally, before anything moves.
    Telling(&'a Change, &'a Planned),
    /// The piece with this index is to be moved.
    Moving(&'a Change, &'a Planned, usize),
    /// The replicas and the meta group move to their nodes, and the receipt is written.
    Finishing(&'a Change, &'a Planned),
}

impl<'a> Phase<'a> {
    fn of(state: &'a MetaState, fenced: Option<u64>, told: Option<u64>) -> Self {
        if !state.open {
            return Self::Founding;
        }
        let Some(change) = &state.change else { return Self::Idle };
        let Some(planned) = &change.planned else { return Self::Counting(change) };
        if fenced != Some(change.id) {
            return Self::Fencing(change, planned);
        }
        // The plan may be all that the last leader came to.
        if told != Some(change.id) {
            return Self::Telling(change, planned);
        }
        match planned.pieces.iter().position(|piece| !piece.handed_over) {
            Some(index) => Self::Moving(change, planned, index),
            None => Self::Finishing(change, planned),
        }
    }

    /// The view change that runs, and what is shown of it.
    fn change(&self) -> Option<(&'a Change, ChangePhase)> {
        match self {
            Self::Founding | Self::Idle => None,
            Self::Counting(change) => Some((change, ChangePhase::Counting)),
            Self::Finishing(change, _) => Some((change, ChangePhase::Finishing)),
            Self::Fencing(change, planned) | Self::Telling(change, planned) if planned.is_handed_over() => {
                Some((change, ChangePhase::Finishing))
            }
            Self::Fencing(change, _) | Self::Telling(change, _) | Self::Moving(change, ..) => {
                Some((change, ChangePhase::Moving))
            }
        }
    }
}

/// Why a step was not done.
pub(super) enum Stuck {
    /// It may be tried again.
    For(String),
    /// It will not help to try: something is lost for good.
    Lost(String),
    /// The state has changed, or somebody else leads: look again.
    Outdated,
}

impl Coordinator {
    pub(crate) fn new(controller: &Controller) -> Self {
        Self { controller: controller.shown(), leading: None, greeted: 0, looked: now() }
    }

    /// Waits until somebody wakes the coordinator, for a while at most.
    pub(crate) async fn rest(&self, pause: Duration) {
        self.controller.coordinator.wait(&*self.controller.node.host, pause).await;
    }

    /// Does the next step, or rests where there is none.
    pub(crate) async fn round(&mut self) {
        let Some(local) = self.controller.node.meta.local().filter(|local| local.leads()) else {
            if self.leading.take().is_some() {
                self.controller.coordinator.clear();
            }
            return self.rest(ROUND).await;
        };
        if self.leading.as_ref().is_none_or(|leading| leading.term != local.status.term) {
            // Everything that was ever acknowledged is applied here before anything is done about it.
            if !self.controller.node.meta.confirm(Deadline::after(now(), PROPOSAL_TIMEOUT)).await {
                return self.rest(ROUND).await;
            }
            self.leading = Some(Leading::new(local.status.term));
        }
        let Some(state) = self.controller.node.meta.state() else { return self.rest(ROUND).await };
        if self.greeted != state.version {
            self.greeted = state.version;
            self.greet_all();
        }
        let went_on = match Phase::of(&state, self.leading().fenced, self.leading().told) {
            Phase::Founding => self.found(&local, &state).await,
            Phase::Idle => {
                self.controller.coordinator.clear();
                self.look_after_voters(&local, &state).await
            }
            phase => self.carry_on(&local, &state, phase).await,
        };
        if !went_on {
            self.rest(ROUND).await;
        }
    }

    fn leading(&mut self) -> &mut Leading {
        self.leading.as_mut().expect("it is set before anything is done")
    }

    async fn look_after_voters(&mut self, local: &LocalReplica, state: &MetaState) -> bool {
        if now() - self.looked < VOTERS_ROUND {
            return false;
        }
        let nodes = state.nodes();
        let step = voters::step(&self.controller, local, &state.cluster, wanted_voters(&nodes)).await;
        if step != Voters::Changing {
            self.looked = now();
        }
        step == Voters::Changing
    }

    /// Opens the cluster when its meta group is complete; begins again where one of its nodes was started again before.
    async fn found(&mut self, local: &LocalReplica, state: &MetaState) -> bool {
        // They are reserved again each time: a reservation does not hold for ever, and is not given by who has learned of another cluster.
        let reservation = orders::Reserve { cluster: state.cluster.clone(), founding: true };
        for (node, incarnation) in state.holders.values().flatten() {
            let reserved =
                self.controller.order(node, Some(*incarnation), reservation.clone(), PROPOSAL_TIMEOUT).await;
            if reserved.as_ref() != Ok(incarnation) {
                log::info!("founding again: {node} cannot be reserved any more ({reserved:?})");
                self.controller.node.meta.give_up(state.group);
                return false;
            }
        }
        let nodes = state.nodes();
        match voters::step(&self.controller, local, &state.cluster, wanted_voters(&nodes)).await {
            Voters::Complete => {
                if self.propose(&Command::Open).await.is_ok() {
                    log::info!("cluster {} is open", state.cluster);
                    self.tell_all().await;
                }
                true
            }
            Voters::Changing => true,
            Voters::Waiting(reason) => {
                log::debug!("the founding waits: {reason}");
                false
            }
        }
    }

    async fn carry_on(&mut self, local: &LocalReplica, state: &MetaState, phase: Phase<'_>) -> bool {
        let Some((change, shown)) = phase.change() else { return false };
        if self.leading().failed.is_none() {
            self.controller.coordinator.show(change.id, shown, progress(change));
        }
        let done = match phase {
            Phase::Founding | Phase::Idle => Ok(()),
            Phase::Counting(change) => self.plan(state, change).await,
            Phase::Fencing(change, planned) => self.fence(change.id, planned).await,
            Phase::Telling(..) => self.tell_planned().await,
            Phase::Moving(change, planned, index) => self.move_piece(state, change.id, planned, index).await,
            Phase::Finishing(change, planned) => finish::finish(self, local, state, change.id, planned).await,
        };
        let leading = self.leading();
        match done {
            Ok(()) => {
                (leading.progress, leading.failed, leading.retry) = (now(), None, FIRST_RETRY);
                true
            }
            Err(Stuck::Outdated) => false,
            Err(Stuck::For(reason)) => {
                let blocked = now() - leading.progress >= BLOCKED_AFTER;
                self.note_failure(change.id, reason, blocked).await;
                false
            }
            Err(Stuck::Lost(reason)) => {
                self.note_failure(change.id, reason, true).await;
                false
            }
        }
    }

    /// Notes what is seen of the replicas of a group that are still to come: that one of them gets anything is progress.
    pub(super) fn note_fed(&mut self, group: u64, fed: finish::Fed) {
        let leading = self.leading();
        if leading.fed.get(&group) != Some(&fed) {
            leading.fed.insert(group, fed);
            leading.progress = now();
        }
    }

    /// The longest hold that this leader has seen in a view change.
    pub(super) fn longest_hold(&self, change: u64) -> Duration {
        let hold = self.leading.as_ref().map(|leading| leading.hold);
        hold.filter(|(of, _)| *of == change).map_or(Duration::ZERO, |(_, hold)| hold)
    }

    async fn note_failure(&mut self, change: u64, reason: String, blocked: bool) {
        let leading = self.leading();
        // What goes away by itself at once is not worth a line.
        if leading.retry > FIRST_RETRY && leading.failed.as_ref() != Some(&reason) {
            log::warn!("view change {change:016x}: {reason}");
        }
        let pause = leading.retry;
        leading.retry = LONGEST_RETRY.min(pause * 2);
        leading.failed = Some(reason.clone());
        // One that was blocked is so no more once something moves, although it has not come to its next step yet.
        self.controller.coordinator.set_blocked(change, blocked.then_some(reason));
        self.rest(pause).await;
    }

    async fn plan(&mut self, state: &MetaState, change: &Change) -> Result<(), Stuck> {
        failpoint!("change-begun");
        // A view change that this one supersedes may have left something frozen.
        self.tell_all().await;
        let term = self.leading().term;
        match prepare(&self.controller, state, (change.id, term), &change.wanted).await {
            Ok(command) => {
                self.propose(&command).await?;
                // Nobody else has begun anything of this plan.
                self.leading().fenced = Some(change.id);
                failpoint!("change-planned");
                Ok(())
            }
            Err(failure) => {
                let end = match failure {
                    NotPlanned::Refused(reason) => End::Refused(reason),
                    NotPlanned::Failed(reason) => End::Failed(reason),
                    NotPlanned::Running(_) => return Err(Stuck::Outdated),
                };
                let (holders, receipt) = (BTreeMap::new(), None);
                self.propose(&Command::End { id: change.id, end, holders, receipt }).await?;
                self.tell_all().await;
                Ok(())
            }
        }
    }

    /// Makes void what the last leader began and did not end, so that nothing stays frozen. It moved one piece at a time.
    async fn fence(&mut self, change: u64, planned: &Planned) -> Result<(), Stuck> {
        if let Some(index) = planned.pieces.iter().position(|piece| !piece.handed_over) {
            let attempt = planned.pieces[index].attempt;
            let index = u32::try_from(index).expect("fewer than 2^32 pieces");
            self.propose(&Command::Abort { piece: PieceId { change, index, attempt }, hold_us: 0 }).await?;
            self.tell_all().await;
        }
        self.leading().fenced = Some(change);
        Ok(())
    }

    /// All nodes of the plan know of it, and tally, before anything moves.
    async fn tell_planned(&mut self) -> Result<(), Stuck> {
        let state = self.state()?;
        let Some(change) = &state.change else { return Err(Stuck::Outdated) };
        let Some(planned) = &change.planned else { return Err(Stuck::Outdated) };
        self.tell_all().await;
        for shard in &planned.shards {
            let told = self.tell_shard(&state, shard.group).await;
            let tally = orders::Tally { group: shard.group, change: change.id };
            let tallied = self.controller.order_leader(&state, shard.group, &tally, PROPOSAL_TIMEOUT);
            match tallied.await {
                Ok(_) => told.map_err(Stuck::For)?,
                Err(error) if planned.added.contains(&shard.group) => {
                    return self.replace(&state, change.id, shard, &error).await;
                }
                Err(OrderError::Gone(reason)) => {
                    return Err(Stuck::Lost(format!("shard {} is lost: {reason}", shard.id)));
                }
                Err(error) => return Err(Stuck::For(error.to_string())),
            }
        }
        self.leading().told = Some(change.id);
        Ok(())
    }

    async fn move_piece(
        &mut self,
        state: &MetaState,
        change: u64,
        planned: &Planned,
        index: usize,
    ) -> Result<(), Stuck> {
        let piece = &planned.pieces[index];
        self.show_piece(state, planned, index);
        let index = u32::try_from(index).expect("fewer than 2^32 pieces");
        let id = PieceId { change, index, attempt: piece.attempt };
        let stamp = Stamp { piece: id, term: self.leading().term, version: state.version };
        failpoint!("piece-started");
        let mut preparing = None;
        match self.try_piece(state, planned, piece, stamp, &mut preparing).await {
            Ok(()) => Ok(()),
            Err(error) => self.abort(state, planned, (piece, id), error, preparing.unwrap_or_else(now)).await,
        }
    }

    fn show_piece(&self, state: &MetaState, planned: &Planned, index: usize) {
        let piece = &planned.pieces[index];
        let id = |group: u64| {
            state.index_of(group).map_or_else(String::new, |index| state.view.shards[index].id.to_string())
        };
        self.controller.coordinator.show_piece(PieceShown {
            number: index + 1,
            of: planned.pieces.len(),
            attempt: piece.attempt + 1,
            pairs: piece.pairs,
            from: id(piece.from),
            to: id(piece.to),
        });
    }

    /// Where a piece comes from: the node that leads the shard that gives it.
    async fn source(&self, state: &MetaState, group: u64) -> Result<Source, OrderError> {
        if let [only] = state.replicas_of(group)[..] {
            return Ok(Source { node: only.clone(), incarnation: state.holder(group, only), group });
        }
        let order = orders::Lead { group };
        let leader = self.controller.order_leader(state, group, &order, PROPOSAL_TIMEOUT).await?;
        Ok(Source { node: leader.node, incarnation: Some(leader.incarnation), group })
    }

    async fn try_piece(
        &mut self,
        state: &MetaState,
        planned: &Planned,
        piece: &Piece,
        stamp: Stamp,
        preparing: &mut Option<Instant>,
    ) -> Result<(), OrderError> {
        let is_given_up = planned.is_given_up(piece.from);
        let source = if is_given_up { None } else { Some(self.source(state, piece.from).await?) };
        let group = piece.to;
        let copy = orders::CopyPiece { stamp, group, range: piece.range.clone(), source: source.clone() };
        self.controller.order_leader(state, group, &copy, COPY_TIMEOUT).await?;
        failpoint!("piece-copied");
        let limit = LONGEST_FREEZE.min(FREEZE_LIMIT * 2_u32.pow(stamp.piece.attempt.min(8)));
        if limit < LONGEST_FREEZE {
            // The same pairs once more are progress as long as the next attempt may freeze them for longer.
            self.leading().progress = now();
        }
        let limit_ms = u64::try_from(limit.as_millis()).expect("a short time");
        let generation = state.generation;
        let order = orders::PreparePiece { stamp, group, source: source.clone(), limit_ms, generation };
        *preparing = Some(now());
        let prepared = self.controller.order_leader(state, group, &order, limit + FREEZE_MARGIN).await;
        let since = now();
        let prepared: Prepared = prepared?;
        failpoint!("piece-prepared");
        let mut left = Tally::default();
        if planned.is_last_of_leaving(piece) {
            // Nothing can be written to it any more, and it may be gone when the receipt is written.
            let order = orders::Tally { group: piece.from, change: stamp.piece.change };
            let tallied = self.controller.order_leader(state, piece.from, &order, limit + FREEZE_MARGIN);
            left = tallied.await?.tally;
        }
        let replicas = state.view.shards.iter().find(|shard| shard.group == group);
        let replicas = replicas.map_or(1, |shard| shard.replicas.len()) as u64;
        let (copied, hold_us) = (prepared.pairs * replicas, prepared.held_us);
        let hand_over = Command::HandOver { piece: stamp.piece, copied, hold_us, left };
        if self.propose(&hand_over).await.is_err() {
            // It may be committed or not: if it is, the abort that follows is void.
            return Err(OrderError::NotReached(
                "the meta group did not say whether it is handed over".to_owned(),
            ));
        }
        self.leading().progress = now();
        if let Some(change) = self.controller.node.meta.state().and_then(|state| state.change.clone()) {
            self.controller.coordinator.show(change.id, ChangePhase::Moving, progress(&change));
        }
        failpoint!("piece-handed-over");
        // The target first: from then on the range is served.
        let told = self.tell_shard(state, group).await;
        let hold = Duration::from_micros(prepared.held_us) + (now() - since);
        let longest = self.longest_hold(stamp.piece.change);
        self.leading().hold = (stamp.piece.change, longest.max(hold));
        let source_told = match source {
            Some(source) => self.tell_shard(state, source.group).await,
            None => Ok(()),
        };
        failpoint!("piece-told");
        self.greet_all();
        // Whoever was not told now is told when it answers again; nothing else of its shard moves before.
        told.and(source_told).map_err(OrderError::NotReached)
    }

    /// An attempt has failed: makes it void, so that nothing stays frozen, and says why.
    async fn abort(
        &mut self,
        state: &MetaState,
        planned: &Planned,
        (piece, id): (&Piece, PieceId),
        error: OrderError,
        frozen_since: Instant,
    ) -> Result<(), Stuck> {
        let hold_us = u64::try_from((now() - frozen_since).as_micros()).unwrap_or(u64::MAX);
        // Whatever was decided, both have to know it.
        let aborted = self.propose(&Command::Abort { piece: id, hold_us }).await;
        for group in [piece.from, piece.to] {
            if let Err(reason) = self.tell_shard(state, group).await {
                log::debug!("group {group} was not told of an abort: {reason}");
            }
        }
        self.greet_all();
        if matches!(aborted, Err(Stuck::Outdated)) {
            return Err(Stuck::Outdated);
        }
        let shard_of = |group: u64| state.view.shards.iter().find(|shard| shard.group == group);
        let shard = |group: u64| {
            let name = |shard: &Shard| format!("shard {} ({})", shard.id, shard.replicas[0]);
            shard_of(group).map_or_else(String::new, name)
        };
        let lost = |group: u64| Err(Stuck::Lost(format!("{} is lost: it was started again", shard(group))));
        match error {
            OrderError::Gone(_) if planned.added.contains(&piece.to) => {
                let new = shard_of(piece.to).ok_or(Stuck::Outdated)?;
                self.replace(state, id.change, new, &error).await
            }
            OrderError::Gone(_) => lost(piece.to),
            OrderError::LostSource(_) if state.replicas_of(piece.from).len() == 1 => lost(piece.from),
            other => Err(Stuck::For(format!(
                "the piece from {} to {} could not be moved: {other}",
                shard(piece.from),
                shard(piece.to)
            ))),
        }
    }

    /// A new shard one of whose nodes was started again before anything was handed over to it gets a new group.
    async fn replace(
        &mut self,
        state: &MetaState,
        id: u64,
        shard: &Shard,
        error: &OrderError,
    ) -> Result<(), Stuck> {
        let owns = state.index_of(shard.group).is_some_and(|index| state.view.ranges(index).next().is_some());
        let mut holders = BTreeMap::new();
        for node in &shard.replicas {
            let reservation = orders::Reserve { cluster: state.cluster.clone(), founding: false };
            let reserved = self.controller.order(node, None, reservation, PROPOSAL_TIMEOUT).await;
            holders.insert(node.clone(), reserved.map_err(|error| Stuck::For(error.to_string()))?);
        }
        let is_same = state.holders.get(&shard.group) == Some(&holders);
        if is_same || (owns && shard.replicas.len() > 1) {
            return Err(Stuck::For(error.to_string()));
        }
        if owns {
            return Err(Stuck::Lost(format!(
                "{} is lost: it was started again with pairs of the new view",
                shard.replicas[0]
            )));
        }
        self.propose(&Command::Replace { id, group: shard.group, holders }).await?;
        self.leading().told = None;
        Ok(())
    }

    /// Has a command applied.
    pub(super) async fn propose(&self, command: &Command) -> Result<(), Stuck> {
        let meta = &self.controller.node.meta;
        match meta.propose(command, Deadline::after(now(), PROPOSAL_TIMEOUT)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(void)) => {
                log::debug!("void: {void:?}");
                Err(Stuck::Outdated)
            }
            Err(error) => Err(Stuck::For(format!("the meta group does not agree: {error:?}"))),
        }
    }

    /// The state as it is applied here.
    fn state(&self) -> Result<Arc<MetaState>, Stuck> {
        self.controller.node.meta.state().ok_or(Stuck::Outdated)
    }

    /// Has a shard act by the newest state, at whichever of its nodes leads it.
    async fn tell_shard(&self, state: &MetaState, group: u64) -> Result<(), String> {
        let replicas = state.replicas_of(group);
        let deadline = Deadline::after(now(), PROPOSAL_TIMEOUT);
        let mut reason = format!("group {group} has no leader that acts by the news");
        loop {
            for node in &replicas {
                match self.tell(node).await {
                    Ok(acting) if acting.contains(&group) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => reason = error,
                }
            }
            if replicas.len() == 1 || deadline.is_over() {
                return Err(reason);
            }
            self.controller.node.wait_for_any_news(LEADER_PAUSE).await;
        }
    }

    /// Tells a node the newest state and waits until it acts by it: the groups of the shards that it leads and that do.
    pub(super) async fn tell(&self, node: &Address) -> Result<Vec<u64>, String> {
        let state = self.controller.node.meta.state().ok_or("there is no state")?;
        if *node == self.controller.node.address {
            return self.controller.node.take_news(&state).await;
        }
        if self.controller.node.peers.at(node).is_down() {
            return Err(format!("{node} is down"));
        }
        let _shown = self.controller.show(orders::News::NAME, || node.to_string());
        self.controller.node.tell(node, &state).await.map_err(|error| format!("{node}: {error}"))
    }

    /// Tells all nodes, those that have left too, without waiting for them.
    fn greet_all(&self) {
        let Some(state) = self.controller.node.meta.state() else { return };
        let nodes = state.nodes().into_iter().chain(state.former.iter().cloned());
        for node in nodes.filter(|node| *node != self.controller.node.address) {
            self.controller.node.host.greet(&self.controller.node, &node);
        }
    }

    /// Tells all nodes of the view one after the other; those that do not answer are told later.
    pub(super) async fn tell_all(&self) {
        let Some(state) = self.controller.node.meta.state() else { return };
        for node in state.nodes() {
            if let Err(reason) = self.tell(&node).await {
                log::debug!("not told: {reason}");
            }
        }
        self.greet_all();
    }
}

/// Pairs handed over, and pairs to be handed over in all.
fn progress(change: &Change) -> (u64, u64) {
    let pieces = change.planned.iter().flat_map(|planned| &planned.pieces);
    pieces.fold((0, 0), |(moved, total), piece| {
        (moved + if piece.handed_over { piece.pairs } else { 0 }, total + piece.pairs)
    })
}
