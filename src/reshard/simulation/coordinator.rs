//! The coordinator of each member of the meta group, step by step as `reshard::coordinator` works. One that has lost its
//! leadership goes on with what it is at until that comes to its end.

use std::collections::BTreeMap;
use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;

use super::pieces::{self, Source};
use super::tasks::{call, pause};
use super::world::INSTANCE;
use super::{Shared, checks, meta_group};
use crate::model::address::Address;
use crate::model::meta::{Command, End, MetaState, Piece, Planned, Void};
use crate::model::plan::{Census, Plan, plan};
use crate::model::range::{HashRange, Point};
use crate::model::shard::{PieceId, Shard, Stamp, Tally};
use crate::model::store::BatchLimit;
use crate::model::view::Shard as ViewShard;

const PIECE: BatchLimit = BatchLimit { pairs: 4, bytes: 1000 };
/// A node is told, or asked, for so many turns.
const TURNS: u64 = 60;
const COPY_TURNS: u64 = 600;
const PREPARE_TURNS: u64 = 120;

/// A step that was not done: it is tried again, from the newest state.
struct Stuck;

/// Coordinates whenever this member leads.
pub(super) async fn coordinate(world: Shared, member: usize) {
    loop {
        pause().await;
        let led = {
            let meta = world.meta.borrow();
            meta.leads(member).map(|term| (term, meta.state(member)))
        };
        let Some((term, state)) = led.filter(|(_, state)| state.change.is_some()) else { continue };
        let office = Office { world: Rc::clone(&world), member, term };
        // Stuck or not, what follows is seen in the state.
        let _ = office.carry_on(&state).await;
    }
}

struct Office {
    world: Shared,
    member: usize,
    term: u64,
}

impl Office {
    async fn carry_on(&self, state: &MetaState) -> Result<(), Stuck> {
        let Some(change) = &state.change else { return Ok(()) };
        match &change.planned {
            None => self.plan(state, change.id, &change.wanted.nodes).await,
            Some(planned) => match planned.pieces.iter().position(|piece| !piece.handed_over) {
                Some(index) => self.move_piece(state, change.id, planned, index).await,
                None => self.finish(state, change.id, planned).await,
            },
        }
    }

    async fn plan(&self, state: &MetaState, id: u64, wanted: &[Address]) -> Result<(), Stuck> {
        self.tell_all().await;
        match make_plan(&self.world, state, id, wanted) {
            Ok(command) => {
                pause().await;
                self.propose(command).await?;
                self.tell_planned().await
            }
            Err(reason) => {
                self.propose(Command::End { id, end: End::Failed(reason), holders: BTreeMap::new() }).await?;
                self.tell_all().await;
                Ok(())
            }
        }
    }

    async fn tell_planned(&self) -> Result<(), Stuck> {
        let state = self.state();
        let Some(change) = &state.change else { return Err(Stuck) };
        let Some(planned) = &change.planned else { return Err(Stuck) };
        self.tell_all().await;
        for shard in &planned.shards {
            self.tell(&shard.replicas[0]).await?;
            self.tally(&shard.replicas[0], change.id).await?;
        }
        Ok(())
    }

    async fn move_piece(
        &self,
        state: &MetaState,
        change: u64,
        planned: &Planned,
        index: usize,
    ) -> Result<(), Stuck> {
        let piece = &planned.pieces[index];
        let index = u32::try_from(index).expect("a few pieces");
        let id = PieceId { change, index, attempt: piece.attempt };
        let stamp = Stamp { piece: id, term: self.term, version: state.version };
        let node_of =
            |group| state.view.shards.iter().find(|one| one.group == group).map(|one| &one.replicas[0]);
        let target = node_of(piece.to).ok_or(Stuck)?;
        let source = Source { node: node_of(piece.from).ok_or(Stuck)?.clone(), group: piece.from };
        if self.try_piece(piece, stamp, target, &source).await.is_ok() {
            return Ok(());
        }
        self.propose(Command::Abort { piece: id, hold_us: 0 }).await?;
        for node in [&source.node, target] {
            // Whoever is not told now is told later.
            let _ = self.tell(node).await;
        }
        self.greet_all();
        Err(Stuck)
    }

    async fn try_piece(
        &self,
        piece: &Piece,
        stamp: Stamp,
        target: &Address,
        source: &Source,
    ) -> Result<(), Stuck> {
        let (there, to, from) = (Rc::clone(&self.world), (target.clone(), piece.to), source.clone());
        let range = piece.range.clone();
        let copied = call(&self.world, COPY_TURNS, move || {
            pieces::copy(Rc::clone(&there), to.clone(), stamp, range.clone(), from.clone())
        });
        copied.await.ok_or(Stuck)?.map_err(|_| Stuck)?;
        let (there, to, from) = (Rc::clone(&self.world), (target.clone(), piece.to), source.clone());
        let prepared = call(&self.world, PREPARE_TURNS, move || {
            pieces::prepare(Rc::clone(&there), to.clone(), stamp, from.clone())
        });
        let copied = prepared.await.ok_or(Stuck)?.map_err(|_| Stuck)?;
        let hand_over = Command::HandOver { piece: stamp.piece, copied, hold_us: 0 };
        if self.propose(hand_over).await.is_err() {
            // It may be committed or not: the state says so when it is looked at again.
            return Ok(());
        }
        let told = self.tell(target).await;
        let source_told = self.tell(&source.node).await;
        self.greet_all();
        told.and(source_told)
    }

