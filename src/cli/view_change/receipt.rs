//! What a view change did, or would do, as tables.

use serde::Deserialize;

use super::super::output::{figure, heading, table};

/// What a finished change did. What a newer node adds is ignored, what it leaves out is not known.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Receipt {
    pub(super) change_id: Option<String>,
    epoch: Option<u64>,
    shards: Vec<Shard>,
    keys: Option<u64>,
    moved: Option<u64>,
    minimum: Option<u64>,
    copied: Option<u64>,
    created_meanwhile: Option<u64>,
    deleted_meanwhile: Option<u64>,
    hold_ms: Option<f64>,
    checksums_match: Option<bool>,
    #[serde(default)]
    given_up: Vec<GivenUp>,
    limits: Option<Limits>,
}

/// The limits of the cluster, where the change was asked to raise them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Limits {
    max_key_length: Option<u64>,
    max_value_length: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Shard {
    #[serde(rename = "shard-id")]
    id: String,
    key_count: Option<u64>,
    key_count_at_cut: Option<u64>,
    #[serde(default)]
    replicas: Vec<String>,
}

/// A shard whose pairs were given up; how many they were may not be known.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct GivenUp {
    #[serde(rename = "shard-id")]
    id: String,
    #[serde(default)]
    replicas: Vec<String>,
    key_count: Option<u64>,
}

impl Receipt {
    /// The shards, the shards given up where there are some, and the facts of the whole.
    pub(super) fn rendered(&self) -> String {
        let mut shards = vec![heading(&["shard", "keys", "at the cut", "nodes"])];
        for shard in &self.shards {
            shards.push(vec![
                shard.id.clone(),
                figure(shard.key_count),
                figure(shard.key_count_at_cut),
                shard.replicas.join(" "),
            ]);
        }
        let mut parts = vec![table(&shards)];
        if !self.given_up.is_empty() {
            let mut rows = vec![heading(&["given up", "keys", "nodes"])];
            for shard in &self.given_up {
                rows.push(vec![shard.id.clone(), figure(shard.key_count), shard.replicas.join(" ")]);
            }
            parts.push(table(&rows));
        }
        parts.push(table(&self.facts()));
        parts.join("\n\n")
    }

    fn facts(&self) -> Vec<Vec<String>> {
        let hold = self.hold_ms.map_or("unknown".to_owned(), |hold| format!("{hold:.1} ms"));
        let checksums = match self.checksums_match {
            Some(true) => "match",
            Some(false) => "DIFFER",
            None => "unknown",
        };
        let facts = [
            ("change", self.change_id.clone().unwrap_or_else(|| "unknown".to_owned())),
            ("epoch", figure(self.epoch)),
            ("keys", figure(self.keys)),
            ("moved", figure(self.moved)),
            ("minimum", figure(self.minimum)),
            ("copied", figure(self.copied)),
            ("created meanwhile", figure(self.created_meanwhile)),
            ("deleted meanwhile", figure(self.deleted_meanwhile)),
            ("longest hold", hold),
            ("checksums", checksums.to_owned()),
        ];
        let limits = self.limits.iter().flat_map(|limits| {
            [
                ("longest key", figure(limits.max_key_length)),
                ("longest value", figure(limits.max_value_length)),
            ]
        });
        facts.into_iter().chain(limits).map(|(name, value)| vec![name.to_owned(), value]).collect()
    }
}

/// What a change would do.
#[derive(Debug, Deserialize)]
pub(super) struct Plan {
    epoch: Option<u64>,
    keys: Option<u64>,
    moved: Option<u64>,
    minimum: Option<u64>,
    copied: Option<u64>,
    shards: Vec<PlannedShard>,
    moves: Vec<Move>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PlannedShard {
    #[serde(rename = "shard-id")]
    id: String,
    /// Null for a shard that is new.
    key_count: Option<u64>,
    key_count_planned: Option<u64>,
    #[serde(default)]
    replicas: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Move {
    from: String,
    to: String,
    pairs: u64,
    ranges: u64,
}

impl Plan {
    /// The shards, the moves where there are some, and the facts of the whole.
    pub(super) fn rendered(&self) -> String {
        let mut shards = vec![heading(&["shard", "keys", "planned", "nodes"])];
        for shard in &self.shards {
            shards.push(vec![
                shard.id.clone(),
                shard.key_count.map_or("new".to_owned(), |count| count.to_string()),
                figure(shard.key_count_planned),
                shard.replicas.join(" "),
            ]);
        }
        let mut parts = vec![table(&shards)];
        if !self.moves.is_empty() {
            let mut rows = vec![heading(&["from", "to", "pairs", "ranges"])];
            for one in &self.moves {
                rows.push(vec![
                    one.from.clone(),
                    one.to.clone(),
                    one.pairs.to_string(),
                    one.ranges.to_string(),
                ]);
            }
            parts.push(table(&rows));
        }
        let facts = [
            ("epoch", self.epoch),
            ("keys", self.keys),
            ("to move", self.moved),
            ("minimum", self.minimum),
            ("to copy", self.copied),
        ];
        parts.push(table(&facts.map(|(name, value)| vec![name.to_owned(), figure(value)])));
        parts.join("\n\n")
    }
}
