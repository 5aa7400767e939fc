//! The binary forms of what commands, parcels and snapshots have in common.

use super::retries::{put_random, read_address, read_random};
use super::{Checksum, Delta, Directive, Frozen, HashRange, PieceId, Remembered, Stamp};
use crate::model::binary::{
    LONGEST_BYTES, Malformed, Reader, put_bytes, put_list, put_number, put_option, put_wide,
};
use crate::model::format;
use crate::model::pages::Record;
use crate::model::store::{Copied, Value};
use crate::model::ttl::Parts;
use crate::model::value;

impl Delta {
    /// The format that a node has to know to take it.
    pub fn needs(&self) -> u32 {
        let needs = |pair: &Copied| match Parts::of(pair.value.bytes()) {
            Parts { end_ms: Some(_), .. } => format::TTL,
            Parts { value, .. } if value::is_typed(value) => format::TYPES,
            _ => format::FIRST,
        };
        self.pairs.iter().map(needs).max().unwrap_or(format::FIRST)
    }

    /// Appends its binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_list(out, self.pairs.iter(), |pair, out| {
            Record { version: pair.version, key: &pair.key, value: pair.value.bytes() }.encode(out);
        });
        put_list(out, self.deleted.iter(), |key, out| put_bytes(out, key));
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no delta.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let pairs = reader.list(|reader| {
            let Record { version, key, value } = Record::decode(reader)?;
            Ok(Copied { key: key.into(), value: Value::Small(value.into()), version })
        })?;
        let deleted = reader.list(|reader| reader.bytes(LONGEST_BYTES).map(Box::from))?;
        Ok(Self { pairs, deleted })
    }
}

impl Frozen {
    /// Without the time: by then it was compared with that of the target.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_checksum(out, &self.checksum);
        put_number(out, self.index);
        self.remembered.encode(out);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (checksum, index) = (read_checksum(reader)?, reader.number()?);
        let (remembered, history) = (Remembered::decode(reader)?, Vec::new());
        Ok(Self { checksum, index, time_ms: None, remembered, history })
    }
}

pub(super) fn put_checksum(out: &mut Vec<u8>, checksum: &Checksum) {
    put_number(out, checksum.pairs);
    put_wide(out, checksum.sum);
}

pub(super) fn read_checksum(reader: &mut Reader<'_>) -> Result<Checksum, Malformed> {
    Ok(Checksum { pairs: reader.number()?, sum: reader.wide()? })
}

impl PieceId {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.change, self.index.into(), self.attempt.into()] {
            put_number(out, number);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let change = reader.number()?;
        let mut narrow =
            || u32::try_from(reader.number()?).map_err(|_| Malformed("a number has more than 32 bits"));
        Ok(Self { change, index: narrow()?, attempt: narrow()? })
    }
}

impl Stamp {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.piece.encode(out);
        put_number(out, self.term);
        put_number(out, self.version);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { piece: PieceId::decode(reader)?, term: reader.number()?, version: reader.number()? })
    }
}

impl Directive {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.version);
        put_number(out, self.meta_group);
        put_option(out, self.counting.as_ref(), |change, out| put_number(out, *change));
        out.push(u8::from(self.planned));
        put_number(out, self.epoch);
        put_list(out, self.mine.iter(), HashRange::encode);
        put_list(out, self.open.iter(), PieceId::encode);
        put_list(out, self.starts.iter(), |(node, start), out| {
            put_bytes(out, node.as_str().as_bytes());
            put_random(out, *start);
        });
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: reader.number()?,
            meta_group: reader.number()?,
            counting: reader.option(Reader::number)?,
            planned: reader.flag()?,
            epoch: reader.number()?,
            mine: reader.list(HashRange::decode)?,
            open: reader.list(PieceId::decode)?,
            starts: reader.list(|reader| Ok((read_address(reader)?, read_random(reader)?)))?,
        })
    }
}
