//! A fresh question to a node's `/livez`: is it there at all?

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A node that does not answer within this time is not there. Longer, and a client waits longer for the news;
/// shorter, and a node under load is taken for dead.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(300);

/// Asks on a connection of its own, so that a slow answer elsewhere does not matter.
pub fn is_alive(node: SocketAddr) -> bool {
    ask(node).is_ok()
}

fn ask(node: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&node, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: evenkv\r\nConnection: close\r\n\r\n")?;
    let mut first = [0; 5];
    stream.read_exact(&mut first)?;
    if &first == b"HTTP/" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
