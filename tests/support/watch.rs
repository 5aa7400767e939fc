//! Somebody who watches: reads server-sent events byte by byte, and goes on at another node where the connection ends.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::Http;

/// An event, or a comment, which has no name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: String,
    pub(crate) has_comment: bool,
}

impl Told {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|_| panic!("no JSON in {self:?}"))
    }

    pub(crate) fn key(&self) -> String {
        self.json()["key"].as_str().unwrap_or_default().to_owned()
    }

    /// The version in its `ETag`, by which the changes of a key are in order.
    pub(crate) fn version(&self) -> u64 {
        version(self.json()["etag"].as_str().expect("every event has one"))
    }
}

/// The version that an `ETag` names.
pub(crate) fn version(etag: &str) -> u64 {
    let (_, version) = etag.trim_matches('"').split_once('-').expect("an ETag of ours");
    u64::from_str_radix(version, 16).expect("hexadecimal digits")
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// A connection on which somebody watches.
pub(crate) struct Watch {
    reader: BufReader<TcpStream>,
    pub(crate) head: String,
}

impl Watch {
    /// Begins; panics where it is refused.
    pub(crate) fn at(address: &str, query: &str, last: Option<&str>) -> Self {
        let watch = Self::try_at(address, query, last).expect("the node answers");
        assert!(watch.head.starts_with("HTTP/1.1 200 "), "{}", watch.head);
        watch
    }

    /// The same with a token.
    pub(crate) fn by(token: &str, address: &str, query: &str) -> Self {
        let watch = Self::open(address, query, &format!("Authorization: Bearer {token}\r\n"));
        let watch = watch.expect("the node answers");
        assert!(watch.head.starts_with("HTTP/1.1 200 "), "{}", watch.head);
        watch
    }

    /// Begins, whatever the answer.
    pub(crate) fn try_at(address: &str, query: &str, last: Option<&str>) -> std::io::Result<Self> {
        Self::open(address, query, &last.map(|last| format!("Last-Event-ID: {last}\r\n")).unwrap_or_default())
    }

    fn open(address: &str, query: &str, lines: &str) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            stream,
            "GET /v1/watch{query} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{lines}\r\n"
        )?;
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Self { reader, head })
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) {
        self.reader.get_ref().set_read_timeout(Some(timeout)).expect("a time is set");
    }

    /// The next line. What is cut in two has to come all the same, however short the time is that is set.
    fn line(&mut self) -> std::io::Result<String> {
        let (mut line, mut waits) = (Vec::new(), 0);
        loop {
            match self.reader.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => break,
                Ok(_) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Err(error) if is_timeout(&error) && !line.is_empty() && waits < MOST_WAITS => waits += 1,
                Err(error) => return Err(error),
            }
        }
        line.pop();
        String::from_utf8(line).map_err(std::io::Error::other)
    }

    /// The next event or comment.
    pub(crate) fn next(&mut self) -> std::io::Result<Told> {
        let (mut told, mut has_begun, mut waits) = (Told::default(), false, 0);
        loop {
            let line = match self.line() {
                // Part of an event is there, and the rest comes.
                Err(error) if is_timeout(&error) && has_begun && waits < MOST_WAITS => {
                    waits += 1;
                    continue;
                }
                line => line?,
            };
            has_begun = true;
            match line.split_once(':') {
                None => return Ok(told),
                Some(("", _)) => told.has_comment = true,
                Some(("event", name)) => name.trim_start().clone_into(&mut told.name),
                Some(("id", id)) => id.trim_start().clone_into(&mut told.id),
                Some(("data", data)) => told.data += data.trim_start(),
                Some(other) => panic!("{other:?} is no field of an event"),
            }
        }
    }

    /// Whether something comes, in the time that is set; an error at the end of the connection.
    fn has_more(&mut self) -> std::io::Result<bool> {
        match self.reader.fill_buf() {
            Ok([]) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if is_timeout(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next event that is no comment.
    pub(crate) fn event(&mut self) -> Told {
        loop {
            let told = self.next().expect("an event comes");
            if !told.name.is_empty() {
                return told;
            }
        }
    }

    /// What is left of the answer, of one that is refused.
    pub(crate) fn rest(mut self) -> String {
        let mut rest = String::new();
        let _ = self.reader.read_to_string(&mut rest);
        rest
    }
}

/// Whoever follows looks so often whether to stop, and waits as often for what was cut in two.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const MOST_WAITS: usize = 20;

/// Who is to stop does when nothing was told for so long.
const QUIET: Duration = Duration::from_secs(3);

/// Somebody who goes on at the next of some nodes wherever the connection ends, until told to stop.
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Follower {
    /// Begins to watch, and returns when that is so. With `impatient` the connection is left now and then.
    pub(crate) fn begin(addresses: &[String], first: usize, query: &str, impatient: bool) -> Self {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (sink, stopped) = (Arc::clone(&told), Arc::clone(&stop));
        let take = move |one| sink.lock().expect("nobody panics").push(one);
        let has_all = move |quiet: Duration| stopped.load(Ordering::SeqCst) && quiet > QUIET;
        Self { stop, thread: begin(addresses, first, query, impatient, (take, has_all)), told }
    }

    /// What was told, when nothing more comes.
    pub(crate) fn end(self) -> Vec<Told> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("whoever watches does not panic");
        std::mem::take(&mut *self.told.lock().expect("nobody panics"))
    }
}

/// The versions with which each key was told, in the order in which it was.
pub(crate) type Versions = BTreeMap<String, Vec<u64>>;

/// Somebody who does the same and keeps of each event no more than its version; it can be looked at meanwhile.
pub(crate) struct Listener {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    told: Arc<Mutex<Versions>>,
}

impl Listener {
    /// Begins to watch, and returns when that is so.
    pub(crate) fn begin(addresses: &[String], first: usize, query: &str) -> Self {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Versions::new())));
        let (sink, stopped) = (Arc::clone(&told), Arc::clone(&stop));
        let take = move |one| note(&one, &mut sink.lock().expect("nobody panics"));
        let has_all = move |_| stopped.load(Ordering::SeqCst);
        Self { stop, thread: begin(addresses, first, query, false, (take, has_all)), told }
    }

    /// Whether the last change of each of these keys was told.
    pub(crate) fn has_been_told<'a>(&self, mut last: impl Iterator<Item = (&'a String, u64)>) -> bool {
        let told =
            self.told.lock().expect("who listens panics at what is told twice or out of order: see above");
        last.all(|(key, version)| told.get(key).and_then(|versions| versions.last()) == Some(&version))
    }

    /// Is to end at the next quiet moment.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// What was told.
    pub(crate) fn end(self) -> Versions {
        self.stop();
        self.thread.join().expect("whoever watches does not panic");
        std::mem::take(&mut *self.told.lock().expect("nobody panics"))
    }
}

