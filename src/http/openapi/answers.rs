//! What a request may be answered, as the document has it. Errors are described by answering them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tiny_http::Method;

use super::schemas::{constant, named, text};
use crate::error::Error;
use crate::http::answer::Answer;
use crate::http::answer_body::Body;
use crate::http::error_form::ErrorForm;

/// A success, or what is none and no error either.
#[derive(Clone)]
pub(super) struct Success {
    pub(super) status: u16,
    description: &'static str,
    headers: Vec<Header>,
    /// Types of bodies, each with its form.
    content: Vec<(&'static str, Value)>,
}

/// A header of answers of one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    name: &'static str,
    /// Whether they all have it.
    is_always: bool,
}

/// A header that all answers of a status have.
pub(super) const fn always(name: &'static str) -> Header {
    Header { name, is_always: true }
}

/// A header that some answers of a status have.
pub(super) const fn at_times(name: &'static str) -> Header {
    Header { name, is_always: false }
}

impl Success {
    /// One without a body.
    pub(super) fn empty(status: u16, description: &'static str) -> Self {
        Self { status, description, headers: Vec::new(), content: Vec::new() }
    }

    /// One with a body of JSON.
    pub(super) fn json(status: u16, description: &'static str, schema: Value) -> Self {
        Self::of(status, description, &[("application/json", schema)])
    }

    /// One with a body of one of these types.
    pub(super) fn of(status: u16, description: &'static str, content: &[(&'static str, Value)]) -> Self {
        Self { content: content.to_vec(), ..Self::empty(status, description) }
    }

    /// Adds headers.
    pub(super) fn with(mut self, headers: &[Header]) -> Self {
        self.headers.extend(headers);
        self
    }

    fn response(&self) -> Response {
        let content = self.content.iter().map(|(kind, schema)| ((*kind).to_owned(), schema.clone()));
        let headers = self.headers.iter().map(|header| (header.name.to_owned(), header.is_always));
        Response {
            words: vec![self.description.to_owned()],
            headers: headers.collect(),
            content: content.collect(),
        }
    }
}

/// The errors that a request may be answered with, and what their answers have beyond.
pub(super) struct Errors<'a> {
    pub(super) form: ErrorForm<'a>,
    pub(super) kinds: &'a [Error],
    /// Fields that any of them may have.
    pub(super) fields: &'a [(&'static str, Value)],
    /// Headers that those of a status may have.
    pub(super) headers: &'a [(u16, &'static str)],
}

/// All answers of one status.
struct Response {
    words: Vec<String>,
    headers: BTreeMap<String, bool>,
    content: BTreeMap<String, Value>,
}

impl Response {
    /// Answers of the same status that look otherwise.
    fn or(mut self, other: Self) -> Self {
        self.words.extend(other.words);
        let in_both = |name: &String| self.headers.get(name).zip(other.headers.get(name));
        let names = self.headers.keys().chain(other.headers.keys());
        self.headers = names
            .map(|name| (name.clone(), in_both(name).is_some_and(|(one, other)| *one && *other)))
            .collect();
        for (kind, schema) in other.content {
            let both = match self.content.remove(&kind) {
                Some(own) => json!({ "anyOf": [own, schema] }),
                None => schema,
            };
            self.content.insert(kind, both);
        }
        self
    }

    /// As the document has it; without the body where there is none, as for HEAD.
    fn described(&self, has_body: bool) -> Value {
        let mut described = json!({ "description": self.words.join("; ") });
        let header = |(name, is_always): (&String, &bool)| {
            let shared = format!("#/components/headers/{}{name}", if *is_always { "" } else { "Maybe-" });
            (name.clone(), json!({ "$ref": shared }))
        };
        if !self.headers.is_empty() {
            described["headers"] = self.headers.iter().map(header).collect::<Map<_, _>>().into();
        }
        if has_body && !self.content.is_empty() {
            let content =
                self.content.iter().map(|(kind, schema)| (kind.clone(), json!({ "schema": schema })));
            described["content"] = content.collect::<Map<_, _>>().into();
        }
        described
    }
}

/// All that a request of a method may be answered, by status.
pub(super) fn responses(method: &Method, successes: &[Success], errors: &Errors) -> Value {
    let mut by_status: BTreeMap<u16, Response> = BTreeMap::new();
    // HEAD is answered as GET is.
    let answered = if *method == Method::Head { &Method::Get } else { method };
    let failures = failures(answered, errors);
    for (status, response) in successes.iter().map(|one| (one.status, one.response())).chain(failures) {
        let all = match by_status.remove(&status) {
            Some(before) => before.or(response),
            None => response,
        };
        by_status.insert(status, all);
    }
    let described = |(status, response): (u16, Response)| {
        (status.to_string(), response.described(*method != Method::Head))
    };
    by_status.into_iter().map(described).collect::<Map<_, _>>().into()
}

fn failures(method: &Method, errors: &Errors) -> Vec<(u16, Response)> {
    let mut by_status: BTreeMap<u16, Vec<(&Error, Answer)>> = BTreeMap::new();
    for error in errors.kinds {
        let answer = Answer::error(error, method, errors.form);
        by_status.entry(answer.status).or_default().push((error, answer));
    }
    by_status.into_iter().map(|(status, answers)| (status, failure(status, &answers, errors))).collect()
}

