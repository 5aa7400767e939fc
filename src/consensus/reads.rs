//! Reads that wait until the state is known to be new enough.

use std::collections::VecDeque;

use super::machine::{Answer, Refusal};

/// A question that is not answered for this many ticks is asked again.
///
/// The crate drops it without a word while the leader has not committed an entry in its term, and when the
/// leader changes; and the heartbeats that carry it, or their answers, may be lost.
const ASK_AGAIN_TICKS: u64 = 2;

/// The reads of one group.
///
/// All that came in since the last step share one question to the other replicas, "is this still the
/// leader?", with a number of its own. Numbers only grow and are never used again, so an answer to a
/// question is good for all reads that were waiting when it was asked, and also for those of earlier
/// questions: those are asked again under a new number, and the answer to the old one stays welcome.
pub(super) struct Reads<W> {
    new: Vec<Reader<W>>,
    asked: VecDeque<Asked<W>>,
    /// Confirmed, and waiting until the state is applied up to the index.
    confirmed: VecDeque<(u64, Vec<W>)>,
    last_question: u64,
    waiting: usize,
}

struct Asked<W> {
    question: u64,
    since: u64,
    readers: Vec<Reader<W>>,
}

/// Who waits, and until when at most, unless the read was confirmed by then.
struct Reader<W> {
    waiter: W,
    until: u64,
}

impl<W> Default for Reads<W> {
    fn default() -> Self {
        Self {
            new: Vec::new(),
            asked: VecDeque::new(),
            confirmed: VecDeque::new(),
            last_question: 0,
            waiting: 0,
        }
    }
}

impl<W> Reads<W> {
    /// Adds a read, or gives it back where too many wait.
    pub(super) fn push(&mut self, waiter: W, until: u64, limit: usize) -> Result<(), W> {
        if self.waiting >= limit {
            return Err(waiter);
        }
        self.waiting += 1;
        self.new.push(Reader { waiter, until });
        Ok(())
    }

    /// Answers those who have waited until `now` without an answer to their question.
    pub(super) fn expire(&mut self, now: u64, answers: &mut Vec<(W, Answer)>) {
        let lists = self.asked.iter_mut().map(|asked| &mut asked.readers).chain([&mut self.new]);
        for readers in lists {
            let late = readers.extract_if(.., |reader| reader.until <= now);
            let before = answers.len();
            answers.extend(late.map(|reader| (reader.waiter, Answer::Unknown)));
            self.waiting -= answers.len() - before;
        }
    }

    /// The question to be asked now, if any: for the new reads, or again for those that wait too long.
    ///
    /// While a question is under way the new reads wait for its answer and then share the next one: under load a question costs as much as
    /// many reads.
    pub(super) fn question(&mut self, now: u64) -> Option<u64> {
        let again = self.asked.back().is_some_and(|last| last.since + ASK_AGAIN_TICKS <= now);
        let next = self.asked.is_empty() && !self.new.is_empty();
        if !next && !again {
            return None;
        }
        self.last_question += 1;
        let readers = std::mem::take(&mut self.new);
        self.asked.push_back(Asked { question: self.last_question, since: now, readers });
        Some(self.last_question)
    }

    /// Whether a question is under way.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// A question was answered: reads asked with it or before may read the state at `index`.
    pub(super) fn confirm(&mut self, question: u64, index: u64) {
        let mut readers = Vec::new();
        while self.asked.front().is_some_and(|first| first.question <= question) {
            let asked = self.asked.pop_front().into_iter().flat_map(|one| one.readers);
            readers.extend(asked.map(|reader| reader.waiter));
        }
        if !readers.is_empty() {
            self.confirmed.push_back((index, readers));
        }
    }

