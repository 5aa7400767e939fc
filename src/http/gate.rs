//! No node that is slow to answer gets more than half of a lane's workers.
//!
//! A request for a key of another node holds its worker until that node answers. If that node hangs, all workers
//! would soon wait for it, and keys of other nodes would wait with them. So further requests for it are parked, and
//! a worker that comes back from the node takes the next one along.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use crate::model::address::Address;

/// Counts, per node, the workers of one lane that are there, and parks what is too much.
pub struct Gate<T> {
    nodes: Mutex<HashMap<Address, Node<T>>>,
    limit: usize,
    queue_length: usize,
}

struct Node<T> {
    inside: usize,
    parked: VecDeque<T>,
}

/// What to do with a request for a node.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<T> {
    /// Go on, and call [`Gate::leave`] afterwards.
    Enter(T),
    /// Nothing: another worker will take it along.
    Parked,
    /// Refuse it: too many wait already.
    Full(T),
}

impl<T> Gate<T> {
    /// A gate for a lane with so many workers, behind which so many requests per node may wait.
    pub fn new(workers: usize, queue_length: usize) -> Self {
        Self { nodes: Mutex::default(), limit: (workers / 2).max(1), queue_length }
    }

    /// Asks to go to a node.
    pub fn enter(&self, node: &Address, request: T) -> Entry<T> {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(node) else {
            nodes.insert(node.clone(), Node { inside: 1, parked: VecDeque::new() });
            return Entry::Enter(request);
        };
        if node.inside < self.limit {
            node.inside += 1;
            Entry::Enter(request)
        } else if node.parked.len() < self.queue_length {
            node.parked.push_back(request);
            Entry::Parked
        } else {
            Entry::Full(request)
        }
    }

    /// Comes back from a node: the request to take along to it, as if it had entered.
    pub fn leave(&self, node: &Address) -> Option<T> {
        let mut nodes = self.nodes.lock();
        let node = nodes.get_mut(node).expect("who leaves has entered");
        let next = node.parked.pop_front();
        if next.is_none() {
            node.inside -= 1;
        }
        next
    }

    /// Takes out of the parked requests those of which `is_late` says that they have waited for too long.
    pub fn take_late(&self, is_late: impl Fn(&T) -> bool) -> Vec<T> {
        let mut late = Vec::new();
        for node in self.nodes.lock().values_mut() {
            if node.parked.iter().any(&is_late) {
                let (over, rest) =
                    std::mem::take(&mut node.parked).into_iter().partition::<Vec<_>, _>(&is_late);
                late.extend(over);
                node.parked = rest.into();
            }
        }
        late
    }

    /// How many requests are parked.
    pub fn parked(&self) -> usize {
        self.nodes.lock().values().map(|node| node.parked.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_workers_may_be_at_one_node() {
        let (a, b): (Address, Address) = ("a".parse().unwrap(), "b".parse().unwrap());
        let gate = Gate::new(4, 1);
        assert_eq!(gate.enter(&a, 1), Entry::Enter(1));
        assert_eq!(gate.enter(&a, 2), Entry::Enter(2));
        assert_eq!(gate.enter(&a, 3), Entry::Parked);
        assert_eq!(gate.enter(&a, 4), Entry::Full(4));
        assert_eq!(gate.enter(&b, 5), Entry::Enter(5));
        assert_eq!(gate.leave(&a), Some(3));
        assert_eq!(gate.enter(&a, 6), Entry::Parked);
        assert_eq!(gate.leave(&a), Some(6));
        assert_eq!(gate.leave(&a), None);
        assert_eq!(gate.leave(&a), None);
        assert_eq!(gate.enter(&a, 7), Entry::Enter(7));
        assert_eq!(gate.parked(), 0);
    }

    #[test]
    fn what_was_parked_for_too_long_is_taken_out() {
        let a: Address = "a".parse().unwrap();
        let gate = Gate::new(1, 3);
        assert_eq!(gate.enter(&a, 1), Entry::Enter(1));
        for parked in 2..5 {
            assert_eq!(gate.enter(&a, parked), Entry::Parked);
        }
        assert_eq!(gate.take_late(|number| *number < 4), [2, 3]);
        assert_eq!(gate.take_late(|number| *number < 4), [0; 0]);
        assert_eq!(gate.leave(&a), Some(4));
        assert_eq!(gate.leave(&a), None);
    }
}
