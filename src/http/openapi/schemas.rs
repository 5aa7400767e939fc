//! The forms of the bodies of answers and requests, as JSON Schema.

use serde_json::{Map, Value, json};

/// An object that has these fields and no others. A name with a `?` at its end may be absent.
pub(super) fn object(fields: &[(&str, Value)]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, schema) in fields {
        let plain = name.strip_suffix('?');
        if plain.is_none() {
            required.push(*name);
        }
        properties.insert(plain.unwrap_or(name).to_owned(), schema.clone());
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

pub(super) fn list(of: impl Into<Value>) -> Value {
    json!({ "type": "array", "items": of.into() })
}

pub(super) fn constant(value: impl Into<Value>) -> Value {
    json!({ "const": value.into() })
}

pub(super) fn text() -> Value {
    json!({ "type": "string" })
}

pub(super) fn flag() -> Value {
    json!({ "type": "boolean" })
}

pub(super) fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn number() -> Value {
    json!({ "type": "number", "minimum": 0 })
}

fn or_null(kind: &str) -> Value {
    json!({ "type": [kind, "null"] })
}

/// The one that the document has under this name.
pub(super) fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Those that the document has under names.
pub(super) fn all() -> Value {
    json!({
        "CausalContext": {
            "description": "It is taken and given back as it is.",
            "anyOf": [{ "type": "null" }, { "enum": ["", "{}"] }, { "type": "object" }],
        },
        "ClassicPut": {
            "type": "object",
            "properties": { "value": {}, "causal-context": named("CausalContext") },
            "required": ["value"],
        },
        "AnyBody": { "description": "Anything, JSON or not. A JSON object may have a field `causal-context`, which the answer gives back; for a key, one that is none is 400." },
        "AnyLines": { "description": "A JSON object on each line. One that cannot be read is answered so in its line." },
        "ETag": {
            "description": "What a key holds; only to be compared.",
            "type": "string",
        },
        "Address": { "description": "host:port", "type": "string" },
        "Range": object(&[("from", text()), ("to", text())]),
        "KeyLimits": object(&[("max-key-length", count()), ("max-value-length", count())]),
        "ShardRow": shard_row(),
        "View": view(),
        "ViewChange": view_change(),
        "Receipt": receipt(),
        "Plan": plan(),
        "ChangeStatus": change_status(),
        "Audit": audit(),
        "Recovery": {
            "type": "object",
            "properties": { "dry-run": flag(), "given-up": list(named("Address")) },
            "additionalProperties": false,
        },
        "Recovered": recovered(),
        "Page": page(),
        "Status": status(),
    })
}

fn shard_row() -> Value {
    object(&[
        ("message", constant("Shard information retrieved successfully")),
        ("shard-id", text()),
        ("key-count", or_null("integer")),
        ("replicas", list(named("Address"))),
        ("causal-context?", causal()),
    ])
}

/// What an answer gives back.
pub(super) fn causal() -> Value {
    json!({ "type": "object" })
}

fn view() -> Value {
    let shard = object(&[
        ("shard-id", text()),
        ("key-count", or_null("integer")),
        ("replicas", list(named("Address"))),
        ("leader", or_null("string")),
        ("ranges", list(named("Range"))),
    ]);
    object(&[
        ("epoch", count()),
        ("cluster-id", text()),
        ("repl-factor", count()),
        ("shards", list(shard)),
        ("down?", list(named("Address"))),
        ("causal-context?", causal()),
    ])
}

fn view_change() -> Value {
    let limits = json!({
        "type": ["object", "null"],
        "properties": { "max-key-length": { "type": "integer" }, "max-value-length": { "type": "integer" } },
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {
            "view": {
                "description": "All nodes that the cluster is to have: addresses with commas between them, or a list.",
                "anyOf": [text(), { "type": "array", "items": text() }],
            },
            "repl-factor": { "type": ["integer", "null"], "minimum": 1, "maximum": 64 },
            "limits": limits,
            "dry-run": { "type": ["boolean", "null"] },
            "accept-loss": { "type": ["array", "null"], "items": { "type": "string", "pattern": "^[0-9]{1,9}$" } },
            "causal-context": named("CausalContext"),
        },
        "required": ["view"],
        "additionalProperties": false,
    })
}

fn receipt() -> Value {
    let shard = object(&[
        ("shard-id", text()),
        ("key-count", count()),
        ("key-count-at-cut", count()),
        ("replicas", list(named("Address"))),
        ("address?", named("Address")),
    ]);
    let given_up = object(&[
        ("shard-id", text()),
        ("replicas", list(named("Address"))),
        ("key-count", or_null("integer")),
    ]);
    let of_change = [
        ("message", constant("View change successful")),
        ("shards", list(shard)),
        ("change-id", text()),
        ("epoch", count()),
    ];
    let more =
        [("limits?", named("KeyLimits")), ("given-up?", list(given_up)), ("causal-context?", causal())];
    object(&[of_change.to_vec(), figures(), more.to_vec()].concat())
}

/// What a view change came to, in figures.
fn figures() -> Vec<(&'static str, Value)> {
    vec![
        ("keys", count()),
        ("moved", count()),
        ("minimum", count()),
        ("copied", count()),
        ("created-meanwhile", count()),
        ("deleted-meanwhile", count()),
        ("hold-ms", number()),
        ("checksums-match", flag()),
    ]
}

fn plan() -> Value {
    let shard = object(&[
        ("shard-id", text()),
        ("key-count", or_null("integer")),
        ("key-count-planned", count()),
        ("replicas", list(named("Address"))),
    ]);
    let one_move = object(&[("from", text()), ("to", text()), ("pairs", count()), ("ranges", count())]);
    object(&[
        ("message", constant("View change planned")),
        ("epoch", count()),
        ("keys", count()),
        ("moved", count()),
        ("minimum", count()),
        ("copied", count()),
        ("shards", list(shard)),
        ("moves", list(one_move)),
        ("causal-context?", causal()),
    ])
}

fn change_status() -> Value {
    let of_change = [
        ("message", constant("View change status retrieved successfully")),
        ("phase", json!({ "enum": PHASES })),
        ("change-id?", text()),
    ];
    let more = [
        ("blocked-by?", text()),
        ("piece?", piece()),
        ("waits-for?", waits_for()),
        ("receipt?", named("Receipt")),
        ("error?", text()),
        ("causal-context?", causal()),
    ];
    object(&[of_change.to_vec(), progress(), more.to_vec()].concat())
}

/// How far a view change is, where that is known.
fn progress() -> Vec<(&'static str, Value)> {
    vec![
        ("coordinator?", named("Address")),
        ("moved?", count()),
        ("total?", count()),
        ("pairs-per-second?", count()),
        ("remaining-seconds?", or_null("number")),
    ]
}

fn audit() -> Value {
    let figures = [
        ("key-count", or_null("integer")),
        ("log-index", or_null("integer")),
        ("checksum", or_null("string")),
        ("stray", or_null("integer")),
    ];
    let replica = object(&[vec![("replica", named("Address")), ("ok", flag())], figures.to_vec()].concat());
    let shard = [
        vec![("shard-id", text()), ("ok", flag()), ("replicas", list(named("Address")))],
        figures.to_vec(),
        vec![("replicas-checked?", list(replica))],
    ];
    let doubled = object(&[("from", text()), ("to", text()), ("shards", list(text()))]);
    object(&[
        ("message", constant("Audit retrieved successfully")),
        ("ok", flag()),
        ("epoch", count()),
        ("keys", count()),
        ("checksum", text()),
        ("content-checksum", or_null("string")),
        ("shards", list(object(&shard.concat()))),
        ("missing-ranges", list(named("Range"))),
        ("doubled-ranges", list(doubled)),
        ("problems", list(text())),
        ("causal-context?", causal()),
    ])
}

fn recovered() -> Value {
    let shard = object(&[
        ("shard-id", text()),
        ("goes-on-from", named("Address")),
        ("missing", list(named("Address"))),
        ("log-index", count()),
        ("committed-index", count()),
        ("may-be-lost", text()),
    ]);
    object(&[
        ("message", json!({ "enum": ["Recovered", "Recovery planned"] })),
        ("cluster-id", text()),
        ("epoch", count()),
        ("given-up", list(named("Address"))),
        ("lost-shards", list(text())),
        ("recovered-shards?", list(shard)),
    ])
}

/// The phases of a view change.
const PHASES: [&str; 10] = [
    "none",
    "preparing",
    "counting",
    "moving",
    "finishing",
    "blocked",
    "finished",
    "failed",
    "cancelled",
    "superseded",
];

fn piece() -> Value {
    object(&[
        ("number", count()),
        ("of", count()),
        ("attempt", count()),
        ("pairs", count()),
        ("from", text()),
        ("to", text()),
    ])
}

fn waits_for() -> Value {
    object(&[("order", text()), ("node", text()), ("seconds", number())])
}

fn status() -> Value {
    let roles = json!({ "enum": ["single", "member", "joining", "passive", "follower"] });
    let texts = || list(text());
    let problem = object(&[
        ("kind", text()),
        ("what", text()),
        ("do", text()),
        ("nodes", list(named("Address"))),
        ("shards", texts()),
    ]);
    let memory = json!({
        "type": ["object", "null"],
        "properties": { "used": count(), "resident": count(), "bound": or_null("integer") },
        "required": ["used", "resident", "bound"],
        "additionalProperties": false,
    });
    let node = object(&[
        ("address", named("Address")),
        ("role", roles.clone()),
        ("replica-id", or_null("string")),
        ("leads", texts()),
        ("leads-view", or_null("boolean")),
        ("version", or_null("string")),
        ("reachable", flag()),
        ("ready", or_null("boolean")),
        ("pairs", or_null("integer")),
        ("bytes", or_null("integer")),
        ("requests-per-second", or_null("number")),
        ("memory", memory),
    ]);
    let shard = object(&[
        ("shard-id", text()),
        ("leader", or_null("string")),
        ("key-count", or_null("integer")),
        ("bytes", or_null("integer")),
        ("requests-per-second", or_null("number")),
        ("lost", flag()),
        ("replicas", list(object(&[("address", named("Address")), ("behind", or_null("integer"))]))),
    ]);
    let phases: Vec<Value> = PHASES.map(Value::from).into_iter().chain([Value::Null]).collect();
    let of_change = [
        ("change-id", text()),
        ("began", or_null("string")),
        ("nodes", list(named("Address"))),
        ("repl-factor", count()),
        ("phase", json!({ "enum": phases })),
    ];
    let more = [
        ("blocked-by?", or_null("string")),
        ("piece?", json!({ "anyOf": [piece(), { "type": "null" }] })),
        ("waits-for?", json!({ "anyOf": [waits_for(), { "type": "null" }] })),
    ];
    let change = object(&[of_change.to_vec(), progress(), more.to_vec()].concat());
    let times = [
        ("change-id", text()),
        ("epoch", count()),
        ("began", or_null("string")),
        ("ended", or_null("string")),
        ("seconds", or_null("number")),
    ];
    let sizes = [("shards", count()), ("nodes", count()), ("given-up", texts())];
    let receipt = object(&[times.to_vec(), figures(), sizes.to_vec()].concat());
    object(&[
        ("address", named("Address")),
        ("role", roles),
        ("main?", object(&[("address", named("Address")), ("reachable", flag())])),
        ("problems", list(problem)),
        ("cluster-id", or_null("string")),
        ("epoch", or_null("integer")),
        ("repl-factor", or_null("integer")),
        ("nodes", list(node)),
        ("shards", list(shard)),
        ("change", json!({ "anyOf": [change, { "type": "null" }] })),
        ("receipts", list(receipt)),
    ])
}

fn page() -> Value {
    let row = object(&[
        ("key?", text()),
        ("key-base64?", text()),
        ("etag", named("ETag")),
        ("bytes", count()),
        ("ttl?", number()),
        ("value?", json!({})),
        ("value-base64?", text()),
        ("type?", text()),
    ]);
    let listed = object(&[("keys", list(row)), ("next?", text()), ("watch?", text())]);
    json!({ "anyOf": [listed, object(&[("count", count())])] })
}
