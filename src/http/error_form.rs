//! What an error is for clients: its status and its words, in the form of either interface.

use tiny_http::Method;

use super::payload::json_text;
use super::routes::Interface;
use crate::error::Error;

/// Of a method that nobody knows an answer shows so many bytes.
const SHOWN_METHOD: usize = 64;

/// The form in which a client is told of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorForm<'a> {
    /// `{"error":..,"message":..}`, and what the body has beyond these: nothing, or JSON fields that begin with a comma.
    Classic(&'a str),
    /// Problem details (RFC 9457).
    Problem,
}

impl<'a> ErrorForm<'a> {
    /// That of an interface; `more` is what the body has beyond in the classic one.
    pub const fn of(interface: Interface, more: &'a str) -> Self {
        match interface {
            Interface::Classic => Self::Classic(more),
            Interface::V1 => Self::Problem,
        }
    }
}

impl<'a> From<&'a str> for ErrorForm<'a> {
    fn from(more: &'a str) -> Self {
        Self::Classic(more)
    }
}

impl<'a> From<&'a String> for ErrorForm<'a> {
    fn from(more: &'a String) -> Self {
        Self::Classic(more)
    }
}

impl From<Interface> for ErrorForm<'_> {
    fn from(interface: Interface) -> Self {
        Self::of(interface, "")
    }
}

/// What an error is for clients: the status, and the name and title of its kind. This is the one place where an error becomes a status.
pub const fn kind_of(error: &Error) -> (u16, &'static str, &'static str) {
    match error {
        Error::Framing(_) => (400, "framing", "The request can be read in two ways"),
        Error::BadRequest(_) => (400, "bad-request", "The request is wrong"),
        Error::KeyTooLong { .. } => (400, "key-too-long", "The key is too long"),
        Error::ValueMissing => (400, "value-missing", "The value is missing"),
        Error::Unauthorized { .. } => (401, "unauthorized", "A token is needed"),
        Error::Forbidden(_) => (403, "forbidden", "The sender may not ask for this"),
        Error::NotFound(_) => (404, "not-found", "There is nothing under this path"),
        Error::Absent => (404, "absent", "The key does not exist"),
        Error::MethodNotAllowed(_) => (405, "method-not-allowed", "The path takes other methods"),
        Error::TooSlow(_) => (408, "too-slow", "The body came too slowly"),
        Error::ChangeRuns(_) => (409, "change-runs", "A view change is running"),
        Error::Conflict(_) => (409, "conflict", "It does not fit how things stand"),
        Error::Unmet => (412, "precondition-failed", "The condition does not hold"),
        Error::TooLarge(_) => (413, "too-large", "The value is too large"),
        Error::TargetTooLong { .. } => (414, "target-too-long", "The target is too long"),
        Error::Unsatisfiable { .. } => (416, "range-not-satisfiable", "The range begins beyond the value"),
        Error::OtherRequest => (422, "other-request", "The Idempotency-Key stands for another request"),
        Error::WrongProtocol(_) => (426, "wrong-protocol", "Another protocol is needed"),
        Error::Internal => (500, "internal", "The node has a fault"),
        Error::Overloaded(_) => (503, "overloaded", "It cannot be done at the moment"),
        Error::Unavailable { .. } => (503, "unavailable", "Nobody can serve the key in time"),
        Error::MainDown { .. } => (503, "main-down", "The main of this follower is down"),
        Error::Unclear(_) => (503, "unclear", "It is not known whether it was done"),
        Error::NotServing(_) => (503, "not-serving", "The node does not serve"),
        Error::NoRoom(_) => (507, "no-room", "There is no room for it"),
        Error::Loop => (508, "loop", "Followers pass the request around in a circle"),
    }
}

/// The kinds of problems have names that are the same everywhere, and lead nowhere (RFC 4151).
const PROBLEMS: &str = "tag:evenkv,2026:";

/// Whether requests of this method change something, so that an error has to say whether they did.
pub const fn is_write(method: &Method) -> bool {
    matches!(method, Method::Put | Method::Delete | Method::Patch)
}

impl ErrorForm<'_> {
    /// Whether an error in answer to this method says whether something was changed: in the second interface POST changes something, too, where it is allowed.
    pub fn says_outcome(self, method: &Method, error: &Error) -> bool {
        let is_allowed = !matches!(error, Error::MethodNotAllowed(_));
        is_write(method) || (self == Self::Problem && *method == Method::Post && is_allowed)
    }

    /// The type and the body of an error in this form.
    pub fn body(self, error: &Error, method: &Method) -> (&'static str, String) {
        match self {
            Self::Classic(more) => ("application/json", classic_body(error, method, more)),
            Self::Problem => ("application/problem+json", problem_body(error, method)),
        }
    }
}

/// What was wrong with this very request, in words.
pub fn detail_of(error: &Error) -> String {
    match error {
        Error::Unavailable { reason, .. } | Error::MainDown { reason, .. } => reason.clone(),
        error => error.to_string(),
    }
}

/// The body of an error in the classic form.
fn classic_body(error: &Error, method: &Method, more: &str) -> String {
    let method_text = method.as_str().get(..SHOWN_METHOD).unwrap_or(method.as_str());
    let message = json_text(&format!("Error in {method_text}"));
    let absent = if matches!(error, Error::Absent) { "\"doesExist\":false," } else { "" };
    let id = match error {
        Error::ChangeRuns(id) => format!(",\"change-id\":\"{id}\""),
        _ => String::new(),
    };
    format!("{{{absent}\"error\":{},\"message\":{message}{id}{more}}}", json_text(&error.to_string()))
}

/// The same as problem details.
fn problem_body(error: &Error, method: &Method) -> String {
    let (status, name, title) = kind_of(error);
    let detail = detail_of(error);
    let outcome = if ErrorForm::Problem.says_outcome(method, error) {
        format!(",\"outcome\":\"{}\"", error.applied().as_str())
    } else {
        String::new()
    };
    let (kind, detail) = (json_text(&format!("{PROBLEMS}{name}")), json_text(&detail));
    format!("{{\"type\":{kind},\"title\":\"{title}\",\"status\":{status},\"detail\":{detail}{outcome}}}")
}
