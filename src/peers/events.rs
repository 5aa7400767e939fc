//! A connection on which a node tells, without end, what somebody who watches wants to know: a follower, for those who watch there, or `evenkv watch`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::upgrade::CONNECTING;
use crate::model::address::Address;

/// A main writes a comment at least every 10 s; one of which nothing has come for this long is gone.
const SILENCE: Duration = Duration::from_secs(15);
/// The longest head, and body of an answer that is none of events, in bytes.
const LONGEST_HEAD: u64 = 64 << 10;
/// The longest event, in bytes.
const LONGEST_EVENT: u64 = 4 << 20;

/// What a main has answered.
pub enum Opened {
    /// Events.
    Events(Events),
    /// Something else: the status, the headers and the body.
    Refused(u16, Vec<(String, String)>, Vec<u8>),
}

/// Events as they come.
pub struct Events(BufReader<TcpStream>);

/// Asks a main for events.
///
/// # Errors
/// When it is not reached, or does not answer in time.
pub fn open(main: &Address, target: &str, headers: &[(&str, &str)], timeout: Duration) -> io::Result<Opened> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in (main.host(), main.port()).to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, CONNECTING) {
            Ok(stream) => return ask(stream, (main, target), headers, timeout),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(
    mut stream: TcpStream,
    (main, target): (&Address, &str),
    headers: &[(&str, &str)],
    timeout: Duration,
) -> io::Result<Opened> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut head = format!("GET {target} HTTP/1.1\r\nHost: {main}\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut answered = Vec::new();
    while !answered.ends_with(b"\r\n\r\n") {
        let left = LONGEST_HEAD.saturating_sub(answered.len() as u64);
        if reader.by_ref().take(left).read_until(b'\n', &mut answered)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8_lossy(&answered).into_owned();
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the answer has no status"))?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    if status == 200 {
        reader.get_ref().set_read_timeout(Some(SILENCE))?;
        return Ok(Opened::Events(Events(reader)));
    }
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: u64 = length.and_then(|(_, length)| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length.min(LONGEST_HEAD)).read_to_end(&mut body)?;
    Ok(Opened::Refused(status, headers, body))
}

impl Events {
    /// The next one, or a comment: all of its lines, and the empty one.
    ///
    /// # Errors
    /// At the end of the connection.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut event = Vec::new();
        loop {
            let left = LONGEST_EVENT.saturating_sub(event.len() as u64);
            let before = event.len();
            if self.0.by_ref().take(left).read_until(b'\n', &mut event)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if event[before..] == *b"\n" {
                return Ok(event);
            }
        }
    }

    /// A handle by which somebody else ends it.
    ///
    /// # Errors
    /// As the system says.
    pub fn handle(&self) -> io::Result<TcpStream> {
        self.0.get_ref().try_clone()
    }
}
