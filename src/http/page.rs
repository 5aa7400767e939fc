//! The page for people: files that are part of the program. There is no data in them; the page asks the node that it comes from, as any client does.

use std::borrow::Cow;
use std::hash::Hasher;
use std::sync::LazyLock;

use siphasher::sip::SipHasher24;
use tiny_http::{Header, Method};

use super::answer::Answer;
use super::routes::Route;
use crate::error::Error;
use crate::model::condition::{ETAG, IF_NONE_MATCH};

/// What the page may load and run: its own files, and nothing that stands in markup. No text becomes markup, either.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The headers of each file.
pub const HEADERS: [(&str, &str); 5] = [
    // Another version of the program has another page, so whoever keeps it asks whether it is still so.
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
];

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// The types of the files.
pub const TYPES: [&str; 4] = [HTML, STYLE, SCRIPT, PICTURE];

/// The file that is asked for without a name.
const INDEX: &str = "";

/// A file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($name:literal, $content_type:expr, $path:literal) => {
        File { name: $name, content_type: $content_type, text: include_str!(concat!("page/", $path)) }
    };
}

static FILES: [File; 10] = [
    file!("", HTML, "index.html"),
    file!("page.css", STYLE, "page.css"),
    file!("icon.svg", PICTURE, "icon.svg"),
    file!("main.js", SCRIPT, "main.js"),
    file!("node.js", SCRIPT, "node.js"),
    file!("dom.js", SCRIPT, "dom.js"),
    file!("text.js", SCRIPT, "text.js"),
    file!("status.js", SCRIPT, "status.js"),
    file!("change.js", SCRIPT, "change.js"),
    file!("keys.js", SCRIPT, "keys.js"),
];

/// A file as it is sent, and what names it.
struct Served {
    bytes: Vec<u8>,
    tag: String,
}

static SERVED: LazyLock<[Served; FILES.len()]> = LazyLock::new(|| {
    FILES.each_ref().map(|file| {
        let text = without_notes(file.text);
        let text = if file.content_type == STYLE { without_blanks(&text) } else { text };
        let bytes = text.into_bytes();
        let mut hasher = SipHasher24::new();
        hasher.write(&bytes);
        Served { tag: format!("\"{:016x}\"", hasher.finish()), bytes }
    })
});

/// A file without what only those read who change it: comments, which have lines of their own, and what makes lines begin further right.
fn without_notes(text: &str) -> String {
    let is_note = |line: &&str| {
        line.is_empty() || line.starts_with("//") || (line.starts_with("/*") && line.ends_with("*/"))
    };
    let lines = text.lines().map(str::trim).filter(|line| !is_note(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Answers a GET of a file of the page.
pub fn answer(method: &Method, headers: &[Header], route: Route, name: &str) -> Answer {
    if *method != Method::Get {
        return Answer::error(&Error::MethodNotAllowed(route.allow()), method, "");
    }
    let name = if route == Route::Page { INDEX } else { name };
    let is_other = |file: &File| file.name == INDEX && route != Route::Page;
    let Some(at) = FILES.iter().position(|file| file.name == name && !is_other(file)) else {
        let names: Vec<&str> = FILES.iter().map(|file| file.name).filter(|name| *name != INDEX).collect();
        let error = Error::NotFound(format!("The page has no such file: allowed is {}", names.join(", ")));
        return Answer::error(&error, method, "");
    };
    let (file, Served { bytes, tag }) = (&FILES[at], &SERVED[at]);
    let answer = if is_known(headers, tag) {
        Answer::empty(304)
    } else {
        Answer { content_type: Cow::Borrowed(file.content_type), ..Answer::json(200, bytes.as_slice()) }
    };
    let answer = answer.with(ETAG, tag.as_str());
    HEADERS.iter().fold(answer, |answer, (name, value)| answer.with(name, *value))
}

/// Whether a client says that it has what a tag names (RFC 9110, section 13.1.2).
pub fn is_known(headers: &[Header], tag: &str) -> bool {
    known_tags(headers).any(|name| name == "*" || name == tag)
}

/// What a client says that it has: tags, be they weak or not, or a star.
pub fn known_tags(headers: &[Header]) -> impl Iterator<Item = &str> {
    let asked = headers.iter().filter(|header| header.field.equiv(IF_NONE_MATCH));
    let names = asked.flat_map(|header| header.value.as_str().split(',')).map(str::trim);
    names.map(|name| name.strip_prefix("W/").unwrap_or(name))
}

/// A style sheet without the blanks that stand at what ends a name or a value anyway.
fn without_blanks(style: &str) -> String {
    let ends = [
        ("\n", ""),
        (" {", "{"),
        ("{ ", "{"),
        (": ", ":"),
        ("; ", ";"),
        (";}", "}"),
        (" }", "}"),
        (", ", ","),
    ];
    ends.iter().fold(style.to_owned(), |text, (blank, end)| text.replace(blank, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_read_becomes_markup_or_a_script() {
        let sinks = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "createContextualFragment",
            "setHTML",
            "srcdoc",
            "eval(",
            "Function(",
            "javascript:",
            "localStorage",
            "document.cookie",
            "style=",
            "setAttribute('on",
            "setAttribute(\"on",
        ];
        for file in FILES.iter().filter(|file| file.content_type != STYLE) {
            for sink in sinks {
                assert!(!file.text.contains(sink), "{} has {sink}", file.name);
            }
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for file in &FILES {
            let without_names = file.text.replace("http://www.w3.org/2000/svg", "");
            for scheme in ["http://", "https://", "src=\"//", "href=\"//", "url(", "@import"] {
                assert!(!without_names.contains(scheme), "{} has {scheme}", file.name);
            }
        }
    }

    #[test]
    fn the_page_names_its_files_and_no_others() {
        let all: String = FILES.iter().map(|file| file.text).collect();
        for file in FILES.iter().filter(|file| file.name != INDEX) {
            let names = [format!("\"/page/{}\"", file.name), format!("'./{}'", file.name)];
            assert!(names.iter().any(|name| all.contains(name.as_str())), "{} is not used", file.name);
        }
        for beginning in ["\"/page/", "from './"] {
            for rest in all.split(beginning).skip(1) {
                let name = rest.split(['"', '\'']).next().unwrap();
                assert!(FILES.iter().any(|file| file.name == name), "{name} is not there");
            }
        }
        assert!(!FILES[0].text.contains("<script>") && !FILES[0].text.contains("<style"));
    }
}
