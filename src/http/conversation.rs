//! Connections on which many questions come at one time, whoever asks them. The thread that reads one answers what needs no waiting by itself; what has to wait is
//! answered by a second thread when somebody has told what came of it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

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
/// What was told waits in this number while whoever asks takes no answers; then no more questions are read.
const MOST_TOLD: usize = 256;
/// So many bytes of its own what waits may take; what is told beyond is let go.
const MOST_TOLD_BYTES: usize = 1 << 20;
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

    /// How many bytes of memory of its own what was told takes until it is answered: a value that is held by the store anyhow takes none.
    fn own_bytes(told: &Self::Told) -> usize;

    /// So much waits for whoever asks that what takes memory of its own is let go: it is answered in a way that takes none.
    fn let_go(told: &mut Self::Told);

    /// Answers what was told.
    fn answer(&self, conversation: &Conversation<Self>, told: Self::Told);

    /// No question has come for the listener's idle time.
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
    /// Something that was told was answered.
    taken: Condvar,
    /// Whoever asks was told that no more is to be asked.
    was_ended: AtomicBool,
    shared: Shared,
}

/// What all connections of a server have in common.
#[derive(Clone)]
pub struct Shared {
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// The connections on which something was read that is not answered yet, and what was told.
    pub answering: Arc<Unattended>,
    /// A connection on which no question has come for this time is idle.
    pub idle_timeout: Duration,
    /// The port that is listened on.
    pub port: u16,
    /// The connections that there are.
    pub open: Arc<Open>,
}

/// The connections of a server, until it wants no more questions.
pub struct Open(Mutex<Option<Vec<Weak<dyn Ends>>>>);

/// A connection on which it can be said that no more is to be asked.
trait Ends: Send + Sync {
    fn end(&self);
}

/// What was told, until it is answered.
struct Told<T> {
    waiting: VecDeque<T>,
    /// The bytes that those take beyond what is held anyhow.
    own_bytes: usize,
    /// Something else waits to go out.
    has_more: bool,
    /// Nothing will be answered any more.
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

impl Open {
    /// None is there yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Vec::new()))))
    }

    fn add<A: Answers>(&self, conversation: &Arc<Conversation<A>>) {
        match &mut *self.0.lock() {
            Some(open) => {
                open.retain(|open| open.strong_count() > 0);
                let weak: Weak<Conversation<A>> = Arc::downgrade(conversation);
                open.push(weak);
            }
            None => drop(conversation.end()),
        }
    }

    /// Has nobody ask anything more on any of them, nor on those that come. What was asked is answered.
    ///
    /// It is said when the port is closed, and not before: whoever asks goes on by HTTP, and a connection that the system has taken and the node has not is lost when the port is closed.
    pub fn end(&self) {
        let open = self.0.lock().take().unwrap_or_default();
        for conversation in open.iter().filter_map(Weak::upgrade) {
            conversation.end();
        }
    }
}

impl<A: Answers> Ends for Conversation<A> {
    fn end(&self) {
        Self::end(self);
    }
}

impl<A: Answers> Conversation<A> {
    /// One that has not begun.
    pub fn new(answers: A, socket: Socket, shared: &Shared) -> Arc<Self> {
        let told = Told { waiting: VecDeque::new(), own_bytes: 0, has_more: false, has_ended: false };
        let conversation = Arc::new(Self {
            answers,
            socket,
            outbox: Outbox::default(),
            told: Mutex::new(told),
            wake: Condvar::new(),
            taken: Condvar::new(),
            was_ended: AtomicBool::new(false),
            shared: shared.clone(),
        });
        shared.open.add(&conversation);
        conversation
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
            Err(_) => self.shared.metrics.panics.inc(),
        }
        // Nobody writes any more when this has ended: then the connection may be closed.
        self.socket.shut();
        self.told.lock().has_ended = true;
        self.wake.notify_one();
        let _ = answering.join();
    }

    /// Has something answered by the second thread. Nobody waits for that.
    pub fn tell(&self, mut told: A::Told) {
        let mut waiting = self.told.lock();
        let own_bytes = A::own_bytes(&told);
        if waiting.own_bytes + own_bytes > MOST_TOLD_BYTES {
            A::let_go(&mut told);
        }
        waiting.own_bytes += A::own_bytes(&told);
        waiting.waiting.push_back(told);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Says that no more is to be asked, unless that was said before; whether it was not. Nobody waits for that to go out.
    pub fn end(&self) -> bool {
        let is_first = !self.was_ended.swap(true, Ordering::Relaxed);
        if is_first {
            self.put(frames::put_last);
            self.told.lock().has_more = true;
            self.wake.notify_one();
        }
        is_first
    }

    /// Adds an answer to what goes out next.
    pub fn put(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.outbox.put(encode);
    }

    /// Reads questions, and answers what can be answered at once.
    fn read(self: &Arc<Self>) -> io::Result<()> {
        let (mut buffer, mut filled) = (vec![0; PIECE], 0);
        let mut last_question = now();
        loop {
            match self.socket.read(&mut buffer[filled..]) {
                Ok(0) => return Ok(()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.answers.idle(self)?;
                    self.flush()?;
                    if filled == 0 && buffer.len() > PIECE {
                        buffer = vec![0; PIECE];
                    }
                    continue;
                }
                Err(error) => return Err(error),
            }
            let answering = self.shared.answering.enter();
            let used = self.take_all(&buffer[..filled])?;
            if used > 0 {
                last_question = now();
            } else if now() - last_question >= self.shared.idle_timeout {
                // Bytes alone, now and then, keep nothing.
                self.answers.idle(self)?;
            }
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
            self.make_room()?;
            let mut told = self.told.lock();
            while told.waiting.len() >= MOST_TOLD && !told.has_ended {
                self.taken.wait(&mut told);
            }
        }
        Ok(used)
    }

    /// Waits while too many bytes of answers wait to be taken.
    fn make_room(&self) -> io::Result<()> {
        if self.outbox.waiting() > BATCH {
            self.flush()?;
            self.outbox.wait_below(BATCH)?;
        }
        Ok(())
    }

    /// Answers what was told, until the connection has ended. What waits meanwhile is what was told, and not the bytes of its answers.
    fn answer_told(&self) {
        // A node that stops waits until what was answered has gone out.
        let mut unsent = None;
        while let Some(told) = self.next_told(&mut unsent) {
            self.answers.answer(self, told);
            if self.make_room().is_err() {
                break;
            }
        }
        // Whoever reads sees the end, and ends this.
        self.socket.shut();
        self.told.lock().has_ended = true;
        self.taken.notify_one();
    }

    /// What is to be answered next; nothing when there is nothing more to be answered. What was answered before goes out first, where nothing else waits.
    fn next_told(&self, unsent: &mut Option<Waits>) -> Option<A::Told> {
        let mut told = self.told.lock();
        while told.waiting.is_empty() && !told.has_ended {
            told.has_more = false;
            MutexGuard::unlocked(&mut told, || self.flush()).ok()?;
            *unsent = None;
            if told.waiting.is_empty() && !told.has_ended && !told.has_more {
                self.wake.wait(&mut told);
            }
        }
        if told.has_ended {
            return None;
        }
        let next = told.waiting.pop_front()?;
        told.own_bytes -= A::own_bytes(&next);
        if unsent.is_none() {
            *unsent = self.shared.answering.enter();
        }
        self.taken.notify_one();
        Some(next)
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
