//! Talking to other nodes: one HTTP client with our own resolver and transport, and what is known of each node.

pub mod client;
mod elsewhere;
pub mod events;
mod long_target;
pub mod multiplex;
pub mod no_answer;
pub mod outbox;
pub mod probe;
pub mod resolver;
pub mod stream;
pub mod transport;
mod upgrade;
