//! The settings of a node: read once, checked as a whole, handed on as values.

mod checked;
mod role;
mod setting;
mod table;

pub use checked::{Config, ServerLimits};
pub use role::Role;
pub use setting::Settings;
