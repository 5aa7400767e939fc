//! Listings: what of a span of keys there is, in the order of the keys, over all shards.
//!
//! A page is put together from what the leader of each shard tells of the ranges that it serves at that moment. Every point of the space is asked for until
//! somebody has told what was there, and nobody is asked again for what was told: so what was there all along is listed once, also where a range goes from one
//! shard to another between two questions, and what is told was there when it was.

use std::mem;
use std::time::Duration;

use super::ask::OrderError;
use super::forwarded::NotMeant;
use super::host::Pending;
use super::keys::{Operation, Request};
use super::rounds::Unanswered;
use super::state::Node;
use crate::clock::{Deadline, ticks_ms};
use crate::error::Error;
use crate::model::address::Address;
use crate::model::condition::TagSpace;
use crate::model::meta::MetaState;
use crate::model::range::HashRange;
use crate::model::shard::{Done, Served, Shard, WriteOutcome, intersection, subtract_all};
use crate::model::store::{ListLimit, ListedPair, Span};
use crate::model::ttl::Ttl;
use crate::model::view;
use crate::wire::Addressed;
use crate::wire::listing::{Entry, Page, Question, Wanted};

/// What a shard tells at one time: its writers wait for so long.
const PAGE_PAIRS: usize = 2048;
const PAGE_BYTES: usize = 256 << 10;
/// It looks at so many pairs for that at most.
const PAGE_LOOKS: usize = 4096;
/// A longer value is no part of a page: it is read by itself.
pub const LONGEST_LISTED: usize = 64 << 10;
/// Who leads a shard is looked for again after this where it may be this node by now.
const LEADER_PAUSE: Duration = Duration::from_millis(5);

/// Some of the pairs of a span.
pub struct Chunk {
    /// The pairs, in the order of their keys. Long values are missing.
    pub entries: Vec<Entry>,
    /// Up to and with this key there are no others; to the end of the span where there is none.
    pub through: Option<Box<[u8]>>,
    /// What their tags begin with.
    pub tags: TagSpace,
}

/// What came of deleting the pairs of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// How many were deleted.
    pub count: u64,
    /// Whether there may be more of them.
    pub has_more: bool,
}

/// The side of whoever is asked for a listing.
impl Node {
    /// Lists the first pairs of a span, mostly as many as are wanted where there are so many. It may be none, and there may be more of them all the same.
    ///
    /// # Errors
    /// [`Error`] where nobody tells of some range until the deadline.
    pub async fn list(
        &self,
        span: &Span,
        most: usize,
        has_values: bool,
        deadline: Deadline,
    ) -> Result<Chunk, Error> {
        let shards = self.serving_state().serving().map_or(1, |serving| serving.state.view.shards.len());
        // Keys are spread evenly, so each shard has some of the first ones; a few more than that, so that none ends much before the others.
        let share = if shards > 1 { most / shards + most / 8 + 16 } else { most };
        let wanted = Wanted::Pairs { pairs: share.clamp(1, PAGE_PAIRS), bytes: PAGE_BYTES, has_values };
        let (pages, tags) = self.cover(span, vec![HashRange::all()], wanted, deadline).await?;
        let (entries, through) = merged(pages, most);
        Ok(Chunk { entries, through, tags })
    }

