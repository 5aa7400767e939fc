//! Reads that wait until the state is known to be new enough.

use std::collections::VecDeque;

use super::machine::{Answer, Refusal};

/// A question that is not answered for this many ticks is asked again.
///
/// The crate drops it without a word while the leader has not committed an entry in its term, and when the
/// leader changes; and the messages that carry it, or their answers, may be lost.
const ASK_AGAIN_TICKS: u64 = 2;

/// A replica that does not lead and has not applied what it may read within so many ticks is behind: its readers are sent to the leader.
const BEHIND_TICKS: u64 = 3;

/// The reads of one group.
///
/// All that came in since the last step share one question, with a number of its own. A leader asks the other replicas "is this still
/// the leader?"; another replica asks the leader "up to where has the log to be applied?". Numbers only grow and are never used again, so an
/// answer to a question is good for all reads that were waiting when it was asked, and also for those of earlier
/// questions: those are asked again under a new number, and the answer to the old one stays welcome, whoever leads by then.
pub(super) struct Reads<W> {
    new: Vec<Reader<W>>,
    asked: VecDeque<Asked<W>>,
    /// Confirmed, and waiting until the state is applied up to the index.
    confirmed: VecDeque<Confirmed<W>>,
    last_question: u64,
    waiting: usize,
}

struct Asked<W> {
    question: u64,
    since: u64,
    /// Who was to answer it.
    leader: u64,
    readers: Vec<Reader<W>>,
}

struct Confirmed<W> {
    index: u64,
    since: u64,
    readers: Vec<W>,
}

/// Who waits, and until when at most, unless the read was confirmed by then.
struct Reader<W> {
    asker: Asker<W>,
    until: u64,
}

/// Who wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asker<W> {
    /// Somebody at this node, as long as this replica leads.
    AtLeader(W),
    /// Somebody at this node, whoever leads.
    AtReplica(W),
    /// Another replica, by a question of its own.
    Replica(ReplicaQuestion),
}

/// A question of another replica: up to where it has to have applied the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplicaQuestion {
    /// The replica.
    pub(super) from: u64,
    /// Its number of the question.
    pub(super) question: u64,
}

impl<W> Reads<W> {
    /// Nobody waits; questions have numbers above this.
    pub(super) fn after(last_question: u64) -> Self {
        Self {
            new: Vec::new(),
            asked: VecDeque::new(),
            confirmed: VecDeque::new(),
            last_question,
            waiting: 0,
        }
    }
}

impl<W> Asker<W> {
    /// Whoever waits at this node.
    pub(super) fn waiter(self) -> Option<W> {
        match self {
            Self::AtLeader(waiter) | Self::AtReplica(waiter) => Some(waiter),
            Self::Replica(_) => None,
        }
    }
}

impl<W> Reads<W> {
    /// Adds a read, or gives it back where too many wait.
    pub(super) fn push(&mut self, asker: Asker<W>, until: u64, limit: usize) -> Result<(), Asker<W>> {
        if self.waiting >= limit {
            return Err(asker);
        }
        self.waiting += 1;
        self.new.push(Reader { asker, until });
        Ok(())
    }

    /// Answers those who have waited until `now` without an answer to their question. Another replica asks again by itself.
    pub(super) fn expire(&mut self, now: u64, answers: &mut Vec<(W, Answer)>) {
        let late = self.take_unconfirmed(|reader| reader.until <= now);
        answers.extend(late.into_iter().filter_map(Asker::waiter).map(|waiter| (waiter, Answer::Unknown)));
    }

    fn take_unconfirmed(&mut self, is_taken: impl Fn(&Reader<W>) -> bool) -> Vec<Asker<W>> {
        let lists = self.asked.iter_mut().map(|asked| &mut asked.readers).chain([&mut self.new]);
        let taken: Vec<_> = lists
            .flat_map(|readers| readers.extract_if(.., |reader| is_taken(reader)).map(|reader| reader.asker))
            .collect();
        self.waiting -= taken.len();
        taken
    }

    /// The question to be asked now of whoever leads, if any: for the new reads, or again for those that wait too long or were asked of another leader.
    ///
    /// While a question is under way the new reads wait for its answer and then share the next one: under load a question costs as much as
    /// many reads.
    pub(super) fn question(&mut self, now: u64, leader: u64) -> Option<u64> {
        let is_stale = |last: &Asked<W>| last.leader != leader || last.since + ASK_AGAIN_TICKS <= now;
        let again = self.asked.back().is_some_and(is_stale);
        let next = self.asked.is_empty() && !self.new.is_empty();
        if !next && !again {
            return None;
        }
        self.last_question += 1;
        let readers = std::mem::take(&mut self.new);
        self.asked.push_back(Asked { question: self.last_question, since: now, leader, readers });
        Some(self.last_question)
    }

