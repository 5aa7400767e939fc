//! Putting in many pairs, as clients do: on several connections, one request at a time on each.
//!
//! How the requests come matters for the memory per pair: `tiny_http` takes and frees some memory for each, and a pair
//! that is put into a place that was just freed leaves a rest which is too small for anything.

use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::thread::{self, Builder};
use std::time::Duration;

use evenkv::clock::{Deadline, now};
use tempfile::NamedTempFile;

use crate::client::Connection;
use crate::process::Process;
use crate::system::{System, VALUE_LENGTH};
use crate::wrk::Kind;

/// Connections that put in pairs at the same time.
const CONNECTIONS: u64 = 16;
/// A server that does not answer for longer is broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// All the pairs are to be there in this time: a million at 1,000 a second.
const LONGEST: Duration = Duration::from_secs(1000);

/// Puts in the keys `0..count`, in 16 digits each.
///
/// # Errors
/// When one is not answered 200 or 201, or all of them take too long, or the last is not there to be read.
pub(crate) fn put_all(system: System, node: SocketAddr, count: u64) -> io::Result<()> {
    let deadline = Deadline::after(now(), LONGEST);
    let share = count.div_ceil(CONNECTIONS);
    let share_of = |number: u64| (number * share).min(count)..((number + 1) * share).min(count);
    thread::scope(|scope| {
        let start = |number| {
            let name = format!("fill-{number}");
            let fill = move || put(system, node, share_of(number), deadline);
            Builder::new().name(name).spawn_scoped(scope, fill)
        };
        let fillers = (0..CONNECTIONS).map(start).collect::<io::Result<Vec<_>>>()?;
        fillers.into_iter().try_for_each(|filler| filler.join().expect("a filler does not panic"))
    })?;
    let answer = Connection::open(node, PATIENCE)?.ask(&system.request(Kind::Get, count - 1))?;
    if system.has_value(&answer) {
        Ok(())
    } else {
        Err(io::Error::other(format!("{} has no value for a key that was put in", system.name())))
    }
}

/// Has `evenkv import` put in pairs of these keys through all of these nodes, and says how long that took.
///
/// # Errors
/// When one of them fails.
pub(crate) fn import(nodes: &[Process], keys: impl Iterator<Item = String>) -> io::Result<Duration> {
    let file = NamedTempFile::with_suffix(".tsv")?;
    let mut lines = BufWriter::new(file.as_file());
    let value = "v".repeat(VALUE_LENGTH);
    for key in keys {
        writeln!(lines, "{key}\t{value}")?;
    }
    lines.flush()?;
    let through: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
    let mut import = Command::new(env!("CARGO_BIN_EXE_evenkv"));
    import.arg("import").arg(file.path()).args(["--through", &through.join(",")]);
    let start = now();
    let said = import.output()?;
    let took = now() - start;
    if said.status.success() {
        return Ok(took);
    }
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    Err(io::Error::other(format!("the import has failed: {said}")))
}

fn put(system: System, node: SocketAddr, keys: Range<u64>, deadline: Deadline) -> io::Result<()> {
    let mut connection = Connection::open(node, PATIENCE)?;
    for key in keys {
        connection.ask(&system.request(Kind::Put, key))?;
        if deadline.is_over() {
            return Err(io::Error::other(format!("the pairs were not put in within {LONGEST:?}")));
        }
    }
    Ok(())
}
