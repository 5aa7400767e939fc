//! The small pairs of a stripe in the byte order of their keys.
//!
//! What is kept is only where each lies; keys are compared where they are, in the pages. So a pair costs 8 bytes and its share of the room that leaves have left:
//! 12 bytes, with keys in no order. As each look at a key is one into memory that is far away, an entry has two bytes of the key with it, those in which keys of its
//! leaf begin to differ; and a leaf has eight of its first one. So mostly one key is looked at, or two.

use std::ops::Bound;

use crate::model::pages::{Pages, Place};

/// A leaf has so many places at most: few enough that to make room in one costs less than to find it.
const LEAF: usize = 128;

/// Places in the order of the keys that lie there, in leaves that are never empty. Each key is there once.
#[derive(Default)]
pub(super) struct Order {
    leaves: Vec<Leaf>,
    /// So many bytes are the same in the first keys of all leaves.
    common: usize,
}

#[derive(Default)]
struct Leaf {
    /// What comes in its first key after what is the same in all first keys.
    head: u64,
    /// So many bytes are the same in all keys of the leaf.
    common: usize,
    entries: Vec<Entry>,
}

/// A place, and the two bytes of its key after what is the same in all keys of the leaf.
#[derive(Clone, Copy)]
struct Entry {
    page: u32,
    offset: u16,
    head: u16,
}

/// Where a key is, or would be.
struct Spot {
    leaf: usize,
    at: usize,
    is_there: bool,
}

/// The bytes of a key from one on; zeros where it has none any more. Of two keys that are the same before, the smaller one has no greater head.
fn head<const BYTES: usize>(key: &[u8], from: usize) -> [u8; BYTES] {
    let mut head = [0; BYTES];
    let rest = key.get(from..).unwrap_or_default();
    let count = rest.len().min(BYTES);
    head[..count].copy_from_slice(&rest[..count]);
    head
}

/// How many bytes two keys begin with that are the same.
fn shared(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

impl Entry {
    fn place(self) -> Place {
        Place::new(self.page, self.offset)
    }
}

impl Leaf {
    /// One of some entries, whose heads are still to be made.
    fn of(pages: &Pages, entries: Vec<Entry>) -> Self {
        let mut leaf = Self { entries, ..Self::default() };
        leaf.make_heads(pages);
        leaf
    }

    fn first<'a>(&self, pages: &'a Pages) -> &'a [u8] {
        pages.key(self.entries[0].place())
    }

    fn make_heads(&mut self, pages: &Pages) {
        let last = pages.key(self.entries[self.entries.len() - 1].place());
        // Whatever is between two keys begins as both do.
        self.common = shared(self.first(pages), last);
        for entry in &mut self.entries {
            entry.head = u16::from_be_bytes(head(pages.key(entry.place()), self.common));
        }
    }

    /// Where a key is, or would be, and whether it is there.
    fn spot(&self, pages: &Pages, key: &[u8]) -> (usize, bool) {
        let first = self.first(pages);
        let before = &first[..self.common.min(first.len())];
        if !key.starts_with(before) {
            return if key < before { (0, false) } else { (self.entries.len(), false) };
        }
        let wanted = u16::from_be_bytes(head(key, self.common));
        let from = self.entries.partition_point(|entry| entry.head < wanted);
        let alike = self.entries[from..].partition_point(|entry| entry.head == wanted);
        match self.entries[from..from + alike].binary_search_by(|entry| pages.key(entry.place()).cmp(key)) {
            Ok(at) => (from + at, true),
            Err(at) => (from + at, false),
        }
    }

    fn insert(&mut self, pages: &Pages, at: usize, place: Place) {
        let key = pages.key(place);
        let is_alike = self.entries.first().is_some_and(|entry| {
            let first = pages.key(entry.place());
            shared(first, key) >= self.common
        });
        let head = u16::from_be_bytes(head(key, self.common));
        self.entries.insert(at, Entry { page: place.page(), offset: place.offset(), head });
        if !is_alike {
            self.make_heads(pages);
        }
    }
}

