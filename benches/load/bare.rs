//! The server to compare with: `tiny_http` and nothing else, with the two things that no server on it can do without,
//! the kicker (or connections starve) and `TCP_NODELAY`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use evenkv::http::accept::listen;
use evenkv::http::kicker::{INTERVAL, Kicker};
use evenkv::threads;
use tiny_http::{Method, Response, Server, StatusCode};

/// As long as a node's; nobody is idle here.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// What the bare server answers.
#[derive(Args)]
pub(crate) struct Bare {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Length of the answer to GET in bytes.
    pub(crate) get_length: usize,
    /// Length of the answer to PUT in bytes.
    pub(crate) put_length: usize,
    /// Threads that take requests and answer them.
    pub(crate) workers: usize,
}

impl Bare {
    /// Serves until the process is ended.
    ///
    /// # Errors
    /// When the address is taken or the system has no thread left to give.
    pub(crate) fn serve(&self) -> io::Result<()> {
        let listener = listen(self.listen, IDLE_TIMEOUT)?;
        let kicker = Kicker::new(listener.local_addr()?);
        let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
        let answers = Arc::new(["g".repeat(self.get_length), "p".repeat(self.put_length)]);
        for number in 1..=self.workers {
            let (server, answers) = (Arc::clone(&server), Arc::clone(&answers));
            threads::spawn(format!("bare-{number}"), move || answer_all(&server, &answers))?;
        }
        let pause = crossbeam_channel::tick(INTERVAL);
        for _ in pause {
            kicker.kick(|| true);
        }
        Ok(())
    }
}

fn answer_all(server: &Server, answers: &[String; 2]) {
    while let Ok(mut request) = server.recv() {
        let is_put = *request.method() == Method::Put;
        if is_put {
            let mut body = Vec::new();
            if request.as_reader().read_to_end(&mut body).is_err() {
                continue;
            }
        }
        let answer = answers[usize::from(is_put)].as_bytes();
        let response = Response::new(StatusCode(200), Vec::new(), answer, Some(answer.len()), None);
        // The only error is a client that went away.
        let _ = request.respond(response);
    }
}
