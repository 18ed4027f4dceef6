//! The labelled hash tree of the Internet Computer's certificates ("state tree"), and pruned views of it.
//!
//! A `BTreeMap` keeps the labels sorted, which the specification demands and verifiers rely on: a label is proven
//! absent by its two neighbours. (An unsorted tree is one of the defects listed in FACTS 3.)

use std::collections::{BTreeMap, BTreeSet};

use ic_certification::hash_tree::{HashTree, empty, fork, label, leaf, pruned};
use sha2::{Digest, Sha256};

type Hash = [u8; 32];

/// A path in the tree.
pub(crate) type Path = Vec<Vec<u8>>;

/// A tree whose maps are sorted by label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A value.
    Leaf(Vec<u8>),
    /// Labelled subtrees.
    Map(BTreeMap<Vec<u8>, Node>),
}

impl Default for Node {
    fn default() -> Self {
        Self::Map(BTreeMap::new())
    }
}

impl Node {
    /// Puts a value at a path, making the maps on the way. A leaf in the way becomes a map.
    pub(crate) fn insert(&mut self, path: &[&[u8]], value: Vec<u8>) {
        let Some((first, rest)) = path.split_first() else {
            *self = Self::Leaf(value);
            return;
        };
        if let Self::Leaf(_) = self {
            *self = Self::default();
        }
        if let Self::Map(map) = self {
            map.entry(first.to_vec()).or_default().insert(rest, value);
        }
    }

    /// The root hash.
    pub(crate) fn digest(&self) -> Hash {
        match self {
            Self::Leaf(value) => hash("leaf", &[value]),
            Self::Map(map) => digest_of(&map.iter().collect::<Vec<_>>()),
        }
    }

    /// The tree with everything pruned that the paths don't ask for. A path that ends at a map reveals all of it; a
    /// path to nothing reveals the neighbours, which proves that nothing is there.
    pub(crate) fn witness(&self, paths: &[&[Vec<u8>]]) -> HashTree<Vec<u8>> {
        let map = match self {
            Self::Leaf(value) => return leaf(value.clone()),
            Self::Map(map) => map,
        };
        let entries: Vec<_> = map.iter().collect();
        let mut views: Vec<View<'_>> = vec![View::Hidden; entries.len()];
        for path in paths {
            let Some((first, rest)) = path.split_first() else {
                return whole(self);
            };
            match entries.binary_search_by(|(key, _)| key.as_slice().cmp(first)) {
                Ok(found) => {
                    if let View::Paths(set) = &mut views[found] {
                        set.insert(rest);
                    } else {
                        views[found] = View::Paths(BTreeSet::from([rest]));
                    }
                }
                Err(place) => {
                    for neighbour in [place.checked_sub(1), Some(place)].into_iter().flatten() {
                        if let Some(view @ View::Hidden) = views.get_mut(neighbour) {
                            *view = View::LabelOnly;
                        }
                    }
                }
            }
        }
        view_of(&entries, &views)
    }
}

/// What a witness shows of one entry of a map.
#[derive(Clone)]
enum View<'a> {
    Hidden,
    LabelOnly,
    Paths(BTreeSet<&'a [Vec<u8>]>),
}

