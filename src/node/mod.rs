//! A node without its HTTP: who it is, what it knows and holds, whom it asks.

pub mod ask;
pub mod cluster;
pub mod greeter;
pub mod keys;
pub mod learn;
pub mod membership;
pub mod post;
pub mod promise;
pub mod raft;
pub mod shard_machine;
pub mod state;
