//! A whole cluster of real drivers in one thread, on a network that loses, delays, reorders, doubles and
//! cuts, with nodes that pause, crash and come back without memory. Everything is drawn from one seed, so
//! that a seed that fails fails again in the same way.

pub(crate) mod network;
mod oracle;
mod world;

use world::World;

/// A rule without which acknowledged writes can be lost, or writes acknowledged that never were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Who waits is answered only if the applied entry is its own by index *and* term.
    TermAtAnswer,
    /// A learner gets a vote only when it holds all that was acknowledged.
    CatchUpBeforePromotion,
    /// A node that lost its memory never uses its old replica id again.
    FreshIdAfterAmnesia,
    /// A leader answers a replica that wants to read without asking others only if the two are a majority.
    MajorityAtReadQuestion,
    /// What was said to be on a disk is there.
    SyncedLog,
    /// A replica that goes on from its disk gives no number to a question or command twice.
    FreshNumbers,
    /// A change of members is in force only once it is on the disk that it is committed.
    CommitBeforeChange,
    /// What is sent and applied is on the disk before.
    PersistBeforeSend,
}

/// What happened in a run, to see that it was no idle one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    steps: u64,
    writes: u64,
    reads: u64,
    unknown: u64,
    refused: u64,
    superseded: u64,
    terms: u64,
    crashes: u64,
    stops: u64,
    partitions: u64,
    pauses: u64,
    promotions: u64,
    restores: u64,
    hand_overs: u64,
    parts: u64,
    reads_elsewhere: u64,
    /// Nodes that have gone on from their disk, and how often all lost their power at once.
    resumed: u64,
    blackouts: u64,
    snapshots: u64,
    trace: u64,
}

/// One seed from beginning to end, by nodes in memory.
fn run(seed: u64, without: Option<Rule>) -> Result<Tally, String> {
    run_with(World::new(seed, without, false))
}

/// The same by nodes with disks, which lose what was not synced when their power is cut.
fn run_on_disks(seed: u64, without: Option<Rule>) -> Result<Tally, String> {
    run_with(World::new(seed, without, true))
}

