//! What the simulation knows that no node knows, and the state machine that tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::machine::{Pieces, StateMachine};
use crate::model::binary::{Malformed, Reader, put_number};

/// The operation of a command; the rest of a command only fills it up.
pub(super) fn operation(command: &[u8]) -> u64 {
    u64::from_be_bytes(command[..8].try_into().expect("a command begins with its operation"))
}

/// A state machine whose state is a chain over all its commands: equal chains mean equal histories.
pub(super) struct Chain {
    pub(super) told: Arc<Mutex<Told>>,
    keys: BTreeMap<u8, u64>,
}

/// What a replica did with its state, for the oracle to judge.
#[derive(Default)]
pub(super) struct Told {
    pub(super) index: u64,
    pub(super) chain: u64,
    pub(super) events: Vec<Event>,
}

pub(super) enum Event {
    Applied { index: u64, term: u64, operation: u64, chain: u64 },
    Restored { index: u64, chain: u64 },
}

impl Chain {
    pub(super) fn new() -> (Box<Self>, Arc<Mutex<Told>>) {
        let told = Arc::new(Mutex::new(Told::default()));
        (Box::new(Self { told: told.clone(), keys: BTreeMap::new() }), told)
    }
}

pub(super) fn mix(chain: u64, value: u64) -> u64 {
    (chain ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_add(value)
}

impl StateMachine for Chain {
    fn apply(&mut self, index: u64, term: u64, command: &[u8]) -> Vec<u8> {
        let operation = operation(command);
        self.keys.insert(command[8], operation);
        let mut told = self.told.lock();
        told.index = index;
        told.chain = mix(told.chain, operation);
        let chain = told.chain;
        told.events.push(Event::Applied { index, term, operation, chain });
        chain.to_be_bytes().to_vec()
    }

    fn snapshot(&self) -> Pieces {
        let told = self.told.lock();
        let mut out = Vec::new();
        put_number(&mut out, told.index);
        put_number(&mut out, told.chain);
        put_number(&mut out, self.keys.len() as u64);
        let pairs = self.keys.clone().into_iter().map(|(key, operation)| {
            let mut out = vec![key];
            put_number(&mut out, operation);
            Bytes::from(out)
        });
        // Taken while the state goes on, and in pieces of other lengths than what is sent at a time.
        Box::new(std::iter::once(Bytes::from(out)).chain(pairs))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(snapshot);
        let (index, chain) = (reader.number()?, reader.number()?);
        self.keys = (0..reader.count(256)?)
            .map(|_| Ok((reader.byte()?, reader.number()?)))
            .collect::<Result<_, _>>()?;
        let mut told = self.told.lock();
        (told.index, told.chain) = (index, chain);
        told.events.push(Event::Restored { index, chain });
        reader.end()
    }
}

/// The one history of a group.
#[derive(Default)]
pub(super) struct Oracle {
    /// By index: term, operation, and the chain after it.
    history: BTreeMap<u64, (u64, u64, u64)>,
    applied: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    leaders: BTreeMap<u64, u64>,
    /// By index and term: the entry's operation and the term of the entry before it.
    entries: BTreeMap<(u64, u64), (u64, u64)>,
    /// The highest index that anybody was told of, by a write or by a read.
    pub(super) floor: u64,
    pub(super) restores: u64,
}

impl Oracle {
    /// All replicas apply the same command at the same index, each once.
    pub(super) fn judge(&mut self, event: &Event) -> Result<(), String> {
        match *event {
            Event::Applied { index, term, operation, chain } => {
                let known = *self.history.entry(index).or_insert((term, operation, chain));
                if known != (term, operation, chain) {
                    return Err(format!(
                        "two histories at index {index}: {known:?}, {:?}",
                        (term, operation, chain)
                    ));
                }
                if *self.applied.entry(operation).or_insert(index) != index {
                    return Err(format!("operation {operation} was applied twice"));
                }
                if self.refused.contains(&operation) {
                    return Err(format!("operation {operation} was refused, and then applied"));
                }
                Ok(())
            }
            Event::Restored { index, chain } => {
                self.restores += 1;
                match self.history.get(&index) {
                    Some((_, _, known)) if *known == chain => Ok(()),
                    None if index == 0 => Ok(()),
                    _ => Err(format!("a snapshot at index {index} holds another state")),
                }
            }
        }
    }

    /// A write was acknowledged: it is really there, and after everything that was known when it began.
    pub(super) fn acknowledged(
        &mut self,
        operation: u64,
        index: u64,
        outcome: &[u8],
        began: u64,
    ) -> Result<(), String> {
        match self.history.get(&index) {
            Some((_, there, chain)) if *there == operation && outcome == chain.to_be_bytes() => {}
            there => {
                return Err(format!("operation {operation} was acknowledged, but at {index} is {there:?}"));
            }
        }
        if index <= began {
            return Err(format!("operation {operation} was acknowledged before it began"));
        }
        self.floor = self.floor.max(index);
        Ok(())
    }

    pub(super) fn refused(&mut self, operation: u64) -> Result<(), String> {
        if let Some(index) = self.applied.get(&operation) {
            return Err(format!("operation {operation} was refused, but applied at index {index}"));
        }
        self.refused.insert(operation);
        Ok(())
    }

    /// A read saw a state, of `index` or newer: it is one of the history, and holds everything that was known
    /// when the read began.
    pub(super) fn read(&mut self, index: u64, state: (u64, u64), began: u64) -> Result<(), String> {
        let there = self
            .history
            .range(..=index.max(state.0))
            .next_back()
            .map_or((0, 0), |(at, (_, _, chain))| (*at, *chain));
        if there != state {
            return Err(format!("a read at index {index} saw {state:?} and not {there:?}"));
        }
        if index < began {
            return Err(format!("a read saw index {index}, but {began} was known before it began"));
        }
        self.floor = self.floor.max(index);
        Ok(())
    }

    pub(super) fn leader(&mut self, term: u64, replica: u64) -> Result<(), String> {
        let known = *self.leaders.entry(term).or_insert(replica);
        if known == replica {
            Ok(())
        } else {
            Err(format!("two leaders in term {term}: {known} and {replica}"))
        }
    }

    pub(super) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Logs match: an entry of an index and term is everywhere the same, and so is what comes before it.
    pub(super) fn entry(&mut self, at: (u64, u64), operation: u64, term_before: u64) -> Result<(), String> {
        let known = *self.entries.entry(at).or_insert((operation, term_before));
        if known == (operation, term_before) {
            return Ok(());
        }
        Err(format!("two entries at index and term {at:?}: {known:?}, {:?}", (operation, term_before)))
    }
}
