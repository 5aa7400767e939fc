//! A request about a key, from the moment that it was read and checked until it is answered: of a client, or of a node that passes one on.

use std::ops::Range;
use std::sync::Arc;

use tiny_http::Method;

use super::body::BodyBytes;
use super::routes::{Interface, Route};
use super::v1::Wanted;
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::condition::Condition;
use crate::model::shard::RequestId;
use crate::model::ttl::Ttl;
use crate::node::calls::PassedOn;
use crate::node::group_ops::{Asking, LogAnswer};
use crate::node::host;
use crate::node::keys::{self, NotServed, Operation, Outcome, Request, Told};
use crate::node::state::{Node, ServingState};

/// A checked request. It owns what it was read from.
pub struct KeyRequest {
    /// The key, decoded.
    pub key: Vec<u8>,
    /// What is to be done.
    pub kind: Kind,
    /// The body that it came with.
    pub body: BodyBytes,
    /// What has to be there.
    pub condition: Option<Box<Condition>>,
    /// For how long what is written lives.
    pub ttl: Option<Ttl>,
    /// The id under which it is done once, where it has one.
    pub id: Option<RequestId>,
    /// Any replica may answer a read.
    pub is_stale: bool,
    /// It is answered by then.
    pub deadline: Deadline,
    /// Who asks.
    pub asker: Asker,
    /// What was done about it without a worker waiting for it.
    pub progress: Progress,
}

/// What is to be done with the key.
pub enum Kind {
    /// Read it.
    Get,
    /// Store a value: this part of the body.
    Put(Range<usize>),
    /// Delete it.
    Delete,
    /// Let it live for another time.
    Touch,
}

/// Who asks, and what the answer needs of the question.
pub enum Asker {
    /// A client: the part of the body that is the causal context to give back, or an empty one.
    Client(Option<Causal>),
    /// A client of `/v1`, and the part of the value that it wants, if that is not all.
    V1(Option<Box<Wanted>>),
    /// Another node.
    Node {
        /// The state of serving under which it was found to be of this cluster.
        serving_state: Arc<ServingState>,
        /// The epoch of its view.
        epoch: u64,
        /// The format that it knows: see [`format`](crate::model::format).
        format: u32,
    },
}

impl Asker {
    fn is_client(&self) -> bool {
        matches!(self, Self::Client(_) | Self::V1(_))
    }
}

/// A causal context.
pub enum Causal {
    /// `{}`.
    Empty,
    /// This part of the body.
    Given(Range<usize>),
}

/// What was done about a request without a worker waiting for it.
pub enum Progress {
    /// Nothing yet.
    None,
    /// The log of the key's shard, or another node, was asked: this came of it.
    Told(Told),
    /// That was seen to; what is asked now is waited for.
    Waits,
    /// The same, and the node that was asked wants to be asked by HTTP.
    ByHttp,
}

/// What came of it, for whoever asks.
pub enum KeyReply {
    /// For a client.
    Client(Result<Outcome, Error>),
    /// For another node, and the format that it knows.
    Node(keys::Reply, u32),
}

impl KeyRequest {
    /// The route that it came by.
    pub fn route(&self) -> Route {
        match self.asker {
            Asker::Client(_) => Route::Key,
            Asker::V1(_) => Route::V1Key,
            Asker::Node { .. } => Route::NodeKey,
        }
    }

    /// The interface whose words it is answered in.
    pub fn interface(&self) -> Interface {
        match self.asker {
            Asker::V1(_) => Interface::V1,
            Asker::Client(_) | Asker::Node { .. } => Interface::Classic,
        }
    }

    /// The method of HTTP that asks for it.
    pub fn method(&self) -> Method {
        match self.kind {
            Kind::Get => Method::Get,
            Kind::Put(_) => Method::Put,
            Kind::Delete => Method::Delete,
            Kind::Touch => Method::Patch,
        }
    }

