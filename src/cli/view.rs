//! `view`: which shard owns what, and where.

use serde::Deserialize;

use super::address::NodeArgs;
use super::client::{Client, EXCHANGE_TIMEOUT};
use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::output::{print, table};

/// What `view` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct ViewArgs {
    /// Print the node's answer as it is, with every range of the hash space
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct View {
    epoch: u64,
    #[serde(default)]
    cluster_id: Option<String>,
    #[serde(default)]
    repl_factor: Option<u64>,
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Shard {
    #[serde(rename = "shard-id")]
    id: String,
    #[serde(default)]
    key_count: Option<u64>,
    #[serde(default)]
    replicas: Vec<String>,
    #[serde(default)]
    leader: Option<String>,
    #[serde(default)]
    ranges: Vec<Range>,
}

/// A half-open piece of the hash space, 128 bits as hex digits. `to` wraps around at the end of the space.
#[derive(Deserialize)]
struct Range {
    from: String,
    to: String,
}

/// Prints a line per shard under the facts of the whole view.
pub(super) fn view(args: &ViewArgs) -> Result<bool, Failure> {
    let answer = Client::new(&args.node.node, 1, EXCHANGE_TIMEOUT)?.get("/kv-store/view")?;
    let view: View = answer.parse()?;
    if args.json {
        print(&answer.body)?;
    } else {
        print(rendered(&view).as_bytes())?;
    }
    Ok(true)
}

fn rendered(view: &View) -> String {
    let cluster = view.cluster_id.as_ref().map(|id| format!(", cluster {id}")).unwrap_or_default();
    let factor = view.repl_factor.map(|factor| format!(", replication factor {factor}")).unwrap_or_default();
    let facts = format!("epoch {}{cluster}{factor}", view.epoch);
    let mut rows =
        vec![["shard", "keys", "leader", "ranges", "of the hashes", "nodes"].map(str::to_owned).to_vec()];
    for shard in &view.shards {
        rows.push(vec![
            shard.id.clone(),
            shard.key_count.map_or("unknown".to_owned(), |count| count.to_string()),
            shard.leader.clone().unwrap_or_else(|| "-".to_owned()),
            shard.ranges.len().to_string(),
            share(&shard.ranges).unwrap_or_else(|| "unknown".to_owned()),
            shard.replicas.join(" "),
        ]);
    }
    format!("{facts}\n{}", table(&rows))
}

/// How much of the hash space the ranges are, in per cent with two digits; none where they cannot be read.
fn share(ranges: &[Range]) -> Option<String> {
    let mut parts = 0;
    for range in ranges {
        // The end of the space is written as 0 or as 2^128, which has one digit more.
        let digits = range.to.get(range.to.len().saturating_sub(32)..)?;
        let (from, to) =
            (u128::from_str_radix(&range.from, 16).ok()?, u128::from_str_radix(digits, 16).ok()?);
        // One less than the length, so that the whole space fits; then in units of 2^64.
        parts += (to.wrapping_sub(1).wrapping_sub(from) >> 64) + 1;
    }
    let hundredths = (parts * 10_000 + (1 << 63)) >> 64;
    Some(format!("{}.{:02} %", hundredths / 100, hundredths % 100))
}

#[cfg(test)]
mod tests {
    use super::{View, rendered};

    #[test]
    fn a_view_is_a_table() {
        let view: View = serde_json::from_str(
            r#"{"epoch":3,"cluster-id":"c1","repl-factor":1,"shards":[
                {"shard-id":"1","key-count":10,"replicas":["a:1"],"leader":"a:1","ranges":[
                    {"from":"00000000000000000000000000000000","to":"40000000000000000000000000000000"},
                    {"from":"c0000000000000000000000000000000","to":"00000000000000000000000000000000"}]},
                {"shard-id":"2","key-count":null,"replicas":["b:1","c:1"],"ranges":[
                    {"from":"40000000000000000000000000000000","to":"c0000000000000000000000000000000"}]}]}"#,
        )
        .unwrap();
        let expected = "epoch 3, cluster c1, replication factor 1\n\
            shard  keys     leader  ranges  of the hashes  nodes\n\
            1      10       a:1     2       50.00 %        a:1\n\
            2      unknown  -       1       50.00 %        b:1 c:1";
        assert_eq!(rendered(&view), expected);
    }

    #[test]
    fn the_whole_space_is_one_hundred_per_cent() {
        for (from, to, expected) in [
            ("00000000000000000000000000000000", "00000000000000000000000000000000", "100.00 %"),
            ("00000000000000000000000000000000", "100000000000000000000000000000000", "100.00 %"),
            ("00000000000000000000000000000000", "55555555555555555555555555555555", "33.33 %"),
            ("zz", "00", "unknown"),
        ] {
            let text = format!(
                r#"{{"epoch":1,"shards":[{{"shard-id":"1","ranges":[{{"from":"{from}","to":"{to}"}}]}}]}}"#
            );
            let view: View = serde_json::from_str(&text).unwrap();
            assert!(rendered(&view).contains(expected), "{from} {to}");
        }
    }
}
