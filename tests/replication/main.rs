//! Shards with several replicas, as real processes: any node answers, and nothing acknowledged is lost while a majority
//! of a shard's replicas is there.

#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

#[path = "../support/mod.rs"]
mod support;

mod audits;
mod changes;
mod claims;
mod contract;
mod failures;
mod interrupted;
mod reads;
mod recovery;
mod restarts;
mod retries;
mod troubles;
mod versions;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by the tests that measure time or load the machine, so that they do not slow each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
