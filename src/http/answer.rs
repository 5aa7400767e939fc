//! Answers, and how they are written: one write for head and body.

use std::borrow::Cow;
use std::io::{self, BufWriter, Read, Write};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tiny_http::{HTTPVersion, Method, Request};

use super::answer_body::Body;
use super::error_form::{ErrorForm, kind_of};
use super::framing::Framing;
use super::routes;
use super::target::Target;
use crate::clock::{now, wall};
use crate::error::Error;
use crate::node::keys::Value;
use crate::wire;

/// An answer with a longer body, in bytes, is written by a lane of its own: a client that reads it slowly then
/// holds up nobody but its like.
pub const LARGE_ANSWER: usize = 64 * 1024;
/// A stream is copied in pieces of this many bytes.
const PIECE: usize = 64 * 1024;
/// A client that reads slower than this many bytes a second, after [`GRACE`], is cut off.
const SLOWEST_READER: u64 = 64 * 1024;
/// How long a reader may take nothing at all.
const GRACE: Duration = Duration::from_secs(5);

/// An answer to one request.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers beyond those that every answer has.
    pub headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// The type of the body.
    pub content_type: Cow<'static, str>,
    /// The body.
    pub body: Body,
    /// Whether nothing that follows on the connection will be answered.
    pub close: bool,
}

