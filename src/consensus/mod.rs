//! Agreement within groups of replicas, by the `raft` crate, whose types stop here.
//!
//! [`Driver`] owns all groups that a node takes part in. It has no thread, no socket and no clock: its
//! owner ticks it, steps it with the envelopes that came in, hands it proposals and reads, and takes away
//! the envelopes to be sent and the answers to be given. Nothing here knows how envelopes travel.

mod ahead;
mod codec;
mod driver;
mod envelope;
mod gate;
mod group;
mod keep;
mod log_store;
mod machine;
mod members;
mod membership;
mod proposals;
mod reads;
mod replica_reads;
mod settings;
mod staging;
mod status;
mod transfer;

#[cfg(test)]
mod cost;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod traps;

pub use driver::Driver;
pub use envelope::{Delivery, Envelope, Lane};
pub use keep::{Resumed, SnapshotJob, Written};
pub use machine::{Answer, Command, Pieces, Refusal, StateMachine};
pub use members::{Change, Members};
pub use settings::Settings;
pub use status::{Role, Status};
