//! The host of a simulated node: waiting lets others go on, and other nodes are reached by the simulated network.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::Shared;
use super::oracle::{Event, Write};
use super::process::Process;
use super::tasks::{pause, pause_for};
use super::watch::{WatchedMeta, WatchedShard, post};
use super::world::{Packet, STEP, here, place_of};
use crate::clock::{Deadline, now};
use crate::consensus::StateMachine;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::format;
use crate::model::meta::MetaState;
use crate::model::shard::{Action, Change, Done, Operation, RequestId, Shard};
use crate::node::ask::OrderError;
use crate::node::batch::{Item, ItemAction, Part, Question, Replies};
use crate::node::forwarded::NotMeant;
use crate::node::host::{Awaited, Host, Machine, Pending};
use crate::node::keys::{NotServed, Outcome, Reply, Request, Value};
use crate::node::state::Node;
use crate::node::transport as greetings;
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::reshard::controller::Controller;
use crate::reshard::pieces;
use crate::wire::listing::{self, Page};
use crate::wire::orders::Order;
use crate::wire::pairs::Parcel;
use crate::wire::{Addressed, Hello, Transfer};

/// A connection that is not made within so many steps is not made.
const CONNECTING: u64 = 100;
/// A node from which nothing comes for so many steps, and that does not answer to whether it is there, counts as down.
const SILENCE: u64 = 130;
/// Questions and news have so much time.
const QUESTION: Duration = Duration::from_millis(500);
const NEWS: Duration = Duration::from_secs(3);

/// The host of the node at a place.
pub(super) struct Simulated {
    pub(super) place: usize,
}

impl Host for Simulated {
    fn wait<'a>(&'a self, awaited: &'a dyn Awaited, deadline: Deadline) -> Pending<'a, ()> {
        Box::pin(async move {
            pause().await;
            let is_over = || awaited.is_there() || deadline.is_over();
            poll_fn(|_| if is_over() { Poll::Ready(()) } else { Poll::Pending }).await;
        })
    }