impl Answer {
    /// A JSON answer.
    pub fn json(status: u16, body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content_type: Cow::Borrowed("application/json"),
            body: Body::Bytes(body.into()),
            close: false,
        }
    }

    /// The answer to OPTIONS.
    pub fn options(allow: &'static str) -> Self {
        Self::empty(204).with("Allow", allow)
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((Cow::Borrowed(name), value.into()));
        self
    }

    /// An answer without a body, and without what would describe one.
    pub fn empty(status: u16) -> Self {
        Self { content_type: Cow::Borrowed(""), ..Self::json(status, &b""[..]) }
    }

    /// The answer to a request that failed.
    pub fn error<'a>(error: &Error, method: &Method, form: impl Into<ErrorForm<'a>>) -> Self {
        let (status, ..) = kind_of(error);
        let form = form.into();
        let says_outcome = form.says_outcome(method, error);
        let (content_type, body) = form.body(error, method);
        let content_type = Cow::Borrowed(content_type);
        let mut answer = Self { content_type, ..Self::json(status, body.into_bytes()) };
        // What is left of a body that came too slowly is not waited for.
        answer.close = matches!(error, Error::Framing(_) | Error::TargetTooLong { .. } | Error::TooSlow(_));
        if says_outcome {
            answer = answer.with(wire::OUTCOME_HEADER, error.applied().as_str());
        }
        match error {
            Error::KeyTooLong { limit } => answer.with(wire::LIMIT_HEADER, limit.to_string()),
            // RFC 6750, section 3.
            Error::Unauthorized { was_shown } => answer.with(
                "WWW-Authenticate",
                if *was_shown {
                    "Bearer realm=\"evenkv\", error=\"invalid_token\""
                } else {
                    "Bearer realm=\"evenkv\""
                },
            ),
            Error::MethodNotAllowed(allow) => answer.with("Allow", *allow),
            Error::Unsatisfiable { length } => answer.with("Content-Range", format!("bytes */{length}")),
            Error::WrongProtocol(protocol) => answer.with("Connection", "upgrade").with("Upgrade", *protocol),
            Error::ChangeRuns(_) => answer.with("Location", "/kv-store/view-change"),
            Error::Unavailable { reason, .. } | Error::MainDown { reason, .. } => {
                answer.with("Retry-After", "1").with(wire::REASON_HEADER, header_text(reason))
            }
            Error::Overloaded(_) | Error::Unclear(_) | Error::NotServing(_) => {
                answer.with("Retry-After", "1")
            }
            _ => answer,
        }
    }

    /// Says something else about whether a write happened.
    #[must_use]
    pub fn with_outcome(mut self, applied: crate::error::Applied) -> Self {
        self.headers.retain(|(name, _)| name != wire::OUTCOME_HEADER);
        self.with(wire::OUTCOME_HEADER, applied.as_str())
    }

    /// Whether the body is a value of this node's own, which can be read again.
    pub fn is_stored(&self) -> bool {
        matches!(self.body, Body::Value { value: Value::Stored { .. }, .. })
    }

    /// Whether the body is written by a lane of its own.
    pub fn is_large(&self) -> bool {
        self.body.length().is_none_or(|length| length > LARGE_ANSWER as u64)
    }

    /// Writes the answer and hands the connection on to its next request. The body of the request has been read.
    ///
    /// A small answer is given back where the client does not take it at once, since the worker has better to do.
    ///
    /// # Errors
    /// When the client does not take it: nothing more can be said on this connection.
    pub fn write(self, request: Request, idle_timeout: Duration) -> io::Result<Option<Unwritten>> {
        let version = request.http_version().clone();
        let (no_body, asked) = (*request.method() == Method::Head, Asked::of(&request, idle_timeout));
        let mut writer = request.into_writer();
        if self.is_large() {
            let mut paced = PacedWriter::new(&mut *writer);
            return self.write_to(&mut paced, &version, no_body, asked).map(|()| None);
        }
        let mut bytes = Vec::new();
        self.write_to(&mut bytes, &version, no_body, asked)?;
        let mut unwritten = Unwritten { writer, bytes, written: 0 };
        match unwritten.go_on() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(unwritten)),
            result => result.map(|()| None),
        }
    }

    /// Writes the answer to a stream.
    ///
    /// # Errors
    /// When the client does not take it, or the other node broke off.
    pub fn write_to(
        self,
        writer: &mut dyn Write,
        version: &HTTPVersion,
        no_body: bool,
        asked: Asked,
    ) -> io::Result<()> {
        let no_body = no_body || self.has_no_content();
        let chunked = self.body.length().is_none() && !self.has_no_content() && *version >= HTTPVersion(1, 1);
        let mut head = self.head(chunked, asked);
        if no_body {
            writer.write_all(&head)?;
            return writer.flush();
        }
        let small = self.body.length().is_some_and(|length| length <= LARGE_ANSWER as u64);
        match self.body {
            Body::Stream { reader, length } => {
                writer.write_all(&head)?;
                return copy(writer, reader, length, chunked);
            }
            body if small => {
                body.append_to(&mut head);
                writer.write_all(&head)?;
            }
            body => {
                // What is short goes together with what comes after it; what is long goes through it without a copy.
                let mut together = BufWriter::new(&mut *writer);
                together.write_all(&head)?;
                body.pieces(|piece| together.write_all(piece))?;
                together.flush()?;
            }
        }
        writer.flush()
    }

    /// Whether answers of this status never have a body (RFC 9110, section 6.4.1).
    fn has_no_content(&self) -> bool {
        matches!(self.status, 204 | 304)
    }

    fn head(&self, chunked: bool, asked: Asked) -> Vec<u8> {
        // Every answer has one: `write!` would take longer than all the rest of it.
        let (mut head, mut digits) = (String::with_capacity(512), itoa::Buffer::new());
        for part in ["HTTP/1.1 ", digits.format(self.status), " ", reason_phrase(self.status), "\r\n"] {
            head.push_str(part);
        }
        push_line(&mut head, "Date", &DATE.read());
        if !self.has_no_content() && !self.content_type.is_empty() {
            push_line(&mut head, "Content-Type", &self.content_type);
        }
        if self.has_no_content() {
            // Neither a body nor what describes one: a length would be that of the answer to a GET.
        } else if chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if let Some(length) = self.body.length() {
            push_line(&mut head, "Content-Length", digits.format(length));
        }
        let connection = if self.close { Asked::Close } else { asked };
        head.push_str(match connection {
            Asked::Nothing => "",
            Asked::Close => "Connection: close\r\n",
            Asked::KeepAlive(_) => "Connection: keep-alive\r\n",
        });
        if let Asked::KeepAlive(idle_timeout) = connection {
            push_line(&mut head, "Keep-Alive", &format!("timeout={}", idle_timeout.as_secs()));
        }
        for (name, value) in &self.headers {
            push_line(&mut head, name, value);
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// The rest of a small answer that the client did not take at once.
pub struct Unwritten {
    writer: Box<dyn Write + Send>,
    bytes: Vec<u8>,
    written: usize,
}

impl Unwritten {
    /// Writes the rest.
    ///
    /// # Errors
    /// When the client does not take it: nothing more can be said on this connection.
    pub fn finish(mut self) -> io::Result<()> {
        let start = now();
        loop {
            match self.go_on() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && now() - start < GRACE => {}
                result => return result,
            }
        }
    }

    fn go_on(&mut self) -> io::Result<()> {
        while self.written < self.bytes.len() {
            match self.writer.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.writer.flush()
    }
}

/// Writes to a client that has to take an answer at a certain pace; the socket itself gives up much sooner. What counts is the time for which the client is waited for, and not
/// that which it takes to make what is written.
struct PacedWriter<'a> {
    writer: &'a mut dyn Write,
    /// For so long the client was waited for in all.
    waited: Duration,
    written: u64,
}

impl<'a> PacedWriter<'a> {
    fn new(writer: &'a mut dyn Write) -> Self {
        Self { writer, waited: Duration::ZERO, written: 0 }
    }

    /// Whether the client takes too long, which has been waited for since then. What the system takes for it at the beginning is worth a minute, and nobody is to wait
    /// for that: so it is never waited for longer than [`GRACE`] at one time.
    fn is_late(&self, since: Instant) -> bool {
        let waits = now() - since;
        waits > GRACE || self.waited + waits > GRACE + Duration::from_secs(self.written / SLOWEST_READER)
    }
}

impl Write for PacedWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let since = now();
        loop {
            let result = self.writer.write(buffer);
            if let Ok(count @ 1..) = result {
                self.written += count as u64;
            }
            let waits = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            if self.is_late(since) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !waits {
                self.waited += now() - since;
                return result;
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let since = now();
        loop {
            let result = self.writer.flush();
            let waits = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            if !waits || self.is_late(since) {
                self.waited += now() - since;
                return result;
            }
        }
    }
}

/// What the client asked of the connection, as far as the answer has to confirm it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// What its version of HTTP does anyway.
    Nothing,
    /// To close it.
    Close,
    /// To keep it, which HTTP/1.0 does only then: it is kept while it is idle for so long. A proxy that is told stops to use it in time.
    KeepAlive(Duration),
}

