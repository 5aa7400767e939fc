//! The threads of one pass over a file, and the queues between them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never, select};

use super::super::client::Client;
use super::batches::{self, Batches};
use super::entries::{Entries, Entry, Record};
use super::report::Event;
use super::worker::{Task, Worker};
use crate::budget::{Budget, Permit};

/// Records that wait for one connection, as many as go together twice. The reader waits when a queue is full.
const QUEUE_LENGTH: usize = 2 * batches::MOST_LINES;
/// Events that wait for the thread that keeps the tally, for each connection.
const EVENTS: usize = 64;
/// The records that wait for all connections have so many bytes, or are one.
const WAITING_BYTES: usize = 64 << 20;
/// Where they have, it is looked so often whether there is room again.
const ROOM_PAUSE: Duration = Duration::from_millis(1);
/// Where nothing has become of any line for this long, it is said that the node is waited for.
const SILENCE: Duration = Duration::from_secs(1);

/// A node that is asked.
pub(super) struct Node {
    pub(super) client: Client,
    /// It does not know requests with many lines.
    pub(super) is_old: AtomicBool,
}

impl Node {
    pub(super) fn new(client: Client) -> Self {
        Self { client, is_old: AtomicBool::new(false) }
    }
}

/// A record that waits for its connection, and its part of the memory for that.
pub(super) struct Job {
    pub(super) record: Record,
    pub(super) room: Permit,
}

/// What one pass does, and where.
pub(super) struct Plan<'a> {
    /// The connections are spread over them.
    pub(super) nodes: &'a [Node],
    pub(super) task: Task,
    pub(super) connections: usize,
    /// How long each connection may wait, in all, for a node that does not take its requests.
    pub(super) patience: Duration,
    /// How many requests are not answered yet.
    pub(super) asking: AtomicUsize,
}

/// Why the end of the file was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) reason: String,
    /// Each line before this one is stored, or has failed by itself; nothing where it is not known.
    pub(super) next_line: Option<u64>,
}

/// Sends the entries that `choose` takes through the plan's task and reports everything to `note`, which runs
/// on the calling thread. A message in `interrupts` stops it.
pub(super) fn run(
    plan: &Plan<'_>,
    open: impl FnOnce(Receiver<()>) -> io::Result<Entries> + Send,
    choose: impl FnMut(&Entry) -> bool + Send,
    interrupts: &Receiver<()>,
    mut note: impl FnMut(Event),
) -> Result<(), Stopped> {
    let (events, inbox) = bounded(EVENTS * plan.connections);
    // Nothing is ever sent here: dropping `go_on` is what wakes and ends the threads.
    let (go_on, stopped) = bounded::<()>(0);
    let mut go_on = Some(go_on);
    thread::scope(|scope| {
        let mut queues = Vec::with_capacity(plan.connections);
        for number in 1..=plan.connections {
            let (queue, jobs) = bounded::<Job>(QUEUE_LENGTH);
            queues.push(queue);
            let (events, stopped) = (events.clone(), stopped.clone());
            let work = move || {
                let worker = Worker::new(plan, number, &events, &stopped);
                match plan.task {
                    Task::Write => Batches::new(worker).run(&jobs),
                    Task::ReadBack => worker.run(&jobs),
                }
            };
            named(thread::Builder::new().name(format!("import-{number}")).spawn_scoped(scope, work))?;
        }
        let read = move || feed(open, choose, &queues, &events, &stopped);
        let reader = named(thread::Builder::new().name("import-read".to_owned()).spawn_scoped(scope, read))?;
        let (mut reason, mut next_line) = (None, None);
        let mut inbox =
            Inbox { events: inbox, interrupts: interrupts.clone(), asking: &plan.asking, is_silent: false };
        while let Some(event) = inbox.next() {
            match &event {
                Event::Stop(why) => {
                    go_on = None;
                    reason.get_or_insert_with(|| why.clone());
                }
                Event::Interrupted => {
                    go_on = None;
                    reason.get_or_insert_with(|| "it was interrupted".to_owned());
                }
                Event::Left(line) => next_line = Some(next_line.map_or(*line, |least: u64| least.min(*line))),
                Event::Done(_) | Event::Failed { .. } | Event::Silent => {}
            }
            note(event);
        }
        drop(go_on);
        let read =
            reader.join().unwrap_or_else(|_| Err("the reader of the file ended in a panic".to_owned()));
        match (reason, read) {
            (None, Ok(())) => Ok(()),
            // It was told to stop when nothing was left to do.
            (Some(_), Ok(())) if next_line.is_none() => Ok(()),
            (Some(reason), _) | (None, Err(reason)) => Err(Stopped { reason, next_line }),
        }
    })
}

