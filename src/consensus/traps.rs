//! Three replicas on a network that does what it is told: one test for each way to go wrong that is known.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::driver::Driver;
use super::envelope::{Body, Delivery, Envelope, Lane};
use super::machine::{Answer, Command, Pieces, Refusal, StateMachine};
use super::members::{Change, Members};
use super::settings::Settings;
use super::status::{Role, Status};
use crate::model::binary::Malformed;
use crate::model::format;
use crate::model::view::MOST_REPLICAS;

const GROUP: u64 = 5;

/// The commands applied, as a text.
struct Text(String);

impl StateMachine for Text {
    fn apply(&mut self, _index: u64, _term: u64, command: &[u8]) -> Vec<u8> {
        self.0.push_str(std::str::from_utf8(command).unwrap());
        self.0.clone().into_bytes()
    }

    fn snapshot(&self) -> Pieces {
        // Of other lengths than what is sent at a time.
        let pieces: Vec<Bytes> = self.0.as_bytes().chunks(7).map(Bytes::copy_from_slice).collect();
        Box::new(pieces.into_iter())
    }

    fn needs(&self, command: &[u8]) -> u32 {
        if command.starts_with(b"new") { format::CURRENT } else { format::FIRST }
    }

    fn state_needs(&self) -> u32 {
        if self.0.contains("new") { format::CURRENT } else { format::FIRST }
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        self.0 = String::from_utf8(snapshot.to_vec()).map_err(|_| Malformed("not a text"))?;
        Ok(())
    }
}

struct Cluster {
    nodes: BTreeMap<u64, Driver<&'static str>>,
    /// What passes from whom to whom.
    passes: fn(&Envelope) -> bool,
    /// What each node knows,
    format: u32,
    /// but this one, which is of an older version.
    old: Option<u64>,
    answers: BTreeMap<&'static str, Answer>,
}

fn settings() -> Settings {
    Settings { max_log_entries: 20, piece_bytes: 16, max_message_bytes: 1000, ..Settings::default() }
}

fn address(replica: u64) -> crate::model::address::Address {
    format!("node{replica}:1").parse().unwrap()
}

impl Cluster {
    fn founded(replicas: &[u64]) -> Self {
        Self::founded_with(replicas, &settings())
    }

    fn founded_with(replicas: &[u64], settings: &Settings) -> Self {
        let voters: Members = replicas.iter().map(|replica| (*replica, address(*replica))).collect();
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            passes: |_| true,
            format: format::CURRENT,
            old: None,
            answers: BTreeMap::new(),
        };
        for replica in replicas {
            let mut driver = Driver::new(settings.clone());
            driver.found(GROUP, *replica, &voters, Box::new(Text(String::new()))).unwrap();
            cluster.nodes.insert(*replica, driver);
        }
        cluster.settle();
        cluster
    }

    fn join(&mut self, replica: u64) {
        let mut driver = Driver::new(settings());
        driver.join(GROUP, replica, Box::new(Text(String::new()))).unwrap();
        self.nodes.insert(replica, driver);
    }

    fn node(&mut self, replica: u64) -> &mut Driver<&'static str> {
        self.nodes.get_mut(&replica).unwrap()
    }

    fn status(&self, replica: u64) -> Status {
        self.nodes[&replica].status(GROUP).unwrap()
    }

    /// Works and delivers until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moving = Vec::new();
            for node in self.nodes.values_mut() {
                node.work();
                for (waiter, answer) in node.take_answers() {
                    assert_eq!(self.answers.insert(waiter, answer), None, "{waiter} was answered twice");
                }
                moving.extend(node.take_outbox());
            }
            if moving.is_empty() {
                return;
            }
            for envelope in moving {
                if (self.passes)(&envelope)
                    && let Some(node) = self.nodes.get_mut(&envelope.to)
                {
                    let is_old = self.old == Some(envelope.from);
                    let format = if is_old { format::FIRST } else { self.format };
                    node.note_format(GROUP, envelope.from, format);
                    node.step(envelope);
                }
            }
        }
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            self.nodes.values_mut().for_each(Driver::tick);
            self.settle();
        }
    }

    /// Lets ticks pass until something is so.
    fn wait_until(&mut self, condition: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if condition(self) {
                return;
            }
            self.tick(1);
        }
        panic!(
            "it did not come about: {:?}",
            self.nodes.keys().map(|id| self.status(*id)).collect::<Vec<_>>()
        );
    }

    fn propose(&mut self, at: u64, command: &'static str) {
        let bytes = Bytes::from(command);
        let command_of = Command { bytes, needs: format::FIRST, goes_ahead: true };
        self.node(at).propose(GROUP, command_of, command);
    }

    fn outcome(&self, command: &str) -> &str {
        match &self.answers[command] {
            Answer::Applied { outcome, .. } => std::str::from_utf8(outcome).unwrap(),
            other => panic!("{command}: {other:?}"),
        }
    }
}

fn promote(learner: u64, replaces: Option<u64>) -> Change {
    Change::Promote { learner, replaces }
}

fn add(replica: u64) -> Change {
    Change::AddLearner { replica, address: address(replica) }
}