impl Asked {
    /// Reads the request's `Connection` header, by which tiny_http decides, too.
    pub fn of(request: &Request, idle_timeout: Duration) -> Self {
        let header = request.headers().iter().find(|header| header.field.equiv("Connection"));
        let old = *request.http_version() == HTTPVersion(1, 0);
        let Some(header) = header else { return if old { Self::Close } else { Self::Nothing } };
        let value = header.value.as_str().to_ascii_lowercase();
        if value.contains("close") || value.contains("upgrade") {
            Self::Close
        } else if value.contains("keep-alive") {
            Self::KeepAlive(idle_timeout)
        } else if old {
            Self::Close
        } else {
            Self::Nothing
        }
    }
}

fn push_line(head: &mut String, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        head.push_str(part);
    }
}

fn copy(
    writer: &mut dyn Write,
    mut reader: Box<dyn Read + Send>,
    length: Option<u64>,
    chunked: bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut copied = 0;
    loop {
        let count = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunked {
            write!(writer, "{count:x}\r\n")?;
        }
        writer.write_all(&piece[..count])?;
        if chunked {
            writer.write_all(b"\r\n")?;
        }
        copied += count as u64;
    }
    if length.is_some_and(|length| length != copied) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if chunked {
        writer.write_all(b"0\r\n\r\n")?;
    }
    writer.flush()
}

/// Answers before the body has been read, which [`Request::respond`] and [`Request::into_writer`] do not allow:
/// they first drain the body, through one buffer of the size that is still declared.
///
/// `upgrade` hands out the stream without draining. It writes a head first, with headers of its own that say that
/// this server knows HTTP/1.1, which is true, and it leaves out the length of a body. So the rest of our head goes along
/// as further lines of one header's value, and the body follows on the stream.
pub fn write_early(
    answer: Answer,
    request: Request,
) -> (Box<dyn tiny_http::ReadWrite + Send>, io::Result<()>) {
    let no_body = *request.method() == Method::Head;
    // An early answer is an error, and those are short; only another node could send a longer one.
    let answer = if matches!(answer.body, Body::Bytes(_)) {
        answer
    } else {
        let interface = routes::interface(Target::of(request.url()).path(request.url()));
        Answer { close: true, ..Answer::error(&Error::Internal, request.method(), interface) }
    };
    let mut rest = answer.content_type.into_owned();
    if answer.close {
        rest.push_str("\r\nConnection: close");
    }
    for (name, value) in &answer.headers {
        let _ = std::fmt::Write::write_fmt(&mut rest, format_args!("\r\n{name}: {value}"));
    }
    let Body::Bytes(bytes) = answer.body else { unreachable!("chosen above") };
    let _ = std::fmt::Write::write_fmt(&mut rest, format_args!("\r\nContent-Length: {}", bytes.len()));
    let head = tiny_http::Header::from_bytes("Content-Type", rest).expect("our headers are ASCII");
    let response = tiny_http::Response::empty(answer.status).with_header(head);
    let mut stream = request.upgrade("HTTP/1.1", response);
    let written = if no_body { Ok(()) } else { stream.write_all(&bytes) };
    let written = written.and_then(|()| stream.flush());
    (stream, written)
}

