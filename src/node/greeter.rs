//! The thread that asks the other nodes who they are: until the view is complete, then those that are down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::cluster::ask_hello;
use super::membership::{RollCall, Standing as Roll};
use super::state::{Node, Serving, Standing};
use crate::config::Role;
use crate::model::address::Address;
use crate::model::view::View;
use crate::wire::Hello;

/// Time between two rounds of questions.
const ROUND: Duration = Duration::from_millis(200);

/// Runs until the channel closes.
pub fn run(node: &Arc<Node>, stop: &Receiver<()>) {
    let mut greeter = Greeter { node: Arc::clone(node), roll_call: None };
    if let Role::Member { view } = &node.role {
        greeter.roll_call = Some(RollCall::new(&node.address, &node.instance, view));
    }
    loop {
        greeter.round();
        if stop.recv_timeout(ROUND) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

struct Greeter {
    node: Arc<Node>,
    roll_call: Option<RollCall>,
}

impl Greeter {
    fn round(&mut self) {
        let waiting = matches!(&*self.node.standing(), Standing::Waiting(_));
        match &self.node.role {
            Role::Member { view } if waiting => self.call_the_roll(&view.clone()),
            Role::Passive { seeds } => self.look_for_a_cluster(&seeds.clone(), waiting),
            _ => {}
        }
        for peer in self.node.peers.down() {
            let _ = ask_hello(&peer);
        }
    }

    fn call_the_roll(&mut self, view: &View) {
        let roll_call = self.roll_call.as_mut().expect("a member calls the roll");
        for address in roll_call.open() {
            roll_call.note(&address, ask_hello(&self.node.peers.at(&address)));
        }
        match roll_call.standing() {
            Roll::Complete { started_again, instances } => {
                if started_again {
                    log::warn!(
                        "the cluster was serving before this start of this node: it starts empty, the pairs it had are lost"
                    );
                }
                log::info!("serving: all {} nodes of the view are up", view.nodes().count());
                let serving = Serving::new(view.clone(), &self.node.address, instances);
                self.node.set_standing(Standing::Serving(serving));
            }
            Roll::Incomplete(problems) => self.wait_for(problems),
        }
    }

    /// A passive node takes the view of the first seed that serves, and again when that view has changed.
    fn look_for_a_cluster(&self, seeds: &[Address], waiting: bool) {
        let mut problems = Vec::new();
        for seed in seeds {
            match ask_hello(&self.node.peers.at(seed)) {
                Ok(Hello { view: Some(view), serving_with: Some(_), .. }) => {
                    match View::first(&view.nodes, view.repl_factor) {
                        Ok(view) => return self.learn(view),
                        Err(error) => problems.push(format!("{seed} has a senseless view: {error}")),
                    }
                }
                Ok(_) => problems.push(format!("{seed} serves no view yet")),
                Err(error) => problems.push(format!("waiting for {seed} ({error})")),
            }
        }
        if waiting {
            self.wait_for(problems);
        }
    }

    fn learn(&self, view: View) {
        if self.node.standing().serving().is_ok_and(|serving| serving.view == view) {
            return;
        }
        log::info!("passive: forwarding to a cluster of {} nodes", view.nodes().count());
        self.node.set_standing(Standing::Serving(Serving::new(view, &self.node.address, BTreeMap::new())));
    }

    fn wait_for(&self, problems: Vec<String>) {
        let known = matches!(&*self.node.standing(), Standing::Waiting(known) if *known == problems);
        if !known {
            log::info!("not serving: {}", problems.join("; "));
            self.node.set_standing(Standing::Waiting(problems));
        }
    }
}