#[test]
fn the_only_voter_leads_at_once() {
    let mut cluster = Cluster::founded(&[1]);
    cluster.propose(1, "a");
    cluster.node(1).read(GROUP, "read");
    cluster.settle();
    assert_eq!(cluster.outcome("a"), "a");
    assert!(matches!(cluster.answers["read"], Answer::Readable { .. }));
}

#[test]
fn one_of_the_founders_leads_at_once_and_the_others_name_it() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    for command in ["a", "b"] {
        cluster.propose(1, command);
    }
    cluster.propose(2, "c");
    cluster.node(3).read(GROUP, "read");
    cluster.settle();
    assert_eq!(cluster.outcome("b"), "ab");
    let elsewhere = Answer::NotApplied(Refusal::NotLeader { leader: Some(1) });
    assert_eq!((&cluster.answers["c"], &cluster.answers["read"]), (&elsewhere, &elsewhere));
}

#[test]
fn a_read_that_the_crate_drops_is_asked_again() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    // A new leader that has not committed in its term: its entries are lost, votes and heartbeats are not.
    cluster.passes = |envelope| !format!("{envelope:?}").contains("MsgAppend");
    assert!(cluster.node(1).hand_over(GROUP, Some(2)));
    cluster.settle();
    assert_eq!(cluster.status(2).role, Role::Leader);
    cluster.node(2).read(GROUP, "read");
    cluster.tick(5);
    assert!(!cluster.answers.contains_key("read"));
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| cluster.answers.contains_key("read"));
    assert!(matches!(cluster.answers["read"], Answer::Readable { .. }));
}

#[test]
fn a_change_that_the_crate_refuses_is_not_reported_as_done() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.join(4);
    // Past the first check of ours, to see what the crate makes of it.
    let change = add(4);
    cluster.node(1).change(GROUP, &change, "first");
    cluster.node(1).change(GROUP, &change, "second");
    cluster.node(1).change(GROUP, &promote(3, None), "a voter already");
    cluster.node(1).change(GROUP, &Change::Remove { replicas: vec![1] }, "the leader");
    cluster.settle();
    assert!(matches!(cluster.answers["first"], Answer::Applied { .. }));
    for refused in ["second", "a voter already", "the leader"] {
        assert_eq!(cluster.answers[refused], Answer::NotApplied(Refusal::ChangeRefused), "{refused}");
    }
}

#[test]
fn every_replica_of_the_largest_group_can_be_replaced() {
    let replicas: Vec<u64> = (1..=MOST_REPLICAS as u64).collect();
    let mut cluster = Cluster::founded(&replicas);
    for learner in replicas.iter().map(|replica| 1000 + replica) {
        cluster.node(1).change(GROUP, &add(learner), "add");
        cluster.settle();
        let added = cluster.answers.remove("add");
        assert!(matches!(added, Some(Answer::Applied { .. })), "learner {learner}: {added:?}");
    }
    assert_eq!(cluster.status(1).learners.len(), replicas.len());
}

#[test]
fn a_learner_with_an_empty_log_is_not_promoted() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.propose(1, "a");
    cluster.join(4);
    cluster.passes = |envelope| envelope.lane() != Lane::Snapshot;
    cluster.node(1).change(GROUP, &add(4), "add");
    cluster.settle();
    cluster.node(1).change(GROUP, &promote(4, Some(3)), "too early");
    cluster.settle();
    assert_eq!(cluster.answers["too early"], Answer::NotApplied(Refusal::NotCaughtUp));
}

#[test]
fn a_snapshot_that_is_lost_is_sent_again() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.propose(1, "a text that does not fit into one piece of a snapshot");
    cluster.join(4);
    cluster.passes = |envelope| envelope.lane() != Lane::Snapshot;
    cluster.node(1).change(GROUP, &add(4), "add");
    // Longer than the patience of a transfer: the crate has been told of its failure by now.
    cluster.tick(150);
    assert_eq!(cluster.status(4).applied, 0);
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| cluster.status(4).applied == cluster.status(1).applied);
    assert_eq!(cluster.status(4).members, cluster.status(1).members);
}

#[test]
fn a_joint_configuration_is_left_although_its_leader_is_gone() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.join(4);
    cluster.node(1).change(GROUP, &add(4), "add");
    cluster.wait_until(|cluster| cluster.status(4).applied == cluster.status(1).applied);
    // The first half of the change reaches everybody, and then nothing more comes from its leader.
    cluster.node(1).change(GROUP, &promote(4, Some(3)), "replace");
    let first_half = cluster.status(1).last;
    cluster.node(1).work();
    for envelope in cluster.node(1).take_outbox() {
        let to = envelope.to;
        cluster.node(to).step(envelope);
    }
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1;
    cluster.wait_until(|cluster| {
        (2..=4).any(|id| cluster.status(id).role == Role::Leader)
            && (2..=4).all(|id| id == 3 || cluster.status(id).voters == cluster.status(2).voters)
            && cluster.status(2).applied > first_half
            && cluster.status(2).outgoing.is_empty()
    });
    let mut voters = cluster.status(2).voters;
    voters.sort_unstable();
    assert_eq!(voters, [1, 2, 4]);
}