    fn operation(&self) -> Operation<'_> {
        let operation = match &self.kind {
            Kind::Get => Operation::GET,
            Kind::Put(value) => Operation::put(&self.body.bytes[value.clone()]),
            Kind::Delete => Operation::DELETE,
            Kind::Touch => Operation::TOUCH,
        };
        operation.under(self.condition.as_deref()).living(self.ttl)
    }

    /// Has it done for a client if that can be done at once.
    pub fn run_at_once(&self, node: &Node) -> Option<Result<Outcome, Error>> {
        node.run_at_once(&self.key, self.operation(), self.id, self.is_stale)
    }

    /// What to ask the log of the key's shard, if that can be done without a worker waiting for it.
    pub fn asking(&self, node: &Node) -> Option<Asking> {
        if self.is_stale || !matches!(self.progress, Progress::None) {
            return None;
        }
        let epoch = match self.asker {
            Asker::Client(_) | Asker::V1(_) => None,
            Asker::Node { epoch, .. } => Some(epoch),
        };
        node.asking(&self.key, self.operation(), (self.id, epoch), self.deadline)
    }

    /// The same as it can be passed on without waiting, if another node has to do it for a client and there is a connection for that.
    pub fn passed_on(&self, node: &Node) -> Option<PassedOn> {
        if self.is_stale || !self.asker.is_client() || !matches!(self.progress, Progress::None) {
            return None;
        }
        let onward = node.onward(&self.key, self.operation(), self.id)?;
        PassedOn::new(node, onward, (&self.key, self.operation(), self.deadline))
    }

    /// Notes what came of asking the log. Where another node leads, it was not asked.
    pub fn note(&mut self, told: LogAnswer) {
        self.progress = if told.is_elsewhere() { Progress::Waits } else { Progress::Told(Told::Log(told)) };
    }

    /// Notes what came of asking another node. Where that has done nothing, it is as if it had not been asked.
    pub fn note_passed_on(&mut self, node: &Node, told: Option<Told>) {
        self.progress = match told {
            None => Progress::ByHttp,
            Some(told) if told.is_elsewhere() => {
                node.note_elsewhere(&told);
                Progress::Waits
            }
            Some(told) => Progress::Told(told),
        };
    }

    /// Whether its owner has said that what it reads is too long for a frame. Nothing was done.
    pub fn is_long(&self) -> bool {
        matches!((&self.progress, &self.kind), (Progress::ByHttp, Kind::Get))
    }

    /// Whether nobody knows whether it was done: it has to be asked again, and to wait for that.
    pub fn is_unclear(&self) -> bool {
        matches!(&self.progress, Progress::Told(Told::Node(answer)) if answer.1.is_err())
    }

    /// Whether it may have been done already, and somebody has told what came of it.
    pub fn is_told(&self) -> bool {
        matches!(self.progress, Progress::Told(_))
    }

    /// The causal context that the answer is to have.
    pub fn causal(&self) -> Option<&[u8]> {
        match &self.asker {
            Asker::Client(Some(Causal::Empty)) => Some(b"{}"),
            Asker::Client(Some(Causal::Given(range))) => Some(&self.body.bytes[range.clone()]),
            Asker::Client(None) | Asker::V1(_) | Asker::Node { .. } => None,
        }
    }

    /// Has it done, unless somebody has told what came of it.
    pub fn run(&mut self, node: &Node) -> KeyReply {
        let by_http = matches!(self.progress, Progress::ByHttp);
        let told = match std::mem::replace(&mut self.progress, Progress::Waits) {
            Progress::Told(told) => Some(told),
            Progress::None | Progress::Waits | Progress::ByHttp => None,
        };
        match &self.asker {
            Asker::Client(_) | Asker::V1(_) => KeyReply::Client(self.run_here(node, told, by_http)),
            Asker::Node { serving_state, epoch, format } => {
                let told = match told {
                    Some(Told::Log(told)) => Some(told),
                    Some(Told::Node(..)) | None => None,
                };
                KeyReply::Node(self.run_forwarded(node, (serving_state, *epoch), told), *format)
            }
        }
    }

    fn run_here(&self, node: &Node, told: Option<Told>, by_http: bool) -> Result<Outcome, Error> {
        if self.is_stale {
            return host::run(node.run_stale(&self.key, self.operation(), self.deadline));
        }
        let mut request = Request::new(&self.key, self.operation(), self.id, self.deadline).by_http(by_http);
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
            return node.read_own(&self.key, self.operation()).ok_or(NotServed::Again);
        }
        let asked = (epoch, self.id);
        host::run(node.run_forwarded(serving_state, &self.key, self.operation(), asked, told, self.deadline))
    }
}
