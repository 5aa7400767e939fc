//! `watch`: what is done to keys, as it is done.
//!
//! Each connection has a thread, which hands on one event after the other. The calling thread prints them, and so knows from which cursor to go on where a
//! connection ends, or where the person at the terminal has seen enough.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::address::{Address, NodeArgs};
use super::answer::{AnswerArgs, Form};
use super::client::Answer;
use super::failure::Failure;
use super::interrupts::interrupts;
use super::key::encoded_prefix;
use super::output::print_more;
use super::token;
use super::waiting::Waiting;
use super::watch_line::Event;
use crate::clock::{Deadline, now};
use crate::error::Applied;
use crate::peers::events::{self, Events, Opened};
use crate::threads;
use crate::wire::{LAST_EVENT_ID, RESYNC};

/// After a connection has ended the next node is asked at once, and then again after this time,
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// which doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

const HELP: &str = "\
A change is printed as a line: put, delete or expire, a tab, and the key. With
--values there are a tab and the value behind it: JSON, or a data: URL of what
is not. With --json a line is an object: `event`, the cursor as `id`, and what
the node tells. A line `resync` says that changes were missed: list or read
anew what you want to know; what follows is from then on.

Where a connection ends, or a node stops or is overloaded, it goes on with the
last cursor, without an end, and says so; with several nodes at another one.
Only a beginning that fails is given up.

Ctrl-C ends it, and then it says with which cursor to go on. What was printed is
not printed again.

Examples:
  evenkv watch user/
  evenkv watch --values --through node1,node2,node3 --since AasT..

Exit codes: 0 it was ended by Ctrl-C, or nobody reads any more, 2 wrong usage, 3 it could
not begin, or was refused.";

/// What `watch` is told.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct WatchArgs {
    /// Only the keys that begin with this, of any bytes; write `--` before one that begins with a dash
    prefix: Option<OsString>,
    /// Print the values that are put, too
    #[arg(long)]
    values: bool,
    /// Go on behind this cursor: one that `watch` has said, the `id` of an event, or the `watch` of a listing
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    since: Option<String>,
    /// Watch through one of these nodes, and where it ends that through the next, in place of --node
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = Address::parse)]
    through: Vec<Address>,
    #[command(flatten)]
    answer: AnswerArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What stands in a header; the node knows the rest.
fn cursor(text: &str) -> Result<String, String> {
    let is_right = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_right
        .then(|| text.to_owned())
        .ok_or_else(|| "allowed is a cursor as it was told: letters, digits, - and _".to_owned())
}

/// What comes of a connection, one after the other. It has ended where nothing comes any more.
enum Told {
    /// The node tells from now on.
    Begun,
    Event(Event),
    /// It tells nothing more.
    Over(Failure),
    /// It was refused, with this answer.
    Refused(Answer),
}

/// How a connection ended.
enum End {
    /// The person at the terminal has seen enough.
    Interrupted,
    /// Nobody reads what is printed.
    Unread,
    /// Whether it had begun, and why it has ended.
    Over(bool, Failure),
}

/// Somebody who watches, at one node after the other.
struct Watching {
    form: Form,
    timeout: Duration,
    target: String,
    interrupts: Receiver<()>,
    /// How far was printed.
    cursor: Option<String>,
    /// An end was said, and that it goes on was not.
    is_cut: bool,
}

/// Prints what is done, until that is enough.
pub(super) fn watch(args: &WatchArgs) -> Result<bool, Failure> {
    let prefix = encoded_prefix(args.prefix.as_deref());
    let nodes = if args.through.is_empty() { vec![args.node.node.clone()] } else { args.through.clone() };
    let watching = Watching {
        form: args.answer.form(),
        timeout: args.answer.timeout,
        target: format!("/v1/watch?prefix={prefix}&values={}", args.values),
        interrupts: interrupts(),
        cursor: args.since.clone(),
        is_cut: false,
    };
    watching.at(&nodes)
}

impl Watching {
    fn at(mut self, nodes: &[Address]) -> Result<bool, Failure> {
        let deadline = Deadline::after(now(), self.timeout);
        let (mut has_begun, mut pause) = (false, Duration::ZERO);
        // A beginning is given up when each of them has been asked.
        for (tried, node) in nodes.iter().cycle().enumerate() {
            let failure = match self.once(node)? {
                End::Unread => break,
                End::Interrupted => {
                    self.say_cursor();
                    break;
                }
                End::Over(begun, failure) => {
                    if begun {
                        (has_begun, pause) = (true, Duration::ZERO);
                    }
                    failure
                }
            };
            let is_hopeless = deadline.is_over() || matches!(failure, Failure::Unreachable { .. });
            let is_given_up = !has_begun && is_hopeless && tried + 1 >= nodes.len();
            if is_given_up || !failure.is_passing() {
                self.say_cursor();
                return Err(failure);
            }
            if has_begun && !self.is_cut {
                self.is_cut = true;
                eprintln!("evenkv: {failure}; going on");
            }
            if self.interrupts.recv_timeout(pause).is_ok() {
                self.say_cursor();
                break;
            }
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        }
        Ok(true)
    }

