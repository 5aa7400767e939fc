//! How long nothing can be written when the leader dies: it is killed under load again and again, and each time started
//! again at once. Writers ask the other two nodes, since clients of the dead one have to go to them anyway.

use std::io;
use std::time::Duration;

use crossbeam_channel::after;
use evenkv::clock::now;

use crate::group::Group;
use crate::process::START;
use crate::report::{median, millis, verdict};
use crate::writers::{WRITERS, Writers};

/// Writes go on for this long before a leader is killed, and after it is ready again.
const CALM: Duration = Duration::from_millis(500);
/// A silence that is longer than this is too long.
const TOO_LONG: Duration = Duration::from_secs(1);
/// So many of ours may be.
const MOST_TOO_LONG: usize = 1;
/// A write that is not answered in this time (and up to 0.3 s more, see [`STAGGER`]) is tried again through the other
/// node: the request may have died with the leader, which is no reason to wait as long as a server would.
const PATIENCE: Duration = Duration::from_millis(100);
/// See [`Writers::stagger`].
const STAGGER: Duration = Duration::from_millis(20);

/// What came of killing leaders, one of each per kill.
#[derive(Default)]
struct Outcome {
    silences: Vec<Duration>,
    /// From the kill until the killed process did its part again.
    returns: Vec<Duration>,
    failures: u64,
}

/// Measures and prints; whether the target was met.
pub(crate) fn measure(kills: u64, etcd_kills: u64) -> io::Result<bool> {
    println!("{kills} kills of the leader of evenkv, {etcd_kills} of etcd's, under {WRITERS} writers ...");
    // Without ours etcd still tells what there is to reach.
    let ours = Group::of_evenkv().and_then(|group| kill_leaders(group, kills));
    let ours = ours.map_err(|error| eprintln!("load: evenkv: {error}")).ok();
    let etcd = match Group::of_etcd()? {
        Some(group) if etcd_kills > 0 => Some(kill_leaders(group, etcd_kills)?),
        _ => None,
    };
    println!();
    println!(
        "{:<9}{:>7}{:>16}{:>10}{:>10}{:>17}{:>18}",
        "", "kills", "silence p50 ms", "max ms", "over 1 s", "ready again s", "failed attempts"
    );
    if let Some(outcome) = &ours {
        outcome.print("evenkv");
    }
    match &etcd {
        Some(outcome) => outcome.print("etcd"),
        None => println!("etcd: not on this machine, or not wanted, so it was not measured"),
    }
    println!(
        "Silence: the longest time without an acknowledged write, from the kill until {CALM:?} after the killed one \
         was ready again. Failed attempts were made again after {PATIENCE:?} or more."
    );
    for (name, outcome) in [("evenkv", &ours), ("etcd", &etcd)] {
        if let Some(outcome) = outcome {
            println!("Silences of {name} in ms: {}", outcome.all_silences());
        }
    }
    println!();
    let Some(ours) = ours else { return Ok(verdict(false, "evenkv: not measured")) };
    let too_long = ours.too_long();
    let what = format!("{too_long} silences of {kills} over {TOO_LONG:?}, at most {MOST_TOO_LONG}");
    Ok(verdict(too_long <= MOST_TOO_LONG, &what))
}

fn kill_leaders(mut group: Group, kills: u64) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    for kill in 1..=kills {
        let add_number = |error: io::Error| io::Error::other(format!("kill {kill} of {kills}: {error}"));
        outcome.kill_leader(&mut group).map_err(add_number)?;
    }
    Ok(outcome)
}

impl Outcome {
    fn kill_leader(&mut self, group: &mut Group) -> io::Result<()> {
        let leader = group.leader()?;
        let nodes = group.addresses_without(leader);
        let writers = Writers { system: group.system, nodes, patience: PATIENCE, stagger: STAGGER };
        let ((killed, ready, end), written) = writers.write_while(|| {
            let _ = after(CALM).recv();
            let killed = now();
            group.crash(leader)?;
            group.wait_until_ready(leader, START)?;
            let ready = now();
            let _ = after(CALM).recv();
            Ok((killed, ready, now()))
        })?;
        self.silences.push(written.longest_silence(killed, end));
        self.returns.push(ready - killed);
        self.failures += written.failures;
        Ok(())
    }

    fn too_long(&self) -> usize {
        self.silences.iter().filter(|silence| **silence > TOO_LONG).count()
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<9}{:>7}{:>16.0}{:>10.0}{:>10}{:>17.1}{:>18}",
            self.silences.len(),
            median(self.silences.iter().map(|silence| millis(*silence))),
            self.silences.iter().map(|silence| millis(*silence)).fold(0.0, f64::max),
            self.too_long(),
            median(self.returns.iter().map(Duration::as_secs_f64)),
            self.failures,
        );
    }

    fn all_silences(&self) -> String {
        let texts = self.silences.iter().map(|silence| format!("{:.0}", millis(*silence)));
        texts.collect::<Vec<_>>().join(" ")
    }
}