    /// Whether a question is under way.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// A question was answered: reads asked with it or before may read the state at `index`. The questions of other replicas among them are to be answered.
    pub(super) fn confirm(&mut self, question: u64, index: u64, now: u64) -> Vec<ReplicaQuestion> {
        let (mut readers, mut others) = (Vec::new(), Vec::new());
        while self.asked.front().is_some_and(|first| first.question <= question) {
            for reader in self.asked.pop_front().into_iter().flat_map(|one| one.readers) {
                match reader.asker {
                    Asker::Replica(other) => others.push(other),
                    Asker::AtLeader(waiter) | Asker::AtReplica(waiter) => readers.push(waiter),
                }
            }
        }
        self.waiting -= others.len();
        if !readers.is_empty() {
            self.confirmed.push_back(Confirmed { index, since: now, readers });
        }
        others
    }

    /// Answers the reads whose index is applied.
    pub(super) fn applied(&mut self, applied: u64, answers: &mut Vec<(W, Answer)>) {
        // Indexes are confirmed in rising order, but for a question of an earlier leadership.
        while self.confirmed.front().is_some_and(|confirmed| confirmed.index <= applied) {
            let Confirmed { readers, .. } = self.confirmed.pop_front().expect("the front was there");
            self.waiting -= readers.len();
            answers.extend(readers.into_iter().map(|reader| (reader, Answer::Readable { index: applied })));
        }
    }

    /// Refuses the reads that this replica, which does not lead, has been behind with for too long; whether there were any.
    pub(super) fn refuse_behind(
        &mut self,
        now: u64,
        refusal: Refusal,
        answers: &mut Vec<(W, Answer)>,
    ) -> bool {
        let before = answers.len();
        while self.confirmed.front().is_some_and(|first| first.since + BEHIND_TICKS <= now) {
            let late = self.confirmed.pop_front().into_iter().flat_map(|one| one.readers);
            answers.extend(late.map(|reader| (reader, Answer::NotApplied(refusal))));
        }
        self.waiting -= answers.len() - before;
        answers.len() > before
    }

    /// Refuses the reads that are not confirmed and need this replica to lead, since it does not; a read changes nothing.
    pub(super) fn refuse_at_leader(&mut self, refusal: Refusal, answers: &mut Vec<(W, Answer)>) {
        let refused = self.take_unconfirmed(|reader| !matches!(reader.asker, Asker::AtReplica(_)));
        let waiters = refused.into_iter().filter_map(Asker::waiter);
        answers.extend(waiters.map(|waiter| (waiter, Answer::NotApplied(refusal))));
    }

    /// Refuses all reads that are not confirmed.
    pub(super) fn refuse(&mut self, refusal: Refusal, answers: &mut Vec<(W, Answer)>) {
        let refused = self.take_unconfirmed(|_| true);
        self.asked.clear();
        let waiters = refused.into_iter().filter_map(Asker::waiter);
        answers.extend(waiters.map(|waiter| (waiter, Answer::NotApplied(refusal))));
    }

