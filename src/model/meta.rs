//! What the meta group agrees on: the view, the members, and the view change that is under way.
//!
//! The state is a document with a version. The group's leader changes it by commands; every node learns it, whole, in any
//! order, and acts by the newest it has seen.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::format;
use super::hash::HashKey;
use super::limits::{Limits, WantedLimits};
use super::plan::Plan;
use super::range::HashRange;
use super::receipt::Receipt;
use super::shard::{Directive, PieceId, Tally};
use super::view::{Shard, View};

/// Results of view changes that are kept for those who ask later.
const KEPT_RESULTS: usize = 8;
/// Receipts that are kept for those who look at what has been done.
const KEPT_RECEIPTS: usize = 20;
/// Nodes that have left and are still told of news.
const KEPT_FORMER: usize = 64;
/// The start of no node: who holds a shard under it has lost it.
pub const NOBODY: u64 = u64::MAX;

/// The state of the meta group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaState {
    /// The cluster's id, drawn when it was founded.
    pub cluster: String,
    /// The number of the meta group, drawn at random: another one after a recovery.
    pub group: u64,
    /// Grows with every command.
    pub version: u64,
    /// Whether the cluster serves: it does when its founding is complete.
    pub open: bool,
    /// The key of the hash function, drawn when the cluster was founded.
    pub hash_key: HashKey,
    /// How long keys and values may be: as the founder was set, and as view changes have raised it since.
    #[serde(default)]
    pub limits: Limits,
    /// Whether its nodes keep what they hold on disks: all do, or none.
    #[serde(default)]
    pub durable: bool,
    /// The view.
    pub view: View,
    /// Which start of which node holds each group: by group, address and incarnation. Of a group with several replicas it says
    /// only who founds it; who is a member of it later, the group itself knows.
    pub holders: BTreeMap<u64, BTreeMap<Address, u64>>,
    /// What the groups of the first view owned when they were founded, and in which epoch; all others have been founded with nothing.
    pub origins: BTreeMap<u64, (Vec<HashRange>, u64)>,
    /// Grows whenever the counter of versions of a shard may be lost: a group goes on from a replica that may lack writes which were acknowledged, or ranges are
    /// given to another group without their pairs. What draws versions for such ranges from then on draws them above all of the generations before, so that
    /// none ever stands for two values of a key.
    #[serde(default)]
    pub generation: u64,
    /// The groups that took the place of others whose majority was lost: each founded by one of its holders from what that held of the other.
    #[serde(default)]
    pub successors: BTreeMap<u64, u64>,
    /// Which start of each node is there, as the leader of the meta group has last heard from it: under it the node numbers the writes that it
    /// passes on. Shards forget what they remember of a start when the state names another one for its node.
    #[serde(default)]
    pub starts: BTreeMap<Address, u64>,
    /// Nodes that have left or were given up.
    pub former: VecDeque<Address>,
    /// The view change that is under way.
    pub change: Option<Change>,
    /// How the last ones ended, the newest last.
    pub results: VecDeque<ChangeResult>,
    /// What the last finished ones came to, the newest last; only of those that ended while all members of the group knew [`format::RECEIPTS`].
    #[serde(default)]
    pub receipts: VecDeque<Receipt>,
}

/// A view change that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its id.
    pub id: u64,
    /// What was asked for.
    pub wanted: Wanted,
    /// What is done about it; nothing until it was counted and planned.
    pub planned: Option<Planned>,
    /// When it was begun, by the wall clock of whoever led then, in milliseconds; not known where a member was of a version before [`format::RECEIPTS`].
    #[serde(default)]
    pub began_ms: Option<u64>,
}

/// What is asked of a view change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The nodes of the new view.
    pub nodes: Vec<Address>,
    /// Replicas per shard.
    pub repl_factor: usize,
    /// The ids of shards whose pairs are given up.
    pub accept_loss: Vec<u32>,
    /// The limits that are to be raised.
    #[serde(default)]
    pub limits: WantedLimits,
}

