//! Streams whose request was answered before its body had come.
//!
//! Somebody has to read the rest, or the client never gets to read its answer: each stream has a thread as long as there are not too many. A client
//! that is silent or slow, or sends without end, is cut off by shutting its socket, and then the stream is at its end, too.
//!
//! A stream may be dropped only at its end. tiny_http's drop reads the rest of the declared length itself, for as long
//! as the client likes, through one buffer of that size; and where such a buffer cannot be had, the process aborts. One
//! thread drops them all, since many such buffers at one time would be much memory, and
//! streams that declare more than [`DROPPABLE`] bytes, and those that find no place here, are forgotten instead:
//! each costs a parked thread of tiny_http, two descriptors and some 23 KB until the process ends, and is counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::sys::socket::Shutdown;
use tiny_http::ReadWrite;

use super::body::Pace;
use super::dispatch::Ticket;
use super::metrics::Metrics;
use super::watchdog::{Watch, Watchdog};
use crate::threads;

/// Streams that may wait to be read to their end; further ones are cut off.
const QUEUE_LENGTH: usize = 4096;
/// Streams that may wait to be dropped; further ones are forgotten.
const DONE_LENGTH: usize = 4096;
/// Streams whose sockets are looked for at one time.
const DROPPED_AT_ONCE: usize = 256;
/// The most threads that read streams; further streams wait for one of them.
const MOST_READERS: usize = 512;
/// A reader that has had nothing to do for this time ends.
const IDLE: Duration = Duration::from_secs(1);
/// Bytes read at one time.
const PIECE: usize = 16 * 1024;
/// A stream that has not ended after this time is cut off where others wait to be read.
const PATIENCE: Duration = Duration::from_secs(3);
/// A stream that has not ended after so many bytes is cut off.
pub const MOST_BYTES: u64 = 64 << 20;
/// A stream that declares no more than this may be dropped at its end: a buffer of this size can be had, since
/// memory that is never written to is never really taken.
const DROPPABLE: usize = 1 << 30;

/// An answered stream that has not ended.
pub struct Rest {
    /// The stream.
    pub stream: Box<dyn ReadWrite + Send>,
    /// The length of the body as declared, in bytes, unless it is chunked.
    pub declared: Option<usize>,
    /// Whether the client was told that the connection ends here.
    pub close: bool,
    /// Keeps the connection's next request back.
    pub ticket: Ticket,
}

/// A stream that nobody reads any more.
struct Done {
    rest: Rest,
    /// What is left of it.
    left: Left,
}

/// What is left of a stream, which says how it can be got rid of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing: it can be dropped.
    Nothing,
    /// Something: it can be dropped once its socket is shut.
    Something,
    /// More than can be dropped.
    TooMuch,
}

/// Where such streams go.
#[derive(Clone)]
pub struct Linger {
    fresh: (Sender<Rest>, Receiver<Rest>),
    done: Sender<Done>,
    readers: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Linger {
    /// Starts the thread for streams that nobody reads any more.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(metrics: &Arc<Metrics>, watchdog: &Arc<Watchdog>) -> io::Result<Self> {
        let (done, queue) = bounded(DONE_LENGTH);
        let linger = Self {
            fresh: bounded(QUEUE_LENGTH),
            done,
            readers: Arc::default(),
            metrics: Arc::clone(metrics),
        };
        let (metrics, watchdog) = (Arc::clone(metrics), Arc::clone(watchdog));
        threads::spawn("linger-end", move || get_rid_of_all(&queue, &metrics, &watchdog))?;
        Ok(linger)
    }

    /// Takes a stream; never waits.
    pub fn take(&self, rest: Rest) {
        match rest.declared {
            // The drop of a length that no buffer can have panics instead of aborting, and hands the stream on.
            Some(declared) if declared > isize::MAX.unsigned_abs() => self.pass_on(rest, Left::Nothing),
            Some(declared) if declared > DROPPABLE => self.pass_on(rest, Left::TooMuch),
            _ => match self.fresh.0.try_send(rest) {
                Ok(()) => self.add_reader(),
                Err(TrySendError::Full(rest) | TrySendError::Disconnected(rest)) => {
                    self.pass_on(rest, Left::Something);
                }
            },
        }
    }