    /// Everybody who waits, when the group is given up.
    pub(super) fn abandon(&mut self, answers: &mut Vec<(W, Answer)>) {
        let confirmed = std::mem::take(&mut self.confirmed).into_iter().flat_map(|one| one.readers);
        let before = answers.len();
        answers.extend(confirmed.map(|waiter| (waiter, Answer::NotApplied(Refusal::NoGroup))));
        self.waiting -= answers.len() - before;
        self.refuse(Refusal::NoGroup, answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_to_the_first_question_serves_the_reads_it_was_asked_for() {
        let mut reads = Reads::after(0);
        let mut answers = Vec::new();
        reads.push(Asker::AtLeader("a"), 50, 9).unwrap();
        assert_eq!(reads.question(0, 1), Some(1));
        reads.push(Asker::AtLeader("b"), 50, 9).unwrap();
        assert_eq!(reads.question(1, 1), None, "the first is not answered");
        assert_eq!(reads.question(ASK_AGAIN_TICKS, 1), Some(2));
        assert_eq!(reads.question(ASK_AGAIN_TICKS, 1), None);
        assert!(reads.confirm(1, 7, 0).is_empty());
        reads.applied(6, &mut answers);
        assert!(answers.is_empty());
        reads.applied(7, &mut answers);
        assert_eq!(answers, [("a", Answer::Readable { index: 7 })]);
        assert!(reads.confirm(2, 7, 0).is_empty());
        reads.applied(8, &mut answers);
        assert_eq!(answers[1], ("b", Answer::Readable { index: 8 }));
        assert_eq!(reads.waiting, 0);
        assert_eq!(reads.question(99, 1), None);
    }

    #[test]
    fn reads_that_come_while_a_question_is_under_way_share_the_next_one() {
        let mut reads = Reads::after(0);
        let mut answers = Vec::new();
        reads.push(Asker::AtLeader(1), 50, 9).unwrap();
        assert_eq!(reads.question(0, 1), Some(1));
        reads.push(Asker::AtLeader(2), 50, 9).unwrap();
        reads.push(Asker::AtLeader(3), 50, 9).unwrap();
        assert_eq!(reads.question(0, 1), None);
        assert!(reads.confirm(1, 7, 0).is_empty());
        reads.applied(7, &mut answers);
        assert_eq!(answers.len(), 1, "an answer is not good for what was asked after it");
        assert_eq!(reads.question(0, 1), Some(2));
        assert!(reads.confirm(2, 7, 0).is_empty());
        reads.applied(7, &mut answers);
        assert_eq!(answers.len(), 3);
    }

    #[test]
    fn who_waits_too_long_is_told_so() {
        let mut reads = Reads::after(0);
        let mut answers = Vec::new();
        reads.push(Asker::AtLeader("a"), 5, 9).unwrap();
        assert_eq!(reads.question(0, 1), Some(1));
        reads.push(Asker::AtLeader("b"), 6, 9).unwrap();
        reads.expire(4, &mut answers);
        assert!(answers.is_empty());
        reads.expire(5, &mut answers);
        assert_eq!(answers, [("a", Answer::Unknown)]);
        assert!(reads.confirm(1, 7, 0).is_empty());
        reads.expire(6, &mut answers);
        assert_eq!(answers[1..], [("b", Answer::Unknown)], "it was not asked yet");
        assert_eq!(reads.waiting, 0);
    }

    #[test]
    fn too_many_reads_are_given_back() {
        let mut reads = Reads::after(0);
        reads.push(Asker::AtLeader(1), 50, 1).unwrap();
        assert_eq!(reads.push(Asker::AtLeader(2), 50, 1), Err(Asker::AtLeader(2)));
    }

    #[test]
    fn a_question_is_asked_again_at_once_of_another_leader() {
        let mut reads = Reads::after(0);
        reads.push(Asker::AtReplica("a"), 50, 9).unwrap();
        assert_eq!(
            (reads.question(0, 7), reads.question(0, 7), reads.question(0, 8)),
            (Some(1), None, Some(2))
        );
    }

    #[test]
    fn questions_of_other_replicas_are_answered_when_this_one_is() {
        let mut reads = Reads::after(0);
        let mut answers = Vec::new();
        let other = ReplicaQuestion { from: 3, question: 17 };
        reads.push(Asker::Replica(other), 50, 9).unwrap();
        reads.push(Asker::AtLeader("a"), 50, 9).unwrap();
        assert_eq!(reads.question(0, 1), Some(1));
        assert_eq!(reads.confirm(1, 7, 0), [other]);
        reads.applied(7, &mut answers);
        assert_eq!((answers.len(), reads.waiting), (1, 0));
    }

    #[test]
    fn who_leads_no_more_refuses_those_who_need_that_and_goes_on_with_the_others() {
        let (mut reads, mut answers) = (Reads::after(0), Vec::new());
        reads.push(Asker::AtLeader("leader"), 50, 9).unwrap();
        reads.push(Asker::AtReplica("replica"), 50, 9).unwrap();
        reads.push(Asker::Replica(ReplicaQuestion { from: 3, question: 17 }), 50, 9).unwrap();
        assert_eq!(reads.question(0, 1), Some(1));
        let refusal = Refusal::NotLeader { leader: Some(2) };
        reads.refuse_at_leader(refusal, &mut answers);
        assert_eq!(answers, [("leader", Answer::NotApplied(refusal))]);
        assert_eq!((reads.waiting, reads.question(0, 2)), (1, Some(2)));
        assert!(reads.confirm(2, 7, 0).is_empty());
        reads.applied(7, &mut answers);
        assert_eq!(answers[1], ("replica", Answer::Readable { index: 7 }));
    }

    #[test]
    fn a_replica_that_is_behind_refuses_what_it_cannot_answer_soon() {
        let (mut reads, mut answers) = (Reads::after(0), Vec::new());
        reads.push(Asker::AtReplica("a"), 50, 9).unwrap();
        assert_eq!(reads.question(0, 2), Some(1));
        assert!(reads.confirm(1, 7, 4).is_empty());
        let refusal = Refusal::NotLeader { leader: Some(2) };
        assert!(!reads.refuse_behind(3 + BEHIND_TICKS, refusal, &mut answers));
        assert!(reads.refuse_behind(4 + BEHIND_TICKS, refusal, &mut answers));
        assert_eq!((answers.len(), reads.waiting), (1, 0));
    }
}
