//! Whether ranges together are the whole space, each point of it once.

use std::collections::{BTreeMap, BTreeSet};

use super::range::{HashRange, Point};

/// The parts of the space that do not have exactly one owner, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Those that have none.
    pub missing: Vec<HashRange>,
    /// Those that have several, and which.
    pub doubled: Vec<(HashRange, Vec<u32>)>,
}

impl Coverage {
    /// Of ranges and their owners. One owner's ranges do not overlap.
    pub fn of<'a>(owned: impl IntoIterator<Item = (u32, &'a HashRange)>) -> Self {
        // What begins and what ends at each point.
        let mut cuts: BTreeMap<&Point, (Vec<u32>, Vec<u32>)> = BTreeMap::new();
        for (owner, range) in owned {
            cuts.entry(&range.from).or_default().0.push(owner);
            if let Some(to) = &range.to {
                cuts.entry(to).or_default().1.push(owner);
            }
        }
        let (mut coverage, mut owners, mut from) = (Self::default(), BTreeSet::new(), Point::start());
        for (cut, (begin, end)) in cuts {
            if *cut > from {
                coverage.add(HashRange { from, to: Some(cut.clone()) }, &owners);
                from = cut.clone();
            }
            owners.retain(|owner| !end.contains(owner));
            owners.extend(begin);
        }
        coverage.add(HashRange { from, to: None }, &owners);
        coverage
    }

    /// Whether every point has exactly one owner.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.doubled.is_empty()
    }

    fn add(&mut self, range: HashRange, owners: &BTreeSet<u32>) {
        let follows = |last: &&mut HashRange| last.to.as_ref() == Some(&range.from);
        if owners.is_empty() {
            match self.missing.last_mut().filter(follows) {
                Some(last) => last.to = range.to,
                None => self.missing.push(range),
            }
        } else if owners.len() > 1 {
            let owners: Vec<u32> = owners.iter().copied().collect();
            match self
                .doubled
                .last_mut()
                .filter(|(last, same)| last.to.as_ref() == Some(&range.from) && *same == owners)
            {
                Some((last, _)) => last.to = range.to,
                None => self.doubled.push((range, owners)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A place in a space of 24; the last is its end.
    fn range(from: u8, to: u8) -> HashRange {
        let place = |number: u8| Point::before_hash(u128::from(number) << 120);
        HashRange { from: place(from), to: (to < 24).then(|| place(to)) }
    }

    fn check(owned: &[(u32, u8, u8)], missing: &[(u8, u8)], doubled: &[(u8, u8, &[u32])]) {
        let ranges: Vec<_> = owned.iter().map(|(owner, from, to)| (*owner, range(*from, *to))).collect();
        let found = Coverage::of(ranges.iter().map(|(owner, range)| (*owner, range)));
        let missing = missing.iter().map(|(from, to)| range(*from, *to)).collect();
        let doubled = doubled.iter().map(|(from, to, owners)| (range(*from, *to), owners.to_vec())).collect();
        assert_eq!(found, Coverage { missing, doubled }, "{owned:?}");
    }

    #[test]
    fn what_has_no_owner_and_what_has_several_is_said() {
        check(&[(1, 0, 24)], &[], &[]);
        check(&[(2, 12, 24), (1, 0, 12)], &[], &[]);
        check(&[], &[(0, 24)], &[]);
        check(&[(1, 3, 5), (2, 7, 24)], &[(0, 3), (5, 7)], &[]);
        check(&[(1, 0, 12), (2, 8, 24)], &[], &[(8, 12, &[1, 2])]);
        check(
            &[(1, 0, 24), (2, 4, 8), (3, 6, 10)],
            &[],
            &[(4, 6, &[1, 2]), (6, 8, &[1, 2, 3]), (8, 10, &[1, 3])],
        );
        // Neighbours of one owner are one.
        check(&[(1, 0, 6), (1, 6, 12), (2, 3, 9), (3, 12, 24)], &[], &[(3, 9, &[1, 2])]);
    }

    proptest! {
        #[test]
        fn every_point_is_missing_or_doubled_or_owned_once(
            owned in prop::collection::vec((0_u32..6, 0_u8..24, 1_u8..25), 0..8)
        ) {
            let mut kept: Vec<(u32, HashRange)> = Vec::new();
            let mut points: [BTreeSet<u32>; 24] = Default::default();
            for (owner, from, to) in owned {
                let some = usize::from(from)..usize::from(to);
                if from < to && !points[some.clone()].iter().any(|owners| owners.contains(&owner)) {
                    points[some].iter_mut().for_each(|owners| owners.extend([owner]));
                    kept.push((owner, range(from, to)));
                }
            }
            let found = Coverage::of(kept.iter().map(|(owner, range)| (*owner, range)));
            prop_assert_eq!(found.is_whole(), points.iter().all(|owners| owners.len() == 1));
            for (number, owners) in (0_u8..).zip(points) {
                let at = range(number, number + 1).from;
                let has = |range: &HashRange| range.from <= at && range.to.as_ref().is_none_or(|to| at < *to);
                let owners: Vec<u32> = owners.into_iter().collect();
                let doubled = found.doubled.iter().find(|(range, _)| has(range)).map(|(_, owners)| owners);
                prop_assert_eq!(found.missing.iter().any(has), owners.is_empty());
                prop_assert_eq!(doubled, Some(&owners).filter(|owners| owners.len() > 1));
            }
        }
    }
}
