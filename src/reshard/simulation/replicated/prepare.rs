//! From what is asked of a view change to its plan, as `reshard::prepare` and `reshard::census` do it.

use std::collections::BTreeMap;

use super::Shared;
use super::group_ops::{Failed, apply, confirm, order, order_leader};
use super::world::place_of;
use crate::model::address::Address;
use crate::model::meta::{Command, MetaState, Piece, Wanted};
use crate::model::plan::{Census, Plan, PlanError, plan};
use crate::model::range::{HashRange, Point};
use crate::model::shard::{CensusCount, ShardCommand, ShardOutcome};
use crate::model::store::BatchLimit;

const PIECE: BatchLimit = BatchLimit { pairs: 5, bytes: 1000 };
const QUESTION_TURNS: u64 = 120;
/// A census that writers made void is taken again so often.
const CENSUS_ATTEMPTS: usize = 3;

/// Plans a view change and makes the command that sets the plan.
pub(super) async fn prepare(
    world: &Shared,
    place: usize,
    state: &MetaState,
    id: u64,
    wanted: &Wanted,
) -> Result<Command, Failed> {
    for shard in &state.view.shards {
        let group = shard.group;
        let count = move |world: Shared, place: usize| async move {
            let shard = world.led(place, group)?;
            confirm(&world, place, &shard).await
        };
        order_leader(world, place, (state, group), QUESTION_TURNS, count).await?;
    }
    let mut starts = BTreeMap::new();
    for node in &wanted.nodes {
        let hello = |world: Shared, place: usize| async move { Ok(world.nodes[place].life.get()) };
        let start = order(world, (place, place_of(node)), 0, QUESTION_TURNS, hello).await;
        starts.insert(node.clone(), start.map_err(|_| Failed::Refused(format!("{node} is not reached")))?);
    }
    let mut census =
        Answers { world, place, state, change: id, counted: BTreeMap::new(), places: BTreeMap::new() };
    let plan = census.plan(wanted).await?;
    let command = census.command(&plan, &starts).await;
    census.close().await;
    command
}

/// Questions and their answers, by shard.
type Asked<Q, A> = BTreeMap<usize, (Vec<Q>, Vec<A>)>;

/// What shards have answered: the plan is made anew with each answer that it lacked, and asks the next question, so that a pure
/// planner can ask nodes that take their time.
struct Answers<'a> {
    world: &'a Shared,
    place: usize,
    state: &'a MetaState,
    change: u64,
    /// By shard: what was asked, and the answer.
    counted: Asked<HashRange, u64>,
    places: Asked<(HashRange, u64), Point>,
}

/// What was not answered yet.
enum Question {
    Counts(usize, Vec<HashRange>),
    Places(usize, Vec<(HashRange, u64)>),
}

impl Census for Answers<'_> {
    type Error = Question;

    fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, Question> {
        let known = self.counted.get(&shard).filter(|(asked, _)| asked == ranges);
        known.map(|(_, counts)| counts.clone()).ok_or_else(|| Question::Counts(shard, ranges.to_vec()))
    }

    fn places(&mut self, shard: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, Question> {
        let known = self.places.get(&shard).filter(|(asked, _)| asked == questions);
        known.map(|(_, places)| places.clone()).ok_or_else(|| Question::Places(shard, questions.to_vec()))
    }
}

impl Answers<'_> {
    async fn plan(&mut self, wanted: &Wanted) -> Result<Plan, Failed> {
        for _ in 0..CENSUS_ATTEMPTS {
            *self.world.censuses.borrow_mut().entry(self.change).or_default() += 1;
            loop {
                match plan(&self.state.view, &wanted.nodes, wanted.repl_factor, self) {
                    Ok(plan) => return Ok(plan),
                    Err(PlanError::Census(question)) => {
                        if !self.ask(question).await? {
                            break;
                        }
                    }
                    Err(PlanError::View(error)) => return Err(Failed::Refused(error.to_string())),
                    Err(PlanError::Inconsistent { .. }) => break,
                }
            }
            self.counted.clear();
            self.places.clear();
        }
        Err(Failed::Refused("the pairs could not be counted".to_owned()))
    }

    /// Whether there was an answer.
    async fn ask(&mut self, question: Question) -> Result<bool, Failed> {
        let change = self.change;
        match question {
            Question::Counts(shard, ranges) => {
                let (group, asked) = (self.state.view.shards[shard].group, ranges.clone());
                let count = move |world: Shared, place: usize| {
                    let command = ShardCommand::Census { change, ranges: asked.clone() };
                    async move {
                        let shard = world.led(place, group)?;
                        match apply(&world, place, &shard, &command).await? {
                            ShardOutcome::Census(Some(CensusCount { pairs })) => Ok(pairs),
                            _ => Err(Failed::Refused("a view change is planned already".to_owned())),
                        }
                    }
                };
                let counts = self.leader(group, count).await?;
                self.counted.insert(shard, (ranges, counts));
            }
            Question::Places(shard, questions) => {
                let (group, asked) = (self.state.view.shards[shard].group, questions.clone());
                let find = move |world: Shared, place: usize| {
                    let asked = asked.clone();
                    async move {
                        let shard = world.led(place, group)?;
                        confirm(&world, place, &shard).await?;
                        Ok(shard.places(change, &asked))
                    }
                };
                let Some(places) = self.leader(group, find).await? else { return Ok(false) };
                self.places.insert(shard, (questions, places));
            }
        }
        Ok(true)
    }

    async fn leader<T: 'static, F: Future<Output = Result<T, Failed>> + 'static>(
        &self,
        group: u64,
        work: impl Fn(Shared, usize) -> F + Clone + 'static,
    ) -> Result<T, Failed> {
        let answer = order_leader(self.world, self.place, (self.state, group), QUESTION_TURNS, work).await;
        answer.map_err(|error| Failed::Refused(format!("group {group}: {error:?}")))
    }

    async fn command(&self, plan: &Plan, starts: &BTreeMap<Address, u64>) -> Result<Command, Failed> {
        let mut pieces = Vec::new();
        for step in &plan.moves {
            let (group, range) = (step.from, step.range.clone());
            let cut = move |world: Shared, place: usize| {
                let range = range.clone();
                async move {
                    let shard = world.led(place, group)?;
                    confirm(&world, place, &shard).await?;
                    Ok(shard.pieces(&[range], PIECE).remove(0))
                }
            };
            let cut = self.leader(group, cut).await?;
            let piece = |(range, size): (HashRange, crate::model::store::Size)| {
                Piece::new(range, (step.from, step.to), size.pairs)
            };
            pieces.extend(cut.into_iter().map(piece));
        }
        Ok(self.state.plan_command(self.change, plan, pieces, Vec::new(), starts))
    }

    async fn close(&self) {
        let change = self.change;
        for shard in &self.state.view.shards {
            let group = shard.group;
            let close = move |world: Shared, place: usize| async move {
                let shard = world.led(place, group)?;
                apply(&world, place, &shard, &ShardCommand::CloseCensus { change }).await.map(drop)
            };
            // A census that was not closed is closed by the plan.
            let _ = self.leader(group, close).await;
        }
    }
}
