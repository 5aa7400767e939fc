//! One connection of an import: what it does with a record, and how long it tries.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::super::address::Address;
use super::super::client::{Answer, Client};
use super::super::failure::Failure;
use super::super::key::path_of_key;
use super::super::pair::{Found, is_absence};
use super::entries::Record;
use super::pipeline::{Job, Node, Plan, wait_unless_stopped};
use super::report::Event;
use crate::clock::now;

/// The first wait before trying again; each further one is twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// No single wait is longer, whatever `Retry-After` says.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// What a success gives back of the time that may be waited.
const EARNED: Duration = Duration::from_millis(5);
/// So many lines in a row that found nobody to serve them, on one connection, end the import.
const UNSERVED_MAX: u32 = 20;

/// What is done with every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Store it.
    Write,
    /// Read its key and compare the value.
    ReadBack,
}

impl Task {
    /// How the report calls it.
    pub(super) fn name(self, node: &Address) -> String {
        match self {
            Task::Write => "imported".to_owned(),
            Task::ReadBack => format!("read back through {node}:"),
        }
    }

    /// A reason as the log of failures has it, which holds those of all passes.
    pub(super) fn told(self, node: &Address, reason: &str) -> String {
        match self {
            Task::Write => reason.to_owned(),
            Task::ReadBack => format!("read back through {node}: {reason}"),
        }
    }
}

/// What one try led to.
enum Verdict {
    Done,
    /// The line is at fault; trying again changes nothing.
    Failed(String),
    /// Nobody serves it now. Both tasks are safe to repeat: they say the same value again.
    Unserved {
        reason: String,
        retry_after: Option<Duration>,
        was_answered: bool,
    },
}

/// The time that a worker may still spend on waiting. While much is refused and little succeeds it runs out, and
/// lines fail at the first refusal instead of each waiting in full.
struct Patience {
    left: Duration,
    full: Duration,
}

impl Patience {
    fn new(full: Duration) -> Patience {
        Patience { left: full, full }
    }

    /// Takes `wait` from what is left, if there is that much.
    fn spend(&mut self, wait: Duration) -> bool {
        match self.left.checked_sub(wait) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    fn earn(&mut self, successes: u64) {
        let earned = EARNED.saturating_mul(u32::try_from(successes).unwrap_or(u32::MAX));
        self.left = self.full.min(self.left + earned);
    }
}

/// How long to wait before try number `tries` is repeated; the first is 0.
fn backoff(tries: u32, retry_after: Option<Duration>) -> Duration {
    let grown = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(tries));
    grown.max(retry_after.unwrap_or_default()).min(BACKOFF_MAX)
}

/// The pass ends here; what this leaves was told.
pub(super) struct Ends;

/// One connection of a pass.
pub(super) struct Worker<'a> {
    pub(super) plan: &'a Plan<'a>,
    number: usize,
    events: &'a Sender<Event>,
    stopped: &'a Receiver<()>,
    patience: Patience,
    /// The lines in a row that found nobody to serve them: the first, and how many. They are worth another try, so whoever goes on begins there.
    unserved: Option<(u64, u32)>,
    /// So often nobody has answered: each time another node is asked next.
    silences: usize,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        plan: &'a Plan<'a>,
        number: usize,
        events: &'a Sender<Event>,
        stopped: &'a Receiver<()>,
    ) -> Self {
        let patience = Patience::new(plan.patience);
        Self { plan, number, events, stopped, patience, unserved: None, silences: 0 }
    }

    /// Works the queue off until it is closed or the pass is stopped; then says which line it leaves.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            if self.persist(&job.record).is_err() {
                return;
            }
        }
    }

    pub(super) fn tell(&self, event: Event) {
        // Who keeps the tally is there until all threads have ended.
        drop(self.events.send(event));
    }

    /// The node that is asked.
    pub(super) fn node(&self) -> &'a Node {
        &self.plan.nodes[(self.number + self.silences) % self.plan.nodes.len()]
    }

    /// Asks a node, which counts as not answered meanwhile.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&Client) -> T) -> T {
        self.plan.asking.fetch_add(1, Ordering::Relaxed);
        let answer = ask(&self.node().client);
        self.plan.asking.fetch_sub(1, Ordering::Relaxed);
        answer
    }

    /// So many lines are done.
    pub(super) fn done(&mut self, lines: u64) {
        if lines > 0 {
            self.unserved = None;
            self.patience.earn(lines);
            self.tell(Event::Done(lines));
        }
    }

    /// A line is at fault.
    pub(super) fn failed(&mut self, line: u64, reason: String) {
        self.unserved = None;
        self.tell(Event::Failed { line, reason });
    }

    /// Waits; the pass ends here if it was stopped, with this line left.
    pub(super) fn wait(&self, line: u64, wait: Duration) -> Result<(), Ends> {
        if wait_unless_stopped(self.stopped, wait) {
            return Ok(());
        }
        self.tell(Event::Left(self.unserved.map_or(line, |(first, _)| first)));
        Err(Ends)
    }

    /// Whether a line is worth another try that was not served when it was asked, and then waits for that.
    pub(super) fn waits(
        &mut self,
        line: u64,
        (tries, retry_after): (u32, Option<Duration>),
        (asked, was_answered): (Instant, bool),
    ) -> Result<bool, Ends> {
        if !was_answered {
            self.silences += 1;
        }
        let wait = backoff(tries, retry_after);
        // A node that does not answer is waited for meanwhile, too.
        let spent = if was_answered { wait } else { wait + (now() - asked) };
        if !self.patience.spend(spent) {
            return Ok(false);
        }
        self.wait(line, wait).map(|()| true)
    }

    /// Nobody has served a line, and no more time is spent on it.
    pub(super) fn give_up(&mut self, line: u64, reason: String, was_answered: bool) -> Result<(), Ends> {
        let (first, count) = self.unserved.map_or((line, 1), |(first, count)| (first, count + 1));
        self.unserved = Some((first, count));
        let stop = if !was_answered && self.node().client.get("/livez").is_err() {
            Some(format!("{reason} (at line {line})"))
        } else if count >= UNSERVED_MAX {
            Some(format!(
                "{UNSERVED_MAX} lines in a row were not served, the last: {reason} (at line {line})"
            ))
        } else {
            None
        };
        self.tell(Event::Failed { line, reason });
        let Some(why) = stop else { return Ok(()) };
        self.tell(Event::Stop(why));
        self.tell(Event::Left(first));
        Err(Ends)
    }

    /// Tries a record until it is served, is found at fault, or patience ends.
    pub(super) fn persist(&mut self, record: &Record) -> Result<(), Ends> {
        let line = record.line;
        for tries in 0.. {
            self.wait(line, Duration::ZERO)?;
            let asked = now();
            match self.ask(|client| attempt(client, self.plan.task, record)) {
                Verdict::Done => {
                    self.done(1);
                    break;
                }
                Verdict::Failed(reason) => {
                    self.failed(line, reason);
                    break;
                }
                Verdict::Unserved { reason, retry_after, was_answered } => {
                    if !self.waits(line, (tries, retry_after), (asked, was_answered))? {
                        return self.give_up(line, reason, was_answered);
                    }
                }
            }
        }
        Ok(())
    }
}

