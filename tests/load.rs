//! The clients that other tests let work on a cluster: they see what is wrong, and nothing where nothing is.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use support::cluster::Cluster;
use support::fake_main::{self, FakeMain};
use support::history;
use support::load::{Load, Mix, Profile};
use support::{START_DEADLINE, ports, wait_until};

#[test]
fn a_quiet_cluster_answers_every_client_rightly() {
    let cluster = Cluster::of(3);
    let load = Load::start(&cluster.addresses(), &Profile::default());
    wait_until("3000 requests are answered", START_DEADLINE, || load.answers() >= 3000);
    load.ask(&cluster.addresses()[1..2]);
    let before = load.answers();
    wait_until("the one node left answers them all", START_DEADLINE, || load.answers() >= before + 500);
    let noted = load.stop();
    assert!(noted.wrong.is_empty(), "{:#?}", noted.wrong);
    assert!(noted.records.len() >= 3500);
    history::check(&noted.records).unwrap_or_else(|refused| panic!("{refused}"));
}

/// A node that answers every request so.
fn noted_of(
    status: &'static str,
    headers: &'static [(&str, &str)],
    body: &str,
) -> (Vec<String>, Result<(), String>) {
    let body = body.as_bytes().to_vec();
    let node = FakeMain::start(move |_| fake_main::answer(status, headers, &body));
    let load =
        Load::start(&[node.address().to_owned()], &Profile { keys: 3, clients: 2, ..Profile::default() });
    wait_until("there were requests", START_DEADLINE, || node.arrived().len() >= 60);
    let noted = load.stop();
    let checked = history::check(&noted.records);
    (noted.wrong, checked)
}

#[test]
fn wrong_answers_are_listed() {
    let value = json!({"doesExist": true, "message": "Retrieved successfully", "value": 999_999}).to_string();
    let (wrong, checked) = noted_of("200 OK", &[], &value);
    assert!(wrong.iter().any(|line| line.contains("Put")) && !wrong.iter().any(|line| line.contains("Get")));
    assert!(checked.expect_err("nobody wrote it").contains("is no register"));

    let more =
        json!({"doesExist": true, "message": "Retrieved successfully", "value": 1, "more": 1}).to_string();
    let (wrong, _) = noted_of("200 OK", &[], &more);
    assert!(wrong.iter().any(|line| line.contains("Get") && line.contains("more")), "{wrong:#?}");

    let (wrong, checked) = noted_of("503 Busy", &[("Evenkv-Outcome", "not-applied")], "{}");
    assert!(wrong.len() >= 60 && wrong[0].contains("Evenkv-Outcome: not-applied"), "{wrong:#?}");
    assert_eq!(checked, Ok(()), "nothing happened");

    let (wrong, _) = noted_of("307 Elsewhere", &[("Location", "/")], "{}");
    assert!(wrong.iter().any(|line| line.contains("307") && line.contains("Location")), "{wrong:#?}");
}

#[test]
fn requests_without_an_answer_are_listed() {
    let load = Load::start(
        &[ports::free_address()],
        &Profile { rest: Duration::from_millis(5), ..Profile::default() },
    );
    let noted = load.stop();
    assert!(!noted.wrong.is_empty() && noted.wrong.iter().all(|line| line.contains("no answer")));
    assert_eq!(history::check(&noted.records), Ok(()));
}

#[test]
fn writes_that_are_gone_are_found_when_everything_is_read_back() {
    let added = json!({"message": "Added successfully", "replaced": false}).to_string();
    let absent =
        json!({"doesExist": false, "error": "Key does not exist", "message": "Error in GET"}).to_string();
    let node = FakeMain::start(move |request| match request.method.as_str() {
        "PUT" => fake_main::answer("201 Created", &[], added.as_bytes()),
        _ => fake_main::answer("404 Not Found", &[], absent.as_bytes()),
    });
    let address = [node.address().to_owned()];
    let load = Load::start(&address, &Profile { keys: 1_000_000_000, mix: Mix::Puts, ..Profile::default() });
    wait_until("there were requests", START_DEADLINE, || load.answers() >= 60);
    let mut noted = load.stop();
    noted.check_all_right();
    assert_eq!(history::check(&noted.records), Ok(()), "nobody has looked");
    assert_eq!(noted.read_back(&address), 0);
    assert!(history::check(&noted.records).expect_err("all is gone").contains("is no register"));
}

#[test]
fn a_client_whose_node_hangs_up_asks_another_under_the_same_idempotency_key() {
    let silent = FakeMain::start(|_| Vec::new());
    let added = json!({"message": "Added successfully", "replaced": false}).to_string();
    let good = FakeMain::start(move |_| fake_main::answer("201 Created", &[], added.as_bytes()));
    let nodes = [silent.address().to_owned(), good.address().to_owned(), ports::free_address()];
    let load =
        Load::start(&nodes, &Profile { clients: 2, mix: Mix::Puts, elsewhere: true, ..Profile::default() });
    wait_until("there were answers", START_DEADLINE, || load.answers() >= 60);
    let noted = load.stop();
    noted.check_all_right();
    assert!(noted.broken > 0 && noted.refused > 0, "{} {}", noted.broken, noted.refused);
    let key = |request: &fake_main::Arrived| request.header("Idempotency-Key").expect("a key").to_owned();
    let answered: Vec<String> = good.arrived().iter().map(key).collect();
    let unanswered: Vec<String> = silent.arrived().iter().map(key).collect();
    assert!(unanswered.iter().all(|key| answered.contains(key)), "each was sent again");
    let different: BTreeSet<&String> = answered.iter().collect();
    assert_eq!(different.len(), answered.len(), "and each is its own");
}
