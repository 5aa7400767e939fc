//! Keeping the right nodes in a group.

use std::time::Duration;

use super::orders::Office;
use crate::clock::{Deadline, now};
use crate::consensus::{Change, Refusal, Status};
use crate::model::address::Address;
use crate::node::raft::{NotProposed, Seat};
use crate::wire::Order;

/// A node that does not tell its replica id within this time will not.
const JOIN_TIMEOUT: Duration = Duration::from_millis(500);
/// A change of members that is not in force after this time may yet be: it is looked at again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a group is as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Voters {
    /// Just the wanted nodes vote.
    Complete,
    /// Something was done about it: look again.
    Changing,
    /// Some cannot be had now: why.
    Waiting(String),
}

/// Makes one step towards a group of just the wanted nodes. Only its leader can.
pub(super) fn step(office: &Office, seat: &Seat, cluster: &str, wanted: &[Address]) -> Voters {
    // What this node has applied is all that was ever agreed on: the members that it names are the present ones.
    let confirmed = office.node.groups.read(seat.group, Deadline::after(now(), JOIN_TIMEOUT));
    let Some(seat) = office.node.groups.seat(seat.group).filter(|seat| confirmed.is_ok() && seat.leads())
    else {
        return Voters::Waiting("the group does not agree on its leader now".to_owned());
    };
    let seat = &*seat;
    let status = &seat.status;
    let index = confirmed.unwrap_or(0);
    if status.changing || !status.outgoing.is_empty() {
        return Voters::Waiting("the group is changing its members".to_owned());
    }
    let own = &office.node.address;
    let is_at = |replica: &u64, node: &Address| status.members.get(replica) == Some(node);
    let mut missing = None;
    let mut present = vec![(status.replica, own)];
    for node in wanted.iter().filter(|node| *node != own) {
        let members = status.members.keys().copied().collect();
        let order =
            Order::Join { cluster: cluster.to_owned(), group: seat.group, term: status.term, members, index };
        // The node names its replica of today each time: one of yesterday is never added, nor promoted.
        match office.order::<u64>(node, 0, &order, JOIN_TIMEOUT) {
            Ok(replica) => present.push((replica, node)),
            Err(error) => missing = Some(error.to_string()),
        }
    }
    let stale = |replica: &&u64| !present.iter().any(|(there, _)| there == *replica);
    // A learner of an earlier start of a node that is there; where a node is missing, its own may be all that there is.
    let superseded = |learner: &&u64| {
        stale(learner) && (missing.is_none() || present.iter().any(|(_, node)| is_at(learner, node)))
    };
    if let Some(learner) = status.learners.iter().find(superseded) {
        return change(office, seat, &Change::Remove { replica: *learner });
    }
    let mut new = present.iter().filter(|(replica, _)| !status.voters.contains(replica));
    if let Some((replica, node)) = new.clone().find(|(replica, _)| !status.learners.contains(replica)) {
        let (replica, address) = (*replica, (*node).clone());
        return change(office, seat, &Change::AddLearner { replica, address });
    }
    if let Some((learner, node)) = new.next() {
        let others = || leaving_first(status);
        let is_wanted = |voter: &u64| wanted.iter().any(|wanted| is_at(voter, wanted));
        let same_place = others().find(|voter| is_at(voter, node));
        let replaces = same_place.or_else(|| others().find(|voter| !is_wanted(voter))).copied();
        return change(office, seat, &Change::Promote { learner: *learner, replaces });
    }
    if let Some(reason) = missing {
        return Voters::Waiting(reason);
    }
    if let Some(voter) = leaving_first(status).find(stale) {
        return change(office, seat, &Change::Remove { replica: *voter });
    }
    if wanted.contains(own) {
        return Voters::Complete;
    }
    // This node leaves: another one leads from now on, and takes it out.
    let next = status.voters.iter().find(|voter| **voter != status.replica).copied();
    office.node.groups.hand_over(seat.group, next);
    Voters::Waiting("leadership of the group is being handed over".to_owned())
}

/// The other voters, in the order in which they are taken out: first those that are not heard of, since a group that has lost one can often
/// not spare another that lives.
fn leaving_first(status: &Status) -> impl Iterator<Item = &u64> {
    let others = || status.voters.iter().filter(|voter| **voter != status.replica);
    let silent = others().filter(|voter| status.silent.contains(voter));
    silent.chain(others().filter(|voter| !status.silent.contains(voter)))
}

fn change(office: &Office, seat: &Seat, change: &Change) -> Voters {
    match office.node.groups.change(seat.group, change, Deadline::after(now(), CHANGE_TIMEOUT)) {
        Ok(()) => {
            log::info!("group {}: {change:?}", seat.group);
            Voters::Changing
        }
        Err(NotProposed::Refused(Refusal::NotCaughtUp)) => {
            Voters::Waiting("a new voter is catching up".to_owned())
        }
        Err(error) => Voters::Waiting(format!("the group did not change its members: {error:?}")),
    }
}
