//! What is done to the cluster, step by step: a pure function of the seed.
//!
//! A step names its victims by what they are at that moment (the leader of a shard), so that the same schedule can be
//! run again although elections end differently.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::support::network::{Cut, Lost};

/// Longest time for which a node is away: longer than an election, shorter than clients' patience.
const LONGEST_AWAY: u64 = 3000;

/// Who is harmed; shards and nodes beyond those that there are count anew from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// Who leads the shard with this number.
    Leader(usize),
    /// The replica at this place, the leader left out where there are others.
    Other(usize, usize),
    /// The node with this number, be it in the view or not.
    Node(usize),
}

/// Whose packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    /// The first hears nothing of the second.
    To,
    /// The second hears nothing of the first.
    From,
    /// The first cannot ask the second, but answers it.
    Asks,
    /// The second cannot ask the first, but answers it.
    Asked,
}

const WAYS: [Way; 5] = [Way::Both, Way::To, Way::From, Way::Asks, Way::Asked];

/// Who is cut off from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Partition {
    /// One node from all others.
    Alone(Victim, Way),
    /// The nodes with these numbers from all others.
    Halves(BTreeSet<usize>),
    /// The same, but that one node is in touch with all.
    Bridge(BTreeSet<usize>, usize),
    /// Every node is in touch with its two neighbours only.
    Ring(Vec<usize>),
    /// Some pairs of nodes.
    Links(Vec<(usize, usize, Way)>),
}

/// What happens to nodes until it is undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Harm {
    Kill(Victim),
    /// One node of each of two shards.
    KillTwo,
    Pause(Victim),
    /// As many replicas of the shard with this number as make a majority.
    PauseMajority(usize),
    PauseAll,
    Cut(Partition),
}

/// Some harms at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blow {
    pub(crate) harms: Vec<Harm>,
    pub(crate) away: Duration,
    /// A killed node comes back while the others are still paused and cut off.
    pub(crate) back_first: bool,
}

/// A view change to the nodes with these numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) view: Vec<usize>,
    pub(crate) factor: usize,
    pub(crate) asked: usize,
}

/// Some nodes of the view die for good: the operator has their shards go on from what is left, or gives up the pairs of those of which
/// nothing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disaster {
    /// At least one of the view lives.
    pub(crate) dead: Vec<usize>,
    pub(crate) away: Duration,
    /// They come back, empty, before the operator does anything.
    pub(crate) back_first: bool,
}

/// One step; all that it did is undone, and the cluster whole again, before the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Blow(Blow),
    /// The partition comes and goes.
    Flap {
        partition: Partition,
        times: u32,
        each: Duration,
    },
    /// The replicas of the shard with this number are killed one after the other, each when the last is back.
    KillInTurn(usize),
    /// The nodes of the view are stopped by SIGTERM and started again, one after the other.
    RestartInTurn,
    Change(Change),
    /// The blow falls this long after the change was asked for.
    ChangeAndBlow(Change, Duration, Blow),
    Disaster(Disaster),
}

/// The steps of a seed, without end.
pub(crate) struct Schedule {
    random: StdRng,
    size: usize,
    factors: Vec<usize>,
    view: Vec<usize>,
    factor: usize,
}

impl Schedule {
    /// Steps for `size` nodes, of which the first `members` are in the first view, with the first of `factors`; changes
    /// choose among all of these.
    pub(crate) fn new(seed: u64, size: usize, members: usize, factors: &[usize]) -> Self {
        let (view, factor) = ((0..members).collect(), factors[0]);
        Self { random: StdRng::seed_from_u64(seed), size, factors: factors.to_vec(), view, factor }
    }

    /// With at least this many replicas one may be killed: its memory is gone, but a majority has it, too.
    fn may_kill(factor: usize) -> bool {
        factor >= 3
    }

