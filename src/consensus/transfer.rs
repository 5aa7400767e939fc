//! Snapshots on their way from one replica to another, piece by piece.
//!
//! One piece is under way at a time; the next is sent when it is acknowledged, and it is sent again when
//! that takes too long. So a snapshot of any size needs little of the network's memory, survives the loss
//! of envelopes, and goes at the pace at which its receiver takes it.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::Message;

use super::envelope::{Body, Chunk};

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
}

struct Transfer {
    id: u64,
    head: Message,
    data: Bytes,
    offset: usize,
    idle_ticks: u64,
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
    /// Begins a transfer, in place of one that is under way to the same replica.
    pub(super) fn start(&mut self, head: Message, data: Bytes, piece: usize) -> Body {
        self.last_id += 1;
        let to = head.to;
        let transfer = Transfer { id: self.last_id, head, data, offset: 0, idle_ticks: 0 };
        let body = transfer.piece(piece);
        self.transfers.insert(to, transfer);
        body
    }

    pub(super) fn acked(&mut self, from: u64, id: u64, received: u64, piece: usize) -> Acked {
        let Some(transfer) = self.transfers.get_mut(&from).filter(|transfer| transfer.id == id) else {
            return Acked::Old;
        };
        let Some(received) = usize::try_from(received).ok().filter(|received| {
            *received > transfer.offset && *received <= transfer.data.len().min(transfer.offset + piece)
        }) else {
            return Acked::Old;
        };
        transfer.offset = received;
        transfer.idle_ticks = 0;
        if received == transfer.data.len() {
            self.transfers.remove(&from);
            return Acked::Done;
        }
        Acked::Next(transfer.piece(piece).into())
    }

    /// Counts a tick: the pieces to be sent again, and the receivers whose transfer has failed.
    pub(super) fn tick(&mut self, piece: usize) -> (Vec<(u64, Body)>, Vec<u64>) {
        let (mut again, mut failed) = (Vec::new(), Vec::new());
        self.transfers.retain(|to, transfer| {
            transfer.idle_ticks += 1;
            if transfer.idle_ticks >= PATIENCE_TICKS {
                failed.push(*to);
                return false;
            }
            if transfer.idle_ticks.is_multiple_of(RESEND_TICKS) {
                again.push((*to, transfer.piece(piece)));
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
    fn piece(&self, piece: usize) -> Body {
        let end = self.data.len().min(self.offset + piece);
        Body::Chunk(Chunk {
            transfer: self.id,
            total: self.data.len() as u64,
            offset: self.offset as u64,
            head: self.head.clone(),
            data: self.data.slice(self.offset..end),
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
    /// The memory taken grows with the pieces that really arrive, whatever total they claim.
    pub(super) fn take(&mut self, from: u64, chunk: Chunk) -> Option<(u64, Option<(Message, Bytes)>)> {
        let known = self.current.as_ref().is_some_and(|one| one.from == from && one.id == chunk.transfer);
        if !known {
            let newer = self.current.as_ref().is_none_or(|one| chunk.head.term >= one.term);
            if chunk.offset != 0 || !newer || chunk.total > MAX_SNAPSHOT_BYTES {
                return None;
            }
            let (id, term) = (chunk.transfer, chunk.head.term);
            self.current = Some(Arriving { from, id, term, data: Vec::new(), idle_ticks: 0 });
        }
        let one = self.current.as_mut()?;
        // A piece that came before is acknowledged again: the acknowledgement was lost, or is late.
        if chunk.offset == one.data.len() as u64 {
            one.data.extend_from_slice(&chunk.data);
            one.idle_ticks = 0;
        }
        let received = one.data.len() as u64;
        if received < chunk.total {
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
        let Body::Chunk(first) = outgoing.start(head, Bytes::copy_from_slice(data), 4) else { panic!() };
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
    fn a_transfer_without_progress_is_sent_again_and_then_fails() {
        let (mut outgoing, _) = started(&[0; 9]);
        let (mut again, mut failed) = (0, Vec::new());
        for _ in 0..PATIENCE_TICKS {
            let (pieces, given_up) = outgoing.tick(4);
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
