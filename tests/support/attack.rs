//! Attacks on a node, and the client that goes on using it meanwhile.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::Http;
use crate::support::node::Node;
use crate::support::timed;

/// Threads for large bodies and answers in a node of default settings.
pub(crate) const LARGE_WORKERS: usize = 8;
/// Threads for small requests.
pub(crate) const CLIENT_WORKERS: usize = 16;
/// What a client that does no harm may have to wait, on a machine that has time for it.
const PROMPT: Duration = Duration::from_secs(1);
/// Threads that want to run, per core, on a machine that has time for it.
const CALM: f64 = 2.0;
/// What a node may take in RAM, in bytes, whatever its clients do: four times the longest thing that a test sends. The listener's buffer doubles as
/// it grows, is copied at its end, and what was freed goes back to the system a second later; on a fast machine all that falls together.
pub(crate) const MOST_MEMORY: u64 = 400 << 20;
/// The probing client gives up after this time: long enough to tell a slow answer from none.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two rounds of the probing client.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// What the probing client saw.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watched {
    /// The longest time to an answer, by question.
    pub(crate) worst: BTreeMap<String, Duration>,
    /// The most memory that the node took, in bytes.
    pub(crate) memory: u64,
    /// Answers got.
    pub(crate) answers: usize,
    /// Questions without the right answer.
    pub(crate) failures: Vec<String>,
}

/// What a client that does no harm may have to wait here and now: a second, and in proportion longer where other things
/// keep this machine so busy that everything takes longer.
pub(crate) fn prompt() -> Duration {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split(' ').next().and_then(|load| load.parse::<f64>().ok()).unwrap_or(0.0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let cores = f64::from(u32::try_from(cores).expect("a machine has few cores"));
    PROMPT.mul_f64((load / cores / CALM).max(1.0))
}

impl Watched {
    /// Panics unless every question was answered at once and the memory stayed within its limit.
    pub(crate) fn assert_unharmed(&self, attack: &str) {
        eprintln!(
            "{attack}: {} answers, {} MB, the slowest: {:.0?}",
            self.answers,
            self.memory >> 20,
            self.worst
        );
        assert!(self.failures.is_empty(), "{attack}: {:#?}", self.failures);
        assert!(self.answers >= 10, "{attack}: too few answers to say anything: {}", self.answers);
        let prompt = prompt();
        let late: Vec<_> = self.worst.iter().filter(|(_, took)| **took >= prompt).collect();
        assert!(late.is_empty(), "{attack}: {late:?}, allowed {prompt:?}");
        assert!(self.memory < MOST_MEMORY, "{attack}: the node took {} MB", self.memory >> 20);
    }
}

/// Runs `attack` while another client asks small things of `node` again and again, on new connections and on one that it
/// keeps; and goes on for some rounds when the attack is over.
pub(crate) fn watched_during<T>(node: &Node, attack: impl FnOnce() -> T) -> (T, Watched) {
    let (over, watched) = (AtomicBool::new(false), Mutex::new(Watched::default()));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            let mut kept = Http::with_patience(node.address(), PATIENCE);
            let (started, mut rounds, mut rounds_after) = (Instant::now(), 0, 0);
            while rounds_after < 5 {
                rounds += 1;
                rounds_after += usize::from(over.load(Ordering::Acquire));
                // The kernel lists the machine's connections for it, which takes a while after thousands of them.
                let asks_metrics = rounds % 4 == 1;
                probe(node, &mut kept, &watched, (started, asks_metrics));
                thread::sleep(PROBE_INTERVAL);
            }
        });
        // The mark is set also when the attack panics, or the scope would wait for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        over.store(true, Ordering::Release);
        result
    });
    let watched = watched.into_inner().expect("the probing client does not panic");
    (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), watched)
}