impl Order {
    /// Takes the place of a key that is not there.
    pub(super) fn insert(&mut self, pages: &Pages, place: Place) {
        let Spot { leaf, at, is_there } = self.spot(pages, pages.key(place));
        debug_assert!(!is_there, "each key is there once");
        let Some(held) = self.leaves.get_mut(leaf) else { return self.add(pages, leaf, place) };
        if held.entries.len() < LEAF {
            held.insert(pages, at, place);
            if at == 0 {
                self.note_first(pages, leaf);
            }
        } else if at < LEAF {
            let upper = held.entries.split_off(LEAF / 2);
            let mut upper = Leaf::of(pages, upper);
            held.make_heads(pages);
            if at <= LEAF / 2 {
                held.insert(pages, at, place);
            } else {
                upper.insert(pages, at - LEAF / 2, place);
            }
            self.leaves.insert(leaf + 1, upper);
            self.note_first(pages, leaf);
            self.note_first(pages, leaf + 1);
        } else if let Some(next) = self.leaves.get_mut(leaf + 1).filter(|next| next.entries.len() < LEAF) {
            next.insert(pages, 0, place);
            self.note_first(pages, leaf + 1);
        } else {
            // Keys that ascend fill their leaves.
            self.add(pages, leaf + 1, place);
        }
    }

    /// A leaf of its own for a place.
    fn add(&mut self, pages: &Pages, leaf: usize, place: Place) {
        let entry = Entry { page: place.page(), offset: place.offset(), head: 0 };
        self.leaves.insert(leaf, Leaf::of(pages, vec![entry]));
        self.note_first(pages, leaf);
    }

    /// A leaf begins with another key than before.
    fn note_first(&mut self, pages: &Pages, leaf: usize) {
        let first = self.leaves[leaf].first(pages);
        let [lowest, .., highest] = &self.leaves[..] else {
            self.common = first.len();
            self.leaves[leaf].head = 0;
            return;
        };
        let common = self.common.min(shared(lowest.first(pages), highest.first(pages)));
        if common == self.common {
            self.leaves[leaf].head = u64::from_be_bytes(head(first, common));
            return;
        }
        self.common = common;
        for leaf in &mut self.leaves {
            leaf.head = u64::from_be_bytes(head(leaf.first(pages), common));
        }
    }

    /// A pair lies elsewhere by now. What lies at both places has its key.
    pub(super) fn replace(&mut self, pages: &Pages, old: Place, new: Place) {
        if let Some((leaf, at)) = self.held(pages, old) {
            let entry = &mut self.leaves[leaf].entries[at];
            (entry.page, entry.offset) = (new.page(), new.offset());
        }
    }

    /// Forgets a place, at which the key lies still.
    pub(super) fn remove(&mut self, pages: &Pages, place: Place) {
        let Some((leaf, at)) = self.held(pages, place) else { return };
        let entries = &mut self.leaves[leaf].entries;
        entries.remove(at);
        if entries.len() * 4 < entries.capacity() {
            entries.shrink_to(entries.len() * 2);
        }
        if entries.is_empty() {
            self.leaves.remove(leaf);
            return;
        }
        if at == 0 {
            self.note_first(pages, leaf);
        }
        let first = if self.fits_next(leaf) { leaf } else { leaf.saturating_sub(1) };
        if self.fits_next(first) {
            let mut next = self.leaves.remove(first + 1);
            self.leaves[first].entries.append(&mut next.entries);
            self.leaves[first].make_heads(pages);
        }
    }

    /// Whether a leaf and the next one have few places together.
    fn fits_next(&self, leaf: usize) -> bool {
        let next = self.leaves.get(leaf + 1);
        next.is_some_and(|next| self.leaves[leaf].entries.len() + next.entries.len() <= LEAF / 2)
    }

    /// Forgets all places but some.
    pub(super) fn retain(&mut self, pages: &Pages, mut stays: impl FnMut(Place) -> bool) {
        let all = self.leaves.drain(..).flat_map(|leaf| leaf.entries);
        let all: Vec<Entry> = all.filter(|entry| stays(entry.place())).collect();
        self.leaves = all.chunks(LEAF).map(|entries| Leaf::of(pages, entries.to_vec())).collect();
        self.common = usize::MAX;
        if !self.leaves.is_empty() {
            self.note_first(pages, 0);
        }
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
        rest.iter().flat_map(|leaf| &leaf.entries).skip(at).map(|entry| entry.place())
    }

