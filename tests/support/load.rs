//! Clients that go on working while something is done to the cluster, and note every answer.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::history::{Call, Outcome, Record};
use super::http::{Http, Response};

/// Longer than any deadline of a node.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who works, and on what.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) clients: u32,
    /// Different keys; a checker is quick while each is used a few thousand times at most.
    pub(crate) keys: u32,
    /// What every key begins with.
    pub(crate) prefix: String,
    /// How long a client rests after each answer.
    pub(crate) rest: Duration,
    pub(crate) seed: u64,
}

impl Default for Profile {
    fn default() -> Self {
        let rest = Duration::from_millis(2);
        Self { clients: 16, keys: 400, prefix: "load-".to_owned(), rest, seed: 1 }
    }
}

/// What all clients read while they work.
struct Shared {
    nodes: Mutex<Vec<String>>,
    stopped: AtomicBool,
    answers: AtomicU64,
    next_value: AtomicU64,
    started: Instant,
}

/// Clients at work, each with a connection of its own to every node that it has asked.
pub(crate) struct Load {
    shared: Arc<Shared>,
    running: Vec<JoinHandle<Noted>>,
}

/// What one client, or all of them, noted.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) records: Vec<Record>,
    /// Every answer that was not right, and every request without one, with the time since the start.
    pub(crate) wrong: Vec<String>,
    /// The longest that any request took, answered or not.
    pub(crate) slowest: Duration,
}

impl Load {
    /// Clients that ask `nodes`, each time one at random.
    pub(crate) fn start(nodes: &[String], profile: &Profile) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes.to_vec()),
            stopped: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            next_value: AtomicU64::new(0),
            started: Instant::now(),
        });
        let start = |number| {
            let (shared, profile) = (Arc::clone(&shared), profile.clone());
            thread::spawn(move || Client::new(number, profile).work(&shared))
        };
        let running = (0..profile.clients).map(start).collect();
        Self { shared, running }
    }

    /// From now on these nodes are asked.
    pub(crate) fn ask(&self, nodes: &[String]) {
        *self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner) = nodes.to_vec();
    }

    /// Right answers until now.
    pub(crate) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Lets every client end its request and returns what all of them noted.
    pub(crate) fn stop(mut self) -> Noted {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let mut all = Noted::default();
        for client in self.running.drain(..) {
            let noted = client.join().expect("a client notes what is wrong and does not panic");
            all.records.extend(noted.records);
            all.wrong.extend(noted.wrong);
            all.slowest = all.slowest.max(noted.slowest);
        }
        all
    }
}

impl Drop for Load {
    /// A test that has failed does not leave its clients at work.
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

struct Client {
    number: u32,
    profile: Profile,
    random: StdRng,
    connections: HashMap<String, Http>,
    noted: Noted,
}

impl Client {
    fn new(number: u32, profile: Profile) -> Self {
        let random = StdRng::seed_from_u64(profile.seed.wrapping_mul(1000) + u64::from(number));
        Self { number, profile, random, connections: HashMap::new(), noted: Noted::default() }
    }

    fn work(mut self, shared: &Shared) -> Noted {
        loop {
            self.request(shared);
            if shared.stopped.load(Ordering::Relaxed) {
                return self.noted;
            }
            thread::sleep(self.profile.rest);
        }
    }

    fn request(&mut self, shared: &Shared) {
        let key = format!("{}{}", self.profile.prefix, self.random.random_range(0..self.profile.keys));
        let call = match self.random.random_range(0..10) {
            0..4 => Call::Put(shared.next_value.fetch_add(1, Ordering::Relaxed)),
            4..8 => Call::Get,
            _ => Call::Delete,
        };
        let node = {
            let nodes = shared.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            nodes[self.random.random_range(0..nodes.len())].clone()
        };
        let since = || u64::try_from(shared.started.elapsed().as_nanos()).expect("a test ends in 500 years");
        let called = since();
        let answer = self.ask(&node, &key, call);
        let returned = since();
        let took = Duration::from_nanos(returned - called);
        self.noted.slowest = self.noted.slowest.max(took);
        let judged = judge(&node, call, &answer);
        match judged.wrong {
            None => _ = shared.answers.fetch_add(1, Ordering::Relaxed),
            Some(wrong) => {
                let at = Duration::from_nanos(called);
                self.noted
                    .wrong
                    .push(format!("{at:.3?}, {took:.3?} long, {call:?} {key} at {node}: {wrong}"));
            }
        }
        let (client, outcome) = (self.number, judged.outcome);
        self.noted.records.push(Record { client, key, call, called, returned, outcome });
    }