    fn add_reader(&self) {
        let add = |count| (count < MOST_READERS).then_some(count + 1);
        if self.readers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).is_ok() {
            let own = self.clone();
            if threads::spawn("linger", move || own.read_fresh()).is_err() {
                self.readers.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn read_fresh(&self) {
        loop {
            while let Ok(rest) = self.fresh.1.recv_timeout(IDLE) {
                self.read(rest);
            }
            self.readers.fetch_sub(1, Ordering::SeqCst);
            // Who came between the last look and the subtraction may have counted on this reader.
            if self.fresh.1.is_empty() {
                return;
            }
            self.readers.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn read(&self, mut rest: Rest) {
        let watch = rest.ticket.watch();
        let ended = ends(&mut *rest.stream, &watch, || !self.fresh.1.is_empty());
        drop(watch);
        self.pass_on(rest, if ended { Left::Nothing } else { Left::Something });
    }

    fn pass_on(&self, mut rest: Rest, left: Left) {
        rest.close |= left != Left::Nothing;
        match self.done.try_send(Done { rest, left }) {
            Ok(()) => {}
            Err(TrySendError::Full(done) | TrySendError::Disconnected(done)) => {
                forget(done.rest, &self.metrics);
            }
        }
    }
}

/// Reads on for as long as the client keeps up its pace; whether the end came.
fn ends(stream: &mut (dyn ReadWrite + Send), watch: &Watch, others_wait: impl Fn() -> bool) -> bool {
    let (mut pace, mut buffer) = (Pace::begin(), vec![0; PIECE]);
    loop {
        match watch.read(stream, &mut buffer, pace.next_by()) {
            Ok(0) => return true,
            Ok(count) => pace.took(count),
            // Nothing came, and the stream may have been shut, or not.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return false;
            }
            Err(_) => return true,
        }
        if pace.is_late() || pace.count() > MOST_BYTES || (pace.elapsed() >= PATIENCE && others_wait()) {
            return false;
        }
    }
}

fn get_rid_of_all(queue: &Receiver<Done>, metrics: &Metrics, watchdog: &Watchdog) {
    while let Ok(first) = queue.recv() {
        let more = queue.try_iter().take(DROPPED_AT_ONCE - 1);
        let all: Vec<Done> = std::iter::once(first).chain(more).collect();
        // Whoever was told that the connection ends sees its end. And what follows a body that could not be read is not taken for a
        // request, to which tiny_http would give a second answer.
        let closing: Vec<_> =
            all.iter().filter(|done| done.rest.close).map(|done| done.rest.ticket.connection()).collect();
        let mut shut = watchdog.shut(&closing, Shutdown::Both).into_iter();
        for Done { rest, left } in all {
            let socket = if rest.close { shut.next().flatten() } else { None };
            if let Some(socket) = socket {
                rest.ticket.end_connection_of(socket);
            }
            match left {
                Left::Nothing => discard(rest),
                Left::Something if socket.is_some() => discard(rest),
                Left::Something | Left::TooMuch => {
                    // tiny_http reads nothing behind a body that nobody reads.
                    rest.ticket.park_connection();
                    forget(rest, metrics);
                }
            }
        }
    }
}

/// Drops a stream at its end. If the client was not told otherwise, its next request follows there.
fn discard(rest: Rest) {
    let Rest { stream, ticket, close, .. } = rest;
    if close {
        ticket.end_connection();
    }
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(stream)));
    if dropped.is_err() {
        log::debug!("a stream with a senseless length was dropped");
    }
}

fn forget(rest: Rest, metrics: &Metrics) {
    let Rest { stream, ticket, .. } = rest;
    ticket.end_connection();
    std::mem::forget(stream);
    metrics.abandoned.inc();
}