/// A planned view change and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The shards that there will be, sorted by id.
    pub shards: Vec<Shard>,
    /// The groups among them that are new.
    pub added: Vec<u64>,
    /// What is to be moved, piece by piece.
    pub pieces: Vec<Piece>,
    /// The pairs that each of `shards` shall hold of those counted at the cut.
    pub targets: Vec<u64>,
    /// The pairs at the cut.
    pub keys: u64,
    /// Those of them that change shard.
    pub moved: u64,
    /// The least number that has to.
    pub minimum: u64,
    /// The shards whose pairs are given up.
    pub given_up: Vec<GivenUp>,
    /// Pairs written to nodes that did not hold them, so far.
    pub copied: u64,
    /// The longest time that a piece was neither read nor written, in microseconds.
    pub hold_us: u64,
    /// What clients have created and deleted since the cut in shards that leave and have handed all over: nobody may be left whom to ask.
    #[serde(default)]
    pub left: Tally,
}

/// A part of the space on its way from one group to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The range.
    pub range: HashRange,
    /// The group that gives it. Where that is given up, the range is handed over empty.
    pub from: u64,
    /// The group that takes it.
    pub to: u64,
    /// Its pairs when it was cut.
    pub pairs: u64,
    /// The number of the attempt that may be handed over; all others are void.
    pub attempt: u32,
    /// Whether it was handed over.
    pub handed_over: bool,
}

impl Piece {
    /// A piece that is to go from one group to another, with its pairs, before the first attempt.
    pub fn new(range: HashRange, (from, to): (u64, u64), pairs: u64) -> Self {
        Self { range, from, to, pairs, attempt: 0, handed_over: false }
    }
}

/// A shard whose pairs are lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The shard's id before the change.
    pub id: u32,
    /// Its group.
    pub group: u64,
    /// The nodes that held it.
    pub replicas: Vec<Address>,
    /// How many pairs it was last heard to hold.
    pub pairs: Option<u64>,
}

/// Who really holds a group, as it says itself: while a view change moves its replicas, that may be others than the view names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The nodes.
    pub nodes: Vec<Address>,
    /// Where it is one node alone: this start of it.
    pub start: Option<u64>,
}

impl Members {
    /// The node that holds it alone, and its start.
    fn alone(&self) -> Option<BTreeMap<Address, u64>> {
        match (self.start, &self.nodes[..]) {
            (Some(start), [node]) => Some(BTreeMap::from([(node.clone(), start)])),
            _ => None,
        }
    }
}

/// How a view change ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeResult {
    /// Its id.
    pub id: u64,
    /// The nodes that have left by it.
    #[serde(default)]
    pub left: Vec<Address>,
    /// How it ended.
    pub end: End,
}

/// How a view change ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// As it was asked for: the receipt, as JSON text.
    Finished(String),
    /// The request was wrong, and nothing has changed: why.
    Refused(String),
    /// It could not be done now, and nothing has changed: why.
    Failed(String),
    /// It was cancelled, and nothing has changed.
    Cancelled,
    /// Another one took its place where it stood, by this id.
    Superseded(u64),
}

