//! From what is asked of a view change to its plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::census::Shards;
use super::controller::Controller;
use crate::dice;
use crate::failpoints::failpoint;
use crate::model::address::Address;
use crate::model::fit;
use crate::model::limits::Limits;
use crate::model::meta::{Command, GivenUp, Members, MetaState, Piece, Wanted};
use crate::model::plan::Plan;
use crate::model::view::{Shard, View};
use crate::node::ask::OrderError;
use crate::node::membership::unlike;
use crate::node::problems::{advice, lost_shard};
use crate::wire::orders;
use crate::wire::{GroupMembers, NotPlanned, PlannedMove, PlannedShard, PlannedView, ReplicaReport};

/// A node that does not answer a question within this time is not reached.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// The pairs are counted for one plan at a time: another one is looked for again after this.
const PLANNING_PAUSE: Duration = Duration::from_millis(20);

/// Everything that was found out about the nodes of a view change.
struct Found {
    given_up: Vec<GivenUp>,
    /// By shard of the present view: who really holds it, or nothing where it is given up.
    members: Vec<Option<Members>>,
    /// The wanted nodes that hold nothing yet.
    fresh: BTreeMap<Address, u64>,
    /// The starts of all wanted nodes.
    starts: BTreeMap<Address, u64>,
    /// How many bytes more those of them take that have a bound.
    room: BTreeMap<Address, u64>,
}

impl Found {
    /// By shard: its group, or nothing where it is given up.
    fn groups(&self, view: &View) -> Vec<Option<u64>> {
        let shards = view.shards.iter().zip(&self.members);
        shards.map(|(shard, members)| members.as_ref().map(|_| shard.group)).collect()
    }

    /// Who holds each group.
    fn holders(self, view: &View) -> BTreeMap<u64, Members> {
        let shards = view.shards.iter().zip(self.members);
        shards.filter_map(|(shard, members)| Some((shard.group, members?))).collect()
    }

    /// The view with the nodes that really hold its shards; none where a shard is given up.
    fn view(&self, view: &View) -> View {
        let mut real = view.clone();
        for (shard, members) in real.shards.iter_mut().zip(&self.members) {
            shard.replicas = members.as_ref().map(|members| members.nodes.clone()).unwrap_or_default();
        }
        real
    }
}

/// Plans a view change, as the meta leader of a term, and makes the command that sets the plan.
pub(super) async fn prepare(
    controller: &Controller,
    state: &MetaState,
    (id, term): (u64, u64),
    wanted: &Wanted,
) -> Result<Command, NotPlanned> {
    let _alone = loop {
        match controller.coordinator.planning.begin() {
            Some(alone) => break alone,
            None => controller.node.pause(PLANNING_PAUSE).await,
        }
    };
    let found = look_at(controller, state, wanted).await?;
    reserve_all(controller, state, &found, wanted).await?;
    failpoint!("change-reserved");
    let command = plan_and_cut(controller, state, (id, term), wanted, &found).await;
    if command.is_err() {
        release_all(controller, state, &found).await;
    }
    let command = command?;
    // A reservation does not hold for ever, and counting may take a while.
    reserve_all(controller, state, &found, wanted).await?;
    Ok(command)
}

async fn plan_and_cut(
    controller: &Controller,
    state: &MetaState,
    (id, term): (u64, u64),
    wanted: &Wanted,
    found: &Found,
) -> Result<Command, NotPlanned> {
    let mut shards = Shards::new(controller, state, (id, term), found.groups(&state.view));
    // A shard whose pairs are given up has no node that could stay.
    let plan = shards.plan(&found.view(&state.view), wanted).await?;
    failpoint!("change-counted");
    let command = match fits(&shards, found, &plan).await {
        Ok(()) => command(state, id, found, &plan, &shards).await,
        Err(lack) => Err(lack),
    };
    shards.close().await;
    command
}

/// Checks that what a plan brings to each node fits there.
async fn fits(shards: &Shards<'_>, found: &Found, plan: &Plan) -> Result<(), NotPlanned> {
    if found.room.is_empty() {
        return Ok(());
    }
    let (bytes, old) = (shards.bytes().await, found.view(&shards.state.view));
    match fit::lack(plan, &old, &bytes, &found.room) {
        None => Ok(()),
        Some(lack) => Err(NotPlanned::Refused(lack.to_string())),
    }
}

