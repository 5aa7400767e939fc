//! The pairs of some ranges in the byte order of their keys, a page at one time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;

use parking_lot::RwLock;

use super::map::Store;
use super::scan::Value;
use super::stripe::{Slot, Stripe};
use crate::model::pages::Record;
use crate::model::range::HashRange;
use crate::model::ttl::Parts;
use crate::model::value;

/// Which keys are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span {
    /// What they begin with.
    pub prefix: Box<[u8]>,
    /// They come after this one, where one is named.
    pub after: Option<Box<[u8]>>,
}

/// How much is listed at one time. One pair always is, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListLimit {
    /// The most pairs.
    pub pairs: usize,
    /// The most bytes of keys and of values that are listed.
    pub bytes: usize,
    /// After so many pairs that were looked at it ends, whether they are listed or not.
    pub looks: usize,
    /// Values are listed where what is stored has so many bytes at most.
    pub longest: usize,
}

impl ListLimit {
    /// How many bytes are listed of what is stored.
    fn listed(&self, stored: &[u8]) -> Option<usize> {
        (stored.len() <= self.longest).then_some(stored.len())
    }
}

/// A pair as it is listed.
pub struct ListedPair {
    /// The key.
    pub key: Box<[u8]>,
    /// The version.
    pub version: u64,
    /// Its end by the group's time, if it has one.
    pub end_ms: Option<u64>,
    /// How many bytes the value has, without its type.
    pub length: usize,
    /// What is stored of it, where it is listed.
    pub stored: Option<Value>,
}

impl ListedPair {
    /// The value as [`value`](crate::model::value) stores it, where it is listed.
    pub fn value(&self) -> Option<&[u8]> {
        self.stored.as_ref().map(|stored| Parts::of(stored.bytes()).value)
    }
}

/// A page of a listing.
#[derive(Default)]
pub struct Listed {
    /// The pairs, in the order of their keys.
    pub pairs: Vec<ListedPair>,
    /// Up to and with this key all are listed; to the end of the span where there is none.
    pub through: Option<Box<[u8]>>,
}

impl Span {
    /// What comes after a key.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> Self {
        Self { prefix: self.prefix.clone(), after: Some(key.into()) }
    }

    /// The first key that may be in it.
    fn start(&self) -> Bound<&[u8]> {
        match &self.after {
            Some(after) if **after >= *self.prefix => Bound::Excluded(after),
            _ => Bound::Included(&self.prefix),
        }
    }
}

impl Store {
    /// Lists the pairs of some ranges, which do not overlap, from the first key of a span on. For as long as that takes the writers of their stripes wait.
    pub fn list(&self, ranges: &[HashRange], span: &Span, limit: ListLimit) -> Listed {
        let mut listed = Listed::default();
        let mut bytes = 0;
        self.walk(ranges, span, |stripe, slot, is_listed, looked| {
            let record = stripe.record(slot);
            if is_listed {
                let with_it = record.key.len() + limit.listed(record.value).unwrap_or(0);
                let is_full = listed.pairs.len() >= limit.pairs || bytes + with_it > limit.bytes;
                if is_full && !listed.pairs.is_empty() {
                    listed.through = listed.pairs.last().map(|last| last.key.clone());
                    return false;
                }
                bytes += with_it;
                listed.pairs.push(self::listed(stripe, slot, limit));
            }
            if looked >= limit.looks {
                listed.through = Some(record.key.into());
            }
            looked < limit.looks
        });
        listed
    }

    /// How many pairs of some ranges, which do not overlap, come from the first key of a span on, up to so many looks; and up to and with which key that is, where it is not all
    /// of them.
    pub fn count(&self, ranges: &[HashRange], span: &Span, looks: usize) -> (u64, Option<Box<[u8]>>) {
        let (mut count, mut through) = (0, None);
        if span.prefix.is_empty() && span.after.is_none() {
            return (ranges.iter().map(|range| self.size_of(range).pairs).sum(), None);
        }
        self.walk(ranges, span, |stripe, slot, is_listed, looked| {
            count += u64::from(is_listed);
            if looked >= looks {
                through = Some(stripe.record(slot).key.into());
            }
            looked < looks
        });
        (count, through)
    }

