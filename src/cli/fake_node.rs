//! A node for tests: a real HTTP server on loopback that holds pairs and fails where it is told to.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Cursor;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tiny_http::{Header, Method, Request, Response, Server};

/// Keys that begin with this are refused with 400.
pub(super) const REFUSED: &str = "refused";
/// Keys that begin with this are answered 503 with `Retry-After: 0` once, then served.
pub(super) const BUSY: &str = "busy";
/// Keys that begin with this are always answered 503 with `Retry-After`.
pub(super) const UNSERVED: &str = "unserved";
/// Keys that begin with this are stored with another value than they were sent with.
pub(super) const CORRUPTED: &str = "corrupted";

const KEYS: &str = "/kv-store/keys/";
const BYTES: &str = "/v1/kv/";

/// Serves until it is dropped.
pub(super) struct FakeNode {
    server: Arc<Server>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

/// What the node has seen and holds.
#[derive(Default)]
pub(super) struct State {
    /// JSON text by key.
    pub(super) pairs: BTreeMap<Vec<u8>, String>,
    /// Requests for keys, answered in whatever way.
    pub(super) key_requests: u64,
    /// What `METHOD path` is answered, one after the other; the last one again and again. It goes before anything
    /// else that the node would answer.
    pub(super) scripts: HashMap<&'static str, VecDeque<(u16, String)>>,
    /// The requests that were answered from a script.
    pub(super) scripted: Vec<Scripted>,
    been_busy: HashSet<Vec<u8>>,
}

/// A request that was answered from a script.
pub(super) struct Scripted {
    /// `METHOD path`.
    pub(super) line: String,
    pub(super) headers: Vec<Header>,
    pub(super) body: String,
}

impl State {
    /// Answers `line`, as `PUT /kv-store/view-change`, with these one after the other.
    pub(super) fn script(&mut self, line: &'static str, answers: &[(u16, &str)]) {
        let owned = answers.iter().map(|(status, body)| (*status, (*body).to_owned()));
        self.scripts.insert(line, owned.collect());
    }

    fn next_of_script(&mut self, line: &str) -> Option<(u16, String)> {
        let answers = self.scripts.get_mut(line)?;
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
    }
}

impl FakeNode {
    pub(super) fn start() -> FakeNode {
        let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (listening, shared) = (Arc::clone(&server), Arc::clone(&state));
        let serve = move || {
            for request in listening.incoming_requests() {
                answer(request, &mut shared.lock());
            }
        };
        let thread = Builder::new().name("fake-node".to_owned()).spawn(serve).unwrap();
        FakeNode { server, state, thread: Some(thread) }
    }

    pub(super) fn address(&self) -> String {
        self.server.server_addr().to_string()
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock())
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

type Reply = Response<Cursor<Vec<u8>>>;

fn answer(mut request: Request, state: &mut State) {
    let mut body = String::new();
    request.as_reader().read_to_string(&mut body).unwrap();
    let path = request.url().to_owned();
    let line = format!("{} {path}", request.method());
    if let Some((status, said)) = state.next_of_script(&line) {
        state.scripted.push(Scripted { line, headers: request.headers().to_vec(), body });
        let _ = request.respond(json(status, &said));
        return;
    }
    let reply = match path.strip_prefix(KEYS) {
        Some(key) => {
            state.key_requests += 1;
            of_key(request.method(), percent_decode_str(key).collect(), &body, state)
        }
        None => match path.strip_prefix(BYTES) {
            Some(key) => of_bytes(&percent_decode_str(key).collect::<Vec<u8>>(), state),
            None => of_cluster(&path, state),
        },
    };
    // The client may be gone, as when an import was stopped.
    let _ = request.respond(reply);
}

fn json(status: u16, body: &str) -> Reply {
    Response::from_string(body).with_status_code(status)
}

fn of_key(method: &Method, key: Vec<u8>, body: &str, state: &mut State) -> Reply {
    let begins = |prefix: &str| key.starts_with(prefix.as_bytes());
    let unable = json(503, r#"{"error":"Unable to satisfy request","message":"Error in PUT"}"#)
        .with_header("Retry-After: 0".parse::<Header>().unwrap());
    if begins(UNSERVED) || (begins(BUSY) && state.been_busy.insert(key.clone())) {
        return unable;
    }
    if begins(REFUSED) {
        return json(400, r#"{"error":"Key is too long","message":"Error in PUT"}"#)
            .with_header("Evenkv-Outcome: not-applied".parse::<Header>().unwrap());
    }
    let absent = r#"{"doesExist":false,"error":"Key does not exist","message":"Error in GET"}"#;
    match method {
        Method::Put => {
            let value = body.strip_prefix("{\"value\":").and_then(|rest| rest.strip_suffix('}')).unwrap();
            let value = if begins(CORRUPTED) { "\"other\"" } else { value };
            match state.pairs.insert(key, value.to_owned()) {
                None => json(201, r#"{"message":"Added successfully","replaced":false}"#),
                Some(_) => json(200, r#"{"message":"Updated successfully","replaced":true}"#),
            }
        }
        Method::Get => match state.pairs.get(&key) {
            Some(value) => {
                let found = r#"{"doesExist":true,"message":"Retrieved successfully","value":"#;
                json(200, &format!("{found}{value}}}"))
            }
            None => json(404, absent),
        },
        _ => match state.pairs.remove(&key) {
            Some(_) => json(200, r#"{"doesExist":true,"message":"Deleted successfully"}"#),
            None => json(404, absent),
        },
    }
}

/// A GET where the body is the value; all of them are JSON.
fn of_bytes(key: &[u8], state: &State) -> Reply {
    let (status, content_type, body) = match state.pairs.get(key) {
        Some(value) => (200, "application/json", value.as_str()),
        None => (404, "application/problem+json", r#"{"status":404,"detail":"Key does not exist"}"#),
    };
    json(status, body).with_header(format!("Content-Type: {content_type}").parse::<Header>().unwrap())
}

fn of_cluster(path: &str, state: &State) -> Reply {
    match path {
        "/livez" => json(200, r#"{"status":"alive"}"#),
        "/readyz" => json(503, r#"{"error":"node2:13800 is missing"}"#),
        "/kv-store/shards" => json(200, r#"{"message":"..","shards":["1","2"]}"#),
        "/kv-store/shards/1" => {
            let count = state.pairs.len();
            json(200, &format!(r#"{{"message":"..","shard-id":"1","key-count":{count},"replicas":["a:1"]}}"#))
        }
        "/kv-store/shards/2" => {
            json(200, r#"{"message":"..","shard-id":"2","key-count":null,"replicas":["b:1"]}"#)
        }
        "/kv-store/view" => json(200, r#"{"epoch":1,"shards":[]}"#),
        _ => json(404, "no such page"),
    }
}
