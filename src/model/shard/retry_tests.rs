//! What a shard remembers of writes, for how long, and where it goes.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::model::address::Address;
use crate::model::store::BatchLimit;

const HASH_KEY: HashKey = HashKey::FIRST_BYTE;
const KEEP_MS: u64 = 50_000;

/// A shard that owns the lower half of the space, or the upper.
fn half(is_upper: bool) -> (Shard, HashRange) {
    let middle = Point::before_hash(HASH_KEY.hash(&[128]).0);
    let range = if is_upper {
        HashRange { from: middle, to: None }
    } else {
        HashRange { from: Point::start(), to: Some(middle) }
    };
    (Shard::new(1, HASH_KEY, [range.clone()], 1), range)
}

fn node(number: u8) -> Address {
    format!("node{number}").parse().unwrap()
}

fn named(id: u128) -> RequestId {
    RequestId::Timed { id, fingerprint: 1 }
}

fn numbered(start: u64, number: u64, lowest: u64) -> RequestId {
    RequestId::Numbered { start, number, lowest }
}

/// A PUT of the key whose hash has this first byte.
fn put(shard: &Shard, key: u8, request: RequestId, now_ms: u64) -> Result<WriteOutcome, Refused> {
    let forwarded = Forwarded { request, epoch: 9, now_ms, keep_ms: KEEP_MS };
    let done = shard.run(HASH_KEY.hash(&[key]), &[key], Operation::put(b"1"), Some(forwarded));
    done.map(|done| match done {
        Done::Wrote(written) => written.outcome,
        Done::Read(_) | Done::Unread(..) => unreachable!("it is a PUT"),
    })
}

/// How many writes of any key were done.
fn writes(shard: &Shard) -> u64 {
    shard.audit().index
}

/// Whether a write is done; one that is not is answered from memory or refused.
fn is_done(shard: &Shard, key: u8, request: RequestId, now_ms: u64) -> bool {
    let before = writes(shard);
    let _ = put(shard, key, request, now_ms);
    writes(shard) > before
}

fn directive(version: u64, mine: &[HashRange], starts: &[(u8, u64)]) -> Directive {
    Directive {
        version,
        meta_group: 1,
        counting: None,
        planned: false,
        epoch: 2,
        mine: mine.to_vec(),
        open: Vec::new(),
        starts: starts.iter().map(|(number, start)| (node(*number), *start)).collect(),
    }
}

#[test]
fn a_named_write_is_remembered_for_its_time_whatever_is_written_meanwhile() {
    let (shard, _) = half(false);
    assert_eq!(put(&shard, 7, named(0), 1000), Ok(WriteOutcome::Added));
    for id in 1..20_000 {
        assert_eq!(put(&shard, 7, named(id), 1000), Ok(WriteOutcome::Updated));
    }
    assert_eq!(put(&shard, 7, named(0), 1000 + KEEP_MS - 1), Ok(WriteOutcome::Added), "as the first time");
    assert_eq!(writes(&shard), 20_000);
    assert_eq!(put(&shard, 7, named(0), 1000 + KEEP_MS), Ok(WriteOutcome::Updated), "it is a new one by now");
}

#[test]
fn the_memory_of_old_writes_comes_back() {
    let (shard, _) = half(false);
    for id in 0..1000 {
        put(&shard, u8::try_from(id % 100).unwrap(), named(id), 1).unwrap();
    }
    assert_eq!(shard.remembered_bytes(), 128_000);
    shard.forget_old();
    assert_eq!(shard.remembered_bytes(), 128_000);
    shard.pass_time(1 + KEEP_MS);
    shard.forget_old();
    assert_eq!(shard.remembered_bytes(), 0);
    shard.set_logged(true);
    shard.pass_time(u64::MAX);
    assert_eq!(shard.time(0), 1 + KEEP_MS, "the time of a log is that of its entries");
}

#[test]
fn a_name_that_stands_for_another_request_is_refused_and_nothing_is_done() {
    let (shard, _) = half(false);
    put(&shard, 7, named(1), 1).unwrap();
    let other = RequestId::Timed { id: 1, fingerprint: 2 };
    assert_eq!(put(&shard, 7, other, 2), Err(Refused::OtherRequest));
    assert_eq!(writes(&shard), 1);
    assert_eq!(put(&shard, 7, named(1), 3), Ok(WriteOutcome::Added));
    assert_eq!(put(&shard, 7, other, 1 + KEEP_MS), Ok(WriteOutcome::Updated), "the first is forgotten");
}