/// Plans a view change and does nothing of it.
pub(super) async fn plan_only(controller: &Controller, wanted: &Wanted) -> Result<PlannedView, NotPlanned> {
    // The census of another plan would take the place of this one's.
    let alone = controller.coordinator.planning.begin();
    let _alone =
        alone.ok_or_else(|| NotPlanned::Failed("another plan is being made: try again".to_owned()))?;
    let state = controller.node.meta.state();
    let state = state.ok_or_else(|| NotPlanned::Failed("this node does not serve".to_owned()))?;
    if let Some(change) = &state.change {
        return Err(NotPlanned::Running(change.id));
    }
    let found = look_at(controller, &state, wanted).await?;
    let mut shards = Shards::new(controller, &state, (dice::draw(), 0), found.groups(&state.view));
    let plan = shards.plan(&found.view(&state.view), wanted).await?;
    let fits = fits(&shards, &found, &plan).await;
    shards.close().await;
    fits.map(|()| describe(&state, &plan))
}

/// Who holds the groups as things stand, for a view change that takes the place of one that is blocked.
///
/// # Errors
/// A sentence, where it would be refused as things stand, before anything is counted.
pub(super) async fn holders(
    controller: &Controller,
    wanted: &Wanted,
) -> Result<BTreeMap<u64, Members>, String> {
    let Some(state) = controller.node.meta.state() else { return Ok(BTreeMap::new()) };
    match look_at(controller, &state, wanted).await {
        Err(NotPlanned::Refused(reason) | NotPlanned::Failed(reason)) => Err(reason),
        Err(NotPlanned::Running(_)) => Ok(BTreeMap::new()),
        Ok(found) => Ok(found.holders(&state.view)),
    }
}

/// What is wrong with a view change by itself, whoever is there.
pub fn wrong(state: &MetaState, wanted: &Wanted) -> Option<String> {
    if let Err(error) = View::check(&wanted.nodes, wanted.repl_factor) {
        return Some(error.to_string());
    }
    if let Err(error) = state.limits.check(&wanted.limits, wanted.repl_factor, state.durable) {
        return Some(error.to_string());
    }
    let ids: BTreeSet<u32> = state.view.shards.iter().map(|shard| shard.id).collect();
    let unknown = wanted.accept_loss.iter().find(|id| !ids.contains(id))?;
    Some(format!("accept-loss names shard {unknown}, which there is not: allowed are ids of lost shards"))
}

/// Finds out who is there and who is lost.
async fn look_at(controller: &Controller, state: &MetaState, wanted: &Wanted) -> Result<Found, NotPlanned> {
    if let Some(reason) = wrong(state, wanted) {
        return Err(NotPlanned::Refused(reason));
    }
    let view = &state.view;
    let mut found = Found {
        given_up: Vec::new(),
        members: Vec::new(),
        fresh: BTreeMap::new(),
        starts: BTreeMap::new(),
        room: BTreeMap::new(),
    };
    let mut search = Search::new(controller, state, wanted);
    for (index, shard) in view.shards.iter().enumerate() {
        let held = search.holders_of(shard).await;
        let owns = view.ranges(index).next().is_some();
        let members = judge(shard, owns, wanted.accept_loss.contains(&shard.id), held)?;
        if members.is_none() && owns {
            not_reached_by_anyone(controller, state, index).await?;
            found.given_up.push(GivenUp {
                id: shard.id,
                group: shard.group,
                replicas: shard.replicas.clone(),
                pairs: last_count(controller, state, shard),
            });
        }
        found.members.push(members);
    }
    let held: BTreeSet<&Address> = found.members.iter().flatten().flat_map(|one| &one.nodes).collect();
    let held: BTreeSet<Address> = held.into_iter().cloned().collect();
    for node in &wanted.nodes {
        let (start, room) = meet(controller, state, node, state.limits.raised(&wanted.limits)).await?;
        found.room.extend(room.map(|room| (node.clone(), room)));
        if !held.contains(node) {
            found.fresh.insert(node.clone(), start);
        }
        found.starts.insert(node.clone(), start);
    }
    Ok(found)
}

/// Who holds a shard, as all that answer say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holders {
    /// Its leader says who.
    Led {
        /// The leader.
        by: Address,
        /// Who holds it.
        members: Members,
    },
    /// This node holds a replica, and no leader is found: why.
    Leaderless(Address, String),
    /// Nobody that answers holds anything of it: why its own nodes do not.
    Nobody(OrderError),
}

