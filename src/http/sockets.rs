//! The connections to a port as the kernel lists them: tiny_http does not tell when one has closed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// States of a connection from which a request may still come, as they stand in a row: established, and closed by the
/// client only.
const OPEN: [&str; 2] = [" 01 ", " 08 "];

/// The sockets of open connections to a local port, by the address of their client, each with a number of its own.
///
/// # Errors
/// Where the system has no such list.
pub fn open(port: u16) -> io::Result<HashMap<SocketAddr, u64>> {
    let mut sockets = rows(&fs::read_to_string("/proc/self/net/tcp")?, port);
    // A machine without IPv6 has no such file.
    sockets.extend(rows(&fs::read_to_string("/proc/self/net/tcp6").unwrap_or_default(), port));
    Ok(sockets)
}

fn rows(table: &str, port: u16) -> HashMap<SocketAddr, u64> {
    let row = |line: &str| {
        // Of a busy machine's rows most are of connections that were closed a minute ago: those cost the most to read.
        let state = OPEN.iter().find(|state| line.contains(**state))?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = address(fields.next()?)?;
        let client = fields.next()?;
        if local.port() != port || fields.next()? != state.trim() {
            return None;
        }
        // Queues, timer, retransmissions, user and time-outs stand between the state and the number.
        Some((address(client)?, fields.nth(5)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// An address as the kernel writes it: words of 32 bits in the order of the machine, in hex.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_listed_under_its_clients_address_while_it_is_open() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).unwrap();
            let client_address = client.local_addr().unwrap();
            let server = listener.accept().unwrap();
            let listed = open(address.port()).unwrap();
            assert_eq!(listed.keys().collect::<Vec<_>>(), [&client_address]);
            drop((client, server));
            assert!(open(address.port()).unwrap().is_empty());
        }
    }
}
