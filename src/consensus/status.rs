//! Where a replica stands, for those outside.

use raft::StateRole;

use super::group::Group;
use super::members::Members;

/// The role of a replica in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Proposes, and answers linearizable reads.
    Leader,
    /// Has a vote and asks for the others' votes.
    Candidate,
    /// Has a vote.
    Follower,
    /// Receives the log and has no vote; also a replica that has not been added yet, or was taken out.
    Learner,
}

/// Where a replica stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its own id.
    pub replica: u64,
    /// Its role.
    pub role: Role,
    /// The leader, where it is known.
    pub leader: Option<u64>,
    /// The term it is in.
    pub term: u64,
    /// Up to where the state is applied.
    pub applied: u64,
    /// Up to where entries are known to be committed.
    pub committed: u64,
    /// The first entry that is still held.
    pub first: u64,
    /// The last entry.
    pub last: u64,
    /// Its term.
    pub last_term: u64,
    /// Bytes that the log takes.
    pub log_bytes: usize,
    /// The voters, or the incoming ones while the configuration is joint.
    pub voters: Vec<u64>,
    /// The outgoing voters while the configuration is joint; empty otherwise.
    pub outgoing: Vec<u64>,
    /// The learners.
    pub learners: Vec<u64>,
    /// Those of them that this leader has not heard of for an election timeout: they may be gone. Empty at others.
    pub silent: Vec<u64>,
    /// All members and where they are reached.
    pub members: Members,
    /// Whether a change of members is under way: none other is taken meanwhile.
    pub changing: bool,
    /// Whether it answers linearizable reads: it leads, or its leader tells it what it has to have applied for that, and it is not behind.
    pub answers_reads: bool,
    /// Whether it leads and has applied all that the leaders before it have left in the log: only then it knows what the state has come to.
    pub has_taken_over: bool,
    /// Of a leader: the learners that are of a version which cannot read what the group holds, and the format that they would have to know. They get no vote.
    pub too_old: Vec<(u64, u32)>,
    /// Of a leader: grows whenever a learner gets entries, or another replica a piece of a snapshot.
    pub fed: u64,
    /// Of a leader: up to where each member is known to hold the log. Empty at others.
    pub matched: Vec<(u64, u64)>,
}

impl<W> Group<W> {
    pub(super) fn status(&self) -> Status {
        let raft = &self.raft.raft;
        let log = raft.store();
        let members = log.members();
        Status {
            replica: raft.id,
            role: self.role(),
            leader: self.leader(),
            term: raft.term,
            applied: log.applied(),
            committed: raft.raft_log.committed,
            first: raft.raft_log.first_index(),
            last: raft.raft_log.last_index(),
            last_term: raft.raft_log.last_term(),
            log_bytes: log.size().1,
            voters: members.voters.clone(),
            outgoing: members.voters_outgoing.clone(),
            learners: members.learners.clone(),
            silent: self.silent(),
            members: self.members.clone(),
            changing: self.changing(),
            answers_reads: self.answers_reads(),
            has_taken_over: self.has_taken_over(),
            too_old: self.too_old(),
            fed: self.fed(),
            matched: self.matched(),
        }
    }

    /// The first entry of its own term comes after all of theirs.
    fn has_taken_over(&self) -> bool {
        let raft = &self.raft.raft;
        self.leads() && raft.raft_log.term(raft.store().applied()).is_ok_and(|term| term == raft.term)
    }

    fn silent(&self) -> Vec<u64> {
        if !self.leads() {
            return Vec::new();
        }
        let active = |id: u64| {
            id == self.replica()
                || self.raft.raft.prs().get(id).is_some_and(|progress| progress.recent_active)
        };
        self.members.keys().copied().filter(|id| !active(*id)).collect()
    }

    fn matched(&self) -> Vec<(u64, u64)> {
        if !self.leads() {
            return Vec::new();
        }
        let progress = self.raft.raft.prs();
        let matched = |id: &u64| progress.get(*id).map(|progress| (*id, progress.matched));
        self.members.keys().filter_map(matched).collect()
    }

    fn role(&self) -> Role {
        let raft = &self.raft.raft;
        match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        }
    }

    pub(super) fn leader(&self) -> Option<u64> {
        Some(self.raft.raft.leader_id).filter(|leader| *leader != raft::INVALID_ID)
    }

    pub(super) fn stands_as(&self, status: &Status) -> bool {
        let members = self.raft.store().members();
        self.raft.raft.id == status.replica
            && self.raft.raft.term == status.term
            && self.role() == status.role
            && self.leader() == status.leader
            && self.changing() == status.changing
            && self.answers_reads() == status.answers_reads
            && self.has_taken_over() == status.has_taken_over
            && self.too_old() == status.too_old
            && members.voters == status.voters
            && members.voters_outgoing == status.outgoing
            && members.learners == status.learners
    }
}
