//! The changes of a shard as the log of its group holds them, and what comes of them.
//!
//! Every change of a shard whose group has several replicas is one of these. What applying one does depends on the state and the
//! command only: the clock and the ids of requests are read by whoever proposes it.

use super::batch::{BATCH, Write, put_batch, read_batch};
use super::form::{put_checksum, read_checksum};
use super::{
    Action, AuditBegun, CensusCount, CensusId, Checksum, Delta, Directive, Forwarded, Frozen, HashRange,
    MoveError, Operation, Refused, RequestId, Shard, Stamp, WriteOutcome, Written,
};
use crate::model::binary::{LONGEST_BYTES, Malformed, Reader, put_bytes, put_list, put_number, put_option};
use crate::model::condition::Condition;
use crate::model::format;
use crate::model::ttl::Ttl;

/// A change of a shard.
pub enum ShardCommand {
    /// A client's write; done once under the id of its request.
    Write {
        /// The key.
        key: Box<[u8]>,
        /// What is to be done.
        change: Change,
        /// What has to be there.
        condition: Option<Box<Condition>>,
        /// For how long what is written lives from then on.
        ttl: Option<Ttl>,
        /// The request, the epoch it was routed by, and the times by which it is remembered.
        forwarded: Forwarded,
    },
    /// Several of them, done one after the other.
    Batch(Vec<Write>),
    /// [`Shard::begin_outgoing`].
    BeginOutgoing {
        /// Who orders it.
        stamp: Stamp,
        /// What leaves.
        range: HashRange,
    },
    /// [`Shard::take_delta`].
    TakeDelta {
        /// Who orders it.
        stamp: Stamp,
    },
    /// [`Shard::freeze`].
    Freeze {
        /// Who orders it.
        stamp: Stamp,
    },
    /// [`Shard::begin_incoming`].
    BeginIncoming {
        /// Who orders it.
        stamp: Stamp,
        /// What comes.
        range: HashRange,
    },
    /// [`Shard::install`].
    Install {
        /// Who orders it.
        stamp: Stamp,
        /// What the source sent.
        delta: Delta,
    },
    /// [`Shard::prepare`].
    Prepare {
        /// Who orders it.
        stamp: Stamp,
        /// What has to be here.
        frozen: Frozen,
        /// The group's time in milliseconds: what goes along is as old as it was when it came.
        now_ms: u64,
        /// The times of the pairs that end are moved by so many milliseconds, where there are such pairs: those of the source show so much less.
        shift_ms: Option<i64>,
    },
    /// [`Shard::learn`].
    Learn(Directive),
    /// [`Shard::take_census`].
    Census {
        /// Which one.
        id: CensusId,
        /// What is counted.
        ranges: Vec<HashRange>,
    },
    /// [`Shard::close_census`].
    CloseCensus {
        /// Which one.
        id: CensusId,
    },
    /// [`Shard::begin_audit`].
    BeginAudit {
        /// The audit.
        id: u64,
    },
    /// So late it is: pairs whose time is over end.
    PassTime {
        /// The group's time in milliseconds.
        now_ms: u64,
    },
    /// [`Shard::keep_history`].
    KeepHistory,
}

/// What a write does to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Insert or replace it; the value as [`value`](crate::model::value) stores it.
    Put(Box<[u8]>),
    /// Delete it.
    Delete,
    /// Let it live for another time.
    Touch,
}

impl Change {
    /// The value of one that puts it.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Self::Put(value) => Some(value),
            Self::Delete | Self::Touch => None,
        }
    }

    /// What an operation does, where it changes anything.
    #[cfg(test)]
    pub(crate) fn of(operation: &Operation) -> Option<Self> {
        match operation.action {
            Action::Get => None,
            Action::Put(value) => Some(Self::Put(value.into())),
            Action::Delete => Some(Self::Delete),
            Action::Touch => Some(Self::Touch),
        }
    }

    pub(crate) fn action(&self) -> Action<'_> {
        match self {
            Self::Put(value) => Action::Put(value),
            Self::Delete => Action::Delete,
            Self::Touch => Action::Touch,
        }
    }
}