#[test]
fn a_leader_that_finds_its_own_removal_in_the_log_steps_down() {
    let cut_off: fn(&Envelope) -> bool = |envelope| envelope.from != 1 && envelope.to != 1;
    let leads = |cluster: &Cluster, id| cluster.status(id).role == Role::Leader;
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.passes = cut_off;
    cluster.wait_until(|cluster| leads(cluster, 2) || leads(cluster, 3));
    // Timeouts depend on replica and term only, so the same one is elected next time.
    let (next, other) = if leads(&cluster, 2) { (2, 3) } else { (3, 2) };

    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.tick(2);
    cluster.node(1).change(GROUP, &Change::Remove { replicas: vec![next] }, "remove");
    cluster.node(1).work();
    for envelope in cluster.node(1).take_outbox() {
        let to = envelope.to;
        cluster.node(to).step(envelope);
    }
    assert_eq!(cluster.status(next).last, cluster.status(1).last);
    cluster.passes = cut_off;
    cluster.wait_until(|cluster| !cluster.status(next).members.contains_key(&next));
    assert_ne!(cluster.status(next).role, Role::Leader);
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| leads(cluster, 1) || leads(cluster, other));
    cluster.wait_until(|cluster| cluster.answers.contains_key("remove"));
    assert!(matches!(cluster.answers["remove"], Answer::Applied { .. }));
}

#[test]
fn a_group_that_shrinks_to_one_outlives_the_death_of_one_that_leaves() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.passes = |envelope| envelope.from != 2 && envelope.to != 2;
    // Taken out one after the other, the first one to go is the one that lives: what stays is two, and one of them is dead.
    cluster.node(1).change(GROUP, &Change::Remove { replicas: vec![3, 2] }, "remove");
    cluster.settle();
    assert!(matches!(cluster.answers["remove"], Answer::Applied { .. }));
    let status = cluster.status(1);
    assert_eq!((status.voters, status.outgoing), (vec![1], vec![]));
    cluster.passes = |envelope| envelope.from == envelope.to;
    cluster.propose(1, "alone");
    cluster.settle();
    assert!(matches!(cluster.answers["alone"], Answer::Applied { .. }));
}

#[test]
fn what_waits_behind_an_entry_that_is_never_committed_is_told_so() {
    let settings = Settings { answer_ticks: 50, ..settings() };
    let mut cluster = Cluster::founded_with(&[1, 2, 3], &settings);
    cluster.tick(2);
    // The others answer heartbeats, so the leader stays; but they take no entries.
    cluster.passes = |envelope| !matches!(&envelope.body, Body::Raft(message) if !message.entries.is_empty());
    cluster.propose(1, "in the log");
    cluster.settle();
    cluster.propose(1, "in the inbox");
    cluster.tick(49);
    assert!(!cluster.answers.contains_key("in the inbox"));
    cluster.tick(2);
    assert_eq!(cluster.status(1).role, Role::Leader);
    assert_eq!(cluster.answers["in the log"], Answer::Unknown);
    assert_eq!(cluster.answers["in the inbox"], Answer::NotApplied(Refusal::Busy));
    cluster.passes = |_| true;
    cluster.propose(1, "after");
    cluster.wait_until(|cluster| cluster.answers.contains_key("after"));
    assert_eq!(cluster.outcome("after"), "in the logafter", "what was refused never comes");
}

#[test]
fn proposals_wait_while_leadership_is_handed_over_and_then_name_the_new_leader() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    assert!(cluster.node(1).hand_over(GROUP, None));
    cluster.propose(1, "a");
    cluster.settle();
    let new = (2..=3).find(|id| cluster.status(*id).role == Role::Leader).unwrap();
    assert!(matches!(cluster.answers["a"], Answer::NotApplied(Refusal::NotLeader { .. })));
    cluster.propose(new, "b");
    cluster.settle();
    assert_eq!(cluster.outcome("b"), "b");
}

#[test]
fn a_leader_that_is_cut_off_answers_unknown_and_takes_no_more_than_it_may() {
    let tight = Settings { max_waiting: 2, answer_ticks: 4, ..settings() };
    let mut cluster = Cluster::founded_with(&[1, 2, 3], &tight);
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1;
    for command in ["a", "b", "c"] {
        cluster.propose(1, command);
    }
    cluster.settle();
    assert_eq!(cluster.answers["c"], Answer::NotApplied(Refusal::Busy));
    cluster.tick(5);
    assert_eq!((&cluster.answers["a"], &cluster.answers["b"]), (&Answer::Unknown, &Answer::Unknown));
}

#[test]
fn the_log_stays_within_its_bound_and_who_is_behind_gets_a_snapshot() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.passes = |envelope| envelope.from != 3 && envelope.to != 3;
    for _ in 0..500 {
        cluster.node(1).propose(GROUP, Bytes::from_static(b"x"), "x");
        cluster.settle();
        cluster.answers.clear();
    }
    let status = cluster.status(1);
    assert!(status.last - status.first < 20, "{status:?}");
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| cluster.status(3).applied >= status.applied);
}

