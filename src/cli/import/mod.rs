//! `import`: every line of a file becomes a pair.
//!
//! One thread reads and parses, each connection has a thread and a bounded queue of its own, and the calling
//! thread alone keeps the tally:
//!
//! ```text
//! import-read --queue of the key--> import-1 .. import-N --events--> the calling thread
//! ```
//!
//! A connection that stores sends what waits for it by batches, more lines at once the faster that goes.
//!
//! A key always goes to the same queue, so of two lines with one key the later one wins, as if they had been
//! sent one after the other.

mod batches;
mod entries;
mod format;
mod input;
mod lines;
mod pipeline;
mod report;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crossbeam_channel::Receiver;
use indicatif::{ProgressBar, ProgressStyle};

use super::address::{Address, NodeArgs};
use super::answer::{AnswerArgs, Form};
use super::client::Client;
use super::failure::Failure;
use super::interrupts::interrupts;
use super::output::print;
use super::waiting::Waiting;
use entries::Entry;
use format::{Format, FormatArgs};
use input::Input;
use pipeline::{Node, Plan, Stopped};
use report::{Event, FailureLog, Pass, Tally};
use worker::Task;

/// More connections than this gain nothing at one node.
const CONNECTIONS_MAX: i64 = 256;

const FORMATS_HELP: &str = "\
Formats:
  ndjson     {\"key\": \"text\", \"value\": any JSON} on each line; other fields are
             ignored. Files named *.ndjson and *.jsonl. What an export has written
             is taken back with types and times to live, and a torn file is
             said to be one.
  tsv        Key, a tab, and the rest of the line, which is stored as a JSON
             string. Files named *.tsv and *.tab.
  delimited  Fields between delimiters; the key is the field that --key names,
             the value a JSON array of all the fields as strings. Files named
             *.csv, and any with --delimiter or --key.
  words      A key on each line; the value is the number of the line. Files
             named words or *.words, and those in a folder named dict.

Empty lines are skipped. A key may be any bytes, except in ndjson and delimited,
where it is text; a value is always UTF-8. A line that cannot be read or stored
is a failed line, and the import goes on; it stops early where the node cannot
be reached any more, or does nothing but refuse. Of two lines with the same key
the later one wins.

Ctrl-C stops an import; what was sent is waited for, and a second Ctrl-C does not.
It then says, as whenever it is stopped, from which line the same command goes on
with --from-line.

Lines are sent many at once, and single ones to a node that does not know that.

Examples:
  evenkv import pairs.ndjson
  evenkv import UnicodeData.txt --delimiter ';' --key 1 --no-quoting
  evenkv import /usr/share/dict/words --verify-through 127.0.0.1:13802

Exit codes: 0 every line is stored (and was read back), 1 some lines failed,
2 wrong usage, 3 the import could not be begun or not be finished.";

/// What `import` is told.
#[derive(Debug, clap::Args)]
#[command(after_long_help = FORMATS_HELP, after_help = "The formats are described by --help.")]
pub struct ImportArgs {
    /// The file to read; `-` is standard input
    file: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
    /// Send through these nodes, the connections spread over them, in place of --node
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = Address::parse)]
    through: Vec<Address>,
    /// How many connections send at the same time
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=CONNECTIONS_MAX))]
    connections: u16,
    /// How long each connection waits, in all, for a node that is overloaded or gone; success earns it back
    #[arg(long, value_name = "SECONDS", default_value = "15")]
    retry_seconds: u16,
    /// Write every failed line's number and reason to this file, separated by a tab; with --from-line behind what is in it
    #[arg(long, value_name = "FILE")]
    failures: Option<PathBuf>,
    /// Begin with this line, as an import that was stopped has said
    #[arg(long, value_name = "LINE", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Read every key back afterwards and compare the value; one that is absent or differs is a failed line
    #[arg(long)]
    verify: bool,
    /// Read every key back through these nodes, one after the other; implies --verify
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = Address::parse)]
    verify_through: Vec<Address>,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What the import pass leaves for reading back.
struct Written {
    /// The last line of every key, by the hash of the key: only that one's value can still be there.
    last_lines: HashMap<u64, u64>,
    failed: HashSet<u64>,
}

/// Imports the file; false if a line failed.
pub(super) fn import(args: &ImportArgs) -> Result<bool, Failure> {
    let format = args.format.decide(&args.file).map_err(Failure::Usage)?;
    let through = match (&args.verify_through[..], args.verify) {
        ([], true) => vec![args.node.node.clone()],
        (named, _) => named.to_vec(),
    };
    let is_verified = !through.is_empty();
    if is_verified
        && !std::fs::metadata(&args.file).is_ok_and(|found| found.is_file())
        && is_there(&args.file)
    {
        let text = "reading back needs the lines a second time: give a file, not standard input or a pipe";
        return Err(Failure::Usage(text.to_owned()));
    }
    if let Some(failures) = args.failures.as_deref().filter(|failures| input::is_same(&args.file, failures)) {
        return Err(Failure::Usage(format!(
            "--failures {} is the file that is imported, and would be emptied: name another one",
            failures.display()
        )));
    }
    let mut log = FailureLog::open(args.failures.as_deref(), args.from_line > 1)?;
    let mut passes = Vec::new();
    let ended = run_passes(args, format, &through, &mut log, &mut passes);
    if args.answer.form() == Form::Json && !passes.is_empty() {
        print(report::document(&passes).to_string().as_bytes())?;
    }
    log.close()?;
    ended?;
    Ok(passes.iter().all(|pass| pass.tally.failed() == 0))
}

