//! Those who watch at a follower. It watches at its main, once for all who want the same under the same `Authorization`, and tells them what comes.
//!
//! Every client has a question of his own to the main first, which says whether he may. Whoever begins from now on goes over to others who have begun before. Whoever goes on from a cursor
//! keeps a connection of his own until he is told just the event that the others were told last.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::{Condvar, Mutex};
use tiny_http::Method;

use super::answer::Answer;
use super::answer_body::Body;
use super::dispatch::Job;
use super::error_form::ErrorForm;
use super::node_handlers::header;
use super::relay;
use super::sockets::Socket;
use super::watch::{Client, Looked, Watches};
use super::watch_request::{SINCE, Wanted};
use super::watch_text;
use super::watcher::Watcher;
use crate::error::{Applied, Error};
use crate::node::host;
use crate::node::state::Node;
use crate::peers::events::{self, Events, Opened};
use crate::threads;
use crate::wire::{self, LAST_EVENT_ID};

/// How often those who watch are written to.
const ROUND: Duration = Duration::from_millis(20);
/// While nobody does, it is looked so often whether somebody has come.
const IDLE_ROUND: Duration = Duration::from_millis(50);
/// After this time a main that was lost is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// So many connections to the main at most.
const MOST: usize = 512;
/// So many events of one wait to be told.
const MOST_EVENTS: usize = 64;

/// What the main is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What is wanted, without the place from which on: for those who want the same it is the same.
    target: String,
    authorization: Option<String>,
    /// The target as the client has sent it, and its header, if he goes on from a cursor.
    from: Option<(String, Option<String>)>,
    hops: String,
}

