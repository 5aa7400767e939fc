//! What the simulation knows that no node knows: every log, and for every key all values that it has had, in the order in which they
//! were written.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::Tally;
use crate::model::condition::{Condition, Judgement};
use crate::model::hash::HashKey;
use crate::model::meta::{Command, End, MetaState, Void};
use crate::model::shard::{Change, RequestId, WriteOutcome, Written};
use crate::model::store::Checksum;
use crate::model::ttl::Ttl;
use crate::model::value::{Content, ContentType};

/// What a key holds after a write, with its version; nothing where that is not to be seen.
pub(super) type Post = Option<Option<(Vec<u8>, u64)>>;

/// A write, and what it did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Write {
    pub(super) key: Vec<u8>,
    pub(super) change: Change,
    pub(super) condition: Option<Condition>,
    pub(super) ttl: Option<Ttl>,
    pub(super) request: RequestId,
    pub(super) written: Written,
}

/// All of a shard, as far as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) head: Bytes,
    pub(super) checksum: Checksum,
    pub(super) stray: u64,
}

/// A command as a replica has applied it.
#[derive(Debug, PartialEq)]
pub(super) struct Applied {
    pub(super) group: u64,
    pub(super) at: (u64, u64),
    /// Its bytes, other than of a write that was done.
    pub(super) command: Option<Vec<u8>>,
    pub(super) outcome: Vec<u8>,
    /// The writes that it has done, and what their keys held then, as far as that was seen.
    pub(super) writes: Vec<(Write, Post)>,
    /// The keys of pairs that it has ended.
    pub(super) ended: Vec<Box<[u8]>>,
    pub(super) digest: Option<Digest>,
}

/// What a replica has done.
pub(super) enum Event {
    Applied(Box<Applied>),
    Restored,
    /// A write to a shard that is kept by one node, without a log.
    Alone {
        group: u64,
        write: Write,
        post: Post,
    },
    /// Pairs of such a shard have ended.
    Ended(Vec<Box<[u8]>>),
    Meta {
        group: u64,
        at: (u64, u64),
        before: Arc<MetaState>,
        after: Arc<MetaState>,
        command: Box<Command>,
        outcome: Result<(), Void>,
    },
    MetaRestored {
        group: u64,
        state: Arc<MetaState>,
    },
}

/// What is known of the pair that a key has.
#[derive(Debug, Clone, Copy)]
enum Held {
    Unknown,
    /// Its version, or that it is absent.
    Known(Option<u64>),
}

/// A key, as a register.
struct Register {
    /// What it has held, the oldest first.
    values: Vec<Option<u64>>,
    /// The last of those that somebody was told of.
    floor: usize,
    /// Its shard was named as lost, or as going on from a replica that may be behind: what it holds is known when it is seen next.
    is_open: bool,
    /// So many times what it holds was open and was seen then.
    settled: u64,
    /// The pair that it has.
    held: Held,
    /// For how long what it holds lives.
    lifetime: Lifetime,
    /// The same of every value that it has held: more than one where it was touched.
    lifetimes: HashMap<u64, Vec<Lifetime>>,
}

/// For how long a pair lives.
#[derive(Clone, Copy)]
enum Lifetime {
    /// It was named as lost and has come back, and was touched before: by which of the writes it is there nobody knows.
    Unknown,
    /// Until somebody deletes it.
    Unending,
    Ends(Life),
}

/// How long a pair lives, by the clock of the simulation.
#[derive(Clone, Copy)]
struct Life {
    ttl_ms: u64,
    /// Its client has begun to ask for it then, if that is known.
    asked_ms: Option<u64>,
    /// By then it was written.
    written_ms: u64,
    by: By,
    /// The view change that was begun last by then.
    begun: Option<(u64, u64, u64)>,
}

/// Which group has written it.
#[derive(Clone, Copy)]
enum By {
    /// By its log, which had stood still for so long by then.
    Log(u64, u64),
    /// By a node that keeps the shard alone.
    Alone(u64),
}