/// Stores the lines, and reads them back through these nodes; what came of it is added to `passes`, also where it ends early.
fn run_passes(
    args: &ImportArgs,
    format: Format,
    through: &[Address],
    log: &mut FailureLog,
    passes: &mut Vec<Pass>,
) -> Result<(), Failure> {
    let is_verified = !through.is_empty();
    let mut written = Written { last_lines: HashMap::new(), failed: HashSet::new() };
    let mut importer = Importer { args, format, interrupts: interrupts(), log };
    let nodes = if args.through.is_empty() { std::slice::from_ref(&args.node.node) } else { &args.through };
    let stored = importer.run(nodes, Task::Write, |entry| {
        if entry.line() < args.from_line {
            return false;
        }
        if let (true, Entry::Record(record)) = (is_verified, entry) {
            written.last_lines.insert(record.key_hash(), record.line);
        }
        true
    })?;
    written.failed = stored.tally.failed_lines();
    end_pass(stored, passes)?;
    for node in through {
        let checked = importer.run(std::slice::from_ref(node), Task::ReadBack, |entry| match entry {
            Entry::Record(record) => {
                written.last_lines.get(&record.key_hash()) == Some(&record.line)
                    && !written.failed.contains(&record.line)
            }
            // It was counted when the file was imported.
            Entry::Bad { .. } => false,
        })?;
        end_pass(checked, passes)?;
    }
    Ok(())
}

/// Keeps what came of a pass; one that was stopped is the last.
fn end_pass(pass: Pass, passes: &mut Vec<Pass>) -> Result<(), Failure> {
    let stopped = pass.stopped.clone();
    passes.push(pass);
    let Some(Stopped { reason, next_line }) = stopped else { return Ok(()) };
    let go_on = next_line.map_or_else(String::new, |line| {
        format!(
            "\n  Each line before line {line} is stored, or was named as failed. The same command with --from-line {line} goes on."
        )
    });
    Err(Failure::Local(format!("stopped before the end: {reason}{go_on}")))
}

fn is_there(file: &Path) -> bool {
    file == Path::new("-") || file.exists()
}

/// What all passes of an import have in common.
struct Importer<'a> {
    args: &'a ImportArgs,
    format: Format,
    interrupts: Receiver<()>,
    log: &'a mut FailureLog,
}

impl Importer<'_> {
    /// One way through the file: its lines that `choose` takes go through `task` at these nodes, of which there is one. Says what came of it.
    fn run(
        &mut self,
        nodes: &[Address],
        task: Task,
        choose: impl FnMut(&Entry) -> bool + Send,
    ) -> Result<Pass, Failure> {
        let (args, format) = (self.args, self.format);
        let connections = usize::from(args.connections);
        let mut asked = Vec::new();
        for node in nodes {
            let client = Client::new(node, connections, args.answer.timeout)?;
            // Whatever it answers: it is there. Otherwise every line would find out by itself.
            let _waiting = Waiting::begin(node, args.answer.timeout);
            client.get("/livez")?;
            asked.push(Node::new(client));
        }
        let node = &nodes[0];
        let input = Input::open(&args.file)?;
        let bar = progress_bar(input.length());
        let keeps_lines = args.verify || !args.verify_through.is_empty();
        let mut tally = Tally::new(keeps_lines);
        let plan = Plan {
            nodes: &asked,
            task,
            connections,
            patience: Duration::from_secs(args.retry_seconds.into()),
            asking: AtomicUsize::new(0),
        };
        let read = {
            let bar = bar.clone();
            move |stopped| Ok(entries::entries(format, bar.wrap_read(input.until(stopped)?)))
        };
        let result = pipeline::run(&plan, read, choose, &self.interrupts, |event| {
            let say = |text: &str| bar.suspend(|| eprintln!("evenkv: {text}"));
            match &event {
                Event::Failed { line, reason } => self.log.note(*line, &task.told(node, reason)),
                Event::Silent => say(&format!("waiting for the node at {node}")),
                Event::Interrupted => {
                    say("stopping: what was sent is waited for; Ctrl-C again does not wait");
                }
                Event::Done(_) | Event::Stop(_) | Event::Left(_) => {}
            }
            let before = tally.seen();
            tally.add(event);
            if tally.seen() / 256 > before / 256 {
                bar.set_message(format!("{} pairs, {} failed", tally.done(), tally.failed()));
            }
        });
        let elapsed = bar.elapsed();
        bar.finish_and_clear();
        for line in tally.listing() {
            eprintln!("{line}");
        }
        let stopped = result.err().map(|stopped| Stopped {
            next_line: stopped.next_line.map(|line| line.max(args.from_line)),
            ..stopped
        });
        let pass = Pass { task, node: node.clone(), tally, elapsed, stopped };
        args.answer.form().say(&pass.line())?;
        Ok(pass)
    }
}

/// A bar on standard error; it draws nothing where that is not a terminal.
fn progress_bar(length: Option<NonZeroU64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => {
            (ProgressBar::new(length.get()), "{wide_bar} {bytes}/{total_bytes} {msg} {elapsed_precise}")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {msg} {elapsed_precise}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
