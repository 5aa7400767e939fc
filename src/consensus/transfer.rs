//! Snapshots on their way from one replica to another, piece by piece.
//!
//! One piece is under way at a time; the next is asked for and sent when it is acknowledged, and it is sent again when
//! that takes too long. So a snapshot of any size needs little of the network's memory and of the sender's, survives the loss
//! of envelopes, and goes at the pace at which its receiver takes it.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use raft::eraftpb::Message;

use super::envelope::{Body, Chunk};
use super::machine::Pieces;

/// A piece that is not acknowledged for this many ticks is sent again.
const RESEND_TICKS: u64 = 10;

/// A transfer that makes no progress for this many ticks has failed, and an incoming one is forgotten.
const PATIENCE_TICKS: u64 = 100;

/// The largest snapshot that is accepted; a group with more does not get a new replica.
const MAX_SNAPSHOT_BYTES: u64 = 64 << 30;

/// The snapshots that a leader is sending, by receiver: at most one each.
#[derive(Default)]
pub(super) struct Outgoing {
    transfers: BTreeMap<u64, Transfer>,
    last_id: u64,
    acknowledged: u64,
}

struct Transfer {
    id: u64,
    head: Message,
    rest: Rest,
    /// The piece that is under way, where it begins, and whether it is the last one.
    piece: Bytes,
    offset: u64,
    last: bool,
    idle_ticks: u64,
}

/// What is still to be sent.
struct Rest {
    source: Pieces,
    /// What the source gave last, or what is left of it.
    ready: BytesMut,
}

impl Rest {
    /// The next piece, and whether it is the last one. The source's own may be of any other length.
    fn next(&mut self, length: usize) -> (Bytes, bool) {
        // A piece is known to be the last one only where there is nothing after it.
        while self.ready.len() <= length {
            let Some(more) = self.source.next() else { break };
            self.ready.extend_from_slice(&more);
        }
        let last = self.ready.len() <= length;
        (self.ready.split_to(length.min(self.ready.len())).freeze(), last)
    }
}

/// What an acknowledgement led to.
pub(super) enum Acked {
    /// Nothing: it belongs to no transfer, or to a piece that was acknowledged before.
    Old,
    /// The next piece.
    Next(Box<Body>),
    /// The receiver has it all.
    Done,
}

impl Outgoing {
    /// Whose transfers have ids above this.
    pub(super) fn after(last_id: u64) -> Self {
        Self { last_id, ..Self::default() }
    }

    /// Begins a transfer, in place of one that is under way to the same replica.
    pub(super) fn start(&mut self, head: Message, source: Pieces, length: usize) -> Body {
        self.last_id += 1;
        let (id, to) = (self.last_id, head.to);
        let mut rest = Rest { source, ready: BytesMut::new() };
        let (piece, last) = rest.next(length);
        let transfer = Transfer { id, head, rest, piece, offset: 0, last, idle_ticks: 0 };
        let body = transfer.body();
        self.transfers.insert(to, transfer);
        body
    }

    pub(super) fn acked(&mut self, from: u64, id: u64, received: u64, length: usize) -> Acked {
        let Some(transfer) = self.transfers.get_mut(&from).filter(|transfer| transfer.id == id) else {
            return Acked::Old;
        };
        if received != transfer.offset + transfer.piece.len() as u64 {
            return Acked::Old;
        }
        self.acknowledged += transfer.piece.len() as u64;
        if transfer.last {
            self.transfers.remove(&from);
            return Acked::Done;
        }
        transfer.offset = received;
        transfer.idle_ticks = 0;
        (transfer.piece, transfer.last) = transfer.rest.next(length);
        Acked::Next(transfer.body().into())
    }

    /// The bytes of all snapshots that were ever taken by their receivers.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Counts a tick: the pieces to be sent again, and the receivers whose transfer has failed.
    pub(super) fn tick(&mut self) -> (Vec<(u64, Body)>, Vec<u64>) {
        let (mut again, mut failed) = (Vec::new(), Vec::new());
        self.transfers.retain(|to, transfer| {
            transfer.idle_ticks += 1;
            if transfer.idle_ticks >= PATIENCE_TICKS {
                failed.push(*to);
                return false;
            }
            if transfer.idle_ticks.is_multiple_of(RESEND_TICKS) {
                again.push((*to, transfer.body()));
            }
            true
        });
        (again, failed)
    }

    /// Gives up all transfers: only a leader sends snapshots.
    pub(super) fn clear(&mut self) {
        self.transfers.clear();
    }
}

impl Transfer {
    fn body(&self) -> Body {
        Body::Chunk(Chunk {
            transfer: self.id,
            last: self.last,
            offset: self.offset,
            head: self.head.clone(),
            data: self.piece.clone(),
        })
    }
}

/// The snapshot that a replica is receiving: at most one.
#[derive(Default)]
pub(super) struct Incoming {
    current: Option<Arriving>,
}

struct Arriving {
    from: u64,
    id: u64,
    term: u64,
    data: Vec<u8>,
    idle_ticks: u64,
}

impl Incoming {
    /// Takes a piece: how much has arrived, to be acknowledged, and the whole snapshot once it is there.
    ///
    /// One that grows beyond the largest that is accepted is forgotten, and so are the pieces after it.
    pub(super) fn take(&mut self, from: u64, chunk: Chunk) -> Option<(u64, Option<(Message, Bytes)>)> {
        self.take_up_to(MAX_SNAPSHOT_BYTES, from, chunk)
    }

