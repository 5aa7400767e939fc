//! Keys and values on the page: whatever they are, they are shown, and nothing else is done with them.

use std::fmt::Write;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::driver::Browser;
use super::support::cluster::Cluster;
use super::support::http::Http;
use super::support::node::Node;
use super::support::{START_DEADLINE, wait_until};
use super::{alone, check_everybody_can_use_it};

/// Puts pairs of any bytes.
fn put_all(address: &str, pairs: &[(&[u8], &[u8], &str)]) {
    let line = |(key, value, kind): &(&[u8], &[u8], &str)| {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        json!({ "op": "put", "key-base64": key, "value-base64": value, "type": kind }).to_string() + "\n"
    };
    let lines: String = pairs.iter().map(line).collect();
    let answer = Http::new(address).request("POST", "/v1/batch", &[], lines.as_bytes());
    assert!(answer.text().lines().all(|line| line.contains("\"status\":20")), "{}", answer.text());
}

/// The value of a key, whatever bytes it has.
fn held(address: &str, key: &[u8]) -> Option<Vec<u8>> {
    let mut target = "/v1/kv/".to_owned();
    for byte in key {
        write!(target, "%{byte:02X}").expect("a string takes it");
    }
    let answer = Http::new(address).get(&target);
    (answer.status == 200).then_some(answer.body)
}

fn note(browser: &Browser, text: &str) {
    let expression = format!("document.getElementById('pair-note').textContent === {}", json!(text));
    browser.wait(&expression);
}

/// Opens the pair at this place of the list.
fn open_at(browser: &Browser, at: usize) {
    browser.run("document.querySelectorAll('#key-list button')[arguments[0]].click()", &[json!(at)]);
    browser.wait("document.getElementById('pair').ariaBusy !== 'true'");
}

fn value(browser: &Browser) -> String {
    let value = browser.value("document.getElementById('pair-value').value");
    value.as_str().expect("a text").to_owned()
}

const SCRIPT: &str = "<script>window.ran = 1</script>";
const PICTURE: &str = "\"><img src=x onerror=\"window.ran = 2\">";

#[test]
fn hostile_keys_and_values_are_text() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let cluster = Cluster::of(2);
    let node = cluster.nodes[0].address();
    let long = vec![b'k'; 1024];
    let json_of = |text: &str| json!(text).to_string().into_bytes();
    let (script, picture) = (json_of(SCRIPT), json_of(PICTURE));
    // The key, and how it is shown.
    let keys: Vec<(&[u8], String)> = vec![
        (b" begins with a blank", " begins with a blank".to_owned()),
        (PICTURE.as_bytes(), PICTURE.to_owned()),
        (b"%2F%00%", "%2F%00%".to_owned()),
        (b"&lt;b&gt;&amp;", "&lt;b&gt;&amp;".to_owned()),
        (b".", ".".to_owned()),
        (b"..", "..".to_owned()),
        (b"../../etc", "../../etc".to_owned()),
        (SCRIPT.as_bytes(), SCRIPT.to_owned()),
        (b"__proto__", "__proto__".to_owned()),
        (b"javascript:window.ran=3", "javascript:window.ran=3".to_owned()),
        (&long, "k".repeat(1024)),
        (b"line\nend\ttab\rback", "line\\nend\\ttab\\rback".to_owned()),
        (b"nul\0nul", "nul\\0nul".to_owned()),
        ("turned\u{202e}gnp.exe".as_bytes(), "turned\\u{202e}gnp.exe".to_owned()),
        ("zero\u{200b}width\u{feff}".as_bytes(), "zero\\u{200b}width\\u{feff}".to_owned()),
        (b"{{7*7}}${7*7}`", "{{7*7}}${7*7}`".to_owned()),
        (
            "\u{5d0}\u{5d1}/\u{639}\u{631}\u{628}\u{64a}".as_bytes(),
            "\u{5d0}\u{5d1}/\u{639}\u{631}\u{628}\u{64a}".to_owned(),
        ),
        (b"\x80\xfftail", "\\x80\\xfftail".to_owned()),
    ];
    let mut pairs: Vec<(&[u8], &[u8], &str)> = Vec::new();
    for (at, (key, _)) in keys.iter().enumerate() {
        pairs.push((key, if at % 2 == 0 { &script } else { &picture }, "application/json"));
    }
    let html: (&[u8], &[u8], &str) =
        (b"~html", SCRIPT.as_bytes(), "text/html\"><script>window.ran=4</script>");
    let bytes: (&[u8], &[u8], &str) = (b"~raw", b"<script>\0\xff</script>", "application/octet-stream");
    let ends: (&[u8], &[u8], &str) = (b"~ends", b"a\r\nb", "text/plain");
    let turned: (&[u8], &[u8], &str) = (b"~turned", "\u{202e}<b>".as_bytes(), "text/plain");
    pairs.extend([html, bytes, ends, turned]);
    put_all(node, &pairs);
    let mut expected: Vec<(&[u8], String)> = keys.clone();
    expected.extend(["~html", "~raw", "~ends", "~turned"].map(|key| (key.as_bytes(), key.to_owned())));
    expected.sort();
    browser.open(node);
    browser.wait(&format!("document.querySelectorAll('#key-list li').length === {}", expected.len()));
    let shown = browser.texts("#key-list bdi");
    assert_eq!(shown, expected.iter().map(|(_, shown)| shown.clone()).collect::<Vec<_>>());
    // What only stands for something is told from what is there.
    assert!(browser.texts("#key-list .stands").contains(&"\\n".to_owned()));
    for (at, (key, shown)) in expected.iter().enumerate() {
        open_at(&browser, at);
        let title = format!("document.getElementById('pair-title').textContent === {}", json!(shown));
        browser.wait(&title);
        let (_, wanted, kind) = pairs.iter().find(|(known, ..)| known == key).expect("it was put");
        assert_eq!(browser.value("document.getElementById('pair-type').value"), *kind, "{shown}");
        // A field of a form has line feeds where there were other ends of lines, so that would be another value.
        let is_text = std::str::from_utf8(wanted).is_ok() && !wanted.contains(&b'\r');
        assert_eq!(browser.is_shown("pair-value"), is_text, "{shown}");
        assert_eq!(browser.is_shown("save"), is_text, "{shown}");
        if is_text {
            assert_eq!(value(&browser).as_bytes(), *wanted, "{shown}");
        }
    }
    // A value with a hostile key goes back as it came, by the page.
    for key in [SCRIPT.as_bytes(), b"..", b"\x80\xfftail", &long] {
        let at = expected.iter().position(|(known, _)| *known == key).expect("it was put");
        open_at(&browser, at);
        browser.wait(&format!(
            "document.getElementById('pair-title').textContent === {}",
            json!(expected[at].1)
        ));
        browser.fill("#pair-value", "{\"big\": 12345678901234567890, \"as\": 1.0}");
        browser.click("#save");
        note(&browser, "Saved.");
        assert_eq!(held(node, key).as_deref(), Some(&b"{\"big\": 12345678901234567890, \"as\": 1.0}"[..]));
        assert_eq!(value(&browser), "{\"big\": 12345678901234567890, \"as\": 1.0}");
    }
    check_everybody_can_use_it(&browser, "hostile keys");
    browser.picture("hostile");
    // Nothing of it ran, and nothing of it became a part of the page.
    assert_eq!(browser.value("window.ran ?? null"), Value::Null);
    let made =
        "document.querySelectorAll('main script, main img, main b, main iframe, main [onerror]').length";
    assert_eq!(browser.value(made), 0);
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

