//! The form of an envelope on the wire.
//!
//! The crate's own form is protobuf, whose parser (2.x) can be made to recurse until the stack overflows
//! (RUSTSEC-2024-0437). So bytes from the network are read here only, by [`Reader`], and only into the
//! messages and fields that replicas really send each other. What would make the crate panic by its form
//! alone (gaps between entries, falling terms) is refused here.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, SnapshotMetadata};

use super::envelope::{Body, Chunk, Envelope, Part, ReadIndex};
use super::members::MAX_MEMBERS;
use super::staging::{StagedId, is_reference};
use crate::model::binary::{Malformed, Reader, put_bytes, put_number};

/// The most entries that one message may hold.
const MAX_ENTRIES: usize = 1 << 20;

/// The longest command or change of members.
pub(super) const MAX_ENTRY_BYTES: usize = 64 << 20;

/// The longest context: the id of a batch of reads, or the mark of an election by hand-over.
const MAX_CONTEXT_BYTES: usize = 64;

/// The largest piece of a snapshot.
pub(super) const MAX_CHUNK_BYTES: usize = 16 << 20;

/// The messages that replicas send each other, by the number that stands for them. Proposals, reads and
/// requests for hand-over are not among them: only the leader takes those, from its own node.
const KINDS: [MessageType; 9] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
];
const CHUNK: u8 = 100;
const CHUNK_ACK: u8 = 101;
const PART: u8 = 102;
const PART_ACK: u8 = 103;
const READ_QUESTION: u8 = 104;
const READ_INDEX: u8 = 105;
const ROOM: u8 = 106;

const ENTRY_TYPES: [EntryType; 2] = [EntryType::EntryNormal, EntryType::EntryConfChangeV2];
/// In place of a type: an entry whose command went ahead and is only named.
const REFERENCE: u8 = 2;

impl Envelope {
    /// Appends the envelope's form on the wire.
    ///
    /// # Panics
    /// When the crate sends a kind of message that the settings rule out, or entries with gaps.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.body {
            Body::Raft(message) => {
                let kind = KINDS.iter().position(|kind| *kind == message.get_msg_type());
                let kind = kind.expect("replicas send each other only the messages of the table");
                out.push(u8::try_from(kind).expect("the table is short"));
                self.put_ends(out);
                put_message(out, message);
                put_number(out, message.entries.len() as u64);
                for (index, entry) in (message.index + 1..).zip(message.get_entries()) {
                    assert_eq!(entry.index, index, "entries follow their message without a gap");
                    put_entry(out, entry);
                }
            }
            Body::Chunk(chunk) => {
                out.push(CHUNK);
                self.put_ends(out);
                put_message(out, &chunk.head);
                put_snapshot_head(out, chunk.head.get_snapshot().get_metadata());
                put_number(out, chunk.transfer);
                out.push(u8::from(chunk.last));
                put_number(out, chunk.offset);
                put_bytes(out, &chunk.data);
            }
            Body::ChunkAck { transfer, received } => {
                out.push(CHUNK_ACK);
                self.put_ends(out);
                put_number(out, *transfer);
                put_number(out, *received);
            }
            Body::Part(part) => {
                out.push(PART);
                self.put_ends(out);
                put_staged_id(out, part.id);
                put_number(out, part.total);
                put_number(out, part.offset);
                put_bytes(out, &part.data);
            }
            Body::PartAck { id, received } => {
                out.push(PART_ACK);
                self.put_ends(out);
                put_staged_id(out, *id);
                put_number(out, *received);
            }
            Body::ReadQuestion { question, term } => {
                out.push(READ_QUESTION);
                self.put_ends(out);
                put_number(out, *question);
                put_number(out, *term);
            }
            Body::ReadIndex(ReadIndex { question, index, term }) => {
                out.push(READ_INDEX);
                self.put_ends(out);
                put_number(out, *question);
                put_number(out, *index);
                put_number(out, *term);
            }
            Body::Room { left } => {
                out.push(ROOM);
                self.put_ends(out);
                put_number(out, *left);
            }
        }
    }

    fn put_ends(&self, out: &mut Vec<u8>) {
        for number in [self.group, self.from, self.to] {
            put_number(out, number);
        }
    }

    /// Reads one envelope from the start of `reader`.
    ///
    /// # Errors
    /// When the bytes are not an envelope. None of them was acted on.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kind = reader.byte()?;
        let (group, from, to) = (reader.number()?, reader.number()?, reader.number()?);
        if from == 0 || to == 0 {
            return Err(Malformed("a replica id is never 0"));
        }
        let body = match kind {
            CHUNK => Body::Chunk(read_chunk(reader, from, to)?),
            CHUNK_ACK => Body::ChunkAck { transfer: reader.number()?, received: reader.number()? },
            PART => Body::Part(read_part(reader)?),
            PART_ACK => Body::PartAck { id: read_staged_id(reader)?, received: reader.number()? },
            READ_QUESTION => Body::ReadQuestion { question: reader.number()?, term: reader.number()? },
            ROOM => Body::Room { left: reader.number()? },
            READ_INDEX => {
                let (question, index) = (reader.number()?, reader.number()?);
                Body::ReadIndex(ReadIndex { question, index, term: reader.number()? })
            }
            _ => {
                let kind = *KINDS.get(usize::from(kind)).ok_or(Malformed("unknown kind of message"))?;
                let mut message = read_message(reader, kind, from, to)?;
                message.set_entries(read_entries(reader, &message)?.into());
                Body::Raft(message)
            }
        };
        Ok(Self { group, from, to, body })
    }
}

