//! Nodes in network namespaces of their own, joined by a bridge, between which packets can be lost in either direction.
//!
//! The bridge has a namespace, too: what crosses it is not subject to the machine's own rules, by which Docker, where it is installed, has
//! everything dropped that it does not know.
//!
//! It needs root, and `ip` and `iptables` (Debian: iproute2, iptables). The test itself reaches every node by the bridge,
//! whatever is cut between them. All names begin with `evk` and the number of a subnet that is locked while it is used,
//! so whatever else is called so was left behind by a test that was killed, and is removed.
#![allow(dead_code, reason = "every test file includes this module and each uses its own part of it")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Where every node listens, each at an address of its own.
const PORT: u16 = 13_800;
/// The subnets are 10.213.0.0/24 to 10.213.249.0/24: nodes answer each other on private addresses without a secret.
const SUBNETS: u8 = 250;
/// The address of the test itself in its subnet.
const OWN: u8 = 254;

/// What is lost of the packets from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    Everything,
    /// What belongs to requests: the one node cannot ask the other, but answers it.
    Requests,
}

/// Packets that are lost on their way, by the numbers of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) lost: Lost,
}

/// A bridge and a namespace for each of some nodes; all of it goes with this value.
pub(crate) struct Network {
    subnet: u8,
    size: usize,
    /// Holds the lock on the subnet.
    _lock: File,
}

impl Network {
    /// `Err` says why this machine does not let the test have one.
    pub(crate) fn of(size: usize) -> Result<Self, String> {
        assert!(size < usize::from(OWN), "a subnet has few addresses");
        let (subnet, lock) = free_subnet()?;
        let network = Self { subnet, size, _lock: lock };
        network.remove();
        let (hub, own) = (network.hub(), network.link());
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        ip(&format!("link add {own} type veth peer name own netns {hub}"))?;
        ip(&format!("-n {hub} link set own master bridge up"))?;
        ip(&format!("addr add {}/24 dev {own}", network.host(OWN)))?;
        ip(&format!("link set {own} up"))?;
        for number in 0..size {
            network.add(number)?;
        }
        network.cut(&BTreeSet::new())?;
        Ok(network)
    }

    fn add(&self, number: usize) -> Result<(), String> {
        let (space, hub) = (self.namespace(number), self.hub());
        ip(&format!("netns add {space}"))?;
        ip(&format!("-n {hub} link add node{number} type veth peer name eth0 netns {space}"))?;
        ip(&format!("-n {hub} link set node{number} master bridge up"))?;
        ip(&format!("-n {space} addr add {}/24 dev eth0", self.host_of(number)))?;
        ip(&format!("-n {space} link set eth0 up"))?;
        ip(&format!("-n {space} link set lo up"))
    }

    pub(crate) fn namespace(&self, number: usize) -> String {
        format!("evk{}n{number}", self.subnet)
    }

    /// The address of the node with this number.
    pub(crate) fn address(&self, number: usize) -> String {
        format!("{}:{PORT}", self.host_of(number))
    }

    /// Loses exactly these packets from now on.
    pub(crate) fn cut(&self, cuts: &BTreeSet<Cut>) -> Result<(), String> {
        for number in 0..self.size {
            let mut rules = String::from("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n");
            for cut in cuts.iter().filter(|cut| cut.to == number) {
                let part = match cut.lost {
                    Lost::Everything => String::new(),
                    Lost::Requests => format!(" -p tcp --dport {PORT}"),
                };
                writeln!(rules, "-A INPUT -s {}{part} -j DROP", self.host_of(cut.from)).expect("a String");
            }
            rules.push_str("COMMIT\n");
            let space = self.namespace(number);
            run("ip", &["netns", "exec", &space, "iptables-restore", "-w"], &rules)?;
        }
        Ok(())
    }

    /// Lets no more than this pass out of a node, in the words of `tc`. `Err` says why this machine cannot.
    pub(crate) fn limit(&self, number: usize, rate: &str) -> Result<(), String> {
        let space = self.namespace(number);
        ip(&format!("netns exec {space} tc qdisc add dev eth0 root tbf rate {rate} burst 64kb latency 50ms"))
    }

    fn host_of(&self, number: usize) -> String {
        self.host(u8::try_from(number + 1).expect("checked at the start"))
    }

    fn host(&self, last: u8) -> String {
        format!("10.213.{}.{last}", self.subnet)
    }

    /// The namespace of the bridge.
    fn hub(&self) -> String {
        format!("evk{}nhub", self.subnet)
    }

    /// What the test itself reaches the bridge by.
    fn link(&self) -> String {
        format!("evk{}own", self.subnet)
    }

    /// Removes whatever has a name of this subnet, and ends what still runs in its namespaces.
    fn remove(&self) {
        let spaces = run("ip", &["netns", "list"], "").unwrap_or_default();
        let own = format!("evk{}n", self.subnet);
        let names = spaces.lines().filter_map(|line| line.split(' ').next());
        for space in names.filter(|name| name.starts_with(&own)) {
            for pid in run("ip", &["netns", "pids", space], "").unwrap_or_default().lines() {
                drop(run("kill", &["-9", pid], ""));
            }
            drop(ip(&format!("netns del {space}")));
        }
        drop(ip(&format!("link del {}", self.link())));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A subnet that no other test uses, and the file whose lock says so.
fn free_subnet() -> Result<(u8, File), String> {
    let folder = std::env::temp_dir().join("evenkv-test-networks");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let taken = |subnet: u8| {
        let file = File::create(folder.join(subnet.to_string())).ok()?;
        file.try_lock().ok().map(|()| (subnet, file))
    };
    (0..SUBNETS).find_map(taken).ok_or_else(|| "every subnet is in use by another test".to_owned())
}

fn ip(arguments: &str) -> Result<(), String> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>(), "").map(drop)
}

/// What the program wrote; `Err` says what it had to complain about.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{program} {}: {error}", arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let mut stdin = child.stdin.take().expect("piped");
    // A program that does not read its input has ended, and says why.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
    }
}
