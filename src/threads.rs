//! Starting threads: each has a name, and nobody starts one otherwise.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Stack of each of our threads, in bytes: no handler recurses, and JSON is skipped over iteratively.
const STACK_BYTES: usize = 512 * 1024;

/// Starts a thread with a name.
///
/// # Errors
/// When the system has no thread left to give.
pub fn spawn(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run)
}
