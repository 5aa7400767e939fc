//! The `evenkv` program: serves, or does one thing with a running node.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use crossbeam_channel::{Receiver, after, bounded, never, tick};
use evenkv::access::Access;
use evenkv::clock::{Deadline, now};
use evenkv::config::{Config, Role, Settings};
use evenkv::disk::{Storage, Stored, SystemFolder};
use evenkv::http::descriptors;
use evenkv::http::server::{Running, Server};
use evenkv::node::state::Node;
use evenkv::notify::Supervisor;
use evenkv::{cli, dice, logging, memory, threads, version};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tikv_jemallocator::Jemalloc;

/// Requests in progress when the node is told to stop have this long to end.
const DRAIN: Duration = Duration::from_secs(7);
/// How often it is looked whether they have.
const DRAIN_CHECK: Duration = Duration::from_millis(20);
/// How often it is looked what the service manager is to be told.
const STATUS_CHECK: Duration = Duration::from_secs(1);

/// Allocates for all of the program; [`memory`] says what it holds.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// A distributed key-value store over plain HTTP.
///
/// Without a subcommand this serves: a single node, a follower of a main node, or a node of a cluster, as the settings
/// below say. Each setting is a flag and an environment variable of the same name; the flag wins.
#[derive(Parser)]
#[command(name = "evenkv", version, long_version = version::FULL, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<cli::Command>,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(command) => cli::run(command, Cli::command),
        None => serve(&cli.settings),
    }
}