/// The clocks of nodes are right up to so many parts of a thousand, to either side.
const WRONG_PER_MILLE: u64 = 12;
/// A pair goes at most so much later than its time.
const LATEST_MS: u64 = 1000;
/// Where a node keeps the shard alone, nobody who asks for it waits for its turn. The clock of the simulation goes on by 10 ms at a time.
const LATEST_ALONE_MS: u64 = 30;
/// A log of a group with pairs that end has an entry at least this often, while there is a leader that gets on.
const LONGEST_REST_MS: u64 = 700;

/// How a log gets on.
#[derive(Clone, Copy, Default)]
struct Progress {
    last_ms: u64,
    /// For so long it has stood still in all.
    still_ms: u64,
}

impl Progress {
    /// A rest that is longer than any leader's counts as a whole: the leader may have gone right after its last entry.
    fn still_ms(self, now_ms: u64) -> u64 {
        let rest_ms = now_ms - self.last_ms;
        self.still_ms + if rest_ms > LONGEST_REST_MS { rest_ms } else { 0 }
    }
}

/// What a key was known to hold when a request about it began.
#[derive(Clone, Copy)]
pub(super) struct Began {
    floor: usize,
    settled: u64,
    at_ms: u64,
}

impl Register {
    /// A value that this key may have had while it was open what it holds.
    fn may_have_held(&self, got: Option<u64>) -> bool {
        got.is_none() || self.values.contains(&got)
    }

    /// It is seen to hold this.
    fn settle(&mut self, got: Option<u64>) -> Result<(), String> {
        if !std::mem::take(&mut self.is_open) {
            return Ok(());
        }
        if !self.may_have_held(got) {
            return Err(format!("{got:?} was never written"));
        }
        self.settled += 1;
        self.values.push(got);
        // A value is written by one request.
        let known = got.map(|number| self.lifetimes.get(&number).map_or(&[][..], Vec::as_slice));
        self.lifetime = match known {
            None => Lifetime::Unending,
            Some([only]) => *only,
            Some(_) => Lifetime::Unknown,
        };
        Ok(())
    }

    /// What it holds from now on was written, or touched.
    fn lives(&mut self, lifetime: Lifetime) {
        self.lifetime = lifetime;
        if let Some(number) = self.values.last().copied().flatten() {
            self.lifetimes.entry(number).or_default().push(lifetime);
        }
    }
}

pub(super) struct Oracle {
    registers: BTreeMap<Vec<u8>, Register>,
    /// What was done for each request: the key, the place among its values, and the outcome.
    done: HashMap<RequestId, (Vec<u8>, usize, Written)>,
    /// The value that each version of each key has stood for, ever.
    named: HashMap<(Vec<u8>, u64), u64>,
    /// Writes whose condition did not hold.
    unmet: u64,
    /// Requests of keys that were open since: whether they were done cannot be known.
    doubtful: HashSet<RequestId>,
    refused: HashSet<RequestId>,
    logs: BTreeMap<u64, BTreeMap<u64, Applied>>,
    leaders: BTreeMap<(u64, u64), u64>,
    restores: u64,
    /// By meta group and index.
    meta: BTreeMap<(u64, u64), (u64, Arc<MetaState>)>,
    /// The newest state that was agreed on.
    newest: Option<Arc<MetaState>>,
    /// The numbers of all groups that there have ever been.
    groups: BTreeSet<u64>,
    forgotten: u64,
    accepted: u64,
    receipts: u64,
    /// The view change that was begun last, and under whom. Another leader counts anew: then the figures of its receipt are of two cuts.
    begun: Option<(u64, u64, u64)>,
    /// The time, which no node knows.
    pub(super) now_ms: u64,
    /// When requests were asked for first.
    asked: HashMap<RequestId, u64>,
    /// By group.
    progress: HashMap<u64, Progress>,
    /// Pairs that have ended, and whether any has since the last view change was begun.
    ended: u64,
    has_ended: bool,
    /// Reads that were compared with the latest that a pair may be seen.
    judged_late: u64,
}

