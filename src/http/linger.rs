//! Streams whose request was answered before its body had come.
//!
//! Somebody has to read the rest, or the client never gets to read its answer. If it does not end soon, the stream
//! is put with the late ones, which one thread looks at in turn: most end when their client goes away.
//!
//! A stream may be dropped only at its end. tiny_http's drop reads the rest of the declared length itself, for as long
//! as the client likes, through one buffer of that size; and where such a buffer cannot be had, the process aborts. So
//! streams that declare more than [`DROPPABLE`] bytes, and those that find no place here, are forgotten instead:
//! each costs a parked thread of tiny_http, two descriptors and some 23 KB until the process ends, and is counted.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tiny_http::ReadWrite;

use super::lanes::Ticket;
use crate::clock::now;
use crate::metrics::Metrics;
use crate::threads;

/// Streams that may wait to be read to their end; further ones are forgotten.
const QUEUE_LENGTH: usize = 256;
/// Late streams that may wait for the next look; further ones are forgotten.
const LATE_LENGTH: usize = 4096;
/// Threads that read fresh streams.
const READERS: usize = 2;
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
    fresh: Sender<Rest>,
    metrics: Arc<Metrics>,
}

impl Linger {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(metrics: &Arc<Metrics>) -> io::Result<Self> {
        let (fresh, fresh_queue) = bounded(QUEUE_LENGTH);
        let (late, late_queue) = bounded(LATE_LENGTH);
        for number in 1..=READERS {
            let (queue, late, metrics) = (fresh_queue.clone(), late.clone(), Arc::clone(metrics));
            threads::spawn(format!("linger-{number}"), move || {
                read_streams(&queue, &late, PATIENCE, &metrics);
            })?;
        }
        let own = Arc::clone(metrics);
        threads::spawn("linger-late", move || read_streams(&late_queue, &late, Duration::ZERO, &own))?;
        Ok(Self { fresh, metrics: Arc::clone(metrics) })
    }

    /// Takes a stream; never waits.
    pub fn take(&self, rest: Rest) {
        match rest.declared {
            // The drop of a length that no buffer can have panics instead of aborting, and hands the stream on.
            Some(declared) if declared > isize::MAX.unsigned_abs() => discard(rest),
            Some(declared) if declared > DROPPABLE => forget(rest, &self.metrics),
            _ => pass_on(&self.fresh, rest, &self.metrics),
        }
    }
}

fn read_streams(queue: &Receiver<Rest>, late: &Sender<Rest>, patience: Duration, metrics: &Metrics) {
    let mut buffer = vec![0; 64 * 1024];
    for mut rest in queue {
        if ends(&mut *rest.stream, &mut buffer, now(), patience) {
            discard(rest);
        } else {
            pass_on(late, rest, metrics);
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
