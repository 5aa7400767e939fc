//! evenkv: a distributed key-value store over plain HTTP.

pub mod consensus;
pub mod model;
