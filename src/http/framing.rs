//! What the headers say about a request's body, and whether they say it without contradiction.
//!
//! tiny_http takes an invalid Content-Length for none, the first of two, and any Transfer-Encoding for chunked,
//! also beside a Content-Length. A proxy in front may read the same bytes differently, and then one client's body
//! becomes another client's request. So whatever could be read in two ways is refused (RFC 9112, section 6.3).

use tiny_http::{HTTPVersion, Header, Request};

use crate::error::Error;

/// tiny_http has read bodies up to this length, in bytes, before it hands out the request.
pub const BUFFERED_BYTES: usize = 1024;

/// A method, a target or the value of a header that is longer, in bytes, is refused: tiny_http takes any length, and nothing that
/// looks at such a text may take long. The longest key there can be fits three times, with all its bytes escaped.
const LONGEST_TEXT: usize = 256 * 1024;

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
    /// The headers are contradictory, or what the request begins with is too long.
    Refused {
        /// What is wrong.
        error: Error,
        /// What tiny_http nevertheless takes for the length, in bytes, and would drain.
        undrained: Option<usize>,
    },
}

impl Framing {
    /// Whether reading the body, or dropping the request without reading it, would wait for the client.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self, Self::OnItsWay { .. } | Self::Refused { undrained: Some(_), .. })
    }

    /// The length that tiny_http drains when the request is dropped unread, in bytes.
    pub fn undrained(&self) -> Option<usize> {
        match self {
            Self::OnItsWay { length, .. } => *length,
            Self::Refused { undrained, .. } => *undrained,
            Self::Empty | Self::Buffered(_) => None,
        }
    }

    /// Reads the headers of a request.
    pub fn of(request: &Request) -> Self {
        let framing = Self::read(request.headers(), request.http_version());
        let error = if request.url().len() > LONGEST_TEXT {
            Error::TargetTooLong { limit: LONGEST_TEXT }
        } else if request.method().as_str().len() > LONGEST_TEXT {
            Error::Framing(format!("The method is too long: allowed are {LONGEST_TEXT} bytes"))
        } else {
            return framing;
        };
        Self::Refused { error, undrained: framing.undrained() }
    }

    fn read(headers: &[Header], version: &HTTPVersion) -> Self {
        let mut seen = Seen::default();
        for header in headers {
            let value = header.value.as_str();
            if value.len() > LONGEST_TEXT {
                seen.fault = Some("A header is too long: allowed are 262144 bytes");
            } else if value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                seen.fault = Some("A header has a line break or NUL in its value: end each line with CR LF");
            }
            // Five headers in all of HTTP matter here; their lengths alone rule out nearly every other.
            let field = &header.field;
            match field.as_str().len() {
                14 if field.equiv("Content-Length") => seen.length(header.value.as_str()),
                17 if field.equiv("Transfer-Encoding") => seen.encoding(header.value.as_str()),
                4 if field.equiv("Host") => seen.hosts += 1,
                6 if field.equiv("Expect") => seen.expect = true,
                10 if field.equiv("Connection") => {
                    seen.upgrade |= header.value.as_str().to_ascii_lowercase().contains("upgrade");
                }
                _ => {}
            }
        }
        match seen.judge(*version < HTTPVersion(1, 1)) {
            Ok(framing) => framing,
            Err(reason) => {
                Self::Refused { error: Error::Framing(reason.to_owned()), undrained: seen.undrained() }
            }
        }
    }
}

#[derive(Default)]
struct Seen<'a> {
    /// What is wrong with the text of a header, whatever it means.
    fault: Option<&'static str>,
    hosts: usize,
    lengths: usize,
    length: Option<&'a str>,
    encodings: usize,
    encoding: Option<&'a str>,
    expect: bool,
    upgrade: bool,
}

impl<'a> Seen<'a> {
    fn length(&mut self, value: &'a str) {
        self.lengths += 1;
        self.length.get_or_insert(value);
    }

    fn encoding(&mut self, value: &'a str) {
        self.encodings += 1;
        self.encoding = Some(value);
    }

