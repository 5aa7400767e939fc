//! The meta group's replica on this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::host::{Host, Machine};
use super::raft::{Groups, LocalReplica, NotProposed};
use crate::clock::Deadline;
use crate::consensus::{self, Members, Pieces, Refusal, StateMachine};
use crate::model::address::Address;
use crate::model::binary::Malformed;
use crate::model::format;
use crate::model::meta::{Command, MetaState, Void};

/// The newest state that the replica has applied, and the group of the replica.
type Applied = Arc<Mutex<Option<Arc<MetaState>>>>;

/// The meta group's replica on this node; a node takes part in one meta group at a time.
pub struct MetaGroup {
    groups: Arc<Groups>,
    host: Arc<dyn Host>,
    group: RwLock<Option<u64>>,
    applied: Mutex<Applied>,
    published: AtomicU64,
}

impl MetaGroup {
    /// A replica that takes part in no group yet.
    pub fn new(groups: Arc<Groups>, host: Arc<dyn Host>) -> Self {
        let (group, applied) = (RwLock::default(), Mutex::default());
        Self { groups, host, group, applied, published: AtomicU64::new(0) }
    }

    /// The newest state that the replica has applied.
    pub fn state(&self) -> Option<Arc<MetaState>> {
        self.applied.lock().lock().clone()
    }

    /// The newest state, where it was not asked for before by this function.
    pub fn news(&self) -> Option<Arc<MetaState>> {
        let state = self.state().filter(|state| state.version > self.published.load(Ordering::Relaxed))?;
        self.published.store(state.version, Ordering::Relaxed);
        Some(state)
    }

    /// Where the replica stands; nothing where there is none.
    pub fn local(&self) -> Option<Arc<LocalReplica>> {
        let group = (*self.group.read())?;
        self.groups.local(group)
    }

    /// Whether the replica leads its group.
    pub fn leads(&self) -> bool {
        self.local().is_some_and(|local| local.leads())
    }

    /// Founds a group with this node as its only voter.
    pub fn found(&self, group: u64, replica: u64, own: &Address, state: MetaState) {
        let machine = self.enter(group, Some(state));
        self.groups.found(group, replica, Members::from([(replica, own.clone())]), machine);
    }

    /// Waits to be added to a group.
    pub fn join(&self, group: u64, replica: u64) {
        let machine = self.enter(group, None);
        self.groups.join(group, replica, machine);
    }

    /// Goes on with a replica whose state will be restored.
    pub(super) fn resume(&self, group: u64) -> Box<dyn StateMachine> {
        self.enter(group, None)
    }

    fn enter(&self, group: u64, state: Option<MetaState>) -> Box<dyn StateMachine> {
        let mut own = self.group.write();
        if let Some(old) = own.replace(group).filter(|old| *old != group) {
            self.groups.give_up(old);
        }
        // What an earlier replica may still apply is not seen any more.
        let applied = Applied::default();
        *applied.lock() = state.clone().map(Arc::new);
        *self.applied.lock() = Arc::clone(&applied);
        self.published.store(0, Ordering::Relaxed);
        self.host.machine(Box::new(MetaMachine { state, applied }), Machine::Meta(group))
    }

    /// Takes no part in a group any more.
    pub fn give_up(&self, group: u64) {
        self.groups.give_up(group);
        self.group.write().take_if(|own| *own == group);
    }

    /// Takes no part in any group but this one, nor in one that was only just asked for.
    pub fn give_up_others(&self, group: u64) {
        if let Some(other) = self.group.write().take_if(|own| *own != group) {
            self.groups.give_up(other);
        }
    }

    /// Hands leadership to a replica, or to the one that is best prepared.
    pub fn hand_over(&self, to: Option<u64>) {
        if let Some(group) = *self.group.read() {
            self.groups.hand_over(group, to);
        }
    }

