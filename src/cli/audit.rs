//! `audit`: what every shard holds, counted and summed up at one point of its log, and whether all of its replicas hold the same.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::address::NodeArgs;
use super::answer::{AnswerArgs, ask};
use super::failure::Failure;
use super::output::{figure, heading, table};

/// What `audit` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The checksum of the whole is over keys, values and versions in any order: a view change \
    without writes leaves it as it is. A stray pair is one that lies on a shard which does not own it. Below the \
    table stands whatever is wrong, and with which shard and replica. Every pair is read for it: where there are many \
    millions, give it more time by --timeout.\n\n\
    Exit codes: 0 all is well, 1 it is not, 2 wrong usage, 3 any other error."
)]
pub struct AuditArgs {
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Audit {
    ok: bool,
    epoch: u64,
    /// Null where a shard was not reached, as are that shard's figures.
    keys: Option<u64>,
    checksum: Option<String>,
    shards: Vec<Shard>,
    #[serde(default)]
    missing_ranges: Vec<IgnoredAny>,
    #[serde(default)]
    problems: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Shard {
    #[serde(rename = "shard-id")]
    id: String,
    /// Older nodes do not say it.
    #[serde(default = "yes")]
    ok: bool,
    #[serde(default)]
    replicas: Vec<String>,
    key_count: Option<u64>,
    log_index: Option<u64>,
    checksum: Option<String>,
    stray: Option<u64>,
    #[serde(default)]
    replicas_checked: Vec<Checked>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Checked {
    replica: String,
    #[serde(default = "yes")]
    ok: bool,
    key_count: Option<u64>,
    log_index: Option<u64>,
    checksum: Option<String>,
    #[serde(default)]
    stray: Option<u64>,
}

fn yes() -> bool {
    true
}

impl Audit {
    /// Whether all is well, and whose part is not.
    fn verdict(&self) -> String {
        if self.ok {
            return "ok".to_owned();
        }
        let wrong = self.shards.iter().filter(|shard| !shard.ok).map(Shard::whose);
        let space =
            (!self.missing_ranges.is_empty()).then(|| "a part of the space that no shard owns".to_owned());
        let whose: Vec<String> = wrong.chain(space).collect();
        if whose.is_empty() { "NOT OK".to_owned() } else { format!("NOT OK: {}", whose.join(", ")) }
    }
}

impl Shard {
    /// The shard, and those of its nodes whose replicas are not as they should be.
    fn whose(&self) -> String {
        let wrong = self.replicas_checked.iter().filter(|one| !one.ok).map(|one| one.replica.as_str());
        // Of one with a single replica no more is said than the shard.
        let alone = self.replicas.iter().filter(|_| self.replicas.len() == 1).map(String::as_str);
        let nodes: Vec<&str> = wrong.chain(alone).collect();
        if nodes.is_empty() {
            format!("shard {}", self.id)
        } else {
            format!("shard {} ({})", self.id, nodes.join(" "))
        }
    }
}

/// Prints a line per shard and the total; false unless the cluster says that all is well.
pub(super) fn audit(args: &AuditArgs) -> Result<bool, Failure> {
    let answer = ask(&args.node.node, args.answer.timeout, |client| client.get("/kv-store/audit"))?;
    args.answer.form().show(&answer)?;
    let audit: Audit = answer.parse()?;
    args.answer.form().say(&rendered(&audit))?;
    Ok(audit.ok)
}

fn rendered(audit: &Audit) -> String {
    let shown = |checksum: &Option<String>| checksum.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut rows = vec![heading(&["shard", "keys", "stray", "log index", "checksum", "nodes"])];
    for shard in &audit.shards {
        rows.push(vec![
            shard.id.clone(),
            figure(shard.key_count),
            figure(shard.stray),
            figure(shard.log_index),
            shown(&shard.checksum),
            shard.replicas.join(" "),
        ]);
        let differs = |one: &&Checked| (one.key_count, &one.checksum) != (shard.key_count, &shard.checksum);
        for one in shard.replicas_checked.iter().filter(differs) {
            rows.push(vec![
                format!("  {}", one.replica),
                figure(one.key_count),
                figure(one.stray),
                figure(one.log_index),
                shown(&one.checksum),
            ]);
        }
    }
    let stray = audit.shards.iter().map(|shard| shard.stray).sum();
    rows.push(vec![
        "total".to_owned(),
        figure(audit.keys),
        figure(stray),
        "-".to_owned(),
        shown(&audit.checksum),
    ]);
    let verdict = audit.verdict();
    let problems = audit.problems.iter().flat_map(|problem| ["\n- ", problem.as_str()]).collect::<String>();
    format!("epoch {}: {verdict}\n{}{problems}", audit.epoch, table(&rows))
}

#[cfg(test)]
mod tests {
    use super::{Audit, rendered};

    #[test]
    fn what_is_not_known_is_said_to_be() {
        let audit: Audit = serde_json::from_str(
            r#"{"message":"..","ok":false,"epoch":7,"keys":null,"checksum":null,"shards":[
            {"shard-id":"1","replicas":["a:1"],"key-count":3,"log-index":12,"checksum":"0f","stray":0},
            {"shard-id":"2","replicas":["b:1"],"key-count":null,"log-index":null,"checksum":null,"stray":null}]}"#,
        )
        .unwrap();
        let expected = "epoch 7: NOT OK\n\
            shard  keys     stray    log index  checksum  nodes\n\
            1      3        0        12         0f        a:1\n\
            2      unknown  unknown  unknown    unknown   b:1\n\
            total  unknown  unknown  -          unknown";
        assert_eq!(rendered(&audit), expected);
    }

    #[test]
    fn what_is_wrong_and_whose_sums_differ_is_said() {
        let audit: Audit = serde_json::from_str(
            r#"{"ok":false,"epoch":3,"keys":3,"checksum":"0f","shards":[{"shard-id":"1","ok":false,"replicas":["a:1","b:1","c:1"],
            "key-count":3,"log-index":12,"checksum":"0f","stray":0,"replicas-checked":[
            {"replica":"a:1","ok":true,"key-count":3,"log-index":12,"checksum":"0f","stray":0},
            {"replica":"b:1","ok":false,"key-count":3,"log-index":12,"checksum":"0e","stray":0},
            {"replica":"c:1","ok":false,"key-count":null,"log-index":null,"checksum":null,"stray":null}]}],
            "problems":["shard 1: c:1 is not summed up: it is away","shard 1: b:1 differs from a:1"]}"#,
        )
        .unwrap();
        let expected = "epoch 3: NOT OK: shard 1 (b:1 c:1)\n\
            shard  keys     stray    log index  checksum  nodes\n\
            1      3        0        12         0f        a:1 b:1 c:1\n  \
            b:1  3        0        12         0e\n  \
            c:1  unknown  unknown  unknown    unknown\n\
            total  3        0        -          0f\n\
            - shard 1: c:1 is not summed up: it is away\n\
            - shard 1: b:1 differs from a:1";
        assert_eq!(rendered(&audit), expected);
    }

    #[test]
    fn the_first_line_says_whose_part_is_wrong() {
        let one = |ok: bool, nodes: &str| format!(r#"{{"shard-id":"2","ok":{ok},"replicas":[{nodes}]}}"#);
        for (shard, more, expected) in [
            (one(false, r#""b:1""#), "", "NOT OK: shard 2 (b:1)"),
            (one(false, r#""b:1","c:1""#), "", "NOT OK: shard 2"),
            (
                one(false, r#""b:1""#),
                r#","missing-ranges":[{"from":"0","to":"8"}]"#,
                "NOT OK: shard 2 (b:1), a part of the space that no shard owns",
            ),
            // An older node does not say it.
            (one(true, r#""b:1""#), "", "NOT OK"),
        ] {
            let text =
                format!(r#"{{"ok":false,"epoch":3,"keys":3,"checksum":"0f","shards":[{shard}]{more}}}"#);
            let audit: Audit = serde_json::from_str(&text).unwrap();
            assert_eq!(audit.verdict(), expected, "{text}");
        }
    }

    #[test]
    fn the_total_is_over_all_shards() {
        let audit: Audit = serde_json::from_str(
            r#"{"ok":true,"epoch":2,"keys":5,"checksum":"aa","shards":[
            {"shard-id":"1","replicas":["a:1","b:1"],"key-count":3,"log-index":12,"checksum":"0f","stray":1},
            {"shard-id":"2","replicas":["c:1"],"key-count":2,"log-index":9,"checksum":"f0","stray":1}]}"#,
        )
        .unwrap();
        let expected = "epoch 2: ok\n\
            shard  keys  stray  log index  checksum  nodes\n\
            1      3     1      12         0f        a:1 b:1\n\
            2      2     1      9          f0        c:1\n\
            total  5     2      -          aa";
        assert_eq!(rendered(&audit), expected);
    }
}