    fn judge(&self, old_version: bool) -> Result<Framing, &'static str> {
        let Self { upgrade, expect, .. } = *self;
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        // A proxy in front may have gone by the other one of two (RFC 9112, section 3.2).
        match self.hosts {
            0 if !old_version => return Err("Host is missing: HTTP/1.1 wants one"),
            0 | 1 => {}
            _ => return Err("Host is given twice: send it once"),
        }
        match (self.length, self.encoding) {
            (None, None) => Ok(Framing::Empty),
            (Some(_), Some(_)) => {
                Err("Content-Length and Transfer-Encoding contradict each other: send one of them")
            }
            (None, Some(_)) if self.encodings > 1 => Err("Transfer-Encoding is given twice: send it once"),
            (None, Some(_)) if old_version => Err("Transfer-Encoding needs HTTP/1.1: send Content-Length"),
            (None, Some(_)) if upgrade => Err("A chunked body cannot go with Connection: upgrade"),
            (None, Some(value)) if !value.eq_ignore_ascii_case("chunked") => {
                Err("Transfer-Encoding is not understood: allowed is chunked")
            }
            (None, Some(_)) => Ok(Framing::OnItsWay { length: None, upgrade: false, expect }),
            (Some(_), None) if self.lengths > 1 => Err("Content-Length is given twice: send it once"),
            (Some(value), None) => match digits(value) {
                None => Err("Content-Length is no number: allowed are digits, up to 18446744073709551615"),
                Some(0) => Ok(Framing::Empty),
                Some(length) if length <= BUFFERED_BYTES && !expect && !upgrade => {
                    Ok(Framing::Buffered(length))
                }
                Some(length) => Ok(Framing::OnItsWay { length: Some(length), upgrade, expect }),
            },
        }
    }

    /// What tiny_http drains of a refused body: it takes the first of two lengths, and `+5` for 5.
    fn undrained(&self) -> Option<usize> {
        let length = self.length.filter(|_| self.encodings == 0)?.parse().ok()?;
        (length > BUFFERED_BYTES || (self.expect && length > 0)).then_some(length)
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

    fn framing(headers: &[(&str, &str)], version: &HTTPVersion) -> Framing {
        let header = |(name, value): &(&str, &str)| Header::from_bytes(name.as_bytes(), value.as_bytes());
        let host = ("Host", "x");
        let headers: Result<Vec<Header>, ()> = headers.iter().chain([&host]).map(header).collect();
        Framing::read(&headers.unwrap(), version)
    }

    #[test]
    fn only_what_can_be_read_in_one_way_is_accepted() {
        type Row<'a> = (&'a [(&'a str, &'a str)], Framing);
        let on_its_way = |length, upgrade| Framing::OnItsWay { length, upgrade, expect: false };
        let error = || Error::Framing(String::new());
        let undrained = |undrained| Framing::Refused { error: error(), undrained };
        let refused = || undrained(None);
        let table: &[Row] = &[
            (&[("X-Host", "x")], Framing::Empty),
            (&[("host", "x")], refused()),
            (&[("Host", ""), ("Content-Length", "9999")], undrained(Some(9999))),
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
            (&[("Content-Length", "+60000000000")], undrained(Some(60_000_000_000))),
            (&[("Content-Length", "60000000000"), ("Content-Length", "5")], undrained(Some(60_000_000_000))),
            (&[("Content-Length", "5"), ("Content-Length", "60000000000")], refused()),
            (&[("Content-Length", "60000000000"), ("Transfer-Encoding", "chunked")], refused()),
            (&[("X", "a\nContent-Length: 5")], refused()),
            (&[("X", &"x".repeat(LONGEST_TEXT + 1)), ("Content-Length", "9999")], undrained(Some(9999))),
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
            let got = match framing(headers, &HTTPVersion(1, 1)) {
                Framing::Refused { undrained: length, .. } => undrained(length),
                accepted => accepted,
            };
            assert_eq!(got, *wanted, "{headers:?}");
        }
        // Before HTTP/1.1 nobody had to say whom they ask.
        for (version, accepted) in [(HTTPVersion(1, 1), false), (HTTPVersion(1, 0), true)] {
            assert_eq!(Framing::read(&[], &version) == Framing::Empty, accepted, "{version}");
        }
        for old in [HTTPVersion(1, 0), HTTPVersion(0, 9)] {
            let chunked = framing(&[("Transfer-Encoding", "chunked")], &old);
            assert!(matches!(chunked, Framing::Refused { undrained: None, .. }), "{chunked:?}");
        }
    }
}