/// What the calling thread waits for.
struct Inbox<'a> {
    events: Receiver<Event>,
    interrupts: Receiver<()>,
    asking: &'a AtomicUsize,
    /// It was said that the node is waited for, and nothing has come since.
    is_silent: bool,
}

impl Inbox<'_> {
    /// The next event; nothing when all threads have ended.
    fn next(&mut self) -> Option<Event> {
        loop {
            let event = select! {
                recv(self.events) -> event => event.ok()?,
                recv(self.interrupts) -> _ => {
                    self.interrupts = never();
                    Event::Interrupted
                }
                default(SILENCE) => Event::Silent,
            };
            let is_silent = matches!(event, Event::Silent);
            // Where nothing is asked, it is the input that is slow.
            if is_silent && (self.is_silent || self.asking.load(Ordering::Relaxed) == 0) {
                continue;
            }
            self.is_silent = is_silent;
            return Some(event);
        }
    }
}

fn named<T>(thread: io::Result<ScopedJoinHandle<'_, T>>) -> Result<ScopedJoinHandle<'_, T>, Stopped> {
    thread.map_err(|error| Stopped {
        reason: format!("cannot start a thread: {error}; try fewer --connections"),
        next_line: None,
    })
}

/// Parses the file and deals its records out, each key always to the same queue. Ends early when the pass is stopped, and says which line
/// it leaves.
fn feed(
    open: impl FnOnce(Receiver<()>) -> io::Result<Entries>,
    mut choose: impl FnMut(&Entry) -> bool,
    queues: &[Sender<Job>],
    events: &Sender<Event>,
    stopped: &Receiver<()>,
) -> Result<(), String> {
    let is_stopped = || stopped.try_recv() == Err(TryRecvError::Disconnected);
    // Who keeps the tally is there until all threads have ended.
    let leave = |line| drop(events.send(Event::Left(line)));
    let (mut next, waiting) = (1, Budget::new(WAITING_BYTES));
    for entry in open(stopped.clone()).map_err(|error| format!("cannot read the input: {error}"))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(reason) => {
                leave(next);
                return if is_stopped() { Ok(()) } else { Err(reason) };
            }
        };
        let line = entry.line();
        next = line + 1;
        if is_stopped() {
            leave(line);
            return Ok(());
        }
        if !choose(&entry) {
            continue;
        }
        let is_taken = match entry {
            Entry::Record(record) => match room_for(&record, &waiting, stopped) {
                Some(room) => queues[queue_of(&record, queues.len())].send(Job { record, room }).is_ok(),
                None => false,
            },
            Entry::Bad { line, reason } => events.send(Event::Failed { line, reason }).is_ok(),
        };
        if !is_taken {
            leave(line);
            return Ok(());
        }
    }
    Ok(())
}

/// Waits until a record has room among those that wait; nothing where the pass is stopped meanwhile.
fn room_for(record: &Record, waiting: &Budget, stopped: &Receiver<()>) -> Option<Permit> {
    let bytes = record.length().min(WAITING_BYTES);
    loop {
        let room = waiting.take(bytes);
        if room.is_some() || !wait_unless_stopped(stopped, ROOM_PAUSE) {
            return room;
        }
    }
}

fn queue_of(record: &Record, queues: usize) -> usize {
    let queue = record.key_hash() % queues as u64;
    usize::try_from(queue).unwrap_or(0)
}

/// Waits for `wait` and says whether to go on; returns at once when the pass is stopped.
pub(super) fn wait_unless_stopped(stopped: &Receiver<()>, wait: Duration) -> bool {
    stopped.recv_timeout(wait).is_err_and(|error| error.is_timeout())
}
