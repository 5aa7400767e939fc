//! Addresses that more than one process claims to have.
//!
//! Each start of a node has a random id, which it names when it asks somebody who he is, and when it is asked. After a restart the former id is
//! heard no more. So an address at which a former id is heard again and again has two processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use super::calls::ask_own_address;
use super::state::Node;
use crate::clock::now;
use crate::model::address::Address;

/// How often a node looks whether its address leads to itself.
const OWN_ADDRESS_CHECK: Duration = Duration::from_secs(10);
/// Two starts must be heard in turns for this long: what an earlier start has asked may lie in queues for a while.
const IN_TURNS: Duration = Duration::from_secs(2);
/// When only one was heard for this long, the other one is gone.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// So many starts that another one followed are remembered of each address, the latest ones.
const FORMER_STARTS: usize = 4;

/// Looks whether the node's address leads to itself, until the channel closes. On a thread of its own, since an address that is no good may take
/// its time.
pub fn watch_own_address(node: &Node, stop: &Receiver<()>) {
    loop {
        ask_own_address(node);
        if stop.recv_timeout(OWN_ADDRESS_CHECK) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// What was heard of who has which address.
#[derive(Default)]
pub(super) struct Duplicates {
    /// By the other nodes that this one has to do with.
    others: Mutex<BTreeMap<Address, Heard>>,
    /// Another start with this node's own address, and when it was heard of.
    own: Mutex<Option<(u64, Instant)>>,
}

/// The starts of a node that were heard of at one address.
struct Heard {
    /// The last one, and since when.
    last: (u64, Instant),
    /// Those before it.
    former: Vec<u64>,
    /// Former ones were heard again since the first of these moments, and until the second.
    again: Option<(Instant, Instant)>,
    /// Whether the log says so already.
    said: bool,
}

impl Heard {
    fn of(start: u64) -> Self {
        Self { last: (start, now()), former: Vec::new(), again: None, said: false }
    }

    /// Notes that a start was heard of which had not ended at a moment.
    fn note(&mut self, start: u64, alive: Instant) {
        // Heard late, it may have ended before the last one began.
        if start == self.last.0 || alive < self.last.1 {
            return;
        }
        if self.again.is_some_and(|(_, last)| now() - last >= FORGOTTEN) {
            (self.again, self.said) = (None, false);
        }
        if self.former.contains(&start) {
            let since = self.again.map_or(now(), |(first, _)| first);
            self.again = Some((since, now()));
            self.former.retain(|former| *former != start);
        }
        self.former.push(self.last.0);
        if self.former.len() > FORMER_STARTS {
            self.former.remove(0);
        }
        self.last = (start, now());
    }

    /// The two starts that are heard in turns, if there are two.
    fn both(&self) -> Option<[u64; 2]> {
        let (first, last) = self.again?;
        let mut both = [*self.former.last()?, self.last.0];
        both.sort_unstable();
        (last - first >= IN_TURNS && now() - last < FORGOTTEN).then_some(both)
    }
}

impl Node {
    /// Notes that a start of a node says that this is its address, and was there at a moment.
    pub fn note_start_at(&self, address: &Address, start: u64, alive: Instant) {
        if *address == self.address {
            return self.note_own_address(start);
        }
        let mut others = self.duplicates.others.lock();
        if !others.contains_key(address) {
            let known = self.related_nodes();
            others.retain(|node, _| known.contains(node));
            if known.contains(address) {
                others.insert(address.clone(), Heard::of(start));
            }
            return;
        }
        let Some(heard) = others.get_mut(address) else { return };
        heard.note(start, alive);
        if let Some(starts) = heard.both().filter(|_| !heard.said) {
            heard.said = true;
            log::warn!("{}", doubled(address, starts));
        }
    }

    /// Notes which start has this node's own address.
    fn note_own_address(&self, start: u64) {
        if start == self.incarnation {
            return;
        }
        let mut own = self.duplicates.own.lock();
        if own.is_none_or(|(known, when)| known != start || now() - when >= FORGOTTEN) {
            log::warn!("{}", doubled(&self.address, [self.incarnation, start]));
        }
        *own = Some((start, now()));
    }

    /// Which addresses more than one process has, a sentence each.
    pub fn duplicates(&self) -> Vec<String> {
        let own = self.duplicates.own.lock().filter(|(_, when)| now() - *when < FORGOTTEN);
        let own = own.map(|(start, _)| doubled(&self.address, [self.incarnation, start]));
        let others = self.duplicates.others.lock();
        let others = others.iter().filter_map(|(node, heard)| Some(doubled(node, heard.both()?)));
        own.into_iter().chain(others).collect()
    }

    /// The nodes that this one may be asked by, or ask, again and again.
    fn related_nodes(&self) -> BTreeSet<Address> {
        let state = self.state();
        let of_state = state.iter().flat_map(|state| state.nodes().into_iter().chain(state.former.clone()));
        of_state.chain(self.seeds()).collect()
    }
}

fn doubled(address: &Address, [one, other]: [u64; 2]) -> String {
    format!(
        "two processes have the ADDRESS {address}, those that name the starts {one:016x} and {other:016x} in the first line of their logs: \
         stop one of them, or give it an ADDRESS of its own"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::simulated;

    /// At each of these seconds a start is heard of, which was there so many seconds ago.
    fn heard(events: &[(u64, u64, u64)]) -> Heard {
        simulated::stop();
        let began = now();
        let mut heard = Heard::of(events[0].1);
        for (second, start, ago) in &events[1..] {
            simulated::advance(Duration::from_secs(*second).saturating_sub(now() - began));
            let there =
                now().checked_sub(Duration::from_secs(*ago)).expect("a clock that has run for a while");
            heard.note(*start, there);
        }
        heard
    }

    #[test]
    fn two_starts_are_there_when_both_are_heard_again_and_again() {
        type Row<'a> = (&'a str, &'a [(u64, u64, u64)], Option<[u64; 2]>);
        let table: &[Row] = &[
            ("one start", &[(0, 1, 0), (9, 1, 0)], None),
            ("a restart", &[(0, 1, 0), (5, 2, 0), (9, 2, 0)], None),
            ("many restarts", &[(0, 1, 0), (3, 2, 0), (6, 3, 0), (9, 4, 0)], None),
            ("what was asked before the restart", &[(0, 1, 0), (5, 2, 0), (9, 1, 6), (12, 2, 0)], None),
            (
                "what lay in a queue",
                &[(0, 1, 0), (5, 2, 0), (5, 1, 0), (5, 2, 0), (6, 1, 0), (6, 2, 0)],
                None,
            ),
            ("in turns", &[(0, 2, 0), (1, 1, 0), (2, 2, 0), (4, 1, 0)], Some([1, 2])),
            (
                "three in turns",
                &[(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 1, 0), (4, 2, 0), (5, 3, 0)],
                Some([2, 3]),
            ),
            ("long ago", &[(0, 1, 0), (1, 2, 0), (2, 1, 0), (4, 2, 0), (34, 2, 0)], None),
            ("anew", &[(0, 1, 0), (1, 2, 0), (2, 1, 0), (4, 2, 0), (40, 1, 0)], None),
        ];
        for (name, events, wanted) in table {
            assert_eq!(heard(events).both(), *wanted, "{name}");
            simulated::end();
        }
    }
}
