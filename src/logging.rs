//! The log: lines wait in memory, and one thread writes them to standard error. So a reader that does not read holds up
//! that thread and no other.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::mem;
use std::panic::{self, PanicHookInfo};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use env_logger::{Builder, Target, WriteStyle};
use log::LevelFilter;
use parking_lot::{Condvar, Mutex};

use crate::clock::{Deadline, now};
use crate::threads;

/// Bytes of lines that may wait; further lines are dropped and counted. As many again may be with the writer.
const WAITING_BYTES: usize = 1 << 20;
/// The last lines have this long to be written before the process ends; what is not written by then is lost.
const LAST_LINES: Duration = Duration::from_millis(300);
/// Where standard error does not block, it is tried again this soon.
const RETRY: Duration = Duration::from_millis(20);
/// The level where `RUST_LOG` names none.
pub const DEFAULT_LEVEL: &str = "info";

static QUEUE: Queue = Queue { waiting: Mutex::new(Waiting::NONE), changed: Condvar::new() };
/// Lines that were dropped since the process was started.
static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Queue {
    waiting: Mutex<Waiting>,
    /// Told when lines have come, and when lines were written.
    changed: Condvar,
}

/// The lines that wait, one after the other.
#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    lines: u64,
    /// Lines that were dropped, which the log does not say yet.
    dropped: u64,
    /// Whether the writer holds lines that it took before.
    writing: bool,
}

impl Waiting {
    const NONE: Self = Self { text: Vec::new(), lines: 0, dropped: 0, writing: false };

    /// Takes a line, or counts it as dropped.
    fn push(&mut self, line: &[u8]) {
        if self.text.len() + line.len() > WAITING_BYTES {
            return self.drop_lines(1);
        }
        self.text.extend_from_slice(line);
        self.lines += 1;
    }

    fn drop_lines(&mut self, count: u64) {
        self.dropped += count;
        DROPPED.fetch_add(count, Ordering::Relaxed);
    }

    /// Hands out all lines with their number. What was dropped came after them, and is said there.
    fn take(&mut self) -> (Vec<u8>, u64) {
        let (mut text, lines) = (mem::take(&mut self.text), mem::take(&mut self.lines));
        let dropped = mem::take(&mut self.dropped);
        if dropped > 0 {
            let said = format!("evenkv: {dropped} lines of the log were dropped: nobody read them in time\n");
            text.extend_from_slice(said.as_bytes());
        }
        (text, lines)
    }
}

/// What a logger writes its lines to. It never blocks.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.waiting.lock().push(line);
        QUEUE.changed.notify_all();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that writes. Nothing else writes to standard error from now on.
///
/// # Errors
/// When the system has no thread left to give.
pub fn start() -> io::Result<()> {
    threads::spawn("log", write_forever).map(drop)
}

/// Has what the filter lets through go into the log, and panics, too.
pub fn begin(filter: &Filter) {
    let style = if shows_colours() { WriteStyle::Always } else { WriteStyle::Never };
    let mut builder = Builder::new();
    for (target, level) in &filter.0 {
        builder.filter(target.as_deref(), *level);
    }
    builder.target(Target::Pipe(Box::new(Lines))).write_style(style).init();
    panic::set_hook(Box::new(say_panic));
}

/// Whether standard error is a terminal that shows colours, and nobody has asked for none (no-color.org).
fn shows_colours() -> bool {
    let wanted = env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
    wanted && env::var_os("TERM").is_some_and(|kind| kind != "dumb") && io::stderr().is_terminal()
}

/// Says that a thread has panicked. Rust's own way would write to standard error.
pub fn say_panic(panic: &PanicHookInfo) {
    let (text, place) = (panic.payload_as_str().unwrap_or(""), panic.location());
    let place = place.map(ToString::to_string).unwrap_or_default();
    let thread = thread::current();
    log::error!("thread '{}' panicked at {place}: {text}", thread.name().unwrap_or("unnamed"));
}

/// Says something for which the program ends, whatever the log lets through.
pub fn say_last(text: &str) {
    // Lines take whatever comes.
    let _ = Lines.write(format!("evenkv: {text}\n").as_bytes());
    finish();
}