/// A change of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The founding is complete.
    Open,
    /// Begins a view change. One that is under way is superseded where it is the one named.
    Begin {
        /// The new one's id.
        id: u64,
        /// What is asked for.
        wanted: Wanted,
        /// The one that may be superseded, since it is blocked.
        supersedes: Option<u64>,
        /// Who holds the groups where that one is superseded.
        #[serde(default)]
        members: BTreeMap<u64, Members>,
        /// When that is, by the wall clock of whoever leads, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
    /// Sets the plan: new groups become part of the view.
    Plan {
        /// The view change.
        id: u64,
        /// The epoch of the view that it was made from: it fits no other one.
        epoch: u64,
        /// The plan.
        planned: Box<Planned>,
        /// The view with the new groups, which own nothing yet, and without those that are given up and own nothing.
        view: Box<View>,
        /// Who holds the new groups.
        holders: BTreeMap<u64, BTreeMap<Address, u64>>,
    },
    /// The piece belongs to its new group.
    HandOver {
        /// The attempt.
        piece: PieceId,
        /// The pairs that the target has installed.
        copied: u64,
        /// How long the range had been frozen, in microseconds.
        hold_us: u64,
        /// Where it is the last piece of a shard that leaves: what clients have created and deleted there since the cut.
        #[serde(default)]
        left: Tally,
    },
    /// The attempt is void; the next one may begin.
    Abort {
        /// The attempt.
        piece: PieceId,
        /// How long the range had been frozen, in microseconds.
        hold_us: u64,
    },
    /// A new group that owns nothing yet is replaced by another, since its node was started again.
    Replace {
        /// The view change.
        id: u64,
        /// The group that goes.
        group: u64,
        /// The starts of the nodes that hold the new one.
        holders: BTreeMap<Address, u64>,
    },
    /// Groups whose majority is gone for good are succeeded by others, each founded by a survivor from what it holds.
    Succeed {
        /// The epoch of the view that this was found out about: it fits no other one.
        epoch: u64,
        /// The group that goes, the node that founds the new one, and its start.
        survivors: Vec<(u64, Address, u64)>,
        /// Ranges that other groups have than the view says.
        #[serde(default)]
        moved: Vec<(HashRange, u64)>,
        /// Ranges that nobody has any more.
        #[serde(default)]
        lost: Option<LostRanges>,
    },
    /// A node was heard under another start than before.
    Started {
        /// The node.
        node: Address,
        /// The start that the state has named when the node was asked; where it names another one by now, the answer is too old.
        was: Option<u64>,
        /// The start that has answered.
        start: u64,
    },
    /// Ends a view change.
    End {
        /// The view change.
        id: u64,
        /// How.
        end: End,
        /// Where it is finished: the starts of the nodes that are now the only replicas of their shards.
        #[serde(default)]
        holders: BTreeMap<u64, BTreeMap<Address, u64>>,
        /// Where it is finished: what it came to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receipt: Option<Receipt>,
    },
}

impl Command {
    /// The format that all members of the group have to know to apply it alike.
    pub fn needs(&self) -> u32 {
        match self {
            Self::Begin { at_ms: Some(_), .. } | Self::End { receipt: Some(_), .. } => format::RECEIPTS,
            _ => format::FIRST,
        }
    }

    /// The same as members of every version apply it: nothing is lost but what is only shown.
    #[must_use]
    pub fn in_first_form(mut self) -> Self {
        match &mut self {
            Self::Begin { at_ms, .. } => *at_ms = None,
            Self::End { receipt, .. } => *receipt = None,
            _ => {}
        }
        self
    }
}

/// Ranges that nobody has any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRanges {
    /// The ranges.
    pub ranges: Vec<HashRange>,
    /// A node that is named for them: it may have held them.
    pub node: Address,
}

/// Why a command has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Void {
    /// A view change is under way: its id.
    Running(u64),
    /// It does not fit the state any more.
    Outdated,
}

impl MetaState {
    /// The first state of a cluster.
    pub fn first(
        cluster: String,
        group: u64,
        hash_key: HashKey,
        view: View,
        incarnations: &BTreeMap<Address, u64>,
    ) -> Self {
        let holders =
            view.shards.iter().map(|shard| (shard.group, holders_of(shard, incarnations))).collect();
        let origin =
            |(index, shard): (usize, &Shard)| (shard.group, (view.ranges(index).collect(), view.epoch));
        let origins = view.shards.iter().enumerate().map(origin).collect();
        Self {
            cluster,
            group,
            version: 1,
            open: false,
            hash_key,
            limits: Limits::default(),
            durable: false,
            view,
            holders,
            origins,
            generation: 0,
            successors: BTreeMap::new(),
            starts: incarnations.clone(),
            former: VecDeque::new(),
            change: None,
            results: VecDeque::new(),
            receipts: VecDeque::new(),
        }
    }

    /// Whether it can be acted by: whatever came by the network is looked at once.
    pub fn is_sound(&self) -> bool {
        let planned = self.change.iter().filter_map(|change| change.planned.as_ref());
        let planned = planned.flat_map(|planned| &planned.shards);
        let mut shards = self.view.shards.iter().chain(planned);
        !self.view.shards.is_empty()
            && self.limits.max_key_length > 0
            && shards.all(|shard| !shard.replicas.is_empty())
            && self.view.ownership.is_sound(self.view.shards.len())
    }

