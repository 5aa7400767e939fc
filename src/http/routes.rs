//! The one table of paths: what each is about, what it is called in metrics, which methods it takes, and which lane it goes to.

use std::borrow::Cow;

use super::lane_id::LaneId;
use crate::error::Error;
use crate::wire;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A key of a client.
    Key,
    /// The same where the value is the body.
    V1Key,
    /// What is done to keys, as it is done.
    Watch,
    /// Keys in their order, and what begins alike.
    V1List,
    /// All pairs, with their values.
    V1Export,
    /// Many of them.
    V1Batch,
    /// How everything is.
    V1Status,
    /// The pairs of this node's shard.
    KeyCount,
    /// The ids of all shards.
    Shards,
    /// One shard.
    Shard,
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
    /// What all of these take and answer.
    OpenApi,
    /// The page for people.
    Page,
    /// What it is made of.
    PageFile,
    /// A connection for many requests that a follower passes on.
    Relay,
    /// A key that another node passed on.
    NodeKey,
    /// The same under a condition.
    NodeConditionalKey,
    /// The same with a value that has a type of its own.
    NodeTypedKey,
    /// The same with a time to live.
    NodeTimedKey,
    /// Many keys that another node passed on.
    NodeBatch,
    /// Who is this node?
    NodeHello,
    /// The news of the cluster.
    NodeNews,
    /// An order of the coordinator, or of another node.
    NodeOrders,
    /// An order that waits for no other node.
    NodeQuestions,
    /// A page of a listing of a shard.
    NodeList,
    /// What the target of a piece asks of its source.
    NodeTransfer,
    /// Messages of the meta group.
    NodeRaft,
    /// A connection for many keys that another node passes on.
    NodeRequests,
    /// Founding the meta group anew.
    NodeRecover,
}

/// What comes after the path of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// A key, percent-encoded, which may have slashes.
    Key,
    /// An id.
    Id,
}

struct Row {
    route: Route,
    path: &'static str,
    rest: Rest,
    name: &'static str,
    allow: &'static str,
    lane: LaneId,
}

const fn row(
    route: Route,
    (path, rest): (&'static str, Rest),
    name: &'static str,
    allow: &'static str,
    lane: LaneId,
) -> Row {
    Row { route, path, rest, name, allow, lane }
}

/// Where clients find the store, and what it is called for short.
const STORE: &str = "/kv-store";
const STORE_ALIAS: &str = "/kvs";
/// What is under this has the words of the second interface.
const V1: &str = "/v1";

/// Where changes are watched.
pub const WATCH: &str = "/v1/watch";

/// Where it is said how everything is.
pub const STATUS: &str = "/v1/status";

/// In which words a client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// JSON objects with fixed sentences in them.
    Classic,
    /// Values as bodies, and errors as problem details.
    V1,
}

/// The interface that a path belongs to, whether there is anything under it or not.
pub fn interface(path: &str) -> Interface {
    let is_v1 = path.strip_prefix(V1).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if is_v1 { Interface::V1 } else { Interface::Classic }
}