#[test]
fn pairs_are_read_written_and_deleted() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let single = Node::single(&[]);
    let node = single.address();
    browser.open(node);
    browser.wait("!document.getElementById('no-keys').hidden");
    // A new one, which lives for a time.
    browser.fill("#pair-key", "caf\u{e9}/1");
    browser.fill("#pair-type", "text/plain");
    browser.fill("#pair-ttl", "3000");
    browser.fill("#pair-value", "first");
    browser.click("#save");
    note(&browser, "Added.");
    let answer = Http::new(node).get("/v1/kv/caf%C3%A9/1");
    assert_eq!((answer.text().as_str(), answer.header("Content-Type")), ("first", Some("text/plain")));
    let left: f64 = answer.header("Evenkv-TTL").and_then(|left| left.parse().ok()).expect("a time");
    assert!((2900.0..=3000.0).contains(&left), "{left}");
    assert!(browser.text("pair-about").contains("5 bytes"), "{}", browser.text("pair-about"));
    // What somebody else has written meanwhile is not lost.
    browser.fill("#pair-value", "mine");
    assert_eq!(Http::new(node).put("/v1/kv/caf%C3%A9/1", "theirs").status, 200);
    browser.click("#save");
    note(&browser, "It was written or deleted since you have read it. Read it again first.");
    assert_eq!(held(node, "caf\u{e9}/1".as_bytes()).as_deref(), Some(&b"theirs"[..]));
    browser.click("#read-again");
    browser.wait("document.getElementById('pair-value').value === 'theirs'");
    browser.fill("#pair-ttl", "");
    browser.fill("#pair-value", "mine\nin two lines");
    browser.click("#save");
    note(&browser, "Saved.");
    let answer = Http::new(node).get("/v1/kv/caf%C3%A9/1");
    assert_eq!((answer.text().as_str(), answer.header("Evenkv-TTL")), ("mine\nin two lines", None));
    // A key that is there already is no new one.
    browser.click("#new-key");
    browser.fill("#pair-key", "caf\u{e9}/1");
    browser.fill("#pair-value", "1");
    browser.click("#save");
    note(&browser, "There is such a key already: choose it in the list to change it.");
    // What is wrong is said in the words of the node.
    browser.fill("#pair-key", "another");
    browser.fill("#pair-value", "{");
    browser.click("#save");
    browser.wait("document.getElementById('pair-note').textContent.includes('not JSON')");
    // Deleted.
    open_at(&browser, 0);
    browser.click("#delete");
    assert_eq!(browser.text("delete-key"), "caf\u{e9}/1");
    browser.click("#do-delete");
    note(&browser, "Deleted.");
    assert_eq!(held(node, "caf\u{e9}/1".as_bytes()), None);
    browser.wait("document.querySelectorAll('#key-list li').length === 0");
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

