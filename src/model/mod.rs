//! The pure part: keys and hashes, ranges, views, and the map that holds the pairs.
//!
//! Nothing here knows a socket, a file, a clock, a thread, the environment or randomness. The only locks are
//! those of [`store::Store`] and [`shard::Shard`].

pub mod address;
mod balance;
pub mod binary;
pub mod changes;
pub mod condition;
pub mod coverage;
pub mod cursor;
pub mod fit;
pub mod format;
pub mod hash;
mod hex;
pub mod history;
pub mod limits;
mod membership;
pub mod meta;
pub mod ownership;
pub mod pages;
pub mod pair;
pub mod plan;
pub mod range;
pub mod receipt;
pub mod room;
mod runs;
pub mod shard;
pub mod store;
pub mod ttl;
pub mod value;
pub mod verdict;
pub mod view;
