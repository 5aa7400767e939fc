//! What has waited for too long: a worker for a client, a request for a worker, a connection for its end.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::lanes::{LaneId, Work};
use super::server::Server;
use super::sockets;
use super::stuck::{self, Stuck};
use crate::clock::now;

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Of the time in which a request is to be answered, it may wait so many tenths for a worker; what is left is time to refuse it.
const TENTHS_TO_WAIT: u32 = 9;

/// Looks for it until the channel closes.
pub fn run(server: &Arc<Server>, stop: &Receiver<()>) {
    let (mut stuck, mut looked) = (Stuck::default(), now());
    while stop.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        server.contain(|| server.watchdog.end_late_reads());
        server.contain(|| refuse_late(server));
        if now() - looked >= stuck::INTERVAL {
            looked = now();
            server.contain(|| look_for_stuck(server, &mut stuck));
        }
    }
}

/// Refuses requests that have waited for a worker, and could hardly be answered in time any more.
fn refuse_late(server: &Server) {
    let patience = server.controller.node.request_timeout / 10 * TENTHS_TO_WAIT;
    let Some(since) = now().checked_sub(patience) else { return };
    for lane in LaneId::ALL.into_iter().filter(|lane| lane.serves_clients()) {
        for work in server.lanes.take_late(lane, since) {
            server.metrics.shed(lane);
            match work {
                Work::Handle(job) | Work::Write(job, _) => server.refuse(lane, job),
                // A part of the answer is written: no other could be told apart from its rest.
                Work::Finish(rest) => rest.ticket.end_connection(),
            }
        }
    }
    for (gate, lane) in server.gates.iter().zip([LaneId::Client, LaneId::ClientLarge]) {
        for job in gate.take_late(|job| job.arrival.arrived <= since) {
            server.metrics.shed(lane);
            server.refuse(lane, job);
        }
    }
}

/// Counts the connections that are held for good, and warns of many.
fn look_for_stuck(server: &Server, stuck: &mut Stuck) {
    let Some(port) = server.port.get() else { return };
    let closed = sockets::closed_by_client(*port).unwrap_or_default();
    let count = stuck.count(closed, |client| server.connections.is_busy(client));
    server.metrics.stuck.set(i64::try_from(count).unwrap_or(i64::MAX));
    let descriptors = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    if let Some(warning) = stuck.warning(count + server.metrics.abandoned.get(), descriptors) {
        log::warn!("{warning}");
    }
}
