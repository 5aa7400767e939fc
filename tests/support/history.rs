//! What clients asked and were told, and whether one store that does one thing at a time could have told them that.
//!
//! Every key is a register of its own, absent at first. An operation took effect at one moment between its call and
//! its return; one with an unknown outcome at any moment after its call, or never. Where an operator was told that pairs
//! may be lost, the register may hold anything afterwards that was ever put into it. See Herlihy and Wing,
//! "Linearizability" (1990); the search is that of Wing, Gong and Lowe in the crate `porcupine-rs`.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

/// How long the search may take for one key. It needs milliseconds, unless dozens of unknown writes overlap.
const SEARCH_LIMIT: Duration = Duration::from_secs(20);
/// How many records of the key a refusal shows: those that returned last before it.
const SHOWN: usize = 16;

/// What a client asked for; the values of a history are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Put(u64),
    Get,
    Delete,
    /// No client's: an operator was told meanwhile that what the key held may be lost.
    Lose,
}

/// What the client knows afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A put was acknowledged; whether it replaced a value.
    Put { replaced: bool },
    /// A get was answered with this value, or that there is none.
    Got(Option<u64>),
    /// A delete was answered; whether the key was there.
    Deleted(bool),
    /// An error that says that the write happened before it was sent; of a loss, that it is over.
    Applied,
    /// An error that says that nothing happened.
    NotApplied,
    /// No answer, or one that does not say.
    Unknown,
}

/// One operation of one client. The times are nanoseconds since the start of the recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) client: u32,
    pub(crate) key: String,
    pub(crate) call: Call,
    pub(crate) called: u64,
    pub(crate) returned: u64,
    pub(crate) outcome: Outcome,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (called, returned) = (Duration::from_nanos(self.called), Duration::from_nanos(self.returned));
        let (client, call, outcome) = (self.client, self.call, self.outcome);
        write!(f, "client {client:3} {called:>12.3?} to {returned:>12.3?}: {call:?} -> {outcome:?}")
    }
}

/// What an operation tells about the register.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// Written, over a value or not, or over nobody knows what.
    Put(u64, Option<bool>),
    Got(Option<u64>),
    /// Deleted, a value or nothing, or nobody knows what.
    Deleted(Option<bool>),
    Lost,
}

/// What the register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Held {
    Is(Option<u64>),
    /// What it held may be lost, and nobody has looked since.
    Anything,
}

impl Held {
    /// Whether it may hold this.
    fn may_be(self, value: Option<u64>) -> bool {
        self == Self::Anything || self == Self::Is(value)
    }

    /// Whether it may hold a value, or nothing.
    fn may_be_there(self, there: bool) -> bool {
        match self {
            Self::Is(value) => value.is_some() == there,
            Self::Anything => true,
        }
    }
}

#[derive(Debug, Clone)]
struct Register;

impl Model for Register {
    type State = Held;
    type Op = Told;
    type Metadata = ();

    fn init() -> Held {
        Held::Is(None)
    }

    fn step(held: &Held, told: &Told) -> (bool, Held) {
        let agrees = |there: Option<bool>| there.is_none_or(|there| held.may_be_there(there));
        match *told {
            Told::Put(value, replaced) => (agrees(replaced), Held::Is(Some(value))),
            Told::Got(value) => (held.may_be(value), Held::Is(value)),
            Told::Deleted(found) => (agrees(found), Held::Is(None)),
            Told::Lost => (true, Held::Anything),
        }
    }
}

