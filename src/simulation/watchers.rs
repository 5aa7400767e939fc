//! Those who watch: each asks one node after the other what was done, as the program's thread for that does, and goes on from its cursor at any of them.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::oracle::number_in;
use super::tasks::{at, pause_for};
use crate::model::cursor::Cursor;
use crate::model::hash::HashKey;
use crate::model::history::{Event, Happened, Page};
use crate::model::meta::MetaState;
use crate::reshard::controller::Controller;

/// So long a shard is waited for.
const ASKED_FOR: Duration = Duration::from_millis(300);
/// And a node, in steps.
const PATIENCE: u64 = 200;

/// Somebody who watches.
struct Watcher {
    cursor: Cursor,
    /// From which version on it knows of each key.
    from: HashMap<Vec<u8>, u64>,
    /// The versions that it was told, by key.
    told: HashMap<Vec<u8>, Vec<u64>>,
}

impl Watcher {
    fn new() -> Self {
        Self { cursor: Cursor::everywhere(Cursor::NOW), from: HashMap::new(), told: HashMap::new() }
    }

    /// Takes what a shard has said.
    fn take(&mut self, world: &Shared, hash_key: HashKey, page: &Page) -> Result<(), String> {
        if page.is_lost() {
            world.count(|tally| tally.resyncs += 1);
            *self = Self::new();
            return Ok(());
        }
        let mut verdict = Ok(());
        let told = &mut self.told;
        page.advance(&mut self.cursor, hash_key, |event, _, _| {
            world.count(|tally| tally.told += 1);
            let judged = judge(world, told, event);
            if verdict.is_ok() {
                verdict = judged;
            }
        });
        for key in &world.keys {
            let version = self.cursor.at(hash_key.hash(key).0);
            if version != Cursor::NOW {
                self.from.entry(key.clone()).or_insert(version);
            }
        }
        verdict
    }

    /// Everything that was done to a key while it was watched was told, as far as it is known what was done.
    fn check(&self, world: &Shared, hash_key: HashKey) -> Result<(), String> {
        for (key, from) in &self.from {
            let up_to = self.cursor.at(hash_key.hash(key).0);
            let told = self.told.get(key).map_or(&[][..], Vec::as_slice);
            let done = world.oracle.borrow().versions_of(key);
            if let Some(missing) =
                done.iter().find(|done| **done > *from && **done <= up_to && !told.contains(done))
            {
                return Err(format!(
                    "version {missing} of {key:?} was not told, from {from} to {up_to}: {told:?}"
                ));
            }
        }
        Ok(())
    }
}

/// No change is told twice, nor out of order, and a version is told with the value that it stands for.
fn judge(world: &Shared, told: &mut HashMap<Vec<u8>, Vec<u64>>, event: &Event<'_>) -> Result<(), String> {
    let versions = told.entry(event.key.to_vec()).or_default();
    if versions.last().is_some_and(|last| *last >= event.version) {
        return Err(format!("version {} of {:?} is told after {versions:?}", event.version, event.key));
    }
    versions.push(event.version);
    match event.happened {
        Happened::Put(value) => world.oracle.borrow_mut().names(event.key, event.version, number_in(value)),
        Happened::PutLong(_) | Happened::Deleted | Happened::Expired => Ok(()),
    }
}

/// Watches until everything is over.
pub(super) async fn watch(world: Shared) {
    let mut watcher = Watcher::new();
    while !world.over.get() {
        pause_for(world.draw(5..60)).await;
        let place = world.draw(0..world.nodes.len());
        ask(&world, &mut watcher, place).await;
    }
}

async fn ask(world: &Shared, watcher: &mut Watcher, place: usize) {
    let Some(newest) = world.newest() else { return };
    let Some(controller) = world.nodes[place].controller() else { return };
    let Some(state) = controller.node.state().filter(|state| state.cluster == newest.cluster) else { return };
    let pages =
        at(world, place, PATIENCE, pages(controller, Arc::clone(&state), watcher.cursor.clone())).await;
    for page in pages.unwrap_or_default() {
        let verdict = watcher.take(world, state.hash_key, &page);
        let verdict = verdict.and_then(|()| watcher.check(world, state.hash_key));
        world.judge(verdict.map_err(|fault| format!("whoever watches at {place}: {fault}")));
    }
}

/// What the shards say.
async fn pages(controller: Rc<Controller>, state: Arc<MetaState>, cursor: Cursor) -> Vec<Page> {
    let mut pages = Vec::new();
    for shard in &state.view.shards {
        pages.extend(controller.changes(&state, shard.group, &cursor, ASKED_FOR).await.ok());
    }
    pages
}