    /// Prints what one node tells.
    fn once(&mut self, node: &Address) -> Result<End, Failure> {
        let told = connect(node, &self.target, self.cursor.clone(), self.timeout)?;
        let (mut has_begun, mut waiting) = (false, Some(Waiting::begin(node, self.timeout)));
        loop {
            let message = select! {
                recv(told) -> message => message,
                recv(self.interrupts) -> _ => return Ok(End::Interrupted),
            };
            drop(waiting.take());
            match message {
                Ok(Told::Begun) => {
                    has_begun = true;
                    if std::mem::take(&mut self.is_cut) {
                        eprintln!("evenkv: watching again, at {node}");
                    }
                }
                Ok(Told::Event(event)) => {
                    if !self.print(event)? {
                        return Ok(End::Unread);
                    }
                }
                Ok(Told::Over(failure)) => return Ok(End::Over(has_begun, failure)),
                Ok(Told::Refused(answer)) => {
                    let failure = answer.refusal();
                    if !failure.is_passing() {
                        self.form.show(&answer)?;
                    }
                    return Ok(End::Over(has_begun, failure));
                }
                Err(_) => return Ok(End::Over(has_begun, ended(node, "nothing comes any more"))),
            }
        }
    }

    /// Prints an event, if it is one; whether somebody still reads.
    fn print(&mut self, event: Event) -> Result<bool, Failure> {
        if let Some(line) = event.line(self.form)? {
            if !print_more(&line)? {
                return Ok(false);
            }
            if event.name == RESYNC {
                eprintln!(
                    "evenkv: changes were missed: list or read anew what you want to know; what follows is from now on"
                );
            }
        }
        if event.id.is_some() {
            self.cursor = event.id;
        }
        Ok(true)
    }

    fn say_cursor(&self) {
        if let Some(cursor) = &self.cursor {
            eprintln!("evenkv: go on with --since {cursor}");
        }
    }
}

/// Connects to a node, and reads what it tells, on a thread of its own, until nobody takes that any more.
fn connect(
    node: &Address,
    target: &str,
    cursor: Option<String>,
    timeout: Duration,
) -> Result<Receiver<Told>, Failure> {
    let (teller, told) = bounded(0);
    let (node, target) = (node.clone(), target.to_owned());
    let tell = move || {
        let last = match open(&node, &target, cursor.as_deref(), timeout) {
            Ok(Opened::Events(events)) => Told::Over(read(&node, events, &teller)),
            Ok(Opened::Refused(status, headers, body)) => {
                Told::Refused(Answer::from_parts(status, &headers, body))
            }
            Err(failure) => Told::Over(failure),
        };
        let _ = teller.send(last);
    };
    threads::spawn("watch", tell)
        .map_err(|error| Failure::Local(format!("no thread can be started: {error}")))?;
    Ok(told)
}

fn open(node: &Address, target: &str, cursor: Option<&str>, timeout: Duration) -> Result<Opened, Failure> {
    let address = node.to_string().parse().map_err(|error| Failure::Usage(format!("{error}")))?;
    let mut headers = vec![("Accept", "text/event-stream")];
    headers.extend(cursor.map(|cursor| (LAST_EVENT_ID, cursor)));
    let authorization = token::shown().map(|token| format!("Bearer {token}"));
    headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
    events::open(&address, target, &headers, timeout).map_err(|error| match error.kind() {
        // A connection that is not taken ends otherwise.
        io::ErrorKind::WouldBlock => Failure::Late { node: node.clone(), timeout, applied: Applied::No },
        _ => Failure::Unreachable { node: node.clone(), reason: error.to_string() },
    })
}

/// Why nothing more comes.
fn read(node: &Address, mut events: Events, teller: &Sender<Told>) -> Failure {
    let mut told = Told::Begun;
    while teller.send(told).is_ok() {
        told = match events.read() {
            Ok(bytes) => Told::Event(Event::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return ended(node, "the connection has ended");
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return ended(node, "it has told nothing for too long");
            }
            Err(error) => return ended(node, &error.to_string()),
        };
    }
    ended(node, "nobody reads it")
}

fn ended(node: &Address, reason: &str) -> Failure {
    Failure::Unreachable { node: node.clone(), reason: reason.to_owned() }
}
