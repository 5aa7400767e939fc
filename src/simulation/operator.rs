//! What the operator does: changes the view, also over one that runs, cancels, and brings back what was lost, as the nodes' answers say.

use std::rc::Rc;

use super::Shared;
use super::process::kill;
use super::tasks::{at, pause, pause_for};
use super::world::{World, address, place_of};
use crate::error::Error;
use crate::model::address::Address;
use crate::model::limits::WantedLimits;
use crate::model::meta::{End, MetaState, Wanted};
use crate::model::view::View;
use crate::reshard::controller::Controller;
use crate::reshard::recover::{Recovery, recover};

/// A request of the operator is answered within so many steps.
const PATIENCE: u64 = 3_000;
/// An operator who finds a view change running looks again after so many steps.
const LOOK_AGAIN: u64 = 100;

/// Changes the view again and again, and recovers what is lost, until harm is over.
pub(super) async fn operate(world: Shared) {
    pause_for(world.draw(50..300)).await;
    while world.harm.get() {
        pause_for(world.draw(10..80)).await;
        if world.newest().is_none() {
            continue;
        }
        // Who is down comes back with everything, so nobody is given up.
        if world.on_disks {
            match world.draw(0..100) {
                0..2 => cancel(&world).await,
                2..70 => drop(change(&world, &[]).await),
                _ => {}
            }
            continue;
        }
        match world.draw(0..100) {
            0..2 => cancel(&world).await,
            2..12 if world.is_harsh => drop(bring_back(&world).await),
            2..4 => drop(bring_back(&world).await),
            4..70 => drop(change(&world, &[]).await),
            _ => {}
        }
    }
}

/// A node that runs and knows the cluster, which the operator asks.
fn asked(world: &World) -> Option<(usize, Rc<Controller>)> {
    let cluster = world.newest()?.cluster.clone();
    let knows = |place: &usize| {
        let node = &world.nodes[*place];
        node.stays() && node.state().is_some_and(|state| state.cluster == cluster)
    };
    let places: Vec<usize> = (0..world.nodes.len()).filter(knows).collect();
    let place = *places.get(world.draw(0..places.len().max(1)))?;
    Some((place, world.nodes[place].controller()?))
}

async fn cancel(world: &Shared) {
    if let Some((place, controller)) = asked(world) {
        let _ = at(world, place, PATIENCE, async move { controller.cancel().await }).await;
    }
}

/// Asks for a view change: its id where it was begun, or why it was not.
async fn change(world: &Shared, accept_loss: &[u32]) -> Option<Result<u64, Error>> {
    let wanted = Wanted { accept_loss: accept_loss.to_vec(), ..world.some_view() };
    let (place, controller) = asked(world)?;
    at(world, place, PATIENCE, async move { controller.begin(&wanted).await }).await
}

/// Asks which nodes would be given up, sees to it that they are dead, and has the rest recovered. Whether that was done.
async fn bring_back(world: &Shared) -> bool {
    let Some((place, controller)) = asked(world) else { return false };
    let dry = Recovery { dry_run: true, given_up: None };
    let there = Rc::clone(&controller);
    let planned = at(world, place, PATIENCE, async move { recover(&there, &dry).await }).await;
    let planned = match planned {
        Some(Ok(planned)) => planned,
        Some(Err(error)) => {
            log::debug!("step {}: not recovered by {}: {error}", world.now.get(), address(place));
            return false;
        }
        None => return false,
    };
    let named =
        |field: &str| -> Vec<String> { serde_json::from_value(planned[field].clone()).unwrap_or_default() };
    let given_up: Vec<Address> = named("given-up").iter().filter_map(|node| node.parse().ok()).collect();
    // What the operator says is true: who is given up is dead.
    for dead in given_up.iter().map(place_of) {
        if dead != place && world.nodes[dead].life.get() != 0 {
            kill(world, dead);
        }
    }
    let before = world.newest_known();
    if let Some(before) = &before {
        // It was named already, and clients may see it before the last answer is here.
        note_recovery(world, before, &planned);
    }
    let asked = Recovery { dry_run: false, given_up: Some(given_up) };
    let answer = at(world, place, PATIENCE, async move { recover(&controller, &asked).await }).await;
    match (answer, before) {
        (Some(Ok(answer)), Some(before)) => {
            world.count(|tally| tally.recovered += 1);
            note_recovery(world, &before, &answer);
            true
        }
        (Some(Err(error)), _) => {
            log::debug!("step {}: not recovered after all by {}: {error}", world.now.get(), address(place));
            false
        }
        // It may have been done, and nobody has said what was lost: the operator knows no more than that all may be.
        (None, Some(before)) => {
            let groups: Vec<u64> = before.view.shards.iter().map(|shard| shard.group).collect();
            world.oracle.borrow_mut().forget(&before, &groups);
            false
        }
        _ => false,
    }
}

