//! One request of a connection at a time.
//!
//! tiny_http reads ahead: a client that pipelines has its requests handed out all at once, without limit, and a
//! worker that answers the second waits until the first is answered. So of each connection only the oldest request
//! is given to a lane; the others wait here, up to a limit. A connection over the limit, or one whose stream can no
//! longer be trusted, is cut off: what still comes from it is thrown away, since an answer to it could be taken
//! for the answer to another request. (tiny_http offers no way to close it; it ends when the client
//! closes it, or is silent for the idle timeout. The same address may then belong to a new connection, which the kernel
//! tells apart by the number of its socket.)

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::now;

/// The connections that have a request in progress, or were cut off.
///
/// `T` is a request; each connection is known by the address of its client.
pub struct Connections<T> {
    known: Mutex<HashMap<SocketAddr, Connection<T>>>,
    depth: usize,
}

enum Connection<T> {
    /// One request is in progress, these wait.
    Busy(VecDeque<T>),
    /// One request is in progress, these wait, and what comes after them is thrown away.
    Ending(VecDeque<T>),
    /// Nothing is in progress and nothing will be answered.
    CutOff {
        /// Since when nothing has come.
        since: Instant,
        /// What is known of its socket.
        socket: Seen,
    },
}

/// What was seen of the socket of a connection that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing yet.
    NotYet,
    /// It is open, and this is its number.
    Open(u64),
    /// It is closed, or was shut: nothing new comes, but some of what had come before may not have been read yet.
    Gone,
}

/// From a connection that is closed nothing comes any more when nothing has come for this long.
const QUIET: Duration = Duration::from_secs(1);

/// What to do with a request that has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<T> {
    /// Give it to its lane.
    Run(T),
    /// Nothing: it waits for the one before it.
    Waits,
    /// Throw it away, without an answer.
    CutOff(T),
}

impl<T> Connections<T> {
    /// At most `depth` requests of one connection wait.
    pub fn new(depth: usize) -> Self {
        Self { known: Mutex::default(), depth }
    }

    /// Takes a request that has come.
    pub fn admit(&self, client: SocketAddr, request: T) -> Admission<T> {
        let mut known = self.known.lock();
        let Some(connection) = known.get_mut(&client) else {
            known.insert(client, Connection::Busy(VecDeque::new()));
            return Admission::Run(request);
        };
        match connection {
            Connection::Busy(waiting) if waiting.len() < self.depth => {
                waiting.push_back(request);
                return Admission::Waits;
            }
            Connection::Busy(waiting) => {
                // Those that wait came before this one, so their answers still find their requests.
                *connection = Connection::Ending(std::mem::take(waiting));
                drop(known);
                log::debug!("{client} is cut off: it sent more than {} requests ahead", self.depth);
            }
            Connection::Ending(_) => {}
            Connection::CutOff { since, .. } => *since = now(),
        }
        Admission::CutOff(request)
    }

    /// A request was answered: the next one to give to its lane.
    pub fn answered(&self, client: SocketAddr) -> Option<T> {
        let mut known = self.known.lock();
        let connection = known.get_mut(&client)?;
        match connection {
            Connection::Busy(waiting) => {
                let next = waiting.pop_front();
                if next.is_none() {
                    known.remove(&client);
                }
                next
            }
            Connection::Ending(waiting) => {
                let next = waiting.pop_front();
                if next.is_none() {
                    *connection = Connection::CutOff { since: now(), socket: Seen::NotYet };
                }
                next
            }
            Connection::CutOff { .. } => None,
        }
    }

    /// The request in progress is the last one: what waits behind it is returned to be thrown away.
    #[must_use = "the requests have to be thrown away without an answer"]
    pub fn end(&self, client: SocketAddr) -> VecDeque<T> {
        let mut known = self.known.lock();
        match known.insert(client, Connection::Ending(VecDeque::new())) {
            Some(Connection::Busy(waiting) | Connection::Ending(waiting)) => waiting,
            _ => VecDeque::new(),
        }
    }

    /// Whether there are connections that were cut off.
    pub fn has_cut_off(&self) -> bool {
        self.known.lock().values().any(|connection| matches!(connection, Connection::CutOff { .. }))
    }