/// One round of questions.
fn probe(node: &Node, kept: &mut Http, watched: &Mutex<Watched>, (started, asks_metrics): (Instant, bool)) {
    const QUESTIONS: [(&str, &str, &[u8], [u16; 2]); 4] = [
        ("PUT", "/kv-store/keys/probe", br#"{"value":"probe"}"#, [200, 201]),
        ("GET", "/kv-store/keys/probe", b"", [200, 200]),
        ("GET", "/livez", b"", [200, 200]),
        ("GET", "/metrics", b"", [200, 200]),
    ];
    for (method, target, body, right) in QUESTIONS {
        for keeps in [false, true] {
            // The figures of the process are long; they are asked for on one of the connections only.
            if target == "/metrics" && (keeps || !asks_metrics) {
                continue;
            }
            let at = started.elapsed();
            let mut fresh = Http::with_patience(node.address(), PATIENCE);
            let client = if keeps { &mut *kept } else { &mut fresh };
            let (answer, took) = timed(|| client.try_request(method, target, &[], body));
            let question =
                format!("{method} {target} on a {} connection", if keeps { "kept" } else { "new" });
            let mut watched = watched.lock().expect("nobody panics with it");
            match answer {
                Ok(answer) if right.contains(&answer.status) => watched.answers += 1,
                Ok(answer) => watched.failures.push(format!("{question}: {}", answer.status)),
                Err(error) => {
                    watched
                        .failures
                        .push(format!("{question}, asked after {at:.0?}: {error} after {took:?}"));
                }
            }
            let worst = watched.worst.entry(question).or_default();
            *worst = took.max(*worst);
        }
    }
    let memory = node.resident_bytes();
    let mut watched = watched.lock().expect("nobody panics with it");
    watched.memory = watched.memory.max(memory);
}

/// A connection of an attacker, on which nothing waits longer than it should.
pub(crate) fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection on which these bytes were sent.
pub(crate) fn connect_and_send(address: &str, bytes: &[u8]) -> io::Result<TcpStream> {
    let mut stream = connect(address)?;
    stream.write_all(bytes)?;
    Ok(stream)
}

/// Sends bytes until the node takes no more for `patience`, or nothing is left; how many it took.
pub(crate) fn send_while_taken(stream: &mut TcpStream, bytes: &[u8], patience: Duration) -> usize {
    stream.set_write_timeout(Some(patience)).expect("a socket takes a timeout");
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => sent += count,
        }
    }
    sent
}

/// Everything that comes until the node closes or is silent for `patience`.
pub(crate) fn receive_all(stream: &mut TcpStream, patience: Duration) -> String {
    stream.set_read_timeout(Some(patience)).expect("a socket takes a timeout");
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count) = stream.read(&mut piece) {
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of the final answer that comes first.
pub(crate) fn receive_status(stream: &mut TcpStream) -> io::Result<u16> {
    let mut head = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            let line = String::from_utf8_lossy(&head).into_owned();
            let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
            match status.ok_or_else(|| io::Error::other(line))? {
                100..=199 => head.clear(),
                status => return Ok(status),
            }
        }
    }
}

/// Calls `step` every `interval` until `duration` is over.
pub(crate) fn repeat(interval: Duration, duration: Duration, mut step: impl FnMut()) {
    let started = Instant::now();
    while started.elapsed() < duration {
        step();
        thread::sleep(interval);
    }
}

