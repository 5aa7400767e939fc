//! The thread that looks after the cluster on the leader of the meta group: it completes a founding, keeps the right voters, and
//! carries view changes through.
//!
//! What it does follows from the meta state alone. So whoever leads next goes on where the last one stopped, and whatever
//! the last one still does is void: its proposals are not committed, and nodes refuse orders of a lower term.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::finish;
use super::orders::Office;
use super::pieces::LOST_SOURCE;
use super::prepare::prepare;
use super::voters::{self, Voters};
use crate::clock::{Deadline, now};
use crate::model::address::Address;
use crate::model::meta::{Change, Command, End, MetaState, Piece, Planned, wanted_voters};
use crate::model::shard::{PieceId, Stamp};
use crate::model::view::Shard;
use crate::node::ask::OrderError;
use crate::node::post;
use crate::node::raft::Seat;
use crate::points::point;
use crate::wire::{NotPlanned, Order, Prepared, Source, Tallied};

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
pub fn run(office: &Office, stop: &Receiver<()>) {
    let mut coordinator = Coordinator {
        office: office.clone(),
        term: 0,
        progress: now(),
        hold: (0, Duration::ZERO),
        failed: None,
        preparing: None,
        retry: FIRST_RETRY,
        greeted: 0,
        fenced: None,
        told: None,
        looked: now(),
    };
    while stop.try_recv() == Err(TryRecvError::Empty) {
        if catch_unwind(AssertUnwindSafe(|| coordinator.round())).is_err() {
            log::error!("a step of the coordinator broke off: it is tried again");
            office.desk.wait(ROUND);
        }
    }
}

pub(super) struct Coordinator {
    pub(super) office: Office,
    /// The term in which this node leads; 0 where it does not.
    term: u64,
    /// When there was progress last.
    progress: Instant,
    /// The longest hold that this leader has seen in a view change, with what it took to tell of the hand-over.
    pub(super) hold: (u64, Duration),
    /// Why the last step failed.
    failed: Option<String>,
    /// Since when a piece is being frozen.
    preparing: Option<Instant>,
    /// How long to wait before a failed step is tried again.
    retry: Duration,
    /// The version that all nodes were greeted with.
    greeted: u64,
    /// The view change of which nothing that the last leader began is still open.
    fenced: Option<u64>,
    /// The view change of which all its nodes know, and are tallying.
    told: Option<u64>,
    /// When the voters were looked at last.
    looked: Instant,
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
    fn round(&mut self) {
        let Some(seat) = self.office.node.meta.seat().filter(|seat| seat.leads()) else {
            if self.term != 0 {
                self.term = 0;
                self.office.desk.clear();
            }
            return self.office.desk.wait(ROUND);
        };
        if self.term != seat.status.term {
            // Everything that was ever acknowledged is applied here before anything is done about it.
            if !self.office.node.meta.confirm(Deadline::after(now(), PROPOSAL_TIMEOUT)) {
                return self.office.desk.wait(ROUND);
            }
            (self.term, self.progress, self.failed) = (seat.status.term, now(), None);
            (self.fenced, self.told) = (None, None);
        }
        let Some(state) = self.office.node.meta.state() else { return self.office.desk.wait(ROUND) };
        if self.greeted != state.version {
            self.greeted = state.version;
            self.greet_all();
        }
        let went_on = match &state.change {
            _ if !state.open => self.found(&seat, &state),
            Some(change) => self.carry_on(&seat, &state, change),
            None => {
                self.office.desk.clear();
                self.look_after_voters(&seat, &state)
            }
        };
        if !went_on {
            self.office.desk.wait(ROUND);
        }
    }

    fn look_after_voters(&mut self, seat: &Seat, state: &MetaState) -> bool {
        if now() - self.looked < VOTERS_ROUND {
            return false;
        }
        let nodes = state.nodes();
        let step = voters::step(&self.office, seat, &state.cluster, wanted_voters(&nodes));
        if step != Voters::Changing {
            self.looked = now();
        }
        step == Voters::Changing
    }

