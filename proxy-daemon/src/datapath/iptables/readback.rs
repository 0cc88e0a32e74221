//! What of ours is in the kernel?
//!
//! Invariant: foreign rules are read only where they jump to ours.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;

use super::chain::{Chain, Table};
use super::drift::{self, Jump};
use super::flavour::Flavour;
use super::layout::Hook;
use super::names::{CHAIN_PREFIX, set_prefix};
use super::render::Elements;
use super::sets::{self, SetId};
use super::tool::Tools;
use crate::datapath::DatapathError;
use crate::net::Family;

/// The chains of ours that a table has, and the rules that lead to them.
#[derive(Debug, Default)]
pub(crate) struct InstalledTable {
    /// By name; of each a hash of its rules, if they are known.
    chains: BTreeMap<String, Option<DefaultHasher>>,
    /// Chain and rule of others that go to a chain of ours.
    pub(crate) hooks: Vec<(String, String)>,
    /// Foreign rules that jump to a chain of ours, where no program could print them.
    pub(crate) jumps: Vec<Jump>,
}

/// How is found out what there is of our chains?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// With their rules, from what iptables-save prints; what it cannot print, from the kernel.
    Printed,
    /// Their names only, from the kernel; all of them are rewritten.
    Names,
}

impl InstalledTable {
    /// Reads a table.
    ///
    /// # Errors
    /// What neither the program nor the kernel could tell.
    pub(crate) fn read(
        tools: &Tools,
        table: Table,
        reading: Reading,
    ) -> Result<Self, DatapathError> {
        if reading == Reading::Printed {
            let mut installed = Self::default();
            match tools.save(table.name(), &mut |line| installed.take(line)) {
                Ok(()) => return Ok(installed),
                // Not caused by foreign rules.
                Err(error) if error.is_late() => return Err(error),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        family = tools.family.name(),
                        table = table.name(),
                        error,
                        "cannot print the rules with iptables, reading the names of our chains from the kernel; most likely \
                         another program wrote rules with nft into this table: move them to another table"
                    );
                }
            }
        }
        let (chains, jumps) = drift::read_unprinted(tools, table)?;
        let mut installed = Self {
            chains: chains.into_iter().map(|name| (name, None)).collect(),
            hooks: Vec::new(),
            jumps,
        };
        if tools.flavour == Flavour::Legacy {
            for hook in Hook::of(table).filter(|hook| installed.chains.contains_key(hook.target)) {
                let (table, rule) = (table.name(), hook.rule());
                let check = format!("*{table}\n-C {} {rule}\nCOMMIT\n", hook.chain);
                match tools.restore(&check) {
                    Ok(()) => installed.hooks.push((hook.chain.to_owned(), rule)),
                    Err(error) if error.is_late() => return Err(error),
                    // It is not there.
                    Err(_) => {}
                }
            }
        }
        Ok(installed)
    }

    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix(':') {
            let name = rest.split(' ').next().unwrap_or_default();
            if name.starts_with(CHAIN_PREFIX) {
                let digest = Some(DefaultHasher::new());
                self.chains.insert(name.to_owned(), digest);
            }
        } else if let Some((chain, rule)) = line
            .strip_prefix("-A ")
            .and_then(|rest| rest.split_once(' '))
        {
            if let Some(Some(digest)) = self.chains.get_mut(chain) {
                rule.hash(digest);
            } else if leads_to_ours(rule) {
                self.hooks.push((chain.to_owned(), rule.to_owned()));
            }
        }
    }

    /// Takes a chain off the list; returns whether it had these rules.
    pub(crate) fn take_same(&mut self, chain: &Chain) -> bool {
        let mut wanted = DefaultHasher::new();
        chain.rules.iter().for_each(|rule| rule.hash(&mut wanted));
        let installed = self.chains.remove(&chain.name).flatten();
        installed.is_some_and(|digest| digest.finish() == wanted.finish())
    }

    /// Takes a hook off the list; returns whether it existed.
    pub(crate) fn take_hook(&mut self, hook: &Hook) -> bool {
        let wanted = hook.rule();
        let is_it = |(chain, rule): &(String, String)| chain == hook.chain && *rule == wanted;
        let found = self.hooks.iter().position(is_it);
        found.map(|at| self.hooks.remove(at)).is_some()
    }

    /// Takes the remaining chains off the list.
    pub(crate) fn take_names(&mut self) -> Vec<String> {
        std::mem::take(&mut self.chains).into_keys().collect()
    }
}

/// Whether a rule jumps to a chain of ours; quoted text does not count.
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
pub(crate) struct InstalledSets {
    /// The constant ones.
    pub(crate) fixed: Vec<SetId>,
    /// Their elements.
    pub(crate) elements: Elements,
    /// Our other sets by name, with their timeouts in seconds.
    pub(crate) others: BTreeMap<String, u32>,
    /// One that has our name and another type.
    foreign: Option<String>,
}

