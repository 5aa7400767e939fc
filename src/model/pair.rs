//! A large key and value, as the map holds them; small ones lie in [`super::pages`].

use triomphe::{Arc, ThinArc};

/// A key, its value, and its version, in one shared allocation.
///
/// A reader clones the handle (one pointer) and lets go of the stripe lock before it copies anything, so a
/// large value never holds up a writer.
#[derive(Clone)]
pub struct Pair(ThinArc<Head, u8>);

struct Head {
    version: u64,
    key_length: u32,
    born: u32,
}

impl Pair {
    /// Makes a pair without a version; `value` is the raw text of one JSON value, without blanks around it.
    ///
    /// # Panics
    /// When the key is 4 GiB or longer; its length is checked against the configured limit long before.
    pub fn new(key: &[u8], value: &[u8]) -> Self {
        let key_length = u32::try_from(key.len()).expect("a key is shorter than 4 GiB");
        let bytes = [key, value].concat();
        Self(ThinArc::from_header_and_slice(Head { version: 0, key_length, born: 0 }, &bytes))
    }

    /// Gives a new pair its version, and the number of the last scrub before it.
    ///
    /// # Panics
    /// When the pair is shared already: a version never changes under a reader.
    pub(super) fn place(&mut self, version: u64, born: u32) {
        self.0.with_arc_mut(|shared| {
            let head = Arc::get_mut(shared).expect("a new pair is not shared").header_mut();
            (head.version, head.born) = (version, born);
        });
    }

    /// The number of the last scrub that was begun before the pair was put in.
    pub(super) fn born(&self) -> u32 {
        self.0.header.header.born
    }

    /// The key's bytes.
    pub fn key(&self) -> &[u8] {
        &self.0.slice[..self.0.header.header.key_length as usize]
    }

    /// The value, as [`value`](crate::model::value) stores it.
    pub fn value(&self) -> &[u8] {
        &self.0.slice[self.0.header.header.key_length as usize..]
    }

    /// The version: greater than that of every earlier pair with this key.
    pub fn version(&self) -> u64 {
        self.0.header.header.version
    }

    /// Bytes of key and value together.
    pub fn size(&self) -> usize {
        self.0.slice.len()
    }
}
