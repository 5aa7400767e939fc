//! What there is to say of each route beside its path and its methods: parameters, bodies, and what it answers.

use serde_json::{Value, json};
use tiny_http::Method;

use super::answers::{Success, always, at_times};
use super::parameters::Parameter;
use super::schemas::{causal, constant, count, flag, list, named, object, text};
use crate::error::{Applied, Error};
use crate::http::access::{Door, door};
use crate::http::page;
use crate::http::routes::{Interface, Route};

/// One method of a route.
#[derive(Clone)]
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) summary: &'static str,
    pub(super) parameters: Vec<Parameter>,
    /// The types of bodies that it takes, each with its form, and whether there has to be one.
    pub(super) body: Option<(Vec<(&'static str, Value)>, bool)>,
    pub(super) successes: Vec<Success>,
    /// Those beyond what any request of the route may be answered.
    pub(super) errors: Vec<Error>,
}

/// Who is told of a route.
pub(super) enum Described {
    /// Nodes among themselves; it may change with every version.
    Internal,
    /// Anybody.
    Public(Public),
}

/// A route that anybody may use.
pub(super) struct Public {
    /// Under which heading it stands.
    pub(super) tag: &'static str,
    /// What its errors look like.
    pub(super) interface: Interface,
    /// Fields that errors of the classic form may have beyond.
    pub(super) fields: Vec<(&'static str, Value)>,
    /// Headers that errors of a status may have beyond.
    pub(super) headers: Vec<(u16, &'static str)>,
    /// What any request may be answered.
    pub(super) errors: Vec<Error>,
    /// By method; HEAD and OPTIONS follow from the others.
    pub(super) operations: Vec<Operation>,
}

// An error of each kind, of which only the kind counts.
const FRAMING: Error = Error::Framing(String::new());
const TARGET: Error = Error::TargetTooLong { limit: 0 };
const BAD: Error = Error::BadRequest(String::new());
const LONG_KEY: Error = Error::KeyTooLong { limit: 0 };
const LARGE: Error = Error::TooLarge(String::new());
const SLOW: Error = Error::TooSlow(String::new());
const FULL: Error = Error::Overloaded(String::new());
const UNAVAILABLE: Error = Error::Unavailable { reason: String::new(), applied: Applied::No };
const MAIN_DOWN: Error = Error::MainDown { reason: String::new(), applied: Applied::No };
const NOT_SERVING: Error = Error::NotServing(String::new());
const NOT_FOUND: Error = Error::NotFound(String::new());
const RUNS: Error = Error::ChangeRuns(String::new());
const CONFLICT: Error = Error::Conflict(String::new());
const UNCLEAR: Error = Error::Unclear(String::new());
const FORBIDDEN: Error = Error::Forbidden(String::new());
const NO_ROOM: Error = Error::NoRoom(String::new());
const UNKNOWN_TOKEN: Error = Error::Unauthorized { was_shown: true };
const UNSATISFIABLE: Error = Error::Unsatisfiable { length: 0 };

/// What any request may be answered, wherever it goes.
fn of_any() -> Vec<Error> {
    vec![FRAMING, TARGET, FULL, Error::Internal]
}

/// The same for what a follower passes on, and for what has a body.
fn of_store() -> Vec<Error> {
    [of_any(), vec![BAD, SLOW, LARGE, UNAVAILABLE, MAIN_DOWN, NOT_SERVING, Error::Loop]].concat()
}

/// What is said of a route.
pub(super) fn of(route: Route) -> Described {
    let mut public = match route {
        Route::Key => keys(),
        Route::V1Key => v1_keys(),
        Route::Watch => watch(),
        Route::V1List => v1_list(),
        Route::V1Export => v1_export(),
        Route::V1Batch => v1_batch(),
        Route::KeyCount => cluster("How many pairs this node's own shard owns", key_count()),
        Route::Shards => cluster("The ids of all shards", shards()),
        Route::Shard => shard(),
        Route::View => view(),
        Route::ViewChange => view_change(),
        Route::V1Status => v1_status(),
        Route::Audit => cluster("Counts and sums up what all replicas hold", named("Audit")),
        Route::Livez => livez(),
        Route::Readyz => readyz(),
        Route::Metrics => metrics(),
        Route::OpenApi => openapi(),
        Route::Page => page("The page for people", &[]),
        Route::PageFile => page("A file of the page", &[NOT_FOUND]),
        Route::NodeRecover => recover(),
        Route::Relay
        | Route::NodeKey
        | Route::NodeConditionalKey
        | Route::NodeTypedKey
        | Route::NodeTimedKey
        | Route::NodeBatch
        | Route::NodeHello
        | Route::NodeNews
        | Route::NodeOrders
        | Route::NodeQuestions
        | Route::NodeList
        | Route::NodeTransfer
        | Route::NodeRaft
        | Route::NodeRequests => return Described::Internal,
    };
    if matches!(door(route, &Method::Get), Door::Role(_)) {
        public.errors.extend([UNKNOWN_TOKEN, FORBIDDEN]);
    }
    Described::Public(public)
}

impl Operation {
    pub(super) fn new(method: Method, summary: &'static str, successes: Vec<Success>) -> Self {
        Self { method, summary, parameters: Vec::new(), body: None, successes, errors: Vec::new() }
    }

    fn get(summary: &'static str, successes: Vec<Success>) -> Self {
        Self::new(Method::Get, summary, successes)
    }

    fn with(mut self, parameters: &[Parameter]) -> Self {
        self.parameters.extend(parameters);
        self
    }

    fn failing(mut self, errors: &[Error]) -> Self {
        self.errors.extend_from_slice(errors);
        self
    }

    /// One that needs a body of one of these types.
    fn taking(mut self, content: &[(&'static str, Value)]) -> Self {
        self.body = Some((content.to_vec(), true));
        self
    }

    /// One that may have a body.
    fn may_take(mut self, kind: &'static str, schema: Value) -> Self {
        self.body = Some((vec![(kind, schema)], false));
        self
    }
}

fn classic(tag: &'static str, errors: Vec<Error>, operations: Vec<Operation>) -> Public {
    let (interface, fields) = (Interface::Classic, vec![("causal-context", causal())]);
    Public { tag, interface, fields, headers: Vec::new(), errors, operations }
}

fn v1(errors: &[Error], operations: Vec<Operation>) -> Public {
    let errors = [of_store(), errors.to_vec()].concat();
    Public { interface: Interface::V1, fields: Vec::new(), ..classic("v1", errors, operations) }
}

/// What a key's answers may say beside their own fields.
fn with_more(fields: &[(&str, Value)]) -> Value {
    let more = [("address?", named("Address")), ("causal-context?", causal())];
    object(&[fields.to_vec(), more.to_vec()].concat())
}

const CONDITIONS: [Parameter; 2] = [Parameter::IfMatch, Parameter::IfNoneMatch];

fn keys() -> Public {
    let found = with_more(&[
        ("doesExist", constant(true)),
        ("message", constant("Retrieved successfully")),
        ("value", json!({})),
    ]);
    let stored = |message: &str, replaced: bool| {
        with_more(&[("message", constant(message)), ("replaced", constant(replaced))])
    };
    let deleted = with_more(&[("doesExist", constant(true)), ("message", constant("Deleted successfully"))]);
    let found = Success::json(200, "The value", found).with(&[
        always("ETag"),
        at_times("Evenkv-TTL"),
        at_times("Evenkv-Encoding"),
        at_times("Evenkv-Staleness-Ms"),
    ]);
    let unchanged = Success::empty(304, "It holds what If-None-Match names").with(&[
        always("ETag"),
        at_times("Evenkv-TTL"),
        at_times("Evenkv-Staleness-Ms"),
    ]);
    let get = Operation::get("Read a value", vec![found, unchanged])
        .with(&CONDITIONS)
        .with(&[Parameter::Consistency])
        .may_take(ANYTHING, named("AnyBody"))
        .failing(&[Error::Absent, Error::Unmet]);
    let put = Operation::new(
        Method::Put,
        "Store a value",
        vec![
            Success::json(201, "The key is new", stored("Added successfully", false)).with(&[always("ETag")]),
            Success::json(200, "The key was there", stored("Updated successfully", true))
                .with(&[always("ETag")]),
        ],
    )
    .with(&CONDITIONS)
    .with(&[Parameter::Ttl, Parameter::TtlHeader, Parameter::IdempotencyKey])
    .taking(&[("application/json", named("ClassicPut"))])
    .failing(&[Error::ValueMissing, Error::Unmet, Error::OtherRequest, NO_ROOM]);
    let delete = Operation::new(Method::Delete, "Delete a key", vec![Success::json(200, "Deleted", deleted)])
        .with(&CONDITIONS)
        .with(&[Parameter::IdempotencyKey])
        .may_take(ANYTHING, named("AnyBody"))
        .failing(&[Error::Absent, Error::Unmet, Error::OtherRequest]);
    let errors = [of_store(), vec![LONG_KEY]].concat();
    let mut public = classic("keys", errors, vec![get, put, delete]);
    public.fields.push(("address", named("Address")));
    public.headers =
        vec![(412, "ETag"), (412, "Evenkv-TTL"), (404, "Evenkv-Staleness-Ms"), (412, "Evenkv-Staleness-Ms")];
    public
}

/// Bytes of any type.
fn any_bytes() -> Vec<(&'static str, Value)> {
    vec![("*/*", json!({}))]
}

fn v1_keys() -> Public {
    let read = [
        always("ETag"),
        always("Accept-Ranges"),
        always("Content-Security-Policy"),
        at_times("Evenkv-TTL"),
        at_times("Evenkv-Staleness-Ms"),
    ];
    let get = Operation::get(
        "Read a value: the body is its bytes",
        vec![
            Success::of(200, "The bytes as they came", &any_bytes()).with(&read),
            Success::of(206, "The part that Range names", &any_bytes())
                .with(&read)
                .with(&[always("Content-Range")]),
            Success::empty(304, "It holds what If-None-Match names").with(&[
                always("ETag"),
                at_times("Evenkv-TTL"),
                at_times("Evenkv-Staleness-Ms"),
            ]),
        ],
    )
    .with(&CONDITIONS)
    .with(&[Parameter::Consistency, Parameter::Range, Parameter::IfRange])
    .failing(&[Error::Absent, Error::Unmet, UNSATISFIABLE]);
    let tagged = |status, words| Success::empty(status, words).with(&[always("ETag")]);
    let put = Operation::new(
        Method::Put,
        "Store the bytes of the body",
        vec![tagged(201, "The key is new"), tagged(200, "The key was there")],
    )
    .with(&CONDITIONS)
    .with(&[Parameter::Ttl, Parameter::TtlHeader, Parameter::IdempotencyKey])
    .taking(&[
        ("application/octet-stream", json!({})),
        ("application/json", json!({})),
        ("text/plain", text()),
        ("*/*", json!({})),
    ])
    .failing(&[Error::Unmet, Error::OtherRequest, NO_ROOM]);
    let delete = Operation::new(Method::Delete, "Delete a key", vec![Success::empty(204, "Deleted")])
        .with(&CONDITIONS)
        .with(&[Parameter::IdempotencyKey])
        .failing(&[Error::Absent, Error::Unmet, Error::OtherRequest]);
    let patch = Operation::new(
        Method::Patch,
        "Give a pair another time to live",
        vec![tagged(204, "It lives for that time from now on; its value is as it was")],
    )
    .with(&CONDITIONS)
    .with(&[Parameter::TtlToTouch, Parameter::IdempotencyKey])
    .failing(&[Error::Absent, Error::Unmet, Error::OtherRequest]);
    let mut public = v1(&[LONG_KEY], vec![get, put, delete, patch]);
    public.headers = vec![
        (412, "ETag"),
        (416, "ETag"),
        (412, "Evenkv-TTL"),
        (416, "Evenkv-TTL"),
        (404, "Evenkv-Staleness-Ms"),
        (412, "Evenkv-Staleness-Ms"),
        (416, "Evenkv-Staleness-Ms"),
    ];
    public
}

const ANYTHING: &str = "*/*";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

fn watch() -> Public {
    let stream =
        Success::of(200, "Events, for as long as the connection is open", &[("text/event-stream", text())])
            .with(&[always("Cache-Control"), at_times("Connection")]);
    let get = Operation::get("Changes of keys, as they are done", vec![stream]).with(&[
        Parameter::Prefix,
        Parameter::Values,
        Parameter::LastEventId,
        Parameter::Since,
    ]);
    v1(&[LONG_KEY], vec![get])
}

fn v1_list() -> Public {
    let listed = [("application/json", named("Page")), (LINES, text())];
    let get = Operation::get(
        "Keys in their order: a page, all of them line by line where Accept says application/x-ndjson, or their number",
        vec![Success::of(200, "What there is", &listed).with(&[at_times("Evenkv-Watch")])],
    )
    .with(&[Parameter::Prefix, Parameter::After, Parameter::Limit, Parameter::Values, Parameter::Count, Parameter::Cursor]);
    let deleted = object(&[("deleted", count()), ("more", flag())]);
    let delete = Operation::new(
        Method::Delete,
        "Delete all keys that begin alike, key by key",
        vec![Success::json(200, "How many were deleted, and whether there are more", deleted)],
    )
    .with(&[Parameter::NeededPrefix]);
    v1(&[], vec![get, delete])
}

fn v1_export() -> Public {
    let lines = Success::of(200, "A line for each pair, and a last one over all", &[(LINES, text())]);
    let get = Operation::get("All pairs, with their values", vec![lines]).with(&[Parameter::Prefix]);
    v1(&[], vec![get])
}

fn v1_batch() -> Public {
    let lines = Success::of(200, "A line for each line, in their order", &[(LINES, text())]);
    let post = Operation::new(Method::Post, "Many operations, each by itself", vec![lines])
        .with(&[Parameter::IdempotencyKey])
        .may_take(LINES, named("AnyLines"));
    v1(&[], vec![post])
}

fn v1_status() -> Public {
    let tag = [always("ETag")];
    let status =
        Success::json(200, "How all nodes, shards and view changes are, and what is wrong", named("Status"));
    let unchanged = Success::empty(304, "It is what If-None-Match names");
    let get = Operation::get("How everything is", vec![status.with(&tag), unchanged.with(&tag)])
        .with(&[Parameter::KnownTag, Parameter::PreferWait])
        .may_take(ANYTHING, named("AnyBody"));
    v1(&[], vec![get])
}

fn cluster(summary: &'static str, schema: Value) -> Public {
    let get = Operation::get(summary, vec![Success::json(200, summary, schema)])
        .may_take(ANYTHING, named("AnyBody"));
    classic("cluster", of_store(), vec![get])
}

fn key_count() -> Value {
    object(&[
        ("message", constant("Key count retrieved successfully")),
        ("key-count", count()),
        ("shard-id?", text()),
        ("causal-context?", causal()),
    ])
}

fn shards() -> Value {
    object(&[
        ("message", constant("Shard membership retrieved successfully")),
        ("shards", list(text())),
        ("causal-context?", causal()),
    ])
}

fn shard() -> Public {
    let get = Operation::get("One shard", vec![Success::json(200, "One shard", named("ShardRow"))])
        .may_take(ANYTHING, named("AnyBody"))
        .failing(&[NOT_FOUND]);
    classic("cluster", of_store(), vec![get])
}

fn view() -> Public {
    let view =
        Success::json(200, "Who owns what; the ETag is the epoch", named("View")).with(&[always("ETag")]);
    let get = Operation::get("Who owns what", vec![view]).may_take(ANYTHING, named("AnyBody"));
    classic("cluster", of_store(), vec![get])
}

fn view_change() -> Public {
    let put = Operation::new(
        Method::Put,
        "Change the nodes of the cluster, its factor or its limits",
        vec![
            Success::json(
                200,
                "It has ended: the receipt. Or, with dry-run, what would be done",
                json!({ "anyOf": [named("Receipt"), named("Plan")] }),
            ),
            Success::json(
                202,
                "It goes on by itself",
                object(&[
                    ("message", constant("View change accepted")),
                    ("change-id", text()),
                    ("causal-context?", causal()),
                ]),
            )
            .with(&[always("Location")]),
        ],
    )
    .with(&[Parameter::Prefer])
    .taking(&[("application/json", named("ViewChange"))])
    .failing(&[RUNS, CONFLICT, UNCLEAR]);
    let get = Operation::get(
        "How far the last view change is",
        vec![Success::json(200, "How far it is", named("ChangeStatus"))],
    )
    .may_take(ANYTHING, named("AnyBody"));
    let cancelled = object(&[
        ("message", constant("View change cancelled")),
        ("change-id", text()),
        ("causal-context?", causal()),
    ]);
    let delete = Operation::new(
        Method::Delete,
        "Cancel the view change that runs",
        vec![Success::json(200, "Cancelled", cancelled)],
    )
    .may_take(ANYTHING, named("AnyBody"))
    .failing(&[NOT_FOUND, CONFLICT, UNCLEAR]);
    let mut public = classic("cluster", of_store(), vec![get, put, delete]);
    public.headers = vec![(503, "Location")];
    public
}

fn livez() -> Public {
    let alive = Success::json(200, "The process serves requests", object(&[("alive", constant(true))]));
    own(Operation::get("Is the process there?", vec![alive]))
}

fn own(get: Operation) -> Public {
    Public { fields: Vec::new(), ..classic("node", of_any(), vec![get]) }
}

fn readyz() -> Public {
    let ready = |is_ready: bool| {
        object(&[("ready", constant(is_ready)), ("reasons", list(text())), ("notes", list(text()))])
    };
    own(Operation::get(
        "Does it serve keys?",
        vec![
            Success::json(200, "It does", ready(true)),
            Success::json(503, "It does not", ready(false)).with(&[always("Retry-After")]),
        ],
    ))
}

fn metrics() -> Public {
    let figures =
        Success::of(200, "Counters and gauges in the text format of Prometheus", &[("text/plain", text())]);
    own(Operation::get("Its figures", vec![figures]))
}

fn openapi() -> Public {
    let headers = [always("ETag"), always("Cache-Control")];
    let document = Success::json(200, "This document", json!({ "type": "object" })).with(&headers);
    let unchanged = Success::empty(304, "It is what If-None-Match names").with(&headers);
    own(Operation::get("This document", vec![document, unchanged]).with(&[Parameter::KnownTag]))
}

fn page(summary: &'static str, errors: &[Error]) -> Public {
    let headers: Vec<_> =
        std::iter::once("ETag").chain(page::HEADERS.map(|(name, _)| name)).map(always).collect();
    let types = page::TYPES.map(|kind| (kind.split(';').next().unwrap_or(kind), text()));
    let file = Success::of(200, "It has no data in it", &types).with(&headers);
    let unchanged = Success::empty(304, "It is what If-None-Match names").with(&headers);
    own(Operation::get(summary, vec![file, unchanged]).with(&[Parameter::KnownTag]).failing(errors))
}

fn recover() -> Public {
    let recovered = Success::json(200, "What was done, or would be", named("Recovered"));
    let put = Operation::new(
        Method::Put,
        "Bring back what has lost its majority for good, on the operator's word",
        vec![recovered],
    )
    .with(&[Parameter::Secret])
    .may_take(JSON, named("Recovery"))
    .failing(&[BAD, SLOW, LARGE, FORBIDDEN, CONFLICT, NOT_SERVING, UNCLEAR, UNAVAILABLE]);
    Public { fields: Vec::new(), ..classic("node", of_any(), vec![put]) }
}
