//! What a pair holds: a JSON value, or bytes of any other type.
//!
//! Whatever stores, logs, moves or sums up a pair has its value as bytes, and does not look into them. A JSON value is its text, as it was before there were other types, so it
//! costs nothing. Anything else begins with a byte with which no JSON text begins: 0, the length of its content type in one byte, the type, and the bytes.

use std::ops::Range;

use super::binary::Malformed;

/// The content type of a JSON value.
pub const JSON: &str = "application/json";
/// That of bytes of which nobody has said what they are.
pub const BYTES: &str = "application/octet-stream";
/// A content type has at most so many bytes.
pub const LONGEST_TYPE: usize = 255;
/// A value of `n` bytes is stored in `n` and so many at most.
pub const LONGEST_HEAD: usize = 2 + LONGEST_TYPE;

/// The first byte of a value that has a type of its own.
const TYPED: u8 = 0;

/// The content type of a value that is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentType<'a>(&'a str);

/// Why a text cannot be the content type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoContentType;

impl<'a> ContentType<'a> {
    /// Takes a text that a header can have (RFC 9110, section 5.5), of printable ASCII.
    ///
    /// # Errors
    /// [`NoContentType`].
    pub fn new(text: &'a str) -> Result<Self, NoContentType> {
        let is_text = |byte: u8| byte == b' ' || byte == b'\t' || byte.is_ascii_graphic();
        let is_sound = (1..=LONGEST_TYPE).contains(&text.len())
            && text.bytes().all(is_text)
            && text.trim_matches([' ', '\t']) == text;
        if is_sound { Ok(Self(text)) } else { Err(NoContentType) }
    }

    /// What a value of this type begins with, as it is stored; its bytes follow.
    pub fn head(self) -> Vec<u8> {
        let length = u8::try_from(self.0.len()).expect("checked when it was taken");
        [&[TYPED, length], self.0.as_bytes()].concat()
    }
}

/// Whether a content type says that the bytes are JSON: that very type, whatever its parameters.
pub fn is_json_type(content_type: &str) -> bool {
    let name = content_type.split(';').next().unwrap_or_default();
    name.trim_matches([' ', '\t']).eq_ignore_ascii_case(JSON)
}

/// Whether a value, as it is stored, has a type of its own. Nodes before there were types would take it for JSON text.
pub const fn is_typed(stored: &[u8]) -> bool {
    matches!(stored, [TYPED, ..])
}

/// A value as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content<'a> {
    /// Its content type.
    pub content_type: &'a str,
    /// Where its bytes are in what is stored.
    pub place: Range<usize>,
}

impl<'a> Content<'a> {
    /// Reads what is stored.
    ///
    /// # Errors
    /// When it has a type of its own and is cut off, or that is none.
    pub fn of(stored: &'a [u8]) -> Result<Self, Malformed> {
        let [TYPED, rest @ ..] = stored else {
            return Ok(Self { content_type: JSON, place: 0..stored.len() });
        };
        let malformed = Malformed("not the content type of a value");
        let (length, rest) = rest.split_first().ok_or(malformed)?;
        let content_type = rest.get(..usize::from(*length)).ok_or(malformed)?;
        let content_type = std::str::from_utf8(content_type).map_err(|_| malformed)?;
        ContentType::new(content_type).map_err(|NoContentType| malformed)?;
        Ok(Self { content_type, place: 2 + content_type.len()..stored.len() })
    }
}

/// How many bytes a value has, without what is stored beside them.
pub fn length(stored: &[u8]) -> usize {
    Content::of(stored).map_or(stored.len(), |content| content.place.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_content_type_is_what_a_header_can_have() {
        let longest = format!("a/{}", "b".repeat(LONGEST_TYPE - 2));
        let longer = format!("{longest}b");
        let table = [
            ("text/plain", true),
            ("text/plain; charset=\"utf-8\"", true),
            ("nonsense", true),
            (&longest, true),
            (&longer, false),
            ("", false),
            (" ", false),
            (" text/plain", false),
            ("text/plain\t", false),
            ("text/pl\u{e4}in", false),
            ("a\r\nb: c", false),
            ("a\0", false),
            ("a\u{7f}", false),
        ];
        for (text, is_type) in table {
            assert_eq!(ContentType::new(text).is_ok(), is_type, "{text:?}");
        }
    }

    #[test]
    fn one_type_is_json_whatever_its_parameters() {
        let table = [
            ("application/json", true),
            ("Application/JSON", true),
            ("application/json;charset=utf-8", true),
            ("application/json ; a=\";\"", true),
            ("application/json;", true),
            ("text/json", false),
            ("application/ld+json", false),
            ("application/json+x", false),
            ("application/jsonl", false),
            ("application/x-ndjson", false),
            ("application", false),
            ("", false),
            (";application/json", false),
        ];
        for (text, is_json) in table {
            assert_eq!(is_json_type(text), is_json, "{text:?}");
        }
    }

    #[test]
    fn what_is_stored_of_json_is_its_text() {
        for text in ["1", " \n{\"a\":[]} ", "null", "\"\\u0000\""] {
            let content = Content::of(text.as_bytes()).unwrap();
            assert_eq!(content, Content { content_type: JSON, place: 0..text.len() }, "{text}");
            assert!(!is_typed(text.as_bytes()));
        }
    }

    #[test]
    fn what_is_cut_off_or_has_no_type_is_refused() {
        let table: [&[u8]; 8] =
            [b"\0", b"\0\0", b"\0\0x", b"\0\x05text", b"\0\x01\xff", b"\0\x01 ", b"\0\x02a ", b"\0\x03a\nb"];
        for stored in table {
            assert!(is_typed(stored) && Content::of(stored).is_err(), "{stored:?}");
            assert_eq!(length(stored), stored.len());
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back_with_their_type(content_type in "[!-~]([ -~\t]{0,253}[!-~])?", bytes: Vec<u8>) {
            let mut stored = ContentType::new(&content_type).unwrap().head();
            prop_assert!(stored.len() <= LONGEST_HEAD);
            stored.extend_from_slice(&bytes);
            let content = Content::of(&stored).unwrap();
            prop_assert_eq!(content.content_type, &content_type);
            prop_assert_eq!(&stored[content.place], &bytes);
            prop_assert_eq!(length(&stored), bytes.len());
            prop_assert!(is_typed(&stored) && serde_json::from_slice::<serde::de::IgnoredAny>(&stored).is_err());
        }

        #[test]
        fn no_bytes_harm_whoever_reads_them(bytes: Vec<u8>, is_typed_form: bool) {
            let stored = if is_typed_form { [&[TYPED][..], &bytes].concat() } else { bytes };
            if let Ok(content) = Content::of(&stored) {
                prop_assert!(content.place.end == stored.len() && content.place.start <= stored.len());
            }
        }
    }
}
