//! The HTTP side of a node. Only this part knows tiny_http, and only this part knows status codes of answers to
//! clients. Each file knows only files that stand before it here, but for those of its own paragraph.

pub mod framing;
pub mod lane_id;
pub mod target;

pub mod payload;
pub mod routes;

pub mod answer_body;
pub mod error_form;

pub mod answer;
pub mod byte_range;
pub mod page;

pub mod openapi;
pub mod v1;

pub mod sockets;
pub mod watchdog;

pub mod body;

pub mod connections;
pub mod gate;
pub mod generation;
mod key_request;
pub mod lanes;
pub mod metrics;

pub mod conversation;

pub mod access;

mod batch;
pub mod changes;
pub mod cluster_handlers;
pub mod dispatch;
pub mod export;
pub mod key_handlers;
pub mod listing;
pub mod multiplex;
pub mod node_handlers;
pub mod own_handlers;
pub mod relay;
pub mod relayed;
pub mod status;
pub mod streams;
pub mod turns;

pub mod watch_text;

pub mod watch_request;

pub mod watcher;

pub mod watch;

pub mod watch_main;

pub mod late;
pub mod linger;
pub mod stuck;

pub mod accept;
pub mod descriptors;
pub mod kicker;
pub mod preface;

pub mod server;
