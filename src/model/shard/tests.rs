//! A shard by itself, in each state that a range can be in.

use proptest::prelude::*;

use super::*;
use crate::model::condition::Versions;
use crate::model::store::{BatchLimit, Copied, Value, Void};
use crate::model::ttl::Parts;

/// A place in a space of which every hash has three, so that cuts fall between equal hashes too; 96 is the end.
fn place(number: u8) -> Point {
    let key: &[u8] = [&b""[..], b"a", b"b"][usize::from(number % 3)];
    Point::of(KeyHash(u128::from(number / 3) << 120), key)
}

fn range(from: u8, to: u8) -> HashRange {
    HashRange { from: place(from), to: (to < 96).then(|| place(to)) }
}

/// The key whose hash has this first byte: hash and key, under [`HashKey::FIRST_BYTE`].
fn key(number: u8) -> (KeyHash, Vec<u8>) {
    let key = vec![number, b'k'];
    (HashKey::FIRST_BYTE.hash(&key), key)
}

/// The keys from one number to below another; to the end of the space at 255.
fn keys(from: u8, to: u8) -> HashRange {
    let to = (to < 255).then(|| Point::before_hash(key(to).0.0));
    HashRange { from: Point::before_hash(if from == 0 { 0 } else { key(from).0.0 }), to }
}

fn shard(group: u64, owned: &[HashRange]) -> Shard {
    Shard::new(group, HashKey::FIRST_BYTE, owned.iter().cloned(), 1)
}

fn put(shard: &Shard, number: u8, value: &str) -> Result<Done, Refused> {
    let (hash, key) = key(number);
    shard.run(hash, &key, Operation::put(value.as_bytes()), None)
}

fn get(shard: &Shard, number: u8) -> Result<Option<String>, Refused> {
    let (hash, key) = key(number);
    shard.run(hash, &key, Operation::GET, None).map(|done| match done {
        Done::Read(Some(held)) => Some(String::from_utf8(held.value().to_vec()).unwrap()),
        _ => None,
    })
}

fn delete(shard: &Shard, number: u8) -> Result<Done, Refused> {
    let (hash, key) = key(number);
    shard.run(hash, &key, Operation::DELETE, None)
}

#[expect(clippy::unnecessary_wraps, reason = "it is always given to `run`")]
fn forwarded(request: RequestId, epoch: u64) -> Option<Forwarded> {
    Some(Forwarded { request, epoch, now_ms: 1, keep_ms: 1000 })
}

fn stamp(attempt: u32, term: u64, version: u64) -> Stamp {
    Stamp { piece: PieceId { change: 1, index: 0, attempt }, term, version }
}

fn directive(version: u64, epoch: u64, mine: &[HashRange], open: &[Stamp]) -> Directive {
    Directive {
        version,
        meta_group: 1,
        // No plan yet: whatever is counted goes on being asked for.
        counting: Some(9),
        planned: false,
        epoch,
        mine: mine.to_vec(),
        open: open.iter().map(|stamp| stamp.piece).collect(),
        starts: Vec::new(),
    }
}

const ALL: BatchLimit = BatchLimit { pairs: 100, bytes: 10_000 };

/// Copies a piece and prepares it.
fn prepare(source: &Shard, target: &Shard, stamp: &Stamp, range: &HashRange) -> Result<Checksum, MoveError> {
    target.begin_incoming(stamp, range)?;
    source.begin_outgoing(stamp, range)?;
    let pairs = source.outgoing_batch(stamp, range, ALL)?.pairs;
    target.install(stamp, &Delta { pairs, deleted: Vec::new() })?;
    finish(source, target, stamp)
}

fn delta(source: &Shard, stamp: &Stamp) -> Result<Delta, MoveError> {
    source.take_delta(stamp)?;
    source.taken_delta(stamp)
}

fn freeze(source: &Shard, stamp: &Stamp) -> Result<(Delta, Frozen), MoveError> {
    source.freeze(stamp)?;
    source.frozen_parcel(stamp, 1)
}

