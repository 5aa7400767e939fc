//! Other nodes for tests of one: they answer what they are told to.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;

use serde_json::Value;

use super::ask::OrderError;
use super::host::{Awaited, Host, Pending};
use super::keys::{Reply, Request};
use super::raft::Transport;
use super::state::Node;
use crate::clock::Deadline;
use crate::config::Settings;
use crate::consensus::Envelope;
use crate::model::address::Address;
use crate::model::hash::HashKey;
use crate::model::meta::MetaState;
use crate::model::view::View;
use crate::peers::no_answer::{NoAnswer, NoAnswerKind};
use crate::wire::listing::{Page, Question};
use crate::wire::orders::Order;
use crate::wire::pairs::Parcel;
use crate::wire::{Addressed, GroupMembers, Hello, Leads, Transfer};

/// The group of the first shard.
pub(crate) const GROUP: u64 = 1;

/// Who a node says that it is.
type Hellos = Box<dyn Fn(&Address) -> Result<Hello, NoAnswer> + Send + Sync>;
/// What comes of an order to a node.
type Orders = Box<dyn Fn(&Address, &Order) -> Result<Value, OrderError> + Send + Sync>;
/// What comes of an operation on a key, whoever is asked.
type Keys = Box<dyn Fn(&Request) -> Result<Reply, NoAnswer> + Send + Sync>;

/// What the others answer.
pub(crate) struct Fake {
    pub(crate) hello: Hellos,
    pub(crate) order: Orders,
    pub(crate) key: Keys,
}

/// Nobody is there.
impl Default for Fake {
    fn default() -> Self {
        Self {
            hello: Box::new(|_| Err(nobody())),
            order: Box::new(|_, _| Err(OrderError::NotSent(nobody().reason))),
            key: Box::new(|_| Err(nobody())),
        }
    }
}

fn nobody() -> NoAnswer {
    NoAnswer { kind: NoAnswerKind::NotSent, reason: "nobody listens there".to_owned() }
}

impl Host for Fake {
    fn wait<'a>(&'a self, awaited: &'a dyn Awaited, deadline: Deadline) -> Pending<'a, ()> {
        awaited.block(deadline);
        Box::pin(ready(()))
    }

    fn hello<'a>(&'a self, _: &'a Node, of: &'a Address) -> Pending<'a, Result<Hello, NoAnswer>> {
        Box::pin(ready((self.hello)(of)))
    }

    fn order<'a>(
        &'a self,
        _: &'a Node,
        (to, _): (&'a Address, &'a Addressed),
        order: &'a Order,
        _: Deadline,
    ) -> Pending<'a, Result<Value, OrderError>> {
        Box::pin(ready((self.order)(to, order)))
    }

    fn transfer<'a>(
        &'a self,
        _: &'a Node,
        _: (&'a Address, &'a Addressed),
        _: &'a Transfer,
        _: Deadline,
    ) -> Pending<'a, Result<Parcel, OrderError>> {
        Box::pin(ready(Err(OrderError::NotSent(nobody().reason))))
    }

    fn page<'a>(
        &'a self,
        _: &'a Node,
        _: (&'a Address, &'a Addressed),
        _: &'a Question,
        _: Deadline,
    ) -> Pending<'a, Result<Page, OrderError>> {
        Box::pin(ready(Err(OrderError::NotSent(nobody().reason))))
    }

    fn tell<'a>(
        &'a self,
        _: &'a Node,
        _: &'a Address,
        _: &'a Arc<MetaState>,
    ) -> Pending<'a, Result<Vec<u64>, String>> {
        Box::pin(ready(Err(nobody().reason)))
    }

    fn key<'a>(
        &'a self,
        _: &'a Node,
        _: (&'a Address, &'a Addressed, u64),
        request: &'a Request<'a>,
    ) -> Pending<'a, Result<Reply, NoAnswer>> {
        Box::pin(ready((self.key)(request)))
    }

    fn greet(&self, _: &Arc<Node>, _: &Address) {}
}

struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _: &Address, _: Envelope) {}
}

pub(crate) fn address(number: u64) -> Address {
    format!("n{number}").parse().unwrap()
}

/// The node n1 among others, whose thread that drives its groups runs and reaches nobody.
pub(crate) fn started(others: Fake) -> Arc<Node> {
    let settings: Settings = [("ADDRESS", "n1"), ("VIEW", "n1,n2")].into_iter().collect();
    let (node, inbox) = Node::new(&settings.check().unwrap(), Arc::new(others));
    inbox.start(Box::new(Nowhere), Box::new(|_| ())).unwrap();
    Arc::new(node)
}

/// A state by which these nodes hold the only shard, and these starts of nodes have founded its group.
pub(crate) fn state(version: u64, replicas: &[u64], founders: &[(u64, u64)]) -> Arc<MetaState> {
    let replicas: Vec<Address> = replicas.iter().map(|number| address(*number)).collect();
    let founders: BTreeMap<Address, u64> =
        founders.iter().map(|(number, start)| (address(*number), *start)).collect();
    let view = View::first(&replicas, replicas.len()).unwrap();
    let mut state = MetaState::first("c".to_owned(), 50, HashKey::PUBLISHED, view, &founders);
    (state.version, state.open) = (version, true);
    state.holders.insert(GROUP, founders);
    Arc::new(state)
}

/// What the leader of a group says, n1: its voters and learners, each at the node of its number.
pub(crate) fn members(voters: &[u64], learners: &[u64], changing: bool) -> GroupMembers {
    let named = |ids: &[u64]| ids.iter().map(|id| (*id, address(*id))).collect();
    GroupMembers {
        by: Leads { node: address(1), incarnation: 1 },
        is_logged: true,
        voters: named(voters),
        learners: named(learners),
        changing,
        index: 9,
        version: 5,
        fed: 0,
        too_old: Vec::new(),
        bytes: None,
    }
}
