//! The named writes that this node has asked logs for and has not heard of yet.
//!
//! A write that is sent again under its name may find no room although it is in the log from the first time, and is done in a moment. So before it is said that nothing was done, it is
//! looked here. What the leaders before have left in a log is applied before a node leads.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::clock::ticks_ms;
use crate::consensus::{Answer, Refusal};
use crate::model::shard::RequestId;

/// What came of a write is not known, and it is still in the log of a group that this node leads on: for so long at most, as without a majority it leads no longer.
const UNCLEAR_MS: u64 = 60_000;
/// So many of those are known; beyond that the oldest are forgotten.
const MOST_UNCLEAR: usize = 10_000;

/// Which they are.
#[derive(Default)]
pub(super) struct UnderWay {
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Marks {
    /// How often each was asked for.
    asked: HashMap<u128, u32>,
    /// Those of which nothing more will be heard, and until when they count as asked for.
    unclear: VecDeque<(u64, u128)>,
}

/// Writes that a log is asked for.
pub(super) struct Asked {
    under_way: Arc<UnderWay>,
    ids: SmallVec<[u128; 1]>,
}

impl UnderWay {
    /// A log is about to be asked for writes under these ids.
    pub(super) fn begin(self: &Arc<Self>, requests: impl IntoIterator<Item = RequestId>) -> Asked {
        let name = |request| match request {
            RequestId::Timed { id, .. } => Some(id),
            // Who has passed it on knows himself what is unclear.
            RequestId::Numbered { .. } => None,
        };
        let ids: SmallVec<[u128; 1]> = requests.into_iter().filter_map(name).collect();
        if !ids.is_empty() {
            let mut marks = self.marks.lock();
            for id in &ids {
                *marks.asked.entry(*id).or_default() += 1;
            }
        }
        Asked { under_way: Arc::clone(self), ids }
    }

    /// Whether a log was asked for a write under this id and it is not known what came of it.
    pub(super) fn has(&self, id: u128) -> bool {
        let mut marks = self.marks.lock();
        marks.forget(ticks_ms());
        marks.asked.contains_key(&id)
    }
}

impl Asked {
    /// The log has answered, and what it did is remembered by the shard: what that comes to. Where it has refused one that it was asked for before and that is under way still, it is
    /// not known whether that is done.
    pub(super) fn end(self, answer: Answer) -> Answer {
        if self.ids.is_empty() {
            return answer;
        }
        let (now_ms, mut marks) = (ticks_ms(), self.under_way.marks.lock());
        for id in &self.ids {
            if matches!(answer, Answer::Unknown) {
                marks.unclear.push_back((now_ms + UNCLEAR_MS, *id));
            } else {
                marks.end(*id);
            }
        }
        marks.forget(now_ms);
        // Whoever leads by now knows what came of the others.
        let is_refused = matches!(
            answer,
            Answer::NotApplied(Refusal::Busy | Refusal::NotKnown { .. } | Refusal::NotHeard { .. })
        );
        let is_unclear = is_refused && self.ids.iter().any(|id| marks.asked.contains_key(id));
        if is_unclear { Answer::Unknown } else { answer }
    }
}

impl Marks {
    fn end(&mut self, id: u128) {
        if let Some(count) = self.asked.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.asked.remove(&id);
            }
        }
    }

    fn forget(&mut self, now_ms: u64) {
        while let Some((until_ms, id)) = self.unclear.front().copied()
            && (until_ms <= now_ms || self.unclear.len() > MOST_UNCLEAR)
        {
            self.unclear.pop_front();
            self.end(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: u128) -> RequestId {
        RequestId::Timed { id, fingerprint: 0 }
    }

    #[test]
    fn a_named_write_is_under_way_until_it_is_known_what_came_of_it() {
        let under_way = Arc::new(UnderWay::default());
        let numbered = RequestId::Numbered { start: 7, number: 7, lowest: 7 };
        let (one, both) = (under_way.begin([named(1)]), under_way.begin([named(1), numbered, named(2)]));
        assert_eq!([1, 2, 7].map(|id| under_way.has(id)), [true, true, false]);
        assert_eq!(one.end(Answer::NotApplied(Refusal::Busy)), Answer::Unknown, "it may be done");
        assert_eq!([1, 2].map(|id| under_way.has(id)), [true, true], "it was asked for twice");
        let refused = || Answer::NotApplied(Refusal::Busy);
        assert_eq!(under_way.begin([named(3)]).end(refused()), refused());
        let elsewhere = || Answer::NotApplied(Refusal::NotLeader { leader: Some(1) });
        assert_eq!(under_way.begin([named(1)]).end(elsewhere()), elsewhere());
        both.end(refused());
        assert_eq!([1, 2].map(|id| under_way.has(id)), [false, false]);
    }

    #[test]
    fn what_is_unclear_stays_under_way_for_a_time() {
        let under_way = Arc::new(UnderWay::default());
        under_way.begin([named(1)]).end(Answer::Unknown);
        assert!(under_way.has(1));
        under_way.marks.lock().forget(ticks_ms() + 2 * UNCLEAR_MS);
        assert!(!under_way.has(1));
        for id in 0..=MOST_UNCLEAR as u128 {
            under_way.begin([named(id)]).end(Answer::Unknown);
        }
        assert_eq!([0, 1].map(|id| under_way.has(id)), [false, true], "the oldest is forgotten");
    }
}
