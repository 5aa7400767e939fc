//! The settings, checked as a whole.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::given::Settings;
use super::role::Role;
use super::table::{
    ADDRESS, AUTH_TOKENS_FILE, CLIENT_WORKERS, CLUSTER_SECRET, CONTROL_WORKERS, DATA_DIR, FORWARDED_WORKERS,
    HEALTH_WORKERS, IDLE_TIMEOUT_MS, LARGE_MEMORY, LARGE_WORKERS, LISTEN, MAX_BATCH_LENGTH, MAX_BATCH_LINES,
    MAX_KEY_LENGTH, MAX_MEMORY, MAX_VALUE_LENGTH, PIPELINE_DEPTH, QUEUE_LENGTH, REQUEST_TIMEOUT_MS,
    RETRY_MEMORY, RUST_LOG, WATCH_HISTORY,
};
use crate::access::{self, Tokens};
use crate::logging::Filter;
use crate::model::address::{Address, DEFAULT_PORT};
use crate::model::limits::{BatchLimits, LONGEST_LOGGED_VALUE, Limits};
use crate::model::room;

/// A named write is remembered for so many times as long as a request takes at most,
const REMEMBERED_REQUESTS: u32 = 10;
/// and for this long at least.
const REMEMBERED_AT_LEAST: Duration = Duration::from_secs(50);

/// The checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's identity; where ADDRESS is unset, loopback with the port it listens on.
    pub address: Address,
    /// Whether ADDRESS is set.
    pub has_address: bool,
    /// What proves that a node belongs to the cluster.
    pub secret: Option<String>,
    /// Who may ask for what, where that is said: the file, and what was in it.
    pub tokens: Option<(PathBuf, Arc<Tokens>)>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What the node is.
    pub role: Role,
    /// What keys and values may be, as far as the node's cluster does not say otherwise.
    pub limits: Limits,
    /// What one request with many operations may have.
    pub batch_limits: BatchLimits,
    /// Every key request is answered within this time after it has come in wholly.
    pub request_timeout: Duration,
    /// Bytes that a shard may take to remember named writes; further names are refused.
    pub retry_memory: usize,
    /// Bytes that a replica of a shard keeps of what was done last.
    pub watch_history: usize,
    /// The folder in which it keeps what it holds, if it does.
    pub data_dir: Option<PathBuf>,
    /// What the node may hold, in bytes, if that is bounded.
    pub max_memory: Option<u64>,
    /// What is logged.
    pub log: Filter,
    /// The server's pools and queues.
    pub server: ServerLimits,
}

