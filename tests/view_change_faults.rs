//! View changes in which a node is killed or stops, at every point of the change and in every role.
//!
//! A stopped node that goes on lets the change end by itself, completed or rolled back. A killed one may have taken
//! its pairs with it: the cluster says which shard is lost, and changes its view again when told to accept that.
#![cfg(feature = "failpoints")]
#![allow(clippy::disallowed_methods, reason = "these tests measure how long an answer takes")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::audit::{audit, shards};
use support::change::{
    VIEW_CHANGE, allowed, ask, ask_with, check_receipt, has_ended, passive, phase, status, target, wait_knows,
};
use support::cluster::Cluster;
use support::history;
use support::http::Http;
use support::load::{Load, Profile};
use support::node::Node;
use support::{START_DEADLINE, ports, timed, wait_until};

/// A change ends, or says what blocks it, within this time of the return of the node that was away.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a stopped node is away: long enough for the others to elect another leader.
const AWAY: Duration = Duration::from_millis(1500);
/// Every third pair is this large, so that a move takes several batches.
const LARGE: usize = 100_000;
const PAIRS: usize = 240;
const SETTINGS: (&str, &str) = ("REQUEST_TIMEOUT_MS", "2000");

/// The rows measure times, so they take turns.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Coordinator,
    Target,
    Source,
    /// A voter of the meta group that is not its leader.
    Voter,
}

use Role::{Coordinator, Source, Target, Voter};

impl Role {
    /// The number of the node with this role: 0 to 2 vote, 0 leads, 4 leaves and 5 comes. Numbers 2 and 3 are never
    /// harmed, and 3 is asked.
    fn node(self) -> usize {
        match self {
            Coordinator => 0,
            Voter => 1,
            Source => 4,
            Target => 5,
        }
    }
}

const ASKED: usize = 3;
const UNHARMED: [usize; 2] = [2, 3];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Kill,
    Stop,
}

use Harm::{Kill, Stop};

/// A point of the change, who reaches it, and the one harm to whom that is tried there in every run of the tests.
#[rustfmt::skip]
const POINTS: [(&str, Role, Role, Harm); 16] = [
    ("change-begun",      Coordinator, Coordinator, Kill),
    ("change-reserved",   Coordinator, Target,      Stop),
    ("change-counted",    Coordinator, Source,      Kill),
    ("change-planned",    Coordinator, Voter,       Stop),
    ("piece-started",     Coordinator, Coordinator, Stop),
    ("piece-copied",      Coordinator, Target,      Kill),
    ("piece-prepared",    Coordinator, Source,      Stop),
    ("piece-handed-over", Coordinator, Coordinator, Kill),
    ("piece-told",        Coordinator, Voter,       Kill),
    ("change-finishing",  Coordinator, Coordinator, Stop),
    ("change-finished",   Coordinator, Target,      Kill),
    ("target-copying",    Target,      Target,      Stop),
    ("target-prepared",   Target,      Coordinator, Kill),
    ("source-batch",      Source,      Source,      Kill),
    ("source-frozen",     Source,      Source,      Stop),
    ("source-dropped",    Source,      Target,      Stop),
];

/// At this point, the node with this role comes to this harm.
#[derive(Debug, Clone, Copy)]
struct Row {
    point: &'static str,
    reached_by: Role,
    victim: Role,
    harm: Harm,
}

impl Row {
    /// Whether the victim holds no pair that nobody else has: a target before anything was handed over to it, a source
    /// that has given everything away.
    fn loses_nothing(self) -> bool {
        let finishing = ["change-finishing", "change-finished"].contains(&self.point);
        let handed_over = ["piece-handed-over", "piece-told", "source-dropped"].contains(&self.point);
        match self.victim {
            // By the time that the node which leaves is asked, others may have given pairs to the target.
            Target => !finishing && !handed_over && self.reached_by != Source,
            Source => finishing,
            Coordinator | Voter => false,
        }
    }
}

#[test]
fn a_node_is_lost_or_stops_at_each_point_once() {
    let row = |&(point, reached_by, victim, harm): &_| Row { point, reached_by, victim, harm };
    run_all(POINTS.iter().map(row));
}