fn attempt(client: &Client, task: Task, record: &Record) -> Verdict {
    let path = path_of_key(&record.key);
    let answer = match task {
        Task::Write if record.content_type.is_some() || record.ttl.is_some() => {
            let reason =
                "a value that is not JSON, or a time to live, needs a node that knows POST /v1/batch";
            return Verdict::Failed(reason.to_owned());
        }
        Task::Write => client.put_value(&path, &record.value),
        Task::ReadBack => client.get(&path),
    };
    match (answer, task) {
        (Ok(answer), _) if matches!(answer.status, 503 | 507) => Verdict::Unserved {
            reason: answer.refusal().to_string(),
            retry_after: answer.retry_after,
            was_answered: true,
        },
        (Ok(answer), Task::Write) if matches!(answer.status, 200 | 201) => Verdict::Done,
        (Ok(answer), Task::ReadBack) => compared(&answer, &record.told()),
        (Ok(answer), Task::Write) => Verdict::Failed(answer.refusal().to_string()),
        (Err(failure @ (Failure::Unreachable { .. } | Failure::Late { .. })), _) => {
            Verdict::Unserved { reason: failure.to_string(), retry_after: None, was_answered: false }
        }
        (Err(failure), _) => Verdict::Failed(failure.to_string()),
    }
}

/// Values come back byte for byte, so bytes are compared.
fn compared(answer: &Answer, value: &str) -> Verdict {
    if is_absence(answer) {
        return Verdict::Failed("the key is absent".to_owned());
    }
    match answer.parse::<Found>() {
        Ok(found) if found.value.get() == value => Verdict::Done,
        Ok(_) => Verdict::Failed("the node holds another value".to_owned()),
        Err(failure) => Verdict::Failed(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{EARNED, Patience, backoff};

    #[test]
    fn waits_grow_and_obey_the_node_within_bounds() {
        for (tries, retry_after, expected) in [
            (0, None, 50),
            (1, None, 100),
            (3, None, 400),
            (0, Some(1000), 1000),
            (6, Some(1000), 3200),
            (7, None, 5000),
            (200, None, 5000),
            (0, Some(3_600_000), 5000),
        ] {
            let found = backoff(tries, retry_after.map(Duration::from_millis));
            assert_eq!(found, Duration::from_millis(expected), "{tries} {retry_after:?}");
        }
    }

    #[test]
    fn patience_ends_and_is_earned_back() {
        let second = Duration::from_secs(1);
        let mut patience = Patience::new(second);
        assert!(patience.spend(second));
        assert!(!patience.spend(EARNED));
        patience.earn(1);
        assert!(patience.spend(EARNED));
        assert!(!patience.spend(EARNED));
        for _ in 0..10_000 {
            patience.earn(1);
        }
        assert!(patience.spend(second));
        assert!(!patience.spend(EARNED));
    }
}
