//! Clients that go on working while something is done to the cluster, and note every answer.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::at_once;
use super::history::{Call, Outcome, Record};
use super::http::{Http, Response};
use super::wait_until;

/// A key that is not read within this time of peace is lost.
const READ_BACK: Duration = Duration::from_secs(10);
/// Longer than any deadline of a node.
const PATIENCE: Duration = Duration::from_secs(15);
/// Connections that read back at the end.
const READERS: usize = 8;

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
    pub(crate) mix: Mix,
    /// Whether a client whose node takes no request, or hangs up, asks another one, with the same `Idempotency-Key`.
    pub(crate) elsewhere: bool,
}

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Four puts, four gets and two deletes of ten.
    Everything,
    Puts,
}

impl Default for Profile {
    fn default() -> Self {
        let rest = Duration::from_millis(2);
        Self {
            clients: 16,
            keys: 400,
            prefix: "load-".to_owned(),
            rest,
            seed: 1,
            mix: Mix::Everything,
            elsewhere: false,
        }
    }
}

impl Profile {
    /// The key with this number of a generation of keys; the first generation is 0.
    fn key(&self, generation: u32, number: u32) -> String {
        match generation {
            0 => format!("{}{number}", self.prefix),
            _ => format!("{}g{generation}-{number}", self.prefix),
        }
    }
}

/// What all clients read while they work.
struct Shared {
    nodes: Mutex<Vec<String>>,
    stopped: AtomicBool,
    answers: AtomicU64,
    next_value: AtomicU64,
    generation: AtomicU32,
    /// What an operator was told may be lost.
    losses: Mutex<Vec<Record>>,
    started: Instant,
}

/// Clients at work, each with a connection of its own to every node that it has asked.
pub(crate) struct Load {
    profile: Profile,
    shared: Arc<Shared>,
    running: Vec<JoinHandle<Noted>>,
}

/// What one client, or all of them, noted.
#[derive(Debug)]
pub(crate) struct Noted {
    pub(crate) records: Vec<Record>,
    /// Every answer that was not right, and every request without one, with the time since the start.
    pub(crate) wrong: Vec<String>,
    /// Those of them that no node may give even while others are away: all but a 503 as the contract has it.
    pub(crate) unfit: Vec<String>,
    /// The longest that any request took, answered or not.
    pub(crate) slowest: Duration,
    /// Requests that were sent to another node because nobody listened at the first one.
    pub(crate) refused: u64,
    /// Requests that were sent to another node because the first one hung up without an answer.
    pub(crate) broken: u64,
    started: Instant,
}

impl Noted {
    fn new(started: Instant) -> Self {
        Self {
            records: Vec::new(),
            wrong: Vec::new(),
            unfit: Vec::new(),
            slowest: Duration::ZERO,
            refused: 0,
            broken: 0,
            started,
        }
    }

    fn add(&mut self, other: Self) {
        self.records.extend(other.records);
        self.wrong.extend(other.wrong);
        self.unfit.extend(other.unfit);
        self.slowest = self.slowest.max(other.slowest);
        self.refused += other.refused;
        self.broken += other.broken;
    }

    /// Reads every key that was ever used through one of these nodes, as further records: a write that was acknowledged
    /// and is gone makes the history wrong. Returns how many pairs there are.
    pub(crate) fn read_back(&mut self, through: &[String]) -> u64 {
        let keys: BTreeSet<&String> = self.records.iter().map(|record| &record.key).collect();
        let keys: Vec<&String> = keys.into_iter().collect();
        let since = |started: Instant| nanoseconds(started.elapsed());
        let read = at_once(READERS, |reader| {
            let mut client = Http::new(&through[reader % through.len()]);
            let mut records = Vec::new();
            for key in keys.iter().skip(reader).step_by(READERS) {
                let mut read = (0, Outcome::Got(None));
                // A node may have to notice first that another one is reached again.
                wait_until(&format!("{key} can be read back"), READ_BACK, || {
                    let called = since(self.started);
                    let answer = client.get(&format!("/kv-store/keys/{key}"));
                    assert!([200, 404, 503].contains(&answer.status), "{key}: {}", shown(&answer));
                    let value = if answer.status == 200 { answer.json()["value"].as_u64() } else { None };
                    read = (called, Outcome::Got(value));
                    answer.status != 503
                });
                let (called, outcome) = read;
                let returned = since(self.started);
                let client = u32::try_from(1_000_000 + reader).expect("few readers");
                let key = (*key).clone();
                records.push(Record { client, key, call: Call::Get, called, returned, outcome });
            }
            records
        });
        let read: Vec<Record> = read.into_iter().flatten().collect();
        let there = read.iter().filter(|record| record.outcome != Outcome::Got(None)).count();
        self.records.extend(read);
        there as u64
    }

