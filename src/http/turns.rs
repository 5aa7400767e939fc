//! Answers that are made one at a time: those that come meanwhile wait, and share the next one.

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::error::Error;

/// Makes one answer at a time for all who ask.
#[derive(Default)]
pub struct Turns {
    state: Mutex<State>,
    ended: Condvar,
    #[cfg(test)]
    waiting: std::sync::atomic::AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Counts the answers that were begun.
    begun: u64,
    is_made: bool,
    /// The last answer, and its number.
    last: Option<(u64, Value)>,
}

/// The turn of whoever makes an answer, and gives it up whatever happens.
struct Turn<'a>(&'a Turns);

impl Turns {
    /// An answer that was begun after this call was.
    ///
    /// # Errors
    /// What `make` says.
    pub fn share(&self, make: impl FnOnce() -> Result<Value, Error>) -> Result<Value, Error> {
        let mut state = self.state.lock();
        let before = state.begun;
        while state.is_made {
            #[cfg(test)]
            self.waiting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            self.ended.wait(&mut state);
            if let Some((_, answer)) = state.last.as_ref().filter(|(number, _)| *number > before) {
                return Ok(answer.clone());
            }
        }
        state.begun += 1;
        state.is_made = true;
        let number = state.begun;
        drop(state);
        let turn = Turn(self);
        let answer = make()?;
        self.state.lock().last = Some((number, answer.clone()));
        drop(turn);
        Ok(answer)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_made = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn who_waits_shares_an_answer_that_was_begun_later() {
        let (turns, count) = (Turns::default(), AtomicUsize::new(0));
        let make = || Ok(Value::from(count.fetch_add(1, Ordering::SeqCst)));
        assert_eq!(turns.share(make), Ok(0.into()));
        assert_eq!(turns.share(make), Ok(1.into()), "the last one was begun before this call");
        let (begun, go_on) = (bounded::<()>(0), bounded::<()>(0));
        thread::scope(|scope| {
            let slow = scope.spawn(|| {
                turns.share(|| {
                    begun.0.send(()).unwrap();
                    go_on.1.recv().unwrap();
                    make()
                })
            });
            begun.1.recv().unwrap();
            let others: Vec<_> = (0..4).map(|_| scope.spawn(|| turns.share(make))).collect();
            // Whoever came too late for the next answer would make one more.
            while turns.waiting.load(Ordering::SeqCst) < 4 {
                thread::yield_now();
            }
            go_on.0.send(()).unwrap();
            assert_eq!(slow.join().unwrap(), Ok(2.into()));
            for other in others {
                assert_eq!(other.join().unwrap(), Ok(3.into()));
            }
        });
    }

    #[test]
    fn an_error_is_not_shared() {
        let turns = Turns::default();
        assert!(turns.share(|| Err(Error::NotServing("now".to_owned()))).is_err());
        assert_eq!(turns.share(|| Ok(Value::Null)), Ok(Value::Null));
    }
}
