//! What the coordinator tells those who ask, and how it is woken.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::now;
use crate::model::address::Address;
use crate::wire::Progress;

/// The coordinator's desk, shared with those who ask.
#[derive(Default)]
pub struct Desk {
    shown: Mutex<Option<Shown>>,
    /// Held while shards are counted for a plan.
    pub(super) planning: Mutex<()>,
    /// Held while the meta group is being recovered.
    pub(super) recovering: Mutex<()>,
    wake: (Mutex<bool>, Condvar),
}

/// What is shown of the view change that is under way.
struct Shown {
    change: u64,
    phase: &'static str,
    moved: u64,
    total: u64,
    moving_since: Option<Instant>,
    blocked_by: Option<String>,
}

impl Desk {
    /// Waits until somebody wakes the coordinator, for a while at most.
    pub(super) fn wait(&self, timeout: Duration) {
        let mut woken = self.wake.0.lock();
        if !*woken {
            self.wake.1.wait_for(&mut woken, timeout);
        }
        *woken = false;
    }

    /// Wakes the coordinator: there is something to do.
    pub fn wake(&self) {
        *self.wake.0.lock() = true;
        self.wake.1.notify_all();
    }

    pub(super) fn show(&self, change: u64, phase: &'static str, moved: u64, total: u64) {
        let mut shown = self.shown.lock();
        let before = shown.take().filter(|shown| shown.change == change);
        let since = before.and_then(|shown| shown.moving_since);
        let moving_since = if phase == "moving" { since.or_else(|| Some(now())) } else { since };
        *shown = Some(Shown { change, phase, moved, total, moving_since, blocked_by: None });
    }

    pub(super) fn block(&self, change: u64, reason: &str) {
        if let Some(shown) = self.shown.lock().as_mut().filter(|shown| shown.change == change) {
            shown.blocked_by = Some(reason.to_owned());
        }
    }

    pub(super) fn clear(&self) {
        *self.shown.lock() = None;
    }

    /// The view change that makes no progress, and may be superseded.
    pub fn blocked(&self) -> Option<u64> {
        self.shown.lock().as_ref().filter(|shown| shown.blocked_by.is_some()).map(|shown| shown.change)
    }

    /// How far the view change is.
    pub fn progress(&self, coordinator: &Address) -> Option<Progress> {
        let shown = self.shown.lock();
        let shown = shown.as_ref()?;
        let millis = shown.moving_since.map_or(0, |since| (now() - since).as_millis());
        let (moved, left) = (u128::from(shown.moved), u128::from(shown.total.saturating_sub(shown.moved)));
        let rate = (moved * 1000).checked_div(millis).unwrap_or(0);
        let remaining = (millis * left).checked_div(moved).and_then(|millis| u64::try_from(millis).ok());
        Some(Progress {
            coordinator: coordinator.clone(),
            phase: if shown.blocked_by.is_some() { "blocked" } else { shown.phase }.to_owned(),
            moved: shown.moved,
            total: shown.total,
            pairs_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            remaining_seconds: remaining
                .filter(|_| shown.blocked_by.is_none())
                .map(|millis| Duration::from_millis(millis).as_secs_f64()),
            blocked_by: shown.blocked_by.clone(),
        })
    }
}
