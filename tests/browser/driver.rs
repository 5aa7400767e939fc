//! Chromium, as its driver drives it: JSON by HTTP, as `WebDriver` (W3C) says.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::http::Http;
use super::support::{START_DEADLINE, openapi, ports, wait_until};

/// Longer than anything takes that is asked of a browser here.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a page may take to show something on a machine that is busy with other things.
const SHOWN: Duration = Duration::from_secs(30);
/// An element, in what `WebDriver` tells.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
];

/// Keys that have no letter.
pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const ENTER: &str = "\u{e007}";
pub(crate) const SHIFT: &str = "\u{e008}";

/// A browser of its own, with one tab; it ends with this value.
pub(crate) struct Browser {
    driver: Child,
    http: Mutex<Http>,
    session: String,
    profile: tempfile::TempDir,
}

impl Browser {
    /// A browser, or nothing where there is none.
    pub(crate) fn start() -> Option<Self> {
        let address = ports::free_address();
        let port = address.rsplit(':').next().expect("an address has a port");
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(driver) = command.spawn() else {
            eprintln!("left out: chromedriver is not installed, so the page was not tried in a browser");
            return None;
        };
        openapi::leave_out(&address);
        let profile = tempfile::tempdir().expect("a folder");
        let http = Mutex::new(Http::with_patience(&address, PATIENCE));
        let mut browser = Self { driver, http, session: String::new(), profile };
        wait_until("the driver answers", START_DEADLINE, || {
            let answer = Http::unchecked(&address).try_request("GET", "/status", &[], b"");
            answer.is_ok_and(|answer| answer.json()["value"]["ready"] == true)
        });
        let mut arguments = FLAGS.map(str::to_owned).to_vec();
        arguments.push(format!("--user-data-dir={}", browser.profile.path().display()));
        let wanted = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            // What a page asks is to be seen, and not answered by the driver.
            "unhandledPromptBehavior": "ignore",
        });
        let session = browser.ask("POST", "/session", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        session["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        Some(browser)
    }

    fn ask(&self, method: &str, target: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut http = self.http.lock().expect("no test has failed here");
        let answer = http.request(method, target, &[("Content-Type", "application/json")], body.as_bytes());
        let told = answer.json()["value"].clone();
        assert!(answer.status == 200, "{method} {target}: {} {}", told["error"], told["message"]);
        told
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("/session/{}{path}", self.session), body)
    }

    /// A command of Chromium's own protocol.
    fn own(&self, command: &str, parameters: &Value) -> Value {
        self.command("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Opens the page of a node, and waits until it has shown what that says.
    pub(crate) fn open(&self, node: &str) {
        self.go(node);
        self.wait("document.getElementById('asked-text').textContent.includes(':')");
    }

    /// The same without waiting.
    pub(crate) fn go(&self, node: &str) {
        self.command("POST", "/url", &json!({ "url": format!("http://{node}/") }));
    }

    pub(crate) fn reload(&self) {
        self.command("POST", "/refresh", &json!({}));
    }

    /// Another tab, which is the one from now on.
    pub(crate) fn open_tab(&self) {
        let tab = self.command("POST", "/window/new", &json!({ "type": "tab" }));
        self.command("POST", "/window", &json!({ "handle": tab["handle"] }));
    }

    /// What the body of a function returns in the page.
    pub(crate) fn run(&self, script: &str, arguments: &[Value]) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// The same where it is told later, by the last argument.
    pub(crate) fn run_later(&self, script: &str) -> Value {
        self.command("POST", "/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// The value of an expression.
    pub(crate) fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}"), &[])
    }

    /// Waits until an expression is true.
    pub(crate) fn wait(&self, expression: &str) {
        wait_until(expression, SHOWN, || self.value(expression) == true);
    }

    pub(crate) fn text(&self, id: &str) -> String {
        let text = self.run("return document.getElementById(arguments[0]).textContent", &[json!(id)]);
        text.as_str().expect("a text").to_owned()
    }

    pub(crate) fn is_shown(&self, id: &str) -> bool {
        self.run("return document.getElementById(arguments[0]).checkVisibility()", &[json!(id)]) == true
    }

    /// The texts of all elements that a selector finds.
    pub(crate) fn texts(&self, selector: &str) -> Vec<String> {
        let script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)";
        let texts = self.run(script, &[json!(selector)]);
        let texts = texts.as_array().expect("a list").iter();
        texts.map(|text| text.as_str().expect("a text").to_owned()).collect()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.command("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// Clicks on it with the mouse, as a person does: it has to be there, and nothing before it.
    pub(crate) fn click(&self, selector: &str) {
        self.command("POST", &format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types into a field what it is to hold.
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.command("POST", &format!("/element/{element}/clear"), &json!({}));
        if !text.is_empty() {
            self.command("POST", &format!("/element/{element}/value"), &json!({ "text": text }));
        }
    }

    /// Presses keys one after the other, wherever the focus is; those before the last one are held meanwhile.
    pub(crate) fn chord(&self, keys: &[&str]) {
        let down = keys.iter().map(|key| json!({ "type": "keyDown", "value": key }));
        let up = keys.iter().rev().map(|key| json!({ "type": "keyUp", "value": key }));
        let actions: Vec<Value> = down.chain(up).collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.command("POST", "/actions", &json!({ "actions": [keyboard] }));
    }

    /// Types, wherever the focus is.
    pub(crate) fn type_text(&self, text: &str) {
        for letter in text.chars() {
            self.chord(&[&letter.to_string()]);
        }
    }

    /// The id of the element that has the focus.
    pub(crate) fn focus(&self) -> String {
        self.value("document.activeElement.id").as_str().expect("a text").to_owned()
    }

    /// Goes on by the Tab key until the focus is there.
    pub(crate) fn tab_to(&self, id: &str) {
        for _ in 0..200 {
            if self.focus() == id {
                return;
            }
            self.chord(&[TAB]);
        }
        panic!("the keyboard does not get to {id}, but to {}", self.focus());
    }

    /// Light or dark.
    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.own("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// The window, in the pixels of the page.
    pub(crate) fn resize(&self, width: u32, height: u32, is_phone: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.own("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Writes a picture of all of the page, where `EVENKV_SCREENSHOTS` names a folder.
    pub(crate) fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("EVENKV_SCREENSHOTS") else { return };
        let picture = self.own("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let bytes = STANDARD.decode(picture["data"].as_str().expect("a text")).expect("base64");
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).expect("it can be written");
    }

    /// What the browser complains of: errors of scripts, and what the policy of the page has kept from being loaded or run. That a request failed or was refused is none of these.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        let lines = log.as_array().expect("a list").iter();
        let errors = lines.filter(|line| line["level"] == "SEVERE" && line["source"] != "network");
        errors.map(|line| line["message"].as_str().expect("a text").to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let target = format!("/session/{}", self.session);
            if let Ok(http) = self.http.get_mut() {
                drop(http.try_request("DELETE", &target, &[], b""));
            }
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
