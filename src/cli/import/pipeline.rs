//! The threads of one pass over a file, and the queues between them.

use std::io;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::client::Client;
use super::entries::{Entries, Entry, Record};
use super::report::Event;
use super::worker::{self, Task};

/// Records that wait for one connection. The reader waits when a queue is full.
const QUEUE_LENGTH: usize = 64;

/// What one pass does, and where.
pub(super) struct Plan<'a> {
    pub(super) client: &'a Client,
    pub(super) task: Task,
    pub(super) connections: usize,
    /// How long each connection may wait, in all, for a node that does not take its requests.
    pub(super) patience: Duration,
}

/// Sends the entries that `choose` takes through the plan's task and reports everything to `note`, which runs
/// on the calling thread. The error says why the end of the file was not reached.
pub(super) fn run(
    plan: &Plan<'_>,
    open: impl FnOnce() -> Entries + Send,
    choose: impl FnMut(&Entry) -> bool + Send,
    mut note: impl FnMut(Event),
) -> Result<(), String> {
    let (events, inbox) = bounded(QUEUE_LENGTH * plan.connections);
    // Nothing is ever sent here: dropping `go_on` is what wakes and ends the workers.
    let (go_on, stopped) = bounded::<()>(0);
    let mut go_on = Some(go_on);
    thread::scope(|scope| {
        let mut queues = Vec::with_capacity(plan.connections);
        for number in 1..=plan.connections {
            let (queue, jobs) = bounded::<Record>(QUEUE_LENGTH);
            queues.push(queue);
            let (events, stopped) = (events.clone(), stopped.clone());
            let work = move || worker::run(plan, &jobs, &events, &stopped);
            named(thread::Builder::new().name(format!("import-{number}")).spawn_scoped(scope, work))?;
        }
        let read = move || feed(open(), choose, &queues, &events);
        let reader = named(thread::Builder::new().name("import-read".to_owned()).spawn_scoped(scope, read))?;
        let mut reason = None;
        for event in &inbox {
            if let Event::Stop(why) = &event {
                go_on = None;
                reason.get_or_insert_with(|| why.clone());
            }
            note(event);
        }
        drop(go_on);
        let read =
            reader.join().unwrap_or_else(|_| Err("the reader of the file ended in a panic".to_owned()));
        reason.map_or(read, Err)
    })
}

fn named<T>(thread: io::Result<ScopedJoinHandle<'_, T>>) -> Result<ScopedJoinHandle<'_, T>, String> {
    thread.map_err(|error| format!("cannot start a thread: {error}; try fewer --connections"))
}

/// Parses the file and deals its records out, each key always to the same queue. Ends early when a worker has.
fn feed(
    entries: Entries,
    mut choose: impl FnMut(&Entry) -> bool,
    queues: &[Sender<Record>],
    events: &Sender<Event>,
) -> Result<(), String> {
    for entry in entries {
        let entry = entry?;
        if !choose(&entry) {
            continue;
        }
        let is_taken = match entry {
            Entry::Record(record) => queues[queue_of(&record, queues.len())].send(record).is_ok(),
            Entry::Bad { line, reason } => events.send(Event::Failed { line, reason }).is_ok(),
        };
        if !is_taken {
            return Ok(());
        }
    }
    Ok(())
}

fn queue_of(record: &Record, queues: usize) -> usize {
    let queue = record.key_hash() % queues as u64;
    usize::try_from(queue).unwrap_or(0)
}

/// Waits for `wait` and says whether to go on; returns at once when the pass is stopped.
pub(super) fn wait_unless_stopped(stopped: &Receiver<()>, wait: Duration) -> bool {
    stopped.recv_timeout(wait).is_err_and(|error| error.is_timeout())
}
