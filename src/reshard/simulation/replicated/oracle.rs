//! What the simulation knows that no node knows: every log, and for every key all values that it has had, in the order in which they
//! were written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::super::checks::sound_transition;
use super::Tally;
use crate::model::meta::{Command, End, MetaState, Void};
use crate::model::shard::{RequestId, WriteOutcome};
use crate::model::store::Checksum;

/// What a key holds after a write, with its version; nothing where that is not to be seen.
pub(super) type Post = Option<Option<(Vec<u8>, u64)>>;

/// A write: its key, its value, its request, and what it did.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>, RequestId, WriteOutcome);

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
    pub(super) write: Option<Write>,
    pub(super) post: Post,
    pub(super) digest: Option<Digest>,
}

/// What a replica has done.
pub(super) enum Event {
    Applied(Box<Applied>),
    Restored,
    Meta {
        at: (u64, u64),
        before: Arc<MetaState>,
        after: Arc<MetaState>,
        command: Box<Command>,
        outcome: Result<(), Void>,
    },
    MetaRestored(Arc<MetaState>),
}

/// A key, as a register.
struct Register {
    /// What it has held, the oldest first.
    values: Vec<Option<u64>>,
    /// The last of those that somebody was told of.
    floor: usize,
}

pub(super) struct Oracle {
    registers: BTreeMap<Vec<u8>, Register>,
    /// What was done for each request: the key, the place among its values, and the outcome.
    done: HashMap<RequestId, (Vec<u8>, usize, WriteOutcome)>,
    refused: HashSet<RequestId>,
    logs: BTreeMap<u64, BTreeMap<u64, Applied>>,
    leaders: BTreeMap<(u64, u64), u64>,
    restores: u64,
    meta: BTreeMap<u64, (u64, Arc<MetaState>)>,
}

impl Oracle {
    pub(super) fn new(keys: Vec<Vec<u8>>) -> Self {
        let register = |key| (key, Register { values: vec![None], floor: 0 });
        Self {
            registers: keys.into_iter().map(register).collect(),
            done: HashMap::new(),
            refused: HashSet::new(),
            logs: BTreeMap::new(),
            leaders: BTreeMap::new(),
            restores: 0,
            meta: BTreeMap::new(),
        }
    }

    /// The first meta state.
    pub(super) fn begin(&mut self, state: Arc<MetaState>) {
        self.meta.insert(0, (0, state));
    }

    pub(super) fn newest(&self) -> Arc<MetaState> {
        Arc::clone(&self.meta.last_key_value().expect("there is a first one").1.1)
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
            Event::MetaRestored(state) => {
                let known = self.meta.values().rev().any(|(_, known)| *known == state);
                if known { Ok(()) } else { Err(format!("a meta state that never was: {state:?}")) }
            }
            Event::Meta { at: (index, term), before, after, command, outcome } => {
                if let Some(known) = self.meta.get(&index) {
                    let is_same = *known == (term, after);
                    return if is_same { Ok(()) } else { Err(format!("two meta states at index {index}")) };
                }
                sound_transition(&before, &after, &command, &outcome)?;
                self.meta.insert(index, (term, after));
                Ok(())
            }
        }
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
        let (write, post) = (applied.write.clone(), applied.post.clone());
        log.insert(index, applied);
        write.map_or(Ok(()), |write| self.written(&write, &post))
    }

    /// A write was done, by whichever shard, for the first time or because it was asked for again.
    pub(super) fn written(&mut self, write: &Write, post: &Post) -> Result<(), String> {
        let (key, value, request, outcome) = write;
        let register = self.registers.get_mut(key).expect("it is there");
        if let Some((of, _, known)) = self.done.get(request) {
            if (of, known) != (key, outcome) {
                return Err(format!("request {request} came to {outcome:?} and to {known:?} before"));
            }
        } else {
            if self.refused.contains(request) {
                return Err(format!("request {request} was not applied, and then was"));
            }
            let was_there = register.values.last().is_some_and(Option::is_some);
            let (expected, value) = match (value, was_there) {
                (Some(value), true) => (WriteOutcome::Updated, Some(number_in(value))),
                (Some(value), false) => (WriteOutcome::Added, Some(number_in(value))),
                (None, true) => (WriteOutcome::Deleted, None),
                (None, false) => (WriteOutcome::Absent, None),
            };
            register.values.push(value);
            self.done.insert(*request, (key.clone(), register.values.len() - 1, *outcome));
            if post.is_some() && *outcome != expected {
                return Err(format!(
                    "{write:?} should have come to {expected:?}: a write before it was lost"
                ));
            }
        }
        let last = register.values.last().copied().flatten();
        match post {
            Some(post) if post.as_ref().map(|(value, _)| number_in(value)) != last => {
                Err(format!("after {write:?} there is {post:?} and not {last:?}"))
            }
            _ => Ok(()),
        }
    }

    /// What somebody who asks about a key from now on must see at least.
    pub(super) fn floor(&self, key: &[u8]) -> usize {
        self.registers[key].floor
    }

    /// A read that began when the key had this floor.
    pub(super) fn read(&mut self, key: &[u8], got: Option<u64>, began: usize) -> Result<(), String> {
        let register = self.registers.get_mut(key).expect("it is there");
        let at = register.values.iter().skip(began).position(|value| *value == got).map(|at| at + began);
        let Some(at) = at else {
            let values = &register.values[began.saturating_sub(3)..];
            return Err(format!(
                "{key:?} was read as {got:?}; the last of {values:?} from {began} on may be"
            ));
        };
        register.floor = register.floor.max(at);
        Ok(())
    }

    /// A write that began when the key had this floor was acknowledged.
    pub(super) fn acknowledged(
        &mut self,
        request: RequestId,
        outcome: WriteOutcome,
        began: usize,
    ) -> Result<(), String> {
        let Some((key, at, known)) = self.done.get(&request) else {
            return Err(format!("request {request} was acknowledged, but never done"));
        };
        if *known != outcome || *at <= began {
            return Err(format!(
                "request {request} came to {outcome:?}, {known:?} was done at {at} after {began}"
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
        self.refused.insert(request);
        Ok(())
    }

    /// What a key holds after all writes.
    pub(super) fn last(&self, key: &[u8]) -> Option<u64> {
        self.registers[key].values.last().copied().flatten()
    }

    pub(super) fn leader(&mut self, group: u64, term: u64, replica: u64) -> Result<(), String> {
        let known = *self.leaders.entry((group, term)).or_insert(replica);
        if known == replica { Ok(()) } else { Err(format!("two leaders of group {group} in term {term}")) }
    }

    /// Counts what has happened.
    pub(super) fn count(&self, tally: &mut Tally) {
        (tally.terms, tally.restores) = (self.leaders.len() as u64, self.restores);
        let states: Vec<&MetaState> = self.meta.values().map(|(_, state)| &**state).collect();
        for two in states.windows(2) {
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
        }
    }
}

/// The number that a value is.
pub(super) fn number_in(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("only numbers are put")
}
