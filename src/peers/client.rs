//! Exchanges with other nodes, and whether each was last seen up.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use ureq::config::AutoHeaderValue;
use ureq::http::{Method, Request, Response, request};
use ureq::{Agent, AsSendBody, Body};

use super::elsewhere::ByHttp;
use super::long_target::{LongTarget, send_with};
use super::multiplex::{Connection, Multiplex, Purpose};
use super::no_answer::{NoAnswer, NoAnswerKind};
use super::probe;
use super::resolver::CachedNames;
use super::transport::{Failure, NodeConnector, SILENCE};
use crate::clock::{Deadline, ticks_ms};
use crate::model::address::Address;
use crate::wire;

/// Idle connections that are kept, in all and per node: at least as many as there are workers that use them.
const IDLE_CONNECTIONS: usize = 1024;
/// An idle connection is not used again after this; shorter than any node's own limit (at least 1 s, 75 s
/// unless set otherwise) would be safest, longer saves connections. What is closed meanwhile is noticed.
const IDLE_AGE: Duration = Duration::from_secs(8);

/// Everything that talks to other nodes.
#[derive(Debug, Clone)]
pub struct Peers {
    agent: Agent,
    names: CachedNames,
    known: Arc<RwLock<BTreeMap<Address, Arc<Peer>>>>,
    secret: Option<Arc<str>>,
}

/// Another node.
#[derive(Debug)]
pub struct Peer {
    address: Address,
    agent: Agent,
    names: CachedNames,
    down: AtomicBool,
    /// Since when questions have not been answered in their time, by [`ticks_ms`]; 0 where the last one was.
    silent_since: AtomicU64,
    secret: Option<Arc<str>>,
    /// The connection for many requests of nodes at one time, and that for those of a follower's clients.
    multiplex: Arc<Multiplex>,
    relay: Arc<Multiplex>,
    /// What is asked about keys by HTTP.
    by_http: ByHttp,
}

impl Peers {
    /// Nobody is known yet; requests among nodes carry the secret.
    pub fn new(secret: Option<&str>) -> Self {
        let names = CachedNames::default();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .allow_non_standard_methods(true)
            .user_agent(AutoHeaderValue::None)
            .accept(AutoHeaderValue::None)
            .accept_encoding(AutoHeaderValue::None)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .max_idle_age(IDLE_AGE)
            .timeout_await_100(Some(Duration::from_secs(1)))
            .build();
        let agent = Agent::with_parts(config, NodeConnector { names: names.clone() }, names.clone());
        Self { agent, names, known: Arc::default(), secret: secret.map(Arc::from) }
    }

    /// The node at an address.
    pub fn at(&self, address: &Address) -> Arc<Peer> {
        if let Some(peer) = self.known.read().get(address) {
            return Arc::clone(peer);
        }
        let mut peers = self.known.write();
        let peer = peers.entry(address.clone()).or_insert_with(|| {
            Arc::new(Peer {
                address: address.clone(),
                agent: self.agent.clone(),
                names: self.names.clone(),
                down: AtomicBool::new(false),
                silent_since: AtomicU64::new(0),
                secret: self.secret.clone(),
                multiplex: Arc::new(Multiplex::new(
                    address,
                    self.names.clone(),
                    Purpose::Nodes,
                    self.secret.clone(),
                )),
                relay: Arc::new(Multiplex::new(address, self.names.clone(), Purpose::Relay, None)),
                by_http: ByHttp::default(),
            })
        });
        Arc::clone(peer)
    }

    /// What waits for an answer about a group is asked again elsewhere, unless it waits for the node that leads it by now.
    pub fn abandon(&self, group: u64, leader: &Address) {
        for peer in self.known.read().values().filter(|peer| peer.address != *leader) {
            peer.abandon(|asked| asked == group);
        }
    }

    /// The same for all that waits for other nodes than these.
    pub fn abandon_others(&self, nodes: &[Address]) {
        let nodes: HashSet<&Address> = nodes.iter().collect();
        for peer in self.known.read().values().filter(|peer| !nodes.contains(&peer.address)) {
            peer.abandon(|_| true);
        }
    }

    /// Forgets nodes that were down when last seen, and ends connections that nobody uses, of all but these.
    pub fn keep(&self, nodes: &[Address]) {
        let nodes: HashSet<&Address> = nodes.iter().collect();
        for peer in self.known.read().values().filter(|peer| !nodes.contains(&peer.address)) {
            peer.multiplex.close();
        }
        if self.known.read().values().any(|peer| peer.is_down()) {
            self.known.write().retain(|address, peer| !peer.is_down() || nodes.contains(address));
        }
    }

