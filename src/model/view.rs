//! Which node answers for which part of the hash space.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::address::{Address, MOST_NODES, first_repeated};
use super::hash::KeyHash;
use super::ownership::Ownership;
use super::range::{HashRange, Point};

/// The most replicas of a shard.
pub const MOST_REPLICAS: usize = 64;

/// The nodes, their shards, and who owns which range; unchanged for as long as an epoch lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The version of the view.
    pub epoch: u64,
    /// Replicas per shard.
    pub repl_factor: usize,
    /// The shards, sorted by id.
    pub shards: Vec<Shard>,
    /// Which range belongs to which shard, by its index in `shards`.
    pub ownership: Ownership,
    /// The number of the next group: greater than that of every group there has ever been.
    pub next_group: u64,
}

/// A part of the pairs, and the nodes that hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The shard's name: after every view change the shards are 1 to their number.
    pub id: u32,
    /// The number of the group that holds the pairs: it stays while the id may change, and is never reused.
    pub group: u64,
    /// The nodes, in the order of the view.
    pub replicas: Vec<Address>,
}

/// Why a list of nodes makes no view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewError {
    /// There is no node.
    Empty,
    /// So many nodes are more than a view can have.
    TooMany(usize),
    /// So many replicas are more than a shard can have.
    TooManyReplicas(usize),
    /// The factor is zero, or the number of nodes is no multiple of it.
    Uneven {
        /// How many nodes were named.
        nodes: usize,
        /// How many replicas each shard should have.
        repl_factor: usize,
    },
    /// A node is named twice.
    Repeated(Address),
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a view needs at least one node"),
            Self::TooMany(nodes) => write!(f, "{nodes} nodes are named: allowed are {MOST_NODES} at most"),
            Self::TooManyReplicas(repl_factor) => {
                write!(
                    f,
                    "repl-factor is {repl_factor}: allowed are {MOST_REPLICAS} replicas of a shard at most"
                )
            }
            Self::Uneven { nodes, repl_factor } => write!(
                f,
                "{nodes} nodes cannot be shared out among shards of {repl_factor} replicas: the number of \
                 nodes must be a multiple of the replication factor, and that at least 1"
            ),
            Self::Repeated(node) => write!(f, "{node} is named twice: each node may be named once"),
        }
    }
}

impl std::error::Error for ViewError {}

impl View {
    /// The first view of a cluster: shards filled in the order of the list, the space cut evenly.
    ///
    /// # Errors
    /// When [`Self::check`] finds the nodes wrong.
    pub fn first(nodes: &[Address], repl_factor: usize) -> Result<Self, ViewError> {
        Self::check(nodes, repl_factor)?;
        let shards: Vec<Shard> = (1..)
            .zip(nodes.chunks(repl_factor))
            .map(|(id, replicas)| Shard { id, group: u64::from(id), replicas: replicas.to_vec() })
            .collect();
        let cut = |shard| (Point::before_hash(even_cut(shard, shards.len())), shard);
        let ownership = Ownership::new((0..shards.len()).map(cut));
        let next_group = shards.len() as u64 + 1;
        Ok(Self { epoch: 1, repl_factor, shards, ownership, next_group })
    }

    /// Whether nodes can be shared out among shards.
    ///
    /// # Errors
    /// When there is none or there are too many, one is named twice, their number is no multiple of the factor, or that is too large.
    pub fn check(nodes: &[Address], repl_factor: usize) -> Result<(), ViewError> {
        if nodes.is_empty() {
            return Err(ViewError::Empty);
        }
        if nodes.len() > MOST_NODES {
            return Err(ViewError::TooMany(nodes.len()));
        }
        if repl_factor > MOST_REPLICAS {
            return Err(ViewError::TooManyReplicas(repl_factor));
        }
        if repl_factor == 0 || !nodes.len().is_multiple_of(repl_factor) {
            return Err(ViewError::Uneven { nodes: nodes.len(), repl_factor });
        }
        match first_repeated(nodes) {
            Some(node) => Err(ViewError::Repeated(node.clone())),
            None => Ok(()),
        }
    }

    /// The index of the shard that owns a key.
    pub fn owner(&self, hash: KeyHash, key: &[u8]) -> usize {
        self.ownership.owner(hash, key)
    }

    /// The ranges that a shard owns, by its index, ascending.
    pub fn ranges(&self, shard: usize) -> impl Iterator<Item = HashRange> {
        self.ownership.ranges(shard)
    }

    /// All nodes, in the order of the view.
    pub fn nodes(&self) -> impl Iterator<Item = &Address> {
        self.shards.iter().flat_map(|shard| &shard.replicas)
    }

    /// The index of the shard that a node holds a replica of.
    pub fn shard_of(&self, node: &Address) -> Option<usize> {
        self.shards.iter().position(|shard| shard.replicas.contains(node))
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
        assert_eq!(View::first(&nodes(1025), 1), Err(ViewError::TooMany(1025)));
        assert_eq!(View::first(&nodes(65), 65), Err(ViewError::TooManyReplicas(65)));
        assert_eq!(View::first(&nodes(1024), 64).unwrap().shards.len(), 16);
        let twice = [nodes(2), nodes(1)].concat();
        assert_eq!(View::first(&twice, 1), Err(ViewError::Repeated(nodes(1)[0].clone())));
    }

    proptest! {
        #[test]
        fn each_point_is_owned_once_and_the_parts_are_even(count in 1_usize..65, point: u128) {
            let view = View::first(&nodes(count), 1).unwrap();
            let mut next = Some(Point::start());
            for shard in 0..count {
                let ranges: Vec<HashRange> = view.ranges(shard).collect();
                prop_assert_eq!(ranges.len(), 1);
                prop_assert_eq!(Some(&ranges[0].from), next.as_ref());
                let end = ranges[0].to.as_ref().map_or(0, |to| to.hash);
                let width = end.wrapping_sub(ranges[0].from.hash).wrapping_sub(1);
                prop_assert!(width.abs_diff(u128::MAX / count as u128) <= 1);
                let hash = KeyHash(point);
                prop_assert_eq!(ranges[0].contains(hash, b"k"), view.owner(hash, b"k") == shard);
                next.clone_from(&ranges[0].to);
            }
            prop_assert_eq!(next, None);
        }
    }
}
