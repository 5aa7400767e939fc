//! Every answer that a test gets is held against what the program says of its own interface at `/openapi.json`: its status, its headers, its type, and the form of its body.
//!
//! What a node passes on from a main made by hand, or from an older version, is not the program's own, and not looked at.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value;
use serde_json::value::RawValue;

use super::http::{Http, Response};
use super::node::Node;
use super::ports;

/// The document, from a node that is started for this.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let address = ports::free_address();
    let node = Node::start_reached_at(&address, &[("LISTEN", &address)]);
    node.wait_live();
    Http::unchecked(&address).get("/openapi.json").json()
});

/// The addresses of nodes whose answers may be others'.
static OTHERS: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

/// What is not described, since every answer may have it.
const OF_ANY_ANSWER: [&str; 8] = [
    "date",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "server",
];
/// What any request may be answered whatever its method is. In a cluster there is no short form: 404.
const WHATEVER_THE_METHOD: [&str; 9] = ["400", "404", "405", "408", "413", "414", "500", "503", "508"];
/// A longer body is not looked into.
const LONGEST_BODY: usize = 1 << 20;

/// From now on answers from here are not looked at.
pub(crate) fn leave_out(address: &str) {
    OTHERS.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned());
}

/// Whether answers from here are not looked at.
pub(crate) fn is_left_out(address: &str) -> bool {
    OTHERS.lock().unwrap_or_else(PoisonError::into_inner).contains(address)
}

/// Panics where an answer is none that the document has.
pub(crate) fn check(address: &str, method: &str, target: &str, answer: &Response) {
    if is_left_out(address) {
        return;
    }
    if let Err(wrong) = held_against(&DOCUMENT, method, target, answer) {
        let body: String = answer.text().chars().take(400).collect();
        panic!(
            "{method} {target:.200} at {address}: {wrong}, which /openapi.json does not say: {} {:?} {body}",
            answer.status, answer.headers
        );
    }
}

fn held_against(document: &Value, method: &str, target: &str, answer: &Response) -> Result<(), String> {
    let path = target.split('?').next().unwrap_or_default();
    let Some(item) = item(document, path) else { return Ok(()) };
    let status = answer.status.to_string();
    let Some(operation) = item.get(method.to_ascii_lowercase()) else {
        let is_usual = WHATEVER_THE_METHOD.contains(&status.as_str());
        return is_usual.then_some(()).ok_or(format!("status {status} for a method that is not there"));
    };
    let response = operation["responses"].get(&status).ok_or(format!("status {status}"))?;
    let response = resolved(document, response);
    headers(document, response, answer)?;
    if method == "HEAD" {
        return Ok(());
    }
    let Some(content) = response.get("content") else {
        return answer.body.is_empty().then_some(()).ok_or("a body".to_owned());
    };
    let kind = answer.header("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    let described = content.get(kind).or(content.get("*/*")).ok_or(format!("type {kind:?}"))?;
    let is_json = kind == "application/json" || kind == "application/problem+json";
    if !is_json || content.get(kind).is_none() || answer.body.len() > LONGEST_BODY {
        return Ok(());
    }
    let body = match serde_json::from_slice(&answer.body) {
        Ok(body) => body,
        // A value may be deeper, or a number larger, than what is read here.
        Err(_) if serde_json::from_slice::<&RawValue>(&answer.body).is_ok() => return Ok(()),
        Err(error) => return Err(format!("a body that is no JSON: {error}")),
    };
    fits(document, &described["schema"], &body).map_err(|wrong| format!("body with {wrong}"))
}

/// What is said of a path: that without a variable part first, then the longest.
fn item<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    let paths = document["paths"].as_object().expect("an object of paths");
    if let Some(item) = paths.get(path) {
        return Some(item);
    }
    let fitting = paths.iter().filter(|(template, item)| {
        let Some((before, name)) = template.split_once('{') else { return false };
        let Some(rest) = path.strip_prefix(before) else { return false };
        let first = rest.split('/').next().unwrap_or_default();
        match name {
            "id}" => !rest.contains('/'),
            _ => !(is_reserved(document, item, first) || is_short(item) && rest.is_empty()),
        }
    });
    fitting.max_by_key(|(template, _)| template.len()).map(|(_, item)| item)
}

fn is_short(item: &Value) -> bool {
    item["parameters"][0]["$ref"].as_str().is_some_and(|name| name.ends_with("/ShortKey"))
}

fn is_reserved(document: &Value, item: &Value, first: &str) -> bool {
    let names = &document["components"]["parameters"]["ShortKey"]["schema"]["x-reserved"];
    is_short(item) && names.as_array().expect("a list of names").iter().any(|name| name == first)
}

fn headers(document: &Value, response: &Value, answer: &Response) -> Result<(), String> {
    let described = response.get("headers").and_then(Value::as_object);
    let described: Vec<(&String, &Value)> = described.into_iter().flatten().collect();
    for (name, value) in &answer.headers {
        if OF_ANY_ANSWER.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            continue;
        }
        let Some((_, header)) = described.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) else {
            return Err(format!("header {name}"));
        };
        let schema = &resolved(document, header)["schema"];
        fits(document, schema, &Value::from(value.as_str())).map_err(|wrong| format!("{name}: {wrong}"))?;
    }
    for (name, header) in described {
        if resolved(document, header)["required"] == true && answer.header(name).is_none() {
            return Err(format!("no header {name}"));
        }
    }
    Ok(())
}

fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(&reference[1..]).expect("a reference leads somewhere"),
        None => value,
    }
}

/// Whether a value has the form of a schema, as far as ours go.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = resolved(document, schema).as_object().expect("a schema is an object");
    for (keyword, said) in schema {
        let is_so = match keyword.as_str() {
            "type" => said.as_str().map_or_else(
                || said.as_array().expect("types").iter().any(|kind| is_of(kind, value)),
                |_| is_of(said, value),
            ),
            "const" => said == value,
            "enum" => said.as_array().expect("values").contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= said.as_f64().expect("a number")),
            "required" => {
                let missing = said.as_array().expect("names").iter().find(|name| {
                    value
                        .as_object()
                        .is_some_and(|fields| !fields.contains_key(name.as_str().expect("a name")))
                });
                if let Some(missing) = missing {
                    return Err(format!("no {missing}"));
                }
                true
            }
            "properties" => {
                for (name, schema) in said.as_object().expect("an object") {
                    if let Some(field) = value.get(name) {
                        fits(document, schema, field).map_err(|wrong| format!("{name}: {wrong}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = &schema["properties"];
                let more =
                    value.as_object().and_then(|all| all.keys().find(|name| known.get(name).is_none()));
                if let Some(name) = more.filter(|_| *said == false) {
                    return Err(format!("a field {name}"));
                }
                true
            }
            "items" => {
                for one in value.as_array().into_iter().flatten() {
                    fits(document, said, one)?;
                }
                true
            }
            "anyOf" => {
                let tried: Vec<_> =
                    said.as_array().expect("schemas").iter().map(|one| fits(document, one, value)).collect();
                if tried.iter().all(Result::is_err) {
                    let wrong: Vec<String> = tried.into_iter().filter_map(Result::err).collect();
                    return Err(wrong.join(", or "));
                }
                true
            }
            "description" => true,
            other => panic!("the keyword {other} is not known here: teach it"),
        };
        if !is_so {
            return Err(format!("{value}, and not {keyword} {said}"));
        }
    }
    Ok(())
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a name of a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("there is no type {other}"),
    }
}
