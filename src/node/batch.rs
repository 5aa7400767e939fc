//! Many operations on keys at once. Each stands for itself: it has its own condition, outcome and error, and those of one key keep their order.
//!
//! They are done in rounds. In each round every shard is asked for the next part of what is open: what only reads by one confirmed read, what writes by one entry of its log,
//! and what another node has to do by one request to that node. Of one key only operations of one kind go along in a round, so no read comes before a write that it follows. What was not
//! done, since its key has moved or another replica leads, is asked again in the next round under the same id.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::batch_parts::{InLog, Task};
use super::keys::{FIRST_PAUSE, LONGEST_PAUSE, NotServed, Outcome, Reply, Request, SoFar, Whom};
use super::passing::Passed;
use super::state::{Node, Serving};
use crate::clock::Deadline;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::condition::Condition;
use crate::model::hash::KeyHash;
use crate::model::shard::{Done, Operation, RequestId};
use crate::model::ttl::Ttl;
use crate::model::view;
use crate::peers::no_answer::NoAnswer;
use crate::wire::Addressed;

/// Writes of one round to one shard have so many bytes together, or are one.
const PART_BYTES: usize = 512 << 10;
/// What a write has beyond key, value and condition, in bytes, about.
const AROUND: usize = 64;
/// Values of so many bytes are read in one round from this node's shards, and from each other node; the last one may be beyond.
const ROOM: usize = 1 << 20;
/// While values of so many bytes wait for those before them, no more are read, but for the one that all wait for.
const MOST_HELD: usize = 8 << 20;

/// One operation.
#[derive(Debug, Clone)]
pub struct Item {
    /// The key.
    pub key: Box<[u8]>,
    /// What is to be done.
    pub action: ItemAction,
    /// What has to be there.
    pub condition: Option<Box<Condition>>,
    /// For how long what is written lives.
    pub ttl: Option<Ttl>,
    /// The id that the client has given it.
    pub named: Option<RequestId>,
}

/// What is to be done with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemAction {
    /// Read it.
    Get,
    /// Insert or replace it; the value as [`value`](crate::model::value) stores it.
    Put(Bytes),
    /// Delete it.
    Delete,
    /// Let it live for another time.
    Touch,
}

impl Item {
    /// What is to be done.
    pub fn operation(&self) -> Operation<'_> {
        let operation = match &self.action {
            ItemAction::Get => Operation::GET,
            ItemAction::Put(value) => Operation::put(value),
            ItemAction::Delete => Operation::DELETE,
            ItemAction::Touch => Operation::TOUCH,
        };
        operation.under(self.condition.as_deref()).living(self.ttl)
    }

    /// How much room it takes in an entry of a log, in bytes, about.
    fn length(&self) -> usize {
        let value = self.operation().value().map_or(0, <[u8]>::len);
        let condition = if self.condition.is_some() { AROUND } else { 0 };
        AROUND + self.key.len() + value + condition
    }
}

/// Operations that are done together, and what came of them so far.
pub struct Batch {
    entries: Vec<Entry>,
    deadline: Deadline,
    /// The first that is not taken, and the first that has not ended.
    next: usize,
    first: usize,
    /// The bytes of values that were read and are not taken.
    held: usize,
    pause: Duration,
    was_sent_on: bool,
    has_begun: bool,
}

struct Entry {
    item: Option<Item>,
    /// The id by which it goes on, once it has one.
    passed: OnceCell<Passed>,
    so_far: SoFar,
    was_asked: bool,
    end: Option<Result<Outcome, Error>>,
}

impl Entry {
    fn new(item: Result<Item, Error>) -> Self {
        let (item, end) = match item {
            Ok(item) => (Some(item), None),
            Err(error) => (None, Some(Err(error))),
        };
        let passed = item.as_ref().and_then(|item| item.named).map(Passed::named);
        let passed = passed.map_or_else(OnceCell::new, OnceCell::from);
        Self { item, passed, so_far: SoFar::default(), was_asked: false, end }
    }

    /// The operation, where it has not ended.
    fn open(&self) -> Option<&Item> {
        self.item.as_ref().filter(|_| self.end.is_none())
    }

    fn id(&self) -> Option<RequestId> {
        self.passed.get().map(|passed| passed.request)
    }

    /// Nobody will ask for it again.
    fn end(&mut self, end: Result<Outcome, Error>) {
        // Its id stays known, and its number ends.
        self.passed = self.id().map_or_else(OnceCell::new, |id| Passed::named(id).into());
        self.end = Some(end);
    }

