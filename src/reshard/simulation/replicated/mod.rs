//! Replicated shards and their view changes in one thread: the real driver of the consensus, the real shards behind real logs, real plans
//! and the real meta state, on a network that loses, delays, doubles, reorders and cuts, with nodes that pause, stop, crash and come
//! back without memory, while clients read and write through any node. Everything is drawn from one seed, so that a seed that
//! fails fails again in the same way.
//!
//! Modelled is what nodes do around those: coordinating, copying, forwarding, learning, and looking after the members of groups. Each of these
//! is a task that stops wherever it would wait.

mod checks;
mod clients;
mod coordinator;
mod group_ops;
mod harm;
mod keeper;
mod machine;
mod node;
mod oracle;
mod pieces;
mod prepare;
mod tasks;
mod world;

use std::rc::Rc;

use self::world::World;
use crate::consensus::simulation::Rule;

/// What all tasks share.
type Shared = Rc<World>;

/// For so many steps harm is done, and clients are at work.
const HARMFUL_STEPS: u64 = 1_800;
/// So many steps later everything must be whole again.
const RECOVERY_STEPS: u64 = 12_000;

/// How a run ends that does not come to its end.
const UNENDING: &str = "it does not become whole again";

/// A rule that is not kept, to see that it is found missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// One of the consensus.
    Consensus(Rule),
    /// Who owns a key is asked when a write is applied, not only when it is proposed.
    OwnershipAtApply,
}

impl Missing {
    /// An old replica id is never used again.
    const OLD_ID: Option<Self> = Some(Self::Consensus(Rule::FreshIdAfterAmnesia));

    fn in_consensus(self) -> Option<Rule> {
        match self {
            Self::Consensus(rule) => Some(rule),
            Self::OwnershipAtApply => None,
        }
    }
}

/// What happened in a run, to see that it was no idle one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    steps: u64,
    writes: u64,
    reads: u64,
    unknown: u64,
    refused: u64,
    retried: u64,
    superseded: u64,
    terms: u64,
    crashes: u64,
    stops: u64,
    partitions: u64,
    pauses: u64,
    hand_overs: u64,
    promotions: u64,
    restores: u64,
    logs_begun: u64,
    logs_ended: u64,
    begun: u64,
    finished: u64,
    pieces: u64,
    aborted: u64,
    replaced: u64,
    receipts: u64,
    differing: u64,
    trace: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.writes += other.writes;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.retried += other.retried;
        self.superseded += other.superseded;
        self.terms += other.terms;
        self.crashes += other.crashes;
        self.stops += other.stops;
        self.partitions += other.partitions;
        self.pauses += other.pauses;
        self.hand_overs += other.hand_overs;
        self.promotions += other.promotions;
        self.restores += other.restores;
        self.logs_begun += other.logs_begun;
        self.logs_ended += other.logs_ended;
        self.begun += other.begun;
        self.finished += other.finished;
        self.pieces += other.pieces;
        self.aborted += other.aborted;
        self.replaced += other.replaced;
        self.receipts += other.receipts;
        self.differing += other.differing;
        self.trace ^= other.trace;
    }
}

/// One seed from beginning to end.
fn run(seed: u64, without: Option<Missing>) -> Result<Tally, String> {
    let world = World::new(seed, without);
    // The crate ends the process on what it takes for impossible; to us that is a finding like any other.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(&world)));
    let tally = *world.tally.borrow();
    match end {
        Ok(Ok(())) => Ok(tally),
        Ok(Err(why)) => Err(format!("step {}: {why}", tally.steps)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("step {}: panic: {}", tally.steps, text.unwrap_or_default()))
        }
    }
}

/// Harm, then peace, in which everything must become whole again.
fn live(world: &Shared) -> Result<(), String> {
    let mut tasks = Vec::new();
    world.begin();
    let mut last = HARMFUL_STEPS + RECOVERY_STEPS;
    for step in 0.. {
        if step >= HARMFUL_STEPS && world.harm.get() && harm::is_harmed(world) {
            harm::end(world);
            last = step + RECOVERY_STEPS;
            world.spawn(coordinator::change_at_last(Rc::clone(world)));
        }
        world.step(&mut tasks)?;
        if step.is_multiple_of(2) && world.touched.take() {
            checks::at_most_one_accepts(world);
        }
        if step == last {
            break;
        }
        if world.over.get() && step.is_multiple_of(10) && checks::is_whole(world) {
            world.tell_tally();
            // Tasks hold on to the world, and the world to those that were begun last.
            world.spawned.borrow_mut().clear();
            return checks::at_the_end(world);
        }
    }
    Err(format!("{UNENDING}: {}", checks::describe(world)))
}

#[cfg(test)]
mod tests;
