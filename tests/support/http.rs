//! A small HTTP/1.1 client over one keep-alive connection, written by hand so that a test decides about
//! every byte: nothing in a path is encoded, decoded or tidied. Every answer to a request is [held against](super::openapi) what
//! the program says of its interface.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::openapi;

/// Longer than any deadline of a node, so that a node's own answer is seen and not the client's patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer as it came.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The value of the header `name`, in any case, or `None`.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the answer when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}) in {} {:?}", self.status, self.text()))
    }

    /// The field `address` of a JSON body.
    pub(crate) fn owner(&self) -> Option<String> {
        self.json().get("address").map(|address| address.as_str().expect("an address is a string").to_owned())
    }
}

/// A client of one address with at most one connection.
pub(crate) struct Http {
    address: String,
    patience: Duration,
    is_checked: bool,
    connection: Option<BufReader<TcpStream>>,
}

impl Http {
    pub(crate) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), patience: PATIENCE, is_checked: true, connection: None }
    }

    /// The same for answers that may not be the program's own.
    pub(crate) fn unchecked(address: &str) -> Self {
        Self { is_checked: false, ..Self::new(address) }
    }

    /// The same with another limit for each read and write.
    pub(crate) fn with_patience(address: &str, patience: Duration) -> Self {
        Self { patience, ..Self::new(address) }
    }

    pub(crate) fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    pub(crate) fn put(&mut self, target: &str, body: impl AsRef<[u8]>) -> Response {
        self.request("PUT", target, &[], body.as_ref())
    }

    pub(crate) fn delete(&mut self, target: &str) -> Response {
        self.request("DELETE", target, &[], b"")
    }

    /// One request and its answer; panics when there is none.
    pub(crate) fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.try_request(method, target, headers, body).unwrap_or_else(|error| {
            let shown: String = target.chars().take(200).collect();
            panic!("{method} {shown} at {} went unanswered: {error}", self.address)
        })
    }

    /// One request and its answer. `Host` is added, and `Content-Length` where the request has a body or
    /// is a PUT or POST, unless `headers` frame the body themselves.
    pub(crate) fn try_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.address).into_bytes();
        for (name, value) in headers {
            write!(bytes, "{name}: {value}\r\n")?;
        }
        let framed = headers.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        });
        if !framed && (!body.is_empty() || method == "PUT" || method == "POST") {
            write!(bytes, "Content-Length: {}\r\n", body.len())?;
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        let sent = self.send(&bytes);
        // A node may refuse a body before it was sent wholly; its answer is then worth more than our error.
        match (self.receive(method), sent) {
            (Ok(response), _) => {
                if self.is_checked {
                    openapi::check(&self.address, method, target, &response);
                }
                Ok(response)
            }
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
        }
    }

    /// Writes exactly these bytes, on the connection that is open or a new one.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.connection.as_mut().is_none_or(is_closed_by_peer) {
            let stream = TcpStream::connect(&self.address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.patience))?;
            stream.set_write_timeout(Some(self.patience))?;
            self.connection = Some(BufReader::new(stream));
        }
        let connection = self.connection.as_mut().expect("opened above");
        connection.get_mut().write_all(bytes)
    }

    /// Reads the final answer to a request of `method`; interim answers (1xx) are skipped.
    pub(crate) fn receive(&mut self, method: &str) -> io::Result<Response> {
        let answer = loop {
            match self.receive_any(method)? {
                interim if (100..200).contains(&interim.status) => {}
                answer => break answer,
            }
        };
        if answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.connection = None;
        }
        Ok(answer)
    }

    /// Reads the next answer, be it an interim one. An error leaves no connection behind.
    pub(crate) fn receive_any(&mut self, method: &str) -> io::Result<Response> {
        let connection = self.connection.as_mut().ok_or(ErrorKind::NotConnected)?;
        let answer = read_answer(connection, method);
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    /// Whether the node has closed the connection, or does so within the client's patience.
    pub(crate) fn is_closed(&mut self) -> bool {
        let Some(connection) = self.connection.as_mut() else { return true };
        match connection.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

/// Every byte of `body` in chunks of `size`, as `Transfer-Encoding: chunked` wants them.
pub(crate) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    for chunk in body.chunks(size) {
        write!(encoded, "{:x}\r\n", chunk.len()).expect("a Vec takes every write");
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded.extend_from_slice(b"0\r\n\r\n");
    encoded
}

/// Every byte that is not a letter or digit as `%XX`.
pub(crate) fn percent_encoded(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes every write");
        }
    }
    text
}

/// Whether the peer has closed this idle connection.
fn is_closed_by_peer(connection: &mut BufReader<TcpStream>) -> bool {
    if !connection.buffer().is_empty() {
        return false;
    }
    let stream = connection.get_mut();
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let peeked = stream.peek(&mut [0]);
    let usable = stream.set_nonblocking(false).is_ok();
    match peeked {
        Ok(count) => count == 0 || !usable,
        Err(error) => error.kind() != ErrorKind::WouldBlock || !usable,
    }
}

fn read_answer(connection: &mut BufReader<TcpStream>, method: &str) -> io::Result<Response> {
    let line = read_line(connection)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let Some(status) = status.filter(|_| line.starts_with("HTTP/1.")) else {
        return Err(io::Error::other(format!("{line:?} is no status line")));
    };
    let mut headers = Vec::new();
    loop {
        let line = read_line(connection)?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Err(io::Error::other(format!("{line:?} is no header")));
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    let bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
    if !bodiless {
        response.body = read_body(connection, &response)?;
    }
    Ok(response)
}

fn read_body(connection: &mut BufReader<TcpStream>, response: &Response) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let is_chunked = response.header("transfer-encoding").is_some_and(|value| value.contains("chunked"));
    if is_chunked {
        loop {
            let line = read_line(connection)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| io::Error::other(format!("{line:?} is no chunk size")))?;
            let start = body.len();
            body.resize(start + size, 0);
            connection.read_exact(&mut body[start..])?;
            let end = read_line(connection)?;
            if !end.is_empty() {
                return Err(io::Error::other(format!("{end:?} after a chunk")));
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match response.header("content-length").map(str::parse) {
        Some(Ok(length)) => {
            body.resize(length, 0);
            connection.read_exact(&mut body)?;
        }
        Some(Err(_)) => return Err(io::Error::other("Content-Length is no number")),
        None => {
            connection.read_to_end(&mut body)?;
        }
    }
    Ok(body)
}

/// A line without its end; the end of the stream is an error.
fn read_line(connection: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    connection.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}
