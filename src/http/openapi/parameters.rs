//! What a request may say beside its path and its body.

use serde_json::{Value, json};

/// A parameter of a query, a header, or a part of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    Key,
    ShortKey,
    ShardId,
    PageFile,
    Consistency,
    Ttl,
    TtlHeader,
    TtlToTouch,
    IfMatch,
    IfNoneMatch,
    KnownTag,
    IdempotencyKey,
    Range,
    IfRange,
    Prefer,
    PreferWait,
    Prefix,
    NeededPrefix,
    After,
    Limit,
    Values,
    Count,
    Cursor,
    LastEventId,
    Since,
    Secret,
}

/// Seconds from 0.001 to 315360000, exactly those texts that [`Ttl`](crate::model::ttl::Ttl) reads.
const SECONDS: &str = r"0*([1-9][0-9]{0,7}|[12][0-9]{8}|30[0-9]{7}|31[0-4][0-9]{6}|315[0-2][0-9]{5}|3153[0-5][0-9]{4})(\.[0-9]+)?|0*315360000(\.0+)?|0+\.(0{0,2}[1-9][0-9]*)";
/// A star or a list of entity tags (RFC 9110, section 8.8.3).
const TAGS: &str = r#"^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$"#;

impl Parameter {
    pub(super) const ALL: [Self; 26] = [
        Self::Key,
        Self::ShortKey,
        Self::ShardId,
        Self::PageFile,
        Self::Consistency,
        Self::Ttl,
        Self::TtlHeader,
        Self::TtlToTouch,
        Self::IfMatch,
        Self::IfNoneMatch,
        Self::KnownTag,
        Self::IdempotencyKey,
        Self::Range,
        Self::IfRange,
        Self::Prefer,
        Self::PreferWait,
        Self::Prefix,
        Self::NeededPrefix,
        Self::After,
        Self::Limit,
        Self::Values,
        Self::Count,
        Self::Cursor,
        Self::LastEventId,
        Self::Since,
        Self::Secret,
    ];

    /// The name under which the document has it.
    pub(super) fn id(self) -> String {
        format!("{self:?}")
    }

