//! Asking one shard after the other, round by round, until all is known that is wanted: views change meanwhile, and leaders fail.

use super::ask::OrderError;
use super::keys::{FIRST_PAUSE, LONGEST_PAUSE};
use super::problems::advice;
use super::state::{Node, Serving};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::view;

/// Of a shard that only one node has, so many questions without an answer are enough.
const FAILURES: u32 = 2;

impl Node {
    /// Asks the shards of the view in their order, again and again, until `ask` has what is wanted. It is given what this node serves by, and which shard of that view it is
    /// to ask.
    ///
    /// # Errors
    /// [`Error`] where that is not so by the deadline, or a shard is lost.
    pub async fn ask_in_rounds<T>(
        &self,
        deadline: Deadline,
        mut ask: impl AsyncFnMut(&Serving, usize) -> Result<Option<T>, OrderError>,
    ) -> Result<T, Error> {
        self.refuse_if_claimed()?;
        self.wait_for_first_round(deadline).await;
        let unavailable = |reason| Error::Unavailable { reason, applied: Applied::No };
        let (mut pause, mut failures) = (FIRST_PAUSE, 0);
        loop {
            let serving_state = self.serving_state();
            let serving = serving_state.serving().map_err(|error| unavailable(error.to_string()))?;
            let version = serving.state.version;
            let mut reason = "a range was on its way from one shard to another all the time".to_owned();
            for (index, shard) in serving.state.view.shards.iter().enumerate() {
                match ask(serving, index).await {
                    Ok(Some(wanted)) => return Ok(wanted),
                    Ok(None) => {}
                    Err(OrderError::NotKnown(reason)) => return Err(Error::Overloaded(reason)),
                    Err(error) => {
                        failures += u32::from(is_failure(shard, &error));
                        reason = format!("shard {}: {error}", shard.id);
                        if failures >= FAILURES && self.state().is_none_or(|now| now.version <= version) {
                            return Err(unavailable(format!("{reason}; {}", advice(shard))));
                        }
                    }
                }
            }
            if deadline.is_over() {
                return Err(unavailable(reason));
            }
            self.wait_for_news(version, pause.min(deadline.left())).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}

/// Whether a shard is not reached that only one node has.
fn is_failure(shard: &view::Shard, error: &OrderError) -> bool {
    let is_unreached =
        matches!(error, OrderError::NotSent(_) | OrderError::NotReached(_) | OrderError::Gone(_));
    shard.replicas.len() == 1 && is_unreached
}