#[test]
#[ignore = "128 clusters take a quarter of an hour; make test-full runs it"]
fn a_node_in_each_role_is_lost_or_stops_at_each_point() {
    run_all(POINTS.iter().flat_map(|&(point, reached_by, ..)| {
        let roles = [Coordinator, Target, Source, Voter].into_iter();
        roles.flat_map(move |victim| [Kill, Stop].map(|harm| Row { point, reached_by, victim, harm }))
    }));
}

/// Runs every row, prints a line for each, and fails with all that failed.
fn run_all(rows: impl Iterator<Item = Row>) {
    let _alone = alone();
    let mut failed = Vec::new();
    for row in rows {
        let Row { point, victim, harm, .. } = row;
        let said = catch_unwind(AssertUnwindSafe(|| run(row))).unwrap_or_else(|_| {
            failed.push(row);
            "FAILED, see above".to_owned()
        });
        println!("{point:17} {harm:?} {victim:?}: {said}");
    }
    assert!(failed.is_empty(), "{} rows failed: {failed:#?}", failed.len());
}

/// Six nodes, of which the last is passive, and pairs in them.
struct Trial {
    nodes: Vec<Node>,
    all: Vec<String>,
    first_view: String,
    pairs: BTreeMap<String, Value>,
}

impl Trial {
    /// `failpoints` is set for the node with this number alone.
    fn start(armed: usize, failpoints: &str) -> Self {
        let all: Vec<String> = (0..6).map(|_| ports::free_address()).collect();
        let first_view = all[..5].join(",");
        let start = |(number, address): (usize, &String)| {
            let mut settings = vec![("VIEW", first_view.as_str()), SETTINGS];
            if number == armed {
                settings.push(("FAILPOINTS", failpoints));
            }
            Node::start(address, &settings)
        };
        let nodes: Vec<Node> = all.iter().enumerate().map(start).collect();
        nodes[..5].iter().for_each(Node::wait_ready);
        for node in &nodes {
            wait_knows(node, 5);
        }
        lead_by_first(&nodes[..3]);
        let pairs = create_pairs(&all[ASKED], PAIRS);
        Self { nodes, all, first_view, pairs }
    }

    fn asked(&self) -> &str {
        &self.all[ASKED]
    }

    /// The view after the change: the source leaves and the target comes.
    fn wanted(&self) -> Vec<String> {
        [&self.all[..Source.node()], &self.all[Target.node()..]].concat()
    }

    fn harm(&mut self, row: Row) {
        let (reaching, victim) = (row.reached_by.node(), row.victim.node());
        let what = format!("{} is reached", row.point);
        wait_until(&what, START_DEADLINE, || self.nodes[reaching].has_halted());
        if reaching != victim {
            match row.harm {
                Kill => self.nodes[victim].kill(),
                Stop => self.nodes[victim].pause(),
            }
            self.nodes[reaching].resume();
        }
    }

    /// Lets the stopped node go on, or starts the killed one anew, without its memory and its failpoint.
    fn give_back(&mut self, row: Row) {
        // That it is away for a while is the fault itself; nothing is waited for.
        thread::sleep(AWAY);
        let victim = &mut self.nodes[row.victim.node()];
        match row.harm {
            Stop => victim.resume(),
            Kill => {
                victim.restart_with(&[("VIEW", &self.first_view), SETTINGS]);
                victim.wait_live();
            }
        }
    }

    /// What this node answers for every pair: those that it cannot serve, for the reason that the shard is lost.
    /// Any other answer than the right value is a panic.
    fn unserved(&self, through: &str, lost: Option<&str>) -> BTreeSet<String> {
        let mut client = Http::new(through);
        let mut unserved = BTreeSet::new();
        for (key, value) in &self.pairs {
            let answer = client.get(&target(key));
            if answer.status == 200 {
                assert_eq!(answer.json()["value"], *value, "{key} through {through}");
                continue;
            }
            let reason = answer.header("Evenkv-Reason").unwrap_or_default().to_owned();
            let text = answer.text();
            assert_eq!(answer.status, 503, "{key} through {through}: {text} {reason}");
            let shard =
                lost.unwrap_or_else(|| panic!("{key} through {through}, nothing is lost: {text} {reason}"));
            assert!(reason.contains(&format!("shard {shard}")), "{key} through {through}: {text} {reason}");
            unserved.insert(key.clone());
        }
        unserved
    }

