//! Streams whose request was answered before its body had come.
//!
//! Somebody has to read the rest, or the client never gets to read its answer. A read waits for the idle timeout where
//! nothing comes, so each stream has a thread as long as there are not too many. If it does not end soon, it
//! is put with the late ones, which one thread looks at in turn: most end when their client goes away.
//!
//! A stream may be dropped only at its end. tiny_http's drop reads the rest of the declared length itself, for as long
//! as the client likes, through one buffer of that size; and where such a buffer cannot be had, the process aborts. One
//! thread drops them all, since many such buffers at one time would be much memory, and
//! streams that declare more than [`DROPPABLE`] bytes, and those that find no place here, are forgotten instead:
//! each costs a parked thread of tiny_http, two descriptors and some 23 KB until the process ends, and is counted.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tiny_http::ReadWrite;

use super::lanes::Ticket;
use super::metrics::Metrics;
use crate::clock::now;
use crate::threads;

/// Streams that may wait to be read to their end; further ones are forgotten.
const QUEUE_LENGTH: usize = 4096;
/// Late streams that may wait for the next look; further ones are forgotten.
const LATE_LENGTH: usize = 4096;
/// Streams at their end that may wait to be dropped; further ones are forgotten.
const ENDED_LENGTH: usize = 4096;
/// The most threads that read fresh streams; further streams wait for one of them.
const MOST_READERS: usize = 512;
/// A reader that has had nothing to do for this time ends.
const IDLE: Duration = Duration::from_secs(1);
/// Bytes read at one time.
const PIECE: usize = 16 * 1024;
/// A stream that has not ended after this time is late.
const PATIENCE: Duration = Duration::from_secs(3);
/// A stream that has not ended after so many bytes is late.
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

/// Where such streams go.
#[derive(Clone)]
pub struct Linger {
    fresh: (Sender<Rest>, Receiver<Rest>),
    late: Sender<Rest>,
    ended: Sender<Rest>,
    readers: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Linger {
    /// Starts the threads for late streams, and for those at their end.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(metrics: &Arc<Metrics>) -> io::Result<Self> {
        let (late, late_queue) = bounded(LATE_LENGTH);
        let (ended, ended_queue) = bounded(ENDED_LENGTH);
        let linger = Self {
            fresh: bounded(QUEUE_LENGTH),
            late,
            ended,
            readers: Arc::default(),
            metrics: Arc::clone(metrics),
        };
        let own = linger.clone();
        threads::spawn("linger-late", move || {
            for rest in late_queue {
                own.read(rest, Duration::ZERO);
            }
        })?;
        threads::spawn("linger-end", move || ended_queue.into_iter().for_each(discard))?;
        Ok(linger)
    }

    /// Takes a stream; never waits.
    pub fn take(&self, rest: Rest) {
        match rest.declared {
            // The drop of a length that no buffer can have panics instead of aborting, and hands the stream on.
            Some(declared) if declared > isize::MAX.unsigned_abs() => discard(rest),
            Some(declared) if declared > DROPPABLE => forget(rest, &self.metrics),
            _ => {
                pass_on(&self.fresh.0, rest, &self.metrics);
                self.add_reader();
            }
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
                self.read(rest, PATIENCE);
            }
            self.readers.fetch_sub(1, Ordering::SeqCst);
            // Who came between the last look and the subtraction may have counted on this reader.
            if self.fresh.1.is_empty() {
                return;
            }
            self.readers.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn read(&self, mut rest: Rest, patience: Duration) {
        if ends(&mut *rest.stream, &mut vec![0; PIECE], now(), patience) {
            pass_on(&self.ended, rest, &self.metrics);
        } else {
            pass_on(&self.late, rest, &self.metrics);
        }
    }
}

/// Reads on, at least once; whether the end came.
fn ends(stream: &mut (dyn ReadWrite + Send), buffer: &mut [u8], start: Instant, patience: Duration) -> bool {
    let mut count = 0;
    loop {
        match Read::read(stream, buffer) {
            Ok(0) => return true,
            Ok(read) => count += read as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
        if now() - start >= patience || count > MOST_BYTES {
            return false;
        }
    }
}

fn pass_on(queue: &Sender<Rest>, rest: Rest, metrics: &Metrics) {
    match queue.try_send(rest) {
        Ok(()) => {}
        Err(TrySendError::Full(rest) | TrySendError::Disconnected(rest)) => forget(rest, metrics),
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
