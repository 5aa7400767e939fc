//! A main node made by hand, for answers and delays that a real one does not give on demand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{START_DEADLINE, openapi, ports, wait_until};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Arrived {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Listens on a free port, answers `/livez` at once, offers no connection for many requests, and answers all else with the bytes that a closure returns.
pub(crate) struct FakeMain {
    address: String,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    ended: Arc<AtomicBool>,
}

impl FakeMain {
    /// The closure returns a whole answer, from the status line to the end of the body; it may take its time, and hangs
    /// up by returning nothing.
    pub(crate) fn start(answer: impl Fn(&Arrived) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let address = ports::free_address();
        openapi::leave_out(&address);
        // The port was free a moment ago, by a socket that a node which was just being started by another test may have
        // inherited for as long as it is not yet its own program.
        let mut bound = None;
        wait_until("the port is free again", START_DEADLINE, || {
            bound = TcpListener::bind(&address).ok();
            bound.is_some()
        });
        let listener = bound.expect("waited for");
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let answer = Arc::new(answer);
        let (noted, over) = (Arc::clone(&arrived), Arc::clone(&ended));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (answer, noted) = (Arc::clone(&answer), Arc::clone(&noted));
                thread::spawn(move || serve(stream, &*answer, &noted));
            }
        });
        Self { address, arrived, ended }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The requests that were not for `/livez`, in the order of their arrival.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FakeMain {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // The listening thread looks at the mark when somebody connects; nobody else may.
        drop(TcpStream::connect(&self.address));
    }
}

/// An answer with a `Content-Length` and these headers.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Serves one connection until it closes or says something that is no request.
fn serve(stream: TcpStream, reply: &dyn Fn(&Arrived) -> Vec<u8>, noted: &Mutex<Vec<Arrived>>) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let bytes = if request.target == "/livez" {
            answer("200 OK", &[], b"")
        } else if request.target == "/relay" {
            answer("404 Not Found", &[], b"")
        } else {
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
            reply(&request)
        };
        if bytes.is_empty() || writer.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Arrived> {
    let line = read_line(reader)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Arrived { method, target, headers: Vec::new(), body: Vec::new() };
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if request.header("transfer-encoding").is_some() {
        loop {
            let size = usize::from_str_radix(&read_line(reader)?, 16).ok()?;
            let start = request.body.len();
            request.body.resize(start + size, 0);
            reader.read_exact(&mut request.body[start..]).ok()?;
            read_line(reader)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = request.header("content-length") {
        request.body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut request.body).ok()?;
    }
    Some(request)
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.strip_suffix('\n')?;
    Some(line.strip_suffix('\r').unwrap_or(line).to_owned())
}