    /// Nothing of what no node may ever answer was answered.
    pub(crate) fn check_fit(&self) {
        let some = &self.unfit[..self.unfit.len().min(20)];
        assert!(some.is_empty(), "{} answers that no node may give: {some:#?}", self.unfit.len());
    }

    /// Every request was answered rightly.
    pub(crate) fn check_all_right(&self) {
        let some = &self.wrong[..self.wrong.len().min(40)];
        assert!(some.is_empty(), "{} of {} wrong: {some:#?}", self.wrong.len(), self.records.len());
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a test ends in 500 years")
}

impl Load {
    /// Clients that ask `nodes`, each time one at random.
    pub(crate) fn start(nodes: &[String], profile: &Profile) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes.to_vec()),
            stopped: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            next_value: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            losses: Mutex::default(),
            started: Instant::now(),
        });
        let start = |number| {
            let (shared, profile) = (Arc::clone(&shared), profile.clone());
            thread::spawn(move || Client::new(number, profile, shared.started).work(&shared))
        };
        let running = (0..profile.clients).map(start).collect();
        Self { profile: profile.clone(), shared, running }
    }

    /// From now on these nodes are asked.
    pub(crate) fn ask(&self, nodes: &[String]) {
        *self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner) = nodes.to_vec();
    }

    /// Right answers until now.
    pub(crate) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Nanoseconds since the start, as the records have them.
    pub(crate) fn now(&self) -> u64 {
        nanoseconds(self.shared.started.elapsed())
    }

    /// From now on clients use new keys, and only read older ones, now and then. A write whose outcome is unknown makes
    /// the history of its key dear to check for as long as the key is written.
    pub(crate) fn turn_over(&self) {
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Every key that any client may have used until now.
    pub(crate) fn keys(&self) -> Vec<String> {
        let generations = 0..=self.shared.generation.load(Ordering::Relaxed);
        let of = |generation| (0..self.profile.keys).map(move |number| self.profile.key(generation, number));
        generations.flat_map(of).collect()
    }

    /// An operator was told, at some moment since then and before now, that what these keys hold may be lost.
    pub(crate) fn may_have_lost(&self, keys: impl IntoIterator<Item = String>, since: u64) {
        let (called, returned) = (since, self.now());
        let loss = |key| Record {
            client: u32::MAX,
            key,
            call: Call::Lose,
            called,
            returned,
            outcome: Outcome::Applied,
        };
        let mut losses = self.shared.losses.lock().unwrap_or_else(PoisonError::into_inner);
        losses.extend(keys.into_iter().map(loss));
    }

    /// Lets every client end its request and returns what all of them noted.
    pub(crate) fn stop(mut self) -> Noted {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let mut all = Noted::new(self.shared.started);
        for client in self.running.drain(..) {
            all.add(client.join().expect("a client notes what is wrong and does not panic"));
        }
        all.records.append(&mut self.shared.losses.lock().unwrap_or_else(PoisonError::into_inner));
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
    fn new(number: u32, profile: Profile, started: Instant) -> Self {
        let random = StdRng::seed_from_u64(profile.seed.wrapping_mul(1000).wrapping_add(u64::from(number)));
        Self { number, profile, random, connections: HashMap::new(), noted: Noted::new(started) }
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
        let (key, call) = self.choose(shared);
        let mut nodes = shared.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let called = nanoseconds(shared.started.elapsed());
        let (node, answer) = loop {
            let node = nodes.swap_remove(self.random.random_range(0..nodes.len()));
            let answer = self.ask(&node, &key, call);
            match &answer {
                Err(error) if self.profile.elsewhere && !nodes.is_empty() => {
                    let refused = error.kind() == ErrorKind::ConnectionRefused;
                    *(if refused { &mut self.noted.refused } else { &mut self.noted.broken }) += 1;
                }
                _ => break (node, answer),
            }
        };
        let returned = nanoseconds(shared.started.elapsed());
        let took = Duration::from_nanos(returned - called);
        self.noted.slowest = self.noted.slowest.max(took);
        let judged = judge(&node, call, &answer);
        match judged.wrong {
            None => _ = shared.answers.fetch_add(1, Ordering::Relaxed),
            Some(wrong) => {
                let at = Duration::from_nanos(called);
                let wrong = format!("{at:.3?}, {took:.3?} long, {call:?} {key} at {node}: {wrong}");
                if answer.is_ok_and(|answer| !is_fit(call, &answer)) {
                    self.noted.unfit.push(wrong.clone());
                }
                self.noted.wrong.push(wrong);
            }
        }
        let (client, outcome) = (self.number, judged.outcome);
        self.noted.records.push(Record { client, key, call, called, returned, outcome });
    }

    fn choose(&mut self, shared: &Shared) -> (String, Call) {
        let number = self.random.random_range(0..self.profile.keys);
        let generation = shared.generation.load(Ordering::Relaxed);
        if generation > 0 && self.random.random_ratio(1, 10) {
            return (self.profile.key(self.random.random_range(0..generation), number), Call::Get);
        }
        let key = self.profile.key(generation, number);
        let put = || Call::Put(shared.next_value.fetch_add(1, Ordering::Relaxed));
        let call = match (self.profile.mix, self.random.random_range(0..10)) {
            (Mix::Puts, _) | (Mix::Everything, 0..4) => put(),
            (Mix::Everything, 4..8) => Call::Get,
            (Mix::Everything, _) => Call::Delete,
        };
        (key, call)
    }

    fn ask(&mut self, node: &str, key: &str, call: Call) -> io::Result<Response> {
        let open = || Http::with_patience(node, PATIENCE);
        let connection = self.connections.entry(node.to_owned()).or_insert_with(open);
        let target = format!("/kv-store/keys/{key}");
        // Of one client no two requests are under way, so its number and theirs make a key that nobody else has.
        let id = format!("client-{}-request-{}", self.number, self.noted.records.len());
        let id = [("Idempotency-Key", id.as_str())];
        let headers: &[(&str, &str)] = if self.profile.elsewhere { &id } else { &[] };
        match call {
            Call::Put(value) => {
                let body = json!({ "value": value }).to_string();
                connection.try_request("PUT", &target, headers, body.as_bytes())
            }
            Call::Get => connection.try_request("GET", &target, &[], b""),
            Call::Delete => connection.try_request("DELETE", &target, headers, b""),
            Call::Lose => unreachable!("no client chooses it"),
        }
    }
}

/// Whether a node may answer so while others are away: that it cannot serve the key, in the form of the contract.
fn is_fit(call: Call, answer: &Response) -> bool {
    let method = match call {
        Call::Put(_) => "PUT",
        Call::Get => "GET",
        Call::Delete => "DELETE",
        Call::Lose => unreachable!("no client chooses it"),
    };
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let is_said = body["error"].is_string()
        && body["message"] == format!("Error in {method}")
        && body.as_object().is_some_and(|fields| fields.len() == 2);
    let outcome = answer.header("Evenkv-Outcome");
    let tells = call == Call::Get || ["applied", "not-applied", "unknown"].map(Some).contains(&outcome);
    answer.status == 503 && is_said && tells && answer.header("Retry-After").is_some()
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
