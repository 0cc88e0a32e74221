//! Through which chains does a packet find its frontend?
//!
//! A chain holds a few frontends, or up to four branches of the bits of address, protocol and port, so
//! that a packet meets some twenty rules among 10,000 Services, and as many for the last as for the
//! first. A branch fixes all bits that its frontends have in common, not only the next two.
//!
//! Invariants: the chains are a function of the frontends, not of their history; branches exclude each
//! other, and a packet that goes into one (`-g`) does not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use super::bits::{Bits, Prefix};
use super::chain::Chain;
use super::names;
use crate::net::Family;

/// A chain with more frontends than this branches.
const FEW: usize = 4;

/// Frontends by their bits, with the rules of each.
pub(crate) type Entries = BTreeMap<Bits, Box<[String]>>;

/// Frontends, and the chains that lead to them.
#[derive(Debug)]
pub(crate) struct Tree<F: Family> {
    root: &'static str,
    /// Whether frontends have an address.
    has_address: bool,
    entries: Entries,
    family: PhantomData<F>,
}

/// How the chains change with the frontends.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainChanges {
    /// To be written, branches before the chains that lead to them.
    pub(crate) written: Vec<Chain>,
    /// No longer used.
    pub(crate) removed: Vec<String>,
}

impl<F: Family> Tree<F> {
    /// A tree with these frontends.
    pub(crate) const fn new(root: &'static str, has_address: bool, entries: Entries) -> Self {
        Self {
            root,
            has_address,
            entries,
            family: PhantomData,
        }
    }

    /// Puts frontends in the place of others; returns the chains that change.
    pub(crate) fn change(&mut self, old: &Entries, new: Entries) -> ChainChanges {
        let all = old.keys().chain(new.keys()).copied();
        let touched: BTreeSet<Bits> = all.filter(|bits| old.get(bits) != new.get(bits)).collect();
        let before = self.along(&touched);
        for bits in old.keys() {
            self.entries.remove(bits);
        }
        self.entries.extend(new);
        let after = self.along(&touched);
        let removed = before.keys().filter(|prefix| !after.contains_key(prefix));
        let removed = removed.map(|prefix| self.name(*prefix)).collect();
        let mut written = Vec::new();
        for (prefix, rules) in after.into_iter().rev() {
            if before.get(&prefix) != Some(&rules) {
                written.push(Chain::new(self.name(prefix), rules));
            }
        }
        ChainChanges { written, removed }
    }

    /// Hands out every chain, branches before the chains that lead to them.
    pub(crate) fn chains(&self, each: &mut dyn FnMut(Chain)) {
        self.below(Prefix::ALL, each);
    }

    fn below(&self, prefix: Prefix, each: &mut dyn FnMut(Chain)) {
        if self.is_branching(prefix) {
            for child in prefix.branches().filter_map(|branch| self.chain_of(branch)) {
                self.below(child, each);
            }
        }
        each(Chain::new(self.name(prefix), self.rules(prefix)));
    }

    fn name(&self, prefix: Prefix) -> String {
        if prefix == Prefix::ALL {
            self.root.to_owned()
        } else {
            names::chain("T", &[self.root, &prefix.text()])
        }
    }

    fn range(&self, prefix: Prefix) -> impl DoubleEndedIterator<Item = (&Bits, &Box<[String]>)> {
        let (first, last) = prefix.range();
        self.entries.range(first..=last)
    }

    fn is_branching(&self, prefix: Prefix) -> bool {
        self.range(prefix).nth(FEW).is_some()
    }

    /// The prefix of the chain that a branch leads to; `None` if it leads to one frontend or none.
    fn chain_of(&self, branch: Prefix) -> Option<Prefix> {
        let mut range = self.range(branch);
        let (first, _) = range.next()?;
        let (last, _) = range.next_back()?;
        Some(Prefix::covering(*first, *last))
    }

    fn rules(&self, prefix: Prefix) -> Vec<String> {
        if !self.is_branching(prefix) {
            let rules = self.range(prefix).flat_map(|(_, rules)| rules.iter());
            return rules.cloned().collect();
        }
        let mut rules = Vec::new();
        for branch in prefix.branches() {
            if let Some(child) = self.chain_of(branch) {
                let header = child.header::<F>(self.has_address);
                rules.push(format!("{header}-g {}", self.name(child)));
            } else {
                let only = self.range(branch).flat_map(|(_, rules)| rules.iter());
                rules.extend(only.cloned());
            }
        }
        rules
    }

    /// The chains on the paths to these frontends and their direct branches, with rules.
    ///
    /// A frontend can make its path longer or shorter, which adds or removes direct branches; chains below
    /// them do not change.
    fn along(&self, touched: &BTreeSet<Bits>) -> BTreeMap<Prefix, Vec<String>> {
        let mut found = BTreeMap::new();
        for bits in touched {
            let mut next = Some(Prefix::ALL);
            while let Some(prefix) = next.take() {
                found.entry(prefix).or_insert_with(|| self.rules(prefix));
                if !self.is_branching(prefix) {
                    break;
                }
                for child in prefix.branches().filter_map(|branch| self.chain_of(branch)) {
                    if child.covers(*bits) {
                        next = Some(child);
                    } else {
                        found.entry(child).or_insert_with(|| self.rules(child));
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::forwarding::{FrontendAddress, FrontendKey};
    use crate::net::{L4Proto, Port, V4};

    /// A frontend among few, so that paths are shared, and its rule.
    fn entry(number: u16) -> (Bits, Box<[String]>) {
        let [high, low] = (number / 16).to_be_bytes();
        let key = FrontendKey::<V4> {
            address: FrontendAddress::Vip(Ipv4Addr::new(10, 96, high, low)),
            protocol: L4Proto::Tcp,
            port: Port::new(80 + number % 16).unwrap(),
        };
        (Bits::of(&key), vec![format!("rule {number}")].into())
    }

    fn chains(tree: &Tree<V4>) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        tree.chains(&mut |chain| _ = found.insert(chain.name, chain.rules));
        found
    }

    proptest! {
        #[test]
        fn changes_end_where_a_new_tree_would(
            steps in prop::collection::vec(prop::collection::btree_set(0_u16..160, 0..7), 1..30),
        ) {
            let mut tree = Tree::<V4>::new("ROOT", true, Entries::new());
            let mut kernel = chains(&tree);
            let mut numbers = BTreeSet::new();
            for toggled in steps {
                let (gone, new): (Vec<u16>, Vec<u16>) =
                    toggled.iter().partition(|number| numbers.contains(*number));
                numbers = &numbers ^ &toggled;
                let [gone, new] = [gone, new].map(|them| them.into_iter().map(entry).collect());
                let changes = tree.change(&gone, new);
                for chain in changes.written {
                    prop_assert_ne!(kernel.get(&chain.name), Some(&chain.rules), "written for nothing");
                    kernel.insert(chain.name, chain.rules);
                }
                for name in changes.removed {
                    prop_assert!(kernel.remove(&name).is_some(), "{} is not there", name);
                }
                let entries = numbers.iter().copied().map(entry).collect();
                let fresh = Tree::<V4>::new("ROOT", true, entries);
                prop_assert_eq!(&kernel, &chains(&fresh));
            }
        }
    }
}
