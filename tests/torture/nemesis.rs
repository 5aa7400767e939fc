//! Does the steps of a schedule, and sees to it that the cluster is whole again after each.

use std::collections::BTreeSet;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disaster;
use crate::fleet::{Fleet, HEALING};
use crate::schedule::{Blow, Change, Harm, Partition, Step, Victim};
use crate::support::change::{VIEW_CHANGE, allowed, check_receipt_at};
use crate::support::http::{Http, Response};
use crate::support::load::Load;
use crate::support::network::Cut;
use crate::support::replicated::Known;
use crate::support::wait_until;

/// Longer than any view change takes, also one that waits for a node that is away.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// A node that was told to stop has ended within this time.
const STOPPING: Duration = Duration::from_secs(8);
/// Answers after which clients count as served again.
const SERVED: u64 = 100;

/// Who was harmed, by number.
#[derive(Debug, Default)]
struct Harmed {
    killed: Vec<usize>,
    paused: BTreeSet<usize>,
    cuts: BTreeSet<Cut>,
}

/// Does this step, undoes it, and waits until all is whole. Returns what was done to whom.
pub(crate) fn run(fleet: &mut Fleet, load: &Load, step: &Step) -> String {
    let done = match step {
        Step::Blow(blow) => strike(fleet, blow),
        Step::Flap { partition, times, each } => flap(fleet, partition, *times, *each),
        Step::KillInTurn(shard) => kill_in_turn(fleet, *shard),
        Step::RestartInTurn => restart_in_turn(fleet),
        Step::Change(change) => change_view(fleet, change, None),
        Step::ChangeAndBlow(change, after, blow) => change_view(fleet, change, Some((*after, blow))),
        Step::Disaster(disaster) => disaster::run(fleet, load, disaster),
    };
    let started = Instant::now();
    fleet.wait_whole();
    let before = load.answers();
    wait_until("clients are served again", allowed(HEALING), || load.answers() >= before + SERVED);
    format!("{done}; whole after {:.1?}", started.elapsed())
}

/// That a node is away for a while is the fault itself; nothing is waited for.
pub(crate) fn stay_away(time: Duration) {
    thread::sleep(time);
}

fn strike(fleet: &mut Fleet, blow: &Blow) -> String {
    let harmed = choose(fleet, blow);
    for &number in &harmed.killed {
        fleet.nodes[number].kill();
    }
    let paused: Vec<usize> =
        harmed.paused.iter().copied().filter(|number| !harmed.killed.contains(number)).collect();
    for &number in &paused {
        fleet.nodes[number].pause();
    }
    fleet.cut(&harmed.cuts);
    stay_away(blow.away);
    let back_first = blow.back_first && !harmed.killed.is_empty();
    if back_first {
        harmed.killed.iter().for_each(|number| fleet.nodes[*number].restart());
        stay_away(blow.away / 2);
    }
    fleet.cut(&BTreeSet::new());
    for &number in &paused {
        fleet.nodes[number].resume();
    }
    if !back_first {
        harmed.killed.iter().for_each(|number| fleet.nodes[*number].restart());
    }
    let Harmed { killed, cuts, .. } = harmed;
    let left_out = if cuts.is_empty() || fleet.can_cut() { "" } else { " (left out)" };
    format!("killed {killed:?}, paused {paused:?}, cut {} ways{left_out}", cuts.len())
}

/// Decides whom the harms of a blow strike, while all nodes can still be asked.
fn choose(fleet: &Fleet, blow: &Blow) -> Harmed {
    fleet.wait_led();
    let shards = fleet.shards();
    let number = |victim| number_of(fleet, &shards, victim);
    let mut harmed = Harmed::default();
    for harm in &blow.harms {
        match harm {
            Harm::Kill(victim) => harmed.killed.push(number(*victim)),
            Harm::KillTwo => harmed.killed.extend(two_of(fleet, &shards)),
            Harm::Pause(victim) => _ = harmed.paused.insert(number(*victim)),
            Harm::PauseMajority(shard) => {
                let replicas = &shards[shard % shards.len()].replicas;
                let most = replicas.iter().take(replicas.len() / 2 + 1);
                harmed.paused.extend(most.map(|address| fleet.number(address)));
            }
            Harm::PauseAll => harmed.paused.extend(0..fleet.nodes.len()),
            Harm::Cut(partition) => harmed.cuts.extend(partition.cuts(fleet.nodes.len(), number)),
        }
    }
    harmed
}