    /// The nodes that were down when last seen.
    pub fn down(&self) -> Vec<Arc<Peer>> {
        self.known.read().values().filter(|peer| peer.is_down()).map(Arc::clone).collect()
    }
}

/// How long an exchange may take.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Until then, answer and all.
    Until(Deadline),
    /// A body of any length streams, but the head of the answer must have begun this long after all was sent.
    Streaming(Duration),
}

impl Peer {
    /// The node's address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What names of nodes stand for.
    pub(super) fn names(&self) -> &CachedNames {
        &self.names
    }

    /// The secret that nodes of the cluster share.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// Whether the node was down when last seen; somebody asks it again several times a second.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// The connection for many requests, where there is one and the node is not known to be down.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        if self.is_down() { None } else { self.multiplex.connection() }
    }

    /// The same for requests of a follower's clients, where the node is its main.
    pub fn relay_connection(&self) -> Option<Arc<Connection>> {
        if self.is_down() { None } else { self.relay.connection() }
    }

    /// Has this thread ask about a group by HTTP: it is told at once when another node is to be asked.
    pub fn ask_about<T>(&self, group: u64, ask: impl FnOnce() -> T) -> T {
        self.by_http.ask(group, ask)
    }

    fn abandon(&self, is_elsewhere: impl Fn(u64) -> bool) {
        self.multiplex.abandon(&is_elsewhere);
        self.by_http.abandon(is_elsewhere);
    }

    /// Sends a frame that has no answer on that connection, in a moment and without waiting, if there is one.
    pub fn tell(&self, frame: &[u8]) {
        self.multiplex.tell(frame);
    }

    /// A request to this node.
    pub fn request(&self, method: Method, path: &str) -> request::Builder {
        let (target, long) = LongTarget::of(path);
        let mut request = Request::builder().method(method).uri(format!("http://{}{target}", self.address));
        if let Some(long) = long {
            request = request.extension(long);
        }
        // Who somebody is, is asked before it is known whether the secret may be told.
        match self.secret.as_deref().filter(|_| path.starts_with("/node/") && path != wire::HELLO) {
            Some(secret) => request.header(wire::SECRET_HEADER, secret),
            None => request,
        }
    }

    /// Sends a request and waits for the head of the answer. A node known to be down is not asked.
    ///
    /// # Errors
    /// See [`NoAnswerKind`]. Nothing is ever sent twice.
    pub fn exchange<S: AsSendBody>(
        &self,
        request: Request<S>,
        patience: Patience,
    ) -> Result<Response<Body>, NoAnswer> {
        if self.is_down() {
            return Err(NoAnswer { kind: NoAnswerKind::NotSent, reason: "is down".to_owned() });
        }
        self.ask(request, patience)
    }

    /// Like [`exchange`](Self::exchange), but asks also a node known to be down, and so finds it up again.
    ///
    /// # Errors
    /// See [`NoAnswerKind`].
    pub fn ask<S: AsSendBody>(
        &self,
        request: Request<S>,
        patience: Patience,
    ) -> Result<Response<Body>, NoAnswer> {
        let result = self.ask_unnoted(request, patience);
        self.note(result.as_ref().err());
        result
    }

    /// Like [`ask`](Self::ask), but whether the node was last seen up stays as it was.
    ///
    /// # Errors
    /// See [`NoAnswerKind`].
    pub fn ask_unnoted<S: AsSendBody>(
        &self,
        request: Request<S>,
        patience: Patience,
    ) -> Result<Response<Body>, NoAnswer> {
        let target = request.extensions().get::<LongTarget>().cloned();
        let configured = self.agent.configure_request(request);
        let request = match patience {
            Patience::Until(deadline) => configured.timeout_global(Some(deadline.left())).build(),
            Patience::Streaming(head) => configured.timeout_recv_response(Some(head)).build(),
        };
        send_with(target, || self.agent.run(request)).map_err(|error| no_answer(&error))
    }

    /// The same for a question that has less time than it takes to find out whether a node is there. One that has answered none of them for
    /// as long as that takes is asked by a fresh connection, and counts as down where that is not answered either.
    ///
    /// # Errors
    /// See [`NoAnswerKind`].
    pub fn ask_shortly<S: AsSendBody>(
        &self,
        request: Request<S>,
        deadline: Deadline,
    ) -> Result<Response<Body>, NoAnswer> {
        self.ask(request, Patience::Until(deadline)).inspect_err(|error| {
            let is_late = matches!(error.kind, NoAnswerKind::Late | NoAnswerKind::NoTime);
            if is_late && self.is_silent() && !self.is_alive() {
                self.note(Some(&NoAnswer {
                    kind: NoAnswerKind::Silent,
                    reason: Failure::Silent.to_string(),
                }));
            }
        })
    }

    /// Notes that a question was not answered in time: whether none has been for a while.
    fn is_silent(&self) -> bool {
        let now = ticks_ms().max(1);
        match self.silent_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => false,
            Err(since) => u128::from(now.saturating_sub(since)) >= SILENCE.as_millis(),
        }
    }

    fn is_alive(&self) -> bool {
        let places = self.names.look_up(self.address.as_str()).unwrap_or_default();
        places.into_iter().any(probe::is_alive)
    }

    /// Whether the node is up is seen by whether it answered.
    pub(crate) fn note(&self, error: Option<&NoAnswer>) {
        // The load keeps the line of memory shared among the workers while nothing changes.
        if error.is_none() && self.silent_since.load(Ordering::Relaxed) != 0 {
            self.silent_since.store(0, Ordering::Relaxed);
        }
        match error {
            None => self.set_down(None),
            Some(error) if matches!(error.kind, NoAnswerKind::NotSent | NoAnswerKind::Silent) => {
                self.names.doubt(self.address.as_str());
                self.set_down(Some(&error.reason));
            }
            Some(_) => {}
        }
    }

    /// There is reason to think that the node is up: it is asked again, and found out.
    pub fn expect_up(&self) {
        self.set_down(None);
    }

    fn set_down(&self, reason: Option<&str>) {
        // The load keeps the line of memory shared among the workers while nothing changes.
        if self.is_down() == reason.is_some()
            || self.down.swap(reason.is_some(), Ordering::Relaxed) == reason.is_some()
        {
            return;
        }
        match reason {
            Some(reason) => log::warn!("{} is down: {reason}", self.address),
            None => log::info!("{} is up", self.address),
        }
    }
}

