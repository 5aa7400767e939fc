//! Operations of a batch on keys of one shard that this node holds a replica of, be the batch a client's or another node's.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::batch::Question;
use super::group_ops::{NotDone, command};
use super::keys::{NotServed, Outcome, Reply};
use super::passing::Passed;
use super::raft::NotProposed;
use super::state::{Node, Serving, ServingState};
use crate::clock::Deadline;
use crate::consensus::{Answer, Command, Refusal};
use crate::model::format;
use crate::model::hash::KeyHash;
use crate::model::shard::{
    Done, Forwarded, HeldUp, Operation, Refused, RequestId, Shard, ShardOutcome, encode_batch,
};
use crate::model::view;

/// One operation on a key of the shard.
pub(super) struct Task<'a> {
    /// Its number among the others.
    pub(super) at: usize,
    pub(super) hash: KeyHash,
    pub(super) key: &'a [u8],
    pub(super) operation: Operation<'a>,
    /// Its id, where it has one.
    pub(super) request: Option<RequestId>,
    /// The same as the shard takes it.
    pub(super) forwarded: Option<Forwarded>,
}

/// What the log of a shard was asked for: reads or writes.
pub(super) struct InLog<'a> {
    shard: &'a view::Shard,
    own: Arc<Shard>,
    tasks: Vec<Task<'a>>,
    answer: Receiver<Answer>,
}

/// What came of operations, by their numbers; nothing of those that nothing was done of, and that are to be asked again.
type Replied = Vec<(usize, Option<Reply>)>;

