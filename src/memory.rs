//! What the allocator of the program holds, and that it gives back what was freed.
//!
//! The program has jemalloc in place of the system's allocator (`main.rs`). Pages in which nothing is allocated any more it keeps for a
//! while, since they are mostly wanted again at once, and then gives them back to the system.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tikv_jemalloc_ctl::{Access, AsName, Error, background_thread, epoch, max_background_threads, stats};

use crate::clock::now;

/// Freed pages are given back, more and more of them, within this time.
const DECAY_MS: isize = 1000;
/// jemalloc's thread that gives them back is one for all its arenas.
const THREADS: usize = 1;
/// The setting for the arenas to come, and for the one that a process begins with.
const DECAY_SETTINGS: [&[u8]; 2] = [b"arenas.dirty_decay_ms\0", b"arena.0.dirty_decay_ms\0"];
/// Figures may be so old. To have them counted anew takes a lock of each arena.
const FRESH: Duration = Duration::from_millis(100);

/// What the allocator holds, in bytes. In a process that has another allocator these are not its figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What is allocated, each piece as large as the allocator makes it. What threads keep for their next allocations counts, too.
    pub allocated: u64,
    /// The pages that it has in RAM: those in which something is allocated, those not given back yet, and those of its own.
    pub resident: u64,
}

/// The figures that were counted last, and when.
static LAST: Mutex<Option<(Instant, Usage)>> = Mutex::new(None);

/// What the allocator holds, or has held a moment ago: it costs little to ask often.
///
/// # Panics
/// When jemalloc was built without figures, which the features in Cargo.toml rule out.
pub fn usage() -> Usage {
    usage_within(FRESH)
}

/// The same, counted anew.
///
/// # Panics
/// As [`usage`].
pub fn usage_now() -> Usage {
    usage_within(Duration::ZERO)
}

fn usage_within(age: Duration) -> Usage {
    let now = now();
    let mut last = LAST.lock();
    match *last {
        Some((counted, usage)) if now.saturating_duration_since(counted) < age => usage,
        _ => {
            let usage = count().expect("jemalloc counts");
            *last = Some((now, usage));
            usage
        }
    }
}

fn count() -> Result<Usage, Error> {
    epoch::advance()?;
    Ok(Usage { allocated: stats::allocated::read()? as u64, resident: stats::resident::read()? as u64 })
}

/// From now on the allocator gives back what was freed, on a thread of its own. To be called while the process has one thread: each
/// further one may begin an arena with the setting as it is then.
///
/// # Errors
/// When the allocator takes no such setting; it then keeps more and for longer.
pub fn give_back_what_is_freed() -> Result<(), Error> {
    for setting in DECAY_SETTINGS {
        setting.name().write(DECAY_MS)?;
    }
    max_background_threads::write(THREADS)?;
    background_thread::write(true)
}
