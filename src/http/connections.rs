//! One request of a connection at a time.
//!
//! tiny_http reads ahead: a client that pipelines has its requests handed out all at once, without limit, and a
//! worker that answers the second waits until the first is answered. So of each connection only the oldest request
//! is given to a lane; the others wait here, up to a limit. A connection over the limit, or one whose stream can no
//! longer be trusted, is cut off: what still comes from it is thrown away, since an answer to it could be taken
//! for the answer to another request.
//!
//! A client may use its address again for a new connection, at once where it has reset the one before. So what comes under the address of a connection
//! that was cut off waits until the sockets of the process were looked at: while one of its descriptors stands for the socket of the old connection, that
//! may come from there; when none does any more, it is of a new connection, and is served. What is of the old one is thrown away, and its socket is shut, so that the client sees the end.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sockets::{Held, Known};
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
    /// One request is in progress, these wait, and nothing else of it will be answered.
    Ending(VecDeque<T>, After<T>),
    /// Nothing is in progress and nothing will be answered.
    CutOff(After<T>),
}

/// What is known of a connection that was cut off, or is to be.
struct After<T> {
    /// Since when nothing has come.
    since: Instant,
    /// The number of its socket, where it was seen.
    socket: Option<u64>,
    /// Nothing can come from it any more: tiny_http waits for a body that nobody will read.
    is_parked: bool,
    /// Something was thrown away, which may even have been of a new connection: its client is to see the end.
    has_thrown: bool,
    /// What has come since under its address, be it of this connection or of a new one.
    later: VecDeque<T>,
}

/// A connection that was never found among the sockets, and of which nothing has come for this long, is gone.
const QUIET: Duration = Duration::from_secs(1);
/// tiny_http lets go of a connection that its client has reset sooner than this, but for the requests that it has handed out.
const HOLDING: Duration = Duration::from_millis(200);

/// What to do with a request that has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<T> {
    /// Give it to its lane.
    Run(T),
    /// Nothing: it waits for the one before it, or until it is known which connection it is of.
    Waits,
    /// Throw it away, without an answer.
    CutOff(T),
}

/// What became of connections that were cut off.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled<T> {
    /// Requests of new connections: to be given to their lanes.
    pub run: Vec<(SocketAddr, T)>,
    /// Requests to be thrown away.
    pub thrown: Vec<(SocketAddr, T)>,
    /// The connections to be shut before that.
    pub shut: Vec<Known>,
}

/// What the sockets of the process say of a connection that was cut off.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It may still be there, and so may another one under its address.
    Unclear,
    /// Its socket is held by the first request that has come, as nothing else has held it for so long: that is of the old connection.
    HeldByFirst,
    /// It is there, or nobody will ever know: nothing is answered, and what is there is shut.
    Old,
    /// It has no client any more.
    Dead,
    /// It is gone: whatever has come is of another connection.
    Gone,
}

impl<T> Settled<T> {
    /// Shuts what is there under a client's address, if anything of it is or was thrown away.
    fn shut_if_any(&mut self, client: SocketAddr, socket: Option<u64>, after: &mut After<T>) {
        if !after.later.is_empty() || std::mem::take(&mut after.has_thrown) {
            self.shut.push((client, socket));
        }
    }
}

impl<T> After<T> {
    fn new() -> Self {
        Self { since: now(), socket: None, is_parked: false, has_thrown: false, later: VecDeque::new() }
    }