    /// The id of the victim's shard, where its pairs are gone.
    fn lost_shard(&self, victim: &str) -> Option<String> {
        let known = shards(self.asked());
        let id = known.iter().find(|(_, node)| *node == victim).map(|(id, _)| id.clone())?;
        let audited = audit(self.asked());
        audited.counts[victim].is_none().then_some(id)
    }

    /// Every node answers for every pair, and the counts are those of the pairs and of what the clients left.
    fn check(&self, lost: &BTreeSet<String>, others: u64) {
        for (node, address) in self.nodes.iter().zip(&self.all) {
            wait_knows(node, shards(self.asked()).len());
            let mut client = Http::new(address);
            for (key, value) in &self.pairs {
                let answer = client.get(&target(key));
                let right = if lost.contains(key) {
                    answer.status == 404
                } else {
                    answer.status == 200 && answer.json()["value"] == *value
                };
                assert!(right, "{key} through {address}: {} {:.200}", answer.status, answer.text());
            }
        }
        let after = audit(self.asked());
        assert!(after.ok, "{after:?}");
        assert_eq!(after.keys, (self.pairs.len() - lost.len()) as u64 + others, "lost or doubled: {after:?}");
    }
}

fn create_pairs(through: &str, count: usize) -> BTreeMap<String, Value> {
    let mut client = Http::new(through);
    let mut pairs = BTreeMap::new();
    for number in 0..count {
        let (key, size) = (format!("pair-{number}"), if number % 3 == 0 { LARGE } else { 10 });
        let value = json!(format!("{number} {}", "x".repeat(size)));
        let answer = client.put(&target(&key), json!({ "value": value }).to_string());
        assert_eq!(answer.status, 201, "{key}: {}", answer.text());
        pairs.insert(key, value);
    }
    pairs
}

/// Whether this node says that it leads the meta group.
fn leads(node: &Node) -> bool {
    let answer = node.http().try_request("GET", "/metrics", &[], b"");
    answer.is_ok_and(|answer| answer.text().lines().any(|line| line.trim() == "evenkv_meta_leader 1"))
}

/// Takes the lead from the other voters until the first one has it.
fn lead_by_first(voters: &[Node]) {
    for _ in 0..30 {
        wait_until("a voter leads", START_DEADLINE, || voters.iter().any(leads));
        if leads(&voters[0]) {
            return;
        }
        for leader in voters.iter().filter(|voter| leads(voter)) {
            leader.pause();
            let others = || voters.iter().filter(|voter| voter.address() != leader.address());
            wait_until("another voter leads", START_DEADLINE, || others().any(leads));
            leader.resume();
            wait_until("the old leader follows", START_DEADLINE, || !leads(leader));
        }
    }
    panic!("the first voter never leads");
}

/// Waits until the change has ended or says that it is blocked, and returns its status.
fn settled(asked: &str) -> Value {
    let limit = allowed(SETTLE) + Duration::from_secs(1);
    wait_until("the change has ended or is blocked", limit, || {
        let phase = phase(asked);
        has_ended(&phase) || phase == "blocked"
    });
    status(asked)
}

