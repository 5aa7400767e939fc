//! The nodes, their clients, who repairs them, and who does them harm.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb::{Entry, EntryType};
use raft::{GetEntriesContext, Storage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::driver::Driver;
use super::super::envelope::{Body, Envelope};
use super::super::keep::{Resumed, SnapshotJob};
use super::super::machine::{Answer, Command, Refusal};
use super::super::members::{Change, Members};
use super::super::settings::Settings;
use super::super::status::{Role, Status};
use super::network::Network;
use super::oracle::{Chain, Oracle, Told, mix, operation};
use super::{Rule, Tally};
use crate::disk::fake::{FakeFolder, Fault};
use crate::disk::{Storage as Disk, Stored};
use crate::model::binary::Reader;
use crate::model::format;

/// How long harm is done.
const STEPS: u64 = 4_000;

/// How long the cluster has, after that, to be whole again.
const RECOVERY_STEPS: u64 = 6_000;

/// A node's clock ticks about this often.
const STEPS_PER_TICK: u64 = 5;

/// How far back the logs are compared after every step.
const COMPARED_ENTRIES: u64 = 12;

pub(super) struct World {
    random: StdRng,
    now: u64,
    network: Network<Vec<u8>>,
    nodes: Vec<Node>,
    /// Where a replica id is, or was.
    places: BTreeMap<u64, usize>,
    oracles: BTreeMap<u64, Oracle>,
    operations: BTreeMap<u64, Operation>,
    last_operation: u64,
    harm: bool,
    /// Some nodes are of a version that knows less.
    old: bool,
    without: Option<Rule>,
    pub(super) tally: Tally,
}

struct Node {
    replica: u64,
    /// What it keeps its replicas on, if it does.
    disk: Option<FakeFolder>,
    /// The disk was put in anew: nothing of its replicas is there.
    is_empty: bool,
    running: Option<Running>,
    paused_until: u64,
    /// It is to be taken out of all groups, and then stops.
    stopping: bool,
    back_at: u64,
}

struct Running {
    driver: Driver<u64>,
    told: BTreeMap<u64, Arc<Mutex<Told>>>,
    inbox: Vec<Vec<u8>>,
    jobs: Vec<SnapshotJob>,
}

/// Something a node was asked, and what was known of the group when it was.
struct Operation {
    node: usize,
    group: u64,
    began: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Write,
    Read,
    ReadHere,
    AddLearner,
    Promote(u64),
    Remove,
}

impl World {
    pub(super) fn new(seed: u64, without: Option<Rule>, on_disks: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let size = if random.random_bool(0.7) { 3 } else { 5 };
        let groups = random.random_range(1..=2_u64);
        let mut network = Network::default();
        network.lost = [0, 10, 50, 150][random.random_range(0..4)];
        network.doubled = [0, 30, 100][random.random_range(0..3)];
        network.delay = [1, 3, 8][random.random_range(0..3)];
        let mut world = Self {
            random,
            now: 0,
            network,
            nodes: Vec::new(),
            places: BTreeMap::new(),
            oracles: (1..=groups).map(|group| (group, Oracle::default())).collect(),
            operations: BTreeMap::new(),
            last_operation: 0,
            harm: true,
            old: seed % 4 == 3,
            without,
            tally: Tally::default(),
        };
        for place in 0..size {
            let replica = world.random.random_range(1..u64::MAX);
            world.places.insert(replica, place);
            world.nodes.push(Node {
                replica,
                disk: on_disks.then(FakeFolder::default),
                is_empty: true,
                running: None,
                paused_until: 0,
                stopping: false,
                back_at: 0,
            });
        }
        let voters: Members =
            world.places.iter().map(|(replica, place)| (*replica, address(*place))).collect();
        for place in 0..size {
            world.start(place, Some(&voters)).expect("an empty disk can be used");
        }
        world
    }

    fn settings(&mut self) -> Settings {
        Settings {
            seed: self.random.random(),
            answer_ticks: 60,
            max_waiting: 40,
            max_uncommitted_bytes: 2_000,
            max_message_bytes: 500,
            max_inflight_messages: 4,
            max_log_entries: 25,
            max_log_bytes: 6_000,
            piece_bytes: 48,
            staged_bytes: 60,
            part_bytes: 16,
            staging_window_bytes: 128,
            snapshot_log_bytes: 1_200,
            without: self.without,
            ..Settings::default()
        }
    }

    fn start(&mut self, place: usize, voters: Option<&Members>) -> Result<(), String> {
        let settings = self.settings();
        let without = self.without;
        let node = &mut self.nodes[place];
        let replica = node.replica;
        let (mut driver, mut stored, mut disk) = (Driver::new(settings.clone()), Stored::default(), None);
        if let Some(folder) = &node.disk {
            let (opened, found) = Disk::open(Arc::new(folder.clone()), &address(place), || replica)?;
            folder.set_fault((without == Some(Rule::SyncedLog)).then_some(Fault::FilesNotSynced));
            let opened = Arc::new(opened);
            driver = Driver::kept(settings, Arc::clone(&opened));
            (stored, disk) = (found, Some(opened));
        }
        let mut told = BTreeMap::new();
        for group in self.oracles.keys() {
            let (machine, tells) = Chain::new();
            let kept = stored.groups.iter().position(|one| one.group == *group);
            if kept.is_none() && !self.nodes[place].is_empty {
                return Err(format!("node {place} has nothing of group {group} on its disk"));
            }
            if let Some(kept) = kept.map(|at| stored.groups.swap_remove(at)) {
                // The power may have been cut after it was on the disk, and before anybody knew.
                self.nodes[place].replica = kept.row.replica;
                self.places.insert(kept.row.replica, place);
                driver
                    .resume(Resumed::new(disk.as_ref().expect("it was found there"), kept, machine)?, false)
                    .expect("a new driver takes any group");
                self.tally.resumed += 1;
                told.insert(*group, tells);
                continue;
            }
            match voters {
                Some(voters) => driver.found(*group, replica, voters, machine),
                None => driver.join(*group, replica, machine),
            }
            .expect("a new driver takes any group");
            told.insert(*group, tells);
        }
        let is_kept = self.nodes[place].disk.is_some();
        if is_kept {
            // Whoever begins with a new disk has told nobody of its replicas before they are on it.
            driver.work();
            if let Some(why) = driver.disk_error() {
                return Err(why.to_owned());
            }
            self.nodes[place].is_empty = false;
        }
        self.nodes[place].running = Some(Running { driver, told, inbox: Vec::new(), jobs: Vec::new() });
        Ok(())
    }

    /// Starts a node again. The power may be cut meanwhile.
    fn start_again(&mut self, place: usize) -> Result<(), String> {
        let has_fuse = self.nodes[place].disk.is_some() && self.harm && self.random.random_bool(0.2);
        if let Some(disk) = self.nodes[place].disk.as_ref().filter(|_| has_fuse) {
            disk.set_fuse(Some(self.random.random_range(0..60)));
        }
        match self.start(place, None) {
            Err(_) if has_fuse => {
                self.cut_power(place);
                Ok(())
            }
            started => started,
        }
    }

    /// Harm, then peace, in which everything must become whole again.
    pub(super) fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step()?;
        }
        self.harm = false;
        self.network.cut.clear();
        (self.network.lost, self.network.doubled) = (0, 0);
        for node in &mut self.nodes {
            node.paused_until = 0;
            node.back_at = node.back_at.min(self.now);
        }
        for _ in 0..RECOVERY_STEPS {
            self.step()?;
            if self.now.is_multiple_of(50) && self.whole() {
                self.tell_tally();
                return Ok(());
            }
        }
        let states: Vec<_> = self
            .oracles
            .keys()
            .flat_map(|group| (0..self.nodes.len()).map(|place| self.status(place, *group)))
            .collect();
        Err(format!("the cluster did not become whole again: {states:?}"))
    }

    fn tell_tally(&mut self) {
        self.tally.terms = self.oracles.values().map(Oracle::terms).sum();
        self.tally.restores = self.oracles.values().map(|oracle| oracle.restores).sum();
    }

    /// Every node runs and votes in every group, all have the same state, and it holds all that was known.
    fn whole(&self) -> bool {
        self.oracles.iter().all(|(group, oracle)| {
            let states: Vec<_> =
                (0..self.nodes.len()).filter_map(|place| self.status(place, *group)).collect();
            let told =
                |place: usize| self.nodes[place].running.as_ref().map(|node| node.told[group].lock().chain);
            states.len() == self.nodes.len()
                && states.iter().all(|state| {
                    let all_vote =
                        state.voters.len() == states.len() && state.voters.contains(&state.replica);
                    all_vote && state.outgoing.is_empty() && state.applied >= oracle.floor
                })
                && (1..self.nodes.len()).all(|place| told(place) == told(0))
        })
    }

    fn status(&self, place: usize, group: u64) -> Option<Status> {
        self.nodes[place].running.as_ref()?.driver.status(group)
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += 1;
        self.tally.steps += 1;
        for (to, bytes) in self.network.arriving(self.now, &mut self.random) {
            self.tally.trace =
                bytes.iter().fold(self.tally.trace, |trace, byte| mix(trace, u64::from(*byte)));
            // What comes to a node that is down is lost; what comes to a paused one waits.
            if let Some(running) = &mut self.nodes[to].running {
                running.inbox.push(bytes);
            }
        }
        if self.harm {
            self.do_harm();
        }
        self.ask();
        self.repair();
        self.stop();
        for place in 0..self.nodes.len() {
            self.turn(place)?;
        }
        Ok(())
    }

    /// One round of a node's owner, as a thread would do it.
    fn turn(&mut self, place: usize) -> Result<(), String> {
        let node = &mut self.nodes[place];
        if node.running.is_none() && node.back_at <= self.now {
            let is_new = node.is_empty || node.disk.is_none();
            if is_new && (self.without != Some(Rule::FreshIdAfterAmnesia) || node.stopping) {
                node.replica = self.random.random_range(1..u64::MAX);
            }
            node.stopping = false;
            self.places.insert(node.replica, place);
            self.start_again(place)?;
        }
        let node = &mut self.nodes[place];
        let Some(running) = node.running.as_mut().filter(|_| node.paused_until <= self.now) else {
            return Ok(());
        };
        for bytes in std::mem::take(&mut running.inbox) {
            let mut reader = Reader::new(&bytes);
            let envelope = Envelope::decode(&mut reader).map_err(|error| error.to_string())?;
            // Nodes of the version before take part in some groups.
            let is_old = self.old && envelope.from % 3 == 0;
            let format = if is_old { format::FIRST } else { format::CURRENT };
            running.driver.note_format(envelope.group, envelope.from, format);
            running.driver.step(envelope);
        }
        if self.random.random_range(0..STEPS_PER_TICK) == 0 {
            running.driver.tick();
        }
        running.driver.work();
        running.jobs.extend(running.driver.take_snapshot_jobs());
        if !running.jobs.is_empty() && self.random.random_bool(0.1) {
            let written = running.jobs.remove(0).write();
            self.tally.snapshots += 1;
            running.driver.note_written(written);
            running.driver.work();
        }
        if running.driver.disk_error().is_some() {
            self.cut_power(place);
            return Ok(());
        }
        let answers = running.driver.take_answers();
        for envelope in running.driver.take_outbox() {
            self.tally.parts += u64::from(matches!(envelope.body, Body::Part(_)));
            let mut bytes = Vec::new();
            envelope.encode(&mut bytes);
            let to = self.places[&envelope.to];
            self.network.send(self.now, place, to, bytes, &mut self.random);
        }
        for (group, told) in &running.told {
            let events = std::mem::take(&mut told.lock().events);
            let oracle = self.oracles.get_mut(group).expect("there is one for every group");
            events.iter().try_for_each(|event| oracle.judge(event))?;
        }
        self.inspect(place)?;
        answers.into_iter().try_for_each(|(operation, answer)| self.answered(operation, answer))
    }

    /// One leader per term; logs match.
    fn inspect(&mut self, place: usize) -> Result<(), String> {
        let Some(running) = &self.nodes[place].running else { return Ok(()) };
        for (group, oracle) in &mut self.oracles {
            let status = running.driver.status(*group).ok_or("a replica failed")?;
            if status.role == Role::Leader {
                oracle.leader(status.term, status.replica)?;
            }
            let log = running.driver.log(*group);
            let low = status.first.max((status.last + 1).saturating_sub(COMPARED_ENTRIES));
            let entries = log.entries(low, log.last() + 1, None, GetEntriesContext::empty(false));
            let mut before = log.term(low - 1).map_err(|error| error.to_string())?;
            for entry in entries.map_err(|error| error.to_string())? {
                let operation = if entry.data.len() > 8 { operation(&entry.data) } else { 0 };
                oracle.entry((entry.index, entry.term), operation, before)?;
                before = entry.term;
            }
            if log.size().0 > 25 + usize::try_from(status.last - status.applied).expect("a small number") {
                return Err("the log is longer than its bound".into());
            }
        }
        Ok(())
    }

    fn answered(&mut self, operation: u64, answer: Answer) -> Result<(), String> {
        let trace = format!("{operation} {answer:?}");
        self.tally.trace = trace.bytes().fold(self.tally.trace, |trace, byte| mix(trace, u64::from(byte)));
        let Some(asked) = self.operations.remove(&operation) else {
            return Err(format!("operation {operation} was answered twice"));
        };
        let oracle = self.oracles.get_mut(&asked.group).expect("there is one for every group");
        let running = self.nodes[asked.node].running.as_ref().expect("a node that answers runs");
        match answer {
            Answer::Applied { index, outcome } => match asked.kind {
                Kind::Write => {
                    self.tally.writes += 1;
                    oracle.acknowledged(operation, index, &outcome, asked.began)
                }
                Kind::Promote(learner) => self.promoted(learner, asked.group, asked.began),
                Kind::AddLearner | Kind::Remove | Kind::Read | Kind::ReadHere => Ok(()),
            },
            Answer::Readable { index } => {
                self.tally.reads += 1;
                let leads =
                    running.driver.status(asked.group).is_some_and(|status| status.role == Role::Leader);
                self.tally.reads_elsewhere += u64::from(asked.kind == Kind::ReadHere && !leads);
                let told = running.told[&asked.group].lock();
                oracle.read(index, (told.index, told.chain), asked.began)
            }
            Answer::NotApplied(refusal) => {
                self.tally.refused += 1;
                self.tally.superseded += u64::from(refusal == Refusal::Superseded);
                oracle.refused(operation)
            }
            Answer::Unknown => {
                self.tally.unknown += 1;
                Ok(())
            }
        }
    }

    /// A new voter holds everything that anybody knew of when its promotion was asked for.
    fn promoted(&mut self, learner: u64, group: u64, began: u64) -> Result<(), String> {
        self.tally.promotions += 1;
        let place = self.places[&learner];
        match self.status(place, group) {
            Some(state) if state.replica == learner && state.last < began => {
                Err(format!("replica {learner} has a vote but holds {} of {began} entries", state.last))
            }
            _ => Ok(()),
        }
    }

    /// Clients write and read, each at a random node.
    fn ask(&mut self) {
        if !self.random.random_bool(0.5) {
            return;
        }
        let place = self.random.random_range(0..self.nodes.len());
        let group = self.random.random_range(1..=self.oracles.len() as u64);
        let kind = match self.random.random_range(0..10) {
            0..2 => Kind::Read,
            2..4 => Kind::ReadHere,
            _ => Kind::Write,
        };
        // Half of them know whom to ask.
        let leader = self.leader(group).filter(|_| self.random.random_bool(0.5));
        self.begin(leader.unwrap_or(place), group, kind, None);
    }

    fn begin(&mut self, place: usize, group: u64, kind: Kind, change: Option<&Change>) {
        self.last_operation += 1;
        let operation = self.last_operation;
        let began = self.oracles[&group].floor;
        let filler = self.random.random_range(1..60);
        let Some(running) = self.nodes[place].running.as_mut() else { return };
        self.operations.insert(operation, Operation { node: place, group, began, kind });
        match (kind, change) {
            (_, Some(change)) => running.driver.change(group, change, operation),
            (Kind::Read, _) => running.driver.read(group, operation),
            (Kind::ReadHere, _) => running.driver.read_here(group, operation),
            _ => {
                let command =
                    [&operation.to_be_bytes()[..], &vec![u8::try_from(operation % 7).unwrap_or(0); filler]];
                let bytes = Bytes::from(command.concat());
                let command = Command { bytes, needs: format::FIRST, goes_ahead: true };
                running.driver.propose(group, command, operation);
            }
        }
    }

    /// The node that leads in the highest term.
    fn leader(&self, group: u64) -> Option<usize> {
        (0..self.nodes.len())
            .filter_map(|place| Some((place, self.status(place, group)?)))
            .filter(|(_, status)| status.role == Role::Leader)
            .max_by_key(|(_, status)| status.term)
            .map(|(place, _)| place)
    }

    /// What the node layer does: nodes that came back are added and promoted, those that go are taken out.
    fn repair(&mut self) {
        if !self.random.random_bool(0.1) {
            return;
        }
        for group in 1..=self.oracles.len() as u64 {
            let Some(leader) = self.leader(group) else { continue };
            if self.nodes[leader].paused_until > self.now {
                continue;
            }
            let status = self.status(leader, group).expect("a leader has a status");
            let place = self.random.random_range(0..self.nodes.len());
            let node = &self.nodes[place];
            let replica = node.replica;
            let old = status.voters.iter().copied().find(|id| *id != replica && self.places[id] == place);
            let stale = status.learners.iter().copied().find(|id| *id != replica && self.places[id] == place);
            let leaving = node.stopping;
            if node.running.is_none() && !leaving {
                continue;
            }
            let (kind, change) = if leaving && place == leader {
                let running = self.nodes[leader].running.as_mut().expect("a leader runs");
                self.tally.hand_overs += u64::from(running.driver.hand_over(group, None));
                continue;
            } else if leaving && status.members.contains_key(&replica) {
                (Kind::Remove, Change::Remove { replicas: vec![replica] })
            } else if let Some(replica) = stale {
                (Kind::Remove, Change::Remove { replicas: vec![replica] })
            } else if leaving || status.voters.contains(&replica) {
                continue;
            } else if status.learners.contains(&replica) {
                (Kind::Promote(replica), Change::Promote { learner: replica, replaces: old })
            } else {
                (Kind::AddLearner, Change::AddLearner { replica, address: address(place) })
            };
            self.begin(leader, group, kind, Some(&change));
        }
    }

    fn do_harm(&mut self) {
        let place = self.random.random_range(0..self.nodes.len());
        // No seed is without a crash, however seldom it allows one.
        if self.tally.crashes == 0 && self.now > STEPS / 2 {
            self.crash(place);
        }
        let on_disks = self.nodes[place].disk.is_some();
        let die = self.random.random_range(0..1000);
        match die {
            0..4 if !on_disks => self.crash(place),
            0..2 if on_disks => self.cut_power(place),
            2..4 if on_disks => {
                // In the middle of what it writes next.
                let left = self.random.random_range(0..40);
                if self.nodes[place].running.is_some() {
                    self.nodes[place].disk.iter().for_each(|disk| disk.set_fuse(Some(left)));
                }
            }
            998.. if on_disks => {
                self.tally.blackouts += 1;
                (0..self.nodes.len()).for_each(|place| self.cut_power(place));
            }
            // A disk may be lost, too, as long as a majority of them is not.
            _ if on_disks && die < 6 && self.random.random_bool(0.3) => self.lose_disk(place),
            4..6 => self.nodes[place].stopping |= self.nodes[place].running.is_some() && self.may_lose(place),
            6..12 => self.cut(place),
            12..20 => self.network.cut.clear(),
            20..24 => {
                self.tally.pauses += 1;
                self.nodes[place].paused_until = self.now + self.random.random_range(1..400);
            }
            24..28 => {
                let group = self.random.random_range(1..=self.oracles.len() as u64);
                if let Some(running) =
                    self.leader(group).and_then(|leader| self.nodes[leader].running.as_mut())
                {
                    self.tally.hand_overs += u64::from(running.driver.hand_over(group, None));
                }
            }
            28..32 => {
                // A transport may be wrong about who can be reached.
                let replica = self.nodes[place].replica;
                for node in &mut self.nodes {
                    if let Some(running) = &mut node.running {
                        running.driver.report_unreachable(1, replica);
                    }
                }
            }
            _ => {}
        }
    }

    /// Nodes that were taken out of all groups stop.
    fn stop(&mut self) {
        for place in 0..self.nodes.len() {
            if self.nodes[place].stopping && self.nodes[place].running.is_some() && self.is_out(place) {
                self.tally.stops += 1;
                self.kill(place);
            }
        }
    }

    /// Every group has a leader, and it does not count this node as a member any more. (The others need not
    /// know yet; and who was taken out itself never hears of it.)
    fn is_out(&self, place: usize) -> bool {
        let replica = self.nodes[place].replica;
        self.oracles.keys().all(|group| {
            let leader = self.leader(*group).and_then(|leader| self.status(leader, *group));
            leader.is_some_and(|status| !status.members.contains_key(&replica))
        })
    }

    /// What was acknowledged is promised only while a majority of a group's voters keep their memory. So
    /// nothing crashes that would leave less, in any configuration that anybody still believes in; and
    /// nothing at all while a log holds a change that may yet make another one.
    ///
    /// Where nodes come back under their old id, that cannot be told from the configuration: one and the
    /// same node loses its memory then, so that no majority ever does.
    fn may_lose(&self, place: usize) -> bool {
        if self.without == Some(Rule::FreshIdAfterAmnesia) && place != 0 {
            return false;
        }
        // What a node that is down goes by when it comes back with its disk is not known.
        if self.nodes.iter().any(|node| node.disk.is_some() && node.running.is_none()) {
            return false;
        }
        let lives = |replica: &u64| {
            let there = self.places[replica];
            let node = &self.nodes[there];
            // Who is about to be taken out will not be missing from a majority, nor be part of one.
            let is_there = node.running.is_some() || (node.disk.is_some() && !node.is_empty);
            there != place && node.replica == *replica && is_there && !node.stopping
        };
        let changing = |node: &Node| {
            let running = node.running.iter();
            running.flat_map(|running| self.oracles.keys().map(|group| running.driver.log(*group))).any(
                |log| {
                    let entries =
                        log.entries(log.applied() + 1, log.last() + 1, None, GetEntriesContext::empty(false));
                    let is_change = |entry: &Entry| entry.get_entry_type() != EntryType::EntryNormal;
                    entries.is_ok_and(|entries| entries.iter().any(is_change))
                },
            )
        };
        if self.nodes.iter().any(changing) {
            return false;
        }
        self.oracles.keys().all(|group| {
            (0..self.nodes.len()).filter_map(|other| self.status(other, *group)).all(|status| {
                [&status.voters, &status.outgoing].into_iter().all(|voters| {
                    voters.is_empty() || 2 * voters.iter().filter(|voter| lives(voter)).count() > voters.len()
                })
            })
        })
    }

    fn crash(&mut self, place: usize) {
        if self.nodes[place].running.is_some() && self.may_lose(place) {
            self.tally.crashes += 1;
            self.kill(place);
        }
    }

    /// The node stops, and its disk with it.
    fn cut_power(&mut self, place: usize) {
        log::debug!("step {}: the power of node {place} is cut", self.now);
        self.operations.retain(|_, operation| operation.node != place);
        let node = &mut self.nodes[place];
        node.running = None;
        node.disk.iter().for_each(|disk| disk.cut_power(&mut self.random));
        node.back_at = self.now + self.random.random_range(1..300);
    }

    /// The node stops, and comes back with another disk.
    fn lose_disk(&mut self, place: usize) {
        if self.nodes[place].running.is_some() && self.may_lose(place) {
            self.tally.crashes += 1;
            self.kill(place);
        }
    }

    /// The node forgets everything. Who waited there never learns what became of it.
    fn kill(&mut self, place: usize) {
        log::debug!(
            "step {}: node {place}, replica {}, loses its memory",
            self.now,
            self.nodes[place].replica
        );
        self.operations.retain(|_, operation| operation.node != place);
        self.nodes[place].running = None;
        if let Some(disk) = &mut self.nodes[place].disk {
            *disk = FakeFolder::default();
            self.nodes[place].is_empty = true;
        }
        self.nodes[place].back_at = self.now + self.random.random_range(1..300);
    }

    /// Cuts a node off, or the cluster in two, or one direction only.
    fn cut(&mut self, place: usize) {
        self.tally.partitions += 1;
        let side: Vec<bool> = match self.random.random_range(0..3) {
            0 => (0..self.nodes.len()).map(|other| other == place).collect(),
            _ => (0..self.nodes.len()).map(|_| self.random.random_bool(0.5)).collect(),
        };
        let both = self.random.random_bool(0.7);
        for from in 0..side.len() {
            for to in 0..side.len() {
                if side[from] != side[to] && (both || side[from]) {
                    self.network.cut.insert((from, to));
                }
            }
        }
    }
}

fn address(place: usize) -> crate::model::address::Address {
    format!("node{place}:1").parse().expect("a well-formed address")
}
