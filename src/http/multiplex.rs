//! Connections on which another node passes many requests about keys on at one time. The thread that reads one does what needs no waiting by itself; what has to wait
//! for the log of a shard is answered by a second thread when that has told. Neither ever waits for another node.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::dispatch::Job;
use super::lane_id::LaneId;
use super::metrics::Metrics;
use super::node_handlers;
use super::routes::Route;
use super::sockets::Socket;
use super::streams::{self, Protocol, Refused, Slot};
use crate::clock::now;
use crate::error::Error;
use crate::failpoints::failpoint;
use crate::model::shard::{Done, Operation};
use crate::node::forwarded::Begun;
use crate::node::group_ops::LogAnswer;
use crate::node::keys::{NotServed, Reply};
use crate::node::state::{Node, ServingState};
use crate::peers::outbox::Outbox;
use crate::threads;
use crate::wire::frames::{self, Answer, Frame, Question};

/// Bytes that are read at one time, at least.
const PIECE: usize = 16 << 10;
/// Answers go out at the latest when so many bytes wait.
const BATCH: usize = 256 << 10;
/// A node that takes nothing for this long takes nothing any more.
const SENDING: Duration = Duration::from_secs(1);

/// What such connections need of the node that is asked.
#[derive(Clone)]
pub struct Multiplex {
    /// The node.
    pub node: Arc<Node>,
    /// Where answers are counted.
    pub metrics: Arc<Metrics>,
    /// The requests that wait for the log of a shard.
    pub in_log: Arc<Unattended>,
    /// The port that is listened on.
    pub port: u16,
}

/// How many requests wait for something without a worker, and the most of them.
pub struct Unattended {
    waiting: AtomicUsize,
    most: usize,
}

/// One of them, until this is dropped.
pub struct Waits(Arc<Unattended>);

