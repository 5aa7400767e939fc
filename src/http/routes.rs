//! The one table of paths.

use std::borrow::Cow;

use crate::error::Error;
use crate::wire;

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// A key of a client, still percent-encoded.
    Key(&'a str),
    /// The pairs of this node's shard.
    KeyCount,
    /// The ids of all shards.
    Shards,
    /// One shard.
    Shard(&'a str),
    /// Who owns what.
    View,
    /// Changing it.
    ViewChange,
    /// Checking it.
    Audit,
    /// Is the process there?
    Livez,
    /// Does it serve?
    Readyz,
    /// Its figures.
    Metrics,
    /// A key that another node passed on, percent-encoded.
    NodeKey(&'a str),
    /// Who is this node?
    NodeHello,
    /// The news of the cluster.
    NodeNews,
    /// An order of the coordinator, or of another node.
    NodeOrders,
    /// What the target of a piece asks of its source.
    NodeTransfer,
    /// Messages of the meta group.
    NodeRaft,
    /// Founding the meta group anew.
    NodeRecover,
}

impl Route<'_> {
    /// The names by which metrics tell routes apart, and the last for what has none.
    pub const LABELS: [&'static str; 18] = [
        "keys",
        "key-count",
        "shards",
        "shard",
        "view",
        "view-change",
        "audit",
        "livez",
        "readyz",
        "metrics",
        "node-keys",
        "node-hello",
        "node-news",
        "node-orders",
        "node-transfer",
        "node-raft",
        "node-recover",
        "none",
    ];

    /// The index of the route's name among [`Route::LABELS`].
    pub fn label(route: Option<&Self>) -> usize {
        match route {
            Some(Self::Key(_)) => 0,
            Some(Self::KeyCount) => 1,
            Some(Self::Shards) => 2,
            Some(Self::Shard(_)) => 3,
            Some(Self::View) => 4,
            Some(Self::ViewChange) => 5,
            Some(Self::Audit) => 6,
            Some(Self::Livez) => 7,
            Some(Self::Readyz) => 8,
            Some(Self::Metrics) => 9,
            Some(Self::NodeKey(_)) => 10,
            Some(Self::NodeHello) => 11,
            Some(Self::NodeNews) => 12,
            Some(Self::NodeOrders) => 13,
            Some(Self::NodeTransfer) => 14,
            Some(Self::NodeRaft) => 15,
            Some(Self::NodeRecover) => 16,
            None => 17,
        }
    }

    /// The methods that the route takes, as `Allow` names them.
    pub fn allow(&self) -> &'static str {
        match self {
            Self::Key(_) | Self::NodeKey(_) | Self::ViewChange => "GET, PUT, DELETE",
            Self::NodeNews | Self::NodeOrders | Self::NodeTransfer => "POST",
            Self::NodeRaft => "GET, POST",
            Self::NodeRecover => "PUT",
            _ => "GET",
        }
    }
}

/// The first segments under `/kv-store/` that are no keys in the short form.
const RESERVED: [&str; 7] = ["keys", "key-count", "shards", "view", "view-change", "audit", ""];

/// Whether a path is one of the store's: what a follower passes on.
pub fn is_store(path: &str) -> bool {
    under_store(path).is_some()
}

fn under_store(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/kv-store").or_else(|| path.strip_prefix("/kvs"))?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// Finds the route of a path; `short_form` says whether `/kv-store/<key>` is one.
///
/// # Errors
/// [`Error::NotFound`] that names what there is.
pub fn find(path: &str, short_form: bool) -> Result<Route<'_>, Error> {
    if let Some(rest) = under_store(path) {
        return find_in_store(rest, short_form);
    }
    match path {
        "/livez" => Ok(Route::Livez),
        "/readyz" => Ok(Route::Readyz),
        "/metrics" => Ok(Route::Metrics),
        wire::HELLO => Ok(Route::NodeHello),
        wire::NEWS => Ok(Route::NodeNews),
        wire::ORDERS | wire::QUESTIONS => Ok(Route::NodeOrders),
        wire::TRANSFER => Ok(Route::NodeTransfer),
        wire::RAFT => Ok(Route::NodeRaft),
        wire::RECOVER => Ok(Route::NodeRecover),
        _ => match path.strip_prefix(wire::KEYS) {
            Some(key) => Ok(Route::NodeKey(key)),
            None => Err(Error::NotFound(
                "There is nothing under this path: allowed is /kv-store/keys/<key>, \
                 /kv-store/{key-count,shards,shards/<id>,view,view-change,audit}, /livez, /readyz, /metrics"
                    .to_owned(),
            )),
        },
    }
}

