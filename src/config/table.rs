//! All settings: for each, what it is for, what it is where it is unset, and what is allowed. Flag, variable, help and check
//! come from here.

use std::path::PathBuf;

use super::setting::{Declared, Number, Text, declare};
use crate::logging::{DEFAULT_LEVEL, Filter};
use crate::model::address::{Address, AddressError};
use crate::model::limits::{BatchLimits, LONGEST_KEY, LONGEST_VALUE, Limits};
use crate::model::view::MOST_REPLICAS;

declare! {
    ADDRESS: Text<Address> {
        value: "HOST:PORT",
        help: "This node's own host:port as the other nodes reach it (port 13800 if left out)",
        unset: "",
        read: address,
    }
    LISTEN: Text<Address> {
        value: "HOST:PORT",
        help: "Where to listen",
        unset: "0.0.0.0 with the port of ADDRESS, or ADDRESS itself where its host is loopback",
        read: address,
    }
    FORWARDING_ADDRESS: Text<Address> {
        value: "HOST:PORT",
        help: "Makes this node a follower: it holds no data and passes everything on to this main node",
        unset: "",
        read: address,
    }
    VIEW: Text<Vec<Address>> {
        value: "HOST:PORT,..",
        help: "Comma-separated addresses of all nodes of the first view, or, where ADDRESS is none of them, of nodes to find the cluster by",
        unset: "",
        read: addresses,
    }
    REPL_FACTOR: Number<usize> {
        value: "NUMBER",
        help: "Replicas per shard; the number of nodes must be a multiple of it",
        default: 1,
        allowed: 1..=MOST_REPLICAS,
    }
    CLUSTER_SECRET: Text<String> {
        value: "TEXT",
        help: "What nodes of one cluster prove to each other that they belong to it",
        unset: "they answer loopback and private addresses only",
        read: secret,
    }
    AUTH_TOKENS_FILE: Text<PathBuf> {
        value: "FILE",
        help: "Who may ask for what: a line for each token, <sha256 in hex> <monitor|read|write|admin> [prefix]; read again on SIGHUP",
        unset: "whoever reaches this node may do everything",
        read: path,
    }
    MAX_KEY_LENGTH: Number<usize> {
        value: "BYTES",
        help: "Longest key",
        default: Limits::UNSET.max_key_length,
        allowed: 1..=LONGEST_KEY,
    }
    MAX_VALUE_LENGTH: Number<usize> {
        value: "BYTES",
        help: "Longest value, as JSON text",
        default: Limits::UNSET.max_value_length,
        allowed: 1..=LONGEST_VALUE,
    }
    MAX_BATCH_LINES: Number<usize> {
        value: "NUMBER",
        help: "Most lines of one request to /v1/batch",
        default: BatchLimits::UNSET.items,
        allowed: 1..=1_000_000,
    }
    MAX_BATCH_LENGTH: Number<usize> {
        value: "BYTES",
        help: "Longest body of one request to /v1/batch",
        default: BatchLimits::UNSET.bytes,
        allowed: 1024..=256 << 20,
    }
    REQUEST_TIMEOUT_MS: Number<u64> {
        value: "MS",
        help: "Every key request is answered within this time after it has come in wholly",
        default: 5000,
        allowed: 10..=600_000,
    }
    RETRY_MEMORY: Number<usize> {
        value: "BYTES",
        help: "Memory of a shard for named writes (Idempotency-Key); further names are answered 503",
        default: 64 << 20,
        // All of it may go along with one range, as one entry of a log.
        allowed: 65_536..=100 << 20,
    }
    WATCH_HISTORY: Number<usize> {
        value: "BYTES",
        help: "What a replica of a shard keeps of what was done last, once somebody watches: who was away for longer has to list anew",
        default: 8 << 20,
        allowed: 65_536..=64 << 20,
    }
    LARGE_MEMORY: Number<usize> {
        value: "BYTES",
        help: "Memory for large bodies and answers; further ones are answered 503",
        default: 128 << 20,
        allowed: 1 << 20..=1 << 40,
    }
    MAX_MEMORY: Text<u64> {
        value: "BYTES",
        help: "What the node may hold: pairs, index, log, history and buffers; at the bound writes that would grow are answered 507",
        unset: "as much as there is",
        read: bytes,
    }
    DATA_DIR: Text<PathBuf> {
        value: "FOLDER",
        help: "Where the node keeps what it holds, so that what is acknowledged survives the end of its process: a folder of its own on a local disk",
        unset: "in memory only",
        read: path,
    }
    CLIENT_WORKERS: Number<usize> {
        value: "NUMBER",
        help: "Threads for clients' small requests",
        default: 16,
        allowed: 1..=1024,
    }
    FORWARDED_WORKERS: Number<usize> {
        value: "NUMBER",
        help: "Threads for small requests that another node passed on",
        default: 16,
        allowed: 1..=1024,
    }
    LARGE_WORKERS: Number<usize> {
        value: "NUMBER",
        help: "Threads for bodies over 1 KiB and answers over 64 KiB, as many again for those passed on",
        default: 8,
        allowed: 1..=1024,
    }
    CONTROL_WORKERS: Number<usize> {
        value: "NUMBER",
        help: "Threads for view changes, as many again for the pairs that are moved",
        default: 4,
        allowed: 2..=256,
    }
    HEALTH_WORKERS: Number<usize> {
        value: "NUMBER",
        help: "Threads for /livez, /readyz and /metrics",
        default: 2,
        allowed: 1..=64,
    }
    QUEUE_LENGTH: Number<usize> {
        value: "NUMBER",
        help: "Requests that may wait for the threads of one lane; further ones are answered 503",
        default: 1024,
        allowed: 1..=1_000_000,
    }
    PIPELINE_DEPTH: Number<usize> {
        value: "NUMBER",
        help: "Requests that one connection may have sent ahead; one that sends more is cut off",
        default: 128,
        allowed: 1..=100_000,
    }
    IDLE_TIMEOUT_MS: Number<u64> {
        value: "MS",
        help: "A connection on which nothing has come for this time is closed",
        default: 75_000,
        allowed: 1000..=3_600_000,
    }
    RUST_LOG: Text<Filter> {
        value: "LEVELS",
        help: "What is logged: error, warn, info, debug, trace or off, also for parts of the program, as in info,evenkv::http=debug",
        unset: DEFAULT_LEVEL,
        read: str::parse,
    }
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: AddressError| error.to_string())
}

