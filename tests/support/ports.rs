//! Ports that no other test uses.
//!
//! They lie below the range from which the system gives ports to outgoing connections: a port of that
//! range can be taken by any client between the moment it is chosen and the moment a node listens on
//! it, and again while a node is restarted. Test processes keep apart by a locked file per port, which
//! the system unlocks when the process ends however it ends.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::process;
use std::sync::{Mutex, PoisonError};

/// Above the default port and those of a local cluster.
const LOWEST: u16 = 14_000;
/// Below the outgoing range of Linux, 32768.
const HIGHEST: u16 = 31_999;

/// The ports of this process; the open file holds the lock. They are never given back: a node that was
/// killed is restarted on the same port.
static HELD: Mutex<Option<HashMap<u16, File>>> = Mutex::new(None);

/// A port on which nobody listens and which no other test gets.
pub(crate) fn free_port() -> u16 {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let held = held.get_or_insert_with(HashMap::new);
    let folder = std::env::temp_dir().join("evenkv-test-ports");
    fs::create_dir_all(&folder).expect("the folder of the port locks");
    let span = u32::from(HIGHEST - LOWEST) + 1;
    let start = process::id().wrapping_mul(257) % span;
    for step in 0..span {
        let offset = u16::try_from((start + step) % span).expect("the span is that of a u16");
        let port = LOWEST + offset;
        if held.contains_key(&port) {
            continue;
        }
        let Ok(lock) = File::create(folder.join(port.to_string())) else { continue };
        if lock.try_lock().is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            held.insert(port, lock);
            return port;
        }
    }
    panic!("no free port from {LOWEST} to {HIGHEST}");
}

/// An address on loopback with a port of its own.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}
