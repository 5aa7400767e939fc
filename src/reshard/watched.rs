//! What was done last to the pairs of a shard, asked of whoever leads it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::controller::Controller;
use crate::clock::Deadline;
use crate::error::Error;
use crate::model::binary::Reader;
use crate::model::condition::TagSpace;
use crate::model::cursor::Cursor;
use crate::model::history::Page;
use crate::model::meta::MetaState;
use crate::model::shard::{Shard, ShardCommand};
use crate::node::ask::OrderError;
use crate::node::host::Pending;
use crate::node::rounds::Unanswered;
use crate::node::state::Node;
use crate::wire::orders;

/// A page has so many bytes of changes, or one longer change.
const PAGE_BYTES: usize = 256 << 10;
/// A shard that does not answer within this time is asked again, where all have to answer.
const ASKED_FOR: Duration = Duration::from_secs(1);

/// What was done beyond a cursor to the pairs of a shard that this node leads. Where that is not kept yet it is from now on.
///
/// # Errors
/// [`OrderError`].
pub(super) async fn changes(
    node: &Node,
    shard: &Shard,
    cursor: &str,
    deadline: Deadline,
) -> Result<String, OrderError> {
    let bytes = STANDARD.decode(cursor).unwrap_or_default();
    let cursor = Cursor::decode(&mut Reader::new(&bytes))
        .map_err(|_| OrderError::Refused("a cursor that cannot be read".to_owned()))?;
    let mut page = shard.changes_since(&cursor, PAGE_BYTES);
    if page.is_none() {
        node.apply(shard, &ShardCommand::KeepHistory, deadline).await?;
        page = shard.changes_since(&cursor, PAGE_BYTES);
    }
    let page = page.ok_or_else(|| OrderError::Refused("what is done is not kept yet".to_owned()))?;
    let mut out = Vec::new();
    page.encode(&mut out);
    Ok(STANDARD.encode(out))
}

impl Controller {
    /// What was done beyond a cursor to the pairs of a shard, asked of whoever leads it.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn changes(
        &self,
        state: &MetaState,
        group: u64,
        cursor: &Cursor,
        timeout: Duration,
    ) -> Result<Page, OrderError> {
        let mut bytes = Vec::new();
        cursor.encode(&mut bytes);
        let asked = orders::Changes { group, cursor: STANDARD.encode(bytes) };
        let answer = self.order_leader(state, group, &asked, timeout).await?;
        let page = STANDARD.decode(answer).ok().and_then(|bytes| Page::decode(&bytes).ok());
        page.ok_or_else(|| OrderError::NotReached("the answer is no page of changes".to_owned()))
    }

    /// A cursor of now, as text: whoever watches from there on is told all that is done from now on.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where a part of the keys is served by no shard until the deadline.
    pub async fn cursor_of_now(&self, deadline: Deadline) -> Result<String, Error> {
        let (asked, mut cursor) = (Cursor::everywhere(Cursor::NOW), Cursor::everywhere(Cursor::NOW));
        let found = self.node.ask_in_rounds(deadline, async |serving| {
            let state = &serving.state;
            let all = state.view.shards.iter().map(|shard| shard.group).enumerate();
            let is_own = |(_, group): &(usize, u64)| self.node.answers_for(*group);
            let (mut shards, others): (Vec<_>, Vec<_>) = all.partition(is_own);
            let own = shards.len();
            shards.extend(others);
            let ask = |number: usize| -> Pending<'_, _> {
                Box::pin(self.changes(state, shards[number].1, &asked, ASKED_FOR.min(deadline.left())))
            };
            let mut unanswered = Unanswered::new();
            let answers = self.node.ask_each((own, shards.len()), ask).await;
            for (answer, (index, _)) in answers.into_iter().zip(&shards) {
                match answer {
                    // Nothing is beyond what was asked for: it only says where each part is.
                    Ok(page) => page.advance(&mut cursor, state.hash_key, |_, _, _| ()),
                    Err(error) => unanswered.push((*index, error)),
                }
            }
            if cursor.is_settled() {
                Ok(cursor.text(TagSpace::of(&state.cluster).number()))
            } else {
                Err(unanswered)
            }
        });
        found.await
    }
}