fn run_with(mut world: World) -> Result<Tally, String> {
    // The crate ends the process on what it takes for impossible; to us that is a finding like any other.
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    match end {
        Ok(Ok(())) => Ok(world.tally),
        Ok(Err(why)) => Err(format!("step {}: {why}", world.tally.steps)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("step {}: panic: {}", world.tally.steps, text.unwrap_or_default()))
        }
    }
}

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

    /// `SIMULATION_SEED=7` runs that one, `SIMULATION_SEEDS=1000` so many.
    #[test]
    fn nothing_acknowledged_is_ever_lost() {
        let seeds = match number("SIMULATION_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("SIMULATION_SEEDS").unwrap_or(30),
        };
        let _ = env_logger::builder().is_test(true).format_timestamp(None).try_init();
        let mut all = Tally::default();
        for seed in seeds.clone() {
            let tally = run(seed, None).unwrap_or_else(|why| panic!("SIMULATION_SEED={seed}: {why}"));
            let asked = tally.writes + tally.reads + tally.unknown + tally.refused;
            assert!(tally.steps >= 2_000 && asked >= 200, "SIMULATION_SEED={seed}: {tally:?}");
            assert!(tally.writes >= 20 && tally.reads >= 10, "SIMULATION_SEED={seed}: {tally:?}");
            assert!(
                tally.crashes + tally.stops >= 1 && tally.partitions >= 1,
                "SIMULATION_SEED={seed}: {tally:?}"
            );
            all.writes += tally.writes;
            all.reads += tally.reads;
            all.unknown += tally.unknown;
            all.refused += tally.refused;
            all.superseded += tally.superseded;
            all.terms += tally.terms;
            all.crashes += tally.crashes;
            all.stops += tally.stops;
            all.partitions += tally.partitions;
            all.pauses += tally.pauses;
            all.promotions += tally.promotions;
            all.restores += tally.restores;
            all.hand_overs += tally.hand_overs;
            all.parts += tally.parts;
            all.reads_elsewhere += tally.reads_elsewhere;
            all.steps += tally.steps;
        }
        println!("{seeds:?}: {all:?}");
        // Not every seed by itself has everything.
        if seeds.end - seeds.start > 1 {
            assert!(all.parts > 0 && all.reads_elsewhere > 0, "{all:?}");
            assert!(all.promotions > 0 && all.restores > 0, "{all:?}");
            assert!(all.hand_overs > 0 && all.unknown > 0, "{all:?}");
        }
    }

    /// `SIMULATION_SEED` and `SIMULATION_SEEDS` as above.
    #[test]
    fn nothing_acknowledged_is_lost_when_all_nodes_lose_their_power() {
        let seeds = match number("SIMULATION_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("SIMULATION_SEEDS").unwrap_or(20),
        };
        let _ = env_logger::builder().is_test(true).format_timestamp(None).try_init();
        let (mut resumed, mut blackouts, mut snapshots, mut writes) = (0, 0, 0, 0);
        for seed in seeds.clone() {
            let tally =
                run_on_disks(seed, None).unwrap_or_else(|why| panic!("SIMULATION_SEED={seed}: {why}"));
            assert!(tally.writes >= 20 && tally.reads >= 10, "SIMULATION_SEED={seed}: {tally:?}");
            (resumed, blackouts) = (resumed + tally.resumed, blackouts + tally.blackouts);
            (snapshots, writes) = (snapshots + tally.snapshots, writes + tally.writes);
        }
        println!(
            "{seeds:?}: {writes} writes, {resumed} resumed, {blackouts} blackouts, {snapshots} snapshots"
        );
        if seeds.end - seeds.start > 1 {
            assert!(resumed > 0 && blackouts > 0 && snapshots > 0, "{resumed} {blackouts} {snapshots}");
        }
    }

    #[test]
    fn a_seed_repeats_a_run_exactly() {
        for seed in 0..3 {
            assert_eq!(run(seed, None), run(seed, None), "SIMULATION_SEED={seed}");
            assert_eq!(run_on_disks(seed, None), run_on_disks(seed, None), "SIMULATION_SEED={seed}");
        }
    }

    /// The number of seeds that it took to find a rule missing.
    fn seeds_to_find(rule: Rule) -> u64 {
        let run = if [Rule::SyncedLog, Rule::PersistBeforeSend, Rule::FreshNumbers].contains(&rule) {
            run_on_disks
        } else {
            run
        };
        let found = (0..2_000).find_map(|seed| Some((seed, run(seed, Some(rule)).err()?)));
        let (seed, why) =
            found.unwrap_or_else(|| panic!("2000 seeds did not find that {rule:?} was missing"));
        println!("{rule:?} missing was found by seed {seed}: {why}");
        seed + 1
    }

    #[test]
    fn a_missing_term_check_at_the_answer_is_found() {
        seeds_to_find(Rule::TermAtAnswer);
    }

    #[test]
    fn a_promotion_before_catching_up_is_found() {
        seeds_to_find(Rule::CatchUpBeforePromotion);
    }

    #[test]
    fn a_leader_that_answers_a_replica_without_a_majority_is_found() {
        seeds_to_find(Rule::MajorityAtReadQuestion);
    }

    #[test]
    fn a_number_given_again_after_a_start_is_found() {
        seeds_to_find(Rule::FreshNumbers);
    }

    #[test]
    fn a_disk_that_does_not_sync_is_found() {
        seeds_to_find(Rule::SyncedLog);
    }

    #[test]
    fn what_is_sent_before_it_is_on_the_disk_is_found() {
        seeds_to_find(Rule::PersistBeforeSend);
    }

    #[test]
    fn an_old_id_used_again_is_found() {
        seeds_to_find(Rule::FreshIdAfterAmnesia);
    }
}
