//! Bringing back what has lost its majority for good, on the operator's word: asking who lives, and carrying out what was decided.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::controller::Controller;
use super::recovery::{Decision, Drawn, Found, Survivor, decide};
use crate::clock::{Deadline, now};
use crate::dice;
use crate::error::Error;
use crate::model::address::Address;
use crate::peers::no_answer::NoAnswerKind;
use crate::wire::Hello;
use crate::wire::orders::{self, Answered};

/// A node that does not answer for this long counts as lost; one at whose address nobody listens, at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// A node that was slow is asked again after this.
const PAUSE: Duration = Duration::from_millis(100);
/// A survivor that does not tell what it knows within this time will not.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What an operator asks for.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recovery {
    /// Only say who would be given up.
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// The nodes that may be given up, and no others; whoever is lost where it is absent.
    pub(crate) given_up: Option<Vec<Address>>,
}

/// Brings back what has lost a majority for good: the cluster's meta group, with this node as its only voter, from the newest state that
/// any survivor knows and from what their shards own; and each shard's group of several replicas, from the survivor whose log goes furthest.
///
/// Nodes that are not reached are given up: they hold nothing any more, also when they come back.
///
/// # Errors
/// [`Error::Conflict`] where nothing has lost its majority, or more would be given up than is named, [`Error::BadRequest`] where a
/// survivor reaches a node that would be given up, [`Error::NotServing`] where a survivor does not tell what it knows.
pub async fn recover(controller: &Controller, asked: &Recovery) -> Result<Value, Error> {
    let own = &controller.node;
    let _alone = controller.coordinator.recovering.begin().ok_or_else(|| {
        Error::Conflict("A recovery is under way on this node: wait for its answer".to_owned())
    })?;
    let found = look(controller).await?;
    let drawn = Drawn { group: dice::id(), version: dice::draw(), groups: dice::draw(), change: dice::id() };
    let recovery = decide(&found, &drawn)?;
    refuse_if_reached(controller, &found, &recovery.given_up).await?;
    if let Some(named) = &asked.given_up
        && let Some((more, _)) = recovery.given_up.iter().find(|(node, _)| !named.contains(node))
    {
        return Err(Error::Conflict(format!(
            "{more} would be given up, too, which is not among those that may be: look again who is there"
        )));
    }
    let mut answer = recovery.answer;
    let message = if asked.dry_run { "Recovery planned" } else { "Recovered" };
    answer.as_object_mut().expect("an object").shift_insert(0, "message".to_owned(), message.into());
    if asked.dry_run {
        return Ok(answer);
    }
    log::warn!("recovered by the operator: {answer}");
    match recovery.decision {
        Decision::Tell(command) => controller.succeed(&orders::Succeed { command }).await?,
        Decision::Found(state) => {
            let replica = dice::id();
            own.note_replica(state.group, replica);
            own.meta.found(state.group, replica, &own.address, (*state).clone());
            own.learn(&Arc::new(*state)).map_err(Error::Conflict)?;
            controller.coordinator.wake();
        }
    }
    Ok(answer)
}

/// Asks all nodes, also those that only a newer state names, until nobody knows more.
async fn look(controller: &Controller) -> Result<Found, Error> {
    let own = &controller.node;
    let deadline = Deadline::after(now(), PATIENCE);
    let known = own.serving_state().serving().map(|serving| Arc::clone(&serving.state))?;
    let mut newest = controller.newest().map_or_else(|| (*known).clone(), |state| (*state).clone());
    loop {
        let version = newest.version;
        let (mut survivors, mut silent) = (Vec::new(), Vec::new());
        let nodes = newest.nodes().into_iter().chain(newest.former.iter().cloned());
        for node in nodes.collect::<BTreeSet<_>>() {
            if node == own.address {
                let (local, held) = (own.hello(None).local, controller.reports().await);
                survivors.push(Survivor {
                    node,
                    incarnation: own.incarnation,
                    is_of_cluster: true,
                    local,
                    held,
                });
                continue;
            }
            let Some(hello) = ask_patiently(controller, &node, deadline).await else {
                silent.push(node);
                continue;
            };
            let mut held = Vec::new();
            let is_of_cluster = hello.cluster.as_ref() == Some(&newest.cluster);
            if is_of_cluster {
                held = ask(controller, &node, &hello, orders::Replicas {}).await?;
                let news = ask(controller, &node, &hello, orders::News {}).await?;
                newest =
                    news.filter(|state| state.version > newest.version).map_or(newest, Arc::unwrap_or_clone);
            }
            survivors.push(Survivor {
                node,
                incarnation: hello.incarnation,
                is_of_cluster,
                local: hello.local,
                held,
            });
        }
        if newest.version == version {
            return Ok(Found { newest, survivors, silent });
        }
    }
}

