//! A node without its HTTP: who it is, what it holds, whom it asks.

pub mod cluster;
pub mod greeter;
pub mod keys;
pub mod membership;
pub mod state;
