//! A connection to another node with many requests under way at one time. Whoever asks writes its question, together with all that wait to be
//! written just then; a thread that reads tells what came of each. Where there is no such connection, a node is asked by HTTP.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use socket2::SockRef;

use super::no_answer::{NoAnswer, NoAnswerKind};
use super::outbox::Outbox;
use super::probe;
use super::resolver::{CachedNames, Currency};
use super::transport::{Failure, MSG_DONTWAIT, SILENCE, is_timeout};
use super::upgrade::{is_closed, upgraded};
use crate::clock::{Deadline, now, ticks_ms};
use crate::model::address::Address;
use crate::threads;
use crate::wire::frames::{self, Coming, Form};
use crate::wire::{self, relayed};

/// `MSG_NOSIGNAL` of Linux.
const MSG_NOSIGNAL: i32 = 0x4000;
/// Questions under way on one connection; further ones are refused.
const MOST_QUESTIONS: usize = 4096;
/// Bytes that wait to be written to it; while there are more, questions are refused.
const MOST_BYTES: usize = 8 << 20;
/// A connection that could not be made is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_millis(100);
/// A node that does not offer it is asked for it again after this: it may be a newer one by then.
const OFFERED_AGAIN: Duration = Duration::from_secs(2);
/// Whoever reads looks this often whose time is over, and whether the node is silent.
const LOOK: Duration = Duration::from_millis(20);
/// The same while nothing is under way.
const LOOK_AT_NOTHING: Duration = Duration::from_millis(100);
/// A node that is alive and from which nothing has come on the connection for this long, although something is under way, is not reached by it: what needs the log of a shard
/// is answered sooner.
const USELESS: Duration = Duration::from_secs(4);
/// A connection that ended sooner than this is not tried again at once.
const SHORT: Duration = Duration::from_secs(1);
/// Whoever waits for an answer is told by whoever reads; this is added to his deadline in case he is not.
const SLACK: Duration = Duration::from_secs(1);
/// Bytes that are read at one time, at least.
const PIECE: usize = 16 << 10;

/// A connection of a follower on which nothing was asked for this long is closed by it, before something between it and its main forgets the connection.
const UNUSED: Duration = Duration::from_secs(30);

/// What such a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Requests that nodes of a cluster pass on to each other. Each has an id, so whoever waits for a node that is silent is told so together with all others, and
    /// asks elsewhere.
    Nodes,
    /// Requests of clients that a follower passes on to its main. There is nobody else to ask, so each waits as long as it would alone.
    Relay,
}

impl Purpose {
    /// Where it is asked for, and the names of its protocol, the newest first, with the form of its frames.
    fn protocols(self) -> (&'static str, &'static [(&'static str, Form)]) {
        match self {
            Self::Nodes => {
                const ALL: [(&str, Form); 6] = [
                    (Form::Room.protocol(), Form::Room),
                    (Form::Batches.protocol(), Form::Batches),
                    (Form::Ttl.protocol(), Form::Ttl),
                    (Form::Types.protocol(), Form::Types),
                    (Form::Conditions.protocol(), Form::Conditions),
                    (Form::First.protocol(), Form::First),
                ];
                (wire::REQUESTS, &ALL)
            }
            Self::Relay => (wire::RELAY, &[(relayed::PROTOCOL, Form::First)]),
        }
    }
}

/// The connection to one node, which is opened when it is first wanted.
#[derive(Debug)]
pub struct Multiplex {
    node: Address,
    names: CachedNames,
    purpose: Purpose,
    /// The secret that nodes of the cluster share, where it is for them.
    secret: Option<Arc<str>>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// There is none; a new one may be opened from then on.
    Closed(Option<Instant>),
    /// A thread is at it.
    Opening,
    Open(Arc<Connection>),
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    currency: Currency,
    purpose: Purpose,
    form: Form,
    node: SocketAddr,
    outbox: Outbox,
    asked: Mutex<Asked>,
    /// When something came last, by [`ticks_ms`].
    heard: AtomicU64,
    /// A thread asks the node whether it is alive; or when that was known last, by [`ticks_ms`].
    probe: Mutex<Probe>,
}

#[derive(Debug)]
enum Probe {
    UnderWay,
    AliveAt(u64),
}

/// The questions under way.
#[derive(Debug, Default)]
struct Asked {
    /// The number of the next question.
    next: u64,
    waiters: HashMap<u64, Waiter>,
    /// When the last one was asked, by [`ticks_ms`].
    last_ms: u64,
    /// Why there are no more questions.
    ended: Option<NoAnswer>,
}

struct Waiter {
    /// The group that is asked.
    group: u64,
    deadline: Deadline,
    /// When it was asked, by [`ticks_ms`].
    asked_ms: u64,
    told: Box<dyn FnOnce(Answer) + Send>,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("group", &self.group).finish_non_exhaustive()
    }
}

/// What is in the frame of an answer, or why there is none.
pub type Answer = Result<Vec<u8>, NoAnswer>;

impl Multiplex {
    /// No connection yet.
    pub fn new(node: &Address, names: CachedNames, purpose: Purpose, secret: Option<Arc<str>>) -> Self {
        Self { node: node.clone(), names, purpose, secret, state: Mutex::new(State::Closed(None)) }
    }