/// `Err` says which key was answered as no register would, up to which moment, and shows what its clients did until
/// then. A key whose search takes too long is an error too.
pub(crate) fn check(records: &[Record]) -> Result<(), String> {
    let mut keys: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        assert!(record.called <= record.returned, "an operation returns after its call: {record}");
        keys.entry(&record.key).or_default().push(record);
    }
    keys.into_iter().try_for_each(|(key, mut records)| {
        records.sort_by_key(|record| record.returned);
        if let Some(read) = records.iter().find(|read| !was_put(read, &records)) {
            return Err(format!("{key:?} is no register; nobody has put what was read:\n  {read}"));
        }
        match search(&records) {
            CheckResult::Ok => Ok(()),
            CheckResult::Unknown => {
                Err(format!("the history of {key:?} could not be checked in {SEARCH_LIMIT:?}"))
            }
            CheckResult::Illegal => Err(refusal(key, &records)),
        }
    })
}

/// Whether the value of a read was put into the key before it was answered. After a loss the search does not know what is there.
fn was_put(read: &Record, records: &[&Record]) -> bool {
    let Outcome::Got(Some(value)) = read.outcome else { return true };
    records.iter().any(|write| write.call == Call::Put(value) && write.called <= read.returned)
}

/// Whether one key's records are those of a register.
fn search(records: &[&Record]) -> CheckResult {
    let operations: Vec<Operation<Register>> =
        records.iter().filter_map(|record| operation(record)).collect();
    check_operations_timeout(&operations, SEARCH_LIMIT)
}

/// The record as the search takes it: one that says nothing about the register is left out, and a write with an
/// unknown outcome never returns, so that all others may come before it.
fn operation(record: &Record) -> Option<Operation<Register>> {
    let told = match (record.call, record.outcome) {
        (Call::Lose, _) => Told::Lost,
        (_, Outcome::NotApplied) | (Call::Get, Outcome::Unknown | Outcome::Applied) => return None,
        (Call::Put(value), Outcome::Put { replaced }) => Told::Put(value, Some(replaced)),
        (Call::Put(value), Outcome::Applied | Outcome::Unknown) => Told::Put(value, None),
        (Call::Get, Outcome::Got(value)) => Told::Got(value),
        (Call::Delete, Outcome::Deleted(found)) => Told::Deleted(Some(found)),
        (Call::Delete, Outcome::Applied | Outcome::Unknown) => Told::Deleted(None),
        (call, outcome) => panic!("{call:?} does not end with {outcome:?}"),
    };
    let time = |nanoseconds: u64| i64::try_from(nanoseconds).expect("a recording of less than 200 years");
    let returns = record.outcome != Outcome::Unknown;
    Some(Operation {
        client_id: Some(record.client),
        call_time: time(record.called),
        return_time: if returns { time(record.returned) } else { i64::MAX },
        op: told,
        metadata: None,
    })
}

/// Names the first answer that cannot be: every history up to a moment of a good history is good, so that answer is
/// found by halving.
fn refusal(key: &str, records: &[&Record]) -> String {
    let until = |count: usize| {
        let end = records[count - 1].returned;
        let cut = |record: &&Record| Record { outcome: Outcome::Unknown, returned: end, ..(*record).clone() };
        let pending = records[count..].iter().filter(|record| record.called <= end).map(cut);
        records[..count].iter().map(|record| (*record).clone()).chain(pending).collect::<Vec<_>>()
    };
    let (mut good, mut bad) = (0, records.len());
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        let prefix = until(middle);
        match search(&prefix.iter().collect::<Vec<_>>()) {
            CheckResult::Illegal => bad = middle,
            CheckResult::Ok | CheckResult::Unknown => good = middle,
        }
    }
    let prefix = until(bad);
    let mut text = format!("{key:?} is no register; the last answer of those that returned cannot be:");
    for record in &prefix[bad.saturating_sub(SHOWN)..bad] {
        write!(text, "\n  {record}").expect("a String takes every write");
    }
    for record in &prefix[bad..] {
        write!(text, "\n  meanwhile {record}").expect("a String takes every write");
    }
    let unknown =
        prefix[..bad.saturating_sub(SHOWN)].iter().filter(|record| record.outcome == Outcome::Unknown);
    for record in unknown {
        write!(text, "\n  earlier {record}").expect("a String takes every write");
    }
    text
}
