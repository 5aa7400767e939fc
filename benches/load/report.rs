//! What is printed: a table of medians, and a verdict per target.

use crate::wrk::{Kind, Round};

/// GET on one node is to reach this part of the bare server's rate.
const GET_TARGET: f64 = 0.75;
/// The same for PUT.
const PUT_TARGET: f64 = 0.70;
/// A pair is to take no more resident memory than this, in bytes: what Redis 7 takes.
const PAIR_TARGET: f64 = 187.0;

/// Rounds against one server with one kind of request.
pub(crate) struct Series {
    /// What the server is called.
    pub(crate) server: &'static str,
    /// What the requests do.
    pub(crate) kind: Kind,
    /// One after the other.
    pub(crate) rounds: Vec<Round>,
}

impl Series {
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    fn rate(&self) -> f64 {
        self.median(|round| round.rate)
    }

    /// How far the rounds lie apart, in percent of the median: how noisy the machine was.
    fn noise(&self) -> f64 {
        let rates = || self.rounds.iter().map(|round| round.rate);
        (rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min)) * 100.0 / self.rate()
    }
}

/// The figure in the middle, of at least one.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints the medians; the first series of each kind is the bare server's.
#[expect(clippy::cast_precision_loss, reason = "latencies in microseconds are far below 2^53")]
pub(crate) fn print_table(all: &[Series]) {
    println!(
        "{:<6}{:<9}{:>11}{:>9}{:>11}{:>10}{:>10}{:>14}{:>8}",
        "", "server", "answers/s", "of bare", "CPU us/rq", "p50 ms", "p99 ms", "worst conn.", "noise"
    );
    for series in all {
        let worst = series.rounds.iter().map(|round| round.spread.worst_percent()).min().unwrap_or(0);
        println!(
            "{:<6}{:<9}{:>11.0}{:>9.2}{:>11.1}{:>10.2}{:>10.2}{:>12} %{:>6.0} %",
            series.kind.method(),
            series.server,
            series.rate(),
            ratio(all, series),
            series.median(|round| round.cpu_micros),
            series.median(|round| round.p50_micros as f64) / 1e3,
            series.median(|round| round.p99_micros as f64) / 1e3,
            worst,
            series.noise(),
        );
    }
    println!(
        "Medians. Worst conn.: bytes that the least served connection got of the average, in the worst round. \
         Noise: from the slowest round to the fastest."
    );
}

fn ratio(all: &[Series], series: &Series) -> f64 {
    let bare = all.iter().find(|other| other.kind == series.kind).expect("the bare server was measured");
    series.rate() / bare.rate()
}

/// Prints a verdict per target; whether all were met.
pub(crate) fn print_verdicts(all: &[Series], bytes_per_pair: f64) -> bool {
    let rate = |kind: Kind, target: f64| {
        let node = all.iter().find(|series| series.kind == kind && series.server == NODE);
        let ratio = ratio(all, node.expect("the node was measured"));
        verdict(ratio >= target, &format!("{} {ratio:.2} of bare, at least {target:.2}", kind.method()))
    };
    let verdicts = [
        rate(Kind::Get, GET_TARGET),
        rate(Kind::Put, PUT_TARGET),
        verdict(
            bytes_per_pair <= PAIR_TARGET,
            &format!("{bytes_per_pair:.1} bytes of memory per pair, at most {PAIR_TARGET:.0}"),
        ),
    ];
    verdicts.iter().all(|met| *met)
}

fn verdict(met: bool, what: &str) -> bool {
    println!("{}: {what}", if met { "met" } else { "MISSED" });
    met
}

/// What a single node is called in the table.
pub(crate) const NODE: &str = "node";