#[test]
fn the_list_has_pages_and_follows_what_is_done() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let cluster = Cluster::of(2);
    let node = cluster.nodes[1].address();
    let names: Vec<String> = (0..130).map(|number| format!("user/{number:03}")).collect();
    let pairs: Vec<(&[u8], &[u8], &str)> =
        names.iter().map(|name| (name.as_bytes(), &b"1"[..], "application/json")).collect();
    put_all(node, &pairs);
    put_all(node, &[(b"other", b"1", "application/json")]);
    browser.open(node);
    let count = || browser.texts("#key-list li").len();
    browser.wait("document.querySelectorAll('#key-list li').length === 50");
    assert_eq!(browser.texts("#key-list bdi")[..2], ["other", "user/000"]);
    browser.click("#more-keys");
    browser.wait("document.querySelectorAll('#key-list li').length === 100");
    browser.click("#more-keys");
    browser.wait("document.querySelectorAll('#key-list li').length === 131");
    assert!(!browser.is_shown("more-keys"));
    browser.fill("#prefix", "user/12");
    browser.click("#find button");
    browser.wait("document.querySelectorAll('#key-list li').length === 10");
    browser.run("document.getElementById('keys').scrollIntoView()", &[]);
    browser.wait("document.getElementById('keys-state').textContent === '10 keys, live'");
    put_all(
        cluster.nodes[0].address(),
        &[(b"user/12x", b"1", "application/json"), (b"user/13x", b"1", "application/json")],
    );
    wait_until("the new key is shown", START_DEADLINE, || count() == 11);
    open_at(&browser, 0);
    let about = browser.text("pair-about");
    put_all(node, &[(b"user/120", b"[\"new\"]", "application/json")]);
    wait_until("the pair that is shown is read anew", START_DEADLINE, || value(&browser) == "[\"new\"]");
    assert_ne!(browser.text("pair-about"), about);
    // Not what is being written, though.
    browser.fill("#pair-value", "[\"mine\"]");
    put_all(node, &[(b"user/120", b"[\"theirs\"]", "application/json")]);
    note(&browser, "Somebody has written it meanwhile.");
    assert_eq!(value(&browser), "[\"mine\"]");
    let deleted = Http::new(node).delete("/v1/kv?prefix=user/12");
    assert_eq!(deleted.status, 200);
    wait_until("all are gone", START_DEADLINE, || count() == 0);
    assert_eq!(browser.text("no-keys"), "No key begins so.");
    note(&browser, "It is gone meanwhile.");
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

#[test]
fn what_is_copied_does_the_same_by_curl() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let single = Node::single(&[]);
    let node = single.address();
    browser.open(node);
    let run = |what: &str| {
        browser.click("#copy");
        browser.wait("document.getElementById('curl').value.startsWith('curl')");
        let command = browser.value("document.getElementById('curl').value");
        let command = command.as_str().expect("a text").to_owned();
        let output = Command::new("sh")
            .args(["-c", &command])
            .env("NO_PROXY", "*")
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{what}: {command}");
        output.stdout
    };
    let keys = ["plain", "it's $HOME `id` \"x\"", "..", "a b/c?d#e%41", "\u{fc}\n"];
    for (at, key) in keys.iter().enumerate() {
        browser.click("#new-key");
        // A field for one line takes no line end: that key is put beside the page.
        let text = format!("it's '{at}' & $(exit 3)\n\\n");
        if key.contains('\n') {
            put_all(node, &[(key.as_bytes(), text.as_bytes(), "text/plain")]);
            continue;
        }
        browser.fill("#pair-key", key);
        browser.fill("#pair-type", "text/plain");
        browser.fill("#pair-value", &text);
        browser.fill("#pair-ttl", if at == 0 { "500" } else { "" });
        run("put");
        assert_eq!(held(node, key.as_bytes()).as_deref(), Some(text.as_bytes()), "{key}");
        if at == 0 {
            let left = Http::new(node).get("/v1/kv/plain");
            assert!(left.header("Evenkv-TTL").is_some(), "{left:?}");
        }
    }
    browser.click("#find button");
    browser.wait(&format!("document.querySelectorAll('#key-list li').length === {}", keys.len()));
    for at in 0..keys.len() {
        open_at(&browser, at);
        let shown = value(&browser);
        assert_eq!(run("get"), shown.as_bytes(), "{at}");
    }
}
