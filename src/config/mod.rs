//! The settings of a node: read once, checked as a whole, handed on as values.

mod checked;
mod given;
mod role;
mod setting;
mod table;

pub use checked::{Config, ServerLimits};
pub use given::Settings;
pub use role::Role;
