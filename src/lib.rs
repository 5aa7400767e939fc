//! evenkv: a distributed key-value store over plain HTTP.
//!
//! The modules in the order in which they are best read.

pub mod model;

pub mod access;
pub mod budget;
pub mod clock;
pub mod dice;
pub mod error;
mod failpoints;
pub mod logging;
pub mod memory;
pub mod notify;
pub mod threads;
pub mod version;

pub mod wire;

pub mod disk;

pub mod consensus;
pub mod peers;

pub mod node;

pub mod reshard;

pub mod config;

pub mod http;

pub mod cli;

#[cfg(test)]
mod simulation;