fn find_in_store(rest: &str, short_form: bool) -> Result<Route<'_>, Error> {
    if let Some(key) = rest.strip_prefix("keys/") {
        return Ok(Route::Key(key));
    }
    match rest {
        "key-count" => return Ok(Route::KeyCount),
        "shards" => return Ok(Route::Shards),
        "view" => return Ok(Route::View),
        "view-change" => return Ok(Route::ViewChange),
        "audit" => return Ok(Route::Audit),
        _ => {}
    }
    if let Some(id) = rest.strip_prefix("shards/").filter(|id| !id.contains('/')) {
        return Ok(Route::Shard(id));
    }
    let first = rest.split('/').next().unwrap_or("");
    let reserved = RESERVED.contains(&first) && !(first.is_empty() && rest.starts_with('/'));
    if reserved {
        return Err(Error::NotFound(
            "There is nothing under this path: a key is under /kv-store/keys/<key>".to_owned(),
        ));
    }
    if !short_form {
        return Err(Error::NotFound(
            "The form /kv-store/<key> is there while the view has one node: use /kv-store/keys/<key>"
                .to_owned(),
        ));
    }
    Ok(Route::Key(rest))
}

/// Decodes a key, once: a plus is a plus.
///
/// # Errors
/// [`Error::BadRequest`] for an empty key or an invalid escape.
pub fn decode_key(encoded: &str) -> Result<Cow<'_, [u8]>, Error> {
    if encoded.is_empty() {
        return Err(Error::BadRequest("Key is empty: allowed is a key of at least one byte".to_owned()));
    }
    let bytes = encoded.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let is_escape = || bytes.get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
        if *byte == b'%' && !is_escape() {
            return Err(Error::BadRequest(format!(
                "Key has an invalid escape at byte {at}: allowed is % with two hexadecimal digits; a percent sign is %25"
            )));
        }
    }
    Ok(percent_encoding::percent_decode(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_routes() {
        let table = [
            ("/kv-store/keys/a", true, Some(Route::Key("a"))),
            ("/kvs/keys/a/b//", false, Some(Route::Key("a/b//"))),
            ("/kvs/keys/", false, Some(Route::Key(""))),
            ("/kvs/keys", true, None),
            ("/kv-store/a/b", true, Some(Route::Key("a/b"))),
            ("/kv-store//a", true, Some(Route::Key("/a"))),
            ("/kv-store/keys%2Fa", true, Some(Route::Key("keys%2Fa"))),
            ("/kv-store/a", false, None),
            ("/kv-store/view/a", true, None),
            ("/kv-store/shards", false, Some(Route::Shards)),
            ("/kv-store/shards/7", false, Some(Route::Shard("7"))),
            ("/kv-store/shards/7/8", true, None),
            ("/kv-store/key-count", false, Some(Route::KeyCount)),
            ("/kvs/view-change", false, Some(Route::ViewChange)),
            ("/kv-store", true, None),
            ("/kv-store/", true, None),
            ("/kv-stores/a", true, None),
            ("/livez", false, Some(Route::Livez)),
            ("/livez/", false, None),
            ("", true, None),
            ("*", true, None),
            ("/node/keys/a%2Fb", false, Some(Route::NodeKey("a%2Fb"))),
        ];
        for (path, short_form, wanted) in table {
            assert_eq!(find(path, short_form).ok(), wanted, "{path}");
        }
    }

    #[test]
    fn keys_are_decoded_once() {
        let table: [(&str, Option<&[u8]>); 9] = [
            ("a", Some(b"a")),
            ("%2F..%00%fF+", Some(b"/..\x00\xff+")),
            ("%2525", Some(b"%25")),
            ("a%", None),
            ("%4", None),
            ("%4g", None),
            ("%%41", None),
            ("", None),
            ("/", Some(b"/")),
        ];
        for (encoded, wanted) in table {
            assert_eq!(decode_key(encoded).ok().as_deref(), wanted, "{encoded}");
        }
    }
}
