//! The page for people in Chromium: what a person does there, what he is shown, and that what is stored is never more than text. Without chromedriver nothing is tried, and that is
//! said. What judges whether everybody can use the page is axe-core: `tests/browser/run` fetches it, and `EVENKV_AXE` names it.
#![allow(
    clippy::disallowed_methods,
    reason = "the rules about clocks, threads and the environment are for the library; a test polls and measures"
)]

#[path = "../support/mod.rs"]
mod support;

mod driver;
mod keys;

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use driver::{Browser, ENTER, SHIFT, TAB};
use serde_json::{Value, json};
use support::change::{allowed, ask_with, passive, target, wait_knows};
use support::cluster::Cluster;
use support::http::Http;
use support::node::{Node, evenkv};
use support::{START_DEADLINE, wait_until};

/// What happens to a node is shown within this time.
const TOLD: Duration = Duration::from_secs(2);

/// One browser at a time is enough for a machine.
static MACHINE: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put_pairs(address: &str, count: usize) {
    let mut client = Http::new(address);
    for number in 0..count {
        assert_eq!(client.put(&target(&format!("pair-{number}")), r#"{"value":1}"#).status, 201);
    }
}

fn status(address: &str) -> Value {
    Http::new(address).get("/v1/status").json()
}

/// The counts of the shards as the page shows them, in their order.
fn shown_counts(browser: &Browser) -> Vec<u64> {
    let texts = browser.texts("#shard-list .count > span:first-child");
    texts.iter().filter_map(|text| text.replace(',', "").parse().ok()).collect()
}

/// How long its bars are, in hundredths of the longest.
fn levels(browser: &Browser) -> Vec<f64> {
    let script = "return [...document.querySelectorAll('#shard-list .bar > span')].map((bar) => parseFloat(bar.style.width))";
    let levels = browser.run(script, &[]);
    levels.as_array().expect("a list").iter().map(|level| level.as_f64().expect("a number")).collect()
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().sum()
}

#[test]
fn a_view_change_shows_its_plan_and_then_levels_the_bars() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let slow: &[(&str, &str)] =
        if cfg!(feature = "failpoints") { &[("FAILPOINTS", "piece-started=sleep(1500)")] } else { &[] };
    let cluster = Cluster::with(3, slow);
    let all = cluster.addresses();
    let spare = passive(&all, &[]);
    wait_knows(&spare, 3);
    put_pairs(&all[0], 101);
    browser.open(&all[0]);
    wait_until("all pairs are shown", START_DEADLINE, || sum(&shown_counts(&browser)) == 101);
    let before = shown_counts(&browser);
    assert_eq!(browser.text("health-title"), "All is well");

    // The plan first: it is that of the node, and nothing is done.
    browser.click("#open-change");
    browser.fill("#add-node", spare.address());
    browser.click("#add");
    assert_eq!(browser.texts("#wanted li > span"), [all.as_slice(), &[spare.address().to_owned()]].concat());
    browser.click("#make-plan");
    browser.wait("!document.getElementById('plan').hidden");
    let wanted = browser.texts("#wanted li > span");
    let plan = ask_with(&all[1], &[], &json!({ "view": wanted, "dry-run": true })).json();
    let figure = |name: &str| plan[name].as_u64().expect("a figure");
    assert_eq!(figure("moved"), figure("minimum"), "{plan}");
    let heading = format!("{} of 101 pairs move, the least possible", figure("moved"));
    assert_eq!(browser.texts("#plan h3"), [heading]);
    let cells = |column: usize| browser.texts(&format!("#plan tbody tr > :nth-child({column})"));
    let now: Vec<String> = before.iter().map(u64::to_string).chain(["new".to_owned()]).collect();
    assert_eq!(cells(2), now);
    let then: Vec<u64> = cells(3).iter().map(|count| count.parse().expect("a count")).collect();
    let planned = plan["shards"].as_array().expect("a list").iter();
    assert_eq!(
        then,
        planned.map(|shard| shard["key-count-planned"].as_u64().expect("a count")).collect::<Vec<_>>()
    );
    assert_eq!(browser.texts("#plan .moves li").len(), plan["moves"].as_array().expect("a list").len());
    assert!(status(&all[0])["change"].is_null() && status(&all[0])["epoch"] == 1, "nothing is done yet");
    browser.picture("plan");

    // Another wish makes the plan void.
    browser.click("#wanted li:last-child button");
    assert!(!browser.is_shown("plan") && !browser.is_shown("carry-out"));
    browser.fill("#add-node", spare.address());
    browser.click("#make-plan");
    browser.wait("!document.getElementById('plan').hidden");
    browser.click("#carry-out");
    browser.wait("!document.getElementById('change-dialog').open");

    // The bars level as pairs move.
    let (mut seen, mut ran) = (vec![before.clone()], false);
    wait_until("the page says that it has ended", allowed(Duration::from_mins(1)), || {
        ran |= browser.is_shown("running")
            && browser.value("document.getElementById('running-bar').max") == figure("moved");
        let counts = shown_counts(&browser);
        if seen.last() != Some(&counts) {
            seen.push(counts);
        }
        browser.is_shown("change-result")
    });
    if cfg!(feature = "failpoints") {
        assert!(ran && seen.len() > 2, "it was not shown on its way: {seen:?}");
    }
    let result = browser.text("change-result");
    assert!(result.contains(&format!("{} pairs moved, the least possible", figure("moved"))), "{result}");
    assert_eq!(browser.text("said"), result, "who listens is told, too");
    wait_until("the counts are right", START_DEADLINE, || shown_counts(&browser) == then);
    let counted = (1..=4).map(|id| Http::new(&all[2]).get(&format!("/kv-store/shards/{id}")).json());
    let counted: Vec<u64> = counted.map(|shard| shard["key-count"].as_u64().expect("a count")).collect();
    assert_eq!(counted, then);
    let least = 100.0 * 25.0 / 26.0;
    assert!(
        levels(&browser).iter().all(|level| (least - 0.01..=100.0).contains(level)),
        "{:?}",
        levels(&browser)
    );
    assert_eq!(browser.text("level"), "Level: one pair apart");
    let receipt = browser.texts("#receipts tbody tr:first-child > *");
    let epoch = status(&all[0])["epoch"].to_string();
    assert_eq!(
        (&receipt[0], &receipt[6], &receipt[7]),
        (&epoch, &figure("moved").to_string(), &figure("minimum").to_string())
    );
    assert_eq!(receipt[10], "match");
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

#[test]
fn what_is_wrong_with_a_wish_is_said_where_it_was_made() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let cluster = Cluster::of(2);
    browser.open(cluster.nodes[0].address());
    browser.click("#open-change");
    browser.fill("#add-node", "<b>nowhere</b>:1");
    browser.click("#make-plan");
    browser.wait("document.getElementById('change-note').textContent !== ''");
    assert!(browser.text("change-note").contains("nowhere"), "{}", browser.text("change-note"));
    assert_eq!(browser.value("document.querySelectorAll('dialog b').length"), 0);
    assert!(!browser.is_shown("plan") && !browser.is_shown("carry-out"));
    browser.click("#close-change");
    assert!(!browser.is_shown("change-form"));
}

#[test]
fn a_node_that_is_killed_is_named_in_words() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let mut cluster = Cluster::with(3, &[("REPL_FACTOR", "3")]);
    let all = cluster.addresses();
    browser.open(&all[0]);
    browser.wait("document.getElementById('health-title').textContent === 'All is well'");
    let killed = Instant::now();
    cluster.nodes[2].kill();
    let says =
        |address: &str| browser.texts("#problems li strong").iter().any(|words| words.contains(address));
    wait_until("the page names it", START_DEADLINE, || says(&all[2]));
    let took = killed.elapsed();
    println!("named after {took:?}");
    assert!(took < allowed(TOLD), "named after {took:?}");
    let advice = browser.texts("#problems li span");
    assert!(advice.iter().all(|advice| advice.len() > 10), "{advice:?}");
    assert!(browser.text("said").contains(&all[2]), "who listens is told: {}", browser.text("said"));
    assert!(browser.texts("#node-table .state").contains(&"not reached".to_owned()));
    browser.picture("problems");
    // It comes back, and all is well again.
    cluster.nodes[2].restart();
    wait_until("all is well again", allowed(Duration::from_secs(30)), || {
        browser.text("health-title") == "All is well"
    });
    // The very node that is asked.
    cluster.nodes[0].kill();
    wait_until("the page says that its node is gone", allowed(TOLD), || {
        browser.texts("#problems li strong").iter().any(|words| words.contains("The node does not answer"))
    });
    assert_eq!(shown_counts(&browser), [0], "what was known is shown still");
    cluster.nodes[0].restart();
    wait_until("it is there again", allowed(Duration::from_secs(30)), || {
        browser.text("health-title") == "All is well"
    });
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

#[test]
fn a_token_is_asked_for_and_stays_in_its_tab() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let output = evenkv().args(["token", "new", "admin"]).output().expect("the built binary starts");
    let text = String::from_utf8(output.stdout).expect("text");
    let (token, line) = text.trim_end().split_once('\n').expect("two lines");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokens");
    fs::write(&path, line).expect("the file can be written");
    let node = Node::single(&[("AUTH_TOKENS_FILE", &path.display().to_string())]);
    browser.go(node.address());
    browser.wait("document.getElementById('token-dialog').open");
    assert_eq!(browser.texts("#shard-list li").len(), 0, "nothing is shown without one");
    check_everybody_can_use_it(&browser, "token");
    browser.fill("#token", "wrong");
    browser.click("#use-token");
    browser.wait("document.getElementById('token-why').textContent.includes('does not know the token')");
    browser.fill("#token", token);
    browser.click("#use-token");
    browser.wait("document.querySelectorAll('#shard-list li').length === 1");
    assert!(!browser.is_shown("token-form"));
    // What it takes to write and to watch, too.
    browser.fill("#pair-key", "a");
    browser.fill("#pair-value", "1");
    browser.click("#save");
    browser.wait("document.getElementById('pair-note').textContent === 'Added.'");
    browser.run("document.getElementById('keys').scrollIntoView()", &[]);
    browser.wait("document.getElementById('keys-state').textContent.includes('live')");
    browser.click("#copy");
    let command = browser.value("document.getElementById('curl').value");
    assert!(
        command.as_str().is_some_and(|command| command.contains("$EVENKV_TOKEN") && !command.contains(token)),
        "{command}"
    );
    // It is in no URL, and nowhere that outlives the tab.
    let urls = browser
        .value("performance.getEntriesByType('resource').map((entry) => entry.name).concat(location.href)");
    assert!(
        urls.as_array().is_some_and(|urls| urls.len() > 5) && !urls.to_string().contains(token),
        "{urls}"
    );
    assert!(
        urls.as_array().expect("a list").iter().all(|url| url
            .as_str()
            .is_some_and(|url| url.starts_with(&format!("http://{}/", node.address())))),
        "{urls}"
    );
    let kept = browser.value("[localStorage.length, document.cookie, Object.values(sessionStorage)]");
    assert_eq!(kept, json!([0, "", [token]]));
    browser.reload();
    browser.wait("document.querySelectorAll('#shard-list li').length === 1");
    // Another tab has none.
    browser.open_tab();
    browser.go(node.address());
    browser.wait("document.getElementById('token-dialog').open");
}

