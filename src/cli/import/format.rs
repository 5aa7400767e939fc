//! Which of the formats a file is in.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::Path;

/// The column of the key, counted from 1.
pub(super) type Column = NonZeroUsize;

/// The names of the formats on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FormatName {
    Ndjson,
    Tsv,
    Delimited,
    Words,
}

/// How lines become pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Ndjson,
    Tsv,
    Delimited { delimiter: u8, key: Column, quoting: bool, header: bool },
    Words,
}

/// The options that say what the lines look like.
#[derive(Debug, clap::Args)]
pub(super) struct FormatArgs {
    /// The format of the file; unset: what its name and the other options say
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<FormatName>,
    /// What stands between the fields: one ASCII character, or `\t` for a tab; a comma for names in .csv
    #[arg(long, value_name = "CHARACTER", value_parser = parse_delimiter, allow_hyphen_values = true)]
    delimiter: Option<u8>,
    /// Which field is the key, counted from 1; unset: the first
    #[arg(long, value_name = "COLUMN")]
    key: Option<Column>,
    /// Take double quotes in delimited fields as they are, as UnicodeData.txt and its kin want it
    #[arg(long)]
    no_quoting: bool,
    /// Skip the first line of a delimited file, which names the columns
    #[arg(long)]
    header: bool,
}

impl FormatArgs {
    /// The format of `file`; the error says what has to be added to the command line.
    pub(super) fn decide(&self, file: &Path) -> Result<Format, String> {
        let has_fields = self.delimiter.is_some() || self.key.is_some() || self.no_quoting || self.header;
        let name = match self.format {
            Some(name) => name,
            None if has_fields => FormatName::Delimited,
            None => by_name(file).ok_or_else(|| {
                format!("{} could be in any format: say --format or --delimiter", file.display())
            })?,
        };
        if has_fields && name != FormatName::Delimited {
            return Err(
                "--delimiter, --key, --no-quoting and --header belong to --format delimited".to_owned()
            );
        }
        Ok(match name {
            FormatName::Ndjson => Format::Ndjson,
            FormatName::Tsv => Format::Tsv,
            FormatName::Words => Format::Words,
            FormatName::Delimited => Format::Delimited {
                delimiter: self.delimiter.or_else(|| delimiter_by_name(file)).ok_or_else(|| {
                    format!("say by --delimiter what separates the fields of {}", file.display())
                })?,
                key: self.key.unwrap_or(NonZeroUsize::MIN),
                quoting: !self.no_quoting,
                header: self.header,
            },
        })
    }
}

fn extension(file: &Path) -> Option<String> {
    file.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase)
}

fn by_name(file: &Path) -> Option<FormatName> {
    match extension(file).as_deref() {
        Some("ndjson" | "jsonl") => return Some(FormatName::Ndjson),
        Some("tsv" | "tab") => return Some(FormatName::Tsv),
        Some("csv") => return Some(FormatName::Delimited),
        Some("words") => return Some(FormatName::Words),
        _ => {}
    }
    let is_in_dict = file.parent().and_then(Path::file_name) == Some(OsStr::new("dict"));
    let is_words = file.file_name() == Some(OsStr::new("words"));
    (is_in_dict || is_words).then_some(FormatName::Words)
}

fn delimiter_by_name(file: &Path) -> Option<u8> {
    match extension(file).as_deref() {
        Some("csv") => Some(b','),
        Some("tsv" | "tab") => Some(b'\t'),
        _ => None,
    }
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [b'"' | b'\n' | b'\r'] => Err("quotes and line ends cannot separate fields".to_owned()),
        [byte] if byte.is_ascii() => Ok(*byte),
        _ => Err("a delimiter is one ASCII character, or \\t for a tab".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::path::Path;

    use clap::Parser;

    use super::{Format, FormatArgs};

    #[derive(Parser)]
    struct Line {
        file: String,
        #[command(flatten)]
        format: FormatArgs,
    }

    fn decide(line: &str) -> Result<Format, String> {
        let line = Line::try_parse_from(std::iter::once("import").chain(line.split(' ')))
            .map_err(|error| error.to_string())?;
        line.format.decide(Path::new(&line.file))
    }

    fn delimited(delimiter: u8, key: usize) -> Format {
        Format::Delimited { delimiter, key: NonZeroUsize::new(key).unwrap(), quoting: true, header: false }
    }

    #[test]
    fn names_and_options_tell_the_format() {
        for (line, expected) in [
            ("a.ndjson", Format::Ndjson),
            ("a.JSONL", Format::Ndjson),
            ("a.tsv", Format::Tsv),
            ("a.tab", Format::Tsv),
            ("a.words", Format::Words),
            ("words", Format::Words),
            ("/usr/share/dict/american-english", Format::Words),
            ("a.csv", delimited(b',', 1)),
            ("a.csv --key 3", delimited(b',', 3)),
            ("a.tsv --key 2", delimited(b'\t', 2)),
            ("a.txt --delimiter ; --key 2", delimited(b';', 2)),
            ("a.ndjson --delimiter ;", delimited(b';', 1)),
            ("- --delimiter \\t", delimited(b'\t', 1)),
            ("- --delimiter -", delimited(b'-', 1)),
            ("- --format words", Format::Words),
            ("a.txt --format ndjson", Format::Ndjson),
            (
                "a.csv --no-quoting --header",
                Format::Delimited { delimiter: b',', key: NonZeroUsize::MIN, quoting: false, header: true },
            ),
        ] {
            assert_eq!(decide(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_unclear_or_contradictory_is_refused() {
        for (line, reason) in [
            ("a.txt", "--format or --delimiter"),
            ("-", "--format or --delimiter"),
            ("a.json", "--format or --delimiter"),
            ("a.txt --key 1", "say by --delimiter"),
            ("a.txt --format tsv --key 1", "belong to --format delimited"),
            ("a.txt --format words --header", "belong to --format delimited"),
            ("a.txt --delimiter ;;", "one ASCII character"),
            ("a.txt --delimiter §", "one ASCII character"),
            ("a.txt --delimiter \"", "cannot separate"),
            ("a.csv --key 0", "--key"),
            ("a.csv --format xml", "possible values"),
        ] {
            let error = decide(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
