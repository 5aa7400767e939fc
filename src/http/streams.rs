//! Connections that another node, or a follower, takes out of the hands of HTTP, for as long as both are there: each has a thread of its own. Here is what all have in
//! common, and those on which messages of groups come, one after the other.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tiny_http::{HTTPVersion, Method, ReadWrite, Response};

use super::answer::Answer;
use super::conversation::{Answers, Conversation};
use super::dispatch::{Arrival, Job};
use super::framing::Framing;
use super::node_handlers::{check_sender, header, read_messages};
use super::routes::Route;
use super::sockets::Socket;
use crate::error::Error;
use crate::model::address::Address;
use crate::model::format;
use crate::node::state::Node;
use crate::threads;
use crate::wire::frames::Form;
use crate::wire::{self, relayed};

/// So many such connections of each protocol of nodes at most; further ones are refused. As many nodes a view may have, and each has two for messages.
const MOST: usize = 2048;
/// The same of followers. Anybody may be one, and each has two threads.
const MOST_FOLLOWERS: usize = 128;
/// A frame of messages is no longer than this, in bytes; a connection that announces a longer one ends.
const LONGEST_FRAME: usize = 128 << 20;

/// How many there are, by protocol.
static STREAMS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// One of them.
pub struct Slot(Protocol);

impl Slot {
    /// A place for a connection that a request asks for.
    ///
    /// # Errors
    /// [`Error::Forbidden`] or [`Error::Overloaded`].
    pub fn take(node: &Node, job: &Job, protocol: Protocol) -> Result<Self, Error> {
        let most = if protocol == Protocol::Relay {
            MOST_FOLLOWERS
        } else {
            check_sender(node, &job.arrival.request, protocol.route())?;
            MOST
        };
        let slot = Self(protocol);
        if STREAMS[protocol as usize].fetch_add(1, Ordering::Relaxed) >= most {
            return Err(Error::Overloaded("Too many others have such connections already".to_owned()));
        }
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        STREAMS[self.0 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a follower has such a connection.
pub fn has_followers() -> bool {
    STREAMS[Protocol::Relay as usize].load(Ordering::Relaxed) > 0
}

/// What comes on such a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Messages of groups.
    Messages,
    /// Requests about keys.
    Requests,
    /// The same of a follower's clients.
    Relay,
}

impl Protocol {
    /// The one that a request asks for.
    pub fn asked_for(job: &Job) -> Option<Self> {
        let request = &job.arrival.request;
        // tiny_http keeps the connection for this request by these two only; otherwise the next one on it would wait for the end of this one, with its worker.
        let is_kept = header(request, "Connection")
            .is_some_and(|said| said.to_ascii_lowercase().contains("upgrade"))
            && *request.http_version() >= HTTPVersion(1, 1);
        if *request.method() != Method::Get || job.arrival.framing != Framing::Empty || !is_kept {
            return None;
        }
        let protocol = match job.arrival.path() {
            wire::RAFT => Self::Messages,
            wire::REQUESTS => Self::Requests,
            wire::RELAY => Self::Relay,
            _ => return None,
        };
        let asked = header(request, "Upgrade")?;
        protocol.names().contains(&asked.as_str()).then_some(protocol)
    }

    /// Its names in the header `Upgrade`, one for each form of its frames.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &[wire::MESSAGES],
            Self::Requests => {
                const {
                    &[
                        Form::Room.protocol(),
                        Form::Batches.protocol(),
                        Form::Ttl.protocol(),
                        Form::Types.protocol(),
                        Form::Conditions.protocol(),
                        Form::First.protocol(),
                    ]
                }
            }
            Self::Relay => &[relayed::PROTOCOL],
        }
    }

    /// The route that it is asked for by.
    pub fn route(self) -> Route {
        match self {
            Self::Messages => Route::NodeRaft,
            Self::Requests => Route::NodeRequests,
            Self::Relay => Route::Relay,
        }
    }
}

