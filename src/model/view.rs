//! Which node answers for which part of the hash space.

use std::fmt;

use siphasher::sip128::SipHasher13;

use super::address::Address;
use super::hash::{HashRange, KeyHash};

/// The nodes, their shards, and who owns which range; unchanged for as long as an epoch lasts.
///
/// Ownership is an ordered table of ranges. It begins at 0, has no gap and no overlap, and two neighbours
/// never belong to the same shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The version of the view.
    pub epoch: u64,
    /// Replicas per shard.
    pub repl_factor: usize,
    /// The shards, sorted by id.
    pub shards: Vec<Shard>,
    /// Where each range begins, ascending from 0, and the index of the shard that owns it.
    starts: Vec<(u128, usize)>,
}

/// A part of the pairs, and the nodes that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The shard's name, from 1.
    pub id: u32,
    /// The nodes, in the order of the view.
    pub replicas: Vec<Address>,
}

/// Why a list of nodes makes no view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewError {
    /// There is no node.
    Empty,
    /// The factor is zero, or the number of nodes is no multiple of it.
    Uneven {
        /// How many nodes were named.
        nodes: usize,
        /// How many replicas each shard should have.
        repl_factor: usize,
    },
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a view needs at least one node"),
            Self::Uneven { nodes, repl_factor } => write!(
                f,
                "{nodes} nodes cannot be shared out among shards of {repl_factor} replicas: the number of \
                 nodes must be a multiple of the replication factor, and that at least 1"
            ),
        }
    }
}

impl std::error::Error for ViewError {}

impl View {
    /// The first view of a cluster: shards filled in the order of the list, the space cut evenly.
    ///
    /// # Errors
    /// When the nodes cannot be shared out evenly.
    pub fn first(nodes: &[Address], repl_factor: usize) -> Result<Self, ViewError> {
        if nodes.is_empty() {
            return Err(ViewError::Empty);
        }
        if repl_factor == 0 || !nodes.len().is_multiple_of(repl_factor) {
            return Err(ViewError::Uneven { nodes: nodes.len(), repl_factor });
        }
        let shards: Vec<Shard> = (1..)
            .zip(nodes.chunks(repl_factor))
            .map(|(id, replicas)| Shard { id, replicas: replicas.to_vec() })
            .collect();
        let starts = (0..shards.len()).map(|shard| (even_cut(shard, shards.len()), shard)).collect();
        Ok(Self { epoch: 1, repl_factor, shards, starts })
    }

    /// The index of the shard that owns a hash.
    pub fn owner(&self, hash: KeyHash) -> usize {
        let after = self.starts.partition_point(|(from, _)| *from <= hash.0);
        self.starts[after - 1].1
    }

    /// The ranges that a shard owns, by its index, ascending.
    pub fn ranges(&self, shard: usize) -> impl Iterator<Item = HashRange> {
        self.starts.iter().enumerate().filter(move |(_, (_, owner))| *owner == shard).map(
            |(row, (from, _))| {
                let last = self.starts.get(row + 1).map_or(u128::MAX, |(next, _)| next - 1);
                HashRange { from: *from, last }
            },
        )
    }

    /// All nodes, in the order of the view.
    pub fn nodes(&self) -> impl Iterator<Item = &Address> {
        self.shards.iter().flat_map(|shard| &shard.replicas)
    }

    /// The index of the shard that a node holds a replica of.
    pub fn shard_of(&self, node: &Address) -> Option<usize> {
        self.shards.iter().position(|shard| shard.replicas.contains(node))
    }

    /// 32 hexadecimal digits that are equal exactly for equal lists of nodes and equal factors.
    pub fn fingerprint(&self) -> String {
        let mut text = self.repl_factor.to_string();
        for node in self.nodes() {
            text.push(',');
            text.push_str(node.as_str());
        }
        let hash = SipHasher13::new().hash(text.as_bytes());
        debug_assert_eq!(hash.as_bytes().len(), 16);
        format!("{:016x}{:016x}", hash.h1, hash.h2)
    }
}

/// The first point of part `index` of `parts` equal parts of the space.
fn even_cut(index: usize, parts: usize) -> u128 {
    let (index, parts) = (index as u128, parts as u128);
    let (width, rest) = (u128::MAX / parts, u128::MAX % parts);
    // floor(index * 2^128 / parts), where 2^128 = parts * width + rest + 1
    index * width + index * (rest + 1) / parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(count: usize) -> Vec<Address> {
        (1..=count).map(|n| format!("node{n}").parse().unwrap()).collect()
    }

    #[test]
    fn shards_are_filled_in_the_order_of_the_list() {
        let view = View::first(&nodes(4), 2).unwrap();
        assert_eq!(view.shards[0].replicas, nodes(4)[..2]);
        assert_eq!(view.shards[1].replicas, nodes(4)[2..]);
        assert_eq!(view.shard_of(&nodes(4)[3]), Some(1));
    }

    #[test]
    fn nodes_that_cannot_be_shared_out_make_no_view() {
        assert_eq!(View::first(&[], 1), Err(ViewError::Empty));
        assert_eq!(View::first(&nodes(3), 2), Err(ViewError::Uneven { nodes: 3, repl_factor: 2 }));
        assert_eq!(View::first(&nodes(3), 0), Err(ViewError::Uneven { nodes: 3, repl_factor: 0 }));
    }

    #[test]
    fn the_fingerprint_tells_order_and_factor() {
        let of = |nodes: &[Address], factor| View::first(nodes, factor).unwrap().fingerprint();
        let mut turned = nodes(2);
        turned.reverse();
        assert_eq!(of(&nodes(2), 1), of(&nodes(2), 1));
        assert_ne!(of(&nodes(2), 1), of(&turned, 1));
        assert_ne!(of(&nodes(2), 1), of(&nodes(2), 2));
    }

    proptest! {
        #[test]
        fn each_point_is_owned_once_and_the_parts_are_even(count in 1_usize..65, point: u128) {
            let view = View::first(&nodes(count), 1).unwrap();
            let mut next = Some(0);
            for shard in 0..count {
                let ranges: Vec<HashRange> = view.ranges(shard).collect();
                prop_assert_eq!(ranges.len(), 1);
                prop_assert_eq!(Some(ranges[0].from), next);
                let width = ranges[0].last - ranges[0].from;
                prop_assert!(width.abs_diff(u128::MAX / count as u128) <= 1);
                prop_assert_eq!((ranges[0].from..=ranges[0].last).contains(&point), view.owner(KeyHash(point)) == shard);
                next = ranges[0].last.checked_add(1);
            }
            prop_assert_eq!(next, None);
        }
    }
}
