//! `count`: the pairs of every shard, and their sum.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, Form, ask};
use super::client::{Answer, Client};
use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::output::{figure, heading, print, table};

/// What `count` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct CountArgs {
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Deserialize)]
struct Shards {
    shards: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Shard {
    #[serde(rename = "shard-id")]
    id: String,
    /// Null where no node of the shard was reached.
    #[serde(rename = "key-count")]
    key_count: Option<u64>,
    #[serde(default)]
    replicas: Vec<String>,
}

/// Prints a line per shard and the total; a shard that nobody answers for makes the total unknown.
pub(super) fn count(args: &CountArgs) -> Result<bool, Failure> {
    let form = args.answer.form();
    let shards = match ask(&args.node.node, args.answer.timeout, asked)? {
        Ok(shards) => shards,
        Err(refused) => {
            form.show(&refused)?;
            return Err(refused.refusal());
        }
    };
    if shards.is_empty() {
        return Err(Failure::Local("the node knows no cluster yet, so there is nothing to count".to_owned()));
    }
    match form {
        Form::Words => print(rendered(&shards).as_bytes())?,
        Form::Json => print(json!({ "shards": shards, "key-count": total(&shards) }).to_string().as_bytes())?,
    }
    match shards.iter().find(|shard| shard.key_count.is_none()) {
        Some(silent) => {
            Err(Failure::Local(format!("no node of shard {} was reached to be counted", silent.id)))
        }
        None => Ok(true),
    }
}

/// All shards, counted one after the other, or the first answer that is no 200.
fn asked(client: &Client) -> Result<Result<Vec<Shard>, Answer>, Failure> {
    let listed = client.get("/kv-store/shards")?;
    if listed.status != 200 {
        return Ok(Err(listed));
    }
    let mut shards = Vec::new();
    for id in listed.parse::<Shards>()?.shards {
        let counted = client.get(&format!("/kv-store/shards/{id}"))?;
        if counted.status != 200 {
            return Ok(Err(counted));
        }
        shards.push(counted.parse()?);
    }
    Ok(Ok(shards))
}

fn total(shards: &[Shard]) -> Option<u64> {
    shards.iter().map(|shard| shard.key_count).sum()
}

fn rendered(shards: &[Shard]) -> String {
    let mut rows = vec![heading(&["shard", "keys", "nodes"])];
    for shard in shards {
        rows.push(vec![shard.id.clone(), figure(shard.key_count), shard.replicas.join(" ")]);
    }
    rows.push(vec!["total".to_owned(), figure(total(shards))]);
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::{Shard, rendered};

    fn shard(id: &str, key_count: Option<u64>) -> Shard {
        Shard { id: id.to_owned(), key_count, replicas: vec![format!("node{id}:13800")] }
    }

    #[test]
    fn the_total_is_the_sum_where_all_are_known() {
        let expected = "shard  keys  nodes\n1      1200  node1:13800\n2      34    node2:13800\ntotal  1234";
        assert_eq!(rendered(&[shard("1", Some(1200)), shard("2", Some(34))]), expected);
        let expected =
            "shard  keys     nodes\n1      7        node1:13800\n2      unknown  node2:13800\ntotal  unknown";
        assert_eq!(rendered(&[shard("1", Some(7)), shard("2", None)]), expected);
        assert_eq!(rendered(&[]), "shard  keys  nodes\ntotal  0");
    }
}
