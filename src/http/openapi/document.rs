//! The document, put together once, and how it is served.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use siphasher::sip::SipHasher24;
use tiny_http::{Header, Method};

use super::answers::{self, Errors, Success, always};
use super::operations::{self, Described, Operation, Public};
use super::parameters::Parameter;
use super::schemas;
use crate::error::Error;
use crate::http::answer::Answer;
use crate::http::error_form::ErrorForm;
use crate::http::page;
use crate::http::routes::{self, Route};
use crate::model::condition::ETAG;

/// As it is sent, and what names it.
struct Served {
    body: Vec<u8>,
    tag: String,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let body = document().to_string().into_bytes();
    let mut hasher = SipHasher24::new();
    hasher.write(&body);
    Served { tag: format!("\"{:016x}\"", hasher.finish()), body }
});

/// Answers a GET of the document.
pub fn answer(headers: &[Header]) -> Answer {
    let Served { body, tag } = &*SERVED;
    let is_known = page::is_known(headers, tag);
    let answer =
        if is_known { Answer::empty(304) } else { Answer::json(200, Cow::Borrowed(body.as_slice())) };
    // Another version of the program has another one, so whoever keeps it asks whether it is still so.
    answer.with(ETAG, tag.as_str()).with("Cache-Control", "no-cache")
}

const ABOUT: &str = "A sharded, replicated key-value store over plain HTTP, in two interfaces to the same pairs: `/kv-store` \
    (and `/kvs`, the same) has JSON in and out with fixed sentences in it; under `/v1` a value is the body as it is, and errors are problem details (RFC 9457). \
    A method that a path does not take is answered 405 with `Allow`, a path that is not here 404. \
    While the view has more than one node, `/kv-store/{key}` is 404. \
    Headers of the connection (`Date`, `Content-Length`, `Transfer-Encoding`, `Connection`, `Keep-Alive`, `Upgrade`, `Server`) are not listed. \
    A header or a target that is not ASCII is not answered: the connection is closed. What is no HTTP/1.1 or 1.0 may be answered 400 or 505 without a body. \
    `/relay` and what is under `/node/`, `/node/recover` apart, is for the nodes among themselves, and may change with every version. \
    While nodes of an older version are in the cluster, answers of those have no ETag.";

/// All of it.
fn document() -> Value {
    let mut paths = paths();
    let responses = share(&mut paths);
    let headers = answers::headers(&format!("{paths}{responses}"));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "evenkv",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/" }],
        // Where a node has tokens. What needs which role is in docs/API.md.
        "security": [{}, { "token": [] }],
        "tags": [
            { "name": "keys", "description": "Keys and values, by JSON objects" },
            { "name": "cluster", "description": "The cluster, and changing it" },
            { "name": "v1", "description": "Values as bodies, listing, batches, watching" },
            { "name": "node", "description": "The node itself: never passed on" },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "parameters": parameters(),
            "headers": headers,
            "responses": responses,
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "Needed where a node has AUTH_TOKENS_FILE" },
            },
        },
    })
}

fn parameters() -> Value {
    let mut reserved: Vec<&str> = routes::reserved().collect();
    reserved.dedup();
    let described = Parameter::ALL.map(|parameter| (parameter.id(), parameter.described(&reserved)));
    described.into_iter().collect::<Map<_, _>>().into()
}

fn paths() -> Value {
    let mut paths = Map::new();
    for route in Route::all() {
        let Described::Public(public) = operations::of(route) else { continue };
        let varies = match route {
            Route::Key | Route::V1Key => vec![Parameter::Key],
            Route::Shard => vec![Parameter::ShardId],
            Route::PageFile => vec![Parameter::PageFile],
            _ => Vec::new(),
        };
        let path = route.template();
        let alias = routes::alias(&path);
        let name = Route::name(Some(route));
        paths.insert(path, item(route, &public, &varies, name));
        if let Some(alias) = alias {
            paths.insert(alias, item(route, &public, &varies, &format!("kvs-{name}")));
        }
    }
    let Described::Public(public) = operations::of(Route::Key) else { unreachable!("keys are for anybody") };
    let short = Public { errors: [public.errors, vec![Error::NotFound(String::new())]].concat(), ..public };
    for (path, name) in [(routes::SHORT, "short-keys"), (routes::SHORT_ALIAS, "kvs-short-keys")] {
        paths.insert(path.to_owned(), item(Route::Key, &short, &[Parameter::ShortKey], name));
    }
    paths.into()
}