    /// All nodes of the view and of the change that is under way, in the order of the view.
    pub fn nodes(&self) -> Vec<Address> {
        let planned = self.change.iter().filter_map(|change| change.planned.as_ref());
        let planned = planned.flat_map(|planned| &planned.shards).flat_map(|shard| &shard.replicas);
        let of_view: HashSet<&Address> = self.view.nodes().collect();
        let mut seen = HashSet::new();
        let new = planned.filter(|node| !of_view.contains(node) && seen.insert(*node));
        self.view.nodes().chain(new).cloned().collect()
    }

    /// Where each group is held: the start of the node at an address.
    pub fn holder(&self, group: u64, node: &Address) -> Option<u64> {
        self.holders.get(&group)?.get(node).copied()
    }

    /// The shards that are lost, by their ids, and their nodes: another start of the only node of each is there than the one that held it,
    /// or none ever did. Of one with several replicas the state does not know it.
    pub fn lost_shards(&self) -> Vec<(u32, &Address)> {
        let shards = self.view.shards.iter().enumerate();
        let lost = shards.filter_map(|(index, shard)| {
            let [node] = &shard.replicas[..] else { return None };
            let holder = self.holder(shard.group, node)?;
            let is_gone = holder == NOBODY || self.starts.get(node).is_some_and(|start| *start != holder);
            (is_gone && self.view.ranges(index).next().is_some()).then_some((shard.id, node))
        });
        lost.collect()
    }

    /// All nodes that hold replicas of a group, or will in the course of the view change that is under way.
    pub fn replicas_of(&self, group: u64) -> Vec<&Address> {
        let planned = self.change.iter().filter_map(|change| change.planned.as_ref());
        let planned = planned.flat_map(|planned| &planned.shards);
        let mut replicas: Vec<&Address> = Vec::new();
        for shard in self.view.shards.iter().chain(planned).filter(|shard| shard.group == group) {
            for node in &shard.replicas {
                if !replicas.contains(&node) {
                    replicas.push(node);
                }
            }
        }
        replicas
    }

    /// The nodes that are to hold replicas of a group now: those of the view until all is handed over, then those of the plan.
    pub fn wanted_replicas(&self, group: u64) -> &[Address] {
        let planned = self.change.as_ref().and_then(|change| change.planned.as_ref());
        let planned = planned.filter(|planned| planned.is_handed_over());
        let shards = planned.into_iter().flat_map(|planned| &planned.shards).chain(&self.view.shards);
        shards.into_iter().find(|shard| shard.group == group).map_or(&[], |shard| &shard.replicas)
    }

    /// The index in the view of the shard of a group.
    pub fn index_of(&self, group: u64) -> Option<usize> {
        self.view.shards.iter().position(|shard| shard.group == group)
    }

    /// The attempts that are neither handed over nor aborted.
    pub fn open_pieces(&self) -> Vec<PieceId> {
        let Some(change) = &self.change else { return Vec::new() };
        let pieces = change.planned.iter().flat_map(|planned| &planned.pieces);
        (0..)
            .zip(pieces)
            .filter(|(_, piece)| !piece.handed_over)
            .map(|(index, piece)| PieceId { change: change.id, index, attempt: piece.attempt })
            .collect()
    }

    /// What the state means for the shard at this index of its view.
    pub fn directive(&self, index: usize) -> Directive {
        let change = self.change.as_ref();
        Directive {
            version: self.version,
            meta_group: self.group,
            counting: change.filter(|change| change.planned.is_none()).map(|change| change.id),
            planned: change.is_some_and(|change| change.planned.is_some()),
            epoch: self.view.epoch,
            mine: self.view.ranges(index).collect(),
            open: self.open_pieces(),
            starts: self.starts.iter().map(|(node, start)| (node.clone(), *start)).collect(),
        }
    }

    /// The command that says which start of a node has answered, where that is news of one of the nodes.
    pub fn started_command(&self, node: &Address, start: u64) -> Option<Command> {
        let was = self.starts.get(node).copied();
        let is_news = was != Some(start) && self.nodes().contains(node);
        is_news.then(|| Command::Started { node: node.clone(), was, start })
    }