impl Asked {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Error::Loop`].
    pub fn of(node: &Node, job: &Job) -> Result<Self, Error> {
        let hops = relay::next_hops(&job.arrival, &node.trace)?;
        let (path, query) = (job.arrival.path(), job.arrival.query().unwrap_or_default());
        let is_since = |one: &&str| one.split('=').next() == Some(SINCE);
        let rest: Vec<&str> = query.split('&').filter(|one| !is_since(one)).collect();
        let last = header(&job.arrival.request, LAST_EVENT_ID);
        let goes_on = last.is_some() || query.split('&').any(|one| is_since(&one));
        Ok(Self {
            target: relay::target(path, Some(&rest.join("&"))),
            authorization: header(&job.arrival.request, "Authorization"),
            from: goes_on.then(|| (relay::target(path, Some(query)), last)),
            hops,
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        self.target == other.target && self.authorization == other.authorization
    }
}

/// A connection to the main, as the thread that reads it and the one that tells what comes share it.
#[derive(Default)]
struct Link {
    state: Mutex<LinkState>,
    has_room: Condvar,
}

#[derive(Default)]
struct LinkState {
    phase: Phase,
    events: VecDeque<Vec<u8>>,
    /// Nobody wants it any more.
    is_over: bool,
    stream: Option<TcpStream>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Opening,
    Open,
    /// The main has refused it.
    Refused(Box<Answer>),
    /// It is not reached, or has ended for good.
    Lost(String),
}

impl Link {
    fn end(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        if let Some(stream) = state.stream.take() {
            // One that has ended is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.has_room.notify_all();
    }

    /// Reads until the link is over, and asks the main again where the connection ends.
    fn run(&self, node: &Node, asked: &Asked) {
        let mut last: Option<String> = None;
        loop {
            let opened = open(node, asked, last.as_deref());
            let was_open = last.is_some();
            let mut state = self.state.lock();
            if state.is_over {
                return;
            }
            match opened {
                Ok(Opened::Events(events)) => {
                    state.stream = events.handle().ok();
                    state.phase = Phase::Open;
                    drop(state);
                    self.read(events, &mut last);
                }
                // While it has no leader for a shard it cannot say; who was admitted waits.
                Ok(Opened::Refused(503, ..)) | Err(_) if was_open => drop(state),
                Ok(Opened::Refused(status, headers, body)) => {
                    state.phase = Phase::Refused(Box::new(refusal(status, headers, body)));
                    return;
                }
                Err(error) => {
                    state.phase = Phase::Lost(error.to_string());
                    return;
                }
            }
            host::run(node.pause(PAUSE));
        }
    }

    fn read(&self, mut events: Events, last: &mut Option<String>) {
        while let Ok(event) = events.read() {
            let mut state = self.state.lock();
            while state.events.len() >= MOST_EVENTS && !state.is_over {
                self.has_room.wait(&mut state);
            }
            if state.is_over {
                return;
            }
            if let Some(id) = watch_text::id_of(&event) {
                *last = Some(id.to_owned());
            }
            state.events.push_back(event);
        }
    }
}

fn open(node: &Node, asked: &Asked, last: Option<&str>) -> std::io::Result<Opened> {
    let main = node.main().ok_or(std::io::ErrorKind::NotFound)?;
    let mut headers = vec![(wire::HOP_HEADER, asked.hops.as_str())];
    headers.extend(asked.authorization.as_deref().map(|value| ("Authorization", value)));
    let (target, header) = match (&asked.from, last) {
        (_, Some(last)) => (&asked.target, Some(last)),
        (Some((target, header)), None) => (target, header.as_deref()),
        (None, None) => (&asked.target, None),
    };
    headers.extend(header.map(|value| (LAST_EVENT_ID, value)));
    events::open(main.address(), target, &headers, node.request_timeout)
}

/// The answer of the main as its follower gives it.
fn refusal(status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> Answer {
    let mut answer = Answer { body: Body::Bytes(body.into()), ..Answer::empty(status) };
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("Content-Type") {
            answer.content_type = value.into();
        } else if ["Allow", "Retry-After", "Evenkv-Limit", "Evenkv-Reason", "WWW-Authenticate"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
        {
            answer.headers.push((name.into(), value.into()));
        }
    }
    answer
}

/// A connection to the main, and those who are told what comes on it.
struct Upstream {
    asked: Asked,
    link: Arc<Link>,
    /// The one who has asked first, until it is known that he may.
    first: Option<Watcher>,
    watchers: Vec<Watcher>,
    /// The cursor that was told last.
    last: Option<String>,
}

impl Upstream {
    /// Whether those who begin now may come to it: it has begun from now on itself.
    fn is_shared(&self) -> bool {
        self.asked.from.is_none() && self.first.is_none() && self.last.is_some()
    }

    /// Tells what has come.
    fn tell(&mut self) {
        if !self.watchers.iter().all(Watcher::has_room) && self.asked.from.is_some() {
            return;
        }
        let events = std::mem::take(&mut self.link.state.lock().events);
        self.link.has_room.notify_all();
        for event in events {
            if let Some(id) = watch_text::id_of(&event) {
                self.last = Some(id.to_owned());
            }
            let event: Arc<[u8]> = event.into();
            for watcher in &mut self.watchers {
                watcher.push(Arc::clone(&event));
            }
        }
    }

    fn flush(&mut self) {
        for watcher in &mut self.watchers {
            watcher.flush();
        }
        let gone = self.first.take_if(|first| first.is_over());
        self.watchers.extract_if(.., |watcher| watcher.is_over()).chain(gone).for_each(Watcher::end);
    }

    fn end(self) {
        self.link.end();
        self.watchers.into_iter().for_each(Watcher::end);
    }
}

struct Teller<'a> {
    node: &'a Arc<Node>,
    port: u16,
    client: Client<'a>,
    upstreams: Vec<Upstream>,
    looked: Looked,
}

/// Tells those who watch at a follower what its main tells, until the channel closes.
pub fn run(
    watches: &Watches<Asked>,
    node: &Arc<Node>,
    (port, stop): (u16, &Receiver<()>),
    client: Client<'_>,
) {
    let mut teller = Teller { node, port, client, upstreams: Vec::new(), looked: Looked::default() };
    let mut pause = IDLE_ROUND;
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let coming = watches.take();
        if catch_unwind(AssertUnwindSafe(|| teller.round(coming))).is_err() {
            log::error!("telling those who watch broke off: they are cut off, and can go on elsewhere");
            teller.end_all();
        }
        watches.set_count(
            teller.upstreams.iter().map(|one| one.watchers.len() + usize::from(one.first.is_some())).sum(),
        );
        pause = if teller.upstreams.is_empty() { IDLE_ROUND } else { ROUND };
    }
    teller.end_all();
}

impl Teller<'_> {
    fn end_all(&mut self) {
        for mut upstream in self.upstreams.drain(..) {
            if let Some(first) = upstream.first.take() {
                let error = Error::NotServing("The node is stopping: watch at another one".to_owned());
                (self.client.refuse)(first.into_job(), problem(&error));
            }
            upstream.end();
        }
    }

    fn round(&mut self, coming: Vec<(Box<Job>, Asked)>) {
        self.take(coming);
        if self.node.is_leaving() || self.node.is_stopping() {
            self.end_all();
        }
        self.admit();
        self.upstreams.iter_mut().for_each(Upstream::tell);
        self.merge();
        let gone = self.looked.gone(self.port);
        gone.note(self.upstreams.iter_mut().flat_map(|one| one.watchers.iter_mut().chain(&mut one.first)));
        self.upstreams.iter_mut().for_each(Upstream::flush);
        let is_void = |one: &mut Upstream| one.first.is_none() && one.watchers.is_empty();
        self.upstreams.extract_if(.., is_void).for_each(Upstream::end);
    }

    fn take(&mut self, coming: Vec<(Box<Job>, Asked)>) {
        if coming.is_empty() {
            return;
        }
        let clients: HashSet<SocketAddr> = coming.iter().map(|(job, _)| job.ticket.client()).collect();
        let mut sockets: HashMap<SocketAddr, Socket> = Socket::of_all(self.port, &clients);
        for (job, asked) in coming {
            let Some(socket) = sockets.remove(&job.ticket.client()).filter(|_| self.upstreams.len() < MOST)
            else {
                let reason =
                    "Too many are about to watch: try again after the time in Retry-After".to_owned();
                (self.client.refuse)(job, problem(&Error::Overloaded(reason)));
                continue;
            };
            let watcher = Watcher::new(job, socket, Wanted::default());
            let link = Arc::new(Link::default());
            let (node, own, question) = (Arc::clone(self.node), Arc::clone(&link), asked.clone());
            if let Err(error) = threads::spawn("watch-main", move || own.run(&node, &question)) {
                let reason = format!("No thread is left to ask the main: {error}");
                (self.client.refuse)(watcher.into_job(), problem(&Error::Overloaded(reason)));
                continue;
            }
            self.upstreams.push(Upstream {
                asked,
                link,
                first: Some(watcher),
                watchers: Vec::new(),
                last: None,
            });
        }
    }

    /// Begins with those of whom the main has said that they may; tells the others what it has said.
    fn admit(&mut self) {
        for at in (0..self.upstreams.len()).rev() {
            let upstream = &self.upstreams[at];
            let mut state = upstream.link.state.lock();
            let refused = match std::mem::take(&mut state.phase) {
                Phase::Refused(answer) => Some(*answer),
                Phase::Lost(reason) => Some(problem(&Error::MainDown { reason, applied: Applied::No })),
                phase => {
                    state.phase = phase;
                    None
                }
            };
            let is_open = matches!(state.phase, Phase::Open);
            drop(state);
            if let Some(answer) = refused {
                let mut upstream = self.upstreams.swap_remove(at);
                if let Some(first) = upstream.first.take() {
                    (self.client.refuse)(first.into_job(), answer);
                }
                upstream.end();
                continue;
            }
            if is_open && let Some(mut first) = self.upstreams[at].first.take() {
                first.begin(self.client.begin);
                let asked = &self.upstreams[at].asked;
                let is_fresh = asked.from.is_none();
                let others = |one: &Upstream| is_fresh && one.is_shared() && one.asked.is_like(asked);
                let shared = self.upstreams.iter().position(others);
                if let Some(shared) = shared
                    && let Some(last) = &self.upstreams[shared].last
                {
                    // From now on: it was told nothing yet, and all that comes there comes after what the main has answered by now, or was just before.
                    first.push(watch_text::comment(Some(last)).into());
                    self.upstreams[shared].watchers.push(first);
                } else {
                    self.upstreams[at].watchers.push(first);
                }
            }
        }
    }

    /// Has those go together who were told the same event last.
    fn merge(&mut self) {
        for at in (0..self.upstreams.len()).rev() {
            let one = &self.upstreams[at];
            let is_there = |other: &Upstream| {
                other.last.is_some() && other.last == one.last && other.asked.is_like(&one.asked)
            };
            let Some(to) = self.upstreams[..at].iter().position(is_there) else { continue };
            let mut gone = self.upstreams.swap_remove(at);
            let watchers = std::mem::take(&mut gone.watchers);
            self.upstreams[to].watchers.extend(watchers);
            if gone.asked.from.is_none() {
                // What it has begun with does not matter any more.
                self.upstreams[to].asked.from = None;
            }
            gone.end();
        }
    }
}

fn problem(error: &Error) -> Answer {
    Answer::error(error, &Method::Get, ErrorForm::Problem)
}
