//! Asking the shards what they hold, for the planner.

use std::time::Duration;

use super::orders::Office;
use crate::model::address::Address;
use crate::model::plan::Census;
use crate::model::range::{HashRange, Point};
use crate::model::shard::CensusCount;
use crate::wire::Order;

/// A shard that does not answer within this time will not: a long one counts a million pairs in much less.
const CENSUS_TIMEOUT: Duration = Duration::from_secs(5);

/// The shards of a view, each by the node that holds it; nothing for one whose pairs are given up.
pub(super) struct Shards<'a> {
    pub(super) office: &'a Office,
    pub(super) change: u64,
    pub(super) holders: Vec<Option<(Address, u64)>>,
}

impl Shards<'_> {
    /// No more is asked.
    pub(super) fn close(&self) {
        for (node, instance) in self.holders.iter().flatten() {
            let order = Order::CloseCensus { change: self.change };
            if let Err(error) = self.office.order::<()>(node, *instance, &order, CENSUS_TIMEOUT) {
                log::debug!("the census was not closed: {error}");
            }
        }
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
        match &self.holders[shard] {
            None => Ok(ranges.into_iter().map(|range| vec![(range, 0)]).collect()),
            Some((node, instance)) => self
                .office
                .order(node, *instance, &Order::Pieces { ranges }, CENSUS_TIMEOUT)
                .map_err(|error| error.to_string()),
        }
    }
}

impl Census for Shards<'_> {
    type Error = String;

    fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, String> {
        let Some((node, instance)) = &self.holders[shard] else { return Ok(vec![0; ranges.len()]) };
        let order = Order::Census { change: self.change, ranges: ranges.to_vec() };
        let count: CensusCount =
            self.office.order(node, *instance, &order, CENSUS_TIMEOUT).map_err(|error| error.to_string())?;
        Ok(count.pairs)
    }

    fn places(&mut self, shard: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, String> {
        let Some((node, instance)) = &self.holders[shard] else {
            return Err("a shard whose pairs are given up has no places".to_owned());
        };
        let order = Order::Places { change: self.change, questions: questions.to_vec() };
        let places: Option<Vec<Point>> =
            self.office.order(node, *instance, &order, CENSUS_TIMEOUT).map_err(|error| error.to_string())?;
        places.ok_or_else(|| format!("{node}: too much has changed since the count"))
    }
}