/// Takes a cluster through one row and says how it went.
fn run(row: Row) -> String {
    let action = if row.reached_by == row.victim && row.harm == Kill { "kill" } else { "stop" };
    let mut trial = Trial::start(row.reached_by.node(), &format!("{}=1*return({action})", row.point));
    let (asked, wanted) = (trial.asked().to_owned(), trial.wanted());
    let unharmed = UNHARMED.map(|number| trial.all[number].clone());
    // A killed node may take writes with it that were acknowledged, so a history says nothing then.
    let profile = Profile { clients: 4, keys: 40, ..Profile::default() };
    let load = (row.harm == Stop).then(|| Load::start(&unharmed, &profile));
    let body = json!({ "view": wanted }).to_string();
    // Its answer may be any; what became of the change is asked of the cluster.
    thread::spawn({
        let asked = asked.clone();
        move || drop(Http::new(&asked).try_request("PUT", VIEW_CHANGE, &[], body.as_bytes()))
    });
    trial.harm(row);
    trial.give_back(row);
    let (ended, took) = timed(|| settled(&asked));
    let outcome = ended["phase"].as_str().expect("a phase").to_owned();
    let lost = match row.harm {
        Stop => {
            assert_ne!(outcome, "blocked", "all nodes are there: {ended}");
            wait_until("every shard is there", allowed(SETTLE), || audit(&asked).ok);
            BTreeSet::new()
        }
        Kill => accept_loss(&trial, row, &ended),
    };
    assert!(lost.is_empty() || !row.loses_nothing(), "{} pairs are lost for nothing: {ended}", lost.len());
    let left = load.map_or(0, |load| check_load(load, &unharmed[0]));
    trial.check(&lost, left);
    if lost.is_empty() && outcome != "blocked" {
        check_end(&trial, &ended);
    }
    format!("{outcome} {took:.1?} after the node was back, {} pairs lost", lost.len())
}

/// After a finished change the view is the wanted one; after another end it is the old one, and can be changed.
fn check_end(trial: &Trial, ended: &Value) {
    let known: BTreeSet<String> = shards(trial.asked()).into_values().collect();
    if ended["phase"] == "finished" {
        check_receipt(&ended["receipt"], &trial.wanted());
        assert_eq!(known, trial.wanted().into_iter().collect(), "{ended}");
        return;
    }
    assert_eq!(known, trial.all[..5].iter().cloned().collect(), "{ended}");
    let (answer, took) = timed(|| ask(trial.asked(), &trial.wanted()));
    assert_eq!(answer.status, 200, "after {ended}: {}", answer.text());
    assert!(took < allowed(SETTLE), "after {ended} a change took {took:?}");
    check_receipt(&answer.json(), &trial.wanted());
}

/// Where the killed node took pairs with it, the cluster says so, and a change that accepts the loss ends. Returns
/// the pairs that are gone: exactly those that were not served before either.
fn accept_loss(trial: &Trial, row: Row, ended: &Value) -> BTreeSet<String> {
    let victim = &trial.all[row.victim.node()];
    let Some(shard) = trial.lost_shard(victim) else {
        assert_ne!(ended["phase"], "blocked", "nothing is lost: {ended}");
        assert_eq!(trial.unserved(trial.asked(), None), BTreeSet::new());
        return BTreeSet::new();
    };
    if ended["phase"] == "blocked" {
        let by = ended["blocked-by"].as_str().expect("a reason");
        assert!(
            by.contains(&format!("shard {shard}")) || by.contains(victim),
            "{victim} was killed: {ended}"
        );
    }
    let lost = trial.unserved(trial.asked(), Some(&shard));
    let rest: Vec<String> = trial.all.iter().filter(|address| *address != victim).cloned().collect();
    let body = json!({"view": rest, "accept-loss": [shard]});
    let (answer, took) = timed(|| ask_with(trial.asked(), &[], &body));
    assert_eq!(answer.status, 200, "after {ended}: {}", answer.text());
    assert!(took < allowed(SETTLE), "accepting the loss took {took:?}");
    let receipt = answer.json();
    check_receipt(&receipt, &rest);
    let given_up = &receipt["given-up"][0];
    assert_eq!(
        (&given_up["shard-id"], &given_up["replicas"]),
        (&json!(shard), &json!([victim])),
        "{receipt}"
    );
    lost
}

/// Clients are served again, and what they were told is what one store could have told them; how many of their pairs
/// are there.
fn check_load(load: Load, through: &str) -> u64 {
    let before = load.answers();
    wait_until("clients are served again", START_DEADLINE, || load.answers() >= before + 50);
    let noted = load.stop();
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
    let mut client = Http::new(through);
    let there = (0..40).filter(|number| client.get(&target(&format!("load-{number}"))).status == 200);
    there.count() as u64
}

