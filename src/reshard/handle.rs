//! What the coordinator tells those who ask, and how it is woken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::{Deadline, now};
use crate::model::address::Address;
use crate::node::host::{Awaited, Host};
use crate::wire::{ChangePhase, PieceShown, Progress, WaitsFor};

/// The coordinator's handle, shared with those who ask.
#[derive(Default)]
pub struct CoordinatorHandle {
    shown: Mutex<Option<Shown>>,
    /// Taken while shards are counted for a plan.
    pub(super) planning: Single,
    censuses: AtomicU64,
    /// Taken while something is being recovered.
    pub(super) recovering: Single,
    bell: Bell,
}

/// Something that is done by one at a time.
#[derive(Default)]
pub(super) struct Single(AtomicBool);

/// It is not done by anybody else as long as this is there.
pub(super) struct Alone<'a>(&'a AtomicBool);

impl Single {
    /// Begins, unless somebody else has.
    pub(super) fn begin(&self) -> Option<Alone<'_>> {
        (!self.0.swap(true, Ordering::AcqRel)).then_some(Alone(&self.0))
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What is shown of the view change that is under way.
struct Shown {
    change: u64,
    phase: ChangePhase,
    moved: u64,
    total: u64,
    moving_since: Option<Instant>,
    blocked_by: Option<String>,
    piece: Option<PieceShown>,
    /// The orders that are not answered yet, the latest last: what each is, to whom it went, and when.
    waits_for: Vec<(&'static str, String, Instant)>,
}

/// An order that is shown as waited for, as long as this is there.
pub(super) struct Waiting<'a>(&'a CoordinatorHandle);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(shown) = self.0.shown.lock().as_mut() {
            shown.waits_for.pop();
        }
    }
}

/// Wakes the coordinator.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Awaited for Bell {
    fn is_there(&self) -> bool {
        *self.0.lock()
    }

    fn block(&self, deadline: Deadline) {
        let mut rung = self.0.lock();
        if !*rung {
            self.1.wait_for(&mut rung, deadline.left());
        }
    }
}

impl CoordinatorHandle {
    /// Waits until somebody wakes the coordinator, for a while at most.
    pub(super) async fn wait(&self, host: &dyn Host, timeout: Duration) {
        host.wait(&self.bell, Deadline::after(now(), timeout)).await;
        *self.bell.0.lock() = false;
    }

    /// The number of a census, above those of all that this process has taken.
    pub(super) fn next_census(&self) -> u64 {
        self.censuses.fetch_add(1, Ordering::Relaxed)
    }

    /// Wakes the coordinator: there is something to do.
    pub fn wake(&self) {
        *self.bell.0.lock() = true;
        self.bell.1.notify_all();
    }

    /// Shows how far a view change is.
    pub(super) fn show(&self, change: u64, phase: ChangePhase, (moved, total): (u64, u64)) {
        let mut shown = self.shown.lock();
        let before = shown.take().filter(|shown| shown.change == change);
        let since = before.as_ref().and_then(|shown| shown.moving_since);
        let moving_since = if phase == ChangePhase::Moving { since.or_else(|| Some(now())) } else { since };
        let (piece, waits_for) = before.map(|shown| (shown.piece, shown.waits_for)).unwrap_or_default();
        let piece = piece.filter(|_| phase == ChangePhase::Moving);
        *shown =
            Some(Shown { change, phase, moved, total, moving_since, blocked_by: None, piece, waits_for });
    }

    /// Shows which piece is being moved.
    pub(super) fn show_piece(&self, piece: PieceShown) {
        if let Some(shown) = self.shown.lock().as_mut() {
            shown.piece = Some(piece);
        }
    }