impl InstalledSets {
    /// Reads the sets.
    ///
    /// # Errors
    /// What the program could not do; [`DatapathError::Refused`] if a set of another type has one of our names.
    pub(crate) fn read<F: Family>(tools: &Tools) -> Result<Self, DatapathError> {
        let sets = read_sets(tools, Self::take::<F>)?;
        sets.foreign.clone().map_or(Ok(sets), |name| {
            Err(DatapathError::Refused {
                operation: "reading",
                object: format!("the set {name}"),
                source: io::Error::other(
                    "the set has our name but another type; run proxy-daemon --cleanup, or rename the foreign set",
                ),
            })
        })
    }

    fn take<F: Family>(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (verb, name) = (words.next(), words.next().unwrap_or_default());
        let Some(suffix) = name.strip_prefix(set_prefix(F::FAMILY)) else {
            return;
        };
        match (verb, SetId::of_suffix(suffix)) {
            (Some("create"), Some(id)) => {
                self.fixed.push(id);
                if !is_declared_so(line, &id.declaration::<F>()) {
                    self.foreign = Some(name.to_owned());
                }
            }
            (Some("create"), None) => {
                let timeout = words.skip_while(|word| **word != *"timeout").nth(1);
                let timeout = timeout.and_then(|word| word.parse().ok());
                self.others.insert(name.to_owned(), timeout.unwrap_or(0));
            }
            (Some("add"), Some(id)) => {
                let element = words.next().unwrap_or_default();
                self.elements.insert((id, sets::as_displayed(element)));
            }
            _ => {}
        }
    }
}

/// Hands each line of `ipset save` to `take`: of all sets, or of ours one by one, if ipset cannot print
/// one of another program.
fn read_sets<T: Default>(tools: &Tools, take: impl Fn(&mut T, &str)) -> Result<T, DatapathError> {
    let mut found = T::default();
    match tools.ipset_save(None, &mut |line| take(&mut found, line)) {
        Err(error) if !matches!(error, DatapathError::Unusable { .. }) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "cannot list all sets, reading ours one by one; update ipset if it does not support a set of another program"
            );
        }
        other => return other.map(|()| found),
    }
    let mut found = T::default();
    let (unused, used) = drift::sets_by_use(tools.family)?;
    for name in unused.iter().chain(&used) {
        tools.ipset_save(Some(name), &mut |line| take(&mut found, line))?;
    }
    Ok(found)
}

/// Whether a set has our declaration; words that ipset adds itself do not count.
fn is_declared_so(printed: &str, wanted: &str) -> bool {
    let words: Vec<&str> = printed.split(' ').collect();
    wanted.split(' ').all(|word| words.contains(&word))
}

/// Clients by set, each with its remaining timeout in seconds.
type Clients = BTreeMap<String, Vec<(String, u32)>>;

/// The clients in these sets.
///
/// # Errors
/// What the program could not do.
pub(crate) fn clients(tools: &Tools, wanted: &BTreeSet<&str>) -> Result<Clients, DatapathError> {
    read_sets(tools, |found, line| take_client(line, wanted, found))
}

fn take_client(line: &str, wanted: &BTreeSet<&str>, to: &mut Clients) {
    let words: Vec<&str> = line.split(' ').collect();
    if let ["add", name, client, "timeout", left, ..] = words[..]
        && wanted.contains(name)
        && let Ok(left) = left.parse()
    {
        let clients = to.entry(name.to_owned()).or_default();
        clients.push((client.to_owned(), left));
    }
}

/// Reads what iptables-save prints, without the program.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_printed_rules(text: &str) {
    let mut installed = InstalledTable::default();
    text.lines().for_each(|line| installed.take(line));
}

/// Reads what `ipset save` prints, without the program.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_printed_sets(text: &str) {
    let (mut sets, mut found) = (InstalledSets::default(), Clients::new());
    for line in text.lines() {
        sets.take::<crate::net::V4>(line);
        sets.take::<crate::net::V6>(line);
        let names: Vec<String> = sets.others.keys().cloned().collect();
        let names = names.iter().map(String::as_str).collect();
        take_client(line, &names, &mut found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::V6;

    #[test]
    fn an_ipv6_address_is_the_same_however_it_is_printed() {
        let mut sets = InstalledSets::default();
        let mut read = |line: &str| {
            sets.take::<V6>(&format!("add PROXYD6-{line}"));
            sets.elements.pop_first().map(|(_, element)| element)
        };
        for (printed, wanted) in [
            ("tcp-backends ::1.2.3.4,tcp:80", "::102:304,tcp:80"),
            ("tcp-backends fd00::1,tcp:80", "fd00::1,tcp:80"),
            ("cluster-ips ::1.2.3.4", "::102:304"),
            ("service-cidrs ::1.2.0.0/112", "::102:0/112"),
            (
                "source-ranges ::1,udp:53,::1.2.3.0/120",
                "::1,udp:53,::102:300/120",
            ),
        ] {
            assert_eq!(read(printed).as_deref(), Some(wanted));
        }
    }

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
