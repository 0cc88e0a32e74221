//! What of ours is in the kernel?
//!
//! Invariant: what others have is looked at only where it leads to ours.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::io;

use super::chain::{Chain, Table};
use super::layout::Hook;
use super::names::{CHAIN_PREFIX, set_prefix};
use super::sets::SetId;
use super::tool::Tools;
use crate::datapath::DatapathError;
use crate::net::Family;

/// The chains of ours that a table has, and the rules that lead to them.
#[derive(Debug, Default)]
pub(crate) struct Printed {
    /// By name; of each a digest of its rules.
    chains: BTreeMap<String, Digest>,
    /// Chain and rule of others that go to a chain of ours.
    pub(crate) hooks: Vec<(String, String)>,
}

/// What the rules of a chain are known by.
#[derive(Clone, Debug, Default)]
struct Digest(DefaultHasher);

impl Digest {
    fn add(&mut self, rule: &str) {
        self.0.write(rule.as_bytes());
        self.0.write_u8(0);
    }

    fn of(chain: &Chain) -> u64 {
        let mut digest = Self::default();
        chain.rules.iter().for_each(|rule| digest.add(rule));
        digest.0.finish()
    }
}

impl Printed {
    /// Reads a table.
    ///
    /// # Errors
    /// What the program could not do.
    pub(crate) fn read(tools: &Tools, table: Table) -> Result<Self, DatapathError> {
        let mut printed = Self::default();
        tools.save(table.name(), &mut |line| printed.take(line))?;
        Ok(printed)
    }

    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix(':') {
            let name = rest.split(' ').next().unwrap_or_default();
            if name.starts_with(CHAIN_PREFIX) {
                self.chains.entry(name.to_owned()).or_default();
            }
        } else if let Some((chain, rule)) = line
            .strip_prefix("-A ")
            .and_then(|rest| rest.split_once(' '))
        {
            if let Some(digest) = self.chains.get_mut(chain) {
                digest.add(rule);
            } else if leads_to_ours(rule) {
                self.hooks.push((chain.to_owned(), rule.to_owned()));
            }
        }
    }

    /// Takes a chain off the list, and answers whether it was there with these rules.
    pub(crate) fn take_same(&mut self, chain: &Chain) -> bool {
        let printed = self.chains.remove(&chain.name);
        printed.is_some_and(|digest| digest.0.finish() == Digest::of(chain))
    }

    /// Takes a hook off the list, and answers whether it was there.
    pub(crate) fn take_hook(&mut self, hook: &Hook) -> bool {
        let wanted = hook.rule();
        let found = self
            .hooks
            .iter()
            .position(|(chain, rule)| chain == hook.chain && *rule == wanted);
        found.map(|at| self.hooks.remove(at)).is_some()
    }

    /// The chains that were not taken off the list.
    pub(crate) fn into_names(self) -> impl Iterator<Item = String> {
        self.chains.into_keys()
    }
}

/// Whether a rule goes to a chain of ours; what it says in quotation marks does not count.
fn leads_to_ours(rule: &str) -> bool {
    let mut words = Vec::new();
    for (n, part) in rule.replace("\\\"", "").split('"').enumerate() {
        if n % 2 == 0 {
            words.extend(part.split_whitespace().map(str::to_owned));
        } else {
            words.push(String::new());
        }
    }
    words.windows(2).any(|pair| match pair {
        [verb, target] => matches!(&**verb, "-j" | "-g") && target.starts_with(CHAIN_PREFIX),
        _ => false,
    })
}

/// The sets of a family that are ours.
#[derive(Debug, Default)]
pub(crate) struct PrintedSets {
    /// Those that are always there.
    pub(crate) fixed: Vec<SetId>,
    /// Others of ours by name, with the time that their elements stay, in seconds.
    pub(crate) others: BTreeMap<String, u32>,
}