impl Unattended {
    /// None waits.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { waiting: AtomicUsize::new(0), most })
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// One more waits, if it may.
    pub fn enter(self: &Arc<Self>) -> Option<Waits> {
        if self.waiting() >= self.most {
            return None;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Some(Waits(Arc::clone(self)))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection.
struct Conversation {
    multiplex: Multiplex,
    socket: Socket,
    outbox: Outbox,
    told: Mutex<Told>,
    wake: Condvar,
}

/// What logs have told, until it is answered.
#[derive(Default)]
struct Told {
    answers: Vec<(Asked, LogAnswer)>,
    has_ended: bool,
}

/// A request that waits for the log of a shard.
struct Asked {
    number: u64,
    key: Vec<u8>,
    is_read: bool,
    serving_state: Arc<ServingState>,
    began: Instant,
    _waits: Waits,
}

impl Multiplex {
    /// Takes a connection; gives the request back with an error where that is not to be.
    pub fn take(&self, job: Box<Job>) -> Result<(), Refused> {
        failpoint!("requests-taken");
        let slot = match Slot::take(&self.node, &job, Protocol::Requests) {
            Ok(slot) => slot,
            Err(error) => return Err(streams::refuse(job, &error)),
        };
        let client = job.ticket.client();
        let Some(socket) = Socket::of(self.port, client) else {
            let reason = "The connection is not found among the sockets of the process".to_owned();
            return Err(streams::refuse(job, &Error::Overloaded(reason)));
        };
        let conversation = Arc::new(Conversation {
            multiplex: self.clone(),
            socket,
            outbox: Outbox::default(),
            told: Mutex::default(),
            wake: Condvar::new(),
        });
        streams::take(slot, job, format!("asked-by-{client}"), move |_| conversation.run(client));
        Ok(())
    }
}

impl Conversation {
    fn run(self: Arc<Self>, client: SocketAddr) {
        let second = Arc::clone(&self);
        let answering = match threads::spawn(format!("told-{client}"), move || second.answer_told()) {
            Ok(answering) => answering,
            Err(error) => return log::error!("what {client} passes on cannot be answered: {error}"),
        };
        match catch_unwind(AssertUnwindSafe(|| self.read())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("{client} passes nothing on any more: {error}"),
            Err(_) => self.multiplex.metrics.panics.inc(),
        }
        // Nobody writes any more when this has ended: then the connection may be closed.
        self.socket.shut();
        self.told.lock().has_ended = true;
        self.wake.notify_one();
        let _ = answering.join();
    }

    /// Reads questions, and answers what can be answered at once.
    fn read(self: &Arc<Self>) -> io::Result<()> {
        let (mut buffer, mut filled) = (vec![0; PIECE], 0);
        loop {
            match self.socket.read(&mut buffer[filled..]) {
                Ok(0) => return Ok(()),
                Ok(count) => filled += count,
                // Nothing has come for the listener's idle time: the kernel finds out whether somebody is there.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            }
            let used = self.answer_all(&buffer[..filled])?;
            self.flush()?;
            buffer.copy_within(used..filled, 0);
            filled -= used;
            if filled == buffer.len() {
                buffer.resize(frames::HEAD + frames::LONGEST, 0);
            }
        }
    }

    /// Answers the questions in some bytes; how many bytes they are.
    fn answer_all(self: &Arc<Self>, bytes: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while let Some(frame) = frames::first(&bytes[used..]).map_err(io::Error::other)? {
            used += frames::HEAD + frame.len();
            let (number, question) = match Frame::decode(frame).map_err(io::Error::other)? {
                Frame::Question(number, question) => (number, question),
                Frame::Leader(leader) => {
                    self.multiplex.node.hear_leader(&leader);
                    continue;
                }
                Frame::Answer(..) => return Err(io::Error::other("an answer to nothing")),
            };
            let began = now();
            let reply = catch_unwind(AssertUnwindSafe(|| self.begin(number, &question, began)));
            match reply {
                Ok(None) => {}
                Ok(Some(reply)) => self.put(number, began, reply),
                Err(_) => {
                    self.multiplex.metrics.panics.inc();
                    self.put(number, began, Err(NotServed::Failed(Error::Internal)));
                }
            }
            // Whoever does not read his answers is not asked for more questions.
            if self.outbox.waiting() > BATCH {
                self.flush()?;
                self.outbox.wait_below(BATCH)?;
            }
        }
        Ok(used)
    }

    /// What came of a question; nothing yet, where the log of a shard was asked.
    fn begin(self: &Arc<Self>, number: u64, question: &Question, began: Instant) -> Option<Reply> {
        let node = &self.multiplex.node;
        let serving_state = match node_handlers::check_question(node, question) {
            Ok(serving_state) => serving_state,
            Err(not_served) => return Some(Err(not_served)),
        };
        let (key, operation) = (question.key, question.operation);
        if question.is_stale {
            return Some(node.read_own(key).ok_or(NotServed::Again));
        }
        let asked = (question.addressed.epoch, question.id);
        let asking = match node.begin_forwarded(&serving_state, key, operation, asked) {
            Begun::Done(reply) => return Some(reply),
            Begun::Asks(asking) => asking,
        };
        let Some(waits) = self.multiplex.in_log.enter() else {
            let reason = "Too much waits for the logs of shards: try again later".to_owned();
            return Some(Err(NotServed::Failed(Error::Overloaded(reason))));
        };
        let is_read = operation == Operation::Get;
        let asked = Asked { number, key: key.to_vec(), is_read, serving_state, began, _waits: waits };
        let own = Arc::clone(self);
        node.ask_and(asking, move |answer| {
            own.told.lock().answers.push((asked, answer));
            own.wake.notify_one();
        });
        None
    }

    /// Answers what logs have told, until the connection has ended.
    fn answer_told(&self) {
        loop {
            let answers = {
                let mut told = self.told.lock();
                while told.answers.is_empty() && !told.has_ended {
                    self.wake.wait(&mut told);
                }
                if told.has_ended {
                    return;
                }
                std::mem::take(&mut told.answers)
            };
            for (asked, answer) in answers {
                let operation = if asked.is_read { Operation::Get } else { Operation::Delete };
                let node = &self.multiplex.node;
                let reply = catch_unwind(AssertUnwindSafe(|| {
                    node.conclude_forwarded(&asked.serving_state, &asked.key, operation, answer)
                }));
                let reply = reply.unwrap_or_else(|_| {
                    self.multiplex.metrics.panics.inc();
                    Err(NotServed::Failed(Error::Internal))
                });
                self.put(asked.number, asked.began, reply);
            }
            if self.flush().is_err() {
                // Whoever reads sees the end, and ends this.
                self.socket.shut();
            }
        }
    }

    fn put(&self, number: u64, began: Instant, reply: Reply) {
        let status = if reply.is_ok() { 200 } else { 503 };
        self.multiplex.metrics.answered(LaneId::Forwarded, Some(Route::NodeKey), status, now() - began);
        self.outbox.put(|out| encode(reply, number, out));
    }

    fn flush(&self) -> io::Result<()> {
        self.outbox.flush(|bytes| self.write(bytes))
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut last = now();
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    last = now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The listener's time-out for sending is shorter than a node may take.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && now() - last < SENDING => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Appends the answer that a reply is.
fn encode(reply: Reply, number: u64, out: &mut Vec<u8>) {
    let answer = match reply {
        Ok(outcome) => match outcome.done {
            Done::Wrote(wrote) => Answer::Wrote(wrote),
            Done::Read(None) => Answer::Missing(outcome.age),
            Done::Read(Some(value)) if value.as_bytes().len() > frames::LONGEST_VALUE => Answer::ByHttp,
            Done::Read(Some(value)) => {
                return Answer::Found(outcome.age, value.as_bytes()).encode(number, out);
            }
        },
        Err(NotServed::Again) => Answer::Again,
        Err(NotServed::Gone) => Answer::Gone,
        Err(NotServed::NotLeader(leader, reason)) => Answer::NotLeader(leader, reason),
        Err(NotServed::OtherRequest) => Answer::OtherRequest,
        Err(NotServed::Full) => Answer::Full,
        Err(NotServed::Failed(Error::KeyTooLong { limit })) => Answer::KeyTooLong(limit),
        Err(NotServed::Failed(Error::TooLarge(reason))) => Answer::TooLarge(reason),
        Err(NotServed::Failed(Error::Unavailable { reason, applied })) => Answer::Failed(applied, reason),
        Err(NotServed::Failed(Error::Overloaded(reason))) => Answer::Busy(reason),
        Err(NotServed::Failed(error)) => Answer::Failed(error.applied(), error.to_string()),
    };
    answer.encode(number, out);
}
