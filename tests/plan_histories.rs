//! The planner against a model with real keys, over random histories of view changes.
//!
//! Each history is found again by the seed that a failure names. All 100,000 histories run in a release
//! build, a part of them in others; `EVENKV_HISTORIES` sets another number.
#![allow(clippy::disallowed_methods, reason = "a test reads its one setting itself")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use evenkv::model::address::Address;
use evenkv::model::hash::KeyHash;
use evenkv::model::ownership::Ownership;
use evenkv::model::plan::{Census, Plan, plan};
use evenkv::model::range::{HashRange, Point};
use evenkv::model::view::View;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const HISTORIES: u64 = 100_000;

/// How the hashes of a history's keys lie in the space.
#[derive(Debug, Clone, Copy)]
enum Spread {
    Even,
    /// All keys share a few hashes, the first and the last of the space among them.
    Colliding,
    /// All keys lie in a small part of the space.
    Clustered,
}

/// A cluster without nodes: its view, and all keys in the order of the space.
struct Model {
    view: View,
    keys: BTreeSet<Point>,
    random: StdRng,
    spread: Spread,
    next_node: usize,
    next_key: u64,
    longest_table: usize,
    most_moves: usize,
}

struct SortedKeys<'a> {
    keys: &'a [Point],
    view: &'a View,
}

impl SortedKeys<'_> {
    fn of(&self, shard: usize, range: &HashRange) -> &[Point] {
        assert_eq!(owner(self.view, &range.from), shard, "only the owner of a range is asked");
        let from = self.keys.partition_point(|key| *key < range.from);
        let to = range.to.as_ref().map_or(self.keys.len(), |to| self.keys.partition_point(|key| key < to));
        &self.keys[from..to]
    }
}

impl Census for SortedKeys<'_> {
    type Error = Infallible;

    fn counts(&mut self, shard: usize, ranges: &[HashRange]) -> Result<Vec<u64>, Infallible> {
        Ok(ranges.iter().map(|range| self.of(shard, range).len() as u64).collect())
    }

    fn places(&mut self, shard: usize, questions: &[(HashRange, u64)]) -> Result<Vec<Point>, Infallible> {
        let place = |(range, rank): &(HashRange, u64)| {
            self.of(shard, range)[usize::try_from(*rank).expect("a small rank")].clone()
        };
        Ok(questions.iter().map(place).collect())
    }
}

fn owner(view: &View, place: &Point) -> usize {
    view.owner(KeyHash(place.hash), &place.key)
}

impl Model {
    fn new(seed: u64, nodes: usize, repl_factor: usize, spread: Spread) -> Self {
        let nodes: Vec<Address> = (0..nodes * repl_factor).map(node).collect();
        Self {
            view: View::first(&nodes, repl_factor).expect("a view"),
            keys: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
            spread,
            next_node: nodes.len(),
            next_key: 0,
            longest_table: 0,
            most_moves: 0,
        }
    }