/// Freezes the source and prepares the target.
fn finish(source: &Shard, target: &Shard, stamp: &Stamp) -> Result<Checksum, MoveError> {
    let (delta, frozen) = freeze(source, stamp)?;
    target.install(stamp, &delta)?;
    target.prepare(stamp, &frozen, None)
}

/// A source with 20 pairs in the lower half of the space, a target with 5 in the upper, and the range that is moved: 10 pairs.
fn two() -> (Shard, Shard, HashRange) {
    let (source, target) = (shard(1, &[keys(0, 128)]), shard(2, &[keys(128, 255)]));
    (100..120).for_each(|number| assert!(put(&source, number, "1").is_ok()));
    (200..205).for_each(|number| assert!(put(&target, number, "1").is_ok()));
    (source, target, keys(110, 128))
}

fn sizes(source: &Shard, target: &Shard) -> (u64, u64) {
    assert_eq!((source.audit().stray, target.audit().stray), (0, 0));
    assert_eq!((source.audit().pairs, target.audit().pairs), (source.size().pairs, target.size().pairs));
    (source.size().pairs, target.size().pairs)
}

#[test]
fn a_range_is_served_by_one_shard_in_every_state_of_a_move() {
    let (source, target, moved) = two();
    let stamp = stamp(0, 1, 2);
    let served = || (get(&source, 110).is_ok(), get(&target, 110).is_ok());
    let check = |wanted: (bool, bool), count: (u64, u64)| {
        assert_eq!((served(), sizes(&source, &target)), (wanted, count));
        assert!(get(&source, 100).is_ok() && get(&target, 200).is_ok(), "the rest is served all the time");
    };
    check((true, false), (20, 5));
    assert_eq!(get(&target, 110), Err(Refused::NotOwned));
    target.begin_incoming(&stamp, &moved).unwrap();
    source.begin_outgoing(&stamp, &moved).unwrap();
    assert_eq!(get(&target, 110), Err(Refused::Moving));
    let pairs = source.outgoing_batch(&stamp, &moved, ALL).unwrap().pairs;
    target.install(&stamp, &Delta { pairs, deleted: Vec::new() }).unwrap();
    check((true, false), (20, 5));
    assert!(put(&source, 110, "2").is_ok() && put(&source, 125, "2").is_ok() && delete(&source, 111).is_ok());
    let taken = delta(&source, &stamp).unwrap();
    assert_eq!((taken.pairs.len(), taken.deleted.len()), (2, 1));
    target.install(&stamp, &taken).unwrap();
    assert!(delete(&source, 112).is_ok());
    assert!(matches!(source.frozen_parcel(&stamp, 1), Err(MoveError::NotUnderWay)), "it is not frozen");
    let (_, first) = freeze(&source, &stamp).unwrap();
    let (delta, frozen) = freeze(&source, &stamp).unwrap();
    assert_eq!(first, frozen, "frozen again it is the same");
    assert_eq!((delta.pairs.len(), delta.deleted.len(), frozen.checksum.pairs), (0, 1, 9));
    assert_eq!(get(&source, 110), Err(Refused::Moving));
    check((false, false), (19, 5));
    assert!(matches!(target.prepare(&stamp, &frozen, None), Err(MoveError::ChecksumDiffers { .. })));
    assert_eq!(
        target.install(&stamp, &delta),
        Err(MoveError::NotUnderWay),
        "what was compared stays as it is"
    );
    let open = directive(2, 1, &[keys(0, 128)], &[stamp]);
    source.learn(&open);
    check((false, false), (19, 5));
}