/// Takes answers out of the paths that several of them have, and puts references in their place.
fn share(paths: &mut Value) -> Value {
    let mut times: HashMap<String, usize> = HashMap::new();
    each_answer(paths, |_, _, answer| *times.entry(answer.to_string()).or_default() += 1);
    let (mut shared, mut names) = (Map::new(), HashMap::<String, String>::new());
    each_answer(paths, |method, status, answer| {
        let text = answer.to_string();
        if times[&text] < 2 {
            return;
        }
        let name = names.entry(text).or_insert_with(|| {
            let number = shared.len() + 1;
            let name = format!("{method}-{status}-{number}");
            shared.insert(name.clone(), answer.clone());
            name
        });
        *answer = json!({ "$ref": format!("#/components/responses/{name}") });
    });
    shared.into()
}

/// Goes through all answers, by method and status.
fn each_answer(paths: &mut Value, mut see: impl FnMut(&str, &str, &mut Value)) {
    for item in paths.as_object_mut().into_iter().flat_map(Map::values_mut) {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            // Parameters stand beside the methods.
            let Some(answers) = operation.get_mut("responses").and_then(Value::as_object_mut) else {
                continue;
            };
            for (status, answer) in answers {
                see(method, status, answer);
            }
        }
    }
}

/// What is said of one path: each method that its row in the table takes.
fn item(route: Route, public: &Public, in_path: &[Parameter], name: &str) -> Value {
    let mut item = Map::new();
    if !in_path.is_empty() {
        item.insert("parameters".to_owned(), references(in_path));
    }
    for method in route.methods() {
        let Some(operation) = operation(public, method) else { continue };
        let method_name = method.to_ascii_lowercase();
        let mut described = described(public, &operation);
        described["operationId"] = format!("{name}-{method_name}").into();
        item.insert(method_name, described);
    }
    item.into()
}

/// What is said of a method: HEAD is as GET, of which no parts are asked for, and OPTIONS is the same everywhere.
fn operation(public: &Public, method: &str) -> Option<Operation> {
    let named = |name: &str| public.operations.iter().find(|one| one.method.as_str() == name).cloned();
    match method {
        "OPTIONS" => {
            let allowed = Success::empty(204, "The methods that the path takes").with(&[always("Allow")]);
            Some(Operation::new(Method::Options, "What may be done here?", vec![allowed]))
        }
        "HEAD" => {
            let mut get = named("GET")?;
            get.method = Method::Head;
            get.body = None;
            get.parameters.retain(|one| !matches!(one, Parameter::Range | Parameter::IfRange));
            get.successes.retain(|one| one.status != 206);
            get.errors.retain(|error| !matches!(error, Error::Unsatisfiable { .. }));
            Some(get)
        }
        name => named(name),
    }
}

fn described(public: &Public, operation: &Operation) -> Value {
    let all = [public.errors.as_slice(), &operation.errors].concat();
    let errors = Errors {
        form: ErrorForm::of(public.interface, ""),
        kinds: &all,
        fields: &public.fields,
        headers: &public.headers,
    };
    let mut described = json!({ "tags": [public.tag], "summary": operation.summary });
    if !operation.parameters.is_empty() {
        described["parameters"] = references(&operation.parameters);
    }
    if let Some((content, is_needed)) = &operation.body {
        let content = content.iter().map(|(kind, schema)| ((*kind).to_owned(), json!({ "schema": schema })));
        described["requestBody"] =
            json!({ "required": is_needed, "content": content.collect::<Map<_, _>>() });
    }
    // The listener itself answers so, whatever the path is.
    let unexpected = Success::empty(417, "Expect says something else than 100-continue");
    let successes = [operation.successes.as_slice(), &[unexpected]].concat();
    described["responses"] = answers::responses(&operation.method, &successes, &errors);
    described
}

