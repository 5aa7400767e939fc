//! Connections to other nodes that one request takes out of the hands of HTTP.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::resolver::CachedNames;
use crate::model::address::Address;
use crate::wire;

/// A node that takes no connection within this time is not reached. The system tries again after a second only; whoever wants the connection does sooner.
pub(super) const CONNECTING: Duration = Duration::from_millis(300);
/// A node that does not answer the request within this time is not reached.
const OPENING: Duration = Duration::from_secs(1);
/// A connection on which something that was sent is not acknowledged by the system of the other node for this long is ended. Otherwise what packets were lost
/// of would be sent again after twice the time each: a link that was down for 10 s would be silent for up to 10 s more.
const UNACKNOWLEDGED: Duration = Duration::from_secs(1);
/// The longest answer to the request that is read, in bytes.
const LONGEST_HEAD: usize = 4096;

/// `POLLRDHUP` of Linux: the other end sends nothing more.
const POLLRDHUP: PollFlags = PollFlags::from_bits_retain(0x2000);

/// Whether the other end has closed the connection, as that of a process that was killed; also where something that it sent before was not read yet. It does not wait.
pub(super) fn is_closed(stream: &TcpStream) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), POLLRDHUP)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|closed| closed > 0)
}

/// Connects to a node and has the connection upgraded to a protocol, which is asked for at a path. It still has the time-outs of its opening.
///
/// # Errors
/// When the node is not reached; [`io::ErrorKind::Unsupported`] where it refuses.
pub(super) fn upgraded(
    names: &CachedNames,
    address: &Address,
    secret: Option<&str>,
    protocol: (&str, &str),
    headers: &[(&str, &str)],
) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in names.look_up(address.as_str())? {
        match TcpStream::connect_timeout(&place, CONNECTING) {
            Ok(stream) => return ask(stream, (address, secret), protocol, headers),
            Err(error) => last = error,
        }
    }
    names.doubt(address.as_str());
    Err(last)
}

fn ask(
    mut stream: TcpStream,
    (address, secret): (&Address, Option<&str>),
    (path, protocol): (&str, &str),
    headers: &[(&str, &str)],
) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    stream.set_read_timeout(Some(OPENING))?;
    stream.set_write_timeout(Some(OPENING))?;
    let secret = secret.map(|secret| (wire::SECRET_HEADER, secret));
    let mut head =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n");
    for (name, value) in headers.iter().copied().chain(secret) {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
        if answer.len() > LONGEST_HEAD {
            return Err(io::Error::other("the answer is no head"));
        }
    }
    if !answer.starts_with(b"HTTP/1.1 101 ") {
        let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
        return Err(io::Error::new(io::ErrorKind::Unsupported, line));
    }
    Ok(stream)
}
