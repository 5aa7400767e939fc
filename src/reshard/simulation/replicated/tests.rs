#![allow(clippy::disallowed_methods, reason = "the number of seeds is given to a test by the environment")]

use super::*;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `SIMULATION_SEED=7` runs that one, `SIMULATION_SEEDS=1000` so many.
#[test]
fn nothing_acknowledged_is_lost_and_no_read_is_stale() {
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(20),
    };
    let _ = env_logger::builder().is_test(true).format_timestamp(None).try_init();
    let mut all = Tally::default();
    for seed in seeds.clone() {
        let tally = run(seed, None).unwrap_or_else(|why| panic!("SIMULATION_SEED={seed}: {why}"));
        // The least that a seed is worth.
        let asked = tally.writes + tally.reads + tally.unknown + tally.refused;
        let harmed = tally.crashes >= 1 && tally.partitions >= 1 && tally.finished >= 1;
        assert!(tally.steps >= 2_000 && asked >= 200 && harmed, "SIMULATION_SEED={seed}: {tally:?}");
        all.add(&tally);
    }
    println!("{seeds:?}: {all:?}");
    // It was no idle run.
    let runs = seeds.end - seeds.start;
    if runs >= 20 {
        let some = [all.stops, all.pauses, all.hand_overs, all.promotions, all.restores, all.logs_begun];
        let others = [all.logs_ended, all.pieces, all.aborted, all.unknown, all.refused, all.retried];
        assert!(some.iter().chain(&others).all(|count| *count >= runs / 20), "{all:?}");
    }
}

#[test]
fn a_seed_repeats_a_run_exactly() {
    for seed in 0..3 {
        assert_eq!(run(seed, None), run(seed, None), "SIMULATION_SEED={seed}");
    }
}

/// The number of seeds that it took to find a rule missing.
fn seeds_to_find(missing: Missing) {
    // That something does not come to its end is no finding: whatever must not be has to be seen.
    let finds = |seed| run(seed, Some(missing)).err().filter(|why| !why.contains(UNENDING));
    let found = (0..MOST_SEEDS).find_map(|seed| Some((seed, finds(seed)?)));
    let (seed, why) =
        found.unwrap_or_else(|| panic!("{MOST_SEEDS} seeds did not find that {missing:?} was missing"));
    let why: String = why.chars().take(300).collect();
    println!("{missing:?} missing was found by seed {seed}: {why}");
}

/// A missing rule is found within so many seeds.
const MOST_SEEDS: u64 = 1_000;

#[test]
fn a_missing_term_check_at_the_answer_is_found() {
    seeds_to_find(Missing::Consensus(Rule::TermAtAnswer));
}

#[test]
fn a_promotion_before_catching_up_is_found() {
    seeds_to_find(Missing::Consensus(Rule::CatchUpBeforePromotion));
}

#[test]
fn an_old_id_used_again_is_found() {
    seeds_to_find(Missing::Consensus(Rule::FreshIdAfterAmnesia));
}

#[test]
fn ownership_asked_only_at_the_proposal_is_found() {
    seeds_to_find(Missing::OwnershipAtApply);
}
