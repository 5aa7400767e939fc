//! `view`: which shard owns what, and where.

use serde::Deserialize;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, ask};
use super::failure::{Failure, PLAIN_EXIT_CODES};
use super::output::table;

/// What `view` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = PLAIN_EXIT_CODES)]
pub struct ViewArgs {
    #[command(flatten)]
    answer: AnswerArgs,
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
    /// The nodes that the asked one does not reach.
    #[serde(default)]
    down: Vec<String>,
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

impl View {
    /// A node, marked where it is down.
    fn marked(&self, node: &String) -> String {
        if self.down.contains(node) { format!("{node} (down)") } else { node.clone() }
    }
}

/// Prints a line per shard under the facts of the whole view.
pub(super) fn view(args: &ViewArgs) -> Result<bool, Failure> {
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.get("/kv-store/view"))?;
    args.answer.form().show(&answer)?;
    args.answer.form().say(&rendered(&answer.parse()?))?;
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
            shard.leader.as_ref().map_or("-".to_owned(), |leader| view.marked(leader)),
            shard.ranges.len().to_string(),
            share(&shard.ranges).unwrap_or_else(|| "unknown".to_owned()),
            shard.replicas.iter().map(|node| view.marked(node)).collect::<Vec<_>>().join(" "),
        ]);
    }
    let down = match &view.down[..] {
        [] => String::new(),
        down => format!("\nnot reached by the asked node: {}", down.join(" ")),
    };
    format!("{facts}\n{}{down}", table(&rows))
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
    fn nodes_that_are_down_are_marked() {
        let view: View = serde_json::from_str(
            r#"{"epoch":3,"shards":[{"shard-id":"1","key-count":10,"replicas":["a:1","b:1"],"leader":"a:1"},
                {"shard-id":"2","key-count":null,"replicas":["c:1"],"leader":"c:1"}],"down":["b:1","c:1"]}"#,
        )
        .unwrap();
        let expected = "epoch 3\n\
            shard  keys     leader      ranges  of the hashes  nodes\n\
            1      10       a:1         0       0.00 %         a:1 b:1 (down)\n\
            2      unknown  c:1 (down)  0       0.00 %         c:1 (down)\n\
            not reached by the asked node: b:1 c:1";
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
