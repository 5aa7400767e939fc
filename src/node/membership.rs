//! When a node of a first view may serve it: a pure judgement of what the others answered.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::address::Address;
use crate::model::limits::Limits;
use crate::model::view::View;
use crate::wire::{Hello, HelloView};

/// What one of the other nodes of the view was last heard to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Greeting {
    /// Nothing; why.
    Missing(String),
    /// It names another view, or is not the node that it should be.
    Differs(String),
    /// It cannot hold what the cluster will: why.
    Unfit(String),
    /// It names the same view, and has learned of no cluster yet.
    Agrees {
        /// The id of this start of it.
        incarnation: u64,
    },
}

/// The round of questions that a node makes until all the others agree.
#[derive(Debug)]
pub struct RollCall {
    own: Address,
    own_instance: u64,
    view: HelloView,
    /// The limits of the cluster, where this node founds it.
    limits: Option<Limits>,
    /// Whether this node keeps what it holds on a disk.
    is_durable: bool,
    greetings: BTreeMap<Address, Greeting>,
}

/// How the roll call stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Roll {
    /// All are there and agree: the starts of the nodes that were counted.
    Complete(BTreeMap<Address, u64>),
    /// Somebody is missing or differs: a sentence each.
    Incomplete(Vec<String>),
}

impl RollCall {
    /// Nobody but the node itself has said anything.
    pub fn new(own: &Address, own_instance: u64, view: &View, limits: Limits, is_durable: bool) -> Self {
        let greetings = view
            .nodes()
            .filter(|node| *node != own)
            .map(|node| (node.clone(), Greeting::Missing("not asked yet".to_owned())))
            .collect();
        let limits = (view.nodes().next() == Some(own)).then_some(limits);
        Self { own: own.clone(), own_instance, view: hello_view(view), limits, is_durable, greetings }
    }

    /// The nodes to ask. All of them, in each round: one that agreed a while ago may be gone.
    pub fn others(&self) -> Vec<Address> {
        self.greetings.keys().cloned().collect()
    }

    /// Notes what a node answered.
    pub fn note(&mut self, node: &Address, answer: Result<Hello, impl fmt::Display>) {
        let greeting = match answer {
            Err(reason) => Greeting::Missing(reason.to_string()),
            Ok(hello) => self.judge(node, &hello),
        };
        self.greetings.insert(node.clone(), greeting);
    }

    fn judge(&self, node: &Address, hello: &Hello) -> Greeting {
        if hello.address != *node {
            return Greeting::Differs(format!("the node there calls itself {}", hello.address));
        }
        if let Some(reason) = self.limits.and_then(|limits| limits.lack(hello.large_memory)) {
            return Greeting::Unfit(reason);
        }
        if hello.durable != self.is_durable {
            return Greeting::Unfit(unlike(&hello.address, hello.durable));
        }
        match (&hello.view, &hello.cluster) {
            (Some(view), _) if *view == self.view => Greeting::Agrees { incarnation: hello.incarnation },
            (Some(view), _) => Greeting::Differs(format!("its view is {}", describe(view))),
            (None, Some(cluster)) => Greeting::Differs(format!("it belongs to cluster {cluster}")),
            (None, None) => Greeting::Differs("it has no view".to_owned()),
        }
    }

    /// How it stands now.
    pub fn serving_state(&self) -> Roll {
        let mut incarnations = BTreeMap::from([(self.own.clone(), self.own_instance)]);
        let mut problems = Vec::new();
        for (node, greeting) in &self.greetings {
            match greeting {
                Greeting::Missing(reason) => problems.push(format!("waiting for {node} ({reason})")),
                Greeting::Differs(reason) => {
                    problems.push(format!("{node} differs: {reason}, ours is {}", describe(&self.view)));
                }
                Greeting::Unfit(reason) => problems.push(format!("{node} cannot take part: {reason}")),
                Greeting::Agrees { incarnation } => {
                    incarnations.insert(node.clone(), *incarnation);
                }
            }
        }
        if problems.is_empty() { Roll::Complete(incarnations) } else { Roll::Incomplete(problems) }
    }
}