    /// Has a command applied, and says what the state made of it.
    ///
    /// # Errors
    /// [`NotProposed`].
    pub async fn propose(
        &self,
        command: &Command,
        deadline: Deadline,
    ) -> Result<Result<(), Void>, NotProposed> {
        let group = self.own_group()?;
        let told = match self.groups.propose(group, form_of(command), deadline).await {
            // What a member would not apply alike is left out.
            Err(NotProposed::Refused(Refusal::NotKnown { .. })) => {
                let first = command.clone().in_first_form();
                self.groups.propose(group, form_of(&first), deadline).await
            }
            // One that was never heard may have been down for long. If it is of an older version it leaves that out by itself: nothing is decided by what is
            // only shown.
            Err(NotProposed::Refused(Refusal::NotHeard { .. } | Refusal::ChangeRefused)) => {
                let as_it_is = consensus::Command { needs: format::FIRST, ..form_of(command) };
                self.groups.propose(group, as_it_is, deadline).await
            }
            told => told,
        };
        Ok(serde_json::from_slice(&told?).expect("our own types are JSON"))
    }

    /// Has a command applied, without waiting for it. Whether it is, the state shows.
    pub fn propose_at_leisure(&self, command: &Command) {
        if let Ok(group) = self.own_group() {
            self.groups.propose_and(group, form_of(command), |_| ());
        }
    }

    /// Waits until this node is known to lead still and has applied everything that was ever acknowledged.
    pub async fn confirm(&self, deadline: Deadline) -> bool {
        let Ok(group) = self.own_group() else { return false };
        self.groups.read(group, deadline).await.is_ok()
    }

    fn own_group(&self) -> Result<u64, NotProposed> {
        self.group.read().ok_or(NotProposed::Refused(Refusal::NoGroup))
    }
}

/// A command as it is proposed.
fn form_of(command: &Command) -> consensus::Command {
    let bytes = serde_json::to_vec(command).expect("our own types are JSON");
    consensus::Command { needs: command.needs(), ..bytes.into() }
}

/// The meta state as the group replicates it.
struct MetaMachine {
    state: Option<MetaState>,
    applied: Applied,
}

impl StateMachine for MetaMachine {
    fn kind(&self) -> u8 {
        super::kept::META
    }

    fn apply(&mut self, _index: u64, _term: u64, command: &[u8]) -> Vec<u8> {
        let outcome = match (self.state.as_mut(), serde_json::from_slice(command)) {
            (Some(state), Ok(command)) => state.apply(command),
            // Nobody proposes anything else, and a replica without a state gets a snapshot first.
            _ => Err(Void::Outdated),
        };
        *self.applied.lock() = self.state.clone().map(Arc::new);
        serde_json::to_vec(&outcome).expect("our own types are JSON")
    }

    fn snapshot(&self) -> Pieces {
        let state = serde_json::to_vec(&self.state).expect("our own types are JSON");
        Box::new(std::iter::once(state.into()))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), Malformed> {
        self.state = serde_json::from_slice(snapshot).map_err(|_| Malformed("not a meta state"))?;
        *self.applied.lock() = self.state.clone().map(Arc::new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::calls::Calls;
    use super::super::raft::Transport;
    use super::*;
    use crate::consensus::{Envelope, Settings};
    use crate::model::hash::HashKey;
    use crate::model::room::Gauge;
    use crate::model::view::View;

    struct Nowhere;

    impl Transport for Nowhere {
        fn send(&self, _: &Address, _: Envelope) {}
    }

    #[test]
    fn a_group_that_is_only_just_being_founded_is_given_up_for_another() {
        let host: Arc<dyn Host> = Arc::new(Calls);
        let (groups, inbox) = Groups::new(Arc::clone(&host), Arc::new(Gauge::new(None)));
        let meta = MetaGroup::new(Arc::new(groups), host);
        let own: Address = "n1:1".parse().unwrap();
        let view = View::first(std::slice::from_ref(&own), 1).unwrap();
        let starts = [(own.clone(), 1)].into();
        let state = MetaState::first("c".to_owned(), 50, HashKey::PUBLISHED, view, &starts);
        meta.found(state.group, 7, &own, state);
        meta.give_up_others(51);
        let mut raft = inbox.into_raft(Settings::default(), Box::new(Nowhere), Box::new(|_| ()));
        raft.turn(true);
        assert_eq!(raft.driver().groups().count(), 0, "the raft thread had not begun it yet");
        assert!(meta.local().is_none());
    }
}
