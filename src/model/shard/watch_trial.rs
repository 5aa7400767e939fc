//! Somebody who watches shards between which pieces move, against a list of what was done.

use proptest::prelude::*;

use super::*;
use crate::model::cursor::Cursor;
use crate::model::history::{Event, Happened};
use crate::model::store::BatchLimit;

const HASH_KEY: HashKey = HashKey::FIRST_BYTE;
const KEYS: u8 = 16;
const SHARDS: u8 = 3;
const ALL: BatchLimit = BatchLimit { pairs: 1000, bytes: 1 << 20 };

fn key(place: u8) -> (KeyHash, [u8; 1]) {
    (HASH_KEY.hash(&[place * 16]), [place * 16])
}

fn range(from: u8, to: u8) -> HashRange {
    let point = |place: u8| Point::before_hash(key(place).0.0);
    HashRange { from: point(from), to: (to < KEYS).then(|| point(to)) }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, usize, Option<u64>),
    Delete(u8),
    Touch(u8),
    PassTime(u64),
    /// A piece from this place on, of so many, is copied to another shard.
    Copy(u8, u8, u8),
    Freeze,
    /// It is handed over: the target learns that now, and the source by and by.
    HandOver,
    Abort,
    Learn,
    Restore(u8),
    Read(u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..KEYS, 0_usize..30, prop::option::of(1_u64..50)).prop_map(|(place, length, ttl)| Step::Put(place, length, ttl)),
        3 => (0..KEYS).prop_map(Step::Delete),
        1 => (0..KEYS).prop_map(Step::Touch),
        2 => (0_u64..40).prop_map(Step::PassTime),
        3 => (0..KEYS, 1..KEYS, 0..SHARDS).prop_map(|(from, length, to)| Step::Copy(from, length, to)),
        3 => Just(Step::Freeze),
        3 => Just(Step::HandOver),
        1 => Just(Step::Abort),
        2 => Just(Step::Learn),
        1 => (0..SHARDS).prop_map(Step::Restore),
        8 => (0..SHARDS, prop_oneof![Just(0_usize), 1_usize..100, Just(1 << 20)]).prop_map(|(shard, most)| Step::Read(shard, most)),
    ]
}

/// A piece on its way: whence, whither, which, by which attempt, and whether it is prepared.
struct Piece {
    source: usize,
    target: usize,
    range: HashRange,
    stamp: Stamp,
    is_prepared: bool,
}

