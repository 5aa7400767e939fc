//! `inspect`: what is in the folder of a node that does not run, and whether it is whole.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use super::failure::Failure;
use super::output::print_more;
use crate::disk::{Inspection, SystemFolder, inspect as look};

/// What `inspect` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing in the folder is changed.\n\nExit codes: 0 it is whole, 1 something in it is damaged, 2 wrong usage, 3 it is no folder of a node, \
                  cannot be read, or a node runs with it."
)]
pub struct InspectArgs {
    #[arg(help = "The DATA_DIR of a node that does not run", value_name = "FOLDER")]
    folder: PathBuf,
}

/// Prints what is in a folder; whether all of it is whole.
pub(super) fn inspect(args: &InspectArgs) -> Result<bool, Failure> {
    let folder = SystemFolder::that_is_there(&args.folder)
        .map_err(|error| Failure::Local(format!("{} cannot be read: {error}", args.folder.display())))?;
    let found = look(&folder).map_err(Failure::Local)?;
    print_more(text(&found).trim_end().as_bytes())?;
    Ok(found.problems.is_empty())
}

fn text(found: &Inspection) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes every write");
    line(format!(
        "node {}, folder {}, started {} times with it, {} bytes",
        found.address, found.id, found.starts, found.bytes
    ));
    let state = found.notes.iter().find(|(name, _)| name == "state");
    let state: Option<Value> = state.and_then(|(_, bytes)| serde_json::from_slice(bytes).ok());
    line(match &state {
        Some(state) => format!(
            "cluster {}, version {} of its state, epoch {}",
            state["cluster"].as_str().unwrap_or("?"),
            state["version"],
            state["view"]["epoch"]
        ),
        None => "of no cluster yet".to_owned(),
    });
    for group in &found.groups {
        let what = match group.kind {
            1 => "the view".to_owned(),
            _ => format!("group {}", group.group),
        };
        let snapshot = group.snapshot.map_or_else(
            || "no snapshot".to_owned(),
            |(index, bytes)| format!("snapshot to {index} ({bytes} bytes)"),
        );
        let entries = group.entries.map_or_else(
            || "no entries since".to_owned(),
            |(first, last)| format!("entries {first} to {last} ({} bytes)", group.log_bytes),
        );
        line(format!("{what}: replica {:016x}, {snapshot}, {entries}", group.replica));
    }
    for problem in &found.problems {
        line(format!("damaged: {problem}"));
    }
    if found.problems.is_empty() {
        line("all checksums match".to_owned());
    }
    out
}
