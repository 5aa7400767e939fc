//! A shard as its group replicates it.

use std::sync::Arc;

use crate::consensus::{Pieces, StateMachine};
use crate::model::binary::Malformed;
use crate::model::shard::{Shard, ShardCommand, ShardOutcome};

/// Applies the commands of a group's log, each a [`ShardCommand`], to a shard that others read meanwhile. An outcome is a
/// [`ShardOutcome`].
pub struct ShardMachine {
    shard: Arc<Shard>,
}

impl ShardMachine {
    /// The machine of a replica that has this shard, and from now on all writes to it.
    pub fn new(shard: Arc<Shard>) -> Self {
        shard.set_logged(true);
        Self { shard }
    }
}

impl StateMachine for ShardMachine {
    fn apply(&mut self, _index: u64, _term: u64, command: &[u8]) -> Vec<u8> {
        let outcome = match ShardCommand::decode(command) {
            Ok(command) => {
                #[cfg(feature = "failpoints")]
                let command = damaged(command);
                self.shard.apply(&command)
            }
            Err(malformed) => {
                log::error!("group {}: a command cannot be read: {malformed}", self.shard.group());
                ShardOutcome::Malformed
            }
        };
        outcome.encode()
    }

    fn snapshot(&self) -> Pieces {
        Box::new(self.shard.snapshot())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        self.shard.restore(snapshot)
    }
}

/// The command as a replica applies it that is not like the others, where a test wants such a one.
#[cfg(feature = "failpoints")]
fn damaged(mut command: ShardCommand) -> ShardCommand {
    let is_wanted = |name: &str| {
        fail::fail_point!(name, |_| true);
        false
    };
    match &mut command {
        ShardCommand::Write { value: Some(value), .. } if is_wanted("write-damaged") => value[0] ^= 1,
        ShardCommand::Learn(directive) if is_wanted("ranges-forgotten") => directive.mine.clear(),
        _ => {}
    }
    command
}