    /// Forgets connections that were cut off and are closed: since they are not among the `open` ones and nothing more of them is read, or those have
    /// another socket under the address, or since nothing has come for so long that they must be.
    pub fn sweep(&self, open: Option<&HashMap<SocketAddr, u64>>, closed_after: Duration) {
        let now = now();
        self.known.lock().retain(|client, connection| {
            let Connection::CutOff { since, socket } = connection else { return true };
            let is_left = match (open.map(|open| open.get(client)), *socket) {
                (Some(Some(number)), Seen::NotYet) => {
                    *socket = Seen::Open(*number);
                    true
                }
                (Some(Some(number)), seen) => seen == Seen::Open(*number),
                (Some(None), _) => {
                    *socket = Seen::Gone;
                    now - *since < QUIET
                }
                (None, _) => true,
            };
            is_left && now - *since < closed_after
        });
    }

    /// Whether a client's connection has a request in progress.
    pub fn is_busy(&self, client: SocketAddr) -> bool {
        matches!(self.known.lock().get(&client), Some(Connection::Busy(_) | Connection::Ending(_)))
    }

    /// How many connections have a request in progress.
    pub fn busy(&self) -> usize {
        self.known
            .lock()
            .values()
            .filter(|connection| !matches!(connection, Connection::CutOff { .. }))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::simulated;

    #[test]
    fn requests_of_a_connection_run_one_after_the_other() {
        let connections = Connections::new(2);
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert_eq!(connections.admit(client, 2), Admission::Waits);
        assert_eq!(connections.admit(client, 3), Admission::Waits);
        assert!(connections.is_busy(client));
        assert_eq!(connections.answered(client), Some(2));
        assert_eq!(connections.answered(client), Some(3));
        assert_eq!(connections.answered(client), None);
        assert_eq!(connections.busy(), 0);
        assert!(!connections.is_busy(client));
        assert_eq!(connections.admit(client, 4), Admission::Run(4));
    }

    #[test]
    fn who_sends_too_far_ahead_is_answered_up_to_there() {
        let connections = Connections::new(1);
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert_eq!(connections.admit(client, 2), Admission::Waits);
        assert_eq!(connections.admit(client, 3), Admission::CutOff(3));
        assert_eq!(connections.answered(client), Some(2));
        assert_eq!(connections.admit(client, 4), Admission::CutOff(4));
        assert_eq!(connections.answered(client), None);
        assert_eq!(connections.admit(client, 5), Admission::CutOff(5));
    }

    #[test]
    fn a_connection_that_ends_is_not_answered_until_it_is_forgotten() {
        let connections = Connections::new(2);
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert_eq!(connections.admit(client, 2), Admission::Waits);
        assert_eq!(connections.end(client), [2]);
        assert_eq!(connections.admit(client, 3), Admission::CutOff(3));
        assert_eq!(connections.answered(client), None);
        assert_eq!(connections.admit(client, 4), Admission::CutOff(4));
        let long = Duration::from_mins(1);
        connections.sweep(None, long);
        connections.sweep(Some(&HashMap::from([(client, 17)])), long);
        connections.sweep(Some(&HashMap::from([(client, 17)])), long);
        assert_eq!(connections.admit(client, 5), Admission::CutOff(5));
        connections.sweep(None, Duration::ZERO);
        assert_eq!(connections.admit(client, 6), Admission::Run(6));
    }

    #[test]
    fn a_new_connection_from_the_same_address_is_another_one() {
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        simulated::stop();
        for open in [HashMap::new(), HashMap::from([(client, 18)])] {
            let connections = Connections::new(2);
            assert_eq!(connections.admit(client, 1), Admission::Run(1));
            assert!(connections.end(client).is_empty() && connections.answered(client).is_none());
            assert!(connections.has_cut_off());
            connections.sweep(Some(&HashMap::from([(client, 17)])), Duration::from_mins(1));
            assert_eq!(connections.admit(client, 2), Admission::CutOff(2));
            connections.sweep(Some(&open), Duration::from_mins(1));
            if open.is_empty() {
                // What had come before it was closed may still be read.
                assert_eq!(connections.admit(client, 2), Admission::CutOff(2));
                simulated::advance(QUIET);
                connections.sweep(Some(&open), Duration::from_mins(1));
            }
            assert_eq!(connections.admit(client, 3), Admission::Run(3));
            assert!(!connections.has_cut_off());
        }
        simulated::end();
    }

    #[test]
    fn a_connection_that_is_opened_after_one_was_closed_is_another_one() {
        let (connections, client) = (Connections::new(2), SocketAddr::from(([127, 0, 0, 1], 1)));
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert!(connections.end(client).is_empty() && connections.answered(client).is_none());
        connections.sweep(Some(&HashMap::new()), Duration::from_mins(1));
        assert_eq!(connections.admit(client, 2), Admission::CutOff(2));
        connections.sweep(Some(&HashMap::from([(client, 17)])), Duration::from_mins(1));
        assert_eq!(connections.admit(client, 3), Admission::Run(3));
    }
}