    /// Counts the pairs of a span.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn count_listed(&self, span: &Span, deadline: Deadline) -> Result<u64, Error> {
        let (mut count, mut left) = (0, vec![(span.clone(), vec![HashRange::all()])]);
        while let Some((span, ranges)) = left.pop() {
            for page in self.cover(&span, ranges, Wanted::Count, deadline).await?.0 {
                count += page.count;
                left.extend(page.through.map(|through| (span.after(&through), page.ranges)));
            }
        }
        Ok(count)
    }

    /// Deletes the pairs of a span, one by one, until one deadline; what is under way then may take until the other.
    ///
    /// # Errors
    /// [`Error`], with which nothing was deleted but what the error is about.
    pub async fn delete_listed(
        &self,
        span: &Span,
        until: Deadline,
        deadline: Deadline,
    ) -> Result<Deleted, Error> {
        let (mut count, mut left) = (0, Some(span.clone()));
        while let Some(span) = left {
            let deleted = self.delete_some(&span, until, deadline, &mut count).await;
            match deleted {
                Ok(more) => left = more,
                Err(error) if count == 0 => return Err(error),
                // What was deleted is told, and that it was not all.
                Err(_) => return Ok(Deleted { count, has_more: true }),
            }
            if until.is_over() && left.is_some() {
                return Ok(Deleted { count, has_more: true });
            }
        }
        Ok(Deleted { count, has_more: false })
    }

    /// Deletes the first pairs of a span: what is left of it.
    async fn delete_some(
        &self,
        span: &Span,
        until: Deadline,
        deadline: Deadline,
        count: &mut u64,
    ) -> Result<Option<Span>, Error> {
        let chunk = self.list(span, PAGE_PAIRS, false, deadline).await?;
        let mut before = None;
        for entry in &chunk.entries {
            if until.is_over() {
                return Ok(Some(before.map_or_else(|| span.clone(), |key: &[u8]| span.after(key))));
            }
            let mut request = Request::new(&entry.key, Operation::DELETE, None, deadline);
            let outcome = self.run(&mut request, None).await?;
            let is_gone =
                matches!(outcome.done, Done::Wrote(written) if written.outcome == WriteOutcome::Deleted);
            *count += u64::from(is_gone);
            before = Some(&entry.key);
        }
        Ok(chunk.through.map(|through| span.after(&through)))
    }

    /// Asks until each point of some ranges was told of once.
    async fn cover(
        &self,
        span: &Span,
        mut left: Vec<HashRange>,
        wanted: Wanted,
        deadline: Deadline,
    ) -> Result<(Vec<Page>, TagSpace), Error> {
        let mut pages = Vec::new();
        self.ask_in_rounds(deadline, async |serving| {
            let (own, questions) = self.questions(&serving.state, span, &left, wanted);
            let ask = |number: usize| -> Pending<'_, _> {
                Box::pin(self.page(&serving.state, &questions[number].1, deadline))
            };
            let mut unanswered = Unanswered::new();
            let answers = self.ask_each((own, questions.len()), ask).await;
            for (answer, (index, _)) in answers.into_iter().zip(&questions) {
                match answer {
                    Ok(page) => {
                        left = subtract_all(mem::take(&mut left), &page.ranges);
                        pages.push(page);
                    }
                    Err(error) => unanswered.push((*index, error)),
                }
            }
            if left.is_empty() { Ok((mem::take(&mut pages), serving.tags)) } else { Err(unanswered) }
        })
        .await
    }

    /// What each shard is asked that has some of the ranges, by its place in the view: first those that this node leads, and how many these are.
    fn questions(
        &self,
        state: &MetaState,
        span: &Span,
        left: &[HashRange],
        wanted: Wanted,
    ) -> (usize, Vec<(usize, Question)>) {
        let question = |(index, shard): (usize, &view::Shard)| {
            let ranges = common(state.view.ranges(index), left);
            let question = Question { group: shard.group, ranges, span: span.clone(), wanted };
            (!question.ranges.is_empty()).then_some((index, question))
        };
        let questions: Vec<_> = state.view.shards.iter().enumerate().filter_map(question).collect();
        let is_own = |(_, question): &(usize, Question)| self.answers_for(question.group);
        let (mut own, others): (Vec<_>, Vec<_>) = questions.into_iter().partition(is_own);
        let count = own.len();
        own.extend(others);
        (count, own)
    }

    /// What the leader of a shard tells.
    pub(super) async fn page(
        &self,
        state: &MetaState,
        question: &Question,
        deadline: Deadline,
    ) -> Result<Page, OrderError> {
        loop {
            if let Some(own) = self.shard_of(question.group)
                && self.leads(&own).is_ok()
            {
                match self.page_here(&own, question, deadline).await {
                    Err(OrderError::NotLeader(..)) => {}
                    page => return page,
                }
            }
            let ask = async |node: &Address, start| {
                self.host.page(self, (node, &self.addressed(start)), question, deadline).await
            };
            match self.ask_leader(state, question.group, deadline, ask).await {
                // It may be this node now, or was until now.
                Err(OrderError::NotLeader(..)) if !deadline.is_over() => {
                    self.wait_for_any_news(LEADER_PAUSE.min(deadline.left())).await;
                    if self.state().is_some_and(|now| now.version > state.version) {
                        return Err(OrderError::Refused("the view was changed meanwhile".to_owned()));
                    }
                }
                answer => return answer,
            }
        }
    }
}

/// The first pairs of some pages in the order of their keys, and the key up to which there are no others, where one of the pages ends before its span.
fn merged(pages: Vec<Page>, most: usize) -> (Vec<Entry>, Option<Box<[u8]>>) {
    let mut through = pages.iter().filter_map(|page| page.through.clone()).min();
    let is_told = |entry: &Entry| through.as_ref().is_none_or(|through| entry.key <= *through);
    let mut entries: Vec<Entry> = pages.into_iter().flat_map(|page| page.entries).filter(is_told).collect();
    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    if entries.len() > most {
        entries.truncate(most);
        through = entries.last().map(|last| last.key.clone());
    }
    (entries, through)
}