fn serve(settings: &Settings) -> ExitCode {
    let given_back = memory::give_back_what_is_freed();
    #[cfg(feature = "failpoints")]
    let _points = fail::FailScenario::setup();
    if let Err(error) = logging::start() {
        eprintln!("evenkv: nothing can be logged: {error}");
        return ExitCode::FAILURE;
    }
    let config = match settings.check() {
        Ok(config) => config,
        Err(error) => {
            logging::say_last(&error);
            return ExitCode::from(2);
        }
    };
    logging::begin(&config.log);
    if let Err(error) = given_back {
        log::warn!("memory that was freed may be kept: {error}");
    }
    match run(&config) {
        Ok(()) => {
            logging::finish();
            ExitCode::SUCCESS
        }
        Err(error) => {
            logging::say_last(&error);
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal says that it is enough.
///
/// # Errors
/// A sentence that says why the node cannot serve.
fn run(config: &Config) -> Result<(), String> {
    let files = rlimit::increase_nofile_limit(u64::MAX);
    // Signals are caught before the first thread that serves is started, so that none is missed.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| format!("signals cannot be caught: {error}"))?;
    let kept = config.data_dir.as_ref().map(|path| open(path, config)).transpose()?;
    let mut running = Server::start(config, kept).map_err(|error| match error.kind() {
        io::ErrorKind::Other => error.to_string(),
        _ => format!("cannot serve on {} (LISTEN): {error}", config.listen),
    })?;
    introduce(config, &running);
    match files {
        Ok(limit) => log::info!("{}", descriptors::allowance(limit)),
        Err(error) => log::warn!("the limit of open files could not be raised: {error}"),
    }
    let (caught, signal) = bounded(1);
    let node = Arc::clone(&running.server.controller.node);
    let supervisor = Arc::new(supervisor());
    let told = Arc::clone(&supervisor);
    let watching = threads::spawn("signals", move || {
        for number in signals.forever() {
            if number == SIGHUP {
                told.reloading();
                read_tokens_again(&node.access);
                told.ready(&status(&node));
            } else {
                let _ = caught.try_send(number);
            }
        }
    });
    watching.map_err(|error| format!("signals cannot be watched: {error}"))?;
    let number = wait_for_end(&running.server.controller.node, &supervisor, &signal);
    log::info!("signal {number}: stopping");
    supervisor.stopping("finishes what was asked");
    drain(&mut running, &signal);
    Ok(())
}

/// Whoever supervises this process, where there is somebody.
fn supervisor() -> Supervisor {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return Supervisor::default();
    };
    Supervisor::at(&socket).unwrap_or_else(|error| {
        log::warn!("the service manager at NOTIFY_SOCKET={} is not told anything: {error}", socket.display());
        Supervisor::default()
    })
}

/// Waits for the signal to end, and tells meanwhile what the node does. It is ready once it listens: it may wait for other nodes for as long as it takes, and must not be ended for that.
fn wait_for_end(node: &Node, supervisor: &Supervisor, signal: &Receiver<i32>) -> i32 {
    supervisor.ready(&status(node));
    let look = if supervisor.is_there() { tick(STATUS_CHECK) } else { never() };
    loop {
        crossbeam_channel::select! {
            recv(signal) -> number => return number.unwrap_or(SIGTERM),
            recv(look) -> _ => supervisor.status(&status(node)),
        }
    }
}

/// What the node does, for who supervises it.
fn status(node: &Node) -> String {
    let reasons = node.unready();
    if reasons.is_empty() { "serves".to_owned() } else { format!("not ready: {}", reasons.join("; ")) }
}

/// The folder of the node, and what is in it.
fn open(path: &Path, config: &Config) -> Result<(Arc<Storage>, Stored), String> {
    let folder = SystemFolder::at(path).map_err(|error| {
        format!(
            "DATA_DIR {} cannot be used ({error}): name a folder that the node may write to",
            path.display()
        )
    })?;
    let (storage, stored) = Storage::open(Arc::new(folder), &config.address, dice::id)?;
    Ok((Arc::new(storage), stored))
}

/// What SIGHUP is for.
fn read_tokens_again(access: &Access) {
    match access.reload() {
        Some(Ok(count)) => log::info!("SIGHUP: {count} tokens were read from AUTH_TOKENS_FILE"),
        Some(Err(error)) => {
            log::error!("SIGHUP: the tokens stay as they were: AUTH_TOKENS_FILE: {error}");
        }
        None => log::info!(
            "SIGHUP is ignored: without AUTH_TOKENS_FILE there is nothing that is read again, and SIGTERM stops the node"
        ),
    }
}

/// Says in the log who this node is.
fn introduce(config: &Config, running: &Running) {
    log::info!(
        "evenkv {} is {}, listening on {}, start {:016x}",
        version::FULL,
        config.address,
        running.listening,
        running.server.controller.node.incarnation
    );
    log::info!("role: {}", describe(&config.role));
    if config.secret.is_none()
        && !matches!(config.role, Role::Follower { .. })
        && !config.listen.ip().is_loopback()
    {
        log::warn!(
            "CLUSTER_SECRET is not set: requests among nodes are taken from loopback and private addresses only"
        );
    }
    log::info!(
        "limits: keys {} bytes, values {} bytes, answers within {} ms",
        config.limits.max_key_length,
        config.limits.max_value_length,
        config.request_timeout.as_millis()
    );
}

/// Waits until no request is in progress, for a while at most; a second signal ends the wait.
fn drain(running: &mut Running, signal: &Receiver<i32>) {
    let deadline = Deadline::after(now(), DRAIN);
    running.begin_to_stop();
    let (over, check) = (after(deadline.left()), tick(DRAIN_CHECK));
    while running.server.busy() > 0 && !deadline.is_over() {
        crossbeam_channel::select! {
            recv(check) -> _ => {}
            recv(over) -> _ => {}
            recv(signal) -> _ => break,
        }
    }
    match running.server.busy() {
        0 => log::info!("stopped: nothing was in progress"),
        count => log::warn!("stopped with {count} requests in progress"),
    }
}

fn describe(role: &Role) -> String {
    match role {
        Role::Single => "single node, main for its followers".to_owned(),
        Role::Follower { main } => format!("follower of {main}"),
        Role::Member { view } => format!("node of a first view of {} nodes", view.nodes().count()),
        Role::Passive { seeds } => format!("passive, looking for a cluster at {} addresses", seeds.len()),
    }
}