    /// The connection for many requests, where there is one. Where there is none, one is opened, and nobody waits for that.
    pub fn connection(self: &Arc<Self>) -> Option<Arc<Connection>> {
        let mut state = self.state.lock();
        match &*state {
            State::Open(connection) => return Some(Arc::clone(connection)),
            State::Opening => return None,
            State::Closed(again) if again.is_some_and(|again| now() < again) => return None,
            State::Closed(_) => *state = State::Opening,
        }
        let peer = Arc::clone(self);
        if let Err(error) = threads::spawn(format!("answers-of-{}", self.node), move || peer.converse()) {
            log::error!("no answers of {} can be read: {error}", self.node);
            *state = State::Closed(Some(now() + OFFERED_AGAIN));
        }
        None
    }

    fn open_connection(&self) -> Option<Arc<Connection>> {
        match &*self.state.lock() {
            State::Open(connection) => Some(Arc::clone(connection)),
            State::Closed(_) | State::Opening => None,
        }
    }

    /// What waits for this node and is about one of these groups is told that another node is to be asked.
    pub fn abandon(&self, is_elsewhere: impl Fn(u64) -> bool) {
        if let Some(connection) = self.open_connection() {
            connection.abandon(is_elsewhere);
        }
    }

    /// Sends a frame that has no answer, in a moment and without waiting, if there is a connection.
    pub fn tell(&self, frame: &[u8]) {
        if let Some(connection) = self.open_connection().filter(|open| open.outbox.waiting() < MOST_BYTES) {
            connection.outbox.put(|out| out.extend_from_slice(frame));
        }
    }

    /// Ends the connection, if nothing waits for an answer.
    pub fn close(&self) {
        if let Some(connection) = self.open_connection() {
            connection.end_unused();
        }
    }

    /// Opens a connection, and reads answers until it ends.
    fn converse(self: Arc<Self>) {
        let again = match self.open() {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *self.state.lock() = State::Open(Arc::clone(&connection));
                let opened = now();
                let end = catch_unwind(AssertUnwindSafe(|| connection.read_answers()));
                // From now on nobody finds it; then all who have are told.
                let again = (now() - opened < SHORT).then(|| now() + OFFERED_AGAIN);
                *self.state.lock() = State::Closed(again);
                connection.end(&end.unwrap_or_else(|_| broken("what it has answered could not be read")));
                return;
            }
            Err(error) => {
                log::debug!("{} is asked by HTTP: {error}", self.node);
                let is_refused = error.kind() == io::ErrorKind::Unsupported;
                now() + if is_refused { OFFERED_AGAIN } else { OPEN_AGAIN }
            }
        };
        *self.state.lock() = State::Closed(Some(again));
    }

