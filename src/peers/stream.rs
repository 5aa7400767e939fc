//! A connection that carries messages one way, after one request that says so: no head for each of them, and nobody waits for answers.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use socket2::SockRef;

use super::client::Peer;
use crate::model::address::Address;
use crate::wire;

/// A node that takes no connection, or does not answer the request, within this time is not reached.
const OPENING: Duration = Duration::from_secs(1);
/// A node that has taken nothing for this long, with its buffers full, is not reached.
const SENDING: Duration = Duration::from_secs(1);
/// `MSG_PEEK | MSG_DONTWAIT` of Linux: looks without waiting, and takes nothing away.
const PEEK_WITHOUT_WAITING: i32 = 0x02 | 0x40;
/// The longest answer to the request that is read, in bytes.
const LONGEST_HEAD: usize = 4096;

/// The sending end of such a connection.
#[derive(Debug)]
pub struct MessageStream {
    stream: TcpStream,
}

impl MessageStream {
    /// Connects to a node and has it take messages of this one.
    ///
    /// # Errors
    /// When it is not reached, or refuses.
    pub fn open(peer: &Peer, own: &Address) -> io::Result<Self> {
        let address = peer.address();
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for place in (address.host(), address.port()).to_socket_addrs()? {
            match TcpStream::connect_timeout(&place, OPENING) {
                Ok(stream) => return Self::ask(stream, peer, own),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn ask(mut stream: TcpStream, peer: &Peer, own: &Address) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(OPENING))?;
        stream.set_write_timeout(Some(SENDING))?;
        let secret = peer.secret().map(|secret| format!("{}: {secret}\r\n", wire::SECRET_HEADER));
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: {}\r\n{}: {own}\r\n{}\r\n",
            wire::RAFT,
            peer.address(),
            wire::MESSAGES,
            wire::FROM_HEADER,
            secret.unwrap_or_default()
        );
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
            let line = String::from_utf8_lossy(&answer);
            return Err(io::Error::other(line.lines().next().unwrap_or_default().to_owned()));
        }
        Ok(Self { stream })
    }

    /// Sends a frame: its length in four bytes, the lowest first, and what is in it.
    ///
    /// # Errors
    /// When the connection is closed, or does not take it: it may have been taken in part, and the connection is of no use any more.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.is_closed() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let whole = [&length.to_le_bytes()[..], frame].concat();
        self.stream.write_all(&whole)
    }

    /// Whether the other end has closed it. It never sends anything.
    fn is_closed(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let flags = PEEK_WITHOUT_WAITING;
        !matches!(
            SockRef::from(&self.stream).recv_with_flags(&mut byte, flags),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock
        )
    }
}
