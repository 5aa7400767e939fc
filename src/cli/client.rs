//! One node, asked over plain HTTP.

use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use ureq::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, AsSendBody, Body};

use super::address::Address;
use super::failure::Failure;
use super::seconds::Seconds;
use super::token;
use crate::clock::{Deadline, now};
use crate::error::Applied;
use crate::version::VERSION;

/// The largest body that is read from a node, a file's line or standard input. What is larger is an error.
pub(super) const BODY_LIMIT: u64 = 64 * 1024 * 1024;
/// How long connecting may take before the node counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Where no time is left, this much is given all the same: no time at all would be no limit.
const SHORTEST: Duration = Duration::from_millis(1);
/// An unused connection is dropped before the node, which closes idle ones after 10 s, does it.
const IDLE_AGE: Duration = Duration::from_secs(5);

/// A node and the connections to it. It can be shared by threads.
pub(super) struct Client {
    agent: Agent,
    found: Arc<Found>,
    /// The time for an exchange, or for all of them.
    timeout: Duration,
    /// When the time for all exchanges is over, where it counts for all.
    by: Option<Deadline>,
    /// What says who asks, where there is a token.
    authorization: Option<HeaderValue>,
}

/// A whole answer of a node, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// What `Retry-After` says, where it says a number of seconds.
    pub(super) retry_after: Option<Duration>,
    /// The `ETag` of what is there.
    pub(super) tag: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) body: Vec<u8>,
    outcome: Option<String>,
}

impl Client {
    /// A client that has so much time for all that it asks, the look-up of the node's name too.
    pub(super) fn within(node: &Address, timeout: Duration) -> Result<Client, Failure> {
        let by = Some(Deadline::after(now(), timeout));
        Ok(Client { by, ..Client::new(node, 1, timeout)? })
    }

    /// Looks the node's name up; connects when something is asked. Keeps up to `connections` open, and gives each exchange so much time.
    pub(super) fn new(node: &Address, connections: usize, timeout: Duration) -> Result<Client, Failure> {
        let unknown =
            |error: io::Error| Failure::Unreachable { node: node.clone(), reason: error.to_string() };
        let found = Arc::new(Found {
            node: node.clone(),
            places: Mutex::new(look_up(node).map_err(unknown)?),
            doubted: AtomicBool::new(false),
        });
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .max_idle_age(IDLE_AGE)
            .user_agent(format!("evenkv/{VERSION}"))
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), Known(Arc::clone(&found)));
        let authorization = token::shown().map(|token| authorization(&token)).transpose()?;
        Ok(Client { agent, found, timeout, by: None, authorization })
    }

    pub(super) fn node(&self) -> &Address {
        &self.found.node
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.exchange(self.request(Method::GET, path)?, Applied::No)
    }

    pub(super) fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.exchange(self.request(Method::DELETE, path)?, Applied::Unknown)
    }

    /// Sends a body of this type, with these headers besides.
    pub(super) fn put_as(
        &self,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, Failure> {
        let mut request = self.request(Method::PUT, path)?.map(|()| body);
        for (name, value) in headers.iter().copied().chain([("content-type", content_type)]) {
            request.headers_mut().insert(name, header_value(name, value)?);
        }
        self.exchange(request, Applied::Unknown)
    }

    /// Sends `{"value": <value>}`; `value` is JSON text and goes out as it is.
    pub(super) fn put_value(&self, path: &str, value: &str) -> Result<Answer, Failure> {
        self.put(path, format!("{{\"value\":{value}}}").into_bytes(), None)
    }

    /// Sends `body`, with one more header where there is one.
    pub(super) fn put(
        &self,
        path: &str,
        body: Vec<u8>,
        header: Option<(&'static str, &str)>,
    ) -> Result<Answer, Failure> {
        let mut request = self.request(Method::PUT, path)?.map(|()| body);
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, header_value(name, value)?);
        }
        self.exchange(request, Applied::Unknown)
    }

    /// Sends lines of NDJSON, under a name where there is one.
    pub(super) fn post(&self, path: &str, body: Vec<u8>, name: Option<&str>) -> Result<Answer, Failure> {
        let mut request = self.request(Method::POST, path)?.map(|()| body);
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/x-ndjson"));
        if let Some(name) = name.and_then(|name| HeaderValue::from_str(name).ok()) {
            headers.insert("idempotency-key", name);
        }
        self.exchange(request, Applied::Unknown)
    }

    fn request(&self, method: Method, path: &str) -> Result<Request<()>, Failure> {
        // `Uri` takes the path as it is: it neither resolves `..` nor touches escapes.
        let uri: Uri = format!("http://{}{path}", self.node())
            .parse()
            .map_err(|error| Failure::Local(format!("the key does not fit into a URL: {error}")))?;
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
        let mut request = request
            .body(())
            .map_err(|error| Failure::Local(format!("the request cannot be formed: {error}")))?;
        if let Some(value) = &self.authorization {
            request.headers_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }

    /// Sends a request and reads the whole answer; without one it may be `applied` or not.
    fn exchange(&self, request: Request<impl AsSendBody>, applied: Applied) -> Result<Answer, Failure> {
        let left = self.by.map_or(self.timeout, Deadline::left).max(SHORTEST);
        let request = self.agent.configure_request(request).timeout_global(Some(left)).build();
        let failed = |error: ureq::Error| self.failure(&error, applied);
        let response = self.agent.run(request).map_err(failed)?;
        Answer::of(response).map_err(failed)
    }

    /// Asks for an answer of any length: what to read it from, or the answer where that is no 200. Only its beginning has to come in time.
    pub(super) fn stream(&self, path: &str) -> Result<Result<impl Read + use<>, Answer>, Failure> {
        let request = self.request(Method::GET, path)?;
        let request = self.agent.configure_request(request).timeout_recv_response(Some(self.timeout)).build();
        let failed = |error: ureq::Error| self.failure(&error, Applied::No);
        let response = self.agent.run(request).map_err(failed)?;
        if response.status() == StatusCode::OK {
            return Ok(Ok(response.into_body().into_with_config().limit(u64::MAX).reader()));
        }
        Answer::of(response).map(Err).map_err(failed)
    }

    fn failure(&self, error: &ureq::Error, applied: Applied) -> Failure {
        // It may be at another address by the next time.
        self.found.doubted.store(true, Ordering::Relaxed);
        let unreachable = |reason: String| Failure::Unreachable { node: self.node().clone(), reason };
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => {
                unreachable(format!("it takes no connection within {}", Seconds(CONNECT_TIMEOUT)))
            }
            ureq::Error::Timeout(_) => {
                Failure::Late { node: self.node().clone(), timeout: self.timeout, applied }
            }
            ureq::Error::BodyExceedsLimit(limit) => {
                Failure::Local(format!("the node's answer is larger than {limit} bytes"))
            }
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                Failure::Local(format!("the request cannot be formed: {error}"))
            }
            ureq::Error::Io(error) => unreachable(error.to_string()),
            other => unreachable(other.to_string()),
        }
    }
}

