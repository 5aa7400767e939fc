//! The servers under load as processes: started, found ready, measured by `/proc`, and ended.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evenkv::clock::{Deadline, now};

use crate::client::Connection;
use crate::system::Request;

/// A server that does not answer in this time after its start is broken.
pub(crate) const START: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long one question may take.
pub(crate) const ONE_ANSWER: Duration = Duration::from_secs(2);
/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// One server process; it is ended when this is dropped.
pub(crate) struct Process {
    command: Command,
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts what the command says, in the environment that it says.
    ///
    /// # Errors
    /// When there is no such program.
    pub(crate) fn spawn(mut command: Command, address: SocketAddr) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self { command, child, address })
    }

    /// Starts a node with these flags beside its address.
    ///
    /// # Errors
    /// When the program was not built.
    pub(crate) fn node(address: SocketAddr, flags: &[String]) -> io::Result<Self> {
        Self::spawn(node_command(address, flags), address)
    }

    /// Ends the process at once, as a crash does. Nobody listens on its port when this returns.
    ///
    /// # Errors
    /// Only those of the system.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts the same anew, after it was killed.
    ///
    /// # Errors
    /// When the program is gone.
    pub(crate) fn start_again(&mut self) -> io::Result<()> {
        self.child = self.command.spawn()?;
        Ok(())
    }

    /// Waits until a GET of the path is answered 200.
    ///
    /// # Errors
    /// When that does not happen in time, or the process has ended.
    pub(crate) fn wait_until_ready(&mut self, path: &str, within: Duration) -> io::Result<()> {
        let (address, request) = (self.address, Request::new("GET", path, ""));
        let is_ready =
            || Connection::open(address, ONE_ANSWER).and_then(|mut server| server.ask(&request)).is_ok();
        self.wait_until(&format!("200 for {path} from {address}"), within, is_ready)
    }

    /// Waits until the server is as it has to be, which `what` names.
    ///
    /// # Errors
    /// When that does not happen in time, or the process has ended.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        within: Duration,
        mut is_so: impl FnMut() -> bool,
    ) -> io::Result<()> {
        wait_for(what, within, || {
            if is_so() {
                return Ok(Some(()));
            }
            match self.child.try_wait()? {
                Some(status) => {
                    Err(io::Error::other(format!("the server on {} has ended: {status}", self.address)))
                }
                None => Ok(None),
            }
        })
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

/// How a node is started with these flags beside its address, in an environment of its own.
pub(crate) fn node_command(address: SocketAddr, flags: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkv"));
    command.args(["--address", &address.to_string()]).args(flags).env_clear().env("RUST_LOG", "warn");
    command
}

/// Whether there is a program of this name to compare with.
pub(crate) fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether there is a file of this name where programs are looked for.
pub(crate) fn is_in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// Asks again and again until there is something, which `what` names.
///
/// # Errors
/// When there is nothing in time, or an error that asking again does not help with.
pub(crate) fn wait_for<T>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<T> {
    let deadline = Deadline::after(now(), within);
    let asks = crossbeam_channel::tick(ASK_AGAIN);
    loop {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        if deadline.is_over() {
            return Err(io::Error::other(format!("{what}: not within {within:?}")));
        }
        let _ = asks.recv();
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
