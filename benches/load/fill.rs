//! Putting in many pairs, as clients do: on several connections, one request at a time on each.
//!
//! How the requests come matters for the memory per pair: `tiny_http` takes and frees some memory for each, and a pair
//! that is put into a place that was just freed leaves a rest which is too small for anything.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::thread::{self, Builder};

use crate::wrk::{PATH, value_body};

/// Connections that put in pairs at the same time.
const CONNECTIONS: u64 = 16;

/// Puts in the keys `0..count`, in 16 digits each.
///
/// # Errors
/// When one is not answered 200 or 201.
pub(crate) fn put_all(node: SocketAddr, count: u64) -> io::Result<()> {
    let share = count.div_ceil(CONNECTIONS);
    let share_of = |number: u64| (number * share).min(count)..((number + 1) * share).min(count);
    thread::scope(|scope| {
        let start = |number| {
            let name = format!("fill-{number}");
            Builder::new().name(name).spawn_scoped(scope, move || Filler::new(node)?.put(share_of(number)))
        };
        let fillers = (0..CONNECTIONS).map(start).collect::<io::Result<Vec<_>>>()?;
        fillers.into_iter().try_for_each(|filler| filler.join().expect("a filler does not panic"))
    })
}

struct Filler {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Filler {
    fn new(node: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(node)?;
        stream.set_nodelay(true)?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream })
    }

    fn put(mut self, keys: Range<u64>) -> io::Result<()> {
        let body = value_body();
        for key in keys {
            // One write: a head and a body in two would be two packets.
            let request = format!(
                "PUT {PATH}{key:016} HTTP/1.1\r\nHost: load\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            self.stream.write_all(request.as_bytes())?;
            self.read_answer()?;
        }
        Ok(())
    }

    fn read_answer(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 20") {
            return Err(io::Error::other(format!("a PUT was answered {line:?}")));
        }
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            self.answers.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim_end().parse().map_err(io::Error::other)?;
            }
        }
        io::copy(&mut self.answers.by_ref().take(length), &mut io::sink())?;
        Ok(())
    }
}
