//! Keeping the right nodes in a group.

use std::time::Duration;

use super::controller::Controller;
use crate::clock::{Deadline, now};
use crate::consensus::{Change, Refusal, Status};
use crate::model::address::Address;
use crate::node::raft::{LocalReplica, NotProposed};
use crate::wire::orders;

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
pub(super) async fn step(
    controller: &Controller,
    local: &LocalReplica,
    cluster: &str,
    wanted: &[Address],
) -> Voters {
    // What this node has applied is all that was ever agreed on: the members that it names are the present ones.
    let confirmed = controller.node.groups.read(local.group, Deadline::after(now(), JOIN_TIMEOUT)).await;
    let Some(local) =
        controller.node.groups.local(local.group).filter(|local| confirmed.is_ok() && local.leads())
    else {
        return Voters::Waiting("the group does not agree on its leader now".to_owned());
    };
    let local = &*local;
    let status = &local.status;
    let index = confirmed.unwrap_or(0);
    if status.changing || !status.outgoing.is_empty() {
        return Voters::Waiting("the group is changing its members".to_owned());
    }
    let own = &controller.node.address;
    let (mut present, mut missing) = (vec![(status.replica, own.clone())], None);
    for node in wanted.iter().filter(|node| *node != own) {
        let members = status.members.keys().copied().collect();
        let order = orders::Join {
            cluster: cluster.to_owned(),
            group: local.group,
            term: status.term,
            members,
            index,
        };
        // The node names its replica of today each time: one of yesterday is never added, nor promoted.
        match controller.order(node, None, order, JOIN_TIMEOUT).await {
            Ok(replica) if is_too_old(status, replica) => missing = Some(too_old(node)),
            Ok(replica) => present.push((replica, node.clone())),
            Err(error) => missing = Some(error.to_string()),
        }
    }
    match next(status, wanted, &present) {
        Next::Change(next) => change(controller, local, &next).await,
        Next::HandOver(next) => {
            controller.node.groups.hand_over(local.group, Some(next));
            Voters::Waiting("leadership of the group is being handed over".to_owned())
        }
        Next::Nothing => missing.map_or(Voters::Complete, Voters::Waiting),
    }
}

/// Whether a replica is of a version that cannot read what the group holds: it is as if its node were missing, and stays what it is.
fn is_too_old(status: &Status, replica: u64) -> bool {
    status.too_old.iter().any(|(old, _)| *old == replica)
}

/// What to do about a node that cannot read what a group holds.
pub(super) fn too_old(node: &Address) -> String {
    format!(
        "{node} runs a version of the program that cannot read what the shard holds: run there the version of the other nodes"
    )
}

/// What a leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Change(Change),
    /// It leaves itself: the leader is to be this replica.
    HandOver(u64),
    Nothing,
}

/// The next step towards a group of just the wanted nodes, of which those that are `present` have named their replicas of today; the
/// leader's own is always among them.
pub(super) fn next(status: &Status, wanted: &[Address], present: &[(u64, Address)]) -> Next {
    let is_at = |replica: &u64, node: &Address| status.members.get(replica) == Some(node);
    let is_present = |node: &Address| present.iter().any(|(_, there)| there == node);
    let is_missing = !wanted.iter().all(is_present);
    let stale = |replica: &&u64| !present.iter().any(|(there, _)| there == *replica);
    // A learner of an earlier start of a node that is there; where a node is missing, its own may be all that there is.
    let superseded = |learner: &&u64| {
        stale(learner) && (!is_missing || present.iter().any(|(_, node)| is_at(learner, node)))
    };
    if let Some(learner) = status.learners.iter().find(superseded) {
        return Next::Change(Change::Remove { replicas: vec![*learner] });
    }
    let mut new = present.iter().filter(|(replica, _)| !status.voters.contains(replica));
    if let Some((replica, node)) = new.clone().find(|(replica, _)| !status.learners.contains(replica)) {
        return Next::Change(Change::AddLearner { replica: *replica, address: node.clone() });
    }
    if let Some((learner, node)) = new.next() {
        let others = || leaving_first(status);
        let is_wanted = |voter: &u64| wanted.iter().any(|wanted| is_at(voter, wanted));
        let same_place = others().find(|voter| is_at(voter, node));
        let replaces = same_place.or_else(|| others().find(|voter| !is_wanted(voter))).copied();
        return Next::Change(Change::Promote { learner: *learner, replaces });
    }
    if is_missing {
        return Next::Nothing;
    }
    let leads_on = wanted.iter().any(|node| is_at(&status.replica, node));
    let leaving: Vec<u64> = leaving_first(status).filter(stale).copied().collect();
    let mut staying = status.voters.iter().filter(|voter| **voter != status.replica && !stale(voter));
    let heir = staying.clone().find(|voter| !status.silent.contains(voter)).or(staying.next());
    if let Some(heir) = heir.filter(|_| !leads_on) {
        // Who leads then takes this one out together with the others.
        return Next::HandOver(*heir);
    }
    if leaving.is_empty() { Next::Nothing } else { Next::Change(Change::Remove { replicas: leaving }) }
}