#[test]
fn a_voter_is_not_taken_out_of_a_group_that_cannot_spare_it() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.passes = |envelope| envelope.from != 3 && envelope.to != 3;
    // Longer than an election takes: the third counts as dead.
    cluster.tick(40);
    assert_eq!(cluster.status(1).role, Role::Leader);
    cluster.node(1).change(GROUP, &Change::Remove { replicas: vec![2] }, "one that lives");
    cluster.settle();
    assert_eq!(cluster.answers["one that lives"], Answer::NotApplied(Refusal::ChangeRefused));
    cluster.node(1).change(GROUP, &Change::Remove { replicas: vec![3] }, "the dead one");
    cluster.settle();
    assert!(matches!(cluster.answers["the dead one"], Answer::Applied { .. }));
}

#[test]
fn what_a_snapshot_has_skipped_may_have_been_done() {
    let patient = Settings { answer_ticks: 10_000, ..settings() };
    let mut cluster = Cluster::founded_with(&[1, 2, 3], &patient);
    cluster.tick(2);
    // The others have the entry, and their leader does not hear of it.
    cluster.passes = |envelope| envelope.to != 1;
    cluster.propose(1, "a");
    cluster.settle();
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1;
    let leader = |cluster: &Cluster| (2..=3).find(|id| cluster.status(*id).role == Role::Leader);
    cluster.wait_until(|cluster| leader(cluster).is_some());
    let next = leader(&cluster).unwrap();
    for _ in 0..40 {
        cluster.propose(next, "x");
        cluster.settle();
        cluster.answers.remove("x");
    }
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| cluster.answers.contains_key("a"));
    assert_eq!(cluster.answers["a"], Answer::Unknown);
    cluster.propose(next, "b");
    cluster.settle();
    assert_eq!(cluster.outcome("b"), format!("a{}b", "x".repeat(40)), "it was done");
}

/// Has a replica do what it has to, and delivers what it sends to these; the rest is lost.
fn send(cluster: &mut Cluster, from: u64, to: &[u64]) {
    cluster.node(from).work();
    for envelope in cluster.node(from).take_outbox() {
        if to.contains(&envelope.to) {
            let to = envelope.to;
            cluster.node(to).step(envelope);
        }
    }
}

#[test]
fn a_snapshot_that_is_begun_between_two_entries_has_the_head_of_what_it_holds() {
    // A command does not wait until the change before it is committed.
    let hasty = Settings { batch_commands: 1, ..settings() };
    let mut cluster = Cluster::founded_with(&[1, 2, 3, 4], &hasty);
    cluster.tick(2);
    cluster.passes = |envelope| envelope.from != 4 && envelope.to != 4;
    for _ in 0..40 {
        cluster.propose(1, "x");
        cluster.settle();
        cluster.answers.clear();
    }
    // The third is taken out, which it agrees to, and to a command after that; to a second one agrees the other only.
    cluster.node(1).change(GROUP, &Change::Remove { replicas: vec![3] }, "remove");
    cluster.propose(1, "a");
    send(&mut cluster, 1, &[2, 3]);
    cluster.propose(1, "b");
    send(&mut cluster, 1, &[2]);
    send(&mut cluster, 3, &[1]);
    send(&mut cluster, 2, &[1]);
    cluster.node(1).report_unreachable(GROUP, 4);
    // With the change two are a majority, and the second command is committed. So all are told before the first one is applied; the fourth,
    // which is far behind, by a snapshot, which is sent after that.
    cluster.passes = |_| true;
    cluster.settle();
    assert!(matches!(cluster.answers["b"], Answer::Applied { .. }), "{:?}", cluster.answers);
    cluster.wait_until(|cluster| cluster.status(4).applied == cluster.status(1).applied);
    assert!(cluster.node(1).hand_over(GROUP, Some(4)));
    cluster.wait_until(|cluster| cluster.status(4).role == Role::Leader);
    cluster.propose(4, "c");
    cluster.settle();
    assert_eq!(cluster.outcome("c"), format!("{}abc", "x".repeat(40)));
}

#[test]
fn entries_are_sent_with_the_index_of_the_one_before_them() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.tick(2);
    cluster.propose(1, "a");
    send(&mut cluster, 1, &[2, 3]);
    cluster.node(3).work();
    let late = cluster.node(3).take_outbox();
    send(&mut cluster, 2, &[1]);
    cluster.propose(1, "b");
    send(&mut cluster, 1, &[2]);
    send(&mut cluster, 2, &[1]);
    // That the second is committed is to be told to the third, in a message without entries; and before that is sent, the crate begins
    // anew with it, and learns from a late answer that it lacks the second.
    cluster.node(1).report_unreachable(GROUP, 3);
    for envelope in late {
        cluster.node(1).step(envelope);
    }
    cluster.node(1).work();
    let mut with_entries = 0;
    for envelope in cluster.node(1).take_outbox() {
        let Body::Raft(message) = envelope.body else { continue };
        if let Some(first) = message.entries.first() {
            assert_eq!(first.index, message.index + 1, "{message:?}");
            with_entries += u64::from(envelope.to == 3);
        }
    }
    assert_eq!(with_entries, 1, "the third gets the second");
}

