//! One connection of a client that sends a request when the last was answered, and does not wait for ever.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::system::Request;

/// A longer answer is not read: the longest that is asked for is a view.
const LONGEST_ANSWER: u64 = 1 << 20;

/// A connection that is kept open.
pub(crate) struct Connection {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to a server, for answers that each part of is there within `patience`.
    ///
    /// # Errors
    /// When it does not take connections.
    pub(crate) fn open(server: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream })
    }

    /// Sends a request and gives the body of its answer.
    ///
    /// # Errors
    /// When there is no answer in time, or one whose status is not 200 or 201. The connection is of no use then.
    pub(crate) fn ask(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        // One write: a head and a body in two would be two packets.
        let Request { method, path, body } = request;
        let length = body.len();
        let text =
            format!("{method} {path} HTTP/1.1\r\nHost: load\r\nContent-Length: {length}\r\n\r\n{body}");
        self.stream.write_all(text.as_bytes())?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 20") {
            return Err(io::Error::other(format!("a {method} was answered {line:?}")));
        }
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            if self.answers.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim_end().parse().map_err(io::Error::other)?;
            }
        }
        if length > LONGEST_ANSWER {
            return Err(io::Error::other(format!("an answer to {method} {path} has {length} bytes")));
        }
        let mut answer = Vec::new();
        self.answers.by_ref().take(length).read_to_end(&mut answer)?;
        if answer.len() as u64 == length { Ok(answer) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
