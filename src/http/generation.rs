//! One accept loop of tiny_http, and the connections that it has accepted.

use std::io;
use std::net::TcpListener;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tiny_http::{Request, Server};

/// An accept loop and its connections, for as long as anybody holds it.
pub struct Generation {
    server: Server,
    retired: AtomicBool,
    /// Requests that came through it so far.
    requests: AtomicU64,
}

impl Generation {
    /// Starts an accept loop on a socket.
    ///
    /// # Errors
    /// When the system has no thread left to give.
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        let built = catch_unwind(|| Server::from_listener(listener, None));
        let built = built.map_err(|_| io::Error::other("no thread for the accept loop"))?;
        Ok(Self {
            server: built.map_err(|error| io::Error::other(error.to_string()))?,
            retired: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        })
    }

    /// Waits for the next request, until it is retired. An error says that the accept loop has ended; requests of its connections may still come.
    pub fn next_request(&self) -> Option<io::Result<Request>> {
        while !self.retired.load(Ordering::Acquire) {
            match self.server.recv() {
                Ok(request) => {
                    self.requests.fetch_add(1, Ordering::Relaxed);
                    return Some(Ok(request));
                }
                Err(error) if !self.retired.load(Ordering::Acquire) => return Some(Err(error)),
                Err(_) => {}
            }
        }
        None
    }

    /// How many requests came through it so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ends the wait for the next request.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.server.unblock();
    }
}
