//! `view-change`: another set of nodes, or the same one made even again.
//!
//! The change belongs to the cluster, not to this program: it is asked for, and from then on only watched.

mod follow;
mod progress;
mod receipt;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::address::{Address, NodeArgs};
use super::answer::{AnswerArgs, ask};
use super::client::{Answer, Client};
use super::failure::Failure;
use super::interrupts::interrupts;
use follow::{End, Watcher, follow};
use progress::Progress;
use receipt::{Plan, Receipt};

/// Where a view change is asked for, followed and cancelled.
const PATH: &str = "/kv-store/view-change";

/// What `view-change` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The named nodes are all that the cluster has afterwards. The same nodes once more make their shards exactly even.
Clients are served meanwhile. Ctrl-C ends this program and leaves the change running. A change takes as long as it
takes: --timeout is for a node that does not say how far it is.

Examples:
  evenkv view-change --dry-run node1,node2,node3,node4
  evenkv view-change node1,node2,node3,node4
  evenkv view-change node1,node2,node3,node4 --max-value-length 16777216
  evenkv view-change --status

Exit codes: 0 the change is finished (planned, cancelled), 1 it is not, 2 wrong usage, 3 any other error.")]
pub struct ViewChangeArgs {
    /// All nodes of the new view, by the addresses that they have among themselves
    #[arg(
        value_name = "NODE,NODE,..",
        value_delimiter = ',',
        value_parser = Address::parse,
        required_unless_present_any = ["status", "cancel"],
        conflicts_with_all = ["status", "cancel"]
    )]
    nodes: Vec<Address>,
    /// Replicas per shard; unset: as many as now
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["status", "cancel"])]
    repl_factor: Option<u32>,
    /// Longest key that the cluster is to take, in bytes; it is never lowered
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["status", "cancel"])]
    max_key_length: Option<u64>,
    /// Longest value, likewise
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["status", "cancel"])]
    max_value_length: Option<u64>,
    /// Print what would be moved, and change nothing
    #[arg(long, conflicts_with_all = ["status", "cancel"])]
    dry_run: bool,
    /// Give up the pairs of these shards, whose nodes are gone for good
    #[arg(long, value_name = "SHARD,SHARD,..", value_delimiter = ',', conflicts_with_all = ["status", "cancel"])]
    accept_loss: Vec<String>,
    /// Follow the change that is running, or print what became of the last one
    #[arg(long, conflicts_with = "cancel")]
    status: bool,
    /// Cancel the change that is running, which can be done until something was handed over
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// The body of the request.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Wanted {
    view: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repl_factor: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accept_loss: Vec<String>,
}

/// The limits that are to be raised.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_key_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_value_length: Option<u64>,
}

/// The body of the answer to a change that was accepted or cancelled.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Named {
    change_id: String,
}

/// Plans, makes, follows or cancels a view change; false if the change did not finish.
pub(super) fn view_change(args: &ViewChangeArgs) -> Result<bool, Failure> {
    let form = args.answer.form();
    let asking = |asking: &dyn Fn(&Client) -> Result<Answer, Failure>| {
        ask(&args.node.node, args.answer.timeout, asking)
    };
    if args.status {
        return watch(args, None);
    }
    if args.cancel {
        let cancelled = asking(&|client| client.delete(PATH))?;
        form.show(&cancelled)?;
        let id = cancelled.parse::<Named>()?.change_id;
        return form.say(&format!("cancelled the view change {id}")).map(|()| true);
    }
    let body = body(args)?;
    if args.dry_run {
        let planned = asking(&|client| client.put(PATH, body.clone(), None)).map_err(Failure::of_question)?;
        form.show(&planned)?;
        return form.say(&planned.parse::<Plan>()?.rendered()).map(|()| true);
    }
    let answer = asking(&|client| client.put(PATH, body.clone(), Some(("prefer", "respond-async"))))?;
    if answer.status == 202 {
        return watch(args, Some(&answer.read::<Named>()?.change_id));
    }
    // It has waited for the end, as a node may, or refuses.
    form.show(&answer)?;
    form.say(&answer.parse::<Receipt>()?.rendered()).map(|()| true)
}

fn body(args: &ViewChangeArgs) -> Result<Vec<u8>, Failure> {
    let limits = Limits { max_key_length: args.max_key_length, max_value_length: args.max_value_length };
    let are_named = limits.max_key_length.or(limits.max_value_length).is_some();
    let wanted = Wanted {
        view: args.nodes.iter().map(ToString::to_string).collect(),
        repl_factor: args.repl_factor,
        limits: are_named.then_some(limits),
        dry_run: args.dry_run,
        accept_loss: args.accept_loss.clone(),
    };
    serde_json::to_vec(&wanted)
        .map_err(|error| Failure::Local(format!("the request cannot be formed: {error}")))
}

/// Follows the change to its end and prints what came of it; false if that is not the wanted end.
fn watch(args: &ViewChangeArgs, change: Option<&str>) -> Result<bool, Failure> {
    let (node, form) = (&args.node.node, args.answer.form());
    let mut progress = Progress::new();
    if let Some(id) = change {
        progress.say(&format!("view change {id}"));
    }
    let client = Client::new(node, 1, args.answer.timeout)?;
    let followed = follow(&client, change, &interrupts(), &mut progress);
    progress.clear();
    let followed = followed.inspect_err(|failure| {
        if matches!(failure, Failure::Unreachable { .. } | Failure::Late { .. }) {
            eprintln!(
                "evenkv: the node that was asked is gone; whether the change goes on, any other node says:\n  \
                 evenkv view-change --status --node HOST:PORT"
            );
        }
    })?;
    if let Some(answer) = followed.answer {
        form.show(&answer)?;
    }
    match followed.end {
        End::Finished(receipt) => form.say(&receipt.rendered()).map(|()| true),
        End::Otherwise(text) => {
            eprintln!("evenkv: {text}");
            Ok(false)
        }
        End::Interrupted => {
            eprintln!(
                "evenkv: the change goes on without this program. Follow it with\n  \
                 evenkv view-change --status --node {node}\nor cancel it with\n  \
                 evenkv view-change --cancel --node {node}"
            );
            Ok(false)
        }
    }
}