#[test]
fn what_a_node_has_an_answer_to_is_forgotten_and_never_done_again() {
    let (shard, range) = half(false);
    shard.learn(&directive(1, &[range], &[(1, 11)]));
    for number in 0..100 {
        assert!(is_done(&shard, 7, numbered(11, number, 0), 1));
    }
    let full = shard.remembered_bytes();
    assert!(!is_done(&shard, 7, numbered(11, 0, 0), 1_000_000), "time alone does not make it old");
    // All but two are answered.
    for number in 100..116 {
        assert!(is_done(&shard, 7, numbered(11, number, 98), 1));
    }
    assert_eq!(shard.remembered_bytes(), full / 100 * 18);
    assert_eq!(put(&shard, 7, numbered(11, 97, 0), 1), Err(Refused::Forgotten), "it was held up on its way");
    assert_eq!(put(&shard, 7, numbered(11, 98, 0), 1), Ok(WriteOutcome::Updated));
    assert_eq!(writes(&shard), 116);
}

#[test]
fn nothing_is_done_under_a_start_that_is_over_or_unknown() {
    let (shard, range) = half(false);
    let mine = std::slice::from_ref(&range);
    assert_eq!(put(&shard, 7, numbered(11, 0, 0), 1), Err(Refused::Forgotten), "not learned of yet");
    shard.learn(&directive(1, mine, &[(1, 11), (2, 21)]));
    assert!(is_done(&shard, 7, numbered(11, 0, 0), 1) && is_done(&shard, 7, numbered(21, 0, 0), 1));
    // Node 1 was started again, and node 2 has left.
    shard.learn(&directive(2, mine, &[(1, 12)]));
    assert_eq!(put(&shard, 7, numbered(11, 0, 0), 1), Err(Refused::Forgotten));
    assert_eq!(put(&shard, 7, numbered(11, 1, 0), 1), Err(Refused::Forgotten), "also what it never did");
    assert!(is_done(&shard, 7, numbered(12, 0, 0), 1));
    // What the other has begun it may end.
    assert!(!is_done(&shard, 7, numbered(21, 0, 0), 1) && is_done(&shard, 7, numbered(21, 1, 0), 2));
    assert!(!is_done(&shard, 7, numbered(21, 1, 0), 2 + KEEP_MS - 1));
    assert_eq!(put(&shard, 7, numbered(21, 1, 0), 1 + 2 * KEEP_MS + 1), Err(Refused::Forgotten));
    // It comes back as it was: nothing is left of what it did before.
    shard.learn(&directive(3, mine, &[(1, 12), (2, 21)]));
    assert!(is_done(&shard, 7, numbered(21, 2, 2), 2 * KEEP_MS));
    // It comes back as another one.
    shard.learn(&directive(4, mine, &[(1, 12)]));
    shard.learn(&directive(5, mine, &[(1, 12), (2, 22)]));
    assert_eq!(put(&shard, 7, numbered(21, 2, 2), 2 * KEEP_MS), Err(Refused::Forgotten));
}

#[test]
fn at_the_bound_only_new_names_find_no_room() {
    let (shard, range) = half(false);
    shard.learn(&directive(1, &[range], &[(1, 11)]));
    let has_room = |request, now_ms| shard.has_room_for(&request, HASH_KEY.hash(&[7]), now_ms, 1024);
    for id in 0..8 {
        assert!(has_room(named(id), 1));
        put(&shard, 7, named(id), 1).unwrap();
    }
    assert!(!has_room(named(8), 1) && has_room(named(0), 1) && has_room(numbered(11, 0, 0), 1));
    // Whoever leads does not know yet what a write of this time would make old.
    assert!(!has_room(named(8), KEEP_MS) && has_room(named(8), 1 + KEEP_MS));
    put(&shard, 7, named(8), 1 + KEEP_MS).unwrap();
    assert_eq!(shard.remembered_bytes(), 128);
    // What comes with a range is not refused.
    assert!(has_room(named(9), 1 + KEEP_MS));
}