#[test]
fn a_delta_is_installed_in_parts() {
    let (source, target, moved) = two();
    let at = stamp(0, 1, 2);
    target.begin_incoming(&at, &moved).unwrap();
    source.begin_outgoing(&at, &moved).unwrap();
    for number in 110..117 {
        assert!(put(&source, number, &"1".repeat(if number == 113 { 50 } else { 4 })).is_ok());
    }
    assert!(delete(&source, 117).is_ok() && delete(&source, 118).is_ok());
    let size = |delta: &Delta| -> usize {
        let pairs = delta.pairs.iter().map(|pair| pair.key.len() + pair.value.bytes().len());
        pairs.chain(delta.deleted.iter().map(|key| key.len())).sum()
    };
    let whole = freeze(&source, &at).unwrap().0;
    let (pairs, deleted, bytes) = (whole.pairs.len(), whole.deleted.len(), size(&whole));
    assert_eq!((pairs, deleted), (7, 2));
    let parts = whole.parts(20);
    assert!(parts.len() > 3 && parts.iter().all(|part| size(part) <= 20 || part.pairs.len() == 1));
    assert_eq!(parts.iter().map(size).sum::<usize>(), bytes);
    assert_eq!(parts.iter().map(|part| part.pairs.len()).sum::<usize>(), pairs);
    assert_eq!(parts.iter().map(|part| part.deleted.len()).sum::<usize>(), deleted);
    assert!(parts.iter().all(|part| part.pairs.len() + part.deleted.len() > 0));
    assert_eq!(Delta::default().parts(20).len(), 1, "nothing is a part, too");
}

#[test]
fn a_piece_that_is_handed_over_is_served_by_its_target_and_leaves_its_source() {
    let (source, target, moved) = two();
    let at = stamp(0, 1, 2);
    assert_eq!(prepare(&source, &target, &at, &moved).unwrap().pairs, 10);
    target.learn(&directive(3, 2, &[moved.clone(), keys(128, 255)], &[]));
    assert_eq!((get(&source, 110), sizes(&source, &target)), (Err(Refused::Moving), (20, 15)));
    assert_eq!(get(&target, 110), Ok(Some("1".to_owned())));
    source.learn(&directive(3, 2, &[keys(0, 110)], &[]));
    assert_eq!((get(&source, 110), sizes(&source, &target)), (Err(Refused::NotOwned), (10, 15)));
    assert_eq!(source.rough_size().pairs, 20);
    while source.sweep() {
        assert_eq!(sizes(&source, &target), (10, 15));
    }
    assert_eq!(source.rough_size().pairs, 10);
    // And back again, while nothing that was dropped comes with it.
    let back = stamp(1, 1, 4);
    assert!(delete(&target, 110).is_ok());
    prepare(&target, &source, &back, &moved).unwrap();
    source.learn(&directive(5, 3, &[keys(0, 128)], &[]));
    target.learn(&directive(5, 3, &[keys(128, 255)], &[]));
    assert_eq!((get(&source, 110), sizes(&source, &target)), (Ok(None), (19, 5)));
}

#[test]
fn a_piece_that_is_aborted_stays_and_an_attempt_after_it_begins_from_nothing() {
    let (source, target, moved) = two();
    let (first, second) = (stamp(0, 1, 2), stamp(1, 1, 3));
    prepare(&source, &target, &first, &moved).unwrap();
    // Whoever does not know that it is void keeps what may be handed over.
    assert_eq!(target.begin_incoming(&second, &moved), Err(MoveError::WrongRange));
    assert_eq!(source.begin_outgoing(&second, &moved), Err(MoveError::WrongRange));
    source.learn(&directive(3, 1, &[keys(0, 128)], &[second]));
    target.learn(&directive(3, 1, &[keys(128, 255)], &[second]));
    assert_eq!((get(&source, 110), get(&target, 110)), (Ok(Some("1".to_owned())), Err(Refused::NotOwned)));
    assert_eq!((sizes(&source, &target), target.rough_size().pairs), ((20, 5), 15));
    for order in [source.begin_outgoing(&first, &moved), target.begin_incoming(&first, &moved)] {
        assert_eq!(order, Err(MoveError::NotUnderWay));
    }
    assert!(delete(&source, 110).is_ok());
    assert_eq!(prepare(&source, &target, &second, &moved).unwrap().pairs, 9);
    assert_eq!(sizes(&source, &target), (19, 5));
}