fn authorization(token: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Failure::Local("EVENKV_TOKEN has characters that no token has".to_owned()))?;
    // It is in no message about the request.
    value.set_sensitive(true);
    Ok(value)
}

impl Answer {
    /// Reads the whole of it.
    fn of(mut response: Response<Body>) -> Result<Self, ureq::Error> {
        let body = response.body_mut().with_config().limit(BODY_LIMIT).read_to_vec()?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        Ok(Self::with_headers(response.status().as_u16(), header, body))
    }

    /// One that was read otherwise.
    pub(super) fn from_parts(status: u16, headers: &[(String, String)], body: Vec<u8>) -> Self {
        let header = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.as_str())
        };
        Self::with_headers(status, header, body)
    }

    fn with_headers<'a>(status: u16, header: impl Fn(&str) -> Option<&'a str>, body: Vec<u8>) -> Self {
        let text = |name: &str| header(name).map(str::to_owned);
        let retry_after =
            header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let (outcome, tag, content_type) = (text("evenkv-outcome"), text("etag"), text("content-type"));
        Self { status, retry_after, tag, content_type, body, outcome }
    }

    /// The answer as a failure, with the node's own words where it has some.
    pub(super) fn refusal(&self) -> Failure {
        Failure::Refused { status: self.status, reason: self.reason() }
    }

    /// What the node says is wrong, and whether a write happened where it says that too.
    pub(super) fn reason(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Errors {
            /// Problem details have the same under another name.
            #[serde(alias = "detail")]
            error: String,
        }
        let said = match serde_json::from_slice::<Errors>(&self.body) {
            Ok(Errors { error }) => error,
            Err(_) => "the answer names no reason; is this a node of evenkv?".to_owned(),
        };
        match &self.outcome {
            Some(outcome) => format!("{said} (the write is {outcome})"),
            None => said,
        }
    }

    /// The body of a 200 as `T`; any other status or shape is a failure.
    pub(super) fn parse<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        if self.status == 200 { self.read() } else { Err(self.refusal()) }
    }

    /// The body as `T`, whatever the status.
    pub(super) fn read<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| Failure::Refused {
            status: self.status,
            reason: format!("an answer that cannot be read ({error}); is this a node of evenkv?"),
        })
    }
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Failure> {
    let wrong = || Failure::Local(format!("the header {name} cannot have this value: visible ASCII only"));
    HeaderValue::from_str(value).map_err(|_| wrong())
}

/// Where a node is.
#[derive(Debug)]
struct Found {
    node: Address,
    /// What its name stood for when it was looked up last.
    places: Mutex<Vec<SocketAddr>>,
    /// Whether it was not reached there.
    doubted: AtomicBool,
}

fn look_up(node: &Address) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = (node.host(), node.port()).to_socket_addrs()?.collect();
    if found.is_empty() { Err(io::Error::other("its name has no address")) } else { Ok(found) }
}

/// Gives the addresses that were looked up last, and looks them up again only after the node was not reached. The library's own resolver starts a thread for every
/// request that has a deadline.
#[derive(Debug)]
struct Known(Arc<Found>);

impl Resolver for Known {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &ureq::config::Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if self.0.doubted.swap(false, Ordering::Relaxed)
            && let Ok(found) = look_up(&self.0.node)
        {
            *self.0.places.lock() = found;
        }
        let mut found = self.empty();
        // The library holds at most 16 addresses; pushing more panics.
        self.0.places.lock().iter().take(16).for_each(|address| found.push(*address));
        Ok(found)
    }
}
