//! What a node keeps on its disk: one folder, which one process owns.
//!
//! | file | what is in it | how it is written |
//! | --- | --- | --- |
//! | `lock` | nothing: whoever has locked it owns the folder | |
//! | `identity` | whose folder it is, how often it was started with, and by which form it is read | as a whole, under another name first |
//! | `log` | of each group the entries since its snapshot, its vote, and which snapshot that is; what the node knows of its cluster | by transactions |
//! | `snapshot-GROUP-NUMBER` | the state of a group, in the form in which it travels between replicas | once, under another name first |
//!
//! Nothing here knows what a group is to others, what a command does, and which node is asked for what.

pub mod folder;
mod identity;
mod inspect;
mod log_file;
mod snapshot_file;
mod storage;

#[cfg(test)]
pub(crate) mod fake;

pub use folder::{DiskFile, Folder, SystemFolder};
pub use inspect::{InspectedGroup, Inspection, inspect};
pub use storage::{DiskUse, GroupRow, Op, Storage, Stored, StoredGroup};
