//! The settings of a node: read once, checked as a whole, handed on as values.

use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::model::address::{Address, DEFAULT_PORT};
use crate::model::limits::{LONGEST_KEY, LONGEST_LOGGED_VALUE, LONGEST_VALUE, Limits};
use crate::model::view::{MOST_REPLICAS, View};

/// A named write is remembered for so many times as long as a request takes at most,
const REMEMBERED_REQUESTS: u32 = 10;
/// and for this long at least.
const REMEMBERED_AT_LEAST: Duration = Duration::from_secs(50);

/// The settings as they were given: each a flag and an environment variable of the same name, the flag
/// wins, and an empty one counts as unset.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Settings of the node")]
pub struct Settings {
    /// This node's own host:port as the other nodes reach it (port 13800 if left out)
    #[arg(long, env = "ADDRESS", value_name = "HOST:PORT", hide_env_values = true)]
    pub address: Option<String>,
    /// Where to listen; unset: 0.0.0.0 with the port of ADDRESS, or ADDRESS itself where its host is loopback
    #[arg(long, env = "LISTEN", value_name = "HOST:PORT", hide_env_values = true)]
    pub listen: Option<String>,
    /// Makes this node a follower: it holds no data and passes everything on to this main node
    #[arg(long, env = "FORWARDING_ADDRESS", value_name = "HOST:PORT", hide_env_values = true)]
    pub forwarding_address: Option<String>,
    /// Comma-separated addresses of all nodes of the first view, or, where ADDRESS is none of them, of nodes to
    /// find the cluster by
    #[arg(long, env = "VIEW", value_name = "HOST:PORT,..", hide_env_values = true)]
    pub view: Option<String>,
    /// Replicas per shard (default 1); the number of nodes must be a multiple of it
    #[arg(long, env = "REPL_FACTOR", value_name = "NUMBER", hide_env_values = true)]
    pub repl_factor: Option<String>,
    /// Longest key, in bytes (default 1024)
    #[arg(long, env = "MAX_KEY_LENGTH", value_name = "BYTES", hide_env_values = true)]
    pub max_key_length: Option<String>,
    /// Longest value, in bytes of JSON text (default 8388608)
    #[arg(long, env = "MAX_VALUE_LENGTH", value_name = "BYTES", hide_env_values = true)]
    pub max_value_length: Option<String>,
    /// Every key request is answered within this time after it has come in wholly (default 5000)
    #[arg(long, env = "REQUEST_TIMEOUT_MS", value_name = "MS", hide_env_values = true)]
    pub request_timeout_ms: Option<String>,
    /// Threads for clients' small requests (default 16)
    #[arg(long, env = "CLIENT_WORKERS", value_name = "NUMBER", hide_env_values = true)]
    pub client_workers: Option<String>,
    /// Threads for small requests that another node passed on (default 16)
    #[arg(long, env = "FORWARDED_WORKERS", value_name = "NUMBER", hide_env_values = true)]
    pub forwarded_workers: Option<String>,
    /// Threads for bodies over 1 KiB and answers over 64 KiB, as many again for those passed on (default 8)
    #[arg(long, env = "LARGE_WORKERS", value_name = "NUMBER", hide_env_values = true)]
    pub large_workers: Option<String>,
    /// Threads for view changes, as many again for the pairs that are moved (default 4)
    #[arg(long, env = "CONTROL_WORKERS", value_name = "NUMBER", hide_env_values = true)]
    pub control_workers: Option<String>,
    /// What nodes of one cluster prove to each other that they belong to it; unset: they answer loopback and private
    /// addresses only
    #[arg(long, env = "CLUSTER_SECRET", value_name = "TEXT", hide_env_values = true)]
    pub cluster_secret: Option<String>,
    /// Threads for /livez, /readyz and /metrics (default 2)
    #[arg(long, env = "HEALTH_WORKERS", value_name = "NUMBER", hide_env_values = true)]
    pub health_workers: Option<String>,
    /// Requests that may wait for the threads of one lane; further ones are answered 503 (default 1024)
    #[arg(long, env = "QUEUE_LENGTH", value_name = "NUMBER", hide_env_values = true)]
    pub queue_length: Option<String>,
    /// Requests that one connection may have sent ahead; one that sends more is cut off (default 128)
    #[arg(long, env = "PIPELINE_DEPTH", value_name = "NUMBER", hide_env_values = true)]
    pub pipeline_depth: Option<String>,
    /// Bytes that a shard may take to remember named writes (Idempotency-Key); further names are answered 503 (default 67108864)
    #[arg(long, env = "RETRY_MEMORY", value_name = "BYTES", hide_env_values = true)]
    pub retry_memory: Option<String>,
    /// Bytes of large bodies and answers held at one time; further ones are answered 503 (default 134217728)
    #[arg(long, env = "LARGE_MEMORY", value_name = "BYTES", hide_env_values = true)]
    pub large_memory: Option<String>,
    /// A connection on which nothing has come for this time is closed (default 20000)
    #[arg(long, env = "IDLE_TIMEOUT_MS", value_name = "MS", hide_env_values = true)]
    pub idle_timeout_ms: Option<String>,
}

