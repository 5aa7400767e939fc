//! `import`: every line of a file becomes a pair.
//!
//! One thread reads and parses, each connection has a thread and a bounded queue of its own, and the calling
//! thread alone keeps the tally:
//!
//! ```text
//! import-read --queue of the key--> import-1 .. import-N --events--> the calling thread
//! ```
//!
//! A key always goes to the same queue, so of two lines with one key the later one wins, as if they had been
//! sent one after the other.

mod entries;
mod format;
mod lines;
mod pipeline;
mod report;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::address::{Address, NodeArgs};
use super::client::{Client, EXCHANGE_TIMEOUT};
use super::failure::Failure;
use super::output::print;
use entries::Entry;
use format::{Format, FormatArgs};
use report::{FailureLog, Tally, report_line};
use worker::Task;

/// More connections than this gain nothing at one node.
const CONNECTIONS_MAX: i64 = 256;

const FORMATS_HELP: &str = "\
Formats:
  ndjson     {\"key\": \"text\", \"value\": any JSON} on each line; other fields are
             ignored. Files named *.ndjson and *.jsonl.
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
    /// How many connections send at the same time
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=CONNECTIONS_MAX))]
    connections: u16,
    /// How long each connection waits, in all, for a node that is overloaded or gone; success earns it back
    #[arg(long, value_name = "SECONDS", default_value = "15")]
    retry_seconds: u16,
    /// Write every failed line's number and reason to this file, separated by a tab
    #[arg(long, value_name = "FILE")]
    failures: Option<PathBuf>,
    /// Read every key back afterwards and compare the value; one that is absent or differs is a failed line
    #[arg(long)]
    verify: bool,
    /// Read every key back through these nodes, one after the other; implies --verify
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = Address::parse)]
    verify_through: Vec<Address>,
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
    let mut log = FailureLog::open(args.failures.as_deref())?;
    let mut written = Written { last_lines: HashMap::new(), failed: HashSet::new() };
    let stored = run_pass(args, format, &args.node.node, Task::Write, &mut log, |entry| {
        if let (true, Entry::Record(record)) = (is_verified, entry) {
            written.last_lines.insert(record.key_hash(), record.line);
        }
        true
    })?;
    let mut all_well = stored.failed() == 0;
    written.failed = stored.into_failed_lines();
    for node in &through {
        let checked = run_pass(args, format, node, Task::ReadBack, &mut log, |entry| match entry {
            Entry::Record(record) => {
                written.last_lines.get(&record.key_hash()) == Some(&record.line)
                    && !written.failed.contains(&record.line)
            }
            // It was counted when the file was imported.
            Entry::Bad { .. } => false,
        })?;
        all_well &= checked.failed() == 0;
    }
    log.close()?;
    Ok(all_well)
}

fn is_there(file: &Path) -> bool {
    file == Path::new("-") || file.exists()
}

/// One way through the file: its lines that `choose` takes go through `task` at `node`. Prints the report.
fn run_pass(
    args: &ImportArgs,
    format: Format,
    node: &Address,
    task: Task,
    log: &mut FailureLog,
    choose: impl FnMut(&Entry) -> bool + Send,
) -> Result<Tally, Failure> {
    let connections = usize::from(args.connections);
    let client = Client::new(node, connections, EXCHANGE_TIMEOUT)?;
    // Whatever it answers: it is there. Otherwise every line would find out by itself.
    client.get("/livez")?;
    let (input, length) = open(&args.file)?;
    let bar = progress_bar(length);
    let input = bar.wrap_read(input);
    let keeps_lines = args.verify || !args.verify_through.is_empty();
    let mut tally = Tally::new(keeps_lines);
    let plan = pipeline::Plan {
        client: &client,
        task,
        connections,
        patience: Duration::from_secs(args.retry_seconds.into()),
    };
    let result = pipeline::run(
        &plan,
        move || entries::entries(format, input),
        choose,
        |event| {
            if let report::Event::Failed { line, reason } = &event {
                log.note(*line, &task.told(node, reason));
            }
            tally.add(event);
            if tally.seen().is_multiple_of(256) {
                bar.set_message(format!("{} pairs, {} failed", tally.done(), tally.failed()));
            }
        },
    );
    let elapsed = bar.elapsed();
    bar.finish_and_clear();
    for line in tally.listing() {
        eprintln!("{line}");
    }
    print(report_line(&task.name(node), tally.done(), tally.failed(), elapsed).as_bytes())?;
    match result {
        Ok(()) => Ok(tally),
        Err(reason) => Err(Failure::Local(format!("stopped before the end: {reason}"))),
    }
}

/// The input and its length in bytes where that is known.
fn open(file: &Path) -> Result<(Box<dyn Read + Send>, Option<NonZeroU64>), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let wrong = |error: io::Error| Failure::Local(format!("cannot read {}: {error}", file.display()));
    let opened = File::open(file).map_err(wrong)?;
    let found = opened.metadata().map_err(wrong)?;
    if found.is_dir() {
        return Err(Failure::Local(format!("cannot read {}: it is a folder", file.display())));
    }
    Ok((Box::new(opened), NonZeroU64::new(found.len())))
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
