//! Exports: all pairs of a span, those of each shard as they were at one moment of it.
//!
//! One shard after the other begins, and is read to its end. What a shard has told of need not be told by another, also where a range goes from one to the other
//! between their moments; what none has told of is asked for once more.

use super::ask::OrderError;
use super::rounds::Unanswered;
use super::state::Node;
use crate::clock::{Deadline, ticks_ms};
use crate::dice;
use crate::error::{Applied, Error};
use crate::model::condition::TagSpace;
use crate::model::range::HashRange;
use crate::model::shard::{Shard, subtract_all};
use crate::model::store::{Copied, ListedPair, Span};
use crate::model::ttl::Parts;
use crate::model::value;
use crate::wire::listing::{Entry, Page, Question, Wanted};

/// An export under way.
pub struct Export {
    prefix: Box<[u8]>,
    /// The ranges of which no shard has told yet, or not to the end.
    left: Vec<HashRange>,
    /// The shard that tells.
    current: Option<Telling>,
}

/// A shard that tells what it had at its moment.
struct Telling {
    group: u64,
    id: u64,
    told: u64,
    ranges: Vec<HashRange>,
}

/// Some of the pairs, with their values.
pub struct Exported {
    /// The pairs.
    pub entries: Vec<Entry>,
    /// What their tags begin with.
    pub tags: TagSpace,
}

impl Export {
    /// One of all pairs whose keys begin so.
    pub fn new(prefix: Box<[u8]>) -> Self {
        Self { prefix, left: vec![HashRange::all()], current: None }
    }

    fn question(&self, telling: &Telling) -> Question {
        Question {
            group: telling.group,
            ranges: if telling.told == 0 { telling.ranges.clone() } else { Vec::new() },
            span: Span { prefix: self.prefix.clone(), after: None },
            wanted: Wanted::Moment { id: telling.id, told: telling.told },
        }
    }
}

/// The side of whoever is asked for an export.
impl Node {
    /// The next pairs; nothing at the end.
    ///
    /// # Errors
    /// [`Error`], with which the export is at its end, too.
    pub async fn export_some(
        &self,
        export: &mut Export,
        deadline: Deadline,
    ) -> Result<Option<Exported>, Error> {
        loop {
            let Some(telling) = export.current.take() else {
                if export.left.is_empty() {
                    return Ok(None);
                }
                let begun = self.begin_telling(export, deadline).await?;
                if let Some(exported) = begun {
                    return Ok(Some(exported));
                }
                continue;
            };
            let state = self.serving_state();
            let state = &state.serving()?.state;
            let page = self.page(state, &export.question(&telling), deadline).await;
            let page = page.map_err(|error| Error::Unavailable {
                reason: format!("what was there at the moment is not told any more: {error}"),
                applied: Applied::No,
            })?;
            if let Some(exported) = self.take(export, telling, page)? {
                return Ok(Some(exported));
            }
        }
    }

    /// Has the next shard begin.
    async fn begin_telling(
        &self,
        export: &mut Export,
        deadline: Deadline,
    ) -> Result<Option<Exported>, Error> {
        let begun = self.ask_in_rounds(deadline, async |serving| {
            let (state, mut unanswered) = (&serving.state, Unanswered::new());
            for (index, shard) in state.view.shards.iter().enumerate() {
                let ranges = super::listing::common(state.view.ranges(index), &export.left);
                if ranges.is_empty() {
                    continue;
                }
                let telling = Telling { group: shard.group, id: dice::draw(), told: 0, ranges };
                match self.page(state, &export.question(&telling), deadline).await {
                    Ok(page) if page.ranges.is_empty() => {}
                    Ok(page) => return Ok(self.take(export, telling, page)),
                    Err(error) => unanswered.push((index, error)),
                }
            }
            Err(unanswered)
        });
        begun.await?
    }

    /// Takes what a shard has told; nothing where it had none any more.
    fn take(&self, export: &mut Export, telling: Telling, page: Page) -> Result<Option<Exported>, Error> {
        let Telling { told, ranges, .. } = telling;
        let ranges = if told == 0 { page.ranges } else { ranges };
        if page.has_more {
            export.current = Some(Telling { told: told + 1, ranges, ..telling });
        } else {
            export.left = subtract_all(std::mem::take(&mut export.left), &ranges);
        }
        let tags = self.serving_state().serving()?.tags;
        Ok((!page.entries.is_empty()).then_some(Exported { entries: page.entries, tags }))
    }
}

/// The side of a shard's leader.
impl Node {
    /// The next pairs of a moment, which begins with the first of them.
    pub(super) fn moment_here(
        &self,
        shard: &Shard,
        question: &Question,
        (id, told): (u64, u64),
    ) -> Result<Page, OrderError> {
        let ranges = if told == 0 {
            shard.begin_export(id, &question.ranges, &question.span.prefix, ticks_ms())
        } else {
            Vec::new()
        };
        let pairs = shard.read_export(id, told, ticks_ms()).map_err(|_| {
            OrderError::Refused(format!("{} does not have what was there at the moment", self.address))
        })?;
        let (time_ms, has_more) = (shard.time(ticks_ms()), !pairs.is_empty());
        let entries = pairs.into_iter().map(|pair| super::listing::entry(listed(pair), time_ms)).collect();
        Ok(Page { ranges, entries, has_more, ..Page::default() })
    }

    /// Forgets the exports that nobody reads on.
    pub(super) fn forget_idle_exports(&self) {
        let serving_state = self.serving_state();
        let Ok(serving) = serving_state.serving() else { return };
        serving.own.iter().for_each(|(_, shard)| shard.forget_idle_exports(ticks_ms()));
    }
}

fn listed(pair: Copied) -> ListedPair {
    let Parts { end_ms, value } = Parts::of(pair.value.bytes());
    let length = value::length(value);
    ListedPair { key: pair.key, version: pair.version, end_ms, length, stored: Some(pair.value) }
}
