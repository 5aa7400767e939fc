//! A shard as its group replicates it.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::ticks_ms;
use crate::consensus::{Pieces, StateMachine};
use crate::model::binary::Malformed;
use crate::model::shard::{Shard, ShardCommand, ShardOutcome};

/// Applies the commands of a group's log, each a [`ShardCommand`], to a shard that others read meanwhile. An outcome is a
/// [`ShardOutcome`].
pub struct ShardMachine {
    shard: Arc<Shard>,
    /// The monotonic clock of the node.
    ticks_ms: Box<dyn Fn() -> u64 + Send>,
}

impl ShardMachine {
    /// The machine of a replica that has this shard, and from now on all writes to it.
    pub fn new(shard: Arc<Shard>) -> Self {
        Self::with_clock(shard, ticks_ms)
    }

    /// The same by a clock that shows milliseconds since any moment.
    pub fn with_clock(shard: Arc<Shard>, ticks_ms: impl Fn() -> u64 + Send + 'static) -> Self {
        shard.set_logged(true);
        Self { shard, ticks_ms: Box::new(ticks_ms) }
    }
}

impl StateMachine for ShardMachine {
    fn apply(&mut self, _index: u64, term: u64, command: &[u8]) -> Vec<u8> {
        let outcome = match ShardCommand::decode(command) {
            Ok(command) => {
                let outcome = self.shard.apply(&command);
                if command.time_ms().is_some() {
                    self.shard.set_clock_by(term, (self.ticks_ms)());
                }
                outcome
            }
            Err(malformed) => {
                log::error!("group {}: a command cannot be read: {malformed}", self.shard.group());
                ShardOutcome::Malformed
            }
        };
        outcome.encode()
    }

    /// The time at which it is sent goes before it, which is no part of the state.
    fn snapshot(&self) -> Pieces {
        let time_ms = Bytes::copy_from_slice(&self.shard.time((self.ticks_ms)()).to_le_bytes());
        Box::new(std::iter::once(time_ms).chain(self.shard.snapshot()))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        let (time_ms, state) = snapshot.split_first_chunk().ok_or(Malformed("cut off"))?;
        self.shard.restore(state)?;
        self.shard.set_clock(u64::from_le_bytes(*time_ms), (self.ticks_ms)());
        Ok(())
    }
}
