//! Several writes on keys of one shard, done one after the other. Each stands for itself: each has its own id, condition and outcome.
//!
//! What is asked of one key keeps its order. A write that is refused may be asked again later, so what comes after it on the same key is refused, too: it must not be done
//! before.

use std::collections::BTreeMap;

use super::command::{operation, put_write, read_write};
use super::{Change, Forwarded, KeyHash, Operation, Refused, Shard, Written};
use crate::model::binary::{Malformed, Reader, put_number};
use crate::model::condition::Condition;
use crate::model::ttl::Ttl;

/// The first byte of [`ShardCommand::Batch`](super::ShardCommand::Batch).
pub(super) const BATCH: u8 = 17;

/// A write among several.
pub struct Write {
    /// The key.
    pub key: Box<[u8]>,
    /// What is to be done.
    pub change: Change,
    /// What has to be there.
    pub condition: Option<Box<Condition>>,
    /// For how long what is written lives from then on.
    pub ttl: Option<Ttl>,
    /// The request, the epoch it was routed by, and the times by which it is remembered.
    pub forwarded: Forwarded,
}

impl Write {
    /// What is to be done.
    pub fn operation(&self) -> Operation<'_> {
        operation(&self.change, self.condition.as_deref(), self.ttl)
    }
}

/// The binary form of [`ShardCommand::Batch`](super::ShardCommand::Batch), without copying keys and values into one first.
pub fn encode_batch<'a>(
    writes: impl ExactSizeIterator<Item = (&'a [u8], Operation<'a>, &'a Forwarded)>,
) -> Vec<u8> {
    let mut out = vec![BATCH];
    put_batch(writes, &mut out);
    // The log keeps it for long.
    out.shrink_to_fit();
    out
}

pub(super) fn put_batch<'a>(
    writes: impl ExactSizeIterator<Item = (&'a [u8], Operation<'a>, &'a Forwarded)>,
    out: &mut Vec<u8>,
) {
    put_number(out, writes.len() as u64);
    writes.for_each(|(key, operation, forwarded)| put_write(key, operation, forwarded, out));
}

pub(super) fn read_batch(reader: &mut Reader<'_>) -> Result<Vec<Write>, Malformed> {
    reader.list(|reader| {
        let kind = reader.byte()?;
        read_write(kind, reader)?.ok_or(Malformed("not a write"))
    })
}

/// The keys on which something was refused that may be asked again.
#[derive(Default)]
pub struct HeldUp(BTreeMap<KeyHash, Refused>);

impl HeldUp {
    /// Does what comes next on a key, unless something before it was refused.
    ///
    /// # Errors
    /// As that, or as what came before.
    pub fn next<T>(&mut self, hash: KeyHash, run: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
        if let Some(refused) = self.0.get(&hash) {
            return Err(*refused);
        }
        let done = run();
        if let Err(refused) = &done
            && *refused != Refused::OtherRequest
        {
            self.0.insert(hash, *refused);
        }
        done
    }
}

