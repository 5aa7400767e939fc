//! What became of the lines, and how that is told.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::address::Address;
use super::super::failure::Failure;
use super::pipeline::Stopped;
use super::worker::Task;

/// How many failed lines are listed; the others are counted.
const LISTED_MAX: usize = 20;

/// What the threads of an import tell the one that keeps the tally.
#[derive(Debug)]
pub(super) enum Event {
    /// So many lines are done.
    Done(u64),
    Failed {
        line: u64,
        reason: String,
    },
    /// There is no point in going on.
    Stop(String),
    /// Somebody at the terminal wants it to end.
    Interrupted,
    /// A thread that stops leaves this line, and perhaps later ones, to be done.
    Left(u64),
    /// Nothing has come of any line for a while, since the node does not answer.
    Silent,
}

/// What came of one way through the file.
pub(super) struct Pass {
    pub(super) task: Task,
    pub(super) node: Address,
    pub(super) tally: Tally,
    pub(super) elapsed: Duration,
    /// Why its end was not reached, if so.
    pub(super) stopped: Option<Stopped>,
}

impl Pass {
    /// The line that ends it.
    pub(super) fn line(&self) -> String {
        report_line(&self.task.name(&self.node), self.tally.done(), self.tally.failed(), self.elapsed)
    }

    fn document(&self) -> Value {
        let done = match self.task {
            Task::Write => "imported",
            Task::ReadBack => "equal",
        };
        let first = self.tally.first.iter().map(|(line, reason)| json!({ "line": line, "reason": reason }));
        let mut document = json!({
            "node": self.node.to_string(),
            done: self.tally.done(),
            "failed": self.tally.failed(),
            "first-failed": first.collect::<Vec<_>>(),
            "seconds": self.elapsed.as_secs_f64(),
        });
        if let Some(Stopped { reason, next_line }) = &self.stopped {
            document["stopped"] = reason.as_str().into();
            document["next-line"] = (*next_line).into();
        }
        document
    }
}

/// All passes of an import as one JSON document: that of the pass that stores, with those that read back in it.
pub(super) fn document(passes: &[Pass]) -> Value {
    let mut documents = passes.iter().map(Pass::document);
    let mut whole = documents.next().unwrap_or_default();
    let read_back: Vec<Value> = documents.collect();
    if !read_back.is_empty() {
        whole["read-back"] = read_back.into();
    }
    whole
}

/// The count of one pass, with the first failures by line number.
pub(super) struct Tally {
    done: u64,
    failed: u64,
    first: BTreeMap<u64, String>,
    /// The numbers of all failed lines, where the next pass asks for them.
    failed_lines: Option<HashSet<u64>>,
}

impl Tally {
    pub(super) fn new(keeps_lines: bool) -> Tally {
        Tally { done: 0, failed: 0, first: BTreeMap::new(), failed_lines: keeps_lines.then(HashSet::new) }
    }

    pub(super) fn add(&mut self, event: Event) {
        match event {
            Event::Done(lines) => self.done += lines,
            Event::Failed { line, reason } => {
                self.failed += 1;
                self.first.insert(line, reason);
                if self.first.len() > LISTED_MAX {
                    self.first.pop_last();
                }
                if let Some(lines) = &mut self.failed_lines {
                    lines.insert(line);
                }
            }
            Event::Stop(_) | Event::Interrupted | Event::Left(_) | Event::Silent => {}
        }
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    pub(super) fn seen(&self) -> u64 {
        self.done + self.failed
    }

    pub(super) fn failed_lines(&self) -> HashSet<u64> {
        self.failed_lines.clone().unwrap_or_default()
    }

    /// The first failed lines in their order, and how many more there are.
    pub(super) fn listing(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.first.iter().map(|(line, reason)| format!("line {line}: {reason}")).collect();
        let more = self.failed - self.first.len() as u64;
        if more > 0 {
            lines.push(format!("and {more} more failed lines (--failures FILE writes all of them)"));
        }
        lines
    }
}

/// The line that ends a pass: `imported 34924, failed 0, 3.21 s, 10879 pairs/s`.
fn report_line(verb: &str, done: u64, failed: u64, elapsed: Duration) -> String {
    let milliseconds = elapsed.as_millis().max(1);
    let rate = u128::from(done) * 1000 / milliseconds;
    format!("{verb} {done}, failed {failed}, {:.2} s, {rate} pairs/s", elapsed.as_secs_f64())
}

/// The file with all failed lines, in the order in which they were found.
pub(super) struct FailureLog {
    out: Option<(BufWriter<File>, PathBuf)>,
    error: Option<io::Error>,
}

impl FailureLog {
    /// Creates the file, or opens it to write behind what is in it, or stands for none.
    pub(super) fn open(file: Option<&Path>, goes_on: bool) -> Result<FailureLog, Failure> {
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(!goes_on).append(goes_on);
        let out = match file {
            Some(file) => match options.open(file) {
                Ok(created) => Some((BufWriter::new(created), file.to_owned())),
                Err(error) => {
                    return Err(Failure::Local(format!("cannot write {}: {error}", file.display())));
                }
            },
            None => None,
        };
        Ok(FailureLog { out, error: None })
    }

    /// Writes a failed line; an error is kept until the end, since the import is worth more than its log.
    pub(super) fn note(&mut self, line: u64, reason: &str) {
        if let (Some((out, _)), None) = (&mut self.out, &self.error) {
            self.error = writeln!(out, "{line}\t{}", reason.replace('\n', " ")).err();
        }
    }

    pub(super) fn close(self) -> Result<(), Failure> {
        let Some((mut out, file)) = self.out else { return Ok(()) };
        match self.error.map_or_else(|| out.flush(), Err) {
            Ok(()) => Ok(()),
            Err(error) => Err(Failure::Local(format!("cannot write {}: {error}", file.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Event, Tally, report_line};

    #[test]
    fn the_report_has_a_rate() {
        for (done, failed, milliseconds, expected) in [
            (34924, 0, 3210, "imported 34924, failed 0, 3.21 s, 10879 pairs/s"),
            (0, 7, 4, "imported 0, failed 7, 0.00 s, 0 pairs/s"),
            (5, 0, 0, "imported 5, failed 0, 0.00 s, 5000 pairs/s"),
            (100_000, 1, 60_000, "imported 100000, failed 1, 60.00 s, 1666 pairs/s"),
        ] {
            assert_eq!(report_line("imported", done, failed, Duration::from_millis(milliseconds)), expected);
        }
    }

    #[test]
    fn the_first_failures_are_listed_in_order() {
        let mut tally = Tally::new(true);
        tally.add(Event::Done(1));
        for line in (1..=30).rev() {
            tally.add(Event::Failed { line, reason: format!("reason {line}") });
        }
        let listing = tally.listing();
        assert_eq!(listing.len(), 21);
        assert_eq!(listing[0], "line 1: reason 1");
        assert_eq!(listing[19], "line 20: reason 20");
        assert_eq!(listing[20], "and 10 more failed lines (--failures FILE writes all of them)");
        assert_eq!((tally.done(), tally.failed()), (1, 30));
        assert_eq!(tally.failed_lines().len(), 30);
    }
}