    /// As the document has it. `reserved` are the names that are no keys in the short form.
    pub(super) fn described(self, reserved: &[&str]) -> Value {
        let seconds = json!({ "type": "string", "pattern": format!("^({SECONDS})$") });
        let seconds_or_none = json!({ "type": "string", "pattern": format!("^({SECONDS}|none)$") });
        let tags = json!({ "type": "string", "pattern": TAGS, "examples": ["*", "\"8627ecb3dd432234-15\"", "W/\"x\", \"y\""] });
        let line = json!({ "type": "string", "pattern": "^[\\t -~]*$" });
        let text = json!({ "type": "string" });
        let flag = json!({ "type": "boolean", "default": false });
        let key = json!({ "type": "string", "minLength": 1 });
        let (place, name, schema, description) = match self {
            Self::Key => ("path", "key", key, KEY),
            Self::ShortKey => {
                // Those are paths of their own, which stand before this one.
                let schema = json!({ "type": "string", "minLength": 1, "x-reserved": reserved });
                ("path", "key", schema, SHORT_KEY)
            }
            Self::ShardId => ("path", "id", text, "The id of a shard, as \"1\"."),
            Self::PageFile => ("path", "id", text, "The name of a file, as \"page.css\"."),
            Self::Consistency => {
                ("query", "consistency", json!({ "type": "string", "enum": ["stale"] }), CONSISTENCY)
            }
            Self::Ttl => ("query", "ttl", seconds, TTL),
            Self::TtlHeader => ("header", "Evenkv-TTL", seconds, TTL_HEADER),
            Self::TtlToTouch => ("query", "ttl", seconds_or_none, TOUCH),
            Self::IfMatch => ("header", "If-Match", tags, IF_MATCH),
            Self::IfNoneMatch => ("header", "If-None-Match", tags, IF_NONE_MATCH),
            Self::KnownTag => ("header", "If-None-Match", line, KNOWN_TAG),
            Self::IdempotencyKey => ("header", "Idempotency-Key", line, IDEMPOTENCY_KEY),
            Self::Range => ("header", "Range", line, RANGE),
            Self::IfRange => ("header", "If-Range", line, IF_RANGE),
            Self::Prefer => ("header", "Prefer", line, PREFER),
            Self::PreferWait => ("header", "Prefer", line, PREFER_WAIT),
            Self::Prefix => ("query", "prefix", text, PREFIX),
            Self::NeededPrefix => ("query", "prefix", key, PREFIX),
            Self::After => ("query", "after", text, AFTER),
            Self::Limit => {
                let schema = json!({ "type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000 });
                ("query", "limit", schema, "The most keys in a page.")
            }
            Self::Values => ("query", "values", flag, "Whether values are told, too."),
            Self::Count => ("query", "count", flag, "Only count them."),
            Self::Cursor => (
                "query",
                "watch",
                flag,
                "Whether a cursor for `/v1/watch` is wanted; a page has one unless it is not, lines have one where it is.",
            ),
            Self::LastEventId => ("header", "Last-Event-ID", line, LAST_EVENT_ID),
            Self::Since => ("query", "since", text, SINCE),
            Self::Secret => ("header", "Evenkv-Secret", line, SECRET),
        };
        let needed = matches!(
            self,
            Self::Key
                | Self::ShortKey
                | Self::ShardId
                | Self::PageFile
                | Self::NeededPrefix
                | Self::TtlToTouch
        );
        let mut described =
            json!({ "name": name, "in": place, "description": description, "schema": schema });
        if needed {
            described["required"] = true.into();
        }
        described
    }
}

const KEY: &str = "The key: its bytes, percent-encoded. They are decoded once, a plus is a plus, and slashes may stand as they are.";
const SHORT_KEY: &str = "The same, for keys whose first segment, before decoding, is none of the names that stand for something else.";
const CONSISTENCY: &str = "`stale`: whatever replica of the shard is at hand answers. Without it a read sees every write that was acknowledged before.";
const TTL: &str = "The pair ends by itself after so many seconds, 0.001 to 315360000. Where the header Evenkv-TTL says another time it is 400.";
const TTL_HEADER: &str = "Another way to say `ttl`.";
const TOUCH: &str = "The seconds that the pair is to live from now on, or `none`: it stays. The header Evenkv-TTL may say it instead.";
const IF_MATCH: &str =
    "RFC 9110, section 13.1.1: the key holds what one of these ETags names, or anything at all (`*`).";
const IF_NONE_MATCH: &str =
    "RFC 9110, section 13.1.2: the key holds nothing that one of these ETags names, or nothing at all (`*`).";
const KNOWN_TAG: &str = "The ETags that the client knows. What is none is ignored.";
const IDEMPOTENCY_KEY: &str =
    "Names the write: sent again under the same name it is done once, and answered as the first time.";
const RANGE: &str = "RFC 9110, section 14.2: a single range of bytes. Anything else is ignored.";
const IF_RANGE: &str = "The ETag under which Range counts; otherwise all of the value is answered.";
const PREFER: &str = "`respond-async`: the answer comes at once, with 202.";
const PREFER_WAIT: &str = "`wait=<seconds>`: where If-None-Match names an answer that differs in figures of load at most, it is held for so long until there is news, 30 s at most.";
const PREFIX: &str = "Only keys that begin with this, percent-encoded as keys are. A plus is a plus.";
const AFTER: &str = "Only keys after this one, percent-encoded as keys are; `next` of the page before.";
const LAST_EVENT_ID: &str = "The id of the last event: what came after it is told. What is no such id is 400. It counts before `since`.";
const SINCE: &str = "The same for those who cannot send the header.";
const SECRET: &str = "The secret of the cluster, where it has one.";
