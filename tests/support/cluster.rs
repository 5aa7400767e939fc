//! Several nodes of one view.

use std::path::Path;

use super::http::{Http, Response};
use super::node::Node;
use super::ports;

/// Nodes that were started with the same `VIEW`, in its order.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) view: String,
}

impl Cluster {
    /// A cluster of `count` nodes in which all are ready.
    pub(crate) fn of(count: usize) -> Self {
        Self::with(count, &[])
    }

    /// The same with further settings for each node.
    pub(crate) fn with(count: usize, settings: &[(&str, &str)]) -> Self {
        Self::each(&vec![settings; count])
    }

    /// A node for each of these settings, all of them ready.
    pub(crate) fn each(settings: &[&[(&str, &str)]]) -> Self {
        let cluster = Self::starting_each(settings);
        for node in &cluster.nodes {
            node.wait_ready();
        }
        cluster
    }

    /// The same without waiting.
    pub(crate) fn starting(count: usize, settings: &[(&str, &str)]) -> Self {
        Self::starting_each(&vec![settings; count])
    }

    /// A node for each of these settings, without waiting; the first one founds the cluster.
    pub(crate) fn starting_each(settings: &[&[(&str, &str)]]) -> Self {
        let addresses: Vec<String> = settings.iter().map(|_| ports::free_address()).collect();
        let view = addresses.join(",");
        let start = |(address, own): (&String, &&[(&str, &str)])| {
            let mut all = vec![("VIEW", view.as_str())];
            all.extend_from_slice(own);
            Node::start(address, &all)
        };
        let nodes = addresses.iter().zip(settings).map(start).collect();
        Self { nodes, view }
    }

    /// A cluster of `count` nodes of another program, in which all are ready.
    pub(crate) fn of_program(count: usize, program: &Path, settings: &[(&str, &str)]) -> Self {
        let addresses: Vec<String> = (0..count).map(|_| ports::free_address()).collect();
        let view = addresses.join(",");
        let mut all = vec![("VIEW", view.as_str())];
        all.extend_from_slice(settings);
        let nodes: Vec<Node> =
            addresses.iter().map(|address| Node::start_program(program, address, &all)).collect();
        nodes.iter().for_each(Node::wait_ready);
        Self { nodes, view }
    }

    /// A client for each node.
    pub(crate) fn clients(&self) -> Vec<Http> {
        self.nodes.iter().map(Node::http).collect()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address().to_owned()).collect()
    }

    /// The number of the node that the other nodes name as the owner of the key under `target`.
    pub(crate) fn owner_of(&self, target: &str) -> usize {
        self.owner_by_answer(0, &self.nodes[0].http().get(target))
    }

    /// The number of the node that owns the key of this answer, which node `asked` gave.
    pub(crate) fn owner_by_answer(&self, asked: usize, answer: &Response) -> usize {
        match answer.owner() {
            None => asked,
            Some(owner) => self
                .nodes
                .iter()
                .position(|node| node.address() == owner)
                .unwrap_or_else(|| panic!("{owner} is named as owner and is not in {}", self.view)),
        }
    }

    /// A key, made of letters, digits and `tag`, that the node with this number owns.
    pub(crate) fn key_of(&self, owner: usize, tag: &str) -> String {
        let mut client = self.nodes[0].http();
        let key = (0..1000).map(|number| format!("{tag}{number}")).find(|key| {
            let answer = client.get(&format!("/kv-store/keys/{key}"));
            self.owner_by_answer(0, &answer) == owner
        });
        key.unwrap_or_else(|| panic!("none of 1000 keys belongs to node {owner} of {}", self.view))
    }
}