/// Moves the whole lower half from one shard to another, whose time is another one.
fn move_half(source: &Shard, target: &Shard, times: (u64, u64), starts: &[(u8, u64)]) {
    let (_, range) = half(false);
    let (_, upper) = half(true);
    let stamp = Stamp { piece: PieceId { change: 1, index: 0, attempt: 0 }, term: 1, version: 10 };
    source.begin_outgoing(&stamp, &range).unwrap();
    target.begin_incoming(&stamp, &range).unwrap();
    let limit = BatchLimit { pairs: 1000, bytes: 1 << 20 };
    let pairs = source.outgoing_batch(&stamp, &range, limit).unwrap().pairs;
    target.install(&stamp, &Delta { pairs, deleted: Vec::new() }).unwrap();
    source.freeze(&stamp).unwrap();
    let (_, frozen) = source.frozen_parcel(&stamp, times.0).unwrap();
    let mut bytes = Vec::new();
    frozen.encode(&mut bytes);
    let frozen = Frozen::decode(&mut crate::model::binary::Reader::new(&bytes)).unwrap();
    let prepared = target.apply(&ShardCommand::Prepare { stamp, frozen, now_ms: times.1, shift_ms: None });
    assert!(matches!(prepared, ShardOutcome::Prepared(Ok(_))), "{prepared:?}");
    target.learn(&directive(11, &[range, upper], starts));
    source.learn(&directive(11, &[], starts));
}

#[test]
fn what_is_remembered_goes_along_with_its_range_and_keeps_its_age() {
    let (source, range) = half(false);
    let (target, upper) = half(true);
    let starts = [(1, 11), (2, 21)];
    source.learn(&directive(1, &[range], &starts));
    target.learn(&directive(1, &[upper], &starts));
    let other = RequestId::Timed { id: 1, fingerprint: 2 };
    put(&source, 7, named(1), 1000).unwrap();
    put(&source, 8, named(2), 6000).unwrap();
    for number in 1..4 {
        assert!(is_done(&source, 9, numbered(11, number, 1), 6000));
    }
    assert!(is_done(&target, 200, named(3), 5), "it was written to long ago");
    move_half(&source, &target, (11_000, 700_000), &starts);
    assert_eq!(source.remembered_bytes(), 3 * 96, "the names are not its own any more");
    assert_eq!(put(&target, 7, other, 700_001), Err(Refused::OtherRequest));
    assert!(!is_done(&target, 7, named(1), 700_000 + KEEP_MS - 10_001));
    assert!(!is_done(&target, 9, numbered(11, 2, 0), 700_000 + KEEP_MS));
    assert_eq!(put(&target, 9, numbered(11, 0, 0), 700_000), Err(Refused::Forgotten), "it was answered");
    assert!(is_done(&target, 7, named(1), 700_000 + KEEP_MS - 10_000));
    assert!(is_done(&target, 8, named(2), 700_000 + KEEP_MS - 5000));
}

#[test]
fn a_start_that_is_over_does_not_come_back_with_a_range() {
    let (source, range) = half(false);
    let (target, upper) = half(true);
    source.learn(&directive(1, &[range], &[(1, 11), (2, 21), (3, 31)]));
    target.learn(&directive(1, &[upper], &[(2, 21)]));
    for start in [11, 21, 31] {
        assert!(is_done(&source, 7, numbered(start, 5, 5), 1));
    }
    // By the state that hands the range over node 1 was started again, and node 3 is in the view no more.
    move_half(&source, &target, (1, 1), &[(1, 12), (2, 21)]);
    assert_eq!(put(&target, 7, numbered(11, 5, 5), 1), Err(Refused::Forgotten));
    assert!(!is_done(&target, 7, numbered(21, 5, 5), 1) && !is_done(&target, 7, numbered(31, 5, 5), 1));
    assert_eq!(put(&target, 7, numbered(31, 4, 4), 1), Err(Refused::Forgotten), "it was answered");
}

/// What a shard should remember, said as simply as possible.
#[derive(Default)]
struct Simple {
    time_ms: u64,
    timed: HashMap<u128, (u64, u64)>,
    /// By start: its node, whether it is named, until when it is known, the lowest, and what was done.
    starts: BTreeMap<u64, (u8, bool, u64, u64, Vec<u64>)>,
}

impl Simple {
    fn is_done(&mut self, request: RequestId, now_ms: u64) -> Result<bool, Refused> {
        self.time_ms = self.time_ms.max(now_ms);
        let (now, until) = (self.time_ms, self.time_ms + KEEP_MS);
        match request {
            RequestId::Timed { id, fingerprint } => match self.timed.get(&id) {
                Some((known, until)) if *until > now && *known != fingerprint => Err(Refused::OtherRequest),
                Some((_, until)) if *until > now => Ok(false),
                _ => {
                    self.timed.insert(id, (fingerprint, until));
                    Ok(true)
                }
            },
            RequestId::Numbered { start, number, lowest } => {
                let known = self.starts.get_mut(&start).filter(|start| start.1 || start.2 > now);
                let (_, _, until, at_least, done) = known.ok_or(Refused::Forgotten)?;
                (*until, *at_least) = (now + KEEP_MS, lowest.max(*at_least));
                if number < *at_least {
                    return Err(Refused::Forgotten);
                }
                let is_new = !done.contains(&number);
                done.push(number);
                Ok(is_new)
            }
        }
    }

