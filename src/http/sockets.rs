//! The connections to a port as the kernel lists them, and as this process has them open: tiny_http hides its sockets, and does not tell when
//! one has closed. A connection has a number of its own for as long as a descriptor stands for it, by which it is told apart from a later one with the same addresses.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockaddrStorage, getpeername, getsockname,
    recvmsg, sendmsg,
};
use nix::unistd::close;

use crate::clock::now;

/// States of a connection as they stand in a row: established,
const ESTABLISHED: &str = " 01 ";
/// and closed by the client only.
const CLOSED_BY_CLIENT: &str = " 08 ";

/// The sockets of connections to a local port from which a request may still come, by the address of their client, each with a number of its own.
///
/// # Errors
/// Where the system has no such list.
pub fn open(port: u16) -> io::Result<HashMap<SocketAddr, u64>> {
    in_state(port, &[ESTABLISHED, CLOSED_BY_CLIENT])
}

/// The same of connections that their clients have closed, and this process has not.
///
/// # Errors
/// Where the system has no such list.
pub fn closed_by_client(port: u16) -> io::Result<HashMap<SocketAddr, u64>> {
    in_state(port, &[CLOSED_BY_CLIENT])
}

/// Of the time, reading the list may take this part: one in so many.
const SHARE: u32 = 20;

/// When the list is read: a busy machine has ten thousands of rows, most of them of connections that were closed a minute ago, and then reading them takes
/// tenths of a second.
#[derive(Debug, Default)]
pub struct Pace(Option<Instant>);

impl Pace {
    /// Looks, if so much time has gone by since the last time, and enough in proportion to what that took.
    pub fn look<T>(&mut self, interval: Duration, look: impl FnOnce() -> T) -> Option<T> {
        let begun = now();
        if self.0.is_some_and(|next| begun < next) {
            return None;
        }
        let seen = look();
        let ended = now();
        self.0 = Some(ended + interval.max((ended - begun) * SHARE));
        Some(seen)
    }
}

fn in_state(port: u16, states: &[&str]) -> io::Result<HashMap<SocketAddr, u64>> {
    let mut sockets = rows(&fs::read_to_string("/proc/self/net/tcp")?, port, states);
    // A machine without IPv6 has no such file.
    sockets.extend(rows(&fs::read_to_string("/proc/self/net/tcp6").unwrap_or_default(), port, states));
    Ok(sockets)
}