#[test]
fn a_replica_id_is_used_once_and_never_answered_for_another() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    let machine = || Box::new(Text(String::new()));
    assert!(cluster.node(3).join(GROUP, 9, machine()).is_err());
    cluster.node(3).give_up(GROUP);
    assert_eq!(cluster.node(3).join(GROUP, 3, machine()), Err(Refusal::ChangeRefused));
    assert_eq!(cluster.node(3).join(GROUP, 0, machine()), Err(Refusal::ChangeRefused));
    assert_eq!(cluster.node(3).join(GROUP, 9, machine()), Ok(()));
    for _ in 0..2 {
        cluster.node(1).tick();
        cluster.node(1).work();
    }
    let to_three = cluster.node(1).take_outbox().into_iter().find(|envelope| envelope.to == 3).unwrap();
    assert_eq!(cluster.node(3).step(to_three), Delivery::NotForMe);
}

#[test]
fn a_replica_that_lost_its_memory_under_its_old_id_is_refused_without_a_panic() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.propose(1, "a");
    cluster.settle();
    cluster.nodes.remove(&3);
    // Against the rule: the old id, and an empty log.
    cluster.join(3);
    cluster.tick(30);
    assert_eq!(cluster.status(3).applied, 0);
    assert_eq!(cluster.status(1).role, Role::Leader);
}

#[test]
fn a_learner_that_took_a_snapshot_is_promoted_although_nothing_is_written() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    for _ in 0..40 {
        cluster.node(1).propose(GROUP, Bytes::from_static(b"x"), "x");
        cluster.settle();
        cluster.answers.clear();
    }
    cluster.join(4);
    cluster.node(1).change(GROUP, &add(4), "learner");
    cluster.tick(10);
    assert_eq!(cluster.status(4).applied, cluster.status(1).committed);
    // As after a snapshot whose end is acknowledged in another order, too: to the crate it is being probed until an entry comes.
    cluster.node(1).report_unreachable(GROUP, 4);
    cluster.tick(10);
    cluster.node(1).change(GROUP, &promote(4, None), "voter");
    cluster.tick(1);
    assert!(matches!(cluster.answers["voter"], Answer::Applied { .. }), "{:?}", cluster.answers["voter"]);
}

#[test]
fn a_replica_of_a_log_that_ended_is_behind_the_one_that_goes_on_from_it() {
    let mut cluster = Cluster::founded(&[1, 2]);
    for command in ["a", "b", "c"] {
        cluster.propose(1, command);
    }
    cluster.settle();
    // The second is taken out and does not hear of it; the first keeps the state alone for a while, and then has a log again.
    cluster.passes = |envelope| envelope.from != 2 && envelope.to != 2;
    let ended = cluster.status(1);
    let mut driver = Driver::new(settings());
    let after = (ended.last, ended.term);
    let voters = Members::from([(3, address(3))]);
    driver.found_after(GROUP, 3, &voters, Box::new(Text("abcd".to_owned())), after).unwrap();
    cluster.nodes.remove(&1);
    cluster.nodes.insert(3, driver);
    cluster.settle();
    cluster.propose(3, "e");
    cluster.settle();
    cluster.passes = |_| true;
    cluster.node(3).change(GROUP, &add(2), "add");
    cluster.wait_until(|cluster| cluster.status(2).applied == cluster.status(3).applied);
    cluster.node(3).change(GROUP, &promote(2, None), "promote");
    cluster.wait_until(|cluster| cluster.status(2).voters.len() == 2);
    assert!(cluster.node(3).hand_over(GROUP, Some(2)));
    cluster.wait_until(|cluster| cluster.status(2).role == Role::Leader);
    cluster.propose(2, "f");
    cluster.settle();
    assert_eq!(cluster.outcome("f"), "abcdef");
}

const LARGE: &str = "a command that goes to the other replicas before it is proposed;";

/// Founded by three, with commands of this length going ahead in four parts.
fn staging(format: u32) -> Cluster {
    let staged =
        Settings { staged_bytes: LARGE.len(), part_bytes: 16, staging_window_bytes: 32, ..settings() };
    let mut cluster = Cluster::founded_with(&[1, 2, 3], &staged);
    cluster.format = format;
    cluster.tick(5);
    cluster
}

fn is_part(envelope: &Envelope) -> bool {
    matches!(envelope.body, Body::Part(_))
}

/// The longest command in an append.
fn longest_entry(envelope: &Envelope) -> usize {
    let Body::Raft(message) = &envelope.body else { return 0 };
    message.entries.iter().map(|entry| entry.data.len()).max().unwrap_or(0)
}