impl Oracle {
    pub(super) fn new(keys: Vec<Vec<u8>>) -> Self {
        let register = |key| {
            let register = Register {
                values: vec![None],
                floor: 0,
                is_open: false,
                settled: 0,
                held: Held::Known(None),
                lifetime: Lifetime::Unending,
                lifetimes: HashMap::new(),
            };
            (key, register)
        };
        Self {
            registers: keys.into_iter().map(register).collect(),
            done: HashMap::new(),
            named: HashMap::new(),
            unmet: 0,
            doubtful: HashSet::new(),
            refused: HashSet::new(),
            logs: BTreeMap::new(),
            leaders: BTreeMap::new(),
            restores: 0,
            meta: BTreeMap::new(),
            newest: None,
            groups: BTreeSet::new(),
            forgotten: 0,
            accepted: 0,
            receipts: 0,
            begun: None,
            now_ms: 0,
            asked: HashMap::new(),
            progress: HashMap::new(),
            ended: 0,
            has_ended: false,
            judged_late: 0,
        }
    }

    /// The newest state that was agreed on; nothing while the cluster is being founded.
    pub(super) fn newest(&self) -> Option<Arc<MetaState>> {
        self.newest.clone()
    }

    /// Up to where any replica has ever applied the log of a group.
    pub(super) fn applied(&self, group: u64) -> u64 {
        self.logs.get(&group).and_then(|log| log.last_key_value()).map_or(0, |(index, _)| *index)
    }

