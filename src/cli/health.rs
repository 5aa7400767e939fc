//! `health`: whether a node serves, as an exit code.

use std::time::Duration;

use super::address::Address;
use super::client::Client;
use super::failure::Failure;
use super::output::print;

/// A node that is not quicker than this is not healthy.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// What `health` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 healthy, 1 not healthy or no answer within 2 seconds, 2 wrong usage.\n\n\
    In a container `HEALTHCHECK CMD [\"evenkv\", \"health\"]` is enough: it finds its node by the same LISTEN \
    and ADDRESS that the node was started with."
)]
pub struct HealthArgs {
    /// The node to ask; unset: the one that runs here with this environment's LISTEN or ADDRESS, or 127.0.0.1:13800
    #[arg(long, value_name = "HOST:PORT", env = "EVENKV_NODE")]
    node: Option<String>,
    /// Ask only whether the process is alive (/livez), not whether it is ready to serve (/readyz)
    #[arg(long)]
    live: bool,
    #[arg(long, env = "LISTEN", hide = true)]
    listen: Option<String>,
    #[arg(long, env = "ADDRESS", hide = true)]
    address: Option<String>,
}

impl HealthArgs {
    fn chosen_node(&self) -> Result<Address, String> {
        match self.node.as_deref() {
            Some(node) if !node.is_empty() => Address::parse(node),
            _ => Address::of_own_node(self.listen.as_deref(), self.address.as_deref()),
        }
    }

    fn path(&self) -> &'static str {
        if self.live { "/livez" } else { "/readyz" }
    }
}

/// True if the node says that it is ready, or alive; false if it says anything else, or nothing in time.
pub(super) fn health(args: &HealthArgs) -> Result<bool, Failure> {
    let node = args.chosen_node().map_err(Failure::Usage)?;
    match Client::new(&node, 1, HEALTH_TIMEOUT).and_then(|client| client.get(args.path())) {
        Ok(answer) if answer.status == 200 => {
            print(if args.live { b"alive" } else { b"ready" })?;
            Ok(true)
        }
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.body);
            eprintln!("evenkv: the node answered {}: {}", answer.status, said.trim_end());
            Ok(false)
        }
        // A health check has no third exit code: a node that cannot be asked is not healthy.
        Err(failure) => {
            eprintln!("evenkv: {failure}{}", failure.advice());
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HealthArgs;

    #[test]
    fn the_node_is_the_named_one_or_the_own_one() {
        for (node, listen, address, expected) in [
            (Some("node2"), Some("0.0.0.0:9000"), None, "node2:13800"),
            (Some(""), Some("0.0.0.0:9000"), None, "127.0.0.1:9000"),
            (None, None, Some("10.10.0.4:13805"), "127.0.0.1:13805"),
            (None, None, None, "127.0.0.1:13800"),
        ] {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let args =
                HealthArgs { node: owned(node), live: false, listen: owned(listen), address: owned(address) };
            assert_eq!(args.chosen_node().unwrap().to_string(), expected);
        }
    }
}