#[test]
fn what_comes_after_a_large_command_does_not_wait_for_it() {
    let mut cluster = staging(format::CURRENT);
    cluster.passes = |envelope| !is_part(envelope);
    cluster.propose(1, LARGE);
    cluster.settle();
    cluster.propose(1, "small");
    cluster.settle();
    assert_eq!(cluster.outcome("small"), "small");
    assert!(!cluster.answers.contains_key(LARGE));
    cluster.passes = |envelope| longest_entry(envelope) < LARGE.len();
    cluster.wait_until(|cluster| cluster.answers.contains_key(LARGE));
    assert_eq!(cluster.outcome(LARGE), format!("small{LARGE}"));
    cluster.wait_until(|cluster| (1..=3).all(|id| cluster.status(id).applied == cluster.status(1).last));
}

#[test]
fn a_large_command_that_keeps_its_place_goes_in_the_log() {
    let mut cluster = staging(format::CURRENT);
    cluster.passes = |envelope| !is_part(envelope);
    cluster.node(1).propose(GROUP, Bytes::from_static(LARGE.as_bytes()), LARGE);
    cluster.propose(1, "after");
    cluster.settle();
    assert_eq!(cluster.outcome("after"), format!("{LARGE}after"));
}

#[test]
fn a_command_that_never_arrives_is_not_proposed_and_its_waiter_is_told() {
    let mut cluster = staging(format::CURRENT);
    cluster.passes = |envelope| !is_part(envelope);
    cluster.propose(1, LARGE);
    cluster.tick(600);
    assert_eq!(cluster.answers[LARGE], Answer::NotApplied(Refusal::Busy));
    cluster.passes = |_| true;
    cluster.tick(100);
    cluster.propose(1, "after");
    cluster.settle();
    assert_eq!(cluster.outcome("after"), "after");
}

#[test]
fn a_replica_without_the_command_gets_what_is_before_its_entry_and_the_rest_when_it_has_it() {
    let mut cluster = staging(format::CURRENT);
    cluster.passes = |envelope| envelope.to != 3 || !is_part(envelope);
    cluster.propose(1, LARGE);
    cluster.settle();
    assert_eq!(cluster.outcome(LARGE), LARGE, "two of three hold it");
    let before = cluster.status(1).last;
    cluster.propose(1, "small");
    cluster.tick(20);
    assert_eq!(cluster.outcome("small"), format!("{LARGE}small"));
    assert_eq!(cluster.status(3).last, before - 1);
    cluster.passes = |envelope| longest_entry(envelope) < LARGE.len();
    cluster.wait_until(|cluster| cluster.status(3).applied == cluster.status(1).last);
    // It leads next, and sends what it has on under the same name.
    assert!(cluster.node(1).hand_over(GROUP, Some(3)));
    cluster.wait_until(|cluster| cluster.status(3).role == Role::Leader);
    cluster.propose(3, "end");
    cluster.settle();
    assert_eq!(cluster.outcome("end"), format!("{LARGE}smallend"));
}

#[test]
fn a_replica_that_has_forgotten_a_command_is_sent_it_again() {
    let mut cluster = staging(format::CURRENT);
    // All parts arrive, and no entry for so long that what came ahead is forgotten.
    cluster.passes = |envelope| envelope.to != 3 || longest_context(envelope) == 0;
    cluster.propose(1, LARGE);
    cluster.settle();
    assert_eq!(cluster.outcome(LARGE), LARGE);
    cluster.tick(600);
    assert!(cluster.status(3).applied < cluster.status(1).applied);
    cluster.passes = |envelope| longest_entry(envelope) < LARGE.len();
    cluster.wait_until(|cluster| cluster.status(3).applied == cluster.status(1).last);
}

fn longest_context(envelope: &Envelope) -> usize {
    let Body::Raft(message) = &envelope.body else { return 0 };
    message.entries.iter().map(|entry| entry.context.len()).max().unwrap_or(0)
}

#[test]
fn a_command_is_proposed_only_where_every_member_says_that_it_knows_it() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.tick(5);
    let needs = |needs| Command { bytes: Bytes::from_static(b"new"), needs, goes_ahead: false };
    cluster.node(1).propose(GROUP, needs(format::CURRENT + 1), "too new");
    cluster.settle();
    assert_eq!(cluster.answers["too new"], Answer::NotApplied(Refusal::NotKnown { replica: 2 }));
    // A learner counts, also one that has said nothing yet: nobody says that it is old.
    cluster.join(4);
    cluster.passes = |envelope| envelope.from != 4;
    cluster.node(1).change(GROUP, &add(4), "add");
    cluster.settle();
    cluster.node(1).propose(GROUP, needs(format::CURRENT), "too early");
    cluster.settle();
    assert_eq!(cluster.answers["too early"], Answer::NotApplied(Refusal::NotHeard { replica: 4 }));
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| cluster.status(4).applied == cluster.status(1).applied);
    cluster.node(1).propose(GROUP, needs(format::CURRENT), "known");
    cluster.settle();
    assert_eq!(cluster.outcome("known"), "new");
}

