//! `health`: whether a node serves, as an exit code.

use std::time::Duration;

use super::address::Address;
use super::answer::{FormArgs, ask};
use super::failure::Failure;
use super::seconds::seconds;

/// What `health` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 healthy, 1 not healthy or no answer in time, 2 wrong usage.\n\n\
    In a container `HEALTHCHECK CMD [\"evenkv\", \"health\"]` is enough: it finds its node by the same LISTEN \
    and ADDRESS that the node was started with.")]
pub struct HealthArgs {
    /// The node to ask; unset: the one that runs here with this environment's LISTEN or ADDRESS, or 127.0.0.1:13800
    #[arg(long, value_name = "HOST:PORT", env = "EVENKV_NODE")]
    node: Option<String>,
    /// Ask only whether the process is alive (/livez), not whether it is ready to serve (/readyz)
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    form: FormArgs,
    /// A node that has not answered within this time is not healthy
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    timeout: Duration,
    #[arg(long, env = "LISTEN", hide = true)]
    listen: Option<String>,
    #[arg(long, env = "ADDRESS", hide = true)]
    address: Option<String>,
}

impl HealthArgs {
    fn path(&self) -> &'static str {
        if self.live { "/livez" } else { "/readyz" }
    }
}

fn chosen_node(node: Option<&str>, listen: Option<&str>, address: Option<&str>) -> Result<Address, String> {
    match node {
        Some(node) if !node.is_empty() => Address::parse(node),
        _ => Address::of_own_node(listen, address),
    }
}

/// True if the node says that it is ready, or alive; false if it says anything else, or nothing in time.
pub(super) fn health(args: &HealthArgs) -> Result<bool, Failure> {
    let node = chosen_node(args.node.as_deref(), args.listen.as_deref(), args.address.as_deref());
    let node = node.map_err(Failure::Usage)?;
    let form = args.form.form();
    match ask(&node, args.timeout, |client| client.get(args.path())) {
        Ok(answer) if answer.status == 200 => {
            form.show(&answer)?;
            form.say(if args.live { "alive" } else { "ready" })?;
            Ok(true)
        }
        Ok(answer) => {
            form.show(&answer)?;
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
    use super::chosen_node;

    #[test]
    fn the_node_is_the_named_one_or_the_own_one() {
        for (node, listen, address, expected) in [
            (Some("node2"), Some("0.0.0.0:9000"), None, "node2:13800"),
            (Some(""), Some("0.0.0.0:9000"), None, "127.0.0.1:9000"),
            (None, None, Some("10.10.0.4:13805"), "127.0.0.1:13805"),
            (None, None, None, "127.0.0.1:13800"),
        ] {
            assert_eq!(chosen_node(node, listen, address).unwrap().to_string(), expected);
        }
    }
}
