//! What nodes of different versions of the program understand of each other.
//!
//! The number grows with every form of a message, a command or a snapshot that nodes before it cannot read. A node says its own with each connection that
//! it opens for messages of groups. What needs a number is sent only to a node that says at least that one, and is proposed only in a group all of whose
//! members do.

/// Nodes that say none: those before there were any.
pub const FIRST: u32 = 1;
/// Commands go ahead of the log, and an append names them only.
pub const STAGING: u32 = 2;
/// A replica that does not lead asks up to where it has to have applied the log to be read.
pub const REPLICA_READS: u32 = 3;
/// Writes have conditions, and what is remembered of a write may be that its condition did not hold.
pub const CONDITIONS: u32 = 4;
/// Values have types of their own, and need not be JSON.
pub const TYPES: u32 = 5;
/// Pairs have a time to live, and entries of the log say how late it is.
pub const TTL: u32 = 6;
/// An entry of the log may have several writes in it.
pub const BATCHES: u32 = 7;
/// Changes are kept for those who watch, and go along with moves and snapshots.
pub const WATCH: u32 = 8;
/// Nodes tell how much room they have, and say where there is none.
pub const ROOM: u32 = 10;
/// That of this version of the program.
pub const CURRENT: u32 = ROOM;