#[test]
fn a_former_leader_and_old_news_mean_nothing() {
    let (source, target, moved) = two();
    source.begin_outgoing(&stamp(0, 5, 2), &moved).unwrap();
    target.begin_incoming(&stamp(0, 5, 2), &moved).unwrap();
    let old = stamp(0, 4, 2);
    assert_eq!(source.begin_outgoing(&old, &moved), Err(MoveError::OldTerm));
    assert_eq!(source.outgoing_batch(&old, &moved, ALL).err(), Some(MoveError::OldTerm));
    assert_eq!(delta(&source, &old).err(), Some(MoveError::OldTerm));
    assert_eq!(freeze(&source, &old).err(), Some(MoveError::OldTerm));
    assert_eq!(target.begin_incoming(&old, &moved), Err(MoveError::OldTerm));
    assert_eq!(target.install(&old, &Delta::default()), Err(MoveError::OldTerm));
    assert_eq!(target.prepare(&old, &Frozen::default(), None), Err(MoveError::OldTerm));
    // Older than the attempt, so it does not end it; older than what is known, so it says nothing.
    source.learn(&directive(1, 1, &[keys(0, 128)], &[]));
    assert!(delta(&source, &stamp(0, 5, 2)).is_ok());
    source.learn(&directive(1, 9, &[], &[]));
    assert_eq!(sizes(&source, &target), (20, 5));
    source.learn(&directive(2, 1, &[keys(0, 128)], &[]));
    assert_eq!(delta(&source, &stamp(0, 5, 2)).err(), Some(MoveError::NotUnderWay));
    source.learn(&directive(1, 9, &[], &[]));
    assert_eq!(sizes(&source, &target), (20, 5), "older than what is known");
}

#[test]
fn what_a_log_holds_counts_as_if_it_were_applied() {
    let (source, target, moved) = two();
    let at = stamp(0, 1, 2);
    let after = |shard: &Shard, commands: &[ShardCommand]| {
        let commands: Vec<Vec<u8>> = commands.iter().map(ShardCommand::encode).collect();
        let claims = shard.claims().after(commands.iter().map(Vec::as_slice));
        (claims.version, claims.owned, claims.prepared)
    };
    let learn = |mine: &[HashRange]| ShardCommand::Learn(directive(3, 2, mine, &[]));
    let received = [
        ShardCommand::BeginIncoming { stamp: at, range: moved.clone() },
        ShardCommand::Prepare { stamp: at, frozen: Frozen::default(), now_ms: 1, shift_ms: None },
        learn(&[moved.clone(), keys(128, 255)]),
    ];
    let own = vec![keys(128, 255)];
    assert_eq!(after(&target, &received[..1]), (0, own.clone(), vec![]), "it is on its way");
    assert_eq!(after(&target, &received[..2]), (0, own.clone(), vec![moved.clone()]), "it is all there");
    assert_eq!(after(&target, &received), (3, vec![moved, keys(128, 255)], vec![]), "it was handed over");
    assert_eq!(after(&source, &[learn(&[keys(0, 110)])]), (3, vec![keys(0, 110)], vec![]), "it has gone");
}

#[test]
fn an_order_for_what_does_not_fit_is_refused() {
    let (source, target, moved) = two();
    let stamp = stamp(0, 1, 2);
    assert_eq!(source.begin_outgoing(&stamp, &keys(110, 129)), Err(MoveError::WrongRange));
    assert_eq!(target.begin_incoming(&stamp, &keys(110, 129)), Err(MoveError::WrongRange));
    assert_eq!(source.freeze(&stamp).err(), Some(MoveError::NotUnderWay));
    assert_eq!(target.prepare(&stamp, &Frozen::default(), None), Err(MoveError::NotUnderWay));
    target.begin_incoming(&stamp, &moved).unwrap();
    source.begin_outgoing(&stamp, &moved).unwrap();
    let others = source.outgoing_batch(&stamp, &keys(100, 102), ALL).unwrap().pairs;
    let got = target.install(&stamp, &Delta { pairs: others, deleted: Vec::new() });
    assert_eq!((got, sizes(&source, &target)), (Err(MoveError::WrongRange), (20, 5)));
}

