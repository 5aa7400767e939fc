//! `recover`: the operator's word that the nodes which cannot be reached are gone for good.

use std::fmt::Write;
use std::io::{self, BufRead};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::address::Address;
use super::answer::{FormArgs, ask};
use super::client::Answer;
use super::failure::Failure;
use super::output::table;
use super::seconds::seconds;

/// The word that confirms.
const YES: &str = "yes";

/// What `recover` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "For the case that most of the nodes that hold the view, or most replicas of a shard, are lost: the cluster goes \
    on with the members that the named node reaches, and the shard with what the furthest of its replicas holds. The others are \
    given up. Pairs that only they held are lost, and one that comes back drops what it holds. It is refused while a majority of \
    each lives.\n\n\
    Exit codes: 0 done, 1 not confirmed, 2 wrong usage, 3 any other error."
)]
pub struct RecoverArgs {
    /// A node that is left, whichever
    #[arg(long, value_name = "HOST:PORT", env = "EVENKV_NODE", value_parser = Address::parse)]
    node: Address,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    form: FormArgs,
    /// Give up when the answer has not come within this time; the node waits for each other one that is slow
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// The secret that the nodes share, where they have one
    #[arg(long, value_name = "SECRET", env = "CLUSTER_SECRET", hide_env_values = true)]
    cluster_secret: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Recovered {
    epoch: u64,
    given_up: Vec<String>,
    lost_shards: Vec<String>,
    #[serde(default, rename = "recovered-shards")]
    shards: Vec<RecoveredShard>,
}

/// A shard that goes on from what is left of its replicas.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RecoveredShard {
    shard_id: String,
    goes_on_from: String,
    missing: Vec<String>,
    may_be_lost: String,
}

/// Says what will be given up and, once that is confirmed, has the node give just that up; false if it is not confirmed.
pub(super) fn recover(args: &RecoverArgs) -> Result<bool, Failure> {
    let form = args.form.form();
    let secret = args.cluster_secret.as_deref().filter(|secret| !secret.is_empty());
    let ask = |body: serde_json::Value| -> Result<Answer, Failure> {
        let secret = secret.map(|secret| ("evenkv-secret", secret));
        ask(&args.node, args.timeout, |client| {
            client.put("/node/recover", body.to_string().into_bytes(), secret)
        })
    };
    let planned = ask(json!({ "dry-run": true })).map_err(Failure::of_question)?;
    if planned.status != 200 {
        form.show(&planned)?;
    }
    let planned: Recovered = planned.parse()?;
    eprintln!("{}", outlook(&args.node, &planned));
    if !args.yes && !is_confirmed(io::stdin().lock()) {
        eprintln!("evenkv: not confirmed, so nothing was done (--yes confirms)");
        return Ok(false);
    }
    let answer = ask(json!({ "given-up": planned.given_up }))?;
    form.show(&answer)?;
    form.say(&rendered(&answer.parse()?))?;
    Ok(true)
}

fn outlook(node: &Address, planned: &Recovered) -> String {
    let mut text = format!(
        "These are not reached by {node}, and will be given up for good: {}\n\
         Pairs that only they held are lost (shards: {}), and a node given up drops what it holds when it comes back.",
        listed(&planned.given_up),
        listed(&planned.lost_shards)
    );
    for shard in &planned.shards {
        let RecoveredShard { shard_id, goes_on_from, missing, may_be_lost } = shard;
        let missing = listed(missing);
        let _ = write!(
            text,
            "\nShard {shard_id} goes on from what {goes_on_from} holds, without {missing}; may be lost: {may_be_lost}."
        );
    }
    text
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

fn is_confirmed(mut input: impl BufRead) -> bool {
    eprintln!("Type {YES} to go on:");
    let mut line = String::new();
    // Input that cannot be read, or is over, confirms nothing.
    input.read_line(&mut line).is_ok() && line.trim() == YES
}

fn rendered(recovered: &Recovered) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("recovered, epoch", recovered.epoch.to_string()),
        row("nodes given up", listed(&recovered.given_up)),
        row("shards lost", listed(&recovered.lost_shards)),
    ];
    if !recovered.shards.is_empty() {
        let ids: Vec<String> = recovered.shards.iter().map(|shard| shard.shard_id.clone()).collect();
        rows.push(row("shards recovered", listed(&ids)));
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::super::fake_node::FakeNode;
    use super::super::tests::at;
    use super::{Address, Recovered, is_confirmed, outlook, rendered};

    #[test]
    fn only_the_word_itself_confirms() {
        for (input, expected) in [
            ("yes\n", true),
            (" yes \n", true),
            ("y\n", false),
            ("no\n", false),
            ("", false),
            ("no\nyes\n", false),
        ] {
            assert_eq!(is_confirmed(input.as_bytes()), expected, "{input:?}");
        }
    }

    #[test]
    fn what_was_planned_and_no_more_is_given_up() {
        let node = FakeNode::start();
        let recovered =
            r#"{"message":"Recovered","cluster-id":"c","epoch":9,"given-up":["a:1"],"lost-shards":["2"]}"#;
        node.with(|state| state.script("PUT /node/recover", &[(200, recovered)]));
        let with = |secret| ["recover", "--yes", "--cluster-secret", secret];
        for (words, expected) in
            [(&["recover", "--yes"][..], None), (&with(""), None), (&with("s3cret"), Some("s3cret"))]
        {
            assert_eq!(at(&node.address(), words), 0);
            for body in [r#"{"given-up":["a:1"]}"#, r#"{"dry-run":true}"#] {
                let asked = node.with(|state| state.scripted.pop().unwrap());
                let sent = asked.headers.iter().find(|header| header.field.equiv("Evenkv-Secret"));
                assert_eq!(sent.map(|header| header.value.as_str()), expected);
                assert_eq!(asked.body, body);
            }
        }
    }

    #[test]
    fn it_says_beforehand_what_will_be_given_up() {
        let planned = r#"{"epoch":9,"given-up":["a:1","b:1"],"lost-shards":["2","3"]}"#;
        let planned: Recovered = serde_json::from_str(planned).unwrap();
        let said = outlook(&Address::parse("c:1").unwrap(), &planned);
        assert!(said.contains("reached by c:1"), "{said}");
        assert!(said.contains("for good: a:1 b:1\n") && said.contains("(shards: 2 3)"), "{said}");
    }

    #[test]
    fn the_answer_names_what_is_lost() {
        let recovered: Recovered = serde_json::from_str(
            r#"{"message":"Recovered","cluster-id":"c","epoch":9,"given-up":["a:1","b:1"],"lost-shards":[]}"#,
        )
        .unwrap();
        let expected = "recovered, epoch  9\nnodes given up    a:1 b:1\nshards lost       none";
        assert_eq!(rendered(&recovered), expected);
    }
}
