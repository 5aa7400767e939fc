//! Which shards stay, come and go in a view change, and which nodes hold them.

use std::collections::{HashMap, HashSet};

use super::address::Address;
use super::view::{Shard, View};

/// Where each of the wanted nodes stands in their list.
type Places<'a> = HashMap<&'a Address, usize>;

/// The shards of a view change: those of the old view, in its order, then the new ones.
pub(super) struct Membership {
    /// For each shard of the old view, where it stands in `shards`; nothing where it goes.
    pub(super) stays_as: Vec<Option<usize>>,
    /// The shards of the new view, by id from 1.
    pub(super) shards: Vec<Shard>,
    /// The number of the next new group.
    pub(super) next_group: u64,
}

impl Membership {
    /// Finds the shards that `wanted` nodes make, where `counts` are the pairs of the old shards.
    ///
    /// At factor 1 a shard is its node and goes with it. At a higher factor a shard stays, even without
    /// any of its nodes, as long as there are shards to be; if there are fewer than before, those stay that
    /// keep most nodes, then those with most pairs.
    pub(super) fn new(old: &View, wanted: &[Address], repl_factor: usize, counts: &[u64]) -> Self {
        let size = wanted.len() / repl_factor;
        let places: Places = wanted.iter().zip(0..).collect();
        let survivors =
            |shard: usize| old.shards[shard].replicas.iter().filter(|node| places.contains_key(node)).count();
        // One whose pairs are given up has no replica left that others could be made of.
        let mut staying: Vec<usize> =
            (0..old.shards.len()).filter(|shard| !old.shards[*shard].replicas.is_empty()).collect();
        if old.repl_factor == 1 && repl_factor == 1 {
            staying.retain(|shard| survivors(*shard) > 0);
        }
        staying.sort_by_key(|shard| {
            let kept = survivors(*shard).min(repl_factor);
            (std::cmp::Reverse((kept, counts[*shard])), old.shards[*shard].id)
        });
        staying.truncate(size);
        staying.sort_by_key(|shard| old.shards[*shard].id);

        let ids = ids(&staying.iter().map(|shard| old.shards[*shard].id).collect::<Vec<_>>(), size);
        let mut next_group = old.next_group;
        let mut shards: Vec<(Option<usize>, Shard)> = Vec::with_capacity(size);
        let mut kept = kept_replicas(old, &staying, &places, repl_factor);
        for (index, id) in ids.into_iter().enumerate() {
            let from = staying.get(index).copied();
            let group = from.map_or(next_group, |shard| old.shards[shard].group);
            next_group = next_group.max(group + 1);
            let replicas = kept.get_mut(index).map(std::mem::take).unwrap_or_default();
            shards.push((from, Shard { id, group, replicas }));
        }
        shards.sort_by_key(|(_, shard)| shard.id);
        let mut stays_as = vec![None; old.shards.len()];
        for (index, (from, _)) in shards.iter().enumerate() {
            if let Some(shard) = from {
                stays_as[*shard] = Some(index);
            }
        }
        let mut shards = shards.into_iter().map(|(_, shard)| shard).collect::<Vec<_>>();
        fill(&mut shards, wanted, &places, repl_factor);
        Self { stays_as, shards, next_group }
    }
}

/// The wanted nodes that each of the staying shards keeps: they stay where they are, in the order of the list and as many as fit.
///
/// A view change that was superseded may have left a node with replicas of several shards. It keeps that of one, where possible of one
/// that keeps few others.
fn kept_replicas(old: &View, staying: &[usize], places: &Places, repl_factor: usize) -> Vec<Vec<Address>> {
    let held = |shard: &usize| {
        let replicas = old.shards[*shard].replicas.iter();
        let mut held: Vec<&Address> = replicas.filter(|node| places.contains_key(node)).collect();
        held.sort_by_key(|node| places[node]);
        held
    };
    let held: Vec<Vec<&Address>> = staying.iter().map(held).collect();
    let mut kept = vec![Vec::new(); staying.len()];
    let mut taken: HashSet<&Address> = HashSet::new();
    let mut poorest: Vec<usize> = (0..staying.len()).collect();
    poorest.sort_by_key(|at| held[*at].len());
    for at in poorest {
        let free = held[at].iter().copied().filter(|node| !taken.contains(node));
        let keeps: Vec<&Address> = free.take(repl_factor).collect();
        kept[at] = keeps.iter().copied().cloned().collect();
        taken.extend(keeps);
    }
    kept
}

/// The ids of the staying shards, given with their present ids ascending, and of the new ones after them.
fn ids(present: &[u32], size: usize) -> Vec<u32> {
    let fits = |id: u32| id as usize <= size;
    let taken: HashSet<u32> = present.iter().copied().collect();
    let mut free = (1..).filter(|id| !taken.contains(id));
    let new = std::iter::repeat_n(u32::MAX, size - present.len());
    let old_and_new = present.iter().copied().chain(new);
    old_and_new.map(|id| if fits(id) { id } else { free.next().expect("numbers do not end") }).collect()
}