    /// All replicas apply the same commands with the same outcomes; the first of them to do so makes history.
    pub(super) fn judge(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Applied(applied) => self.applied_by_a_replica(*applied),
            Event::Restored => {
                self.restores += 1;
                Ok(())
            }
            Event::Alone { group, write, post } => self.written(&write, &post, By::Alone(group)),
            Event::Ended(keys) => keys.iter().try_for_each(|key| self.has_ended(key)),
            Event::MetaRestored { group, state } => {
                let known =
                    self.meta.range((group, 0)..(group + 1, 0)).rev().any(|(_, (_, known))| *known == state);
                let is_first = self.meta.range((group, 0)..(group + 1, 0)).next().is_none();
                if known || is_first {
                    Ok(())
                } else {
                    Err(format!("a meta state that never was: {state:?}"))
                }
            }
            Event::Meta { group, at: (index, term), before, after, command, outcome } => {
                if let Some(known) = self.meta.get(&(group, index)) {
                    let is_same = *known == (term, after);
                    return if is_same { Ok(()) } else { Err(format!("two meta states at index {index}")) };
                }
                sound_transition(&before, &after, &command, &outcome)?;
                self.note_groups(&before, &after)?;
                match (&outcome, &*command) {
                    (Ok(()), Command::Begin { id, .. }) => {
                        self.begun = Some((*id, group, term));
                        self.has_ended = false;
                    }
                    (Ok(()), Command::End { id, end: End::Finished(receipt), .. })
                        if self.begun == Some((*id, group, term)) =>
                    {
                        self.receipts += 1;
                        sound_receipt(receipt)?;
                    }
                    _ => {}
                }
                if let (Ok(()), Command::Plan { planned, .. }) = (&outcome, &*command) {
                    for lost in &planned.given_up {
                        self.accepted += 1;
                        self.forget(&before, &[lost.group]);
                    }
                }
                // What a group was founded with was applied by nobody.
                if self.meta.range((group, 0)..(group + 1, 0)).next().is_none() {
                    self.meta.insert((group, 0), (0, before));
                }
                self.meta.insert((group, index), (term, Arc::clone(&after)));
                self.learn(&after);
                Ok(())
            }
        }
    }

    /// A state is agreed on.
    pub(super) fn learn(&mut self, state: &Arc<MetaState>) {
        let is_newer = self
            .newest
            .as_ref()
            .is_none_or(|newest| newest.cluster == state.cluster && newest.version < state.version);
        if state.open && is_newer {
            self.groups.extend(state.view.shards.iter().map(|shard| shard.group));
            self.newest = Some(Arc::clone(state));
        }
    }

    /// The number of a group is never used again.
    pub(super) fn note_groups(&mut self, before: &MetaState, after: &MetaState) -> Result<(), String> {
        let is_new = |group: &u64| before.index_of(*group).is_none();
        for group in after.view.shards.iter().map(|shard| shard.group).filter(is_new) {
            if !self.groups.insert(group) && before.open {
                return Err(format!("the number of group {group} is used again: {after:?}"));
            }
        }
        Ok(())
    }

    /// The operator was told that the shards of these groups are lost, or go on from what is left: what their keys hold is open.
    pub(super) fn forget(&mut self, state: &MetaState, groups: &[u64]) {
        let hash_key: HashKey = state.hash_key;
        for (key, register) in &mut self.registers {
            let owner = &state.view.shards[state.view.owner(hash_key.hash(key), key)];
            // What a shard is giving away it may still have, and its taker not yet.
            let moving = state.change.iter().filter_map(|change| change.planned.as_ref());
            let mut pieces = moving.flat_map(|planned| &planned.pieces);
            let is_moving = pieces.any(|piece| {
                (groups.contains(&piece.from) || groups.contains(&piece.to))
                    && piece.range.contains(hash_key.hash(key), key)
            });
            if groups.contains(&owner.group) || is_moving {
                (register.is_open, register.floor) = (true, 0);
                self.forgotten += 1;
                self.begun = None;
                (register.held, register.lifetime) = (Held::Unknown, Lifetime::Unknown);
                let of_key = |(of, ..): &(Vec<u8>, usize, Written)| of == key;
                self.doubtful.extend(self.done.iter().filter(|(_, done)| of_key(done)).map(|(id, _)| *id));
                self.done.retain(|_, done| !of_key(done));
            }
        }
        // Whoever goes on does so from a log of its own.
        self.logs.retain(|group, _| !groups.contains(group));
    }

    fn applied_by_a_replica(&mut self, applied: Applied) -> Result<(), String> {
        let (index, _) = applied.at;
        let log = self.logs.entry(applied.group).or_default();
        if let Some(known) = log.get(&index) {
            if *known == applied {
                return Ok(());
            }
            return Err(format!(
                "two histories of group {} at index {index}: {known:?}, {applied:?}",
                applied.group
            ));
        }
        if let Some(digest) = applied.digest.as_ref().filter(|digest| digest.stray > 0) {
            return Err(format!("group {} at index {index}: {} stray pairs", applied.group, digest.stray));
        }
        let (group, writes) = (applied.group, applied.writes.clone());
        let ended = applied.ended.clone();
        log.insert(index, applied);
        let now_ms = self.now_ms;
        let progress = self.progress.entry(group).or_insert(Progress { last_ms: now_ms, still_ms: 0 });
        *progress = Progress { last_ms: now_ms, still_ms: progress.still_ms(now_ms) };
        let by = By::Log(group, progress.still_ms);
        ended.iter().try_for_each(|key| self.has_ended(key))?;
        writes.iter().try_for_each(|(write, post)| self.written(write, post, by))
    }

    /// A write was done, by whichever shard, for the first time or because it was asked for again.
    fn written(&mut self, write: &Write, post: &Post, by: By) -> Result<(), String> {
        let Write { key, change, condition, ttl, request, written: done } = write;
        let outcome = done.outcome;
        log::trace!("written: {write:?}, and then {post:?}");
        if let Some(Some((value, version))) = post {
            self.names(key, *version, number_in(value))?;
        }
        let register = self.registers.get_mut(key).expect("it is there");
        let written = change.value().map(number_in);
        let seen = post.as_ref().map(|post| post.as_ref().map(|(value, _)| number_in(value)));
        // It was done before what it did was open; then what is there is what came after it. Of one that touches what is there this is not to be seen.
        let is_touch = *change == Change::Touch;
        let is_repeated =
            self.doubtful.contains(request) && (is_touch || seen.is_some_and(|seen| seen != written));
        if is_repeated {
            log::trace!("request {request} was done before");
            if is_touch {
                register.lifetime = Lifetime::Unknown;
            }
        } else if let Some((of, _, known)) = self.done.get(request) {
            if (of, known) != (key, done) {
                return Err(format!("request {request} came to {done:?} and to {known:?} before"));
            }
        } else {
            if self.refused.contains(request) {
                return Err(format!("request {request} was not applied, and then was"));
            }
            let was_open = register.is_open || self.doubtful.contains(request);
            if let (Some(condition), Held::Known(there), false) = (condition, register.held, was_open) {
                // What is not there is not deleted, nor touched, whatever the condition is.
                let counts = written.is_some() || there.is_some();
                let is_met = !counts || condition.judge(there) == Judgement::Holds;
                if is_met != (outcome != WriteOutcome::Unmet) {
                    return Err(format!("{write:?} where there was {there:?}"));
                }
                if !is_met && done.version != there.unwrap_or(0) {
                    return Err(format!("{write:?} names another version than {there:?}"));
                }
            }
            if outcome == WriteOutcome::Unmet {
                self.unmet += 1;
                self.done.insert(*request, (key.clone(), register.values.len() - 1, *done));
                return self.is_then(write, post);
            }
            if let (true, Held::Known(there), WriteOutcome::Updated) = (is_touch, register.held, outcome)
                && there != done.there()
            {
                return Err(format!("{write:?} has touched another version than {there:?}"));
            }
            let before =
                if was_open && is_touch { seen.flatten() } else { register.values.last().copied().flatten() };
            let (expected, value) = match (change, before.is_some()) {
                (Change::Put(_), true) => (WriteOutcome::Updated, written),
                (Change::Put(_), false) => (WriteOutcome::Added, written),
                (Change::Delete, true) => (WriteOutcome::Deleted, None),
                // What is there stays.
                (Change::Touch, true) => (WriteOutcome::Updated, before),
                (Change::Delete | Change::Touch, false) => (WriteOutcome::Absent, None),
            };
            register.values.push(value);
            register.held = Held::Known(done.there());
            let (asked_ms, written_ms) = (self.asked.get(request).copied(), self.now_ms);
            let begun = self.begun;
            let life = |ttl: &Ttl| Life { ttl_ms: ttl.ms(), asked_ms, written_ms, by, begun };
            register.lives(ttl.as_ref().map_or(Lifetime::Unending, |ttl| Lifetime::Ends(life(ttl))));
            self.done.insert(*request, (key.clone(), register.values.len() - 1, *done));
            if post.is_some() && outcome != expected && !was_open {
                return Err(format!(
                    "{write:?} should have come to {expected:?}: a write before it was lost"
                ));
            }
        }
        self.is_then(write, post)
    }

    /// A client asks for a write for the first time.
    pub(super) fn asks(&mut self, request: RequestId) {
        self.asked.entry(request).or_insert(self.now_ms);
    }

    /// A pair has ended, by whichever shard.
    fn has_ended(&mut self, key: &[u8]) -> Result<(), String> {
        log::trace!("{key:?} has ended");
        (self.ended, self.has_ended) = (self.ended + 1, true);
        let register = self.registers.get_mut(key).expect("it is there");
        let lifetime = std::mem::replace(&mut register.lifetime, Lifetime::Unending);
        let last = register.values.last().copied().flatten();
        register.values.push(None);
        if std::mem::take(&mut register.is_open) {
            register.settled += 1;
        } else if last.is_none() {
            return Err(format!("{key:?} has ended and was not there"));
        } else {
            match lifetime {
                Lifetime::Unknown => {}
                Lifetime::Unending => return Err(format!("{key:?} has ended and was to stay")),
                Lifetime::Ends(life) => {
                    let lived_ms = life.asked_ms.map(|asked_ms| self.now_ms - asked_ms);
                    let least_ms = life.ttl_ms - life.ttl_ms * WRONG_PER_MILLE / 1000;
                    if lived_ms.is_some_and(|lived_ms| lived_ms < least_ms) {
                        let ttl_ms = life.ttl_ms;
                        return Err(format!(
                            "{key:?} was to live for {ttl_ms} ms, and did so for {lived_ms:?}"
                        ));
                    }
                }
            }
        }
        register.held = Held::Known(None);
        Ok(())
    }

    /// What a read that began at a time has found may be there still.
    fn may_live(&mut self, key: &[u8], began_ms: u64) -> Result<(), String> {
        let Lifetime::Ends(life) = self.registers[key].lifetime else { return Ok(()) };
        let Some(state) = &self.newest else { return Ok(()) };
        let (By::Log(group, _) | By::Alone(group)) = life.by;
        // On its way it is not over, and has to be looked for again.
        let owner = &state.view.shards[state.view.owner(state.hash_key.hash(key), key)];
        let has_log_since = matches!(life.by, By::Alone(_)) && owner.replicas.len() > 1;
        if owner.group != group || has_log_since || state.change.is_some() || self.begun != life.begun {
            return Ok(());
        }
        self.judged_late += 1;
        let (latest_ms, still_ms) = match life.by {
            By::Log(_, before_ms) => (LATEST_MS, self.progress[&group].still_ms(self.now_ms) - before_ms),
            By::Alone(_) => (LATEST_ALONE_MS, 0),
        };
        let most_ms = life.ttl_ms + life.ttl_ms * WRONG_PER_MILLE / 1000 + latest_ms + still_ms;
        let lived_ms = began_ms.saturating_sub(life.written_ms);
        if lived_ms <= most_ms {
            return Ok(());
        }
        Err(format!(
            "{key:?} was to live for {} ms and is there after {lived_ms}, {still_ms} without a leader",
            life.ttl_ms
        ))
    }

    /// Whether pairs have ended since the last view change was begun.
    pub(super) fn have_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether after a write there is what there should be.
    fn is_then(&mut self, write: &Write, post: &Post) -> Result<(), String> {
        let Some(post) = post else { return Ok(()) };
        let register = self.registers.get_mut(&write.key).expect("it is there");
        let got = post.as_ref().map(|(value, _)| number_in(value));
        register.settle(got)?;
        register.held = Held::Known(post.as_ref().map(|(_, version)| *version));
        let last = register.values.last().copied().flatten();
        if got == last { Ok(()) } else { Err(format!("after {write:?} there is {post:?} and not {last:?}")) }
    }

    /// A version of a key is seen to stand for a value: it never stands for another.
    pub(super) fn names(&mut self, key: &[u8], version: u64, value: u64) -> Result<(), String> {
        let known = *self.named.entry((key.to_vec(), version)).or_insert(value);
        if known == value {
            return Ok(());
        }
        Err(format!("version {version} of {key:?} stands for {known} and for {value}"))
    }

    /// The versions of a key that stand for a value.
    pub(super) fn versions_of(&self, key: &[u8]) -> Vec<u64> {
        let of_key = self.named.keys().filter(|(named, _)| named == key);
        of_key.map(|(_, version)| *version).collect()
    }

    /// The value that a version of a key stands for.
    pub(super) fn value_of(&self, key: &[u8], version: u64) -> Option<u64> {
        self.named.get(&(key.to_vec(), version)).copied()
    }

    /// What somebody who asks about a key from now on must see at least.
    pub(super) fn floor(&self, key: &[u8]) -> Began {
        let Register { floor, settled, .. } = self.registers[key];
        Began { floor, settled, at_ms: self.now_ms }
    }

    /// The same for what has come after a write on the same key, whoever knew of that.
    pub(super) fn after(&self, began: Began, write: RequestId) -> Began {
        let at =
            self.done.get(&write).filter(|_| !self.doubtful.contains(&write)).map_or(0, |(_, at, _)| *at);
        Began { floor: began.floor.max(at), ..began }
    }

    /// A read that began when the key had this floor.
    pub(super) fn read(&mut self, key: &[u8], got: Option<u64>, began: Began) -> Result<(), String> {
        let register = self.registers.get_mut(key).expect("it is there");
        // It may have been answered while it was open what the key holds, also where a write has settled that since.
        if register.is_open || register.settled != began.settled {
            return if register.may_have_held(got) {
                Ok(())
            } else {
                Err(format!("{key:?} was read as {got:?}, which was never written"))
            };
        }
        let (began, at_ms) = (began.floor, began.at_ms);
        let at = register.values.iter().skip(began).position(|value| *value == got).map(|at| at + began);
        let Some(at) = at else {
            let values = &register.values[began.saturating_sub(3).min(register.values.len())..];
            return Err(format!(
                "{key:?} was read as {got:?}; the last of {values:?} from {began} on may be"
            ));
        };
        register.floor = register.floor.max(at);
        let is_last = at + 1 == register.values.len();
        if got.is_some() && is_last { self.may_live(key, at_ms) } else { Ok(()) }
    }

    /// A write that began when the key had this floor was acknowledged.
    pub(super) fn acknowledged(
        &mut self,
        request: RequestId,
        written: Written,
        Began { floor, .. }: Began,
    ) -> Result<(), String> {
        if self.doubtful.contains(&request) {
            return Ok(());
        }
        let Some((key, at, known)) = self.done.get(&request) else {
            return Err(format!("request {request} was acknowledged, but never done"));
        };
        // Whatever has changed nothing was done at the earliest when the value that it found was the last.
        let earliest = if written.outcome == WriteOutcome::Unmet { floor } else { floor + 1 };
        if *known != written || *at < earliest {
            return Err(format!(
                "request {request} came to {written:?}, {known:?} was done at {at} after {floor}"
            ));
        }
        let register = self.registers.get_mut(key).expect("it is there");
        register.floor = register.floor.max(*at);
        Ok(())
    }

    /// Somebody was told that a write was not applied and never will be.
    pub(super) fn refused(&mut self, request: RequestId) -> Result<(), String> {
        if self.done.contains_key(&request) {
            return Err(format!("request {request} was done, and its client told that it was not"));
        }
        if !self.doubtful.contains(&request) {
            self.refused.insert(request);
        }
        Ok(())
    }

    /// What a key holds after all writes, once it was seen where that was open.
    pub(super) fn last(&self, key: &[u8]) -> Option<u64> {
        self.registers[key].values.last().copied().flatten()
    }

    /// A key is seen to hold this, of which it was open what it holds.
    pub(super) fn settle(&mut self, key: &[u8], got: Option<u64>) -> Result<(), String> {
        self.registers.get_mut(key).expect("it is there").settle(got)
    }

    pub(super) fn leader(&mut self, group: u64, term: u64, replica: u64) -> Result<(), String> {
        let known = *self.leaders.entry((group, term)).or_insert(replica);
        if known == replica { Ok(()) } else { Err(format!("two leaders of group {group} in term {term}")) }
    }

    /// Counts what has happened.
    pub(super) fn count(&self, tally: &mut Tally) {
        (tally.terms, tally.restores) = (self.leaders.len() as u64, self.restores);
        (tally.forgotten, tally.accepted, tally.receipts) = (self.forgotten, self.accepted, self.receipts);
        tally.unmet = self.unmet;
        (tally.ended, tally.judged_late) = (self.ended, self.judged_late);
        let states: Vec<&MetaState> = self.meta.values().map(|(_, state)| &**state).collect();
        for two in states.windows(2).filter(|two| two[0].group == two[1].group) {
            let id = |state: &MetaState| state.change.as_ref().map(|change| change.id);
            let moved = |state: &MetaState| {
                let planned = state.change.iter().filter_map(|change| change.planned.as_ref());
                planned
                    .flat_map(|planned| &planned.pieces)
                    .map(|piece| (u64::from(piece.attempt), u64::from(piece.handed_over)))
                    .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            };
            tally.begun += u64::from(id(two[1]).is_some() && id(two[1]) != id(two[0]));
            if id(two[0]).is_some() && id(two[0]) == id(two[1]) {
                let (before, after) = (moved(two[0]), moved(two[1]));
                tally.aborted += after.0.saturating_sub(before.0);
                tally.pieces += after.1.saturating_sub(before.1);
            }
            let ended = id(two[0]).filter(|before| id(two[1]) != Some(*before));
            let end = ended.and_then(|before| two[1].result(before));
            tally.finished += u64::from(matches!(end, Some(End::Finished(_))));
            tally.superseded += u64::from(matches!(end, Some(End::Superseded(_))));
        }
    }
}

