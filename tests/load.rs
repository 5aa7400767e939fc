//! The clients that other tests let work on a cluster: they see what is wrong, and nothing where nothing is.

mod support;

use std::time::Duration;

use serde_json::json;
use support::cluster::Cluster;
use support::fake_main::{self, FakeMain};
use support::history;
use support::load::{Load, Profile};
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
