//! Request targets (RFC 9112, section 3.2): parsed once, when the request comes.

use std::ops::Range;

/// The one scheme in which a target may be absolute.
const SCHEME: &str = "http://";

/// Where path and query are in the text of a request target; neither is decoded.
///
/// In origin form (`/path?query`) the path begins the text, in absolute form (`http://host/path?query`) it follows the authority, and is empty
/// where nothing does. Any other text (`*`, `host:port`) is taken for a path, under which there is nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: Range<usize>,
    query: Option<Range<usize>>,
}

impl Target {
    /// Parses a target.
    pub fn of(text: &str) -> Self {
        let start = authority_end(text).unwrap_or(0);
        match text[start..].find('?') {
            Some(length) => {
                let end = start + length;
                Self { path: start..end, query: Some(end + 1..text.len()) }
            }
            None => Self { path: start..text.len(), query: None },
        }
    }

    /// The path in the text that was parsed.
    pub fn path<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.path.clone()).unwrap_or_default()
    }

    /// The query in the text that was parsed, without its question mark, where there is one.
    pub fn query<'a>(&self, text: &'a str) -> Option<&'a str> {
        text.get(self.query.clone()?)
    }
}

/// Where the authority of a target in absolute form ends.
fn authority_end(text: &str) -> Option<usize> {
    let scheme = text.get(..SCHEME.len())?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let rest = &text[SCHEME.len()..];
    Some(SCHEME.len() + rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_found_in_every_form() {
        let table = [
            ("/kvs/keys/a?b?c", "/kvs/keys/a", Some("b?c")),
            ("/kvs/keys/a?", "/kvs/keys/a", Some("")),
            ("/kvs/keys/http://n1/b", "/kvs/keys/http://n1/b", None),
            ("/kvs/keys/a#b?c", "/kvs/keys/a#b", Some("c")),
            ("//kvs/a", "//kvs/a", None),
            ("http://n1:1/kvs/keys/a?b", "/kvs/keys/a", Some("b")),
            ("http://kv1:80/kv-store/keys/a", "/kv-store/keys/a", None),
            ("HTTP://user@[::1]:80//a?", "//a", Some("")),
            ("HTTP://n1", "", None),
            ("http://n1?a=/kvs/keys/a", "", Some("a=/kvs/keys/a")),
            ("http://", "", None),
            ("https://n1/kvs/keys/a", "https://n1/kvs/keys/a", None),
            ("*", "*", None),
            ("n1:80", "n1:80", None),
            ("", "", None),
            ("?", "", Some("")),
            ("/\u{e9}?\u{e9}", "/\u{e9}", Some("\u{e9}")),
            ("htt\u{e9}://n1/a", "htt\u{e9}://n1/a", None),
        ];
        for (text, path, query) in table {
            let target = Target::of(text);
            assert_eq!((target.path(text), target.query(text)), (path, query), "{text}");
        }
    }
}