    fn hello<'a>(&'a self, node: &'a Node, of: &'a Address) -> Pending<'a, Result<Hello, NoAnswer>> {
        let work = |controller: Rc<Controller>| async move { controller.node.hello(None) };
        Box::pin(self.ask(node, of, Deadline::after(now(), QUESTION), work))
    }

    fn order<'a>(
        &'a self,
        node: &'a Node,
        (to, addressed): (&'a Address, &'a Addressed),
        order: &'a Order,
        deadline: Deadline,
    ) -> Pending<'a, Result<serde_json::Value, OrderError>> {
        let (addressed, order) = (addressed.clone(), order.clone());
        Box::pin(async move {
            let work = |controller: Rc<Controller>| async move {
                controller.obey_sender(Some(&addressed), &order).await
            };
            let answer = self.exchange(node, to, deadline, work).await;
            answer.map_err(|error| OrderError::unanswered(&error)).flatten().map_err(|error| error.of(to))
        })
    }

    fn transfer<'a>(
        &'a self,
        node: &'a Node,
        (from, addressed): (&'a Address, &'a Addressed),
        transfer: &'a Transfer,
        deadline: Deadline,
    ) -> Pending<'a, Result<Parcel, OrderError>> {
        let (addressed, transfer) = (addressed.clone(), transfer.clone());
        Box::pin(async move {
            let work = |controller: Rc<Controller>| async move {
                pieces::give_sender(&controller.node, Some(&addressed), &transfer, format::CURRENT).await
            };
            let answer = self.exchange(node, from, deadline, work).await;
            answer.map_err(|error| OrderError::unanswered(&error)).flatten().map_err(|error| error.of(from))
        })
    }

    fn page<'a>(
        &'a self,
        node: &'a Node,
        (to, addressed): (&'a Address, &'a Addressed),
        question: &'a listing::Question,
        deadline: Deadline,
    ) -> Pending<'a, Result<Page, OrderError>> {
        let (addressed, question) = (addressed.clone(), question.clone());
        Box::pin(async move {
            let work = move |controller: Rc<Controller>| async move {
                controller.node.page_for(Some(&addressed), &question, deadline).await
            };
            let answer = self.exchange(node, to, deadline, work).await;
            answer.map_err(|error| OrderError::unanswered(&error)).flatten().map_err(|error| error.of(to))
        })
    }

    fn tell<'a>(
        &'a self,
        node: &'a Node,
        to: &'a Address,
        state: &'a Arc<MetaState>,
    ) -> Pending<'a, Result<Vec<u64>, String>> {
        let state = Arc::clone(state);
        Box::pin(async move {
            let work = |controller: Rc<Controller>| async move { controller.node.take_news(&state).await };
            let answer = self.ask(node, to, Deadline::after(now(), NEWS), work).await;
            answer.map_err(|error| error.reason).flatten()
        })
    }

    fn key<'a>(
        &'a self,
        node: &'a Node,
        (to, addressed, _): (&'a Address, &'a Addressed, u64),
        request: &'a Request<'a>,
    ) -> Pending<'a, Result<Reply, NoAnswer>> {
        let (addressed, key, id) = (addressed.clone(), request.key.to_vec(), request.id());
        let deadline = request.deadline;
        let change = Change::of(&request.operation);
        let (condition, ttl) = (request.operation.condition.cloned(), request.operation.ttl);
        Box::pin(async move {
            let work = move |controller: Rc<Controller>| async move {
                let action = change.as_ref().map_or(Action::Get, Change::action);
                let operation = Operation { action, condition: condition.as_ref(), ttl };
                serve(&controller.node, &addressed, &key, operation, id, deadline).await
            };
            self.exchange(node, to, deadline, work).await
        })
    }

    fn parts<'a>(&'a self, node: &'a Node, parts: &'a [Part<'a>]) -> Pending<'a, Vec<Replies>> {
        Box::pin(async move {
            let mut replies = Vec::new();
            for part in parts {
                let addressed = part.addressed.clone();
                let (room, deadline, count) = (part.room, part.deadline, part.questions.len());
                let questions: Vec<_> = part.questions.iter().map(owned).collect();
                let work = move |controller: Rc<Controller>| async move {
                    serve_part(&controller.node, &addressed, &questions, room, deadline).await
                };
                replies.push(match self.exchange(node, &part.to, deadline, work).await {
                    Ok(told) => told.into_iter().map(|reply| reply.map(Ok)).collect(),
                    Err(error) => (0..count).map(|_| Some(Err(error.clone()))).collect(),
                });
            }
            replies
        })
    }

    fn greet(&self, node: &Arc<Node>, to: &Address) {
        let (node, to) = (Arc::clone(node), to.clone());
        // One greeting at a time goes to each node, as each has one thread for them.
        if here().nodes[self.place].begin_greeting(&to) {
            let world = here();
            let place = self.place;
            world.clone().spawn_at(place, async move {
                greetings::greet(&node, &to).await;
                world.nodes[place].end_greeting(&to);
            });
        }
    }

    fn machine(&self, machine: Box<dyn StateMachine>, of: Machine<'_>) -> Box<dyn StateMachine> {
        let world = here();
        let told = &world.nodes[self.place].told;
        match of {
            Machine::Meta(group) => Box::new(WatchedMeta::new(machine, group, told)),
            Machine::Shard(shard) => Box::new(WatchedShard::new(machine, shard, told)),
        }
    }

    fn done(&self, shard: &Shard, key: &[u8], operation: Operation, request: Option<RequestId>, done: &Done) {
        let world = here();
        world.touched.set(true);
        if world.nodes[self.place].node().is_none_or(|node| !world.is_ours(&node)) {
            return;
        }
        let Done::Wrote(written) = done else { return };
        let request = request.unwrap_or_else(|| {
            let id = RequestId::from(world.number());
            world.without_id.set(Some(id));
            id
        });
        let write = Write {
            key: key.to_vec(),
            change: Change::of(&operation).expect("it has written"),
            condition: operation.condition.cloned(),
            ttl: operation.ttl,
            request,
            written: *written,
        };
        let event = Event::Alone { group: shard.group(), write, post: post(shard, key) };
        let verdict = world.oracle.borrow_mut().judge(event);
        world.judge(verdict);
    }

    fn ended(&self, _: &Shard, keys: &[Box<[u8]>]) {
        let world = here();
        world.touched.set(true);
        if world.nodes[self.place].node().is_none_or(|node| !world.is_ours(&node)) {
            return;
        }
        let verdict = world.oracle.borrow_mut().judge(Event::Ended(keys.to_vec()));
        world.judge(verdict);
    }
}

impl Simulated {
    /// As the program's: a node that is known to be down is not asked.
    async fn exchange<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        node: &Node,
        to: &Address,
        deadline: Deadline,
        work: impl FnOnce(Rc<Controller>) -> F + 'static,
    ) -> Result<T, NoAnswer> {
        if node.peers.at(to).is_down() {
            pause().await;
            return Err(no_answer(NoAnswerKind::NotSent, "is down"));
        }
        self.ask(node, to, deadline, work).await
    }

    async fn ask<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        node: &Node,
        to: &Address,
        deadline: Deadline,
        work: impl FnOnce(Rc<Controller>) -> F + 'static,
    ) -> Result<T, NoAnswer> {
        let answer = self.call(place_of(to), deadline, work).await;
        node.peers.at(to).note(answer.as_ref().err());
        answer
    }

    /// Has something done at a node, by a message there and one back.
    async fn call<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        to: usize,
        deadline: Deadline,
        work: impl FnOnce(Rc<Controller>) -> F + 'static,
    ) -> Result<T, NoAnswer> {
        let (world, from) = (here(), self.place);
        let life = world.nodes[to].life.get();
        if life == 0 {
            pause().await;
            return Err(no_answer(NoAnswerKind::NotSent, "nobody listens there"));
        }
        if world.network.borrow().cut.contains(&(from, to))
            || world.network.borrow().cut.contains(&(to, from))
        {
            let left = u64::try_from(deadline.left().as_millis() / STEP.as_millis()).unwrap_or(u64::MAX);
            pause_for(CONNECTING.min(left)).await;
            let kind = if left < CONNECTING { NoAnswerKind::NoTime } else { NoAnswerKind::NotSent };
            return Err(no_answer(kind, "not connected in time"));
        }
        let answer = Rc::new(RefCell::new(None));
        let (slot, work) = (Rc::clone(&answer), RefCell::new(Some(work)));
        let there = Rc::clone(&world);
        let arrive = move || {
            let (Some(work), Some(controller)) = (work.take(), there.nodes[to].controller()) else { return };
            let (world, slot, work) = (Rc::clone(&there), Rc::clone(&slot), work(controller));
            there.spawn_at(to, async move {
                let done = RefCell::new(Some(work.await));
                let back = move || {
                    if let Some(done) = done.take() {
                        slot.borrow_mut().get_or_insert(done);
                    }
                };
                world.send_once(to, from, Packet::Call(Rc::new(back)));
            });
        };
        world.send_once(from, to, Packet::Call(Rc::new(arrive)));
        await_answer(&world, (from, to, life), deadline, || answer.borrow_mut().take()).await
    }
}

