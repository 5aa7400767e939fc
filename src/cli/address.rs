//! Addresses of nodes as people write them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::model::address::is_misread;

/// The port of a node whose address names none.
const DEFAULT_PORT: u16 = 13800;

/// Host and port of a node. The host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The node on this machine with the default port.
    pub(super) fn local() -> Address {
        Address { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT }
    }

    /// Reads `host`, `host:port` or `http://host:port/`. The error says what is allowed.
    pub(super) fn parse(text: &str) -> Result<Address, String> {
        let wrong =
            |what: &str| Err(format!("{what} in {text:?}: an address is host:port, as 127.0.0.1:13800"));
        let bare = text.strip_prefix("http://").unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        if bare.contains("://") {
            return wrong("a node speaks plain HTTP; another scheme");
        }
        let (host, port) = match bare.rfind(']') {
            Some(end) => bare.split_at(end + 1),
            None => bare.split_at(bare.find(':').unwrap_or(bare.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(digits) => match digits.parse() {
                Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => port,
                _ => return wrong("a port that is no number from 1 to 65535, or an IPv6 address without []"),
            },
            None if port.is_empty() => DEFAULT_PORT,
            None => return wrong("something else than a port after the host"),
        };
        if host.is_empty() {
            return wrong("no host");
        }
        let is_bracketed = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .is_some_and(|h| h.parse::<Ipv6Addr>().is_ok());
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !is_bracketed && !is_name {
            return wrong("a host that is neither a name nor an IP address");
        }
        let host = host.to_ascii_lowercase();
        if is_misread(&host) {
            return wrong("a host that ends in a number and is no IPv4 address");
        }
        Ok(Address { host, port })
    }

    /// As [`Address::parse`]; an empty text, which is what an empty environment variable gives, is the local node.
    pub(super) fn parse_or_local(text: &str) -> Result<Address, String> {
        if text.is_empty() { Ok(Address::local()) } else { Address::parse(text) }
    }

    /// Where a process on the same machine reaches the node that runs with these values of `LISTEN` and `ADDRESS`.
    pub(super) fn of_own_node(listen: Option<&str>, address: Option<&str>) -> Result<Address, String> {
        let set = |value: Option<&str>| value.filter(|text| !text.is_empty()).map(str::to_owned);
        if let Some(listen) = set(listen) {
            // `:13800` is a common way to write all interfaces.
            let listen = if listen.starts_with(':') { format!("0.0.0.0{listen}") } else { listen };
            let listen = Address::parse(&listen)?;
            let everywhere = listen.ip().is_some_and(|ip| ip.is_unspecified());
            return Ok(if everywhere { Address { port: listen.port, ..Address::local() } } else { listen });
        }
        if let Some(address) = set(address) {
            let address = Address::parse(&address)?;
            // Without LISTEN a node listens on all interfaces, or on ADDRESS itself where that is loopback.
            let loopback = address.host == "localhost" || address.ip().is_some_and(|ip| ip.is_loopback());
            return Ok(if loopback { address } else { Address { port: address.port, ..Address::local() } });
        }
        Ok(Address::local())
    }

    /// The host as the resolver wants it: an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.host, self.port)
    }
}

/// The option that every subcommand but `health` has.
#[derive(Debug, clap::Args)]
pub(super) struct NodeArgs {
    /// The node to ask: any node of a cluster answers for all of it
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "EVENKV_NODE",
        default_value = "127.0.0.1:13800",
        value_parser = Address::parse_or_local
    )]
    pub(super) node: Address,
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn an_address_is_host_and_port() {
        for (text, expected) in [
            ("127.0.0.1:13801", "127.0.0.1:13801"),
            ("node1", "node1:13800"),
            ("Node1.Example:80", "node1.example:80"),
            ("http://node_1:13801/", "node_1:13801"),
            ("[::1]:13801", "[::1]:13801"),
            ("[::1]", "[::1]:13800"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), expected, "{text}");
        }
        for (text, reason) in [
            ("", "no host"),
            (":13800", "no host"),
            ("node1:", "no number"),
            ("node1:0", "no number"),
            ("node1:+80", "no number"),
            ("node1:70000", "no number"),
            ("::1", "without []"),
            ("fe80::1", "without []"),
            ("[nonsense]:80", "neither a name"),
            ("[::1]80", "something else"),
            ("https://node1", "plain HTTP"),
            ("node1/path:80", "neither a name"),
            ("user@node1:80", "neither a name"),
            ("13801", "no IPv4"),
            ("999.1.1.1:80", "no IPv4"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(Address::parse_or_local("").unwrap(), Address::local());
    }

    #[test]
    fn the_own_node_is_found_by_its_settings() {
        for (listen, address, expected) in [
            (None, None, "127.0.0.1:13800"),
            (Some(""), Some(""), "127.0.0.1:13800"),
            (None, Some("10.10.0.4:13800"), "127.0.0.1:13800"),
            (None, Some("node1:13805"), "127.0.0.1:13805"),
            (None, Some("127.0.0.5:13805"), "127.0.0.5:13805"),
            (None, Some("localhost:13805"), "localhost:13805"),
            (Some("0.0.0.0:9000"), Some("10.10.0.4:13800"), "127.0.0.1:9000"),
            (Some(":9000"), None, "127.0.0.1:9000"),
            (Some("[::]:9000"), None, "127.0.0.1:9000"),
            (Some("10.10.0.4:9000"), Some("node1:13800"), "10.10.0.4:9000"),
        ] {
            let found = Address::of_own_node(listen, address).unwrap().to_string();
            assert_eq!(found, expected, "LISTEN={listen:?} ADDRESS={address:?}");
        }
        assert!(Address::of_own_node(Some("a:b"), None).is_err());
    }
}
