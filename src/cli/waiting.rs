//! What is said while a node does not answer: nothing for a second, and then that it is waited for, and for how long.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressStyle};

use super::address::Address;
use super::seconds::Seconds;
use crate::threads;

/// An answer that comes within this time is not spoken of beforehand.
const SAID_AFTER: Duration = Duration::from_secs(1);
/// How often the time that has passed is drawn anew, on a terminal.
const DRAWN_EVERY: Duration = Duration::from_millis(100);

/// As long as this is there, a thread says that a node is waited for: once in a line, or by a clock that runs on a terminal.
pub(super) struct Waiting {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Waiting {
    /// Waits for this node, for so long at most.
    pub(super) fn begin(node: &Address, timeout: Duration) -> Waiting {
        let said = format!("waiting for the node at {node}, {} at most", Seconds(timeout));
        Waiting::with(move |ended| {
            let bar = spinner(&said);
            if bar.is_hidden() {
                eprintln!("evenkv: {said}");
                return;
            }
            while ended.recv_timeout(DRAWN_EVERY) == Err(RecvTimeoutError::Timeout) {
                bar.tick();
            }
            bar.finish_and_clear();
        })
    }

    /// The same beside a bar that is drawn already, where a line is enough.
    pub(super) fn beside(bar: &ProgressBar, node: &Address, timeout: Duration) -> Waiting {
        let (bar, said) =
            (bar.clone(), format!("waiting for the node at {node}, {} at most", Seconds(timeout)));
        Waiting::with(move |_| bar.suspend(|| eprintln!("evenkv: {said}")))
    }

    fn with(say: impl FnOnce(&Receiver<()>) + Send + 'static) -> Waiting {
        let (end, ended) = bounded::<()>(0);
        let watch = move || {
            if ended.recv_timeout(SAID_AFTER) == Err(RecvTimeoutError::Timeout) {
                say(&ended);
            }
        };
        // Without a thread nothing is said, and the answer is as good.
        Waiting { end: Some(end), thread: threads::spawn("waiting", watch).ok() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.end = None;
        // What is printed next begins on a line of its own.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn spinner(said: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_elapsed(SAID_AFTER).with_message(said.to_owned());
    match ProgressStyle::with_template("{spinner} {msg}: {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
