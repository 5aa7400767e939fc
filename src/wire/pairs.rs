//! Pairs on their way from the source of a piece to its target, in binary.

use crate::model::binary::{LONGEST_BYTES, Malformed, Reader, put_bytes};
use crate::model::range::HashRange;
use crate::model::shard::{Delta, Frozen, Remembered};

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
        self.delta.encode(&mut out);
        if let Some(frozen) = &self.frozen {
            frozen.remembered.encode(&mut out);
            // A node that does not know it is sent none.
            if !frozen.history.is_empty() {
                put_bytes(&mut out, &frozen.history);
            }
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are no parcel.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let described = serde_json::from_slice(reader.bytes(LONGEST_BYTES)?);
        let (rest, mut frozen, busy): (_, Option<Frozen>, _) =
            described.map_err(|_| Malformed("not a description of a parcel"))?;
        let delta = Delta::decode(&mut reader)?;
        if let Some(frozen) = &mut frozen {
            frozen.remembered = Remembered::decode(&mut reader)?;
            if !reader.rest().is_empty() {
                frozen.history = reader.bytes(LONGEST_BYTES)?.to_vec();
            }
        }
        reader.end()?;
        Ok(Self { delta, rest, frozen, busy })
    }
}
