//! The JSON object that a request may carry: the value of a PUT, and the causal context.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::Error;

/// The fields of a body that mean something, as their raw JSON text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The field `value`.
    pub value: Option<&'a str>,
    /// The field `causal-context`.
    causal: Option<&'a str>,
}

impl<'a> Payload<'a> {
    /// Reads a body. One that is empty, or JSON but no object, has no fields.
    ///
    /// # Errors
    /// [`Error::BadRequest`] that says where it is not JSON.
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let not_json = |error: serde_json::Error| {
            Error::BadRequest(format!("The body is not JSON: {error}; allowed is {{\"value\": <any JSON>}}"))
        };
        match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => Ok(Self::default()),
            Some(b'{') => {
                let mut reader = serde_json::Deserializer::from_slice(body);
                let payload = reader.deserialize_map(Fields).map_err(not_json)?;
                reader.end().map_err(not_json)?;
                Ok(payload)
            }
            Some(_) => {
                serde_json::from_slice::<&RawValue>(body).map_err(not_json)?;
                Ok(Self::default())
            }
        }
    }

    /// The causal context to give back: that of the request, `{}` where it has an empty one.
    ///
    /// # Errors
    /// [`Error::BadRequest`] where it is neither null, `""`, `"{}"` nor an object.
    pub fn causal_context(&self) -> Result<Option<&'a str>, Error> {
        match self.causal {
            None => Ok(None),
            Some("null" | "\"\"" | "\"{}\"") => Ok(Some("{}")),
            Some(object) if object.starts_with('{') => Ok(Some(object)),
            Some(_) => Err(Error::BadRequest(
                "causal-context is wrong: allowed is null, \"\", \"{}\" or an object, as an answer gave it"
                    .to_owned(),
            )),
        }
    }
}

/// The field that an answer has beyond its own, with a comma before it, where a request's body has a causal context.
pub fn causal_field(body: &[u8]) -> String {
    let payload = Payload::parse(body).ok();
    let causal = payload.and_then(|payload| payload.causal_context().ok().flatten());
    causal.map(|causal| format!(",\"causal-context\":{causal}")).unwrap_or_default()
}

struct Fields;

impl<'a> Visitor<'a> for Fields {
    type Value = Payload<'a>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Payload<'a>, A::Error> {
        let mut payload = Payload::default();
        while let Some(Name(name)) = map.next_key()? {
            // Of a name that stands there twice, the last counts, as with most readers of JSON.
            match &*name {
                "value" => payload.value = Some(map.next_value::<&RawValue>()?.get()),
                "causal-context" => payload.causal = Some(map.next_value::<&RawValue>()?.get()),
                _ => {
                    map.next_value::<&RawValue>()?;
                }
            }
        }
        Ok(payload)
    }
}

/// The name of a field, without a copy where it has no escapes.
pub struct Name<'a>(pub Cow<'a, str>);

impl<'a> de::Deserialize<'a> for Name<'a> {
    fn deserialize<D: Deserializer<'a>>(reader: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'a> Visitor<'a> for Text {
            type Value = Name<'a>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        reader.deserialize_str(Text)
    }
}

/// A text as JSON has it.
pub fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

/// Checks that a body is one JSON value.
///
/// # Errors
/// [`Error::BadRequest`] that says where it is not.
pub fn check_json(body: &[u8]) -> Result<(), Error> {
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::BadRequest(format!("The body is not JSON, as its Content-Type says: {error}")))
        }
    }
}

/// Whether a text is exactly one JSON value: what another node passed on has been read once already, but is
/// stored only if it can be given out again.
pub fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_byte_for_byte() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let deep_body = format!("{{\"value\":{deep}}}");
        let table = [
            (r#"{"value":1}"#, Some("1")),
            (
                r#" {"x":[1,{}], "value" :  {"a" : 1e400,"a":0.10}  , "y":null} "#,
                Some(r#"{"a" : 1e400,"a":0.10}"#),
            ),
            (r#"{"value":null}"#, Some("null")),
            (r#"{"val\u0075e":"\ud800"}"#, Some(r#""\ud800""#)),
            (r#"{"value":1,"value":2}"#, Some("2")),
            (deep_body.as_str(), Some(deep.as_str())),
            ("{}", None),
            ("", None),
            (" \n", None),
            ("[1]", None),
            ("\"value\"", None),
        ];
        for (body, wanted) in table {
            assert_eq!(Payload::parse(body.as_bytes()).unwrap().value, wanted, "{body:.40}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_the_place() {
        for body in
            ["{", "{\"value\":}", "{\"value\":1}x", "{\"value\":01}", "nul", "{\"value\":\"\u{1}\"}", "[1,]"]
        {
            let error = Payload::parse(body.as_bytes()).unwrap_err();
            assert!(
                matches!(&error, Error::BadRequest(text) if text.contains("line 1 column")),
                "{body}: {error}"
            );
        }
        assert!(Payload::parse(b"{\"value\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_causal_context_is_given_back() {
        let table = [
            ("{}", Ok(None)),
            (r#"{"causal-context":null}"#, Ok(Some("{}"))),
            (r#"{"causal-context":""}"#, Ok(Some("{}"))),
            (r#"{"causal-context":"{}"}"#, Ok(Some("{}"))),
            (r#"{"causal-context":{"a":1}}"#, Ok(Some(r#"{"a":1}"#))),
            (r#"{"causal-context":7}"#, Err(())),
        ];
        for (body, wanted) in table {
            let payload = Payload::parse(body.as_bytes()).unwrap();
            assert_eq!(payload.causal_context().map_err(|_| ()), wanted, "{body}");
        }
    }
}
