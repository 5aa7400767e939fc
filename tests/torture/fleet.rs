//! The processes under torture, each in a network of its own where this machine lets a test have one.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::change::allowed;
use crate::support::network::{Cut, Network};
use crate::support::node::Node;
use crate::support::replicated::{Known, is_ready, known_shards, try_view};
use crate::support::{ports, wait_until};

/// How long the cluster may take until all nodes are voters again and answer.
pub(crate) const HEALING: Duration = Duration::from_mins(1);
/// A request of a client is answered within this time, so that one which is held up says so soon.
const SETTINGS: (&str, &str) = ("REQUEST_TIMEOUT_MS", "3000");

/// Nodes with the view as it was last changed to. The processes end before their network goes.
pub(crate) struct Fleet {
    pub(crate) nodes: Vec<Node>,
    network: Option<Network>,
    pub(crate) view: Vec<usize>,
    pub(crate) factor: usize,
}

impl Fleet {
    /// `size` nodes, of which the first `members` are the first view; all are ready.
    pub(crate) fn start(size: usize, members: usize, factor: usize) -> Self {
        let network = Network::of(size)
            .inspect_err(|reason| {
                println!("PARTITIONS ARE LEFT OUT, they need root, iproute2 and iptables: {reason}");
            })
            .ok();
        let address = |number| match &network {
            Some(network) => network.address(number),
            None => ports::free_address(),
        };
        let all: Vec<String> = (0..size).map(address).collect();
        let (first, factor_text) = (all[..members].join(","), factor.to_string());
        let settings = [("VIEW", first.as_str()), ("REPL_FACTOR", factor_text.as_str()), SETTINGS];
        let start = |(number, address): (usize, &String)| match &network {
            Some(network) => Node::start_in(&network.namespace(number), address, &settings),
            None => Node::start(address, &settings),
        };
        let nodes = all.iter().enumerate().map(start).collect();
        let fleet = Self { nodes, network, view: (0..members).collect(), factor };
        fleet.wait_whole();
        fleet
    }

    pub(crate) fn can_cut(&self) -> bool {
        self.network.is_some()
    }

    pub(crate) fn cut(&self, cuts: &BTreeSet<Cut>) {
        if let Some(network) = &self.network {
            network.cut(cuts).unwrap_or_else(|error| panic!("the network cannot be cut: {error}"));
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address().to_owned()).collect()
    }

    /// The addresses of the view.
    pub(crate) fn members(&self) -> Vec<String> {
        self.view.iter().map(|number| self.nodes[*number].address().to_owned()).collect()
    }

    pub(crate) fn number(&self, address: &str) -> usize {
        let found = self.nodes.iter().position(|node| node.address() == address);
        found.unwrap_or_else(|| panic!("{address} is none of the nodes"))
    }

    /// The shards of the newest view that any node knows, with the leaders that one of those nodes knows.
    pub(crate) fn shards(&self) -> Vec<Known> {
        let mut views: Vec<_> = self.nodes.iter().filter_map(|node| try_view(node.address())).collect();
        let epoch = |view: &serde_json::Value| view["epoch"].as_u64();
        let newest = views.iter().map(epoch).max().expect("a node that is up knows the view");
        views.retain(|view| epoch(view) == newest);
        let mut shards = known_shards(&views[0]);
        for other in views[1..].iter().flat_map(known_shards) {
            let shard = shards.iter_mut().find(|shard| shard.id == other.id).expect("it is the same view");
            shard.leader = shard.leader.take().or(other.leader);
        }
        shards
    }

    /// Those that vote on the view: the first node, the first three from 3 nodes on, or five from 7 on.
    pub(crate) fn voters(&self) -> &[usize] {
        let count = match self.view.len() {
            0..3 => 1,
            3..7 => 3,
            _ => 5,
        };
        &self.view[..count]
    }

    /// Waits until every node of the view is a voter again, and all others are up.
    pub(crate) fn wait_whole(&self) {
        let mut away = Vec::new();
        let started = std::time::Instant::now();
        while started.elapsed() < allowed(HEALING) {
            let members = self.members();
            away = members.into_iter().filter(|address| !is_ready(address)).collect();
            if away.is_empty() {
                self.nodes.iter().for_each(Node::wait_live);
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let why: Vec<String> =
            away.iter().map(|address| format!("{address}: {}", readiness(address))).collect();
        panic!("nobody is away, but after {HEALING:?} not all nodes are ready: {why:#?}");
    }

    /// Waits until the shards have leaders, so that one can be harmed.
    pub(crate) fn wait_led(&self) {
        wait_until("every shard has a leader", allowed(HEALING), || {
            self.shards().iter().all(|shard| shard.leader.is_some())
        });
    }
}

fn readiness(address: &str) -> String {
    let mut client = crate::support::http::Http::with_patience(address, Duration::from_secs(3));
    match client.try_request("GET", "/readyz", &[], b"") {
        Ok(answer) => answer.text(),
        Err(error) => error.to_string(),
    }
}

impl Drop for Fleet {
    /// Where a test has failed, whole logs are kept for whoever asked for them.
    fn drop(&mut self) {
        if let (true, Some(folder)) = (thread::panicking(), std::env::var_os("TORTURE_LOGS")) {
            for node in &self.nodes {
                node.keep_logs(&Path::new(&folder).join(node.address().replace(':', "_")));
            }
        }
    }
}