#[test]
fn all_of_it_goes_by_keyboard() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let cluster = Cluster::of(2);
    let all = cluster.addresses();
    let spare = passive(&all, &[]);
    wait_knows(&spare, 2);
    put_pairs(&all[0], 30);
    browser.open(&all[0]);
    wait_until("all pairs are shown", START_DEADLINE, || sum(&shown_counts(&browser)) == 30);
    browser.chord(&[TAB]);
    let first = browser.value("document.activeElement.textContent");
    assert_eq!(first, "Skip to the content");
    // A view change.
    browser.tab_to("open-change");
    browser.chord(&[ENTER]);
    assert_eq!(browser.focus(), "add-node", "the dialog has the focus");
    browser.type_text(spare.address());
    browser.chord(&[ENTER]);
    assert_eq!(browser.texts("#wanted li").len(), 3);
    browser.tab_to("make-plan");
    browser.chord(&[ENTER]);
    browser.wait("!document.getElementById('plan').hidden");
    assert_eq!(browser.focus(), "plan", "the plan is read next");
    browser.tab_to("carry-out");
    browser.chord(&[ENTER]);
    wait_until("it has ended", allowed(Duration::from_secs(30)), || browser.is_shown("change-result"));
    assert!(
        ["open-change", "running"].contains(&browser.focus().as_str()),
        "the focus is not lost: {}",
        browser.focus()
    );
    wait_until("the bars are level", START_DEADLINE, || shown_counts(&browser) == [10, 10, 10]);
    // A pair is written, read and deleted.
    browser.tab_to("pair-key");
    browser.type_text("by/keyboard");
    browser.tab_to("pair-value");
    browser.type_text("\"x\"");
    browser.tab_to("save");
    browser.chord(&[ENTER]);
    browser.wait("document.getElementById('pair-note').textContent === 'Added.'");
    assert_eq!(Http::new(&all[1]).get("/v1/kv/by%2Fkeyboard").text(), "\"x\"");
    browser.tab_to("delete");
    browser.chord(&[ENTER]);
    assert_eq!(browser.focus(), "keep", "the harmless choice has the focus");
    browser.tab_to("do-delete");
    browser.chord(&[ENTER]);
    browser.wait("document.getElementById('pair-note').textContent === 'Deleted.'");
    assert_eq!(Http::new(&all[1]).get("/v1/kv/by%2Fkeyboard").status, 404);
    // Nothing holds the keyboard.
    browser.chord(&[SHIFT, TAB]);
    browser.tab_to("prefix");
}