/// What applying a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardOutcome {
    /// Of a write: what it did, now or when it was done before.
    Write(Result<Written, Refused>),
    /// Of several writes: the same of each.
    Batch(Vec<Result<Written, Refused>>),
    /// Of an order about a piece, other than to prepare it.
    Moved(Result<(), MoveError>),
    /// Of an order to prepare a piece: what was received.
    Prepared(Result<Checksum, MoveError>),
    /// Of a census: nothing where one is planned already, or another was taken later.
    Census(Option<CensusCount>),
    /// Of an audit: the moment that is summed up.
    AuditBegun(AuditBegun),
    /// Of what cannot fail.
    Done,
    /// Nothing was done: the command cannot be read. No replica of this version proposes such a one.
    Malformed,
}

const PUT: u8 = 0;
const DELETE: u8 = 1;
const BEGIN_OUTGOING: u8 = 2;
const TAKE_DELTA: u8 = 3;
const FREEZE: u8 = 4;
const BEGIN_INCOMING: u8 = 5;
const INSTALL: u8 = 6;
const PREPARE: u8 = 7;
const LEARN: u8 = 8;
const CENSUS: u8 = 9;
const CLOSE_CENSUS: u8 = 10;
const BEGIN_AUDIT: u8 = 11;
const PUT_IF: u8 = 12;
const DELETE_IF: u8 = 13;
/// A write that has a time to live, or gives one.
const TIMED_WRITE: u8 = 14;
const PASS_TIME: u8 = 15;
/// To prepare a piece in which pairs end.
const PREPARE_SHIFTED: u8 = 16;
const KEEP_HISTORY: u8 = 24;
/// To prepare a piece along with which changes go, for those who watch.
const PREPARE_TOLD: u8 = 25;

/// What a [`TIMED_WRITE`] does.
const TOUCH: u8 = 0;
const TIMED_PUT: u8 = 1;

/// The binary form of [`ShardCommand::Write`], without copying key and value into one first.
pub fn encode_write(key: &[u8], operation: Operation, forwarded: &Forwarded) -> Vec<u8> {
    let value = operation.value();
    // Kind, time to live, request, three numbers of at most ten bytes, two lengths of at most five.
    let mut out = Vec::with_capacity(1 + 12 + 30 + 30 + 10 + key.len() + value.map_or(0, <[u8]>::len));
    put_write(key, operation, forwarded, &mut out);
    out
}

/// Appends it.
pub(super) fn put_write(key: &[u8], operation: Operation, forwarded: &Forwarded, out: &mut Vec<u8>) {
    let Operation { condition, ttl, .. } = operation;
    let value = operation.value();
    if operation.needs() >= format::TTL {
        out.extend([TIMED_WRITE, if value.is_some() { TIMED_PUT } else { TOUCH }]);
        put_option(out, ttl.as_ref(), |ttl, out| put_number(out, ttl.ms()));
        put_option(out, condition, Condition::encode);
    } else {
        out.push(match (value, condition) {
            (Some(_), None) => PUT,
            (None, None) => DELETE,
            (Some(_), Some(_)) => PUT_IF,
            (None, Some(_)) => DELETE_IF,
        });
        if let Some(condition) = condition {
            condition.encode(out);
        }
    }
    forwarded.request.encode(out);
    put_number(out, forwarded.epoch);
    put_number(out, forwarded.now_ms);
    put_number(out, forwarded.keep_ms);
    put_bytes(out, key);
    if let Some(value) = value {
        put_bytes(out, value);
    }
}

/// Reads a write whose first byte was read already; nothing where that is of something else.
///
/// # Errors
/// When the bytes are no write.
pub(super) fn read_write(kind: u8, reader: &mut Reader<'_>) -> Result<Option<Write>, Malformed> {
    let (is_put, ttl, condition) = match kind {
        TIMED_WRITE => {
            let is_put = match reader.byte()? {
                TOUCH => false,
                TIMED_PUT => true,
                _ => return Err(Malformed("unknown kind of write")),
            };
            (is_put, reader.option(read_ttl)?, reader.option(Condition::decode)?)
        }
        PUT_IF | DELETE_IF => (kind == PUT_IF, None, Some(Condition::decode(reader)?)),
        PUT | DELETE => (kind == PUT, None, None),
        _ => return Ok(None),
    };
    let (request, epoch) = (RequestId::decode(reader)?, reader.number()?);
    let (now_ms, keep_ms) = (reader.number()?, reader.number()?);
    let key = reader.bytes(LONGEST_BYTES)?.into();
    let change = match kind {
        _ if is_put => Change::Put(reader.bytes(LONGEST_BYTES)?.into()),
        TIMED_WRITE => Change::Touch,
        _ => Change::Delete,
    };
    let forwarded = Forwarded { request, epoch, now_ms, keep_ms };
    Ok(Some(Write { key, change, condition: condition.map(Box::new), ttl, forwarded }))
}

