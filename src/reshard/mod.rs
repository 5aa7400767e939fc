//! View changes: the thread that coordinates them on the leader of the meta group, and what other nodes do for it.

pub mod desk;
pub mod leave;
pub mod orders;
pub mod pieces;
pub mod recover;
mod recovery;
pub mod requests;

mod census;
mod coordinator;
mod finish;
mod keeper;
pub mod prepare;
mod voters;

#[cfg(test)]
pub(crate) use coordinator::Coordinator;
pub use coordinator::run;
#[cfg(test)]
pub(crate) use keeper::Keeper;
pub use keeper::run as keep;
