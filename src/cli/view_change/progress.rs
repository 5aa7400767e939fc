//! How far a view change is, on standard error: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

use super::super::client::Client;
use super::super::waiting::Waiting;
use super::follow::{Status, Watcher};
use crate::wire::{PieceShown, WaitsFor};

/// Where nothing but the figures changes, a line is printed for one in so many answers: every few seconds.
const SHOWN_OF: u32 = 25;

/// The bar, or what was said last in its place.
pub(super) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    last_phase: String,
    since_line: u32,
}

impl Progress {
    pub(super) fn new() -> Progress {
        let bar = ProgressBar::new(0);
        let template = "{wide_bar} {pos}/{len} pairs {elapsed_precise}\n{wide_msg}";
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        let is_terminal = !bar.is_hidden();
        Progress { bar, is_terminal, last_phase: String::new(), since_line: 0 }
    }

    /// Takes the bar away, so that what is printed next begins on a line of its own.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watcher for Progress {
    fn show(&mut self, status: &Status) {
        if self.is_terminal {
            self.bar.set_length(status.total.unwrap_or(0));
            self.bar.set_position(status.moved.unwrap_or(0));
            self.bar.set_message(message(status));
            return;
        }
        let phase = format!("{} {:?}", status.phase.as_str(), status.blocked_by);
        self.since_line += 1;
        if phase != self.last_phase || self.since_line == SHOWN_OF {
            eprintln!("{}", line(status));
            self.last_phase = phase;
            self.since_line = 0;
        }
    }

    fn say(&mut self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn wait(&self, client: &Client) -> Option<Waiting> {
        Some(Waiting::beside(&self.bar, client.node(), client.timeout()))
    }
}

/// What stands below the bar.
pub(super) fn message(status: &Status) -> String {
    let by = status.blocked_by.as_ref().map(|by| format!(" by {by}"));
    let rate = status.pairs_per_second.filter(|rate| *rate > 0.0).map(|rate| format!(", {rate:.0} pairs/s"));
    let left = status.remaining_seconds.map(|seconds| format!(", {seconds:.0} s left"));
    let piece = status.piece.as_ref().map(described);
    let waits = status.waits_for.as_ref().map(awaited);
    let known = [Some(status.phase.as_str().to_owned()), by, piece, waits, rate, left];
    known.into_iter().flatten().collect()
}

fn described(piece: &PieceShown) -> String {
    let PieceShown { number, of, attempt, pairs, from, to } = piece;
    let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
    format!(", piece {number} of {of} from shard {from} to shard {to} ({pairs} pairs){again}")
}

fn awaited(waits: &WaitsFor) -> String {
    let WaitsFor { order, node, seconds } = waits;
    format!(", waiting for {seconds:.1} s for {node} ({order})")
}

/// All in a line.
pub(super) fn line(status: &Status) -> String {
    match (status.moved, status.total) {
        (Some(moved), Some(total)) => format!("{moved}/{total} pairs {}", message(status)),
        _ => message(status),
    }
}
