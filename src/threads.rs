//! Starting threads: each has a name, and nobody starts one otherwise.

use std::io;
use std::panic::resume_unwind;
use std::thread::{self, Builder, JoinHandle};

/// Stack of each of our threads, in bytes: no handler recurses, and JSON is skipped over iteratively.
const STACK_BYTES: usize = 512 * 1024;

/// Starts a thread with a name.
///
/// # Errors
/// When the system has no thread left to give.
pub fn spawn(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run)
}

/// Does something for each of several at the same time, each on a thread of its own but for one, and waits for all. Where the system has no thread left to give, one is done after the other.
pub fn all_at_once<'a, T: Sync, R: Send>(
    name: &str,
    all: &'a [T],
    run: impl Fn(&'a T) -> R + Sync,
) -> Vec<R> {
    let Some((first, rest)) = all.split_first() else { return Vec::new() };
    thread::scope(|scope| {
        let run = &run;
        let begin = |one: &'a T| {
            let builder = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
            (one, builder.spawn_scoped(scope, move || run(one)).ok())
        };
        let others: Vec<_> = rest.iter().map(begin).collect();
        let mut results = vec![run(first)];
        for (one, thread) in others {
            results.push(match thread {
                Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                None => run(one),
            });
        }
        results
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_at_once_comes_in_order() {
        for count in 0..5_u64 {
            let all: Vec<u64> = (0..count).collect();
            let done = all_at_once("test", &all, |one| one * 2);
            assert_eq!(done, all.iter().map(|one| one * 2).collect::<Vec<_>>());
        }
    }
}
