//! The coordinator of each member of the meta group, step by step as `reshard::coordinator` and `reshard::finish` work.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::super::tasks::pause;
use super::Shared;
use super::group_ops::{Failed, act, confirm, members, order, order_leader, propose, read};
use super::keeper::{Voters, keep_meta};
use super::node::learn;
use super::pieces::{self, Source};
use super::prepare::prepare;
use super::tasks::{Lost, call};
use super::world::{META, Packet, address, place_of};
use crate::model::address::Address;
use crate::model::meta::{Change, Command, End, MetaState, Piece, Planned, Void, Wanted, wanted_voters};
use crate::model::shard::{PieceId, Stamp, Tally};
use crate::model::view::Shard as ViewShard;

/// A proposal that is not committed after so many steps may yet be.
const PROPOSAL_TURNS: u64 = 150;
const COPY_TURNS: u64 = 800;
/// A range may be frozen for so many steps at the first attempt; twice as long at each further one.
const FREEZE_TURNS: u64 = 40;
/// A view change that takes longer than this may be superseded.
const BLOCKED_AFTER: u64 = 700;

/// A step that was not done: it is tried again, from the newest state.
#[derive(Debug)]
pub(super) struct Stuck;

impl From<Failed> for Stuck {
    fn from(_: Failed) -> Self {
        Self
    }
}

impl From<Lost> for Stuck {
    fn from(_: Lost) -> Self {
        Self
    }
}

/// What a shard has counted since the cut, its pairs, whether it has a log, and who leads it.
type Tallied = (Tally, u64, bool, (usize, u64));

pub(super) struct Office {
    pub(super) world: Shared,
    pub(super) place: usize,
    term: u64,
    /// The view change of which nothing that the last leader began is still open.
    fenced: Option<u64>,
    /// The view change of which all its nodes know, and are tallying.
    told: Option<u64>,
}

/// Coordinates whenever this node leads the meta group.
pub(super) async fn coordinate(world: Shared, place: usize) {
    let mut office = Office { world: Rc::clone(&world), place, term: 0, fenced: None, told: None };
    loop {
        for _ in 0..world.draw(1..6) {
            pause().await;
        }
        let Some(term) = world.nodes[place].leads_in(META) else {
            office.term = 0;
            continue;
        };
        if office.term != term {
            // Everything that was ever acknowledged is applied here before anything is done about it.
            if read(&world, place, META, PROPOSAL_TURNS).await.is_err() {
                continue;
            }
            (office.term, office.fenced, office.told) = (term, None, None);
        }
        let Ok(state) = office.state() else { continue };
        learn(&world, place, &state);
        if let Some(change) = &state.change {
            // Stuck or not, what follows is seen in the state.
            let _ = office.carry_on(&state, change).await;
        } else if world.chance(20) {
            keep_meta(&world, place, wanted_voters(&state.nodes())).await;
        }
    }
}

impl Office {
    async fn carry_on(&mut self, state: &MetaState, change: &Change) -> Result<(), Stuck> {
        match &change.planned {
            None => self.plan(state, change).await,
            Some(planned) if self.fenced != Some(change.id) => self.fence(change.id, planned).await,
            Some(_) if self.told != Some(change.id) => self.tell_planned().await,
            Some(planned) => match planned.pieces.iter().position(|piece| !piece.handed_over) {
                Some(index) => self.move_piece(state, change.id, planned, index).await,
                None => self.finish(state, change.id, planned).await,
            },
        }
    }

    async fn plan(&mut self, state: &MetaState, change: &Change) -> Result<(), Stuck> {
        self.tell_all().await;
        let command = prepare(&self.world, self.place, state, change.id, &change.wanted).await;
        match command {
            Ok(command) => {
                self.propose(&command).await?;
                self.fenced = Some(change.id);
                Ok(())
            }
            Err(Failed::Unknown) => Err(Stuck),
            Err(reason) => {
                let end = End::Failed(format!("{reason:?}"));
                self.propose(&Command::End { id: change.id, end, holders: BTreeMap::new() }).await?;
                self.tell_all().await;
                Ok(())
            }
        }
    }

    async fn fence(&mut self, change: u64, planned: &Planned) -> Result<(), Stuck> {
        if let Some(index) = planned.pieces.iter().position(|piece| !piece.handed_over) {
            let piece = piece_id(change, index, planned.pieces[index].attempt);
            self.propose(&Command::Abort { piece, hold_us: 0 }).await?;
            self.tell_all().await;
        }
        self.fenced = Some(change);
        Ok(())
    }

