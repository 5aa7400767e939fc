//! The HTTP side of a node. Only this part knows tiny_http, and only this part knows status codes of answers to
//! clients.

pub mod framing;

pub mod answer;
pub mod body;
pub mod payload;
pub mod routes;
pub mod target;

pub mod changes;
pub mod cluster_handlers;
pub mod key_handlers;
mod key_request;
pub mod node_handlers;
pub mod own_handlers;
pub mod relay;

pub mod connections;
pub mod gate;
pub mod lanes;
pub mod linger;
pub mod metrics;
pub mod sockets;
pub mod streams;
pub mod stuck;
pub mod turns;
pub mod watchdog;

pub mod accept;
pub mod descriptors;
pub mod kicker;
pub mod late;
pub mod preface;
pub mod server;
