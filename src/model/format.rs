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
/// The meta group knows when view changes began and ended, and keeps what the last ones came to.
pub const RECEIPTS: u32 = 9;
/// Nodes tell how much room they have, and say where there is none.
pub const ROOM: u32 = 10;
/// That of this version of the program.
pub const CURRENT: u32 = ROOM;

/// Whether a node that has said this number, or nothing yet, can read whatever this one can.
pub fn reads_all(said: Option<u32>) -> bool {
    said.is_some_and(|said| said >= CURRENT)
}

/// Of things that are to be sent to a node one after the other, the first that it cannot read, with what that needs. A node that has said nothing yet may be of any version.
pub fn first_unread(said: Option<u32>, needs: impl IntoIterator<Item = u32>) -> Option<(usize, u32)> {
    let said = said.unwrap_or(FIRST);
    needs.into_iter().enumerate().find(|(_, needs)| *needs > said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_sent_what_it_can_read() {
        let needs = [FIRST, TTL, FIRST, WATCH];
        let table = [
            (None, Some((1, TTL)), "it has said nothing"),
            (Some(FIRST), Some((1, TTL)), "it is old"),
            (Some(TYPES), Some((1, TTL)), "it is older"),
            (Some(TTL), Some((3, WATCH)), "it knows some"),
            (Some(WATCH), None, "it knows all"),
            (Some(CURRENT + 1), None, "it knows more"),
        ];
        for (said, unread, what) in table {
            assert_eq!(first_unread(said, needs), unread, "{what}");
        }
        assert_eq!(first_unread(None, [FIRST]), None);
        assert_eq!([None, Some(FIRST), Some(CURRENT)].map(reads_all), [false, false, true]);
    }
}