struct World {
    shards: Vec<Shard>,
    /// Which shard owns each place by the newest state.
    owner: Vec<usize>,
    version: u64,
    attempt: u32,
    piece: Option<Piece>,
    now_ms: u64,
    /// What was done to which place.
    done: Vec<(u8, &'static str)>,
    cursor: Cursor,
    told: Vec<(u8, &'static str, u64)>,
}

impl World {
    fn new() -> Self {
        let shard = |number: u8| {
            let owned =
                (0..KEYS).filter(|place| place % SHARDS == number).map(|place| range(place, place + 1));
            let shard = Shard::new(number.into(), HASH_KEY, owned, 1);
            shard.keep_history();
            shard
        };
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            owner: (0..KEYS).map(|place| usize::from(place % SHARDS)).collect(),
            version: 1,
            attempt: 0,
            piece: None,
            now_ms: 1,
            done: Vec::new(),
            cursor: Cursor::everywhere(0),
            told: Vec::new(),
        }
    }

    /// Does an operation at the shard that takes it, if one does, and says what it did.
    fn run(&self, place: u8, operation: Operation<'_>) -> Option<WriteOutcome> {
        let (hash, key) = key(place);
        let runs = self.shards.iter().filter_map(|shard| shard.run(hash, &key, operation, None).ok());
        let outcomes: Vec<WriteOutcome> = runs
            .map(|done| if let Done::Wrote(written) = done { written.outcome } else { unreachable!() })
            .collect();
        assert!(outcomes.len() <= 1, "two shards have done it");
        outcomes.first().copied()
    }

    fn learn(&self, shard: usize) {
        let mine = (0..KEYS).filter(|place| self.owner[usize::from(*place)] == shard);
        let directive = Directive {
            version: self.version,
            meta_group: 1,
            counting: None,
            planned: true,
            epoch: self.version,
            mine: mine.map(|place| range(place, place + 1)).collect(),
            open: self.piece.iter().map(|piece| piece.stamp.piece).collect(),
            starts: Vec::new(),
        };
        self.shards[shard].learn(&directive);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(place, length, ttl) => {
                let value = vec![b'1'; *length];
                let operation = Operation::put(&value).living(ttl.and_then(Ttl::from_ms));
                if self.run(*place, operation).is_some() {
                    self.done.push((*place, "put"));
                }
            }
            Step::Delete(place) => {
                if self.run(*place, Operation::DELETE) == Some(WriteOutcome::Deleted) {
                    self.done.push((*place, "delete"));
                }
            }
            Step::Touch(place) => {
                self.run(*place, Operation::TOUCH);
            }
            Step::PassTime(later_ms) => {
                self.now_ms += later_ms;
                for shard in &self.shards {
                    let ended = shard.pass_time(self.now_ms);
                    self.done.extend(ended.iter().map(|key| (key[0] / 16, "expire")));
                }
            }
            Step::Copy(from, length, target) if self.piece.is_none() => {
                let (source, target) = (self.owner[usize::from(*from)], usize::from(*target));
                let places = (*from..from.saturating_add(*length).min(KEYS))
                    .take_while(|place| self.owner[usize::from(*place)] == source);
                let range = range(*from, places.last().expect("the first") + 1);
                if source == target {
                    return;
                }
                (0..self.shards.len()).for_each(|shard| self.learn(shard));
                self.attempt += 1;
                self.version += 1;
                let id = PieceId { change: 1, index: self.attempt, attempt: self.attempt };
                let stamp = Stamp { piece: id, term: 1, version: self.version };
                let (from, to) = (&self.shards[source], &self.shards[target]);
                to.begin_incoming(&stamp, &range).unwrap();
                from.begin_outgoing(&stamp, &range).unwrap();
                let pairs = from.outgoing_batch(&stamp, &range, ALL).unwrap().pairs;
                to.install(&stamp, &Delta { pairs, deleted: Vec::new() }).unwrap();
                self.piece = Some(Piece { source, target, range, stamp, is_prepared: false });
            }
            Step::Freeze => {
                let Some(piece) = self.piece.as_mut().filter(|piece| !piece.is_prepared) else { return };
                let (from, to) = (&self.shards[piece.source], &self.shards[piece.target]);
                from.freeze(&piece.stamp).unwrap();
                let (delta, frozen) = from.frozen_parcel(&piece.stamp, self.now_ms).unwrap();
                to.install(&piece.stamp, &delta).unwrap();
                let shift_ms = frozen.shift_at(self.now_ms);
                to.prepare(&piece.stamp, &frozen, shift_ms).unwrap();
                piece.is_prepared = true;
            }
            Step::HandOver => {
                let Some(piece) = self.piece.take_if(|piece| piece.is_prepared) else { return };
                for place in 0..KEYS {
                    let (hash, key) = key(place);
                    if piece.range.contains(hash, &key) {
                        self.owner[usize::from(place)] = piece.target;
                    }
                }
                self.version += 1;
                self.learn(piece.target);
            }
            Step::Abort => {
                if let Some(piece) = self.piece.take() {
                    self.version += 1;
                    self.learn(piece.source);
                    self.learn(piece.target);
                }
            }
            Step::Learn => (0..self.shards.len()).for_each(|shard| self.learn(shard)),
            Step::Restore(shard) => {
                let shard = &mut self.shards[usize::from(*shard)];
                let fresh = Shard::new(shard.group(), HASH_KEY, None, 1);
                fresh.restore(&shard.snapshot().collect::<Vec<_>>().concat()).unwrap();
                *shard = fresh;
            }
            Step::Read(shard, most) => {
                self.read(usize::from(*shard), *most);
            }
            Step::Copy(..) => {}
        }
    }

    fn read(&mut self, shard: usize, most: usize) -> bool {
        let page = self.shards[shard].changes_since(&self.cursor, most).expect("it is kept");
        assert!(!page.is_lost(), "nothing has left the ring");
        let name = |event: &Event<'_>| match event.happened {
            Happened::Put(_) | Happened::PutLong(_) => "put",
            Happened::Deleted => "delete",
            Happened::Expired => "expire",
        };
        let told = &mut self.told;
        page.advance(&mut self.cursor, HASH_KEY, |event, _, _| {
            told.push((event.key[0] / 16, name(event), event.version));
        });
        page.up_to.is_some()
    }
}

proptest! {
    #[test]
    fn what_is_done_is_told_once_and_in_order_while_pieces_move(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Abort);
        world.step(&Step::Learn);
        for _ in 0..2 {
            for shard in 0..SHARDS.into() {
                while !world.read(shard, 50) {}
            }
        }
        for place in 0..KEYS {
            let told: Vec<_> = world.told.iter().filter(|told| told.0 == place).collect();
            let names: Vec<_> = told.iter().map(|told| told.1).collect();
            let done: Vec<_> = world.done.iter().filter(|done| done.0 == place).map(|done| done.1).collect();
            prop_assert_eq!(names, done, "place {}", place);
            prop_assert!(told.is_sorted_by(|one, next| one.2 < next.2));
        }
    }
}