/// Puts the nodes that hold no shard yet, in the order of the list, where replicas are missing.
fn fill(shards: &mut [Shard], wanted: &[Address], places: &Places, repl_factor: usize) {
    let held: HashSet<&Address> = shards.iter().flat_map(|shard| &shard.replicas).collect();
    let free = wanted.iter().filter(|node| !held.contains(node)).cloned().collect::<Vec<_>>();
    let mut free = free.into_iter();
    for shard in shards {
        let missing = repl_factor - shard.replicas.len();
        shard.replicas.extend(free.by_ref().take(missing));
        assert_eq!(shard.replicas.len(), repl_factor, "the nodes can be shared out evenly");
        shard.replicas.sort_by_key(|node| places[node]);
    }
    assert_eq!(free.len(), 0, "every wanted node holds a shard");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &str) -> Vec<Address> {
        Address::parse_list(names).unwrap()
    }

    fn text(shards: &[Shard]) -> String {
        let host = |node: &Address| node.host().to_owned();
        let shard = |shard: &Shard| {
            format!(
                "{}={}@{}",
                shard.id,
                shard.replicas.iter().map(host).collect::<Vec<_>>().join("+"),
                shard.group
            )
        };
        shards.iter().map(shard).collect::<Vec<_>>().join(" ")
    }

    /// First view, its factor, pairs per shard, wanted nodes, factor, and the shards as id=nodes@group.
    type Row = (&'static str, usize, &'static [u64], &'static str, usize, &'static str);

    #[test]
    fn ids_are_kept_where_they_fit_and_replicas_where_they_are() {
        let table: [Row; 15] = [
            ("a,b", 1, &[5, 5], "a,b,c", 1, "1=a@1 2=b@2 3=c@3"),
            ("a,b", 1, &[5, 5], "c,b,a", 1, "1=a@1 2=b@2 3=c@3"),
            ("a,b,c", 1, &[5, 5, 5], "b,c", 1, "1=c@3 2=b@2"),
            ("a,b,c", 1, &[5, 5, 5], "c", 1, "1=c@3"),
            ("a,b,c", 1, &[5, 5, 5], "d,c,e", 1, "1=d@4 2=e@5 3=c@3"),
            ("a,b", 1, &[5, 5], "c,d", 1, "1=c@3 2=d@4"),
            ("a,b,c,d", 2, &[5, 5], "d,c,b,a", 2, "1=b+a@1 2=d+c@2"),
            ("a,b,c,d", 2, &[5, 5], "a,c,e,f", 2, "1=a+e@1 2=c+f@2"),
            ("a,b,c,d", 2, &[5, 5], "e,f,g,h", 2, "1=e+f@1 2=g+h@2"),
            ("a,b,c,d", 2, &[5, 5], "a,d,e,f,g,h", 2, "1=a+e@1 2=d+f@2 3=g+h@3"),
            ("a,b,c,d,e,f", 2, &[5, 6, 7], "a,c,e,f", 2, "1=e+f@3 2=a+c@2"),
            ("a,b,c,d,e,f", 2, &[6, 5, 7], "a,c,e,f", 2, "1=a+c@1 2=e+f@3"),
            ("a,b,c,d", 1, &[1, 4, 3, 2], "a,b,c,d", 2, "1=a+c@3 2=b+d@2"),
            ("a,b,c,d", 2, &[5, 5], "a,b,c,d", 1, "1=a@1 2=c@2 3=b@3 4=d@4"),
            ("a,b,c,d,e,f", 3, &[5, 5], "a,b,c,d,e,f", 2, "1=a+b@1 2=d+e@2 3=c+f@3"),
        ];
        for (first, old_factor, counts, wanted, factor, shards) in table {
            let old = View::first(&nodes(first), old_factor).unwrap();
            let got = Membership::new(&old, &nodes(wanted), factor, counts);
            assert_eq!(text(&got.shards), shards, "{first} at {old_factor} to {wanted} at {factor}");
            for (index, stays_as) in got.stays_as.iter().enumerate() {
                let same = stays_as.map(|at| got.shards[at].group);
                assert!(same.is_none_or(|group| group == old.shards[index].group));
            }
        }
    }

    #[test]
    fn a_node_that_holds_replicas_of_several_shards_keeps_one() {
        let mut old = View::first(&nodes("a,b,c,d"), 2).unwrap();
        // As a superseded view change to factor 1 leaves it: shard 3 owns something by then.
        old.shards.push(Shard { id: 3, group: 3, replicas: nodes("b") });
        let table = [
            ("a,b,c,d", 2, "1=a+b@1 2=c+d@2"),
            ("b,c", 1, "1=b@1 2=c@2"),
            ("a,b,c", 1, "1=a@1 2=c@2 3=b@3"),
            ("a,b,c,d,e,f", 2, "1=a+e@1 2=c+d@2 3=b+f@3"),
        ];
        for (wanted, factor, shards) in table {
            let got = Membership::new(&old, &nodes(wanted), factor, &[5, 5, 5]);
            assert_eq!(text(&got.shards), shards, "{wanted} at {factor}");
        }
    }

    #[test]
    fn a_shard_that_is_given_up_is_replaced_by_a_new_one() {
        let mut old = View::first(&nodes("a,b,c,d"), 2).unwrap();
        old.shards[1].replicas.clear();
        let got = Membership::new(&old, &nodes("a,b,c,d"), 2, &[5, 0]);
        assert_eq!(text(&got.shards), "1=a+b@1 2=c+d@3");
    }

    #[test]
    fn the_number_of_a_group_that_went_is_not_used_again() {
        let mut view = View::first(&nodes("a,b"), 1).unwrap();
        for (wanted, shards) in [
            ("a", "1=a@1"),
            ("a,b", "1=a@1 2=b@3"),
            ("c,d", "1=c@4 2=d@5"),
            ("d", "1=d@5"),
            ("d,a", "1=d@5 2=a@6"),
        ] {
            let got = Membership::new(&view, &nodes(wanted), 1, &vec![0; view.shards.len()]);
            assert_eq!(text(&got.shards), shards);
            (view.shards, view.next_group) = (got.shards, got.next_group);
        }
    }
}
