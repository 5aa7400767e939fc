//! What has waited for too long: a worker for a client, a request for a worker, a connection for its end.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::dispatch::{Dispatcher, Work};
use super::lane_id::LaneId;
use super::sockets::{self, Pace};
use super::stuck::{self, Stuck};
use crate::clock::now;
use crate::node::rate;

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Of the time in which a request is to be answered, it may wait so many tenths for a worker; what is left is time to refuse it.
const TENTHS_TO_WAIT: u32 = 9;

/// Looks for it until the channel closes.
pub fn run(dispatcher: &Dispatcher, stop: &Receiver<()>) {
    let (mut stuck, mut pace, mut counted) = (Stuck::default(), Pace::default(), now());
    while stop.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        dispatcher.contain(|| dispatcher.watchdog.end_late_reads());
        dispatcher.contain(|| refuse_late(dispatcher));
        if now() - counted >= rate::INTERVAL {
            counted = now();
            dispatcher.node.note_rates(counted, dispatcher.metrics.answered_to_clients());
        }
        pace.look(stuck::INTERVAL, || dispatcher.contain(|| look_for_stuck(dispatcher, &mut stuck)));
    }
}

/// Refuses requests that have waited for a worker, and could hardly be answered in time any more.
fn refuse_late(dispatcher: &Dispatcher) {
    let patience = dispatcher.node.request_timeout / 10 * TENTHS_TO_WAIT;
    let Some(since) = now().checked_sub(patience) else { return };
    let is_late = |work: &Work| work.may_be_late().is_some_and(|waiting| waiting <= since);
    for lane in LaneId::ALL.into_iter().filter(|lane| lane.serves_clients()) {
        for work in dispatcher.lanes.take_late(lane, is_late) {
            dispatcher.give_up(lane, work);
        }
    }
    for (gate, lane) in dispatcher.gates.iter().zip([LaneId::Client, LaneId::ClientLarge]) {
        for work in gate.take_late(is_late) {
            dispatcher.give_up(lane, work);
        }
    }
}

/// Counts the connections that are held for good, and warns of many.
fn look_for_stuck(dispatcher: &Dispatcher, stuck: &mut Stuck) {
    let closed = sockets::closed_by_client(dispatcher.port).unwrap_or_default();
    let count = stuck.count(closed, |client| dispatcher.connections.is_busy(client));
    dispatcher.metrics.stuck.set(i64::try_from(count).unwrap_or(i64::MAX));
    let descriptors = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    if let Some(warning) = stuck.warning(count + dispatcher.metrics.abandoned.get(), descriptors) {
        log::warn!("{warning}");
    }
}
