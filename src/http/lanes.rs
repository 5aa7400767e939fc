//! The queues of the classes of requests, each bounded and with a fixed pool of workers. What comes back from the log of a shard has its place in
//! the queue in any case, and a bound of its own.
//!
//! Workers are woken one after the other: whoever was woken wakes the next one if more waits. When much comes at one time, as the answers of a log
//! do, a worker for each of it would be woken otherwise, more than there are processors to run them, and each would cost a switch between threads to find that the
//! first ones have done the work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::lane_id::LaneId;
use crate::config::ServerLimits;
use crate::threads;

/// The queues of all lanes; `T` is what waits in them.
pub struct Lanes<T> {
    queues: Vec<Queue<T>>,
    length: usize,
}

/// What waits in a lane, and how its workers are woken.
struct Queue<T> {
    work: (Sender<T>, Receiver<T>),
    wakes: (Sender<()>, Receiver<()>),
    /// A worker was woken and has not looked for work yet.
    is_waking: Arc<AtomicBool>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        let Self { work, wakes, is_waking } = self;
        Self { work: work.clone(), wakes: wakes.clone(), is_waking: Arc::clone(is_waking) }
    }
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self { work: unbounded(), wakes: bounded(1), is_waking: Arc::default() }
    }

    fn put(&self, work: T) {
        // The receiver is here, too.
        let _ = self.work.0.send(work);
        self.wake();
    }

    /// Has a worker look for work, unless one is about to.
    fn wake(&self) {
        if !self.is_waking.swap(true, Ordering::SeqCst) {
            // There is room: a worker takes this out before it says that it looks for work.
            let _ = self.wakes.0.try_send(());
        }
    }

    /// Does what waits, one after the other, for good.
    fn work(&self, work: impl Fn(T)) {
        for () in &self.wakes.1 {
            // What is put in from now on wakes another one. What was put in before is seen here.
            self.is_waking.store(false, Ordering::SeqCst);
            while let Ok(waiting) = self.work.1.try_recv() {
                if !self.work.1.is_empty() {
                    self.wake();
                }
                work(waiting);
            }
        }
    }
}

impl<T> Lanes<T> {
    /// Empty queues.
    pub fn new(limits: &ServerLimits) -> Self {
        Self { queues: LaneId::ALL.iter().map(|_| Queue::new()).collect(), length: limits.queue_length }
    }

    /// Puts work into a lane's queue, or gives it back when that is full; never waits. Threads that do so at the same moment may exceed the
    /// length, each by one.
    pub fn offer(&self, lane: LaneId, work: T) -> Result<(), T> {
        if self.waiting(lane) >= self.length {
            return Err(work);
        }
        self.take_back(lane, work);
        Ok(())
    }

    /// Puts work that was begun into a lane's queue, be it full: it may have changed something, and only its handler can say that.
    pub fn take_back(&self, lane: LaneId, work: T) {
        self.queues[lane as usize].put(work);
    }

    /// Takes out of a lane's queue what `is_late` says to have waited for too long. The rest keeps its order, but for what comes in
    /// meanwhile.
    pub fn take_late(&self, lane: LaneId, is_late: impl Fn(&T) -> bool) -> Vec<T> {
        let queue = &self.queues[lane as usize];
        let receiver = &queue.work.1;
        let mut taken = Vec::new();
        for _ in 0..receiver.len() {
            let Ok(work) = receiver.try_recv() else { break };
            if is_late(&work) {
                taken.push(work);
            } else {
                queue.put(work);
            }
        }
        taken
    }

    /// How much waits in a lane.
    pub fn waiting(&self, lane: LaneId) -> usize {
        self.queues[lane as usize].work.1.len()
    }
}

impl<T: Send + 'static> Lanes<T> {
    /// Starts the workers of all lanes, which do this with what waits. A follower's have other names.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(
        &self,
        limits: &ServerLimits,
        follower: bool,
        work: impl Fn(LaneId, T) + Clone + Send + 'static,
    ) -> io::Result<()> {
        for lane in LaneId::ALL {
            for number in 1..=lane.workers(limits) {
                let (work, queue) = (work.clone(), self.queues[lane as usize].clone());
                threads::spawn(format!("{}-{number}", lane.name(follower)), move || {
                    queue.work(|waiting| work(lane, waiting));
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread::{scope, yield_now};

    use super::*;

    /// Puts so much in from several threads, and waits until workers have done it all.
    fn all_is_done(workers: usize, putters: usize, each: usize, blocks: bool) {
        let queue = Queue::new();
        let done = Arc::new(AtomicUsize::new(0));
        let (go, gate) = bounded::<()>(0);
        for _ in 0..workers {
            let (queue, done, gate) = (queue.clone(), Arc::clone(&done), gate.clone());
            threads::spawn("worker".to_owned(), move || {
                queue.work(|number: usize| {
                    if blocks && number == 0 {
                        let _ = gate.recv();
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                });
            })
            .unwrap();
        }
        scope(|putting| {
            for _ in 0..putters {
                putting.spawn(|| {
                    for number in 0..each {
                        queue.put(number);
                    }
                });
            }
        });
        let held = if blocks { putters.min(workers - 1) } else { 0 };
        while done.load(Ordering::SeqCst) < putters * each - held {
            yield_now();
        }
        drop(go);
        while done.load(Ordering::SeqCst) < putters * each {
            yield_now();
        }
    }

    #[test]
    fn nothing_is_left_lying_whoever_puts_it_in() {
        for round in 0..50 {
            all_is_done(1 + round % 5, 1 + round % 3, 500, false);
        }
    }

    #[test]
    fn workers_that_wait_hold_up_nobody_while_there_are_others() {
        for _ in 0..20 {
            all_is_done(4, 3, 200, true);
        }
    }
}
