//! Large commands on their way to the other replicas before they stand in the log.
//!
//! A log is one line: what comes after a large entry waits for it on every link. So a large command goes ahead, in parts. Once most voters hold it, it is
//! proposed, and the append that carries its entry names the command only. A replica that does not hold it yet is sent the entries before it, and the rest when it
//! does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use super::envelope::{Body, Part};

/// A part that is not acknowledged for so many ticks is sent again.
const RESEND_TICKS: u64 = 10;
/// A command of which nothing is taken for so many ticks is not sent any more, until it is wanted again.
const PATIENCE_TICKS: u64 = 50;
/// A command that no entry names for so many ticks is forgotten; where one does later, it is sent again.
const KEPT_TICKS: u64 = 500;

/// So many commands are kept that no entry holds yet.
const MOST_COMMANDS: usize = 1024;

/// A command that goes ahead: who took it in, and the number that it was given there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StagedId {
    pub(super) replica: u64,
    pub(super) number: u64,
}

impl StagedId {
    /// The bytes of its form, which is the context of the entry.
    pub(super) const BYTES: usize = 16;

    /// Its form.
    pub(super) fn bytes(self) -> Bytes {
        [self.replica.to_be_bytes(), self.number.to_be_bytes()].concat().into()
    }

    /// Reads it.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (replica, number) = bytes.split_first_chunk::<8>()?;
        let number = number.try_into().ok()?;
        Some(Self { replica: u64::from_be_bytes(*replica), number: u64::from_be_bytes(number) })
    }

    /// The command of an entry, where it went ahead.
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        (entry.get_entry_type() == EntryType::EntryNormal).then(|| Self::read(&entry.context)).flatten()
    }
}

/// Whether an entry only names its command.
pub(super) fn is_reference(entry: &Entry) -> bool {
    entry.data.is_empty() && StagedId::of(entry).is_some()
}

/// What a leader sends ahead, by receiver, and what each holds.
#[derive(Default)]
pub(super) struct Outgoing {
    receivers: BTreeMap<u64, Receiver>,
    last: u64,
}

#[derive(Default)]
struct Receiver {
    holds: BTreeSet<StagedId>,
    /// In this order; no more than a window of them is on its way.
    waiting: VecDeque<Sending>,
}

struct Sending {
    id: StagedId,
    data: Bytes,
    acknowledged: usize,
    /// The most that was ever acknowledged.
    most: usize,
    sent: usize,
    idle_ticks: u64,
}

/// What an acknowledgement says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acked {
    /// Nothing new, or that there is more to be sent.
    Part,
    /// The receiver holds the command.
    Whole,
    /// The receiver does not hold it any more.
    Lost,
}

impl Outgoing {
    /// Whose ids have numbers above this.
    pub(super) fn after(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// An id for another command.
    pub(super) fn next_id(&mut self, replica: u64) -> StagedId {
        self.last += 1;
        StagedId { replica, number: self.last }
    }

    /// Sends a command to a replica, unless it holds it or it is on its way.
    pub(super) fn start(&mut self, to: u64, id: StagedId, data: &Bytes) {
        let receiver = self.receivers.entry(to).or_default();
        if !receiver.holds.contains(&id) && receiver.waiting.iter().all(|sending| sending.id != id) {
            let data = data.clone();
            receiver.waiting.push_back(Sending {
                id,
                data,
                acknowledged: 0,
                most: 0,
                sent: 0,
                idle_ticks: 0,
            });
        }
    }

    /// Sends it before all others: the log of the replica waits for it.
    pub(super) fn start_first(&mut self, to: u64, id: StagedId, data: &Bytes) {
        self.start(to, id, data);
        let waiting = self.receivers.get_mut(&to).map(|receiver| &mut receiver.waiting);
        if let Some(waiting) = waiting
            && let Some(at) = waiting.iter().position(|sending| sending.id == id)
            && let Some(first) = waiting.remove(at)
        {
            waiting.push_front(first);
        }
    }

    /// Whether a replica holds a command.
    pub(super) fn holds(&self, replica: u64, id: StagedId) -> bool {
        self.receivers.get(&replica).is_some_and(|receiver| receiver.holds.contains(&id))
    }

    /// The parts that are to be sent now: no more than a window for each receiver that is not acknowledged.
    pub(super) fn parts(&mut self, length: usize, window: usize) -> Vec<(u64, Body)> {
        let mut parts = Vec::new();
        for (to, receiver) in &mut self.receivers {
            let mut on_its_way: usize =
                receiver.waiting.iter().map(|sending| sending.sent - sending.acknowledged).sum();
            for sending in &mut receiver.waiting {
                while sending.sent < sending.data.len() && on_its_way < window {
                    let end = sending.data.len().min(sending.sent + length);
                    let data = sending.data.slice(sending.sent..end);
                    let (total, offset) = (sending.data.len() as u64, sending.sent as u64);
                    parts.push((*to, Body::Part(Part { id: sending.id, total, offset, data })));
                    on_its_way += end - sending.sent;
                    sending.sent = end;
                }
            }
        }
        parts
    }

    /// A replica says how much of a command it has: what that means, and by how many bytes it is more than before.
    pub(super) fn acked(&mut self, from: u64, id: StagedId, received: u64) -> (Acked, u64) {
        let Some(Receiver { holds, waiting }) = self.receivers.get_mut(&from) else {
            return (Acked::Part, 0);
        };
        let Some(sending) = waiting.iter_mut().find(|sending| sending.id == id) else {
            let is_lost = received == 0 && holds.remove(&id);
            return (if is_lost { Acked::Lost } else { Acked::Part }, 0);
        };
        let received = usize::try_from(received).unwrap_or(usize::MAX).min(sending.data.len());
        let grown = received.saturating_sub(sending.most) as u64;
        sending.most = sending.most.max(received);
        if received > sending.acknowledged {
            sending.acknowledged = received;
            sending.sent = sending.sent.max(received);
            sending.idle_ticks = 0;
        }
        if received < sending.data.len() {
            return (Acked::Part, grown);
        }
        waiting.retain(|sending| sending.id != id);
        holds.insert(id);
        (Acked::Whole, grown)
    }

    /// Counts a tick. What was sent is sent again where nobody has taken it; where the receiver has forgotten what it took before, all of it.
    pub(super) fn tick(&mut self) {
        for receiver in self.receivers.values_mut() {
            receiver.waiting.retain_mut(|sending| {
                sending.idle_ticks += u64::from(sending.sent > 0);
                if sending.idle_ticks.is_multiple_of(2 * RESEND_TICKS) {
                    (sending.acknowledged, sending.sent) = (0, 0);
                } else if sending.idle_ticks.is_multiple_of(RESEND_TICKS) {
                    sending.sent = sending.acknowledged;
                }
                sending.idle_ticks < PATIENCE_TICKS
            });
        }
    }

    /// Forgets who holds what nobody will ask for any more, and replicas that are no members.
    pub(super) fn keep(&mut self, is_wanted: impl Fn(StagedId) -> bool, is_member: impl Fn(u64) -> bool) {
        self.receivers.retain(|replica, Receiver { holds, waiting }| {
            holds.retain(|id| is_wanted(*id));
            waiting.retain(|sending| is_wanted(sending.id));
            is_member(*replica) && !(holds.is_empty() && waiting.is_empty())
        });
    }

    /// Sends nothing any more: only a leader does.
    pub(super) fn clear(&mut self) {
        self.receivers.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receivers.is_empty()
    }
}

/// The commands that came ahead and that no entry here holds yet, the one that was begun first at the front.
#[derive(Default)]
pub(super) struct Incoming {
    commands: VecDeque<Arriving>,
}

struct Arriving {
    id: StagedId,
    total: u64,
    data: Vec<u8>,
    /// Parts that overtook others, by where they begin.
    early: BTreeMap<u64, Bytes>,
    /// All of it, once it is there.
    whole: Option<Bytes>,
    idle_ticks: u64,
}

impl Arriving {
    /// From the first byte on, without a gap.
    fn received(&self) -> usize {
        self.whole.as_ref().map_or(self.data.len(), Bytes::len)
    }