fn references(parameters: &[Parameter]) -> Value {
    let reference = |one: &Parameter| json!({ "$ref": format!("#/components/parameters/{}", one.id()) });
    parameters.iter().map(reference).collect()
}

/// All statuses that are described.
#[cfg(test)]
pub fn statuses() -> std::collections::BTreeSet<u16> {
    let mut statuses = std::collections::BTreeSet::new();
    each_answer(&mut paths(), |_, status, _| {
        statuses.insert(status.parse().expect("a status"));
    });
    statuses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_allows_is_described_and_nothing_else() {
        for route in Route::all() {
            let Described::Public(public) = operations::of(route) else { continue };
            let path = route.template();
            for method in route.methods() {
                assert!(operation(&public, method).is_some(), "{method} {path} is allowed and not described");
            }
            for described in &public.operations {
                let method = described.method.as_str();
                assert!(route.methods().any(|allowed| allowed == method), "{method} {path} is not allowed");
            }
        }
    }

    #[test]
    fn what_is_for_nodes_alone_is_under_their_path() {
        for route in Route::all() {
            let path = route.template();
            let is_of_nodes =
                (path.starts_with("/node/") && route != Route::NodeRecover) || route == Route::Relay;
            let is_told = matches!(operations::of(route), Described::Public(_));
            assert_eq!(is_told, !is_of_nodes, "{path}");
        }
    }

    #[test]
    fn every_parameter_and_schema_is_there_and_used() {
        let document = document();
        let text = document.to_string();
        for kind in ["parameters", "schemas", "headers", "responses"] {
            let named = document["components"][kind].as_object().unwrap();
            let used: Vec<&str> = text.split(&format!("#/components/{kind}/")).skip(1).collect();
            let used: Vec<&str> = used.iter().map(|rest| rest.split('"').next().unwrap()).collect();
            for name in &used {
                assert!(named.contains_key(*name), "{kind}/{name} is used and not there");
            }
            for name in named.keys() {
                assert!(used.contains(&name.as_str()), "{kind}/{name} is never used");
            }
        }
    }

    #[test]
    fn errors_are_described_as_they_are_answered() {
        let document = document();
        let answer = |path: &str, method: &str, status: &str| {
            let answer = &document["paths"][path][method]["responses"][status];
            let shared = answer["$ref"].as_str().map(|reference| document.pointer(&reference[1..]).unwrap());
            shared.unwrap_or(answer).clone()
        };
        let of_put = |status| answer("/kv-store/keys/{key}", "put", status);
        let schema = &of_put("412")["content"]["application/json"]["schema"];
        assert_eq!(schema["properties"]["error"], json!({ "const": "Precondition failed" }));
        assert_eq!(schema["properties"]["message"], json!({ "const": "Error in PUT" }));
        let headers = of_put("503")["headers"].clone();
        assert_eq!(headers["Retry-After"]["$ref"], "#/components/headers/Retry-After");
        assert_eq!(headers["Evenkv-Reason"]["$ref"], "#/components/headers/Maybe-Evenkv-Reason");
        let schema =
            &answer("/v1/kv/{key}", "delete", "404")["content"]["application/problem+json"]["schema"];
        assert_eq!(schema["properties"]["type"], json!({ "const": "tag:evenkv,2026:absent" }));
        assert_eq!(schema["properties"]["status"], json!({ "const": 404 }));
        assert!(answer("/v1/kv/{key}", "head", "404").get("content").is_none());
    }
}