    async fn finish(&self, state: &MetaState, id: u64, planned: &Planned) -> Result<(), Stuck> {
        for shard in &planned.shards {
            self.tell(&shard.replicas[0]).await?;
        }
        let (mut sum, mut pairs, mut complete) = (Tally::default(), 0, true);
        for shard in &state.view.shards {
            let stays = planned.shards.iter().any(|planned| planned.group == shard.group);
            match self.tally(&shard.replicas[0], id).await {
                Ok((tally, held)) => {
                    sum.created += tally.created;
                    sum.deleted += tally.deleted;
                    pairs += if stays { held } else { 0 };
                }
                Err(_) if !stays => complete = false,
                Err(stuck) => return Err(stuck),
            }
        }
        self.propose(Command::End { id, end: End::Finished(String::new()), holders: BTreeMap::new() })
            .await?;
        let counted_once = {
            let plans = self.world.plans.borrow();
            plans.last() == Some(&id) && plans.iter().filter(|plan| **plan == id).count() == 1
        };
        if complete && counted_once {
            checks::receipt(&self.world, planned.keys, sum, pairs);
        }
        self.tell_all().await;
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<(), Stuck> {
        let outcome: Option<Result<(), Void>> = meta_group::propose(&self.world, self.member, command).await;
        outcome.and_then(Result::ok).ok_or(Stuck)
    }

    fn state(&self) -> Arc<MetaState> {
        self.world.meta.borrow().state(self.member)
    }

    async fn tell(&self, node: &Address) -> Result<(), Stuck> {
        let (world, node, state) = (Rc::clone(&self.world), node.clone(), self.state());
        let told = call(&self.world, TURNS, move || {
            world.touched.set(true);
            world.nodes[&node].learn(&node, &state);
            ready(())
        });
        told.await.ok_or(Stuck)
    }

    fn greet_all(&self) {
        let state = self.state();
        for node in state.nodes().into_iter().chain(state.former.iter().cloned()) {
            let (world, state) = (Rc::clone(&self.world), Arc::clone(&state));
            self.world.spawn(async move {
                world.delay(false).await;
                if !world.harmed(10) {
                    world.nodes[&node].learn(&node, &state);
                    world.touched.set(true);
                }
            });
        }
    }

    async fn tell_all(&self) {
        for node in self.state().nodes() {
            // Whoever is not told now is told later.
            let _ = self.tell(&node).await;
        }
        self.greet_all();
    }

    async fn tally(&self, node: &Address, change: u64) -> Result<(Tally, u64), Stuck> {
        let (world, node) = (Rc::clone(&self.world), node.clone());
        let tallied = call(&self.world, TURNS, move || {
            ready(world.nodes[&node].shard().map(|shard| shard.tally(change)))
        });
        tallied.await.flatten().ok_or(Stuck)
    }
}

/// The shards of a view, asked directly: only clients come between the questions.
struct Shards<'a> {
    world: &'a Shared,
    change: u64,
    held: Vec<Arc<Shard>>,
}

impl Census for Shards<'_> {
    type Error = String;

    fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, String> {
        super::clients::write_at_once(self.world);
        let count = self.held[shard].take_census(self.change, ranges);
        count.map(|count| count.pairs).ok_or_else(|| "a view change is planned already".to_owned())
    }

    fn places(&mut self, shard: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, String> {
        super::clients::write_at_once(self.world);
        self.held[shard].places(self.change, questions).ok_or_else(|| "another census".to_owned())
    }
}

fn make_plan(world: &Shared, state: &MetaState, id: u64, wanted: &[Address]) -> Result<Command, String> {
    world.plans.borrow_mut().push(id);
    let of = |shard: &ViewShard| {
        world.nodes[&shard.replicas[0]].shard_of(shard.group).ok_or("a node has not learned of its shard")
    };
    let shards = state.view.shards.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    let mut census = Shards { world, change: id, held: shards };
    let plan = plan(&state.view, wanted, 1, &mut census).map_err(|error| error.to_string())?;
    super::clients::write_at_once(world);
    let command = command(state, id, &plan, &census.held);
    census.held.iter().for_each(|shard| shard.close_census(id));
    Ok(command)
}

/// The command that sets a plan, as `reshard::prepare` makes it.
fn command(state: &MetaState, id: u64, plan: &Plan, shards: &[Arc<Shard>]) -> Command {
    let old = &state.view;
    let index_of = |group: u64| old.shards.iter().position(|shard| shard.group == group);
    let mut pieces = Vec::new();
    for step in &plan.moves {
        let giver = index_of(step.from).expect("a shard of the present view gives");
        let cut = shards[giver].pieces(std::slice::from_ref(&step.range), PIECE).remove(0);
        pieces
            .extend(cut.into_iter().map(|(range, size)| Piece::new(range, (step.from, step.to), size.pairs)));
    }
    let instances: BTreeMap<Address, u64> = plan.view.nodes().map(|node| (node.clone(), INSTANCE)).collect();
    state.plan_command(id, plan, pieces, Vec::new(), &instances)
}
