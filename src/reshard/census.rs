//! Asking the shards what they hold, for the planner.

use std::time::Duration;

use super::orders::Office;
use crate::model::meta::MetaState;
use crate::model::plan::Census;
use crate::model::range::{HashRange, Point};
use crate::model::shard::CensusCount;
use crate::wire::Order;

/// A shard that does not answer within this time will not: a long one counts a million pairs in much less.
const CENSUS_TIMEOUT: Duration = Duration::from_secs(5);

/// The shards of a view, each asked at its leader; nothing for one whose pairs are given up.
pub(super) struct Shards<'a> {
    pub(super) office: &'a Office,
    pub(super) state: &'a MetaState,
    pub(super) change: u64,
    pub(super) groups: Vec<Option<u64>>,
}

impl Shards<'_> {
    /// No more is asked.
    pub(super) fn close(&self) {
        for group in self.groups.iter().flatten() {
            let order = Order::CloseCensus { group: *group, change: self.change };
            if let Err(error) = self.ask::<()>(*group, &order) {
                log::debug!("the census was not closed: {error}");
            }
        }
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, group: u64, order: &Order) -> Result<T, String> {
        let answer = self.office.order_leader(self.state, group, order, CENSUS_TIMEOUT);
        answer.map_err(|error| error.to_string())
    }

    /// Cuts ranges of a shard into pieces, each with its pairs.
    ///
    /// # Errors
    /// When the shard does not tell.
    pub(super) fn pieces(
        &self,
        shard: usize,
        ranges: Vec<HashRange>,
    ) -> Result<Vec<Vec<(HashRange, u64)>>, String> {
        match self.groups[shard] {
            None => Ok(ranges.into_iter().map(|range| vec![(range, 0)]).collect()),
            Some(group) => self.ask(group, &Order::Pieces { group, ranges }),
        }
    }
}

impl Census for Shards<'_> {
    type Error = String;

    fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, String> {
        let Some(group) = self.groups[shard] else { return Ok(vec![0; ranges.len()]) };
        let order = Order::Census { group, change: self.change, ranges: ranges.to_vec() };
        self.ask::<CensusCount>(group, &order).map(|count| count.pairs)
    }

    fn places(&mut self, shard: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, String> {
        let Some(group) = self.groups[shard] else {
            return Err("a shard whose pairs are given up has no places".to_owned());
        };
        let order = Order::Places { group, change: self.change, questions: questions.to_vec() };
        let places = self.ask::<Option<Vec<Point>>>(group, &order)?;
        places.ok_or_else(|| format!("group {group}: too much has changed since the count"))
    }
}
