//! Asking the shards what they hold, for the planner.

use std::collections::BTreeMap;
use std::time::Duration;

use super::controller::Controller;
use crate::model::meta::{MetaState, Wanted};
use crate::model::plan::{Census, Plan, PlanError, plan};
use crate::model::range::{HashRange, Point};
use crate::model::shard::CensusId;
use crate::model::view::View;
use crate::wire::NotPlanned;
use crate::wire::orders::{self, Answered};

/// A shard that does not answer within this time will not: a long one counts a million pairs in much less.
const CENSUS_TIMEOUT: Duration = Duration::from_secs(5);
/// A census that writers made void is taken again so often.
const CENSUS_ATTEMPTS: usize = 3;

/// The keys at the places that are asked for at one time have so many bytes at most on their way: half of what an answer may have.
const PLACES_BYTES: usize = 8 << 20;
/// So many of them stand for a byte of a key.
const BYTES_OF_KEY_BYTE: usize = 4;

/// The shards of a view, each asked at its leader; nothing for one whose pairs are given up.
pub(super) struct Shards<'a> {
    pub(super) controller: &'a Controller,
    pub(super) state: &'a MetaState,
    pub(super) groups: Vec<Option<u64>>,
    /// The census that was taken last.
    id: CensusId,
}

/// What shards have answered. The planner is a pure function: it is called anew with each answer that it lacked, and says which question is
/// next.
#[derive(Default)]
struct Answers {
    counted: Asked<HashRange, u64>,
    places: Asked<(HashRange, u64), Point>,
}

/// By shard: what was asked, and the answers.
type Asked<Q, A> = BTreeMap<usize, (Vec<Q>, Vec<A>)>;

/// What was not answered yet.
enum Question {
    Counts(usize, Vec<HashRange>),
    Places(usize, Vec<(HashRange, u64)>),
}

impl Census for Answers {
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

/// Why a census has to be taken again.
enum Again {
    /// Writers made it void.
    Void,
    /// A shard did not answer.
    Silent(String),
}

impl<'a> Shards<'a> {
    /// The shards of a state, for a view change that the meta leader of a term plans; with term 0, for a plan that is only shown.
    pub(super) fn new(
        controller: &'a Controller,
        state: &'a MetaState,
        (change, term): (u64, u64),
        groups: Vec<Option<u64>>,
    ) -> Self {
        Self { controller, state, groups, id: CensusId { version: state.version, term, number: 0, change } }
    }

    /// Plans the change from a view to the wanted one.
    ///
    /// # Errors
    /// When the wanted nodes make no view, or the pairs could not be counted.
    pub(super) async fn plan(&mut self, old: &View, wanted: &Wanted) -> Result<Plan, NotPlanned> {
        let mut reason = String::new();
        for _ in 0..CENSUS_ATTEMPTS {
            match self.plan_once(old, wanted).await? {
                Ok(plan) => return Ok(plan),
                Err(Again::Void) => "too much has changed since the count".clone_into(&mut reason),
                Err(Again::Silent(why)) => reason = why,
            }
            log::info!("the census is taken again: {reason}");
        }
        self.close().await;
        Err(NotPlanned::Failed(format!("the pairs could not be counted: {reason}")))
    }

    async fn plan_once(&mut self, old: &View, wanted: &Wanted) -> Result<Result<Plan, Again>, NotPlanned> {
        let mut answers = Answers::default();
        self.id.number = self.controller.coordinator.next_census();
        // All counts are asked for in any case, and first.
        for shard in 0..old.shards.len() {
            let counts = Question::Counts(shard, old.ranges(shard).collect());
            if let Err(again) = self.answer(&mut answers, counts).await {
                return Ok(Err(again));
            }
        }
        loop {
            let question = match plan(old, &wanted.nodes, wanted.repl_factor, &mut answers) {
                Ok(plan) => return Ok(Ok(plan)),
                Err(PlanError::View(error)) => return Err(NotPlanned::Refused(error.to_string())),
                Err(PlanError::Inconsistent { .. }) => return Ok(Err(Again::Void)),
                Err(PlanError::Census(question)) => question,
            };
            if let Err(again) = self.answer(&mut answers, question).await {
                return Ok(Err(again));
            }
        }
    }

    /// Asks a shard.
    async fn answer(&self, answers: &mut Answers, question: Question) -> Result<(), Again> {
        match question {
            Question::Counts(shard, ranges) => {
                let counts = match self.groups[shard] {
                    None => vec![0; ranges.len()],
                    Some(group) => {
                        let order = orders::Census { group, id: self.id, ranges: ranges.clone() };
                        self.ask(group, &order).await.map_err(Again::Silent)?.pairs
                    }
                };
                answers.counted.insert(shard, (ranges, counts));
            }
            Question::Places(shard, questions) => {
                // Where no pairs are counted there are no places to ask for.
                let group = self.groups[shard].ok_or(Again::Void)?;
                let places = self.places(group, &questions).await?;
                answers.places.insert(shard, (questions, places));
            }
        }
        Ok(())
    }

    /// Asks for places, for so many at one time that the answer is not too long.
    async fn places(&self, group: u64, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, Again> {
        let at_once = PLACES_BYTES / (BYTES_OF_KEY_BYTE * self.state.limits.max_key_length);
        let mut places = Vec::with_capacity(questions.len());
        for questions in questions.chunks(at_once.max(1)) {
            let order = orders::Places { group, id: self.id, questions: questions.to_vec() };
            let some = self.ask(group, &order).await.map_err(Again::Silent)?;
            places.extend(some.ok_or(Again::Void)?);
        }
        Ok(places)
    }

    /// The bytes of keys and values of each shard, where its leader tells them.
    pub(super) async fn bytes(&self) -> Vec<Option<u64>> {
        let mut bytes = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            bytes.push(match group {
                None => Some(0),
                Some(group) => {
                    let members = self.ask(*group, &orders::Members { group: *group }).await;
                    members.ok().and_then(|members| members.bytes)
                }
            });
        }
        bytes
    }

    /// No more is asked.
    pub(super) async fn close(&self) {
        for group in self.groups.iter().flatten() {
            let order = orders::CloseCensus { group: *group, id: self.id };
            if let Err(error) = self.ask(*group, &order).await {
                log::debug!("the census was not closed: {error}");
            }
        }
    }

    async fn ask<O: Answered>(&self, group: u64, order: &O) -> Result<O::Answer, String> {
        let answer = self.controller.order_leader(self.state, group, order, CENSUS_TIMEOUT).await;
        answer.map_err(|error| error.to_string())
    }

    /// Cuts ranges of a shard into pieces, each with its pairs.
    ///
    /// # Errors
    /// When the shard does not tell.
    pub(super) async fn pieces(
        &self,
        shard: usize,
        ranges: Vec<HashRange>,
    ) -> Result<Vec<Vec<(HashRange, u64)>>, String> {
        match self.groups[shard] {
            None => Ok(ranges.into_iter().map(|range| vec![(range, 0)]).collect()),
            Some(group) => self.ask(group, &orders::Pieces { group, ranges }).await,
        }
    }
}