fn put_message(out: &mut Vec<u8>, message: &Message) {
    for number in [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ] {
        put_number(out, number);
    }
    out.push(u8::from(message.reject));
    put_bytes(out, &message.context);
}

fn read_message(
    reader: &mut Reader<'_>,
    kind: MessageType,
    from: u64,
    to: u64,
) -> Result<Message, Malformed> {
    let mut message = Message { from, to, ..Message::default() };
    message.set_msg_type(kind);
    message.term = reader.number()?;
    message.log_term = reader.number()?;
    message.index = reader.number()?;
    message.commit = reader.number()?;
    message.commit_term = reader.number()?;
    message.reject_hint = reader.number()?;
    message.reject = reader.flag()?;
    message.context = Bytes::copy_from_slice(reader.bytes(MAX_CONTEXT_BYTES)?);
    // The crate takes term 0 for its own local messages, and steps over every check of terms.
    if message.term == 0 {
        return Err(Malformed("a message has a term"));
    }
    Ok(message)
}

/// The index of an entry is not written: it follows from the message and the place.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    if is_reference(entry) {
        out.push(REFERENCE);
        put_number(out, entry.term);
        out.extend_from_slice(&entry.context);
        return;
    }
    let kind = ENTRY_TYPES.iter().position(|kind| *kind == entry.get_entry_type());
    let kind = kind.expect("entries are of the types of the table");
    out.push(u8::try_from(kind).expect("the table is short"));
    put_number(out, entry.term);
    put_bytes(out, &entry.data);
    put_bytes(out, &entry.context);
}

fn read_entries(reader: &mut Reader<'_>, message: &Message) -> Result<Vec<Entry>, Malformed> {
    let count = reader.count(MAX_ENTRIES)?;
    if count > 0 && message.get_msg_type() != MessageType::MsgAppend {
        return Err(Malformed("only an append has entries"));
    }
    // An entry in memory is larger than its shortest form: the list grows as entries are really read.
    let mut entries = Vec::with_capacity(count.min(1024));
    let (mut index, mut term) = (message.index, message.log_term);
    for _ in 0..count {
        let mut entry = read_entry(reader)?;
        if entry.term < term || entry.term > message.term {
            return Err(Malformed("terms of entries only grow"));
        }
        term = entry.term;
        index = index.checked_add(1).ok_or(Malformed("an index has 64 bits"))?;
        entry.index = index;
        entries.push(entry);
    }
    Ok(entries)
}

/// Reads an entry, but for its index.
pub(super) fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let kind = reader.byte()?;
    let mut entry = Entry::default();
    let types = ENTRY_TYPES.get(usize::from(kind)).copied();
    let is_reference = kind == REFERENCE;
    let normal = is_reference.then_some(EntryType::EntryNormal);
    entry.set_entry_type(types.or(normal).ok_or(Malformed("unknown kind of entry"))?);
    entry.term = reader.number()?;
    // Copied, so that one small entry does not keep the whole batch it came in.
    if is_reference {
        entry.context = Bytes::copy_from_slice(reader.take(StagedId::BYTES)?);
    } else {
        entry.data = Bytes::copy_from_slice(reader.bytes(MAX_ENTRY_BYTES)?);
        entry.context = Bytes::copy_from_slice(reader.bytes(MAX_ENTRY_BYTES)?);
    }
    Ok(entry)
}

pub(super) fn put_snapshot_head(out: &mut Vec<u8>, head: &SnapshotMetadata) {
    put_number(out, head.index);
    put_number(out, head.term);
    let members = head.get_conf_state();
    for list in [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next] {
        put_number(out, list.len() as u64);
        for replica in list {
            put_number(out, *replica);
        }
    }
}