    /// Shows to whom an order went, until what this returns is dropped.
    pub(super) fn waits_for(&self, order: &'static str, node: String) -> Waiting<'_> {
        if let Some(shown) = self.shown.lock().as_mut() {
            shown.waits_for.push((order, node, now()));
        }
        Waiting(self)
    }

    /// Shows why a view change makes no progress, or that it does.
    pub(super) fn set_blocked(&self, change: u64, by: Option<String>) {
        if let Some(shown) = self.shown.lock().as_mut().filter(|shown| shown.change == change) {
            shown.blocked_by = by;
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
        let waits_for = shown.waits_for.last().map(|(order, node, since)| WaitsFor {
            order: (*order).to_owned(),
            node: node.clone(),
            seconds: (now() - *since).as_secs_f64(),
        });
        Some(Progress {
            coordinator: coordinator.clone(),
            phase: if shown.blocked_by.is_some() { ChangePhase::Blocked } else { shown.phase },
            moved: shown.moved,
            total: shown.total,
            pairs_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            remaining_seconds: remaining
                .filter(|_| shown.blocked_by.is_none())
                .map(|millis| Duration::from_millis(millis).as_secs_f64()),
            blocked_by: shown.blocked_by.clone(),
            piece: shown.piece.clone(),
            waits_for,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(coordinator: &CoordinatorHandle) -> Progress {
        coordinator.progress(&"a".parse().unwrap()).expect("something is shown")
    }

    fn awaited(coordinator: &CoordinatorHandle) -> Option<(String, String)> {
        shown(coordinator).waits_for.map(|waits| (waits.order, waits.node))
    }

    fn piece(number: usize) -> PieceShown {
        PieceShown { number, of: 12, attempt: 1, pairs: 7, from: "1".to_owned(), to: "2".to_owned() }
    }

    #[test]
    fn the_order_that_was_given_last_is_shown_until_it_is_answered() {
        let coordinator = CoordinatorHandle::default();
        drop(coordinator.waits_for("news", "b".to_owned()));
        assert!(coordinator.progress(&"a".parse().unwrap()).is_none(), "no view change is shown");
        coordinator.show(5, ChangePhase::Counting, (0, 0));
        assert_eq!(awaited(&coordinator), None);
        let outer = coordinator.waits_for("tally", "b".to_owned());
        let inner = coordinator.waits_for("news", "c".to_owned());
        coordinator.show(5, ChangePhase::Moving, (1, 2));
        assert_eq!(awaited(&coordinator), Some(("news".to_owned(), "c".to_owned())));
        drop(inner);
        assert_eq!(awaited(&coordinator), Some(("tally".to_owned(), "b".to_owned())));
        drop(outer);
        assert_eq!(awaited(&coordinator), None);
    }

    #[test]
    fn a_piece_is_shown_as_long_as_pieces_move() {
        let coordinator = CoordinatorHandle::default();
        coordinator.show(5, ChangePhase::Moving, (0, 14));
        coordinator.show_piece(piece(1));
        coordinator.show(5, ChangePhase::Moving, (7, 14));
        assert_eq!(shown(&coordinator).piece, Some(piece(1)));
        coordinator.show_piece(piece(2));
        assert_eq!(shown(&coordinator).piece, Some(piece(2)));
        coordinator.show(5, ChangePhase::Finishing, (14, 14));
        assert_eq!(shown(&coordinator).piece, None);
    }

    #[test]
    fn a_view_change_in_which_something_moves_again_is_blocked_no_more() {
        let coordinator = CoordinatorHandle::default();
        coordinator.show(5, ChangePhase::Finishing, (7, 7));
        coordinator.set_blocked(4, Some("another one".to_owned()));
        assert_eq!((coordinator.blocked(), shown(&coordinator).phase), (None, ChangePhase::Finishing));
        coordinator.set_blocked(5, Some("b is down".to_owned()));
        assert_eq!((coordinator.blocked(), shown(&coordinator).phase), (Some(5), ChangePhase::Blocked));
        assert_eq!(shown(&coordinator).blocked_by.as_deref(), Some("b is down"));
        coordinator.set_blocked(5, None);
        assert_eq!((coordinator.blocked(), shown(&coordinator).phase), (None, ChangePhase::Finishing));
    }
}