    /// Opens the cluster when its meta group is complete; begins again where one of its nodes was started again before.
    fn found(&mut self, seat: &Seat, state: &MetaState) -> bool {
        // They promise again each time: a promise does not hold for ever, and is not given by who has learned of another cluster.
        let promise = Order::Promise { cluster: state.cluster.clone(), founding: true };
        for (node, instance) in state.holders.values().flatten() {
            let promised = self.office.order::<u64>(node, *instance, &promise, PROPOSAL_TIMEOUT);
            if promised.as_ref() != Ok(instance) {
                log::info!("founding again: {node} does not promise itself any more ({promised:?})");
                self.office.node.meta.give_up(state.group);
                return false;
            }
        }
        let nodes = state.nodes();
        match voters::step(&self.office, seat, &state.cluster, wanted_voters(&nodes)) {
            Voters::Complete => {
                if self.propose(&Command::Open).is_ok() {
                    log::info!("cluster {} is open", state.cluster);
                    self.tell_all();
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

    fn carry_on(&mut self, seat: &Seat, state: &MetaState, change: &Change) -> bool {
        let (moved, total) = progress(change);
        let phase = match &change.planned {
            None => "counting",
            Some(planned) if planned.pieces.iter().all(|piece| piece.handed_over) => "finishing",
            Some(_) => "moving",
        };
        if self.failed.is_none() {
            self.office.desk.show(change.id, phase, moved, total);
        }
        let done = match &change.planned {
            None => self.plan(state, change),
            Some(planned) if self.fenced != Some(change.id) => self.fence(change.id, planned),
            // Its plan may be all that the last leader came to.
            Some(_) if self.told != Some(change.id) => self.tell_planned(),
            Some(planned) => match planned.pieces.iter().position(|piece| !piece.handed_over) {
                Some(index) => self.move_piece(state, change.id, planned, index),
                None => finish::finish(self, seat, state, change.id, planned),
            },
        };
        match done {
            Ok(()) => {
                (self.progress, self.failed, self.retry) = (now(), None, FIRST_RETRY);
                true
            }
            Err(Stuck::Outdated) => false,
            Err(Stuck::For(reason)) => {
                self.note_failure(change.id, reason, now() - self.progress >= BLOCKED_AFTER);
                false
            }
            Err(Stuck::Lost(reason)) => {
                self.note_failure(change.id, reason, true);
                false
            }
        }
    }

    fn note_failure(&mut self, change: u64, reason: String, blocked: bool) {
        // What goes away by itself at once is not worth a line.
        if self.retry > FIRST_RETRY && self.failed.as_ref() != Some(&reason) {
            log::warn!("view change {change:016x}: {reason}");
        }
        if blocked {
            self.office.desk.block(change, &reason);
        }
        self.failed = Some(reason);
        self.office.desk.wait(self.retry);
        self.retry = LONGEST_RETRY.min(self.retry * 2);
    }

    fn plan(&mut self, state: &MetaState, change: &Change) -> Result<(), Stuck> {
        point!("change-begun");
        // A view change that this one supersedes may have left something frozen.
        self.tell_all();
        match prepare(&self.office, state, change.id, &change.wanted) {
            Ok(command) => {
                self.propose(&command)?;
                // Nobody else has begun anything of this plan.
                self.fenced = Some(change.id);
                point!("change-planned");
                Ok(())
            }
            Err(failure) => {
                let end = match failure {
                    NotPlanned::Refused(reason) => End::Refused(reason),
                    NotPlanned::Failed(reason) => End::Failed(reason),
                    NotPlanned::Running(_) => return Err(Stuck::Outdated),
                };
                self.propose(&Command::End { id: change.id, end, holders: BTreeMap::new() })?;
                self.tell_all();
                Ok(())
            }
        }
    }

    /// Makes void what the last leader began and did not end, so that nothing stays frozen. It moved one piece at a time.
    fn fence(&mut self, change: u64, planned: &Planned) -> Result<(), Stuck> {
        if let Some(index) = planned.pieces.iter().position(|piece| !piece.handed_over) {
            let attempt = planned.pieces[index].attempt;
            let index = u32::try_from(index).expect("fewer than 2^32 pieces");
            self.propose(&Command::Abort { piece: PieceId { change, index, attempt }, hold_us: 0 })?;
            self.tell_all();
        }
        self.fenced = Some(change);
        Ok(())
    }

    /// All nodes of the plan know of it, and tally, before anything moves.
    fn tell_planned(&mut self) -> Result<(), Stuck> {
        let state = self.state()?;
        let Some(change) = &state.change else { return Err(Stuck::Outdated) };
        let Some(planned) = &change.planned else { return Err(Stuck::Outdated) };
        self.tell_all();
        for shard in &planned.shards {
            let told = self.tell_shard(&state, shard.group);
            let tally = Order::Tally { group: shard.group, change: change.id };
            let tallied = self.office.order_leader::<Tallied>(&state, shard.group, &tally, PROPOSAL_TIMEOUT);
            match tallied {
                Ok(_) => told.map_err(Stuck::For)?,
                Err(error) if planned.added.contains(&shard.group) => {
                    return self.replace(&state, change.id, shard, &error);
                }
                Err(OrderError::Gone(reason)) => {
                    return Err(Stuck::Lost(format!("shard {} is lost: {reason}", shard.id)));
                }
                Err(error) => return Err(Stuck::For(error.to_string())),
            }
        }
        self.told = Some(change.id);
        Ok(())
    }

    fn move_piece(
        &mut self,
        state: &MetaState,
        change: u64,
        planned: &Planned,
        index: usize,
    ) -> Result<(), Stuck> {
        let piece = &planned.pieces[index];
        let index = u32::try_from(index).expect("fewer than 2^32 pieces");
        let id = PieceId { change, index, attempt: piece.attempt };
        let stamp = Stamp { piece: id, term: self.term, version: state.version };
        point!("piece-started");
        self.preparing = None;
        match self.try_piece(state, planned, piece, stamp) {
            Ok(()) => Ok(()),
            Err(error) => {
                let frozen_since = self.preparing.take().unwrap_or_else(now);
                self.abort(state, planned, (piece, id), error, frozen_since)
            }
        }
    }

    /// Where a piece comes from: the node that leads the shard that gives it.
    fn source(&self, state: &MetaState, group: u64) -> Result<Source, OrderError> {
        if let [only] = state.replicas_of(group)[..] {
            let instance = state.holder(group, only).unwrap_or(0);
            return Ok(Source { node: only.clone(), instance, group });
        }
        let members = Order::Tally { group, change: 0 };
        let leader = self.office.order_leader::<Tallied>(state, group, &members, PROPOSAL_TIMEOUT)?;
        Ok(Source { node: leader.by.0, instance: leader.by.1, group })
    }

    fn try_piece(
        &mut self,
        state: &MetaState,
        planned: &Planned,
        piece: &Piece,
        stamp: Stamp,
    ) -> Result<(), OrderError> {
        let is_given_up = planned.is_given_up(piece.from);
        let source = if is_given_up { None } else { Some(self.source(state, piece.from)?) };
        let group = piece.to;
        let copy = Order::Copy { stamp, group, range: piece.range.clone(), source: source.clone() };
        self.office.order_leader::<()>(state, group, &copy, COPY_TIMEOUT)?;
        point!("piece-copied");
        let limit = LONGEST_FREEZE.min(FREEZE_LIMIT * 2_u32.pow(stamp.piece.attempt.min(8)));
        let limit_ms = u64::try_from(limit.as_millis()).expect("a short time");
        let order = Order::Prepare { stamp, group, source: source.clone(), limit_ms };
        self.preparing = Some(now());
        let prepared = self.office.order_leader(state, group, &order, limit + FREEZE_MARGIN);
        let since = now();
        let prepared: Prepared = prepared?;
        point!("piece-prepared");
        let replicas = state.view.shards.iter().find(|shard| shard.group == group);
        let replicas = replicas.map_or(1, |shard| shard.replicas.len()) as u64;
        let (copied, hold_us) = (prepared.pairs * replicas, prepared.held_us);
        let hand_over = Command::HandOver { piece: stamp.piece, copied, hold_us };
        if self.propose(&hand_over).is_err() {
            // It may be committed or not: if it is, the abort that follows is void.
            return Err(OrderError::NotReached(
                "the meta group did not say whether it is handed over".to_owned(),
            ));
        }
        if let Some(change) = self.office.node.meta.state().and_then(|state| state.change.clone()) {
            let (moved, total) = progress(&change);
            self.office.desk.show(change.id, "moving", moved, total);
        }
        point!("piece-handed-over");
        // The target first: from then on the range is served.
        let told = self.tell_shard(state, group);
        let hold = Duration::from_micros(prepared.held_us) + (now() - since);
        let longest = if self.hold.0 == stamp.piece.change { self.hold.1 } else { Duration::ZERO };
        self.hold = (stamp.piece.change, longest.max(hold));
        let source_told = source.map_or(Ok(()), |source| self.tell_shard(state, source.group));
        point!("piece-told");
        self.greet_all();
        // Whoever was not told now is told when it answers again; nothing else of its shard moves before.
        told.and(source_told).map_err(OrderError::NotReached)
    }

    /// An attempt has failed: makes it void, so that nothing stays frozen, and says why.
    fn abort(
        &mut self,
        state: &MetaState,
        planned: &Planned,
        (piece, id): (&Piece, PieceId),
        error: OrderError,
        frozen_since: Instant,
    ) -> Result<(), Stuck> {
        let hold_us = u64::try_from((now() - frozen_since).as_micros()).unwrap_or(u64::MAX);
        // Whatever was decided, both have to know it.
        let aborted = self.propose(&Command::Abort { piece: id, hold_us });
        for group in [piece.from, piece.to] {
            if let Err(reason) = self.tell_shard(state, group) {
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
                self.replace(state, id.change, new, &error)
            }
            OrderError::Gone(_) => lost(piece.to),
            OrderError::Refused(reason)
                if reason.contains(LOST_SOURCE) && !is_replicated(state, piece.from) =>
            {
                lost(piece.from)
            }
            other => Err(Stuck::For(format!(
                "the piece from {} to {} could not be moved: {other}",
                shard(piece.from),
                shard(piece.to)
            ))),
        }
    }

    /// A new shard one of whose nodes was started again before anything was handed over to it gets a new group.
    fn replace(
        &mut self,
        state: &MetaState,
        id: u64,
        shard: &Shard,
        error: &OrderError,
    ) -> Result<(), Stuck> {
        let owns = state.index_of(shard.group).is_some_and(|index| state.view.ranges(index).next().is_some());
        let mut holders = BTreeMap::new();
        for node in &shard.replicas {
            let promise = Order::Promise { cluster: state.cluster.clone(), founding: false };
            let promised = self.office.order::<u64>(node, 0, &promise, PROPOSAL_TIMEOUT);
            holders.insert(node.clone(), promised.map_err(|error| Stuck::For(error.to_string()))?);
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
        self.propose(&Command::Replace { id, group: shard.group, holders })?;
        self.told = None;
        Ok(())
    }

    /// Has a command applied.
    pub(super) fn propose(&self, command: &Command) -> Result<(), Stuck> {
        let meta = &self.office.node.meta;
        match meta.propose(command, Deadline::after(now(), PROPOSAL_TIMEOUT)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(void)) => {
                log::debug!("void: {void:?}");
                Err(Stuck::Outdated)
            }
            Err(error) => Err(Stuck::For(format!("the meta group does not agree: {error:?}"))),
        }
    }

    /// The state as it is applied here.
    pub(super) fn state(&self) -> Result<Arc<MetaState>, Stuck> {
        self.office.node.meta.state().ok_or(Stuck::Outdated)
    }

    /// Has a shard act by the newest state, at whichever of its nodes leads it.
    pub(super) fn tell_shard(&self, state: &MetaState, group: u64) -> Result<(), String> {
        let replicas = state.replicas_of(group);
        let deadline = Deadline::after(now(), PROPOSAL_TIMEOUT);
        let mut reason = format!("group {group} has no leader that acts by the news");
        loop {
            for node in &replicas {
                match self.tell(node) {
                    Ok(acting) if acting.contains(&group) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => reason = error,
                }
            }
            if replicas.len() == 1 || deadline.is_over() {
                return Err(reason);
            }
            self.office.node.wait_for_news(u64::MAX, LEADER_PAUSE);
        }
    }

    /// Tells a node the newest state and waits until it acts by it: the groups of the shards that it leads and that do.
    pub(super) fn tell(&self, node: &Address) -> Result<Vec<u64>, String> {
        let state = self.office.node.meta.state().ok_or("there is no state")?;
        if *node == self.office.node.address {
            self.office.node.learn(&state)?;
            let acting = self.office.node.act(Deadline::after(now(), PROPOSAL_TIMEOUT));
            self.office.node.sweep();
            return Ok(acting);
        }
        let peer = self.office.node.peers.at(node);
        if peer.is_down() {
            return Err(format!("{node} is down"));
        }
        post::tell(&peer, &state).map_err(|error| format!("{node}: {error}"))
    }

    /// Tells all nodes, those that have left too, without waiting for them.
    pub(super) fn greet_all(&self) {
        let Some(state) = self.office.node.meta.state() else { return };
        let nodes = state.nodes().into_iter().chain(state.former.iter().cloned());
        for node in nodes.filter(|node| *node != self.office.node.address) {
            post::greet(&self.office.node, &node);
        }
    }

    /// Tells all nodes of the view one after the other; those that do not answer are told later.
    pub(super) fn tell_all(&self) {
        let Some(state) = self.office.node.meta.state() else { return };
        for node in state.nodes() {
            if let Err(reason) = self.tell(&node) {
                log::debug!("not told: {reason}");
            }
        }
        self.greet_all();
    }
}

/// Whether a shard has several replicas, now or in the course of the view change.
fn is_replicated(state: &MetaState, group: u64) -> bool {
    state.replicas_of(group).len() > 1
}

/// Pairs handed over, and pairs to be handed over in all.
fn progress(change: &Change) -> (u64, u64) {
    let pieces = change.planned.iter().flat_map(|planned| &planned.pieces);
    pieces.fold((0, 0), |(moved, total), piece| {
        (moved + if piece.handed_over { piece.pairs } else { 0 }, total + piece.pairs)
    })
}
