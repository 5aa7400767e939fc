//! Standard output, and tables on it.

use std::io::{self, Write};

use super::failure::Failure;

/// Writes `bytes` and a newline to standard output. A reader that has gone away (`| head`) is no failure.
pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    print_all(&[bytes, b"\n"])
}

/// Writes just `bytes`.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    print_all(&[bytes])
}

fn print_all(parts: &[&[u8]]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match parts.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Local(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Sets `rows` as columns that line up, two spaces apart, without spaces at the end of a line.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A figure of a table that may not be known.
pub(super) fn figure(known: Option<u64>) -> String {
    known.map_or("unknown".to_owned(), |figure| figure.to_string())
}

/// The first row of a table.
pub(super) fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
