//! The TCP transport under ureq, which notices a node that went silent.
//!
//! ureq knows deadlines only: with one of a second a slow node could not be told from a dead one, and an
//! exchange that was given up cannot be taken up again. So the transport itself waits in slices. When
//! a second has passed without a byte, it asks the node's `/livez` on a fresh connection: a node that answers is
//! slow, and the wait goes on; one that does not is down.

use std::fmt;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::resolver::{CachedNames, Currency};
use super::{elsewhere, long_target, probe};
use crate::clock::{Deadline, now};

/// `MSG_PEEK` and `MSG_DONTWAIT` of Linux.
const MSG_PEEK: i32 = 0x2;
pub(super) const MSG_DONTWAIT: i32 = 0x40;
/// A connection that is not made in this time will not be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A node from which nothing came for this long is asked whether it is alive.
pub const SILENCE: Duration = Duration::from_secs(1);
/// Whoever waits looks this often whether that is of any use still.
const SLICE: Duration = Duration::from_millis(50);
/// Where an exchange has no deadline of its own (a streamed body), a silent but living node is given up after this.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Why an exchange failed, as an [`io::Error`]'s inner error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection came about: nothing was sent.
    NotConnected(io::ErrorKind),
    /// The same, but there was less time for it than a connection may take: nothing is known of the node.
    NoTime,
    /// Neither the exchange nor `/livez` was answered.
    Silent,
    /// It was sent, or a part of it, and is not waited for any more.
    Elsewhere,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(kind) => write!(f, "no connection ({kind})"),
            Self::NoTime => f.write_str("no connection in the time that was left"),
            Self::Elsewhere => f.write_str("another replica leads the shard by now"),
            Self::Silent => write!(f, "no byte for {} ms and /livez is not answered", SILENCE.as_millis()),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    fn into_error(self) -> ureq::Error {
        ureq::Error::Io(io::Error::other(self))
    }

    /// Finds the failure in ureq's error.
    pub fn of(error: &ureq::Error) -> Option<Self> {
        let ureq::Error::Io(error) = error else { return None };
        Self::of_io(error)
    }

    /// The same in an error of reading or writing.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Makes connections to nodes.
#[derive(Debug)]
pub struct NodeConnector {
    /// What names stand for.
    pub names: CachedNames,
}

impl NodeConnector {
    fn currency(&self, details: &ConnectionDetails, address: SocketAddr) -> Currency {
        let name = details.uri.authority().map_or("", |authority| authority.as_str());
        self.names.currency(name, address)
    }
}

impl Connector for NodeConnector {
    type Out = NodeTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> Result<Option<NodeTransport>, ureq::Error> {
        let mut failed = io::ErrorKind::AddrNotAvailable;
        // A name that stands for several addresses is given no more time than one.
        let short = *details.timeout.after < CONNECT_TIMEOUT;
        let deadline = Deadline::after(now(), CONNECT_TIMEOUT.min(*details.timeout.after));
        for address in &details.addrs {
            match open(*address, deadline.left().max(Duration::from_millis(1))) {
                Ok(stream) => {
                    let config = details.config;
                    let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
                    return Ok(Some(NodeTransport {
                        stream,
                        node: *address,
                        currency: self.currency(details, *address),
                        buffers,
                        timeout: Duration::ZERO,
                    }));
                }
                Err(error) => failed = error.kind(),
            }
        }
        if let Some(authority) = details.uri.authority() {
            self.names.doubt(authority.as_str());
        }
        if short && failed == io::ErrorKind::TimedOut {
            return Err(Failure::NoTime.into_error());
        }
        Err(Failure::NotConnected(failed).into_error())
    }
}

fn open(node: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&node, timeout)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One connection to a node.
#[derive(Debug)]
pub struct NodeTransport {
    stream: TcpStream,
    node: SocketAddr,
    currency: Currency,
    buffers: LazyBuffers,
    /// What the socket's two timeouts were last set to, so that they are set again only when they change.
    timeout: Duration,
}

impl NodeTransport {
    /// Runs one read or write until it moves bytes, the node is found dead, or the time is over.
    fn until_progress(
        &mut self,
        timeout: NextTimeout,
        mut step: impl FnMut(&mut Self) -> io::Result<usize>,
    ) -> Result<usize, ureq::Error> {
        if timeout.after.is_zero() {
            return Err(ureq::Error::Timeout(timeout.reason));
        }
        let deadline = Deadline::after(now(), (*timeout.after).min(LONGEST_WAIT));
        let mut silent_since = now();
        loop {
            self.set_timeout(SLICE.min(deadline.left()))?;
            match step(self) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    if deadline.is_over() {
                        return Err(ureq::Error::Timeout(timeout.reason));
                    }
                    if elsewhere::is_elsewhere() {
                        return Err(Failure::Elsewhere.into_error());
                    }
                    if now() - silent_since >= SILENCE {
                        if !probe::is_alive(self.node) {
                            return Err(Failure::Silent.into_error());
                        }
                        silent_since = now();
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes so many bytes, where `write` writes some after those that were sent.
    fn write_all(
        &mut self,
        length: usize,
        timeout: NextTimeout,
        write: impl Fn(&mut Self, usize) -> io::Result<usize>,
    ) -> Result<(), ureq::Error> {
        let mut sent = 0;
        while sent < length {
            let count = self.until_progress(timeout, |this| write(this, sent))?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            sent += count;
        }
        Ok(())
    }

    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = timeout.max(Duration::from_millis(1));
        if timeout != self.timeout {
            self.stream.set_read_timeout(Some(timeout))?;
            self.stream.set_write_timeout(Some(timeout))?;
            self.timeout = timeout;
        }
        Ok(())
    }
}

/// Whether a read or write only took too long.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Transport for NodeTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let mut start = 0;
        if let Some((beginning, replaced)) = long_target::beginning(&self.buffers.output()[..amount]) {
            self.write_all(beginning.len(), timeout, |this, sent| this.stream.write(&beginning[sent..]))?;
            start = replaced;
        }
        self.write_all(amount - start, timeout, |this, sent| {
            let output = &this.buffers.output()[start + sent..amount];
            this.stream.write(output)
        })
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let count = self.until_progress(timeout, |this| {
            let input = this.buffers.input_append_buf();
            this.stream.read(input)
        })?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// Whether an idle connection can be used again: the node is still there by its name, and nothing to read, not even the end. What would be sent on one that the node has closed could have been done,
    /// for all that could be said of it, so it is worth a call of the system each time.
    fn is_open(&mut self) -> bool {
        if self.currency.is_lost() {
            return false;
        }
        let peeked = SockRef::from(&self.stream)
            .recv_with_flags(&mut [MaybeUninit::uninit()], MSG_PEEK | MSG_DONTWAIT);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
