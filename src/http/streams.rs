//! Connections on which another node sends messages of groups, one after the other, for as long as both are there.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tiny_http::{Method, Response};

use super::answer::Answer;
use super::dispatch::{Arrival, Job};
use super::node_handlers::{check_sender, header, read_messages};
use super::routes::Route;
use crate::error::Error;
use crate::model::address::Address;
use crate::node::state::Node;
use crate::{threads, wire};

/// So many such connections at most, each with a thread of its own; further ones are refused.
const MOST: usize = 512;
/// A frame is no longer than this, in bytes; a connection that announces a longer one ends.
const LONGEST_FRAME: usize = 128 << 20;

/// How many there are.
static STREAMS: AtomicUsize = AtomicUsize::new(0);

/// Whether a request asks for such a connection.
pub fn is_asked_for(job: &Job) -> bool {
    let request = &job.arrival.request;
    *request.method() == Method::Get
        && job.arrival.path() == wire::RAFT
        && header(request, "Upgrade").as_deref() == Some(wire::MESSAGES)
}

/// Takes the connection out of the hands of HTTP; gives the request back with an error where that is not to be.
pub fn take(node: &Arc<Node>, job: Box<Job>) -> Result<(), (Box<Job>, Box<Answer>)> {
    let refused = |job: Box<Job>, error: &Error| {
        let answer = Answer { close: true, ..Answer::error(error, &Method::Get, "") };
        Err((job, Box::new(answer)))
    };
    let request = &job.arrival.request;
    if let Err(error) = check_sender(node, request, Route::NodeRaft) {
        return refused(job, &error);
    }
    let from = header(request, wire::FROM_HEADER).and_then(|from| from.parse::<Address>().ok());
    let Some(from) = from else {
        return refused(job, &Error::BadRequest(format!("{} is missing", wire::FROM_HEADER)));
    };
    if STREAMS.fetch_add(1, Ordering::Relaxed) >= MOST {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
        return refused(job, &Error::Overloaded("Too many nodes send messages already".to_owned()));
    }
    let node = Arc::clone(node);
    let name = format!("raft-from-{from}");
    let run = move || {
        let Job { arrival: Arrival { request, generation, .. }, ticket, .. } = *job;
        let mut stream = request.upgrade(wire::MESSAGES, Response::empty(101));
        // Nothing else comes on this connection, and nobody waits for its end.
        drop(ticket);
        if let Err(error) = read_frames(&node, &from, &mut stream) {
            log::debug!("no more messages from {from}: {error}");
        }
        drop(stream);
        drop(generation);
        STREAMS.fetch_sub(1, Ordering::Relaxed);
    };
    if let Err(error) = threads::spawn(name, run) {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
        log::error!("messages of another node cannot be read: {error}");
    }
    Ok(())
}

fn read_frames(node: &Node, from: &Address, stream: &mut dyn Read) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST_FRAME {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        // The memory grows with what really comes.
        let mut frame = Vec::new();
        if stream.take(length as u64).read_to_end(&mut frame)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !frame.is_empty() {
            let envelopes = read_messages(&frame).map_err(io::Error::other)?;
            node.groups.receive(from.clone(), envelopes);
        }
    }
}
