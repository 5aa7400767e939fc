//! `count`: the pairs of every shard, and their sum.

use serde::Deserialize;

use super::address::NodeArgs;
use super::client::{Client, EXCHANGE_TIMEOUT};
use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::output::{print, table};

/// What `count` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct CountArgs {
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Deserialize)]
struct Shards {
    shards: Vec<String>,
}

#[derive(Deserialize)]
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
    let client = Client::new(&args.node.node, 1, EXCHANGE_TIMEOUT)?;
    let listed = client.get("/kv-store/shards")?;
    let ids = listed.parse::<Shards>()?.shards;
    if ids.is_empty() {
        return Err(Failure::Local("the node knows no cluster yet, so there is nothing to count".to_owned()));
    }
    let shards = ids
        .iter()
        .map(|id| client.get(&format!("/kv-store/shards/{id}"))?.parse::<Shard>())
        .collect::<Result<Vec<Shard>, Failure>>()?;
    print(rendered(&shards).as_bytes())?;
    match shards.iter().find(|shard| shard.key_count.is_none()) {
        Some(silent) => {
            Err(Failure::Local(format!("no node of shard {} was reached to be counted", silent.id)))
        }
        None => Ok(true),
    }
}

fn rendered(shards: &[Shard]) -> String {
    let shown = |count: Option<u64>| count.map_or("unknown".to_owned(), |count| count.to_string());
    let mut rows = vec![["shard", "keys", "nodes"].map(str::to_owned).to_vec()];
    for shard in shards {
        rows.push(vec![shard.id.clone(), shown(shard.key_count), shard.replicas.join(" ")]);
    }
    let total = shards.iter().map(|shard| shard.key_count).sum();
    rows.push(vec!["total".to_owned(), shown(total)]);
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
