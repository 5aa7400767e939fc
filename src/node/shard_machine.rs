//! A shard as its group replicates it.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::ticks_ms;
use crate::consensus::{Pieces, StateMachine};
use crate::model::binary::Malformed;
use crate::model::format;
use crate::model::shard::{SNAPSHOT_FORM, Shard, ShardCommand, ShardOutcome, form_of, is_known};

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
    fn kind(&self) -> u8 {
        super::kept::SHARD
    }

    fn apply(&mut self, _index: u64, term: u64, command: &[u8]) -> Vec<u8> {
        let outcome = match ShardCommand::decode(command) {
            Ok(command) => {
                #[cfg(feature = "failpoints")]
                let command = damaged(command);
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

    fn needs(&self, command: &[u8]) -> u32 {
        ShardCommand::decode(command).map_or(format::FIRST, |command| command.needs())
    }

    fn state_needs(&self) -> u32 {
        self.shard.snapshot_needs()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        let (time_ms, state) = snapshot.split_first_chunk().ok_or(Malformed("cut off"))?;
        let form = form_of(state)?;
        if !is_known(form) {
            let group = self.shard.group();
            log::error!(
                "group {group}: the leader sends its state in form {form}, and this node knows forms up to {SNAPSHOT_FORM} only: \
                 run the same version of the program on both"
            );
        }
        self.shard.restore(state)?;
        self.shard.set_clock(u64::from_le_bytes(*time_ms), (self.ticks_ms)());
        Ok(())
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
        ShardCommand::Write { change: crate::model::shard::Change::Put(value), .. }
            if is_wanted("write-damaged") =>
        {
            value[0] ^= 1;
        }
        ShardCommand::Learn(directive) if is_wanted("ranges-forgotten") => directive.mine.clear(),
        _ => {}
    }
    command
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::model::hash::HashKey;
    use crate::model::range::HashRange;
    use crate::model::shard::{Forwarded, Operation, RequestId, WriteOutcome, encode_write};

    /// A replica on a node whose clock shows something else than those of the others.
    struct Replica {
        machine: ShardMachine,
        ticks_ms: Arc<AtomicU64>,
    }

    impl Replica {
        fn new(ticks_ms: u64, owned: Option<HashRange>) -> Self {
            let ticks_ms = Arc::new(AtomicU64::new(ticks_ms));
            let (clock, shard) = (Arc::clone(&ticks_ms), Shard::new(1, HashKey::PUBLISHED, owned, 1));
            let machine = ShardMachine::with_clock(Arc::new(shard), move || clock.load(Ordering::Relaxed));
            Self { machine, ticks_ms }
        }

        fn time(&self) -> u64 {
            self.machine.shard.time(self.ticks_ms.load(Ordering::Relaxed))
        }
    }

    fn wait(replicas: &[Replica], millis: u64) {
        for replica in replicas {
            replica.ticks_ms.fetch_add(millis, Ordering::Relaxed);
        }
    }

    /// A write under this id that one of the replicas proposes and all apply: whether it was done, and not answered from memory.
    fn is_done(replicas: &mut [Replica], leader: usize, term: u64, id: u128) -> bool {
        let request = RequestId::Timed { id, fingerprint: 0 };
        replicas[leader].machine.shard.lead(term);
        let now_ms = replicas[leader].time();
        let forwarded = Forwarded { request, epoch: 1, now_ms, keep_ms: 50_000 };
        let command = encode_write(b"k", Operation::put(b"1"), &forwarded);
        let before = replicas[leader].machine.shard.audit().index;
        for replica in &mut *replicas {
            let outcome = ShardOutcome::decode(&replica.machine.apply(1, term, &command)).unwrap();
            let ShardOutcome::Write(Ok(written)) = outcome else { panic!("{outcome:?}") };
            assert!(matches!(written.outcome, WriteOutcome::Added | WriteOutcome::Updated));
        }
        replicas[leader].machine.shard.audit().index > before
    }

    #[test]
    fn a_named_write_is_remembered_for_its_time_by_leaders_whose_clocks_show_anything() {
        let mut replicas = [5_000, 900_000_000].map(|ticks| Replica::new(ticks, Some(HashRange::all())));
        assert!(is_done(&mut replicas, 0, 1, 1));
        wait(&replicas, 20_000);
        assert!(is_done(&mut replicas, 0, 1, 2));
        wait(&replicas, 29_000);
        // The other leads: for it, too, 49 s have passed.
        assert!(!is_done(&mut replicas, 1, 2, 1));
        wait(&replicas, 1_000);
        assert!(is_done(&mut replicas, 1, 2, 1), "after 50 s it is forgotten");
        assert!(!is_done(&mut replicas, 0, 3, 2));
        // One that is filled anew learns the time at which it was, although nobody has written for long.
        wait(&replicas, 15_000);
        let mut fresh = Replica::new(77, None);
        let snapshot: Vec<u8> = replicas[0].machine.snapshot().flatten().collect();
        fresh.machine.restore(&snapshot).unwrap();
        assert_eq!((fresh.time(), replicas[1].time()), (replicas[0].time(), replicas[0].time()));
        assert!(fresh.machine.restore(&snapshot[..7]).is_err());
    }
}
