//! The small pairs of a stripe in the byte order of their keys.
//!
//! What is kept is only where each lies; keys are compared where they are, in the pages. So a pair costs 8 bytes and its share of the room that leaves have left:
//! 12 bytes, with keys in no order.

use std::ops::Bound;

use crate::model::pages::{Pages, Place};

/// A leaf has so many places at most: few enough that to make room in one costs less than to find it.
const LEAF: usize = 128;

/// Places in the order of the keys that lie there, in leaves that are never empty. Each key is there once.
#[derive(Default)]
pub(super) struct Order {
    leaves: Vec<Vec<Place>>,
}

/// Where a key is, or would be.
struct Spot {
    leaf: usize,
    at: usize,
    is_there: bool,
}

impl Order {
    /// Takes the place of a key that is not there.
    pub(super) fn insert(&mut self, pages: &Pages, place: Place) {
        let Spot { leaf, at, is_there } = self.spot(pages, pages.key(place));
        debug_assert!(!is_there, "each key is there once");
        let Some(places) = self.leaves.get_mut(leaf) else { return self.leaves.push(vec![place]) };
        if places.len() < LEAF {
            places.insert(at, place);
        } else if at < LEAF {
            let mut upper = places.split_off(LEAF / 2);
            if at <= LEAF / 2 {
                places.insert(at, place);
            } else {
                upper.insert(at - LEAF / 2, place);
            }
            self.leaves.insert(leaf + 1, upper);
        } else if let Some(next) = self.leaves.get_mut(leaf + 1).filter(|next| next.len() < LEAF) {
            next.insert(0, place);
        } else {
            // Keys that ascend fill their leaves.
            self.leaves.insert(leaf + 1, vec![place]);
        }
    }

    /// A pair lies elsewhere by now. What lies at both places has its key.
    pub(super) fn replace(&mut self, pages: &Pages, old: Place, new: Place) {
        if let Some((leaf, at)) = self.held(pages, old) {
            self.leaves[leaf][at] = new;
        }
    }

    /// Forgets a place, at which the key lies still.
    pub(super) fn remove(&mut self, pages: &Pages, place: Place) {
        let Some((leaf, at)) = self.held(pages, place) else { return };
        let places = &mut self.leaves[leaf];
        places.remove(at);
        if places.len() * 4 < places.capacity() {
            places.shrink_to(places.len() * 2);
        }
        if places.is_empty() {
            self.leaves.remove(leaf);
            return;
        }
        let first = if self.fits_next(leaf) { leaf } else { leaf.saturating_sub(1) };
        if self.fits_next(first) {
            let mut next = self.leaves.remove(first + 1);
            self.leaves[first].append(&mut next);
        }
    }

    /// Whether a leaf and the next one have few places together.
    fn fits_next(&self, leaf: usize) -> bool {
        self.leaves.get(leaf + 1).is_some_and(|next| self.leaves[leaf].len() + next.len() <= LEAF / 2)
    }

    /// Forgets all places but some.
    pub(super) fn retain(&mut self, stays: impl FnMut(&Place) -> bool) {
        let all = self.leaves.drain(..).flatten();
        let all: Vec<Place> = all.filter(stays).collect();
        self.leaves = all.chunks(LEAF).map(<[Place]>::to_vec).collect();
    }