/// The other voters, in the order in which they are replaced: first those that are not heard of, since a group that has lost one can often
/// not spare another that lives.
fn leaving_first(status: &Status) -> impl Iterator<Item = &u64> {
    let mut others: Vec<&u64> = status.voters.iter().filter(|voter| **voter != status.replica).collect();
    others.sort_by_key(|voter| !status.silent.contains(voter));
    others.into_iter()
}

async fn change(controller: &Controller, local: &LocalReplica, change: &Change) -> Voters {
    match controller.node.groups.change(local.group, change, Deadline::after(now(), CHANGE_TIMEOUT)).await {
        Ok(()) => {
            log::info!("group {}: {change:?}", local.group);
            Voters::Changing
        }
        Err(NotProposed::Refused(Refusal::NotCaughtUp)) => {
            Voters::Waiting("a new voter is catching up".to_owned())
        }
        Err(error) => Voters::Waiting(format!("the group did not change its members: {error:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::{Members, Role};

    fn node(number: u64) -> Address {
        format!("n{number}").parse().unwrap()
    }

    /// A group led by `voters[0]`; the replicas of a node have its number as their last digit.
    fn status(voters: &[u64], learners: &[u64], silent: &[u64]) -> Status {
        let members: Members = voters.iter().chain(learners).map(|id| (*id, node(id % 10))).collect();
        Status {
            replica: voters[0],
            role: Role::Leader,
            leader: Some(voters[0]),
            term: 1,
            applied: 9,
            committed: 9,
            first: 1,
            last: 9,
            last_term: 1,
            log_bytes: 0,
            voters: voters.to_vec(),
            outgoing: Vec::new(),
            learners: learners.to_vec(),
            silent: silent.to_vec(),
            members,
            changing: false,
            answers_reads: false,
            has_taken_over: false,
            too_old: Vec::new(),
            fed: 0,
            matched: Vec::new(),
        }
    }

    fn out(replicas: &[u64]) -> Next {
        Next::Change(Change::Remove { replicas: replicas.to_vec() })
    }

    fn promote(learner: u64, replaces: Option<u64>) -> Next {
        Next::Change(Change::Promote { learner, replaces })
    }

    /// Voters, the leader first; learners; who is silent; wanted nodes; replicas that were named; what is done, and when.
    type Row =
        (&'static [u64], &'static [u64], &'static [u64], &'static [u64], &'static [u64], Next, &'static str);

    #[test]
    fn the_next_step_of_a_leader() {
        let add = |replica| Next::Change(Change::AddLearner { replica, address: node(replica % 10) });
        let rows: &[Row] = &[
            (&[1, 2, 3], &[], &[], &[1, 2, 3], &[1, 2, 3], Next::Nothing, "as it should be"),
            (&[1], &[], &[], &[1, 2], &[1, 2], add(2), "a new node"),
            (&[1], &[2], &[], &[1, 2], &[1, 2], promote(2, None), "a learner"),
            (
                &[1, 2, 3],
                &[12],
                &[2],
                &[1, 2, 3],
                &[1, 12, 3],
                promote(12, Some(2)),
                "a node that was started again",
            ),
            (
                &[1, 2, 3],
                &[4],
                &[3],
                &[1, 2, 4],
                &[1, 2, 4],
                promote(4, Some(3)),
                "in the place of a node that leaves",
            ),
            (&[1, 2, 3], &[4], &[3], &[1, 4], &[1, 4], promote(4, Some(3)), "the silent one leaves first"),
            (&[1, 2, 3], &[12], &[], &[1, 2, 3], &[1, 22, 3], out(&[12]), "a learner of yesterday"),
            (
                &[1, 2, 3],
                &[12],
                &[],
                &[1, 2, 3],
                &[1, 3],
                Next::Nothing,
                "its node is not there: it may be all that there is",
            ),
            (&[1, 2, 3], &[], &[], &[1], &[1], out(&[2, 3]), "all that leave, at once: two are no group"),
            (&[1, 2, 3], &[], &[3], &[1], &[1], out(&[3, 2]), "dead or alive"),
            (&[1, 2, 3], &[], &[], &[1, 2], &[1, 2], out(&[3]), "one leaves"),
            (
                &[1, 2, 3],
                &[],
                &[],
                &[1, 2],
                &[1],
                Next::Nothing,
                "nobody leaves while one that stays is missing",
            ),
            (
                &[1, 2, 3],
                &[],
                &[],
                &[3],
                &[1, 3],
                Next::HandOver(3),
                "the leader leaves after another one leads",
            ),
            (&[1, 2, 3], &[], &[2], &[2, 3], &[1, 2, 3], Next::HandOver(3), "to one that is heard"),
            (&[1], &[], &[], &[2], &[1, 2], add(2), "the only one leaves after it was replaced"),
        ];
        for (voters, learners, silent, wanted, named, expected, what) in rows {
            let wanted: Vec<Address> = wanted.iter().map(|number| node(*number)).collect();
            let present: Vec<_> = named.iter().map(|id| (*id, node(id % 10))).collect();
            assert_eq!(next(&status(voters, learners, silent), &wanted, &present), *expected, "{what}");
        }
    }
}
