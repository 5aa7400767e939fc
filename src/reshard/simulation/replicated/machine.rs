//! The state machines of the replicas: the real ones, and what they tell the oracle.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::oracle::{Applied, Digest, Event, Post};
use crate::consensus::{Pieces, StateMachine};
use crate::model::binary::Malformed;
use crate::model::hash::HashKey;
use crate::model::meta::{MetaState, Void};
use crate::model::shard::{Operation, Refused, Shard, ShardCommand, ShardOutcome, WriteOutcome};
use crate::node::shard_machine::ShardMachine;

/// What replicas have done and the oracle has not judged yet.
pub(super) type Told = Arc<Mutex<Vec<Event>>>;

/// So often the whole state of a shard is compared while nothing but writes is applied.
const COMPARED_EVERY: u64 = 16;

/// A replica of a shard.
pub(super) struct Watched {
    machine: ShardMachine,
    shard: Arc<Shard>,
    hash_key: HashKey,
    told: Told,
    /// Where apply does not ask who owns a key: writes that were done all the same, and are there as long as they can be.
    unowned: Option<Vec<ShardCommand>>,
}

impl Watched {
    pub(super) fn new(shard: &Arc<Shard>, hash_key: HashKey, told: &Told, checks_at_apply: bool) -> Self {
        let unowned = (!checks_at_apply).then(Vec::new);
        let (machine, shard) = (ShardMachine::new(Arc::clone(shard)), Arc::clone(shard));
        Self { machine, shard, hash_key, told: Arc::clone(told), unowned }
    }

    fn digest(&self) -> Digest {
        let audit = self.shard.audit();
        let head = self.shard.snapshot().next().unwrap_or_default();
        Digest { head, checksum: audit.checksum, stray: audit.stray }
    }

    /// What a key holds now, if it is served.
    fn post(&self, key: &[u8]) -> Post {
        let found = self.shard.run(self.hash_key.hash(key), key, Operation::Get, None);
        found.ok().map(|done| match done {
            crate::model::shard::Done::Found(held) => Some((held.value().to_vec(), held.version())),
            _ => None,
        })
    }

    /// The write of a key that is not owned, where nobody asks.
    fn do_unowned(&mut self, command: &ShardCommand, outcome: ShardOutcome) -> ShardOutcome {
        let Some(unowned) = &mut self.unowned else { return outcome };
        unowned.retain(|write| matches!(self.shard.apply(write), ShardOutcome::Write(Err(Refused::Moving))));
        let ShardCommand::Write { key, value, forwarded } = command else { return outcome };
        if !matches!(outcome, ShardOutcome::Write(Err(_))) {
            return outcome;
        }
        unowned.push(ShardCommand::Write { key: key.clone(), value: value.clone(), forwarded: *forwarded });
        ShardOutcome::Write(Ok(if value.is_some() { WriteOutcome::Updated } else { WriteOutcome::Deleted }))
    }
}

impl StateMachine for Watched {
    fn apply(&mut self, index: u64, term: u64, bytes: &[u8]) -> Vec<u8> {
        let outcome = self.machine.apply(index, term, bytes);
        let command = ShardCommand::decode(bytes).expect("only commands are proposed");
        let outcome = ShardOutcome::decode(&outcome).expect("the machine answers by outcomes");
        let is_lax = self.unowned.is_some();
        let outcome = self.do_unowned(&command, outcome);
        let (mut write, mut post) = (None, None);
        if let (ShardCommand::Write { key, value, forwarded }, ShardOutcome::Write(Ok(done))) =
            (&command, &outcome)
        {
            write = Some((key.to_vec(), value.as_deref().map(<[u8]>::to_vec), forwarded.request, *done));
            post = if is_lax { None } else { self.post(key) };
        }
        let is_write = matches!(command, ShardCommand::Write { .. });
        let is_compared =
            !is_lax && (index.is_multiple_of(COMPARED_EVERY) || matches!(command, ShardCommand::Learn(_)));
        let outcome = outcome.encode();
        let digest = is_compared.then(|| self.digest());
        let command = if is_write { write.is_none().then(|| bytes.to_vec()) } else { Some(bytes.to_vec()) };
        let applied = Applied {
            group: self.shard.group(),
            at: (index, term),
            command,
            outcome: outcome.clone(),
            write,
            post,
            digest,
        };
        self.told.lock().push(Event::Applied(Box::new(applied)));
        outcome
    }

    fn snapshot(&self) -> Pieces {
        self.machine.snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        self.machine.restore(snapshot)?;
        self.told.lock().push(Event::Restored);
        Ok(())
    }
}

/// The newest meta state that a replica has applied.
pub(super) type AppliedState = Arc<Mutex<Option<Arc<MetaState>>>>;

/// A replica of the meta group, as `node::meta_group` has it.
pub(super) struct MetaMachine {
    pub(super) applied: AppliedState,
    pub(super) told: Told,
}

impl StateMachine for MetaMachine {
    fn apply(&mut self, index: u64, term: u64, bytes: &[u8]) -> Vec<u8> {
        let mut applied = self.applied.lock();
        let command =
            serde_json::from_slice::<crate::model::meta::Command>(bytes).expect("only commands are proposed");
        let Some(before) = applied.clone() else {
            return serde_json::to_vec(&Err::<(), _>(Void::Outdated)).expect("JSON");
        };
        let mut state = (*before).clone();
        let outcome = state.apply(command.clone());
        let state = Arc::new(state);
        *applied = Some(Arc::clone(&state));
        let told = Event::Meta {
            at: (index, term),
            before,
            after: state,
            command: Box::new(command),
            outcome: outcome.clone(),
        };
        self.told.lock().push(told);
        serde_json::to_vec(&outcome).expect("our own types are JSON")
    }

    fn snapshot(&self) -> Pieces {
        let state = serde_json::to_vec(&self.applied.lock().as_deref()).expect("our own types are JSON");
        Box::new(std::iter::once(Bytes::from(state)))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        let state: Option<MetaState> =
            serde_json::from_slice(snapshot).map_err(|_| Malformed("not a meta state"))?;
        let state = state.map(Arc::new);
        if let Some(state) = &state {
            self.told.lock().push(Event::MetaRestored(Arc::clone(state)));
        }
        *self.applied.lock() = state;
        Ok(())
    }
}