impl Node {
    /// Does operations on keys of a shard that this node keeps alone. `room` is what the values that are read may have, in bytes; the last one may be beyond.
    pub(super) fn do_alone<'a>(
        &self,
        serving: &Serving,
        (shard, own): (&view::Shard, &Arc<Shard>),
        tasks: impl Iterator<Item = Task<'a>>,
        room: &mut usize,
    ) -> Replied {
        let (mut held_up, mut full) = (HeldUp::default(), BTreeSet::new());
        let run = |task: Task| {
            let Task { at, hash, key, operation, request, forwarded } = task;
            if operation.is_read() && *room == 0 || full.contains(&hash) {
                return (at, None);
            }
            if let Err(not_done) = self.find_room(own, (hash, key), operation, forwarded.as_ref()) {
                full.insert(hash);
                return (at, Some(self.reply(serving, (shard, own), Err(not_done), operation)));
            }
            let run = || self.run_alone(own, (hash, key), operation, request, forwarded);
            let reply = self.reply(serving, (shard, own), Ok(held_up.next(hash, run)), operation);
            take_room(room, &reply);
            (at, Some(reply))
        };
        tasks.map(run).collect()
    }

    /// Asks the log of a shard, without waiting: for one read on behalf of all, or for one entry with all writes. What is refused at once is added to `replies`.
    pub(super) fn begin_in_log<'a>(
        &self,
        serving: &Serving,
        (shard, own): (&'a view::Shard, &Arc<Shard>),
        tasks: Vec<Task<'a>>,
        replies: &mut Replied,
    ) -> Option<InLog<'a>> {
        let mut full = BTreeSet::new();
        let mut has_room = |task: &Task| {
            if full.contains(&task.hash) {
                replies.push((task.at, None));
                return false;
            }
            let Task { at, hash, key, operation, forwarded, .. } = task;
            let taken = self.find_room(own, (*hash, key), *operation, forwarded.as_ref());
            let Err(not_done) = taken else { return true };
            full.insert(*hash);
            replies.push((*at, Some(self.reply(serving, (shard, own), Err(not_done), *operation))));
            false
        };
        let mut tasks = tasks;
        tasks.retain(|task| has_room(task));
        let command = match &tasks[..] {
            [] => return None,
            [Task { key, operation, forwarded: Some(forwarded), .. }] => {
                Some(command(key, *operation, forwarded))
            }
            _ => writes(&tasks),
        };
        let (sender, answer) = bounded(1);
        let ids = tasks.iter().filter_map(|task| Some(task.forwarded?.request));
        self.ask_log(own.group(), command, ids, move |told| drop(sender.try_send(told)));
        Some(InLog { shard, own: Arc::clone(own), tasks, answer })
    }

    /// Waits for what the log has to say.
    pub(super) async fn end_in_log(
        &self,
        serving: &Serving,
        begun: InLog<'_>,
        room: &mut usize,
        deadline: Deadline,
    ) -> Replied {
        let answer = self.wait_for(&begun, deadline).await;
        let is_not_known =
            matches!(answer, Answer::NotApplied(Refusal::NotKnown { .. } | Refusal::NotHeard { .. }));
        if is_not_known && begun.tasks.len() > 1 {
            return self.ask_log_one_by_one(serving, begun, deadline).await;
        }
        self.conclude_in_log(serving, &begun, answer, room)
    }

    async fn wait_for(&self, begun: &InLog<'_>, deadline: Deadline) -> Answer {
        self.host.wait(&begun.answer, deadline).await;
        begun.answer.try_recv().unwrap_or(Answer::Unknown)
    }

    fn conclude_in_log(
        &self,
        serving: &Serving,
        begun: &InLog<'_>,
        answer: Answer,
        room: &mut usize,
    ) -> Replied {
        let InLog { shard, own, tasks, .. } = begun;
        let reply = |task: &Task, done| self.reply(serving, (shard, own), done, task.operation);
        let all = |not_done: NotDone| -> Replied {
            tasks.iter().map(|task| (task.at, Some(reply(task, Err(not_done.clone()))))).collect()
        };
        match answer {
            Answer::Readable { .. } if tasks.iter().all(|task| task.operation.is_read()) => {
                let read = |task: &Task| {
                    if *room == 0 {
                        return (task.at, None);
                    }
                    let reply = reply(task, Ok(own.run(task.hash, task.key, task.operation, None)));
                    take_room(room, &reply);
                    (task.at, Some(reply))
                };
                tasks.iter().map(read).collect()
            }
            Answer::Applied { outcome, .. } => {
                let done = match ShardOutcome::decode(&outcome) {
                    Ok(ShardOutcome::Write(done)) if tasks.len() == 1 => vec![done],
                    Ok(ShardOutcome::Batch(done)) if tasks.len() == done.len() => done,
                    // It was applied; that it cannot be read is a fault of ours.
                    _ => return all(NotDone::Unknown),
                };
                let concluded = |(task, done): (&Task, Result<_, Refused>)| {
                    (task.at, Some(reply(task, Ok(done.map(Done::Wrote)))))
                };
                tasks.iter().zip(done).map(concluded).collect()
            }
            Answer::NotApplied(refusal) => all(self.not_done(own.group(), NotProposed::Refused(refusal))),
            Answer::Readable { .. } | Answer::Unknown => all(NotDone::Unknown),
        }
    }

    /// Has each write done by an entry of its own, where a replica does not know entries with several: of each key the first that is open.
    async fn ask_log_one_by_one(
        &self,
        serving: &Serving,
        InLog { shard, own, tasks, .. }: InLog<'_>,
        deadline: Deadline,
    ) -> Replied {
        let (mut replies, mut seen, mut begun) = (Vec::new(), BTreeSet::new(), Vec::new());
        for task in tasks {
            let Some(forwarded) = task.forwarded.filter(|_| seen.insert(task.hash)) else {
                replies.push((task.at, None));
                continue;
            };
            let (sender, answer) = bounded(1);
            let command = command(task.key, task.operation, &forwarded);
            let ids = [forwarded.request];
            self.ask_log(own.group(), Some(command), ids, move |told| drop(sender.try_send(told)));
            begun.push(InLog { shard, own: Arc::clone(&own), tasks: vec![task], answer });
        }
        for begun in begun {
            let answer = self.wait_for(&begun, deadline).await;
            replies.extend(self.conclude_in_log(serving, &begun, answer, &mut 0));
        }
        replies
    }

    /// Does what another node has passed on of a batch, as far as this node's shards own the keys and this node leads them. What would have to wait for a log is left
    /// to be asked again where `waits` is false.
    pub async fn run_forwarded_part(
        &self,
        serving_state: &ServingState,
        epoch: u64,
        questions: Vec<(usize, Question<'_>)>,
        (mut room, waits): (usize, bool),
        deadline: Deadline,
    ) -> Replied {
        for _ in &questions {
            self.count_operation();
        }
        let Ok(serving) = serving_state.serving() else {
            return questions.iter().map(|(at, _)| (*at, Some(Err(NotServed::Again)))).collect();
        };
        let mut replies = Replied::new();
        let mut portions: Vec<(&view::Shard, &Arc<Shard>, bool, Vec<Task>)> = Vec::new();
        for (at, question) in questions {
            let Question { key, operation, id, .. } = question;
            let (hash, shard) = serving.shard_of(key);
            let own = match self.forwarded_to(serving, shard) {
                Ok(own) => own,
                Err(not_served) => {
                    replies.push((at, Some(Err(not_served))));
                    continue;
                }
            };
            let is_read = operation.is_read();
            let request = if own.is_logged() && !is_read {
                Some(id.unwrap_or_else(|| Passed::drawn().request))
            } else {
                id
            };
            let stamped = request.filter(|_| !(own.is_logged() && is_read));
            let forwarded = stamped.map(|id| self.stamp(own, id, epoch));
            let task = Task { at, hash, key, operation, request, forwarded };
            let of_it = |(_, one, reads, _): &&mut (_, &Arc<Shard>, bool, _)| {
                Arc::ptr_eq(one, own) && *reads == is_read
            };
            match portions.iter_mut().find(of_it) {
                Some((.., tasks)) => tasks.push(task),
                None => portions.push((shard, own, is_read, vec![task])),
            }
        }
        let mut in_log = Vec::new();
        for (shard, own, _, tasks) in portions {
            if !own.is_logged() {
                replies.extend(self.do_alone(serving, (shard, own), tasks.into_iter(), &mut room));
                continue;
            }
            if !waits {
                replies.extend(tasks.into_iter().map(|task| (task.at, Some(Err(NotServed::Again)))));
                continue;
            }
            // Whoever asks takes the node that answers for the leader, and will send it writes, too.
            match self.leads(own) {
                Ok(()) => in_log.extend(self.begin_in_log(serving, (shard, own), tasks, &mut replies)),
                Err(error) => {
                    let refused = |task: Task| {
                        let reply = self.reply(serving, (shard, own), Err(error.clone()), task.operation);
                        (task.at, Some(reply))
                    };
                    replies.extend(tasks.into_iter().map(refused));
                }
            }
        }
        for begun in in_log {
            replies.extend(self.end_in_log(serving, begun, &mut room, deadline).await);
        }
        replies
    }
}

/// The command that has several writes done; nothing where they are reads.
fn writes(tasks: &[Task]) -> Option<Command> {
    let needs = tasks.iter().map(|task| task.operation.needs()).max()?.max(format::BATCHES);
    let stamped: Vec<_> =
        tasks.iter().filter_map(|task| Some((task.key, task.operation, task.forwarded.as_ref()?))).collect();
    if stamped.is_empty() {
        return None;
    }
    // Each has an id, under which it is done once, and nothing else is asked of these keys meanwhile.
    Some(Command { bytes: encode_batch(stamped.into_iter()).into(), needs, goes_ahead: true })
}

/// Takes what was read from the room for that.
fn take_room(room: &mut usize, reply: &Reply) {
    if let Ok(Outcome { done: Done::Read(Some(value)), .. }) = reply {
        *room = room.saturating_sub(value.as_bytes().len());
    }
}
