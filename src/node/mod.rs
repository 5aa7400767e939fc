//! A node without its HTTP: who it is, what it knows and holds, whom it asks.

pub mod ask;
pub mod audits;
pub mod batch;
mod batch_calls;
mod batch_parts;
pub mod calls;
pub mod cluster;
pub mod discovery;
pub mod duplicates;
pub mod export;
pub mod forwarded;
pub mod group_ops;
pub mod host;
mod inbox;
mod kept;
pub mod keys;
mod leaders;
pub mod learn;
mod limits;
pub mod listing;
pub mod membership;
pub mod meta_group;
pub mod passing;
pub mod problems;
pub mod raft;
pub mod rate;
mod replicas;
mod report;
pub mod reservation;
mod returning;
mod room;
pub mod rounds;
pub mod shard_machine;
pub mod stale;
pub mod state;
mod strangers;
pub mod timekeeping;
pub mod transport;
pub mod troubles;
mod under_way;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