fn number_of(fleet: &Fleet, shards: &[Known], victim: Victim) -> usize {
    match victim {
        Victim::Node(number) => number % fleet.nodes.len(),
        Victim::Leader(shard) => {
            let shard = &shards[shard % shards.len()];
            fleet.number(shard.leader.as_ref().unwrap_or(&shard.replicas[0]))
        }
        Victim::Other(shard, place) => {
            let shard = &shards[shard % shards.len()];
            let leader = shard.leader.as_ref();
            let others: Vec<&String> = shard.replicas.iter().filter(|node| Some(*node) != leader).collect();
            fleet.number(others.get(place % others.len().max(1)).copied().unwrap_or(&shard.replicas[0]))
        }
    }
}

/// The leaders of two shards, or of one where there are no more; not two of those that vote on the view, of which a
/// majority must be left.
fn two_of(fleet: &Fleet, shards: &[Known]) -> Vec<usize> {
    let leader = |shard: &Known| number_of(fleet, std::slice::from_ref(shard), Victim::Leader(0));
    let first = leader(&shards[0]);
    let votes = |number: &usize| fleet.voters().contains(number);
    let second = shards.get(1).and_then(|shard| {
        let replicas = shard.replicas.iter().map(|address| fleet.number(address));
        std::iter::once(leader(shard)).chain(replicas).find(|number| !(votes(&first) && votes(number)))
    });
    std::iter::once(first).chain(second).collect()
}

fn flap(fleet: &Fleet, partition: &Partition, times: u32, each: Duration) -> String {
    fleet.wait_led();
    let shards = fleet.shards();
    let cuts = partition.cuts(fleet.nodes.len(), |victim| number_of(fleet, &shards, victim));
    for _ in 0..times {
        fleet.cut(&cuts);
        stay_away(each);
        fleet.cut(&BTreeSet::new());
        stay_away(each / 2);
    }
    let left_out = if fleet.can_cut() { "" } else { " (left out)" };
    format!("cut {} ways {times} times{left_out}", cuts.len())
}

fn kill_in_turn(fleet: &mut Fleet, shard: usize) -> String {
    let shards = fleet.shards();
    let replicas = shards[shard % shards.len()].replicas.clone();
    for address in &replicas {
        let number = fleet.number(address);
        fleet.nodes[number].restart();
        fleet.wait_whole();
    }
    format!("killed and started again one after the other: {replicas:?}")
}

fn restart_in_turn(fleet: &mut Fleet) -> String {
    let mut slowest = Duration::ZERO;
    for number in fleet.view.clone() {
        let node = &mut fleet.nodes[number];
        let started = Instant::now();
        node.terminate();
        let status = node.wait_exit(allowed(STOPPING));
        slowest = slowest.max(started.elapsed());
        assert_eq!(status.code(), Some(0), "{} was asked to stop", node.address());
        node.restart();
        fleet.wait_whole();
    }
    format!("stopped and started again one after the other: {:?}, in {slowest:.1?} at most", fleet.view)
}

fn change_view(fleet: &mut Fleet, change: &Change, blow: Option<(Duration, &Blow)>) -> String {
    let wanted: Vec<String> =
        change.view.iter().map(|number| fleet.nodes[*number].address().to_owned()).collect();
    let asking = ask(fleet.nodes[change.asked].address(), &wanted, change.factor);
    let mut done = String::new();
    if let Some((after, blow)) = blow {
        stay_away(after);
        done = format!(", meanwhile {}", strike(fleet, blow));
    }
    let mut asked = vec![answered(asking)];
    // The answer may be lost with the node that was asked, and the change may have been given up or wait for a node.
    // Asked for again, it ends.
    let mut turn = change.asked;
    wait_until("the view has changed", allowed(PATIENCE * 2), || {
        if let Some((200, receipt)) = asked.last() {
            check_receipt_at(receipt, &wanted, change.factor);
            return true;
        }
        turn = (turn + 1) % fleet.nodes.len();
        asked.push(answered(ask(fleet.nodes[turn].address(), &wanted, change.factor)));
        false
    });
    (fleet.view, fleet.factor) = (change.view.clone(), change.factor);
    let statuses: Vec<u16> = asked.iter().map(|(status, _)| *status).collect();
    let receipt = &asked.last().expect("asked at least once").1;
    format!("changed, {} of {} pairs moved, answered {statuses:?}{done}", receipt["moved"], receipt["keys"])
}

fn ask(address: &str, view: &[String], factor: usize) -> JoinHandle<io::Result<Response>> {
    let (address, body) = (address.to_owned(), json!({"view": view, "repl-factor": factor}).to_string());
    thread::spawn(move || {
        Http::with_patience(&address, PATIENCE).try_request("PUT", VIEW_CHANGE, &[], body.as_bytes())
    })
}

/// Status and body, or 0 where there was no answer.
fn answered(asking: JoinHandle<io::Result<Response>>) -> (u16, Value) {
    let answer = asking.join().expect("the client does not panic");
    answer.map_or((0, Value::Null), |answer| (answer.status, answer.json()))
}