/// In the order of the routes. What is under [`STORE`] is found under its alias, too.
const TABLE: [Row; 34] = [
    row(
        Route::Key,
        ("/kv-store/keys/", Rest::Key),
        "keys",
        "GET, PUT, DELETE, HEAD, OPTIONS",
        LaneId::Client,
    ),
    row(
        Route::V1Key,
        ("/v1/kv/", Rest::Key),
        "v1-kv",
        "GET, PUT, DELETE, PATCH, HEAD, OPTIONS",
        LaneId::Client,
    ),
    row(Route::Watch, (WATCH, Rest::Nothing), "v1-watch", "GET, OPTIONS", LaneId::Client),
    row(
        Route::V1List,
        ("/v1/kv", Rest::Nothing),
        "v1-list",
        "GET, DELETE, HEAD, OPTIONS",
        // Its answers may be long, and it may wait for any node.
        LaneId::ClientLarge,
    ),
    row(
        Route::V1Export,
        ("/v1/export", Rest::Nothing),
        "v1-export",
        "GET, HEAD, OPTIONS",
        LaneId::ClientLarge,
    ),
    // Its body is read whole and its answer takes as long as the slowest shard, so it keeps no worker from small requests.
    row(Route::V1Batch, ("/v1/batch", Rest::Nothing), "v1-batch", "POST, OPTIONS", LaneId::ClientLarge),
    row(Route::V1Status, (STATUS, Rest::Nothing), "v1-status", "GET, HEAD, OPTIONS", LaneId::Client),
    row(
        Route::KeyCount,
        ("/kv-store/key-count", Rest::Nothing),
        "key-count",
        "GET, HEAD, OPTIONS",
        LaneId::Client,
    ),
    row(Route::Shards, ("/kv-store/shards", Rest::Nothing), "shards", "GET, HEAD, OPTIONS", LaneId::Client),
    row(Route::Shard, ("/kv-store/shards/", Rest::Id), "shard", "GET, HEAD, OPTIONS", LaneId::Client),
    row(Route::View, ("/kv-store/view", Rest::Nothing), "view", "GET, HEAD, OPTIONS", LaneId::Client),
    row(
        Route::ViewChange,
        ("/kv-store/view-change", Rest::Nothing),
        "view-change",
        "GET, PUT, DELETE, HEAD, OPTIONS",
        LaneId::Client,
    ),
    row(Route::Audit, ("/kv-store/audit", Rest::Nothing), "audit", "GET, HEAD, OPTIONS", LaneId::Client),
    row(Route::Livez, ("/livez", Rest::Nothing), "livez", "GET, HEAD, OPTIONS", LaneId::Health),
    row(Route::Readyz, ("/readyz", Rest::Nothing), "readyz", "GET, HEAD, OPTIONS", LaneId::Health),
    row(Route::Metrics, ("/metrics", Rest::Nothing), "metrics", "GET, HEAD, OPTIONS", LaneId::Health),
    row(Route::OpenApi, ("/openapi.json", Rest::Nothing), "openapi", "GET, HEAD, OPTIONS", LaneId::Client),
    row(Route::Page, ("/", Rest::Nothing), "page", "GET, HEAD, OPTIONS", LaneId::Client),
    row(Route::PageFile, ("/page/", Rest::Id), "page-file", "GET, HEAD, OPTIONS", LaneId::Client),
    row(Route::Relay, (wire::RELAY, Rest::Nothing), "relay", "GET, OPTIONS", LaneId::Client),
    row(
        Route::NodeKey,
        (wire::KEYS, Rest::Key),
        "node-keys",
        "GET, PUT, DELETE, HEAD, OPTIONS",
        LaneId::Forwarded,
    ),
    row(
        Route::NodeConditionalKey,
        (wire::CONDITIONAL_KEYS, Rest::Key),
        "node-conditional-keys",
        "GET, PUT, DELETE, HEAD, OPTIONS",
        LaneId::Forwarded,
    ),
    row(
        Route::NodeTypedKey,
        (wire::TYPED_KEYS, Rest::Key),
        "node-typed-keys",
        "PUT, OPTIONS",
        LaneId::Forwarded,
    ),
    row(
        Route::NodeTimedKey,
        (wire::TIMED_KEYS, Rest::Key),
        "node-timed-keys",
        "PUT, PATCH, OPTIONS",
        LaneId::Forwarded,
    ),
    row(
        Route::NodeBatch,
        (wire::batches::BATCH, Rest::Nothing),
        "node-batch",
        "POST, OPTIONS",
        LaneId::Forwarded,
    ),
    row(Route::NodeHello, (wire::HELLO, Rest::Nothing), "node-hello", "GET, HEAD, OPTIONS", LaneId::Question),
    row(Route::NodeNews, (wire::NEWS, Rest::Nothing), "node-news", "POST, OPTIONS", LaneId::Question),
    row(Route::NodeOrders, (wire::ORDERS, Rest::Nothing), "node-orders", "POST, OPTIONS", LaneId::Control),
    row(
        Route::NodeQuestions,
        (wire::QUESTIONS, Rest::Nothing),
        "node-questions",
        "POST, OPTIONS",
        LaneId::Question,
    ),
    row(
        Route::NodeList,
        (wire::listing::LIST, Rest::Nothing),
        "node-list",
        "POST, OPTIONS",
        LaneId::Forwarded,
    ),
    row(
        Route::NodeTransfer,
        (wire::TRANSFER, Rest::Nothing),
        "node-transfer",
        "POST, OPTIONS",
        LaneId::Transfer,
    ),
    row(Route::NodeRaft, (wire::RAFT, Rest::Nothing), "node-raft", "GET, POST, OPTIONS", LaneId::Raft),
    row(
        Route::NodeRequests,
        (wire::REQUESTS, Rest::Nothing),
        "node-requests",
        "GET, OPTIONS",
        LaneId::Question,
    ),
    row(Route::NodeRecover, (wire::RECOVER, Rest::Nothing), "node-recover", "PUT, OPTIONS", LaneId::Control),
];

