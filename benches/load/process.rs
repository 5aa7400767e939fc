//! The servers under load as processes: started, found ready, measured by `/proc`, and ended.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evenkv::clock::{Deadline, now};

/// A server that does not answer in this time after its start is broken.
const START: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// One server process; it is ended when this is dropped.
pub(crate) struct Process {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts a program in an environment of its own.
    ///
    /// # Errors
    /// When there is no such program.
    pub(crate) fn start(program: &str, address: SocketAddr, arguments: &[String]) -> io::Result<Self> {
        Self::spawn(Command::new(program).args(arguments).env_clear().env("RUST_LOG", "warn"), address)
    }

    /// Starts what the command says, in the environment that it says.
    ///
    /// # Errors
    /// When there is no such program.
    pub(crate) fn spawn(command: &mut Command, address: SocketAddr) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self { child, address })
    }

    /// Starts a node with these flags beside its address.
    ///
    /// # Errors
    /// When the program was not built.
    pub(crate) fn node(address: SocketAddr, flags: &[String]) -> io::Result<Self> {
        let own = ["--address".to_owned(), address.to_string()];
        Self::start(env!("CARGO_BIN_EXE_evenkv"), address, &[&own, flags].concat())
    }

    /// Waits until a GET of the path is answered 200.
    ///
    /// # Errors
    /// When that does not happen in time, or the process has ended.
    pub(crate) fn wait_until_ready(&mut self, path: &str) -> io::Result<()> {
        let url = format!("http://{}{path}", self.address);
        self.wait_until(&url, || ureq::get(&url).call().is_ok())
    }

    /// Waits until the server is as it has to be, which `what` names.
    ///
    /// # Errors
    /// When that does not happen in time, or the process has ended.
    pub(crate) fn wait_until(&mut self, what: &str, mut is_so: impl FnMut() -> bool) -> io::Result<()> {
        let deadline = Deadline::after(now(), START);
        let asks = crossbeam_channel::tick(ASK_AGAIN);
        while !is_so() {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("the server on {} has ended: {status}", self.address)));
            }
            if deadline.is_over() {
                return Err(io::Error::other(format!("{what}: not within {START:?}")));
            }
            let _ = asks.recv();
        }
        Ok(())
    }

    /// CPU time that the process has used so far, in user mode and in the kernel.
    ///
    /// # Errors
    /// When the process has ended.
    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is the name, in brackets, which may hold anything; utime and stime are the 14th and 15th.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().map_err(io::Error::other))
            .sum::<io::Result<_>>()?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When the process has ended.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| io::Error::other("no VmRSS in status"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing is stored that an orderly end would save, and it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Addresses on the loopback interface that are free now.
///
/// # Errors
/// When the system has no port left to give.
pub(crate) fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<io::Result<_>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}
