//! Audits: what a replica of a shard holds at one moment, counted and summed up from what is stored while writers go on.
//!
//! Where writes go through a log, an audit is begun by a command of it, so that all replicas sum up the same moment. What it finds
//! is no part of the state.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Checksum, HashRange, Incoming, Shard};
use crate::model::store::{PIECE, Progress, Scrub, Store, Territory, Void};

/// So many audits are known. With one more the oldest is forgotten, and given up where it has not ended.
const KEPT_AUDITS: usize = 8;

/// What an audit finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The pairs of the owned ranges.
    pub pairs: u64,
    /// The last version that was drawn at the moment.
    pub index: u64,
    /// An order-free sum over key, value and version of all those pairs.
    pub checksum: Checksum,
    /// The same without versions, where the replica is of a version that tells it: it is the same in every cluster that has these pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Checksum>,
    /// Pairs that lie in no range which the shard owns or is receiving or dropping: always 0.
    pub stray: u64,
    /// By how many pairs the tables differ from what is found by its key: always 0.
    pub unaccounted: u64,
    /// The pairs of the owned ranges as the shard counts them: always as many.
    pub counted: u64,
    /// The version of the state that was learned last.
    pub version: u64,
    /// The owned ranges, ascending.
    pub owned: Vec<HashRange>,
}

/// The moment of an audit. It is the same at all replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditBegun {
    /// The last version that was drawn.
    pub index: u64,
    /// The version of the state that was learned last.
    pub version: u64,
    /// The owned ranges, ascending.
    pub owned: Vec<HashRange>,
}

/// How far an audit is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditState {
    /// It was not begun here, or is forgotten.
    Unknown,
    /// There is more to be read.
    UnderWay,
    /// It cannot be ended: ask for another.
    Void(Void),
    /// It has ended.
    Found(Audit),
}

impl fmt::Display for Void {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GivenUp => "other audits were begun meanwhile",
            Self::Replaced => "the replica began anew from a snapshot meanwhile",
            Self::TooMuchRemoved => "too much was removed at once meanwhile",
        })
    }
}

/// The audits of a replica, the oldest first.
#[derive(Default)]
pub(super) struct Audits(Mutex<VecDeque<Arc<Run>>>);

struct Run {
    id: u64,
    begun: AuditBegun,
    counted: u64,
    scrub: Arc<Scrub>,
    ended: OnceLock<Result<Audit, Void>>,
}

impl Run {
    /// Reads a bit more.
    fn go_on(&self, store: &Store) {
        let ended = match store.scrub_some(&self.scrub, PIECE) {
            Progress::More(_) => return,
            Progress::Void(void) => Err(void),
            Progress::Done(found) => {
                let AuditBegun { index, version, owned } = self.begun.clone();
                let unaccounted = found.unaccounted.cast_signed().unsigned_abs();
                Ok(Audit {
                    pairs: found.owned.pairs,
                    index,
                    checksum: found.owned,
                    content: Some(found.content),
                    stray: found.stray,
                    unaccounted,
                    counted: self.counted,
                    version,
                    owned,
                })
            }
        };
        // Whoever reads the last piece twice finds the same.
        let _ = self.ended.set(ended);
    }
}

impl Shard {
    /// Begins an audit of what is there now, under an id that was drawn for it. Everybody waits for a look at every stripe, and for nothing
    /// after that.
    pub fn begin_audit(&self, id: u64) -> AuditBegun {
        let mut runs = self.audits.0.lock();
        while runs.len() >= KEPT_AUDITS {
            runs.pop_front().iter().for_each(|oldest| oldest.scrub.give_up());
        }
        let run = self.begin_run(id);
        let begun = run.begun.clone();
        runs.push_back(Arc::new(run));
        begun
    }

    fn begin_run(&self, id: u64) -> Run {
        let table = self.table.write();
        let owned: Vec<HashRange> = table.owned.rows().iter().map(|(range, _)| range.clone()).collect();
        let coming = table.incoming.iter().map(Incoming::range);
        let going = table.dropped.iter().map(|(range, _)| range);
        let territory = Territory { owned: owned.clone(), others: coming.chain(going).cloned().collect() };
        let begun = AuditBegun { index: self.store.index(), version: table.version, owned };
        let (counted, scrub) = (self.count(&table), self.store.begin_scrub(territory));
        Run { id, begun, counted, scrub, ended: OnceLock::new() }
    }

    /// Reads a bit more for each audit that is under way; whether there is one. No writer waits for longer than a piece of one stripe takes.
    pub fn audit_some(&self) -> bool {
        let runs: Vec<_> =
            self.audits.0.lock().iter().filter(|run| run.ended.get().is_none()).cloned().collect();
        for run in &runs {
            run.go_on(&self.store);
        }
        !runs.is_empty()
    }

    /// How far an audit is.
    pub fn audit_state(&self, id: u64) -> AuditState {
        let runs = self.audits.0.lock();
        match runs.iter().rfind(|run| run.id == id).map(|run| run.ended.get()) {
            None => AuditState::Unknown,
            Some(None) => AuditState::UnderWay,
            Some(Some(Err(void))) => AuditState::Void(*void),
            Some(Some(Ok(audit))) => AuditState::Found(audit.clone()),
        }
    }

    /// An audit from its beginning to its end. Nobody replaces the shard meanwhile.
    #[cfg(test)]
    pub fn audit(&self) -> Audit {
        let run = self.begin_run(0);
        loop {
            run.go_on(&self.store);
            match run.ended.get() {
                None => {}
                Some(Ok(audit)) => return audit.clone(),
                Some(Err(void)) => panic!("{void}"),
            }
        }
    }
}
