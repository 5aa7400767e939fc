//! The rows of the contract about keys, as data.
//!
//! They run from top to bottom on one store: later rows read what earlier ones wrote. `{k}` in a path is a
//! key that no other run uses.

/// What the body of an answer must be, apart from `address` and `causal-context`.
pub(crate) enum Want {
    /// Exactly this, compared by structure.
    Json(&'static str),
    /// The answer to a GET that found a value with exactly these bytes.
    Found(String),
    /// `error`, which contains all of these in any case, and `message` for the method; nothing else.
    Error(Vec<String>),
}

/// Which nodes answer a row so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Everywhere,
    OneNodeView,
    SeveralNodes,
}

/// Whether the row says anything about the field `address`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    /// The owner, exactly when it is not the node that was asked.
    ByOwner,
    /// No key was understood, so the contract does not say.
    NotSaid,
}

/// One request and what must come back.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) request_headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) want: Want,
    /// Header names and a text that each must contain.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) causal_context: bool,
    pub(crate) address: Address,
    pub(crate) place: Where,
}

impl Row {
    fn new(name: &'static str, method: &'static str, path: &str) -> Self {
        Self {
            name,
            method,
            path: path.to_owned(),
            request_headers: Vec::new(),
            body: Vec::new(),
            status: 0,
            want: Want::Json("{}"),
            headers: Vec::new(),
            causal_context: false,
            address: Address::ByOwner,
            place: Where::Everywhere,
        }
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn typed(mut self, content_type: &'static str) -> Self {
        self.request_headers.push(("Content-Type", content_type));
        self
    }

    fn named(mut self, id: &'static str) -> Self {
        self.request_headers.push(("Idempotency-Key", id));
        self
    }

    fn answers(mut self, status: u16, body: &'static str) -> Self {
        (self.status, self.want) = (status, Want::Json(body));
        self
    }

    fn finds(mut self, value: &str) -> Self {
        (self.status, self.want) = (200, Want::Found(value.to_owned()));
        self
    }

    fn fails(mut self, status: u16, parts: &[&str]) -> Self {
        self.status = status;
        self.want = Want::Error(parts.iter().map(|part| part.to_lowercase()).collect());
        self
    }

    fn header(mut self, name: &'static str, part: &str) -> Self {
        self.headers.push((name, part.to_owned()));
        self
    }

    fn causal(mut self) -> Self {
        self.causal_context = true;
        self
    }

    fn without_key(mut self) -> Self {
        self.address = Address::NotSaid;
        self
    }

    fn only(mut self, place: Where) -> Self {
        self.place = place;
        self
    }
}

const ADDED: &str = r#"{"message":"Added successfully","replaced":false}"#;
const UPDATED: &str = r#"{"message":"Updated successfully","replaced":true}"#;
const DELETED: &str = r#"{"doesExist":true,"message":"Deleted successfully"}"#;
const NO_VALUE: &str = r#"{"error":"Value is missing","message":"Error in PUT"}"#;
const ABSENT_GET: &str = r#"{"doesExist":false,"error":"Key does not exist","message":"Error in GET"}"#;
const ABSENT_DELETE: &str = r#"{"doesExist":false,"error":"Key does not exist","message":"Error in DELETE"}"#;
const LONG_PUT: &str = r#"{"error":"Key is too long","message":"Error in PUT"}"#;
const LONG_GET: &str = r#"{"error":"Key is too long","message":"Error in GET"}"#;
const LONG_DELETE: &str = r#"{"error":"Key is too long","message":"Error in DELETE"}"#;

/// The limit that the nodes of these tests are started with, in bytes of the value's text.
pub(crate) const MAX_VALUE_LENGTH: usize = 30_000;

/// All rows about keys.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = life_of_a_key();
    rows.extend(put_bodies());
    rows.extend(values());
    rows.extend(limits_and_their_order());
    rows.extend(causal_contexts());
    rows.extend(named_writes());
    rows.extend(short_form());
    rows.extend(wrong_requests());
    rows
}