/// A figure of `/metrics` without labels.
pub(crate) fn metric(node: &Node, name: &str) -> u64 {
    let text = node.http().get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

// --- The attacks, each on whatever listens at an address

/// As many connections, each with these bytes sent.
pub(crate) fn many(address: &str, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    (0..count).map(|_| connect_and_send(address, bytes).expect("a connection is taken")).collect()
}

/// The head of an upload of this length.
pub(crate) fn put_head(length: u128) -> Vec<u8> {
    format!("PUT /kv-store/keys/slow HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

/// Bodies of many uploads that come a byte at a time.
pub(crate) fn slow_bodies(address: &str) {
    let mut streams = many(address, 4 * LARGE_WORKERS, &put_head(100_000));
    streams.extend(many(address, 4 * LARGE_WORKERS, &put_head(8 << 20)));
    streams.extend(many(address, 4 * CLIENT_WORKERS, &put_head(500)));
    // What a refused body declares must not be waited for either.
    let twice =
        b"PUT /kv-store/keys/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\nContent-Length: 5\r\n\r\n";
    streams.extend(many(address, 4 * CLIENT_WORKERS, twice));
    repeat(Duration::from_millis(500), Duration::from_secs(5), || {
        for stream in &mut streams {
            // Those that were answered 408 may be closed.
            let _ = stream.write(b"x");
        }
    });
}

/// Headers of uploads, and what is sent of each body before nothing more comes.
pub(crate) const STALLING: [&str; 7] = [
    "Content-Length: 2000|{\"value\": 1",
    "Content-Length: 2000|",
    "Content-Length: 100000|{",
    "Transfer-Encoding: chunked|",
    "Transfer-Encoding: chunked|b\r\n{\"value\":",
    "Expect: 100-continue\r\nContent-Length: 10|",
    "Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 10|{",
];

/// The same of uploads that are refused.
pub(crate) const STALLING_REFUSED: [&str; 3] =
    ["Content-Length: 20000000|{", "Content-Length: 60000000000|", "Content-Length: 5000|x"];

/// A client that has sent so much of an upload, and sends nothing more.
pub(crate) fn stalled(address: &str, upload: &str) -> TcpStream {
    let (headers, sent) = upload.split_once('|').expect("headers and what is sent of the body");
    let head = format!("PUT /kv-store/keys/stalled HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{sent}");
    connect_and_send(address, head.as_bytes()).expect("a connection is taken")
}

/// Uploads of lengths that nobody can send; the statuses that come.
pub(crate) fn impossible_lengths(address: &str, count: usize) -> Vec<u16> {
    let lengths = [60_000_000_000, u128::from(u64::MAX / 2), u128::from(u64::MAX)];
    let mut streams: Vec<_> = (0..count)
        .map(|number| connect_and_send(address, &put_head(lengths[number % 3])).expect("taken"))
        .collect();
    streams.iter_mut().filter_map(|stream| receive_status(stream).ok()).collect()
}

/// What a client of HTTP/2 begins with.
pub(crate) const PREFACE_OF_HTTP_2: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// Versions of HTTP that the listener does not speak.
pub(crate) fn other_versions(address: &str) {
    let mut streams = many(address, 50, PREFACE_OF_HTTP_2);
    streams.extend(many(address, 50, b"GET /kv-store/keys/a HTTP/2.0\r\nHost: x\r\n\r\n"));
    thread::sleep(Duration::from_secs(1));
}

/// A header line of up to 100 MB: how much of it is taken, and the status that comes.
pub(crate) fn header_without_end(address: &str) -> (usize, Option<u16>) {
    without_end(address, b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ", 100, b"\r\n\r\n")
}

/// The same with many header lines.
pub(crate) fn headers_without_end(address: &str) -> (usize, Option<u16>) {
    let mut stream =
        connect_and_send(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n").expect("a connection is taken");
    let lines = b"X-Line: 0123456789012345678901234567890123456789\r\n".repeat(20_000);
    let sent = (0..50).map(|_| send_while_taken(&mut stream, &lines, Duration::from_secs(5))).sum();
    let _ = stream.write(b"\r\n");
    (sent, receive_status(&mut stream).ok())
}

/// A target of up to 50 MB: the status that comes.
pub(crate) fn target_without_end(address: &str) -> Option<u16> {
    without_end(address, b"PUT /kv-store/keys/", 50, b" HTTP/1.1\r\nHost: x\r\n\r\n").1
}

/// Something that has a beginning and an end, and as many MB between them.
fn without_end(address: &str, beginning: &[u8], megabytes: usize, end: &[u8]) -> (usize, Option<u16>) {
    let mut stream = connect_and_send(address, beginning).expect("a connection is taken");
    let piece = vec![b'x'; 1 << 20];
    let sent = (0..megabytes).map(|_| send_while_taken(&mut stream, &piece, Duration::from_secs(5))).sum();
    let _ = stream.write(end);
    (sent, receive_status(&mut stream).ok())
}

/// As many idle connections, and as many heads that come a byte at a time; how many of these were cut off within two seconds.
pub(crate) fn slow_heads(address: &str, count: usize) -> usize {
    let idle = many(address, count, b"");
    let mut slow = many(address, count, b"GET /livez HTTP/1.1\r\nX: ");
    repeat(Duration::from_millis(500), Duration::from_secs(2), || {
        slow.retain_mut(|stream| stream.write_all(b"x").is_ok());
    });
    drop(idle);
    count - slow.len()
}

/// Requests one after the other whose answers are not read; the bytes that were taken.
pub(crate) fn endless_pipeline(address: &str) -> usize {
    let mut stream = connect(address).expect("a connection is taken");
    let requests = b"GET /kv-store/keys/probe HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    (0..100).map(|_| send_while_taken(&mut stream, &requests, Duration::from_secs(2))).sum()
}

/// Connections on which this is asked, and nothing read for so long.
pub(crate) fn readers_that_stop(address: &str, count: usize, requests: &[u8], duration: Duration) {
    let streams = many(address, count, requests);
    thread::sleep(duration);
    drop(streams);
}