/// Nothing came and went in a view change but what clients created and deleted.
fn sound_receipt(receipt: &str) -> Result<(), String> {
    let receipt: serde_json::Value = serde_json::from_str(receipt).expect("receipts are JSON");
    let figure = |name: &str| receipt[name].as_u64().expect("a figure");
    let shards = receipt["shards"].as_array().expect("a list");
    let pairs: u64 = shards.iter().filter_map(|shard| shard["key-count"].as_u64()).sum();
    if figure("keys") + figure("created-meanwhile") == pairs + figure("deleted-meanwhile") {
        return Ok(());
    }
    Err(format!("a receipt that does not add up: {receipt}"))
}

/// The number that a value is.
pub(super) fn number_in(value: &[u8]) -> u64 {
    let content = Content::of(value).expect("what was put can be read");
    let number = std::str::from_utf8(&value[content.place]).ok().and_then(|text| text.parse().ok());
    let number = number.expect("only numbers are put");
    assert_eq!(value, value_of(number), "a value is what was put, with its type");
    number
}

/// The value that a number stands for; some are not JSON.
pub(super) fn value_of(number: u64) -> Vec<u8> {
    let head = if number.is_multiple_of(3) {
        ContentType::new("text/plain").expect("a type").head()
    } else {
        Vec::new()
    };
    [head, number.to_string().into_bytes()].concat()
}