    fn away(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(200..=LONGEST_AWAY))
    }

    fn victim(&mut self) -> Victim {
        let (shard, place) = (self.random.random_range(0..4), self.random.random_range(0..4));
        match self.random.random_range(0..6) {
            0..3 => Victim::Leader(shard),
            3..5 => Victim::Other(shard, place),
            _ => Victim::Node(self.random.random_range(0..self.size)),
        }
    }

    fn way(&mut self) -> Way {
        *WAYS.choose(&mut self.random).expect("there are some")
    }

    fn half(&mut self) -> BTreeSet<usize> {
        let count = self.random.random_range(1..self.size);
        let mut nodes: Vec<usize> = (0..self.size).collect();
        nodes.shuffle(&mut self.random);
        nodes.into_iter().take(count).collect()
    }

    fn partition(&mut self) -> Partition {
        match self.random.random_range(0..10) {
            0..4 => Partition::Alone(self.victim(), self.way()),
            4..6 => Partition::Halves(self.half()),
            6 => Partition::Bridge(self.half(), self.random.random_range(0..self.size)),
            7 => {
                let mut order: Vec<usize> = (0..self.size).collect();
                order.shuffle(&mut self.random);
                Partition::Ring(order)
            }
            _ => {
                let count = self.random.random_range(1..=self.size * 2);
                let mut node = || self.random.random_range(0..self.size);
                let pairs: Vec<(usize, usize)> = (0..count).map(|_| (node(), node())).collect();
                let links = pairs.into_iter().filter(|(from, to)| from != to);
                Partition::Links(links.map(|(from, to)| (from, to, self.way())).collect())
            }
        }
    }

    fn pause(&mut self) -> Harm {
        match self.random.random_range(0..8) {
            0..5 => Harm::Pause(self.victim()),
            5..7 => Harm::PauseMajority(self.random.random_range(0..4)),
            _ => Harm::PauseAll,
        }
    }

    /// A blow to shards of at least `factor` replicas.
    fn blow(&mut self, factor: usize) -> Blow {
        let harms = match self.random.random_range(0..12) {
            0..4 if Self::may_kill(factor) => vec![Harm::Kill(self.victim())],
            4 if Self::may_kill(factor) => vec![Harm::KillTwo],
            5..8 if Self::may_kill(factor) => {
                vec![Harm::Kill(self.victim()), self.pause(), Harm::Cut(self.partition())]
            }
            8 => vec![self.pause(), Harm::Cut(self.partition())],
            0..8 if self.random.random_bool(0.4) => vec![self.pause()],
            9 => vec![self.pause()],
            _ => vec![Harm::Cut(self.partition())],
        };
        Blow { harms, away: self.away(), back_first: self.random.random() }
    }

    /// None in a view of one node: nobody would be left whom an operator could ask.
    fn disaster(&mut self) -> Option<Disaster> {
        let mut dead = self.view.clone();
        dead.shuffle(&mut self.random);
        dead.truncate(self.random.random_range(1..self.view.len().max(2)));
        let (away, back_first) = (self.away(), self.random.random());
        (dead.len() < self.view.len()).then_some(Disaster { dead, away, back_first })
    }

    fn change(&mut self) -> Change {
        let factor = *self.factors.choose(&mut self.random).expect("there is one");
        let shards = self.random.random_range(1..=self.size / factor);
        let mut view: Vec<usize> = (0..self.size).collect();
        view.shuffle(&mut self.random);
        view.truncate(shards * factor);
        (self.view, self.factor) = (view.clone(), factor);
        Change { view, factor, asked: self.random.random_range(0..self.size) }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let factor = self.factor;
        Some(match self.random.random_range(0..22) {
            0 if Self::may_kill(factor) => Step::KillInTurn(self.random.random_range(0..4)),
            1 if factor > 1 => Step::RestartInTurn,
            2 => {
                let each = Duration::from_millis(self.random.random_range(50..600));
                Step::Flap { partition: self.partition(), times: self.random.random_range(2..6), each }
            }
            3..6 => Step::Change(self.change()),
            6..10 => {
                let change = self.change();
                let after = Duration::from_millis(self.random.random_range(0..300));
                let mut blow = self.blow(factor.min(change.factor));
                // Who votes on the view changes meanwhile, so that two nodes could be too many.
                blow.harms.retain(|harm| *harm != Harm::KillTwo);
                Step::ChangeAndBlow(change, after, blow)
            }
            10..12 => match self.disaster() {
                Some(disaster) => Step::Disaster(disaster),
                None => Step::Blow(self.blow(factor)),
            },
            _ => Step::Blow(self.blow(factor)),
        })
    }
}

impl Partition {
    /// The packets that are lost among `size` nodes.
    pub(crate) fn cuts(&self, size: usize, number: impl Fn(Victim) -> usize) -> BTreeSet<Cut> {
        let pairs = || (0..size).flat_map(|one| (one + 1..size).map(move |other| (one, other)));
        let both = |parted: &dyn Fn(usize, usize) -> bool| {
            let parted = pairs().filter(|&(one, other)| parted(one, other));
            parted.flat_map(|(one, other)| lost(one, other, Way::Both)).collect()
        };
        match self {
            Self::Alone(victim, way) => {
                let one = number(*victim);
                (0..size).filter(|other| *other != one).flat_map(|other| lost(one, other, *way)).collect()
            }
            Self::Halves(half) => both(&|one, other| half.contains(&one) != half.contains(&other)),
            Self::Bridge(half, between) => both(&|one, other| {
                half.contains(&one) != half.contains(&other) && one != *between && other != *between
            }),
            Self::Ring(order) => both(&|one, other| {
                let place = |node| order.iter().position(|named| *named == node).expect("all are in it");
                let apart = place(one).abs_diff(place(other));
                apart != 1 && apart != size - 1
            }),
            Self::Links(links) => links.iter().flat_map(|&(one, other, way)| lost(one, other, way)).collect(),
        }
    }
}

