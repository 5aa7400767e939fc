#![allow(clippy::disallowed_methods, reason = "the number of seeds is given to a test by the environment")]

use super::*;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `SIMULATION_SEED=7` runs that one, `SIMULATION_SEEDS=1000` so many, from `SIMULATION_FROM` on.
#[test]
fn nothing_acknowledged_is_lost_and_no_read_is_stale() {
    let from = number("SIMULATION_FROM").unwrap_or(0);
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("SIMULATION_SEEDS").unwrap_or(20),
    };
    let _ = env_logger::builder().is_test(true).format_timestamp(None).try_init();
    let mut all = Tally::default();
    // Each thread has a world of its own.
    std::thread::scope(|scope| {
        let part = |first: usize| {
            let seeds = seeds.clone();
            scope.spawn(move || run_all(seeds.skip(first).step_by(THREADS)))
        };
        let parts: Vec<_> = (0..THREADS).map(part).collect();
        for part in parts {
            all.add(&part.join().expect("a seed has failed"));
        }
    });
    println!("{seeds:?}: {all:?}");
    // It was no idle run.
    let runs = seeds.end - seeds.start;
    if runs >= 20 {
        let some = [all.stops, all.pauses, all.hand_overs, all.restores, all.rejoined, all.slowed, all.jumps];
        let others = [all.pieces, all.aborted, all.unknown, all.refused, all.retried];
        let losses = [all.disasters, all.recovered, all.accepted, all.forgotten];
        let counts = some.iter().chain(&others).chain(&losses);
        assert!(counts.clone().all(|count| *count >= runs / 20), "{all:?}");
        // Rarer than the others.
        assert!(all.superseded >= runs / 50, "{all:?}");
        assert!(all.no_room >= runs, "{all:?}");
        assert!(all.unmet >= runs && all.ended >= runs && all.judged_late >= runs, "{all:?}");
    }
}

/// So many threads share the seeds.
const THREADS: usize = 2;

fn run_all(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut all = Tally::default();
    for seed in seeds {
        let tally = run(seed).unwrap_or_else(|why| panic!("SIMULATION_SEED={seed}: {why}"));
        // The least that a seed is worth.
        let asked = tally.writes + tally.reads + tally.unknown + tally.refused;
        let harmed = tally.crashes + tally.disasters >= 1 && tally.partitions >= 1 && tally.finished >= 1;
        assert!(tally.steps >= 2_000 && asked >= 200 && harmed, "SIMULATION_SEED={seed}: {tally:?}");
        all.add(&tally);
    }
    all
}

/// The same for nodes with disks, whose power is cut, that of all at once too: `SIMULATION_SEED`, `SIMULATION_SEEDS`, `SIMULATION_FROM`.
#[test]
fn nothing_acknowledged_is_lost_by_nodes_with_disks() {
    let from = number("SIMULATION_FROM").unwrap_or(0);
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("SIMULATION_SEEDS").unwrap_or(12),
    };
    let _ = env_logger::builder().is_test(true).format_timestamp(None).try_init();
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let part = |first: usize| {
            let seeds = seeds.clone();
            scope.spawn(move || {
                let mut all = Tally::default();
                for seed in seeds.skip(first).step_by(THREADS) {
                    all.add(
                        &run_on(seed, true).unwrap_or_else(|why| panic!("SIMULATION_SEED={seed}: {why}")),
                    );
                }
                all
            })
        };
        let parts: Vec<_> = (0..THREADS).map(part).collect();
        for part in parts {
            all.add(&part.join().expect("a seed has failed"));
        }
    });
    println!("{seeds:?}: {all:?}");
    let runs = seeds.end - seeds.start;
    if runs >= 10 {
        let counts = [all.cuts, all.stops, all.pieces, all.finished, all.restores, all.writes, all.reads];
        assert!(counts.iter().all(|count| *count >= runs), "{all:?}");
    }
}

#[test]
fn a_seed_repeats_a_run_exactly() {
    for seed in 0..3 {
        assert_eq!(run(seed), run(seed), "SIMULATION_SEED={seed}");
        assert_eq!(run_on(seed, true), run_on(seed, true), "SIMULATION_SEED={seed}");
    }
}
