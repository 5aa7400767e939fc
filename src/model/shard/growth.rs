//! Whether a write would take more memory than what is there of its key.

use super::{Action, Forwarded, Judgement, KeyHash, Operation, RequestId, Shard, starts, timed};
use crate::model::store::StoredValue;

impl Shard {
    /// Whether a write would grow: it would be done, its key is not there, or the value is shorter, or has no end and would get one. One that was done before, that is not
    /// for this shard, or whose condition does not hold, is answered without it.
    pub fn would_grow(
        &self,
        hash: KeyHash,
        key: &[u8],
        operation: Operation,
        write: Option<&Forwarded>,
    ) -> bool {
        let Action::Put(value) = operation.action else { return false };
        if write.is_some_and(|write| self.remembers(&write.request, hash)) {
            return false;
        }
        if self.table.read().owner_since(hash, key).is_err() {
            return false;
        }
        let held = self.store.get(hash, key);
        let version = held.as_ref().map(StoredValue::version);
        if operation.condition.is_some_and(|condition| condition.judge(version) != Judgement::Holds) {
            return false;
        }
        held.is_none_or(|held| {
            value.len() > held.value().len() || (operation.ttl.is_some() && held.end_ms().is_none())
        })
    }

    /// Whether a write under this id was done, or was refused for good: then it is answered from what is remembered of it.
    fn remembers(&self, request: &RequestId, hash: KeyHash) -> bool {
        let time_ms = self.clock.time();
        match *request {
            RequestId::Timed { id, fingerprint } => {
                self.timed.remembers(&timed::Asked { id, fingerprint, hash, time_ms })
            }
            RequestId::Numbered { start, number, lowest } => {
                let asked = starts::Asked { start, number, lowest, hash, time_ms };
                self.table.read().starts.remembers(&asked)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::condition::{Condition, Versions};
    use crate::model::hash::HashKey;
    use crate::model::range::HashRange;
    use crate::model::ttl::Ttl;

    #[test]
    fn only_what_would_be_done_and_takes_more_grows() {
        let shard = Shard::new(1, HashKey::PUBLISHED, [HashRange::all()], 1);
        let hash = shard.hash_of(b"k");
        let request = RequestId::Timed { id: 7, fingerprint: 1 };
        let named = Forwarded { request, epoch: 1, now_ms: 10, keep_ms: 1000 };
        shard.run(hash, b"k", Operation::put(b"\"abc\""), Some(named)).unwrap();
        let (any, none) = (
            Condition { if_match: Some(Versions::Any), if_none_match: None },
            Condition { if_match: None, if_none_match: Some(Versions::Any) },
        );
        let ttl = Ttl::from_ms(1000);
        let longer = Operation::put(b"\"abcd\"");
        for (grows, key, operation, write, what) in [
            (true, &b"new"[..], Operation::put(b"1"), None, "a new key"),
            (true, b"k", longer, None, "a longer value"),
            (false, b"k", Operation::put(b"\"xyz\""), None, "one of the same length"),
            (false, b"k", Operation::put(b"1"), None, "a shorter one"),
            (true, b"k", Operation::put(b"1").living(ttl), None, "an end beside it"),
            (false, b"k", Operation::DELETE, None, "a delete"),
            (false, b"k", Operation::TOUCH.living(ttl), None, "a touch"),
            (false, b"k", longer.under(Some(&none)), None, "a condition that does not hold"),
            (true, b"k", longer.under(Some(&any)), None, "one that does"),
            (false, b"k", longer, Some(&named), "what was done before"),
            (
                true,
                b"k",
                longer,
                Some(&Forwarded { request: RequestId::Timed { id: 8, fingerprint: 1 }, ..named }),
                "what was not",
            ),
        ] {
            let hash = shard.hash_of(key);
            assert_eq!(shard.would_grow(hash, key, operation, write), grows, "{what}");
        }
        let elsewhere = Shard::new(1, HashKey::PUBLISHED, [], 1);
        assert!(!elsewhere.would_grow(hash, b"k", longer, None), "another shard's key");
    }
}
