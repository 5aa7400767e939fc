//! What goes on at the same time: each task goes on once in every step, and stops wherever it would wait. Those of a node go on
//! only while it runs, and end with it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Shared;
use super::world::World;

/// Something that goes on.
pub(super) struct Task {
    /// The node, and which start of it; nothing for what goes on outside of the cluster.
    at: Option<(usize, u64)>,
    work: Pin<Box<dyn Future<Output = ()>>>,
}

impl World {
    /// Begins a task outside of the cluster.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push(Task { at: None, work: Box::pin(work) });
    }

    /// Begins a task of a node.
    pub(super) fn spawn_at(&self, place: usize, work: impl Future<Output = ()> + 'static) {
        let at = Some((place, self.nodes[place].life.get()));
        self.spawned.borrow_mut().push(Task { at, work: Box::pin(work) });
    }

    /// Lets every task go on that can.
    pub(super) fn poll(&self, tasks: &mut Vec<Task>) {
        tasks.append(&mut self.spawned.borrow_mut());
        tasks.retain_mut(|task| {
            if let Some((place, life)) = task.at {
                let node = &self.nodes[place];
                if node.life.get() != life {
                    return false;
                }
                if node.is_paused(self.now.get()) {
                    return true;
                }
                self.show_clock(place);
            }
            let goes_on = task.work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
            // It may learn of two clusters in one step.
            if let Some((place, _)) = task.at
                && self.nodes[place].has_new_standing()
            {
                self.note_apart(place);
            }
            goes_on
        });
    }
}

/// Lets others go on.
pub(super) async fn pause() {
    let mut waited = false;
    poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Lets others go on for so many steps.
pub(super) async fn pause_for(steps: u64) {
    for _ in 0..steps {
        pause().await;
    }
}

/// Does something at a node as if it were asked for there by somebody outside, such as a client: nothing where the node is gone before it is done.
pub(super) async fn at<T: 'static>(
    world: &Shared,
    place: usize,
    steps: u64,
    work: impl Future<Output = T> + 'static,
) -> Option<T> {
    let answer = Rc::new(RefCell::new(None));
    let slot = Rc::clone(&answer);
    world.spawn_at(place, async move { *slot.borrow_mut() = Some(work.await) });
    let life = world.nodes[place].life.get();
    for _ in 0..steps {
        pause().await;
        if let Some(done) = answer.borrow_mut().take() {
            return Some(done);
        }
        if world.nodes[place].life.get() != life {
            return None;
        }
    }
    None
}
