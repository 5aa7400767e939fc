//! What is printed: a table of medians, and a verdict per target.

use std::time::Duration;

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

/// The time that 99 of 100 took at most; nothing of nothing.
pub(crate) fn p99(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    let index = (times.len() * 99).div_ceil(100).checked_sub(1)?;
    Some(times[index])
}

/// Milliseconds for printing.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints the medians beside those of one of the servers.
#[expect(clippy::cast_precision_loss, reason = "latencies in microseconds are far below 2^53")]
pub(crate) fn print_table(all: &[Series], reference: &str) {
    println!(
        "{:<6}{:<15}{:>11}{:>9}{:>11}{:>10}{:>10}{:>14}{:>8}",
        "",
        "server",
        "answers/s",
        format!("of {reference}"),
        "CPU us/rq",
        "p50 ms",
        "p99 ms",
        "worst conn.",
        "noise"
    );
    for series in all {
        let worst = series.rounds.iter().map(|round| round.spread.worst_percent()).min().unwrap_or(0);
        println!(
            "{:<6}{:<15}{:>11.0}{:>9.2}{:>11.1}{:>10.2}{:>10.2}{:>12} %{:>6.0} %",
            series.kind.method(),
            series.server,
            series.rate(),
            rate_of(all, series.kind, reference).map_or(f64::NAN, |rate| series.rate() / rate),
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

/// The median rate of a server, if it was measured.
fn rate_of(all: &[Series], kind: Kind, server: &str) -> Option<f64> {
    all.iter().find(|series| series.kind == kind && series.server == server).map(Series::rate)
}

/// Prints a verdict per target; whether all were met.
pub(crate) fn print_verdicts(all: &[Series], bytes_per_pair: f64) -> bool {
    let rate = |kind: Kind, target: f64| compare(all, kind, [NODE, BARE], target);
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

/// Prints whether a server reaches a part, or a multiple, of the rate of another.
pub(crate) fn compare(all: &[Series], kind: Kind, [server, reference]: [&str; 2], target: f64) -> bool {
    let (method, rate) = (kind.method(), |server| rate_of(all, kind, server));
    match (rate(server), rate(reference)) {
        (Some(ours), Some(theirs)) => {
            let ratio = ours / theirs;
            verdict(
                ratio >= target,
                &format!("{method}, {server}: {ratio:.2} of {reference}, at least {target:.2}"),
            )
        }
        (Some(_), None) => {
            println!("left out: {method}, {server} beside {reference}, which was not measured");
            true
        }
        (None, _) => verdict(false, &format!("{method}, {server}: not measured")),
    }
}

/// Prints whether a target was met, and gives it back.
pub(crate) fn verdict(met: bool, what: &str) -> bool {
    println!("{}: {what}", if met { "met" } else { "MISSED" });
    met
}

/// What the bare server is called in the tables.
pub(crate) const BARE: &str = "bare";
/// What a single node is called in the tables.
pub(crate) const NODE: &str = "node";
