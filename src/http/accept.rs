//! The listening socket, and the accept loops on it.
//!
//! tiny_http's accept loop ends for good at its first error (no descriptor left, a timeout after the process was
//! stopped), or panics where a socket cannot be duplicated or a thread not be started. The requests of the connections
//! it has accepted still arrive, and only at its own `Server`. So there are generations: when a loop has ended, a new
//! `Server` is built on a duplicate of the same socket, which never closes in between, and the old one is listened to
//! until its connections are gone.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::answer::refresh_date;
use super::descriptors::Shortage;
use super::dispatch::Dispatcher;
use super::generation::Generation;
use super::kicker::{INTERVAL, Kicker};
use super::preface;
use crate::clock::now;
use crate::{logging, threads};

/// Connections that the kernel may hold while they wait to be accepted.
const BACKLOG: i32 = 4096;
/// A worker that writes a small answer waits no longer than this for a client that does not read; see `answer`.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// A client whose machine acknowledges nothing for this long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// An idle connection is asked after this time whether its client is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// A new accept loop starts only when so many descriptors are free: it would end at once otherwise.
const HEADROOM: usize = 16;
/// How soon it is looked again whether they are.
const RETRY: Duration = Duration::from_millis(5);
/// How often it is looked which of the connections that were cut off are closed.
const SWEEP: Duration = Duration::from_millis(500);

