//! The k-th key of a range.

use std::collections::HashSet;

use super::map::Store;
use super::parts::Part;
use super::stripe::Stripe;
use crate::model::changes::{Change, Changes};
use crate::model::hash::KeyHash;
use crate::model::range::{HashRange, Point};

impl Store {
    /// For each question (range, rank) the key that had `rank` keys of the range before it at the moment from which
    /// the changes were noted. The questions ascend, by range and then by rank; equal ones are allowed.
    ///
    /// None where there is no such key, or the ranks of a range do not ascend. The changes must fit the map: as long as
    /// it is asked, writers of these ranges must be held back, or one that stands between its change and its
    /// note shifts the ranks after it by one.
    pub fn places(&self, questions: &[(HashRange, u64)], since: &Changes) -> Option<Vec<Point>> {
        let mut places = Vec::with_capacity(questions.len());
        for questions in questions.chunk_by(|(a, _), (b, _)| a == b) {
            self.places_in(&questions[0].0, questions, since, &mut places)?;
        }
        Some(places)
    }

    /// The places in one range; each stripe of it is looked at once at most.
    fn places_in(
        &self,
        range: &HashRange,
        questions: &[(HashRange, u64)],
        since: &Changes,
        places: &mut Vec<Point>,
    ) -> Option<()> {
        let mut ranks = questions.iter().map(|(_, rank)| *rank).peekable();
        let mut before = 0;
        for part in self.parts(range) {
            let Some(&next) = ranks.peek() else { break };
            let space = part.space(range);
            let changes: Vec<_> = since.within(&space).collect();
            let stripe = part.stripe.read();
            let held = count_then(&stripe, &part, &changes);
            if next < before + held {
                let keys = keys_then(&stripe, &part, &changes);
                while let Some(rank) = ranks.next_if(|rank| *rank < before + held) {
                    let index = usize::try_from(rank.checked_sub(before)?).ok()?;
                    let (hash, key) = keys.get(index)?;
                    places.push(Point::of(*hash, key));
                }
            }
            before += held;
        }
        ranks.next().is_none().then_some(())
    }
}

/// How many keys a part of a stripe had before the changes in it.
fn count_then(stripe: &Stripe, part: &Part, changes: &[(&Point, Change)]) -> u64 {
    let deleted = changes.iter().filter(|(_, change)| *change == Change::Deleted).count();
    let created = changes.len() - deleted;
    (stripe.size(part.within).pairs + deleted as u64).saturating_sub(created as u64)
}

/// The keys of a part of a stripe before the changes in it, in order.
fn keys_then<'a>(
    stripe: &'a Stripe,
    part: &Part,
    changes: &[(&'a Point, Change)],
) -> Vec<(KeyHash, &'a [u8])> {
    let touched: HashSet<&[u8]> = changes.iter().map(|(point, _)| &*point.key).collect();
    let now =
        stripe.entries(part.within).into_iter().map(|entry| (entry.hash, stripe.record(entry.slot).key));
    let deleted = changes.iter().filter(|(_, change)| *change == Change::Deleted);
    let mut keys: Vec<_> = now
        .filter(|(_, key)| !touched.contains(key))
        .chain(deleted.map(|(point, _)| (KeyHash(point.hash), &*point.key)))
        .collect();
    keys.sort_unstable();
    keys
}