#[test]
fn a_request_that_is_sent_again_is_done_once_also_where_its_range_has_moved() {
    let (source, target, moved) = two();
    let (hash, name) = key(110);
    let delete =
        |shard: &Shard, epoch: u64| shard.run(hash, &name, Operation::DELETE, forwarded(7.into(), epoch));
    assert!(matches!(delete(&source, 1), Ok(Done::Wrote(Written { outcome: WriteOutcome::Deleted, .. }))));
    assert!(put(&source, 110, "2").is_ok());
    assert!(matches!(delete(&source, 1), Ok(Done::Wrote(Written { outcome: WriteOutcome::Deleted, .. }))));
    assert_eq!(get(&source, 110), Ok(Some("2".to_owned())));
    prepare(&source, &target, &stamp(0, 1, 2), &moved).unwrap();
    target.learn(&directive(3, 2, &[moved, keys(128, 255)], &[]));
    // A sender that does not know the hand-over is sent to look again.
    assert_eq!(delete(&target, 1).err(), Some(Refused::NotOwned));
    assert!(matches!(delete(&target, 2), Ok(Done::Wrote(Written { outcome: WriteOutcome::Deleted, .. }))));
    assert_eq!(get(&target, 110), Ok(Some("2".to_owned())));
    assert!(matches!(
        target.run(hash, &name, Operation::DELETE, forwarded(8.into(), 2)),
        Ok(Done::Wrote(Written { outcome: WriteOutcome::Deleted, .. }))
    ));
    assert_eq!(get(&target, 110), Ok(None));
}

#[test]
fn a_shard_is_sealed_while_it_holds_nothing() {
    let empty = shard(1, &[keys(0, 255)]);
    assert!(empty.seal());
    assert_eq!((put(&empty, 1, "1").err(), get(&empty, 1)), (Some(Refused::Sealed), Ok(None)));
    empty.unseal();
    assert!(put(&empty, 1, "1").is_ok());
    assert!(!empty.seal(), "it holds a pair");
    assert!(delete(&empty, 1).is_ok());
    assert!(empty.seal() && put(&empty, 1, "1").is_err());
}

#[test]
fn versions_of_a_key_grow_from_shard_to_shard() {
    let (source, target, moved) = two();
    let version = |shard: &Shard| {
        let (hash, key) = key(110);
        let Ok(Done::Read(Some(held))) = shard.run(hash, &key, Operation::GET, None) else {
            panic!("it is there")
        };
        held.version()
    };
    let before = version(&source);
    assert!(delete(&source, 110).is_ok());
    prepare(&source, &target, &stamp(0, 1, 2), &moved).unwrap();
    target.learn(&directive(3, 2, &[moved, keys(128, 255)], &[]));
    assert!(put(&target, 110, "3").is_ok());
    assert!(version(&target) > before + 10, "above everything that the source had drawn");
}

fn census(version: u64, term: u64, number: u64, change: u64) -> CensusId {
    CensusId { version, term, number, change }
}

#[test]
fn a_census_that_arrives_late_or_twice_does_not_take_the_place_of_a_later_one() {
    let (source, _, _) = two();
    let taken = |census| source.take_census(census, &[keys(0, 128)]).is_some();
    let of_the_last = census(5, 3, 2, 9);
    for (late, is_taken) in [
        (of_the_last, true),
        (of_the_last, false),
        (census(5, 3, 1, 9), false),
        (census(5, 2, 7, 8), false),
        (census(4, 9, 9, 8), false),
        // What is only shown was asked for before that change began.
        (census(5, 0, 9, 8), false),
        (census(5, 3, 3, 9), true),
        (census(5, 4, 0, 9), true),
        (census(6, 0, 1, 7), true),
        (census(6, 0, 0, 6), true),
        (census(6, 1, 0, 5), true),
    ] {
        assert_eq!(taken(late), is_taken, "{late:?}");
        // Those that are not taken leave the tally as it is.
        assert_eq!(source.places(late, &[]).is_some(), is_taken || late == of_the_last, "{late:?}");
    }
}