/// Whether the answer has to go out before the body was read.
pub fn is_early(framing: &Framing, body_was_read: bool) -> bool {
    framing.is_on_its_way() && !body_was_read
}

/// A text as the value of a header: one line of printable ASCII.
fn header_text(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(512).collect()
}

/// The head of an answer whose body has no end but that of its connection.
pub fn stream_head(content_type: &str) -> Vec<u8> {
    let status = 200;
    let head = format!(
        "HTTP/1.1 {status} {}\r\nDate: {}\r\nContent-Type: {content_type}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        reason_phrase(status),
        DATE.read()
    );
    head.into_bytes()
}

/// The current date for the `Date` header, formatted once a second.
static DATE: RwLock<String> = RwLock::new(String::new());

/// Formats the date anew; called several times a second by one thread.
pub fn refresh_date() {
    let date = httpdate::fmt_http_date(wall());
    if *DATE.read() != date {
        *DATE.write() = date;
    }
}

fn reason_phrase(status: u16) -> &'static str {
    ureq::http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Applied;

    fn text(answer: Answer, version: &HTTPVersion, no_body: bool) -> String {
        let mut bytes = Vec::new();
        answer.write_to(&mut bytes, version, no_body, Asked::Nothing).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    const V11: HTTPVersion = HTTPVersion(1, 1);

    #[test]
    fn an_error_says_whether_the_write_happened() {
        let error = Error::Unavailable { reason: "n2: \u{e9}\r\nX: y".to_owned(), applied: Applied::Unknown };
        let put = text(Answer::error(&error, &Method::Put, ""), &V11, false);
        assert!(put.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{put}");
        assert!(put.contains("Evenkv-Outcome: unknown\r\n"), "{put}");
        assert!(put.contains("Evenkv-Reason: n2: ???X: y\r\n"), "{put}");
        assert!(
            put.ends_with("{\"error\":\"Unable to satisfy request\",\"message\":\"Error in PUT\"}"),
            "{put}"
        );
        let get = text(Answer::error(&error, &Method::Get, ",\"address\":\"a:1\""), &V11, false);
        assert!(!get.contains("Evenkv-Outcome"), "{get}");
        assert!(get.ends_with("\"Error in GET\",\"address\":\"a:1\"}"), "{get}");
    }

    #[test]
    fn a_stream_of_unknown_length_is_chunked_and_one_that_breaks_off_is_an_error() {
        let stream = |length| {
            let reader: Box<dyn Read + Send> = Box::new(&b"hello"[..]);
            Answer { body: Body::Stream { reader, length }, ..Answer::json(200, &b""[..]) }
        };
        let sent = text(stream(None), &V11, false);
        assert!(sent.contains("Transfer-Encoding: chunked\r\n"), "{sent}");
        assert!(sent.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{sent}");
        let sent = text(stream(Some(5)), &V11, false);
        assert!(sent.ends_with("\r\n\r\nhello"), "{sent}");
        let broken = stream(Some(6)).write_to(&mut Vec::new(), &V11, false, Asked::Nothing);
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_answer_to_options_has_neither_length_nor_type() {
        let sent = text(Answer::options("GET"), &V11, false);
        assert!(sent.starts_with("HTTP/1.1 204 No Content\r\n") && sent.contains("Allow: GET\r\n"), "{sent}");
        assert!(sent.ends_with("\r\n\r\n") && !sent.contains("Content-"), "{sent}");
    }

    #[test]
    fn the_answer_to_head_has_a_length_and_no_body() {
        let sent = text(Answer::json(405, &b"{}"[..]), &V11, true);
        assert!(sent.contains("Content-Length: 2\r\n") && sent.ends_with("\r\n\r\n"), "{sent}");
    }
}
