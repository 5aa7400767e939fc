//! `export`: all pairs, into a file.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::address::NodeArgs;
use super::answer::AnswerArgs;
use super::client::Client;
use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::key::PrefixArgs;
use super::waiting::Waiting;

/// What is written to standard output goes by this name.
const STANDARD_OUTPUT: &str = "-";

/// What `export` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct ExportArgs {
    /// Where the pairs go, a line each; `-` writes them to standard output
    ///
    /// They are written beside it, under its name with `.part` behind it, and get its name when all of them are there. `--timeout` is for the first of them.
    file: PathBuf,
    #[command(flatten)]
    prefix: PrefixArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// The last line.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct LastLine {
    end: bool,
    keys: u64,
    checksum: String,
}

/// Writes all pairs, and says how many there are.
pub(super) fn export(args: &ExportArgs) -> Result<bool, Failure> {
    let (node, timeout) = (&args.node.node, args.answer.timeout);
    let prefix = args.prefix.encoded();
    let client = Client::new(node, 1, timeout)?;
    let lines = {
        let _waiting = Waiting::begin(node, timeout);
        client.stream(&format!("/v1/export?prefix={prefix}"))?
    };
    let lines = match lines {
        Ok(lines) => lines,
        Err(refused) => {
            args.answer.form().show(&refused)?;
            return Err(refused.refusal());
        }
    };
    if args.file == Path::new(STANDARD_OUTPUT) {
        copy(lines, &mut io::stdout().lock(), Path::new("standard output"))?;
        return Ok(true);
    }
    let mut part = args.file.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |error: io::Error| cannot_write(&part, &error);
    let mut file = File::create(&part).map_err(failed)?;
    let end = copy(lines, &mut file, &part)?;
    file.sync_all().and_then(|()| fs::rename(&part, &args.file)).map_err(failed)?;
    args.answer.form().say(&format!("exported {} pairs, checksum {}", end.keys, end.checksum))?;
    Ok(true)
}

fn cannot_write(file: &Path, error: &io::Error) -> Failure {
    Failure::Local(format!("cannot write to {}: {error}", file.display()))
}

/// Copies lines until the last one, which says how many there were.
fn copy(lines: impl Read, out: &mut impl Write, file: &Path) -> Result<LastLine, Failure> {
    let torn = |why: String| Failure::Local(format!("the export is torn: {why}"));
    let (mut lines, mut out) = (BufReader::new(lines), BufWriter::new(out));
    let (mut line, mut copied) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).map_err(|error| torn(error.to_string()))?;
        if read == 0 {
            return Err(torn(format!("after {copied} pairs the last line is missing")));
        }
        let failed = |error: io::Error| cannot_write(file, &error);
        out.write_all(&line).map_err(failed)?;
        // A pair has no such fields.
        if let Ok(end) = serde_json::from_slice::<LastLine>(&line) {
            out.flush().map_err(failed)?;
            if end.keys != copied {
                return Err(torn(format!("{copied} pairs came of {}", end.keys)));
            }
            return Ok(end);
        }
        copied += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_export_is_told_from_a_whole_one() {
        let pair = "{\"key\":\"end\",\"etag\":\"1\",\"value\":{\"end\":true,\"keys\":0,\"checksum\":\"\"}}\n";
        let end = |keys| format!("{{\"end\":true,\"keys\":{keys},\"checksum\":\"0f\"}}\n");
        let table = [
            (format!("{pair}{pair}{}", end(2)), Some(2)),
            (end(0), Some(0)),
            (format!("{pair}{}", end(2)), None),
            (format!("{pair}{pair}"), None),
            (pair[..10].to_owned(), None),
            (String::new(), None),
        ];
        for (text, keys) in table {
            let mut out = Vec::new();
            let copied = copy(text.as_bytes(), &mut out, Path::new("f"));
            assert_eq!(copied.ok().map(|end| end.keys), keys, "{text}");
            assert!(keys.is_none() || out == text.as_bytes());
        }
    }
}