impl Config {
    /// For so many milliseconds a named write is remembered: its client may send it again for longer than it waits for one answer.
    pub fn remembered_ms(&self) -> u64 {
        let long = (self.request_timeout * REMEMBERED_REQUESTS).max(REMEMBERED_AT_LEAST);
        u64::try_from(long.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Sizes of the server's pools, queues and buffers.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Threads of the client (or proxy) lane.
    pub client_workers: usize,
    /// Threads of the forwarded lane.
    pub forwarded_workers: usize,
    /// Threads of each lane for large bodies and answers.
    pub large_workers: usize,
    /// Threads of the control lane, and of the transfer lane.
    pub control_workers: usize,
    /// Threads of the health lane.
    pub health_workers: usize,
    /// Requests that may wait in one lane.
    pub queue_length: usize,
    /// Requests that one connection may have sent ahead.
    pub pipeline_depth: usize,
    /// Bytes of large bodies and answers held at one time.
    pub large_memory: usize,
    /// A read or an idle connection ends after this time without a byte.
    pub idle_timeout: Duration,
}

impl Settings {
    /// Checks the settings as a whole.
    ///
    /// # Errors
    /// A sentence that names the wrong setting and says what is allowed.
    pub fn check(&self) -> Result<Config, String> {
        let address = self.text(&ADDRESS)?;
        let listen = listen(self.text(&LISTEN)?, address.as_ref())?;
        let role = self.role(address.as_ref(), listen)?;
        let limits = Limits {
            max_key_length: self.number(&MAX_KEY_LENGTH)?,
            max_value_length: self.number(&MAX_VALUE_LENGTH)?,
        };
        let mut server = self.server_limits()?;
        check_memory(limits, server.large_memory, &role)?;
        let data_dir = self.data_dir(&role, limits)?;
        let secret = self.text(&CLUSTER_SECRET)?;
        let tokens = self.tokens(&role, secret.is_some())?;
        let max_memory = self.text(&MAX_MEMORY)?;
        let batch_limits =
            BatchLimits { items: self.number(&MAX_BATCH_LINES)?, bytes: self.number(&MAX_BATCH_LENGTH)? };
        let buffers = limits.memory().max(batch_limits.bytes);
        check_bound(max_memory, buffers)?;
        server.large_memory = room::share(max_memory, server.large_memory, buffers);
        Ok(Config {
            has_address: address.is_some(),
            secret,
            tokens,
            address: address.unwrap_or_else(|| local_name(listen)),
            listen,
            data_dir,
            role,
            limits,
            batch_limits,
            request_timeout: Duration::from_millis(self.number(&REQUEST_TIMEOUT_MS)?),
            retry_memory: room::share(max_memory, self.number(&RETRY_MEMORY)?, 0),
            watch_history: room::share(max_memory, self.number(&WATCH_HISTORY)?, 0),
            max_memory,
            log: self.text(&RUST_LOG)?.unwrap_or_default(),
            server,
        })
    }

    /// The tokens, where there are some. Whoever reaches a node of a cluster without a secret could pass for another node, who needs none.
    fn tokens(&self, role: &Role, has_secret: bool) -> Result<Option<(PathBuf, Arc<Tokens>)>, String> {
        let Some(path) = self.text(&AUTH_TOKENS_FILE)? else { return Ok(None) };
        if matches!(role, Role::Member { .. } | Role::Passive { .. }) && !has_secret {
            return Err(
                "AUTH_TOKENS_FILE is set and CLUSTER_SECRET is not: set the same CLUSTER_SECRET on all nodes, or whoever passes for a node needs no token"
                    .to_owned(),
            );
        }
        let tokens = access::load(&path).map_err(|error| format!("AUTH_TOKENS_FILE: {error}"))?;
        Ok(Some((path, Arc::new(tokens))))
    }

    fn data_dir(&self, role: &Role, limits: Limits) -> Result<Option<PathBuf>, String> {
        let path = self.text(&DATA_DIR)?;
        match role {
            Role::Follower { .. } if path.is_some() => {
                Err("DATA_DIR is set, and so is FORWARDING_ADDRESS: a follower holds nothing that could be kept, so set one of them".to_owned())
            }
            _ if path.is_some() && limits.max_value_length > LONGEST_LOGGED_VALUE => Err(format!(
                "MAX_VALUE_LENGTH is {} and DATA_DIR is set: allowed is a MAX_VALUE_LENGTH of up to {LONGEST_LOGGED_VALUE} with it",
                limits.max_value_length
            )),
            _ => Ok(path),
        }
    }

    fn server_limits(&self) -> Result<ServerLimits, String> {
        Ok(ServerLimits {
            client_workers: self.number(&CLIENT_WORKERS)?,
            forwarded_workers: self.number(&FORWARDED_WORKERS)?,
            large_workers: self.number(&LARGE_WORKERS)?,
            control_workers: self.number(&CONTROL_WORKERS)?,
            health_workers: self.number(&HEALTH_WORKERS)?,
            queue_length: self.number(&QUEUE_LENGTH)?,
            pipeline_depth: self.number(&PIPELINE_DEPTH)?,
            large_memory: self.number(&LARGE_MEMORY)?,
            idle_timeout: Duration::from_millis(self.number(&IDLE_TIMEOUT_MS)?),
        })
    }
}

/// Checks that the longest values fit into memory, and into a log where there is one.
fn check_memory(limits: Limits, large_memory: usize, role: &Role) -> Result<(), String> {
    let max_value_length = limits.max_value_length;
    if large_memory < limits.memory() {
        return Err(format!(
            "LARGE_MEMORY is {large_memory} and MAX_VALUE_LENGTH {max_value_length}: \
             allowed is a LARGE_MEMORY of at least {}, twice MAX_VALUE_LENGTH",
            limits.memory()
        ));
    }
    match role {
        Role::Member { view } if view.repl_factor > 1 && max_value_length > LONGEST_LOGGED_VALUE => {
            Err(format!(
                "MAX_VALUE_LENGTH is {max_value_length} and REPL_FACTOR {}: allowed is a MAX_VALUE_LENGTH of up to {LONGEST_LOGGED_VALUE} with several replicas",
                view.repl_factor
            ))
        }
        _ => Ok(()),
    }
}

/// Checks that a node can do with what it may hold.
fn check_bound(max_memory: Option<u64>, buffers: usize) -> Result<(), String> {
    let Some(bound) = max_memory else { return Ok(()) };
    let least = room::least_bound(buffers);
    if bound < least {
        return Err(format!(
            "MAX_MEMORY is {bound}, and a node without pairs needs {least} where its longest value and batch may be as long as \
             MAX_VALUE_LENGTH and MAX_BATCH_LENGTH say: allowed is at least so much, or less with lower ones of these"
        ));
    }
    Ok(())
}

fn listen(given: Option<Address>, own: Option<&Address>) -> Result<SocketAddr, String> {
    let everywhere = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let wanted = match (given, own) {
        (Some(listen), _) => listen,
        (None, Some(own)) if own.is_loopback() => own.clone(),
        (None, own) => return Ok(everywhere(own.map_or(DEFAULT_PORT, Address::port))),
    };
    let found = (wanted.host(), wanted.port()).to_socket_addrs();
    let first =
        found.map_err(|error| format!("LISTEN: the name of {wanted} is not known here ({error})"))?.next();
    first.ok_or_else(|| format!("LISTEN: the name of {wanted} stands for no address"))
}

/// The identity of a node that was given none: how a client on the same machine reaches it.
fn local_name(listen: SocketAddr) -> Address {
    let text = if listen.ip().is_unspecified() {
        format!("127.0.0.1:{}", listen.port())
    } else {
        listen.to_string()
    };
    text.parse().expect("a socket address is an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&'static str, &str)]) -> Settings {
        pairs.iter().copied().collect()
    }

    #[test]
    fn the_role_follows_from_the_settings() {
        type Row<'a> = (&'a [(&'static str, &'a str)], &'a str);
        let table: &[Row] = &[
            (&[], "Single"),
            (&[("VIEW", ""), ("ADDRESS", " ")], "Single"),
            (&[("ADDRESS", "n1:1")], "Single"),
            (&[("ADDRESS", "n1:1"), ("VIEW", "N1:1")], "Single"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1:13800,n2")], "Member"),
            (&[("ADDRESS", "n3"), ("VIEW", "n1,n2")], "Passive"),
            (&[("FORWARDING_ADDRESS", "n1")], "Follower"),
            (&[("FORWARDING_ADDRESS", "n1"), ("VIEW", "n1")], "error"),
            (&[("FORWARDING_ADDRESS", "n1"), ("REPL_FACTOR", "1")], "error"),
            (&[("FORWARDING_ADDRESS", "N1"), ("ADDRESS", "n1:13800")], "error"),
            (&[("FORWARDING_ADDRESS", "localhost:7"), ("ADDRESS", "127.0.0.1:7")], "error"),
            (&[("FORWARDING_ADDRESS", "[::1]:7"), ("ADDRESS", "127.0.0.2:7")], "error"),
            (&[("FORWARDING_ADDRESS", "[::ffff:127.0.0.1]:7"), ("ADDRESS", "localhost:7")], "error"),
            (&[("FORWARDING_ADDRESS", "localhost:7"), ("ADDRESS", "n1:7")], "error"),
            (&[("FORWARDING_ADDRESS", "localhost:8"), ("ADDRESS", "n1:7"), ("LISTEN", "[::]:8")], "error"),
            (&[("FORWARDING_ADDRESS", "127.0.0.1")], "error"),
            (&[("FORWARDING_ADDRESS", "localhost:8"), ("ADDRESS", "localhost:7")], "Follower"),
            (&[("FORWARDING_ADDRESS", "n1:7"), ("ADDRESS", "localhost:7")], "Follower"),
            (
                &[("FORWARDING_ADDRESS", "localhost:7"), ("ADDRESS", "n1:7"), ("LISTEN", "0.0.0.0:8")],
                "Follower",
            ),
            (&[("VIEW", "n1,n2")], "error"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,n2"), ("REPL_FACTOR", "2")], "Member"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,n2,n3"), ("REPL_FACTOR", "2")], "error"),
            (&[("REPL_FACTOR", "2")], "error"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,N1:13800")], "error"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,,n2")], "error"),
            (&[("DATA_DIR", "kept")], "Single"),
            (&[("DATA_DIR", "kept"), ("FORWARDING_ADDRESS", "n1")], "error"),
            (&[("DATA_DIR", "kept"), ("MAX_VALUE_LENGTH", "60000000")], "error"),
            (&[("MAX_KEY_LENGTH", "0")], "error"),
            (&[("MAX_KEY_LENGTH", "-1")], "error"),
            (&[("MAX_KEY_LENGTH", "50")], "Single"),
        ];
        for (pairs, wanted) in table {
            let got = match settings(pairs).check() {
                Ok(config) => format!("{:?}", config.role),
                Err(_) => "error".to_owned(),
            };
            assert!(got.starts_with(wanted), "{pairs:?}: {got}");
        }
    }

    #[test]
    fn where_a_node_listens_follows_from_its_address() {
        type Row<'a> = (&'a [(&'static str, &'a str)], &'a str, &'a str);
        let table: &[Row] = &[
            (&[], "0.0.0.0:13800", "127.0.0.1:13800"),
            (&[("ADDRESS", "n1:7")], "0.0.0.0:7", "n1:7"),
            (&[("ADDRESS", "127.0.0.1:7")], "127.0.0.1:7", "127.0.0.1:7"),
            (&[("ADDRESS", "n1:7"), ("LISTEN", "127.0.0.1:8")], "127.0.0.1:8", "n1:7"),
            (&[("LISTEN", "127.0.0.1")], "127.0.0.1:13800", "127.0.0.1:13800"),
        ];
        for (pairs, listen, address) in table {
            let config = settings(pairs).check().unwrap();
            assert_eq!((config.listen.to_string().as_str(), config.address.as_str()), (*listen, *address));
        }
    }
}