impl ShardCommand {
    /// The group's time when it was proposed, where what it does depends on that.
    pub fn time_ms(&self) -> Option<u64> {
        match self {
            Self::Write { forwarded, .. } => Some(forwarded.now_ms),
            Self::Batch(writes) => writes.iter().map(|write| write.forwarded.now_ms).max(),
            Self::Prepare { now_ms, .. } | Self::PassTime { now_ms } => Some(*now_ms),
            _ => None,
        }
    }

    /// The format that a node has to know to apply it.
    pub fn needs(&self) -> u32 {
        match self {
            Self::Write { change, condition, ttl, .. } => {
                operation(change, condition.as_deref(), *ttl).needs()
            }
            Self::Batch(writes) => {
                let needs = writes.iter().map(|write| write.operation().needs()).max();
                needs.unwrap_or(format::FIRST).max(format::BATCHES)
            }
            Self::Install { delta, .. } => delta.needs(),
            Self::KeepHistory => format::WATCH,
            Self::Prepare { frozen, .. } if !frozen.history.is_empty() => format::WATCH,
            Self::Prepare { shift_ms: Some(_), .. } | Self::PassTime { .. } => format::TTL,
            Self::Prepare { frozen, .. } => frozen.remembered.needs(),
            _ => format::FIRST,
        }
    }

    /// Its binary form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut order = |kind: u8, stamp: &Stamp| {
            out.push(kind);
            stamp.encode(&mut out);
        };
        match self {
            Self::Write { key, change, condition, ttl, forwarded } => {
                let operation = operation(change, condition.as_deref(), *ttl);
                return encode_write(key, operation, forwarded);
            }
            Self::Batch(writes) => {
                out.push(BATCH);
                let writes = writes.iter().map(|write| (&*write.key, write.operation(), &write.forwarded));
                put_batch(writes, &mut out);
            }
            Self::BeginOutgoing { stamp, range } => {
                order(BEGIN_OUTGOING, stamp);
                range.encode(&mut out);
            }
            Self::TakeDelta { stamp } => order(TAKE_DELTA, stamp),
            Self::Freeze { stamp } => order(FREEZE, stamp),
            Self::BeginIncoming { stamp, range } => {
                order(BEGIN_INCOMING, stamp);
                range.encode(&mut out);
            }
            Self::Install { stamp, delta } => {
                order(INSTALL, stamp);
                delta.encode(&mut out);
            }
            Self::Prepare { stamp, frozen, now_ms, shift_ms } if !frozen.history.is_empty() => {
                order(PREPARE_TOLD, stamp);
                frozen.encode(&mut out);
                put_number(&mut out, *now_ms);
                put_option(&mut out, shift_ms.as_ref(), |ms, out| put_number(out, ms.cast_unsigned()));
                put_bytes(&mut out, &frozen.history);
            }
            Self::Prepare { stamp, frozen, now_ms, shift_ms } => {
                order(if shift_ms.is_some() { PREPARE_SHIFTED } else { PREPARE }, stamp);
                frozen.encode(&mut out);
                put_number(&mut out, *now_ms);
                if let Some(shift_ms) = shift_ms {
                    put_number(&mut out, shift_ms.cast_unsigned());
                }
            }
            Self::Learn(directive) => {
                out.push(LEARN);
                directive.encode(&mut out);
            }
            Self::Census { id, ranges } => {
                out.push(CENSUS);
                id.encode(&mut out);
                put_list(&mut out, ranges.iter(), HashRange::encode);
            }
            Self::CloseCensus { id } => {
                out.push(CLOSE_CENSUS);
                id.encode(&mut out);
            }
            Self::BeginAudit { id } => {
                out.push(BEGIN_AUDIT);
                put_number(&mut out, *id);
            }
            Self::PassTime { now_ms } => {
                out.push(PASS_TIME);
                put_number(&mut out, *now_ms);
            }
            Self::KeepHistory => out.push(KEEP_HISTORY),
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no command.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let reader = &mut Reader::new(bytes);
        let kind = reader.byte()?;
        if let Some(Write { key, change, condition, ttl, forwarded }) = read_write(kind, reader)? {
            reader.end()?;
            return Ok(Self::Write { key, change, condition, ttl, forwarded });
        }
        let command = match kind {
            BATCH => Self::Batch(read_batch(reader)?),
            BEGIN_OUTGOING => {
                Self::BeginOutgoing { stamp: Stamp::decode(reader)?, range: HashRange::decode(reader)? }
            }
            TAKE_DELTA => Self::TakeDelta { stamp: Stamp::decode(reader)? },
            FREEZE => Self::Freeze { stamp: Stamp::decode(reader)? },
            BEGIN_INCOMING => {
                Self::BeginIncoming { stamp: Stamp::decode(reader)?, range: HashRange::decode(reader)? }
            }
            INSTALL => Self::Install { stamp: Stamp::decode(reader)?, delta: Delta::decode(reader)? },
            kind @ (PREPARE | PREPARE_SHIFTED) => {
                let (stamp, frozen) = (Stamp::decode(reader)?, Frozen::decode(reader)?);
                let now_ms = reader.number()?;
                let is_shifted = kind == PREPARE_SHIFTED;
                let shift_ms = if is_shifted { Some(reader.number()?.cast_signed()) } else { None };
                Self::Prepare { stamp, frozen, now_ms, shift_ms }
            }
            PREPARE_TOLD => {
                let (stamp, mut frozen) = (Stamp::decode(reader)?, Frozen::decode(reader)?);
                let (now_ms, shift_ms) = (reader.number()?, reader.option(Reader::number)?);
                frozen.history = reader.bytes(LONGEST_BYTES)?.to_vec();
                Self::Prepare { stamp, frozen, now_ms, shift_ms: shift_ms.map(u64::cast_signed) }
            }
            LEARN => Self::Learn(Directive::decode(reader)?),
            CENSUS => Self::Census { id: CensusId::decode(reader)?, ranges: reader.list(HashRange::decode)? },
            CLOSE_CENSUS => Self::CloseCensus { id: CensusId::decode(reader)? },
            BEGIN_AUDIT => Self::BeginAudit { id: reader.number()? },
            PASS_TIME => Self::PassTime { now_ms: reader.number()? },
            KEEP_HISTORY => Self::KeepHistory,
            _ => return Err(Malformed("unknown kind of command")),
        };
        reader.end()?;
        Ok(command)
    }
}