#[test]
fn places_are_those_of_the_cut_while_writers_go_on() {
    let (source, _, _) = two();
    let all = keys(0, 128);
    let nine = census(1, 1, 0, 9);
    assert_eq!(source.take_census(nine, &[all.clone(), keys(110, 115)]).unwrap().pairs, [20, 5]);
    assert!(put(&source, 50, "1").is_ok() && delete(&source, 100).is_ok() && delete(&source, 119).is_ok());
    assert!(put(&source, 101, "2").is_ok());
    let place = |number: u8| Point::of(key(number).0, &key(number).1);
    let ranks = [(all.clone(), 0), (all.clone(), 1), (all.clone(), 19)];
    assert_eq!(source.places(nine, &ranks), Some(vec![place(100), place(101), place(119)]));
    assert_eq!(source.places(census(1, 1, 0, 8), &ranks), None, "another census");
    let (tally, pairs) = source.tally(9);
    assert_eq!((tally, pairs), (Tally { created: 1, deleted: 2 }, 19));
    source.close_census(nine);
    assert!(put(&source, 51, "1").is_ok());
    assert_eq!((source.places(nine, &ranks), source.tally(9).0.created), (None, 2));
}

#[test]
fn a_new_shard_tallies_before_anything_is_written_to_it() {
    let (source, _, moved) = two();
    let fresh = shard(3, &[]);
    prepare(&source, &fresh, &stamp(0, 1, 2), &moved).unwrap();
    fresh.learn(&directive(3, 2, std::slice::from_ref(&moved), &[]));
    assert!(put(&fresh, 125, "1").is_ok() && delete(&fresh, 110).is_ok());
    assert_eq!(fresh.tally(1), (Tally { created: 1, deleted: 1 }, 10));
}

proptest! {
    #[test]
    fn owned_ranges_are_a_set_of_points(steps in prop::collection::vec((0_u8..96, 0_u8..97, any::<bool>()), 1..40)) {
        let (mut owned, mut points) = (OwnedRanges::default(), [None; 96]);
        for (gained, (a, b, is_added)) in (1..).zip(steps) {
            let (from, to) = (a.min(b), a.max(b));
            if from == to { continue; }
            let some = usize::from(from)..usize::from(to);
            let one = range(from, to);
            if is_added && points[some.clone()].iter().all(Option::is_none) {
                owned.add(one.clone(), gained / 3);
                points[some.clone()].fill(Some(gained / 3));
            } else if !is_added {
                owned.remove(&one);
                points[some.clone()].fill(None);
            }
            let at = |number: u8| place(number);
            for (number, gained) in (0_u8..).zip(points) {
                let point = at(number);
                prop_assert_eq!(owned.gained(KeyHash(point.hash), &point.key), gained, "{}", point);
            }
            let rows: Vec<HashRange> = owned.rows().iter().map(|(row, _)| row.clone()).collect();
            prop_assert!(rows.windows(2).all(|two| two[0].to.as_ref().is_some_and(|to| *to <= two[1].from)));
            let inside = points[some.clone()].iter().all(Option::is_some);
            prop_assert_eq!(ranges::cover(&rows, &one), inside);
            let touches = points[some.clone()].iter().any(Option::is_some);
            prop_assert_eq!(rows.iter().any(|row| ranges::overlap(row, &one)), touches);
            let beyond = owned.beyond(std::slice::from_ref(&one));
            for (number, gained) in (0_u8..).zip(points) {
                let (point, is_outside) = (at(number), !some.contains(&usize::from(number)));
                let is_beyond = beyond.iter().any(|row| row.contains(KeyHash(point.hash), &point.key));
                prop_assert_eq!(is_beyond, gained.is_some() && is_outside);
            }
        }
    }
}

/// What an audit has found that was begun before.
fn ended(shard: &Shard, id: u64) -> AuditState {
    while shard.audit_some() {}
    shard.audit_state(id)
}