impl Shard {
    /// Does writes as an entry of the log has them.
    pub(super) fn write_in_order(&self, writes: &[Write]) -> Vec<Result<Written, Refused>> {
        let (table, mut held_up) = (self.table.read(), HeldUp::default());
        let write = |write: &Write| {
            let hash = self.store.hash_key().hash(&write.key);
            held_up.next(hash, || {
                self.write_once(&table, hash, &write.key, write.operation(), Some(write.forwarded))
            })
        };
        writes.iter().map(write).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::condition::Versions;
    use crate::model::format;
    use crate::model::hash::HashKey;
    use crate::model::range::HashRange;
    use crate::model::shard::{RequestId, ShardCommand, ShardOutcome, WriteOutcome};

    fn forwarded(request: u64, epoch: u64) -> Forwarded {
        Forwarded { request: RequestId::from(request), epoch, now_ms: 5, keep_ms: 1000 }
    }

    fn apply(shard: &Shard, writes: &[(&[u8], Operation, Forwarded)]) -> Vec<Result<Written, Refused>> {
        let writes = writes.iter().map(|(key, operation, forwarded)| (*key, *operation, forwarded));
        let bytes = encode_batch(writes);
        let command = ShardCommand::decode(&bytes).unwrap();
        assert_eq!(command.encode(), bytes);
        assert!(command.needs() >= format::BATCHES);
        assert_eq!(command.time_ms(), Some(5));
        let outcome = shard.apply(&command);
        assert_eq!(ShardOutcome::decode(&outcome.encode()).as_ref(), Ok(&outcome));
        let ShardOutcome::Batch(all) = outcome else { panic!("{outcome:?}") };
        all
    }

    fn founded() -> Shard {
        let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
        shard.set_logged(true);
        shard
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a batch has it")]
    fn wrote(outcome: WriteOutcome, version: u64) -> Result<Written, Refused> {
        Ok(Written { outcome, version })
    }

    #[test]
    fn each_write_of_a_batch_has_its_own_outcome_and_is_done_once_in_its_order() {
        use WriteOutcome::{Absent, Added, Deleted, Unmet, Updated};
        let shard = founded();
        let absent = Condition { if_match: None, if_none_match: Some(Versions::Any) };
        let create = Operation::put(b"1").under(Some(&absent));
        let living = Operation::put(b"2").living(Ttl::from_ms(100));
        let writes = [
            (&b"a"[..], create, forwarded(1, 1)),
            (b"a", create, forwarded(2, 1)),
            (b"b", living, forwarded(3, 1)),
            (b"a", Operation::put(b"3"), forwarded(4, 1)),
            (b"a", Operation::DELETE, forwarded(5, 1)),
            (b"a", Operation::DELETE, forwarded(6, 1)),
            (b"b", Operation::TOUCH, forwarded(7, 1)),
        ];
        let wanted = [
            wrote(Added, 1),
            wrote(Unmet, 1),
            wrote(Added, 2),
            wrote(Updated, 3),
            wrote(Deleted, 4),
            wrote(Absent, 0),
            wrote(Updated, 2),
        ];
        assert_eq!(apply(&shard, &writes), wanted);
        let before = shard.audit();
        assert_eq!(apply(&shard, &writes), wanted, "as the first time");
        assert_eq!(shard.audit(), before);
    }

    #[test]
    fn what_comes_after_a_refused_write_on_the_same_key_is_refused_too() {
        let shard = founded();
        // Routed by an epoch from before the shard has gained its range.
        let old = Err(Refused::NotOwned);
        let writes = [
            (&b"a"[..], Operation::put(b"1"), forwarded(1, 0)),
            (b"b", Operation::put(b"2"), forwarded(2, 1)),
            (b"a", Operation::put(b"3"), forwarded(3, 1)),
        ];
        assert_eq!(apply(&shard, &writes), [old, wrote(WriteOutcome::Added, 1), old]);
        assert_eq!(shard.size().pairs, 1);
        // Another request of the same name is an end, and holds nothing up.
        let other = Forwarded { request: RequestId::Timed { id: 2, fingerprint: 9 }, ..forwarded(2, 1) };
        let writes =
            [(&b"b"[..], Operation::put(b"4"), other), (b"b", Operation::put(b"5"), forwarded(5, 1))];
        assert_eq!(apply(&shard, &writes), [Err(Refused::OtherRequest), wrote(WriteOutcome::Updated, 2)]);
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        let batch = encode_batch([(&b"a"[..], Operation::DELETE, &forwarded(1, 1))].into_iter());
        assert!(ShardCommand::decode(&batch).is_ok());
        for length in 0..batch.len() {
            assert!(ShardCommand::decode(&batch[..length]).is_err());
        }
        let nested = [&[BATCH, 1][..], &batch].concat();
        assert!(ShardCommand::decode(&nested).is_err(), "a batch in a batch");
    }
}
