//! What a node that belongs to no cluster is reserved for, and its replica in a meta group.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::raft::Invitation;
use super::state::{Node, Serving, ServingState};
use crate::clock::now;
use crate::config::Role;
use crate::dice;
use crate::error::{Applied, Error};
use crate::model::address::Address;
use crate::model::meta::MetaState;

/// A reservation that is not used for this long is void. Nothing can have been handed over by then: a node that is
/// given anything has learned of the cluster first.
const PROMISE_AGE: Duration = Duration::from_secs(10);

/// A replica that was just made takes its place within this time.
const STARTING: Duration = Duration::from_secs(1);

/// What the node is reserved for, and its replica id in the meta group that it takes part in.
#[derive(Default)]
pub(super) struct Reservations {
    to: Mutex<Option<Reservation>>,
    /// Group, replica, and since when.
    local: Mutex<Option<(u64, u64, Instant)>>,
    /// Another cluster that names this node as its member.
    claim: RwLock<Option<String>>,
    /// Whether there is one.
    is_claimed: AtomicBool,
}

fn claimed(node: &Address, cluster: &str) -> String {
    format!(
        "{node} holds pairs of its own, since it was started without VIEW, and cluster {cluster} names it as its member: \
         start it again to have it join, which loses those pairs, or take it out of that cluster's view"
    )
}

#[derive(Clone)]
struct Reservation {
    cluster: String,
    /// For a founding, which a newer one may replace: an older one of the same node has failed by then.
    founding: bool,
    since: Instant,
}

impl Reservation {
    fn holds(&self) -> bool {
        now() - self.since < PROMISE_AGE
    }
}