/// What a node is by its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A node alone, main of whatever followers point to it.
    Single,
    /// Holds nothing and passes everything on to its main.
    Follower {
        /// The main's address.
        main: Address,
    },
    /// A node of the first view.
    Member {
        /// The first view.
        view: View,
    },
    /// A node that looks for a cluster at these addresses and triggers nothing.
    Passive {
        /// Where to look.
        seeds: Vec<Address>,
    },
}

/// The checked settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's identity; where ADDRESS is unset, loopback with the port it listens on.
    pub address: Address,
    /// Whether ADDRESS is set.
    pub has_address: bool,
    /// What proves that a node belongs to the cluster.
    pub secret: Option<String>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What the node is.
    pub role: Role,
    /// What keys and values may be, as far as the node's cluster does not say otherwise.
    pub limits: Limits,
    /// Every key request is answered within this time after it has come in wholly.
    pub request_timeout: Duration,
    /// Bytes that a shard may take to remember named writes; further names are refused.
    pub retry_memory: usize,
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
        let address = address("ADDRESS", self.address.as_deref())?;
        let listen = listen(self.listen.as_deref(), address.as_ref())?;
        let role = self.role(address.as_ref())?;
        let unset = Limits::default();
        let (key, value) = (self.max_key_length.as_ref(), self.max_value_length.as_ref());
        let limits = Limits {
            max_key_length: number("MAX_KEY_LENGTH", key, unset.max_key_length, 1..=LONGEST_KEY)?,
            max_value_length: number("MAX_VALUE_LENGTH", value, unset.max_value_length, 1..=LONGEST_VALUE)?,
        };
        let max_value_length = limits.max_value_length;
        let large_memory = number("LARGE_MEMORY", self.large_memory.as_ref(), 128 << 20, 1 << 20..=1 << 40)?;
        if large_memory < limits.memory() {
            return Err(format!(
                "LARGE_MEMORY is {large_memory} and MAX_VALUE_LENGTH {max_value_length}: \
                 allowed is a LARGE_MEMORY of at least {}, twice MAX_VALUE_LENGTH",
                limits.memory()
            ));
        }
        if let Role::Member { view } = &role
            && view.repl_factor > 1
            && max_value_length > LONGEST_LOGGED_VALUE
        {
            return Err(format!(
                "MAX_VALUE_LENGTH is {max_value_length} and REPL_FACTOR {}: allowed is a MAX_VALUE_LENGTH of up to {LONGEST_LOGGED_VALUE} with several replicas",
                view.repl_factor
            ));
        }
        let secret = given(self.cluster_secret.as_deref());
        if let Some(secret) = secret.filter(|secret| !secret.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(format!(
                "CLUSTER_SECRET has {} bytes that cannot be in a header: allowed are printable ASCII characters without blanks",
                secret.len()
            ));
        }
        Ok(Config {
            has_address: address.is_some(),
            secret: secret.map(str::to_owned),
            address: address.unwrap_or_else(|| local_name(listen)),
            listen,
            role,
            limits,
            request_timeout: millis(number(
                "REQUEST_TIMEOUT_MS",
                self.request_timeout_ms.as_ref(),
                5000,
                10..=600_000,
            )?),
            // All of it may go along with one range, as one entry of a log.
            retry_memory: number("RETRY_MEMORY", self.retry_memory.as_ref(), 64 << 20, 65_536..=100 << 20)?,
            server: ServerLimits {
                client_workers: number("CLIENT_WORKERS", self.client_workers.as_ref(), 16, 1..=1024)?,
                forwarded_workers: number(
                    "FORWARDED_WORKERS",
                    self.forwarded_workers.as_ref(),
                    16,
                    1..=1024,
                )?,
                large_workers: number("LARGE_WORKERS", self.large_workers.as_ref(), 8, 1..=1024)?,
                control_workers: number("CONTROL_WORKERS", self.control_workers.as_ref(), 4, 2..=256)?,
                health_workers: number("HEALTH_WORKERS", self.health_workers.as_ref(), 2, 1..=64)?,
                queue_length: number("QUEUE_LENGTH", self.queue_length.as_ref(), 1024, 1..=1_000_000)?,
                pipeline_depth: number("PIPELINE_DEPTH", self.pipeline_depth.as_ref(), 128, 1..=100_000)?,
                large_memory,
                idle_timeout: millis(number(
                    "IDLE_TIMEOUT_MS",
                    self.idle_timeout_ms.as_ref(),
                    20_000,
                    1000..=3_600_000,
                )?),
            },
        })
    }

    fn role(&self, own: Option<&Address>) -> Result<Role, String> {
        let (view, factor) = (given(self.view.as_deref()), given(self.repl_factor.as_deref()));
        if let Some(main) = address("FORWARDING_ADDRESS", self.forwarding_address.as_deref())? {
            if view.is_some() || factor.is_some() {
                return Err("FORWARDING_ADDRESS makes this node a follower, which has no view: \
                            unset VIEW and REPL_FACTOR, or unset FORWARDING_ADDRESS"
                    .to_owned());
            }
            if own == Some(&main) {
                return Err(format!(
                    "FORWARDING_ADDRESS is this node's own ADDRESS {main}: allowed is the address of another node, the main"
                ));
            }
            return Ok(Role::Follower { main });
        }
        let factor: usize = number("REPL_FACTOR", self.repl_factor.as_ref(), 1, 1..=MOST_REPLICAS)?;
        let nodes = match (view, own) {
            (None, _) => vec![own.cloned().unwrap_or_else(|| "127.0.0.1".parse().expect("an address"))],
            (Some(_), None) => {
                return Err(
                    "VIEW needs ADDRESS: set ADDRESS to this node's own host:port as the others reach it, \
                            one of VIEW to belong to it"
                        .to_owned(),
                );
            }
            (Some(list), Some(_)) => Address::parse_list(list).map_err(|error| format!("VIEW: {error}"))?,
        };
        if let Some(own) = own.filter(|own| !nodes.contains(own)) {
            log::debug!("{own} is not in VIEW: passive");
            return Ok(Role::Passive { seeds: nodes });
        }
        let view = View::first(&nodes, factor).map_err(|error| format!("VIEW and REPL_FACTOR: {error}"))?;
        Ok(if nodes.len() == 1 { Role::Single } else { Role::Member { view } })
    }
}

