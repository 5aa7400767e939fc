//! What goes on at the same time, in one thread: at each step one task, drawn at random, goes on until it waits.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Shared, checks, clients, coordinator, meta_group, nodes};

/// Something that goes on.
pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// After so many steps in all, a run is stuck.
const MOST_STEPS: u64 = 400_000;
/// For so many steps harm is done.
const HARMFUL_STEPS: std::ops::Range<u64> = 4_000..24_000;

/// Runs a world to its end.
pub(super) fn run(world: &Shared) -> Result<(), String> {
    world.found();
    for member in 0..meta_group::MEMBERS {
        world.spawn(coordinator::coordinate(Rc::clone(world), member));
    }
    for _ in 0..5 {
        world.spawn(clients::use_keys(Rc::clone(world)));
    }
    world.spawn(meta_group::agree(Rc::clone(world)));
    world.spawn(meta_group::operate(Rc::clone(world)));
    world.spawn(nodes::tell_late_news(Rc::clone(world)));
    let harmful = world.draw(HARMFUL_STEPS);
    let mut tasks: Vec<Task> = Vec::new();
    loop {
        tasks.append(&mut world.spawned.borrow_mut());
        let steps = world.step();
        if steps == harmful {
            world.harm.set(false);
            world.spawn(meta_group::change_at_last(Rc::clone(world)));
        }
        if steps > MOST_STEPS {
            return Err(format!("it does not end: {:?}", world.meta.borrow().newest().change));
        }
        let chosen = world.draw(0..tasks.len());
        if tasks[chosen].as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            drop(tasks.swap_remove(chosen));
        }
        if world.touched.take() {
            checks::at_most_one_accepts(world);
        }
        if let Some(fault) = world.fault.borrow_mut().take() {
            return Err(fault);
        }
        if world.over.get() {
            return checks::at_the_end(world);
        }
    }
}

/// Lets others go on.
pub(super) async fn pause() {
    let mut waited = false;
    poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Waits for a condition, and gives up after so many turns.
pub(super) async fn wait_for<T>(turns: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..turns {
        if let Some(found) = look() {
            return Some(found);
        }
        pause().await;
    }
    None
}

/// A message there and its answer back. Nothing comes back where either is lost, or not in time; what was asked may then
/// have been done, or be done later. It may be done twice.
pub(super) async fn call<T: 'static, F: Future<Output = T> + 'static>(
    world: &Shared,
    turns: u64,
    work: impl Fn() -> F + 'static,
) -> Option<T> {
    let answer = Rc::new(RefCell::new(None));
    let work = Rc::new(work);
    let copies = if world.befalls() { 2 } else { 1 };
    for copy in 0..copies {
        if world.befalls() {
            continue;
        }
        let (world, work, answer) = (Rc::clone(world), Rc::clone(&work), Rc::clone(&answer));
        world.under_way.set(world.under_way.get() + 1);
        world.clone().spawn(async move {
            world.delay(copy > 0).await;
            let done = work().await;
            world.delay(false).await;
            world.under_way.set(world.under_way.get() - 1);
            if copy == 0 && !world.befalls() {
                *answer.borrow_mut() = Some(done);
            }
        });
    }
    let turns = if world.harm.get() { turns } else { u64::MAX };
    wait_for(turns, || answer.borrow_mut().take()).await
}
