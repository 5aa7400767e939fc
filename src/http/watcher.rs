//! A connection on which somebody watches: what waits to be written to it, and its end.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer;
use super::dispatch::Job;
use super::sockets::Socket;
use super::watch_request::Wanted;
use crate::clock::now;
use crate::model::cursor::Cursor;

/// Whoever has so much to read already is cut off when there is more.
const MOST_QUEUED: usize = 1 << 20;
/// Whoever takes nothing for so long of what waits for him, too.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody who watches.
pub struct Watcher {
    /// What is wanted.
    pub wanted: Wanted,
    /// Where he is, as far as that is beyond where all are that he is with.
    pub own: Option<Cursor>,
    /// He is to be told that he has missed something.
    pub has_missed: bool,
    /// When he was written a comment last, or has come.
    pub commented: Instant,
    /// What tiny_http has of the connection, which is kept until its end.
    job: Box<Job>,
    socket: Socket,
    queue: VecDeque<Arc<[u8]>>,
    queued: usize,
    /// So much of the first was taken.
    taken: usize,
    /// Since when nothing was taken of what waits.
    stuck: Option<Instant>,
    is_over: bool,
}

impl Watcher {
    /// Somebody who has been told nothing yet.
    pub fn new(job: Box<Job>, socket: Socket, wanted: Wanted) -> Self {
        Self {
            wanted,
            own: None,
            has_missed: false,
            commented: now(),
            job,
            socket,
            queue: VecDeque::new(),
            queued: 0,
            taken: 0,
            stuck: None,
            is_over: false,
        }
    }

    /// The request, of one to whom nothing was written.
    pub fn into_job(self) -> Box<Job> {
        self.job
    }

    /// When the request came.
    pub fn arrived(&self) -> Instant {
        self.job.arrival.arrived
    }

    /// Begins the answer.
    pub fn begin(&mut self, count: impl FnOnce(&Job)) {
        count(&self.job);
        // No further request is taken on this connection: the thread of tiny_http that waits for one ends.
        self.socket.end_reading();
        self.push(answer::stream_head("text/event-stream").into());
    }

    /// Whether nothing more can be told.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whose it is.
    pub fn client(&self) -> SocketAddr {
        self.job.ticket.client()
    }

    /// Its client has closed the connection.
    pub fn is_gone(&mut self) {
        self.is_over = true;
    }

    /// Whether there is room for more that is not urgent.
    pub fn has_room(&self) -> bool {
        self.queued < MOST_QUEUED / 4
    }

    /// Has something written; the connection ends where its client does not read.
    pub fn push(&mut self, bytes: Arc<[u8]>) {
        if self.queued > MOST_QUEUED {
            self.is_over = true;
            return;
        }
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Writes what the client takes at once.
    pub fn flush(&mut self) {
        while let Some(first) = self.queue.front() {
            match self.socket.write_now(&first[self.taken..]) {
                Ok(count) => {
                    self.taken += count;
                    self.queued -= count;
                    self.stuck = None;
                    if self.taken == first.len() {
                        self.queue.pop_front();
                        self.taken = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = *self.stuck.get_or_insert_with(now);
                    self.is_over |= now() - since > PATIENCE;
                    return;
                }
                Err(_) => {
                    self.is_over = true;
                    return;
                }
            }
        }
    }

    /// Ends the connection.
    pub fn end(self) {
        let Job { arrival, ticket, .. } = *self.job;
        ticket.end_connection();
        self.socket.shut();
        drop(arrival.request.into_writer());
        drop(arrival.generation);
        drop(ticket);
    }
}