/// Who holds a shard in the new view's eyes, or nothing where its pairs are given up or there are none.
fn judge(shard: &Shard, owns: bool, accepted: bool, held: Holders) -> Result<Option<Members>, NotPlanned> {
    let id = shard.id;
    let refuse = |reason: String| Err(NotPlanned::Refused(reason));
    match held {
        Holders::Led { by, .. } if accepted => {
            refuse(format!("shard {id} is not lost, {by} answers: leave it out of accept-loss"))
        }
        Holders::Led { members, .. } => Ok(Some(members)),
        Holders::Leaderless(node, _) if accepted => {
            refuse(format!("shard {id} is not lost: {node} holds a replica; evenkv recover goes on from it"))
        }
        Holders::Leaderless(node, reason) if owns => refuse(format!(
            "shard {id} has no leader, although {node} holds a replica: {reason}; {}",
            advice(shard)
        )),
        Holders::Nobody(OrderError::Gone(_)) if owns && !accepted => {
            refuse(lost_shard(id, &shard.replicas[0]))
        }
        Holders::Nobody(error) if owns && !accepted => {
            refuse(format!("shard {id} is not reached: {error}; {}", advice(shard)))
        }
        Holders::Leaderless(..) | Holders::Nobody(_) => Ok(None),
    }
}

/// Looks for those who hold the shards of a view: where its own nodes do not answer for one, at all others, since replicas may have moved.
struct Search<'a> {
    controller: &'a Controller,
    state: &'a MetaState,
    nodes: BTreeSet<Address>,
    /// What all those hold that answer, once they were asked.
    held: Option<Vec<(Address, ReplicaReport)>>,
}

impl<'a> Search<'a> {
    fn new(controller: &'a Controller, state: &'a MetaState, wanted: &Wanted) -> Self {
        let known = state.nodes().into_iter().chain(state.former.iter().cloned());
        let nodes = known.chain(wanted.nodes.iter().cloned()).collect();
        Self { controller, state, nodes, held: None }
    }

    async fn holders_of(&mut self, shard: &Shard) -> Holders {
        let group = shard.group;
        let order = orders::Members { group };
        let asked = self.controller.order_leader(self.state, group, &order, QUESTION_TIMEOUT).await;
        let error = match asked {
            Ok(members) => return led(members),
            Err(error) => error,
        };
        let mut holder = None;
        let controller = self.controller;
        for (node, serving_state) in self.all_held().await {
            if serving_state.group != group || !serving_state.holds_something() {
                continue;
            }
            if serving_state.replica.as_ref().is_none_or(|replica| replica.leads)
                && let Ok(members) = controller.order(node, None, order.clone(), QUESTION_TIMEOUT).await
            {
                return led(members);
            }
            holder.get_or_insert_with(|| node.clone());
        }
        match holder {
            Some(node) => Holders::Leaderless(node, error.to_string()),
            None => Holders::Nobody(error),
        }
    }

    async fn all_held(&mut self) -> &[(Address, ReplicaReport)] {
        if self.held.is_none() {
            let mut held = Vec::new();
            for node in &self.nodes {
                match self.controller.order(node, None, orders::Replicas {}, QUESTION_TIMEOUT).await {
                    Ok(reports) => held.extend(reports.into_iter().map(|one| (node.clone(), one))),
                    Err(error) => log::debug!("{node} does not say what it holds: {error}"),
                }
            }
            self.held = Some(held);
        }
        self.held.as_deref().expect("it was just set")
    }
}

fn led(members: GroupMembers) -> Holders {
    let nodes: Vec<Address> = members.voters.into_iter().map(|(_, node)| node).collect();
    let start = (nodes.len() == 1).then_some(members.by.incarnation);
    Holders::Led { by: members.by.node, members: Members { nodes, start } }
}

/// How many pairs a shard was last heard to hold.
fn last_count(controller: &Controller, state: &MetaState, shard: &Shard) -> Option<u64> {
    let counts = shard
        .replicas
        .iter()
        .filter_map(|node| controller.node.posts.counted(node, state.holder(shard.group, node)?));
    counts.max()
}

