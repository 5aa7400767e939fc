//! What was done for which request, so that one that is sent again is done once.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use super::{Done, Forwarded};
use crate::model::binary::{Malformed, Reader, put_number, put_wide};
use crate::model::hash::KeyHash;
use crate::model::range::HashRange;

/// The id of a client's request, drawn at random by the node that was asked.
pub type RequestId = u128;

/// Locks among which the records are spread, by the lower bits of the hash: the upper ones are much the same in a shard.
const STRIPES: usize = 64;
/// The most records of a stripe, 131,072 in all: some 12 MB.
const RECORDS_PER_STRIPE: usize = 2048;
/// A record is kept for this long, ten times the longest that a request takes unless it is set otherwise, if there is room.
const KEPT_MS: u64 = 50_000;

/// What was done for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRecord {
    /// The request.
    pub request: RequestId,
    /// The hash of its key.
    pub hash: u128,
    /// What was done.
    pub outcome: WriteOutcome,
    /// When, in milliseconds.
    pub at_ms: u64,
}

impl RetryRecord {
    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_wide(out, self.request);
        put_wide(out, self.hash);
        out.push(self.outcome as u8);
        put_number(out, self.at_ms);
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no record.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (request, hash) = (reader.wide()?, reader.wide()?);
        let outcome = WriteOutcome::from_byte(reader.byte()?)?;
        Ok(Self { request, hash, outcome, at_ms: reader.number()? })
    }
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The key was absent.
    Added,
    /// The key was present.
    Updated,
    /// The key was present and is deleted.
    Deleted,
    /// There was nothing to delete.
    Absent,
}

impl WriteOutcome {
    pub(super) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        let all = [Self::Added, Self::Updated, Self::Deleted, Self::Absent];
        all.get(usize::from(byte)).copied().ok_or(Malformed("unknown outcome of a write"))
    }
}

pub(super) struct Retries {
    stripes: Vec<Mutex<Stripe>>,
}

#[derive(Default)]
struct Stripe {
    by_request: HashMap<RequestId, RetryRecord>,
    order: VecDeque<RequestId>,
}

impl Default for Retries {
    fn default() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }
}

impl Retries {
    /// Does a write, or says what it did when it was done before.
    pub(super) fn once(&self, forwarded: &Forwarded, hash: KeyHash, write: impl FnOnce() -> Done) -> Done {
        let mut stripe = self.stripe(hash).lock();
        if let Some(record) = stripe.by_request.get(&forwarded.request) {
            return record.outcome.into();
        }
        let done = write();
        let outcome = WriteOutcome::from(&done);
        let record =
            RetryRecord { request: forwarded.request, hash: hash.0, outcome, at_ms: forwarded.now_ms };
        stripe.keep(record);
        done
    }

    /// What the records of a snapshot come to: for each stripe those that it kept, in their order.
    ///
    /// # Errors
    /// When a record stands there twice, or there are more than a stripe keeps.
    pub(super) fn restored(records: Vec<RetryRecord>) -> Result<Self, Malformed> {
        let retries = Self::default();
        for record in records {
            let mut stripe = retries.stripe(KeyHash(record.hash)).lock();
            // Not by `keep`: what left when was decided by the times of those that came after it then.
            let is_double = stripe.by_request.insert(record.request, record).is_some();
            stripe.order.push_back(record.request);
            if is_double || stripe.order.len() > RECORDS_PER_STRIPE {
                return Err(Malformed("retry records that no shard can have"));
            }
        }
        Ok(retries)
    }

    /// Takes over all records of another.
    pub(super) fn replace(&self, other: Self) {
        for (stripe, fresh) in self.stripes.iter().zip(other.stripes) {
            *stripe.lock() = fresh.into_inner();
        }
    }

    /// The records of a range. Where a cut falls between two keys of one hash, those of both sides.
    pub(super) fn of_range(&self, range: &HashRange) -> Vec<RetryRecord> {
        let lies_in =
            |hash: u128| hash >= range.from.hash && range.to.as_ref().is_none_or(|to| hash <= to.hash);
        let mut found = Vec::new();
        for stripe in &self.stripes {
            let stripe = stripe.lock();
            let records = stripe.order.iter().filter_map(|request| stripe.by_request.get(request));
            found.extend(records.filter(|record| lies_in(record.hash)));
        }
        found
    }

    /// Adds the records that came with a range.
    pub(super) fn install(&self, records: &[RetryRecord]) {
        for record in records {
            self.stripe(KeyHash(record.hash)).lock().keep(*record);
        }
    }

    fn stripe(&self, hash: KeyHash) -> &Mutex<Stripe> {
        &self.stripes[usize::try_from(hash.low() % STRIPES as u64).expect("fewer than there are stripes")]
    }
}

impl Stripe {
    fn keep(&mut self, record: RetryRecord) {
        if self.by_request.insert(record.request, record).is_none() {
            self.order.push_back(record.request);
        }
        while let Some(oldest) = self.order.front() {
            let at_ms = self.by_request.get(oldest).map_or(0, |oldest| oldest.at_ms);
            if self.order.len() <= RECORDS_PER_STRIPE && at_ms.saturating_add(KEPT_MS) > record.at_ms {
                break;
            }
            let oldest = self.order.pop_front().expect("it was just looked at");
            self.by_request.remove(&oldest);
        }
    }
}

impl From<&Done> for WriteOutcome {
    fn from(done: &Done) -> Self {
        match done {
            Done::Added => Self::Added,
            Done::Updated => Self::Updated,
            Done::Deleted => Self::Deleted,
            Done::Absent | Done::Found(_) => Self::Absent,
        }
    }
}

impl From<WriteOutcome> for Done {
    fn from(outcome: WriteOutcome) -> Self {
        match outcome {
            WriteOutcome::Added => Self::Added,
            WriteOutcome::Updated => Self::Updated,
            WriteOutcome::Deleted => Self::Deleted,
            WriteOutcome::Absent => Self::Absent,
        }
    }
}
