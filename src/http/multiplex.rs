//! Connections on which another node passes many requests about keys on at one time. What has to wait for the log of a shard is answered when that has told. Nobody here
//! ever waits for another node.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::conversation::{Answers, Conversation, Shared, Unattended, Waits};
use super::dispatch::Job;
use super::lane_id::LaneId;
use super::node_handlers;
use super::routes::Route;
use super::streams::{self, Protocol, Refused};
use crate::clock::now;
use crate::error::Error;
use crate::failpoints::failpoint;
use crate::model::condition::Condition;
use crate::model::shard::{Action, Operation};
use crate::node::forwarded::Begun;
use crate::node::group_ops::LogAnswer;
use crate::node::keys::{NotServed, Reply};
use crate::node::state::{Node, ServingState};
use crate::wire::frames::{self, Form, Frame, Question};

/// What such connections need of the node that is asked.
#[derive(Clone)]
pub struct Multiplex {
    /// The node.
    pub node: Arc<Node>,
    /// The requests that wait for the log of a shard.
    pub in_log: Arc<Unattended>,
    /// What all connections for many questions have in common.
    pub shared: Shared,
}

/// A request that waits for the log of a shard.
struct Asked {
    number: u64,
    form: Form,
    key: Vec<u8>,
    is_read: bool,
    /// Of a read; that of a write is in the log.
    condition: Option<Condition>,
    serving_state: Arc<ServingState>,
    began: Instant,
}

/// What the log has told.
pub struct LogTold(Asked, LogAnswer, Option<Waits>);

impl Multiplex {
    /// Takes a connection; gives the request back with an error where that is not to be.
    pub fn take(&self, job: Box<Job>) -> Result<(), Refused> {
        failpoint!("requests-taken");
        streams::prepare(&self.node, job, Protocol::Requests, self.shared.port)?
            .answer("asked-by", |socket| Conversation::new(self.clone(), socket, &self.shared));
        Ok(())
    }

    /// What came of a question; nothing yet, where the log of a shard was asked.
    fn begin(
        &self,
        conversation: &Arc<Conversation<Self>>,
        (number, form): (u64, Form),
        question: &Question,
        began: Instant,
    ) -> Option<Reply> {
        let node = &self.node;
        let serving_state = match node_handlers::check_question(node, question, form) {
            Ok(serving_state) => serving_state,
            Err(not_served) => return Some(Err(not_served)),
        };
        let (key, operation) = (question.key, question.operation());
        if question.is_stale {
            return Some(node.read_own(key, operation).ok_or(NotServed::Again));
        }
        let asked = (question.addressed.epoch, question.id);
        let asking = match node.begin_forwarded(&serving_state, key, operation, asked) {
            Begun::Done(reply) => return Some(reply),
            Begun::Asks(asking) => asking,
        };
        let Some(waits) = self.in_log.enter() else {
            let reason = "Too much waits for the logs of shards: try again later".to_owned();
            return Some(Err(NotServed::Failed(Error::Overloaded(reason))));
        };
        let is_read = operation.is_read();
        let condition = operation.condition.filter(|_| is_read).cloned();
        let asked = Asked { number, form, key: key.to_vec(), is_read, condition, serving_state, began };
        let (conversation, answering) = (Arc::clone(conversation), Arc::clone(&self.shared.answering));
        node.ask_and(asking, move |answer| {
            // A node that is slow to take its answers keeps no place from others.
            drop(waits);
            conversation.tell(LogTold(asked, answer, answering.enter()));
        });
        None
    }

    /// Does a part of a batch, of which nothing has to wait.
    fn take_part(
        &self,
        conversation: &Conversation<Self>,
        (number, form): (u64, Form),
        part: &[u8],
    ) -> io::Result<()> {
        let began = now();
        let done =
            catch_unwind(AssertUnwindSafe(|| node_handlers::do_part(&self.node, part, form.format(), false)));
        let answers = if let Ok(done) = done {
            done.map_err(io::Error::other)?
        } else {
            self.shared.metrics.panics.inc();
            // What is not answered is asked again, under the same ids.
            Vec::new()
        };
        self.shared.metrics.answered(LaneId::Forwarded, Some(Route::NodeBatch), 200, now() - began);
        conversation.put(|out| frames::put_part_answer((number, form), &answers, out));
        Ok(())
    }

    fn put(
        &self,
        conversation: &Conversation<Self>,
        (number, form): (u64, Form),
        began: Instant,
        reply: Reply,
    ) {
        let status = if reply.is_ok() { 200 } else { 503 };
        self.shared.metrics.answered(LaneId::Forwarded, Some(Route::NodeKey), status, now() - began);
        conversation.put(|out| node_handlers::put_reply(reply, (number, form), frames::LONGEST_VALUE, out));
    }
}

impl Answers for Multiplex {
    type Told = LogTold;

    fn take(&self, conversation: &Arc<Conversation<Self>>, frame: &[u8]) -> io::Result<()> {
        let (number, form, question) = match Frame::decode(frame).map_err(io::Error::other)? {
            Frame::Question(number, form, question) => (number, form, question),
            Frame::Leader(leader) => {
                self.node.hear_leader(&leader);
                return Ok(());
            }
            Frame::Part(number, form, part) => return self.take_part(conversation, (number, form), part),
            Frame::Answer(..) => return Err(io::Error::other("an answer to nothing")),
        };
        let began = now();
        let work = || self.begin(conversation, (number, form), &question, began);
        let reply = catch_unwind(AssertUnwindSafe(work));
        let reply = reply.unwrap_or_else(|_| {
            self.shared.metrics.panics.inc();
            Some(Err(NotServed::Failed(Error::Internal)))
        });
        if let Some(reply) = reply {
            self.put(conversation, (number, form), began, reply);
        }
        Ok(())
    }

    /// A value is read when it is answered.
    fn own_bytes(_: &LogTold) -> usize {
        0
    }

    fn let_go(_: &mut LogTold) {}

    fn answer(&self, conversation: &Conversation<Self>, LogTold(asked, answer, _answering): LogTold) {
        let action = if asked.is_read { Action::Get } else { Action::Delete };
        let operation = Operation { action, condition: asked.condition.as_ref(), ttl: None };
        let reply = catch_unwind(AssertUnwindSafe(|| {
            self.node.conclude_forwarded(&asked.serving_state, &asked.key, operation, answer)
        }));
        let reply = reply.unwrap_or_else(|_| {
            self.shared.metrics.panics.inc();
            Err(NotServed::Failed(Error::Internal))
        });
        self.put(conversation, (asked.number, asked.form), asked.began, reply);
    }

    /// A node is known, and the kernel finds out whether it is there.
    fn idle(&self, _: &Conversation<Self>) -> io::Result<()> {
        Ok(())
    }
}
