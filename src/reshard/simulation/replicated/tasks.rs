//! What goes on at the same time: each task goes on once in every step, and stops wherever it would wait. Those of a node go on
//! only while it runs, and end with it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::super::tasks::wait_for;
use super::Shared;
use super::world::{Packet, World};

/// Something that goes on.
pub(super) struct Task {
    /// The node, and which start of it; nothing for what goes on outside of the cluster.
    at: Option<(usize, u64)>,
    work: Pin<Box<dyn Future<Output = ()>>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Nobody was there: nothing was done.
    NotSent,
    /// It may have been done, or may yet be.
    Silent,
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
            }
            task.work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
        });
    }
}

/// Has something done at a node, by a message there and one back; both may be lost, late, or arrive twice.
pub(super) async fn call<T: 'static, F: Future<Output = T> + 'static>(
    world: &Shared,
    (from, to): (usize, usize),
    turns: u64,
    work: impl Fn() -> F + 'static,
) -> Result<T, Lost> {
    call_by(world, (from, to), turns, World::send, work).await
}

/// As [`call`], by a connection that ends sooner than it doubles a message.
pub(super) async fn call_once<T: 'static, F: Future<Output = T> + 'static>(
    world: &Shared,
    (from, to): (usize, usize),
    turns: u64,
    work: impl Fn() -> F + 'static,
) -> Result<T, Lost> {
    call_by(world, (from, to), turns, World::send_once, work).await
}

async fn call_by<T: 'static, F: Future<Output = T> + 'static>(
    world: &Shared,
    (from, to): (usize, usize),
    turns: u64,
    send: fn(&World, usize, usize, Packet),
    work: impl Fn() -> F + 'static,
) -> Result<T, Lost> {
    if from == to {
        return Ok(work().await);
    }
    if world.nodes[to].life.get() == 0 {
        return Err(Lost::NotSent);
    }
    let answer = Rc::new(RefCell::new(None));
    let (there, slot) = (Rc::clone(world), Rc::clone(&answer));
    let arrive = move || {
        let (world, slot, work) = (Rc::clone(&there), Rc::clone(&slot), work());
        there.spawn_at(to, async move {
            let done = RefCell::new(Some(work.await));
            let back = move || {
                if let Some(done) = done.take() {
                    slot.borrow_mut().get_or_insert(done);
                }
            };
            send(&world, to, from, Packet::Call(Rc::new(back)));
        });
    };
    send(world, from, to, Packet::Call(Rc::new(arrive)));
    wait_for(turns, || answer.borrow_mut().take()).await.ok_or(Lost::Silent)
}
