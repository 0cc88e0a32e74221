//! Which chains must the kernel have, by what we wrote?
//!
//! Of each chain the kernel counts, or a table shows, the uses: its own rules, and the rules that jump to it.
//! One sum over all of them is enough to notice that any of these is missing or too many: each chain has a
//! random number, its key, which each of its uses adds once more. Invariants: nothing here is taken from the
//! kernel but the handles of chains; the sum depends on the present chains only, not on how they came to be.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::datapath::iptables::chain::Chain;
use crate::datapath::iptables::names::CHAIN_PREFIX;

/// The key of a chain: a hash of its name.
fn key(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// What a chain with so many uses adds to the sum.
const fn share(key: u64, uses: u64) -> u64 {
    key.wrapping_mul(uses.wrapping_add(1))
}

/// A chain of ours as the kernel has it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its name.
    pub(super) name: String,
    /// The kernel's number for it, another one if it was created again; 0 if it has none.
    pub(super) handle: u64,
    /// How many rules it has, plus how many rules jump to it.
    pub(super) uses: u32,
}

/// What we wrote of a chain.
#[derive(Debug)]
struct Own {
    /// What it and its rules add to the sum.
    share: u64,
    /// 0 if it is not known yet.
    handle: u64,
}

/// The chains of one table.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// By their keys.
    chains: BTreeMap<u64, Own>,
    sum: u64,
    /// Chains that could not be removed.
    tolerated: BTreeSet<u64>,
}

impl Expected {
    /// Records that the chain has exactly these rules.
    pub(crate) fn put(&mut self, chain: &Chain) {
        self.remove(&chain.name);
        let key = key(&chain.name);
        let n_rules = u64::try_from(chain.rules.len()).unwrap_or(u64::MAX);
        let targets = chain.rules.iter().filter_map(|rule| target(rule));
        let share = targets.fold(share(key, n_rules), u64::wrapping_add);
        self.sum = self.sum.wrapping_add(share);
        // A program may make a chain anew to give it other rules.
        self.chains.insert(key, Own { share, handle: 0 });
    }

    /// Records that the chain was removed.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(own) = self.chains.remove(&key(name)) {
            self.sum = self.sum.wrapping_sub(own.share);
        }
    }

    /// Records that a rule in a built-in chain jumps to the chain: the hook that we wrote.
    pub(crate) fn hook(&mut self, target: &str) {
        self.sum = self.sum.wrapping_add(key(target));
    }

    /// Takes note that this chain is there although it should not be.
    pub(crate) fn tolerate(&mut self, name: &str) {
        self.tolerated.insert(key(name));
    }

    /// How the chains of ours that the kernel has differ from what we wrote, if they do.
    pub(super) fn compare<'a>(
        &mut self,
        chains: impl IntoIterator<Item = &'a Found>,
    ) -> Option<String> {
        let (mut sum, mut n_missing) = (0_u64, self.chains.len());
        for Found { name, handle, uses } in chains {
            let key = key(name);
            let Some(own) = self.chains.get_mut(&key) else {
                if self.tolerated.contains(&key) {
                    continue;
                }
                return Some(format!("the chain {name} was not written by us"));
            };
            if own.handle == 0 {
                own.handle = *handle;
            } else if own.handle != *handle {
                return Some(format!("the chain {name} was removed and created again"));
            }
            n_missing = n_missing.saturating_sub(1);
            sum = sum.wrapping_add(share(key, u64::from(*uses)));
        }
        if n_missing > 0 {
            return Some(format!("{n_missing} chains are missing"));
        }
        let is_same = sum == self.sum;
        (!is_same).then(|| "rules of ours or jumps to them are missing or too many".to_owned())
    }
}

/// Where a rule of ours goes to: the target is the last that we write of it.
fn target(rule: &str) -> Option<u64> {
    let mut words = rule.rsplitn(3, ' ');
    let (name, verb) = (words.next()?, words.next()?);
    let leads = matches!(verb, "-j" | "-g") && name.starts_with(CHAIN_PREFIX);
    leads.then(|| key(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u8) -> String {
        format!("{CHAIN_PREFIX}{n}")
    }

    fn chain(n: u8, targets: &[u8]) -> Chain {
        let rules = targets.iter().map(|to| match to {
            0 => "-m comment --comment \"-g PROXYD-1\" -j RETURN".to_owned(),
            to => format!("-p tcp -g {}", name(*to)),
        });
        Chain::new(name(n), rules.collect())
    }

    /// What a kernel with these chains shows.
    fn shown(chains: &BTreeMap<u8, Vec<u8>>) -> BTreeMap<String, u32> {
        let uses = |n: &u8| {
            let references = chains.values().flatten().filter(|to| *to == n);
            u32::try_from(chains[n].len() + references.count()).unwrap()
        };
        chains.keys().map(|n| (name(*n), uses(n))).collect()
    }

    fn difference(expected: &mut Expected, shown: &BTreeMap<String, u32>) -> Option<String> {
        let found = shown.iter().map(|(name, uses)| Found {
            name: name.clone(),
            handle: 1,
            uses: *uses,
        });
        expected.compare(&found.collect::<Vec<_>>())
    }

    fn graphs() -> impl Strategy<Value = Vec<(u8, Option<Vec<u8>>)>> {
        let targets = prop::collection::vec(0_u8..6, 0..5);
        prop::collection::vec((1_u8..6, prop::option::weighted(0.8, targets)), 1..40)
    }

    proptest! {
        #[test]
        fn sync_9_whatever_was_written_the_numbers_are_those_of_the_kernel(steps in graphs()) {
            let mut expected = Expected::default();
            let mut kernel: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for (n, targets) in steps {
                // The kernel refuses rules that go to no chain, and the removal of a chain that they go to.
                if let Some(mut targets) = targets {
                    targets.retain(|to| *to == 0 || *to == n || kernel.contains_key(to));
                    expected.put(&chain(n, &targets));
                    kernel.insert(n, targets);
                } else if !kernel.iter().any(|(of, to)| *of != n && to.contains(&n)) {
                    expected.remove(&name(n));
                    kernel.remove(&n);
                }
                prop_assert_eq!(difference(&mut expected, &shown(&kernel)), None);
            }
            // Each rule and chain that is taken away makes a difference.
            for n in kernel.keys().copied().collect::<Vec<_>>() {
                for at in 0..kernel[&n].len() {
                    let mut damaged = kernel.clone();
                    damaged.get_mut(&n).unwrap().remove(at);
                    prop_assert!(difference(&mut expected, &shown(&damaged)).is_some());
                }
                let mut damaged = shown(&kernel);
                damaged.remove(&name(n));
                prop_assert!(difference(&mut expected, &damaged).is_some());
            }
            let mut more = shown(&kernel);
            more.insert(name(9), 0);
            prop_assert!(difference(&mut expected, &more).is_some());
            expected.tolerate(&name(9));
            prop_assert_eq!(difference(&mut expected, &more), None);
        }
    }

    #[test]
    fn sync_9_a_chain_that_was_made_anew_is_another() {
        let mut expected = Expected::default();
        expected.put(&chain(1, &[]));
        let mut look = |handle| {
            let found = Found {
                name: name(1),
                handle,
                uses: 0,
            };
            expected.compare([&found])
        };
        assert_eq!(look(3), None);
        assert_eq!(look(3), None);
        assert!(look(4).is_some());
    }
}