#[test]
fn an_audit_is_of_its_moment_also_where_what_it_sums_up_moves_away_meanwhile() {
    let (source, target, moved) = two();
    let before = (source.audit(), target.audit());
    let begun = source.begin_audit(1);
    assert_eq!((begun.owned, begun.version), (vec![keys(0, 128)], 0));
    target.begin_audit(1);
    assert!(put(&source, 101, "2").is_ok() && delete(&source, 111).is_ok() && put(&target, 210, "1").is_ok());
    prepare(&source, &target, &stamp(0, 1, 2), &moved).unwrap();
    target.learn(&directive(3, 2, &[moved.clone(), keys(128, 255)], &[]));
    source.learn(&directive(3, 2, &[keys(0, 110)], &[]));
    while source.sweep() {}
    assert_eq!(source.audit_state(1), AuditState::UnderWay);
    assert_eq!(ended(&source, 1), AuditState::Found(before.0));
    assert_eq!(ended(&target, 1), AuditState::Found(before.1));
    let after = (source.audit(), target.audit());
    assert_eq!((after.0.pairs, after.0.counted, after.1.pairs, after.1.counted), (10, 10, 15, 15));
    assert_eq!((after.0.owned, after.1.owned), (vec![keys(0, 110)], vec![keys(110, 255)]));
}

#[test]
fn audits_that_are_too_many_end_the_oldest_and_one_of_a_replica_that_begins_anew_is_void() {
    let (source, _, _) = two();
    (1..=9).for_each(|id| drop(source.begin_audit(id)));
    assert_eq!((ended(&source, 1), ended(&source, 10)), (AuditState::Unknown, AuditState::Unknown));
    for id in 2..=9 {
        assert_eq!(ended(&source, id), AuditState::Found(source.audit()));
    }
    let (old, snapshot) = (source.audit(), source.snapshot().collect::<Vec<_>>().concat());
    source.begin_audit(10);
    source.restore(&snapshot).unwrap();
    assert_eq!(ended(&source, 10), AuditState::Void(Void::Replaced));
    assert_eq!(ended(&source, 9), AuditState::Found(old), "it had ended before");
}

/// What an operation under a condition came to, and the version that it names.
fn under(shard: &Shard, operation: Operation, condition: (Option<Versions>, Option<Versions>)) -> String {
    let (if_match, if_none_match) = condition;
    let condition = Condition { if_match, if_none_match };
    let (hash, key) = key(1);
    match shard.run(hash, &key, operation.under(Some(&condition)), None).unwrap() {
        Done::Wrote(written) => format!("{:?} {}", written.outcome, written.version),
        Done::Read(held) => format!("Read {:?}", held.map(|held| held.version())),
        Done::Unread(why, version) => format!("{why:?} {version}"),
    }
}

#[test]
fn a_condition_counts_where_the_operation_would_succeed() {
    let any = || Some(Versions::Any);
    let these = |version| Some(Versions::These([version].into()));
    let (get, put, delete) = (Operation::GET, Operation::put(b"2"), Operation::DELETE);
    // Each on a shard of its own: the key is absent, or there with version 1.
    let table = [
        (false, get, (any(), None), "Read None"),
        (false, get, (None, any()), "Read None"),
        (false, delete, (any(), None), "Absent 0"),
        (false, delete, (None, any()), "Absent 0"),
        (false, put, (any(), None), "Unmet 0"),
        (false, put, (these(1), None), "Unmet 0"),
        (false, put, (None, any()), "Added 1"),
        (false, put, (None, these(1)), "Added 1"),
        (true, get, (any(), None), "Read Some(1)"),
        (true, get, (these(1), None), "Read Some(1)"),
        (true, get, (these(2), None), "Unmet 1"),
        (true, get, (None, any()), "Unchanged 1"),
        (true, get, (None, these(1)), "Unchanged 1"),
        (true, get, (None, these(2)), "Read Some(1)"),
        (true, get, (these(2), these(1)), "Unmet 1"),
        (true, put, (any(), None), "Updated 2"),
        (true, put, (these(1), None), "Updated 2"),
        (true, put, (these(2), None), "Unmet 1"),
        (true, put, (None, any()), "Unmet 1"),
        (true, put, (None, these(1)), "Unmet 1"),
        (true, put, (None, these(2)), "Updated 2"),
        (true, put, (these(1), these(1)), "Unmet 1"),
        (true, delete, (these(1), None), "Deleted 2"),
        (true, delete, (these(2), None), "Unmet 1"),
        (true, delete, (None, any()), "Unmet 1"),
    ];
    for (is_there, operation, condition, wanted) in table {
        for value in ["1", &"1".repeat(5000)] {
            let shard = shard(1, &[HashRange::all()]);
            if is_there {
                put_text(&shard, value);
            }
            let said = under(&shard, operation, condition.clone());
            assert_eq!(said, wanted, "{operation:?} under {condition:?}, there: {is_there}");
        }
    }
}