#[test]
fn a_learner_of_an_older_version_is_sent_what_it_can_read_and_gets_no_vote() {
    let new = |name: &'static str| Command {
        bytes: Bytes::from_static(name.as_bytes()),
        needs: format::CURRENT,
        goes_ahead: false,
    };
    // The log has what it cannot read still, or it is in the state only.
    for filled in [0, 40] {
        let mut cluster = Cluster::founded(&[1, 2, 3]);
        cluster.tick(5);
        cluster.propose(1, "a");
        cluster.node(1).propose(GROUP, new("new"), "new");
        for number in 0..filled {
            cluster.settle();
            cluster.propose(1, Box::leak(format!("{number},").into_boxed_str()));
        }
        cluster.settle();
        let Answer::Applied { index, .. } = cluster.answers["new"] else { panic!("it is not applied") };
        assert_eq!(cluster.status(1).first > index, filled > 0);
        cluster.join(4);
        cluster.old = Some(4);
        cluster.node(1).change(GROUP, &add(4), "add");
        cluster.wait_until(|cluster| cluster.status(1).too_old == [(4, format::CURRENT)]);
        cluster.tick(50);
        assert!(cluster.status(4).applied < index, "{:?}", cluster.status(4));
        cluster.node(1).change(GROUP, &promote(4, None), "promote");
        cluster.settle();
        assert_eq!(cluster.answers["promote"], Answer::NotApplied(Refusal::NotKnown { replica: 4 }));
        // Nobody waits for it, and the next leader finds the same.
        cluster.node(1).propose(GROUP, new("new again"), "again");
        cluster.settle();
        assert!(matches!(cluster.answers["again"], Answer::Applied { .. }), "{:?}", cluster.answers["again"]);
        assert!(cluster.node(1).hand_over(GROUP, Some(2)));
        cluster.wait_until(|cluster| cluster.status(2).too_old == [(4, format::CURRENT)]);
        assert!(cluster.status(1).too_old.is_empty());
        assert!(cluster.status(4).applied < index, "{:?}", cluster.status(4));
        // Its node is updated, and comes with another id.
        cluster.nodes.remove(&4);
        cluster.join(5);
        cluster.node(2).change(GROUP, &add(5), "add 5");
        cluster.wait_until(|cluster| cluster.status(5).applied == cluster.status(2).applied);
        cluster.node(2).change(GROUP, &promote(5, None), "promote 5");
        cluster.wait_until(|cluster| cluster.status(2).voters.contains(&5));
    }
}

#[test]
fn nodes_that_do_not_know_it_get_large_commands_as_before() {
    let mut cluster = staging(format::FIRST);
    cluster.passes = |envelope| !is_part(envelope) && longest_context(envelope) == 0;
    cluster.propose(1, LARGE);
    cluster.settle();
    assert_eq!(cluster.outcome(LARGE), LARGE);
    // A newer leader took it in; the older replica is sent the whole of it.
    let mut cluster = staging(format::CURRENT);
    cluster.passes = |envelope| envelope.to != 3;
    cluster.propose(1, LARGE);
    cluster.settle();
    assert_eq!(cluster.outcome(LARGE), LARGE);
    cluster.node(1).note_format(GROUP, 3, format::FIRST);
    cluster.format = format::FIRST;
    cluster.passes = |envelope| envelope.to != 3 || !is_part(envelope);
    cluster.wait_until(|cluster| cluster.status(3).applied == cluster.status(1).last);
}

/// How many envelopes a round of these drivers would send.
fn sent(cluster: &mut Cluster) -> Vec<Envelope> {
    let nodes = cluster.nodes.values_mut();
    nodes
        .flat_map(|node| {
            node.work();
            node.take_outbox()
        })
        .collect()
}

#[test]
fn a_replica_reads_its_own_state_for_a_question_and_an_answer() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.propose(1, "a");
    cluster.settle();
    cluster.tick(3);
    assert!(cluster.status(3).answers_reads);
    for reader in ["one", "two", "three"] {
        cluster.node(3).read_here(GROUP, reader);
    }
    let question = sent(&mut cluster);
    assert!(
        matches!(question[..], [Envelope { from: 3, to: 1, body: Body::ReadQuestion { .. }, .. }]),
        "{question:?}"
    );
    cluster.node(1).step(question[0].clone());
    let answer = sent(&mut cluster);
    assert!(matches!(answer[..], [Envelope { from: 1, to: 3, body: Body::ReadIndex(_), .. }]), "{answer:?}");
    cluster.node(3).step(answer[0].clone());
    cluster.settle();
    for reader in ["one", "two", "three"] {
        assert!(matches!(cluster.answers[reader], Answer::Readable { .. }));
    }
    // Who wants this replica to lead is told who does.
    cluster.node(3).read(GROUP, "at leader");
    cluster.settle();
    assert_eq!(cluster.answers["at leader"], Answer::NotApplied(Refusal::NotLeader { leader: Some(1) }));
}

#[test]
fn of_five_the_leader_asks_one_more_before_it_answers_a_replica() {
    let mut cluster = Cluster::founded(&[1, 2, 3, 4, 5]);
    cluster.tick(3);
    cluster.node(3).read_here(GROUP, "read");
    let question = sent(&mut cluster);
    cluster.node(1).step(question[0].clone());
    let asked = sent(&mut cluster);
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked.iter().all(|envelope| matches!(&envelope.body, Body::Raft(_))), "{asked:?}");
    for envelope in asked {
        cluster.node(envelope.to).step(envelope);
    }
    cluster.settle();
    assert!(matches!(cluster.answers["read"], Answer::Readable { .. }));
}

