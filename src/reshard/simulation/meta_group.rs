//! The meta group as a log of committed commands, and what is asked of it.
//!
//! Only the leader's proposals enter the log, in their order. Those that are not committed when another leader is elected
//! are kept up to some point and lost from there on. Whoever has proposed need not learn what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::tasks::{pause, wait_for};
use super::{Shared, checks, clients};
use crate::model::meta::{Command, End, MetaState, Void, Wanted};

/// Members of the group.
pub(super) const MEMBERS: usize = 3;
/// Whoever has proposed waits for so many turns.
const PROPOSAL_TURNS: u64 = 60;

pub(super) struct MetaGroup {
    term: u64,
    leader: usize,
    /// Every state that there was.
    pub(super) history: Vec<Arc<MetaState>>,
    /// How many of them each member has applied.
    applied: [usize; MEMBERS],
    pending: VecDeque<(u64, Command)>,
    outcomes: BTreeMap<u64, Result<(), Void>>,
}

impl MetaGroup {
    pub(super) fn new(state: MetaState) -> Self {
        Self {
            term: 1,
            leader: 0,
            history: vec![Arc::new(state)],
            applied: [1; MEMBERS],
            pending: VecDeque::new(),
            outcomes: BTreeMap::new(),
        }
    }

    pub(super) fn newest(&self) -> Arc<MetaState> {
        Arc::clone(self.history.last().expect("there is a first one"))
    }

    /// The state as a member has applied it.
    pub(super) fn state(&self, member: usize) -> Arc<MetaState> {
        Arc::clone(&self.history[self.applied[member] - 1])
    }

    /// The term in which a member leads.
    pub(super) fn leads(&self, member: usize) -> Option<u64> {
        (self.leader == member).then_some(self.term)
    }

    pub(super) fn leader(&self) -> usize {
        self.leader
    }

    fn commit(&mut self, world: &Shared, is_answered: bool) {
        let Some((ticket, command)) = self.pending.pop_front() else { return };
        let before = self.newest();
        let mut state = (*before).clone();
        let outcome = state.apply(command.clone());
        checks::transition(world, &before, &state, &command, &outcome);
        self.history.push(Arc::new(state));
        if is_answered {
            self.applied[self.leader] = self.history.len();
            self.outcomes.insert(ticket, outcome);
        }
    }

    fn elect(&mut self, world: &Shared) {
        let kept = world.draw(0..=self.pending.len());
        self.pending.truncate(kept);
        while !self.pending.is_empty() {
            self.commit(world, false);
        }
        self.leader = world.draw(0..MEMBERS);
        self.term += 1;
        self.applied[self.leader] = self.history.len();
    }
}

/// Has a command applied, if this member leads: what came of it, if that is learned.
pub(super) async fn propose(world: &Shared, member: usize, command: Command) -> Option<Result<(), Void>> {
    let ticket = world.number();
    {
        let mut meta = world.meta.borrow_mut();
        meta.leads(member)?;
        meta.pending.push_back((ticket, command));
    }
    let turns = if world.harm.get() { PROPOSAL_TURNS } else { u64::MAX };
    wait_for(turns, || world.meta.borrow_mut().outcomes.remove(&ticket)).await
}

/// Commits, applies and elects.
pub(super) async fn agree(world: Shared) {
    loop {
        pause().await;
        let mut meta = world.meta.borrow_mut();
        if !world.harm.get() || world.chance(40) {
            let is_answered = !world.befalls();
            meta.commit(&world, is_answered);
        }
        let member = world.draw(0..MEMBERS);
        let newest = meta.history.len();
        if member == meta.leader || !world.harm.get() {
            meta.applied[member] = newest;
        } else {
            meta.applied[member] = world.draw(meta.applied[member]..=newest);
        }
        if world.harm.get() && world.draw(0..50) == 0 {
            meta.elect(&world);
            world.count(|tally| tally.elections += 1);
        }
    }
}

/// Begins view changes, also where one runs already, and cancels some.
pub(super) async fn operate(world: Shared) {
    while world.harm.get() {
        let state = world.meta.borrow().newest();
        let leader = world.meta.borrow().leader();
        let running = state.change.as_ref().map(|change| change.id);
        match running {
            Some(id) if world.draw(0..300) == 0 => {
                propose(&world, leader, Command::End { id, end: End::Cancelled, holders: BTreeMap::new() })
                    .await;
            }
            Some(_) if world.draw(0..300) > 0 => {}
            _ => {
                let command = begin(&world, running);
                propose(&world, leader, command).await;
            }
        }
        pause().await;
    }
}

fn begin(world: &Shared, supersedes: Option<u64>) -> Command {
    let wanted = Wanted { nodes: world.some_view(), repl_factor: 1, accept_loss: Vec::new() };
    Command::Begin { id: world.number(), wanted, supersedes }
}

/// When harm is over, the change that runs is finished, and then another one.
pub(super) async fn change_at_last(world: Shared) {
    let newest = || world.meta.borrow().newest();
    loop {
        // Nobody writes any more, and nothing of it is under way.
        let is_quiet =
            || newest().change.is_none() && world.under_way.get() == 0 && !clients::any_busy(&world);
        wait_for(u64::MAX, || is_quiet().then_some(())).await;
        let command = begin(&world, None);
        let Command::Begin { id, .. } = &command else { unreachable!("it was just made") };
        let id = *id;
        let leader = world.meta.borrow().leader();
        propose(&world, leader, command).await;
        wait_for(u64::MAX, || newest().change.is_none().then_some(())).await;
        if let Some(End::Finished(_)) = newest().result(id) {
            break;
        }
    }
    world.over.set(true);
}
