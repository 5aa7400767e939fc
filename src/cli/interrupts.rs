//! Ctrl-C in a subcommand that has something to say before it ends.

use std::process;

use crossbeam_channel::{Receiver, bounded, never};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use crate::threads;

/// The exit code of a program that a second Ctrl-C ends at once, as shells have it.
const INTERRUPTED: i32 = 130;

/// Gets a message at the first Ctrl-C, which from now on does not end the program by itself. A second one does, whatever is waited for.
pub(super) fn interrupts() -> Receiver<()> {
    let (caught, interrupts) = bounded(1);
    let watching = Signals::new([SIGINT]).and_then(|mut signals| {
        threads::spawn("interrupts", move || {
            let mut signals = signals.forever();
            if signals.next().is_some() {
                let _ = caught.try_send(());
            }
            if signals.next().is_some() {
                process::exit(INTERRUPTED);
            }
        })
    });
    // Then Ctrl-C ends the program at once.
    if watching.is_err() { never() } else { interrupts }
}
