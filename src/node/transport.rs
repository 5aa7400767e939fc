//! What is sent to other nodes without anybody waiting for it: for each of them a thread for messages, and, once they are needed, one for
//! snapshots and one for greetings. A greeting waits until the other node acts by the news, for which its groups may need messages; and a
//! piece of a snapshot takes long. So neither may hold up messages.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use parking_lot::{Mutex, RwLock};
use ureq::http::Method;

use super::calls::read_refusal;
use super::host;
use super::raft::Transport;
use super::state::Node;
use crate::clock::{Deadline, now};
use crate::consensus::{Envelope, Lane};
use crate::failpoints::failpoint;
use crate::model::address::Address;
use crate::model::binary::put_bytes;
use crate::peers::client::{Patience, Peer, complete};
use crate::peers::stream::MessageStream;
use crate::threads;
use crate::wire::{self, Hello};

/// Envelopes that wait for one node; further ones are dropped, as the network may do, too.
const QUEUE: usize = 4096;
/// While there are so many bytes of them, further ones are dropped, too.
const QUEUE_BYTES: usize = 64 << 20;
/// Envelopes go out together up to this many bytes.
const BATCH_BYTES: usize = 4 << 20;
/// A node that has not taken a message of a group after this time will not.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection for messages on which nothing was sent for this long is shown to be alive; shorter than any node's limit for silent ones.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// A node that takes no such connection is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_millis(50);

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Purpose {
    Messages,
    Entries,
    Snapshots,
    Greetings,
}

/// What a thread is to do.
enum Work {
    Message(Box<Envelope>),
    Greet,
}

impl Work {
    fn message(self) -> Option<Box<Envelope>> {
        match self {
            Self::Message(envelope) => Some(envelope),
            Self::Greet => None,
        }
    }
}

/// The threads, by the node that each writes to.
#[derive(Default)]
pub struct Posts {
    queues: Mutex<HashMap<(Address, Purpose), Queue>>,
    /// The pairs of each start of a node when it was last heard.
    counted: RwLock<HashMap<(Address, u64), u64>>,
}

struct Queue {
    work: Sender<Work>,
    /// Of the messages that wait.
    bytes: Arc<AtomicUsize>,
    /// A greeting is under way or waits: another one would say no more.
    greeting: Arc<AtomicBool>,
}

impl Posts {
    /// How many pairs a start of a node held when it was last heard.
    pub fn counted(&self, node: &Address, incarnation: u64) -> Option<u64> {
        self.counted.read().get(&(node.clone(), incarnation)).copied()
    }

    fn note(&self, hello: &Hello) {
        if let Some(pairs) = hello.pairs {
            self.counted.write().insert((hello.address.clone(), hello.incarnation), pairs);
        }
    }

    /// Ends the threads of all other nodes, and those for greetings of all that this node does not greet again and again.
    pub fn keep(&self, nodes: &BTreeSet<Address>, greeted: &BTreeSet<Address>) {
        self.counted.write().retain(|(node, _), _| nodes.contains(node));
        self.queues.lock().retain(|(node, purpose), _| match purpose {
            Purpose::Messages | Purpose::Entries | Purpose::Snapshots => nodes.contains(node),
            Purpose::Greetings => greeted.contains(node),
        });
    }
}

/// Greets a node: asks it who it is, and tells it the news if it does not know them. Where it knows more, since its meta group has succeeded that of this node, this node learns that.
pub async fn greet(node: &Node, to: &Address) {
    let known = node.state();
    let Ok(hello) = node.ask_hello(to).await else { return };
    node.posts.note(&hello);
    if let Some(known) = known.filter(|_| hello.address == *to) {
        node.note_start(&known, to, hello.incarnation);
    }
    if let Some(state) = node.state()
        && (hello.cluster.as_ref() != Some(&state.cluster) || hello.version < state.version)
        && let Err(error) = node.tell(to, &state).await
    {
        log::debug!("{to} was not told the news: {error}");
    }
    node.learn_from(to, &hello).await;
}

/// Has the thread for greetings greet a node.
pub(super) fn have_greeted(node: &Arc<Node>, to: &Address) {
    with_queue(node, to, Purpose::Greetings, |queue| {
        if !queue.greeting.swap(true, Ordering::AcqRel) && queue.work.try_send(Work::Greet).is_err() {
            queue.greeting.store(false, Ordering::Release);
        }
    });
}

/// Posts the messages of all groups.
pub struct Messages(pub Arc<Node>);

impl Transport for Messages {
    fn send(&self, to: &Address, envelope: Envelope) {
        let (group, replica) = (envelope.group, envelope.to);
        let mut lost = false;
        let purpose = match envelope.lane() {
            Lane::Message => Purpose::Messages,
            Lane::Entries => Purpose::Entries,
            Lane::Snapshot => Purpose::Snapshots,
        };
        with_queue(&self.0, to, purpose, |queue| {
            let size = envelope.size();
            if queue.bytes.load(Ordering::Relaxed) >= QUEUE_BYTES {
                lost = true;
                return;
            }
            queue.bytes.fetch_add(size, Ordering::Relaxed);
            if let Err(error) = queue.work.try_send(Work::Message(Box::new(envelope))) {
                queue.bytes.fetch_sub(size, Ordering::Relaxed);
                lost = matches!(error, TrySendError::Full(_));
            }
        });
        if lost {
            self.0.groups.unreachable(group, replica);
        }
    }
}