/// That a shard's nodes are dead is taken from the operator only where no member reaches one of them.
async fn not_reached_by_anyone(
    controller: &Controller,
    state: &MetaState,
    index: usize,
) -> Result<(), NotPlanned> {
    let lost = &state.view.shards[index];
    for (other, shard) in state.view.shards.iter().enumerate().filter(|(other, _)| *other != index) {
        for member in &shard.replicas {
            for node in &lost.replicas {
                let one = lost.replicas.len() == 1;
                // Of a shard with several replicas any start of a node may hold one. Who answers here has said that it holds none.
                if !one && controller.node.ask_hello(node).await.is_ok() {
                    continue;
                }
                let incarnation = state.holder(lost.group, node).filter(|_| one);
                // Nobody holds a shard alone under no start.
                if one && incarnation.is_none() {
                    continue;
                }
                let order = orders::Reach { node: node.clone(), incarnation };
                if controller.order(member, None, order.clone(), QUESTION_TIMEOUT).await == Ok(true) {
                    let (id, by) = (lost.id, state.view.shards[other].id);
                    return Err(NotPlanned::Refused(format!(
                        "shard {id} is not lost: {member} of shard {by} reaches {node}; mend the network or end {node}"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The start of a wanted node, which must be able to take all that the limits allow, and how many bytes more it takes, if it has a bound.
async fn meet(
    controller: &Controller,
    state: &MetaState,
    node: &Address,
    limits: Limits,
) -> Result<(u64, Option<u64>), NotPlanned> {
    let refuse = |reason: String| Err(NotPlanned::Refused(reason));
    let lack = |memory| {
        let reason = limits.lack(memory)?;
        Some(format!("{node} cannot take part: {reason}; start it with that, or leave it out of the view"))
    };
    if *node == controller.node.address {
        let own = (controller.node.incarnation, controller.node.room_left());
        return lack(Some(controller.node.large_memory)).map_or(Ok(own), refuse);
    }
    match controller.node.ask_hello(node).await {
        Ok(hello) if hello.address != *node => {
            refuse(format!("the node at {node} calls itself {}: name it so", hello.address))
        }
        Ok(hello) if hello.cluster.as_ref() != Some(&state.cluster) && hello.bound.is_some() => {
            refuse(hello.bound.unwrap_or_default())
        }
        Ok(hello) if hello.durable != controller.node.is_durable() => refuse(unlike(node, hello.durable)),
        Ok(hello) => lack(hello.large_memory).map_or(Ok((hello.incarnation, hello.room)), refuse),
        Err(error) => {
            refuse(format!("{node} is not reached ({error}): start it, or leave it out of the view"))
        }
    }
}

async fn reserve_all(
    controller: &Controller,
    state: &MetaState,
    found: &Found,
    wanted: &Wanted,
) -> Result<(), NotPlanned> {
    for node in &wanted.nodes {
        let Some(incarnation) = found.fresh.get(node).copied() else { continue };
        let order = orders::Reserve { cluster: state.cluster.clone(), founding: false };
        let reserved = controller.order(node, Some(incarnation), order, QUESTION_TIMEOUT).await;
        if let Err(error) = reserved {
            release_all(controller, state, found).await;
            return Err(NotPlanned::Refused(error.to_string()));
        }
    }
    Ok(())
}

async fn release_all(controller: &Controller, state: &MetaState, found: &Found) {
    for (node, incarnation) in &found.fresh {
        let order = orders::Release { cluster: state.cluster.clone() };
        if let Err(error) = controller.order(node, Some(*incarnation), order, QUESTION_TIMEOUT).await {
            log::debug!("a reservation lasts until it is void by itself: {error}");
        }
    }
}

async fn command(
    state: &MetaState,
    id: u64,
    found: &Found,
    plan: &Plan,
    shards: &Shards<'_>,
) -> Result<Command, NotPlanned> {
    let old = &state.view;
    let index_of = |group: u64| old.shards.iter().position(|shard| shard.group == group);
    let mut pieces = Vec::new();
    for moves in plan.moves.chunk_by(|a, b| a.from == b.from) {
        let giver = index_of(moves[0].from).expect("a shard of the present view gives");
        let ranges = moves.iter().map(|step| step.range.clone()).collect();
        let cut = shards.pieces(giver, ranges).await.map_err(NotPlanned::Failed)?;
        for (step, cut) in moves.iter().zip(cut) {
            pieces
                .extend(cut.into_iter().map(|(range, pairs)| Piece::new(range, (step.from, step.to), pairs)));
        }
    }
    let members: Vec<(u64, Members)> = old
        .shards
        .iter()
        .zip(&found.members)
        .filter_map(|(shard, one)| Some((shard.group, one.clone()?)))
        .collect();
    Ok(state.plan_command(
        id,
        &members.into_iter().collect(),
        plan,
        pieces,
        found.given_up.clone(),
        &found.starts,
    ))
}

fn describe(state: &MetaState, plan: &Plan) -> PlannedView {
    let old = &state.view;
    let id_of = |shards: &[Shard], group: u64| {
        let shard = shards.iter().find(|shard| shard.group == group);
        shard.map_or_else(String::new, |shard| shard.id.to_string())
    };
    let mut moves: BTreeMap<(u64, u64), PlannedMove> = BTreeMap::new();
    for step in &plan.moves {
        let sum = moves.entry((step.from, step.to)).or_insert_with(|| PlannedMove {
            from: id_of(&old.shards, step.from),
            to: id_of(&plan.view.shards, step.to),
            pairs: 0,
            ranges: 0,
        });
        sum.pairs += step.pairs;
        sum.ranges += 1;
    }
    let shards = plan.view.shards.iter().zip(&plan.targets).map(|(shard, target)| PlannedShard {
        shard_id: shard.id.to_string(),
        key_count: old.shards.iter().position(|old| old.group == shard.group).map(|old| plan.counts[old]),
        key_count_planned: *target,
        replicas: shard.replicas.clone(),
    });
    PlannedView {
        keys: plan.keys,
        moved: plan.moved,
        minimum: plan.minimum,
        copied: plan.copied,
        shards: shards.collect(),
        moves: moves.into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits::WantedLimits;
    use crate::model::shard::Claims;
    use crate::node::fake::{Fake, GROUP, address, members, started, state};
    use crate::node::host;
    use crate::wire::Leads;
    use crate::wire::orders::Order;

    #[test]
    fn a_shard_is_looked_for_at_all_nodes_before_it_counts_as_lost() {
        // The view names n2, which is dead; the replica has moved to n3.
        let report = ReplicaReport { group: GROUP, incarnation: 8, replica: None, claims: Claims::default() };
        let by = Leads { node: address(3), incarnation: 8 };
        let members = GroupMembers { by, is_logged: false, ..members(&[3], &[], false) };
        let order = move |to: &Address, order: &Order| match order {
            Order::Replicas(_) if *to == address(3) => Ok(serde_json::json!([report])),
            Order::Members(_) if *to == address(3) => Ok(serde_json::json!(members)),
            _ => Err(OrderError::NotSent(format!("{to} is down"))),
        };
        let node = started(Fake { order: Box::new(order), ..Fake::default() });
        let known = state(1, &[2], &[(2, 7)]);
        node.learn(&known).unwrap();
        let controller = Controller::new(node, std::sync::Arc::default());
        let wanted = |nodes: &[u64]| Wanted {
            nodes: nodes.iter().map(|number| address(*number)).collect(),
            repl_factor: 1,
            accept_loss: Vec::new(),
            limits: WantedLimits::default(),
        };
        let held = |nodes: &[u64]| {
            host::run(Search::new(&controller, &known, &wanted(nodes)).holders_of(&known.view.shards[0]))
        };
        let moved = Members { nodes: vec![address(3)], start: Some(8) };
        assert_eq!(held(&[1, 3]), Holders::Led { by: address(3), members: moved });
        assert!(matches!(held(&[1]), Holders::Nobody(_)), "nobody who could be asked holds it");
    }

    /// Who holds a shard, whether it owns anything, whether its loss is accepted; what is said of it, and when.
    type Row = (Holders, bool, bool, Result<bool, &'static str>, &'static str);

    #[test]
    fn nothing_counts_as_lost_that_anybody_holds() {
        let node: Address = "n2".parse().unwrap();
        let shard = Shard { id: 4, group: 9, replicas: vec!["n1".parse().unwrap()] };
        let members = Members { nodes: vec![node.clone()], start: Some(7) };
        let led = || Holders::Led { by: node.clone(), members: members.clone() };
        let leaderless = || Holders::Leaderless(node.clone(), "no leader".to_owned());
        let gone = || Holders::Nobody(OrderError::Gone("n1 was started again".to_owned()));
        let unreached = || Holders::Nobody(OrderError::NotSent("n1 is down".to_owned()));
        let rows: [Row; 9] = [
            (led(), true, false, Ok(true), "as it should be"),
            (led(), false, false, Ok(true), "a shard that owns nothing"),
            (led(), true, true, Err("n2:13800 answers"), "it has moved to another node"),
            (leaderless(), true, true, Err("n2:13800 holds a replica"), "recover goes on from it"),
            (leaderless(), true, false, Err("although n2:13800 holds a replica"), "no leader"),
            (leaderless(), false, false, Ok(false), "nothing is lost by it"),
            (gone(), true, false, Err("shard 4 is lost"), "its only node was started again"),
            (unreached(), true, false, Err("shard 4 is not reached"), "its only node is dead"),
            (unreached(), true, true, Ok(false), "its loss is accepted"),
        ];
        for (held, owns, accepted, wanted, when) in rows {
            match (judge(&shard, owns, accepted, held), wanted) {
                (Ok(members), Ok(is_held)) => assert_eq!(members.is_some(), is_held, "{when}"),
                (Err(NotPlanned::Refused(reason)), Err(part)) => {
                    assert!(reason.contains(part), "{when}: {reason}");
                }
                (got, wanted) => panic!("{when}: {got:?} and not {wanted:?}"),
            }
        }
    }
}