impl PrintedSets {
    /// Reads the sets; hands out each element of those that are always there.
    ///
    /// # Errors
    /// What the program could not do.
    pub(crate) fn read<F: Family>(
        tools: &Tools,
        element: &mut dyn FnMut(SetId, &str),
    ) -> Result<Self, DatapathError> {
        let ids: BTreeMap<String, SetId> = SetId::ALL
            .into_iter()
            .map(|id| (id.name::<F>(), id))
            .collect();
        let mut printed = Self::default();
        let mut strange = None;
        tools.ipset_save(&mut |line| {
            let mut words = line.split(' ');
            let (verb, name) = (words.next(), words.next().unwrap_or_default());
            if !name.starts_with(set_prefix::<F>()) {
                return;
            }
            match (verb, ids.get(name)) {
                (Some("create"), Some(id)) => {
                    printed.fixed.push(*id);
                    if !is_declared_so(line, &id.declaration::<F>()) {
                        strange = Some(name.to_owned());
                    }
                }
                (Some("create"), None) => {
                    let timeout = words.skip_while(|word: &&str| **word != *"timeout").nth(1);
                    let timeout = timeout.and_then(|word| word.parse().ok());
                    printed.others.insert(name.to_owned(), timeout.unwrap_or(0));
                }
                (Some("add"), Some(id)) => element(*id, words.next().unwrap_or_default()),
                _ => {}
            }
        })?;
        match strange {
            None => Ok(printed),
            Some(name) => Err(DatapathError::Refused {
                operation: "reading",
                object: format!("the set {name}"),
                source: io::Error::other(
                    "it has our name, but not our type; run proxy-daemon --cleanup, or rename what is not ours",
                ),
            }),
        }
    }
}

/// Whether a set is what we would make it: all words of ours but those that ipset chooses itself are there.
fn is_declared_so(printed: &str, wanted: &str) -> bool {
    let words: Vec<&str> = printed.split(' ').collect();
    wanted.split(' ').all(|word| words.contains(&word))
}

/// The names of the sets of a family that are ours: those that no rule uses, and those that one does.
///
/// # Errors
/// What the program could not do.
pub(crate) fn sets_by_use<F: Family>(
    tools: &Tools,
) -> Result<(Vec<String>, Vec<String>), DatapathError> {
    let (mut unused, mut used) = (Vec::new(), Vec::new());
    let mut name = String::new();
    tools.ipset_heads(&mut |line| match line.split_once(": ") {
        Some(("Name", is)) => is.clone_into(&mut name),
        Some(("References", count)) if name.starts_with(set_prefix::<F>()) => {
            let which = if count.trim() == "0" {
                &mut unused
            } else {
                &mut used
            };
            which.push(std::mem::take(&mut name));
        }
        Some(_) | None => {}
    })?;
    Ok((unused, used))
}

/// The clients that these memories hold, each with the seconds that are left to it.
///
/// # Errors
/// What the program could not do.
pub(crate) fn clients(
    tools: &Tools,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vec<(String, u32)>>, DatapathError> {
    let mut found: BTreeMap<String, Vec<(String, u32)>> = BTreeMap::new();
    tools.ipset_save(&mut |line| {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["add", name, client, "timeout", left, ..] = words[..]
            && wanted(name)
            && let Ok(left) = left.parse()
        {
            let clients = found.entry(name.to_owned()).or_default();
            clients.push((client.to_owned(), left));
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_targets_lead_to_ours() {
        assert!(leads_to_ours(
            "-m comment --comment \"x y\" -j PROXYD-SERVICES"
        ));
        assert!(leads_to_ours("-g PROXYD-X"));
        for foreign in [
            "-m comment --comment \"before -j PROXYD-FORWARD -g PROXYD-FORWARD\" -j DROP",
            "-j LOG --log-prefix \"-g PROXYD-x \"",
            "-m comment --comment \"a \\\" -j PROXYD-X\" -j DROP",
            "-j PROXY",
        ] {
            assert!(!leads_to_ours(foreign), "{foreign}");
        }
    }
}