/// The domain-separated hashes of the specification.
fn hash(kind: &str, parts: &[&[u8]]) -> Hash {
    let name = match kind {
        "empty" => b"\x11ic-hashtree-empty".as_slice(),
        "fork" => b"\x10ic-hashtree-fork",
        "labeled" => b"\x13ic-hashtree-labeled",
        _ => b"\x10ic-hashtree-leaf",
    };
    let mut hasher = Sha256::new();
    hasher.update(name);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn digest_of(entries: &[(&Vec<u8>, &Node)]) -> Hash {
    match entries {
        [] => hash("empty", &[]),
        [(key, node)] => hash("labeled", &[key, &node.digest()]),
        _ => {
            let (left, right) = entries.split_at(entries.len() / 2);
            hash("fork", &[&digest_of(left), &digest_of(right)])
        }
    }
}

fn view_of(entries: &[(&Vec<u8>, &Node)], views: &[View<'_>]) -> HashTree<Vec<u8>> {
    if entries.is_empty() {
        return empty();
    }
    if views.iter().all(|view| matches!(view, View::Hidden)) {
        return pruned(digest_of(entries));
    }
    if let ([(key, node)], [view]) = (entries, views) {
        let below = match view {
            View::Paths(paths) => node.witness(&paths.iter().copied().collect::<Vec<_>>()),
            View::Hidden | View::LabelOnly => pruned(node.digest()),
        };
        return label::<Vec<u8>, _, _>(key.as_slice(), below);
    }
    let half = entries.len() / 2;
    fork(
        view_of(&entries[..half], &views[..half]),
        view_of(&entries[half..], &views[half..]),
    )
}

fn whole(node: &Node) -> HashTree<Vec<u8>> {
    fn all(entries: &[(&Vec<u8>, &Node)]) -> HashTree<Vec<u8>> {
        match entries {
            [] => empty(),
            [(key, node)] => label::<Vec<u8>, _, _>(key.as_slice(), whole(node)),
            _ => {
                let (left, right) = entries.split_at(entries.len() / 2);
                fork(all(left), all(right))
            }
        }
    }
    match node {
        Node::Leaf(value) => leaf(value.clone()),
        Node::Map(map) => all(&map.iter().collect::<Vec<_>>()),
    }
}

#[cfg(test)]
mod tests {
    use ic_certification::hash_tree::LookupResult;

    use super::*;

    fn path(labels: &[&str]) -> Path {
        labels.iter().map(|label| label.as_bytes().to_vec()).collect()
    }

    fn sample() -> Node {
        let mut tree = Node::default();
        for name in ["d", "b", "a", "f", "c"] {
            tree.insert(&[b"map", name.as_bytes()], name.as_bytes().to_vec());
        }
        tree.insert(&[b"time"], vec![1]);
        tree.insert(&[b"deep", b"er", b"still"], vec![2]);
        tree
    }

    #[test]
    fn every_witness_has_the_root_hash_and_shows_exactly_what_was_asked() {
        let tree = sample();
        let root = tree.digest();
        assert_eq!(
            whole(&tree).digest(),
            root,
            "the crate that clients verify with computes the same"
        );
        assert_eq!(Node::default().digest(), whole(&Node::default()).digest());
        let asked = [
            path(&["map", "c"]),
            path(&["time"]),
            path(&["map", "e"]),
            path(&["map", "z"]),
        ];
        let asked: Vec<&[Vec<u8>]> = asked.iter().map(Vec::as_slice).collect();
        let witness = tree.witness(&asked);
        assert_eq!(witness.digest(), root);
        assert_eq!(witness.lookup_path(["map", "c"]), LookupResult::Found(b"c"));
        assert_eq!(witness.lookup_path(["time"]), LookupResult::Found(&[1]));
        assert_eq!(
            witness.lookup_path(["map", "e"]),
            LookupResult::Absent,
            "between d and f"
        );
        assert_eq!(
            witness.lookup_path(["map", "z"]),
            LookupResult::Absent,
            "after the last"
        );
        assert_eq!(
            witness.lookup_path(["map", "a"]),
            LookupResult::Unknown,
            "not asked for"
        );
        assert_eq!(
            witness.lookup_path(["map", "d"]),
            LookupResult::Unknown,
            "only its label is shown"
        );
        assert_eq!(
            witness.lookup_path(["deep", "er", "still"]),
            LookupResult::Unknown
        );
        assert_eq!(tree.witness(&[]).digest(), root);
        assert_eq!(tree.witness(&[&[]]).digest(), root);
    }

    #[test]
    fn a_path_that_ends_at_a_map_shows_all_of_it_whatever_else_is_asked() {
        let tree = sample();
        for asked in [
            vec![path(&["map"])],
            vec![path(&["map"]), path(&["map", "x"])],
            vec![path(&["map", "a"]), path(&["map"])],
        ] {
            let asked: Vec<&[Vec<u8>]> = asked.iter().map(Vec::as_slice).collect();
            let witness = tree.witness(&asked);
            assert_eq!(witness.digest(), tree.digest());
            for name in ["a", "b", "c", "d", "f"] {
                assert_eq!(
                    witness.lookup_path(["map", name]),
                    LookupResult::Found(name.as_bytes())
                );
            }
        }
    }
}