/// A PUT to `/node/recover`.
fn recover(node: &Node) -> (u16, Value) {
    let answer = node.http().put("/node/recover", "{}");
    (answer.status, answer.json())
}

/// Kills the nodes `dead` of a cluster, recovers it by `survivor`, and lets it go on with those that are left.
fn check_recovery(count: usize, dead: &[usize], survivor: usize) {
    let mut cluster = Cluster::with(count, &[SETTINGS]);
    let all = cluster.addresses();
    let pairs = create_pairs(&all[survivor], 60);
    let owner_of = |key: &String| cluster.owner_of(&target(key));
    let owners: BTreeMap<String, usize> = pairs.keys().map(|key| (key.clone(), owner_of(key))).collect();
    let (status, body) = recover(&cluster.nodes[survivor]);
    assert_eq!(status, 409, "all voters live: {body}");
    for &number in dead {
        cluster.nodes[number].kill();
    }
    let rest: Vec<String> =
        (0..count).filter(|number| !dead.contains(number)).map(|n| all[n].clone()).collect();
    let gone: Vec<String> = dead.iter().map(|&number| all[number].clone()).collect();
    let ids: Vec<String> = dead.iter().map(|number| (number + 1).to_string()).collect();
    let accept = json!({"view": rest, "accept-loss": ids});
    let refused = ask_with(&all[survivor], &[], &accept);
    assert_eq!(refused.status, 503, "nobody can decide: {}", refused.text());
    // A voter that is left may have taken it down, and would go on with it if the others came back.
    let outcome = refused.header("Evenkv-Outcome");
    assert!(outcome == Some("not-applied") || (dead.len() > 1 && outcome == Some("unknown")), "{outcome:?}");

    let epoch = cluster.nodes[survivor].http().get("/kv-store/view").json()["epoch"].as_u64();
    let mut answer = (0, Value::Null);
    // A node that is asked too early still counts on the voters.
    wait_until("the survivor recovers", allowed(SETTLE), || {
        answer = recover(&cluster.nodes[survivor]);
        answer.0 == 200
    });
    let body = answer.1;
    assert_eq!(body["message"], "Recovered", "{body}");
    assert_eq!((&body["given-up"], &body["lost-shards"]), (&json!(gone), &json!(ids)), "{body}");
    assert!(body["epoch"].as_u64() > epoch && body["cluster-id"].is_string(), "{body}");
    for (key, value) in &pairs {
        for address in &rest {
            let mut answer = None;
            wait_until(&format!("{key} is answered for through {address}"), allowed(SETTLE), || {
                let got = Http::new(address).get(&target(key));
                let lost = dead.contains(&owners[key]);
                let right = if lost {
                    got.status == 503 && got.header("Evenkv-Reason").is_some()
                } else {
                    got.status == 200 && got.json()["value"] == *value
                };
                assert!(!lost || got.status != 404, "{key} is lost, not absent");
                answer = Some(got);
                right
            });
        }
    }
    let accepted = ask_with(&all[survivor], &[], &accept);
    assert_eq!(accepted.status, 200, "{}", accepted.text());
    check_receipt(&accepted.json(), &rest);
    for (key, owner) in &owners {
        let status = if dead.contains(owner) { 404 } else { 200 };
        let through = &rest[owner % rest.len()];
        assert_eq!(Http::new(through).get(&target(key)).status, status, "{key} through {through}");
    }
    assert!(audit(&rest[0]).ok);
}

#[test]
fn a_cluster_whose_meta_majority_is_gone_recovers() {
    let _alone = alone();
    check_recovery(5, &[0, 1], 3);
    check_recovery(5, &[1, 2], 0);
}

#[test]
fn a_cluster_whose_one_voter_is_gone_recovers() {
    let _alone = alone();
    check_recovery(2, &[0], 1);
}

