//! View changes: the thread that coordinates them on the leader of the meta group, and what other nodes do for it.

pub mod controller;
pub mod handle;
pub mod leave;
pub mod orders;
pub mod overview;
pub mod pieces;
pub mod recover;
mod recovery;
pub mod requests;

mod census;
mod coordinator;
pub mod prepare;
mod reconciler;
mod voters;
pub mod watched;

#[cfg(test)]
pub(crate) use coordinator::Coordinator;
pub use coordinator::run;
#[cfg(test)]
pub(crate) use reconciler::Reconciler;
pub use reconciler::run as reconcile;