pub(super) fn read_snapshot_head(reader: &mut Reader<'_>) -> Result<SnapshotMetadata, Malformed> {
    let mut head = SnapshotMetadata { index: reader.number()?, term: reader.number()?, ..Default::default() };
    let mut list = || -> Result<Vec<u64>, Malformed> {
        let count = reader.count(MAX_MEMBERS)?;
        let list = (0..count).map(|_| reader.number()).collect::<Result<Vec<u64>, _>>()?;
        if list.contains(&0) { Err(Malformed("a replica id is never 0")) } else { Ok(list) }
    };
    let mut members = ConfState { voters: list()?, learners: list()?, ..ConfState::default() };
    members.voters_outgoing = list()?;
    members.learners_next = list()?;
    // The crate ends the process where a configuration contradicts itself.
    let distinct = |list: &[u64]| list.iter().enumerate().all(|(at, id)| !list[..at].contains(id));
    let sound = !members.voters.is_empty()
        && [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next]
            .into_iter()
            .all(|list| distinct(list))
        && members
            .learners
            .iter()
            .all(|id| !members.voters.contains(id) && !members.voters_outgoing.contains(id))
        && members
            .learners_next
            .iter()
            .all(|id| members.voters_outgoing.contains(id) && !members.voters.contains(id));
    if !sound || head.index == 0 {
        return Err(Malformed("a snapshot contradicts itself"));
    }
    head.set_conf_state(members);
    Ok(head)
}

fn read_chunk(reader: &mut Reader<'_>, from: u64, to: u64) -> Result<Chunk, Malformed> {
    let mut head = read_message(reader, MessageType::MsgSnapshot, from, to)?;
    head.mut_snapshot().set_metadata(read_snapshot_head(reader)?);
    let (transfer, last, offset) = (reader.number()?, reader.flag()?, reader.number()?);
    let data = Bytes::copy_from_slice(reader.bytes(MAX_CHUNK_BYTES)?);
    if offset.checked_add(data.len() as u64).is_none() || (data.is_empty() && !(last && offset == 0)) {
        return Err(Malformed("a piece lies outside its snapshot"));
    }
    Ok(Chunk { transfer, last, offset, head, data })
}

fn put_staged_id(out: &mut Vec<u8>, id: StagedId) {
    out.extend_from_slice(&id.bytes());
}

fn read_staged_id(reader: &mut Reader<'_>) -> Result<StagedId, Malformed> {
    StagedId::read(reader.take(StagedId::BYTES)?).ok_or(Malformed("cut off"))
}