/// The nodes with these numbers do not answer, and come back after the recovery: they are told, and decide nothing any more.
#[test]
fn a_recovered_cluster_outlives_its_old_leader() {
    let _alone = alone();
    let cluster = Cluster::with(3, &[SETTINGS]);
    let all = cluster.addresses();
    create_pairs(&all[2], 30);
    cluster.nodes[0].pause();
    cluster.nodes[1].pause();
    let (status, body) = recover(&cluster.nodes[2]);
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["given-up"], json!(all[..2]), "{body}");
    cluster.nodes[0].resume();
    cluster.nodes[1].resume();
    for node in &cluster.nodes[..2] {
        wait_until("a node that was given up says so", allowed(SETTLE), || {
            node.http().get("/readyz").text().contains("is lost")
        });
    }
    let body = json!({"view": all, "accept-loss": ["1", "2"]});
    wait_until("the view can be changed, through a node that was given up, too", allowed(SETTLE), || {
        ask_with(&all[0], &[], &body).status == 200
    });
    assert!(audit(&all[1]).ok);
}

#[test]
fn a_survivor_that_is_slow_is_not_given_up() {
    let _alone = alone();
    let mut cluster = Cluster::with(4, &[SETTINGS]);
    let all = cluster.addresses();
    create_pairs(&all[3], 40);
    let held = audit(&all[3]).counts[&all[2]];
    for number in [0, 1] {
        cluster.nodes[number].kill();
    }
    cluster.nodes[2].pause();
    let (status, body) = thread::scope(|scope| {
        let answer = scope.spawn(|| recover(&cluster.nodes[3]));
        thread::sleep(AWAY);
        cluster.nodes[2].resume();
        answer.join().expect("it is answered")
    });
    assert_eq!((status, &body["given-up"]), (200, &json!(all[..2])), "{body}");
    assert_eq!(audit(&all[3]).counts[&all[2]], held);
    // Once more there is nothing to recover: the new group lives.
    let (status, body) = recover(&cluster.nodes[2]);
    assert_eq!(status, 409, "{body}");
}

#[test]
fn a_view_change_that_is_refused_does_not_end_a_blocked_one() {
    let _alone = alone();
    let cluster = Cluster::with(3, &[SETTINGS, ("FAILPOINTS", "source-batch=1*return(stop)")]);
    let all = cluster.addresses();
    let spare = passive(&all, &[SETTINGS]);
    wait_knows(&spare, 3);
    create_pairs(&all[0], 60);
    let wanted = [all[0].clone(), all[1].clone(), spare.address().to_owned()];
    let body = json!({ "view": wanted });
    let begun = ask_with(spare.address(), &[("Prefer", "respond-async")], &body);
    assert_eq!(begun.status, 202, "{}", begun.text());
    wait_until("a source stops", START_DEADLINE, || cluster.nodes.iter().any(Node::has_halted));
    wait_until("it is said to be blocked", allowed(2 * SETTLE), || phase(spare.address()) == "blocked");
    let id = status(spare.address())["change-id"].clone();
    assert_eq!(id, begun.json()["change-id"]);
    let nobody = json!({"view": [all[0], ports::free_address()]});
    assert_eq!(ask_with(spare.address(), &[], &nobody).status, 400);
    let again = ask_with(spare.address(), &[], &body);
    assert_eq!((again.status, &again.json()["change-id"]), (409, &id), "{}", again.text());
    wait_until("it goes on when the source does", allowed(2 * SETTLE), || {
        cluster.nodes.iter().filter(|node| node.has_halted()).for_each(Node::resume);
        phase(spare.address()) == "finished"
    });
    let ended = status(spare.address());
    assert_eq!(ended["change-id"], id, "{ended}");
    check_receipt(&ended["receipt"], &wanted);
    assert!(audit(&all[2]).ok);
}