/// The operator was told which shards are lost, or go on from what is left.
fn note_recovery(world: &Shared, before: &MetaState, answer: &serde_json::Value) {
    log::debug!("step {}: recovered: {answer}", world.now.get());
    let rows = answer["recovered-shards"].as_array().into_iter().flatten();
    let ids = rows.map(|row| &row["shard-id"]).chain(answer["lost-shards"].as_array().into_iter().flatten());
    let ids: Vec<String> = ids.filter_map(|id| Some(id.as_str()?.to_owned())).collect();
    let state = world.newest_known();
    for state in [Some(before.clone()), state].into_iter().flatten() {
        let named = state.view.shards.iter().filter(|shard| ids.contains(&shard.id.to_string()));
        let groups: Vec<u64> = named.map(|shard| shard.group).collect();
        world.oracle.borrow_mut().forget(&state, &groups);
    }
}

impl World {
    /// The newest state that was agreed on, or that a node acts by.
    pub(super) fn newest_known(&self) -> Option<MetaState> {
        let known = self.nodes.iter().filter_map(super::process::Process::state);
        let newest = self.newest()?;
        let known = known.filter(|state| state.cluster == newest.cluster);
        known
            .chain([std::sync::Arc::clone(&newest)])
            .max_by_key(|state| state.version)
            .map(|state| (*state).clone())
    }

    /// Some nodes that run, for a view.
    pub(super) fn some_view(&self) -> Wanted {
        let mut nodes: Vec<Address> =
            (0..self.nodes.len()).filter(|place| self.nodes[*place].stays()).map(address).collect();
        let repl_factor = [1, 2, 2, 3, 3, 3][self.draw(0..6)].min(nodes.len().max(1));
        // No seed is without a node that may be lost.
        let is_late = self.tally.borrow().crashes == 0 && self.now.get() > super::HARMFUL_STEPS / 2;
        if is_late && nodes.len() > 3 {
            nodes.truncate(3);
        }
        let repl_factor = if is_late { nodes.len().clamp(1, 3) } else { repl_factor };
        let most = (nodes.len() / repl_factor).max(1);
        let shards = self.draw(1..=most.min(3));
        while nodes.len() > shards * repl_factor {
            nodes.swap_remove(self.draw(0..nodes.len()));
        }
        if View::check(&nodes, repl_factor).is_err() {
            nodes = vec![address(0)];
        }
        Wanted { nodes, repl_factor, accept_loss: Vec::new(), limits: WantedLimits::default() }
    }
}

/// When harm is over: whatever is lost is recovered or given up, the change that runs comes to its end, and then another one.
pub(super) async fn mend_and_change(world: Shared) {
    while world.busy.get() > 0 {
        pause().await;
    }
    let mut lost: Vec<u32> = Vec::new();
    loop {
        // What nodes go on with comes to its end, and what is dead is seen.
        pause_for(LOOK_AGAIN).await;
        restart_strays(&world);
        let Some(newest) = world.newest() else { continue };
        if newest.change.is_none() && world.chance(30) {
            lost.retain(|id| newest.view.shards.iter().any(|shard| shard.id == *id));
        }
        match change(&world, &lost).await {
            Some(Ok(id)) => {
                if let Some(End::Finished(_)) = ended(&world, id).await {
                    break;
                }
            }
            Some(Err(error)) => log::debug!("step {}: {error}", world.now.get()),
            None => {}
        }
        if !world.on_disks {
            bring_back(&world).await;
            lost = world.lost_shards();
        }
    }
    world.over.set(true);
}

/// Nodes that became clusters of their own, cut off from the other, are started again, as their logs say.
fn restart_strays(world: &Shared) {
    let is_stray = |place: &usize| {
        let node = world.nodes[*place].node();
        // One that is alone and empty can be taken in.
        node.is_some_and(|node| !world.is_ours(&node) && node.bound().is_some())
    };
    for place in (0..world.nodes.len()).filter(is_stray) {
        kill(world, place);
        world.nodes[place].lose_disk();
    }
}

/// How a view change has ended, once it has; nothing where it makes no progress.
async fn ended(world: &Shared, id: u64) -> Option<End> {
    for _ in 0..PATIENCE {
        if let Some(end) = world.newest_known().and_then(|state| state.result(id).cloned()) {
            return Some(end);
        }
        pause().await;
    }
    None
}

impl World {
    /// The shards that the nodes say are lost: nothing of them is left anywhere.
    fn lost_shards(&self) -> Vec<u32> {
        let Some(state) = self.newest_known() else { return Vec::new() };
        let is_held = |group: u64| {
            let ours = self.nodes.iter().filter(|node| node.node().is_some_and(|node| self.is_ours(&node)));
            ours.into_iter().any(|node| {
                node.shards().iter().any(|shard| {
                    let holds =
                        !shard.is_logged() || node.status(group).is_some_and(|status| status.last > 0);
                    shard.group() == group && holds
                })
            })
        };
        let shards = state.view.shards.iter().enumerate();
        let lost = shards
            .filter(|(index, shard)| state.view.ranges(*index).next().is_some() && !is_held(shard.group));
        lost.map(|(_, shard)| shard.id).collect()
    }
}
