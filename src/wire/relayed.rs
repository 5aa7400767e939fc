//! What is in the frames of a connection on which a follower passes many requests of clients on to its main at one time. They are frames as [`frames`] has
//! them, of the same kinds and with the same numbers: a question, its answer, and the word that no more is to be asked.
//!
//! Nobody has to be known to open such a connection, so whatever comes on it is believed only as far as it would be by HTTP.

use super::frames::{ANSWER, QUESTION, head, put_frame};
use crate::model::binary::{Malformed, Reader, put_bytes, put_number};

/// The protocol that a connection is upgraded to. Its number is that of [`frames::VERSION`](super::frames::VERSION): a main that does not know it refuses, and
/// is asked by HTTP.
pub const PROTOCOL: &str = "evenkv-relay/1";
/// What has a longer body, in bytes, goes by HTTP, there or back: it would hold up the small ones.
pub const LONGEST_BODY: usize = 32 << 10;
/// More headers than this are not believed.
const MOST_HEADERS: usize = 1024;

/// The methods of a request about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read it.
    Get,
    /// Store a value.
    Put,
    /// Delete it.
    Delete,
}

const GET: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// A request of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question<'a> {
    /// Whoever asks waits for so many milliseconds.
    pub left_ms: u64,
    /// The method.
    pub method: Method,
    /// The target in origin form: path and query, not decoded.
    pub target: &'a str,
    /// The headers that do not belong to the client's connection.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The body.
    pub body: &'a [u8],
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The answer that the main would have given by HTTP.
    Given(Given<'a>),
    /// Nothing was done: ask by HTTP.
    ByHttp,
}

/// An answer, but for what every answer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<'a> {
    /// The status code.
    pub status: u16,
    /// The type of the body.
    pub content_type: &'a str,
    /// The other headers.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Question<'a> {
    /// Appends a frame; `false` where something in it cannot be passed on so, and then what was appended is no frame.
    #[must_use]
    pub fn encode(&self, number: u64, out: &mut Vec<u8>) -> bool {
        put_frame(out, QUESTION, number, |out| {
            put_number(out, self.left_ms);
            out.push(match self.method {
                Method::Get => GET,
                Method::Put => PUT,
                Method::Delete => DELETE,
            });
            put_bytes(out, self.target.as_bytes());
            put_headers(out, &self.headers);
            out.extend_from_slice(self.body);
        });
        is_target(self.target) && are_headers(&self.headers)
    }

    /// Reads what is in a frame, and the number of the question.
    ///
    /// # Errors
    /// When it is no question, or something in it could not come by HTTP.
    pub fn decode(frame: &'a [u8]) -> Result<(u64, Self), Malformed> {
        let mut reader = Reader::new(frame);
        let (QUESTION, number) = head(&mut reader)? else { return Err(Malformed("not a question")) };
        let left_ms = reader.number()?;
        let method = match reader.byte()? {
            GET => Method::Get,
            PUT => Method::Put,
            DELETE => Method::Delete,
            _ => return Err(Malformed("an unknown method")),
        };
        let target = text(&mut reader)?;
        if !is_target(target) {
            return Err(Malformed("not a target"));
        }
        let headers = headers(&mut reader)?;
        Ok((number, Self { left_ms, method, target, headers, body: reader.rest() }))
    }
}

const GIVEN: u8 = 0;
const BY_HTTP: u8 = 1;

impl<'a> Answer<'a> {
    /// Appends a frame.
    pub fn encode(&self, number: u64, out: &mut Vec<u8>) {
        put_frame(out, ANSWER, number, |out| match self {
            Self::ByHttp => out.push(BY_HTTP),
            Self::Given(given) => {
                out.push(GIVEN);
                put_number(out, given.status.into());
                put_bytes(out, given.content_type.as_bytes());
                put_headers(out, &given.headers);
                out.extend_from_slice(given.body);
            }
        });
    }

    /// Reads what is in a frame.
    ///
    /// # Errors
    /// When it is no answer, or something in it could not come by HTTP.
    pub fn decode(frame: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(frame);
        let (ANSWER, _) = head(&mut reader)? else { return Err(Malformed("not an answer")) };
        match reader.byte()? {
            GIVEN => {}
            BY_HTTP => return reader.end().map(|()| Self::ByHttp),
            _ => return Err(Malformed("an unknown answer")),
        }
        let status = u16::try_from(reader.number()?).ok().filter(|status| (200..=999).contains(status));
        let status = status.ok_or(Malformed("not a status"))?;
        let content_type = text(&mut reader)?;
        if !is_value(content_type) {
            return Err(Malformed("not the value of a header"));
        }
        let headers = headers(&mut reader)?;
        Ok(Self::Given(Given { status, content_type, headers, body: reader.rest() }))
    }
}

fn put_headers(out: &mut Vec<u8>, headers: &[(&str, &str)]) {
    put_number(out, headers.len() as u64);
    for (name, value) in headers {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn headers<'a>(reader: &mut Reader<'a>) -> Result<Vec<(&'a str, &'a str)>, Malformed> {
    let count = reader.count(MOST_HEADERS)?;
    let headers: Vec<_> =
        (0..count).map(|_| Ok((text(reader)?, text(reader)?))).collect::<Result<_, Malformed>>()?;
    if are_headers(&headers) { Ok(headers) } else { Err(Malformed("not a header")) }
}

fn text<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    std::str::from_utf8(reader.bytes(usize::MAX)?).map_err(|_| Malformed("not a text"))
}

