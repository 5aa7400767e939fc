//! How the groups of a node behave.

/// How the groups of a node behave. Times are in ticks, whose length the owner of the driver decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A follower that hears nothing for between one and two times as long asks for an election; a leader
    /// that does not hear from a majority for as long steps down.
    pub election_ticks: usize,
    /// How often a leader says that it is there.
    pub heartbeat_ticks: usize,
    /// What election timeouts are drawn from, together with replica and term.
    pub seed: u64,
    /// Who waits longer than this is told so: that the outcome is unknown, or that what was asked was not begun with.
    pub answer_ticks: u64,
    /// The most proposals, and the most reads, that wait in a group; further ones are `Busy`.
    pub max_waiting: usize,
    /// The most bytes of commands that wait to be proposed in a group; further ones are `Busy`.
    pub max_inbox_bytes: usize,
    /// The most bytes of commands that are proposed but not committed in a group; further ones wait.
    pub max_uncommitted_bytes: usize,
    /// While entries are not committed yet, further commands wait until they are so many, or have so many bytes.
    pub batch_commands: usize,
    /// See `batch_commands`.
    pub batch_bytes: usize,
    /// Entries are sent in messages of about this size; a larger entry is sent alone.
    pub max_message_bytes: u64,
    /// The most messages with entries that are on their way to one replica.
    pub max_inflight_messages: usize,
    /// The most applied entries that are kept for replicas that are behind; older ones are compacted.
    pub max_log_entries: usize,
    /// The most bytes that they take.
    pub max_log_bytes: usize,
    /// Snapshots are sent in pieces of this size, one at a time.
    pub piece_bytes: usize,
    /// A command of this length goes to the other replicas before it is proposed, so that what comes after it does not wait for it.
    pub staged_bytes: usize,
    /// It is sent in parts of this size.
    pub part_bytes: usize,
    /// The most bytes of such commands that are on their way to one replica. For two replicas that fills a link of 12.5 MB/s over which an answer takes 40 ms.
    pub staging_window_bytes: usize,
    /// What replicas number in their messages is above this. One that is kept goes by its id also after it was started again, when an answer to
    /// what it has asked before may still be under way.
    pub first_number: u64,
    /// Where replicas are kept on a disk: a log that takes more, and half as much as the last snapshot, is replaced by a new snapshot.
    pub snapshot_log_bytes: u64,
    /// A rule of safety that is not kept, to see that the simulation finds it missing.
    #[cfg(test)]
    pub(crate) without: Option<super::simulation::Rule>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            election_ticks: 10,
            heartbeat_ticks: 2,
            seed: 0,
            answer_ticks: 500,
            max_waiting: 10_000,
            max_inbox_bytes: 64 << 20,
            max_uncommitted_bytes: 64 << 20,
            batch_commands: 256,
            batch_bytes: 256 << 10,
            max_message_bytes: 1 << 20,
            max_inflight_messages: 64,
            max_log_entries: 100_000,
            max_log_bytes: 64 << 20,
            piece_bytes: 1 << 20,
            staged_bytes: 256 << 10,
            part_bytes: 64 << 10,
            staging_window_bytes: 256 << 10,
            first_number: 0,
            snapshot_log_bytes: 16 << 20,
            #[cfg(test)]
            without: None,
        }
    }
}
