//! What waits for the raft thread.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::clock::now;

/// So many inputs are taken in at once, whatever they would wait for.
const MANY: usize = 256;

/// Whether an input wakes the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// In any case.
    Now,
    /// Unless reads of this group wait for an answer of the other replicas: what comes meanwhile shares the next question.
    Read(u64),
    /// Unless entries of this group wait for an answer of the other replicas: what comes meanwhile goes with the next ones.
    Write(u64),
}

/// The groups for which the thread waits for other replicas already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UnderWay {
    /// For an answer to the question whether this node still leads.
    pub(super) reads: Vec<u64>,
    /// For entries to be committed.
    pub(super) writes: Vec<u64>,
}

/// A queue of one thread that is not woken for what it could not begin with yet. Under load that would be once for every request.
pub(super) struct Inbox<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    inputs: Vec<T>,
    under_way: UnderWay,
    is_due: bool,
    is_closed: bool,
}

impl<T> State<T> {
    /// Whether the answer has come that some of the inputs may have waited for.
    fn goes_on(&self, now: &UnderWay) -> bool {
        let has_come = |before: &[u64], now: &[u64]| before.iter().any(|group| !now.contains(group));
        let answered = has_come(&self.under_way.reads, &now.reads);
        (answered || has_come(&self.under_way.writes, &now.writes)) && !self.inputs.is_empty()
    }
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Self {
        let state =
            State { inputs: Vec::new(), under_way: UnderWay::default(), is_due: false, is_closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }

    /// Puts an input in, or gives it back where so many wait already.
    pub(super) fn put(&self, input: T, urgency: Urgency, limit: usize) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.inputs.len() >= limit {
            return Err(input);
        }
        state.inputs.push(input);
        let can_wait = match urgency {
            Urgency::Now => false,
            Urgency::Read(group) => state.under_way.reads.contains(&group),
            Urgency::Write(group) => state.under_way.writes.contains(&group),
        };
        if (!can_wait || state.inputs.len() >= MANY) && !std::mem::replace(&mut state.is_due, true) {
            drop(state);
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Nothing more is put in.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// Waits until there is something to do, or for a time; takes all that has come, also what could wait. Nothing once this is closed.
    pub(super) fn take(&self, under_way: UnderWay, until: Instant) -> Option<Vec<T>> {
        let mut state = self.state.lock();
        state.is_due |= state.goes_on(&under_way);
        state.under_way = under_way;
        while !state.is_due && !state.is_closed && now() < until {
            self.arrived.wait_until(&mut state, until);
        }
        state.is_due = false;
        (!state.is_closed).then(|| std::mem::take(&mut state.inputs))
    }
}

#[cfg(test)]
impl<T> Inbox<T> {
    pub(super) fn has_input(&self) -> bool {
        !self.state.lock().inputs.is_empty()
    }

    /// Takes all that has come, without waiting.
    pub(super) fn drain(&self) -> Vec<T> {
        std::mem::take(&mut self.state.lock().inputs)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NONE: UnderWay = UnderWay { reads: Vec::new(), writes: Vec::new() };

    /// A question of group 1.
    fn reads() -> UnderWay {
        UnderWay { reads: vec![1], writes: Vec::new() }
    }

    fn put(inbox: &Inbox<u32>, input: u32, urgency: Urgency) {
        inbox.put(input, urgency, usize::MAX).unwrap();
    }

    /// What is taken where nothing more comes; nothing where there is no reason to take anything yet.
    fn due(inbox: &Inbox<u32>, under_way: &UnderWay) -> bool {
        let mut state = inbox.state.lock();
        let goes_on = state.goes_on(under_way);
        state.is_due |= goes_on;
        state.is_due
    }

    #[test]
    fn reads_wait_for_the_question_that_is_under_way_and_go_on_after_it() {
        let inbox = Inbox::new();
        assert_eq!(inbox.take(reads(), now()), Some(vec![]));
        put(&inbox, 1, Urgency::Read(1));
        assert!(!due(&inbox, &reads()));
        put(&inbox, 2, Urgency::Write(1));
        assert!(due(&inbox, &reads()), "no entries are under way");
        assert_eq!(inbox.take(reads(), now()), Some(vec![1, 2]), "together, in their order");
        put(&inbox, 9, Urgency::Read(2));
        assert!(due(&inbox, &reads()), "another group waits for nothing");
        inbox.take(reads(), now());
        put(&inbox, 3, Urgency::Read(1));
        assert!(!due(&inbox, &reads()));
        assert!(due(&inbox, &NONE));
        assert_eq!(inbox.take(NONE, now() + Duration::from_mins(1)), Some(vec![3]));
        put(&inbox, 4, Urgency::Read(1));
        assert!(due(&inbox, &NONE));
    }

    #[test]
    fn what_could_wait_comes_with_the_time() {
        let inbox = Inbox::new();
        inbox.take(reads(), now());
        put(&inbox, 1, Urgency::Read(1));
        assert_eq!(inbox.take(reads(), now() + Duration::from_millis(1)), Some(vec![1]));
    }

    #[test]
    fn many_do_not_wait() {
        let inbox = Inbox::new();
        inbox.take(reads(), now());
        (0..255).for_each(|input| put(&inbox, input, Urgency::Read(1)));
        assert!(!due(&inbox, &reads()));
        put(&inbox, 255, Urgency::Read(1));
        assert!(due(&inbox, &reads()));
    }

    #[test]
    fn too_many_are_given_back_and_a_closed_one_ends() {
        let inbox = Inbox::new();
        put(&inbox, 1, Urgency::Now);
        assert_eq!(inbox.put(2, Urgency::Now, 1), Err(2));
        inbox.close();
        assert_eq!(inbox.take(NONE, now() + Duration::from_mins(1)), None);
    }
}