    /// Answers the reads whose index is applied.
    pub(super) fn applied(&mut self, applied: u64, answers: &mut Vec<(W, Answer)>) {
        // Indexes are confirmed in rising order, but for a question of an earlier leadership.
        while self.confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            let (_, readers) = self.confirmed.pop_front().expect("the front was there");
            self.waiting -= readers.len();
            answers.extend(readers.into_iter().map(|reader| (reader, Answer::Readable { index: applied })));
        }
    }

    /// Refuses all reads that are not confirmed: this replica leads no more, and a read changes nothing.
    pub(super) fn refuse(&mut self, refusal: Refusal, answers: &mut Vec<(W, Answer)>) {
        let asked = std::mem::take(&mut self.asked).into_iter().flat_map(|one| one.readers);
        let readers: Vec<_> = std::mem::take(&mut self.new).into_iter().chain(asked).collect();
        self.waiting -= readers.len();
        answers.extend(readers.into_iter().map(|reader| (reader.waiter, Answer::NotApplied(refusal))));
    }

    /// Everybody who waits, when the group is given up.
    pub(super) fn abandon(&mut self, answers: &mut Vec<(W, Answer)>) {
        let confirmed = std::mem::take(&mut self.confirmed).into_iter().flat_map(|(_, readers)| readers);
        self.new.extend(confirmed.map(|waiter| Reader { waiter, until: u64::MAX }));
        self.refuse(Refusal::NoGroup, answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_to_the_first_question_serves_the_reads_it_was_asked_for() {
        let mut reads = Reads::default();
        let mut answers = Vec::new();
        reads.push("a", 50, 9).unwrap();
        assert_eq!(reads.question(0), Some(1));
        reads.push("b", 50, 9).unwrap();
        assert_eq!(reads.question(1), None, "the first is not answered");
        assert_eq!(reads.question(ASK_AGAIN_TICKS), Some(2));
        assert_eq!(reads.question(ASK_AGAIN_TICKS), None);
        reads.confirm(1, 7);
        reads.applied(6, &mut answers);
        assert!(answers.is_empty());
        reads.applied(7, &mut answers);
        assert_eq!(answers, [("a", Answer::Readable { index: 7 })]);
        reads.confirm(2, 7);
        reads.applied(8, &mut answers);
        assert_eq!(answers[1], ("b", Answer::Readable { index: 8 }));
        assert_eq!(reads.waiting, 0);
        assert_eq!(reads.question(99), None);
    }

    #[test]
    fn reads_that_come_while_a_question_is_under_way_share_the_next_one() {
        let mut reads = Reads::default();
        let mut answers = Vec::new();
        reads.push(1, 50, 9).unwrap();
        assert_eq!(reads.question(0), Some(1));
        reads.push(2, 50, 9).unwrap();
        reads.push(3, 50, 9).unwrap();
        assert_eq!(reads.question(0), None);
        reads.confirm(1, 7);
        reads.applied(7, &mut answers);
        assert_eq!(answers.len(), 1, "an answer is not good for what was asked after it");
        assert_eq!(reads.question(0), Some(2));
        reads.confirm(2, 7);
        reads.applied(7, &mut answers);
        assert_eq!(answers.len(), 3);
    }

    #[test]
    fn who_waits_too_long_is_told_so() {
        let mut reads = Reads::default();
        let mut answers = Vec::new();
        reads.push("a", 5, 9).unwrap();
        assert_eq!(reads.question(0), Some(1));
        reads.push("b", 6, 9).unwrap();
        reads.expire(4, &mut answers);
        assert!(answers.is_empty());
        reads.expire(5, &mut answers);
        assert_eq!(answers, [("a", Answer::Unknown)]);
        reads.confirm(1, 7);
        reads.expire(6, &mut answers);
        assert_eq!(answers[1..], [("b", Answer::Unknown)], "it was not asked yet");
        assert_eq!(reads.waiting, 0);
    }

    #[test]
    fn too_many_reads_are_given_back() {
        let mut reads = Reads::default();
        reads.push(1, 50, 1).unwrap();
        assert_eq!(reads.push(2, 50, 1), Err(2));
    }
}
