//! One connection of an import that stores: many lines at once, as far as the node knows `POST /v1/batch`.
//!
//! Each line has an outcome of its own. What was not done is sent again, and nothing else; where it may have been done, under the same name and in the same place, so that
//! it is done once. A line that a later one with the same key has overtaken is stored, since the later one wins.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Receiver;
use serde::Deserialize;

use super::super::client::Answer;
use super::super::failure::Failure;
use super::entries::Record;
use super::pipeline::Job;
use super::worker::{Ends, Worker};
use crate::clock::now;
use crate::dice;

const BATCH: &str = "/v1/batch";
/// So many lines go together at first,
const FIRST_LINES: usize = 100;
/// and at most. More would gain nothing, and hold more up where a shard is slow.
pub(super) const MOST_LINES: usize = 2000;
/// A line that is longer, in bytes, is sent alone; so are those after it.
const MOST_BYTES: usize = 1 << 20;
/// What is answered sooner may have more lines, and what takes longer has too many.
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_millis(400);
/// What a node says that has no room to remember further names.
const NO_ROOM: &str = "RETRY_MEMORY";

/// What came of one line, as a node says it.
#[derive(Deserialize)]
struct LineResult {
    status: u16,
    error: Option<String>,
    outcome: Option<String>,
}

/// A line that was not done.
struct Open {
    /// Its place in the batch.
    at: usize,
    record: Record,
    reason: String,
}

/// What came of lines that were sent.
enum Sent {
    /// Each has an answer; those that are open are worth another try.
    Answered { retry_after: Option<Duration> },
    /// Nobody has answered.
    Silent,
    /// The node does not know batches.
    Unknown,
}

/// Sends lines until the queue is closed or the pass is stopped; then says which line it leaves.
pub(super) struct Batches<'a> {
    worker: Worker<'a>,
    /// So many lines go together.
    lines: usize,
    /// The batches have names. They have none any more once a node has had no room for them.
    is_named: bool,
}

