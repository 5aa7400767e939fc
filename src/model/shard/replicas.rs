//! Shards that are changed by commands only, as the replicas of a group are.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::snapshot::WITHOUT_HISTORY;
use super::*;
use crate::model::address::Address;
use crate::model::binary::Reader;
use crate::model::condition::Versions;
use crate::model::format;
use crate::model::history::{Happened, History};
use crate::model::pages::Record;
use crate::model::store::{BatchLimit, Copied, Value};
use crate::model::ttl::{Parts, Ttl};
use crate::model::value::ContentType;

const HASH_KEY: HashKey = HashKey::FIRST_BYTE;
/// The space is cut into as many ranges, of which each is a piece.
const RANGES: u8 = 4;
const KEYS: u8 = 32;
const TYPED: u8 = 13;

fn range(number: u8) -> HashRange {
    let cut = |number: u8| Point::before_hash(HASH_KEY.hash(&[number * (KEYS / RANGES)]).0);
    HashRange { from: cut(number), to: (number + 1 < RANGES).then(|| cut(number + 1)) }
}

/// The keys of the last range have the highest hashes, and each hash two keys.
fn key(number: u8) -> Box<[u8]> {
    [&[number / 2 * 2][..], if number.is_multiple_of(2) { b"" } else { b"b" }].concat().into()
}

/// Short ones lie in pages, the others by themselves. One has a type of its own.
fn value(number: u8) -> Box<[u8]> {
    if number == TYPED {
        return [ContentType::new("text/plain").unwrap().head(), b"x".to_vec()].concat().into();
    }
    let length = if number.is_multiple_of(5) { 2100 } else { usize::from(number) };
    vec![b'0' + number % 10; length].into()
}

/// What was done last in a range, as another shard sends it along.
fn history_of(number: u8, version: u64) -> Vec<u8> {
    let mut history = History::new(1 << 20);
    history.own(&range(number), version / 2);
    history.serve(&[range(number)]);
    history.note(version, &key(number), Happened::Deleted);
    history.of_range(&range(number), HASH_KEY)
}

fn empty() -> Shard {
    let shard = Shard::new(1, HASH_KEY, [], 1);
    shard.set_logged(true);
    shard
}

fn founded() -> Shard {
    let shard = Shard::new(1, HASH_KEY, [range(0), range(1), range(2)], 1);
    shard.set_logged(true);
    shard
}

fn snapshot(shard: &Shard) -> Vec<u8> {
    shard.snapshot().collect::<Vec<_>>().concat()
}

fn restored(shard: &Shard) -> Shard {
    let other = empty();
    other.restore(&snapshot(shard)).unwrap();
    other
}

/// Version and value by key.
type Pairs = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// All that a snapshot holds: what is not pairs as it stands there, and the pairs in order.
fn content(shard: &Shard) -> (Vec<u8>, Pairs) {
    let bytes = snapshot(shard);
    let mut reader = Reader::new(&bytes);
    // The form, the hash key, the counter of versions and the time.
    let (form, _) = (reader.number().unwrap(), reader.wide().unwrap());
    let _ = (reader.number().unwrap(), reader.number().unwrap());
    Table::decode(form, &mut reader).unwrap();
    reader.list(|reader| Ok((StartMark::decode(reader)?, reader.flag()?))).unwrap();
    if form > WITHOUT_HISTORY && reader.flag().unwrap() {
        History::decode(&mut reader, 1 << 20).unwrap();
    }
    reader.list(RetryRecord::decode).unwrap();
    let head = bytes[..bytes.len() - reader.rest().len()].to_vec();
    let mut pairs = Pairs::new();
    loop {
        let count = reader.number().unwrap();
        for _ in 0..count {
            let Record { version, key, value } = Record::decode(&mut reader).unwrap();
            pairs.insert(key.to_vec(), (version, value.to_vec()));
        }
        if count == 0 {
            reader.end().unwrap();
            return (head, pairs);
        }
    }
}

/// What readers of a shard are told: of the pairs, of each attempt, and of the view change.
fn told(shard: &Shard) -> String {
    let deltas = stamps().map(|stamp| {
        let delta = shard.taken_delta(&stamp).map(|delta| {
            let mut pairs: Vec<_> = delta.pairs.iter().map(|pair| (&pair.key, pair.version)).collect();
            let mut deleted = delta.deleted.clone();
            pairs.sort();
            deleted.sort();
            format!("{pairs:?} {deleted:?}")
        });
        (delta, shard.frozen_parcel(&stamp, shard.time(0)).map(|(_, frozen)| frozen))
    });
    let deltas: Vec<_> = deltas.collect();
    // Nobody asks for places of what was dropped, which may still be there.
    let is_owned =
        shard.owned().iter().any(|(owned, _)| ranges::cover(std::slice::from_ref(owned), &range(1)));
    let ranks: Vec<_> = (0..3).filter(|_| is_owned).map(|rank| (range(1), rank)).collect();
    let audit = shard.audit();
    assert_eq!(audit.stray, 0);
    // All that will end here, in which order.
    let ends = shard.store.over(&shard.table.read().serving(), u64::MAX, usize::MAX);
    let view_change = (ends, shard.tally(1), shard.places(census(1), &ranks), shard.version());
    format!("{audit:?} {:?} {view_change:?} {deltas:?}", (shard.owned(), shard.size().pairs))
}