    fn end_in_vain(&mut self) {
        let Some(item) = self.item.as_ref() else { return };
        let error = if self.was_asked {
            self.so_far.in_vain(item.operation())
        } else {
            let reason = "the time for the batch was over before this was begun with".to_owned();
            Error::Unavailable { reason, applied: Applied::No }
        };
        self.end(Err(error));
    }
}

impl Batch {
    /// Operations in their order, all of which have to be done by a deadline; what cannot be read of them has failed already.
    pub fn new(items: impl Iterator<Item = Result<Item, Error>>, deadline: Deadline) -> Self {
        let entries = items.map(Entry::new).collect();
        let mut batch = Self {
            entries,
            deadline,
            next: 0,
            first: 0,
            held: 0,
            pause: FIRST_PAUSE,
            was_sent_on: false,
            has_begun: false,
        };
        batch.skip_ended();
        batch
    }

    /// Whether all have ended.
    pub fn has_ended(&self) -> bool {
        self.first == self.entries.len()
    }

    /// What came of the next operation in order, where it has ended and was not taken: the operation, where it could be read.
    pub fn take(&mut self) -> Option<(Option<Item>, Result<Outcome, Error>)> {
        if self.next == self.first {
            return None;
        }
        let entry = &mut self.entries[self.next];
        let end = entry.end.take()?;
        self.next += 1;
        self.held = self.held.saturating_sub(length_of(&end));
        Some((entry.item.take(), end))
    }

    /// The id that an operation has at this moment.
    #[cfg(test)]
    pub(crate) fn id(&self, at: usize) -> Option<RequestId> {
        self.entries[at].id()
    }

    fn skip_ended(&mut self) {
        let open = |entry: &Entry| entry.open().is_some();
        self.first = (self.first..self.entries.len())
            .find(|at| open(&self.entries[*at]))
            .unwrap_or(self.entries.len());
    }

    fn end_all(&mut self, end: impl Fn(&mut Entry)) {
        self.entries[self.first..].iter_mut().filter(|entry| entry.open().is_some()).for_each(end);
        self.first = self.entries.len();
    }

    fn end(&mut self, at: usize, end: Result<Outcome, Error>) {
        self.held += length_of(&end);
        self.entries[at].end(end);
    }
}

/// The bytes of a value that was read.
fn length_of(end: &Result<Outcome, Error>) -> usize {
    match end {
        Ok(Outcome { done: Done::Read(Some(value)), .. }) => value.as_bytes().len(),
        _ => 0,
    }
}

/// What one shard is asked for in one round: to read, or to write.
struct Portion<'s> {
    shard: &'s view::Shard,
    whom: Whom<'s>,
    items: Vec<(usize, KeyHash)>,
    bytes: usize,
}

/// What is asked of another node in one round.
pub struct Part<'a> {
    /// That node.
    pub to: Address,
    /// Who is asked, and from where.
    pub addressed: Addressed,
    /// Its operations, in their order.
    pub questions: Vec<Question<'a>>,
    /// It reads values of so many bytes; the last one may be beyond.
    pub room: usize,
    /// All of it is to be answered by then.
    pub deadline: Deadline,
}

/// One of them.
pub struct Question<'a> {
    /// The group of the key's shard.
    pub group: u64,
    /// The key.
    pub key: &'a [u8],
    /// What is to be done.
    pub operation: Operation<'a>,
    /// The id under which it is done once.
    pub id: Option<RequestId>,
}

/// What came of the questions of a part, in their order: nothing where nothing was done, and it is to be asked again.
pub type Replies = Vec<Option<Result<Reply, NoAnswer>>>;

/// Asks a node for one operation after the other, as one that does not know parts of batches is asked.
pub async fn ask_one_by_one(node: &Node, part: &Part<'_>) -> Replies {
    let (mut replies, mut open) = (Replies::new(), Vec::new());
    for question in &part.questions {
        // What was not done holds up what comes after it on the same key.
        if part.deadline.is_over() || open.contains(&question.key) {
            replies.push(None);
            continue;
        }
        let request = Request::new(question.key, question.operation, question.id, part.deadline);
        let reply = node.host.key(node, (&part.to, &part.addressed, question.group), &request).await;
        if !matches!(reply, Ok(Ok(_) | Err(NotServed::OtherRequest))) {
            open.push(question.key);
        }
        replies.push(Some(reply));
    }
    replies
}