    /// The command that sets a plan, which was made from this view with the `members` that its groups really have; `incarnations` are the starts
    /// of the nodes that hold nothing yet.
    pub fn plan_command(
        &self,
        id: u64,
        members: &BTreeMap<u64, Members>,
        plan: &Plan,
        pieces: Vec<Piece>,
        given_up: Vec<GivenUp>,
        incarnations: &BTreeMap<Address, u64>,
    ) -> Command {
        let old: HashSet<u64> = self.view.shards.iter().map(|shard| shard.group).collect();
        let is_new = |shard: &&Shard| !old.contains(&shard.group);
        let added: Vec<&Shard> = plan.view.shards.iter().filter(is_new).collect();
        // Until the change is finished its new shards have ids after those that there are.
        let highest = self.view.shards.iter().map(|shard| shard.id).max().unwrap_or(0);
        let numbered = (highest + 1..).zip(&added).map(|(id, shard)| Shard { id, ..(*shard).clone() });
        let mut view = self.view.clone();
        for shard in &mut view.shards {
            if let Some(members) = members.get(&shard.group) {
                shard.replicas.clone_from(&members.nodes);
            }
        }
        view.shards.extend(numbered);
        view.next_group = plan.view.next_group;
        let new = added.iter().map(|shard| (shard.group, holders_of(shard, incarnations)));
        let alone = members.iter().filter_map(|(group, members)| Some((*group, members.alone()?)));
        let holders = new.chain(alone).collect();
        let planned = Planned {
            shards: plan.view.shards.clone(),
            added: added.iter().map(|shard| shard.group).collect(),
            pieces,
            targets: plan.targets.clone(),
            keys: plan.keys,
            moved: plan.moved,
            minimum: plan.minimum,
            given_up,
            copied: 0,
            hold_us: 0,
            left: Tally::default(),
        };
        Command::Plan {
            id,
            epoch: self.view.epoch,
            planned: Box::new(planned),
            view: Box::new(view),
            holders,
        }
    }

    /// How a view change ended, if it is not too long ago.
    pub fn result(&self, id: u64) -> Option<&End> {
        self.results.iter().find(|result| result.id == id).map(|result| &result.end)
    }