/// Any takes the place of any.
fn census(change: u64) -> CensusId {
    CensusId { version: 1, term: 0, number: 0, change }
}

fn stamps() -> impl Iterator<Item = Stamp> {
    (0..u32::from(RANGES)).flat_map(|index| (0..2).map(move |attempt| stamp(index, attempt, 9, 0)))
}

fn stamp(index: u32, attempt: u32, term: u64, version: u64) -> Stamp {
    Stamp { piece: PieceId { change: 1, index, attempt }, term, version }
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        key: u8,
        value: Option<u8>,
        condition: Option<Condition>,
        request: RequestId,
        epoch: u64,
        later_ms: u64,
        ttl: Option<Ttl>,
        is_touch: bool,
    },
    /// Pairs end.
    PassTime(u64),
    KeepHistory,
    BeginOutgoing(u8, u32),
    TakeDelta(u8, u32),
    Freeze(u8, u32),
    BeginIncoming(u8, u32),
    Install {
        at: (u8, u32),
        key: u8,
        value: u8,
        version: u64,
        end_ms: Option<u64>,
        deleted: u8,
    },
    Prepare {
        at: (u8, u32),
        fits: bool,
        index: u64,
        record: u8,
        remembered: Remembered,
        shift_ms: Option<i64>,
    },
    Learn {
        mine: Vec<u8>,
        open: Vec<(u8, u32)>,
        counting: bool,
        planned: bool,
        meta_group: u64,
        starts: Vec<(u8, u64)>,
    },
    Census(u64),
    CloseCensus(u64),
    BeginAudit(u64),
    /// Some of an audit is read, by one of the two shards only.
    AuditSome,
    /// Only one of the two shards does this.
    Sweep,
    /// As does this: it gives way to a new one.
    Restore,
}

/// Of two nodes, each of which may be started twice.
fn start() -> impl Strategy<Value = (u8, u64)> {
    (0_u8..2, 0_u64..2).prop_map(|(node, start)| (node, 10 * u64::from(node) + start))
}

/// Mostly both nodes are named.
fn starts() -> impl Strategy<Value = Vec<(u8, u64)>> {
    prop::collection::vec(start(), 0..8).prop_map(|mut starts| {
        starts.sort_unstable();
        starts.dedup_by_key(|(node, _)| *node);
        starts
    })
}

fn request() -> impl Strategy<Value = RequestId> {
    let timed = (0_u128..40, 0_u64..2);
    let numbered = (start(), 0_u64..30, 0_u64..12);
    prop_oneof![
        timed.prop_map(|(id, fingerprint)| RequestId::Timed { id, fingerprint }),
        numbered.prop_map(|((_, start), number, behind)| {
            RequestId::Numbered { start, number, lowest: number.saturating_sub(behind) }
        }),
    ]
}

fn remembered() -> impl Strategy<Value = Remembered> {
    let mark = (start(), any::<bool>(), 0_u64..20, 0_u64..60_000).prop_map(
        |((node, start), is_named, lowest, until_ms)| StartMark {
            start,
            node: is_named.then(|| address(node)),
            lowest,
            until_ms,
        },
    );
    let record = (request(), 0..KEYS, 0_u64..60_000).prop_map(|(request, number, until_ms)| {
        let outcome = if number < KEYS / 4 { WriteOutcome::Unmet } else { WriteOutcome::Added };
        let written = Written { outcome, version: u64::from(number) };
        let done = Recorded { hash: HASH_KEY.hash(&key(number)).0, written };
        match request {
            RequestId::Timed { id, fingerprint } => {
                RetryRecord::Timed(TimedRecord { id, fingerprint, until_ms, done })
            }
            RequestId::Numbered { start, number, .. } => {
                RetryRecord::Numbered(NumberedRecord { start, number, done })
            }
        }
    });
    (prop::collection::vec(mark, 0..3), prop::collection::vec(record, 0..6))
        .prop_map(|(starts, records)| Remembered { starts, records })
}

fn condition() -> impl Strategy<Value = Condition> {
    let these = prop::collection::vec(1_u64..60, 0..3).prop_map(|all| Versions::These(all.into()));
    let versions = || prop_oneof![Just(Versions::Any), these.clone()];
    let versions = (versions(), versions());
    (versions, any::<bool>()).prop_map(|((one, other), has_both)| Condition {
        if_match: has_both.then_some(other),
        if_none_match: Some(one),
    })
}