fn rows(table: &str, port: u16, states: &[&str]) -> HashMap<SocketAddr, u64> {
    let row = |line: &str| {
        // Of a busy machine's rows most are of connections that were closed a minute ago: those cost the most to read.
        let state = states.iter().find(|state| line.contains(**state))?;
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

/// Where the numbers are listed of all that this process has open.
const NUMBERS: &str = "/proc/self/fd";

/// A connection by the address of its client, and by the number of its socket where that is known.
pub type Known = (SocketAddr, Option<u64>);

/// Shuts connections to a local port, and says of each which number its socket has, if it was found.
///
/// Whoever calls this holds the writer of a request of each meanwhile. So each is still open, and no other connection has the same addresses, unless its client has reset it: then there
/// may be another one, which is told apart by the number of its socket.
pub fn shut(port: u16, connections: &[Known], how: Shutdown) -> Vec<Option<u64>> {
    let Ok(ends) = UnixDatagram::pair() else { return vec![None; connections.len()] };
    let found = numbers(port, &connections.iter().map(|(client, _)| *client).collect());
    let shut = |(client, socket): &Known| {
        let (local, numbers) = found.get(client)?;
        let mut duplicates = numbers.iter().filter_map(|number| Duplicate::of(*number, &ends));
        let is_it = |duplicate: &Duplicate| {
            addresses(duplicate.0) == Some((*client, *local))
                && socket.is_none_or(|socket| socket_number(duplicate.0) == Some(socket))
        };
        let duplicate = duplicates.find(is_it)?;
        // One that the client has reset meanwhile is as good as shut.
        let _ = socket::shutdown(duplicate.0, how);
        socket_number(duplicate.0)
    };
    connections.iter().map(shut).collect()
}

/// The number that the system has given to the socket that a descriptor stands for.
fn socket_number(descriptor: RawFd) -> Option<u64> {
    Some(fs::metadata(format!("{NUMBERS}/{descriptor}")).ok()?.ino())
}

/// The numbers of each client's connection, and the local address of that. A client who has two of them from one port, to two addresses
/// of this machine, is left out, since by the client's address these cannot be told apart.
fn numbers(port: u16, clients: &HashSet<SocketAddr>) -> HashMap<SocketAddr, (SocketAddr, Vec<RawFd>)> {
    let (mut found, mut unclear) = (HashMap::new(), Vec::new());
    let Ok(entries) = fs::read_dir(NUMBERS) else { return found };
    for number in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()) {
        let both =
            addresses(number).filter(|(client, local)| local.port() == port && clients.contains(client));
        let Some((client, local)) = both else { continue };
        let (first, numbers) = found.entry(client).or_insert((local, Vec::new()));
        if *first == local {
            numbers.push(number);
        } else {
            unclear.push(client);
        }
    }
    found.retain(|client, _| !unclear.contains(client));
    found
}

/// The sockets that this process has open.
#[derive(Debug)]
pub struct Held {
    /// Since when: what was open from then on for as long as it was looked is among them.
    pub looked: Instant,
    /// The connections to a local port, by the addresses of their clients.
    pub clients: HashMap<SocketAddr, u64>,
    /// All of them, also those whose connection has ended. The system gives each a number of its own.
    pub numbers: HashSet<u64>,
    /// How many descriptors there were, of sockets and others.
    pub descriptors: usize,
}

/// The sockets that are open.
///
/// # Errors
/// Where the system has no such list.
pub fn held(port: u16) -> io::Result<Held> {
    let mut held = Held { looked: now(), clients: HashMap::new(), numbers: HashSet::new(), descriptors: 0 };
    for entry in fs::read_dir(NUMBERS)? {
        let Ok(entry) = entry else { continue };
        held.descriptors += 1;
        // What was closed meanwhile has neither.
        let Ok(number) = fs::metadata(entry.path()).map(|file| file.ino()) else { continue };
        held.numbers.insert(number);
        let descriptor = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some((client, local)) = descriptor.and_then(addresses)
            && local.port() == port
        {
            held.clients.insert(client, number);
        }
    }
    Ok(held)
}

/// A number of its own for what another number stood for at one moment; it is closed when this is dropped.
///
/// A number may be another's as soon as whoever has opened it closes it, so what it stands for has to be looked at after it was duplicated. `std`,
/// socket2 and rustix do that by `unsafe` only; the kernel does it for whatever is sent through a socket, be it to the own process.
struct Duplicate(RawFd);

impl Duplicate {
    fn of(number: RawFd, ends: &(UnixDatagram, UnixDatagram)) -> Option<Self> {
        let sent = [ControlMessage::ScmRights(&[number])];
        sendmsg::<()>(ends.0.as_raw_fd(), &[IoSlice::new(&[0])], &sent, MsgFlags::empty(), None).ok()?;
        let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; 1]));
        let (mut parts, flags) = ([IoSliceMut::new(&mut byte)], MsgFlags::MSG_CMSG_CLOEXEC);
        let received = recvmsg::<()>(ends.1.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
        received.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => numbers.first().copied().map(Self),
            _ => None,
        })
    }
}

impl Drop for Duplicate {
    fn drop(&mut self) {
        let _ = close(self.0);
    }
}

/// A connection of a client, read and written by several threads at a time, which tiny_http does not let its own be.
///
/// Whoever has one keeps what tiny_http has of the connection until nobody uses this any more: tiny_http shuts the connection when it drops that.
pub struct Socket(Duplicate);

impl Socket {
    /// The connection of a client to a local port. Nothing where it is not found, or cannot be told apart from another.
    pub fn of(port: u16, client: SocketAddr) -> Option<Self> {
        Self::of_all(port, &HashSet::from([client])).remove(&client)
    }

    /// The same of several clients, by one look at what the process has open.
    pub fn of_all(port: u16, clients: &HashSet<SocketAddr>) -> HashMap<SocketAddr, Self> {
        let Ok(ends) = UnixDatagram::pair() else { return HashMap::new() };
        let socket = |(client, (local, numbers)): (SocketAddr, (SocketAddr, Vec<RawFd>))| {
            let mut duplicates = numbers.iter().filter_map(|number| Duplicate::of(*number, &ends));
            let duplicate = duplicates.find(|duplicate| addresses(duplicate.0) == Some((client, local)))?;
            Some((client, Self(duplicate)))
        };
        numbers(port, clients).into_iter().filter_map(socket).collect()
    }