fn life_of_a_key() -> Vec<Row> {
    let key = "/keys/{k}";
    vec![
        Row::new("GET of an absent key", "GET", key).answers(404, ABSENT_GET),
        Row::new("DELETE of an absent key", "DELETE", key).answers(404, ABSENT_DELETE),
        Row::new("PUT, key was absent", "PUT", key).body(r#"{"value":"one"}"#).answers(201, ADDED),
        Row::new("GET found", "GET", key).finds(r#""one""#),
        Row::new("PUT, key was present", "PUT", key).body(r#"{"value":"two"}"#).answers(200, UPDATED),
        Row::new("GET found after the update", "GET", key).finds(r#""two""#),
        Row::new("the query is no part of the key", "GET", "/keys/{k}?a=b/c").finds(r#""two""#),
        Row::new("a body on GET is allowed", "GET", key).body("{}").finds(r#""two""#),
        Row::new("DELETE found", "DELETE", key).answers(200, DELETED),
        Row::new("GET after DELETE", "GET", key).answers(404, ABSENT_GET),
        Row::new("DELETE after DELETE", "DELETE", key).answers(404, ABSENT_DELETE),
        Row::new("PUT after DELETE adds", "PUT", key).body(r#"{"value":3}"#).answers(201, ADDED),
        Row::new("a body on DELETE is allowed", "DELETE", key).body("{}").answers(200, DELETED),
    ]
}

fn put_bodies() -> Vec<Row> {
    let key = "/keys/{k}body";
    let invalid = |name, body: &[u8]| Row::new(name, "PUT", key).body(body).fails(400, &[]);
    vec![
        Row::new("PUT without a body", "PUT", key).answers(400, NO_VALUE),
        Row::new("PUT of {}", "PUT", key).body("{}").answers(400, NO_VALUE),
        Row::new("PUT of other fields", "PUT", key).body(r#"{"val":1}"#).answers(400, NO_VALUE),
        Row::new("PUT of an array", "PUT", key).body(r#"[{"value":1}]"#).answers(400, NO_VALUE),
        Row::new("PUT of an empty array", "PUT", key).body("[]").answers(400, NO_VALUE),
        Row::new("PUT of a number", "PUT", key).body("5").answers(400, NO_VALUE),
        Row::new("PUT of a string", "PUT", key).body(r#""value""#).answers(400, NO_VALUE),
        Row::new("PUT of null", "PUT", key).body("null").answers(400, NO_VALUE),
        Row::new("PUT of true", "PUT", key).body("true").answers(400, NO_VALUE),
        invalid("a body that ends early", br#"{"value":"#),
        invalid("a body with a tail", br#"{"value":1}x"#),
        invalid("a body with bare names", b"{value:1}"),
        invalid("a body with a bare word as value", br#"{"value":one}"#),
        invalid("a form as body", b"value=1"),
        invalid("a body that is no UTF-8", b"{\"value\":\"\xff\"}"),
        Row::new("a refused PUT wrote nothing", "GET", key).answers(404, ABSENT_GET),
        Row::new("null is a value", "PUT", key).body(r#"{"value":null}"#).answers(201, ADDED),
        Row::new("null is read as a value", "GET", key).finds("null"),
        Row::new("other fields are ignored", "PUT", key)
            .body(r#"{"a":{"value":1},"value":2,"b":[3],"message":"x"}"#)
            .answers(200, UPDATED),
        Row::new("the value is the outer one", "GET", key).finds("2"),
        Row::new("space around everything", "PUT", key)
            .body(" \r\n\t{ \"value\" \t:  \"a b\"  } \n")
            .answers(200, UPDATED),
        Row::new("space around the value is not of it", "GET", key).finds(r#""a b""#),
        Row::new("a name with an escape", "PUT", key).body(r#"{"\u0076alue":4}"#).answers(200, UPDATED),
        Row::new("Content-Type text", "PUT", key)
            .typed("text/plain")
            .body(r#"{"value":5}"#)
            .answers(200, UPDATED),
        Row::new("Content-Type form", "PUT", key)
            .typed("application/x-www-form-urlencoded")
            .body(r#"{"value":6}"#)
            .answers(200, UPDATED),
        Row::new("Content-Type JSON", "PUT", key)
            .typed("application/json; charset=utf-8")
            .body(r#"{"value":7}"#)
            .answers(200, UPDATED),
        Row::new("the last PUT counts", "GET", key).finds("7"),
    ]
}

/// Each value is put and must come back byte for byte.
fn values() -> Vec<Row> {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let long = format!("\"{}\"", "x".repeat(MAX_VALUE_LENGTH - 2));
    let values = [
        "true",
        "\"\"",
        "{}",
        "[]",
        "0.10",
        "-0",
        "-0.0",
        "1E+2",
        "1e400",
        "-1e-400",
        "123456789012345678901234567890.123456789012345678901234567890",
        r#"{"a":1,"a":2,"value":3}"#,
        "[ 1,\n\t2 , {\"b\" : null}\r\n]",
        r#""\u00e9\u0000\ud83d\ude00\/\\\"""#,
        "\"\u{e9}\u{1f600}\u{2028}\"",
        r#""<&'+%2F>""#,
        &deep,
        &long,
    ];
    let mut rows = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let key = format!("/keys/{{k}}value{number}");
        let body = format!("{{\"value\":{value}}}");
        rows.push(Row::new("any JSON is a value", "PUT", &key).body(body).answers(201, ADDED));
        rows.push(Row::new("a value comes back byte for byte", "GET", &key).finds(value));
    }
    rows
}

/// Framing first (see the test of its own), then the length of the key, the size, the JSON, `value`.
fn limits_and_their_order() -> Vec<Row> {
    let fits = format!("/keys/{{k}}{}", "f".repeat(900));
    let long = format!("/keys/{{k}}{}", "g".repeat(1024));
    let encoded = format!("/keys/{{k}}{}", "%67".repeat(1024));
    let small = "/keys/{k}size";
    let limit = MAX_VALUE_LENGTH.to_string();
    let big = "9".repeat(MAX_VALUE_LENGTH + 1);
    let too_large = format!("{{\"value\":{big}}}");
    // A node may allow a body more than a value, for the fields that it ignores; not 2 MiB more.
    let too_large_and_broken = format!("{{\"value\":{}", "9".repeat(2 << 20));
    let put_long = |name, body: &str| {
        Row::new(name, "PUT", &long).body(body).answers(400, LONG_PUT).header("Evenkv-Limit", "1024")
    };
    vec![
        Row::new("a long key", "PUT", &fits).body(r#"{"value":1}"#).answers(201, ADDED),
        put_long("PUT of a key over the limit", r#"{"value":1}"#),
        Row::new("GET of a key over the limit", "GET", &long)
            .answers(400, LONG_GET)
            .header("Evenkv-Limit", "1024"),
        Row::new("DELETE of a key over the limit", "DELETE", &long)
            .answers(400, LONG_DELETE)
            .header("Evenkv-Limit", "1024"),
        Row::new("a key over the limit in another spelling", "GET", &encoded)
            .answers(400, LONG_GET)
            .header("Evenkv-Limit", "1024"),
        put_long("the key is looked at before the size", &too_large),
        put_long("the key is looked at before the JSON", "{"),
        put_long("the key is looked at before the value", "{}"),
        Row::new("a value over the limit", "PUT", small).body(too_large).fails(413, &[&limit]),
        Row::new("the size is looked at before the JSON", "PUT", small)
            .body(too_large_and_broken)
            .fails(413, &["allowed"]),
        Row::new("the JSON is looked at before the value", "PUT", small).body("{\"a\":}").fails(400, &[]),
        Row::new("a refused value was not written", "GET", small).answers(404, ABSENT_GET),
    ]
}

fn causal_contexts() -> Vec<Row> {
    let key = "/keys/{k}causal";
    let long = format!("/keys/{{k}}{}", "c".repeat(1024));
    let mut rows = Vec::new();
    for context in ["null", "\"\"", "\"{}\"", "{}", r#"{"a":{"b":1}}"#] {
        let alone = format!("{{\"causal-context\":{context}}}");
        let beside = format!("{{\"value\":1,\"causal-context\":{context}}}");
        let row = |name, method| Row::new(name, method, key).body(alone.as_str()).causal();
        rows.push(row("GET absent with a causal context", "GET").answers(404, ABSENT_GET));
        rows.push(row("DELETE absent with a causal context", "DELETE").answers(404, ABSENT_DELETE));
        rows.push(row("PUT without value, with a causal context", "PUT").answers(400, NO_VALUE));
        rows.push(row("PUT added with a causal context", "PUT").body(beside.as_str()).answers(201, ADDED));
        rows.push(
            row("PUT updated with a causal context", "PUT").body(beside.as_str()).answers(200, UPDATED),
        );
        rows.push(row("GET found with a causal context", "GET").finds("1"));
        rows.push(Row::new("GET without one after that", "GET", key).finds("1"));
        rows.push(row("DELETE found with a causal context", "DELETE").answers(200, DELETED));
        rows.push(
            Row::new("a key over the limit, with a causal context", "PUT", &long)
                .body(beside.as_str())
                .causal()
                .answers(400, LONG_PUT)
                .header("Evenkv-Limit", "1024"),
        );
    }
    rows
}

/// Each name stands for one request on its key, which is done once.
fn named_writes() -> Vec<Row> {
    let (key, other) = ("/keys/{k}named", "/keys/{k}namedtoo");
    let row = |name, method, key, id| Row::new(name, method, key).named(id);
    let put = |name, key, id| row(name, "PUT", key, id).body(r#"{"value":1}"#);
    let reused = |row: Row| row.fails(422, &["idempotency-key"]).header("Evenkv-Outcome", "not-applied");
    vec![
        put("a named PUT", key, "a").answers(201, ADDED),
        Row::new("a PUT after it", "PUT", key).body(r#"{"value":2}"#).answers(200, UPDATED),
        put("the named PUT again", key, "a").answers(201, ADDED),
        row("the same value in another body", "PUT", key, "a")
            .body(r#"{ "x": 1, "value": 1 }"#)
            .answers(201, ADDED),
        reused(row("its name for another value", "PUT", key, "a").body(r#"{"value":3}"#)),
        reused(row("its name for another method", "DELETE", key, "a")),
        reused(
            row("its name with a causal context", "PUT", key, "a")
                .body(r#"{"value":3,"causal-context":{}}"#)
                .causal(),
        ),
        Row::new("nothing of that was done", "GET", key).finds("2"),
        put("its name for another key", other, "a").answers(201, ADDED),
        row("a name on a GET says nothing", "GET", key, "a").finds("2"),
        row("a named DELETE", "DELETE", key, "b").answers(200, DELETED),
        row("a named DELETE of nothing", "DELETE", key, "c").answers(404, ABSENT_DELETE),
        put("a PUT under another name", key, "d").answers(201, ADDED),
        row("the first named DELETE again", "DELETE", key, "b").answers(200, DELETED),
        row("the named DELETE of nothing again", "DELETE", key, "c").answers(404, ABSENT_DELETE),
        reused(put("the name of a DELETE for a PUT", key, "c")),
        row("what is refused is not remembered", "PUT", key, "e").body("{}").answers(400, NO_VALUE),
        put("so its name is free", key, "e").answers(200, UPDATED),
        Row::new("the last named PUT counts", "GET", key).finds("1"),
    ]
}

/// `/<key>` beside `/keys/<key>` while the view has one node.
fn short_form() -> Vec<Row> {
    let one = |name, method, path| Row::new(name, method, path).only(Where::OneNodeView);
    let several = |name, method| {
        Row::new(name, method, "/{k}short").only(Where::SeveralNodes).without_key().fails(404, &["/keys/"])
    };
    vec![
        one("PUT by the short form", "PUT", "/{k}short").body(r#"{"value":8}"#).answers(201, ADDED),
        one("GET by the short form", "GET", "/{k}short").finds("8"),
        one("the short form is the same key", "GET", "/keys/{k}short").finds("8"),
        one("DELETE by the short form", "DELETE", "/{k}short").answers(200, DELETED),
        one("a short form of several segments", "PUT", "/{k}a/b//")
            .body(r#"{"value":9}"#)
            .answers(201, ADDED),
        one("its segments are of the key", "GET", "/keys/{k}a%2Fb%2f/").finds("9"),
        one("a reserved word, encoded, is a key", "GET", "/%6beys").answers(404, ABSENT_GET),
        one("a reserved word with an encoded slash is a key", "GET", "/view%2Fx").answers(404, ABSENT_GET),
        one("a longer word than a reserved one is a key", "GET", "/shardsx").answers(404, ABSENT_GET),
        several("PUT by the short form on several nodes", "PUT").body(r#"{"value":1}"#),
        several("GET by the short form on several nodes", "GET"),
        several("DELETE by the short form on several nodes", "DELETE"),
    ]
}

fn wrong_requests() -> Vec<Row> {
    let mut rows = Vec::new();
    for method in ["GET", "PUT", "DELETE"] {
        let empty = Row::new("an empty key", method, "/keys/").without_key();
        rows.push(empty.body(r#"{"value":1}"#).fails(400, &["key"]));
        for path in ["/keys/%", "/keys/a%2", "/keys/%zz", "/keys/%4g", "/keys/%%41"] {
            let escape = Row::new("an invalid escape", method, path).without_key();
            rows.push(escape.body(r#"{"value":1}"#).fails(400, &[]));
        }
        for path in ["/key-count/x", "/shards/1/x", "/view/x", "/view-change/x", "/audit/x"] {
            rows.push(Row::new("an unknown path", method, path).without_key().fails(404, &[]));
        }
    }
    for method in ["POST", "PATCH", "TRACE"] {
        let wrong = Row::new("a wrong method for a key", method, "/keys/{k}").without_key();
        let wrong = wrong.fails(405, &["GET", "PUT", "DELETE"]);
        rows.push(wrong.header("Allow", "GET").header("Allow", "PUT").header("Allow", "DELETE"));
    }
    for path in ["/key-count", "/shards", "/shards/1", "/view"] {
        for method in ["PUT", "POST", "DELETE"] {
            let wrong = Row::new("a wrong method for a question", method, path).without_key();
            rows.push(wrong.fails(405, &["GET"]).header("Allow", "GET"));
        }
    }
    let no_shard = Row::new("an unknown shard", "GET", "/shards/4711").without_key();
    rows.push(no_shard.fails(404, &["4711"]));
    rows.push(Row::new("a shard that is no number", "GET", "/shards/x").without_key().fails(404, &[]));
    let change = || Row::new("a wrong view change", "PUT", "/view-change").without_key();
    for (body, said) in [
        ("", "json"),
        ("{", "json"),
        ("[]", "object"),
        ("{}", "view is missing"),
        (r#"{"view":7}"#, "neither a text nor a list"),
        (r#"{"view":""}"#, "not an address"),
        (r#"{"view":"a b"}"#, "not an address"),
        (r#"{"view":["a,b"]}"#, "not an address"),
        (r#"{"view":"a,a"}"#, "named twice"),
        (r#"{"view":["a","A:13800"]}"#, "named twice"),
        (r#"{"view":"a","repl-factor":0}"#, "repl-factor"),
        (r#"{"view":"a","repl-factor":"2"}"#, "repl-factor"),
        (r#"{"view":"127.0.0.1:1","repl-factor":2}"#, "multiple"),
        (r#"{"view":"127.0.0.1:1,127.0.0.1:2","repl-factor":2}"#, "not reached"),
        (r#"{"view":"127.0.0.1:1,127.0.0.1:2"}"#, "not reached"),
        (r#"{"view":"a","dry-run":1}"#, "dry-run"),
        (r#"{"view":"a","accept-loss":[2]}"#, "accept-loss"),
        (r#"{"view":"a","accept-loss":"2"}"#, "accept-loss"),
        (r#"{"view":"127.0.0.1:1","accept-loss":["4711"]}"#, "4711"),
        (r#"{"view":"a","acept-loss":["2"]}"#, "no field acept-loss"),
        (r#"{"view":"a","causal-context":7}"#, "causal-context"),
    ] {
        rows.push(change().body(body).fails(400, &[said]).header("Evenkv-Outcome", "not-applied"));
    }
    rows.push(
        Row::new("a view change that none runs", "DELETE", "/view-change")
            .without_key()
            .fails(404, &["no view change is running"]),
    );
    for (path, allowed) in [("/view-change", "GET, PUT, DELETE"), ("/audit", "GET")] {
        let wrong = Row::new("a wrong method", "POST", path).without_key();
        rows.push(wrong.fails(405, &[]).header("Allow", allowed));
    }
    rows
}