impl ShardOutcome {
    /// Its binary form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Write(Ok(written)) => {
                out.extend([0, written.outcome.to_byte()]);
                put_number(&mut out, written.version);
            }
            Self::Write(Err(refused)) => out.extend([1, *refused as u8]),
            Self::Batch(all) => {
                out.push(11);
                put_list(&mut out, all.iter(), |done, out| match done {
                    Ok(written) => {
                        out.extend([0, written.outcome.to_byte()]);
                        put_number(out, written.version);
                    }
                    Err(refused) => out.extend([1, *refused as u8]),
                });
            }
            Self::Moved(Ok(())) => out.push(2),
            Self::Prepared(Ok(received)) => {
                out.push(3);
                put_checksum(&mut out, received);
            }
            Self::Moved(Err(error)) => put_error(&mut out, 4, error),
            Self::Prepared(Err(error)) => put_error(&mut out, 5, error),
            Self::Census(None) => out.push(6),
            Self::Census(Some(count)) => {
                out.push(7);
                put_list(&mut out, count.pairs.iter(), |pairs, out| put_number(out, *pairs));
            }
            Self::Done => out.push(8),
            Self::Malformed => out.push(9),
            Self::AuditBegun(AuditBegun { index, version, owned }) => {
                out.push(10);
                put_number(&mut out, *index);
                put_number(&mut out, *version);
                put_list(&mut out, owned.iter(), HashRange::encode);
            }
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no outcome.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let outcome = match reader.byte()? {
            0 => Self::Write(Ok(read_written(&mut reader)?)),
            1 => Self::Write(Err(read_refused(&mut reader)?)),
            2 => Self::Moved(Ok(())),
            3 => Self::Prepared(Ok(read_checksum(&mut reader)?)),
            4 => Self::Moved(Err(read_error(&mut reader)?)),
            5 => Self::Prepared(Err(read_error(&mut reader)?)),
            6 => Self::Census(None),
            7 => Self::Census(Some(CensusCount { pairs: reader.list(Reader::number)? })),
            8 => Self::Done,
            9 => Self::Malformed,
            10 => {
                let (index, version) = (reader.number()?, reader.number()?);
                Self::AuditBegun(AuditBegun { index, version, owned: reader.list(HashRange::decode)? })
            }
            11 => Self::Batch(reader.list(|reader| {
                Ok(if reader.flag()? { Err(read_refused(reader)?) } else { Ok(read_written(reader)?) })
            })?),
            _ => return Err(Malformed("unknown kind of outcome")),
        };
        reader.end()?;
        Ok(outcome)
    }
}