#[test]
fn a_node_that_comes_back_empty_is_not_believed() {
    let _alone = alone();
    let mut cluster = Cluster::with(5, &[SETTINGS]);
    let all = cluster.addresses();
    let pairs = create_pairs(&all[0], 60);
    let own: BTreeSet<&String> = pairs.keys().filter(|key| cluster.owner_of(&target(key)) == 4).collect();
    assert!(!own.is_empty());
    cluster.nodes[4].restart();
    cluster.nodes[4].wait_live();
    let started = Instant::now();
    // For a while, since it must not be believed later either.
    while started.elapsed() < Duration::from_secs(2) {
        for address in &all {
            let mut client = Http::new(address);
            for key in &own {
                let got = client.get(&target(key));
                assert_eq!(got.status, 503, "{key} through {address}: {}", got.text());
                let put = client.put(&target(key), r#"{"value":"new"}"#);
                assert_eq!(put.status, 503, "{key} through {address}: {}", put.text());
                assert_eq!(put.header("Evenkv-Outcome"), Some("not-applied"), "{key} through {address}");
            }
        }
    }
    let mut client = Http::new(&all[1]);
    for key in &own {
        let got = client.get(&target(key));
        assert!(
            got.header("Evenkv-Reason").is_some_and(|reason| reason.contains("shard 5")),
            "{:?}",
            got.headers
        );
    }
    for key in pairs.keys().filter(|key| !own.contains(key)) {
        assert_eq!(client.get(&target(key)).status, 200, "{key}");
    }
    let seen = audit(&all[1]);
    assert!(!seen.ok && seen.counts[&all[4]].is_none(), "{seen:?}");
    let refused = ask(&all[1], &all);
    assert_eq!(refused.status, 400, "nobody accepted the loss: {}", refused.text());
    assert!(
        refused.json()["error"].as_str().is_some_and(|error| error.contains("shard 5")),
        "{}",
        refused.text()
    );
    // Given up, it is as good as any other empty node.
    let accepted = ask_with(&all[1], &[], &json!({"view": all, "accept-loss": ["5"]}));
    assert_eq!(accepted.status, 200, "{}", accepted.text());
    check_receipt(&accepted.json(), &all);
    assert_eq!(audit(&all[4]).keys, (pairs.len() - own.len()) as u64);
}

#[test]
fn a_node_that_was_given_up_and_goes_on_serves_nothing_old() {
    let _alone = alone();
    let cluster = Cluster::with(4, &[SETTINGS]);
    let all = cluster.addresses();
    let spare = passive(&all, &[SETTINGS]);
    wait_knows(&spare, 4);
    let pairs = create_pairs(&all[0], 60);
    let own: Vec<&String> = pairs.keys().filter(|key| cluster.owner_of(&target(key)) == 3).collect();
    assert!(own.len() > 1);
    let stopped = &cluster.nodes[3];
    stopped.pause();
    let body = json!({"view": all[..3], "accept-loss": ["4"]});
    let (answer, took) = timed(|| ask_with(&all[0], &[], &body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(took < allowed(SETTLE), "it took {took:?}");
    let receipt = answer.json();
    assert_eq!(receipt["given-up"][0]["shard-id"], "4", "{receipt}");
    assert_eq!(receipt["given-up"][0]["replicas"], json!([all[3]]), "{receipt}");
    // Half of its keys are written anew, the others are gone.
    let expected: BTreeMap<&String, Option<u64>> =
        own.iter().enumerate().map(|(n, key)| (*key, n.is_multiple_of(2).then_some(n as u64))).collect();
    for (key, value) in &expected {
        if let Some(value) = value {
            let put = Http::new(&all[1]).put(&target(key), json!({ "value": value }).to_string());
            assert_eq!(put.status, 201, "{key} was lost: {}", put.text());
        }
    }
    stopped.resume();
    wait_until("it has learned that it was given up", allowed(SETTLE), || {
        let view = stopped.http().get("/kv-store/view");
        view.status == 200 && view.json()["epoch"].as_u64() >= receipt["epoch"].as_u64()
    });
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        for address in all.iter().chain([&spare.address().to_owned()]) {
            let mut client = Http::new(address);
            for (key, value) in &expected {
                let got = client.get(&target(key));
                match value {
                    Some(value) => assert_eq!(got.json()["value"], *value, "{key} through {address}"),
                    None => assert_eq!(got.status, 404, "{key} through {address}: {}", got.text()),
                }
            }
        }
    }
    let count = stopped.http().get("/kv-store/key-count").json();
    assert_eq!(count, json!({"message": "Key count retrieved successfully", "key-count": 0}));
    // It is taken back as an empty node.
    let answer = ask(stopped.address(), &all);
    assert_eq!(answer.status, 200, "{}", answer.text());
    check_receipt(&answer.json(), &all);
    assert!(audit(&all[2]).ok);
}