fn with_queue(node: &Arc<Node>, to: &Address, purpose: Purpose, use_it: impl FnOnce(&Queue)) {
    let mut queues = node.posts.queues.lock();
    let key = (to.clone(), purpose);
    if !queues.contains_key(&key) {
        let (work, receiver) = bounded(QUEUE);
        let greeting = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            purpose,
            node: Arc::clone(node),
            peer: node.peers.at(to),
            work: receiver,
            greeting: Arc::clone(&greeting),
            bytes: Arc::clone(&bytes),
        };
        let name = match purpose {
            Purpose::Messages => format!("peer-{to}"),
            Purpose::Entries => format!("entries-{to}"),
            Purpose::Snapshots => format!("snapshot-{to}"),
            Purpose::Greetings => format!("greet-{to}"),
        };
        if let Err(error) = threads::spawn(name, move || writer.run()) {
            log::error!("nothing can be sent to {to}: {error}");
            return;
        }
        queues.insert(key.clone(), Queue { work, bytes, greeting });
    }
    use_it(&queues[&key]);
}

struct Writer {
    purpose: Purpose,
    node: Arc<Node>,
    peer: Arc<Peer>,
    work: Receiver<Work>,
    greeting: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
}

impl Writer {
    fn run(self) {
        match self.purpose {
            Purpose::Messages | Purpose::Entries => self.stream(),
            Purpose::Snapshots | Purpose::Greetings => self.exchange(),
        }
    }

    /// Sends messages on a connection that is kept open, and opened anew where it breaks.
    fn stream(self) {
        let mut stream: Option<MessageStream> = None;
        let mut opened = None;
        loop {
            let first = match self.work.recv_timeout(SIGN_OF_LIFE) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let work = first.into_iter().chain(self.work.try_iter().take(QUEUE));
            let envelopes: Vec<Box<Envelope>> = work.filter_map(Work::message).collect();
            // A node that is not reached is not tried for every message.
            let may_open = opened.is_none_or(|when| now() - when >= OPEN_AGAIN);
            if stream.is_none() && !envelopes.is_empty() && may_open {
                opened = Some(now());
                let reached = MessageStream::open(&self.peer, &self.node.address);
                stream = reached
                    .inspect_err(|error| log::debug!("no messages to {}: {error}", self.peer.address()))
                    .ok();
            }
            let mut rest = &envelopes[..];
            loop {
                let (sent, after) = rest.split_at(fitting(rest));
                let mut frame = Vec::new();
                for envelope in sent {
                    envelope.encode(&mut frame);
                }
                let taken = stream.as_mut().is_some_and(|stream| stream.send(&frame).is_ok());
                self.note_gone(sent);
                if !taken {
                    stream = None;
                    self.report(sent);
                }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
    }

    /// An old message is not sent again: the group knows better what is to be sent next.
    fn report(&self, lost: &[Box<Envelope>]) {
        for envelope in lost {
            self.node.groups.unreachable(envelope.group, envelope.to);
        }
    }

    fn exchange(self) {
        while let Ok(first) = self.work.recv() {
            let mut messages = Vec::new();
            let mut greets = false;
            for work in std::iter::once(first).chain(self.work.try_iter().take(QUEUE)) {
                match work {
                    Work::Message(envelope) => messages.push(envelope),
                    Work::Greet => greets = true,
                }
            }
            self.send(&messages);
            if greets {
                // What changes from here on is worth another greeting.
                self.greeting.store(false, Ordering::Release);
                host::run(greet(&self.node, self.peer.address()));
            }
        }
    }

    fn send(&self, messages: &[Box<Envelope>]) {
        let mut rest = messages;
        while !rest.is_empty() {
            let mut body = Vec::new();
            put_bytes(&mut body, self.node.address.as_str().as_bytes());
            let mut count = 0;
            while count < rest.len() && body.len() < BATCH_BYTES {
                rest[count].encode(&mut body);
                count += 1;
            }
            let (sent, after) = rest.split_at(count);
            failpoint!("snapshot-sent");
            let request = complete(self.peer.request(Method::POST, wire::RAFT), body);
            let patience = Patience::Until(Deadline::after(now(), MESSAGE_TIMEOUT));
            let answer = request.and_then(|request| self.peer.exchange(request, patience));
            let taken =
                answer.is_ok_and(|answer| answer.status().is_success() && read_refusal(answer).is_ok());
            self.note_gone(sent);
            if !taken {
                self.report(sent);
            }
            rest = after;
        }
    }

    fn note_gone(&self, messages: &[Box<Envelope>]) {
        let size = messages.iter().map(|envelope| envelope.size()).sum();
        self.bytes.fetch_sub(size, Ordering::Relaxed);
    }
}

/// How many envelopes go into one frame.
fn fitting(envelopes: &[Box<Envelope>]) -> usize {
    let mut bytes = 0;
    let mut count = 0;
    for envelope in envelopes {
        bytes += envelope.size();
        if count > 0 && bytes > BATCH_BYTES {
            break;
        }
        count += 1;
    }
    count
}