    async fn tell_planned(&mut self) -> Result<(), Stuck> {
        let state = self.state()?;
        let Some(change) = &state.change else { return Err(Stuck) };
        let Some(planned) = &change.planned else { return Err(Stuck) };
        self.tell_all().await;
        for shard in &planned.shards {
            let told = self.tell_shard(&state, shard.group).await;
            match self.tally(&state, shard.group, change.id).await {
                Ok(_) => told?,
                Err(_) if planned.added.contains(&shard.group) => {
                    return self.replace(&state, change.id, shard).await;
                }
                Err(_) => return Err(Stuck),
            }
        }
        self.told = Some(change.id);
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
        let id = piece_id(change, index, piece.attempt);
        let stamp = Stamp { piece: id, term: self.term, version: state.version };
        let failed = match self.try_piece(state, piece, stamp).await {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        log::debug!("piece {id}: {failed:?}");
        let aborted = self.propose(&Command::Abort { piece: id, hold_us: 0 }).await;
        for group in [piece.from, piece.to] {
            // Whoever is not told now is told later.
            let _ = self.tell_shard(state, group).await;
        }
        self.greet_all();
        aborted?;
        if failed == Failed::Gone && planned.added.contains(&piece.to) {
            let shard = state.view.shards.iter().find(|shard| shard.group == piece.to).ok_or(Stuck)?;
            return self.replace(state, change, shard).await;
        }
        Err(Stuck)
    }

    async fn source(&self, state: &MetaState, group: u64) -> Result<Source, Failed> {
        if let [only] = state.replicas_of(group)[..] {
            return Ok((place_of(only), state.holder(group, only).unwrap_or(0), group));
        }
        let (.., (leader, instance)) = self.tally(state, group, 0).await?;
        Ok((leader, instance, group))
    }

    async fn try_piece(&self, state: &MetaState, piece: &Piece, stamp: Stamp) -> Result<(), Failed> {
        let source = self.source(state, piece.from).await?;
        let (group, range) = (piece.to, piece.range.clone());
        let copy = move |world, place| pieces::copy(world, place, (stamp, group), range.clone(), source);
        order_leader(&self.world, self.place, (state, group), COPY_TURNS, copy).await?;
        let limit = FREEZE_TURNS << stamp.piece.attempt.min(4);
        let prepare = move |world, place| pieces::prepare(world, place, (stamp, group), source, limit);
        let copied = order_leader(&self.world, self.place, (state, group), limit + 20, prepare).await?;
        let hand_over = Command::HandOver { piece: stamp.piece, copied, hold_us: 0 };
        if self.propose(&hand_over).await.is_err() {
            // It may be committed or not: if it is, the abort that follows is void.
            return Err(Failed::Unknown);
        }
        let told = self.tell_shard(state, group).await;
        let source_told = self.tell_shard(state, piece.from).await;
        self.greet_all();
        told.and(source_told).map_err(|Stuck| Failed::Unknown)
    }

    /// A new shard one of whose nodes was started again before anything was handed over to it gets a new group.
    async fn replace(&mut self, state: &MetaState, id: u64, shard: &ViewShard) -> Result<(), Stuck> {
        let owns = state.index_of(shard.group).is_some_and(|index| state.view.ranges(index).next().is_some());
        let mut holders = BTreeMap::new();
        for node in &shard.replicas {
            holders.insert(node.clone(), self.hello(node).await?);
        }
        if owns || state.holders.get(&shard.group) == Some(&holders) {
            return Err(Stuck);
        }
        self.propose(&Command::Replace { id, group: shard.group, holders }).await?;
        self.world.count(|tally| tally.replaced += 1);
        self.told = None;
        Ok(())
    }

    async fn hello(&self, node: &Address) -> Result<u64, Stuck> {
        let hello = |world: Shared, place: usize| async move { Ok(world.nodes[place].life.get()) };
        Ok(order(&self.world, (self.place, place_of(node)), 0, PROPOSAL_TURNS, hello).await?)
    }

    async fn finish(&mut self, state: &MetaState, id: u64, planned: &Planned) -> Result<(), Stuck> {
        for shard in &planned.shards {
            for node in &shard.replicas {
                self.tell(node).await?;
            }
            self.members_complete(state, shard).await?;
        }
        let nodes: Vec<Address> = planned.shards.iter().flat_map(|shard| &shard.replicas).cloned().collect();
        if keep_meta(&self.world, self.place, wanted_voters(&nodes)).await != Voters::Complete {
            return Err(Stuck);
        }
        let (mut sum, mut pairs, mut is_complete) = (Tally::default(), 0, true);
        let mut holders = BTreeMap::new();
        for shard in &state.view.shards {
            let stays = planned.shards.iter().find(|planned| planned.group == shard.group);
            let Ok((tally, held, is_logged, by)) = self.tally(state, shard.group, id).await else {
                if stays.is_some() {
                    return Err(Stuck);
                }
                is_complete = false;
                continue;
            };
            sum.created += tally.created;
            sum.deleted += tally.deleted;
            if let Some(planned) = stays {
                pairs += held;
                if is_logged && planned.replicas == [address(by.0)] {
                    holders.insert(shard.group, BTreeMap::from([(address(by.0), by.1)]));
                }
            }
        }
        self.propose(&Command::End { id, end: End::Finished(String::new()), holders }).await?;
        if is_complete && self.world.censuses.borrow().get(&id) == Some(&1) && self.fenced == Some(id) {
            self.receipt(planned.keys, sum, pairs);
        }
        self.tell_all().await;
        Ok(())
    }

    /// Nothing came and went but what clients created and deleted.
    fn receipt(&self, keys: u64, sum: Tally, pairs: u64) {
        self.world.count(|tally| tally.receipts += 1);
        // While clients write, the shards are asked at different moments, which are not those at which they take part.
        if self.world.quiet.get() && keys + sum.created != pairs + sum.deleted {
            self.world.accuse(format!("{keys} pairs at the cut, then {sum:?}, and now {pairs}"));
        }
    }

    /// Just the planned nodes hold a shard's replicas.
    async fn members_complete(&self, state: &MetaState, shard: &ViewShard) -> Result<(), Stuck> {
        let group = shard.group;
        if state.replicas_of(group).len() == 1 {
            return Ok(());
        }
        let ask = move |world, place| members(world, place, group);
        let found = order_leader(&self.world, self.place, (state, group), PROPOSAL_TURNS, ask).await?;
        let mut there: Vec<usize> = found.voters.iter().map(|(_, place)| *place).collect();
        let mut wanted: Vec<usize> = shard.replicas.iter().map(place_of).collect();
        there.sort_unstable();
        wanted.sort_unstable();
        let is_complete = there == wanted && found.learners.is_empty() && !found.changing;
        if is_complete && found.version >= state.version { Ok(()) } else { Err(Stuck) }
    }

    async fn tally(&self, state: &MetaState, group: u64, change: u64) -> Result<Tallied, Failed> {
        let ask = move |world: Shared, place: usize| async move {
            let shard = world.led(place, group)?;
            confirm(&world, place, &shard).await?;
            let (tally, pairs) = shard.tally(change);
            Ok((tally, pairs, shard.is_logged(), (place, world.nodes[place].life.get())))
        };
        order_leader(&self.world, self.place, (state, group), PROPOSAL_TURNS, ask).await
    }

    /// Has a command applied by the meta group.
    async fn propose(&self, command: &Command) -> Result<(), Stuck> {
        propose_to_meta(&self.world, self.place, command).await?.map_err(|_| Stuck)
    }

    fn state(&self) -> Result<Arc<MetaState>, Stuck> {
        let applied = self.world.at(self.place).meta.lock().clone();
        applied.ok_or(Stuck)
    }

    /// Has a shard act by the newest state, at whichever of its nodes leads it.
    async fn tell_shard(&self, state: &MetaState, group: u64) -> Result<(), Stuck> {
        let replicas: Vec<Address> = state.replicas_of(group).into_iter().cloned().collect();
        let until = self.world.now.get() + PROPOSAL_TURNS;
        loop {
            for node in &replicas {
                if self.tell(node).await.is_ok_and(|acting| acting.contains(&group)) {
                    return Ok(());
                }
            }
            if replicas.len() == 1 || self.world.now.get() >= until {
                return Err(Stuck);
            }
            pause().await;
        }
    }

    /// Tells a node the newest state and waits until it acts by it: the groups of the shards that it leads and that do.
    async fn tell(&self, node: &Address) -> Result<Vec<u64>, Lost> {
        let Ok(state) = self.state() else { return Ok(Vec::new()) };
        let (there, to) = (Rc::clone(&self.world), place_of(node));
        let work = move || {
            let (world, state) = (Rc::clone(&there), Arc::clone(&state));
            async move {
                learn(&world, to, &state);
                act(&world, to).await
            }
        };
        call(&self.world, (self.place, to), PROPOSAL_TURNS / 2, work).await
    }

    async fn tell_all(&self) {
        let Ok(state) = self.state() else { return };
        for node in state.nodes() {
            // Whoever is not told now is told later.
            let _ = self.tell(&node).await;
        }
        self.greet_all();
    }

    fn greet_all(&self) {
        let Ok(state) = self.state() else { return };
        for node in state.nodes().into_iter().chain(state.former.iter().cloned()) {
            let (there, state, to) = (Rc::clone(&self.world), Arc::clone(&state), place_of(&node));
            self.world.send(self.place, to, Packet::Call(Rc::new(move || learn(&there, to, &state))));
        }
    }
}

fn piece_id(change: u64, index: usize, attempt: u32) -> PieceId {
    PieceId { change, index: u32::try_from(index).expect("a few pieces"), attempt }
}

/// Has a command applied, if this node leads the meta group: what the state made of it.
pub(super) async fn propose_to_meta(
    world: &Shared,
    place: usize,
    command: &Command,
) -> Result<Result<(), Void>, Failed> {
    let bytes = serde_json::to_vec(command).expect("our own types are JSON");
    let outcome = propose(world, (place, META), bytes.into(), PROPOSAL_TURNS).await?;
    serde_json::from_slice(&outcome).map_err(|_| {
        world.accuse(format!("a command was answered by what something else came to: {outcome:?}"));
        Failed::Unknown
    })
}

/// Begins view changes, also where one runs already, and cancels some.
pub(super) async fn operate(world: Shared) {
    let mut running_since = (0, 0);
    for _ in 0..world.draw(20..200) {
        pause().await;
    }
    while world.harm.get() {
        for _ in 0..world.draw(10..40) {
            pause().await;
        }
        let Some(leader) = world.leader(META) else { continue };
        let running = world.newest().change.as_ref().map(|change| change.id);
        if running.is_some_and(|id| id != running_since.0) {
            running_since = (running.unwrap_or(0), world.now.get());
        }
        let command = match running {
            Some(id) if world.chance(1) => Command::End { id, end: End::Cancelled, holders: BTreeMap::new() },
            Some(_) if world.now.get() - running_since.1 < BLOCKED_AFTER => continue,
            None if world.chance(30) => continue,
            _ => begin(&world, running),
        };
        order_change(&world, leader, command).await;
    }
}

async fn order_change(world: &Shared, leader: usize, command: Command) {
    let work = move |world: Shared, place: usize| {
        let command = command.clone();
        async move { propose_to_meta(&world, place, &command).await }
    };
    // Whatever comes of it is seen in the state.
    let _ = order(world, (world.nodes.len(), leader), 0, PROPOSAL_TURNS, work).await;
}

fn begin(world: &Shared, supersedes: Option<u64>) -> Command {
    let wanted = Wanted { accept_loss: Vec::new(), ..world.some_view() };
    Command::Begin { id: world.number(), wanted, supersedes }
}

/// When harm is over, the change that runs is finished, and then another one.
pub(super) async fn change_at_last(world: Shared) {
    loop {
        // Nobody writes any more, and nobody knows of anything else to do.
        while world.newest().change.is_some() || world.busy.get() > 0 {
            pause().await;
        }
        // What nodes go on with for clients that have given up comes to its end.
        for _ in 0..200 {
            pause().await;
        }
        world.quiet.set(true);
        let command = begin(&world, None);
        let Command::Begin { id, .. } = &command else { unreachable!("it was just made") };
        let id = *id;
        let Some(leader) = world.leader(META) else { continue };
        order_change(&world, leader, command).await;
        while world.newest().change.is_some() {
            pause().await;
        }
        if let Some(End::Finished(_)) = world.newest().result(id) {
            break;
        }
    }
    world.over.set(true);
}
