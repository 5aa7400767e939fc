//! The state machines of the replicas, and what they tell the oracle.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::oracle::{Applied, Digest, Event, Post, Write};
use crate::consensus::{Pieces, StateMachine};
use crate::model::binary::Malformed;
use crate::model::condition::Condition;
use crate::model::meta::{Command, MetaState, Void};
use crate::model::shard::{Change, Done, Operation, Shard, ShardCommand, ShardOutcome};

/// What replicas have done and the oracle has not judged yet.
pub(super) type Events = Arc<Mutex<Vec<Event>>>;

/// So often the whole state of a shard is compared while nothing but writes is applied.
const COMPARED_EVERY: u64 = 16;

/// A replica of a shard.
pub(super) struct WatchedShard {
    machine: Box<dyn StateMachine>,
    /// The group whose log it applies: the shard may be that of its successor before all of the log is applied.
    group: u64,
    shard: Arc<Shard>,
    told: Events,
}

/// What a key holds now, if it is served.
pub(super) fn post(shard: &Shard, key: &[u8]) -> Post {
    let found = shard.run(shard.hash_of(key), key, Operation::GET, None);
    found.ok().map(|done| match done {
        Done::Read(held) => held.map(|held| (held.value().to_vec(), held.version())),
        Done::Wrote(_) | Done::Unread(..) => unreachable!("it was only read, under no condition"),
    })
}

impl WatchedShard {
    pub(super) fn new(machine: Box<dyn StateMachine>, shard: &Arc<Shard>, told: &Events) -> Self {
        Self { machine, group: shard.group(), shard: Arc::clone(shard), told: Arc::clone(told) }
    }

    /// How many writes a command has, and those that were done. What a key held between two of them nobody has seen.
    fn writes(&self, command: &ShardCommand, done: &ShardOutcome) -> (usize, Vec<(Write, Post)>) {
        let write =
            |key: &[u8], change: &Change, condition: Option<&Condition>, ttl, request, written| Write {
                key: key.to_vec(),
                change: change.clone(),
                condition: condition.cloned(),
                ttl,
                request,
                written,
            };
        let (count, mut all): (_, Vec<Write>) = match (command, done) {
            (
                ShardCommand::Write { key, change, condition, ttl, forwarded },
                ShardOutcome::Write(Ok(written)),
            ) => {
                let condition = condition.as_deref();
                (1, vec![write(key, change, condition, *ttl, forwarded.request, *written)])
            }
            (ShardCommand::Batch(writes), ShardOutcome::Batch(done)) => {
                let done = writes.iter().zip(done).filter_map(|(one, done)| {
                    let (condition, request) = (one.condition.as_deref(), one.forwarded.request);
                    Some(write(&one.key, &one.change, condition, one.ttl, request, done.ok()?))
                });
                (writes.len(), done.collect())
            }
            _ => (0, Vec::new()),
        };
        let mut seen = HashSet::new();
        let mut posts: Vec<Post> = all
            .iter()
            .rev()
            .map(|write| if seen.insert(&write.key) { post(&self.shard, &write.key) } else { None })
            .collect();
        posts.reverse();
        (count, all.drain(..).zip(posts).collect())
    }

    fn digest(&self) -> Digest {
        let audit = self.shard.audit();
        let head = self.shard.snapshot().next().unwrap_or_default();
        Digest { head, checksum: audit.checksum, stray: audit.stray }
    }
}

impl StateMachine for WatchedShard {
    fn kind(&self) -> u8 {
        self.machine.kind()
    }

    fn apply(&mut self, index: u64, term: u64, bytes: &[u8]) -> Vec<u8> {
        let command = ShardCommand::decode(bytes).expect("only commands are proposed");
        let ended = match command {
            ShardCommand::PassTime { now_ms } => self.shard.over_at(now_ms),
            _ => Vec::new(),
        };
        let outcome = self.machine.apply(index, term, bytes);
        let done = ShardOutcome::decode(&outcome).expect("the machine answers by outcomes");
        let (count, writes) = self.writes(&command, &done);
        let is_compared = index.is_multiple_of(COMPARED_EVERY) || matches!(command, ShardCommand::Learn(_));
        let digest = is_compared.then(|| self.digest());
        let is_known = count > 0 && count == writes.len();
        let command = (!is_known).then(|| bytes.to_vec());
        let (group, at) = (self.group, (index, term));
        let applied = Applied { group, at, command, outcome: outcome.clone(), writes, ended, digest };
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

/// A replica of the meta group.
pub(super) struct WatchedMeta {
    machine: Box<dyn StateMachine>,
    group: u64,
    told: Events,
}

impl WatchedMeta {
    pub(super) fn new(machine: Box<dyn StateMachine>, group: u64, told: &Events) -> Self {
        Self { machine, group, told: Arc::clone(told) }
    }

    fn state(&self) -> Option<MetaState> {
        let bytes: Vec<u8> = self.machine.snapshot().flat_map(|piece| piece.to_vec()).collect();
        serde_json::from_slice(&bytes).expect("a snapshot is a state")
    }
}

impl StateMachine for WatchedMeta {
    fn kind(&self) -> u8 {
        self.machine.kind()
    }

    fn apply(&mut self, index: u64, term: u64, bytes: &[u8]) -> Vec<u8> {
        let before = self.state();
        let outcome = self.machine.apply(index, term, bytes);
        let command = serde_json::from_slice::<Command>(bytes).expect("only commands are proposed");
        if let (Some(before), Some(after)) = (before, self.state()) {
            let outcome: Result<(), Void> = serde_json::from_slice(&outcome).expect("it answers by outcomes");
            self.told.lock().push(Event::Meta {
                group: self.group,
                at: (index, term),
                before: Arc::new(before),
                after: Arc::new(after),
                command: Box::new(command),
                outcome,
            });
        }
        outcome
    }

    fn snapshot(&self) -> Pieces {
        self.machine.snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        self.machine.restore(snapshot)?;
        if let Some(state) = self.state() {
            self.told.lock().push(Event::MetaRestored { group: self.group, state: Arc::new(state) });
        }
        Ok(())
    }
}