    fn insert(&mut self, count: usize) {
        for _ in 0..count {
            self.next_key += 1;
            let hash = match self.spread {
                Spread::Even => self.random.random(),
                Spread::Colliding => {
                    [0, 1, 1 << 65, 1 << 127, u128::MAX - 1, u128::MAX][self.random.random_range(0..6)]
                }
                Spread::Clustered => (7 << 100) + u128::from(self.random.random::<u16>()),
            };
            // Keys of different lengths, some the beginning of others.
            let key = format!("{:x}", self.next_key.wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
            self.keys.insert(Point::of(KeyHash(hash), key.as_bytes()));
        }
    }

    fn delete(&mut self, count: usize) {
        let mut keys: Vec<Point> = self.keys.iter().cloned().collect();
        if self.random.random_bool(0.2) && !keys.is_empty() {
            // All those together that lie beside each other.
            let first = self.random.random_range(0..keys.len());
            keys.rotate_left(first);
        } else {
            keys.shuffle(&mut self.random);
        }
        keys.iter().take(count).for_each(|key| assert!(self.keys.remove(key)));
    }

    /// Nodes for the next view of at most `most` shards, and its factor; `at_once` also replaces all.
    fn wanted(&mut self, most: usize, factors: usize, at_once: bool) -> (Vec<Address>, usize) {
        let mut nodes: Vec<Address> = self.view.nodes().cloned().collect();
        let factor = if self.random.random_bool(0.2) {
            self.random.random_range(1..=factors)
        } else {
            self.view.repl_factor
        };
        let fresh = |count: usize, next: &mut usize| {
            *next += count;
            (*next - count..*next).map(node).collect::<Vec<_>>()
        };
        let few = self.random.random_range(1..=3.min(most));
        match self.random.random_range(0..if at_once { 8 } else { 7 }) {
            0 => {}
            1 | 2 => nodes.extend(fresh(few * factor, &mut self.next_node)),
            3 | 4 => {
                nodes.shuffle(&mut self.random);
                nodes.truncate(nodes.len().saturating_sub(few * factor));
            }
            5 | 6 => {
                nodes.shuffle(&mut self.random);
                nodes.truncate(nodes.len().saturating_sub(few));
                nodes.extend(fresh(few, &mut self.next_node));
            }
            _ => nodes = fresh(self.random.random_range(1..=most) * factor, &mut self.next_node),
        }
        let shards = (nodes.len() / factor).clamp(1, most);
        let missing = (shards * factor).saturating_sub(nodes.len());
        nodes.extend(fresh(missing, &mut self.next_node));
        nodes.truncate(shards * factor);
        (nodes, factor)
    }

    fn change(&mut self, wanted: &[Address], factor: usize) -> Plan {
        let keys: Vec<Point> = self.keys.iter().cloned().collect();
        let mut census = SortedKeys { keys: &keys, view: &self.view };
        let plan_of = |census: &mut SortedKeys| plan(&self.view, wanted, factor, census).expect("a plan");
        let got = plan_of(&mut census);
        if self.random.random_ratio(1, 8) {
            assert_eq!(got, plan_of(&mut census), "the same input gives the same plan");
            let mut turned = wanted.to_vec();
            turned.reverse();
            let turned = plan(&self.view, &turned, factor, &mut census).expect("a plan");
            assert_eq!(got.moved, turned.moved, "the order of the list moves no pair");
        }
        check_shards(&self.view, &got.view, wanted, factor);
        check_pairs(&self.view, &got, &keys);
        check_moves(&self.view, &got, &keys);
        for _ in 0..3 {
            let at = KeyHash(self.random.random());
            let holding = got.view.ownership.rows().filter(|(range, _)| range.contains(at, b"k"));
            assert_eq!(holding.map(|(_, owner)| owner).collect::<Vec<_>>(), [got.view.owner(at, b"k")]);
        }
        self.longest_table = self.longest_table.max(got.view.ownership.len());
        self.most_moves = self.most_moves.max(got.moves.len());
        self.view = got.view.clone();
        got
    }
}

fn node(number: usize) -> Address {
    format!("node{number}:1").parse().expect("an address")
}

/// The nodes, the ids, and that every shard that stays keeps its group and, if it fits, its id.
fn check_shards(old: &View, new: &View, wanted: &[Address], factor: usize) {
    assert_eq!((new.epoch, new.repl_factor), (old.epoch + 1, factor));
    let count = u32::try_from(wanted.len() / factor).expect("few shards");
    assert_eq!(new.shards.iter().map(|shard| shard.id).collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
    assert!(new.shards.iter().all(|shard| shard.replicas.len() == factor));
    let nodes: BTreeSet<&Address> = new.nodes().collect();
    assert_eq!(nodes, wanted.iter().collect());
    for shard in &new.shards {
        assert!(shard.group < new.next_group);
        match old.shards.iter().find(|before| before.group == shard.group) {
            None => assert!(shard.group >= old.next_group, "a group is not used again"),
            Some(before) => {
                assert!(before.id == shard.id || before.id > count, "an id that fits is kept");
                if old.repl_factor == 1 && factor == 1 {
                    assert_eq!(before.replicas, shard.replicas, "at factor 1 a shard is its node");
                }
            }
        }
    }
    let order = |node| wanted.iter().position(|named| named == node);
    assert!(new.shards.iter().all(|shard| shard.replicas.is_sorted_by_key(order)));
}

/// Counts after the change, and what has moved, key by key.
fn check_pairs(old: &View, plan: &Plan, keys: &[Point]) {
    let new = &plan.view;
    let mut before = vec![0_u64; old.shards.len()];
    let mut after = vec![0_u64; new.shards.len()];
    let (mut moved, mut copied) = (0, 0);
    for key in keys {
        let (from, to) = (owner(old, key), owner(new, key));
        before[from] += 1;
        after[to] += 1;
        let (from, to) = (&old.shards[from], &new.shards[to]);
        moved += u64::from(from.group != to.group);
        copied += to.replicas.iter().filter(|node| !from.replicas.contains(node)).count() as u64;
    }
    assert_eq!((&plan.counts, &plan.targets), (&before, &after));
    assert_eq!((plan.keys, plan.moved, plan.copied), (keys.len() as u64, moved, copied));
    assert!(after.iter().max().unwrap() - after.iter().min().unwrap() <= 1, "{after:?}");

    // The bound, computed in another way: all above the lower target moves, except the one more that
    // some shards may keep.
    let (least, extra) = (plan.keys / after.len() as u64, plan.keys % after.len() as u64);
    let stays = |group: u64| new.shards.iter().any(|shard| shard.group == group);
    let (staying, going): (Vec<_>, Vec<_>) =
        old.shards.iter().zip(&before).partition(|(shard, _)| stays(shard.group));
    let over: Vec<u64> =
        staying.iter().map(|(_, held)| held.saturating_sub(least)).filter(|over| *over > 0).collect();
    let bound = going.iter().map(|(_, held)| **held).sum::<u64>() + over.iter().sum::<u64>()
        - extra.min(over.len() as u64);
    assert_eq!((plan.moved, plan.minimum), (bound, bound));
}

/// The moves, done one after the other, lead from one table to the other; each says what it moves.
fn check_moves(old: &View, plan: &Plan, keys: &[Point]) {
    let new = &plan.view;
    let group = |number: u64| usize::try_from(number).expect("a small number");
    let mut table = old.ownership.renumbered(|shard| group(old.shards[shard].group));
    let before = table.clone();
    let rows: Vec<(HashRange, usize)> = before.rows().collect();
    for step in &plan.moves {
        let row = rows.partition_point(|(range, _)| range.from <= step.range.from) - 1;
        let (range, giver) = &rows[row];
        assert_eq!(*giver, group(step.from), "a move takes from the owner");
        let ends_before = |end: &Point| step.range.to.as_ref().is_some_and(|to| to <= end);
        assert!(range.to.as_ref().is_none_or(ends_before), "a move takes of one range");
        let from = keys.partition_point(|key| *key < step.range.from);
        let to = step.range.to.as_ref().map_or(keys.len(), |to| keys.partition_point(|key| key < to));
        assert_eq!(step.pairs, (to - from) as u64);
        assert_ne!(step.from, step.to);
        table.assign(&step.range, group(step.to));
    }
    assert_eq!(table, new.ownership.renumbered(|shard| group(new.shards[shard].group)));
    check_table(&new.ownership);
}

/// Each point is owned once, and neighbours belong to different shards.
fn check_table(table: &Ownership) {
    let rows: Vec<(HashRange, usize)> = table.rows().collect();
    assert_eq!(rows[0].0.from, Point::start());
    assert_eq!(rows[rows.len() - 1].0.to, None);
    for pair in rows.windows(2) {
        assert_eq!(pair[0].0.to.as_ref(), Some(&pair[1].0.from));
        assert!(pair[0].0.from < pair[1].0.from);
        assert_ne!(pair[0].1, pair[1].1, "neighbours of one shard are one row");
    }
}

fn history(seed: u64, spread: Spread, most: usize, factors: usize) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(!seed);
    let first = random.random_range(1..=most);
    let mut model = Model::new(seed, first, random.random_range(1..=factors), spread);
    let many = if random.random_bool(0.9) { 60 } else { 300 };
    for _ in 0..random.random_range(2..=5) {
        model.insert(random.random_range(0..=many));
        let count = if random.random_bool(0.1) { usize::MAX } else { random.random_range(0..=many / 2) };
        model.delete(count);
        let (wanted, factor) = model.wanted(most, factors, true);
        model.change(&wanted, factor);
    }
    (model.longest_table, model.most_moves)
}

/// Runs one part in `of` of all histories, and names the seed of one that fails.
fn histories(part: u64, of: u64, spread: Spread, factors: usize) {
    let asked =
        std::env::var("EVENKV_HISTORIES").ok().map(|text| text.parse().expect("a number of histories"));
    let all = asked.unwrap_or(HISTORIES);
    let mut longest = BTreeMap::new();
    for seed in (0..all).filter(|seed| seed % of == part) {
        let most = match seed / of % 100 {
            0 => 64,
            1..10 => 16,
            _ => 5,
        };
        let rows = std::panic::catch_unwind(|| history(seed, spread, most, factors)).unwrap_or_else(|_| {
            panic!("history {seed}, {spread:?}, at most {most} shards, factors to {factors}")
        });
        let (table, moves) = longest.entry(most).or_insert((0, 0));
        (*table, *moves) = (rows.0.max(*table), rows.1.max(*moves));
    }
    println!("{spread:?}: by most shards, the longest table and the most moves: {longest:?}");
}

#[test]
fn histories_with_even_hashes() {
    histories(0, 4, Spread::Even, 1);
}

#[test]
fn histories_with_colliding_hashes() {
    histories(1, 4, Spread::Colliding, 1);
}

#[test]
fn histories_with_clustered_hashes() {
    histories(2, 4, Spread::Clustered, 1);
}

#[test]
fn histories_with_replicas() {
    histories(3, 4, Spread::Even, 3);
}

/// Thousands of changes of one cluster, a few nodes at a time, and never all, which would join the ranges:
/// the table stays short.
fn long_history(changes: usize, most: usize, keys: usize, bound: usize) {
    let mut model = Model::new(1, most / 2, 1, Spread::Even);
    model.insert(keys);
    let (mut rows, mut moves, mut shards) = (0, 0, 0);
    for change in 1..=changes {
        let (wanted, factor) = model.wanted(most, 1, false);
        moves += model.change(&wanted, factor).moves.len();
        rows += model.view.ownership.len();
        shards += wanted.len();
        let drift = keys / 50;
        model.delete(drift);
        model.insert(drift);
        if change.is_multiple_of(changes / 5) {
            println!(
                "at most {most} nodes (mean {}), {keys} keys, {change} changes: longest table {}, mean {}, most moves {}, mean {}",
                shards / change,
                model.longest_table,
                rows / change,
                model.most_moves,
                moves / change
            );
        }
    }
    assert!(model.longest_table <= bound, "a table of {} rows", model.longest_table);
}

#[test]
fn the_table_stays_short_with_8_nodes_and_few_pairs() {
    long_history(2000, 8, 60, 150);
}

#[test]
fn the_table_stays_short_with_32_nodes() {
    long_history(500, 32, 10_000, 600);
}

#[test]
fn the_table_stays_short_with_64_nodes() {
    long_history(if cfg!(debug_assertions) { 200 } else { 2000 }, 64, 5_000, 1300);
}
