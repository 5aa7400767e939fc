//! The systems that are measured, and how each is asked: a pair put in or read, many put in at once, whether a server is ready, and who leads.

use std::iter::repeat_n;

use serde_json::Value;

use crate::wrk::{BATCH_LINES, KEYS, Kind};

/// Length of the values in bytes.
pub(crate) const VALUE_LENGTH: usize = 100;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// Ours.
    Evenkv,
    /// etcd 3.4 through its JSON gateway, in which keys and values are in base64 and every request is a POST.
    Etcd,
    /// Redis through webdis, in which a command stands in the path or the body, with slashes between its words.
    Redis,
}

/// A request as HTTP has it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    /// Empty where the request has no body.
    pub(crate) body: String,
}

/// Whom a server takes for the leader, and what the same answer calls that server itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Belief {
    pub(crate) own: String,
    pub(crate) leader: String,
}

impl Request {
    pub(crate) fn new(method: &'static str, path: &str, body: &str) -> Self {
        Self { method, path: path.to_owned(), body: body.to_owned() }
    }
}

impl System {
    /// What it is called in what is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Evenkv => "evenkv",
            Self::Etcd => "etcd",
            Self::Redis => "Redis",
        }
    }

    /// Puts in or reads a pair: a key of 16 digits, a value of 100 bytes. Reads are linearizable in both systems, as
    /// nothing else is asked for.
    pub(crate) fn request(self, kind: Kind, number: u64) -> Request {
        let (key, value) = (format!("{number:016}"), "v".repeat(VALUE_LENGTH));
        let coded = |text: &str| base64(text.as_bytes());
        // Batch after batch has other keys, far from each other.
        let batch_key = |line: u32| {
            let key = (number * u64::from(BATCH_LINES) + u64::from(line)) * 7919 % KEYS;
            format!("{key:016}")
        };
        match (self, kind) {
            (Self::Evenkv, Kind::Get) => Request::new("GET", &format!("/kv-store/keys/{key}"), ""),
            (Self::Evenkv, Kind::Put) => {
                Request::new("PUT", &format!("/kv-store/keys/{key}"), &format!("{{\"value\":\"{value}\"}}"))
            }
            (Self::Evenkv, Kind::Batch) => {
                let line = |line: u32| {
                    let key = batch_key(line);
                    format!("{{\"op\":\"put\",\"key\":\"{key}\",\"value\":\"{value}\"}}\n")
                };
                Request::new("POST", "/v1/batch", &(0..BATCH_LINES).map(line).collect::<String>())
            }
            (Self::Etcd, Kind::Batch) => {
                let put = |line: u32| {
                    let (key, value) = (coded(&batch_key(line)), coded(&value));
                    format!("{{\"request_put\":{{\"key\":\"{key}\",\"value\":\"{value}\"}}}}")
                };
                let puts = (0..BATCH_LINES).map(put).collect::<Vec<_>>().join(",");
                Request::new("POST", "/v3/kv/txn", &format!("{{\"success\":[{puts}]}}"))
            }
            (Self::Redis, Kind::Get) => Request::new("GET", &format!("/GET/{key}"), ""),
            (Self::Redis, Kind::Put) => Request::new("PUT", &format!("/SET/{key}"), &value),
            (Self::Redis, Kind::Batch) => {
                let pair = |line: u32| format!("/{}/{value}", batch_key(line));
                Request::new("POST", "/", &format!("MSET{}", (0..BATCH_LINES).map(pair).collect::<String>()))
            }
            (Self::Etcd, Kind::Get) => {
                Request::new("POST", "/v3/kv/range", &format!("{{\"key\":\"{}\"}}", coded(&key)))
            }
            (Self::Etcd, Kind::Put) => {
                let body = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", coded(&key), coded(&value));
                Request::new("POST", "/v3/kv/put", &body)
            }
        }
    }

    /// Whether an answer to a read has the value: etcd answers 200 where there is none, too.
    pub(crate) fn has_value(self, answer: &[u8]) -> bool {
        let sign: &[u8] = match self {
            Self::Evenkv => b"\"doesExist\":true",
            Self::Etcd => b"\"count\":\"1\"",
            Self::Redis => b"\"GET\":\"",
        };
        answer.windows(sign.len()).any(|part| part == sign)
    }

    /// A GET of this is answered 200 when a server does its part.
    pub(crate) fn ready_path(self) -> &'static str {
        match self {
            Self::Evenkv => "/readyz",
            Self::Etcd => "/health",
            Self::Redis => "/PING",
        }
    }

    /// Asks a server for the leader. Redis has none here: one server is alone.
    pub(crate) fn leader_request(self) -> Request {
        match self {
            Self::Evenkv => Request::new("GET", "/kv-store/view", ""),
            Self::Etcd => Request::new("POST", "/v3/maintenance/status", "{}"),
            Self::Redis => unreachable!("a server that is alone is not asked who leads"),
        }
    }

    /// Reads the answer of the server at this address to [`Self::leader_request`]; nothing where it knows no leader.
    pub(crate) fn belief(self, address: &str, answer: &[u8]) -> Option<Belief> {
        let answer: Value = serde_json::from_slice(answer).ok()?;
        let text = |pointer: &str| Some(answer.pointer(pointer)?.as_str()?.to_owned());
        match self {
            Self::Evenkv => Some(Belief { own: address.to_owned(), leader: text("/shards/0/leader")? }),
            Self::Etcd => Some(Belief { own: text("/header/member_id")?, leader: text("/leader")? }),
            Self::Redis => None,
        }
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3)
            .fold(0_usize, |bits, place| bits << 8 | usize::from(group.get(place).copied().unwrap_or(0)));
        let digits = (0..=group.len()).map(|place| char::from(ALPHABET[bits >> (18 - 6 * place) & 63]));
        text.extend(digits.chain(repeat_n('=', 3 - group.len())));
    }
    text
}
