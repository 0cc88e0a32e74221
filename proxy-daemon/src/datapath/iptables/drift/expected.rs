//! Which chains must the kernel have, by what we wrote?
//!
//! The use count of each chain: its own rules, and the rules that jump to it. `nf_tables` counts the same,
//! and a legacy table shows it. Removing a rule, a chain or a hook of ours lowers one of these counts. Invariants: nothing here is taken from the kernel but
//! the handles of chains; the counts depend on the present chains only, not on how they came to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::datapath::iptables::chain::Chain;
use crate::datapath::iptables::names::CHAIN_PREFIX;

/// A hash of a chain's name: there may be some 100,000 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    fn of(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }
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

#[derive(Debug, Default)]
struct Entry {
    /// `None`: nothing but rules that go to it were written yet.
    own: Option<Own>,
    /// How many rules go to it.
    n_references: u32,
}

/// What we wrote of a chain.
#[derive(Debug)]
struct Own {
    n_rules: u32,
    /// Where its rules go to.
    targets: Box<[Key]>,
    /// 0 if it is not known yet.
    handle: u64,
}

/// The chains of one table.
#[derive(Debug, Default)]
pub(super) struct Expected {
    chains: BTreeMap<Key, Entry>,
    /// Chains that could not be removed.
    tolerated: BTreeSet<Key>,
    n_chains: usize,
    n_rules: usize,
}

/// How the kernel differs from what we wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Unknown {
        name: String,
    },
    MadeAnew {
        name: String,
    },
    Uses {
        name: String,
        found: u32,
        expected: u32,
    },
    Missing {
        n: usize,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(f, "the chain {name} was not written by us"),
            Self::MadeAnew { name } => write!(f, "the chain {name} was removed and created again"),
            Self::Uses {
                name,
                found,
                expected,
            } => write!(
                f,
                "the chain {name} has {found} rules and references, expected {expected}"
            ),
            Self::Missing { n } => write!(f, "{n} chains are missing"),
        }
    }
}

impl Expected {
    /// Records that the chain has exactly these rules.
    pub(super) fn put(&mut self, chain: &Chain) {
        let targets: Box<[Key]> = chain.rules.iter().filter_map(|rule| target(rule)).collect();
        for target in &targets {
            self.chains.entry(*target).or_default().n_references += 1;
        }
        let own = Own {
            n_rules: u32::try_from(chain.rules.len()).unwrap_or(u32::MAX),
            targets,
            // A program may make a chain anew to give it other rules.
            handle: 0,
        };
        self.replace(Key::of(&chain.name), Some(own));
    }

    /// Records that the chain was removed.
    pub(super) fn remove(&mut self, name: &str) {
        self.replace(Key::of(name), None);
    }

    /// Records that a rule in a built-in chain jumps to the chain: the hook that we wrote.
    pub(super) fn hook(&mut self, target: &str) {
        self.n_rules += 1;
        let entry = self.chains.entry(Key::of(target)).or_default();
        entry.n_references += 1;
    }

    /// Takes note that this chain is there although it should not be.
    pub(super) fn tolerate(&mut self, name: &str) {
        self.tolerated.insert(Key::of(name));
    }

    /// How many entries of a legacy table our chains and hooks take: a chain has a head and a tail.
    pub(super) const fn n_entries(&self) -> usize {
        self.n_chains * 2 + self.n_rules
    }

    fn replace(&mut self, key: Key, new: Option<Own>) {
        let rules_of = |own: &Own| usize::try_from(own.n_rules).unwrap_or(usize::MAX);
        if let Some(new) = &new {
            self.n_chains += 1;
            self.n_rules += rules_of(new);
        }
        let old = match new {
            Some(new) => self.chains.entry(key).or_default().own.replace(new),
            None => self.chains.get_mut(&key).and_then(|entry| entry.own.take()),
        };
        if let Some(old) = &old {
            self.n_chains -= 1;
            self.n_rules -= rules_of(old);
            for target in &old.targets {
                if let Some(entry) = self.chains.get_mut(target) {
                    entry.n_references = entry.n_references.saturating_sub(1);
                }
                self.forget_unused(*target);
            }
        }
        self.forget_unused(key);
    }

    fn forget_unused(&mut self, key: Key) {
        let is_unused = |entry: &Entry| entry.own.is_none() && entry.n_references == 0;
        if self.chains.get(&key).is_some_and(is_unused) {
            self.chains.remove(&key);
        }
    }

    /// How the chains of ours that the kernel has differ from what we wrote: the first difference.
    pub(super) fn compare<'a>(
        &mut self,
        chains: impl IntoIterator<Item = &'a Found>,
    ) -> Option<Difference> {
        let mut n_found = 0;
        for found in chains {
            let name = || found.name.clone();
            let key = Key::of(&found.name);
            let entry = self.chains.get_mut(&key);
            let known = entry.and_then(|entry| {
                let n_references = entry.n_references;
                entry.own.as_mut().map(|own| (own, n_references))
            });
            let Some((own, n_references)) = known else {
                if self.tolerated.contains(&key) {
                    continue;
                }
                return Some(Difference::Unknown { name: name() });
            };
            n_found += 1;
            let expected = own.n_rules.saturating_add(n_references);
            if found.uses != expected {
                return Some(Difference::Uses {
                    name: name(),
                    found: found.uses,
                    expected,
                });
            }
            if own.handle == 0 {
                own.handle = found.handle;
            } else if own.handle != found.handle {
                return Some(Difference::MadeAnew { name: name() });
            }
        }
        let n = self.n_chains.saturating_sub(n_found);
        (n > 0).then_some(Difference::Missing { n })
    }
}

/// Where a rule of ours goes to: the target is the last that we write of it.
fn target(rule: &str) -> Option<Key> {
    let mut words = rule.rsplitn(3, ' ');
    let (name, verb) = (words.next()?, words.next()?);
    let leads = matches!(verb, "-j" | "-g") && name.starts_with(CHAIN_PREFIX);
    leads.then(|| Key::of(name))
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

    fn difference(expected: &mut Expected, shown: &BTreeMap<String, u32>) -> Option<Difference> {
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
                if let Some(targets) = targets {
                    expected.put(&chain(n, &targets));
                    kernel.insert(n, targets);
                } else {
                    expected.remove(&name(n));
                    kernel.remove(&n);
                }
                prop_assert_eq!(difference(&mut expected, &shown(&kernel)), None);
                let n_entries = kernel.values().map(|rules| rules.len() + 2).sum::<usize>();
                prop_assert_eq!(expected.n_entries(), n_entries);
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
