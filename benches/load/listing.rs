//! Pages of a listing by HTTP: 100 keys that begin alike, of 1,000,000; and the lines of all of them.

use std::io;
use std::time::Duration;

use evenkv::clock::now;

use crate::client::Connection;
use crate::fill;
use crate::group::Group;
use crate::process::{ONE_ANSWER, Process};
use crate::report::{median, millis, p99, verdict};
use crate::system::Request;

/// So many prefixes have so many keys each.
const PREFIXES: u64 = 10_000;
const KEYS_EACH: u64 = 100;
/// Pages that are asked for, of prefixes far from each other.
const PAGES: u32 = 2_000;
/// What 99 of 100 pages are to take at most.
const PAGE_TARGET: Duration = Duration::from_millis(5);

/// Measures and prints; whether the target was met.
pub(crate) fn measure() -> io::Result<bool> {
    println!("Pages of {KEYS_EACH} of {} keys, one after the other ...", PREFIXES * KEYS_EACH);
    println!("| asked | pages | median | p99 | at most | CPU of a page |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut p99s = Vec::new();
    for name in ["one node", "one of three shards", "leader of three replicas"] {
        let group = match name {
            "one node" => Group::single_node()?,
            "one of three shards" => Group::of_shards()?,
            _ => Group::of_evenkv()?,
        };
        // Neighbours do not come one after the other.
        let keys = (0..PREFIXES * KEYS_EACH).map(|number| key(number * 7_919 % (PREFIXES * KEYS_EACH)));
        fill::import(&group.processes, keys)?;
        let asked = if name == "leader of three replicas" { group.leader()? } else { 0 };
        let mut connection = Connection::open(group.processes[asked].address, ONE_ANSWER)?;
        for (what, query) in [("keys", ""), ("keys and values", "&values=true")] {
            let before = cpu_time(&group)?;
            let times = (0..PAGES)
                .map(|page| timed_page(&mut connection, u64::from(page) * 7_919 % PREFIXES, query))
                .collect::<io::Result<Vec<_>>>()?;
            let cpu = cpu_time(&group)?.saturating_sub(before) / PAGES;
            let middle = median(times.iter().map(|time| millis(*time)));
            let most = times.iter().max().map_or(f64::NAN, |time| millis(*time));
            let p99 = p99(times).expect("there are pages");
            println!(
                "| {name} | {what} | {middle:.2} ms | {:.2} ms | {most:.2} ms | {:.2} ms |",
                millis(p99),
                millis(cpu)
            );
            p99s.push((name, what, p99));
        }
    }
    println!();
    let mut are_met = true;
    for (name, what, p99) in p99s {
        are_met &= verdict(
            p99 <= PAGE_TARGET,
            &format!(
                "a page of {what}, {name}: p99 {:.2} ms, at most {:.0} ms",
                millis(p99),
                millis(PAGE_TARGET)
            ),
        );
    }
    Ok(are_met)
}

/// CPU time of all nodes so far.
fn cpu_time(group: &Group) -> io::Result<Duration> {
    group.processes.iter().map(Process::cpu_time).sum()
}

fn key(number: u64) -> String {
    format!("{}{:03}", prefix(number / KEYS_EACH), number % KEYS_EACH)
}

fn prefix(number: u64) -> String {
    format!("prefix-{number:05}.")
}

/// Asks for the keys under a prefix, checks that all of them come, and says how long that took.
fn timed_page(connection: &mut Connection, number: u64, query: &str) -> io::Result<Duration> {
    let prefix = prefix(number);
    let request = Request::new("GET", &format!("/v1/kv?prefix={prefix}{query}"), "");
    let start = now();
    let answer = connection.ask(&request)?;
    let took = now() - start;
    let page: serde_json::Value = serde_json::from_slice(&answer).map_err(io::Error::other)?;
    let rows = page["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    let listed = rows.iter().filter_map(|row| row["key"].as_str());
    let is_whole = listed.eq((0..KEYS_EACH).map(|place| key(number * KEYS_EACH + place)));
    if is_whole && page.get("next").is_none() {
        Ok(took)
    } else {
        Err(io::Error::other(format!("a page under {prefix} has other keys than it should")))
    }
}