/// What somebody does with an event, and whether he stops when nothing has come for so long.
type Doing<T, S> = (T, S);

fn begin(
    addresses: &[String],
    first: usize,
    query: &str,
    impatient: bool,
    doing: Doing<impl FnMut(Told) + Send + 'static, impl Fn(Duration) -> bool + Send + 'static>,
) -> JoinHandle<()> {
    let first = first % addresses.len();
    let mut watch = Watch::at(&addresses[first], query, None);
    let last = watch.next().expect("the first comment").id;
    let (addresses, query) = (addresses.to_vec(), query.to_owned());
    thread::spawn(move || follow(watch, last, (&addresses, first), &query, impatient, doing))
}

fn follow(
    mut watch: Watch,
    mut last: String,
    (addresses, first): (&[String], usize),
    query: &str,
    impatient: bool,
    (mut take, has_all): Doing<impl FnMut(Told), impl Fn(Duration) -> bool>,
) {
    let (mut at, mut seen) = (first, 0);
    let mut quiet_since: Option<Instant> = None;
    watch.set_timeout(LOOK_AGAIN);
    loop {
        match watch.has_more() {
            Ok(false) => {
                let since = *quiet_since.get_or_insert_with(Instant::now);
                if has_all(since.elapsed()) {
                    return;
                }
                if !impatient {
                    continue;
                }
            }
            Ok(true) => {
                if let Ok(next) = watch.next() {
                    if !next.id.is_empty() {
                        last.clone_from(&next.id);
                    }
                    if !next.name.is_empty() {
                        take(next);
                        seen += 1;
                        quiet_since = None;
                    }
                    if !impatient || seen < 50 {
                        continue;
                    }
                }
            }
            Err(_) => {}
        }
        seen = 0;
        loop {
            at = (at + 1) % addresses.len();
            match Watch::try_at(&addresses[at], query, Some(&last)) {
                Ok(again) if again.head.starts_with("HTTP/1.1 200 ") => {
                    watch = again;
                    watch.set_timeout(LOOK_AGAIN);
                    break;
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// Notes an event; panics at a resync, or where something is told twice or out of order.
fn note(one: &Told, versions: &mut Versions) {
    assert_ne!(one.name, "resync", "nothing has left the ring");
    let (of_key, version) = (versions.entry(one.key()).or_default(), one.version());
    assert!(of_key.last().is_none_or(|last| *last < version), "{one:?} after {of_key:?}");
    of_key.push(version);
}

/// The same of several events.
pub(crate) fn by_key(told: &[Told]) -> Versions {
    let mut versions = Versions::new();
    for one in told {
        note(one, &mut versions);
    }
    versions
}

/// Whoever writes: the version of each write that was acknowledged, by key.
pub(crate) fn put(client: &mut Http, key: &str, value: &str) -> Option<u64> {
    let body = value.as_bytes();
    let answer =
        client.try_request("PUT", &format!("/v1/kv/{key}"), &[("Content-Type", "application/json")], body);
    let answer = answer.ok().filter(|answer| matches!(answer.status, 200 | 201))?;
    answer.header("ETag").map(version)
}
