//! A client that lists all keys through any node. Each key was read somewhere between the beginning of the listing and its end, so what is told of it is judged as what a client
//! is told that has read it; and each is told of once, in order.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::clients::{PATIENCE, note_listed};
use super::oracle::number_in;
use super::tasks::{at, pause_for};
use super::world::place_of;
use crate::clock::{Deadline, now};
use crate::model::store::Span;
use crate::node::state::Node;

/// A node has so much time for a listing.
const LISTING: Duration = Duration::from_millis(2_500);

/// Value and version of each key that is there.
type Listed = BTreeMap<Box<[u8]>, (u64, u64)>;

/// Lists all keys, again and again.
pub(super) async fn list_keys(world: Shared) {
    while world.harm.get() {
        pause_for(world.draw(20..200)).await;
        world.busy.set(world.busy.get() + 1);
        list(&world).await;
        world.busy.set(world.busy.get() - 1);
    }
}

async fn list(world: &Shared) {
    let began: Vec<_> = world.keys.iter().map(|key| world.oracle.borrow().floor(key)).collect();
    let place = world.draw(0..world.nodes.len());
    let Some(node) = world.serving(place) else { return };
    let listed = at(world, place, PATIENCE, run(Rc::clone(world), node)).await;
    let Some(Some(listed)) = listed else { return };
    if let Some(stranger) = listed.keys().find(|key| !world.keys.iter().any(|known| **known == ***key)) {
        world.judge(Err(format!("{stranger:?} is listed, and never was")));
    }
    for (key, began) in world.keys.iter().zip(began) {
        note_listed(world, key, listed.get(&key[..]).copied(), began);
    }
}

/// All keys, by rounds of some; nothing where the listing did not come to its end, or the node is none of the cluster.
async fn run(world: Shared, node: Arc<Node>) -> Option<Listed> {
    let deadline = Deadline::after(now(), LISTING);
    let (place, since) = (place_of(&node.address), world.now.get());
    let most = world.draw(1..8);
    let (mut listed, mut rest) = (Listed::new(), Some(Span::default()));
    while let Some(span) = rest {
        let chunk = node.list(&span, most, true, deadline).await.ok()?;
        for entry in &chunk.entries {
            let value = number_in(entry.value.as_deref().unwrap_or_default());
            let last = listed.last_key_value().map(|(key, _)| key);
            if last.is_some_and(|last| *last >= entry.key) {
                world.judge(Err(format!("{:?} is listed after {last:?}", entry.key)));
            }
            listed.insert(entry.key.clone(), (value, entry.version));
        }
        rest = chunk.through.map(|through| span.after(&through));
    }
    (world.is_ours(&node) && world.nodes[place].apart.get() < since.saturating_sub(1)).then_some(listed)
}