fn address(node: u8) -> Address {
    format!("node{node}").parse().unwrap()
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..RANGES, 0_u32..2);
    let of = |make: fn(u8, u32) -> Step| at().prop_map(move |(range, attempt)| make(range, attempt));
    let what = (prop::option::weighted(0.7, 0_u8..20), prop::option::weighted(0.3, condition()));
    let life = (prop::option::weighted(0.4, 1_u64..200), prop::bool::weighted(0.1));
    let write = (0..KEYS, what, request(), 0_u64..4, 0_u64..9, life);
    let write = write.prop_map(|(key, (value, condition), request, epoch, later, life)| Step::Write {
        key,
        value,
        condition,
        request,
        epoch,
        // Some records leave because of their age.
        later_ms: if later == 0 { 30_000 } else { later },
        ttl: life.0.and_then(Ttl::from_ms),
        is_touch: life.1,
    });
    let end_ms = prop::option::weighted(0.3, 0_u64..200);
    let install = (at(), 0..KEYS / RANGES, 0_u8..20, 1_u64..200, 0..KEYS, end_ms);
    let install = install.prop_map(|(at, key, value, version, deleted, end_ms)| {
        let key = at.0 * (KEYS / RANGES) + key;
        Step::Install { at, key, value, version, end_ms, deleted }
    });
    let shift_ms = prop::option::of(-100_i64..100_000);
    let prepare = (at(), prop::bool::weighted(0.8), 0_u64..300, 0..KEYS, remembered(), shift_ms);
    let prepare = prepare.prop_map(|(at, fits, index, record, remembered, shift_ms)| Step::Prepare {
        at,
        fits,
        index,
        record,
        remembered,
        shift_ms,
    });
    let lists = (prop::sample::subsequence(vec![0, 1, 2, 3], 0..=4), prop::collection::vec(at(), 0..5));
    let learn = (lists, any::<bool>(), prop::bool::weighted(0.2), 0_u64..12, starts());
    let learn = learn.prop_map(|((mine, open), counting, planned, group, starts)| Step::Learn {
        mine,
        open,
        counting,
        planned,
        meta_group: 1 + u64::from(group == 0),
        starts,
    });
    prop_oneof![
        12 => write,
        3 => (0_u64..200).prop_map(Step::PassTime),
        1 => Just(Step::KeepHistory),
        2 => of(Step::BeginOutgoing),
        2 => of(Step::TakeDelta),
        1 => of(Step::Freeze),
        3 => of(Step::BeginIncoming),
        8 => install,
        3 => prepare,
        3 => learn,
        1 => (1_u64..3).prop_map(Step::Census),
        1 => (1_u64..3).prop_map(Step::CloseCensus),
        1 => (1_u64..20).prop_map(Step::BeginAudit),
        2 => Just(Step::AuditSome),
        2 => Just(Step::Sweep),
        1 => Just(Step::Restore),
    ]
}

/// What turns steps into commands that a shard often obeys.
struct Orders {
    version: u64,
    now_ms: u64,
}