/// Whether a request line can have such a target.
fn is_target(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn are_headers(headers: &[(&str, &str)]) -> bool {
    headers.len() <= MOST_HEADERS && headers.iter().all(|(name, value)| is_name(name) && is_value(value))
}

/// Whether a header can have such a name (RFC 9110, section 5.6.2).
fn is_name(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token)
}

/// Whether a header can have such a value; what is beyond ASCII means different things to different readers.
fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frames::{Coming, HEAD, VERSION, coming, first};
    use super::*;

    fn questions() -> Vec<Question<'static>> {
        let mut questions = Vec::new();
        for (method, body) in
            [(Method::Get, &b""[..]), (Method::Put, b"{\"value\":1}"), (Method::Delete, b"\0\xff")]
        {
            for headers in [vec![], vec![("X-Thing", "a  b; c=\"d\"\t"), ("x", ""), ("x", "")]] {
                let target = "/kvs/keys/%2F{|}?a=b?";
                questions.push(Question { left_ms: 4_999, method, target, headers, body });
            }
        }
        questions
    }

    fn answers() -> Vec<Answer<'static>> {
        let given = Given {
            status: 201,
            content_type: "application/json",
            headers: vec![("Evenkv-Outcome", "applied"), ("Retry-After", "1")],
            body: b"{}",
        };
        vec![
            Answer::ByHttp,
            Answer::Given(Given { status: 503, headers: vec![], ..given.clone() }),
            Answer::Given(given),
        ]
    }

    /// The inside of each frame, with the kind that it is of.
    fn frames() -> Vec<Vec<u8>> {
        let questions = questions().into_iter().map(|question| {
            let mut bytes = Vec::new();
            assert!(question.encode(300, &mut bytes));
            bytes
        });
        let answers = answers().into_iter().map(|answer| {
            let mut bytes = Vec::new();
            answer.encode(300, &mut bytes);
            bytes
        });
        questions.chain(answers).map(|bytes| first(&bytes).unwrap().unwrap().to_vec()).collect()
    }

    #[test]
    fn frames_survive_a_round_trip() {
        let frames = frames();
        for (frame, question) in frames.iter().zip(questions()) {
            assert_eq!(Question::decode(frame), Ok((300, question)));
            assert!(Answer::decode(frame).is_err());
        }
        for (frame, answer) in frames[questions().len()..].iter().zip(answers()) {
            assert_eq!(Answer::decode(frame), Ok(answer));
            assert_eq!(coming(frame), Ok(Coming::Answer(300)));
            assert!(Question::decode(frame).is_err());
        }
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_refused_or_has_a_shorter_body() {
        for frame in frames() {
            for cut in 0..frame.len() {
                let cut = &frame[..cut];
                if let Ok((300, question)) = Question::decode(cut) {
                    assert!(questions().iter().any(|whole| whole.headers == question.headers
                        && whole.target == question.target
                        && whole.body.starts_with(question.body)));
                }
                if let Ok(Answer::Given(given)) = Answer::decode(cut) {
                    assert!(b"{}".starts_with(given.body) && given.content_type == "application/json");
                }
            }
        }
    }

    #[test]
    fn what_could_not_come_by_http_is_no_frame() {
        let good = &questions()[1];
        let long = vec![("x", ""); MOST_HEADERS + 1];
        let wrong = [
            Question { target: "kvs/keys/a", ..good.clone() },
            Question { target: "/kvs/keys/a b", ..good.clone() },
            Question { target: "/kvs/keys/ä", ..good.clone() },
            Question { target: "", ..good.clone() },
            Question { headers: vec![("", "x")], ..good.clone() },
            Question { headers: vec![("x:", "x")], ..good.clone() },
            Question { headers: vec![("x", "x\r\nEvenkv-Secret: x")], ..good.clone() },
            Question { headers: vec![("x", "ä")], ..good.clone() },
            Question { headers: long, ..good.clone() },
        ];
        for question in wrong {
            let mut bytes = Vec::new();
            assert!(!question.encode(1, &mut bytes), "{question:?}");
            assert!(Question::decode(&bytes[HEAD..]).is_err(), "{question:?}");
        }
        let Answer::Given(good) = answers().remove(2) else { panic!("the last one is given") };
        for given in [
            Given { status: 101, ..good.clone() },
            Given { status: 1000, ..good.clone() },
            Given { content_type: "a\nb", ..good.clone() },
            Given { headers: vec![("a b", "c")], ..good.clone() },
            Given { headers: vec![("a", "\r")], ..good.clone() },
        ] {
            let mut bytes = Vec::new();
            Answer::Given(given.clone()).encode(1, &mut bytes);
            assert!(Answer::decode(&bytes[HEAD..]).is_err(), "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_harm_whoever_reads_them(bytes: Vec<u8>, kind in 0_u8..5) {
            let framed = [&[VERSION, kind][..], &[0; 8], &bytes].concat();
            for frame in [&bytes, &framed] {
                let _ = (Question::decode(frame), Answer::decode(frame));
            }
        }

        #[test]
        fn a_changed_byte_harms_nobody(which in 0_usize..9, at: prop::sample::Index, byte: u8) {
            let mut frame = frames().swap_remove(which);
            let at = at.index(frame.len());
            frame[at] = byte;
            let _ = (Question::decode(&frame), Answer::decode(&frame));
        }
    }
}
