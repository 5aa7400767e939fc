//! View changes of real shards, real plans and the real meta state in one thread, by messages that are lost, late, doubled
//! and out of order, under leaders that come and go while clients read and write. Everything is drawn from one seed, so that a
//! seed that fails fails again in the same way.
//!
//! Modelled are the meta group's log, the network, and what nodes do around their shards: coordinating, copying, forwarding,
//! learning. Each of these is a task that stops wherever it would wait, and a random one goes on next.

mod checks;
mod clients;
mod coordinator;
mod meta_group;
mod nodes;
mod pieces;
mod replicated;
mod tasks;
mod world;

use std::rc::Rc;

use self::world::{Tally, World};

/// One seed from beginning to end.
fn run(seed: u64) -> Result<Tally, String> {
    let world = World::new(seed);
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tasks::run(&world)));
    let steps = world.tally.borrow().steps;
    match end {
        Ok(Ok(())) => Ok(*world.tally.borrow()),
        Ok(Err(why)) => Err(format!("step {steps}: {why}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("step {steps}: panic: {}", text.unwrap_or_default()))
        }
    }
}

/// What all tasks share.
type Shared = Rc<World>;

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "the number of seeds is given to a test by the environment"
    )]

    use super::*;

    fn number(name: &str) -> Option<u64> {
        std::env::var(name).ok()?.parse().ok()
    }

    /// `SIMULATION_SEED=7` runs that one, `SIMULATION_SEEDS=100000` so many.
    #[test]
    fn nothing_is_lost_or_done_twice_and_shards_are_even() {
        let seeds = match number("SIMULATION_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("SIMULATION_SEEDS").unwrap_or(2_000),
        };
        let mut all = Tally::default();
        for seed in seeds.clone() {
            let tally = run(seed).unwrap_or_else(|why| panic!("SIMULATION_SEED={seed}: {why}"));
            all.add(&tally);
        }
        println!("{seeds:?}: {all:?}");
        // It was no idle run.
        let runs = seeds.end - seeds.start;
        let every = [all.finished, all.handed_over, all.reads, all.writes];
        assert!(every.iter().all(|count| *count >= runs), "{all:?}");
        if runs >= 100 {
            let some = [all.aborted, all.superseded, all.cancelled, all.retried, all.unknown, all.elections];
            assert!(some.iter().all(|count| *count >= runs / 20), "{all:?}");
        }
    }

    #[test]
    fn a_seed_repeats_a_run_exactly() {
        for seed in 0..5 {
            assert_eq!(run(seed), run(seed), "SIMULATION_SEED={seed}");
        }
    }
}
