//! Changes of pairs as whoever watches is told them: server-sent events (HTML, section 9.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::model::condition::TagSpace;
use crate::model::history::{Event, Happened};
use crate::model::value::{Content, JSON};

/// The name of the event that tells a change.
pub fn name(event: &Event<'_>) -> &'static str {
    match event.happened {
        Happened::Put(_) | Happened::PutLong(_) => "put",
        Happened::Deleted => "delete",
        Happened::Expired => "expire",
    }
}

/// What the event says: an object of JSON in one line.
pub fn data(event: &Event<'_>, tags: TagSpace, values: bool) -> String {
    let mut data = match std::str::from_utf8(event.key) {
        Ok(key) => format!("{{\"key\":{}", json_text(key)),
        Err(_) => format!("{{\"key-base64\":\"{}\"", STANDARD.encode(event.key)),
    };
    data.push_str(",\"etag\":");
    data.push_str(&json_text(&tags.tag(event.version)));
    match event.happened {
        Happened::Put(stored) if values => put_value(stored, &mut data),
        Happened::PutLong(length) if values => data.extend([",\"bytes\":", &length.to_string()]),
        _ => {}
    }
    data.push('}');
    data
}

fn put_value(stored: &[u8], data: &mut String) {
    // What is stored was checked when it came.
    let Ok(content) = Content::of(stored) else { return };
    let bytes = &stored[content.place.clone()];
    match std::str::from_utf8(bytes) {
        Ok(text) if content.content_type == JSON => {
            data.push_str(",\"value\":");
            // Outside of its strings JSON may have line breaks, which would end the line here; in them it has none.
            data.extend(text.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
        }
        _ => {
            data.push_str(",\"value-base64\":\"");
            STANDARD.encode_string(bytes, data);
            data.push_str("\",\"type\":");
            data.push_str(&json_text(content.content_type));
        }
    }
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

/// An event.
pub fn event(name: &str, id: &str, data: &str) -> Vec<u8> {
    format!("event: {name}\nid: {id}\ndata: {data}\n\n").into_bytes()
}

/// A comment, and the cursor by now, if there is one: it is of no event, but a client that comes again goes on from it.
pub fn comment(id: Option<&str>) -> Vec<u8> {
    match id {
        Some(id) => format!(":\nid: {id}\n\n").into_bytes(),
        None => b":\n\n".to_vec(),
    }
}

/// The cursor of an event or a comment, if it has one.
pub fn id_of(event: &[u8]) -> Option<&str> {
    let line = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"id: "))?;
    std::str::from_utf8(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::value::ContentType;

    #[test]
    fn a_change_is_told_in_one_line() {
        let typed = [&ContentType::new("text/plain").unwrap().head()[..], b"a\nb"].concat();
        let table = [
            (&b"a"[..], Happened::Put(b"1"), "put", r#"{"key":"a"#, r#","value":1}"#),
            (b"\"\n", Happened::Put(b"[1,\r\n2]"), "put", r#"{"key":"\"\n"#, r#","value":[1,  2]}"#),
            (
                b"\xff",
                Happened::Put(&typed),
                "put",
                r#"{"key-base64":"/w=="#,
                r#","value-base64":"YQpi","type":"text/plain"}"#,
            ),
            (b"a", Happened::PutLong(7), "put", r#"{"key":"a"#, r#","bytes":7}"#),
            (b"a", Happened::Deleted, "delete", r#"{"key":"a"#, "}"),
            (b"a", Happened::Expired, "expire", r#"{"key":"a"#, "}"),
        ];
        for (key, happened, wanted, before, after) in table {
            let told = Event { version: 31, key, happened };
            let tags = TagSpace::of("00000000000000ab");
            let etag = r#"","etag":"\"00000000000000ab-1f\"""#;
            assert_eq!((name(&told), data(&told, tags, true)), (wanted, format!("{before}{etag}{after}")));
            assert_eq!(data(&told, tags, false), format!("{before}{etag}}}"));
        }
    }

    #[test]
    fn events_and_comments_end_with_an_empty_line() {
        assert_eq!(event("put", "x", "{}"), b"event: put\nid: x\ndata: {}\n\n");
        assert_eq!(comment(Some("x")), b":\nid: x\n\n");
        assert_eq!(comment(None), b":\n\n");
        let ids = [event("put", "x", "id: y"), comment(Some("x")), comment(None)]
            .map(|one| id_of(&one).map(str::to_owned));
        assert_eq!(ids, [Some("x".to_owned()), Some("x".to_owned()), None]);
    }
}