impl Route {
    /// How many there are.
    pub const COUNT: usize = TABLE.len();

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// All of them, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.route)
    }

    /// Its path, with a name in braces for what comes after it.
    pub fn template(self) -> String {
        let row = self.row();
        match row.rest {
            Rest::Nothing => row.path.to_owned(),
            Rest::Key => format!("{}{{key}}", row.path),
            Rest::Id => format!("{}{{id}}", row.path),
        }
    }

    /// The methods that it takes, one by one.
    pub fn methods(self) -> impl Iterator<Item = &'static str> {
        self.row().allow.split(", ")
    }

    /// The name by which metrics tell routes apart; what has no route has one, too.
    pub fn name(route: Option<Self>) -> &'static str {
        route.map_or("none", |route| route.row().name)
    }

    /// The methods that the route takes, as `Allow` names them. HEAD is wherever GET is, but for streams; OPTIONS is everywhere.
    pub fn allow(self) -> &'static str {
        self.row().allow
    }

    /// Whether it is about a key that a client asks about.
    pub fn is_of_client_key(self) -> bool {
        matches!(self, Self::Key | Self::V1Key)
    }

    /// The lane of its requests, but for those with large bodies.
    pub fn lane(self) -> LaneId {
        self.row().lane
    }
}

/// Whether a path is one of the store's, in either interface: what a follower passes on.
pub fn is_store(path: &str) -> bool {
    under_store(path).is_some() || interface(path) == Interface::V1
}

/// The same path under the other name of the store, where it is one of its paths.
pub fn alias(template: &str) -> Option<String> {
    template.strip_prefix(STORE).map(|rest| format!("{STORE_ALIAS}{rest}"))
}

/// Where a key is in the short form, and under the other name of the store.
pub const SHORT: &str = "/kv-store/{key}";
/// The same under the other name.
pub const SHORT_ALIAS: &str = "/kvs/{key}";

/// The first segments that are no keys in the short form; some come twice.
pub fn reserved() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter_map(|row| row.path.strip_prefix(STORE)?.split('/').nth(1))
}

