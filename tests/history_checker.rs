//! The checker of histories: it accepts what a register may answer and refuses what none would.

mod support;

use support::history::{Call, Outcome, Record, check};

/// Who, what, called and returned at which moment, with which outcome.
type Row = (u32, Call, u64, u64, Outcome);

const ADDED: Outcome = Outcome::Put { replaced: false };
const REPLACED: Outcome = Outcome::Put { replaced: true };
const ABSENT: Outcome = Outcome::Got(None);
const DELETED: Outcome = Outcome::Deleted(true);
const NOT_FOUND: Outcome = Outcome::Deleted(false);

use Call::{Delete, Get, Lose, Put};
use Outcome::{Applied, NotApplied, Unknown};

const fn got(value: u64) -> Outcome {
    Outcome::Got(Some(value))
}

fn of_key(key: &str, rows: &[Row]) -> Vec<Record> {
    let record = |&(client, call, called, returned, outcome): &Row| Record {
        client,
        key: key.to_owned(),
        call,
        called,
        returned,
        outcome,
    };
    rows.iter().map(record).collect()
}

#[rustfmt::skip]
const GOOD: &[(&str, &[Row])] = &[
    ("nothing", &[]),
    ("one after the other", &[
        (1, Get, 0, 1, ABSENT), (1, Delete, 2, 3, NOT_FOUND), (1, Put(1), 4, 5, ADDED), (2, Get, 6, 7, got(1)),
        (1, Put(2), 8, 9, REPLACED), (2, Get, 10, 11, got(2)), (2, Delete, 12, 13, DELETED), (1, Get, 14, 15, ABSENT),
        (1, Put(3), 16, 17, ADDED), (2, Get, 18, 19, got(3)),
    ]),
    ("a read beside a write sees the old value or the new one", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 9, REPLACED), (2, Get, 3, 4, got(1)), (2, Get, 5, 6, got(2)),
        (3, Get, 3, 8, got(1)),
    ]),
    ("two writes beside each other, the one that returned first was the last", &[
        (1, Put(1), 0, 9, ADDED), (2, Put(2), 1, 3, REPLACED), (3, Get, 10, 11, got(2)),
    ]),
    ("two deletes beside each other, one finds the pair", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 6, NOT_FOUND), (2, Delete, 3, 5, DELETED), (1, Get, 7, 8, ABSENT),
    ]),
    ("an unknown write that is seen later", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 3, Unknown), (2, Get, 4, 5, got(1)), (2, Get, 6, 7, got(2)),
    ]),
    ("an unknown write that never took effect", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 3, Unknown), (2, Get, 4, 5, got(1)), (2, Put(3), 6, 7, REPLACED),
        (2, Get, 8, 9, got(3)),
    ]),
    ("an unknown write that took effect unseen", &[
        (1, Put(1), 0, 1, Unknown), (2, Put(2), 2, 3, REPLACED), (2, Get, 4, 5, got(2)),
    ]),
    ("an unknown delete that took effect, late", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 3, Unknown), (2, Get, 4, 5, got(1)), (2, Get, 6, 7, ABSENT),
        (2, Delete, 8, 9, NOT_FOUND),
    ]),
    ("an unknown delete that never took effect", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 3, Unknown), (2, Delete, 4, 5, DELETED),
    ]),
    ("an unknown read says nothing", &[(1, Put(1), 0, 1, ADDED), (1, Get, 2, 3, Unknown)]),
    ("an error that says that the write happened", &[
        (1, Put(1), 0, 1, Applied), (2, Get, 2, 3, got(1)), (1, Delete, 4, 5, Applied), (2, Get, 6, 7, ABSENT),
    ]),
    ("an error that says that nothing happened", &[
        (1, Put(1), 0, 1, NotApplied), (2, Get, 2, 3, ABSENT), (1, Put(2), 4, 5, ADDED), (1, Delete, 6, 7, NotApplied),
        (2, Get, 8, 9, got(2)),
    ]),
    ("many unknown writes", &[
        (1, Put(1), 0, 1, Unknown), (2, Put(2), 0, 1, Unknown), (3, Put(3), 0, 1, Unknown), (4, Put(4), 0, 1, Unknown),
        (5, Put(5), 0, 1, Unknown), (6, Delete, 0, 1, Unknown), (9, Get, 2, 3, got(4)), (9, Get, 4, 5, got(2)),
        (9, Get, 6, 7, ABSENT), (9, Get, 8, 9, got(1)),
    ]),
    ("what may be lost is lost", &[(1, Put(1), 0, 1, ADDED), (8, Lose, 2, 3, Applied), (1, Get, 4, 5, ABSENT)]),
    ("what may be lost is there", &[(1, Put(1), 0, 1, ADDED), (8, Lose, 2, 3, Applied), (1, Get, 4, 5, got(1))]),
    ("what may be lost is there as it was before", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 3, REPLACED), (8, Lose, 4, 5, Applied), (1, Get, 6, 7, got(1)),
        (1, Put(3), 8, 9, REPLACED),
    ]),
    ("a write and a read while something is being lost", &[
        (1, Put(1), 0, 1, ADDED), (8, Lose, 2, 9, Applied), (1, Put(2), 3, 4, REPLACED), (1, Get, 5, 6, got(2)),
        (1, Get, 10, 11, ABSENT),
    ]),
];