    fn open(&self) -> io::Result<Connection> {
        let (path, protocols) = self.purpose.protocols();
        let mut refused = io::Error::from(io::ErrorKind::Unsupported);
        for (protocol, form) in protocols {
            match upgraded(&self.names, &self.node, self.secret.as_deref(), (path, protocol), &[]) {
                Ok(stream) => {
                    let currency = self.names.currency(self.node.as_str(), stream.peer_addr()?);
                    return Connection::of(stream, currency, self.purpose, *form);
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }
}

impl Connection {
    fn of(stream: TcpStream, currency: Currency, purpose: Purpose, form: Form) -> io::Result<Self> {
        stream.set_read_timeout(Some(LOOK_AT_NOTHING))?;
        if purpose == Purpose::Relay {
            // Whether the main is silent is judged for each request.
            SockRef::from(&stream).set_tcp_user_timeout(None)?;
        }
        Ok(Self {
            node: stream.peer_addr()?,
            stream,
            currency,
            purpose,
            form,
            outbox: Outbox::default(),
            asked: Mutex::new(Asked { last_ms: ticks_ms(), ..Asked::default() }),
            heard: AtomicU64::new(ticks_ms()),
            probe: Mutex::new(Probe::AliveAt(ticks_ms())),
        })
    }

    /// The form of the frames that the node takes on it.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Sends a question about a key of a group, whose number it gives it, and waits for the answer. Nothing where the connection has ended before the question was sent.
    ///
    /// # Errors
    /// See [`NoAnswerKind`]. Nothing is ever sent twice.
    pub fn ask(&self, group: u64, deadline: Deadline, frame: Vec<u8>) -> Option<Answer> {
        self.begin(group, deadline, frame).map(Begun::end)
    }

    /// The same, and the answer is waited for later.
    pub fn begin(&self, group: u64, deadline: Deadline, frame: Vec<u8>) -> Option<Begun> {
        let (sender, answer) = bounded(1);
        let tell = |sender: Sender<Answer>, answer| drop(sender.try_send(answer));
        self.ask_and(group, deadline, frame, (sender, tell)).ok()?;
        Some(Begun { answer, deadline })
    }

    /// The same without waiting: `tell` has somebody told, by the thread that reads, or by whoever finds that the connection has ended.
    ///
    /// # Errors
    /// Gives back who was to be told where the connection has ended before the question was sent.
    pub fn ask_and<T: Send + 'static>(
        &self,
        group: u64,
        deadline: Deadline,
        mut frame: Vec<u8>,
        (told, tell): (T, impl FnOnce(T, Answer) + Send + 'static),
    ) -> Result<(), T> {
        // Whoever reads may not have seen it yet. What would be sent now could have been done, for all that could be said of it.
        if is_closed(&self.stream) || self.currency.is_lost() {
            return Err(told);
        }
        let number = {
            let mut asked = self.asked.lock();
            if asked.ended.is_some() {
                return Err(told);
            }
            if asked.waiters.len() >= MOST_QUESTIONS || self.outbox.waiting() >= MOST_BYTES {
                drop(asked);
                let reason = "too much waits for it already".to_owned();
                tell(told, Err(NoAnswer { kind: NoAnswerKind::Full, reason }));
                return Ok(());
            }
            asked.next += 1;
            asked.last_ms = ticks_ms();
            let told = Box::new(move |answer| tell(told, answer));
            let waiter = Waiter { group, deadline, asked_ms: asked.last_ms, told };
            let number = asked.next;
            asked.waiters.insert(number, waiter);
            number
        };
        frames::renumber(&mut frame, number);
        self.outbox.put(|out| out.extend_from_slice(&frame));
        self.flush();
        Ok(())
    }

    /// Sends what the system takes without waiting; whoever reads sees to the rest.
    fn flush(&self) {
        if let Err(error) = self.send() {
            self.end(&broken(&format!("the connection broke: {error}")));
        }
    }

    fn send(&self) -> io::Result<()> {
        let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
        self.outbox.flush(|bytes| {
            let mut sent = 0;
            while sent < bytes.len() {
                match SockRef::from(&self.stream).send_with_flags(&bytes[sent..], flags) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(sent)
        })
    }

    /// Reads answers and hands each to whoever waits for it; why there are no more. It never waits for the node to take something.
    fn read_answers(self: &Arc<Self>) -> NoAnswer {
        let (mut buffer, mut filled) = (vec![0; PIECE], 0);
        let (mut looked_ms, mut patience) = (ticks_ms(), LOOK_AT_NOTHING);
        loop {
            let came = match (&self.stream).read(&mut buffer[filled..]) {
                Ok(0) => return broken("it has closed the connection"),
                Ok(count) => count,
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return broken(&format!("the connection broke: {error}")),
            };
            let now_ms = ticks_ms();
            if came > 0 {
                filled += came;
                self.heard.store(now_ms, Ordering::Relaxed);
                match self.hand_out(&buffer[..filled]) {
                    Ok(used) => {
                        buffer.copy_within(used..filled, 0);
                        filled -= used;
                    }
                    Err(error) => {
                        let reason = format!("its answer makes no sense: {error}");
                        return NoAnswer { kind: NoAnswerKind::Senseless, reason };
                    }
                }
                if filled == buffer.len() {
                    buffer.resize(frames::HEAD + frames::LONGEST, 0);
                }
            }
            if came == 0 && filled == 0 && buffer.len() > PIECE {
                buffer = vec![0; PIECE];
            }
            if came == 0 || u128::from(now_ms - looked_ms) >= LOOK.as_millis() {
                looked_ms = now_ms;
                let wanted = match self.look(now_ms) {
                    Ok(true) => LOOK,
                    Ok(false) => LOOK_AT_NOTHING,
                    Err(error) => return error,
                };
                if wanted != patience && self.stream.set_read_timeout(Some(wanted)).is_ok() {
                    patience = wanted;
                }
            }
        }
    }

    /// Sends what was told, tells those whose time is over, and asks a silent node whether it is there. Whether anything is under way.
    fn look(self: &Arc<Self>, now_ms: u64) -> Result<bool, NoAnswer> {
        self.send().map_err(|error| broken(&format!("the connection broke: {error}")))?;
        if self.currency.is_lost() {
            self.retire(&broken("its name stands for another address"));
        }
        let (over, oldest_ms) = {
            let mut asked = self.asked.lock();
            let over: Vec<_> = asked.waiters.extract_if(|_, waiter| waiter.deadline.is_over()).collect();
            (over, asked.waiters.values().map(|waiter| waiter.asked_ms).min())
        };
        for (_, waiter) in over {
            (waiter.told)(Err(late()));
        }
        let Some(oldest_ms) = oldest_ms else {
            self.end_useless(now_ms);
            return Ok(false);
        };
        let silent_ms = now_ms.saturating_sub(self.heard.load(Ordering::Relaxed).max(oldest_ms));
        if u128::from(silent_ms) >= USELESS.as_millis() {
            let useless = broken(&format!("nothing has come for {} ms", USELESS.as_millis()));
            match self.purpose {
                Purpose::Nodes => return Err(useless),
                // A slow main is waited for; what comes from now on has a better chance by HTTP.
                Purpose::Relay => self.retire(&useless),
            }
        }
        if u128::from(silent_ms) >= SILENCE.as_millis() {
            self.probe(now_ms);
        }
        Ok(true)
    }

    /// Ends a connection that is of no use any more, while nothing is under way on it.
    fn end_useless(&self, now_ms: u64) {
        let (last_ms, has_ended) = {
            let asked = self.asked.lock();
            (asked.last_ms, asked.ended.is_some())
        };
        let is_unused = self.purpose == Purpose::Relay
            && u128::from(now_ms.saturating_sub(last_ms)) >= UNUSED.as_millis();
        if has_ended || is_unused {
            self.end_unused();
        }
    }

    /// Asks the node whether it is alive, and ends the connection where it is not.
    fn probe(self: &Arc<Self>, now_ms: u64) {
        {
            let mut probe = self.probe.lock();
            match *probe {
                Probe::AliveAt(when) if u128::from(now_ms.saturating_sub(when)) >= SILENCE.as_millis() => {
                    *probe = Probe::UnderWay;
                }
                Probe::AliveAt(_) | Probe::UnderWay => return,
            }
        }
        let own = Arc::clone(self);
        let probe = move || {
            let is_alive = probe::is_alive(own.node);
            if !is_alive {
                own.end_silent(now_ms);
            }
            // Whoever waits still is not held up by what was found out for others.
            *own.probe.lock() = Probe::AliveAt(if is_alive { ticks_ms() } else { 0 });
        };
        if let Err(error) = threads::spawn(format!("probe-{}", self.node), probe) {
            log::error!("a silent node cannot be asked whether it is alive: {error}");
            *self.probe.lock() = Probe::AliveAt(now_ms);
        }
    }

    /// Hands out the answers in some bytes; how many bytes they are.
    fn hand_out(&self, bytes: &[u8]) -> Result<usize, crate::model::binary::Malformed> {
        let mut used = 0;
        while let Some(frame) = frames::first(&bytes[used..])? {
            used += frames::HEAD + frame.len();
            let number = match frames::coming(frame)? {
                Coming::Answer(number) => number,
                Coming::Last => {
                    self.retire(&broken("it takes no more questions"));
                    continue;
                }
            };
            let waiter = self.asked.lock().waiters.remove(&number);
            // Nobody waits for one that comes late, or twice.
            if let Some(waiter) = waiter {
                (waiter.told)(Ok(frame.to_vec()));
            }
        }
        Ok(used)
    }

    fn abandon(&self, is_elsewhere: impl Fn(u64) -> bool) {
        let gone: Vec<_> =
            self.asked.lock().waiters.extract_if(|_, waiter| is_elsewhere(waiter.group)).collect();
        for (_, waiter) in gone {
            let reason = "another replica leads the shard by now".to_owned();
            (waiter.told)(Err(NoAnswer { kind: NoAnswerKind::Elsewhere, reason }));
        }
    }

    /// There are no more questions, if none is under way.
    fn end_unused(&self) {
        let mut asked = self.asked.lock();
        if asked.waiters.is_empty() {
            asked.ended.get_or_insert_with(|| broken("the node is not asked any more"));
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// There are no more questions. What is under way is waited for, and then the connection ends.
    fn retire(&self, why: &NoAnswer) {
        self.asked.lock().ended.get_or_insert_with(|| why.clone());
    }

    /// Neither the connection nor `/livez`, which was asked at some moment, was answered.
    fn end_silent(self: &Arc<Self>, asked_ms: u64) {
        let silent = NoAnswer { kind: NoAnswerKind::Silent, reason: Failure::Silent.to_string() };
        if self.purpose == Purpose::Nodes {
            return self.end(&silent);
        }
        self.retire(&silent);
        let heard = self.heard.load(Ordering::Relaxed);
        let is_told = |waiter: &Waiter| {
            u128::from(asked_ms.saturating_sub(waiter.asked_ms.max(heard))) >= SILENCE.as_millis()
        };
        let told: Vec<_> = self.asked.lock().waiters.extract_if(|_, waiter| is_told(waiter)).collect();
        for (_, waiter) in told {
            (waiter.told)(Err(silent.clone()));
        }
    }

    /// There will be no more answers.
    fn end(&self, why: &NoAnswer) {
        let waiters = {
            let mut asked = self.asked.lock();
            asked.ended.get_or_insert_with(|| why.clone());
            std::mem::take(&mut asked.waiters)
        };
        for waiter in waiters.into_values() {
            (waiter.told)(Err(why.clone()));
        }
        // Whoever reads sees the end.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A question that was sent.
pub struct Begun {
    answer: Receiver<Answer>,
    deadline: Deadline,
}

impl Begun {
    /// Waits for the answer.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub fn end(self) -> Answer {
        // Whoever reads says that it is late.
        let answer = self.answer.recv_timeout(self.deadline.left() + SLACK);
        answer.unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> NoAnswer {
    NoAnswer { kind: NoAnswerKind::Late, reason: "no answer in time".to_owned() }
}

fn broken(reason: &str) -> NoAnswer {
    NoAnswer { kind: NoAnswerKind::Broken, reason: reason.to_owned() }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests of threads")]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::model::shard::Action;
    use crate::wire::Addressed;
    use crate::wire::frames::{Answer as Said, Frame, Question, Version};

    /// A connection that was not made by a name.
    fn by_address() -> Currency {
        CachedNames::default().currency("127.0.0.1:1", SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    /// A node that takes one connection, and does with it as it is told.
    fn node(
        head: &'static str,
        serve: impl FnOnce(&mut TcpStream) + Send + 'static,
    ) -> (Arc<Multiplex>, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(listener);
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            let asked = String::from_utf8(asked).unwrap();
            let upgrade = format!("\r\nUpgrade: {}\r\n", Form::NEWEST.protocol());
            assert!(asked.contains(&upgrade), "{asked}");
            assert!(asked.contains("\r\nEvenkv-Secret: hush\r\n"), "{asked}");
            stream.write_all(head.as_bytes()).unwrap();
            serve(&mut stream);
        });
        let (address, secret) = (address.parse().unwrap(), Some(Arc::from("hush")));
        (Arc::new(Multiplex::new(&address, CachedNames::default(), Purpose::Nodes, secret)), thread)
    }

    const TAKEN: &str = "HTTP/1.1 101 Switching Protocols\r\n\r\n";

    fn connected(peer: &Arc<Multiplex>) -> Arc<Connection> {
        loop {
            if let Some(connection) = peer.connection() {
                return connection;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn question(key: &[u8]) -> Vec<u8> {
        let addressed = Addressed { cluster: "c".to_owned(), epoch: 1, incarnation: None };
        let (action, condition, mut frame) = (Action::Get, None, Vec::new());
        let question =
            Question { addressed, left_ms: 1, id: None, is_stale: false, key, action, condition, ttl: None };
        question.encode(Form::NEWEST, 0, &mut frame).unwrap();
        frame
    }

    /// Reads a question: its number and its key.
    fn asked(stream: &mut TcpStream) -> (u64, Vec<u8>) {
        let mut head = [0; frames::HEAD];
        stream.read_exact(&mut head).unwrap();
        let mut frame = vec![0; u32::from_le_bytes(head) as usize];
        stream.read_exact(&mut frame).unwrap();
        match Frame::decode(&frame) {
            Ok(Frame::Question(number, _, question)) => (number, question.key.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    fn found(number: u64, value: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        Said::Found(None, Version { number: Some(1), left: None }, value).encode(
            Form::NEWEST,
            number,
            &mut frame,
        );
        frame
    }

    fn long() -> Deadline {
        Deadline::after(now(), Duration::from_mins(1))
    }

    /// Asks several questions at one time: what came of each.
    fn ask_all(connection: &Arc<Connection>, asked: &[(u64, &[u8], Deadline)]) -> Vec<Option<Answer>> {
        thread::scope(|scope| {
            let ask = |(group, key, deadline): &(u64, &[u8], Deadline)| {
                let (frame, group, deadline) = (question(key), *group, *deadline);
                scope.spawn(move || connection.ask(group, deadline, frame))
            };
            let threads: Vec<_> = asked.iter().map(ask).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn kind(answer: Option<Answer>) -> Option<NoAnswerKind> {
        answer.map(|answer| answer.expect_err("no answer").kind)
    }

    #[test]
    fn answers_find_their_questions_in_any_order_and_others_harm_nobody() {
        let (peer, thread) = node(TAKEN, |stream| {
            let all = [(); 3].map(|()| asked(stream));
            let mut frames = found(u64::MAX, b"of nobody");
            for (number, key) in all.iter().rev() {
                frames.extend(found(*number, key));
                frames.extend(found(*number, b"once more"));
            }
            // As slowly as they may come.
            for byte in frames {
                stream.write_all(&[byte]).unwrap();
            }
            let _ = stream.read(&mut [0]);
        });
        let connection = connected(&peer);
        let keys: [&[u8]; 3] = [b"a", b"bb", b"ccc"];
        let answers = ask_all(&connection, &keys.map(|key| (1, key, long())));
        for (answer, key) in answers.into_iter().zip(keys) {
            let frame = answer.unwrap().unwrap();
            assert!(
                matches!(Frame::decode(&frame), Ok(Frame::Answer(_, Said::Found(None, _, value))) if value == key)
            );
        }
        peer.close();
        thread.join().unwrap();
    }

    #[test]
    fn whoever_waits_is_told_when_the_connection_ends_and_the_next_one_is_asked_by_http() {
        for (said, wanted) in [
            (&b""[..], NoAnswerKind::Broken),
            (b"\xff\xff\xff\xff", NoAnswerKind::Senseless),
            (b"\x02\0\0\0\x09\x02", NoAnswerKind::Senseless),
            (b"\x0b\0\0\0\x01\x02", NoAnswerKind::Broken),
        ] {
            let (peer, thread) = node(TAKEN, move |stream| {
                let _ = [(); 2].map(|()| asked(stream));
                stream.write_all(said).unwrap();
            });
            let connection = connected(&peer);
            let answers = ask_all(&connection, &[(1, b"a", long()), (2, b"b", long())]);
            for answer in answers {
                assert_eq!(kind(answer), Some(wanted), "after {said:?}");
            }
            assert_eq!(connection.ask(1, long(), question(b"c")), None);
            thread.join().unwrap();
        }
    }

    #[test]
    fn nothing_is_sent_to_a_node_that_has_closed_its_end() {
        for unread in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let connection = Connection::of(stream, by_address(), Purpose::Nodes, Form::NEWEST).unwrap();
            let (mut node, _) = listener.accept().unwrap();
            assert!(!is_closed(&connection.stream));
            // Nobody reads here, so nobody has seen the end; nor does an answer before it hide it.
            node.write_all(&found(7, b"late")).unwrap();
            if unread {
                // What it has not read turns the end into a reset.
                connection.outbox.put(|out| out.push(1));
                connection.flush();
            }
            drop(node);
            wait(|| is_closed(&connection.stream));
            assert_eq!(connection.ask(1, long(), question(b"a")), None);
            assert_eq!(connection.outbox.waiting(), 0);
        }
    }

    #[test]
    fn a_connection_takes_no_questions_once_its_name_stands_for_another_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        let stream = TcpStream::connect(place).unwrap();
        let _node = listener.accept().unwrap();
        let names = CachedNames::default();
        names.set("a:1", place);
        let currency = names.currency("a:1", place);
        let connection = Arc::new(Connection::of(stream, currency, Purpose::Nodes, Form::NEWEST).unwrap());
        let begun = connection.begin(1, long(), question(b"a")).expect("it takes a question");
        names.set("a:1", SocketAddr::from(([127, 0, 0, 9], 1)));
        assert!(connection.begin(1, long(), question(b"b")).is_none());
        // What is under way is waited for.
        assert!(matches!(connection.look(ticks_ms()), Ok(true)));
        assert!(!is_closed(&connection.stream) && begun.answer.is_empty());
        connection.asked.lock().waiters.clear();
        assert!(matches!(connection.look(ticks_ms()), Ok(false)));
        assert!(is_closed(&connection.stream));
    }

    #[test]
    fn who_is_late_and_who_is_to_go_elsewhere_is_told_alone() {
        let (peer, thread) = node(TAKEN, |stream| {
            let all = [(); 4].map(|()| asked(stream));
            let (number, key) = all.iter().find(|(_, key)| key == b"last").unwrap();
            // The end of another frame, of the peer's: it has told those who wait for group 7.
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&found(*number, key)).unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        let connection = connected(&peer);
        let soon = Deadline::after(now(), Duration::from_millis(50));
        let answers = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let asked: [(u64, &[u8], Deadline); 4] =
                    [(1, b"late", soon), (7, b"x", long()), (7, b"y", long()), (1, b"last", long())];
                ask_all(&connection, &asked)
            });
            // All were asked, and one is late by now.
            wait(|| connection.asked.lock().next == 4 && connection.asked.lock().waiters.len() == 3);
            peer.abandon(|group| group == 7);
            wait(|| connection.asked.lock().waiters.len() == 1);
            peer.tell(b"x");
            asking.join().unwrap()
        });
        let mut answers = answers.into_iter();
        assert_eq!(kind(answers.next().unwrap()), Some(NoAnswerKind::Late));
        assert_eq!(kind(answers.next().unwrap()), Some(NoAnswerKind::Elsewhere));
        assert_eq!(kind(answers.next().unwrap()), Some(NoAnswerKind::Elsewhere));
        assert!(answers.next().unwrap().is_some_and(|answer| answer.is_ok()));
        peer.close();
        thread.join().unwrap();
    }

    fn wait(condition: impl Fn() -> bool) {
        while !condition() {
            thread::yield_now();
        }
    }

    #[test]
    fn nobody_waits_for_a_node_that_reads_nothing_and_it_gets_everything_when_it_does() {
        let (go_on, goes_on) = bounded::<usize>(0);
        let (peer, thread) = node(TAKEN, move |stream| {
            for _ in 0..goes_on.recv().unwrap() {
                let (number, key) = asked(stream);
                stream.write_all(&found(number, &key)).unwrap();
            }
            let _ = stream.read(&mut [0]);
        });
        let connection = connected(&peer);
        let (told, answers) = crossbeam_channel::unbounded();
        let key = vec![b'k'; 30_000];
        let mut count = 0;
        // Until the system takes no more of it; then this thread is still not held up.
        while connection.outbox.waiting() < 5 * key.len() {
            let told = told.clone();
            let tell = |told: Sender<Answer>, answer| told.send(answer).unwrap();
            assert!(connection.ask_and(1, long(), question(&key), (told, tell)).is_ok());
            count += 1;
        }
        go_on.send(count).unwrap();
        for _ in 0..count {
            let frame = answers.recv().unwrap().unwrap();
            assert!(
                matches!(Frame::decode(&frame), Ok(Frame::Answer(_, Said::Found(None, _, value))) if value == key)
            );
        }
        peer.close();
        thread.join().unwrap();
    }

    #[test]
    fn half_an_answer_is_silence() {
        let (sender, ended) = bounded::<()>(0);
        let (peer, thread) = node(TAKEN, move |stream| {
            let (number, key) = asked(stream);
            let answer = found(number, &key);
            stream.write_all(&answer[..answer.len() - 1]).unwrap();
            let _ = ended.recv();
        });
        let connection = connected(&peer);
        // It listens no more, so it is not alive.
        let answer = connection.ask(1, long(), question(b"a"));
        assert_eq!(kind(answer), Some(NoAnswerKind::Silent));
        drop(sender);
        thread.join().unwrap();
    }

    #[test]
    fn a_node_that_does_not_offer_it_is_not_asked_for_it_again_at_once() {
        let (peer, thread) = node("HTTP/1.1 404 Not Found\r\n\r\n", |_| ());
        assert!(peer.connection().is_none());
        thread.join().unwrap();
        loop {
            if let State::Closed(Some(again)) = &*peer.state.lock() {
                assert!(*again > now());
                break;
            }
            thread::yield_now();
        }
        assert!(peer.connection().is_none());
    }

    #[test]
    fn a_connection_of_a_follower_ends_when_nothing_was_asked_for_long_and_one_of_nodes_does_not() {
        for (purpose, ends) in [(Purpose::Relay, true), (Purpose::Nodes, false)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let connection = Arc::new(Connection::of(stream, by_address(), purpose, Form::NEWEST).unwrap());
            let has_ended = || connection.asked.lock().ended.is_some();
            let later = ticks_ms() + u64::try_from(UNUSED.as_millis()).unwrap();
            assert!(matches!(connection.look(later - 1000), Ok(false)) && !has_ended());
            assert!(matches!(connection.look(later), Ok(false)));
            assert_eq!(has_ended(), ends);
            // One that takes no more ends when nothing is under way.
            connection.retire(&broken("no more"));
            assert!(matches!(connection.look(later), Ok(false)));
            assert!(is_closed(&connection.stream));
        }
    }
}
