//! Whether what a view change brings to its nodes fits there, before anything is moved.
//!
//! A plan is exact in pairs and knows nothing of bytes: those of a shard are spread evenly over its pairs here, and a margin is kept. What a node gives away is not counted for it:
//! it is dropped only after what comes in its place is there.

use std::collections::BTreeMap;

use super::address::Address;
use super::plan::Plan;
use super::room::PAIR_OVERHEAD;
use super::view::View;

/// One part in so many is added to what is needed.
const MARGIN: u64 = 8;

/// A node that has not the room for what a plan brings to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// The node.
    pub node: Address,
    /// What would come, in bytes.
    pub needed: u64,
    /// How many bytes more it takes.
    pub left: u64,
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, needed, left } = self;
        write!(
            f,
            "{node} has no room for what it would get: about {needed} bytes, and its MAX_MEMORY leaves {left}, so {} are missing; \
             raise it, delete pairs, or name more nodes",
            needed - left
        )
    }
}

/// The first node of the new view that lacks room. `old` is the view with the nodes that really hold its shards, `bytes` says of each of its shards what its keys and values have, and `left`
/// how many bytes more a node takes. What is not known bounds nothing.
pub fn lack(plan: &Plan, old: &View, bytes: &[Option<u64>], left: &BTreeMap<Address, u64>) -> Option<Lack> {
    let index_of = |group: u64| old.shards.iter().position(|shard| shard.group == group);
    let needed = |group: u64, pairs: u64| {
        let Some(from) = index_of(group) else { return 0 };
        let counted = plan.counts[from].max(1);
        let of_pairs = u128::from(bytes[from].unwrap_or(0)) * u128::from(pairs) / u128::from(counted);
        let of_pairs = u64::try_from(of_pairs).unwrap_or(u64::MAX);
        let needed = of_pairs.saturating_add(pairs.saturating_mul(PAIR_OVERHEAD));
        needed.saturating_add(needed / MARGIN)
    };
    let mut coming: BTreeMap<&Address, u64> = BTreeMap::new();
    for shard in &plan.view.shards {
        let moved: u64 = plan
            .moves
            .iter()
            .filter(|step| step.to == shard.group)
            .map(|step| needed(step.from, step.pairs))
            .sum();
        let before = index_of(shard.group);
        let given: u64 =
            plan.moves.iter().filter(|step| step.from == shard.group).map(|step| step.pairs).sum();
        let kept = before.map_or(0, |before| needed(shard.group, plan.counts[before].saturating_sub(given)));
        for node in &shard.replicas {
            let holds = before.is_some_and(|before| old.shards[before].replicas.contains(node));
            *coming.entry(node).or_default() += if holds { moved } else { moved.saturating_add(kept) };
        }
    }
    coming.into_iter().find_map(|(node, needed)| {
        let left = *left.get(node).filter(|left| **left < needed)?;
        Some(Lack { node: node.clone(), needed, left })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::Move;
    use crate::model::range::HashRange;

    fn nodes(list: &str) -> Vec<Address> {
        Address::parse_list(list).unwrap()
    }

    /// What `count` pairs of 1,000 bytes need with the margin.
    fn needed(count: u64) -> u64 {
        let bytes = count * (1000 + PAIR_OVERHEAD);
        bytes + bytes / MARGIN
    }

    #[test]
    fn a_node_lacks_room_for_what_comes_to_it_alone() {
        let old = View::first(&nodes("a,b"), 1).unwrap();
        let (from, to) = (old.shards[0].group, old.shards[1].group);
        let plan = |list: &str, factor| {
            let mut view = View::first(&nodes(list), factor).unwrap();
            (view.shards[0].group, view.shards[1].group) = (from, to);
            let step = Move { range: HashRange::all(), from, to, pairs: 10 };
            let counts = vec![100, 80];
            let (targets, keys) = (vec![90, 90], 180);
            Plan { view, moves: vec![step], counts, targets, keys, moved: 10, minimum: 10, copied: 10 }
        };
        let bytes = [Some(100_000), Some(80_000)];
        for (list, factor, node, wanted, what) in [
            ("a,b", 1, "a", 0, "what gives gets nothing"),
            ("a,b", 1, "b", needed(10), "what takes gets what is moved"),
            ("a,c", 1, "c", needed(80) + needed(10), "a new node gets the whole shard"),
            ("a,c,b,d", 2, "c", needed(90), "and what is left of one that gives"),
            ("a,c,b,d", 2, "b", needed(10), "beside a new replica"),
            ("b,a", 1, "a", needed(80) + needed(10), "who changes sides holds both for a while"),
        ] {
            let plan = plan(list, factor);
            let node = nodes(node).remove(0);
            let lack = |left| lack(&plan, &old, &bytes, &[(node.clone(), left)].into());
            assert_eq!(lack(wanted), None, "{what}");
            if wanted > 0 {
                let left = wanted - 1;
                assert_eq!(lack(left), Some(Lack { node: node.clone(), needed: wanted, left }), "{what}");
            }
        }
        let plan = plan("a,b", 1);
        assert_eq!(lack(&plan, &old, &bytes, &BTreeMap::new()), None, "no node is bounded");
        let left = [(nodes("b").remove(0), 10 * PAIR_OVERHEAD * 2)].into();
        assert_eq!(lack(&plan, &old, &[None, None], &left), None, "no shard tells its bytes");
    }
}
