//! When a node of a first view may serve it: a pure judgement of what the others answered.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::address::Address;
use crate::model::view::View;
use crate::wire::{Hello, HelloView};

/// What one of the other nodes of the view was last heard to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Greeting {
    /// Nothing; why.
    Missing(String),
    /// It names another view, or is not the node that it should be.
    Differs(String),
    /// It names the same view.
    Agrees {
        /// The id of this start of it.
        instance: String,
        /// Whether it has served without us, or with an earlier start of us.
        served_before_us: bool,
    },
}

/// The round of questions that a node makes until all the others agree.
#[derive(Debug)]
pub struct RollCall {
    own: Address,
    own_instance: String,
    view: HelloView,
    greetings: BTreeMap<Address, Greeting>,
}

/// How the roll call stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// All are there and agree.
    Complete {
        /// Some have served without this start of this node: what it held before is lost.
        started_again: bool,
        /// The starts of the nodes that were counted.
        instances: BTreeMap<Address, String>,
    },
    /// Somebody is missing or differs: a sentence each.
    Incomplete(Vec<String>),
}

impl RollCall {
    /// Nobody but the node itself has said anything.
    pub fn new(own: &Address, own_instance: &str, view: &View) -> Self {
        let greetings = view
            .nodes()
            .filter(|node| *node != own)
            .map(|node| (node.clone(), Greeting::Missing("not asked yet".to_owned())))
            .collect();
        Self { own: own.clone(), own_instance: own_instance.to_owned(), view: hello_view(view), greetings }
    }

    /// The nodes that have not agreed yet.
    pub fn open(&self) -> Vec<Address> {
        let open = self.greetings.iter().filter(|(_, greeting)| !matches!(greeting, Greeting::Agrees { .. }));
        open.map(|(node, _)| node.clone()).collect()
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
        match &hello.view {
            Some(view) if *view == self.view => Greeting::Agrees {
                instance: hello.instance.clone(),
                served_before_us: hello
                    .serving_with
                    .as_ref()
                    .is_some_and(|counted| counted.get(&self.own) != Some(&self.own_instance)),
            },
            Some(view) => Greeting::Differs(format!("its view is {}", describe(view))),
            None => Greeting::Differs("it has no view".to_owned()),
        }
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        let mut started_again = false;
        let mut instances = BTreeMap::from([(self.own.clone(), self.own_instance.clone())]);
        let mut problems = Vec::new();
        for (node, greeting) in &self.greetings {
            match greeting {
                Greeting::Missing(reason) => problems.push(format!("waiting for {node} ({reason})")),
                Greeting::Differs(reason) => {
                    problems.push(format!("{node} differs: {reason}, ours is {}", describe(&self.view)));
                }
                Greeting::Agrees { instance, served_before_us } => {
                    started_again |= served_before_us;
                    instances.insert(node.clone(), instance.clone());
                }
            }
        }
        if problems.is_empty() {
            Standing::Complete { started_again, instances }
        } else {
            Standing::Incomplete(problems)
        }
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

    fn hello(address: &str, view: &str, serving_with_us: Option<&str>) -> Hello {
        let view = Some(HelloView { nodes: nodes(view), repl_factor: 1 });
        let serving_with = serving_with_us.map(|us| BTreeMap::from([("a".parse().unwrap(), us.to_owned())]));
        Hello { address: address.parse().unwrap(), view, instance: format!("{address}-1"), serving_with }
    }

    #[test]
    fn a_node_waits_for_all_and_names_who_differs() {
        let view = View::first(&nodes("a,b,c"), 1).unwrap();
        let [a, b, c] = nodes("a,b,c").try_into().unwrap();
        let mut call = RollCall::new(&a, "a-2", &view);
        assert_eq!(call.open(), [b.clone(), c.clone()]);

        call.note(&b, Ok::<_, String>(hello("b", "a,b,c", Some("a-2"))));
        call.note(&c, Err::<Hello, _>("refused"));
        let Standing::Incomplete(problems) = call.standing() else { panic!("c is missing") };
        assert_eq!(problems, ["waiting for c:13800 (refused)"]);

        call.note(&c, Ok::<_, String>(hello("c", "a,c,b", Some("a-2"))));
        let Standing::Incomplete(problems) = call.standing() else { panic!("c differs") };
        assert!(problems[0].contains("c:13800 differs: its view is a:13800,c:13800,b:13800"), "{problems:?}");

        call.note(&c, Ok::<_, String>(hello("x", "a,b,c", None)));
        assert_eq!(call.open(), std::slice::from_ref(&c));

        call.note(&c, Ok::<_, String>(hello("c", "a,b,c", None)));
        let instances = nodes("a,b,c").into_iter().zip(["a-2", "b-1", "c-1"].map(str::to_owned)).collect();
        assert_eq!(call.standing(), Standing::Complete { started_again: false, instances });

        call.note(&c, Ok::<_, String>(hello("c", "a,b,c", Some("a-1"))));
        assert!(matches!(call.standing(), Standing::Complete { started_again: true, .. }));
    }
}