    /// Writes some of it, if the system takes it at once.
    ///
    /// # Errors
    /// As the system says; [`io::ErrorKind::WouldBlock`] where it takes nothing now.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(socket::send(self.0.0, bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)?)
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// As the system says; a time-out is [`io::ErrorKind::WouldBlock`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(socket::recv(self.0.0, buffer, MsgFlags::empty())?)
    }

    /// Writes some of it.
    ///
    /// # Errors
    /// As the system says; a time-out is [`io::ErrorKind::WouldBlock`].
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(socket::send(self.0.0, bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Whoever reads it sees the end, and it can still be written.
    pub fn end_reading(&self) {
        let _ = socket::shutdown(self.0.0, Shutdown::Read);
    }

    /// Ends it: whoever reads sees the end.
    pub fn shut(&self) {
        let _ = socket::shutdown(self.0.0, Shutdown::Both);
    }
}

/// The addresses of the client and of this end, where a number stands for a connection.
fn addresses(number: RawFd) -> Option<(SocketAddr, SocketAddr)> {
    Some((internet(&getpeername(number).ok()?)?, internet(&getsockname(number).ok()?)?))
}

/// The address of a socket of the internet.
fn internet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use socket2::SockRef;

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
            assert!(closed_by_client(address.port()).unwrap().is_empty());
            drop(client);
            assert_eq!(closed_by_client(address.port()).unwrap(), listed);
            drop(server);
            assert!(open(address.port()).unwrap().is_empty());
        }
    }

    #[test]
    fn a_look_that_takes_long_is_not_repeated_soon() {
        let next = |interval, took| {
            let (mut pace, begun) = (Pace::default(), now());
            assert!(pace.look(interval, || crossbeam_channel::never::<()>().recv_timeout(took)).is_some());
            assert!(pace.look(interval, || ()).is_none());
            pace.0.expect("it has looked") - begun
        };
        let (short, long) = (Duration::from_millis(20), Duration::from_hours(1));
        assert!(next(Duration::ZERO, short) >= short * (SHARE + 1));
        assert!((long..long * 2).contains(&next(long, short)));
    }

    #[test]
    fn a_socket_is_held_until_the_last_descriptor_of_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let address = client.local_addr().unwrap();
        let mut server = listener.accept().unwrap().0;
        let twin = server.try_clone().unwrap();
        let number = open(port).unwrap()[&address];
        let seen = held(port).unwrap();
        assert_eq!((seen.clients.get(&address), seen.numbers.contains(&number)), (Some(&number), true));
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert!(server.read(&mut [0]).is_err(), "it was reset");
        drop(server);
        let seen = held(port).unwrap();
        assert_eq!((seen.clients.get(&address), seen.numbers.contains(&number)), (None, true));
        drop(twin);
        assert!(!held(port).unwrap().numbers.contains(&number));
    }

    #[test]
    fn a_connection_is_shut_by_the_address_of_its_client() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let port = listener.local_addr().unwrap().port();
            let mut clients = [(); 2].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let mut servers = [(); 2].map(|()| listener.accept().unwrap().0);
            let addresses = [servers[1].peer_addr().unwrap(), "127.0.0.1:1".parse().unwrap()];
            // Two numbers stand for one connection, as in tiny_http.
            let twin = servers[1].try_clone().unwrap();
            let number = open(port).unwrap()[&addresses[0]];
            let other = (addresses[0], Some(number + 1));
            assert_eq!(shut(port, &[other], Shutdown::Both), [None], "it is another one by now");
            let known = [(addresses[0], Some(number)), (addresses[1], None)];
            assert_eq!(shut(port, &known, Shutdown::Both), [Some(number), None]);
            assert_eq!(clients[1].read(&mut [0]).unwrap(), 0, "its client sees the end");
            assert_eq!(servers[1].read(&mut [0]).unwrap(), 0, "and so does whoever reads");
            drop(twin);
            clients[0].set_nonblocking(true).unwrap();
            servers[0].set_nonblocking(true).unwrap();
            for other in [&mut clients[0], &mut servers[0]] {
                assert_eq!(other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        }
    }

    #[test]
    fn a_connection_is_read_and_written_by_a_number_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        assert!(Socket::of(port, "127.0.0.1:1".parse().unwrap()).is_none());
        let socket = Socket::of(port, server.peer_addr().unwrap()).unwrap();
        assert_eq!(socket.write(b"abc").unwrap(), 3);
        let mut bytes = [0; 3];
        client.read_exact(&mut bytes).unwrap();
        client.write_all(&bytes).unwrap();
        assert_eq!((socket.read(&mut bytes).unwrap(), &bytes), (3, b"abc"));
        socket.end_reading();
        assert_eq!(socket.read(&mut bytes).unwrap(), 0);
        assert_eq!(socket.write(b"abc").unwrap(), 3);
        client.read_exact(&mut bytes).unwrap();
        socket.shut();
        assert_eq!(client.read(&mut bytes).unwrap(), 0);
        assert_eq!(socket.read(&mut bytes).unwrap(), 0);
        assert!(socket.write(b"d").is_err());
        drop(server);
    }

    #[test]
    fn connections_that_cannot_be_told_apart_are_left_alone() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let connect = |local: SocketAddr, to: [u8; 4]| -> io::Result<TcpStream> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&local.into())?;
            socket.connect(&SocketAddr::from((to, port)).into())?;
            Ok(socket.into())
        };
        let first = connect(local, [127, 0, 0, 1]).unwrap();
        let client = first.local_addr().unwrap();
        let _second = connect(client, [127, 0, 0, 2]).unwrap();
        let _servers = [listener.accept().unwrap(), listener.accept().unwrap()];
        assert_eq!(shut(port, &[(client, None)], Shutdown::Both), [None]);
    }
}