    fn learn(&mut self, named: &[(u8, u64)]) {
        let now = self.time_ms;
        self.starts.retain(|start, (node, is_named, until, ..)| {
            let is_over = named.iter().any(|(other, current)| other == node && current != start);
            (*is_named || *until > now) && !is_over
        });
        self.starts.values_mut().for_each(|start| start.1 = false);
        for (node, start) in named {
            self.starts.entry(*start).or_insert((*node, true, 0, 0, Vec::new())).1 = true;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u8, RequestId, u64),
    Learn(Vec<(u8, u64)>),
    Sweep,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let timed = (0_u128..6, 0_u64..2).prop_map(|(id, print)| RequestId::Timed { id, fingerprint: print });
    let numbered = (0_u64..2, 0_u64..3, 0_u64..20, 0_u64..8);
    let numbered = numbered.prop_map(|(node, start, number, behind)| RequestId::Numbered {
        start: 10 * node + start,
        number,
        lowest: number.saturating_sub(behind),
    });
    let later = prop_oneof![6 => 0_u64..10, 1 => 20_000_u64..60_000];
    // The id of a name is one of its key, too.
    let write = (prop_oneof![timed, numbered], later);
    let write = write.prop_map(|(request, later)| match request {
        RequestId::Timed { id, .. } => Step::Write(u8::try_from(id).unwrap(), request, later),
        RequestId::Numbered { number, .. } => Step::Write(u8::try_from(number).unwrap(), request, later),
    });
    let named = prop::collection::vec((0_u8..2, 0_u64..3), 0..4).prop_map(|mut named| {
        named.dedup_by_key(|(node, _)| *node);
        named.sort_unstable();
        named.dedup_by_key(|(node, _)| *node);
        named.into_iter().map(|(node, start)| (node, 10 * u64::from(node) + start)).collect()
    });
    prop_oneof![12 => write, 2 => named.prop_map(Step::Learn), 1 => Just(Step::Sweep), 1 => Just(Step::Restore)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_write_is_done_once_for_as_long_as_it_is_remembered(steps in prop::collection::vec(step(), 0..120)) {
        let (mut shard, range) = half(false);
        let mut simple = Simple::default();
        let (mut version, mut now_ms) = (0, 0);
        for step in steps {
            match step {
                Step::Write(key, request, later) => {
                    now_ms += later;
                    let before = writes(&shard);
                    let got = put(&shard, key, request, now_ms).map(|_| writes(&shard) > before);
                    prop_assert_eq!(got, simple.is_done(request, now_ms), "{:?}", request);
                }
                Step::Learn(named) => {
                    version += 1;
                    shard.learn(&directive(version, std::slice::from_ref(&range), &named));
                    simple.learn(&named);
                }
                Step::Sweep => shard.forget_old(),
                Step::Restore => {
                    let snapshot = shard.snapshot().collect::<Vec<_>>().concat();
                    shard = Shard::new(1, HASH_KEY, [], 1);
                    shard.restore(&snapshot).unwrap();
                }
            }
        }
    }

    #[test]
    fn ids_survive_their_forms(timed: bool, wide: u128, start: u64, number: u64, behind: u64, rest in "[.0-9a-z]{0,3}") {
        let lowest = number.saturating_sub(behind);
        let request = if timed {
            RequestId::Timed { id: wide, fingerprint: start }
        } else {
            RequestId::Numbered { start, number, lowest }
        };
        let text = request.to_string();
        prop_assert_eq!(RequestId::parse(&text), Some(request));
        if let Some(read) = RequestId::parse(&format!("{text}{rest}")) {
            prop_assert_eq!(RequestId::parse(&read.to_string()), Some(read));
        }
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        prop_assert_eq!(RequestId::decode(&mut crate::model::binary::Reader::new(&bytes)), Ok(request));
    }
}

#[test]
fn an_id_that_contradicts_itself_is_none() {
    for text in [
        "",
        "t",
        "t.1",
        "n.1.2",
        "n.1.2.3",
        "n.1.2.2.2",
        "x.1.1",
        "t.-1.1",
        "00112233445566778899aabbccddeeff",
    ] {
        assert_eq!(RequestId::parse(text), None, "{text}");
    }
}