/// Where axe-core is.
fn axe() -> Option<String> {
    let path = std::env::var_os("EVENKV_AXE").map(PathBuf::from)?;
    Some(fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Nothing keeps anybody from using what is shown now, as far as axe-core can tell.
pub(crate) fn check_everybody_can_use_it(browser: &Browser, state: &str) {
    let Some(axe) = axe() else {
        eprintln!(
            "left out: EVENKV_AXE names no axe-core, so it was not judged whether everybody can use the page: {state}"
        );
        return;
    };
    browser.run(&format!("{axe};\nwindow.axe = window.axe ?? axe;"), &[]);
    let script = "const done = arguments[arguments.length - 1];
        axe.run(document).then(
            ({ violations, passes }) => done({ passes: passes.length, wrong: violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => [html, failureSummary])]) }),
            (error) => done({ passes: 0, wrong: String(error) }))";
    let told = browser.run_later(script);
    assert_eq!(told["wrong"], json!([]), "{state}: {told:#}");
    assert!(told["passes"].as_u64() > Some(10), "{state}: {told}");
}

#[test]
fn everybody_can_use_it_in_every_state() {
    let _alone = alone();
    let Some(browser) = Browser::start() else { return };
    let mut cluster = Cluster::with(3, &[("REPL_FACTOR", "3")]);
    let all = cluster.addresses();
    put_pairs(&all[0], 120);
    let bytes = [("Content-Type", "application/octet-stream")];
    assert_eq!(Http::new(&all[0]).request("PUT", "/v1/kv/!bytes?ttl=3600", &bytes, &[0, 255]).status, 201);
    assert_eq!(ask_with(&all[0], &[], &json!({ "view": all })).status, 200);
    browser.open(&all[0]);
    browser.wait("document.querySelectorAll('#key-list li').length === 50");
    for (name, scheme, size) in [
        ("light", "light", (1280, 900, false)),
        ("dark", "dark", (1280, 900, false)),
        ("phone", "light", (390, 844, true)),
    ] {
        browser.prefer(scheme);
        browser.resize(size.0, size.1, size.2);
        browser.wait("document.getElementById('health-title').textContent === 'All is well'");
        browser.picture(name);
        let state = |what: &str| format!("{name}, {what}");
        check_everybody_can_use_it(&browser, &state("nothing done"));
        let width = browser.value("document.documentElement.scrollWidth - window.innerWidth");
        assert!(width.as_i64() <= Some(0), "{name} is wider than its window by {width}");
        browser.click("#key-list li:first-child button");
        browser.wait("!document.getElementById('pair-bytes').hidden");
        browser.click("#copy");
        browser.wait("!document.getElementById('curl').hidden");
        check_everybody_can_use_it(&browser, &state("a pair"));
        browser.picture(&format!("{name}-pair"));
        browser.click("#delete");
        check_everybody_can_use_it(&browser, &state("about to delete"));
        browser.click("#keep");
        browser.click("#open-change");
        check_everybody_can_use_it(&browser, &state("changing the view"));
        browser.click("#make-plan");
        browser.wait("!document.getElementById('plan').hidden");
        check_everybody_can_use_it(&browser, &state("a plan"));
        browser.picture(&format!("{name}-plan"));
        browser.click("#close-change");
        browser.click("#new-key");
    }
    cluster.nodes[1].kill();
    browser.wait("document.querySelectorAll('#problems li').length > 0");
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        check_everybody_can_use_it(&browser, &format!("{scheme}, with problems"));
        browser.picture(&format!("{scheme}-problems"));
    }
}