    /// Hands on the pairs of a span in the order of their keys, each with whether it is in one of the ranges, and how many there were with it; until it is told to end.
    fn walk(
        &self,
        ranges: &[HashRange],
        span: &Span,
        mut take: impl FnMut(&Stripe, Slot<'_>, bool, usize) -> bool,
    ) {
        // Two ranges may meet in one stripe, which is locked once only: a writer may wait for it.
        let mut parts: BTreeMap<usize, (&RwLock<Stripe>, Vec<&HashRange>)> = BTreeMap::new();
        for range in ranges {
            for (number, part) in self.stripes_of(range).zip(self.parts(range)) {
                // Nothing is looked for in a stripe of which all is listed.
                let within = &mut parts.entry(number).or_insert((part.stripe, Vec::new())).1;
                within.extend(part.within);
            }
        }
        let stripes: Vec<_> = parts.into_values().map(|(stripe, within)| (stripe.read(), within)).collect();
        let mut pairs: Vec<_> = stripes.iter().map(|(stripe, _)| stripe.ordered(span.start())).collect();
        let mut heads: Vec<_> = pairs.iter_mut().map(Iterator::next).collect();
        let head_of = |(part, slot): (usize, &Option<_>)| Some(head(&stripes[part].0, (*slot)?, part));
        let mut next: BinaryHeap<_> = heads.iter().enumerate().filter_map(head_of).collect();
        let mut looked = 0;
        while let Some(Reverse((key, part))) = next.pop()
            && key.starts_with(&span.prefix)
            && let Some(slot) = heads[part]
        {
            let (stripe, within) = &stripes[part];
            let hash = || self.hash_key().hash(key);
            let is_listed = within.is_empty() || within.iter().any(|range| range.contains(hash(), key));
            looked += 1;
            if !take(stripe, slot, is_listed, looked) {
                break;
            }
            heads[part] = pairs[part].next();
            next.extend(heads[part].map(|slot| head(stripe, slot, part)));
        }
    }
}

/// The next key of a part: the first of all parts comes first.
fn head<'a>(stripe: &'a Stripe, slot: Slot<'a>, part: usize) -> Reverse<(&'a [u8], usize)> {
    Reverse((stripe.record(slot).key, part))
}