/// A request with its body. One that cannot be written down, whatever it was made of, is one that nobody was asked.
///
/// # Errors
/// [`NoAnswerKind::NotSent`].
pub fn complete<B>(head: request::Builder, body: B) -> Result<Request<B>, NoAnswer> {
    head.body(body).map_err(|error| NoAnswer {
        kind: NoAnswerKind::NotSent,
        reason: format!("the request cannot be written down: {error}"),
    })
}

/// Reads the body of an answer wholly, up to a limit in bytes.
///
/// # Errors
/// When it is longer, or breaks off.
pub fn read_body(response: Response<Body>, limit: u64) -> Result<Vec<u8>, NoAnswer> {
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_with_config().limit(limit).reader();
    match reader.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let kind = match Failure::of_io(&error) {
                Some(Failure::Elsewhere) => NoAnswerKind::Elsewhere,
                _ if error.kind() == io::ErrorKind::TimedOut => NoAnswerKind::Late,
                _ => NoAnswerKind::Broken,
            };
            Err(NoAnswer { kind, reason: format!("the answer broke off: {error}") })
        }
    }
}

fn no_answer(error: &ureq::Error) -> NoAnswer {
    let kind = match (Failure::of(error), error) {
        (Some(Failure::NotConnected(_)), _) | (None, ureq::Error::HostNotFound) => NoAnswerKind::NotSent,
        (Some(Failure::NoTime), _) => NoAnswerKind::NoTime,
        (None, ureq::Error::Timeout(_)) => NoAnswerKind::Late,
        (Some(Failure::Silent), _) => NoAnswerKind::Silent,
        (Some(Failure::Elsewhere), _) => NoAnswerKind::Elsewhere,
        (None, ureq::Error::Io(_)) => NoAnswerKind::Broken,
        (None, _) => NoAnswerKind::Senseless,
    };
    let reason = Failure::of(error).map_or_else(|| error.to_string(), |failure| failure.to_string());
    NoAnswer { kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses come from clients, in the view of a view change.
    #[test]
    fn a_request_can_be_written_down_for_every_address() {
        let peers = Peers::new(Some("secret"));
        let long = "x".repeat(253);
        for text in ["a", "_", "-.", "..", "x0", "127.0.0.1:1", "[::1]:9", "a_b.c-d:65535", &long] {
            let address: Address = text.parse().unwrap();
            for path in ["/livez", wire::NEWS, &format!("{}{}", wire::KEYS, "%FF".repeat(65_536))] {
                let head = peers.at(&address).request(Method::GET, path);
                assert_eq!(complete(head, ()).map(|_| ()), Ok(()), "{text}{path:.40}");
            }
        }
    }

    #[test]
    fn a_request_that_cannot_be_written_down_was_not_sent() {
        let head = Request::builder().uri("http://a b/");
        assert_eq!(complete(head, ()).map(|_| ()).map_err(|error| error.kind), Err(NoAnswerKind::NotSent));
    }
}