fn addresses(list: &str) -> Result<Vec<Address>, String> {
    Address::parse_list(list).map_err(|error| error.to_string())
}

#[expect(clippy::unnecessary_wraps, reason = "all settings are read by functions of one type")]
fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

fn bytes(text: &str) -> Result<u64, String> {
    let most = 1 << 50;
    let number = text.parse().ok().filter(|bytes| (1..=most).contains(bytes));
    number.ok_or_else(|| format!("'{text}': allowed is a whole number of bytes up to {most}"))
}

fn secret(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    // It is not repeated here: logs are read by others, too.
    Err(format!(
        "some of its {} bytes cannot be in a header: allowed are printable ASCII characters without blanks",
        text.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_names_settings_and_defaults_as_they_are() {
        let documentation = include_str!("../../docs/API.md");
        let mut named = 0;
        for row in documentation.lines().filter_map(|line| line.strip_prefix("| `")) {
            let Some((name, rest)) = row.split_once("` | ") else { continue };
            if !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
                continue;
            }
            let setting = ALL.iter().find(|setting| setting.name() == name);
            let setting = setting.unwrap_or_else(|| panic!("{name} is no setting"));
            if let Some((_, default)) = setting.help().split_once("(default ") {
                let (default, _) = default.split_once(',').unwrap();
                let said = rest.rsplit('|').nth(1).unwrap_or_default();
                assert!(
                    said.split_ascii_whitespace().next() == Some(default),
                    "{name}: {default} and {said}"
                );
            }
            named += 1;
        }
        assert!(named >= 10, "only {named} settings are in the table");
    }
}