fn listed(stripe: &Stripe, slot: Slot<'_>, limit: ListLimit) -> ListedPair {
    let Record { version, key, value: stored } = stripe.record(slot);
    let Parts { end_ms, value } = Parts::of(stored);
    let kept = limit.listed(stored).map(|_| match slot {
        Slot::Small(_) => Value::Small(stored.into()),
        Slot::Large(pair) => Value::Large(pair.clone()),
    });
    ListedPair { key: key.into(), version, end_ms, length: value::length(value), stored: kept }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::trial::{Trial, range, step};
    use super::*;

    fn key() -> impl Strategy<Value = Box<[u8]>> {
        (select(&[0_u8, 1, 2, 0x80, 0xff][..]), select(&["", "a", "ab", "b", "\u{1}"][..]))
            .prop_map(|(first, rest)| [&[first], rest.as_bytes()].concat().into())
    }

    fn span() -> impl Strategy<Value = Span> {
        (prop::option::of(key()), prop::option::of(key()))
            .prop_map(|(prefix, after)| Span { prefix: prefix.unwrap_or_default(), after })
    }

    fn limit() -> impl Strategy<Value = ListLimit> {
        let few = || prop_oneof![1_usize..6, Just(usize::MAX)];
        let longest = select(&[0_usize, 5, 1000, usize::MAX][..]);
        (few(), prop_oneof![0_usize..5000, Just(usize::MAX)], few(), longest)
            .prop_map(|(pairs, bytes, looks, longest)| ListLimit { pairs, bytes, looks, longest })
    }

    /// One range, or two that are apart.
    fn ranges() -> impl Strategy<Value = Vec<HashRange>> {
        (range(), prop::option::of(range())).prop_map(|(first, second)| {
            let is_apart = |second: &HashRange| first.to.as_ref().is_some_and(|to| *to <= second.from);
            let second = second.filter(is_apart);
            [Some(first.clone()), second].into_iter().flatten().collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn pages_are_those_of_an_ordered_map(
            steps in prop::collection::vec(step(), 0..60),
            questions in prop::collection::vec((ranges(), span(), limit()), 1..8),
        ) {
            let mut trial = Trial::new();
            for step in steps {
                trial.take(step);
            }
            for (ranges, span, limit) in questions {
                let is_in_span = |key: &[u8]| {
                    key.starts_with(&span.prefix) && span.after.as_ref().is_none_or(|after| *key > **after)
                };
                let held = ranges.iter().flat_map(|range| trial.now.within(range));
                let wanted: BTreeMap<Vec<u8>, (Vec<u8>, u64)> = held
                    .filter(|(point, _)| is_in_span(&point.key))
                    .map(|(point, pair)| (point.key.to_vec(), pair.clone()))
                    .collect();
                let (mut seen, mut rest) = (Vec::new(), Some(span.clone()));
                while let Some(span) = rest {
                    let listed = trial.store.list(&ranges, &span, limit);
                    prop_assert!(listed.pairs.len() <= limit.pairs);
                    let size = |pair: &ListedPair| pair.key.len() + pair.value().map_or(0, <[u8]>::len);
                    let bytes: usize = listed.pairs.iter().map(size).sum();
                    prop_assert!(bytes <= limit.bytes || listed.pairs.len() == 1);
                    rest = listed.through.as_ref().map(|through| span.after(through));
                    prop_assert!(rest.as_ref().is_none_or(|rest| rest.after > span.after));
                    for pair in listed.pairs {
                        let value = pair.value().map(<[u8]>::to_vec);
                        seen.push((pair.key.to_vec(), (pair.length, pair.version)));
                        let stored = &wanted[&*pair.key].0;
                        let there = Parts::of(stored);
                        prop_assert_eq!(pair.end_ms, there.end_ms);
                        prop_assert_eq!(value, (stored.len() <= limit.longest).then(|| there.value.to_vec()));
                    }
                }
                let length = |stored: &[u8]| value::length(Parts::of(stored).value);
                let all: Vec<_> = wanted.iter().map(|(key, (stored, version))| (key.clone(), (length(stored), *version))).collect();
                prop_assert_eq!(&seen, &all);
                let (mut count, mut rest) = (0, Some(span));
                while let Some(span) = rest {
                    let (counted, through) = trial.store.count(&ranges, &span, limit.looks);
                    count += counted;
                    rest = through.map(|through| span.after(&through));
                }
                prop_assert_eq!(count, wanted.len() as u64);
            }
        }
    }

    /// `cargo test --release --lib -- --ignored --nocapture page_of_100` prints it.
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
    fn what_a_page_of_100_of_a_million_pairs_costs() {
        use crate::model::hash::HashKey;
        let store = Store::new(HashKey::PUBLISHED);
        let put = |number: u32| {
            let key = format!("prefix-{:04}/{:02}", number % 10_000, number / 10_000);
            store.put(HashKey::PUBLISHED.hash(key.as_bytes()), key.as_bytes(), &[b'1'; 100]);
        };
        let start = std::time::Instant::now();
        (0..1_000_000).for_each(put);
        println!("1,000,000 pairs put in: {:?}", start.elapsed());
        let limit = ListLimit { pairs: 1000, bytes: usize::MAX, looks: usize::MAX, longest: 0 };
        let start = std::time::Instant::now();
        for number in 0..100 {
            let span =
                Span { prefix: format!("prefix-{:04}/", number * 99).into_bytes().into(), after: None };
            assert_eq!(store.list(&[HashRange::all()], &span, limit).pairs.len(), 100);
        }
        println!("a page under a prefix with 100 of them: {:?}", start.elapsed() / 100);
        let start = std::time::Instant::now();
        let (mut rest, mut seen) = (Some(Span::default()), 0);
        while let Some(span) = rest {
            let listed = store.list(&[HashRange::all()], &span, ListLimit { pairs: 2048, ..limit });
            seen += listed.pairs.len();
            rest = listed.through.map(|through| span.after(&through));
        }
        assert_eq!(seen, 1_000_000);
        println!("all of them by pages of 2,048: {:?}", start.elapsed());
    }
}
