//! The queues of the classes of requests, each bounded and with a fixed pool of workers. What comes back from the log of a shard has its place in
//! the queue in any case, and a bound of its own.

use std::io;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::lane_id::LaneId;
use crate::config::ServerLimits;
use crate::threads;

/// The queues of all lanes; `T` is what waits in them.
pub struct Lanes<T> {
    queues: Vec<(Sender<T>, Receiver<T>)>,
    length: usize,
}

impl<T> Lanes<T> {
    /// Empty queues.
    pub fn new(limits: &ServerLimits) -> Self {
        Self { queues: LaneId::ALL.iter().map(|_| unbounded()).collect(), length: limits.queue_length }
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
        // The receiver is here, too.
        let _ = self.queues[lane as usize].0.send(work);
    }

    /// Takes out of a lane's queue what `is_late` says to have waited for too long. The rest keeps its order, but for what comes in
    /// meanwhile.
    pub fn take_late(&self, lane: LaneId, is_late: impl Fn(&T) -> bool) -> Vec<T> {
        let (sender, receiver) = &self.queues[lane as usize];
        let mut taken = Vec::new();
        for _ in 0..receiver.len() {
            let Ok(work) = receiver.try_recv() else { break };
            if is_late(&work) {
                taken.push(work);
            } else {
                // The receiver is here, too.
                let _ = sender.send(work);
            }
        }
        taken
    }

    /// How much waits in a lane.
    pub fn waiting(&self, lane: LaneId) -> usize {
        self.queues[lane as usize].0.len()
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
                let (work, queue) = (work.clone(), self.queues[lane as usize].1.clone());
                threads::spawn(format!("{}-{number}", lane.name(follower)), move || {
                    for waiting in queue {
                        work(lane, waiting);
                    }
                })?;
            }
        }
        Ok(())
    }
}