    fn bytes(&self) -> usize {
        self.received() + self.early.values().map(Bytes::len).sum::<usize>()
    }

    fn take(&mut self, part: &Part) {
        let is_more = self.bytes() + part.data.len() > usize::try_from(self.total).unwrap_or(usize::MAX);
        if self.whole.is_some() || part.total != self.total {
            return;
        }
        if is_more {
            // Some came before.
            self.early.clear();
        }
        if part.offset > self.data.len() as u64 {
            self.early.insert(part.offset, part.data.clone());
            return;
        }
        if part.offset == self.data.len() as u64 {
            self.data.extend_from_slice(&part.data);
            self.idle_ticks = 0;
        }
        while let Some(first) =
            self.early.first_entry().filter(|first| *first.key() <= self.data.len() as u64)
        {
            if *first.key() == self.data.len() as u64 {
                self.data.extend_from_slice(first.get());
            }
            first.remove();
        }
        if self.data.len() as u64 >= self.total {
            // Without the room that it grew into.
            self.whole = Some(std::mem::take(&mut self.data).into_boxed_slice().into());
        }
    }
}

impl Incoming {
    /// Takes a part: how many bytes of its command are there, from the first one on. Beyond `most` bytes of all commands the oldest are forgotten.
    pub(super) fn take(&mut self, part: &Part, most: usize) -> u64 {
        if self.commands.iter().all(|one| one.id != part.id) {
            if self.commands.len() >= MOST_COMMANDS {
                self.commands.pop_front();
            }
            let (id, total, early) = (part.id, part.total, BTreeMap::new());
            let whole = None;
            self.commands.push_back(Arriving { id, total, data: Vec::new(), early, whole, idle_ticks: 0 });
        }
        let mut bytes: usize = self.commands.iter().map(Arriving::bytes).sum();
        while bytes + part.data.len() > most && self.commands.front().is_some_and(|one| one.id != part.id) {
            bytes -= self.commands.pop_front().map_or(0, |gone| gone.bytes());
        }
        let Some(one) = self.commands.iter_mut().find(|one| one.id == part.id) else { return 0 };
        one.take(part);
        one.received() as u64
    }

    /// The whole command.
    pub(super) fn get(&self, id: StagedId) -> Option<Bytes> {
        self.commands.iter().find(|one| one.id == id)?.whole.clone()
    }

    /// It is in the log now.
    pub(super) fn remove(&mut self, id: StagedId) {
        self.commands.retain(|one| one.id != id);
    }

    /// Counts a tick, and forgets what nobody names.
    pub(super) fn tick(&mut self) {
        for one in &mut self.commands {
            one.idle_ticks += 1;
        }
        self.commands.retain(|one| one.idle_ticks < KEPT_TICKS);
    }
}
