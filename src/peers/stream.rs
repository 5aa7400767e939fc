//! A connection that carries messages one way, after one request that says so: no head for each of them, and nobody waits for answers.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::client::Peer;
use super::resolver::Currency;
use super::upgrade::{is_closed, upgraded};
use crate::model::address::Address;
use crate::model::format;
use crate::wire;

/// A node that has taken nothing for this long, with its buffers full, is not reached.
const SENDING: Duration = Duration::from_secs(1);

/// The sending end of such a connection.
#[derive(Debug)]
pub struct MessageStream {
    stream: TcpStream,
    currency: Currency,
}

impl MessageStream {
    /// Connects to a node and has it take messages of this one.
    ///
    /// # Errors
    /// When it is not reached, or refuses.
    pub fn open(peer: &Peer, own: &Address) -> io::Result<Self> {
        let stream = upgraded(
            peer.names(),
            peer.address(),
            peer.secret(),
            (wire::RAFT, wire::MESSAGES),
            &[(wire::FROM_HEADER, own.as_str()), (wire::FORMAT_HEADER, &format::CURRENT.to_string())],
        )?;
        stream.set_write_timeout(Some(SENDING))?;
        let currency = peer.names().currency(peer.address().as_str(), stream.peer_addr()?);
        Ok(Self { stream, currency })
    }

    /// Sends a frame: its length in four bytes, the lowest first, and what is in it.
    ///
    /// # Errors
    /// When the connection is closed, does not take it, or leads to where the node is no more: it may have been taken in part, and the connection is of no use any more.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        // The system of one that stands still takes what it will never read.
        if is_closed(&self.stream) || self.currency.is_lost() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let whole = [&length.to_le_bytes()[..], frame].concat();
        self.stream.write_all(&whole)
    }
}