    /// Applies a command; one that does not fit changes nothing but the version.
    ///
    /// # Errors
    /// Why it was void.
    pub fn apply(&mut self, command: Command) -> Result<(), Void> {
        self.version += 1;
        match command {
            Command::Open => self.open = true,
            Command::Begin { id, wanted, supersedes, members, at_ms } => {
                self.begin((id, at_ms), wanted, supersedes, &members)?;
            }
            Command::Plan { id, epoch, planned, view, holders } => {
                let change = running(&mut self.change, id)?;
                if change.planned.is_some() || epoch != self.view.epoch {
                    return Err(Void::Outdated);
                }
                self.generation += u64::from(!planned.given_up.is_empty());
                change.planned = Some(*planned);
                self.view = View { epoch: self.view.epoch + 1, ..*view };
                self.holders.extend(holders);
                self.forget_holders();
            }
            Command::HandOver { piece, copied, hold_us, left } => {
                self.hand_over(piece, copied, hold_us, left)?;
            }
            Command::Abort { piece, hold_us } => {
                let planned = planned(&mut self.change, piece.change)?;
                let at = planned.open(piece)?;
                planned.pieces[at].attempt += 1;
                planned.hold_us = planned.hold_us.max(hold_us);
            }
            Command::Replace { id, group, holders } => self.replace(id, group, holders)?,
            Command::Succeed { epoch, survivors, moved, lost } => {
                if epoch != self.view.epoch {
                    return Err(Void::Outdated);
                }
                let running = self.change.as_ref().map(|change| change.id);
                if let Some(id) = running.filter(|_| !moved.is_empty() || lost.is_some()) {
                    // Its plan does not fit any more.
                    let end =
                        End::Failed("pairs were lost, and the shards recovered by the operator".to_owned());
                    self.end_unfinished(id, end, &BTreeMap::new())?;
                }
                self.generation += 1;
                self.take_over(&moved);
                for (group, node, incarnation) in survivors {
                    self.succeed(group, node, incarnation);
                }
                if let Some(lost) = &lost {
                    self.give_up_ranges(lost);
                }
            }
            Command::Started { node, was, start } => {
                if self.starts.get(&node).copied() != was || !self.nodes().contains(&node) {
                    return Err(Void::Outdated);
                }
                self.starts.insert(node, start);
            }
            Command::End { id, end, holders, receipt } => {
                self.end(id, end, holders)?;
                self.note_receipt(receipt);
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        (id, began_ms): (u64, Option<u64>),
        wanted: Wanted,
        supersedes: Option<u64>,
        members: &BTreeMap<u64, Members>,
    ) -> Result<(), Void> {
        if self.result(id).is_some() {
            // It was asked for twice, and is over by now.
            return Ok(());
        }
        if let Some(running) = self.change.as_ref().map(|change| change.id) {
            if supersedes != Some(running) {
                return Err(Void::Running(running));
            }
            self.end_unfinished(running, End::Superseded(id), members)?;
        }
        self.change = Some(Change { id, wanted, planned: None, began_ms });
        Ok(())
    }

    fn hand_over(&mut self, piece: PieceId, copied: u64, hold_us: u64, left: Tally) -> Result<(), Void> {
        let planned = planned(&mut self.change, piece.change)?;
        let at = planned.open(piece)?;
        let moved = &mut planned.pieces[at];
        let taker = self.view.shards.iter().position(|shard| shard.group == moved.to);
        let taker = taker.ok_or(Void::Outdated)?;
        moved.handed_over = true;
        self.view.ownership.assign(&moved.range, taker);
        self.view.epoch += 1;
        planned.copied += copied;
        planned.hold_us = planned.hold_us.max(hold_us);
        planned.left += left;
        Ok(())
    }

    /// Puts a new group, founded by one node from what it holds, in the place of one that has lost its majority.
    pub fn succeed(&mut self, group: u64, node: Address, incarnation: u64) {
        if self.index_of(group).is_none() {
            return;
        }
        let new = self.view.next_group;
        self.view.next_group += 1;
        self.view.epoch += 1;
        for shard in self.view.shards.iter_mut().filter(|shard| shard.group == group) {
            shard.group = new;
            // Its replica may be one that was to leave.
            if !shard.replicas.contains(&node) {
                shard.replicas.push(node.clone());
            }
        }
        if let Some(planned) = self.change.as_mut().and_then(|change| change.planned.as_mut()) {
            planned
                .shards
                .iter_mut()
                .filter(|shard| shard.group == group)
                .for_each(|shard| shard.group = new);
            planned.added.iter_mut().filter(|added| **added == group).for_each(|added| *added = new);
            for piece in planned.pieces.iter_mut().filter(|piece| !piece.handed_over) {
                if [piece.from, piece.to].contains(&group) {
                    piece.attempt += 1;
                }
            }
            for piece in &mut planned.pieces {
                piece.from = if piece.from == group { new } else { piece.from };
                piece.to = if piece.to == group { new } else { piece.to };
            }
        }
        self.holders.remove(&group);
        self.origins.remove(&group);
        self.successors.remove(&group);
        self.holders.insert(new, BTreeMap::from([(node, incarnation)]));
        self.successors.insert(new, group);
    }

    fn replace(&mut self, id: u64, group: u64, holders: BTreeMap<Address, u64>) -> Result<(), Void> {
        let planned = planned(&mut self.change, id)?;
        let index = self.view.shards.iter().position(|shard| shard.group == group).ok_or(Void::Outdated)?;
        if !planned.added.contains(&group) || self.view.ranges(index).next().is_some() {
            return Err(Void::Outdated);
        }
        let new = self.view.next_group;
        self.view.next_group += 1;
        self.view.epoch += 1;
        let shards = self.view.shards.iter_mut().chain(&mut planned.shards);
        shards.filter(|shard| shard.group == group).for_each(|shard| shard.group = new);
        planned.added.iter_mut().filter(|added| **added == group).for_each(|added| *added = new);
        for piece in planned.pieces.iter_mut().filter(|piece| piece.to == group) {
            (piece.to, piece.attempt) = (new, piece.attempt + 1);
        }
        self.holders.remove(&group);
        self.holders.insert(new, holders);
        Ok(())
    }

    fn end(&mut self, id: u64, end: End, holders: BTreeMap<u64, BTreeMap<Address, u64>>) -> Result<(), Void> {
        let change = running(&mut self.change, id)?;
        if !matches!(end, End::Finished(_)) {
            // From the moment on at which replicas may move nobody here knows who holds the groups.
            let begun = change.planned.as_ref().is_some_and(Planned::has_begun);
            return if begun { Err(Void::Outdated) } else { self.end_unfinished(id, end, &BTreeMap::new()) };
        }
        if change.planned.as_ref().is_none_or(|planned| !planned.is_handed_over()) {
            return Err(Void::Outdated);
        }
        let before: Vec<Address> = self.nodes();
        let change = self.change.take().expect("it runs");
        let limits = self.limits.raised(&change.wanted.limits);
        // Who is asked under a newer epoch than it knows does not judge by limits of old.
        self.view.epoch += u64::from(limits != self.limits);
        (self.view.repl_factor, self.limits) = (change.wanted.repl_factor, limits);
        self.settle(change.planned.expect("it is planned").shards);
        self.holders.extend(holders);
        self.forget_holders();
        self.note_end(id, &before, end);
        Ok(())
    }

    /// Ends a view change where it stands: new groups that own something stay, those that own nothing go, and the view names
    /// who really holds each group. Of a group that did not say so, all that may: those of the view and those of the plan.
    ///
    /// # Errors
    /// Where that view change does not run.
    pub fn end_unfinished(
        &mut self,
        id: u64,
        end: End,
        members: &BTreeMap<u64, Members>,
    ) -> Result<(), Void> {
        running(&mut self.change, id)?;
        let before: Vec<Address> = self.nodes();
        let planned = self.change.as_ref().and_then(|change| change.planned.as_ref());
        let may_have_moved = planned.is_some_and(Planned::is_handed_over);
        let is_new = |group: u64| planned.is_some_and(|planned| planned.added.contains(&group));
        let owns = |index: usize| self.view.ranges(index).next().is_some();
        let shards = self.view.shards.iter().enumerate();
        let kept = shards.filter(|(index, shard)| owns(*index) || !is_new(shard.group));
        let held_by = |shard: &Shard| match members.get(&shard.group) {
            Some(members) => members.nodes.clone(),
            None if may_have_moved => self.replicas_of(shard.group).into_iter().cloned().collect(),
            None => shard.replicas.clone(),
        };
        let kept = kept.map(|(_, shard)| Shard { replicas: held_by(shard), ..shard.clone() }).collect();
        self.settle(kept);
        let alone = members.iter().filter_map(|(group, members)| Some((*group, members.alone()?)));
        self.holders.extend(alone);
        self.forget_holders();
        self.change = None;
        self.note_end(id, &before, end);
        Ok(())
    }

    /// Gives ranges to the groups that have them.
    pub fn take_over(&mut self, moved: &[(HashRange, u64)]) {
        for (range, group) in moved {
            if let Some(index) = self.index_of(*group) {
                self.view.ownership.assign(range, index);
                self.view.epoch += 1;
            }
        }
    }

    /// Gives ranges that nobody has any more to a shard that is lost, so that they are named, and can be given up like any other.
    pub fn give_up_ranges(&mut self, lost: &LostRanges) {
        let group = self.view.next_group;
        let id = self.view.shards.iter().map(|shard| shard.id).max().unwrap_or(0) + 1;
        self.view.next_group += 1;
        self.view.shards.push(Shard { id, group, replicas: vec![lost.node.clone()] });
        for range in &lost.ranges {
            self.view.ownership.assign(range, self.view.shards.len() - 1);
        }
        self.holders.insert(group, BTreeMap::from([(lost.node.clone(), NOBODY)]));
        self.view.epoch += 1;
    }

    /// Notes how a view change has ended that began with these nodes.
    pub fn note_end(&mut self, id: u64, before: &[Address], end: End) {
        let now: HashSet<Address> = self.nodes().into_iter().collect();
        let left: Vec<Address> = before.iter().filter(|node| !now.contains(node)).cloned().collect();
        self.former.extend(left.iter().cloned());
        self.former.retain(|node| !now.contains(node));
        self.starts.retain(|node, _| now.contains(node));
        while self.former.len() > KEPT_FORMER {
            self.former.pop_front();
        }
        self.results.push_back(ChangeResult { id, left, end });
        while self.results.len() > KEPT_RESULTS {
            self.results.pop_front();
        }
    }

    fn note_receipt(&mut self, receipt: Option<Receipt>) {
        self.receipts.extend(receipt);
        while self.receipts.len() > KEPT_RECEIPTS {
            self.receipts.pop_front();
        }
    }

    /// What the last finished view changes came to, the newest first: also those of which only the result was kept.
    pub fn last_receipts(&self) -> Vec<Receipt> {
        let is_kept = |id: u64| self.receipts.iter().any(|receipt| receipt.change == id);
        let results = self.results.iter().filter(|result| !is_kept(result.id));
        let others = results.filter_map(|result| match &result.end {
            End::Finished(text) => Receipt::read(result.id, text),
            _ => None,
        });
        let mut all: Vec<Receipt> = others.chain(self.receipts.iter().cloned()).collect();
        all.sort_by_key(|receipt| std::cmp::Reverse(receipt.epoch));
        all.truncate(KEPT_RECEIPTS);
        all
    }

    /// Makes these the shards of the view. Those that go own nothing.
    fn settle(&mut self, shards: Vec<Shard>) {
        let old = std::mem::take(&mut self.view.shards);
        let places: HashMap<u64, usize> = shards.iter().map(|shard| shard.group).zip(0..).collect();
        let index = |owner: usize| {
            let place = places.get(&old[owner].group);
            *place.expect("a shard that owns something stays")
        };
        self.view.ownership = self.view.ownership.renumbered(index);
        if shards != old {
            self.view.epoch += 1;
        }
        self.view.shards = shards;
        self.forget_holders();
    }

    fn forget_holders(&mut self) {
        let groups: HashSet<u64> = self.view.shards.iter().map(|shard| shard.group).collect();
        self.holders.retain(|group, _| groups.contains(group));
        self.origins.retain(|group, _| groups.contains(group));
        self.successors.retain(|group, _| groups.contains(group));
    }
}

fn running(change: &mut Option<Change>, id: u64) -> Result<&mut Change, Void> {
    change.as_mut().filter(|change| change.id == id).ok_or(Void::Outdated)
}

fn planned(change: &mut Option<Change>, id: u64) -> Result<&mut Planned, Void> {
    running(change, id)?.planned.as_mut().ok_or(Void::Outdated)
}

impl Planned {
    /// The place of a piece of which just this attempt is open.
    fn open(&self, piece: PieceId) -> Result<usize, Void> {
        let at = piece.index as usize;
        let open = self.pieces.get(at).is_some_and(|one| !one.handed_over && one.attempt == piece.attempt);
        if open { Ok(at) } else { Err(Void::Outdated) }
    }

    /// Whether all pieces belong to their new groups: from then on the replicas of the groups move to the nodes of the plan.
    pub fn is_handed_over(&self) -> bool {
        self.pieces.iter().all(|piece| piece.handed_over)
    }

    /// Whether something may have changed that another view change would have to change back.
    pub fn has_begun(&self) -> bool {
        self.is_handed_over() || self.pieces.iter().any(|piece| piece.handed_over)
    }

    /// Whether nothing of a shard that leaves is left to be handed over but this piece.
    pub fn is_last_of_leaving(&self, piece: &Piece) -> bool {
        let leaves = !self.shards.iter().any(|shard| shard.group == piece.from);
        let is_other = |other: &&Piece| other.from == piece.from && other.range != piece.range;
        leaves
            && !self.is_given_up(piece.from)
            && self.pieces.iter().filter(is_other).all(|other| other.handed_over)
    }

    /// Whether the pairs of a group are given up.
    pub fn is_given_up(&self, group: u64) -> bool {
        self.given_up.iter().any(|one| one.group == group)
    }
}

/// Which starts of its nodes hold a shard.
fn holders_of(shard: &Shard, incarnations: &BTreeMap<Address, u64>) -> BTreeMap<Address, u64> {
    let known = shard.replicas.iter().filter_map(|node| Some((node.clone(), *incarnations.get(node)?)));
    known.collect()
}

/// The nodes that shall vote in the meta group of a view: the first, the first three or the first five.
pub fn wanted_voters(nodes: &[Address]) -> &[Address] {
    let count = match nodes.len() {
        0..3 => 1,
        3..7 => 3,
        _ => 5,
    };
    &nodes[..count.min(nodes.len())]
}

#[cfg(test)]
mod tests;