/// A request that is given back, with the answer to it.
pub type Refused = (Box<Job>, Box<Answer>);

/// Refuses a request, and ends its connection.
pub fn refuse(job: Box<Job>, error: &Error) -> Refused {
    let answer = Answer { close: true, ..Answer::error(error, &Method::Get, "") };
    (job, Box::new(answer))
}

/// A connection that is about to be taken, to be read and written by several threads.
pub struct Prepared {
    slot: Slot,
    job: Box<Job>,
    socket: Socket,
}

/// Finds a place for a connection that a request asks for, and its socket.
pub fn prepare(node: &Node, job: Box<Job>, protocol: Protocol, port: u16) -> Result<Prepared, Refused> {
    let slot = match Slot::take(node, &job, protocol) {
        Ok(slot) => slot,
        Err(error) => return Err(refuse(job, &error)),
    };
    let Some(socket) = Socket::of(port, job.ticket.client()) else {
        let reason = "The connection is not found among the sockets of the process".to_owned();
        return Err(refuse(job, &Error::Overloaded(reason)));
    };
    Ok(Prepared { slot, job, socket })
}

impl Prepared {
    /// Takes it, and has it answered on a thread of this name.
    pub fn answer<A: Answers>(self, thread: &str, begin: impl FnOnce(Socket) -> Arc<Conversation<A>>) {
        let Self { slot, job, socket } = self;
        let client = job.ticket.client();
        let conversation = begin(socket);
        take(slot, job, format!("{thread}-{client}"), move |_| conversation.run(client));
    }
}

/// Takes a connection out of the hands of HTTP, and runs what is to be done with it on a thread of its own.
fn take(slot: Slot, job: Box<Job>, thread: String, run: impl FnOnce(&mut dyn ReadWrite) + Send + 'static) {
    let run = move || {
        let Job { arrival: Arrival { request, generation, .. }, ticket, .. } = *job;
        let asked = header(&request, "Upgrade").unwrap_or_default();
        let mut stream = request.upgrade(&asked, Response::empty(101));
        // Nothing else comes on this connection, and nobody waits for its end.
        drop(ticket);
        if catch_unwind(AssertUnwindSafe(|| run(&mut *stream))).is_err() {
            log::error!("what another node has sent could not be handled: its connection is closed");
        }
        drop(stream);
        drop(generation);
        drop(slot);
    };
    if let Err(error) = threads::spawn(thread, run) {
        log::error!("what another node sends cannot be read: {error}");
    }
}

/// Takes a connection for messages of groups.
pub fn take_messages(node: &Arc<Node>, job: Box<Job>) -> Result<(), Refused> {
    let from = header(&job.arrival.request, wire::FROM_HEADER).and_then(|from| from.parse::<Address>().ok());
    let Some(from) = from else {
        return Err(refuse(job, &Error::BadRequest(format!("{} is missing", wire::FROM_HEADER))));
    };
    let format = header(&job.arrival.request, wire::FORMAT_HEADER).and_then(|format| format.parse().ok());
    let format = format.unwrap_or(format::FIRST);
    let slot = match Slot::take(node, &job, Protocol::Messages) {
        Ok(slot) => slot,
        Err(error) => return Err(refuse(job, &error)),
    };
    let node = Arc::clone(node);
    take(slot, job, format!("raft-from-{from}"), move |stream| {
        if let Err(error) = read_frames(&node, (&from, format), stream) {
            log::debug!("no more messages from {from}: {error}");
        }
    });
    Ok(())
}

fn read_frames(node: &Node, (from, format): (&Address, u32), stream: &mut dyn ReadWrite) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST_FRAME {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        // The memory grows with what really comes.
        let mut frame = Vec::new();
        if Read::take(&mut *stream, length as u64).read_to_end(&mut frame)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !frame.is_empty() {
            let envelopes = read_messages(&frame).map_err(io::Error::other)?;
            node.groups.receive(from.clone(), Some(format), envelopes);
        }
    }
}
