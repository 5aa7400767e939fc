//! A snapshot in a file: complete and as it was written, or not there.
//!
//! It is a line that says what it is, then blocks, each a length, a checksum and so many bytes; one without bytes is the last. A checksum is over
//! the group, the number of the file, the place of the block, and its bytes, so that no block passes for another.

use std::io;

use bytes::Bytes;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use super::folder::{Folder, read_all};

const MAGIC: &[u8; 16] = b"evenkv snapshot\n";
/// Pieces go into blocks of at least this size, but for the last.
const BLOCK: usize = 256 << 10;
/// A length in 8 bytes and a checksum in 16.
const HEAD: usize = 24;
/// So much is written between two syncs, so that the disk is never busy with it for long.
const SYNC_EVERY: u64 = 8 << 20;

/// The name of a snapshot.
pub(super) fn name_of(group: u64, number: u64) -> String {
    format!("snapshot-{group:016x}-{number:08}")
}

/// Whether this is a file of a snapshot, complete or not.
pub(super) fn is_one(name: &str) -> bool {
    name.starts_with("snapshot-")
}

/// Writes a snapshot, and how long it is in bytes. Once it has returned the file survives a power cut.
pub(super) fn write(
    folder: &dyn Folder,
    (group, number): (u64, u64),
    pieces: impl Iterator<Item = Bytes>,
) -> io::Result<u64> {
    let name = name_of(group, number);
    let new = format!("{name}.new");
    let file = folder.create(&new)?;
    file.write(0, MAGIC)?;
    let (mut at, mut place, mut synced) = (MAGIC.len() as u64, 0, 0);
    let mut block = Vec::with_capacity(BLOCK + HEAD);
    let mut put = |bytes: &[u8]| -> io::Result<u64> {
        let head = head_of((group, number, place), bytes);
        file.write(at, &[&head, bytes].concat())?;
        (at, place) = (at + (HEAD + bytes.len()) as u64, place + 1);
        if at - synced >= SYNC_EVERY {
            file.sync()?;
            synced = at;
        }
        Ok(at)
    };
    for piece in pieces {
        block.extend_from_slice(&piece);
        if block.len() >= BLOCK {
            put(&block)?;
            block.clear();
        }
    }
    if !block.is_empty() {
        put(&block)?;
    }
    let length = put(&[])?;
    file.sync()?;
    folder.rename(&new, &name)?;
    folder.sync()?;
    Ok(length)
}

fn head_of((group, number, place): (u64, u64, u64), bytes: &[u8]) -> [u8; HEAD] {
    let mut hasher = SipHasher13::new_with_keys(group, number);
    hasher.write_u64(place);
    hasher.write(bytes);
    let sum = hasher.finish128().as_u128();
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    head[8..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The bytes of a snapshot.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub(super) fn read(folder: &dyn Folder, group: u64, number: u64) -> Result<Vec<u8>, String> {
    let name = name_of(group, number);
    let bytes = read_all(folder, &name).map_err(|error| format!("{name} cannot be read ({error})"))?;
    decode(&bytes, group, number).ok_or_else(|| format!("{name} is damaged: a checksum does not match"))
}

fn decode(bytes: &[u8], group: u64, number: u64) -> Option<Vec<u8>> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut data = Vec::with_capacity(rest.len());
    for place in 0.. {
        let (head, after) = rest.split_first_chunk::<HEAD>()?;
        let length = usize::try_from(u64::from_le_bytes(head[..8].try_into().ok()?)).ok()?;
        let block = after.get(..length)?;
        if head_of((group, number, place), block) != *head {
            return None;
        }
        rest = &after[length..];
        if block.is_empty() {
            break;
        }
        data.extend_from_slice(block);
    }
    rest.is_empty().then_some(data)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::fake::FakeFolder;
    use super::*;

    fn pieces() -> Vec<Bytes> {
        [0, 3, 200_000, 100_000, 1, 0].map(|length| Bytes::from(vec![7; length])).to_vec()
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written() {
        let folder = FakeFolder::default();
        for pieces in [pieces(), Vec::new()] {
            write(&folder, (1, 2), pieces.clone().into_iter()).unwrap();
            assert_eq!(read(&folder, 1, 2).unwrap(), pieces.concat());
        }
        assert!(read(&folder, 1, 3).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let folder = FakeFolder::default();
        write(&folder, (1, 2), [Bytes::from_static(b"all that there is")].into_iter()).unwrap();
        let whole = read_all(&folder, &name_of(1, 2)).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(decode(&flipped, 1, 2), None, "byte {at}, bit {bit}");
            }
            assert_eq!(decode(&whole[..at], 1, 2), None, "cut at {at}");
        }
        assert_eq!(decode(&[&whole[..], &[0]].concat(), 1, 2), None);
        assert_eq!(decode(&whole, 2, 2), None, "of another group");
    }

    #[test]
    fn after_a_power_cut_it_is_there_wholly_or_not_at_all() {
        for seed in 0..200 {
            let folder = FakeFolder::default();
            let mut random = StdRng::seed_from_u64(seed);
            // Cut somewhere on the way: the iterator that gives the pieces cuts the power.
            let cutting = folder.clone();
            let mut at = seed % 8;
            let pieces = pieces().into_iter().inspect(|_| {
                at = at.wrapping_sub(1);
                if at == 0 {
                    cutting.cut_power(&mut random);
                }
            });
            let written = write(&folder, (1, 2), pieces);
            folder.cut_power(&mut StdRng::seed_from_u64(seed));
            let found = folder.list().unwrap().contains(&name_of(1, 2));
            assert!(found || written.is_err(), "seed {seed}");
            if found {
                assert_eq!(read(&folder, 1, 2).unwrap().len(), 300_004, "seed {seed}");
            }
        }
    }
}
