//! Ends reads that wait for a silent client.
//!
//! A read of a body ends when a byte comes, or at the idle time-out, which all connections of the listener share and which is far longer than a
//! worker may wait. So each such read is noted here with the moment until which it may last. A thread looks at the notes, and shuts the
//! socket of a late one for reading: the read then ends as if the client had hung up, and the note says why it did.
//!
//! tiny_http hides the socket; it is found among what the process has open, by the address of the client. While somebody is inside a read, the request is held, and
//! so is the connection: no other can have its addresses. Whoever reads leaves only with the lock of the note, and the thread holds that lock from before it looks for the
//! socket until it is shut.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::Shutdown;
use parking_lot::Mutex;

use super::sockets::{self, Known};
use crate::clock::now;

/// A socket that was not found is looked for again after this time: there may have been no descriptor left to do so.
const RETRY: Duration = Duration::from_secs(1);

/// Knows all reads that wait for a client.
#[derive(Debug)]
pub struct Watchdog {
    /// The local port of all connections.
    port: u16,
    notes: Mutex<Vec<Arc<Note>>>,
}

/// What is noted of the reads of one body.
#[derive(Debug)]
struct Note {
    client: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody reads.
    Idle,
    /// Somebody reads, until then at most.
    Reading(Instant),
    /// The socket was shut: nothing more can be read.
    Shut,
}

/// Reads the body of one request; it must not outlive the request.
#[derive(Debug)]
pub struct Watch {
    note: Arc<Note>,
}

/// A read that is under way; after its end, whatever ends it, the request may be dropped.
struct UnderWay<'a>(&'a Note);

impl Watchdog {
    /// Nothing is read yet by connections to this port.
    pub fn new(port: u16) -> Self {
        Self { port, notes: Mutex::default() }
    }

    /// Notes that a body of this client is going to be read.
    pub fn watch(&self, client: SocketAddr) -> Watch {
        let note = Arc::new(Note { client, state: Mutex::new(State::Idle) });
        self.notes.lock().push(Arc::clone(&note));
        Watch { note }
    }

    /// Ends the reads that are late.
    pub fn end_late_reads(&self) {
        let notes = {
            let mut notes = self.notes.lock();
            // Of a body that is read no more there is only the note itself.
            notes.retain(|note| Arc::strong_count(note) > 1);
            notes.clone()
        };
        let start = now();
        let states = notes.iter().map(|note| (note.client, note.state.lock()));
        let mut late: Vec<_> = states.filter(|(_, state)| state.is_late(start)).collect();
        let clients: Vec<_> = late.iter().map(|(client, _)| (*client, None)).collect();
        let shut = self.shut(&clients, Shutdown::Read);
        for ((_, state), shut) in late.iter_mut().zip(shut) {
            **state = if shut.is_some() { State::Shut } else { State::Reading(start + RETRY) };
        }
    }

    /// Shuts connections, and says of each which number its socket has, if it was found; see [`sockets::shut`] for what the caller has to hold.
    pub fn shut(&self, connections: &[Known], how: Shutdown) -> Vec<Option<u64>> {
        if connections.is_empty() { Vec::new() } else { sockets::shut(self.port, connections, how) }
    }
}

impl Watch {
    /// Reads once, until then at most.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when nothing came by then, from then on for good.
    pub fn read(&self, reader: &mut dyn Read, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
        {
            let mut state = self.note.state.lock();
            if *state == State::Shut {
                return Err(io::ErrorKind::TimedOut.into());
            }
            *state = State::Reading(until);
        }
        let under_way = UnderWay(&self.note);
        let read = reader.read(buffer);
        drop(under_way);
        if *self.note.state.lock() == State::Shut { Err(io::ErrorKind::TimedOut.into()) } else { read }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if *state != State::Shut {
            *state = State::Idle;
        }
    }
}

impl State {
    fn is_late(self, now: Instant) -> bool {
        matches!(self, Self::Reading(until) if until <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// A connection as tiny_http holds it, and its client.
    fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    #[test]
    fn a_late_read_is_ended_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let watchdog = Watchdog::new(listener.local_addr().unwrap().port());
        let (mut silent, mut silent_client) = connection(&listener);
        let (mut patient, mut patient_client) = connection(&listener);
        let clients = [&silent_client, &patient_client].map(|client| client.local_addr().unwrap());
        let (late, in_time) = (now(), now() + Duration::from_hours(1));
        thread::scope(|scope| {
            let ended = scope.spawn(|| {
                let watch = watchdog.watch(clients[0]);
                let first = watch.read(&mut silent, &mut [0], late);
                [first, watch.read(&mut silent, &mut [0], in_time)].map(|read| read.unwrap_err().kind())
            });
            let waits = scope.spawn(|| {
                let watch = watchdog.watch(clients[1]);
                watch.read(&mut patient, &mut [0], in_time).unwrap()
            });
            while !ended.is_finished() {
                watchdog.end_late_reads();
                thread::yield_now();
            }
            assert_eq!(ended.join().unwrap(), [io::ErrorKind::TimedOut; 2]);
            patient_client.write_all(b"x").unwrap();
            assert_eq!(waits.join().unwrap(), 1, "it was waited for");
        });
        // The answer still goes out.
        silent.write_all(b"408").unwrap();
        silent_client.read_exact(&mut [0; 3]).unwrap();
        watchdog.end_late_reads();
        assert!(watchdog.notes.lock().is_empty());
    }

    #[test]
    fn a_read_whose_socket_is_not_found_goes_on() {
        let watchdog = Watchdog::new(1);
        let watch = watchdog.watch("127.0.0.1:1".parse().unwrap());
        *watch.note.state.lock() = State::Reading(now());
        watchdog.end_late_reads();
        assert!(!watch.note.state.lock().is_late(now()), "it is looked for again later");
        assert_eq!(watch.read(&mut &b"abc"[..], &mut [0; 3], now()).unwrap(), 3);
        assert_eq!(*watch.note.state.lock(), State::Idle);
    }
}