async fn ask<O: Answered>(
    controller: &Controller,
    node: &Address,
    hello: &Hello,
    order: O,
) -> Result<O::Answer, Error> {
    controller.order(node, Some(hello.incarnation), order, TIMEOUT).await.map_err(|error| {
        Error::NotServing(format!("{node} lives and does not tell what it knows ({error}): try again"))
    })
}

/// A node that is slow, or was stopped for a while, is not lost.
async fn ask_patiently(controller: &Controller, node: &Address, deadline: Deadline) -> Option<Hello> {
    loop {
        match controller.node.ask_hello(node).await {
            Ok(hello) => return Some(hello),
            Err(error) if error.kind == NoAnswerKind::NotSent || deadline.is_over() => return None,
            Err(_) => controller.node.pause(PAUSE.min(deadline.left())).await,
        }
    }
}

/// No survivor may reach a node that would be given up.
async fn refuse_if_reached(
    controller: &Controller,
    found: &Found,
    given_up: &[(Address, Option<u64>)],
) -> Result<(), Error> {
    // One that does not know this cluster, or is one of its own by now, says nothing about it.
    let others = found.survivors.iter().filter(|one| one.node != controller.node.address);
    for survivor in others.filter(|one| one.is_of_cluster) {
        let node = &survivor.node;
        for (gone, start) in given_up {
            let order = orders::Reach { node: gone.clone(), incarnation: *start };
            match controller.order(node, Some(survivor.incarnation), order, TIMEOUT).await {
                Ok(false) => {}
                Ok(true) => {
                    return Err(Error::BadRequest(format!(
                        "{node} reaches {gone}, which would be given up: mend the network or end {gone}"
                    )));
                }
                Err(error) => {
                    return Err(Error::NotServing(format!(
                        "{node} lives and does not say whether it reaches {gone} ({error}): try again"
                    )));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::ask::OrderError;
    use crate::node::fake::{Fake, address, started, state};
    use crate::node::host;
    use crate::wire::orders::Order;

    #[test]
    fn the_newest_state_that_anybody_knows_counts() {
        // n2 has heard of n3, which knows most.
        let hello = |of: &Address| {
            let (number, version) = if *of == address(2) { (2, 5) } else { (3, 9) };
            Ok(Hello {
                address: of.clone(),
                incarnation: number,
                view: None,
                cluster: Some("c".to_owned()),
                version,
                pairs: None,
                local: None,
                bound: None,
                large_memory: None,
                room: None,
                has_secret: false,
                durable: false,
                proof: None,
            })
        };
        let order = |to: &Address, order: &Order| match order {
            Order::Replicas(_) => Ok(serde_json::json!([])),
            Order::News(_) if *to == address(2) => Ok(serde_json::json!(state(5, &[1, 2, 3], &[]))),
            Order::News(_) => Ok(serde_json::json!(state(9, &[1, 2, 3], &[]))),
            _ => Err(OrderError::Refused("that is not asked".to_owned())),
        };
        let node = started(Fake { hello: Box::new(hello), order: Box::new(order), ..Fake::default() });
        node.learn(&state(3, &[1, 2], &[])).unwrap();
        let Ok(found) = host::run(look(&Controller::new(node, Arc::default()))) else {
            panic!("it is refused")
        };
        assert_eq!((found.newest.version, found.survivors.len()), (9, 3));
        assert_eq!(found.silent, []);
    }
}