/// What is said of a node that keeps what it holds where this one does not, or the reverse.
pub fn unlike(node: &Address, is_durable: bool) -> String {
    let advice = "set DATA_DIR on all nodes of a cluster, or on none";
    if is_durable {
        format!("{node} has DATA_DIR, and this cluster keeps everything in memory: {advice}")
    } else {
        format!("{node} has no DATA_DIR, and this cluster keeps everything on disks: {advice}")
    }
}

/// The parts of a view that its nodes have to agree on.
pub fn hello_view(view: &View) -> HelloView {
    HelloView { nodes: view.nodes().cloned().collect(), repl_factor: view.repl_factor }
}

fn describe(view: &HelloView) -> String {
    let nodes: Vec<&str> = view.nodes.iter().map(Address::as_str).collect();
    format!("{} with REPL_FACTOR {}", nodes.join(","), view.repl_factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &str) -> Vec<Address> {
        Address::parse_list(list).unwrap()
    }

    fn hello(address: &str, view: &str) -> Hello {
        let view = Some(HelloView { nodes: nodes(view), repl_factor: 1 });
        Hello {
            address: address.parse().unwrap(),
            incarnation: 7,
            view,
            cluster: None,
            version: 0,
            pairs: None,
            local: None,
            bound: None,
            large_memory: Some(16 << 20),
            room: None,
            has_secret: false,
            durable: false,
            proof: None,
        }
    }

    #[test]
    fn a_node_waits_for_all_and_names_who_differs() {
        let view = View::first(&nodes("a,b,c"), 1).unwrap();
        let [a, b, c] = nodes("a,b,c").try_into().unwrap();
        let mut call = RollCall::new(&a, 2, &view, Limits::default(), false);
        assert_eq!(call.others(), [b.clone(), c.clone()]);

        call.note(&b, Ok::<_, String>(hello("b", "a,b,c")));
        call.note(&c, Err::<Hello, _>("refused"));
        let Roll::Incomplete(problems) = call.serving_state() else { panic!("c is missing") };
        assert_eq!(problems, ["waiting for c:13800 (refused)"]);

        call.note(&c, Ok::<_, String>(hello("c", "a,c,b")));
        let Roll::Incomplete(problems) = call.serving_state() else { panic!("c differs") };
        assert!(problems[0].contains("c:13800 differs: its view is a:13800,c:13800,b:13800"), "{problems:?}");

        call.note(&c, Ok::<_, String>(hello("x", "a,b,c")));
        assert!(matches!(call.serving_state(), Roll::Incomplete(_)));

        call.note(&c, Ok::<_, String>(hello("c", "a,b,c")));
        let incarnations = nodes("a,b,c").into_iter().zip([2, 7, 7]).collect();
        assert_eq!(call.serving_state(), Roll::Complete(incarnations));

        let narrow = Hello { large_memory: Some(5), ..hello("c", "a,b,c") };
        call.note(&c, Ok::<_, String>(narrow.clone()));
        let Roll::Incomplete(problems) = call.serving_state() else { panic!("c has too little memory") };
        assert!(problems[0].contains("c:13800 cannot take part: LARGE_MEMORY is 5,"), "{problems:?}");
        let mut other = RollCall::new(&b, 3, &view, Limits::default(), false);
        other.note(&a, Ok::<_, String>(hello("a", "a,b,c")));
        other.note(&c, Ok::<_, String>(narrow));
        assert!(matches!(other.serving_state(), Roll::Complete(_)), "the founder's limits count");

        let taken = Hello { view: None, cluster: Some("x".to_owned()), ..hello("c", "a,b,c") };
        call.note(&c, Ok::<_, String>(taken));
        assert!(matches!(call.serving_state(), Roll::Incomplete(_)));
    }
}
