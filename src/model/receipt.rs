//! What a view change came to, in few figures.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a finished view change came to. Those who have asked for it are told more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The id of the view change.
    pub change: u64,
    /// When it was begun, by the wall clock of whoever led the meta group then, in milliseconds, where that is known.
    pub began_ms: Option<u64>,
    /// When it had ended, in the same way.
    pub ended_ms: Option<u64>,
    /// The epoch of the view that it led to.
    pub epoch: u64,
    /// The pairs at the cut.
    pub keys: u64,
    /// Those of them that have changed shard.
    pub moved: u64,
    /// The least number that had to.
    pub minimum: u64,
    /// Pairs written to nodes that did not hold them.
    pub copied: u64,
    /// What clients have created and deleted since the cut.
    pub created: u64,
    /// See `created`.
    pub deleted: u64,
    /// The longest time that any key could be neither read nor written, in microseconds.
    pub hold_us: u64,
    /// Whether all that moved was the same where it came from and where it came to.
    pub checksums_match: bool,
    /// How many shards there were then.
    pub shards: usize,
    /// How many nodes held them.
    pub nodes: usize,
    /// The ids of the shards whose pairs were given up.
    pub given_up: Vec<String>,
}

impl Receipt {
    /// Reads the answer that whoever has asked for a view change gets; it does not say when that was.
    pub fn read(change: u64, text: &str) -> Option<Self> {
        let body: Value = serde_json::from_str(text).ok()?;
        let figure = |name: &str| body[name].as_u64();
        let rows = |name: &str| body[name].as_array().map_or(&[][..], Vec::as_slice);
        let shards = rows("shards");
        let nodes = shards.iter().filter_map(|row| row["replicas"].as_array());
        let given_up = rows("given-up").iter().filter_map(|row| row["shard-id"].as_str());
        Some(Self {
            change,
            began_ms: None,
            ended_ms: None,
            epoch: figure("epoch")?,
            keys: figure("keys")?,
            moved: figure("moved")?,
            minimum: figure("minimum")?,
            copied: figure("copied")?,
            created: figure("created-meanwhile")?,
            deleted: figure("deleted-meanwhile")?,
            hold_us: micros(body["hold-ms"].as_f64()?),
            checksums_match: body["checksums-match"].as_bool()?,
            shards: shards.len(),
            nodes: nodes.map(Vec::len).sum(),
            given_up: given_up.map(str::to_owned).collect(),
        })
    }

    /// For how many milliseconds it ran, where that is known.
    pub fn took_ms(&self) -> Option<u64> {
        // Two leaders may have had clocks that differ.
        Some(self.ended_ms?.saturating_sub(self.began_ms?))
    }
}

/// Milliseconds with two digits after the point, as receipts have them, in microseconds.
fn micros(ms: f64) -> u64 {
    let text = format!("{:.0}", (ms * 1000.0).max(0.0));
    text.parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"message":"View change successful","shards":[{"shard-id":"1","replicas":["a:1","b:1"]},{"shard-id":"2","replicas":["c:1","d:1"]}],
        "change-id":"00000000000000ff","epoch":7,"keys":10,"moved":4,"minimum":3,"copied":8,"created-meanwhile":1,"deleted-meanwhile":2,
        "hold-ms":12.34,"checksums-match":true,"given-up":[{"shard-id":"3","replicas":["e:1"],"key-count":null}]}"#;

    #[test]
    fn a_receipt_is_read_from_the_answer() {
        let read = Receipt::read(255, TEXT).expect("it is one");
        assert_eq!((read.change, read.epoch, read.keys, read.moved, read.minimum), (255, 7, 10, 4, 3));
        assert_eq!((read.copied, read.created, read.deleted, read.hold_us), (8, 1, 2, 12_340));
        assert_eq!((read.shards, read.nodes, read.given_up.as_slice()), (2, 4, &["3".to_owned()][..]));
        assert!(read.checksums_match && read.took_ms().is_none());
        let timed = Receipt { began_ms: Some(5), ended_ms: Some(3), ..read };
        assert_eq!(timed.took_ms(), Some(0), "clocks differ");
        assert_eq!(Receipt::read(1, "{}"), None);
    }
}