async fn await_answer<T>(
    world: &Shared,
    (from, to, life): (usize, usize, u64),
    deadline: Deadline,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, NoAnswer> {
    let since = world.now.get();
    loop {
        pause().await;
        if let Some(answer) = look() {
            return Ok(answer);
        }
        if world.nodes[to].life.get() != life {
            return Err(no_answer(NoAnswerKind::Broken, "the connection broke"));
        }
        if deadline.is_over() {
            return Err(no_answer(NoAnswerKind::Late, "too late"));
        }
        let is_cut = world.network.borrow().cut.contains(&(from, to));
        let is_silent = is_cut || world.nodes[to].is_paused(world.now.get());
        if world.now.get() - since >= SILENCE && is_silent {
            return Err(no_answer(NoAnswerKind::Silent, "silent"));
        }
    }
}

fn no_answer(kind: NoAnswerKind, reason: &str) -> NoAnswer {
    NoAnswer { kind, reason: reason.to_owned() }
}

/// What a node answers that another one passes an operation on to.
async fn serve(
    node: &Node,
    addressed: &Addressed,
    key: &[u8],
    operation: Operation<'_>,
    request: Option<RequestId>,
    deadline: Deadline,
) -> Reply {
    let serving_state = node.check_addressed(Some(addressed)).map_err(not_served)?;
    let asked = (addressed.epoch, request);
    node.run_forwarded(&serving_state, key, operation, asked, None, deadline).await.map(detached)
}

/// A question of a part as it is on its way.
fn owned(question: &Question<'_>) -> (Item, u64) {
    let Question { group, key, operation, id } = question;
    let action = match operation.action {
        Action::Get => ItemAction::Get,
        Action::Put(value) => ItemAction::Put(value.to_vec().into()),
        Action::Delete => ItemAction::Delete,
        Action::Touch => ItemAction::Touch,
    };
    let condition = operation.condition.cloned().map(Box::new);
    (Item { key: (*key).into(), action, condition, ttl: operation.ttl, named: *id }, *group)
}

/// What a node answers that another one passes a part of a batch on to.
async fn serve_part(
    node: &Node,
    addressed: &Addressed,
    questions: &[(Item, u64)],
    room: usize,
    deadline: Deadline,
) -> Vec<Option<Reply>> {
    let mut replies: Vec<Option<Reply>> = questions.iter().map(|_| None).collect();
    let serving_state = match node.check_addressed(Some(addressed)).map_err(not_served) {
        Ok(serving_state) => serving_state,
        Err(error) => return questions.iter().map(|_| Some(Err(error.clone()))).collect(),
    };
    let mut asked = Vec::new();
    for (at, (item, group)) in questions.iter().enumerate() {
        let (operation, id) = (item.operation(), item.named);
        asked.push((at, Question { group: *group, key: &item.key, operation, id }));
    }
    let told = node.run_forwarded_part(&serving_state, addressed.epoch, asked, (room, true), deadline).await;
    for (at, reply) in told {
        replies[at] = reply.map(|reply| reply.map(detached));
    }
    replies
}

fn not_served(error: NotMeant) -> NotServed {
    match error {
        NotMeant::Gone(_) => NotServed::Gone,
        NotMeant::NotYet(_) => NotServed::Again,
        NotMeant::Unclear(reason) => NotServed::Failed(Error::Unavailable { reason, applied: Applied::No }),
    }
}

/// An outcome as another node gets it.
fn detached(outcome: Outcome) -> Outcome {
    let done = match outcome.done {
        Done::Read(Some(value)) => {
            let (version, left) = (value.version(), value.left());
            Done::Read(Some(Value::Received {
                bytes: value.as_bytes().to_vec(),
                version,
                left,
                permit: None,
            }))
        }
        done => done,
    };
    Outcome { done, ..outcome }
}

impl Process {
    fn begin_greeting(&self, to: &Address) -> bool {
        self.greeting.borrow_mut().insert(to.clone())
    }

    fn end_greeting(&self, to: &Address) {
        self.greeting.borrow_mut().remove(to);
    }
}
