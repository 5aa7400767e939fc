//! A request about a key, from the moment that it was read and checked until it is answered: of a client, or of a node that passes one on.

use std::ops::Range;
use std::sync::Arc;

use tiny_http::Method;

use super::body::BodyBytes;
use super::routes::Route;
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::shard::RequestId;
use crate::node::group_ops::{Asking, LogAnswer};
use crate::node::host;
use crate::node::keys::{self, NotServed, Operation, Outcome, Request};
use crate::node::state::{Node, ServingState};

/// A checked request. It owns what it was read from, and stays with its job.
pub struct KeyRequest {
    /// The key, decoded.
    pub key: Vec<u8>,
    /// What is to be done.
    pub kind: Kind,
    /// The body that it came with.
    pub body: BodyBytes,
    /// The id under which it is done once, where it has one.
    pub id: Option<RequestId>,
    /// Any replica may answer a read.
    pub is_stale: bool,
    /// It is answered by then.
    pub deadline: Deadline,
    /// Who asks.
    pub asker: Asker,
    /// What the log of the key's shard has been asked.
    pub log: Log,
}

/// What is to be done with the key.
pub enum Kind {
    /// Read it.
    Get,
    /// Store a value: this part of the body.
    Put(Range<usize>),
    /// Delete it.
    Delete,
}

/// Who asks, and what the answer needs of the question.
pub enum Asker {
    /// A client: the part of the body that is the causal context to give back, or an empty one.
    Client(Option<Causal>),
    /// Another node.
    Node {
        /// The state of serving under which it was found to be of this cluster.
        serving_state: Arc<ServingState>,
        /// The epoch of its view.
        epoch: u64,
    },
}

/// A causal context.
pub enum Causal {
    /// `{}`.
    Empty,
    /// This part of the body.
    Given(Range<usize>),
}

/// What the log of a key's shard has been asked by a request, without a worker waiting for it.
pub enum Log {
    /// Nothing yet.
    NotAsked,
    /// This came of it.
    Answered(LogAnswer),
    /// That was seen to; what is asked now is waited for.
    Asked,
}

/// What came of it, for whoever asks.
pub enum KeyReply {
    /// For a client.
    Client(Result<Outcome, Error>),
    /// For another node.
    Node(keys::Reply),
}

impl KeyRequest {
    /// The route that it came by.
    pub fn route(&self) -> Route {
        match self.asker {
            Asker::Client(_) => Route::Key,
            Asker::Node { .. } => Route::NodeKey,
        }
    }

    /// The method of HTTP that asks for it.
    pub fn method(&self) -> Method {
        match self.kind {
            Kind::Get => Method::Get,
            Kind::Put(_) => Method::Put,
            Kind::Delete => Method::Delete,
        }
    }

    fn operation(&self) -> Operation<'_> {
        match &self.kind {
            Kind::Get => Operation::Get,
            Kind::Put(value) => Operation::Put(&self.body.bytes[value.clone()]),
            Kind::Delete => Operation::Delete,
        }
    }

    /// What to ask the log of the key's shard, if that can be done without a worker waiting for it.
    pub fn asking(&self, node: &Node) -> Option<Asking> {
        if self.is_stale || !matches!(self.log, Log::NotAsked) {
            return None;
        }
        let epoch = match self.asker {
            Asker::Client(_) => None,
            Asker::Node { epoch, .. } => Some(epoch),
        };
        node.asking(&self.key, self.operation(), (self.id, epoch), self.deadline)
    }

    /// Notes what came of asking the log. Where another node leads, it was not asked.
    pub fn note(&mut self, told: LogAnswer) {
        self.log = if told.is_elsewhere() { Log::Asked } else { Log::Answered(told) };
    }

    /// Whether it may have been done already, and the log has told what came of it.
    pub fn is_told(&self) -> bool {
        matches!(self.log, Log::Answered(_))
    }

    /// The causal context that the answer is to have.
    pub fn causal(&self) -> Option<&[u8]> {
        match &self.asker {
            Asker::Client(Some(Causal::Empty)) => Some(b"{}"),
            Asker::Client(Some(Causal::Given(range))) => Some(&self.body.bytes[range.clone()]),
            Asker::Client(None) | Asker::Node { .. } => None,
        }
    }

    /// Has it done, unless the log has told what came of it.
    pub fn run(&mut self, node: &Node) -> KeyReply {
        let told = match std::mem::replace(&mut self.log, Log::Asked) {
            Log::Answered(told) => Some(told),
            Log::NotAsked | Log::Asked => None,
        };
        match &self.asker {
            Asker::Client(_) => KeyReply::Client(self.run_here(node, told)),
            Asker::Node { serving_state, epoch } => {
                KeyReply::Node(self.run_forwarded(node, (serving_state, *epoch), told))
            }
        }
    }

    fn run_here(&self, node: &Node, told: Option<LogAnswer>) -> Result<Outcome, Error> {
        if self.is_stale {
            return host::run(node.run_stale(&self.key, self.deadline));
        }
        let mut request = Request::new(&self.key, self.operation(), self.id, self.deadline);
        // What came of it already is told, however late.
        if told.is_none() && request.is_late() {
            let reason = "the request waited too long for a worker".to_owned();
            return Err(Error::Unavailable { reason, applied: Applied::No });
        }
        host::run(node.run(&mut request, told))
    }

    fn run_forwarded(
        &self,
        node: &Node,
        (serving_state, epoch): (&ServingState, u64),
        told: Option<LogAnswer>,
    ) -> Result<Outcome, NotServed> {
        if self.is_stale {
            // Its replica may be catching up.
            return node.read_own(&self.key).ok_or(NotServed::Again);
        }
        let asked = (epoch, self.id);
        host::run(node.run_forwarded(serving_state, &self.key, self.operation(), asked, told, self.deadline))
    }
}