fn put_text(shard: &Shard, value: &str) {
    assert!(put(shard, 1, value).is_ok());
}

/// The versions of a key as it is written, deleted and written again, by each of its owners in turn.
#[test]
fn no_version_stands_for_two_values_of_a_key_that_moves_away_and_back() {
    let (one, two) = (shard(1, &[HashRange::all()]), shard(2, &[]));
    let version = |done: Result<Done, Refused>| match done {
        Ok(Done::Wrote(written)) => written.version,
        _ => panic!("it is a write that is done"),
    };
    let mut seen = Vec::new();
    let mut owners = [&one, &two];
    for round in 0..4 {
        let [from, to] = owners;
        for number in 0..5 {
            seen.push(version(put(from, 1, &number.to_string())));
        }
        // What is deleted leaves no version behind but in the counter.
        version(delete(from, 1));
        let (at, state) = (stamp(0, 1, 3 * round + 2), 3 * round + 3);
        prepare(from, to, &at, &HashRange::all()).unwrap();
        to.learn(&directive(state, state, &[HashRange::all()], &[]));
        from.learn(&directive(state, state, &[], &[]));
        owners.swap(0, 1);
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
}

#[test]
fn versions_of_a_later_generation_are_above_all_before() {
    let shard = shard(1, &[HashRange::all()]);
    let version = || match put(&shard, 1, "1") {
        Ok(Done::Wrote(written)) => written.version,
        _ => panic!("it is a write that is done"),
    };
    assert_eq!(version(), 1);
    shard.begin_generation(2);
    assert_eq!(version(), first_of(2) + 1);
    shard.begin_generation(1);
    assert_eq!(version(), first_of(2) + 2, "an earlier one means nothing");
}

/// What is printed is how long a shard takes for a piece whose pairs end: its clients wait while it learns that the piece is its own.
#[test]
#[ignore = "it measures"]
fn pieces_of_pairs_that_end_are_taken_in() {
    for count in [8192_u32, 1_000_000] {
        let hash_key = HashKey::new(7, 7);
        let target = Shard::new(2, hash_key, [], 1);
        let at = stamp(1, 1, 1);
        target.begin_incoming(&at, &HashRange::all()).unwrap();
        let stored = Parts { end_ms: Some(1 << 40), value: &[b'1'; 100] }.stored().into_owned();
        let pairs = (0..count).map(|number| Copied {
            key: format!("key-{number:012}").into_bytes().into(),
            value: Value::Small(stored.clone().into()),
            version: u64::from(number),
        });
        let delta = Delta { pairs: pairs.collect(), deleted: Vec::new() };
        target.install(&at, &delta).unwrap();
        let checksum = target.store.checksum(&HashRange::all());
        let frozen = Frozen { checksum, index: u64::from(count), ..Frozen::default() };
        let timed = |what: &str, run: &dyn Fn()| {
            let start = crate::clock::now();
            run();
            println!("{count} pairs: {what} takes {:?}", crate::clock::now() - start);
        };
        timed("to compare", &|| assert_eq!(target.store.checksum(&HashRange::all()), checksum));
        timed("to prepare", &|| assert_eq!(target.prepare(&at, &frozen, Some(5)), Ok(checksum)));
        let (starts, open) = (Vec::new(), Vec::new());
        let (meta_group, counting, planned, mine) = (1, None, false, vec![HashRange::all()]);
        let learned = Directive { version: 2, meta_group, counting, planned, epoch: 2, mine, open, starts };
        timed("to learn", &|| target.learn(&learned));
        assert_eq!(target.store.first_end(&[HashRange::all()]), Some((1 << 40) + 5));
    }
}
