//! The map from keys to pairs, and what is asked of whole ranges of it.

mod checksum;
mod copy;
mod ends;
mod listing;
mod map;
mod moment;
mod order;
mod parts;
mod pieces;
mod places;
mod scan;
mod scrub;
#[cfg(test)]
mod scrub_trial;
mod stripe;
mod told;
#[cfg(test)]
mod trial;

pub use checksum::Checksum;
pub use copy::StoreCopy;
pub use listing::{ListLimit, Listed, ListedPair, Span};
pub use map::{Size, Store, StoredValue, Unmet};
pub use moment::{Lost, Moment};
pub use scan::{Batch, BatchLimit, Copied, Value};
pub use scrub::{PIECE, Progress, Scrub, ScrubLimit, Scrubbed, Territory, Void};
pub use told::HISTORY_BYTES;
