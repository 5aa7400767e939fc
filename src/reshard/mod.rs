//! View changes: the thread that coordinates them on the leader of the meta group, and what other nodes do for it.

pub mod desk;
pub mod leave;
pub mod orders;
pub mod pieces;
pub mod recover;
pub mod requests;

mod census;
mod coordinator;
mod finish;
mod keeper;
pub mod prepare;
#[cfg(test)]
mod simulation;
mod voters;

pub use coordinator::run;
pub use keeper::run as keep;