/// What the ranges of a shard have in common with others.
pub(super) fn common(own: impl Iterator<Item = HashRange>, others: &[HashRange]) -> Vec<HashRange> {
    own.flat_map(|own| others.iter().filter_map(move |other| intersection(&own, other))).collect()
}

/// The side of a shard's leader.
impl Node {
    /// What this node tells another one.
    ///
    /// # Errors
    /// [`OrderError`] where it does not lead the shard, or another start of it is meant.
    pub async fn page_for(
        &self,
        addressed: Option<&Addressed>,
        question: &Question,
        deadline: Deadline,
    ) -> Result<Page, OrderError> {
        self.check_addressed(addressed).map_err(|error| match error {
            NotMeant::Gone(reason) => OrderError::Gone(reason),
            NotMeant::NotYet(reason) | NotMeant::Unclear(reason) => OrderError::Refused(reason),
        })?;
        let shard = self.shard_of(question.group).ok_or_else(|| {
            let reason = format!("{} holds no replica of group {}", self.address, question.group);
            OrderError::NotLeader(None, reason)
        })?;
        self.leads(&shard)?;
        self.page_here(&shard, question, deadline).await
    }

    async fn page_here(
        &self,
        shard: &Shard,
        question: &Question,
        deadline: Deadline,
    ) -> Result<Page, OrderError> {
        self.count_operation();
        self.confirm(shard, deadline).await?;
        let Question { ranges, span, .. } = question;
        Ok(match question.wanted {
            Wanted::Count => {
                let Served { ranges, found: (count, through) } = shard.count_in(ranges, span, PAGE_LOOKS);
                Page { ranges, count, through, ..Page::default() }
            }
            Wanted::Moment { id, told } => self.moment_here(shard, question, (id, told))?,
            Wanted::Pairs { pairs, bytes, has_values } => {
                let (pairs, bytes) = (pairs.min(PAGE_PAIRS), bytes.min(PAGE_BYTES));
                let limit = ListLimit {
                    pairs,
                    bytes,
                    looks: PAGE_LOOKS,
                    longest: if has_values { LONGEST_LISTED } else { 0 },
                };
                let Served { ranges, found } = shard.list(ranges, span, limit);
                let time_ms = shard.time(ticks_ms());
                let entries = found.pairs.into_iter().map(|pair| entry(pair, time_ms)).collect();
                Page { ranges, entries, through: found.through, ..Page::default() }
            }
        })
    }
}

pub(super) fn entry(pair: ListedPair, time_ms: u64) -> Entry {
    Entry {
        left: pair.end_ms.map(|end_ms| Ttl::left(end_ms.saturating_sub(time_ms))),
        value: pair.value().map(<[u8]>::to_vec),
        version: pair.version,
        length: pair.length as u64,
        key: pair.key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with these keys, which ends with the last of them where the span goes on.
    fn page(keys: &str, goes_on: bool) -> Page {
        let key = |key: char| key.to_string().into_bytes().into_boxed_slice();
        let entry = |letter| Entry { key: key(letter), version: 1, length: 0, left: None, value: None };
        let through = keys.chars().next_back().filter(|_| goes_on).map(key);
        Page { entries: keys.chars().map(entry).collect(), through, ..Page::default() }
    }

    /// Pages, how many pairs are wanted, the keys of those that come, and up to where.
    type Row<'a> = (&'a [(&'a str, bool)], usize, &'a str, &'a str);

    #[test]
    fn pages_are_merged_up_to_where_the_first_of_them_ends() {
        let table: [Row; 7] = [
            (&[], 9, "", ""),
            (&[("ad", false), ("bc", false)], 9, "abcd", ""),
            (&[("adg", true), ("be", false), ("cfh", false)], 9, "abcdefg", "g"),
            (&[("adg", true), ("bc", true), ("ef", false)], 9, "abc", "c"),
            (&[("adg", true), ("bc", true), ("ef", false)], 2, "ab", "b"),
            (&[("adg", false), ("bc", false)], 4, "abcd", "d"),
            (&[("adg", false), ("bc", false)], 5, "abcdg", ""),
        ];
        for (pages, most, wanted, wanted_through) in table {
            let made = pages.iter().map(|(keys, goes_on)| page(keys, *goes_on)).collect();
            let (entries, through) = merged(made, most);
            let keys: Vec<u8> = entries.iter().flat_map(|entry| entry.key.to_vec()).collect();
            assert_eq!(String::from_utf8_lossy(&keys), wanted, "{pages:?}");
            assert_eq!(through.as_deref().unwrap_or_default(), wanted_through.as_bytes(), "{pages:?}");
        }
    }
}