impl Node {
    /// Reservations the node to a cluster: it takes no writes of its own from then on. Answered by the incarnation.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn reserve(&self, cluster: &str, founding: bool) -> Result<u64, String> {
        let _guard = self.learning.lock();
        let mut to = self.reservations.to.lock();
        let other = to.as_ref().filter(|other| other.holds() && other.cluster != cluster);
        if other.is_some_and(|other| !(other.founding && founding)) {
            return Err(format!("{} is reserved for another cluster", self.address));
        }
        match &*self.serving_state() {
            ServingState::Serving(serving) if serving.state.cluster == cluster => return Ok(self.incarnation),
            ServingState::Serving(serving) => {
                if let Some(reason) = self.bound() {
                    return Err(reason);
                }
                // Looked at once more, with nobody writing meanwhile.
                if !serving.own.iter().all(|(_, shard)| shard.seal()) {
                    return Err(format!("{} holds pairs of its own", self.address));
                }
            }
            ServingState::Follower | ServingState::Waiting(_) => {
                if let Some(reason) = self.bound() {
                    return Err(reason);
                }
            }
        }
        *to = Some(Reservation { cluster: cluster.to_owned(), founding, since: now() });
        Ok(self.incarnation)
    }

    /// Whether a node that knows a cluster becomes part of another one that it learns of: it is reserved for it, or is a member of it that
    /// was started again without its view, and holds nothing.
    pub(super) fn joins(&self, own: &Serving, other: &MetaState) -> bool {
        if self.is_reserved_for(&other.cluster) {
            return true;
        }
        let holds_nothing = || own.own.first().is_some_and(|(_, shard)| shard.seal());
        let is_named = other.nodes().contains(&self.address);
        is_named && self.is_apart_from(own) || self.is_claimed_by(own, other) && holds_nothing()
    }

    /// Whether this node is no part of the cluster that it knows: it only found it, and forwards to it.
    fn is_apart_from(&self, own: &Serving) -> bool {
        own.own.is_empty() && !own.state.nodes().contains(&self.address)
    }

    /// Whether another cluster names this node, which is a cluster of its own, as its member.
    fn is_claimed_by(&self, own: &Serving, other: &MetaState) -> bool {
        let is_alone = self.role == Role::Single && own.state.view.nodes().count() == 1;
        is_alone && other.nodes().contains(&self.address)
    }

    /// Notes that another cluster names this node as its member, which has pairs of its own; or that it does not any more.
    pub(super) fn note_claim(&self, own: &Serving, other: &MetaState) {
        let mut claim = self.reservations.claim.write();
        if self.is_claimed_by(own, other) {
            if claim.as_ref() != Some(&other.cluster) {
                log::error!("{}", claimed(&self.address, &other.cluster));
            }
            *claim = Some(other.cluster.clone());
        } else {
            claim.take_if(|cluster| *cluster == other.cluster);
        }
        self.reservations.is_claimed.store(claim.is_some(), Ordering::Relaxed);
    }

    /// That this node serves nobody where another cluster names it as its member, so that no client takes it for one.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; nothing was done.
    pub(super) fn refuse_if_claimed(&self) -> Result<(), Error> {
        if !self.reservations.is_claimed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let reason = self.claim().unwrap_or_default();
        Err(Error::Unavailable { reason, applied: Applied::No })
    }

    /// Which other cluster names this node as its member, a sentence.
    pub(super) fn claim(&self) -> Option<String> {
        let claim = self.reservations.claim.read();
        claim.as_ref().map(|cluster| claimed(&self.address, cluster))
    }

    /// Why the node cannot become part of another cluster than the one it knows; nothing where it can.
    pub fn bound(&self) -> Option<String> {
        match &*self.serving_state() {
            ServingState::Follower => Some(format!("{} is a follower", self.address)),
            ServingState::Waiting(_) => None,
            ServingState::Serving(serving) if self.is_apart_from(serving) && self.has_address => None,
            ServingState::Serving(serving) => {
                if self.role != Role::Single || serving.state.view.nodes().count() != 1 {
                    let advice = "take it out of that one and start it again";
                    return Some(format!("{} belongs to another cluster: {advice}", self.address));
                }
                let pairs = serving.own.first().map_or(0, |(_, shard)| shard.size().pairs);
                if pairs > 0 {
                    return Some(format!(
                        "{} holds {pairs} pairs of its own: delete them first",
                        self.address
                    ));
                }
                let nameless = format!("the node at {} has no ADDRESS: start it with one", self.address);
                (!self.has_address).then_some(nameless)
            }
        }
    }

    /// The reservation is not needed any more.
    pub fn release(&self, cluster: &str) {
        let _guard = self.learning.lock();
        let mut to = self.reservations.to.lock();
        if to.as_ref().is_some_and(|reservation| reservation.cluster == cluster) {
            *to = None;
            if let Some(shard) = self.shard() {
                shard.unseal();
            }
        }
    }

    /// Who belongs to a cluster is reserved for no other one.
    pub(super) fn forget_reservations_but(&self, cluster: &str) {
        self.reservations.to.lock().take_if(|reservation| reservation.cluster != cluster);
    }

    /// Takes writes again where a reservation is void by now.
    pub fn forget_old_reservation(&self) {
        let old = self.reservations.to.lock().clone().filter(|reservation| !reservation.holds());
        if let Some(reservation) = old {
            self.release(&reservation.cluster);
        }
    }

    /// Whether the node is reserved for a cluster.
    pub fn is_reserved_for(&self, cluster: &str) -> bool {
        self.reservations.to.lock().as_ref().is_some_and(|reservation| reservation.cluster == cluster)
    }

    /// Whether a founding may count on the node: it has learned of no cluster, and no view change counts on it.
    pub fn is_fresh(&self) -> bool {
        let reserved = self.reservations.to.lock();
        let free = reserved.as_ref().is_none_or(|reservation| reservation.founding || !reservation.holds());
        free && matches!(&*self.serving_state(), ServingState::Waiting(_))
    }

    /// The replica id of this node in a meta group: drawn when it is first asked for, and never used again.
    pub fn join_meta(&self, group: u64, invitation: Invitation) -> u64 {
        let mut local = self.reservations.local.lock();
        let own = self.meta.local().filter(|own| own.group == group);
        let is_there = own.is_some_and(|own| invitation.goes_on_with(&own));
        match *local {
            Some((known, replica, since)) if known == group && (is_there || now() - since < STARTING) => {
                replica
            }
            _ => {
                let replica = dice::id();
                *local = Some((group, replica, now()));
                self.meta.join(group, replica);
                replica
            }
        }
    }

    /// Notes the replica of a founder.
    pub fn note_replica(&self, group: u64, replica: u64) {
        *self.reservations.local.lock() = Some((group, replica, now()));
    }

    /// The nodes that this one was told to look for, itself left out.
    pub fn seeds(&self) -> Vec<Address> {
        let seeds: Vec<Address> = match &self.role {
            Role::Member { view } => view.nodes().cloned().collect(),
            Role::Passive { seeds } => seeds.clone(),
            Role::Single | Role::Follower { .. } => Vec::new(),
        };
        seeds.into_iter().filter(|node| *node != self.address).collect()
    }
}