impl Orders {
    /// The command of a step to a shard; nothing where it is none.
    fn command(&mut self, step: &Step, shard: &Shard) -> Option<ShardCommand> {
        let next = self.version + 1;
        let of = |(range, attempt): (u8, u32)| stamp(range.into(), attempt, 1, next);
        Some(match step {
            Step::Write { key: number, value: text, condition, request, epoch, later_ms, ttl, is_touch } => {
                self.now_ms += later_ms;
                let (request, epoch) = (*request, *epoch);
                let forwarded = Forwarded { request, epoch, now_ms: self.now_ms, keep_ms: 50_000 };
                let condition = condition.clone().map(Box::new);
                let change = match text {
                    _ if *is_touch => Change::Touch,
                    Some(text) => Change::Put(value(*text)),
                    None => Change::Delete,
                };
                let ttl = ttl.filter(|_| change != Change::Delete);
                ShardCommand::Write { key: key(*number), change, condition, ttl, forwarded }
            }
            Step::PassTime(later_ms) => {
                self.now_ms += later_ms;
                ShardCommand::PassTime { now_ms: self.now_ms }
            }
            Step::KeepHistory => ShardCommand::KeepHistory,
            Step::BeginOutgoing(number, attempt) => {
                ShardCommand::BeginOutgoing { stamp: of((*number, *attempt)), range: range(*number) }
            }
            Step::TakeDelta(number, attempt) => ShardCommand::TakeDelta { stamp: of((*number, *attempt)) },
            Step::Freeze(number, attempt) => ShardCommand::Freeze { stamp: of((*number, *attempt)) },
            Step::BeginIncoming(number, attempt) => {
                ShardCommand::BeginIncoming { stamp: of((*number, *attempt)), range: range(*number) }
            }
            Step::Install { at, key: number, value: text, version, end_ms, deleted } => {
                let stored = Parts { end_ms: *end_ms, value: &value(*text) }.stored().into_owned();
                let stored = Value::Small(stored.into());
                let pair = Copied { key: key(*number), value: stored, version: *version };
                let delta = Delta { pairs: vec![pair], deleted: vec![key(*deleted)] };
                ShardCommand::Install { stamp: of(*at), delta }
            }
            Step::Prepare { at, fits, index, record, remembered, shift_ms } => {
                let mut checksum = shard.store.checksum(&range(at.0));
                checksum.sum += u128::from(!fits);
                let mut remembered = remembered.clone();
                let written = Written { outcome: WriteOutcome::Added, version: 1 };
                let done = Recorded { hash: HASH_KEY.hash(&key(*record)).0, written };
                let (id, fingerprint, until_ms) = (1000 + u128::from(*record), 0, 40_000);
                let record = TimedRecord { id, fingerprint, until_ms, done };
                remembered.records.push(RetryRecord::Timed(record));
                let history = if index % 3 == 0 { Vec::new() } else { history_of(at.0, *index) };
                let frozen = Frozen { checksum, index: *index, time_ms: None, remembered, history };
                ShardCommand::Prepare { stamp: of(*at), frozen, now_ms: self.now_ms, shift_ms: *shift_ms }
            }
            Step::Learn { mine, open, counting, planned, meta_group, starts } => {
                self.version = next;
                ShardCommand::Learn(Directive {
                    version: next,
                    meta_group: *meta_group,
                    counting: counting.then_some(1),
                    planned: *planned,
                    epoch: next / 4,
                    mine: mine.iter().map(|number| range(*number)).collect(),
                    open: open.iter().map(|at| of(*at).piece).collect(),
                    starts: starts.iter().map(|(node, start)| (address(*node), *start)).collect(),
                })
            }
            Step::Census(change) => {
                ShardCommand::Census { id: census(*change), ranges: vec![HashRange::all(), range(1)] }
            }
            Step::CloseCensus(change) => ShardCommand::CloseCensus { id: census(*change) },
            Step::BeginAudit(id) => ShardCommand::BeginAudit { id: *id },
            Step::AuditSome | Step::Sweep | Step::Restore => return None,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn replicas_stay_equal_whatever_they_sweep_and_wherever_they_begin(
        steps in prop::collection::vec(step(), 0..150)
    ) {
        let (one, mut other) = (founded(), founded());
        let mut orders = Orders { version: 0, now_ms: 1 };
        for step in &steps {
            match orders.command(step, &one) {
                Some(command) => {
                    let outcome = one.apply(&command);
                    // As the log has it.
                    let bytes = command.encode();
                    let read = ShardCommand::decode(&bytes).unwrap();
                    prop_assert_eq!(&outcome, &other.apply(&read), "{:?}", step);
                    prop_assert_eq!(ShardOutcome::decode(&outcome.encode()), Ok(outcome));
                    prop_assert_eq!(read.encode(), bytes);
                }
                None if matches!(step, Step::Sweep) => {
                    other.sweep();
                    other.forget_old();
                }
                None if matches!(step, Step::AuditSome) => {
                    other.audit_some();
                }
                None => other = restored(&other),
            }
            prop_assert_eq!(told(&one), told(&other), "{:?}", step);
        }
        prop_assert_eq!(content(&one), content(&other));
        // Whatever was written, and moved, and swept after it was begun.
        for shard in [&one, &other] {
            while shard.audit_some() {}
        }
        for id in 1..20 {
            if let (AuditState::Found(audit), AuditState::Found(same)) = (one.audit_state(id), other.audit_state(id)) {
                prop_assert_eq!((audit.stray, audit.unaccounted, audit.counted), (0, 0, audit.pairs));
                prop_assert_eq!(audit, same);
            }
        }
    }

    #[test]
    fn a_command_cut_short_is_refused_and_a_damaged_one_read_without_a_panic(
        step in step(), cut: Index, at: Index, to: u8
    ) {
        let mut orders = Orders { version: 3, now_ms: 1 };
        if let Some(command) = orders.command(&step, &founded()) {
            let mut bytes = command.encode();
            prop_assert!(ShardCommand::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(read) = ShardCommand::decode(&bytes) {
                prop_assert_eq!(ShardCommand::decode(&read.encode()).unwrap().encode(), read.encode());
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(kind in 0_u8..13, bytes: Vec<u8>) {
        let bytes = [&[kind][..], &bytes].concat();
        let _ = ShardCommand::decode(&bytes);
        let _ = ShardOutcome::decode(&bytes);
        let _ = empty().restore(&bytes);
    }

    #[test]
    fn a_snapshot_that_is_none_changes_nothing(
        steps in prop::collection::vec(step(), 0..40), cut: Index, at: Index, to: u8
    ) {
        let (shard, other) = (founded(), founded());
        let mut orders = Orders { version: 0, now_ms: 1 };
        for step in &steps {
            orders.command(step, &shard).map(|command| shard.apply(&command));
        }
        let mut bytes = snapshot(&shard);
        let before = told(&other);
        prop_assert!(other.restore(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert_eq!(told(&other), before);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = other.restore(&bytes);
    }
}

fn write(shard: &Shard, number: u8, text: Option<u8>, request: u64) -> ShardOutcome {
    let forwarded = Forwarded { request: request.into(), epoch: 1, now_ms: 1, keep_ms: 1000 };
    let text = text.map(value);
    let operation = text.as_deref().map_or(Operation::DELETE, Operation::put);
    let command = encode_write(&key(number), operation, &forwarded);
    shard.apply(&ShardCommand::decode(&command).unwrap())
}

#[test]
fn a_write_that_is_sent_again_after_a_snapshot_is_done_once() {
    let shard = founded();
    let came_to = |outcome, version| ShardOutcome::Write(Ok(Written { outcome, version }));
    assert_eq!(write(&shard, 1, Some(1), 7), came_to(WriteOutcome::Added, 1));
    assert_eq!(write(&shard, 1, None, 8), came_to(WriteOutcome::Deleted, 2));
    let other = restored(&shard);
    assert_eq!(write(&other, 1, Some(1), 7), came_to(WriteOutcome::Added, 1));
    assert_eq!(other.size().pairs, 0);
    assert_eq!(write(&other, 1, Some(1), 9), came_to(WriteOutcome::Added, 3));
    assert_eq!((other.size().pairs, other.audit().index), (1, 3));
}

#[test]
fn only_a_snapshot_that_remembers_an_unmet_condition_has_a_form_that_nodes_before_cannot_read() {
    let shard = founded();
    write(&shard, 1, Some(1), 7);
    assert_eq!(form_of(&snapshot(&shard)), Ok(2));
    let command = |request: u64| ShardCommand::Write {
        key: key(1),
        change: Change::Delete,
        ttl: None,
        condition: Some(Condition { if_match: None, if_none_match: Some(Versions::Any) }.into()),
        forwarded: Forwarded { request: request.into(), epoch: 1, now_ms: 1, keep_ms: 1000 },
    };
    let unmet = ShardOutcome::Write(Ok(Written { outcome: WriteOutcome::Unmet, version: 1 }));
    assert_eq!((shard.apply(&command(8)), command(8).needs()), (unmet.clone(), format::CONDITIONS));
    assert_eq!(form_of(&snapshot(&shard)), Ok(3));
    let other = restored(&shard);
    write(&other, 1, Some(2), 9);
    assert_eq!(other.apply(&command(8)), unmet, "as the first time");
    let mut unknown = snapshot(&shard);
    unknown[0] = 6;
    assert!(other.restore(&unknown).is_err());
    // What goes along with a range needs it, too.
    let frozen = |remembered| Frozen { remembered, ..Frozen::default() };
    let prepare = |remembered| ShardCommand::Prepare {
        stamp: stamp(0, 0, 1, 1),
        frozen: frozen(remembered),
        now_ms: 1,
        shift_ms: None,
    };
    let table = shard.table.read();
    let all = shard.remembered(&table, &HashRange::all());
    assert_eq!(prepare(all).needs(), format::CONDITIONS);
    assert_eq!(prepare(Remembered::default()).needs(), format::FIRST);
}

#[test]
fn what_has_a_value_with_a_type_is_nothing_for_nodes_before() {
    let shard = founded();
    write(&shard, 1, Some(1), 7);
    let typed = value(TYPED);
    let put = |request: u64| ShardCommand::Write {
        key: key(2),
        change: Change::Put(typed.clone()),
        condition: None,
        ttl: None,
        forwarded: Forwarded { request: request.into(), epoch: 1, now_ms: 1, keep_ms: 1000 },
    };
    assert_eq!(put(8).needs(), format::TYPES);
    assert_eq!(form_of(&snapshot(&shard)), Ok(2));
    shard.apply(&put(8));
    assert_eq!(form_of(&snapshot(&shard)), Ok(4));
    // Replicas agree on it, whenever they were filled, also when it is gone again.
    let early = restored(&shard);
    for replica in [&shard, &early] {
        write(replica, 2, None, 9);
    }
    let late = restored(&shard);
    for replica in [&shard, &early, &late] {
        assert_eq!(snapshot(replica), snapshot(&shard));
        assert_eq!(form_of(&snapshot(replica)), Ok(4));
    }
    // What is moved needs it, too.
    let install = |value: &[u8]| {
        let copied = Copied { key: key(2), value: Value::Small(value.into()), version: 3 };
        let delta = Delta { pairs: vec![copied], deleted: Vec::new() };
        ShardCommand::Install { stamp: stamp(0, 0, 1, 1), delta }.needs()
    };
    assert_eq!((install(&typed), install(b"1")), (format::TYPES, format::FIRST));
}

#[test]
fn no_direct_write_slips_past_the_log() {
    let shard = founded();
    let hash = HASH_KEY.hash(&key(1));
    for operation in [Operation::put(b"1"), Operation::DELETE] {
        assert_eq!(shard.run(hash, &key(1), operation, None).err(), Some(Refused::Logged));
    }
    assert_eq!((shard.is_logged(), shard.audit().index), (true, 0));
    write(&shard, 1, Some(1), 1);
    assert!(matches!(shard.run(hash, &key(1), Operation::GET, None), Ok(Done::Read(Some(_)))));
    let other = Shard::new(2, HASH_KEY, [], 1);
    other.restore(&snapshot(&shard)).unwrap();
    assert_eq!((other.is_logged(), other.group()), (false, 2), "neither is part of a snapshot");
    shard.set_logged(false);
    let deleted = shard.run(hash, &key(1), Operation::DELETE, None);
    assert!(matches!(deleted, Ok(Done::Wrote(Written { outcome: WriteOutcome::Deleted, .. }))));
}

#[test]
fn a_snapshot_is_that_of_its_beginning_and_comes_in_pieces() {
    let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
    let put = |number: u32, value: &[u8]| {
        let key = number.to_be_bytes();
        shard.run(HashKey::PUBLISHED.hash(&key), &key, Operation::put(value), None).map(|_| ())
    };
    (0..20_000).for_each(|number| put(number, &[b'1'; 100]).unwrap());
    put(20_000, &vec![b'2'; 3_000_000]).unwrap();
    let (begun, before) = (shard.snapshot(), shard.audit());
    (0..20_000).for_each(|number| put(number, b"3").unwrap());
    let pieces: Vec<_> = begun.collect();
    let large = pieces.iter().filter(|piece| piece.len() > 300 << 10).count();
    assert!(large == 1 && pieces.len() > 8, "{} pieces", pieces.len());
    let other = Shard::new(1, HashKey::PUBLISHED, [], 1);
    other.restore(&pieces.concat()).unwrap();
    assert_eq!((other.audit(), other.size().pairs), (before, 20_001));
}

#[test]
fn a_snapshot_under_another_hash_key_is_refused() {
    let other = Shard::new(1, HashKey::PUBLISHED, [], 1);
    assert!(other.restore(&snapshot(&founded())).is_err());
}

#[test]
fn ten_thousand_retry_records_keep_their_order() {
    let shard = founded();
    (0..10_000).for_each(|request| drop(write(&shard, select_key(request), Some(1), request.into())));
    assert_eq!(content(&restored(&shard)), content(&shard));
}

fn select_key(request: u32) -> u8 {
    u8::try_from(request % 20).expect("a small number")
}

#[test]
#[ignore = "a measurement, to be run in a release build"]
#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn what_a_snapshot_of_a_million_pairs_costs() {
    let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
    for number in 0_u64..1_000_000 {
        let key = [number.to_be_bytes(), number.to_le_bytes()].concat();
        let done = shard.run(HashKey::PUBLISHED.hash(&key), &key, Operation::put(&[b'1'; 84]), None);
        assert!(done.is_ok());
    }
    let start = std::time::Instant::now();
    let mut begun = shard.snapshot();
    println!("begun after {:?}", start.elapsed());
    let (mut pieces, mut longest) = (Vec::new(), std::time::Duration::ZERO);
    loop {
        let start = std::time::Instant::now();
        let piece = begun.next();
        longest = longest.max(start.elapsed());
        let Some(piece) = piece else { break };
        pieces.push(piece);
    }
    println!("{} pieces after {:?}, the longest took {longest:?}", pieces.len(), start.elapsed());
    let bytes = pieces.concat();
    let start = std::time::Instant::now();
    Shard::new(1, HashKey::PUBLISHED, [], 1).restore(&bytes).unwrap();
    println!("{} MB restored in {:?}", bytes.len() >> 20, start.elapsed());
}

/// A write of a pair that lives for a time, or is touched so; without a change it is to be put.
fn living(key: u8, change: Option<Change>, ttl_ms: Option<u64>, now_ms: u64) -> ShardCommand {
    let id = 1_000_000 + u128::from(now_ms) * 256 + u128::from(key);
    let request = RequestId::Timed { id, fingerprint: 0 };
    ShardCommand::Write {
        key: self::key(key),
        change: change.unwrap_or_else(|| Change::Put(value(key))),
        condition: None,
        ttl: ttl_ms.and_then(Ttl::from_ms),
        forwarded: Forwarded { request, epoch: 9, now_ms, keep_ms: 1000 },
    }
}

fn pass(shard: &Shard, now_ms: u64) {
    assert_eq!(shard.apply(&ShardCommand::PassTime { now_ms }), ShardOutcome::Done);
}

fn is_there(shard: &Shard, number: u8) -> bool {
    let key = key(number);
    matches!(shard.run(shard.hash_of(&key), &key, Operation::GET, None), Ok(Done::Read(Some(_))))
}

#[test]
fn a_pair_lives_until_the_time_is_after_its_end_and_is_counted_as_deleted() {
    let shard = founded();
    let count =
        |shard: &Shard| shard.apply(&ShardCommand::Census { id: census(1), ranges: vec![HashRange::all()] });
    shard.apply(&living(0, None, Some(1000), 5000));
    shard.apply(&living(2, None, None, 5000));
    // Of one that was written since, or touched, the first end says nothing.
    shard.apply(&living(4, None, Some(1000), 5000));
    shard.apply(&living(4, None, None, 5001));
    shard.apply(&living(6, None, Some(1000), 5000));
    shard.apply(&living(6, Some(Change::Touch), Some(2000), 5001));
    assert_eq!(count(&shard), ShardOutcome::Census(Some(CensusCount { pairs: vec![4] })));
    let index = shard.audit().index;
    let wants = |now_ms: u64| shard.wants_time(now_ms);
    assert_eq!((wants(5001), wants(5501)), (TimeWanted::No, TimeWanted::Yes), "twice a second");
    pass(&shard, 6000);
    assert!([0, 2, 4, 6].into_iter().all(|number| is_there(&shard, number)));
    assert_eq!(wants(6001), TimeWanted::Yes);
    pass(&shard, 6001);
    let there = [0, 2, 4, 6].map(|number| is_there(&shard, number));
    assert_eq!(there, [false, true, true, true]);
    assert_eq!(shard.tally(1).0, Tally { created: 0, deleted: 1 });
    pass(&shard, 7002);
    assert_eq!((is_there(&shard, 6), shard.size().pairs), (false, 2));
    assert_eq!(wants(1 << 40), TimeWanted::No, "nothing ends any more");
    assert_eq!(shard.audit().index, index, "no version is drawn");
    // What is gone is absent: it is created anew.
    let added = shard.apply(&living(0, None, Some(1), 8000));
    assert!(matches!(added, ShardOutcome::Write(Ok(Written { outcome: WriteOutcome::Added, .. }))));
}

#[test]
fn a_pair_of_a_shard_without_a_log_is_over_for_whoever_asks_for_it() {
    let shard = Shard::new(1, HASH_KEY, [range(0)], 1);
    let (key, other) = (key(0), key(3));
    let hash = shard.hash_of(&key);
    let ends = |shard: &Shard, key: &[u8], now_ms: u64| {
        let has_ended = shard.end_in_time(shard.hash_of(key), key, || now_ms);
        (has_ended, shard.size().pairs)
    };
    assert_eq!(ends(&shard, &key, 1 << 40), (false, 0), "it is not there");
    shard.note_time(5000);
    let operation = Operation::put(b"1").living(Ttl::from_ms(1000));
    assert!(shard.run(hash, &key, operation, None).is_ok());
    assert_eq!(ends(&shard, &key, 6000), (false, 1));
    assert_eq!(ends(&shard, &other, 6001), (false, 1), "nobody has asked for it");
    shard.set_logged(true);
    assert_eq!(ends(&shard, &key, 6001), (false, 1), "only an entry ends it");
    shard.set_logged(false);
    let at = stamp(0, 0, 1, 1);
    shard.begin_outgoing(&at, &range(0)).unwrap();
    shard.freeze(&at).unwrap();
    assert_eq!(ends(&shard, &key, 6001), (false, 1), "it goes to another shard as it is");
    let given_up = Directive {
        version: 2,
        meta_group: 1,
        counting: None,
        planned: false,
        epoch: 1,
        mine: vec![range(0)],
        open: Vec::new(),
        starts: Vec::new(),
    };
    shard.learn(&given_up);
    assert_eq!(ends(&shard, &key, 6001), (true, 0));
    assert_eq!((ends(&shard, &key, 6001), shard.time(0)), ((false, 0), 6001));
}

#[test]
fn many_pairs_end_by_several_entries_in_one_order() {
    let (one, other) = (founded(), founded());
    for shard in [&one, &other] {
        for number in 0..3000_u32 {
            let key = [&[2][..], &number.to_be_bytes()].concat();
            let ttl = Ttl::from_ms(u64::from(number % 7) + 1);
            let stored = Operation::put(b"1").living(ttl);
            let forwarded = Forwarded { request: u64::from(number).into(), epoch: 9, now_ms: 1, keep_ms: 1 };
            let command = ShardCommand::decode(&encode_write(&key, stored, &forwarded)).unwrap();
            shard.apply(&command);
        }
    }
    let late = restored(&other);
    for left in [952, 0, 0] {
        for shard in [&one, &other, &late] {
            pass(shard, 9);
            assert_eq!(shard.size().pairs, left);
            assert_eq!(shard.wants_time(9), if left > 0 { TimeWanted::Again } else { TimeWanted::No });
        }
        assert_eq!(content(&one), content(&other));
        assert_eq!(content(&one), content(&late));
    }
}

/// The two groups have come to other times. What is left counts, whatever has the pair.
#[test]
fn what_is_left_goes_along_with_a_piece_and_nothing_of_it_ends_on_the_way() {
    for (source_ms, target_ms) in [(1_000_000, 50), (50, 1_000_000)] {
        let source = Shard::new(1, HASH_KEY, [HashRange::all()], 1);
        let target = Shard::new(2, HASH_KEY, None, 1);
        pass(&target, target_ms);
        source.apply(&living(0, None, Some(1000), source_ms));
        source.apply(&living(1, None, Some(100), source_ms));
        source.apply(&living(2, None, None, source_ms));
        let at = stamp(0, 0, 1, 1);
        let apply = |shard: &Shard, command: ShardCommand| {
            let outcome = shard.apply(&ShardCommand::decode(&command.encode()).unwrap());
            assert!(
                matches!(
                    outcome,
                    ShardOutcome::Moved(Ok(())) | ShardOutcome::Prepared(Ok(_)) | ShardOutcome::Done
                ),
                "{outcome:?}"
            );
        };
        apply(&source, ShardCommand::BeginOutgoing { stamp: at, range: range(0) });
        apply(&target, ShardCommand::BeginIncoming { stamp: at, range: range(0) });
        let limit = BatchLimit { pairs: 9, bytes: 1 << 20 };
        let pairs = source.outgoing_batch(&at, &range(0), limit).unwrap().pairs;
        let delta = Delta { pairs, deleted: Vec::new() };
        assert_eq!(delta.needs(), format::TTL);
        apply(&target, ShardCommand::Install { stamp: at, delta });
        // The second ends before the range is frozen, and goes along as deleted.
        pass(&source, source_ms + 200);
        assert!(!is_there(&source, 1));
        apply(&source, ShardCommand::Freeze { stamp: at });
        // By no time does the first end where it is frozen, nor where it comes.
        pass(&source, source_ms + 5000);
        pass(&target, target_ms + 3_000_000);
        let came_ms = target_ms + 3_000_000;
        let (delta, frozen) = source.frozen_parcel(&at, source_ms + 400).unwrap();
        assert_eq!(delta.deleted, [key(1)]);
        apply(&target, ShardCommand::Install { stamp: at, delta });
        let shift_ms = frozen.shift_at(came_ms);
        let prepare = ShardCommand::Prepare { stamp: at, frozen, now_ms: came_ms, shift_ms };
        assert_eq!(prepare.needs(), format::TTL);
        // A second time it changes nothing.
        let again = ShardCommand::decode(&prepare.encode()).unwrap();
        apply(&target, prepare);
        apply(&target, again);
        let prepared = restored_as(&target, 2);
        // A leader of an older version moves the ends when the range is handed over.
        let later = restored_as(&target, 2);
        let shift_ms = shift_ms.expect("the times differ");
        later.store.shift_ends(&range(0), -shift_ms, || Ok::<_, ()>(())).unwrap();
        later.table.write().incoming[0].prepared.as_mut().unwrap().shift_ms = Some(shift_ms);
        let later = restored_as(&later, 2);
        let learn = |mine| {
            let starts = Vec::new();
            let (meta_group, counting, planned, open) = (1, None, false, Vec::new());
            ShardCommand::Learn(Directive {
                version: 2,
                meta_group,
                counting,
                planned,
                epoch: 2,
                mine,
                open,
                starts,
            })
        };
        for target in [&target, &prepared, &later] {
            apply(target, learn(vec![range(0)]));
            // 600 ms of its second are left.
            pass(target, came_ms + 601);
            assert!(is_there(target, 0) && is_there(target, 2), "{source_ms} {target_ms}");
            pass(target, came_ms + 602);
            assert!(!is_there(target, 0) && is_there(target, 2), "{source_ms} {target_ms}");
        }
        assert_eq!(content(&target), content(&prepared));
        let rest = (1..RANGES).map(range).collect();
        apply(&source, learn(rest));
        pass(&source, 1 << 40);
        assert_eq!((source.size().pairs, source.tally(1).0), (0, Tally::default()));
    }
}

fn restored_as(shard: &Shard, group: u64) -> Shard {
    let other = Shard::new(group, HASH_KEY, None, 1);
    other.restore(&snapshot(shard)).unwrap();
    other
}

#[test]
fn what_ends_is_nothing_for_nodes_before() {
    let shard = founded();
    shard.apply(&living(0, None, None, 1));
    assert_eq!((form_of(&snapshot(&shard)), living(0, None, None, 1).needs()), (Ok(2), format::FIRST));
    for command in [
        living(0, None, Some(5), 2),
        living(0, Some(Change::Touch), None, 3),
        ShardCommand::PassTime { now_ms: 4 },
    ] {
        assert_eq!(command.needs(), format::TTL);
        shard.apply(&command);
    }
    assert_eq!(form_of(&snapshot(&shard)), Ok(WITHOUT_HISTORY), "it stays so");
    assert_eq!(form_of(&snapshot(&restored(&shard))), Ok(WITHOUT_HISTORY));
}
