//! An event as it comes, and as a line.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::Form;
use super::failure::Failure;
use crate::wire::RESYNC;

/// A server-sent event. A comment has no name, and mostly a cursor.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) id: Option<String>,
    data: String,
}

/// What is told of a change.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Change<'a> {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
    #[serde(rename = "type")]
    content_type: Option<String>,
    bytes: Option<u64>,
}

impl Event {
    /// Reads the lines of one (HTML, section 9.2.6); of other fields than ours nothing is made.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut event = Event::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event.name),
                "id" => event.id = Some(value.to_owned()),
                "data" => event.data.push_str(value),
                _ => {}
            }
        }
        event
    }

    /// The line to print; nothing for a comment.
    pub(super) fn line(&self, form: Form) -> Result<Option<Vec<u8>>, Failure> {
        if self.name.is_empty() {
            return Ok(None);
        }
        let wrong = || Failure::Local(format!("an event cannot be read: {} {}", self.name, self.data));
        let line = match form {
            Form::Json => self.object().ok_or_else(wrong)?.into_bytes(),
            Form::Words if self.name == RESYNC => RESYNC.as_bytes().to_vec(),
            Form::Words => self.words().ok_or_else(wrong)?,
        };
        Ok(Some(line))
    }

    /// What the node tells, with the name and the cursor before it.
    fn object(&self) -> Option<String> {
        let data: &RawValue = serde_json::from_str(&self.data).ok()?;
        let fields = data.get().strip_prefix('{')?.trim_start();
        let text = |text: &str| serde_json::to_string(text).ok();
        let (name, id) = (text(&self.name)?, text(self.id.as_deref().unwrap_or_default())?);
        let comma = if fields == "}" { "" } else { "," };
        Some(format!("{{\"event\":{name},\"id\":{id}{comma}{fields}"))
    }

    fn words(&self) -> Option<Vec<u8>> {
        let change: Change = serde_json::from_str(&self.data).ok()?;
        let key = match (change.key, change.key_base64) {
            (Some(key), _) => key.into_bytes(),
            (None, Some(coded)) => STANDARD.decode(coded).ok()?,
            (None, None) => return None,
        };
        let value = match (change.value, change.value_base64, change.bytes) {
            (Some(value), ..) => Some(value.get().to_owned()),
            // RFC 2397.
            (None, Some(coded), _) => {
                Some(format!("data:{};base64,{coded}", change.content_type.unwrap_or_default()))
            }
            (None, None, Some(length)) => Some(format!("({length} bytes)")),
            (None, None, None) => None,
        };
        let mut line = [self.name.as_bytes(), b"\t", &key].concat();
        if let Some(value) = value {
            line.push(b'\t');
            line.extend_from_slice(value.as_bytes());
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let table = [
            ("put", r#"{"key":"a","etag":"\"7\""}"#, "put\ta", r#","key":"a","etag":"\"7\""}"#),
            ("put", r#"{"key":"a","value":[1, 2]}"#, "put\ta\t[1, 2]", r#","key":"a","value":[1, 2]}"#),
            (
                "put",
                r#"{"key":"a","value-base64":"YQ==","type":"text/plain"}"#,
                "put\ta\tdata:text/plain;base64,YQ==",
                r#","key":"a","value-base64":"YQ==","type":"text/plain"}"#,
            ),
            ("put", r#"{"key":"a","bytes":9}"#, "put\ta\t(9 bytes)", r#","key":"a","bytes":9}"#),
            ("expire", r#"{"key-base64":"YQ=="}"#, "expire\ta", r#","key-base64":"YQ=="}"#),
            ("resync", "{}", "resync", "}"),
        ];
        for (name, data, words, object) in table {
            let event = Event::parse(format!("event: {name}\nid: x\ndata: {data}\n\n").as_bytes());
            let text = |form| String::from_utf8(event.line(form).unwrap().unwrap()).unwrap();
            assert_eq!(text(Form::Words), words);
            assert_eq!(text(Form::Json), format!("{{\"event\":\"{name}\",\"id\":\"x\"{object}"));
        }
        for (name, data) in [("put", "{}"), ("put", "x"), ("put", r#"{"key-base64":"?"}"#)] {
            let event = Event::parse(format!("event: {name}\ndata: {data}\n\n").as_bytes());
            assert!(event.line(Form::Words).is_err(), "{data}");
        }
        assert!(Event::parse(b"event: put\ndata: 7\n\n").line(Form::Json).is_err());
    }

    #[test]
    fn a_comment_is_no_line_and_has_a_cursor() {
        for (text, id) in [(":\nid: x\n\n", Some("x")), (":\n\n", None), ("id:x\nother: y\n\n", Some("x"))] {
            let event = Event::parse(text.as_bytes());
            assert_eq!((event.line(Form::Json).unwrap(), event.id.as_deref()), (None, id), "{text:?}");
        }
    }
}
