//! One request of a connection at a time.
//!
//! tiny_http reads ahead: a client that pipelines has its requests handed out all at once, without limit, and a
//! worker that answers the second waits until the first is answered. So of each connection only the oldest request
//! is given to a lane; the others wait here, up to a limit. A connection over the limit, or one whose stream can no
//! longer be trusted, is cut off: what still comes from it is thrown away, since an answer to it could be taken
//! for the answer to another request. (tiny_http offers no way to close it; it ends when the client
//! closes it, or is silent for the idle timeout.)

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
    /// Nothing is in progress and nothing will be answered; since when nothing has come.
    CutOff(Instant),
}

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
                log::warn!("{client} is cut off: it sent more than {} requests ahead", self.depth);
                // Those that wait came before this one, so their answers still find their requests.
                *connection = Connection::Ending(std::mem::take(waiting));
            }
            Connection::Ending(_) => {}
            Connection::CutOff(since) => *since = now(),
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
                    *connection = Connection::CutOff(now());
                }
                next
            }
            Connection::CutOff(_) => None,
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

    /// Forgets connections that were cut off and from which nothing has come for so long that they are closed.
    pub fn sweep(&self, closed_after: Duration) {
        let now = now();
        self.known.lock().retain(|_, connection| match connection {
            Connection::CutOff(since) => now - *since < closed_after,
            _ => true,
        });
    }

    /// How many connections have a request in progress.
    pub fn busy(&self) -> usize {
        self.known.lock().values().filter(|connection| !matches!(connection, Connection::CutOff(_))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_connection_run_one_after_the_other() {
        let connections = Connections::new(2);
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert_eq!(connections.admit(client, 2), Admission::Waits);
        assert_eq!(connections.admit(client, 3), Admission::Waits);
        assert_eq!(connections.answered(client), Some(2));
        assert_eq!(connections.answered(client), Some(3));
        assert_eq!(connections.answered(client), None);
        assert_eq!(connections.busy(), 0);
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
        connections.sweep(Duration::from_mins(1));
        assert_eq!(connections.admit(client, 5), Admission::CutOff(5));
        connections.sweep(Duration::ZERO);
        assert_eq!(connections.admit(client, 6), Admission::Run(6));
    }
}