/// What is lost between two nodes.
fn lost(one: usize, other: usize, way: Way) -> Vec<Cut> {
    let cut = |from, to, lost| Cut { from, to, lost };
    match way {
        Way::Both => vec![cut(one, other, Lost::Everything), cut(other, one, Lost::Everything)],
        Way::To => vec![cut(other, one, Lost::Everything)],
        Way::From => vec![cut(one, other, Lost::Everything)],
        Way::Asks => vec![cut(one, other, Lost::Requests)],
        Way::Asked => vec![cut(other, one, Lost::Requests)],
    }
}

fn schedule(seed: u64) -> Vec<Step> {
    Schedule::new(seed, 7, 6, &[3, 3, 2]).take(2000).collect()
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    assert_eq!(schedule(7), schedule(7));
    assert_ne!(schedule(7), schedule(8));
}

#[test]
fn only_a_disaster_takes_the_only_majority_along() {
    let mut factor = 3;
    let (mut kills, mut changes, mut disasters) = (0, 0, 0);
    for step in schedule(11) {
        let (least, blow) = match &step {
            Step::Blow(blow) => (factor, Some(blow)),
            Step::Change(change) | Step::ChangeAndBlow(change, ..) => {
                assert!(!change.view.is_empty() && change.view.len().is_multiple_of(change.factor));
                assert_eq!(change.view.iter().collect::<BTreeSet<_>>().len(), change.view.len());
                changes += 1;
                let least = change.factor.min(factor);
                factor = change.factor;
                let blow = if let Step::ChangeAndBlow(_, _, blow) = &step { Some(blow) } else { None };
                (least, blow)
            }
            Step::KillInTurn(_) => {
                assert!(factor >= 3);
                (factor, None)
            }
            Step::Disaster(disaster) => {
                assert!(!disaster.dead.is_empty());
                disasters += 1;
                (factor, None)
            }
            Step::Flap { .. } | Step::RestartInTurn => (factor, None),
        };
        let harms = blow.map(|blow| blow.harms.as_slice()).unwrap_or_default();
        let killed = harms.iter().filter(|harm| matches!(harm, Harm::Kill(_) | Harm::KillTwo)).count();
        assert!(killed == 0 || (killed == 1 && least >= 3), "{step:?} at factor {least}");
        kills += killed;
    }
    let counts = format!("{kills} kills, {changes} changes, {disasters} disasters");
    assert!(kills > 300 && changes > 300 && disasters > 100, "{counts}");
}

#[test]
fn partitions_have_their_shapes() {
    let number = |victim| if let Victim::Node(number) = victim { number } else { panic!("{victim:?}") };
    let cuts = |partition: Partition| {
        let text = |cut: &Cut| {
            let sign = if cut.lost == Lost::Everything { ">" } else { "?" };
            format!("{}{sign}{}", cut.from, cut.to)
        };
        partition.cuts(4, number).iter().map(text).collect::<Vec<_>>().join(" ")
    };
    let alone = |way| cuts(Partition::Alone(Victim::Node(2), way));
    assert_eq!(alone(Way::To), "0>2 1>2 3>2");
    assert_eq!(alone(Way::From), "2>0 2>1 2>3");
    assert_eq!(alone(Way::Asks), "2?0 2?1 2?3");
    assert_eq!(alone(Way::Asked), "0?2 1?2 3?2");
    assert_eq!(alone(Way::Both), "0>2 1>2 2>0 2>1 2>3 3>2");
    assert_eq!(cuts(Partition::Halves([0, 1].into())), "0>2 0>3 1>2 1>3 2>0 2>1 3>0 3>1");
    assert_eq!(cuts(Partition::Bridge([0, 1].into(), 1)), "0>2 0>3 2>0 3>0");
    assert_eq!(cuts(Partition::Ring(vec![0, 2, 1, 3])), "0>1 1>0 2>3 3>2");
    assert_eq!(cuts(Partition::Links(vec![(0, 1, Way::Asks), (3, 2, Way::To)])), "0?1 2>3");
}