impl Node {
    /// Does one round of what is open.
    pub async fn advance(&self, batch: &mut Batch) {
        if !batch.has_begun {
            batch.has_begun = true;
            for _ in &batch.entries {
                self.count_operation();
            }
            if let Err(error) = self.refuse_if_claimed() {
                return batch.end_all(|entry| entry.end(Err(error.clone())));
            }
            self.wait_for_first_round(batch.deadline).await;
        }
        if batch.deadline.is_over() {
            return batch.end_all(Entry::end_in_vain);
        }
        let serving_state = self.serving_state();
        let serving = match serving_state.serving() {
            Ok(serving) => serving,
            Err(error) => {
                let reason = error.to_string();
                return batch.end_all(|entry| {
                    let applied = entry.so_far.applied();
                    entry.end(Err(Error::Unavailable { reason: reason.clone(), applied }));
                });
            }
        };
        let replies = self.ask_portions(serving, batch, self.portions(serving, batch)).await;
        self.take_in(serving, batch, replies).await;
    }

    /// What is asked for in the next round.
    fn portions<'s>(&self, serving: &'s Serving, batch: &Batch) -> Vec<Portion<'s>> {
        let mut portions: Vec<Portion> = Vec::new();
        let mut places: HashMap<(u64, bool), usize> = HashMap::new();
        // Whether what goes along of a key reads; nothing where no more of it does.
        let mut kinds: HashMap<u128, Option<bool>> = HashMap::new();
        for (at, entry) in batch.entries.iter().enumerate().skip(batch.first) {
            let Some(item) = entry.open() else { continue };
            let is_read = item.operation().is_read();
            let (hash, shard) = serving.shard_of(&item.key);
            let kind = kinds.entry(hash.0).or_insert(Some(is_read));
            if *kind != Some(is_read) {
                *kind = None;
                continue;
            }
            let place = *places.entry((shard.group, is_read)).or_insert_with(|| {
                let whom = self.whom_to_ask(serving, shard, item.operation());
                portions.push(Portion { shard, whom, items: Vec::new(), bytes: 0 });
                portions.len() - 1
            });
            let portion = &mut portions[place];
            let has_room = if is_read {
                batch.held < MOST_HELD || at == batch.first
            } else {
                portion.items.is_empty() || portion.bytes + item.length() <= PART_BYTES
            };
            if has_room {
                portion.bytes += item.length();
                portion.items.push((at, hash));
            } else {
                *kind = None;
            }
        }
        portions
    }

    /// Asks for all of it at the same time, as far as that is possible: what came of it, and nothing of what was not begun with.
    async fn ask_portions(
        &self,
        serving: &Serving,
        batch: &Batch,
        portions: Vec<Portion<'_>>,
    ) -> Vec<(usize, Option<Reply>)> {
        let (mut replies, mut room) = (Vec::new(), ROOM);
        let mut in_log: Vec<InLog> = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        let mut asked: Vec<Vec<(usize, &view::Shard)>> = Vec::new();
        for Portion { shard, whom, items, .. } in portions {
            match whom {
                Whom::Nobody(not_served) => {
                    replies.extend(items.into_iter().map(|(at, _)| (at, Some(Err(not_served.clone())))));
                }
                Whom::Alone(own) => {
                    let tasks = items.into_iter().map(|item| self.task_alone(serving, batch, own, item));
                    replies.extend(self.do_alone(serving, (shard, own), tasks, &mut room));
                }
                Whom::Replica(own) => {
                    let task = |item| self.task_in_log(serving, batch, own, item);
                    let tasks = items.into_iter().map(task).collect();
                    in_log.extend(self.begin_in_log(serving, (shard, own), tasks, &mut replies));
                }
                Whom::Other(to, incarnation) => {
                    let of_it = |part: &Part| part.to == to && part.addressed.incarnation == incarnation;
                    let place = parts.iter().position(of_it).unwrap_or_else(|| {
                        let addressed = serving.addressed(incarnation);
                        let (questions, deadline) = (Vec::new(), batch.deadline);
                        parts.push(Part { to: to.clone(), addressed, questions, room: ROOM, deadline });
                        asked.push(Vec::new());
                        parts.len() - 1
                    });
                    for (at, _) in items {
                        parts[place].questions.push(self.question(serving, batch, shard.group, at));
                        asked[place].push((at, shard));
                    }
                }
            }
        }
        if !parts.is_empty() {
            let told = self.host.parts(self, &parts).await;
            for ((part, asked), told) in parts.iter().zip(asked).zip(told) {
                let whom = (&part.to, part.addressed.incarnation);
                let conclude = |((at, shard), reply): ((usize, &view::Shard), Option<_>)| {
                    (at, reply.map(|reply| self.conclude_asked(serving, shard, whom, reply)))
                };
                replies.extend(asked.into_iter().zip(told).map(conclude));
            }
        }
        for begun in in_log {
            replies.extend(self.end_in_log(serving, begun, &mut room, batch.deadline).await);
        }
        replies
    }

    /// The id by which a write goes to a log, or to another node.
    fn id_of(&self, serving: &Serving, entry: &Entry, operation: Operation) -> Option<RequestId> {
        let pass = || entry.passed.get_or_init(|| self.pass(&serving.state)).request;
        (!operation.is_read()).then(pass)
    }

    fn question<'b>(&self, serving: &Serving, batch: &'b Batch, group: u64, at: usize) -> Question<'b> {
        let entry = &batch.entries[at];
        let item = entry.item.as_ref().expect("it is open");
        let operation = item.operation();
        Question {
            group,
            key: &item.key,
            operation,
            id: self.id_of(serving, entry, operation).or(entry.id()),
        }
    }

    fn task_in_log<'b>(
        &self,
        serving: &Serving,
        batch: &'b Batch,
        own: &crate::model::shard::Shard,
        (at, hash): (usize, KeyHash),
    ) -> Task<'b> {
        let (entry, task) = task(batch, (at, hash));
        let request = self.id_of(serving, entry, task.operation);
        let forwarded = request.map(|id| self.stamp(own, id, serving.state.view.epoch));
        Task { request, forwarded, ..task }
    }

    fn task_alone<'b>(
        &self,
        serving: &Serving,
        batch: &'b Batch,
        own: &crate::model::shard::Shard,
        (at, hash): (usize, KeyHash),
    ) -> Task<'b> {
        let (entry, task) = task(batch, (at, hash));
        // Another node may have done it already, before the key came here, and its record came along.
        let is_named = entry.item.as_ref().is_some_and(|item| item.named.is_some());
        if is_named || entry.so_far.is_unclear() {
            return self.task_in_log(serving, batch, own, (at, hash));
        }
        Task { request: entry.id(), ..task }
    }

    /// Takes in what came of a round, and waits for news where there is nothing else to do.
    async fn take_in(&self, serving: &Serving, batch: &mut Batch, replies: Vec<(usize, Option<Reply>)>) {
        let (deadline, known) = (batch.deadline, serving.state.version);
        let has_news = || self.state().is_some_and(|state| state.version > known) && !deadline.is_over();
        let (mut has_ended, mut is_sent_on) = (false, false);
        for (at, reply) in replies {
            let entry = &mut batch.entries[at];
            let Some(reply) = reply else { continue };
            entry.was_asked = true;
            if entry.so_far.is_refused_as_unknown(&reply)
                && matches!(entry.id(), Some(RequestId::Numbered { .. }))
            {
                entry.passed = Passed::drawn().into();
            }
            is_sent_on |= matches!(reply, Err(NotServed::NotLeader(Some(_), _)));
            let key = entry.item.as_ref().map(|item| &*item.key).unwrap_or_default();
            let has_others = || serving.is_led(key);
            if let Some(end) = entry.so_far.take(reply, has_others, has_news) {
                has_ended = true;
                batch.end(at, end);
            }
        }
        batch.skip_ended();
        if deadline.is_over() {
            batch.end_all(Entry::end_in_vain);
        }
        if has_ended || batch.has_ended() {
            batch.pause = FIRST_PAUSE;
            return;
        }
        // The first hint to another leader is followed at once.
        let was_sent_on = std::mem::replace(&mut batch.was_sent_on, is_sent_on);
        if !is_sent_on || was_sent_on {
            self.wait_for_news(known, batch.pause.min(deadline.left())).await;
            batch.pause = LONGEST_PAUSE.min(batch.pause * 2);
        }
    }
}

/// What is open of a batch, as it is to be done, without an id yet.
fn task(batch: &Batch, (at, hash): (usize, KeyHash)) -> (&Entry, Task<'_>) {
    let entry = &batch.entries[at];
    let item = entry.item.as_ref().expect("it is open");
    let task = Task { at, hash, key: &item.key, operation: item.operation(), request: None, forwarded: None };
    (entry, task)
}