    fn take_up_to(&mut self, most: u64, from: u64, chunk: Chunk) -> Option<(u64, Option<(Message, Bytes)>)> {
        let known = self.current.as_ref().is_some_and(|one| one.from == from && one.id == chunk.transfer);
        if !known {
            let newer = self.current.as_ref().is_none_or(|one| chunk.head.term >= one.term);
            if chunk.offset != 0 || !newer {
                return None;
            }
            let (id, term) = (chunk.transfer, chunk.head.term);
            self.current = Some(Arriving { from, id, term, data: Vec::new(), idle_ticks: 0 });
        }
        let one = self.current.as_mut()?;
        // A piece that came before is acknowledged again: the acknowledgement was lost, or is late.
        let is_next = chunk.offset == one.data.len() as u64;
        if is_next {
            if chunk.offset + chunk.data.len() as u64 > most {
                self.current = None;
                return None;
            }
            one.data.extend_from_slice(&chunk.data);
            one.idle_ticks = 0;
        }
        let received = one.data.len() as u64;
        if !(is_next && chunk.last) {
            return Some((received, None));
        }
        let whole = self.current.take()?.data;
        Some((received, Some((chunk.head, whole.into()))))
    }

    /// Counts a tick, and forgets a transfer that nobody continues.
    pub(super) fn tick(&mut self) {
        if let Some(one) = &mut self.current {
            one.idle_ticks += 1;
            if one.idle_ticks >= PATIENCE_TICKS {
                self.current = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(data: &[u8]) -> (Outgoing, Chunk) {
        let mut outgoing = Outgoing::default();
        let head = Message { to: 2, from: 1, term: 3, ..Message::default() };
        // A source whose pieces are of other lengths, and some empty.
        let (parts, mut rest) = ([2, 0, 1, 5, 0, 1].into_iter().cycle(), data.to_vec());
        let parts: Vec<Bytes> =
            parts.map(|length| rest.drain(..length.min(rest.len())).collect()).take(data.len() * 2).collect();
        assert_eq!(parts.concat(), data);
        let Body::Chunk(first) = outgoing.start(head, Box::new(parts.into_iter()), 4) else { panic!() };
        (outgoing, first)
    }

    #[test]
    fn a_snapshot_arrives_whole_although_every_piece_comes_twice() {
        let data: Vec<u8> = (0..11).collect();
        let (mut outgoing, mut piece) = started(&data);
        let mut incoming = Incoming::default();
        loop {
            let (received, whole) = incoming.take(1, piece.clone()).unwrap();
            if let Some((head, whole)) = whole {
                assert_eq!(whole, data);
                assert_eq!(head.term, 3);
                assert!(matches!(outgoing.acked(2, 1, received, 4), Acked::Done));
                break;
            }
            assert_eq!(incoming.take(1, piece.clone()).unwrap().0, received);
            let Acked::Next(next) = outgoing.acked(2, 1, received, 4) else { panic!() };
            let Body::Chunk(next) = *next else { panic!() };
            assert!(matches!(outgoing.acked(2, 1, received, 4), Acked::Old));
            piece = next;
        }
    }

    #[test]
    fn pieces_are_as_long_as_is_asked_for_and_the_last_one_says_so() {
        for (length, wanted) in [(0, vec![(0, true)]), (1, vec![(1, true)]), (4, vec![(4, true)])]
            .into_iter()
            .chain([(5, vec![(4, false), (1, true)]), (8, vec![(4, false), (4, true)])])
        {
            let data: Vec<u8> = (0..length).collect();
            let (mut outgoing, mut piece) = started(&data);
            let mut pieces = vec![(piece.data.len(), piece.last)];
            while let Acked::Next(next) = outgoing.acked(2, 1, piece.offset + piece.data.len() as u64, 4) {
                let Body::Chunk(next) = *next else { panic!() };
                pieces.push((next.data.len(), next.last));
                piece = next;
            }
            assert_eq!(pieces, wanted, "{length}");
        }
    }

    #[test]
    fn a_snapshot_that_grows_too_large_is_forgotten() {
        let (mut outgoing, first) = started(&[0; 9]);
        let Acked::Next(second) = outgoing.acked(2, 1, 4, 4) else { panic!() };
        let Body::Chunk(second) = *second else { panic!() };
        let mut incoming = Incoming::default();
        assert_eq!(incoming.take_up_to(7, 1, first).map(|(received, _)| received), Some(4));
        assert!(incoming.take_up_to(7, 1, second.clone()).is_none());
        assert!(incoming.take_up_to(8, 1, second).is_none(), "what came before it is gone");
        assert!(incoming.current.is_none());
    }

    #[test]
    fn a_transfer_without_progress_is_sent_again_and_then_fails() {
        let (mut outgoing, _) = started(&[0; 9]);
        let (mut again, mut failed) = (0, Vec::new());
        for _ in 0..PATIENCE_TICKS {
            let (pieces, given_up) = outgoing.tick();
            again += pieces.len();
            failed.extend(given_up);
        }
        assert_eq!(again as u64, PATIENCE_TICKS / RESEND_TICKS - 1);
        assert_eq!(failed, [2]);
        assert!(outgoing.transfers.is_empty());
    }

    #[test]
    fn a_later_leader_takes_the_place_of_an_earlier_one_but_not_the_reverse() {
        let (_, old) = started(&[0; 9]);
        let mut new = old.clone();
        new.head.term += 1;
        let mut incoming = Incoming::default();
        assert!(incoming.take(1, old.clone()).is_some());
        assert!(incoming.take(5, new).is_some());
        assert!(incoming.take(1, old).is_none());
    }
}
