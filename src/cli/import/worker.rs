//! One connection of an import: what it does with a record, and how long it tries.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::super::address::Address;
use super::super::client::{Answer, Client};
use super::super::failure::Failure;
use super::super::key::path_of_key;
use super::super::pair::{Found, is_absence};
use super::entries::Record;
use super::pipeline::{Plan, wait_unless_stopped};
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

    fn earn(&mut self) {
        self.left = self.full.min(self.left + EARNED);
    }
}

/// How long to wait before try number `tries` is repeated; the first is 0.
fn backoff(tries: u32, retry_after: Option<Duration>) -> Duration {
    let grown = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(tries));
    grown.max(retry_after.unwrap_or_default()).min(BACKOFF_MAX)
}

/// Works the queue off until it is closed or the pass is stopped; then says which line it leaves.
pub(super) fn run(plan: &Plan<'_>, jobs: &Receiver<Record>, events: &Sender<Event>, stopped: &Receiver<()>) {
    let mut patience = Patience::new(plan.patience);
    // The lines in a row that found nobody to serve them: the first, and how many. They are worth another try, so whoever goes on begins there.
    let mut unserved: Option<(u64, u32)> = None;
    // Who keeps the tally is there until all threads have ended.
    let tell = |event| drop(events.send(event));
    for record in jobs {
        let line = record.line;
        let Some(verdict) = persist(plan, &record, &mut patience, stopped) else {
            return tell(Event::Left(unserved.map_or(line, |(first, _)| first)));
        };
        match verdict {
            Verdict::Done => {
                unserved = None;
                patience.earn();
                tell(Event::Done);
            }
            Verdict::Failed(reason) => {
                unserved = None;
                tell(Event::Failed { line, reason });
            }
            Verdict::Unserved { reason, was_answered, .. } => {
                let (first, count) = unserved.map_or((line, 1), |(first, count)| (first, count + 1));
                unserved = Some((first, count));
                let stop = if !was_answered && plan.client.get("/livez").is_err() {
                    Some(format!("{reason} (at line {line})"))
                } else if count >= UNSERVED_MAX {
                    Some(format!(
                        "{UNSERVED_MAX} lines in a row were not served, the last: {reason} (at line {line})"
                    ))
                } else {
                    None
                };
                tell(Event::Failed { line, reason });
                if let Some(why) = stop {
                    tell(Event::Stop(why));
                    return tell(Event::Left(first));
                }
            }
        }
    }
}

/// Tries a record until it is served, is found at fault, or patience ends; none if the pass was stopped.
fn persist(
    plan: &Plan<'_>,
    record: &Record,
    patience: &mut Patience,
    stopped: &Receiver<()>,
) -> Option<Verdict> {
    for tries in 0.. {
        if !wait_unless_stopped(stopped, Duration::ZERO) {
            return None;
        }
        let asked = now();
        plan.asking.fetch_add(1, Ordering::Relaxed);
        let verdict = attempt(plan.client, plan.task, record);
        plan.asking.fetch_sub(1, Ordering::Relaxed);
        let Verdict::Unserved { retry_after, was_answered, .. } = &verdict else { return Some(verdict) };
        let wait = backoff(tries, *retry_after);
        // A node that does not answer is waited for meanwhile, too.
        let spent = if *was_answered { wait } else { wait + (now() - asked) };
        if !patience.spend(spent) {
            return Some(verdict);
        }
        if !wait_unless_stopped(stopped, wait) {
            return None;
        }
    }
    None
}

fn attempt(client: &Client, task: Task, record: &Record) -> Verdict {
    let path = path_of_key(&record.key);
    let answer = match task {
        Task::Write => client.put_value(&path, &record.value),
        Task::ReadBack => client.get(&path),
    };
    match (answer, task) {
        (Ok(answer), _) if answer.status == 503 => Verdict::Unserved {
            reason: answer.refusal().to_string(),
            retry_after: answer.retry_after,
            was_answered: true,
        },
        (Ok(answer), Task::Write) if matches!(answer.status, 200 | 201) => Verdict::Done,
        (Ok(answer), Task::ReadBack) => compared(&answer, &record.value),
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
        patience.earn();
        assert!(patience.spend(EARNED));
        assert!(!patience.spend(EARNED));
        for _ in 0..10_000 {
            patience.earn();
        }
        assert!(patience.spend(second));
        assert!(!patience.spend(EARNED));
    }
}