    fn judge(&mut self, held: &Held, client: SocketAddr) -> Verdict {
        let live = held.clients.get(&client).copied();
        // What has come since they were looked at may be of a connection that was not there yet.
        let Some(waited) = held.looked.checked_duration_since(self.since) else { return Verdict::Unclear };
        let Some(own) = self.socket else {
            self.socket = live;
            return match live {
                Some(_) => Verdict::Old,
                None if waited >= QUIET => Verdict::Gone,
                None => Verdict::Dead,
            };
        };
        match live {
            _ if !held.numbers.contains(&own) => Verdict::Gone,
            None => Verdict::Dead,
            Some(live) if live == own => Verdict::Old,
            Some(_) if waited >= HOLDING => Verdict::HeldByFirst,
            Some(_) => Verdict::Unclear,
        }
    }
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
        let after = match connection {
            Connection::Busy(waiting) if waiting.len() < self.depth => {
                waiting.push_back(request);
                return Admission::Waits;
            }
            Connection::Busy(waiting) => {
                // Those that wait came before this one, so their answers still find their requests.
                let after = After { has_thrown: true, ..After::new() };
                *connection = Connection::Ending(std::mem::take(waiting), after);
                drop(known);
                log::debug!("{client} is cut off: it sent more than {} requests ahead", self.depth);
                return Admission::CutOff(request);
            }
            Connection::Ending(_, after) | Connection::CutOff(after) => after,
        };
        after.since = now();
        // A new connection has at least one request.
        if after.later.len() >= self.depth.max(1) {
            after.has_thrown = true;
            return Admission::CutOff(request);
        }
        after.later.push_back(request);
        Admission::Waits
    }

    /// A request was answered: the next one to give to its lane.
    pub fn answered(&self, client: SocketAddr) -> Option<T> {
        let mut known = self.known.lock();
        match known.get_mut(&client)? {
            Connection::Busy(waiting) => {
                let next = waiting.pop_front();
                if next.is_none() {
                    known.remove(&client);
                }
                next
            }
            Connection::Ending(waiting, after) => {
                let next = waiting.pop_front();
                if next.is_none() {
                    after.since = now();
                    let after = std::mem::replace(after, After::new());
                    if after.is_parked {
                        return begin_anew(&mut known, client, after.later);
                    }
                    known.insert(client, Connection::CutOff(after));
                }
                next
            }
            Connection::CutOff(_) => None,
        }
    }

    /// The request in progress is the last one: what waits behind it is returned to be thrown away. Whether the number of its socket is not known yet is said, too.
    #[must_use = "the requests have to be thrown away without an answer"]
    pub fn end(&self, client: SocketAddr) -> (VecDeque<T>, bool) {
        let mut known = self.known.lock();
        match known.get_mut(&client) {
            Some(Connection::Ending(waiting, after)) => {
                after.has_thrown |= !waiting.is_empty();
                (std::mem::take(waiting), after.socket.is_none())
            }
            Some(Connection::Busy(waiting)) => {
                let waiting = std::mem::take(waiting);
                let after = After { has_thrown: !waiting.is_empty(), ..After::new() };
                known.insert(client, Connection::Ending(VecDeque::new(), after));
                (waiting, true)
            }
            Some(Connection::CutOff(_)) | None => (VecDeque::new(), false),
        }
    }

    /// The socket of a connection that ends was seen.
    pub fn note(&self, client: SocketAddr, socket: u64) {
        if let Some(Connection::Ending(_, after)) = self.known.lock().get_mut(&client) {
            after.socket.get_or_insert(socket);
        }
    }

    /// The number of the socket of a connection that ends, where it is known.
    pub fn socket(&self, client: SocketAddr) -> Option<u64> {
        match self.known.lock().get(&client) {
            Some(Connection::Ending(_, after)) => after.socket,
            _ => None,
        }
    }

    /// Of a connection that ends, or was cut off, nothing more can come, as nobody will read the body before it. Returns a request of a new one to give to its lane.
    pub fn park(&self, client: SocketAddr) -> Option<T> {
        let mut known = self.known.lock();
        match known.get_mut(&client)? {
            Connection::Busy(_) => None,
            Connection::Ending(_, after) => {
                after.is_parked = true;
                None
            }
            Connection::CutOff(after) => {
                let later = std::mem::take(&mut after.later);
                begin_anew(&mut known, client, later)
            }
        }
    }

    /// Whether there are connections that were cut off; and whether anything has come under the address of one, or its socket was not seen yet.
    pub fn cut_off(&self) -> (bool, bool) {
        let (mut any, mut unclear) = (false, false);
        for connection in self.known.lock().values() {
            match connection {
                Connection::Busy(_) => {}
                Connection::Ending(_, after) => unclear |= after.socket.is_none(),
                Connection::CutOff(after) => {
                    any = true;
                    unclear |= after.socket.is_none() || after.has_thrown || !after.later.is_empty();
                }
            }
        }
        (any, unclear)
    }

    /// Decides of what has come under the addresses of connections that were cut off, by the sockets that the process has open since then. Forgets connections that are gone, or
    /// of which nothing has come for so long that they must be.
    pub fn settle(&self, held: Option<&Held>, closed_after: Duration) -> Settled<T> {
        let mut settled = Settled { run: Vec::new(), thrown: Vec::new(), shut: Vec::new() };
        let mut known = self.known.lock();
        let mut gone = Vec::new();
        for (client, connection) in known.iter_mut() {
            let live = held.and_then(|held| held.clients.get(client).copied());
            let after = match connection {
                Connection::Busy(_) => continue,
                Connection::Ending(_, after) => {
                    after.socket = after.socket.or(live);
                    continue;
                }
                Connection::CutOff(after) => after,
            };
            let is_over = now() - after.since >= closed_after;
            match held.map_or(Verdict::Unclear, |held| after.judge(held, *client)) {
                Verdict::Gone => gone.push(*client),
                Verdict::Unclear if !is_over => {}
                Verdict::Unclear => settled.thrown.extend(after.later.drain(..).map(|late| (*client, late))),
                Verdict::Dead => {
                    after.has_thrown = false;
                    settled.thrown.extend(after.later.drain(..).map(|late| (*client, late)));
                }
                Verdict::Old => {
                    settled.shut_if_any(*client, live, after);
                    settled.thrown.extend(after.later.drain(..).map(|late| (*client, late)));
                }
                // As soon as its socket is gone, the rest is of another connection; if it never is, that is shut when nothing is left of it.
                Verdict::HeldByFirst => {
                    if after.later.len() == 1 {
                        settled.shut_if_any(*client, live, after);
                    }
                    settled.thrown.extend(after.later.pop_front().map(|first| (*client, first)));
                }
            }
            if is_over {
                gone.push(*client);
            }
        }
        for client in gone {
            if let Some(Connection::CutOff(after)) = known.remove(&client) {
                settled.run.extend(begin_anew(&mut known, client, after.later).map(|first| (client, first)));
            }
        }
        settled
    }

    /// Whether a client's connection has a request in progress.
    pub fn is_busy(&self, client: SocketAddr) -> bool {
        matches!(self.known.lock().get(&client), Some(Connection::Busy(_) | Connection::Ending(..)))
    }

    /// How many connections have a request in progress.
    pub fn busy(&self) -> usize {
        let known = self.known.lock();
        known.values().filter(|connection| !matches!(connection, Connection::CutOff(_))).count()
    }
}