/// What one command may make of a meta state.
///
/// # Errors
/// What it must not.
fn sound_transition(
    before: &MetaState,
    after: &MetaState,
    command: &Command,
    outcome: &Result<(), Void>,
) -> Result<(), String> {
    let owners = after.view.ownership.rows().all(|(_, owner)| owner < after.view.shards.len());
    let held = after.view.shards.iter().all(|shard| after.holders.contains_key(&shard.group));
    let grows = after.version > before.version && after.view.epoch >= before.view.epoch;
    let void = outcome.is_ok() || (&after.view, &after.change) == (&before.view, &before.change);
    if !(owners && held && grows && void) {
        return Err(format!("{command:?} came to {outcome:?} and made of {before:?} {after:?}"));
    }
    if let (Ok(()), Command::Plan { planned, .. }) = (outcome, command) {
        let (most, least) = (planned.targets.iter().max(), planned.targets.iter().min());
        let even = most.zip(least).is_some_and(|(most, least)| most - least <= 1);
        // A plan moves nothing by itself, and lets nobody go.
        let owners = |state: &MetaState| -> Vec<_> {
            let owner = |(range, owner): (_, usize)| (range, state.view.shards[owner].group);
            state.view.ownership.rows().map(owner).collect()
        };
        if planned.moved != planned.minimum || !even || owners(before) != owners(after) {
            return Err(format!("a bad plan for {before:?}: {planned:?}"));
        }
    }
    Ok(())
}