/// What errors of one status are answered, by what each of them is.
fn failure(status: u16, answers: &[(&Error, Answer)], errors: &Errors) -> Response {
    let mut headers = BTreeMap::new();
    let has = |answer: &Answer, name: &str| answer.headers.iter().any(|(found, _)| found == name);
    for (name, _) in answers.iter().flat_map(|(_, answer)| &answer.headers) {
        headers.insert(name.to_string(), answers.iter().all(|(_, answer)| has(answer, name)));
    }
    for (_, name) in errors.headers.iter().filter(|(found, _)| *found == status) {
        headers.entry((*name).to_owned()).or_insert(false);
    }
    let mut words: Vec<String> = Vec::new();
    for (error, _) in answers {
        let (.., title) = crate::http::error_form::kind_of(error);
        if !words.iter().any(|word| word == title) {
            words.push(title.to_owned());
        }
    }
    let kind = answers[0].1.content_type.clone().into_owned();
    Response { words, headers, content: BTreeMap::from([(kind, body(answers, errors.fields))]) }
}

/// The form of the bodies of errors of one status.
fn body(answers: &[(&Error, Answer)], more: &[(&'static str, Value)]) -> Value {
    let bodies: Vec<(&Error, Map<String, Value>)> = answers
        .iter()
        .map(|(error, answer)| {
            let Body::Bytes(bytes) = &answer.body else { unreachable!("errors are told in a few bytes") };
            (*error, serde_json::from_slice(bytes).expect("our own errors are JSON objects"))
        })
        .collect();
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for name in bodies.iter().flat_map(|(_, body)| body.keys()) {
        if properties.contains_key(name) {
            continue;
        }
        let said: Vec<(&Error, &Value)> =
            bodies.iter().filter_map(|(error, body)| Some((*error, body.get(name)?))).collect();
        if said.len() == bodies.len() {
            required.push(name.clone());
        }
        properties.insert(name.clone(), field(name, &said));
    }
    for (name, schema) in more {
        properties.insert((*name).to_owned(), schema.clone());
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// The form of a field of an error, by what each error says there.
fn field(name: &str, said: &[(&Error, &Value)]) -> Value {
    let is_free = match name {
        "error" => said.iter().any(|(error, _)| !has_fixed_words(error)),
        "detail" | "change-id" => true,
        _ => false,
    };
    if name == "outcome" {
        return json!({ "enum": ["applied", "not-applied", "unknown"] });
    }
    if is_free {
        return text();
    }
    let mut values: Vec<&Value> = Vec::new();
    for (_, value) in said {
        if !values.contains(value) {
            values.push(value);
        }
    }
    match values.as_slice() {
        [value] => constant((*value).clone()),
        values => json!({ "enum": values }),
    }
}

/// Whether clients are told of it in the same words always.
fn has_fixed_words(error: &Error) -> bool {
    match error {
        Error::ValueMissing
        | Error::KeyTooLong { .. }
        | Error::OtherRequest
        | Error::Unmet
        | Error::Absent
        | Error::Unavailable { .. }
        | Error::MainDown { .. }
        | Error::Loop
        | Error::Internal => true,
        Error::Framing(_)
        | Error::TargetTooLong { .. }
        | Error::BadRequest(_)
        | Error::TooLarge(_)
        | Error::Unsatisfiable { .. }
        | Error::NotFound(_)
        | Error::WrongProtocol(_)
        | Error::MethodNotAllowed(_)
        | Error::TooSlow(_)
        | Error::Overloaded(_)
        | Error::NotServing(_)
        | Error::ChangeRuns(_)
        | Error::Unclear(_)
        | Error::Conflict(_)
        | Error::NoRoom(_)
        | Error::Unauthorized { .. }
        | Error::Forbidden(_) => false,
    }
}

/// The headers that these paths refer to: each as one that all answers of a status have, or as one that some have.
pub(super) fn headers(paths: &str) -> Value {
    let mut all = Map::new();
    for (name, description, schema) in header_rows() {
        let header = json!({ "description": description, "schema": schema });
        all.insert(format!("Maybe-{name}"), header.clone());
        let mut needed = header;
        needed["required"] = true.into();
        all.insert(name.to_owned(), needed);
    }
    all.retain(|name, _| paths.contains(&format!("#/components/headers/{name}\"")));
    all.into()
}

fn header_rows() -> [(&'static str, &'static str, Value); 21] {
    let outcome = json!({ "enum": ["applied", "not-applied", "unknown"] });
    [
        ("ETag", "What the key holds.", named("ETag")),
        ("Evenkv-TTL", "The seconds that the pair has left; absent where it stays.", text()),
        ("Evenkv-Staleness-Ms", "How old what was read may be, in milliseconds.", text()),
        ("Evenkv-Encoding", "`base64`: the value is no JSON, and told so.", json!({ "enum": ["base64"] })),
        ("Evenkv-Outcome", "Whether a write that failed was done.", outcome),
        ("Evenkv-Reason", "Who does not answer, and why.", text()),
        ("Evenkv-Watch", "From where to watch what is done after the listing began.", text()),
        ("Evenkv-Limit", "The most bytes that a key may have.", text()),
        ("Retry-After", "The seconds after which to try again.", text()),
        ("Allow", "The methods that the path takes.", text()),
        ("Location", "Where to look what came of it.", text()),
        ("Accept-Ranges", "Parts may be asked for.", json!({ "enum": ["bytes"] })),
        ("Content-Range", "Which part it is, or how long the value is.", text()),
        ("Cache-Control", "How long the answer may be kept.", text()),
        ("Content-Security-Policy", "What a browser that shows it lets it do.", text()),
        ("Cross-Origin-Resource-Policy", "Whose pages may load it.", text()),
        ("Referrer-Policy", "What a browser says of where it was.", text()),
        ("X-Content-Type-Options", "It is of its type, and of no other.", text()),
        ("Connection", "What becomes of the connection.", text()),
        ("WWW-Authenticate", "How to show a token.", text()),
        ("Upgrade", "The protocol that is needed.", text()),
    ]
}