#[rustfmt::skip]
const BAD: &[(&str, &[Row])] = &[
    ("a value out of nowhere", &[(1, Get, 0, 1, got(7))]),
    ("a value that was never written", &[(1, Put(1), 0, 1, ADDED), (1, Get, 2, 3, got(7))]),
    ("a value before it was written", &[(1, Get, 0, 1, got(1)), (1, Put(1), 2, 3, ADDED)]),
    ("a stale read", &[(1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 3, REPLACED), (2, Get, 4, 5, got(1))]),
    ("a read that goes back while the write runs", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 9, REPLACED), (2, Get, 3, 4, got(2)), (3, Get, 5, 6, got(1)),
    ]),
    ("a lost update", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 4, REPLACED), (2, Put(3), 3, 5, REPLACED), (1, Get, 6, 7, got(1)),
    ]),
    ("a lost write", &[(1, Put(1), 0, 1, ADDED), (2, Get, 2, 3, ABSENT)]),
    ("two values in turn", &[
        (1, Put(1), 0, 9, ADDED), (2, Put(2), 0, 9, REPLACED), (3, Get, 10, 11, got(2)), (3, Get, 12, 13, got(1)),
    ]),
    ("a delete that found the pair twice", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 3, DELETED), (2, Delete, 4, 5, DELETED),
    ]),
    ("two deletes beside each other that found the one pair", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 6, DELETED), (2, Delete, 3, 5, DELETED),
    ]),
    ("a delete that did not find the pair", &[(1, Put(1), 0, 1, ADDED), (1, Delete, 2, 3, NOT_FOUND)]),
    ("a deleted pair that is back", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 3, DELETED), (1, Get, 4, 5, ABSENT), (2, Get, 6, 7, got(1)),
    ]),
    ("a deleted pair that is replaced", &[
        (1, Put(1), 0, 1, ADDED), (1, Delete, 2, 3, DELETED), (1, Put(2), 4, 5, REPLACED),
    ]),
    ("added over a value", &[(1, Put(1), 0, 1, ADDED), (2, Put(2), 2, 3, ADDED)]),
    ("replaced where nothing was", &[(1, Put(1), 0, 1, REPLACED)]),
    ("two writes beside each other, both the first", &[(1, Put(1), 0, 9, ADDED), (2, Put(2), 0, 9, ADDED)]),
    ("two writes beside each other, none the first", &[(1, Put(1), 0, 9, REPLACED), (2, Put(2), 0, 9, REPLACED)]),
    ("an unknown write that is seen and then unseen", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 3, Unknown), (2, Get, 4, 5, got(2)), (2, Get, 6, 7, got(1)),
    ]),
    ("an unknown write that took effect twice", &[
        (1, Put(1), 0, 1, Unknown), (2, Get, 2, 3, got(1)), (2, Put(2), 4, 5, REPLACED), (2, Get, 6, 7, got(1)),
    ]),
    ("an unknown delete that took effect twice", &[
        (1, Put(1), 0, 1, ADDED), (2, Delete, 2, 3, Unknown), (1, Get, 4, 5, ABSENT), (1, Put(2), 6, 7, ADDED),
        (1, Get, 8, 9, ABSENT),
    ]),
    ("an unknown write before its call", &[(2, Get, 0, 1, got(1)), (1, Put(1), 2, 3, Unknown)]),
    ("a write that was said not to have happened", &[(1, Put(1), 0, 1, NotApplied), (2, Get, 2, 3, got(1))]),
    ("a write that was said to have happened and is not there", &[(1, Put(1), 0, 1, Applied), (2, Get, 2, 3, ABSENT)]),
    ("a write that was said to have happened and comes later", &[
        (1, Put(1), 0, 1, ADDED), (1, Put(2), 2, 3, Applied), (2, Get, 4, 5, got(1)), (2, Get, 6, 7, got(2)),
    ]),
    ("lost before anybody was told so", &[
        (1, Put(1), 0, 1, ADDED), (1, Get, 2, 3, ABSENT), (8, Lose, 4, 5, Applied), (1, Get, 6, 7, ABSENT),
    ]),
    ("lost once, and again afterwards", &[
        (1, Put(1), 0, 1, ADDED), (8, Lose, 2, 3, Applied), (1, Get, 4, 5, got(1)), (1, Get, 6, 7, ABSENT),
    ]),
    ("a write after the loss is lost", &[
        (1, Put(1), 0, 1, ADDED), (8, Lose, 2, 3, Applied), (1, Put(2), 4, 5, REPLACED), (1, Get, 6, 7, got(1)),
    ]),
    ("after a loss a value that nobody has put", &[
        (1, Put(1), 0, 1, ADDED), (8, Lose, 2, 3, Applied), (1, Get, 4, 5, got(7)),
    ]),
];

