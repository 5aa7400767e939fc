//! Connections of the node to itself that keep tiny_http's pool from forgetting others.
//!
//! The pool starts no thread for a new connection while one thread is waiting, even if several connections were just
//! queued for that one; the others hang until some connection closes. A connection to the own port that closes at
//! once (a kick) either makes the pool start a thread, which then takes a forgotten connection, or goes through the
//! queue behind all of them. So a kick that was served while the number of threads did not rise proves that nobody was
//! left: then the next one follows after a while; otherwise twice as many follow at once.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::clock::{Deadline, now};

/// Time between two kicks while nobody is left waiting.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// The most kicks at one time.
const MOST_AT_ONCE: usize = 128;
/// Kicks that are not served in this time, all together, are taken for some that wait in the queue.
const PATIENCE: Duration = Duration::from_millis(50);

/// Kicks the server that listens on an address.
#[derive(Debug, Clone, Copy)]
pub struct Kicker {
    target: SocketAddr,
}

impl Kicker {
    /// A kicker for a server that listens on this address of the same machine.
    pub fn new(listening: SocketAddr) -> Self {
        let mut target = listening;
        if listening.ip().is_unspecified() {
            match listening {
                SocketAddr::V4(_) => target.set_ip(Ipv4Addr::LOCALHOST.into()),
                SocketAddr::V6(_) => target.set_ip(Ipv6Addr::LOCALHOST.into()),
            }
        }
        Self { target }
    }

    /// Kicks until nobody is left waiting, or as often as is sensible in one go.
    pub fn kick(self) {
        let mut count = 1;
        while !self.kick_at_once(count) && count < MOST_AT_ONCE {
            count *= 2;
        }
    }

    /// Whether all kicks were served and none needed a new thread.
    fn kick_at_once(self, count: usize) -> bool {
        let before = thread_count();
        let kicks: Vec<_> = (0..count).map_while(|_| self.connect()).collect();
        let deadline = Deadline::after(now(), PATIENCE);
        let all = kicks.len() == count;
        let served = kicks.into_iter().all(|kick| is_served(kick, deadline));
        all && served && thread_count() <= before
    }

    fn connect(self) -> Option<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.target, PATIENCE).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        Some(stream)
    }
}

/// A kick was served when the server closed it, too.
fn is_served(mut kick: TcpStream, deadline: Deadline) -> bool {
    let left = deadline.left().max(Duration::from_millis(1));
    kick.set_read_timeout(Some(left)).is_ok() && matches!(kick.read(&mut [0]), Ok(0))
}

/// The number of threads of this process, and a constant: a folder has as many links as it has folders in it.
fn thread_count() -> u64 {
    fs::metadata("/proc/self/task").map_or(0, |folder| folder.nlink())
}
