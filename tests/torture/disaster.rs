//! More nodes die than the cluster can bear, and an operator brings it back: what may be lost then is what the answers name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::fleet::{Fleet, HEALING};
use crate::nemesis::{PATIENCE, stay_away};
use crate::schedule::Disaster;
use crate::support::change::{VIEW_CHANGE, allowed, check_receipt_at, target};
use crate::support::http::Http;
use crate::support::load::Load;
use crate::support::replicated::Known;
use crate::support::{at_once, wait_until};

/// Connections that ask who owns which key.
const ASKING: usize = 8;

/// Kills, recovers, restarts, and gives up what nothing is left of. Returns what was done.
pub(crate) fn run(fleet: &mut Fleet, load: &Load, disaster: &Disaster) -> String {
    fleet.wait_led();
    let shards = fleet.shards();
    let owners = owners(&fleet.members()[0], &shards, &load.keys());
    let since = load.now();
    let mut down: BTreeSet<usize> = disaster.dead.iter().copied().collect();
    for &number in &down {
        fleet.nodes[number].kill();
    }
    stay_away(disaster.away);
    if disaster.back_first {
        start_again(fleet, &mut down);
    }
    let recovered = recover(fleet, disaster, &mut down);
    let is_dead = |node: &String| disaster.dead.contains(&fleet.number(node));
    let (lost, halved): (Vec<&Known>, Vec<&Known>) = shards
        .iter()
        .filter(|shard| {
            let dead = shard.replicas.iter().filter(|node| is_dead(node)).count();
            dead > shard.replicas.len() / 2
        })
        .partition(|shard| shard.replicas.iter().all(is_dead));
    let ids =
        |shards: &[&Known]| -> BTreeSet<String> { shards.iter().map(|shard| shard.id.clone()).collect() };
    let (lost, halved) = (ids(&lost), ids(&halved));
    // That a shard goes on from what is left is said even where nothing can be lost by it.
    let named = recovered.as_ref().map(named).unwrap_or_default();
    note(load, &owners, named.intersection(&halved), since);
    start_again(fleet, &mut down);
    let mut done = format!(
        "killed {:?}, of which shards {halved:?} had most and {lost:?} all; {}",
        disaster.dead,
        recovered.map_or_else(|| "nothing to recover".to_owned(), |answer| answer.to_string())
    );
    if !lost.is_empty() {
        let receipt = accept(fleet, &lost);
        note(load, &owners, lost.iter(), since);
        write!(done, "; given up {}", receipt["given-up"]).expect("a String takes every write");
    }
    done
}

/// The keys of every shard.
fn owners(through: &str, shards: &[Known], keys: &[String]) -> BTreeMap<String, Vec<String>> {
    let of = |node: &String| shards.iter().find(|shard| shard.replicas.contains(node));
    let found = at_once(ASKING, |place| {
        let mut client = Http::new(through);
        let mut found = Vec::new();
        for key in keys.iter().skip(place).step_by(ASKING) {
            wait_until(&format!("somebody owns {key}"), allowed(HEALING), || {
                let answer = client.get(&target(key));
                let owner = answer.owner().unwrap_or_else(|| through.to_owned());
                let shard = of(&owner).filter(|_| answer.status != 503);
                found.extend(shard.map(|shard| (shard.id.clone(), key.clone())));
                shard.is_some()
            });
        }
        found
    });
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (shard, key) in found.into_iter().flatten() {
        owners.entry(shard).or_default().push(key);
    }
    owners
}

/// The keys of these shards may have been lost until now.
fn note<'a>(
    load: &Load,
    owners: &BTreeMap<String, Vec<String>>,
    shards: impl Iterator<Item = &'a String>,
    since: u64,
) {
    let keys = shards.filter_map(|shard| owners.get(shard)).flatten().cloned();
    load.may_have_lost(keys, since);
}

fn start_again(fleet: &mut Fleet, down: &mut BTreeSet<usize>) {
    for number in std::mem::take(down) {
        fleet.nodes[number].restart();
        fleet.nodes[number].wait_live();
    }
}

/// What an operator does: asks which nodes would be given up, sees to it that they are dead, and has the rest recovered, until there is an
/// answer or nothing to recover.
fn recover(fleet: &mut Fleet, disaster: &Disaster, down: &mut BTreeSet<usize>) -> Option<Value> {
    let living = fleet.view.iter().find(|number| !disaster.dead.contains(number)).expect("one lives");
    let through = fleet.nodes[*living].address().to_owned();
    let ask = |body: &Value| {
        let mut client = Http::with_patience(&through, PATIENCE);
        let answer = client.request("PUT", "/node/recover", &[], body.to_string().as_bytes());
        (answer.status, answer.json())
    };
    let mut outcome = None;
    wait_until("an operator recovers the cluster", allowed(PATIENCE), || {
        let (status, planned) = ask(&json!({"dry-run": true}));
        if status == 409 {
            outcome = Some(None);
            return true;
        }
        if status != 200 {
            return false;
        }
        let given_up: Vec<usize> =
            texts(&planned["given-up"]).iter().map(|node| fleet.number(node)).collect();
        // Who is only slow is not given up.
        if !given_up.iter().all(|number| disaster.dead.contains(number)) {
            return false;
        }
        for number in given_up {
            fleet.nodes[number].kill();
            down.insert(number);
        }
        let (status, answer) = ask(&json!({"given-up": planned["given-up"]}));
        let is_done = status == 200;
        if is_done {
            outcome = Some(Some(answer));
        }
        is_done
    });
    outcome.expect("waited for")
}

/// The shards that an answer names.
fn named(answer: &Value) -> BTreeSet<String> {
    let rows = answer["recovered-shards"].as_array().into_iter().flatten();
    let recovered = rows.map(|row| row["shard-id"].as_str().expect("an id").to_owned());
    recovered.chain(texts(&answer["lost-shards"])).collect()
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|text| text.as_str().unwrap_or_else(|| panic!("no text: {text}")).to_owned()).collect()
}

/// Has the same view go on without the pairs of these shards. Returns the receipt.
fn accept(fleet: &Fleet, lost: &BTreeSet<String>) -> Value {
    let members = fleet.members();
    let (mut turn, mut receipt) = (0, Value::Null);
    wait_until(&format!("the view goes on without shards {lost:?}"), allowed(PATIENCE * 2), || {
        let through = &members[turn % members.len()];
        turn += 1;
        let accepting = json!({"view": members, "repl-factor": fleet.factor, "accept-loss": lost});
        // It is refused where they were given up before, and only the answer did not come.
        let given_up = json!({"view": members, "repl-factor": fleet.factor});
        for body in [accepting, given_up] {
            let mut client = Http::with_patience(through, PATIENCE);
            let answer = client.try_request("PUT", VIEW_CHANGE, &[], body.to_string().as_bytes());
            if let Some(answer) = answer.ok().filter(|answer| answer.status == 200) {
                receipt = answer.json();
                return true;
            }
        }
        false
    });
    check_receipt_at(&receipt, &members, fleet.factor);
    receipt
}