/// A new connection has come with these requests, if any: its first one to give to its lane.
fn begin_anew<T>(
    known: &mut HashMap<SocketAddr, Connection<T>>,
    client: SocketAddr,
    mut requests: VecDeque<T>,
) -> Option<T> {
    let first = requests.pop_front();
    if first.is_some() {
        known.insert(client, Connection::Busy(requests));
    } else {
        known.remove(&client);
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::simulated;

    const LONG: Duration = Duration::from_mins(1);

    fn client() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    /// The process has these sockets, and this one is connected with the client.
    fn held(numbers: &[u64], live: Option<u64>) -> Held {
        Held {
            clients: live.into_iter().map(|number| (client(), number)).collect(),
            numbers: numbers.iter().copied().collect(),
            looked: now(),
            descriptors: numbers.len(),
        }
    }

    /// A connection that was cut off after its first request, and whose socket was seen or not.
    fn cut_off(socket: Option<u64>) -> Connections<u32> {
        let connections = Connections::new(2);
        assert_eq!(connections.admit(client(), 1), Admission::Run(1));
        assert_eq!(connections.end(client()), (VecDeque::new(), true));
        if let Some(socket) = socket {
            connections.note(client(), socket);
            assert_eq!(connections.end(client()), (VecDeque::new(), false));
        }
        assert_eq!(connections.answered(client()), None);
        connections
    }

    fn settled(run: &[u32], thrown: &[u32], shut: Option<u64>) -> Settled<u32> {
        let all = |requests: &[u32]| requests.iter().map(|request| (client(), *request)).collect();
        Settled {
            run: all(run),
            thrown: all(thrown),
            shut: shut.map(|socket| (client(), Some(socket))).into_iter().collect(),
        }
    }

    #[test]
    fn requests_of_a_connection_run_one_after_the_other() {
        let (connections, client) = (Connections::new(2), client());
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
        assert_eq!(connections.cut_off(), (false, false));
    }

    #[test]
    fn who_sends_too_far_ahead_is_answered_up_to_there_and_then_shut() {
        simulated::stop();
        let (connections, client) = (Connections::new(1), client());
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert_eq!(connections.admit(client, 2), Admission::Waits);
        assert_eq!(connections.admit(client, 3), Admission::CutOff(3));
        assert_eq!(connections.admit(client, 4), Admission::Waits);
        assert_eq!(connections.admit(client, 5), Admission::CutOff(5));
        let open = held(&[17], Some(17));
        assert_eq!(connections.settle(Some(&open), LONG), settled(&[], &[], None), "not before its answers");
        assert_eq!(connections.answered(client), Some(2));
        assert_eq!(connections.answered(client), None);
        assert_eq!(connections.settle(Some(&open), LONG), settled(&[], &[4], Some(17)));
        simulated::end();
    }

    #[test]
    fn what_waits_behind_the_last_request_is_thrown_away_and_the_connection_shut() {
        let (connections, client) = (Connections::new(2), client());
        assert_eq!(connections.admit(client, 1), Admission::Run(1));
        assert_eq!(connections.admit(client, 2), Admission::Waits);
        assert_eq!(connections.end(client), (VecDeque::from([2]), true));
        assert_eq!(connections.answered(client), None);
        // It may have been of a new connection, whose client would wait.
        simulated::stop();
        assert_eq!(connections.cut_off(), (true, true));
        let open = held(&[17], Some(17));
        assert_eq!(connections.settle(Some(&open), LONG), settled(&[], &[], Some(17)));
        assert_eq!(connections.settle(Some(&open), LONG), settled(&[], &[], None), "once is enough");
        simulated::end();
    }

    #[test]
    fn what_comes_after_the_last_request_is_served_if_it_is_of_another_connection() {
        simulated::stop();
        let table = [
            (Some(17), held(&[17], Some(17)), settled(&[], &[2], Some(17)), "the old one is open"),
            (Some(17), held(&[17], None), settled(&[], &[2], None), "it was reset, and not read to its end"),
            (
                Some(17),
                held(&[17, 18], Some(18)),
                settled(&[], &[], None),
                "the same, and there is a new one",
            ),
            (Some(17), held(&[18], Some(18)), settled(&[2], &[], None), "it is gone, and there is a new one"),
            (Some(17), held(&[], None), settled(&[2], &[], None), "it is gone, and so is the new one"),
            (None, held(&[18], Some(18)), settled(&[], &[2], Some(18)), "nobody knows"),
            (None, held(&[], None), settled(&[], &[2], None), "it was never seen"),
        ];
        for (socket, held, wanted, case) in table {
            let connections = cut_off(socket);
            assert_eq!(connections.admit(client(), 2), Admission::Waits);
            assert_eq!(connections.cut_off(), (true, true));
            assert_eq!(connections.settle(Some(&held), LONG), wanted, "{case}");
        }
        simulated::end();
    }

    #[test]
    fn what_holds_the_socket_of_the_old_connection_is_of_that() {
        simulated::stop();
        let connections = cut_off(Some(17));
        for request in [2, 3] {
            assert_eq!(connections.admit(client(), request), Admission::Waits);
        }
        assert_eq!(connections.settle(Some(&held(&[17, 18], Some(18))), LONG), settled(&[], &[], None));
        simulated::advance(HOLDING);
        assert_eq!(connections.settle(Some(&held(&[17, 18], Some(18))), LONG), settled(&[], &[2], None));
        assert_eq!(connections.settle(Some(&held(&[18], Some(18))), LONG), settled(&[3], &[], None));
        // One that is never let go.
        let connections = cut_off(Some(17));
        assert_eq!(connections.admit(client(), 2), Admission::Waits);
        simulated::advance(HOLDING);
        assert_eq!(connections.settle(Some(&held(&[17, 18], Some(18))), LONG), settled(&[], &[2], Some(18)));
        simulated::end();
    }

    #[test]
    fn what_has_come_since_the_sockets_were_looked_at_is_not_judged() {
        simulated::stop();
        let connections = cut_off(Some(17));
        let [open, reset] = [held(&[17], Some(17)), held(&[17], None)];
        simulated::advance(HOLDING);
        assert_eq!(connections.admit(client(), 2), Admission::Waits);
        for before in [open, reset] {
            assert_eq!(connections.settle(Some(&before), LONG), settled(&[], &[], None));
        }
        simulated::end();
    }

    #[test]
    fn requests_of_a_new_connection_run_one_after_the_other() {
        let connections = cut_off(Some(17));
        assert_eq!(connections.admit(client(), 2), Admission::Waits);
        assert_eq!(connections.admit(client(), 3), Admission::Waits);
        assert_eq!(connections.settle(Some(&held(&[18], Some(18))), LONG), settled(&[2], &[], None));
        assert_eq!(connections.admit(client(), 4), Admission::Waits);
        assert_eq!(connections.answered(client()), Some(3));
        assert_eq!(connections.answered(client()), Some(4));
        assert_eq!(connections.answered(client()), None);
        assert_eq!(connections.cut_off(), (false, false));
    }

    #[test]
    fn of_a_connection_whose_body_nobody_reads_nothing_more_can_come() {
        for came_before in [false, true] {
            let connections = cut_off(Some(17));
            if came_before {
                assert_eq!(connections.admit(client(), 2), Admission::Waits);
                assert_eq!(connections.park(client()), Some(2));
            } else {
                assert_eq!(connections.park(client()), None);
                assert_eq!(connections.admit(client(), 2), Admission::Run(2));
            }
            assert_eq!(connections.answered(client()), None);
            // The same while its last request is in progress.
            assert_eq!(connections.admit(client(), 3), Admission::Run(3));
            let _ = connections.end(client());
            assert_eq!(connections.park(client()), None);
            if came_before {
                assert_eq!(connections.admit(client(), 4), Admission::Waits);
            }
            assert_eq!(connections.answered(client()), came_before.then_some(4));
            assert_eq!(connections.busy(), usize::from(came_before));
        }
    }

    #[test]
    fn a_connection_that_is_gone_is_forgotten() {
        simulated::stop();
        let connections = cut_off(Some(17));
        assert_eq!(connections.cut_off(), (true, false));
        assert_eq!(connections.settle(Some(&held(&[17], Some(17))), LONG), settled(&[], &[], None));
        assert_eq!(connections.settle(Some(&held(&[], None)), LONG), settled(&[], &[], None));
        assert_eq!(connections.cut_off(), (false, false));
        // One that is never seen, or where the sockets cannot be looked at.
        for (can_look, patience) in [(true, QUIET), (false, LONG)] {
            let connections = cut_off(None);
            connections.settle(can_look.then(|| held(&[], None)).as_ref(), LONG);
            assert_eq!(connections.cut_off(), (true, true));
            simulated::advance(patience);
            connections.settle(can_look.then(|| held(&[], None)).as_ref(), LONG);
            assert_eq!(connections.cut_off(), (false, false));
        }
        simulated::end();
    }
}
