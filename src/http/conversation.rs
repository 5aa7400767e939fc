//! Connections on which many questions come at one time, whoever asks them. The thread that reads one answers what needs no waiting by itself; what has to wait is
//! answered by a second thread when somebody has told what came of it.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::metrics::Metrics;
use super::sockets::Socket;
use crate::clock::now;
use crate::peers::outbox::Outbox;
use crate::threads;
use crate::wire::frames;

/// Bytes that are read at one time, at least.
const PIECE: usize = 16 << 10;
/// Answers go out at the latest when so many bytes wait.
const BATCH: usize = 256 << 10;
/// Whoever takes nothing for this long takes nothing any more.
const SENDING: Duration = Duration::from_secs(1);

/// Answers what is asked on a connection.
pub trait Answers: Send + Sync + Sized + 'static {
    /// What is told of a question that had to wait.
    type Told: Send;

    /// Takes what is in a frame: answers it by [`Conversation::put`], or has somebody told later. It never waits.
    ///
    /// # Errors
    /// When it makes no sense: the connection ends.
    fn take(&self, conversation: &Arc<Conversation<Self>>, frame: &[u8]) -> io::Result<()>;

    /// Answers what was told.
    fn answer(&self, conversation: &Conversation<Self>, told: Self::Told);

    /// Nothing has come for the listener's idle time.
    ///
    /// # Errors
    /// When the connection is not to be kept.
    fn idle(&self, conversation: &Conversation<Self>) -> io::Result<()>;
}

/// One connection.
pub struct Conversation<A: Answers> {
    answers: A,
    socket: Socket,
    outbox: Outbox,
    told: Mutex<Told<A::Told>>,
    wake: Condvar,
    metrics: Arc<Metrics>,
    /// The connections on which something was read that is not answered yet.
    answering: Arc<Unattended>,
}

/// What was told, until it is answered.
struct Told<T> {
    waiting: Vec<T>,
    has_ended: bool,
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

impl<A: Answers> Conversation<A> {
    /// One that has not begun.
    pub fn new(answers: A, socket: Socket, metrics: &Arc<Metrics>, answering: &Arc<Unattended>) -> Arc<Self> {
        Arc::new(Self {
            answers,
            socket,
            outbox: Outbox::default(),
            told: Mutex::new(Told { waiting: Vec::new(), has_ended: false }),
            wake: Condvar::new(),
            metrics: Arc::clone(metrics),
            answering: Arc::clone(answering),
        })
    }

    /// Reads questions and answers them, until the connection ends.
    pub fn run(self: Arc<Self>, client: SocketAddr) {
        let second = Arc::clone(&self);
        let answering = match threads::spawn(format!("told-{client}"), move || second.answer_told()) {
            Ok(answering) => answering,
            Err(error) => return log::error!("what {client} asks cannot be answered: {error}"),
        };
        match catch_unwind(AssertUnwindSafe(|| self.read())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("{client} asks nothing any more: {error}"),
            Err(_) => self.metrics.panics.inc(),
        }
        // Nobody writes any more when this has ended: then the connection may be closed.
        self.socket.shut();
        self.told.lock().has_ended = true;
        self.wake.notify_one();
        let _ = answering.join();
    }

    /// Has something answered by the second thread. Nobody waits for that.
    pub fn tell(&self, told: A::Told) {
        self.told.lock().waiting.push(told);
        self.wake.notify_one();
    }

    /// Adds an answer to what goes out next.
    pub fn put(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.outbox.put(encode);
    }

    /// Reads questions, and answers what can be answered at once.
    fn read(self: &Arc<Self>) -> io::Result<()> {
        let (mut buffer, mut filled) = (vec![0; PIECE], 0);
        loop {
            match self.socket.read(&mut buffer[filled..]) {
                Ok(0) => return Ok(()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.answers.idle(self)?;
                    self.flush()?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let answering = self.answering.enter();
            let used = self.take_all(&buffer[..filled])?;
            self.flush()?;
            drop(answering);
            buffer.copy_within(used..filled, 0);
            filled -= used;
            if filled == buffer.len() {
                buffer.resize(frames::HEAD + frames::LONGEST, 0);
            }
        }
    }

    /// Takes the frames in some bytes; how many bytes they are.
    fn take_all(self: &Arc<Self>, bytes: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while let Some(frame) = frames::first(&bytes[used..]).map_err(io::Error::other)? {
            used += frames::HEAD + frame.len();
            self.answers.take(self, frame)?;
            // Whoever does not read his answers is not asked for more questions.
            if self.outbox.waiting() > BATCH {
                self.flush()?;
                self.outbox.wait_below(BATCH)?;
            }
        }
        Ok(used)
    }

    /// Answers what was told, until the connection has ended.
    fn answer_told(&self) {
        loop {
            let told = {
                let mut told = self.told.lock();
                while told.waiting.is_empty() && !told.has_ended {
                    self.wake.wait(&mut told);
                }
                if told.has_ended {
                    return;
                }
                std::mem::take(&mut told.waiting)
            };
            for told in told {
                self.answers.answer(self, told);
            }
            if self.flush().is_err() {
                // Whoever reads sees the end, and ends this.
                self.socket.shut();
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.outbox.flush(|bytes| self.write(bytes).map(|()| bytes.len()))
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
                // The listener's time-out for sending is shorter than whoever asks may take.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && now() - last < SENDING => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