fn read_part(reader: &mut Reader<'_>) -> Result<Part, Malformed> {
    let id = read_staged_id(reader)?;
    let (total, offset) = (reader.number()?, reader.number()?);
    let data = Bytes::copy_from_slice(reader.bytes(MAX_CHUNK_BYTES)?);
    let end = offset.checked_add(data.len() as u64);
    if data.is_empty() || total > MAX_ENTRY_BYTES as u64 || end.is_none_or(|end| end > total) {
        return Err(Malformed("a part lies outside its command"));
    }
    Ok(Part { id, total, offset, data })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn message(kind: MessageType) -> impl Strategy<Value = Message> {
        let numbers = (1_u64.., 0_u64..9, 0_u64..1 << 40, any::<u64>(), any::<u64>(), any::<u64>());
        (numbers, 1_u64.., 1_u64.., any::<bool>(), bytes(MAX_CONTEXT_BYTES)).prop_map(
            move |((term, log_term, index, commit, commit_term, reject_hint), from, to, reject, context)| {
                let mut message = Message { from, to, term, log_term, index, commit, ..Message::default() };
                message.set_msg_type(kind);
                message.commit_term = commit_term;
                message.reject_hint = reject_hint;
                message.reject = reject;
                message.context = context;
                message
            },
        )
    }

    fn raft() -> impl Strategy<Value = Message> {
        let named = staged_id().prop_map(|id| (false, Bytes::new(), id.bytes()));
        let whole = (any::<bool>(), bytes(40), bytes(20));
        let entries = prop::collection::vec(prop_oneof![whole, named], 0..9);
        (prop::sample::select(KINDS.to_vec()).prop_flat_map(message), entries).prop_map(
            |(mut message, entries)| {
                if message.get_msg_type() == MessageType::MsgAppend {
                    message.term += 10;
                    let (index, term) = (message.index, message.log_term);
                    let entry = |(at, (change, data, context)): (usize, (bool, Bytes, Bytes))| {
                        let at = at as u64;
                        let mut entry =
                            Entry { index: index + 1 + at, term: term + at / 4, data, ..Entry::default() };
                        entry.set_entry_type(ENTRY_TYPES[usize::from(change)]);
                        entry.context = context;
                        entry
                    };
                    message.set_entries(entries.into_iter().enumerate().map(entry).collect());
                }
                message
            },
        )
    }

    fn chunk() -> impl Strategy<Value = (Message, Body)> {
        let ids = || prop::collection::btree_set(1_u64..1000, 1..5);
        let place = (0_u64..9, any::<bool>());
        (message(MessageType::MsgSnapshot), ids(), ids(), bytes(100), place, 1_u64..99).prop_map(
            |(mut head, voters, learners, data, (offset, last), index)| {
                let mut members =
                    ConfState { voters: voters.iter().copied().collect(), ..ConfState::default() };
                members.voters_outgoing = vec![5000, 5001];
                members.learners_next = vec![5001];
                members.learners = learners.difference(&voters).copied().collect();
                let mut snapshot = SnapshotMetadata { index, term: 3, ..SnapshotMetadata::default() };
                snapshot.set_conf_state(members);
                head.mut_snapshot().set_metadata(snapshot);
                let (offset, last) = if data.is_empty() { (0, true) } else { (offset, last) };
                (head.clone(), Body::Chunk(Chunk { transfer: 4, last, offset, head, data }))
            },
        )
    }

    fn staged_id() -> impl Strategy<Value = StagedId> {
        (any::<u64>(), any::<u64>()).prop_map(|(replica, number)| StagedId { replica, number })
    }

    fn ends() -> impl Strategy<Value = Message> {
        (1_u64.., 1_u64..).prop_map(|(from, to)| Message { from, to, ..Message::default() })
    }

    fn part() -> impl Strategy<Value = (Message, Body)> {
        let data = prop::collection::vec(any::<u8>(), 1..99).prop_map(Bytes::from);
        (ends(), staged_id(), data, 0_u64..99, 0_u64..99).prop_map(|(ends, id, data, offset, rest)| {
            let total = offset + data.len() as u64 + rest;
            (ends, Body::Part(Part { id, total, offset, data }))
        })
    }

    fn part_ack() -> impl Strategy<Value = (Message, Body)> {
        (ends(), staged_id(), any::<u64>())
            .prop_map(|(ends, id, received)| (ends, Body::PartAck { id, received }))
    }

    fn reads() -> impl Strategy<Value = (Message, Body)> {
        let question =
            (any::<u64>(), any::<u64>()).prop_map(|(question, term)| Body::ReadQuestion { question, term });
        let index = (any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(question, index, term)| Body::ReadIndex(ReadIndex { question, index, term }));
        let room = any::<u64>().prop_map(|left| Body::Room { left });
        (ends(), prop_oneof![question, index, room])
    }

    fn envelope() -> impl Strategy<Value = Envelope> {
        let ack =
            (1_u64.., 1_u64.., any::<u64>(), any::<u64>()).prop_map(|(from, to, transfer, received)| {
                (Message { from, to, ..Message::default() }, Body::ChunkAck { transfer, received })
            });
        let raft = raft().prop_map(|m| (m.clone(), Body::Raft(m)));
        let body = prop_oneof![raft, chunk(), ack, part(), part_ack(), reads()];
        (any::<u64>(), body).prop_map(|(group, (ends, body))| Envelope {
            group,
            from: ends.from,
            to: ends.to,
            body,
        })
    }

    fn encoded(envelope: &Envelope) -> Vec<u8> {
        let mut out = Vec::new();
        envelope.encode(&mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_message_survives_a_round_trip(envelope in envelope()) {
            let bytes = encoded(&envelope);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Envelope::decode(&mut reader).unwrap(), envelope);
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn a_message_cut_short_is_refused(envelope in envelope(), cut: prop::sample::Index) {
            let bytes = encoded(&envelope);
            prop_assert!(Envelope::decode(&mut Reader::new(&bytes[..cut.index(bytes.len())])).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, kind in prop::option::of(0_u8..9)) {
            let mut bytes = bytes;
            bytes.splice(0..0, kind);
            let _ = Envelope::decode(&mut Reader::new(&bytes));
        }

        #[test]
        fn a_damaged_message_is_read_without_a_panic(envelope in envelope(), at: prop::sample::Index, to: u8) {
            let mut bytes = encoded(&envelope);
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(read) = Envelope::decode(&mut Reader::new(&bytes)) {
                // What is understood at all has one form only.
                prop_assert_eq!(Envelope::decode(&mut Reader::new(&encoded(&read))).unwrap(), read);
            }
        }
    }

    #[test]
    fn a_length_that_is_not_there_takes_no_memory() {
        let mut out = vec![0];
        for number in [1, 2, 3, 9, 0, 0, 0, 0, 0] {
            put_number(&mut out, number);
        }
        out.push(0);
        out.push(0);
        put_number(&mut out, u64::MAX);
        assert_eq!(Envelope::decode(&mut Reader::new(&out)), Err(Malformed("too many")));
    }
}