/// What comes after the store's name.
fn under_store(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(STORE).or_else(|| path.strip_prefix(STORE_ALIAS))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// The lane of a path that nothing may be under.
pub fn lane(path: &str) -> LaneId {
    match find(path, true) {
        Ok((route, _)) => route.lane(),
        Err(_) if path.starts_with("/node/") => LaneId::Forwarded,
        Err(_) => LaneId::Client,
    }
}

/// Finds the route of a path, and what the path has beyond it: a key, percent-encoded, or an id. `short_form` says whether
/// `/kv-store/<key>` is one.
///
/// # Errors
/// [`Error::NotFound`] that names what there is.
pub fn find(path: &str, short_form: bool) -> Result<(Route, &str), Error> {
    let in_store = under_store(path);
    let found = TABLE.iter().find_map(|row| {
        let rest = match in_store {
            Some(rest) => rest.strip_prefix(row.path.strip_prefix(STORE)?)?,
            None => path.strip_prefix(row.path)?,
        };
        let fits = match row.rest {
            Rest::Nothing => rest.is_empty(),
            Rest::Key => true,
            Rest::Id => !rest.contains('/'),
        };
        fits.then_some((row.route, rest))
    });
    if let Some(found) = found {
        return Ok(found);
    }
    match in_store {
        Some(rest) => find_short(rest, short_form),
        None => {
            Err(Error::NotFound(format!("There is nothing under this path: allowed is {}", listed_paths())))
        }
    }
}

/// A key in the short form; the first segments of the store's other paths are none.
fn find_short(rest: &str, short_form: bool) -> Result<(Route, &str), Error> {
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let first = rest.split('/').next().unwrap_or("");
    if rest.is_empty() || reserved().any(|name| name == first) {
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
    Ok((Route::Key, rest))
}

/// The paths for people and programs that are no nodes.
fn listed_paths() -> String {
    let rows = TABLE.iter().filter(|row| !row.path.starts_with("/node/"));
    let path = |row: &Row| match row.rest {
        Rest::Nothing => row.path.to_owned(),
        Rest::Key => format!("{}<key>", row.path),
        Rest::Id => format!("{}<id>", row.path),
    };
    rows.map(path).collect::<Vec<_>>().join(", ")
}

/// The key of a path.
pub struct EncodedKey {
    /// Decoded, or why it cannot be.
    pub key: Result<Vec<u8>, Error>,
    /// How long it was before, in bytes.
    pub length: usize,
}

impl EncodedKey {
    /// Decodes what a path has beyond its route.
    pub fn of(rest: &str) -> Self {
        Self { key: decode_key(rest).map(Cow::into_owned), length: rest.len() }
    }
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
            ("/kv-store/keys/a", true, Some((Route::Key, "a"))),
            ("/kvs/keys/a/b//", false, Some((Route::Key, "a/b//"))),
            ("/kvs/keys/", false, Some((Route::Key, ""))),
            ("/kvs/keys", true, None),
            ("/kv-store/a/b", true, Some((Route::Key, "a/b"))),
            ("/kv-store//a", true, Some((Route::Key, "/a"))),
            ("/kv-store/keys%2Fa", true, Some((Route::Key, "keys%2Fa"))),
            ("/kv-store/a", false, None),
            ("/kv-store/view/a", true, None),
            ("/kv-store/shards", false, Some((Route::Shards, ""))),
            ("/kv-store/shards/7", false, Some((Route::Shard, "7"))),
            ("/kv-store/shards/7/8", true, None),
            ("/kv-store/key-count", false, Some((Route::KeyCount, ""))),
            ("/kvs/view-change", false, Some((Route::ViewChange, ""))),
            ("/kv-store", true, None),
            ("/kv-store/", true, None),
            ("/kv-stores/a", true, None),
            ("/livez", false, Some((Route::Livez, ""))),
            ("/livez/", false, None),
            ("", true, None),
            ("*", true, None),
            ("/node/keys/a%2Fb", false, Some((Route::NodeKey, "a%2Fb"))),
            ("/node/conditional-keys/a", false, Some((Route::NodeConditionalKey, "a"))),
            ("/node/typed-keys/a", false, Some((Route::NodeTypedKey, "a"))),
            ("/v1/kv/a/b//%2F", false, Some((Route::V1Key, "a/b//%2F"))),
            ("/v1/kv/", true, Some((Route::V1Key, ""))),
            ("/v1/kv", true, Some((Route::V1List, ""))),
            ("/v1/watch", false, Some((Route::Watch, ""))),
            ("/v1/watch/", true, None),
            ("/v1/status", false, Some((Route::V1Status, ""))),
            ("/v1/status/", true, None),
            ("/v1", true, None),
            ("/v1kv/a", true, None),
            ("/kvs/v1/kv/a", true, Some((Route::Key, "v1/kv/a"))),
        ];
        for (path, short_form, wanted) in table {
            assert_eq!(find(path, short_form).ok(), wanted, "{path}");
        }
    }

    #[test]
    fn the_interface_follows_from_the_path() {
        let table = [
            ("/v1/kv/a", Interface::V1),
            ("/v1/nothing", Interface::V1),
            ("/v1", Interface::V1),
            ("/v1a", Interface::Classic),
            ("/kvs/keys/v1/kv/a", Interface::Classic),
            ("/livez", Interface::Classic),
            ("", Interface::Classic),
        ];
        for (path, wanted) in table {
            assert_eq!(interface(path), wanted, "{path}");
            assert_eq!(is_store(path), wanted == Interface::V1 || path.starts_with("/kvs"), "{path}");
        }
    }

    #[test]
    fn the_rows_are_in_the_order_of_the_routes() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.route as usize, index, "{}", row.path);
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
