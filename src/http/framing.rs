//! What the headers say about a request's body, and whether they say it without contradiction.
//!
//! tiny_http takes an invalid Content-Length for none, the first of two, and any Transfer-Encoding for chunked,
//! also beside a Content-Length. A proxy in front may read the same bytes differently, and then one client's body
//! becomes another client's request. So whatever could be read in two ways is refused (RFC 9112, section 6.3).

use tiny_http::{HTTPVersion, Request};

/// tiny_http has read bodies up to this length, in bytes, before it hands out the request.
pub const BUFFERED_BYTES: usize = 1024;

/// Where the body of a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// In memory, of this length in bytes.
    Buffered(usize),
    /// Still on its way: whoever reads it waits for the client.
    OnItsWay {
        /// Its length in bytes, unless it is chunked.
        length: Option<usize>,
        /// tiny_http does not count the bytes itself, since the client would like to leave HTTP/1.1.
        upgrade: bool,
        /// The client waits for a word before it sends the body, and without it may not send it at all.
        expect: bool,
    },
    /// The headers are contradictory: why.
    Refused(String),
}

impl Framing {
    /// Whether reading the body would wait for the client.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self, Self::OnItsWay { .. })
    }

    /// Reads the headers of a request.
    pub fn of(request: &Request) -> Self {
        let mut seen = Seen::default();
        for header in request.headers() {
            seen.note(header.field.as_str().as_str(), header.value.as_str());
        }
        seen.judge(*request.http_version() == HTTPVersion(1, 0))
    }
}

#[derive(Default)]
struct Seen<'a> {
    lengths: usize,
    length: Option<&'a str>,
    encodings: usize,
    encoding: Option<&'a str>,
    expect: bool,
    upgrade: bool,
}

impl<'a> Seen<'a> {
    fn note(&mut self, name: &str, value: &'a str) {
        // Four headers in all of HTTP matter here; their lengths alone rule out nearly every other.
        match name.len() {
            14 if name.eq_ignore_ascii_case("Content-Length") => {
                self.lengths += 1;
                self.length = Some(value);
            }
            17 if name.eq_ignore_ascii_case("Transfer-Encoding") => {
                self.encodings += 1;
                self.encoding = Some(value);
            }
            6 if name.eq_ignore_ascii_case("Expect") => self.expect = true,
            10 if name.eq_ignore_ascii_case("Connection") => {
                self.upgrade |= value.to_ascii_lowercase().contains("upgrade");
            }
            _ => {}
        }
    }

    fn judge(&self, old_version: bool) -> Framing {
        let refuse = |text: &str| Framing::Refused(text.to_owned());
        let Self { upgrade, expect, .. } = *self;
        match (self.length, self.encoding) {
            (None, None) => Framing::Empty,
            (Some(_), Some(_)) => {
                refuse("Content-Length and Transfer-Encoding contradict each other: send one of them")
            }
            (None, Some(_)) if self.encodings > 1 => refuse("Transfer-Encoding is given twice: send it once"),
            (None, Some(_)) if old_version => refuse("Transfer-Encoding needs HTTP/1.1: send Content-Length"),
            (None, Some(_)) if upgrade => refuse("A chunked body cannot go with Connection: upgrade"),
            (None, Some(value)) if !value.eq_ignore_ascii_case("chunked") => {
                refuse("Transfer-Encoding is not understood: allowed is chunked")
            }
            (None, Some(_)) => Framing::OnItsWay { length: None, upgrade: false, expect },
            (Some(_), None) if self.lengths > 1 => refuse("Content-Length is given twice: send it once"),
            (Some(value), None) => match digits(value) {
                None => refuse("Content-Length is no number: allowed are digits, up to 18446744073709551615"),
                Some(0) => Framing::Empty,
                Some(length) if length <= BUFFERED_BYTES && !expect && !upgrade => Framing::Buffered(length),
                Some(length) => Framing::OnItsWay { length: Some(length), upgrade, expect },
            },
        }
    }
}

fn digits(value: &str) -> Option<usize> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (&'a [(&'a str, &'a str)], Framing);

    fn framing(headers: &[(&str, &str)], old_version: bool) -> Framing {
        let mut seen = Seen::default();
        for (name, value) in headers {
            seen.note(name, value);
        }
        seen.judge(old_version)
    }

    #[test]
    fn only_what_can_be_read_in_one_way_is_accepted() {
        let on_its_way = |length, upgrade| Framing::OnItsWay { length, upgrade, expect: false };
        let refused = || Framing::Refused(String::new());
        let table: &[Row] = &[
            (&[("Host", "x")], Framing::Empty),
            (&[("content-length", "0")], Framing::Empty),
            (&[("Content-Length", "1024")], Framing::Buffered(1024)),
            (&[("Content-Length", "1025")], on_its_way(Some(1025), false)),
            (
                &[("Content-Length", "5"), ("Connection", "Upgrade, HTTP2-Settings")],
                on_its_way(Some(5), true),
            ),
            (&[("Content-Length", "18446744073709551615")], on_its_way(Some(usize::MAX), false)),
            (&[("Transfer-Encoding", "Chunked")], on_its_way(None, false)),
            (
                &[("Content-Length", "5"), ("Expect", "100-continue")],
                Framing::OnItsWay { length: Some(5), upgrade: false, expect: true },
            ),
            (&[("Content-Length", "18446744073709551616")], refused()),
            (&[("Content-Length", "+5")], refused()),
            (&[("Content-Length", "-1")], refused()),
            (&[("Content-Length", "5, 5")], refused()),
            (&[("Content-Length", "")], refused()),
            (&[("Content-Length", "5"), ("Content-Length", "5")], refused()),
            (&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")], refused()),
            (&[("Transfer-Encoding", "gzip, chunked")], refused()),
            (&[("Transfer-Encoding", "identity")], refused()),
            (&[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")], refused()),
            (&[("Transfer-Encoding", "chunked"), ("Connection", "upgrade")], refused()),
        ];
        for (headers, wanted) in table {
            match (framing(headers, false), wanted) {
                (Framing::Refused(_), Framing::Refused(_)) => {}
                (got, wanted) => assert_eq!(got, *wanted, "{headers:?}"),
            }
        }
        assert!(matches!(framing(&[("Transfer-Encoding", "chunked")], true), Framing::Refused(_)));
    }
}
