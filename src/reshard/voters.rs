//! Keeping the right nodes in the meta group.

use std::time::Duration;

use super::orders::Office;
use crate::clock::{Deadline, now};
use crate::consensus::{Change, Refusal};
use crate::model::address::Address;
use crate::node::raft::{NotProposed, Seat};
use crate::wire::Order;

/// A node that does not tell its replica id within this time will not.
const JOIN_TIMEOUT: Duration = Duration::from_millis(500);
/// A change of members that is not in force after this time may yet be: it is looked at again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the meta group is as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Voters {
    /// Just the wanted nodes vote.
    Complete,
    /// Something was done about it: look again.
    Changing,
    /// Some cannot be had now: why.
    Waiting(String),
}

/// Makes one step towards a meta group of just the wanted nodes. Only its leader can.
pub(super) fn step(office: &Office, seat: &Seat, cluster: &str, wanted: &[Address]) -> Voters {
    let status = &seat.status;
    if status.changing || !status.outgoing.is_empty() {
        return Voters::Waiting("the meta group is changing its members".to_owned());
    }
    let own = &office.node.address;
    let address_of = |replica: &u64| status.members.get(replica);
    let mut missing = None;
    let mut present = vec![status.replica];
    for node in wanted.iter().filter(|node| *node != own) {
        let order = Order::Join { cluster: cluster.to_owned(), group: seat.group };
        // The node names its replica of today each time: one of yesterday is never added, nor promoted.
        let replica: u64 = match office.order(node, 0, &order, JOIN_TIMEOUT) {
            Ok(replica) => replica,
            Err(error) => {
                missing = Some(error.to_string());
                continue;
            }
        };
        present.push(replica);
        if status.voters.contains(&replica) {
            continue;
        }
        if !status.learners.contains(&replica) {
            return change(office, &Change::AddLearner { replica, address: node.clone() });
        }
        let goes = |voter: &&u64| {
            **voter != status.replica
                && address_of(voter).is_none_or(|address| address == node || !wanted.contains(address))
        };
        let replaces = status.voters.iter().find(goes).copied();
        return change(office, &Change::Promote { learner: replica, replaces });
    }
    let stale = |replica: &&u64| !present.contains(replica);
    if let Some(learner) = status.learners.iter().find(stale).filter(|_| missing.is_none()) {
        return change(office, &Change::Remove { replica: *learner });
    }
    if let Some(reason) = missing {
        return Voters::Waiting(reason);
    }
    if let Some(voter) = status.voters.iter().find(|voter| **voter != status.replica && stale(voter)) {
        return change(office, &Change::Remove { replica: *voter });
    }
    if wanted.contains(own) {
        return Voters::Complete;
    }
    // This node leaves: another one leads from now on, and takes it out.
    office.node.meta.hand_over(status.voters.iter().find(|voter| **voter != status.replica).copied());
    Voters::Waiting("leadership of the meta group is being handed over".to_owned())
}

fn change(office: &Office, change: &Change) -> Voters {
    match office.node.meta.change(change, Deadline::after(now(), CHANGE_TIMEOUT)) {
        Ok(()) => {
            log::info!("meta group: {change:?}");
            Voters::Changing
        }
        Err(NotProposed::Refused(Refusal::NotCaughtUp)) => {
            Voters::Waiting("a new voter is catching up".to_owned())
        }
        Err(error) => Voters::Waiting(format!("the meta group did not change its members: {error:?}")),
    }
}
