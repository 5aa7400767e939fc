//! Asking again and again how far a view change is, until it has ended.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde::Deserialize;

use super::super::client::{Answer, Client};
use super::super::failure::Failure;
use super::super::seconds::Seconds;
use super::super::waiting::Waiting;
use super::PATH;
use super::receipt::Receipt;
use crate::clock::{Deadline, now};
use crate::wire::{ChangePhase, PieceShown, WaitsFor};

/// How often it is asked.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Where a change stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Phase {
    /// As this program knows it.
    Known(ChangePhase),
    /// The word of a newer node for something that this program has never heard of.
    Newer(String),
}

impl Phase {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Known(phase) => phase.as_str(),
            Self::Newer(word) => word,
        }
    }

    /// Whether the change goes on; one that nothing is known of is asked about again.
    fn runs(&self) -> bool {
        match self {
            Self::Known(phase) => phase.runs(),
            Self::Newer(_) => true,
        }
    }
}

/// The body of an answer to GET.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Status {
    pub(super) phase: Phase,
    change_id: Option<String>,
    /// Pairs; absent before they are counted.
    pub(super) moved: Option<u64>,
    pub(super) total: Option<u64>,
    pub(super) pairs_per_second: Option<f64>,
    pub(super) remaining_seconds: Option<f64>,
    pub(super) blocked_by: Option<String>,
    /// The piece that is being moved.
    pub(super) piece: Option<PieceShown>,
    /// The order that is not answered yet.
    pub(super) waits_for: Option<WaitsFor>,
    error: Option<String>,
    receipt: Option<Receipt>,
}

impl Status {
    fn id(&self) -> Option<&str> {
        self.change_id.as_deref().or_else(|| self.receipt.as_ref()?.change_id.as_deref())
    }
}

/// How following a change ended.
#[derive(Debug)]
pub(super) enum End {
    /// The change finished.
    Finished(Box<Receipt>),
    /// It ended in another way, which is said here.
    Otherwise(String),
    /// The person at the terminal does not want to wait; the change goes on.
    Interrupted,
}

/// What following a change came to.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) end: End,
    /// What the node has answered last; nothing where that was interrupted.
    pub(super) answer: Option<Answer>,
}

/// What is told of a change while it runs.
pub(super) trait Watcher {
    /// How far it is.
    fn show(&mut self, status: &Status);
    /// Anything else, in a line.
    fn say(&mut self, text: &str);
    /// Says that the node is waited for, where that takes long, until what this returns is dropped.
    fn wait(&self, client: &Client) -> Option<Waiting>;
}

/// Follows the named change, or else whichever runs, until it ends or there is a message in `interrupts`. A node that does not answer
/// within the client's time-out, or cannot say for so long how far the change is, is taken for gone.
pub(super) fn follow(
    client: &Client,
    change: Option<&str>,
    interrupts: &Receiver<()>,
    watcher: &mut impl Watcher,
) -> Result<Followed, Failure> {
    let patience = client.timeout();
    let mut followed = change.map(str::to_owned);
    let mut deadline = Deadline::after(now(), patience);
    let mut was_silent = false;
    loop {
        let asked = {
            let _waiting = watcher.wait(client);
            asked(client)
        };
        match asked {
            Ok((status, answer)) if followed.is_none() || status.id() == followed.as_deref() => {
                if !status.phase.runs() {
                    return Ok(Followed { end: ended(status), answer: Some(answer) });
                }
                followed = status.id().map(str::to_owned);
                watcher.show(&status);
                deadline = Deadline::after(now(), patience);
                was_silent = false;
            }
            // It may not have heard of ours yet.
            Ok((status, answer)) if deadline.is_over() => {
                let end = End::Otherwise(unknown(followed, &status));
                return Ok(Followed { end, answer: Some(answer) });
            }
            Ok(_) => {}
            Err(failure) if deadline.is_over() || !failure.is_passing() => return Err(failure),
            Err(failure) => {
                if !was_silent {
                    watcher.say(&format!("{failure}; asking again for {}", Seconds(patience)));
                }
                was_silent = true;
            }
        }
        if let Ok(()) | Err(RecvTimeoutError::Disconnected) = interrupts.recv_timeout(ASK_AGAIN) {
            return Ok(Followed { end: End::Interrupted, answer: None });
        }
    }
}

fn asked(client: &Client) -> Result<(Status, Answer), Failure> {
    let answer = client.get(PATH)?;
    Ok((answer.parse()?, answer))
}

fn ended(status: Status) -> End {
    let named = status.id().map(|id| format!(" {id}")).unwrap_or_default();
    match (status.phase, status.receipt) {
        (Phase::Known(ChangePhase::Finished), Some(receipt)) => End::Finished(Box::new(receipt)),
        (Phase::Known(ChangePhase::Finished), None) => {
            End::Otherwise(format!("the view change{named} is finished; no receipt is left"))
        }
        (Phase::Known(ChangePhase::None), _) => End::Otherwise("there has been no view change".to_owned()),
        (phase, _) => {
            let reason = status.error.map(|error| format!(": {error}")).unwrap_or_default();
            End::Otherwise(format!("the view change{named} is {}{reason}", phase.as_str()))
        }
    }
}

/// What is said when the node goes on telling of another change than the one that was asked for.
fn unknown(followed: Option<String>, status: &Status) -> String {
    let followed = followed.unwrap_or_default();
    match status.id() {
        Some(other) => format!(
            "the node tells no more of the view change {followed}, only of {other}, which is {}",
            status.phase.as_str()
        ),
        None => format!("the node does not know the view change {followed}"),
    }
}