impl<'a> Batches<'a> {
    pub(super) fn new(worker: Worker<'a>) -> Self {
        Self { worker, lines: FIRST_LINES, is_named: true }
    }

    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut bytes = first.record.length();
            let mut batch = vec![first];
            while batch.len() < self.lines && bytes < MOST_BYTES {
                let Ok(job) = jobs.try_recv() else { break };
                bytes += job.record.length();
                batch.push(job);
            }
            // The room that they take is held until they are done.
            let (records, rooms): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|job| (job.record, job.room)).unzip();
            let stored = self.store(records);
            drop(rooms);
            if stored.is_err() {
                return;
            }
        }
    }

    /// Has lines stored, or says of each why not.
    fn store(&mut self, records: Vec<Record>) -> Result<(), Ends> {
        let name = format!("import-{:032x}", dice::draw::<u128>());
        let open = |(at, record)| Open { at, record, reason: String::new() };
        let mut open: Vec<Open> = records.into_iter().enumerate().map(open).collect();
        let mut tries = 0;
        while let Some(line) = open.first().map(|first| first.record.line) {
            self.worker.wait(line, Duration::ZERO)?;
            let (asked, before) = (now(), open.len());
            let name = self.is_named.then_some(name.as_str());
            let (retry_after, was_answered) = match self.send(&mut open, name) {
                Sent::Answered { retry_after } => (retry_after, true),
                Sent::Silent => (None, false),
                Sent::Unknown => {
                    return open.iter().try_for_each(|one| self.worker.persist(&one.record));
                }
            };
            if open.len() < before {
                tries = 0;
            }
            let Some(line) = open.first().map(|first| first.record.line) else { break };
            // Lines for which there was no room in the request are sent next.
            if was_answered && open[0].reason.is_empty() {
                continue;
            }
            if !self.worker.waits(line, (tries, retry_after), (asked, was_answered))? {
                let count = open.len().min(self.lines);
                for Open { record, reason, .. } in open.drain(..count) {
                    self.worker.give_up(record.line, reason, was_answered)?;
                }
            }
            tries += 1;
        }
        Ok(())
    }

    /// Sends what is open, or as much of that as may go together, and takes out what has ended.
    fn send(&mut self, open: &mut Vec<Open>, name: Option<&str>) -> Sent {
        let count = open.len().min(self.lines);
        let is_old = &self.worker.node().is_old;
        if is_old.load(Ordering::Relaxed) {
            return Sent::Unknown;
        }
        let mut body = Vec::new();
        for (place, one) in open[..count].iter().enumerate() {
            // By its name each is known by its place, so what has ended leaves a line in which nothing stands.
            let place = if place == 0 { 0 } else { open[place - 1].at + 1 };
            if name.is_some() {
                body.resize(body.len() + one.at - place, b'\n');
            }
            one.record.put_line(&mut body);
        }
        let asked = now();
        let answer = self.worker.ask(|client| client.post(BATCH, body, name));
        let took = now() - asked;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                self.lines = (self.lines / 2).max(1);
                open[..count].iter_mut().for_each(|one| one.reason = failure.to_string());
                return Sent::Silent;
            }
        };
        match answer.status {
            200 => self.take_in(open, count, name.is_some(), &answer),
            404 | 405 => {
                is_old.store(true, Ordering::Relaxed);
                return Sent::Unknown;
            }
            413 if count > 1 => {
                self.lines = count / 2;
                return Sent::Answered { retry_after: None };
            }
            503 => {
                self.lines = (self.lines / 2).max(1);
                open[..count].iter_mut().for_each(|one| one.reason = answer.refusal().to_string());
            }
            _ => {
                for one in open.drain(..count) {
                    self.worker.failed(one.record.line, answer.refusal().to_string());
                }
            }
        }
        let is_full = count == self.lines;
        if took > LATE {
            self.lines = (self.lines / 2).max(1);
        } else if took < SOON && is_full {
            self.lines = (self.lines * 2).min(MOST_LINES);
        }
        Sent::Answered { retry_after: answer.retry_after }
    }

    /// Takes in what came of each of the first lines that are open.
    fn take_in(&mut self, open: &mut Vec<Open>, count: usize, is_named: bool, answer: &Answer) {
        let results: Vec<_> = answer.body.split(|byte| *byte == b'\n').collect();
        let sent: Vec<Open> = open.drain(..count).collect();
        let (mut done, mut rest, mut was_refused): (u64, Vec<Open>, bool) = (0, Vec::new(), false);
        let mut stored: Vec<Vec<u8>> = Vec::new();
        // From the last to the first: what a later one has overtaken is stored.
        for (place, mut one) in sent.into_iter().enumerate().rev() {
            let place = if is_named { one.at } else { place };
            let result = results.get(place).and_then(|line| serde_json::from_slice::<LineResult>(line).ok());
            let Some(LineResult { status, error, outcome }) = result else {
                one.reason = String::from("the node has not said what came of the line");
                rest.push(one);
                continue;
            };
            let said = error.unwrap_or_default();
            let outcome = outcome.map(|outcome| format!(" (the write is {outcome})")).unwrap_or_default();
            let failure = Failure::Refused { status, reason: format!("{said}{outcome}") };
            match status {
                200 | 201 => {
                    done += 1;
                    stored.push(one.record.key);
                }
                // There may be room again in a moment, as what was freed is given back in a while.
                503 | 507 if stored.contains(&one.record.key) => done += 1,
                503 | 507 => {
                    was_refused = true;
                    self.is_named &= !said.contains(NO_ROOM);
                    one.reason = failure.to_string();
                    rest.push(one);
                }
                _ => self.worker.failed(one.record.line, failure.to_string()),
            }
        }
        if was_refused {
            self.lines = (self.lines / 2).max(1);
        }
        rest.reverse();
        open.splice(..0, rest);
        self.worker.done(done);
    }
}
