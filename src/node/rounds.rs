//! Asking shards, round by round, until all is known that is wanted: views change meanwhile, and leaders fail.

use parking_lot::Mutex;

use super::ask::OrderError;
use super::host::Pending;
use super::keys::{FIRST_PAUSE, LONGEST_PAUSE};
use super::problems::advice;
use super::state::{Node, Serving};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::view;

/// Of a shard that only one node has, so many questions without an answer are enough.
const FAILURES: u32 = 2;

/// Which shards did not answer in a round, by their places in the view, and why; those of which something was told are not among them.
pub type Unanswered = Vec<(usize, OrderError)>;

impl Node {
    /// Asks shards of the view, again and again, until `round` has what is wanted. It is given what this node serves by; where it has not all of it, it says which shards of that view did not
    /// answer, and why.
    ///
    /// # Errors
    /// [`Error`] where that is not so by the deadline, or a shard is lost.
    pub async fn ask_in_rounds<T>(
        &self,
        deadline: Deadline,
        mut round: impl AsyncFnMut(&Serving) -> Result<T, Unanswered>,
    ) -> Result<T, Error> {
        self.refuse_if_claimed()?;
        self.wait_for_first_round(deadline).await;
        let unavailable = |reason| Error::Unavailable { reason, applied: Applied::No };
        let (mut pause, mut failures) = (FIRST_PAUSE, 0);
        loop {
            let serving_state = self.serving_state();
            let serving = serving_state.serving().map_err(|error| unavailable(error.to_string()))?;
            let version = serving.state.version;
            let unanswered = match round(serving).await {
                Ok(wanted) => return Ok(wanted),
                Err(unanswered) => unanswered,
            };
            let mut reason = "a range was on its way from one shard to another all the time".to_owned();
            for (index, error) in unanswered {
                if let OrderError::NotKnown(reason) = error {
                    return Err(Error::Overloaded(reason));
                }
                let shard = &serving.state.view.shards[index];
                failures += u32::from(is_failure(shard, &error));
                reason = format!("shard {}: {error}", shard.id);
                if failures >= FAILURES && self.state().is_none_or(|now| now.version <= version) {
                    return Err(unavailable(format!("{reason}; {}", advice(shard))));
                }
            }
            if deadline.is_over() {
                return Err(unavailable(reason));
            }
            self.wait_for_news(version, pause.min(deadline.left())).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Asks so many questions at the same time, each by its number. The first `own` are this node's to answer: before another one, so that they take no thread.
    pub async fn ask_each<'a, T: Send>(
        &'a self,
        (own, count): (usize, usize),
        ask: impl Fn(usize) -> Pending<'a, T> + Sync,
    ) -> Vec<T> {
        let answers: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
        let step = |number: usize| -> Pending<'_, ()> {
            let (ask, answers) = (&ask, &answers);
            Box::pin(async move {
                let answer = ask(number).await;
                *answers[number].lock() = Some(answer);
            })
        };
        let first: Vec<usize> = (0..count.min(own + 1)).collect();
        let rows: Vec<Vec<usize>> =
            std::iter::once(first).chain((own + 1..count).map(|number| vec![number])).collect();
        self.host.each(&rows, &step).await;
        answers.into_iter().map(|answer| answer.into_inner().expect("every step was taken")).collect()
    }

    /// Whether this node answers for a shard itself.
    pub fn answers_for(&self, group: u64) -> bool {
        self.shard_of(group).is_some_and(|own| self.leads(&own).is_ok())
    }
}

/// Whether a shard is not reached that only one node has.
fn is_failure(shard: &view::Shard, error: &OrderError) -> bool {
    let is_unreached =
        matches!(error, OrderError::NotSent(_) | OrderError::NotReached(_) | OrderError::Gone(_));
    shard.replicas.len() == 1 && is_unreached
}