    /// The places from a key on.
    pub(super) fn from<'a>(
        &'a self,
        pages: &Pages,
        from: Bound<&[u8]>,
    ) -> impl Iterator<Item = Place> + use<'a> {
        let (leaf, at) = match from {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) | Bound::Excluded(key) => {
                let Spot { leaf, at, is_there } = self.spot(pages, key);
                (leaf, at + usize::from(is_there && from == Bound::Excluded(key)))
            }
        };
        let rest = self.leaves.get(leaf..).unwrap_or_default();
        rest.iter().flatten().skip(at).copied()
    }

    fn spot(&self, pages: &Pages, key: &[u8]) -> Spot {
        let after = self.leaves.partition_point(|leaf| pages.key(leaf[0]) <= key);
        let leaf = after.saturating_sub(1);
        let found = self
            .leaves
            .get(leaf)
            .map_or(Err(0), |places| places.binary_search_by(|place| pages.key(*place).cmp(key)));
        let (Ok(at) | Err(at)) = found;
        Spot { leaf, at, is_there: found.is_ok() }
    }

    /// Where a place is. It is found even where a key is not what it was when it came, so that nothing is left that would lead into a page that is gone.
    fn held(&self, pages: &Pages, place: Place) -> Option<(usize, usize)> {
        let Spot { leaf, at, is_there } = self.spot(pages, pages.key(place));
        if is_there && self.leaves[leaf][at] == place {
            return Some((leaf, at));
        }
        let at = |places: &Vec<Place>| places.iter().position(|held| *held == place);
        self.leaves.iter().enumerate().find_map(|(leaf, places)| Some((leaf, at(places)?)))
    }

    /// How many places there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.leaves.iter().map(Vec::len).sum()
    }

    /// Room for so many places.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.leaves.iter().map(Vec::capacity).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::pages::Record;

    fn append(pages: &mut Pages, key: &[u8]) -> Place {
        pages.append(&Record { version: 1, key, value: b"" })
    }

    fn key(number: u16) -> Vec<u8> {
        number.to_string().into_bytes()
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Keys that follow each other, upwards or downwards.
        Run(u16, u16, bool),
        Insert(u16),
        Move(u16),
        Remove(u16),
        Retain(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any::<u16>(), 1_u16..400, any::<bool>()).prop_map(|(from, count, up)| Step::Run(from, count, up)),
            20 => any::<u16>().prop_map(Step::Insert),
            10 => any::<u16>().prop_map(Step::Move),
            30 => any::<u16>().prop_map(Step::Remove),
            1 => any::<u8>().prop_map(Step::Retain),
        ]
    }

    /// The order, beside a map that is known to be right.
    #[derive(Default)]
    struct Trial {
        pages: Pages,
        order: Order,
        map: BTreeMap<Vec<u8>, Place>,
    }

    impl Trial {
        fn insert(&mut self, number: u16) {
            let key = key(number);
            if !self.map.contains_key(&key) {
                let place = append(&mut self.pages, &key);
                self.order.insert(&self.pages, place);
                self.map.insert(key, place);
            }
        }

        /// One that is there, near to a number.
        fn near(&self, number: u16) -> Option<(Vec<u8>, Place)> {
            let found = self.map.range(key(number)..).next().or_else(|| self.map.iter().next());
            found.map(|(key, place)| (key.clone(), *place))
        }

        fn take(&mut self, step: &Step) {
            match *step {
                Step::Run(from, count, up) => (0..count).for_each(|at| {
                    self.insert(from.wrapping_add(if up { at } else { count - at }));
                }),
                Step::Insert(number) => self.insert(number),
                Step::Move(number) => {
                    let Some((key, old)) = self.near(number) else { return };
                    let new = append(&mut self.pages, &key);
                    self.order.replace(&self.pages, old, new);
                    self.map.insert(key, new);
                }
                Step::Remove(number) => {
                    let Some((key, place)) = self.near(number) else { return };
                    self.order.remove(&self.pages, place);
                    self.map.remove(&key);
                }
                Step::Retain(last) => {
                    let pages = &self.pages;
                    let stays = |key: &[u8]| key.last().is_some_and(|digit| *digit != b'0' + last % 10);
                    self.order.retain(|place| stays(pages.key(*place)));
                    self.map.retain(|key, _| stays(key));
                }
            }
        }

        fn check(&self, from: &[u8]) {
            for bound in [Bound::Unbounded, Bound::Included(from), Bound::Excluded(from)] {
                let wanted: Vec<Place> =
                    self.map.range::<[u8], _>((bound, Bound::Unbounded)).map(|(_, place)| *place).collect();
                assert_eq!(self.order.from(&self.pages, bound).collect::<Vec<_>>(), wanted, "{bound:?}");
            }
            assert!(self.order.leaves.iter().all(|leaf| (1..=LEAF).contains(&leaf.len())));
            assert_eq!(self.order.len(), self.map.len());
        }
    }

    proptest! {
        #[test]
        fn it_is_the_order_of_a_map(steps in prop::collection::vec(step(), 0..120), from: u16) {
            let mut trial = Trial::default();
            for step in steps {
                trial.take(&step);
                trial.check(&key(from));
            }
            let (count, room) = (trial.map.len(), trial.order.capacity());
            prop_assert!(room <= count * 8 + LEAF, "room for {room}, and {count} there");
            for (_, place) in std::mem::take(&mut trial.map) {
                trial.order.remove(&trial.pages, place);
            }
            prop_assert_eq!(trial.order.capacity(), 0);
        }
    }

    #[test]
    fn leaves_are_full_where_keys_ascend_and_mostly_where_they_do_not() {
        let numbers = |step: u32| (0..60_000_u32).map(move |at| at * step % 65_521);
        for (what, numbers, most) in [
            ("ascending", numbers(1).collect::<Vec<_>>(), 1.01),
            ("descending", numbers(1).rev().collect(), 1.05),
            ("in no order", numbers(40_503).collect(), 1.6),
        ] {
            let (mut pages, mut order) = (Pages::default(), Order::default());
            for number in &numbers {
                let place = append(&mut pages, &number.to_be_bytes());
                order.insert(&pages, place);
            }
            let room = order.capacity() as f64 / numbers.len() as f64;
            assert!(room <= most, "{what}: {room}");
        }
    }

    #[test]
    fn a_place_is_forgotten_whatever_became_of_its_key() {
        let (mut pages, mut order) = (Pages::default(), Order::default());
        let places: Vec<Place> =
            (0_u32..500).map(|number| append(&mut pages, &number.to_be_bytes())).collect();
        places.iter().for_each(|place| order.insert(&pages, *place));
        pages.damage(places[200], true);
        for place in [200, 199, 201, 0, 499] {
            order.remove(&pages, places[place]);
        }
        assert_eq!(order.len(), 495);
        assert!(order.from(&pages, Bound::Unbounded).all(|place| place != places[200]));
    }
}