#[test]
fn what_a_register_may_answer_is_accepted() {
    for (name, rows) in GOOD {
        assert_eq!(check(&of_key("k", rows)), Ok(()), "{name}");
    }
}

#[test]
fn what_no_register_answers_is_refused() {
    for (name, rows) in BAD {
        let refused = check(&of_key("k", rows)).expect_err(name);
        assert!(refused.contains("\"k\" is no register"), "{name}: {refused}");
    }
}

#[test]
fn keys_are_told_apart() {
    let good: Vec<Record> =
        GOOD.iter().enumerate().flat_map(|(number, (_, rows))| of_key(&format!("g{number}"), rows)).collect();
    assert_eq!(check(&good), Ok(()));
    for (name, rows) in BAD {
        let mut records = good.clone();
        records.extend(of_key("the bad one", rows));
        assert!(check(&records).expect_err(name).contains("the bad one"));
    }
}

#[test]
fn the_answer_that_cannot_be_is_named() {
    let mut records = Vec::new();
    for number in 0..100 {
        let at = number * 10;
        let outcome = if number == 0 { ADDED } else { REPLACED };
        records.extend(of_key(
            "k",
            &[(1, Put(number), at, at + 1, outcome), (2, Get, at + 2, at + 3, got(number))],
        ));
    }
    assert_eq!(check(&records), Ok(()));
    records[121].outcome = got(59);
    let refused = check(&records).expect_err("value 59 was replaced by 60");
    let named = refused.lines().last().expect("a last line");
    assert_eq!(named.trim(), records[121].to_string().trim());
}

/// Sixteen clients at once on one register that is real: the times of a call enclose the moment it took effect.
#[test]
fn a_long_history_of_many_clients_is_checked_quickly() {
    let mut held = None;
    let mut records = Vec::new();
    for number in 0..4000_u64 {
        let (call, outcome) = match number % 4 {
            0 => (Put(number), Outcome::Put { replaced: held.replace(number).is_some() }),
            3 if number % 8 == 3 => (Delete, Outcome::Deleted(held.take().is_some())),
            _ => (Get, Outcome::Got(held)),
        };
        let (before, after) = (number * 7919 % 80, number * 104_729 % 80);
        let client = u32::try_from(number % 16).expect("a small number");
        records.extend(of_key(
            "k",
            &[(client, call, 100 + number * 10 - before, 100 + number * 10 + after, outcome)],
        ));
    }
    assert_eq!(check(&records), Ok(()));
    let last = records.iter().rposition(|record| record.call == Get).expect("a read");
    records[last].outcome = got(0);
    assert!(check(&records).is_err());
}