/// Waits until all lines are written, for a moment at most: the process is about to end.
pub fn finish() {
    let deadline = Deadline::after(now(), LAST_LINES);
    let mut waiting = QUEUE.waiting.lock();
    while (!waiting.text.is_empty() || waiting.writing) && !deadline.is_over() {
        QUEUE.changed.wait_for(&mut waiting, deadline.left());
    }
}

/// Lines that were dropped since the process was started.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn write_forever() {
    loop {
        let (text, lines) = {
            let mut waiting = QUEUE.waiting.lock();
            while waiting.text.is_empty() {
                QUEUE.changed.wait(&mut waiting);
            }
            waiting.writing = true;
            waiting.take()
        };
        let written = write_out(&text);
        let mut waiting = QUEUE.waiting.lock();
        waiting.writing = false;
        if written.is_err() {
            // It is said with the next line: the reader may be back by then, or the disk have room.
            waiting.drop_lines(lines);
        }
        QUEUE.changed.notify_all();
    }
}

fn write_out(mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match io::stderr().write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process may have told the terminal or pipe that they share not to block.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when a reader has read")]
fn pause() {
    thread::sleep(RETRY);
}

/// What is logged: a level, and others for parts of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Vec<(Option<String>, LevelFilter)>);

impl Default for Filter {
    fn default() -> Self {
        let level = DEFAULT_LEVEL.parse().expect("a level");
        // The listener reports each end of its accept loop as an error, also the wanted one. We say what matters of it ourselves.
        Self(vec![(None, level), (Some("tiny_http".to_owned()), LevelFilter::Off)])
    }
}

impl FromStr for Filter {
    type Err = String;

    /// Reads levels with commas between, of which one may be for all and others for a target, as in `warn,evenkv::http=debug`.
    /// What none of them is for stays at the default.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            let (target, level) = match directive.split_once('=') {
                Some((target, level)) => (Some(target.trim().to_owned()), level.trim()),
                None => (None, directive),
            };
            let level = level.parse().map_err(|_| {
                format!(
                    "'{level}' is no level: allowed is error, warn, info, debug, trace or off, for a part of the program after its name \
                     and =, with commas between several, as in info,evenkv::http=debug"
                )
            })?;
            filter.0.retain(|(known, _)| *known != target);
            filter.0.push((target, level));
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_are_dropped_and_said() {
        let mut waiting = Waiting::default();
        let line = vec![b'a'; WAITING_BYTES / 4];
        for _ in 0..6 {
            waiting.push(&line);
        }
        assert_eq!((waiting.text.len(), waiting.lines), (WAITING_BYTES, 4));
        let (text, lines) = waiting.take();
        let said = String::from_utf8_lossy(&text[WAITING_BYTES..]).into_owned();
        assert_eq!(
            (lines, said.as_str()),
            (4, "evenkv: 2 lines of the log were dropped: nobody read them in time\n")
        );
        waiting.push(b"b\n");
        assert_eq!(waiting.take(), (b"b\n".to_vec(), 1));
        assert!(dropped_lines() >= 2);
    }

    /// A text, the level of what it does not name, and what it names.
    type Row<'a> = (&'a str, LevelFilter, &'a [(&'a str, LevelFilter)]);

    #[test]
    fn a_filter_is_a_list_of_levels() {
        let off = ("tiny_http", LevelFilter::Off);
        let http = ("evenkv::http", LevelFilter::Debug);
        let table: [Row; 7] = [
            ("", LevelFilter::Info, &[off]),
            ("warn", LevelFilter::Warn, &[off]),
            ("TRACE", LevelFilter::Trace, &[off]),
            (" off , ", LevelFilter::Off, &[off]),
            ("evenkv::http=debug", LevelFilter::Info, &[off, http]),
            ("error,evenkv::http = debug", LevelFilter::Error, &[off, http]),
            ("tiny_http=error", LevelFilter::Info, &[("tiny_http", LevelFilter::Error)]),
        ];
        for (text, all, others) in table {
            let Filter(mut levels) = text.parse().unwrap();
            levels.sort();
            let others = others.iter().map(|(target, level)| (Some((*target).to_owned()), *level));
            let mut wanted: Vec<_> = others.chain([(None, all)]).collect();
            wanted.sort();
            assert_eq!(levels, wanted, "{text:?}");
        }
        for text in ["inof", "info,debg", "evenkv", "evenkv=", "evenkv=loud", "info/text", "=info=debug"] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.contains("allowed is error, warn"), "{text}: {error}");
        }
    }
}
