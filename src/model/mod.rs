//! The pure part: keys and hashes, ranges, views, and the map that holds the pairs.
//!
//! Nothing here knows a socket, a file, a clock, a thread, the environment or randomness. The one lock is
//! the stripe lock of [`store::Store`].

pub mod address;
pub mod binary;
pub mod hash;
pub mod pair;
pub mod store;
pub mod view;