fn read_written(reader: &mut Reader<'_>) -> Result<Written, Malformed> {
    let outcome = WriteOutcome::from_byte(reader.byte()?)?;
    Ok(Written { outcome, version: reader.number()? })
}

pub(super) fn operation<'a>(
    change: &'a Change,
    condition: Option<&'a Condition>,
    ttl: Option<Ttl>,
) -> Operation<'a> {
    Operation { action: change.action(), condition, ttl }
}

/// Reads a time to live.
fn read_ttl(reader: &mut Reader<'_>) -> Result<Ttl, Malformed> {
    Ttl::from_ms(reader.number()?).ok_or(Malformed("not a time to live"))
}

fn read_refused(reader: &mut Reader<'_>) -> Result<Refused, Malformed> {
    let all = [
        Refused::Moving,
        Refused::NotOwned,
        Refused::Sealed,
        Refused::Logged,
        Refused::OtherRequest,
        Refused::Forgotten,
    ];
    all.get(usize::from(reader.byte()?)).copied().ok_or(Malformed("unknown refusal"))
}

fn put_error(out: &mut Vec<u8>, kind: u8, error: &MoveError) {
    out.push(kind);
    match error {
        MoveError::OldTerm => out.push(0),
        MoveError::NotUnderWay => out.push(1),
        MoveError::WrongRange => out.push(2),
        MoveError::ChecksumDiffers { sent, received } => {
            out.push(3);
            put_checksum(out, sent);
            put_checksum(out, received);
        }
    }
}

fn read_error(reader: &mut Reader<'_>) -> Result<MoveError, Malformed> {
    Ok(match reader.byte()? {
        0 => MoveError::OldTerm,
        1 => MoveError::NotUnderWay,
        2 => MoveError::WrongRange,
        3 => MoveError::ChecksumDiffers { sent: read_checksum(reader)?, received: read_checksum(reader)? },
        _ => return Err(Malformed("unknown error of a move")),
    })
}

impl Shard {
    /// Does what a command says; also where direct writes are refused. Commands that are applied in the same order to equal shards lead
    /// to equal shards and equal outcomes, whatever each has swept.
    pub fn apply(&self, command: &ShardCommand) -> ShardOutcome {
        if let Some(now_ms) = command.time_ms() {
            self.clock.pass(now_ms);
        }
        match command {
            ShardCommand::Write { key, change, condition, ttl, forwarded } => {
                let hash = self.store.hash_key().hash(key);
                let operation = operation(change, condition.as_deref(), *ttl);
                let table = self.table.read();
                ShardOutcome::Write(self.write_once(&table, hash, key, operation, Some(*forwarded)))
            }
            ShardCommand::Batch(writes) => ShardOutcome::Batch(self.write_in_order(writes)),
            ShardCommand::BeginOutgoing { stamp, range } => {
                ShardOutcome::Moved(self.begin_outgoing(stamp, range))
            }
            ShardCommand::TakeDelta { stamp } => ShardOutcome::Moved(self.take_delta(stamp)),
            ShardCommand::Freeze { stamp } => ShardOutcome::Moved(self.freeze(stamp)),
            ShardCommand::BeginIncoming { stamp, range } => {
                ShardOutcome::Moved(self.begin_incoming(stamp, range))
            }
            ShardCommand::Install { stamp, delta } => ShardOutcome::Moved(self.install(stamp, delta)),
            ShardCommand::Prepare { stamp, frozen, now_ms: _, shift_ms } => {
                ShardOutcome::Prepared(self.prepare(stamp, frozen, *shift_ms))
            }
            ShardCommand::Learn(directive) => {
                self.learn(directive);
                ShardOutcome::Done
            }
            ShardCommand::Census { id, ranges } => ShardOutcome::Census(self.take_census(*id, ranges)),
            ShardCommand::CloseCensus { id } => {
                self.close_census(*id);
                ShardOutcome::Done
            }
            ShardCommand::BeginAudit { id } => ShardOutcome::AuditBegun(self.begin_audit(*id)),
            ShardCommand::PassTime { now_ms: _ } => {
                self.end_some(&self.table.read());
                ShardOutcome::Done
            }
            ShardCommand::KeepHistory => {
                self.keep_history();
                ShardOutcome::Done
            }
        }
    }
}