/// Opens the listening socket. What is set on it, the accepted connections inherit.
///
/// # Errors
/// When the address is taken, or not this machine's.
pub fn listen(address: SocketAddr, idle_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_read_timeout(Some(idle_timeout))?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    if let Err(error) = preface::keep_away(&socket) {
        log::info!(
            "clients of HTTP/2 cannot be kept away ({error}): each that connects costs a thread and two descriptors until this process ends, see evenkv_stuck_connections"
        );
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The thread that kicks, and replaces accept loops that ended.
pub struct Acceptor {
    dispatcher: Arc<Dispatcher>,
    listener: TcpListener,
    generations: Vec<Watched>,
    ended: (Sender<()>, Receiver<()>),
    started: u64,
    idle_timeout: Duration,
}

/// A generation, and since when it has had nothing to do.
struct Watched {
    generation: Arc<Generation>,
    requests: u64,
    quiet_since: std::time::Instant,
}

/// How many holders a generation has when none of its requests is in progress: the list and its thread.
const IDLE_HOLDERS: usize = 2;

impl Acceptor {
    /// Starts the first accept loop.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left to give.
    pub fn start(
        dispatcher: &Arc<Dispatcher>,
        listener: TcpListener,
        idle_timeout: Duration,
    ) -> io::Result<Self> {
        let ended = bounded(1);
        watch_panics(ended.0.clone());
        let mut acceptor = Self {
            dispatcher: Arc::clone(dispatcher),
            listener,
            generations: Vec::new(),
            ended,
            started: 0,
            idle_timeout,
        };
        refresh_date();
        acceptor.start_generation()?;
        Ok(acceptor)
    }

    /// Kicks and watches until the channel closes.
    ///
    /// # Errors
    /// When the own address is not known.
    pub fn run(mut self, stop: &Receiver<()>) -> io::Result<()> {
        let kicker = Kicker::new(self.listener.local_addr()?);
        let mut has_ended = false;
        let mut swept = now();
        while stop.recv_timeout(if has_ended { RETRY } else { INTERVAL })
            == Err(crossbeam_channel::RecvTimeoutError::Timeout)
        {
            refresh_date();
            let looks_for_closed = now() - swept >= SWEEP;
            if looks_for_closed {
                swept = now();
            }
            self.dispatcher.contain(|| self.dispatcher.settle(looks_for_closed, self.idle_timeout * 2));
            has_ended |= self.ended.1.try_recv().is_ok();
            if has_ended && self.dispatcher.node.is_leaving() {
                // The port was closed on purpose.
                return Ok(());
            }
            // While descriptors are scarce this is looked at again and again; meanwhile connections wait in the kernel.
            if has_ended && has_headroom() {
                has_ended = self.start_generation().is_err();
                self.dispatcher.metrics.accept_loops.inc();
            } else if has_ended {
                SHORTAGE.say();
            }
            self.retire();
            if !has_ended {
                kicker.kick(|| self.ended.1.is_empty());
                has_ended = self.ended.1.try_recv().is_ok();
            }
        }
        Ok(())
    }

    fn start_generation(&mut self) -> io::Result<()> {
        let generation = Arc::new(Generation::start(self.listener.try_clone()?)?);
        self.started += 1;
        let (own, dispatcher) = (Arc::clone(&generation), Arc::clone(&self.dispatcher));
        let ended = self.ended.0.clone();
        let name = if self.started == 1 {
            "http-listen".to_owned()
        } else {
            format!("http-listen-{}", self.started)
        };
        threads::spawn(name, move || hand_on(&own, &dispatcher, &ended))?;
        self.generations.push(Watched { generation, requests: 0, quiet_since: now() });
        if self.started > 1 {
            log::warn!("the accept loop had ended, number {} took its place", self.started);
        }
        Ok(())
    }

    /// Lets go of old generations when none of their connections can be left: an idle connection is closed after the idle
    /// timeout, so when nothing has come and nothing has been in progress for twice that long, there is none.
    fn retire(&mut self) {
        let Some(newest) = self.generations.len().checked_sub(1) else { return };
        let patience = self.idle_timeout * 2;
        for watched in &mut self.generations[..newest] {
            let requests = watched.generation.requests();
            if requests != watched.requests || Arc::strong_count(&watched.generation) > IDLE_HOLDERS {
                watched.requests = requests;
                watched.quiet_since = now();
            }
        }
        let mut index = 0;
        self.generations.retain(|watched| {
            index += 1;
            let keep = index > newest || now() - watched.quiet_since < patience;
            if !keep {
                watched.generation.retire();
            }
            keep
        });
    }
}

/// Hands on the requests of a generation, until it is retired.
fn hand_on(generation: &Arc<Generation>, dispatcher: &Arc<Dispatcher>, ended: &Sender<()>) {
    while let Some(next) = generation.next_request() {
        match next {
            // Whatever goes wrong with one request, the next ones have to be listened to.
            Ok(request) => dispatcher.contain(|| dispatcher.take(request, generation)),
            Err(error) => {
                if dispatcher.node.is_leaving() {
                    log::debug!("the port is closed: {error}");
                } else {
                    log::warn!("no connection could be taken: {error}");
                    SHORTAGE.note(&error);
                }
                let _ = ended.try_send(());
            }
        }
    }
}

fn has_headroom() -> bool {
    let open: Vec<_> = (0..HEADROOM).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
    open.len() == HEADROOM
}

/// What is said of descriptors; the panic hook is one for the process.
static SHORTAGE: Shortage = Shortage::unsaid();

/// Where the panic hook reports an accept loop that died.
static ENDED: OnceLock<Mutex<Vec<Sender<()>>>> = OnceLock::new();

/// Logs panics by the thread's name, and notices the two by which an accept loop dies: then nothing else tells.
fn watch_panics(ended: Sender<()>) {
    let watchers = ENDED.get_or_init(|| {
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.payload_as_str().unwrap_or("");
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            if place.contains("refined_tcp_stream.rs") || text.contains("failed to spawn thread") {
                for ended in ENDED.get().into_iter().flat_map(|watchers| watchers.lock().clone()) {
                    let _ = ended.try_send(());
                }
                log::debug!("an accept loop has ended: {text} at {place}");
                SHORTAGE.note_panic(text);
            } else if text == "capacity overflow" {
                // A request declared a body longer than the address space; see `linger`.
                log::debug!("{text} at {place}");
            } else {
                logging::say_panic(panic);
            }
        }));
        Mutex::default()
    });
    watchers.lock().push(ended);
}
