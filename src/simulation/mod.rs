//! A whole cluster in one thread: real nodes with everything that they decide and do, whose clock, dice, network and machines are simulated.
//!
//! The network loses, delays, doubles, reorders and cuts; nodes pause, stop, crash and come back without memory, under their old settings or
//! others; clients read and write through any node; and an operator changes the view, takes shards for lost, and recovers what has lost
//! its majority. Everything is drawn from one seed, so that a seed that fails fails again in the same way.
//!
//! A node is the one of the program, all of it but HTTP: its steps run over a [`Host`](crate::node::host::Host) that suspends where the program's blocks.

mod checks;
mod clients;
mod harm;
mod host;
mod lister;
mod operator;
mod oracle;
mod process;
mod tasks;
mod watch;
mod watchers;
mod world;

use std::rc::Rc;

use self::world::World;
use crate::clock::simulated;
use crate::dice::seeded;

/// What all tasks share.
type Shared = Rc<World>;

/// For so many steps harm is done, and clients are at work.
const HARMFUL_STEPS: u64 = 2_500;
/// So many steps later everything must be whole again.
const RECOVERY_STEPS: u64 = 30_000;

/// How a run ends that does not come to its end.
const UNENDING: &str = "it does not become whole again";

/// What happened in a run, to see that it was no idle one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    steps: u64,
    writes: u64,
    reads: u64,
    unknown: u64,
    refused: u64,
    retried: u64,
    terms: u64,
    crashes: u64,
    disasters: u64,
    stops: u64,
    rejoined: u64,
    partitions: u64,
    pauses: u64,
    slowed: u64,
    jumps: u64,
    hand_overs: u64,
    restores: u64,
    begun: u64,
    finished: u64,
    superseded: u64,
    accepted: u64,
    recovered: u64,
    forgotten: u64,
    pieces: u64,
    aborted: u64,
    receipts: u64,
    unmet: u64,
    ended: u64,
    judged_late: u64,
    told: u64,
    resyncs: u64,
    no_room: u64,
    /// Nodes whose power was cut, and that came back with their disk.
    cuts: u64,
    trace: u64,
}

impl Tally {
    /// All figures but the last, which is no sum.
    fn figures(&mut self) -> [&mut u64; 33] {
        let Self { steps, writes, reads, unknown, refused, retried, terms, crashes, disasters, .. } = self;
        let Self { stops, rejoined, partitions, pauses, slowed, jumps, hand_overs, restores, .. } = self;
        let Self { begun, finished, superseded, accepted, recovered, forgotten, pieces, .. } = self;
        let Self { aborted, receipts, unmet, ended, judged_late, told, resyncs, no_room, cuts, .. } = self;
        [
            steps,
            writes,
            reads,
            unknown,
            refused,
            retried,
            terms,
            crashes,
            disasters,
            stops,
            rejoined,
            partitions,
            pauses,
            slowed,
            jumps,
            hand_overs,
            restores,
            begun,
            finished,
            superseded,
            accepted,
            recovered,
            forgotten,
            pieces,
            aborted,
            receipts,
            unmet,
            ended,
            judged_late,
            told,
            resyncs,
            no_room,
            cuts,
        ]
    }

    fn add(&mut self, other: &Self) {
        let mut other = *other;
        for (sum, one) in self.figures().into_iter().zip(other.figures()) {
            *sum += *one;
        }
        self.trace ^= other.trace;
    }
}

/// One seed from beginning to end.
fn run(seed: u64) -> Result<Tally, String> {
    run_on(seed, false)
}

/// The same by nodes with disks or without.
fn run_on(seed: u64, disks: bool) -> Result<Tally, String> {
    seeded::set(Some(seed));
    simulated::stop();
    let world = World::new(seed, disks);
    world::enter(Some(&world));
    // The crate ends the process on what it takes for impossible; to us that is a finding like any other.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(&world)));
    let tally = *world.tally.borrow();
    world.end();
    world::enter(None);
    simulated::end();
    seeded::set(None);
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
        if world.harm.get() && step >= HARMFUL_STEPS && harm::is_harmed(world) {
            harm::end(world);
            last = step + RECOVERY_STEPS;
            world.spawn(operator::mend_and_change(Rc::clone(world)));
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
            return checks::at_the_end(world);
        }
    }
    Err(format!("{UNENDING}: {}", checks::describe(world)))
}

#[cfg(test)]
mod tests;