    fn ask(&mut self, node: &str, key: &str, call: Call) -> io::Result<Response> {
        let open = || Http::with_patience(node, PATIENCE);
        let connection = self.connections.entry(node.to_owned()).or_insert_with(open);
        let target = format!("/kv-store/keys/{key}");
        match call {
            Call::Put(value) => {
                connection.try_request("PUT", &target, &[], json!({ "value": value }).to_string().as_bytes())
            }
            Call::Get => connection.try_request("GET", &target, &[], b""),
            Call::Delete => connection.try_request("DELETE", &target, &[], b""),
        }
    }
}

/// What an answer says, and what is wrong with it.
struct Judged {
    outcome: Outcome,
    wrong: Option<String>,
}

fn judge(node: &str, call: Call, answer: &io::Result<Response>) -> Judged {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // Who listens to nobody has been told nothing.
            let refused = error.kind() == ErrorKind::ConnectionRefused;
            let outcome = if refused { Outcome::NotApplied } else { Outcome::Unknown };
            return Judged { outcome, wrong: Some(format!("no answer: {error}")) };
        }
    };
    match right(node, call, answer) {
        Some(outcome) => Judged { outcome, wrong: None },
        None => Judged { outcome: told(call, answer), wrong: Some(shown(answer)) },
    }
}

/// The outcome, where status and body are exactly those of the contract.
fn right(node: &str, call: Call, answer: &Response) -> Option<Outcome> {
    let mut body: Value = serde_json::from_slice(&answer.body).ok()?;
    if let Some(owner) = body.as_object_mut()?.remove("address") {
        let owner = owner.as_str()?;
        // Only another node is named.
        if owner == node || !owner.contains(':') {
            return None;
        }
    }
    let absent = |method| json!({"doesExist": false, "error": "Key does not exist", "message": format!("Error in {method}")});
    let (expected, outcome) = match (call, answer.status) {
        (Call::Put(_), 201) => {
            (json!({"message": "Added successfully", "replaced": false}), Outcome::Put { replaced: false })
        }
        (Call::Put(_), 200) => {
            (json!({"message": "Updated successfully", "replaced": true}), Outcome::Put { replaced: true })
        }
        (Call::Get, 200) => {
            let value = body.get("value")?.as_u64()?;
            let expected = json!({"doesExist": true, "message": "Retrieved successfully", "value": value});
            (expected, Outcome::Got(Some(value)))
        }
        (Call::Get, 404) => (absent("GET"), Outcome::Got(None)),
        (Call::Delete, 200) => {
            (json!({"doesExist": true, "message": "Deleted successfully"}), Outcome::Deleted(true))
        }
        (Call::Delete, 404) => (absent("DELETE"), Outcome::Deleted(false)),
        _ => return None,
    };
    (body == expected).then_some(outcome)
}

/// What a wrong answer says about the write: nothing, unless its header does.
fn told(call: Call, answer: &Response) -> Outcome {
    match answer.header("Evenkv-Outcome") {
        _ if call == Call::Get => Outcome::Unknown,
        Some("applied") => Outcome::Applied,
        Some("not-applied") => Outcome::NotApplied,
        _ => Outcome::Unknown,
    }
}

fn shown(answer: &Response) -> String {
    let headers = ["Evenkv-Outcome", "Evenkv-Reason", "Location"];
    let headers = headers.iter().filter_map(|name| Some(format!("{name}: {}", answer.header(name)?)));
    format!("{} {} {:?}", answer.status, answer.text(), headers.collect::<Vec<_>>())
}