#[test]
fn a_leader_that_was_replaced_answers_no_replica() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.tick(3);
    // The leader is cut off, and asks nobody; the others elect another and go on.
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1;
    cluster.wait_until(|cluster| [2, 3].iter().any(|id| cluster.status(*id).role == Role::Leader));
    let (other, term) = (cluster.status(2).leader.unwrap(), cluster.status(2).term);
    cluster.propose(other, "new");
    cluster.settle();
    // A question of a newer term says that somebody else may lead.
    let body = Body::ReadQuestion { question: 1, term };
    cluster.node(1).step(Envelope { group: GROUP, from: 2, to: 1, body });
    let answers = sent(&mut cluster);
    assert!(!answers.iter().any(|envelope| matches!(envelope.body, Body::ReadIndex(_))), "{answers:?}");
}

/// The next leader holds an entry that it does not know to be committed: it has taken over when that is applied, and not when it is elected.
#[test]
fn who_is_elected_has_taken_over_when_it_has_applied_what_was_left() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.propose(1, "a");
    cluster.tick(3);
    assert!(cluster.status(1).has_taken_over && !cluster.status(2).has_taken_over);
    // Everybody gets the entry, and only the leader learns that.
    cluster.propose(1, "b");
    let entries = sent(&mut cluster);
    for envelope in entries {
        cluster.node(envelope.to).step(envelope);
    }
    // Nobody answers who leads next.
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1 && envelope.lane() != Lane::Entries;
    cluster.wait_until(|cluster| [2, 3].iter().any(|id| cluster.status(*id).role == Role::Leader));
    let leader = [2, 3].into_iter().find(|id| cluster.status(*id).role == Role::Leader).unwrap();
    let elected = cluster.status(leader);
    assert!(!elected.has_taken_over && elected.applied < elected.last, "{elected:?}");
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1;
    cluster.wait_until(|cluster| [2, 3].iter().any(|id| cluster.status(*id).has_taken_over));
    let status =
        [2, 3].into_iter().map(|id| cluster.status(id)).find(|status| status.has_taken_over).unwrap();
    assert!(status.applied >= elected.last, "{status:?}");
}

#[test]
fn a_replica_asks_no_leader_of_an_older_version() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.format = format::STAGING;
    cluster.tick(3);
    assert!(!cluster.status(3).answers_reads);
    cluster.node(3).read_here(GROUP, "read");
    cluster.settle();
    assert_eq!(cluster.answers["read"], Answer::NotApplied(Refusal::NotLeader { leader: Some(1) }));
}

#[test]
fn a_replica_that_is_behind_sends_its_readers_to_the_leader() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.tick(3);
    cluster.passes = |envelope| envelope.to != 3 || envelope.lane() != Lane::Entries;
    cluster.propose(1, "a");
    cluster.settle();
    cluster.node(3).read_here(GROUP, "read");
    cluster.tick(5);
    assert_eq!(cluster.answers["read"], Answer::NotApplied(Refusal::NotLeader { leader: Some(1) }));
    assert!(!cluster.status(3).answers_reads, "the next ones go there at once");
    cluster.passes = |_| true;
    cluster.wait_until(|cluster| cluster.status(3).answers_reads);
    cluster.node(3).read_here(GROUP, "again");
    cluster.settle();
    assert!(matches!(cluster.answers["again"], Answer::Readable { .. }));
}

#[test]
fn a_question_whose_leader_is_gone_is_asked_of_the_next_one() {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.tick(3);
    cluster.passes = |envelope| envelope.from != 1 && envelope.to != 1;
    cluster.node(3).read_here(GROUP, "read");
    cluster.settle();
    cluster.wait_until(|cluster| cluster.answers.contains_key("read"));
    let answer = cluster.answers["read"].clone();
    // While there is no leader nobody can say; otherwise the next one does.
    assert!(
        matches!(answer, Answer::Readable { .. } | Answer::NotApplied(Refusal::NotLeader { leader: None })),
        "{answer:?}"
    );
}

/// What the leader has heard, when each node has told so many bytes.
fn rooms_told(format: u32) -> Vec<(u64, u64, u64)> {
    let mut cluster = Cluster::founded(&[1, 2, 3]);
    cluster.format = format;
    cluster.tick(4);
    for (node, left) in [(1, Some(10)), (2, Some(20)), (3, None)] {
        cluster.node(node).tell_room(left);
    }
    cluster.settle();
    assert!(cluster.node(2).take_rooms().is_empty(), "it does not lead");
    assert_eq!(cluster.node(1).led().count(), 1);
    cluster.node(1).take_rooms()
}

#[test]
fn a_replica_tells_its_room_to_a_leader_that_knows_what_that_is() {
    assert_eq!(rooms_told(format::CURRENT), [(GROUP, 2, 20)], "who has no bound tells nothing");
    assert_eq!(rooms_told(format::ROOM - 1), []);
}
