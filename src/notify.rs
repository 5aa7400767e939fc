//! What the service manager is told: one datagram each to the socket that `NOTIFY_SOCKET` names, as `sd_notify(3)` has it. Without the variable nobody is told anything.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock;

/// A manager that takes nothing for this long is not told.
const SENDING: Duration = Duration::from_secs(1);
/// The longest status, in bytes; more would not be shown on a line anyway.
const LONGEST_STATUS: usize = 512;

/// Whoever supervises the process, if anybody does.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// The status that was told last.
    told: Mutex<String>,
}

impl Supervisor {
    /// The one at a socket: a path, or a name of the abstract name space of Linux that begins with `@`.
    ///
    /// # Errors
    /// When it cannot be reached there.
    pub fn at(socket: &OsStr) -> io::Result<Self> {
        let address = match socket.as_bytes() {
            #[cfg(target_os = "linux")]
            [b'@', name @ ..] => {
                <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?
            }
            [b'/', ..] => SocketAddr::from_pathname(socket)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(SENDING))?;
        Ok(Self { socket: Some(socket), told: Mutex::default() })
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// The process has started, or has read its tokens again: it listens. It may still wait for others, which its status says.
    pub fn ready(&self, status: &str) {
        self.tell("READY=1", Some(status));
    }

    /// What the process does, in words. It is told when it has changed.
    pub fn status(&self, status: &str) {
        if *self.told.lock() != line(status) {
            self.tell("", Some(status));
        }
    }

    /// The process begins to read something again; [`ready`](Self::ready) says that it has.
    pub fn reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_us()), None);
    }

    /// The process begins to end.
    pub fn stopping(&self, status: &str) {
        self.tell("STOPPING=1", Some(status));
    }

    fn tell(&self, what: &str, status: Option<&str>) {
        let Some(socket) = &self.socket else { return };
        let mut message = what.to_owned();
        let status = status.map(line);
        if let Some(status) = &status {
            message.extend(["\nSTATUS=", status]);
        }
        match socket.send(message.trim_start().as_bytes()) {
            Ok(_) => *self.told.lock() = status.unwrap_or_default(),
            Err(error) => log::warn!("the service manager (NOTIFY_SOCKET) is not told {what:?}: {error}"),
        }
    }
}

/// A status as one line that is not too long.
fn line(status: &str) -> String {
    let mut line = status.replace(['\n', '\r'], " ");
    line.truncate(line.floor_char_boundary(LONGEST_STATUS));
    line
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;

    use super::*;

    /// The manager's end, and one that tells it.
    fn pair(name: &OsStr, bound: &UnixDatagram) -> (impl Fn() -> String, Supervisor) {
        let bound = bound.try_clone().unwrap();
        bound.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let heard = move || {
            let mut bytes = [0; 4096];
            let length = bound.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        (heard, Supervisor::at(name).unwrap())
    }

    fn says_all(name: &OsStr, bound: &UnixDatagram) {
        let (heard, supervisor) = pair(name, bound);
        supervisor.ready("waits\nfor a cluster");
        assert_eq!(heard(), "READY=1\nSTATUS=waits for a cluster");
        supervisor.status("waits for a cluster");
        supervisor.status("serves");
        assert_eq!(heard(), "STATUS=serves", "what has not changed is not told");
        supervisor.reloading();
        let reloading = heard();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(since.parse::<u64>().unwrap() > 0, "{reloading}");
        supervisor.stopping(&"ü".repeat(LONGEST_STATUS));
        assert_eq!(heard(), format!("STOPPING=1\nSTATUS={}", "ü".repeat(LONGEST_STATUS / 2)));
    }

    #[test]
    fn a_manager_is_told_at_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let bound = UnixDatagram::bind(&path).unwrap();
        says_all(path.as_os_str(), &bound);
    }

    #[test]
    fn a_manager_is_told_at_an_abstract_name() {
        let name = format!("evenkv-test-{}", std::process::id());
        let bound = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        says_all(OsStr::new(&format!("@{name}")), &bound);
    }

    #[test]
    fn nobody_is_told_where_nobody_listens_and_that_is_said() {
        for name in ["", "relative", "vsock:2:1234", "/nowhere/notify"] {
            assert!(Supervisor::at(OsStr::new(name)).is_err(), "{name:?}");
        }
        let nobody = Supervisor::default();
        nobody.ready("serves");
        assert!(!nobody.is_there());
    }
}
