//! The thread that looks after the other nodes: it calls the roll of a first view, finds a cluster, tells news, and notices who is
//! up again.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::calls::ask_livez;
use super::host;
use super::membership::{Roll, RollCall};
use super::state::{Node, ServingState};
use crate::clock::{Deadline, now};
use crate::config::Role;
use crate::dice;
use crate::logging;
use crate::model::address::Address;
use crate::model::hash::HashKey;
use crate::model::meta::MetaState;
use crate::model::view::View;
use crate::wire::orders;

/// Time between two rounds of questions.
pub(crate) const ROUND: Duration = Duration::from_millis(200);
/// A founder lets this time pass first, in which members of a cluster that it may belong to greet it.
const FOUNDING_DELAY: Duration = Duration::from_millis(400);
/// The other nodes are told so often who leads, beside the moment in which that changes: they may not have heard it then.
const TELL_LEADERS: Duration = Duration::from_secs(2);
/// A founding that is not complete after this time has lost one of its nodes.
const FOUNDING_PATIENCE: Duration = Duration::from_secs(10);
/// What a founder says meanwhile.
const GREETINGS_AWAITED: &str = "waiting for greetings of a cluster that may be there already";
/// A node that is not reserved within this time will not.
const PROMISE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until the channel closes.
pub fn run(node: &Arc<Node>, stop: &Receiver<()>) {
    let mut discovery = Discovery::new(node);
    loop {
        if catch_unwind(AssertUnwindSafe(|| host::run(discovery.round()))).is_err() {
            log::error!("a round of greetings broke off");
            node.end_first_round();
        }
        if let Some(why) = node.outdated() {
            logging::say_last(&why);
            std::process::exit(1);
        }
        // A follower's main is always asked: nobody else would notice that it was never there.
        if let Some(main) = node.main() {
            ask_livez(&main);
        }
        if stop.recv_timeout(ROUND) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// What a node does before anything else: one alone that nobody can name is a cluster of its own from the start.
pub(crate) fn begin(node: &Node) {
    let waits = matches!(&*node.serving_state(), ServingState::Waiting(_));
    if node.role == Role::Single && !node.has_address && waits {
        found_alone(node);
    }
}

/// Founds a cluster of this node alone.
fn found_alone(node: &Node) {
    let view = View::first(std::slice::from_ref(&node.address), 1).expect("one node makes a view");
    let incarnations = [(node.address.clone(), node.incarnation)].into();
    let mut state = MetaState::first(new_cluster_id(), dice::id(), new_hash_key(), view, &incarnations);
    state.open = true;
    found(node, state);
}

fn found(node: &Node, mut state: MetaState) {
    // Those of whoever founds a cluster are the cluster's.
    state.limits = node.own_limits;
    state.durable = node.is_durable();
    let replica = dice::id();
    node.note_replica(state.group, replica);
    node.meta.found(state.group, replica, &node.address, state.clone());
    if let Err(error) = node.learn(&Arc::new(state)) {
        log::error!("the cluster that was just founded is refused: {error}");
    }
}

fn new_cluster_id() -> String {
    format!("{:016x}", dice::draw::<u64>())
}

fn new_hash_key() -> HashKey {
    HashKey::new(dice::draw(), dice::draw())
}

/// What a node does about the others, round by round.
pub(crate) struct Discovery {
    node: Arc<Node>,
    roll_call: Option<RollCall>,
    started: Instant,
    /// The meta group that is being founded, and since when this node takes part in it.
    founding: Option<(u64, Instant)>,
    /// When the others were last told which groups this node leads.
    told_leaders: Instant,
}

impl Discovery {
    /// A node that has asked nobody yet.
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        let roll_call = match &node.role {
            Role::Member { view } => {
                let durable = node.is_durable();
                Some(RollCall::new(&node.address, node.incarnation, view, node.own_limits, durable))
            }
            _ => None,
        };
        Self { node: Arc::clone(node), roll_call, started: now(), founding: None, told_leaders: now() }
    }

    /// Why the node must not take part in its groups, if so.
    #[cfg(test)]
    pub(crate) fn outdated(&self) -> Option<String> {
        self.node.outdated()
    }

    /// Asks and tells whom it has to, once.
    pub(crate) async fn round(&mut self) {
        self.node.forget_old_reservation();
        self.node.return_to_groups().await;
        self.node.sweep();
        let waiting = matches!(&*self.node.serving_state(), ServingState::Waiting(_));
        self.give_up_founding(waiting);
        match self.node.role.clone() {
            Role::Member { view } if waiting => self.call_the_roll(&view).await,
            Role::Passive { .. } if waiting => self.look_for_a_cluster().await,
            Role::Single if waiting && now() - self.started < FOUNDING_DELAY => {
                self.node.wait_for_cluster(vec![GREETINGS_AWAITED.to_owned()]);
                // Whoever asks it waits as long.
                return;
            }
            Role::Single if waiting => found_alone(&self.node),
            _ => {}
        }
        if self.node.meta.leads() {
            self.greet_all();
        } else if !waiting {
            self.node.exchange_news().await;
        }
        // Whoever is asked is known to be up or down by the answer.
        let known = self.known_nodes();
        self.node.peers.keep(&known);
        if let Some(state) = self.node.state() {
            // A connection is there before a request needs it.
            for node in state.nodes().iter().filter(|node| **node != self.node.address) {
                self.node.host.connect(&self.node, node);
            }
            if now() - self.told_leaders >= TELL_LEADERS {
                self.told_leaders = now();
                self.node.tell_leaders();
                if self.node.meta.leads() {
                    self.node.look_for_successors().await;
                }
            }
        }
        let known: BTreeSet<Address> = known.into_iter().collect();
        let down = self.node.peers.down();
        let down =
            down.iter().map(|peer| peer.address()).filter(|node| known.contains(node)).cloned().collect();
        self.node.posts.keep(&known, if self.node.meta.leads() { &known } else { &down });
        for node in down.iter().filter(|_| self.node.main().is_none()) {
            self.node.host.greet(&self.node, node);
        }
        self.node.end_first_round();
    }

    /// A founding that has lost one of its nodes comes to nothing: whoever takes part in it is free for the next one after a while.
    fn give_up_founding(&mut self, waiting: bool) {
        let group = self.node.meta.local().filter(|_| waiting).map(|local| local.group);
        let known = self.founding.filter(|(known, _)| Some(*known) == group);
        self.founding = known.or_else(|| Some((group?, now())));
        if let Some((group, since)) = self.founding
            && now() - since >= FOUNDING_PATIENCE
        {
            log::info!("the founding of group {group} has come to nothing");
            self.node.meta.give_up(group);
        }
    }

    /// Everybody that this node has to do with for longer than one request.
    fn known_nodes(&self) -> Vec<Address> {
        let mut known = self.node.seeds();
        if let Some(state) = self.node.state() {
            known.extend(state.nodes());
            known.extend(state.former.iter().cloned());
        }
        if let Some(local) = self.node.meta.local() {
            known.extend(local.status.members.values().cloned());
        }
        known.extend(self.node.main().map(|main| main.address().clone()));
        known
    }

    /// The leader of the meta group tells the news to those who have not heard them, also to those who have left.
    fn greet_all(&self) {
        let Some(state) = self.node.state() else { return };
        self.node.note_start(&state, &self.node.address, self.node.incarnation);
        for node in state.nodes().iter().chain(&state.former).filter(|node| **node != self.node.address) {
            self.node.host.greet(&self.node, node);
        }
    }

    async fn call_the_roll(&mut self, view: &View) {
        let roll_call = self.roll_call.as_mut().expect("a member calls the roll");
        let mut known = None;
        for address in roll_call.others() {
            let hello = self.node.ask_hello(&address).await;
            if let Ok(hello) = &hello
                && hello.cluster.is_some()
            {
                known = Some((address.clone(), hello.incarnation));
            }
            roll_call.note(&address, hello);
        }
        if let Some((node, incarnation)) = known {
            // Somebody belongs to a cluster already: this start of the node has come too late for its founding.
            if let Err(error) = self.node.fetch_news(&node, incarnation).await {
                self.node.wait_for_cluster(vec![format!("{node} belongs to a cluster: {error}")]);
            }
            return;
        }
        let founder = view.nodes().next().expect("a view has nodes");
        let problems = match roll_call.serving_state() {
            Roll::Incomplete(problems) => problems,
            Roll::Complete(_) if *founder != self.node.address => {
                vec![format!("waiting for {founder} to found the cluster")]
            }
            Roll::Complete(_) if now() - self.started < FOUNDING_DELAY => {
                vec![GREETINGS_AWAITED.to_owned()]
            }
            Roll::Complete(_) if self.node.meta.local().is_some() => {
                vec!["founding the cluster".to_owned()]
            }
            Roll::Complete(incarnations) => {
                self.found(view, &incarnations).await;
                vec!["founding the cluster".to_owned()]
            }
        };
        self.node.wait_for_cluster(problems);
    }

    /// Reserves all nodes, and founds the cluster. It is open when its meta group is complete.
    async fn found(&self, view: &View, incarnations: &BTreeMap<Address, u64>) {
        let cluster = new_cluster_id();
        for (address, incarnation) in incarnations {
            let reserved = if *address == self.node.address {
                self.node.reserve(&cluster, true)
            } else {
                let deadline = Deadline::after(now(), PROMISE_TIMEOUT);
                let order = orders::Reserve { cluster: cluster.clone(), founding: true };
                let reserved = self.node.order(address, Some(*incarnation), order, deadline).await;
                reserved.map_err(|error| error.to_string())
            };
            match reserved {
                Ok(reserved) if reserved == *incarnation => {}
                Ok(_) => return log::info!("not founded yet: {address} was started again"),
                Err(error) => return log::info!("not founded yet: {error}"),
            }
        }
        log::info!("founding cluster {cluster} of {} nodes", incarnations.len());
        let state = MetaState::first(cluster, dice::id(), new_hash_key(), view.clone(), incarnations);
        found(&self.node, state);
    }

    /// A passive node takes what the first seed knows that knows something.
    async fn look_for_a_cluster(&self) {
        let mut problems = Vec::new();
        for seed in self.node.seeds() {
            match self.node.ask_hello(&seed).await {
                Ok(hello) if hello.cluster.is_some() => {
                    match self.node.fetch_news(&seed, hello.incarnation).await {
                        Ok(()) => return,
                        Err(error) => problems.push(format!("{seed} did not tell the news: {error}")),
                    }
                }
                Ok(_) => problems.push(format!("{seed} serves no view yet")),
                Err(error) => problems.push(format!("waiting for {seed} ({error})")),
            }
        }
        self.node.wait_for_cluster(problems);
    }
}
