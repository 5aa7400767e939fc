//! `status`: how everything is, what is wrong first.

use serde::Deserialize;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, ask};
use super::failure::Failure;
use super::output::{figure, heading, table};

/// What `status` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What is wrong comes first, each with what to do about it; then the nodes, the shards, the view change that runs, and \
    what the last ones came to.\n\n\
    Exit codes: 0 nothing is wrong, 1 something is, 2 wrong usage, 3 any other error."
)]
pub struct StatusArgs {
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    address: String,
    role: String,
    problems: Vec<Problem>,
    epoch: Option<u64>,
    repl_factor: Option<u64>,
    nodes: Vec<Node>,
    shards: Vec<Shard>,
    change: Option<Change>,
    receipts: Vec<Receipt>,
}

#[derive(Deserialize)]
struct Problem {
    what: String,
    #[serde(rename = "do")]
    advice: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    address: String,
    role: String,
    reachable: bool,
    ready: Option<bool>,
    version: Option<String>,
    pairs: Option<u64>,
    requests_per_second: Option<f64>,
    memory: Option<Memory>,
}

#[derive(Deserialize)]
struct Memory {
    used: u64,
    bound: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Shard {
    #[serde(rename = "shard-id")]
    id: String,
    leader: Option<String>,
    key_count: Option<u64>,
    lost: bool,
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    address: String,
    behind: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Change {
    #[serde(rename = "change-id")]
    id: String,
    phase: Option<String>,
    #[serde(default)]
    moved: u64,
    #[serde(default)]
    total: u64,
}

#[derive(Deserialize)]
struct Receipt {
    epoch: u64,
    ended: Option<String>,
    seconds: Option<f64>,
    keys: u64,
    moved: u64,
    minimum: u64,
}

/// Prints how everything is; whether nothing is wrong.
pub(super) fn status(args: &StatusArgs) -> Result<bool, Failure> {
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.get("/v1/status"))?;
    args.answer.form().show(&answer)?;
    let status: Status = answer.parse()?;
    args.answer.form().say(&rendered(&status))?;
    Ok(status.problems.is_empty())
}

fn rendered(status: &Status) -> String {
    let known =
        |name: &str, value: Option<u64>| value.map(|value| format!(", {name} {value}")).unwrap_or_default();
    let facts = format!(
        "{} ({}){}{}",
        status.address,
        status.role,
        known("epoch", status.epoch),
        known("replication factor", status.repl_factor)
    );
    let problems =
        status.problems.iter().map(|one| format!("PROBLEM: {}\n  to do: {}", one.what, one.advice));
    let well = status.problems.is_empty().then(|| "nothing is wrong".to_owned());
    let mut parts: Vec<String> = problems.chain(well).collect();
    parts.push(facts);
    parts.push(nodes(&status.nodes));
    if !status.shards.is_empty() {
        parts.push(shards(&status.shards));
    }
    if let Some(Change { id, phase, moved, total }) = &status.change {
        let phase = phase.as_deref().unwrap_or("unknown");
        parts.push(format!("view change {id}: {phase}, {moved} of {total} pairs moved"));
    }
    if !status.receipts.is_empty() {
        parts.push(receipts(&status.receipts));
    }
    parts.join("\n")
}

fn nodes(nodes: &[Node]) -> String {
    let mut rows =
        vec![heading(&["node", "role", "state", "version", "pairs", "requests/s", "memory", "bound"])];
    for node in nodes {
        let state = match (node.reachable, node.ready) {
            (false, _) => "not reached",
            (true, Some(true)) => "ready",
            (true, Some(false)) => "not ready",
            (true, None) => "unknown",
        };
        let rate = node.requests_per_second.map_or("unknown".to_owned(), |rate| format!("{rate:.1}"));
        let bound = node.memory.as_ref().and_then(|memory| memory.bound);
        rows.push(vec![
            node.address.clone(),
            node.role.clone(),
            state.to_owned(),
            node.version.clone().unwrap_or_else(|| "unknown".to_owned()),
            figure(node.pairs),
            rate,
            figure(node.memory.as_ref().map(|memory| memory.used)),
            bound.map_or("-".to_owned(), |bound| bound.to_string()),
        ]);
    }
    table(&rows)
}

fn shards(shards: &[Shard]) -> String {
    let mut rows = vec![heading(&["shard", "keys", "leader", "replicas (entries behind)"])];
    for shard in shards {
        let replica = |one: &Replica| match one.behind {
            Some(0) => one.address.clone(),
            Some(behind) => format!("{} ({behind})", one.address),
            None => format!("{} (unknown)", one.address),
        };
        let replicas = shard.replicas.iter().map(replica).collect::<Vec<_>>().join(" ");
        let keys = if shard.lost { "lost".to_owned() } else { figure(shard.key_count) };
        let leader = shard.leader.clone().unwrap_or_else(|| "-".to_owned());
        rows.push(vec![shard.id.clone(), keys, leader, replicas]);
    }
    table(&rows)
}

fn receipts(receipts: &[Receipt]) -> String {
    let mut rows = vec![heading(&["epoch", "ended", "seconds", "keys", "moved", "minimum"])];
    for one in receipts {
        rows.push(vec![
            one.epoch.to_string(),
            one.ended.clone().unwrap_or_else(|| "unknown".to_owned()),
            one.seconds.map_or("unknown".to_owned(), |seconds| format!("{seconds:.3}")),
            one.keys.to_string(),
            one.moved.to_string(),
            one.minimum.to_string(),
        ]);
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::{Status, rendered};

    #[test]
    fn problems_come_first_and_what_is_not_told_is_unknown() {
        let status: Status = serde_json::from_str(
            r#"{"address":"a:1","role":"member","problems":[{"kind":"node-not-reached","what":"b:1 is not reached","do":"start it","nodes":["b:1"],"shards":[]}],
                "cluster-id":"c","epoch":4,"repl-factor":2,"nodes":[
                {"address":"a:1","role":"member","reachable":true,"ready":true,"version":"1.2.3","pairs":7,"requests-per-second":2.5,"memory":{"used":9,"resident":10,"bound":null}},
                {"address":"b:1","role":"member","reachable":false,"ready":null,"version":null,"pairs":null,"requests-per-second":null,"memory":null}],
                "shards":[{"shard-id":"1","leader":"a:1","key-count":7,"lost":false,"replicas":[{"address":"a:1","behind":0},{"address":"b:1","behind":12}]}],
                "change":{"change-id":"ff","phase":"moving","moved":3,"total":5},
                "receipts":[{"epoch":4,"ended":null,"seconds":null,"keys":7,"moved":2,"minimum":2}]}"#,
        )
        .unwrap();
        let expected = "PROBLEM: b:1 is not reached\n  to do: start it\n\
            a:1 (member), epoch 4, replication factor 2\n\
            node  role    state        version  pairs    requests/s  memory   bound\n\
            a:1   member  ready        1.2.3    7        2.5         9        -\n\
            b:1   member  not reached  unknown  unknown  unknown     unknown  -\n\
            shard  keys  leader  replicas (entries behind)\n\
            1      7     a:1     a:1 b:1 (12)\n\
            view change ff: moving, 3 of 5 pairs moved\n\
            epoch  ended    seconds  keys  moved  minimum\n\
            4      unknown  unknown  7     2      2";
        assert_eq!(rendered(&status), expected);
    }

    #[test]
    fn a_node_without_a_cluster_is_shown() {
        let text = r#"{"address":"a:1","role":"passive","problems":[],"nodes":[],"shards":[],"change":null,"receipts":[]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert!(rendered(&status).starts_with("nothing is wrong\na:1 (passive)\n"));
    }
}
