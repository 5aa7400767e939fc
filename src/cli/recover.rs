//! `recover`: the operator's word that the nodes which cannot be reached are gone for good.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::time::Duration;

use serde::Deserialize;

use super::address::Address;
use super::client::{Client, EXCHANGE_TIMEOUT};
use super::failure::Failure;
use super::output::{heading, print, table};

/// A member that is not quicker than this to say that it lives counts as one that would be given up.
const LIFE_TIMEOUT: Duration = Duration::from_secs(2);
/// The word that confirms.
const YES: &str = "yes";

/// What `recover` is told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "For the case that most of the nodes that hold the view are lost: the cluster goes on with the \
    members that the named node reaches. The others are given up. Pairs that only they held are lost, and one that \
    comes back drops what it holds. It is refused while a majority lives.\n\n\
    Exit codes: 0 done, 1 not confirmed, 2 wrong usage, 3 any other error."
)]
pub struct RecoverArgs {
    /// A node that is left, whichever
    #[arg(long, value_name = "HOST:PORT", env = "EVENKV_NODE", value_parser = Address::parse)]
    node: Address,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// The secret that the nodes share, where they have one
    #[arg(long, value_name = "SECRET", env = "CLUSTER_SECRET", hide_env_values = true)]
    cluster_secret: Option<String>,
}

#[derive(Deserialize)]
struct View {
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    #[serde(rename = "shard-id")]
    id: String,
    #[serde(default)]
    replicas: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Recovered {
    epoch: u64,
    given_up: Vec<String>,
    lost_shards: Vec<String>,
}

/// Says what will be given up and, once that is confirmed, has the node give it up; false if it is not confirmed.
pub(super) fn recover(args: &RecoverArgs) -> Result<bool, Failure> {
    let client = Client::new(&args.node, 1, EXCHANGE_TIMEOUT)?;
    // Whatever it answers: it is there.
    client.get("/livez")?;
    eprintln!("{}", outlook(&args.node, members(&client)));
    if !args.yes && !is_confirmed(io::stdin().lock()) {
        eprintln!("evenkv: not confirmed, so nothing was done (--yes confirms)");
        return Ok(false);
    }
    let secret = args.cluster_secret.as_deref().filter(|secret| !secret.is_empty());
    let answer =
        client.put("/node/recover", b"{}".to_vec(), secret.map(|secret| ("evenkv-secret", secret)))?;
    print(rendered(&answer.parse()?).as_bytes())?;
    Ok(true)
}

/// The members by address: the shards each is a replica of, and whether it answers here.
type Members = BTreeMap<String, (Vec<String>, bool)>;

/// The members of the view that the node has; an error where it has none to show.
fn members(client: &Client) -> Result<Members, Failure> {
    let view: View = client.get("/kv-store/view")?.parse()?;
    let mut members = Members::new();
    for shard in &view.shards {
        for replica in &shard.replicas {
            let entry = members.entry(replica.clone()).or_insert_with(|| (Vec::new(), lives(replica)));
            entry.0.push(shard.id.clone());
        }
    }
    Ok(members)
}

fn lives(node: &str) -> bool {
    let asked = Address::parse(node)
        .map_err(Failure::Local)
        .and_then(|node| Client::new(&node, 1, LIFE_TIMEOUT)?.get("/livez"));
    asked.is_ok()
}

fn outlook(node: &Address, members: Result<Members, Failure>) -> String {
    let rule = format!(
        "The members that {node} cannot reach will be given up for good: pairs that only they held are lost, and a \
         node given up drops its pairs when it comes back."
    );
    let members = match members {
        Ok(members) => members,
        Err(failure) => {
            return format!("{rule}\nWhich members those are cannot be said beforehand: {failure}");
        }
    };
    let mut rows = vec![heading(&["node", "shards", "asked from here"])];
    for (node, (shards, lives)) in members {
        let said = if lives { "lives" } else { "no answer: will be given up if the node finds the same" };
        rows.push(vec![node, shards.join(" "), said.to_owned()]);
    }
    format!("{rule}\n{}", table(&rows))
}

fn is_confirmed(mut input: impl BufRead) -> bool {
    eprintln!("Type {YES} to go on:");
    let mut line = String::new();
    // Input that cannot be read, or is over, confirms nothing.
    input.read_line(&mut line).is_ok() && line.trim() == YES
}

fn rendered(recovered: &Recovered) -> String {
    let listed = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    table(&[
        row("recovered, epoch", recovered.epoch.to_string()),
        row("nodes given up", listed(&recovered.given_up)),
        row("shards lost", listed(&recovered.lost_shards)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::fake_node::FakeNode;
    use super::{Address, RecoverArgs, Recovered, is_confirmed, members, outlook, recover, rendered};
    use super::{Client, EXCHANGE_TIMEOUT};

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
    fn the_secret_goes_along_where_there_is_one() {
        let node = FakeNode::start();
        let recovered =
            r#"{"message":"Recovered","cluster-id":"c","epoch":9,"given-up":[],"lost-shards":[]}"#;
        node.with(|state| state.script("PUT /node/recover", &[(200, recovered)]));
        for (secret, expected) in [(None, None), (Some(""), None), (Some("s3cret"), Some("s3cret"))] {
            let args = RecoverArgs {
                node: Address::parse(&node.address()).unwrap(),
                yes: true,
                cluster_secret: secret.map(str::to_owned),
            };
            assert!(recover(&args).unwrap());
            let asked = node.with(|state| state.scripted.pop().unwrap());
            let sent = asked.headers.iter().find(|header| header.field.equiv("Evenkv-Secret"));
            assert_eq!(sent.map(|header| header.value.as_str()), expected);
            assert_eq!(asked.body, "{}");
        }
    }

    #[test]
    fn it_says_beforehand_which_members_do_not_answer() {
        let node = FakeNode::start();
        let gone = FakeNode::start().address();
        let view = format!(
            r#"{{"epoch":1,"shards":[{{"shard-id":"1","replicas":["{}"]}},{{"shard-id":"2","replicas":["{gone}"]}}]}}"#,
            node.address()
        );
        node.with(|state| {
            state.script("GET /kv-store/view", &[(200, &view), (503, r#"{"error":"no view"}"#)]);
        });
        let address = Address::parse(&node.address()).unwrap();
        let client = Client::new(&address, 1, EXCHANGE_TIMEOUT).unwrap();
        let said = outlook(&address, members(&client));
        let line_of =
            |node: &str| said.lines().skip(1).find(|line| line.starts_with(node)).unwrap().to_owned();
        assert!(line_of(&node.address()).ends_with("1       lives"), "{said}");
        assert!(line_of(&gone).contains("2       no answer: will be given up"), "{said}");
        let said = outlook(&address, members(&client));
        assert!(said.ends_with("cannot be said beforehand: the node answered 503: no view"), "{said}");
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
