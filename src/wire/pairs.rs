//! Pairs on their way from the source of a piece to its target, in binary.

use crate::model::binary::{Malformed, Reader, put_bytes, put_number};
use crate::model::range::HashRange;
use crate::model::shard::{Delta, Frozen, RetryRecord};
use crate::model::store::{Copied, Value};

/// The longest key, value or description that is believed: what `MAX_VALUE_LENGTH` may be at most, and some more.
const LONGEST: usize = (256 << 20) + (1 << 20);

/// What a source sends.
#[derive(Default)]
pub struct Parcel {
    /// Pairs to be stored, and keys to be deleted.
    pub delta: Delta,
    /// What is left of the range to be asked for; nothing at its end.
    pub rest: Option<HashRange>,
    /// Set where the range is frozen, and this is the last of it.
    pub frozen: Option<Frozen>,
    /// Whether clients use the source so much that they should be left their share.
    pub busy: bool,
}

impl Parcel {
    /// Its form on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let described =
            serde_json::to_vec(&(&self.rest, &self.frozen, self.busy)).expect("our own types are JSON");
        put_bytes(&mut out, &described);
        put_number(&mut out, self.delta.pairs.len() as u64);
        for pair in &self.delta.pairs {
            put_number(&mut out, pair.version);
            put_bytes(&mut out, &pair.key);
            put_bytes(&mut out, pair.value.bytes());
        }
        put_number(&mut out, self.delta.deleted.len() as u64);
        self.delta.deleted.iter().for_each(|key| put_bytes(&mut out, key));
        let records = self.frozen.as_ref().map_or(&[][..], |frozen| &frozen.records);
        put_number(&mut out, records.len() as u64);
        for record in records {
            record.encode(&mut out);
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no parcel.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let described = serde_json::from_slice(reader.bytes(LONGEST)?);
        let (rest, mut frozen, busy): (_, Option<Frozen>, _) =
            described.map_err(|_| Malformed("not a description of a parcel"))?;
        let mut delta = Delta::default();
        for _ in 0..reader.count(usize::MAX)? {
            let version = reader.number()?;
            let key = reader.bytes(LONGEST)?.into();
            let value = Value::Small(reader.bytes(LONGEST)?.into());
            delta.pairs.push(Copied { key, value, version });
        }
        for _ in 0..reader.count(usize::MAX)? {
            delta.deleted.push(reader.bytes(LONGEST)?.into());
        }
        let records = (0..reader.count(usize::MAX)?).map(|_| RetryRecord::decode(&mut reader));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        if let Some(frozen) = &mut frozen {
            frozen.records = records;
        }
        reader.end()?;
        Ok(Self { delta, rest, frozen, busy })
    }
}