    fn spot(&self, pages: &Pages, key: &[u8]) -> Spot {
        let leaf = self.leaf_of(pages, key);
        let Some(held) = self.leaves.get(leaf) else { return Spot { leaf, at: 0, is_there: false } };
        let (at, is_there) = held.spot(pages, key);
        Spot { leaf, at, is_there }
    }

    /// The last leaf that does not begin after a key, or the first one.
    fn leaf_of(&self, pages: &Pages, key: &[u8]) -> usize {
        let [lowest, _, ..] = &self.leaves[..] else { return 0 };
        let first = lowest.first(pages);
        let before = &first[..self.common.min(first.len())];
        if !key.starts_with(before) {
            return if key < before { 0 } else { self.leaves.len() - 1 };
        }
        let wanted = u64::from_be_bytes(head(key, self.common));
        let from = self.leaves.partition_point(|leaf| leaf.head < wanted);
        let alike = self.leaves[from..].partition_point(|leaf| leaf.head == wanted);
        let after = self.leaves[from..from + alike].partition_point(|leaf| leaf.first(pages) <= key);
        (from + after).saturating_sub(1)
    }

    /// Where a place is. It is found even where a key is not what it was when it came, so that nothing is left that would lead into a page that is gone.
    fn held(&self, pages: &Pages, place: Place) -> Option<(usize, usize)> {
        let Spot { leaf, at, is_there } = self.spot(pages, pages.key(place));
        if is_there && self.leaves[leaf].entries[at].place() == place {
            return Some((leaf, at));
        }
        let at = |leaf: &Leaf| leaf.entries.iter().position(|held| held.place() == place);
        self.leaves.iter().enumerate().find_map(|(number, leaf)| Some((number, at(leaf)?)))
    }

    /// How many places there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.leaves.iter().map(|leaf| leaf.entries.len()).sum()
    }

    /// Room for so many places.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.leaves.iter().map(|leaf| leaf.entries.capacity()).sum()
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

    /// Keys that begin alike for a while, and end soon or late; zeros among them.
    fn key(number: u16) -> Vec<u8> {
        let text = format!("{:05}", number / 3);
        let begin = ["", "k", "k/long-common/"][usize::from(number / 9 % 3)];
        let end = [&b""[..], b"\0", b"\0\0/end"][usize::from(number % 3)];
        [begin.as_bytes(), text.as_bytes(), end].concat()
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
                    self.order.retain(pages, |place| stays(pages.key(place)));
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
            assert!(self.order.leaves.iter().all(|leaf| (1..=LEAF).contains(&leaf.entries.len())));
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
        // How much room there is for each hundred.
        for (what, numbers, most) in [
            ("ascending", numbers(1).collect::<Vec<_>>(), 101),
            ("descending", numbers(1).rev().collect(), 105),
            ("in no order", numbers(40_503).collect(), 160),
        ] {
            let (mut pages, mut order) = (Pages::default(), Order::default());
            for number in &numbers {
                let place = append(&mut pages, &number.to_be_bytes());
                order.insert(&pages, place);
            }
            let room = order.capacity() * 100 / numbers.len();
            assert!(room <= most, "{what}: {room}");
        }
    }

    #[test]
    fn a_place_is_forgotten_whatever_became_of_its_key() {
        let (mut pages, mut order) = (Pages::default(), Order::default());
        let places: Vec<Place> =
            (0_u32..500).map(|number| append(&mut pages, &number.to_be_bytes())).collect();
        for place in &places {
            order.insert(&pages, *place);
        }
        pages.damage(places[200], true);
        for place in [200, 199, 201, 0, 499] {
            order.remove(&pages, places[place]);
        }
        assert_eq!(order.len(), 495);
        assert!(order.from(&pages, Bound::Unbounded).all(|place| place != places[200]));
    }
}
