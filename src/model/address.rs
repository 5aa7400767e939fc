//! The identity of a node.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of an address that names none, and the one a node listens on by default.
pub const DEFAULT_PORT: u16 = 13800;

/// The most nodes of a view: a longer list is refused before anything is done about it.
pub const MOST_NODES: usize = 1024;

/// A node's identity: `host:port` as the other nodes reach it.
///
/// The host is in lower case and the port is always written. Two addresses are the same node exactly when
/// the strings are equal; names are never resolved to compare.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    text: String,
    port_at: usize,
}

impl Address {
    /// The address as `host:port`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host, an IPv6 literal without its brackets.
    pub fn host(&self) -> &str {
        self.text[..self.port_at].trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.text[self.port_at + 1..].parse().expect("an address ends in a port")
    }

    /// Whether the host is this machine by its very name: `localhost` or a loopback literal.
    pub fn is_loopback(&self) -> bool {
        self.host() == "localhost" || self.host().parse().is_ok_and(is_loopback)
    }

    /// Parses a comma-separated list such as `VIEW`; blanks around an address are ignored.
    ///
    /// # Errors
    /// The first address that is malformed or stands there twice; [`AddressError::TooMany`] before one is looked at.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, AddressError> {
        let count = list.split(',').count();
        if count > MOST_NODES {
            return Err(AddressError::TooMany(count));
        }
        let addresses = list.split(',').map(str::parse).collect::<Result<Vec<Self>, _>>()?;
        match first_repeated(&addresses) {
            Some(address) => Err(AddressError::Repeated(address.clone())),
            None => Ok(addresses),
        }
    }
}

/// The first address that stood in a list before.
pub(super) fn first_repeated(addresses: &[Address]) -> Option<&Address> {
    let mut seen = HashSet::with_capacity(addresses.len());
    addresses.iter().find(|address| !seen.insert(*address))
}

/// Why a text is no address, or a list no list of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressError {
    /// The text is not `host` or `host:port`.
    Malformed(String),
    /// The host is a number, or ends in one, and is no IPv4 literal: a resolver may take it for one all the same.
    NoIpv4(String),
    /// The node is named twice in one list.
    Repeated(Address),
    /// So many addresses are more than a view can have.
    TooMany(usize),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => write!(
                f,
                "'{text}' is not an address: allowed is host:port, where the host is a name or an IP literal \
                 (IPv6 in brackets) and the port is 1 to 65535, {DEFAULT_PORT} if left out"
            ),
            Self::NoIpv4(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => write!(
                f,
                "'{text}' is not an address: allowed is host:port, so write host:{text} to mean a port; \
                 where to listen, the host 0.0.0.0 means every interface"
            ),
            Self::NoIpv4(text) => write!(
                f,
                "'{text}' is not an address: allowed is host:port, where a host that ends in a number is an IPv4 literal \
                 of four numbers from 0 to 255, as in 10.0.0.4:{DEFAULT_PORT}"
            ),
            Self::Repeated(address) => write!(f, "{address} is named twice: each node may be named once"),
            Self::TooMany(count) => {
                write!(f, "{count} addresses are named: allowed are {MOST_NODES} nodes at most")
            }
        }
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed(text.trim().to_owned());
        let text = text.trim().to_ascii_lowercase();
        let host_end = if text.starts_with('[') {
            text.find(']').ok_or_else(malformed)? + 1
        } else {
            text.find(':').unwrap_or(text.len())
        };
        let (host, rest) = text.split_at(host_end);
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => DEFAULT_PORT,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port > 0).ok_or_else(malformed)?
            }
            _ => return Err(malformed()),
        };
        if !is_host(host) {
            return Err(malformed());
        }
        if is_misread(host) {
            return Err(AddressError::NoIpv4(text));
        }
        Ok(Self { text: format!("{host}:{port}"), port_at: host.len() })
    }
}

fn is_host(host: &str) -> bool {
    if let Some(literal) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return literal.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Whether a host may be read as an IPv4 address although it is no literal of one: resolvers take `21001` for 0.0.82.9, and no name ends
/// in a number (the URL standard, "ends in a number").
pub fn is_misread(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let (digits, radix) = last.strip_prefix("0x").map_or((last, 10), |digits| (digits, 16));
    let is_number = digits.chars().all(|digit| digit.is_digit(radix)) && !last.is_empty();
    // The id of a container may be all digits: with so many it is a name.
    let is_address = host.contains('.') || digits.is_empty() || u32::from_str_radix(digits, radix).is_ok();
    is_number && is_address && host.parse::<Ipv4Addr>().is_err()
}

/// Whether an address is this machine's own, also one of IPv4 in the form of IPv6.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.text
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised_and_others_refused() {
        let table = [
            ("Node1:13801", Some("node1:13801")),
            ("10.10.0.4", Some("10.10.0.4:13800")),
            (" [::1]:9 ", Some("[::1]:9")),
            ("[::1]", Some("[::1]:13800")),
            ("a_b.c-d:65535", Some("a_b.c-d:65535")),
            ("", None),
            (":1", None),
            ("a:", None),
            ("a:0", None),
            ("a:65536", None),
            ("a:+1", None),
            ("a:1:2", None),
            ("::1", None),
            ("[::1", None),
            ("[a]:1", None),
            ("a b:1", None),
            ("http://a:1", None),
            ("127.0.0.1.", None),
            ("999.1.1.1:80", None),
            ("1.2.3:80", None),
            ("1.2.3.4.5", None),
            ("10.0.0.04", None),
            ("21001", None),
            ("21001:80", None),
            ("0x7f000001", None),
            ("0x", None),
            ("a.1", None),
            ("a.0x1f", None),
            ("a1:80", Some("a1:80")),
            ("1a.b2:80", Some("1a.b2:80")),
            ("583726194028:80", Some("583726194028:80")),
        ];
        for (text, wanted) in table {
            let got = text.parse::<Address>().ok();
            assert_eq!(got.as_ref().map(Address::as_str), wanted, "{text:?}");
        }
    }

    #[test]
    fn the_parts_of_an_address_are_found() {
        let address: Address = "[::1]:9".parse().unwrap();
        assert_eq!((address.host(), address.port(), address.is_loopback()), ("::1", 9, true));
        let address: Address = "10.10.0.4".parse().unwrap();
        assert_eq!((address.host(), address.port(), address.is_loopback()), ("10.10.0.4", 13800, false));
    }

    #[test]
    fn a_list_names_each_node_once() {
        assert_eq!(Address::parse_list("a:1, b:2").unwrap().len(), 2);
        assert!(matches!(Address::parse_list("a:1,A:1"), Err(AddressError::Repeated(_))));
        assert!(matches!(Address::parse_list("a:1,,b:2"), Err(AddressError::Malformed(_))));
        let many = |count: usize| vec!["a:1"; count].join(",");
        assert!(matches!(Address::parse_list(&many(MOST_NODES)), Err(AddressError::Repeated(_))));
        assert_eq!(Address::parse_list(&many(MOST_NODES + 1)), Err(AddressError::TooMany(MOST_NODES + 1)));
    }
}