/// A setting that is there and not empty.
fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn address(name: &str, text: Option<&str>) -> Result<Option<Address>, String> {
    given(text).map(|text| text.parse().map_err(|error| format!("{name}: {error}"))).transpose()
}

fn number<T>(name: &str, text: Option<&String>, default: T, allowed: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    let Some(text) = given(text.map(String::as_str)) else { return Ok(default) };
    text.parse().ok().filter(|value| allowed.contains(value)).ok_or_else(|| {
        format!("{name} is '{text}': allowed is a whole number from {} to {}", allowed.start(), allowed.end())
    })
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn listen(text: Option<&str>, own: Option<&Address>) -> Result<SocketAddr, String> {
    let everywhere = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let wanted = match (address("LISTEN", text)?, own) {
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

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in pairs {
            let field = match *name {
                "ADDRESS" => &mut settings.address,
                "LISTEN" => &mut settings.listen,
                "FORWARDING_ADDRESS" => &mut settings.forwarding_address,
                "VIEW" => &mut settings.view,
                "REPL_FACTOR" => &mut settings.repl_factor,
                "MAX_KEY_LENGTH" => &mut settings.max_key_length,
                other => panic!("no setting {other}"),
            };
            *field = Some((*value).to_owned());
        }
        settings
    }

    #[test]
    fn the_role_follows_from_the_settings() {
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str);
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
            (&[("VIEW", "n1,n2")], "error"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,n2"), ("REPL_FACTOR", "2")], "Member"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,n2,n3"), ("REPL_FACTOR", "2")], "error"),
            (&[("REPL_FACTOR", "2")], "error"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,N1:13800")], "error"),
            (&[("ADDRESS", "n1"), ("VIEW", "n1,,n2")], "error"),
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
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
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
